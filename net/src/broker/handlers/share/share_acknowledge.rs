//! ShareAcknowledge: what a member has done with records that it got.

use std::collections::BTreeMap;

use kafka_protocol::{ResponseError, messages::ApiKey};
use millrace_engine::api::TopicPartition;
use uuid::Uuid;

use super::{
    encode::{self, AcknowledgedPartition, TopError},
    request::{Part, ShareAcknowledge, check},
    session,
};
use crate::{
    broker::{
        cluster::NamedLeaders,
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::share::{
        partition::Acknowledgement,
        session::CLOSE_EPOCH,
        shell::{AcknowledgeFailure, acknowledge_on, here},
    },
    wire::{
        api::{
            Handling, Request,
            shape::{BOOL, INT8S, INT32, INT64, STRING, Shape, UUID, array},
        },
        frame::Malformed,
    },
};

pub(super) const PART: Shape = &[UUID, array(&[INT32, array(&[INT64, INT64, INT8S])])];
const SHAPE: Shape = &[STRING, STRING, INT32, BOOL.since(2), array(PART)];

/// ShareAcknowledge.
pub(crate) static API: Api = Api {
    key: ApiKey::ShareAcknowledge,
    version_min: 1,
    version_max: 2,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle,
};

/// Places in the request, and what belongs to them, of one shard.
type OfShard = (Vec<usize>, Vec<(TopicPartition, Vec<Acknowledgement>)>);
/// What became of a partition's acknowledgements.
pub(super) type Acknowledged = (TopicPartition, Option<AcknowledgeFailure>);

fn handle(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, body } = request;
    let request = ShareAcknowledge::decode(&body, header.version)?;
    let context = context.clone();
    Ok(Handling::Later(Box::pin(async move {
        let group = request.group.clone().unwrap_or_default();
        let lock_ms = here(context.engine()).await.group_settings(&group).limits.lock_ms;
        let outcome = acknowledge(&context, request).await;
        let mut leaders = NamedLeaders::new(context.view());
        let (error, topics) = match outcome {
            Ok(acknowledged) => (None, by_topic(acknowledged, &mut leaders)),
            Err(error) => (Some(error), Vec::new()),
        };
        let brokers: Vec<_> = leaders.into_brokers().collect();
        let told = (topics.as_slice(), brokers.as_slice());
        super::reply(encode::acknowledged(header.correlation_id, header.version, error.as_ref(), lock_ms, told))
    })))
}

async fn acknowledge(context: &Context, request: ShareAcknowledge) -> Result<Vec<Acknowledged>, TopError> {
    if let Some(reason) = request.refusal() {
        return Err((ResponseError::InvalidRequest, Some(reason)));
    }
    let group = request.group.unwrap_or_default();
    context.group(&group, Operation::Read).map_err(|error| (error, None))?;
    let member = request.member.unwrap_or_default();
    let engine = context.engine();
    let shard = session::shard_of(context, &group, &member);
    let (id, who, epoch) = (group.clone(), member.clone(), request.epoch);
    let begun = engine.on_shard(shard, move |engine| async move {
        here(&engine).await.sessions.borrow_mut().begin_acknowledge(&session::key(&id, &who), epoch)
    });
    begun.await.map_err(|error| (error, None))?;
    let acknowledged = acknowledge_parts(context, (&group, &member), request.parts, request.version, request.renews);
    let acknowledged = acknowledged.await;
    if epoch == CLOSE_EPOCH {
        session::end(engine, shard, &group, &member).await;
    }
    Ok(acknowledged)
}

/// Takes acknowledgements to the shards that own the partitions; returns when they are durable.
pub(super) async fn acknowledge_parts(
    context: &Context,
    (group, member): (&str, &str),
    parts: Vec<Part>,
    version: i16,
    renews: bool,
) -> Vec<Acknowledged> {
    let engine = context.engine();
    let topics = context.topics();
    let mut answers: Vec<Acknowledged> = Vec::with_capacity(parts.len());
    let mut by_shard: BTreeMap<usize, OfShard> = BTreeMap::new();
    for (partition, batches) in parts {
        let at = answers.len();
        let checked = check(batches, version, renews).and_then(|checked| {
            let topic = topics.get(partition.topic, Operation::Read)?;
            if (0..topic.partitions).contains(&partition.partition) {
                Ok(checked)
            } else {
                Err(ResponseError::UnknownTopicOrPartition)
            }
        });
        answers.push((partition, checked.as_ref().err().map(|error| AcknowledgeFailure::from(*error))));
        if let Ok(checked) = checked
            && !checked.is_empty()
        {
            let (places, of_shard) = by_shard.entry(engine.owner(partition)).or_default();
            places.push(at);
            of_shard.push((partition, checked));
        }
    }
    let acknowledging = by_shard.into_iter().map(|(shard, (places, parts))| async move {
        let who = (group.to_owned(), member.to_owned());
        (places, acknowledge_on(engine, shard, who, parts).await)
    });
    for (places, of_shard) in futures_util::future::join_all(acknowledging).await {
        for (at, answer) in places.into_iter().zip(of_shard) {
            answers[at].1 = answer.err();
        }
    }
    answers
}

fn by_topic(
    acknowledged: Vec<Acknowledged>,
    leaders: &mut NamedLeaders<'_>,
) -> Vec<(Uuid, Vec<AcknowledgedPartition>)> {
    let mut topics: BTreeMap<Uuid, Vec<AcknowledgedPartition>> = BTreeMap::new();
    for (partition, failure) in acknowledged {
        let leader = failure.as_ref().and_then(|failure| leaders.name(partition, failure.error));
        let acknowledged = AcknowledgedPartition { index: partition.partition, failure, leader };
        topics.entry(partition.topic).or_default().push(acknowledged);
    }
    topics.into_iter().collect()
}
