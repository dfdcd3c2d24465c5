//! Topics: created, deleted, given more partitions.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::{
    api::TopicId,
    config::{self, Durability},
};
use uuid::Uuid;

use super::{FIRST_STEP, PARTITIONS_PER_TRANSACTION, Plan, Setting, error, placement, unknown_topic};
use crate::cluster::{
    change::check_assignment,
    image::Image,
    keys::{self, StoredTopic},
    model::{NodeId, PartitionState, TopicRules},
    plane::{AdminCode, AdminError, CreatedTopic, CreationDefaults, Mode, MorePartitions, NewPlacement, NewTopic},
    store::{Compare, Operation, Transaction},
};

/// Partitions of one topic at most: what one metadata answer can still name.
const PARTITIONS_MAX: i32 = 100_000;

type Created = Result<CreatedTopic, AdminError>;

/// A topic that is being created.
#[derive(Debug)]
pub(crate) struct Creation {
    topic: NewTopic,
    defaults: CreationDefaults,
    mode: Mode,
    /// Ids that plans before used: one of them may be there already.
    tried: Vec<TopicId>,
}

impl Creation {
    /// One that nothing was tried of yet.
    pub(crate) fn new(topic: NewTopic, defaults: CreationDefaults, mode: Mode) -> Self {
        Self { topic, defaults, mode, tried: Vec::new() }
    }

    /// What creates it, from the image as it is now.
    pub(crate) fn plan(&mut self, setting: &mut Setting<'_>) -> Plan<Created> {
        let id = (setting.ids)();
        if let Some(known) = setting.image.topic(&self.topic.name).filter(|known| self.tried.contains(&known.id)) {
            let replicas = known.partitions.first().map_or(0, |first| first.value.replicas.len());
            return Plan::Answer(Ok(self.created(known.id, known.partitions.len(), replicas)));
        }
        let replicas = match self.check(setting.image, id) {
            Ok(replicas) => replicas,
            Err(error) => return Plan::Answer(Err(error)),
        };
        let created = self.created(id, replicas.len(), replicas.first().map_or(0, Vec::len));
        let rules = setting.image.rules_of(&self.topic.configs);
        let partitions = match new_partitions(setting.image, rules, &replicas, 0) {
            Ok(partitions) => partitions,
            Err(error) => return Plan::Answer(Err(error)),
        };
        if self.mode == Mode::Validate {
            return Plan::Answer(Ok(CreatedTopic { id: Uuid::nil(), ..created }));
        }
        self.tried.push(id);
        let stored = StoredTopic {
            name: self.topic.name.clone(),
            partitions: count(replicas.len()),
            configs: self.topic.configs.clone(),
            forming: false,
        };
        Plan::write(creation(id, stored, &partitions), Ok(created))
    }

    fn created(&self, id: TopicId, partitions: usize, replicas: usize) -> CreatedTopic {
        CreatedTopic {
            id,
            partitions: count(partitions),
            replication_factor: i16::try_from(replicas).unwrap_or(i16::MAX),
            configs: self.topic.configs.clone(),
        }
    }

    /// The replicas of each partition, if everything about the topic is in order.
    fn check(&self, image: &Image, id: TopicId) -> Result<Vec<Vec<NodeId>>, AdminError> {
        let NewTopic { name, placement, configs } = &self.topic;
        if let Err(reason) = config::check_topic_name(name) {
            return error(AdminCode::InvalidTopic, format!("Topic name is invalid: {reason}"));
        }
        if image.names.get(name.as_str()).is_some() {
            return error(AdminCode::TopicAlreadyExists, format!("Topic '{name}' already exists."));
        }
        let same = name.replace('.', "_");
        if let Some(other) = image.names.keys().find(|other| other.replace('.', "_") == same) {
            return error(AdminCode::InvalidTopic, format!("Topic '{name}' collides with existing topic: {other}"));
        }
        if let Err(reason) = config::TopicConfig::parse(image.topic_defaults(), configs) {
            return error(AdminCode::InvalidConfig, reason);
        }
        match placement {
            NewPlacement::Spread { partitions, replication_factor } => {
                let (partitions, factor) = self.counts(*partitions, *replication_factor)?;
                placement::spread(image, partitions, factor, seed(id))
            }
            NewPlacement::Assigned(assigned) => check_assigned(image, assigned),
        }
    }

