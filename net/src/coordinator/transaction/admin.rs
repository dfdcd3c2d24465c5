//! What is told of transactions, and which ids are forgotten.

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::{api::TopicPartition, transactions::OpenTransaction};

use super::{
    claim::{Claim, claimed},
    coordinator::{Coordinator, Entry, Stage, Then},
    metadata::{Metadata, PartitionName, Producer},
    record::TransactionRecord,
    request::Place,
    settings::{ID_EXPIRATION_MS, REMOVE_INTERVAL_MS},
    state::State,
};
use crate::coordinator::runtime::Ticket;

/// Ids that are forgotten in one look at most; the rest follows a second later.
const REMOVED_PER_LOOK: usize = 1000;

/// A transaction as DescribeTransactions tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// Where it is.
    pub(crate) state: State,
    /// Whose it is.
    pub(crate) producer: Producer,
    /// How long it may take, in ms.
    pub(crate) timeout_ms: i32,
    /// When it began, ms since the epoch, or -1.
    pub(crate) start_ms: i64,
    /// Its partitions by topic; once its end is decided, those that are not known to have heard.
    pub(crate) partitions: Vec<(String, i32)>,
}

/// A transaction as ListTransactions tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The transactional id.
    pub(crate) id: String,
    /// Its producer's id.
    pub(crate) producer_id: i64,
    /// Where its transaction is.
    pub(crate) state: State,
}

/// Which transactions are wanted; what is empty or `None` admits all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// In one of these states.
    pub(crate) states: BTreeSet<State>,
    /// Of one of these producers.
    pub(crate) producer_ids: BTreeSet<i64>,
    /// Begun longer ago than that, at a time: both in ms. One that has not begun is.
    pub(crate) longer_than_ms: Option<i64>,
    /// Whose ids match all of it.
    pub(crate) pattern: Option<regex::Regex>,
}

impl Coordinator {
    /// What is known of an id, when it is on stable storage.
    pub(crate) fn handle_describe(&mut self, id: &str, ticket: Ticket<Result<Description, ResponseError>>) {
        let Some(entry) = self.entries.get(id) else {
            return self.effects.reply(ticket, Err(ResponseError::TransactionalIdNotFound));
        };
        let Metadata { state, timeout_ms, start_ms, .. } = entry.metadata;
        let partitions = entry.metadata.partitions.iter().map(|(topic, index)| (topic.to_string(), *index)).collect();
        let producer = entry.metadata.producer();
        let last_write = entry.last_write;
        self.effects.reply_after(
            last_write,
            ticket,
            Ok(Description { state, producer, timeout_ms, start_ms, partitions }),
        );
    }

    /// The transactions that are wanted.
    pub(crate) fn list(&self, filter: &Filter, now_ms: i64) -> Vec<Listed> {
        let Filter { states, producer_ids, longer_than_ms, pattern } = filter;
        let is_wanted = |(id, metadata): &(&Rc<str>, &Metadata)| {
            (states.is_empty() || states.contains(&metadata.state))
                && (producer_ids.is_empty() || producer_ids.contains(&metadata.producer_id))
                && longer_than_ms.is_none_or(|longer_ms| now_ms - metadata.start_ms > longer_ms)
                && pattern.as_ref().is_none_or(|pattern| pattern.is_match(id))
        };
        let all = self.entries.iter().map(|(id, entry)| (id, &entry.metadata));
        let listed = all.filter(is_wanted).map(|(id, metadata)| Listed {
            id: id.to_string(),
            producer_id: metadata.producer_id,
            state: metadata.state,
        });
        listed.collect()
    }

    /// How many ids there are in each state.
    pub(crate) fn count_by_state(&self, count: &mut impl FnMut(State)) {
        self.entries.values().for_each(|entry| count(entry.metadata.state));
    }

    /// Which of these open transactions this coordinator will end, by their places. What no coordinator ends is nobody's.
    pub(crate) fn claimed(&self, open: &[OpenTransaction]) -> Vec<usize> {
        let wanted: BTreeSet<i64> = open.iter().map(|open| open.producer_id).collect();
        let of_entry = |entry: &Entry| {
            let metadata = match entry.under_way.as_ref().map(|under_way| &under_way.stage) {
                Some(Stage::Group(prepared)) => prepared,
                _ => &entry.metadata,
            };
            let producer = Some(metadata.producer()).filter(|producer| wanted.contains(&producer.id))?;
            let partitions = metadata.partitions.iter().filter_map(|name| self.placed(name));
            Claim::of(metadata.state, producer, Some(metadata.client_version), partitions)
        };
        claimed(&self.entries.values().filter_map(of_entry).collect::<Vec<_>>(), open)
    }

    pub(super) fn placed(&self, name: &PartitionName) -> Option<TopicPartition> {
        match self.surroundings.place(name) {
            Place::Gone => None,
            Place::Here(partition) | Place::Elsewhere(partition) => Some(partition),
        }
    }

    /// Forgets ids that nobody used for long.
    pub(super) fn remove_expired(&mut self, now_ms: i64) {
        if now_ms < self.next_removal_ms {
            return;
        }
        let expiration_ms = self.settings.get(ID_EXPIRATION_MS);
        let expired: Vec<Rc<str>> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                let Metadata { state, last_update_ms, .. } = entry.metadata;
                let is_idle = matches!(state, State::Empty | State::CompleteCommit | State::CompleteAbort);
                is_idle && entry.under_way.is_none() && now_ms.saturating_sub(last_update_ms) >= expiration_ms
            })
            .map(|(id, _)| Rc::clone(id))
            .take(REMOVED_PER_LOOK)
            .collect();
        if expired.len() < REMOVED_PER_LOOK {
            self.next_removal_ms = now_ms.saturating_add(self.settings.get(REMOVE_INTERVAL_MS));
        }
        let forget = |id: &Rc<str>| TransactionRecord { id: Rc::clone(id), metadata: None, version: 0 };
        let records: Vec<_> = expired.iter().map(forget).collect();
        if !records.is_empty() {
            expired.iter().for_each(|id| self.drop_entry(id));
            self.effects.write(records, Then::Stands);
        }
    }

    /// Forgets an id.
    pub(super) fn drop_entry(&mut self, id: &Rc<str>) {
        if let Some(entry) = self.entries.remove(id) {
            self.budget.give_back(id, entry.metadata.partitions.len());
            if let Some(timer_ms) = entry.timer_ms {
                self.timers.remove(&(timer_ms, Rc::clone(id)));
            }
        }
    }
}
