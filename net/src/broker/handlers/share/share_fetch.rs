//! ShareFetch: records for a member of a share group, within its session, with acknowledgements of earlier ones.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use futures_util::future::{Either, join, select};
use kafka_protocol::{ResponseError, messages::ApiKey};
use millrace_engine::api::{Records, TopicPartition};
use uuid::Uuid;

use super::{
    encode::{self, FetchedPartition, TopError},
    request::ShareFetch,
    session,
    share_acknowledge::{PART, acknowledge_parts},
};
use crate::{
    broker::{
        cluster::{Broker, NamedLeaders},
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::share::{
        session::{CLOSE_EPOCH, FetchRequest, OPEN_EPOCH},
        shell::{FetchHere, Found, PARTITION_BYTES_MAX, fetch_on, here, wait_on},
    },
    wire::{
        api::{
            Handling, Reply, Request,
            shape::{BOOL, INT8, INT32, INT32S, STRING, Shape, UUID, array},
        },
        frame::Malformed,
    },
};

const SHAPE: Shape = &[
    STRING,
    STRING,
    INT32,
    INT32,
    INT32,
    INT32,
    INT32,
    INT32,
    INT8.since(2),
    BOOL.since(2),
    array(PART),
    array(&[UUID, INT32S]),
];

/// ShareFetch. Acknowledgements that were begun are made durable even if nobody waits for the answer.
pub(crate) static API: Api = Api {
    key: ApiKey::ShareFetch,
    version_min: 1,
    version_max: 2,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Group, Operation::Read),
        (ResourceType::Topic, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle,
};

fn handle(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, body } = request;
    let request = ShareFetch::decode(&body, header.version)?;
    let context = context.clone();
    Ok(Handling::Later(Box::pin(async move {
        let group = request.group.clone().unwrap_or_default();
        let lock_ms = here(context.engine()).await.group_settings(&group).limits.lock_ms;
        let outcome = {
            let serving = std::pin::pin!(serve(&context, request));
            let stopping = std::pin::pin!(context.engine().stopping());
            match select(serving, stopping).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(_) => return Reply::Stopping,
            }
        };
        let (error, mut topics) = match outcome {
            Ok(topics) => (None, topics),
            Err(error) => (Some(error), Vec::new()),
        };
        let leaders = name_leaders(&context, &mut topics);
        let partitions = topics.iter().flat_map(|(_, partitions)| partitions);
        let record_bytes = partitions.map(|partition| partition.records.len()).sum();
        context.service.fetched_bytes.add(record_bytes);
        super::reply(encode::fetched(header.correlation_id, error.as_ref(), lock_ms, (topics, &leaders)))
    })))
}

/// Names the leaders of partitions that are led elsewhere; answers where those are.
fn name_leaders(context: &Context, topics: &mut Topics) -> Vec<Broker> {
    let mut leaders = NamedLeaders::new(context.view());
    for (topic, partitions) in topics {
        for told in partitions {
            let partition = TopicPartition { topic: *topic, partition: told.index };
            let failures = [told.error, told.acknowledge.as_ref().map(|failure| failure.error)];
            told.leader = failures.into_iter().flatten().find_map(|error| leaders.name(partition, error));
        }
    }
    leaders.into_brokers().collect()
}

type Topics = Vec<(Uuid, Vec<FetchedPartition>)>;
type Fetched = Vec<(TopicPartition, bool, Result<Found<Records>, ResponseError>)>;

