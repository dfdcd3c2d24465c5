//! Shards that are advertised as brokers of their own.

use std::collections::BTreeSet;

use kafka_protocol::messages::{DescribeClusterRequest, DescribeLogDirsRequest, MetadataRequest};
use millrace_net::{Advertise, NetConfig};

use crate::{
    client::Client,
    node::{Node, config},
};

#[test]
fn every_shard_is_a_broker_that_leads_its_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let shards = 3;
    let config = NetConfig { advertise: Advertise::Shard, ..config() };
    let first_port = config.listeners[0].addresses[0].port() + 1;
    let node = Node::start(dir.path(), shards, config);
    let mut client = node.client();
    client.create_topic("topic", 12);
    let metadata = client.call(12, &MetadataRequest::default().with_topics(None));
    let brokers: Vec<_> = metadata.brokers.iter().map(|broker| (broker.node_id.0, broker.port)).collect();
    let expected: Vec<_> = (0..3).map(|shard| (1 + shard, i32::from(first_port) + shard)).collect();
    assert_eq!(brokers, expected);
    let leaders: BTreeSet<_> = metadata.topics[0].partitions.iter().map(|partition| partition.leader_id.0).collect();
    assert_eq!(leaders, BTreeSet::from([1, 2, 3]), "partitions are spread over the shards");

    let described = client.call(2, &DescribeClusterRequest::default());
    assert_eq!(described.brokers.len(), shards);
    for partition in &metadata.topics[0].partitions {
        let (_, port) = brokers[usize::try_from(partition.leader_id.0 - 1).expect("from 1")];
        let mut leader = Client::connect(([127, 0, 0, 1], u16::try_from(port).expect("a port")).into());
        assert_eq!(leader.produce("topic", partition.partition_index, &[b"value".to_vec()]), (0, 0));
    }
    let mut shown = Vec::new();
    for (_, port) in brokers {
        let mut broker = Client::connect(([127, 0, 0, 1], u16::try_from(port).expect("a port")).into());
        let described = broker.call(4, &DescribeLogDirsRequest::default().with_topics(None));
        let partitions = described.results[0].topics.iter().flat_map(|topic| &topic.partitions);
        shown.extend(partitions.map(|partition| partition.partition_index));
    }
    shown.sort_unstable();
    assert_eq!(shown, (0..12).collect::<Vec<_>>(), "every partition is shown by one broker");
    // Any other shard serves the partition all the same.
    assert_eq!(client.produce("topic", 0, &[b"value".to_vec()]), (0, 1));
}
