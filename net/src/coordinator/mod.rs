//! State machines that are kept in partitions of internal topics: groups, the state of share groups, transactions. Beside them
//! [`Shares`], which is kept in no topic: what a shard gives out of its own partitions to share groups.
//!
//! Nothing here reads or writes a connection; a share session keeps the number of its own, to go with it.
//!
//! [`Coordinators`] start before connections are accepted: everything that the internal
//! topics hold begins to be loaded at once, on every shard, and a shard accepts when all of it is loaded. That is not
//! waited for longer than [`START_WAIT`]: who comes before the end hears that the coordinator is loading, as in Kafka.
//! Before that, too, transactions that nobody would end are aborted.

pub(crate) mod fields;
pub(crate) mod group;
pub(crate) mod runtime;
pub(crate) mod share;
pub(crate) mod transaction;

use std::{cell::RefCell, rc::Rc, time::Duration};

use futures_util::future::select;
use glommio::Task;
use group::{GroupKind, Groups};
use millrace_engine::engine::Engine;
use share::{Shares, StateKind, States};
use transaction::{
    TransactionKind, Transactions,
    shell::{Gate, MarkerSender, Reconciler},
};

use crate::{client::OtherBrokers, feature_levels::FeatureLevels};

/// How long connections wait for coordinators that load.
const START_WAIT: Duration = Duration::from_secs(5);

/// What coordinators are started with.
pub(crate) struct Settings {
    /// Of groups and share groups.
    pub(crate) groups: group::Settings,
    /// Of transactions.
    pub(crate) transactions: transaction::Settings,
    /// Levels of features that nobody has changed.
    pub(crate) levels: FeatureLevels,
}

/// The coordinators of one shard.
pub(crate) struct Coordinators {
    groups: Rc<Groups>,
    states: Rc<States>,
    shares: Rc<Shares>,
    transactions: Rc<Transactions>,
    /// What runs until the node is asked to stop.
    running: RefCell<Vec<Task<()>>>,
}

impl Coordinators {
    /// Attaches them to the shard's engine and begins to load.
    pub(crate) fn start(engine: &Engine, settings: Settings) -> Rc<Self> {
        let Settings { groups, transactions, levels } = settings;
        let share = Rc::new(groups.share.clone());
        let states = States::attach(engine, StateKind::new(Rc::clone(&share)));
        let shares = Shares::attach(engine, share);
        let groups = Groups::attach(engine, GroupKind::new(Rc::new(groups)));
        if let Some(others) = engine.attached::<OtherBrokers>() {
            MarkerSender::attach(engine, others);
        }
        let transactions = Transactions::attach(engine, TransactionKind::new(Rc::new(transactions), levels));
        engine.set_transaction_gate(Rc::new(Gate { engine: engine.clone() }));
        let mut running = vec![
            glommio::spawn_local(Rc::clone(&states).run()),
            glommio::spawn_local(Rc::clone(&shares).run()),
            glommio::spawn_local(Rc::clone(&groups).run()),
            glommio::spawn_local(Rc::clone(&transactions).run()),
        ];
        if engine.shard() == 0 {
            running.push(glommio::spawn_local(Reconciler::attach(engine).run()));
        }
        let coordinators = Rc::new(Self { groups, states, shares, transactions, running: RefCell::new(running) });
        engine.attach(Rc::clone(&coordinators));
        coordinators
    }

    /// Partitions have begun or ceased to be led here.
    pub(crate) fn on_leadership(&self) {
        self.states.reconcile();
        self.shares.on_leadership();
        self.groups.reconcile();
        self.transactions.reconcile();
    }

    /// Waits until the coordinators of all shards have loaded what is theirs, or for as long as connections can wait.
    pub(crate) async fn started(engine: &Engine) {
        let loaded = engine.on_all(|engine: Engine| async move {
            let coordinators: Rc<Self> = engine.attachment().await;
            coordinators.states.loaded().await;
            coordinators.groups.loaded().await;
            coordinators.transactions.loaded().await;
            if let Some(reconciler) = engine.attached::<Reconciler>() {
                reconciler.started().await;
            }
        });
        let (loaded, timeout) = (std::pin::pin!(loaded), std::pin::pin!(glommio::timer::sleep(START_WAIT)));
        select(loaded, timeout).await;
    }

    /// The node was asked to stop: sends those away who wait for others of their group. Share state goes on.
    pub(crate) async fn stop_groups(&self) {
        for running in self.running.take() {
            running.await;
        }
        self.groups.stop().await;
    }

    /// No requests come any more.
    pub(crate) async fn stop(&self) {
        self.transactions.stop().await;
        self.states.stop().await;
    }

    /// Ends everything where it stands.
    pub(crate) async fn cancel(&self) {
        for running in self.running.take() {
            running.cancel().await;
        }
    }
}
