//! `millrace group`: consumer groups, their members, offsets and lag.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Write, stdout},
};

use clap::{Args, Subcommand};
use millrace_client::{Cluster, GroupDescription, OffsetQuestion, Offsets};

use super::broker::BrokerArgs;
use crate::{
    failure::{Failure, Outcome},
    output::Table,
    time,
};

/// Lists, describes, resets and deletes consumer groups
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GroupCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  millrace group list
  millrace group describe billing
  millrace group reset billing --topic orders --to earliest --dry-run
  millrace group reset billing --to -2h
  millrace group delete billing";

#[derive(Debug, Subcommand)]
enum Action {
    /// List groups
    List(List),
    /// Show a group's members, committed offsets and lag
    Describe(Describe),
    /// Move a group's committed offsets; its consumers must be stopped
    Reset(Reset),
    /// Delete groups and their offsets; their consumers must be stopped
    Delete(Delete),
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Describe {
    /// The group's id
    group: String,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Reset {
    /// The group's id; a group that is not there is made
    group: String,
    /// Topic to move; may be given several times [default: all that the group has offsets of]
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// Partition to move; may be given several times [default: all]
    #[arg(long, value_name = "INDEX")]
    partition: Vec<i32>,
    /// Where to: earliest, latest, an offset, an RFC 3339 time, or -1h for an hour ago
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
    to: String,
    /// Only show what would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Delete {
    /// Ids of groups
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Where offsets are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Offset(i64),
    Ask(OffsetQuestion),
}

impl Target {
    fn parse(text: &str, now_ms: i64) -> Result<Self, String> {
        match (text, text.parse::<i64>()) {
            ("earliest", _) => Ok(Self::Ask(OffsetQuestion::Earliest)),
            ("latest", _) => Ok(Self::Ask(OffsetQuestion::Latest)),
            (_, Ok(offset)) if offset >= 0 => Ok(Self::Offset(offset)),
            _ => time::parse(text, now_ms)
                .map(|ms| Self::Ask(OffsetQuestion::AtTime(ms)))
                .map_err(|_| format!("--to {text}: write earliest, latest, an offset, an RFC 3339 time, or -1h")),
        }
    }
}

impl GroupCommand {
    pub(crate) fn run(self) -> Outcome {
        match self.action {
            Action::List(list) => list.run(),
            Action::Describe(describe) => describe.run(),
            Action::Reset(reset) => reset.run(),
            Action::Delete(delete) => delete.run(),
        }
    }
}

impl List {
    fn run(self) -> Outcome {
        let groups = self.broker.cluster().groups().map_err(Failure::failed)?;
        let mut table = Table::new(&["GROUP", "STATE", "TYPE", "PROTOCOL"]);
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        for group in groups {
            table.row([group.id, or_dash(group.state), or_dash(group.kind), or_dash(group.protocol)]);
        }
        table.write(&mut stdout().lock())
    }
}

impl Describe {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        let group = cluster.describe_group(&self.group).map_err(Failure::failed)?;
        let offsets = cluster.committed_offsets(&self.group).map_err(Failure::failed)?;
        let mut out = stdout().lock();
        let assignor = if group.assignor.is_empty() { "-" } else { &group.assignor };
        let members = group.members.len();
        writeln!(out, "group {}  state {}  assignor {assignor}  {members} members", self.group, group.state)?;
        places(&mut cluster, &group, &offsets)?.write(&mut out)
    }
}

/// A row per partition that is read or was committed, and one per member that reads nothing.
fn places(cluster: &mut Cluster, group: &GroupDescription, offsets: &Offsets) -> Outcome<Table> {
    let owners: BTreeMap<&(String, i32), usize> = group
        .members
        .iter()
        .enumerate()
        .flat_map(|(at, member)| member.partitions.iter().map(move |partition| (partition, at)))
        .collect();
    let all: BTreeSet<&(String, i32)> = owners.keys().copied().chain(offsets.keys()).collect();
    let mut table = Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER", "CLIENT", "HOST"]);
    let member = |at: Option<&usize>| match at.and_then(|at| group.members.get(*at)) {
        Some(member) => [member.id.clone(), member.client_id.clone(), member.host.clone()],
        None => ["-".to_owned(), "-".to_owned(), "-".to_owned()],
    };
    for place @ (topic, partition) in all {
        let committed = offsets.get(place);
        // A topic that was deleted has no end, but the group may still hold offsets of it.
        let end = cluster.offset(topic, *partition, OffsetQuestion::Latest).ok().flatten();
        let lag = end.zip(committed).map(|(end, committed)| (end - committed).max(0));
        let number = |value: Option<i64>| value.map_or("-".to_owned(), |value| value.to_string());
        let [id, client, host] = member(owners.get(place));
        let row = [topic.clone(), partition.to_string(), number(committed.copied()), number(end), number(lag)];
        let [topic, partition, committed, end, lag] = row;
        table.row([topic, partition, committed, end, lag, id, client, host]);
    }
    for (at, _) in group.members.iter().enumerate().filter(|(_, member)| member.partitions.is_empty()) {
        let [id, client, host] = member(Some(&at));
        let none = || "-".to_owned();
        table.row([none(), none(), none(), none(), none(), id, client, host]);
    }
    Ok(table)
}

impl Reset {
    fn run(self) -> Outcome {
        let target = Target::parse(&self.to, time::now_ms()).map_err(Failure::usage)?;
        let mut cluster = self.broker.cluster();
        let before = cluster.committed_offsets(&self.group).map_err(Failure::failed)?;
        let mut after = Offsets::new();
        for (topic, partition) in self.places(&mut cluster, &before)? {
            let offset = find(&mut cluster, &topic, partition, target)?;
            after.insert((topic, partition), offset);
        }
        if !self.dry_run {
            cluster.commit_offsets(&self.group, &after).map_err(Failure::failed)?;
        }
        let mut table = Table::new(&["TOPIC", "PARTITION", "BEFORE", "AFTER"]);
        for (place, offset) in &after {
            let before = before.get(place).map_or("-".to_owned(), ToString::to_string);
            table.row([place.0.clone(), place.1.to_string(), before, offset.to_string()]);
        }
        table.write(&mut stdout().lock())
    }

