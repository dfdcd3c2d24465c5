//! The mailbox: the only place where shards touch each other, and where a watchdog keeps them awake.
//!
//! A letter is work for another shard. Letters written in one turn travel together: one lock and one wake per
//! destination. Letters from one shard to another arrive in the order they were posted.
//!
//! glommio 0.9 can park with tasks that are ready to run. So a thread outside wakes every shard now and then through
//! the mailbox's waker: often while there is work, rarely when there is none.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use glommio::TaskQueueHandle;

use crate::{
    engine::Engine,
    vitals::{ShardVitals, Vitals},
};

/// Work for another shard.
pub(crate) type Letter = Box<dyn FnOnce(&Engine) + Send>;

#[derive(Default)]
struct Inbox {
    letters: Mutex<Vec<Letter>>,
    waker: Mutex<Option<Waker>>,
    /// Wakes since the task that looks for letters last waited for one.
    wakes: AtomicU64,
    /// Counts letters and requests: the watchdog looks more often while it grows.
    activity: AtomicU64,
    vitals: Vitals,
}

/// Wakes that a shard may have before it. glommio counts those that it has not come to yet in 16 bits of the task, and
/// panics when they run over: a shard comes to none while its task opens letters, whatever others do meanwhile.
const WAKES_MAX: u64 = 4096;

impl Inbox {
    fn wake(&self) {
        if self.wakes.fetch_add(1, Ordering::AcqRel) >= WAKES_MAX {
            return; // it was woken often enough to look once more
        }
        let waker = self.waker.lock().expect("no panic while locked").clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The inboxes of all shards. Shared by the node's threads.
#[derive(Clone, Default)]
pub(crate) struct PostOffice {
    inboxes: Arc<[Inbox]>,
    stopping: Arc<AtomicBool>,
}

impl PostOffice {
    pub(crate) fn new(shards: usize) -> Self {
        Self { inboxes: (0..shards).map(|_| Inbox::default()).collect(), stopping: Arc::default() }
    }

    /// Asks all shards to stop.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.inboxes.iter().for_each(Inbox::wake);
    }

    /// What every shard said of itself last.
    pub(crate) fn vitals(&self) -> Vec<ShardVitals> {
        self.inboxes.iter().map(|inbox| inbox.vitals.read()).collect()
    }

    /// Whether the node was asked to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Wakes shards until `ended`: the watchdog thread's body.
    pub(crate) fn watch(&self, ended: &AtomicBool) {
        const BUSY: Duration = Duration::from_millis(10);
        /// Rounds between wakes of a quiet shard, and rounds that a shard counts as busy after its last activity.
        const QUIET_ROUNDS: u64 = 5;
        const BUSY_ROUNDS: u64 = 20;
        let mut seen = vec![(0, 0); self.inboxes.len()];
        let mut round = 0u64;
        while !ended.load(Ordering::Acquire) {
            std::thread::sleep(BUSY);
            round += 1;
            for (inbox, (activity, active_round)) in self.inboxes.iter().zip(&mut seen) {
                let now = inbox.activity.load(Ordering::Relaxed);
                if now != *activity {
                    (*activity, *active_round) = (now, round);
                }
                if round - *active_round < BUSY_ROUNDS || round.is_multiple_of(QUIET_ROUNDS) {
                    inbox.wake();
                }
            }
        }
    }
}

/// One shard's side of the mailbox.
pub(crate) struct Mail {
    office: PostOffice,
    shard: usize,
    outgoing: RefCell<Vec<Vec<Letter>>>,
    /// Whether a task is about to send what is outgoing.
    sending: Cell<bool>,
}

impl Mail {
    pub(crate) fn new(office: PostOffice, shard: usize) -> Rc<Self> {
        let outgoing = office.inboxes.iter().map(|_| Vec::new()).collect();
        Rc::new(Self { office, shard, outgoing: RefCell::new(outgoing), sending: Cell::new(false) })
    }

    pub(crate) fn shards(&self) -> usize {
        self.office.inboxes.len()
    }

