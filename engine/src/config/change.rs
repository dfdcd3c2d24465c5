//! Changes of a topic's settings, as IncrementalAlterConfigs asks for them (KIP-339).

use std::collections::BTreeMap;

use super::{
    ALL_BROKERS_PREFIX, ConfigType,
    keys::{find, keys},
    value::members,
};
use crate::api::ConfigChange;

/// A topic's own settings after changes. Appending and subtracting start from the value in force. Nothing is checked
/// but that the settings exist and, for those two, are lists: parse the result.
pub fn apply_changes(
    defaults: &BTreeMap<String, String>,
    overrides: &BTreeMap<String, String>,
    changes: &[ConfigChange],
) -> Result<BTreeMap<String, String>, String> {
    let mut changed = overrides.clone();
    for change in changes {
        let name = change.name();
        let key = find(name).ok_or_else(|| format!("unknown topic setting {name}"))?;
        if matches!(change, ConfigChange::Append(..) | ConfigChange::Subtract(..)) && key.kind != ConfigType::List {
            return Err(format!("{name} is not a list: it can be set, but not appended to or subtracted from"));
        }
        let inherited = defaults.get(name).map_or(key.default, String::as_str);
        apply(&mut changed, inherited, change);
    }
    Ok(changed)
}

/// The broker's own settings after changes. Nothing is checked.
pub fn apply_broker_changes(settings: &BTreeMap<String, String>, changes: &[ConfigChange]) -> BTreeMap<String, String> {
    let mut changed = settings.clone();
    for change in changes {
        let name = change.name();
        let name = name.strip_prefix(ALL_BROKERS_PREFIX).unwrap_or(name);
        let inheriting = keys().iter().find(|key| key.broker_name == name);
        apply(&mut changed, inheriting.map_or("", |key| key.default), change);
    }
    changed
}

fn apply(settings: &mut BTreeMap<String, String>, inherited: &str, change: &ConfigChange) {
    let current = settings.get(change.name()).map_or(inherited, String::as_str);
    let mut list: Vec<&str> = members(current).into_iter().filter(|member| !member.is_empty()).collect();
    let (name, value) = match change {
        ConfigChange::Set(name, value) => (name, Some(value.clone())),
        ConfigChange::Delete(name) => (name, None),
        ConfigChange::Append(name, value) => {
            for member in members(value) {
                if !list.contains(&member) {
                    list.push(member);
                }
            }
            (name, Some(list.join(",")))
        }
        ConfigChange::Subtract(name, value) => {
            let gone = members(value);
            list.retain(|member| !gone.contains(member));
            (name, Some(list.join(",")))
        }
    };
    match value {
        Some(value) => settings.insert(name.clone(), value),
        None => settings.remove(name),
    };
}
