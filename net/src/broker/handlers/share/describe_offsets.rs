//! DescribeShareGroupOffsets: where share groups stand, and how much is before them.

use std::{rc::Rc, time::Duration};

use futures_util::future::{Either, select};
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, DescribeShareGroupOffsetsRequest,
        describe_share_group_offsets_request::DescribeShareGroupOffsetsRequestGroup,
    },
    protocol::Decodable,
};
use millrace_client::requests;
use millrace_engine::{
    api::{OffsetSpec, ReadBound, TopicPartition},
    engine::{Engine, Topic},
};
use uuid::Uuid;

use super::encode::{DescribedGroup, DescribedPartition, DescribedTopic};
use crate::{
    broker::{
        context::{Authorization, Context, Found, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    client::{Leader, OtherBrokers, Purpose},
    coordinator::{
        group::Groups,
        share::{
            shell::states,
            state::{ReadSummary, ShareKey, Summary, UNDECIDED},
        },
    },
    errors::log_error,
    wire::{
        api::{
            Handling, Request,
            shape::{INT32S, STRING, Shape, array},
        },
        frame::Malformed,
    },
};

/// How long the leader of a partition may take to say where that ends.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// What ListOffsets calls the end.
const LATEST: i64 = -1;

const SHAPE: Shape = &[array(&[STRING, array(&[STRING, INT32S])])];

/// DescribeShareGroupOffsets.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeShareGroupOffsets,
    version_min: 0,
    version_max: 1,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Describe),
        (ResourceType::Topic, Operation::Describe),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle,
};

fn handle(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, mut body } = request;
    // version 1 differs in the response only
    let request =
        DescribeShareGroupOffsetsRequest::decode(&mut body, 0).map_err(|error| Malformed::Body(error.to_string()))?;
    let context = context.clone();
    Ok(Handling::Later(Box::pin(async move {
        let describing = request.groups.into_iter().map(|group| describe(&context, group));
        let groups = futures_util::future::join_all(describing).await;
        super::reply(super::encode::described(header.correlation_id, header.version, &groups))
    })))
}

async fn describe(context: &Context, group: DescribeShareGroupOffsetsRequestGroup) -> DescribedGroup {
    let id = group.group_id.to_string();
    match describe_topics(context, &id, group).await {
        Ok(topics) => DescribedGroup { id, topics, error: None },
        Err(error) => DescribedGroup { id, topics: Vec::new(), error: Some(error) },
    }
}

async fn describe_topics(
    context: &Context,
    id: &str,
    group: DescribeShareGroupOffsetsRequestGroup,
) -> Result<Vec<DescribedTopic>, ResponseError> {
    let group_id = context.group(id, Operation::Describe)?;
    let (engine, topics) = (context.engine(), context.topics());
    let mut wanted: Vec<(String, Found<'_>, Vec<i32>)> = Vec::new();
    match group.topics {
        Some(named) => {
            for topic in named {
                let name = topic.topic_name.to_string();
                let found = topics.get(name.as_str(), Operation::Describe);
                wanted.push((name, found, topic.partitions));
            }
        }
        None => {
            let group = id.to_owned();
            let reading = Groups::read_for(engine, &group_id, move |coordinator| coordinator.share_partitions(&group));
            for (id, indexes) in reading.await? {
                if let Ok(found) = topics.get(id, Operation::Describe) {
                    wanted.push((found.name.clone(), Ok(found), indexes));
                }
            }
        }
    }
    let mut described = Vec::with_capacity(wanted.len());
    for (name, found, indexes) in wanted {
        let describing = indexes.into_iter().map(|index| describe_partition(context, id, &found, index));
        let partitions = futures_util::future::join_all(describing).await;
        described.push(DescribedTopic { name, id: found.map_or(Uuid::nil(), |topic| topic.id), partitions });
    }
    Ok(described)
}

/// A partition that is not there, or of which nothing is kept, is described as undecided: that is no error.
async fn describe_partition(context: &Context, group: &str, topic: &Found<'_>, index: i32) -> DescribedPartition {
    let mut described = DescribedPartition { index, start_offset: UNDECIDED, leader_epoch: 0, lag: -1, error: None };
    let topic = match topic {
        Ok(topic) if (0..topic.partitions).contains(&index) => topic,
        Ok(_) | Err(ResponseError::UnknownTopicOrPartition) => return described,
        Err(error) => return DescribedPartition { error: Some(*error), ..described },
    };
    // who only describes fences nobody, whatever the epoch
    let asked = ReadSummary { leader_epoch: -1 };
    let summary = match states::ask(context.engine(), &ShareKey::new(group, topic.id, index), asked).await {
        Ok(summary) => summary,
        Err(ResponseError::UnknownTopicOrPartition) => return described,
        Err(error) => return DescribedPartition { error: Some(error), ..described },
    };
    let Summary { start_offset, delivery_complete_count, leader_epoch, .. } = summary;
    (described.start_offset, described.leader_epoch) = (start_offset, leader_epoch);
    if start_offset != UNDECIDED && delivery_complete_count != -1 {
        match end_offset(context.engine(), topic, index).await {
            Ok(end) => described.lag = end - start_offset - i64::from(delivery_complete_count),
            Err(error) => described.error = Some(error),
        }
    }
    described
}

/// Where a partition ends, as its leader says.
async fn end_offset(engine: &Engine, topic: &Topic, index: i32) -> Result<i64, ResponseError> {
    let partition = TopicPartition { topic: topic.id, partition: index };
    let others = engine.attached::<OtherBrokers>();
    let Some((others, leader)) = others.map(|others| (Rc::clone(&others), others.leader(partition))) else {
        return here(engine, partition).await;
    };
    match leader {
        Leader::Here => here(engine, partition).await,
        Leader::Nobody => Err(ResponseError::LeaderNotAvailable),
        Leader::Node(node) => {
            let request = requests::list_offsets(&topic.name, &[index], LATEST);
            let asked = std::pin::pin!(others.ask(node, Purpose::Offsets, |_| request));
            let response = match select(asked, std::pin::pin!(glommio::timer::sleep(LEADER_TIMEOUT))).await {
                Either::Left((response, _)) => response.map_err(|_| ResponseError::LeaderNotAvailable)?,
                Either::Right(_) => return Err(ResponseError::RequestTimedOut),
            };
            let mut told = response.topics.into_iter().flat_map(|topic| topic.partitions);
            let told = told.next().ok_or(ResponseError::UnknownServerError)?;
            ResponseError::try_from_code(told.error_code).map_or(Ok(told.offset), Err)
        }
    }
}

async fn here(engine: &Engine, partition: TopicPartition) -> Result<i64, ResponseError> {
    let found = engine.list_offset(partition, OffsetSpec::Latest, ReadBound::HighWatermark, -1).await;
    found.map(|found| found.offset).map_err(|error| log_error(&error))
}
