//! Partitions that come into a transaction, and what is only asked about them.

use super::*;

#[test]
fn adds_to_no_such_id_are_refused() {
    let mut world = World::new(2);
    assert_eq!(world.add(Producer { id: 1, epoch: 0 }, "x", 2), Err(InvalidProducerIdMapping));
    assert_eq!(world.verify(Producer { id: 1, epoch: 0 }, &["x"]), Err(InvalidProducerIdMapping));
}

#[test]
fn adds_of_another_producer_or_epoch_are_refused() {
    for state in [State::Empty, State::Ongoing, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.add(other(producer), "x", 2), Err(InvalidProducerIdMapping), "{state:?}");
        for wrong in [epoch(producer, -1), epoch(producer, 1)] {
            assert_eq!(world.add(wrong, "x", 2), Err(ProducerFenced), "{state:?}");
        }
    }
}

#[test]
fn adds_begin_a_transaction_or_go_on_with_it() {
    for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.advance(5);
        assert_eq!(world.add(producer, "x", 2), Ok(()), "{state:?}");
        let described = world.describe().unwrap();
        assert_eq!((described.state, described.start_ms), (State::Ongoing, world.now_ms));
        assert_eq!(described.partitions, [("x".to_owned(), 0)]);
        world.advance(5);
        assert_eq!(world.add(producer, "y", 2), Ok(()));
        assert_eq!(world.describe().unwrap().start_ms, world.now_ms - 5);
        // what is in already is not written again
        let records = world.log.len();
        assert_eq!(world.add(producer, "x", 2), Ok(()));
        assert_eq!(world.log.len(), records);
    }
}

#[test]
fn adds_are_held_until_the_end_before_them_is_over() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.ask_add(producer, "x", 2);
        assert_eq!(world.told.take(), []);
        assert!(!world.write(), "the record of the next transaction is not written before the markers are there");
        world.is_slow = false;
        assert_eq!(world.heard(), [Told::Producer(Ok(producer)), Told::Done(Ok(()))]);
        assert_eq!(world.state(), State::Ongoing);
    }
}

#[test]
fn adds_that_come_together_do_not_wait_for_each_other() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.is_slow = true;
    world.ask_add(producer, "x", 2);
    world.ask_add(producer, "y", 2);
    world.ask_add(producer, "x", 2);
    assert_eq!(world.told.take(), [], "nothing is told before it is durable");
    assert!(world.write());
    assert_eq!(world.heard(), [Told::Done(Ok(())), Told::Done(Ok(())), Told::Done(Ok(()))]);
}

#[test]
fn owners_are_told_of_partitions_that_were_added_by_version_0_once_that_is_durable() {
    let (mut world, producer) = World::in_state(0, State::Empty);
    world.is_slow = true;
    world.ask_add(producer, "x", 0);
    assert_eq!(world.admitted, []);
    world.write();
    world.settle();
    assert_eq!(world.admitted, [(vec![at("x", 0)], producer)]);
    world.admitted.clear();
    world.is_slow = false;
    world.restart();
    assert_eq!(world.admitted, [(vec![at("x", 0)], producer)]);
}

#[test]
fn verification_says_which_partitions_are_in() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    assert_eq!(world.verify(producer, &["elsewhere", "x"]), Ok(vec![true, false]));
    assert_eq!(world.verify(other(producer), &["elsewhere"]), Err(InvalidProducerIdMapping));
    assert_eq!(world.verify(epoch(producer, -1), &["elsewhere"]), Err(ProducerFenced));
    for state in [State::Empty, State::CompleteCommit, State::CompleteAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.verify(producer, &["elsewhere"]), Ok(vec![false]), "{state:?}");
    }
}

#[test]
fn verification_while_an_end_is_under_way_is_to_be_tried_again() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        assert_eq!(world.verify(producer, &["elsewhere"]), Err(ConcurrentTransactions), "{state:?}");
    }
}

/// The partitions of one request came as so many records.
#[test]
fn partitions_that_come_before_the_record_is_written_share_it() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.is_slow = true;
    ["one", "two", "three"].iter().for_each(|topic| world.ask_add(producer, topic, 2));
    let records = world.log.len();
    world.write();
    assert_eq!(world.log.len(), records + 1);
    assert_eq!(world.heard().len(), 3);
    assert_eq!(world.describe().unwrap().partitions.len(), 3);
    // what is being written is not touched any more
    world.ask_add(producer, "four", 2);
    let taken = world.machine.take_writes();
    world.ask_add(producer, "five", 2);
    assert_eq!((taken.len(), world.machine.take_writes().len()), (1, 1));
}

/// A batch was appended beside the record that its coordinator was thought to write, and the coordinator had refused it.
#[test]
fn what_is_refused_has_not_begun_even_if_that_is_told_later() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.is_slow = true;
    world.ask_add(producer, "one", 2);
    let mut progress = |producer| {
        let ticket = world.told.ticket(|answer| Some(Told::Done(answer.and_then(|answer| answer))));
        let add = AddPartitions { producer, partitions: [(Rc::from("two"), 0)].into(), client_version: 2 };
        world.machine.handle_add_partitions(world.now_ms, ID, add, ticket)
    };
    assert_eq!(progress(epoch(producer, -1)), Progress::Waits);
    assert_eq!(progress(producer), Progress::Begun);
    assert_eq!(world.told.take(), [], "not before the record is there that says so");
}
