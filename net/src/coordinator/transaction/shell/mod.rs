//! Transaction coordinators as the runtime runs them, and the ways to them from any shard.

mod elsewhere;
mod gate;
mod let_in;
mod marker_sender;
mod markers;
mod offsets;
mod orphans;
mod reconcile;
#[cfg(test)]
mod tests;
mod unknown;

use std::{
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, NewTopic, TopicPartition},
    engine::Engine,
    transactions::Adds,
};

use self::reconcile::look_soon;
pub(crate) use self::{
    gate::Gate,
    marker_sender::MarkerSender,
    markers::write_markers_in_time,
    offsets::{OffsetsOfTransaction, commit_offsets},
    reconcile::Reconciler,
};
#[cfg(test)]
pub(crate) use self::{
    gate::admission,
    let_in::{LetIn, let_in_beside},
    offsets::{CommitSteps, commit_by},
    reconcile::abort_marker,
};
use super::{
    AddPartitions, Budget, Coordinator, Description, EndTransaction, Errand, Filter, InitProducerId, Listed,
    PartitionName, Place, Producer, Settings, State, Surroundings,
    metadata::EPOCH_BUMP_VERSION,
    sent::Sent,
    settings::{TOPIC_PARTITIONS, TOPIC_SEGMENT_BYTES},
};
use crate::{
    client::{Leader, OtherBrokers},
    coordinator::{
        group::{Groups, OFFSETS_TOPIC},
        runtime::{Kind, Runtime, next_producer_id},
    },
    errors::topic_error,
    feature_levels::FeatureLevels,
};

/// Name of the topic that keeps transactions.
pub(crate) const TRANSACTION_TOPIC: &str = "__transaction_state";

/// The kind of coordinators of transactions.
pub(crate) struct TransactionKind {
    settings: Rc<Settings>,
    budget: Rc<Budget>,
    levels: FeatureLevels,
    sent: Sent,
}

/// The coordinators of transactions of one shard.
pub(crate) type Transactions = Runtime<TransactionKind>;

impl TransactionKind {
    /// With a node's settings, and the levels of features that it was started with.
    pub(crate) fn new(settings: Rc<Settings>, levels: FeatureLevels) -> Self {
        Self { settings, budget: Rc::default(), levels, sent: Sent::default() }
    }

    /// What the ids of the shard take.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl Kind for TransactionKind {
    type Machine = Coordinator;
    const TOPIC: &'static str = TRANSACTION_TOPIC;
    // markers are: else they could outlive the decision that they tell of
    const ALWAYS_FLUSHED: bool = true;

    fn new_topic(&self) -> NewTopic {
        new_transaction_topic(&self.settings)
    }

    fn machine(&self, engine: &Engine, partition: TopicPartition) -> Coordinator {
        let is_alone = engine.attached::<OtherBrokers>().is_none();
        let node = Node { engine: engine.clone(), levels: self.levels, is_alone };
        let epoch = engine.leader_epoch(partition).unwrap_or_default();
        Coordinator::new(Rc::clone(&self.settings), Rc::new(node), Rc::clone(&self.budget), epoch)
    }

    fn on_left_out(engine: &Engine, error: &LogError) {
        if matches!(error, LogError::ConcurrentTransactions(_)) {
            look_soon(engine); // an older one is open there
        }
    }

