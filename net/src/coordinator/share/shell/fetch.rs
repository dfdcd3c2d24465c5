//! Fetching for a member from the share partitions that one shard owns.
//!
//! A fetch has two halves. [`fetch_on`] gives out what is there now. [`wait_on`] changes nothing; it returns as soon as
//! there may be something. So a fetch over several shards can wait on all of them and be sure that what is given out is
//! answered.

use std::{
    cell::RefCell,
    io,
    os::unix::fs::FileExt,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{Either, join_all, select};
use kafka_protocol::ResponseError;
use millrace_engine::{
    api::{Chunk, Fetch, FetchPartition, Fetched, LogError, Records, TopicPartition},
    batch::{BatchError, BatchInfo, CommittedBatches},
    engine::Engine,
    transactions::AbortedTransaction,
};

use super::{Shares, here, live::Live, notice::Notice};
use crate::{
    coordinator::{
        runtime::contiguous,
        share::{
            partition::{Acquire, Acquired, LogBatch},
            settings::GroupSettings,
            state::ShareKey,
        },
    },
    errors::log_error,
};

/// Bytes of one partition in one answer at most, but for a larger first batch.
pub(crate) const PARTITION_BYTES_MAX: usize = 4 << 20;
/// Bytes of a batch's header.
const HEADER_BYTES: usize = 61;
/// How long a fetch waits for a share partition that is being loaded before it looks at others without it.
const LOAD_WAIT: Duration = Duration::from_millis(200);

/// What a member wants of the share partitions of one shard.
#[derive(Debug, Clone)]
pub(crate) struct FetchHere {
    pub(crate) group: String,
    pub(crate) member: String,
    pub(crate) partitions: Vec<TopicPartition>,
    pub(crate) bytes_max: usize,
    /// With less nothing is given out, unless it is the last try.
    pub(crate) bytes_min: usize,
    pub(crate) records_max: i64,
    pub(crate) batch_size: i64,
    pub(crate) is_strict: bool,
    pub(crate) is_last_try: bool,
}

impl FetchHere {
    /// Bytes of one partition at most.
    fn partition_bytes_max(&self) -> usize {
        (self.bytes_max / self.partitions.len().max(1)).clamp(1, PARTITION_BYTES_MAX)
    }
}

/// What was given out of one share partition.
#[derive(Debug)]
pub(crate) struct Found<R> {
    pub(crate) records: R,
    pub(crate) acquired: Vec<Acquired>,
}

/// The same when it crosses shards.
pub(crate) type Packed = Result<Found<Bytes>, ResponseError>;
type Answer = Result<Found<Records>, ResponseError>;

/// Gives out what a shard has now; one answer per partition, in order.
pub(crate) async fn fetch_on(engine: &Engine, shard: usize, want: FetchHere) -> Vec<Answer> {
    if shard == engine.shard() {
        return here(engine).await.fetch(&want).await;
    }
    let packed = engine.on_shard(shard, move |engine| async move {
        let answers = here(&engine).await.fetch(&want).await;
        join_all(answers.into_iter().map(pack)).await
    });
    packed.await.into_iter().map(unpack).collect()
}

async fn pack(answer: Answer) -> Packed {
    let Found { records, acquired } = answer?;
    let records = contiguous(&records).await.map_err(|_| ResponseError::KafkaStorageError)?;
    Ok(Found { records, acquired })
}

fn unpack(answer: Packed) -> Answer {
    let Found { records, acquired } = answer?;
    let chunks = if records.is_empty() { Vec::new() } else { vec![Chunk::Bytes(records)] };
    Ok(Found { records: Records { chunks }, acquired })
}

/// Waits until one of some shards may have something for a member, or the time is over.
pub(crate) async fn wait_on(engine: &Engine, wants: Vec<(usize, FetchHere)>, max_wait: Duration) {
    let home = engine.shard();
    let shares = here(engine).await;
    let number = shares.next_wait.replace(shares.next_wait.get() + 1);
    let shards: Vec<usize> = wants.iter().map(|(shard, _)| *shard).collect();
    let waits = wants.into_iter().map(|(shard, want)| {
        Box::pin(engine.on_shard(shard, move |engine| async move {
            here(&engine).await.wait(&want, max_wait, (home, number)).await;
        }))
    });
    let cancel = Cancel { engine: engine.clone(), shards, number };
    futures_util::future::select_all(waits).await;
    drop(cancel);
}

/// Tells shards that nobody waits for them any more, also when the wait is given up.
struct Cancel {
    engine: Engine,
    shards: Vec<usize>,
    number: u64,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        let (home, number) = (self.engine.shard(), self.number);
        for shard in self.shards.iter().copied().filter(|shard| *shard != home) {
            let engine = self.engine.clone();
            glommio::spawn_local(async move {
                let cancel = move |engine: Engine| async move {
                    let notice = here(&engine).await.waits.borrow_mut().remove(&(home, number));
                    if let Some(notice) = notice {
                        notice.give();
                    }
                };
                engine.on_shard(shard, cancel).await;
            })
            .detach();
        }
    }
}

