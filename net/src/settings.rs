//! Settings of topics and of the broker as DescribeConfigs shows them: value, where it comes from, what it falls back
//! on.
//!
//! Plain data. What a topic setting means is the engine's; which broker settings there are is [`crate::broker_config`]'s.

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;
use millrace_engine::config::{ConfigKey, ConfigType, Effect, keys};

/// Where a value comes from; the discriminants are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Topic = 1,
    DynamicBroker = 2,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
    ClientMetrics = 7,
    Group = 8,
}

/// A value at one level of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) name: StrBytes,
    pub(crate) value: StrBytes,
    pub(crate) source: Source,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: StrBytes,
    pub(crate) value: StrBytes,
    pub(crate) source: Source,
    pub(crate) kind: ConfigType,
    pub(crate) is_read_only: bool,
    pub(crate) documentation: StrBytes,
    /// The levels that were set, highest precedence first.
    pub(crate) levels: Vec<Level>,
}

/// The wire's number of a kind.
pub(crate) fn wire_kind(kind: ConfigType) -> i8 {
    match kind {
        ConfigType::Boolean => 1,
        ConfigType::String => 2,
        ConfigType::Int => 3,
        ConfigType::Long => 5,
        ConfigType::Double => 6,
        ConfigType::List => 7,
    }
}

/// All settings of a topic, by name. `defaults` are those of the configuration file, by topic setting name.
pub(crate) fn of_topic(overrides: &BTreeMap<String, String>, defaults: &BTreeMap<String, String>) -> Vec<Setting> {
    keys().iter().map(|key| topic_setting(key, overrides, defaults)).collect()
}

fn topic_setting(
    key: &'static ConfigKey,
    overrides: &BTreeMap<String, String>,
    defaults: &BTreeMap<String, String>,
) -> Setting {
    let name = StrBytes::from_static_str(key.name);
    let own = overrides.get(key.name).map(|value| Level {
        name: name.clone(),
        value: StrBytes::from_string(value.clone()),
        source: Source::Topic,
    });
    let inherited = broker_levels(key, defaults);
    // The default's level may be in another unit.
    let set = own.as_ref().or(inherited.first().filter(|level| level.source != Source::Default));
    let value = set.map_or(StrBytes::from_static_str(key.default), |level| level.value.clone());
    let source = set.map_or(Source::Default, |level| level.source);
    Setting {
        name,
        value,
        source,
        kind: key.kind,
        is_read_only: false,
        documentation: documentation(key),
        levels: own.into_iter().chain(inherited).collect(),
    }
}

/// The broker's levels of a topic setting: what the configuration file says, and the default, in the unit of the last
/// of its synonyms (`log.retention.hours`).
pub(crate) fn broker_levels(key: &'static ConfigKey, defaults: &BTreeMap<String, String>) -> Vec<Level> {
    let set = defaults.get(key.name).map(|value| Level {
        name: StrBytes::from_static_str(if key.broker_name.is_empty() { key.name } else { key.broker_name }),
        value: StrBytes::from_string(value.clone()),
        source: Source::StaticBroker,
    });
    let default = key.synonyms.last().map(|synonym| Level {
        name: StrBytes::from_static_str(synonym.name),
        value: match key.default.parse::<i64>() {
            Ok(value) if synonym.factor > 1 && value % synonym.factor == 0 => {
                StrBytes::from_string((value / synonym.factor).to_string())
            }
            _ => StrBytes::from_static_str(key.default),
        },
        source: Source::Default,
    });
    set.into_iter().chain(default).collect()
}

/// What is said of a setting, with what is special here.
pub(crate) fn documentation(key: &'static ConfigKey) -> StrBytes {
    match key.effect {
        Effect::Full => StrBytes::from_static_str(key.documentation),
        Effect::None { reason } => StrBytes::from_string(format!("{} It has no effect: {reason}.", key.documentation)),
        Effect::Only { value, reason } => {
            StrBytes::from_string(format!("{} Only {value} is accepted: {reason}.", key.documentation))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(overrides: &[(&str, &str)], defaults: &[(&str, &str)], name: &str) -> Setting {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let all = of_topic(&map(overrides), &map(defaults));
        all.into_iter().find(|setting| &*setting.name == name).expect("a known setting")
    }

    fn levels(setting: &Setting) -> Vec<(&str, &str, Source)> {
        setting.levels.iter().map(|level| (&*level.name, &*level.value, level.source)).collect()
    }

    #[test]
    fn precedence_is_topic_then_file_then_default() {
        let setting = settings(&[], &[], "retention.ms");
        assert_eq!((&*setting.value, setting.source), ("604800000", Source::Default));
        assert_eq!(levels(&setting), [("log.retention.hours", "168", Source::Default)]);

        let setting = settings(&[], &[("retention.ms", "5000")], "retention.ms");
        assert_eq!((&*setting.value, setting.source), ("5000", Source::StaticBroker));

        let setting = settings(&[("retention.ms", "7")], &[("retention.ms", "5000")], "retention.ms");
        assert_eq!((&*setting.value, setting.source), ("7", Source::Topic));
        assert_eq!(
            levels(&setting),
            [
                ("retention.ms", "7", Source::Topic),
                ("log.retention.ms", "5000", Source::StaticBroker),
                ("log.retention.hours", "168", Source::Default)
            ]
        );
    }

    #[test]
    fn acknowledged_records_are_flushed_by_default() {
        assert_eq!(&*settings(&[], &[], "flush.messages").value, "1");
    }
}
