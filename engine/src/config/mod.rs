//! Topic settings: which there are ([`keys`]), what values they take, and a topic's settings parsed ([`TopicConfig`]).
//!
//! Pure. Names, types, ranges and defaults are those of Kafka 4.3's `LogConfig`; the one default that differs is
//! `flush.messages`, which is 1: an acknowledged record is on stable storage unless the topic says otherwise. A setting
//! that cannot be honoured and that somebody would rely on is refused with the reason; one that merely has nothing to
//! act on here is accepted, kept and shown ([`ConfigKey::effect`] tells which).

mod broker;
mod change;
mod keys;
mod topic_name;
mod value;

use std::collections::BTreeMap;

use crate::batch::{BATCH_BYTES_MAX, Codec, Compression, TimestampType};

pub use broker::{ALL_BROKERS_PREFIX, dynamic_value, topic_defaults};
pub use change::{apply_broker_changes, apply_changes};
pub use keys::keys;
pub use topic_name::{TOPIC_NAME_BYTES_MAX, check_topic_name};
use value::Values;
pub use value::{Refusal, check_value, segment_bytes_override};

/// What an acknowledgement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Written and flushed (`flush.messages=1`).
    Device,
    /// Written (`flush.messages` larger).
    Written,
}

/// How old records go: by age and size, by a newer record of the same key, by both. Neither keeps all for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// `retention.ms` and `retention.bytes` apply.
    pub delete: bool,
    /// The log is compacted; records need keys.
    pub compact: bool,
}

/// Kind of a setting's value, as DescribeConfigs reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigType {
    /// BOOLEAN
    Boolean,
    /// STRING
    String,
    /// INT
    Int,
    /// LONG
    Long,
    /// DOUBLE
    Double,
    /// LIST
    List,
}

/// Which values a setting takes, beyond its kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Valid {
    /// All of its kind.
    Any,
    /// Integers from this on.
    AtLeast(i64),
    /// Integers from the first to the second.
    Between(i64, i64),
    /// As `Between`, and a value beside that.
    BetweenOr(i64, i64, i64),
    /// Numbers from 0 to 1.
    Ratio,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A list of some of these, none of them twice.
    Members(&'static [&'static str]),
    /// `*`, or a list of `partition:broker`.
    ThrottledReplicas,
}

/// A broker setting that a topic setting inherits from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synonym {
    /// The broker setting.
    pub name: &'static str,
    /// What its value is multiplied by: 3,600,000 from hours to milliseconds; 1 where the units agree.
    pub factor: i64,
}

/// Whether a setting does here what it does in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    Full,
    /// It is accepted and shown, but there is nothing for it to act on.
    None {
        /// Why.
        reason: &'static str,
    },
    /// Only this value is accepted; others are refused.
    Only {
        /// The value.
        value: &'static str,
        /// Why no other.
        reason: &'static str,
    },
}

/// One known topic setting.
#[derive(Debug)]
pub struct ConfigKey {
    /// Kafka's name of the topic setting.
    pub name: &'static str,
    /// Name of the broker setting it inherits first (`log.retention.ms`...); empty if there is none.
    pub broker_name: &'static str,
    /// All broker settings it inherits, in order of precedence.
    pub synonyms: &'static [Synonym],
    /// Kind of value.
    pub kind: ConfigType,
    /// Default value.
    pub default: &'static str,
    /// Values it takes.
    pub valid: Valid,
    /// One or two sentences.
    pub documentation: &'static str,
    /// Whether it does anything.
    pub effect: Effect,
}

/// How often what was only written is flushed.
pub(crate) const WRITTEN_FLUSH_MS: i64 = 1_000;

/// A topic's settings, parsed and checked together.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicConfig {
    /// max.message.bytes; [`TopicConfig::batch_bytes_max`] is what holds.
    pub max_message_bytes: usize,
    /// compression.type, with its level; `None` keeps batches as they were sent.
    pub compression: Option<Compression>,
    /// message.timestamp.type
    pub timestamp_type: TimestampType,
    /// message.timestamp.before.max.ms
    pub timestamp_before_max_ms: i64,
    /// message.timestamp.after.max.ms
    pub timestamp_after_max_ms: i64,
    /// cleanup.policy
    pub cleanup_policy: CleanupPolicy,
    /// retention.ms; -1 is for ever.
    pub retention_ms: i64,
    /// retention.bytes; negative is without limit.
    pub retention_bytes: i64,
    /// segment.bytes
    pub segment_bytes: u64,
    /// segment.ms
    pub segment_ms: i64,
    /// segment.jitter.ms
    pub segment_jitter_ms: i64,
    /// flush.messages
    pub durability: Durability,
    /// delete.retention.ms
    pub delete_retention_ms: i64,
    /// min.compaction.lag.ms
    pub min_compaction_lag_ms: i64,
    /// max.compaction.lag.ms
    pub max_compaction_lag_ms: i64,
    /// min.cleanable.dirty.ratio
    pub min_cleanable_dirty_ratio: f64,
    /// min.insync.replicas
    pub min_insync_replicas: i32,
}

