//! What is in force for single groups now: what was set for them, else what the broker has.
//!
//! A group need not be there to have settings.

use std::{fmt, rc::Rc};

use millrace_engine::{config::dynamic_value, engine::Engine};

use super::settings::{ConsumerConfig, GroupConfigs, Settings};
use crate::kept_settings::KeptSettings;

/// Where the settings of groups are kept.
pub(crate) const KEPT_GROUPS: KeptSettings = KeptSettings { prefix: "groups/" };

/// What is in force for groups now.
pub(crate) struct LiveConfigs {
    pub(crate) engine: Engine,
    pub(crate) settings: Rc<Settings>,
}

impl fmt::Debug for LiveConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveConfigs")
    }
}

impl GroupConfigs for LiveConfigs {
    fn consumer(&self, group: &str) -> ConsumerConfig {
        let dynamic = self.engine.broker_settings();
        let own = KEPT_GROUPS.of(&self.engine, group);
        self.settings.consumer_group(&own, |name| dynamic_value(&dynamic, name))
    }
}
