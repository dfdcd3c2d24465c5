//! Reads ShareFetch and ShareAcknowledge requests: the message library knows their version 1 only. All versions have
//! compact lengths and tagged fields.

use kafka_protocol::ResponseError;
use millrace_engine::api::TopicPartition;

use crate::{
    coordinator::{
        group::record::{Reader, RecordError},
        share::partition::{AcknowledgeType, Acknowledgement},
    },
    wire::frame::Malformed,
};

/// Version that brought renewals and strict record limits (KIP-1206, KIP-1222).
const RENEW_VERSION: i16 = 2;
/// Longest member id, in bytes: that of a UUID.
const MEMBER_ID_BYTES_MAX: usize = 36;

/// A batch of acknowledgements as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawAcknowledgement {
    pub(super) first_offset: i64,
    pub(super) last_offset: i64,
    pub(super) types: Vec<i8>,
}

/// A partition of a request, with acknowledgements.
pub(super) type Part = (TopicPartition, Vec<RawAcknowledgement>);

/// A ShareFetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ShareFetch {
    pub(super) version: i16,
    pub(super) group: Option<String>,
    pub(super) member: Option<String>,
    pub(super) epoch: i32,
    pub(super) wait_ms_max: i32,
    pub(super) bytes_min: i32,
    pub(super) bytes_max: i32,
    pub(super) records_max: i32,
    pub(super) batch_size: i32,
    pub(super) is_strict: bool,
    pub(super) renews: bool,
    pub(super) parts: Vec<Part>,
    pub(super) forgotten: Vec<TopicPartition>,
}

/// A ShareAcknowledge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ShareAcknowledge {
    pub(super) version: i16,
    pub(super) group: Option<String>,
    pub(super) member: Option<String>,
    pub(super) epoch: i32,
    pub(super) renews: bool,
    pub(super) parts: Vec<Part>,
}

fn malformed(error: RecordError) -> Malformed {
    Malformed::Body(error.to_string())
}

impl ShareFetch {
    pub(super) fn decode(body: &[u8], version: i16) -> Result<Self, Malformed> {
        Self::read(&mut Reader::new(body, true), version).map_err(malformed)
    }

    fn read(reader: &mut Reader<'_>, version: i16) -> Result<Self, RecordError> {
        let is_new = version >= RENEW_VERSION;
        let request = Self {
            version,
            group: reader.nullable_string("GroupId")?.map(|group| group.to_string()),
            member: reader.nullable_string("MemberId")?.map(|member| member.to_string()),
            epoch: reader.i32("ShareSessionEpoch")?,
            wait_ms_max: reader.i32("MaxWaitMs")?,
            bytes_min: reader.i32("MinBytes")?,
            bytes_max: reader.i32("MaxBytes")?,
            records_max: reader.i32("MaxRecords")?,
            batch_size: reader.i32("BatchSize")?,
            is_strict: is_new && reader.i8("ShareAcquireMode")? == 1,
            renews: is_new && reader.i8("IsRenewAck")? != 0,
            parts: read_parts(reader)?,
            forgotten: reader
                .vec("ForgottenTopicsData", |reader| {
                    let topic = reader.uuid("TopicId")?;
                    let indexes = reader.vec("Partitions", |reader| reader.i32("a partition"))?;
                    reader.no_tags()?;
                    Ok(indexes.into_iter().map(move |partition| TopicPartition { topic, partition }))
                })?
                .into_iter()
                .flatten()
                .collect(),
        };
        reader.no_tags()?;
        Ok(request)
    }

    /// What is wrong with it by itself.
    pub(super) fn refusal(&self) -> Option<String> {
        if let Some(reason) = refuse_names(self.group.as_ref(), self.member.as_ref()) {
            return Some(reason);
        }
        let limits = [
            ("maxBytes", self.bytes_max),
            ("minBytes", self.bytes_min),
            ("maxRecords", self.records_max),
            ("maxWaitMs", self.wait_ms_max),
        ];
        let wrong: String = limits
            .into_iter()
            .filter(|(_, value)| self.renews && *value != 0)
            .map(|(name, _)| format!("{name} must be set to 0, "))
            .collect();
        (!wrong.is_empty()).then(|| format!("{wrong}if isRenewAck is true."))
    }
}

