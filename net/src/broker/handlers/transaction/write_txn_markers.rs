//! WriteTxnMarkers: ends transactions in partitions, whatever their coordinator knows. Brokers ask for that, and
//! administrators who abort what hangs.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, WriteTxnMarkersRequest, WriteTxnMarkersResponse,
        write_txn_markers_request::WritableTxnMarker,
        write_txn_markers_response::{
            WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
        },
    },
};
use millrace_engine::{
    api::TopicPartition,
    transactions::{Marker, Outcome},
};

use crate::{
    broker::{
        context::{AllTopics, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::transaction::shell,
    wire::api::{
        Call, call,
        shape::{BOOL, INT16, INT32, INT32S, INT64, STRING, Shape, array},
    },
};

const MARKER: Shape = &[INT64, INT16, BOOL, array(&[STRING, INT32S]), INT32];
const SHAPE: Shape = &[array(MARKER)];

/// WriteTxnMarkers. In version 1 a marker does not say its `transaction.version`: its epoch may be that of the batches.
pub(crate) static API: Api = Api {
    key: ApiKey::WriteTxnMarkers,
    version_min: 1,
    version_max: 1,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Cluster, Operation::Alter),
        (ResourceType::Cluster, Operation::ClusterAction),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<WriteTxnMarkersRequest>) -> WriteTxnMarkersResponse {
    let allowed = context.cluster(Operation::Alter).or_else(|_| context.cluster(Operation::ClusterAction));
    let mut results = Vec::with_capacity(call.body.markers.len());
    // a producer's markers keep their order
    for marker in call.body.markers {
        results.push(match &allowed {
            Ok(topics) => write(&context, topics, marker).await,
            Err(error) => answer(&marker, |_, _| error.code()),
        });
    }
    WriteTxnMarkersResponse::default().with_markers(results)
}

async fn write(context: &Context, topics: &AllTopics, asked: WritableTxnMarker) -> WritableTxnMarkerResult {
    let mut markers = Vec::new();
    // where each partition's marker is among those; none: there is no such partition
    let mut places = Vec::new();
    for topic in &asked.topics {
        let found = topics.get(&topic.name);
        for &partition in &topic.partition_indexes {
            let known = found.as_ref().ok().filter(|found| (0..found.partitions).contains(&partition));
            places.push(known.map(|_| markers.len()));
            markers.extend(known.map(|found| Marker {
                partition: TopicPartition { topic: found.id, partition },
                producer_id: asked.producer_id.0,
                producer_epoch: asked.producer_epoch,
                coordinator_epoch: asked.coordinator_epoch,
                outcome: if asked.transaction_result { Outcome::Commit } else { Outcome::Abort },
                transaction_version: 0,
            }));
        }
    }
    let written = shell::write_markers(context.engine(), markers).await;
    let mut places = places.into_iter();
    answer(&asked, |_, _| match places.next().flatten().and_then(|place| written.get(place)) {
        Some(Ok(())) => 0,
        Some(Err(error)) => error.code(),
        None => ResponseError::UnknownTopicOrPartition.code(),
    })
}

fn answer(asked: &WritableTxnMarker, mut code: impl FnMut(&str, i32) -> i16) -> WritableTxnMarkerResult {
    let topics = asked.topics.iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|&partition| {
            WritableTxnMarkerPartitionResult::default()
                .with_partition_index(partition)
                .with_error_code(code(&topic.name, partition))
        });
        WritableTxnMarkerTopicResult::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    WritableTxnMarkerResult::default().with_producer_id(asked.producer_id).with_topics(topics.collect())
}
