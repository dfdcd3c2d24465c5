//! Reading batches from the leader of some partitions.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use kafka_protocol::messages::{FetchRequest, fetch_request::FetchTopic};
use millrace_engine::transactions::AbortedTransaction;

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    isolation::IsolationLevel,
    requests::{fetch_topic, milliseconds},
};

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
    /// Transactions whose records are among these and do not count; none, for who reads what is uncommitted.
    pub aborted: Vec<AbortedTransaction>,
    /// What went wrong with this partition alone.
    pub error: Option<ClientError>,
}

const FETCH_BYTES_MAX: i32 = 32 << 20;
const PARTITION_BYTES_MAX: i32 = 4 << 20;

impl Cluster {
    /// Reads from one broker, which waits up to `wait` for something to be there. Who reads what is committed must leave
    /// out what [`CommittedBatches`](millrace_engine::batch::CommittedBatches) does not count.
    pub fn fetch(
        &mut self,
        leader: i32,
        from: &[FetchFrom],
        isolation: IsolationLevel,
        wait: Duration,
    ) -> Result<Vec<Fetched>, ClientError> {
        let response = self.broker_waiting(leader, wait, |_| {
            FetchRequest::default()
                .with_max_wait_ms(milliseconds(wait))
                .with_min_bytes(1)
                .with_max_bytes(FETCH_BYTES_MAX)
                .with_isolation_level(isolation.on_the_wire())
                .with_topics(topics(from))
        })?;
        ClientError::check("fetch", response.error_code, None)?;
        let mut fetched = Vec::new();
        for topic in response.responses {
            for partition in topic.partitions {
                let what = partition_named(&topic.topic, partition.partition_index);
                let aborted = partition.aborted_transactions.unwrap_or_default();
                let aborted = aborted.into_iter().map(|aborted| AbortedTransaction {
                    producer_id: aborted.producer_id.0,
                    first_offset: aborted.first_offset,
                });
                fetched.push(Fetched {
                    partition: partition.partition_index,
                    records: partition.records.unwrap_or_default(),
                    aborted: aborted.collect(),
                    error: ClientError::of_code(what, partition.error_code, None),
                });
            }
        }
        Ok(fetched)
    }
}

/// Partitions grouped by topic, as the request has them.
fn topics(from: &[FetchFrom]) -> Vec<FetchTopic> {
    let mut topics: BTreeMap<&str, Vec<(i32, i64)>> = BTreeMap::new();
    for wanted in from {
        topics.entry(&wanted.topic).or_default().push((wanted.partition, wanted.offset));
    }
    topics.into_iter().map(|(topic, positions)| fetch_topic(topic, positions, PARTITION_BYTES_MAX)).collect()
}
