//! Transactions as clients of both protocols hold them: by version 1 partitions are added and verified, by version 2 they are
//! added by being produced to and the epoch goes up with each end.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiVersionsRequest, DescribeTransactionsRequest,
        EndTxnRequest, FindCoordinatorRequest, GroupId, InitProducerIdRequest, ListTransactionsRequest, ProducerId,
        TransactionalId, UpdateFeaturesRequest, WriteTxnMarkersRequest,
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
        describe_transactions_response::TransactionState,
        update_features_request::FeatureUpdateKey,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
    protocol::StrBytes,
};
use millrace_engine::batch::{BatchBuilder, Codec, Record, batches, records};
use millrace_net::NetConfig;

use crate::{
    client::{Client, fetch_request, produce_request, topic_name},
    node::{Node, config},
};

const FENCED: i16 = 90;
const INVALID_EPOCH: i16 = 47;
const INVALID_STATE: i16 = 48;
const INVALID_MAPPING: i16 = 49;
const ABORTABLE: i16 = 120;

/// Which protocol a producer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Old,
    New,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Old, Protocol::New];

/// A node whose coordinators look often, at a level.
fn at_level(level: i16) -> NetConfig {
    let settings = [
        ("transaction.state.log.num.partitions", "4"),
        ("offsets.topic.num.partitions", "4"),
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "10"),
    ];
    let broker_settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    NetConfig { transaction_version: level, broker_settings, ..config() }
}

fn name(id: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(id.to_owned()))
}

/// A producer with a transactional id.
struct Producer {
    id: &'static str,
    protocol: Protocol,
    producer_id: i64,
    epoch: i16,
    sequences: BTreeMap<(&'static str, i32), i32>,
}

impl Producer {
    fn begin(client: &mut Client, id: &'static str, protocol: Protocol) -> Producer {
        Self::begin_with_timeout(client, id, protocol, 60_000)
    }

    fn begin_with_timeout(client: &mut Client, id: &'static str, protocol: Protocol, timeout_ms: i32) -> Producer {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(name(id)))
            .with_transaction_timeout_ms(timeout_ms)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let response = client.call_coordinator(4, &request, |response| response.error_code);
        assert_eq!(response.error_code, 0);
        Producer {
            id,
            protocol,
            producer_id: response.producer_id.0,
            epoch: response.producer_epoch,
            sequences: BTreeMap::new(),
        }
    }

    /// Adds a partition as clients of version 1 do.
    fn add(&self, client: &mut Client, version: i16, topic: &'static str, partition: i32) -> i16 {
        let topic = AddPartitionsToTxnTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(name(self.id))
            .with_v3_and_below_producer_id(ProducerId(self.producer_id))
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![topic]);
        let response = client.call(version, &request);
        response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code
    }

    /// Produces without adding first.
    fn produce(&mut self, client: &mut Client, topic: &'static str, partition: i32, value: &str) -> i16 {
        let sequence = self.sequences.entry((topic, partition)).or_insert(0);
        let mut batch =
            BatchBuilder::new(Codec::None, 0).producer(self.producer_id, self.epoch, *sequence).transactional();
        batch.push(&Record {
            offset: 0,
            timestamp: 1_700_000_000_000,
            key: None,
            value: Some(Bytes::from(value.to_owned())),
            headers: vec![],
        });
        let request = produce_request(topic, partition, -1, batch.finish().into());
        let request = request.with_transactional_id(Some(name(self.id)));
        let version = if self.protocol == Protocol::New { 12 } else { 9 };
        let code = client.call(version, &request).responses[0].partition_responses[0].error_code;
        if code == 0 {
            *sequence += 1;
        }
        code
    }

    /// Produces as its protocol asks.
    fn write(&mut self, client: &mut Client, topic: &'static str, partition: i32, value: &str) {
        if self.protocol == Protocol::Old {
            assert_eq!(self.add(client, 3, topic, partition), 0);
        }
        assert_eq!(self.produce(client, topic, partition, value), 0);
    }