async fn serve(context: &Context, mut request: ShareFetch) -> Result<Topics, TopError> {
    if let Some(reason) = request.refusal() {
        return Err((ResponseError::InvalidRequest, Some(reason)));
    }
    let (group, member) = (request.group.take().unwrap_or_default(), request.member.take().unwrap_or_default());
    context.group(&group, Operation::Read).map_err(|error| (error, None))?;
    let engine = context.engine();
    let shard = session::shard_of(context, &group, &member);
    let wait = Duration::from_millis(u64::try_from(request.wait_ms_max).unwrap_or(0));
    let begun = begin(context, shard, (&group, &member), &mut request).await;
    let wanted = match begun {
        Ok(wanted) => wanted,
        Err(error) => {
            if error == ResponseError::ShareSessionLimitReached {
                // the client would ask again at once
                glommio::timer::sleep(wait).await;
            }
            return Err((error, None));
        }
    };
    let has_acknowledgements = |(_, batches): &(_, Vec<_>)| !batches.is_empty();
    let parts: Vec<_> = std::mem::take(&mut request.parts).into_iter().filter(has_acknowledgements).collect();
    let who = (group.as_str(), member.as_str());
    let acknowledging = acknowledge_parts(context, who, parts, request.version, request.renews);
    let fetching =
        async { if request.renews { Vec::new() } else { fetch(context, who, &request, wanted, wait).await } };
    let (acknowledged, fetched) = join(acknowledging, fetching).await;
    if request.epoch == CLOSE_EPOCH {
        session::end(engine, shard, &group, &member).await;
    }
    let mut topics: BTreeMap<Uuid, Vec<FetchedPartition>> = BTreeMap::new();
    let mut failures: HashMap<TopicPartition, _> = acknowledged.into_iter().collect();
    for (partition, tell, answer) in fetched {
        let acknowledged = failures.remove(&partition);
        let has_news = match &answer {
            Ok(found) => !found.acquired.is_empty(),
            Err(_) => true,
        };
        if !tell && !has_news && acknowledged.is_none() {
            continue;
        }
        let mut told = FetchedPartition {
            index: partition.partition,
            acknowledge: acknowledged.flatten(),
            ..FetchedPartition::default()
        };
        match answer {
            Ok(found) => (told.records, told.acquired) = (found.records, found.acquired),
            Err(error) => told.error = Some(error),
        }
        topics.entry(partition.topic).or_default().push(told);
    }
    for (partition, acknowledge) in failures {
        let told = FetchedPartition { index: partition.partition, acknowledge, ..FetchedPartition::default() };
        topics.entry(partition.topic).or_default().push(told);
    }
    Ok(topics.into_iter().collect())
}

/// Finds or makes the session; answers the partitions to fetch.
async fn begin(
    context: &Context,
    shard: usize,
    (group, member): (&str, &str),
    request: &mut ShareFetch,
) -> Result<Vec<(TopicPartition, bool)>, ResponseError> {
    let engine = context.engine();
    let asked = FetchRequest {
        epoch: request.epoch,
        added: request.parts.iter().map(|(partition, _)| *partition).collect(),
        forgotten: std::mem::take(&mut request.forgotten),
        has_acknowledgements: request.parts.iter().any(|(_, batches)| !batches.is_empty()),
        connection: context.peer.origin.connection,
    };
    if request.epoch == OPEN_EPOCH {
        let opened = (shard, group.to_owned(), member.to_owned());
        let sessions = &mut context.session_mut().share_sessions;
        if !sessions.contains(&opened) {
            sessions.push(opened);
        }
    }
    let (id, who) = (group.to_owned(), member.to_owned());
    let begun = engine.on_shard(shard, move |engine| async move {
        here(&engine).await.sessions.borrow_mut().begin_fetch(&session::key(&id, &who), asked)
    });
    let begun = begun.await?;
    if !begun.replaced.is_empty() {
        session::release(engine, group, member, begun.replaced).await;
    }
    Ok(begun.partitions)
}

