//! Whether a partition is led or followed here, in which epoch, and how its high watermark moves. Pure.
//!
//! A partition without replicas on other nodes is led in epoch 0 from its start on, and consumers see what the log here has
//! as safely as its topic asks. One with replicas is neither led nor followed until it is said who leads; its high
//! watermark moves as it is told, and never beyond what is kept here.
//!
//! What always holds: epochs never go back, and only a leader has somebody who waits for the high watermark.

use std::{collections::VecDeque, rc::Rc};

use crate::{
    api::{Acks, LogError},
    replica_api::Leadership,
    signal::Outcome,
};

/// Resolves once every replica in sync has a batch, or will not have it by this leader.
pub(crate) type Confirmation = Outcome<Result<(), LogError>>;

/// What this node is to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nobody has said yet who leads, or it is about to change.
    Undecided,
    Leading(Leadership),
    Following,
    /// It is on other nodes only, and what is left of it here is being removed: nobody may read that.
    Clearing,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Replication {
    role: Role,
    /// The newest that it was told of; -1 for none.
    epoch: i32,
    /// How often it began to be neither led nor followed: who was about to do either then shall not.
    entered: u64,
    /// The high watermark that it was told; the log here may not reach that far yet.
    told: i64,
    /// Whether the end of the log is being cut off: nothing is appended meanwhile.
    cutting: Option<Rc<Outcome<()>>>,
    /// How often it left this node.
    departed: u64,
    /// Set when what is here of it is removed, while that is under way.
    clearing: Option<Rc<Outcome<()>>>,
    /// Who waits for the high watermark, in the order of the offsets.
    waiting: VecDeque<(i64, Rc<Confirmation>)>,
}

impl Replication {
    /// Of a partition that is on this node alone.
    pub(crate) fn alone() -> Self {
        Self { role: Role::Leading(Leadership::Alone), epoch: 0, ..Self::undecided(0, -1) }
    }

    /// Of one that is on other nodes too; consumers saw everything below `shown`, and its log knows of epochs up to `epoch`,
    /// which is -1 for none.
    pub(crate) fn undecided(shown: i64, epoch: i32) -> Self {
        let (role, waiting) = (Role::Undecided, VecDeque::new());
        Self { role, epoch, entered: 0, told: shown, cutting: None, departed: 0, clearing: None, waiting }
    }

    /// What this node is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The newest epoch that it was told of; -1 for none.
    pub(crate) fn epoch(&self) -> i32 {
        self.epoch
    }

    /// How often it began to be neither led nor followed.
    pub(crate) fn entered(&self) -> u64 {
        self.entered
    }

    /// Whether the high watermark moves as it is told.
    pub(crate) fn is_replicated(&self) -> bool {
        self.role != Role::Leading(Leadership::Alone)
    }

    /// The epoch in which it is led here.
    pub(crate) fn leads(&self) -> Option<i32> {
        matches!(self.role, Role::Leading(_)).then_some(self.epoch)
    }

    /// Whether the end of the log is being cut off.
    pub(crate) fn is_cutting(&self) -> bool {
        self.cutting.is_some()
    }

    /// Set when the end of the log is cut off; none if that is not under way.
    pub(crate) fn cutting(&self) -> Option<Rc<Outcome<()>>> {
        self.cutting.clone()
    }

    /// Checks the epoch that somebody believes to be current, -1 for nobody's (KIP-320).
    pub(crate) fn check_epoch(&self, believed: i32) -> Result<(), LogError> {
        match believed {
            -1 => Ok(()),
            old if old < self.epoch => Err(LogError::FencedLeaderEpoch),
            new if new > self.epoch => Err(LogError::UnknownLeaderEpoch),
            _ => Ok(()),
        }
    }

    /// Checks that it is led here.
    pub(crate) fn check_leading(&self) -> Result<(), LogError> {
        self.leads().map(drop).ok_or(LogError::NotLeader)
    }

