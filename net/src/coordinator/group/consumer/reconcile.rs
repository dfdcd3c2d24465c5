//! Brings a member closer to its target assignment: first it gives back, then it moves on to the new epoch, then it gets.

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::error::ResponseError;
use uuid::Uuid;

use super::{ConsumerGroup, Member, MemberState, TopicsView};
use crate::coordinator::group::{
    assignment::Assignment,
    effects::Scope,
    error::{GroupError, Refusal},
    record::{AssignedPartitions, Record},
    timers::TimerKind,
};

/// What a member says it owns; `None` when it does not say.
pub(crate) type Owned = Option<Assignment>;

/// Whether a member says that it has none of these. One that says nothing may still have them.
fn has_given_back(owned: &Owned, partitions: &AssignedPartitions) -> bool {
    owned.as_ref().is_some_and(|owned| {
        owned.iter().all(|(topic, owned)| {
            partitions.get(topic).is_none_or(|pending| owned.iter().all(|partition| !pending.contains_key(partition)))
        })
    })
}

impl ConsumerGroup {
    /// Checks that a member in a state of some later version has nothing left, so that it can start anew.
    pub(super) fn validate_state(&self, member: &Member, owned: &Owned) -> Result<(), Refusal> {
        let starts_anew = owned.as_ref().is_some_and(Assignment::is_empty);
        if member.state != MemberState::Unknown || starts_anew {
            return Ok(());
        }
        let message = "The consumer group member is in an unknown state. The member must abandon all its partitions \
                       and rejoin.";
        Err(Refusal::new(ResponseError::FencedMemberEpoch, message))
    }

    /// Reconciles a member with its target assignment, and keeps the rebalance timeout.
    pub(super) fn reconcile(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        member_id: &str,
        subscription_changed: bool,
        owned: &Owned,
        records: &mut Vec<Record>,
    ) {
        let Some(member) = self.members.get(member_id) else {
            return;
        };
        if !subscription_changed && member.is_reconciled_to(self.assignment_epoch) {
            return;
        }
        let Some(next) = self.next_step(topics, member, subscription_changed, owned) else {
            return;
        };
        if next.current() == member.current() {
            return;
        }
        let record = self.current_record(&next);
        self.put(records, record);
        let Some(member) = self.members.get(member_id) else {
            return;
        };
        // members of the classic protocol have timeouts for joining and syncing instead
        if member.classic().is_some() {
            return;
        }
        if member.state == MemberState::UnrevokedPartitions {
            self.restart_rebalance_timeout(scope, member);
        } else {
            scope.timers.cancel(&self.id, TimerKind::Rebalance(Rc::clone(&member.id)));
        }
    }

    fn next_step(
        &self,
        topics: TopicsView<'_>,
        member: &Member,
        subscription_changed: bool,
        owned: &Owned,
    ) -> Option<Member> {
        let subscribed = self.subscribed_ids(member, topics);
        match member.state {
            MemberState::Stable if member.epoch != self.assignment_epoch => {
                Some(self.advance(member, member.epoch, &subscribed, owned))
            }
            MemberState::Stable if subscription_changed => Some(shrink(member, &subscribed, owned)),
            MemberState::Stable => None,
            MemberState::UnrevokedPartitions if !has_given_back(owned, &member.pending_revocation) => {
                subscription_changed.then(|| shrink(member, &subscribed, owned))
            }
            MemberState::UnrevokedPartitions | MemberState::UnreleasedPartitions => {
                Some(self.advance(member, member.epoch, &subscribed, owned))
            }
            MemberState::Unknown => Some(self.advance(member, self.assignment_epoch, &subscribed, owned)),
        }
    }

