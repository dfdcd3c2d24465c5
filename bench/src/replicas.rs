//! `replicas`: what a lone record with replicas takes of a device and of loopback, with no broker in between.
//!
//! As few steps as the protocol has: a leader reads a request, writes a frame to each follower, overwrites one block of its
//! file with O_DIRECT and O_DSYNC, reads a confirmation of each follower, which has done the same, and answers. All of them are threads that
//! block, on this machine and on one device, so it is what three nodes on one machine cannot go below.
//!
//! With `--copy-kb` the same once more beside a copy, as a follower that lags makes it: a piece of a file is read, sent, written
//! behind what is there and flushed, confirmed, and then as long a pause made as that took.

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    device::{Aligned, BLOCK, zero_fill},
    report::{Figures, Run},
};

/// A request or a frame with one record of 1 KiB.
const REQUEST_BYTES: usize = 1200;
/// A confirmation, or an answer.
const ANSWER_BYTES: usize = 60;
/// Of each replica, overwritten again and again.
const FILE_BYTES: usize = 64 << 20;

/// `replicas`: a record with one replica and with more, in turn.
#[derive(Debug, Clone, Args, Serialize)]
pub struct ReplicasArgs {
    /// Folder on the device to measure; files made there are removed again
    #[arg(long)]
    dir: PathBuf,
    /// Numbers of replicas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    replicas: Vec<usize>,
    /// Records per second, each timed from when it was due; 0: each follows the answer to the one before
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// KiB of a piece of a copy that goes on beside, in cells of their own; 0: there is none
    #[arg(long, default_value_t = 0)]
    copy_kb: usize,
    /// Seconds per cell
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Repetitions of all cells
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Name of the run
    #[arg(long, default_value = "replicas")]
    name: String,
    /// Folder for the JSON file; nothing is written without
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Runs `replicas`.
pub fn replicas(args: &ReplicasArgs) -> anyhow::Result<Run> {
    ensure!(args.replicas.iter().all(|n| (1..=16).contains(n)), "1 to 16 replicas");
    ensure!(args.seconds > 0.0, "positive seconds");
    ensure!(args.copy_kb.is_multiple_of(4) && args.copy_kb <= 8192, "pieces of whole blocks, at most 8192 KiB");
    let folder = args.dir.join(format!("millrace-bench-replicas-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    let result = all_cells(args, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn all_cells(args: &ReplicasArgs, folder: &Path) -> anyhow::Result<Run> {
    let mut run = Run::new("replicas", &args.name, "device and loopback", "D", args)?;
    let mut logs = Vec::new();
    for replica in 0..args.replicas.iter().copied().max().unwrap_or(0) {
        logs.push(folder.join(format!("replica-{replica}")));
        zero_fill(&logs[replica], FILE_BYTES)?;
    }
    let copy = Copying { from: folder.join("copied"), to: folder.join("copy"), piece_bytes: args.copy_kb << 10 };
    if args.copy_kb > 0 {
        zero_fill(&copy.from, FILE_BYTES)?;
    }
    let (time, rate) = (Duration::from_secs_f64(args.seconds), args.rate);
    let mut repetitions = Vec::new();
    for _ in 0..args.repeat.max(1) {
        let mut figures = Figures::new();
        for &replicas in &args.replicas {
            note(&mut figures, &format!("{replicas} replicas"), &one_cell(&logs[..replicas], time, rate)?);
            if args.copy_kb > 0 {
                let (latency_us, bytes_per_second) = copy.beside(|| one_cell(&logs[..replicas], time, rate))?;
                note(&mut figures, &format!("{replicas} replicas beside a copy"), &latency_us);
                figures.insert(format!("{replicas} replicas beside a copy: copied MB/s"), bytes_per_second / 1e6);
            }
        }
        repetitions.push(figures);
    }
    run.add_repetitions(&repetitions);
    Ok(run)
}

fn note(figures: &mut Figures, cell: &str, latency_us: &Histogram<u64>) {
    for (label, percentile) in [("p50", 50.0), ("p99", 99.0)] {
        figures.insert(format!("{cell} {label} us"), latency_us.value_at_percentile(percentile) as f64);
    }
}

/// A copy that lasts for as long as something else.
struct Copying {
    from: PathBuf,
    to: PathBuf,
    piece_bytes: usize,
}

impl Copying {
    /// What is measured beside it, and bytes that were copied per second meanwhile.
    fn beside<T>(&self, body: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (listener, address) = listen()?;
            let receiver = scope.spawn(move || self.receive(&listener));
            let over = &is_over;
            let sender = scope.spawn(move || self.send(address, over));
            let begun = Instant::now();
            let measured = body();
            is_over.store(true, Ordering::Relaxed);
            let copied = sender.join().expect("a copy panicked")?;
            let took = begun.elapsed().as_secs_f64();
            receiver.join().expect("a copy panicked")?;
            Ok((measured?, copied as f64 / took))
        })
    }

    /// Reads pieces and sends each when the one before is confirmed, after a pause. Answers their bytes.
    fn send(&self, to: SocketAddr, is_over: &AtomicBool) -> io::Result<usize> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&self.from)?;
        let mut piece = Aligned::new(self.piece_bytes, None);
        let mut stream = connect(to)?;
        let (mut copied, pieces) = (0, FILE_BYTES / self.piece_bytes);
        while !is_over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            file.read_exact_at(piece.get_mut(), (copied / self.piece_bytes % pieces * self.piece_bytes) as u64)?;
            stream.write_all(piece.get())?;
            stream.read_exact(&mut [0])?;
            copied += self.piece_bytes;
            std::thread::sleep(begun.elapsed());
        }
        Ok(copied)
    }

    /// Writes what comes behind what came, flushed, and confirms it.
    fn receive(&self, listener: &TcpListener) -> io::Result<()> {
        let options = libc::O_DIRECT | libc::O_DSYNC;
        let file = OpenOptions::new().create(true).truncate(true).write(true).custom_flags(options).open(&self.to)?;
        let mut piece = Aligned::new(self.piece_bytes, None);
        let (mut caller, _) = listener.accept()?;
        caller.set_nodelay(true)?;
        for n in 0.. {
            match caller.read_exact(piece.get_mut()) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                result => result?,
            }
            file.write_all_at(piece.get(), (n * self.piece_bytes) as u64)?;
            caller.write_all(&[1])?;
        }
        Ok(())
    }
}

