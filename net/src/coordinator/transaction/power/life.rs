//! One life of the model's node: what is open and nobody's at its start, the time that goes by, and what goes wrong soon after
//! markers were sent.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{ProducePartition, TopicPartition},
    batch::{self, BatchBuilder, Codec},
    simulated::{Machine, Shards},
    transactions::Marker,
};

use super::{
    Aim, STATES, Without, World, all_partitions, coordinated, gate::Asked, is_of_groups, offsets, shelf::Kept,
    shelf::Shelf, state,
};
use crate::{
    coordinator::{
        group::coordinator::Coordinator as Groups,
        runtime::{LogRecord, Promise, Ticket},
        transaction::{
            Coordinator,
            metadata::{LAST_EPOCH, Metadata},
            record::TransactionRecord,
            sent::Sent,
            shell::abort_marker,
        },
    },
    errors::log_error,
};

/// How long a transaction may take.
pub(super) const TIMEOUT_MS: i32 = 1_000;
/// The epoch in which the node leads all that there is.
pub(super) const LEADER_EPOCH: i32 = 0;
/// Longer than anything takes that is under way.
const REST: Duration = Duration::from_millis(400);
/// How often deadlines are looked at, and in how many looks a life ends that does not end by itself.
const LOOK_MS: i64 = 100;
const LOOKS_MAX: usize = 20_000;
/// Turns of a shard that take long take so many microseconds at most.
const LATE_US: u64 = 2_000;

/// See the module.
pub(super) struct Life {
    machine: Rc<Machine>,
    pub(super) shards: Rc<Shards>,
    pub(super) world: Rc<World>,
    pub(super) transactions: Shelf<Coordinator>,
    pub(super) groups: Shelf<Groups>,
    /// Markers that were sent.
    pub(super) sent: Sent,
}

impl Life {
    pub(super) async fn begin(machine: &Rc<Machine>, number: u64, world: Rc<World>) -> Rc<Self> {
        let shards = Shards::open(machine, number, world.shards, &all_partitions()).await;
        let life = Rc::new(Self {
            machine: Rc::clone(machine),
            transactions: Shelf::new(world.shards, Rc::default()),
            groups: Shelf::new(world.shards, super::shelf::topics()),
            sent: Sent::default(),
            shards,
            world,
        });
        if number == 1 {
            life.use_epochs_up().await;
        }
        for shard in 0..life.world.shards {
            life.shards.set_transaction_gate(shard, Rc::new(Asked { life: Rc::clone(&life), shard }));
            let flushed = Rc::clone(&life);
            life.shards.on_seal(
                shard,
                Rc::new(move || {
                    flushed.flush_if_due::<Coordinator>(shard);
                    flushed.flush_if_due::<Groups>(shard);
                }),
            );
            life.lead::<Coordinator>(shard, &life.owned(shard, state));
            life.lead::<Groups>(shard, &life.owned(shard, offsets));
        }
        for index in 0..STATES {
            life.ready::<Groups>(offsets(index)).await.expect("it can be loaded");
            life.ready::<Coordinator>(state(index)).await.expect("it can be loaded");
        }
        life.reconcile().await;
        let kept = Rc::clone(&life);
        life.shards.spawn(async move { kept.keep_time().await });
        life
    }

    /// Partitions of a topic that a shard leads.
    fn owned(&self, shard: usize, topic: impl Fn(i32) -> TopicPartition) -> BTreeMap<TopicPartition, i32> {
        let own = (0..STATES).map(topic).filter(|partition| self.shards.owner(*partition) == shard);
        own.map(|partition| (partition, LEADER_EPOCH)).collect()
    }

    /// Two ids have few epochs left: their producer ids change soon.
    async fn use_epochs_up(&self) {
        for id in 0..2 {
            let left = i16::try_from(id).expect("a few ids") + 1;
            let metadata = Metadata { epoch: LAST_EPOCH - left, ..Metadata::new(50 + i64::from(left), TIMEOUT_MS, 0) };
            let name = Rc::from(format!("id-{id}"));
            let record = TransactionRecord { id: name, metadata: Some(metadata), version: 1 };
            let mut batch = BatchBuilder::new(Codec::None, 0);
            batch.push(&batch::Record {
                offset: 0,
                timestamp: 0,
                key: Some(record.key().into()),
                value: record.value().map(Into::into),
                headers: vec![],
            });
            let part = ProducePartition { partition: coordinated(id), batch: batch.finish().into() };
            self.shards.append(part).await.expect("there is room");
        }
    }

