//! `millrace promote`: of two nodes without an etcd, the one that kept a copy becomes the leader, as a person has seen to it that
//! the other one leads no more.

use std::{
    io::Write,
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, SystemTime},
};

use millrace_engine::{alone, api::TopicPartition, format::catalog::Catalog, replica::ReplicaPosition};
use millrace_replica::cluster::{
    kept::file::{Contents, StoreFile},
    keys::{self, Entry, MIRROR, StoredMirror},
    model::{Member, NodeState, PartitionState},
    store::{Change, KeyValue},
};

use super::{
    life::Life,
    mirror::{mirror_of, store_path},
};
use crate::{
    config::{Config, Mirror},
    failure::{Failure, Outcome},
    output::Table,
    serve::explain,
};

/// How far the store's revision jumps: beyond all that the former leader can have written meanwhile.
const REVISIONS_SKIPPED: i64 = 1_000_000;
/// How long the former leader may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// Partitions that are listed.
const LISTED_MAX: usize = 200;

/// Does it, and says what it does.
pub(crate) fn promote(config: &Config, fenced: &str, dry_run: bool, out: &mut impl Write) -> Outcome {
    let cluster = config.cluster.as_ref();
    let Some((cluster, mirror)) = cluster.and_then(|cluster| Some((cluster, cluster.etcd.mirror.as_ref()?))) else {
        return Err(Failure::usage(
            "only of two nodes without an etcd: give --cluster, --etcd mirror and --etcd-members",
        ));
    };
    if fenced.trim().is_empty() {
        return Err(Failure::usage("--fenced: say what was done so that the former leader takes nothing any more"));
    }
    // this shows that the node does not run, so that the copy read after it is the last
    let life = Life::open(&config.data_dir, &cluster.name).map_err(Failure::failed)?;
    let as_failure = |error| Failure::failed(explain::start_error(&error));
    let catalog = alone::look(&config.data_dir).map_err(as_failure)?;
    let positions = alone::positions(&config.data_dir, config.wal_bytes.0).map_err(as_failure)?;
    let path = store_path(&config.data_dir);
    let kept = StoreFile::read(&path).map_err(Failure::failed)?;
    let kept =
        kept.ok_or_else(|| Failure::failed("this node has no copy of what the leader knew: nothing can be promoted"))?;
    let before = mirror_of(&kept).ok_or_else(|| Failure::failed("the copy does not say who leads"))?;
    if before.leader == config.node_id {
        return Err(Failure::failed("this node is the leader already"));
    }
    refuse_if_it_answers(&kept, mirror, &before)?;
    let me = Member { node: config.node_id, epoch: life.epoch };
    let promotion = Promotion { me, fenced: fenced.trim().to_owned() };
    let (next, partitions) = promotion.apply(&before, kept).map_err(Failure::failed)?;
    describe(&partitions, (&catalog, &positions), out)?;
    let heard = std::fs::metadata(&path).and_then(|data| data.modified()).ok();
    let ago = heard.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    writeln!(
        out,
        "the leader, node {}, was last heard {} s ago: what it took since then is not here",
        before.leader,
        ago.as_secs()
    )?;
    if dry_run {
        writeln!(out, "nothing was changed")?;
        return Ok(());
    }
    let _hold = alone::hold(&config.data_dir).map_err(as_failure)?;
    StoreFile::create(&path, &next).map_err(Failure::failed)?;
    writeln!(out, "node {} leads from term {} on: start it", config.node_id, before.term + 1)?;
    writeln!(
        out,
        "node {} follows when it comes back; records that only it has go to files in its folder cut-off, for 'millrace log dump'",
        before.leader
    )?;
    Ok(())
}

/// A leader that can be reached leads on, whatever was said of it.
fn refuse_if_it_answers(kept: &Contents, mirror: &Mirror, before: &StoredMirror) -> Outcome {
    let mut addresses = vec![mirror.other.client().to_string()];
    for entry in &kept.entries {
        if let Ok(Some(Entry::Node(NodeState { id, endpoints, peer, .. }))) = keys::decode(entry)
            && id == before.leader
        {
            addresses.push(peer);
            addresses.extend(endpoints.iter().map(|endpoint| format!("{}:{}", endpoint.host, endpoint.port)));
        }
    }
    match addresses.iter().find(|address| answers(address)) {
        None => Ok(()),
        Some(address) => Err(Failure::failed(format!(
            "node {} answers at {address}: it leads. Stop it first; started again after this, it follows",
            before.leader
        ))),
    }
}

fn answers(address: &str) -> bool {
    let found = address.to_socket_addrs().into_iter().flatten();
    found.into_iter().any(|address| TcpStream::connect_timeout(&address, ANSWER_PATIENCE).is_ok())
}

/// What becomes of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Promoted {
    id: TopicPartition,
    /// The leader counted this node as in sync, when it was last heard.
    was_in_sync: bool,
    is_here: bool,
}

/// A node that becomes the leader.
struct Promotion {
    me: Member,
    fenced: String,
}