    /// Towards the target: keeps what it may keep, gives back what it must, and gets what nobody else has any more.
    fn advance(&self, member: &Member, epoch: i32, subscribed: &BTreeSet<Uuid>, owned: &Owned) -> Member {
        let empty = Rc::default();
        let target = self.target.get(&member.id).unwrap_or(&empty);
        let wanted = |topic: Uuid, partition: i32| {
            subscribed.contains(&topic) && target.get(&topic).is_some_and(|wanted| wanted.contains(&partition))
        };
        let (mut assigned, mut to_revoke) = (AssignedPartitions::new(), AssignedPartitions::new());
        for ((topic, partition), since) in super::partitions(&member.assigned) {
            let into = if wanted(topic, partition) { &mut assigned } else { &mut to_revoke };
            into.entry(topic).or_default().insert(partition, since);
        }
        if !to_revoke.is_empty() && !has_given_back(owned, &to_revoke) {
            return moved(member, MemberState::UnrevokedPartitions, epoch, assigned, to_revoke);
        }
        let mut waits = false;
        let missing = target.iter().filter(|(topic, _)| subscribed.contains(topic));
        for (topic, partition) in missing.flat_map(|(topic, wanted)| wanted.iter().map(move |each| (*topic, *each))) {
            if assigned.get(&topic).is_some_and(|owned| owned.contains_key(&partition)) {
                continue;
            }
            // what it was itself about to give back is free for it
            let own = member.pending_revocation.get(&topic).is_some_and(|own| own.contains_key(&partition));
            if own || !self.partition_epochs.contains_key(&(topic, partition)) {
                assigned.entry(topic).or_default().insert(partition, self.assignment_epoch);
            } else {
                waits = true;
            }
        }
        let state = if waits { MemberState::UnreleasedPartitions } else { MemberState::Stable };
        moved(member, state, self.assignment_epoch, assigned, AssignedPartitions::new())
    }

    /// Whether a member still waits for partitions of others, so that there is nothing for it to fetch yet.
    pub(super) fn waits_for_others(&self, member: &Member) -> bool {
        let Some(target) = self.target.get(&member.id) else {
            return false;
        };
        member.state == MemberState::UnreleasedPartitions
            && target.iter().any(|(topic, wanted)| {
                wanted.iter().any(|partition| {
                    let own = member.assigned.get(topic).is_some_and(|own| own.contains_key(partition));
                    !own && self.partition_epochs.contains_key(&(*topic, *partition))
                })
            })
    }

    /// Checks the epoch that a member sends. The one before is good if the answer with the new one may have been lost.
    pub(super) fn validate_epoch(&self, member: &Member, epoch: i32, owned: &Owned) -> Result<(), Refusal> {
        let subset = || {
            owned.as_ref().is_some_and(|owned| {
                owned.iter().all(|(topic, owned)| {
                    let assigned = member.assigned.get(topic);
                    assigned.is_some_and(|assigned| owned.iter().all(|partition| assigned.contains_key(partition)))
                })
            })
        };
        let relation = match epoch.cmp(&member.epoch) {
            _ if epoch == super::JOIN_EPOCH => return Ok(()),
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less if epoch == member.previous_epoch && subset() => return Ok(()),
            std::cmp::Ordering::Less => "smaller",
            std::cmp::Ordering::Greater => "greater",
        };
        let error: GroupError = ResponseError::FencedMemberEpoch;
        let message = format!(
            "The consumer group member has a {relation} member epoch ({epoch}) than the one known by the group \
             coordinator ({}). The member must abandon all its partitions and rejoin.",
            member.epoch
        );
        Err(Refusal::new(error, message))
    }
}

/// The subscription became smaller: what is no longer subscribed to must go, before the next target says so.
fn shrink(member: &Member, subscribed: &BTreeSet<Uuid>, owned: &Owned) -> Member {
    let mut assigned = member.assigned.clone();
    let mut to_revoke = member.pending_revocation.clone();
    let gone: Vec<_> = assigned.extract_if(.., |topic, _| !subscribed.contains(topic)).collect();
    if gone.is_empty() {
        return member.clone();
    }
    for (topic, partitions) in gone {
        to_revoke.entry(topic).or_default().extend(partitions);
    }
    if has_given_back(owned, &to_revoke) {
        moved(member, member.state, member.epoch, assigned, member.pending_revocation.clone())
    } else {
        moved(member, MemberState::UnrevokedPartitions, member.epoch, assigned, to_revoke)
    }
}

/// A member in another place. The epoch that it had becomes the previous one, as each record tells both.
fn moved(
    member: &Member,
    state: MemberState,
    epoch: i32,
    assigned: AssignedPartitions,
    pending_revocation: AssignedPartitions,
) -> Member {
    Member { state, epoch, previous_epoch: member.epoch, assigned, pending_revocation, ..member.clone() }
}