    /// Checks that somebody may append, who wants so many replicas to have it. `min_in_sync`: `min.insync.replicas`.
    pub(crate) fn check_produce(&self, acks: Acks, min_in_sync: i32) -> Result<(), LogError> {
        match self.role {
            Role::Leading(leadership) if acks == Acks::All && !leadership.has_enough(min_in_sync) => {
                Err(LogError::NotEnoughReplicas)
            }
            Role::Leading(_) => Ok(()),
            Role::Undecided | Role::Following | Role::Clearing => Err(LogError::NotLeader),
        }
    }

    /// Checks that a follower may append what a leader of that epoch sent.
    pub(crate) fn check_follower(&self, epoch: i32) -> Result<(), LogError> {
        self.check_epoch(epoch)?;
        match self.role {
            Role::Following if !self.is_cutting() => Ok(()),
            _ => Err(LogError::NotLeader),
        }
    }

    /// Nobody leads or follows from here on, in an epoch that is not older than what is known. Who waits hears that this
    /// leader will not confirm it.
    pub(crate) fn enter(&mut self, epoch: i32) -> Result<(), LogError> {
        if epoch < self.epoch {
            return Err(LogError::FencedLeaderEpoch);
        }
        (self.role, self.epoch, self.entered) = (Role::Undecided, epoch, self.entered + 1);
        self.refuse(&LogError::NotLeader);
        Ok(())
    }

    /// It is led here, in the current epoch.
    pub(crate) fn lead(&mut self, leadership: Leadership) {
        assert!(self.clearing.is_none(), "what is being removed is not led");
        self.role = Role::Leading(leadership);
    }

    /// It is followed here, in the current epoch.
    pub(crate) fn follow(&mut self) {
        assert!(self.clearing.is_none(), "what is being removed is not followed");
        self.role = Role::Following;
    }

    /// What is here of it is being removed, in the current epoch.
    pub(crate) fn clear(&mut self) {
        self.role = Role::Clearing;
    }

    /// Set when what is here of it is removed; none if that is not under way.
    pub(crate) fn clearing(&self) -> Option<Rc<Outcome<()>>> {
        self.clearing.clone()
    }

    /// How often it left this node.
    pub(crate) fn departed(&self) -> u64 {
        self.departed
    }

    /// It leaves this node.
    pub(crate) fn depart(&mut self) {
        self.departed += 1;
    }

    /// What is here of it is to be removed. Whether that has to be begun: it may be under way.
    pub(crate) fn begin_clearing(&mut self) -> bool {
        let is_new = self.clearing.is_none();
        self.clearing.get_or_insert_default();
        is_new
    }

    /// That is over.
    pub(crate) fn end_clearing(&mut self) {
        self.clearing.take().into_iter().for_each(|over| over.set(()));
    }

    /// So many replicas are in sync now. If they are too few, who waits hears that: what it sent is in the log, but may not
    /// survive this leader.
    pub(crate) fn set_in_sync(&mut self, count: u32, min_in_sync: i32) -> Result<(), LogError> {
        let Role::Leading(Leadership::Replicated { in_sync, .. }) = &mut self.role else {
            return Err(LogError::NotLeader);
        };
        *in_sync = count;
        self.look_at_in_sync(min_in_sync);
        Ok(())
    }

    /// It has other replicas now, and is led on in that epoch.
    pub(crate) fn set_replicas(
        &mut self,
        epoch: i32,
        leadership: Leadership,
        min_in_sync: i32,
    ) -> Result<(), LogError> {
        match self.role {
            Role::Leading(Leadership::Replicated { .. }) if self.epoch == epoch => {
                self.role = Role::Leading(leadership)
            }
            _ => return Err(LogError::NotLeader),
        }
        self.look_at_in_sync(min_in_sync);
        Ok(())
    }

    fn look_at_in_sync(&mut self, min_in_sync: i32) {
        if self.check_produce(Acks::All, min_in_sync).is_err() {
            self.refuse(&LogError::NotEnoughReplicasAfterAppend);
        }
    }

