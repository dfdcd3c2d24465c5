//! One partition's log as its owner shard sees it: marks, tail, segments, producers. Pure and synchronous.
//!
//! The log is, from its start to its end: segments (up to `materialised`), then the tail, whose extents are in memory and
//! in the shared log. An extent joins the tail when its group is sealed and becomes visible when the marks pass it; it
//! stays after it was materialised for as long as its memory is cached.
//!
//! What always holds: the order of the marks (`marks`), segments and tail are consecutive but for what compaction took
//! away, here or at the leader that it came from, and an offset below the end of the tail is in the tail or in a segment.

pub(crate) mod available;
pub(crate) mod cutting;
pub(crate) mod keeping;
pub(crate) mod marks;
pub(crate) mod materialise;
mod open;
pub(crate) mod producers;
pub(crate) mod read;
pub(crate) mod replicating;
pub(crate) mod replication;
mod retention;
pub(crate) mod run;
mod segments;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod transacting;
pub(crate) mod transactions;
pub(crate) mod waiters;

use std::{cell::RefCell, rc::Rc};

use self::{
    keeping::{Appending, Unnoted},
    marks::Marks,
    producers::{Begins, Producers, Sequence},
    replication::{Confirmation, Replication},
    segments::Segments,
    tail::{Extent, Tail},
    transactions::{Confirming, Transactions},
    waiters::{Waiter, Waiters},
};
use crate::{
    api::{Acks, LogError, Produced, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchInfo, TimestampType},
    config::{Durability, TopicConfig},
    format::{
        manifest::{PartitionState, ProducerBatch, producer_batch},
        transactions::MARKER,
        wal::Era,
    },
    wal::{WalFileId, group::GroupOutcome, history::History},
};

/// A partition. Shared by the shard's tasks; never borrowed across an await.
pub(crate) type PartitionCell = RefCell<Partition>;

/// See the module.
pub(crate) struct Partition {
    id: TopicPartition,
    config: Rc<TopicConfig>,
    marks: Marks,
    history: History,
    replication: Replication,
    /// Compaction has cleaned everything below: the first dirty offset.
    clean_offset: i64,
    segments: Segments,
    tail: Tail,
    producers: Producers,
    transactions: Transactions,
    /// Below, nothing is undecided: no record there is of a transaction that is open, or whose end may be lost.
    last_stable: i64,
    /// Producers as of what is materialised: what a rewritten manifest says.
    checkpointed: Producers,
    appending: Appending,
    /// When batches were last brought to segments. Not known after a restart: then it counts from the first question.
    appended_ms: Option<i64>,
    unnoted: Option<Unnoted>,
    /// The group that its open run is in, and the run's place there.
    open_run: Option<(u64, usize)>,
    /// How the last group with a batch of this partition ends.
    last_group: Option<Rc<GroupOutcome>>,
    /// Below, records would not be cached if the cache used its whole budget.
    old_before: i64,
    /// Queued for materialisation.
    queued: bool,
    deleted: bool,
    waiters: Waiters,
    /// Those who read what is committed.
    stable_waiters: Waiters,
}

/// On what terms a batch is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Who appends it.
    pub(crate) origin: AppendOrigin,
    /// What its answer waits for.
    pub(crate) acks: Acks,
    /// How a producer begins of which nothing is known.
    pub(crate) begins: Begins,
}

impl Terms {
    /// Those of batches that nobody's transaction is asked for.
    pub(crate) fn plain(origin: AppendOrigin, acks: Acks) -> Self {
        Self { origin, acks, begins: Begins::Anywhere }
    }
}

/// A batch's place in the log.
pub(crate) struct Placed {
    pub(crate) produced: Produced,
    /// One past its last offset.
    pub(crate) end_offset: i64,
    /// The time of its append, if its topic has that for a timestamp.
    pub(crate) append_time_ms: Option<i64>,
    /// What it waits for beside its group.
    pub(crate) confirming: Option<Confirming>,
}

