//! The binary `millrace-bench`: see `millrace-bench --help`.

use clap::Parser;
use millrace_bench::cli::{Cli, run_command};

fn main() -> anyhow::Result<()> {
    run_command(&Cli::parse())
}
