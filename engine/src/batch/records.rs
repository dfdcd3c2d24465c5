//! Walks the records of a batch: in place where they are not compressed, else through a decoder and one small buffer.
//! [`RecordReader`] also shows their contents, one record at a time.

use std::{io::Read, ops::ControlFlow};

use bytes::Bytes;

use super::{
    BATCH_HEADER_BYTES, BatchError, BatchInfo, DECOMPRESSED_BYTES_MAX, TimestampType,
    codec::{Codec, Decoder},
    invalid,
};

/// One record, for readers and for compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in ms, -1 for none; of a LogAppendTime batch, the time of the append.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers. Names are UTF-8 by convention; neither Kafka nor we check, and compaction keeps what was sent.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// All records of the batch at the start of `batch`, decompressed ([`DECOMPRESSED_BYTES_MAX`] at most).
pub fn records(batch: &[u8]) -> Result<Vec<Record>, BatchError> {
    let info = BatchInfo::parse(batch)?;
    let bytes = decompressed(&info, batch)?;
    let mut records = Vec::new();
    let mut headers = Vec::new();
    let mut cursor = Cursor::new(&info);
    let mut source = Slice::new(&bytes);
    let slice = |field: Option<&[u8]>| field.map(|field| bytes.slice_ref(field));
    while !cursor.at_end() {
        let raw = cursor.next(&mut source, |key, value| {
            headers.push((slice(key).unwrap_or_default(), slice(value)));
        })?;
        records.push(Record {
            offset: info.base_offset + i64::from(raw.offset_delta),
            timestamp: raw.timestamp,
            key: slice(raw.key),
            value: slice(raw.value),
            headers: std::mem::take(&mut headers),
        });
    }
    source.expect_end()?;
    Ok(records)
}

fn decompressed(info: &BatchInfo, batch: &[u8]) -> Result<Bytes, BatchError> {
    let body = &batch[BATCH_HEADER_BYTES..info.size];
    let Some(decoder) = Decoder::new(info.codec()?, body)? else {
        return Ok(Bytes::copy_from_slice(body));
    };
    let mut bytes = Vec::new();
    let read = decoder.take(DECOMPRESSED_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| invalid(format!("records do not decompress: {e}")))?;
    if bytes.len() as u64 > DECOMPRESSED_BYTES_MAX {
        return Err(too_long());
    }
    Ok(bytes.into())
}

#[cold]
fn too_long() -> BatchError {
    invalid(format!("records decompress to more than {DECOMPRESSED_BYTES_MAX} bytes"))
}

/// What is known of a record without its contents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) offset_delta: i32,
    pub(super) timestamp: i64,
    /// Base timestamp and delta overflow when they are added.
    pub(super) overflows: bool,
    pub(super) has_key: bool,
}

/// Shows the records of a batch to `look` until it breaks; then, or if all were seen, returns. Every record seen was
/// well-formed, and if all were seen nothing is left behind them.
pub(super) fn walk(
    info: &BatchInfo,
    batch: &[u8],
    mut look: impl FnMut(Head) -> ControlFlow<()>,
) -> Result<(), BatchError> {
    let body = batch.get(BATCH_HEADER_BYTES..info.size).ok_or_else(|| invalid("cut off"))?;
    match info.codec()? {
        Codec::None => walk_source(info, &mut Slice::new(body), &mut look),
        codec => match Decoder::new(codec, body)? {
            Some(decoder) => walk_source(info, &mut Stream::new(decoder), &mut look),
            None => Err(invalid("a codec without a decoder")),
        },
    }
}

fn walk_source<S: Source>(
    info: &BatchInfo,
    source: &mut S,
    look: &mut impl FnMut(Head) -> ControlFlow<()>,
) -> Result<(), BatchError> {
    let mut cursor = Cursor::new(info);
    while !cursor.at_end() {
        let raw = cursor.next(source, |_, _| {})?;
        let head = Head {
            offset_delta: raw.offset_delta,
            timestamp: raw.timestamp,
            overflows: raw.overflows,
            has_key: raw.has_key,
        };
        if look(head).is_break() {
            return Ok(());
        }
    }
    source.expect_end()
}

