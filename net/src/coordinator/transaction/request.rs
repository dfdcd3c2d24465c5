//! What is asked of a transaction coordinator, and what it wants done.

use std::{collections::BTreeSet, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    transactions::{Marker, Outcome},
};

use super::metadata::{PartitionName, Producer};
use crate::coordinator::runtime::Ticket;

/// A producer begins, or begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitProducerId {
    /// How long each of its transactions may take.
    pub(crate) timeout_ms: i32,
    /// Who it says it is, if it says so (KIP-360).
    pub(crate) expected: Option<Producer>,
}

/// Partitions come into a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddPartitions {
    /// Whose.
    pub(crate) producer: Producer,
    /// Which.
    pub(crate) partitions: BTreeSet<PartitionName>,
    /// The `transaction.version` by which the client speaks: 0 or 2.
    pub(crate) client_version: i16,
}

/// A transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndTransaction {
    /// Whose.
    pub(crate) producer: Producer,
    /// How.
    pub(crate) outcome: Outcome,
    /// The `transaction.version` by which the client speaks: 0 or 2.
    pub(crate) client_version: i16,
}

/// Who waits for a producer.
pub(crate) type ProducerTicket = Ticket<Result<Producer, ResponseError>>;
/// Who waits for something to be done.
pub(crate) type DoneTicket = Ticket<Result<(), ResponseError>>;

/// A request that can be held, and who waits for its answer.
#[derive(Debug)]
pub(super) enum Request {
    /// InitProducerId.
    Init(InitProducerId, ProducerTicket),
    /// AddPartitionsToTxn, AddOffsetsToTxn, or a partition that is produced to.
    Add(AddPartitions, DoneTicket),
    /// EndTxn.
    End(EndTransaction, ProducerTicket),
}

/// How far a request has come when its call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is done once records are written that are to be written now, or are being written.
    Begun,
    /// It waits for something before it, or is refused.
    Waits,
}

/// Where a partition is, as seen from a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its topic is not there any more.
    Gone,
    /// On the coordinator's own shard, and nobody but the log has to know of markers.
    Here(TopicPartition),
    /// Elsewhere.
    Elsewhere(TopicPartition),
}

/// What a coordinator asks of the node around it.
pub(crate) trait Surroundings {
    /// Where a partition is now.
    fn place(&self, partition: &PartitionName) -> Place;
    /// The `transaction.version` that is finalized.
    fn transaction_version(&self) -> i16;
    /// Whether all partitions can be asked for the last marker that they have of a producer, on stable storage or about to
    /// be: then one that says commit may decide on a transaction.
    fn may_ask_for_markers(&self) -> bool;
}

/// Markers to be written to partitions that are not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marking {
    /// The transactional id.
    pub(crate) id: Rc<str>,
    /// With the epoch that the markers carry.
    pub(crate) producer: Producer,
    /// When the transaction began: with the producer it tells it from all others of the id.
    pub(crate) start_ms: i64,
    /// Where, and what.
    pub(crate) markers: Vec<(PartitionName, Marker)>,
    /// Whether partitions may have theirs already, as a life of the node ended in between: these get none again.
    pub(crate) only_where_open: bool,
    /// Who has them written.
    pub(crate) by: Questioner,
}

/// Who asks: an answer to a coordinator that is gone was given before the one after it was loaded, and says nothing of what
/// the former has sent since.
#[derive(Debug, Clone, Default)]
pub(crate) struct Questioner(Rc<()>);

impl PartialEq for Questioner {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Questioner {}

/// What became of a marker, by partition.
pub(crate) type Marked = Vec<(PartitionName, Result<(), ResponseError>)>;

/// Markers that are looked for, by transactional id.
pub(crate) type Questions = Vec<(Rc<str>, Vec<Marker>)>;

/// What a coordinator wants done that takes more than it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Errand {
    /// It needs a producer id: [`Coordinator::handle_producer_id`](super::Coordinator::handle_producer_id).
    ProducerId,
    /// The owners of partitions are to let a producer write in its transaction.
    Admit(Vec<TopicPartition>, Producer),
    /// Markers: [`Coordinator::handle_marked`](super::Coordinator::handle_marked).
    Mark(Marking),
    /// By transactional id: whether a partition has one of these markers, when all markers that machines have sent which
    /// are gone have their answers: [`Coordinator::handle_markers_found`](super::Coordinator::handle_markers_found).
    AskForMarkers(Questioner, Questions),
}
