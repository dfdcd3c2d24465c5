//! The memory that requests of one shard may take, received or being received: a budget with four queues.
//!
//! A whole frame's memory is reserved before the first of its bytes is taken, so nobody holds a part and waits for
//! more, and what is granted can be finished without anybody else. Frames are of four classes, [`Class`], and their
//! limits are nested as in RFC 4127 (Russian dolls): the large ones together have a limit, the large and medium ones a
//! higher one, and so on up to the whole budget. So smaller frames may use all that larger ones leave, and larger ones
//! never take what is kept for smaller ones.
//!
//! [`Budget`] decides and is plain data; [`ReceiveMemory`] is the handle that tasks wait on. Always true: the sum of all
//! reservations is within the limit; within a class whoever asked first is served first; while a larger frame waits,
//! smaller ones get no more than what is kept for them. So whoever waits is granted memory once those that have it are
//! finished, and those can be: a received request waits for this node alone, and a frame that is being received either
//! brings bytes or is given up ([`Budget::shortage`]).

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// Who waits. Given out in rising order.
pub(crate) type WaiterId = u64;

/// What bytes are for. A frame keeps its class until its request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Frames that a read found whole: when their memory comes back is up to this node, not to a peer.
    Whole,
    /// Of those that a read found a part of: as large as one read.
    Small,
    /// Of a size that producers make by default (`max.request.size`).
    Medium,
    /// All others.
    Large,
}

impl Class {
    /// All of them, in order.
    pub(crate) const ALL: [Class; 4] = [Class::Whole, Class::Small, Class::Medium, Class::Large];
}

/// Bytes of a small frame at most.
pub(crate) const SMALL_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a medium frame at most: 1 MiB of records and what is around them.
const MEDIUM_FRAME_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;

/// The largest frame that a budget can hold while something is kept for smaller ones.
pub(crate) const fn frame_bytes_max(limit: usize) -> usize {
    limit / 4 * 3
}

/// The least budget: what is kept for whole requests must hold two reads.
pub(crate) const LIMIT_BYTES_MIN: usize = 32 * SMALL_FRAME_BYTES_MAX;

/// One class's part.
#[derive(Debug, Default)]
struct Part {
    /// Kept for it: larger frames never take them, and smaller ones no more of them once it waits.
    kept: usize,
    /// This class and all larger ones together have so many bytes at most.
    ceiling: usize,
    used: usize,
    /// Waiters with the bytes they want.
    queue: VecDeque<(WaiterId, usize)>,
}

/// The budget's arithmetic and its queues.
#[derive(Debug)]
pub(crate) struct Budget {
    parts: [Part; 4],
    medium_frame_bytes_max: usize,
    next_id: WaiterId,
}

impl Budget {
    /// A budget of `limit` bytes for frames of at most `frame_bytes_max`, which is no more than [`frame_bytes_max`].
    pub(crate) fn new(limit: usize, frame_bytes_max: usize) -> Budget {
        let large = frame_bytes_max.max(limit / 2);
        let rest = limit - large;
        let kept = [rest / 4, rest / 4, rest - rest / 4 * 2, large];
        let mut ceiling = 0;
        let mut parts = kept.map(|kept| Part { kept, ..Part::default() });
        for part in parts.iter_mut().rev() {
            ceiling += part.kept;
            part.ceiling = ceiling;
        }
        Budget { parts, medium_frame_bytes_max: MEDIUM_FRAME_BYTES_MAX.min(kept[2]), next_id: 0 }
    }

    /// The class of a frame that is being received.
    pub(crate) fn class_of(&self, frame_bytes: usize) -> Class {
        if frame_bytes <= SMALL_FRAME_BYTES_MAX {
            Class::Small
        } else if frame_bytes <= self.medium_frame_bytes_max {
            Class::Medium
        } else {
            Class::Large
        }
    }

    /// Reserves `bytes` at once if nobody of the class waits and they are there.
    pub(crate) fn reserve(&mut self, class: Class, bytes: usize) -> bool {
        let is_free = self.part(class).queue.is_empty() && bytes <= self.room(class);
        if is_free {
            self.parts[class as usize].used += bytes;
        }
        is_free
    }

