//! Where the partitions of a topic are: on which nodes, and in which epoch their leader is. Pure.
//!
//! Kept as runs of consecutive partitions with the same placement: most topics have one, whatever their size. What
//! always holds: runs are not empty, and neighbours differ.

/// Consecutive partitions that are placed alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedRun {
    /// How many.
    pub partitions: u32,
    /// The epoch of their leader.
    pub leader_epoch: i32,
    /// Ids of the nodes that have them, the preferred leader first.
    pub replicas: Vec<i32>,
}

/// The placement of all partitions of a topic, from the first one on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement(Vec<PlacedRun>);

impl Placement {
    /// That many partitions on one node alone, in the first epoch.
    pub fn alone(node_id: i32, partitions: u32) -> Self {
        let mut placement = Self::default();
        placement.push(PlacedRun { partitions, leader_epoch: 0, replicas: vec![node_id] });
        placement
    }

    /// Partitions on one node alone, each led in one of these epochs.
    pub fn led_alone(node_id: i32, leader_epochs: impl IntoIterator<Item = i32>) -> Self {
        let run = |leader_epoch| PlacedRun { partitions: 1, leader_epoch, replicas: vec![node_id] };
        Self::of(leader_epochs.into_iter().map(run))
    }

    /// These runs, one behind the other; neighbours that are alike become one.
    pub fn of(runs: impl IntoIterator<Item = PlacedRun>) -> Self {
        let mut placement = Self::default();
        runs.into_iter().for_each(|run| placement.push(run));
        placement
    }

    /// In order.
    pub fn runs(&self) -> &[PlacedRun] {
        &self.0
    }

    /// Number of partitions that it places.
    pub fn partitions(&self) -> u32 {
        self.0.iter().map(|run| run.partitions).fold(0, u32::saturating_add)
    }

    /// Whether all partitions are on that node alone, in the first epoch.
    pub fn is_alone(&self, node_id: i32) -> bool {
        self.0.iter().all(|run| run.leader_epoch == 0 && run.replicas == [node_id])
    }

    /// The epoch of a partition's leader; the first one of a partition that has no placement.
    pub fn leader_epoch(&self, partition: u32) -> i32 {
        let mut end = 0u32;
        let run = self.0.iter().find(|run| {
            end = end.saturating_add(run.partitions);
            partition < end
        });
        run.map_or(0, |run| run.leader_epoch)
    }

    /// The partitions that a cluster led before, and in which epoch.
    pub(crate) fn led_before(&self) -> impl Iterator<Item = (u32, i32)> {
        let mut at = 0u32;
        self.0.iter().flat_map(move |run| {
            let first = at;
            at = at.saturating_add(run.partitions);
            (first..at).map(|partition| (partition, run.leader_epoch)).filter(|(_, epoch)| *epoch != 0)
        })
    }

    /// The partitions that are on a node, and whether others have them too or led them.
    pub(crate) fn on(&self, node_id: i32) -> impl Iterator<Item = (u32, bool)> {
        let mut at = 0u32;
        self.0.iter().flat_map(move |run| {
            let first = at;
            at = at.saturating_add(run.partitions);
            let here = run.replicas.contains(&node_id);
            let is_replicated = run.leader_epoch != 0 || run.replicas != [node_id];
            (first..at).filter(move |_| here).map(move |partition| (partition, is_replicated))
        })
    }

    /// Places the partitions from `first` on anew, as far as `runs` go. Those before that have no placement yet are given
    /// that of a node alone.
    pub(super) fn place(&mut self, first: u32, runs: &[PlacedRun], node_id: i32) {
        self.extend_alone(node_id, first);
        let before = std::mem::take(self);
        let end = runs.iter().map(|run| run.partitions).fold(first, u32::saturating_add);
        before.between(0, first).for_each(|run| self.push(run));
        runs.iter().for_each(|run| self.push(run.clone()));
        before.between(end, u32::MAX).for_each(|run| self.push(run));
    }

    /// Places partitions on a node alone, where that many have no placement yet.
    pub(super) fn extend_alone(&mut self, node_id: i32, partitions: u32) {
        let more = partitions.saturating_sub(self.partitions());
        self.push(PlacedRun { partitions: more, leader_epoch: 0, replicas: vec![node_id] });
    }

    /// The runs of partitions in a range.
    fn between(&self, from: u32, to: u32) -> impl Iterator<Item = PlacedRun> {
        let mut at = 0u32;
        self.0.iter().map(move |run| {
            let (begin, end) = (at, at.saturating_add(run.partitions));
            at = end;
            PlacedRun { partitions: end.min(to).saturating_sub(begin.max(from)), ..run.clone() }
        })
    }

    fn push(&mut self, run: PlacedRun) {
        match self.0.last_mut() {
            _ if run.partitions == 0 => {}
            Some(last) if (last.leader_epoch, &last.replicas) == (run.leader_epoch, &run.replicas) => {
                last.partitions = last.partitions.saturating_add(run.partitions);
            }
            _ => self.0.push(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(partitions: u32, leader_epoch: i32) -> PlacedRun {
        PlacedRun { partitions, leader_epoch, replicas: vec![1, 2] }
    }

    #[test]
    fn a_node_knows_which_partitions_it_has_and_which_of_them_others_have_too() {
        let alone = |node, leader_epoch| PlacedRun { partitions: 1, leader_epoch, replicas: vec![node] };
        let placement = Placement::of([run(2, 0), run(1, 0), alone(1, 0), alone(2, 0), alone(1, 4)]);
        assert_eq!(placement.runs().len(), 4, "neighbours that are alike are one run");
        let on = |node| placement.on(node).collect::<Vec<_>>();
        assert_eq!(on(1), [(0, true), (1, true), (2, true), (3, false), (5, true)]);
        assert_eq!(on(2), [(0, true), (1, true), (2, true), (4, false)]);
        assert_eq!(on(3), []);
        assert_eq!((0..7).map(|at| placement.leader_epoch(at)).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 4, 0]);
        assert_eq!(placement.led_before().collect::<Vec<_>>(), [(5, 4)]);
    }

    proptest! {
        #[test]
        fn runs_say_what_a_list_of_all_partitions_says(
            places in proptest::collection::vec((0..20u32, proptest::collection::vec((0..5u32, 0..3i32), 0..4)), 0..12),
        ) {
            let (mut placement, mut list) = (Placement::default(), Vec::new());
            for (first, runs) in places {
                let runs: Vec<_> = runs.into_iter().map(|(partitions, epoch)| run(partitions, epoch)).collect();
                placement.place(first, &runs, 1);
                let all = runs.iter().flat_map(|run| (0..run.partitions).map(|_| PlacedRun { partitions: 1, ..run.clone() }));
                for (at, one) in (first as usize..).zip(all) {
                    list.resize(list.len().max(at + 1).max(first as usize), Placement::alone(1, 1).0[0].clone());
                    list[at] = one;
                }
                list.resize(list.len().max(first as usize), Placement::alone(1, 1).0[0].clone());
            }
            let mut merged = Placement::default();
            list.into_iter().for_each(|one| merged.push(one));
            prop_assert_eq!(placement, merged);
        }
    }
}
