//! Who gives memory back when others wait for it: whoever has stopped within a request, or does not read the answers
//! before it.
//!
//! One task per shard, which sleeps while nobody waits. A connection that waits for memory itself, or whose bytes wait to
//! be read, is never one of them.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use glommio::timer::sleep;

use super::{
    connection::{Connection, Holding},
    memory::{Class, ReceiveMemory},
    serve::Serving,
    service::Service,
};
use crate::log_limiter::LogLimiter;

/// How long a peer may do nothing for the memory that it holds while others wait, unless the configuration says another
/// time. With [`PAUSE`] less than a second.
pub(crate) const SILENCE_MAX: Duration = Duration::from_millis(800);
/// How long a request may take to be received while others wait: `request.timeout.ms` of producers, who give up then.
const HELD_MAX: Duration = Duration::from_secs(30);
/// How long somebody waits at least before anybody is given up for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives up connections, for ever.
pub(crate) async fn run<S: Service>(serving: Rc<Serving<S>>) {
    let mut log = LogLimiter::default();
    loop {
        serving.wire().memory.contended().await;
        sleep(PAUSE).await;
        for class in Class::ALL {
            relieve(&serving, class, &mut log);
        }
    }
}

/// Gives up as many connections as those who wait for memory of a class need, the longest silent first.
fn relieve<S: Service>(serving: &Serving<S>, class: Class, log: &mut LogLimiter) {
    let wire = serving.wire();
    let mut shortage = wire.memory.shortage(class);
    if shortage == 0 {
        return;
    }
    let now = Instant::now();
    let holding = |connection: Rc<Connection<S>>| connection.holding(now).map(|holding| (holding, connection));
    let mut stalled: Vec<_> = serving.open_connections().into_iter().filter_map(holding).collect();
    let silence_max = wire.config.silence_max;
    stalled.retain(|(holding, _)| is_stalled(holding, silence_max) && gives_way(&wire.memory, holding, class));
    stalled.sort_by_key(|(holding, _)| std::cmp::Reverse(holding.silent));
    for (holding, connection) in stalled {
        if shortage == 0 {
            return;
        }
        if holding.held <= HELD_MAX && connection.has_unread() {
            continue;
        }
        connection.give_up(&holding, log.on_event(wire.tick()));
        shortage = shortage.saturating_sub(holding.bytes);
    }
}

fn is_stalled(holding: &Holding, silence_max: Duration) -> bool {
    holding.bytes > 0 && (holding.silent >= silence_max || holding.held > HELD_MAX)
}

fn gives_way(memory: &ReceiveMemory, holding: &Holding, class: Class) -> bool {
    holding.class.is_none_or(|holder| memory.gives_way(holder, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_goes_on_is_not_stalled_until_it_takes_too_long() {
        let holding = |bytes, silent_ms, held_s| Holding {
            class: Some(Class::Large),
            bytes,
            silent: Duration::from_millis(silent_ms),
            held: Duration::from_secs(held_s),
            reason: "",
        };
        let is_stalled = |holding| is_stalled(&holding, SILENCE_MAX);
        assert!(!is_stalled(holding(1, 799, 30)));
        assert!(is_stalled(holding(1, 800, 1)));
        assert!(is_stalled(holding(1, 0, 31)));
        assert!(!is_stalled(holding(0, 800, 31)));
    }
}
