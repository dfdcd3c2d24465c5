//! Producers against what must hold of them, and against a look at all that they sent.

use proptest::prelude::*;

use super::*;
use crate::batch::BATCH_HEADER_BYTES;

fn batch(producer_id: i64, producer_epoch: i16, base_sequence: i32, count: i32, base_offset: i64) -> BatchInfo {
    BatchInfo {
        base_offset,
        size: BATCH_HEADER_BYTES,
        leader_epoch: 0,
        attributes: 0,
        last_offset_delta: count - 1,
        base_timestamp: 0,
        max_timestamp: base_offset + 1_000,
        producer_id,
        producer_epoch,
        base_sequence,
        record_count: count,
    }
}

fn stored(info: &BatchInfo) -> ProducerBatch {
    let batch = Remembered {
        base_sequence: info.base_sequence,
        last_offset_delta: info.last_offset_delta,
        base_offset: info.base_offset,
        timestamp_ms: info.max_timestamp,
        is_transactional: info.is_transactional(),
    };
    batch.to_stored(info.producer_id, info.producer_epoch)
}

/// A log of one partition: appends what is new at its end.
#[derive(Default)]
struct Log {
    producers: Producers,
    end: i64,
}

impl Log {
    fn send(&mut self, id: i64, epoch: i16, sequence: i32, count: i32) -> Result<Sequence, LogError> {
        let info = batch(id, epoch, sequence, count, self.end);
        let answer = self.producers.check(&info, Membership::Fits, Begins::Anywhere)?;
        if answer == Sequence::New {
            self.producers.note(stored(&info), 50);
            self.end += i64::from(count);
        }
        Ok(answer)
    }
}

fn duplicate(base_offset: i64) -> Result<Sequence, LogError> {
    Ok(Sequence::Duplicate { base_offset, timestamp_ms: base_offset + 1_000 })
}

fn is_gap(answer: Result<Sequence, LogError>) -> bool {
    matches!(answer, Err(LogError::OutOfOrderSequence(_)))
}

#[test]
fn the_last_five_batches_are_recognised_and_older_ones_are_a_gap() {
    let mut log = Log::default();
    for n in 0..7 {
        assert_eq!(log.send(1, 0, n * 2, 2), Ok(Sequence::New));
    }
    for n in 2..7 {
        assert_eq!(log.send(1, 0, n * 2, 2), duplicate(i64::from(n) * 2));
    }
    assert!(is_gap(log.send(1, 0, 2, 2)));
    assert_eq!(log.send(1, 0, 14, 1), Ok(Sequence::New), "refusals change nothing");
}

#[test]
fn a_batch_that_overlaps_without_being_the_same_is_a_gap() {
    let mut log = Log::default();
    log.send(1, 0, 0, 4).unwrap();
    assert!(is_gap(log.send(1, 0, 0, 3)));
    assert!(is_gap(log.send(1, 0, 2, 2)));
    assert!(is_gap(log.send(1, 0, 5, 1)));
}

#[test]
fn sequences_wrap() {
    let mut log = Log::default();
    log.send(1, 0, i32::MAX - 3, 2).unwrap();
    assert_eq!(log.send(1, 0, i32::MAX - 1, 4), Ok(Sequence::New), "ends at sequence 1");
    assert!(is_gap(log.send(1, 0, 0, 1)));
    assert_eq!(log.send(1, 0, 2, 1), Ok(Sequence::New));
    assert_eq!(log.send(1, 0, i32::MAX - 1, 4), duplicate(2));
    let mut log = Log::default();
    log.send(1, 0, i32::MAX, 1).unwrap();
    assert_eq!(log.send(1, 0, 0, 1), Ok(Sequence::New));
}

#[test]
fn a_new_epoch_begins_at_zero_and_fences_the_old_one() {
    let mut log = Log::default();
    log.send(1, 4, 0, 2).unwrap();
    assert_eq!(log.send(1, 3, 0, 2), Err(LogError::InvalidProducerEpoch), "even the same sequences");
    assert_eq!(log.send(1, 3, 2, 1), Err(LogError::InvalidProducerEpoch));
    assert!(is_gap(log.send(1, 5, 2, 1)));
    assert_eq!(log.send(1, 5, 0, 2), Ok(Sequence::New), "not a duplicate of the old epoch's");
    assert_eq!(log.send(1, 4, 2, 1), Err(LogError::InvalidProducerEpoch));
    assert_eq!(log.producers.batches().len(), 1);
}

#[test]
fn unknown_producers_may_begin_anywhere() {
    let mut log = Log::default();
    assert_eq!(log.send(1, 7, 900, 2), Ok(Sequence::New));
    assert_eq!(log.send(1, 7, 902, 1), Ok(Sequence::New));
    assert_eq!(log.send(2, 0, 0, 1), Ok(Sequence::New), "producers do not meet");
}

