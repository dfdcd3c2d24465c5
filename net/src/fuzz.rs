//! Entry points for fuzzers: one per decoder of bytes that come from a client.
//!
//! Each takes any bytes and asserts what holds of any bytes: no panic, no allocation by a declared length alone, and
//! that what one decoder accepts the others can work with.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, ProduceRequest as LibraryProduceRequest, RequestKind},
    protocol::{Decodable, Encodable, StrBytes},
};
use millrace_engine::fuzz::Target;

use crate::{
    broker::{served::TABLE, shard::BrokerShard, table::Api, telemetry},
    wire::{
        api::shape::{
            self,
            sample::{Random, Text, sample},
        },
        connection::{Frame, Routed, feed, route},
        hot::produce_request::ProduceRequest,
        memory::{Class, ReceiveMemory, Reservation},
    },
};

/// All of them.
pub fn targets() -> &'static [Target] {
    &[
        Target { name: "frames", run: fuzz_frames, seeds: frame_seeds },
        Target { name: "request", run: fuzz_request, seeds: request_seeds },
        Target { name: "text", run: fuzz_request, seeds: text_seeds },
        Target { name: "produce", run: fuzz_produce, seeds: produce_seeds },
        Target { name: "telemetry", run: fuzz_telemetry, seeds: telemetry_seeds },
    ]
}

const FRAME_BYTES_MAX: usize = 1 << 20;

fn reserve(memory: &ReceiveMemory, bytes: usize) -> Reservation {
    memory.try_reserve(Class::Whole, bytes).expect("the budget is larger than any input")
}

/// A stream of frames, cut into reads as long as the first byte says.
pub fn fuzz_frames(data: &[u8]) {
    let Some((&step, stream)) = data.split_first() else {
        return;
    };
    let checked = |frame: Frame| {
        assert_eq!(frame.bytes.len(), frame.reservation.bytes());
        fuzz_request(&frame.bytes);
    };
    // what is malformed ends the stream
    let _ = feed(stream, usize::from(step).max(1), FRAME_BYTES_MAX, checked);
}

/// One request: header, table, shape, and then what its handler would decode.
pub fn fuzz_request(data: &[u8]) {
    let memory = ReceiveMemory::new(1 << 30, FRAME_BYTES_MAX);
    let frame = Frame { bytes: Bytes::copy_from_slice(data), reservation: reserve(&memory, data.len()) };
    let Ok(mut routed) = route::<BrokerShard>(&frame) else {
        return;
    };
    let mending_bytes = routed.mending_bytes(usize::MAX).expect("there is no limit here");
    routed.mend().expect("what was checked can be mended");
    let Routed::Request { api, request, .. } = routed else {
        return;
    };
    let version = request.header.version.min(api.key.valid_versions().max);
    let mut body = request.body;
    assert!(mending_bytes == 0 || body.len() <= mending_bytes);
    let is_flexible = api.key.request_header_version(request.header.version) >= 2;
    let foreign_bytes = shape::check(api.shape, request.header.version, is_flexible, &body);
    assert_eq!(foreign_bytes, Ok(0), "all text is UTF-8 by now");
    if api.key == ApiKey::Produce {
        fuzz_produce_body(body, version);
        return;
    }
    // Nulls where none may be: refused. What was let through and decoded can be encoded.
    if let Ok(decoded) = RequestKind::decode(api.key, &mut body, version) {
        decoded.encode(&mut BytesMut::new(), version).expect("what was decoded can be encoded");
    }
}

/// A produce request's body after a byte that is its version.
pub fn fuzz_produce(data: &[u8]) {
    let Some((&version, body)) = data.split_first() else {
        return;
    };
    fuzz_produce_body(Bytes::copy_from_slice(body), 3 + i16::from(version % 11));
}

