//! A connection to one broker: framing, version negotiation, one request at a time.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes, VersionRange},
};

use super::error::ClientError;

/// Largest answer that is believed; anything above it is not Kafka talking.
const RESPONSE_BYTES_MAX: usize = 512 << 20;

/// UNSUPPORTED_VERSION.
const UNSUPPORTED_VERSION: i16 = 35;

const CLIENT_ID: StrBytes = StrBytes::from_static_str("millrace");

/// See the module.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    address: String,
    timeout: Duration,
    /// What the broker serves, by API key.
    versions: HashMap<i16, VersionRange>,
    correlation_id: i32,
}

impl Connection {
    /// Connects to a broker and asks what it serves. `timeout` holds for connecting and for each answer.
    pub fn open(host: &str, port: u16, timeout: Duration) -> Result<Self, ClientError> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let stream =
            connect(host, port, timeout).map_err(|source| ClientError::Connect { address: address.clone(), source })?;
        let mut connection = Self { stream, address, timeout, versions: HashMap::new(), correlation_id: 0 };
        connection.negotiate()?;
        Ok(connection)
    }

    /// Host and port, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All APIs that the broker serves, by key.
    pub fn api_versions(&self) -> Vec<(i16, VersionRange)> {
        let mut apis: Vec<_> = self.versions.iter().map(|(key, range)| (*key, *range)).collect();
        apis.sort_by_key(|(key, _)| *key);
        apis
    }

    /// The version in which a request will be sent: the highest that both sides know.
    pub fn version<R: Request>(&self) -> Result<i16, ClientError> {
        let known = VersionRange { min: R::VERSIONS.min, max: R::VERSIONS.max.min(version_limit(R::KEY)) };
        let both = self.versions.get(&R::KEY).map(|offered| offered.intersect(&known));
        both.filter(|range| !range.is_empty()).map(|range| range.max).ok_or_else(|| ClientError::Unsupported {
            address: self.address.clone(),
            api: ApiKey::try_from(R::KEY).map_or_else(|()| format!("API {}", R::KEY), |key| format!("{key:?}")),
        })
    }

    /// Whether the broker serves a request in a version known here.
    pub fn serves<R: Request>(&self) -> bool {
        self.version::<R>().is_ok()
    }

    /// Sends a request, which `build` makes for the version to be used, and waits for the answer. The broker may keep
    /// it for `wait` before it answers.
    pub fn call<R: Request>(
        &mut self,
        wait: Duration,
        build: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        let version = self.version::<R>()?;
        let sent = self.send(&build(version), version)?;
        let mut answer = self.receive(sent, wait)?;
        self.decode_header::<R>(&mut answer, version)?;
        R::Response::decode(&mut answer, version).map_err(|e| self.not_kafka(format!("{:?}: {e}", R::KEY)))
    }

    /// Sends a request that the broker does not answer (produce with acks=0).
    pub fn call_unanswered<R: Request>(&mut self, build: impl FnOnce(i16) -> R) -> Result<(), ClientError> {
        let version = self.version::<R>()?;
        self.send(&build(version), version).map(|_| ())
    }

    /// Asks for versions in a form that brokers of every age understand.
    fn negotiate(&mut self) -> Result<(), ClientError> {
        const NEWEST: i16 = 3;
        let request = ApiVersionsRequest::default()
            .with_client_software_name(CLIENT_ID)
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let mut version = NEWEST;
        let sent = self.send(&request, version)?;
        let mut answer = self.receive(sent, Duration::ZERO)?;
        // A broker that does not know this version says so in the oldest one, error code first.
        let code = answer.get(4..6).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        if code == Some(UNSUPPORTED_VERSION) {
            version = 0;
            let sent = self.send(&ApiVersionsRequest::default(), version)?;
            answer = self.receive(sent, Duration::ZERO)?;
        }
        self.decode_header::<ApiVersionsRequest>(&mut answer, version)?;
        let response = ApiVersionsResponse::decode(&mut answer, version).map_err(|e| self.not_kafka(e.to_string()))?;
        ClientError::check(format!("{}: ApiVersions", self.address), response.error_code, None)?;
        let range = |min, max| VersionRange { min, max };
        self.versions = response.api_keys.iter().map(|k| (k.api_key, range(k.min_version, k.max_version))).collect();
        Ok(())
    }

    fn send<R: Request>(&mut self, request: &R, version: i16) -> Result<i32, ClientError> {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(CLIENT_ID));
        let mut frame = BytesMut::zeroed(4);
        // What we cannot encode is our own mistake, but a message is better than a panic.
        let encoded = header
            .encode(&mut frame, R::header_version(version))
            .and_then(|()| request.encode(&mut frame, version))
            .and_then(|()| Ok(i32::try_from(frame.len() - 4)?));
        let length = encoded.map_err(|e| self.not_kafka(format!("cannot encode request {}: {e}", R::KEY)))?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame).map_err(|source| self.lost(source))?;
        Ok(self.correlation_id)
    }

    /// The next answer, which must be to that request, from the correlation id on.
    fn receive(&mut self, correlation_id: i32, wait: Duration) -> Result<Bytes, ClientError> {
        let frame = self.read_frame(wait)?;
        let answered = frame.get(..4).map(|b| i32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        match answered == Some(correlation_id) {
            true => Ok(frame),
            false => Err(self.not_kafka(format!("answer {answered:?} to request {correlation_id}"))),
        }
    }

    fn read_frame(&mut self, wait: Duration) -> Result<Bytes, ClientError> {
        self.stream.set_read_timeout(Some(self.timeout + wait)).map_err(|source| self.lost(source))?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|source| self.lost(source))?;
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > RESPONSE_BYTES_MAX {
            return Err(self.not_kafka("the answer's length makes no sense (another protocol, or TLS?)".to_owned()));
        }
        let mut frame = Vec::new();
        let read = (&mut self.stream).take(length as u64).read_to_end(&mut frame);
        match read.map_err(|source| self.lost(source))? {
            n if n == length => Ok(Bytes::from(frame)),
            _ => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn decode_header<R: Request>(&self, answer: &mut Bytes, version: i16) -> Result<(), ClientError> {
        let header_version = R::Response::header_version(version);
        ResponseHeader::decode(answer, header_version).map_err(|e| self.not_kafka(e.to_string()))?;
        Ok(())
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost { address: self.address.clone(), source }
    }

    fn not_kafka(&self, reason: String) -> ClientError {
        ClientError::NotKafka { address: self.address.clone(), reason }
    }
}

/// Tries each address of a host. One that does not answer leaves the others their part of the time.
fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    connect_any(&addresses, timeout)
}

