//! What a node holds of the cluster in memory: all of it, as of one revision.
//!
//! A copy of an image is cheap, shares what did not change since, and never changes. Changes are applied in any order and
//! more than once: only what is newer than what is held counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_engine::{
    api::{TopicId, TopicPartition},
    config::{self, ALL_BROKERS_PREFIX},
};
use uuid::Uuid;

use super::{
    buckets::Buckets,
    change::Surroundings,
    keys::{self, Entry, Key, StoredTopic, ValueError},
    model::{
        Adopted, KnownNode, Member, NodeId, NodeState, Partition, SettingKey, TopicRules, TopicState, UncleanElection,
        Versioned,
    },
    restored::Mark,
    store::{Change, KeyValue},
};

/// Who decides for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    /// The node.
    pub node: NodeId,
    /// Revision that made it controller: the controller epoch.
    pub epoch: i64,
}

/// The cluster, as of one revision.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Image {
    /// Everything up to here is in it.
    pub revision: i64,
    /// The cluster's id; `None` before there is a cluster.
    pub cluster_id: Option<Uuid>,
    /// Nodes that live: neither fenced nor away.
    pub nodes: Arc<BTreeMap<NodeId, Arc<NodeState>>>,
    /// All that were ever registered and not taken out.
    pub known: Arc<BTreeMap<NodeId, KnownNode>>,
    /// Nodes that want to leave: the life that does.
    pub draining: Arc<BTreeMap<NodeId, i64>>,
    /// Lives of nodes that cannot be reached, by node and who says so.
    pub reports: Arc<BTreeMap<(NodeId, NodeId), i64>>,
    /// Topics.
    pub topics: Buckets<TopicId, Arc<TopicState>>,
    /// Topics' ids by name.
    pub names: Buckets<String, TopicId>,
    /// Who is controller, if anybody.
    pub controller: Option<Controller>,
    /// The node that leads all that it has, where one of two keeps the store: nobody but a person changes that.
    pub fixed_leader: Option<NodeId>,
    /// Dynamic settings of brokers, as [`config::dynamic_value`] reads them but for all nodes: by [`SettingKey`].
    pub settings: Arc<BTreeMap<SettingKey, Versioned<String>>>,
    /// The first producer id that was surely never given out, and the revision that said so.
    pub producer_ids: Versioned<i64>,
    /// Defaults of topics that this node was started with, by topic setting name.
    started_defaults: Arc<BTreeMap<String, String>>,
    /// Those that topics follow, with the dynamic settings of all nodes over them.
    topic_defaults: Arc<BTreeMap<String, String>>,
    /// Topics whose partitions are still being written, and when that began.
    pub forming: Arc<BTreeMap<TopicId, i64>>,
    /// Nodes say what they have, as the store was restored from a backup: until all have, nobody registers.
    pub being_adopted: bool,
    /// Those that have.
    pub adopting: Arc<BTreeSet<NodeId>>,
    /// What was done about that.
    pub adopted: Arc<Adopted>,
    /// Partitions that were told before their topic was.
    loose: Arc<BTreeMap<(TopicId, i32), Partition>>,
}

/// What a change made different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The cluster's id is known now, or it is adopted.
    Cluster,
    /// A node came, went, began another life, or wants to leave.
    Node(NodeId),
    /// Who cannot reach a node.
    Report(NodeId),
    /// A topic was created, or its settings or number of partitions changed.
    Topic(TopicId),
    /// A topic is gone.
    TopicGone(TopicId, String),
    /// A partition's state.
    Partition(TopicPartition),
    /// Who is controller.
    Controller,
    /// Dynamic settings; with defaults of topics among them, those of every topic.
    Settings,
    /// How far producer ids were given out.
    ProducerIds,
}

impl Image {
    /// One of nothing, for a node whose topics follow these defaults (by topic setting name).
    pub fn new(started_defaults: Arc<BTreeMap<String, String>>) -> Self {
        Self { topic_defaults: started_defaults.clone(), started_defaults, ..Self::default() }
    }

