//! `restart`: how long a broker that was killed needs until it serves again, and whether everything is still there.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use kafka_protocol::messages::{
    ProduceRequest,
    produce_request::{PartitionProduceData, TopicProduceData},
};
use millrace_client::{error_code_name, requests::topic_name};
use serde::Serialize;

use crate::{
    batch::{BatchShape, BatchTemplate},
    client::{self, Connection, FetchLimits},
    clock,
    ledger::Acknowledged,
    meter,
    payload::{HEADER_BYTES, Stamp},
    reader,
    report::{Figures, Run},
    server::Server,
};

/// `restart`: kill -9 with data, time until the first produce and fetch succeed again.
#[derive(Debug, Clone, Args, Serialize)]
pub struct RestartArgs {
    /// Shell command that starts the broker on an empty data directory, and starts it again after the kill
    #[arg(long)]
    command: String,
    /// Shell command that prints the broker's pid, when `--command` starts it in the background and ends
    #[arg(long)]
    pid_command: Option<String>,
    /// Where the broker will listen, as HOST:PORT
    #[arg(long)]
    brokers: String,
    /// File for what the broker prints; thrown away without
    #[arg(long)]
    log: Option<PathBuf>,
    /// Topics
    #[arg(long, default_value_t = 100)]
    topics: u32,
    /// Partitions of each
    #[arg(long, default_value_t = 100)]
    partitions: i32,
    /// Setting of the topics, as name=value; may be given again
    #[arg(long = "topic-config")]
    topic_configs: Vec<String>,
    /// Bytes of values over all partitions
    #[arg(long, default_value_t = 10 << 30)]
    bytes: u64,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_size: usize,
    /// Records of a batch
    #[arg(long, default_value_t = 64)]
    records_per_batch: usize,
    /// Kills and restarts
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// Seconds a start may take
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// What the broker is called in the results
    #[arg(long, default_value = "millrace")]
    target: String,
    /// Durability class of the run: D or R
    #[arg(long, default_value = "D")]
    class: String,
    /// Name of the run
    #[arg(long, default_value = "restart")]
    name: String,
    /// Folder for the JSON file; nothing is written without
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Bytes of batches in one request while filling.
const REQUEST_BYTES: usize = 4 << 20;

struct Filler<'a> {
    args: &'a RestartArgs,
    template: BatchTemplate,
    /// What was acknowledged, by topic; each topic is a run of its own to the ledger.
    acknowledged: Vec<Acknowledged>,
}

/// Runs `restart`.
pub fn restart(args: &RestartArgs) -> anyhow::Result<Run> {
    ensure!(args.topics > 0 && args.partitions > 0 && args.repeat > 0, "at least one of each");
    ensure!(args.records_per_batch > 0 && args.record_size >= HEADER_BYTES, "records too small");
    let mut configs = Vec::new();
    for config in &args.topic_configs {
        let (name, value) = config.split_once('=').with_context(|| format!("'{config}' is not name=value"))?;
        configs.push((name.to_owned(), value.to_owned()));
    }
    let mut run = Run::new("restart", &args.name, &args.target, &args.class, args)?;
    let address = client::resolve(&args.brokers)?;
    let timeout = Duration::from_secs(args.timeout);
    let start = || Server::start(&args.command, args.pid_command.as_deref(), address, args.log.as_deref());
    let mut server = start()?;
    server.await_ready(timeout)?;
    let mut first = Figures::from([("empty start ms".to_owned(), ms(server.started))]);
    let shape = BatchShape { records: args.records_per_batch, value_bytes: args.record_size, key_bytes: 0 };
    let template = BatchTemplate::new(shape);
    let mut filler = Filler { args, template, acknowledged: vec![Acknowledged::default(); args.topics as usize] };
    for topic in 0..args.topics {
        client::create_topic(&mut client::connect(address, timeout)?, &name(topic), args.partitions, &configs)?;
    }
    let filling = Instant::now();
    (0..args.topics).try_for_each(|topic| filler.fill(address, topic, timeout))?;
    first.insert("fill MB/s".into(), args.bytes as f64 / filling.elapsed().as_secs_f64() / 1e6);
    run.add_repetitions(&[first]);
    let mut repetitions = Vec::new();
    for _ in 0..args.repeat {
        server.kill()?;
        server = start()?;
        let mut figures = Figures::new();
        filler.await_service(&mut server, timeout, &mut figures)?;
        if let Ok(usage) = meter::usage(server.pid()) {
            figures.insert("server rss after start MB".into(), usage.rss_bytes as f64 / 1e6);
            figures.insert("server cpu s of start".into(), usage.cpu.as_secs_f64());
        }
        repetitions.push(figures);
    }
    filler.verify(address, timeout)?;
    run.add_repetitions(&repetitions);
    server.terminate(timeout)?;
    Ok(run)
}

