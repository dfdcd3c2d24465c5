//! Metadata: brokers, topics and their leaders; creates unknown topics where that is wanted.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, BrokerId, MetadataRequest, MetadataResponse, TopicName,
        metadata_request::MetadataRequestTopic,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    protocol::StrBytes,
};
use millrace_engine::engine::Topic;

use crate::{
    broker::{
        cluster::{self, ClusterView, Layout, TopicPlan},
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::{
        group::{OFFSETS_TOPIC, new_offsets_topic},
        transaction::shell::{TRANSACTION_TOPIC, new_transaction_topic},
    },
    errors::check_topic_name,
    wire::api::{
        Call, call,
        shape::{BOOL, STRING, Shape, UUID, array},
    },
};

const SHAPE: Shape = &[array(&[UUID.since(10), STRING]), BOOL.since(4), BOOL.since(8).until(10), BOOL.since(8)];

/// Metadata.
pub(crate) static API: Api = Api {
    key: ApiKey::Metadata,
    version_min: 0,
    version_max: 13,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Topic, Operation::Describe),
        (ResourceType::Cluster, Operation::Create),
        (ResourceType::Topic, Operation::Create),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

/// How long an answer that names another node as a leader waits for news of it. When a leader's process ends, its clients ask in
/// the same moment in which this node's connection to it ends: whoever is told the dead leader once more asks again when its
/// own clocks say so (librdkafka: within a second).
const HEED: Duration = Duration::from_millis(5);

async fn handle(context: Context, call: Call<MetadataRequest>) -> MetadataResponse {
    let mut topics = heeded_topics(&context, &call).await;
    if call.body.include_topic_authorized_operations {
        for topic in &mut topics {
            let name = topic.name.as_ref().map_or("", |name| name.as_str());
            topic.topic_authorized_operations = context.topic_operations(name);
        }
    }
    let view = context.view();
    let brokers = view.brokers().into_iter().map(|broker| {
        MetadataResponseBroker::default()
            .with_node_id(broker.id)
            .with_host(broker.host)
            .with_port(broker.port)
            .with_rack(broker.rack)
    });
    let operations = match call.body.include_cluster_authorized_operations {
        true => context.cluster_operations(),
        false => cluster::NO_OPERATIONS,
    };
    MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(view.id()))
        .with_controller_id(view.controller())
        .with_topics(topics)
        .with_cluster_authorized_operations(operations)
}

/// The topics, with leaders that are not known to be others for [`HEED`]: whatever else is news ends no wait.
async fn heeded_topics(context: &Context, call: &Call<MetadataRequest>) -> Vec<MetadataResponseTopic> {
    let until = Instant::now() + HEED;
    let (mut seen, mut topics) = (context.view(), wanted_topics(context, call).await);
    while names_others(&seen, &topics)
        && let left = until.saturating_duration_since(Instant::now())
        && !left.is_zero()
        && seen.is_outdated_within(left).await
    {
        seen = context.view();
        let newer = wanted_topics(context, call).await;
        let is_news = !leaders(&newer).eq(leaders(&topics));
        topics = newer;
        if is_news {
            break;
        }
    }
    topics
}

/// Who leads the partitions of topics.
fn leaders(topics: &[MetadataResponseTopic]) -> impl Iterator<Item = i32> {
    topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.leader_id.0)
}

/// Whether a node is named as leader from which this one hears by connections only.
fn names_others(view: &ClusterView<'_>, topics: &[MetadataResponseTopic]) -> bool {
    view.has_epochs() && leaders(topics).any(|leader| leader >= 0 && !view.is_here(BrokerId(leader)))
}

