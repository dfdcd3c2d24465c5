//! Offsets that a group commits with a transaction, and who hears of them when.

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        AddOffsetsToTxnRequest, EndTxnRequest, GroupId, InitProducerIdRequest, OffsetFetchRequest, ProducerId,
        TransactionalId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
    },
    protocol::StrBytes,
};
use millrace_engine::batch::{BatchBuilder, Codec, Record};
use millrace_net::NetConfig;

use crate::{
    client::{Client, produce_request, topic_name},
    node::{Node, config},
};

const UNSTABLE: i16 = 88;
const INVALID_STATE: i16 = 48;
const ABORTABLE: i16 = 120;
const OLD: i16 = 4;
const NEW: i16 = 5;

/// A node with few partitions of its own topics, whose transactions have an epoch each.
pub(crate) fn transactional() -> NetConfig {
    let settings = ["transaction.state.log.num.partitions", "offsets.topic.num.partitions"];
    let broker_settings = settings.map(|name| (name.to_owned(), "4".to_owned())).into();
    NetConfig { transaction_version: 2, broker_settings, ..config() }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A producer with a transactional id, of the protocol that adds partitions by producing to them.
pub(crate) struct Producer {
    id: TransactionalId,
    producer: (i64, i16),
    sequence: i32,
}

impl Producer {
    /// The first one of an id, or the one that fences the last.
    pub(crate) fn new(client: &mut Client, id: &str) -> Producer {
        let id = TransactionalId(text(id));
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id.clone()))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let response = client.call_coordinator(4, &request, |response| response.error_code);
        assert_eq!(response.error_code, 0);
        Producer { id, producer: (response.producer_id.0, response.producer_epoch), sequence: 0 }
    }

    /// Writes a record to the only partition of a topic.
    pub(crate) fn write(&mut self, client: &mut Client, topic: &'static str, value: &'static str) {
        let (id, epoch) = self.producer;
        let mut batch = BatchBuilder::new(Codec::None, 0).producer(id, epoch, self.sequence).transactional();
        let value = Some(Bytes::from_static(value.as_bytes()));
        batch.push(&Record { offset: 0, timestamp: 1_700_000_000_000, key: None, value, headers: vec![] });
        let request = produce_request(topic, 0, -1, batch.finish().into()).with_transactional_id(Some(self.id.clone()));
        assert_eq!(client.call(12, &request).responses[0].partition_responses[0].error_code, 0);
        self.sequence += 1;
    }

    /// Ends the transaction.
    pub(crate) fn end(&mut self, client: &mut Client, is_committed: bool) {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_committed(is_committed);
        let response = client.call_coordinator(5, &request, |response| response.error_code);
        assert_eq!(response.error_code, 0);
        self.producer = (response.producer_id.0, response.producer_epoch);
        self.sequence = 0;
    }

    fn add_offsets(&self, client: &mut Client) -> i16 {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_group_id(GroupId(text("group")));
        client.call(3, &request).error_code
    }

    /// Commits an offset of the group with the transaction; partition 9 is not there.
    fn commit(&self, client: &mut Client, version: i16, offset: i64) -> Vec<i16> {
        let partition = |index| {
            TxnOffsetCommitRequestPartition::default().with_partition_index(index).with_committed_offset(offset)
        };
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(topic_name("topic"))
            .with_partitions(vec![partition(0), partition(9)]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.id.clone())
            .with_group_id(GroupId(text("group")))
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_topics(vec![topic]);
        let code = |response: &TxnOffsetCommitResponse| response.topics[0].partitions[0].error_code;
        let response = client.call_coordinator(version, &request, code);
        response.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code).collect()
    }
}

/// The error and the offset of the group's partition.
fn offset(client: &mut Client, require_stable: bool) -> (i16, i64) {
    let topic = OffsetFetchRequestTopics::default().with_name(topic_name("topic")).with_partition_indexes(vec![0]);
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text("group")))
        .with_member_epoch(-1)
        .with_topics(Some(vec![topic]));
    let request = OffsetFetchRequest::default().with_groups(vec![group]).with_require_stable(require_stable);
    let response = client.call_coordinator(9, &request, |response| response.groups[0].error_code);
    let partition = &response.groups[0].topics[0].partitions[0];
    (partition.error_code, partition.committed_offset)
}

#[test]
fn offsets_count_when_their_transaction_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, transactional());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let mut producer = Producer::new(&mut client, "id");
    assert_eq!(producer.commit(&mut client, NEW, 5), [0, 3]);
    assert_eq!((offset(&mut client, false), offset(&mut client, true)), ((0, -1), (UNSTABLE, -1)));
    producer.end(&mut client, true);
    assert_eq!(offset(&mut client, true), (0, 5));
    assert_eq!(producer.commit(&mut client, NEW, 6), [0, 3]);
    producer.end(&mut client, false);
    assert_eq!(offset(&mut client, true), (0, 5));

    // what is pending outlives the node, and so does what becomes of it
    assert_eq!(producer.commit(&mut client, NEW, 7), [0, 3]);
    node.stop();
    let node = Node::start(dir.path(), 3, transactional());
    let mut client = node.client();
    assert_eq!((offset(&mut client, false), offset(&mut client, true)), ((0, 5), (UNSTABLE, -1)));
    producer.end(&mut client, true);
    node.stop();
    let node = Node::start(dir.path(), 1, transactional());
    assert_eq!(offset(&mut node.client(), true), (0, 7));
}

#[test]
fn older_clients_add_their_group_first() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, transactional());
    let mut client = node.client();
    client.create_topic("topic", 1);
    let mut producer = Producer::new(&mut client, "id");
    assert_eq!(producer.commit(&mut client, OLD, 5), [ABORTABLE, 3]);
    assert_eq!(producer.commit(&mut client, 3, 5), [INVALID_STATE, 3]);
    assert_eq!(producer.add_offsets(&mut client), 0);
    assert_eq!(producer.commit(&mut client, OLD, 5), [0, 3]);
    producer.end(&mut client, true);
    assert_eq!(offset(&mut client, true), (0, 5));

    // whose id is another's cannot commit any more
    assert_eq!(producer.add_offsets(&mut client), 0);
    let mut successor = Producer::new(&mut client, "id");
    assert_eq!(producer.commit(&mut client, OLD, 9), [47, 3]);
    assert_eq!(producer.commit(&mut client, NEW, 9), [47, 3]);
    assert_eq!(successor.commit(&mut client, NEW, 6), [0, 3]);
    successor.end(&mut client, true);
    assert_eq!(offset(&mut client, true), (0, 6));
}
