//! Log lines: to standard error, one line each, compact.

use std::{
    fmt::Display,
    io::{IsTerminal, stderr},
};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::failure::{Failure, Outcome};

/// Sets up logging for the process. Call once.
pub(super) fn start(filter: &str) -> Outcome {
    let refuse = |error: &dyn Display| {
        Failure::usage(format!(
            "log filter '{filter}': {error}; write a level (error, warn, info, debug, trace, off) or \
            TARGET=LEVEL, with commas between"
        ))
    };
    // A word alone would be taken for a target, and a misspelt level would turn everything off.
    if let Some(word) =
        filter.split(',').find(|part| !part.contains(['=', '[']) && part.trim().parse::<LevelFilter>().is_err())
    {
        return Err(refuse(&format!("'{word}' is no level")));
    }
    let filter = EnvFilter::try_new(filter).map_err(|error| refuse(&error))?;
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        // A line that cannot be written (a closed pipe, a full disk) is lost; to tell that on standard error would panic.
        .log_internal_errors(false)
        .try_init()
        .map_err(Failure::failed)
}
