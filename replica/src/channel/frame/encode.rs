//! Frames to bytes. The layout is drawn in CHANNEL.md and held by the golden tests.

use bytes::Bytes;
use millrace_engine::{api::TopicPartition, config::Durability};

use super::{
    Attach, Attached, Chunks, Detach, DetachReason, FRAME_HEADER_BYTES, Frame, HEAD_BYTES_MAX, Hello, Hold, ITEMS_MAX,
    LogStart, Marks, PAYLOAD_BYTES_MAX, Position, Purpose, Refusal, Run, Switch, Verdict, Welcome, version_of,
};

/// A frame to be sent: its head, then its payload, all of it in order.
#[derive(Debug)]
pub struct EncodedFrame {
    /// Header and head.
    pub head: Bytes,
    /// The payload, slices of what the frame was made from.
    pub payload: Vec<Bytes>,
}

/// The bytes of a frame.
///
/// # Panics
/// If it is larger than a receiver would take: who makes frames keeps to the bounds of this module.
pub fn encode(frame: &Frame) -> EncodedFrame {
    let mut writer = Writer(vec![0; FRAME_HEADER_BYTES]);
    let kind = writer.frame(frame);
    let payload = payload(frame);
    let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
    let head_bytes = writer.0.len() - FRAME_HEADER_BYTES;
    assert!(head_bytes <= HEAD_BYTES_MAX && payload_bytes <= PAYLOAD_BYTES_MAX, "a frame keeps to its bounds");
    let mut head = writer.0;
    head[0..4].copy_from_slice(&length(head_bytes).to_le_bytes());
    head[4..8].copy_from_slice(&length(payload_bytes).to_le_bytes());
    head[8..10].copy_from_slice(&kind.to_le_bytes());
    head[10..12].copy_from_slice(&version_of(kind).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), &head[FRAME_HEADER_BYTES..]);
    head[16..20].copy_from_slice(&crc.to_le_bytes());
    EncodedFrame { head: head.into(), payload }
}

