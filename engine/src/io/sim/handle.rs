//! What the code under test holds: its disk, clock and tasks ([`SimIo`]), and open files.
//!
//! Handles of a life that has ended do nothing any more: their operations never complete.

use std::{
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{Effect, Event, OpKind, Outcome, START_MS, State, World, disk::InodeId, disk::SimBuffer};
use crate::{
    chunk::Memory,
    io::{BLOCK, File, Io, Open, Share},
};

/// Disk, clock and tasks of a simulated process, in one of its lives.
#[derive(Clone)]
pub(crate) struct SimIo {
    world: Rc<World>,
    life: u64,
}

/// An operation in flight. Dropping it does not stop it.
struct Operation {
    world: Rc<World>,
    number: Option<u64>,
}

impl SimIo {
    pub(super) fn new(world: Rc<World>, life: u64) -> Self {
        Self { world, life }
    }

    /// Runs an operation from its first poll on. `effect` may fail at once, before anything is begun.
    async fn run(
        &self,
        path: &Path,
        kind: OpKind,
        place: (u64, usize),
        effect: impl FnOnce(&mut State) -> io::Result<Effect>,
    ) -> io::Result<Outcome> {
        let begun = {
            let mut state = self.world.state.borrow_mut();
            match state.life == self.life && state.ended.is_none() {
                true => match effect(&mut state) {
                    Ok(effect) => state.begin(path, kind, place, effect),
                    Err(refused) => {
                        state.note(format_args!("{kind:?} {} refused: {:?}", path.display(), refused.kind()));
                        return Err(refused);
                    }
                },
                false => None,
            }
        };
        let mut operation = Operation { world: self.world.clone(), number: begun };
        poll_fn(|context| operation.poll(context)).await
    }

    async fn done(&self, path: &Path, kind: OpKind, effect: impl FnOnce(&mut State) -> Effect) -> io::Result<()> {
        self.run(path, kind, (0, 0), |state| Ok(effect(state))).await.map(drop)
    }
}

impl Operation {
    fn poll(&mut self, context: &Context<'_>) -> Poll<io::Result<Outcome>> {
        let Some(number) = self.number else {
            return Poll::Pending;
        };
        let mut state = self.world.state.borrow_mut();
        let Some(running) = state.ops.get_mut(&number) else {
            return Poll::Pending;
        };
        match running.result.take() {
            None => {
                running.waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(result) => {
                state.ops.remove(&number);
                self.number = None;
                Poll::Ready(result)
            }
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        // At the end of a life the world drops tasks without looking at its state.
        let Ok(mut state) = self.world.state.try_borrow_mut() else {
            return;
        };
        let Some(running) = state.ops.get_mut(&number) else {
            return;
        };
        match running.result {
            Some(_) => drop(state.ops.remove(&number)),
            None => running.abandoned = true,
        }
    }
}

impl State {
    /// An operation comes to its end: its effect happens. Returns whom to wake.
    pub(super) fn complete(&mut self, number: u64) -> Option<Waker> {
        let running = self.ops.get_mut(&number)?;
        let (kind, failure) = (running.kind, running.failure);
        let effect = running.effect.take().expect("an operation ends once");
        let result = self.happen(effect, failure);
        self.note(format_args!("{number} {kind:?} {}", Shown(&result)));
        let running = self.ops.get_mut(&number)?;
        if running.abandoned {
            if let Some(Ok(Outcome::Inode(inode))) = self.ops.remove(&number).map(|_| result) {
                self.disk.close(inode);
            }
            return None;
        }
        running.result = Some(result);
        running.waker.take()
    }

    fn happen(&mut self, effect: Effect, failure: Option<io::ErrorKind>) -> io::Result<Outcome> {
        match effect {
            Effect::Write { inode, write, durable } => {
                let fails = failure.is_some().then_some(&mut self.random);
                self.disk.end_write(inode, write, durable, fails);
            }
            Effect::Flush { inode, covered } => self.disk.end_flush(inode, &covered, failure.is_some()),
            other if failure.is_none() => return self.happen_as_meant(other),
            _ => {}
        }
        failure.map_or(Ok(Outcome::Done), |kind| Err(kind.into()))
    }

    fn happen_as_meant(&mut self, effect: Effect) -> io::Result<Outcome> {
        match effect {
            Effect::Open { path, how } => return self.disk.open(&path, how).map(Outcome::Inode),
            Effect::Read { inode, position, len } => {
                return Ok(Outcome::Bytes(self.disk.read(inode, position, len)));
            }
            Effect::Rename { from, to } => {
                self.disk.rename(&from, &to)?;
                let covered = self.disk.name_changes();
                self.disk.sync_dir(to.parent().expect("a file has a folder"), covered)?;
            }
            Effect::CreateDir { path } => self.disk.create_dir(&path)?,
            Effect::SyncDir { path, covered } => self.disk.sync_dir(&path, covered)?,
            Effect::List { path } => {
                let mut names = self.disk.list(&path);
                // In no order.
                for at in (1..names.len()).rev() {
                    names.swap(at, self.random.below(at + 1));
                }
                return Ok(Outcome::Names(names));
            }
            Effect::Remove { path } => self.disk.remove(&path, None),
            Effect::Write { .. } | Effect::Flush { .. } | Effect::Close => {}
        }
        Ok(Outcome::Done)
    }
}

/// How a result is shown in the trace.
struct Shown<'a>(&'a io::Result<Outcome>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Ok(Outcome::Done) => f.write_str("done"),
            Ok(Outcome::Inode(inode)) => write!(f, "{inode:?}"),
            Ok(Outcome::Bytes(bytes)) => {
                write!(f, "{} bytes {:08x}", bytes.len(), crc32c::crc32c(bytes))
            }
            Ok(Outcome::Names(names)) => write!(f, "{names:?}"),
            Err(error) => write!(f, "failed: {:?}", error.kind()),
        }
    }
}