impl ShareAcknowledge {
    pub(super) fn decode(body: &[u8], version: i16) -> Result<Self, Malformed> {
        Self::read(&mut Reader::new(body, true), version).map_err(malformed)
    }

    fn read(reader: &mut Reader<'_>, version: i16) -> Result<Self, RecordError> {
        let request = Self {
            version,
            group: reader.nullable_string("GroupId")?.map(|group| group.to_string()),
            member: reader.nullable_string("MemberId")?.map(|member| member.to_string()),
            epoch: reader.i32("ShareSessionEpoch")?,
            renews: version >= RENEW_VERSION && reader.i8("IsRenewAck")? != 0,
            parts: read_parts(reader)?,
        };
        reader.no_tags()?;
        Ok(request)
    }

    /// What is wrong with it by itself.
    pub(super) fn refusal(&self) -> Option<String> {
        refuse_names(self.group.as_ref(), self.member.as_ref())
    }
}

fn refuse_names(group: Option<&String>, member: Option<&String>) -> Option<String> {
    if group.is_none() {
        return Some("Invalid group id in the request.".to_owned());
    }
    let is_legal = member.is_some_and(|member| (1..=MEMBER_ID_BYTES_MAX).contains(&member.len()));
    (!is_legal).then(|| "Invalid member id in the request.".to_owned())
}

