//! Log lines: to standard error, one line each, compact.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::failure::{Failure, Outcome};

/// Sets up logging for the process. Call once.
pub(super) fn start(filter: &str) -> Outcome {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!(
            "log filter '{filter}': {error}; write a level (error, warn, info, debug, trace) or \
            TARGET=LEVEL, with commas between"
        ))
    })?;
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .try_init()
        .map_err(Failure::failed)
}
