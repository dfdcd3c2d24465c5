//! Topic settings.
//! CONTRACT SKELETON.

use std::collections::BTreeMap;

/// How a record's time is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// By the producer.
    CreateTime,
    /// By the broker.
    LogAppendTime,
}

/// What an acknowledgement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Written and flushed (`flush.messages=1`).
    Device,
    /// Written (`flush.messages` larger).
    Written,
}

/// Kind of a setting's value, as DescribeConfigs reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigType { /** BOOLEAN */ Boolean, /** STRING */ String, /** INT */ Int, /** LONG */ Long, /** LIST */ List }

/// One known topic setting.
#[derive(Debug)]
pub struct ConfigKey {
    /// Kafka's name of the topic setting.
    pub name: &'static str,
    /// Name of the broker setting it inherits (`log.retention.ms`...), as Kafka's synonyms show it.
    pub broker_name: &'static str,
    /// Kind of value.
    pub kind: ConfigType,
    /// Default value.
    pub default: &'static str,
    /// One or two sentences.
    pub documentation: &'static str,
}

/// A topic's settings, parsed and checked together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// max.message.bytes
    pub max_message_bytes: usize,
    /// message.timestamp.type
    pub timestamp_type: TimestampType,
    /// message.timestamp.before.max.ms
    pub timestamp_before_max_ms: i64,
    /// message.timestamp.after.max.ms
    pub timestamp_after_max_ms: i64,
    /// retention.ms; -1 is for ever.
    pub retention_ms: i64,
    /// retention.bytes; -1 is without limit.
    pub retention_bytes: i64,
    /// segment.bytes
    pub segment_bytes: u64,
    /// segment.ms
    pub segment_ms: i64,
    /// flush.messages
    pub durability: Durability,
    /// cleanup.policy
    pub cleanup_policy: CleanupPolicy,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanupPolicy { pub delete: bool, pub compact: bool }
pub fn check_topic_name(_: &str) -> Result<(), String> { Ok(()) }
pub fn apply_changes(_d: &BTreeMap<String, String>, o: &BTreeMap<String, String>, _c: &[crate::api::ConfigChange]) -> Result<BTreeMap<String, String>, String> { Ok(o.clone()) }
pub fn apply_broker_changes(o: &BTreeMap<String, String>, _c: &[crate::api::ConfigChange]) -> BTreeMap<String, String> { o.clone() }


/// Every setting, sorted by name.
pub fn keys() -> &'static [ConfigKey] { &[] }

impl TopicConfig {
    /// Parses overrides over broker defaults (both by *topic* setting name). The error says key, value and reason.
    pub fn parse(defaults: &BTreeMap<String, String>, overrides: &BTreeMap<String, String>) -> Result<TopicConfig, String> {
        let g = |k: &str, d: i64| overrides.get(k).or(defaults.get(k)).and_then(|v| v.parse().ok()).unwrap_or(d);
        Ok(TopicConfig { max_message_bytes: g("max.message.bytes", 1048588) as usize, timestamp_type: TimestampType::CreateTime, timestamp_before_max_ms: i64::MAX, timestamp_after_max_ms: 3600000,
        retention_ms: g("retention.ms", 604800000), retention_bytes: g("retention.bytes", -1), segment_bytes: g("segment.bytes", 1<<30) as u64, segment_ms: g("segment.ms", 604800000), durability: if g("flush.messages", 1)==1 {Durability::Device} else {Durability::Written}, cleanup_policy: CleanupPolicy{delete:true, compact:false} })
    }
}
