//! Which of etcd's members is asked, with which token, and when another one is.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request};
use prost::Message;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::{
    EtcdOptions,
    connection::{Connection, Messages, Patience, Reactor},
    endpoint::{self, ConnectError, Endpoint},
    failure::CallError,
    framing::framed,
    messages::{AuthenticateRequest, AuthenticateResponse},
};
use crate::cluster::store::StoreError;

/// How long a watch may be silent before its member is asked whether it is there; etcd takes such questions every 5 s
/// (`--grpc-keepalive-min-time`).
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(20);

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// When a call that failed goes to the next endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Always: asking twice does no harm.
    Always,
    /// Only if the request surely was not sent.
    Unsent,
}

#[derive(Debug)]
pub(super) struct Caller {
    pub(super) endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    current: usize,
    /// To that one, if there is one.
    connection: Option<Connection>,
    /// Of all its connections, one after the other, but those of streams.
    reactor: Option<Arc<Reactor>>,
    pub(super) timeout: Duration,
    pub(super) watch_silence_max: Duration,
    tls: Arc<ClientConfig>,
    user: Option<(String, String)>,
    pub(super) token: Option<HeaderValue>,
}

impl Caller {
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, ConnectError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if options.cluster.is_empty() || !options.cluster.bytes().all(legal) {
            return Err(ConnectError::Cluster(options.cluster.clone()));
        }
        let endpoints = options.endpoints.iter().map(|endpoint| Endpoint::parse(endpoint));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(ConnectError::Endpoint(String::new()));
        }
        Ok(Self {
            endpoints,
            current: 0,
            connection: None,
            reactor: None,
            timeout: options.timeout,
            watch_silence_max: WATCH_SILENCE_MAX,
            tls: endpoint::tls(&options.tls)?,
            user: options.user.clone(),
            token: None,
        })
    }

    /// Calls a method, at each endpoint once at most.
    pub(super) fn call<T: Message + Default>(
        &mut self,
        path: &'static str,
        request: &impl Message,
        repeat: Repeat,
    ) -> Result<T, StoreError> {
        let message = framed(request);
        let mut failure = None;
        for _ in 0..self.endpoints.len() {
            match self.with_token(|caller| caller.call_here(path, &message)) {
                Ok(answer) => return decode(answer),
                Err(CallError::Said(status)) => match status.into_error() {
                    StoreError::Away(text) if repeat == Repeat::Always => failure = Some(StoreError::Away(text)),
                    StoreError::Away(text) => {
                        // it answers, but reaches no majority or cannot write: others may
                        self.turn();
                        return Err(StoreError::Away(text));
                    }
                    other => return Err(other),
                },
                Err(CallError::Unsent(text)) => failure = Some(StoreError::Away(text)),
                Err(CallError::Lost(text)) if repeat == Repeat::Always => failure = Some(StoreError::Away(text)),
                Err(CallError::Lost(text)) => {
                    self.turn();
                    return Err(StoreError::Away(text));
                }
            }
            self.turn();
        }
        Err(failure.expect("there is an endpoint"))
    }

    /// Begins an answer that does not end, on a connection of its own; with its first message.
    pub(super) fn stream(
        &mut self,
        path: &'static str,
        request: &impl Message,
    ) -> Result<(Messages, Bytes), StoreError> {
        let message = framed(request);
        let mut failure = None;
        for _ in 0..self.endpoints.len() {
            match self.with_token(|caller| caller.stream_here(path, &message)) {
                Ok(stream) => return Ok(stream),
                Err(error) => match error.into_error() {
                    StoreError::Away(text) => failure = Some(StoreError::Away(text)),
                    other => return Err(other),
                },
            }
            self.turn();
        }
        Err(failure.expect("there is an endpoint"))
    }

    fn turn(&mut self) {
        self.current = (self.current + 1) % self.endpoints.len();
        self.connection = None;
    }

    /// Asks, with a token if there is a user, and once more with a new one if it is said to be no good.
    fn with_token<T>(&mut self, ask: impl Fn(&mut Self) -> Result<T, CallError>) -> Result<T, CallError> {
        if self.user.is_some() && self.token.is_none() {
            self.authenticate()?;
        }
        match ask(self) {
            Err(CallError::Said(status)) if status.wants_token() && self.user.is_some() => {
                self.authenticate()?;
                ask(self)
            }
            other => other,
        }
    }

    fn authenticate(&mut self) -> Result<(), CallError> {
        self.token = None;
        let Some((name, password)) = self.user.clone() else { return Ok(()) };
        let message = framed(&AuthenticateRequest { name, password });
        let answer = self.call_here(AUTHENTICATE, &message).map_err(CallError::of_preparation)?;
        let answer = AuthenticateResponse::decode(answer).map_err(CallError::unsent)?;
        let mut token = HeaderValue::try_from(answer.token).map_err(CallError::unsent)?;
        token.set_sensitive(true);
        self.token = Some(token);
        Ok(())
    }

    fn call_here(&mut self, path: &'static str, message: &Bytes) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + self.timeout;
        let kept = self.connection.take().filter(|connection| !connection.is_stale());
        if let Some(mut kept) = kept {
            let answer = kept.call(self.request(path), message.clone(), deadline);
            // one that was closed meanwhile is made anew
            if !matches!(answer, Err(CallError::Unsent(_))) {
                self.connection = Some(kept);
                return answer.map_err(|error| error.of(&self.endpoint().url));
            }
        }
        let reactor = match &self.reactor {
            Some(reactor) => reactor.clone(),
            None => self.reactor.insert(Reactor::new()?).clone(),
        };
        let mut connection = self.connect(reactor, deadline)?;
        let answer = connection.call(self.request(path), message.clone(), deadline);
        self.connection = Some(connection);
        answer.map_err(|error| error.of(&self.endpoint().url))
    }

    fn stream_here(&mut self, path: &'static str, message: &Bytes) -> Result<(Messages, Bytes), CallError> {
        let deadline = Instant::now() + self.timeout;
        let mut request = self.request(path);
        // a member that loses its leader then ends the watch, which would bring nothing
        request.headers_mut().insert("hasleader", HeaderValue::from_static("true"));
        let patience = Patience { silence: self.watch_silence_max, answer: self.timeout };
        // whoever reads it does so on another thread
        let stream = self.connect(Reactor::new()?, deadline)?.stream(request, message.clone(), deadline, patience);
        stream.map_err(|error| error.of(&self.endpoint().url))
    }

    fn connect(&self, reactor: Arc<Reactor>, deadline: Instant) -> Result<Connection, CallError> {
        let endpoint = self.endpoint();
        Connection::open(reactor, endpoint, &self.tls, deadline).map_err(|error| error.of(&endpoint.url))
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoints[self.current]
    }

    fn request(&self, path: &'static str) -> Request<()> {
        let mut request = Request::post(self.endpoint().method(path));
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        if let Some(token) = &self.token {
            request = request.header("token", token);
        }
        request.body(()).expect("all of its headers are sound")
    }
}

fn decode<T: Message + Default>(answer: Bytes) -> Result<T, StoreError> {
    T::decode(answer).map_err(|error| StoreError::Nonsense(error.to_string()))
}
