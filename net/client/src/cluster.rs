//! All brokers of a cluster: who leads what, whom to ask, and when to ask again.

use std::{
    collections::{BTreeMap, HashMap},
    thread,
    time::{Duration, Instant},
};

use kafka_protocol::{
    messages::{
        BrokerId, FindCoordinatorRequest, MetadataRequest, MetadataResponse, metadata_request::MetadataRequestTopic,
    },
    protocol::{Request, StrBytes},
};
use millrace_engine::config::check_topic_name;
use uuid::Uuid;

use crate::{
    broker::Broker,
    connection::ConnectOptions,
    error::{ClientError, partition_named},
    error_code::UNKNOWN_TOPIC_OR_PARTITION,
    requests::{milliseconds, topic_name},
};

/// What a coordinator's key is, in FindCoordinator.
const GROUP_KEY: i8 = 0;
const TRANSACTION_KEY: i8 = 1;

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Hosts and ports of some of its brokers. At least one.
    pub brokers: Vec<(String, u16)>,
    /// Of each connection. The time is also that of all attempts of one request together.
    pub connect: ConnectOptions,
}

/// A topic as metadata tells it.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Nil when the broker is too old to have ids.
    pub id: Uuid,
    /// Whether brokers keep their own state in it.
    pub is_internal: bool,
    /// By index.
    pub partitions: BTreeMap<i32, Partition>,
}

/// A partition as metadata tells it.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Broker id, or -1 when nobody leads it.
    pub leader: i32,
    /// How often the leader changed; -1 when the broker is too old to say.
    pub leader_epoch: i32,
    /// Ids of the brokers that have a copy.
    pub replicas: Vec<i32>,
    /// Those of them that are up to date.
    pub in_sync: Vec<i32>,
}

/// Whom a connection leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    /// One of the addresses that the user gave.
    Bootstrap(usize),
    /// By id, as metadata told.
    Broker(i32),
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    connections: HashMap<Peer, Broker>,
    brokers: HashMap<i32, (String, u16)>,
    /// The broker that changes topics, where only one of them does.
    controller: Option<i32>,
    topics: HashMap<String, Topic>,
}

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How long to wait for a topic that the broker is just creating for us.
const CREATION_WAIT: Duration = Duration::from_secs(5);

const LEADER_NOT_AVAILABLE: i16 = 5;
const BROKER_NOT_AVAILABLE: i16 = 8;
const INVALID_TOPIC_EXCEPTION: i16 = 17;

impl Cluster {
    /// Connects to nobody yet.
    pub fn new(options: ClusterOptions) -> Self {
        Self { options, connections: HashMap::new(), brokers: HashMap::new(), controller: None, topics: HashMap::new() }
    }

    /// Time for each answer and for all attempts of a request.
    pub fn timeout(&self) -> Duration {
        self.options.connect.timeout
    }

    /// The same in ms, as requests carry it.
    pub fn timeout_ms(&self) -> i32 {
        milliseconds(self.options.connect.timeout)
    }

