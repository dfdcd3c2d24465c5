//! Writes the responses whose newest versions the message library does not know, and those that carry records. All have
//! compact lengths and tagged fields.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use millrace_engine::api::{Chunk, Records};
use uuid::Uuid;

use crate::{
    broker::cluster::{Broker, CurrentLeader},
    coordinator::{
        group::record::Writer,
        share::{partition::Acquired, shell::AcknowledgeFailure},
    },
    wire::api::Response,
};

/// Version of ShareAcknowledge that says how long locks last.
const LOCK_TIMEOUT_VERSION: i16 = 2;
/// Version of DescribeShareGroupOffsets that has lags.
const LAG_VERSION: i16 = 1;

/// An error of a whole response, with a message.
pub(super) type TopError = (ResponseError, Option<String>);

/// One partition of a ShareFetch response.
#[derive(Debug, Default)]
pub(super) struct FetchedPartition {
    pub(super) index: i32,
    pub(super) error: Option<ResponseError>,
    pub(super) acknowledge: Option<AcknowledgeFailure>,
    /// Who leads the partition, for who was sent away.
    pub(super) leader: Option<CurrentLeader>,
    pub(super) records: Records,
    pub(super) acquired: Vec<Acquired>,
}

/// One partition of a ShareAcknowledge response.
#[derive(Debug)]
pub(super) struct AcknowledgedPartition {
    pub(super) index: i32,
    pub(super) failure: Option<AcknowledgeFailure>,
    /// Who leads the partition, for who was sent away.
    pub(super) leader: Option<CurrentLeader>,
}

/// One partition of DescribeShareGroupOffsets.
#[derive(Debug)]
pub(super) struct DescribedPartition {
    pub(super) index: i32,
    pub(super) start_offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) lag: i64,
    pub(super) error: Option<ResponseError>,
}

/// One topic of DescribeShareGroupOffsets.
#[derive(Debug)]
pub(super) struct DescribedTopic {
    pub(super) name: String,
    pub(super) id: Uuid,
    pub(super) partitions: Vec<DescribedPartition>,
}

/// One group of DescribeShareGroupOffsets.
#[derive(Debug)]
pub(super) struct DescribedGroup {
    pub(super) id: String,
    pub(super) topics: Vec<DescribedTopic>,
    pub(super) error: Option<ResponseError>,
}

fn code(error: Option<ResponseError>) -> i16 {
    error.map_or(0, |error| error.code())
}

/// The codes of those that are errors.
fn errors(all: impl Iterator<Item = Option<ResponseError>>) -> Vec<i16> {
    all.flatten().map(|error| error.code()).collect()
}

/// Begins a response: room for its length, the correlation id, no tagged fields in the header, no throttling.
fn begin(correlation_id: i32) -> Writer {
    let mut writer = Writer::tagged();
    writer.i32(0);
    writer.i32(correlation_id);
    writer.tags(&[]);
    writer.i32(0);
    writer
}

fn top(writer: &mut Writer, error: Option<&TopError>) {
    writer.i16(code(error.map(|(error, _)| *error)));
    writer.nullable_string(error.and_then(|(_, text)| text.as_deref()));
}

/// Ends a response of which parts lie elsewhere: each belongs at a position of what was written.
fn finish(writer: Writer, parts: Vec<(usize, Records)>, errors: Vec<i16>) -> Option<Response> {
    let elsewhere: usize = parts.iter().map(|(_, records)| records.len()).sum();
    let length = i32::try_from(writer.out.len() + elsewhere - 4).ok()?;
    let mut bytes = writer.out;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    let mut bytes = Bytes::from(bytes);
    let mut pieces = Vec::with_capacity(2 * parts.len() + 1);
    let mut written = 0;
    for (position, records) in parts {
        pieces.push(Chunk::Bytes(bytes.split_to(position - written)));
        written = position;
        pieces.extend(records.chunks);
    }
    pieces.push(Chunk::Bytes(bytes));
    Some(Response::new(pieces, errors))
}

/// Zeros where there is nothing to tell, as Kafka writes them.
fn current_leader(writer: &mut Writer, leader: Option<&CurrentLeader>) {
    writer.i32(leader.map_or(0, |leader| leader.id.0));
    writer.i32(leader.map_or(0, |leader| leader.epoch));
    writer.tags(&[]);
}

/// Where the leaders are that were named.
fn node_endpoints(writer: &mut Writer, leaders: &[Broker]) {
    writer.vec(leaders, |writer, broker| {
        writer.i32(broker.id.0);
        writer.string(&broker.host);
        writer.i32(broker.port);
        writer.nullable_string(broker.rack.as_deref());
        writer.tags(&[]);
    });
}

