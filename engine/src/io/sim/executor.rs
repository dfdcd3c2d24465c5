//! Tasks of a simulation: one thread, and chance decides who is polled next.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
};

use super::{Effect, End, Event, Op, Running, State, Verdict, World};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A run that takes more polls than that is thought never to end.
const POLLS_MAX: u64 = 100_000_000;

/// A longer trace is replaced by its digest.
const TRACE_BYTES_MAX: usize = 32 << 20;

#[derive(Default)]
pub(super) struct Executor {
    tasks: RefCell<BTreeMap<u64, Task>>,
    next_task: Cell<u64>,
    woken: Arc<Woken>,
}

/// Tasks that can run. A `Waker` must be `Send`, hence the mutex; there is one thread.
#[derive(Default)]
struct Woken(Mutex<Vec<u64>>);

struct TaskWaker {
    task: u64,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut woken = self.woken.0.lock().expect("nobody panics with the lock");
        if !woken.contains(&self.task) {
            woken.push(self.task);
        }
    }
}

/// The future of `run_until` itself.
const MAIN: u64 = 0;

impl Executor {
    fn waker(&self, task: u64) -> Waker {
        Waker::from(Arc::new(TaskWaker { task, woken: self.woken.clone() }))
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.next_task.get() + 1;
        self.next_task.set(id);
        self.tasks.borrow_mut().insert(id, Box::pin(task));
        self.waker(id).wake();
    }

    fn pick(&self, state: &mut State) -> Option<u64> {
        let mut woken = self.woken.0.lock().expect("nobody panics with the lock");
        let among = woken.len();
        (among > 0).then(|| woken.swap_remove(state.random.below(among)))
    }

    fn poll(&self, id: u64) {
        // A task is out of the table while it runs, so that it may spawn others.
        let Some(mut task) = self.tasks.borrow_mut().remove(&id) else {
            return;
        };
        let waker = self.waker(id);
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut().insert(id, task);
        }
    }

    /// Drops all tasks: the process is gone. Dropping one may wake or spawn others.
    pub(super) fn clear(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.woken.0.lock().expect("nobody panics with the lock").clear();
    }
}

impl World {
    pub(super) fn run_until<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let waker = self.executor.waker(MAIN);
        waker.wake_by_ref();
        for _ in 0..POLLS_MAX {
            if self.state.borrow().ended.is_some() {
                self.executor.clear();
                return None;
            }
            let picked = self.executor.pick(&mut self.state.borrow_mut());
            match picked {
                Some(MAIN) => {
                    let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
                    // A crash during this poll came before whatever it returned.
                    if let Poll::Ready(done) = polled
                        && self.state.borrow().ended.is_none()
                    {
                        return Some(done);
                    }
                }
                Some(task) => self.executor.poll(task),
                None => self.pass_time(),
            }
        }
        panic!("no end after {POLLS_MAX} polls; last of the trace:\n{}", self.state.borrow().last_of_trace());
    }

    /// Nothing can run: on to the next timer or end of an operation.
    fn pass_time(&self) {
        let watcher = {
            let state = self.state.borrow();
            let is_idle = !state.agenda.values().any(|event| matches!(event, Event::Complete(_)));
            state.idle_watcher.clone().filter(|_| is_idle)
        };
        if let Some(watcher) = watcher {
            watcher();
        }
        let mut state = self.state.borrow_mut();
        let Some(((at, _), event)) = state.agenda.pop_first() else {
            panic!("all tasks wait for ever; last of the trace:\n{}", state.last_of_trace());
        };
        state.now_ns = at;
        let waker = match event {
            Event::Wake(waker) => Some(waker),
            Event::Complete(op) => state.complete(op),
        };
        drop(state);
        waker.inspect(Waker::wake_by_ref);
    }

    /// Ends the present life, if it has not ended.
    pub(super) fn end(&self, end: End) {
        self.state.borrow_mut().end(end);
        self.executor.clear();
    }
}

impl State {
    fn last_of_trace(&self) -> String {
        let lines: Vec<&str> = self.trace.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub(super) fn note(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.trace, "{} {line}", self.now_ns).expect("writing to a string does not fail");
        if self.trace.len() > TRACE_BYTES_MAX {
            self.trace = format!("what came before has the digest {:08x}\n", crc32c::crc32c(self.trace.as_bytes()));
        }
    }

