//! Connections in a closed loop, spread over some threads, and the meters at the edges of the window.

use std::time::Duration;

use super::{Window, WindowEdge};
use crate::{clock::Clock, target::Meters};

/// How connections are driven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crew {
    pub threads: u32,
    /// Seconds before measuring, and seconds that are measured.
    pub warmup: f64,
    pub duration: f64,
    pub server_pid: Option<u32>,
}

impl Crew {
    /// Has each thread drive its part of the connections until the window has ended; answers what they measured.
    pub(crate) fn drive<C: Send, T: Send>(
        self,
        connections: &mut [C],
        drive: impl Fn(&mut [C], Clock, Window) -> anyhow::Result<T> + Sync,
        mut at_edge: impl FnMut(WindowEdge) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Vec<T>, Meters)> {
        let clock = Clock::start();
        let start_ns = clock.now_ns() + Duration::from_secs_f64(self.warmup).as_nanos() as u64;
        let window = Window { start_ns, end_ns: start_ns + Duration::from_secs_f64(self.duration).as_nanos() as u64 };
        let mut meters = Meters::default();
        let share = connections.len().div_ceil(self.threads as usize).max(1);
        let drive = &drive;
        let (parts, edges) = std::thread::scope(|scope| {
            let run = |part| scope.spawn(move || drive(part, clock, window));
            let handles: Vec<_> = connections.chunks_mut(share).map(run).collect();
            let mut edges = Ok(());
            for (edge, at_ns) in [(WindowEdge::Start, window.start_ns), (WindowEdge::End, window.end_ns)] {
                clock.sleep_until(at_ns);
                meters.read(self.server_pid, edge);
                edges = edges.and_then(|()| at_edge(edge));
            }
            let parts: Vec<_> =
                handles.into_iter().map(|handle| handle.join().expect("a load thread panicked")).collect();
            (parts, edges)
        });
        edges?;
        Ok((parts.into_iter().collect::<anyhow::Result<Vec<T>>>()?, meters))
    }
}
