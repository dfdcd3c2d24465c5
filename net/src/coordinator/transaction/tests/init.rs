//! InitProducerId, in every state.

use super::*;

#[test]
fn init_of_no_such_id_creates_it_at_epoch_0() {
    let mut world = World::new(2);
    assert_eq!(world.init(None), Ok(Producer { id: 101, epoch: 0 }));
    assert_eq!(world.state(), State::Empty);
    let mut world = World::new(2);
    assert_eq!(world.init(Some(Producer { id: 5, epoch: 7 })), Ok(Producer { id: 101, epoch: 0 }));
}

#[test]
fn init_bumps_the_epoch_of_an_id_that_is_at_rest() {
    for version in [0, 2] {
        for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
            let (mut world, producer) = World::in_state(version, state);
            assert_eq!(world.init(None), Ok(epoch(producer, 1)), "{version} {state:?}");
            assert_eq!(world.state(), State::Empty);
        }
    }
}

/// Exactly one bump for the fence (KAFKA-19367), and one for the client.
#[test]
fn init_aborts_what_is_ongoing_and_is_held_until_that_is_over() {
    for version in [0, 2] {
        let (mut world, producer) = World::in_state(version, State::Ongoing);
        assert_eq!(world.init(None), Ok(epoch(producer, 2)), "{version}");
        let marker = world.marked.pop().unwrap();
        assert_eq!((marker.producer_epoch, marker.outcome), (producer.epoch + 1, Abort));
        assert_eq!(marker.transaction_version, version);
        assert_eq!(world.add(producer, "x", version), Err(ProducerFenced));
    }
}

#[test]
fn init_while_an_end_is_under_way_is_held() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.ask_init(None);
        assert_eq!(world.told.take(), []);
        world.is_slow = false;
        let heard = world.heard();
        assert_eq!(heard, [Told::Producer(Ok(producer)), Told::Producer(Ok(epoch(producer, 1)))]);
    }
}

#[test]
fn who_is_held_too_long_is_told_to_try_again() {
    let (mut world, producer) = World::in_state(2, State::PrepareCommit);
    world.ask_init(None);
    world.ask_add(producer, "x", 2);
    world.advance(HOLD_MAX_MS - 1);
    assert_eq!(world.told.take(), []);
    world.advance(1);
    let late = [
        Told::Producer(Err(ConcurrentTransactions)),
        Told::Done(Err(ConcurrentTransactions)),
        Told::Producer(Err(ConcurrentTransactions)),
    ];
    assert_eq!(world.told.take(), late);
    // the end itself goes on, and its repetition is answered
    world.is_slow = false;
    world.settle();
    assert_eq!(world.end(epoch(producer, -1), Commit, 2), Ok(producer));
}

#[test]
fn timeouts_beyond_the_limit_are_refused() {
    let mut world = World::new(2);
    for timeout_ms in [0, -1, 900_001] {
        let ticket = world.told.ticket(|answer| Some(Told::Producer(answer.and_then(|answer| answer))));
        let init = InitProducerId { timeout_ms, expected: None };
        world.machine.handle_init_producer_id(world.now_ms, ID, init, ticket);
        assert_eq!(world.only(), Told::Producer(Err(ResponseError::InvalidTransactionTimeout)));
    }
}

#[test]
fn init_of_another_producer_is_fenced() {
    for state in [State::Empty, State::Ongoing, State::CompleteCommit] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.init(Some(other(producer))), Err(ProducerFenced), "{state:?}");
    }
}

#[test]
fn init_of_the_current_producer_bumps_and_its_repetition_does_not() {
    let (mut world, producer) = World::in_state(2, State::CompleteAbort);
    assert_eq!(world.init(Some(producer)), Ok(epoch(producer, 1)));
    assert_eq!(world.init(Some(producer)), Ok(epoch(producer, 1)));
    world.restart();
    // KAFKA-20357: Kafka has forgotten that after a restart
    assert_eq!(world.init(Some(producer)), Ok(epoch(producer, 1)));
    assert_eq!(world.init(Some(epoch(producer, -1))), Err(ProducerFenced));
    assert_eq!(world.init(Some(epoch(producer, 2))), Err(ProducerFenced));
}

/// Kafka aborts the transaction of the successor before it fences the zombie.
#[test]
fn init_of_a_zombie_leaves_the_ongoing_transaction_alone() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    assert_eq!(world.init(Some(epoch(producer, 5))), Err(ProducerFenced));
    assert_eq!(world.state(), State::Ongoing);
}

#[test]
fn an_exhausted_epoch_goes_on_with_another_producer_id() {
    for expects in [false, true] {
        let mut world = World::new(2);
        world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
        let current = Producer { id: 7, epoch: LAST_EPOCH };
        let expected = expects.then_some(current);
        assert_eq!(world.init(expected), Ok(Producer { id: 101, epoch: 0 }));
        // who has not got the answer gets it again, also after a restart
        world.restart();
        let again = world.init(Some(current));
        assert_eq!(again, if expects { Ok(Producer { id: 101, epoch: 0 }) } else { Err(ProducerFenced) });
    }
}

#[test]
fn an_exhausted_epoch_and_another_expected_one_is_fenced() {
    let mut world = World::new(2);
    world.set(Metadata { epoch: LAST_EPOCH, ..Metadata::new(7, TIMEOUT_MS, 0) });
    assert_eq!(world.init(Some(Producer { id: 7, epoch: 3 })), Err(ProducerFenced));
}