/// One record as it lies in its batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'r> {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in ms, -1 for none; of a LogAppendTime batch, the time of the append.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'r [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'r [u8]>,
    /// Bytes that it takes in the batch, before compression and without its length.
    pub size: usize,
    pub(super) attributes: u8,
    /// Its bytes from the offset delta on.
    pub(super) from_offset: &'r [u8],
}

/// Reads the records of one batch, one after the other. Only one is in memory at a time, so a caller may stop between
/// two for as long as it likes.
pub struct RecordReader<'a> {
    base_offset: i64,
    cursor: Cursor,
    source: ReadFrom<'a>,
    /// The last record, where it had to be decompressed.
    record: Vec<u8>,
}

enum ReadFrom<'a> {
    Slice(Slice<'a>),
    Stream(Stream<'a>),
}

impl<'a> RecordReader<'a> {
    /// Starts on the batch at the start of `batch`.
    pub fn new(batch: &'a [u8]) -> Result<Self, BatchError> {
        let info = BatchInfo::parse(batch)?;
        let body = &batch[BATCH_HEADER_BYTES..info.size];
        let source = match Decoder::new(info.codec()?, body)? {
            None => ReadFrom::Slice(Slice::new(body)),
            // The body of an empty batch is empty whatever its codec, and that is no stream.
            Some(_) if info.record_count == 0 && body.is_empty() => ReadFrom::Slice(Slice::new(body)),
            Some(decoder) => ReadFrom::Stream(Stream::new(decoder)),
        };
        Ok(Self { base_offset: info.base_offset, cursor: Cursor::new(&info), source, record: Vec::new() })
    }

    /// The next record; `None` behind the last one. After an error there is nothing more to be had.
    pub fn next_record(&mut self) -> Result<Option<RecordRef<'_>>, BatchError> {
        if self.cursor.at_end() {
            match &mut self.source {
                ReadFrom::Slice(slice) => slice.expect_end()?,
                ReadFrom::Stream(stream) => stream.expect_end()?,
            }
            return Ok(None);
        }
        let record = match &mut self.source {
            ReadFrom::Slice(slice) => {
                let length = record_length(slice)?;
                slice.field(length)?.unwrap_or_default()
            }
            ReadFrom::Stream(stream) => {
                let length = record_length(stream)?;
                stream.copy(length, &mut self.record)?;
                &self.record
            }
        };
        let raw = self.cursor.body(&mut Slice::new(record), record.len() as u64, |_, _| {})?;
        let timestamp_end = record.iter().skip(1).position(|byte| *byte < 0x80).unwrap_or_default() + 2;
        Ok(Some(RecordRef {
            offset: self.base_offset + i64::from(raw.offset_delta),
            timestamp: raw.timestamp,
            key: raw.key,
            value: raw.value,
            size: record.len(),
            attributes: record.first().copied().unwrap_or_default(),
            from_offset: record.get(timestamp_end..).unwrap_or_default(),
        }))
    }
}

fn record_length<S: Source>(source: &mut S) -> Result<usize, BatchError> {
    usize::try_from(source.varint()?).map_err(|_| invalid("a record's length is negative"))
}

/// Where in a batch's records one is, and what is known of all of them.
struct Cursor {
    left: i32,
    last_delta: i32,
    last_offset_delta: i32,
    base_timestamp: i64,
    append_time: Option<i64>,
}

/// A record as it was read.
struct Raw<F> {
    offset_delta: i32,
    timestamp: i64,
    overflows: bool,
    has_key: bool,
    key: F,
    value: F,
}

