//! EndTxn by both versions, in every state.

use super::*;

#[test]
fn end_by_version_0_keeps_the_epoch() {
    for (outcome, state) in [(Commit, State::CompleteCommit), (Abort, State::CompleteAbort)] {
        let (mut world, producer) = World::in_state(0, State::Ongoing);
        assert_eq!(world.end(producer, outcome, 0), NO_ERROR);
        assert_eq!(world.state(), state);
        assert_eq!((world.marked[0].producer_epoch, world.marked[0].outcome), (producer.epoch, outcome));
        assert_eq!(world.add(producer, "x", 0), Ok(()));
    }
}

#[test]
fn end_by_version_0_of_another_producer_or_epoch_is_refused() {
    let producer = Producer { id: 1, epoch: 0 };
    assert_eq!(World::new(0).end(producer, Commit, 0), Err(InvalidProducerIdMapping));
    for state in [State::Empty, State::Ongoing, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(0, state);
        assert_eq!(world.end(other(producer), Commit, 0), Err(InvalidProducerIdMapping), "{state:?}");
        for by in [-1, 1] {
            assert_eq!(world.end(epoch(producer, by), Commit, 0), Err(ProducerFenced), "{state:?}");
        }
    }
}

#[test]
fn end_by_version_0_in_other_states() {
    let same = |state| match state {
        State::CompleteCommit => Commit,
        _ => Abort,
    };
    for outcome in [Commit, Abort] {
        let (mut world, producer) = World::in_state(0, State::Empty);
        assert_eq!(world.end(producer, outcome, 0), Err(InvalidTxnState));
        for state in [State::CompleteCommit, State::CompleteAbort] {
            let (mut world, producer) = World::in_state(0, state);
            let is_same = outcome == same(state);
            let expected = if is_same { Ok(producer) } else { Err(InvalidTxnState) };
            assert_eq!(world.end(producer, outcome, 0), expected, "{state:?} {outcome:?}");
        }
        for (state, first) in [(State::PrepareCommit, Commit), (State::PrepareAbort, Abort)] {
            let (mut world, producer) = World::in_state(0, state);
            world.ask_end(producer, outcome, 0);
            assert_eq!(world.told.take(), [], "it is held");
            world.is_slow = false;
            let second = if outcome == first { Ok(producer) } else { Err(InvalidTxnState) };
            assert_eq!(world.heard(), [Told::Producer(NO_ERROR), Told::Producer(second)]);
        }
    }
}

#[test]
fn end_by_version_2_bumps_the_epoch_and_markers_carry_it() {
    for outcome in [Commit, Abort] {
        let (mut world, producer) = World::in_state(2, State::Ongoing);
        assert_eq!(world.end(producer, outcome, 2), Ok(epoch(producer, 1)));
        assert_eq!(world.marked[0].producer_epoch, producer.epoch + 1);
        // the repetition gets the same, and nothing more is marked
        assert_eq!(world.end(producer, outcome, 2), Ok(epoch(producer, 1)));
        world.restart();
        assert_eq!(world.end(producer, outcome, 2), Ok(epoch(producer, 1)));
        assert_eq!(world.marked.len(), 1);
    }
}

#[test]
fn end_by_version_2_at_rest_with_the_current_epoch() {
    for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.end(producer, Commit, 2), Err(InvalidTxnState), "{state:?}");
        assert_eq!(world.end(producer, Abort, 2), Ok(epoch(producer, 1)), "{state:?}");
        assert_eq!(world.state(), State::CompleteAbort);
    }
}

#[test]
fn end_by_version_2_of_another_producer_or_epoch_is_refused() {
    let producer = Producer { id: 1, epoch: 0 };
    assert_eq!(World::new(2).end(producer, Commit, 2), Err(InvalidProducerIdMapping));
    for outcome in [Commit, Abort] {
        for state in [State::Empty, State::Ongoing] {
            let (mut world, producer) = World::in_state(2, state);
            assert_eq!(world.end(other(producer), outcome, 2), Err(InvalidProducerIdMapping), "{state:?}");
            for by in [-2, -1, 1] {
                assert_eq!(world.end(epoch(producer, by), outcome, 2), Err(ProducerFenced), "{state:?} {by}");
            }
        }
    }
}

