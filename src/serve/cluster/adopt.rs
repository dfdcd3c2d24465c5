//! `millrace cluster adopt`: a node that does not run accepts an etcd that was restored from a backup. What it knows and etcd
//! forgot goes into its claim; who is the last to make one decides for all: see [`millrace_replica::cluster::adoption`].

use std::{
    collections::{BTreeMap, BTreeSet},
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
    adoption::{Adoption, Claim, ClaimedPartition, ClaimedTopic, Decision, Extent},
    control::read_contents,
    core::Remembered,
    etcd::Etcd,
    model::{KnownNode, Member, NodeId},
    store::{Outcome as Written, Store, StoreError, Transaction},
};

use super::{life::Life, membership::etcd_options, start::supervise_for};
use crate::{
    config::{ClusterConfig, Config},
    failure::{Failure, Outcome},
    serve::explain,
};

/// How long etcd may take to answer: others may have to be started for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long leases that came with the backup may last.
const LEASES_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node that runs an etcd itself waits for the others to make their claims.
const OTHERS_PATIENCE: Duration = Duration::from_secs(600);
/// How long it goes on running it then, so that all others hear that it is over.
const LINGER: Duration = Duration::from_secs(5);
/// Pause between two looks at etcd.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a decision is made anew as others adopt at the same time.
const REFUSALS_MAX: u32 = 60;
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
            "{} was never of a node of cluster '{}': there is nothing to adopt, start it with 'millrace serve'",
            config.data_dir.display(),
            cluster.name
        )));
    }
    let as_failure = |error| Failure::failed(explain::start_error(&error));
    let catalog = alone::look(&config.data_dir).map_err(as_failure)?;
    let supervisor = supervise_for(config, &life)?;
    let options = etcd_options(&cluster.name, &cluster.etcd).map_err(Failure::failed)?;
    let mut etcd = Etcd::new(&options).map_err(Failure::failed)?;
    let (adoption, seen) = await_store(&mut etcd)?;
    check(&adoption, &life, cluster)?;
    let mut node = Node { config, cluster, life, catalog, positions: BTreeMap::new() };
    let last_life = Member { node: config.node_id, epoch: node.life.epoch };
    if adoption.is_late(last_life, node.life.adopted()) {
        return node.come_late(&adoption, seen, how, out);
    }
    if adoption.reason(node.life.remembered()).is_none() {
        return Err(Failure::failed(
            "nothing shows that this etcd was restored from a backup: start the node with 'millrace serve'",
        ));
    }
    node.describe(&adoption, out)?;
    if how.dry_run {
        writeln!(out, "nothing was changed")?;
        return Ok(());
    }
    let adoption = await_silence(&mut etcd, adoption)?;
    // a directory that gave records up was promised nothing, and says nothing of what others may lack
    if node.life.epoch > 0 {
        node.positions = alone::positions(&config.data_dir, config.wal_bytes.0).map_err(as_failure)?;
    }
    let _hold = alone::hold(&config.data_dir).map_err(as_failure)?;
    node.make_claim(&mut etcd, &adoption)?;
    let until = supervisor.is_some().then(|| Instant::now() + OTHERS_PATIENCE);
    let is_over = settle(&mut etcd, how, until, out)?;
    if is_over && supervisor.is_some() {
        std::thread::sleep(LINGER);
    }
    Ok(())
}

/// All that etcd holds, and which etcd it is.
fn read(etcd: &mut Etcd) -> Result<(Adoption, Remembered), StoreError> {
    let read = read_contents(etcd)?;
    let adoption = Adoption::read(&read).map_err(|error| StoreError::Nonsense(error.to_string()))?;
    Ok((adoption, Remembered { store: read.0.identity, revision: read.0.revision }))
}

