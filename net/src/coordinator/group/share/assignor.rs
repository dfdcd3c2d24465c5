//! The assignor of share groups, Kafka's `simple`: every partition with as many members as it takes for everybody to have
//! work, every member about as many partitions as the others, moving as few as possible.
//!
//! A pure function of the members in a fixed order.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use uuid::Uuid;

use crate::coordinator::group::assignment::Assignment;

/// Name of the assignor.
pub(crate) const NAME: &str = "simple";

/// A member as the assignor sees it.
#[derive(Debug)]
pub(crate) struct Subscriber<'a> {
    /// Topics that it subscribes to.
    pub(crate) topics: BTreeSet<Uuid>,
    /// What it was to have before.
    pub(crate) target: &'a Rc<Assignment>,
}

type Partition = (Uuid, i32);

/// Assigns partitions that may be assigned; one assignment for each member comes back in their order.
pub(crate) fn assign(members: &[Subscriber<'_>], assignable: &BTreeMap<Uuid, BTreeSet<i32>>) -> Vec<Assignment> {
    let mut assignments = vec![Assignment::new(); members.len()];
    let is_same = members.windows(2).all(|pair| pair[0].topics == pair[1].topics);
    let all: BTreeSet<Uuid> = members.iter().flat_map(|member| member.topics.iter().copied()).collect();
    if is_same {
        let everybody: Vec<usize> = (0..members.len()).collect();
        share(members, &everybody, &all, assignable, &mut assignments);
    } else {
        // topic by topic among those who want it
        for topic in all {
            let wants = |at: &usize| members[*at].topics.contains(&topic);
            let subscribers: Vec<usize> = (0..members.len()).filter(wants).collect();
            share(members, &subscribers, &[topic].into(), assignable, &mut assignments);
        }
    }
    assignments
}

/// Shares the partitions of some topics among some members.
fn share(
    members: &[Subscriber<'_>],
    among: &[usize],
    topics: &BTreeSet<Uuid>,
    assignable: &BTreeMap<Uuid, BTreeSet<i32>>,
    assignments: &mut [Assignment],
) {
    let of_topic = |topic: &Uuid| {
        let indexes = assignable.get(topic).into_iter().flatten();
        indexes.map(|index| (*topic, *index)).collect::<Vec<_>>()
    };
    let partitions: Vec<Partition> = topics.iter().flat_map(of_topic).collect();
    if partitions.is_empty() || among.is_empty() {
        return;
    }
    let sharing = among.len().div_ceil(partitions.len());
    // as many as are to be given in all, spread evenly
    let upto = |at: usize| (sharing * partitions.len() * at).div_ceil(among.len());
    let wanted: Vec<usize> = (0..among.len()).map(|at| upto(at + 1) - upto(at)).collect();
    let mut holders: BTreeMap<Partition, BTreeSet<usize>> =
        partitions.iter().map(|partition| (*partition, BTreeSet::new())).collect();
    let mut held = vec![0; among.len()];
    for (at, member) in among.iter().enumerate() {
        let before = members[*member].target.iter();
        let before = before.flat_map(|(topic, indexes)| indexes.iter().map(|index| (*topic, *index)));
        for partition in before {
            if let Some(holders) = holders.get_mut(&partition)
                && held[at] < wanted[at]
                && holders.len() < sharing
            {
                holders.insert(at);
                held[at] += 1;
            }
        }
    }
    let mut next = 0;
    for holders in holders.values_mut() {
        let mut refused = 0;
        while holders.len() < sharing && refused < among.len() {
            let at = next % among.len();
            next += 1;
            if held[at] < wanted[at] && holders.insert(at) {
                held[at] += 1;
                refused = 0;
            } else {
                refused += 1;
            }
        }
    }
    for ((topic, index), holders) in holders {
        for at in holders {
            assignments[among[at]].entry(topic).or_default().insert(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(number: u8) -> Uuid {
        Uuid::from_u128(u128::from(number) + 1)
    }

    fn run(wants: &[Vec<u8>], before: &[Assignment], partitions: &[i32]) -> Vec<Assignment> {
        let before: Vec<_> = before.iter().cloned().map(Rc::new).collect();
        let none = Rc::new(Assignment::new());
        let members: Vec<_> = wants
            .iter()
            .enumerate()
            .map(|(at, wants)| Subscriber {
                topics: wants.iter().map(|number| topic(*number)).collect(),
                target: before.get(at).unwrap_or(&none),
            })
            .collect();
        let assignable = (0..).zip(partitions).map(|(number, count)| (topic(number), (0..*count).collect()));
        assign(&members, &assignable.collect())
    }

    fn counts(assignments: &[Assignment]) -> Vec<usize> {
        assignments.iter().map(|assignment| assignment.values().map(BTreeSet::len).sum()).collect()
    }

    #[test]
    fn few_members_share_many_partitions() {
        let wants = vec![vec![0, 1]; 3];
        assert_eq!(counts(&run(&wants, &[], &[4, 2])), [2, 2, 2]);
        assert_eq!(counts(&run(&wants[..1], &[], &[4, 2])), [6]);
    }

    #[test]
    fn many_members_share_few_partitions() {
        assert_eq!(counts(&run(&vec![vec![0]; 4], &[], &[2])), [1, 1, 1, 1]);
        assert_eq!(counts(&run(&vec![vec![0]; 5], &[], &[1])), [1, 1, 1, 1, 1]);
    }

    #[test]
    fn members_keep_what_they_have() {
        let wants = vec![vec![0]; 2];
        let before = run(&wants, &[], &[4]);
        let after = run(&vec![vec![0]; 3], &before, &[4]);
        assert!(after[0].values().flatten().all(|index| before[0].values().flatten().any(|had| had == index)));
        assert_eq!(run(&wants, &before, &[4]), before);
    }

    proptest! {
        #[test]
        fn every_wanted_partition_has_a_member_and_only_such_as_want_it(
            wants in proptest::collection::vec(proptest::collection::btree_set(0_u8..3, 0..4), 1..8),
            partitions in proptest::collection::vec(0_i32..6, 3),
            is_same in any::<bool>(),
        ) {
            let mut wants: Vec<Vec<u8>> = wants.into_iter().map(|wants| wants.into_iter().collect()).collect();
            if is_same {
                let first = wants[0].clone();
                wants.fill(first);
            }
            let before = run(&wants, &[], &[2, 2, 2]);
            let assignments = run(&wants, &before, &partitions);
            for (wants, assignment) in wants.iter().zip(&assignments) {
                for (id, indexes) in assignment {
                    let number = wants.iter().find(|number| topic(**number) == *id);
                    let is_there = number.is_some_and(|number| {
                        indexes.iter().all(|index| *index < partitions[usize::from(*number)])
                    });
                    prop_assert!(is_there);
                }
            }
            for (number, count) in (0..3_u8).zip(&partitions) {
                if wants.iter().any(|wants| wants.contains(&number)) {
                    for index in 0..*count {
                        let has = |assignment: &Assignment| {
                            assignment.get(&topic(number)).is_some_and(|indexes| indexes.contains(&index))
                        };
                        prop_assert!(assignments.iter().any(has), "{number}-{index} has nobody");
                    }
                }
            }
            if is_same && !wants[0].is_empty() {
                let counts = counts(&assignments);
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                prop_assert!(most - least <= 1, "{counts:?}");
            }
        }
    }
}