    fn try_end(&self, client: &mut Client, version: i16, commits: bool) -> (i16, i64, i16) {
        let request = EndTxnRequest::default()
            .with_transactional_id(name(self.id))
            .with_producer_id(ProducerId(self.producer_id))
            .with_producer_epoch(self.epoch)
            .with_committed(commits);
        let response = client.call(version, &request);
        (response.error_code, response.producer_id.0, response.producer_epoch)
    }

    fn end(&mut self, client: &mut Client, commits: bool) {
        let version = if self.protocol == Protocol::New { 5 } else { 3 };
        let (code, producer_id, epoch) = self.try_end(client, version, commits);
        assert_eq!(code, 0);
        if self.protocol == Protocol::New {
            (self.producer_id, self.epoch) = (producer_id, epoch);
            self.sequences.clear();
        }
    }
}

/// What readers of a partition see from an offset on; those of committed records without the aborted ones.
fn read(client: &mut Client, topic: &'static str, partition: i32, is_committed: bool) -> Vec<String> {
    let request = fetch_request(topic, partition, 0, 0).with_isolation_level(i8::from(is_committed));
    let response = client.fetch(12, &request);
    let told = &response.responses[0].partitions[0];
    assert_eq!(told.error_code, 0);
    let mut aborted: Vec<_> = told.aborted_transactions.iter().flatten().collect();
    let mut values = Vec::new();
    let mut open = BTreeMap::new();
    for batch in batches(told.records.as_deref().unwrap_or_default()) {
        let (info, bytes) = batch.expect("a whole batch");
        aborted.retain(|aborted| {
            let begins = aborted.producer_id.0 == info.producer_id && aborted.first_offset <= info.base_offset;
            if begins {
                open.insert(info.producer_id, true);
            }
            !begins
        });
        if info.is_control() {
            open.remove(&info.producer_id);
        } else if !is_committed || !info.is_transactional() || !open.contains_key(&info.producer_id) {
            let found = records(bytes).expect("whole records").into_iter();
            values.extend(found.map(|record| {
                let value = record.value.expect("records here have values");
                String::from_utf8(value.to_vec()).expect("text")
            }));
        }
    }
    values
}

fn describe(client: &mut Client, id: &'static str) -> TransactionState {
    let request = DescribeTransactionsRequest::default().with_transactional_ids(vec![name(id)]);
    let response = client.call_coordinator(0, &request, |response| response.transaction_states[0].error_code);
    response.transaction_states.into_iter().next().expect("one")
}

/// Waits until the coordinator has brought a transaction into a state.
fn await_state(client: &mut Client, id: &'static str, state: &str) {
    while &*describe(client, id).transaction_state != state {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn level_of(protocol: Protocol) -> i16 {
    match protocol {
        Protocol::Old => 1,
        Protocol::New => 2,
    }
}

#[test]
fn what_is_committed_is_there_when_the_end_is_answered_and_what_is_aborted_never() {
    for (protocol, shards) in PROTOCOLS.into_iter().flat_map(|protocol| [(protocol, 1), (protocol, 3)]) {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path(), shards, at_level(level_of(protocol)));
        let mut client = node.client();
        client.create_topic("a", 4);
        let mut producer = Producer::begin(&mut client, "id", protocol);
        let mut expected = Vec::new();
        for round in 0..6 {
            let (value, commits) = (format!("{round}"), round % 3 != 1);
            for partition in 0..4 {
                producer.write(&mut client, "a", partition, &value);
            }
            for partition in 0..4 {
                assert_eq!(read(&mut client, "a", partition, true), expected, "{protocol:?}");
            }
            producer.end(&mut client, commits);
            if commits {
                expected.push(value);
            }
            for partition in 0..4 {
                assert_eq!(read(&mut client, "a", partition, true), expected, "{protocol:?}");
                assert_eq!(read(&mut client, "a", partition, false).len(), round + 1);
            }
        }
    }
}

#[test]
fn a_second_producer_of_an_id_fences_the_first() {
    for protocol in PROTOCOLS {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path(), 2, at_level(level_of(protocol)));
        let mut client = node.client();
        client.create_topic("a", 2);
        let mut first = Producer::begin(&mut client, "id", protocol);
        first.write(&mut client, "a", 0, "lost");
        let mut second = Producer::begin(&mut client, "id", protocol);
        assert_eq!((second.producer_id, second.epoch), (first.producer_id, first.epoch + 2));
        // KAFKA-19690: it is its epoch that is wrong, not the state
        assert_eq!(first.produce(&mut client, "a", 0, "late"), INVALID_EPOCH, "{protocol:?}");
        for (version, code) in [(0, INVALID_EPOCH), (1, INVALID_EPOCH), (2, FENCED), (3, FENCED)] {
            assert_eq!(first.add(&mut client, version, "a", 1), code);
        }
        for (version, code) in [(0, INVALID_EPOCH), (1, INVALID_EPOCH), (2, FENCED), (4, FENCED), (5, FENCED)] {
            assert_eq!(first.try_end(&mut client, version, true), (code, -1, -1), "{version}");
        }
        second.write(&mut client, "a", 0, "kept");
        second.end(&mut client, true);
        assert_eq!(read(&mut client, "a", 0, true), ["kept"]);
    }
}

