//! `transactions`: transactions per second and their latency, verified by reading what is committed.

mod producer;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::ensure;
use clap::Args;
use kafka_protocol::{
    messages::{GroupId, InitProducerIdRequest, OffsetFetchRequest, TransactionalId},
    protocol::StrBytes,
};
use millrace_client::{Cluster, ClusterOptions, ConnectOptions, FetchFrom, IsolationLevel, OffsetQuestion};
use millrace_engine::batch::{CommittedBatches, batches, records};
use producer::{Duty, Measured, TransactionalProducer, drive, transactional_id};
use serde::Serialize;

use crate::{
    client::{self, CLIENT_ID, ClientError, Connection},
    ledger::Ledger,
    load::crew::Crew,
    payload,
    report::{self, Figures, Run},
    target::{self, Target},
};

/// `transactions`: throughput and latency of transactions, verified by a reader of committed records.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TransactionsArgs {
    #[command(flatten)]
    #[serde(flatten)]
    target: Target,
    /// Producers, each with a transactional id and a connection of its own
    #[arg(long, default_value_t = 1)]
    producers: u32,
    /// Partitions of the topic
    #[arg(long, default_value_t = 1)]
    partitions: u32,
    /// Partitions that a transaction writes to
    #[arg(long, default_value_t = 1)]
    partitions_per_transaction: u32,
    /// Records that a transaction writes to each of them
    #[arg(long, default_value_t = 1)]
    records_per_partition: u32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_size: usize,
    /// Share of transactions that are aborted
    #[arg(long, default_value_t = 0.0)]
    abort_share: f64,
    /// Each transaction commits an offset too, of a group that each producer has of its own
    #[arg(long)]
    group_offsets: bool,
    /// Keep the topic
    #[arg(long)]
    keep_topic: bool,
    /// Threads that drive the producers
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Seconds before measuring
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
}

/// How long what is committed may take to be visible once the last transaction has ended.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of each transaction.
const TRANSACTION_TIMEOUT_MS: i32 = 60_000;

impl TransactionsArgs {
    /// Where the results go.
    pub(crate) fn out(&self) -> &Option<PathBuf> {
        &self.target.out
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.producers > 0 && self.threads > 0 && self.records_per_partition > 0, "at least one of each");
        ensure!(
            (1..=self.partitions).contains(&self.partitions_per_transaction),
            "a transaction writes to one partition at least and to all of the topic at most"
        );
        ensure!(self.record_size >= payload::HEADER_BYTES, "records have {} bytes at least", payload::HEADER_BYTES);
        ensure!((0.0..=1.0).contains(&self.abort_share), "a share lies between 0 and 1");
        ensure!(self.warmup >= 0.0 && self.duration > 0.0, "times are positive");
        Ok(())
    }
}

/// Runs `transactions`.
pub fn transactions(args: &TransactionsArgs) -> anyhow::Result<Run> {
    args.target.prepare()?;
    args.check()?;
    let mut report = args.target.new_run("transactions", args)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.target.repeat {
        let run = target::new_run_id();
        let topic = format!("bench-{run:016x}");
        let mut connection = args.target.connect()?;
        client::create_topic(&mut connection, &topic, args.partitions as i32, &[])?;
        let leaders = client::await_leaders(&mut connection, &topic, args.target.timeout())?;
        let mut producers = Vec::new();
        for index in 0..args.producers {
            let id = transactional_id(run, index);
            let (address, producer) = init(&mut connection, &id, args.target.timeout())?;
            let is_one = leaders.by_partition.iter().all(|leader| *leader == address);
            ensure!(is_one, "the load is for one broker that coordinates all ids and leads all partitions");
            let mut duty = duty(args, run, &topic);
            if args.group_offsets {
                let group = id.as_str().to_owned();
                let found = client::until_ready(args.target.timeout(), || {
                    client::find_coordinator(&mut connection, &group, client::KeyType::Group)
                })?;
                ensure!(found == address, "the load is for one broker that coordinates all groups too");
                duty.group = Some(group);
            }
            producers.push(TransactionalProducer::connect(index, id, producer, duty, address)?);
        }
        repetitions.push(measure(args, (run, &topic), &mut producers, &mut report)?);
        match args.keep_topic {
            true => println!("topic {topic} run {run}"),
            false => client::delete_topic(&mut args.target.connect()?, &topic)?,
        }
    }
    report.add_repetitions(&repetitions);
    Ok(report)
}

