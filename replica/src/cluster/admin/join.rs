//! A node with data becomes the first of a cluster: its topics are written down as they are, with itself as their only
//! replica.

use std::collections::BTreeMap;

use millrace_engine::config::ALL_BROKERS_PREFIX;

use super::{Plan, Setting, configs::setting_key, error, topics::creation};
use crate::cluster::{
    image::is_of_all_nodes,
    keys::{self, StoredTopic},
    model::PartitionState,
    plane::{AdminCode, AdminError, JoiningTopic},
    store::{Compare, Operation, Transaction},
};

type Done = Result<(), AdminError>;

/// Writes a topic down. One that is there with the same id was written before.
pub(crate) fn topic(joining: &JoiningTopic, setting: &Setting<'_>) -> Plan<Done> {
    let image = setting.image;
    if image.topics.get(&joining.id).is_some() {
        return Plan::Answer(Ok(()));
    }
    let collides = |name: &&String| name.replace('.', "_") == joining.name.replace('.', "_");
    if let Some(other) = image.names.keys().find(collides) {
        let text = format!("the cluster has a topic {other} of its own: rename or delete one of the two");
        return Plan::Answer(error(AdminCode::TopicAlreadyExists, text));
    }
    if let Some(began) = image.forming.get(&joining.id) {
        // what an earlier try left: taken away, and begun anew
        let mut away = Transaction::new().when(Compare::Modified(keys::topic(joining.id), *began));
        away = away.delete(keys::topic(joining.id));
        away.operations.push(Operation::DeletePrefix(keys::partitions(joining.id)));
        let text = "an earlier try was in the way and is gone: try again";
        return Plan::write(vec![away], error(AdminCode::RequestTimedOut, text));
    }
    let state = PartitionState { leader_epoch: joining.leader_epoch, ..PartitionState::new(&[setting.me]) };
    let partitions = vec![state; usize::try_from(joining.partitions).unwrap_or(0)];
    let stored = StoredTopic {
        name: joining.name.clone(),
        partitions: joining.partitions,
        configs: joining.configs.clone(),
        forming: false,
    };
    Plan::write(creation(joining.id, stored, &partitions), Ok(()))
}

/// A node's dynamic settings as those of a cluster: what no node has a value of its own for becomes the default of all, so that
/// its topics go on as they were.
pub(crate) fn of_cluster(mut settings: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own: Vec<_> = settings.keys().filter(|name| is_of_all_nodes(name)).cloned().collect();
    for name in own {
        if let Some(value) = settings.remove(&name) {
            settings.insert(format!("{ALL_BROKERS_PREFIX}{name}"), value);
        }
    }
    settings
}

/// Writes a dynamic setting down, unless the cluster has a value for it.
pub(crate) fn setting(name: &str, value: &str, setting: &Setting<'_>) -> Plan<Done> {
    let key = setting_key(setting.me.node, name);
    if setting.image.settings.contains_key(&key) {
        return Plan::Answer(Ok(()));
    }
    let free = Transaction::new().when(Compare::Created(keys::setting(&key), 0));
    Plan::write(vec![free.put(keys::setting(&key), keys::encode_setting(value))], Ok(()))
}

/// Writes down that producer ids below that were given out.
pub(crate) fn producer_ids(next: i64, setting: &Setting<'_>) -> Plan<Done> {
    let held = &setting.image.producer_ids;
    if held.value >= next {
        return Plan::Answer(Ok(()));
    }
    let same = Transaction::new().when(Compare::Modified(keys::PRODUCER_IDS.to_owned(), held.revision));
    Plan::write(vec![same.put(keys::PRODUCER_IDS.to_owned(), keys::encode_integer(next))], Ok(()))
}
