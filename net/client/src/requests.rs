//! Requests that several clients send alike. What is not set has Kafka's default: no leader epoch, no session, a
//! consumer and no replica.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        ListOffsetsRequest, ProduceRequest, TopicName,
        fetch_request::{FetchPartition, FetchTopic},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::StrBytes,
};

/// A topic's name as requests carry it.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// A time as requests carry it.
pub fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// Writes one batch, in a version that names topics.
pub fn produce(topic: &str, partition: i32, acks: i16, timeout: Duration, batch: Bytes) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
    let topic = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
    ProduceRequest::default().with_acks(acks).with_timeout_ms(milliseconds(timeout)).with_topic_data(vec![topic])
}

/// The part of a fetch that is about one topic: partitions and where to begin, in a version that names topics.
pub fn fetch_topic(
    topic: &str,
    positions: impl IntoIterator<Item = (i32, i64)>,
    partition_bytes_max: i32,
) -> FetchTopic {
    let partition = |(partition, offset)| {
        FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(partition_bytes_max)
    };
    FetchTopic::default().with_topic(topic_name(topic)).with_partitions(positions.into_iter().map(partition).collect())
}

/// Asks for the offsets at a timestamp; -1 is the end, -2 the start.
pub fn list_offsets(topic: &str, partitions: &[i32], timestamp: i64) -> ListOffsetsRequest {
    let partition =
        |&index: &i32| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(partitions.iter().map(partition).collect());
    ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic])
}
