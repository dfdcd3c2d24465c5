//! The binary `millrace-bench`: see `millrace-bench --help`.

use std::process::ExitCode;

use clap::Parser;
use millrace_bench::cli::{Cli, run_command};

/// As the broker has it: `engine` measures that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run_command(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
