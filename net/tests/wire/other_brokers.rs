//! What a shard of a cluster keeps of other brokers: one connection per node and purpose, for as long as the node lives.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, rc::Rc};

use futures_util::future::{join, join_all};
use glommio::LocalExecutorBuilder;
use kafka_protocol::messages::MetadataRequest;
use millrace_engine::api::TopicPartition;
use millrace_net::client::{AskError, CallError, ClusterMap, Leader, Led, NodeAddress, OtherBrokers, Purpose};
use uuid::Uuid;

use crate::node::{Node, config, free_address};

/// A cluster that the test changes, seen by node 1.
#[derive(Clone, Default)]
struct Map {
    addresses: Rc<RefCell<BTreeMap<i32, NodeAddress>>>,
    leader: Rc<RefCell<Option<Led>>>,
}

impl Map {
    fn put(&self, node: i32, life: i64, address: SocketAddr) {
        let address = NodeAddress { life, host: address.ip().to_string(), port: address.port() };
        self.addresses.borrow_mut().insert(node, address);
    }
}

impl ClusterMap for Map {
    fn here(&self) -> i32 {
        1
    }

    fn led(&self, _: TopicPartition) -> Option<Led> {
        *self.leader.borrow()
    }

    fn address(&self, node: i32) -> Option<NodeAddress> {
        self.addresses.borrow().get(&node).cloned()
    }
}

/// Runs a test on a shard of its own.
fn on_a_shard(test: impl AsyncFnOnce(Map, OtherBrokers)) {
    LocalExecutorBuilder::default().make().expect("an executor").run(async {
        let map = Map::default();
        let others = OtherBrokers::new(Box::new(map.clone())).expect("a dialer");
        test(map, others).await;
    });
}

async fn ask(others: &OtherBrokers, node: i32, purpose: Purpose) -> Result<(), AskError> {
    others.ask(node, purpose, |_| MetadataRequest::default().with_topics(Some(Vec::new()))).await.map(|_| ())
}

#[test]
fn the_leader_is_here_elsewhere_or_nowhere() {
    on_a_shard(async |map, others| {
        let partition = TopicPartition { topic: Uuid::nil(), partition: 0 };
        assert_eq!(others.leader(partition), Leader::Nobody);
        for (node, leader) in [(1, Leader::Here), (2, Leader::Node(2))] {
            map.leader.replace(Some(Led { node, epoch: 3 }));
            assert_eq!(others.leader(partition), leader);
        }
    });
}

#[test]
fn a_connection_is_made_once_and_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async |map, others| {
        map.put(2, 7, node.address);
        for answer in join_all((0..20).map(|_| ask(&others, 2, Purpose::Markers))).await {
            assert_eq!(answer, Ok(()));
        }
        others.sweep();
        assert_eq!(others.connections(), 1);
        ask(&others, 2, Purpose::Admission).await.expect("an answer");
        assert_eq!(others.connections(), 2, "what waits behind one purpose does not wait behind the other");
    });
}

#[test]
fn a_connection_ends_with_the_life_of_its_node() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async |map, others| {
        map.put(2, 7, node.address);
        ask(&others, 2, Purpose::Markers).await.expect("an answer");
        map.addresses.borrow_mut().clear();
        assert!(matches!(ask(&others, 2, Purpose::Markers).await, Err(AskError::NotSent { node: 2, .. })));
        assert_eq!(others.connections(), 0);
        // another life of the node
        map.put(2, 8, node.address);
        ask(&others, 2, Purpose::Markers).await.expect("an answer");
        map.put(2, 9, node.address);
        others.sweep();
        assert_eq!(others.connections(), 0, "it was to the life before");
        ask(&others, 2, Purpose::Markers).await.expect("an answer");
    });
}

#[test]
fn what_is_open_when_the_node_goes_may_have_been_carried_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async |map, others| {
        map.put(2, 7, node.address);
        ask(&others, 2, Purpose::Markers).await.expect("an answer");
        let asked = std::pin::pin!(ask(&others, 2, Purpose::Markers));
        let gone = std::pin::pin!(async {
            map.addresses.borrow_mut().clear();
            others.sweep();
        });
        let (answer, ()) = join(asked, gone).await;
        let error = CallError::Lost(std::io::ErrorKind::ConnectionAborted);
        assert_eq!(answer, Err(AskError::Unknown { node: 2, error }));
    });
}

#[test]
fn who_cannot_be_reached_is_not_asked_and_dialed_again_later() {
    let free = free_address();
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start(dir.path(), 1, config());
    on_a_shard(async |map, others| {
        map.put(2, 7, free);
        let refused = ask(&others, 2, Purpose::Markers).await;
        let error = CallError::Lost(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(refused, Err(AskError::NotSent { node: 2, error }));
        // it is there now: after a pause it is dialed again
        map.put(2, 7, node.address);
        while let Err(error) = ask(&others, 2, Purpose::Markers).await {
            assert_eq!(Err(error), refused);
            glommio::timer::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
}