impl Cursor {
    fn new(info: &BatchInfo) -> Self {
        let stamped = info.timestamp_type() == TimestampType::LogAppendTime;
        Self {
            left: info.record_count,
            last_delta: -1,
            last_offset_delta: info.last_offset_delta,
            base_timestamp: info.base_timestamp,
            append_time: stamped.then_some(info.max_timestamp),
        }
    }

    fn at_end(&self) -> bool {
        self.left == 0
    }

    /// Reads one record:
    /// length, attributes (unused), timestamp delta, offset delta, key, value, number of headers, headers.
    fn next<S: Source>(
        &mut self,
        source: &mut S,
        header: impl FnMut(S::Field, S::Field),
    ) -> Result<Raw<S::Field>, BatchError> {
        let length = u64::try_from(source.varint()?).map_err(|_| invalid("a record's length is negative"))?;
        let end = source.position() + length;
        self.body(source, end, header)
    }

    /// Reads what follows a record's length, to `end`.
    #[inline]
    fn body<S: Source>(
        &mut self,
        source: &mut S,
        end: u64,
        mut header: impl FnMut(S::Field, S::Field),
    ) -> Result<Raw<S::Field>, BatchError> {
        source.byte()?;
        let timestamp_delta = source.varlong()?;
        let offset_delta = source.varint()?;
        if offset_delta <= self.last_delta || offset_delta > self.last_offset_delta {
            return Err(invalid(format!("offset delta {offset_delta} follows {}", self.last_delta)));
        }
        let key_length = source.varint()?;
        let key = source.nullable(key_length, end)?;
        let value_length = source.varint()?;
        let value = source.nullable(value_length, end)?;
        let headers = source.varint()?;
        if headers < 0 || i64::from(headers) > end.saturating_sub(source.position()).cast_signed() {
            return Err(invalid(format!("number of headers is {headers}")));
        }
        for _ in 0..headers {
            let name_length = source.varint()?;
            if name_length < 0 {
                return Err(invalid("a header's name is null"));
            }
            let name = source.nullable(name_length, end)?;
            let value_length = source.varint()?;
            header(name, source.nullable(value_length, end)?);
        }
        if source.position() != end {
            return Err(invalid("a record does not end where it should"));
        }
        self.left -= 1;
        self.last_delta = offset_delta;
        let (own, overflows) = self.base_timestamp.overflowing_add(timestamp_delta);
        let timestamp = self.append_time.unwrap_or(own);
        Ok(Raw { offset_delta, timestamp, overflows, has_key: key_length >= 0, key, value })
    }
}

/// Longest encodings: groups of 7 bits, lowest first.
const VARINT_BYTES_MAX: u32 = 5;
const VARLONG_BYTES_MAX: u32 = 10;

/// Bytes that records are read from.
trait Source {
    /// What reading a field gives.
    type Field;

    fn byte(&mut self) -> Result<u8, BatchError>;
    /// Bytes read so far.
    fn position(&self) -> u64;
    fn field(&mut self, length: usize) -> Result<Self::Field, BatchError>;
    fn null(&self) -> Self::Field;
    fn expect_end(&mut self) -> Result<(), BatchError>;

    /// A field of a length that was read: -1 is null. It must end before `end`.
    #[inline]
    fn nullable(&mut self, length: i32, end: u64) -> Result<Self::Field, BatchError> {
        match usize::try_from(length) {
            Ok(length) if self.position() + length as u64 <= end => self.field(length),
            Err(_) if length == -1 => Ok(self.null()),
            _ => Err(invalid(format!("a field's length is {length}"))),
        }
    }

    /// A zigzag number of 32 bits.
    #[inline]
    fn varint(&mut self) -> Result<i32, BatchError> {
        let value = self.unsigned(VARINT_BYTES_MAX)?;
        // Bits above the 32nd do not count, as in Kafka.
        let value = u32::try_from(value & u64::from(u32::MAX)).expect("masked to 32 bits");
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// A zigzag number of 64 bits.
    #[inline]
    fn varlong(&mut self) -> Result<i64, BatchError> {
        let value = self.unsigned(VARLONG_BYTES_MAX)?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    #[inline]
    fn unsigned(&mut self, bytes_max: u32) -> Result<u64, BatchError> {
        let mut value = 0;
        for place in 0..bytes_max {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(invalid("a number is longer than it may be"))
    }
}

/// Records that lie in memory.
struct Slice<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Slice<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, total: bytes.len() }
    }
}

