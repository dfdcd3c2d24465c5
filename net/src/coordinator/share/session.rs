//! Share sessions: which partitions a member reads from this broker, so that it need not say so in every request.
//!
//! Requests of a session are numbered by its epoch: 0 opens it, -1 closes it, all others must follow one another. A
//! session goes with the connection that opened it.

use std::{collections::HashMap, rc::Rc};

use kafka_protocol::ResponseError;
use millrace_engine::api::TopicPartition;

/// Epoch of the request that opens a session.
pub(crate) const OPEN_EPOCH: i32 = 0;
/// Epoch of the request that closes it.
pub(crate) const CLOSE_EPOCH: i32 = -1;

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    pub(crate) group: Rc<str>,
    pub(crate) member: Rc<str>,
}

/// A connection of the node: its shard and its number there.
pub(crate) type ConnectionId = (usize, u64);

#[derive(Debug)]
struct Session {
    epoch: i32,
    /// In the order in which they were added, each with whether the client has heard of it.
    partitions: Vec<(TopicPartition, bool)>,
    connection: ConnectionId,
}

/// What a fetch within a session is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// Partitions to fetch, each with whether the client is to be told of it though there is nothing new.
    pub(crate) partitions: Vec<(TopicPartition, bool)>,
    /// Partitions of a session that this one took the place of.
    pub(crate) replaced: Vec<TopicPartition>,
}

/// A request to fetch.
#[derive(Debug)]
pub(crate) struct FetchRequest {
    pub(crate) epoch: i32,
    pub(crate) added: Vec<TopicPartition>,
    pub(crate) forgotten: Vec<TopicPartition>,
    pub(crate) has_acknowledgements: bool,
    pub(crate) connection: ConnectionId,
}

/// All sessions of one shard.
#[derive(Debug)]
pub(crate) struct Sessions {
    max: usize,
    sessions: HashMap<SessionKey, Session>,
}

impl Sessions {
    /// No sessions, and never more than `max`.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, sessions: HashMap::new() }
    }

    /// A ShareFetch. One that closes its session fetches nothing; the session goes with [`Sessions::remove`] after its
    /// acknowledgements.
    pub(crate) fn begin_fetch(&mut self, key: &SessionKey, request: FetchRequest) -> Result<Begun, ResponseError> {
        match request.epoch {
            CLOSE_EPOCH if self.sessions.contains_key(key) => {
                Ok(Begun { partitions: Vec::new(), replaced: Vec::new() })
            }
            CLOSE_EPOCH => Err(ResponseError::ShareSessionNotFound),
            OPEN_EPOCH => self.open(key, request),
            epoch => {
                let session = self.current(key, epoch)?;
                for partition in request.added {
                    if session.partitions.iter().all(|(known, _)| *known != partition) {
                        session.partitions.push((partition, false));
                    }
                }
                session.partitions.retain(|(partition, _)| !request.forgotten.contains(partition));
                session.epoch = next(epoch);
                let told = session.partitions.iter_mut();
                let partitions = told.map(|(partition, told)| (*partition, !std::mem::replace(told, true)));
                Ok(Begun { partitions: partitions.collect(), replaced: Vec::new() })
            }
        }
    }

    fn open(&mut self, key: &SessionKey, request: FetchRequest) -> Result<Begun, ResponseError> {
        if request.has_acknowledgements {
            return Err(ResponseError::InvalidRequest);
        }
        let replaced = self.remove(key).unwrap_or_default();
        if self.sessions.len() >= self.max {
            return Err(ResponseError::ShareSessionLimitReached);
        }
        let mut partitions: Vec<(TopicPartition, bool)> = Vec::with_capacity(request.added.len());
        for partition in request.added {
            if partitions.iter().all(|(known, _)| *known != partition) {
                partitions.push((partition, true));
            }
        }
        let begun = Begun { partitions: partitions.clone(), replaced };
        let session = Session { epoch: next(OPEN_EPOCH), partitions, connection: request.connection };
        self.sessions.insert(key.clone(), session);
        Ok(begun)
    }

    fn current(&mut self, key: &SessionKey, epoch: i32) -> Result<&mut Session, ResponseError> {
        let session = self.sessions.get_mut(key).ok_or(ResponseError::ShareSessionNotFound)?;
        if session.epoch == epoch { Ok(session) } else { Err(ResponseError::InvalidShareSessionEpoch) }
    }

    /// A ShareAcknowledge.
    pub(crate) fn begin_acknowledge(&mut self, key: &SessionKey, epoch: i32) -> Result<(), ResponseError> {
        match epoch {
            OPEN_EPOCH => Err(ResponseError::InvalidShareSessionEpoch),
            CLOSE_EPOCH if self.sessions.contains_key(key) => Ok(()),
            CLOSE_EPOCH => Err(ResponseError::ShareSessionNotFound),
            epoch => {
                self.current(key, epoch)?.epoch = next(epoch);
                Ok(())
            }
        }
    }

    /// Ends a session; gives its partitions.
    pub(crate) fn remove(&mut self, key: &SessionKey) -> Option<Vec<TopicPartition>> {
        let session = self.sessions.remove(key)?;
        Some(session.partitions.into_iter().map(|(partition, _)| partition).collect())
    }

    /// A connection was closed: ends a session that it opened, unless another has taken it over.
    pub(crate) fn on_disconnect(&mut self, key: &SessionKey, connection: ConnectionId) -> Option<Vec<TopicPartition>> {
        let is_its = self.sessions.get(key).is_some_and(|session| session.connection == connection);
        if is_its { self.remove(key) } else { None }
    }
}

