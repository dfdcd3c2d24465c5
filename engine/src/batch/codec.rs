//! Compression of a batch's records, in the framings that Kafka's clients write.
//!
//! Decompression streams: a decoder holds its window and one buffer, never the whole, and stops at
//! [`DECOMPRESSED_BYTES_MAX`] however small the compressed bytes were.

use std::io::{self, BufRead, Read, Write};

use bytes::{Bytes, buf::Reader};

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

/// A codec, at a level of its own scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compression {
    /// The codec.
    pub codec: Codec,
    /// How hard it tries, as Kafka counts: `compression.gzip.level`, `compression.lz4.level`, `compression.zstd.level`.
    /// The others have none.
    pub level: i32,
}

impl From<Codec> for Compression {
    /// At Kafka's default level.
    fn from(codec: Codec) -> Self {
        let level = match codec {
            Codec::None | Codec::Snappy => 0,
            Codec::Gzip => GZIP_LEVEL_DEFAULT,
            Codec::Lz4 => LZ4_LEVEL_DEFAULT,
            Codec::Zstd => zstd::DEFAULT_COMPRESSION_LEVEL,
        };
        Self { codec, level }
    }
}

/// zlib's own choice.
const GZIP_LEVEL_DEFAULT: i32 = -1;

/// As in Kafka, this level is the fast compressor, and all others are the thorough one.
const LZ4_LEVEL_DEFAULT: i32 = 9;
/// Below, liblz4 would take the fast compressor.
const LZ4_LEVEL_THOROUGH_MIN: i32 = 2;

/// From this level on zstd's own choice of tables and window takes more than 16 MiB, up to hundreds.
const ZSTD_LEVEL_BOUNDED: i32 = 10;
/// What it gets instead, as powers of two: 2 MiB of window, and 8 MiB for each of two tables. A batch is rarely larger
/// than that window.
const ZSTD_WINDOW_LOG: u32 = 21;
const ZSTD_TABLE_LOG: u32 = 21;

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
    Lz4Thorough(lz4::Encoder<Vec<u8>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    /// Compresses to the end of `out`.
    pub(super) fn new(compression: Compression, out: Vec<u8>) -> Self {
        let Compression { codec, level } = compression;
        match codec {
            Codec::None => Encoder::None(out),
            Codec::Gzip => {
                let level =
                    u32::try_from(level).map_or_else(|_| flate2::Compression::default(), flate2::Compression::new);
                Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(out, level)))
            }
            Codec::Snappy => Encoder::Snappy(SnappyEncoder::new(out)),
            Codec::Lz4 if level == LZ4_LEVEL_DEFAULT => {
                use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
                let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
                Encoder::Lz4(Box::new(FrameEncoder::with_frame_info(info, out)))
            }
            Codec::Lz4 => Encoder::Lz4Thorough(lz4_thorough(level, out)),
            Codec::Zstd => {
                Encoder::Zstd(Box::new(zstd_encoder(level, out).expect("checked settings, and memory to allocate")))
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
            Encoder::Lz4Thorough(encoder) => encoder.write_all(records),
            Encoder::Zstd(encoder) => encoder.write_all(records),
        };
        written.expect("writing to memory does not fail");
    }

    /// Bytes in `out` so far: what was written last may not be among them.
    pub(super) fn compressed(&self) -> usize {
        match self {
            Encoder::None(out) => out.len(),
            Encoder::Gzip(encoder) => encoder.get_ref().len(),
            Encoder::Snappy(encoder) => encoder.out.len(),
            Encoder::Lz4(encoder) => encoder.get_ref().len(),
            Encoder::Lz4Thorough(encoder) => encoder.writer().len(),
            Encoder::Zstd(encoder) => encoder.get_ref().len(),
        }
    }

    /// `out`, with all compressed bytes.
    pub(super) fn finish(self) -> Vec<u8> {
        let done = match self {
            Encoder::None(out) => Ok(out),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Snappy(encoder) => Ok(encoder.finish()),
            Encoder::Lz4(encoder) => encoder.finish().map_err(io::Error::other),
            Encoder::Lz4Thorough(encoder) => {
                let (out, ended) = encoder.finish();
                ended.map(|()| out)
            }
            Encoder::Zstd(encoder) => encoder.finish(),
        };
        done.expect("writing to memory does not fail")
    }
}

/// The frames are those of the fast compressor: independent blocks of 64 KiB, no checksums.
fn lz4_thorough(level: i32, out: Vec<u8>) -> lz4::Encoder<Vec<u8>> {
    use lz4::{BlockMode, BlockSize, ContentChecksum, EncoderBuilder, liblz4::BlockChecksum};
    let mut builder = EncoderBuilder::new();
    builder
        .level(level.max(LZ4_LEVEL_THOROUGH_MIN).unsigned_abs())
        .block_mode(BlockMode::Independent)
        .block_size(BlockSize::Max64KB)
        .block_checksum(BlockChecksum::NoBlockChecksum)
        .checksum(ContentChecksum::NoChecksum);
    builder.build(out).expect("writing to memory does not fail")
}

