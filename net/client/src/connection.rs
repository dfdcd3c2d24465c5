//! A blocking connection to one broker: requests in versions that the caller names, answers in their order.
//!
//! No retries and no hidden requests: what is sent is what the caller says, and errors come as they are.
//! [`Broker`](crate::Broker) finds out versions, [`Cluster`](crate::Cluster) tries again.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::{Request, StrBytes};

use crate::{
    error::ClientError,
    frame::{self, ProtocolError},
    in_flight::InFlight,
    socket::Socket,
};

/// Largest answer that is believed; anything above it is not Kafka talking.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// How connections are made.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// What this client calls itself in its requests.
    pub client_id: StrBytes,
    /// For connecting, and for each read and write.
    pub timeout: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    /// For messages.
    address: String,
    client_id: StrBytes,
    timeout: Duration,
    /// What the socket was told last.
    read_timeout: Duration,
    in_flight: InFlight<()>,
}

impl Connection {
    /// Connects to a host by name or address.
    pub fn open(host: &str, port: u16, options: &ConnectOptions) -> Result<Self, ClientError> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self::new(Socket::connect(host, port, options.timeout), address, options)
    }

    /// Connects to one address.
    pub fn open_address(address: SocketAddr, options: &ConnectOptions) -> Result<Self, ClientError> {
        Self::new(Socket::connect_any(&[address], options.timeout), address.to_string(), options)
    }

    fn new(socket: io::Result<Socket>, address: String, options: &ConnectOptions) -> Result<Self, ClientError> {
        let socket = match socket {
            Ok(socket) => socket,
            Err(source) => return Err(ClientError::Connect { address, source }),
        };
        let (client_id, timeout) = (options.client_id.clone(), options.timeout);
        Ok(Self { socket, address, client_id, timeout, read_timeout: timeout, in_flight: InFlight::new() })
    }

    /// Host and port, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The socket, for whoever goes around the protocol.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Sends a request and waits for its answer.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response, ClientError> {
        self.send(version, request)?;
        self.receive::<R>(version)
    }

    /// Sends a request without waiting.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<(), ClientError> {
        let id = self.send_unanswered(version, request)?;
        self.in_flight.sent(id, ());
        Ok(())
    }

    /// Sends a request that the broker does not answer (produce with acks=0).
    pub fn send_unanswered<R: Request>(&mut self, version: i16, request: &R) -> Result<i32, ClientError> {
        let id = self.in_flight.next_id();
        let frame = frame::encode_request(&self.client_id, id, version, request).map_err(|e| self.not_kafka(&e))?;
        self.send_raw(&frame)?;
        Ok(id)
    }

    /// Waits for the answer to the oldest unanswered request, which must be an `R` in that version.
    pub fn receive<R: Request>(&mut self, version: i16) -> Result<R::Response, ClientError> {
        let answer = self.receive_answer(Duration::ZERO)?;
        frame::decode_answer::<R>(answer, version).map_err(|error| self.not_kafka(&error))
    }

    /// The answer to the oldest unanswered request, from the correlation id on. The broker may keep it for `wait` before
    /// it answers.
    pub(crate) fn receive_answer(&mut self, wait: Duration) -> Result<Bytes, ClientError> {
        self.wait_for(self.timeout + wait)?;
        let answer = self.receive_frame()?;
        self.in_flight.answered(&answer).map_err(|error| self.not_kafka(&error))?;
        Ok(answer)
    }

    fn wait_for(&mut self, timeout: Duration) -> Result<(), ClientError> {
        if timeout != self.read_timeout {
            self.socket.tcp().set_read_timeout(Some(timeout)).map_err(|source| self.lost(source))?;
            self.read_timeout = timeout;
        }
        Ok(())
    }

    /// Sends bytes as they are: for tests of what a broker does with them.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.socket.write_all(bytes).map_err(|source| self.lost(source))
    }

    /// Reads one frame, without its length, whomever it answers.
    pub fn receive_frame(&mut self) -> Result<Bytes, ClientError> {
        let mut length = [0; frame::LENGTH_BYTES];
        self.socket.read_exact(&mut length).map_err(|source| self.lost(source))?;
        let length = frame::check_length(i32::from_be_bytes(length), ANSWER_BYTES_MAX);
        // Zeroed memory takes none until it is written: a length that is not true costs nothing.
        let mut answer = BytesMut::zeroed(length.map_err(|error| self.not_kafka(&error))?);
        self.socket.read_exact(&mut answer).map_err(|source| self.lost(source))?;
        Ok(answer.freeze())
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost { address: self.address.clone(), source }
    }

    /// The error of a broker that breaks the protocol.
    pub(crate) fn not_kafka(&self, reason: &ProtocolError) -> ClientError {
        ClientError::NotKafka { address: self.address.clone(), reason: reason.to_string() }
    }
}
