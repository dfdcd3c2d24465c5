//! What a partition does as a leader with followers and as a follower: beginning an epoch, taking batches as they are.

use bytes::Bytes;

use super::{
    Partition,
    replication::{Replication, Role},
};
use crate::{
    api::{LEADER_EPOCH, LogError, ReadBound},
    batch::{BATCH_BYTES_MAX, BatchError, BatchInfo, verify_crc},
    format::manifest::logged_producer_batch,
    replica_api::{EpochEnd, Leadership, ReplicaPosition},
    wal::{WalFileId, group::GROUP_BYTES_TARGET},
};

/// Batches of one leader epoch, as a leader sent them.
pub(crate) struct Piece {
    /// Where the log ends before them.
    pub(crate) base_offset: i64,
    /// One past the last offset.
    pub(crate) end_offset: i64,
    pub(crate) leader_epoch: i32,
    /// Whether a part of it is of a transaction, or ends one.
    pub(crate) is_transactional: bool,
    pub(crate) bytes: Bytes,
}

impl Partition {
    /// Whether it is led or followed here.
    pub(crate) fn replication(&self) -> &Replication {
        &self.replication
    }

    /// The same, to be changed where the marks have no part in it.
    pub(crate) fn replication_mut(&mut self) -> &mut Replication {
        &mut self.replication
    }

    /// How far it is.
    pub(crate) fn position(&self) -> ReplicaPosition {
        let newest = self.history.epochs().newest();
        ReplicaPosition {
            log_start: self.marks.log_start(),
            high_watermark: self.end_for(ReadBound::HighWatermark),
            written: self.marks.written(),
            durable: self.marks.durable(),
            kept: self.marks.kept(),
            sealed: self.sealed_end(),
            end: self.marks.end(),
            last_epoch: newest.map_or(-1, |newest| newest.epoch.get()),
            epoch_start: newest.map_or(0, |newest| newest.start_offset.get()),
        }
    }

    /// About how many bytes of batches are at or behind an offset, without what is in the open group: of a segment or a run that
    /// it lies in, as many as its share of the offsets.
    pub(crate) fn bytes_from(&self, offset: i64) -> u64 {
        let segments = self.segments.from(offset);
        let segments = segments.iter().map(|segment| (segment.base_offset, segment.end_offset, segment.size));
        let tail = self.tail.from(self.marks.materialised());
        let tail = tail.map(|extent| (extent.base_offset, extent.end_offset, u64::from(extent.len)));
        segments.chain(tail).map(|(base, end, bytes)| share(bytes, (end - offset).min(end - base), end - base)).sum()
    }

    /// Groups that were sealed hold everything below.
    pub(crate) fn sealed_end(&self) -> i64 {
        let tail = self.tail.extents().next_back().map_or(0, |last| last.end_offset);
        tail.max(self.marks.materialised())
    }

    /// Where a leader epoch ends.
    pub(crate) fn end_of_epoch(&self, epoch: i32) -> EpochEnd {
        let found = self.history.epochs().end_of(epoch, self.marks.end());
        let (epoch, end_offset) = found.unwrap_or((-1, -1));
        EpochEnd { epoch, end_offset }
    }

    /// The leader epoch of what is at an offset; -1 if that is not known.
    pub(crate) fn epoch_at(&self, offset: i64) -> i32 {
        let unknown = if self.replication.is_replicated() { -1 } else { LEADER_EPOCH };
        self.history.epochs().of_offset(offset).unwrap_or(unknown)
    }

    /// Checks who wants to read, and believes in that epoch.
    pub(crate) fn check_reader(&self, leader_epoch: i32) -> Result<(), LogError> {
        self.replication.check_epoch(leader_epoch)?;
        match self.replication.role() {
            Role::Undecided | Role::Clearing => Err(LogError::NotLeader),
            _ => Ok(()),
        }
    }

