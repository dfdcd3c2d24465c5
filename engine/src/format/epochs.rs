//! The leader epochs of a partition's log, and where each began. Pure.
//!
//! What always holds: epochs and start offsets ascend, epochs strictly. Two may start at one offset: the first of them has
//! no batch, and is known all the same, because a leader answers for it where a follower's log has to end (KIP-101,
//! KIP-279).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I32, I64, U32},
};

/// A leader epoch began, as the manifest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EpochStart {
    /// Which.
    pub epoch: I32,
    /// Zero.
    pub reserved: U32,
    /// The end of the log when it began.
    pub start_offset: I64,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderEpochs(Vec<EpochStart>);

impl LeaderEpochs {
    /// Those of a manifest; `None` if they are not in order.
    pub(super) fn of(starts: Vec<EpochStart>) -> Option<Self> {
        let in_order = |pair: &[EpochStart]| {
            pair[0].epoch.get() < pair[1].epoch.get() && pair[0].start_offset.get() <= pair[1].start_offset.get()
        };
        let is_right = starts.iter().all(|start| start.epoch.get() >= 0 && start.start_offset.get() >= 0);
        (is_right && starts.windows(2).all(in_order)).then_some(Self(starts))
    }

    /// Oldest first.
    pub fn starts(&self) -> &[EpochStart] {
        &self.0
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest one.
    pub fn newest(&self) -> Option<&EpochStart> {
        self.0.last()
    }

    /// Where an epoch ends in a log that ends at `log_end`: the largest epoch that is not newer than the one asked for, and
    /// where the next one begins (KIP-279). Of one that is older than all that are known, where the first of them begins.
    /// `None` for one that is newer than all.
    pub(crate) fn end_of(&self, epoch: i32, log_end: i64) -> Option<(i32, i64)> {
        let newer = self.0.partition_point(|start| start.epoch.get() <= epoch);
        let floor = newer.checked_sub(1).map(|at| self.0[at].epoch.get());
        match self.0.get(newer) {
            Some(next) => Some((floor.unwrap_or(epoch), next.start_offset.get())),
            None => floor.filter(|floor| *floor == epoch).map(|floor| (floor, log_end)),
        }
    }

    /// The epoch of what is at an offset; none of what lies before all that are known.
    pub(crate) fn of_offset(&self, offset: i64) -> Option<i32> {
        let begun = self.0.partition_point(|start| start.start_offset.get() <= offset);
        begun.checked_sub(1).map(|at| self.0[at].epoch.get())
    }

    /// An epoch is in use from an offset on; `true` if it is newer than all that were known.
    pub(crate) fn note(&mut self, epoch: i32, start_offset: i64) -> bool {
        let is_new = self.0.last().is_none_or(|last| last.epoch.get() < epoch);
        if is_new {
            self.0.push(EpochStart { epoch: epoch.into(), reserved: 0.into(), start_offset: start_offset.into() });
        }
        is_new
    }

    /// The end of the log was cut off: it ends at an offset now.
    pub(crate) fn cut(&mut self, end_offset: i64) {
        self.0.retain(|start| start.start_offset.get() < end_offset);
    }

    /// The log turned out to end at an offset: what began behind it never was.
    pub(crate) fn end_at(&mut self, end_offset: i64) {
        self.0.retain(|start| start.start_offset.get() <= end_offset);
    }

    /// The log lost its head: epochs that began before its start begin there, but for those that have nothing left.
    pub(crate) fn trim(&mut self, log_start: i64) {
        let before = self.0.partition_point(|start| start.start_offset.get() <= log_start);
        if let Some(last) = before.checked_sub(1) {
            self.0.drain(..last);
            self.0[0].start_offset = log_start.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(starts: &[(i32, i64)]) -> LeaderEpochs {
        let mut epochs = LeaderEpochs::default();
        starts.iter().for_each(|(epoch, start)| assert!(epochs.note(*epoch, *start)));
        epochs
    }

    #[test]
    fn only_newer_epochs_are_noted() {
        let mut epochs = of(&[(0, 0), (2, 10), (3, 10)]);
        for known in [0, 1, 2, 3] {
            assert!(!epochs.note(known, 20));
        }
        assert_eq!(epochs, of(&[(0, 0), (2, 10), (3, 10)]));
    }

    #[test]
    fn a_cut_takes_epochs_that_begin_at_it_and_the_end_of_a_log_does_not() {
        let all = of(&[(0, 0), (2, 10), (3, 10), (4, 20)]);
        for (offset, cut, end) in [(0, 0, 1), (5, 1, 1), (10, 1, 3), (11, 3, 3), (20, 3, 4), (30, 4, 4)] {
            let [mut of_cut, mut of_end] = [all.clone(), all.clone()];
            of_cut.cut(offset);
            of_end.end_at(offset);
            assert_eq!((of_cut.starts().len(), of_end.starts().len()), (cut, end), "at {offset}");
        }
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_begins() {
        let epochs = of(&[(2, 5), (4, 10), (5, 10), (7, 20)]);
        let asked = [0, 2, 3, 4, 5, 6, 7, 8].map(|epoch| epochs.end_of(epoch, 30));
        let found = [(0, 5), (2, 10), (2, 10), (4, 10), (5, 20), (5, 20), (7, 30)].map(Some);
        assert_eq!(asked[..7], found, "and the newest where the log ends");
        assert_eq!(asked[7], None, "of a newer one nothing is known");
        assert_eq!(of(&[]).end_of(0, 30), None);
    }

    #[test]
    fn the_epoch_at_the_log_start_begins_there() {
        for (log_start, left) in [
            (0, vec![(1, 0), (2, 10), (3, 10), (4, 20)]),
            (9, vec![(1, 9), (2, 10), (3, 10), (4, 20)]),
            (10, vec![(3, 10), (4, 20)]),
            (15, vec![(3, 15), (4, 20)]),
            (90, vec![(4, 90)]),
        ] {
            let mut epochs = of(&[(1, 0), (2, 10), (3, 10), (4, 20)]);
            epochs.trim(log_start);
            assert_eq!(epochs, of(&left), "from {log_start}");
        }
        let mut later = of(&[(1, 5)]);
        later.trim(3);
        assert_eq!(later, of(&[(1, 5)]));
    }

    #[test]
    fn epochs_of_a_manifest_are_in_order() {
        let starts = |starts: &[(i32, i64)]| {
            let start = |(epoch, start): &(i32, i64)| EpochStart {
                epoch: (*epoch).into(),
                reserved: 0.into(),
                start_offset: (*start).into(),
            };
            LeaderEpochs::of(starts.iter().map(start).collect())
        };
        assert_eq!(starts(&[(0, 0), (2, 10), (3, 10)]), Some(of(&[(0, 0), (2, 10), (3, 10)])));
        for wrong in [&[(0, 0), (0, 10)][..], &[(1, 10), (2, 9)], &[(-1, 0)], &[(0, -1)]] {
            assert_eq!(starts(wrong), None, "{wrong:?}");
        }
    }
}
