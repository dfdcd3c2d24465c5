//! `millrace topic`: create, list, describe, delete, alter.

use std::io::{Write, stdout};

use clap::{Args, Subcommand};
use millrace_client::{Cluster, OffsetQuestion, Resource, Topic, TopicSpec, UNKNOWN_TOPIC_OR_PARTITION};

use super::broker::BrokerArgs;
use crate::{
    config::Setting,
    failure::{Failure, Outcome},
    output::{Table, joined},
};

/// Creates, lists, describes, deletes and changes topics
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TopicCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  millrace topic create greetings --partitions 3 --config retention.ms=86400000
  millrace topic list --long
  millrace topic describe greetings
  millrace topic alter greetings --partitions 6 --delete-config retention.ms
  millrace topic delete greetings";

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a topic
    Create(Create),
    /// List topics
    List(List),
    /// Show a topic's partitions, offsets and settings
    Describe(Describe),
    /// Delete topics and all their records
    Delete(Delete),
    /// Change a topic's settings, or give it more partitions
    Alter(Alter),
}

#[derive(Args, Debug)]
struct Create {
    /// The new topic's name
    name: String,
    /// Number of partitions [default: the broker's]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// Number of brokers that keep a copy [default: the broker's]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i16).range(1..))]
    replicas: Option<i16>,
    /// Setting of the topic; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    config: Vec<Setting>,
    /// Do nothing if the topic is there already
    #[arg(long)]
    if_not_exists: bool,
    /// Only ask the broker whether it would
    #[arg(long)]
    validate_only: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct List {
    /// Show partitions, replicas and ids too
    #[arg(short, long)]
    long: bool,
    /// Show topics that brokers keep for themselves too
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Describe {
    /// The topic's name
    name: String,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Delete {
    /// Names of topics
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Topics that are not there are no error
    #[arg(long)]
    if_exists: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Alter {
    /// The topic's name
    name: String,
    /// Number of partitions in all; only more than before
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// Setting to change; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    config: Vec<Setting>,
    /// Setting to put back to its default; may be given several times
    #[arg(long, value_name = "KEY")]
    delete_config: Vec<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

const TOPIC_ALREADY_EXISTS: i16 = 36;

impl TopicCommand {
    pub(crate) fn run(self) -> Outcome {
        match self.action {
            Action::Create(create) => create.run(),
            Action::List(list) => list.run(),
            Action::Describe(describe) => describe.run(),
            Action::Delete(delete) => delete.run(),
            Action::Alter(alter) => alter.run(),
        }
    }
}

impl Create {
    fn run(self) -> Outcome {
        let settings = self.config.into_iter().map(Into::into).collect();
        let spec = TopicSpec { name: self.name, partitions: self.partitions, replicas: self.replicas, settings };
        match self.broker.cluster().create_topic(&spec, self.validate_only) {
            Err(error) if self.if_not_exists && error.code() == Some(TOPIC_ALREADY_EXISTS) => Ok(()),
            result => result.map_err(Failure::failed),
        }
    }
}

impl List {
    fn run(self) -> Outcome {
        let mut topics = self.broker.cluster().all_topics().map_err(Failure::failed)?;
        topics.retain(|topic| self.internal || !topic.is_internal);
        let mut out = stdout().lock();
        if !self.long {
            for topic in &topics {
                writeln!(out, "{}", topic.name)?;
            }
            return Ok(());
        }
        let mut table = Table::new(&["NAME", "PARTITIONS", "REPLICAS", "ID"]);
        for topic in &topics {
            let replicas = topic.partitions.values().map(|p| p.replicas.len()).max().unwrap_or(0);
            table.row([topic.name.clone(), topic.partitions.len().to_string(), replicas.to_string(), topic_id(topic)]);
        }
        table.write(&mut out)
    }
}

/// The id as Kafka's tools show it: URL-safe base 64 without padding.
fn topic_id(topic: &Topic) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    if topic.id.is_nil() {
        return "-".to_owned();
    }
    let bits = topic.id.as_u128();
    // 16 bytes are 21 letters of 6 bits and one of 2 bits.
    let letter = |at: u32| match at {
        21 => ALPHABET[((bits << 4) & 0x3f) as usize],
        _ => ALPHABET[(bits >> (122 - 6 * at) & 0x3f) as usize],
    };
    (0..22).map(|at| char::from(letter(at))).collect()
}

impl Describe {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let topic = cluster.topic(&self.name, false).map_err(Failure::failed)?;
        let settings = cluster.describe_config(&Resource::topic(&self.name), false).map_err(Failure::failed)?;
        let mut out = stdout().lock();
        writeln!(out, "topic {}  id {}  {} partitions", topic.name, topic_id(&topic), topic.partitions.len())?;
        let own: Vec<_> = settings.iter().filter(|entry| entry.is_own).collect();
        for entry in &own {
            writeln!(out, "  {}={}", entry.name, entry.value.as_deref().unwrap_or("(secret)"))?;
        }
        if own.is_empty() {
            writeln!(out, "  no settings of its own")?;
        }
        partitions(&mut cluster, &topic)?.write(&mut out)
    }
}

fn partitions(cluster: &mut Cluster, topic: &Topic) -> Outcome<Table> {
    let mut table = Table::new(&["PARTITION", "LEADER", "EPOCH", "REPLICAS", "IN SYNC", "START", "END"]);
    for (index, partition) in &topic.partitions {
        let mut offset = |question| match partition.leader {
            ..0 => Ok("-".to_owned()),
            _ => cluster.offset(&topic.name, *index, question).map(|found| found.unwrap_or(0).to_string()),
        };
        let start = offset(OffsetQuestion::Earliest).map_err(Failure::failed)?;
        let end = offset(OffsetQuestion::Latest).map_err(Failure::failed)?;
        table.row([
            index.to_string(),
            if partition.leader < 0 { "none".to_owned() } else { partition.leader.to_string() },
            partition.leader_epoch.to_string(),
            joined(&partition.replicas),
            joined(&partition.in_sync),
            start,
            end,
        ]);
    }
    Ok(table)
}

impl Delete {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        for name in &self.names {
            match cluster.delete_topic(name) {
                Err(error) if self.if_exists && error.code() == Some(UNKNOWN_TOPIC_OR_PARTITION) => {}
                result => result.map_err(Failure::failed)?,
            }
        }
        Ok(())
    }
}

impl Alter {
    fn run(self) -> Outcome {
        if self.partitions.is_none() && self.config.is_empty() && self.delete_config.is_empty() {
            return Err(Failure::usage("nothing to change: give --partitions, --config or --delete-config"));
        }
        let mut cluster = self.broker.cluster();
        if !self.config.is_empty() || !self.delete_config.is_empty() {
            let resource = Resource::topic(&self.name);
            let set: Vec<_> = self.config.into_iter().map(Into::into).collect();
            cluster.alter_config(&resource, &set, &self.delete_config).map_err(Failure::failed)?;
        }
        match self.partitions {
            Some(count) => cluster.create_partitions(&self.name, count).map_err(Failure::failed),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn ids_are_written_as_kafka_writes_them() {
        let topic = |id| Topic { name: String::new(), id, is_internal: false, partitions: Default::default() };
        assert_eq!(topic_id(&topic(Uuid::nil())), "-");
        assert_eq!(topic_id(&topic(Uuid::from_u128(1))), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(topic_id(&topic(Uuid::from_u128(u128::MAX))), "_____________________w");
        assert_eq!(topic_id(&topic(Uuid::from_u128(0xfb << 120))), "-wAAAAAAAAAAAAAAAAAAAA");
    }
}
