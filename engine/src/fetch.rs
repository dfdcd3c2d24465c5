//! Fetching over several partitions and shards, with a wait for `min_bytes` that polls nothing.
//!
//! A fetch is answered when what it asks for is there, over all its partitions, or when there is an error to tell, or
//! when its time is over; nothing else ends its wait. Bytes that are missing are asked of shards and partitions in equal
//! shares: as long as none of them has grown by its share, there cannot be enough, and nobody need look.

use std::{
    collections::BTreeMap,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{join_all, select};

use crate::{
    api::{Fetch, FetchPartition, Fetched, LogError, Records},
    chunk::Chunk,
    engine::{Engine, FetchAnswer},
    io::Io,
    partition::waiters::Waiter,
    transactions::AbortedTransaction,
};

/// The partitions of one shard, with their places in the request.
type Parts = Vec<(usize, FetchPartition)>;

/// What may have come between a look for records and reading them.
const GROWN_BYTES: usize = 128 << 10;

/// When an answer is that full, to one part in so many, nothing more is read for it: a rest that holds a batch or two is
/// not worth a read of its own, and its partition has its turn in the next answer.
const REST_PART: usize = 16;

/// So many partitions at most are made ready for the next answer.
const NEXT_PARTITIONS: usize = 16;

impl Engine {
    /// Reads; waits up to `max_wait` for `min_bytes`. One answer per partition, in order.
    pub async fn fetch(&self, fetch: Fetch) -> Vec<Result<Fetched, LogError>> {
        self.note_activity();
        let by_shard = self.by_shard(&fetch.partitions);
        if let Some(answers) = self.more_than_asked(&by_shard, &fetch).await {
            return answers;
        }
        let found = self.wait_for(&by_shard, fetch.min_bytes, fetch.max_wait).await;
        self.gather(&by_shard, &fetch, found).await
    }

    /// The answer, if its first batch, which is given whole, makes up for what its partition is limited to. Kafka reads
    /// before it waits, and so finds out; here that is tried only where a limit may be in the way of `min_bytes`.
    async fn more_than_asked(&self, by_shard: &BTreeMap<usize, Parts>, fetch: &Fetch) -> Option<Vec<FetchAnswer>> {
        let least = fetch.partitions.iter().map(|part| part.max_bytes).min()?;
        if fetch.max_wait.is_zero() || fetch.min_bytes <= least {
            return None;
        }
        let sum = self.found(by_shard).await.into_iter().fold(0, usize::saturating_add);
        if !(least..fetch.min_bytes).contains(&sum) {
            return None;
        }
        let answers = self.gather(by_shard, fetch, None).await;
        let bytes: usize = answers.iter().flatten().map(|fetched| fetched.records.len()).sum();
        (bytes >= fetch.min_bytes).then_some(answers)
    }

    /// Waits as [`Engine::fetch`] does, and reads nothing.
    pub async fn wait_for_bytes(&self, partitions: &[FetchPartition], min_bytes: usize, max_wait: Duration) {
        self.wait_for(&self.by_shard(partitions), min_bytes, max_wait).await;
    }

    /// Bytes that a fetch would find in partitions of this shard; `None` where there is an error to tell.
    pub fn available(&self, partitions: &[FetchPartition]) -> Option<usize> {
        (!self.0.store.refuses(partitions)).then(|| self.0.store.available(partitions))
    }

    fn by_shard(&self, partitions: &[FetchPartition]) -> BTreeMap<usize, Parts> {
        let mut by_shard: BTreeMap<usize, Parts> = BTreeMap::new();
        for (at, part) in partitions.iter().enumerate() {
            by_shard.entry(self.owner(part.partition)).or_default().push((at, *part));
        }
        by_shard
    }

    /// Bytes that are there, once they are enough; `None` when the time is over.
    async fn wait_for(&self, by_shard: &BTreeMap<usize, Parts>, min_bytes: usize, max_wait: Duration) -> Option<usize> {
        let deadline = Instant::now() + max_wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let found = self.found(by_shard).await;
            let sum = found.iter().fold(0, |sum: usize, bytes| sum.saturating_add(*bytes));
            // An empty fetch (of a session without news) waits its time.
            if !found.is_empty() && sum >= min_bytes {
                return Some(sum);
            }
            self.wait_for_change(by_shard, &found, min_bytes.saturating_sub(sum), left).await;
        }
    }

    /// Bytes that each shard has for the fetch; the most there can be where there is an error to tell.
    async fn found(&self, by_shard: &BTreeMap<usize, Parts>) -> Vec<usize> {
        let asked = by_shard.iter().map(|(shard, parts)| {
            let parts = plain(parts);
            self.call(*shard, move |engine: Engine| std::future::ready(engine.found_here(&parts)))
        });
        join_all(asked.collect::<Vec<_>>()).await
    }

    fn found_here(&self, parts: &[FetchPartition]) -> usize {
        self.available(parts).unwrap_or(usize::MAX)
    }

    /// Reads what is there, within memory for it; `found`: bytes that there are at least, if that is known.
    async fn gather(&self, by_shard: &BTreeMap<usize, Parts>, fetch: &Fetch, found: Option<usize>) -> Vec<FetchAnswer> {
        let memory = &self.0.store.fetch_memory;
        let all = found.map_or(usize::MAX, |found| found.saturating_add(GROWN_BYTES));
        let permit = memory.acquire(fetch.max_bytes.min(all)).await;
        let max_bytes = permit.bytes();
        let share = if all == max_bytes { all } else { max_bytes / by_shard.len().max(1) };
        let reading = by_shard.iter().map(|(shard, parts)| {
            let owned = plain(parts);
            let here = *shard == self.shard();
            async move {
                let answers = match here {
                    true => self.read_here(&owned, share).await,
                    false => {
                        let call = self.call(*shard, move |engine: Engine| async move {
                            let answers = engine.read_here(&owned, share).await;
                            answers.into_iter().map(Crossing::pack).collect::<Vec<_>>()
                        });
                        call.await.into_iter().map(Crossing::unpack).collect()
                    }
                };
                (parts, answers)
            }
        });
        let mut answers: Vec<FetchAnswer> = fetch.partitions.iter().map(|_| Err(LogError::UnknownPartition)).collect();
        for (parts, of_shard) in join_all(reading).await {
            for ((at, _), answer) in parts.iter().zip(of_shard) {
                answers[*at] = answer;
            }
        }
        trim(&mut answers, max_bytes);
        permit.cover(answers.iter_mut().flatten().flat_map(|fetched| &mut fetched.records.chunks));
        answers
    }

    /// Reads partitions of this shard in the order asked; the first batch goes whatever its size.
    async fn read_here(&self, parts: &[FetchPartition], max_bytes: usize) -> Vec<FetchAnswer> {
        let mut left = max_bytes;
        let mut empty = true;
        let mut answers = Vec::with_capacity(parts.len());
        let mut without = Vec::new();
        for part in parts {
            if !empty && left < (max_bytes / REST_PART).min(part.max_bytes) {
                left = 0;
                without.push(part);
            }
            let answer = self.0.store.read(part, left, empty).await;
            if let Ok(fetched) = &answer {
                let len = fetched.records.len();
                left = left.saturating_sub(len);
                empty &= len == 0;
            }
            answers.push(answer);
        }
        self.read_next(&without, max_bytes).await;
        answers
    }

    /// Partitions for which an answer has no room are the first ones of the next: what that one holds is brought to memory
    /// while this one is sent.
    async fn read_next(&self, parts: &[&FetchPartition], max_bytes: usize) {
        let mut left = max_bytes;
        for part in parts.iter().take(NEXT_PARTITIONS) {
            if left == 0 {
                return;
            }
            left = left.saturating_sub(self.0.store.read_soon(part).await);
        }
    }

    /// Waits until a shard has its share of the `missing` bytes beyond those it was `seen` to have, or the time is over.
    async fn wait_for_change(&self, by_shard: &BTreeMap<usize, Parts>, seen: &[usize], missing: usize, left: Duration) {
        let share = missing.div_ceil(by_shard.len().max(1));
        let reported = Rc::new(Waiter::default());
        let mut here = None;
        let mut remote = Vec::new();
        for ((shard, parts), seen) in by_shard.iter().zip(seen) {
            let wanted = seen.saturating_add(share);
            match *shard == self.shard() {
                true => here = Some((plain(parts), wanted)),
                false => remote.push(self.watch_on(*shard, plain(parts), wanted, left, &reported)),
            }
        }
        let grown = async {
            match &here {
                Some((parts, wanted)) => self.grown_here(parts, *wanted).await,
                None => std::future::pending().await,
            }
        };
        self.first_of(grown, &reported, left).await;
        for (shard, key) in remote {
            self.0.mail.post(shard, Box::new(move |engine: &Engine| engine.unwatch(key)));
        }
    }

    /// Waits until partitions of this shard have so many bytes, or an error to tell.
    async fn grown_here(&self, parts: &[FetchPartition], wanted: usize) {
        loop {
            let found = self.found_here(parts);
            if found >= wanted {
                return;
            }
            let waiter = Rc::new(Waiter::default());
            self.0.store.watch(parts, &waiter, (wanted - found).div_ceil(parts.len().max(1)));
            notified(&waiter).await;
        }
    }

    /// Ends with the first of these: the work, a notification, the time.
    async fn first_of(&self, work: impl Future<Output = ()>, waiter: &Waiter, left: Duration) {
        let (work, notified, slept) = (pin!(work), pin!(notified(waiter)), pin!(self.0.io.sleep(left)));
        select(select(work, notified), slept).await;
    }

    /// Has another shard notify our waiter when its partitions have so many bytes.
    fn watch_on(
        &self,
        shard: usize,
        parts: Vec<FetchPartition>,
        wanted: usize,
        left: Duration,
        waiter: &Rc<Waiter>,
    ) -> (usize, (usize, u64)) {
        let key = (self.shard(), self.next_id());
        let call = self.call(shard, move |engine: Engine| {
            let given_up = Rc::new(Waiter::default());
            engine.0.watched.borrow_mut().insert(key, given_up.clone());
            async move {
                engine.first_of(engine.grown_here(&parts, wanted), &given_up, left).await;
                engine.unwatch(key);
            }
        });
        let waiter = waiter.clone();
        glommio::spawn_local(async move {
            call.await;
            waiter.notify();
        })
        .detach();
        (shard, key)
    }

    fn unwatch(&self, key: (usize, u64)) {
        let waiter = self.0.watched.borrow_mut().remove(&key);
        if let Some(waiter) = waiter {
            waiter.notify();
        }
    }
}

