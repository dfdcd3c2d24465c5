//! Reading batches from the leader of some partitions.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{
    BrokerId, FetchRequest, TopicName,
    fetch_request::{FetchPartition, FetchTopic},
};

use super::{cluster::Cluster, error::ClientError};

/// Where to read a partition from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchFrom {
    /// Its topic.
    pub topic: String,
    /// Its index.
    pub partition: i32,
    /// The first offset that is wanted.
    pub offset: i64,
}

/// What came of it.
#[derive(Debug)]
pub struct Fetched {
    /// Index of the partition.
    pub partition: i32,
    /// Whole batches; the last one may be cut off.
    pub records: Bytes,
    /// What went wrong with this partition alone.
    pub error: Option<ClientError>,
}

const FETCH_BYTES_MAX: i32 = 32 << 20;
const PARTITION_BYTES_MAX: i32 = 4 << 20;
const SESSION_LESS_EPOCH: i32 = -1;

impl Cluster {
    /// Reads from one broker, which waits up to `wait` for something to be there.
    pub fn fetch(&mut self, leader: i32, from: &[FetchFrom], wait: Duration) -> Result<Vec<Fetched>, ClientError> {
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let response = self.broker_waiting(leader, wait, |version| {
            let request = FetchRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_max_wait_ms(wait_ms)
                .with_min_bytes(1)
                .with_max_bytes(FETCH_BYTES_MAX)
                .with_topics(topics(from));
            match version {
                ..=6 => request,
                _ => request.with_session_epoch(SESSION_LESS_EPOCH),
            }
        })?;
        ClientError::check("fetch", response.error_code, None)?;
        let mut fetched = Vec::new();
        for topic in response.responses {
            for partition in topic.partitions {
                let what = format!("topic '{}' partition {}", topic.topic.as_str(), partition.partition_index);
                fetched.push(Fetched {
                    partition: partition.partition_index,
                    records: partition.records.unwrap_or_default(),
                    error: ClientError::of_code(what, partition.error_code, None),
                });
            }
        }
        Ok(fetched)
    }
}

/// Partitions grouped by topic, as the request has them.
fn topics(from: &[FetchFrom]) -> Vec<FetchTopic> {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for wanted in from {
        let name = TopicName(kafka_protocol::protocol::StrBytes::from_string(wanted.topic.clone()));
        let partition = FetchPartition::default()
            .with_partition(wanted.partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(wanted.offset)
            .with_partition_max_bytes(PARTITION_BYTES_MAX);
        match topics.iter_mut().find(|topic| topic.topic == name) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(FetchTopic::default().with_topic(name).with_partitions(vec![partition])),
        }
    }
    topics
}
