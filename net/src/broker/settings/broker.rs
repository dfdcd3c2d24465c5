//! The broker's settings: which there are, what they are, which can be changed while the node runs.
//!
//! A setting is listed only if it is honoured. A change while the node runs is accepted only for settings that Kafka lets
//! change and that take effect here: the defaults of topics, and those that the table says. Each has two levels, this
//! node's own value and the default of all brokers; the engine keeps both.

use std::collections::BTreeMap;

use kafka_protocol::{ResponseError, protocol::StrBytes};
use millrace_engine::{
    config::{self, ALL_BROKERS_PREFIX, ConfigType, Refusal, dynamic_value, keys},
    node,
};
use millrace_replica::cluster::image::is_of_all_nodes;

use crate::{
    broker::{
        config::{NetConfig, PLAINTEXT},
        context::Context,
        settings::{
            entries::{self, Inherited, Level, Setting, Source},
            replication::{self, REPLICATION_KEYS, ReplicationKey},
        },
    },
    coordinator::{group, share::SHARE_SETTING_KEYS, transaction::TRANSACTION_SETTING_KEYS},
    errors::ApiError,
};

/// One setting of the broker.
struct BrokerKey {
    name: &'static str,
    kind: ConfigType,
    documentation: &'static str,
    /// The value in force when nothing was changed since the start.
    value: fn(&Context) -> String,
    /// The value when the node's configuration says nothing; none where that depends on the machine or is always said.
    default: Option<&'static str>,
    /// The least value, if it can be changed while the node runs: all of these are numbers.
    dynamic_least: Option<i64>,
}

/// A limit that tools set for a reassignment and remove after it. A node that is alone has nothing to limit.
const fn throttle(name: &'static str) -> BrokerKey {
    let text = "Bytes per second at most for replicas that are not in sync, of the topics that name them. Each shard has its \
                part of it.";
    dynamic(1, or("9223372036854775807", key(name, ConfigType::Long, text, |_| i64::MAX.to_string())))
}

/// Name of the limit on all connections.
const MAX_CONNECTIONS: &str = "max.connections";
/// Name of the limit on the connections of one address.
const MAX_CONNECTIONS_PER_IP: &str = "max.connections.per.ip";
/// Settings of the group coordinator that can be changed while the node runs.
const DYNAMIC_OF_GROUPS: [&str; 2] = ["group.consumer.assignment.interval.ms", "group.share.assignment.interval.ms"];
/// Most partitions in one answer of DescribeTopicPartitions (`max.request.partition.size.limit`).
pub(crate) const RESPONSE_PARTITIONS_MAX: i32 = 2000;

const fn key(
    name: &'static str,
    kind: ConfigType,
    documentation: &'static str,
    value: fn(&Context) -> String,
) -> BrokerKey {
    BrokerKey { name, kind, documentation, value, default: None, dynamic_least: None }
}

const fn or(default: &'static str, key: BrokerKey) -> BrokerKey {
    BrokerKey { default: Some(default), ..key }
}

const fn dynamic(least: i64, key: BrokerKey) -> BrokerKey {
    BrokerKey { dynamic_least: Some(least), ..key }
}

/// Settings that are somebody's choice even when the configuration file says nothing.
const ALWAYS_SET: [&str; 6] =
    ["advertised.listeners", "broker.id", "listener.security.protocol.map", "listeners", "log.dirs", "node.id"];

/// A count that is unlimited at its largest, as Kafka writes it.
fn count(value: usize) -> String {
    i32::try_from(value).unwrap_or(i32::MAX).to_string()
}

/// Addresses of listeners as Kafka writes them.
fn listeners(addresses: impl Iterator<Item = (String, String)>) -> String {
    addresses.map(|(name, address)| format!("{name}://{address}")).collect::<Vec<_>>().join(",")
}

/// Where clients of each listener are told to connect: of shards that are advertised, one after the other.
fn advertised_listeners(context: &Context) -> String {
    let told = context.config().listeners.iter().flat_map(|listener| {
        let brokers = context.view_through(listener).brokers().into_iter();
        brokers.map(|broker| (listener.name.clone(), host_and_port(&broker.host, broker.port)))
    });
    listeners(told)
}

/// Where the node listens. Of a name that has several addresses, all are shown.
fn own_listeners(context: &Context) -> String {
    let all = context.config().listeners.iter();
    listeners(all.flat_map(|listener| listener.addresses.iter().map(|a| (listener.name.clone(), a.to_string()))))
}

