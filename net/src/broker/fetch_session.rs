//! Incremental fetch sessions (KIP-227): what a client fetches, so that it need not say so again, and what it was told,
//! so that it is told only what changed.
//!
//! Owned by one shard. Plain data: time is counted in ticks of a second. Always true: no more sessions and no more
//! partitions are kept than configured; session ids differ between shards of one node, so that a client that comes back
//! to another shard is asked to start anew instead of meeting somebody else's session.

use std::collections::{BTreeMap, HashMap};

use kafka_protocol::{ResponseError, protocol::StrBytes};
use uuid::Uuid;

/// How a client names a topic: by id from version 13 on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum TopicKey {
    Name(StrBytes),
    Id(Uuid),
}

/// A partition as a client names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PartitionKey {
    pub(crate) topic: TopicKey,
    pub(crate) index: i32,
}

/// What a client wants of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) key: PartitionKey,
    pub(crate) offset: i64,
    pub(crate) max_bytes: i32,
    pub(crate) leader_epoch: i32,
    /// Epoch of the last record that the client has, -1 if it does not say.
    pub(crate) last_fetched_epoch: i32,
}

/// The session part of a fetch request.
#[derive(Debug)]
pub(crate) struct SessionRequest {
    pub(crate) id: i32,
    pub(crate) epoch: i32,
    pub(crate) uses_ids: bool,
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) forgotten: Vec<PartitionKey>,
}

/// A fetch that was begun: pass it to [`FetchSessions::finish`] with the answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BegunFetch {
    /// The session's id for the response; 0 for none.
    pub(crate) session_id: i32,
    /// Only what changed is told.
    is_incremental: bool,
    /// What to fetch, in the order of preference.
    pub(crate) wanted: Vec<Wanted>,
}

/// What a partition's answer says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) is_error: bool,
    pub(crate) has_records: bool,
    /// It says something else that the client must know.
    pub(crate) has_hints: bool,
    pub(crate) high_watermark: i64,
    pub(crate) log_start_offset: i64,
}

/// All sessions of one shard. For each request call [`FetchSessions::begin`] when it is read and
/// [`FetchSessions::finish`] when it is answered.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    sessions: HashMap<i32, FetchSession>,
    sessions_max: usize,
    partitions: usize,
    next_id: i32,
    id_step: i32,
    tick: u64,
}

/// What is known of a client's fetches.
#[derive(Debug)]
pub(crate) struct FetchSession {
    /// Epoch of the next request.
    epoch: i32,
    uses_ids: bool,
    created: u64,
    used: u64,
    /// Partitions in the order of preference: whoever got records goes to the end.
    order: BTreeMap<u64, PartitionKey>,
    partitions: HashMap<PartitionKey, Cached>,
    next_sequence: u64,
}

#[derive(Debug)]
struct Cached {
    sequence: u64,
    wanted: Wanted,
    /// What the client was last told; -1 for nothing.
    high_watermark: i64,
    log_start_offset: i64,
}

/// Partitions of all sessions of a shard at most.
const PARTITIONS_MAX: usize = 1_000_000;
/// Ticks without use after which a session may make room for another.
const EVICTION_TICKS: u64 = 120;
/// Request epochs: a new session, and no session.
const EPOCH_INITIAL: i32 = 0;
const EPOCH_FINAL: i32 = -1;

impl FetchSessions {
    /// No sessions, and `sessions_max` at most. `seed` is any number; it keeps ids of former runs from coming back.
    pub(crate) fn new(sessions_max: usize, shard: usize, shards: usize, seed: u32) -> FetchSessions {
        let id_step = i32::try_from(shards.max(1)).expect("a node has few shards");
        let shard = i32::try_from(shard).expect("a node has few shards");
        let start = i32::try_from(seed % (i32::MAX.cast_unsigned() / 2)).expect("half the range");
        let next_id = start / id_step * id_step + shard + id_step;
        FetchSessions { sessions: HashMap::new(), sessions_max, partitions: 0, next_id, id_step, tick: 0 }
    }

    /// A second has gone by.
    pub(crate) fn on_tick(&mut self) {
        self.tick += 1;
    }

