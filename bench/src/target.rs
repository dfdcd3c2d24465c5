//! What all loads against a broker share: whom to measure, what to send, the meters, and the verdict.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    batch::BatchShape,
    client::{self, Connection, FetchLimits, Leaders},
    ledger::{Acknowledged, Tally},
    load::{Load, Outcome, WindowEdge, schedule::Partitioner},
    meter::{self, Usage},
    payload, reader,
    report::{self, Figures, Run},
    sys,
};

/// Where the broker is, what it is called, and where results go.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Target {
    /// Any broker, as HOST:PORT
    #[arg(long, default_value = "127.0.0.1:9092")]
    pub brokers: String,
    /// What the broker is called in the results
    #[arg(long, default_value = "millrace")]
    pub target: String,
    /// Durability class of the run: D, R or X
    #[arg(long, default_value = "D")]
    pub class: String,
    /// Name of the run, part of the file's name
    #[arg(long)]
    pub name: Option<String>,
    /// Folder for the JSON file; nothing is written without
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// The broker's process on this machine, for CPU time and memory
    #[arg(long)]
    pub server_pid: Option<u32>,
    /// CPUs that this tool may use, such as 1 or 1,3
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Repetitions, each over a topic of its own
    #[arg(long, default_value_t = 1)]
    pub repeat: u32,
    /// Seconds until a request counts as failed
    #[arg(long, default_value_t = 30)]
    pub timeout: u64,
}

impl Target {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Connection> {
        let address = client::resolve(&self.brokers)?;
        client::connect(address, self.timeout()).with_context(|| format!("broker {}", self.brokers))
    }

    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        ensure!(["D", "R", "X"].contains(&self.class.as_str()), "class is D, R or X, not '{}'", self.class);
        ensure!(self.repeat > 0, "at least one repetition");
        if !self.cpus.is_empty() {
            sys::pin(&self.cpus).with_context(|| format!("CPUs {:?}", self.cpus))?;
        }
        Ok(())
    }

    pub(crate) fn new_run(&self, kind: &str, config: &impl Serialize) -> anyhow::Result<Run> {
        Run::new(kind, self.name.as_deref().unwrap_or(kind), &self.target, &self.class, config)
    }
}

/// What is sent, by whom and how fast.
#[derive(Debug, Clone, Args, Serialize)]
pub struct LoadArgs {
    /// Topic to use as it is; without it each repetition creates one and deletes it afterwards
    #[arg(long)]
    pub topic: Option<String>,
    /// Partitions of a topic that is created
    #[arg(long, default_value_t = 1)]
    pub partitions: i32,
    /// Setting of a topic that is created, as name=value; may be given again
    #[arg(long = "topic-config", value_parser = parse_config)]
    pub topic_configs: Vec<(String, String)>,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    pub record_size: usize,
    /// Bytes of a record's key; 0 for none
    #[arg(long, default_value_t = 0)]
    pub key_size: usize,
    /// Records of a batch
    #[arg(long, default_value_t = 15)]
    pub records_per_batch: usize,
    /// Batches of different partitions that travel in one request at most
    #[arg(long, default_value_t = 1)]
    pub batches_per_request: usize,
    /// Producers, each with a connection of its own to every broker
    #[arg(long, default_value_t = 1)]
    pub connections: u32,
    /// Threads that drive them
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Requests in flight per connection
    #[arg(long, default_value_t = 5)]
    pub in_flight: usize,
    /// Records per second over all producers; 0 is as fast as answers come
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// Acknowledgements: -1 (all), 1 or 0
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    pub acks: i16,
    /// Produce without producer ids and sequences
    #[arg(long)]
    pub no_idempotence: bool,
    /// Pick partitions at random, as keys would
    #[arg(long)]
    pub keyed: bool,
    /// Seconds before measuring
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Seconds for what is due at the end to be sent and answered
    #[arg(long, default_value_t = 30.0)]
    pub drain: f64,
}

fn parse_config(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

impl LoadArgs {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.record_size >= payload::HEADER_BYTES, "--record-size is at least {}", payload::HEADER_BYTES);
        ensure!(self.records_per_batch > 0 && self.batches_per_request > 0, "batches and requests are not empty");
        ensure!(self.connections > 0 && self.threads > 0 && self.in_flight > 0, "at least one of each");
        ensure!((1..=100_000).contains(&self.partitions), "--partitions is 1 to 100000");
        ensure!([-1, 0, 1].contains(&self.acks), "--acks is -1, 0 or 1");
        ensure!(self.acks == -1 || self.no_idempotence, "producer ids need --acks -1 (or give --no-idempotence)");
        ensure!(!self.no_idempotence || self.in_flight <= 1_000_000, "--in-flight is at most 1000000");
        ensure!(
            self.no_idempotence || self.in_flight <= 5,
            "producer ids allow --in-flight 5 (or give --no-idempotence)"
        );
        let batch = (self.record_size + self.key_size + 20) * self.records_per_batch;
        ensure!(batch * self.batches_per_request < 100 << 20, "a request of more than 100 MiB");
        ensure!(self.warmup >= 0.0 && self.duration > 0.0 && self.drain >= 0.0, "times are positive");
        Ok(())
    }

    pub(crate) fn load(&self, topic: &str, leaders: Leaders, run: u64, timeout: Duration) -> Load {
        Load {
            topic: topic.to_owned(),
            leaders,
            shape: BatchShape {
                records: self.records_per_batch,
                value_bytes: self.record_size,
                key_bytes: self.key_size,
            },
            producers: self.connections,
            threads: self.threads,
            in_flight: self.in_flight,
            batches_per_request: self.batches_per_request,
            acks: self.acks,
            idempotent: !self.no_idempotence,
            partitioner: if self.keyed { Partitioner::Random } else { Partitioner::RoundRobin },
            records_per_second: self.rate,
            warmup: Duration::from_secs_f64(self.warmup),
            duration: Duration::from_secs_f64(self.duration),
            drain: Duration::from_secs_f64(self.drain),
            request_timeout: timeout,
            run,
        }
    }
}

