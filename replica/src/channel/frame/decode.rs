//! Bytes to frames. Any bytes come in: an error, never a panic, and no memory that they only declare.

use bytes::Bytes;
use millrace_engine::{api::TopicPartition, config::Durability, replica::FAT_BYTES};
use uuid::Uuid;

use super::{
    Attach, Attached, Chunks, Confirm, Detach, DetachReason, FRAME_HEADER_BYTES, Frame, HEAD_BYTES_MAX, Hello, Hold,
    ITEMS_MAX, Live, LogStart, Marks, PAYLOAD_BYTES_MAX, Payload, Position, Purpose, Refusal, Run, Switch, VERSION_MAX,
    VERSION_MIN, Verdict, Welcome, version_of,
};
use crate::cluster::model::Member;

/// Why bytes are no frame. The connection they came from ends: its next byte has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than any frame.
    #[error("a frame declares {head} bytes of head and {payload} of payload, more than any has")]
    TooLong {
        /// Declared length of the head.
        head: usize,
        /// Declared length of the payload.
        payload: usize,
    },
    /// Of a version that is not spoken here.
    #[error("a frame has version {0}")]
    Version(u16),
    /// Not known in this version.
    #[error("a frame has the unknown kind {0}")]
    Kind(u16),
    /// The checksum of the head, or of a run, does not fit.
    #[error("a frame's checksum does not fit")]
    Checksum,
    /// It ends within a field, or goes on behind its last.
    #[error("a frame's lengths do not fit each other")]
    Length,
    /// A field has a value without meaning.
    #[error("a frame's field has no meaning: {0}")]
    Field(&'static str),
}

/// The first bytes of a frame: enough to know how much more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    kind: u16,
    crc: u32,
    /// CRC-32C of the header's own bytes before its checksum.
    own_crc: u32,
    head_bytes: usize,
    payload_bytes: usize,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// If no frame begins like that: [`FrameError::TooLong`], [`FrameError::Version`].
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut reader = Reader(bytes);
        let (head_bytes, payload_bytes) = (reader.size()?, reader.size()?);
        let (kind, version) = (reader.u16()?, reader.u16()?);
        let reserved = reader.u32()?;
        let crc = reader.u32()?;
        if head_bytes > HEAD_BYTES_MAX || payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { head: head_bytes, payload: payload_bytes });
        }
        if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
            return Err(FrameError::Version(version));
        }
        if reserved != 0 {
            return Err(FrameError::Field("reserved"));
        }
        if version != version_of(kind) {
            return Err(FrameError::Kind(kind));
        }
        Ok(Self { kind, crc, own_crc: crc32c::crc32c(&bytes[..16]), head_bytes, payload_bytes })
    }

    /// Bytes that follow the header.
    pub fn body_bytes(&self) -> usize {
        self.head_bytes + self.payload_bytes
    }
}

/// The frame that a header and the bytes behind it are. Runs are slices of `body`, but for large ones with neighbours.
///
/// # Errors
/// If they are none.
pub fn decode(header: FrameHeader, mut body: Bytes) -> Result<Frame, FrameError> {
    if body.len() != header.body_bytes() {
        return Err(FrameError::Length);
    }
    let head = body.split_to(header.head_bytes);
    if crc32c::crc32c_append(header.own_crc, &head) != header.crc {
        return Err(FrameError::Checksum);
    }
    let mut reader = Reader(&head);
    let frame = frame(header.kind, &mut reader, &mut body)?;
    if reader.0.is_empty() && body.is_empty() { Ok(frame) } else { Err(FrameError::Length) }
}