/// Fetches from all shards that own partitions; waits until one of them has something.
async fn fetch(
    context: &Context,
    (group, member): (&str, &str),
    request: &ShareFetch,
    mut wanted: Vec<(TopicPartition, bool)>,
    wait: Duration,
) -> Fetched {
    let engine = context.engine();
    let size = |value: i32| usize::try_from(value).unwrap_or(0);
    let bytes_max = size(request.bytes_max).min(context.config().fetch_max_bytes);
    if wanted.is_empty() || bytes_max == 0 || request.records_max <= 0 {
        let nothing = |(partition, tell)| (partition, tell, Ok(none()));
        return wanted.into_iter().map(nothing).collect();
    }
    // every partition gets its turn to be the first
    let turn = size(request.epoch) % wanted.len();
    wanted.rotate_left(turn);
    let (mut fetched, by_shard) = by_owner(context, wanted);
    let shards = by_shard.len().max(1);
    let share = (bytes_max / shards).max(1);
    let deadline = Instant::now() + wait;
    let is_error = fetched.iter().any(|(.., answer)| answer.is_err());
    let mut is_last_try = is_error || wait.is_zero();
    loop {
        let mut left = i64::from(request.records_max);
        let mut wants = Vec::with_capacity(by_shard.len());
        for (at, (shard, (_, partitions))) in by_shard.iter().enumerate() {
            let of_shard = (left / i64::try_from(shards - at).unwrap_or(1)).max(1);
            left -= of_shard;
            let want = FetchHere {
                group: group.to_owned(),
                member: member.to_owned(),
                partitions: partitions.clone(),
                bytes_max: share,
                bytes_min: size(request.bytes_min).min(share / partitions.len()).min(PARTITION_BYTES_MAX),
                records_max: of_shard,
                batch_size: i64::from(request.batch_size.max(1)),
                is_strict: request.is_strict,
                is_last_try,
            };
            wants.push((*shard, want));
        }
        let own = wants.iter().position(|(shard, _)| *shard == engine.shard());
        let giving = wants.iter().enumerate().map(|(at, (shard, want))| async move {
            if Some(at) == own { Vec::new() } else { fetch_on(engine, *shard, want.clone()).await }
        });
        let mut given = futures_util::future::join_all(giving).await;
        // Last: what this shard gives holds memory, with which nobody may wait for others.
        if let Some(at) = own {
            given[at] = fetch_on(engine, wants[at].0, wants[at].1.clone()).await;
        }
        let mut has_news = false;
        for ((places, _), answers) in by_shard.values().zip(given) {
            for (at, answer) in places.iter().zip(answers) {
                has_news |= answer.as_ref().map_or(true, |found| !found.acquired.is_empty());
                fetched[*at].2 = answer;
            }
        }
        if has_news || is_last_try || wants.is_empty() {
            return fetched;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        wait_on(engine, wants, left).await;
        is_last_try = Instant::now() >= deadline;
        glommio::yield_if_needed().await;
    }
}

/// Places in the answer, and the partitions there, by the shard that owns them.
type ByShard = BTreeMap<usize, (Vec<usize>, Vec<TopicPartition>)>;

/// An answer for each partition, which says what cannot be fetched, and who is to be asked for all others.
fn by_owner(context: &Context, wanted: Vec<(TopicPartition, bool)>) -> (Fetched, ByShard) {
    let (engine, topics) = (context.engine(), context.topics());
    let mut fetched: Fetched = Vec::with_capacity(wanted.len());
    let mut by_shard = ByShard::new();
    for (partition, tell) in wanted {
        let answer = match topics.get(partition.topic, Operation::Read) {
            Err(error) => Err(error),
            Ok(topic) if !(0..topic.partitions).contains(&partition.partition) => {
                Err(ResponseError::UnknownTopicOrPartition)
            }
            Ok(_) => {
                let (places, partitions) = by_shard.entry(engine.owner(partition)).or_default();
                places.push(fetched.len());
                partitions.push(partition);
                Ok(none())
            }
        };
        fetched.push((partition, tell, answer));
    }
    (fetched, by_shard)
}

fn none() -> Found<Records> {
    Found { records: Records::default(), acquired: Vec::new() }
}
