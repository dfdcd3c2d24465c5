//! Encodes a fetch response around records that are sent from where they lie.
//!
//! Versions 4 to 18. Everything but the records is written into one buffer, which is then cut where records belong.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use millrace_engine::{
    api::{Chunk, Records},
    transactions::AbortedTransaction,
};
use uuid::Uuid;

use crate::wire::api::Response;

/// A fetch response.
#[derive(Debug, Default)]
pub(crate) struct FetchResponse {
    pub(crate) error_code: i16,
    pub(crate) session_id: i32,
    pub(crate) topics: Vec<TopicResponse>,
    /// Where the leaders that partitions name are found (KIP-951). Not sent before version 16.
    pub(crate) node_endpoints: Vec<NodeEndpoint>,
}

/// Where a broker is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeEndpoint {
    /// The broker's id.
    pub(crate) id: i32,
    /// Its host.
    pub(crate) host: StrBytes,
    /// Its port.
    pub(crate) port: i32,
    /// Where it stands.
    pub(crate) rack: Option<StrBytes>,
}

/// One topic of it.
#[derive(Debug)]
pub(crate) struct TopicResponse {
    /// Not sent from version 13 on.
    pub(crate) name: StrBytes,
    /// Not sent before version 13.
    pub(crate) id: Uuid,
    pub(crate) partitions: Vec<PartitionResponse>,
}

/// One partition of it.
#[derive(Debug)]
pub(crate) struct PartitionResponse {
    pub(crate) index: i32,
    pub(crate) error_code: i16,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable_offset: i64,
    pub(crate) log_start_offset: i64,
    /// Aborted transactions with batches among the records, for a client that reads committed records only. Others are
    /// told of none, which is not the same as of no one: they would leave out what they want to see.
    pub(crate) aborted: Option<Vec<AbortedTransaction>>,
    /// What else the client should know.
    pub(crate) hints: Hints,
    pub(crate) records: Records,
}

/// What a client may make use of beside records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hints {
    /// The replica that it should rather read from (KIP-392). Not sent before version 11.
    pub(crate) preferred_read_replica: Option<i32>,
    /// Id and epoch of the leader, for one who believes in another (KIP-951). Not sent before version 16.
    pub(crate) current_leader: Option<(i32, i32)>,
    /// Epoch and end offset up to which the client's log is the leader's (KIP-320). Not sent before version 12.
    pub(crate) diverging: Option<(i32, i64)>,
}

/// Bytes that the fields of a response and of its parts take at most, names apart.
const RESPONSE_BYTES_MAX: usize = 32;
const TOPIC_BYTES_MAX: usize = 24;
const PARTITION_BYTES_MAX: usize = 64;
/// Bytes of an aborted transaction.
const ABORTED_BYTES_MAX: usize = 17;
/// Bytes of one of the hints.
const HINT_BYTES_MAX: usize = 16;

impl FetchResponse {
    /// Encodes it with its length and header. `None`: it exceeds what a length can say.
    pub(crate) fn encode(self, correlation_id: i32, version: i16) -> Option<Response> {
        let errors = self.errors();
        let bytes = BytesMut::with_capacity(self.size_estimate());
        let mut encoder = Encoder { version, flexible: version >= 12, bytes, ..Encoder::empty() };
        encoder.bytes.put_i32(0);
        encoder.bytes.put_i32(correlation_id);
        encoder.end_of_struct();
        encoder.response(self);
        encoder.finish(errors)
    }

    fn errors(&self) -> Vec<i16> {
        let partitions = self.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
        std::iter::once(self.error_code).chain(partitions).filter(|code| *code != 0).collect()
    }

    /// Bytes of all records in it.
    pub(crate) fn record_bytes(&self) -> usize {
        let partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.map(|partition| partition.records.len()).sum()
    }

    fn size_estimate(&self) -> usize {
        let aborted = |partition: &PartitionResponse| partition.aborted.as_ref().map_or(0, Vec::len);
        let topic = |topic: &TopicResponse| {
            let aborted: usize = topic.partitions.iter().map(aborted).sum();
            let partitions = topic.partitions.len() * PARTITION_BYTES_MAX + aborted * ABORTED_BYTES_MAX;
            TOPIC_BYTES_MAX + topic.name.len() + partitions
        };
        RESPONSE_BYTES_MAX + self.topics.iter().map(topic).sum::<usize>()
    }
}

struct Encoder {
    version: i16,
    flexible: bool,
    bytes: BytesMut,
    /// Records, and the position in `bytes` where they belong.
    records: Vec<(usize, Records)>,
    records_bytes: usize,
}

impl Encoder {
    fn empty() -> Encoder {
        Encoder { version: 0, flexible: false, bytes: BytesMut::new(), records: Vec::new(), records_bytes: 0 }
    }

    fn response(&mut self, response: FetchResponse) {
        // Throttle time.
        self.bytes.put_i32(0);
        if self.version >= 7 {
            self.bytes.put_i16(response.error_code);
            self.bytes.put_i32(response.session_id);
        }
        self.array_length(response.topics.len());
        for topic in response.topics {
            self.topic(topic);
        }
        let is_told = self.version >= 16 && !response.node_endpoints.is_empty();
        let endpoints = is_told.then(|| self.node_endpoints(&response.node_endpoints));
        self.tagged_fields(endpoints.into_iter().map(|endpoints| (0, endpoints)));
    }

