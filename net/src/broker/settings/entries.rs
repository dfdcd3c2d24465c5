//! Settings of topics, groups and the broker as DescribeConfigs shows them: value, where it comes from, what it falls
//! back on.
//!
//! Plain data. What a topic setting means is the engine's; which broker settings there are is [`crate::broker::settings::broker`]'s.

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;
use millrace_engine::config::{ALL_BROKERS_PREFIX, ConfigKey, ConfigType, Effect, keys};

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

impl Level {
    pub(crate) fn new(name: &str, value: &str, source: Source) -> Self {
        Self { name: StrBytes::from_string(name.to_owned()), value: StrBytes::from_string(value.to_owned()), source }
    }
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: StrBytes,
    /// `None`: it was not set, and another setting counts.
    pub(crate) value: Option<StrBytes>,
    pub(crate) source: Source,
    pub(crate) kind: ConfigType,
    pub(crate) is_read_only: bool,
    pub(crate) documentation: StrBytes,
    /// The levels that were set, highest precedence first.
    pub(crate) levels: Vec<Level>,
}

impl Setting {
    /// A setting whose value is that of its first level; `otherwise` if there is none.
    pub(crate) fn new(name: &str, kind: ConfigType, levels: Vec<Level>, otherwise: Option<&str>) -> Self {
        let otherwise = otherwise.map(|value| StrBytes::from_string(value.to_owned()));
        Self {
            name: StrBytes::from_string(name.to_owned()),
            value: levels.first().map(|level| level.value.clone()).or(otherwise),
            source: levels.first().map_or(Source::Default, |level| level.source),
            kind,
            is_read_only: true,
            documentation: StrBytes::new(),
            levels,
        }
    }
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

/// The broker's side of a topic's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited<'a> {
    /// Dynamic settings of the broker, as the engine keeps them.
    pub(crate) dynamic: &'a BTreeMap<String, String>,
    /// Topic defaults that the node was started with, by topic setting name.
    pub(crate) started: &'a BTreeMap<String, String>,
}

/// The dynamic levels of a broker setting.
pub(crate) fn dynamic_levels(dynamic: &BTreeMap<String, String>, name: &str) -> impl Iterator<Item = Level> {
    let own = dynamic.get(name).map(|value| Level::new(name, value, Source::DynamicBroker));
    let all = dynamic.get(&format!("{ALL_BROKERS_PREFIX}{name}"));
    own.into_iter().chain(all.map(|value| Level::new(name, value, Source::DynamicDefaultBroker)))
}

/// All settings of a topic, by name.
pub(crate) fn of_topic(overrides: &BTreeMap<String, String>, inherited: Inherited<'_>) -> Vec<Setting> {
    let setting = |key: &'static ConfigKey| {
        let own = overrides.get(key.name).map(|value| Level::new(key.name, value, Source::Topic));
        let levels = own.into_iter().chain(broker_levels(key, inherited)).collect();
        let setting = Setting::new(key.name, key.kind, levels, Some(key.default));
        Setting { is_read_only: false, documentation: documentation(key), ..setting }
    };
    keys().iter().map(setting).collect()
}

/// The broker's levels of a topic setting. As in Kafka, the default of a setting with several names is the last one's
/// (`log.retention.hours`), and shown only behind a value of the first (`log.retention.ms`).
fn broker_levels(key: &'static ConfigKey, inherited: Inherited<'_>) -> Vec<Level> {
    let mut levels: Vec<_> = match key.broker_name {
        "" => Vec::new(),
        name => dynamic_levels(inherited.dynamic, name).collect(),
    };
    let name = if key.broker_name.is_empty() { key.name } else { key.broker_name };
    levels.extend(inherited.started.get(key.name).map(|value| Level::new(name, value, Source::StaticBroker)));
    if let Some(synonym) = key.synonyms.last()
        && (key.synonyms.len() == 1 || !levels.is_empty())
    {
        levels.push(Level::new(synonym.name, &default_in_unit(key, synonym.factor), Source::Default));
    }
    levels
}

fn default_in_unit(key: &ConfigKey, factor: i64) -> String {
    match key.default.parse::<i64>() {
        Ok(value) if factor > 1 => (value / factor).to_string(),
        _ => key.default.to_owned(),
    }
}