#[cold]
fn cut_off() -> BatchError {
    invalid("records end before the declared count was reached")
}

#[cold]
fn left_over() -> BatchError {
    invalid("bytes are left behind the last record")
}

impl<'a> Source for Slice<'a> {
    type Field = Option<&'a [u8]>;

    #[inline]
    fn byte(&mut self) -> Result<u8, BatchError> {
        let (byte, rest) = self.rest.split_first().ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(*byte)
    }

    #[inline]
    fn position(&self) -> u64 {
        (self.total - self.rest.len()) as u64
    }

    #[inline]
    fn field(&mut self, length: usize) -> Result<Self::Field, BatchError> {
        let (field, rest) = self.rest.split_at_checked(length).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(Some(field))
    }

    fn null(&self) -> Self::Field {
        None
    }

    fn expect_end(&mut self) -> Result<(), BatchError> {
        if self.rest.is_empty() { Ok(()) } else { Err(left_over()) }
    }
}

/// Size of the buffer between a decoder and the walk.
const STREAM_BUFFER_BYTES: usize = 32 << 10;

/// Records that are being decompressed; their contents are skipped.
struct Stream<'a> {
    decoder: Decoder<&'a [u8]>,
    buffer: Vec<u8>,
    /// Unread part of the buffer.
    start: usize,
    end: usize,
    /// Bytes decompressed so far.
    total: u64,
}

impl<'a> Stream<'a> {
    fn new(decoder: Decoder<&'a [u8]>) -> Self {
        Self { decoder, buffer: vec![0; STREAM_BUFFER_BYTES], start: 0, end: 0, total: 0 }
    }

    /// Reads `length` bytes into `out`, which grows only as they come.
    fn copy(&mut self, length: usize, out: &mut Vec<u8>) -> Result<(), BatchError> {
        out.clear();
        while out.len() < length {
            if self.start == self.end && !self.fill()? {
                return Err(cut_off());
            }
            let now = (length - out.len()).min(self.end - self.start);
            out.extend_from_slice(&self.buffer[self.start..self.start + now]);
            self.start += now;
        }
        Ok(())
    }

    /// Fills the empty buffer; false at the end.
    fn fill(&mut self) -> Result<bool, BatchError> {
        let read = self.decoder.read(&mut self.buffer);
        self.start = 0;
        self.end = read.map_err(|e| invalid(format!("records do not decompress: {e}")))?;
        self.total += self.end as u64;
        if self.total > DECOMPRESSED_BYTES_MAX {
            return Err(too_long());
        }
        Ok(self.end > 0)
    }
}

impl Source for Stream<'_> {
    type Field = ();

    #[inline]
    fn byte(&mut self) -> Result<u8, BatchError> {
        if self.start == self.end && !self.fill()? {
            return Err(cut_off());
        }
        let byte = self.buffer[self.start];
        self.start += 1;
        Ok(byte)
    }

    #[inline]
    fn position(&self) -> u64 {
        self.total - (self.end - self.start) as u64
    }

    #[inline]
    fn field(&mut self, length: usize) -> Result<(), BatchError> {
        let mut left = length;
        while left > self.end - self.start {
            left -= self.end - self.start;
            if !self.fill()? {
                return Err(cut_off());
            }
        }
        self.start += left;
        Ok(())
    }

    fn null(&self) {}

    fn expect_end(&mut self) -> Result<(), BatchError> {
        if self.start != self.end || self.fill()? || self.decoder.unread() != 0 {
            return Err(left_over());
        }
        Ok(())
    }
}
