//! `millrace produce`: a record per line of standard input.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, stdin},
};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use millrace_client::{ClientError, Cluster, ProducerId, partition_of_key};
use millrace_engine::batch::{BatchBuilder, Codec, Record, increment_sequence};

use super::broker::BrokerArgs;
use crate::{
    config::{ByteSize, Setting},
    failure::{Failure, Outcome},
    output::{reason, say},
    time,
};

/// Writes each line of standard input as a record
///
/// Lines are sent as they come: typed ones at once, piped ones in batches. With a key, a record goes to the partition
/// that Kafka's Java client would choose; without one, batches go around the partitions.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ProduceCommand {
    /// The topic; created if the broker does that by itself
    topic: String,
    /// Text between key and value of a line; \t for a tabulator
    #[arg(short, long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// Value that means none: a tombstone
    #[arg(long, value_name = "TEXT")]
    null_value: Option<String>,
    /// Header of every record; may be given several times
    #[arg(short = 'H', long, value_name = "NAME=VALUE")]
    header: Vec<Setting>,
    /// Partition for all records
    #[arg(short, long, value_name = "INDEX", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    codec: CodecName,
    /// Who must have a batch before it counts as written
    #[arg(long, value_enum, default_value = "all")]
    acks: Acks,
    /// Let the broker drop what is sent twice after a broken connection; needs --acks all
    #[arg(long)]
    idempotent: bool,
    /// Largest batch before compression
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    batch_bytes: ByteSize,
    /// Say nothing about what was written
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

const EXAMPLES: &str = "\
Examples:
  echo hello | millrace produce greetings
  printf 'en:hello\\nde:hallo\\n' | millrace produce greetings --key-separator :
  millrace produce access-log --codec zstd --idempotent < access.log";

/// Names of codecs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CodecName {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Whose word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Acks {
    /// Nobody's: send and forget
    #[value(name = "0")]
    None,
    /// The leader's
    #[value(name = "1")]
    Leader,
    /// That of the leader and all replicas in sync
    All,
}

/// Longest line that is read. Brokers refuse such records long before.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Largest batch to collect: with one more line of the longest kind it stays below the 2 GiB that a batch can have.
const BATCH_BYTES_MAX: ByteSize = ByteSize::mib(256);

/// What standard input is read in: as much as may be sent before the next look at it.
const READ_BYTES: usize = 1 << 20;

impl CodecName {
    fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Gzip => Codec::Gzip,
            Self::Snappy => Codec::Snappy,
            Self::Lz4 => Codec::Lz4,
            Self::Zstd => Codec::Zstd,
        }
    }
}

/// A line taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    key: Option<Bytes>,
    value: Option<Bytes>,
}

/// How lines are taken apart. Pure.
#[derive(Debug)]
struct LineFormat {
    key_separator: Option<Vec<u8>>,
    null_value: Option<Vec<u8>>,
}

impl LineFormat {
    fn parse(&self, line: &[u8]) -> Result<Line, String> {
        let (key, value) = match &self.key_separator {
            None => (None, line),
            Some(separator) => {
                let at = line.windows(separator.len()).position(|window| window == separator.as_slice());
                let at = at.ok_or_else(|| {
                    format!("no key: the separator '{}' is not in it", String::from_utf8_lossy(separator))
                })?;
                (Some(Bytes::copy_from_slice(&line[..at])), &line[at + separator.len()..])
            }
        };
        let is_null = self.null_value.as_deref() == Some(value);
        Ok(Line { key, value: (!is_null).then(|| Bytes::copy_from_slice(value)) })
    }
}

/// One partition's open batch and place in its sequence.
#[derive(Debug, Default)]
struct Lane {
    open: Option<BatchBuilder>,
    next_sequence: i32,
}

/// Collects records into batches and sends them.
struct Writer {
    cluster: Cluster,
    topic: String,
    partitions: i32,
    partition: Option<i32>,
    /// Where records without a key go until the next flush.
    current: i32,
    codec: Codec,
    acks: i16,
    producer: Option<ProducerId>,
    batch_bytes: usize,
    lanes: BTreeMap<i32, Lane>,
    written: BTreeMap<i32, Written>,
}

