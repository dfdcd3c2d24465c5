//! Fetching over several partitions and shards, with a wait for `min_bytes` that polls nothing: each shard lets a
//! waiter be notified by the partitions it owns.

use std::{collections::BTreeMap, rc::Rc, time::Duration, time::Instant};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::{
    api::{Fetch, FetchPartition, Fetched, LogError, Records},
    chunk::Chunk,
    engine::{Engine, FetchAnswer},
    io::Io,
    partition::Waiter,
};

/// The partitions of one shard, with their places in the request.
type Parts = Vec<(usize, FetchPartition)>;

impl Engine {
    /// Reads; waits up to `max_wait` for `min_bytes`. One answer per partition, in order.
    pub async fn fetch(&self, fetch: Fetch) -> Vec<Result<Fetched, LogError>> {
        self.note_activity();
        let mut by_shard: BTreeMap<usize, Parts> = BTreeMap::new();
        for (at, part) in fetch.partitions.iter().enumerate() {
            by_shard.entry(self.owner(part.partition)).or_default().push((at, *part));
        }
        let deadline = Instant::now() + fetch.max_wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_ready(&by_shard, fetch.min_bytes).await {
                return self.gather(&by_shard, fetch.max_bytes, fetch.partitions.len()).await;
            }
            self.wait_for_change(&by_shard, fetch.min_bytes, left).await;
        }
    }

    /// Whether a fetch may be answered: enough bytes, or an error to tell.
    async fn is_ready(&self, by_shard: &BTreeMap<usize, Parts>, min_bytes: usize) -> bool {
        if by_shard.is_empty() {
            return false; // an empty session fetch waits its time
        }
        let asked = by_shard.iter().map(|(shard, parts)| {
            let parts = plain(parts);
            self.call(*shard, move |engine: Engine| {
                let store = &engine.0.store;
                let found = if store.refuses(&parts) { usize::MAX } else { store.available(&parts) };
                std::future::ready(found)
            })
        });
        let found = join_all(asked.collect::<Vec<_>>()).await;
        found.into_iter().fold(0, usize::saturating_add) >= min_bytes
    }

    async fn gather(&self, by_shard: &BTreeMap<usize, Parts>, max_bytes: usize, count: usize) -> Vec<FetchAnswer> {
        let share = max_bytes / by_shard.len().max(1);
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
        let mut answers: Vec<FetchAnswer> = (0..count).map(|_| Err(LogError::UnknownPartition)).collect();
        for (parts, of_shard) in join_all(reading).await {
            for ((at, _), answer) in parts.iter().zip(of_shard) {
                answers[*at] = answer;
            }
        }
        answers
    }

    /// Reads partitions of this shard in the order asked; the first batch goes whatever its size.
    async fn read_here(&self, parts: &[FetchPartition], max_bytes: usize) -> Vec<FetchAnswer> {
        let mut left = max_bytes;
        let mut empty = true;
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            let answer = self.0.store.read(part, left, empty).await;
            if let Ok(fetched) = &answer {
                let len = fetched.records.len();
                left = left.saturating_sub(len);
                empty &= len == 0;
            }
            answers.push(answer);
        }
        answers
    }

    /// Waits until one of the partitions changes, or the time is over. A partition whose bytes alone are too few is
    /// looked at again by the caller.
    async fn wait_for_change(&self, by_shard: &BTreeMap<usize, Parts>, min_bytes: usize, left: Duration) {
        let waiter = Rc::new(Waiter::default());
        let mut remote = Vec::new();
        for (shard, parts) in by_shard {
            if *shard == self.shard() {
                self.0.store.watch(&plain(parts), &waiter);
            } else {
                remote.push(self.watch_on(*shard, plain(parts), min_bytes, left, &waiter));
            }
        }
        let changed = std::future::poll_fn(|cx| match waiter.poll(cx.waker()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        });
        let slept = self.0.io.sleep(left);
        futures_util::pin_mut!(changed, slept);
        futures_util::future::select(changed, slept).await;
        for (shard, key) in remote {
            self.0.mail.post(shard, Box::new(move |engine: &Engine| engine.unwatch(key)));
        }
    }

    /// Has another shard notify our waiter when one of its partitions changes.
    fn watch_on(
        &self,
        shard: usize,
        parts: Vec<FetchPartition>,
        min_bytes: usize,
        left: Duration,
        waiter: &Rc<Waiter>,
    ) -> (usize, (usize, u64)) {
        let id = self.0.next_reply.get();
        self.0.next_reply.set(id + 1);
        let key = (self.shard(), id);
        let _ = min_bytes;
        let call = self.call(shard, move |engine: Engine| {
            let there = Rc::new(Waiter::default());
            engine.watched().insert(key, there.clone());
            engine.0.store.watch(&parts, &there);
            async move {
                let changed = std::future::poll_fn(|cx| match there.poll(cx.waker()) {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                });
                let slept = engine.0.io.sleep(left);
                futures_util::pin_mut!(changed, slept);
                futures_util::future::select(changed, slept).await;
                engine.watched().remove(&key);
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
        if let Some(waiter) = self.watched().remove(&key) {
            waiter.notify();
        }
    }

    fn watched(&self) -> std::cell::RefMut<'_, std::collections::HashMap<(usize, u64), Rc<Waiter>>> {
        self.0.watched.borrow_mut()
    }
}

fn plain(parts: &Parts) -> Vec<FetchPartition> {
    parts.iter().map(|(_, part)| *part).collect()
}

/// An answer on its way to another shard: memory of one shard is copied once, files are read by the kernel from
/// whichever shard sends them.
struct Crossing {
    answer: Result<(i64, i64), LogError>,
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
            Ok(fetched) => {
                let pieces = fetched.records.chunks.iter().map(Piece::of).collect::<std::io::Result<Vec<_>>>();
                match pieces {
                    Ok(pieces) => Self { answer: Ok((fetched.high_watermark, fetched.log_start_offset)), pieces },
                    Err(error) => Self { answer: Err(LogError::Storage(error.to_string())), pieces: Vec::new() },
                }
            }
        }
    }

    fn unpack(self) -> FetchAnswer {
        let (high_watermark, log_start_offset) = self.answer?;
        let chunks = self.pieces.into_iter().map(Piece::chunk).collect();
        Ok(Fetched { high_watermark, log_start_offset, records: Records { chunks } })
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