#[test]
fn a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced() {
    for protocol in PROTOCOLS {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path(), 2, at_level(level_of(protocol)));
        let mut client = node.client();
        client.create_topic("a", 1);
        // where the machine is slow, the time is up before there is anything in it
        let mut timeout_ms = 50;
        let mut producer = loop {
            let mut producer = Producer::begin_with_timeout(&mut client, "id", protocol, timeout_ms);
            let is_added = protocol == Protocol::New || producer.add(&mut client, 3, "a", 0) == 0;
            if is_added && producer.produce(&mut client, "a", 0, "late") == 0 {
                break producer;
            }
            timeout_ms *= 2;
        };
        await_state(&mut client, "id", "CompleteAbort");
        assert_eq!(read(&mut client, "a", 0, true), [""; 0]);
        assert_eq!(producer.produce(&mut client, "a", 0, "later"), INVALID_EPOCH);
        let version = if protocol == Protocol::New { 5 } else { 3 };
        assert_eq!(producer.try_end(&mut client, version, true).0, FENCED, "{protocol:?}");
        let mut next = Producer::begin(&mut client, "id", protocol);
        next.write(&mut client, "a", 0, "kept");
        next.end(&mut client, true);
        assert_eq!(read(&mut client, "a", 0, true), ["kept"]);
    }
}

#[test]
fn ends_are_repeated_as_their_protocol_says() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(2));
    let mut client = node.client();
    client.create_topic("a", 1);
    let mut old = Producer::begin(&mut client, "old", Protocol::Old);
    assert_eq!(old.try_end(&mut client, 3, true).0, INVALID_STATE);
    old.write(&mut client, "a", 0, "x");
    old.end(&mut client, true);
    assert_eq!([true, false].map(|commits| old.try_end(&mut client, 3, commits).0), [0, INVALID_STATE]);

    let mut new = Producer::begin(&mut client, "new", Protocol::New);
    assert_eq!(new.try_end(&mut client, 5, true).0, INVALID_STATE);
    new.write(&mut client, "a", 0, "x");
    let (code, producer_id, epoch) = new.try_end(&mut client, 5, true);
    assert_eq!((code, producer_id, epoch), (0, new.producer_id, new.epoch + 1));
    assert_eq!(new.try_end(&mut client, 5, true), (0, producer_id, epoch));
    assert_eq!(new.try_end(&mut client, 5, false).0, INVALID_STATE);
    // KAFKA-18464: an abort with nothing in it, right after a commit
    new.epoch = epoch;
    for turn in 1..100 {
        let (code, _, epoch) = new.try_end(&mut client, 5, false);
        assert_eq!((code, epoch), (0, new.epoch + 1), "{turn}");
        new.epoch = epoch;
    }
}