/// A batch that is in the log already.
pub(crate) struct Repeated {
    pub(crate) produced: Produced,
    /// One past its last offset.
    pub(crate) end_offset: i64,
    /// How the group ends that it may be in; none if consumers see it.
    pub(crate) group: Option<Rc<GroupOutcome>>,
    /// What it waits for beside that.
    pub(crate) confirming: Option<Confirming>,
}

/// What a deleted partition leaves.
pub(crate) struct Leavings {
    /// Extents that are in no segment.
    pub(crate) live: Vec<Extent>,
    /// Extents per file of the shared log that the manifest has not heard of.
    pub(crate) pins: Vec<(WalFileId, usize)>,
}

impl Partition {
    /// An empty one.
    pub(crate) fn new(id: TopicPartition, config: Rc<TopicConfig>, replication: Replication) -> Self {
        Self::restore(id, config, PartitionState::default(), History::default(), replication)
    }

    /// A partition as the manifest remembers it, with what has happened to its end also in the tail, which follows by
    /// [`Partition::recover`].
    pub(crate) fn restore(
        id: TopicPartition,
        config: Rc<TopicConfig>,
        state: PartitionState,
        history: History,
        replication: Replication,
    ) -> Self {
        let (start, end) = (state.log_start_offset, state.end_offset());
        let high_watermark = replication.high_watermark(end).max(start);
        let unsure_below = last_marker(&state.producers).filter(|marker| *marker >= high_watermark);
        let producers = Producers::restore(&state.producers, &state.open);
        let mut partition = Self {
            id,
            config,
            marks: Marks::cut(start, end, high_watermark, end),
            history,
            replication,
            clean_offset: state.clean_offset,
            segments: Segments::new(state.segments),
            tail: Tail::default(),
            checkpointed: producers.clone(),
            producers,
            transactions: Transactions::default(),
            last_stable: state.log_start_offset,
            appending: Appending::Nobody,
            appended_ms: None,
            unnoted: None,
            open_run: None,
            last_group: None,
            old_before: end,
            queued: false,
            deleted: false,
            waiters: Waiters::default(),
            stable_waiters: Waiters::default(),
        };
        // A consumer that reads what is committed must not see what a marker ended that may be cut off.
        if let Some(marker) = unsure_below {
            partition.transactions.unsure_below(marker + 1);
        }
        partition.follow_marks();
        partition
    }

    /// An extent was found in the shared log, with batches of these producers: the log reaches up to its end.
    pub(crate) fn recover(&mut self, extent: Extent, producers: &[ProducerBatch]) {
        producers.iter().for_each(|batch| self.note_batch(*batch, batch.timestamp_ms.get()));
        self.marks.recover(extent.end_offset);
        self.tail.push(extent);
        self.follow_kept();
    }

    /// Names it.
    pub(crate) fn id(&self) -> TopicPartition {
        self.id
    }

    /// The settings of its topic.
    pub(crate) fn config(&self) -> &Rc<TopicConfig> {
        &self.config
    }

    /// How far the log is.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// What is written of it now.
    pub(crate) fn era(&self) -> Era {
        self.history.era()
    }

    /// Where compaction begins the next time.
    pub(crate) fn clean_offset(&self) -> i64 {
        self.clean_offset
    }

    /// Its segments.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// What is in memory.
    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Its idempotent producers.
    pub(crate) fn producers(&self) -> &Producers {
        &self.producers
    }

