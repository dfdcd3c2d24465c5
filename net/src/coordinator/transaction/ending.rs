//! How a transaction comes to its end, from the decision until every partition knows, and how one goes on that was ending
//! when a former coordinator of the id went.

use std::rc::Rc;

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    transactions::{Decided, Marker, Outcome},
};

use super::{
    coordinator::{COMPLETION_DELAY_MS, Coordinator, Entry, HOLD_MAX_MS, MARKER_RETRY_MS, Stage, Then, UnderWay},
    metadata::{EPOCH_BUMP_VERSION, Ending, Metadata, NO_PRODUCER, PartitionName, is_exhausted},
    request::{Errand, Marked, Marking, Place, ProducerTicket, Questioner},
    rule::Rule,
    state::State,
};

/// Partitions of a transaction, by where they are.
struct Places {
    /// On this shard, or gone: they need no marker but those that go with the decision.
    here: Vec<PartitionName>,
    markers: Vec<Marker>,
    elsewhere: Vec<(PartitionName, Marker)>,
}

impl Coordinator {
    /// Begins the end of a transaction; gives the ticket back if it needs a producer id first.
    pub(super) fn begin_end(
        &mut self,
        now_ms: i64,
        id: &Rc<str>,
        ending: Ending,
        client: Option<ProducerTicket>,
    ) -> Result<(), Option<ProducerTicket>> {
        let Some(entry) = self.entries.get(id) else { return Ok(()) };
        let next_producer_id = match entry.metadata.needs_producer_id(ending) {
            true => match self.spare_producer_ids.pop() {
                Some(next) => Some(next),
                None => return Err(client),
            },
            false => None,
        };
        let prepared = entry.metadata.prepare(ending, next_producer_id, now_ms);
        let complete = prepared.complete(now_ms);
        let answer = if prepared.client_version >= 2 { complete.producer() } else { NO_PRODUCER };
        let Places { here, markers, elsewhere } = self.places(&prepared);
        if elsewhere.is_empty() {
            let write = self.step(id, complete, markers, Then::Ended(Rc::clone(id)));
            let stage = Stage::Group(Rc::new(prepared));
            self.set_under_way(id, UnderWay { stage, only_where_open: false, client: None });
            if let Some(ticket) = client {
                self.effects.reply_after(Some(write), ticket, Ok(answer));
            }
            return Ok(());
        }
        let stage = match self.may_commit_together(id, ending) {
            true => {
                self.send(id, &prepared, elsewhere, false);
                Stage::Together { here, are_sent: true }
            }
            false => Stage::Prepare(here),
        };
        self.step(id, prepared, markers, Then::Prepared(Rc::clone(id)));
        let client = client.map(|ticket| (ticket, answer, now_ms));
        self.set_under_way(id, UnderWay { stage, only_where_open: false, client });
        self.look_at(id, now_ms.saturating_add(HOLD_MAX_MS));
        Ok(())
    }

    /// Whether markers may be written before it is known that the decision is: what the transaction includes must be on
    /// stable storage, so that a coordinator that finds it ongoing asks all of its partitions, and their epoch must be of
    /// this transaction alone.
    fn may_commit_together(&self, id: &Rc<str>, ending: Ending) -> bool {
        let is_known = |entry: &Entry| {
            let is_durable = !self.effects.is_pending(entry.last_write) || self.rules.is_off(Rule::AddsFirst);
            is_durable && !is_exhausted(entry.metadata.epoch)
        };
        let is_commit = matches!(ending, Ending::Client(Outcome::Commit, version) if version >= EPOCH_BUMP_VERSION);
        let has_epoch = self.rules.is_off(Rule::CommitsOnly) && ending.version() >= EPOCH_BUMP_VERSION;
        (is_commit || has_epoch)
            && self.surroundings.may_ask_for_markers()
            && self.entries.get(id).is_some_and(is_known)
    }

    fn places(&self, prepared: &Metadata) -> Places {
        let mut places = Places { here: Vec::new(), markers: Vec::new(), elsewhere: Vec::new() };
        for name in &prepared.partitions {
            match self.surroundings.place(name) {
                Place::Gone => places.here.push(name.clone()),
                Place::Here(partition) => {
                    places.here.push(name.clone());
                    places.markers.extend(self.marker(prepared, partition));
                }
                Place::Elsewhere(partition) => {
                    places.elsewhere.extend(self.marker(prepared, partition).map(|marker| (name.clone(), marker)));
                }
            }
        }
        places
    }

