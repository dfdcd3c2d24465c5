//! What values are taken, refused, and parsed to.

use super::*;
use crate::api::ConfigChange;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn parse(pairs: &[(&str, &str)]) -> Result<TopicConfig, String> {
    TopicConfig::parse(&BTreeMap::new(), &map(pairs))
}

#[test]
fn the_table_is_sorted_and_every_default_is_valid() {
    assert!(keys().is_sorted_by(|a, b| a.name < b.name));
    for key in keys() {
        parse(&[(key.name, key.default)]).unwrap_or_else(|e| panic!("{}: {e}", key.name));
        assert_eq!(key.synonyms.first().map_or("", |first| first.name), key.broker_name);
        assert!(key.documentation.ends_with('.') && key.documentation.len() > 20, "{}", key.name);
    }
}

/// What `kafka-configs --describe --all` shows of a topic on Kafka 4.3.1 whose broker sets nothing.
const KAFKA: &str = "\
cleanup.policy=delete log.cleanup.policy
compression.gzip.level=-1 compression.gzip.level
compression.lz4.level=9 compression.lz4.level
compression.type=producer compression.type
compression.zstd.level=3 compression.zstd.level
delete.retention.ms=86400000 log.cleaner.delete.retention.ms
file.delete.delay.ms=60000 log.segment.delete.delay.ms
flush.messages=9223372036854775807 log.flush.interval.messages
flush.ms=9223372036854775807 log.flush.interval.ms
follower.replication.throttled.replicas=
index.interval.bytes=4096 log.index.interval.bytes
leader.replication.throttled.replicas=
local.retention.bytes=-2 log.local.retention.bytes
local.retention.ms=-2 log.local.retention.ms
max.compaction.lag.ms=9223372036854775807 log.cleaner.max.compaction.lag.ms
max.message.bytes=1048588 message.max.bytes
message.timestamp.after.max.ms=3600000 log.message.timestamp.after.max.ms
message.timestamp.before.max.ms=9223372036854775807 log.message.timestamp.before.max.ms
message.timestamp.type=CreateTime log.message.timestamp.type
min.cleanable.dirty.ratio=0.5 log.cleaner.min.cleanable.ratio
min.compaction.lag.ms=0 log.cleaner.min.compaction.lag.ms
min.insync.replicas=1 min.insync.replicas
preallocate=false log.preallocate
remote.log.copy.disable=false
remote.log.delete.on.disable=false
remote.storage.enable=false
retention.bytes=-1 log.retention.bytes
retention.ms=604800000 log.retention.ms
segment.bytes=1073741824 log.segment.bytes
segment.index.bytes=10485760 log.index.size.max.bytes
segment.jitter.ms=0 log.roll.jitter.ms
segment.ms=604800000 log.roll.ms
unclean.leader.election.enable=false unclean.leader.election.enable
";

#[test]
fn the_table_is_kafkas_but_for_flush_messages() {
    let line = |key: &ConfigKey| match key.broker_name {
        "" => format!("{}={}\n", key.name, key.default),
        broker_name => format!("{}={} {broker_name}\n", key.name, key.default),
    };
    let ours: String = keys().iter().map(line).collect();
    assert_eq!(ours.replace("flush.messages=1 ", "flush.messages=9223372036854775807 "), KAFKA);
}

#[test]
fn values_of_the_topic_win_over_the_brokers_and_those_over_defaults() {
    let defaults = map(&[("retention.ms", "5"), ("segment.ms", "7")]);
    let config = TopicConfig::parse(&defaults, &map(&[("retention.ms", " 6 ")])).unwrap();
    assert_eq!((config.retention_ms, config.segment_ms), (6, 7));
    assert_eq!(config.retention_bytes, -1);
    assert!(TopicConfig::parse(&map(&[("segment.ms", "0")]), &map(&[("segment.ms", "1")])).is_err());
}

