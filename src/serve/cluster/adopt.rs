//! `millrace cluster adopt`: a node that does not run accepts an etcd that was restored from a backup. What it knows and etcd
//! forgot goes into its claim; who is the last to make one decides for all: see [`millrace_replica::cluster::adoption`].

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use millrace_engine::{
    alone,
    api::{TopicId, TopicPartition},
    format::catalog::Catalog,
    replica::ReplicaPosition,
};
use millrace_replica::cluster::{
    adoption::{
        Adopter, Adoption, ClaimedPartition, ClaimedTopic, Decision, Ending, Extent, Kept, Problem, Shell, Told, Wait,
    },
    etcd::Etcd,
    model::NodeId,
};

use super::{life::Life, membership::etcd_options, start::supervise_for};
use crate::{
    config::{ClusterConfig, Config},
    failure::{Failure, Outcome},
    serve::explain,
};

/// How long etcd may take to answer: others may have to be started for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long leases that came with the backup may last: they begin anew with an etcd that begins to lead.
const LEASES_PATIENCE: Duration = Duration::from_millis(millrace_net::SESSION_MS_MAX.unsigned_abs() + 30_000);
/// How long a node that runs an etcd itself waits for the others to make their claims.
const OTHERS_PATIENCE: Duration = Duration::from_secs(600);
/// How long it goes on running it then, so that all others hear that it is over.
const LINGER: Duration = Duration::from_secs(5);
/// Pause between two looks at etcd.
const PAUSE: Duration = Duration::from_millis(500);
/// Names of a kind that are listed.
const LISTED_MAX: usize = 20;

/// How a node adopts.
#[derive(Clone, Debug)]
pub(crate) struct Adopting {
    /// Nothing is changed.
    pub(crate) dry_run: bool,
    /// Nodes that are gone for good.
    pub(crate) without: Vec<NodeId>,
    /// What only this node has may go: it comes after all was decided.
    pub(crate) may_lose_records: bool,
}

/// Does it, and says what it does.
pub(crate) fn adopt(config: &Config, how: &Adopting, out: &mut impl Write) -> Outcome {
    let Some(cluster) = &config.cluster else {
        return Err(Failure::usage("which cluster, and where is its etcd? give --cluster and --etcd, as to 'serve'"));
    };
    if cluster.etcd.mirror.is_some() {
        return Err(Failure::usage("two nodes without an etcd have none that can be restored: see 'millrace promote'"));
    }
    let life = Life::open(&config.data_dir, &cluster.name).map_err(Failure::failed)?;
    if life.cluster_id().is_none() {
        return Err(Failure::failed(format!(
            "{} was never of a node of cluster '{}': there is nothing to adopt. Start it with 'millrace serve' once the others \
             have adopted that etcd; if it stands in for node {id} whose data is lost, let them adopt with '--without {id}'",
            config.data_dir.display(),
            cluster.name,
            id = config.node_id
        )));
    }
    let catalog = alone::look(&config.data_dir).map_err(|error| Failure::failed(explain::start_error(&error)))?;
    let supervisor = supervise_for(config, &life)?;
    let options = etcd_options(&cluster.name, &cluster.etcd).map_err(Failure::failed)?;
    let mut etcd = Etcd::new(&options).map_err(Failure::failed)?;
    let kept = life.kept();
    let mut node = Node {
        config,
        without: &how.without,
        out,
        life,
        catalog,
        positions: BTreeMap::new(),
        hold: None,
        waits: BTreeMap::new(),
        others_patience: supervisor.is_some().then_some(OTHERS_PATIENCE),
    };
    let mut adopter = Adopter {
        store: &mut etcd,
        shell: &mut node,
        node: config.node_id,
        rack: cluster.rack.clone(),
        kept,
        without: &how.without,
        dry_run: how.dry_run,
        may_lose_records: how.may_lose_records,
    };
    let (adoption, _) = adopter.look()?;
    check(&adoption, (config, cluster), &adopter.shell.life, &adopter.shell.catalog)?;
    let ending = adopter.run()?;
    match ending {
        Ending::Looked => writeln!(out, "nothing was changed")?,
        Ending::Followed => writeln!(
            out,
            "done: start it with 'millrace serve'. What only it has is cut off, with a copy in its folder cut-off"
        )?,
        Ending::Decided if supervisor.is_some() => std::thread::sleep(LINGER),
        Ending::Decided | Ending::Claimed => {}
    }
    Ok(())
}