/// A ShareFetch response. `None`: it exceeds what a length can say.
pub(super) fn fetched(
    correlation_id: i32,
    error: Option<&TopError>,
    lock_ms: i64,
    (topics, leaders): (Vec<(Uuid, Vec<FetchedPartition>)>, &[Broker]),
) -> Option<Response> {
    let partitions = topics.iter().flat_map(|(_, partitions)| partitions);
    let failures = partitions.flat_map(|one| [one.error, one.acknowledge.as_ref().map(|failure| failure.error)]);
    let errors = errors(failures.chain([error.map(|(error, _)| *error)]));
    let mut writer = begin(correlation_id);
    top(&mut writer, error);
    writer.i32(i32::try_from(lock_ms).unwrap_or(i32::MAX));
    let mut parts = Vec::new();
    writer.count(topics.len());
    for (topic, partitions) in topics {
        writer.uuid(topic);
        writer.count(partitions.len());
        for partition in partitions {
            writer.i32(partition.index);
            writer.i16(code(partition.error));
            writer.nullable_string(None); // the code says it
            acknowledgement(&mut writer, partition.acknowledge.as_ref());
            current_leader(&mut writer, partition.leader.as_ref());
            writer.count(partition.records.len());
            parts.push((writer.out.len(), partition.records));
            writer.vec(&partition.acquired, |writer, acquired| {
                writer.i64(acquired.first_offset);
                writer.i64(acquired.last_offset);
                writer.i16(acquired.delivery_count);
                writer.tags(&[]);
            });
            writer.tags(&[]);
        }
        writer.tags(&[]);
    }
    node_endpoints(&mut writer, leaders);
    writer.tags(&[]);
    finish(writer, parts, errors)
}

fn acknowledgement(writer: &mut Writer, failure: Option<&AcknowledgeFailure>) {
    writer.i16(code(failure.map(|failure| failure.error)));
    writer.nullable_string(failure.and_then(|failure| failure.message.as_deref()));
}

/// A ShareAcknowledge response. `None`: it exceeds what a length can say.
pub(super) fn acknowledged(
    correlation_id: i32,
    version: i16,
    error: Option<&TopError>,
    lock_ms: i64,
    (topics, leaders): (&[(Uuid, Vec<AcknowledgedPartition>)], &[Broker]),
) -> Option<Response> {
    let partitions = topics.iter().flat_map(|(_, partitions)| partitions);
    let failures = partitions.map(|one| one.failure.as_ref().map(|failure| failure.error));
    let errors = errors(failures.chain([error.map(|(error, _)| *error)]));
    let mut writer = begin(correlation_id);
    top(&mut writer, error);
    if version >= LOCK_TIMEOUT_VERSION {
        writer.i32(i32::try_from(lock_ms).unwrap_or(i32::MAX));
    }
    writer.vec(topics, |writer, (topic, partitions)| {
        writer.uuid(*topic);
        writer.vec(partitions, |writer, partition| {
            writer.i32(partition.index);
            acknowledgement(writer, partition.failure.as_ref());
            current_leader(writer, partition.leader.as_ref());
            writer.tags(&[]);
        });
        writer.tags(&[]);
    });
    node_endpoints(&mut writer, leaders);
    writer.tags(&[]);
    finish(writer, Vec::new(), errors)
}

