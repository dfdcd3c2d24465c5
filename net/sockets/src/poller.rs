//! Readiness of sockets: one epoll descriptor per shard, itself awaited through glommio.
//!
//! Owned by the shard; [`Poller::run`] is its only driver. Registrations are edge-triggered: a direction counts as ready
//! until a system call said EWOULDBLOCK, and becomes ready again by an event. glommio has no way to await any
//! descriptor and its streams cannot wait for writability, scatter or sendfile; an epoll descriptor serves all three
//! with one poll request in the ring for many sockets.
#![expect(unsafe_code, reason = "epoll has no safe interface in std, and glommio adopts descriptors by unsafe traits")]

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    rc::Rc,
    task::{Poll, Waker},
};

use futures_util::io::AsyncReadExt;
use glommio::net::UnixStream;

/// One shard's epoll descriptor and who is registered with it.
pub struct Poller {
    epoll: OwnedFd,
    /// A copy of it that glommio waits on; see [`Poller::wait_for_events`].
    adopted: RawFd,
    registered: RefCell<Registered>,
}

#[derive(Default)]
struct Registered {
    /// By token; `None` is free.
    readiness: Vec<Option<Rc<Readiness>>>,
    free: Vec<usize>,
}

/// What is known of one descriptor. At most one task waits per direction.
#[derive(Default)]
pub struct Readiness {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer sends no more, or the connection is broken: no further event will say so.
    hung_up: Cell<bool>,
    /// Set once, by [`Readiness::end_reading`]: nobody shall wait for the direction any more.
    reading_ended: Cell<bool>,
    /// Set once, by [`Readiness::close`].
    closed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

/// Keeps a descriptor registered; must be dropped before the descriptor is closed.
pub struct Registration {
    poller: Rc<Poller>,
    readiness: Rc<Readiness>,
    fd: RawFd,
    token: usize,
}

/// The wait ended because [`Readiness::close`] or [`Readiness::end_reading`] was called.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Readiness {
    /// Ends all waits, now and later, with [`Closed`].
    pub fn close(&self) {
        self.closed.set(true);
        self.reading_ended.set(true);
        self.wake(true, true);
    }

    /// Ends all waits of the reader, now and later, with [`Closed`].
    pub fn end_reading(&self) {
        self.reading_ended.set(true);
        self.wake(true, false);
    }

    /// Whether [`Readiness::end_reading`] or [`Readiness::close`] was called.
    pub fn is_reading_ended(&self) -> bool {
        self.reading_ended.get()
    }

