//! The table of topic settings. DescribeConfigs shows it.

use super::{ConfigKey, ConfigType, Effect, Synonym, Valid};

/// Every setting, sorted by name.
pub fn keys() -> &'static [ConfigKey] {
    KEYS
}

/// A setting by name, those that are not shown included.
pub(super) fn find(name: &str) -> Option<&'static ConfigKey> {
    match KEYS.binary_search_by(|key| key.name.cmp(name)) {
        Ok(at) => Some(&KEYS[at]),
        Err(_) => (name == INTERNAL_SEGMENT_BYTES.name).then_some(&INTERNAL_SEGMENT_BYTES),
    }
}

const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;

const NO_TIERS: &str = "there is no tiered storage: all of a log is local";

const fn synonym(name: &'static str, factor: i64) -> Synonym {
    Synonym { name, factor }
}

impl ConfigKey {
    const fn new(
        name: &'static str,
        synonyms: &'static [Synonym],
        (kind, default, valid): (ConfigType, &'static str, Valid),
        documentation: &'static str,
    ) -> Self {
        let broker_name = match synonyms {
            [] => "",
            [first, ..] => first.name,
        };
        Self { name, broker_name, synonyms, kind, default, valid, documentation, effect: Effect::Full }
    }

    const fn without_effect(mut self, reason: &'static str) -> Self {
        self.effect = Effect::None { reason };
        self
    }

    const fn only(mut self, reason: &'static str) -> Self {
        self.effect = Effect::Only { value: self.default, reason };
        self
    }
}

/// Accepted as Kafka accepts it, and as in Kafka not shown.
pub(super) static INTERNAL_SEGMENT_BYTES: ConfigKey = ConfigKey::new(
    "internal.segment.bytes",
    &[],
    (ConfigType::Int, "", Valid::AtLeast(1)),
    "Takes the place of segment.bytes with no lower bound. For tests only.",
);

static KEYS: &[ConfigKey] = &[
    ConfigKey::new(
        "cleanup.policy",
        &[synonym("log.cleanup.policy", 1)],
        (ConfigType::List, "delete", Valid::Members(&["compact", "delete"])),
        "How old records go. delete drops whole segments by retention.ms and retention.bytes; compact keeps the newest \
         record of every key; both do both; an empty list keeps everything.",
    ),
    ConfigKey::new(
        "compression.gzip.level",
        &[synonym("compression.gzip.level", 1)],
        (ConfigType::Int, "-1", Valid::BetweenOr(1, 9, -1)),
        "Level of compression.type=gzip; -1 is zlib's own choice.",
    ),
    ConfigKey::new(
        "compression.lz4.level",
        &[synonym("compression.lz4.level", 1)],
        (ConfigType::Int, "9", Valid::Between(1, 17)),
        "Level of compression.type=lz4. 9 is the fast compressor, all others are the thorough one.",
    ),
    ConfigKey::new(
        "compression.type",
        &[synonym("compression.type", 1)],
        (ConfigType::String, "producer", Valid::OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"])),
        "Codec in which batches are stored: one that was sent in another is compressed again, which takes the broker's \
         time. producer keeps every batch as it was sent.",
    ),
    ConfigKey::new(
        "compression.zstd.level",
        &[synonym("compression.zstd.level", 1)],
        (ConfigType::Int, "3", Valid::Between(-131_072, 22)),
        "Level of compression.type=zstd.",
    ),
    ConfigKey::new(
        "delete.retention.ms",
        &[synonym("log.cleaner.delete.retention.ms", 1)],
        (ConfigType::Long, "86400000", Valid::AtLeast(0)),
        "How long a compacted topic keeps the tombstone of a deleted key, so that readers who are that far behind \
         learn of the deletion.",
    ),
    ConfigKey::new(
        "file.delete.delay.ms",
        &[synonym("log.segment.delete.delay.ms", 1)],
        (ConfigType::Long, "60000", Valid::AtLeast(0)),
        "How long the file of a dropped segment stays on disk.",
    )
    .without_effect("a dropped segment's file goes as soon as its last reader has finished with it"),
    ConfigKey::new(
        "flush.messages",
        &[synonym("log.flush.interval.messages", 1)],
        (ConfigType::Long, "1", Valid::AtLeast(1)),
        "1: a record is acknowledged once it is on stable storage, which a power cut cannot take away. Larger: once it \
         is written; a crash of the process loses nothing, a power cut may lose the last moments.",
    ),
    ConfigKey::new(
        "flush.ms",
        &[synonym("log.flush.interval.ms", 1), synonym("log.flush.scheduler.interval.ms", 1)],
        (ConfigType::Long, "9223372036854775807", Valid::AtLeast(0)),
        "Longest time between two flushes of a log.",
    )
    .without_effect(
        "flushes are paced by the device, and come every second at the latest: flush.messages decides whether \
         acknowledgements wait for one",
    ),
    ConfigKey::new(
        "follower.replication.throttled.replicas",
        &[],
        (ConfigType::List, "", Valid::ThrottledReplicas),
        "Replicas whose catching up is throttled on the follower's side, as partition:broker, or * for all.",
    ),
    ConfigKey::new(
        "index.interval.bytes",
        &[synonym("log.index.interval.bytes", 1)],
        (ConfigType::Int, "4096", Valid::AtLeast(0)),
        "Bytes of a segment between two entries of its index.",
    )
    .without_effect(
        "the index has an entry every 64 KiB: a lookup is one direct read, which costs the same below that",
    ),
    ConfigKey::new(
        "leader.replication.throttled.replicas",
        &[],
        (ConfigType::List, "", Valid::ThrottledReplicas),
        "Replicas whose catching up is throttled on the leader's side, as partition:broker, or * for all.",
    ),
    ConfigKey::new(
        "local.retention.bytes",
        &[synonym("log.local.retention.bytes", 1)],
        (ConfigType::Long, "-2", Valid::AtLeast(-2)),
        "Bytes of a tiered partition kept on local disk; -2 means retention.bytes.",
    )
    .without_effect(NO_TIERS),
    ConfigKey::new(
        "local.retention.ms",
        &[synonym("log.local.retention.ms", 1)],
        (ConfigType::Long, "-2", Valid::AtLeast(-2)),
        "How long a tiered partition's records are kept on local disk; -2 means retention.ms.",
    )
    .without_effect(NO_TIERS),
    ConfigKey::new(
        "max.compaction.lag.ms",
        &[synonym("log.cleaner.max.compaction.lag.ms", 1)],
        (ConfigType::Long, "9223372036854775807", Valid::AtLeast(1)),
        "A record of a compacted topic is considered for compaction at that age at the latest.",
    ),
    ConfigKey::new(
        "max.message.bytes",
        &[synonym("message.max.bytes", 1)],
        (ConfigType::Int, "1048588", Valid::AtLeast(0)),
        "Largest record batch that is accepted, in bytes as it is sent and, if the broker compresses it again, as it is \
         stored. A node takes 16 MiB at most, however large the value is.",
    ),
    ConfigKey::new(
        "message.timestamp.after.max.ms",
        &[synonym("log.message.timestamp.after.max.ms", 1)],
        (ConfigType::Long, "3600000", Valid::AtLeast(0)),
        "How far a record's timestamp may lie after the broker's clock. Not looked at with LogAppendTime.",
    ),
    ConfigKey::new(
        "message.timestamp.before.max.ms",
        &[synonym("log.message.timestamp.before.max.ms", 1)],
        (ConfigType::Long, "9223372036854775807", Valid::AtLeast(0)),
        "How far a record's timestamp may lie before the broker's clock. Not looked at with LogAppendTime.",
    ),
    ConfigKey::new(
        "message.timestamp.type",
        &[synonym("log.message.timestamp.type", 1)],
        (ConfigType::String, "CreateTime", Valid::OneOf(&["CreateTime", "LogAppendTime"])),
        "Whether a record's timestamp is the producer's (CreateTime) or the time of its append (LogAppendTime).",
    ),
    ConfigKey::new(
        "min.cleanable.dirty.ratio",
        &[synonym("log.cleaner.min.cleanable.ratio", 1)],
        (ConfigType::Double, "0.5", Valid::Ratio),
        "Share of a log, by bytes, that must be uncompacted before compaction is worth its while.",
    ),
    ConfigKey::new(
        "min.compaction.lag.ms",
        &[synonym("log.cleaner.min.compaction.lag.ms", 1)],
        (ConfigType::Long, "0", Valid::AtLeast(0)),
        "A record of a compacted topic stays uncompacted at least that long.",
    ),
    ConfigKey::new(
        "min.insync.replicas",
        &[synonym("min.insync.replicas", 1)],
        (ConfigType::Int, "1", Valid::AtLeast(1)),
        "Replicas that must have a record before acks=all is answered; never more than the partition has.",
    ),
    ConfigKey::new(
        "preallocate",
        &[synonym("log.preallocate", 1)],
        (ConfigType::Boolean, "false", Valid::Any),
        "Whether a segment's file gets its full size when it is made.",
    )
    .without_effect("writes that are waited for go to the write-ahead log, whose files always are preallocated"),
    ConfigKey::new(
        "remote.log.copy.disable",
        &[],
        (ConfigType::Boolean, "false", Valid::Any),
        "Whether a tiered topic stops copying segments to remote storage.",
    )
    .without_effect(NO_TIERS),
    ConfigKey::new(
        "remote.log.delete.on.disable",
        &[],
        (ConfigType::Boolean, "false", Valid::Any),
        "Whether remote segments are deleted when tiered storage is switched off for the topic.",
    )
    .without_effect(NO_TIERS),
    ConfigKey::new(
        "remote.storage.enable",
        &[],
        (ConfigType::Boolean, "false", Valid::Any),
        "Whether the topic's sealed segments move to remote storage.",
    )
    .only("tiered storage is not supported: only false is"),
    ConfigKey::new(
        "retention.bytes",
        &[synonym("log.retention.bytes", 1)],
        (ConfigType::Long, "-1", Valid::Any),
        "Size of a partition above which its oldest segments are dropped; -1 is without limit. Needs \
         cleanup.policy=delete.",
    ),
    ConfigKey::new(
        "retention.ms",
        &[
            synonym("log.retention.ms", 1),
            synonym("log.retention.minutes", MINUTE_MS),
            synonym("log.retention.hours", HOUR_MS),
        ],
        (ConfigType::Long, "604800000", Valid::AtLeast(-1)),
        "Age of its newest record at which a segment is dropped; -1 is for ever. Needs cleanup.policy=delete.",
    ),
    ConfigKey::new(
        "segment.bytes",
        &[synonym("log.segment.bytes", 1)],
        (ConfigType::Int, "1073741824", Valid::AtLeast(1 << 20)),
        "Size at which a segment is sealed and the next one begun. Retention and compaction go by whole segments.",
    ),
    ConfigKey::new(
        "segment.index.bytes",
        &[synonym("log.index.size.max.bytes", 1)],
        (ConfigType::Int, "10485760", Valid::AtLeast(4)),
        "Size of a segment's index at which the segment is sealed.",
    )
    .without_effect("the index is part of the segment and takes 24 bytes per 64 KiB of it"),
    ConfigKey::new(
        "segment.jitter.ms",
        &[synonym("log.roll.jitter.ms", 1), synonym("log.roll.jitter.hours", HOUR_MS)],
        (ConfigType::Long, "0", Valid::AtLeast(0)),
        "Longest random time by which segment.ms is shortened, so that partitions do not all begin a segment at once.",
    ),
    ConfigKey::new(
        "segment.ms",
        &[synonym("log.roll.ms", 1), synonym("log.roll.hours", HOUR_MS)],
        (ConfigType::Long, "604800000", Valid::AtLeast(1)),
        "Age at which a segment is sealed even if it is small, so that retention and compaction reach its records.",
    ),
    ConfigKey::new(
        "unclean.leader.election.enable",
        &[synonym("unclean.leader.election.enable", 1)],
        (ConfigType::Boolean, "false", Valid::Any),
        "Whether a replica that is behind may become leader when no other is left: true loses records that were \
         acknowledged. Acts in a cluster; the one replica of a node that is alone is never behind.",
    ),
];
