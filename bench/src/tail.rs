//! `tail`: consumers at the end of the log while producing goes on, or behind a backlog that they drain.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    client::{self, ClientError, FetchLimits},
    clock::Clock,
    ledger::Ledger,
    load::{self, Load, Progress},
    reader::{self, Reader},
    report::{self, Figures, Run},
    target::{self, LoadArgs, Meters, Scene, Target},
};

/// `tail`: time from when a record should have been sent until a consumer at the end of the log holds it.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TailArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    #[serde(flatten)]
    load: LoadArgs,
    /// Consumers that each read all partitions
    #[arg(long, default_value_t = 1)]
    consumers: usize,
    /// Consumers start at the oldest record only after that many bytes were produced: measures how a backlog is drained
    #[arg(long, default_value_t = 0)]
    backlog_bytes: u64,
}

struct Tailed {
    ledger: Ledger,
    latency_us: Histogram<u64>,
    bytes: u64,
    /// From the first fetch until the reader had caught up for the first time.
    caught_up: Option<(Duration, u64)>,
}

/// Runs `tail`.
pub fn tail(args: &TailArgs) -> anyhow::Result<Run> {
    args.target.prepare()?;
    args.load.check()?;
    ensure!(args.load.acks != 0, "tail needs acknowledgements to know what must arrive");
    ensure!(args.consumers > 0, "at least one consumer");
    let mut report = args.target.new_run("tail", args)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.target.repeat {
        let run = target::new_run_id();
        let scene = target::set_scene(&args.target, &args.load, run)?;
        let load = args.load.load(&scene.topic, scene.leaders.clone(), run, args.target.timeout());
        let (figures, remark) = tail_once(args, &scene, &load, &mut report)?;
        report.remarks.extend(remark);
        target::strike_scene(&args.target, &scene)?;
        repetitions.push(figures);
    }
    report.add_repetitions(&repetitions);
    Ok(report)
}

fn tail_once(
    args: &TailArgs,
    scene: &Scene,
    load: &Load,
    report: &mut Run,
) -> anyhow::Result<(Figures, Option<String>)> {
    let clock = Clock::start();
    let (progress, producing) = (Progress::default(), AtomicBool::new(true));
    let mut meters = Meters::default();
    let (generated, tails) = std::thread::scope(|scope| {
        let follow = |(address, partitions): (_, Vec<i32>)| {
            let (progress, producing) = (&progress, &producing);
            scope.spawn(move || follow(args, load, address, &partitions, clock, progress, producing))
        };
        let all = |_| reader::assign(&scene.leaders, 1).into_iter().map(follow).collect::<Vec<_>>();
        let consumers: Vec<Vec<_>> = (0..args.consumers).map(all).collect();
        let generated = load::generate(load, clock, &progress, |edge| meters.read(args.target.server_pid, edge));
        producing.store(false, Relaxed);
        let join = |handles: Vec<std::thread::ScopedJoinHandle<'_, _>>| {
            handles.into_iter().map(|handle| handle.join().expect("a consumer panicked")).collect::<Vec<_>>()
        };
        (generated, consumers.into_iter().map(join).collect::<Vec<_>>())
    });
    let (outcome, _) = generated?;
    target::judge(&outcome)?;
    let mut figures = Figures::new();
    let mut latency_us = outcome.latency_us[0].clone();
    latency_us.reset();
    let mut caught_up: Vec<(Duration, u64)> = Vec::new();
    for consumer in tails {
        let mut ledger = Ledger::new(load.run);
        for tailed in consumer {
            let tailed: Tailed = tailed?;
            ledger.merge(tailed.ledger);
            latency_us.add(&tailed.latency_us)?;
            caught_up.extend(tailed.caught_up);
            *figures.entry("consumed MB".into()).or_default() += tailed.bytes as f64 / 1e6;
        }
        let tally = ledger.verdict(&outcome.acknowledged);
        ensure!(tally.is_clean(), "no figures, the broker failed the run: {tally}");
    }
    target::produce_figures(&mut figures, load, &outcome);
    if args.backlog_bytes > 0 {
        let rate = |(time, bytes): &(Duration, u64)| *bytes as f64 / time.as_secs_f64() / 1e6;
        ensure!(!caught_up.is_empty(), "no consumer caught up: give a longer --duration or a lower --rate");
        figures.insert("drain MB/s".into(), caught_up.iter().map(rate).sum());
        report::add_percentiles(&mut figures, "produce latency before the drain", &outcome.latency_us[0]);
        report::add_percentiles(&mut figures, "produce latency from the drain on", &outcome.latency_us[1]);
    } else {
        report::add_percentiles(&mut figures, "end-to-end", &latency_us);
        report.add_histogram("end-to-end us", &latency_us)?;
    }
    report.add_histogram("produce latency us", &outcome.latency_us_all())?;
    let bytes = outcome.window_records as f64 * load.shape.value_bytes as f64;
    let threads = load.threads + args.consumers as u32;
    let remark = meters.add_to(&mut figures, bytes, load.duration.as_secs_f64(), threads);
    Ok((figures, remark))
}

