//! A node in a thread of its own, on a folder that goes with it.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread::JoinHandle,
};

use millrace_engine::node::{NodeOptions, StartError, Stopper, run};
use millrace_net::{ListenerConfig, Membership, NetConfig, serve};

use crate::client::Client;

/// A running node; stops when dropped.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), StartError>>>,
}

/// The wire's configuration on a port that was free a moment ago, with as many free ports behind it.
pub(crate) fn config() -> NetConfig {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let following = (1..4).all(|more| {
            address.port().checked_add(more).is_some_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        });
        if following {
            return NetConfig {
                listeners: vec![ListenerConfig::plain(address, "127.0.0.1", address.port())],
                ..NetConfig::default()
            };
        }
    }
}

impl Node {
    /// Starts a node and waits until it answers.
    pub(crate) fn start(dir: &Path, shards: usize, config: NetConfig) -> Node {
        Node::start_with_reserve(dir, shards, config, 1 << 20)
    }

    /// As [`Node::start`]; takes no records while less than that many bytes of the disk are free.
    pub(crate) fn start_with_reserve(dir: &Path, shards: usize, config: NetConfig, reserve_bytes: u64) -> Node {
        let options = NodeOptions {
            data_dir: dir.to_owned(),
            node_id: 1,
            shards,
            pin: false,
            memory_bytes: shards * (64 << 20),
            reserve_bytes,
            wal_bytes: 96 << 20,
            topic_defaults: BTreeMap::new(),
            producer_id_expiration_ms: 86_400_000,
            retention_check_ms: 300_000,
        };
        let address = config.listeners[0].addresses[0];
        let stopper = Stopper::default();
        let stop = stopper.clone();
        let thread = std::thread::spawn(move || {
            run(options, stop, move |engine| {
                let config = config.clone();
                async move { serve(engine, config, Membership::Alone).await.expect("the wire is served") }
            })
        });
        let node = Node { address, stopper, thread: Some(thread) };
        node.client();
        node
    }

    /// A new connection, once the node takes it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Stops the node and waits for its end.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic").expect("a clean end");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}