    /// The end of the log is about to be cut off, or that is over.
    pub(crate) fn begin_cut(&mut self) -> Result<(), LogError> {
        match self.role {
            Role::Following | Role::Clearing if !self.is_cutting() => {
                self.cutting = Some(Rc::default());
                Ok(())
            }
            _ => Err(LogError::NotLeader),
        }
    }

    /// That is over.
    pub(crate) fn end_cut(&mut self) {
        self.cutting.take().into_iter().for_each(|over| over.set(()));
    }

    /// The log ends there now, and nobody can have seen more of it.
    pub(crate) fn cut(&mut self, end: i64) {
        self.told = self.told.min(end);
    }

    /// The high watermark is that at least.
    pub(crate) fn tell(&mut self, high_watermark: i64) {
        self.told = self.told.max(high_watermark);
    }

    /// The high watermark of a log that is kept up to there.
    pub(crate) fn high_watermark(&self, kept: i64) -> i64 {
        if self.is_replicated() { self.told.min(kept) } else { kept }
    }

    /// Somebody waits for the high watermark to reach an offset; `None`: it moves with the log here, so nobody need.
    pub(crate) fn expect(&mut self, end: i64) -> Option<Rc<Confirmation>> {
        if !self.is_replicated() {
            return None;
        }
        if self.waiting.len().is_power_of_two() {
            self.waiting.retain(|(_, waiting)| Rc::strong_count(waiting) > 1); // the others gave up
        }
        let confirmation = Rc::<Confirmation>::default();
        // One that was sent a second time waits for less than those before it.
        let at = self.waiting.partition_point(|(before, _)| *before <= end);
        self.waiting.insert(at, (end, confirmation.clone()));
        Some(confirmation)
    }

    /// The high watermark is there now.
    pub(crate) fn confirm(&mut self, high_watermark: i64) {
        while self.waiting.front().is_some_and(|(end, _)| *end <= high_watermark) {
            let (_, confirmation) = self.waiting.pop_front().expect("there is a front");
            confirmation.set(Ok(()));
        }
    }