fn fuzz_produce_body(body: Bytes, version: i16) {
    let Ok(request) = ProduceRequest::decode(body.clone(), version) else {
        return;
    };
    // Ours is through: every count is backed by bytes, so the library's cannot be led astray either.
    let library = LibraryProduceRequest::decode(&mut body.clone(), version).expect("the library accepts it too");
    assert_eq!(library.acks, request.acks);
    assert_eq!(library.topic_data.len(), request.topics.len());
    for (theirs, ours) in library.topic_data.iter().zip(&request.topics) {
        assert_eq!((&*theirs.name.0, theirs.topic_id), (&*ours.name, ours.id));
        let theirs = theirs.partition_data.iter().map(|partition| (partition.index, &partition.records));
        assert!(theirs.eq(ours.partitions.iter().map(|partition| (partition.index, &partition.records))));
    }
}

/// A push of a client's metrics, decompressed.
pub fn fuzz_telemetry(data: &[u8]) {
    if let Ok(pushed) = telemetry::decode(data) {
        assert!(pushed.samples.len() <= telemetry::SAMPLES_MAX);
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let are_names =
            |sample: &telemetry::Sample| is_name(&sample.family) && sample.labels.iter().all(|(name, _)| is_name(name));
        assert!(pushed.samples.iter().all(are_names), "what is shown can be read by Prometheus");
    }
}

/// What real clients pushed.
fn telemetry_seeds() -> Vec<Vec<u8>> {
    [telemetry::PUSHED_BY_JAVA, telemetry::PUSHED_BY_LIBRDKAFKA].map(<[u8]>::to_vec).into()
}

/// A request header as all versions of one begin, and the tagged fields of the newer ones.
fn header(key: i16, version: i16, header_version: i16, client_id: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_i16(key);
    bytes.put_i16(version);
    bytes.put_i32(7);
    bytes.put_u16(client_id.len() as u16);
    bytes.put_slice(client_id);
    if header_version >= 2 {
        bytes.put_u8(0);
    }
    bytes
}

fn seeds(client_id: &[u8], body: impl Fn(&Api, i16, bool, &mut Random) -> Vec<u8>) -> Vec<Vec<u8>> {
    let mut random = Random::new(11);
    let mut seeds = Vec::new();
    for api in TABLE {
        for version in api.version_min..=api.version_max {
            let header_version = api.key.request_header_version(version);
            let mut bytes = header(api.key as i16, version, header_version, client_id);
            bytes.extend(body(api, version, header_version >= 2, &mut random));
            seeds.push(bytes);
        }
    }
    seeds
}

/// Each version of each API.
fn request_seeds() -> Vec<Vec<u8>> {
    seeds(b"client", |api, version, flexible, random| match api.key {
        ApiKey::Produce => produce_body(version),
        _ => sample(api.shape, version, flexible, Text::Ascii, random),
    })
}

/// Each version of each API, and no text that is UTF-8.
fn text_seeds() -> Vec<Vec<u8>> {
    seeds(b"Z\xe4", |api, version, flexible, random| sample(api.shape, version, flexible, Text::Foreign, random))
}

fn produce_body(version: i16) -> Vec<u8> {
    use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
    let partition =
        |index| PartitionProduceData::default().with_index(index).with_records(Some(Bytes::from_static(&[b'r'; 70])));
    let topic = TopicProduceData::default().with_partition_data(vec![partition(0), partition(1)]);
    let topic = match version {
        ..=12 => topic.with_name(StrBytes::from_static_str("topic").into()),
        _ => topic.with_topic_id(uuid::Uuid::from_u128(5)),
    };
    let request = LibraryProduceRequest::default().with_acks(-1).with_topic_data(vec![topic]);
    let mut bytes = BytesMut::new();
    request.encode(&mut bytes, version).expect("a legal request");
    bytes.to_vec()
}

fn produce_seeds() -> Vec<Vec<u8>> {
    let versions = 3..=13_u8;
    versions.map(|version| [vec![version - 3], produce_body(version.into())].concat()).collect()
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let requests = request_seeds();
    let framed = requests.chunks(5).enumerate().map(|(at, some)| {
        let mut stream = vec![(at % 200) as u8 + 1];
        for request in some {
            stream.extend_from_slice(&(request.len() as u32).to_be_bytes());
            stream.extend_from_slice(request);
        }
        stream
    });
    framed.collect()
}