fn await_store(etcd: &mut Etcd) -> Outcome<(Adoption, Remembered)> {
    let begun = Instant::now();
    loop {
        match read(etcd) {
            Ok(found) => return Ok(found),
            Err(error) if !error.is_unknown() || begun.elapsed() > PATIENCE => return Err(Failure::failed(error)),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn check(adoption: &Adoption, life: &Life, cluster: &ClusterConfig) -> Outcome {
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

/// Waits until leases that came with the backup are over. A node that goes on for longer runs.
fn await_silence(etcd: &mut Etcd, mut adoption: Adoption) -> Outcome<Adoption> {
    let begun = Instant::now();
    while !adoption.is_silent() {
        if begun.elapsed() > LEASES_PATIENCE {
            let nodes: Vec<_> = adoption.image().nodes.keys().map(ToString::to_string).collect();
            return Err(Failure::failed(format!(
                "nodes {} run: an etcd is adopted while all nodes are stopped",
                nodes.join(",")
            )));
        }
        std::thread::sleep(PAUSE);
        adoption = await_store(etcd)?.0;
    }
    Ok(adoption)
}

/// Who adopts.
struct Node<'a> {
    config: &'a Config,
    cluster: &'a ClusterConfig,
    life: Life,
    catalog: Catalog,
    positions: BTreeMap<TopicPartition, ReplicaPosition>,
}

impl Node<'_> {
    fn describe(&self, adoption: &Adoption, out: &mut impl Write) -> Outcome {
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
        writeln!(out, "node {} knows {} topics", self.config.node_id, self.catalog.topics.len())?;
        list("topics that this etcd has forgotten", &forgotten, out)?;
        list("partitions whose leaders changed since the backup", &back, out)
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

    /// Says what the node has. Its directory has the life that it says first: once it counts, others decide by it. The etcd is
    /// accepted last: cut short before, nodes still refuse it.
    fn make_claim(&mut self, etcd: &mut Etcd, adoption: &Adoption) -> Outcome {
        let (node, data_dir) = (self.config.node_id, &self.config.data_dir);
        let seen = self.life.heard();
        // before the life that it continues, which would be none of this directory's otherwise
        let known = KnownNode { directory: self.life.directory, rack: self.cluster.rack.clone(), since: 0 };
        let made_up = transact(etcd, &adoption.begin_claim(node, &known))?;
        let epoch = if self.life.epoch == 0 { 0 } else { made_up };
        let (member, adoptions_known) = (Member { node, epoch }, self.life.adopted());
        let transactions = Claim { member, adoptions_known, seen, topics: self.topics() }.transactions(adoption);
        let (head, parts) = transactions.split_last().expect("what makes it count");
        for part in parts {
            transact(etcd, part)?;
        }
        self.life.claim(data_dir, epoch, adoption.image().adopted.times).map_err(Failure::failed)?;
        transact(etcd, head)?;
        let (now, seen) = await_store(etcd)?;
        if now.claim(node).is_none() && !now.took_part(member) {
            return Err(Failure::failed("the other nodes have decided without what this one has: run it again"));
        }
        self.life.accept(data_dir, seen).map_err(Failure::failed)
    }

    /// The others decided without this node. It follows them, as a new directory that was promised nothing.
    fn come_late(&mut self, adoption: &Adoption, seen: Remembered, how: &Adopting, out: &mut impl Write) -> Outcome {
        writeln!(out, "the other nodes have adopted this etcd without node {}: it follows them", self.config.node_id)?;
        let known = &adoption.image().topics;
        let own = self.catalog.topics.iter().filter(|(id, _)| known.get(*id).is_none());
        let lost: Vec<String> = own.map(|(_, topic)| topic.name.clone()).collect();
        list("topics that the cluster does not have, whose records here will be deleted", &lost, out)?;
        if how.dry_run {
            writeln!(out, "nothing was changed")?;
            return Ok(());
        }
        if !lost.is_empty() && !how.may_lose_records {
            return Err(Failure::usage("records would be lost: with --may-lose-records they are"));
        }
        let hold = alone::hold(&self.config.data_dir);
        let _hold = hold.map_err(|error| Failure::failed(explain::start_error(&error)))?;
        self.life.adopt_late(&self.config.data_dir, seen, adoption.image().adopted.times).map_err(Failure::failed)?;
        writeln!(
            out,
            "done: start it with 'millrace serve'. What only it has is cut off, with a copy in its folder cut-off"
        )?;
        Ok(())
    }
}

/// Writes part of a claim. Answers its revision.
fn transact(etcd: &mut Etcd, transaction: &Transaction) -> Outcome<i64> {
    match etcd.transact(transaction).map_err(Failure::failed)? {
        Written::Done(revision) => Ok(revision),
        Written::Refused(_) => {
            Err(Failure::failed("others adopted this etcd, or another process does it for this node: run it again"))
        }
    }
}

/// Decides once all have made their claims. Whether that is over.
fn settle(etcd: &mut Etcd, how: &Adopting, until: Option<Instant>, out: &mut impl Write) -> Outcome<bool> {
    let (mut told, mut refusals) = (BTreeSet::new(), 0);
    loop {
        let (adoption, _) = await_store(etcd)?;
        if !adoption.image().being_adopted {
            writeln!(out, "all nodes have adopted this etcd: start them with 'millrace serve'")?;
            return Ok(true);
        }
        let awaited = adoption.awaited(&how.without);
        if awaited.is_empty() {
            if adoption.is_silent() && carry_out(etcd, &adoption.decide(&how.without), how, out)? {
                return Ok(true);
            }
            refusals += 1;
            if refusals == REFUSALS_MAX {
                return Err(Failure::failed(
                    "something changes this etcd meanwhile: see that no node runs, and run it again",
                ));
            }
            std::thread::sleep(PAUSE);
            continue;
        }
        if awaited != told {
            let nodes: Vec<_> = awaited.iter().map(ToString::to_string).collect();
            writeln!(
                out,
                "nodes {} have not adopted it yet: run 'millrace cluster adopt' there too, before any node is started; if one is \
                 gone for good, run it here once more with --without ID",
                nodes.join(",")
            )?;
            told = awaited;
        }
        match until {
            Some(until) if Instant::now() < until => std::thread::sleep(PAUSE),
            Some(_) => return Err(Failure::failed("the other nodes did not adopt it in time: run it again on all")),
            None => return Ok(false),
        }
    }
}

/// Whether it was done: another node may have been faster, or a claim was made once more.
fn carry_out(etcd: &mut Etcd, decision: &Decision, how: &Adopting, out: &mut impl Write) -> Outcome<bool> {
    for transaction in &decision.transactions {
        match etcd.transact(transaction) {
            Ok(Written::Done(_)) => {}
            Ok(Written::Refused(_)) => return Ok(false),
            Err(error) => return Err(Failure::failed(format!("{error}: run it again"))),
        }
    }
    list("topics that this etcd had forgotten and has again", &decision.brought_back, out)?;
    list("topics that were deleted since the backup, and are again", &decision.taken_out, out)?;
    list(
        "topics that may have been deleted since the backup, as the node does not know them which heard of the former etcd last, \
         and are kept",
        &decision.perhaps_deleted,
        out,
    )?;
    list("partitions that nobody has: nobody leads them", &decision.without_log, out)?;
    let without: Vec<_> = how.without.iter().map(ToString::to_string).collect();
    let doubtful = format!(
        "partitions that node {} had too: if it led them last, acknowledged records may be lost",
        without.join(",")
    );
    list(&doubtful, &decision.doubtful, out)?;
    writeln!(
        out,
        "done: in every partition the newest log leads. Settings are as in the backup, no reassignment is under way, and whoever \
         has a log of a partition is a replica of it. Start the nodes with 'millrace serve'"
    )?;
    Ok(true)
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
