//! Kafka's settings of the transaction coordinator, with Kafka 4.3's defaults.

use std::collections::BTreeMap;

/// A broker setting that the transaction coordinator understands. All are numbers; times are in ms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransactionSettingKey {
    /// Kafka's name.
    pub(crate) name: &'static str,
    /// Default value.
    pub(crate) default: i64,
    least: i64,
    most: i64,
    /// A sentence.
    pub(crate) documentation: &'static str,
}

const INT_MAX: i64 = i32::MAX as i64;

/// How often ongoing transactions are looked at whose time is up.
pub(crate) const ABORT_INTERVAL_MS: &str = "transaction.abort.timed.out.transaction.cleanup.interval.ms";
/// How long an id may take for a transaction at most.
pub(crate) const TIMEOUT_MAX_MS: &str = "transaction.max.timeout.ms";
/// How often ids are looked for that nobody used for long.
pub(crate) const REMOVE_INTERVAL_MS: &str = "transaction.remove.expired.transaction.cleanup.interval.ms";
/// Partitions of the topic.
pub(crate) const TOPIC_PARTITIONS: &str = "transaction.state.log.num.partitions";
/// Segment size of the topic.
pub(crate) const TOPIC_SEGMENT_BYTES: &str = "transaction.state.log.segment.bytes";
/// How long an id is kept that nobody uses.
pub(crate) const ID_EXPIRATION_MS: &str = "transactional.id.expiration.ms";

/// Every setting read here, sorted by name.
pub(crate) const TRANSACTION_SETTING_KEYS: &[TransactionSettingKey] = &[
    TransactionSettingKey {
        name: ABORT_INTERVAL_MS,
        default: 10_000,
        least: 1,
        most: INT_MAX,
        documentation: "How often transactions are aborted whose time is up.",
    },
    TransactionSettingKey {
        name: TIMEOUT_MAX_MS,
        default: 900_000,
        least: 1,
        most: INT_MAX,
        documentation: "Longest timeout that a producer may ask for its transactions.",
    },
    TransactionSettingKey {
        name: REMOVE_INTERVAL_MS,
        default: 3_600_000,
        least: 1,
        most: INT_MAX,
        documentation: "Pause between looks for transactional ids that have expired.",
    },
    TransactionSettingKey {
        name: TOPIC_PARTITIONS,
        default: 50,
        least: 1,
        most: INT_MAX,
        documentation: "Partitions of the topic that keeps transactions. Counts only when it is created.",
    },
    TransactionSettingKey {
        name: TOPIC_SEGMENT_BYTES,
        default: 104_857_600,
        least: 1,
        most: INT_MAX,
        documentation: "Segment size of the topic that keeps transactions. Counts only when it is created.",
    },
    TransactionSettingKey {
        name: ID_EXPIRATION_MS,
        default: 604_800_000,
        least: 1,
        most: INT_MAX,
        documentation: "How long a transactional id is kept that nobody uses.",
    },
];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, i64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { values: TRANSACTION_SETTING_KEYS.iter().map(|key| (key.name, key.default)).collect() }
    }
}

impl Settings {
    /// Takes over the settings given by Kafka's names and checks them; other names are left to others.
    pub(crate) fn parse(given: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut settings = Self::default();
        for key in TRANSACTION_SETTING_KEYS {
            let Some(value) = given.get(key.name) else { continue };
            let number = value.trim().parse().ok().filter(|number| (key.least..=key.most).contains(number));
            let reason = || format!("{} is {value}: it must be a number from {} to {}", key.name, key.least, key.most);
            settings.values.insert(key.name, number.ok_or_else(reason)?);
        }
        Ok(settings)
    }

    /// A setting by Kafka's name.
    ///
    /// # Panics
    /// When there is no such setting.
    pub(crate) fn get(&self, name: &str) -> i64 {
        *self.values.get(name).expect("only settings of the table are asked for")
    }
}

/// Checks settings that are meant for the transaction coordinator: all must be known and make sense.
pub fn check_transaction_settings(given: &BTreeMap<String, String>) -> Result<(), String> {
    for name in given.keys() {
        let known = TRANSACTION_SETTING_KEYS.iter().map(|key| key.name);
        if !known.clone().any(|known| known == name) {
            let known: Vec<_> = known.collect();
            let known = known.join(", ");
            return Err(format!("{name} is not a setting of the transaction coordinator, which has: {known}"));
        }
    }
    Settings::parse(given).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_by_range() {
        let parse = |value: &str| Settings::parse(&[(TIMEOUT_MAX_MS.to_owned(), value.to_owned())].into());
        assert_eq!(parse("5").unwrap().get(TIMEOUT_MAX_MS), 5);
        for bad in ["0", "-1", "2147483648", "x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let unknown = [("transaction.maxi".to_owned(), "1".to_owned())].into();
        assert!(check_transaction_settings(&unknown).unwrap_err().starts_with("transaction.maxi is not a setting"));
        assert!(TRANSACTION_SETTING_KEYS.is_sorted_by_key(|key| key.name));
    }
}
