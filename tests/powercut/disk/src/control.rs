//! Commands over a Unix socket: a line each, answered by a line.
//!
//! ```text
//! status                              "on", or "cut" and what the cut did
//! stats                               counters
//! delay MICROSECONDS                  a flush takes a random time up to that
//! cut KEEP SEED HOW                   cuts the power now
//! plan MOMENT COUNT KEEP SEED HOW     cuts it at the COUNTth MOMENT from now: write, flush (before it) or flushed (after)
//! plan none                           it does not
//! forget COUNT                        the COUNTth flush from now fails, and what it should have covered is lost
//! off                                 answers everything that hangs, and all that comes, with EIO
//! on                                  the power is back
//! ```
//!
//! KEEP, of what was not flushed: nothing, all, prefix, late, torn, sectors, some. HOW the disk behaves then: hang or fail.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    str::SplitWhitespace,
    sync::mpsc::{self, SyncSender},
    thread,
    time::Duration,
};

use crate::{
    disk::{Cut, Keep, Moment, Plan, Power},
    owner::Request,
};

/// What can be asked of the disk.
#[derive(Debug)]
pub(crate) enum Command {
    Status,
    Statistics,
    Delay(Duration),
    Cut(Cut),
    Plan(Option<Plan>),
    Forget(u64),
    Off,
    On,
}

impl Command {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let command = match words.next()? {
            "status" => Self::Status,
            "stats" => Self::Statistics,
            "delay" => Self::Delay(Duration::from_micros(number(&mut words)?)),
            "cut" => Self::Cut(cut(&mut words)?),
            "plan" => Self::Plan(match words.next()? {
                "none" => None,
                moment => {
                    Some(Plan { moment: self::moment(moment)?, count: number(&mut words)?, cut: cut(&mut words)? })
                }
            }),
            "forget" => Self::Forget(number(&mut words)?),
            "off" => Self::Off,
            "on" => Self::On,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

fn number(words: &mut SplitWhitespace<'_>) -> Option<u64> {
    words.next()?.parse().ok()
}

fn moment(word: &str) -> Option<Moment> {
    match word {
        "write" => Some(Moment::Write),
        "flush" => Some(Moment::Flush),
        "flushed" => Some(Moment::Flushed),
        _ => None,
    }
}

fn cut(words: &mut SplitWhitespace<'_>) -> Option<Cut> {
    let keep = match words.next()? {
        "nothing" => Keep::Nothing,
        "all" => Keep::All,
        "prefix" => Keep::Prefix,
        "late" => Keep::Late,
        "torn" => Keep::Torn,
        "sectors" => Keep::Sectors,
        "some" => Keep::Some,
        _ => return None,
    };
    let seed = number(words)?;
    let then = match words.next()? {
        "hang" => Power::Hanging,
        "fail" => Power::Failing,
        _ => return None,
    };
    Some(Cut { keep, seed, then })
}

/// Takes commands from now on, each connection in a thread of its own.
pub(crate) fn listen(socket: &Path, requests: SyncSender<Request>) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let requests = requests.clone();
            thread::spawn(move || converse(stream, &requests));
        }
    });
    Ok(())
}

/// Until the other side has had enough.
fn converse(mut stream: UnixStream, requests: &SyncSender<Request>) -> io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let said = match Command::parse(&line) {
            Some(command) => {
                let (answer, answered) = mpsc::sync_channel(1);
                let request = Request::Command { command, answer };
                requests.send(request).map_err(io::Error::other)?;
                answered.recv().map_err(io::Error::other)?
            }
            None => format!("not understood: {line}"),
        };
        writeln!(stream, "{said}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_whole_or_not_at_all() {
        for line in ["status", "delay 500", "cut all 1 hang", "plan flushed 3 some 7 fail", "plan none", "forget 1"] {
            assert!(Command::parse(line).is_some(), "{line}");
        }
        for line in ["", "cut", "cut all 1", "cut all x hang", "plan later 1 all 1 hang", "on now", "explode"] {
            assert!(Command::parse(line).is_none(), "{line}");
        }
    }
}
