//! A deterministic disk, clock and executor for tests: the code under test runs on it as it runs on [`super::direct`].
//!
//! One [`Sim`] is one machine. Everything random comes from its seed: how long each operation takes (so in which order
//! they complete), which runnable task is polled next, and what a crash leaves. Same seed, same trace, byte for byte,
//! as long as the code under test is deterministic itself. Time is virtual and moves only when no task can run.
//!
//! What may happen to what, at a power cut ([`Sim::crash`], [`Sim::crash_after`]):
//!
//! | thing | faults |
//! |---|---|
//! | write that completed before a `flush` of its file was called, which completed | none |
//! | completed write through [`Open::WriteDurable`](super::Open::WriteDurable) | none |
//! | any other write, in flight or completed | kept, lost, or torn at 512-byte sectors, each independently of others; a file that it made longer may have the new length, the old one, or one between, with zeroes for bytes that were lost |
//! | file created, and not followed by `sync_dir` of its directory (or a rename into it) | name may be gone |
//! | `remove` not followed by `sync_dir` | name may be back; of a directory, any part of what was below it |
//! | completed `rename`, `create_dir`, `sync_dir` | none |
//! | the same in flight | happened or did not; a rename is atomic |
//! | bytes at rest | only what [`Sim::corrupt`] changes |
//!
//! At the end of a process without a power cut ([`Sim::kill`]) completed operations stay, and those in flight happen
//! or not, each as a whole. What was not flushed can still be lost by a later power cut.
//!
//! Errors are injected by [`Sim::watch`]. A write that fails may have written some of its sectors; writes that a failed
//! `flush` should have covered never become durable by a later one (as on Linux). [`Sim::set_free_bytes`] sets what is
//! left on the disk: a write that needs more fails with `StorageFull` and changes nothing.

#![cfg_attr(not(test), allow(dead_code, reason = "tests use all of it, fuzzers a little"))]

mod disk;
mod executor;
mod handle;
pub(crate) mod random;

#[cfg(test)]
mod tests;

use std::{cell::RefCell, collections::BTreeMap, io, path::Path, rc::Rc, task::Waker, time::Duration};

use disk::{Disk, InodeId};
use executor::Executor;
pub(crate) use handle::SimIo;
use random::Random;

/// A simulated machine. See the module.
pub(crate) struct Sim {
    world: Rc<World>,
}

/// What `Sim` and its handles share.
pub(super) struct World {
    state: RefCell<State>,
    executor: Executor,
}

/// An operation about to start, as [`Sim::watch`] sees it.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "which of it a watcher needs is up to the test")]
pub(crate) struct Op<'a> {
    /// Counts the operations of this machine from 1, those of former lives included.
    pub(crate) number: u64,
    /// What it is.
    pub(crate) kind: OpKind,
    /// The file or directory; of a rename, the new name.
    pub(crate) path: &'a Path,
    /// Of reads and writes, the first byte.
    pub(crate) position: u64,
    /// Of reads and writes, the number of bytes.
    pub(crate) len: usize,
}

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named like the methods they come from")]
pub(crate) enum OpKind {
    Open,
    Read,
    Write,
    Flush,
    Close,
    Rename,
    CreateDir,
    SyncDir,
    List,
    Remove,
}

impl OpKind {
    /// Whether it changes what is on the disk, or what is durable of it. [`Sim::crash_after`] counts these.
    pub(crate) fn changes_disk(self) -> bool {
        !matches!(self, OpKind::Read | OpKind::Close | OpKind::List)
    }
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It runs.
    Go,
    /// It takes that much longer; an age of it is a disk that has stopped.
    Late(Duration),
    /// It fails with that error.
    Fail(io::ErrorKind),
    /// It is under way when the power is cut.
    Crash,
}

type Watcher = Box<dyn FnMut(&Op<'_>) -> Verdict>;
type IdleWatcher = Rc<dyn Fn()>;

/// Wall clock of a machine that was just made, in ms since the epoch.
pub(crate) const START_MS: i64 = 1_700_000_000_000;

/// Everything of a machine but its tasks.
struct State {
    random: Random,
    disk: Disk,
    now_ns: u64,
    /// What happens when: a timer or an operation's end. The number makes keys unique and keeps ties in order.
    agenda: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    /// Operations that were started and whose result was not fetched.
    ops: BTreeMap<u64, Running>,
    op_count: u64,
    /// Operations that changed the disk.
    change_count: u64,
    crash_at_change: Option<u64>,
    watcher: Option<Watcher>,
    idle_watcher: Option<IdleWatcher>,
    /// Counts lives of the process: handles of former lives do nothing any more.
    life: u64,
    ended: Option<End>,
    trace: String,
}

/// How a life of the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Power,
    Process,
}

enum Event {
    Wake(Waker),
    Complete(u64),
}

/// An operation's state. The effect comes with its completion, whether or not somebody still waits for it.
struct Running {
    kind: OpKind,
    effect: Option<Effect>,
    failure: Option<io::ErrorKind>,
    waker: Option<Waker>,
    result: Option<io::Result<Outcome>>,
    /// Nobody waits any more.
    abandoned: bool,
}