    fn topic(&mut self, topic: TopicResponse) {
        if self.version >= 13 {
            self.bytes.put_slice(topic.id.as_bytes());
        } else if self.flexible {
            self.varint(topic.name.len() + 1);
            self.bytes.put_slice(topic.name.as_bytes());
        } else {
            self.bytes.put_i16(i16::try_from(topic.name.len()).expect("a topic's name came as a short text"));
            self.bytes.put_slice(topic.name.as_bytes());
        }
        self.array_length(topic.partitions.len());
        for partition in topic.partitions {
            self.partition(partition);
        }
        self.end_of_struct();
    }

    fn partition(&mut self, partition: PartitionResponse) {
        self.bytes.put_i32(partition.index);
        self.bytes.put_i16(partition.error_code);
        self.bytes.put_i64(partition.high_watermark);
        self.bytes.put_i64(partition.last_stable_offset);
        if self.version >= 5 {
            self.bytes.put_i64(partition.log_start_offset);
        }
        self.aborted_transactions(partition.aborted.as_deref());
        if self.version >= 11 {
            self.bytes.put_i32(partition.hints.preferred_read_replica.unwrap_or(-1));
        }
        let length = partition.records.len();
        self.array_length(length);
        if length > 0 {
            self.records_bytes += length;
            self.records.push((self.bytes.len(), partition.records));
        }
        let Hints { diverging, current_leader, .. } = partition.hints;
        let diverging = diverging.map(|(epoch, end_offset)| {
            let mut field = BytesMut::with_capacity(HINT_BYTES_MAX);
            field.put_i32(epoch);
            field.put_i64(end_offset);
            field.put_u8(0);
            (0, field)
        });
        let current_leader = current_leader.filter(|_| self.version >= 16).map(|(id, epoch)| {
            let mut field = BytesMut::with_capacity(HINT_BYTES_MAX);
            field.put_i32(id);
            field.put_i32(epoch);
            field.put_u8(0);
            (1, field)
        });
        self.tagged_fields(diverging.into_iter().chain(current_leader));
    }

    fn node_endpoints(&self, endpoints: &[NodeEndpoint]) -> BytesMut {
        let mut field = Encoder { version: self.version, flexible: true, ..Encoder::empty() };
        field.array_length(endpoints.len());
        for endpoint in endpoints {
            field.bytes.put_i32(endpoint.id);
            field.array_length(endpoint.host.len());
            field.bytes.put_slice(endpoint.host.as_bytes());
            field.bytes.put_i32(endpoint.port);
            match &endpoint.rack {
                Some(rack) => {
                    field.array_length(rack.len());
                    field.bytes.put_slice(rack.as_bytes());
                }
                None => field.bytes.put_u8(0),
            }
            field.end_of_struct();
        }
        field.bytes
    }

    /// The end of a struct with these tagged fields, by rising tag.
    fn tagged_fields(&mut self, fields: impl Iterator<Item = (usize, BytesMut)>) {
        if !self.flexible {
            return;
        }
        let fields: Vec<_> = fields.collect();
        self.varint(fields.len());
        for (tag, field) in fields {
            self.varint(tag);
            self.varint(field.len());
            self.bytes.put_slice(&field);
        }
    }

    fn aborted_transactions(&mut self, aborted: Option<&[AbortedTransaction]>) {
        match (aborted, self.flexible) {
            (Some(aborted), _) => self.array_length(aborted.len()),
            (None, true) => self.bytes.put_u8(0),
            (None, false) => self.bytes.put_i32(-1),
        }
        for AbortedTransaction { producer_id, first_offset } in aborted.unwrap_or_default() {
            self.bytes.put_i64(*producer_id);
            self.bytes.put_i64(*first_offset);
            self.end_of_struct();
        }
    }

    /// The length of an array or of bytes; lengths beyond 32 bits are found out by [`Encoder::finish`].
    fn array_length(&mut self, length: usize) {
        if self.flexible {
            self.varint(length + 1);
        } else {
            self.bytes.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
        }
    }

    fn varint(&mut self, value: usize) {
        let mut value = value;
        while value >= 0x80 {
            self.bytes.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.put_u8(value as u8);
    }

    /// No tagged fields.
    fn end_of_struct(&mut self) {
        if self.flexible {
            self.bytes.put_u8(0);
        }
    }

    fn finish(mut self, errors: Vec<i16>) -> Option<Response> {
        let length = i32::try_from(self.bytes.len() - 4 + self.records_bytes).ok()?;
        self.bytes[..4].copy_from_slice(&length.to_be_bytes());
        let bytes: Bytes = self.bytes.freeze();
        let mut pieces = Vec::with_capacity(2 * self.records.len() + 1);
        let mut cut = 0;
        for (position, records) in self.records {
            pieces.push(Chunk::Bytes(bytes.slice(cut..position)));
            pieces.extend(records.chunks);
            cut = position;
        }
        pieces.push(Chunk::Bytes(bytes.slice(cut..)));
        Some(Response::new(pieces, errors))
    }
}
