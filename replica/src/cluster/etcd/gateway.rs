//! HTTP to etcd's members: which one is asked, certificates, tokens, and what an error means.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body,
    http::Response,
    tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem},
};

use super::{
    EtcdOptions, EtcdTls,
    messages::{AuthenticateRequest, AuthenticateResponse, Failure},
};
use crate::cluster::store::StoreError;

/// Bytes of one answer at most: a page of keys with their values in base64, several times over.
pub(super) const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// How long a watch may be silent before its connection is taken for dead and made anew.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why there is no way to etcd.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint, or one that is none.
    #[error("'{0}' is no endpoint of etcd: write http://HOST:PORT or https://HOST:PORT")]
    Endpoint(String),
    /// The name cannot be a part of keys.
    #[error("'{0}' cannot be a cluster's name: letters, digits, '.', '_' and '-' can be in one")]
    Cluster(String),
    /// A file with a certificate or key cannot be used.
    #[error("{path}: {reason}")]
    Certificate {
        /// Which.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// When a call that failed goes to the next endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Always: asking twice does no harm.
    Always,
    /// Only if the request surely was not sent.
    Unsent,
}

#[derive(Debug)]
pub(super) struct Gateway {
    agent: Agent,
    watching: Agent,
    endpoints: Vec<String>,
    /// The endpoint that answered last.
    current: usize,
    user: Option<(String, String)>,
    token: Option<String>,
}