/// What an operation does when it completes.
enum Effect {
    Open {
        path: Rc<Path>,
        how: super::Open,
    },
    Read {
        inode: InodeId,
        position: u64,
        len: usize,
    },
    Write {
        inode: InodeId,
        write: disk::WriteId,
        durable: bool,
    },
    /// The writes that had completed when it was called.
    Flush {
        inode: InodeId,
        covered: Vec<disk::WriteId>,
    },
    Close,
    Rename {
        from: Rc<Path>,
        to: Rc<Path>,
    },
    CreateDir {
        path: Rc<Path>,
    },
    SyncDir {
        path: Rc<Path>,
        covered: u64,
    },
    List {
        path: Rc<Path>,
    },
    Remove {
        path: Rc<Path>,
    },
}

/// What an operation answers.
enum Outcome {
    Done,
    Inode(InodeId),
    Bytes(Vec<u8>),
    Names(Vec<String>),
}

impl Sim {
    /// A machine with an empty disk, holding only the directory `/`.
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            disk: Disk::new(),
            now_ns: 0,
            agenda: BTreeMap::new(),
            next_event: 0,
            ops: BTreeMap::new(),
            op_count: 0,
            change_count: 0,
            crash_at_change: None,
            watcher: None,
            idle_watcher: None,
            life: 1,
            ended: None,
            trace: String::new(),
        };
        Self { world: Rc::new(World { state: RefCell::new(state), executor: Executor::default() }) }
    }

    /// The process's disk, clock and tasks in its present life.
    pub(crate) fn io(&self) -> SimIo {
        SimIo::new(self.world.clone(), self.world.state.borrow().life)
    }

    /// Runs tasks until `future` is done: `Some` of its result, or `None` if the process ended first. Other tasks go
    /// on with the next call. Panics if nothing can ever run again.
    pub(crate) fn run_until<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.world.run_until(future)
    }

    /// Cuts the power while the `n`-th operation from now that changes the disk is under way; 1 is the next one.
    pub(crate) fn crash_after(&self, n: u64) {
        assert!(n > 0, "the first operation is number 1");
        let mut state = self.world.state.borrow_mut();
        state.crash_at_change = Some(state.change_count + n);
    }

    /// Cuts the power now. What was under way may have happened.
    pub(crate) fn crash(&self) {
        self.world.end(End::Power);
    }

    /// Ends the process now, without a power cut.
    pub(crate) fn kill(&self) {
        self.world.end(End::Process);
    }

    /// The next life: on what the last one left, after a power cut unless it ended otherwise. Watchers and planned
    /// crashes are gone; what was set of free bytes stays.
    pub(crate) fn restart(&self) -> SimIo {
        self.world.end(End::Power);
        let mut state = self.world.state.borrow_mut();
        state.life += 1;
        state.ended = None;
        state.crash_at_change = None;
        state.watcher = None;
        state.idle_watcher = None;
        drop(state);
        self.io()
    }

    /// Whether the present life has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.world.state.borrow().ended.is_some()
    }

    /// Operations so far that changed the disk: the crash points of a run.
    pub(crate) fn changes(&self) -> u64 {
        self.world.state.borrow().change_count
    }

    /// Lets `watcher` see every operation before it starts and decide about it, until the next life. It must not call
    /// the simulation.
    pub(crate) fn watch(&self, watcher: impl FnMut(&Op<'_>) -> Verdict + 'static) {
        self.world.state.borrow_mut().watcher = Some(Box::new(watcher));
    }

    /// Lets `watcher` look whenever no task can run and no operation is under way, so that only a timer can go on, until
    /// the next life. It must wake nobody.
    pub(crate) fn watch_idle(&self, watcher: impl Fn() + 'static) {
        self.world.state.borrow_mut().idle_watcher = Some(Rc::new(watcher));
    }

    /// Sets how many bytes are left on the disk. Without that it never fills.
    pub(crate) fn set_free_bytes(&self, bytes: u64) {
        self.world.state.borrow_mut().disk.set_free_bytes(bytes);
    }

    /// Changes a byte of a file by exclusive or, durably: bit rot.
    ///
    /// # Panics
    /// If the file has no such byte, or the process is running: rot between two lives.
    pub(crate) fn corrupt(&self, path: impl AsRef<Path>, position: u64, xor: u8) {
        let mut state = self.world.state.borrow_mut();
        assert!(state.ops.values().all(|op| op.effect.is_none()), "an operation is under way");
        state.disk.corrupt(path.as_ref(), position, xor);
    }

    /// A file's bytes as the process would read them.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.world.state.borrow().disk.contents(path.as_ref())
    }

    /// Every file there is, sorted.
    pub(crate) fn files(&self) -> Vec<std::path::PathBuf> {
        self.world.state.borrow().disk.files()
    }

    /// One line for every beginning and end of an operation, and for every crash.
    pub(crate) fn trace(&self) -> String {
        self.world.state.borrow().trace.clone()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks hold handles to the world that holds them. The state may be borrowed if a watcher panicked.
        if let Ok(mut state) = self.world.state.try_borrow_mut() {
            state.end(End::Process);
        }
        self.world.executor.clear();
    }
}