fn frame(kind: u16, reader: &mut Reader<'_>, payload: &mut Bytes) -> Result<Frame, FrameError> {
    Ok(match kind {
        1 => Frame::Hello(hello(reader)?),
        2 => Frame::Welcome(Welcome { from: reader.member()?, version: reader.u16()? }),
        3 => Frame::Refuse(refusal(reader.u8()?)?),
        4 => Frame::Attach(reader.list(56, attach)?),
        5 => Frame::Attached(reader.list(37, attached)?),
        6 => {
            let sequence = reader.u64()?;
            let mut runs = reader.list(69, |reader| run(reader, payload))?;
            keep_apart(&mut runs);
            Frame::Live(Live { sequence, runs })
        }
        7 => Frame::Confirm(Confirm { sequence: reader.u64()? }),
        8 => Frame::Credit(reader.u64()?),
        9 => Frame::Chunk(run(reader, payload)?),
        10 => Frame::Positions(reader.list(40, position)?),
        11 => Frame::Marks(reader.list(44, marks)?),
        12 => Frame::GoLive(reader.list(32, switch)?),
        13 => Frame::CatchUp(reader.list(32, switch)?),
        14 => Frame::Detach(reader.list(29, detach)?),
        15 => Frame::Ping,
        16 => Frame::Pong,
        17 => Frame::LogStarts(reader.list(32, log_start)?),
        18 => Frame::Hold(reader.list(25, hold)?),
        _ => return Err(FrameError::Kind(kind)),
    })
}

fn log_start(reader: &mut Reader<'_>) -> Result<LogStart, FrameError> {
    let (partition, attachment) = reader.place()?;
    Ok(LogStart { partition, attachment, log_start: reader.offset()? })
}