    pub(super) fn at(&mut self, time_ns: u64, event: Event) {
        self.next_event += 1;
        self.agenda.insert((time_ns, self.next_event), event);
    }

    /// Begins an operation and returns its number; `None` if the process has ended, now or before.
    pub(super) fn begin(
        &mut self,
        path: &Path,
        kind: super::OpKind,
        place: (u64, usize),
        effect: Effect,
    ) -> Option<u64> {
        if self.ended.is_some() {
            return None;
        }
        self.op_count += 1;
        let number = self.op_count;
        let op = Op { number, kind, path, position: place.0, len: place.1 };
        let mut verdict = self.watcher.as_mut().map_or(Verdict::Go, |watcher| watcher(&op));
        if kind.changes_disk() {
            self.change_count += 1;
            if self.crash_at_change == Some(self.change_count) {
                verdict = Verdict::Crash;
            }
        }
        self.note(format_args!("{number} {kind:?} {} {}+{} {verdict:?}", path.display(), place.0, place.1));
        let failure = match verdict {
            Verdict::Fail(kind) => Some(kind),
            Verdict::Go | Verdict::Late(_) | Verdict::Crash => None,
        };
        let late_ns = match verdict {
            Verdict::Late(late) => u64::try_from(late.as_nanos()).unwrap_or(u64::MAX),
            _ => 0,
        };
        self.ops.insert(
            number,
            Running { kind, effect: Some(effect), failure, waker: None, result: None, abandoned: false },
        );
        if verdict == Verdict::Crash {
            self.end(End::Power);
            return None;
        }
        let at = self.now_ns.saturating_add(self.latency_ns(kind)).saturating_add(late_ns);
        self.at(at, Event::Complete(number));
        Some(number)
    }

    /// Ends the present life, if it has not ended.
    pub(super) fn end(&mut self, end: End) {
        if self.ended.is_some() {
            return;
        }
        let life = self.life;
        self.note(format_args!("end of life {life} by {end:?}"));
        self.ended = Some(end);
        self.agenda.clear();
        for (_, op) in std::mem::take(&mut self.ops) {
            if let Some(effect) = op.effect
                && self.random.one_in(2)
            {
                self.happen_before_the_end(effect);
            }
        }
        match end {
            End::Power => self.disk.cut_power(&mut self.random),
            End::Process => self.disk.kill(&mut self.random),
        }
    }

    /// An operation that was in flight, and came to its end without anybody learning of it. Writes are the disk's to
    /// decide about.
    fn happen_before_the_end(&mut self, effect: Effect) {
        match effect {
            Effect::Open { path, how } => drop(self.disk.open(&path, how)),
            Effect::Rename { from, to } => drop(self.disk.rename(&from, &to)),
            Effect::CreateDir { path } => drop(self.disk.create_dir(&path)),
            Effect::Remove { path } => self.disk.remove(&path, Some(&mut self.random)),
            Effect::Flush { inode, covered } => self.disk.end_flush(inode, &covered, false),
            Effect::SyncDir { path, covered } => drop(self.disk.sync_dir(&path, covered)),
            Effect::Read { .. } | Effect::Write { .. } | Effect::Close | Effect::List { .. } => {}
        }
    }

    /// How long an operation takes. Ranges are those of a fast virtual disk; once in a while one takes much longer.
    fn latency_ns(&mut self, kind: super::OpKind) -> u64 {
        use super::OpKind as Kind;
        let (from, to) = match kind {
            Kind::Read => (30_000, 300_000),
            Kind::Write => (20_000, 400_000),
            Kind::Flush => (50_000, 3_000_000),
            Kind::Open | Kind::List => (10_000, 200_000),
            Kind::Close => (1_000, 20_000),
            Kind::Rename | Kind::CreateDir | Kind::SyncDir | Kind::Remove => (50_000, 3_000_000),
        };
        let slow = if self.random.one_in(100) { 30 } else { 1 };
        self.random.between(from, to) * slow
    }
}

impl World {
    pub(super) fn spawn(self: &Rc<Self>, life: u64, task: impl Future<Output = ()> + 'static) {
        let alive = {
            let state = self.state.borrow();
            state.life == life && state.ended.is_none()
        };
        if alive {
            self.executor.spawn(task);
        }
    }
}