fn zstd_encoder(level: i32, out: Vec<u8>) -> io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    use zstd::zstd_safe::CParameter::{ChainLog, HashLog};
    let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
    if level >= ZSTD_LEVEL_BOUNDED {
        encoder.window_log(ZSTD_WINDOW_LOG)?;
        encoder.set_parameter(HashLog(ZSTD_TABLE_LOG))?;
        encoder.set_parameter(ChainLog(ZSTD_TABLE_LOG))?;
    }
    Ok(encoder)
}

/// Compresses all of a batch's records.
#[cfg(test)]
pub(super) fn compress(compression: impl Into<Compression>, records: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(compression.into(), Vec::new());
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
    fn new(mut out: Vec<u8>) -> Self {
        out.extend_from_slice(&XERIAL_MAGIC);
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

/// Compressed bytes, all in one piece.
pub(super) trait Compressed: BufRead {
    /// Those that were not consumed.
    fn rest(&self) -> &[u8];
}

impl Compressed for &[u8] {
    fn rest(&self) -> &[u8] {
        self
    }
}

/// For decoders that outlive a call.
impl Compressed for Reader<Bytes> {
    fn rest(&self) -> &[u8] {
        self.get_ref()
    }
}

/// Decompresses as it is read from.
pub(super) enum Decoder<C: Compressed> {
    Gzip(Box<flate2::bufread::MultiGzDecoder<C>>),
    Snappy(Snappy<C>),
    Lz4(Box<lz4_flex::frame::FrameDecoder<C>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, C>>),
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

impl<C: Compressed> Decoder<C> {
    /// Starts on the compressed bytes. `None` for [`Codec::None`], which needs no decoder.
    pub(super) fn new(codec: Codec, compressed: C) -> Result<Option<Self>, BatchError> {
        Ok(Some(match codec {
            Codec::None => return Ok(None),
            Codec::Gzip => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(compressed))),
            Codec::Snappy => Decoder::Snappy(Snappy::new(compressed)?),
            Codec::Lz4 => {
                check_lz4_header(compressed.rest())?;
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
        let compressed = match self {
            Decoder::Gzip(decoder) => decoder.get_ref(),
            Decoder::Snappy(decoder) => &decoder.compressed,
            Decoder::Lz4(decoder) => decoder.get_ref(),
            Decoder::Zstd(decoder) => decoder.get_ref(),
        };
        compressed.rest().len()
    }
}

impl<C: Compressed> Read for Decoder<C> {
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
pub(super) struct Snappy<C> {
    compressed: C,
    framed: bool,
    block: Vec<u8>,
    /// First byte of `block` that nobody has read.
    at: usize,
}

impl<C: Compressed> Snappy<C> {
    fn new(mut compressed: C) -> Result<Self, BatchError> {
        let framed = compressed.rest().starts_with(&XERIAL_MAGIC);
        if framed {
            check_xerial_header(compressed.rest())?;
            compressed.consume(XERIAL_HEADER_BYTES);
        }
        Ok(Self { compressed, framed, block: Vec::new(), at: 0 })
    }

    /// Decompresses the next block; false at the end.
    fn next_block(&mut self) -> Result<bool, BatchError> {
        // Streams may follow one another, each with a header of its own.
        while self.framed && self.compressed.rest().starts_with(&XERIAL_MAGIC) {
            check_xerial_header(self.compressed.rest())?;
            self.compressed.consume(XERIAL_HEADER_BYTES);
        }
        let rest = self.compressed.rest();
        if rest.is_empty() {
            return Ok(false);
        }
        let (header_bytes, block) = if self.framed { (size_of::<i32>(), framed_block(rest)?) } else { (0, rest) };
        decompress_block(block, &mut self.block)?;
        self.at = 0;
        let consumed = header_bytes + block.len();
        self.compressed.consume(consumed);
        Ok(true)
    }
}

/// The block behind its length.
fn framed_block(rest: &[u8]) -> Result<&[u8], BatchError> {
    let (length, rest) = rest.split_first_chunk().ok_or_else(|| invalid("snappy: cut off"))?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok();
    let block = length.and_then(|length| rest.get(..length));
    block.ok_or_else(|| invalid("snappy: a block is longer than the batch"))
}

fn decompress_block(block: &[u8], into: &mut Vec<u8>) -> Result<(), BatchError> {
    let length = snap::raw::decompress_len(block).map_err(|e| invalid(format!("snappy: {e}")))?;
    if length > SNAPPY_BLOCK_BYTES_MAX || length > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
        return Err(invalid(format!("snappy: a block of {} bytes declares {length}", block.len())));
    }
    into.resize(length, 0);
    let decoded = snap::raw::Decoder::new().decompress(block, into);
    decoded.map(drop).map_err(|e| invalid(format!("snappy: {e}")))
}

fn check_xerial_header(stream: &[u8]) -> Result<(), BatchError> {
    let header = stream.first_chunk::<XERIAL_HEADER_BYTES>().ok_or_else(|| invalid("snappy: cut off"))?;
    if header[8..12] < 1i32.to_be_bytes()[..] || header[8] & 0x80 != 0 {
        return Err(invalid("snappy: unknown version of xerial's framing"));
    }
    Ok(())
}

impl<C: Compressed> Read for Snappy<C> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.next_block().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let n = into.len().min(self.block.len() - self.at);
        into[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
