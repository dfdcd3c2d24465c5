//! How a command fails: a message for people and an exit code for scripts.

use std::{fmt::Display, io, process::ExitCode};

use crate::output::{reason, say};

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was asked in the wrong way: exit code 2, as for options that clap refuses.
    Usage(String),
    /// It could not be done: exit code 1.
    Failed(String),
    /// Whoever read our output has gone away: no error of ours, exit code 0.
    OutputClosed,
    /// Everything was said already: exit code 1.
    Reported,
}

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The command could not do it.
    pub(crate) fn failed(message: impl Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// The command was called in the wrong way.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::Usage(message.to_string())
    }

    /// Tells the user and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Usage(message) => {
                say(format_args!("error: {message}"));
                ExitCode::from(2)
            }
            Self::Failed(message) => {
                say(format_args!("error: {message}"));
                ExitCode::FAILURE
            }
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Reported => ExitCode::FAILURE,
        }
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write the output: {}", reason(&error))),
        }
    }
}
