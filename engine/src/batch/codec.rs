//! Compression of a batch's records, in the framings that Kafka's clients write.
//!
//! Decompression streams: a decoder holds its window and one buffer, never the whole, and stops at
//! [`DECOMPRESSED_BYTES_MAX`] however small the compressed bytes were.

use std::io::{self, Read, Write};

use super::{BatchError, header::CODEC_MASK, invalid};

/// Compression of a batch's records. The numbers are those of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not compressed.
    None = 0,
    /// RFC 1952.
    Gzip = 1,
    /// Snappy, in xerial's framing (as Java writes it) or as one bare block (as librdkafka does).
    Snappy = 2,
    /// LZ4 frames of independent blocks (KIP-57).
    Lz4 = 3,
    /// Zstandard (KIP-110).
    Zstd = 4,
}

impl Codec {
    /// The codec that a batch's attributes name.
    pub fn from_attributes(attributes: i16) -> Result<Codec, BatchError> {
        match attributes & CODEC_MASK {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Gzip),
            2 => Ok(Codec::Snappy),
            3 => Ok(Codec::Lz4),
            4 => Ok(Codec::Zstd),
            other => Err(BatchError::UnsupportedCodec(other.to_le_bytes()[0])),
        }
    }

    /// Kafka's name of it, as `compression.type` has it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

/// A batch whose records take more than that when decompressed is refused, and reading stops there. Kafka has no such
/// limit, so a few KiB may keep its thread busy for seconds.
pub const DECOMPRESSED_BYTES_MAX: u64 = 256 << 20;

/// Largest snappy block, which is decompressed as a whole: xerial's are 32 KiB, librdkafka's bare ones as large as its
/// largest batch.
const SNAPPY_BLOCK_BYTES_MAX: usize = 64 << 20;
/// A snappy element of 3 bytes makes 64 at most; a block that declares more lies.
const SNAPPY_RATIO_MAX: usize = 22;

const XERIAL_MAGIC: [u8; 8] = *b"\x82SNAPPY\0";
/// Magic, version, oldest version that can read it.
const XERIAL_HEADER_BYTES: usize = 16;
const XERIAL_BLOCK_BYTES: usize = 32 << 10;

const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Version 1 in the two highest bits of the frame's flags.
const LZ4_VERSION_MASK: u8 = 0xC0;
const LZ4_VERSION: u8 = 0x40;
const LZ4_INDEPENDENT_BLOCKS: u8 = 0x20;

/// Compresses a batch's records as they come, so that long ones need neither be in memory at once nor take a long turn.
pub(super) enum Encoder {
    None(Vec<u8>),
    Gzip(Box<flate2::write::GzEncoder<Vec<u8>>>),
    Snappy(SnappyEncoder),
    Lz4(Box<lz4_flex::frame::FrameEncoder<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    pub(super) fn new(codec: Codec) -> Self {
        match codec {
            Codec::None => Encoder::None(Vec::new()),
            Codec::Gzip => {
                let level = flate2::Compression::default();
                Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(Vec::new(), level)))
            }
            Codec::Snappy => Encoder::Snappy(SnappyEncoder::new()),
            Codec::Lz4 => {
                use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
                let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
                Encoder::Lz4(Box::new(FrameEncoder::with_frame_info(info, Vec::new())))
            }
            Codec::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL);
                Encoder::Zstd(Box::new(encoder.expect("the default level is a level")))
            }
        }
    }

    pub(super) fn write(&mut self, records: &[u8]) {
        let written = match self {
            Encoder::None(out) => out.write_all(records),
            Encoder::Gzip(encoder) => encoder.write_all(records),
            Encoder::Snappy(encoder) => {
                encoder.write(records);
                Ok(())
            }
            Encoder::Lz4(encoder) => encoder.write_all(records),
            Encoder::Zstd(encoder) => encoder.write_all(records),
        };
        written.expect("writing to memory does not fail");
    }

    /// The compressed bytes.
    pub(super) fn finish(self) -> Vec<u8> {
        let done = match self {
            Encoder::None(out) => Ok(out),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Snappy(encoder) => Ok(encoder.finish()),
            Encoder::Lz4(encoder) => encoder.finish().map_err(io::Error::other),
            Encoder::Zstd(encoder) => encoder.finish(),
        };
        done.expect("writing to memory does not fail")
    }
}