/// A share partition that is being read; others wait.
struct Reading(Rc<Live>);

impl Reading {
    fn begin(live: &Rc<Live>) -> Option<Self> {
        if live.is_reading.replace(true) {
            live.is_contended.set(true);
            return None;
        }
        Some(Self(Rc::clone(live)))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.is_reading.set(false);
        if self.0.is_contended.replace(false) {
            self.0.watchers.notify();
        }
    }
}

impl Shares {
    /// The share partitions that are wanted. `None`: it is being loaded, or cannot be now, as when its state has no
    /// coordinator; as in Kafka that is no error, but there is nothing to give out yet.
    async fn lives(self: &Rc<Self>, want: &FetchHere, wait: Duration) -> Vec<Result<Option<Rc<Live>>, ResponseError>> {
        let lives = want.partitions.iter().map(|partition| async {
            let key = ShareKey::new(&want.group, partition.topic, partition.partition);
            let (live, timeout) = (std::pin::pin!(self.live(&key)), std::pin::pin!(glommio::timer::sleep(wait)));
            match select(live, timeout).await {
                Either::Left((Ok(live), _)) => Ok(Some(live)),
                Either::Left((Err(ResponseError::CoordinatorNotAvailable), _)) | Either::Right(_) => Ok(None),
                Either::Left((Err(error), _)) => Err(error),
            }
        });
        join_all(lives).await
    }

    async fn fetch(self: &Rc<Self>, want: &FetchHere) -> Vec<Answer> {
        let GroupSettings { limits, bound, .. } = self.group_settings(&want.group);
        let lives = self.lives(want, LOAD_WAIT).await;
        let mut reading = Vec::new();
        let mut parts = Vec::new();
        let share = want.partition_bytes_max();
        for (at, live) in lives.iter().enumerate() {
            let Ok(Some(live)) = live else { continue };
            live.members.borrow_mut().insert(Rc::from(want.member.as_str()));
            let offset = live
                .core
                .borrow_mut()
                .as_mut()
                .and_then(|core| core.can_acquire(&limits).then(|| core.next_fetch_offset()));
            let Some(offset) = offset else { continue };
            let Some(lock) = Reading::begin(live) else { continue };
            let partition = want.partitions[at];
            parts.push(FetchPartition { partition, offset, max_bytes: share, leader_epoch: -1, bound });
            reading.push((at, offset, lock));
        }
        let mut answers: Vec<Answer> = lives
            .iter()
            .map(|live| match live {
                Ok(_) => Ok(Found { records: Records::default(), acquired: Vec::new() }),
                Err(error) => Err(*error),
            })
            .collect();
        if parts.is_empty() {
            return answers;
        }
        let is_too_little = self.engine.available(&parts).is_some_and(|bytes| bytes < want.bytes_min);
        if is_too_little && !want.is_last_try {
            return answers;
        }
        let fetch = Fetch { partitions: parts, max_bytes: want.bytes_max, min_bytes: 0, max_wait: Duration::ZERO };
        let fetched = self.engine.fetch(fetch).await;
        let mut left = want.records_max;
        for ((at, offset, lock), fetched) in reading.into_iter().zip(fetched) {
            let answer = self.give_out(&lock.0, want, offset, left, fetched);
            if let Ok(found) = &answer {
                left -= found.acquired.iter().map(Acquired::len).sum::<i64>();
            }
            answers[at] = answer;
        }
        answers
    }

