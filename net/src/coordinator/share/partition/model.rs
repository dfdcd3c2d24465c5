//! Random lives of a share partition against a toy model that knows each record by itself.
//!
//! No record that was acknowledged and made durable is delivered again, none is with two members, none is delivered too
//! often; in the end, when everybody accepts, every record was accepted, rejected, or delivered as often as may be. A
//! crash in between loses nothing.

use std::{collections::BTreeMap, rc::Rc};

use proptest::prelude::*;

use super::*;
use crate::coordinator::share::state::merge;

const LIMITS: Limits = Limits { in_flight_max: 24, delivery_count_max: 4, lock_ms: 50, allows_renew: true };
/// Batches that begin so, modulo five, are of aborted transactions.
const HIDDEN: i64 = 3;
const MEMBERS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    Produce(i64),
    Acquire { member: usize, records_max: i64, batch_size: i64, is_strict: bool },
    Acknowledge { member: usize, at: usize, len: usize, kinds: Vec<AcknowledgeType> },
    Persist { newest: bool, is_durable: bool },
    Release(usize),
    Advance(i64),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(AcknowledgeType::Accept),
        3 => Just(AcknowledgeType::Release),
        1 => Just(AcknowledgeType::Reject),
        1 => Just(AcknowledgeType::Gap),
        1 => Just(AcknowledgeType::Renew),
    ];
    prop_oneof![
        3 => (1_i64..9).prop_map(Step::Produce),
        6 => (0_usize..3, 1_i64..20, 1_i64..8, any::<bool>()).prop_map(
            |(member, records_max, batch_size, is_strict)| Step::Acquire { member, records_max, batch_size, is_strict }
        ),
        6 => (0_usize..3, 0_usize..20, 1_usize..8, proptest::collection::vec(kind, 1..8))
            .prop_map(|(member, at, len, kinds)| Step::Acknowledge { member, at, len, kinds }),
        6 => (any::<bool>(), proptest::bool::weighted(0.8))
            .prop_map(|(newest, is_durable)| Step::Persist { newest, is_durable }),
        1 => (0_usize..3).prop_map(Step::Release),
        2 => (1_i64..40).prop_map(Step::Advance),
        1 => Just(Step::Crash),
    ]
}

/// What is known of a record.
#[derive(Debug, Default)]
struct Known {
    owner: Option<usize>,
    deliveries: i16,
    is_done: bool,
    /// It was delivered as often as may be, and nothing could be kept of that.
    is_given_up: bool,
}

struct World {
    partition: SharePartition,
    log: Vec<(i64, i64)>,
    end: i64,
    now_ms: i64,
    records: BTreeMap<i64, Known>,
    /// Durable state: the start and the batches from there on.
    start: i64,
    kept: Vec<StateBatch>,
    /// Writes under way, oldest first.
    under_way: Vec<Write>,
}

impl World {
    fn new() -> World {
        World {
            partition: SharePartition::restore(0, &[]).unwrap(),
            log: Vec::new(),
            end: 0,
            now_ms: 0,
            records: BTreeMap::new(),
            start: 0,
            kept: Vec::new(),
            under_way: Vec::new(),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Produce(count) => {
                self.log.push((self.end, self.end + count - 1));
                self.end += count;
            }
            Step::Acquire { member, records_max, batch_size, is_strict } => {
                self.acquire(*member, *records_max, *batch_size, *is_strict);
            }
            Step::Acknowledge { member, at, len, kinds } => self.acknowledge(*member, *at, *len, kinds),
            Step::Persist { newest, is_durable } => self.persist(*newest, *is_durable),
            Step::Release(member) => {
                let write = self.partition.release(MEMBERS[*member], &LIMITS);
                self.under_way.extend(write);
            }
            Step::Advance(ms) => {
                self.now_ms += ms;
                if let Some(write) = self.partition.handle_timeouts(self.now_ms, &LIMITS) {
                    self.freed(&write);
                    self.keep(&write);
                }
            }
            Step::Crash => self.crash(),
        }
        self.check();
    }

    fn acquire(&mut self, member: usize, records_max: i64, batch_size: i64, is_strict: bool) -> i64 {
        if !self.partition.can_acquire(&LIMITS) {
            return 0;
        }
        let from = self.partition.next_fetch_offset();
        let found: Vec<_> = self.log.iter().filter(|(_, last)| *last >= from).collect();
        let found: Vec<_> =
            found.iter().map(|(first, last)| LogBatch { first_offset: *first, last_offset: *last }).collect();
        let request = Acquire { member: Rc::from(MEMBERS[member]), records_max, batch_size, is_strict };
        let acquired = self.partition.acquire(self.now_ms, &request, &LIMITS, from, &found);
        let is_hidden = |batch: &&LogBatch| batch.first_offset % 5 == HIDDEN;
        let hidden: Vec<_> = found.iter().filter(is_hidden).copied().collect();
        let (acquired, write) = self.partition.archive(acquired, &hidden);
        let mut count = 0;
        for batch in write.iter().flat_map(|write| &write.batches) {
            count += batch.last_offset - batch.first_offset + 1;
            (batch.first_offset..=batch.last_offset)
                .for_each(|offset| self.records.entry(offset).or_default().is_done = true);
        }
        write.iter().for_each(|write| self.keep(write));
        for acquired in acquired {
            assert!(acquired.last_offset < self.end);
            for offset in acquired.first_offset..=acquired.last_offset {
                let known = self.records.entry(offset).or_default();
                assert!(!known.is_done, "{offset} was acknowledged and is delivered again");
                assert_eq!(known.owner, None, "{offset} is with two members");
                known.owner = Some(member);
                known.deliveries += 1;
                assert!(known.deliveries <= LIMITS.delivery_count_max, "{offset} is delivered too often");
                assert!(acquired.delivery_count <= LIMITS.delivery_count_max);
                assert!(
                    !found
                        .iter()
                        .filter(is_hidden)
                        .any(|batch| (batch.first_offset..=batch.last_offset).contains(&offset))
                );
                count += 1;
            }
        }
        assert!(!is_strict || count <= records_max);
        count
    }