    /// Whether it is gone.
    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Bytes of batches, in segments and in the shared log only.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.bytes() + self.tail.live_bytes() as u64
    }

    /// Its topic has other settings now.
    pub(crate) fn set_config(&mut self, config: Rc<TopicConfig>) {
        self.config = config;
        self.follow_log();
    }

    /// It is gone: nobody waits for it any more.
    pub(crate) fn delete(&mut self) -> Leavings {
        self.deleted = true;
        self.waiters.wake();
        self.stable_waiters.wake();
        self.replication.refuse(&LogError::UnknownPartition);
        let live = self.tail.take_live(self.marks.materialised());
        Leavings { live, pins: self.unnoted.take().map(|unnoted| unnoted.pins).unwrap_or_default() }
    }

    /// The answer to a batch that is in the log already; none if it is new, and may be appended.
    pub(crate) fn known(&self, info: &BatchInfo, terms: Terms) -> Result<Option<Repeated>, LogError> {
        self.replication.check_produce(terms.acks, self.config.min_insync_replicas)?;
        let checked = self.producers.check(info, self.membership(info, terms.origin), terms.begins)?;
        let Sequence::Duplicate { base_offset, timestamp_ms } = checked else {
            return self.check_opens(info).map(|()| None);
        };
        let log_append_time = self.config.timestamp_type == TimestampType::LogAppendTime;
        let produced = self.produced(base_offset, log_append_time.then_some(timestamp_ms));
        let is_visible = base_offset < self.marks.high_watermark();
        let group = if is_visible { None } else { self.last_group.clone() };
        let end_offset = base_offset + i64::from(info.last_offset_delta) + 1;
        Ok(Some(Repeated { produced, end_offset, group, confirming: self.confirming(info) }))
    }

    /// Gives a new batch its place, at the end.
    pub(crate) fn place(&mut self, info: &BatchInfo, origin: AppendOrigin, now_ms: i64) -> Placed {
        let base_offset = self.marks.end();
        let end_offset = self.take_place(info);
        let append_time_ms = (self.config.timestamp_type == TimestampType::LogAppendTime).then_some(now_ms);
        if info.producer_id >= 0 {
            let timestamp_ms = append_time_ms.unwrap_or(info.max_timestamp);
            self.note_batch(producer_batch(info, base_offset, timestamp_ms), now_ms);
        }
        if info.is_transactional() {
            self.joined_transaction(info, origin);
        }
        let (produced, confirming) = (self.produced(base_offset, append_time_ms), self.confirming(info));
        Placed { produced, end_offset, append_time_ms, confirming }
    }

    /// Offsets for a batch; answers the one behind it.
    fn take_place(&mut self, info: &BatchInfo) -> i64 {
        let base_offset = self.marks.end();
        let end_offset = base_offset + i64::from(info.last_offset_delta) + 1;
        self.marks.assign(end_offset);
        self.history.note_epoch(self.history.era().leader_epoch, base_offset);
        end_offset
    }

    /// Somebody waits until consumers see everything below an offset; `None`: nobody has to be waited for.
    pub(crate) fn expect(&mut self, acks: Acks, end_offset: i64) -> Option<Rc<Confirmation>> {
        let is_seen = end_offset <= self.marks.high_watermark();
        if acks == Acks::All && !is_seen { self.replication.expect(end_offset) } else { None }
    }

    fn produced(&self, base_offset: i64, append_time_ms: Option<i64>) -> Produced {
        Produced { base_offset, append_time_ms: append_time_ms.unwrap_or(-1), log_start_offset: self.marks.log_start() }
    }

    /// Where its run is in the group with that number, if it has one there.
    pub(crate) fn run_in(&self, number: u64) -> Option<usize> {
        self.open_run.filter(|(open, _)| *open == number).map(|(_, at)| at)
    }

    /// How the last group with a batch of it ends.
    pub(crate) fn last_group(&self) -> Option<&Rc<GroupOutcome>> {
        self.last_group.as_ref()
    }

    /// A batch goes to that group, which has so many runs: where the partition's own is among them; none if it has none
    /// yet, and then it is the next one.
    pub(crate) fn join_group(&mut self, number: u64, runs: usize, outcome: &Rc<GroupOutcome>) -> Option<usize> {
        let known = self.run_in(number);
        if known.is_none() {
            self.open_run = Some((number, runs));
            self.last_group = Some(outcome.clone());
        }
        known
    }

    /// Appends an extent to the tail. Offsets were assigned before.
    pub(crate) fn push_extent(&mut self, extent: Extent) {
        self.tail.push(extent);
    }

    /// Everything below is written to the shared log.
    pub(crate) fn on_written(&mut self, end: i64) {
        self.marks.log_has(end, self.marks.durable());
        self.follow_log();
    }

    /// Everything below is on stable storage, in the shared log.
    pub(crate) fn on_durable(&mut self, end: i64) {
        self.marks.log_has(end, end);
        self.follow_log();
    }

    /// What the log on this disk has as safely as the topic asks is kept. What was once stays so, also if its topic asks
    /// for more from then on: with one replica, consumers have seen it.
    fn follow_log(&mut self) {
        let safe = match self.config.durability {
            Durability::Device => self.marks.durable(),
            Durability::Written => self.marks.written(),
        };
        self.keep(safe);
    }

    /// Everything below is kept; other marks may have moved as well.
    fn keep(&mut self, end: i64) {
        match end > self.marks.kept() {
            true => {
                self.marks.keep(end);
                self.follow_kept();
            }
            false => self.follow_marks(),
        }
    }

    /// Lets consumers see what they may now, and wakes who waits for that.
    fn follow_kept(&mut self) {
        let (before, end) = (self.marks.high_watermark(), self.replication.high_watermark(self.marks.kept()));
        if end > before {
            self.marks.show(end);
            self.replication.confirm(end);
            if !self.waiters.is_empty() {
                match self.tail.bytes_between(before, end, usize::MAX) {
                    Some(bytes) => self.waiters.grow(bytes),
                    None => self.waiters.wake(), // they find out from segments
                }
            }
        }
        self.follow_marks();
    }

    /// Lets the waiter know when consumers can see so many bytes more, or it has lost some or itself.
    pub(crate) fn watch(&mut self, waiter: &Rc<Waiter>, bytes: usize, bound: ReadBound) {
        match bound {
            ReadBound::HighWatermark => self.waiters.watch(waiter, bytes),
            ReadBound::LastStable => self.stable_waiters.watch(waiter, bytes),
        }
    }

    /// Up to where a reader sees the log.
    pub(crate) fn end_for(&self, bound: ReadBound) -> i64 {
        match bound {
            ReadBound::HighWatermark => self.marks.high_watermark(),
            ReadBound::LastStable => self.last_stable,
        }
    }

    /// Forgets what is in segments and not cached any more.
    pub(crate) fn prune_tail(&mut self) {
        self.tail.prune(self.marks.materialised());
        self.forget_aborted();
    }

    /// Whether a cache that used its whole budget would have what a reader reads from a segment.
    pub(crate) fn could_be_cached(&self, offset: i64) -> bool {
        offset >= self.old_before
    }

    /// A cache that used its whole budget would have nothing below.
    pub(crate) fn grow_old(&mut self, before: i64) {
        self.old_before = self.old_before.max(before);
    }

    /// Is to be materialised in the next round. Whether that is new.
    pub(crate) fn queue(&mut self) -> bool {
        !std::mem::replace(&mut self.queued, true)
    }

    /// Whether it is to be materialised in the next round.
    pub(crate) fn is_queued(&self) -> bool {
        self.queued
    }

    /// Has its turn.
    pub(crate) fn unqueue(&mut self) {
        self.queued = false;
    }

    /// Forgets producers that appended nothing since then.
    pub(crate) fn expire_producers(&mut self, idle_before_ms: i64) {
        self.producers.expire(idle_before_ms);
        self.checkpointed.expire(idle_before_ms);
    }

    /// Where the log should start, by retention.ms and retention.bytes; `None` if nothing is to go. Who follows lets its
    /// leader decide; what consumers cannot see stays.
    pub(crate) fn expired(&mut self, now_ms: i64) -> Option<i64> {
        self.replication.check_leading().ok()?;
        let appended_ms = *self.appended_ms.get_or_insert(now_ms);
        let seen = self.segments.ended_below(self.marks.high_watermark());
        let unseen_bytes = self.segments.bytes() - seen.iter().map(|segment| segment.size).sum::<u64>();
        let tail_bytes = unseen_bytes + self.tail.live_bytes() as u64;
        let start = retention::expired(seen, tail_bytes, appended_ms, &self.config, now_ms);
        start.filter(|start| *start > self.marks.log_start())
    }
}

/// Offset of the last marker of a transaction among what is known of producers.
fn last_marker(batches: &[ProducerBatch]) -> Option<i64> {
    let markers = batches.iter().filter(|batch| batch.flags.get() & MARKER != 0);
    markers.map(|batch| batch.base_offset.get()).max()
}