async fn wanted_topics(context: &Context, call: &Call<MetadataRequest>) -> Vec<MetadataResponseTopic> {
    let request = &call.body;
    let wanted = match &request.topics {
        None => return all_topics(context).await,
        // Version 0 knows no null: an empty list asks for all.
        Some(wanted) if wanted.is_empty() && call.version() == 0 => return all_topics(context).await,
        Some(wanted) => wanted,
    };
    let has_ids = call.version() >= 12;
    if !has_ids && wanted.iter().any(|topic| topic.name.is_none() || !topic.topic_id.is_nil()) {
        return wanted.iter().map(|topic| refuse(topic, ResponseError::InvalidRequest)).collect();
    }
    // Versions before 4 have no say in it.
    let may_create = context.config().auto_create_topics && (call.version() < 4 || request.allow_auto_topic_creation);
    let mut seen = HashSet::new();
    let mut answers = Vec::with_capacity(wanted.len());
    for topic in wanted {
        if !seen.insert((topic.name.as_ref(), topic.topic_id)) {
            continue;
        }
        answers.push(match &topic.name {
            Some(name) if topic.topic_id.is_nil() => by_name(context, name, may_create).await,
            _ => match context.topic(topic.topic_id, Operation::Describe) {
                Ok(found) => describe(context, &found),
                Err(error) => refuse(topic, error),
            },
        });
        glommio::yield_if_needed().await;
    }
    answers
}

async fn all_topics(context: &Context) -> Vec<MetadataResponseTopic> {
    let topics = context.topics();
    let mut answers = Vec::new();
    for topic in topics.visible("", Operation::Describe) {
        answers.push(describe(context, &topic));
        glommio::yield_if_needed().await;
    }
    answers
}

async fn by_name(context: &Context, name: &TopicName, may_create: bool) -> MetadataResponseTopic {
    let find = || context.topic(name, Operation::Describe).map(|topic| describe(context, &topic));
    let refuse = |error| refuse(&MetadataRequestTopic::default().with_name(Some(name.clone())), error);
    match find() {
        Ok(found) => return found,
        Err(ResponseError::UnknownTopicOrPartition) => {}
        Err(error) => return refuse(error),
    }
    if let Err(illegal) = check_topic_name(name.as_str()) {
        return refuse(illegal.error);
    }
    let Some(plan) = new_topic(context, name).filter(|_| may_create) else {
        return refuse(ResponseError::UnknownTopicOrPartition);
    };
    if let Err(error) = context.create_topic(name) {
        return refuse(error);
    }
    match context.administration().create_topic(plan, false).await {
        Ok(topic) => {
            tracing::info!(topic = %**name, partitions = topic.partitions, "topic created automatically");
        }
        // Somebody else was faster.
        Err(error) if error.error == ResponseError::TopicAlreadyExists => {}
        Err(error) => return refuse(error.error),
    }
    find().unwrap_or_else(|_| refuse(ResponseError::LeaderNotAvailable))
}

/// A topic as it is created on demand; `None` for those that must not be.
fn new_topic(context: &Context, name: &TopicName) -> Option<TopicPlan> {
    let config = context.config();
    if name.as_str() == OFFSETS_TOPIC {
        return Some(TopicPlan::internal(new_offsets_topic(&config.group_settings().ok()?), &context.view()));
    }
    if name.as_str() == TRANSACTION_TOPIC {
        let settings = config.coordinator_settings().ok()?.transactions;
        return Some(TopicPlan::internal(new_transaction_topic(&settings), &context.view()));
    }
    if cluster::is_internal(name.as_str()) {
        return None;
    }
    let layout = Layout::Automatic { partitions: config.num_partitions, replication_factor: None };
    Some(TopicPlan { name: name.to_string(), layout, configs: BTreeMap::new() })
}

fn refuse(topic: &MetadataRequestTopic, error: ResponseError) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_error_code(error.code())
        .with_name(topic.name.clone())
        .with_topic_id(topic.topic_id)
}

fn describe(context: &Context, topic: &Topic) -> MetadataResponseTopic {
    let view = context.view();
    let partitions = topic.partition_ids().map(|partition| {
        let state = view.partition(partition);
        MetadataResponsePartition::default()
            .with_error_code(state.error_code())
            .with_partition_index(partition.partition)
            .with_leader_id(state.leader_id())
            .with_leader_epoch(state.leader_epoch)
            .with_replica_nodes(state.replicas)
            .with_isr_nodes(state.isr)
            .with_offline_replicas(state.offline)
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
        .with_topic_id(topic.id)
        .with_is_internal(cluster::is_internal(&topic.name))
        .with_partitions(partitions.collect())
}
