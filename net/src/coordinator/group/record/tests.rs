//! Round trips of every record type, and bytes as Kafka 4.3 writes them.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn offset(expire_timestamp_ms: i64, topic_id: Uuid) -> OffsetCommit {
    OffsetCommit {
        offset: 7,
        leader_epoch: 3,
        metadata: "m".into(),
        commit_timestamp_ms: 258,
        expire_timestamp_ms,
        topic_id,
    }
}

#[test]
fn offset_commit_has_kafkas_bytes() {
    let topic_id = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    let record =
        Record::OffsetCommit { group: "g".into(), topic: "t".into(), partition: 5, value: Some(offset(-1, topic_id)) };
    assert_eq!(record.key(), hex("0001 0001 67 0001 74 00000005"));
    let value = "0004 0000000000000007 00000003 02 6d 0000000000000102 01 00 10 0102030405060708090a0b0c0d0e0f10";
    assert_eq!(record.value(), Some(hex(value)));
}

#[test]
fn offset_commit_with_an_expiry_is_written_in_version_1() {
    let value = offset(9, Uuid::nil());
    let bytes = value.encode();
    assert_eq!(bytes, hex("0001 0000000000000007 0001 6d 0000000000000102 0000000000000009"));
    assert_eq!(OffsetCommit::decode(&bytes), Ok(OffsetCommit { leader_epoch: -1, ..value }));
}

#[test]
fn old_offset_commit_versions_are_read() {
    let v3 = hex("0003 0000000000000007 00000003 0001 6d 0000000000000102");
    assert_eq!(OffsetCommit::decode(&v3), Ok(offset(-1, Uuid::nil())));
    let v0 = hex("0000 0000000000000007 0001 6d 0000000000000102");
    assert_eq!(OffsetCommit::decode(&v0).unwrap().leader_epoch, -1);
}

#[test]
fn newer_version_is_refused_with_its_name() {
    let error = OffsetCommit::decode(&hex("0005 00")).unwrap_err();
    assert_eq!(error.to_string(), "version 5 of OffsetCommitValue is not known");
}

#[test]
fn group_metadata_has_kafkas_bytes() {
    let value = GroupMetadata {
        protocol_type: "c".into(),
        generation: 2,
        protocol: Some("r".into()),
        leader: None,
        state_timestamp_ms: 1,
        members: vec![GroupMetadataMember {
            member_id: "m".into(),
            instance_id: None,
            client_id: "i".into(),
            client_host: "/h".into(),
            rebalance_timeout_ms: 10,
            session_timeout_ms: 11,
            subscription: Bytes::from_static(&[1]),
            assignment: Bytes::new(),
        }],
    };
    let bytes = "0003 0001 63 00000002 0001 72 ffff 0000000000000001 00000001 \
                 0001 6d ffff 0001 69 0002 2f68 0000000a 0000000b 00000001 01 00000000";
    assert_eq!(value.encode(), hex(bytes));
    assert_eq!(GroupMetadata::decode(&hex(bytes)), Ok(value));
}

use bytes::Bytes;

#[test]
fn consumer_member_with_classic_metadata_has_kafkas_bytes() {
    let value = ConsumerMember {
        instance_id: None,
        rack_id: None,
        client_id: "c".into(),
        client_host: "/h".into(),
        topic_names: vec!["t".into()],
        topic_regex: None,
        rebalance_timeout_ms: 5,
        server_assignor: None,
        classic: Some(ClassicMetadata {
            session_timeout_ms: 6,
            protocols: vec![("r".into(), Bytes::from_static(&[9]))],
        }),
    };
    let bytes = "0000 00 00 02 63 03 2f68 02 02 74 00 00000005 00 \
                 01 00 0c 01 00000006 02 02 72 02 09 00 00";
    assert_eq!(value.encode(), hex(bytes));
    assert_eq!(ConsumerMember::decode(&hex(bytes)), Ok(value));
}

