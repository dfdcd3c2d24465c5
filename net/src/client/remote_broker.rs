//! A connection from this shard to another broker: the shell around an [`Exchange`].
//!
//! One task moves the bytes of both directions; callers wait at a place of their own. No borrow lives across an await.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use kafka_protocol::{
    messages::ApiVersionsRequest,
    protocol::{Request, StrBytes},
};
use millrace_client::{
    Exchange, Negotiation, NotSent, ProtocolError, Versions,
    frame::{answer_body, api_name, decode_answer},
};

use super::{Ask, CallError, CallLimits, Sockets};
use crate::wire::stream::Stream;

/// Bytes that one read may yield.
const READ_BYTES: usize = 16 << 10;

/// See [`super`]. Closes its connection when it is dropped.
pub struct RemoteBroker {
    connection: Rc<Connection>,
    versions: Versions,
}

struct Connection {
    stream: Stream,
    exchange: RefCell<Exchange<Rc<Place>>>,
    limits: CallLimits,
    /// Set once, when the connection ends.
    failure: RefCell<Option<CallError>>,
    /// The task that writes, while it has nothing to write.
    writer: RefCell<Option<Waker>>,
    // Dropped last: the stream is registered with its poller.
    _sockets: Rc<Sockets>,
}

/// Where a caller waits.
#[derive(Default)]
struct Place {
    outcome: RefCell<Option<Result<Bytes, CallError>>>,
    waker: RefCell<Option<Waker>>,
}

