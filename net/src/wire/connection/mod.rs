//! One connection: a reader that begins requests as they arrive, and a writer that sends replies in request order.
//!
//! Lives on the shard that accepted it; once its requests are all for another shard it goes on there. Reading goes on while earlier requests wait, within
//! bounds on the number and bytes of requests in flight; beyond them the socket is simply not read. All futures of
//! requests belong to the connection and go with it, but for those whose API says that they must finish.

mod assembler;
mod assembly;
mod dispatch;
mod handover;
mod out_queue;
mod reader;
mod turns;
mod unsent;
mod writer;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::Instant,
};

use futures_util::{
    future::LocalBoxFuture,
    stream::{FuturesOrdered, Stream as _},
};

pub(crate) use self::assembly::Holding;
#[cfg(feature = "fuzzing")]
pub(crate) use self::{
    assembler::{Frame, feed},
    dispatch::{Routed, route},
};
use self::{assembly::Assembly, turns::Turns};
use crate::wire::{
    api::{Api, Context, Reply},
    counters::Asked,
    frame::Malformed,
    peer::{Moving, Peer},
    service::Service,
    shared::{TICK, Wire},
    stream::Stream,
};

/// One connection's state, shared by its reader and its writer.
pub(crate) struct Connection<S: Service> {
    service: Rc<S>,
    peer: Rc<Peer<S::Session>>,
    stream: Stream,
    id: u64,
    /// Turns of fetches.
    turns: Turns,
    /// Answers with a turn that the writer has taken and not sent.
    turns_unsent: Cell<u64>,
    replies: RefCell<FuturesOrdered<LocalBoxFuture<'static, Answered>>>,
    /// Requests read and not yet taken by the writer, and their bytes.
    in_flight: Cell<InFlight>,
    /// No more requests will be read.
    reading_done: Cell<bool>,
    /// It goes on on another shard once everything is sent.
    moves: Cell<bool>,
    waiting_reader: RefCell<Option<Waker>>,
    waiting_writer: RefCell<Option<Waker>>,
    times: Cell<Times>,
    /// Of the frame that is being received, once it has memory.
    assembly: Cell<Option<Assembly>>,
    /// When something was last received: when the requests that are begun next were complete.
    received: Cell<Instant>,
}

/// A request's reply, and what it frees.
struct Answered {
    reply: Reply,
    request_bytes: usize,
    /// The request had a ticket of [`Connection::turns`].
    had_turn: bool,
    asked: Asked,
}

#[derive(Debug, Clone, Copy, Default)]
struct InFlight {
    requests: usize,
    bytes: usize,
}

/// Ticks of a connection's life, for the shard's timer.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Bytes were last received or sent.
    active: u64,
    /// Since when the peer has taken nothing of what waits to be sent.
    sending: Option<u64>,
    /// Since when something waits to be sent.
    unsent: Option<u64>,
    /// Since when no more is read.
    draining: Option<u64>,
}

/// Why reading ended.
#[derive(Debug)]
enum End {
    /// The peer sends no more.
    PeerClosed,
    /// The node stops, or this side has closed the connection.
    Closed,
    /// The connection goes on on that shard.
    Moves(usize),
    /// The operating system failed.
    Io(std::io::Error),
    /// The peer sent what cannot be understood.
    Malformed { api: Option<String>, reason: Malformed },
}

/// Serves a connection to its end, or until it goes on on another shard.
pub(crate) async fn run<S: Service>(connection: &Rc<Connection<S>>) -> Option<(usize, Moving<S::Session>)> {
    let writer = glommio::spawn_local(writer::run(connection.clone()));
    let end = reader::run(connection).await;
    let peer = connection.peer.origin.address;
    match &end {
        End::Malformed { api, reason } => {
            let wire = connection.wire();
            wire.counters.malformed_requests.add(1);
            let api = api.as_deref().unwrap_or("none");
            if let Some(suppressed) = wire.malformed.borrow_mut().on_event(wire.tick()) {
                tracing::warn!(%peer, api, %reason, suppressed, "connection closed: malformed request");
            }
        }
        End::Io(error) => tracing::debug!(%peer, %error, "connection lost"),
        End::PeerClosed | End::Closed => {
            tracing::debug!(%peer, id = connection.id, "connection ends")
        }
        End::Moves(shard) => {
            tracing::debug!(%peer, id = connection.id, shard, "connection moves");
            connection.moves.set(true);
        }
    }
    connection.on_reading_done();
    writer.await;
    if let End::Moves(shard) = end
        && let Some(moving) = connection.hand_over()
    {
        return Some((shard, moving));
    }
    connection.stream.close();
    // Futures of requests nobody waits for any more; some hold this shard's state.
    drop(connection.replies.take());
    let Peer { origin, session } = connection.peer.take();
    connection.service.on_closed(origin, session.into_inner()).await;
    None
}

impl<S: Service> Connection<S> {
    /// A connection that begins, or goes on, on this shard.
    pub(crate) fn new(service: Rc<S>, stream: Stream, peer: Peer<S::Session>, id: u64) -> Rc<Connection<S>> {
        let active = service.wire().tick();
        Rc::new(Connection {
            service,
            peer: Rc::new(peer),
            stream,
            id,
            turns: Turns::default(),
            turns_unsent: Cell::new(0),
            replies: RefCell::default(),
            in_flight: Cell::default(),
            reading_done: Cell::new(false),
            moves: Cell::new(false),
            waiting_reader: RefCell::default(),
            waiting_writer: RefCell::default(),
            times: Cell::new(Times { active, sending: None, unsent: None, draining: None }),
            assembly: Cell::default(),
            received: Cell::new(Instant::now()),
        })
    }