/// Bytes that were read.
struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An open file of a simulated process.
pub(crate) struct SimFile {
    io: SimIo,
    inode: InodeId,
    path: Rc<Path>,
    how: Open,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.io.world.state.try_borrow_mut()
            && state.life == self.io.life
            && state.ended.is_none()
        {
            state.disk.close(self.inode);
        }
    }
}

impl SimFile {
    fn expect_aligned(&self, position: u64, len: usize) {
        let aligned = position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        assert!(aligned, "{}: {position}+{len} is not made of whole blocks", self.path.display());
    }
}

impl File for SimFile {
    type Buffer = SimBuffer;

    async fn write(&self, buffer: Rc<SimBuffer>, position: u64) -> io::Result<()> {
        let len = buffer.bytes().len();
        self.expect_aligned(position, len);
        assert_ne!(self.how, Open::Read, "{} is open for reading", self.path.display());
        let (inode, durable) = (self.inode, self.how == Open::WriteDurable);
        let begin = |state: &mut State| {
            let digest = crc32c::crc32c(buffer.bytes());
            state.note(format_args!("bytes {digest:08x}"));
            let write = state.disk.begin_write(inode, position, buffer.clone())?;
            Ok(Effect::Write { inode, write, durable })
        };
        self.io.run(&self.path, OpKind::Write, (position, len), begin).await.map(drop)
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Rc<dyn Memory>> {
        self.expect_aligned(position, len);
        assert_ne!(self.how, Open::WriteDurable, "{} is open for writing", self.path.display());
        let effect = Effect::Read { inode: self.inode, position, len };
        match self.io.run(&self.path, OpKind::Read, (position, len), |_| Ok(effect)).await? {
            Outcome::Bytes(bytes) => Ok(Rc::new(Bytes(bytes))),
            _ => unreachable!("a read gives bytes"),
        }
    }

    async fn size(&self) -> io::Result<u64> {
        Ok(self.io.world.state.borrow().disk.size(self.inode))
    }

    async fn flush(&self) -> io::Result<()> {
        let inode = self.inode;
        let begin = |state: &mut State| Effect::Flush { inode, covered: state.disk.begin_flush(inode) };
        self.io.done(&self.path, OpKind::Flush, begin).await
    }

    async fn take_space(&self, bytes: u64) -> io::Result<()> {
        self.io.world.state.borrow_mut().disk.take_space(self.inode, bytes)
    }

    async fn close(self) -> io::Result<()> {
        self.io.done(&self.path, OpKind::Close, |_| Effect::Close).await
    }
}

impl Io for SimIo {
    type File = SimFile;
    type Buffer = SimBuffer;

