//! A broker and the versions that it serves: each request goes out in the newest one that both sides know.

use std::time::Duration;

use kafka_protocol::protocol::Request;

use crate::{
    connection::{ConnectOptions, Connection},
    error::ClientError,
    frame,
    versions::{Negotiation, Versions},
};

/// A connection to a broker of any age. One request at a time.
#[derive(Debug)]
pub struct Broker {
    connection: Connection,
    versions: Versions,
}

impl Broker {
    /// Connects to a broker and asks what it serves.
    pub fn open(host: &str, port: u16, options: &ConnectOptions) -> Result<Self, ClientError> {
        let mut connection = Connection::open(host, port, options)?;
        let mut negotiation = Negotiation::new();
        loop {
            connection.send(negotiation.version(), &negotiation.request())?;
            let answer = connection.receive_answer(Duration::ZERO)?;
            match negotiation.handle_answer(answer).map_err(|error| connection.not_kafka(&error))? {
                Some(Ok(versions)) => return Ok(Self { connection, versions }),
                Some(Err(code)) => {
                    let what = format!("{}: ApiVersions", connection.address());
                    return Err(ClientError::Refused { what, code, message: None });
                }
                None => {}
            }
        }
    }

    /// Host and port, for messages.
    pub fn address(&self) -> &str {
        self.connection.address()
    }

    /// What it serves.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Whether the broker serves a request in a version known here.
    pub fn serves<R: Request>(&self) -> bool {
        self.versions.common::<R>().is_some()
    }

    fn version<R: Request>(&self) -> Result<i16, ClientError> {
        self.versions.common::<R>().ok_or_else(|| ClientError::Unsupported {
            address: self.address().to_owned(),
            api: frame::api_name(R::KEY),
        })
    }

    /// Sends a request, which `build` makes for the version to be used, and waits for the answer. The broker may keep
    /// it for `wait` before it answers.
    pub fn call<R: Request>(
        &mut self,
        wait: Duration,
        build: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        let version = self.version::<R>()?;
        self.connection.send(version, &build(version))?;
        let answer = self.connection.receive_answer(wait)?;
        frame::decode_answer::<R>(answer, version).map_err(|error| self.connection.not_kafka(&error))
    }

    /// Sends a request that the broker does not answer (produce with acks=0).
    pub fn call_unanswered<R: Request>(&mut self, build: impl FnOnce(i16) -> R) -> Result<(), ClientError> {
        let version = self.version::<R>()?;
        self.connection.send_unanswered(version, &build(version)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use kafka_protocol::{
        messages::{ApiKey, ApiVersionsResponse, MetadataRequest, MetadataResponse, api_versions_response::ApiVersion},
        protocol::{Encodable, StrBytes},
    };

    use super::*;

    fn options() -> ConnectOptions {
        ConnectOptions { client_id: StrBytes::from_static_str("test"), timeout: Duration::from_secs(5) }
    }

    /// A broker that answers each request by a script; answers the port that it listens on.
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

    fn encoded(message: &impl Encodable, version: i16) -> Vec<u8> {
        let mut body = Vec::new();
        message.encode(&mut body, version).unwrap();
        body
    }

    fn metadata_only(max: i16) -> ApiVersionsResponse {
        let api = ApiVersion::default().with_api_key(ApiKey::Metadata as i16).with_max_version(max);
        ApiVersionsResponse::default().with_api_keys(vec![api])
    }

    #[test]
    fn an_old_broker_is_found_out_and_asked_in_its_version() {
        let unsupported = encoded(&ApiVersionsResponse::default().with_error_code(35), 0);
        let versions = encoded(&metadata_only(1), 0);
        let metadata = encoded(&MetadataResponse::default().with_controller_id(7.into()), 1);
        let port = broker(vec![framed(1, &unsupported), framed(2, &versions), framed(3, &metadata)]);
        let mut broker = Broker::open("127.0.0.1", port, &options()).unwrap();
        let mut asked_in = None;
        let answer = broker.call(Duration::ZERO, |version| {
            asked_in = Some(version);
            MetadataRequest::default()
        });
        assert_eq!((answer.unwrap().controller_id.0, asked_in), (7, Some(1)));
        let error = broker.call_unanswered(|_| kafka_protocol::messages::ProduceRequest::default()).unwrap_err();
        assert!(error.to_string().ends_with("does not serve Produce in a version known here"), "{error}");
    }

    #[test]
    fn other_protocols_are_told_from_kafka() {
        for nonsense in [b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), framed(7, &[0; 10]), framed(1, &[0xff; 30])] {
            let port = broker(vec![nonsense]);
            let error = Broker::open("127.0.0.1", port, &options()).unwrap_err();
            assert!(matches!(error, ClientError::NotKafka { .. }), "{error}");
        }
    }

    #[test]
    fn a_closed_connection_and_a_closed_port_are_told_apart() {
        let port = broker(vec![]);
        let error = Broker::open("127.0.0.1", port, &options()).unwrap_err();
        assert!(matches!(error, ClientError::Lost { .. }), "{error}");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = Broker::open("127.0.0.1", free, &options()).unwrap_err();
        assert!(error.to_string().contains("is the broker running?"), "{error}");
    }
}