    /// Gives out what was read for one share partition.
    fn give_out(
        self: &Rc<Self>,
        live: &Rc<Live>,
        want: &FetchHere,
        offset: i64,
        records_max: i64,
        fetched: Result<Fetched, LogError>,
    ) -> Answer {
        let nothing = || Found { records: Records::default(), acquired: Vec::new() };
        let mut borrowed = live.core.borrow_mut();
        let Some(core) = borrowed.as_mut() else { return Ok(nothing()) };
        if self.engine.leader_epoch(live.key.place()) != Some(live.leader_epoch) {
            return Err(ResponseError::NotLeaderOrFollower);
        }
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(LogError::OffsetOutOfRange { log_start_offset, .. }) => {
                core.handle_log_start(log_start_offset);
                return Ok(nothing());
            }
            Err(error) => return Err(log_error(&error)),
        };
        let batches = scan(&fetched.records).map_err(|error| {
            tracing::error!(topic = %live.key.topic, partition = live.key.partition, %error, "batches cannot be read");
            ResponseError::CorruptMessage
        })?;
        let limits = self.group_settings(&want.group).limits;
        let request = Acquire {
            member: Rc::from(want.member.as_str()),
            records_max,
            batch_size: want.batch_size,
            is_strict: want.is_strict,
        };
        let log: Vec<LogBatch> = batches.iter().map(|batch| batch.log).collect();
        let acquired = core.acquire(self.clock.now_ms(), &request, &limits, offset, &log);
        let hidden = hidden(&batches, fetched.aborted.as_deref().unwrap_or_default());
        let (acquired, archived) = core.archive(acquired, &hidden);
        drop(borrowed);
        if let Some(write) = archived {
            // nobody waits for it, and whoever reads there again finds the same
            drop(self.persist(live, write));
        }
        let (Some(first), Some(last)) = (acquired.first(), acquired.last()) else { return Ok(nothing()) };
        let holds =
            |batch: &&Batch| batch.log.last_offset >= first.first_offset && batch.log.first_offset <= last.last_offset;
        let held: Vec<&Batch> = batches.iter().filter(holds).collect();
        let begin = held.first().map_or(0, |batch| batch.position);
        let end = held.last().map_or(begin, |batch| batch.position + batch.len);
        let records = slice(&fetched.records, begin, end);
        self.schedule(live);
        Ok(Found { records, acquired })
    }

    /// Waits until there may be something for a member. Whatever it finds is not given out.
    async fn wait(self: &Rc<Self>, want: &FetchHere, max_wait: Duration, key: (usize, u64)) {
        let notice = Rc::new(Notice::default());
        self.waits.borrow_mut().insert(key, Rc::clone(&notice));
        let _forget = Forget { waits: &self.waits, key };
        let GroupSettings { limits, bound, .. } = self.group_settings(&want.group);
        let began = Instant::now();
        let mut parts = Vec::new();
        let lives = self.lives(want, Duration::ZERO).await;
        for (partition, live) in want.partitions.iter().zip(lives) {
            let Ok(live) = live else { continue };
            let Some(live) = live else {
                // it tells when it is loaded, or could not be
                let key = ShareKey::new(&want.group, partition.topic, partition.partition);
                if let Some(loading) = self.partitions.borrow().get(&key) {
                    loading.watchers.add(&notice);
                }
                continue;
            };
            live.watchers.add(&notice);
            if live.is_reading.get() {
                live.is_contended.set(true);
                continue;
            }
            let offset = live
                .core
                .borrow_mut()
                .as_mut()
                .and_then(|core| core.can_acquire(&limits).then(|| core.next_fetch_offset()));
            if let Some(offset) = offset {
                let partition = TopicPartition { topic: live.key.topic, partition: live.key.partition };
                let max_bytes = want.partition_bytes_max();
                parts.push(FetchPartition { partition, offset, max_bytes, leader_epoch: -1, bound });
            }
        }
        let changed = std::pin::pin!(notice.given());
        let log = std::pin::pin!(async {
            if !parts.is_empty() {
                let bytes_min = want.bytes_min.max(1);
                self.engine.wait_for_bytes(&parts, bytes_min, max_wait.saturating_sub(began.elapsed())).await;
                if self.engine.available(&parts).is_some_and(|bytes| bytes >= bytes_min) {
                    return;
                }
            }
            // nothing can come of the log: the rest of the time is for changes
            glommio::timer::sleep(max_wait.saturating_sub(began.elapsed())).await;
        });
        match select(changed, log).await {
            Either::Left(((), _)) | Either::Right(((), _)) => {}
        }
    }
}

/// Takes a wait out of those that can be cancelled.
struct Forget<'a> {
    waits: &'a RefCell<std::collections::HashMap<(usize, u64), Rc<Notice>>>,
    key: (usize, u64),
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waits.borrow_mut().remove(&self.key);
    }
}

