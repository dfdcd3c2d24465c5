//! What has to hold when coordinators have loaded and nothing is under way: what the logs say against what clients were told.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::{
    batch::{BatchInfo, end_marker, records},
    simulated::Stable,
    transactions::Outcome,
};

use super::{
    DATA, IDS, INPUT_TOPIC, Key, STATES, Sent, TopicPartition, World, data, ended_partitions, group_of, is_of_groups,
    life::Life, offsets,
};
use crate::coordinator::group::record::Record;

/// What a client makes of what it is given.
pub(super) fn committed_of(stable: &Stable) -> BTreeSet<Key> {
    let mut aborted = stable.aborted.clone();
    aborted.sort_by_key(|one| one.first_offset);
    let mut aborted = aborted.into_iter().peekable();
    let (mut skipped, mut committed) = (BTreeSet::new(), BTreeSet::new());
    for (info, bytes) in &stable.batches {
        while let Some(begun) = aborted.next_if(|one| one.first_offset <= info.last_offset()) {
            skipped.insert(begun.producer_id);
        }
        match end_of(info, bytes) {
            Some(Outcome::Abort) => {
                skipped.remove(&info.producer_id);
            }
            None if !skipped.contains(&info.producer_id) => {
                committed.insert((info.producer_id, info.producer_epoch));
            }
            Some(Outcome::Commit) | None => {}
        }
    }
    committed
}

pub(super) fn end_of(info: &BatchInfo, bytes: &[u8]) -> Option<Outcome> {
    end_marker(bytes).expect("the log is whole").filter(|_| info.is_control()).map(|end| end.outcome)
}

/// What the logs say of each transaction: how it ended in which partition (`None`: it has not), where its batches are, and
/// which offsets it commits.
#[derive(Default)]
struct Logged {
    ends: BTreeMap<Key, BTreeMap<TopicPartition, Option<Outcome>>>,
    batches: BTreeMap<Key, BTreeSet<(TopicPartition, i64)>>,
    offsets: BTreeMap<Key, BTreeSet<i64>>,
}

async fn look_at_logs(life: &Life) -> Logged {
    let mut logged = Logged::default();
    for partition in ended_partitions() {
        let mut open: BTreeMap<i64, Key> = BTreeMap::new();
        let mut nobodys: BTreeSet<Key> = BTreeSet::new();
        for (info, bytes) in life.shards.all_batches(partition).await {
            let key = (info.producer_id, info.producer_epoch);
            match end_of(&info, &bytes) {
                Some(outcome) => {
                    if let Some(key) = open.remove(&info.producer_id) {
                        logged.ends.entry(key).or_default().insert(partition, Some(outcome));
                        if outcome == Outcome::Abort {
                            logged.batches.entry(key).or_default().retain(|(of, _)| *of != partition);
                            if is_of_groups(partition) {
                                logged.offsets.remove(&key);
                            }
                            // its coordinator's end has the next epoch
                            if info.producer_epoch == key.1 {
                                nobodys.insert(key);
                            }
                        }
                    }
                }
                None => {
                    let former = open.insert(info.producer_id, key);
                    assert!(
                        former.is_none_or(|former| former == key),
                        "{key:?} in {partition:?} behind {former:?} that is open"
                    );
                    let before = logged.ends.entry(key).or_default().insert(partition, None);
                    // what was nobody's and is aborted may be sent again
                    let has_ended = matches!(before, Some(Some(_))) && !nobodys.remove(&key);
                    assert!(!has_ended, "{key:?} goes on in {partition:?} behind its end");
                    logged.batches.entry(key).or_default().insert((partition, info.base_offset));
                    if partition.topic == offsets(0).topic {
                        let committed = commits(&bytes).into_iter().map(|(_, offset, _)| offset);
                        logged.offsets.entry(key).or_default().extend(committed);
                    }
                }
            }
        }
    }
    logged
}

