//! Runs conversations with a coordinator that are written down as text: what clients say, and what must come of it.
//!
//! A file in `testdata` is a list of blocks, separated by blank lines: commands, a line `----`, and the expected output.
//! `MILLRACE_BLESS=1` writes down what really comes out, to be read and judged. `#` begins a comment.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, rc::Rc};

use kafka_protocol::{error::ResponseError, protocol::StrBytes};
use millrace_engine::transactions::Outcome;

use super::{
    caller::Caller,
    coordinator::{Coordinator, Lookup},
    effects::Write,
    settings::Settings,
};
use crate::coordinator::runtime::{Inbox, Machine, Replayed, ReplayedMarker, Reply, Ticket, Verdict};

mod commands;
mod print;
mod wire;

pub(crate) use wire::FakeTopics;

/// A command line: a verb, a name, and `key=value` words.
#[derive(Debug)]
pub(super) struct Command<'a> {
    pub(super) verb: &'a str,
    /// The first word without `=`, if any: names the request.
    pub(super) name: &'a str,
    words: Vec<(&'a str, &'a str)>,
}

impl<'a> Command<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap();
        let (named, plain): (Vec<_>, Vec<_>) = words.partition(|word| word.contains('='));
        let words = named.iter().map(|word| word.split_once('=').unwrap()).collect();
        Self { verb, name: plain.first().copied().unwrap_or_default(), words }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, key: &str, default: &str) -> StrBytes {
        StrBytes::from_string(self.get(key).unwrap_or(default).to_owned())
    }

    pub(super) fn optional(&self, key: &str) -> Option<StrBytes> {
        self.get(key).map(|value| StrBytes::from_string(value.to_owned()))
    }

    pub(super) fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(&self, key: &str, default: T) -> T {
        self.get(key).map_or(default, |value| value.parse().unwrap())
    }

    pub(super) fn list(&self, key: &str) -> Vec<&'a str> {
        self.get(key).map(|value| value.split(',').filter(|part| !part.is_empty()).collect()).unwrap_or_default()
    }
}

/// What stands at an offset of the log.
enum Logged {
    /// A record as bytes, with the producer in whose transaction it was written.
    Record {
        producer_id: Option<i64>,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    Marker(i64, Outcome),
}

/// A coordinator, its log, and the clock.
pub(super) struct Script {
    pub(super) coordinator: Coordinator,
    pub(super) settings: Settings,
    pub(super) now_ms: i64,
    /// What is durable, by offset.
    log: Vec<Logged>,
    writes: Vec<Write>,
    /// Writes are made durable at once.
    auto: bool,
    /// Lines that say who was answered what.
    answers: Inbox<String>,
    /// How often an id was given out, by client or instance.
    fresh_ids: BTreeMap<String, u64>,
    pub(super) topics: FakeTopics,
    out: String,
}

impl Script {
    fn new() -> Self {
        let settings = Settings::default();
        Self {
            coordinator: Coordinator::new(Rc::new(settings.clone())),
            settings,
            now_ms: 0,
            log: Vec::new(),
            writes: Vec::new(),
            auto: true,
            answers: Inbox::new(),
            fresh_ids: BTreeMap::new(),
            topics: FakeTopics::default(),
            out: String::new(),
        }
    }

    /// A ticket of somebody with a name. Who hears that the coordinator went away without an answer says nothing.
    pub(super) fn ticket<R: print::Print + 'static>(&mut self, name: &str) -> Ticket<R> {
        let name = name.to_owned();
        self.answers.ticket(move |answer: Result<R, _>| Some(format!("{name} <- {}", answer.ok()?.print())))
    }

    pub(super) fn caller(&mut self, command: &Command<'_>, version: i16) -> Caller {
        let client_id = command.get("client").unwrap_or("c").to_owned();
        let owner = command.get("instance").unwrap_or(&client_id).to_owned();
        let fresh_id = self.fresh_ids.entry(owner).or_default();
        *fresh_id += u64::from(command.get("member").is_none());
        Caller {
            client_host: "/host".to_owned(),
            version: command.number("version", version),
            fresh_id: fresh_id.to_string(),
            client_id,
        }
    }

    pub(super) fn say(&mut self, line: impl std::fmt::Display) {
        writeln!(self.out, "{line}").unwrap();
    }

    fn run(&mut self, line: &str) {
        let command = Command::parse(line);
        match command.verb {
            "set" => {
                let given = command.words.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
                self.settings = Settings::parse(&given).unwrap();
                self.coordinator = Coordinator::new(Rc::new(self.settings.clone()));
                self.coordinator.see_topics(Rc::new(self.topics.clone()));
                self.fresh_ids.clear();
            }
            "writes" => self.auto = command.name == "auto",
            "persist" => self.persist(command.get("fail").map(error_named)),
            "advance" => {
                let end = self.now_ms + command.name.parse::<i64>().unwrap();
                while let Some(deadline) = self.coordinator.next_deadline_ms().filter(|deadline| *deadline <= end) {
                    self.now_ms = self.now_ms.max(deadline);
                    self.coordinator.handle_timeouts(self.now_ms);
                    self.settle();
                }
                self.now_ms = end;
            }
            "reload" => self.reload(),
            "commit-transaction" => self.end_transaction(command.number("pid", 1), Outcome::Commit),
            "abort-transaction" => self.end_transaction(command.number("pid", 1), Outcome::Abort),
            _ => commands::run(self, &command),
        }
        self.settle();
    }

