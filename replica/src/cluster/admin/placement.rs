//! Who gets a new topic's partitions: replicas of one partition in as many racks as there are, leaders spread over nodes.
//!
//! As Kafka's `StripedReplicaPlacer`: racks take turns, and within a rack its nodes; nodes that live come before those that
//! are away, and the first replica always lives.

use std::collections::BTreeMap;

use crate::cluster::{
    image::Image,
    model::NodeId,
    plane::{AdminCode, AdminError},
};

/// Where the nodes are that may have replicas.
#[derive(Clone, Debug, Default)]
struct Rack {
    alive: Vec<NodeId>,
    away: Vec<NodeId>,
}

/// The nodes, beginning at another one with every turn.
fn rotated(nodes: &[NodeId], turn: usize) -> Vec<NodeId> {
    let from = if nodes.is_empty() { 0 } else { turn % nodes.len() };
    [&nodes[from..], &nodes[..from]].concat()
}

/// Replicas for `count` partitions. `seed` says where turns begin: another one for every topic spreads them.
pub(crate) fn spread(
    image: &Image,
    count: usize,
    replication_factor: usize,
    seed: u64,
) -> Result<Vec<Vec<NodeId>>, AdminError> {
    let racks = racks(image);
    let all: usize = racks.values().map(|rack| rack.alive.len() + rack.away.len()).sum();
    let refuse = |text: String| Err(AdminError::new(AdminCode::InvalidReplicationFactor, text));
    let times = format!("Unable to replicate the partition {replication_factor} time(s): ");
    if racks.values().all(|rack| rack.alive.is_empty()) {
        return refuse(times + "All brokers are currently fenced.");
    }
    if replication_factor > all {
        return refuse(format!(
            "{times}The target replication factor of {replication_factor} cannot be reached because only {all} \
             broker(s) are registered."
        ));
    }
    let racks: Vec<_> = racks.into_values().collect();
    let begin = usize::try_from(seed % 1_000_000_007).unwrap_or(0);
    Ok((0..count).map(|index| replicas(&racks, begin + index, replication_factor)).collect())
}

fn racks(image: &Image) -> BTreeMap<Option<String>, Rack> {
    let mut racks = BTreeMap::<_, Rack>::new();
    for (id, known) in image.known.iter() {
        let live = image.nodes.get(id).filter(|node| image.draining.get(id) != Some(&node.epoch));
        match live {
            Some(node) => racks.entry(node.rack.clone()).or_default().alive.push(*id),
            None => racks.entry(known.rack.clone()).or_default().away.push(*id),
        }
    }
    racks
}

/// One partition's replicas. The leader's rack is another one with every turn, and the leader another node of it with every
/// round; who follows moves on once all of them led, so that no two nodes always go together.
fn replicas(racks: &[Rack], turn: usize, replication_factor: usize) -> Vec<NodeId> {
    let with_leaders: Vec<_> = (0..racks.len()).filter(|at| !racks[*at].alive.is_empty()).collect();
    let (first, round) = (with_leaders[turn % with_leaders.len()], turn / with_leaders.len());
    let shift = round / racks[first].alive.len();
    let mut own = rotated(&racks[first].alive, round);
    let mut chosen = vec![own.remove(0)];
    let queue = |distance: usize| {
        let rack = &racks[(first + distance) % racks.len()];
        let alive = rotated(&rack.alive, round + shift);
        [alive, rotated(&rack.away, round)].concat()
    };
    // its own rack has its next turn after all others
    let mut queues: Vec<_> = (1..racks.len()).map(queue).collect();
    queues.push([rotated(&own, shift), rotated(&racks[first].away, round)].concat());
    while chosen.len() < replication_factor && queues.iter().any(|queue| !queue.is_empty()) {
        if !queues[0].is_empty() {
            chosen.push(queues[0].remove(0));
        }
        queues.rotate_left(1);
    }
    chosen
}
