//! `millrace txn`: transactional ids, what is open, and how to end what nobody ends.

use std::io::{Write, stdout};

use clap::{Args, Subcommand};
use millrace_client::Cluster;

use super::broker::BrokerArgs;
use crate::{
    failure::{Failure, Outcome},
    output::Table,
    time,
};

/// Lists, describes and aborts transactions
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TxnCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  millrace txn list
  millrace txn list --state Ongoing
  millrace txn describe payments-1
  millrace txn describe --topic orders --partition 0
  millrace txn abort payments-1
  millrace txn abort --topic orders --partition 0 --producer-id 4711";

#[derive(Debug, Subcommand)]
enum Action {
    /// List transactional ids
    List(List),
    /// Show an id's transaction, or the producers of a partition
    Describe(Describe),
    /// Abort an id's transaction and fence its producer, or end what a producer has open in one partition
    Abort(Abort),
}

#[derive(Args, Debug)]
struct List {
    /// Only ids in this state, as Ongoing; may be given several times
    #[arg(long, value_name = "NAME")]
    state: Vec<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// An id, or a partition.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Which {
    /// The transactional id
    #[arg(conflicts_with_all = ["topic", "partition"])]
    id: Option<String>,
    /// The topic of a partition
    #[arg(long, value_name = "NAME", requires = "partition")]
    topic: Option<String>,
    /// The partition's index
    #[arg(long, value_name = "INDEX", requires = "topic", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
}

/// What is meant.
enum Target {
    Id(String),
    Partition(String, i32),
}

#[derive(Args, Debug)]
struct Describe {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Abort {
    #[command(flatten)]
    which: Which,
    /// The producer whose transaction is to be ended in a partition
    #[arg(long, value_name = "ID", requires = "partition")]
    producer_id: Option<i64>,
    #[command(flatten)]
    broker: BrokerArgs,
}

impl TxnCommand {
    /// Runs the command.
    pub(crate) fn run(self) -> Outcome {
        match self.action {
            Action::List(list) => list.run(),
            Action::Describe(describe) => describe.run(),
            Action::Abort(abort) => abort.run(),
        }
    }
}

impl Which {
    fn target(self) -> Outcome<Target> {
        match (self.id, self.topic, self.partition) {
            (Some(id), None, None) => Ok(Target::Id(id)),
            (None, Some(topic), Some(partition)) => Ok(Target::Partition(topic, partition)),
            _ => Err(Failure::usage("write a transactional id, or --topic and --partition")),
        }
    }
}

impl List {
    fn run(self) -> Outcome {
        let listed = self.broker.cluster().transactions(&self.state).map_err(Failure::failed)?;
        let mut table = Table::new(&["TRANSACTIONAL ID", "COORDINATOR", "PRODUCER ID", "STATE"]);
        for transaction in listed {
            let (coordinator, producer_id) = (transaction.coordinator.to_string(), transaction.producer_id.to_string());
            table.row([transaction.id, coordinator, producer_id, transaction.state]);
        }
        table.write(&mut stdout().lock())
    }
}

impl Describe {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        match self.which.target()? {
            Target::Id(id) => describe_id(&mut cluster, &id),
            Target::Partition(topic, partition) => describe_partition(&mut cluster, &topic, partition),
        }
    }
}

fn describe_id(cluster: &mut Cluster, id: &str) -> Outcome {
    let found = cluster.describe_transaction(id).map_err(Failure::failed)?;
    let mut out = stdout().lock();
    writeln!(out, "state        {}", found.state)?;
    writeln!(out, "coordinator  {}", found.coordinator)?;
    writeln!(out, "producer     {} epoch {}", found.producer.id, found.producer.epoch)?;
    writeln!(out, "timeout      {} ms", found.timeout_ms)?;
    if let Some(started_ms) = found.started_ms {
        writeln!(out, "started      {}", time::format(started_ms))?;
    }
    if !found.partitions.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(&["TOPIC", "PARTITION"]);
        for (topic, partition) in found.partitions {
            table.row([topic, partition.to_string()]);
        }
        table.write(&mut out)?;
    }
    Ok(())
}

fn describe_partition(cluster: &mut Cluster, topic: &str, partition: i32) -> Outcome {
    let producers = cluster.active_producers(topic, partition).map_err(Failure::failed)?;
    let mut table = Table::new(&["PRODUCER ID", "EPOCH", "COORDINATOR EPOCH", "LAST WRITE", "OPEN SINCE OFFSET"]);
    let or_dash = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for active in producers {
        table.row([
            active.producer.id.to_string(),
            active.producer.epoch.to_string(),
            or_dash(Some(active.coordinator_epoch.into()).filter(|epoch| *epoch >= 0)),
            time::format(active.last_timestamp_ms),
            or_dash(active.open_since_offset),
        ]);
    }
    table.write(&mut stdout().lock())
}

impl Abort {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let (topic, partition) = match self.which.target()? {
            // what was there is aborted, and who had it is fenced
            Target::Id(id) => {
                cluster.describe_transaction(&id).map_err(Failure::failed)?;
                return cluster.fence_producer(&id).map(drop).map_err(Failure::failed);
            }
            Target::Partition(topic, partition) => (topic, partition),
        };
        let Some(producer_id) = self.producer_id else {
            return Err(Failure::usage("--producer-id says whose transaction is to be ended in the partition"));
        };
        let producers = cluster.active_producers(&topic, partition).map_err(Failure::failed)?;
        let open = producers.iter().find(|active| active.producer.id == producer_id);
        match open.filter(|active| active.open_since_offset.is_some()) {
            Some(active) => cluster.abort_in_partition(&topic, partition, active).map_err(Failure::failed),
            None => Err(Failure::failed(format!(
                "topic '{topic}' partition {partition}: producer {producer_id} has no open transaction"
            ))),
        }
    }
}