    /// Which partitions to move.
    fn places(&self, cluster: &mut Cluster, before: &Offsets) -> Outcome<Vec<(String, i32)>> {
        let mut places: Vec<(String, i32)> = Vec::new();
        for name in &self.topic {
            let topic = cluster.topic(name, false).map_err(Failure::failed)?;
            places.extend(topic.partitions.keys().map(|partition| (name.clone(), *partition)));
        }
        if self.topic.is_empty() {
            places.extend(before.keys().cloned());
        }
        if let Some(missing) = self.partition.iter().find(|wanted| places.iter().all(|(_, known)| known != *wanted)) {
            return Err(Failure::failed(format!("partition {missing} is none of those of the topics to be moved")));
        }
        places.retain(|(_, partition)| self.partition.is_empty() || self.partition.contains(partition));
        match places.is_empty() {
            false => Ok(places),
            true => Err(Failure::failed(format!(
                "group '{}' has no offsets of such partitions; name topics with --topic to give it some",
                self.group
            ))),
        }
    }
}

/// The offset that a target means for a partition, never outside of its log.
fn find(cluster: &mut Cluster, topic: &str, partition: i32, target: Target) -> Outcome<i64> {
    let mut ask = |question| cluster.offset(topic, partition, question).map_err(Failure::failed);
    let earliest = ask(OffsetQuestion::Earliest)?.unwrap_or(0);
    let latest = ask(OffsetQuestion::Latest)?.unwrap_or(0);
    match target {
        Target::Offset(offset) => Ok(offset.clamp(earliest, latest)),
        Target::Ask(question) => Ok(ask(question)?.unwrap_or(latest)),
    }
}

impl Delete {
    fn run(self) -> Outcome {
        let mut cluster = self.broker.cluster();
        for group in &self.groups {
            cluster.delete_group(group).map_err(Failure::failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_words_offsets_or_times() {
        assert_eq!(Target::parse("earliest", 0), Ok(Target::Ask(OffsetQuestion::Earliest)));
        assert_eq!(Target::parse("42", 0), Ok(Target::Offset(42)));
        assert_eq!(Target::parse("-1s", 5000), Ok(Target::Ask(OffsetQuestion::AtTime(4000))));
        let time = Target::parse("1970-01-01T00:00:01Z", 0);
        assert_eq!(time, Ok(Target::Ask(OffsetQuestion::AtTime(1000))));
        assert!(Target::parse("tomorrow", 0).is_err());
        assert!(Target::parse("-5", 0).is_err());
    }
}
