//! The `uniform` assignor.
//!
//! Members keep what they had as far as the balance allows. If all subscribe to the same topics, their numbers of
//! partitions differ by one at most; else partitions move from fuller to emptier subscribers of a topic as long as that
//! makes the difference smaller.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{Partitions, Subscriber};
use crate::coordinator::group::assignment::Assignment;

/// See [`super::Assignor::assign`].
pub(super) fn assign(members: &[Subscriber<'_>], partitions: &Partitions) -> Vec<Assignment> {
    let Some(first) = members.first() else {
        return Vec::new();
    };
    if members.iter().all(|member| member.topics == first.topics) {
        assign_same(members, &first.topics, partitions)
    } else {
        Balancer::new(members, partitions).assign(partitions)
    }
}

fn of_topic(partitions: &Partitions, topic: Uuid) -> std::ops::Range<i32> {
    0..partitions.get(&topic).copied().unwrap_or(0)
}

/// What a member had and may still have.
fn kept<'a>(member: &'a Subscriber<'_>, partitions: &'a Partitions) -> impl Iterator<Item = (Uuid, i32)> + 'a {
    let subscribed = member.target.iter().filter(|(topic, _)| member.topics.contains(topic));
    subscribed.flat_map(|(topic, owned)| {
        let exists = of_topic(partitions, *topic);
        owned.iter().filter(move |partition| exists.contains(partition)).map(|partition| (*topic, *partition))
    })
}

/// All members subscribe to the same topics: everybody gets the same number, some one more.
fn assign_same(members: &[Subscriber<'_>], topics: &BTreeSet<Uuid>, partitions: &Partitions) -> Vec<Assignment> {
    let all = topics.iter().flat_map(|topic| of_topic(partitions, *topic).map(|partition| (*topic, partition)));
    let mut free: BTreeSet<(Uuid, i32)> = all.collect();
    let least = free.len() / members.len();
    // that many members get one more than the least
    let mut extra = free.len() % members.len();
    let mut assignments = vec![Assignment::new(); members.len()];
    let mut missing = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let quota = least + usize::from(extra > 0);
        let mut count = 0;
        for (topic, partition) in kept(member, partitions) {
            if count < quota && free.remove(&(topic, partition)) {
                assignments[at].entry(topic).or_default().insert(partition);
                count += 1;
            }
        }
        // who does not have the extra partition leaves it to others, as long as enough of them are left to take it
        let takes_extra = extra > 0 && (count == quota || members.len() - at <= extra);
        extra -= usize::from(takes_extra);
        missing.push(least + usize::from(takes_extra) - count);
    }
    let mut free = free.into_iter();
    for (assignment, missing) in assignments.iter_mut().zip(missing) {
        for (topic, partition) in free.by_ref().take(missing) {
            assignment.entry(topic).or_default().insert(partition);
        }
    }
    assignments
}

/// Rounds over all topics after which the balance is good enough; each one brings it closer.
const ROUNDS_MAX: usize = 16;

/// Members subscribe to different topics.
struct Balancer {
    assignments: Vec<Assignment>,
    /// Number of partitions of each member.
    loads: Vec<usize>,
    /// Members by topic.
    subscribers: BTreeMap<Uuid, Vec<usize>>,
}

impl Balancer {
    fn new(members: &[Subscriber<'_>], partitions: &Partitions) -> Self {
        let mut subscribers: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
        let mut assignments = vec![Assignment::new(); members.len()];
        let mut taken = BTreeSet::new();
        for (at, member) in members.iter().enumerate() {
            member.topics.iter().for_each(|topic| subscribers.entry(*topic).or_default().push(at));
            for (topic, partition) in kept(member, partitions) {
                if taken.insert((topic, partition)) {
                    assignments[at].entry(topic).or_default().insert(partition);
                }
            }
        }
        let loads = assignments.iter().map(|assignment| assignment.values().map(BTreeSet::len).sum()).collect();
        Self { assignments, loads, subscribers }
    }

    fn assign(mut self, partitions: &Partitions) -> Vec<Assignment> {
        let topics = self.topics_by_freedom(partitions);
        for topic in &topics {
            self.assign_free(*topic, partitions);
        }
        for _ in 0..ROUNDS_MAX {
            let moved: usize = topics.iter().map(|topic| self.balance(*topic)).sum();
            if moved == 0 {
                break;
            }
        }
        self.assignments
    }

    /// Topics with the most partitions for each subscriber first: they leave the least choice.
    fn topics_by_freedom(&self, partitions: &Partitions) -> Vec<Uuid> {
        let mut topics: Vec<Uuid> = self.subscribers.keys().copied().collect();
        topics.sort_by(|a, b| {
            let size = |topic: &Uuid| u64::from(of_topic(partitions, *topic).end.unsigned_abs());
            let subscribers = |topic: &Uuid| self.subscribers[topic].len() as u64;
            let (left, right) = (size(a) * subscribers(b), size(b) * subscribers(a));
            right.cmp(&left).then_with(|| subscribers(a).cmp(&subscribers(b))).then_with(|| a.cmp(b))
        });
        topics
    }

    /// A topic's subscribers, the emptiest first.
    fn by_load(&self, topic: Uuid) -> BTreeSet<(usize, usize)> {
        self.subscribers[&topic].iter().map(|at| (self.loads[*at], *at)).collect()
    }

    fn assign_free(&mut self, topic: Uuid, partitions: &Partitions) {
        let owned: BTreeSet<i32> = self.subscribers[&topic]
            .iter()
            .filter_map(|at| self.assignments[*at].get(&topic))
            .flatten()
            .copied()
            .collect();
        let mut by_load = self.by_load(topic);
        for partition in of_topic(partitions, topic).filter(|partition| !owned.contains(partition)) {
            let Some((load, at)) = by_load.pop_first() else {
                return;
            };
            self.give(at, topic, partition);
            by_load.insert((load + 1, at));
        }
    }

    /// Moves partitions of a topic from the fullest to the emptiest subscriber until they differ by one at most.
    fn balance(&mut self, topic: Uuid) -> usize {
        let mut by_load = self.by_load(topic);
        let mut moved = 0;
        loop {
            let owns = |(_, at): &&(usize, usize)| self.assignments[*at].contains_key(&topic);
            let Some(fullest) = by_load.iter().rev().find(owns).copied() else {
                return moved;
            };
            let Some(emptiest) = by_load.first().copied() else {
                return moved;
            };
            if fullest.0 <= emptiest.0 + 1 {
                return moved;
            }
            let Some(partition) = self.take_last(fullest.1, topic) else {
                return moved;
            };
            self.give(emptiest.1, topic, partition);
            by_load.remove(&fullest);
            by_load.remove(&emptiest);
            by_load.insert((fullest.0 - 1, fullest.1));
            by_load.insert((emptiest.0 + 1, emptiest.1));
            moved += 1;
        }
    }

    fn give(&mut self, at: usize, topic: Uuid, partition: i32) {
        self.assignments[at].entry(topic).or_default().insert(partition);
        self.loads[at] += 1;
    }

    fn take_last(&mut self, at: usize, topic: Uuid) -> Option<i32> {
        let owned = self.assignments[at].get_mut(&topic)?;
        let partition = owned.pop_last()?;
        if owned.is_empty() {
            self.assignments[at].remove(&topic);
        }
        self.loads[at] -= 1;
        Some(partition)
    }
}