fn name(topic: u32) -> String {
    format!("restart-{topic}")
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

impl Filler<'_> {
    /// Fills one topic evenly, with requests that carry a batch for each of many partitions.
    fn fill(&mut self, address: SocketAddr, topic: u32, timeout: Duration) -> anyhow::Result<()> {
        let mut connection = client::connect(address, timeout)?;
        let leaders = client::await_leaders(&mut connection, &name(topic), timeout)?;
        let partitions = u64::from(self.args.topics) * self.args.partitions as u64;
        let batch_bytes = (self.args.record_size * self.args.records_per_batch) as u64;
        let batches = self.args.bytes.div_ceil(partitions).div_ceil(batch_bytes);
        let per_request = (REQUEST_BYTES / self.template.len()).max(1);
        for (address, partitions) in leaders.by_address() {
            let mut connection = client::connect(address, timeout)?;
            for batch in 0..batches {
                for chunk in partitions.chunks(per_request) {
                    self.send(&mut connection, topic, chunk, batch)?;
                }
            }
        }
        Ok(())
    }

    fn batch(&self, topic: u32, partition: i32, first_sequence: u64) -> Bytes {
        let stamp = Stamp {
            run: topic.into(),
            producer: 0,
            partition: partition as u32,
            sequence: first_sequence,
            intended_ns: 0,
        };
        let mut bytes = Vec::with_capacity(self.template.len());
        self.template.append_to(&mut bytes, clock::wall_ms(), None, stamp);
        Bytes::from(bytes)
    }

    fn send(&mut self, connection: &mut Connection, topic: u32, chunk: &[i32], batch: u64) -> anyhow::Result<()> {
        let records = self.args.records_per_batch as u64;
        let data = |&partition: &i32| {
            let batch = self.batch(topic, partition, batch * records);
            PartitionProduceData::default().with_index(partition).with_records(Some(batch))
        };
        let topic_data = TopicProduceData::default()
            .with_name(topic_name(&name(topic)))
            .with_partition_data(chunk.iter().map(data).collect());
        let request = ProduceRequest::default()
            .with_transactional_id(None)
            .with_acks(-1)
            .with_timeout_ms(30_000)
            .with_topic_data(vec![topic_data]);
        let response = connection.call(client::PRODUCE_VERSION, &request)?;
        let answers: Vec<_> = response.responses.iter().flat_map(|topic| &topic.partition_responses).collect();
        ensure!(answers.len() == chunk.len(), "{} answers for {} batches", answers.len(), chunk.len());
        for answer in answers {
            ensure!(answer.error_code == 0, "filling was refused: {}", error_code_name(answer.error_code));
            self.acknowledged[topic as usize].insert((0, answer.index as u32), batch * records, records);
        }
        Ok(())
    }

    /// Tries, from the moment of the start on, to produce to one topic and to fetch from another.
    fn await_service(&mut self, server: &mut Server, timeout: Duration, figures: &mut Figures) -> anyhow::Result<()> {
        let address = server.address;
        let mut last = String::new();
        let mut until = |what: &str, attempt: &mut dyn FnMut() -> anyhow::Result<()>| {
            while let Err(error) = attempt() {
                last = format!("{error:#}");
                if server.started.elapsed() > timeout {
                    bail!("no {what} within {timeout:?}: {last}");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            figures.insert(format!("restart to {what} ms"), ms(server.started));
            Ok(())
        };
        let first_topic = name(0);
        until("produce", &mut || {
            let mut connection = client::connect(address, timeout)?;
            let leaders = client::leaders(&mut connection, &first_topic)?;
            let mut connection = client::connect(leaders.by_partition[0], timeout)?;
            let batch = self.batch(u32::MAX, 0, 0); // another run's, as far as the ledger is concerned
            client::produce(&mut connection, &first_topic, 0, batch, timeout)?;
            Ok(())
        })?;
        let (last_topic, partition) = (name(self.args.topics - 1), self.args.partitions - 1);
        until("fetch", &mut || {
            let mut connection = client::connect(address, timeout)?;
            let leaders = client::leaders(&mut connection, &last_topic)?;
            let mut connection = client::connect(leaders.by_partition[partition as usize], timeout)?;
            let position = std::iter::once((partition, 0));
            let answer = client::fetch(&mut connection, &last_topic, position, FetchLimits::default())?;
            let served = answer.first().is_some_and(|answer| answer.code == 0 && !answer.records.is_empty());
            ensure!(served, "nothing fetched: {:?}", answer.first().map(|answer| answer.code));
            Ok(())
        })
    }

    fn verify(&self, address: SocketAddr, timeout: Duration) -> anyhow::Result<()> {
        for (topic, acknowledged) in self.acknowledged.iter().enumerate() {
            let mut connection = client::connect(address, timeout)?;
            let topic = topic as u32;
            let leaders = client::await_leaders(&mut connection, &name(topic), timeout)?;
            let limits = FetchLimits::default();
            let back = reader::read_back(&name(topic), &leaders, topic.into(), 1, limits, timeout)?;
            let tally = back.ledger.verdict(acknowledged);
            ensure!(tally.is_clean(), "no figures, the broker lost or spoilt {}: {tally}", name(topic));
        }
        Ok(())
    }
}