    /// Tries until it works, fails for good, or takes too long. What is known of leaders is forgotten in between.
    pub fn retry<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.options.connect.timeout;
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(error) if !error.is_retriable() => return Err(error),
                // A first connection that fails is most likely a wrong address: say so at once.
                Err(error @ ClientError::Connect { .. }) if self.brokers.is_empty() => return Err(error),
                Err(error) => error,
            };
            if Instant::now() + backoff > deadline {
                return Err(ClientError::TimedOut { last: Box::new(error) });
            }
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
            self.forget(&error);
        }
    }

    /// Forgets who leads what, after an answer that shows that it is out of date.
    pub fn forget_leaders(&mut self) {
        self.topics.clear();
    }

    /// Forgets what an error proves to be out of date.
    fn forget(&mut self, error: &ClientError) {
        self.topics.clear();
        self.controller = None;
        if let ClientError::Lost { address, .. } = error {
            self.connections.retain(|_, connection| connection.address() != address);
        }
    }

    /// Asks any broker.
    pub fn any<R: Request>(&mut self, build: impl FnOnce(i16) -> R) -> Result<R::Response, ClientError> {
        let peer = self.any_peer()?;
        self.ask(peer, Duration::ZERO, build)
    }

    /// Asks the broker that changes topics and settings.
    pub fn controller<R: Request>(&mut self, build: impl FnOnce(i16) -> R) -> Result<R::Response, ClientError> {
        if self.controller.is_none() {
            self.fetch_metadata(Some(&[]), false)?;
        }
        match self.controller.filter(|id| self.brokers.contains_key(id)) {
            Some(id) => self.broker(id, build),
            None => self.any(build),
        }
    }

    /// Asks one broker.
    pub fn broker<R: Request>(&mut self, id: i32, build: impl FnOnce(i16) -> R) -> Result<R::Response, ClientError> {
        self.ask(Peer::Broker(id), Duration::ZERO, build)
    }

    /// Asks one broker for something that it may keep for `wait` before it answers.
    pub fn broker_waiting<R: Request>(
        &mut self,
        id: i32,
        wait: Duration,
        build: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        self.ask(Peer::Broker(id), wait, build)
    }

    /// Tells one broker something that it does not answer.
    pub fn tell<R: Request>(&mut self, id: i32, build: impl FnOnce(i16) -> R) -> Result<(), ClientError> {
        self.connection(Peer::Broker(id))?.call_unanswered(build)
    }

    fn ask<R: Request>(
        &mut self,
        peer: Peer,
        wait: Duration,
        build: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        let result = self.connection(peer)?.call(wait, build);
        if matches!(result, Err(ClientError::Lost { .. } | ClientError::NotKafka { .. })) {
            // Half an answer may still be on its way: this connection is of no use any more.
            self.connections.remove(&peer);
        }
        result
    }

    /// A connection to any broker, for looking at what it serves.
    pub fn any_connection(&mut self) -> Result<&mut Broker, ClientError> {
        let peer = self.any_peer()?;
        self.connection(peer)
    }

    /// A connection to one broker, for looking at what it serves.
    pub fn broker_connection(&mut self, id: i32) -> Result<&mut Broker, ClientError> {
        self.connection(Peer::Broker(id))
    }

    fn connection(&mut self, peer: Peer) -> Result<&mut Broker, ClientError> {
        if !self.connections.contains_key(&peer) {
            let (host, port) = match peer {
                Peer::Bootstrap(at) => self.options.brokers[at].clone(),
                Peer::Broker(id) => self.broker_address(id)?,
            };
            let connection = Broker::open(&host, port, &self.options.connect)?;
            self.connections.insert(peer, connection);
        }
        Ok(self.connections.get_mut(&peer).expect("it is there, or was just put there"))
    }

    fn broker_address(&mut self, id: i32) -> Result<(String, u16), ClientError> {
        if !self.brokers.contains_key(&id) {
            self.fetch_metadata(Some(&[]), false)?;
        }
        let unknown = || ClientError::Refused {
            what: format!("broker {id}"),
            code: BROKER_NOT_AVAILABLE,
            message: Some(format!("no such broker; there are {:?}", self.brokers.keys())),
        };
        self.brokers.get(&id).cloned().ok_or_else(unknown)
    }

    /// Somebody to ask: an open connection, else the first of the user's addresses that answers.
    fn any_peer(&mut self) -> Result<Peer, ClientError> {
        if let Some(peer) = self.connections.keys().next() {
            return Ok(*peer);
        }
        let mut failure = None;
        for at in 0..self.options.brokers.len() {
            match self.connection(Peer::Bootstrap(at)) {
                Ok(_) => return Ok(Peer::Bootstrap(at)),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("at least one broker was given"))
    }

    /// Ids of all brokers.
    pub fn broker_ids(&mut self) -> Result<Vec<i32>, ClientError> {
        self.retry(|cluster| cluster.fetch_metadata(Some(&[]), false).map(drop))?;
        let mut ids: Vec<i32> = self.brokers.keys().copied().collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// All topics, sorted by name.
    pub fn all_topics(&mut self) -> Result<Vec<Topic>, ClientError> {
        let response = self.retry(|cluster| cluster.fetch_metadata(None, false))?;
        let mut topics: Vec<Topic> = response.topics.iter().filter(|t| t.error_code == 0).map(topic_of).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// One topic. `create` lets the broker make it if its settings say so, and waits for that.
    pub fn topic(&mut self, name: &str, create: bool) -> Result<Topic, ClientError> {
        let deadline = Instant::now() + CREATION_WAIT;
        self.retry(|cluster| {
            if let Some(topic) = cluster.topics.get(name) {
                return Ok(topic.clone());
            }
            let response = cluster.fetch_metadata(Some(&[name]), create)?;
            let Some(found) = response.topics.first() else {
                return Err(refused(name, UNKNOWN_TOPIC_OR_PARTITION, false));
            };
            let code = found.error_code;
            let may_appear = create && Instant::now() < deadline;
            if code != 0 {
                return Err(refused(name, code, code != UNKNOWN_TOPIC_OR_PARTITION || may_appear));
            }
            let topic = topic_of(found);
            if topic.partitions.values().any(|partition| partition.leader < 0) && may_appear {
                return Err(refused(name, LEADER_NOT_AVAILABLE, true));
            }
            cluster.topics.insert(name.to_owned(), topic.clone());
            Ok(topic)
        })
    }

    /// The broker that leads a partition.
    pub fn leader(&mut self, topic: &str, partition: i32) -> Result<i32, ClientError> {
        let found = self.topic(topic, false)?;
        match found.partitions.get(&partition) {
            None => Err(ClientError::no_such_partition(topic, partition, found.partitions.len())),
            Some(found) if found.leader < 0 => {
                let what = partition_named(topic, partition);
                Err(ClientError::Refused { what, code: LEADER_NOT_AVAILABLE, message: None })
            }
            Some(partition) => Ok(partition.leader),
        }
    }

    /// The broker that coordinates a group.
    pub fn coordinator(&mut self, group: &str) -> Result<i32, ClientError> {
        self.find_coordinator(GROUP_KEY, group, format!("group '{group}'"))
    }

    /// The broker that coordinates the transactions of an id.
    pub fn transaction_coordinator(&mut self, id: &str) -> Result<i32, ClientError> {
        self.find_coordinator(TRANSACTION_KEY, id, format!("transactional id '{id}'"))
    }

    fn find_coordinator(&mut self, key_type: i8, key: &str, what: String) -> Result<i32, ClientError> {
        let key = StrBytes::from_string(key.to_owned());
        let response = self.any(|version| match version {
            0 => FindCoordinatorRequest::default().with_key(key),
            ..=3 => FindCoordinatorRequest::default().with_key_type(key_type).with_key(key),
            _ => FindCoordinatorRequest::default().with_key_type(key_type).with_coordinator_keys(vec![key]),
        })?;
        let first = response.coordinators.first();
        let (code, message, id, host, port) = match first {
            Some(c) => (c.error_code, &c.error_message, c.node_id, &c.host, c.port),
            None => (response.error_code, &response.error_message, response.node_id, &response.host, response.port),
        };
        ClientError::check(what, code, message.as_deref())?;
        self.brokers.insert(id.0, (host.to_string(), u16::try_from(port).unwrap_or(0)));
        Ok(id.0)
    }

    /// Asks for metadata of these topics (`None`: of all, `[]`: only of brokers) and remembers the brokers.
    pub(crate) fn fetch_metadata(
        &mut self,
        names: Option<&[&str]>,
        create: bool,
    ) -> Result<MetadataResponse, ClientError> {
        let topic = |name: &&str| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let topics: Option<Vec<_>> = names.map(|names| names.iter().map(topic).collect());
        let response = self.any(|version| {
            let request = MetadataRequest::default();
            match (topics, version) {
                // The oldest version has no null: an empty list asks for all topics.
                (None, 0) => request.with_topics(Some(Vec::new())),
                (topics, ..=3) => request.with_topics(topics),
                (topics, _) => request.with_topics(topics).with_allow_auto_topic_creation(create),
            }
        })?;
        let address = |port| u16::try_from(port).unwrap_or(0);
        self.brokers = response.brokers.iter().map(|b| (b.node_id.0, (b.host.to_string(), address(b.port)))).collect();
        self.controller = Some(response.controller_id.0).filter(|id| *id >= 0);
        Ok(response)
    }
}

/// Metadata has no messages: what is wrong with a name is known here.
fn refused(name: &str, code: i16, again: bool) -> ClientError {
    let illegal = check_topic_name(name).err().filter(|_| code == INVALID_TOPIC_EXCEPTION);
    let message = illegal.map(|reason| format!("invalid topic name: {reason}"));
    let error = ClientError::Refused { what: format!("topic '{name}'"), code, message };
    match again {
        true => error,
        false => ClientError::Settled(Box::new(error)),
    }
}

fn topic_of(found: &kafka_protocol::messages::metadata_response::MetadataResponseTopic) -> Topic {
    let ids = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
    let partition = |p: &kafka_protocol::messages::metadata_response::MetadataResponsePartition| {
        let partition = Partition {
            leader: p.leader_id.0,
            leader_epoch: p.leader_epoch,
            replicas: ids(&p.replica_nodes),
            in_sync: ids(&p.isr_nodes),
        };
        (p.partition_index, partition)
    };
    Topic {
        name: found.name.as_ref().map(|name| name.to_string()).unwrap_or_default(),
        id: found.topic_id,
        is_internal: found.is_internal,
        partitions: found.partitions.iter().map(partition).collect(),
    }
}