    /// What is open and nobody's is aborted, as at the start and each minute.
    pub(super) async fn reconcile(self: &Rc<Self>) {
        if self.world.without == Without::Reconciliation {
            return;
        }
        let open = self.shards.open_transactions();
        let mut claimed = Vec::new();
        self.transactions.each_machine(|machine| claimed.extend(machine.claimed(&open)));
        for (_, open) in open.iter().enumerate().filter(|(at, _)| !claimed.contains(at)) {
            let written = self.write_marker(abort_marker(open)).await;
            // or it is nobody's no more: it has ended meanwhile, or a client's next attempt was let in
            assert!(matches!(written, Ok(()) | Err(ResponseError::InvalidTxnState)), "{open:?}: {written:?}");
        }
    }

    /// Nothing is open that no coordinator will end.
    pub(super) fn check_owned(&self) {
        let open = self.shards.open_transactions();
        let mut claimed = Vec::new();
        self.transactions.each_machine(|machine| claimed.extend(machine.claimed(&open)));
        for (at, open) in open.iter().enumerate() {
            assert!(claimed.contains(&at), "nobody will end {open:?}");
        }
    }

    pub(super) async fn come_to_rest(self: &Rc<Self>) {
        self.shards.sleep(REST).await;
        self.look_at_deadlines();
        self.shards.sleep(REST).await;
    }

    /// Ends itself, so that who waits for ever is found to.
    async fn keep_time(self: Rc<Self>) {
        for _ in 0..LOOKS_MAX {
            self.shards.sleep(Duration::from_millis(LOOK_MS.unsigned_abs())).await;
            self.look_at_deadlines();
        }
    }

    fn look_at_deadlines(self: &Rc<Self>) {
        for shard in 0..self.world.shards {
            self.handle_timeouts::<Coordinator>(shard);
            self.handle_timeouts::<Groups>(shard);
        }
    }

    /// The time that a letter takes.
    pub(super) async fn letter(&self) {
        if !self.world.chance.one_in(3) {
            self.shards.sleep(Duration::from_micros(self.world.chance.below(150))).await;
        }
    }

    /// The time until a shard's next turn, which may have much to do before.
    pub(super) async fn turn(&self) {
        match self.world.chance.one_in(self.world.mood.tarries) {
            true => self.shards.sleep(Duration::from_micros(self.world.chance.below(LATE_US))).await,
            false => self.shards.yield_now().await,
        }
    }

    /// Markers of a coordinator were sent: now something may go wrong.
    pub(super) fn go_wrong(self: &Rc<Self>, coordinator: TopicPartition) {
        let n = self.world.mood.goes_wrong;
        self.fail_soon(4 * n, 10);
        if self.world.aim.get() == Aim::AtMarkers && self.world.chance.one_in(n) {
            let life = Rc::clone(self);
            self.shards.spawn(async move {
                life.letter().await;
                life.load_anew(coordinator);
            });
        }
    }

    /// The power fails within some operations, one time in `n`: what is on stable storage now may be all that is left of a
    /// transaction.
    pub(super) fn fail_soon(&self, n: u64, operations: u64) {
        if self.world.aim.get() == Aim::AtMarkers && self.world.chance.one_in(n) {
            self.machine.lose_power_after(1 + self.world.chance.below(operations));
        }
    }

    /// The coordinator of a partition gives way to another one, as after a write that failed.
    fn load_anew(self: &Rc<Self>, partition: TopicPartition) {
        let shard = self.shards.owner(partition);
        let led = self.owned(shard, state);
        let mut others = led.clone();
        others.remove(&partition);
        self.lead::<Coordinator>(shard, &others);
        self.lead::<Coordinator>(shard, &led);
    }

    pub(super) async fn write_marker(self: &Rc<Self>, marker: Marker) -> Result<(), ResponseError> {
        let shard = self.shards.owner(marker.partition);
        if is_of_groups(marker.partition) && self.world.without != Without::MarkersThroughGroups {
            let promise = Promise::new();
            Groups::shelf(self).append_marker(shard, marker, Ticket::of(Rc::clone(&promise)));
            self.act::<Groups>(shard);
            return promise.take().await?;
        }
        let written = self.shards.write_markers(shard, vec![marker]).await.remove(0);
        written.map(|_| ()).map_err(|error| log_error(&error))
    }
}
