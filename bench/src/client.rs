//! What the tool asks of brokers, in versions that are fixed: how to set up, read back, and know exactly what was sent.
//!
//! No retries but where a function says so: callers see every error as it is. The load generator has its own, pipelined
//! connections ([`crate::load`]).

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, ToSocketAddrs},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, DescribeLogDirsRequest, FetchRequest, FetchResponse,
        FindCoordinatorRequest, InitProducerIdRequest, MetadataRequest, ProduceRequest, ProduceResponse,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};
pub use millrace_client::{ClientError, Connection};
use millrace_client::{
    ConnectOptions,
    requests::{self, fetch_topic, milliseconds, topic_name},
};

/// Name that the tool gives itself in requests.
pub const CLIENT_ID: StrBytes = StrBytes::from_static_str("millrace-bench");

/// Connects; `timeout` also bounds every later read and write.
pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Connection, ClientError> {
    Connection::open_address(address, &ConnectOptions { client_id: CLIENT_ID, timeout })
}

pub(crate) fn check(what: impl FnOnce() -> String, code: i16) -> Result<(), ClientError> {
    if code == 0 { Ok(()) } else { ClientError::check(what(), code, None) }
}

/// Where the partitions of a topic are led.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaders {
    /// Address of each partition's leader, by partition.
    pub by_partition: Vec<SocketAddr>,
}

impl Leaders {
    /// Partitions by leader.
    pub fn by_address(&self) -> BTreeMap<SocketAddr, Vec<i32>> {
        let mut map: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
        for (partition, &address) in self.by_partition.iter().enumerate() {
            map.entry(address).or_default().push(partition as i32);
        }
        map
    }
}

/// Finds an address that answers for `HOST:PORT`.
pub fn resolve(broker: &str) -> Result<SocketAddr, ClientError> {
    let found = broker.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    found.ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::NotFound, format!("'{broker}' is no HOST:PORT that resolves"));
        ClientError::Connect { address: broker.to_owned(), source }
    })
}

/// Asks for a topic's leaders. A partition without one is an error.
pub fn leaders(connection: &mut Connection, topic: &str) -> Result<Leaders, ClientError> {
    let request = MetadataRequest::default()
        .with_topics(Some(vec![MetadataRequestTopic::default().with_name(Some(topic_name(topic)))]))
        .with_allow_auto_topic_creation(false);
    let response = connection.call(9, &request)?;
    let mut brokers = BTreeMap::new();
    for broker in &response.brokers {
        brokers.insert(broker.node_id, resolve(&format!("{}:{}", broker.host.as_str(), broker.port))?);
    }
    let found = response.topics.first().ok_or_else(|| ClientError::Unexpected("metadata without the topic".into()))?;
    check(|| format!("metadata of {topic}"), found.error_code)?;
    let mut partitions = BTreeMap::new();
    for partition in &found.partitions {
        let index = partition.partition_index;
        check(|| format!("metadata of {topic}-{index}"), partition.error_code)?;
        let leader = brokers.get(&partition.leader_id);
        let leader = leader.ok_or_else(|| ClientError::Unexpected(format!("{topic}-{index} has no known leader")))?;
        partitions.insert(index, *leader);
    }
    if !partitions.keys().copied().eq(0..partitions.len() as i32) {
        return Err(ClientError::Unexpected(format!("partitions of {topic} are not numbered from 0 on")));
    }
    Ok(Leaders { by_partition: partitions.into_values().collect() })
}

/// Creates a topic with replication factor 1.
pub fn create_topic(
    connection: &mut Connection,
    topic: &str,
    partitions: i32,
    configs: &[(String, String)],
) -> Result<(), ClientError> {
    create_topics(connection, std::slice::from_ref(&topic.to_owned()), partitions, configs)
}

