//! `device` and `loopback`: what the hardware does by itself, with no broker in between.
//!
//! The shared log's way: a zero-filled file is overwritten in place, block by block, with O_DIRECT, each group made durable
//! by fdatasync or O_DSYNC. The other way: a growing file per partition, one buffered append and one fdatasync each.
//! Depth is the number of threads that each write one group at a time.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    payload,
    report::{Figures, Run},
};

/// What direct reads and writes are multiples of, in bytes.
pub(crate) const BLOCK: usize = 4096;

/// How a group is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub enum Flush {
    /// A write, then fdatasync.
    Fdatasync,
    /// A write to a descriptor opened with O_DSYNC.
    Dsync,
}

/// `device`: direct, flushed, sequential overwriting; and a file per partition.
#[derive(Debug, Clone, Args, Serialize)]
pub struct DeviceArgs {
    /// Folder on the device to measure; files made there are removed again
    #[arg(long)]
    dir: PathBuf,
    /// Size of the file that is overwritten, in bytes
    #[arg(long, default_value_t = 256 << 20)]
    file_bytes: usize,
    /// Group sizes in bytes, each a multiple of 4096
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 16384, 65536, 262_144, 1_048_576, 4_194_304])]
    group_bytes: Vec<usize>,
    /// Groups in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    depth: Vec<usize>,
    /// Ways to make a group durable
    #[arg(long, value_delimiter = ',', default_values = ["fdatasync", "dsync"])]
    flush: Vec<Flush>,
    /// Numbers of partitions for the file per partition; empty to leave it out
    #[arg(long, value_delimiter = ',', default_values_t = [16, 128])]
    files: Vec<usize>,
    /// Bytes of one append to such a file
    #[arg(long, default_value_t = 1100)]
    append_bytes: usize,
    /// Appends in flight over all such files
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    appends_in_flight: Vec<usize>,
    /// Seconds per cell
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Repetitions of the whole table
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Name of the run
    #[arg(long, default_value = "device")]
    name: String,
    /// Folder for the JSON file; nothing is written without
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Runs `device`.
pub fn device(args: &DeviceArgs) -> anyhow::Result<Run> {
    for &bytes in &args.group_bytes {
        let fits = bytes >= BLOCK && bytes.is_multiple_of(BLOCK) && args.file_bytes >= bytes * 8;
        ensure!(fits, "a group of {bytes} bytes is no multiple of {BLOCK}, or more than an eighth of the file");
    }
    ensure!(args.depth.iter().chain(&args.appends_in_flight).all(|n| (1..=1024).contains(n)), "depth is 1 to 1024");
    ensure!(args.files.iter().all(|n| (1..=10_000).contains(n)), "1 to 10000 files");
    ensure!(args.seconds > 0.0 && args.append_bytes > 0, "positive seconds and bytes");
    let folder = args.dir.join(format!("millrace-bench-device-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    let result = all_cells(args, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn all_cells(args: &DeviceArgs, folder: &Path) -> anyhow::Result<Run> {
    let mut run = Run::new("device", &args.name, "the device itself", "D", args)?;
    let path = folder.join("overwritten");
    zero_fill(&path, args.file_bytes)?;
    let time = Duration::from_secs_f64(args.seconds);
    let mut repetitions = Vec::new();
    for _ in 0..args.repeat.max(1) {
        let mut figures = Figures::new();
        for &flush in &args.flush {
            for &bytes in &args.group_bytes {
                for &depth in &args.depth {
                    let cell = overwrite(&path, args.file_bytes, bytes, depth, flush, time)?;
                    cell.add_to(&mut figures, &format!("overwrite+{flush:?} {:>4}K depth {depth}", bytes / 1024));
                }
            }
        }
        for &files in &args.files {
            for &in_flight in &args.appends_in_flight {
                let cell = file_per_partition(folder, files, args.append_bytes, in_flight, time)?;
                cell.add_to(&mut figures, &format!("{files} files {in_flight} in flight"));
            }
        }
        repetitions.push(figures);
    }
    run.add_repetitions(&repetitions);
    Ok(run)
}

struct Cell {
    latency_us: Histogram<u64>,
    bytes: u64,
    elapsed: Duration,
}

impl Cell {
    fn add_to(&self, figures: &mut Figures, name: &str) {
        let seconds = self.elapsed.as_secs_f64();
        figures.insert(format!("{name} MB/s"), self.bytes as f64 / seconds / 1e6);
        figures.insert(format!("{name} per s"), self.latency_us.len() as f64 / seconds);
        for (label, percentile) in [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)] {
            figures.insert(format!("{name} {label} us"), self.latency_us.value_at_percentile(percentile) as f64);
        }
    }
}

/// Runs `one` over and over on `threads` threads; `one` answers the bytes it made durable.
fn timed(threads: usize, time: Duration, one: impl Fn(usize) -> std::io::Result<usize> + Sync) -> anyhow::Result<Cell> {
    let start = Instant::now();
    let (one, next) = (&one, &AtomicUsize::new(0));
    let results: Vec<std::io::Result<(Histogram<u64>, u64)>> = std::thread::scope(|scope| {
        let work = |_| {
            scope.spawn(move || {
                let mut latency_us = Histogram::new_with_bounds(1, 600_000_000, 3).expect("legal bounds");
                let mut bytes = 0;
                while start.elapsed() < time {
                    let before = Instant::now();
                    bytes += one(next.fetch_add(1, Relaxed))? as u64;
                    latency_us.saturating_record((before.elapsed().as_micros() as u64).max(1));
                }
                Ok((latency_us, bytes))
            })
        };
        let handles: Vec<_> = (0..threads).map(work).collect();
        handles.into_iter().map(|handle| handle.join().expect("a thread panicked")).collect()
    });
    let elapsed = start.elapsed();
    let mut cell =
        Cell { latency_us: Histogram::new_with_bounds(1, 600_000_000, 3).expect("legal bounds"), bytes: 0, elapsed };
    for result in results {
        let (latency_us, bytes) = result?;
        cell.latency_us.add(&latency_us)?;
        cell.bytes += bytes;
    }
    Ok(cell)
}

/// A buffer whose used part starts at a block's border, as O_DIRECT wants it.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many bytes: zeros, or filled from a seed.
    pub(crate) fn new(len: usize, seed: Option<u64>) -> Aligned {
        let bytes = vec![0u8; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        let mut aligned = Aligned { bytes, start, len };
        if let Some(seed) = seed {
            payload::fill(seed, &mut aligned.bytes[start..start + len]);
        }
        aligned
    }

    /// The used part.
    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The same, to be written to.
    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Writes a file of so many zeros with O_DIRECT, and flushes it.
pub(crate) fn zero_fill(path: &Path, bytes: usize) -> anyhow::Result<()> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(path);
    let file = open.with_context(|| format!("{} with O_DIRECT", path.display()))?;
    let zeros = Aligned::new(1 << 20, None);
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(zeros.len) / BLOCK * BLOCK;
        ensure!(n > 0, "--file-bytes is no multiple of {BLOCK}");
        file.write_all_at(&zeros.get()[..n], at as u64)?;
        at += n;
    }
    file.sync_all()?;
    Ok(())
}

