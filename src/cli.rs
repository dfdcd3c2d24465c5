//! The command line: which commands there are and who runs them.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{commands, serve};

/// A log engine that speaks Kafka's wire protocol.
///
/// One process, one shard per core, io_uring and direct I/O; an acknowledged record is on stable storage. Any Kafka
/// client can talk to it; the commands below talk to any Kafka broker.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  millrace serve                                   a broker on 127.0.0.1:9092
  millrace topic create greetings --partitions 3   make a topic
  echo hello | millrace produce greetings          a record per line
  millrace consume greetings                       print what is there
  millrace doctor                                  is this machine fit?

'millrace help COMMAND' says more about each.

Exit status: 0 when it is done, 1 when it cannot be done, 2 when the command line or the configuration file is wrong.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeCommand),
    Doctor(commands::doctor::DoctorCommand),
    Cluster(commands::cluster::ClusterCommand),
    Promote(commands::promote::PromoteCommand),
    Topic(commands::topic::TopicCommand),
    Produce(commands::produce::ProduceCommand),
    Consume(commands::consume::ConsumeCommand),
    Group(commands::group::GroupCommand),
    Txn(commands::txn::TxnCommand),
    Config(commands::config::ConfigCommand),
    Api(commands::api::ApiCommand),
    Log(commands::log::LogCommand),
}

/// Lets the value of every option begin with a dash, as in `--node-id -1` or `--null-value -`. What is no value for an
/// option is refused by its own parser, which says why; clap would take it for an option that there is not.
fn with_dashes_in_values(command: clap::Command) -> clap::Command {
    let is_free =
        |arg: &clap::Arg| arg.get_action().takes_values() && !arg.is_positional() && !arg.is_require_equals_set();
    let command = command.mut_args(|arg| if is_free(&arg) { arg.allow_hyphen_values(true) } else { arg });
    command.mut_subcommands(with_dashes_in_values)
}

impl Cli {
    /// Reads the command line; ends the process if it makes no sense.
    pub(crate) fn read() -> Self {
        let matches = with_dashes_in_values(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Runs the command.
    pub(crate) fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Serve(command) => command.run(),
            Command::Doctor(command) => command.run(),
            Command::Cluster(command) => command.run(),
            Command::Promote(command) => command.run(),
            Command::Topic(command) => command.run(),
            Command::Produce(command) => command.run(),
            Command::Consume(command) => command.run(),
            Command::Group(command) => command.run(),
            Command::Txn(command) => command.run(),
            Command::Config(command) => command.run(),
            Command::Api(command) => command.run(),
            Command::Log(command) => command.run(),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }
}
