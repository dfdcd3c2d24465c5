//! What a shard asks other brokers: of a real node, and of others that do what no broker should.

use std::{
    future::Future,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::Duration,
};

use futures_util::future::{join, join_all};
use glommio::LocalExecutorBuilder;
use kafka_protocol::{
    messages::{
        ApiKey, ApiVersionsResponse, MetadataRequest, MetadataResponse, api_versions_response::ApiVersion,
        metadata_request::MetadataRequestTopic,
    },
    protocol::{Encodable, StrBytes},
};
use millrace_client::{ExchangeLimits, ProtocolError};
use millrace_net::client::{CallError, CallLimits, Dialer, RemoteBroker};

use crate::node::{Node, config, free_address};

const LIMITS: CallLimits = CallLimits {
    exchange: ExchangeLimits { in_flight_max: 100, request_bytes_max: 1 << 20, answer_bytes_max: 1 << 20 },
    timeout: Duration::from_secs(60),
};

/// Runs a test on a shard of its own.
fn on_a_shard<T>(test: impl Future<Output = T>) -> T {
    LocalExecutorBuilder::default().make().expect("an executor").run(test)
}

fn dialer(limits: CallLimits) -> Dialer {
    Dialer::new(StrBytes::from_static_str("test"), limits).expect("a dialer")
}

async fn ask(broker: &RemoteBroker, topic: &str) -> Result<MetadataResponse, CallError> {
    let name = StrBytes::from_string(topic.to_owned());
    let topic = MetadataRequestTopic::default().with_name(Some(name.into()));
    broker
        .call(|version| {
            assert!(version >= 4, "auto-creation can be forbidden");
            MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(false)
        })
        .await
}

#[test]
fn calls_in_flight_are_answered_each_with_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 2, config());
    node.client().create_topic("there", 3);
    on_a_shard(async {
        let broker = dialer(LIMITS).connect(node.address).await.expect("a broker");
        let names: Vec<String> =
            (0..50).map(|at| if at % 5 == 0 { "there".into() } else { format!("t{at}") }).collect();
        let calls = join_all(names.iter().map(|name| ask(&broker, name)));
        let (answers, in_flight) = join(calls, async { broker.in_flight() }).await;
        assert_eq!(in_flight, names.len());
        for (name, answer) in names.iter().zip(answers) {
            let topics = answer.expect("an answer").topics;
            assert_eq!(topics[0].name.as_ref().map(|name| name.as_str()), Some(name.as_str()));
            assert_eq!(topics[0].partitions.len(), if name == "there" { 3 } else { 0 });
        }
        assert_eq!((broker.in_flight(), broker.failure()), (0, None));
    });
}

#[test]
fn calls_beyond_the_bounds_are_refused_and_others_go_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async {
        let exchange = ExchangeLimits { in_flight_max: 2, ..LIMITS.exchange };
        let broker = dialer(CallLimits { exchange, ..LIMITS }).connect(node.address).await.expect("a broker");
        let answers = join_all((0..3).map(|_| ask(&broker, "t"))).await;
        assert!(answers[0].is_ok() && answers[1].is_ok());
        assert_eq!(answers[2], Err(CallError::Full));
        assert!(ask(&broker, "t").await.is_ok());
    });
}

#[test]
fn a_call_that_is_given_up_disturbs_no_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async {
        let broker = dialer(LIMITS).connect(node.address).await.expect("a broker");
        let given_up = glommio::timer::timeout(Duration::ZERO, async { Ok(ask(&broker, "first").await) }).await;
        drop(given_up);
        let answer = ask(&broker, "second").await.expect("an answer");
        assert_eq!(answer.topics[0].name.as_ref().map(|name| name.as_str()), Some("second"));
    });
}

#[test]
fn a_node_that_stops_ends_its_connection() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async {
        let broker = dialer(LIMITS).connect(node.address).await.expect("a broker");
        node.stop();
        let error = ask(&broker, "t").await.expect_err("nobody is there");
        assert!(matches!(error, CallError::Lost(_)), "{error}");
        assert_eq!(broker.failure(), Some(error.clone()));
        assert_eq!(ask(&broker, "t").await, Err(error));
    });
}

#[test]
fn nobody_listens() {
    let free = free_address();
    let outcome = on_a_shard(async { dialer(LIMITS).connect(free).await.map(|_| ()) });
    assert_eq!(outcome, Err(CallError::Lost(ErrorKind::ConnectionRefused)));
}

/// One that takes one connection and does with it what the test says.
fn impostor(act: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    (address, std::thread::spawn(move || act(listener.accept().expect("a connection").0)))
}

/// Reads one request; its correlation id.
fn request(stream: &mut TcpStream) -> io::Result<i32> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut request = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut request)?;
    Ok(i32::from_be_bytes(request[4..8].try_into().expect("four bytes")))
}

fn answer(stream: &mut TcpStream, correlation_id: i32, body: &[u8]) -> io::Result<()> {
    let length = (body.len() + 4) as u32;
    stream.write_all(&[&length.to_be_bytes()[..], &correlation_id.to_be_bytes(), body].concat())
}

/// Behaves until its versions are asked for and told: Metadata up to version 8.
fn negotiate(stream: &mut TcpStream) -> io::Result<()> {
    let id = request(stream)?;
    let api = ApiVersion::default().with_api_key(ApiKey::Metadata as i16).with_max_version(8);
    let mut body = Vec::new();
    ApiVersionsResponse::default().with_api_keys(vec![api]).encode(&mut body, 3).expect("legal");
    answer(stream, id, &body)
}

