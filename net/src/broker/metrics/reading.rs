//! What the page is made of: the numbers of every shard at one time, gathered by letter.

use std::{collections::BTreeMap, rc::Rc};

use millrace_engine::{
    engine::Engine,
    stats::{Budget, ShardStats},
};

use millrace_replica::shell::{ReplicationReport, Shell};

use super::process::{self, ProcessReading};
use crate::{
    broker::{
        context::AllTopics,
        shard::BrokerShard,
        telemetry::{Telemetry, TelemetryReading},
    },
    coordinator::{
        group::Groups,
        transaction::{ID_BYTES_MAX, State, Transactions},
    },
    wire::{counters::ApiReading, serve::Serving},
};

/// One shard's numbers. `Send`: it travels.
#[derive(Debug, Default)]
pub(crate) struct ShardReading {
    pub(crate) engine: ShardStats,
    pub(crate) connections: u64,
    pub(crate) connections_accepted: u64,
    pub(crate) connections_refused: u64,
    pub(crate) connections_moved: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) fetched_bytes: u64,
    pub(crate) malformed_requests: u64,
    /// Times that requests stood still, and whether they do.
    pub(crate) request_stalls: (u64, bool),
    /// Memory for requests.
    pub(crate) receive: Budget,
    pub(crate) apis: Vec<ApiReading>,
    /// By place in the table and error code.
    pub(crate) errors: BTreeMap<(usize, i16), u64>,
    /// Groups by type and state, of the coordinators that are loaded.
    pub(crate) groups: BTreeMap<(String, String), u64>,
    /// Transactional ids by state, of the coordinators that are loaded.
    pub(crate) transactions: BTreeMap<State, u64>,
    /// What transactional ids take of memory, and may take.
    pub(crate) transactional_ids: Budget,
    /// In a cluster.
    pub(crate) replication: Option<ReplicationReport>,
}

/// The node's numbers.
#[derive(Debug, Default)]
pub(crate) struct NodeReading {
    /// In the order of shards.
    pub(crate) shards: Vec<ShardReading>,
    pub(crate) topics: u64,
    /// Total and usable bytes of the file system that holds the data.
    pub(crate) volume: (u64, u64),
    pub(crate) process: ProcessReading,
    pub(crate) uptime_seconds: f64,
    pub(crate) telemetry: TelemetryReading,
}

/// Asks every shard. For shard 0.
pub(crate) async fn read(shard: &Rc<BrokerShard>) -> NodeReading {
    let engine = &shard.engine;
    let shards = engine.on_all(|engine: Engine| async move { read_shard(&engine).await }).await;
    NodeReading {
        shards,
        topics: AllTopics::as_node(engine).len() as u64,
        volume: engine.volume_bytes(),
        process: process::read(),
        uptime_seconds: shard.wire.counters.uptime().as_secs_f64(),
        telemetry: engine.attached::<Telemetry>().map(|telemetry| telemetry.read()).unwrap_or_default(),
    }
}

/// A shard whose wire is still starting has counted nothing yet.
async fn read_shard(engine: &Engine) -> ShardReading {
    let stats = engine.stats().await;
    let replication = engine.attached::<Shell>().map(|shell| shell.standing());
    let Some(shard) = engine.attached::<BrokerShard>() else {
        return ShardReading { engine: stats, replication, ..ShardReading::default() };
    };
    let counters = &shard.wire.counters;
    let transactions = engine.attached::<Transactions>();
    let (used, limit) = shard.wire.memory.usage();
    ShardReading {
        engine: stats,
        connections: engine.attached::<Serving<BrokerShard>>().map_or(0, |serving| serving.connections() as u64),
        connections_accepted: counters.connections_accepted.count(),
        connections_refused: counters.connections_refused.count(),
        connections_moved: counters.connections_moved.count(),
        received_bytes: counters.received_bytes.count(),
        sent_bytes: counters.sent_bytes.count(),
        fetched_bytes: shard.fetched_bytes.count(),
        malformed_requests: counters.malformed_requests.count(),
        request_stalls: shard.request_stalls.borrow().reading(),
        receive: Budget { used: used as u64, limit: limit as u64 },
        apis: counters.apis(),
        errors: counters.errors(),
        groups: engine.attached::<Groups>().map(|groups| groups.count_by_state()).unwrap_or_default(),
        transactions: transactions.as_ref().map(|transactions| transactions.count_by_state()).unwrap_or_default(),
        transactional_ids: Budget {
            used: transactions.map_or(0, |transactions| transactions.kind().budget().bytes() as u64),
            limit: ID_BYTES_MAX as u64,
        },
        replication,
    }
}
