//! How the last node of a cluster becomes a node that is alone again: its catalog is written from what the cluster says last,
//! the directory forgets that it was in a cluster, and the cluster's keys are taken out of etcd. In that order, each step whole:
//! cut short after the first, it is the cluster's node as before; after the second it is alone, and the cluster takes it back no more.

use std::{collections::BTreeMap, io::Write};

use millrace_engine::{
    alone::{self, Inheritance},
    format::catalog::{Catalog, StoredTopic},
    node::StartError,
};
use millrace_replica::cluster::{
    control::read_image,
    etcd::Etcd,
    image::Image,
    keys,
    model::{NodeId, PartitionState},
    store::{Compare, Operation, Outcome as Written, Store, Transaction},
};
use uuid::Uuid;

use super::{
    life::{self, Life},
    membership::etcd_options,
    start::supervise_for,
};
use crate::{
    config::Config,
    failure::{Failure, Outcome},
    serve::explain,
};

/// How a node leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    /// Nothing is changed.
    pub(crate) dry_run: bool,
    /// There is no etcd to ask: what this node knows has to do.
    pub(crate) etcd_is_gone: bool,
}

/// Does it, and says what it does.
pub(crate) fn leave(config: &Config, how: Leaving, out: &mut impl Write) -> Outcome {
    let Some(cluster) = &config.cluster else {
        return Err(Failure::usage("which cluster, and where is its etcd? give --cluster and --etcd, as to 'serve'"));
    };
    let life = Life::open(&config.data_dir, &cluster.name).map_err(Failure::failed)?;
    if life.epoch == 0 {
        let text = format!("{} is not of a node that is in cluster '{}'", config.data_dir.display(), cluster.name);
        return Err(Failure::failed(text));
    }
    let catalog = alone::look(&config.data_dir).map_err(|error| Failure::failed(explain::start_error(&error)))?;
    let mut etcd = None;
    // an etcd of our own has to run meanwhile
    let mut _supervisor = None;
    let inheritance = if how.etcd_is_gone || cluster.etcd.mirror.is_some() {
        of_catalog(&catalog, config)?
    } else {
        _supervisor = supervise_for(config, &life)?;
        let options = etcd_options(&cluster.name, &cluster.etcd).map_err(Failure::failed)?;
        let mut store = Etcd::new(&options).map_err(Failure::failed)?;
        let (_, image) = read_image(&mut store, config.topic_defaults.clone()).map_err(|error| {
            Failure::failed(format!(
                "{error}\n  with --etcd-is-gone it goes on with what this node knows of the cluster"
            ))
        })?;
        let inheritance = of_image(&image, &Own { node: config.node_id, life: &life });
        etcd = Some((store, image));
        inheritance.map_err(|problems| Failure::failed(problems.join("\nerror: ")))?
    };
    let partitions: usize = inheritance.topics.values().map(|(_, epochs)| epochs.len()).sum();
    let (topics, id) = (inheritance.topics.len(), config.node_id);
    writeln!(
        out,
        "node {id} goes on alone with {topics} topics of {partitions} partitions, each in its next leader epoch"
    )?;
    if how.dry_run {
        writeln!(out, "nothing was changed")?;
        return Ok(());
    }
    let inherited = alone::inherit(&config.data_dir, move |_| Ok::<_, StartError>(inheritance));
    inherited.map_err(|error| Failure::failed(explain::start_error(&error)))?;
    if cluster.etcd.mirror.is_some() {
        // what this node kept of the two must not be found by the next; while it still is of the cluster, this can be repeated
        match std::fs::remove_dir_all(config.data_dir.join("mirror")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Failure::failed(error)),
            _ => {}
        }
    }
    life::end(&config.data_dir).map_err(Failure::failed)?;
    writeln!(out, "{} is of no cluster any more: start it without --cluster", config.data_dir.display())?;
    if cluster.etcd.mirror.is_some() {
        return Ok(());
    }
    match etcd {
        None => writeln!(out, "if that etcd comes back, take its keys below /millrace/{}/ out", cluster.name)?,
        Some((mut store, image)) => match dissolve(&mut store, &image) {
            Ok(()) => writeln!(out, "the cluster is no more: its keys are gone from etcd")?,
            Err(reason) => writeln!(
                out,
                "its keys stay in etcd ({reason}): 'etcdctl del --prefix /millrace/{}/' takes them out",
                cluster.name
            )?,
        },
    }
    Ok(())
}