/// One consumer's thread: reads until producing is over and everything produced was read.
fn follow(
    args: &TailArgs,
    load: &Load,
    address: SocketAddr,
    partitions: &[i32],
    clock: Clock,
    progress: &Progress,
    producing: &AtomicBool,
) -> Result<Tailed, ClientError> {
    let mut connection = client::connect(address, load.request_timeout)?;
    let starts = client::list_offsets(&mut connection, &load.topic, partitions, -1)?;
    let positions = partitions.iter().copied().zip(starts).collect();
    let mut reader = Reader::new(connection, &load.topic, positions, FetchLimits::default());
    let mut latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("legal bounds");
    let mut tailed =
        Tailed { ledger: Ledger::new(load.run), latency_us: latency_us.clone(), bytes: 0, caught_up: None };
    while progress.acked_bytes.load(Relaxed) < args.backlog_bytes && producing.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    progress.phase.store(1, Relaxed);
    let draining = Instant::now();
    let warm_ns = load.warmup.as_nanos() as u64;
    let mut first_ns = None;
    let mut ends = None;
    loop {
        let fetched = reader.fetch(
            |_, _| true,
            |partition, record| {
                let Some(stamp) = tailed.ledger.record(partition as u32, record.value) else {
                    return;
                };
                let since = *first_ns.get_or_insert(stamp.intended_ns);
                if stamp.intended_ns >= since + warm_ns {
                    let us = clock.now_ns().saturating_sub(stamp.intended_ns) / 1000;
                    latency_us.saturating_record(us.max(1));
                }
            },
        )?;
        tailed.bytes += fetched.bytes;
        if tailed.caught_up.is_none() && args.backlog_bytes > 0 {
            let behind: i64 = reader.end_offsets()?.iter().zip(reader.positions()).map(|(end, at)| end - at.1).sum();
            // as close behind as a consumer at the tail ever is
            if behind <= (load.shape.records * load.in_flight) as i64 * i64::from(load.producers) {
                tailed.caught_up = Some((draining.elapsed(), tailed.bytes));
            }
        }
        if !producing.load(Relaxed) {
            let ends = match &ends {
                Some(ends) => ends,
                None => ends.insert(by_partition(&mut reader)?),
            };
            let at_end = |&(partition, offset): &(i32, i64)| ends.get(&partition).is_none_or(|&end| offset >= end);
            if reader.positions().iter().all(at_end) {
                break;
            }
        }
    }
    tailed.latency_us = latency_us;
    Ok(tailed)
}

fn by_partition(reader: &mut Reader) -> Result<BTreeMap<i32, i64>, ClientError> {
    let ends = reader.end_offsets()?;
    Ok(reader.positions().iter().map(|position| position.0).zip(ends).collect())
}
