//! `millrace cluster`: how a cluster is and what to do about it, moving partitions off a node, taking a node out.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use clap::{Args, Subcommand};
use millrace_client::{Cluster, Election, Members, NodeWord, Topic};

use self::{
    plan::plan,
    report::{Heard, report},
};
use super::broker::BrokerArgs;
use crate::failure::{Failure, Outcome};

mod offline;
mod plan;
mod report;

/// Shows a cluster and what is wrong with it, moves partitions off nodes, takes nodes out
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ClusterCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  millrace cluster status
  millrace cluster drain 3                         before node 3 goes for good
  millrace cluster remove 3                        once it is gone and has no replicas
  millrace cluster balance                         preferred leaders lead again
  millrace cluster spread --replicas 3             partitions with fewer replicas get three
  millrace cluster promote --topic orders --may-lose-records

From one node to three, and back:
  millrace cluster join --config node.toml --dry-run
  millrace cluster gather 1                        all partitions to node 1; then stop the others and node 1
  millrace cluster leave --config node.toml        node 1 goes on alone

After etcd was restored from a backup, on every node, none of which runs:
  millrace cluster adopt --config node.toml";

#[derive(Debug, Subcommand)]
enum Action {
    /// Show nodes, who leads what, which partitions lack replicas, and what to do
    Status(Status),
    /// Give other nodes the replicas of a node
    Drain(Drain),
    /// Take a node out that is gone for good and has no replicas
    Remove(Remove),
    /// Have every partition led by its preferred leader again
    Balance(Balance),
    /// Give partitions more replicas, e.g. after the first nodes were joined by others
    Spread(Spread),
    /// Have partitions that nobody may lead led by a replica that may lack records
    Promote(Promote),
    /// Give all replicas to one node, which then has all that the cluster has
    Gather(Gather),
    Join(offline::Join),
    Leave(offline::Leave),
    Adopt(offline::Adopt),
}

#[derive(Args, Debug)]
struct Status {
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Drain {
    /// The node's id
    node: i32,
    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Remove {
    /// The node's id
    node: i32,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Balance {
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Spread {
    /// How many replicas each partition shall have at least
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    replicas: u16,
    /// Topic to spread; may be given several times [default: all, those that brokers keep for themselves too]
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Gather {
    /// The node's id
    node: i32,
    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Promote {
    /// Topic whose partitions without a leader get one
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Say that records which were acknowledged may be lost
    #[arg(long)]
    may_lose_records: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

impl ClusterCommand {
    /// Does what was said on the command line.
    pub(crate) fn run(self) -> Outcome {
        match self.action {
            Action::Status(status) => status.run(),
            Action::Drain(drain) => drain.run(),
            Action::Remove(remove) => remove.run(),
            Action::Balance(balance) => balance.run(),
            Action::Spread(spread) => spread.run(),
            Action::Promote(promote) => promote.run(),
            Action::Gather(gather) => gather.run(),
            Action::Join(join) => join.run(),
            Action::Leave(leave) => leave.run(),
            Action::Adopt(adopt) => adopt.run(),
        }
    }
}

/// What every subcommand looks at first.
fn look(cluster: &mut Cluster) -> Outcome<(Members, Vec<Topic>)> {
    let members = cluster.members().map_err(Failure::failed)?;
    let topics = cluster.all_topics().map_err(Failure::failed)?;
    Ok((members, topics))
}

/// How long one node may take to say how it is: one that stands still is not there to say.
const WORD_PATIENCE: Duration = Duration::from_secs(1);

/// What nodes say that can be asked.
fn hear(cluster: &mut Cluster, members: &Members, silent: Vec<i32>) -> Heard {
    let mut heard = Heard { silent, ..Heard::default() };
    let ids: Vec<i32> = members.nodes.iter().map(|node| node.id).filter(|id| !heard.silent.contains(id)).collect();
    for id in ids {
        // whoever does not answer or does not know is no reason to say nothing of the others
        let NodeWord { lags, etcd_trouble } = cluster.word_of(id).unwrap_or_default();
        for lag in lags.into_iter().flatten() {
            let sum = heard.lags.entry(lag.node).or_default();
            *sum = sum.and(lag);
        }
        if let Some(trouble) = etcd_trouble {
            heard.etcd_troubles.entry(trouble).or_default().push(id);
        }
    }
    heard
}

impl Status {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (members, topics) = look(&mut cluster)?;
        let silent = silent(&members, self.broker.patience(SILENCE));
        let mut heard = hear(&mut self.broker.cluster_within(WORD_PATIENCE), &members, silent);
        heard.min_in_sync = min_in_sync(&mut cluster, &topics);
        report(&members, &topics, &heard, &mut stdout().lock())
    }
}

/// min.insync.replicas of topics that lack replicas in sync, as far as somebody says.
fn min_in_sync(cluster: &mut Cluster, topics: &[Topic]) -> BTreeMap<String, usize> {
    let lacks = |topic: &&Topic| topic.partitions.values().any(|it| it.in_sync.len() < it.replicas.len());
    let names: Vec<String> = topics.iter().filter(lacks).map(|topic| topic.name.clone()).collect();
    let mut found = BTreeMap::new();
    for some in names.chunks(TOPICS_OF_REQUEST) {
        let Ok(values) = cluster.topic_settings(some, "min.insync.replicas") else { break };
        found.extend(values.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?))));
    }
    found
}

/// Topics of which one request asks for a setting.
const TOPICS_OF_REQUEST: usize = 1_000;

/// How long a node may take to take a connection before it counts as silent.
const SILENCE: Duration = Duration::from_secs(2);

/// Nodes that nobody can connect to from here.
fn silent(members: &Members, patience: Duration) -> Vec<i32> {
    let answers = |host: &str, port: u16| {
        (host, port).to_socket_addrs().ok()?.find_map(|address| TcpStream::connect_timeout(&address, patience).ok())
    };
    members.nodes.iter().filter(|node| answers(&node.host, node.port).is_none()).map(|node| node.id).collect()
}

impl Drain {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (members, topics) = look(&mut cluster)?;
        let moves = plan(&members.nodes, &topics, &[], &plan::Goal::Without(self.node)).map_err(Failure::failed)?;
        carry_out(&mut cluster, moves, self.dry_run)
    }
}

impl Gather {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (members, topics) = look(&mut cluster)?;
        let moves = plan(&members.nodes, &topics, &[], &plan::Goal::Only(self.node)).map_err(Failure::failed)?;
        carry_out(&mut cluster, moves, self.dry_run)
    }
}

impl Spread {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (members, topics) = look(&mut cluster)?;
        if let Some(name) = self.topic.iter().find(|name| topics.iter().all(|topic| topic.name != **name)) {
            return Err(Failure::failed(format!("there is no topic '{name}'")));
        }
        let goal = plan::Goal::Replicas(usize::from(self.replicas));
        let moves = plan(&members.nodes, &topics, &self.topic, &goal).map_err(Failure::failed)?;
        carry_out(&mut cluster, moves, self.dry_run)
    }
}

