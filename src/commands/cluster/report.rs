//! What `millrace cluster status` says: nodes, and what is not as it should be, with what to do about it. Pure but for
//! writing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use millrace_client::{FollowerLag, Members, Partition, Topic};

use crate::{
    failure::Outcome,
    output::{Table, joined},
};

/// Partitions that are named at most, of each kind of trouble.
const NAMED_MAX: usize = 8;
/// How long a node that is up may lack records until that is said to be trouble, in ms: a flush that takes long is none, and
/// after that time a leader takes it out of the ISR if its connection broke.
const LAG_MS_TROUBLE: u64 = 1_000;

/// What a node has.
#[derive(Default)]
struct Share {
    leads: usize,
    replicas: usize,
    in_sync: usize,
}

/// What was heard of nodes themselves.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// What each lacks as a follower.
    pub(super) lags: BTreeMap<i32, FollowerLag>,
    /// Those that count as up for the cluster and take no connections from here.
    pub(super) silent: Vec<i32>,
    /// What keeps nodes from etcd, and whom.
    pub(super) etcd_troubles: BTreeMap<String, Vec<i32>>,
    /// min.insync.replicas of topics that lack replicas in sync.
    pub(super) min_in_sync: BTreeMap<String, usize>,
}

/// Writes it.
pub(super) fn report(members: &Members, topics: &[Topic], heard: &Heard, out: &mut impl Write) -> Outcome {
    let Heard { lags, silent, etcd_troubles, min_in_sync } = heard;
    let shares = shares(members, topics);
    let count = members.nodes.len();
    let id = members.cluster_id.as_deref().unwrap_or("-");
    let controller = members.controller.map_or("-".to_owned(), |id| id.to_string());
    writeln!(
        out,
        "cluster {id}: {}, controller {controller}, {}",
        counted(count, "node"),
        counted(topics.len(), "topic")
    )?;
    let mut table = Table::new(&["NODE", "STATE", "ADDRESS", "RACK", "LEADS", "REPLICAS", "IN SYNC", "LACKS"]);
    for (id, share) in &shares {
        let node = members.nodes.iter().find(|node| node.id == *id);
        table.row([
            id.to_string(),
            state(node.is_some(), silent.contains(id)).to_owned(),
            node.map_or("-".to_owned(), |node| format!("{}:{}", node.host, node.port)),
            node.and_then(|node| node.rack.clone()).unwrap_or_else(|| "-".to_owned()),
            share.leads.to_string(),
            share.replicas.to_string(),
            share.in_sync.to_string(),
            lags.get(id).map_or("-".to_owned(), lacks),
        ]);
    }
    table.write(out)?;
    let mut troubles: Vec<String> = silent.iter().filter_map(|id| silence(members, *id)).collect();
    troubles.extend(etcd_troubles.iter().map(|(trouble, ids)| {
        let who = if ids.len() == 1 { "node" } else { "nodes" };
        let ids = joined(ids);
        format!("{who} {ids}: {trouble}; produce and fetch go on, nobody is elected and no topic changes meanwhile")
    }));
    troubles.extend(self::troubles(members, topics, &shares, lags));
    troubles.extend(refusing(topics, min_in_sync));
    for trouble in &troubles {
        writeln!(out, "{trouble}")?;
    }
    if troubles.is_empty() {
        writeln!(out, "all is well: every partition has a leader, and all replicas are in sync")?;
    }
    if shares.len() == 2 {
        writeln!(out, "note: two nodes bear no loss while both have to acknowledge; a third one does")?;
    }
    Ok(())
}

fn state(is_member: bool, is_silent: bool) -> &'static str {
    match (is_member, is_silent) {
        (false, _) => "away",
        (true, true) => "silent",
        (true, false) => "up",
    }
}

/// What is to be said of a node that is silent. Who was asked may not know better: the follower of two nodes without an etcd
/// hears of nobody's end when its leader is lost.
fn silence(members: &Members, id: i32) -> Option<String> {
    let node = members.nodes.iter().find(|node| node.id == id)?;
    Some(format!(
        "node {id} counts as up, and nobody answers at {}:{}: it has just ended, or is not reached from here; of two nodes without \
         an etcd, 'millrace promote' has the follower lead",
        node.host, node.port
    ))
}

