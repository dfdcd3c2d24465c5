//! The tool's command line.

use clap::{Parser, Subcommand};

use crate::{device, engine, groups, produce, replicas, report::Run, restart, sizes, smoke, tail, transactions};

/// Measures brokers that speak Kafka's protocol, and what they stand on
#[derive(Debug, Parser)]
#[command(name = "millrace-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Latency and throughput of producing, verified by reading back
    Produce(produce::ProduceArgs),
    /// Throughput over the size of a request, up to the largest
    Sizes(sizes::SizesArgs),
    /// Throughput of reading a topic from start to end, verified
    Consume(produce::ConsumeArgs),
    /// Time until a consumer at the end of the log holds a record; with --backlog-bytes how a backlog is drained
    Tail(tail::TailArgs),
    /// Offset commits per second and their latency, verified
    Groups(groups::GroupsArgs),
    /// Transactions per second and their latency, verified
    Transactions(transactions::TransactionsArgs),
    /// Time until a killed broker serves again, and whether everything is there
    Restart(restart::RestartArgs),
    /// Flushed sequential writes without any broker
    Device(device::DeviceArgs),
    /// TCP over loopback without any broker
    Loopback(device::LoopbackArgs),
    /// A record with replicas without any broker: a device, loopback and threads that block
    Replicas(replicas::ReplicasArgs),
    /// The log engine in this process, without the wire
    Engine(engine::EngineArgs),
    /// Every benchmark at toy size
    Smoke(smoke::SmokeArgs),
}

/// Runs a command to its end: prints its figures and writes its file.
pub fn run_command(cli: &Cli) -> anyhow::Result<()> {
    let finish = |run: Run, out: &Option<std::path::PathBuf>| run.finish(out.as_deref());
    match &cli.command {
        Command::Produce(args) => finish(produce::produce(args)?, &args.target.out),
        Command::Sizes(args) => finish(sizes::sizes(args)?, args.out()),
        Command::Consume(args) => finish(produce::consume(args)?, &args.target.out),
        Command::Tail(args) => finish(tail::tail(args)?, &args.target.out),
        Command::Groups(args) => finish(groups::groups(args)?, &args.target.out),
        Command::Transactions(args) => finish(transactions::transactions(args)?, args.out()),
        Command::Restart(args) => finish(restart::restart(args)?, &args.out),
        Command::Device(args) => finish(device::device(args)?, &args.out),
        Command::Loopback(args) => finish(device::loopback(args)?, &args.out),
        Command::Replicas(args) => finish(replicas::replicas(args)?, &args.out),
        Command::Engine(args) => finish(engine::engine(args)?, &args.out),
        Command::Smoke(args) => smoke::smoke(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
