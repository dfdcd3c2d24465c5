//! Settings of a node that belongs to a cluster: what they are called, their defaults, and what values they may have.
//!
//! They are given at the start. A node that is alone has none of them.

use std::collections::BTreeMap;

use millrace_engine::config::ConfigType;

use crate::{
    broker::config::INTER_BROKER_LISTENER,
    coordinator::{group::OFFSETS_TOPIC, share::shell::states::STATE_TOPIC, transaction::shell::TRANSACTION_TOPIC},
};

/// The longest `broker.session.timeout.ms`: no node's lease lasts longer, ms.
pub const SESSION_MS_MAX: i64 = 60_000;

/// One of them.
#[derive(Debug)]
pub(crate) struct ReplicationKey {
    /// Kafka's name.
    pub(crate) name: &'static str,
    /// What kind of value it has.
    pub(crate) kind: ConfigType,
    /// The value when nothing is said; none if there is no such value.
    pub(crate) default: Option<&'static str>,
    /// What it does.
    pub(crate) documentation: &'static str,
    legal: Legal,
}

/// The values that a setting may have.
#[derive(Debug)]
enum Legal {
    /// A whole number between these, both included.
    Between(i64, i64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Any text.
    Text,
}

const fn key(
    name: &'static str,
    kind: ConfigType,
    default: Option<&'static str>,
    legal: Legal,
    documentation: &'static str,
) -> ReplicationKey {
    ReplicationKey { name, kind, default, documentation, legal }
}

/// Kafka's own selector of replicas by rack, the only one that is known here.
const RACK_AWARE: &str = "org.apache.kafka.common.replica.RackAwareReplicaSelector";
const SELECTOR: &str = "replica.selector.class";
/// Name of the number of replicas of a topic that says none.
pub(crate) const DEFAULT_FACTOR: &str = "default.replication.factor";
const SHARE_FACTOR: &str = "share.coordinator.state.topic.replication.factor";
const SHARE_MIN_ISR: &str = "share.coordinator.state.topic.min.isr";
const TRANSACTION_FACTOR: &str = "transaction.state.log.replication.factor";
const TRANSACTION_MIN_ISR: &str = "transaction.state.log.min.isr";
const FACTOR: Legal = Legal::Between(1, i16::MAX as i64);

/// All of them, by name.
pub(crate) const REPLICATION_KEYS: &[ReplicationKey] = &[
    key(
        "auto.leader.rebalance.enable",
        ConfigType::Boolean,
        Some("true"),
        Legal::OneOf(&["true", "false"]),
        "Whether preferred leaders are made leaders again by themselves.",
    ),
    key("broker.rack", ConfigType::String, None, Legal::Text, "Where the node stands."),
    key(
        "broker.session.timeout.ms",
        ConfigType::Int,
        Some("3000"),
        Legal::Between(3_000, SESSION_MS_MAX),
        "How long etcd may not hear of the node before others lead what it led, in whole seconds. Kafka says 9000. \
         More of it bears an etcd whose disk takes seconds for a flush, and takes longer to replace a machine that is gone.",
    ),
    key(DEFAULT_FACTOR, ConfigType::Int, Some("1"), FACTOR, "Replicas of a topic that says no number."),
    key(
        INTER_BROKER_LISTENER,
        ConfigType::String,
        None,
        Legal::Text,
        "The listener through which brokers ask each other: the first one, if this is not set. All nodes have one of that \
         name.",
    ),
    key(
        "leader.imbalance.check.interval.seconds",
        ConfigType::Long,
        Some("300"),
        Legal::Between(1, i32::MAX as i64),
        "How often it is looked for leaders that are not the preferred ones.",
    ),
    key(
        "leader.imbalance.per.broker.percentage",
        ConfigType::Int,
        Some("0"),
        Legal::Between(0, 100),
        "Of the partitions that prefer a broker as leader, so many in a hundred may have another one. Kafka says 10, and its \
         controllers know no such limit since ZooKeeper left: they mend all.",
    ),
    key(
        "mirror.without.follower",
        ConfigType::String,
        None,
        Legal::OneOf(&["continue", "stop"]),
        "What the leader of two nodes without an etcd does while the other is away.",
    ),
    key(
        "offsets.topic.replication.factor",
        ConfigType::Int,
        Some("3"),
        FACTOR,
        "Replicas of the topic of groups and offsets, as far as there are brokers. It gets them as brokers come, unless a \
         reassignment gave it fewer. To be the same on all nodes.",
    ),
    key(
        "replica.lag.time.max.ms",
        ConfigType::Long,
        Some("30000"),
        Legal::Between(500, i64::MAX),
        "How long a follower may be behind its leader and count as in sync.",
    ),
    key(
        SELECTOR,
        ConfigType::String,
        None,
        Legal::OneOf(&[RACK_AWARE]),
        "Which replica consumers are told to read from: the one in their rack, or, if this is not set, the leader.",
    ),
    key(
        SHARE_MIN_ISR,
        ConfigType::Int,
        Some("2"),
        FACTOR,
        "Replicas that must have a record of share groups' state, as far as it has so many. Counts when the topic is made, as its \
         min.insync.replicas.",
    ),
    key(
        SHARE_FACTOR,
        ConfigType::Int,
        Some("3"),
        FACTOR,
        "Replicas of the topic of share groups' state, as far as there are brokers. It gets them as brokers come, unless a \
         reassignment gave it fewer. To be the same on all nodes.",
    ),
    key(
        TRANSACTION_MIN_ISR,
        ConfigType::Int,
        Some("2"),
        FACTOR,
        "Replicas that must have a record of that topic, as far as it has so many. Counts when the topic is made, as its \
         min.insync.replicas.",
    ),
    key(
        TRANSACTION_FACTOR,
        ConfigType::Int,
        Some("3"),
        FACTOR,
        "Replicas of the topic of transactions, as far as there are brokers. It gets them as brokers come, unless a \
         reassignment gave it fewer. To be the same on all nodes.",
    ),
];

/// Checks settings by name; what is wrong, in words.
pub fn check_replication_settings(settings: &BTreeMap<String, String>) -> Result<(), String> {
    settings.iter().try_for_each(|(name, value)| {
        let key = REPLICATION_KEYS.iter().find(|key| key.name == name);
        key.ok_or_else(|| format!("{name} is no setting of replication"))?.check(value)
    })
}

/// Whether that is one of them.
pub fn is_replication_setting(name: &str) -> bool {
    REPLICATION_KEYS.iter().any(|key| key.name == name)
}

impl ReplicationKey {
    fn check(&self, value: &str) -> Result<(), String> {
        let name = self.name;
        match &self.legal {
            Legal::Text => Ok(()),
            Legal::OneOf(words) if words.contains(&value) => Ok(()),
            Legal::OneOf(words) => Err(format!("{name} is {value}: it can be {}", words.join(", "))),
            Legal::Between(least, most) => match value.parse::<i64>() {
                Ok(number) if (*least..=*most).contains(&number) => Ok(()),
                _ => Err(format!("{name} is {value}: a number from {least} to {most} is needed")),
            },
        }
    }
}

/// Whether consumers are told of replicas that are nearer than the leader.
pub(crate) fn selects_by_rack(settings: &BTreeMap<String, String>) -> bool {
    settings.get(SELECTOR).is_some_and(|class| class == RACK_AWARE)
}

/// Replicas of a topic that says no number.
pub(crate) fn default_factor(settings: &BTreeMap<String, String>) -> i16 {
    factor(settings, DEFAULT_FACTOR, 1)
}

/// The topics that coordinators keep their state in, each with the replicas that it should have.
pub fn internal_factors(settings: &BTreeMap<String, String>) -> BTreeMap<String, usize> {
    let topics = [OFFSETS_TOPIC, STATE_TOPIC, TRANSACTION_TOPIC];
    topics.map(|topic| (topic.to_owned(), usize::try_from(internal_factor(settings, topic)).unwrap_or(1))).into()
}

/// Replicas that an internal topic should have.
pub(crate) fn internal_factor(settings: &BTreeMap<String, String>, topic: &str) -> i16 {
    let name = match topic {
        STATE_TOPIC => SHARE_FACTOR,
        TRANSACTION_TOPIC => TRANSACTION_FACTOR,
        _ => "offsets.topic.replication.factor",
    };
    factor(settings, name, 3)
}

/// `min.insync.replicas` that an internal topic should have, if it shall not be the default. More than it has replicas counts as
/// so many; when it has got more, it is what it should be.
pub(crate) fn internal_min_isr(settings: &BTreeMap<String, String>, topic: &str) -> Option<i16> {
    let name = match topic {
        STATE_TOPIC => SHARE_MIN_ISR,
        TRANSACTION_TOPIC => TRANSACTION_MIN_ISR,
        _ => return None,
    };
    Some(factor(settings, name, 2))
}

fn factor(settings: &BTreeMap<String, String>, name: &str, default: i16) -> i16 {
    settings.get(name).and_then(|value| value.parse().ok()).filter(|factor| *factor >= 1).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_defaults_are_legal() {
        assert!(REPLICATION_KEYS.is_sorted_by_key(|key| key.name));
        for key in REPLICATION_KEYS {
            assert_eq!(key.default.map_or(Ok(()), |value| key.check(value)), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |name: &str, value: &str| {
            check_replication_settings(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
        };
        assert_eq!(check("broker.rack", "a"), Ok(()));
        assert_eq!(check("replica.lag.time.max.ms", "10000"), Ok(()));
        assert_eq!(check("auto.leader.rebalance.enable", "false"), Ok(()));
        assert_eq!(check(SELECTOR, RACK_AWARE), Ok(()));
        for (name, value) in [
            (SELECTOR, "com.example.Other"),
            (DEFAULT_FACTOR, "0"),
            (DEFAULT_FACTOR, "three"),
            ("replica.lag.time.max.ms", "499"),
            ("auto.leader.rebalance.enable", "no"),
            ("leader.imbalance.per.broker.percentage", "101"),
            ("leader.imbalance.check.interval.seconds", "0"),
            ("no.such.setting", "1"),
        ] {
            assert!(check(name, value).is_err_and(|reason| reason.contains(name)), "{name}={value}");
        }
    }

    #[test]
    fn internal_topics_want_three_replicas() {
        let mut settings = BTreeMap::new();
        assert_eq!((default_factor(&settings), internal_factor(&settings, "__consumer_offsets")), (1, 3));
        settings.insert("offsets.topic.replication.factor".to_owned(), "2".to_owned());
        assert_eq!(internal_factor(&settings, "__consumer_offsets"), 2);
        assert_eq!(internal_factor(&settings, "__share_group_state"), 3);
        assert_eq!(internal_factor(&settings, TRANSACTION_TOPIC), 3);
        let all = [(OFFSETS_TOPIC, 2), (STATE_TOPIC, 3), (TRANSACTION_TOPIC, 3)];
        assert_eq!(internal_factors(&settings), all.map(|(topic, factor)| (topic.to_owned(), factor)).into());
    }

    #[test]
    fn records_of_transactions_are_on_two_nodes_if_there_are_two() {
        let mut settings = BTreeMap::new();
        assert_eq!(internal_min_isr(&settings, TRANSACTION_TOPIC), Some(2));
        assert_eq!(internal_min_isr(&settings, STATE_TOPIC), Some(2));
        assert_eq!(internal_min_isr(&settings, OFFSETS_TOPIC), None);
        settings.insert(TRANSACTION_MIN_ISR.to_owned(), "3".to_owned());
        assert_eq!(internal_min_isr(&settings, TRANSACTION_TOPIC), Some(3));
    }
}