/// What becomes of two calls to one that answers the first request as the test says, and then waits to be left; or why
/// there is no connection to it.
fn try_two_calls(
    limits: CallLimits,
    act: impl FnOnce(&mut TcpStream, i32) + Send + 'static,
) -> Result<[CallError; 2], CallError> {
    let (address, thread) = impostor(|mut stream| {
        // Who gives up before its versions are known asks for nothing.
        if let Ok(id) = negotiate(&mut stream).and_then(|()| request(&mut stream)) {
            act(&mut stream, id);
        }
        // Either end may be the first to close, with requests unread.
        while !matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)) {}
    });
    let errors = on_a_shard(async {
        let broker = dialer(limits).connect(address).await?;
        let (first, second) = join(ask(&broker, "a"), ask(&broker, "b")).await;
        let (first, second) = (first.expect_err("no answer"), second.expect_err("no answer"));
        assert_eq!(broker.failure().as_ref(), Some(&first));
        assert_eq!(ask(&broker, "c").await, Err(first.clone()));
        assert_eq!(broker.in_flight(), 0);
        Ok([first, second])
    });
    thread.join().expect("the connection is closed");
    errors
}

/// The same where enough time is left to connect.
fn two_calls(limits: CallLimits, act: impl FnOnce(&mut TcpStream, i32) + Send + 'static) -> [CallError; 2] {
    try_two_calls(limits, act).expect("a broker")
}

#[test]
fn one_that_closes_ends_all_calls() {
    let errors = two_calls(LIMITS, |stream, _| stream.shutdown(std::net::Shutdown::Write).expect("a socket"));
    assert_eq!(errors, [const { CallError::Lost(ErrorKind::UnexpectedEof) }; 2]);
}

#[test]
fn one_that_never_answers_is_left() {
    // The limit is that of connecting too, which may take longer where the machine is busy.
    let mut timeout = Duration::from_millis(200);
    let errors = loop {
        match try_two_calls(CallLimits { timeout, ..LIMITS }, |_, _| {}) {
            Ok(errors) => break errors,
            Err(error) => assert_eq!(error, CallError::TimedOut),
        }
        timeout *= 2;
    };
    assert_eq!(errors, [const { CallError::TimedOut }; 2]);
}

#[test]
fn one_that_never_answers_at_all_is_no_broker() {
    let (address, thread) = impostor(|mut stream| while !matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)) {});
    let limits = CallLimits { timeout: Duration::from_millis(200), ..LIMITS };
    let outcome = on_a_shard(async { dialer(limits).connect(address).await.map(|_| ()) });
    assert_eq!(outcome, Err(CallError::TimedOut));
    thread.join().expect("the connection is closed");
}

#[test]
fn an_answer_that_is_too_long_is_not_waited_for() {
    let exchange = ExchangeLimits { answer_bytes_max: 1000, ..LIMITS.exchange };
    let errors = two_calls(CallLimits { exchange, ..LIMITS }, |stream, _| {
        stream.write_all(&[0, 0, 0x10, 0]).expect("it is taken");
    });
    let too_long = ProtocolError::TooLong { length: 0x1000, bytes_max: 1000 };
    assert_eq!(errors, [CallError::NotKafka(too_long.clone()), CallError::NotKafka(too_long)]);
}

/// The message library makes room for as many topics as an answer declares: the process ended for want of memory.
#[test]
fn counts_that_are_not_true_are_refused() {
    let errors = two_calls(LIMITS, |stream, id| {
        // Throttle time, no brokers, no cluster id, a controller, and two billion topics.
        let body = [&[0; 8][..], &[0xff; 2], &[0; 4], &[0x7f, 0xff, 0xff, 0xff], &[0; 20]].concat();
        answer(stream, id, &body).expect("it is taken");
    });
    assert!(matches!(errors[0], CallError::NotKafka(ProtocolError::Decode { .. })), "{}", errors[0]);
}

#[test]
fn garbage_is_no_answer() {
    let errors = two_calls(LIMITS, |stream, id| answer(stream, id + 1, &[]).expect("it is taken"));
    assert!(matches!(errors[0], CallError::NotKafka(ProtocolError::OutOfOrder { .. })), "{}", errors[0]);
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 40], &[0, 0, 0, 30, 0, 0, 0, 1, 0, 0, 0x7f, 0xff]]
    {
        let (address, thread) = impostor(move |mut stream| {
            request(&mut stream).expect("a request");
            stream.write_all(garbage).expect("it is taken");
            stream.shutdown(std::net::Shutdown::Write).expect("a socket");
            while !matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)) {}
        });
        let error = on_a_shard(async { dialer(LIMITS).connect(address).await.map(|_| ()) }).expect_err("no broker");
        assert!(matches!(error, CallError::NotKafka(_) | CallError::Lost(_)), "{error}");
        thread.join().expect("the connection is closed");
    }
}

#[test]
fn whoever_drops_a_connection_closes_it() {
    let (address, thread) = impostor(|mut stream| {
        negotiate(&mut stream).expect("it is asked and told");
        assert_eq!(stream.read(&mut [0; 64]).expect("an end"), 0);
    });
    on_a_shard(async {
        let dialer = dialer(LIMITS);
        drop(dialer.connect(address).await.expect("a broker"));
        // The other end sees it while this shard goes on.
        thread.join().expect("the connection is closed");
    });
}
