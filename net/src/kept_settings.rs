//! Settings of resources that are neither topics nor brokers: groups, and subscriptions of client metrics.
//!
//! They are kept among the broker's dynamic settings, which are durable and the same on every shard, under names that no
//! setting of the broker has: a prefix, the resource's name, a slash, the setting's name.

use std::collections::BTreeMap;

use millrace_engine::engine::Engine;

/// Resources of one type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptSettings {
    /// What the names under which they are kept begin with.
    pub(crate) prefix: &'static str,
}

/// Whether a setting that is kept among the broker's is one of another resource.
pub(crate) fn is_kept(name: &str) -> bool {
    name.contains('/')
}

impl KeptSettings {
    /// The name under which a resource's setting is kept.
    pub(crate) fn name(self, resource: &str, setting: &str) -> String {
        format!("{}{resource}/{setting}", self.prefix)
    }

    /// The settings that a resource has.
    pub(crate) fn of(self, engine: &Engine, resource: &str) -> BTreeMap<String, String> {
        self.among(&engine.broker_settings(), resource)
    }

    /// The settings that a resource has, among all that are kept.
    pub(crate) fn among(self, kept: &BTreeMap<String, String>, resource: &str) -> BTreeMap<String, String> {
        of(kept, &self.name(resource, ""))
    }

    /// All resources that have settings, with these.
    pub(crate) fn all(self, engine: &Engine) -> BTreeMap<String, BTreeMap<String, String>> {
        all(&engine.broker_settings(), self.prefix)
    }
}

fn of(kept: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    let own = kept.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
    let own = own.filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value)));
    // the name of another resource may go on with a slash
    own.filter(|(name, _)| !name.contains('/')).map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

fn all(kept: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut resources = BTreeMap::<String, BTreeMap<String, String>>::new();
    for (name, value) in kept.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix)) {
        if let Some((resource, setting)) = name.strip_prefix(prefix).and_then(|name| name.rsplit_once('/')) {
            resources.entry(resource.to_owned()).or_default().insert(setting.to_owned(), value.clone());
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_are_told_apart() {
        let kept = ["client-metrics/a/x", "client-metrics/a/b/y", "groups/a/z", "max.connections"];
        let kept = kept.into_iter().map(|name| (name.to_owned(), name.len().to_string())).collect();
        assert_eq!(of(&kept, "client-metrics/a/").into_keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(of(&kept, "client-metrics/a/b/").into_keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!(all(&kept, "client-metrics/").into_keys().collect::<Vec<_>>(), ["a", "a/b"]);
        assert!(is_kept("groups/a/z") && !is_kept("max.connections"));
    }
}