    /// Nobody's batch is confirmed any more.
    pub(crate) fn refuse(&mut self, error: &LogError) {
        for (_, confirmation) in self.waiting.drain(..) {
            confirmation.set(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leading(replicas: u32, in_sync: u32) -> Replication {
        let mut replication = Replication::undecided(0, -1);
        replication.enter(3).unwrap();
        replication.lead(Leadership::Replicated { replicas, in_sync });
        replication
    }

    #[test]
    fn a_partition_on_one_node_is_led_in_the_first_epoch_and_shows_what_it_keeps() {
        let mut alone = Replication::alone();
        assert_eq!((alone.leads(), alone.high_watermark(70)), (Some(0), 70));
        assert_eq!(alone.check_produce(Acks::All, 3), Ok(()), "there are no other replicas to be in sync");
        assert!(alone.expect(10).is_none());
        assert_eq!(alone.begin_cut(), Err(LogError::NotLeader));
    }

    #[test]
    fn who_is_neither_leader_nor_follower_takes_nothing() {
        let mut undecided = Replication::undecided(40, 1);
        assert_eq!(undecided.check_produce(Acks::Leader, 1), Err(LogError::NotLeader));
        assert_eq!(undecided.check_follower(1), Err(LogError::NotLeader));
        assert_eq!(undecided.enter(0), Err(LogError::FencedLeaderEpoch), "the log has newer ones");
        assert_eq!((undecided.high_watermark(30), undecided.high_watermark(70)), (30, 40), "what was shown stays so");
        undecided.enter(2).unwrap();
        assert_eq!(undecided.check_leading(), Err(LogError::NotLeader));
        undecided.follow();
        assert_eq!(undecided.check_follower(2), Ok(()));
    }

    #[test]
    fn epochs_never_go_back_and_are_told_apart() {
        let mut replication = leading(3, 3);
        assert_eq!(replication.enter(2), Err(LogError::FencedLeaderEpoch));
        assert_eq!(replication.leads(), Some(3), "who is behind changes nothing");
        let checked = [-1, 2, 3, 4].map(|epoch| replication.check_epoch(epoch));
        assert_eq!(checked, [Ok(()), Err(LogError::FencedLeaderEpoch), Ok(()), Err(LogError::UnknownLeaderEpoch)]);
        assert_eq!(replication.enter(3), Ok(()));
    }

    #[test]
    fn too_few_replicas_in_sync_are_told_before_and_after_the_append() {
        let mut replication = leading(3, 2);
        assert_eq!(replication.check_produce(Acks::All, 2), Ok(()));
        let waiting = replication.expect(10).expect("it is replicated");
        replication.set_in_sync(1, 2).unwrap();
        assert_eq!(waiting.get(), Some(Err(LogError::NotEnoughReplicasAfterAppend)));
        assert_eq!(replication.check_produce(Acks::All, 2), Err(LogError::NotEnoughReplicas));
        assert_eq!(replication.check_produce(Acks::Leader, 2), Ok(()));
        let two = leading(2, 2);
        assert_eq!(two.check_produce(Acks::All, 3), Ok(()), "no more are wanted than there are");
    }

    /// Somebody who had not heard that the leadership was over led the partition on with other replicas, and it was led again:
    /// it took records that nobody ever confirmed.
    #[test]
    fn another_number_of_replicas_is_for_who_leads_in_that_epoch() {
        let mut replication = leading(2, 1);
        assert_eq!(replication.check_produce(Acks::All, 2), Err(LogError::NotEnoughReplicas));
        let of = |replicas| Leadership::Replicated { replicas, in_sync: 1 };
        assert_eq!(replication.set_replicas(2, of(1), 2), Err(LogError::NotLeader), "of another epoch");
        replication.set_replicas(3, of(1), 2).unwrap();
        assert_eq!(replication.check_produce(Acks::All, 2), Ok(()), "no more are wanted than there are");
        let waiting = replication.expect(10).expect("it is replicated");
        replication.set_replicas(3, of(2), 2).unwrap();
        assert_eq!(waiting.get(), Some(Err(LogError::NotEnoughReplicasAfterAppend)));
        replication.enter(3).unwrap();
        assert_eq!(replication.set_replicas(3, of(1), 2), Err(LogError::NotLeader));
        assert_eq!(replication.check_produce(Acks::Leader, 2), Err(LogError::NotLeader), "it is led no more");
    }

    /// Who waited heard that too few replicas are in sync when one of two was taken away: of one, one is enough.
    #[test]
    fn who_waits_goes_on_waiting_when_replicas_and_those_in_sync_become_fewer_at_once() {
        let mut replication = leading(2, 2);
        let waiting = replication.expect(10).expect("it is replicated");
        replication.set_replicas(3, Leadership::Replicated { replicas: 1, in_sync: 1 }, 2).unwrap();
        assert_eq!(waiting.get(), None);
    }

    #[test]
    fn who_waits_hears_of_the_high_watermark_or_of_the_end_of_leadership() {
        let mut replication = leading(3, 3);
        let [later, soon] = [20, 10].map(|end| replication.expect(end).expect("it is replicated"));
        replication.confirm(9);
        assert_eq!(soon.get(), None);
        replication.confirm(10);
        assert_eq!((soon.get(), later.get()), (Some(Ok(())), None));
        drop(replication.expect(30));
        drop(replication.expect(31));
        assert_eq!(replication.waiting.len(), 2, "who gave up is forgotten");
        replication.enter(4).unwrap();
        assert_eq!(later.get(), Some(Err(LogError::NotLeader)));
    }

    #[test]
    fn a_high_watermark_ahead_of_the_log_counts_once_the_log_has_come() {
        let mut replication = leading(3, 3);
        replication.tell(50);
        replication.tell(40);
        assert_eq!((replication.high_watermark(45), replication.high_watermark(60)), (45, 50));
        replication.cut(30);
        assert_eq!(replication.high_watermark(60), 30);
    }
}