/// The settings of the broker that topics inherit a setting from: the first of them can be changed, the others are what
/// it falls back on.
pub(crate) fn of_broker(key: &'static ConfigKey, inherited: Inherited<'_>) -> impl Iterator<Item = Setting> {
    key.synonyms.iter().enumerate().map(move |(at, synonym)| {
        let is_last = at + 1 == key.synonyms.len();
        let documentation = documentation(key);
        if at == 0 {
            let setting = Setting::new(synonym.name, key.kind, broker_levels(key, inherited), None);
            return Setting { is_read_only: false, documentation, ..setting };
        }
        let default = Level::new(synonym.name, &default_in_unit(key, synonym.factor), Source::Default);
        let kind = if synonym.factor == 1 { key.kind } else { ConfigType::Int };
        let setting = Setting::new(synonym.name, kind, is_last.then_some(default).into_iter().collect(), None);
        Setting { documentation, ..setting }
    })
}

/// What is said of a setting, with what is special here.
fn documentation(key: &'static ConfigKey) -> StrBytes {
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

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    /// A topic's setting with its own, dynamic and started values.
    fn setting(own: &[(&str, &str)], dynamic: &[(&str, &str)], started: &[(&str, &str)], name: &str) -> Setting {
        let inherited = Inherited { dynamic: &map(dynamic), started: &map(started) };
        let all = of_topic(&map(own), inherited);
        all.into_iter().find(|setting| &*setting.name == name).expect("a known setting")
    }

    fn shown(setting: &Setting) -> (&str, Source) {
        (setting.value.as_deref().expect("a value"), setting.source)
    }

    fn levels(setting: &Setting) -> Vec<(&str, &str, Source)> {
        setting.levels.iter().map(|level| (&*level.name, &*level.value, level.source)).collect()
    }

    #[test]
    fn precedence_is_topic_then_node_then_all_brokers_then_file_then_default() {
        let default = setting(&[], &[], &[], "retention.ms");
        assert_eq!(shown(&default), ("604800000", Source::Default));
        assert_eq!(levels(&default), []);

        let (started, all, node) =
            (("retention.ms", "4"), ("brokers/log.retention.ms", "3"), ("log.retention.ms", "2"));
        let file = setting(&[], &[], &[started], "retention.ms");
        assert_eq!(shown(&file), ("4", Source::StaticBroker));
        let setting = setting(&[("retention.ms", "1")], &[all, node], &[started], "retention.ms");
        assert_eq!(shown(&setting), ("1", Source::Topic));
        assert_eq!(
            levels(&setting),
            [
                ("retention.ms", "1", Source::Topic),
                ("log.retention.ms", "2", Source::DynamicBroker),
                ("log.retention.ms", "3", Source::DynamicDefaultBroker),
                ("log.retention.ms", "4", Source::StaticBroker),
                ("log.retention.hours", "168", Source::Default)
            ]
        );
    }

    #[test]
    fn names_of_the_broker_are_shown_each_in_its_unit() {
        let key = keys().iter().find(|key| key.name == "retention.ms").unwrap();
        let dynamic = map(&[("log.retention.ms", "5000")]);
        let none = BTreeMap::new();
        let of = |dynamic: &BTreeMap<_, _>| -> Vec<_> {
            let all = of_broker(key, Inherited { dynamic, started: &none });
            all.map(|s| (s.name.to_string(), s.value.map(|v| v.to_string()), s.is_read_only)).collect()
        };
        let text = |text: &str| Some(text.to_owned());
        let [ms, minutes, hours] =
            ["log.retention.ms", "log.retention.minutes", "log.retention.hours"].map(str::to_owned);
        let fallbacks = [(minutes, None, true), (hours, text("168"), true)];
        assert_eq!(of(&none), [&[(ms.clone(), None, false)], &fallbacks[..]].concat());
        assert_eq!(of(&dynamic), [&[(ms, text("5000"), false)], &fallbacks[..]].concat());
    }

    #[test]
    fn acknowledged_records_are_flushed_by_default() {
        assert_eq!(shown(&setting(&[], &[], &[], "flush.messages")), ("1", Source::Default));
    }
}