fn duty(args: &TransactionsArgs, run: u64, topic: &str) -> Duty {
    Duty {
        topic: topic.to_owned(),
        partitions: 0..args.partitions as i32,
        partitions_per_transaction: args.partitions_per_transaction,
        records_per_partition: args.records_per_partition,
        record_size: args.record_size,
        aborted_per_mille: (args.abort_share * 1000.0).round() as u32,
        group: None,
        run,
    }
}

/// The coordinator's address, and the producer's id and epoch.
fn init(
    connection: &mut Connection,
    id: &TransactionalId,
    timeout: Duration,
) -> Result<(SocketAddr, (i64, i16)), ClientError> {
    client::until_ready(timeout, || {
        let address = client::find_coordinator(connection, id.as_str(), client::KeyType::Transaction)?;
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id.clone()))
            .with_transaction_timeout_ms(TRANSACTION_TIMEOUT_MS);
        let answer = client::connect(address, timeout)?.call(2, &request)?;
        client::check(|| format!("InitProducerId of {}", id.as_str()), answer.error_code)?;
        Ok((address, (answer.producer_id.0, answer.producer_epoch)))
    })
}

fn measure(
    args: &TransactionsArgs,
    (run, topic): (u64, &str),
    producers: &mut [TransactionalProducer],
    report: &mut Run,
) -> anyhow::Result<Figures> {
    let mut log = args.target.connect()?;
    let mut log_bytes = Vec::new();
    let timeout = args.target.timeout();
    let (warmup, duration, server_pid) = (args.warmup, args.duration, args.target.server_pid);
    let (parts, meters) = Crew { threads: args.threads, warmup, duration, server_pid }.drive(
        producers,
        |part, clock, window| drive(part, clock, window, timeout),
        |_| {
            log_bytes.push(client::log_bytes(&mut log)?);
            Ok(())
        },
    )?;
    let mut measured = Measured::new()?;
    for part in parts {
        measured.merge(part)?;
    }
    let verified = verify(args, run, topic, &measured)?;
    verify_offsets(args, producers)?;
    let mut figures = Figures::new();
    let ended = measured.committed + measured.aborted;
    let records = f64::from(args.partitions_per_transaction) * f64::from(args.records_per_partition);
    figures.insert("transactions/s".into(), ended as f64 / args.duration);
    figures.insert("records/s".into(), ended as f64 * records / args.duration);
    figures.insert("aborted transactions/s".into(), measured.aborted as f64 / args.duration);
    figures.insert("held off".into(), measured.held_off as f64);
    figures.insert("verified records".into(), verified as f64);
    report::add_percentiles(&mut figures, "transaction latency", &measured.transaction_us);
    report::add_percentiles(&mut figures, "end latency", &measured.end_us);
    report.add_histogram("transaction latency us", &measured.transaction_us)?;
    report.add_histogram("end latency us", &measured.end_us)?;
    let bytes = ended as f64 * records * args.record_size as f64;
    // of all partitions, without what frames them in files; compaction and retention make it less
    let grown = log_bytes.last().zip(log_bytes.first()).map_or(0, |(after, before)| after.saturating_sub(*before));
    figures.insert("log bytes per transaction".into(), grown as f64 / ended as f64);
    report.remarks.extend(meters.add_to(&mut figures, bytes, args.duration, args.threads));
    Ok(figures)
}

