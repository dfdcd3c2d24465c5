//! The two ends of a connection's payload: what a leader has sent and may still send, and what a follower received and has not
//! confirmed yet. Both are bounded by credits: bytes of payload, counted from the connection's start, so that a lost count cannot
//! happen without the connection.

use std::collections::VecDeque;

use millrace_engine::{api::TopicPartition, config::Durability};

/// Bytes of payload that a connection may have under way.
pub const WINDOW_BYTES: u64 = 16 << 20;
/// Bytes of payload that all connections of a shard may have under way, in each direction.
pub const SHARD_WINDOW_BYTES: u64 = 64 << 20;
/// Window of a connection at least, however many there are.
pub const WINDOW_BYTES_MIN: u64 = 1 << 20;

const _: () = assert!(WINDOW_BYTES <= SHARD_WINDOW_BYTES && WINDOW_BYTES_MIN <= WINDOW_BYTES);

/// One partition's run within a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The partition.
    pub(crate) partition: TopicPartition,
    /// Of which attempt.
    pub(crate) attachment: u32,
    /// Where the log ends with it.
    pub(crate) end: i64,
    /// What a confirmation means.
    pub(crate) durability: Durability,
}

/// A frame on its way.
#[derive(Clone, Debug)]
struct Unconfirmed {
    sequence: u64,
    bytes: u64,
    parts: Vec<Part>,
}

/// A leader's end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbound {
    last_sequence: u64,
    unconfirmed: VecDeque<Unconfirmed>,
    /// Payload sent in all.
    sent_bytes: u64,
    /// Payload that may be sent in all.
    credit_bytes: u64,
    /// Payload of live frames that is not confirmed.
    under_way_bytes: u64,
}

impl Outbound {
    /// Whether another frame may be sent. One frame may overdraw.
    pub(crate) fn has_credit(&self) -> bool {
        self.sent_bytes < self.credit_bytes
    }

    /// Payload that may still be sent.
    pub(crate) fn credit_left(&self) -> u64 {
        self.credit_bytes.saturating_sub(self.sent_bytes)
    }

    /// Whether so much is free that it is worth while to begin.
    pub(crate) fn is_roomy(&self) -> bool {
        self.credit_left() >= WINDOW_BYTES_MIN / 2
    }

    /// Takes a grant.
    pub(crate) fn grant(&mut self, credit_bytes: u64) {
        self.credit_bytes = self.credit_bytes.max(credit_bytes);
    }

    /// Payload of live frames that is not confirmed.
    pub(crate) fn under_way_bytes(&self) -> u64 {
        self.under_way_bytes
    }

    /// Notes a live frame and gives its number.
    pub(crate) fn note_live(&mut self, bytes: u64, parts: Vec<Part>) -> u64 {
        self.last_sequence += 1;
        self.sent_bytes += bytes;
        self.under_way_bytes += bytes;
        self.unconfirmed.push_back(Unconfirmed { sequence: self.last_sequence, bytes, parts });
        self.last_sequence
    }

    /// Notes a chunk.
    pub(crate) fn note_chunk(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
    }

    /// Takes a confirmation: the parts of all frames up to that one. None if no such frame was sent.
    pub(crate) fn confirm(&mut self, sequence: u64) -> Option<Vec<Part>> {
        if sequence > self.last_sequence {
            return None;
        }
        let mut parts = Vec::new();
        while self.unconfirmed.front().is_some_and(|frame| frame.sequence <= sequence) {
            let frame = self.unconfirmed.pop_front()?;
            self.under_way_bytes -= frame.bytes;
            parts.extend(frame.parts);
        }
        Some(parts)
    }
}

/// A follower's end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbound {
    received: VecDeque<Unconfirmed>,
    last_sequence: u64,
    /// Payload of frames that are done with.
    done_bytes: u64,
    granted_bytes: u64,
}

impl Inbound {
    /// Takes a live frame. False if it is not the next one.
    pub(crate) fn receive(&mut self, sequence: u64, bytes: u64, parts: Vec<Part>) -> bool {
        let is_next = sequence == self.last_sequence + 1;
        if is_next {
            self.last_sequence = sequence;
            self.received.push_back(Unconfirmed { sequence, bytes, parts });
        }
        is_next
    }

    /// Takes a chunk.
    pub(crate) fn receive_chunk(&mut self, bytes: u64, part: Part) {
        self.last_sequence += 1;
        self.received.push_back(Unconfirmed { sequence: self.last_sequence, bytes, parts: vec![part] });
    }

    /// Lets go of all frames whose parts are done with, in order. The number of the last one, if there was any.
    pub(crate) fn settle(&mut self, mut is_done: impl FnMut(&Part) -> bool) -> Option<u64> {
        let mut last = None;
        while let Some(frame) = self.received.front_mut() {
            frame.parts.retain(|part| !is_done(part));
            if !frame.parts.is_empty() {
                break;
            }
            last = Some(frame.sequence);
            self.done_bytes += frame.bytes;
            self.received.pop_front();
        }
        last
    }

    /// What may be sent in all within a window, if that is worth telling.
    pub(crate) fn next_grant(&mut self, window_bytes: u64) -> Option<u64> {
        let grant = self.done_bytes + window_bytes;
        let is_worth = grant >= self.granted_bytes + (window_bytes / 4).max(1);
        is_worth.then(|| {
            self.granted_bytes = grant;
            grant
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn part(end: i64) -> Part {
        let partition = TopicPartition { topic: Uuid::from_u128(1), partition: 0 };
        Part { partition, attachment: 1, end, durability: Durability::Device }
    }

    #[test]
    fn confirmation_is_cumulative() {
        let mut outbound = Outbound::default();
        let sequences: Vec<u64> = (1..4).map(|end| outbound.note_live(10, vec![part(end)])).collect();
        assert_eq!(sequences, [1, 2, 3]);
        let ends: Vec<i64> = outbound.confirm(2).unwrap().iter().map(|part| part.end).collect();
        assert_eq!((ends, outbound.under_way_bytes()), (vec![1, 2], 10));
        assert_eq!(outbound.confirm(2), Some(Vec::new()));
        assert_eq!(outbound.confirm(4), None);
    }

    #[test]
    fn one_frame_may_overdraw() {
        let mut outbound = Outbound::default();
        assert!(!outbound.has_credit());
        outbound.grant(100);
        outbound.grant(50);
        outbound.note_live(99, Vec::new());
        assert!(outbound.has_credit());
        outbound.note_chunk(5_000);
        assert!(!outbound.has_credit());
    }

    #[test]
    fn frames_are_let_go_in_order() {
        let mut inbound = Inbound::default();
        assert!(inbound.receive(1, 10, vec![part(1), part(2)]));
        assert!(inbound.receive(2, 10, vec![part(3)]));
        assert!(!inbound.receive(4, 10, Vec::new()));
        assert_eq!(inbound.settle(|part| part.end != 2), None);
        assert_eq!(inbound.next_grant(16), Some(16));
        assert_eq!(inbound.settle(|_| true), Some(2));
        assert_eq!(inbound.next_grant(16), Some(36));
        assert_eq!(inbound.next_grant(16), None);
    }
}
