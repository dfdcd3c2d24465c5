//! Bytes on their way out: pieces in order, a cursor, and what the next system call shall send.
//!
//! Owned by one connection's writer. Nothing is copied while the peer keeps up: slices of memory are gathered, ranges of
//! files are named.

use std::{collections::VecDeque, io::IoSlice};

use millrace_engine::api::{Chunk, FileRange};

use crate::wire::api::Response;

/// Slices in one call at most. The kernel takes 1024; more than this brings nothing.
const SLICES_MAX: usize = 64;

/// Pieces not yet sent.
#[derive(Default)]
pub(crate) struct OutQueue {
    pieces: VecDeque<Chunk>,
    /// Bytes of the first piece that were sent.
    done: usize,
    /// Bytes not yet sent.
    bytes: usize,
}

/// What to send next.
pub(crate) enum Next<'a> {
    /// Nothing is left.
    Nothing,
    /// Slices of memory.
    Slices(Vec<IoSlice<'a>>),
    /// A range of a file, of which that many bytes were sent.
    File(&'a FileRange, usize),
}

impl OutQueue {
    /// Bytes not yet sent.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a response.
    pub(crate) fn push(&mut self, response: Response) {
        for piece in response.into_pieces() {
            if !piece.is_empty() {
                self.bytes += piece.len();
                self.pieces.push_back(piece);
            }
        }
    }

    /// The peer does not keep up: small slices let go of the large memory that they are of.
    pub(crate) fn detach(&mut self) {
        self.pieces.iter_mut().for_each(Chunk::detach);
    }

    /// What to send next.
    pub(crate) fn next(&self) -> Next<'_> {
        match self.pieces.front() {
            None => Next::Nothing,
            Some(Chunk::File(range)) => Next::File(range, self.done),
            Some(_) => {
                let mut slices: Vec<_> =
                    self.pieces.iter().map_while(Chunk::as_slice).take(SLICES_MAX).map(IoSlice::new).collect();
                slices[0].advance(self.done);
                Next::Slices(slices)
            }
        }
    }

    /// That many bytes were sent.
    pub(crate) fn on_sent(&mut self, mut count: usize) {
        self.bytes -= count;
        while count > 0 {
            let front = self.pieces.front().expect("no more is sent than there is");
            let left = front.len() - self.done;
            if count < left {
                self.done += count;
                return;
            }
            count -= left;
            self.done = 0;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use bytes::Bytes;

    use super::*;

    fn memory(text: &'static str) -> Chunk {
        Chunk::Bytes(Bytes::from_static(text.as_bytes()))
    }

    fn file(len: usize) -> Chunk {
        let file = Rc::new(std::fs::File::open("/dev/null").expect("a file"));
        Chunk::File(FileRange { file, position: 0, len })
    }

    fn drain(queue: &mut OutQueue, step: usize) -> String {
        let mut sent = String::new();
        loop {
            let count = match queue.next() {
                Next::Nothing => return sent,
                Next::Slices(slices) => {
                    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).take(step).collect();
                    sent.push_str(std::str::from_utf8(&bytes).expect("text"));
                    bytes.len()
                }
                Next::File(range, done) => {
                    let count = step.min(range.len - done);
                    sent.push_str(&"f".repeat(count));
                    count
                }
            };
            queue.on_sent(count);
        }
    }

    #[test]
    fn pieces_leave_in_order_however_they_are_cut() {
        for step in 1..20 {
            let mut queue = OutQueue::default();
            queue.push(Response::new(vec![memory("head"), memory(""), file(5), memory("tail"), file(0)], vec![]));
            queue.push(Response::new(vec![memory("next")], vec![]));
            assert_eq!(queue.bytes(), 17);
            assert_eq!(drain(&mut queue, step), "headffffftailnext", "step {step}");
            assert_eq!(queue.bytes(), 0);
        }
    }
}