    /// A request was read.
    pub(crate) fn begin(&mut self, request: SessionRequest) -> Result<BegunFetch, ResponseError> {
        if request.epoch == EPOCH_INITIAL || request.epoch == EPOCH_FINAL {
            self.remove(request.id);
            let session_id = if request.epoch == EPOCH_INITIAL { self.create(&request) } else { 0 };
            return Ok(BegunFetch { session_id, is_incremental: false, wanted: request.wanted });
        }
        let session = self.sessions.get_mut(&request.id).ok_or(ResponseError::FetchSessionIdNotFound)?;
        if session.epoch != request.epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        if session.uses_ids != request.uses_ids {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        let before = session.partitions.len();
        session.update(request.wanted, request.forgotten);
        session.epoch = next_epoch(session.epoch);
        session.used = self.tick;
        self.partitions = self.partitions - before + session.partitions.len();
        let wanted = session.order.values().map(|key| session.partitions[key].wanted.clone()).collect();
        if session.partitions.is_empty() {
            self.remove(request.id);
            return Ok(BegunFetch { session_id: 0, is_incremental: false, wanted });
        }
        if self.partitions > PARTITIONS_MAX {
            self.remove(request.id);
            return Err(ResponseError::FetchSessionIdNotFound);
        }
        Ok(BegunFetch { session_id: request.id, is_incremental: true, wanted })
    }

    /// A request is being answered, one outcome per wanted partition: which of them the response shall hold.
    pub(crate) fn finish(&mut self, begun: &BegunFetch, outcomes: &[Outcome]) -> Vec<bool> {
        let Some(session) = self.sessions.get_mut(&begun.session_id) else {
            return vec![true; outcomes.len()];
        };
        let changes = begun.wanted.iter().zip(outcomes);
        changes.map(|(wanted, outcome)| session.on_outcome(&wanted.key, outcome) || !begun.is_incremental).collect()
    }

    /// Makes a session for a request; 0 if there is no room.
    fn create(&mut self, request: &SessionRequest) -> i32 {
        let size = request.wanted.len();
        if size == 0 || self.partitions + size > PARTITIONS_MAX || !self.make_room(size) {
            return 0;
        }
        let id = self.take_id();
        let mut session = FetchSession {
            epoch: next_epoch(EPOCH_INITIAL),
            uses_ids: request.uses_ids,
            created: self.tick,
            used: self.tick,
            order: BTreeMap::new(),
            partitions: HashMap::new(),
            next_sequence: 0,
        };
        session.update(request.wanted.clone(), Vec::new());
        self.partitions += session.partitions.len();
        self.sessions.insert(id, session);
        id
    }

    /// Makes room for one session of `size` partitions, if need be by giving up one that is not used, or a smaller one
    /// that has had its time.
    fn make_room(&mut self, size: usize) -> bool {
        if self.sessions.len() < self.sessions_max {
            return true;
        }
        let now = self.tick;
        let is_unused = |session: &FetchSession| now - session.used > EVICTION_TICKS;
        let is_smaller =
            |session: &FetchSession| session.partitions.len() < size && now - session.created > EVICTION_TICKS;
        let unused = self.sessions.iter().filter(|(_, session)| is_unused(session));
        let smaller = self.sessions.iter().filter(|(_, session)| is_smaller(session));
        let victim = unused
            .min_by_key(|(_, session)| session.used)
            .or_else(|| smaller.min_by_key(|(_, session)| session.partitions.len()))
            .map(|(id, _)| *id);
        match victim {
            Some(id) => {
                self.remove(id);
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, id: i32) {
        self.take(id);
    }

    /// Takes a session out, for another shard. `None`: there is none of that id.
    pub(crate) fn take(&mut self, id: i32) -> Option<FetchSession> {
        let session = self.sessions.remove(&id)?;
        self.partitions -= session.partitions.len();
        Some(session)
    }

    /// Takes over a session of another shard, if there is room for it: otherwise the client will be asked to start anew.
    pub(crate) fn adopt(&mut self, id: i32, session: FetchSession) {
        let size = session.partitions.len();
        let is_free = !self.sessions.contains_key(&id) && self.partitions + size <= PARTITIONS_MAX;
        if is_free && self.make_room(size) {
            self.partitions += size;
            // ticks are counted by each shard
            self.sessions.insert(id, FetchSession { created: self.tick, used: self.tick, ..session });
        }
    }

    fn take_id(&mut self) -> i32 {
        loop {
            let id = self.next_id;
            self.next_id = match id.checked_add(self.id_step) {
                Some(next) => next,
                // Not zero, which means no session, and of this shard's residue.
                None => id % self.id_step + self.id_step,
            };
            if !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }
}

impl FetchSession {
    fn update(&mut self, wanted: Vec<Wanted>, forgotten: Vec<PartitionKey>) {
        for wanted in wanted {
            if let Some(cached) = self.partitions.get_mut(&wanted.key) {
                cached.wanted = Wanted { key: cached.wanted.key.clone(), ..wanted };
                continue;
            }
            let wanted = Wanted { key: own(wanted.key), ..wanted };
            let sequence = self.take_sequence();
            self.order.insert(sequence, wanted.key.clone());
            let key = wanted.key.clone();
            self.partitions.insert(key, Cached { sequence, wanted, high_watermark: -1, log_start_offset: -1 });
        }
        for key in forgotten {
            if let Some(cached) = self.partitions.remove(&key) {
                self.order.remove(&cached.sequence);
            }
        }
    }

    /// Whether the client must be told.
    fn on_outcome(&mut self, key: &PartitionKey, outcome: &Outcome) -> bool {
        let next_sequence = self.next_sequence;
        let Some(cached) = self.partitions.get_mut(key) else {
            // Forgotten by a later request; this one asked for it.
            return true;
        };
        let is_changed =
            outcome.high_watermark != cached.high_watermark || outcome.log_start_offset != cached.log_start_offset;
        // After an error the next success is news.
        cached.high_watermark = if outcome.is_error { -1 } else { outcome.high_watermark };
        cached.log_start_offset = outcome.log_start_offset;
        if outcome.has_records {
            self.order.remove(&cached.sequence);
            cached.sequence = next_sequence;
            self.order.insert(next_sequence, key.clone());
            self.next_sequence += 1;
        }
        outcome.is_error || outcome.has_records || outcome.has_hints || is_changed
    }

    fn take_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence - 1
    }
}

/// A key that does not keep the request's buffer alive.
fn own(key: PartitionKey) -> PartitionKey {
    match key.topic {
        TopicKey::Name(name) => PartitionKey { topic: TopicKey::Name(StrBytes::from_string(name.to_string())), ..key },
        TopicKey::Id(_) => key,
    }
}

fn next_epoch(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: i32) -> PartitionKey {
        PartitionKey { topic: TopicKey::Name(StrBytes::from_static_str("topic")), index }
    }

    fn wanted(index: i32, offset: i64) -> Wanted {
        Wanted { key: key(index), offset, max_bytes: 1024, leader_epoch: -1, last_fetched_epoch: -1 }
    }

    fn request(id: i32, epoch: i32, wanted: Vec<Wanted>) -> SessionRequest {
        SessionRequest { id, epoch, uses_ids: false, wanted, forgotten: vec![] }
    }

    fn outcome(high_watermark: i64, has_records: bool) -> Outcome {
        Outcome { is_error: false, has_records, has_hints: false, high_watermark, log_start_offset: 0 }
    }

    fn sessions(max: usize) -> FetchSessions {
        FetchSessions::new(max, 1, 3, 12_345)
    }

    fn indexes(begun: &BegunFetch) -> Vec<i32> {
        begun.wanted.iter().map(|wanted| wanted.key.index).collect()
    }

    #[test]
    fn only_changes_are_told() {
        let mut sessions = sessions(10);
        let full = sessions.begin(request(0, 0, vec![wanted(0, 0), wanted(1, 0)])).expect("a session");
        assert_ne!(full.session_id, 0);
        let quiet = [outcome(5, false), outcome(7, false)];
        assert_eq!(sessions.finish(&full, &quiet), [true, true], "a full fetch tells everything");

        let second = sessions.begin(request(full.session_id, 1, vec![])).expect("a session");
        assert_eq!(indexes(&second), [0, 1]);
        assert_eq!(sessions.finish(&second, &quiet), [false, false]);

        let third = sessions.begin(request(full.session_id, 2, vec![wanted(1, 9)])).expect("a session");
        assert_eq!(third.wanted[1].offset, 9);
        assert_eq!(sessions.finish(&third, &[outcome(5, true), outcome(8, false)]), [true, true]);

        let fourth = sessions.begin(request(full.session_id, 3, vec![])).expect("a session");
        assert_eq!(indexes(&fourth), [1, 0], "who got records goes to the end");
    }

    #[test]
    fn success_after_an_error_is_told() {
        let mut sessions = sessions(10);
        let full = sessions.begin(request(0, 0, vec![wanted(0, 0)])).expect("a session");
        sessions.finish(&full, &[outcome(5, false)]);
        let error =
            Outcome { is_error: true, has_records: false, has_hints: false, high_watermark: -1, log_start_offset: -1 };
        let second = sessions.begin(request(full.session_id, 1, vec![])).expect("a session");
        assert_eq!(sessions.finish(&second, &[error]), [true]);
        let third = sessions.begin(request(full.session_id, 2, vec![])).expect("a session");
        assert_eq!(sessions.finish(&third, &[outcome(5, false)]), [true]);
    }

    #[test]
    fn wrong_ids_and_epochs_are_refused() {
        let mut sessions = sessions(10);
        let begun = sessions.begin(request(0, 0, vec![wanted(0, 0)])).expect("a session");
        let refused = |sessions: &mut FetchSessions, request| sessions.begin(request).expect_err("refused");
        assert_eq!(
            refused(&mut sessions, request(begun.session_id + 1, 1, vec![])),
            ResponseError::FetchSessionIdNotFound
        );
        assert_eq!(
            refused(&mut sessions, request(begun.session_id, 2, vec![])),
            ResponseError::InvalidFetchSessionEpoch
        );
        let by_id = SessionRequest { uses_ids: true, ..request(begun.session_id, 1, vec![]) };
        assert_eq!(refused(&mut sessions, by_id), ResponseError::FetchSessionTopicIdError);
        assert!(sessions.begin(request(begun.session_id, 1, vec![])).is_ok(), "a refusal changes nothing");
    }

    #[test]
    fn forgotten_partitions_are_fetched_no_more() {
        let mut sessions = sessions(10);
        let begun = sessions.begin(request(0, 0, vec![wanted(0, 0), wanted(1, 0)])).expect("a session");
        let forget = SessionRequest { forgotten: vec![key(0)], ..request(begun.session_id, 1, vec![]) };
        assert_eq!(indexes(&sessions.begin(forget).expect("a session")), [1]);
        let forget = SessionRequest { forgotten: vec![key(1)], ..request(begun.session_id, 2, vec![]) };
        assert_eq!(sessions.begin(forget).expect("no session").session_id, 0);
        assert!(sessions.sessions.is_empty() && sessions.partitions == 0, "a session without partitions ends");
    }

    #[test]
    fn final_epoch_ends_a_session() {
        let mut sessions = sessions(10);
        let begun = sessions.begin(request(0, 0, vec![wanted(0, 0)])).expect("a session");
        let last = sessions.begin(request(begun.session_id, -1, vec![wanted(0, 0)])).expect("no session");
        assert_eq!((last.session_id, sessions.sessions.len()), (0, 0));
    }

    #[test]
    fn a_full_cache_gives_up_unused_sessions_only() {
        let mut sessions = sessions(1);
        let first = sessions.begin(request(0, 0, vec![wanted(0, 0)])).expect("a session");
        let second = sessions.begin(request(0, 0, vec![wanted(0, 0), wanted(1, 0)])).expect("no session");
        assert_eq!(second.session_id, 0, "the first is in use");
        assert_eq!(sessions.finish(&second, &[outcome(5, false); 2]), [true, true]);
        for _ in 0..=EVICTION_TICKS {
            sessions.on_tick();
        }
        sessions.begin(request(first.session_id, 1, vec![])).expect("still there");
        let third = sessions.begin(request(0, 0, vec![wanted(0, 0)])).expect("no session");
        assert_eq!(third.session_id, 0, "not smaller");
        let third = sessions.begin(request(0, 0, vec![wanted(0, 0), wanted(1, 0)])).expect("a session");
        assert_ne!(third.session_id, 0, "a smaller one that had its time makes room");
        assert!(!sessions.sessions.contains_key(&first.session_id));
    }

    #[test]
    fn ids_differ_between_shards_and_are_never_zero() {
        let mut shards: Vec<_> = (0..3).map(|shard| FetchSessions::new(10, shard, 3, u32::MAX)).collect();
        for (shard, sessions) in shards.iter_mut().enumerate() {
            for _ in 0..5 {
                let id = sessions.take_id();
                assert!(id > 0 && usize::try_from(id).expect("positive") % 3 == shard);
            }
            let residue = i32::try_from(shard).expect("small");
            sessions.next_id = i32::MAX - (i32::MAX - residue) % 3;
            for _ in 0..3 {
                let id = sessions.take_id();
                assert!(id > 0 && usize::try_from(id).expect("positive") % 3 == shard);
            }
        }
    }
}
