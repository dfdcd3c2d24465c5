//! Limits: connections, memory, requests in flight, idle time.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use kafka_protocol::{
    messages::{
        DescribeConfigsRequest, IncrementalAlterConfigsRequest, MetadataRequest,
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
    protocol::StrBytes,
};
use millrace_net::NetConfig;

use crate::{
    client::{Client, batch, produce_request},
    node::{Node, config},
};

/// So many MiB of memory for requests of at most half as many bytes.
fn memory(mib: usize) -> NetConfig {
    NetConfig { receive_memory_bytes: mib << 20, max_frame_bytes: mib << 19, ..config() }
}

/// The same for tests of who is not stalled, whose clients may get no turn for longer than a client may be silent.
fn patient_memory(mib: usize, silence_max_s: u64) -> NetConfig {
    NetConfig { silence_max: Duration::from_secs(silence_max_s), ..memory(mib) }
}

/// A connection that has sent `sent` bytes of a frame of `length`.
fn half_sent(node: &Node, length: u32, sent: usize) -> Client {
    let mut client = node.client();
    let mut part = length.to_be_bytes().to_vec();
    part.resize(sent, 0);
    client.stream().write_all(&part).expect("the node takes it");
    client
}

/// Whether the node has not closed the connection, as far as that can be seen now.
fn is_open(client: &mut Client) -> bool {
    client.stream().set_nonblocking(true).expect("a socket can be made so");
    let read = client.stream().read(&mut [0]);
    client.stream().set_nonblocking(false).expect("a socket can be made so");
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn metadata() -> MetadataRequest {
    MetadataRequest::default().with_topics(None)
}

/// A new connection, if it is served.
pub(crate) fn served(node: &Node) -> Option<Client> {
    let mut client = node.client();
    let (bytes, correlation_id) = client.encode(12, &metadata());
    client.stream().write_all(&bytes).ok()?;
    let response = client.receive().ok()?;
    response.starts_with(&correlation_id.to_be_bytes()).then_some(client)
}

/// A new connection, once it is served: the end of an old one takes a moment to be noticed.
pub(crate) fn await_served(node: &Node) -> Client {
    for _ in 0..500 {
        if let Some(client) = served(node) {
            return client;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no connection is served");
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, NetConfig { max_connections_per_ip: 3, ..config() });
    // The connection that saw the node start may still count.
    await_served(&node);
    let mut clients: Vec<Client> = Vec::new();
    while clients.len() < 3 {
        let mut client = node.client();
        let (bytes, _) = client.encode(12, &metadata());
        if client.stream().write_all(&bytes).is_ok() && client.receive().is_ok() {
            clients.push(client);
        }
    }
    assert!(served(&node).is_none());
    for client in &mut clients {
        client.call(12, &metadata());
    }
    clients.pop();
    await_served(&node);
}

#[test]
fn the_limit_of_connections_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    let change = |name, operation, value: Option<&'static str>| {
        let config = AlterableConfig::default()
            .with_name(StrBytes::from_static_str(name))
            .with_config_operation(operation)
            .with_value(value.map(StrBytes::from_static_str));
        let resource = AlterConfigsResource::default()
            .with_resource_type(4)
            .with_resource_name(StrBytes::from_static_str("1"))
            .with_configs(vec![config]);
        IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
    };
    let code =
        |client: &mut Client, request: IncrementalAlterConfigsRequest| client.call(1, &request).responses[0].error_code;
    assert_eq!(code(&mut client, change("max.connections", 0, Some("1"))), 0);
    assert!(served(&node).is_none());
    assert_eq!(code(&mut client, change("max.connections", 0, Some("many"))), 42);
    assert_eq!(code(&mut client, change("num.partitions", 0, Some("3"))), 42);
    assert_eq!(code(&mut client, change("no.such.setting", 0, Some("3"))), 40);

    let resource = DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(StrBytes::from_static_str("1"))
        .with_configuration_keys(Some(vec![StrBytes::from_static_str("max.connections")]));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true);
    let described = client.call(4, &request);
    let [setting] = described.results[0].configs.as_slice() else {
        panic!("one setting was asked for");
    };
    assert_eq!((setting.value.as_deref(), setting.read_only, setting.config_source), (Some("1"), false, 2));
    assert_eq!(setting.synonyms.len(), 2);

    assert_eq!(code(&mut client, change("max.connections", 1, None)), 0);
    await_served(&node);
}

#[test]
fn idle_connections_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, NetConfig { idle_timeout: Duration::from_secs(1), ..config() });
    assert!(node.client().is_closed_by_node(), "though nothing was asked");
    // one that was answered, which takes more than one where a test gets no turn for as long as it may be idle
    assert!(await_served(&node).is_closed_by_node());
}

#[test]
fn large_requests_share_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    // The memory of large requests is less than two of these.
    let node = Node::start(dir.path(), 1, patient_memory(2, 30));
    node.client().create_topic("topic", 1);
    let connections = 8;
    let requests = 5;
    std::thread::scope(|scope| {
        for _ in 0..connections {
            let mut client = node.client();
            scope.spawn(move || {
                for _ in 0..requests {
                    let (error, _) = client.produce("topic", 0, &[vec![b'v'; 900_000]]);
                    assert_eq!(error, 0);
                }
            });
        }
    });
    let (error, offset) = node.client().produce("topic", 0, &[b"last".to_vec()]);
    assert_eq!((error, offset), (0, connections * requests));
}

