//! What other implementations got wrong, case by case, at the follower.

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::channel::frame::Payload;

const P: TopicPartition = TopicPartition { topic: Uuid::from_u128(1), partition: 0 };

fn position(end: i64) -> LogPosition {
    LogPosition {
        log_start: 0,
        high_watermark: 2,
        written: end,
        durable: end,
        end,
        last_epoch: 4,
        epoch_start: 3,
        durability: Durability::Device,
    }
}

fn run(base: i64, end: i64) -> Run {
    Run {
        partition: P,
        attachment: 7,
        epoch: 5,
        base,
        end,
        high_watermark: end - 1,
        log_start: 0,
        durability: Durability::Device,
        payload: Payload::new(Bytes::from_static(b"x")),
    }
}

/// Follows in epoch 5, with a log that ends at 5, and has said so.
fn attaching() -> Following {
    let mut following = Following::new(P, 5, Member { node: 1, epoch: 1 }, 0, Guards::default());
    following.prepared();
    following.attach(7, position(5));
    following
}

fn live() -> Following {
    let mut following = attaching();
    following.hear(Verdict::Match, None);
    following.go_live(5).unwrap();
    following
}

/// KIP-279: who does not have the leader's epoch goes back to its own one before that.
#[test]
fn log_is_cut_where_the_epoch_ends_first() {
    let cut = |epoch, end, own| {
        let mut following = attaching();
        following.hear(Verdict::Diverge { epoch, end }, own);
        following.stage
    };
    assert_eq!(cut(4, 4, Some((4, 5))), Stage::Cutting { end: 4 });
    assert_eq!(
        cut(4, 9, Some((4, 5))),
        Stage::Cutting { end: 5 },
        "the list of epochs is cut all the same (KAFKA-10706)"
    );
    assert_eq!(cut(3, 4, Some((1, 2))), Stage::Cutting { end: 2 });
}

#[test]
fn cut_before_the_own_start_begins_anew() {
    let mut following = Following::new(P, 5, Member { node: 1, epoch: 1 }, 0, Guards::default());
    following.prepared();
    following.attach(7, LogPosition { log_start: 3, ..position(5) });
    following.hear(Verdict::Diverge { epoch: 1, end: 2 }, Some((1, 3)));
    assert_eq!(following.stage, Stage::BeginningAnew { log_start: 2 });
}

/// KAFKA-14704: a high watermark that is taken before the logs were found to match shows records that are cut then.
#[test]
fn high_watermark_is_taken_only_once_the_logs_match() {
    let marks = Marks { partition: P, attachment: 7, epoch: 5, high_watermark: 5, log_start: 0 };
    let mut following = attaching();
    assert_eq!(following.take_marks(&marks), Taken::default());
    following.hear(Verdict::Match, None);
    assert_eq!(following.take_marks(&marks).high_watermark, Some(5));
    let stale = Marks { epoch: 4, high_watermark: 9, ..marks };
    assert_eq!(following.take_marks(&stale), Taken::default());
}

#[test]
fn high_watermark_never_passes_the_own_end() {
    let mut following = live();
    let marks = Marks { partition: P, attachment: 7, epoch: 5, high_watermark: 6, log_start: 0 };
    assert_eq!(following.take_marks(&marks).high_watermark, Some(5));
    assert_eq!(following.take_live(run(5, 9)).unwrap().high_watermark, Some(8));
}

/// Never skipped, never overwritten: what does not begin at the end ends the attempt.
#[test]
fn run_that_does_not_begin_at_the_end_is_not_taken() {
    assert_eq!(live().take_live(run(6, 9)), Err(Mismatch));
    assert_eq!(live().take_live(run(4, 9)), Err(Mismatch));
    assert_eq!(live().take_live(Run { epoch: 4, ..run(5, 9) }), Err(Mismatch));
    assert_eq!(live().take_chunk(run(5, 9)), Err(Mismatch), "nobody asked for chunks");
    assert_eq!(attaching().take_live(run(5, 9)), Err(Mismatch), "the logs were not compared yet");
    assert_eq!(live().take_live(run(5, 9)).unwrap().append, [run(5, 9)]);
}

/// Live runs overtake the last chunks, as they come on another connection.
#[test]
fn live_runs_wait_for_the_chunks_before_them() {
    let mut following = attaching();
    following.hear(Verdict::Match, None);
    following.catch_up(5).unwrap();
    following.go_live(9).unwrap();
    assert_eq!(following.take_live(run(9, 11)), Ok(Taken::default()));
    assert_eq!(following.take_live(run(11, 12)), Ok(Taken::default()));
    assert_eq!(following.take_live(run(13, 14)), Err(Mismatch));
    assert_eq!(following.take_chunk(run(5, 7)).unwrap().append, [run(5, 7)]);
    let taken = following.take_chunk(run(7, 9)).unwrap();
    assert_eq!(taken.append, [run(7, 9), run(9, 11), run(11, 12)]);
    assert_eq!((taken.high_watermark, following.end), (Some(11), 12));
    assert_eq!(following.stage, Stage::Attached(Mode::Live));
}

/// The two sides must mean the same by confirmed: the frame says what.
#[test]
fn confirmed_means_what_the_run_says() {
    let mut following = live();
    following.take_live(run(5, 9)).unwrap();
    following.progress(LogPosition { written: 9, durable: 5, end: 9, ..position(9) });
    assert!(following.has(9, Durability::Written) && !following.has(9, Durability::Device));
    following.progress(position(9));
    assert!(following.has(9, Durability::Device));
}

#[test]
fn pauses_grow_and_have_a_bound() {
    let mut following = attaching();
    let pauses: Vec<u64> = (0..9).map(|_| following.next_pause_ms()).collect();
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1_000, 1_000, 1_000]);
}