fn read_parts(reader: &mut Reader<'_>) -> Result<Vec<Part>, RecordError> {
    let topics = reader.vec("Topics", |reader| {
        let topic = reader.uuid("TopicId")?;
        let partitions = reader.vec("Partitions", |reader| {
            let partition = reader.i32("PartitionIndex")?;
            let batches = reader.vec("AcknowledgementBatches", |reader| {
                let batch = RawAcknowledgement {
                    first_offset: reader.i64("FirstOffset")?,
                    last_offset: reader.i64("LastOffset")?,
                    types: reader.vec("AcknowledgeTypes", |reader| reader.i8("a type"))?,
                };
                reader.no_tags()?;
                Ok(batch)
            })?;
            reader.no_tags()?;
            Ok((TopicPartition { topic, partition }, batches))
        })?;
        reader.no_tags()?;
        Ok(partitions)
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// Checks a partition's acknowledgements: they must rise, be complete, and be of types that the request may have.
pub(super) fn check(
    batches: Vec<RawAcknowledgement>,
    version: i16,
    renews: bool,
) -> Result<Vec<Acknowledgement>, ResponseError> {
    let mut before = -1;
    let mut checked = Vec::with_capacity(batches.len());
    for batch in batches {
        let count = batch.last_offset.checked_sub(batch.first_offset).and_then(|span| span.checked_add(1));
        let fits = batch.types.len() == 1 || count == i64::try_from(batch.types.len()).ok();
        if batch.first_offset > batch.last_offset || batch.first_offset < before || batch.types.is_empty() || !fits {
            return Err(ResponseError::InvalidRequest);
        }
        before = batch.last_offset;
        let types: Option<Vec<_>> = batch.types.iter().map(|number| AcknowledgeType::from_wire(*number)).collect();
        let types = types.ok_or(ResponseError::InvalidRequest)?;
        if types.contains(&AcknowledgeType::Renew) && (version < RENEW_VERSION || !renews) {
            return Err(ResponseError::InvalidRequest);
        }
        checked.push(Acknowledgement { first_offset: batch.first_offset, last_offset: batch.last_offset, types });
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{
            GroupId, ShareFetchRequest,
            share_fetch_request::{AcknowledgementBatch, FetchPartition, FetchTopic, ForgottenTopic},
        },
        protocol::{Encodable, StrBytes},
    };
    use uuid::Uuid;

    use super::*;

    fn raw(first_offset: i64, last_offset: i64, types: &[i8]) -> RawAcknowledgement {
        RawAcknowledgement { first_offset, last_offset, types: types.to_vec() }
    }

    #[test]
    fn version_1_is_what_the_message_library_writes() {
        let topic = Uuid::from_u128(7);
        let batch = AcknowledgementBatch::default().with_first_offset(4).with_last_offset(5);
        let batch = batch.with_acknowledge_types(vec![1, 2]);
        let partition = FetchPartition::default().with_partition_index(3).with_acknowledgement_batches(vec![batch]);
        let request = ShareFetchRequest::default()
            .with_group_id(Some(GroupId(StrBytes::from_static_str("g"))))
            .with_member_id(Some(StrBytes::from_static_str("m")))
            .with_share_session_epoch(9)
            .with_max_wait_ms(1)
            .with_min_bytes(2)
            .with_max_bytes(3)
            .with_max_records(4)
            .with_batch_size(5)
            .with_topics(vec![FetchTopic::default().with_topic_id(topic).with_partitions(vec![partition])])
            .with_forgotten_topics_data(vec![ForgottenTopic::default().with_topic_id(topic).with_partitions(vec![6])]);
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes, 1).unwrap();
        let decoded = ShareFetch::decode(&bytes, 1).unwrap();
        let expected = ShareFetch {
            version: 1,
            group: Some("g".to_owned()),
            member: Some("m".to_owned()),
            epoch: 9,
            wait_ms_max: 1,
            bytes_min: 2,
            bytes_max: 3,
            records_max: 4,
            batch_size: 5,
            is_strict: false,
            renews: false,
            parts: vec![(TopicPartition { topic, partition: 3 }, vec![raw(4, 5, &[1, 2])])],
            forgotten: vec![TopicPartition { topic, partition: 6 }],
        };
        assert_eq!(decoded, expected);
        for cut in 0..bytes.len() {
            assert!(ShareFetch::decode(&bytes[..cut], 1).is_err());
        }
    }

    #[test]
    fn what_is_read_is_of_the_shape_that_is_checked() {
        use crate::{
            broker::handlers::share::{share_acknowledge, share_fetch},
            wire::api::shape::sample,
        };
        let mut random = sample::Random::new(9);
        for version in 1..=2 {
            for _ in 0..200 {
                let fetch = share_fetch::API.shape;
                let body = sample::sample(fetch, version, true, sample::Text::Ascii, &mut random);
                assert!(ShareFetch::decode(&body, version).is_ok(), "{version}");
                let acknowledge = share_acknowledge::API.shape;
                let body = sample::sample(acknowledge, version, true, sample::Text::Ascii, &mut random);
                assert!(ShareAcknowledge::decode(&body, version).is_ok(), "{version}");
            }
        }
    }

    #[test]
    fn acknowledgements_rise_and_are_complete() {
        let invalid = Err(ResponseError::InvalidRequest);
        assert!(check(vec![raw(0, 4, &[1]), raw(5, 6, &[2, 3])], 1, false).is_ok());
        for bad in [
            vec![raw(5, 4, &[1])],
            vec![raw(0, 4, &[])],
            vec![raw(0, 4, &[1, 1])],
            vec![raw(0, i64::MAX, &[1, 1])],
            vec![raw(i64::MIN, i64::MAX, &[1, 1])],
            vec![raw(3, 4, &[1]), raw(1, 2, &[1])],
            vec![raw(0, 0, &[5])],
            vec![raw(0, 0, &[-1])],
            vec![raw(0, 0, &[4])],
        ] {
            assert_eq!(check(bad, 1, true), invalid);
        }
        assert_eq!(check(vec![raw(0, 0, &[4])], 2, false), invalid);
        assert!(check(vec![raw(0, 0, &[4])], 2, true).is_ok());
    }

    #[test]
    fn renewals_fetch_nothing() {
        let request = |bytes_max, renews| ShareFetch {
            version: 2,
            group: Some("g".to_owned()),
            member: Some("m".to_owned()),
            epoch: 1,
            wait_ms_max: 0,
            bytes_min: 0,
            bytes_max,
            records_max: 0,
            batch_size: 0,
            is_strict: false,
            renews,
            parts: Vec::new(),
            forgotten: Vec::new(),
        };
        assert_eq!(request(1, true).refusal(), Some("maxBytes must be set to 0, if isRenewAck is true.".to_owned()));
        assert_eq!((request(0, true).refusal(), request(1, false).refusal()), (None, None));
    }
}
