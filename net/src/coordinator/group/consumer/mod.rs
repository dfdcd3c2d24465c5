//! A group of the consumer protocol (KIP-848): members send heartbeats, the coordinator assigns.
//!
//! Three epochs drive it. The *group epoch* rises whenever the members, their subscriptions or the subscribed topics
//! change. The *assignment epoch* is the group epoch that the target assignment was made for. A *member's epoch* follows
//! as soon as the member has given back what it must no longer own.
//!
//! All durable state changes through [`ConsumerGroup::apply`], whether a record was just made or is read from the log:
//! so a group that was loaded is the group that was.
//!
//! Always holds: a partition is owned, or still to be given back, by one member at most.

mod classic_member;
mod convert;
mod describe;
mod heartbeat;
mod leave;
mod member;
mod reconcile;
mod regex;
mod subscription;
mod target;

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use kafka_protocol::error::ResponseError;
use uuid::Uuid;

pub(crate) use heartbeat::validate;
pub(crate) use leave::Left;
pub(crate) use member::{JOIN_EPOCH, LEAVE_EPOCH, Member, MemberState, STATIC_LEAVE_EPOCH};
pub(crate) use reconcile::Owned;
pub(crate) use regex::compile;
pub(crate) use subscription::{TopicsView, metadata_hash};

use super::{
    assignment::Assignment,
    effects::Scope,
    error::{GroupError, Refusal},
    record::{AssignedPartitions, ConsumerGroupEpoch, ConsumerRegex, Record},
    timers::TimerKind,
};

/// First version of OffsetCommit that a member of this protocol may use.
const OFFSET_COMMIT_VERSION: i16 = 9;

/// See the module.
#[derive(Debug)]
pub(crate) struct ConsumerGroup {
    id: Rc<str>,
    epoch: i32,
    /// Hash over the subscribed topics when the group epoch was last raised.
    metadata_hash: i64,
    assignment_epoch: i32,
    /// When the target assignment was made, ms since the epoch; 0 when that is not known.
    assignment_timestamp_ms: i64,
    members: BTreeMap<Rc<str>, Member>,
    /// Member id by instance id.
    static_members: BTreeMap<Rc<str>, Rc<str>>,
    /// What each member is to have.
    target: BTreeMap<Rc<str>, Rc<Assignment>>,
    /// Epoch of the member that has a partition.
    partition_epochs: HashMap<(Uuid, i32), i32>,
    /// Number of members that subscribe to a topic by name.
    names: BTreeMap<Rc<str>, usize>,
    /// Number of members that subscribe by a regular expression.
    regex_members: BTreeMap<Rc<str>, usize>,
    /// Topics of the regular expressions that were looked up.
    regexes: BTreeMap<Rc<str>, ConsumerRegex>,
    /// Whether the log holds what brokers before 4.1 knew of the topics.
    has_partition_metadata: bool,
    /// Version of the topics that the metadata hash was last compared with; `None` after loading.
    seen_topics: Option<u64>,
    /// Version of the topics that the regular expressions were last looked up in; `None` after loading.
    resolved_topics: Option<u64>,
    /// Whether the regular expressions are being looked up.
    resolving: bool,
}

/// State of a consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConsumerState {
    /// No members.
    Empty,
    /// The target assignment is older than the group epoch.
    Assigning,
    /// Some members are not where they should be yet.
    Reconciling,
    /// All members are.
    Stable,
}

impl ConsumerState {
    /// Kafka's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ConsumerState::Empty => "Empty",
            ConsumerState::Assigning => "Assigning",
            ConsumerState::Reconciling => "Reconciling",
            ConsumerState::Stable => "Stable",
        }
    }
}

impl ConsumerGroup {
    /// A group without members.
    pub(crate) fn new(id: Rc<str>) -> Self {
        Self {
            id,
            epoch: 1,
            metadata_hash: 0,
            assignment_epoch: 1,
            assignment_timestamp_ms: 0,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            target: BTreeMap::new(),
            partition_epochs: HashMap::new(),
            names: BTreeMap::new(),
            regex_members: BTreeMap::new(),
            regexes: BTreeMap::new(),
            has_partition_metadata: false,
            seen_topics: None,
            resolved_topics: None,
            resolving: false,
        }
    }