    /// Waits until [`Readiness::end_reading`] or [`Readiness::close`] is called.
    pub async fn reading_ended(&self) -> Closed {
        poll_fn(|cx| {
            if self.reading_ended.get() {
                return Poll::Ready(Closed);
            }
            *self.reader.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether [`Readiness::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// A read said EWOULDBLOCK.
    pub fn clear_readable(&self) {
        self.readable.set(false);
    }

    /// Whether the peer sends no more than is there.
    pub fn is_hung_up(&self) -> bool {
        self.hung_up.get()
    }

    /// There may be something to read, of which no event will tell.
    pub fn set_readable(&self) {
        self.readable.set(true);
    }

    /// A read yielded less than there was room for: what comes next makes an event, unless it is the end, which was
    /// announced already.
    pub fn clear_readable_after_short_read(&self) {
        self.readable.set(self.hung_up.get());
    }

    /// A write said EWOULDBLOCK.
    pub fn clear_writable(&self) {
        self.writable.set(false);
    }

    /// Waits until a read may find something.
    pub async fn readable(&self) -> Result<(), Closed> {
        wait(&self.reading_ended, &self.readable, &self.reader).await
    }

    /// Waits until a write may find room.
    pub async fn writable(&self) -> Result<(), Closed> {
        wait(&self.closed, &self.writable, &self.writer).await
    }

    fn wake(&self, readable: bool, writable: bool) {
        if readable {
            self.readable.set(true);
            if let Some(waker) = self.reader.take() {
                waker.wake();
            }
        }
        if writable {
            self.writable.set(true);
            if let Some(waker) = self.writer.take() {
                waker.wake();
            }
        }
    }
}

async fn wait(ended: &Cell<bool>, ready: &Cell<bool>, waker: &RefCell<Option<Waker>>) -> Result<(), Closed> {
    poll_fn(|cx| {
        if ended.get() {
            return Poll::Ready(Err(Closed));
        }
        if ready.get() {
            return Poll::Ready(Ok(()));
        }
        *waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}

impl std::ops::Deref for Registration {
    type Target = Readiness;

    fn deref(&self) -> &Readiness {
        &self.readiness
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.poller.deregister(self.fd, self.token);
    }
}

impl Poller {
    /// A poller for this shard.
    pub fn new() -> io::Result<Rc<Poller>> {
        // SAFETY: the call takes no pointer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and nobody else knows it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let adopted = epoll.try_clone()?.into_raw_fd();
        Ok(Rc::new(Poller { epoll, adopted, registered: RefCell::default() }))
    }

    /// Registers a non-blocking descriptor for both directions. Both count as ready at first.
    pub fn register(self: &Rc<Poller>, descriptor: &impl AsRawFd) -> io::Result<Registration> {
        let fd = descriptor.as_raw_fd();
        let readiness = Rc::new(Readiness::default());
        readiness.readable.set(true);
        readiness.writable.set(true);
        let token = {
            let mut registered = self.registered.borrow_mut();
            let token = registered.free.pop().unwrap_or_else(|| {
                registered.readiness.push(None);
                registered.readiness.len() - 1
            });
            registered.readiness[token] = Some(readiness.clone());
            token
        };
        let registration = Registration { poller: self.clone(), readiness, fd, token };
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token as u64 };
        // SAFETY: `event` lives across the call; the kernel copies it.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(registration)
    }

    fn deregister(&self, fd: RawFd, token: usize) {
        // SAFETY: the call takes no pointer for this operation. It fails if registering had failed: nothing to undo.
        unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
        let mut registered = self.registered.borrow_mut();
        registered.readiness[token] = None;
        registered.free.push(token);
    }

    /// Turns events into wake-ups, for ever. Ends only with an error of the operating system.
    pub async fn run(self: Rc<Poller>) -> io::Error {
        loop {
            if let Err(error) = self.wait_for_events().await {
                return error;
            }
            loop {
                match self.dispatch() {
                    Ok(more) if more => {}
                    Ok(_) => break,
                    Err(error) => return error,
                }
            }
        }
    }

    /// Waits until the epoll descriptor is readable. glommio arms a poll request whenever it adopts a stream, and a
    /// read of it ends with ENOTSOCK once the request has completed: that error is the event. What it adopts is always
    /// the same copy of the descriptor: a new one each time would need a free descriptor, which a flood of connections
    /// leaves nobody. If the wait is given up, the stream closes the copy, and nobody waits again.
    async fn wait_for_events(&self) -> io::Result<()> {
        // SAFETY: the copy belongs to this poller, is open, and is adopted by one stream at a time.
        let mut stream = unsafe { UnixStream::from_raw_fd(self.adopted) };
        let outcome = stream.read(&mut [0; 1]).await;
        // The copy must stay open; the stream holds nothing else but a weak reference to the reactor.
        std::mem::forget(stream);
        match outcome {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("an epoll descriptor was read")),
        }
    }

    /// Fetches one batch of events; whether more may wait.
    fn dispatch(&self) -> io::Result<bool> {
        const EVENTS_MAX: usize = 256;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: `events` has room for as many events as the call is told.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as libc::c_int, 0) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) };
        };
        let registered = self.registered.borrow();
        for event in &events[..count] {
            let flags = event.events.cast_signed();
            let token = usize::try_from(event.u64).unwrap_or(usize::MAX);
            let Some(Some(readiness)) = registered.readiness.get(token) else {
                continue;
            };
            let broken = flags & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
            let hung_up = broken || flags & libc::EPOLLRDHUP != 0;
            readiness.hung_up.set(readiness.hung_up.get() || hung_up);
            let readable = hung_up || flags & libc::EPOLLIN != 0;
            readiness.wake(broken || readable, broken || flags & libc::EPOLLOUT != 0);
        }
        Ok(count == EVENTS_MAX)
    }
}
