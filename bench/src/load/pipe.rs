//! One non-blocking connection: bytes out, whole frames in. Knows nothing of what they mean.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use millrace_client::{Socket, frame};

/// Bytes of one read: zeroed before, so no more than some dozens of answers need.
const READ_BYTES: usize = 8 << 10;

/// What is sent here has small answers.
const ANSWER_BYTES_MAX: usize = (16 << 20) - 1;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe {
    socket: Socket,
    out: Vec<u8>,
    out_at: usize,
    inbox: BytesMut,
}

impl Pipe {
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Pipe> {
        let socket = Socket::connect_any(&[address], CONNECT_TIMEOUT);
        let socket = socket.with_context(|| format!("cannot connect to {address}"))?;
        socket.tcp().set_nonblocking(true)?;
        Ok(Pipe { socket, out: Vec::new(), out_at: 0, inbox: BytesMut::new() })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.tcp().as_raw_fd()
    }

    /// Whether bytes wait for the socket to take them.
    pub(crate) fn wants_write(&self) -> bool {
        self.out_at < self.out.len()
    }

    /// The emptied buffer for the next bytes to send; nothing waits any more.
    pub(crate) fn next_out(&mut self) -> &mut Vec<u8> {
        self.out.clear();
        self.out_at = 0;
        &mut self.out
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        while self.wants_write() {
            match self.socket.write(&self.out[self.out_at..]) {
                Ok(0) => bail!("the broker takes no more bytes"),
                Ok(n) => self.out_at += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("write to the broker"),
            }
        }
        Ok(())
    }

    /// Reads what is there, and hands over each whole frame without its length. Whoever keeps one keeps all
    /// that was read with it, and the next read needs a new buffer.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Bytes) -> anyhow::Result<()>) -> anyhow::Result<()> {
        loop {
            let start = self.inbox.len();
            self.inbox.resize(start + READ_BYTES, 0);
            let result = self.socket.read(&mut self.inbox[start..]);
            self.inbox.truncate(start + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(n) if n < READ_BYTES => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read from the broker"),
            }
        }
        while let Some(answer) = frame::take_frame(&mut self.inbox, ANSWER_BYTES_MAX)? {
            take(answer)?;
        }
        Ok(())
    }
}
