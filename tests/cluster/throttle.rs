//! Replicas that are not in sync are copied no faster than a limit says, and deletions wait for all that live.

use std::time::Duration;

use kafka_protocol::messages::{
    DeleteRecordsRequest, DescribeLogDirsRequest,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
};
use millrace_client::{Cluster, OffsetQuestion, Reassignment, Resource, ResourceKind};

use crate::{load::Load, rig::Rig};

/// Long enough for a copy without a limit on a machine that is not busy.
const A_WHILE: Duration = Duration::from_secs(2);

fn set(rig: &Rig, resource: &Resource, name: &str, value: &str) {
    rig.insist(name, |client| client.alter_config(resource, &[(name.to_owned(), value.to_owned())], &[]));
}

fn unset(rig: &Rig, resource: &Resource, name: &str) {
    rig.insist(name, |client| client.alter_config(resource, &[], &[name.to_owned()]));
}

/// Bytes that a node has of all its partitions.
fn log_bytes(rig: &Rig, node: i32) -> i64 {
    let ask = |client: &mut Cluster| client.broker(node, |_| DescribeLogDirsRequest::default().with_topics(None));
    let told = rig.insist("what a node has is told", ask);
    let topics = told.results.iter().flat_map(|result| &result.topics);
    topics.flat_map(|topic| &topic.partitions).map(|partition| partition.partition_size).sum()
}

#[test]
fn a_limit_holds_a_reassignment_until_it_is_lifted() {
    let Some(rig) = Rig::start(2, "") else { return };
    rig.create_topic("letters", 1, 1, &[]);
    let load = Load::start(&rig, "letters", 1, 1);
    load.await_more(&rig, 100);
    let produced = load.finish();
    let leader = rig.leader("letters", 0);
    let broker = Resource { kind: ResourceKind::Broker, name: leader.to_string() };
    let topic = Resource::topic("letters");
    set(&rig, &topic, "leader.replication.throttled.replicas", &format!("0:{leader}"));
    set(&rig, &broker, "leader.replication.throttled.rate", "1");
    let both = Reassignment { topic: "letters".to_owned(), partition: 0, replicas: Some(vec![leader, 3 - leader]) };
    rig.insist("it is to move", |client| client.reassign(std::slice::from_ref(&both)));
    std::thread::sleep(A_WHILE);
    let under_way = rig.insist("what moves is told", |client| client.reassigning());
    assert_eq!(under_way, [("letters".to_owned(), 0)], "a byte per second\n{}", rig.logs());
    unset(&rig, &broker, "leader.replication.throttled.rate");
    rig.await_in_sync("letters", 2);
    rig.verify("letters", produced.run, &produced.acknowledged);
    unset(&rig, &topic, "leader.replication.throttled.replicas");
}

/// The leader's limit makes chunks small, so that not all has come by the time that the follower is over its own.
#[test]
fn a_limit_of_the_follower_holds_a_reassignment_until_it_is_lifted() {
    let Some(rig) = Rig::start(2, "") else { return };
    rig.create_topic("letters", 1, 1, &[]);
    let load = Load::start(&rig, "letters", 1, 1);
    load.await_more(&rig, 200);
    let produced = load.finish();
    let leader = rig.leader("letters", 0);
    let broker = |id: i32| Resource { kind: ResourceKind::Broker, name: id.to_string() };
    let topic = Resource::topic("letters");
    set(&rig, &topic, "leader.replication.throttled.replicas", "*");
    set(&rig, &topic, "follower.replication.throttled.replicas", &format!("0:{}", 3 - leader));
    set(&rig, &broker(leader), "leader.replication.throttled.rate", "8192");
    set(&rig, &broker(3 - leader), "follower.replication.throttled.rate", "1");
    let both = Reassignment { topic: "letters".to_owned(), partition: 0, replicas: Some(vec![leader, 3 - leader]) };
    rig.insist("it is to move", |client| client.reassign(std::slice::from_ref(&both)));
    rig.until("the follower has something", || log_bytes(&rig, 3 - leader) > 0);
    unset(&rig, &broker(leader), "leader.replication.throttled.rate");
    std::thread::sleep(A_WHILE);
    let under_way = rig.insist("what moves is told", |client| client.reassigning());
    assert_eq!(under_way, [("letters".to_owned(), 0)], "a byte per second\n{}", rig.logs());
    unset(&rig, &broker(3 - leader), "follower.replication.throttled.rate");
    rig.await_in_sync("letters", 2);
    rig.verify("letters", produced.run, &produced.acknowledged);
}

#[test]
fn records_that_are_deleted_are_gone_from_all_that_live() {
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("letters", 1, 3, &[]);
    let load = Load::start(&rig, "letters", 1, 1);
    load.await_more(&rig, 50);
    load.finish();
    let leader = rig.leader("letters", 0);
    let delete = |rig: &Rig, before: i64, timeout_ms: i32| {
        let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(before);
        let topic = DeleteRecordsTopic::default()
            .with_name(kafka_protocol::messages::TopicName("letters".into()))
            .with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(timeout_ms);
        // another node may stand still
        let ask = |_: &mut Cluster| rig.client_of(leader).broker(leader, |_| request.clone());
        let answer = rig.insist("what a deletion came to is told", ask);
        let partition = &answer.topics[0].partitions[0];
        (partition.error_code, partition.low_watermark)
    };
    rig.until("a deletion is done", || delete(&rig, 20, 2_000) == (0, 20));
    // a follower that stands still: nobody says that its records are gone
    let follower = leader % 3 + 1;
    rig.node(follower).process.pause();
    let (code, low_watermark) = delete(&rig, 30, 100);
    assert!((code, low_watermark) == (7, 20) || (code, low_watermark) == (0, 30), "{code}, {low_watermark}");
    rig.node(follower).process.resume();
    rig.await_in_sync("letters", 3);
    rig.until("the deletion is done", || delete(&rig, 30, 2_000) == (0, 30));
    rig.kill(leader);
    rig.await_in_sync("letters", 2);
    let earliest = rig.insist("the start is told", |client| client.offset("letters", 0, OffsetQuestion::Earliest));
    assert_eq!(earliest, Some(30), "the next leader has let go of them\n{}", rig.logs());
}
