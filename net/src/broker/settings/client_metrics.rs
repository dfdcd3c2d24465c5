//! Subscriptions as resources with settings (type CLIENT_METRICS).

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;
use millrace_engine::{config::ConfigType, engine::Engine};

use crate::{
    broker::{
        settings::entries::{Level, Setting, Source},
        telemetry::subscription::{INTERVAL_MS, INTERVAL_MS_DEFAULT, MATCH, METRICS, Subscription, members},
    },
    errors::ApiError,
    kept_settings::KeptSettings,
};

/// Where they are kept.
pub(crate) const KEPT: KeptSettings = KeptSettings { prefix: "client-metrics/" };

/// Checks a subscription's own settings.
pub(crate) fn check(own: &BTreeMap<String, String>) -> Result<(), ApiError> {
    Subscription::parse(own).map(drop)
}

/// All settings of a subscription, as DescribeConfigs shows them. A subscription need not be there to be shown.
pub(crate) fn describe(engine: &Engine, name: &str) -> Vec<Setting> {
    let own = KEPT.of(engine, name);
    let describe = |name: &'static str, kind, default: String, documentation| {
        let own = own.get(name).map(|value| Level::new(name, &members(value).join(","), Source::ClientMetrics));
        let setting = Setting::new(name, kind, own.into_iter().collect(), Some(&default));
        Setting { is_read_only: false, documentation: StrBytes::from_static_str(documentation), ..setting }
    };
    vec![
        describe(
            INTERVAL_MS,
            ConfigType::Int,
            INTERVAL_MS_DEFAULT.to_string(),
            "How often a client pushes, in ms: from 100 to 3600000.",
        ),
        describe(
            MATCH,
            ConfigType::List,
            String::new(),
            "Which clients push: PARAMETER=REGEX, all of which must match; none is every client.",
        ),
        describe(METRICS, ConfigType::List, String::new(), "Prefixes of the names of metrics to push; * is all."),
    ]
}
