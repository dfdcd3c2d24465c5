//! The binary `millrace`: reads the command line and runs one command.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod commands;
mod config;
mod failure;
mod serve;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::Cli::parse().run()
}
