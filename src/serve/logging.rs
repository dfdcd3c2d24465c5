//! Log lines: to standard error, one line each, compact.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write, stderr},
};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    failure::{Failure, Outcome},
    output::one_line,
};

/// Standard error, with one line for each event: libraries log errors as they are printed for debugging, on several.
#[derive(Debug)]
struct Lines;

impl Write for Lines {
    /// Takes an event, which comes whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        stderr().write_all(format!("{}\n", one_line(&text)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// Sets up logging for the process. Call once.
pub(super) fn start(filter: &str) -> Outcome {
    let refuse = |error: &dyn Display| {
        Failure::usage(format!(
            "log filter '{filter}': {error}; write a level (error, warn, info, debug, trace, off) or \
            TARGET=LEVEL, with commas between"
        ))
    };
    if let Some(word) = misspelt_level(filter) {
        return Err(refuse(&format!("'{word}' is no level")));
    }
    let filter = EnvFilter::try_new(filter).map_err(|error| refuse(&error))?;
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_writer(|| Lines)
        .with_ansi(stderr().is_terminal())
        // A line that cannot be written (a closed pipe, a full disk) is lost; to tell that on standard error would panic.
        .log_internal_errors(false)
        .try_init()
        .map_err(Failure::failed)
}

/// A word alone that is no level. It would be taken for a target, and everything else would be off.
fn misspelt_level(filter: &str) -> Option<&str> {
    filter.split(',').map(str::trim).find(|part| !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_alone_are_levels() {
        for good in ["info", "WARN", "off", "info,millrace_engine=debug", "millrace_net=trace, error", "[span]=info"] {
            assert_eq!(misspelt_level(good), None, "{good}");
        }
        for bad in ["verbose", "millrace_net=trace,inof"] {
            assert!(misspelt_level(bad).is_some(), "{bad}");
        }
    }
}