    fn run_errand(transactions: &Rc<Transactions>, partition: TopicPartition, errand: Errand) {
        let (transactions, engine) = (Rc::clone(transactions), transactions.engine().clone());
        match errand {
            Errand::ProducerId => glommio::spawn_local(async move {
                let id = next_producer_id(&engine).await.map_err(coordinator_error);
                // a machine that is gone needs none
                transactions.with(partition, |machine, now_ms| machine.handle_producer_id(now_ms, id));
            })
            .detach(),
            Errand::Admit(mut partitions, producer) => {
                let offsets = Groups::topic(&engine).map(|topic| topic.id);
                partitions.retain(|partition| Some(partition.topic) != offsets);
                // posted when this returns; who is not told in time asks
                let admitted = engine.admit(partitions, producer.id, producer.epoch);
                glommio::spawn_local(async move {
                    admitted.await;
                })
                .detach()
            }
            Errand::Mark(marking) => {
                let sent = &transactions.kind().sent;
                // a partition in which nothing is open has its marker, but perhaps not on stable storage: one that a
                // machine has sent which is gone is on its way
                let before = if marking.only_where_open { sent.of_gone(partition, &marking.by) } else { Vec::new() };
                let marked = sent.begin(partition, &marking.by);
                glommio::spawn_local(async move {
                    for earlier in before {
                        earlier.pass().await;
                    }
                    let results = markers::mark(&engine, &marking).await;
                    if results.iter().any(|(_, result)| *result == Err(ResponseError::ConcurrentTransactions)) {
                        look_soon(&engine); // an older one is open there
                    }
                    marked.open(());
                    transactions.with(partition, |machine, now_ms| machine.handle_marked(now_ms, &marking, results));
                })
                .detach()
            }
            Errand::AskForMarkers(by, asked) => {
                let before = transactions.kind().sent.of_gone(partition, &by);
                glommio::spawn_local(async move {
                    // a machine that is gone has sent some of them: they are to have their places first
                    for marked in before {
                        marked.pass().await;
                    }
                    let found = markers::find(&engine, asked).await;
                    transactions.with(partition, |machine, now_ms| machine.handle_markers_found(now_ms, &by, found));
                })
                .detach()
            }
        };
    }
}

/// The topic as Kafka makes it.
pub(crate) fn new_transaction_topic(settings: &Settings) -> NewTopic {
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("compression.type", "uncompressed".to_owned()),
        ("segment.bytes", settings.get(TOPIC_SEGMENT_BYTES).to_string()),
    ];
    NewTopic {
        name: TRANSACTION_TOPIC.to_owned(),
        partitions: i32::try_from(settings.get(TOPIC_PARTITIONS)).unwrap_or(1),
        configs: configs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    }
}

/// A shard's engine as a coordinator sees it.
struct Node {
    engine: Engine,
    levels: FeatureLevels,
    /// Whether there are no other nodes.
    is_alone: bool,
}

impl Surroundings for Node {
    fn place(&self, (topic, index): &PartitionName) -> Place {
        let Some(partition) = named(&self.engine, topic, *index) else { return Place::Gone };
        // replicated, a group of one shard's log is no longer whole: each partition's replicas confirm for themselves
        let is_here = self.is_alone
            && self.engine.owner(partition) == self.engine.shard()
            && **topic != *OFFSETS_TOPIC
            && self.engine.leader_epoch(partition).is_some();
        match is_here {
            true => Place::Here(partition),
            false => Place::Elsewhere(partition),
        }
    }

    fn transaction_version(&self) -> i16 {
        self.levels.transaction_version(&self.engine)
    }

    fn may_ask_for_markers(&self) -> bool {
        // other nodes may be away when it matters
        self.is_alone
    }
}

/// The partition of a name, if there is one.
fn named(engine: &Engine, topic: &str, index: i32) -> Option<TopicPartition> {
    let topics = engine.topics();
    let topic = topics.by_name.get(topic).filter(|topic| (0..topic.partitions).contains(&index))?;
    Some(TopicPartition { topic: topic.id, partition: index })
}

/// What a client of the coordinator hears of an error of the log.
fn coordinator_error(error: ResponseError) -> ResponseError {
    match error {
        ResponseError::UnknownTopicOrPartition | ResponseError::KafkaStorageError => {
            ResponseError::CoordinatorNotAvailable
        }
        ResponseError::NotLeaderOrFollower => ResponseError::NotCoordinator,
        error => error,
    }
}

/// Without the topic nobody has begun a transaction: only who begins one has it made.
fn check_topic(engine: &Engine) -> Result<(), ResponseError> {
    Transactions::topic(engine).map(|_| ()).ok_or(ResponseError::NotCoordinator)
}

