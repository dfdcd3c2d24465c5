//! Kafka's `group.*` and `offsets.*` broker settings, with Kafka 4.3's defaults.

use std::collections::BTreeMap;

use millrace_engine::config::ConfigType;

use super::assignor::{ASSIGNORS, Assignor};
use crate::coordinator::share::SHARE_SETTING_KEYS;

/// Whether groups may move between the classic and the consumer protocol while members are in them
/// (`group.consumer.migration.policy`, KIP-848).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigrationPolicy {
    /// Both ways.
    Bidirectional,
    /// Only from classic to consumer.
    Upgrade,
    /// Only from consumer to classic.
    Downgrade,
    /// Not at all.
    Disabled,
}

impl MigrationPolicy {
    /// Whether a classic group may become a consumer group.
    pub(crate) fn upgrades(self) -> bool {
        matches!(self, MigrationPolicy::Bidirectional | MigrationPolicy::Upgrade)
    }

    /// Whether a consumer group may become a classic group.
    pub(crate) fn downgrades(self) -> bool {
        matches!(self, MigrationPolicy::Bidirectional | MigrationPolicy::Downgrade)
    }
}

/// Settings of the group coordinator. Times are in ms unless the name says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `group.min.session.timeout.ms`
    pub(crate) min_session_timeout_ms: i32,
    /// `group.max.session.timeout.ms`
    pub(crate) max_session_timeout_ms: i32,
    /// `group.initial.rebalance.delay.ms`
    pub(crate) initial_rebalance_delay_ms: i32,
    /// `group.max.size`
    pub(crate) classic_size_max: usize,
    /// `group.consumer.session.timeout.ms`
    pub(crate) consumer_session_timeout_ms: i32,
    /// `group.consumer.heartbeat.interval.ms`
    pub(crate) consumer_heartbeat_interval_ms: i32,
    /// Least and most that groups may have instead of `group.consumer.session.timeout.ms`, `heartbeat.interval.ms` and
    /// `assignment.interval.ms`: `group.consumer.min.*` and `group.consumer.max.*`.
    pub(crate) consumer_bounds: [(i32, i32); 3],
    /// `group.consumer.max.size`
    pub(crate) consumer_size_max: usize,
    /// `group.consumer.assignors`: the first one is the default.
    pub(crate) consumer_assignors: Vec<Assignor>,
    /// `group.consumer.migration.policy`
    pub(crate) migration_policy: MigrationPolicy,
    /// `group.consumer.assignment.interval.ms`: least time between two target assignments of a group (KIP-1263).
    pub(crate) consumer_assignment_interval_ms: i32,
    /// `group.consumer.regex.refresh.interval.ms`
    pub(crate) regex_refresh_interval_ms: i64,
    /// `offset.metadata.max.bytes`, in code units of UTF-16
    pub(crate) offset_metadata_length_max: usize,
    /// `offsets.retention.minutes`, in ms.
    pub(crate) offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`
    pub(crate) retention_check_interval_ms: i64,
    /// `offsets.topic.num.partitions`: counts only when the topic is created.
    pub(crate) offsets_topic_partitions: i32,
    /// `offsets.topic.segment.bytes`: counts only when the topic is created.
    pub(crate) offsets_topic_segment_bytes: u64,
    /// `group.share.*` and `share.coordinator.*`
    pub(crate) share: crate::coordinator::share::Settings,
}

/// How long a new member may wait in JoinGroup before it is forgotten: it may have gone without our seeing it.
/// Kafka's `classicGroupNewMemberJoinTimeoutMs`, which no setting changes.
pub(crate) const NEW_MEMBER_JOIN_TIMEOUT_MS: i32 = 5 * 60 * 1000;

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_session_timeout_ms: 6_000,
            max_session_timeout_ms: 1_800_000,
            initial_rebalance_delay_ms: 3_000,
            classic_size_max: i32::MAX as usize,
            consumer_session_timeout_ms: 45_000,
            consumer_heartbeat_interval_ms: 5_000,
            consumer_bounds: [(45_000, 60_000), (5_000, 15_000), (0, 15_000)],
            consumer_size_max: i32::MAX as usize,
            consumer_assignors: ASSIGNORS.to_vec(),
            migration_policy: MigrationPolicy::Bidirectional,
            consumer_assignment_interval_ms: 1_000,
            regex_refresh_interval_ms: 600_000,
            offset_metadata_length_max: 4_096,
            offsets_retention_ms: 7 * 24 * 60 * 60_000,
            retention_check_interval_ms: 600_000,
            offsets_topic_partitions: 50,
            offsets_topic_segment_bytes: 100 << 20,
            share: crate::coordinator::share::Settings::default(),
        }
    }
}

/// A broker setting that the group coordinator understands.
#[derive(Debug)]
pub(crate) struct SettingKey {
    /// Kafka's name.
    pub(crate) name: &'static str,
    /// Kind of value.
    pub(crate) kind: ConfigType,
    /// Default value.
    pub(crate) default: &'static str,
    /// A sentence.
    pub(crate) documentation: &'static str,
}

macro_rules! setting_keys {
    ($($name:literal: $kind:ident = $default:literal, $documentation:literal;)*) => {
        /// Every setting read here, sorted by name.
        pub(crate) const SETTING_KEYS: &[SettingKey] = &[$(SettingKey {
            name: $name,
            kind: ConfigType::$kind,
            default: $default,
            documentation: $documentation,
        }),*];
    };
}

setting_keys! {
    "group.consumer.assignment.interval.ms": Int = "1000",
        "Least time between two target assignments of a consumer group.";
    "group.consumer.assignors": List = "uniform,range",
        "Server-side assignors of consumer groups; the first one is used when members do not say.";
    "group.consumer.heartbeat.interval.ms": Int = "5000",
        "How often members of consumer groups are told to send heartbeats.";
    "group.consumer.max.assignment.interval.ms": Int = "15000",
        "Most that a group may have for its assignment interval.";
    "group.consumer.max.heartbeat.interval.ms": Int = "15000",
        "Most that a group may have for its heartbeat interval.";
    "group.consumer.max.session.timeout.ms": Int = "60000",
        "Most that a group may have for its session timeout.";
    "group.consumer.max.size": Int = "2147483647",
        "Members of a consumer group at most.";
    "group.consumer.migration.policy": String = "bidirectional",
        "Whether groups with members may change between the classic and the consumer protocol: bidirectional, upgrade, \
         downgrade or disabled.";
    "group.consumer.min.assignment.interval.ms": Int = "0",
        "Least that a group may have for its assignment interval.";
    "group.consumer.min.heartbeat.interval.ms": Int = "5000",
        "Least that a group may have for its heartbeat interval.";
    "group.consumer.min.session.timeout.ms": Int = "45000",
        "Least that a group may have for its session timeout.";
    "group.consumer.regex.refresh.interval.ms": Int = "600000",
        "After that time at the latest the topics of subscribed regular expressions are looked up again.";
    "group.consumer.session.timeout.ms": Int = "45000",
        "A member of a consumer group that is not heard of for that long is out.";
    "group.initial.rebalance.delay.ms": Int = "3000",
        "How long the first rebalance of an empty classic group waits for more members.";
    "group.max.session.timeout.ms": Int = "1800000",
        "Longest session timeout that members of classic groups may ask for.";
    "group.max.size": Int = "2147483647",
        "Members of a classic group at most.";
    "group.min.session.timeout.ms": Int = "6000",
        "Shortest session timeout that members of classic groups may ask for.";
    "offset.metadata.max.bytes": Int = "4096",
        "Bytes of metadata with a committed offset at most.";
    "offsets.retention.check.interval.ms": Long = "600000",
        "Pause between looks for committed offsets that have expired.";
    "offsets.retention.minutes": Int = "10080",
        "How long committed offsets are kept once nobody needs them.";
    "offsets.topic.num.partitions": Int = "50",
        "Partitions of the topic that keeps groups and offsets. Counts only when it is created.";
    "offsets.topic.segment.bytes": Int = "104857600",
        "Segment size of the topic that keeps groups and offsets. Counts only when it is created.";
}

impl Settings {
    /// Takes over the settings given by Kafka's names and checks them; other names are left to others.
    pub(crate) fn parse(given: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut settings = Self { share: crate::coordinator::share::Settings::parse(given)?, ..Self::default() };
        for key in SETTING_KEYS {
            if let Some(value) = given.get(key.name) {
                settings.set(key.name, value.trim())?;
            }
        }
        if settings.max_session_timeout_ms < settings.min_session_timeout_ms {
            return Err("group.max.session.timeout.ms must not be less than group.min.session.timeout.ms".into());
        }
        settings.check_consumer_bounds()?;
        if settings.consumer_heartbeat_interval_ms >= settings.consumer_session_timeout_ms {
            let reason = "group.consumer.heartbeat.interval.ms must be less than group.consumer.session.timeout.ms";
            return Err(reason.into());
        }
        Ok(settings)
    }

    /// Least, own and most value of a setting that consumer groups may have of their own.
    fn consumer_bounded(&self, at: usize) -> (i32, i32, i32) {
        let values = [
            self.consumer_session_timeout_ms,
            self.consumer_heartbeat_interval_ms,
            self.consumer_assignment_interval_ms,
        ];
        let (least, most) = self.consumer_bounds[at];
        (least, values[at], most)
    }

    fn check_consumer_bounds(&self) -> Result<(), String> {
        for (at, name) in CONSUMER_BOUNDED.iter().enumerate() {
            let (_, value, _) = self.consumer_bounded(at);
            self.check_bounds(at, &format!("group.consumer.{name}"), value.into())?;
        }
        Ok(())
    }

    fn check_bounds(&self, at: usize, name: &str, value: i64) -> Result<(), String> {
        let (least, _, most) = self.consumer_bounded(at);
        let bounded = CONSUMER_BOUNDED[at];
        if value < least.into() {
            return Err(format!("{name} must be greater than or equal to group.consumer.min.{bounded}"));
        }
        if value > most.into() {
            return Err(format!("{name} must be less than or equal to group.consumer.max.{bounded}"));
        }
        Ok(())
    }

    /// Checks a new value of a setting of the broker that can change while it runs.
    pub(crate) fn check_dynamic(&self, name: &str, value: &str) -> Result<(), String> {
        let number = number(name, value.trim(), 0, i32::MAX.into())?;
        let bounded = name.strip_prefix("group.consumer.");
        match bounded.and_then(|bounded| CONSUMER_BOUNDED.iter().position(|known| *known == bounded)) {
            Some(at) => self.check_bounds(at, name, number),
            None => self.share.check_dynamic(name, number),
        }
    }

    /// Checks the settings that a consumer group has of its own.
    pub(crate) fn check_consumer_group(&self, own: &BTreeMap<String, String>) -> Result<(), String> {
        for (name, value) in own {
            let bounded = name.strip_prefix("consumer.");
            let at = bounded.and_then(|bounded| CONSUMER_BOUNDED.iter().position(|known| *known == bounded));
            let Some(at) = at else { return Err(format!("Unknown group config name: {name}")) };
            self.check_bounds(at, name, number(name, value.trim(), 0, i32::MAX.into())?)?;
        }
        let config = self.consumer_group(own, |_| None);
        match config.heartbeat_interval_ms < config.session_timeout_ms {
            true => Ok(()),
            false => Err("consumer.session.timeout.ms must be greater than consumer.heartbeat.interval.ms".into()),
        }
    }

    /// What is in force for a consumer group: its own settings over the broker's dynamic ones over those of the start.
    pub(crate) fn consumer_group<'a>(
        &self,
        own: &BTreeMap<String, String>,
        dynamic: impl Fn(&str) -> Option<&'a str>,
    ) -> ConsumerConfig {
        let [session_timeout_ms, heartbeat_interval_ms, assignment_interval_ms] = [0, 1, 2].map(|at| {
            let name = CONSUMER_BOUNDED[at];
            let (least, started, most) = self.consumer_bounded(at);
            let own = own.get(&format!("consumer.{name}")).map(String::as_str);
            let set = own.or_else(|| dynamic(&format!("group.consumer.{name}")));
            let set = set.and_then(|text| text.trim().parse::<i32>().ok());
            set.map_or(started, |set| set.clamp(least, most.max(least)))
        });
        ConsumerConfig { session_timeout_ms, heartbeat_interval_ms, assignment_interval_ms }
    }

    /// Every setting that a consumer group may have, with its default and the broker's setting that it falls back on.
    pub(crate) fn consumer_group_defaults() -> impl Iterator<Item = (&'static str, String, Option<String>)> {
        const NAMES: [&str; 3] =
            ["consumer.session.timeout.ms", "consumer.heartbeat.interval.ms", "consumer.assignment.interval.ms"];
        let defaults = Self::default();
        NAMES.into_iter().enumerate().map(move |(at, name)| {
            let (_, value, _) = defaults.consumer_bounded(at);
            (name, value.to_string(), Some(format!("group.{name}")))
        })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let size = |least: i64| number(name, value, least, i64::from(i32::MAX)).map(|size| size as usize);
        let millis = |least: i64| number(name, value, least, i64::from(i32::MAX)).map(|millis| millis as i32);
        match name {
            "group.consumer.assignment.interval.ms" => self.consumer_assignment_interval_ms = millis(0)?,
            "group.consumer.assignors" => self.consumer_assignors = assignors(value)?,
            "group.consumer.heartbeat.interval.ms" => self.consumer_heartbeat_interval_ms = millis(1)?,
            "group.consumer.max.assignment.interval.ms" => self.consumer_bounds[2].1 = millis(0)?,
            "group.consumer.max.heartbeat.interval.ms" => self.consumer_bounds[1].1 = millis(1)?,
            "group.consumer.max.session.timeout.ms" => self.consumer_bounds[0].1 = millis(1)?,
            "group.consumer.min.assignment.interval.ms" => self.consumer_bounds[2].0 = millis(0)?,
            "group.consumer.min.heartbeat.interval.ms" => self.consumer_bounds[1].0 = millis(1)?,
            "group.consumer.min.session.timeout.ms" => self.consumer_bounds[0].0 = millis(1)?,
            "group.consumer.max.size" => self.consumer_size_max = size(1)?,
            "group.consumer.migration.policy" => self.migration_policy = migration_policy(value)?,
            "group.consumer.regex.refresh.interval.ms" => self.regex_refresh_interval_ms = millis(10_000)?.into(),
            "group.consumer.session.timeout.ms" => self.consumer_session_timeout_ms = millis(1)?,
            "group.initial.rebalance.delay.ms" => self.initial_rebalance_delay_ms = millis(0)?,
            "group.max.session.timeout.ms" => self.max_session_timeout_ms = millis(0)?,
            "group.max.size" => self.classic_size_max = size(1)?,
            "group.min.session.timeout.ms" => self.min_session_timeout_ms = millis(0)?,
            "offset.metadata.max.bytes" => self.offset_metadata_length_max = size(0)?,
            "offsets.retention.check.interval.ms" => {
                self.retention_check_interval_ms = number(name, value, 1, i64::MAX / 2)?;
            }
            "offsets.retention.minutes" => {
                self.offsets_retention_ms = number(name, value, 1, i64::from(i32::MAX))? * 60_000;
            }
            "offsets.topic.num.partitions" => self.offsets_topic_partitions = millis(1)?,
            "offsets.topic.segment.bytes" => {
                self.offsets_topic_segment_bytes = number(name, value, 1, i64::from(i32::MAX))?.unsigned_abs();
            }
            _ => return Err(format!("{name} is not a setting of the group coordinator")),
        }
        Ok(())
    }
}

/// What consumer groups may have of their own, within bounds of the broker.
const CONSUMER_BOUNDED: [&str; 3] = ["session.timeout.ms", "heartbeat.interval.ms", "assignment.interval.ms"];

/// What is in force for one consumer group. Times are in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConsumerConfig {
    /// A member that is not heard of for that long is out.
    pub(crate) session_timeout_ms: i32,
    /// How often members are told to send heartbeats.
    pub(crate) heartbeat_interval_ms: i32,
    /// Least time between two target assignments.
    pub(crate) assignment_interval_ms: i32,
}

/// Knows what is in force for single groups, which can change at any time.
pub(crate) trait GroupConfigs: std::fmt::Debug {
    /// For a consumer group.
    fn consumer(&self, group: &str) -> ConsumerConfig;
}

/// No group has anything of its own.
impl GroupConfigs for Settings {
    fn consumer(&self, _: &str) -> ConsumerConfig {
        self.consumer_group(&BTreeMap::new(), |_| None)
    }
}

/// Checks settings that are meant for the group coordinator: all must be known and make sense together.
pub fn check_group_settings(given: &BTreeMap<String, String>) -> Result<(), String> {
    for name in given.keys() {
        let known = SETTING_KEYS.iter().map(|key| key.name).chain(SHARE_SETTING_KEYS.iter().map(|key| key.name));
        if !known.clone().any(|known| known == name) {
            let known: Vec<_> = known.collect();
            return Err(format!("{name} is not a setting of the group coordinator, which has: {}", known.join(", ")));
        }
    }
    Settings::parse(given).map(|_| ())
}

fn number(name: &str, value: &str, least: i64, most: i64) -> Result<i64, String> {
    let number: i64 = value.parse().map_err(|_| format!("{name} = '{value}': not a whole number"))?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{name} = {number}: must lie within {least} and {most}"))
    }
}

fn assignors(value: &str) -> Result<Vec<Assignor>, String> {
    let names: Vec<&str> = value.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let unknown = |name: &str| format!("group.consumer.assignors = '{value}': '{name}' is not built in");
    let known = |name: &&str| Assignor::by_name(name).ok_or_else(|| unknown(name));
    let assignors: Vec<_> = names.iter().map(known).collect::<Result<_, _>>()?;
    if assignors.is_empty() {
        return Err("group.consumer.assignors: at least one is needed".into());
    }
    Ok(assignors)
}

fn migration_policy(value: &str) -> Result<MigrationPolicy, String> {
    Ok(match value.to_lowercase().as_str() {
        "bidirectional" => MigrationPolicy::Bidirectional,
        "upgrade" => MigrationPolicy::Upgrade,
        "downgrade" => MigrationPolicy::Downgrade,
        "disabled" => MigrationPolicy::Disabled,
        _ => {
            let policies = "bidirectional, upgrade, downgrade and disabled";
            return Err(format!("group.consumer.migration.policy = '{value}': must be one of {policies}"));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::parse(&given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn documented_defaults_are_the_defaults() {
        let defaults: Vec<_> = SETTING_KEYS.iter().map(|key| (key.name, key.default)).collect();
        assert_eq!(format!("{:?}", parse(&defaults).unwrap()), format!("{:?}", Settings::default()));
    }

    #[test]
    fn a_consumer_group_has_its_own_then_what_changed_then_what_was_given_within_bounds() {
        let settings = parse(&[
            ("group.consumer.heartbeat.interval.ms", "6000"),
            ("group.consumer.max.session.timeout.ms", "50000"),
        ]);
        let own = [("consumer.session.timeout.ms".to_owned(), "60000".to_owned())].into();
        let dynamic = |name: &str| (name == "group.consumer.assignment.interval.ms").then_some("7");
        let expected =
            ConsumerConfig { session_timeout_ms: 50_000, heartbeat_interval_ms: 6_000, assignment_interval_ms: 7 };
        assert_eq!(settings.unwrap().consumer_group(&own, dynamic), expected);
    }

    #[test]
    fn bad_values_are_refused_with_name_and_reason() {
        let unknown = [("group.maxi".to_owned(), "1".to_owned())].into();
        let error = check_group_settings(&unknown).unwrap_err();
        assert!(
            error.starts_with("group.maxi is not a setting of the group coordinator, which has: group."),
            "{error}"
        );
        let error = parse(&[("group.max.size", "x")]).unwrap_err();
        assert_eq!(error, "group.max.size = 'x': not a whole number");
        let error = parse(&[("offsets.retention.minutes", "0")]).unwrap_err();
        assert_eq!(error, "offsets.retention.minutes = 0: must lie within 1 and 2147483647");
        assert!(parse(&[("group.consumer.assignors", "sticky")]).unwrap_err().contains("'sticky' is not built in"));
        assert!(parse(&[("group.consumer.migration.policy", "maybe")]).is_err());
        let error = parse(&[("group.consumer.session.timeout.ms", "44999")]).unwrap_err();
        assert_eq!(
            error,
            "group.consumer.session.timeout.ms must be greater than or equal to group.consumer.min.session.timeout.ms"
        );
        let known = [("group.share.max.size".to_owned(), "5".to_owned())].into();
        assert_eq!(check_group_settings(&known), Ok(()));
        assert!(parse(&[("group.min.session.timeout.ms", "9"), ("group.max.session.timeout.ms", "8")]).is_err());
    }
}
