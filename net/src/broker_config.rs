//! The broker's settings: which there are, what they are, which can be changed while the node runs.
//!
//! A setting is listed only if it is honoured. A change while the node runs is accepted only for settings that
//! take effect then; it is kept by the engine for the whole node, so that asking for one broker or for the default of
//! all brokers is the same.

use std::collections::BTreeMap;

use kafka_protocol::{ResponseError, protocol::StrBytes};
use millrace_engine::config::{ConfigType, keys};

use crate::{
    api::Context,
    config::NetConfig,
    errors::ApiError,
    group,
    settings::{self, Level, Setting, Source},
};

/// One setting of the broker.
struct BrokerKey {
    name: &'static str,
    kind: ConfigType,
    documentation: &'static str,
    /// The value in force when nothing was changed since the start.
    value: fn(&Context) -> String,
    /// Can be changed while the node runs.
    is_dynamic: bool,
}

/// Name of the limit on all connections.
pub(crate) const MAX_CONNECTIONS: &str = "max.connections";
/// Name of the limit on the connections of one address.
pub(crate) const MAX_CONNECTIONS_PER_IP: &str = "max.connections.per.ip";
/// Most partitions in one answer of DescribeTopicPartitions (`max.request.partition.size.limit`).
pub(crate) const RESPONSE_PARTITIONS_MAX: i32 = 2000;

const fn key(
    name: &'static str,
    kind: ConfigType,
    documentation: &'static str,
    value: fn(&Context) -> String,
) -> BrokerKey {
    BrokerKey { name, kind, documentation, value, is_dynamic: false }
}

const fn dynamic(key: BrokerKey) -> BrokerKey {
    BrokerKey { is_dynamic: true, ..key }
}

/// Settings that are somebody's choice even when the configuration file says nothing.
const ALWAYS_SET: [&str; 5] = ["advertised.listeners", "broker.id", "listeners", "log.dirs", "node.id"];

/// A count that is unlimited at its largest, as Kafka writes it.
fn count(value: usize) -> String {
    i32::try_from(value).unwrap_or(i32::MAX).to_string()
}

fn listeners(addresses: impl Iterator<Item = String>) -> String {
    addresses.map(|address| format!("PLAINTEXT://{address}")).collect::<Vec<_>>().join(",")
}

/// By name.
static KEYS: &[BrokerKey] = &[
    key("advertised.listeners", ConfigType::List, "Where clients are told to connect.", |context| {
        let brokers = crate::cluster::brokers(context.engine(), context.config());
        listeners(brokers.iter().map(|broker| format!("{}:{}", &*broker.host, broker.port)))
    }),
    key(
        "auto.create.topics.enable",
        ConfigType::Boolean,
        "Whether asking for the metadata of a topic that does not exist creates it.",
        |context| context.config().auto_create_topics.to_string(),
    ),
    key("broker.id", ConfigType::Int, "The node's id.", |context| context.engine().node_id().to_string()),
    key(
        "connections.max.idle.ms",
        ConfigType::Long,
        "A connection without traffic for that long is closed.",
        |context| context.config().idle_timeout.as_millis().to_string(),
    ),
    key("default.replication.factor", ConfigType::Int, "Replicas of a topic that says no number.", |_| "1".to_string()),
    key("delete.topic.enable", ConfigType::Boolean, "Whether topics can be deleted.", |_| "true".to_string()),
    key("fetch.max.bytes", ConfigType::Int, "Bytes of one fetch's answer at most.", |context| {
        count(context.config().fetch_max_bytes)
    }),
    key("listeners", ConfigType::List, "Where the node listens.", |context| {
        listeners(context.config().listen.iter().map(ToString::to_string))
    }),
    key("log.dirs", ConfigType::List, "Where the logs are kept.", |context| {
        context.engine().data_dir().display().to_string()
    }),
    dynamic(key(
        MAX_CONNECTIONS,
        ConfigType::Int,
        "Connections of the whole node at most. Connections that are open stay open.",
        |context| count(context.config().max_connections),
    )),
    dynamic(key(
        MAX_CONNECTIONS_PER_IP,
        ConfigType::Int,
        "Connections of one address at most. Connections that are open stay open.",
        |context| count(context.config().max_connections_per_ip),
    )),
    key(
        "max.incremental.fetch.session.cache.slots",
        ConfigType::Int,
        "Incremental fetch sessions of one shard at most.",
        |context| count(context.config().fetch_sessions_max),
    ),
    key(
        "max.request.partition.size.limit",
        ConfigType::Int,
        "Partitions in one answer of DescribeTopicPartitions at most.",
        |_| RESPONSE_PARTITIONS_MAX.to_string(),
    ),
    key("node.id", ConfigType::Int, "The node's id.", |context| context.engine().node_id().to_string()),
    key("num.partitions", ConfigType::Int, "Partitions of a topic that says no number.", |context| {
        context.config().num_partitions.to_string()
    }),
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
        crate::telemetry::TELEMETRY_BYTES_MAX.to_string()
    }),
];

