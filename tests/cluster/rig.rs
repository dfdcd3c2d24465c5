//! A cluster under test: an etcd and its nodes, and what a test asks of all of them.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use kafka_protocol::protocol::StrBytes;
use millrace_bench::{
    client::{self, FetchLimits, Leaders},
    ledger::{Acknowledged, Tally},
    reader, server,
};
use millrace_client::{ClientError, Cluster, ClusterOptions, ConnectOptions, Topic, TopicSpec};
use tempfile::TempDir;

use crate::{
    etcd::{self, Etcd},
    network::{ETCD, Network},
    node::{Node, NodeOptions, PATIENCE, Place, binary},
};

/// Kafka's code for a topic that is there.
const TOPIC_ALREADY_EXISTS: i16 = 36;

/// How long a client waits for one answer: a node that stands still shall not hold a test up for long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// An etcd and nodes with the ids from 1 on.
pub(crate) struct Rig {
    /// `None`: the nodes run it.
    etcd: Option<Etcd>,
    /// What nodes are told of it.
    etcd_option: String,
    nodes: Vec<Node>,
    more: String,
    /// Outlives the processes in it.
    network: Option<Network>,
    folder: TempDir,
}

impl Rig {
    /// Starts a cluster and waits until every node knows all of them. `None`: there is no etcd here.
    pub(crate) fn start(nodes: i32, more: &str) -> Option<Rig> {
        etcd::is_there().then(|| Rig::start_at(nodes, more, None))
    }

    /// The same on networks of their own.
    pub(crate) fn start_in(network: Network, nodes: i32) -> Option<Rig> {
        etcd::is_there().then(|| Rig::start_at(nodes, "", Some(network)))
    }

    fn start_at(nodes: i32, more: &str, mut network: Option<Network>) -> Rig {
        let folder = tempfile::Builder::new().prefix("millrace-cluster-").tempdir().unwrap();
        let place = network.as_mut().map_or_else(Place::here, |network| network.place(ETCD));
        let etcd = Etcd::start(folder.path(), place);
        let etcd_option = etcd.url();
        let mut rig = Rig { etcd: Some(etcd), etcd_option, nodes: Vec::new(), more: more.to_owned(), network, folder };
        for id in 1..=nodes {
            rig.add(id);
        }
        rig.await_all();
        rig
    }