#[test]
fn what_is_ongoing_goes_on_over_a_restart() {
    for protocol in PROTOCOLS {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path(), 2, at_level(level_of(protocol)));
        let mut client = node.client();
        client.create_topic("a", 2);
        let mut producer = Producer::begin(&mut client, "id", protocol);
        producer.write(&mut client, "a", 0, "before");
        let mut aborted = Producer::begin(&mut client, "other", protocol);
        aborted.write(&mut client, "a", 1, "lost");
        aborted.end(&mut client, false);
        node.stop();

        let node = Node::start(dir.path(), 2, at_level(level_of(protocol)));
        let mut client = node.client();
        assert_eq!(&*describe(&mut client, "id").transaction_state, "Ongoing");
        assert_eq!(read(&mut client, "a", 0, true), [""; 0]);
        producer.write(&mut client, "a", 0, "after");
        producer.write(&mut client, "a", 1, "too");
        producer.end(&mut client, true);
        assert_eq!(read(&mut client, "a", 0, true), ["before", "after"], "{protocol:?}");
        assert_eq!(read(&mut client, "a", 1, true), ["too"]);
        let (code, _, epoch) = aborted.try_end(&mut client, 5, false);
        assert_eq!((code, epoch), (0, aborted.epoch + 1), "an abort with nothing in it");
    }
}

/// KAFKA-14884: a batch that comes after the end of its transaction would stay open for ever.
#[test]
fn batches_that_come_late_are_in_no_transaction() {
    for protocol in PROTOCOLS {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path(), 2, at_level(level_of(protocol)));
        let mut client = node.client();
        client.create_topic("a", 1);
        let mut producer = Producer::begin(&mut client, "id", protocol);
        if protocol == Protocol::Old {
            assert_eq!(producer.produce(&mut client, "a", 0, "early"), INVALID_STATE, "it was not added");
        }
        producer.write(&mut client, "a", 0, "kept");
        let (epoch, sequences) = (producer.epoch, producer.sequences.clone());
        producer.end(&mut client, true);
        let after = producer.epoch;
        (producer.epoch, producer.sequences) = (epoch, sequences);
        let late = producer.produce(&mut client, "a", 0, "late");
        assert_eq!(late, if protocol == Protocol::New { INVALID_EPOCH } else { INVALID_STATE });
        producer.epoch = after;
        assert_eq!(read(&mut client, "a", 0, true), ["kept"]);
        assert_eq!(read(&mut client, "a", 0, false), ["kept"]);
    }
}

#[test]
fn partitions_that_cannot_be_added_refuse_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(1));
    let mut client = node.client();
    client.create_topic("a", 2);
    let producer = Producer::begin(&mut client, "id", Protocol::Old);
    let topic =
        |topic, partitions| AddPartitionsToTxnTopic::default().with_name(topic_name(topic)).with_partitions(partitions);
    let mut add = |topics: Vec<_>| {
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(name("id"))
            .with_v3_and_below_producer_id(ProducerId(producer.producer_id))
            .with_v3_and_below_producer_epoch(producer.epoch)
            .with_v3_and_below_topics(topics);
        let results = client.call(3, &request).results_by_topic_v3_and_below.into_iter();
        let codes =
            results.flat_map(|topic| topic.results_by_partition).map(|partition| partition.partition_error_code);
        codes.collect::<Vec<_>>()
    };
    assert_eq!(add(vec![topic("a", vec![0, 7]), topic("none", vec![0])]), [55, 3, 3]);
    assert_eq!(add(vec![topic("a", vec![0]), topic("__consumer_offsets", vec![0])]), [55, 29]);
    assert_eq!(add(vec![topic("a", vec![0, 1])]), [0, 0]);
}

