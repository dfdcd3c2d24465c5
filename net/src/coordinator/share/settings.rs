//! Kafka's settings of share groups, with Kafka 4.3's defaults: `group.share.*` and `share.coordinator.*` of the broker,
//! `share.*` of a group.

use std::collections::BTreeMap;

use millrace_engine::api::ReadBound;

use super::partition::Limits;

/// Settings of the broker. Times are in ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, i64>,
}

/// A broker setting that share groups understand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShareSettingKey {
    /// Kafka's name.
    pub(crate) name: &'static str,
    /// Default value.
    pub(crate) default: i64,
    least: i64,
    most: i64,
}

const fn key(name: &'static str, default: i64, least: i64, most: i64) -> ShareSettingKey {
    ShareSettingKey { name, default, least, most }
}

const INT_MAX: i64 = i32::MAX as i64;

/// Every setting read here, sorted by name.
pub(crate) const SHARE_SETTING_KEYS: &[ShareSettingKey] = &[
    key("group.share.assignment.interval.ms", 1_000, 0, INT_MAX),
    key("group.share.delivery.count.limit", 5, 2, 10),
    key("group.share.heartbeat.interval.ms", 5_000, 1, INT_MAX),
    key("group.share.initialize.retry.interval.ms", 30_000, 1, INT_MAX),
    key("group.share.max.assignment.interval.ms", 15_000, 0, INT_MAX),
    key("group.share.max.delivery.count.limit", 10, 5, 25),
    key("group.share.max.heartbeat.interval.ms", 15_000, 1, INT_MAX),
    key("group.share.max.partition.max.record.locks", 4_000, 2_000, 10_000),
    key("group.share.max.record.lock.duration.ms", 60_000, 30_000, 3_600_000),
    key("group.share.max.session.timeout.ms", 60_000, 1, INT_MAX),
    key("group.share.max.share.sessions", 2_000, 1, INT_MAX),
    key("group.share.max.size", 200, 1, 1_000),
    key("group.share.min.assignment.interval.ms", 0, 0, INT_MAX),
    key("group.share.min.delivery.count.limit", 2, 2, 5),
    key("group.share.min.heartbeat.interval.ms", 5_000, 1, INT_MAX),
    key("group.share.min.partition.max.record.locks", 100, 100, 2_000),
    key("group.share.min.record.lock.duration.ms", 15_000, 1_000, 30_000),
    key("group.share.min.session.timeout.ms", 45_000, 1, INT_MAX),
    key("group.share.partition.max.record.locks", 2_000, 100, 10_000),
    key("group.share.record.lock.duration.ms", 30_000, 1_000, 3_600_000),
    key("group.share.session.timeout.ms", 45_000, 1, INT_MAX),
    key("share.coordinator.cold.partition.snapshot.interval.ms", 300_000, 1, INT_MAX),
    key("share.coordinator.snapshot.update.records.per.snapshot", 500, 0, 500),
    key("share.coordinator.state.topic.num.partitions", 50, 1, INT_MAX),
    key("share.coordinator.state.topic.prune.interval.ms", 300_000, 1, INT_MAX),
    key("share.coordinator.state.topic.segment.bytes", 104_857_600, 1, INT_MAX),
];

/// Settings that a group may have of its own, in the range of two settings of the broker.
const BOUNDED: &[(&str, &str)] = &[
    ("share.assignment.interval.ms", "assignment.interval.ms"),
    ("share.delivery.count.limit", "delivery.count.limit"),
    ("share.heartbeat.interval.ms", "heartbeat.interval.ms"),
    ("share.partition.max.record.locks", "partition.max.record.locks"),
    ("share.record.lock.duration.ms", "record.lock.duration.ms"),
    ("share.session.timeout.ms", "session.timeout.ms"),
];

const AUTO_OFFSET_RESET: &str = "share.auto.offset.reset";
const ISOLATION_LEVEL: &str = "share.isolation.level";
const RENEW_ENABLE: &str = "share.renew.acknowledge.enable";

impl Default for Settings {
    fn default() -> Self {
        Self { values: SHARE_SETTING_KEYS.iter().map(|key| (key.name, key.default)).collect() }
    }
}