    /// An image with these keys, all of them, as they stood at `revision`.
    pub fn read(
        started_defaults: Arc<BTreeMap<String, String>>,
        revision: i64,
        entries: &[KeyValue],
    ) -> Result<Self, ValueError> {
        let mut image = Self::new(started_defaults);
        let mut changed = Vec::new();
        let mut settings_first: Vec<_> = entries.iter().collect();
        // topics are judged by the defaults that settings make
        settings_first.sort_by_key(|entry| !entry.key.starts_with("settings/"));
        for entry in settings_first {
            image.put(entry, &mut changed)?;
        }
        image.revision = revision;
        Ok(image)
    }

    /// Takes changes over, and says what they made different. What is not newer than the image is passed over. After an
    /// error the image is not to be used: read everything anew.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<Changed>, ValueError> {
        let mut changed = Vec::new();
        let held = self.revision;
        for change in changes.iter().filter(|change| change.revision() > held) {
            match change {
                Change::Put(entry) => self.put(entry, &mut changed)?,
                Change::Gone { key, .. } => self.take_away(key, &mut changed),
            }
        }
        let newest = changes.iter().map(Change::revision).max().unwrap_or(0);
        self.revision = self.revision.max(newest);
        Ok(changed)
    }

    /// What is different from an image of before.
    pub fn differences(&self, before: &Self) -> Vec<Changed> {
        let mut changed = Vec::new();
        let whole = |image: &Self| (image.cluster_id, image.being_adopted, image.adopted.clone());
        changed.extend((whole(self) != whole(before)).then_some(Changed::Cluster));
        changed.extend(
            ((self.controller, self.fixed_leader) != (before.controller, before.fixed_leader))
                .then_some(Changed::Controller),
        );
        changed.extend((self.settings != before.settings).then_some(Changed::Settings));
        changed.extend((self.producer_ids != before.producer_ids).then_some(Changed::ProducerIds));
        let known = [&self.known, &before.known].into_iter().flat_map(|known| known.keys().copied());
        let ids: BTreeSet<_> = known.chain(self.adopting.symmetric_difference(&before.adopting).copied()).collect();
        let ids = ids.into_iter().filter(|id| {
            let adopting = self.adopting.contains(id) != before.adopting.contains(id);
            adopting || self.node_parts(*id) != before.node_parts(*id)
        });
        changed.extend(ids.map(Changed::Node));
        if self.reports != before.reports {
            let whom: BTreeSet<_> = self.reports.keys().chain(before.reports.keys()).map(|(whom, _)| *whom).collect();
            changed.extend(whom.into_iter().map(Changed::Report));
        }
        for (id, topic) in before.topics.iter().filter(|(id, _)| self.topics.get(*id).is_none()) {
            changed.push(Changed::TopicGone(*id, topic.name.clone()));
        }
        for (id, topic) in self.topics.iter() {
            let former = before.topics.get(id);
            if former.is_none_or(|former| (former.revision, former.rules) != (topic.revision, topic.rules)) {
                changed.push(Changed::Topic(*id));
            }
            for (index, partition) in topic.partitions.iter().enumerate() {
                if former.and_then(|former| former.partitions.get(index)) != Some(partition) {
                    let partition = i32::try_from(index).unwrap_or(i32::MAX);
                    changed.push(Changed::Partition(TopicPartition { topic: *id, partition }));
                }
            }
        }
        changed
    }

    fn node_parts(&self, id: NodeId) -> (Option<&Arc<NodeState>>, Option<&KnownNode>, Option<&i64>) {
        (self.nodes.get(&id), self.known.get(&id), self.draining.get(&id))
    }

    fn put(&mut self, entry: &KeyValue, changed: &mut Vec<Changed>) -> Result<(), ValueError> {
        let Some(decoded) = keys::decode(entry)? else { return Ok(()) };
        changed.push(match decoded {
            Entry::Cluster(id) => {
                self.cluster_id = Some(id);
                Changed::Cluster
            }
            Entry::Controller(node) => {
                self.controller = Some(Controller { node, epoch: entry.created });
                Changed::Controller
            }
            Entry::ProducerIds(next) => {
                self.producer_ids = Versioned { value: next, revision: entry.modified, version: entry.version };
                Changed::ProducerIds
            }
            Entry::Node(node) => {
                let id = node.id;
                Arc::make_mut(&mut self.nodes).insert(id, Arc::new(node));
                Changed::Node(id)
            }
            Entry::Known(id, node) => {
                Arc::make_mut(&mut self.known).insert(id, node);
                Changed::Node(id)
            }
            Entry::Draining(id, epoch) => {
                Arc::make_mut(&mut self.draining).insert(id, epoch);
                Changed::Node(id)
            }
            Entry::Topic(id, stored) => {
                self.put_topic(id, stored, entry.modified, changed);
                return Ok(());
            }
            // the topic's own key says all
            Entry::Name(..) => return Ok(()),
            Entry::Partition(topic, index, state) => {
                let state = Versioned { value: state, revision: entry.modified, version: entry.version };
                self.put_partition(topic, index, Arc::new(state), changed);
                return Ok(());
            }
            Entry::Mirror(mirror) => {
                self.fixed_leader = Some(mirror.leader);
                Changed::Controller
            }
            Entry::Report(member, by) => {
                Arc::make_mut(&mut self.reports).insert((member.node, by), member.epoch);
                Changed::Report(member.node)
            }
            Entry::AdoptingBegun => {
                self.being_adopted = true;
                Changed::Cluster
            }
            Entry::Adopted(stored) => {
                let mark = Mark { ahead: stored.ahead, since: entry.modified };
                self.adopted = Arc::new(Adopted { times: stored.times, by: stored.by, mark });
                Changed::Cluster
            }
            Entry::Adopting(id) => {
                Arc::make_mut(&mut self.adopting).insert(id);
                Changed::Node(id)
            }
            Entry::Setting(key, value) => {
                let value = Versioned { value, revision: entry.modified, version: entry.version };
                Arc::make_mut(&mut self.settings).insert(key, value);
                self.judge_topics();
                Changed::Settings
            }
        });
        Ok(())
    }

    fn put_topic(&mut self, id: TopicId, stored: StoredTopic, revision: i64, changed: &mut Vec<Changed>) {
        if stored.forming {
            Arc::make_mut(&mut self.forming).insert(id, revision);
            return;
        }
        if self.forming.contains_key(&id) {
            Arc::make_mut(&mut self.forming).remove(&id);
        }
        let rules = self.rules_of(&stored.configs);
        let before = self.topics.remove(&id);
        let partitions = before.map_or_else(Vec::new, |topic| topic.partitions.clone());
        let expected = usize::try_from(stored.partitions).unwrap_or(0);
        let StoredTopic { name, configs, .. } = stored;
        self.names.insert(name.clone(), id);
        let topic = TopicState { id, name, partitions, expected, configs, rules, revision };
        self.topics.insert(id, Arc::new(topic));
        changed.push(Changed::Topic(id));
        self.settle_loose(id, changed);
    }

    fn put_partition(&mut self, id: TopicId, index: i32, state: Partition, changed: &mut Vec<Changed>) {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(topic) = self.topics.get_mut(&id)
            && at < topic.partitions.len()
        {
            Arc::make_mut(topic).partitions[at] = state;
            changed.push(Changed::Partition(TopicPartition { topic: id, partition: index }));
            return;
        }
        Arc::make_mut(&mut self.loose).insert((id, index), state);
        self.settle_loose(id, changed);
    }

    /// Gives a topic those of its partitions that were told before it was.
    fn settle_loose(&mut self, id: TopicId, changed: &mut Vec<Changed>) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let topic = Arc::make_mut(topic);
        while topic.partitions.len() < topic.expected {
            let index = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
            let Some(state) = Arc::make_mut(&mut self.loose).remove(&(id, index)) else { return };
            topic.partitions.push(state);
            changed.push(Changed::Partition(TopicPartition { topic: id, partition: index }));
        }
    }

    fn take_away(&mut self, key: &str, changed: &mut Vec<Changed>) {
        match Key::parse(key) {
            Some(Key::Controller) => {
                self.controller = None;
                changed.push(Changed::Controller);
            }
            Some(Key::Node(id)) => {
                Arc::make_mut(&mut self.nodes).remove(&id);
                changed.push(Changed::Node(id));
            }
            Some(Key::Known(id)) => {
                Arc::make_mut(&mut self.known).remove(&id);
                changed.push(Changed::Node(id));
            }
            Some(Key::Draining(id)) => {
                Arc::make_mut(&mut self.draining).remove(&id);
                changed.push(Changed::Node(id));
            }
            Some(Key::Topic(id)) => {
                if self.forming.contains_key(&id) {
                    Arc::make_mut(&mut self.forming).remove(&id);
                }
                if let Some(topic) = self.topics.remove(&id) {
                    self.names.remove(topic.name.as_str());
                    changed.push(Changed::TopicGone(id, topic.name.clone()));
                }
            }
            Some(Key::Partition(topic, index)) if self.loose.contains_key(&(topic, index)) => {
                Arc::make_mut(&mut self.loose).remove(&(topic, index));
            }
            Some(Key::Report(node, by)) => {
                Arc::make_mut(&mut self.reports).remove(&(node, by));
                changed.push(Changed::Report(node));
            }
            Some(Key::AdoptingBegun) => {
                self.being_adopted = false;
                changed.push(Changed::Cluster);
            }
            Some(Key::Adopting(id)) => {
                Arc::make_mut(&mut self.adopting).remove(&id);
                changed.push(Changed::Node(id));
            }
            Some(Key::Setting(setting)) => {
                Arc::make_mut(&mut self.settings).remove(&setting);
                self.judge_topics();
                changed.push(Changed::Settings);
            }
            // these are never taken away, or go with a topic
            Some(Key::Cluster | Key::ProducerIds | Key::Mirror | Key::Adopted | Key::Name(_) | Key::Partition(..))
            | None => {}
        }
    }

    /// A topic of that name.
    pub fn topic(&self, name: &str) -> Option<&Arc<TopicState>> {
        self.topics.get(self.names.get(name)?)
    }

    /// A partition.
    pub fn partition(&self, tp: TopicPartition) -> Option<&Partition> {
        self.topics.get(&tp.topic)?.partitions.get(usize::try_from(tp.partition).ok()?)
    }

    /// What decisions about a topic's partitions look at.
    pub fn surroundings(&self, topic: &TopicState) -> Surroundings<'_> {
        Surroundings {
            nodes: &self.nodes,
            draining: &self.draining,
            known: &self.known,
            rules: topic.rules,
            fixed_leader: self.fixed_leader,
        }
    }

    /// What a topic with these settings asks for.
    pub(crate) fn rules_of(&self, configs: &BTreeMap<String, String>) -> TopicRules {
        rules(&self.topic_defaults, configs)
    }

    /// The node that leads a partition, if it lives.
    pub fn leader(&self, tp: TopicPartition) -> Option<&Arc<NodeState>> {
        self.nodes.get(&self.partition(tp)?.value.leader?.node)
    }

    /// Whether that life of a node goes on.
    pub fn is_alive(&self, member: Member) -> bool {
        self.nodes.get(&member.node).is_some_and(|node| node.epoch == member.epoch)
    }

    /// The dynamic settings that are in force on a node, as the engine keeps them. Of those that [`is_of_all_nodes`] no node
    /// has a value of its own.
    pub fn settings_of(&self, node: NodeId) -> BTreeMap<String, String> {
        let counts = |key: &SettingKey| match key.node {
            Some(whose) => whose == node && !is_of_all_nodes(&key.name),
            None => true,
        };
        let concerned = self.settings.iter().filter(|(key, _)| counts(key));
        concerned.map(|(key, value)| (key.name.clone(), value.value.clone())).collect()
    }

    /// Defaults of topics that this node was started with, by topic setting name.
    pub fn started_defaults(&self) -> &BTreeMap<String, String> {
        &self.started_defaults
    }

    /// What topics without a value of their own follow, by topic setting name: for decisions, the same on all nodes that
    /// were started with the same defaults.
    pub fn topic_defaults(&self) -> &BTreeMap<String, String> {
        &self.topic_defaults
    }

    /// Values that single nodes were given by a former version, and that count nowhere: of whom, and of what.
    pub fn idle_settings(&self) -> Vec<(NodeId, &str)> {
        let idle = self.settings.keys().filter(|key| is_of_all_nodes(&key.name));
        idle.filter_map(|key| Some((key.node?, key.name.as_str()))).collect()
    }

    /// Nodes that live and were started with another default of what decisions look at, and which; but for those that all nodes
    /// have a dynamic value of.
    pub fn other_defaults(&self) -> Vec<(NodeId, &'static str)> {
        let own = decided_by(&self.started_defaults);
        let is_set = |of_brokers: &str| {
            let name = format!("{ALL_BROKERS_PREFIX}{of_brokers}");
            self.settings.contains_key(&SettingKey { node: None, name })
        };
        let mut differ = Vec::new();
        for node in self.nodes.values() {
            let Some(defaults) = &node.defaults else { continue };
            let others = RULES.iter().filter(|(name, _)| defaults.get(*name) != own.get(*name));
            let others = others.filter(|(_, of_brokers)| !is_set(of_brokers));
            differ.extend(others.map(|(name, _)| (node.id, *name)));
        }
        differ
    }

    fn judge_topics(&mut self) {
        let of_all = self.settings.iter().filter(|(key, _)| key.node.is_none());
        let settings = of_all.map(|(key, value)| (key.name.clone(), value.value.clone())).collect();
        let defaults = config::topic_defaults(&self.started_defaults, &settings);
        if defaults == *self.topic_defaults {
            return;
        }
        self.topic_defaults = Arc::new(defaults.clone());
        let ids: Vec<_> = self.topics.keys().copied().collect();
        for id in ids {
            let Some(topic) = self.topics.get(&id) else { continue };
            let rules = rules(&defaults, &topic.configs);
            if rules != topic.rules
                && let Some(topic) = self.topics.get_mut(&id)
            {
                Arc::make_mut(topic).rules = rules;
            }
        }
    }
}