    /// Checks who asks the leader something, and believes in that epoch.
    pub(crate) fn check_asker(&self, leader_epoch: i32) -> Result<(), LogError> {
        self.replication.check_epoch(leader_epoch)?;
        self.replication.check_leading()
    }

    /// Whether consumers may have seen more, from the leader before, than this one knows that they may.
    pub(crate) fn is_behind_its_epoch(&self) -> bool {
        let newest = self.history.epochs().newest().filter(|newest| newest.epoch.get() == self.replication.epoch());
        let start = newest.map_or(0, |newest| newest.start_offset.get());
        self.replication.is_replicated() && self.marks.high_watermark() < start
    }

    /// Is neither led nor followed from here on, in that epoch. Coordinators have to be asked anew about every transaction, also
    /// by who leads it next.
    pub(crate) fn enter_epoch(&mut self, epoch: i32) -> Result<(), LogError> {
        self.replication.tell(self.marks.high_watermark());
        self.replication.enter(epoch)?;
        // Whom a coordinator let in it let in at this leader: the next one does not know.
        self.transactions.withdraw_all();
        self.producers.doubt_all();
        // they are told that it is not led here, and not when their time is over
        self.waiters.wake();
        self.stable_waiters.wake();
        Ok(())
    }

    /// Whether nothing is here of a partition, no epoch either, nor about to be removed.
    pub(crate) fn is_clear(&self) -> bool {
        let is_empty = (self.marks.log_start(), self.marks.end()) == (0, 0);
        is_empty && self.history.epochs().newest().is_none() && !self.replication.is_cutting()
    }

    /// Where the current epoch begins, if that was not known before.
    pub(crate) fn begin_epoch(&mut self) -> Option<i64> {
        let (epoch, end) = (self.replication.epoch(), self.marks.end());
        let is_known = self.history.epochs().newest().is_some_and(|newest| newest.epoch.get() >= epoch);
        self.history.enter_epoch(epoch, end);
        (!is_known).then_some(end)
    }

    /// Is led here, in the current epoch.
    pub(crate) fn lead(&mut self, leadership: Leadership) {
        self.replication.tell(self.marks.high_watermark());
        self.replication.lead(leadership);
        self.follow_kept();
    }

    /// The high watermark is that at least.
    pub(crate) fn tell_high_watermark(&mut self, high_watermark: i64) -> i64 {
        self.replication.tell(high_watermark);
        self.follow_kept();
        self.marks.high_watermark()
    }

    /// A file of the shared log says that an epoch began: it is needed until the manifest does.
    pub(crate) fn pin_epoch(&mut self, file: WalFileId) {
        self.history.put_back();
        self.unnoted.get_or_insert_default().pin(file);
    }

    /// Looks at what a leader of that epoch sent, without taking any of it.
    pub(crate) fn check_pieces(&self, epoch: i32, base_offset: i64, batches: &Bytes) -> Result<Vec<Piece>, LogError> {
        self.replication.check_follower(epoch)?;
        let expected = self.marks.end();
        if base_offset != expected {
            return Err(LogError::UnexpectedOffset { expected, found: base_offset });
        }
        let newest = self.history.epochs().newest().map_or(0, |newest| newest.epoch.get());
        pieces(base_offset, newest..=epoch, batches)
    }

    /// Takes one of the pieces: its offsets are given away.
    pub(crate) fn place_piece(&mut self, piece: &Piece, now_ms: i64) {
        self.marks.assign(piece.end_offset);
        self.history.enter_epoch(piece.leader_epoch, piece.base_offset);
        for (info, batch) in crate::batch::batches(&piece.bytes).flatten() {
            self.note_logged(&info, batch, now_ms);
        }
    }

    /// Takes note of a batch that somebody else has checked.
    fn note_logged(&mut self, info: &BatchInfo, batch: &[u8], now_ms: i64) {
        if let Some(batch) = logged_producer_batch(info, batch) {
            self.note_batch(batch, now_ms);
        }
    }
}

