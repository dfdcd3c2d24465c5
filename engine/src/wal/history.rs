//! What has happened to the end of a partition's log: its leader epochs, and how often it was cut off. Pure.
//!
//! Segments may lag behind: cuts that lie above what segments hold are in the shared log, and count there only once
//! segments reach them. What always holds: such cuts ascend, by number and by offset.

use crate::{
    api::LEADER_EPOCH,
    format::{
        epochs::LeaderEpochs,
        manifest::PartitionState,
        wal::{CUTS_MAX, Era},
    },
};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    epochs: LeaderEpochs,
    /// That of what is written now.
    leader_epoch: i32,
    /// Whether the manifest lacks some of them.
    is_unnoted: bool,
    /// Cuts that lie in segments or below.
    cuts: u32,
    /// Cuts above: their numbers, and where the log ended.
    tail_cuts: Vec<(u32, i64)>,
    /// Consumers saw everything below before the last start.
    shown: i64,
}

impl History {
    /// As the manifest knows it. Version 1 knew no epochs: records without any are of the first one.
    pub(crate) fn restore(state: &PartitionState) -> Self {
        let mut epochs = state.epochs.clone();
        if epochs.is_empty() && state.end_offset() > state.log_start_offset {
            epochs.note(LEADER_EPOCH, state.log_start_offset);
        }
        Self { epochs, cuts: state.cuts, shown: state.high_watermark, ..Self::default() }
    }

    /// What is written now.
    pub(crate) fn era(&self) -> Era {
        let cuts = self.tail_cuts.last().map_or(self.cuts, |(number, _)| *number);
        Era { leader_epoch: self.leader_epoch, cuts }
    }

    /// The number of the next cut, if there can be one.
    pub(crate) fn next_cut(&self) -> Option<u32> {
        Some(self.era().cuts + 1).filter(|next| *next <= CUTS_MAX)
    }

    /// Cuts that segments tell of.
    pub(crate) fn cuts(&self) -> u32 {
        self.cuts
    }

    /// The leader epochs.
    pub(crate) fn epochs(&self) -> &LeaderEpochs {
        &self.epochs
    }

    /// Consumers saw everything below before the last start.
    pub(crate) fn shown(&self) -> i64 {
        self.shown
    }

    /// What is written from an offset on is of that epoch. Whether that is another one than before.
    pub(crate) fn enter_epoch(&mut self, epoch: i32, start_offset: i64) -> bool {
        self.note_epoch(epoch, start_offset);
        std::mem::replace(&mut self.leader_epoch, epoch) != epoch
    }

    /// Something is in an epoch from an offset on.
    pub(crate) fn note_epoch(&mut self, epoch: i32, start_offset: i64) {
        self.is_unnoted |= self.epochs.note(epoch, start_offset);
    }

    /// Segments hold everything below.
    pub(crate) fn materialised(&mut self, end_offset: i64) {
        let reached = self.tail_cuts.partition_point(|(_, cut)| *cut <= end_offset);
        self.cuts = self.tail_cuts.drain(..reached).next_back().map_or(self.cuts, |(number, _)| number);
    }

    /// The log ends at `end_offset` now, by the next cut; segments hold everything below `materialised` after it.
    pub(crate) fn cut(&mut self, end_offset: i64, materialised: i64) {
        let number = self.era().cuts + 1;
        self.is_unnoted = true;
        self.epochs.cut(end_offset);
        self.shown = self.shown.min(end_offset);
        self.tail_cuts.retain(|(_, cut)| *cut < end_offset);
        self.tail_cuts.push((number, end_offset));
        self.materialised(materialised);
    }

    /// The log is empty, and starts at an offset, by the next cut.
    pub(crate) fn begin_anew(&mut self, log_start: i64) {
        let cuts = self.era().cuts + 1;
        let leader_epoch = self.leader_epoch;
        *self = Self { cuts, leader_epoch, is_unnoted: true, shown: log_start, ..Self::default() };
    }

    /// A start found that the log ends there.
    pub(crate) fn end_at(&mut self, end_offset: i64) {
        self.epochs.end_at(end_offset);
        self.shown = self.shown.min(end_offset);
    }

    /// The log lost its head.
    pub(crate) fn trim(&mut self, log_start: i64) {
        self.epochs.trim(log_start);
    }

    /// The epochs, if the manifest does not know all of them. Answer with [`History::put_back`] if it was not told.
    pub(crate) fn take_unnoted(&mut self) -> Option<LeaderEpochs> {
        std::mem::take(&mut self.is_unnoted).then(|| self.epochs.clone())
    }

    /// The manifest may not know the epochs after all.
    pub(crate) fn put_back(&mut self) {
        self.is_unnoted = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_count_once_segments_reach_them() {
        let mut history = History::default();
        history.cut(30, 10);
        history.cut(40, 10);
        assert_eq!((history.cuts(), history.era().cuts), (0, 2));
        history.materialised(29);
        assert_eq!(history.cuts(), 0);
        history.materialised(35);
        assert_eq!((history.cuts(), history.era().cuts), (1, 2));
        history.cut(38, 35); // the cut at 40 is of what is gone
        history.materialised(38);
        assert_eq!((history.cuts(), history.era().cuts), (3, 3));
        history.cut(20, 20);
        assert_eq!((history.cuts(), history.era().cuts), (4, 4));
        history.cut(50, 20);
        history.begin_anew(100);
        assert_eq!((history.cuts(), history.era().cuts), (6, 6));
    }
}
