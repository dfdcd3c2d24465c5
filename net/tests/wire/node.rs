//! A node in a thread of its own, on a folder that goes with it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
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

/// Ports to listen on: below those that Linux gives to outgoing connections, which may take a port between its choice and
/// the node's start, or that a node gave up for the moment of a restart.
const PORTS: std::ops::Range<u32> = 10_000..32_000;
/// Ports that are handed out together: shards that are advertised and metrics take those behind the node's own.
const PORTS_EACH: u32 = 16;

/// An address of this machine behind whose port others are free too; another one with every call.
pub(crate) fn free_address() -> SocketAddr {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let blocks = PORTS.len() as u32 / PORTS_EACH;
    // processes that start one after the other begin far from each other
    let start = std::process::id().wrapping_mul(0x9e37_79b9) >> 8;
    for _ in 0..blocks {
        let block = start.wrapping_add(CALLS.fetch_add(1, Relaxed)) % blocks;
        let port = (PORTS.start + PORTS_EACH * block) as u16;
        // at no address of this machine is there another listener: some tests listen at several
        if (0..PORTS_EACH as u16).all(|more| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port + more)).is_ok()) {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        }
    }
    panic!("no {PORTS_EACH} free ports in {PORTS:?}");
}

/// The wire's configuration on a free port with free ones behind it.
pub(crate) fn config() -> NetConfig {
    let address = free_address();
    NetConfig { listeners: vec![ListenerConfig::plain(address, "127.0.0.1", address.port())], ..NetConfig::default() }
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
