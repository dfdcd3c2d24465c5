//! Sees to it that no partition keeps a transaction open that no coordinator will end: such a one would stop readers of
//! committed records for ever. It comes about when the record that let the partition in was lost with the power, or was
//! refused by a full disk, and the batch was not.
//!
//! At the start, before clients are served, every open transaction is asked for; later, each minute those that are open
//! longer than an add takes, and at once when such a record is known to be lost. What nobody claims is aborted: at the start
//! at once, later when it was nobody's in the look before too, an add's time ago, as a transaction may end between two looks.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::Duration};

use futures_util::future::{Either, select};
use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    engine::Engine,
    transactions::{Decided, Marker, OpenTransaction, Outcome},
};

use super::{orphans::orphans, unknown::Unknown, write_markers_in_time};
use crate::{
    client::OtherBrokers,
    coordinator::runtime::{Clock, Gate, promise::Bell},
};

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_secs(60);
/// Pause after one at which a coordinator was still loading.
const RETRY: Duration = Duration::from_secs(1);
/// What is open for less may be in an add that is under way.
const YOUNG_MS: i64 = 10_000;
/// Transactions that are aborted in one look at most, and that are remembered for the next.
const ABORTED_PER_LOOK: usize = 10_000;

/// An open transaction, told from all others.
type Suspect = (TopicPartition, i64, i16, i64);

/// See the module. One per node, on shard 0.
pub(crate) struct Reconciler {
    engine: Engine,
    clock: Clock,
    /// Open when the look at the start is done.
    started: Rc<Gate<()>>,
    suspects: RefCell<BTreeSet<Suspect>>,
    /// Rung when it is to be looked at once.
    bell: Bell,
}

/// Has the node's reconciler look at once: a record that let a partition in is lost.
pub(super) fn look_soon(engine: &Engine) {
    // it is rung here, or posted, when this returns
    let (_rung, _) = engine.begin_on_shard(0, |engine: &Engine| {
        if let Some(reconciler) = engine.attached::<Reconciler>() {
            reconciler.bell.ring();
        }
        ((), std::future::ready(()))
    });
}

impl Reconciler {
    /// Attaches it to its engine.
    pub(crate) fn attach(engine: &Engine) -> Rc<Self> {
        let reconciler = Rc::new(Self {
            engine: engine.clone(),
            clock: Clock::start(),
            started: Gate::new(),
            suspects: RefCell::default(),
            bell: Bell::default(),
        });
        engine.attach(Rc::clone(&reconciler));
        reconciler
    }

    /// Waits for the end of the first look.
    pub(crate) async fn started(&self) {
        self.started.pass().await;
    }

    /// Looks until the node is asked to stop.
    pub(crate) async fn run(self: Rc<Self>) {
        let looking = std::pin::pin!(self.look_on());
        let stopping = std::pin::pin!(self.engine.stopping());
        select(looking, stopping).await;
    }

    async fn look_on(&self) {
        // in a cluster, coordinators on other nodes need not be there when this one starts
        if self.engine.attached::<OtherBrokers>().is_some() {
            self.started.open(());
        }
        while self.started.result().is_none()
            && let Err(error) = self.look_at_start().await
        {
            tracing::warn!(%error, "open transactions cannot be looked through");
            glommio::timer::sleep(RETRY).await;
        }
        self.started.open(());
        loop {
            if self.is_asked_for_within(INTERVAL).await {
                self.look_and_report(0).await;
                // what was in an add then is not any more
                glommio::timer::sleep(Duration::from_millis(YOUNG_MS.unsigned_abs())).await;
            }
            self.look_and_report(YOUNG_MS).await;
        }
    }

    async fn look_and_report(&self, age_ms_min: i64) {
        if let Err(error) = self.look(age_ms_min).await {
            tracing::warn!(%error, "open transactions cannot be looked through");
        }
    }

    /// Waits for somebody who wants a look, but not for longer than that. Whether somebody does.
    pub(super) async fn is_asked_for_within(&self, most: Duration) -> bool {
        let (slept, rung) = (std::pin::pin!(glommio::timer::sleep(most)), std::pin::pin!(self.bell.rung()));
        matches!(select(slept, rung).await, Either::Right(_))
    }

    pub(super) async fn look_at_start(&self) -> Result<(), Unknown> {
        let open = self.engine.open_transactions().await;
        let orphans = orphans(&self.engine, open).await?;
        self.abort(orphans).await;
        Ok(())
    }

    /// Looks at what was begun at least so long ago.
    pub(super) async fn look(&self, age_ms_min: i64) -> Result<(), Unknown> {
        let now_ms = self.clock.now_ms();
        let mut open = self.engine.open_transactions().await;
        open.retain(|open| now_ms.saturating_sub(open.started_ms) >= age_ms_min);
        self.look_through(open).await
    }

    /// Aborts what is nobody's, and was so in the look before.
    pub(super) async fn look_through(&self, open: Vec<OpenTransaction>) -> Result<(), Unknown> {
        let orphans = orphans(&self.engine, open).await?;
        let suspects = orphans.iter().map(suspect).take(ABORTED_PER_LOOK).collect();
        let before = self.suspects.replace(suspects);
        self.abort(orphans.into_iter().filter(|open| before.contains(&suspect(open))).collect()).await;
        Ok(())
    }

    async fn abort(&self, mut orphans: Vec<OpenTransaction>) {
        if orphans.is_empty() {
            return;
        }
        // what was ended between the look and the question was its coordinator's, and what was let in is so
        let still_open: BTreeSet<_> = self.engine.open_transactions().await.iter().map(seen).collect();
        orphans.retain(|open| still_open.contains(&seen(open)));
        orphans.truncate(ABORTED_PER_LOOK);
        let markers: Vec<_> = orphans.iter().map(abort_marker).collect();
        // one that its replicas do not take stays a suspect, and holds up no other
        let results = write_markers_in_time(&self.engine, markers).await;
        for (open, result) in orphans.iter().zip(results) {
            let (partition, producer) = (open.partition, open.producer_id);
            match result {
                Ok(()) => tracing::warn!(?partition, producer, "a transaction that was nobody's is aborted"),
                Err(ResponseError::InvalidTxnState) => {} // it has ended, or was let in meanwhile
                Err(error) => tracing::warn!(?partition, producer, %error, "a transaction that is nobody's is open"),
            }
        }
    }
}

fn suspect(open: &OpenTransaction) -> Suspect {
    (open.partition, open.producer_id, open.producer_epoch, open.first_offset)
}

/// One as it stands.
fn seen(open: &OpenTransaction) -> (Suspect, bool) {
    (suspect(open), open.confirmed)
}

/// By version 0, as its epoch does not go up.
pub(crate) fn abort_marker(open: &OpenTransaction) -> Marker {
    Marker {
        partition: open.partition,
        producer_id: open.producer_id,
        producer_epoch: open.producer_epoch,
        coordinator_epoch: open.coordinator_epoch.max(0),
        outcome: Outcome::Abort,
        transaction_version: 0,
        decided: Decided::ByNobody {
            first_offset: open.first_offset,
            last_batch_at: open.last_batch_at,
            was_confirmed: open.confirmed,
        },
    }
}
