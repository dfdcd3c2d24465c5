//! Records that were acknowledged, as far as can be told, and that the shared log does not give back: which ones, and
//! where they were.

use std::{fmt, path::PathBuf};

use crate::api::TopicPartition;

/// What one shard's log does not give back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// The shard.
    pub shard: u32,
    /// The folder of its log.
    pub folder: PathBuf,
    /// Groups that were durable and cannot be read.
    pub groups: Vec<LostGroup>,
    /// Partitions with records that are not there, or that stand behind such.
    pub partitions: Vec<PartitionDoubt>,
}

/// A group that was durable and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostGroup {
    /// Its run.
    pub run: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Where it should be, as far as that is known.
    pub place: Option<String>,
}

/// Offsets that a partition cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDoubt {
    /// The partition.
    pub id: TopicPartition,
    /// Its topic's name, or its id if nobody knows the name.
    pub topic: String,
    /// The first offset that is missing.
    pub from: i64,
    /// From this one on they can be read, but nothing may stand behind a hole.
    pub found: i64,
    /// One past the last one that is known of.
    pub until: i64,
}

/// Partitions that are named in an error.
const NAMED_MAX: usize = 10;

impl Doubts {
    /// Whether all is there.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.partitions.is_empty()
    }

    /// Records that are known to be given up by who goes on without them.
    pub fn records(&self) -> i64 {
        self.partitions.iter().map(|partition| partition.until.saturating_sub(partition.from)).sum()
    }

    /// Stands for exactly these.
    pub fn code(all: &[Doubts]) -> String {
        let append = |code, text: &str| crc32c::crc32c_append(code, text.as_bytes());
        let of = |code, doubts: &Doubts| {
            doubts.lines().fold(append(code, &doubts.folder.to_string_lossy()), |code, line| append(code, &line))
        };
        format!("{:08x}", all.iter().fold(0, of))
    }

    /// Gives topics their names.
    pub(crate) fn name_topics(&mut self, name: impl Fn(TopicPartition) -> Option<String>) {
        for partition in &mut self.partitions {
            if let Some(name) = name(partition.id) {
                partition.topic = name;
            }
        }
    }

    /// A line for each group and partition.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.groups.iter().map(LostGroup::to_string).chain(self.partitions.iter().map(PartitionDoubt::to_string))
    }
}

impl fmt::Display for LostGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} of run {} was durable and cannot be read any more", self.sequence, self.run)?;
        match &self.place {
            Some(place) => write!(f, " ({place})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PartitionDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, topic, from, found, until } = self;
        write!(f, "{topic}/{}: offsets {from} to {} are in doubt", id.partition, until - 1)?;
        match found < until {
            true => write!(f, ": those before {found} are gone, the others stand behind the hole"),
            false => write!(f, ": they are gone"),
        }
    }
}

impl fmt::Display for Doubts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.lines().count();
        for (at, line) in self.lines().take(NAMED_MAX).enumerate() {
            write!(f, "{}{line}", if at > 0 { "\n  " } else { "" })?;
        }
        match count.saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}