    fn buffer(&self, len: usize) -> SimBuffer {
        assert!(len.is_multiple_of(BLOCK) && len > 0, "buffers are whole blocks");
        SimBuffer::dirty(len)
    }

    async fn open(&self, path: &Path, how: Open) -> io::Result<SimFile> {
        let path: Rc<Path> = path.into();
        let effect = Effect::Open { path: path.clone(), how };
        match self.run(&path, OpKind::Open, (0, 0), |_| Ok(effect)).await? {
            Outcome::Inode(inode) => Ok(SimFile { io: self.clone(), inode, path, how }),
            _ => unreachable!("opening gives a file"),
        }
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let effect = Effect::Rename { from: from.into(), to: to.into() };
        self.done(to, OpKind::Rename, |_| effect).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.done(path, OpKind::CreateDir, |_| Effect::CreateDir { path: path.into() }).await
    }

    async fn create_dirs(&self, paths: Vec<PathBuf>) -> io::Result<()> {
        for path in paths {
            self.create_dir(&path).await?;
        }
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let begin = |state: &mut State| Effect::SyncDir { path: path.into(), covered: state.disk.name_changes() };
        self.done(path, OpKind::SyncDir, begin).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let effect = Effect::List { path: path.into() };
        match self.run(path, OpKind::List, (0, 0), |_| Ok(effect)).await? {
            Outcome::Names(names) => Ok(names),
            _ => unreachable!("listing gives names"),
        }
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.done(path, OpKind::Remove, |_| Effect::Remove { path: path.into() }).await
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.world.state.borrow().disk.free_bytes())
    }

    fn spawn(&self, _share: Share, task: impl Future<Output = ()> + 'static) {
        self.world.spawn(self.life, task);
    }

    async fn sleep(&self, time: Duration) {
        let wake_ns = {
            let state = self.world.state.borrow();
            state.now_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        let mut set: Option<Waker> = None;
        poll_fn(|context| {
            let mut state = self.world.state.borrow_mut();
            let alive = state.life == self.life && state.ended.is_none();
            if alive && state.now_ns >= wake_ns {
                return Poll::Ready(());
            }
            // another task may go on with it than the one that began
            if alive && !set.as_ref().is_some_and(|set| set.will_wake(context.waker())) {
                set = Some(context.waker().clone());
                state.at(wake_ns, Event::Wake(context.waker().clone()));
            }
            Poll::Pending
        })
        .await;
    }

    async fn yield_now(&self) {
        let mut yielded = self.world.state.borrow_mut().random.one_in(2);
        poll_fn(|context| match std::mem::replace(&mut yielded, true) {
            true => Poll::Ready(()),
            false => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await;
    }

    async fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let took_us = self.world.state.borrow_mut().random.below(2_000);
        self.sleep(Duration::from_micros(took_us as u64)).await;
        work()
    }

    fn now_ms(&self) -> i64 {
        let elapsed_ms = self.world.state.borrow().now_ns / 1_000_000;
        START_MS + i64::try_from(elapsed_ms).expect("a simulation lasts less than an age")
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.world.state.borrow().now_ns)
    }

    fn buffered(&self, _path: &Path) -> io::Result<Option<std::fs::File>> {
        Ok(None)
    }
}
