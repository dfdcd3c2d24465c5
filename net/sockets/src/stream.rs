//! A connected socket: non-blocking system calls, and waits for the next one to make sense.
//!
//! Owned by one connection. Reads go into memory that the caller has reserved; writes scatter from slices or from a
//! file, so that records are sent from where they lie.
#![expect(unsafe_code, reason = "a received byte count turns uninitialised memory into initialised memory")]

use std::{
    cell::Cell,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr},
    num::NonZeroUsize,
    rc::Rc,
};

use bytes::BytesMut;
use millrace_engine::api::FileRange;
use socket2::{Domain, Protocol, Socket, Type};

use crate::poller::{Closed, Poller, Registration};

/// A connected, non-blocking socket of this shard.
pub struct Stream {
    // Dropped first: the descriptor must still be open then.
    registration: Registration,
    socket: Socket,
    /// Somebody else has the socket now.
    left: Cell<bool>,
}

impl Stream {
    /// Takes over a connected, non-blocking socket.
    pub fn new(socket: Socket, poller: &Rc<Poller>) -> io::Result<Stream> {
        Ok(Stream { registration: poller.register(&socket)?, socket, left: Cell::new(false) })
    }

    /// Begins to connect: the one place where a shard does. Whether it comes about shows when it is written to.
    pub fn connect(address: SocketAddr, poller: &Rc<Poller>) -> io::Result<Stream> {
        let kind = Type::STREAM.cloexec().nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Stream::new(socket, poller),
        }
    }

    /// Waits until a connection that was begun has come about.
    pub async fn connected(&self) -> io::Result<()> {
        self.registration.clear_writable();
        self.registration.writable().await.map_err(|_| io::ErrorKind::NotConnected)?;
        self.socket.take_error()?.map_or(Ok(()), Err)
    }

    /// Waits until a read may find something.
    pub async fn readable(&self) -> Result<(), Closed> {
        self.registration.readable().await
    }

    /// Waits until a write may find room.
    pub async fn writable(&self) -> Result<(), Closed> {
        self.registration.writable().await
    }

    /// Appends what is there to `buffer`, into its spare capacity, at most `limit` bytes. `None`: nothing yet.
    /// `Some(0)`: the peer will send no more.
    pub fn receive(&self, buffer: &mut BytesMut, limit: usize) -> io::Result<Option<usize>> {
        let spare = buffer.spare_capacity_mut();
        let room = spare.len().min(limit);
        assert!(room > 0, "a read needs room");
        let Some(received) = unless_blocked(|| self.socket.recv(&mut spare[..room]))? else {
            self.registration.clear_readable();
            return Ok(None);
        };
        if received > 0 && received < room {
            self.registration.clear_readable_after_short_read();
        }
        // SAFETY: the kernel has written that many bytes at the start of the spare capacity.
        unsafe { buffer.set_len(buffer.len() + received) };
        Ok(Some(received))
    }

    /// What [`Stream::receive`] would append, but it stays with the socket; to be called again however little it yields.
    pub fn peek(&self, buffer: &mut BytesMut, limit: usize) -> io::Result<Option<usize>> {
        let spare = buffer.spare_capacity_mut();
        let room = spare.len().min(limit);
        let Some(there) = unless_blocked(|| self.socket.peek(&mut spare[..room]))? else {
            self.registration.clear_readable();
            return Ok(None);
        };
        // SAFETY: the kernel has written that many bytes at the start of the spare capacity.
        unsafe { buffer.set_len(buffer.len() + there) };
        Ok(Some(there))
    }

    /// Waits until more comes than is there.
    pub async fn more(&self) -> Result<(), Closed> {
        self.registration.clear_readable();
        self.registration.readable().await
    }

    /// Whether the peer sends no more than is there.
    pub fn is_hung_up(&self) -> bool {
        self.registration.is_hung_up()
    }

    /// After [`Stream::more`] was given up: something may be there.
    pub fn set_readable(&self) {
        self.registration.set_readable();
    }

    /// Whether the peer has sent what was not read yet.
    pub fn has_unread(&self) -> bool {
        matches!(self.socket.peek(&mut [MaybeUninit::uninit()]), Ok(1))
    }

    /// Sends from slices. `None`: no room now.
    pub fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let sent = unless_blocked(|| self.socket.send_vectored_with_flags(slices, flags))?;
        if sent.is_none() {
            self.registration.clear_writable();
        }
        Ok(sent)
    }

    /// Sends up to `limit` bytes of a file's range, starting `done` bytes into it. `None`: no room now.
    pub fn send_file(&self, range: &FileRange, done: usize, limit: usize) -> io::Result<Option<usize>> {
        let wanted = (range.len - done).min(limit);
        let Some(length) = NonZeroUsize::new(wanted) else {
            return Ok(Some(0));
        };
        let position = usize::try_from(range.position).map_err(io::Error::other)? + done;
        match unless_blocked(|| self.socket.sendfile(range.file.as_ref(), position, Some(length)))? {
            Some(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a segment file is shorter than its index")),
            Some(sent) => Ok(Some(sent)),
            None => {
                self.registration.clear_writable();
                Ok(None)
            }
        }
    }

    /// Waits until nothing shall be read any more.
    pub async fn reading_ended(&self) -> Closed {
        self.registration.reading_ended().await
    }

    /// Whether nothing shall be read any more.
    pub fn is_reading_ended(&self) -> bool {
        self.registration.is_reading_ended()
    }

    /// Nothing shall be read any more; what was read is still answered.
    pub fn end_reading(&self) {
        self.registration.end_reading();
    }

    /// Tells the peer that nothing more will be sent.
    pub fn end_sending(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Ends all waits and tells the peer. Bytes already handed to the kernel are still delivered.
    pub fn close(&self) {
        self.registration.close();
        if !self.left.get() {
            // It fails if the peer was faster: all the same.
            drop(self.socket.shutdown(Shutdown::Both));
        }
    }

    /// Ends all waits; the peer goes on with who has the socket that this returns.
    pub fn leave(&self) -> io::Result<Socket> {
        let socket = self.socket.try_clone()?;
        self.left.set(true);
        self.registration.close();
        Ok(socket)
    }

    /// Whether [`Stream::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.registration.is_closed()
    }
}

/// Makes a non-blocking call: `None` when it would have blocked.
fn unless_blocked(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
