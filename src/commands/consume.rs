//! `millrace consume`: records to standard output.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufWriter, Write, stdout},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use millrace_client::{ClientError, Cluster, FetchFrom, Fetched, IsolationLevel, OffsetQuestion};
use millrace_engine::batch::{CommittedBatches, batches, records, verify_crc};

use super::{
    broker::BrokerArgs,
    record_format::{Context, Field, RecordFormat},
};
use crate::{
    failure::{Failure, Outcome},
    output::say,
    time,
};

/// Prints the records of a topic
///
/// From the first record to what is there now, unless told otherwise. Records of one partition are printed in order;
/// those of several partitions are mixed as they arrive.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConsumeCommand {
    /// The topic
    topic: String,
    /// Partition to read; may be given several times [default: all]
    #[arg(short, long, value_name = "INDEX", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// Where to begin: an offset, earliest, latest, or -N for the last N records of each partition
    #[arg(short = 'o', long, value_name = "OFFSET", allow_hyphen_values = true, conflicts_with = "from_time")]
    from_offset: Option<Start>,
    /// Begin with the first record of this time or later: RFC 3339, ms since 1970, or -1h for an hour ago
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from_time: Option<String>,
    /// Stop after that many records
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// Go on and wait for new records
    #[arg(short, long)]
    follow: bool,
    /// What to read of transactions: only those that are committed, or everything
    #[arg(long, value_enum, default_value = "read_committed", value_name = "LEVEL")]
    isolation: Isolation,
    /// What to print before the value, separated by tabulators
    #[arg(short, long, value_enum, value_delimiter = ',', value_name = "FIELDS")]
    show: Vec<Field>,
    /// How to print a record: %t topic, %p partition, %o offset, %k key, %v value, %d date, %T ms, %h headers, %K %V
    /// sizes, %% percent; \n \t \0 as usual
    #[arg(long, value_name = "FORMAT", conflicts_with = "show")]
    format: Option<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

const EXAMPLES: &str = "\
Examples:
  millrace consume greetings
  millrace consume greetings --show partition,offset,timestamp,key
  millrace consume greetings --follow --from-offset latest
  millrace consume greetings --from-time -1h --count 10
  millrace consume greetings --format '%o %k=%v\\n'";

/// What is read of transactions, in Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Isolation {
    /// Up to the first transaction that is open, and nothing of those that were aborted
    ReadCommitted,
    /// Everything
    ReadUncommitted,
}

impl Isolation {
    fn level(self) -> IsolationLevel {
        match self {
            Self::ReadCommitted => IsolationLevel::ReadCommitted,
            Self::ReadUncommitted => IsolationLevel::ReadUncommitted,
        }
    }

    fn latest(self) -> OffsetQuestion {
        match self {
            Self::ReadCommitted => OffsetQuestion::LatestCommitted,
            Self::ReadUncommitted => OffsetQuestion::Latest,
        }
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Earliest,
    Latest,
    Offset(i64),
    /// That many before the end.
    Last(i64),
}

impl std::str::FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<i64>()) {
            ("earliest" | "beginning", _) => Ok(Self::Earliest),
            ("latest" | "end", _) => Ok(Self::Latest),
            (_, Ok(back)) if back < 0 && back != i64::MIN => Ok(Self::Last(-back)),
            (_, Ok(offset)) if offset >= 0 => Ok(Self::Offset(offset)),
            _ => Err("write an offset, earliest, latest, or -N for the last N records".to_owned()),
        }
    }
}

/// How long the broker may keep a fetch when there is nothing new.
const WAIT: Duration = Duration::from_millis(500);

/// Pause before a partition is asked again that answered with a passing error.
const ERROR_PAUSE: Duration = Duration::from_millis(200);

const OFFSET_OUT_OF_RANGE: i16 = 1;

/// The place in each partition.
#[derive(Clone, Copy, Debug)]
struct Place {
    next: i64,
    /// Where to stop; `None` when following.
    end: Option<i64>,
}

