//! The other brokers of a cluster, as one shard asks them.
//!
//! There is one connection per node and [`Purpose`], made when it is first needed and kept. It belongs to one life of the
//! node: as soon as the cluster's image shows another life, or none, it ends, and with it what is open on it. A connection
//! that has failed is replaced by the next request; while one cannot be made, requests are refused for a moment instead of
//! each trying again.
//!
//! Nothing is sent twice. Who asks learns whether the request can have been carried out ([`AskError`]) and knows what that
//! means.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::{SocketAddr, ToSocketAddrs},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{LocalBoxFuture, Shared},
};
use kafka_protocol::protocol::StrBytes;
use millrace_client::ExchangeLimits;
use millrace_engine::api::TopicPartition;

use super::{Ask, CallError, CallLimits, ClusterMap, Dialer, Leader, Led, NodeAddress, RemoteBroker};

/// What a connection is for. Answers of one come in the order of its requests, so that what waits for long must not stand
/// before what others wait for: most of all, what a partition waits for before its end must not wait behind what waits for
/// that end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Questions to coordinators of transactions, which may hold them until another transaction has ended.
    Admission,
    /// Ends of transactions.
    Markers,
    /// What is known of transactions, for those who look for some that nobody will end.
    Inspection,
    /// State of share groups.
    ShareState,
    /// How far logs reach, for those who describe groups.
    Offsets,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It was not sent, and will not be.
    #[error("node {node} is not asked: {error}")]
    NotSent {
        /// Who was to be asked.
        node: i32,
        /// Why it was not.
        error: CallError,
    },
    /// It may have been carried out, or may still be.
    #[error("node {node} has not answered: {error}")]
    Unknown {
        /// Who was asked.
        node: i32,
        /// Why there is no answer.
        error: CallError,
    },
}

/// Requests of one connection that are open at most, their bytes, and the bytes of an answer; the longest wait.
const LIMITS: CallLimits = CallLimits {
    exchange: ExchangeLimits { in_flight_max: 512, request_bytes_max: 8 << 20, answer_bytes_max: 16 << 20 },
    timeout: Duration::from_secs(15),
};
/// Pause after a connection could not be made.
const DIAL_PAUSE: Duration = Duration::from_millis(100);
/// A connection that nobody has used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(240);

type Opening = Shared<LocalBoxFuture<'static, Result<Rc<RemoteBroker>, CallError>>>;

/// A connection that is made or being made.
struct Kept {
    life: i64,
    opening: Opening,
    began: Instant,
    used: Instant,
}

impl Kept {
    /// Why it is of no use any more, if it is not.
    fn failure(&self) -> Option<CallError> {
        match self.opening.peek()? {
            Ok(broker) => broker.failure(),
            Err(error) => Some(error.clone()),
        }
    }

    fn close(&self) {
        if let Some(Ok(broker)) = self.opening.peek() {
            broker.close();
        }
    }

    fn is_idle(&self) -> bool {
        let is_quiet = match self.opening.peek() {
            Some(Ok(broker)) => broker.in_flight() == 0,
            Some(Err(_)) => true,
            None => false,
        };
        is_quiet && self.used.elapsed() >= IDLE_MAX
    }
}

/// See the module. One per shard of a node in a cluster, attached to its engine.
pub struct OtherBrokers {
    map: Box<dyn ClusterMap>,
    dialer: Rc<Dialer>,
    kept: RefCell<BTreeMap<(i32, Purpose), Kept>>,
}

impl OtherBrokers {
    /// For the shard that this is called on.
    ///
    /// # Errors
    /// If there is no descriptor left for it.
    pub fn new(map: Box<dyn ClusterMap>) -> io::Result<OtherBrokers> {
        let client_id = StrBytes::from_string(format!("broker-{}", map.here()));
        let dialer = Rc::new(Dialer::new(client_id, LIMITS)?);
        Ok(OtherBrokers { map, dialer, kept: RefCell::default() })
    }

    /// Who leads a partition.
    pub fn leader(&self, partition: TopicPartition) -> Leader {
        match self.map.led(partition) {
            Some(led) if led.node == self.map.here() => Leader::Here,
            Some(led) => Leader::Node(led.node),
            None => Leader::Nobody,
        }
    }

    /// Who leads a partition, in which epoch.
    pub fn led(&self, partition: TopicPartition) -> Option<Led> {
        self.map.led(partition)
    }

    /// Asks a node, in the newest version that both know: `build` makes the request.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn ask<R: Ask>(
        &self,
        node: i32,
        purpose: Purpose,
        build: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, AskError> {
        let broker = match self.opening(node, purpose) {
            Ok(opening) => opening.await,
            Err(error) => Err(error),
        };
        let broker = broker.map_err(|error| AskError::NotSent { node, error })?;
        if let Some(error) = broker.failure() {
            // it ended while others waited for it
            return Err(AskError::NotSent { node, error });
        }
        broker.call(build).await.map_err(|error| match error.is_before_sending() {
            true => AskError::NotSent { node, error },
            false => AskError::Unknown { node, error },
        })
    }

    /// The connection to a node's present life.
    fn opening(&self, node: i32, purpose: Purpose) -> Result<Opening, CallError> {
        let mut kept = self.kept.borrow_mut();
        let Some(address) = self.map.address(node) else {
            if let Some(former) = kept.remove(&(node, purpose)) {
                former.close();
            }
            return Err(CallError::Lost(io::ErrorKind::AddrNotAvailable));
        };
        if let Some(known) = kept.get_mut(&(node, purpose)) {
            let failure = known.failure();
            let is_fresh = known.began.elapsed() < DIAL_PAUSE && !matches!(known.opening.peek(), Some(Ok(_)));
            match failure {
                None if known.life == address.life => {
                    known.used = Instant::now();
                    return Ok(known.opening.clone());
                }
                Some(error) if known.life == address.life && is_fresh => return Err(error),
                _ => known.close(),
            }
        }
        let now = Instant::now();
        let life = address.life;
        let opening = connect(Rc::clone(&self.dialer), address).boxed_local().shared();
        kept.insert((node, purpose), Kept { life, opening: opening.clone(), began: now, used: now });
        Ok(opening)
    }

    /// Ends connections to lives that are over, and those that nobody uses: called now and then.
    pub fn sweep(&self) {
        self.kept.borrow_mut().retain(|(node, _), kept| {
            let is_current = self.map.address(*node).is_some_and(|address| address.life == kept.life);
            if is_current && !kept.is_idle() {
                return true;
            }
            kept.close();
            false
        });
    }

    /// Connections that are kept.
    pub fn connections(&self) -> usize {
        self.kept.borrow().len()
    }
}

async fn connect(dialer: Rc<Dialer>, address: NodeAddress) -> Result<Rc<RemoteBroker>, CallError> {
    let address = resolve(address.host, address.port).await?;
    dialer.connect(address).await.map(Rc::new)
}

/// An address at once, a name on a thread beside the shard.
async fn resolve(host: String, port: u16) -> io::Result<SocketAddr> {
    if let Ok(address) = host.parse() {
        return Ok(SocketAddr::new(address, port));
    }
    let found = glommio::executor().spawn_blocking(move || {
        let mut found = (host.as_str(), port).to_socket_addrs()?;
        found.next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    });
    found.await
}