    /// Three nodes, each of which runs an etcd as its child.
    pub(crate) fn start_managed() -> Option<Rig> {
        if !etcd::is_there() {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("millrace-cluster-").tempdir().unwrap();
        let members = (1..=3).map(|id| format!("{id}={}", server::free_address().unwrap())).collect::<Vec<_>>();
        let etcd_option = format!("managed --etcd-members {}", members.join(","));
        let mut rig = Rig { etcd: None, etcd_option, nodes: Vec::new(), more: String::new(), network: None, folder };
        (1..=3).for_each(|id| rig.add(id));
        rig.await_all();
        Some(rig)
    }

    /// Makes a backup of the etcds that the nodes run.
    pub(crate) fn save_managed_backup(&self) {
        let (_, client) = self.managed_members()[0];
        let backup = self.folder.path().join("backup").display().to_string();
        etcd::etcdctl(&["--endpoints", &format!("http://{client}"), "snapshot", "save", &backup]);
    }

    /// Puts the backup in the place of what each node's etcd has, while no node runs.
    pub(crate) fn restore_managed_backup(&mut self) {
        let members = self.managed_members();
        let peer = |client: SocketAddr| format!("http://{}:{}", client.ip(), client.port() + 1);
        let all = members.iter().map(|(id, client)| format!("node-{id}={}", peer(*client)));
        let all = all.collect::<Vec<_>>().join(",");
        let backup = self.folder.path().join("backup").display().to_string();
        for (id, client) in members {
            self.node(id).lose("etcd");
            let (data, name, own) =
                (self.node(id).path("etcd").display().to_string(), format!("node-{id}"), peer(client));
            let options = ["--data-dir", &data, "--name", &name, "--initial-cluster", &all];
            let more = ["--initial-cluster-token", "tested", "--initial-advertise-peer-urls", &own];
            etcd::etcdctl(&[&["snapshot", "restore", &backup], &options[..], &more[..]].concat());
        }
    }

    /// Ids of nodes that run an etcd, and where that takes clients.
    fn managed_members(&self) -> Vec<(i32, SocketAddr)> {
        let (_, list) = self.etcd_option.split_once("--etcd-members ").expect("the nodes run it");
        let members = list.split(',').map(|member| member.split_once('=').unwrap());
        members.map(|(id, address)| (id.parse().unwrap(), address.parse().unwrap())).collect()
    }

    /// All nodes.
    pub(crate) fn each_node(&self) -> &[Node] {
        &self.nodes
    }

    /// Two nodes without an etcd, of which node 1 leads; what it does alone is `continue` or `stop`.
    pub(crate) fn start_mirror(without_follower: &str) -> Rig {
        let members = [(); 2].map(|()| server::free_address().unwrap());
        Rig::start_mirror_at(without_follower, members, None)
    }

    /// The same on networks of their own.
    pub(crate) fn start_mirror_in(network: Network, without_follower: &str) -> Rig {
        let members = [1, 2].map(|place| network.address(place, 2379));
        Rig::start_mirror_at(without_follower, members, Some(network))
    }

    fn start_mirror_at(without_follower: &str, members: [SocketAddr; 2], network: Option<Network>) -> Rig {
        let folder = tempfile::Builder::new().prefix("millrace-cluster-").tempdir().unwrap();
        let etcd_option = format!(
            "mirror --etcd-members 1={},2={} --replication-setting mirror.without.follower={without_follower}",
            members[0], members[1]
        );
        let mut rig = Rig { etcd: None, etcd_option, nodes: Vec::new(), more: String::new(), network, folder };
        (1..=2).for_each(|id| rig.add(id));
        rig.await_all();
        rig
    }

    /// An etcd, and node 1 that knows nothing of it yet.
    pub(crate) fn start_alone() -> Option<Rig> {
        let mut rig = Rig::start(0, "")?;
        let options = NodeOptions { folder: rig.folder.path(), etcd: rig.etcd_option.clone(), more: "--shards 1" };
        let mut node = Node::new(1, Place::here(), &options);
        node.stay_alone();
        node.process.start();
        node.await_ready();
        rig.nodes.push(node);
        Some(rig)
    }

    /// The etcd of the test.
    pub(crate) fn etcd(&mut self) -> &mut Etcd {
        self.etcd.as_mut().expect("the test has one of its own")
    }

    /// Makes one more node and starts it, without waiting for it.
    pub(crate) fn add(&mut self, id: i32) {
        self.add_with_shards(id, 1);
    }

    /// The same, for one with another number of shards.
    pub(crate) fn add_with_shards(&mut self, id: i32, shards: usize) {
        let more = format!("{} --shards {shards}", self.more);
        let options = NodeOptions { folder: self.folder.path(), etcd: self.etcd_option.clone(), more: &more };
        let network = self.network.as_mut();
        let place = network.map_or_else(Place::here, |network| network.place(u8::try_from(id).unwrap()));
        let mut node = Node::new(id, place, &options);
        node.process.start();
        self.nodes.push(node);
    }

    /// Where a node that was not made yet will have its folder.
    pub(crate) fn folder_of(&self, id: i32) -> std::path::PathBuf {
        let folder = self.folder.path().join(format!("node-{id}"));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A node.
    pub(crate) fn node(&mut self, id: i32) -> &mut Node {
        let found = self.nodes.iter_mut().find(|node| node.id == id);
        found.unwrap_or_else(|| panic!("no node {id}"))
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, id: i32) {
        self.node(id).process.kill();
    }

    /// Starts nodes that were stopped, and waits until they answer.
    pub(crate) fn restart(&mut self, ids: &[i32]) {
        for id in ids {
            self.node(*id).process.start();
        }
        for id in ids {
            self.node(*id).await_ready();
        }
    }

    /// SIGTERM; the node must end cleanly.
    pub(crate) fn stop(&mut self, id: i32) {
        self.node(id).process.begin_stop();
        let status = self.node(id).process.await_end();
        assert!(status.success(), "node {id}: {status}\n{}", self.logs());
    }

    /// Waits until every node answers and tells clients of all nodes that run.
    pub(crate) fn await_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.process.is_running()) {
            node.await_ready();
        }
        let running = self.running();
        for id in &running {
            let mut alone = self.client_of(*id);
            self.until("every node knows all", || alone.broker_ids().is_ok_and(|ids| ids == running));
        }
    }

    /// Ids of nodes that run.
    pub(crate) fn running(&self) -> Vec<i32> {
        self.nodes.iter().filter(|node| node.process.is_running()).map(|node| node.id).collect()
    }

    /// Addresses of all nodes.
    pub(crate) fn brokers(&self) -> Vec<(String, u16)> {
        self.nodes.iter().map(|node| (node.address.ip().to_string(), node.address.port())).collect()
    }

    /// A client of the cluster.
    pub(crate) fn client(&self) -> Cluster {
        client_of(self.brokers())
    }