/// What brokers ask each other, several producers at once.
#[test]
fn brokers_add_and_verify_for_several_producers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(2));
    let mut client = node.client();
    client.create_topic("a", 2);
    let one = Producer::begin(&mut client, "one", Protocol::New);
    let two = Producer::begin(&mut client, "two", Protocol::New);
    let mut ask = |verify_only, partition, asked: Vec<(&'static str, i64, i16)>| {
        let transactions = asked.into_iter().map(|(id, producer_id, epoch)| {
            let topic = AddPartitionsToTxnTopic::default().with_name(topic_name("a")).with_partitions(vec![partition]);
            AddPartitionsToTxnTransaction::default()
                .with_transactional_id(name(id))
                .with_producer_id(ProducerId(producer_id))
                .with_producer_epoch(epoch)
                .with_verify_only(verify_only)
                .with_topics(vec![topic])
        });
        let response = client.call(5, &AddPartitionsToTxnRequest::default().with_transactions(transactions.collect()));
        assert_eq!(response.error_code, 0);
        let results = response.results_by_transaction.into_iter();
        let codes = results.map(|result| result.topic_results[0].results_by_partition[0].partition_error_code);
        codes.collect::<Vec<_>>()
    };
    let (one, two) = (("one", one.producer_id, one.epoch), ("two", two.producer_id, two.epoch));
    assert_eq!(ask(true, 0, vec![one, two]), [ABORTABLE, ABORTABLE]);
    assert_eq!(ask(false, 0, vec![one, ("two", two.1, two.2 + 1)]), [0, FENCED]);
    assert_eq!(ask(true, 0, vec![one, two]), [0, ABORTABLE]);
    assert_eq!(ask(true, 1, vec![one]), [ABORTABLE]);
    assert_eq!(
        ask(true, 0, vec![("one", two.1, 0), ("none", 5, 0), ("", 5, 0)]),
        [INVALID_MAPPING, INVALID_MAPPING, 42]
    );
    assert_eq!(ask(false, 7, vec![one]), [3]);
}

#[test]
fn transactions_are_listed_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(1));
    let mut client = node.client();
    client.create_topic("a", 2);
    assert_eq!(describe(&mut client, "one").error_code, 105);
    let mut one = Producer::begin(&mut client, "one", Protocol::Old);
    let two = Producer::begin(&mut client, "two", Protocol::Old);
    one.write(&mut client, "a", 1, "x");
    let described = describe(&mut client, "one");
    assert_eq!((described.error_code, &*described.transaction_state), (0, "Ongoing"));
    assert_eq!((described.producer_id.0, described.producer_epoch), (one.producer_id, one.epoch));
    assert_eq!((&*described.topics[0].topic.0, &described.topics[0].partitions), ("a", &vec![1]));
    assert_eq!(described.transaction_timeout_ms, 60_000);
    assert_eq!(describe(&mut client, "").error_code, 42);

    let mut list = |request: ListTransactionsRequest| {
        let response = client.call(2, &request);
        let mut ids: Vec<_> =
            response.transaction_states.iter().map(|state| state.transactional_id.to_string()).collect();
        ids.sort();
        (response.error_code, ids, response.unknown_state_filters.len())
    };
    let all = ListTransactionsRequest::default().with_duration_filter(-1);
    let states = |names: &[&'static str]| {
        all.clone().with_state_filters(names.iter().map(|name| StrBytes::from_static_str(name)).collect())
    };
    let (both, first) = (vec!["one".to_owned(), "two".to_owned()], vec!["one".to_owned()]);
    assert_eq!(list(all.clone()), (0, both, 0));
    assert_eq!(list(states(&["Ongoing"])), (0, first.clone(), 0));
    assert_eq!(list(states(&["Ongoing", "Nope"])), (0, first, 1));
    assert_eq!(list(states(&["Nope"])), (0, vec![], 1));
    assert_eq!(list(all.clone().with_producer_id_filters(vec![ProducerId(two.producer_id)])).1, ["two"]);
    let pattern = |pattern| all.clone().with_transactional_id_pattern(Some(StrBytes::from_static_str(pattern)));
    assert_eq!(list(pattern("o.*")).1, ["one"]);
    assert_eq!(list(pattern("(")).0, 128);
    // those that have not begun are older than any
    assert_eq!(list(all.clone().with_duration_filter(3_600_000)).1, ["two"]);
}

