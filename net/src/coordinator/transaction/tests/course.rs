//! What becomes of a transaction when its end is decided, when its time is up, and when a write fails; what is told of it.

use super::*;

#[test]
fn where_all_partitions_are_here_the_end_is_one_write() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.add(producer, "here", 2).unwrap();
    world.add(producer, "here too", 2).unwrap();
    let records = world.log.len();
    assert_eq!(world.end(producer, Commit, 2), Ok(epoch(producer, 1)));
    assert_eq!(world.log.len(), records + 1);
    assert_eq!(world.marked.len(), 2);
    let mut restarted = world;
    restarted.restart();
    assert_eq!(restarted.state(), State::CompleteCommit);
    assert_eq!(restarted.sent, []);
}

#[test]
fn the_end_is_answered_when_all_markers_are_there() {
    let (mut world, producer) = World::in_state(2, State::Empty);
    for topic in ["here", "one", "two"] {
        world.add(producer, topic, 2).unwrap();
    }
    world.is_slow = true;
    world.ask_end(producer, Commit, 2);
    assert_eq!(world.sent, [], "not before the decision is durable");
    world.write();
    world.settle();
    assert_eq!(world.marked.len(), 1, "that of this shard goes with the decision");
    assert_eq!(world.sent[0].markers.len(), 2);
    assert_eq!(world.describe().unwrap().partitions.len(), 2);
    world.mark(|(topic, _)| if &**topic == "one" { Ok(()) } else { Err(ResponseError::NotLeaderOrFollower) });
    assert_eq!(world.describe().unwrap().partitions, [("two".to_owned(), 0)]);
    assert_eq!(world.told.take(), []);
    world.advance(100);
    assert_eq!(world.sent[0].markers.len(), 1);
    world.mark(|_| Ok(()));
    assert_eq!(world.only(), Told::Producer(Ok(epoch(producer, 1))));
}

#[test]
fn where_partitions_can_be_asked_markers_do_not_wait_for_the_decision() {
    for decided_first in [false, true] {
        let (mut world, producer) = together(&["here", "one", "two"]);
        world.ask_end(producer, Commit, 2);
        world.settle();
        assert_eq!(world.sent[0].markers.len(), 2);
        for is_decision in [decided_first, !decided_first] {
            assert_eq!(world.told.take(), [], "not before all of it is on stable storage");
            assert!(if is_decision { world.write() } else { world.mark(|_| Ok(())) });
        }
        assert_eq!(world.only(), Told::Producer(Ok(epoch(producer, 1))));
        assert_eq!(world.marked.len(), 3);
    }
}

#[test]
fn what_a_marker_says_counts_when_the_decision_is_lost() {
    for (lost, state) in [(1, State::CompleteCommit), (2, State::Ongoing)] {
        let (mut world, producer) = together(&["one", "two"]);
        world.ask_end(producer, Commit, 2);
        world.settle();
        world.sent[0].markers.truncate(2 - lost);
        world.mark(|_| Ok(()));
        world.machine.take_writes();
        world.restart();
        world.told.take();
        world.ask_add(producer, "three", 2);
        assert_eq!(world.told.take(), [], "nobody takes part before that is known");
        world.is_slow = false;
        let expected = if state == State::Ongoing { Ok(()) } else { Err(ProducerFenced) };
        assert_eq!(world.only(), Told::Done(expected));
        assert_eq!(world.state(), state);
        assert!(world.marked.iter().all(|marker| marker.outcome == Commit));
        assert_eq!(world.marked.is_empty(), state == State::Ongoing);
    }
}

#[test]
fn markers_wait_for_the_decision_where_they_could_be_taken_for_another() {
    let is_sent_at_once = |change: fn(&mut World, Producer)| {
        let (mut world, producer) = together(&["one"]);
        change(&mut world, producer);
        !world.sent.is_empty()
    };
    assert!(is_sent_at_once(|world, producer| world.ask_end(producer, Commit, 2)));
    assert!(!is_sent_at_once(|world, producer| world.ask_end(producer, Abort, 2)));
    assert!(!is_sent_at_once(|world, producer| {
        world.around.answers.set(false);
        world.ask_end(producer, Commit, 2);
    }));
    // what the transaction includes may be lost with the decision
    assert!(!is_sent_at_once(|world, producer| {
        world.ask_add(producer, "two", 2);
        world.ask_end(producer, Commit, 2);
    }));
}

/// A transaction that includes partitions which can be asked for markers; nothing is written or answered by itself.
fn together(topics: &[&str]) -> (World, Producer) {
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.around.answers.set(true);
    topics.iter().for_each(|topic| world.add(producer, topic, 2).unwrap());
    world.is_slow = true;
    (world, producer)
}