fn hold(reader: &mut Reader<'_>) -> Result<Hold, FrameError> {
    let (partition, attachment) = reader.place()?;
    let chunks = match reader.u8()? {
        0 => Chunks::Come,
        1 => Chunks::Wait,
        _ => return Err(FrameError::Field("chunks")),
    };
    Ok(Hold { partition, attachment, chunks })
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello, FrameError> {
    Ok(Hello {
        cluster: reader.uuid()?,
        from: reader.member()?,
        from_shard: reader.u32()?,
        to: reader.i32()?,
        to_shard: reader.u32()?,
        purpose: match reader.u8()? {
            0 => Purpose::Live,
            1 => Purpose::CatchUp,
            _ => return Err(FrameError::Field("purpose")),
        },
        version_min: reader.u16()?,
        version_max: reader.u16()?,
    })
}

fn refusal(code: u8) -> Result<Refusal, FrameError> {
    Ok(match code {
        0 => Refusal::OtherCluster,
        1 => Refusal::OtherNode,
        2 => Refusal::OtherVersion,
        3 => Refusal::OtherLife,
        4 => Refusal::NotRegistered,
        _ => return Err(FrameError::Field("refusal")),
    })
}

fn attach(reader: &mut Reader<'_>) -> Result<Attach, FrameError> {
    let (partition, attachment) = reader.place()?;
    let (epoch, end, written) = (reader.epoch()?, reader.offset()?, reader.offset()?);
    let (durable, last_epoch) = (reader.offset()?, reader.i32()?);
    if last_epoch < -1 || written > end || durable > written {
        return Err(FrameError::Field("marks of a follower"));
    }
    Ok(Attach { partition, attachment, epoch, end, written, durable, last_epoch })
}

fn attached(reader: &mut Reader<'_>) -> Result<Attached, FrameError> {
    let (partition, attachment) = reader.place()?;
    let (code, epoch, offset) = (reader.u8()?, reader.i32()?, reader.offset()?);
    let verdict = match code {
        0 => Verdict::Match,
        1 => Verdict::Diverge { epoch, end: offset },
        2 => Verdict::Fenced { epoch },
        3 => Verdict::Unknown,
        4 => Verdict::Gone { log_start: offset },
        5 => Verdict::NotLeader,
        _ => return Err(FrameError::Field("verdict")),
    };
    Ok(Attached { partition, attachment, verdict })
}

/// Gives large runs memory of their own, if they have neighbours: the engine keeps them as they come, and would keep those too.
fn keep_apart(runs: &mut [Run]) {
    if runs.len() > 1 {
        let large = runs.iter_mut().filter(|run| run.payload.bytes.len() >= FAT_BYTES);
        large.for_each(|run| run.payload.bytes = Bytes::copy_from_slice(&run.payload.bytes));
    }
}

fn run(reader: &mut Reader<'_>, payload: &mut Bytes) -> Result<Run, FrameError> {
    let (partition, attachment) = reader.place()?;
    let (epoch, base, end) = (reader.epoch()?, reader.offset()?, reader.offset()?);
    let (high_watermark, log_start) = (reader.offset()?, reader.offset()?);
    let durability = match reader.u8()? {
        0 => Durability::Device,
        1 => Durability::Written,
        _ => return Err(FrameError::Field("durability")),
    };
    let (bytes, crc) = (reader.size()?, reader.u32()?);
    if base >= end {
        return Err(FrameError::Field("offsets of a run"));
    }
    if bytes > payload.len() {
        return Err(FrameError::Length);
    }
    let bytes = payload.split_to(bytes);
    if crc32c::crc32c(&bytes) != crc {
        return Err(FrameError::Checksum);
    }
    let payload = Payload { bytes, crc };
    Ok(Run { partition, attachment, epoch, base, end, high_watermark, log_start, durability, payload })
}

fn position(reader: &mut Reader<'_>) -> Result<Position, FrameError> {
    let (partition, attachment) = reader.place()?;
    let (written, durable) = (reader.offset()?, reader.offset()?);
    if durable > written {
        return Err(FrameError::Field("marks of a follower"));
    }
    Ok(Position { partition, attachment, written, durable })
}

fn marks(reader: &mut Reader<'_>) -> Result<Marks, FrameError> {
    let (partition, attachment) = reader.place()?;
    let (epoch, high_watermark, log_start) = (reader.epoch()?, reader.offset()?, reader.offset()?);
    Ok(Marks { partition, attachment, epoch, high_watermark, log_start })
}

fn switch(reader: &mut Reader<'_>) -> Result<Switch, FrameError> {
    let (partition, attachment) = reader.place()?;
    Ok(Switch { partition, attachment, at: reader.offset()? })
}

fn detach(reader: &mut Reader<'_>) -> Result<Detach, FrameError> {
    let (partition, attachment) = reader.place()?;
    let epoch = reader.epoch()?;
    let reason = match reader.u8()? {
        0 => DetachReason::Moved,
        1 => DetachReason::Mismatch,
        2 => DetachReason::Failed,
        3 => DetachReason::Trimmed,
        _ => return Err(FrameError::Field("reason")),
    };
    Ok(Detach { partition, attachment, epoch, reason })
}

/// Takes fields off the front, and never more than is there.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(FrameError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A counted list whose items have `item_bytes` each: the count is believed only if so many are there.
    fn list<T>(
        &mut self,
        item_bytes: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Vec<T>, FrameError> {
        let count = self.size()?;
        if count > ITEMS_MAX || count * item_bytes != self.0.len() {
            return Err(FrameError::Length);
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn place(&mut self) -> Result<(TopicPartition, u32), FrameError> {
        let (topic, partition) = (self.uuid()?, self.i32()?);
        if partition < 0 {
            return Err(FrameError::Field("partition"));
        }
        Ok((TopicPartition { topic, partition }, self.u32()?))
    }

    fn member(&mut self) -> Result<Member, FrameError> {
        Ok(Member { node: self.i32()?, epoch: self.i64()? })
    }

    fn uuid(&mut self) -> Result<Uuid, FrameError> {
        Ok(Uuid::from_bytes(self.take()?))
    }

    fn epoch(&mut self) -> Result<i32, FrameError> {
        let epoch = self.i32()?;
        if epoch < 0 { Err(FrameError::Field("epoch")) } else { Ok(epoch) }
    }

    fn offset(&mut self) -> Result<i64, FrameError> {
        let offset = self.i64()?;
        if offset < 0 { Err(FrameError::Field("offset")) } else { Ok(offset) }
    }

    fn size(&mut self) -> Result<usize, FrameError> {
        usize::try_from(self.u32()?).map_err(|_| FrameError::Length)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn i32(&mut self) -> Result<i32, FrameError> {
        Ok(i32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn i64(&mut self) -> Result<i64, FrameError> {
        Ok(i64::from_le_bytes(self.take()?))
    }
}
