//! Chunks on their way to one follower's shard: being read, or sent and not confirmed yet.
//!
//! Each has its own age. One that gets on counts for all who share the disks; one that is old keeps nobody from anything, as who
//! waits for it waits for something else than a disk that is busy.

use std::collections::{BTreeMap, VecDeque};

use millrace_engine::api::TopicPartition;

/// Others wait no longer for a chunk.
const YOUNG_MS_MAX: u64 = 1_000;

/// One chunk that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Names it.
    number: u64,
    attachment: u32,
    /// Where the follower's log ends with it.
    end: i64,
    bytes: u64,
}

/// One that is being read.
#[derive(Clone, Copy, Debug)]
struct Read {
    began_ms: u64,
    bytes: u64,
    /// Of these, what the pace had for them.
    earned_bytes: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    /// By attempt: one read is under way for each at most, and the attempts of one process have numbers of their own.
    reads: BTreeMap<u32, Read>,
    /// By partition, in the order in which they were sent.
    sent: BTreeMap<TopicPartition, VecDeque<Sent>>,
    sent_bytes: u64,
    /// Of those that are young: number, and when it was sent. In order.
    young: VecDeque<(u64, u64)>,
    /// Bytes by number of those that are young and not confirmed.
    young_bytes_of: BTreeMap<u64, u64>,
    young_bytes: u64,
    last: u64,
}

impl Copies {
    /// A read of so many bytes at most begins; so many of them were earned.
    pub(crate) fn begin_read(&mut self, now_ms: u64, attachment: u32, bytes: usize, earned_bytes: u64) {
        self.reads.insert(attachment, Read { began_ms: now_ms, bytes: bytes as u64, earned_bytes });
    }

    /// A read ended. How many of its bytes were earned.
    pub(crate) fn end_read(&mut self, attachment: u32) -> Option<u64> {
        self.reads.remove(&attachment).map(|read| read.earned_bytes)
    }

    /// A chunk was sent.
    pub(crate) fn send(&mut self, now_ms: u64, partition: TopicPartition, attachment: u32, end: i64, bytes: u64) {
        self.last += 1;
        let number = self.last;
        self.sent.entry(partition).or_default().push_back(Sent { number, attachment, end, bytes });
        self.sent_bytes += bytes;
        self.young.push_back((number, now_ms));
        self.young_bytes_of.insert(number, bytes);
        self.young_bytes += bytes;
    }

    /// A follower has its log up to there. Whether chunks were on their way that have arrived.
    pub(crate) fn confirm(&mut self, partition: TopicPartition, attachment: u32, confirmed: i64) -> bool {
        let Some(mut sent) = self.sent.remove(&partition) else { return false };
        let before = sent.len();
        while let Some(first) = sent.front().copied() {
            if first.attachment == attachment && first.end > confirmed {
                break;
            }
            sent.pop_front();
            self.is_gone(&first);
        }
        let has_ended = sent.len() < before;
        if !sent.is_empty() {
            self.sent.insert(partition, sent);
        }
        has_ended
    }

    /// Partitions of which chunks were sent that are not confirmed.
    pub(crate) fn unconfirmed(&self) -> Vec<TopicPartition> {
        self.sent.keys().copied().collect()
    }

    /// A partition's chunks are not waited for any more. Whether there were any.
    pub(crate) fn forget(&mut self, partition: TopicPartition) -> bool {
        let sent = self.sent.remove(&partition).unwrap_or_default();
        sent.iter().for_each(|it| self.is_gone(it));
        !sent.is_empty()
    }

    fn is_gone(&mut self, sent: &Sent) {
        self.sent_bytes -= sent.bytes;
        if let Some(bytes) = self.young_bytes_of.remove(&sent.number) {
            self.young_bytes -= bytes;
        }
    }

    /// Bytes that are on their way.
    pub(crate) fn bytes(&self) -> u64 {
        self.sent_bytes + self.reading_bytes()
    }

    /// Bytes at most that are being read.
    pub(crate) fn reading_bytes(&self) -> u64 {
        self.reads.values().map(|read| read.bytes).sum()
    }

    /// Bytes of those on their way that others wait for.
    pub(crate) fn young_bytes(&mut self, now_ms: u64) -> u64 {
        let is_old = |since_ms: u64| now_ms.saturating_sub(since_ms) >= YOUNG_MS_MAX;
        while let Some((number, _)) = self.young.front().copied().filter(|(_, sent_ms)| is_old(*sent_ms)) {
            self.young.pop_front();
            if let Some(bytes) = self.young_bytes_of.remove(&number) {
                self.young_bytes -= bytes;
            }
        }
        let reads = self.reads.values().filter(|read| !is_old(read.began_ms));
        self.young_bytes + reads.map(|read| read.bytes).sum::<u64>()
    }

    /// When the next of those that are young is old, as far as nothing arrives before; none if none will be.
    pub(crate) fn next_old_ms(&self, now_ms: u64) -> Option<u64> {
        let sent = self.young.iter().find(|(number, _)| self.young_bytes_of.contains_key(number));
        let reads = self.reads.values().map(|read| read.began_ms);
        let all = sent.map(|(_, sent_ms)| *sent_ms).into_iter().chain(reads);
        all.map(|since_ms| since_ms + YOUNG_MS_MAX).filter(|old_ms| *old_ms > now_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read that lasts was waited for again and again, at once.
    #[test]
    fn what_is_old_is_not_waited_for() {
        let mut copies = Copies::default();
        copies.begin_read(100, 1, 10, 0);
        assert_eq!((copies.young_bytes(200), copies.next_old_ms(200)), (10, Some(100 + YOUNG_MS_MAX)));
        copies.begin_read(600, 2, 5, 0);
        assert_eq!((copies.young_bytes(1_100), copies.next_old_ms(1_100)), (5, Some(600 + YOUNG_MS_MAX)));
        assert_eq!((copies.young_bytes(1_600), copies.next_old_ms(1_600)), (0, None));
        assert_eq!(copies.bytes(), 15);
    }
}