/// Latencies of records, in microseconds, one in flight, with a log for each replica: the leader's first.
fn one_cell(logs: &[PathBuf], time: Duration, rate: u32) -> anyhow::Result<Histogram<u64>> {
    let (leader, followers) = logs.split_first().expect("there is a leader");
    std::thread::scope(|scope| {
        let mut nodes = Vec::new();
        let mut addresses = Vec::new();
        for log in followers {
            let (listener, address) = listen()?;
            addresses.push(address);
            nodes.push(scope.spawn(move || serve(&listener, log, &[])));
        }
        let (listener, address) = listen()?;
        nodes.push(scope.spawn(move || serve(&listener, leader, &addresses)));
        let latency_us = produce(address, time, rate);
        for node in nodes {
            node.join().expect("a node panicked")?;
        }
        latency_us
    })
}

fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A node: until its caller hangs up, writes what comes and has its followers do so.
fn serve(listener: &TcpListener, log: &Path, followers: &[SocketAddr]) -> io::Result<()> {
    let mut streams = followers.iter().map(|follower| connect(*follower)).collect::<io::Result<Vec<_>>>()?;
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(log)?;
    let block = Aligned::new(BLOCK, Some(1));
    let (mut request, mut answer) = ([0; REQUEST_BYTES], [0; ANSWER_BYTES]);
    let (mut caller, _) = listener.accept()?;
    caller.set_nodelay(true)?;
    for n in 0.. {
        match caller.read_exact(&mut request) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        for stream in &mut streams {
            stream.write_all(&request)?;
        }
        file.write_all_at(block.get(), (n % (FILE_BYTES / BLOCK) * BLOCK) as u64)?;
        for stream in &mut streams {
            stream.read_exact(&mut answer)?;
        }
        caller.write_all(&answer)?;
    }
    Ok(())
}

/// With a rate, the latency of a record counts from when it was due.
fn produce(leader: SocketAddr, time: Duration, rate: u32) -> anyhow::Result<Histogram<u64>> {
    let mut stream = connect(leader)?;
    let mut latency_us = Histogram::new_with_bounds(1, 600_000_000, 3).expect("legal bounds");
    let mut answer = [0; ANSWER_BYTES];
    let start = Instant::now();
    for n in 0_u32.. {
        let due = (rate > 0).then(|| start + Duration::from_secs_f64(f64::from(n) / f64::from(rate)));
        due.map(|due| due.saturating_duration_since(Instant::now())).into_iter().for_each(std::thread::sleep);
        let before = due.unwrap_or_else(Instant::now);
        if start.elapsed() >= time {
            break;
        }
        stream.write_all(&[7; REQUEST_BYTES])?;
        stream.read_exact(&mut answer)?;
        latency_us.saturating_record((before.elapsed().as_micros() as u64).max(1));
    }
    Ok(latency_us)
}