/// All settings of the broker, by name.
pub(crate) fn describe(context: &Context) -> Vec<Setting> {
    let changed = context.engine().broker_settings();
    let file = &context.config().broker_settings;
    let mut settings: BTreeMap<&str, Setting> = BTreeMap::new();
    for (name, value) in file {
        settings.insert(name, from_file(name, value));
    }
    for key in keys().iter().filter(|key| !key.broker_name.is_empty()) {
        let levels = settings::broker_levels(key, &context.engine().topic_defaults());
        let value = levels.first().filter(|level| level.source == Source::StaticBroker);
        let setting = Setting {
            name: StrBytes::from_static_str(key.broker_name),
            value: value.map_or(StrBytes::from_static_str(key.default), |level| level.value.clone()),
            source: value.map_or(Source::Default, |level| level.source),
            kind: key.kind,
            is_read_only: true,
            documentation: settings::documentation(key),
            levels,
        };
        settings.insert(key.broker_name, setting);
    }
    for key in group::SETTING_KEYS {
        settings.insert(key.name, of_group(key, file.get(key.name)));
    }
    for key in KEYS {
        settings.insert(key.name, of_key(key, context, changed.get(key.name)));
    }
    settings.into_values().collect()
}

/// Settings that were changed since the start, as the default of all brokers.
pub(crate) fn describe_changed(context: &Context) -> Vec<Setting> {
    let changed = context.engine().broker_settings();
    let dynamic = KEYS.iter().filter(|key| key.is_dynamic);
    dynamic
        .filter_map(|key| {
            let mut setting = of_key(key, context, Some(changed.get(key.name)?));
            setting.source = Source::DynamicDefaultBroker;
            setting.levels.truncate(1);
            setting.levels.iter_mut().for_each(|level| level.source = Source::DynamicDefaultBroker);
            Some(setting)
        })
        .collect()
}

fn from_file(name: &str, value: &str) -> Setting {
    let [name, value] = [name, value].map(|text| StrBytes::from_string(text.to_string()));
    Setting {
        name: name.clone(),
        value: value.clone(),
        source: Source::StaticBroker,
        kind: ConfigType::String,
        is_read_only: true,
        documentation: StrBytes::new(),
        levels: vec![Level { name, value, source: Source::StaticBroker }],
    }
}

/// A setting of the group coordinator, which is read at the start.
fn of_group(key: &group::SettingKey, given: Option<&String>) -> Setting {
    let (name, default) = (StrBytes::from_static_str(key.name), StrBytes::from_static_str(key.default));
    let level = |value, source| Level { name: name.clone(), value, source };
    let given = given.map(|value| level(StrBytes::from_string(value.clone()), Source::StaticBroker));
    let levels: Vec<_> = given.into_iter().chain([level(default, Source::Default)]).collect();
    Setting {
        value: levels[0].value.clone(),
        source: levels[0].source,
        name,
        kind: key.kind,
        is_read_only: true,
        documentation: StrBytes::from_static_str(key.documentation),
        levels,
    }
}