/// Takes all keys out, unless a node came meanwhile.
fn dissolve(store: &mut impl Store, image: &Image) -> Result<(), String> {
    let mut all = Transaction::new().when(Compare::Exists(keys::CLUSTER.to_owned()));
    all.operations.push(Operation::DeletePrefix(String::new()));
    for node in image.known.keys().filter(|node| !image.nodes.contains_key(node)) {
        all.require(Compare::Created(keys::node(*node), 0));
    }
    match store.transact(&all) {
        Ok(Written::Done(_)) => Ok(()),
        Ok(Written::Refused(_)) => Err("another node came meanwhile".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The node that leaves.
struct Own<'a> {
    node: NodeId,
    life: &'a Life,
}

/// What it inherits of a cluster, or all reasons why it cannot have it.
fn of_image(image: &Image, own: &Own<'_>) -> Result<Inheritance, Vec<String>> {
    let mut problems = Vec::new();
    if image.cluster_id.is_none() || image.cluster_id != own.life.cluster_id() {
        problems.push("this etcd holds another cluster than the one that the directory is of".to_owned());
        return Err(problems);
    }
    if image.known.get(&own.node).is_none_or(|known| known.directory != own.life.directory) {
        problems.push(format!("the cluster knows another directory as that of node {}", own.node));
    }
    let running: Vec<String> = image.nodes.keys().filter(|id| **id != own.node).map(i32::to_string).collect();
    if !running.is_empty() {
        problems
            .push(format!("nodes {} run: the last node of a cluster leaves it, so stop them first", running.join(",")));
    }
    let (mut elsewhere, mut behind) = (BTreeMap::<NodeId, usize>::new(), Vec::new());
    let mut topics = BTreeMap::new();
    for topic in image.topics.values() {
        let mut epochs = Vec::new();
        for (at, held) in topic.partitions.iter().enumerate() {
            let state = &held.value;
            for node in state.replicas.iter().filter(|node| **node != own.node) {
                *elsewhere.entry(*node).or_default() += 1;
            }
            if !has_all(state, own.node) {
                behind.push(format!("{}-{at}", topic.name));
            }
            epochs.push(state.leader_epoch + 1);
        }
        let stored = StoredTopic {
            name: topic.name.clone(),
            partitions: i32::try_from(epochs.len()).unwrap_or(i32::MAX),
            overrides: topic.configs.clone(),
        };
        if topic.expected != epochs.len() {
            problems.push(format!("topic {} lacks partitions in etcd", topic.name));
        }
        topics.insert(topic.id, (stored, epochs));
    }
    problems.extend(elsewhere.into_iter().map(|(node, count)| {
        format!(
            "node {node} has replicas of {count} partitions: while it and this one run, 'millrace cluster drain {node}' or, to \
             have fewer replicas, 'millrace cluster gather {}' moves them here",
            own.node
        )
    }));
    if let Some(first) = behind.first() {
        problems.push(format!(
            "this node lacks records of {} partitions, such as {first}: others were in sync with their leader, and it was not",
            behind.len()
        ));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Inheritance {
        cluster_id: image.cluster_id.unwrap_or(Uuid::nil()),
        topics,
        next_producer_id: image.producer_ids.value,
        settings: image.settings_of(own.node),
    })
}

/// Whether a node has every record that was acknowledged by all in sync.
fn has_all(state: &PartitionState, node: NodeId) -> bool {
    let members = state.isr.iter().chain(&state.elr).chain(&state.last_known_leader);
    members.into_iter().any(|member| member.node == node)
}

/// The same by what the node itself knows. How far its logs are led says the logs.
fn of_catalog(catalog: &Catalog, config: &Config) -> Outcome<Inheritance> {
    for (id, placement) in &catalog.placements {
        if let Some(run) = placement.runs().iter().find(|run| run.replicas != [config.node_id]) {
            let name = catalog.topics.get(id).map_or_else(|| id.to_string(), |topic| topic.name.clone());
            return Err(Failure::failed(format!(
                "topic {name} has replicas on nodes {:?}, which may have records that this one lacks",
                run.replicas
            )));
        }
    }
    let positions = alone::positions(&config.data_dir, config.wal_bytes.0);
    let positions = positions.map_err(|error| Failure::failed(explain::start_error(&error)))?;
    let topics = catalog.topics.iter().map(|(id, stored)| {
        let placement = catalog.placements.get(id).cloned().unwrap_or_default();
        let epoch = |partition: i32| {
            let logged = positions.get(&millrace_engine::api::TopicPartition { topic: *id, partition });
            let placed = placement.leader_epoch(u32::try_from(partition).unwrap_or(u32::MAX));
            placed.max(logged.map_or(0, |position| position.last_epoch)) + 1
        };
        (*id, (stored.clone(), (0..stored.partitions).map(epoch).collect()))
    });
    Ok(Inheritance {
        cluster_id: catalog.cluster_id,
        topics: topics.collect(),
        next_producer_id: catalog.next_producer_id,
        settings: catalog.settings.clone(),
    })
}
