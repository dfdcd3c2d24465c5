//! The idempotent producers of one partition: which batch is new, which is a repetition, which must not be taken.
//!
//! Pure; owned by the partition. Per producer the last five batches are remembered: a client has five requests in
//! flight at most, so an older one cannot come again (KIP-98, KIP-360). Rules are those of Kafka 4.3's
//! `ProducerAppendInfo` for producers without transactions; in particular a producer that nothing is known of, because
//! it was idle for too long or its records are gone, may go on with any sequence, so UNKNOWN_PRODUCER_ID is never the
//! answer.
//!
//! What always holds: a producer remembers one to five batches, all of its newest epoch, in the order of their offsets.

use std::collections::HashMap;

use crate::{
    api::{ActiveProducer, LogError},
    batch::{BatchInfo, increment_sequence},
    format::manifest::ProducerBatch,
};

/// Batches remembered per producer: `max.in.flight.requests.per.connection` may be that much for an idempotent one.
const BATCHES_MAX: usize = 5;

/// See the module. Without producers it has no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    by_id: HashMap<i64, Producer>,
}

/// What is known of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Number of `batches` in use.
    count: u8,
    /// Wall clock of its last append, as far as that is known.
    last_append_ms: i64,
    /// Oldest first.
    batches: [Remembered; BATCHES_MAX],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remembered {
    base_sequence: i32,
    last_offset_delta: i32,
    base_offset: i64,
    timestamp_ms: i64,
}

/// What a batch's sequence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequence {
    /// Append it.
    New,
    /// It is in the log already: answer as it was answered then.
    Duplicate {
        /// Its offset.
        base_offset: i64,
        /// Its largest timestamp; of a LogAppendTime topic, the time of the append.
        timestamp_ms: i64,
    },
}

impl Producers {
    /// Decides on a batch about to be appended. One without a producer id is always new.
    pub(crate) fn check(&self, info: &BatchInfo) -> Result<Sequence, LogError> {
        if !info.has_producer_id() {
            return Ok(Sequence::New);
        }
        let Some(known) = self.by_id.get(&info.producer_id) else {
            return Ok(Sequence::New);
        };
        if info.producer_epoch < known.epoch {
            return Err(LogError::InvalidProducerEpoch);
        }
        if info.producer_epoch > known.epoch {
            return match info.base_sequence {
                0 => Ok(Sequence::New),
                other => Err(LogError::OutOfOrderSequence(format!(
                    "producer {} begins epoch {} with sequence {other}, not 0 (its epoch was {})",
                    info.producer_id, info.producer_epoch, known.epoch
                ))),
            };
        }
        if let Some(same) = known.find(info) {
            let Remembered { base_offset, timestamp_ms, .. } = *same;
            return Ok(Sequence::Duplicate { base_offset, timestamp_ms });
        }
        let last_sequence = known.last().last_sequence();
        if info.base_sequence != increment_sequence(last_sequence, 1) {
            return Err(LogError::OutOfOrderSequence(format!(
                "producer {} sent sequence {} after {last_sequence}",
                info.producer_id, info.base_sequence
            )));
        }
        Ok(Sequence::New)
    }

    /// Takes note of a batch that is in the log, in the order of offsets. `append_ms` is the wall clock of its append,
    /// or where that is not known any more, its timestamp.
    pub(crate) fn note(&mut self, batch: ProducerBatch, append_ms: i64) {
        let epoch = batch.producer_epoch.get();
        let producer = self.by_id.entry(batch.producer_id.get()).or_insert(Producer {
            epoch,
            count: 0,
            last_append_ms: append_ms,
            batches: Default::default(),
        });
        if producer.epoch != epoch {
            *producer = Producer { epoch, count: 0, batches: Default::default(), ..*producer };
        }
        producer.last_append_ms = producer.last_append_ms.max(append_ms);
        producer.push(Remembered {
            base_sequence: batch.base_sequence.get(),
            last_offset_delta: batch.last_offset_delta.get(),
            base_offset: batch.base_offset.get(),
            timestamp_ms: batch.timestamp_ms.get(),
        });
    }