/// Partitions of one request: what a controller decides in one go.
const MOVES_OF_REQUEST: usize = 100;

fn carry_out(cluster: &mut Cluster, moves: Vec<plan::Move>, dry_run: bool) -> Outcome {
    let mut out = stdout().lock();
    for step in &moves {
        writeln!(out, "{step}")?;
    }
    if dry_run {
        return Ok(());
    }
    for some in moves.chunks(MOVES_OF_REQUEST) {
        let some: Vec<_> = some.iter().map(plan::Move::reassignment).collect();
        cluster.reassign(&some).map_err(Failure::failed)?;
    }
    match moves.len() {
        0 => writeln!(out, "nothing to do")?,
        count => {
            writeln!(out, "{count} partitions get other replicas; 'millrace cluster status' shows when they have them")?
        }
    }
    Ok(())
}

impl Remove {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (members, topics) = look(&mut cluster)?;
        let node = self.node;
        if members.nodes.iter().any(|member| member.id == node) {
            return Err(Failure::failed(format!("node {node} is there: stop it first")));
        }
        let has = |topic: &&Topic| topic.partitions.values().any(|partition| partition.replicas.contains(&node));
        if let Some(topic) = topics.iter().find(has) {
            let name = &topic.name;
            return Err(Failure::failed(format!(
                "node {node} has replicas of '{name}': 'millrace cluster drain {node}' gives them to others"
            )));
        }
        cluster.unregister(node).map_err(Failure::failed)
    }
}

impl Balance {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (_, topics) = look(&mut cluster)?;
        for topic in &topics {
            let strays = topic.partitions.iter().filter(|(_, it)| {
                it.replicas.first().is_some_and(|first| *first != it.leader && it.in_sync.contains(first))
            });
            let strays: Vec<i32> = strays.map(|(index, _)| *index).collect();
            if !strays.is_empty() {
                cluster.elect(Election::Preferred, &topic.name, &strays).map_err(Failure::failed)?;
            }
        }
        Ok(())
    }
}

impl Promote {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let topic = cluster.topic(&self.topic, false).map_err(Failure::failed)?;
        let orphans = topic.partitions.iter().filter(|(_, it)| it.leader < 0);
        let orphans: Vec<i32> = orphans.map(|(index, _)| *index).collect();
        if orphans.is_empty() {
            return Err(Failure::failed(format!("every partition of '{}' has a leader", self.topic)));
        }
        if !self.may_lose_records {
            return Err(Failure::usage(format!(
                "partitions {orphans:?} wait for a replica that has all that was acknowledged; with --may-lose-records \
                 another one leads, and what only the lost ones had is gone"
            )));
        }
        cluster.elect(Election::Unclean, &self.topic, &orphans).map_err(Failure::failed)
    }
}
