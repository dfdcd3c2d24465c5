//! What a coordinator of groups wants done, besides what every machine wants: topics to be looked up.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponseGroup;

use super::{
    classic::ClassicThen,
    error::GroupError,
    offsets::DeferredFetch,
    record::Record,
    settings::{GroupConfigs, Settings},
    timers::Timers,
};
use crate::coordinator::runtime::{self, Answer, Pending, Reply, Ticket, WriteId};

/// Records to append to the coordinator's partition.
pub(crate) type Write = runtime::Write<Record>;

/// What happens once a write is durable, or failed.
#[derive(Debug)]
pub(crate) enum Then {
    /// Nothing: the state was changed before and stands, durable or not.
    Keep,
    /// The state was changed as if the records were durable: if they are not, all state is to be rebuilt from the log.
    Rebuild,
    /// The records change the state only now.
    Apply(Vec<Record>),
    /// The records are offsets that the transaction of that producer is about to commit, known only from now on.
    ApplyPending(i64, Vec<Record>),
    /// A classic group goes on.
    Classic(Rc<str>, ClassicThen),
}

/// A fetch that waits for a write.
pub(crate) type WaitingFetch = (Ticket<OffsetFetchResponseGroup>, DeferredFetch);

/// What happens, and who is answered when it is done, whatever became of it.
#[derive(Debug)]
pub(crate) struct After {
    pub(crate) then: Then,
    pub(crate) fetches: Vec<WaitingFetch>,
}

impl runtime::Then for After {
    fn runs_ahead(&self) -> bool {
        matches!(self.then, Then::Rebuild)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    log: runtime::Effects<Record, After>,
    /// Groups whose regular expressions are to be looked up among all topics, with the expressions.
    regexes: BTreeMap<Rc<str>, Vec<Rc<str>>>,
}

impl Effects {
    /// Replies at once.
    pub(crate) fn reply<A: Answer>(&mut self, ticket: Ticket<A>, answer: A) {
        self.log.reply(ticket, answer);
    }

    /// Replies as soon as everything is durable that the state was changed for ahead of time.
    pub(crate) fn reply_when_settled<A: Answer>(&mut self, ticket: Ticket<A>, answer: A) {
        self.log.reply_when_settled(ticket, answer);
    }

    /// Hands a fetch back as long as no write is under way; else keeps it until the last one is done.
    pub(crate) fn defer_fetch(
        &mut self,
        ticket: Ticket<OffsetFetchResponseGroup>,
        fetch: DeferredFetch,
    ) -> Option<WaitingFetch> {
        match self.log.last_mut() {
            Some(after) => {
                after.fetches.push((ticket, fetch));
                None
            }
            None => Some((ticket, fetch)),
        }
    }

    /// Writes records, with what is to happen then.
    pub(crate) fn write(&mut self, records: Vec<Record>, then: Then) {
        self.log.write(records, After { then, fetches: Vec::new() });
    }

    /// Writes records and replies when they are durable.
    pub(crate) fn write_then_reply<A: Answer>(
        &mut self,
        records: Vec<Record>,
        then: Then,
        ticket: Ticket<A>,
        answer: A,
    ) {
        self.log.write_then_reply(records, After { then, fetches: Vec::new() }, ticket, answer);
    }

    /// Writes records in the transaction of a producer, given as its id and epoch, and replies when they are durable.
    pub(crate) fn write_in_transaction<A: Answer>(
        &mut self,
        records: Vec<Record>,
        producer: (i64, i16),
        then: Then,
        ticket: Ticket<A>,
        answer: A,
    ) {
        self.log.write_in_transaction(records, producer, After { then, fetches: Vec::new() }, ticket, answer);
    }

    /// The oldest write, which was just finished.
    pub(crate) fn finish(&mut self, id: WriteId) -> (Then, Pending<Vec<WaitingFetch>>) {
        self.log.finish(id).map(|After { then, fetches }| (then, fetches))
    }

    /// Releases what waited for a write, or its failure; what was to happen was done. Returns the fetches that wait.
    pub(crate) fn release(
        &mut self,
        pending: Pending<Vec<WaitingFetch>>,
        result: Result<(), GroupError>,
    ) -> Vec<WaitingFetch> {
        self.log.release(pending, result)
    }

    /// Asks for a group's regular expressions to be looked up.
    pub(crate) fn resolve(&mut self, group: &Rc<str>, regexes: Vec<Rc<str>>) {
        self.regexes.insert(Rc::clone(group), regexes);
    }

    /// Replies to send now.
    pub(crate) fn take_replies(&mut self) -> Vec<Reply> {
        self.log.take_replies()
    }

    /// Records to write now.
    pub(crate) fn take_writes(&mut self) -> Vec<Write> {
        self.log.take_writes()
    }

    /// Groups whose regular expressions to look up now.
    pub(crate) fn take_regexes(&mut self) -> BTreeMap<Rc<str>, Vec<Rc<str>>> {
        std::mem::take(&mut self.regexes)
    }

    /// Fails everything that waits for a write; returns the fetches that wait.
    pub(crate) fn fail_pending(&mut self, error: GroupError) -> Vec<WaitingFetch> {
        self.log.fail_pending(error).into_iter().flat_map(|after| after.fetches).collect()
    }

    /// Whether there is anything to write.
    pub(crate) fn has_writes(&self) -> bool {
        self.log.has_writes()
    }

    /// Whether anything is to be taken.
    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        self.log.has_work() || !self.regexes.is_empty()
    }
}

/// What a group may use while it handles an event.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    /// Now, ms since the epoch.
    pub(crate) now_ms: i64,
    pub(crate) settings: &'a Settings,
    pub(crate) configs: &'a dyn GroupConfigs,
    pub(crate) timers: &'a mut Timers,
    pub(crate) effects: &'a mut Effects,
}