#[test]
fn end_by_version_2_repeated_with_another_outcome_is_refused() {
    let (mut world, producer) = World::in_state(2, State::CompleteCommit);
    assert_eq!(world.end(epoch(producer, -1), Abort, 2), Err(InvalidTxnState));
    assert_eq!(world.end(epoch(producer, -2), Commit, 2), Err(ProducerFenced));
}

/// KAFKA-20785: the error of the invalid state is fatal to Kafka Streams.
#[test]
fn a_commit_after_the_timeout_is_fenced_by_version_2() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    world.advance(i64::from(TIMEOUT_MS) + 10_000);
    assert_eq!(world.state(), State::CompleteAbort);
    assert_eq!(world.end(producer, Commit, 2), Err(ProducerFenced));
    // an abort has happened as asked for: the producer may go on
    assert_eq!(world.end(producer, Abort, 2), Ok(epoch(producer, 1)));
}

#[test]
fn end_by_version_2_while_an_end_is_under_way_is_held() {
    for (state, first) in [(State::PrepareCommit, Commit), (State::PrepareAbort, Abort)] {
        let (mut world, producer) = World::in_state(2, state);
        world.ask_end(epoch(producer, -1), first, 2);
        assert_eq!(world.told.take(), []);
        world.is_slow = false;
        assert_eq!(world.heard(), [Told::Producer(Ok(producer)), Told::Producer(Ok(producer))]);
        assert_eq!(world.marked.len(), 1);
    }
}

/// KAFKA-18464: an empty abort right after a commit fenced its own producer.
#[test]
fn commit_begin_and_abort_back_to_back_are_never_refused() {
    let mut world = World::new(2);
    let mut producer = world.init(None).unwrap();
    for turn in 0..1000 {
        world.is_slow = turn % 3 == 0;
        world.ask_add(producer, if turn % 2 == 0 { "here" } else { "elsewhere" }, 2);
        world.ask_end(producer, Commit, 2);
        world.is_slow = false;
        let heard = world.heard();
        let next = epoch(producer, 1);
        assert_eq!(heard, [Told::Done(Ok(())), Told::Producer(Ok(next))], "{turn}");
        producer = world.end(next, Abort, 2).unwrap();
        if producer.epoch > 30_000 {
            return;
        }
    }
}

#[test]
fn an_exhausted_epoch_ends_with_another_producer_id() {
    for outcome in [Commit, Abort] {
        for is_restarted in [false, true] {
            let mut world = World::new(2);
            world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
            let last = Producer { id: 7, epoch: LAST_EPOCH };
            world.add(last, "elsewhere", 2).unwrap();
            world.is_slow = true;
            world.ask_end(last, outcome, 2);
            world.is_slow = false;
            let ids = std::mem::take(&mut world.ids_asked);
            assert_eq!(ids, 1, "the next id is there before the end is decided");
            world.machine.handle_producer_id(world.now_ms, Ok(8));
            let next = Producer { id: 8, epoch: 0 };
            assert_eq!(world.only(), Told::Producer(Ok(next)));
            let marker = world.marked[0];
            assert_eq!((marker.producer_id, marker.producer_epoch), (7, i16::MAX));
            if is_restarted {
                world.restart();
            }
            let repeated = world.end(last, outcome, 2);
            assert_eq!(repeated, Ok(next), "KAFKA-18660");
            assert!(world.end(last, if outcome == Commit { Abort } else { Commit }, 2).is_err());
            assert_eq!(world.add(next, "x", 2), Ok(()));
        }
    }
}

/// KAFKA-20090, KAFKA-20310: the next producer id of a fence was lost.
#[test]
fn an_exhausted_epoch_is_fenced_with_another_producer_id_also_over_a_restart() {
    let mut world = World::new(2);
    world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
    world.add(Producer { id: 7, epoch: LAST_EPOCH }, "elsewhere", 2).unwrap();
    world.is_slow = true;
    world.advance(i64::from(TIMEOUT_MS) + 10_000);
    assert_eq!(std::mem::take(&mut world.ids_asked), 1);
    world.machine.handle_producer_id(world.now_ms, Ok(8));
    world.advance(100);
    world.write();
    world.sent.clear();
    assert!(world.machine.next_deadline_ms().is_some());
    world.is_slow = false;
    world.restart();
    assert_eq!(world.state(), State::CompleteAbort);
    assert_eq!(world.describe().unwrap().producer, Producer { id: 8, epoch: 0 });
}