#[test]
fn batches_without_a_producer_are_new() {
    let mut log = Log::default();
    log.send(1, 0, 0, 1).unwrap();
    assert_eq!(log.producers.check(&batch(-1, -1, -1, 3, 0), Membership::Fits, Begins::AtZero), Ok(Sequence::New));
}

#[test]
fn idle_producers_are_forgotten_by_the_time_of_their_last_append() {
    let mut producers = Producers::default();
    producers.note(stored(&batch(1, 0, 0, 1, 0)), 5_000);
    producers.note(stored(&batch(2, 0, 0, 1, 1)), 6_000);
    producers.note(stored(&batch(3, 0, 0, 1, 2)), 1_002);
    assert_eq!(producers.expire(1_002), 0);
    assert_eq!(producers.expire(1_003), 1);
    producers.note(stored(&batch(2, 0, 1, 1, 3)), 1_003);
    assert_eq!(producers.expire(5_001), 1);
    assert_eq!(producers.active().iter().map(|p| p.producer_id).collect::<Vec<_>>(), [2]);
    assert_eq!(producers.expire(i64::MAX), 1);
    assert!(producers.is_empty());
    assert_eq!(producers.by_id.capacity(), 0, "no memory is kept");
}

#[test]
fn active_producers_tell_their_last_batch() {
    let mut log = Log::default();
    log.send(9, 1, 0, 3).unwrap();
    log.send(4, 0, 5, 1).unwrap();
    log.send(9, 1, 3, 2).unwrap();
    let of = |producer_id, producer_epoch, last_sequence, last_timestamp_ms| ActiveProducer {
        producer_id,
        producer_epoch,
        last_sequence,
        last_timestamp_ms,
        coordinator_epoch: -1,
        current_transaction_first_offset: -1,
    };
    assert_eq!(log.producers.active(), [of(4, 0, 5, 1_003), of(9, 1, 4, 1_004)]);
}

/// A batch was written beside the record that let its partition in, and that record was lost with a full disk: no coordinator
/// knew of the transaction here, so that no marker came, and the commit of the producer's next one committed the batch too.
#[test]
fn the_end_of_the_next_transaction_is_not_taken_for_that_of_one_that_nobody_knows() {
    let mut producers = Producers::default();
    let of_epoch = |producers: &mut Producers, epoch, offset| {
        let mut info = batch(1, epoch, 0, 1, offset);
        info.attributes = 0x10;
        let taken = producers.check(&info, Membership::Fits, Begins::AtZero);
        if taken.is_ok() {
            producers.note(stored(&info), 50);
        }
        taken
    };
    assert_eq!(of_epoch(&mut producers, 0, 0), Ok(Sequence::New));
    assert!(matches!(of_epoch(&mut producers, 1, 1), Err(LogError::ConcurrentTransactions(_))));
    producers.note(stored_marker(&marker(1, 0, 0, Outcome::Abort, 1), 1), 50);
    assert_eq!(of_epoch(&mut producers, 1, 2), Ok(Sequence::New), "it is aborted by now");
}

/// The same, where the next transaction includes the partition and has no batch there yet: its commit made the lost one count.
#[test]
fn a_commit_ends_no_transaction_before_its_own() {
    for version in [0, 2] {
        let mut producers = Producers::default();
        let mut info = batch(1, 3, 0, 1, 0);
        info.attributes = 0x10;
        producers.note(stored(&info), 50);
        let end = |producers: &Producers, epoch, outcome| {
            producers.check_marker(&marker(1, epoch, 0, outcome, version)).map_err(|error| error.to_string())
        };
        let own = if version < 2 { 3 } else { 4 };
        assert_eq!(end(&producers, own, Outcome::Commit), Ok(()));
        let refused = end(&producers, 5, Outcome::Commit).unwrap_err();
        assert!(refused.contains(UNKNOWN_BEFORE), "{refused}");
        assert_eq!(end(&producers, 5, Outcome::Abort), Ok(()), "which ends both");
        producers.note(stored_marker(&marker(1, 3, 0, Outcome::Abort, 0), 1), 50);
        assert_eq!(end(&producers, 5, Outcome::Commit), Ok(()), "it is aborted by now");
    }
}