/// An IPv6 address has brackets, so that its port can be told from it.
fn host_and_port(host: &str, port: i32) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn protocol_map(context: &Context) -> String {
    let names = context.config().listeners.iter().map(|listener| format!("{}:{PLAINTEXT}", listener.name));
    names.collect::<Vec<_>>().join(",")
}

/// A setting of the engine, which the wire knows only as it is shown.
fn of_file(context: &Context, name: &str, default: &str) -> String {
    context.config().broker_settings.get(name).map_or_else(|| default.to_owned(), Clone::clone)
}

/// By name.
static KEYS: &[BrokerKey] = &[
    key(
        "advertised.listeners",
        ConfigType::List,
        "Where clients are told to connect, by the listener that they came through.",
        advertised_listeners,
    ),
    or(
        "true",
        key(
            "auto.create.topics.enable",
            ConfigType::Boolean,
            "Whether asking for the metadata of a topic that does not exist creates it.",
            |context| context.config().auto_create_topics.to_string(),
        ),
    ),
    key("broker.id", ConfigType::Int, "The node's id.", |context| context.engine().node_id().to_string()),
    or(
        "600000",
        key(
            "connections.max.idle.ms",
            ConfigType::Long,
            "A connection without traffic for that long is closed.",
            |context| context.config().idle_timeout.as_millis().to_string(),
        ),
    ),
    or(
        "1",
        key(replication::DEFAULT_FACTOR, ConfigType::Int, "Replicas of a topic that says no number.", |context| {
            replication::default_factor(&context.config().broker_settings).to_string()
        }),
    ),
    or(
        "true",
        key("delete.topic.enable", ConfigType::Boolean, "Whether topics can be deleted.", |_| "true".to_string()),
    ),
    or(
        "57671680",
        key("fetch.max.bytes", ConfigType::Int, "Bytes of one fetch's answer at most.", |context| {
            count(context.config().fetch_max_bytes)
        }),
    ),
    throttle("follower.replication.throttled.rate"),
    throttle("leader.replication.throttled.rate"),
    key(
        "listener.security.protocol.map",
        ConfigType::String,
        "The protocol of each listener: there is one.",
        protocol_map,
    ),
    key("listeners", ConfigType::List, "Where the node listens.", own_listeners),
    dynamic(
        0,
        or(
            "15000",
            key(
                "log.cleaner.backoff.ms",
                ConfigType::Long,
                "Pause between two looks for partitions to compact, to the second.",
                |_| node::COMPACTION_CHECK_MS.to_string(),
            ),
        ),
    ),
    key("log.dirs", ConfigType::List, "Where the logs are kept.", |context| {
        context.engine().data_dir().display().to_string()
    }),
    or(
        "300000",
        key("log.retention.check.interval.ms", ConfigType::Long, "Pause between two rounds of retention.", |context| {
            of_file(context, "log.retention.check.interval.ms", "300000")
        }),
    ),
    dynamic(
        1,
        key(
            MAX_CONNECTIONS,
            ConfigType::Int,
            "Connections of the whole node at most. Connections that are open stay open.",
            |context| count(context.config().max_connections),
        ),
    ),
    dynamic(
        1,
        key(
            MAX_CONNECTIONS_PER_IP,
            ConfigType::Int,
            "Connections of one address at most. Connections that are open stay open.",
            |context| count(context.config().max_connections_per_ip),
        ),
    ),
    or(
        "1000",
        key(
            "max.incremental.fetch.session.cache.slots",
            ConfigType::Int,
            "Incremental fetch sessions of one shard at most.",
            |context| count(context.config().fetch_sessions_max),
        ),
    ),
    or(
        "2000",
        key(
            "max.request.partition.size.limit",
            ConfigType::Int,
            "Partitions in one answer of DescribeTopicPartitions at most.",
            |_| RESPONSE_PARTITIONS_MAX.to_string(),
        ),
    ),
    key("node.id", ConfigType::Int, "The node's id.", |context| context.engine().node_id().to_string()),
    or(
        "1",
        key("num.partitions", ConfigType::Int, "Partitions of a topic that says no number.", |context| {
            context.config().num_partitions.to_string()
        }),
    ),
    dynamic(
        1,
        or(
            "86400000",
            key(
                "producer.id.expiration.ms",
                ConfigType::Int,
                "How long an idle idempotent producer is remembered.",
                |context| of_file(context, "producer.id.expiration.ms", "86400000"),
            ),
        ),
    ),
    key(
        "queued.max.request.bytes",
        ConfigType::Long,
        "Memory of one shard for requests, received or being received.",
        |context| context.config().receive_memory_bytes.to_string(),
    ),
    key("socket.request.max.bytes", ConfigType::Int, "Bytes of one request at most.", |context| {
        count(context.config().max_frame_bytes)
    }),
    key("telemetry.max.bytes", ConfigType::Int, "Bytes of one push of a client's metrics at most.", |_| {
        crate::broker::telemetry::TELEMETRY_BYTES_MAX.to_string()
    }),
];