    /// The network of their own that the nodes have.
    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("the cluster was started in one")
    }

    /// A client that does not begin at that node.
    pub(crate) fn client_without(&self, id: i32) -> Cluster {
        let others = self.nodes.iter().filter(|node| node.id != id);
        client_of(others.map(|node| (node.address.ip().to_string(), node.address.port())).collect())
    }

    /// A client that begins at one node.
    pub(crate) fn client_of(&self, id: i32) -> Cluster {
        let node = self.nodes.iter().find(|node| node.id == id).unwrap();
        client_of(vec![(node.address.ip().to_string(), node.address.port())])
    }

    /// Runs `millrace` with these arguments against the cluster; answers what it printed.
    pub(crate) fn millrace(&self, arguments: &[&str]) -> String {
        let (is_done, said) = self.try_millrace(arguments);
        assert!(is_done, "{arguments:?}: {said}\n{}", self.logs());
        said
    }

    /// The same of a command that may be refused.
    pub(crate) fn try_millrace(&self, arguments: &[&str]) -> (bool, String) {
        let brokers = self.brokers().iter().map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(",");
        let output = Command::new(binary()).args(arguments).args(["--broker", &brokers]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        (output.status.success(), said)
    }

    /// Creates a topic and waits until all its replicas are in sync.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, replicas: i16, settings: &[(&str, &str)]) {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let settings = settings.iter().map(own).collect();
        let spec =
            TopicSpec { name: name.to_owned(), partitions: Some(partitions), replicas: Some(replicas), settings };
        self.insist("the topic may be created", |client| client.create_topic(&spec, true));
        // one that is there now was created by a try whose answer was lost
        self.insist("the topic is created", |client| match client.create_topic(&spec, false) {
            Err(error) if error.code() == Some(TOPIC_ALREADY_EXISTS) => Ok(()),
            outcome => outcome,
        });
        self.await_in_sync(name, usize::try_from(replicas).unwrap());
    }

    /// A topic as the cluster tells it now.
    pub(crate) fn topic(&self, name: &str) -> Topic {
        self.insist("a topic is told", |client| client.topic(name, false))
    }

    /// The leader of a partition, once there is one.
    pub(crate) fn leader(&self, name: &str, partition: i32) -> i32 {
        let mut leader = -1;
        self.until("the partition has a leader", || {
            leader = self.topic(name).partitions[&partition].leader;
            leader >= 0
        });
        leader
    }

    /// Waits until every partition of a topic has a leader and that many replicas in sync.
    pub(crate) fn await_in_sync(&self, name: &str, replicas: usize) {
        self.until(&format!("{replicas} replicas of {name} are in sync"), || {
            let topic = self.client().topic(name, false);
            topic.is_ok_and(|topic| topic.partitions.values().all(|it| it.leader >= 0 && it.in_sync.len() == replicas))
        });
    }

    /// Does what does no harm if it is done twice, until it is done: nodes of a machine that is busy answer later than a client
    /// waits.
    pub(crate) fn insist<T>(&self, what: &str, mut attempt: impl FnMut(&mut Cluster) -> Result<T, ClientError>) -> T {
        let begun = Instant::now();
        loop {
            match attempt(&mut self.client()) {
                Ok(done) => return done,
                Err(error) => {
                    let may_pass = error.is_retriable() || matches!(error, ClientError::TimedOut { .. });
                    assert!(may_pass && begun.elapsed() < PATIENCE, "{what}: {error}\n{}", self.logs());
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for something that is bound to come.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Reads a whole topic back from its leaders and holds it against what was acknowledged; fails unless all is well.
    pub(crate) fn verify(&self, topic: &str, run: u64, acknowledged: &Acknowledged) -> Tally {
        let mut leaders = None;
        self.until("every partition can be read", || {
            let connection = self.nodes.iter().find(|node| node.process.is_running()).map(|node| node.address);
            let connected = client::connect(connection.expect("a node runs"), ANSWER_PATIENCE);
            leaders = connected.and_then(|mut it| client::await_leaders(&mut it, topic, ANSWER_PATIENCE)).ok();
            leaders.is_some()
        });
        self.verify_from(topic, run, acknowledged, &leaders.unwrap())
    }

    fn verify_from(&self, topic: &str, run: u64, acknowledged: &Acknowledged, leaders: &Leaders) -> Tally {
        let back = reader::read_back(topic, leaders, run, 1, FetchLimits::default(), PATIENCE);
        let back = back.unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
        let tally = back.ledger.verdict(acknowledged);
        assert!(tally.is_clean(), "{tally}\n{}", self.logs());
        tally
    }

    /// What all nodes printed.
    pub(crate) fn logs(&self) -> String {
        let logs = self.nodes.iter().map(|node| format!("--- node {}\n{}\n", node.id, node.process.log()));
        logs.collect()
    }
}

/// A client that asks the first of these that answers.
pub(crate) fn client_of(brokers: Vec<(String, u16)>) -> Cluster {
    let connect = ConnectOptions { client_id: StrBytes::from_static_str("cluster-test"), timeout: ANSWER_PATIENCE };
    Cluster::new(ClusterOptions { brokers, connect })
}