/// A batch among some records.
#[derive(Debug, Clone, Copy)]
struct Batch {
    info: BatchInfo,
    log: LogBatch,
    position: usize,
    len: usize,
}

#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// Finds the batches among records, without copying more than their headers.
fn scan(records: &Records) -> Result<Vec<Batch>, ScanError> {
    let mut batches = Vec::new();
    let (total, mut position) = (records.len(), 0);
    while position + HEADER_BYTES <= total {
        let mut header = [0; HEADER_BYTES];
        copy(records, position, &mut header)?;
        let info = BatchInfo::parse_header(&header)?;
        let log = LogBatch { first_offset: info.base_offset, last_offset: info.last_offset() };
        let len = info.size;
        batches.push(Batch { info, log, position, len });
        position += len;
    }
    Ok(batches)
}

/// The batches of aborted transactions, which are there when a group reads committed records only.
fn hidden(batches: &[Batch], aborted: &[AbortedTransaction]) -> Vec<LogBatch> {
    let mut committed = CommittedBatches::new(aborted);
    let is_hidden = |batch: &&Batch| !committed.counts(&batch.info) && !batch.info.is_control();
    // markers are left to consumers, who know that they hold no records for them
    batches.iter().filter(is_hidden).map(|batch| batch.log).collect()
}

/// Copies bytes out of records.
fn copy(records: &Records, mut position: usize, mut to: &mut [u8]) -> io::Result<()> {
    for chunk in &records.chunks {
        let len = chunk.len();
        if position >= len {
            position -= len;
            continue;
        }
        let count = (len - position).min(to.len());
        let (head, rest) = to.split_at_mut(count);
        match (chunk.as_slice(), chunk) {
            (Some(bytes), _) => head.copy_from_slice(&bytes[position..position + count]),
            // its pages were in memory a moment ago, so that this does not block
            (None, Chunk::File(range)) => range.file.read_exact_at(head, range.position + position as u64)?,
            (None, _) => {}
        }
        to = rest;
        position = 0;
        if to.is_empty() {
            break;
        }
    }
    Ok(())
}

/// The part of records between two positions, without copying.
fn slice(records: &Records, begin: usize, end: usize) -> Records {
    let mut chunks = Vec::new();
    let mut at = 0;
    for chunk in &records.chunks {
        let from = begin.clamp(at, at + chunk.len()) - at;
        let to = end.clamp(at, at + chunk.len()) - at;
        at += chunk.len();
        if from >= to {
            continue;
        }
        chunks.push(match chunk.clone() {
            Chunk::Shared(memory, range) => Chunk::Shared(memory, range.start + from..range.start + to),
            Chunk::Bytes(bytes) => Chunk::Bytes(bytes.slice(from..to)),
            Chunk::File(mut range) => {
                range.position += from as u64;
                range.len = to - from;
                Chunk::File(range)
            }
        });
    }
    Records { chunks }
}

#[cfg(test)]
mod tests {
    use millrace_engine::batch::{BatchBuilder, Codec, Record};

    use super::*;

    fn batch(base_offset: i64, count: i64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None, base_offset);
        for offset in base_offset..base_offset + count {
            let value = Some(Bytes::from_static(b"value"));
            builder.push(&Record { offset, timestamp: 0, key: None, value, headers: Vec::new() });
        }
        builder.finish()
    }

    #[test]
    fn batches_are_found_and_cut_out_wherever_chunks_end() {
        let parts = [batch(3, 2), batch(5, 1), batch(9, 4)];
        let all = Bytes::from(parts.concat());
        for cut in 0..all.len() {
            let chunks =
                vec![Chunk::Bytes(all.slice(..cut)), Chunk::Shared(Rc::new(all[cut..].to_vec()), 0..all.len() - cut)];
            let records = Records { chunks };
            let found = scan(&records).unwrap();
            let offsets: Vec<_> = found.iter().map(|batch| (batch.log.first_offset, batch.log.last_offset)).collect();
            assert_eq!(offsets, [(3, 4), (5, 5), (9, 12)]);
            let middle = slice(&records, found[1].position, found[1].position + found[1].len);
            let middle = futures_util::FutureExt::now_or_never(contiguous(&middle));
            assert_eq!(middle.unwrap().unwrap(), parts[1]);
        }
    }
}
