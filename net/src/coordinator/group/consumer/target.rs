//! The target assignment: made anew whenever the group epoch has risen, but not more often than the settings allow.

use std::{collections::BTreeMap, rc::Rc};

use super::{ConsumerGroup, TopicsView};
use crate::coordinator::group::{
    assignor::{Assignor, Partitions, Subscriber},
    effects::Scope,
    record::{ConsumerTargetMetadata, Record},
};

impl ConsumerGroup {
    /// Makes a new target assignment if the group epoch is ahead of it and enough time went by (KIP-1263).
    pub(super) fn update_target(&mut self, scope: &Scope<'_>, topics: TopicsView<'_>, records: &mut Vec<Record>) {
        let interval_ms = i64::from(scope.configs.consumer(&self.id).assignment_interval_ms);
        let is_due = self.assignment_timestamp_ms == 0
            || interval_ms == 0
            || scope.now_ms >= self.assignment_timestamp_ms.saturating_add(interval_ms);
        if self.assignment_epoch >= self.epoch || !is_due {
            return;
        }
        let assignor = self.wanted_assignor(&scope.settings.consumer_assignors);
        for record in self.target_changes(assignor, topics) {
            self.put(records, record);
        }
        let value = Some(ConsumerTargetMetadata { epoch: self.epoch, timestamp_ms: scope.now_ms });
        let record = Record::ConsumerTargetMetadata { group: Rc::clone(&self.id), value };
        self.put(records, record);
    }

    fn target_changes(&self, assignor: Assignor, topics: TopicsView<'_>) -> Vec<Record> {
        let empty = Rc::default();
        let subscriber = |member: &'_ super::Member| self.subscribed_ids(member, topics);
        let members: Vec<_> = self
            .members
            .values()
            .map(|member| Subscriber {
                id: &member.id,
                instance_id: member.info.instance_id.as_deref(),
                topics: subscriber(member),
                target: self.target.get(&member.id).unwrap_or(&empty),
            })
            .collect();
        let all = members.iter().flat_map(|member| &member.topics);
        let partitions: Partitions =
            all.filter_map(|id| topics.lookup.by_id(*id).map(|(_, partitions)| (*id, partitions))).collect();
        let assignments = assignor.assign(&members, &partitions);
        let changed = self
            .members
            .keys()
            .zip(assignments)
            .filter(|(member, assignment)| self.target.get(*member).is_none_or(|target| **target != *assignment));
        changed
            .map(|(member, assignment)| Record::ConsumerTarget {
                group: Rc::clone(&self.id),
                member: Rc::clone(member),
                value: Some(Rc::new(assignment)),
            })
            .collect()
    }

    /// The assignor that most members ask for, or the default one.
    pub(super) fn wanted_assignor(&self, assignors: &[Assignor]) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        let wanted = self.members.values().filter_map(|member| member.info.server_assignor.as_deref());
        for assignor in wanted.filter_map(Assignor::by_name) {
            *votes.entry(assignor).or_default() += 1;
        }
        let most = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(assignor, _)| assignor);
        most.or(assignors.first().copied()).unwrap_or(Assignor::Uniform)
    }
}