/// The epoch after another; they begin anew at 1.
fn next(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn partition(index: i32) -> TopicPartition {
        TopicPartition { topic: Uuid::from_u128(1), partition: index }
    }

    fn key() -> SessionKey {
        SessionKey { group: Rc::from("g"), member: Rc::from("m") }
    }

    fn request(epoch: i32, added: &[i32], forgotten: &[i32]) -> FetchRequest {
        let partitions = |indexes: &[i32]| indexes.iter().map(|index| partition(*index)).collect();
        FetchRequest {
            epoch,
            added: partitions(added),
            forgotten: partitions(forgotten),
            has_acknowledgements: false,
            connection: (0, 7),
        }
    }

    fn fetch(sessions: &mut Sessions, request: FetchRequest) -> Result<Vec<(i32, bool)>, ResponseError> {
        let begun = sessions.begin_fetch(&key(), request)?;
        Ok(begun.partitions.into_iter().map(|(partition, tell)| (partition.partition, tell)).collect())
    }

    #[test]
    fn sessions_remember_their_partitions() {
        let mut sessions = Sessions::new(10);
        assert_eq!(fetch(&mut sessions, request(0, &[0, 1], &[])), Ok(vec![(0, true), (1, true)]));
        assert_eq!(fetch(&mut sessions, request(1, &[2], &[0])), Ok(vec![(1, false), (2, true)]));
        assert_eq!(fetch(&mut sessions, request(2, &[], &[])), Ok(vec![(1, false), (2, false)]));
        assert_eq!(fetch(&mut sessions, request(2, &[], &[])), Err(ResponseError::InvalidShareSessionEpoch));
        assert_eq!(sessions.begin_acknowledge(&key(), 3), Ok(()));
        assert_eq!(sessions.begin_acknowledge(&key(), 0), Err(ResponseError::InvalidShareSessionEpoch));
        assert_eq!(fetch(&mut sessions, request(-1, &[], &[])), Ok(vec![]));
        assert_eq!(sessions.remove(&key()), Some(vec![partition(1), partition(2)]));
        assert_eq!(fetch(&mut sessions, request(-1, &[], &[])), Err(ResponseError::ShareSessionNotFound));
        assert_eq!(fetch(&mut sessions, request(4, &[], &[])), Err(ResponseError::ShareSessionNotFound));
    }

    #[test]
    fn sessions_are_limited_and_begin_without_acknowledgements() {
        let mut sessions = Sessions::new(0);
        assert_eq!(fetch(&mut sessions, request(0, &[], &[])), Err(ResponseError::ShareSessionLimitReached));
        let early = FetchRequest { has_acknowledgements: true, ..request(0, &[], &[]) };
        assert_eq!(fetch(&mut sessions, early), Err(ResponseError::InvalidRequest));
    }

    #[test]
    fn a_session_goes_with_the_connection_that_opened_it_last() {
        let mut sessions = Sessions::new(10);
        fetch(&mut sessions, request(0, &[0], &[])).unwrap();
        let again = FetchRequest { connection: (1, 3), ..request(0, &[1], &[]) };
        let begun = sessions.begin_fetch(&key(), again).unwrap();
        assert_eq!(begun.replaced, [partition(0)]);
        assert_eq!(sessions.on_disconnect(&key(), (0, 7)), None);
        assert_eq!(sessions.on_disconnect(&key(), (1, 3)), Some(vec![partition(1)]));
    }
}