fn overwrite(
    path: &Path,
    file_bytes: usize,
    bytes: usize,
    depth: usize,
    flush: Flush,
    time: Duration,
) -> anyhow::Result<Cell> {
    let dsync = if flush == Flush::Dsync { libc::O_DSYNC } else { 0 };
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | dsync).open(path)?;
    let buffer = Aligned::new(bytes, Some(1));
    let slots = file_bytes / bytes;
    timed(depth, time, |n| {
        file.write_all_at(buffer.get(), (n % slots * bytes) as u64)?;
        if flush == Flush::Fdatasync {
            file.sync_data()?;
        }
        Ok(bytes)
    })
}

fn file_per_partition(
    folder: &Path,
    files: usize,
    bytes: usize,
    in_flight: usize,
    time: Duration,
) -> anyhow::Result<Cell> {
    let open = |n| {
        let path = folder.join(format!("partition-{n}"));
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        Ok((path, file))
    };
    let opened: Vec<(PathBuf, File)> = (0..files).map(open).collect::<std::io::Result<_>>()?;
    let mut record = vec![0; bytes];
    payload::fill(2, &mut record);
    let cell = timed(in_flight, time, |n| {
        let mut file = &opened[n % files].1;
        file.write_all(&record)?;
        file.sync_data()?;
        Ok(bytes)
    });
    for (path, _) in opened {
        std::fs::remove_file(path)?;
    }
    cell
}

/// `loopback`: one TCP connection of this machine to itself.
#[derive(Debug, Clone, Args, Serialize)]
pub struct LoopbackArgs {
    /// Bytes per write and read
    #[arg(long, value_delimiter = ',', default_values_t = [16384, 65536, 262_144, 1_048_576])]
    bytes: Vec<usize>,
    /// Seconds per cell
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Repetitions
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Name of the run
    #[arg(long, default_value = "loopback")]
    name: String,
    /// Folder for the JSON file; nothing is written without
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Runs `loopback`.
pub fn loopback(args: &LoopbackArgs) -> anyhow::Result<Run> {
    let mut run = Run::new("loopback", &args.name, "loopback itself", "-", args)?;
    let mut repetitions = Vec::new();
    for _ in 0..args.repeat.max(1) {
        let mut figures = Figures::new();
        for &bytes in &args.bytes {
            ensure!((1..=64 << 20).contains(&bytes), "1 byte to 64 MiB per write");
            let rate = loopback_once(bytes, Duration::from_secs_f64(args.seconds))?;
            figures.insert(format!("loopback {bytes} bytes per write MB/s"), rate);
        }
        repetitions.push(figures);
    }
    run.add_repetitions(&repetitions);
    Ok(run)
}

fn loopback_once(bytes: usize, time: Duration) -> anyhow::Result<f64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let received = AtomicU64::new(0);
    let elapsed = std::thread::scope(|scope| -> anyhow::Result<Duration> {
        let reader = scope.spawn(|| -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut buffer = vec![0; bytes];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => received.fetch_add(n as u64, Relaxed),
                };
            }
        });
        let mut stream = TcpStream::connect(address)?;
        let buffer = vec![7; bytes];
        let start = Instant::now();
        while start.elapsed() < time {
            stream.write_all(&buffer)?;
        }
        drop(stream);
        reader.join().expect("the reader panicked")?;
        Ok(start.elapsed())
    })?;
    Ok(received.load(Relaxed) as f64 / elapsed.as_secs_f64() / 1e6)
}