fn of_key(key: &BrokerKey, context: &Context, changed: Option<&String>) -> Setting {
    let name = StrBytes::from_static_str(key.name);
    // Where the node is and who it is has no default worth the name.
    let is_in_file = context.config().broker_settings.contains_key(key.name) || ALWAYS_SET.contains(&key.name);
    let level =
        |value: &String, source| Level { name: name.clone(), value: StrBytes::from_string(value.clone()), source };
    let started = (key.value)(context);
    let started = level(&started, if is_in_file { Source::StaticBroker } else { Source::Default });
    let changed = changed.map(|value| level(value, Source::DynamicBroker));
    let levels: Vec<_> = changed.into_iter().chain([started]).collect();
    Setting {
        value: levels[0].value.clone(),
        source: levels[0].source,
        name,
        kind: key.kind,
        is_read_only: !key.is_dynamic,
        documentation: StrBytes::from_static_str(key.documentation),
        levels,
    }
}

/// Checks that a setting of the broker can be changed while the node runs.
pub(crate) fn check_is_dynamic(name: &str, config: &NetConfig) -> Result<(), ApiError> {
    let is_known = KEYS.iter().any(|key| key.name == name)
        || group::SETTING_KEYS.iter().any(|key| key.name == name)
        || keys().iter().any(|key| key.synonyms.iter().any(|synonym| synonym.name == name))
        || config.broker_settings.contains_key(name);
    if !is_known {
        return Err(ApiError::new(ResponseError::InvalidConfig, format!("Unknown broker config name: {name}")));
    }
    if !KEYS.iter().any(|key| key.name == name && key.is_dynamic) {
        let reason = format!("Cannot update these configs dynamically: [{name}]");
        return Err(ApiError::new(ResponseError::InvalidRequest, reason));
    }
    Ok(())
}

/// Checks a new value of a setting that can be changed.
pub(crate) fn check_value(name: &str, value: &str) -> Result<(), ApiError> {
    // All settings that can be changed are counts.
    match value.trim().parse::<i32>() {
        Ok(count) if count >= 1 => Ok(()),
        Ok(_) => Err(ApiError::new(
            ResponseError::InvalidRequest,
            format!("Invalid value {value} for configuration {name}: Value must be at least 1"),
        )),
        Err(_) => Err(ApiError::new(
            ResponseError::InvalidRequest,
            format!("Invalid value {value} for configuration {name}: Not a number of type INT"),
        )),
    }
}

/// The limits on connections in force: of the node, and of one address.
pub(crate) fn connection_limits(config: &NetConfig, changed: &BTreeMap<String, String>) -> (usize, usize) {
    let limit = |name, started| match changed.get(name).and_then(|value| value.trim().parse().ok()) {
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
        assert_eq!(check_is_dynamic(MAX_CONNECTIONS, &config), Ok(()));
        for (name, error) in [
            ("node.id", ResponseError::InvalidRequest),
            ("log.retention.hours", ResponseError::InvalidRequest),
            ("no.such.setting", ResponseError::InvalidConfig),
        ] {
            assert_eq!(check_is_dynamic(name, &config).expect_err(name).error, error);
        }
        assert_eq!(check_value(MAX_CONNECTIONS, "5"), Ok(()));
        assert!(check_value(MAX_CONNECTIONS, "0").is_err());
        assert!(check_value(MAX_CONNECTIONS, "x").is_err());
    }

    #[test]
    fn changed_limits_take_precedence() {
        let config = NetConfig { max_connections: 7, ..NetConfig::default() };
        assert_eq!(connection_limits(&config, &BTreeMap::new()), (7, usize::MAX));
        let changed = BTreeMap::from([
            (MAX_CONNECTIONS.to_string(), i32::MAX.to_string()),
            (MAX_CONNECTIONS_PER_IP.to_string(), "3".to_string()),
        ]);
        assert_eq!(connection_limits(&config, &changed), (usize::MAX, 3));
    }
}