/// A batch was written beside the record that lets its partition in, and that record was lost with the process. The start
/// aborted what was nobody's, in its epoch, and the producer's next attempt heard that the batch was there: it committed without.
#[test]
fn a_batch_that_was_aborted_as_nobodys_is_new_when_it_is_sent_again() {
    let mut producers = Producers::default();
    let send = |producers: &mut Producers, sequence, offset| {
        let mut info = batch(1, 4, sequence, 2, offset);
        info.attributes = 0x10;
        let taken = producers.check(&info, Membership::Fits, Begins::AtZero);
        if taken == Ok(Sequence::New) {
            producers.note(stored(&info), 50);
        }
        taken
    };
    assert_eq!(send(&mut producers, 0, 10), Ok(Sequence::New));
    assert_eq!(send(&mut producers, 2, 12), Ok(Sequence::New));
    assert_eq!(send(&mut producers, 0, 14), duplicate(10));
    producers.note(stored_marker(&marker(1, 4, 0, Outcome::Abort, 0), 14), 50);
    assert!(is_gap(send(&mut producers, 2, 15)), "the first one comes first");
    let goes_on = producers.check(&batch(1, 4, 4, 1, 15), Membership::Fits, Begins::AtZero);
    assert_eq!(goes_on, Ok(Sequence::New), "as a producer does whose transactions shared an epoch until now");
    assert_eq!(send(&mut producers, 0, 15), Ok(Sequence::New));
    assert_eq!(send(&mut producers, 2, 17), Ok(Sequence::New));
    assert_eq!((send(&mut producers, 0, 19), send(&mut producers, 2, 19)), (duplicate(15), duplicate(17)));
    producers.note(stored_marker(&marker(1, 4, 0, Outcome::Commit, 0), 19), 50);
    assert_eq!(send(&mut producers, 2, 20), duplicate(17), "what was committed stays so");
}

/// Of a client whose transactions share an epoch, sequences go on behind one that it aborted.
#[test]
fn sequences_go_on_behind_an_abort_where_transactions_share_an_epoch() {
    let mut log = Log::default();
    assert_eq!(log.send(1, 0, 0, 2), Ok(Sequence::New));
    log.producers.note(stored_marker(&marker(1, 0, 0, Outcome::Abort, 1), 2), 50);
    log.end = 3;
    assert_eq!(log.send(1, 0, 2, 1), Ok(Sequence::New));
    assert_eq!(log.send(1, 0, 0, 2), duplicate(0));
}

proptest! {
    /// Whatever is sent, a log with all its batches remembered for ever agrees wherever five are enough, and what
    /// is stored rebuilds the same state.
    #[test]
    fn state_is_rebuilt_from_what_is_stored(
        sends in proptest::collection::vec((0..3i64, 0..3i16, 0..6i32, 1..3i32), 0..60),
    ) {
        let mut log = Log::default();
        for (id, epoch, sequence, count) in sends {
            let end = log.end;
            match log.send(id, epoch, sequence, count) {
                Ok(Sequence::New) => prop_assert_eq!(log.send(id, epoch, sequence, count), duplicate(end)),
                Ok(Sequence::Duplicate { base_offset, .. }) => prop_assert!(base_offset < end),
                Err(_) => prop_assert_eq!(log.end, end),
            }
        }
        let stored = log.producers.batches();
        prop_assert!(stored.is_sorted_by_key(|batch| batch.base_offset.get()));
        let mut rebuilt = Producers::default();
        for batch in &stored {
            rebuilt.note(*batch, 50);
        }
        prop_assert_eq!(rebuilt, log.producers);
    }

    /// Transactions and markers against a look at all that was appended: what is open, who is fenced, which markers
    /// are taken. What is stored, and what was noted in two parts, say the same.
    #[test]
    fn transactions_are_what_the_log_says(
        steps in proptest::collection::vec((0..3i64, 0..4i16, 0..4u8, 0..2i32, 0..3i16), 0..60),
        split in 0..60usize,
    ) {
        let mut model = Model::default();
        let (mut producers, mut first, mut second) =
            (Producers::default(), Producers::default(), Producers::default());
        for (at, (id, epoch, kind, coordinator_epoch, transaction_version)) in steps.into_iter().enumerate() {
            let offset = at as i64;
            let appended = match kind {
                0 | 1 => {
                    let outcome = if kind == 0 { Outcome::Commit } else { Outcome::Abort };
                    let marker = marker(id, epoch, coordinator_epoch, outcome, transaction_version);
                    let taken = producers.check_marker(&marker);
                    prop_assert_eq!(taken.is_ok(), model.takes_marker(&marker), "{:?}: {:?}", marker, taken);
                    taken.is_ok().then(|| stored_marker(&marker, offset))
                }
                _ => {
                    let next = model.next_sequence(id, epoch);
                    let mut info = batch(id, epoch, next, 1, offset);
                    info.attributes = if kind == 2 { 0x10 } else { 0 };
                    let taken = producers.check(&info, Membership::Fits, Begins::Anywhere);
                    prop_assert_eq!(taken.is_ok(), model.takes_batch(&info), "{:?}: {:?}", info, taken);
                    taken.is_ok().then(|| stored(&info))
                }
            };
            let Some(appended) = appended else { continue };
            let ended = producers.note(appended, 50);
            prop_assert_eq!(ended.map(|ended| ended.first_offset), model.append(appended));
            let half = if at < split { &mut first } else { &mut second };
            half.note(appended, 50);
        }
        let open: Vec<_> = producers.open().iter().map(|(offset, open)| (open.producer_id, offset)).collect();
        prop_assert_eq!(open, model.open());
        let restored = Producers::restore(&producers.batches(), &producers.open_entries());
        prop_assert_eq!(restored.active(), producers.active());
        prop_assert_eq!(restored.open_entries(), producers.open_entries());
        first.absorb(&second);
        prop_assert_eq!(first.active(), producers.active());
        prop_assert_eq!(first.batches(), producers.batches());
        prop_assert_eq!(first.open_entries(), producers.open_entries());
    }
}

