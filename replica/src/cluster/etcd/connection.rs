//! One connection to one of etcd's members: gRPC over HTTP/2. Whoever calls waits on its own thread, which turns the connection
//! meanwhile; between calls nobody does.

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason, RecvStream, SendStream,
    client::{self, SendRequest},
};
use http::{Request, Response, StatusCode};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::yield_now,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    endpoint::Endpoint,
    failure::{CallError, Status},
    framing::Arrived,
};

/// Bytes that a member may send before they are taken: a page in one go.
const WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of the headers of one answer at most.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// How long a connection that nobody used is taken to be there: firewalls forget those that are silent for long.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// How long a thread that looked up a name stays for the next.
const LOOKUP_THREAD_LIFE: Duration = Duration::from_secs(1);
/// Threads that look up names at most. A lookup may take longer than whoever asked waits; the next one then waits for it.
const LOOKUP_THREADS_MAX: usize = 1;

/// What a connection runs through.
trait Duplex: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin> Duplex for T {}

#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    driver: Driver,
    used: Instant,
    /// Last: what is above belongs to it.
    reactor: Arc<Reactor>,
}

impl Connection {
    /// Connects. Nothing that is asked for later is done by this.
    pub(super) fn open(
        reactor: Arc<Reactor>,
        endpoint: &Endpoint,
        tls: &Arc<ClientConfig>,
        deadline: Instant,
    ) -> Result<Self, CallError> {
        let connected = reactor.run_until(deadline, connect(endpoint, tls));
        let connected = connected.ok_or_else(|| CallError::unsent("no connection in time"))?;
        let (requests, connection) = connected.map_err(CallError::unsent)?;
        Ok(Self { requests, driver: Driver { connection, is_over: false }, used: Instant::now(), reactor })
    }

    /// Whether it may have been forgotten on the way.
    pub(super) fn is_stale(&self) -> bool {
        self.used.elapsed() > IDLE_MAX
    }

    /// Asks for one message with one.
    pub(super) fn call(&mut self, request: Request<()>, message: Bytes, deadline: Instant) -> Result<Bytes, CallError> {
        let Self { requests, driver, used, reactor } = self;
        let exchange = async {
            let (response, mut sending) = begin(requests, driver, request).await?;
            sending.send_data(message, true).map_err(CallError::lost)?;
            driver
                .alongside(async {
                    let mut answer = Answer::of(response.await.map_err(failed)?)?;
                    answer.only_message().await
                })
                .await
        };
        let done = reactor.run_until(deadline, exchange);
        *used = Instant::now();
        done.unwrap_or_else(|| Err(CallError::lost("no answer in time")))
    }

    /// Asks for messages with one, and waits for the first. The connection is then the stream's.
    pub(super) fn stream(
        mut self,
        request: Request<()>,
        message: Bytes,
        deadline: Instant,
        patience: Patience,
    ) -> Result<(Messages, Bytes), CallError> {
        let Self { requests, driver, reactor, .. } = &mut self;
        let begun = async {
            let (response, mut sending) = begin(requests, driver, request).await?;
            sending.send_data(message, false).map_err(CallError::lost)?;
            let first = driver.alongside(async {
                let mut answer = Answer::of(response.await.map_err(failed)?)?;
                let first = poll_fn(|context| answer.poll_message(context)).await?;
                Ok::<_, CallError>((answer, first.ok_or_else(|| CallError::lost("it ended at once"))?))
            });
            let (answer, first) = first.await?;
            Ok::<_, CallError>((sending, answer, first))
        };
        let begun = reactor.run_until(deadline, begun);
        let (sending, answer, first) = begun.unwrap_or_else(|| Err(CallError::lost("no answer in time")))?;
        let pings = self.driver.connection.ping_pong().expect("nobody took it before");
        let messages = Messages {
            answer,
            pings,
            patience,
            heard: Instant::now(),
            asked: None,
            _sending: sending,
            connection: self,
        };
        Ok((messages, first))
    }
}

/// How long a stream may be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// So long it may bring nothing before its member is asked whether it is there.
    pub(super) silence: Duration,
    /// So long that may take.
    pub(super) answer: Duration,
}

/// An answer that does not end.
#[derive(Debug)]
pub(super) struct Messages {
    answer: Answer,
    pings: PingPong,
    pub(super) patience: Patience,
    /// When something came last.
    pub(super) heard: Instant,
    /// When the member was asked whether it is there, and has not said yet.
    pub(super) asked: Option<Instant>,
    /// Kept, as the member ends the answer when the request ends.
    _sending: SendStream<Bytes>,
    connection: Connection,
}

impl Messages {
    /// The next message; `None` if there was none within that time.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Option<Bytes>, CallError> {
        let Self { answer, pings, patience, heard, asked, connection, .. } = self;
        let Connection { driver, reactor, .. } = connection;
        let deadline = Instant::now() + wait;
        let next = async {
            loop {
                let patient_until = asked.map_or(*heard + patience.silence, |asked| asked + patience.answer);
                let news = poll_fn(|context| match answer.poll_message(context) {
                    Poll::Pending if pings.poll_pong(context).is_ready() => Poll::Ready(Ok(News::Pong)),
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(message) => Poll::Ready(message.map(News::Message)),
                });
                match timeout_at(patient_until, driver.alongside(news)).await {
                    Ok(news) => {
                        (*heard, *asked) = (Instant::now(), None);
                        match news? {
                            News::Message(Some(message)) => return Ok(message),
                            News::Message(None) => return Err(CallError::lost("it ended")),
                            News::Pong => {}
                        }
                    }
                    Err(_) if asked.is_some() => return Err(CallError::lost("it does not answer")),
                    Err(_) => {
                        pings.send_ping(Ping::opaque()).map_err(CallError::lost)?;
                        *asked = Some(Instant::now());
                    }
                }
            }
        };
        reactor.run_until(deadline, next).transpose()
    }
}

