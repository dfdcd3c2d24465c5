//! WriteTxnMarkers: ends transactions in partitions, whatever their coordinator knows. Brokers ask for that, and
//! administrators who abort what hangs.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ProducerId, TopicName, WriteTxnMarkersRequest, WriteTxnMarkersResponse,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
        write_txn_markers_response::{
            WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
        },
    },
    protocol::{Decodable, StrBytes},
};
use millrace_engine::{
    api::TopicPartition,
    transactions::{Decided, Marker, Outcome},
};

use crate::{
    broker::{
        context::{AllTopics, Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::{
        fields::{Reader, RecordError},
        transaction::shell,
    },
    wire::{
        api::{
            Handling, Request, encode,
            shape::{BOOL, INT8, INT16, INT32, INT32S, INT64, STRING, Shape, array},
        },
        frame::Malformed,
    },
};

const MARKER: Shape = &[INT64, INT16, BOOL, array(&[STRING, INT32S]), INT32, INT8.since(VERSIONED)];
const SHAPE: Shape = &[array(MARKER)];

/// First version in which a marker says its `transaction.version` (KIP-1228); before, its epoch may be that of the batches.
/// The message library does not read it.
const VERSIONED: i16 = 2;

/// WriteTxnMarkers.
pub(crate) static API: Api = Api {
    key: ApiKey::WriteTxnMarkers,
    version_min: 1,
    version_max: VERSIONED,
    advertised_min: 1,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Cluster, Operation::Alter),
        (ResourceType::Cluster, Operation::ClusterAction),
    ]),
    on_disconnect: OnDisconnect::Finish,
    handle: decode_and_handle,
};

/// A marker, and the `transaction.version` that it is of.
type Versioned = (WritableTxnMarker, i16);

fn decode_and_handle(context: &Context, request: Request) -> Result<Handling, Malformed> {
    let Request { header, mut body } = request;
    let decoded = match header.version {
        VERSIONED => decode(&body).map_err(|error| error.to_string()),
        version => WriteTxnMarkersRequest::decode(&mut body, version)
            .map(|request| request.markers.into_iter().map(|marker| (marker, 0)).collect())
            .map_err(|error| error.to_string()),
    };
    let markers: Vec<Versioned> = decoded.map_err(Malformed::Body)?;
    let answer = handle(context.clone(), markers);
    // the layout of answers has not changed
    Ok(Handling::Later(Box::pin(async move { encode(&header, 1, &answer.await) })))
}

fn decode(body: &[u8]) -> Result<Vec<Versioned>, RecordError> {
    let mut reader = Reader::new(body, true);
    let markers = reader.vec("Markers", |reader| {
        let marker = WritableTxnMarker::default()
            .with_producer_id(ProducerId(reader.i64("ProducerId")?))
            .with_producer_epoch(reader.i16("ProducerEpoch")?)
            .with_transaction_result(reader.i8("TransactionResult")? != 0)
            .with_topics(reader.vec("Topics", |reader| {
                let name = reader.string("Name")?;
                let partitions = reader.vec("PartitionIndexes", |reader| reader.i32("a partition"))?;
                reader.no_tags()?;
                let name = TopicName(StrBytes::from_string(name.to_string()));
                Ok(WritableTxnMarkerTopic::default().with_name(name).with_partition_indexes(partitions))
            })?)
            .with_coordinator_epoch(reader.i32("CoordinatorEpoch")?);
        let transaction_version = i16::from(reader.i8("TransactionVersion")?);
        reader.no_tags()?;
        Ok((marker, transaction_version))
    })?;
    reader.no_tags()?;
    Ok(markers)
}

async fn handle(context: Context, asked: Vec<Versioned>) -> WriteTxnMarkersResponse {
    let allowed = context.cluster(Operation::Alter).or_else(|_| context.cluster(Operation::ClusterAction));
    let topics = match allowed {
        Ok(topics) => topics,
        Err(error) => {
            let refused = asked.iter().map(|(marker, _)| answer(marker, |_, _| error.code()));
            return WriteTxnMarkersResponse::default().with_markers(refused.collect());
        }
    };
    // begun in the order in which they are asked for: a producer's markers keep it
    let markers: Vec<Marker> = asked.iter().flat_map(|(marker, version)| known(&topics, marker, *version)).collect();
    let mut written = shell::write_markers_in_time(context.engine(), markers).await.into_iter();
    let results = asked.iter().map(|(marker, _)| {
        answer(marker, |topic, partition| match find(&topics, topic, partition).and_then(|_| written.next()) {
            Some(Ok(())) => 0,
            Some(Err(error)) => error.code(),
            None => ResponseError::UnknownTopicOrPartition.code(),
        })
    });
    WriteTxnMarkersResponse::default().with_markers(results.collect())
}

/// The partition of that name, if it is there.
fn find(topics: &AllTopics, topic: &str, partition: i32) -> Option<TopicPartition> {
    let found = topics.get(topic).ok().filter(|found| (0..found.partitions).contains(&partition))?;
    Some(TopicPartition { topic: found.id, partition })
}

/// The markers that are asked for, of partitions that are there.
fn known(topics: &AllTopics, asked: &WritableTxnMarker, transaction_version: i16) -> Vec<Marker> {
    let names = asked.topics.iter().flat_map(|topic| {
        let partitions = topic.partition_indexes.iter();
        partitions.map(|partition| find(topics, &topic.name, *partition))
    });
    let marker = |partition| Marker {
        partition,
        producer_id: asked.producer_id.0,
        producer_epoch: asked.producer_epoch,
        coordinator_epoch: asked.coordinator_epoch,
        outcome: if asked.transaction_result { Outcome::Commit } else { Outcome::Abort },
        transaction_version,
        decided: Decided::ByCoordinator,
    };
    names.flatten().map(marker).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_of_version_2_say_their_transaction_version() {
        let body: &[&[u8]] = &[
            &[2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 1],
            &[2, 2, b't', 3, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0, 0, 0, 9, 2, 0, 0],
        ];
        let body = body.concat();
        let decoded = decode(&body).unwrap();
        let (marker, transaction_version) = &decoded[0];
        assert_eq!((marker.producer_id.0, marker.producer_epoch, marker.transaction_result), (7, 3, true));
        assert_eq!((marker.coordinator_epoch, *transaction_version), (9, 2));
        assert_eq!((marker.topics[0].name.as_str(), &marker.topics[0].partition_indexes), ("t", &vec![0, 1]));
        assert!((0..body.len()).all(|cut| decode(&body[..cut]).is_err()));
    }
}