impl TopicConfig {
    /// Parses overrides over broker defaults (both by *topic* setting name). The error says key, value and reason.
    pub fn parse(
        defaults: &BTreeMap<String, String>,
        overrides: &BTreeMap<String, String>,
    ) -> Result<TopicConfig, String> {
        let values = Values::new(defaults, overrides)?;
        let config = Self {
            max_message_bytes: values.integer("max.message.bytes")?,
            compression: compression(&values)?,
            timestamp_type: match values.text("message.timestamp.type") {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            timestamp_before_max_ms: values.integer("message.timestamp.before.max.ms")?,
            timestamp_after_max_ms: values.integer("message.timestamp.after.max.ms")?,
            cleanup_policy: CleanupPolicy {
                delete: values.list("cleanup.policy").contains(&"delete"),
                compact: values.list("cleanup.policy").contains(&"compact"),
            },
            retention_ms: values.integer("retention.ms")?,
            retention_bytes: values.integer("retention.bytes")?,
            segment_bytes: match segment_bytes_override(defaults, overrides) {
                Some(bytes) => bytes?,
                None => values.integer("segment.bytes")?,
            },
            segment_ms: values.integer("segment.ms")?,
            segment_jitter_ms: values.integer("segment.jitter.ms")?,
            durability: match values.integer::<i64>("flush.messages")? {
                1 => Durability::Device,
                _ => Durability::Written,
            },
            delete_retention_ms: values.integer("delete.retention.ms")?,
            min_compaction_lag_ms: values.integer("min.compaction.lag.ms")?,
            max_compaction_lag_ms: values.integer("max.compaction.lag.ms")?,
            min_cleanable_dirty_ratio: values.number("min.cleanable.dirty.ratio")?,
            min_insync_replicas: values.integer("min.insync.replicas")?,
        };
        config.check_relations()?;
        let flush_ms = values.integer::<i64>("flush.ms")?;
        if config.durability == Durability::Written && flush_ms < WRITTEN_FLUSH_MS {
            return Err(format!(
                "invalid value {flush_ms} for flush.ms: with flush.messages above 1 records are flushed every \
                 {WRITTEN_FLUSH_MS} ms, not more often; flush.messages=1 flushes before it acknowledges"
            ));
        }
        Ok(config)
    }

    fn check_relations(&self) -> Result<(), String> {
        if self.min_compaction_lag_ms > self.max_compaction_lag_ms {
            return Err(format!(
                "min.compaction.lag.ms {} is larger than max.compaction.lag.ms {}",
                self.min_compaction_lag_ms, self.max_compaction_lag_ms
            ));
        }
        Ok(())
    }

    /// Bytes of the largest batch that is taken: `max.message.bytes`, [`BATCH_BYTES_MAX`] at most.
    pub fn batch_bytes_max(&self) -> usize {
        self.max_message_bytes.min(BATCH_BYTES_MAX)
    }

    /// Age in ms at which an active segment is followed by a new one, before jitter: `segment.ms`, but a compacted
    /// topic must seal its records by `max.compaction.lag.ms` to compact them.
    pub fn segment_roll_ms(&self) -> i64 {
        match self.cleanup_policy.compact {
            true => self.segment_ms.min(self.max_compaction_lag_ms),
            false => self.segment_ms,
        }
    }
}

fn compression(values: &Values<'_>) -> Result<Option<Compression>, String> {
    let codec = match values.text("compression.type") {
        "uncompressed" => Codec::None,
        "gzip" => Codec::Gzip,
        "snappy" => Codec::Snappy,
        "lz4" => Codec::Lz4,
        "zstd" => Codec::Zstd,
        _ => return Ok(None),
    };
    Ok(Some(match codec {
        Codec::None | Codec::Snappy => codec.into(),
        leveled => {
            let level = values.integer(&format!("compression.{}.level", leveled.name()))?;
            Compression { codec, level }
        }
    }))
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self::parse(&BTreeMap::new(), &BTreeMap::new()).expect("the defaults are valid")
    }
}

#[cfg(test)]
mod tests;