enum News {
    Message(Option<Bytes>),
    Pong,
}

/// What reads and writes, as long as somebody waits for it.
#[derive(Debug)]
struct Driver {
    connection: client::Connection<Box<dyn Duplex>, Bytes>,
    is_over: bool,
}

impl Driver {
    /// Waits for something, and turns the connection meanwhile. Its end is told by what is waited for.
    async fn alongside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            self.turn(context);
            work.as_mut().poll(context)
        })
        .await
    }

    fn turn(&mut self, context: &mut Context<'_>) {
        self.is_over = self.is_over || Pin::new(&mut self.connection).poll(context).is_ready();
    }
}

async fn connect(
    endpoint: &Endpoint,
    tls: &Arc<ClientConfig>,
) -> io::Result<(SendRequest<Bytes>, client::Connection<Box<dyn Duplex>, Bytes>)> {
    let socket = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    socket.set_nodelay(true)?;
    let duplex: Box<dyn Duplex> = match endpoint.is_secure() {
        false => Box::new(socket),
        true => {
            let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
            Box::new(TlsConnector::from(tls.clone()).connect(name, socket).await?)
        }
    };
    let mut builder = client::Builder::new();
    builder.enable_push(false).max_header_list_size(HEADER_BYTES_MAX);
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    builder.handshake(duplex).await.map_err(io::Error::other)
}

/// Begins a request. That it did not leave is sure until this ends.
async fn begin(
    requests: &mut SendRequest<Bytes>,
    driver: &mut Driver,
    request: Request<()>,
) -> Result<(client::ResponseFuture, SendStream<Bytes>), CallError> {
    // a member that closed the connection meanwhile is heard before something is sent that would be lost
    driver.alongside(yield_now()).await;
    if driver.is_over {
        return Err(CallError::unsent("the connection was closed"));
    }
    driver.alongside(poll_fn(|context| requests.poll_ready(context))).await.map_err(CallError::unsent)?;
    requests.send_request(request, false).map_err(CallError::unsent)
}

/// What a failed stream says of its request. One that is refused was not looked at (RFC 9113, 8.7).
fn failed(error: h2::Error) -> CallError {
    match error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        true => CallError::unsent(error),
        false => CallError::lost(error),
    }
}

/// Messages that come, and the status that ends them.
#[derive(Debug)]
struct Answer {
    stream: RecvStream,
    arrived: Arrived,
}

impl Answer {
    fn of(response: Response<RecvStream>) -> Result<Self, CallError> {
        if response.status() != StatusCode::OK {
            return Err(CallError::lost(format_args!("HTTP status {}", response.status())));
        }
        // an answer without messages has its status here, and ends at once
        Status::read(response.headers()).map_or(Ok(()), Status::into_result)?;
        Ok(Self { stream: response.into_body(), arrived: Arrived::default() })
    }

    /// The next message; `None` behind the last.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CallError>> {
        loop {
            if let Some(message) = self.arrived.take()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(self.stream.poll_data(context)) {
                Some(data) => {
                    let data = data.map_err(failed)?;
                    self.stream.flow_control().release_capacity(data.len()).map_err(CallError::lost)?;
                    self.arrived.push(&data);
                }
                None => {
                    let trailers = ready!(self.stream.poll_trailers(context)).map_err(failed)?;
                    let status = trailers.as_ref().and_then(Status::read);
                    let ended =
                        status.ok_or_else(|| CallError::lost("the answer broke off")).and_then(Status::into_result);
                    return Poll::Ready(match self.arrived.is_empty() {
                        false => ended.and(Err(CallError::lost("the answer broke off"))),
                        true => ended.map(|()| None),
                    });
                }
            }
        }
    }

    async fn only_message(&mut self) -> Result<Bytes, CallError> {
        let message = poll_fn(|context| self.poll_message(context)).await?;
        let message = message.ok_or_else(|| CallError::lost("no answer but that it is done"))?;
        match poll_fn(|context| self.poll_message(context)).await? {
            None => Ok(message),
            Some(_) => Err(CallError::lost("two answers to one question")),
        }
    }
}

/// What waits for sockets and time, on the thread that calls.
#[derive(Debug)]
pub(super) struct Reactor(Option<Runtime>);

impl Reactor {
    pub(super) fn new() -> Result<Arc<Self>, CallError> {
        let mut builder = Builder::new_current_thread();
        builder.enable_io().enable_time();
        // names alone are looked up on a thread of their own, as the system's way to do so blocks
        builder.max_blocking_threads(LOOKUP_THREADS_MAX).thread_keep_alive(LOOKUP_THREAD_LIFE);
        builder.thread_name("etcd-lookup");
        Ok(Arc::new(Self(Some(builder.build().map_err(CallError::unsent)?))))
    }

    /// What comes of it; `None` if that takes longer.
    fn run_until<T>(&self, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
        let runtime = self.0.as_ref().expect("taken only when dropped");
        runtime.block_on(async { timeout_at(deadline, work).await.ok() })
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // whoever drops it does not wait for a name that is still looked up
        if let Some(runtime) = mem::take(&mut self.0) {
            runtime.shutdown_background();
        }
    }
}