    /// What a request for that API may use.
    fn context(&self, api: &'static Api<S>) -> Context<S> {
        Context { service: self.service.clone(), peer: self.peer.clone(), api }
    }

    fn wire(&self) -> &Wire {
        self.service.wire()
    }

    /// Reads no more requests; those that were read are answered.
    pub(crate) fn end_reading(&self) {
        self.stream.end_reading();
        wake(&self.waiting_reader);
    }

    /// Closes at once.
    pub(crate) fn close(&self) {
        self.stream.close();
        wake(&self.waiting_reader);
        wake(&self.waiting_writer);
    }

    /// A second has gone by: closes the connection if it has been idle or stalled for too long.
    pub(crate) fn on_tick(&self) {
        /// Ticks that a peer may take nothing while others wait for the memory.
        const STALLED_TICKS_MAX: u64 = 5;
        /// Ticks that a peer may take nothing of what waits for it, or may take to read it all while others wait for the
        /// memory.
        const UNREAD_TICKS_MAX: u64 = 60;
        let wire = self.wire();
        let now = wire.tick();
        let times = self.times.get();
        let is_over = |since: Option<u64>, ticks_max: u64| since.is_some_and(|since| now - since > ticks_max);
        let ticks = |duration: std::time::Duration| duration.as_secs().div_ceil(TICK.as_secs());
        let quiet_since = Some(times.active);
        let is_idle = self.in_flight.get().requests == 0 || times.sending.is_some();
        let reason = if is_over(times.draining, ticks(wire.config.stop_timeout)) {
            "requests in flight took too long after the last was read"
        } else if is_over(times.sending, UNREAD_TICKS_MAX) {
            "the peer takes nothing of what is sent"
        } else if (is_over(times.sending, STALLED_TICKS_MAX) || is_over(times.unsent, UNREAD_TICKS_MAX))
            && self.service.is_answer_memory_contended()
        {
            "records that the peer does not read held memory that others wait for"
        } else if is_idle && is_over(quiet_since, ticks(wire.config.idle_timeout)) {
            "idle"
        } else {
            return;
        };
        tracing::info!(peer = %self.peer.origin.address, reason, "connection closed");
        self.close();
    }

    /// That many bytes were received.
    fn on_received(&self, bytes: usize) {
        let now = Instant::now();
        self.received.set(now);
        self.assembly.update(|assembly| assembly.map(|assembly| assembly.on_received(bytes, now)));
        self.wire().counters.received_bytes.add(bytes);
        self.update_times(|times, now| times.active = now);
    }

    /// Everything that the writer took was sent.
    fn on_all_sent(&self) {
        for _ in 0..self.turns_unsent.take() {
            self.turns.next();
        }
    }

    fn update_times(&self, update: impl FnOnce(&mut Times, u64)) {
        let mut times = self.times.get();
        update(&mut times, self.wire().tick());
        self.times.set(times);
    }

    fn on_reading_done(&self) {
        self.reading_done.set(true);
        self.update_times(|times, now| times.draining = Some(now));
        self.assembly.set(None);
        wake(&self.waiting_writer);
    }

    /// Puts a request's future at the end of the queue.
    fn push_reply(&self, request_bytes: usize, reply: LocalBoxFuture<'static, Answered>) {
        let InFlight { requests, bytes } = self.in_flight.get();
        self.in_flight.set(InFlight { requests: requests + 1, bytes: bytes + request_bytes });
        self.replies.borrow_mut().push_back(reply);
        wake(&self.waiting_writer);
    }

    /// Whether so many more requests of so many bytes may be in flight.
    fn has_room(&self, (more, more_bytes): (usize, usize)) -> bool {
        let config = &self.wire().config;
        let InFlight { requests, bytes } = self.in_flight.get();
        requests + more <= config.in_flight_requests_max
            && bytes.saturating_add(more_bytes) <= config.in_flight_bytes_max
    }

    /// Waits until one more request of that size may be in flight. `Err`: nothing more shall be read.
    async fn room_for(&self, request_bytes: usize) -> Result<(), End> {
        poll_fn(|cx| {
            if self.stream.is_reading_ended() {
                return Poll::Ready(Err(End::Closed));
            }
            if self.has_room((1, request_bytes)) || self.in_flight.get().requests == 0 {
                return Poll::Ready(Ok(()));
            }
            *self.waiting_reader.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The next reply in request order. `None`: there will be none, or nobody to send it to.
    async fn next_reply(&self) -> Option<(Reply, Asked)> {
        poll_fn(|cx| {
            if self.stream.is_closed() {
                return Poll::Ready(None);
            }
            *self.waiting_writer.borrow_mut() = Some(cx.waker().clone());
            let mut replies = self.replies.borrow_mut();
            match std::pin::Pin::new(&mut *replies).poll_next(cx) {
                Poll::Ready(Some(answered)) => Poll::Ready(Some(self.on_answered(answered))),
                Poll::Ready(None) if self.reading_done.get() => Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn on_answered(&self, answered: Answered) -> (Reply, Asked) {
        let InFlight { requests, bytes } = self.in_flight.get();
        self.in_flight.set(InFlight { requests: requests - 1, bytes: bytes - answered.request_bytes });
        self.turns_unsent.update(|turns| turns + u64::from(answered.had_turn));
        wake(&self.waiting_reader);
        (answered.reply, answered.asked)
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
