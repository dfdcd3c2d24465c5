//! Several ways into one node: each client is told the addresses of the one that it came through.

use std::net::{IpAddr, SocketAddr};

use kafka_protocol::{
    messages::{
        DescribeClusterRequest, DescribeConfigsRequest, DescribeQuorumRequest, FindCoordinatorRequest, MetadataRequest,
        describe_configs_request::DescribeConfigsResource,
        describe_quorum_request::{PartitionData, TopicData},
    },
    protocol::StrBytes,
};
use millrace_net::{Advertise, ListenerConfig, NetConfig};

use crate::{
    client::{Client, topic_name},
    metrics::{page, sum},
    node::{Node, config},
};

/// Two networks: the same ports at two addresses of this machine.
fn two_networks() -> (NetConfig, [SocketAddr; 2]) {
    let config = config();
    let inside = config.listeners[0].addresses[0];
    let outside = SocketAddr::new(IpAddr::from([127, 0, 0, 2]), inside.port());
    let listener = |name: &str, address, host: &str, port| ListenerConfig {
        name: name.to_string(),
        ..ListenerConfig::plain(address, host, port)
    };
    let listeners =
        vec![listener("INSIDE", inside, "broker", 19_092), listener("OUTSIDE", outside, "2001:db8::1", 29_092)];
    (NetConfig { listeners, ..config }, [inside, outside])
}

type Addresses = Vec<(String, i32)>;

/// Everything that a client is told of where brokers are.
fn told(client: &mut Client) -> Vec<(&'static str, Addresses)> {
    let metadata = client.call(12, &MetadataRequest::default().with_topics(None));
    let cluster = client.call(2, &DescribeClusterRequest::default());
    let key = StrBytes::from_static_str("group");
    let one = client.call(3, &FindCoordinatorRequest::default().with_key(key.clone()));
    let many = client.call(4, &FindCoordinatorRequest::default().with_coordinator_keys(vec![key]));
    let coordinators = many.coordinators.iter().map(|found| (found.host.to_string(), found.port));
    vec![
        ("Metadata", metadata.brokers.iter().map(|broker| (broker.host.to_string(), broker.port)).collect()),
        ("DescribeCluster", cluster.brokers.iter().map(|broker| (broker.host.to_string(), broker.port)).collect()),
        ("FindCoordinator 3", vec![(one.host.to_string(), one.port)]),
        ("FindCoordinator 4", coordinators.collect()),
    ]
}

fn setting(client: &mut Client, name: &'static str) -> String {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(StrBytes::from_static_str("1"))
        .with_configuration_keys(Some(vec![StrBytes::from_static_str(name)]));
    let response = client.call(4, &DescribeConfigsRequest::default().with_resources(vec![resource]));
    response.results[0].configs[0].value.as_ref().expect("a value").to_string()
}

#[test]
fn clients_are_told_the_address_of_the_listener_that_they_came_through() {
    let dir = tempfile::tempdir().unwrap();
    let (config, [inside, outside]) = two_networks();
    let node = Node::start(dir.path(), 2, config);
    drop(node.client());
    for (address, host, port) in [(inside, "broker", 19_092), (outside, "2001:db8::1", 29_092)] {
        for (api, addresses) in told(&mut Client::connect(address)) {
            assert_eq!(addresses, [(host.to_string(), port)], "{api} through {address}");
        }
    }
    let mut client = Client::connect(outside);
    assert_eq!(setting(&mut client, "listeners"), format!("INSIDE://{inside},OUTSIDE://{outside}"));
    let advertised = "INSIDE://broker:19092,OUTSIDE://[2001:db8::1]:29092";
    assert_eq!(setting(&mut client, "advertised.listeners"), advertised);
    let map = "INSIDE:PLAINTEXT,OUTSIDE:PLAINTEXT";
    assert_eq!(setting(&mut client, "listener.security.protocol.map"), map);
    let metadata = TopicData::default()
        .with_topic_name(topic_name("__cluster_metadata"))
        .with_partitions(vec![PartitionData::default()]);
    let quorum = client.call(2, &DescribeQuorumRequest::default().with_topics(vec![metadata]));
    let listeners = quorum.nodes[0].listeners.iter().map(|listener| (listener.name.to_string(), listener.port));
    assert_eq!(listeners.collect::<Vec<_>>(), [("INSIDE".to_string(), 19_092), ("OUTSIDE".to_string(), 29_092)]);
}

#[test]
fn a_connection_that_moves_to_another_shard_stays_with_its_listener() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, [inside, outside]) = two_networks();
    let metrics = SocketAddr::new(inside.ip(), inside.port() + 3);
    config.metrics = Some(metrics);
    let node = Node::start(dir.path(), 2, config);
    node.client().create_topic("topic", 2);
    let mut client = Client::connect(outside);
    for partition in [0, 1] {
        for at in 0..100 {
            assert_eq!(client.produce("topic", partition, &[b"value".to_vec()]), (0, at));
        }
        for (api, addresses) in told(&mut client) {
            assert_eq!(addresses, [("2001:db8::1".to_string(), 29_092)], "{api} after partition {partition}");
        }
    }
    assert!(sum(&page(metrics), "millrace_connections_moved_total") >= 1.0);
}

#[test]
fn shards_that_are_brokers_have_ports_of_their_own_in_each_listener() {
    let dir = tempfile::tempdir().unwrap();
    let (config, [inside, outside]) = two_networks();
    let node = Node::start(dir.path(), 2, NetConfig { advertise: Advertise::Shard, ..config });
    node.client().create_topic("topic", 8);
    for (address, host, port) in [(inside, "broker", 19_092), (outside, "2001:db8::1", 29_092)] {
        let brokers = [(host.to_string(), port + 1), (host.to_string(), port + 2)];
        // by the port that all shards share, and by that of each
        for more in 0..3 {
            let mut client = Client::connect(SocketAddr::new(address.ip(), address.port() + more));
            for (api, addresses) in told(&mut client) {
                match api.starts_with("FindCoordinator") {
                    true => assert!(brokers.contains(&addresses[0]), "{api} through {address} + {more}: {addresses:?}"),
                    false => assert_eq!(addresses, brokers, "{api} through {address} + {more}"),
                }
            }
        }
    }
    let mut client = Client::connect(outside);
    let advertised = "INSIDE://broker:19093,INSIDE://broker:19094,\
        OUTSIDE://[2001:db8::1]:29093,OUTSIDE://[2001:db8::1]:29094";
    assert_eq!(setting(&mut client, "advertised.listeners"), advertised);
}

#[test]
fn ipv4_and_ipv6_can_be_listeners_of_their_own_on_one_port() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    let port = config.listeners[0].addresses[0].port();
    let listener = |name: &str, address: &str| ListenerConfig {
        name: name.to_string(),
        ..ListenerConfig::plain(format!("{address}:{port}").parse().unwrap(), &name.to_lowercase(), port)
    };
    config.listeners = vec![listener("V6", "[::]"), listener("V4", "0.0.0.0")];
    let _node = Node::start(dir.path(), 2, config);
    for (address, host) in [("127.0.0.1", "v4"), ("[::1]", "v6")] {
        let mut client = Client::connect(format!("{address}:{port}").parse().unwrap());
        assert_eq!(told(&mut client)[0].1, [(host.to_string(), i32::from(port))]);
    }
}