    fn counts(&self, partitions: i32, replication_factor: i16) -> Result<(usize, usize), AdminError> {
        let replication_factor = match replication_factor {
            -1 => self.defaults.replication_factor,
            factor => factor,
        };
        if replication_factor < 1 {
            let text = "Replication factor must be larger than 0, or -1 to use the default value.";
            return error(AdminCode::InvalidReplicationFactor, text);
        }
        let partitions = if partitions == -1 { self.defaults.partitions } else { partitions };
        if partitions < 1 {
            let text = "Number of partitions was set to an invalid non-positive value.";
            return error(AdminCode::InvalidPartitions, text);
        }
        if partitions > PARTITIONS_MAX {
            let text = format!("{partitions} is not in 1..={PARTITIONS_MAX}");
            return error(AdminCode::InvalidPartitions, text);
        }
        Ok((usize::try_from(partitions).unwrap_or(0), usize::try_from(replication_factor).unwrap_or(0)))
    }
}

fn check_assigned(image: &Image, assigned: &[(i32, Vec<NodeId>)]) -> Result<Vec<Vec<NodeId>>, AdminError> {
    let by_index: BTreeMap<_, _> = assigned.iter().cloned().collect();
    let consecutive = by_index.keys().copied().eq(0..count(assigned.len()));
    if assigned.is_empty() || !consecutive || assigned.len() > usize::try_from(PARTITIONS_MAX).unwrap_or(0) {
        let text = "partitions should be a consecutive 0-based integer sequence";
        return error(AdminCode::InvalidReplicaAssignment, text);
    }
    let replicas: Vec<_> = by_index.into_values().collect();
    let factor = replicas[0].len();
    check_replicas(image, &replicas, factor)?;
    Ok(replicas)
}

/// Checks replicas that were given by hand: nodes that are known, and as many for each partition.
fn check_replicas(image: &Image, replicas: &[Vec<NodeId>], factor: usize) -> Result<(), AdminError> {
    for one in replicas {
        if let Err(refusal) = check_assignment(one, &image.known) {
            return error(AdminCode::InvalidReplicaAssignment, refusal.to_string());
        }
        if one.len() != factor {
            let text = format!(
                "The manual partition assignment includes a partition with {} replica(s), but this is not consistent with \
                 previous partitions, which have {factor} replica(s).",
                one.len()
            );
            return error(AdminCode::InvalidReplicaAssignment, text);
        }
    }
    Ok(())
}

/// The first states of partitions from `first` on: those of their replicas that live are in sync.
fn new_partitions(
    image: &Image,
    rules: TopicRules,
    replicas: &[Vec<NodeId>],
    first: usize,
) -> Result<Vec<PartitionState>, AdminError> {
    let written = rules.durability == Durability::Written;
    let state = |(index, replicas): (usize, &Vec<NodeId>)| {
        let live = replicas.iter().filter_map(|node| image.nodes.get(node));
        let isr: Vec<_> = live
            .map(|node| node.member())
            .filter(|member| image.draining.get(&member.node) != Some(&member.epoch))
            .collect();
        if isr.is_empty() {
            let text = format!(
                "All brokers specified in the manual partition assignment for partition {} are fenced or in controlled \
                 shutdown.",
                first + index
            );
            return error(AdminCode::InvalidReplicaAssignment, text);
        }
        Ok(PartitionState { replicas: replicas.clone(), written, ..PartitionState::new(&isr) })
    };
    replicas.iter().enumerate().map(state).collect()
}

/// The transactions that create a topic: one if it fits, else one that says that it is forming, its partitions, and one that
/// says that it is there. Whoever dies in between leaves nothing that anybody sees; the controller takes it away.
pub(crate) fn creation(id: TopicId, stored: StoredTopic, partitions: &[PartitionState]) -> Vec<Transaction> {
    let name = keys::name(&stored.name);
    let free = || Transaction::new().when(Compare::Created(name.clone(), 0));
    let finish = |transaction: Transaction| {
        transaction.put(keys::topic(id), keys::encode_topic(&stored)).put(name.clone(), keys::encode_uuid(id))
    };
    if partitions.len() <= PARTITIONS_PER_TRANSACTION {
        let transaction = finish(free()).when(Compare::Created(keys::topic(id), 0));
        return vec![with_partitions(transaction, id, 0, partitions)];
    }
    let forming = StoredTopic { forming: true, ..stored.clone() };
    let begin = free().when(Compare::Created(keys::topic(id), 0)).put(keys::topic(id), keys::encode_topic(&forming));
    let still = || Compare::Modified(keys::topic(id), FIRST_STEP);
    let chunks = partitions.chunks(PARTITIONS_PER_TRANSACTION).enumerate().map(|(chunk, partitions)| {
        let transaction = Transaction::new().when(still());
        with_partitions(transaction, id, chunk * PARTITIONS_PER_TRANSACTION, partitions)
    });
    let mut steps = vec![begin];
    steps.extend(chunks);
    steps.push(finish(free().when(still())));
    steps
}