impl Promotion {
    /// The store in its next term, and what becomes of each partition.
    fn apply(&self, before: &StoredMirror, mut kept: Contents) -> Result<(Contents, Vec<Promoted>), String> {
        let revision = kept.revision + REVISIONS_SKIPPED;
        let (mut changes, mut partitions) = (Vec::new(), Vec::new());
        for entry in &kept.entries {
            match keys::decode(entry).map_err(|error| error.to_string())? {
                // nobody lives in a store that nobody keeps
                Some(Entry::Node(_) | Entry::Draining(..) | Entry::Report(..) | Entry::Controller(_)) => {
                    changes.push(Change::Gone { key: entry.key.clone(), revision });
                }
                Some(Entry::Partition(topic, partition, state)) => {
                    let id = TopicPartition { topic, partition };
                    let promoted = Promoted {
                        id,
                        was_in_sync: state.in_sync(self.me.node).is_some(),
                        is_here: state.replicas.contains(&self.me.node),
                    };
                    if promoted.is_here {
                        let value = keys::encode_partition(&self.led(&state, promoted.was_in_sync));
                        changes.push(written(entry, value, revision));
                    }
                    partitions.push(promoted);
                }
                Some(Entry::Mirror(_)) => {
                    let next =
                        StoredMirror { leader: self.me.node, term: before.term + 1, fenced: self.fenced.clone() };
                    changes.push(written(entry, keys::encode_mirror(&next), revision));
                }
                _ => {}
            }
        }
        debug_assert!(changes.iter().any(|change| change.key() == MIRROR), "it was read before");
        kept.apply(revision, &changes);
        Ok((kept, partitions))
    }

    fn led(&self, state: &PartitionState, was_in_sync: bool) -> PartitionState {
        PartitionState {
            leader: Some(self.me),
            leader_epoch: state.leader_epoch + 1,
            isr: vec![self.me],
            elr: Vec::new(),
            last_known_leader: None,
            recovering: !was_in_sync,
            ..state.clone()
        }
    }
}

fn written(before: &KeyValue, value: Vec<u8>, revision: i64) -> Change {
    Change::Put(KeyValue { value, modified: revision, version: before.version + 1, ..before.clone() })
}

fn describe(
    partitions: &[Promoted],
    (catalog, positions): (&Catalog, &std::collections::BTreeMap<TopicPartition, ReplicaPosition>),
    out: &mut impl Write,
) -> Outcome {
    let mut table = Table::new(&["PARTITION", "HELD UP TO", "SEEN BY CONSUMERS UP TO", "WAS IN SYNC"]);
    for promoted in partitions.iter().take(LISTED_MAX) {
        let name = catalog.topics.get(&promoted.id.topic).map(|topic| topic.name.clone());
        let name = name.unwrap_or_else(|| promoted.id.topic.to_string());
        let position = positions.get(&promoted.id);
        let number = |of: fn(&ReplicaPosition) -> i64| position.map_or("-".to_owned(), |it| of(it).to_string());
        table.row([
            format!("{name}-{}", promoted.id.partition),
            number(|position| position.end),
            number(|position| position.high_watermark),
            match (promoted.is_here, promoted.was_in_sync) {
                (false, _) => "not here: nobody leads it".to_owned(),
                (true, true) => "yes".to_owned(),
                (true, false) => "no: acknowledged records are missing".to_owned(),
            },
        ]);
    }
    table.write(out)?;
    if partitions.len() > LISTED_MAX {
        writeln!(out, "... and {} more", partitions.len() - LISTED_MAX)?;
    }
    let behind = partitions.iter().filter(|promoted| promoted.is_here && !promoted.was_in_sync).count();
    let lost = partitions.iter().filter(|promoted| !promoted.is_here).count();
    writeln!(out, "{} partitions: {behind} not in sync, {lost} not here", partitions.len())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn entry(key: String, value: Vec<u8>) -> KeyValue {
        KeyValue { key, value, created: 5, modified: 9, version: 4, lease: 0 }
    }

    #[test]
    fn who_is_promoted_leads_all_that_it_has_in_the_next_epoch() {
        let topic = Uuid::from_u128(1);
        let [one, two] = [(1, 7), (2, 8)].map(|(node, epoch)| Member { node, epoch });
        let mirror = StoredMirror { leader: 1, term: 3, fenced: String::new() };
        let synced = PartitionState { leader_epoch: 4, ..PartitionState::new(&[one, two]) };
        let behind = PartitionState { isr: vec![one], ..synced.clone() };
        let elsewhere = PartitionState::new(&[one]);
        let states = [&synced, &behind, &elsewhere];
        let mut entries: Vec<_> = (0..3)
            .map(|at| entry(keys::partition(topic, at), keys::encode_partition(states[usize::try_from(at).unwrap()])))
            .collect();
        entries.push(entry(MIRROR.to_owned(), keys::encode_mirror(&mirror)));
        entries.push(entry(keys::draining(2), keys::encode_integer(8)));
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let kept = Contents { identity: 3, revision: 20, entries };
        let promotion = Promotion { me: two, fenced: "power off".to_owned() };
        let (next, partitions) = promotion.apply(&mirror, kept.clone()).unwrap();
        assert_eq!((next.identity, next.revision), (3, 20 + REVISIONS_SKIPPED));
        assert_eq!(mirror_of(&next), Some(StoredMirror { leader: 2, term: 4, fenced: "power off".to_owned() }));
        let state = |at| {
            let found = next.entries.iter().find(|entry| entry.key == keys::partition(topic, at)).unwrap();
            match keys::decode(found) {
                Ok(Some(Entry::Partition(_, _, state))) => (state, found.version),
                other => panic!("{other:?}"),
            }
        };
        let led = |recovering| PartitionState {
            leader: Some(two),
            leader_epoch: 5,
            isr: vec![two],
            recovering,
            ..synced.clone()
        };
        assert_eq!((state(0), state(1)), ((led(false), 5), (led(true), 5)));
        assert_eq!(state(2), (elsewhere, 4), "what is not here is left as it is");
        assert!(next.entries.iter().all(|entry| !entry.key.starts_with("draining/")));
        let was_in_sync: Vec<_> = partitions.iter().map(|it| (it.is_here, it.was_in_sync)).collect();
        assert_eq!(was_in_sync, [(true, true), (true, false), (false, false)]);
    }
}