    /// Forgets producers that appended nothing since `older_than_ms`; returns how many.
    pub(crate) fn expire(&mut self, older_than_ms: i64) -> usize {
        let before = self.by_id.len();
        self.by_id.retain(|_, producer| producer.last_append_ms >= older_than_ms);
        let expired = before - self.by_id.len();
        if self.by_id.is_empty() {
            self.by_id = HashMap::new();
        } else if expired > self.by_id.len() {
            self.by_id.shrink_to_fit();
        }
        expired
    }

    /// All that is remembered, in the order of offsets: noting it again leads to the same state.
    pub(crate) fn batches(&self) -> Vec<ProducerBatch> {
        let of = |(&id, producer): (&i64, &'_ Producer)| {
            let epoch = producer.epoch;
            producer.remembered().iter().map(|batch| batch.to_stored(id, epoch)).collect::<Vec<_>>()
        };
        let mut batches: Vec<ProducerBatch> = self.by_id.iter().flat_map(of).collect();
        batches.sort_unstable_by_key(|batch| batch.base_offset.get());
        batches
    }

    /// Every producer, by id.
    pub(crate) fn active(&self) -> Vec<ActiveProducer> {
        let of = |(&producer_id, producer): (&i64, &Producer)| ActiveProducer {
            producer_id,
            producer_epoch: producer.epoch,
            last_sequence: producer.last().last_sequence(),
            last_timestamp_ms: producer.last().timestamp_ms,
        };
        let mut active: Vec<ActiveProducer> = self.by_id.iter().map(of).collect();
        active.sort_unstable_by_key(|producer| producer.producer_id);
        active
    }

    /// The last offset of every producer's last batch.
    pub(crate) fn last_offsets(&self) -> HashMap<i64, i64> {
        let of = |(&id, producer): (&i64, &Producer)| {
            let last = producer.last();
            (id, last.base_offset + i64::from(last.last_offset_delta))
        };
        self.by_id.iter().map(of).collect()
    }

    /// Whether no producer is known.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

impl Producer {
    fn remembered(&self) -> &[Remembered] {
        &self.batches[..usize::from(self.count)]
    }

    fn last(&self) -> &Remembered {
        self.remembered().last().expect("a producer is known by a batch of it")
    }

    fn find(&self, info: &BatchInfo) -> Option<&Remembered> {
        let same = |batch: &&Remembered| {
            batch.base_sequence == info.base_sequence && batch.last_offset_delta == info.last_offset_delta
        };
        self.remembered().iter().find(same)
    }

    fn push(&mut self, batch: Remembered) {
        if usize::from(self.count) == BATCHES_MAX {
            self.batches.rotate_left(1);
            self.count -= 1;
        }
        self.batches[usize::from(self.count)] = batch;
        self.count += 1;
    }
}

impl Remembered {
    fn last_sequence(&self) -> i32 {
        increment_sequence(self.base_sequence, self.last_offset_delta)
    }

    fn to_stored(self, producer_id: i64, producer_epoch: i16) -> ProducerBatch {
        ProducerBatch {
            producer_id: producer_id.into(),
            producer_epoch: producer_epoch.into(),
            flags: 0.into(),
            base_sequence: self.base_sequence.into(),
            last_offset_delta: self.last_offset_delta.into(),
            coordinator_epoch: 0.into(),
            base_offset: self.base_offset.into(),
            timestamp_ms: self.timestamp_ms.into(),
        }
    }
}

#[cfg(test)]
mod tests {
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
            let answer = self.producers.check(&info)?;
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
        assert_eq!(log.producers.check(&batch(-1, -1, -1, 3, 0)), Ok(Sequence::New));
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
        };
        assert_eq!(log.producers.active(), [of(4, 0, 5, 1_003), of(9, 1, 4, 1_004)]);
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
            stored.iter().for_each(|batch| rebuilt.note(*batch, 50));
            prop_assert_eq!(rebuilt, log.producers);
        }
    }
}
