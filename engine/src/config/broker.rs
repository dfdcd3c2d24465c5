//! Dynamic settings of the broker: the two levels at which they are kept, and the defaults of topics that follow.
//!
//! Kept is one map. A setting of this node stands under its own name, which is Kafka's; the default of all brokers, which
//! yields to that, under the same behind [`ALL_BROKERS_PREFIX`], as no setting of Kafka's begins with that.

use std::collections::BTreeMap;

use super::keys::keys;

/// What the names begin with under which defaults of all brokers are kept.
pub const ALL_BROKERS_PREFIX: &str = "brokers/";

/// The dynamic value of a setting that is in force on this node, if it has one.
pub fn dynamic_value<'a>(settings: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    let own = settings.get(name);
    own.or_else(|| settings.get(&format!("{ALL_BROKERS_PREFIX}{name}"))).map(String::as_str)
}

/// What topics without a value of their own follow, by topic setting name: the dynamic settings over those that the node
/// was started with.
pub fn topic_defaults(
    started: &BTreeMap<String, String>,
    settings: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut defaults = started.clone();
    for key in keys().iter().filter(|key| !key.broker_name.is_empty()) {
        if let Some(value) = dynamic_value(settings, key.broker_name) {
            defaults.insert(key.name.to_owned(), value.to_owned());
        }
    }
    defaults
}
