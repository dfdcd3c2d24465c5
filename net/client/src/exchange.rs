//! One pipelined connection without its socket: requests to bytes, bytes to answers, within bounds. Pure.
//!
//! For clients that must not block. The shell moves bytes: what [`Exchange::unsent`] shows goes to the socket, and
//! [`Exchange::handle_sent`] says how much of it did; what the socket yields is appended to [`Exchange::received`], and
//! [`Exchange::next_answer`] is called until there is none. After an error nothing of it makes sense any more: the shell
//! closes the socket and gives up what is open.

use std::mem;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::protocol::{Request, StrBytes};

use crate::{
    frame::{self, ProtocolError},
    in_flight::InFlight,
};

/// What one connection may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeLimits {
    /// Requests without an answer.
    pub in_flight_max: usize,
    /// Bytes of requests without an answer.
    pub request_bytes_max: usize,
    /// Bytes of one answer.
    pub answer_bytes_max: usize,
}

/// A request that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSent {
    /// As many requests are open as may be, or as many bytes of them.
    Full,
    /// It cannot be encoded.
    Encode(ProtocolError),
}

/// See the module. `T` is what the shell remembers of a request.
#[derive(Debug)]
pub struct Exchange<T> {
    client_id: StrBytes,
    limits: ExchangeLimits,
    /// With the bytes of each.
    in_flight: InFlight<(usize, T)>,
    request_bytes: usize,
    unsent: BytesMut,
    received: BytesMut,
}

impl<T> Exchange<T> {
    /// Of a new connection.
    pub fn new(client_id: StrBytes, limits: ExchangeLimits) -> Self {
        let (unsent, received) = (BytesMut::new(), BytesMut::new());
        Self { client_id, limits, in_flight: InFlight::new(), request_bytes: 0, unsent, received }
    }

    /// Takes a request to be sent behind those before it. One request may be of any size: it must have an empty
    /// connection to itself then.
    pub fn handle_request<R: Request>(&mut self, version: i16, request: &R, remember: T) -> Result<(), NotSent> {
        if self.in_flight.len() >= self.limits.in_flight_max {
            return Err(NotSent::Full);
        }
        let id = self.in_flight.next_id();
        let frame = frame::encode_request(&self.client_id, id, version, request).map_err(NotSent::Encode)?;
        if !self.in_flight.is_empty() && self.request_bytes + frame.len() > self.limits.request_bytes_max {
            return Err(NotSent::Full);
        }
        self.request_bytes += frame.len();
        self.in_flight.sent(id, (frame.len(), remember));
        self.unsent.unsplit(frame);
        Ok(())
    }

    /// Bytes for the socket.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
    }

    /// So many of the unsent bytes went out.
    pub fn handle_sent(&mut self, count: usize) {
        self.unsent.advance(count);
        if self.unsent.is_empty() {
            // An idle connection keeps no memory.
            self.unsent = BytesMut::new();
        }
    }

    /// Where to append what the socket yields.
    pub fn received(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// The next whole answer and what was remembered of its request; the answer begins with the correlation id.
    pub fn next_answer(&mut self) -> Result<Option<(T, Bytes)>, ProtocolError> {
        let Some(answer) = frame::take_frame(&mut self.received, self.limits.answer_bytes_max)? else {
            return Ok(None);
        };
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
        let (bytes, remembered) = self.in_flight.answered(&answer)?;
        self.request_bytes -= bytes;
        Ok(Some((remembered, answer)))
    }

    /// Number of requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The connection is over: what was remembered of the open requests.
    pub fn give_up(&mut self) -> Vec<T> {
        (self.unsent, self.received, self.request_bytes) = (BytesMut::new(), BytesMut::new(), 0);
        mem::take(&mut self.in_flight).give_up().map(|(_, remembered)| remembered).collect()
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{HeartbeatRequest, MetadataRequest};

    use super::*;

    const LIMITS: ExchangeLimits = ExchangeLimits { in_flight_max: 3, request_bytes_max: 100, answer_bytes_max: 50 };

    fn exchange() -> Exchange<char> {
        Exchange::new(StrBytes::from_static_str("test"), LIMITS)
    }

    fn ask(exchange: &mut Exchange<char>, remember: char) -> Result<(), NotSent> {
        exchange.handle_request(12, &MetadataRequest::default(), remember)
    }

    fn answer(correlation_id: i32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&length.to_be_bytes()[..], &correlation_id.to_be_bytes(), body].concat()
    }

    #[test]
    fn requests_leave_and_are_answered_in_order_however_bytes_come() {
        let mut exchange = exchange();
        for request in ['a', 'b', 'c'] {
            ask(&mut exchange, request).unwrap();
        }
        let frame_bytes = exchange.unsent().len() / 3;
        exchange.handle_sent(frame_bytes + 1);
        assert_eq!(exchange.unsent().len(), 2 * frame_bytes - 1);
        exchange.handle_sent(2 * frame_bytes - 1);
        assert!(exchange.unsent().is_empty());
        let mut found = Vec::new();
        for byte in [answer(1, b"x"), answer(2, b""), answer(3, b"yz")].concat() {
            exchange.received().extend_from_slice(&[byte]);
            while let Some((request, answer)) = exchange.next_answer().unwrap() {
                found.push((request, answer[4..].to_vec()));
            }
        }
        assert_eq!(found, [('a', b"x".to_vec()), ('b', vec![]), ('c', b"yz".to_vec())]);
        assert_eq!((exchange.in_flight(), exchange.request_bytes), (0, 0));
    }

    #[test]
    fn what_is_beyond_the_bounds_is_not_taken_until_an_answer_makes_room() {
        let mut exchange = exchange();
        for request in ['a', 'b', 'c'] {
            ask(&mut exchange, request).unwrap();
        }
        let unsent = exchange.unsent().len();
        assert_eq!(ask(&mut exchange, 'd'), Err(NotSent::Full));
        assert_eq!(exchange.unsent().len(), unsent, "nothing of it is sent");
        exchange.received().extend_from_slice(&answer(1, b""));
        assert_eq!(exchange.next_answer().unwrap().unwrap().0, 'a');
        assert_eq!(ask(&mut exchange, 'd'), Ok(()));
    }

    #[test]
    fn a_large_request_goes_alone() {
        let large = HeartbeatRequest::default().with_group_id(StrBytes::from_string("g".repeat(200)).into());
        let mut exchange = exchange();
        exchange.handle_request(4, &large, 'a').unwrap();
        assert_eq!(ask(&mut exchange, 'b'), Err(NotSent::Full));
        assert_eq!(exchange.give_up(), ['a']);
        assert_eq!(ask(&mut exchange, 'b'), Ok(()));
        assert_eq!(exchange.handle_request(4, &large, 'c'), Err(NotSent::Full));
    }

    #[test]
    fn answers_too_long_or_out_of_order_are_errors() {
        let mut exchange = exchange();
        ask(&mut exchange, 'a').unwrap();
        exchange.received().extend_from_slice(&answer(1, &[0; 50])[..4]);
        assert_eq!(exchange.next_answer(), Err(ProtocolError::TooLong { length: 54, bytes_max: 50 }));
        exchange.received().clear();
        exchange.received().extend_from_slice(&answer(7, b""));
        assert_eq!(exchange.next_answer(), Err(ProtocolError::OutOfOrder { got: 7, wanted: 1 }));
    }
}
