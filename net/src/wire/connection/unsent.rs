//! Which answers are queued and not wholly handed to the socket. Pure.
//!
//! Owned by one connection's writer. An answer has left when all bytes up to its last were sent.

use std::collections::VecDeque;

use crate::wire::counters::Asked;

/// See the module. Call [`Unsent::on_queued`] and [`Unsent::on_sent`], then [`Unsent::next_left`] until it is empty.
#[derive(Default)]
pub(super) struct Unsent {
    /// Bytes queued since the connection began.
    queued: u64,
    /// Bytes of them that were sent.
    sent: u64,
    /// Requests in the order of their answers, each with the last byte of its answer.
    answers: VecDeque<(u64, Asked)>,
}

impl Unsent {
    /// An answer of that many bytes was queued.
    pub(super) fn on_queued(&mut self, bytes: usize, asked: Asked) {
        self.queued += bytes as u64;
        self.answers.push_back((self.queued, asked));
    }

    /// That many bytes were sent.
    pub(super) fn on_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The next request whose answer has left.
    pub(super) fn next_left(&mut self) -> Option<Asked> {
        self.answers.pop_front_if(|(end, _)| *end <= self.sent).map(|(_, asked)| asked)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_answer_leaves_with_its_last_byte() {
        let asked = |api| Asked { api, received: Instant::now() };
        let mut unsent = Unsent::default();
        unsent.on_queued(10, asked(1));
        unsent.on_queued(0, asked(2));
        unsent.on_queued(5, asked(3));
        let mut left = |bytes| {
            unsent.on_sent(bytes);
            std::iter::from_fn(|| unsent.next_left()).map(|asked| asked.api).collect::<Vec<_>>()
        };
        assert_eq!(left(9), [0_usize; 0]);
        assert_eq!(left(2), [1, 2]);
        assert_eq!(left(3), [0_usize; 0]);
        assert_eq!(left(1), [3]);
    }
}