/// A producer begins, or begins again.
pub(crate) async fn init_producer_id(
    engine: &Engine,
    id: &str,
    init: InitProducerId,
) -> Result<Producer, ResponseError> {
    // from then on the disk's format says that there are transactions
    engine.use_transactions().await.map_err(|error| coordinator_error(topic_error(&error).error))?;
    let key = id.to_owned();
    Transactions::ask_for(engine, id, move |coordinator, now_ms, ticket| {
        coordinator.handle_init_producer_id(now_ms, &key, init, ticket);
    })
    .await?
}

/// Partitions come into a transaction, on stable storage when this resolves.
pub(crate) async fn add_partitions(
    engine: &Engine,
    id: &str,
    producer: Producer,
    partitions: Vec<(String, i32)>,
    client_version: i16,
) -> Result<(), ResponseError> {
    check_topic(engine)?;
    let key = id.to_owned();
    Transactions::ask_for(engine, id, move |coordinator, now_ms, ticket| {
        let partitions = names(partitions).collect();
        let add = AddPartitions { producer, partitions, client_version };
        coordinator.handle_add_partitions(now_ms, &key, add, ticket);
    })
    .await?
}

/// Whether partitions are in a producer's ongoing transaction, in their order.
pub(crate) async fn verify(
    engine: &Engine,
    id: &str,
    producer: Producer,
    partitions: Vec<(String, i32)>,
) -> Result<Vec<bool>, ResponseError> {
    check_topic(engine)?;
    let key = id.to_owned();
    Transactions::ask_for(engine, id, move |coordinator, _, ticket| {
        let partitions: Vec<_> = names(partitions).collect();
        coordinator.handle_verify(&key, producer, &partitions, ticket);
    })
    .await?
}

/// Asks for partitions to be in a producer's transaction: those that are not come in, or refuse all with
/// TRANSACTION_ABORTABLE. The coordinator may be on another node, and is asked again while it changes, or while the
/// transaction before is ending.
pub(crate) async fn verify_or_add(
    engine: &Engine,
    id: &str,
    producer: Producer,
    partitions: Vec<(String, i32)>,
    adds: Adds,
) -> Result<(), ResponseError> {
    let Some(others) = engine.attached::<OtherBrokers>() else {
        return verify_or_add_here(engine, id, producer, partitions, adds).await;
    };
    let began = Instant::now();
    let mut pause = ASK_PAUSE_MIN;
    loop {
        let coordinator = Transactions::place(engine, id).map_or(Leader::Nobody, |place| others.leader(place));
        let answer = match coordinator {
            Leader::Here => verify_or_add_here(engine, id, producer, partitions.clone(), adds).await,
            Leader::Node(node) => elsewhere::verify_or_add(&others, node, (id, producer), &partitions, adds).await,
            Leader::Nobody => Err(ResponseError::CoordinatorNotAvailable),
        };
        let patience = answer.err().map_or(Duration::ZERO, patience);
        if began.elapsed() >= patience {
            return answer;
        }
        glommio::timer::sleep(pause).await;
        pause = (pause * 2).min(ASK_PAUSE_MAX);
    }
}

/// Pauses between questions to a coordinator that cannot answer yet.
const ASK_PAUSE_MIN: Duration = Duration::from_millis(10);
const ASK_PAUSE_MAX: Duration = Duration::from_millis(160);

/// How long it is asked again after an error; not at all after one that says no.
fn patience(error: ResponseError) -> Duration {
    match error {
        ResponseError::ConcurrentTransactions => Duration::from_secs(10),
        ResponseError::NotCoordinator
        | ResponseError::CoordinatorNotAvailable
        | ResponseError::CoordinatorLoadInProgress
        | ResponseError::UnknownTopicOrPartition => Duration::from_secs(5),
        _ => Duration::ZERO,
    }
}

async fn verify_or_add_here(
    engine: &Engine,
    id: &str,
    producer: Producer,
    partitions: Vec<(String, i32)>,
    adds: Adds,
) -> Result<(), ResponseError> {
    match adds {
        Adds::Add => add_partitions(engine, id, producer, partitions, EPOCH_BUMP_VERSION).await,
        Adds::Verify => match verify(engine, id, producer, partitions).await?.into_iter().all(|is_in| is_in) {
            true => Ok(()),
            false => Err(ResponseError::TransactionAbortable),
        },
    }
}