/// Whether the directory is that node's, and the etcd its cluster's.
fn check(adoption: &Adoption, (config, cluster): (&Config, &ClusterConfig), life: &Life, catalog: &Catalog) -> Outcome {
    if catalog.node_id != config.node_id {
        return Err(Failure::failed(format!("the directory is of node {}: give that --node-id", catalog.node_id)));
    }
    let own = life.cluster_id().unwrap_or_default();
    match adoption.image().cluster_id {
        Some(there) if there == own => Ok(()),
        Some(there) => Err(Failure::failed(format!(
            "this etcd holds another cluster of the name '{}': its id is {there}, and that of this node's cluster {own}",
            cluster.name
        ))),
        None => Err(Failure::failed(format!(
            "this etcd holds no cluster of the name '{}': restore a backup of it, or see 'millrace cluster leave --etcd-is-gone'",
            cluster.name
        ))),
    }
}

/// Who adopts.
struct Node<'a, W> {
    config: &'a Config,
    without: &'a [NodeId],
    out: &'a mut W,
    life: Life,
    catalog: Catalog,
    positions: BTreeMap<TopicPartition, ReplicaPosition>,
    hold: Option<alone::Hold>,
    /// Since when it waits, for what.
    waits: BTreeMap<&'static str, Instant>,
    /// How long it waits for others, if they need its etcd.
    others_patience: Option<Duration>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::LosesRecords => Self::usage(problem),
            other => Self::failed(other),
        }
    }
}

impl<W: Write> Shell for Node<'_, W> {
    type Error = Failure;

    fn keep(&mut self, kept: &Kept) -> Outcome {
        self.life.keep(&self.config.data_dir, kept).map_err(Failure::failed)
    }

    fn open(&mut self, logs_count: bool) -> Outcome {
        let as_failure = |error| Failure::failed(explain::start_error(&error));
        if logs_count {
            self.positions = alone::positions(&self.config.data_dir, self.config.wal_bytes.0).map_err(as_failure)?;
        }
        self.hold = Some(alone::hold(&self.config.data_dir).map_err(as_failure)?);
        Ok(())
    }

    fn topics(&self) -> BTreeMap<TopicId, ClaimedTopic> {
        let topics = self.catalog.topics.iter().map(|(id, stored)| {
            let placement = self.catalog.placements.get(id);
            let runs = placement.map_or(&[][..], |placement| placement.runs());
            let placed =
                runs.iter().flat_map(|run| (0..run.partitions).map(|_| (run.leader_epoch, run.replicas.clone())));
            let alone = std::iter::repeat_with(|| (0, vec![self.config.node_id]));
            let count = usize::try_from(stored.partitions).unwrap_or(0);
            let partitions = placed.chain(alone).take(count).zip(0..);
            let partitions = partitions.map(|((leader_epoch, replicas), partition)| ClaimedPartition {
                leader_epoch,
                replicas,
                log: self
                    .positions
                    .get(&TopicPartition { topic: *id, partition })
                    .map(|position| Extent { last_epoch: position.last_epoch, end: position.end }),
            });
            let (name, configs) = (stored.name.clone(), stored.overrides.clone());
            (*id, ClaimedTopic { name, configs, partitions: partitions.collect() })
        });
        topics.collect()
    }

    fn wait(&mut self, wait: Wait<'_>) -> Outcome<bool> {
        let (what, patience) = match wait {
            Wait::Answer(_) => ("etcd", Some(PATIENCE)),
            Wait::Leases(_) => ("leases", Some(LEASES_PATIENCE)),
            Wait::Claims => ("claims", self.others_patience),
            Wait::Rest => ("rest", Some(Duration::MAX)),
        };
        if !matches!(wait, Wait::Answer(_)) {
            // it answered since
            self.waits.remove("etcd");
        }
        let waited = self.waits.entry(what).or_insert_with(Instant::now).elapsed();
        match (wait, patience) {
            (_, Some(patience)) if waited < patience => self.pause(),
            (Wait::Leases(adoption), _) => {
                let nodes = adoption.image().nodes.keys();
                Err(Failure::failed(format!(
                    "nodes {} run: an etcd is adopted while all nodes are stopped",
                    joined(nodes)
                )))
            }
            (Wait::Claims, Some(_)) => {
                Err(Failure::failed("the other nodes did not adopt it in time: run it again on all"))
            }
            _ => Ok(false),
        }
    }

    fn tell(&mut self, told: Told<'_>) -> Outcome {
        match told {
            Told::Claims(adoption) => self.describe(adoption),
            Told::Late(lost) => {
                writeln!(
                    self.out,
                    "the other nodes have adopted this etcd without node {}: it follows them",
                    self.config.node_id
                )?;
                list("topics that the cluster does not have, whose records here will be deleted", lost, self.out)
            }
            Told::Awaits(nodes) => {
                writeln!(
                    self.out,
                    "nodes {} have not adopted it yet: run 'millrace cluster adopt' there too, before any node is started; if one \
                     is gone for good, run it here once more with --without ID",
                    joined(nodes.iter())
                )?;
                Ok(())
            }
            Told::Decides(decision) => self.say_what_is_decided(decision),
            Told::Decided => {
                writeln!(self.out, "all nodes have adopted this etcd: start them with 'millrace serve'")?;
                Ok(())
            }
        }
    }
}

