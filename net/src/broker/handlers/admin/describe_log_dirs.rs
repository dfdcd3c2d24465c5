//! DescribeLogDirs: how much the partitions take, and how much room there is.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, DescribeLogDirsRequest, DescribeLogDirsResponse, TopicName,
        describe_log_dirs_response::{DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic},
    },
    protocol::{Decodable, StrBytes},
};
use millrace_client::{ETCD_TROUBLE_TAG, FOLLOWER_LAGS_TAG, FollowerLag};
use millrace_engine::{api::TopicPartition, engine::Engine};
use millrace_replica::{
    cluster::model::NodeId,
    shell::{FollowerReport, Shell},
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    wire::{
        api::{
            ErrorCodes, Handling, Reply, Request, RequestHeader, encode_bytes,
            shape::{INT32S, STRING, Shape, array},
        },
        frame::Malformed,
    },
};

const SHAPE: Shape = &[array(&[STRING, INT32S])];

/// DescribeLogDirs.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeLogDirs,
    version_min: 1,
    version_max: 5,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: begin,
};

/// The first version with tagged fields.
const VERSION_FLEXIBLE: i16 = 2;
/// The newest version whose layout the message library knows.
const VERSION_KNOWN: i16 = 4;

fn begin(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, mut body } = request;
    let version = header.version.min(VERSION_KNOWN);
    let request =
        DescribeLogDirsRequest::decode(&mut body, version).map_err(|error| Malformed::Body(error.to_string()))?;
    let context = context.clone();
    Ok(Handling::Later(Box::pin(async move { encode(&header, &answer(&context, header.version, request).await) })))
}

async fn answer(context: &Context, version: i16, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    let topics = match context.cluster(Operation::Describe) {
        Ok(topics) => topics,
        Err(error) => return DescribeLogDirsResponse::default().with_error_code(error.code()),
    };
    // Topic name and partition of those asked for; `None`: all.
    let wanted: Option<HashSet<(&str, i32)>> = request.topics.as_ref().map(|topics| {
        let topics = topics.iter();
        topics.flat_map(|topic| topic.partitions.iter().map(|index| (topic.topic.as_str(), *index))).collect()
    });
    let ids = request.topics.as_ref().map(|wanted| {
        let found = wanted.iter().filter_map(|topic| topics.get(&topic.topic).ok());
        found.map(|topic| topic.id).collect()
    });
    let view = context.view();
    // who wants none is told of none, and no shard is asked
    let is_about_none = wanted.as_ref().is_some_and(HashSet::is_empty);
    let (lags, sizes) = match is_about_none {
        true => Default::default(),
        false => (lags(context.engine()).await, context.engine().partition_sizes(ids).await),
    };
    let mut by_topic: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for (partition, bytes) in sizes {
        if !view.is_replica_here(partition) {
            continue;
        }
        let Ok(topic) = topics.get(partition.topic) else {
            continue;
        };
        let key = (topic.name.as_str(), partition.partition);
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&key)) {
            let size = i64::try_from(bytes).unwrap_or(i64::MAX);
            let described = DescribeLogDirsPartition::default()
                .with_partition_index(partition.partition)
                .with_partition_size(size)
                .with_offset_lag(lags.get(&partition).copied().unwrap_or(0));
            by_topic.entry(topic.name.clone()).or_default().push(described);
        }
    }
    let by_topic = by_topic.into_iter().map(|(name, mut partitions)| {
        partitions.sort_unstable_by_key(|partition| partition.partition_index);
        let name = TopicName(StrBytes::from_string(name));
        DescribeLogDirsTopic::default().with_name(name).with_partitions(partitions)
    });
    let (total, usable) = context.engine().volume_bytes();
    let result = DescribeLogDirsResult::default()
        .with_log_dir(StrBytes::from_string(context.engine().data_dir().display().to_string()))
        .with_topics(by_topic.collect())
        .with_total_bytes(i64::try_from(total).unwrap_or(i64::MAX))
        .with_usable_bytes(i64::try_from(usable).unwrap_or(i64::MAX));
    let response = DescribeLogDirsResponse::default().with_results(vec![result]);
    // one that is not known to the library is put together from the end
    let takes_tags = (VERSION_FLEXIBLE..=VERSION_KNOWN).contains(&version);
    match takes_tags && is_about_none {
        true => response.with_unknown_tagged_fields(word(context.engine()).await),
        false => response,
    }
}

/// What this node says of itself for `millrace cluster status`: what followers lack of the partitions that it leads, and what keeps
/// it from etcd.
async fn word(engine: &Engine) -> BTreeMap<i32, Bytes> {
    let of_shards = engine.on_all(|engine: Engine| {
        let report = engine.attached::<Shell>().map(|shell| shell.standing().followers);
        std::future::ready(report.unwrap_or_default())
    });
    let mut followers: BTreeMap<NodeId, FollowerReport> = BTreeMap::new();
    for (node, report) in of_shards.await.into_iter().flatten() {
        followers.entry(node).or_default().add(&report);
    }
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let lag = |(node, report): (NodeId, FollowerReport)| FollowerLag {
        node,
        partitions: count(report.partitions),
        in_sync: count(report.in_sync),
        records: report.lag_records,
        bytes: report.lag_bytes,
        ms: report.lag_ms,
    };
    let lags: Vec<_> = followers.into_iter().map(lag).collect();
    let mut said = BTreeMap::from([(FOLLOWER_LAGS_TAG, FollowerLag::encode(&lags))]);
    let trouble = engine.attached::<Shell>().and_then(|shell| shell.etcd_trouble());
    said.extend(trouble.map(|trouble| (ETCD_TROUBLE_TAG, Bytes::from(trouble))));
    said
}

/// Records that partitions lack which this node follows, as far as it has heard of their leaders.
async fn lags(engine: &Engine) -> HashMap<TopicPartition, i64> {
    let of_shards = engine.on_all(|engine: Engine| {
        let lags = engine.attached::<Shell>().map(|shell| shell.lags());
        std::future::ready(lags.unwrap_or_default())
    });
    of_shards.await.into_iter().flatten().collect()
}

/// Version 5 has one field more, whether the directory is cordoned (KIP-1066): the last of a result.
fn encode(header: &RequestHeader, response: &DescribeLogDirsResponse) -> Reply {
    let encoded = encode_bytes(header, header.version.min(VERSION_KNOWN), response);
    let encoded = encoded.map(|bytes| if header.version > VERSION_KNOWN { with_cordoned(&bytes) } else { bytes });
    Reply::new(encoded, response.errors())
}

/// Inserts the field before the two empty sets of tagged fields that end the only result and the response.
fn with_cordoned(bytes: &Bytes) -> Bytes {
    const TAGGED_FIELDS_BYTES: usize = 2;
    let (head, tail) = bytes.split_at(bytes.len() - TAGGED_FIELDS_BYTES);
    let mut longer = BytesMut::with_capacity(bytes.len() + 1);
    longer.put_slice(head);
    longer.put_u8(0);
    longer.put_slice(tail);
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) + 1;
    longer[..4].copy_from_slice(&length.to_be_bytes());
    longer.freeze()
}