/// What was written to a partition.
#[derive(Debug, Default)]
struct Written {
    records: u64,
    /// First and last offset, if the broker told.
    offsets: Option<(i64, i64)>,
}

impl ProduceCommand {
    pub(crate) fn run(self) -> Outcome {
        if self.idempotent && self.acks != Acks::All {
            return Err(Failure::usage("--idempotent needs --acks all"));
        }
        if self.batch_bytes > BATCH_BYTES_MAX {
            return Err(Failure::usage(format!("--batch-bytes {}: at most {BATCH_BYTES_MAX}", self.batch_bytes)));
        }
        if self.key_separator.as_deref() == Some("") {
            return Err(Failure::usage("--key-separator must not be empty"));
        }
        let format = LineFormat {
            key_separator: self.key_separator.as_deref().map(|text| text.replace("\\t", "\t").into_bytes()),
            null_value: self.null_value.clone().map(String::into_bytes),
        };
        let header = |h: &Setting| (Bytes::from(h.key.clone()), Some(Bytes::from(h.value.clone())));
        let headers: Vec<_> = self.header.iter().map(header).collect();
        let mut writer = self.writer()?;
        let result = write_lines(&mut writer, &format, &headers);
        if !self.quiet {
            writer.report();
        }
        result
    }

    fn writer(&self) -> Outcome<Writer> {
        let mut cluster = self.broker.cluster();
        let topic = cluster.topic(&self.topic, true).map_err(Failure::failed)?;
        let partitions = i32::try_from(topic.partitions.len()).map_err(Failure::failed)?;
        if let Some(partition) = self.partition.filter(|partition| *partition >= partitions) {
            let error = ClientError::no_such_partition(&self.topic, partition, topic.partitions.len());
            return Err(Failure::failed(error));
        }
        let producer = match self.idempotent {
            true => Some(cluster.init_producer_id().map_err(Failure::failed)?),
            false => None,
        };
        Ok(Writer {
            cluster,
            topic: self.topic.clone(),
            partitions,
            partition: self.partition,
            current: 0,
            codec: self.codec.codec(),
            acks: match self.acks {
                Acks::None => 0,
                Acks::Leader => 1,
                Acks::All => -1,
            },
            producer,
            batch_bytes: self.batch_bytes.as_usize(),
            lanes: BTreeMap::new(),
            written: BTreeMap::new(),
        })
    }
}

fn write_lines(writer: &mut Writer, format: &LineFormat, headers: &[(Bytes, Option<Bytes>)]) -> Outcome {
    let mut input = BufReader::with_capacity(READ_BYTES, stdin().lock());
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = (&mut input).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(|e| Failure::failed(format!("cannot read standard input: {}", reason(&e))))? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 == LINE_BYTES_MAX {
            writer.flush()?;
            return Err(Failure::failed(format!("line {number} is longer than {}", ByteSize(LINE_BYTES_MAX))));
        }
        match format.parse(&line) {
            Ok(parsed) => writer.push(parsed, headers)?,
            Err(reason) => {
                writer.flush()?;
                return Err(Failure::failed(format!("line {number}: {reason}")));
            }
        }
        // Nothing more at hand: whoever types should not wait for a batch to fill.
        if input.buffer().is_empty() {
            writer.flush()?;
        }
    }
    writer.flush()
}

impl Writer {
    fn push(&mut self, line: Line, headers: &[(Bytes, Option<Bytes>)]) -> Outcome {
        let mut partition = self.partition_of(&line);
        let of_header = |(name, value): &(Bytes, Option<Bytes>)| name.len() + value.as_ref().map_or(0, Bytes::len);
        let size = line.key.as_ref().map_or(0, Bytes::len)
            + line.value.as_ref().map_or(0, Bytes::len)
            + headers.iter().map(of_header).sum::<usize>();
        let open = self.lanes.get(&partition).and_then(|lane| lane.open.as_ref());
        if open.is_some_and(|open| open.size() + size > self.batch_bytes) {
            self.send(partition)?;
            partition = self.partition_of(&line);
        }
        let lane = self.lanes.entry(partition).or_default();
        let codec = self.codec;
        let builder = lane.open.get_or_insert_with(|| BatchBuilder::new(codec, 0));
        builder.push(&Record {
            offset: builder.record_count().into(),
            timestamp: time::now_ms(),
            key: line.key,
            value: line.value,
            headers: headers.to_vec(),
        });
        match builder.size() >= self.batch_bytes {
            true => self.send(partition),
            false => Ok(()),
        }
    }

