//! `millrace cluster join`: what `serve` does with the topics of a node that was alone, as a step of its own that can be looked
//! at before. The node does not run meanwhile; cut short, it is gone on with by the next try or by `serve`.

use std::{
    io::Write,
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use millrace_engine::{alone, format::catalog::Catalog};
use millrace_replica::cluster::{
    control::{self, ControlThread, read_image},
    core::Event,
    etcd::Etcd,
    image::Image,
    plane::{JoiningCatalog, JoiningTopic, Question, Reply, Visible},
};

use uuid::Uuid;

use super::{
    life::{Life, Topics},
    membership::{JOIN_TIMEOUT, LEAVE_TIMEOUT, control_options, etcd_options},
    start::{identity, supervise_for},
};
use crate::{
    config::{ClusterConfig, Config},
    failure::{Failure, Outcome},
    serve::{explain, listen},
};

/// How long etcd may take to answer, and the node to become a member: others may have to be started for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two questions to an etcd that does not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Does it, and says what it does.
pub(crate) fn join(config: &Config, dry_run: bool, out: &mut impl Write) -> Outcome {
    let Some(cluster) = &config.cluster else {
        return Err(Failure::usage("which cluster, and where is its etcd? give --cluster and --etcd, as to 'serve'"));
    };
    let life = Life::open(&config.data_dir, &cluster.name).map_err(Failure::failed)?;
    let catalog = alone::look(&config.data_dir).map_err(|error| Failure::failed(explain::start_error(&error)))?;
    let topics = life.topics(!catalog.topics.is_empty());
    if topics == Topics::OfCluster {
        return Err(Failure::failed(match life.epoch {
            0 => "there is no topic to bring along: start the node with 'millrace serve' and these options".to_owned(),
            _ => format!(
                "{} is of a node of cluster '{}' already: nothing is left to bring along, start it with 'millrace serve' and these \
                 options",
                config.data_dir.display(),
                cluster.name
            ),
        }));
    }
    if cluster.etcd.mirror.is_some() {
        return Err(Failure::usage(
            "of two nodes without an etcd the first brings its topics along when 'serve' starts it",
        ));
    }
    let _supervisor = supervise_for(config, &life)?;
    let image = await_image(config, cluster)?;
    let problems = problems(&image, &catalog, (config, &life, topics));
    if !problems.is_empty() {
        return Err(Failure::failed(problems.join("\nerror: ")));
    }
    let partitions: i32 = catalog.topics.values().map(|topic| topic.partitions).sum();
    let others: Vec<_> = image.nodes.keys().map(i32::to_string).collect();
    writeln!(
        out,
        "node {} brings {} topics of {partitions} partitions into cluster '{}', {}",
        config.node_id,
        catalog.topics.len(),
        cluster.name,
        if others.is_empty() { "as its first node".to_owned() } else { format!("beside nodes {}", others.join(",")) },
    )?;
    writeln!(out, "ids, offsets, groups and settings stay; it will be the only replica of each until there are more")?;
    if dry_run {
        writeln!(out, "nothing was changed")?;
        return Ok(());
    }
    let _hold = alone::hold(&config.data_dir).map_err(|error| Failure::failed(explain::start_error(&error)))?;
    carry_out(config, (cluster, life), catalog.cluster_id, joining(&catalog))?;
    writeln!(out, "done: start it and the others with 'millrace serve', then 'millrace cluster spread --replicas 3'")?;
    Ok(())
}

fn await_image(config: &Config, cluster: &ClusterConfig) -> Outcome<Image> {
    let options = etcd_options(&cluster.name, &cluster.etcd).map_err(Failure::failed)?;
    let mut etcd = Etcd::new(&options).map_err(Failure::failed)?;
    let begun = Instant::now();
    loop {
        match read_image(&mut etcd, config.topic_defaults.clone()) {
            Ok((_, image)) => return Ok(image),
            Err(error) if !error.is_unknown() || begun.elapsed() > PATIENCE => return Err(Failure::failed(error)),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Why it cannot be.
fn problems(image: &Image, catalog: &Catalog, (config, life, topics): (&Config, &Life, Topics)) -> Vec<String> {
    let mut problems = Vec::new();
    if catalog.node_id != config.node_id {
        problems.push(format!("the directory is of node {}: give that --node-id", catalog.node_id));
    }
    if topics == Topics::ToJoin && !image.topics.is_empty() {
        let count = image.topics.len();
        problems.push(format!(
            "the cluster has {count} topics of its own: a node joins it with an empty --data, and its topics are copied by a client"
        ));
    }
    if let Some(other) = image.nodes.get(&config.node_id).filter(|other| other.directory != life.directory) {
        problems.push(format!("node id {} is taken by a node at {}", config.node_id, other.peer));
    }
    let is_elsewhere = |runs: &[millrace_engine::format::placement::PlacedRun]| {
        runs.iter().any(|run| run.replicas != [catalog.node_id])
    };
    if catalog.placements.values().any(|placement| is_elsewhere(placement.runs())) {
        problems.push("its topics have replicas on other nodes: it was in a cluster before".to_owned());
    }
    problems
}

fn joining(catalog: &Catalog) -> JoiningCatalog {
    let topics = catalog.topics.iter().map(|(id, stored)| {
        let runs = catalog.placements.get(id).map_or(&[][..], |placement| placement.runs());
        JoiningTopic {
            id: *id,
            name: stored.name.clone(),
            partitions: stored.partitions,
            configs: stored.overrides.clone(),
            leader_epoch: runs.iter().map(|run| run.leader_epoch).max().unwrap_or(0) + 1,
        }
    });
    JoiningCatalog {
        topics: topics.collect(),
        settings: catalog.settings.clone(),
        next_producer_id: catalog.next_producer_id,
    }
}

/// Becomes a member, brings everything along, and ceases to be one until the node is started.
fn carry_out(
    config: &Config,
    (cluster, life): (&ClusterConfig, Life),
    catalog_id: Uuid,
    catalog: JoiningCatalog,
) -> Outcome {
    let listening = listen::resolve(config).map_err(|error| Failure::failed(format!("cannot listen: {error}")))?;
    let Some(peer) = &listening.peer else { return Ok(()) };
    let node = identity(config, cluster, &listening, (peer, &life))?;
    let options = control_options(node, (&life, cluster), catalog_id, config.topic_defaults.clone());
    let etcd = etcd_options(&cluster.name, &cluster.etcd).map_err(Failure::failed)?;
    let life = Arc::new(Mutex::new(life));
    let (registered, registers) = mpsc::channel();
    let (shared, data_dir) = (life.clone(), config.data_dir.clone());
    let hear = move |event: Event| {
        let outcome = match event {
            Event::Registered(member, image) => {
                image.cluster_id.ok_or_else(|| "the cluster has no id".to_owned()).and_then(|id| {
                    let mut life = shared.lock().expect("no panic while locked");
                    life.begin_joining();
                    life.begin(&data_dir, member.epoch, (id, image.adopted.times)).map_err(|error| error.to_string())
                })
            }
            Event::Fatal(reason) => Err(reason),
            _ => return,
        };
        drop(registered.send(outcome)); // who waited may have given up
    };
    let control = control::start(&etcd, options, hear).map_err(Failure::failed)?;
    let outcome = match registers.recv_timeout(PATIENCE) {
        Ok(outcome) => outcome.and_then(|()| bring(&control, catalog)),
        Err(RecvTimeoutError::Timeout) => Err("the node did not become a member in time".to_owned()),
        Err(RecvTimeoutError::Disconnected) => Err("the control plane ended".to_owned()),
    };
    if outcome.is_ok() {
        life.lock().expect("no panic while locked").end_joining(&config.data_dir).map_err(Failure::failed)?;
    }
    let (left, leaves) = mpsc::channel();
    control.plane().put(Question::Leave(Reply::new(move |done| drop(left.send(done)))), LEAVE_TIMEOUT);
    let _its_lease_ends_anyway = leaves.recv_timeout(LEAVE_TIMEOUT * 2);
    control.stop();
    outcome.map_err(Failure::failed)
}

fn bring(control: &ControlThread, catalog: JoiningCatalog) -> Result<(), String> {
    let (joined, joins) = mpsc::channel();
    control.plane().put(Question::Join(catalog, Reply::new(move |done| drop(joined.send(done)))), JOIN_TIMEOUT);
    let joined = joins.recv_timeout(JOIN_TIMEOUT * 2).map_err(|_| "no answer in time".to_owned())?;
    match joined {
        Ok(Visible { outcome: Ok(()), .. }) => Ok(()),
        Ok(Visible { outcome: Err(error), .. }) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
