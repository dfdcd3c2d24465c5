//! `groups`: offset commits per second and their latency, verified by fetching the offsets.

mod committer;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    time::Duration,
};

use anyhow::ensure;
use clap::Args;
use committer::{COMMIT_VERSION, Committer, Duty, Measured};
use hdrhistogram::Histogram;
use kafka_protocol::{
    messages::{DeleteGroupsRequest, GroupId, OffsetFetchRequest, offset_fetch_request::OffsetFetchRequestTopic},
    protocol::StrBytes,
};
use millrace_client::requests::topic_name;
use serde::Serialize;

use crate::{
    client::{self, ClientError, Connection},
    load::crew::Crew,
    report::{self, Figures, Run},
    target::{self, Target},
};

/// `groups`: throughput and latency of offset commits, verified by OffsetFetch.
#[derive(Debug, Clone, Args, Serialize)]
pub struct GroupsArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) target: Target,
    /// Groups that are committed for
    #[arg(long, default_value_t = 1)]
    groups: u32,
    /// Connections, spread over the groups; one for each group without
    #[arg(long)]
    connections: Option<u32>,
    /// Partitions of one commit; connections of the same group have different ones
    #[arg(long, default_value_t = 1)]
    partitions: u32,
    /// Commits in flight per connection
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Threads that drive the connections
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Seconds before measuring
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
}

/// Offset of the first commit of each connection, which is not measured.
const FIRST_OFFSET: i64 = 1;
/// Groups that one request deletes.
const DELETED_AT_ONCE: usize = 100;

impl GroupsArgs {
    fn connections(&self) -> u32 {
        self.connections.unwrap_or(self.groups)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.groups > 0 && self.partitions > 0 && self.in_flight > 0 && self.threads > 0,
            "at least one of each"
        );
        ensure!(self.connections() >= self.groups, "a group without a connection would have no commit");
        ensure!(self.partitions_of_topic() <= 10_000, "the topic would have more than 10000 partitions");
        ensure!(self.warmup >= 0.0 && self.duration > 0.0, "times are positive");
        Ok(())
    }

    fn partitions_of_topic(&self) -> u32 {
        self.connections().div_ceil(self.groups).saturating_mul(self.partitions)
    }

    /// What each connection does: those of one group share no partition.
    fn duties(&self, run: u64, topic: &str) -> Vec<Duty> {
        let duty = |connection: u32| {
            let first = (connection / self.groups * self.partitions) as i32;
            Duty {
                group: format!("bench-{run:016x}-{}", connection % self.groups),
                topic: topic.to_owned(),
                partitions: first..first + self.partitions as i32,
            }
        };
        (0..self.connections()).map(duty).collect()
    }
}

/// Runs `groups`.
pub fn groups(args: &GroupsArgs) -> anyhow::Result<Run> {
    args.target.prepare()?;
    args.check()?;
    let mut report = args.target.new_run("groups", args)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.target.repeat {
        let run = target::new_run_id();
        let topic = format!("bench-{run:016x}");
        let mut connection = args.target.connect()?;
        client::create_topic(&mut connection, &topic, args.partitions_of_topic() as i32, &[])?;
        client::await_leaders(&mut connection, &topic, args.target.timeout())?;
        let coordinators = coordinators(args, run, &topic, &mut connection)?;
        let figures = commit(args, run, &topic, &coordinators, &mut report)?;
        delete_groups(args, &coordinators)?;
        client::delete_topic(&mut args.target.connect()?, &topic)?;
        repetitions.push(figures);
    }
    report.add_repetitions(&repetitions);
    Ok(report)
}

/// Address of each group's coordinator, which takes commits.
type Coordinators = BTreeMap<String, SocketAddr>;

/// Connections by address, made when they are first wanted.
#[derive(Default)]
struct Connections(BTreeMap<SocketAddr, Connection>);

impl Connections {
    fn to(&mut self, address: SocketAddr, timeout: Duration) -> Result<&mut Connection, ClientError> {
        Ok(match self.0.entry(address) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(client::connect(address, timeout)?),
        })
    }
}

/// Finds the coordinators, and waits until each took a first commit of every connection: that is where a broker makes
/// its offsets topic.
fn coordinators(
    args: &GroupsArgs,
    run: u64,
    topic: &str,
    connection: &mut Connection,
) -> Result<Coordinators, ClientError> {
    let timeout = args.target.timeout();
    let mut coordinators = Coordinators::new();
    let mut connections = Connections::default();
    for duty in args.duties(run, topic) {
        client::until_ready(timeout, || {
            let address = match coordinators.get(&duty.group) {
                Some(known) => *known,
                None => client::find_coordinator(connection, &duty.group, client::KeyType::Group)?,
            };
            let to = connections.to(address, timeout)?;
            duty.check(&to.call(COMMIT_VERSION, &duty.commit(FIRST_OFFSET))?)?;
            coordinators.insert(duty.group.clone(), address);
            Ok(())
        })?;
    }
    Ok(coordinators)
}