#[test]
fn that_a_transaction_is_over_is_written_late_and_only_if_nothing_else_is() {
    for goes_on in [false, true] {
        let (mut world, producer) = World::in_state(2, State::PrepareCommit);
        let records = world.log.len();
        world.mark(|_| Ok(()));
        assert_eq!(world.only(), Told::Producer(Ok(producer)));
        if goes_on {
            world.is_slow = false;
            world.add(producer, "x", 2).unwrap();
        }
        world.is_slow = false;
        world.advance(99);
        assert_eq!(world.log.len(), records + usize::from(goes_on));
        world.advance(1);
        assert_eq!(world.log.len(), records + 1);
        let (_, value) = world.log.last().unwrap();
        let written = TransactionRecord::decode(&world.log.last().unwrap().0, value.as_deref()).unwrap();
        let state = if goes_on { State::Ongoing } else { State::CompleteCommit };
        assert_eq!(written.metadata.unwrap().state, state);
    }
}

#[test]
fn partitions_that_have_seen_a_newer_epoch_or_are_gone_need_no_marker() {
    for error in [ResponseError::InvalidProducerEpoch, ResponseError::TransactionCoordinatorFenced] {
        let (mut world, producer) = World::in_state(2, State::PrepareCommit);
        world.mark(|_| Err(error));
        assert_eq!(world.only(), Told::Producer(Ok(producer)));
    }
    let (mut world, producer) = World::in_state(2, State::PrepareCommit);
    world.mark(|_| Err(ResponseError::UnknownTopicOrPartition));
    assert_eq!(world.heard(), []);
    world.around.gone.borrow_mut().push("elsewhere".to_owned());
    world.advance(100);
    assert_eq!(world.only(), Told::Producer(Ok(producer)));
}

#[test]
fn what_was_decided_before_a_restart_is_completed_after_it_without_doubled_markers() {
    for state in [State::PrepareCommit, State::PrepareAbort] {
        let (mut world, producer) = World::in_state(2, state);
        world.sent.clear();
        world.restart();
        world.told.take();
        assert!(world.sent[0].only_where_open);
        assert_eq!(world.state(), state);
        // who had its answer before the restart begins the next one, and is held
        world.ask_add(producer, "x", 2);
        assert_eq!(world.told.take(), []);
        world.is_slow = false;
        assert_eq!(world.only(), Told::Done(Ok(())));
        assert_eq!(world.marked.len(), 1);
        assert_eq!(world.end(producer, Abort, 2), Ok(epoch(producer, 1)));
    }
}

#[test]
fn markers_of_another_transaction_change_nothing() {
    let (mut world, _) = World::in_state(2, State::PrepareCommit);
    let marking = world.sent[0].clone();
    let marked: Vec<_> = marking.markers.iter().map(|(name, _)| (name.clone(), Ok(()))).collect();
    let stale = Marking { start_ms: marking.start_ms - 1, ..marking };
    world.machine.handle_marked(world.now_ms, &stale, marked);
    assert_eq!(world.state(), State::PrepareCommit);
}

#[test]
fn a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced() {
    for version in [0, 2] {
        let (mut world, producer) = World::in_state(version, State::Ongoing);
        world.advance(i64::from(TIMEOUT_MS) - 1);
        assert_eq!(world.state(), State::Ongoing);
        world.advance(10_001);
        assert_eq!(world.state(), State::CompleteAbort);
        assert_eq!(world.marked[0].producer_epoch, producer.epoch + 1);
        assert_eq!(world.add(producer, "x", version), Err(ProducerFenced));
        if version == 0 {
            assert_eq!(world.end(producer, Commit, 0), Err(ProducerFenced));
        }
    }
}

#[test]
fn the_time_of_a_transaction_goes_on_over_a_restart() {
    let (mut world, _) = World::in_state(2, State::Ongoing);
    world.now_ms += i64::from(TIMEOUT_MS);
    world.restart();
    world.advance(10_000);
    assert_eq!(world.state(), State::CompleteAbort);
}

#[test]
fn ids_are_forgotten_when_nobody_used_them_for_long_unless_a_transaction_is_ongoing() {
    const WEEK_MS: i64 = 7 * 24 * 3_600_000;
    let (mut world, _) = World::in_state(2, State::CompleteCommit);
    world.advance(WEEK_MS - 1);
    assert_eq!(world.state(), State::CompleteCommit);
    world.advance(3_600_001);
    assert_eq!(world.describe(), Err(ResponseError::TransactionalIdNotFound));
    assert_eq!(world.budget.bytes(), 0);
    world.restart();
    assert_eq!(world.describe(), Err(ResponseError::TransactionalIdNotFound));

    let (mut world, _) = World::in_state(2, State::PrepareCommit);
    world.advance(2 * WEEK_MS);
    world.told.take();
    assert_eq!(world.state(), State::PrepareCommit);
}

#[test]
fn ids_beyond_the_budget_are_refused() {
    let mut world = World::new(2);
    let long = "x".repeat(crate::coordinator::transaction::budget::ID_BYTES_MAX);
    let ticket = world.told.ticket(|answer| Some(Told::Producer(answer.and_then(|answer| answer))));
    let init = InitProducerId { timeout_ms: 1, expected: None };
    world.machine.handle_init_producer_id(world.now_ms, &long, init, ticket);
    assert_eq!(world.only(), Told::Producer(Err(ResponseError::CoordinatorNotAvailable)));
}

