//! The control thread: runs a [`ControlCore`] against a store.
//!
//! Its threads share nothing but letters: the core's own; one each for leases, transactions and reading, as a call blocks, and
//! some for transactions that need no order; and one for the watch. Nothing but the core's thread decides.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    core::{ControlCore, Done, Event, KEEP_ALIVE_EVERY, Lane, Options, Snapshot, WORK_MAX, Work},
    etcd::{ConnectError, Etcd, EtcdOptions},
    image::Image,
    kept::file::Contents,
    plane::{Asked, ControlError, ControlPlane, QUESTIONS_MAX},
    restored::Ahead,
    store::{Change, Store, StoreError, Watch, Watched},
};

/// Keys of one page: 1 MB with 500 bytes each, which is little beside the longest message that is taken from etcd.
const PAGE_KEYS: usize = 2_000;
/// Letters that are opened before the core's work is handed out.
const LETTERS_IN_A_TURN: usize = 64;
/// How long one keeping alive may take at one member of etcd: several fit into a lease.
const LEASE_CALL_MAX: Duration = Duration::from_secs(1);
/// The shortest lease that etcd gives. Keeping alive must fail in time to be tried again (KAFKA-14392).
const LEASE_MIN: Duration = Duration::from_secs(2);
const _: () = assert!(LEASE_CALL_MAX.as_millis() + KEEP_ALIVE_EVERY.as_millis() <= LEASE_MIN.as_millis());
/// How long a watch waits before it looks whether it is still wanted.
const WATCH_LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Transactions that are under way at once, of those that need no order: while etcd reads one and writes another, it waits for
/// neither. It gains nothing by more.
const ASIDE: usize = 3;

enum Letter {
    Asked(Asked),
    Done(Done),
    Watched(u64, Result<Vec<Change>, StoreError>),
    Stop,
}

/// A control thread that runs. Dropped, it is stopped; the node's key stays until its lease ends, unless it left before.
pub struct ControlThread {
    plane: ControlPlane,
    letters: SyncSender<Letter>,
    thread: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for ControlThread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ControlThread")
    }
}

/// Why there is no control thread.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no way to etcd.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No thread.
    #[error("no thread for the control plane: {0}")]
    Thread(#[from] io::Error),
}

/// Starts one against an etcd. `on_event` hears everything on the control thread: it must be quick, and may not wait for an
/// answer of the control plane.
pub fn start(
    etcd: &EtcdOptions,
    options: Options,
    on_event: impl FnMut(Event) + Send + 'static,
) -> Result<ControlThread, StartError> {
    let leases = EtcdOptions { timeout: etcd.timeout.min(LEASE_CALL_MAX), ..etcd.clone() };
    let ways = Ways {
        leases: Etcd::new(&leases)?,
        transactions: Etcd::new(etcd)?,
        reading: Etcd::new(etcd)?,
        aside: (0..ASIDE).map(|_| Etcd::new(etcd)).collect::<Result<_, _>>()?,
    };
    Ok(start_with(ways, options, on_event)?)
}

/// Ways to a store, one for each thread that asks it.
#[derive(Debug)]
pub struct Ways<S> {
    leases: S,
    transactions: S,
    reading: S,
    aside: Vec<S>,
}

impl<S: Clone> Ways<S> {
    /// Those of a store whose clones are ways of their own.
    pub fn of(store: &S) -> Self {
        let way = || store.clone();
        // a store of two nodes does one thing after the other: more ways to it would only wait for each other
        Self { leases: way(), transactions: way(), reading: way(), aside: vec![way()] }
    }
}

/// Starts one against any store.
pub fn start_with<S: Store + 'static>(
    ways: Ways<S>,
    options: Options,
    on_event: impl FnMut(Event) + Send + 'static,
) -> io::Result<ControlThread> {
    let (letters, inbox) = sync_channel(QUESTIONS_MAX);
    let lanes = [
        (Lane::Leases, lane("control-leases", vec![ways.leases], &letters)?),
        (Lane::Transactions, lane("control-writes", vec![ways.transactions], &letters)?),
        (Lane::Aside, lane("control-aside", ways.aside, &letters)?),
        (Lane::Reading, lane("control-reads", vec![ways.reading], &letters)?),
    ];
    let thread = thread::Builder::new().name("control".to_owned());
    let thread = thread.spawn(move || run(options, &inbox, &lanes, on_event))?;
    let questions = letters.clone();
    let plane = ControlPlane::new(move |asked| {
        let asked_back = |letter, error| match letter {
            Letter::Asked(asked) => Err((asked, error)),
            Letter::Done(_) | Letter::Watched(..) | Letter::Stop => Ok(()),
        };
        match questions.try_send(Letter::Asked(asked)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(letter)) => asked_back(letter, ControlError::Busy),
            Err(TrySendError::Disconnected(letter)) => asked_back(letter, ControlError::Stopping),
        }
    });
    Ok(ControlThread { plane, letters, thread: Some(thread) })
}

impl ControlThread {
    /// Where questions are put.
    pub fn plane(&self) -> ControlPlane {
        self.plane.clone()
    }