    /// Asks for `bytes`; [`Budget::next_grant`] names the waiter when they are reserved.
    pub(crate) fn enqueue(&mut self, class: Class, bytes: usize) -> WaiterId {
        let id = self.next_id;
        self.next_id += 1;
        self.parts[class as usize].queue.push_back((id, bytes));
        id
    }

    /// A waiter gave up.
    pub(crate) fn cancel(&mut self, id: WaiterId) {
        self.parts.iter_mut().for_each(|part| part.queue.retain(|(waiter, _)| *waiter != id));
    }

    /// The next waiter whose bytes are reserved now. Call until `None` after every change.
    pub(crate) fn next_grant(&mut self) -> Option<WaiterId> {
        Class::ALL.into_iter().find_map(|class| {
            let &(id, bytes) = self.part(class).queue.front()?;
            if bytes > self.room(class) {
                return None;
            }
            let part = &mut self.parts[class as usize];
            part.queue.pop_front();
            part.used += bytes;
            Some(id)
        })
    }

    /// Bytes come back.
    pub(crate) fn release(&mut self, class: Class, bytes: usize) {
        let part = &mut self.parts[class as usize];
        assert!(part.used >= bytes, "more bytes released than reserved");
        part.used -= bytes;
    }

    /// Bytes that the waiters of a class lack.
    pub(crate) fn shortage(&self, class: Class) -> usize {
        let wanted: usize = self.part(class).queue.iter().map(|(_, bytes)| bytes).sum();
        wanted.saturating_sub(self.room(class))
    }

    /// Whether a waiter of `class` is served sooner when one of `holder` gives its bytes back.
    pub(crate) fn gives_way(&self, holder: Class, class: Class) -> bool {
        holder == class || self.part(holder).used > self.part(holder).kept
    }

    /// Whether frames that are being received wait.
    pub(crate) fn is_short(&self) -> bool {
        self.parts[1..].iter().any(|part| !part.queue.is_empty())
    }

    /// Whether anybody waits.
    pub(crate) fn is_contended(&self) -> bool {
        self.parts.iter().any(|part| !part.queue.is_empty())
    }

    /// Bytes reserved.
    fn used(&self) -> usize {
        self.parts.iter().map(|part| part.used).sum()
    }

    fn part(&self, class: Class) -> &Part {
        &self.parts[class as usize]
    }

    /// Bytes that could be reserved for a class.
    fn room(&self, class: Class) -> usize {
        let at = class as usize;
        let below = |level: usize| {
            let used: usize = self.parts[level..].iter().map(|part| part.used).sum();
            self.parts[level].ceiling.saturating_sub(used)
        };
        let room = (0..=at).map(below).min().unwrap_or(0);
        let is_larger_waiting = self.parts[at + 1..].iter().any(|part| !part.queue.is_empty());
        let own = self.parts[at].kept.saturating_sub(self.parts[at].used);
        if is_larger_waiting { room.min(own) } else { room }
    }
}

/// One shard's receive memory. Clones share it.
#[derive(Clone)]
pub(crate) struct ReceiveMemory {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    budget: Budget,
    waiters: HashMap<WaiterId, Waiter>,
    /// Who wants to know when somebody waits.
    watcher: Option<Waker>,
}

#[derive(Default)]
struct Waiter {
    waker: Option<Waker>,
    granted: bool,
}

impl ReceiveMemory {
    /// Memory of `limit` bytes for frames of at most `frame_bytes_max`.
    pub(crate) fn new(limit: usize, frame_bytes_max: usize) -> ReceiveMemory {
        let budget = Budget::new(limit, frame_bytes_max);
        let shared = Shared { budget, waiters: HashMap::new(), watcher: None };
        ReceiveMemory { shared: Rc::new(RefCell::new(shared)) }
    }

    /// Reserves `bytes` if they are there and nobody of the class waits.
    pub(crate) fn try_reserve(&self, class: Class, bytes: usize) -> Option<Reservation> {
        let is_reserved = self.shared.borrow_mut().budget.reserve(class, bytes);
        is_reserved.then(|| Reservation { memory: self.clone(), class, bytes })
    }

