//! Foreign bytes: a connection may be closed for them, the broker may not fall.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use kafka_protocol::{
    messages::{ApiVersionsRequest, MetadataRequest},
    protocol::Request,
};
use millrace_bench::{
    batch::{BatchShape, BatchTemplate},
    client::{self, CLIENT_ID, FetchLimits},
    payload::{Stamp, splitmix64},
};
use millrace_client::frame::encode_request;

use crate::{
    broker::{Broker, PATIENCE, rounds},
    writer::Writer,
};

/// Sends bytes on a connection of their own, and waits a moment for the broker to answer or close.
fn throw(broker: &Broker, bytes: &[u8]) {
    let mut stream = TcpStream::connect(broker.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    // the broker may have closed the connection before it read everything
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 1024]);
}

fn frame<R: Request>(correlation_id: i32, version: i16, request: &R) -> Vec<u8> {
    encode_request(&CLIENT_ID, correlation_id, version, request).unwrap().to_vec()
}

/// Frames of real requests.
fn honest_frames() -> Vec<Vec<u8>> {
    let template = BatchTemplate::new(BatchShape { records: 3, value_bytes: 50, key_bytes: 4 });
    let mut batch = Vec::new();
    let stamp = Stamp { run: 99, producer: 0, partition: 0, sequence: 0, intended_ns: 0 };
    template.append_to(&mut batch, 1_000, None, stamp);
    let produce = client::produce_request("garbage", 0, Bytes::from(batch), PATIENCE);
    let metadata = MetadataRequest::default().with_topics(None);
    let mut frames = vec![
        frame(1, 8, &produce),
        frame(2, 9, &produce),
        frame(3, 9, &metadata),
        frame(4, 3, &ApiVersionsRequest::default()),
    ];
    // every API key at several versions, with a body of zeros
    for key in 0..=95i16 {
        for version in [0i16, 3, 9, 127] {
            let mut frame = vec![0, 0, 0, 60];
            frame.extend_from_slice(&key.to_be_bytes());
            frame.extend_from_slice(&version.to_be_bytes());
            frame.resize(64, 0);
            frames.push(frame);
        }
    }
    frames
}

#[test]
fn mutated_requests_do_not_bring_the_broker_down() {
    let broker = Broker::start("--shards 2");
    broker.create_topic("garbage", 2);
    let mut writer = Writer::new(broker.address, "garbage", 2, 1, 0);
    writer.write(20);
    let frames = honest_frames();
    let mut random = 5;
    frames.iter().for_each(|frame| throw(&broker, frame));
    for _ in 0..rounds(300) {
        let mut frame = frames[splitmix64(&mut random) as usize % frames.len()].clone();
        for _ in 0..1 + splitmix64(&mut random) % 4 {
            let at = 4 + splitmix64(&mut random) as usize % (frame.len() - 4);
            match splitmix64(&mut random) % 4 {
                0 => frame[at] ^= 1 << (splitmix64(&mut random) % 8),
                1 => frame[at] = 0xff,
                2 => frame.truncate(at.max(5)),
                _ => frame.insert(at, splitmix64(&mut random) as u8),
            }
        }
        let length = frame.len() as i32 - 4;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        throw(&broker, &frame);
    }
    writer.write(20);
    let tally = broker.verdict("garbage", 1, &writer.acknowledged);
    // a mutated batch may have been a legal one: it counts as foreign or corrupt, never as ours
    assert_eq!((tally.lost, tally.duplicates, tally.reordered), (0, 0, 0), "{tally}\n{}", broker.log());
}

#[test]
fn frames_of_absurd_length_and_half_frames_do_no_harm() {
    let broker = Broker::start("--shards 1");
    broker.create_topic("lengths", 1);
    for length in [-1i32, i32::MIN, 0, 1, 7, i32::MAX, 1 << 30] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0; 20]);
        throw(&broker, &bytes);
    }
    throw(&broker, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    throw(&broker, &[0x16, 3, 1, 0, 200, 1, 0, 0, 196]); // a TLS client
    let frame = &honest_frames()[0];
    for cut in 0..frame.len() {
        let mut stream = TcpStream::connect(broker.address).unwrap();
        stream.write_all(&frame[..cut]).unwrap();
    }
    let mut writer = Writer::new(broker.address, "lengths", 1, 1, 0);
    writer.write(10);
    broker.verify("lengths", 1, &writer.acknowledged);
}

#[test]
fn damaged_batches_are_refused_and_leave_no_trace() {
    let broker = Broker::start("--shards 1");
    broker.create_topic("damaged", 1);
    let template = BatchTemplate::new(BatchShape { records: 2, value_bytes: 60, key_bytes: 0 });
    let mut good = Vec::new();
    let stamp = Stamp { run: 1, producer: 0, partition: 0, sequence: 0, intended_ns: 0 };
    template.append_to(&mut good, 1_000, None, stamp);
    let mut connection = broker.connect();
    for at in 16..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let error = client::produce(&mut connection, "damaged", 0, Bytes::from(bad), PATIENCE).unwrap_err();
        // CORRUPT_MESSAGE; for another magic UNSUPPORTED_FOR_MESSAGE_FORMAT; for the bit that says it is part of a
        // transaction, which is looked at first, INVALID_TXN_STATE or TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        assert!(matches!(error.code(), Some(2 | 43 | 48 | 53)), "byte {at}: {error}");
    }
    let ends = client::list_offsets(&mut connection, "damaged", &[0], -1).unwrap();
    assert_eq!(ends, [0]);
    assert_eq!(client::produce(&mut connection, "damaged", 0, Bytes::from(good), PATIENCE).unwrap(), 0);
    let position = std::iter::once((0, 0));
    let back = client::fetch(&mut connection, "damaged", position, FetchLimits::default()).unwrap();
    assert_eq!((back[0].code, back[0].high_watermark), (0, 2));
}
