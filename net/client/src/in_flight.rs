//! Requests that were sent on one connection and are not answered yet. Pure.
//!
//! Kafka answers in the order of the requests of a connection: an answer to any but the oldest is a breach of the
//! protocol, and the connection is closed.

use std::collections::VecDeque;

use crate::frame::{ProtocolError, correlation_id};

/// Unanswered requests, oldest first, each with what its sender wants to remember of it.
///
/// For each request: [`InFlight::next_id`], and [`InFlight::sent`] if it will be answered. For each answer:
/// [`InFlight::answered`].
#[derive(Debug)]
pub struct InFlight<T> {
    last_id: i32,
    requests: VecDeque<(i32, T)>,
}

impl<T> InFlight<T> {
    /// Of a new connection.
    pub const fn new() -> Self {
        Self { last_id: 0, requests: VecDeque::new() }
    }

    /// The correlation id of the next request.
    pub fn next_id(&mut self) -> i32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Remembers a request for its answer.
    pub fn sent(&mut self, correlation_id: i32, request: T) {
        self.requests.push_back((correlation_id, request));
    }

    /// The request that this answer, a frame without its length, is for. After an error all are still open.
    pub fn answered(&mut self, answer: &[u8]) -> Result<T, ProtocolError> {
        let got = correlation_id(answer);
        match self.requests.front() {
            Some((wanted, _)) if *wanted != got => Err(ProtocolError::OutOfOrder { got, wanted: *wanted }),
            _ => self.requests.pop_front().map(|(_, request)| request).ok_or(ProtocolError::Unasked(got)),
        }
    }

    /// Number of requests without an answer.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether everything is answered.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The request that is answered next.
    pub fn oldest(&self) -> Option<&T> {
        self.requests.front().map(|(_, request)| request)
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.requests.iter().map(|(_, request)| request)
    }

    /// Gives all of them up: the connection ends.
    pub fn give_up(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.requests).into_iter().map(|(_, request)| request)
    }
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_find_their_requests_in_order() {
        let mut in_flight = InFlight::new();
        let ids: Vec<i32> = ["a", "b", "c"]
            .into_iter()
            .map(|request| {
                let id = in_flight.next_id();
                in_flight.sent(id, request);
                id
            })
            .collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(in_flight.answered(&ids[0].to_be_bytes()), Ok("a"));
        assert_eq!((in_flight.len(), in_flight.oldest()), (2, Some(&"b")));
        let error = in_flight.answered(&ids[2].to_be_bytes());
        assert_eq!(error, Err(ProtocolError::OutOfOrder { got: 3, wanted: 2 }));
        assert_eq!(in_flight.give_up().collect::<Vec<_>>(), ["b", "c"], "whoever waits hears of the end");
        assert_eq!(in_flight.answered(&ids[2].to_be_bytes()), Err(ProtocolError::Unasked(3)));
    }

    #[test]
    fn a_request_without_an_answer_takes_an_id_and_no_place() {
        let mut in_flight = InFlight::new();
        in_flight.next_id();
        let id = in_flight.next_id();
        in_flight.sent(id, ());
        assert_eq!(in_flight.answered(&id.to_be_bytes()), Ok(()));
        assert!(in_flight.is_empty());
    }

    #[test]
    fn ids_go_around() {
        let mut in_flight = InFlight::<()> { last_id: i32::MAX, requests: VecDeque::new() };
        assert_eq!(in_flight.next_id(), i32::MIN);
    }
}
