//! `produce` and `consume`: load against a broker, verified, metered, written down.

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::{
    client::{self, FetchLimits},
    clock::Clock,
    ledger::Acknowledged,
    load::{self, Progress, WindowEdge},
    reader,
    report::{Figures, Run},
    target::{self, LoadArgs, Meters, Target},
};

/// `produce`: latency and throughput of producing, verified by reading back.
#[derive(Debug, Clone, Args, Serialize)]
pub struct ProduceArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    #[serde(flatten)]
    load: LoadArgs,
    /// Print figures without reading the records back: for topics whose retention removes them meanwhile
    #[arg(long)]
    no_verify: bool,
    /// Keep the topic that was created
    #[arg(long)]
    keep_topic: bool,
}

/// `consume`: throughput of reading a topic from start to end, verified.
#[derive(Debug, Clone, Args, Serialize)]
pub struct ConsumeArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) target: Target,
    /// Topic to read
    #[arg(long)]
    topic: String,
    /// The run whose records are verified, as produce prints it; others are passed over
    #[arg(long)]
    run: u64,
    /// Consumers, each with a connection of its own
    #[arg(long, default_value_t = 1)]
    consumers: usize,
    /// Records of that run that must come back; 0 to take what is there
    #[arg(long, default_value_t = 0)]
    expect: u64,
    /// Bytes of one fetch at most
    #[arg(long, default_value_t = 50 << 20)]
    fetch_bytes: i32,
    /// Bytes of one partition in a fetch at most
    #[arg(long, default_value_t = 1 << 20)]
    partition_bytes: i32,
    /// Read only what is committed
    #[arg(long)]
    committed: bool,
}

/// Runs `produce`.
pub fn produce(args: &ProduceArgs) -> anyhow::Result<Run> {
    args.target.prepare()?;
    args.load.check()?;
    let mut report = args.target.new_run("produce", args)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.target.repeat {
        let run = target::new_run_id();
        let scene = target::set_scene(&args.target, &args.load, run)?;
        let load = args.load.load(&scene.topic, scene.leaders.clone(), run, args.target.timeout());
        let mut meters = Meters::default();
        let (outcome, _) = load::generate(&load, Clock::start(), &Progress::default(), |edge| {
            meters.read(args.target.server_pid, edge);
        })?;
        target::judge(&outcome)?;
        let mut figures = Figures::new();
        target::produce_figures(&mut figures, &load, &outcome);
        let bytes = outcome.window_records as f64 * load.shape.value_bytes as f64;
        report.remarks.extend(meters.add_to(&mut figures, bytes, load.duration.as_secs_f64(), load.threads));
        if !args.no_verify {
            let (tally, mb_per_second) = target::verify(&scene, run, &outcome.acknowledged, args.target.timeout())?;
            figures.insert("verified records".into(), tally.records as f64);
            figures.insert("read back MB/s".into(), mb_per_second);
        }
        if !outcome.latency_us_all().is_empty() {
            report.add_histogram("produce latency us", &outcome.latency_us_all())?;
        }
        if args.keep_topic || !scene.created {
            println!("topic {} run {run} acknowledged {}", scene.topic, outcome.acknowledged.count());
        } else {
            target::strike_scene(&args.target, &scene)?;
        }
        repetitions.push(figures);
    }
    report.add_repetitions(&repetitions);
    if args.no_verify {
        report.remarks.push("not verified: the records were not read back".into());
    }
    Ok(report)
}

/// Runs `consume`.
pub fn consume(args: &ConsumeArgs) -> anyhow::Result<Run> {
    args.target.prepare()?;
    let mut report = args.target.new_run("consume", args)?;
    let limits = FetchLimits {
        max_bytes: args.fetch_bytes,
        partition_max_bytes: args.partition_bytes,
        committed: args.committed,
        ..FetchLimits::default()
    };
    let leaders = client::leaders(&mut args.target.connect()?, &args.topic)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.target.repeat {
        let mut meters = Meters::default();
        meters.read(args.target.server_pid, WindowEdge::Start);
        let timeout = args.target.timeout();
        let back = reader::read_back(&args.topic, &leaders, args.run, args.consumers, limits, timeout)?;
        meters.read(args.target.server_pid, WindowEdge::End);
        let tally = back.ledger.verdict(&Acknowledged::default());
        ensure!(tally.is_clean(), "no figures, the broker failed the run: {tally}");
        let enough = args.expect == 0 || tally.records == args.expect;
        ensure!(enough, "no figures: {} records came back instead of {}", tally.records, args.expect);
        let seconds = back.elapsed.as_secs_f64();
        let mut figures = Figures::new();
        figures.insert("consume MB/s".into(), back.bytes as f64 / seconds / 1e6);
        figures.insert("consume records/s".into(), back.records as f64 / seconds);
        figures.insert("verified records".into(), tally.records as f64);
        report.remarks.extend(meters.add_to(&mut figures, back.bytes as f64, seconds, args.consumers as u32));
        repetitions.push(figures);
    }
    report.add_repetitions(&repetitions);
    Ok(report)
}
