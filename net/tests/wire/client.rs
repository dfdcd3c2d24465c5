//! What tests ask a node with: whole requests in, whole responses out, and any bytes.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use kafka_protocol::{
    messages::{
        CreateTopicsRequest, FetchRequest, FetchResponse, ProduceRequest, create_topics_request::CreatableTopic,
    },
    protocol::{HeaderVersion, Message, Request, StrBytes},
};
pub(crate) use millrace_client::requests::topic_name;
use millrace_client::{
    ClientError, ConnectOptions, Connection,
    frame::{decode_answer, encode_request},
    requests,
};
use millrace_engine::batch::{BatchBuilder, Codec, Record};

/// Numbers its requests itself: a test may send what has no answer, and read answers one by one.
pub(crate) struct Client {
    connection: Connection,
    correlation_id: i32,
}

const CLIENT_ID: StrBytes = StrBytes::from_static_str("test");
/// No test waits longer for a node that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);

impl Client {
    /// Connects, waiting for the node to start if need be.
    pub(crate) fn connect(address: SocketAddr) -> Client {
        let options = ConnectOptions { client_id: CLIENT_ID, timeout: PATIENCE };
        for _ in 0..1000 {
            if let Ok(connection) = Connection::open_address(address, &options) {
                return Client { connection, correlation_id: 0 };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no node listens on {address}");
    }

    /// The socket, for bytes that no client would send.
    pub(crate) fn stream(&mut self) -> &TcpStream {
        self.connection.socket().tcp()
    }

    /// A request as it goes over the wire, and its correlation id. A version that the library does not know gets the
    /// body of the newest one that it does.
    pub(crate) fn encode<R: Request>(&mut self, version: i16, request: &R) -> (Vec<u8>, i32) {
        self.correlation_id += 1;
        let known = version.min(R::VERSIONS.max);
        let frame = encode_request(&CLIENT_ID, self.correlation_id, known, request).expect("a legal request");
        let mut bytes = frame.to_vec();
        bytes[6..8].copy_from_slice(&version.to_be_bytes());
        (bytes, self.correlation_id)
    }

    pub(crate) fn send<R: Request>(&mut self, version: i16, request: &R) -> i32 {
        let (bytes, correlation_id) = self.encode(version, request);
        self.connection.send_raw(&bytes).expect("the node takes it");
        correlation_id
    }

    /// The next response without its length; fails if the node closes the connection.
    pub(crate) fn receive(&mut self) -> Result<Bytes, ClientError> {
        self.connection.receive_frame()
    }

    pub(crate) fn receive_correlation_id(&mut self) -> i32 {
        self.receive().expect("a response").get_i32()
    }

    /// Sends a request and decodes the answer, which must be whole.
    pub(crate) fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let correlation_id = self.send(version, request);
        let response = self.receive().expect("a response");
        assert_eq!(response[..4], correlation_id.to_be_bytes());
        if R::Response::header_version(version) >= 1 {
            assert_eq!(response[4], 0, "no tagged fields");
        }
        decode_answer::<R>(response, version.min(R::Response::VERSIONS.max)).expect("a legal response")
    }

    /// Asks a coordinator, again for as long as it is being loaded or its topic is being made: then it answers with errors
    /// on which clients try again. `code` finds the error in an answer.
    pub(crate) fn call_coordinator<R: Request>(
        &mut self,
        version: i16,
        request: &R,
        code: impl Fn(&R::Response) -> i16,
    ) -> R::Response {
        let start = Instant::now();
        loop {
            let response = self.call(version, request);
            // COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR
            if !(14..=16).contains(&code(&response)) || start.elapsed() >= PATIENCE {
                return response;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the node has closed the connection: nothing comes any more.
    pub(crate) fn is_closed_by_node(&mut self) -> bool {
        match self.stream().read(&mut [0]) {
            Ok(length) => length == 0,
            // it is open, and silent for as long as a test waits
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    pub(crate) fn create_topic(&mut self, name: &'static str, partitions: i32) {
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(-1);
        let response = self.call(7, &CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000));
        assert_eq!(response.topics[0].error_code, 0, "{:?}", response.topics[0].error_message);
    }

    /// Produces one batch and returns the error code and the base offset.
    pub(crate) fn produce(&mut self, topic: &'static str, partition: i32, values: &[Vec<u8>]) -> (i16, i64) {
        let response = self.call(9, &produce_request(topic, partition, -1, batch(values)));
        let partition = &response.responses[0].partition_responses[0];
        (partition.error_code, partition.base_offset)
    }

    /// Fetches once.
    pub(crate) fn fetch(&mut self, version: i16, request: &FetchRequest) -> FetchResponse {
        self.call(version, request)
    }
}

/// One batch of records.
pub(crate) fn batch(values: &[Vec<u8>]) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    for (at, value) in values.iter().enumerate() {
        builder.push(&Record {
            offset: at as i64,
            timestamp: 1_700_000_000_000 + at as i64,
            key: None,
            value: Some(Bytes::from(value.clone())),
            headers: vec![],
        });
    }
    builder.finish().into()
}

pub(crate) fn produce_request(topic: &'static str, partition: i32, acks: i16, batch: Bytes) -> ProduceRequest {
    requests::produce(topic, partition, acks, Duration::from_secs(1), batch)
}

/// A fetch of one partition without a session.
pub(crate) fn fetch_request(topic: &'static str, partition: i32, offset: i64, max_wait_ms: i32) -> FetchRequest {
    const MAX_BYTES: i32 = 50 << 20;
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(MAX_BYTES)
        .with_topics(vec![requests::fetch_topic(topic, [(partition, offset)], MAX_BYTES)])
}
