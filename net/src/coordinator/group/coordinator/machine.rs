//! A coordinator as the runtime sees it.

use std::rc::Rc;

use millrace_engine::engine::Topics;

use super::Coordinator;
use crate::coordinator::{
    group::{
        error::GroupError,
        record::{Record, RecordError},
    },
    runtime::{LogRecord, Machine, Replayed, Reply, Verdict, Write, WriteId},
};

/// Regular expressions of a group that are to be looked up among the topics of a version.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) group: Rc<str>,
    pub(crate) version: u64,
    pub(crate) regexes: Vec<Rc<str>>,
}

/// What a coordinator does now and then.
#[derive(Debug, Default)]
pub(super) struct Chores {
    /// Deletions of topics, as of the topics that it was told, and those whose offsets it has looked for.
    deletions_told: u64,
    deletions_done: u64,
    next_retention_ms: i64,
}

impl LogRecord for Record {
    fn key(&self) -> Vec<u8> {
        Record::key(self)
    }

    fn value(&self) -> Option<Vec<u8>> {
        Record::value(self)
    }
}

impl Coordinator {
    fn next_retention_ms(&self, now_ms: i64) -> i64 {
        now_ms.saturating_add(self.settings.retention_check_interval_ms)
    }
}

impl Machine for Coordinator {
    type Record = Record;
    type Errand = Lookup;
    type Unreadable = RecordError;

    fn replay(&mut self, record: &Replayed<'_>) -> Result<(), RecordError> {
        // a record of none is of a kind of group that is kept elsewhere
        if let Some(record) = Record::decode(record.key, record.value)? {
            self.load(record);
        }
        Ok(())
    }

    fn on_loaded(&mut self, now_ms: i64) {
        self.chores.next_retention_ms = self.next_retention_ms(now_ms);
        self.chores.deletions_done = self.chores.deletions_told;
        Coordinator::on_loaded(self, now_ms);
    }

    fn handle_topics(&mut self, topics: &Rc<Topics>) {
        self.chores.deletions_told = topics.deletions;
        Coordinator::handle_topics(self, Rc::clone(topics) as _);
    }

    fn handle_tick(&mut self, now_ms: i64) {
        if self.chores.deletions_done != self.chores.deletions_told {
            self.chores.deletions_done = self.chores.deletions_told;
            self.handle_topics_deleted();
        }
        if now_ms >= self.chores.next_retention_ms {
            self.chores.next_retention_ms = self.next_retention_ms(now_ms);
            self.handle_retention(now_ms);
        }
    }

    fn handle_timeouts(&mut self, now_ms: i64) {
        Coordinator::handle_timeouts(self, now_ms);
    }

    fn next_deadline_ms(&self) -> Option<i64> {
        Coordinator::next_deadline_ms(self)
    }

    fn on_persisted(&mut self, now_ms: i64, id: WriteId, result: Result<i64, GroupError>) -> Verdict {
        match Coordinator::on_persisted(self, now_ms, id, result.map(|_| ())) {
            true => Verdict::Rebuild,
            false => Verdict::Stands,
        }
    }

    fn close(&mut self, now_ms: i64, error: GroupError) {
        Coordinator::close(self, now_ms, error);
    }

    fn take_replies(&mut self) -> Vec<Reply> {
        Coordinator::take_replies(self)
    }

    fn has_writes(&self) -> bool {
        self.effects.has_writes()
    }

    fn take_writes(&mut self) -> Vec<Write<Record>> {
        Coordinator::take_writes(self)
    }

    fn take_errands(&mut self) -> Vec<Lookup> {
        let (version, groups) = self.take_regexes();
        groups.into_iter().map(|(group, regexes)| Lookup { group, version, regexes }).collect()
    }
}
