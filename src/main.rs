//! The binary `millrace`: reads the command line and runs one command.

use std::process::ExitCode;

mod cli;
mod commands;
mod config;
mod failure;
mod output;
mod serve;
mod time;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::Cli::read().run()
}
