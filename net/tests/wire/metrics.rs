//! The page of metrics: over real sockets, with what a node really did.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use kafka_protocol::messages::MetadataRequest;
use millrace_net::NetConfig;

use crate::{
    client::{fetch_request, topic_name},
    node::{Node, config},
};

/// A configuration with metrics, and where they are.
pub(crate) fn config_with_metrics() -> (NetConfig, SocketAddr) {
    let config = config();
    let mut address = config.listeners[0].addresses[0];
    address.set_port(address.port() + 1);
    (NetConfig { metrics: Some(address), ..config }, address)
}

/// Sends bytes and reads to the end.
fn try_ask(address: SocketAddr, request: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask(address: SocketAddr, request: &[u8]) -> String {
    try_ask(address, request).expect("an answer, and then the end")
}

/// The page's text.
pub(crate) fn page(address: SocketAddr) -> String {
    let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", page.len())), "{head}");
    page.to_owned()
}

/// The sum of the samples whose names and labels begin so.
pub(crate) fn sum(page: &str, begin: &str) -> f64 {
    let samples = page.lines().filter(|line| line.starts_with(begin));
    samples.map(|line| line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")).sum()
}

#[test]
fn the_page_says_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    client.create_topic("topic", 2);
    for partition in [0, 1] {
        assert_eq!(client.produce("topic", partition, &[b"a".to_vec(), b"b".to_vec()]), (0, 0));
    }
    client.fetch(12, &fetch_request("topic", 0, 0, 100));
    assert_eq!(client.produce("topic", 7, &[b"a".to_vec()]).0, 3);
    let unknown = kafka_protocol::messages::metadata_request::MetadataRequestTopic::default();
    let unknown = unknown.with_name(Some(topic_name("nowhere")));
    let request = MetadataRequest::default().with_topics(Some(vec![unknown])).with_allow_auto_topic_creation(false);
    client.call(12, &request);

    // the connection that saw the node start counts until its end is noticed
    let mut pages = (0..600).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        page(address)
    });
    let page = pages.find(|page| sum(page, "millrace_connections{") == 1.0).expect("one connection is left");
    for (sample, expected) in [
        ("millrace_requests_total{api=\"Produce\"}", 3.0),
        ("millrace_request_seconds_count{api=\"Produce\"}", 3.0),
        ("millrace_errors_total{api=\"Produce\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"}", 1.0),
        ("millrace_errors_total{api=\"Metadata\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"}", 1.0),
        ("millrace_produced_records_total{", 4.0),
        ("millrace_produced_batches_total{", 2.0),
        ("millrace_topics ", 1.0),
        ("millrace_partitions{", 2.0),
        ("millrace_partitions{shard=\"1\"}", 1.0),
        ("millrace_disk_full{", 0.0),
        ("millrace_log_failed{", 0.0),
    ] {
        assert_eq!(sum(&page, sample), expected, "{sample} in\n{page}");
    }
    for sample in [
        "millrace_request_seconds_sum{api=\"Fetch\"}",
        "millrace_request_recent_seconds{api=\"Produce\",quantile=\"0.5\"}",
        "millrace_fetched_bytes_total{",
        "millrace_received_bytes_total{",
        "millrace_sent_bytes_total{",
        "millrace_wal_groups_total{",
        "millrace_wal_seconds_sum{shard=\"0\",operation=\"durable_write\"}",
        "millrace_memory_used_bytes{shard=\"0\",pool=\"tail\"}",
        "millrace_memory_limit_bytes{shard=\"1\",pool=\"requests\"}",
        "millrace_log_bytes{shard=\"1\"}",
        "millrace_disk_free_bytes ",
        "process_resident_memory_bytes ",
    ] {
        assert!(sum(&page, sample) > 0.0, "{sample} in\n{page}");
    }
}

#[test]
fn a_full_disk_is_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = config_with_metrics();
    let node = Node::start_with_reserve(dir.path(), 1, config, u64::MAX);
    node.client().create_topic("topic", 1);
    let is_full = || sum(&page(address), "millrace_disk_full{") == 1.0;
    assert!((0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        is_full()
    }));
}

#[test]
fn other_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = config_with_metrics();
    let _node = Node::start(dir.path(), 1, config);
    let long = [b"GET /metrics HTTP/1.1\r\nA: ", vec![b'a'; 100_000].as_slice()].concat();
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "404 "),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 "),
        (b"\0\0\0\x14 not http \r\n\r\n", "400 "),
        (&long, "431 "),
    ] {
        let answer = ask(address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[test]
fn few_readers_are_served_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = config_with_metrics();
    let _node = Node::start(dir.path(), 1, config);
    let silent: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    let is_served = || try_ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").is_ok_and(|answer| !answer.is_empty());
    assert!(!is_served(), "others say nothing, but are there");
    drop(silent);
    assert!((0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        is_served()
    }));
}