fn payload(frame: &Frame) -> Vec<Bytes> {
    match frame {
        Frame::Live(live) => live.runs.iter().map(|run| run.payload.bytes.clone()).collect(),
        Frame::Chunk(run) => vec![run.payload.bytes.clone()],
        _ => Vec::new(),
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("bounds of frames fit 32 bits")
}

struct Writer(Vec<u8>);

impl Writer {
    /// Writes the head and says which kind of frame it is of.
    fn frame(&mut self, frame: &Frame) -> u16 {
        match frame {
            Frame::Hello(hello) => self.hello(hello),
            Frame::Welcome(Welcome { from, version }) => {
                self.i32(from.node);
                self.i64(from.epoch);
                self.u16(*version);
                2
            }
            Frame::Refuse(refusal) => {
                self.u8(refusal_code(*refusal));
                3
            }
            Frame::Attach(items) => self.list(items, 4, Self::attach),
            Frame::Attached(items) => self.list(items, 5, Self::attached),
            Frame::Live(live) => {
                self.u64(live.sequence);
                self.list(&live.runs, 6, Self::run)
            }
            Frame::Confirm(confirm) => {
                self.u64(confirm.sequence);
                7
            }
            Frame::Credit(credit) => {
                self.u64(*credit);
                8
            }
            Frame::Chunk(run) => {
                self.run(run);
                9
            }
            Frame::Positions(items) => self.list(items, 10, Self::position),
            Frame::Marks(items) => self.list(items, 11, Self::marks),
            Frame::GoLive(items) => self.list(items, 12, Self::switch),
            Frame::CatchUp(items) => self.list(items, 13, Self::switch),
            Frame::Detach(items) => self.list(items, 14, Self::detach),
            Frame::Ping => 15,
            Frame::Pong => 16,
            Frame::LogStarts(items) => self.list(items, 17, Self::log_start),
            Frame::Hold(items) => self.list(items, 18, Self::hold),
        }
    }

    fn list<T>(&mut self, items: &[T], kind: u16, item: fn(&mut Self, &T)) -> u16 {
        assert!(items.len() <= ITEMS_MAX, "a frame keeps to its bounds");
        self.u32(length(items.len()));
        items.iter().for_each(|one| item(self, one));
        kind
    }

    fn hello(&mut self, hello: &Hello) -> u16 {
        self.0.extend_from_slice(hello.cluster.as_bytes());
        self.i32(hello.from.node);
        self.i64(hello.from.epoch);
        self.u32(hello.from_shard);
        self.i32(hello.to);
        self.u32(hello.to_shard);
        self.u8(match hello.purpose {
            Purpose::Live => 0,
            Purpose::CatchUp => 1,
        });
        self.u16(hello.version_min);
        self.u16(hello.version_max);
        1
    }

    fn attach(&mut self, attach: &Attach) {
        self.place(attach.partition, attach.attachment);
        self.i32(attach.epoch);
        self.i64(attach.end);
        self.i64(attach.written);
        self.i64(attach.durable);
        self.i32(attach.last_epoch);
    }

    fn attached(&mut self, attached: &Attached) {
        self.place(attached.partition, attached.attachment);
        let (code, epoch, offset) = match attached.verdict {
            Verdict::Match => (0, 0, 0),
            Verdict::Diverge { epoch, end } => (1, epoch, end),
            Verdict::Fenced { epoch } => (2, epoch, 0),
            Verdict::Unknown => (3, 0, 0),
            Verdict::Gone { log_start } => (4, 0, log_start),
            Verdict::NotLeader => (5, 0, 0),
        };
        self.u8(code);
        self.i32(epoch);
        self.i64(offset);
    }

    fn run(&mut self, run: &Run) {
        self.place(run.partition, run.attachment);
        self.i32(run.epoch);
        self.i64(run.base);
        self.i64(run.end);
        self.i64(run.high_watermark);
        self.i64(run.log_start);
        self.u8(match run.durability {
            Durability::Device => 0,
            Durability::Written => 1,
        });
        self.u32(length(run.payload.bytes.len()));
        self.u32(run.payload.crc);
    }

    fn position(&mut self, position: &Position) {
        self.place(position.partition, position.attachment);
        self.i64(position.written);
        self.i64(position.durable);
    }

    fn marks(&mut self, marks: &Marks) {
        self.place(marks.partition, marks.attachment);
        self.i32(marks.epoch);
        self.i64(marks.high_watermark);
        self.i64(marks.log_start);
    }

    fn switch(&mut self, switch: &Switch) {
        self.place(switch.partition, switch.attachment);
        self.i64(switch.at);
    }

    fn detach(&mut self, detach: &Detach) {
        self.place(detach.partition, detach.attachment);
        self.i32(detach.epoch);
        self.u8(match detach.reason {
            DetachReason::Moved => 0,
            DetachReason::Mismatch => 1,
            DetachReason::Failed => 2,
            DetachReason::Trimmed => 3,
        });
    }

    fn log_start(&mut self, told: &LogStart) {
        self.place(told.partition, told.attachment);
        self.i64(told.log_start);
    }

    fn hold(&mut self, hold: &Hold) {
        self.place(hold.partition, hold.attachment);
        self.u8(match hold.chunks {
            Chunks::Come => 0,
            Chunks::Wait => 1,
        });
    }

    fn place(&mut self, partition: TopicPartition, attachment: u32) {
        self.0.extend_from_slice(partition.topic.as_bytes());
        self.i32(partition.partition);
        self.u32(attachment);
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

fn refusal_code(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::OtherCluster => 0,
        Refusal::OtherNode => 1,
        Refusal::OtherVersion => 2,
        Refusal::OtherLife => 3,
        Refusal::NotRegistered => 4,
    }
}
