//! The bound of a stop: whoever begins one starts the clock, and when it runs out the process says what it leaves behind
//! and ends, whatever its shards do. What was acknowledged is on the disk by then; a start replays what is in no segment.
//!
//! A thread of its own, because neither the shards nor the main thread, which waits for them, can be counted on.

use std::{io, process, sync::mpsc, thread, time::Duration};

use millrace_engine::{node::Stopper, vitals::ShardVitals};

use super::wire::Ending;

/// Exit code of a broker whose stop took too long.
pub(super) const OVERDUE_EXIT_CODE: i32 = 3;

/// How long somebody may take to read a last word.
const WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends the process a while after the stop began. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Deadline {
    begun: mpsc::Sender<()>,
}

impl Deadline {
    /// Starts the thread, which does nothing until a stop begins.
    pub(super) fn start(stopper: Stopper, ending: Ending, patience: Duration) -> io::Result<Self> {
        let (begun, begins) = mpsc::channel();
        let wait = move || {
            if begins.recv().is_err() {
                return; // nobody is left who could begin a stop
            }
            thread::sleep(patience);
            briefly(move || {
                if let Some(reason) = ending.take() {
                    tracing::error!("a shard could not go on: {reason}");
                }
                tracing::error!("{}", overdue(patience, &stopper.vitals()));
            });
            process::exit(OVERDUE_EXIT_CODE);
        };
        thread::Builder::new().name("deadline".to_owned()).spawn(wait)?;
        Ok(Self { begun })
    }

    /// A stop has begun. Only the first time counts.
    pub(super) fn begin(&self) {
        let _ = self.begun.send(()); // nobody listens once time is up
    }
}

/// Says something, unless nobody takes it: a log that is not read must not keep a node from stopping.
pub(super) fn briefly(words: impl FnOnce() + Send + 'static) {
    let (said, is_said) = mpsc::channel();
    let speak = move || {
        words();
        let _ = said.send(()); // nobody may wait any more
    };
    if thread::Builder::new().name("last-words".to_owned()).spawn(speak).is_ok() {
        let _ = is_said.recv_timeout(WORDS_TIMEOUT); // said, or not to be said
    }
}

fn overdue(patience: Duration, vitals: &[ShardVitals]) -> String {
    let mut text = format!("not stopped after {} s (--stop-timeout): ending at once", patience.as_secs_f64());
    if vitals.is_empty() {
        text.push_str("; the shards were not open yet");
        return text;
    }
    for (shard, vitals) in vitals.iter().enumerate() {
        let stalled = if vitals.is_stalled { ", which is stalled," } else { "" };
        text.push_str(&format!("; shard {shard}{stalled} leaves {} bytes", vitals.left_bytes));
        if let Some(partitions) = vitals.left_partitions {
            text.push_str(&format!(" of {partitions} partitions"));
        }
        text.push_str(" in the write-ahead log");
    }
    text.push_str("; the next start replays that, nothing that was acknowledged is lost");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_by_shard() {
        let patience = Duration::from_secs(30);
        let vitals = [
            ShardVitals { is_stalled: true, left_bytes: 70, left_partitions: Some(1) },
            ShardVitals { is_stalled: false, left_bytes: 5, left_partitions: None },
        ];
        let said = overdue(patience, &vitals);
        for part in [
            "not stopped after 30 s",
            "shard 0, which is stalled, leaves 70 bytes of 1 partitions",
            "shard 1 leaves 5 bytes in the",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(overdue(patience, &[]).contains("not open yet"));
    }

    #[test]
    fn words_that_nobody_takes_do_not_hold_up() {
        let (never, waits) = mpsc::channel::<()>();
        briefly(move || _ = waits.recv());
        drop(never);
    }
}
