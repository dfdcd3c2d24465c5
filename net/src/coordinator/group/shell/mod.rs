//! Coordinators of groups as the runtime runs them, and the ways to them.

mod regexes;

use std::{collections::BTreeMap, rc::Rc};

use millrace_engine::{
    api::{NewTopic, TopicPartition},
    engine::Engine,
};

use super::{
    coordinator::{Coordinator, GroupFilter, Lookup},
    live_configs::LiveConfigs,
    settings::Settings,
};
use crate::coordinator::runtime::{Kind, Runtime};

/// Name of the topic that keeps the groups.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The kind of coordinators of groups.
pub(crate) struct GroupKind {
    settings: Rc<Settings>,
}

/// The coordinators of groups of one shard.
pub(crate) type Groups = Runtime<GroupKind>;

impl GroupKind {
    /// With a node's settings.
    pub(crate) fn new(settings: Rc<Settings>) -> Self {
        Self { settings }
    }
}

impl Kind for GroupKind {
    type Machine = Coordinator;
    const TOPIC: &'static str = OFFSETS_TOPIC;

    fn new_topic(&self) -> NewTopic {
        new_offsets_topic(&self.settings)
    }

    fn machine(&self, engine: &Engine, _: TopicPartition) -> Coordinator {
        let settings = Rc::clone(&self.settings);
        let configs = LiveConfigs { engine: engine.clone(), settings: Rc::clone(&settings) };
        Coordinator::with_configs(settings, Rc::new(configs))
    }

    fn run_errand(groups: &Rc<Groups>, partition: TopicPartition, lookup: Lookup) {
        regexes::look_up(groups, partition, lookup);
    }
}

impl Groups {
    /// How many groups there are of each type and state, of the coordinators that are loaded.
    pub(crate) fn count_by_state(&self) -> BTreeMap<(String, String), u64> {
        let mut counts = BTreeMap::new();
        self.look(|coordinator| {
            for group in coordinator.list(&GroupFilter::default()) {
                let key = (group.group_type.to_string(), group.group_state.to_string());
                *counts.entry(key).or_insert(0) += 1;
            }
        });
        counts
    }
}

/// The topic as Kafka makes it.
pub(crate) fn new_offsets_topic(settings: &Settings) -> NewTopic {
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("compression.type", "producer".to_owned()),
        ("segment.bytes", settings.offsets_topic_segment_bytes.to_string()),
    ];
    NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        partitions: settings.offsets_topic_partitions,
        configs: configs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    }
}