/// A topic for one repetition, created when the user names none.
pub(crate) struct Scene {
    pub topic: String,
    pub leaders: Leaders,
    pub created: bool,
}

pub(crate) fn set_scene(target: &Target, args: &LoadArgs, run: u64) -> anyhow::Result<Scene> {
    let mut connection = target.connect()?;
    let created = args.topic.is_none();
    let topic = args.topic.clone().unwrap_or_else(|| format!("bench-{run:016x}"));
    if created {
        client::create_topic(&mut connection, &topic, args.partitions, &args.topic_configs)?;
    }
    let leaders = client::await_leaders(&mut connection, &topic, target.timeout())?;
    Ok(Scene { topic, leaders, created })
}

pub(crate) fn strike_scene(target: &Target, scene: &Scene) -> anyhow::Result<()> {
    if scene.created {
        client::delete_topic(&mut target.connect()?, &scene.topic)?;
    }
    Ok(())
}

/// A number that tells runs apart.
pub(crate) fn new_run_id() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// CPU and memory at the edges of the window.
#[derive(Default)]
pub(crate) struct Meters {
    server: Vec<Usage>,
    client: Vec<Duration>,
}

impl Meters {
    pub(crate) fn read(&mut self, pid: Option<u32>, edge: WindowEdge) {
        if let Some(pid) = pid {
            if edge == WindowEdge::Start {
                meter::reset_peak(pid);
            }
            self.server.extend(meter::usage(pid));
        }
        self.client.push(sys::own_cpu());
    }

    /// Adds what was used for `bytes` within `seconds`; answers a remark when the client was short of CPU.
    pub(crate) fn add_to(&self, figures: &mut Figures, bytes: f64, seconds: f64, threads: u32) -> Option<String> {
        if let [start, end] = self.server.as_slice() {
            let cpu = (end.cpu - start.cpu).as_secs_f64();
            figures.insert("server cpu s".into(), cpu);
            if bytes > 0.0 {
                figures.insert("server cpu s per GB".into(), cpu / bytes * 1e9);
            }
            figures.insert("server cores used".into(), cpu / seconds);
            figures.insert("server rss peak MB".into(), end.peak_rss_bytes as f64 / 1e6);
        }
        let [start, end] = self.client.as_slice() else {
            return None;
        };
        let share = (*end - *start).as_secs_f64() / seconds / f64::from(threads);
        figures.insert("client share of its cores".into(), share);
        (share > 0.85).then(|| format!("the client used {:.0} % of its cores: it may be the limit", share * 100.0))
    }
}

pub(crate) fn produce_figures(figures: &mut Figures, load: &Load, outcome: &Outcome) {
    let seconds = load.duration.as_secs_f64();
    let bytes = outcome.window_records as f64 * load.shape.value_bytes as f64;
    figures.insert("produce MB/s".into(), bytes / seconds / 1e6);
    figures.insert("produce records/s".into(), outcome.window_records as f64 / seconds);
    figures.insert("produce batches/s".into(), outcome.window_batches as f64 / seconds);
    figures.insert("produce requests/s".into(), outcome.window_requests as f64 / seconds);
    figures.insert("produce errors".into(), outcome.error_count() as f64);
    report::add_percentiles(figures, "produce latency", &outcome.latency_us_all());
}

/// Refuses to go on with a run that failed; errors that were counted are only printed.
pub(crate) fn judge(outcome: &Outcome) -> anyhow::Result<()> {
    outcome.errors.iter().for_each(|(error, n)| eprintln!("  {n} batches: {error}"));
    match &outcome.failure {
        Some(failure) => bail!("the run failed: {failure}"),
        None => Ok(()),
    }
}

pub(crate) fn verify(
    scene: &Scene,
    run: u64,
    acknowledged: &Acknowledged,
    timeout: Duration,
) -> anyhow::Result<(Tally, f64)> {
    let back = reader::read_back(&scene.topic, &scene.leaders, run, 1, FetchLimits::default(), timeout)?;
    let tally = back.ledger.verdict(acknowledged);
    ensure!(tally.is_clean(), "no figures, the broker failed the run: {tally}");
    Ok((tally, back.bytes as f64 / back.elapsed.as_secs_f64() / 1e6))
}