impl Place {
    fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }
}

struct Reader<W: Write> {
    cluster: Cluster,
    topic: String,
    places: BTreeMap<i32, Place>,
    /// Since when a partition has answered with passing errors only.
    failing: BTreeMap<i32, Instant>,
    /// Records still to print.
    left: u64,
    isolation: IsolationLevel,
    format: RecordFormat,
    out: W,
}

impl ConsumeCommand {
    pub(crate) fn run(self) -> Outcome {
        let format = match &self.format {
            Some(text) => RecordFormat::parse(text).map_err(Failure::usage)?,
            None => RecordFormat::columns(&self.show),
        };
        let from_time = match &self.from_time {
            Some(text) => Some(time::parse(text, time::now_ms()).map_err(Failure::usage)?),
            None => None,
        };
        let mut cluster = self.broker.cluster();
        let places = self.places(&mut cluster, from_time)?;
        let mut reader = Reader {
            cluster,
            topic: self.topic,
            places,
            failing: BTreeMap::new(),
            left: self.count.unwrap_or(u64::MAX),
            isolation: self.isolation.level(),
            format,
            out: BufWriter::new(stdout().lock()),
        };
        reader.read()
    }

    fn places(&self, cluster: &mut Cluster, from_time: Option<i64>) -> Outcome<BTreeMap<i32, Place>> {
        let topic = cluster.topic(&self.topic, false).map_err(Failure::failed)?;
        let all: Vec<i32> = topic.partitions.keys().copied().collect();
        let wanted = if self.partition.is_empty() { all.clone() } else { self.partition.clone() };
        let mut places = BTreeMap::new();
        for partition in wanted {
            if !all.contains(&partition) {
                return Err(Failure::failed(ClientError::no_such_partition(&self.topic, partition, all.len())));
            }
            let place = self.place(cluster, partition, from_time).map_err(Failure::failed)?;
            places.insert(partition, place);
        }
        Ok(places)
    }

    fn place(&self, cluster: &mut Cluster, partition: i32, from_time: Option<i64>) -> Result<Place, ClientError> {
        let mut offset = |question| cluster.offset(&self.topic, partition, question);
        let earliest = offset(OffsetQuestion::Earliest)?.unwrap_or(0);
        let latest = offset(self.isolation.latest())?.unwrap_or(0);
        let next = match (from_time, self.from_offset) {
            (Some(ms), _) => offset(OffsetQuestion::AtTime(ms))?.unwrap_or(latest),
            (None, Some(Start::Latest)) => latest,
            (None, Some(Start::Last(count))) => latest.saturating_sub(count).max(earliest),
            (None, Some(Start::Offset(offset))) if offset < earliest || offset > latest => {
                let message = format!("offset {offset} is outside of the log, which holds {earliest} to {latest}");
                let what = format!("topic '{}' partition {partition}", self.topic);
                return Err(ClientError::Refused { what, code: OFFSET_OUT_OF_RANGE, message: Some(message) });
            }
            (None, Some(Start::Offset(offset))) => offset,
            (None, None | Some(Start::Earliest)) => earliest,
        };
        Ok(Place { next, end: (!self.follow).then_some(latest) })
    }
}

impl<W: Write> Reader<W> {
    fn read(&mut self) -> Outcome {
        while self.left > 0 && self.places.values().any(|place| !place.is_done()) {
            let leaders = self.by_leader()?;
            // They are asked one after the other: none should be kept from its records by an idle one for long.
            let wait = WAIT / u32::try_from(leaders.len().max(1)).unwrap_or(u32::MAX);
            for (leader, from) in leaders {
                self.read_from(leader, &from, wait)?;
            }
        }
        self.out.flush().map_err(Failure::from)
    }

