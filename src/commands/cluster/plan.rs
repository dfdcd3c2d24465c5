//! Which partitions get which other replicas, so that a node has none, or all have enough. Pure.
//!
//! New replicas go to nodes that have the fewest, of racks that the partition is not on yet where there are such. What
//! stays keeps its place, so that the preferred leader changes only where it has to; but where partitions get more replicas,
//! nodes that are preferred by fewer partitions become preferred leaders: the first node of a cluster led everything else.
//! What nodes have and lead counts over all topics, also where only some of them get other replicas.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use millrace_client::{Node, Reassignment, Topic};

use crate::output::joined;

/// What shall be so afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// That node has no replicas.
    Without(i32),
    /// Each partition has at least so many.
    Replicas(usize),
    /// That node has all replicas.
    Only(i32),
}

/// One partition's other replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    topic: String,
    partition: i32,
    from: Vec<i32>,
    to: Vec<i32>,
}

impl Move {
    /// As a request carries it.
    pub(super) fn reassignment(&self) -> Reassignment {
        let Self { topic, partition, to, .. } = self.clone();
        Reassignment { topic, partition, replicas: Some(to) }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}: {} -> {}", self.topic, self.partition, joined(&self.from), joined(&self.to))
    }
}

/// Chooses, for the topics named, or for all if none is. The error says what cannot be.
pub(super) fn plan(nodes: &[Node], topics: &[Topic], named: &[String], goal: &Goal) -> Result<Vec<Move>, String> {
    let mut loads: BTreeMap<i32, usize> = nodes.iter().map(|node| (node.id, 0)).collect();
    for id in topics.iter().flat_map(|topic| topic.partitions.values()).flat_map(|partition| &partition.replicas) {
        if let Some(load) = loads.get_mut(id) {
            *load += 1;
        }
    }
    let racks: BTreeMap<i32, &str> = nodes.iter().filter_map(|node| Some((node.id, node.rack.as_deref()?))).collect();
    let mut leads = preferred(topics);
    let mut moves = Vec::new();
    if let Goal::Only(id) = goal
        && !loads.contains_key(id)
    {
        return Err(format!("node {id} does not run"));
    }
    for topic in topics.iter().filter(|topic| named.is_empty() || named.contains(&topic.name)) {
        for (partition, state) in &topic.partitions {
            let wanted = match goal {
                Goal::Without(_) => state.replicas.len(),
                Goal::Replicas(count) => state.replicas.len().max(*count),
                Goal::Only(_) => 1,
            };
            let mut to: Vec<Option<i32>> = state.replicas.iter().map(|id| Some(*id)).collect();
            if let Goal::Only(id) = goal {
                to = vec![Some(*id)];
            }
            to.iter_mut()
                .filter(|id| matches!((&id, goal), (Some(id), Goal::Without(gone)) if id == gone))
                .for_each(|id| *id = None);
            to.resize(wanted, None);
            let mut to = fill(to, &mut loads, &racks, goal)
                .ok_or_else(|| format!("{}-{partition} cannot have {wanted} replicas: too few nodes", topic.name))?;
            if to != state.replicas {
                if matches!(goal, Goal::Replicas(_)) {
                    prefer(&mut to, &mut leads);
                }
                let from = state.replicas.clone();
                moves.push(Move { topic: topic.name.clone(), partition: *partition, from, to });
            }
        }
    }
    Ok(moves)
}

/// How many partitions prefer each node as their leader.
fn preferred(topics: &[Topic]) -> BTreeMap<i32, usize> {
    let mut leads = BTreeMap::new();
    for first in
        topics.iter().flat_map(|topic| topic.partitions.values()).filter_map(|partition| partition.replicas.first())
    {
        *leads.entry(*first).or_default() += 1;
    }
    leads
}

/// Puts the node in front that fewer partitions prefer, if that brings them nearer to each other.
fn prefer(replicas: &mut [i32], leads: &mut BTreeMap<i32, usize>) {
    let count = |id: &i32| leads.get(id).copied().unwrap_or(0);
    let Some(fewest) = (0..replicas.len()).min_by_key(|at| count(&replicas[*at])) else { return };
    let (first, other) = (replicas[0], replicas[fewest]);
    if count(&other) + 1 < count(&first) {
        replicas[..=fewest].rotate_right(1);
        *leads.entry(first).or_default() -= 1;
        *leads.entry(other).or_default() += 1;
    }
}

