//! The coordinators of a kind on all shards, and what the shell does around them: carries requests there, writes and reads
//! their records, runs their errands.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{LogError, TopicPartition},
    batch::records,
    config::TopicConfig,
    engine::{Topic, Topics},
    simulated::Shards,
    transactions::{AtomicPart, Marker, OpenTransaction},
};
use uuid::Uuid;

use super::{
    DATA_TOPIC, INPUT_TOPIC, Without,
    checks::end_of,
    data, is_of_groups,
    life::{LEADER_EPOCH, Life},
    offsets,
};
use crate::coordinator::{
    group::{
        OFFSETS_TOPIC, Settings as GroupSettings,
        coordinator::{Coordinator as Groups, Lookup},
    },
    runtime::{
        Actions, AppendFailure, Entrance, Gate, Key, Load, Machine, Promise, Replayed, ReplayedMarker, Run, Slots,
        Ticket, append_atomically, runs,
    },
    transaction::{
        Coordinator, Errand, Marked, Marking, PartitionName, Place, Questions, Settings, Surroundings,
        request::Questioner,
    },
};

/// How late markers are that nobody waits for.
const LATE: Duration = Duration::from_millis(50);

/// The topics as groups see them.
pub(super) fn topics() -> Rc<Topics> {
    let config = TopicConfig::parse(&BTreeMap::new(), &BTreeMap::new()).expect("defaults are legal");
    let input = Rc::new(Topic {
        id: Uuid::from_u128(6),
        name: INPUT_TOPIC.to_owned(),
        partitions: 1,
        overrides: BTreeMap::new(),
        config: Rc::new(config),
    });
    let mut topics = Topics::default();
    topics.by_name.insert(input.name.clone(), Rc::clone(&input));
    topics.by_id.insert(input.id, input);
    Rc::new(topics)
}

/// See the module.
pub(super) struct Shelf<M: Machine> {
    slots: Vec<RefCell<Slots<M>>>,
    is_flush_due: Vec<Cell<bool>>,
}

impl<M: Machine> Shelf<M> {
    pub(super) fn new(shards: usize, topics: Rc<Topics>) -> Self {
        let slots = |_| {
            let mut slots = Slots::new(Rc::clone(&topics));
            slots.see_topics(Rc::clone(&topics));
            RefCell::new(slots)
        };
        Self { slots: (0..shards).map(slots).collect(), is_flush_due: (0..shards).map(|_| Cell::new(false)).collect() }
    }

    pub(super) fn each_machine(&self, look: impl FnMut(&M)) {
        let slots: Vec<_> = self.slots.iter().map(RefCell::borrow).collect();
        slots.iter().flat_map(|slots| slots.machines()).for_each(look);
    }

    pub(super) fn append_marker(&self, shard: usize, marker: Marker, ticket: Ticket<Result<(), ResponseError>>) {
        self.slots[shard].borrow_mut().append_marker(marker, ticket);
    }
}

/// A kind of coordinator.
pub(super) trait Kept: Machine + Sized {
    /// As of the shell's kind.
    const ALWAYS_FLUSHED: bool;
    fn shelf(life: &Life) -> &Shelf<Self>;
    /// One that knows nothing yet.
    fn make(life: &Rc<Life>, shard: usize) -> Self;
    fn run_errand(life: &Rc<Life>, partition: TopicPartition, errand: Self::Errand);
}

impl Kept for Groups {
    const ALWAYS_FLUSHED: bool = false;

    fn shelf(life: &Life) -> &Shelf<Self> {
        &life.groups
    }

    fn make(_: &Rc<Life>, _: usize) -> Self {
        Groups::new(Rc::new(GroupSettings::default()))
    }

    fn run_errand(_: &Rc<Life>, _: TopicPartition, _: Lookup) {
        panic!("no group subscribes to anything");
    }
}

impl Kept for Coordinator {
    const ALWAYS_FLUSHED: bool = true;

    fn shelf(life: &Life) -> &Shelf<Self> {
        &life.transactions
    }

    fn make(life: &Rc<Life>, shard: usize) -> Self {
        let around = Around { shards: Rc::clone(&life.shards), shard };
        let machine = Coordinator::new(Rc::new(Settings::default()), Rc::new(around), Rc::default(), LEADER_EPOCH);
        match life.world.without {
            Without::Rule(rule) => machine.without(rule),
            _ => machine,
        }
    }

    fn run_errand(life: &Rc<Life>, partition: TopicPartition, errand: Errand) {
        life.run_errand(partition, errand);
    }
}

/// A shard's partitions as its coordinators see them.
struct Around {
    shards: Rc<Shards>,
    shard: usize,
}

impl Surroundings for Around {
    fn place(&self, (topic, index): &PartitionName) -> Place {
        if &**topic == OFFSETS_TOPIC {
            return Place::Elsewhere(offsets(*index));
        }
        assert_eq!(&**topic, DATA_TOPIC);
        let partition = data(*index);
        match self.shards.owner(partition) == self.shard {
            true => Place::Here(partition),
            false => Place::Elsewhere(partition),
        }
    }

