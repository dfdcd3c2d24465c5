//! Asking other brokers from a shard, without blocking it.
//!
//! The pure half is [`millrace_client`]'s, which blocking clients use too: frames, versions, the order of answers, bounds.
//! Here is the shard's half: sockets on a poller, one task per connection that moves bytes, waits with a time limit.
//!
//! ```text
//! Dialer::connect(address) -> RemoteBroker      versions are known from here on
//! RemoteBroker::call(|version| request) -> its answer, or why there is none
//! ```
//!
//! Calls leave in the order in which they are first polled, any number of them in flight within [`CallLimits`]; beyond
//! that they are refused at once, as a queue would only hide that the other side is slow. A connection ends once, for one
//! reason, with which every open call ends and every later one fails: it broke, an answer did not come in time, or what
//! came makes no sense. Nothing is tried again and nobody connects again by itself: whoever owns a [`RemoteBroker`]
//! knows what its requests mean, sees [`RemoteBroker::failure`], and dials again when it wants to. A call whose future is
//! dropped is still sent and answered; nobody hears of it.
//!
//! Another broker may be broken or none at all, and the message library allocates by the counts that it reads: only
//! answers whose shape is known here are decoded ([`Ask`]).
//!
//! In a cluster every shard has [`OtherBrokers`]: it knows who leads a partition and where that node is, and keeps the
//! connections. A node that is alone has nobody to ask, and has none.

mod ask;
mod cluster_map;
mod other_brokers;
mod remote_broker;

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use glommio::Task;
use kafka_protocol::protocol::StrBytes;
use millrace_client::{ExchangeLimits, ProtocolError};

pub(crate) use self::ask::check_shape;
pub use self::{
    ask::{Ask, TransactionMarkers, WriteMarkersRequest, WriteMarkersResponse},
    cluster_map::{ClusterMap, Leader, Led, NodeAddress},
    other_brokers::{AskError, OtherBrokers, Purpose},
    remote_broker::RemoteBroker,
};
use crate::wire::{poller::Poller, stream::Stream};

/// What one connection may hold, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Requests without an answer, their bytes, and bytes of one answer.
    pub exchange: ExchangeLimits,
    /// From a call to its answer; for a new connection, until its versions are known.
    pub timeout: Duration,
}

/// Why a call has no answer. Only after [`CallError::Full`], [`CallError::Unsupported`] and [`CallError::Encode`] it is
/// certain that the other broker has not carried it out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// As much is open on the connection as may be.
    #[error("too many requests are open")]
    Full,
    /// The other broker serves it in no version known here.
    #[error("it does not serve {0} in a version known here")]
    Unsupported(String),
    /// The request cannot be sent in the version that both sides know.
    #[error("{0}")]
    Encode(ProtocolError),
    /// No connection came about, or it broke.
    #[error("the connection failed: {0}")]
    Lost(io::ErrorKind),
    /// There was no answer in time to this call or to one before it.
    #[error("no answer in time")]
    TimedOut,
    /// What came back makes no sense.
    #[error("{0}")]
    NotKafka(ProtocolError),
    /// The other broker does not tell what it serves, but this error code.
    #[error("its versions are not told: {}", millrace_client::error_code_name(*.0))]
    Refused(i16),
}

impl CallError {
    /// Whether a call that ended so was certainly not carried out.
    fn is_before_sending(&self) -> bool {
        matches!(self, CallError::Full | CallError::Unsupported(_) | CallError::Encode(_))
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> CallError {
        CallError::Lost(error.kind())
    }
}

/// Connects this shard to other brokers.
pub struct Dialer {
    sockets: Rc<Sockets>,
    client_id: StrBytes,
    limits: CallLimits,
}

/// The poller of a dialer's connections and its driver, for as long as one of them lives.
struct Sockets {
    poller: Rc<Poller>,
    _driver: Task<io::Error>,
}

impl Dialer {
    /// A dialer for the shard that this is called on; its connections call themselves `client_id`.
    pub fn new(client_id: StrBytes, limits: CallLimits) -> io::Result<Dialer> {
        let poller = Poller::new()?;
        let driver = glommio::spawn_local(poller.clone().run());
        Ok(Dialer { sockets: Rc::new(Sockets { poller, _driver: driver }), client_id, limits })
    }

    /// Connects to a broker and asks what it serves.
    pub async fn connect(&self, address: SocketAddr) -> Result<RemoteBroker, CallError> {
        let stream = Stream::connect(address, &self.sockets.poller)?;
        RemoteBroker::open(stream, self.sockets.clone(), self.client_id.clone(), self.limits).await
    }
}