/// Settings that Kafka lets change while it runs, but that have nothing to act on here: by the beginning of the name.
const OF_NO_USE: &[(&[&str], &str)] = &[
    (
        &[
            "background.threads",
            "log.cleaner.threads",
            "num.io.threads",
            "num.network.threads",
            "num.recovery.threads.per.data.dir",
        ],
        "there is one thread per shard, and no pool of threads",
    ),
    (&["log.cleaner.dedupe.", "log.cleaner.io."], "compaction has a part of the node's memory, and yields to serving"),
    (&["follower.", "num.replica.fetchers"], "nodes have one connection for copies to each other"),
    (&["remote."], "there is no tiered storage"),
    (&["ssl.", "sasl.", "principal.builder.class"], "there is neither TLS nor authentication"),
    (&["transaction.two.phase.commit.enable"], "two-phase commit is not served"),
    (&["group.streams."], "streams groups are not served"),
    (&["group.coordinator.", "share.coordinator.cached."], "records of groups go through no buffer of their own"),
    (&["max.connection.creation.rate", "max.connections.per.ip.overrides"], "this limit does not exist"),
    (&["cordoned.log.dirs", "replica.alter.log.dirs."], "there is one data directory"),
    (&["config.providers", "metric.reporters"], "there are no plug-ins"),
];

const SHARE_DOCUMENTATION: &str = "A setting of share groups, which means what it means in Kafka.";

/// What topics inherit from.
pub(crate) fn inherited<'a>(context: &'a Context, dynamic: &'a BTreeMap<String, String>) -> Inherited<'a> {
    Inherited { dynamic, started: context.engine().started_topic_defaults() }
}