#[test]
fn lists_are_filtered() {
    let (world, producer) = World::in_state(2, State::Ongoing);
    let listed = |filter: &Filter, later_ms| world.machine.list(filter, world.now_ms + later_ms).len();
    assert_eq!(listed(&Filter::default(), 0), 1);
    assert_eq!(listed(&Filter { states: [State::Empty].into(), ..Filter::default() }, 0), 0);
    assert_eq!(listed(&Filter { producer_ids: [producer.id].into(), ..Filter::default() }, 0), 1);
    assert_eq!(listed(&Filter { producer_ids: [OTHER].into(), ..Filter::default() }, 0), 0);
    let longer = Filter { longer_than_ms: Some(10), ..Filter::default() };
    assert_eq!([listed(&longer, 10), listed(&longer, 11)], [0, 1]);
    let named = |pattern| Filter { pattern: Some(regex::Regex::new(pattern).unwrap()), ..Filter::default() };
    assert_eq!([listed(&named("^id$"), 0), listed(&named("^x$"), 0)], [1, 0]);
}

#[test]
fn an_open_transaction_is_claimed_by_who_will_end_it() {
    let open = |producer: Producer, topic| OpenTransaction {
        partition: at(topic, 0),
        producer_id: producer.id,
        producer_epoch: producer.epoch,
        coordinator_epoch: -1,
        first_offset: 0,
        last_batch_at: 0,
        started_ms: 0,
        confirmed: true,
    };
    let (world, producer) = World::in_state(2, State::Ongoing);
    let asked = [
        open(producer, "x"),
        open(producer, "elsewhere"),
        open(other(producer), "elsewhere"),
        open(epoch(producer, -1), "elsewhere"),
    ];
    assert_eq!(world.machine.claimed(&asked), [1]);
    // one that is ending claimed all that its producer had open, in any partition and of any epoch before
    let (mut world, producer) = World::in_state(2, State::PrepareAbort);
    let began = epoch(producer, -1);
    let asked = [
        open(began, "elsewhere"),
        open(began, "x"),
        open(epoch(producer, -2), "elsewhere"),
        open(producer, "elsewhere"),
    ];
    assert_eq!(world.machine.claimed(&asked), [0]);
    world.is_slow = false;
    world.settle();
    assert_eq!(world.machine.claimed(&asked), [0; 0]);
    let (mut world, producer) = World::in_state(2, State::Empty);
    world.add(producer, "here", 2).unwrap();
    world.is_slow = true;
    world.ask_end(producer, Commit, 2);
    assert_eq!(world.machine.claimed(&[open(producer, "x"), open(producer, "here")]), [1], "until the write is done");
    world.write();
    assert_eq!(world.machine.claimed(&[open(producer, "here")]), [0; 0]);
    let (world, producer) = World::in_state(2, State::CompleteAbort);
    assert_eq!(world.machine.claimed(&[open(epoch(producer, -1), "elsewhere")]), [0; 0]);
}

#[test]
fn records_are_of_the_version_that_the_level_allows() {
    for (level, version) in [(0, 0), (1, 1), (2, 1)] {
        let (world, _) = World::in_state(level, State::Ongoing);
        let versions: Vec<_> = world.log.iter().map(|(_, value)| value.as_ref().unwrap()[1]).collect();
        assert!(versions.iter().all(|found| *found == version), "{level}: {versions:?}");
    }
}

#[test]
fn a_record_that_is_not_written_takes_the_machine_with_it_and_everybody_hears() {
    let (mut world, producer) = World::in_state(2, State::Ongoing);
    world.is_slow = true;
    world.ask_end(producer, Commit, 2);
    world.ask_init(None);
    let writes = world.machine.take_writes();
    let failed = world.machine.on_persisted(world.now_ms, writes[0].id, Err(ResponseError::CoordinatorNotAvailable));
    assert_eq!(failed, Verdict::Rebuild);
    world.machine.close(world.now_ms, ResponseError::NotCoordinator);
    assert_eq!(
        world.heard(),
        [Told::Producer(Err(ResponseError::NotCoordinator)), Told::Producer(Err(ResponseError::NotCoordinator))]
    );
    world.is_slow = false;
    world.restart();
    assert_eq!(world.state(), State::Ongoing);
    assert_eq!(world.end(producer, Commit, 2), Ok(epoch(producer, 1)));
}

#[test]
fn who_needs_a_producer_id_hears_when_there_is_none() {
    let mut world = World::new(2);
    world.is_slow = true;
    world.ask_init(None);
    world.machine.handle_producer_id(world.now_ms, Err(ResponseError::CoordinatorNotAvailable));
    assert_eq!(world.only(), Told::Producer(Err(ResponseError::CoordinatorNotAvailable)));
}
