//! Bytes of values: what was written is read, and what is no value is no panic.

use proptest::prelude::*;

use super::*;
use crate::cluster::model::PartitionState;

fn entry(key: String, value: Vec<u8>) -> KeyValue {
    KeyValue { key, value, created: 5, modified: 7, version: 2, lease: 0 }
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec((0..10i32, 1..1_000_000i64).prop_map(member), 0..4)
}

proptest! {
    #[test]
    fn partitions_are_read_as_they_were_written(
        replicas in prop::collection::vec(0..10i32, 1..4),
        adding in prop::collection::vec(0..10i32, 0..2),
        removing in prop::collection::vec(0..10i32, 0..2),
        isr in members(), elr in members(), led in any::<bool>(), leader_epoch in 0..i32::MAX, recovering in any::<bool>(),
        kept_few in any::<bool>(), written in any::<bool>(),
    ) {
        let leader = isr.first().copied().filter(|_| led);
        let last_known_leader = elr.first().copied().filter(|_| !led);
        let state = PartitionState {
            replicas, adding, removing, leader, leader_epoch, isr, elr, last_known_leader, recovering, kept_few, written,
        };
        let topic = Uuid::from_u128(3);
        let read = decode(&entry(partition(topic, 8), encode_partition(&state))).unwrap();
        prop_assert_eq!(read, Some(Entry::Partition(topic, 8, state)));
    }

    #[test]
    fn no_bytes_make_a_panic(key in "(nodes/1|topics/x|partitions/|settings/all/a|cluster|reports/1/2)", value: Vec<u8>) {
        let _ = decode(&entry(key, value));
    }
}

#[test]
fn nodes_topics_and_the_rest_are_read_as_they_were_written() {
    let id = Uuid::from_u128(9);
    let node = NodeState {
        id: 3,
        epoch: 5,
        incarnation: id,
        directory: Uuid::from_u128(10),
        machine: "m".to_owned(),
        rack: Some("r".to_owned()),
        endpoints: vec![Endpoint { listener: "L".to_owned(), host: "h".to_owned(), port: 9092 }],
        peer: "p:1".to_owned(),
        shards: 2,
        version: "1".to_owned(),
        continues: Some(Continued { epoch: 4, kept: Kept::Flushed }),
        defaults: Some([("flush.messages".to_owned(), "9".to_owned())].into()),
    };
    let stored =
        StoredTopic { name: "t".to_owned(), partitions: 2, configs: [("a".into(), "b".into())].into(), forming: true };
    let setting_key = SettingKey { node: None, name: "groups/g/a.b".to_owned() };
    let own_key = SettingKey { node: Some(4), name: "a.b".to_owned() };
    let remembered = KnownNode { directory: id, rack: None, since: 7 };
    let told = Member { node: 1, epoch: 12 };
    for (key, value, expected) in [
        (CLUSTER.to_owned(), encode_uuid(id), Entry::Cluster(id)),
        (CONTROLLER.to_owned(), encode_integer(3), Entry::Controller(3)),
        (PRODUCER_IDS.to_owned(), encode_integer(4_000), Entry::ProducerIds(4_000)),
        (super::node(3), encode_node(&node), Entry::Node(node.clone())),
        (known(3), encode_known(&remembered), Entry::Known(3, remembered.clone())),
        (draining(3), encode_integer(12), Entry::Draining(3, 12)),
        (topic(id), encode_topic(&stored), Entry::Topic(id, stored.clone())),
        (name("a.b"), encode_uuid(id), Entry::Name("a_b".to_owned(), id)),
        (setting(&setting_key), encode_setting("v"), Entry::Setting(setting_key.clone(), "v".to_owned())),
        (setting(&own_key), encode_setting("v"), Entry::Setting(own_key.clone(), "v".to_owned())),
        (report(1, 2), encode_integer(12), Entry::Report(told, 2)),
    ] {
        assert_eq!(decode(&entry(key, value)).unwrap(), Some(expected));
    }
}

/// The bytes in the store are read by nodes of other versions: they do not change by chance.
#[test]
fn the_shape_of_a_partition_is_kept() {
    let state = PartitionState {
        elr: vec![Member { node: 3, epoch: 9 }],
        ..PartitionState::new(&[Member { node: 1, epoch: 7 }, Member { node: 2, epoch: 8 }])
    };
    let text = r#"{"v":1,"d":{"replicas":[1,2],"leader":[1,7],"epoch":0,"isr":[[1,7],[2,8]],"elr":[[3,9]]}}"#;
    assert_eq!(String::from_utf8(encode_partition(&state)).unwrap(), text);
    let written = text.replace("}}", r#","written":true}}"#);
    assert_eq!(String::from_utf8(encode_partition(&PartitionState { written: true, ..state })).unwrap(), written);
}

#[test]
fn what_a_later_version_wrote_is_refused_and_unknown_keys_are_left_alone() {
    let later = decode(&entry("cluster".to_owned(), br#"{"v":2,"x":1}"#.to_vec()));
    assert!(matches!(later, Err(ValueError::Later { version: 2, .. })));
    for damaged in [&b""[..], b"1", br#"{"v":1}"#, br#"{"v":1,"d":"no uuid"}"#] {
        assert!(matches!(decode(&entry("cluster".to_owned(), damaged.to_vec())), Err(ValueError::Damaged { .. })));
    }
    for unknown in ["", "acls/1", "nodes/x", "partitions/1", "settings/all"] {
        assert_eq!(decode(&entry(unknown.to_owned(), vec![])), Ok(None), "{unknown}");
    }
}
