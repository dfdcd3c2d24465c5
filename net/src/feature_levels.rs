//! Levels of features that can be changed (KIP-584): kept among the broker's dynamic settings, which are durable and the
//! same on every shard, under names that no setting of the broker has. A level that was never changed is that of the start.

use std::collections::BTreeMap;

use millrace_engine::{api::ConfigChange, engine::Engine};

use crate::kept_settings::KeptSettings;

/// Where they are kept.
const KEPT_FEATURES: KeptSettings = KeptSettings { prefix: "features/" };
/// The one feature whose level can be changed.
pub(crate) const TRANSACTION_VERSION: &str = "transaction.version";
/// The highest level of it: clients bump their epochs with each transaction (KIP-890).
pub const TRANSACTION_VERSION_MAX: i16 = 2;
const LEVEL: &str = "level";
/// The name under which that level is kept: every step of a transaction looks for it.
const TRANSACTION_LEVEL: &str = "features/transaction.version/level";
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
        finalized_transaction_version(&engine.broker_settings()).unwrap_or(self.transaction_version)
    }
}

/// The level of `transaction.version` among settings that are kept, if somebody has set it.
pub(crate) fn finalized_transaction_version(kept: &BTreeMap<String, String>) -> Option<i16> {
    kept.get(TRANSACTION_LEVEL)?.parse().ok()
}

/// How often levels were changed.
pub(crate) fn finalized_epoch(engine: &Engine) -> i64 {
    epoch_among(&engine.broker_settings())
}

fn epoch_among(kept: &BTreeMap<String, String>) -> i64 {
    kept.get(&KEPT_FEATURES.name(FINALIZED, EPOCH)).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// The change that finalizes another level of `transaction.version`, given the settings that are kept now.
pub(crate) fn finalize_transaction_version(kept: &BTreeMap<String, String>, level: i16) -> Vec<ConfigChange> {
    let epoch = epoch_among(kept).saturating_add(1);
    vec![
        ConfigChange::Set(KEPT_FEATURES.name(TRANSACTION_VERSION, LEVEL), level.to_string()),
        ConfigChange::Set(KEPT_FEATURES.name(FINALIZED, EPOCH), epoch.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_level_counts() {
        let mut kept = BTreeMap::new();
        for level in [2, 1, 2] {
            for change in finalize_transaction_version(&kept, level) {
                let ConfigChange::Set(name, value) = change else { panic!("{change:?}") };
                kept.insert(name, value);
            }
        }
        assert_eq!((epoch_among(&kept), finalized_transaction_version(&kept)), (3, Some(2)));
        assert_eq!(kept[TRANSACTION_LEVEL], "2");
    }
}
