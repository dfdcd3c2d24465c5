//! A transaction coordinator as the runtime sees it: what becomes of its records, its markers, its deadlines and its end.

use std::rc::Rc;

use kafka_protocol::error::ResponseError;
use millrace_engine::engine::Topics;

use super::{
    coordinator::{Coordinator, Then},
    record::TransactionRecord,
    request::{Errand, Place},
    settings::REMOVE_INTERVAL_MS,
    state::State,
};
use crate::coordinator::{
    fields::RecordError,
    runtime::{Machine, Replayed, Reply, Verdict, Write, WriteId},
};

impl Coordinator {
    /// Owners are told what the transactions that are ongoing include.
    fn admit_again(&mut self) {
        for entry in self.entries.values().filter(|entry| entry.metadata.state == State::Ongoing) {
            let placed = entry.metadata.partitions.iter().filter_map(|name| match self.surroundings.place(name) {
                Place::Gone => None,
                Place::Here(partition) | Place::Elsewhere(partition) => Some(partition),
            });
            self.errands.push(Errand::Admit(placed.collect(), entry.metadata.producer()));
        }
    }
}

impl Machine for Coordinator {
    type Record = TransactionRecord;
    type Errand = Errand;
    type Unreadable = RecordError;
    const NEWEST_COUNTS: bool = true;

    fn replay(&mut self, record: &Replayed<'_>) -> Result<(), RecordError> {
        let TransactionRecord { id, metadata, .. } = TransactionRecord::decode(record.key, record.value)?;
        match metadata {
            Some(metadata) => {
                self.put(&id, metadata);
            }
            None => self.drop_entry(&id),
        }
        Ok(())
    }

    fn on_loaded(&mut self, now_ms: i64) {
        self.loaded_ms = now_ms;
        self.next_removal_ms = now_ms.saturating_add(self.settings.get(REMOVE_INTERVAL_MS));
        self.admit_again();
        self.end_again(now_ms);
        self.ask_for_markers();
        let deadlines =
            self.entries.iter().filter_map(|(id, entry)| Some((Rc::clone(id), entry.metadata.deadline_ms()?)));
        for (id, deadline_ms) in deadlines.collect::<Vec<_>>() {
            self.look_at(&id, self.abort_ms(deadline_ms));
        }
    }

    fn handle_topics(&mut self, _: &Rc<Topics>) {}

    fn handle_tick(&mut self, now_ms: i64) {
        self.remove_expired(now_ms);
    }

    fn handle_timeouts(&mut self, now_ms: i64) {
        while self.timers.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms) {
            if let Some((_, id)) = self.timers.pop_first() {
                self.look(now_ms, &id);
            }
        }
    }

    fn next_deadline_ms(&self) -> Option<i64> {
        self.timers.first().map(|(at_ms, _)| *at_ms)
    }

    fn on_persisted(&mut self, now_ms: i64, write: WriteId, result: Result<i64, ResponseError>) -> Verdict {
        let (then, pending) = self.effects.finish(write).map(|then| (then, ()));
        self.effects.release(pending, result.map(|_| ()));
        if result.is_err() {
            return Verdict::Rebuild;
        }
        match then {
            Then::Stands => {}
            Then::Admit(partitions, producer) => {
                let placed = partitions.iter().filter_map(|name| match self.surroundings.place(name) {
                    Place::Gone => None,
                    Place::Here(partition) | Place::Elsewhere(partition) => Some(partition),
                });
                self.errands.push(Errand::Admit(placed.collect(), producer));
            }
            Then::Ended(id) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.under_way = None;
                }
                self.go_on(now_ms, &id);
            }
            Then::Prepared(id) => self.on_prepared(now_ms, &id),
        }
        Verdict::Stands
    }

    fn close(&mut self, _: i64, error: ResponseError) {
        self.effects.fail_pending(error);
        let waiting: Vec<_> = self.entries.values_mut().flat_map(|entry| entry.waiting.drain(..)).collect();
        let clients = self.entries.values_mut().filter_map(|entry| entry.under_way.take()?.client);
        for (ticket, ..) in clients.collect::<Vec<_>>() {
            self.effects.reply(ticket, Err(error));
        }
        let awaiting = std::mem::take(&mut self.awaiting).into_iter().map(|(_, waiting)| waiting);
        for waiting in awaiting.chain(waiting).collect::<Vec<_>>() {
            self.refuse(waiting.request, error);
        }
    }

    fn take_replies(&mut self) -> Vec<Reply> {
        self.effects.take_replies()
    }

    fn has_writes(&self) -> bool {
        self.effects.has_writes()
    }

    fn take_writes(&mut self) -> Vec<Write<TransactionRecord>> {
        self.effects.take_writes()
    }

    fn take_errands(&mut self) -> Vec<Errand> {
        std::mem::take(&mut self.errands)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        for (id, entry) in &self.entries {
            self.budget.give_back(id, entry.metadata.partitions.len());
        }
    }
}