impl Gateway {
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, ConnectError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if options.cluster.is_empty() || !options.cluster.bytes().all(legal) {
            return Err(ConnectError::Cluster(options.cluster.clone()));
        }
        let endpoints = options.endpoints.iter().map(|endpoint| check_endpoint(endpoint));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(ConnectError::Endpoint(String::new()));
        }
        let tls = tls(&options.tls)?;
        let base = || Agent::config_builder().tls_config(tls.clone()).http_status_as_error(false).proxy(None);
        let agent = base().timeout_global(Some(options.timeout)).build().new_agent();
        let watching = base()
            .timeout_connect(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(WATCH_SILENCE_MAX))
            .build()
            .new_agent();
        Ok(Self { agent, watching, endpoints, current: 0, user: options.user.clone(), token: None })
    }

    /// Calls a method, at each endpoint once at most.
    pub(super) fn call<T: DeserializeOwned>(
        &mut self,
        path: &str,
        request: &impl Serialize,
        repeat: Repeat,
    ) -> Result<T, StoreError> {
        let body = body(request);
        let mut failure = None;
        for _ in 0..self.endpoints.len() {
            match self.call_here(path, &body) {
                Ok(answer) => return decode(&answer),
                Err(CallError::Said(error)) => match error.into_error() {
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

    /// Begins an answer that does not end.
    pub(super) fn stream(&mut self, path: &str, request: &impl Serialize) -> Result<Box<dyn Read + Send>, StoreError> {
        let body = body(request);
        let agent = self.watching.clone();
        let mut failure = StoreError::Away(String::new());
        for _ in 0..self.endpoints.len() {
            match self.post_with_token(&agent, path, &body) {
                Ok(response) => return Ok(Box::new(response.into_body().into_reader())),
                Err(error) => failure = error.into_error(),
            }
            self.turn();
        }
        Err(failure)
    }

    fn turn(&mut self) {
        self.current = (self.current + 1) % self.endpoints.len();
    }

    fn call_here(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>, CallError> {
        let agent = self.agent.clone();
        let response = self.post_with_token(&agent, path, body)?;
        read_all(response)
    }

    /// Posts, with a token if there is a user, and once more with a new one if it is said to be no good.
    fn post_with_token(&mut self, agent: &Agent, path: &str, body: &[u8]) -> Result<Response<Body>, CallError> {
        if self.user.is_some() && self.token.is_none() {
            self.authenticate()?;
        }
        match self.post(agent, path, body) {
            Err(CallError::Said(error)) if error.wants_token() && self.user.is_some() => {
                self.authenticate()?;
                self.post(agent, path, body)
            }
            other => other,
        }
    }

    fn authenticate(&mut self) -> Result<(), CallError> {
        self.token = None;
        let Some((name, password)) = &self.user else { return Ok(()) };
        let body = body(&AuthenticateRequest { name, password });
        let agent = self.agent.clone();
        // what comes back is read whole: nothing that was asked for is done by it
        let answer =
            self.post(&agent, "/v3/auth/authenticate", &body).and_then(read_all).map_err(|error| match error {
                CallError::Lost(text) => CallError::Unsent(text),
                other => other,
            })?;
        let answer: AuthenticateResponse = decode(&answer).map_err(|error| CallError::Unsent(error.to_string()))?;
        self.token = Some(answer.token);
        Ok(())
    }

    fn post(&self, agent: &Agent, path: &str, body: &[u8]) -> Result<Response<Body>, CallError> {
        let endpoint = &self.endpoints[self.current];
        let mut request = agent.post(format!("{endpoint}{path}")).header("Content-Type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        let response = request.send(body).map_err(|error| CallError::of(endpoint, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let answer = read_all(response)?;
        match serde_json::from_slice::<Failure>(&answer) {
            Ok(failure) => Err(CallError::Said(failure)),
            Err(_) => Err(CallError::Lost(format!("{endpoint}: HTTP status {status}"))),
        }
    }
}

enum CallError {
    /// etcd said no.
    Said(Failure),
    /// The request did not leave.
    Unsent(String),
    /// What came of the request is not known.
    Lost(String),
}

impl CallError {
    fn of(endpoint: &str, error: &ureq::Error) -> Self {
        let text = format!("{endpoint}: {error}");
        match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Rustls(_) => Self::Unsent(text),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => Self::Unsent(text),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => Self::Unsent(text),
            _ => Self::Lost(text),
        }
    }

    fn into_error(self) -> StoreError {
        match self {
            Self::Said(failure) => failure.into_error(),
            Self::Unsent(text) | Self::Lost(text) => StoreError::Away(text),
        }
    }
}

fn body(request: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(request).expect("requests are text and lists of it")
}

fn read_all(response: Response<Body>) -> Result<Vec<u8>, CallError> {
    let mut answer = Vec::new();
    let mut body = response.into_body().into_reader().take(ANSWER_BYTES_MAX + 1);
    body.read_to_end(&mut answer).map_err(|error| CallError::Lost(format!("etcd's answer broke off: {error}")))?;
    match answer.len() as u64 > ANSWER_BYTES_MAX {
        true => Err(CallError::Lost(format!("an answer of more than {ANSWER_BYTES_MAX} bytes"))),
        false => Ok(answer),
    }
}

fn decode<T: DeserializeOwned>(answer: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(answer).map_err(|error| StoreError::Nonsense(error.to_string()))
}

fn check_endpoint(endpoint: &str) -> Result<String, ConnectError> {
    let refuse = || ConnectError::Endpoint(endpoint.to_owned());
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://")).ok_or_else(refuse)?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(refuse)?;
    match !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() {
        true => Ok(endpoint.trim_end_matches('/').to_owned()),
        false => Err(refuse()),
    }
}

fn tls(files: &EtcdTls) -> Result<TlsConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    // without an authority of its own nobody is trusted: etcd's certificates are signed by whoever runs it
    let authorities = files.authority.as_deref().map_or_else(|| Ok(Vec::new()), certificates)?;
    config = config.root_certs(RootCerts::new_with_certs(&authorities));
    if let Some((certificate, key)) = &files.certificate {
        let chain = certificates(certificate)?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&chain, private_key(key)?)));
    }
    Ok(config.build())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ConnectError> {
    let mut certificates = Vec::new();
    for item in parse_pem(&read_file(path)?) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| unusable(path, &error))? {
            certificates.push(certificate);
        }
    }
    match certificates.is_empty() {
        true => Err(unusable(path, &"there is no certificate in it")),
        false => Ok(certificates),
    }
}

fn private_key(path: &Path) -> Result<PrivateKey<'static>, ConnectError> {
    PrivateKey::from_pem(&read_file(path)?).map_err(|error| unusable(path, &error))
}

fn read_file(path: &Path) -> Result<Vec<u8>, ConnectError> {
    fs::read(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Certificate { path: path.display().to_string(), reason: reason.to_string() }
}