#[test]
fn current_assignment_without_epochs_takes_the_members() {
    let topic = Uuid::from_u128(1);
    let bytes = "0000 00000004 00000003 00 02 00000000000000000000000000000001 03 00000000 00000001 00 01 00";
    let value = ConsumerCurrent::decode(&hex(bytes)).unwrap();
    assert_eq!(value.assigned[&topic], [(0, 4), (1, 4)].into());
    let with_epochs = value.encode();
    assert_eq!(ConsumerCurrent::decode(&with_epochs), Ok(value));
}

#[test]
fn types_of_other_coordinators_are_passed_over() {
    assert_eq!(Record::decode(&hex("0011 0001 67"), Some(&[0, 0])), Ok(None));
}

fn id() -> impl Strategy<Value = Rc<str>> {
    "[a-z]{0,8}".prop_map(|text| Rc::from(text.as_str()))
}

fn assignment() -> impl Strategy<Value = AssignedPartitions> {
    let epochs = proptest::collection::btree_map(0..9, 0..9, 1..4);
    let topic = any::<u128>().prop_map(Uuid::from_u128);
    proptest::collection::btree_map(topic, epochs, 0..3)
}

fn record() -> impl Strategy<Value = Record> {
    let metadata = (id(), any::<i64>(), any::<i32>(), any::<u128>());
    let offset =
        (id(), id(), any::<i32>(), proptest::option::of(metadata)).prop_map(|(group, topic, partition, value)| {
            let value = value.map(|(metadata, offset, leader_epoch, id)| OffsetCommit {
                offset,
                leader_epoch,
                metadata,
                commit_timestamp_ms: offset / 3,
                expire_timestamp_ms: -1,
                topic_id: Uuid::from_u128(id),
            });
            Record::OffsetCommit { group, topic, partition, value }
        });
    let epoch = (id(), any::<i32>(), any::<i64>()).prop_map(|(group, epoch, metadata_hash)| Record::ConsumerGroup {
        group,
        value: Some(ConsumerGroupEpoch { epoch, metadata_hash }),
    });
    let target = (id(), id(), assignment()).prop_map(|(group, member, assigned)| {
        let assignment = assigned.into_iter().map(|(topic, epochs)| (topic, epochs.into_keys().collect()));
        Record::ConsumerTarget { group, member, value: Some(Rc::new(assignment.collect())) }
    });
    let current = (id(), id(), any::<i32>(), assignment(), assignment()).prop_map(
        |(group, member, epoch, assigned, pending_revocation)| Record::ConsumerCurrent {
            group,
            member,
            value: Some(ConsumerCurrent { epoch, previous_epoch: epoch / 2, state: 1, assigned, pending_revocation }),
        },
    );
    let regex = (id(), id(), proptest::collection::vec(id(), 0..4), any::<i64>()).prop_map(
        |(group, regex, topics, version)| Record::ConsumerRegex {
            group,
            regex,
            value: Some(ConsumerRegex { topics, version, timestamp_ms: version / 2 }),
        },
    );
    let target_metadata = (id(), any::<i32>(), any::<i64>()).prop_map(|(group, epoch, timestamp_ms)| {
        Record::ConsumerTargetMetadata { group, value: Some(ConsumerTargetMetadata { epoch, timestamp_ms }) }
    });
    let tombstone = (id(), id()).prop_map(|(group, member)| Record::ConsumerMember { group, member, value: None });
    prop_oneof![offset, epoch, target, current, regex, target_metadata, tombstone]
}

proptest! {
    #[test]
    fn records_round_trip(record in record()) {
        let decoded = Record::decode(&record.key(), record.value().as_deref());
        prop_assert_eq!(decoded, Ok(Some(record)));
    }

    #[test]
    fn foreign_records_never_panic(
        kind in 0i16..18,
        key in proptest::collection::vec(any::<u8>(), 0..32),
        version in -1i16..5,
        value in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let key = [&kind.to_be_bytes()[..], &key].concat();
        let value = [&version.to_be_bytes()[..], &value].concat();
        let _decoded = Record::decode(&key, Some(&value));
        // a key that is known to be good, so that the value is looked at
        let good = hex("0001 67 0001 74 00000005");
        let _decoded = Record::decode(&[&kind.to_be_bytes()[..], &good].concat(), Some(&value));
    }
}
