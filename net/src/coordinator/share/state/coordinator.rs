//! A store as the runtime sees it: who asked for a change is answered when the record that says so is durable, and who
//! asks what is there when all is durable that was changed before.

use std::rc::Rc;

use kafka_protocol::ResponseError;
use millrace_engine::engine::Topics;
use uuid::Uuid;

use super::{ShareKey, StateRecord, Store, StoreError, store::Noted};
use crate::coordinator::{
    fields::RecordError,
    runtime::{Effects, LogRecord, Machine, Replayed, Reply, Then, Ticket, Verdict, Write, WriteId},
    share::settings::Settings,
};

/// What a store did: a result, and the record that says so.
pub(crate) type Change<R> = Result<(R, Option<StateRecord>), StoreError>;

/// The part of the log before this offset is not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prune(pub(crate) i64);

impl Then for Noted {
    fn runs_ahead(&self) -> bool {
        true
    }
}

impl LogRecord for StateRecord {
    fn key(&self) -> Vec<u8> {
        StateRecord::key(self)
    }

    fn value(&self) -> Option<Vec<u8>> {
        StateRecord::value(self)
    }
}

/// See the module.
pub(crate) struct StateCoordinator {
    settings: Rc<Settings>,
    store: Store,
    effects: Effects<StateRecord, Noted>,
    topics: Rc<Topics>,
    /// Deletions of topics when their state was last looked for.
    deletions_done: u64,
    next_prune_ms: i64,
    prunes: Vec<Prune>,
}

impl StateCoordinator {
    /// Knows of nothing.
    pub(crate) fn new(settings: Rc<Settings>) -> Self {
        let updates = settings.get("share.coordinator.snapshot.update.records.per.snapshot");
        Self {
            store: Store::new(u32::try_from(updates).unwrap_or(0)),
            settings,
            effects: Effects::default(),
            topics: Rc::default(),
            deletions_done: 0,
            next_prune_ms: 0,
            prunes: Vec::new(),
        }
    }

    /// Lets the store do something.
    pub(crate) fn change<R: 'static>(
        &mut self,
        ticket: Ticket<Result<R, ResponseError>>,
        work: impl FnOnce(&mut Store) -> Change<R>,
    ) {
        match work(&mut self.store) {
            Ok((result, Some(record))) => {
                let records = vec![record];
                let noted = Noted::of(&records);
                self.effects.write_then_reply(records, noted, ticket, Ok(result));
            }
            Ok((result, None)) => self.effects.reply_when_settled(ticket, Ok(result)),
            Err(error) => self.effects.reply_when_settled(ticket, Err(error.code())),
        }
    }

    /// As [`StateCoordinator::change`], if the partition is known here: a leader of it may have heard of it before.
    pub(crate) fn change_known<R: 'static>(
        &mut self,
        ticket: Ticket<Result<R, ResponseError>>,
        key: &ShareKey,
        work: impl FnOnce(&mut Store) -> Change<R>,
    ) {
        let is_known = (0..partitions(&self.topics, key.topic)).contains(&key.partition);
        self.change(ticket, |store| if is_known { work(store) } else { Err(StoreError::UnknownPartition) });
    }

    fn write(&mut self, records: Vec<StateRecord>) {
        if !records.is_empty() {
            let noted = Noted::of(&records);
            self.effects.write(records, noted);
        }
    }

    fn forget_deleted_topics(&mut self) {
        self.deletions_done = self.topics.deletions;
        let topics = Rc::clone(&self.topics);
        let records = self.store.delete_topics(|id| partitions(&topics, id) == 0);
        self.write(records);
    }
}

/// How many partitions a topic has; none: it is not there.
fn partitions(topics: &Topics, id: Uuid) -> i32 {
    topics.by_id.get(&id).map_or(0, |topic| topic.partitions)
}

impl Machine for StateCoordinator {
    type Record = StateRecord;
    type Errand = Prune;
    type Unreadable = RecordError;

    fn replay(&mut self, record: &Replayed<'_>) -> Result<(), RecordError> {
        if let Some(decoded) = StateRecord::decode(record.key, record.value)? {
            self.store.load(record.offset, decoded);
        }
        Ok(())
    }

    fn on_loaded(&mut self, _: i64) {
        self.forget_deleted_topics();
    }

    fn handle_topics(&mut self, topics: &Rc<Topics>) {
        self.topics = Rc::clone(topics);
    }

    /// Forgets the state of deleted topics, and now and then the part of the log that is not needed any more.
    fn handle_tick(&mut self, now_ms: i64) {
        if self.deletions_done != self.topics.deletions {
            self.forget_deleted_topics();
        }
        if now_ms < self.next_prune_ms {
            return;
        }
        let interval_ms = self.settings.get("share.coordinator.state.topic.prune.interval.ms");
        self.next_prune_ms = now_ms.saturating_add(interval_ms);
        // what is written now is needed until it is durable
        let needed_from = self.store.needed_from();
        let cold_ms = self.settings.get("share.coordinator.cold.partition.snapshot.interval.ms");
        let records = self.store.refresh(now_ms, cold_ms);
        self.write(records);
        if needed_from > 0 {
            self.prunes.push(Prune(needed_from));
        }
    }

    fn handle_timeouts(&mut self, _: i64) {}

    fn next_deadline_ms(&self) -> Option<i64> {
        None
    }

    fn on_persisted(&mut self, _: i64, id: WriteId, result: Result<i64, ResponseError>) -> Verdict {
        let (noted, pending) = self.effects.finish(id).map(|noted| (noted, ()));
        self.effects.release(pending, result.map(|_| ()));
        let Ok(base_offset) = result else { return Verdict::Rebuild };
        self.store.on_persisted(base_offset, &noted);
        Verdict::Stands
    }

    fn close(&mut self, _: i64, error: ResponseError) {
        self.effects.fail_pending(error);
    }

    fn take_replies(&mut self) -> Vec<Reply> {
        self.effects.take_replies()
    }

    fn has_writes(&self) -> bool {
        self.effects.has_writes()
    }

    fn take_writes(&mut self) -> Vec<Write<StateRecord>> {
        self.effects.take_writes()
    }

    fn take_errands(&mut self) -> Vec<Prune> {
        std::mem::take(&mut self.prunes)
    }
}