/// Leaves out the records that make the whole larger than `max_bytes`: each shard gives its first batch whatever its
/// size, but only the first of the request may go beyond the limit (KIP-74). The others have their turn in a later
/// fetch, as clients and sessions ask for what they got last.
fn trim(answers: &mut [FetchAnswer], max_bytes: usize) {
    let mut total = 0;
    for fetched in answers.iter_mut().flatten() {
        let len = fetched.records.len();
        if total > 0 && total + len > max_bytes {
            fetched.records = Records::default();
            fetched.aborted = fetched.aborted.take().map(|_| Vec::new());
        } else {
            total += len;
        }
    }
}

async fn notified(waiter: &Waiter) {
    std::future::poll_fn(|cx| match waiter.poll(cx.waker()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn plain(parts: &Parts) -> Vec<FetchPartition> {
    parts.iter().map(|(_, part)| *part).collect()
}

/// What an answer says beside its records.
struct Told {
    high_watermark: i64,
    last_stable_offset: i64,
    log_start_offset: i64,
    aborted: Option<Vec<AbortedTransaction>>,
}

/// An answer on its way to another shard: memory of one shard is copied once, files are read by the kernel from
/// whichever shard sends them.
struct Crossing {
    /// Without records.
    answer: Result<Told, LogError>,
    pieces: Vec<Piece>,
}

enum Piece {
    Bytes(Bytes),
    File(std::fs::File, u64, usize),
}

impl Crossing {
    fn pack(answer: FetchAnswer) -> Self {
        match answer {
            Err(error) => Self { answer: Err(error), pieces: Vec::new() },
            Ok(Fetched { high_watermark, last_stable_offset, log_start_offset, records, aborted }) => {
                let told = Told { high_watermark, last_stable_offset, log_start_offset, aborted };
                let pieces = records.chunks.iter().map(Piece::of).collect::<std::io::Result<Vec<_>>>();
                match pieces {
                    Ok(pieces) => Self { answer: Ok(told), pieces },
                    Err(error) => Self { answer: Err(LogError::Storage(error.to_string())), pieces: Vec::new() },
                }
            }
        }
    }

    fn unpack(self) -> FetchAnswer {
        let Told { high_watermark, last_stable_offset, log_start_offset, aborted } = self.answer?;
        let chunks = self.pieces.into_iter().map(Piece::chunk).collect();
        Ok(Fetched { high_watermark, last_stable_offset, log_start_offset, records: Records { chunks }, aborted })
    }
}

impl Piece {
    fn of(chunk: &Chunk) -> std::io::Result<Self> {
        match chunk {
            Chunk::File(range) => Ok(Self::File(range.file.try_clone()?, range.position, range.len)),
            Chunk::Bytes(bytes) => Ok(Self::Bytes(bytes.clone())),
            Chunk::Shared(memory, range) => Ok(Self::Bytes(Bytes::copy_from_slice(&memory.bytes()[range.clone()]))),
        }
    }

    fn chunk(self) -> Chunk {
        match self {
            Self::Bytes(bytes) => Chunk::Bytes(bytes),
            Self::File(file, position, len) => {
                Chunk::File(crate::chunk::FileRange { file: Rc::new(file), position, len })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_records_may_go_beyond_the_limit() {
        let answer = |len: usize| {
            let chunks = if len == 0 { vec![] } else { vec![Chunk::Bytes(Bytes::from(vec![0; len]))] };
            Ok(Fetched {
                high_watermark: 1,
                last_stable_offset: 1,
                log_start_offset: 0,
                records: Records { chunks },
                aborted: None,
            })
        };
        let case = |sizes: &[usize], max_bytes| {
            let mut answers: Vec<FetchAnswer> = sizes.iter().map(|len| answer(*len)).collect();
            answers.insert(0, Err(LogError::UnknownPartition));
            trim(&mut answers, max_bytes);
            answers.iter().flatten().map(|fetched| fetched.records.len()).collect::<Vec<_>>()
        };
        assert_eq!(case(&[0, 900, 0, 900], 1_000), [0, 900, 0, 0]);
        assert_eq!(case(&[900, 900, 50], 100), [900, 0, 0]);
        assert_eq!(case(&[500, 501, 500], 1_000), [500, 0, 500]);
        assert_eq!(case(&[500, 500, 1], 1_001), [500, 500, 1]);
    }
}