impl Place {
    fn end(&self, outcome: Result<Bytes, CallError>) {
        self.outcome.replace(Some(outcome));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn outcome(&self) -> Result<Bytes, CallError> {
        poll_fn(|cx| match self.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl RemoteBroker {
    /// Takes over a socket that connects, and asks what the other side serves.
    pub(super) async fn open(
        stream: Stream,
        sockets: Rc<Sockets>,
        client_id: StrBytes,
        limits: CallLimits,
    ) -> Result<RemoteBroker, CallError> {
        let connection = Rc::new(Connection {
            stream,
            exchange: RefCell::new(Exchange::new(client_id, limits.exchange)),
            limits,
            failure: RefCell::default(),
            writer: RefCell::default(),
            _sockets: sockets,
        });
        glommio::spawn_local(connection.clone().run()).detach();
        // From here on the connection closes with whoever gives up.
        let mut broker = RemoteBroker { connection, versions: Versions::default() };
        broker.versions = broker.connection.in_time(pin!(broker.connection.negotiate())).await?;
        Ok(broker)
    }

    /// Sends a request, which `build` makes for the newest version that both sides know, and waits for its answer.
    pub async fn call<R: Ask>(&self, build: impl FnOnce(i16) -> R) -> Result<R::Response, CallError> {
        let version = self.versions.common_up_to::<R>(R::VERSION_MAX).filter(|version| *version >= R::VERSION_MIN);
        let version = version.ok_or_else(|| CallError::Unsupported(api_name(R::KEY)))?;
        let place = self.connection.start(version, &build(version))?;
        let answer = self.connection.in_time(pin!(place.outcome())).await?;
        check_answer::<R>(&answer, version)
            .and_then(|()| decode_answer::<R>(answer, version))
            .map_err(|error| self.connection.fail(CallError::NotKafka(error)))
    }

    /// Number of calls without an answer.
    pub fn in_flight(&self) -> usize {
        self.connection.exchange.borrow().in_flight()
    }

    /// Ends the connection, and with it every open call.
    pub fn close(&self) {
        self.connection.fail(closed());
    }

    /// Why the connection ended, if it has.
    pub fn failure(&self) -> Option<CallError> {
        self.connection.failure.borrow().clone()
    }
}

impl Drop for RemoteBroker {
    fn drop(&mut self) {
        self.connection.stream.close();
    }
}

/// Nothing of an answer is decoded whose counts its bytes do not bear out.
fn check_answer<R: Ask>(answer: &Bytes, version: i16) -> Result<(), ProtocolError> {
    let body = answer_body::<R>(answer.clone(), version)?;
    R::check_answer(version, &body).map_err(|reason| ProtocolError::Decode { api: api_name(R::KEY), version, reason })
}

impl Connection {
    async fn negotiate(&self) -> Result<Versions, CallError> {
        let mut negotiation = Negotiation::new();
        loop {
            let answer = self.start(negotiation.version(), &negotiation.request())?.outcome().await?;
            let known = check_answer::<ApiVersionsRequest>(&answer, negotiation.answer_version(&answer))
                .and_then(|()| negotiation.handle_answer(answer));
            if let Some(outcome) = known.map_err(CallError::NotKafka)? {
                return outcome.map_err(CallError::Refused);
            }
        }
    }

    /// Takes a request; it leaves behind those before it.
    fn start<R: Request>(&self, version: i16, request: &R) -> Result<Rc<Place>, CallError> {
        if let Some(failure) = self.failure.borrow().clone() {
            return Err(failure);
        }
        let place = Rc::new(Place::default());
        let taken = self.exchange.borrow_mut().handle_request(version, request, place.clone());
        taken.map_err(|error| match error {
            NotSent::Full => CallError::Full,
            NotSent::Encode(error) => CallError::Encode(error),
        })?;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        Ok(place)
    }

    /// Waits no longer than a call may take. An answer that is late keeps all behind it waiting too: the connection ends.
    async fn in_time<T>(&self, outcome: impl Future<Output = Result<T, CallError>> + Unpin) -> Result<T, CallError> {
        match select(outcome, pin!(glommio::timer::sleep(self.limits.timeout))).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(self.fail(CallError::TimedOut)),
        }
    }

    /// Ends the connection, unless it has ended; answers why it did.
    fn fail(&self, failure: CallError) -> CallError {
        let failure = self.failure.borrow_mut().get_or_insert(failure).clone();
        let open = self.exchange.borrow_mut().give_up();
        open.into_iter().for_each(|place| place.end(Err(failure.clone())));
        self.stream.close();
        failure
    }

    /// Moves bytes until the connection ends.
    async fn run(self: Rc<Connection>) {
        let failure = match select(pin!(self.read()), pin!(self.write())).await {
            Either::Left((Err(failure), _)) | Either::Right((Err(failure), _)) => failure,
        };
        self.fail(failure);
    }

    async fn read(&self) -> Result<Never, CallError> {
        loop {
            self.stream.readable().await.map_err(|_| closed())?;
            self.receive()?;
            glommio::yield_if_needed().await;
        }
    }

    fn receive(&self) -> Result<(), CallError> {
        let mut exchange = self.exchange.borrow_mut();
        let received: &mut BytesMut = exchange.received();
        received.reserve(READ_BYTES);
        match self.stream.receive(received, READ_BYTES)? {
            None => return Ok(()),
            Some(0) => return Err(CallError::Lost(io::ErrorKind::UnexpectedEof)),
            Some(_) => {}
        }
        while let Some((place, answer)) = exchange.next_answer().map_err(CallError::NotKafka)? {
            place.end(Ok(answer));
        }
        Ok(())
    }

    async fn write(&self) -> Result<Never, CallError> {
        loop {
            self.asked().await;
            if !self.send()? {
                self.stream.writable().await.map_err(|_| closed())?;
            }
        }
    }

    /// Waits until there is something to send.
    async fn asked(&self) {
        poll_fn(|cx| {
            if !self.exchange.borrow().unsent().is_empty() {
                return Poll::Ready(());
            }
            self.writer.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Sends what the socket takes; whether it took something.
    fn send(&self) -> Result<bool, CallError> {
        let mut exchange = self.exchange.borrow_mut();
        let sent = self.stream.send(&[IoSlice::new(exchange.unsent())])?;
        exchange.handle_sent(sent.unwrap_or(0));
        Ok(sent.is_some())
    }
}

/// A task that ends only by failing.
enum Never {}

/// Whoever closed the stream has said why, or has dropped the connection.
fn closed() -> CallError {
    CallError::Lost(io::ErrorKind::ConnectionAborted)
}
