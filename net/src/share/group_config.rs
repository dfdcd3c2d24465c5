//! Settings of single groups, as AlterConfigs and its kin set them (resource type GROUP).
//!
//! They are kept among the broker's dynamic settings, which are durable and the same on every shard, under names that no
//! setting of the broker has.

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;
use millrace_engine::{config::ConfigType, engine::Engine};

use super::Shares;
use crate::settings::{Level, Setting, Source};

/// What the names of groups' settings begin with: then follow the group's id, a slash, and the setting.
pub(crate) const PREFIX: &str = "groups/";

/// The name under which a group's setting is kept.
pub(crate) fn kept_name(group: &str, name: &str) -> String {
    format!("{PREFIX}{group}/{name}")
}

/// The settings that a group has of its own.
pub(crate) fn of_group(engine: &Engine, group: &str) -> BTreeMap<String, String> {
    let prefix = kept_name(group, "");
    let kept = engine.broker_settings();
    let own = kept.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
    let own = own.filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?, value)));
    // the id of another group may go on with a slash
    own.filter(|(name, _)| !name.contains('/')).map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// All settings of a group, as DescribeConfigs shows them. A group need not be there to have settings.
pub(crate) fn describe(shares: &Shares, engine: &Engine, group: &str) -> Vec<Setting> {
    let own = of_group(engine, group);
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let defaults = shares.settings().group_defaults();
    let describe = |(name, default, broker): (&'static str, String, Option<String>)| {
        let own = own.get(name).map(|value| Level { name: text(name), value: text(value), source: Source::Group });
        let broker = broker.as_deref().unwrap_or(name);
        let default = Level { name: text(broker), value: text(&default), source: Source::Default };
        let levels: Vec<_> = own.into_iter().chain([default]).collect();
        Setting {
            name: text(name),
            value: levels[0].value.clone(),
            source: levels[0].source,
            kind: kind(name),
            is_read_only: false,
            documentation: StrBytes::new(),
            levels,
        }
    };
    defaults.into_iter().map(describe).collect()
}

fn kind(name: &str) -> ConfigType {
    match name {
        "share.auto.offset.reset" | "share.isolation.level" => ConfigType::String,
        "share.renew.acknowledge.enable" => ConfigType::Boolean,
        _ => ConfigType::Int,
    }
}

/// Groups that have settings of their own.
pub(crate) fn groups(engine: &Engine) -> Vec<String> {
    let kept = engine.broker_settings();
    let names = kept.range(PREFIX.to_owned()..).take_while(|(name, _)| name.starts_with(PREFIX));
    let names = names.filter_map(|(name, _)| name.strip_prefix(PREFIX)?.rsplit_once('/'));
    let mut groups: Vec<_> = names.map(|(group, _)| group.to_owned()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}
