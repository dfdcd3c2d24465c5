//! A transaction coordinator as the runtime sees it: what becomes of its records, its markers, its deadlines and its end.

use std::rc::Rc;

use kafka_protocol::error::ResponseError;
use millrace_engine::engine::Topics;

use super::{
    coordinator::{Coordinator, MARKER_RETRY_MS, Stage, Then, UnderWay},
    record::TransactionRecord,
    request::{Errand, Marked, Marking, Place},
    settings::REMOVE_INTERVAL_MS,
    state::State,
};
use crate::coordinator::{
    fields::RecordError,
    runtime::{Machine, Replayed, Reply, Verdict, Write, WriteId},
};

impl Coordinator {
    /// What became of markers. Partitions that can take none any more need none; others are tried again.
    pub(crate) fn handle_marked(&mut self, now_ms: i64, marking: &Marking, marked: Marked) {
        let Some(entry) = self.entries.get(&marking.id) else { return };
        let is_current = entry.metadata.producer() == marking.producer
            && entry.metadata.start_ms == marking.start_ms
            && entry.under_way.as_ref().is_some_and(|under_way| under_way.stage == Stage::Markers);
        if !is_current {
            return;
        }
        let is_done = |result: &Result<(), ResponseError>| match result {
            Ok(()) => true,
            Err(error) => is_final(*error),
        };
        let done: Vec<_> = marked.into_iter().filter(|(_, result)| is_done(result)).map(|(name, _)| name).collect();
        let id = Rc::clone(&marking.id);
        self.note_marked(&id, &done);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.metadata.partitions.is_empty() {
            return self.complete(now_ms, &id);
        }
        if let Some(under_way) = &mut entry.under_way {
            under_way.stage = Stage::Retry;
        }
        self.look_at(&id, now_ms.saturating_add(MARKER_RETRY_MS));
    }

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

    /// Every transaction whose end was decided goes on from there.
    fn end_again(&mut self, now_ms: i64) {
        let is_prepared = |id: &&Rc<str>| self.entries[*id].metadata.state.is_prepared();
        let prepared: Vec<_> = self.entries.keys().filter(is_prepared).cloned().collect();
        for id in prepared {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.under_way = Some(UnderWay { stage: Stage::Markers, client: None });
            }
            self.mark(now_ms, &id, true);
        }
    }
}

/// Whether a partition will take no marker of this transaction, however often it comes: it has seen a newer epoch.
fn is_final(error: ResponseError) -> bool {
    matches!(
        error,
        ResponseError::InvalidProducerEpoch
            | ResponseError::TransactionCoordinatorFenced
            | ResponseError::UnsupportedForMessageFormat
            | ResponseError::UnsupportedVersion
    )
}

impl Machine for Coordinator {
    type Record = TransactionRecord;
    type Errand = Errand;
    type Unreadable = RecordError;

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
            Then::Prepared(id) => {
                let stage = self.entries.get(&id).and_then(|entry| entry.under_way.as_ref()).map(|end| &end.stage);
                if let Some(Stage::Prepare(marked)) = stage.cloned() {
                    self.note_marked(&id, &marked);
                    self.mark(now_ms, &id, false);
                }
            }
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