    /// Starts the clocks of a group that was just loaded.
    pub(crate) fn on_loaded(&mut self, scope: &mut Scope<'_>) {
        for member in self.members.values() {
            self.restart_session(scope, member);
            if member.state == MemberState::UnrevokedPartitions && member.classic().is_none() {
                self.restart_rebalance_timeout(scope, member);
            }
        }
    }

    /// Changes the state as a record says. Tombstones of what is not there are passed over.
    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::ConsumerGroup { value: Some(value), .. } => {
                self.epoch = value.epoch;
                self.metadata_hash = value.metadata_hash;
            }
            Record::ConsumerPartitionMetadata { value, .. } => self.has_partition_metadata = value.is_some(),
            Record::ConsumerMember { member, value: Some(value), .. } => {
                let info = Rc::new((**value).clone());
                self.update_member(member, |member| member.info = info);
            }
            Record::ConsumerMember { member, value: None, .. } => self.forget_member(member),
            Record::ConsumerTargetMetadata { value, .. } => {
                (self.assignment_epoch, self.assignment_timestamp_ms) =
                    value.map_or((-1, 0), |value| (value.epoch, value.timestamp_ms));
            }
            Record::ConsumerTarget { member, value, .. } => {
                match value {
                    Some(value) => self.target.insert(Rc::clone(member), Rc::clone(value)),
                    None => self.target.remove(member),
                };
            }
            Record::ConsumerCurrent { member, value: Some(value), .. } => {
                self.update_member(member, |member| member.set_current(value));
            }
            Record::ConsumerCurrent { member, value: None, .. } => {
                if self.members.contains_key(member) {
                    self.update_member(member, |member| {
                        member.epoch = LEAVE_EPOCH;
                        member.previous_epoch = LEAVE_EPOCH;
                        member.assigned.clear();
                        member.pending_revocation.clear();
                    });
                }
            }
            Record::ConsumerRegex { regex, value, .. } => {
                match value {
                    Some(value) => self.regexes.insert(Rc::clone(regex), value.clone()),
                    None => self.regexes.remove(regex),
                };
            }
            Record::ConsumerGroup { value: None, .. }
            | Record::OffsetCommit { .. }
            | Record::GroupMetadata { .. }
            | Record::Share { .. } => {}
        }
    }

    /// Makes a record: changes the state by it and keeps it to be written.
    fn put(&mut self, records: &mut Vec<Record>, record: Record) {
        self.apply(&record);
        records.push(record);
    }

    fn update_member(&mut self, id: &Rc<str>, change: impl FnOnce(&mut Member)) {
        let mut member = self.take_member(id).unwrap_or_else(|| Member::new(Rc::clone(id)));
        change(&mut member);
        self.count(&member, true);
        for (partition, _) in partitions(&member.assigned).chain(partitions(&member.pending_revocation)) {
            self.partition_epochs.insert(partition, member.epoch);
        }
        if let Some(instance_id) = &member.info.instance_id {
            self.static_members.insert(Rc::clone(instance_id), Rc::clone(id));
        }
        self.members.insert(Rc::clone(id), member);
    }

    fn forget_member(&mut self, id: &Rc<str>) {
        let Some(member) = self.take_member(id) else {
            return;
        };
        if let Some(instance_id) = &member.info.instance_id
            && self.static_members.get(instance_id) == Some(id)
        {
            self.static_members.remove(instance_id);
        }
    }

    /// Takes a member out of everything that is counted; its instance id stays.
    fn take_member(&mut self, id: &Rc<str>) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.count(&member, false);
        for (partition, _) in partitions(&member.assigned).chain(partitions(&member.pending_revocation)) {
            if self.partition_epochs.get(&partition) == Some(&member.epoch) {
                self.partition_epochs.remove(&partition);
            }
        }
        Some(member)
    }

    fn count(&mut self, member: &Member, add: bool) {
        let count = |counts: &mut BTreeMap<Rc<str>, usize>, name: &Rc<str>| {
            let number = counts.entry(Rc::clone(name)).or_default();
            *number = if add { *number + 1 } else { number.saturating_sub(1) };
            if *number == 0 {
                counts.remove(name);
            }
        };
        member.info.topic_names.iter().for_each(|name| count(&mut self.names, name));
        if let Some(regex) = member.regex() {
            count(&mut self.regex_members, regex);
        }
    }

    /// State.
    pub(crate) fn state(&self) -> ConsumerState {
        if self.members.is_empty() {
            ConsumerState::Empty
        } else if self.epoch > self.assignment_epoch {
            ConsumerState::Assigning
        } else if self.members.values().any(|member| !member.is_reconciled_to(self.assignment_epoch)) {
            ConsumerState::Reconciling
        } else {
            ConsumerState::Stable
        }
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member behind an instance id.
    fn static_member(&self, instance_id: &str) -> Option<&Member> {
        self.members.get(self.static_members.get(instance_id)?)
    }

    fn classic_count(&self) -> usize {
        self.members.values().filter(|member| member.classic().is_some()).count()
    }

    /// Checks who commits offsets. Of older epochs only partitions are accepted that the member had already then.
    pub(crate) fn validate_offset_commit(
        &self,
        version: i16,
        member_id: &str,
        epoch: i32,
        partitions: impl Iterator<Item = (Uuid, i32)>,
    ) -> Result<(), GroupError> {
        let is_too_old = |member: &Member| member.classic().is_none() && version < OFFSET_COMMIT_VERSION;
        if self.members.get(member_id).is_some_and(is_too_old) {
            return Err(ResponseError::UnsupportedVersion);
        }
        self.validate_txn_offset_commit(member_id, epoch, partitions)
    }

    /// Checks who commits offsets with a transaction, and says who it is: as for other commits, but in every version.
    pub(crate) fn validate_txn_offset_commit(
        &self,
        member_id: &str,
        epoch: i32,
        mut partitions: impl Iterator<Item = (Uuid, i32)>,
    ) -> Result<(), GroupError> {
        if epoch < 0 && self.members.is_empty() {
            return Ok(());
        }
        let member = self.members.get(member_id).ok_or(ResponseError::UnknownMemberId)?;
        let stale = stale_error(member);
        if epoch == member.epoch {
            return Ok(());
        }
        if epoch > member.epoch {
            return Err(stale);
        }
        let was_assigned =
            |(topic, partition)| member.assignment_epoch(topic, partition).is_some_and(|since| since <= epoch);
        if partitions.all(was_assigned) { Ok(()) } else { Err(stale) }
    }

    /// Checks who fetches offsets; whoever does not say is not checked.
    pub(crate) fn validate_offset_fetch(&self, member_id: Option<&str>, epoch: i32) -> Result<(), GroupError> {
        let Some(member_id) = member_id else {
            return if epoch < 0 { Ok(()) } else { Err(ResponseError::UnknownMemberId) };
        };
        let member = self.members.get(member_id).ok_or(ResponseError::UnknownMemberId)?;
        if epoch == member.epoch { Ok(()) } else { Err(stale_error(member)) }
    }

    fn restart_session(&self, scope: &mut Scope<'_>, member: &Member) {
        let timeout_ms = match member.classic() {
            Some(classic) => classic.session_timeout_ms,
            None => scope.configs.consumer(&self.id).session_timeout_ms,
        };
        let deadline = scope.now_ms + i64::from(timeout_ms);
        scope.timers.schedule(&self.id, TimerKind::Session(Rc::clone(&member.id)), deadline);
    }

    fn restart_rebalance_timeout(&self, scope: &mut Scope<'_>, member: &Member) {
        let deadline = scope.now_ms + i64::from(member.info.rebalance_timeout_ms);
        scope.timers.schedule(&self.id, TimerKind::Rebalance(Rc::clone(&member.id)), deadline);
    }

    /// Takes all timers away: the group is about to go.
    pub(crate) fn close(&self, scope: &mut Scope<'_>) {
        self.members.keys().for_each(|member| cancel_timers(scope, &self.id, member));
    }

    fn epoch_record(&self, epoch: i32, metadata_hash: i64) -> Record {
        let value = ConsumerGroupEpoch { epoch, metadata_hash };
        Record::ConsumerGroup { group: Rc::clone(&self.id), value: Some(value) }
    }

    fn member_record(&self, member: &Member) -> Record {
        let value = Some(Box::new((*member.info).clone()));
        Record::ConsumerMember { group: Rc::clone(&self.id), member: Rc::clone(&member.id), value }
    }

    fn current_record(&self, member: &Member) -> Record {
        let value = Some(member.current());
        Record::ConsumerCurrent { group: Rc::clone(&self.id), member: Rc::clone(&member.id), value }
    }

    /// The tombstones of one member.
    fn member_tombstones(&self, member: &Rc<str>) -> [Record; 3] {
        let (group, member) = (|| Rc::clone(&self.id), || Rc::clone(member));
        [
            Record::ConsumerCurrent { group: group(), member: member(), value: None },
            Record::ConsumerTarget { group: group(), member: member(), value: None },
            Record::ConsumerMember { group: group(), member: member(), value: None },
        ]
    }

    /// The tombstones of the whole group.
    pub(crate) fn tombstones(&self) -> Vec<Record> {
        let group = || Rc::clone(&self.id);
        let mut records: Vec<_> = self.members.keys().flat_map(|member| self.member_tombstones(member)).collect();
        records.push(Record::ConsumerTargetMetadata { group: group(), value: None });
        let regexes = self.regexes.keys().cloned();
        records.extend(regexes.map(|regex| Record::ConsumerRegex { group: group(), regex, value: None }));
        records.push(Record::ConsumerPartitionMetadata { group: group(), value: None });
        records.push(Record::ConsumerGroup { group: group(), value: None });
        records
    }

    /// Checks what the module promises.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let mut owners = BTreeMap::new();
        for member in self.members.values() {
            for (partition, _) in partitions(&member.assigned).chain(partitions(&member.pending_revocation)) {
                let other = owners.insert(partition, &member.id);
                assert_eq!(other, None, "{partition:?} has one owner at most; {} is another", member.id);
                assert_eq!(self.partition_epochs.get(&partition), Some(&member.epoch));
            }
            assert!(member.epoch <= self.epoch, "members follow the group");
        }
        assert_eq!(self.partition_epochs.len(), owners.len(), "only owned partitions have an epoch");
        for (instance_id, member) in &self.static_members {
            assert_eq!(self.members[member].info.instance_id.as_ref(), Some(instance_id));
        }
        assert!(self.target.keys().all(|member| self.members.contains_key(member)), "only members have targets");
        assert!(self.assignment_epoch <= self.epoch);
        let mut targets = std::collections::BTreeSet::new();
        for (topic, partition) in self.target.values().flat_map(|target| target.iter()) {
            assert!(partition.iter().all(|partition| targets.insert((topic, partition))), "targets do not overlap");
        }
    }
}

/// What a member is told whose epoch does not fit; the classic protocol has another word for it.
fn stale_error(member: &Member) -> GroupError {
    if member.classic().is_some() { ResponseError::IllegalGeneration } else { ResponseError::StaleMemberEpoch }
}

fn unknown_member(member_id: &str, group: &str) -> Refusal {
    let message = format!("Member {member_id} is not a member of group {group}.");
    Refusal::new(ResponseError::UnknownMemberId, message)
}

/// All partitions with their epochs.
fn partitions(assigned: &AssignedPartitions) -> impl Iterator<Item = ((Uuid, i32), i32)> {
    let topics = assigned.iter();
    topics.flat_map(|(topic, epochs)| epochs.iter().map(|(partition, epoch)| ((*topic, *partition), *epoch)))
}

fn cancel_timers(scope: &mut Scope<'_>, group: &Rc<str>, member: &Rc<str>) {
    let member = || Rc::clone(member);
    for kind in [
        TimerKind::Session(member()),
        TimerKind::Rebalance(member()),
        TimerKind::MemberJoin(member()),
        TimerKind::MemberSync(member()),
    ] {
        scope.timers.cancel(group, kind);
    }
}

#[cfg(test)]
mod tests;
