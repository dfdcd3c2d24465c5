//! Metadata: brokers, topics and their leaders; creates unknown topics where that is wanted.

use std::rc::Rc;

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, MetadataRequest, MetadataResponse, TopicName,
        metadata_request::MetadataRequestTopic,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    protocol::StrBytes,
};
use millrace_engine::{
    api::{LEADER_EPOCH, NewTopic, TopicError, TopicPartition},
    engine::Topic,
};

use crate::{
    api::{
        Api, Call, Context, OnDisconnect, call,
        shape::{BOOL, STRING, Shape, UUID, array},
    },
    cluster,
    errors::topic_error,
    group::{OFFSETS_TOPIC, new_offsets_topic},
};

const SHAPE: Shape = &[array(&[UUID.since(10), STRING]), BOOL.since(4), BOOL.since(8).until(10), BOOL.since(8)];

/// Metadata.
pub(crate) static API: Api = Api {
    key: ApiKey::Metadata,
    version_min: 0,
    version_max: 13,
    advertised_min: 0,
    shape: Some(SHAPE),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

/// Operations that a client may do: without an authorizer nothing is said (KIP-430).
pub(crate) const NO_AUTHORIZED_OPERATIONS: i32 = i32::MIN;

async fn handle(context: Context, call: Call<MetadataRequest>) -> MetadataResponse {
    let topics = wanted_topics(&context, &call).await;
    let (engine, config) = (context.engine(), context.config());
    let brokers = cluster::brokers(engine, config).into_iter().map(|broker| {
        MetadataResponseBroker::default().with_node_id(broker.id).with_host(broker.host).with_port(broker.port)
    });
    MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(cluster::cluster_id(engine)))
        .with_controller_id(cluster::controller(engine))
        .with_topics(topics)
        .with_cluster_authorized_operations(NO_AUTHORIZED_OPERATIONS)
}

async fn wanted_topics(context: &Context, call: &Call<MetadataRequest>) -> Vec<MetadataResponseTopic> {
    let request = &call.body;
    let wanted = match &request.topics {
        None => return all_topics(context),
        // Version 0 knows no null: an empty list asks for all.
        Some(wanted) if wanted.is_empty() && call.version() == 0 => return all_topics(context),
        Some(wanted) => wanted,
    };
    let has_ids = call.version() >= 12;
    if !has_ids && wanted.iter().any(|topic| topic.name.is_none() || !topic.topic_id.is_nil()) {
        return wanted.iter().map(|topic| refuse(topic, ResponseError::InvalidRequest)).collect();
    }
    // Versions before 4 have no say in it.
    let may_create = context.config().auto_create_topics && (call.version() < 4 || request.allow_auto_topic_creation);
    let mut seen = std::collections::HashSet::new();
    let mut answers = Vec::with_capacity(wanted.len());
    for topic in wanted {
        if !seen.insert((topic.name.as_ref(), topic.topic_id)) {
            continue;
        }
        answers.push(match &topic.name {
            Some(name) => by_name(context, name, may_create).await,
            None => match context.engine().topics().by_id.get(&topic.topic_id) {
                Some(found) => describe(context, found),
                None => refuse(topic, ResponseError::UnknownTopicId),
            },
        });
        glommio::yield_if_needed().await;
    }
    answers
}

fn all_topics(context: &Context) -> Vec<MetadataResponseTopic> {
    context.engine().topics().by_name.values().map(|topic| describe(context, topic)).collect()
}

async fn by_name(context: &Context, name: &TopicName, may_create: bool) -> MetadataResponseTopic {
    if let Some(topic) = context.engine().topics().by_name.get(name.as_str()) {
        return describe(context, topic);
    }
    let wanted = MetadataRequestTopic::default().with_name(Some(name.clone()));
    let new = new_topic(context, name);
    match context.engine().create_topic(new, !may_create).await {
        Ok(topic) if may_create => {
            tracing::info!(topic = %topic.name, partitions = topic.partitions, "topic created automatically");
            describe(context, &topic)
        }
        Ok(_) => refuse(&wanted, ResponseError::UnknownTopicOrPartition),
        // Somebody else was faster.
        Err(TopicError::Exists(_)) => match context.engine().topics().by_name.get(name.as_str()) {
            Some(topic) => describe(context, topic),
            None => refuse(&wanted, ResponseError::LeaderNotAvailable),
        },
        Err(error) => refuse(&wanted, topic_error(&error).error),
    }
}

fn refuse(topic: &MetadataRequestTopic, error: ResponseError) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_error_code(error.code())
        .with_name(topic.name.clone())
        .with_topic_id(topic.topic_id)
        .with_topic_authorized_operations(NO_AUTHORIZED_OPERATIONS)
}

/// A topic that is made because somebody asked for it.
fn new_topic(context: &Context, name: &TopicName) -> NewTopic {
    if name.as_str() == OFFSETS_TOPIC {
        let settings = context.config().group_settings().unwrap_or_default();
        return new_offsets_topic(&settings);
    }
    NewTopic { name: name.to_string(), partitions: context.config().num_partitions, configs: Default::default() }
}

fn describe(context: &Context, topic: &Rc<Topic>) -> MetadataResponseTopic {
    let partitions = (0..topic.partitions).map(|index| {
        let partition = TopicPartition { topic: topic.id, partition: index };
        let leader = cluster::leader(context.engine(), context.config(), partition);
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(leader)
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![leader])
            .with_isr_nodes(vec![leader])
    });
    MetadataResponseTopic::default()
        .with_is_internal(topic.name == OFFSETS_TOPIC)
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
        .with_topic_id(topic.id)
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(NO_AUTHORIZED_OPERATIONS)
}