    fn set_under_way(&mut self, id: &Rc<str>, under_way: UnderWay) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.under_way = Some(under_way);
        }
    }

    fn set_stage(&mut self, id: &Rc<str>, stage: Stage) {
        if let Some(under_way) = self.entries.get_mut(id).and_then(|entry| entry.under_way.as_mut()) {
            under_way.stage = stage;
        }
    }

    /// The marker of a transaction whose end is decided.
    fn marker(&self, prepared: &Metadata, partition: TopicPartition) -> Option<Marker> {
        Some(Marker {
            partition,
            producer_id: prepared.producer_id,
            producer_epoch: prepared.epoch,
            coordinator_epoch: self.epoch,
            outcome: prepared.outcome()?,
            transaction_version: prepared.client_version,
            decided: Decided::ByCoordinator,
        })
    }

    fn send(
        &mut self,
        id: &Rc<str>,
        prepared: &Metadata,
        markers: Vec<(PartitionName, Marker)>,
        only_where_open: bool,
    ) {
        let (producer, start_ms) = (prepared.producer(), prepared.start_ms);
        let by = self.questioner.clone();
        self.errands.push(Errand::Mark(Marking {
            id: Rc::clone(id),
            producer,
            start_ms,
            markers,
            only_where_open,
            by,
        }));
    }

    /// Sends markers to all partitions that are not known to have theirs; those of deleted topics need none.
    pub(super) fn mark(&mut self, now_ms: i64, id: &Rc<str>) {
        let Some(Entry { metadata, under_way: Some(under_way), .. }) = self.entries.get(id) else { return };
        let (prepared, only_where_open) = (metadata.clone(), under_way.only_where_open);
        let (mut markers, mut gone) = (Vec::new(), Vec::new());
        for name in &prepared.partitions {
            match self.surroundings.place(name) {
                Place::Gone => gone.push(name.clone()),
                Place::Here(partition) | Place::Elsewhere(partition) => {
                    markers.extend(self.marker(&prepared, partition).map(|marker| (name.clone(), marker)));
                }
            }
        }
        self.note_marked(id, &gone);
        if markers.is_empty() {
            return self.complete(now_ms, id);
        }
        self.set_stage(id, Stage::Markers);
        self.send(id, &prepared, markers, only_where_open);
    }

    /// What became of markers. Partitions that can take none any more need none; others are tried again.
    pub(crate) fn handle_marked(&mut self, now_ms: i64, marking: &Marking, marked: Marked) {
        let Some(entry) = self.entries.get(&marking.id) else { return };
        let is_current = entry.metadata.producer() == marking.producer && entry.metadata.start_ms == marking.start_ms;
        let stage = entry.under_way.as_ref().filter(|_| is_current).map(|under_way| under_way.stage.clone());
        let is_done = |result: &Result<(), ResponseError>| match result {
            Ok(()) => true,
            Err(error) => is_final(*error),
        };
        let done: Vec<_> = marked.into_iter().filter(|(_, result)| is_done(result)).map(|(name, _)| name).collect();
        match stage {
            Some(Stage::Markers) => {
                self.note_marked(&marking.id, &done);
                self.complete_or_retry(now_ms, &marking.id);
            }
            Some(Stage::Together { here, .. }) => {
                self.note_marked(&marking.id, &done);
                self.set_stage(&marking.id, Stage::Together { here, are_sent: false });
            }
            Some(_) | None => {}
        }
    }

    /// The decision is on stable storage.
    pub(super) fn on_prepared(&mut self, now_ms: i64, id: &Rc<str>) {
        if self.rules.is_off(Rule::AnsweredWhenMarked) {
            self.answer_end(id);
        }
        let stage = self.entries.get(id).and_then(|entry| entry.under_way.as_ref()).map(|end| end.stage.clone());
        match stage {
            Some(Stage::Prepare(here)) => {
                self.note_marked(id, &here);
                self.mark(now_ms, id);
            }
            Some(Stage::Together { here, are_sent }) => {
                self.note_marked(id, &here);
                self.set_stage(id, Stage::Markers);
                if !are_sent {
                    self.complete_or_retry(now_ms, id);
                }
            }
            Some(_) | None => {}
        }
    }

    fn complete_or_retry(&mut self, now_ms: i64, id: &Rc<str>) {
        if self.entries.get(id).is_some_and(|entry| entry.metadata.partitions.is_empty()) {
            return self.complete(now_ms, id);
        }
        self.set_stage(id, Stage::Retry);
        self.look_at(id, now_ms.saturating_add(MARKER_RETRY_MS));
    }

    /// Partitions need no marker any more.
    fn note_marked(&mut self, id: &Rc<str>, marked: &[PartitionName]) {
        if marked.is_empty() {
            return;
        }
        let Some(entry) = self.entries.get(id) else { return };
        let mut metadata = entry.metadata.clone();
        marked.iter().for_each(|name| {
            metadata.partitions.remove(name);
        });
        self.put(id, metadata);
    }

    /// Every partition knows of the end, on stable storage.
    fn complete(&mut self, now_ms: i64, id: &Rc<str>) {
        self.answer_end(id);
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.under_way = None;
        let complete = entry.metadata.complete(now_ms);
        self.put(id, complete).unwritten_since_ms = Some(now_ms);
        self.look_at(id, now_ms.saturating_add(COMPLETION_DELAY_MS));
        self.go_on(now_ms, id);
    }

    /// Who asked for the end hears of it, unless it was told that it takes too long.
    fn answer_end(&mut self, id: &Rc<str>) {
        let under_way = self.entries.get_mut(id).and_then(|entry| entry.under_way.as_mut());
        if let Some((ticket, answer, _)) = under_way.and_then(|under_way| under_way.client.take()) {
            self.effects.reply(ticket, Ok(answer));
        }
    }

    /// Writes that a transaction is over everywhere, if that is due and no other record of the id has said so.
    pub(super) fn write_completion(&mut self, now_ms: i64, id: &Rc<str>) {
        let Some(entry) = self.entries.get(id) else { return };
        if entry.unwritten_since_ms.is_some_and(|since_ms| now_ms - since_ms >= COMPLETION_DELAY_MS) {
            let complete = entry.metadata.clone();
            self.step(id, complete, Vec::new(), Then::Stands);
        }
    }

    /// Every transaction whose end was decided goes on from there.
    pub(super) fn end_again(&mut self, now_ms: i64) {
        let is_prepared = |id: &&Rc<str>| self.entries[*id].metadata.state.is_prepared();
        let prepared: Vec<_> = self.entries.keys().filter(is_prepared).cloned().collect();
        for id in prepared {
            self.set_under_way(&id, UnderWay { stage: Stage::Markers, only_where_open: true, client: None });
            self.mark(now_ms, &id);
        }
    }

    /// Has partitions asked of transactions that are ongoing here and may be committed there.
    pub(super) fn ask_for_markers(&mut self) {
        if !self.surroundings.may_ask_for_markers() || self.rules.is_off(Rule::MarkersDecide) {
            return;
        }
        let mut asked = Vec::new();
        for (id, entry) in &self.entries {
            let Metadata { state, client_version, epoch, .. } = entry.metadata;
            if state == State::Ongoing && client_version >= EPOCH_BUMP_VERSION && !is_exhausted(epoch) {
                let prepared = entry.metadata.prepare(Ending::Client(Outcome::Commit, client_version), None, 0);
                let partitions = prepared.partitions.iter().filter_map(|name| self.placed(name));
                let markers = partitions.filter_map(|partition| self.marker(&prepared, partition));
                asked.push((Rc::clone(id), markers.collect()));
            }
        }
        for (id, _) in &asked {
            self.set_under_way(id, UnderWay { stage: Stage::Asking, only_where_open: true, client: None });
        }
        if !asked.is_empty() {
            self.errands.push(Errand::AskForMarkers(self.questioner.clone(), asked));
        }
    }

    /// Partitions were asked: which of those transactions have a marker in one of them.
    pub(crate) fn handle_markers_found(&mut self, now_ms: i64, by: &Questioner, found: Vec<(Rc<str>, bool)>) {
        if *by != self.questioner {
            return;
        }
        for (id, is_committed) in found {
            let stage = self.entries.get(&id).and_then(|entry| entry.under_way.as_ref()).map(|end| &end.stage);
            if stage != Some(&Stage::Asking) {
                continue;
            }
            if is_committed {
                self.commit_again(now_ms, &id);
                continue;
            }
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.under_way = None;
            }
            self.go_on(now_ms, &id);
            self.look_again(now_ms, &id);
        }
    }

    /// Decides once more what markers say was decided.
    fn commit_again(&mut self, now_ms: i64, id: &Rc<str>) {
        let Some(entry) = self.entries.get(id) else { return };
        let ending = Ending::Client(Outcome::Commit, entry.metadata.client_version);
        let prepared = entry.metadata.prepare(ending, None, now_ms);
        self.step(id, prepared, Vec::new(), Then::Prepared(Rc::clone(id)));
        self.set_stage(id, Stage::Prepare(Vec::new()));
        self.look_at(id, now_ms.saturating_add(HOLD_MAX_MS));
    }
}

/// Whether a partition will take no marker of this transaction, however often it comes: it has seen a newer epoch. One in which an
/// older transaction is open takes it once that is found to be nobody's, and is aborted.
fn is_final(error: ResponseError) -> bool {
    matches!(
        error,
        ResponseError::InvalidProducerEpoch
            | ResponseError::TransactionCoordinatorFenced
            | ResponseError::UnsupportedForMessageFormat
            | ResponseError::UnsupportedVersion
    )
}
