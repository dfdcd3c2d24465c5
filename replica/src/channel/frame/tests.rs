//! The layout as bytes, everything that is written can be read, and any bytes can be looked at.

use millrace_engine::replica::FAT_BYTES;
use proptest::prelude::*;

use super::*;

fn partition(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_bytes(*b"topic-id-topicid"), partition: index }
}

fn run(bytes: &'static [u8]) -> Run {
    Run {
        partition: partition(3),
        attachment: 4,
        epoch: 5,
        base: 6,
        end: 8,
        high_watermark: 7,
        log_start: 1,
        durability: Durability::Written,
        payload: Payload::new(Bytes::from_static(bytes)),
    }
}

fn bytes(frame: &Frame) -> Vec<u8> {
    let encoded = encode(frame);
    let mut bytes = encoded.head.to_vec();
    encoded.payload.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn read(bytes: &[u8]) -> Result<Frame, FrameError> {
    let header = bytes.first_chunk().ok_or(FrameError::Length)?;
    decode(FrameHeader::parse(header)?, Bytes::copy_from_slice(&bytes[FRAME_HEADER_BYTES..]))
}

/// Fields in order, as CHANNEL.md draws them.
fn drawn(head: &[&[u8]], payload: &[u8], kind: u16) -> Vec<u8> {
    let head = head.concat();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[if kind < 17 { 1 } else { 2 }, 0, 0, 0, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &head);
    bytes.extend_from_slice(&crc.to_le_bytes());
    [bytes, head, payload.to_vec()].concat()
}

const PLACE: &[u8] = b"topic-id-topicid\x03\0\0\0\x04\0\0\0";

#[test]
fn golden_hello() {
    let hello = Hello {
        cluster: Uuid::from_bytes(*b"cluster-cluster-"),
        from: Member { node: 1, epoch: 0x0203 },
        from_shard: 4,
        to: 5,
        to_shard: 6,
        purpose: Purpose::CatchUp,
        version_min: 1,
        version_max: 2,
    };
    let head: &[u8] = b"cluster-cluster-\x01\0\0\0\x03\x02\0\0\0\0\0\0\x04\0\0\0\x05\0\0\0\x06\0\0\0\x01\x01\0\x02\0";
    assert_eq!(bytes(&Frame::Hello(hello)), drawn(&[head], b"", 1));
}

#[test]
fn golden_attach() {
    let attach =
        Attach { partition: partition(3), attachment: 4, epoch: 5, end: 9, written: 8, durable: 7, last_epoch: -1 };
    let fields: &[u8] = b"\x05\0\0\0\x09\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\xff\xff\xff\xff";
    assert_eq!(bytes(&Frame::Attach(vec![attach])), drawn(&[&[1, 0, 0, 0], PLACE, fields], b"", 4));
}

#[test]
fn golden_verdicts() {
    let verdicts = [
        (Verdict::Match, 0, 0, 0),
        (Verdict::Diverge { epoch: 2, end: 3 }, 1, 2, 3),
        (Verdict::Fenced { epoch: 2 }, 2, 2, 0),
        (Verdict::Unknown, 3, 0, 0),
        (Verdict::Gone { log_start: 3 }, 4, 0, 3),
        (Verdict::NotLeader, 5, 0, 0),
    ];
    for (verdict, code, epoch, offset) in verdicts {
        let frame = Frame::Attached(vec![Attached { partition: partition(3), attachment: 4, verdict }]);
        let fields = [&[code][..], &i32::to_le_bytes(epoch), &i64::to_le_bytes(offset)].concat();
        assert_eq!(bytes(&frame), drawn(&[&[1, 0, 0, 0], PLACE, &fields], b"", 5));
    }
}

#[test]
fn golden_second_version() {
    let log_start = LogStart { partition: partition(3), attachment: 4, log_start: 0x0506 };
    let fields: &[u8] = b"\x06\x05\0\0\0\0\0\0";
    assert_eq!(bytes(&Frame::LogStarts(vec![log_start])), drawn(&[&[1, 0, 0, 0], PLACE, fields], b"", 17));
    for (chunks, code) in [(Chunks::Come, 0), (Chunks::Wait, 1)] {
        let hold = Hold { partition: partition(3), attachment: 4, chunks };
        assert_eq!(bytes(&Frame::Hold(vec![hold])), drawn(&[&[1, 0, 0, 0], PLACE, &[code]], b"", 18));
    }
}

#[test]
fn golden_live() {
    let frame = Frame::Live(Live { sequence: 9, runs: vec![run(b"batches")] });
    let numbers: Vec<u8> = [6_i64, 8, 7, 1].into_iter().flat_map(i64::to_le_bytes).collect();
    let crc = crc32c::crc32c(b"batches").to_le_bytes();
    let head: &[&[u8]] =
        &[&9_u64.to_le_bytes(), &[1, 0, 0, 0], PLACE, &[5, 0, 0, 0], &numbers, &[1], &7_u32.to_le_bytes(), &crc];
    assert_eq!(bytes(&frame), drawn(head, b"batches", 6));
}

/// Or a large run, which stays in memory, would keep all that came with it.
#[test]
fn large_runs_are_kept_apart_from_their_neighbours() {
    let are_slices = |lengths: &[usize]| {
        let of = |length: &usize| Run { payload: Payload::new(Bytes::from(vec![7; *length])), ..run(b"") };
        let live = Live { sequence: 1, runs: lengths.iter().map(of).collect() };
        let encoded = Bytes::from(bytes(&Frame::Live(live.clone())));
        let header = FrameHeader::parse(encoded[..FRAME_HEADER_BYTES].try_into().unwrap()).unwrap();
        let body = encoded.slice(FRAME_HEADER_BYTES..);
        let Ok(Frame::Live(decoded)) = decode(header, body.clone()) else { panic!("it is one") };
        assert_eq!(decoded, live);
        let is_slice = |run: &Run| body.as_ptr_range().contains(&run.payload.bytes.as_ptr());
        decoded.runs.iter().map(is_slice).collect::<Vec<_>>()
    };
    assert_eq!(are_slices(&[FAT_BYTES]), [true], "it is all that came");
    assert_eq!(are_slices(&[5, FAT_BYTES, FAT_BYTES - 1]), [true, false, true]);
}

#[test]
fn golden_kinds() {
    let switch = vec![Switch { partition: partition(3), attachment: 4, at: 2 }];
    let detach = Detach { partition: partition(3), attachment: 4, epoch: 5, reason: DetachReason::Trimmed };
    let position = Position { partition: partition(3), attachment: 4, written: 2, durable: 1 };
    let marks = Marks { partition: partition(3), attachment: 4, epoch: 5, high_watermark: 2, log_start: 1 };
    let log_start = LogStart { partition: partition(3), attachment: 4, log_start: 5 };
    let hold = Hold { partition: partition(3), attachment: 4, chunks: Chunks::Wait };
    let frames = [
        (Frame::Welcome(Welcome { from: Member { node: 1, epoch: 2 }, version: 1 }), 2, 14),
        (Frame::Refuse(Refusal::OtherLife), 3, 1),
        (Frame::Confirm(Confirm { sequence: 1 }), 7, 8),
        (Frame::Credit(1), 8, 8),
        (Frame::Chunk(run(b"x")), 9, 69),
        (Frame::Positions(vec![position]), 10, 44),
        (Frame::Marks(vec![marks]), 11, 48),
        (Frame::GoLive(switch.clone()), 12, 36),
        (Frame::CatchUp(switch), 13, 36),
        (Frame::Detach(vec![detach]), 14, 33),
        (Frame::Ping, 15, 0),
        (Frame::Pong, 16, 0),
        (Frame::LogStarts(vec![log_start]), 17, 36),
        (Frame::Hold(vec![hold]), 18, 29),
    ];
    for (frame, kind, head) in frames {
        let bytes = bytes(&frame);
        let version = if kind < 17 { 1 } else { 2 };
        assert_eq!((bytes[8], bytes[0], bytes[9..].starts_with(&[0, version, 0])), (kind, head, true), "{frame:?}");
        assert_eq!(read(&bytes), Ok(frame));
    }
}

/// Makes the checksum of a head right again.
fn sum_up(bytes: &mut [u8]) {
    let head = bytes.len().min(FRAME_HEADER_BYTES + u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &bytes[FRAME_HEADER_BYTES..head]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn what_is_declared_is_not_believed() {
    let mut long = bytes(&Frame::Ping);
    long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(read(&long), Err(FrameError::TooLong { .. })));

    let mut many = bytes(&Frame::Attach(Vec::new()));
    many[20..24].copy_from_slice(&8_000_u32.to_le_bytes());
    sum_up(&mut many);
    assert_eq!(read(&many), Err(FrameError::Length));

    let mut newer = bytes(&Frame::Ping);
    newer[10] = 3;
    assert_eq!(read(&newer), Err(FrameError::Version(3)));
    newer[10] = 2;
    assert_eq!(read(&newer), Err(FrameError::Kind(15)), "what both versions have is of the first");
    let mut older = bytes(&Frame::LogStarts(Vec::new()));
    older[10] = 1;
    assert_eq!(read(&older), Err(FrameError::Kind(17)), "the first version has no such frame");

    let mut strange = bytes(&Frame::Ping);
    strange[8] = 99;
    sum_up(&mut strange);
    assert_eq!(read(&strange), Err(FrameError::Kind(99)));
}

#[test]
fn damage_is_noticed() {
    let whole = bytes(&Frame::Live(Live { sequence: 9, runs: vec![run(b"batches"), run(b"more")] }));
    assert!(read(&whole).is_ok());
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(&damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err());
    }
}

fn place() -> impl Strategy<Value = (TopicPartition, u32)> {
    (any::<u128>(), 0..i32::MAX, any::<u32>()).prop_map(|(topic, partition, attachment)| {
        (TopicPartition { topic: Uuid::from_u128(topic), partition }, attachment)
    })
}

fn a_run() -> impl Strategy<Value = Run> {
    let numbers = (0..i32::MAX, 0..i64::MAX - 1_000, 1..1_000_i64, 0..i64::MAX, 0..i64::MAX);
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    (place(), numbers, any::<bool>(), bytes).prop_map(|(place, (epoch, base, more, mark, start), is_device, bytes)| {
        Run {
            partition: place.0,
            attachment: place.1,
            epoch,
            base,
            end: base + more,
            high_watermark: mark,
            log_start: start,
            durability: if is_device { Durability::Device } else { Durability::Written },
            payload: Payload::new(bytes.into()),
        }
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let attach = (place(), 0..i32::MAX, 0..100_i64, 0..100_i64, 0..100_i64, -1..i32::MAX).prop_map(
        |((partition, attachment), epoch, durable, more, rest, last_epoch)| {
            let (written, end) = (durable + more, durable + more + rest);
            Attach { partition, attachment, epoch, end, written, durable, last_epoch }
        },
    );
    let attached = (place(), 0..i32::MAX, 0..i64::MAX).prop_map(|((partition, attachment), epoch, end)| Attached {
        partition,
        attachment,
        verdict: Verdict::Diverge { epoch, end },
    });
    prop_oneof![
        prop::collection::vec(attach, 0..9).prop_map(Frame::Attach),
        prop::collection::vec(attached, 0..9).prop_map(Frame::Attached),
        (any::<u64>(), prop::collection::vec(a_run(), 0..6))
            .prop_map(|(sequence, runs)| Frame::Live(Live { sequence, runs })),
        a_run().prop_map(Frame::Chunk),
        any::<u64>().prop_map(Frame::Credit),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(frame in frame()) {
        prop_assert_eq!(read(&bytes(&frame)), Ok(frame));
    }

    /// Fuzz smoke: any bytes, and any bytes behind a checksum that fits, are a frame or an error.
    #[test]
    fn any_bytes_can_be_looked_at(kind in 0..20_u16, head in prop::collection::vec(any::<u8>(), 0..300), payload in 0..40_usize) {
        let payload = vec![7; payload];
        let sealed = drawn(&[&head], &payload, kind);
        if let Ok(frame) = read(&sealed) {
            prop_assert_eq!(bytes(&frame), sealed);
        }
        prop_assert!(read(&head).is_err());
    }
}