/// A DescribeShareGroupOffsets response. `None`: it exceeds what a length can say.
pub(super) fn described(correlation_id: i32, version: i16, groups: &[DescribedGroup]) -> Option<Response> {
    let partitions = |group: &'_ DescribedGroup| {
        let partitions = group.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error);
        partitions.chain([group.error]).collect::<Vec<_>>()
    };
    let errors = errors(groups.iter().flat_map(partitions));
    let mut writer = begin(correlation_id);
    writer.vec(groups, |writer, group| {
        writer.string(&group.id);
        writer.vec(&group.topics, |writer, topic| {
            writer.string(&topic.name);
            writer.uuid(topic.id);
            writer.vec(&topic.partitions, |writer, partition| {
                writer.i32(partition.index);
                writer.i64(partition.start_offset);
                writer.i32(partition.leader_epoch);
                if version >= LAG_VERSION {
                    writer.i64(partition.lag);
                }
                writer.i16(code(partition.error));
                writer.nullable_string(None);
                writer.tags(&[]);
            });
            writer.tags(&[]);
        });
        writer.i16(code(group.error));
        writer.nullable_string(None);
        writer.tags(&[]);
    });
    writer.tags(&[]);
    finish(writer, Vec::new(), errors)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{
        messages::{BrokerId, DescribeShareGroupOffsetsResponse, ShareAcknowledgeResponse, ShareFetchResponse},
        protocol::{Decodable, StrBytes},
    };

    use super::*;

    /// The body, as the message library reads it.
    fn read<M: Decodable>(response: Option<Response>, version: i16) -> M {
        let pieces: Vec<u8> =
            response.unwrap().into_pieces().flat_map(|piece| piece.as_slice().unwrap().to_vec()).collect();
        let length = i32::from_be_bytes(pieces[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), pieces.len() - 4);
        assert_eq!(&pieces[4..9], &[0, 0, 0, 42, 0]);
        let mut body = Bytes::from(pieces[9..].to_vec());
        let message = M::decode(&mut body, version).unwrap();
        assert!(body.is_empty());
        message
    }

    fn broker() -> Broker {
        let (host, rack) = (StrBytes::from_static_str("host"), Some(StrBytes::from_static_str("r")));
        Broker { id: BrokerId(4), host, port: 77, rack }
    }

    fn leader() -> CurrentLeader {
        CurrentLeader { id: BrokerId(4), epoch: 9, broker: Some(broker()) }
    }

    #[test]
    fn fetched_records_stand_where_they_belong() {
        let topic = Uuid::from_u128(3);
        let partition = |index, records: &'static [u8]| FetchedPartition {
            index,
            records: Records { chunks: vec![Chunk::Bytes(Bytes::from_static(records))] },
            acquired: vec![Acquired { first_offset: 1, last_offset: 2, delivery_count: 3 }],
            ..FetchedPartition::default()
        };
        let failed = FetchedPartition {
            index: 9,
            error: Some(ResponseError::UnknownTopicId),
            acknowledge: Some(ResponseError::InvalidRecordState.into()),
            leader: Some(leader()),
            ..FetchedPartition::default()
        };
        let topics = vec![(topic, vec![partition(0, b"first"), partition(1, b"second"), failed])];
        let response: ShareFetchResponse = read(fetched(42, None, 30_000, (topics, &[broker()])), 1);
        assert_eq!(response.acquisition_lock_timeout_ms, 30_000);
        let partitions = &response.responses[0].partitions;
        assert_eq!(partitions[0].records, Some(Bytes::from_static(b"first")));
        assert_eq!(partitions[1].records, Some(Bytes::from_static(b"second")));
        assert_eq!(partitions[1].acquired_records[0].delivery_count, 3);
        assert_eq!(partitions[2].error_code, ResponseError::UnknownTopicId.code());
        assert_eq!(partitions[2].acknowledge_error_code, ResponseError::InvalidRecordState.code());
        let told = &partitions[2].current_leader;
        assert_eq!((told.leader_id, told.leader_epoch), (4, 9));
        let at = &response.node_endpoints[0];
        assert_eq!((at.node_id, at.host.as_str(), at.port, at.rack.as_deref()), (4.into(), "host", 77, Some("r")));
        let error = (ResponseError::InvalidRequest, Some("why".to_owned()));
        let response: ShareFetchResponse = read(fetched(42, Some(&error), 0, (Vec::new(), &[])), 1);
        assert_eq!(response.error_message.as_deref(), Some("why"));
    }

    #[test]
    fn other_responses_are_those_of_the_message_library() {
        let failure = Some(ResponseError::InvalidRecordState.into());
        let topics = [(Uuid::from_u128(3), vec![AcknowledgedPartition { index: 4, failure, leader: Some(leader()) }])];
        let response: ShareAcknowledgeResponse = read(acknowledged(42, 1, None, 0, (&topics, &[broker()])), 1);
        assert_eq!(response.responses[0].partitions[0].current_leader.leader_id, 4);
        assert_eq!(response.node_endpoints[0].port, 77);
        assert_eq!(response.responses[0].partitions[0].error_code, ResponseError::InvalidRecordState.code());
        let partition = DescribedPartition { index: 1, start_offset: 5, leader_epoch: 0, lag: 8, error: None };
        let topic = DescribedTopic { name: "t".to_owned(), id: Uuid::from_u128(3), partitions: vec![partition] };
        let groups = [DescribedGroup { id: "g".to_owned(), topics: vec![topic], error: None }];
        let response: DescribeShareGroupOffsetsResponse = read(described(42, 0, &groups), 0);
        assert_eq!(response.groups[0].topics[0].partitions[0].start_offset, 5);
    }
}