/// Whether a broker setting is one that `rules` look at, which have to be the same on all nodes: whoever leads acknowledges
/// by them, and whoever is controller elects by them.
pub fn is_of_all_nodes(name: &str) -> bool {
    RULES.iter().any(|(_, of_brokers)| *of_brokers == name)
}

/// Those of a node's defaults of topics that [`rules`] look at, if they are not the built-in ones.
pub(crate) fn decided_by(defaults: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_meant = |(name, value): &(&String, &String)| {
        let key = config::keys().iter().find(|key| key.name == name.as_str());
        RULES.iter().any(|(rule, _)| rule == name) && key.is_none_or(|key| key.default != value.as_str())
    };
    defaults.iter().filter(is_meant).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What settings mean for decisions. A value that makes no sense is none: those who set it were told.
fn rules(defaults: &BTreeMap<String, String>, configs: &BTreeMap<String, String>) -> TopicRules {
    let none = BTreeMap::new();
    let parsed = config::TopicConfig::parse(defaults, configs).or_else(|_| config::TopicConfig::parse(defaults, &none));
    let parsed = parsed.or_else(|_| config::TopicConfig::parse(&none, &none));
    let unclean = configs.get(UNCLEAN).or_else(|| defaults.get(UNCLEAN)).is_some_and(|value| value == "true");
    TopicRules {
        min_isr: parsed.as_ref().map_or(1, |parsed| usize::try_from(parsed.min_insync_replicas).unwrap_or(1).max(1)),
        unclean: if unclean { UncleanElection::WhenNeeded } else { UncleanElection::Never },
        durability: parsed.map_or(config::Durability::Written, |parsed| parsed.durability),
    }
}

const UNCLEAN: &str = "unclean.leader.election.enable";

/// Settings that [`rules`] are made of: by the names of topics, and of brokers.
const RULES: [(&str, &str); 3] = [
    ("flush.messages", "log.flush.interval.messages"),
    ("min.insync.replicas", "min.insync.replicas"),
    (UNCLEAN, UNCLEAN),
];

#[cfg(test)]
mod tests;