fn connect_any(addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let part = timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        match TcpStream::connect_timeout(address, part.max(Duration::from_millis(1))) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Newest version of an API that this client knows how to fill in: from the next one on, topics of these requests are
/// named by id only.
fn version_limit(api_key: i16) -> i16 {
    match ApiKey::try_from(api_key) {
        Ok(ApiKey::Produce | ApiKey::Fetch) => 12,
        Ok(ApiKey::DeleteTopics) => 5,
        Ok(ApiKey::OffsetCommit | ApiKey::OffsetFetch) => 9,
        Ok(ApiKey::InitProducerId) => 5,
        _ => i16::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use kafka_protocol::{
        messages::{
            FetchRequest, HeartbeatRequest, MetadataRequest, ProduceRequest, api_versions_response::ApiVersion,
        },
        protocol::Message,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(5);

    /// A broker that answers each connection by a script: bytes for each request that arrives.
    fn broker(script: Vec<Vec<u8>>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in script {
                let mut length = [0; 4];
                if stream.read_exact(&mut length).is_err() {
                    return;
                }
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut request).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        port
    }

    fn framed(correlation_id: i32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&length.to_be_bytes()[..], &correlation_id.to_be_bytes(), body].concat()
    }

    fn versions(version: i16, apis: &[(ApiKey, i16, i16)]) -> Vec<u8> {
        let api = |(key, min, max): &(ApiKey, i16, i16)| {
            ApiVersion::default().with_api_key(*key as i16).with_min_version(*min).with_max_version(*max)
        };
        let mut body = BytesMut::new();
        let response = ApiVersionsResponse::default().with_api_keys(apis.iter().map(api).collect());
        response.encode(&mut body, version).unwrap();
        body.to_vec()
    }

    #[test]
    fn the_highest_common_version_is_used() {
        let apis = [(ApiKey::Metadata, 0, 99), (ApiKey::Fetch, 4, 18), (ApiKey::Produce, 50, 60)];
        let port = broker(vec![framed(1, &versions(3, &apis))]);
        let connection = Connection::open("127.0.0.1", port, SECOND).unwrap();
        assert_eq!(connection.version::<MetadataRequest>().unwrap(), MetadataRequest::VERSIONS.max);
        assert_eq!(connection.version::<FetchRequest>().unwrap(), 12);
        assert!(!connection.serves::<ProduceRequest>());
        assert!(!connection.serves::<HeartbeatRequest>());
    }

    #[test]
    fn an_old_broker_is_asked_again_in_the_oldest_version() {
        let mut unsupported = UNSUPPORTED_VERSION.to_be_bytes().to_vec();
        unsupported.extend([0; 4]);
        let port = broker(vec![framed(1, &unsupported), framed(2, &versions(0, &[(ApiKey::Metadata, 0, 1)]))]);
        let connection = Connection::open("127.0.0.1", port, SECOND).unwrap();
        assert_eq!(connection.version::<MetadataRequest>().unwrap(), 1);
    }

    #[test]
    fn other_protocols_are_told_from_kafka() {
        for nonsense in [b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), framed(7, &[0; 10]), framed(1, &[0xff; 30])] {
            let port = broker(vec![nonsense]);
            let error = Connection::open("127.0.0.1", port, SECOND).unwrap_err();
            assert!(matches!(error, ClientError::NotKafka { .. }), "{error}");
        }
    }

    #[test]
    fn each_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ["127.0.0.1", "127.0.0.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let stream = connect_any(&addresses, SECOND).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
        assert_eq!(connect_any(&addresses[..1], SECOND).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect_any(&[], SECOND).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_closed_connection_and_a_closed_port_are_told_apart() {
        let port = broker(vec![]);
        let error = Connection::open("127.0.0.1", port, SECOND).unwrap_err();
        assert!(matches!(error, ClientError::Lost { .. }), "{error}");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = Connection::open("127.0.0.1", free, SECOND).unwrap_err();
        assert!(error.to_string().contains("is the broker running?"), "{error}");
    }
}
