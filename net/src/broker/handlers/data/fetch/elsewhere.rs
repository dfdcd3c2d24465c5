//! What a fetch is told that should not be answered with records from here: of another leader, of a replica that is
//! nearer, of records that the client has and the leader has not.

use kafka_protocol::ResponseError;
use millrace_engine::api::{Fetched, OffsetSpec, ReadBound, Records, TopicPartition};

use super::{Answer, Limits};
use crate::{
    broker::{
        cluster::{Broker, NamedLeaders, Reading},
        context::Context,
        fetch_session::Wanted,
    },
    wire::hot::fetch_response::{Hints, NodeEndpoint},
};

/// The answer to what a client wants of a partition, if it is none with records.
pub(super) async fn settle(
    context: &Context,
    limits: &Limits,
    wanted: &Wanted,
    partition: TopicPartition,
) -> Option<Answer> {
    match context.view().reading(partition, &limits.rack) {
        Reading::Leader => {}
        Reading::Replica if limits.reads_from_followers => {}
        Reading::Replica | Reading::Nowhere => {
            let fetched = Err(ResponseError::NotLeaderOrFollower);
            return Some(Answer { partition: Some(partition), fetched, hints: Hints::default() });
        }
        Reading::Nearer(_) if !limits.reads_from_followers => {}
        Reading::Nearer(replica) => {
            let hints = Hints { preferred_read_replica: Some(replica.0), ..Hints::default() };
            if let Some(fetched) = without_records(context, wanted, partition).await {
                return Some(Answer { partition: Some(partition), fetched: Ok(fetched), hints });
            }
        }
    }
    diverging(context, wanted, partition).await
}

/// The marks of a partition, if what is wanted lies between them: then every replica in sync has it.
async fn without_records(context: &Context, wanted: &Wanted, partition: TopicPartition) -> Option<Fetched> {
    let find = |spec, bound| context.engine().list_offset(partition, spec, bound, wanted.leader_epoch);
    let log_start_offset = find(OffsetSpec::Earliest, ReadBound::HighWatermark).await.ok()?.offset;
    let high_watermark = find(OffsetSpec::Latest, ReadBound::HighWatermark).await.ok()?.offset;
    let last_stable_offset = find(OffsetSpec::Latest, ReadBound::LastStable).await.ok()?.offset;
    (log_start_offset..=high_watermark).contains(&wanted.offset).then(|| Fetched {
        high_watermark,
        last_stable_offset,
        log_start_offset,
        records: Records::default(),
        aborted: None,
    })
}

/// Where a client's log parts from the leader's, if it does (KIP-320). A client that says of which epoch its last record
/// is has asked for that.
async fn diverging(context: &Context, wanted: &Wanted, partition: TopicPartition) -> Option<Answer> {
    if wanted.last_fetched_epoch < 0 || !context.view().has_epochs() {
        return None;
    }
    let engine = context.engine();
    let end = engine.epoch_end_offset(partition, wanted.leader_epoch, wanted.last_fetched_epoch).await;
    // what is wrong with the request shows when the records are fetched
    let (epoch, end_offset) = end.ok()?;
    if epoch == wanted.last_fetched_epoch && end_offset >= wanted.offset {
        return None;
    }
    let fetched = Fetched {
        high_watermark: -1,
        last_stable_offset: -1,
        log_start_offset: -1,
        records: Records::default(),
        aborted: None,
    };
    let hints = Hints { diverging: Some((epoch, end_offset)), ..Hints::default() };
    Some(Answer { partition: Some(partition), fetched: Ok(fetched), hints })
}

/// Id and epoch of the leader, for a client that was sent away because it believes in another.
pub(super) fn current_leader(leaders: &mut NamedLeaders<'_>, answer: &Answer) -> Option<(i32, i32)> {
    let leader = leaders.name(answer.partition?, *answer.fetched.as_ref().err()?)?;
    Some((leader.id.0, leader.epoch))
}

/// Where the leaders are that were named.
pub(super) fn endpoints(leaders: NamedLeaders<'_>) -> Vec<NodeEndpoint> {
    let endpoint =
        |broker: Broker| NodeEndpoint { id: broker.id.0, host: broker.host, port: broker.port, rack: broker.rack };
    leaders.into_brokers().map(endpoint).collect()
}