fn commit(
    args: &GroupsArgs,
    run: u64,
    topic: &str,
    coordinators: &Coordinators,
    report: &mut Run,
) -> anyhow::Result<Figures> {
    let connect = |duty: Duty| {
        let address = coordinators[&duty.group];
        Committer::connect(duty, address, FIRST_OFFSET)
    };
    let mut committers = args.duties(run, topic).into_iter().map(connect).collect::<anyhow::Result<Vec<_>>>()?;
    let (in_flight, timeout) = (args.in_flight, args.target.timeout());
    let (warmup, duration, server_pid) = (args.warmup, args.duration, args.target.server_pid);
    let (parts, meters) = Crew { threads: args.threads, warmup, duration, server_pid }.drive(
        &mut committers,
        |part, clock, window| committer::drive(part, in_flight, clock, window, timeout),
        |_| Ok(()),
    )?;
    let mut latency_us = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3)?;
    let mut commits = 0;
    for Measured { commits: own, latency_us: own_us } in parts {
        commits += own;
        latency_us.add(&own_us)?;
    }
    let verified = verify(args, &committers, coordinators)?;
    let mut figures = Figures::new();
    figures.insert("commits/s".into(), commits as f64 / args.duration);
    figures.insert("offsets/s".into(), commits as f64 * f64::from(args.partitions) / args.duration);
    figures.insert("verified offsets".into(), verified as f64);
    report::add_percentiles(&mut figures, "commit latency", &latency_us);
    report.add_histogram("commit latency us", &latency_us)?;
    report.remarks.extend(meters.add_to(&mut figures, 0.0, args.duration, args.threads));
    Ok(figures)
}

/// Every partition's offset must be the last one that was acknowledged, as all were. Answers how many were looked at.
fn verify(args: &GroupsArgs, committers: &[Committer], coordinators: &Coordinators) -> anyhow::Result<u64> {
    let mut expected: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for Committer { duty, acknowledged, .. } in committers {
        ensure!(*acknowledged > FIRST_OFFSET, "no figures: a connection of {} got no answer", duty.group);
        let offsets = duty.partitions.clone().map(|partition| (partition, *acknowledged));
        expected.entry(&duty.group).or_default().extend(offsets);
    }
    let mut connections = Connections::default();
    let mut verified = 0;
    for (group, offsets) in expected {
        let connection = connections.to(coordinators[group], args.target.timeout())?;
        let topic = &committers[0].duty.topic;
        let asked = OffsetFetchRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partition_indexes(offsets.keys().copied().collect());
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_topics(Some(vec![asked]));
        let response = connection.call(5, &request)?;
        client::check(|| format!("offsets of {group}"), response.error_code)?;
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        let found: BTreeMap<i32, i64> =
            partitions.map(|found| (found.partition_index, found.committed_offset)).collect();
        ensure!(
            found == offsets,
            "no figures, the broker failed the run: {group} has {found:?} instead of {offsets:?}"
        );
        verified += offsets.len() as u64;
    }
    Ok(verified)
}

fn delete_groups(args: &GroupsArgs, coordinators: &Coordinators) -> anyhow::Result<()> {
    let mut by_address: BTreeMap<SocketAddr, Vec<GroupId>> = BTreeMap::new();
    for (group, address) in coordinators {
        by_address.entry(*address).or_default().push(GroupId(StrBytes::from_string(group.clone())));
    }
    for (address, groups) in by_address {
        let mut connection = client::connect(address, args.target.timeout())?;
        for some in groups.chunks(DELETED_AT_ONCE) {
            let response = connection.call(1, &DeleteGroupsRequest::default().with_groups_names(some.to_vec()))?;
            for result in response.results {
                client::check(|| format!("delete {}", result.group_id.as_str()), result.error_code)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: GroupsArgs,
    }

    #[test]
    fn connections_of_a_group_share_no_partition() {
        let line = ["x", "--groups", "3", "--connections", "7", "--partitions", "2"];
        let args = Line::try_parse_from(line).expect("legal").args;
        args.check().expect("legal");
        let duties = args.duties(1, "t");
        assert_eq!(args.partitions_of_topic(), 6);
        let mut seen = std::collections::BTreeSet::new();
        for duty in &duties {
            for partition in duty.partitions.clone() {
                assert!((0..6).contains(&partition) && seen.insert((duty.group.clone(), partition)), "{duty:?}");
            }
        }
        assert_eq!((duties.len(), seen.len()), (7, 14));
    }

    #[test]
    fn a_group_without_a_connection_is_refused() {
        let args = Line::try_parse_from(["x", "--groups", "3", "--connections", "2"]).expect("legal").args;
        assert!(args.check().is_err());
    }
}