impl Settings {
    /// Takes over the settings given by Kafka's names and checks them; other names are left to others.
    pub(crate) fn parse(given: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut settings = Self::default();
        for key in SHARE_SETTING_KEYS {
            if let Some(value) = given.get(key.name) {
                settings.values.insert(key.name, number(key.name, value, key.least, key.most)?);
            }
        }
        for (_, name) in BOUNDED {
            let (least, value, most) = settings.bounds(name);
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "group.share.{name} is {value}: it must lie between group.share.min.{name} ({least}) and \
                     group.share.max.{name} ({most})"
                ));
            }
        }
        if settings.get("group.share.heartbeat.interval.ms") >= settings.get("group.share.session.timeout.ms") {
            return Err("group.share.heartbeat.interval.ms must be less than group.share.session.timeout.ms".into());
        }
        Ok(settings)
    }

    /// Least, own and most value of a setting that groups may change.
    fn bounds(&self, name: &str) -> (i64, i64, i64) {
        let of = |prefix: &str| self.get(&format!("group.share.{prefix}{name}"));
        (of("min."), of(""), of("max."))
    }

    /// A setting by Kafka's name.
    ///
    /// # Panics
    /// When there is no such setting.
    pub(crate) fn get(&self, name: &str) -> i64 {
        *self.values.get(name).expect("only settings of the table are asked for")
    }

    /// The same as a size.
    pub(crate) fn size(&self, name: &str) -> usize {
        usize::try_from(self.get(name)).unwrap_or(usize::MAX)
    }

    /// The settings of a group: its own ones over the broker's dynamic ones over those of the start.
    pub(crate) fn group<'a>(
        &self,
        own: &BTreeMap<String, String>,
        dynamic: impl Fn(&str) -> Option<&'a str>,
    ) -> GroupSettings {
        let bounded = |name: &str| {
            let (least, value, most) = self.bounds(name);
            let changed = dynamic(&format!("group.share.{name}")).and_then(|text| text.trim().parse().ok());
            let value = changed.unwrap_or(value);
            let own = own.get(&format!("share.{name}")).and_then(|own| own.trim().parse().ok());
            own.map_or(value, |own: i64| own.clamp(least, most.max(least)))
        };
        let reset = own.get(AUTO_OFFSET_RESET).and_then(|value| OffsetReset::parse(value).ok());
        GroupSettings {
            limits: Limits {
                in_flight_max: bounded("partition.max.record.locks"),
                delivery_count_max: i16::try_from(bounded("delivery.count.limit")).unwrap_or(i16::MAX),
                lock_ms: bounded("record.lock.duration.ms"),
                allows_renew: own.get(RENEW_ENABLE).is_none_or(|value| value.trim() != "false"),
            },
            offset_reset: reset.unwrap_or(OffsetReset::Latest),
            bound: match own.get(ISOLATION_LEVEL).map(|level| level.trim()) {
                Some("read_committed") => ReadBound::LastStable,
                Some(_) | None => ReadBound::HighWatermark,
            },
            heartbeat_interval_ms: bounded("heartbeat.interval.ms"),
            session_timeout_ms: bounded("session.timeout.ms"),
            assignment_interval_ms: bounded("assignment.interval.ms"),
        }
    }

    /// Checks a new value of a setting of the broker that can change while it runs.
    pub(crate) fn check_dynamic(&self, name: &str, value: i64) -> Result<(), String> {
        let bounded = name.strip_prefix("group.share.").unwrap_or(name);
        let (least, _, most) = self.bounds(bounded);
        match (value < least, value > most) {
            (true, _) => Err(format!("{name} must be greater than or equal to group.share.min.{bounded}")),
            (_, true) => Err(format!("{name} must be less than or equal to group.share.max.{bounded}")),
            _ => Ok(()),
        }
    }

    /// Checks a group's settings.
    pub(crate) fn check_group(&self, own: &BTreeMap<String, String>) -> Result<(), String> {
        for (name, value) in own {
            if let Some((_, bounded)) = BOUNDED.iter().find(|(known, _)| known == name) {
                let (least, _, most) = self.bounds(bounded);
                number(name, value, least, most)?;
                continue;
            }
            match name.as_str() {
                AUTO_OFFSET_RESET => OffsetReset::parse(value).map(|_| ())?,
                ISOLATION_LEVEL if matches!(value.as_str(), "read_committed" | "read_uncommitted") => {}
                ISOLATION_LEVEL => {
                    return Err(format!("{name} = '{value}': must be read_committed or read_uncommitted"));
                }
                RENEW_ENABLE if matches!(value.as_str(), "true" | "false") => {}
                RENEW_ENABLE => return Err(format!("{name} = '{value}': must be true or false")),
                _ => return Err(format!("Unknown group config name: {name}")),
            }
        }
        let settings = self.group(own, |_| None);
        if settings.heartbeat_interval_ms >= settings.session_timeout_ms {
            return Err("share.session.timeout.ms must be greater than share.heartbeat.interval.ms".into());
        }
        Ok(())
    }

    /// Every setting that a group may have, with its default and the broker's setting that it falls back on.
    pub(crate) fn group_defaults() -> Vec<(&'static str, String, Option<String>)> {
        let bounded = BOUNDED.iter().map(|(name, broker)| {
            let broker = format!("group.share.{broker}");
            let key = SHARE_SETTING_KEYS.iter().find(|key| key.name == broker);
            (*name, key.map_or(0, |key| key.default).to_string(), Some(broker))
        });
        let others = [(AUTO_OFFSET_RESET, "latest"), (ISOLATION_LEVEL, "read_uncommitted"), (RENEW_ENABLE, "true")];
        let others = others.map(|(name, value)| (name, value.to_string(), None));
        let mut all: Vec<_> = bounded.chain(others).collect();
        all.sort_unstable();
        all
    }
}

fn number(name: &str, value: &str, least: i64, most: i64) -> Result<i64, String> {
    let number: i64 = value.trim().parse().map_err(|_| format!("{name} = '{value}': not a whole number"))?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{name} = {number}: must lie within {least} and {most}"))
    }
}