    /// What to ask each leader for.
    fn by_leader(&mut self) -> Outcome<HashMap<i32, Vec<FetchFrom>>> {
        let mut leaders: HashMap<i32, Vec<FetchFrom>> = HashMap::new();
        let (topic, cluster) = (&self.topic, &mut self.cluster);
        for (partition, place) in self.places.iter().filter(|(_, place)| !place.is_done()) {
            let leader = cluster.retry(|cluster| cluster.leader(topic, *partition)).map_err(Failure::failed)?;
            let from = FetchFrom { topic: topic.clone(), partition: *partition, offset: place.next };
            leaders.entry(leader).or_default().push(from);
        }
        Ok(leaders)
    }

    fn read_from(&mut self, leader: i32, from: &[FetchFrom], wait: Duration) -> Outcome {
        let isolation = self.isolation;
        let fetched = self.cluster.retry(|cluster| cluster.fetch(leader, from, isolation, wait));
        let fetched = fetched.map_err(Failure::failed)?;
        for partition in fetched {
            match &partition.error {
                None => {
                    self.failing.remove(&partition.partition);
                    self.print(&partition)?;
                }
                Some(error) => self.handle(partition.partition, error)?,
            }
            if self.left == 0 {
                break;
            }
        }
        self.out.flush().map_err(Failure::from)
    }

    fn handle(&mut self, partition: i32, error: &ClientError) -> Outcome {
        if error.code() == Some(OFFSET_OUT_OF_RANGE) {
            // Retention was faster than we are.
            let earliest = self.cluster.offset(&self.topic, partition, OffsetQuestion::Earliest);
            let earliest = earliest.map_err(Failure::failed)?.unwrap_or(0);
            let place = self.places.get_mut(&partition);
            if let Some(place) = place.filter(|place| place.next < earliest) {
                let lost = place.next;
                say(format_args!(
                    "partition {partition}: offsets {lost} to {} are gone, going on behind them",
                    earliest - 1
                ));
                place.next = earliest;
                return Ok(());
            }
        }
        let since = *self.failing.entry(partition).or_insert_with(Instant::now);
        if !error.is_retriable() || since.elapsed() >= self.cluster.timeout() {
            let next = self.places.get(&partition).map_or(-1, |place| place.next);
            return Err(Failure::failed(format!("reading at offset {next}: {error}")));
        }
        self.cluster.forget_leaders();
        thread::sleep(ERROR_PAUSE);
        Ok(())
    }

    fn print(&mut self, fetched: &Fetched) -> Outcome {
        let Some(place) = self.places.get_mut(&fetched.partition) else { return Ok(()) };
        let at = |offset| format!("topic '{}' partition {} offset {offset}", self.topic, fetched.partition);
        let mut committed = CommittedBatches::new(&fetched.aborted);
        for batch in batches(&fetched.records) {
            let (info, bytes) = batch.map_err(|e| Failure::failed(format!("{}: {e}", at(place.next))))?;
            if !verify_crc(bytes) {
                return Err(Failure::failed(format!("{}: the batch's checksum is wrong", at(info.base_offset))));
            }
            let found = match committed.counts(&info) {
                false => Vec::new(),
                true => records(bytes).map_err(|e| Failure::failed(format!("{}: {e}", at(info.base_offset))))?,
            };
            for record in found.iter().filter(|record| record.offset >= place.next) {
                if self.left == 0 || place.end.is_some_and(|end| record.offset >= end) {
                    break;
                }
                let context = Context { topic: &self.topic, partition: fetched.partition };
                self.format.write(&context, record, &mut self.out)?;
                self.left -= 1;
            }
            place.next = place.next.max(info.last_offset() + 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_words_offsets_or_counts_from_the_end() {
        assert_eq!("earliest".parse(), Ok(Start::Earliest));
        assert_eq!("end".parse(), Ok(Start::Latest));
        assert_eq!("0".parse(), Ok(Start::Offset(0)));
        assert_eq!("-10".parse(), Ok(Start::Last(10)));
        assert!("soon".parse::<Start>().is_err() && "".parse::<Start>().is_err());
        assert!(i64::MIN.to_string().parse::<Start>().is_err());
    }
}