impl<W: Write> Node<'_, W> {
    fn pause(&self) -> Outcome<bool> {
        std::thread::sleep(PAUSE);
        Ok(true)
    }

    fn describe(&mut self, adoption: &Adoption) -> Outcome {
        let image = adoption.image();
        let mut forgotten = Vec::new();
        let mut back = Vec::new();
        for (id, topic) in self.topics() {
            let Some(stored) = image.topics.get(&id) else {
                forgotten.push(topic.name.clone());
                continue;
            };
            for (at, claimed) in topic.partitions.iter().enumerate() {
                let epoch = stored.partitions.get(at).map(|held| held.value.leader_epoch);
                if epoch.is_none_or(|epoch| epoch < claimed.leader_epoch) {
                    back.push(format!("{}-{at}", topic.name));
                }
            }
        }
        writeln!(self.out, "node {} knows {} topics", self.config.node_id, self.catalog.topics.len())?;
        list("topics that this etcd has forgotten", &forgotten, self.out)?;
        list("partitions whose leaders changed since the backup", &back, self.out)
    }

    fn say_what_is_decided(&mut self, decision: &Decision) -> Outcome {
        let out = &mut *self.out;
        list("topics that this etcd had forgotten and has again", &decision.brought_back, out)?;
        list("topics that were deleted since the backup, and are again", &decision.taken_out, out)?;
        list("topics that go, as there is a newer one of the same name", &decision.replaced, out)?;
        list(
            "topics that may have been deleted since the backup, as the node does not know them which heard of the former etcd \
             last, and are kept",
            &decision.perhaps_deleted,
            out,
        )?;
        list("partitions that nobody has: nobody leads them", &decision.without_log, out)?;
        let doubtful = format!(
            "partitions that node {} had too: if it led them last, acknowledged records may be lost",
            joined(self.without.iter())
        );
        list(&doubtful, &decision.doubtful, out)?;
        writeln!(
            out,
            "done: in every partition the newest log leads. Settings are as in the backup, no reassignment is under way, and \
             whoever has a log of a partition is a replica of it. Start the nodes with 'millrace serve'"
        )?;
        Ok(())
    }
}

fn joined<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn list(what: &str, names: &[String], out: &mut impl Write) -> Outcome {
    if names.is_empty() {
        return Ok(());
    }
    let more = if names.len() > LISTED_MAX { ", ..." } else { "" };
    let first = names.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    writeln!(out, "{} {what}: {first}{more}", names.len())?;
    Ok(())
}