    /// Ends it. Questions that wait are answered that the node is stopping.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // one that ended already reads no letters
        let _ = self.letters.send(Letter::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(
    options: Options,
    inbox: &Receiver<Letter>,
    lanes: &[(Lane, SyncSender<Work>)],
    mut on_event: impl FnMut(Event),
) {
    let mut core = ControlCore::new(options, Instant::now());
    loop {
        while let Some(work) = core.next_work() {
            let lane = lanes.iter().find(|(lane, _)| *lane == work.lane());
            let (_, lane) = lane.expect("there is a thread for every lane");
            if lane.send(work).is_err() {
                return;
            }
        }
        while let Some(event) = core.next_event() {
            on_event(event);
        }
        let mut letter = match inbox.recv_timeout(core.wake_in()) {
            Ok(letter) => Some(letter),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for opened in 1..=LETTERS_IN_A_TURN {
            let now = Instant::now();
            match letter.take() {
                Some(Letter::Asked(asked)) => core.handle_asked(asked, now),
                Some(Letter::Done(done)) => core.handle_done(done, now),
                Some(Letter::Watched(number, changes)) => core.handle_watched(number, changes, now),
                Some(Letter::Stop) => return,
                None => break,
            }
            if opened < LETTERS_IN_A_TURN {
                letter = inbox.try_recv().ok();
            }
        }
        core.handle_tick(Instant::now());
    }
}

/// Threads that do what one lane asks for, each by a way of its own: in order, if there is one.
fn lane<S: Store + 'static>(name: &str, stores: Vec<S>, letters: &SyncSender<Letter>) -> io::Result<SyncSender<Work>> {
    let (work, todo) = sync_channel(WORK_MAX);
    let todo = Arc::new(Mutex::new(todo));
    for mut store in stores {
        let (todo, letters) = (todo.clone(), letters.clone());
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            // the watch that is wanted: the one before ends when this is replaced
            let mut wanted = None;
            // whoever waits for the next piece holds the lock: the others wait for that
            let next = || todo.lock().expect("no panic while locked").recv();
            while let Ok(work) = next() {
                let done = carry_out(work, &mut store, &letters, &mut wanted);
                if letters.send(Letter::Done(done)).is_err() {
                    break;
                }
            }
            drop(wanted);
        })?;
    }
    Ok(work)
}

fn carry_out<S: Store>(
    work: Work,
    store: &mut S,
    letters: &SyncSender<Letter>,
    wanted: &mut Option<SyncSender<()>>,
) -> Done
where
    S::Watch: 'static,
{
    match work {
        Work::ReadAll => Done::ReadAll(read_all(store)),
        Work::Watch(number, from) => {
            let (stop, stopped) = sync_channel::<()>(0);
            *wanted = Some(stop);
            Done::Watch(number, watch(store, number, from, letters.clone(), stopped))
        }
        Work::Grant(ttl) => Done::Granted(store.grant(ttl)),
        Work::KeepAlive(lease) => {
            let sent = Instant::now();
            Done::KeptAlive(lease, sent, store.keep_alive(lease))
        }
        Work::Revoke(lease) => Done::Revoked(store.revoke(lease)),
        Work::Transact(ticket, transaction, _) => Done::Transacted(ticket, store.transact(&transaction)),
        Work::Compact(revision) => Done::Compacted(store.compact(revision)),
    }
}

/// Reads the cluster as it is now, once: for commands. With it, which store it is. `defaults` are those of topics.
///
/// # Errors
/// If the store does not answer, or holds what this version does not understand.
pub fn read_image(store: &mut impl Store, defaults: BTreeMap<String, String>) -> Result<(u64, Image), StoreError> {
    let Snapshot { identity, revision, entries, .. } = read_all(store)?;
    let image = Image::read(Arc::new(defaults), revision, &entries);
    Ok((identity, image.map_err(|error| StoreError::Nonsense(error.to_string()))?))
}

/// Reads all that the store holds, at one revision, and how far that is ahead of its log.
///
/// # Errors
/// If the store does not answer.
pub fn read_contents(store: &mut impl Store) -> Result<(Contents, Option<Ahead>), StoreError> {
    let Snapshot { identity, revision, ahead, entries } = read_all(store)?;
    Ok((Contents { identity, revision, entries }, ahead))
}

/// Reads all keys at the revision of the first page.
fn read_all(store: &mut impl Store) -> Result<Snapshot, StoreError> {
    let identity = store.identity()?;
    let told = store.progress()?;
    let mut page = store.range("", None, 0, PAGE_KEYS)?;
    let revision = page.revision;
    let mut entries = std::mem::take(&mut page.entries);
    while page.more {
        let last = entries.last().map(|entry| entry.key.clone());
        page = store.range("", last.as_deref(), revision, PAGE_KEYS)?;
        entries.append(&mut page.entries);
    }
    let ahead = told.map(|told| Ahead::new(told, revision));
    Ok(Snapshot { identity, revision, ahead, entries })
}

fn watch<S: Store>(
    store: &mut S,
    number: u64,
    from: i64,
    letters: SyncSender<Letter>,
    stopped: Receiver<()>,
) -> Result<(), StoreError>
where
    S::Watch: 'static,
{
    let mut watch = store.watch(from)?;
    let thread = thread::Builder::new().name("control-watch".to_owned());
    let started = thread.spawn(move || {
        loop {
            let next = match watch.next(WATCH_LOOKS_EVERY) {
                Ok(Watched::Quiet) => Ok(Vec::new()),
                Ok(Watched::Changes(changes)) => Ok(changes),
                Err(error) => Err(error),
            };
            let ends = next.is_err();
            let is_news = next.as_ref().map_or(true, |changes| !changes.is_empty());
            if stopped.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            if is_news && letters.send(Letter::Watched(number, next)).is_err() || ends {
                return;
            }
        }
    });
    started.map(drop).map_err(|error| StoreError::Away(format!("no thread for a watch: {error}")))
}

#[cfg(test)]
mod tests;
