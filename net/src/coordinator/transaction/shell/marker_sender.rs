//! Brings markers to the leaders on other nodes: those for one node that are wanted in one turn travel together, and while
//! many requests to it are open, what comes waits and travels together then.
//!
//! Nothing is tried again here: each marker has one answer, and its coordinator knows whether it still wants it written.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        TopicName, write_txn_markers_request::WritableTxnMarkerTopic,
        write_txn_markers_response::WritableTxnMarkerResult,
    },
    protocol::StrBytes,
};
use millrace_engine::{
    engine::Engine,
    transactions::{Marker, Outcome},
};

use crate::{
    client::{OtherBrokers, Purpose, TransactionMarkers, WriteMarkersRequest},
    coordinator::{
        runtime::promise::{Promise, next_turn},
        transaction::PartitionName,
    },
};

/// Requests to one node that are open at most.
const OPEN_MAX: usize = 64;
/// Markers of one request.
const MARKERS_MAX: usize = 2_000;
/// Markers that wait for one node.
const WAITING_MAX: usize = 100_000;

type Answer = Result<(), ResponseError>;

struct Queued {
    name: PartitionName,
    marker: Marker,
    answer: Rc<Promise<Answer>>,
}

/// What is under way to one node.
#[derive(Default)]
struct Queue {
    waiting: Vec<Queued>,
    open: usize,
    is_scheduled: bool,
}

/// See the module. One per shard, attached to its engine.
pub(crate) struct MarkerSender {
    others: Rc<OtherBrokers>,
    queues: RefCell<BTreeMap<i32, Queue>>,
}

impl MarkerSender {
    /// Attaches one to a shard of a node in a cluster.
    pub(crate) fn attach(engine: &Engine, others: Rc<OtherBrokers>) {
        engine.attach(Rc::new(Self { others, queues: RefCell::default() }));
    }

    /// Has a marker written by another node; resolves when that says what became of it.
    pub(super) async fn send(self: &Rc<Self>, node: i32, name: PartitionName, marker: Marker) -> Answer {
        let answer = Promise::new();
        {
            let mut queues = self.queues.borrow_mut();
            let queue = queues.entry(node).or_default();
            if queue.waiting.len() >= WAITING_MAX {
                return Err(ResponseError::RequestTimedOut);
            }
            queue.waiting.push(Queued { name, marker, answer: Rc::clone(&answer) });
            if queue.open < OPEN_MAX && !std::mem::replace(&mut queue.is_scheduled, true) {
                let sender = Rc::clone(self);
                glommio::spawn_local(async move {
                    // what others that are runnable now want sent goes with it
                    next_turn().await;
                    sender.work_off(node).await;
                })
                .detach();
            }
        }
        answer.take().await
    }

    /// Sends what waits for a node, until nothing does.
    async fn work_off(&self, node: i32) {
        loop {
            let queued = {
                let mut queues = self.queues.borrow_mut();
                let Some(queue) = queues.get_mut(&node) else { return };
                queue.is_scheduled = false;
                if queue.waiting.is_empty() {
                    if queue.open == 0 {
                        queues.remove(&node);
                    }
                    return;
                }
                let count = queue.waiting.len().min(MARKERS_MAX);
                queue.open += 1;
                queue.waiting.drain(..count).collect::<Vec<_>>()
            };
            let markers = queued.iter().map(written).collect();
            let asked = self.others.ask(node, Purpose::Markers, |_| WriteMarkersRequest { markers });
            let answers = match asked.await {
                Ok(response) => answers(&queued, &response.markers),
                Err(error) => {
                    tracing::debug!(%error, "markers are not known to be written");
                    vec![Err(ResponseError::RequestTimedOut); queued.len()]
                }
            };
            if let Some(queue) = self.queues.borrow_mut().get_mut(&node) {
                queue.open -= 1;
            }
            for (queued, answer) in queued.into_iter().zip(answers) {
                queued.answer.keep(answer);
            }
        }
    }
}

fn written(Queued { name: (topic, partition), marker, .. }: &Queued) -> TransactionMarkers {
    let topic = TopicName(StrBytes::from_string(topic.to_string()));
    TransactionMarkers {
        producer_id: marker.producer_id,
        producer_epoch: marker.producer_epoch,
        is_commit: marker.outcome == Outcome::Commit,
        topics: vec![WritableTxnMarkerTopic::default().with_name(topic).with_partition_indexes(vec![*partition])],
        coordinator_epoch: marker.coordinator_epoch,
        transaction_version: i8::try_from(marker.transaction_version).unwrap_or(0),
    }
}

/// The answer to each marker: the response tells of each in the order of the request.
fn answers(queued: &[Queued], told: &[WritableTxnMarkerResult]) -> Vec<Answer> {
    let answer = |(at, queued): (usize, &Queued)| {
        let (topic, partition) = &queued.name;
        let told = told.get(at).filter(|told| told.producer_id.0 == queued.marker.producer_id)?;
        let told = told.topics.iter().find(|told| told.name.as_str() == &**topic)?;
        told.partitions.iter().find(|told| told.partition_index == *partition).map(|told| told.error_code)
    };
    let named = |code: Option<i16>| match code {
        Some(0) => Ok(()),
        Some(code) => Err(ResponseError::try_from_code(code).unwrap_or(ResponseError::UnknownServerError)),
        // it says nothing of this one
        None => Err(ResponseError::UnknownServerError),
    };
    queued.iter().enumerate().map(answer).map(named).collect()
}
