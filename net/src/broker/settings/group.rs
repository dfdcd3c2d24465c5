//! Settings of single groups, as AlterConfigs and its kin set them (resource type GROUP).
//! A group need not be there to have settings.

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;
use millrace_engine::{config::ConfigType, engine::Engine};

use crate::{
    broker::settings::entries::{Level, Setting, Source, dynamic_levels},
    coordinator::{
        group::{KEPT_GROUPS, Settings},
        share,
    },
};

/// All settings of a group, as DescribeConfigs shows them. `given` are those of the broker that were given at the start.
pub(crate) fn describe(engine: &Engine, given: &BTreeMap<String, String>, group: &str) -> Vec<Setting> {
    describe_own(&KEPT_GROUPS.of(engine, group), &engine.broker_settings(), given)
}

fn describe_own(
    own: &BTreeMap<String, String>,
    dynamic: &BTreeMap<String, String>,
    given: &BTreeMap<String, String>,
) -> Vec<Setting> {
    let describe = |(name, default, broker): (&'static str, String, Option<String>)| {
        let own = own.get(name).map(|value| Level::new(name, value, Source::Group));
        let broker = broker.as_deref().unwrap_or(name);
        let given = given.get(broker).map(|value| Level::new(broker, value, Source::StaticBroker));
        let default = Level::new(broker, &default, Source::Default);
        let levels = own.into_iter().chain(dynamic_levels(dynamic, broker)).chain(given).chain([default]);
        let setting = Setting::new(name, kind(name), levels.collect(), None);
        Setting { is_read_only: false, documentation: StrBytes::from_static_str(documentation(name)), ..setting }
    };
    let mut all = share::Settings::group_defaults();
    all.extend(Settings::consumer_group_defaults());
    all.sort_unstable();
    all.into_iter().map(describe).collect()
}

fn kind(name: &str) -> ConfigType {
    match name {
        "share.auto.offset.reset" | "share.isolation.level" => ConfigType::String,
        "share.renew.acknowledge.enable" => ConfigType::Boolean,
        _ => ConfigType::Int,
    }
}

fn documentation(name: &str) -> &'static str {
    match name {
        "share.isolation.level" => {
            "read_uncommitted gives members all records; read_committed only those of transactions that were committed, \
             and none behind the first open one."
        }
        "share.auto.offset.reset" => "Where a share partition begins: latest, earliest or by_duration:PnDTnHnMn.nS.",
        "share.renew.acknowledge.enable" => "Whether members may extend their locks on records.",
        _ => "The group's own value in place of the broker's.",
    }
}

/// Checks a group's settings.
pub(crate) fn check(settings: &Settings, own: &BTreeMap<String, String>) -> Result<(), String> {
    let (consumer, others) = own.iter().partition::<BTreeMap<_, _>, _>(|(name, _)| name.starts_with("consumer."));
    let owned = |map: BTreeMap<&String, &String>| map.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(name) = others.keys().find(|name| name.starts_with("streams.")) {
        return Err(format!("{name} cannot be set: streams groups are not served"));
    }
    settings.check_consumer_group(&owned(consumer))?;
    settings.share.check_group(&owned(others))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn a_group_s_settings_fall_back_on_the_broker_s() {
        let dynamic = map(&[("group.consumer.assignment.interval.ms", "500")]);
        let own = map(&[("consumer.session.timeout.ms", "50000")]);
        let given = map(&[("group.consumer.heartbeat.interval.ms", "6000")]);
        let all = describe_own(&own, &dynamic, &given);
        let shown = |name: &str| {
            let setting = all.iter().find(|setting| &*setting.name == name).unwrap();
            (setting.value.as_deref().unwrap(), setting.source, setting.levels.len())
        };
        assert_eq!(shown("consumer.session.timeout.ms"), ("50000", Source::Group, 2));
        assert_eq!(shown("consumer.assignment.interval.ms"), ("500", Source::DynamicBroker, 2));
        assert_eq!(shown("consumer.heartbeat.interval.ms"), ("6000", Source::StaticBroker, 2));
        assert_eq!(shown("share.session.timeout.ms"), ("45000", Source::Default, 1));
        assert!(all.is_sorted_by_key(|setting| setting.name.to_string()));
    }

    #[test]
    fn values_out_of_the_broker_s_bounds_and_settings_of_no_use_are_refused() {
        let check = |name, value| check(&Settings::default(), &map(&[(name, value)]));
        assert_eq!(check("consumer.session.timeout.ms", "50000"), Ok(()));
        assert_eq!(check("share.isolation.level", "read_committed"), Ok(()));
        for (name, value, reason) in [
            (
                "consumer.session.timeout.ms",
                "1000",
                "consumer.session.timeout.ms must be greater than or equal to group.consumer.min.session.timeout.ms",
            ),
            (
                "consumer.session.timeout.ms",
                "70000",
                "consumer.session.timeout.ms must be less than or equal to group.consumer.max.session.timeout.ms",
            ),
            ("consumer.session.timeout.ms", "x", "consumer.session.timeout.ms = 'x': not a whole number"),
            ("consumer.nonsense", "1", "Unknown group config name: consumer.nonsense"),
            (
                "streams.session.timeout.ms",
                "50000",
                "streams.session.timeout.ms cannot be set: streams groups are not served",
            ),
        ] {
            assert_eq!(check(name, value), Err(reason.to_owned()));
        }
    }
}
