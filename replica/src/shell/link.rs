//! One connection of the channel: a reader that hands on whole frames, a writer that gathers what is to be sent.
//!
//! Owned by the shard that the connection belongs to. What waits to be sent is bounded by the peer's credits, which the core
//! keeps; what is received is bounded by those that this side gave. A connection ends once; whoever reads it is told.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, IoSlice},
    rc::Rc,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::{Either, select};
use glommio::timer::sleep;
use millrace_engine::signal::Signal;
use millrace_sockets::stream::Stream;

use crate::channel::frame::{EncodedFrame, FRAME_HEADER_BYTES, Frame, FrameError, FrameHeader, decode, encode};

/// Bytes that one read yields at most, so that a connection does not hold the shard.
const READ_BYTES_MAX: usize = 1 << 20;
/// Bytes that may be read beyond a frame's header: small frames come with one call.
const AHEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes gathered for one call, and slices.
const GATHERED_BYTES_MAX: usize = 1 << 20;
const GATHERED_SLICES_MAX: usize = 256;
/// How long what was queued before the end may take to leave.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);
/// The first frame of a stranger is this long at most, whatever it declares.
const STRANGER_BYTES_MAX: usize = 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The other side closed it, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// Longer than a first frame is.
    #[error("it begins with {0} bytes, more than any first frame has")]
    TooLongForAStranger(usize),
    /// This side closed it.
    #[error("closed here")]
    Closed,
}

/// A connection of this shard.
pub(super) struct Link {
    stream: Stream,
    unsent: RefCell<VecDeque<Bytes>>,
    /// Something is to be sent, or nothing ever again.
    bell: Signal,
    /// No more frames will be queued.
    is_ending: Cell<bool>,
}

impl Link {
    pub(super) fn new(stream: Stream) -> Rc<Link> {
        Rc::new(Link { stream, unsent: RefCell::default(), bell: Signal::default(), is_ending: Cell::new(false) })
    }

    /// Queues a frame.
    pub(super) fn send(&self, frame: &Frame) {
        let EncodedFrame { head, payload } = encode(frame);
        let mut unsent = self.unsent.borrow_mut();
        unsent.push_back(head);
        unsent.extend(payload.into_iter().filter(|bytes| !bytes.is_empty()));
        self.bell.notify();
    }

    /// Closes the connection once everything queued is out.
    pub(super) fn hang_up(&self) {
        self.is_ending.set(true);
        self.bell.notify();
    }

    /// Closes it at once.
    pub(super) fn close(&self) {
        self.hang_up();
        self.stream.close();
    }