    /// Reserves what a frame takes if it is there and nobody of its class waits.
    pub(crate) fn try_admit(&self, frame_bytes: usize) -> Option<Reservation> {
        self.try_reserve(self.class_of(frame_bytes), frame_bytes)
    }

    /// Reserves `bytes`, waiting in the queue if need be.
    pub(crate) async fn reserve(&self, class: Class, bytes: usize) -> Reservation {
        if let Some(reservation) = self.try_reserve(class, bytes) {
            return reservation;
        }
        let id = self.shared.borrow_mut().enqueue(class, bytes);
        let waiting = Waiting { memory: self, id, class, bytes };
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            let waiter = shared.waiters.get_mut(&id).expect("a waiter stays until it leaves");
            if waiter.granted {
                return Poll::Ready(());
            }
            waiter.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        waiting.take()
    }

    /// Waits until somebody waits for memory. One task may.
    pub(crate) async fn contended(&self) {
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            if shared.budget.is_contended() {
                return Poll::Ready(());
            }
            shared.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The class of a frame that is being received.
    pub(crate) fn class_of(&self, frame_bytes: usize) -> Class {
        self.shared.borrow().budget.class_of(frame_bytes)
    }

    /// Bytes reserved, and how many may be.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let budget = &self.shared.borrow().budget;
        (budget.used(), budget.part(Class::Whole).ceiling)
    }

    /// Whether frames that are being received wait.
    pub(crate) fn is_short(&self) -> bool {
        self.shared.borrow().budget.is_short()
    }

    /// See [`Budget::shortage`].
    pub(crate) fn shortage(&self, class: Class) -> usize {
        self.shared.borrow().budget.shortage(class)
    }

    /// See [`Budget::gives_way`].
    pub(crate) fn gives_way(&self, holder: Class, class: Class) -> bool {
        self.shared.borrow().budget.gives_way(holder, class)
    }

    fn change(&self, change: impl FnOnce(&mut Budget)) {
        let mut shared = self.shared.borrow_mut();
        change(&mut shared.budget);
        shared.grant();
    }
}

impl Shared {
    fn enqueue(&mut self, class: Class, bytes: usize) -> WaiterId {
        let id = self.budget.enqueue(class, bytes);
        self.waiters.insert(id, Waiter::default());
        if let Some(watcher) = self.watcher.take() {
            watcher.wake();
        }
        id
    }

    fn grant(&mut self) {
        while let Some(id) = self.budget.next_grant() {
            let waiter = self.waiters.get_mut(&id).expect("whoever is in the queue waits");
            waiter.granted = true;
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A place in the queue; leaves it when dropped, giving back what was granted meanwhile.
struct Waiting<'a> {
    memory: &'a ReceiveMemory,
    id: WaiterId,
    class: Class,
    bytes: usize,
}

impl Waiting<'_> {
    fn take(self) -> Reservation {
        self.memory.shared.borrow_mut().waiters.remove(&self.id);
        Reservation { memory: self.memory.clone(), class: self.class, bytes: self.bytes }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.memory.shared.borrow_mut().waiters.remove(&self.id) else {
            return;
        };
        self.memory.change(|budget| match waiter.granted {
            true => budget.release(self.class, self.bytes),
            false => budget.cancel(self.id),
        });
    }
}

/// Reserved bytes; they come back when it is dropped.
pub(crate) struct Reservation {
    memory: ReceiveMemory,
    class: Class,
    bytes: usize,
}

impl Reservation {
    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What they are for.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Takes in another one of the same class.
    pub(crate) fn join(&mut self, mut other: Reservation) {
        assert_eq!(self.class, other.class, "bytes go back to the class that they are of");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Splits off `bytes` of it.
    pub(crate) fn split(&mut self, bytes: usize) -> Reservation {
        assert!(bytes <= self.bytes, "more bytes split off than reserved");
        self.bytes -= bytes;
        Reservation { memory: self.memory.clone(), class: self.class, bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.change(|budget| budget.release(self.class, self.bytes));
        }
    }
}

#[cfg(test)]
mod tests;
