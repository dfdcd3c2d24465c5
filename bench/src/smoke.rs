//! `smoke`: every benchmark once at toy size, so that none rots. Prints a line per benchmark and asserts no time.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Parser};

use crate::{
    cli::{Cli, run_command},
    server::{self, Server},
};

/// `smoke`: all benchmarks at toy size.
#[derive(Debug, Clone, Args)]
pub struct SmokeArgs {
    /// The broker's binary, started as BINARY serve --data DIR --listen HOST:PORT
    #[arg(long, required_unless_present = "brokers")]
    binary: Option<PathBuf>,
    /// A running broker to use instead; leaves `restart` out
    #[arg(long, conflicts_with = "binary")]
    brokers: Option<String>,
    /// Folder for data and results; removed again
    #[arg(long)]
    dir: PathBuf,
    /// Leave `engine` out
    #[arg(long)]
    no_engine: bool,
}

/// Runs `smoke`; an error when any benchmark failed.
pub fn smoke(args: &SmokeArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("{}", args.dir.display()))?;
    let dir = args.dir.to_str().context("a folder's name in UTF-8")?;
    let mut server = None;
    let brokers = match (&args.binary, &args.brokers) {
        (Some(binary), _) => {
            let address = server::free_address()?;
            let command = format!("'{}' serve --data '{dir}/data' --listen {address}", binary.display());
            let mut started = Server::start(&command, None, address, Some(&args.dir.join("broker.log")))?;
            started.await_ready(std::time::Duration::from_secs(60))?;
            server = Some(started);
            address.to_string()
        }
        (None, Some(brokers)) => brokers.clone(),
        (None, None) => bail!("neither --binary nor --brokers"),
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, command) in commands(args, dir, &brokers)? {
        match try_one(&command) {
            Ok(()) => {
                passed += 1;
                println!("passed bench-{name}");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED bench-{name}: {error:#}");
            }
        }
    }
    if let Some(server) = server {
        server.terminate(std::time::Duration::from_secs(60))?;
    }
    std::fs::remove_dir_all(&args.dir)?;
    println!("{passed} passed, {failed} failed");
    if failed > 0 { bail!("{failed} benchmarks failed") } else { Ok(()) }
}

fn try_one(command: &str) -> anyhow::Result<()> {
    let words = std::iter::once("millrace-bench").chain(command.split('\t'));
    run_command(&Cli::try_parse_from(words)?)
}

/// Names and command lines (separated by tabs, as a folder's name may hold spaces).
fn commands(args: &SmokeArgs, dir: &str, brokers: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let to = format!("--brokers\t{brokers}\t--out\t{dir}/runs\t--warmup\t0.2\t--duration\t0.5\t--partitions");
    let mut list = vec![
        (
            "device",
            format!(
                "device\t--dir\t{dir}\t--file-bytes\t8388608\t--group-bytes\t4096,65536\t--depth\t1,2\t--files\t4\t\
                 --appends-in-flight\t2\t--seconds\t0.1\t--out\t{dir}/runs"
            ),
        ),
        ("loopback", format!("loopback\t--bytes\t65536\t--seconds\t0.1\t--out\t{dir}/runs")),
        ("replicas", format!("replicas\t--dir\t{dir}\t--seconds\t0.1\t--out\t{dir}/runs")),
        ("produce-closed", format!("produce\t{to}\t1\t--repeat\t2")),
        (
            "produce-open-keyed",
            format!(
                "produce\t{to}\t8\t--rate\t2000\t--keyed\t--key-size\t8\t--connections\t4\t--records-per-batch\t3\t\
                 --batches-per-request\t4"
            ),
        ),
        (
            "produce-unverified-relaxed",
            format!("produce\t{to}\t2\t--acks\t1\t--no-idempotence\t--in-flight\t20\t--class\tR\t--no-verify"),
        ),
        (
            "sizes",
            format!("sizes\t{to}\t4\t--sizes\t1024,1060000,20000000\t--connections\t20\t--bytes-in-flight\t40000000"),
        ),
        ("tail", format!("tail\t{to}\t4\t--rate\t500\t--records-per-batch\t1\t--consumers\t2")),
        (
            "groups",
            format!("groups\t{to}\t2\t--groups\t5\t--connections\t10\t--in-flight\t3\t--threads\t2\t--repeat\t2"),
        ),
        (
            "transactions",
            format!(
                "transactions\t{to}\t4\t--producers\t5\t--partitions-per-transaction\t2\t--records-per-partition\t3\t\
                 --abort-share\t0.3\t--threads\t2\t--repeat\t2"
            ),
        ),
        (
            "transactions-with-offsets",
            format!("transactions\t{to}\t2\t--producers\t3\t--group-offsets\t--abort-share\t0.3"),
        ),
        ("drain", format!("tail\t{to}\t4\t--rate\t2000\t--records-per-batch\t10\t--backlog-bytes\t200000")),
    ];
    if let Some(binary) = &args.binary {
        let address = server::free_address()?;
        list.push((
            "restart",
            format!(
                "restart\t--command\t'{}' serve --data '{dir}/restart' --listen {address}\t--brokers\t{address}\t\
                 --topics\t2\t--partitions\t3\t--bytes\t2000000\t--repeat\t2\t--out\t{dir}/runs\t--timeout\t60",
                binary.display()
            ),
        ));
    }
    if !args.no_engine {
        let common = format!(
            "engine\t--data\t{dir}/engine\t--in-flight\t8\t--memory-bytes\t67108864\t--warmup\t0.1\t--duration\t0.3\t\
             --out\t{dir}/runs"
        );
        list.push(("engine", format!("{common}\t--partitions\t8\t--wal-bytes\t16777216")));
        list.push(("engine-apart", format!("{common}\t--partitions\t2\t--apart")));
    }
    Ok(list)
}