fn marker(id: i64, epoch: i16, coordinator_epoch: i32, outcome: Outcome, transaction_version: i16) -> Marker {
    let partition = crate::api::TopicPartition { topic: uuid::Uuid::nil(), partition: 0 };
    let decided = crate::transactions::Decided::ByCoordinator;
    Marker {
        partition,
        producer_id: id,
        producer_epoch: epoch,
        coordinator_epoch,
        outcome,
        transaction_version,
        decided,
    }
}

fn stored_marker(marker: &Marker, offset: i64) -> ProducerBatch {
    let commits = if marker.outcome == Outcome::Commit { COMMITS } else { 0 };
    ProducerBatch {
        flags: (TRANSACTIONAL | MARKER | commits).into(),
        coordinator_epoch: marker.coordinator_epoch.into(),
        ..stored(&batch(marker.producer_id, marker.producer_epoch, -1, 1, offset))
    }
}

/// All that was appended, in order.
#[derive(Default)]
struct Model(Vec<ProducerBatch>);

impl Model {
    fn of(&self, id: i64) -> impl DoubleEndedIterator<Item = &ProducerBatch> {
        self.0.iter().filter(move |batch| batch.producer_id.get() == id)
    }

    fn epoch(&self, id: i64) -> Option<i16> {
        self.of(id).map(|batch| batch.producer_epoch.get()).max()
    }

    /// Where the producer's transaction began, if one is open.
    fn open_of(&self, id: i64) -> Option<i64> {
        let behind = self.of(id).rev().take_while(|batch| batch.flags.get() & MARKER == 0);
        behind.filter(|batch| batch.flags.get() & TRANSACTIONAL != 0).last().map(|batch| batch.base_offset.get())
    }

    fn open(&self) -> Vec<(i64, i64)> {
        let mut open: Vec<_> = (0..3).filter_map(|id| Some((id, self.open_of(id)?))).collect();
        open.sort_unstable_by_key(|(_, offset)| *offset);
        open
    }

    fn next_sequence(&self, id: i64, epoch: i16) -> i32 {
        let own = |batch: &&ProducerBatch| batch.producer_epoch.get() == epoch && batch.flags.get() & MARKER == 0;
        i32::try_from(self.of(id).filter(own).count()).unwrap()
    }

    fn takes_batch(&self, info: &BatchInfo) -> bool {
        let (is_open, epoch) = (self.open_of(info.producer_id).is_some(), self.epoch(info.producer_id));
        let is_of_next = epoch.is_some_and(|epoch| info.producer_epoch > epoch);
        let fits = if info.is_transactional() { !is_of_next } else { false };
        epoch.is_none_or(|epoch| info.producer_epoch >= epoch) && (!is_open || fits)
    }

    fn takes_marker(&self, marker: &Marker) -> bool {
        let Some(epoch) = self.epoch(marker.producer_id) else { return true };
        let mut of_coordinators = self.of(marker.producer_id).filter(|batch| batch.flags.get() & MARKER != 0);
        let coordinator = of_coordinators.next_back().map_or(-1, |last| last.coordinator_epoch.get());
        let is_same = marker.producer_epoch == epoch;
        let may_repeat = marker.transaction_version < 2 || self.open_of(marker.producer_id).is_none();
        let is_of_before = marker.producer_epoch > epoch + 1 || is_same && marker.transaction_version >= 2;
        let commits_another =
            marker.outcome == Outcome::Commit && is_of_before && self.open_of(marker.producer_id).is_some();
        (marker.producer_epoch > epoch || is_same && may_repeat)
            && marker.coordinator_epoch >= coordinator
            && !commits_another
    }

    /// Answers where the transaction began that this ends.
    fn append(&mut self, batch: ProducerBatch) -> Option<i64> {
        let is_marker = batch.flags.get() & MARKER != 0;
        let ended = is_marker.then(|| self.open_of(batch.producer_id.get())).flatten();
        self.0.push(batch);
        ended
    }
}