/// Creates topics with replication factor 1, in one request.
pub fn create_topics(
    connection: &mut Connection,
    topics: &[String],
    partitions: i32,
    configs: &[(String, String)],
) -> Result<(), ClientError> {
    let config = |(name, value): &(String, String)| {
        CreatableTopicConfig::default()
            .with_name(StrBytes::from_string(name.clone()))
            .with_value(Some(StrBytes::from_string(value.clone())))
    };
    let topics = topics.iter().map(|topic| {
        CreatableTopic::default()
            .with_name(topic_name(topic))
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(configs.iter().map(config).collect())
    });
    let request = CreateTopicsRequest::default().with_topics(topics.collect()).with_timeout_ms(30_000);
    let response = connection.call(5, &request)?;
    for result in response.topics {
        ClientError::check(
            format!("create {}", result.name.as_str()),
            result.error_code,
            result.error_message.as_deref(),
        )?;
    }
    Ok(())
}

/// Deletes a topic.
pub fn delete_topic(connection: &mut Connection, topic: &str) -> Result<(), ClientError> {
    let request = DeleteTopicsRequest::default().with_topic_names(vec![topic_name(topic)]).with_timeout_ms(30_000);
    let response = connection.call(4, &request)?;
    for result in response.responses {
        check(|| format!("delete {topic}"), result.error_code)?;
    }
    Ok(())
}

/// Waits until every partition of a topic has a leader that serves it: Kafka answers CreateTopics, and names leaders,
/// a little earlier.
pub fn await_leaders(connection: &mut Connection, topic: &str, timeout: Duration) -> Result<Leaders, ClientError> {
    until_ready(timeout, || {
        let leaders = leaders(connection, topic)?;
        for (address, partitions) in leaders.by_address() {
            list_offsets(&mut connect(address, timeout)?, topic, &partitions, -1)?;
        }
        Ok(leaders)
    })
}

/// Tries again while the broker answers with an error; any other failure is final.
pub(crate) fn until_ready<T>(
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(ClientError::Refused { .. }) if start.elapsed() < timeout => {
                std::thread::sleep(Duration::from_millis(20))
            }
            result => return result,
        }
    }
}

/// Like [`init_producer_id`], for a broker whose coordinator may still be starting.
pub fn await_producer_id(connection: &mut Connection, timeout: Duration) -> Result<(i64, i16), ClientError> {
    until_ready(timeout, || init_producer_id(connection))
}

/// A producer id of its own.
pub fn init_producer_id(connection: &mut Connection) -> Result<(i64, i16), ClientError> {
    let response = connection
        .call(2, &InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(60_000))?;
    check(|| "InitProducerId".to_owned(), response.error_code)?;
    Ok((response.producer_id.0, response.producer_epoch))
}

/// Offsets of partitions at a timestamp (-1 the end, -2 the start), in the order asked.
pub fn list_offsets(
    connection: &mut Connection,
    topic: &str,
    partitions: &[i32],
    timestamp: i64,
) -> Result<Vec<i64>, ClientError> {
    let response = connection.call(5, &requests::list_offsets(topic, partitions, timestamp))?;
    let mut offsets = BTreeMap::new();
    for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
        check(|| format!("offset of {topic}-{}", partition.partition_index), partition.error_code)?;
        offsets.insert(partition.partition_index, partition.offset);
    }
    let missing = || ClientError::Unexpected("offsets missing in the answer".into());
    partitions.iter().map(|partition| offsets.get(partition).copied().ok_or_else(missing)).collect()
}

/// The request for one batch with acks=all, in [`PRODUCE_VERSION`].
pub fn produce_request(topic: &str, partition: i32, batch: Bytes, timeout: Duration) -> ProduceRequest {
    requests::produce(topic, partition, -1, timeout, batch)
}

/// Base offset out of the answer to a [`produce_request`].
pub fn produced(response: &ProduceResponse) -> Result<i64, ClientError> {
    let answer = response.responses.first().and_then(|topic| topic.partition_responses.first());
    let answer = answer.ok_or_else(|| ClientError::Unexpected("produce without an answer".into()))?;
    ClientError::check("produce", answer.error_code, answer.error_message.as_deref())?;
    Ok(answer.base_offset)
}

/// Produce as this client sends it: the last version without compact encoding, which carries topics by name.
pub const PRODUCE_VERSION: i16 = 8;

