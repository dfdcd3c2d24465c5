//! What the connections of one shard share: limits, memory, counters, time.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;

use super::{counters::Counters, limits::ConnectionLimits, memory::ReceiveMemory, poller::Poller};
use crate::log_limiter::LogLimiter;

/// One second: the unit of all coarse times of connections.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Limits of the wire of one shard.
#[derive(Debug, Clone)]
pub(crate) struct WireConfig {
    /// Bytes of one request at most.
    pub(crate) frame_bytes_max: usize,
    /// Requests of one connection that may be read before the first of them is answered.
    pub(crate) in_flight_requests_max: usize,
    /// Bytes of those requests; one request may always be in flight.
    pub(crate) in_flight_bytes_max: usize,
    /// Memory for requests, received or being received, in bytes.
    pub(crate) receive_memory_bytes: usize,
    /// A connection without traffic for that long is closed.
    pub(crate) idle_timeout: Duration,
    /// How long a peer may do nothing for the memory that it holds while others wait for it.
    pub(crate) silence_max: Duration,
    /// How long requests in flight may take once no more are read.
    pub(crate) stop_timeout: Duration,
}

/// Bytes of one read of a new request.
pub(crate) const READ_BYTES_MAX: usize = 64 * 1024;

/// What the connections of one shard share.
pub(crate) struct Wire {
    pub(crate) config: WireConfig,
    pub(crate) counters: Counters,
    /// Memory for requests.
    pub(crate) memory: ReceiveMemory,
    /// What a read of a new request is read into, before it is copied out. Never borrowed across an await.
    pub(crate) read_buffer: RefCell<BytesMut>,
    /// A client may send what cannot be understood again and again.
    pub(crate) malformed: RefCell<LogLimiter>,
    /// Counts connections of the whole node; used on shard 0 only.
    pub(crate) limits: RefCell<ConnectionLimits>,
    /// What waits for sockets.
    pub(crate) poller: Rc<Poller>,
    next_connection_id: Cell<u64>,
    /// Ticks since the start.
    pub(super) tick: Cell<u64>,
    /// Requests that run to their end whatever becomes of their connection.
    pub(super) finishing: Cell<usize>,
    /// Connections may be refused again and again.
    pub(super) refusals: RefCell<LogLimiter>,
}

impl Wire {
    /// A wire without connections, for a table of that many APIs.
    pub(crate) fn new(config: WireConfig, apis: usize, poller: Rc<Poller>) -> Wire {
        Wire {
            counters: Counters::new(apis),
            memory: ReceiveMemory::new(config.receive_memory_bytes, config.frame_bytes_max),
            read_buffer: RefCell::new(BytesMut::with_capacity(READ_BYTES_MAX)),
            malformed: RefCell::default(),
            limits: RefCell::default(),
            poller,
            next_connection_id: Cell::new(0),
            tick: Cell::new(0),
            finishing: Cell::new(0),
            refusals: RefCell::default(),
            config,
        }
    }

    /// Ticks since the start.
    pub(crate) fn tick(&self) -> u64 {
        self.tick.get()
    }

    /// A request began that must run to its end.
    pub(crate) fn on_finishing(&self) {
        self.finishing.set(self.finishing.get() + 1);
    }

    /// Such a request has ended.
    pub(crate) fn on_finished(&self) {
        self.finishing.set(self.finishing.get() - 1);
    }

    /// The next number for a connection of this shard.
    pub(super) fn take_connection_id(&self) -> u64 {
        self.next_connection_id.update(|id| id + 1);
        self.next_connection_id.get()
    }
}