/// Adds new partitions from `first` on, whose members must live.
fn with_partitions(
    mut transaction: Transaction,
    topic: TopicId,
    first: usize,
    partitions: &[PartitionState],
) -> Transaction {
    let members: BTreeSet<_> = partitions.iter().flat_map(|state| state.isr.iter().copied()).collect();
    // more nodes than compares fit are settled by the controller instead: their lives are in the states
    for member in members.into_iter().take(PARTITIONS_PER_TRANSACTION) {
        transaction.require(Compare::Created(keys::node(member.node), member.epoch));
    }
    for (index, state) in partitions.iter().enumerate() {
        let key = keys::partition(topic, count(first + index));
        transaction.operations.push(Operation::Put { key, value: keys::encode_partition(state), lease: 0 });
    }
    transaction
}

/// Deletes a topic, its name and its partitions.
pub(crate) fn deletion(id: TopicId, setting: &Setting<'_>) -> Plan<Result<(), AdminError>> {
    let Some(topic) = setting.image.topics.get(&id) else {
        return Plan::Answer(match setting.may_be_done() {
            true => Ok(()),
            false => error(AdminCode::UnknownTopicId, "This server does not host this topic ID."),
        });
    };
    let mut transaction = Transaction::new()
        .when(Compare::Modified(keys::topic(id), topic.revision))
        .delete(keys::topic(id))
        .delete(keys::name(&topic.name));
    transaction.operations.push(Operation::DeletePrefix(keys::partitions(id)));
    Plan::write(vec![transaction], Ok(()))
}

/// Gives a topic more partitions.
pub(crate) fn growth(asked: &MorePartitions, mode: Mode, setting: &Setting<'_>) -> Plan<Result<(), AdminError>> {
    match growth_steps(asked, setting) {
        Err(error) => Plan::Answer(Err(error)),
        Ok(steps) if mode == Mode::Validate || steps.is_empty() => Plan::Answer(Ok(())),
        Ok(steps) => Plan::write(steps, Ok(())),
    }
}

fn growth_steps(asked: &MorePartitions, setting: &Setting<'_>) -> Result<Vec<Transaction>, AdminError> {
    let image = setting.image;
    let topic = image.topic(&asked.topic).ok_or_else(|| unknown_topic(&asked.topic))?;
    let (has, wanted) = (count(topic.expected), asked.count);
    if wanted == has && setting.may_be_done() {
        return Ok(Vec::new());
    }
    if wanted == has {
        return error(AdminCode::InvalidPartitions, format!("Topic already has {has} partition(s)."));
    }
    if wanted < has || wanted > PARTITIONS_MAX {
        let text =
            format!("The topic {} currently has {has} partition(s); {wanted} would not be an increase.", asked.topic);
        return error(AdminCode::InvalidPartitions, text);
    }
    let more = usize::try_from(wanted - has).unwrap_or(0);
    let factor = topic.partitions.first().map_or(1, |first| first.value.target_replicas().len());
    let replicas = match &asked.assignments {
        None => placement::spread(image, more, factor, seed(topic.id).wrapping_add(topic.expected as u64))?,
        Some(given) if given.len() != more => {
            let text = format!(
                "Attempted to add {more} additional partition(s), but only {} assignment(s) were specified.",
                given.len()
            );
            return error(AdminCode::InvalidReplicaAssignment, text);
        }
        Some(given) => {
            check_replicas(image, given, factor)?;
            given.clone()
        }
    };
    let states = new_partitions(image, topic.rules, &replicas, topic.expected)?;
    let same = || Transaction::new().when(Compare::Modified(keys::topic(topic.id), topic.revision));
    let mut steps = Vec::new();
    for (chunk, states) in states.chunks(PARTITIONS_PER_TRANSACTION).enumerate() {
        let first = topic.expected + chunk * PARTITIONS_PER_TRANSACTION;
        steps.push(with_partitions(same(), topic.id, first, states));
    }
    let stored =
        StoredTopic { name: topic.name.clone(), partitions: wanted, configs: topic.configs.clone(), forming: false };
    // nobody looks at partitions beyond the number that the topic says
    match steps.last_mut() {
        Some(last) if last.operations.len() < PARTITIONS_PER_TRANSACTION => {
            *last = std::mem::take(last).put(keys::topic(topic.id), keys::encode_topic(&stored));
        }
        _ => steps.push(same().put(keys::topic(topic.id), keys::encode_topic(&stored))),
    }
    Ok(steps)
}

/// Where turns begin for a topic.
fn seed(id: TopicId) -> u64 {
    id.as_u64_pair().1
}

fn count(partitions: usize) -> i32 {
    i32::try_from(partitions).unwrap_or(i32::MAX)
}