/// All settings of the broker, by name.
pub(crate) fn describe(context: &Context) -> Vec<Setting> {
    let changed = context.engine().broker_settings();
    let file = &context.config().broker_settings;
    let mut all: Vec<Setting> =
        keys().iter().flat_map(|key| entries::of_broker(key, inherited(context, &changed))).collect();
    let groups = group::SETTING_KEYS.iter().map(|key| (key.name, key.kind, key.default.to_owned(), key.documentation));
    let shares =
        SHARE_SETTING_KEYS.iter().map(|key| (key.name, ConfigType::Int, key.default.to_string(), SHARE_DOCUMENTATION));
    let transactions = TRANSACTION_SETTING_KEYS
        .iter()
        .map(|key| (key.name, ConfigType::Int, key.default.to_string(), key.documentation));
    all.extend(groups.chain(shares).chain(transactions).map(|(name, kind, default, documentation)| {
        let given = file.get(name).map(|value| Level::new(name, value, Source::StaticBroker));
        let default = Level::new(name, &default, Source::Default);
        let levels = entries::dynamic_levels(&changed, name).chain(given).chain([default]).collect();
        Setting {
            is_read_only: !DYNAMIC_OF_GROUPS.contains(&name),
            documentation: StrBytes::from_static_str(documentation),
            ..Setting::new(name, kind, levels, None)
        }
    }));
    all.extend(KEYS.iter().map(|key| of_key(key, context, &changed)));
    if context.view().has_epochs() {
        let shown = REPLICATION_KEYS.iter().filter(|key| key.name != replication::DEFAULT_FACTOR);
        all.extend(shown.filter_map(|key| of_replication(key, file)));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A setting of replication; none if it has no value.
fn of_replication(key: &ReplicationKey, file: &BTreeMap<String, String>) -> Option<Setting> {
    let given = file.get(key.name).map(|value| Level::new(key.name, value, Source::StaticBroker));
    let default = key.default.map(|value| Level::new(key.name, value, Source::Default));
    let levels: Vec<_> = given.into_iter().chain(default).collect();
    let documentation = StrBytes::from_static_str(key.documentation);
    (!levels.is_empty()).then(|| Setting { documentation, ..Setting::new(key.name, key.kind, levels, None) })
}

/// Settings that were changed since the start, as the default of all brokers.
pub(crate) fn describe_changed(context: &Context) -> Vec<Setting> {
    let changed = context.engine().broker_settings();
    let all = describe(context).into_iter().filter_map(|setting| {
        let value = changed.get(&format!("{ALL_BROKERS_PREFIX}{}", &*setting.name))?;
        let level = Level::new(&setting.name, value, Source::DynamicDefaultBroker);
        let shown = Setting::new(&setting.name, setting.kind, vec![level], None);
        (!setting.is_read_only).then_some(Setting {
            is_read_only: false,
            documentation: setting.documentation,
            ..shown
        })
    });
    all.collect()
}

fn of_key(key: &BrokerKey, context: &Context, changed: &BTreeMap<String, String>) -> Setting {
    let started = (key.value)(context);
    // Where the node is and who it is has no default worth the name.
    let is_said = context.config().broker_settings.contains_key(key.name) || ALWAYS_SET.contains(&key.name);
    let is_static = key.default.map_or(is_said, |default| default != started);
    let source = if is_static { Source::StaticBroker } else { Source::Default };
    let default = key.default.filter(|_| is_static).map(|default| Level::new(key.name, default, Source::Default));
    let dynamic = key.dynamic_least.map(|_| entries::dynamic_levels(changed, key.name));
    let levels = dynamic.into_iter().flatten().chain([Level::new(key.name, &started, source)]).chain(default);
    Setting {
        is_read_only: key.dynamic_least.is_none(),
        documentation: StrBytes::from_static_str(key.documentation),
        ..Setting::new(key.name, key.kind, levels.collect(), None)
    }
}

/// Checks that a setting of the broker can be changed while the node runs; answers whether it is a list.
pub(crate) fn check_is_dynamic(name: &str, config: &NetConfig) -> Result<bool, ApiError> {
    if let Some(key) = keys().iter().find(|key| key.broker_name == name) {
        return Ok(key.kind == ConfigType::List);
    }
    if DYNAMIC_OF_GROUPS.contains(&name) || KEYS.iter().any(|key| key.name == name && key.dynamic_least.is_some()) {
        return Ok(false);
    }
    let is_known = KEYS.iter().any(|key| key.name == name)
        || group::SETTING_KEYS.iter().any(|key| key.name == name)
        || SHARE_SETTING_KEYS.iter().any(|key| key.name == name)
        || TRANSACTION_SETTING_KEYS.iter().any(|key| key.name == name)
        || keys().iter().any(|key| key.synonyms.iter().any(|synonym| synonym.name == name))
        || config.broker_settings.contains_key(name);
    if is_known {
        let reason = format!("Cannot update these configs dynamically: [{name}]");
        return Err(ApiError::new(ResponseError::InvalidRequest, reason));
    }
    let of_no_use = OF_NO_USE.iter().find(|(names, _)| names.iter().any(|beginning| name.starts_with(beginning)));
    let reason = match of_no_use {
        Some((_, reason)) => format!("{name} would change nothing: {reason}"),
        None => format!("Unknown broker config name: {name}"),
    };
    Err(ApiError::new(ResponseError::InvalidConfig, reason))
}

/// Checks that a node of a cluster may have a value of its own, as Kafka does for min.insync.replicas once it has eligible
/// leader replicas (KIP-966). What decides about leaders and acknowledgements has to be the same wherever that is decided.
pub(crate) fn check_may_differ(name: &str) -> Result<(), ApiError> {
    if !is_of_all_nodes(name) {
        return Ok(());
    }
    let reason = format!(
        "Broker-level {name} cannot be altered in a cluster, whose brokers have to agree on it: set the default of all \
         brokers, or the topic's own value."
    );
    Err(ApiError::new(ResponseError::InvalidConfig, reason))
}

/// Checks a new value of a setting that can be changed.
pub(crate) fn check_value(name: &str, value: &str, config: &NetConfig) -> Result<(), ApiError> {
    let refuse = |reason: String| Err(ApiError::new(ResponseError::InvalidRequest, reason));
    if let Some(key) = keys().iter().find(|key| key.broker_name == name) {
        return match config::check_value(key, name, value) {
            Ok(()) => Ok(()),
            Err(Refusal(reason, true)) => Err(ApiError::new(ResponseError::InvalidConfig, reason)),
            Err(Refusal(reason, false)) => refuse(reason),
        };
    }
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        let settings =
            config.group_settings().map_err(|error| ApiError::new(ResponseError::InvalidConfig, error.to_string()))?;
        return settings.check_dynamic(name, value).or_else(refuse);
    };
    let (least, most) = (key.dynamic_least.unwrap_or(i64::MIN), most(key.kind));
    match value.trim().parse::<i64>() {
        Ok(number) if number < least => {
            refuse(format!("Invalid value {value} for configuration {name}: Value must be at least {least}"))
        }
        Ok(number) if number <= most => Ok(()),
        _ => {
            let kind = if key.kind == ConfigType::Int { "INT" } else { "LONG" };
            refuse(format!("Invalid value {value} for configuration {name}: Not a number of type {kind}"))
        }
    }
}

fn most(kind: ConfigType) -> i64 {
    if kind == ConfigType::Int { i32::MAX.into() } else { i64::MAX }
}

/// The limits on connections in force: of the node, and of one address.
pub(crate) fn connection_limits(config: &NetConfig, changed: &BTreeMap<String, String>) -> (usize, usize) {
    let limit = |name, started| match dynamic_value(changed, name).and_then(|value| value.trim().parse().ok()) {
        Some(limit) if limit == i32::MAX as usize => usize::MAX,
        Some(limit) => limit,
        None => started,
    };
    (limit(MAX_CONNECTIONS, config.max_connections), limit(MAX_CONNECTIONS_PER_IP, config.max_connections_per_ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_by_name() {
        assert!(KEYS.is_sorted_by_key(|key| key.name));
    }

    #[test]
    fn only_settings_that_take_effect_can_be_changed() {
        let config = NetConfig::default();
        for (name, is_list) in [
            (MAX_CONNECTIONS, false),
            ("log.cleaner.backoff.ms", false),
            ("log.cleanup.policy", true),
            ("log.retention.ms", false),
            ("group.share.assignment.interval.ms", false),
        ] {
            assert_eq!(check_is_dynamic(name, &config), Ok(is_list), "{name}");
        }
        for (name, error) in [
            ("node.id", ResponseError::InvalidRequest),
            ("num.partitions", ResponseError::InvalidRequest),
            ("log.retention.hours", ResponseError::InvalidRequest),
            ("group.consumer.session.timeout.ms", ResponseError::InvalidRequest),
            ("group.share.session.timeout.ms", ResponseError::InvalidRequest),
            ("num.io.threads", ResponseError::InvalidConfig),
            ("ssl.keystore.location", ResponseError::InvalidConfig),
            ("no.such.setting", ResponseError::InvalidConfig),
        ] {
            assert_eq!(check_is_dynamic(name, &config).expect_err(name).error, error, "{name}");
        }
    }

    #[test]
    fn new_values_are_checked_by_kind_and_range() {
        let check = |name, value| check_value(name, value, &NetConfig::default()).map_err(|error| error.error);
        for (name, good, bad) in [
            (MAX_CONNECTIONS, "5", ["0", "x", "2147483648"]),
            ("log.cleaner.backoff.ms", "2147483648", ["-1", "x", "1.5"]),
            ("log.retention.ms", "-1", ["-2", "x", ""]),
            ("log.segment.bytes", "1048576", ["100", "x", "2147483648"]),
            ("compression.type", "gzip", ["none", "GZIP", "brotli"]),
            ("compression.gzip.level", "9", ["0", "10", "x"]),
            ("message.max.bytes", "52428800", ["-1", "2147483648", "x"]),
            ("log.cleanup.policy", "compact,delete", ["frob", "compact,frob", "delete;compact"]),
            ("group.consumer.assignment.interval.ms", "15000", ["15001", "-1", "x"]),
            ("group.share.assignment.interval.ms", "0", ["15001", "-1", "x"]),
        ] {
            assert_eq!(check(name, good), Ok(()), "{name}");
            for bad in bad {
                assert_eq!(check(name, bad), Err(ResponseError::InvalidRequest), "{name}={bad}");
            }
        }
    }

    #[test]
    fn changed_limits_take_precedence() {
        let config = NetConfig { max_connections: 7, ..NetConfig::default() };
        assert_eq!(connection_limits(&config, &BTreeMap::new()), (7, usize::MAX));
        let changed = BTreeMap::from([
            (MAX_CONNECTIONS.to_string(), i32::MAX.to_string()),
            (format!("{ALL_BROKERS_PREFIX}{MAX_CONNECTIONS}"), "8".to_string()),
            (format!("{ALL_BROKERS_PREFIX}{MAX_CONNECTIONS_PER_IP}"), "3".to_string()),
        ]);
        assert_eq!(connection_limits(&config, &changed), (usize::MAX, 3));
    }
}