fn names(partitions: Vec<(String, i32)>) -> impl Iterator<Item = PartitionName> {
    partitions.into_iter().map(|(topic, index)| (Rc::from(topic), index))
}

/// A transaction ends; resolves when every partition knows, on stable storage. Answers the producer of the next one.
pub(crate) async fn end(engine: &Engine, id: &str, end: EndTransaction) -> Result<Producer, ResponseError> {
    check_topic(engine)?;
    let key = id.to_owned();
    Transactions::ask_for(engine, id, move |coordinator, now_ms, ticket| {
        coordinator.handle_end(now_ms, &key, end, ticket);
    })
    .await?
}

/// What is known of an id.
pub(crate) async fn describe(engine: &Engine, id: &str) -> Result<Description, ResponseError> {
    if Transactions::topic(engine).is_none() {
        return Err(ResponseError::TransactionalIdNotFound);
    }
    let key = id.to_owned();
    Transactions::ask_for(engine, id, move |coordinator, _, ticket| coordinator.handle_describe(&key, ticket)).await?
}

/// The transactions that are wanted, of some shards; an error beside them tells of those that could not be asked.
pub(crate) async fn list(
    engine: &Engine,
    shards: Vec<usize>,
    filter: Filter,
    now_ms: i64,
) -> (Vec<Listed>, Option<ResponseError>) {
    read_led(engine, shards, move |coordinator| coordinator.list(&filter, now_ms)).await
}

/// What coordinators of some shards say; an error beside it tells of those that could not be asked.
async fn read_led<R: Send + 'static>(
    engine: &Engine,
    shards: Vec<usize>,
    look: impl Fn(&Coordinator) -> Vec<R> + Clone + Send + 'static,
) -> (Vec<R>, Option<ResponseError>) {
    let expected = expected(engine);
    let is_led_before = is_led(engine, &expected).await;
    let (found, error) = Transactions::read_all(engine, shards, look).await;
    let is_led = is_led_before && is_led(engine, &expected).await;
    // one that this node is about to coordinate, or has just ceased to
    (found, error.or((!is_led).then_some(ResponseError::CoordinatorLoadInProgress)))
}

/// The partitions that this node coordinates as the cluster's image says, with the epochs in which it leads them: what is
/// told of all is told of these. Alone it coordinates what it has.
fn expected(engine: &Engine) -> BTreeMap<TopicPartition, i32> {
    let (Some(others), Some(topic)) = (engine.attached::<OtherBrokers>(), Transactions::topic(engine)) else {
        return BTreeMap::new();
    };
    let all = (0..topic.partitions).map(|partition| TopicPartition { topic: topic.id, partition });
    let led = all.filter_map(|partition| Some((partition, others.led(partition)?)));
    led.filter(|(_, led)| led.node == engine.node_id()).map(|(partition, led)| (partition, led.epoch)).collect()
}

/// Whether this node itself knows that it leads partitions in these epochs.
async fn is_led(engine: &Engine, expected: &BTreeMap<TopicPartition, i32>) -> bool {
    if expected.is_empty() {
        return true;
    }
    let expected = expected.clone();
    let looked = engine.on_all(move |engine: Engine| {
        let own = expected.iter().filter(|(partition, _)| engine.owner(**partition) == engine.shard());
        let mut epochs = own.map(|(partition, epoch)| engine.leader_epoch(*partition) == Some(*epoch));
        std::future::ready(epochs.all(|is_led| is_led))
    });
    looked.await.into_iter().all(|is_led| is_led)
}

impl Transactions {
    /// How many transactional ids there are in each state, of the coordinators that are loaded.
    pub(crate) fn count_by_state(&self) -> BTreeMap<State, u64> {
        let mut counts = BTreeMap::new();
        self.look(|coordinator| coordinator.count_by_state(&mut |state| *counts.entry(state).or_insert(0) += 1));
        counts
    }
}
