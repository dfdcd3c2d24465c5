//! The `range` assignor.
//!
//! Every topic is cut into as many ranges as it has subscribers, the first ones larger by one where it does not come out
//! even. Members of topics with as many partitions and subscribers get the same ranges, so that joins work; static
//! members come first, sorted by instance id, so that a restart changes nothing.

use std::collections::BTreeMap;

use super::{Partitions, Subscriber};
use crate::coordinator::group::assignment::Assignment;

/// See [`super::Assignor::assign`].
pub(super) fn assign(members: &[Subscriber<'_>], partitions: &Partitions) -> Vec<Assignment> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|at| {
        let member = &members[*at];
        (member.instance_id.is_none(), member.instance_id, member.id)
    });
    let mut subscribers: BTreeMap<_, usize> = BTreeMap::new();
    for topic in members.iter().flat_map(|member| &member.topics) {
        *subscribers.entry(topic).or_default() += 1;
    }
    // how many subscribers of a topic have their range already
    let mut served: BTreeMap<_, usize> = BTreeMap::new();
    let mut assignments = vec![Assignment::new(); members.len()];
    for at in order {
        for topic in &members[at].topics {
            let rank = served.entry(topic).or_default();
            let range = range(partitions.get(topic).copied().unwrap_or(0), subscribers[topic], *rank);
            *rank += 1;
            if !range.is_empty() {
                assignments[at].insert(*topic, range.collect());
            }
        }
    }
    assignments
}

/// The range of the subscriber with that rank, from 0.
fn range(partitions: i32, subscribers: usize, rank: usize) -> std::ops::Range<i32> {
    let share = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let (subscribers, rank) = (share(subscribers), share(rank));
    let (each, larger) = (partitions / subscribers, partitions % subscribers);
    let start = |rank: i32| each.saturating_mul(rank) + rank.min(larger);
    start(rank)..start(rank.saturating_add(1))
}
