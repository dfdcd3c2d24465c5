//! Levels of features that can be changed (KIP-584): kept among the broker's dynamic settings, which are durable and the
//! same on every shard, under names that no setting of the broker has. A level that was never changed is that of the start.

use millrace_engine::{api::ConfigChange, engine::Engine};

use crate::kept_settings::KeptSettings;

/// Where they are kept.
const KEPT_FEATURES: KeptSettings = KeptSettings { prefix: "features/" };
/// The one feature whose level can be changed.
pub(crate) const TRANSACTION_VERSION: &str = "transaction.version";
/// The highest level of it: clients bump their epochs with each transaction (KIP-890).
pub(crate) const TRANSACTION_VERSION_MAX: i16 = 2;
const LEVEL: &str = "level";
/// Counts changes, of all features together.
const FINALIZED: &str = "finalized";
const EPOCH: &str = "epoch";

/// What a node was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FeatureLevels {
    /// Level of `transaction.version` as long as nobody has changed it.
    pub(crate) transaction_version: i16,
}

impl FeatureLevels {
    /// The level of `transaction.version` that is finalized.
    pub(crate) fn transaction_version(self, engine: &Engine) -> i16 {
        let kept = engine.broker_settings();
        let level = kept.get(&KEPT_FEATURES.name(TRANSACTION_VERSION, LEVEL)).and_then(|level| level.parse().ok());
        level.unwrap_or(self.transaction_version)
    }
}

/// How often levels were changed.
pub(crate) fn finalized_epoch(engine: &Engine) -> i64 {
    let kept = engine.broker_settings();
    kept.get(&KEPT_FEATURES.name(FINALIZED, EPOCH)).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// The change that finalizes another level of `transaction.version`.
pub(crate) fn finalize_transaction_version(engine: &Engine, level: i16) -> Vec<ConfigChange> {
    let epoch = finalized_epoch(engine).saturating_add(1);
    vec![
        ConfigChange::Set(KEPT_FEATURES.name(TRANSACTION_VERSION, LEVEL), level.to_string()),
        ConfigChange::Set(KEPT_FEATURES.name(FINALIZED, EPOCH), epoch.to_string()),
    ]
}
