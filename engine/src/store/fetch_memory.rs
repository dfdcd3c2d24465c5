//! Memory of records that are on their way to clients: a budget. Whoever fetches asks for all it may take before it reads,
//! keeps as much as it found, and gives it back when the last of it is sent.
//!
//! A fetch holds nothing when it waits, so no two can wait for each other. A fetch gets an eighth of what is left at most:
//! many clients that read slowly make the answers of others smaller before they make them wait. Only a single batch that
//! is larger than what was granted may exceed the budget. Counted is the memory that the answer alone keeps alive. Of
//! what it shares with others, such as the cache, its own bytes are: it may come to keep several times as many alive, but
//! no more than that once its client has stopped reading (`Chunk::detach`).

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use crate::{
    chunk::{Chunk, Memory},
    signal::Signal,
};

/// The least that a fetch is granted.
const GRANT_BYTES_MIN: usize = 64 << 10;

/// See the module.
pub(crate) struct FetchMemory {
    budget: usize,
    used: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Signal>>>,
}

/// A part of the budget; given back on drop.
pub(crate) struct FetchPermit {
    memory: Rc<FetchMemory>,
    bytes: usize,
}

impl FetchMemory {
    pub(crate) fn new(budget: usize) -> Rc<Self> {
        Rc::new(Self { budget, used: Cell::new(0), waiting: RefCell::default() })
    }

    /// Bytes granted and not given back.
    pub(crate) fn used(&self) -> usize {
        self.used.get()
    }

    /// Bytes that there are.
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Waits until there is room; grants as many bytes as wanted or fewer.
    pub(crate) async fn acquire(self: &Rc<Self>, wanted: usize) -> FetchPermit {
        let least = wanted.min(GRANT_BYTES_MIN);
        while self.used.get() > 0 && self.used.get() + least > self.budget {
            let room = Rc::new(Signal::default());
            self.waiting.borrow_mut().push_back(room.clone());
            room.wait().await;
        }
        let left = self.budget.saturating_sub(self.used.get());
        let bytes = wanted.min((left / 8).max(GRANT_BYTES_MIN));
        self.used.set(self.used.get() + bytes);
        FetchPermit { memory: self.clone(), bytes }
    }

    /// Whether fetches wait for others to be sent.
    pub(crate) fn is_contended(&self) -> bool {
        self.waiting.borrow().iter().any(|room| Rc::strong_count(room) > 1) // not of those that gave up
    }

    fn give_back(&self, bytes: usize) {
        self.used.set(self.used.get() - bytes);
        if bytes > 0 {
            self.waiting.take().into_iter().for_each(|room| room.notify());
        }
    }
}

impl FetchPermit {
    /// Bytes granted.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps what the pieces take in memory, until the last of them is dropped.
    pub(crate) fn cover<'a>(mut self, pieces: impl Iterator<Item = &'a mut Chunk>) {
        let (mut bytes, mut last) = (0, None);
        for piece in pieces.filter(|piece| piece.as_slice().is_some()) {
            bytes += piece.held_bytes();
            last = Some(piece);
        }
        self.resize(bytes);
        let Some(last) = last else { return };
        let (piece, range) = (last.clone(), 0..last.len());
        *last = Chunk::Shared(Rc::new(Covered { piece, _permit: self }), range);
    }

    fn resize(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.memory.used.set(self.memory.used.get() + more),
            None => self.memory.give_back(self.bytes - bytes),
        }
        self.bytes = bytes;
    }
}

impl Drop for FetchPermit {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// A piece in memory, and the permit for it and those before it: pieces are sent in order.
struct Covered {
    piece: Chunk,
    _permit: FetchPermit,
}

impl Memory for Covered {
    fn bytes(&self) -> &[u8] {
        self.piece.as_slice().expect("it lies in memory")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;

    const BUDGET: usize = 80 << 20;

    fn piece(len: usize) -> Chunk {
        Chunk::Bytes(Bytes::from(vec![7; len]))
    }

    #[test]
    fn what_was_not_found_is_given_back_at_once_and_the_rest_when_it_is_sent() {
        let memory = FetchMemory::new(BUDGET);
        let permit = memory.acquire(usize::MAX).now_or_never().expect("nothing is used");
        assert_eq!((permit.bytes(), memory.used.get()), (10 << 20, 10 << 20));
        let mut pieces = vec![piece(100), piece(50)];
        permit.cover(pieces.iter_mut());
        assert_eq!(memory.used.get(), 150);
        assert_eq!(pieces[1].as_slice(), Some(&[7; 50][..]));
        drop(pieces);
        assert_eq!(memory.used.get(), 0);
    }

    #[test]
    fn who_finds_no_room_waits_for_who_has_it() {
        let memory = FetchMemory::new(BUDGET);
        let mut pieces = vec![piece(BUDGET)];
        let permit = memory.acquire(1).now_or_never().expect("nothing is used");
        permit.cover(pieces.iter_mut()); // one large batch
        let mut next = Box::pin(memory.acquire(1));
        assert!((&mut next).now_or_never().is_none());
        assert!(memory.is_contended());
        drop(pieces);
        assert!((&mut next).now_or_never().is_some());
        assert!(!memory.is_contended());
    }

    #[test]
    fn grants_become_smaller_before_anybody_waits() {
        let memory = FetchMemory::new(BUDGET);
        let grants: Vec<_> = std::iter::from_fn(|| memory.acquire(usize::MAX).now_or_never()).collect();
        let sizes: Vec<_> = grants.iter().map(FetchPermit::bytes).collect();
        assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.last() == Some(&GRANT_BYTES_MIN), "{sizes:?}");
        assert!(sizes.len() > 40 && sizes.iter().sum::<usize>() <= BUDGET);
    }
}