/// Sends one batch with acks=all and answers its base offset.
pub fn produce(
    connection: &mut Connection,
    topic: &str,
    partition: i32,
    batch: Bytes,
    timeout: Duration,
) -> Result<i64, ClientError> {
    produced(&connection.call(PRODUCE_VERSION, &produce_request(topic, partition, batch, timeout))?)
}

/// How a fetch should be answered.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// Answer as soon as that many bytes are there, or...
    pub min_bytes: i32,
    /// ...that much time has gone by.
    pub max_wait: Duration,
    /// Bytes over all partitions.
    pub max_bytes: i32,
    /// Bytes of one partition.
    pub partition_max_bytes: i32,
    /// Only what is committed.
    pub committed: bool,
}

impl Default for FetchLimits {
    /// What the Java consumer asks for by default.
    fn default() -> FetchLimits {
        FetchLimits {
            min_bytes: 1,
            max_wait: Duration::from_millis(500),
            max_bytes: 50 << 20,
            partition_max_bytes: 1 << 20,
            committed: false,
        }
    }
}

/// One partition's part of a fetch's answer.
#[derive(Debug, Clone)]
pub struct FetchedPartition {
    /// Which one.
    pub partition: i32,
    /// Kafka's error code, 0 for none.
    pub code: i16,
    /// End of what consumers may see.
    pub high_watermark: i64,
    /// Record batches.
    pub records: Bytes,
}

/// The version in which the tool fetches.
pub const FETCH_VERSION: i16 = 11;

/// A fetch from partitions led by one broker, without a session.
pub fn fetch_request(topic: &str, positions: impl Iterator<Item = (i32, i64)>, limits: FetchLimits) -> FetchRequest {
    FetchRequest::default()
        .with_max_wait_ms(milliseconds(limits.max_wait))
        .with_min_bytes(limits.min_bytes)
        .with_max_bytes(limits.max_bytes)
        .with_isolation_level(i8::from(limits.committed))
        .with_topics(vec![fetch_topic(topic, positions, limits.partition_max_bytes)])
}

/// Fetches from partitions led by this broker, without a session.
pub fn fetch(
    connection: &mut Connection,
    topic: &str,
    positions: impl Iterator<Item = (i32, i64)>,
    limits: FetchLimits,
) -> Result<Vec<FetchedPartition>, ClientError> {
    let response: FetchResponse = connection.call(FETCH_VERSION, &fetch_request(topic, positions, limits))?;
    check(|| "fetch".to_owned(), response.error_code)?;
    let partitions = response.responses.into_iter().flat_map(|topic| topic.partitions);
    Ok(partitions
        .map(|partition| FetchedPartition {
            partition: partition.partition_index,
            code: partition.error_code,
            high_watermark: partition.high_watermark,
            records: partition.records.unwrap_or_default(),
        })
        .collect())
}

/// What a coordinator is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// A consumer group.
    Group = 0,
    /// A transactional id.
    Transaction = 1,
}

/// Address of the coordinator of a group or of a transactional id.
pub fn find_coordinator(connection: &mut Connection, key: &str, kind: KeyType) -> Result<SocketAddr, ClientError> {
    let name = StrBytes::from_string(key.to_owned());
    let response = connection.call(2, &FindCoordinatorRequest::default().with_key(name).with_key_type(kind as i8))?;
    check(|| format!("coordinator of {key}"), response.error_code)?;
    resolve(&format!("{}:{}", response.host.as_str(), response.port))
}

/// Bytes of all partitions that a broker has, internal ones too.
pub fn log_bytes(connection: &mut Connection) -> Result<u64, ClientError> {
    let response = connection.call(1, &DescribeLogDirsRequest::default().with_topics(None))?;
    let mut bytes = 0;
    for folder in response.results {
        check(|| "log directories".to_owned(), folder.error_code)?;
        let partitions = folder.topics.iter().flat_map(|topic| &topic.partitions);
        bytes += partitions.map(|partition| partition.partition_size.unsigned_abs()).sum::<u64>();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unresolvable_broker_is_named() {
        let error = resolve("nonsense").expect_err("no port");
        assert!(error.to_string().contains("'nonsense'"), "{error}");
    }
}