/// So many of `bytes` as `part` is of `whole`.
fn share(bytes: u64, part: i64, whole: i64) -> u64 {
    let (part, whole) = (u128::try_from(part).unwrap_or(0), u128::try_from(whole).unwrap_or(0).max(1));
    u64::try_from(u128::from(bytes) * part.min(whole) / whole).unwrap_or(bytes)
}

/// Takes batches apart, where their epoch changes and where a group would grow too large. They must be whole, in order and
/// of epochs that do not go back.
fn pieces(mut base_offset: i64, epochs: std::ops::RangeInclusive<i32>, bytes: &Bytes) -> Result<Vec<Piece>, LogError> {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut at, mut oldest) = (0, *epochs.start());
    while at < bytes.len() {
        let info = BatchInfo::parse(&bytes[at..])?;
        let batch = &bytes[at..at + info.size];
        if !verify_crc(batch) {
            return Err(BatchError::Corrupt("the checksum is wrong".into()).into());
        }
        check_sent(&info, base_offset, oldest..=*epochs.end())?;
        (oldest, at) = (info.leader_epoch, at + info.size);
        let end_offset = info.last_offset() + 1;
        match pieces.last_mut() {
            Some(last) if last.leader_epoch == oldest && last.bytes.len() + info.size <= GROUP_BYTES_TARGET => {
                last.end_offset = end_offset;
                last.is_transactional |= info.is_transactional();
                last.bytes = bytes.slice(at - info.size - last.bytes.len()..at);
            }
            _ => pieces.push(Piece {
                base_offset,
                end_offset,
                leader_epoch: oldest,
                is_transactional: info.is_transactional(),
                bytes: bytes.slice(at - info.size..at),
            }),
        }
        base_offset = end_offset;
    }
    match pieces.is_empty() {
        true => Err(BatchError::Invalid("there is no batch".into()).into()),
        false => Ok(pieces),
    }
}

