//! `sizes`: throughput over the size of a request, from many producers with one request in flight each. A broker whose
//! memory is managed well has no cliff anywhere, and closes no connection.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    clock::Clock,
    load::{self, Outcome, Progress},
    report::{Figures, Run},
    target::{self, LoadArgs, Meters, Target},
};

/// Batches have no more than this, with what is around their record; a larger request carries several.
const BATCH_BYTES_MAX: usize = 15 << 20;
/// Threads that drive the producers: they build requests as large as the broker's memory.
const THREADS: u32 = 2;
/// Bytes around a request's record, at least.
const OVERHEAD_BYTES: usize = 1024;

/// `sizes`: produces with one request size after the other.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SizesArgs {
    #[command(flatten)]
    target: Target,
    /// Bytes of records in a request, one load each
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1024,4096,16384,65536,262144,524288,1000000,1048300,1060000,1200000,2000000,4000000,8000000,\
                         15000000,30000000,45000000"
    )]
    sizes: Vec<usize>,
    /// Producers, each with one request in flight
    #[arg(long, default_value_t = 400)]
    connections: u32,
    /// Bytes that all producers together have in flight at most: there are fewer of them if requests are large
    #[arg(long, default_value_t = 256 << 20)]
    bytes_in_flight: usize,
    /// Partitions of each topic
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Seconds before measuring, of each size
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Seconds that are measured, of each size
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Seconds for what was sent to be answered
    #[arg(long, default_value_t = 30.0)]
    drain: f64,
    /// File for a table in Markdown
    #[arg(long)]
    table: Option<PathBuf>,
}

impl SizesArgs {
    /// Where results go.
    pub(crate) fn out(&self) -> &Option<PathBuf> {
        &self.target.out
    }
}

/// What one size came to.
struct Row {
    bytes: usize,
    producers: u32,
    mb_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Runs `sizes`.
pub fn sizes(args: &SizesArgs) -> anyhow::Result<Run> {
    args.target.prepare()?;
    let mut report = args.target.new_run("sizes", args)?;
    let mut rows = Vec::new();
    let mut repetitions = Vec::new();
    for _ in 0..args.target.repeat {
        let mut figures = Figures::new();
        for &bytes in &args.sizes {
            let row = one_size(args, bytes, &mut report).with_context(|| format!("requests of {bytes} bytes"))?;
            println!("{}", line(&row));
            figures.insert(format!("{bytes:>9} bytes: MB/s"), row.mb_per_second);
            figures.insert(format!("{bytes:>9} bytes: p50 ms"), row.p50_ms);
            figures.insert(format!("{bytes:>9} bytes: p99 ms"), row.p99_ms);
            rows.push(row);
        }
        repetitions.push(figures);
    }
    report.add_repetitions(&repetitions);
    if let Some(path) = &args.table {
        fs::write(path, table(&rows)).with_context(|| format!("{}", path.display()))?;
    }
    Ok(report)
}

fn one_size(args: &SizesArgs, bytes: usize, report: &mut Run) -> anyhow::Result<Row> {
    let batches = bytes.div_ceil(BATCH_BYTES_MAX);
    ensure!(
        batches <= args.partitions.max(0) as usize,
        "a request has a batch of {BATCH_BYTES_MAX} bytes per partition"
    );
    let record_size = bytes / batches;
    let possible = u32::try_from(args.bytes_in_flight / bytes.max(1)).unwrap_or(u32::MAX).max(1);
    let load_args = LoadArgs {
        topic: None,
        partitions: args.partitions,
        topic_configs: vec![("max.message.bytes".to_owned(), (record_size + OVERHEAD_BYTES).to_string())],
        record_size,
        key_size: 0,
        records_per_batch: 1,
        batches_per_request: batches,
        connections: args.connections.min(possible),
        threads: THREADS,
        in_flight: 1,
        rate: 0,
        acks: -1,
        no_idempotence: true,
        keyed: false,
        warmup: args.warmup,
        duration: args.duration,
        drain: args.drain,
    };
    load_args.check()?;
    let run = target::new_run_id();
    let scene = target::set_scene(&args.target, &load_args, run)?;
    let load = load_args.load(&scene.topic, scene.leaders.clone(), run, args.target.timeout());
    let mut meters = Meters::default();
    let (outcome, _) = load::generate(&load, Clock::start(), &Progress::default(), |edge| {
        meters.read(args.target.server_pid, edge);
    })?;
    target::judge(&outcome)?;
    ensure!(outcome.error_count() == 0, "{} batches failed", outcome.error_count());
    if let Some(remark) = meters.add_to(&mut Figures::new(), 0.0, args.duration, load.threads) {
        report.remarks.push(format!("{bytes} bytes: {remark}"));
    }
    if outcome.window_requests == 0 {
        report
            .remarks
            .push(format!("{bytes} bytes: nothing was answered within the window, it takes a longer --duration"));
    }
    target::strike_scene(&args.target, &scene)?;
    Ok(row(args, bytes, record_size, load.producers, &outcome))
}

fn row(args: &SizesArgs, bytes: usize, record_size: usize, producers: u32, outcome: &Outcome) -> Row {
    let latencies = outcome.latency_us_all();
    let ms = |percentile| latencies.value_at_percentile(percentile) as f64 / 1000.0;
    let mb_per_second = outcome.window_records as f64 * record_size as f64 / args.duration / 1e6;
    Row { bytes, producers, mb_per_second, p50_ms: ms(50.0), p99_ms: ms(99.0) }
}

fn table(rows: &[Row]) -> String {
    const BAR_MAX: f64 = 40.0;
    let most = rows.iter().map(|row| row.mb_per_second).fold(f64::MIN_POSITIVE, f64::max);
    let mut text = "| request bytes | producers | MB/s | p50 ms | p99 ms | |\n|--:|--:|--:|--:|--:|:--|\n".to_owned();
    for row in rows {
        let bar = "#".repeat((row.mb_per_second / most * BAR_MAX).round() as usize);
        writeln!(text, "{} {bar} |", line(row)).expect("a String takes everything");
    }
    text
}

fn line(row: &Row) -> String {
    let Row { bytes, producers, mb_per_second, p50_ms, p99_ms } = row;
    format!("| {bytes} | {producers} | {mb_per_second:.1} | {p50_ms:.1} | {p99_ms:.1} |")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_size_has_the_longest_bar() {
        let row = |bytes, mb_per_second| Row { bytes, producers: 1, mb_per_second, p50_ms: 1.0, p99_ms: 2.0 };
        let text = table(&[row(1024, 50.0), row(2048, 100.0)]);
        let bars: Vec<_> = text.lines().skip(2).map(|line| line.matches('#').count()).collect();
        assert_eq!(bars, [20, 40]);
    }
}