/// Gives every empty place a node.
fn fill(
    mut places: Vec<Option<i32>>,
    loads: &mut BTreeMap<i32, usize>,
    racks: &BTreeMap<i32, &str>,
    goal: &Goal,
) -> Option<Vec<i32>> {
    for at in 0..places.len() {
        if places[at].is_some() {
            continue;
        }
        let taken: BTreeSet<i32> = places.iter().flatten().copied().collect();
        let taken_racks: BTreeSet<&str> = taken.iter().filter_map(|id| racks.get(id).copied()).collect();
        let is_free = |id: &i32| !taken.contains(id) && *goal != Goal::Without(*id);
        let is_on_taken_rack = |id: &i32| racks.get(id).is_some_and(|rack| taken_racks.contains(rack));
        let free = loads.iter().filter(|(id, _)| is_free(id));
        let (id, _) = free.min_by_key(|(id, load)| (is_on_taken_rack(id), **load, **id))?;
        let id = *id;
        *loads.get_mut(&id).expect("it is one of them") += 1;
        places[at] = Some(id);
    }
    places.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use millrace_client::Partition;

    use super::*;

    fn nodes(racks: &[Option<&str>]) -> Vec<Node> {
        let node = |(at, rack): (usize, &Option<&str>)| Node {
            id: i32::try_from(at).unwrap() + 1,
            host: "h".to_owned(),
            port: 1,
            rack: rack.map(str::to_owned),
        };
        racks.iter().enumerate().map(node).collect()
    }

    fn topic(name: &str, replicas: &[&[i32]]) -> Topic {
        let partition = |(at, ids): (usize, &&[i32])| {
            let partition =
                Partition { leader: ids[0], leader_epoch: 0, replicas: ids.to_vec(), in_sync: ids.to_vec() };
            (i32::try_from(at).unwrap(), partition)
        };
        let partitions = replicas.iter().enumerate().map(partition).collect();
        Topic { name: name.to_owned(), id: uuid::Uuid::nil(), is_internal: false, partitions }
    }

    fn planned(racks: &[Option<&str>], replicas: &[&[i32]], goal: Goal) -> Result<Vec<String>, String> {
        let moves = plan(&nodes(racks), &[topic("t", replicas)], &[], &goal)?;
        Ok(moves.iter().map(Move::to_string).collect())
    }

    #[test]
    fn a_node_is_drained_to_those_that_have_the_fewest() {
        let moves = planned(&[None; 4], &[&[1, 2, 3], &[2, 3, 4], &[3, 1, 2]], Goal::Without(3)).unwrap();
        assert_eq!(moves, ["t-0: 1,2,3 -> 1,2,4", "t-1: 2,3,4 -> 2,1,4", "t-2: 3,1,2 -> 4,1,2"]);
    }

    #[test]
    fn a_node_that_is_away_is_drained_too() {
        assert_eq!(planned(&[None; 3], &[&[9, 1]], Goal::Without(9)).unwrap(), ["t-0: 9,1 -> 2,1"]);
    }

    #[test]
    fn racks_without_a_replica_come_first() {
        let racks = [Some("a"), Some("a"), Some("b")];
        assert_eq!(planned(&racks, &[&[1], &[3], &[3]], Goal::Replicas(2)).unwrap()[0], "t-0: 1 -> 1,3");
    }

    #[test]
    fn all_come_to_one_node_that_runs() {
        let moves = planned(&[None; 2], &[&[1, 2], &[2, 9], &[1]], Goal::Only(1)).unwrap();
        assert_eq!(moves, ["t-0: 1,2 -> 1", "t-1: 2,9 -> 1"]);
        assert!(planned(&[None; 2], &[&[1, 2]], Goal::Only(9)).unwrap_err().contains("does not run"));
    }

    #[test]
    fn partitions_that_get_more_replicas_prefer_all_nodes_alike() {
        // All partitions of a node that was alone preferred it, so that it led everything for good.
        let moves = planned(&[None; 3], &[&[1], &[1], &[1], &[1, 2]], Goal::Replicas(3)).unwrap();
        assert_eq!(moves, ["t-0: 1 -> 3,1,2", "t-1: 1 -> 2,1,3", "t-2: 1 -> 1,3,2", "t-3: 1,2 -> 1,2,3"]);
        let moves = planned(&[None; 3], &[&[1, 2], &[1, 2], &[3]], Goal::Replicas(2)).unwrap();
        assert_eq!(moves, ["t-2: 3 -> 3,1"], "what has enough prefers whom it preferred");
    }

    #[test]
    fn topics_that_are_not_named_count_and_stay() {
        // Only the topic that was named counted: what a node led of the others did not keep it from leading this one too.
        let topics = [topic("t", &[&[1], &[1]]), topic("u", &[&[2, 1], &[2, 1], &[3]])];
        let moves = plan(&nodes(&[None; 3]), &topics, &["t".to_owned()], &Goal::Replicas(2)).unwrap();
        let moves: Vec<String> = moves.iter().map(Move::to_string).collect();
        assert_eq!(moves, ["t-0: 1 -> 1,3", "t-1: 1 -> 1,2"]);
    }

    #[test]
    fn what_has_enough_stays_as_it_is() {
        assert_eq!(planned(&[None; 3], &[&[1, 2, 3]], Goal::Replicas(2)).unwrap(), [""; 0]);
    }

    #[test]
    fn too_few_nodes_are_said() {
        let error = planned(&[None; 2], &[&[1, 2]], Goal::Without(1)).unwrap_err();
        assert_eq!(error, "t-0 cannot have 2 replicas: too few nodes");
    }
}
