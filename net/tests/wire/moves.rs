//! Connections that follow their partitions from shard to shard.

use kafka_protocol::{
    messages::{FetchRequest, ProduceResponse},
    protocol::Decodable,
};
use millrace_net::{Advertise, NetConfig};

use crate::{
    client::{Client, batch, fetch_request, produce_request},
    limits::{await_served, served},
    metrics::{config_with_metrics, page, sum},
    node::{Node, config},
};

const MOVED: &str = "millrace_connections_moved_total";
/// More requests than a connection stays for.
const MANY: i64 = 100;

fn value(at: i64) -> Vec<Vec<u8>> {
    vec![at.to_string().into_bytes()]
}

/// Produces to partitions 0 and 1 in turn, many times each.
fn produce_in_turn(client: &mut Client, times: i64) {
    for turn in 0..times {
        for partition in [0, 1] {
            for at in turn * MANY..(turn + 1) * MANY {
                assert_eq!(client.produce("topic", partition, &value(at)), (0, at));
            }
        }
    }
}

#[test]
fn a_producer_is_served_where_its_partition_is() {
    let dir = tempfile::tempdir().unwrap();
    let (config, metrics) = config_with_metrics();
    let node = Node::start(dir.path(), 2, NetConfig { max_connections_per_ip: 3, ..config });
    let mut client = await_served(&node);
    client.create_topic("topic", 2);
    produce_in_turn(&mut client, 3);
    let moved = sum(&page(metrics), MOVED);
    assert!((5.0..=6.0).contains(&moved), "{moved} moves to the other shard's partition, five times or six");
    // it is counted once, and counted out when it ends, which takes a moment to be noticed
    let others = [await_served(&node), await_served(&node)];
    assert!(served(&node).is_none());
    drop((client, others));
    let three = (0..3).map(|_| await_served(&node)).collect::<Vec<_>>();
    assert_eq!(three.len(), 3);
}

#[test]
fn pipelined_requests_keep_their_order_over_a_move() {
    let dir = tempfile::tempdir().unwrap();
    let (config, metrics) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    client.create_topic("topic", 2);
    for partition in [0, 1] {
        let requests =
            (0..MANY).map(|at| client.encode(9, &produce_request("topic", partition, -1, batch(&value(at)))));
        let (requests, ids): (Vec<_>, Vec<_>) = requests.collect();
        let mut writing = client.stream().try_clone().unwrap();
        // in pieces that end anywhere
        let bytes = requests.concat();
        let writer = std::thread::spawn(move || {
            bytes.chunks(777).for_each(|piece| std::io::Write::write_all(&mut writing, piece).expect("taken"));
        });
        for (at, id) in ids.into_iter().enumerate() {
            let mut response = client.receive().expect("an answer");
            assert_eq!(bytes::Buf::get_i32(&mut response), id);
            bytes::Buf::advance(&mut response, 1);
            let response = ProduceResponse::decode(&mut response, 9).expect("a legal answer");
            let answer = &response.responses[0].partition_responses[0];
            assert_eq!((answer.error_code, answer.base_offset), (0, at as i64));
        }
        writer.join().unwrap();
    }
    assert!(sum(&page(metrics), MOVED) >= 1.0);
}

#[test]
fn a_consumer_keeps_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let (config, metrics) = config_with_metrics();
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    client.create_topic("topic", 2);
    produce_in_turn(&mut client, 1);
    drop(client);
    // of both partitions, so that one of them is on the other shard than the consumer
    let before = sum(&page(metrics), MOVED);
    for partition in [0, 1] {
        let mut consumer = node.client();
        let ask = |offset: i64, id: i32, epoch: i32| {
            FetchRequest::default()
                .with_session_id(id)
                .with_session_epoch(epoch)
                .with_max_bytes(1)
                .with_topics(fetch_request("topic", partition, offset, 0).topics)
        };
        let first = consumer.fetch(12, &ask(0, 0, 0));
        assert_ne!(first.session_id, 0);
        for at in 1..MANY {
            let next = consumer.fetch(12, &ask(at, first.session_id, i32::try_from(at).unwrap()));
            assert_eq!((next.error_code, next.session_id), (0, first.session_id), "fetch {at}");
            assert_eq!(next.responses.len(), 1, "fetch {at}");
        }
        // produced to the other partition over the same connection, so that it moves with its session for certain
        for at in 0..MANY {
            let (code, _) = consumer.produce("topic", 1 - partition, &value(at));
            assert_eq!(code, 0);
        }
        let quiet = consumer.fetch(12, &ask(MANY * 10, first.session_id, i32::try_from(MANY).unwrap()));
        assert_eq!((quiet.error_code, quiet.session_id), (0, first.session_id));
    }
    assert!(sum(&page(metrics), MOVED) - before >= 2.0);
}

#[test]
fn a_moved_connection_is_answered_when_the_node_stops() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    client.create_topic("topic", 2);
    produce_in_turn(&mut client, 1);
    let id = client.send(9, &produce_request("topic", 1, -1, batch(&value(0))));
    assert_eq!(client.receive_correlation_id(), id);
    node.stop();
    assert!(client.is_closed_by_node());
}

#[test]
fn shards_that_are_brokers_keep_their_connections() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = NetConfig { advertise: Advertise::Shard, ..config() };
    let mut metrics = config.listeners[0].addresses[0];
    metrics.set_port(metrics.port() + 3);
    config.metrics = Some(metrics);
    let node = Node::start(dir.path(), 2, config);
    let mut client = node.client();
    client.create_topic("topic", 2);
    produce_in_turn(&mut client, 1);
    assert_eq!(sum(&page(metrics), MOVED), 0.0);
}