/// What is in force for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupSettings {
    /// Limits of its share partitions.
    pub(crate) limits: Limits,
    /// Where a share partition begins that nobody has decided about.
    pub(crate) offset_reset: OffsetReset,
    /// Up to where its members read: who reads committed records only is not given those of aborted transactions either.
    pub(crate) bound: ReadBound,
    /// How often members are to be heard of.
    pub(crate) heartbeat_interval_ms: i64,
    /// After how long a member counts as gone.
    pub(crate) session_timeout_ms: i64,
    /// Least time between two target assignments.
    pub(crate) assignment_interval_ms: i64,
}

/// Where to begin (`share.auto.offset.reset`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OffsetReset {
    Earliest,
    Latest,
    /// At the records of the last that many ms.
    Ago(i64),
}

impl OffsetReset {
    fn parse(value: &str) -> Result<Self, String> {
        match value.trim().to_lowercase().as_str() {
            "earliest" => Ok(OffsetReset::Earliest),
            "latest" => Ok(OffsetReset::Latest),
            other => other.strip_prefix("by_duration:").and_then(duration_ms).map(OffsetReset::Ago).ok_or_else(|| {
                format!(
                    "{AUTO_OFFSET_RESET} = '{value}': must be 'earliest', 'latest' or of the format \
                     'by_duration:PnDTnHnMn.nS'"
                )
            }),
        }
    }
}

/// A duration of ISO 8601's form `PnDTnHnMn.nS`, in ms. `text` is in lower case.
fn duration_ms(text: &str) -> Option<i64> {
    let (days, rest) = text
        .strip_prefix('p')?
        .split_once('t')
        .map_or_else(|| Some((text.strip_prefix('p')?, None)), |(days, rest)| Some((days, Some(rest))))?;
    let mut total: f64 = 0.0;
    let mut is_empty = true;
    let mut take = |rest: &mut &str, unit: char, unit_ms: f64| -> Option<()> {
        if let Some((number, after)) = rest.split_once(unit) {
            let is_legal = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            let number: f64 = number.parse().ok().filter(|_| is_legal && (unit == 's' || !number.contains('.')))?;
            total += number * unit_ms;
            is_empty = false;
            *rest = after;
        }
        Some(())
    };
    let mut days = days;
    take(&mut days, 'd', 86_400_000.0)?;
    let mut time = rest.unwrap_or_default();
    for (unit, unit_ms) in [('h', 3_600_000.0), ('m', 60_000.0), ('s', 1_000.0)] {
        take(&mut time, unit, unit_ms)?;
    }
    let is_complete = days.is_empty() && time.is_empty() && !is_empty && rest != Some("");
    #[expect(clippy::cast_possible_truncation, reason = "it is bounded just before")]
    (is_complete && total < 9e15).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(given: &[(&str, &str)]) -> BTreeMap<String, String> {
        given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn keys_are_sorted_and_defaults_are_legal() {
        assert!(SHARE_SETTING_KEYS.is_sorted_by_key(|key| key.name));
        let all: Vec<_> = SHARE_SETTING_KEYS.iter().map(|key| (key.name, key.default.to_string())).collect();
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(Settings::parse(&map(&all)), Ok(Settings::default()));
    }

    #[test]
    fn bad_values_are_refused_with_name_and_reason() {
        let refused = |name, value| Settings::parse(&map(&[(name, value)])).unwrap_err();
        assert_eq!(
            refused("group.share.delivery.count.limit", "11"),
            "group.share.delivery.count.limit = 11: must lie within 2 and 10"
        );
        assert!(refused("group.share.record.lock.duration.ms", "1000").contains("group.share.min.record.lock"));
        let check = |name, value| Settings::default().check_group(&map(&[(name, value)]));
        assert_eq!(check("share.auto.offset.reset", "earliest"), Ok(()));
        assert_eq!(check("share.record.lock.duration.ms", "15000"), Ok(()));
        assert!(check("share.record.lock.duration.ms", "14999").is_err());
        assert!(check("share.isolation.level", "none").is_err());
        assert_eq!(check("no.such", "1"), Err("Unknown group config name: no.such".into()));
    }

    #[test]
    fn a_group_has_its_own_within_the_bounds_of_the_broker() {
        let own = map(&[("share.record.lock.duration.ms", "5"), ("share.auto.offset.reset", "by_duration:PT1M")]);
        let group = Settings::default().group(&own, |_| None);
        assert_eq!(group.limits.lock_ms, 15_000);
        assert_eq!(group.limits.delivery_count_max, 5);
        assert_eq!(group.offset_reset, OffsetReset::Ago(60_000));
    }

    #[test]
    fn durations_are_those_of_iso_8601() {
        for (text, ms) in [("p1d", 86_400_000), ("pt1h2m3.5s", 3_723_500), ("p2dt1s", 172_801_000), ("pt0s", 0)] {
            assert_eq!(duration_ms(text), Some(ms), "{text}");
        }
        for text in ["", "p", "pt", "1d", "p1", "pt1", "p1h", "pt1s1h", "pt-1s", "pt1.5h", "p1dt", "ptinfs"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
