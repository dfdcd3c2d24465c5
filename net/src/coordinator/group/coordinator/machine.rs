//! A coordinator as the runtime sees it: what becomes of its records, its deadlines and its end.

use std::rc::Rc;

use millrace_engine::{engine::Topics, transactions::Outcome};

use super::{Coordinator, Entry, Group, offsets, scope};
use crate::coordinator::{
    group::{
        effects::{Scope, Then},
        error::GroupError,
        offsets::Stability,
        record::{Record, RecordError},
        timers::TimerKind,
    },
    runtime::{LogRecord, Machine, Replayed, ReplayedMarker, Reply, Verdict, Write, WriteId},
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
    /// Deletions of topics, as of the topics that it was told, and those whose offsets it has looked for; `None`: a write
    /// has failed since, and what it was to delete may still be there.
    deletions_told: u64,
    deletions_done: Option<u64>,
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
        if let Some(record_read) = Record::decode(record.key, record.value)? {
            self.load(record.offset, record.producer.map(|(producer_id, _)| producer_id), record_read);
        }
        Ok(())
    }

    fn replay_marker(&mut self, marker: &ReplayedMarker) {
        match marker.outcome {
            Outcome::Commit => self.commit_transaction(marker.producer_id),
            Outcome::Abort => self.abort_transaction(marker.producer_id),
        }
    }

    fn begin_marker(&mut self, producer_id: i64) {
        self.guards.end(producer_id);
    }

    fn on_loaded(&mut self, now_ms: i64) {
        self.chores.next_retention_ms = self.next_retention_ms(now_ms);
        self.chores.deletions_done = Some(self.chores.deletions_told);
        for entry in self.entries.values_mut() {
            let scope = scope!(self, now_ms);
            match &mut entry.group {
                Group::Classic(group) => group.on_loaded(scope),
                Group::Consumer(group) => group.on_loaded(scope),
                Group::Share(group) => group.on_loaded(scope),
            }
        }
        self.handle_topics_deleted();
    }

    fn handle_topics(&mut self, topics: &Rc<Topics>) {
        self.chores.deletions_told = topics.deletions;
        self.see_topics(Rc::clone(topics) as _);
    }

    fn handle_tick(&mut self, now_ms: i64) {
        if self.chores.deletions_done != Some(self.chores.deletions_told) {
            self.chores.deletions_done = Some(self.chores.deletions_told);
            self.handle_topics_deleted();
        }
        if now_ms >= self.chores.next_retention_ms {
            self.chores.next_retention_ms = self.next_retention_ms(now_ms);
            self.handle_retention(now_ms);
        }
    }

    fn handle_timeouts(&mut self, now_ms: i64) {
        while let Some((id, kind)) = self.timers.pop(now_ms) {
            let scope = scope!(self, now_ms);
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            match (&mut entry.group, kind) {
                (Group::Classic(group), TimerKind::GroupJoin) => group.handle_join_timeout(scope),
                (Group::Classic(group), TimerKind::GroupSync) => group.handle_sync_timeout(scope),
                (Group::Classic(group), TimerKind::Session(member)) => group.handle_session_timeout(scope, &member),
                // left over from a group that was of another type
                (Group::Classic(_), _) => {}
                (Group::Consumer(_), kind) => self.consumer_timeout(now_ms, &id, kind),
                (Group::Share(_), kind) => self.share_timeout(now_ms, &id, &kind),
            }
        }
    }

    fn next_deadline_ms(&self) -> Option<i64> {
        self.timers.next_deadline_ms()
    }

    fn on_persisted(&mut self, now_ms: i64, id: WriteId, result: Result<i64, GroupError>) -> Verdict {
        if result.is_err() {
            self.chores.deletions_done = None;
        }
        let (then, pending) = self.effects.finish(id);
        let mut verdict = Verdict::Stands;
        let written = result;
        let result = written.map(|_| ());
        match (then, written) {
            (Then::Rebuild, Err(_)) => verdict = Verdict::Rebuild,
            (Then::Keep | Then::Rebuild, _) | (Then::Apply(_) | Then::ApplyPending(..), Err(_)) => {}
            (Then::Apply(records), Ok(base_offset)) => {
                (base_offset..).zip(records).for_each(|(offset, record)| self.apply_late(offset, record));
            }
            (Then::ApplyPending(producer_id, records), Ok(base_offset)) => {
                (base_offset..)
                    .zip(records)
                    .for_each(|(offset, record)| self.apply_pending(offset, producer_id, record));
            }
            (Then::Classic(group, then), _) => {
                let scope = scope!(self, now_ms);
                if let Some(Entry { group: Group::Classic(group), .. }) = self.entries.get_mut(&group) {
                    group.on_persisted(scope, then, result);
                }
            }
        }
        for (ticket, fetch) in self.effects.release(pending, result) {
            let reply = self.fetch_now(&fetch, Stability::Required);
            self.effects.reply(ticket, reply);
        }
        verdict
    }

    fn close(&mut self, now_ms: i64, error: GroupError) {
        for entry in self.entries.values_mut() {
            let scope = scope!(self, now_ms);
            match &mut entry.group {
                Group::Classic(group) => group.close(scope, error),
                Group::Consumer(group) => group.close(scope),
                Group::Share(group) => group.close(scope),
            }
        }
        for (ticket, fetch) in self.effects.fail_pending(error) {
            self.effects.reply(ticket, offsets::fetch_error(&fetch, error));
        }
    }

    fn take_replies(&mut self) -> Vec<Reply> {
        self.effects.take_replies()
    }

    fn has_writes(&self) -> bool {
        self.effects.has_writes()
    }

    fn take_writes(&mut self) -> Vec<Write<Record>> {
        self.effects.take_writes()
    }

    fn take_errands(&mut self) -> Vec<Lookup> {
        let version = self.topics_version;
        self.effects.take_regexes().into_iter().map(|(group, regexes)| Lookup { group, version, regexes }).collect()
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::error::ResponseError;

    use super::*;
    use crate::coordinator::group::{record::OffsetCommit, settings::Settings};

    /// A full disk refused the deletion of a deleted topic's offsets, and nothing tried again: once there was space, a
    /// new topic of that name had them.
    #[test]
    fn offsets_of_deleted_topics_are_deleted_again_until_that_is_written() {
        let mut coordinator = Coordinator::new(Rc::new(Settings::default()));
        let value = OffsetCommit {
            offset: 17,
            leader_epoch: -1,
            metadata: "".into(),
            commit_timestamp_ms: 0,
            expire_timestamp_ms: -1,
            topic_id: uuid::Uuid::from_u128(1),
        };
        let record = Record::OffsetCommit { group: "g".into(), topic: "x".into(), partition: 0, value: Some(value) };
        let (key, value) = (record.key(), record.value());
        coordinator.on_loaded(0);
        let replayed = Replayed { offset: 0, producer: None, key: &key, value: value.as_deref() };
        coordinator.replay(&replayed).unwrap();

        coordinator.handle_topics(&Rc::new(Topics { deletions: 1, ..Topics::default() }));
        let mut deletions = |result: Result<i64, ResponseError>| {
            coordinator.handle_tick(1);
            let writes = coordinator.take_writes();
            for write in &writes {
                assert_eq!(coordinator.on_persisted(1, write.id, result), Verdict::Stands);
            }
            writes.len()
        };
        let full = Err(ResponseError::CoordinatorNotAvailable);
        assert_eq!([deletions(full), deletions(full), deletions(Ok(1)), deletions(Ok(2))], [1, 1, 1, 0]);
    }
}