fn check_sent(info: &BatchInfo, end: i64, epochs: std::ops::RangeInclusive<i32>) -> Result<(), LogError> {
    if info.base_offset < end {
        return Err(LogError::UnexpectedOffset { expected: end, found: info.base_offset });
    }
    if !epochs.contains(&info.leader_epoch) {
        let text = format!("a batch is of leader epoch {}, which is not in {epochs:?}", info.leader_epoch);
        return Err(BatchError::Invalid(text).into());
    }
    if info.size > BATCH_BYTES_MAX {
        return Err(BatchError::TooLarge { size: info.size, max: BATCH_BYTES_MAX }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch, partition::tests};

    /// A batch of records of a leader epoch.
    fn sent(offset: i64, records: i64, leader_epoch: i32) -> Vec<u8> {
        let mut bytes = tests::batch(offset, records, 10);
        batch::assign(&mut bytes, offset, leader_epoch, None);
        bytes
    }

    fn follower(epoch: i32) -> Partition {
        let mut partition = tests::partition(&[]);
        partition.enter_epoch(epoch).unwrap();
        partition.replication_mut().follow();
        partition
    }

    fn append(partition: &mut Partition, epoch: i32, base: i64, batches: &[Vec<u8>]) -> Result<usize, LogError> {
        let pieces = partition.check_pieces(epoch, base, &batches.concat().into())?;
        pieces.iter().for_each(|piece| partition.place_piece(piece, 1));
        Ok(pieces.len())
    }

    #[test]
    fn a_follower_takes_batches_at_its_end_and_nowhere_else() {
        let mut partition = follower(4);
        assert_eq!(append(&mut partition, 4, 0, &[sent(0, 2, 4), sent(2, 1, 4)]), Ok(1));
        assert_eq!(partition.marks().end(), 3);
        for base in [2, 4] {
            let refused = append(&mut partition, 4, base, &[sent(base, 1, 4)]);
            assert_eq!(refused, Err(LogError::UnexpectedOffset { expected: 3, found: base }));
        }
        assert_eq!(append(&mut partition, 3, 3, &[sent(3, 1, 3)]), Err(LogError::FencedLeaderEpoch));
        assert_eq!(append(&mut partition, 5, 3, &[sent(3, 1, 5)]), Err(LogError::UnknownLeaderEpoch));
        assert_eq!(append(&mut partition, 4, 3, &[sent(5, 2, 4)]), Ok(1), "the leader's log was compacted");
        assert_eq!(partition.marks().end(), 7);
    }

    #[test]
    fn batches_of_different_epochs_are_taken_apart_and_noted() {
        let mut partition = follower(9);
        assert_eq!(append(&mut partition, 9, 0, &[sent(0, 2, 3), sent(2, 1, 3), sent(3, 1, 8)]), Ok(2));
        let known: Vec<_> =
            partition.history.epochs().starts().iter().map(|s| (s.epoch.get(), s.start_offset.get())).collect();
        assert_eq!(known, [(3, 0), (8, 3)]);
        let back = append(&mut partition, 9, 4, &[sent(4, 1, 7)]);
        assert!(matches!(back, Err(LogError::Batch(BatchError::Invalid(_)))), "epochs never go back");
        let ahead = append(&mut partition, 9, 4, &[sent(4, 1, 10)]);
        assert!(matches!(ahead, Err(LogError::Batch(BatchError::Invalid(_)))));
        assert_eq!(partition.marks().end(), 4, "who is refused changes nothing");
    }

    #[test]
    fn bytes_behind_an_offset_are_those_of_segments_and_runs() {
        let mut partition = tests::partition(&[]);
        for base in [0, 10] {
            tests::push(&mut partition, &[sent(base, 10, 0)]);
        }
        let all = partition.bytes();
        assert_eq!([-5, 0, 10, 20, 30].map(|offset| partition.bytes_from(offset)), [all, all, all / 2, 0, 0]);
        assert_eq!(partition.bytes_from(15), all / 4);
    }

    #[test]
    fn damaged_and_cut_off_batches_are_refused_whole() {
        let mut partition = follower(1);
        let mut damaged = sent(2, 1, 1);
        *damaged.last_mut().expect("bytes") ^= 1;
        assert!(append(&mut partition, 1, 0, &[sent(0, 2, 1), damaged]).is_err());
        let mut cut_off = sent(2, 1, 1);
        cut_off.pop();
        assert!(append(&mut partition, 1, 0, &[sent(0, 2, 1), cut_off]).is_err());
        assert!(append(&mut partition, 1, 0, &[]).is_err());
        assert_eq!(partition.marks().end(), 0);
    }

    #[test]
    fn a_leader_notes_its_epoch_once() {
        let mut partition = follower(2);
        append(&mut partition, 2, 0, &[sent(0, 3, 2)]).unwrap();
        partition.enter_epoch(5).unwrap();
        assert_eq!(partition.begin_epoch(), Some(3));
        assert_eq!(partition.begin_epoch(), None);
        assert_eq!(partition.end_of_epoch(2), EpochEnd { epoch: 2, end_offset: 3 });
        assert_eq!(partition.end_of_epoch(4), EpochEnd { epoch: 2, end_offset: 3 });
        assert_eq!(partition.end_of_epoch(5), EpochEnd { epoch: 5, end_offset: 3 });
        assert_eq!(partition.end_of_epoch(6), EpochEnd { epoch: -1, end_offset: -1 });
        assert_eq!([-1, 0, 2, 3, 9].map(|offset| partition.epoch_at(offset)), [-1, 2, 2, 5, 5]);
        assert!(partition.is_behind_its_epoch(), "consumers may have seen all of it");
        partition.lead(Leadership::Replicated { replicas: 2, in_sync: 2 });
        partition.on_durable(3);
        assert_eq!(partition.marks().high_watermark(), 0);
        assert_eq!(partition.tell_high_watermark(2), 2);
        partition.lead(Leadership::Alone);
        assert_eq!(partition.marks().high_watermark(), 3);
    }
}