    fn transaction_version(&self) -> i16 {
        2
    }

    fn may_ask_for_markers(&self) -> bool {
        true
    }
}

impl Life {
    pub(super) fn lead<M: Kept>(self: &Rc<Self>, shard: usize, led: &BTreeMap<TopicPartition, i32>) {
        M::shelf(self).slots[shard].borrow_mut().reconcile(self.shards.now_ms(), led);
        self.act::<M>(shard);
    }

    pub(super) fn handle_timeouts<M: Kept>(self: &Rc<Self>, shard: usize) {
        M::shelf(self).slots[shard].borrow_mut().handle_timeouts(self.shards.now_ms());
        self.act::<M>(shard);
    }

    pub(super) fn with<M: Kept, R>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut M, i64) -> R,
    ) -> Option<R> {
        let shard = self.shards.owner(partition);
        let now_ms = self.shards.now_ms();
        let result = M::shelf(self).slots[shard].borrow_mut().with(partition, |machine| work(machine, now_ms));
        self.act::<M>(shard);
        result
    }

    pub(super) async fn ready<M: Kept>(self: &Rc<Self>, partition: TopicPartition) -> Result<(), ResponseError> {
        let shard = self.shards.owner(partition);
        loop {
            let slots = &M::shelf(self).slots[shard];
            let entrance = slots.borrow_mut().enter(self.shards.now_ms(), partition, Some(LEADER_EPOCH));
            self.act::<M>(shard);
            match entrance {
                Entrance::Open => return Ok(()),
                Entrance::Closed(gate) => gate.pass().await?,
                Entrance::Refused => return Err(ResponseError::NotCoordinator),
            }
        }
    }

    pub(super) async fn ask<M: Kept, R: 'static>(
        self: &Rc<Self>,
        partition: TopicPartition,
        work: impl FnOnce(&mut M, i64, Ticket<R>),
    ) -> Result<R, ResponseError> {
        self.letter().await;
        self.ready::<M>(partition).await?;
        let promise = Promise::new();
        let ticket = Ticket::of(Rc::clone(&promise));
        self.with(partition, |machine: &mut M, now_ms| work(machine, now_ms, ticket));
        let answer = promise.take().await;
        self.letter().await;
        answer
    }

    pub(super) fn act<M: Kept>(self: &Rc<Self>, shard: usize) {
        let shelf = M::shelf(self);
        let Actions { loads, errands, is_dirty, .. } = shelf.slots[shard].borrow_mut().take_actions();
        if is_dirty && !shelf.is_flush_due[shard].replace(true) {
            let life = Rc::clone(self);
            self.shards.spawn(async move {
                life.turn().await;
                life.flush::<M>(shard);
            });
        }
        for load in loads {
            let life = Rc::clone(self);
            self.shards.spawn(async move { life.load::<M>(load).await });
        }
        for (partition, errand) in errands {
            M::run_errand(self, partition, errand);
        }
    }

    async fn load<M: Kept>(self: &Rc<Self>, load: Load) {
        let shard = self.shards.owner(load.partition);
        let mut machine = M::make(self, shard);
        for (info, bytes) in self.shards.all_batches(load.partition).await {
            if let Some(outcome) = end_of(&info, &bytes) {
                let (producer_id, producer_epoch) = (info.producer_id, info.producer_epoch);
                if self.world.without != Without::MarkersReplayed {
                    let offset = info.base_offset;
                    machine.replay_marker(&ReplayedMarker { offset, producer_id, producer_epoch, outcome });
                }
                continue;
            }
            let producer = info.is_transactional().then_some((info.producer_id, info.producer_epoch));
            for record in records(&bytes).expect("the log is whole") {
                let (key, value) = (record.key.as_deref().unwrap_or_default(), record.value.as_deref());
                let replayed = machine.replay(&Replayed { offset: record.offset, producer, key, value });
                assert!(replayed.is_ok(), "it was written");
            }
        }
        let loaded = Ok::<_, ()>(Box::new(machine));
        M::shelf(self).slots[shard].borrow_mut().on_loaded(self.shards.now_ms(), load, loaded);
        self.act::<M>(shard);
    }

    /// What is in the group that is about to be sealed costs no write of its own.
    pub(super) fn flush_if_due<M: Kept>(self: &Rc<Self>, shard: usize) {
        if M::shelf(self).is_flush_due[shard].get() && !self.world.chance.one_in(self.world.mood.tarries) {
            self.flush::<M>(shard);
        }
    }

    fn flush<M: Kept>(self: &Rc<Self>, shard: usize) {
        let shelf = M::shelf(self);
        shelf.is_flush_due[shard].set(false);
        let appends = shelf.slots[shard].borrow_mut().take_appends(self.shards.now_ms());
        for run in runs(appends, M::ALWAYS_FLUSHED) {
            match run {
                Run::Plain { keys, parts } => {
                    for (key, part) in keys.into_iter().zip(parts) {
                        let appended = self.shards.append(part);
                        let life = Rc::clone(self);
                        self.shards.spawn(async move {
                            let appended = appended.await.map(|produced| produced.base_offset);
                            life.take_written::<M>(shard, key, appended);
                        });
                    }
                }
                Run::Atomic { key, parts } => self.append_at_once::<M>(shard, key, parts),
            }
        }
    }

    fn append_at_once<M: Kept>(self: &Rc<Self>, shard: usize, key: Key, mut parts: Vec<AtomicPart>) {
        if self.world.without == Without::OneGroup && parts.len() > 1 {
            let markers = parts.split_off(1);
            let life = Rc::clone(self);
            self.shards.spawn(async move {
                life.shards.sleep(Duration::from_micros(300)).await;
                // one may come too late to be taken
                drop(append_atomically(|parts| life.shards.append_atomically(parts), markers, |_| ()).await);
            });
        }
        let appended = append_atomically(|parts| self.shards.append_atomically(parts), parts, |_| ());
        let life = Rc::clone(self);
        self.shards.spawn(async move {
            let appended = appended.await;
            life.take_written::<M>(shard, key, appended);
        });
    }

    fn take_written<M: Kept>(self: &Rc<Self>, shard: usize, (partition, number): Key, appended: Result<i64, LogError>) {
        let result = appended.map_err(|error| AppendFailure::from(&error));
        M::shelf(self).slots[shard].borrow_mut().on_appended(self.shards.now_ms(), partition, number, result);
        self.act::<M>(shard);
    }

    fn run_errand(self: &Rc<Self>, partition: TopicPartition, errand: Errand) {
        let life = Rc::clone(self);
        match errand {
            Errand::ProducerId => self.shards.spawn(async move {
                life.letter().await;
                let id = life.world.next_producer_id.replace(life.world.next_producer_id.get() + 1);
                life.with(partition, |machine: &mut Coordinator, now_ms| machine.handle_producer_id(now_ms, Ok(id)));
            }),
            Errand::Admit(partitions, producer) => self.shards.spawn(async move {
                life.letter().await;
                for partition in partitions.into_iter().filter(|partition| !is_of_groups(*partition)) {
                    // one that is fenced is not let in
                    drop(life.shards.admit(partition, producer.id, producer.epoch));
                }
            }),
            Errand::Mark(marking) => {
                let waits = marking.only_where_open && self.world.without != Without::MarkersOnTheirWay;
                let before = if waits { self.sent.of_gone(partition, &marking.by) } else { Vec::new() };
                let answered = self.sent.begin(partition, &marking.by);
                self.shards.spawn(async move {
                    for earlier in before {
                        earlier.pass().await;
                    }
                    let marked = life.mark(&marking).await;
                    answered.open(());
                    life.with(partition, |machine: &mut Coordinator, now_ms| {
                        machine.handle_marked(now_ms, &marking, marked);
                    });
                });
                self.go_wrong(partition);
            }
            Errand::AskForMarkers(by, asked) => {
                let before = self.sent.of_gone(partition, &by);
                self.shards.spawn(async move { life.find_markers(partition, (by, asked), before).await });
            }
        }
    }

    async fn find_markers(
        self: &Rc<Self>,
        partition: TopicPartition,
        (by, asked): (Questioner, Questions),
        before: Vec<Rc<Gate<()>>>,
    ) {
        for answered in before {
            answered.pass().await;
        }
        self.letter().await;
        let has_enough = |markers: &[Marker]| {
            let mut found = markers.iter().map(|marker| self.shards.has_marker(marker));
            match self.world.without == Without::OneMarkerDecides {
                true => found.all(|is_there| is_there),
                false => found.any(|is_there| is_there),
            }
        };
        let found = asked.into_iter().map(|(id, markers)| (id, has_enough(&markers))).collect();
        self.letter().await;
        self.with(partition, |machine: &mut Coordinator, now_ms| machine.handle_markers_found(now_ms, &by, found));
    }

    async fn mark(self: &Rc<Self>, marking: &Marking) -> Marked {
        let open = self.shards.open_transactions();
        let is_wanted = |marker: &Marker| {
            let is_of =
                |open: &OpenTransaction| (open.partition, open.producer_id) == (marker.partition, marker.producer_id);
            !marking.only_where_open || open.iter().any(is_of)
        };
        let writing = marking.markers.iter().map(|(name, marker)| async {
            if !is_wanted(marker) {
                return (name.clone(), Ok(()));
            }
            if self.world.without == Without::DurableMarkers {
                let (life, marker) = (Rc::clone(self), *marker);
                self.shards.spawn(async move {
                    life.shards.sleep(LATE).await;
                    // it may come too late to be taken
                    let _: Result<(), ResponseError> = life.write_marker(marker).await;
                });
                return (name.clone(), Ok(()));
            }
            self.letter().await;
            let result = self.write_marker(*marker).await;
            self.fail_soon(2 * self.world.mood.goes_wrong, 1);
            self.letter().await;
            (name.clone(), result)
        });
        join_all(writing).await
    }
}