#[test]
fn coordinators_of_transactions_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(1));
    let mut client = node.client();
    let mut find = |version, key: &'static str| {
        let request = FindCoordinatorRequest::default().with_key_type(1);
        let key = StrBytes::from_static_str(key);
        match version {
            0..4 => {
                let response = client.call(version, &request.with_key(key));
                (response.error_code, response.node_id.0)
            }
            _ => {
                let response = client.call(version, &request.with_coordinator_keys(vec![key]));
                (response.coordinators[0].error_code, response.coordinators[0].node_id.0)
            }
        }
    };
    assert_eq!([2, 6].map(|version| find(version, "id")), [(0, 1), (0, 1)]);
    assert_eq!([2, 6].map(|version| find(version, "")), [(42, -1), (42, -1)]);
}

#[test]
fn the_level_of_transactions_is_changed_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(0));
    let level = |client: &mut Client| {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("test"))
            .with_client_software_version(StrBytes::from_static_str("1"));
        let response = client.call(4, &request);
        let finalized = response.finalized_features.iter().find(|feature| &*feature.name == "transaction.version");
        (finalized.map(|feature| feature.max_version_level), response.finalized_features_epoch)
    };
    let update = |client: &mut Client, level, kind| {
        let update = FeatureUpdateKey::default()
            .with_feature(StrBytes::from_static_str("transaction.version"))
            .with_max_version_level(level)
            .with_upgrade_type(kind);
        client.call(1, &UpdateFeaturesRequest::default().with_feature_updates(vec![update])).error_code
    };
    let mut client = node.client();
    assert_eq!(level(&mut client), (None, 0));
    assert_eq!(update(&mut client, 2, 1), 0);
    assert_eq!(level(&mut client), (Some(2), 1));
    assert_eq!(update(&mut client, 3, 1), 95);
    assert_eq!(update(&mut client, 1, 1), 95, "it goes down only if that is said");
    assert_eq!(update(&mut client, 1, 2), 0);
    node.stop();
    let node = Node::start(dir.path(), 2, at_level(0));
    assert_eq!(level(&mut node.client()), (Some(1), 2));
}

#[test]
fn groups_come_into_a_transaction_by_their_partition() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(1));
    let mut client = node.client();
    let producer = Producer::begin(&mut client, "id", Protocol::Old);
    let mut add = |epoch| {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(name("id"))
            .with_producer_id(ProducerId(producer.producer_id))
            .with_producer_epoch(epoch)
            .with_group_id(GroupId(StrBytes::from_static_str("group")));
        client.call(3, &request).error_code
    };
    assert_eq!([add(producer.epoch), add(producer.epoch + 1)], [0, FENCED]);
    let described = describe(&mut client, "id");
    assert_eq!(&*described.topics[0].topic.0, "__consumer_offsets");
    let (code, ..) = producer.try_end(&mut client, 3, true);
    assert_eq!(code, 0);
}

/// What administrators do about a transaction that hangs. Its coordinator hears nothing of it.
#[test]
fn a_transaction_is_aborted_in_a_partition_by_a_marker() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, at_level(1));
    let mut client = node.client();
    client.create_topic("a", 1);
    let mut producer = Producer::begin(&mut client, "id", Protocol::Old);
    producer.write(&mut client, "a", 0, "aborted");
    let topic = |name, partition| {
        WritableTxnMarkerTopic::default().with_name(topic_name(name)).with_partition_indexes(vec![partition])
    };
    let marker = WritableTxnMarker::default()
        .with_producer_id(ProducerId(producer.producer_id))
        .with_producer_epoch(producer.epoch)
        .with_transaction_result(false)
        .with_coordinator_epoch(0)
        .with_topics(vec![topic("a", 0), topic("a", 5), topic("none", 0)]);
    let mut write = |marker: &WritableTxnMarker| {
        let response = client.call(1, &WriteTxnMarkersRequest::default().with_markers(vec![marker.clone()]));
        let topics = response.markers[0].topics.clone().into_iter();
        topics.flat_map(|topic| topic.partitions).map(|partition| partition.error_code).collect::<Vec<_>>()
    };
    assert_eq!(write(&marker), [0, 3, 3]);
    assert_eq!(write(&marker.clone().with_producer_epoch(producer.epoch + 1)), [0, 3, 3]);
    assert_eq!(write(&marker), [INVALID_EPOCH, 3, 3]);
    assert_eq!(read(&mut client, "a", 0, true), [""; 0]);
}