    /// Prints what came of the last event, and makes writes durable in mode `auto`.
    fn settle(&mut self) {
        loop {
            self.print_replies();
            for write in self.coordinator.take_writes() {
                let producer = write.producer.map(|(producer_id, _)| format!("as {producer_id} "));
                let producer = producer.unwrap_or_default();
                self.say(format_args!("write {producer}{}", print::records(&write.records)));
                self.writes.push(write);
            }
            self.resolve_regexes();
            self.coordinator.check();
            if self.auto && !self.writes.is_empty() {
                self.persist(None);
            } else if !self.coordinator.has_work() {
                return;
            }
        }
    }

    /// Looks up topics as the shell does.
    fn resolve_regexes(&mut self) {
        for Lookup { group, version, regexes } in self.coordinator.take_errands() {
            let resolve = |regex: Rc<str>| {
                let compiled = super::consumer::compile(&regex).unwrap();
                let names = self.topics.topics.keys().filter(|name| compiled.is_match(name));
                (regex, names.map(|name| Rc::from(name.as_str())).collect())
            };
            let resolved = regexes.into_iter().map(resolve).collect();
            self.coordinator.handle_regexes(self.now_ms, &group, version, resolved);
        }
    }

    fn persist(&mut self, error: Option<ResponseError>) {
        let mut rebuild = false;
        for write in std::mem::take(&mut self.writes) {
            let result = error.map_or(Ok(offset_of(self.log.len())), Err);
            if error.is_none() {
                let producer_id = write.producer.map(|(producer_id, _)| producer_id);
                self.log.extend(write.records.iter().map(|record| Logged::Record {
                    producer_id,
                    key: record.key(),
                    value: record.value(),
                }));
            }
            rebuild |= self.coordinator.on_persisted(self.now_ms, write.id, result) == Verdict::Rebuild;
        }
        if rebuild {
            self.say("rebuild");
            self.coordinator.close(self.now_ms, ResponseError::NotCoordinator);
            self.print_replies();
            self.reload();
        }
    }

    fn print_replies(&mut self) {
        self.coordinator.take_replies().into_iter().for_each(Reply::send);
        for line in self.answers.take() {
            self.say(line);
        }
    }

    /// Starts anew from the log, as after a crash: whoever waits hears nothing.
    fn reload(&mut self) {
        self.writes.clear();
        self.coordinator = Coordinator::new(Rc::new(self.settings.clone()));
        self.coordinator.see_topics(Rc::new(self.topics.clone()));
        for (offset, logged) in self.log.iter().enumerate() {
            let offset = offset_of(offset);
            match logged {
                Logged::Record { producer_id, key, value } => {
                    let producer = producer_id.map(|producer_id| (producer_id, 0));
                    let replayed = Replayed { offset, producer, key, value: value.as_deref() };
                    self.coordinator.replay(&replayed).unwrap();
                }
                Logged::Marker(producer_id, outcome) => {
                    self.coordinator.replay_marker(&marker(offset, *producer_id, *outcome))
                }
            }
        }
        self.coordinator.on_loaded(self.now_ms);
    }

    /// A marker becomes durable.
    fn end_transaction(&mut self, producer_id: i64, outcome: Outcome) {
        let offset = offset_of(self.log.len());
        self.log.push(Logged::Marker(producer_id, outcome));
        self.coordinator.replay_marker(&marker(offset, producer_id, outcome));
    }
}

fn offset_of(index: usize) -> i64 {
    i64::try_from(index).unwrap()
}

fn marker(offset: i64, producer_id: i64, outcome: Outcome) -> ReplayedMarker {
    ReplayedMarker { offset, producer_id, producer_epoch: 0, outcome }
}

fn error_named(name: &str) -> ResponseError {
    (1..200)
        .filter_map(ResponseError::try_from_code)
        .find(|error| format!("{error:?}") == name)
        .unwrap_or_else(|| panic!("no error is called {name}"))
}

/// Runs a file of `testdata`.
pub(super) fn run_file(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/coordinator/group/testdata").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut script = Script::new();
    let mut actual = String::new();
    for block in text.trim_end().split("\n\n") {
        let (commands, _) = block.split_once("\n----").unwrap_or((block, ""));
        for line in commands.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty())
        {
            script.run(line);
        }
        let out = std::mem::take(&mut script.out);
        let is_comment = commands.lines().all(|line| line.starts_with('#'));
        let separator = if is_comment { "" } else { "\n----" };
        write!(actual, "{commands}{separator}\n{out}\n").unwrap();
    }
    let actual = format!("{}\n", actual.trim_end());
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(expected, actual, "{name}: what came out differs from the file");
}
