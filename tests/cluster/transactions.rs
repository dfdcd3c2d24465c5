//! Transactions over partitions of several nodes, whatever becomes of the nodes: all of one or nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use millrace_bench::payload::splitmix64;
use millrace_client::OffsetQuestion;

use crate::{node::rounds, producer::Producer, rig::Rig};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 3;

fn with_topic(rig: &Rig) {
    rig.create_topic(TOPIC, PARTITIONS, 3, &[("min.insync.replicas", "2")]);
}

/// All values that are committed, sorted.
fn committed(rig: &Rig) -> Vec<String> {
    let mut values: Vec<String> = rig.millrace(&["consume", TOPIC]).lines().map(str::to_owned).collect();
    values.sort();
    values
}

/// Waits until nothing is open in any partition.
fn await_stable(rig: &Rig) {
    let mut client = rig.client();
    rig.until("no transaction is open", || {
        (0..PARTITIONS).all(|partition| {
            let mut end = |question| client.offset(TOPIC, partition, question).ok();
            end(OffsetQuestion::LatestCommitted).is_some_and(|stable| Some(stable) == end(OffsetQuestion::Latest))
        })
    });
}

/// Writes a value of that name to each partition.
fn write_everywhere(producer: &mut Producer, name: &str) {
    (0..PARTITIONS).for_each(|partition| producer.produce(TOPIC, partition, &format!("{name}-{partition}")));
}

fn everywhere(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|name| (0..PARTITIONS).map(move |partition| format!("{name}-{partition}"))).collect()
}

fn coordinator(rig: &Rig, id: &str) -> i32 {
    rig.client().transaction_coordinator(id).unwrap()
}

#[test]
fn transactions_over_three_nodes_are_committed_and_aborted() {
    let Some(rig) = Rig::start(3, "") else { return };
    with_topic(&rig);
    let leaders: std::collections::BTreeSet<i32> =
        (0..PARTITIONS).map(|partition| rig.leader(TOPIC, partition)).collect();
    assert_eq!(leaders.len(), 3, "each partition is led by another node");
    for id in ["a", "b", "c"] {
        let mut producer = Producer::begin(&rig, id);
        write_everywhere(&mut producer, &format!("{id}1"));
        producer.end(true);
        write_everywhere(&mut producer, &format!("{id}2"));
        producer.end(false);
        write_everywhere(&mut producer, &format!("{id}3"));
        producer.end(true);
    }
    assert_eq!(committed(&rig), everywhere(&["a1", "a3", "b1", "b3", "c1", "c3"]));
    await_stable(&rig);
}

#[test]
fn a_leader_that_is_killed_before_its_marker_comes_gets_it_when_another_one_leads() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    with_topic(&rig);
    let mut producer = Producer::begin(&rig, "id");
    for round in 0..rounds(2) {
        let name = format!("round{round}");
        write_everywhere(&mut producer, &name);
        let coordinator = coordinator(&rig, "id");
        let victim = (0..PARTITIONS).map(|partition| rig.leader(TOPIC, partition)).find(|node| *node != coordinator);
        let victim = victim.unwrap();
        rig.kill(victim);
        producer.end(true);
        rig.restart(&[victim]);
        rig.await_in_sync(TOPIC, 3);
    }
    await_stable(&rig);
    let mut names: Vec<String> = (0..rounds(2)).map(|round| format!("round{round}")).collect();
    names.sort();
    assert_eq!(committed(&rig), everywhere(&names.iter().map(String::as_str).collect::<Vec<_>>()));
}

/// The transaction is where its coordinator left it: ongoing, decided, or over.
#[test]
fn a_coordinator_that_is_killed_is_followed_by_one_that_goes_on() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    with_topic(&rig);
    let mut producer = Producer::begin(&rig, "id");
    let mut names = Vec::new();
    for round in 0..rounds(2) {
        // ongoing
        let name = format!("ongoing{round}");
        write_everywhere(&mut producer, &name);
        let victim = coordinator(&rig, "id");
        rig.kill(victim);
        producer.end(true);
        rig.restart(&[victim]);
        rig.await_in_sync("__transaction_state", 3);
        names.push(name);
        // somewhere on its way: killed while the end is asked for
        let name = format!("ending{round}");
        write_everywhere(&mut producer, &name);
        let victim = coordinator(&rig, "id");
        std::thread::scope(|scope| {
            scope.spawn(|| producer.end_once(true));
            std::thread::sleep(Duration::from_millis(2 + u64::from(round) * 3));
            rig.kill(victim);
        });
        // the same again: done, or done now
        producer.end(true);
        rig.restart(&[victim]);
        rig.await_in_sync("__transaction_state", 3);
        names.push(name);
        await_stable(&rig);
    }
    names.sort();
    assert_eq!(committed(&rig), everywhere(&names.iter().map(String::as_str).collect::<Vec<_>>()));
}

#[test]
fn a_coordinator_that_stood_still_decides_nothing_any_more() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    with_topic(&rig);
    let mut producer = Producer::begin(&rig, "id");
    write_everywhere(&mut producer, "first");
    let victim = coordinator(&rig, "id");
    rig.node(victim).process.pause();
    let others: Vec<i32> = (1..=3).filter(|id| *id != victim).collect();
    rig.until("another node coordinates", || {
        rig.client_of(others[0]).transaction_coordinator("id").is_ok_and(|now| now != victim)
    });
    producer.end(true);
    write_everywhere(&mut producer, "second");
    rig.node(victim).process.resume();
    producer.end(false);
    rig.await_in_sync(TOPIC, 3);
    await_stable(&rig);
    assert_eq!(committed(&rig), everywhere(&["first"]));
}

/// What was answered as committed is there, what was answered as aborted is not, and no transaction is there in part.
#[test]
fn nodes_killed_at_random_tear_no_transaction() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    with_topic(&rig);
    let (over, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let mut producer = Producer::begin(&rig, &format!("writer{writer}"));
            let (over, ended) = (over.clone(), ended.clone());
            std::thread::spawn(move || {
                let mut names = Vec::new();
                for number in 0.. {
                    let commits = number % 3 != 2;
                    let name = format!("w{writer}.{number:05}");
                    write_everywhere(&mut producer, &name);
                    producer.end(commits);
                    names.extend(commits.then_some(name));
                    ended.fetch_add(1, Relaxed);
                    if over.load(Relaxed) {
                        break;
                    }
                }
                names
            })
        })
        .collect();
    let mut random = 11;
    for _ in 0..rounds(2) {
        let target = ended.load(Relaxed) + 10;
        rig.until("transactions end", || ended.load(Relaxed) >= target || writers.iter().any(|it| it.is_finished()));
        let id = 1 + i32::try_from(splitmix64(&mut random) % 3).unwrap();
        rig.kill(id);
        std::thread::sleep(Duration::from_millis(splitmix64(&mut random) % 2000));
        rig.restart(&[id]);
        rig.await_in_sync(TOPIC, 3);
    }
    over.store(true, Relaxed);
    let mut names: Vec<String> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    names.sort();
    await_stable(&rig);
    assert_eq!(committed(&rig), everywhere(&names.iter().map(String::as_str).collect::<Vec<_>>()));
}