#[test]
fn every_setting_reaches_its_field() {
    let config = parse(&[
        ("cleanup.policy", "compact, delete"),
        ("compression.type", "zstd"),
        ("compression.zstd.level", "19"),
        ("delete.retention.ms", "1"),
        ("flush.messages", "10000"),
        ("max.compaction.lag.ms", "500"),
        ("max.message.bytes", "16777216"),
        ("message.timestamp.after.max.ms", "4"),
        ("message.timestamp.before.max.ms", "5"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.cleanable.dirty.ratio", "0.25"),
        ("min.compaction.lag.ms", "6"),
        ("min.insync.replicas", "2"),
        ("retention.bytes", "7"),
        ("retention.ms", "8"),
        ("segment.bytes", "1048576"),
        ("segment.jitter.ms", "9"),
        ("segment.ms", "600"),
    ]);
    let expected = TopicConfig {
        max_message_bytes: 16 << 20,
        compression: Some(Compression { codec: Codec::Zstd, level: 19 }),
        timestamp_type: TimestampType::LogAppendTime,
        timestamp_before_max_ms: 5,
        timestamp_after_max_ms: 4,
        cleanup_policy: CleanupPolicy { delete: true, compact: true },
        retention_ms: 8,
        retention_bytes: 7,
        segment_bytes: 1 << 20,
        segment_ms: 600,
        segment_jitter_ms: 9,
        durability: Durability::Written,
        delete_retention_ms: 1,
        min_compaction_lag_ms: 6,
        max_compaction_lag_ms: 500,
        min_cleanable_dirty_ratio: 0.25,
        min_insync_replicas: 2,
    };
    assert_eq!(config.as_ref(), Ok(&expected));
    assert_eq!(expected.segment_roll_ms(), 500, "compaction must reach its records in time");
}

#[test]
fn every_codec_of_kafka_is_taken_with_its_level() {
    let of = |pairs: &[(&str, &str)]| parse(pairs).unwrap().compression;
    let levels =
        [("compression.gzip.level", "2"), ("compression.lz4.level", "17"), ("compression.zstd.level", "-131072")];
    for (value, codec, level, default) in [
        ("uncompressed", Codec::None, 0, 0),
        ("gzip", Codec::Gzip, 2, -1),
        ("snappy", Codec::Snappy, 0, 0),
        ("lz4", Codec::Lz4, 17, 9),
        ("zstd", Codec::Zstd, -131_072, 3),
    ] {
        let set = ("compression.type", value);
        assert_eq!(of(&[set]), Some(Compression { codec, level: default }), "{value}");
        assert_eq!(of(&[set]), Some(codec.into()), "{value}");
        assert_eq!(of(&[&[set], &levels[..]].concat()), Some(Compression { codec, level }), "{value}");
    }
    assert_eq!(of(&[("compression.type", "producer")]), None);
    assert_eq!(of(&levels), None);
}

/// MirrorMaker copies the settings of topics whose batches may be larger.
#[test]
fn a_limit_above_what_a_node_takes_is_kept_and_not_reached() {
    let config = parse(&[("max.message.bytes", "52428800")]).unwrap();
    assert_eq!((config.max_message_bytes, config.batch_bytes_max()), (52_428_800, BATCH_BYTES_MAX));
    assert_eq!(parse(&[("max.message.bytes", "2147483647")]).unwrap().batch_bytes_max(), BATCH_BYTES_MAX);
    assert_eq!(parse(&[("max.message.bytes", "1000")]).unwrap().batch_bytes_max(), 1000);
}

#[test]
fn acknowledged_means_durable_by_default() {
    assert_eq!(TopicConfig::default().durability, Durability::Device);
    assert_eq!(parse(&[("flush.messages", "2")]).unwrap().durability, Durability::Written);
}

#[test]
fn no_cleanup_policy_keeps_everything() {
    let config = parse(&[("cleanup.policy", "")]).unwrap();
    assert_eq!(config.cleanup_policy, CleanupPolicy { delete: false, compact: false });
}

#[test]
fn wrong_values_are_refused_with_name_value_and_reason() {
    let cases = [
        ("cleanup.policy", "delete,forget", "its members must be of compact, delete"),
        ("cleanup.policy", "delete,", "its members must be of compact, delete"),
        ("compression.gzip.level", "0", "must lie between 1 and 9, or be -1"),
        ("compression.lz4.level", "18", "must lie between 1 and 17"),
        ("compression.type", "brotli", "must be one of uncompressed, zstd, lz4, snappy, gzip, producer"),
        ("delete.retention.ms", "-1", "must be at least 0"),
        ("flush.messages", "0", "must be at least 1"),
        ("flush.ms", "soon", "not an integer of 64 bits"),
        ("leader.replication.throttled.replicas", "0:1,x:2", "must be * or a list of partition:broker"),
        ("max.message.bytes", "-1", "must be at least 0"),
        ("max.message.bytes", "3000000000", "not an integer of 32 bits"),
        ("message.timestamp.type", "createtime", "must be one of CreateTime, LogAppendTime"),
        ("min.cleanable.dirty.ratio", "1.5", "must lie between 0 and 1"),
        ("min.cleanable.dirty.ratio", "NaN", "must lie between 0 and 1"),
        ("min.insync.replicas", "0", "must be at least 1"),
        ("preallocate", "yes", "neither true nor false"),
        ("retention.ms", "-2", "must be at least -1"),
        ("segment.bytes", "1048575", "must be at least 1048576"),
        ("segment.ms", "0", "must be at least 1"),
        ("segment.jitter.ms", "", "not an integer of 64 bits"),
    ];
    for (name, value, reason) in cases {
        assert_eq!(parse(&[(name, value)]), Err(format!("invalid value {value} for {name}: {reason}")));
    }
    assert_eq!(parse(&[("retention.m", "1")]), Err("unknown topic setting retention.m".to_owned()));
    assert!(parse(&[("leader.replication.throttled.replicas", &"0:1,".repeat(9_000))]).is_err());
}

#[test]
fn what_cannot_be_honoured_is_refused_with_the_reason() {
    let refused = |name, value| parse(&[(name, value)]).unwrap_err();
    assert!(refused("remote.storage.enable", "true").contains("tiered storage is not supported"));
    let together = parse(&[("min.compaction.lag.ms", "10"), ("max.compaction.lag.ms", "9")]).unwrap_err();
    assert_eq!(together, "min.compaction.lag.ms 10 is larger than max.compaction.lag.ms 9");
}

#[test]
fn what_has_no_effect_on_a_node_alone_is_accepted() {
    parse(&[
        ("flush.ms", "1000"),
        ("index.interval.bytes", "1"),
        ("preallocate", "TRUE"),
        ("file.delete.delay.ms", "0"),
        ("remote.storage.enable", "False"),
        ("local.retention.ms", "5"),
        ("leader.replication.throttled.replicas", "*"),
        ("follower.replication.throttled.replicas", "0:1, 1:2"),
        ("compression.zstd.level", "-5"),
        ("unclean.leader.election.enable", "true"),
    ])
    .unwrap();
}

/// unclean.leader.election.enable was told to do nothing, as it does on one node; in a cluster it loses records.
#[test]
fn what_acts_in_a_cluster_is_told_to_act() {
    for name in [
        "flush.messages",
        "follower.replication.throttled.replicas",
        "leader.replication.throttled.replicas",
        "min.insync.replicas",
        "unclean.leader.election.enable",
    ] {
        let key = keys().iter().find(|key| key.name == name).unwrap();
        assert_eq!(key.effect, Effect::Full, "{name}");
    }
}

#[test]
fn segments_may_be_small_in_tests() {
    assert_eq!(parse(&[("internal.segment.bytes", "5000")]).unwrap().segment_bytes, 5_000);
    assert!(parse(&[("internal.segment.bytes", "0")]).is_err());
    assert!(keys().iter().all(|key| key.name != "internal.segment.bytes"), "as in Kafka it is not shown");
}

#[test]
fn lists_grow_and_shrink_from_the_value_in_force() {
    let change = |overrides: &[(&str, &str)], changes: &[ConfigChange]| {
        apply_changes(&map(&[("segment.ms", "9")]), &map(overrides), changes)
    };
    let append = |name: &str, value: &str| ConfigChange::Append(name.into(), value.into());
    let subtract = |name: &str, value: &str| ConfigChange::Subtract(name.into(), value.into());
    let policy = "cleanup.policy";
    assert_eq!(change(&[], &[append(policy, "compact")]), Ok(map(&[(policy, "delete,compact")])));
    assert_eq!(
        change(&[(policy, "compact")], &[append(policy, "compact,delete")]),
        Ok(map(&[(policy, "compact,delete")]))
    );
    assert_eq!(change(&[(policy, "compact,delete")], &[subtract(policy, "delete")]), Ok(map(&[(policy, "compact")])));
    assert_eq!(change(&[], &[subtract(policy, "delete")]), Ok(map(&[(policy, "")])));
    assert!(change(&[], &[append("segment.ms", "1")]).unwrap_err().contains("not a list"));
    assert!(change(&[], &[subtract("nonsense", "1")]).unwrap_err().contains("unknown"));
    let set = ConfigChange::Set("segment.ms".into(), "1".into());
    let delete = ConfigChange::Delete("retention.ms".into());
    assert_eq!(change(&[("retention.ms", "3")], &[set, delete]), Ok(map(&[("segment.ms", "1")])));
    assert!(change(&[], &[ConfigChange::Delete("nonsense".into())]).is_err());
    let broker = apply_broker_changes(
        &map(&[("a.list", "x"), ("b", "2"), ("c", "3")]),
        &[
            append("a.list", "y"),
            append("log.cleanup.policy", "compact"),
            append("new.list", "z"),
            ConfigChange::Set("b".into(), "4".into()),
            ConfigChange::Delete("c".into()),
        ],
    );
    let expected = [("a.list", "x,y"), ("b", "4"), ("log.cleanup.policy", "delete,compact"), ("new.list", "z")];
    assert_eq!(broker, map(&expected));
}

#[test]
fn topics_follow_this_node_then_all_brokers_then_what_the_node_was_started_with() {
    let started = map(&[("retention.ms", "1"), ("segment.ms", "2"), ("preallocate", "true")]);
    let settings = map(&[
        ("log.retention.ms", "4"),
        ("brokers/log.retention.ms", "5"),
        ("brokers/log.roll.ms", "6"),
        ("brokers/log.retention.hours", "7"),
        ("max.connections", "8"),
        ("groups/log.retention.bytes/x", "9"),
    ]);
    let expected = [("preallocate", "true"), ("retention.ms", "4"), ("segment.ms", "6")];
    assert_eq!(topic_defaults(&started, &settings), map(&expected));
    assert_eq!(dynamic_value(&settings, "max.connections"), Some("8"));
    assert_eq!(dynamic_value(&settings, "log.roll.ms"), Some("6"));
    assert_eq!(dynamic_value(&settings, "log.retention.bytes"), None);
    let append = ConfigChange::Append("brokers/log.cleanup.policy".into(), "compact".into());
    let expected = [("brokers/log.cleanup.policy", "delete,compact")];
    assert_eq!(apply_broker_changes(&BTreeMap::new(), &[append]), map(&expected));
}

#[test]
fn a_pause_between_flushes_is_refused_where_it_would_not_be_kept() {
    assert!(parse(&[("flush.messages", "10"), ("flush.ms", "999")]).unwrap_err().contains("flush.ms"));
    parse(&[("flush.messages", "10"), ("flush.ms", "1000")]).unwrap();
    parse(&[("flush.ms", "1")]).unwrap();
}

#[test]
fn topic_names_follow_kafkas_rules() {
    for good in ["a", "A.b_c-9", "...", "__consumer_offsets", &"x".repeat(249)] {
        assert_eq!(check_topic_name(good), Ok(()), "{good}");
    }
    for bad in ["", ".", "..", "a b", "a/b", "ä", "a\n", &"x".repeat(250)] {
        assert!(check_topic_name(bad).is_err(), "{bad}");
    }
}
