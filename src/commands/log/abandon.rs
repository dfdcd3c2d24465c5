//! `millrace log abandon`: goes on without records that the write-ahead log does not give back. Asks twice: the first call
//! only shows what is in doubt and says how to make the second one, which wants a word typed.

use std::{
    fmt::Display,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use millrace_engine::{abandon::abandon, doubt::Doubts};

use crate::{
    failure::{Failure, Outcome},
    output::say,
    serve::{cluster::forget_lives, explain},
};

/// Goes on without records that a damaged write-ahead log does not give back
///
/// For a broker that refuses to start because its write-ahead log (wal-*) lacks something that was durable. Shows which
/// records are in doubt, and changes nothing; with --yes-lose, and a word typed, it brings everything that can be read to
/// segments and moves the write-ahead log aside, with the catalog and manifests as they were, to the folder
/// abandoned-RUN. The broker starts then, and partitions in doubt go on at the first offset that is gone. If the missing
/// files can be had from somewhere, put them back instead. The broker must not run.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Abandon {
    /// Data folder
    data: PathBuf,
    /// What the first call printed: stands for exactly the records that it showed
    #[arg(long, value_name = "CODE")]
    yes_lose: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  millrace log abandon millrace-data                        shows what is in doubt
  millrace log abandon millrace-data --yes-lose 1f3a20c7    gives it up";

/// What has to be typed.
const WORD: &str = "abandon";

impl Abandon {
    pub(super) fn run(self) -> Outcome {
        let Self { data, yes_lose } = self;
        let (sender, answers) = std::sync::mpsc::channel();
        let folder = data.clone();
        let confirm = move |doubts: &[Doubts]| {
            // before anything is given up: the node must not go on as one that has what it was promised to have
            let forget = |()| forget_lives(&folder).map_err(|error| Failure::failed(error.to_string()));
            let agreed = agree(doubts, &folder, yes_lose.as_deref()).and_then(forget);
            let yes = agreed.is_ok();
            drop(sender.send(agreed));
            yes
        };
        let done = abandon(&data, confirm).map_err(|error| Failure::failed(explain::start_error(&error)))?;
        match (answers.try_recv(), done) {
            (Ok(Err(refused)), _) => Err(refused),
            (_, Some(aside)) => show(format_args!("given up; what was taken out is in {}", aside.display())),
            (_, None) => show("nothing is in doubt: the write-ahead log holds all that was durable"),
        }
    }
}

/// Shows what is in doubt, and whether it may go.
fn agree(doubts: &[Doubts], folder: &Path, yes_lose: Option<&str>) -> Outcome {
    show(describe(doubts).trim_end())?;
    let code = Doubts::code(doubts);
    match yes_lose {
        None => {
            show("nothing was changed; to go on without these records:")?;
            show(format_args!("  millrace log abandon {} --yes-lose {code}", folder.display()))?;
            Err(Failure::Reported)
        }
        Some(other) if other != code => Err(Failure::failed(format!(
            "--yes-lose {other} stands for other records than these, whose code is {code}: nothing was changed"
        ))),
        Some(_) => {
            say(format_args!("type '{WORD}' to give these records up:"));
            let mut line = String::new();
            let read = io::stdin().lock().read_line(&mut line);
            match read.is_ok() && line.trim() == WORD {
                true => Ok(()),
                false => Err(Failure::failed("not confirmed: nothing was changed")),
            }
        }
    }
}

fn show(line: impl Display) -> Outcome {
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn describe(doubts: &[Doubts]) -> String {
    let mut text = String::new();
    for doubts in doubts {
        text += &format!("{}:\n", doubts.folder.display());
        doubts.lines().for_each(|line| text += &format!("  {line}\n"));
        if !doubts.groups.is_empty() {
            text += "  a group that cannot be read may have held the newest records of other partitions too\n";
        }
    }
    let records: i64 = doubts.iter().map(Doubts::records).sum();
    text + &format!("{records} records are known to be in doubt\n")
}