/// Compresses all of a batch's records.
#[cfg(test)]
pub(super) fn compress(codec: Codec, records: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(codec);
    encoder.write(records);
    encoder.finish()
}

/// xerial's framing: blocks that are each compressed by themselves.
pub(super) struct SnappyEncoder {
    out: Vec<u8>,
    /// What does not make a block yet.
    block: Vec<u8>,
}

impl SnappyEncoder {
    fn new() -> Self {
        let mut out = XERIAL_MAGIC.to_vec();
        out.extend_from_slice(&1i32.to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
        Self { out, block: Vec::new() }
    }

    fn write(&mut self, mut records: &[u8]) {
        while !records.is_empty() {
            let (now, later) = records.split_at(records.len().min(XERIAL_BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            records = later;
            if self.block.len() == XERIAL_BLOCK_BYTES {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let compressed = snap::raw::Encoder::new().compress_vec(&self.block);
        let compressed = compressed.expect("a block is far below snappy's 4 GiB");
        let length = u32::try_from(compressed.len()).expect("a block is small");
        self.out.extend_from_slice(&length.to_be_bytes());
        self.out.extend_from_slice(&compressed);
        self.block.clear();
    }

    fn finish(mut self) -> Vec<u8> {
        if !self.block.is_empty() {
            self.end_block();
        }
        self.out
    }
}

/// Decompresses as it is read from.
pub(super) enum Decoder<'a> {
    Gzip(Box<flate2::bufread::MultiGzDecoder<&'a [u8]>>),
    Snappy(Snappy<'a>),
    Lz4(Box<lz4_flex::frame::FrameDecoder<&'a [u8]>>),
    Zstd(Box<zstd::stream::read::Decoder<'a, &'a [u8]>>),
}

/// Why bytes could not be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// They make more than was allowed.
    #[error("too large when decompressed")]
    TooLarge,
    /// They were not made by that codec.
    #[error("{0}")]
    Damaged(String),
}

/// Window that a frame of Zstandard may ask for, as a power of two: more than any level makes of as few bytes.
const SMALL_WINDOW_LOG: u32 = 23;

/// Decompresses bytes that are no batch, to `bytes_max` at most.
pub fn decompress(codec: Codec, compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, DecompressError> {
    let damaged = |reason: String| DecompressError::Damaged(reason);
    let mut decoder = match Decoder::new(codec, compressed).map_err(|error| damaged(error.to_string()))? {
        Some(decoder) => decoder,
        None if compressed.len() > bytes_max => return Err(DecompressError::TooLarge),
        None => return Ok(compressed.to_vec()),
    };
    if let Decoder::Zstd(decoder) = &mut decoder {
        decoder.window_log_max(SMALL_WINDOW_LOG).map_err(|error| damaged(error.to_string()))?;
    }
    let mut out = Vec::new();
    let read = decoder.take(bytes_max as u64 + 1).read_to_end(&mut out);
    read.map_err(|error| damaged(error.to_string()))?;
    if out.len() > bytes_max { Err(DecompressError::TooLarge) } else { Ok(out) }
}

impl<'a> Decoder<'a> {
    /// Starts on the compressed bytes. `None` for [`Codec::None`], which needs no decoder.
    pub(super) fn new(codec: Codec, compressed: &'a [u8]) -> Result<Option<Self>, BatchError> {
        Ok(Some(match codec {
            Codec::None => return Ok(None),
            Codec::Gzip => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(compressed))),
            Codec::Snappy => Decoder::Snappy(Snappy::new(compressed)?),
            Codec::Lz4 => {
                check_lz4_header(compressed)?;
                Decoder::Lz4(Box::new(lz4_flex::frame::FrameDecoder::new(compressed)))
            }
            Codec::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(compressed);
                Decoder::Zstd(Box::new(decoder.map_err(|e| invalid(format!("zstd: {e}")))?))
            }
        }))
    }

    /// Compressed bytes that were not needed. To be asked when everything was read.
    pub(super) fn unread(&self) -> usize {
        match self {
            Decoder::Gzip(decoder) => decoder.get_ref().len(),
            Decoder::Snappy(decoder) => decoder.rest.len(),
            Decoder::Lz4(decoder) => decoder.get_ref().len(),
            Decoder::Zstd(decoder) => decoder.get_ref().len(),
        }
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Gzip(decoder) => decoder.read(into),
            Decoder::Snappy(decoder) => decoder.read(into),
            Decoder::Lz4(decoder) => decoder.read(into),
            Decoder::Zstd(decoder) => decoder.read(into),
        }
    }
}

/// Refuses frames that Kafka's Java client cannot read: other magics, and blocks that lean on earlier ones.
fn check_lz4_header(frame: &[u8]) -> Result<(), BatchError> {
    let flags = match frame {
        [a, b, c, d, flags, ..] if [*a, *b, *c, *d] == LZ4_MAGIC => *flags,
        _ => return Err(invalid("lz4: not a frame")),
    };
    if flags & LZ4_VERSION_MASK != LZ4_VERSION {
        return Err(invalid("lz4: unknown version of the frame format"));
    }
    if flags & LZ4_INDEPENDENT_BLOCKS == 0 {
        return Err(invalid("lz4: blocks must not depend on each other"));
    }
    Ok(())
}

/// Reads both framings of snappy, block by block.
pub(super) struct Snappy<'a> {
    rest: &'a [u8],
    framed: bool,
    block: Vec<u8>,
    /// First byte of `block` that nobody has read.
    at: usize,
}

impl<'a> Snappy<'a> {
    fn new(compressed: &'a [u8]) -> Result<Self, BatchError> {
        let framed = compressed.starts_with(&XERIAL_MAGIC);
        let rest = if framed { xerial_body(compressed)? } else { compressed };
        Ok(Self { rest, framed, block: Vec::new(), at: 0 })
    }

    /// The next compressed block; `None` at the end.
    fn next_block(&mut self) -> Result<Option<&'a [u8]>, BatchError> {
        if !self.framed {
            let whole = std::mem::take(&mut self.rest);
            return Ok((!whole.is_empty()).then_some(whole));
        }
        // Streams may follow one another, each with a header of its own.
        while self.rest.starts_with(&XERIAL_MAGIC) {
            self.rest = xerial_body(self.rest)?;
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (length, rest) = self.rest.split_first_chunk().ok_or_else(|| invalid("snappy: cut off"))?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let split = length.and_then(|length| rest.split_at_checked(length));
        let (block, rest) = split.ok_or_else(|| invalid("snappy: a block is longer than the batch"))?;
        self.rest = rest;
        Ok(Some(block))
    }

    fn decompress(&mut self, block: &[u8]) -> Result<(), BatchError> {
        let length = snap::raw::decompress_len(block).map_err(|e| invalid(format!("snappy: {e}")))?;
        if length > SNAPPY_BLOCK_BYTES_MAX || length > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
            return Err(invalid(format!("snappy: a block of {} bytes declares {length}", block.len())));
        }
        self.at = 0;
        self.block.resize(length, 0);
        let decoded = snap::raw::Decoder::new().decompress(block, &mut self.block);
        decoded.map(drop).map_err(|e| invalid(format!("snappy: {e}")))
    }
}

/// What follows xerial's header.
fn xerial_body(stream: &[u8]) -> Result<&[u8], BatchError> {
    let (header, body) = stream.split_first_chunk::<XERIAL_HEADER_BYTES>().ok_or_else(|| invalid("snappy: cut off"))?;
    if header[8..12] < 1i32.to_be_bytes()[..] || header[8] & 0x80 != 0 {
        return Err(invalid("snappy: unknown version of xerial's framing"));
    }
    Ok(body)
}

impl Read for Snappy<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            let Some(block) = self.next_block().map_err(io::Error::other)? else {
                return Ok(0);
            };
            self.decompress(block).map_err(io::Error::other)?;
        }
        let n = into.len().min(self.block.len() - self.at);
        into[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