/// Nothing of what was committed may be missing, doubled or out of order, and nothing of what was aborted there. Answers
/// how many records were seen.
fn verify(args: &TransactionsArgs, run: u64, topic: &str, measured: &Measured) -> anyhow::Result<u64> {
    let (host, port) = args.target.brokers.rsplit_once(':').unwrap_or((&args.target.brokers, "9092"));
    let connect = ConnectOptions { client_id: CLIENT_ID, timeout: args.target.timeout() };
    let brokers = vec![(host.to_owned(), port.parse()?)];
    let mut cluster = Cluster::new(ClusterOptions { brokers, connect });
    let mut ledger = Ledger::new(run);
    let mut aborted = 0;
    for partition in 0..args.partitions as i32 {
        let end = await_stable(&mut cluster, topic, partition)?;
        read(&mut cluster, topic, (partition, end), |value| {
            if let Some(stamp) = ledger.record(partition as u32, value)
                && measured.hidden.contains((stamp.producer, stamp.partition), stamp.sequence)
            {
                aborted += 1;
            }
        })?;
    }
    let tally = ledger.verdict(&measured.visible);
    ensure!(tally.is_clean(), "no figures, the broker failed the run: {tally}");
    ensure!(
        aborted == 0,
        "no figures, the broker failed the run: {aborted} records of aborted transactions are visible"
    );
    let is_told = tally.unacknowledged == 0;
    ensure!(is_told, "no figures, the broker failed the run: {} records are of no transaction", tally.unacknowledged);
    Ok(tally.records)
}

/// The offset of each producer's group must be that of its last committed transaction.
fn verify_offsets(args: &TransactionsArgs, producers: &[TransactionalProducer]) -> anyhow::Result<()> {
    let mut connection = args.target.connect()?;
    for (group, expected) in producers.iter().filter_map(TransactionalProducer::group_offset) {
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_topics(None);
        let response = connection.call(5, &request)?;
        client::check(|| format!("offsets of {group}"), response.error_code)?;
        let found: Vec<_> = response.topics.iter().flat_map(|topic| &topic.partitions).collect();
        let found: Vec<_> = found.iter().map(|partition| partition.committed_offset).collect();
        let expected: Vec<_> = expected.into_iter().collect();
        ensure!(found == expected, "no figures, the broker failed the run: {group} has {found:?}, not {expected:?}");
    }
    Ok(())
}

/// Waits until nothing is open in a partition; answers its end. Kafka answers the end of a transaction before its markers
/// are written.
fn await_stable(cluster: &mut Cluster, topic: &str, partition: i32) -> anyhow::Result<i64> {
    let began = std::time::Instant::now();
    loop {
        let mut ask = |question| cluster.offset(topic, partition, question);
        let end = ask(OffsetQuestion::Latest)?.unwrap_or(0);
        if ask(OffsetQuestion::LatestCommitted)? == Some(end) {
            return Ok(end);
        }
        ensure!(
            began.elapsed() < VISIBLE_TIMEOUT,
            "{topic}-{partition} has an open transaction after {VISIBLE_TIMEOUT:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads the values that are committed in a partition, up to its end.
fn read(
    cluster: &mut Cluster,
    topic: &str,
    (partition, end): (i32, i64),
    mut visit: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let leader = cluster.leader(topic, partition)?;
    let mut offset = 0;
    while offset < end {
        let from = [FetchFrom { topic: topic.to_owned(), partition, offset }];
        let fetched = cluster.fetch(leader, &from, IsolationLevel::ReadCommitted, Duration::from_millis(500))?;
        for part in fetched {
            if let Some(error) = part.error {
                return Err(error.into());
            }
            let mut committed = CommittedBatches::new(&part.aborted);
            for batch in batches(&part.records) {
                // the last one may be cut off
                let Ok((info, bytes)) = batch else { break };
                if committed.counts(&info) && info.last_offset() >= offset {
                    records(bytes)?.iter().filter_map(|record| record.value.as_deref()).for_each(&mut visit);
                }
                offset = offset.max(info.last_offset() + 1);
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
        args: TransactionsArgs,
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let check = |words: &[&str]| {
            let words = std::iter::once("x").chain(words.iter().copied());
            Line::try_parse_from(words).expect("legal words").args.check().is_ok()
        };
        assert!(check(&[]) && check(&["--partitions", "4", "--partitions-per-transaction", "4"]));
        assert!(!check(&["--partitions-per-transaction", "2"]) && !check(&["--abort-share", "1.5"]));
        assert!(!check(&["--record-size", "10"]) && !check(&["--producers", "0"]));
    }
}