    /// Sends until the connection ends. After [`Link::hang_up`] it ends when the queue is empty, or after a while.
    pub(super) async fn write(&self) -> LinkError {
        loop {
            let is_ending = self.is_ending.get();
            let sending = std::pin::pin!(self.send_queued());
            let sent = match is_ending {
                false => sending.await,
                true => match select(sending, std::pin::pin!(sleep(FAREWELL_PATIENCE))).await {
                    Either::Left((sent, _)) => sent,
                    Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            if let Err(error) = sent {
                self.stream.close();
                return error.into();
            }
            if is_ending {
                self.stream.close();
                return LinkError::Closed;
            }
            self.bell.wait().await;
        }
    }

    async fn send_queued(&self) -> io::Result<()> {
        loop {
            let sent = {
                let unsent = self.unsent.borrow();
                if unsent.is_empty() {
                    return Ok(());
                }
                self.stream.send(&gathered(&unsent))?
            };
            match sent {
                Some(sent) => forget(&mut self.unsent.borrow_mut(), sent),
                None => self.stream.writable().await.map_err(|_| io::ErrorKind::NotConnected)?,
            }
        }
    }

    /// Waits for the next frame. `heard` is called whenever a part of one came and more is to come. A dropped wait loses what it
    /// had read: only the reader of the connection waits.
    pub(super) async fn receive(&self, inbox: &mut Inbox, heard: impl Fn()) -> Result<Frame, LinkError> {
        let header = self.header(inbox, AHEAD_BYTES_MAX).await?;
        Ok(decode(header, self.body(inbox, header.body_bytes(), heard).await?)?)
    }

    /// The first frame of somebody who is not known yet. Nothing behind it is read: another shard may go on there.
    pub(super) async fn receive_first(&self, inbox: &mut Inbox) -> Result<Frame, LinkError> {
        let header = self.header(inbox, 0).await?;
        match header.body_bytes() {
            length @ ..=STRANGER_BYTES_MAX => Ok(decode(header, self.body(inbox, length, || ()).await?)?),
            length => Err(LinkError::TooLongForAStranger(length)),
        }
    }

    async fn header(&self, inbox: &mut Inbox, ahead: usize) -> Result<FrameHeader, LinkError> {
        self.fill(inbox, FRAME_HEADER_BYTES, ahead, || ()).await?;
        let (header, _) = inbox.0.split_first_chunk().expect("it was filled that far");
        let header = FrameHeader::parse(header)?;
        inbox.0.advance(FRAME_HEADER_BYTES);
        Ok(header)
    }

    async fn body(&self, inbox: &mut Inbox, length: usize, heard: impl Fn()) -> Result<Bytes, LinkError> {
        self.fill(inbox, length, 0, heard).await?;
        Ok(inbox.0.split_to(length).freeze())
    }

    /// Reads until that many bytes are there, and what comes with them, up to `ahead`: frames that are kept while they are
    /// written shall keep no others alive.
    async fn fill(&self, inbox: &mut Inbox, length: usize, ahead: usize, heard: impl Fn()) -> Result<(), LinkError> {
        while inbox.0.len() < length {
            let wanted = (length - inbox.0.len()).max(ahead);
            inbox.0.reserve(wanted);
            if self.stream.readable().await.is_err() {
                return Err(LinkError::Closed);
            }
            match self.stream.receive(&mut inbox.0, wanted.min(READ_BYTES_MAX))? {
                Some(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Some(_) => {
                    if inbox.0.len() < length {
                        heard();
                    }
                    glommio::yield_if_needed().await;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Gives the socket up for another shard.
    pub(super) fn leave(&self) -> io::Result<socket2::Socket> {
        self.stream.leave()
    }
}

/// What a reader has read beyond the last frame.
#[derive(Debug, Default)]
pub(super) struct Inbox(BytesMut);

fn gathered(unsent: &VecDeque<Bytes>) -> Vec<IoSlice<'_>> {
    let mut bytes = 0;
    let fits = |slice: &&Bytes| {
        let has_room = bytes < GATHERED_BYTES_MAX;
        bytes += slice.len();
        has_room
    };
    unsent.iter().take(GATHERED_SLICES_MAX).take_while(fits).map(|slice| IoSlice::new(slice)).collect()
}

/// Drops what was sent.
fn forget(unsent: &mut VecDeque<Bytes>, mut sent: usize) {
    while sent > 0 {
        let first = unsent.front_mut().expect("no more was sent than was there");
        if first.len() > sent {
            first.advance(sent);
            return;
        }
        sent -= first.len();
        unsent.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_forgotten_and_nothing_else() {
        let slices = [&b"abc"[..], b"de", b"f"];
        for sent in 0..=6 {
            let mut unsent: VecDeque<Bytes> = slices.iter().map(|slice| Bytes::from_static(slice)).collect();
            forget(&mut unsent, sent);
            let left: Vec<u8> = unsent.iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(left, b"abcdef"[sent..]);
            assert!(unsent.iter().all(|slice| !slice.is_empty()));
        }
    }

    #[test]
    fn one_call_gathers_a_bounded_number_of_bytes_and_slices() {
        let large = Bytes::from(vec![0; GATHERED_BYTES_MAX]);
        let unsent: VecDeque<Bytes> = [large.clone(), large.clone(), large].into();
        assert_eq!(gathered(&unsent).len(), 1);
        let unsent: VecDeque<Bytes> = (0..1000).map(|_| Bytes::from_static(b"x")).collect();
        assert_eq!(gathered(&unsent).len(), GATHERED_SLICES_MAX);
    }
}
