//! Settings of single groups, as AlterConfigs and its kin set them (resource type GROUP).

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;
use millrace_engine::{config::ConfigType, engine::Engine};

use super::Shares;
use crate::{
    kept_settings::KeptSettings,
    settings::{Level, Setting, Source},
};

/// Where they are kept.
pub(crate) const KEPT: KeptSettings = KeptSettings { prefix: "groups/" };

/// The settings that a group has of its own.
pub(crate) fn of_group(engine: &Engine, group: &str) -> BTreeMap<String, String> {
    KEPT.of(engine, group)
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