/// The offsets in a batch of a group's partition: group, offset, and where its record is.
fn commits(batch: &[u8]) -> Vec<(String, i64, i64)> {
    let all = records(batch).expect("the log is whole").into_iter().filter_map(|record| {
        let key = record.key.as_deref().unwrap_or_default();
        match Record::decode(key, record.value.as_deref()) {
            Ok(Some(Record::OffsetCommit { group, value: Some(value), .. })) => {
                Some((group.to_string(), value.offset, record.offset))
            }
            Ok(_) => None,
            Err(error) => panic!("a record of a group: {error}"),
        }
    });
    all.collect()
}

/// The offsets that count by what a partition's log says, by group.
fn committed_offsets(batches: &[(BatchInfo, bytes::Bytes)]) -> BTreeMap<String, i64> {
    let mut pending: BTreeMap<i64, Vec<(String, i64, i64)>> = BTreeMap::new();
    let mut committed: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (info, bytes) in batches {
        match end_of(info, bytes) {
            None => pending.entry(info.producer_id).or_default().extend(commits(bytes)),
            Some(Outcome::Abort) => drop(pending.remove(&info.producer_id)),
            Some(Outcome::Commit) => {
                for (group, offset, at) in pending.remove(&info.producer_id).unwrap_or_default() {
                    let known = committed.entry(group).or_insert((at, offset));
                    *known = (at, offset).max(*known);
                }
            }
        }
    }
    committed.into_iter().map(|(group, (_, offset))| (group, offset)).collect()
}

/// See the module.
pub(super) async fn check(life: &std::rc::Rc<Life>) {
    let world = &life.world;
    for partition in 0..DATA {
        let stable = life.shards.stable(data(partition)).await;
        world.note_seen(partition, &stable);
    }
    let logged = look_at_logs(life).await;
    for (key, ends) in &logged.ends {
        let sent = world.sent.borrow().get(key).cloned().unwrap_or_default();
        check_one(world, *key, &sent, ends, &logged);
    }
    for (key, sent) in &*world.sent.borrow() {
        let is_committed = sent.is_answered && sent.asked == Some(Outcome::Commit) && !sent.acked.is_empty();
        assert!(!is_committed || logged.ends.contains_key(key), "{key:?} was answered as committed and is lost");
    }
    for index in 0..STATES {
        let expected = committed_offsets(&life.shards.all_batches(offsets(index)).await);
        for id in (0..IDS).filter(|id| group_of(*id) == offsets(index)) {
            let group = format!("group-{id}");
            let told = life.committed_offset(id).await;
            assert_eq!(told, expected.get(&group).copied(), "{group} has read of {INPUT_TOPIC}");
        }
    }
    life.check_owned();
}

/// A transaction that is in the logs.
fn check_one(world: &World, key: Key, sent: &Sent, ends: &BTreeMap<TopicPartition, Option<Outcome>>, logged: &Logged) {
    let is_committed = ends.values().any(|end| *end == Some(Outcome::Commit));
    // what a hasty client has not waited for may be aborted, for want of the record that lets it in
    let counts = |at: &TopicPartition| !sent.is_hasty || sent.partitions.contains(at);
    let is_torn = ends.iter().any(|(at, end)| counts(at) && *end != Some(Outcome::Commit));
    assert!(!is_committed || !is_torn, "{key:?} is torn: {ends:?}");
    match sent.asked.filter(|_| sent.is_answered) {
        Some(Outcome::Commit) => assert!(is_committed, "{key:?} was answered as committed: {ends:?}"),
        Some(Outcome::Abort) => assert!(!is_committed, "{key:?} was answered as aborted: {ends:?}"),
        None if sent.asked != Some(Outcome::Commit) => assert!(!is_committed, "nobody has committed {key:?}"),
        None => {}
    }
    assert!(is_committed || !world.seen.borrow().contains(&key), "{key:?} was seen and does not count: {ends:?}");
    if is_committed {
        let missing: Vec<_> = sent.acked.difference(&logged.batches[&key]).collect();
        assert!(missing.is_empty(), "{key:?} has lost {missing:?}");
        let none = BTreeSet::new();
        let missing: Vec<_> = sent.offsets.difference(logged.offsets.get(&key).unwrap_or(&none)).collect();
        assert!(missing.is_empty(), "{key:?} has lost the offsets {missing:?}");
    }
}
