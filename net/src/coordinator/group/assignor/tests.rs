//! What every assignment must be like, and some in full.

use proptest::prelude::*;

use super::*;

fn topic(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// Members with their topics and what they had.
type Group = BTreeMap<String, (BTreeSet<Uuid>, Assignment)>;

fn assign(assignor: Assignor, group: &Group, partitions: &Partitions) -> BTreeMap<String, Assignment> {
    let members: Vec<_> = group
        .iter()
        .map(|(id, (topics, target))| Subscriber { id, instance_id: None, topics: topics.clone(), target })
        .collect();
    let assignments = assignor.assign(&members, partitions);
    group.keys().cloned().zip(assignments).collect()
}

fn load(assignment: &Assignment) -> usize {
    assignment.values().map(BTreeSet::len).sum()
}

/// Every partition of every subscribed topic belongs to exactly one of the topic's subscribers.
fn check_complete(group: &Group, partitions: &Partitions, assigned: &BTreeMap<String, Assignment>) {
    let mut seen = BTreeSet::new();
    for (id, assignment) in assigned {
        for (topic, owned) in assignment {
            assert!(!owned.is_empty(), "empty topics are left out");
            assert!(group[id].0.contains(topic), "{id} does not subscribe to {topic}");
            for partition in owned {
                assert!((0..partitions[topic]).contains(partition));
                assert!(seen.insert((*topic, *partition)), "{topic}/{partition} is assigned twice");
            }
        }
    }
    let subscribed: BTreeSet<_> = group.values().flat_map(|(topics, _)| topics).collect();
    let expected: i32 = subscribed.iter().map(|topic| partitions[topic]).sum();
    assert_eq!(seen.len(), expected.unsigned_abs() as usize, "every partition is assigned");
}

fn group(same: bool) -> impl Strategy<Value = (Group, Partitions)> {
    let partitions = proptest::collection::vec(1i32..7, 1..4);
    let members = proptest::collection::btree_map("[a-f]", any::<[bool; 4]>(), 1..6);
    (partitions, members).prop_map(move |(partitions, members)| {
        let partitions: Partitions =
            partitions.into_iter().enumerate().map(|(number, count)| (topic(number as u128), count)).collect();
        let subscribe = |choice: [bool; 4]| {
            let chosen = partitions.keys().enumerate().filter(|(number, _)| same || choice[*number]);
            chosen.map(|(_, topic)| *topic).collect::<BTreeSet<_>>()
        };
        let group = members.into_iter().map(|(id, choice)| (id, (subscribe(choice), Assignment::new())));
        (group.collect(), partitions.clone())
    })
}

proptest! {
    #[test]
    fn assignments_are_complete((group, partitions) in group(false), range in any::<bool>()) {
        let assignor = if range { Assignor::Range } else { Assignor::Uniform };
        check_complete(&group, &partitions, &assign(assignor, &group, &partitions));
    }

    #[test]
    fn uniform_is_balanced_and_moves_little((mut group, partitions) in group(true), leaves in any::<bool>()) {
        let first = assign(Assignor::Uniform, &group, &partitions);
        check_complete(&group, &partitions, &first);
        for (id, assignment) in &first {
            group.get_mut(id).unwrap().1 = assignment.clone();
        }
        prop_assert_eq!(&assign(Assignor::Uniform, &group, &partitions), &first, "nothing changed, nothing moves");
        let topics = group.values().next().unwrap().0.clone();
        if leaves && group.len() > 1 {
            group.pop_last();
        } else {
            group.insert("zz".to_owned(), (topics, Assignment::new()));
        }
        let second = assign(Assignor::Uniform, &group, &partitions);
        check_complete(&group, &partitions, &second);
        let loads: Vec<_> = second.values().map(load).collect();
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{:?}", loads);
        // a member loses something only if it has more than the least of all
        for (id, assignment) in &second {
            let lost = group[id].1.iter().any(|(topic, owned)| {
                owned.iter().any(|partition| !assignment.get(topic).is_some_and(|now| now.contains(partition)))
            });
            let before = load(&group[id].1);
            prop_assert!(!lost || load(assignment) < before, "{} lost without need", id);
        }
    }

    #[test]
    fn uniform_with_different_topics_cannot_be_better_by_one_move((mut group, partitions) in group(false)) {
        for _ in 0..2 {
            let assigned = assign(Assignor::Uniform, &group, &partitions);
            check_complete(&group, &partitions, &assigned);
            for (from, assignment) in &assigned {
                for topic in assignment.keys() {
                    let subscribers = group.iter().filter(|(_, (topics, _))| topics.contains(topic));
                    for (to, _) in subscribers {
                        prop_assert!(load(assignment) <= load(&assigned[to]) + 1, "{} should give to {}", from, to);
                    }
                }
            }
            for (id, assignment) in &assigned {
                group.get_mut(id).unwrap().1 = assignment.clone();
            }
        }
    }
}

#[test]
fn ranges_of_topics_with_as_many_partitions_go_together() {
    let topics: BTreeSet<_> = [topic(1), topic(2)].into();
    let none = Assignment::new();
    let member = |id, instance_id| Subscriber { id, instance_id, topics: topics.clone(), target: &none };
    let members = [member("a", None), member("b", Some("z")), member("c", Some("y"))];
    let partitions = [(topic(1), 5), (topic(2), 5)].into();
    let assigned = Assignor::Range.assign(&members, &partitions);
    let both = |range: std::ops::Range<i32>| -> Assignment {
        [(topic(1), range.clone().collect()), (topic(2), range.collect())].into()
    };
    assert_eq!(assigned, [both(4..5), both(2..4), both(0..2)], "static members first, by instance id");
}

#[test]
fn more_members_than_partitions_leaves_some_without() {
    let group: Group = ["a", "b", "c"].map(|id| (id.to_owned(), ([topic(1)].into(), Assignment::new()))).into();
    let partitions = [(topic(1), 2)].into();
    for assignor in ASSIGNORS {
        let loads: Vec<_> = assign(*assignor, &group, &partitions).values().map(load).collect();
        assert_eq!(loads.iter().sum::<usize>(), 2, "{}", assignor.name());
    }
}