    /// Tells the watchdog that this shard has work.
    pub(crate) fn note_activity(&self) {
        self.office.inboxes[self.shard].activity.fetch_add(1, Ordering::Relaxed);
    }

    /// Leaves word of this shard for threads that cannot ask.
    pub(crate) fn tell(&self, vitals: ShardVitals) {
        self.office.inboxes[self.shard].vitals.tell(vitals);
    }

    /// Posts a letter; it leaves at the end of this turn.
    pub(crate) fn post(self: &Rc<Self>, shard: usize, letter: Letter) {
        self.outgoing.borrow_mut()[shard].push(letter);
        if !self.sending.replace(true) {
            let mail = self.clone();
            let sending = async move {
                // A new task may run at once: this lets all others that are ready post their letters first.
                glommio::executor().yield_now().await;
                mail.send();
            };
            // Not into the queue of who posts: what serves does not wait for the share of what does not.
            let spawned = glommio::spawn_local_into(sending, TaskQueueHandle::default());
            spawned.expect("the first queue lives as long as the executor").detach();
        }
    }

    fn send(&self) {
        self.sending.set(false);
        for (shard, letters) in self.outgoing.borrow_mut().iter_mut().enumerate() {
            if letters.is_empty() {
                continue;
            }
            let inbox = &self.office.inboxes[shard];
            inbox.letters.lock().expect("no panic while locked").append(letters);
            inbox.activity.fetch_add(1, Ordering::Relaxed);
            inbox.wake();
        }
    }

    /// Opens letters as they come, until the executor ends. Runs as a task of its own.
    pub(crate) async fn receive(self: Rc<Self>, engine: Engine) {
        let mut has_waited = true;
        loop {
            let letters = poll_fn(|cx| {
                let inbox = &self.office.inboxes[self.shard];
                if std::mem::take(&mut has_waited) {
                    inbox.wakes.store(0, Ordering::Release); // before the look: who comes after it wakes again
                }
                inbox.waker.lock().expect("no panic while locked").replace(cx.waker().clone());
                let letters = std::mem::take(&mut *inbox.letters.lock().expect("no panic while locked"));
                if self.office.is_stopping() {
                    engine.notice_stop();
                }
                has_waited = letters.is_empty();
                if has_waited { Poll::Pending } else { Poll::Ready(letters) }
            })
            .await;
            open_in_turns(letters, |letter| letter(&engine)).await;
        }
    }
}

/// Letters that are opened before others have the shard: a request for tens of thousands of partitions comes as as many.
const LETTERS_OF_TURN: usize = 64;

/// Opens letters in their order.
async fn open_in_turns<T>(letters: Vec<T>, mut open: impl FnMut(T)) {
    for (at, letter) in letters.into_iter().enumerate() {
        if at > 0 && at.is_multiple_of(LETTERS_OF_TURN) {
            glommio::executor().yield_now().await;
        }
        open(letter);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use glommio::LocalExecutor;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request for 60,000 partitions of another shard kept it from everything else until all its letters were open.
    #[test]
    fn many_letters_are_opened_in_their_order_and_others_come_in_between() {
        LocalExecutor::default().run(async {
            let opened = Rc::new(RefCell::new(Vec::new()));
            let (watched, count) = (opened.clone(), LETTERS_OF_TURN * 10);
            let other = glommio::spawn_local(async move {
                let mut seen = 0;
                while watched.borrow().len() < count {
                    seen = watched.borrow().len();
                    glommio::executor().yield_now().await;
                }
                seen
            });
            open_in_turns((0..count).collect(), |letter| opened.borrow_mut().push(letter)).await;
            assert!(opened.borrow().is_sorted());
            assert!(other.await > 0, "it had no turn before the end");
        });
    }

    #[test]
    fn a_shard_that_does_not_look_is_not_woken_for_every_letter() {
        let woken = Arc::new(Woken::default());
        let inbox = Inbox { waker: Mutex::new(Some(woken.clone().into())), ..Inbox::default() };
        (0..100_000).for_each(|_| inbox.wake());
        assert_eq!(woken.0.load(Ordering::Relaxed), WAKES_MAX);
    }
}
