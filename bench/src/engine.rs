//! `engine`: drives the log engine in this process, without the wire: what group commit brings by itself.
//!
//! A closed loop per shard over the partitions that the shard owns, so that no request crosses. The ceiling to set it
//! beside is `device`: the same bytes per group without an engine, and a file per partition.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc, sync::mpsc, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use millrace_engine::{
    apart,
    api::{Acks, LogError, NewTopic, ProducePartition, Produced, TopicPartition},
    batch::AppendOrigin,
    engine::Engine,
    node::{self, NodeOptions, Stopper},
};
use serde::Serialize;

use crate::{
    batch::{BatchShape, BatchTemplate},
    clock::Clock,
    payload::Stamp,
    report::{self, Figures, Run},
    sys,
};

/// `engine`: the log engine in this process.
#[derive(Debug, Clone, Args, Serialize)]
pub struct EngineArgs {
    /// Empty or missing folder for the data; removed again
    #[arg(long)]
    data: PathBuf,
    /// Shards
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// A log of its own for every partition, on one thread: one file and one flush each
    #[arg(long, conflicts_with_all = ["shards", "topic_configs", "wal_bytes"])]
    apart: bool,
    /// Partitions of the topic
    #[arg(long, default_value_t = 128)]
    partitions: i32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_size: usize,
    /// Records of a batch
    #[arg(long, default_value_t = 1)]
    records_per_batch: usize,
    /// Batches of different partitions per call
    #[arg(long, default_value_t = 1)]
    batches_per_call: usize,
    /// Calls in flight per shard
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Setting of the topic, as name=value; may be given again
    #[arg(long = "topic-config")]
    topic_configs: Vec<String>,
    /// Size of each shard's write-ahead log in bytes
    #[arg(long, default_value_t = 256 << 20)]
    wal_bytes: u64,
    /// Memory of all shards in bytes
    #[arg(long, default_value_t = 1 << 30)]
    memory_bytes: usize,
    /// Seconds before measuring
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Repetitions, each on an empty folder
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Name of the run
    #[arg(long, default_value = "engine")]
    name: String,
    /// Durability class of the run: D or R
    #[arg(long, default_value = "D")]
    class: String,
    /// Folder for the JSON file; nothing is written without
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// What one shard measured.
#[derive(Debug)]
struct Measured {
    latency_us: Histogram<u64>,
    /// Batches acknowledged within the window.
    batches: u64,
}

/// Runs `engine`.
pub fn engine(args: &EngineArgs) -> anyhow::Result<Run> {
    ensure!(args.shards > 0 && args.in_flight > 0 && args.batches_per_call > 0, "at least one of each");
    ensure!(args.records_per_batch > 0 && args.record_size >= crate::payload::HEADER_BYTES, "records too small");
    let mut run = Run::new("engine", &args.name, "millrace engine in process", &args.class, args)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.repeat.max(1) {
        let empty = std::fs::read_dir(&args.data).map_or(true, |mut entries| entries.next().is_none());
        ensure!(empty, "{} is not empty", args.data.display());
        let cpu = sys::own_cpu();
        let measured = if args.apart { once_apart(args) } else { once(args) };
        std::fs::remove_dir_all(&args.data).with_context(|| format!("{}", args.data.display()))?;
        let measured = measured?;
        let mut figures = Figures::new();
        let records = measured.batches as f64 * args.records_per_batch as f64;
        figures.insert("produce records/s".into(), records / args.duration);
        figures.insert("produce batches/s".into(), measured.batches as f64 / args.duration);
        figures.insert("produce MB/s".into(), records * args.record_size as f64 / args.duration / 1e6);
        figures.insert("cpu s, start to stop".into(), (sys::own_cpu() - cpu).as_secs_f64());
        report::add_percentiles(&mut figures, "produce latency", &measured.latency_us);
        run.add_histogram("produce latency us", &measured.latency_us)?;
        repetitions.push(figures);
    }
    run.add_repetitions(&repetitions);
    Ok(run)
}

fn once(args: &EngineArgs) -> anyhow::Result<Measured> {
    let options = NodeOptions {
        data_dir: args.data.clone(),
        node_id: 1,
        shards: args.shards,
        pin: false,
        memory_bytes: args.memory_bytes,
        reserve_bytes: 0,
        wal_bytes: args.wal_bytes,
        topic_defaults: BTreeMap::new(),
        producer_id_expiration_ms: 86_400_000,
        retention_check_ms: 300_000,
    };
    let (sender, receiver) = mpsc::channel();
    let (stopper, args) = (Stopper::default(), args.clone());
    let stop = stopper.clone();
    node::run(options, stopper, move |engine| {
        let (sender, stop, args) = (sender.clone(), stop.clone(), args.clone());
        async move {
            if engine.shard() == 0 {
                let result = all_shards(&engine, &args).await;
                // the receiver outlives the node
                let _ = sender.send(result);
                stop.stop();
            }
            engine.stopping().await;
        }
    })?;
    receiver.recv().context("the node ended without a result")?
}

fn once_apart(args: &EngineArgs) -> anyhow::Result<Measured> {
    let partitions = u32::try_from(args.partitions).context("a number of partitions")?;
    let topic = uuid::Uuid::nil();
    let all: Vec<_> = (0..args.partitions).map(|partition| TopicPartition { topic, partition }).collect();
    let measured = apart::run(&args.data, partitions, args.memory_bytes, |apart| async move {
        let produce = |parts: Vec<ProducePartition>| {
            join_all(parts.into_iter().map(|part| apart.produce(part.partition.partition as u32, part.batch)))
        };
        drive(produce, args, &all, Clock::start()).await
    })?;
    Ok(measured?)
}

async fn all_shards(engine: &Engine, args: &EngineArgs) -> anyhow::Result<Measured> {
    let mut configs = BTreeMap::new();
    for config in &args.topic_configs {
        let (name, value) = config.split_once('=').with_context(|| format!("'{config}' is not name=value"))?;
        configs.insert(name.to_owned(), value.to_owned());
    }
    let topic = NewTopic { name: "bench".into(), partitions: args.partitions, configs };
    let topic = engine.create_topic(topic, false).await?.id;
    let clock = Clock::start();
    let on_shard = |shard| {
        let args = args.clone();
        engine.on_shard(shard, move |engine| async move {
            let all = (0..args.partitions).map(|partition| TopicPartition { topic, partition });
            let owned: Vec<_> = all.filter(|&partition| engine.owner(partition) == engine.shard()).collect();
            drive(|parts| engine.produce(AppendOrigin::Client, Acks::All, parts), &args, &owned, clock).await
        })
    };
    let results = join_all((0..args.shards).map(on_shard)).await;
    let mut total = Measured { latency_us: histogram(), batches: 0 };
    for result in results {
        let measured = result?;
        total.latency_us.add(&measured.latency_us)?;
        total.batches += measured.batches;
    }
    Ok(total)
}

/// Keeps so many calls in flight on one thread.
async fn drive<F: Future<Output = Vec<Result<Produced, LogError>>>>(
    produce: impl Fn(Vec<ProducePartition>) -> F,
    args: &EngineArgs,
    owned: &[TopicPartition],
    clock: Clock,
) -> Result<Measured, LogError> {
    let mut measured = Measured { latency_us: histogram(), batches: 0 };
    if owned.is_empty() {
        return Ok(measured);
    }
    let shape = BatchShape { records: args.records_per_batch, value_bytes: args.record_size, key_bytes: 0 };
    let template = BatchTemplate::new(shape);
    let sequences = Rc::new(RefCell::new(vec![0u64; owned.len()]));
    let mut next = 0;
    let mut call = || {
        let now_ns = clock.now_ns();
        let parts = (0..args.batches_per_call.min(owned.len())).map(|_| {
            let index = next % owned.len();
            next += 1;
            let sequence = &mut sequences.borrow_mut()[index];
            let partition = owned[index];
            let stamp = Stamp {
                run: 0,
                producer: 0,
                partition: partition.partition as u32,
                sequence: *sequence,
                intended_ns: now_ns,
            };
            *sequence += args.records_per_batch as u64;
            let mut batch = Vec::with_capacity(template.len());
            template.append_to(&mut batch, 1, None, stamp);
            ProducePartition { partition, batch: Bytes::from(batch) }
        });
        let done = produce(parts.collect());
        async move { (now_ns, done.await) }
    };
    let start_ns = clock.now_ns() + Duration::from_secs_f64(args.warmup).as_nanos() as u64;
    let end_ns = start_ns + Duration::from_secs_f64(args.duration).as_nanos() as u64;
    let mut in_flight: FuturesUnordered<_> = (0..args.in_flight).map(|_| call()).collect();
    while let Some((sent_ns, answers)) = in_flight.next().await {
        let now_ns = clock.now_ns();
        let count = answers.len() as u64;
        answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        if (start_ns..end_ns).contains(&now_ns) {
            measured.latency_us.saturating_record((now_ns - sent_ns) / 1000);
            measured.batches += count;
        }
        if now_ns < end_ns {
            in_flight.push(call());
        }
    }
    Ok(measured)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("legal bounds")
}