/// A number and its noun.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn shares(members: &Members, topics: &[Topic]) -> BTreeMap<i32, Share> {
    let mut shares: BTreeMap<i32, Share> = members.nodes.iter().map(|node| (node.id, Share::default())).collect();
    for partition in topics.iter().flat_map(|topic| topic.partitions.values()) {
        for id in &partition.replicas {
            let share = shares.entry(*id).or_default();
            share.replicas += 1;
            share.leads += usize::from(partition.leader == *id);
            share.in_sync += usize::from(partition.in_sync.contains(id));
        }
    }
    shares
}

/// What a follower lacks, in short.
fn lacks(lag: &FollowerLag) -> String {
    match lag.records {
        0 => "nothing".to_owned(),
        records => format!("{records} records, {}, for {}", size(lag.bytes), duration(lag.ms)),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        ..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn duration(ms: u64) -> String {
    if ms < 10_000 { format!("{ms} ms") } else { format!("{} s", ms / 1_000) }
}

fn troubles(
    members: &Members,
    topics: &[Topic],
    shares: &BTreeMap<i32, Share>,
    lags: &BTreeMap<i32, FollowerLag>,
) -> Vec<String> {
    let mut troubles = Vec::new();
    let is_up = |id: &i32| members.nodes.iter().any(|node| node.id == *id);
    for id in shares.keys().filter(|id| !is_up(id)) {
        troubles.push(format!(
            "node {id} is away: start it; if it will not come back, 'millrace cluster drain {id}' gives its replicas to \
             others, then 'millrace cluster remove {id}'"
        ));
    }
    for lag in lags.values().filter(|lag| is_up(&lag.node) && lag.ms >= LAG_MS_TROUBLE) {
        let FollowerLag { node, partitions, in_sync, .. } = lag;
        troubles.push(format!(
            "node {node} has lacked records for {} ({} of them, {}) and is in sync in {in_sync} of {partitions} partitions that it \
             follows: it catches up while this falls; otherwise its process stands still, or its disk or the network does \
             not keep up: see its log and, there, 'millrace doctor'",
            duration(lag.ms),
            lag.records,
            size(lag.bytes),
        ));
    }
    let leaderless = named(topics, |partition| partition.leader < 0);
    if let Some((count, names)) = leaderless {
        let waiting = waited_for(topics);
        troubles.push(format!(
            "{} without a leader: {names}: start the nodes {waiting}; if they are lost, 'millrace cluster \
             promote --topic NAME' goes on with less",
            counted(count, "partition")
        ));
    }
    let lacking = |partition: &Partition| partition.in_sync.len() < partition.replicas.len();
    if let Some((count, names)) = named(topics, lacking) {
        let partitions = counted(count, "partition");
        troubles.push(format!("{partitions} under-replicated: {names}: replicas are away or catching up"));
    }
    let is_stray = |partition: &Partition| {
        let first = partition.replicas.first();
        partition.leader >= 0 && first.is_some_and(|id| *id != partition.leader && partition.in_sync.contains(id))
    };
    if let Some((count, _)) = named(topics, is_stray) {
        troubles.push(format!(
            "{} led by another node than preferred: 'millrace cluster balance' changes that",
            counted(count, "partition")
        ));
    }
    troubles
}

/// Partitions that take nothing with acks=all, as fewer replicas are in sync than min.insync.replicas.
fn refusing(topics: &[Topic], min_in_sync: &BTreeMap<String, usize>) -> Option<String> {
    let refuses = |topic: &Topic, partition: &Partition| {
        let min = min_in_sync.get(&topic.name).map_or(1, |min| (*min).min(partition.replicas.len()));
        partition.leader >= 0 && partition.in_sync.len() < min
    };
    let (count, names) = named_of(topics, refuses)?;
    let of_them = topics.iter().flat_map(|topic| topic.partitions.values().filter(|it| refuses(topic, it)));
    let missing: BTreeSet<i32> = of_them
        .flat_map(|partition| partition.replicas.iter().filter(|id| !partition.in_sync.contains(id)))
        .copied()
        .collect();
    let missing = joined(&missing.into_iter().collect::<Vec<_>>());
    Some(format!(
        "{} with fewer replicas in sync than min.insync.replicas, so that acks=all is refused: {names}: they take records again \
         once enough of nodes {missing} are up and caught up; if these are lost, 'millrace cluster drain ID' gives their replicas \
         to others, and 'millrace config alter --topic NAME --set min.insync.replicas=1' does with what there is",
        counted(count, "partition")
    ))
}

/// Nodes that have a replica of a partition without a leader and are not there to lead.
fn waited_for(topics: &[Topic]) -> String {
    let orphans = topics.iter().flat_map(|topic| topic.partitions.values()).filter(|partition| partition.leader < 0);
    let ids: BTreeSet<i32> = orphans
        .flat_map(|partition| if partition.in_sync.is_empty() { &partition.replicas } else { &partition.in_sync })
        .copied()
        .collect();
    joined(&ids.into_iter().collect::<Vec<_>>())
}

/// How many partitions there are of which that holds, and the names of some.
fn named(topics: &[Topic], holds: impl Fn(&Partition) -> bool) -> Option<(usize, String)> {
    named_of(topics, |_, partition| holds(partition))
}

/// The same by what their topics are.
fn named_of(topics: &[Topic], holds: impl Fn(&Topic, &Partition) -> bool) -> Option<(usize, String)> {
    let partitions = topics.iter().flat_map(|topic| topic.partitions.iter().map(move |it| (topic, it)));
    let found: Vec<_> = partitions.filter(|(topic, (_, partition))| holds(topic, partition)).collect();
    let names = found.iter().take(NAMED_MAX).map(|(topic, (index, _))| format!("{}-{index}", topic.name));
    let mut names = names.collect::<Vec<_>>().join(", ");
    if found.len() > NAMED_MAX {
        names.push_str(", ...");
    }
    (!found.is_empty()).then_some((found.len(), names))
}

#[cfg(test)]
mod tests {
    use millrace_client::Node;

    use super::*;

    fn topic(name: &str, partitions: &[(i32, &[i32], &[i32])]) -> Topic {
        let partition = |(at, (leader, replicas, in_sync)): (usize, &(i32, &[i32], &[i32]))| {
            let partition =
                Partition { leader: *leader, leader_epoch: 1, replicas: replicas.to_vec(), in_sync: in_sync.to_vec() };
            (i32::try_from(at).unwrap(), partition)
        };
        let partitions = partitions.iter().enumerate().map(partition).collect();
        Topic { name: name.to_owned(), id: uuid::Uuid::nil(), is_internal: false, partitions }
    }

    fn said(ids: &[i32], topics: &[Topic]) -> String {
        said_with(ids, topics, &[], &[])
    }

    fn said_with(ids: &[i32], topics: &[Topic], lags: &[FollowerLag], silent: &[i32]) -> String {
        let lags = lags.iter().map(|lag| (lag.node, *lag)).collect();
        said_of(ids, topics, &Heard { lags, silent: silent.to_vec(), ..Heard::default() })
    }

    fn said_of(ids: &[i32], topics: &[Topic], heard: &Heard) -> String {
        let node = |id: &i32| Node { id: *id, host: "h".to_owned(), port: 9092, rack: None };
        let members =
            Members { cluster_id: Some("c".to_owned()), nodes: ids.iter().map(node).collect(), controller: Some(1) };
        let mut out = Vec::new();
        report(&members, topics, heard, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_cluster_without_trouble_is_said_to_be_well() {
        let text = said(&[1, 2, 3], &[topic("a", &[(1, &[1, 2, 3], &[1, 2, 3])])]);
        assert!(text.contains("3 nodes") && text.contains("all is well"), "{text}");
        assert!(text.contains("1     up     h:9092   -     1      1         1        -"), "{text}");
    }

    #[test]
    fn each_trouble_is_said_with_what_to_do() {
        let a = topic("a", &[(1, &[1, 2, 3], &[1, 2]), (-1, &[3], &[3]), (2, &[1, 2], &[1, 2])]);
        let text = said(&[1, 2], &[a]);
        for part in [
            "node 3 is away: start it",
            "1 partition without a leader: a-1: start the nodes 3",
            "1 partition under-replicated: a-0",
            "1 partition led by another node than preferred",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_a_follower_lacks_is_said_and_is_trouble_if_it_lasts() {
        let lag = |node, records, ms| FollowerLag { node, partitions: 1, in_sync: 0, records, bytes: 20_000_000, ms };
        let a = [topic("a", &[(1, &[1, 2, 3], &[1, 2, 3])])];
        let text = said_with(&[1, 2, 3], &a, &[lag(2, 0, 0), lag(3, 7, 12)], &[]);
        assert!(text.contains("1        nothing") && text.contains("7 records, 20 MB, for 12 ms"), "{text}");
        assert!(text.contains("all is well"), "{text}");
        let text = said_with(&[1, 2, 3], &a, &[lag(3, 7, 42_000)], &[]);
        assert!(
            text.contains("node 3 has lacked records for 42 s (7 of them, 20 MB) and is in sync in 0 of 1"),
            "{text}"
        );
        assert!(!text.contains("all is well"), "{text}");
    }

    #[test]
    fn a_node_that_counts_as_up_and_does_not_answer_is_no_good_news() {
        // The follower of two nodes without an etcd was asked after its leader had been killed: it said that all was well.
        let text = said_with(&[1, 2], &[topic("a", &[(1, &[1, 2], &[1, 2])])], &[], &[1]);
        assert!(text.contains("1     silent  h:9092") && text.contains("2     up      h:9092"), "{text}");
        assert!(
            text.contains("node 1 counts as up, and nobody answers at h:9092") && !text.contains("all is well"),
            "{text}"
        );
    }

    /// An etcd whose space was used up was told of everywhere but here: the cluster was said to be well.
    #[test]
    fn what_keeps_nodes_from_etcd_is_trouble() {
        let trouble = "etcd takes no writes: 'etcdctl alarm disarm'".to_owned();
        let heard = Heard { etcd_troubles: [(trouble, vec![1, 3])].into(), ..Heard::default() };
        let text = said_of(&[1, 2, 3], &[topic("a", &[(1, &[1, 2, 3], &[1, 2, 3])])], &heard);
        assert!(text.contains("nodes 1,3: etcd takes no writes: 'etcdctl alarm disarm'; produce"), "{text}");
        assert!(!text.contains("all is well"), "{text}");
    }

    /// A topic that refused every record of careful producers was said to be under-replicated, like one that took all.
    #[test]
    fn partitions_that_refuse_acks_all_are_said_with_what_to_do() {
        let orders = topic("orders", &[(1, &[1, 2, 3], &[1]), (1, &[1, 2, 3], &[1, 2]), (-1, &[2, 3], &[])]);
        let small = topic("small", &[(1, &[1], &[1]), (1, &[1, 2], &[1])]);
        let min_in_sync = [("orders".to_owned(), 2), ("small".to_owned(), 1)].into();
        let heard = Heard { min_in_sync, ..Heard::default() };
        let text = said_of(&[1], &[orders, small], &heard);
        assert!(text.contains("1 partition with fewer replicas in sync than min.insync.replicas"), "{text}");
        assert!(
            text.contains("acks=all is refused: orders-0: they take records again once enough of nodes 2,3"),
            "{text}"
        );
        let all_there = topic("orders", &[(1, &[1, 2], &[1, 2])]);
        assert!(!said_of(&[1, 2], &[all_there], &heard).contains("acks=all"));
        // as many as there are will do where there are fewer replicas than min.insync.replicas
        let one = topic("orders", &[(1, &[1], &[1])]);
        assert!(!said_of(&[1], &[one], &heard).contains("acks=all"));
    }

    #[test]
    fn two_nodes_are_told_what_a_third_one_is_for() {
        let text = said(&[1, 2], &[topic("a", &[(1, &[1, 2], &[1, 2])])]);
        assert!(text.contains("all is well") && text.contains("two nodes bear no loss"), "{text}");
    }

    #[test]
    fn only_some_of_many_partitions_are_named() {
        let many: Vec<(i32, &[i32], &[i32])> = vec![(1, &[1, 2, 3], &[1]); 20];
        let text = said(&[1, 2, 3], &[topic("a", &many)]);
        assert!(text.contains("20 partitions under-replicated: a-0, ") && text.contains("a-7, ..."), "{text}");
    }
}