#[test]
fn silent_peers_hold_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, memory(2));
    node.client().create_topic("topic", 1);
    let silent: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = node.client();
            client.stream().write_all(&[0, 0x10, 0, 0, 0, 0]).expect("the node takes it");
            client
        })
        .collect();
    assert_eq!(node.client().produce("topic", 0, &[vec![b'v'; 900_000]]), (0, 0));
    drop(silent);
}

#[test]
fn a_flood_of_requests_is_answered_to_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, NetConfig { max_in_flight_requests: 4, ..config() });
    let mut client = node.client();
    client.create_topic("topic", 1);
    let mut reader = client.stream().try_clone().expect("a socket");
    let count = 3000;
    let writer = std::thread::spawn(move || {
        for _ in 0..count {
            client.send(9, &produce_request("topic", 0, -1, batch(&[b"value".to_vec()])));
        }
        client
    });
    let mut seen = 0;
    while seen < count {
        let mut length = [0; 4];
        Read::read_exact(&mut reader, &mut length).expect("a response");
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        Read::read_exact(&mut reader, &mut body).expect("a response");
        seen += 1;
        // One request was made before the flood.
        assert_eq!(body[..4], (seen + 1_i32).to_be_bytes());
    }
    writer.join().expect("no panic");
}

#[test]
fn half_sent_requests_give_way_to_those_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, memory(2));
    node.client().create_topic("topic", 1);
    // Each sends enough to be granted the memory of its whole request, and then nothing more.
    let mut stalled: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = node.client();
            let mut part = vec![0; 100_000];
            part[..4].copy_from_slice(&(1_000_000_u32).to_be_bytes());
            client.stream().write_all(&part).expect("the node takes it");
            client
        })
        .collect();
    assert_eq!(node.client().produce("topic", 0, &[vec![b'v'; 900_000]]), (0, 0));
    assert!(stalled.iter_mut().any(Client::is_closed_by_node));
}

/// Requests whose sum is many times the memory. They grew in steps once: each held what it had and waited for the next
/// step, until all were taken for stalled and closed.
#[test]
fn requests_above_a_mebibyte_from_many_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, patient_memory(8, 30));
    node.client().create_topic("topic", 1);
    let (connections, requests) = (30, 3);
    std::thread::scope(|scope| {
        for _ in 0..connections {
            let mut client = node.client();
            scope.spawn(move || {
                for _ in 0..requests {
                    // larger than a batch may be: what is asked is whether it is read and answered
                    assert_eq!(client.produce("topic", 0, &[vec![b'v'; 1_200_000]]).0, 10);
                }
            });
        }
    });
}

#[test]
fn whoever_waits_for_memory_behind_those_that_send_is_not_stalled() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, patient_memory(2, 3));
    node.client().create_topic("topic", 1);
    let slow = |value_bytes| {
        let mut client = node.client();
        let (frame, _) = client.encode(9, &produce_request("topic", 0, -1, batch(&[vec![b's'; value_bytes]])));
        let (first, rest) = frame.split_at(frame.len() / 2);
        client.stream().write_all(first).expect("the node takes it");
        // for longer than any connection may be silent
        for step in rest.chunks(rest.len() / 60) {
            std::thread::sleep(Duration::from_millis(120));
            client.stream().write_all(step).expect("the node takes it");
        }
        client.receive().expect("whoever sends is answered");
    };
    std::thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(|| slow(1_000_000))));
        std::thread::sleep(Duration::from_millis(300));
        let waiting = scope.spawn(|| node.client().produce("topic", 0, &[vec![b'v'; 900_000]]));
        assert_eq!(waiting.join().expect("no panic").0, 0);
    });
}

#[test]
fn small_requests_do_not_wait_for_stalled_large_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = NetConfig { receive_memory_bytes: 4 << 20, max_frame_bytes: 3 << 20, ..config() };
    let node = Node::start(dir.path(), 1, config);
    node.client().create_topic("topic", 1);
    // All but the last byte of more than there is memory for.
    let mut stalled = half_sent(&node, 3 << 20, (3 << 20) + 3);
    let medium: Vec<_> = (0..3).map(|_| half_sent(&node, 500_000, 500_003)).collect();
    let mut client = node.client();
    for _ in 0..50 {
        assert_eq!(client.produce("topic", 0, &[vec![b'v'; 16_384]]).0, 0);
        client.call(12, &metadata());
    }
    assert!(is_open(&mut stalled), "nobody had to wait for what it holds");
    drop(medium);
}

#[test]
fn lengths_without_data_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, memory(2));
    node.client().create_topic("topic", 1);
    // Small, medium and large ones, each many times what the memory could hold.
    let claims =
        [60_000, 200_000, 1 << 20].map(|length| (0..300).map(|_| half_sent(&node, length, 10)).collect::<Vec<_>>());
    let mut client = node.client();
    for value_bytes in [100, 16_384, 60_000, 200_000, 900_000] {
        assert_eq!(client.produce("topic", 0, &[vec![b'v'; value_bytes]]).0, 0);
    }
    drop(claims);
}

/// While memory is short, parts of frames stay with their sockets.
#[test]
fn requests_in_pieces_are_served_while_others_have_taken_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, memory(2));
    node.client().create_topic("topic", 1);
    let stalled: Vec<_> = (0..100).map(|_| half_sent(&node, 60_000, 40_000)).collect();
    let mut client = node.client();
    for length in [100, 3_000, 30_000, 60_000] {
        let (bytes, _) = client.encode(9, &produce_request("topic", 0, -1, batch(&[vec![b'v'; length]])));
        for piece in bytes.chunks(bytes.len() / 3 + 1) {
            client.stream().write_all(piece).expect("the node takes it");
            std::thread::sleep(Duration::from_millis(20));
        }
        client.receive().expect("a response");
    }
    drop(stalled);
}