    fn partition_of(&self, line: &Line) -> i32 {
        match (self.partition, &line.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of_key(key, self.partitions),
            (None, None) => self.current,
        }
    }

    /// Sends everything that is open. Records without a key go to the next partition from now on.
    fn flush(&mut self) -> Outcome {
        let open: Vec<i32> = self.lanes.iter().filter(|(_, lane)| lane.open.is_some()).map(|(p, _)| *p).collect();
        for partition in open {
            self.send(partition)?;
        }
        Ok(())
    }

    fn send(&mut self, partition: i32) -> Outcome {
        let lane = self.lanes.entry(partition).or_default();
        let Some(mut builder) = lane.open.take() else { return Ok(()) };
        let count = builder.record_count();
        if let Some(producer) = self.producer {
            builder = builder.producer(producer.id, producer.epoch, lane.next_sequence);
            lane.next_sequence = increment_sequence(lane.next_sequence, count);
        }
        let batch = Bytes::from(builder.finish());
        let idempotent = self.producer.is_some();
        let base = self.cluster.produce(&self.topic, partition, &batch, self.acks, idempotent);
        let base = base.map_err(not_written)?;
        let written = self.written.entry(partition).or_default();
        written.records += u64::try_from(count).unwrap_or(0);
        if let Some(base) = base {
            let first = written.offsets.map_or(base, |(first, _)| first);
            written.offsets = Some((first, base + i64::from(count) - 1));
        }
        if partition == self.current {
            self.current = (self.current + 1) % self.partitions;
        }
        Ok(())
    }

    /// Says on standard error what was written.
    fn report(&self) {
        let records: u64 = self.written.values().map(|written| written.records).sum();
        let verb = if self.acks == 0 { "sent, nobody said whether they arrived" } else { "written" };
        let noun = if records == 1 { "record" } else { "records" };
        say(format_args!("{records} {noun} {verb}"));
        for (partition, written) in &self.written {
            match written.offsets {
                Some((first, last)) => say(format_args!("  partition {partition}: offsets {first} to {last}")),
                None => say(format_args!("  partition {partition}: {} records", written.records)),
            }
        }
    }
}

/// Why a batch was not written, and what would have helped.
fn not_written(error: ClientError) -> Failure {
    match error {
        ClientError::MaybeWritten { .. } => Failure::failed(format_args!("{error} (see --idempotent)")),
        error => Failure::failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_have_written_twice_hears_of_idempotence() {
        let lost = ClientError::Lost { address: "a:1".into(), source: std::io::ErrorKind::UnexpectedEof.into() };
        let error = ClientError::MaybeWritten { what: "topic 't' partition 0".into(), source: Box::new(lost) };
        let Failure::Failed(message) = not_written(error) else { panic!() };
        let expected = "topic 't' partition 0: lost the connection to a:1: closed by the broker; \
            not sent again, since it may have been written (see --idempotent)";
        assert_eq!(message, expected);
    }

    fn line(key: Option<&'static str>, value: Option<&'static str>) -> Line {
        Line { key: key.map(Bytes::from), value: value.map(Bytes::from) }
    }

    #[test]
    fn a_line_is_a_value_unless_keys_are_asked_for() {
        let plain = LineFormat { key_separator: None, null_value: None };
        assert_eq!(plain.parse(b"a:b"), Ok(line(None, Some("a:b"))));
        assert_eq!(plain.parse(b""), Ok(line(None, Some(""))));
        let keyed = LineFormat { key_separator: Some(b":".to_vec()), null_value: Some(b"NULL".to_vec()) };
        assert_eq!(keyed.parse(b"a:b:c"), Ok(line(Some("a"), Some("b:c"))));
        assert_eq!(keyed.parse(b":b"), Ok(line(Some(""), Some("b"))));
        assert_eq!(keyed.parse(b"a:NULL"), Ok(line(Some("a"), None)));
        assert!(keyed.parse(b"no key here").is_err());
    }
}