    fn acknowledge(&mut self, member: usize, at: usize, len: usize, kinds: &[AcknowledgeType]) {
        let owned: Vec<i64> =
            self.records.iter().filter(|(_, known)| known.owner == Some(member)).map(|(offset, _)| *offset).collect();
        let Some(first) = owned.get(at % owned.len().max(1)).copied() else { return };
        let last = owned.iter().copied().filter(|offset| *offset >= first).take(len).enumerate();
        let last = last.take_while(|(at, offset)| *offset == first + *at as i64).last().map_or(first, |(_, last)| last);
        let count = usize::try_from(last - first + 1).unwrap();
        let types = if kinds.len() == 1 { kinds.to_vec() } else { kinds.iter().copied().cycle().take(count).collect() };
        let batch = Acknowledgement { first_offset: first, last_offset: last, types };
        // refused when one of them was acknowledged before and is under way
        if let Ok(write) = self.partition.acknowledge(self.now_ms, MEMBERS[member], &[batch], &LIMITS) {
            self.under_way.extend(write);
        }
    }

    fn persist(&mut self, newest: bool, is_durable: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let at = if newest { self.under_way.len() - 1 } else { 0 };
        let write = self.under_way.remove(at);
        if is_durable {
            self.keep(&write);
            for batch in &write.batches {
                for offset in batch.first_offset..=batch.last_offset {
                    let known = self.records.get_mut(&offset).unwrap();
                    known.owner = None;
                    known.is_done = batch.state != DeliveryState::Available;
                }
            }
        }
        self.partition.on_persisted(self.now_ms, write.id.unwrap(), is_durable, &LIMITS);
        if !is_durable {
            self.owners_from_the_partition(&write);
        }
    }

    /// After a failure a record is with its member still; if its lock is over it is free, or given up.
    fn owners_from_the_partition(&mut self, write: &Write) {
        for batch in &write.batches {
            for offset in batch.first_offset..=batch.last_offset {
                let run = self.partition.runs.range(..=offset).next_back().map(|(_, run)| run);
                let state = run.filter(|run| offset <= run.last).map_or(&State::Done, |run| &run.state);
                let known = self.records.get_mut(&offset).unwrap();
                match state {
                    State::Acquired { .. } => {}
                    State::Available => known.owner = None,
                    State::Done | State::Gap => {
                        assert_eq!(known.deliveries, LIMITS.delivery_count_max, "{offset} is given up too early");
                        known.owner = None;
                        known.is_done = true;
                        known.is_given_up = true;
                    }
                }
            }
        }
    }

    fn freed(&mut self, write: &Write) {
        for batch in &write.batches {
            for offset in batch.first_offset..=batch.last_offset {
                let known = self.records.get_mut(&offset).unwrap();
                known.owner = None;
                known.is_done = batch.state != DeliveryState::Available;
            }
        }
    }

    fn keep(&mut self, write: &Write) {
        self.start = self.start.max(write.start_offset);
        self.kept = merge(&self.kept, &write.batches, self.start);
    }

    fn crash(&mut self) {
        self.under_way.clear();
        self.partition = SharePartition::restore(self.start, &self.kept).unwrap();
        for (offset, known) in &mut self.records {
            known.owner = None;
            let kept = self.kept.iter().find(|batch| (batch.first_offset..=batch.last_offset).contains(offset));
            // deliveries of which nothing was kept are forgotten
            known.deliveries = kept.map_or(0, |batch| batch.delivery_count);
            let is_kept = *offset < self.start || kept.is_some_and(|batch| batch.state != DeliveryState::Available);
            assert!(is_kept || !known.is_done || known.is_given_up, "{offset}: an acknowledgement is lost");
            known.is_done = is_kept;
            known.is_given_up = false;
        }
    }

    fn check(&mut self) {
        let mut next = self.partition.start_offset;
        for (first, run) in &self.partition.runs {
            assert_eq!(*first, next, "runs cover everything");
            assert!(run.last >= *first);
            next = run.last + 1;
        }
        assert_eq!(next, self.partition.next_offset);
        for (offset, known) in &self.records {
            if *offset < self.partition.start_offset {
                assert!(known.is_done, "{offset} is behind the start and not done");
            }
        }
        let lowest = self.partition.runs.iter().find(|(_, run)| run.state == State::Available).map(|(first, _)| *first);
        assert_eq!(self.partition.next_fetch_offset(), lowest.unwrap_or(self.partition.next_offset));
    }

    /// Everybody accepts what there is: then nothing is left.
    fn finish(&mut self) {
        for write in std::mem::take(&mut self.under_way) {
            self.under_way.push(write);
            self.persist(false, true);
        }
        self.run(&Step::Advance(LIMITS.lock_ms + 1));
        for _ in 0..2_000 {
            if self.acquire(0, 20, 5, false) == 0 && self.partition.start_offset == self.end {
                break;
            }
            for at in 0..20 {
                self.acknowledge(0, at, 8, &[AcknowledgeType::Accept]);
            }
            while !self.under_way.is_empty() {
                self.persist(false, true);
            }
            self.check();
        }
        assert_eq!(self.partition.start_offset, self.end, "something is left over");
        let lost = (0..self.end).find(|offset| !self.records.get(offset).is_some_and(|known| known.is_done));
        assert_eq!(lost, None, "a record was lost");
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_done_comes_again(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        world.finish();
    }
}
