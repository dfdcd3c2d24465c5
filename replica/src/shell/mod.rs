//! The channel on a shard: sockets, the engine and the control plane do what the pure [`ShardChannel`] decides.
//!
//! One [`Shell`] per shard, for as long as the node runs. Whatever happens (a frame, a mark that moved, an image, the time)
//! is told to the core at once, and what it wants done is done in its order before anything else happens on the shard. No
//! borrow of the core lives while something is done: what that sets off is told when its turn comes.
//!
//! | task | ends |
//! |---|---|
//! | acceptor: greets whoever connects, hands sockets to the shard that they ask for | with the listener |
//! | reader and writer of each connection | with the connection |
//! | timer: tells the core when the time that it named has come | with the shell |
//! | proposals: one batch of changes of ISRs at a time to the control thread | with the shell |
//! | each transition, trim and read of the engine | by itself |

mod deletions;
mod doubts;
mod feed;
mod image;
mod link;
mod peers;
mod proposals;
mod reconcile;
mod report;
mod tasks;
mod work;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use glommio::{Latency, Shares, TaskQueueHandle, timer::sleep};
use millrace_engine::{
    api::{TopicId, TopicPartition},
    engine::Engine,
    signal::{Outcome, Signal},
};
use millrace_sockets::{
    listener::{Families, Listener},
    poller::Poller,
};
use uuid::Uuid;

use self::{
    deletions::Deletions,
    link::Link,
    proposals::Proposals,
    tasks::Tasks,
    work::{EngineLogs, Lease, Tap},
};
pub use self::{
    deletions::StillKept,
    feed::{ImageFeed, OwnImage},
    reconcile::{ReconcileError, follow_images},
    report::{FollowerReport, Promotion, ReplicationReport},
};
use crate::{
    channel::{
        doubts::Doubts,
        event::{LinkId, Logs},
        intent::Intent,
        quota::ReplicationLimits,
        shard::{ChannelConfig, ShardChannel},
    },
    cluster::{
        image::Image,
        model::{Member, NodeId, TopicRules, TopicState},
        plane::{ControlPlane, IsrChange},
    },
};

/// Share of a shard that bulk copies for followers get, where serving has 1000.
const CATCH_UP_SHARES: usize = 100;
/// Pause between looks whether all has ended.
const ENDING_PAUSE: Duration = Duration::from_millis(5);
/// How long connections may take to end when the node stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What a shard's channel is started with.
#[derive(Clone, Debug)]
pub struct ShellOptions {
    /// The cluster's id.
    pub cluster: Uuid,
    /// Where other nodes connect; the same for all shards.
    pub listen: Vec<SocketAddr>,
    /// How long a follower may be behind and count as in sync: replica.lag.time.max.ms.
    pub lag_ms_max: u64,
    /// How long a node of which nothing more is heard is taken for gone: if it were, it would be fenced by then.
    pub doubt_max: Duration,
    /// Where the control thread says how etcd is, and how long this node's life lasts.
    pub feed: ImageFeed,
}

/// Who else on the shard wants to hear.
#[derive(Clone)]
pub struct Hooks {
    /// Of every image, once the engine's topics are those of it.
    pub on_image: Rc<dyn Fn(&Image)>,
    /// When the engine began or ended to lead or follow a partition.
    pub on_leadership: Rc<dyn Fn()>,
    /// When others are doubted than before: the nodes whose processes are likely to be gone, though they are not fenced yet.
    pub on_doubts: Rc<dyn Fn(BTreeSet<NodeId>)>,
}

/// See the module.
pub struct Shell {
    engine: Engine,
    options: ShellOptions,
    hooks: Hooks,
    control: ControlPlane,
    core: RefCell<ShardChannel>,
    logs: EngineLogs,
    image: RefCell<Option<Image>>,
    /// The life that the core was told of last.
    me: Cell<Option<Member>>,
    /// What the core was told of each partition last: the revision of its key, and its topic's rules, which follow defaults
    /// that stand elsewhere.
    told: RefCell<HashMap<TopicPartition, (i64, TopicRules)>>,
    /// Topics as the core was told of them last.
    seen: RefCell<HashMap<TopicId, Arc<TopicState>>>,
    poller: Rc<Poller>,
    links: RefCell<HashMap<LinkId, Rc<Link>>>,
    proposals: Proposals,
    deletions: Deletions,
    /// What all shards of this node saw of others.
    doubts: RefCell<Doubts>,
    tasks: Tasks,
    background: TaskQueueHandle,
    /// Limits that the core was told of last.
    limits: Cell<ReplicationLimits>,
    /// What the core wants is being done: what is told meanwhile waits for its turn.
    is_driving: Cell<bool>,
    /// The core may want to be woken earlier than before.
    timer: Signal,
    /// When the timer's task wakes the core next.
    armed_ms: Cell<Option<u64>>,
    /// Set when the shell is stopped.
    ending: Rc<Outcome<()>>,
    began: Instant,
    listeners: RefCell<Vec<Rc<Listener>>>,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shell(shard {}, {} links)", self.engine.shard(), self.links.borrow().len())
    }
}

/// Why a shard's channel could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// An address cannot be listened on.
    #[error("cannot listen for other nodes on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The shard has no epoll descriptor.
    #[error("no epoll descriptor for the channel: {0}")]
    Poller(#[from] io::Error),
}

impl Shell {
    /// Starts the channel of this shard. It does nothing before it was shown an image in which the node lives.
    ///
    /// # Errors
    /// If it cannot be listened for other nodes.
    pub fn start(
        engine: &Engine,
        options: ShellOptions,
        control: ControlPlane,
        hooks: Hooks,
    ) -> Result<Rc<Shell>, ShellError> {
        let poller = Poller::new()?;
        let mut listeners = Vec::new();
        for address in &options.listen {
            let bound = Listener::bind(*address, Families::Own, &poller);
            listeners.push(Rc::new(bound.map_err(|source| ShellError::Listen { address: *address, source })?));
        }
        let shard = u32::try_from(engine.shard()).expect("a node has few shards");
        let config =
            ChannelConfig { cluster: options.cluster, node: engine.node_id(), shard, lag_ms_max: options.lag_ms_max };
        let shares = Shares::Static(CATCH_UP_SHARES);
        let shell = Rc::new(Shell {
            engine: engine.clone(),
            options,
            hooks,
            control,
            core: RefCell::new(ShardChannel::new(config)),
            logs: EngineLogs(engine.clone()),
            image: RefCell::default(),
            me: Cell::default(),
            told: RefCell::default(),
            seen: RefCell::default(),
            poller: poller.clone(),
            links: RefCell::default(),
            proposals: Proposals::default(),
            deletions: Deletions::default(),
            doubts: RefCell::default(),
            tasks: Tasks::default(),
            background: glommio::executor().create_task_queue(shares, Latency::NotImportant, "catch-up"),
            limits: Cell::default(),
            is_driving: Cell::new(false),
            timer: Signal::default(),
            armed_ms: Cell::default(),
            ending: Rc::default(),
            began: Instant::now(),
            listeners: RefCell::new(listeners),
        });
        engine.attach_tap(Rc::new(Tap(shell.clone())));
        engine.attach_lease(Rc::new(Lease(shell.clone())));
        engine.attach(shell.clone());
        shell.start_tasks();
        Ok(shell)
    }

    fn start_tasks(self: &Rc<Self>) {
        for listener in self.listeners.borrow().iter() {
            self.tasks.spawn(peers::accept(self.clone(), listener.clone()));
        }
        self.tasks.spawn(self.clone().keep_time());
        self.tasks.spawn(self.clone().propose());
        let shell = self.clone();
        self.tasks.spawn(async move {
            let driver = std::pin::pin!(shell.poller.clone().run());
            let ended = std::pin::pin!(shell.ended());
            if let Either::Left((error, _)) = select(driver, ended).await {
                tracing::error!(%error, "the channel's poller failed: this shard replicates nothing any more");
            }
        });
    }

    /// Whether this node's life, as this shard knows it, may still be trusted.
    fn is_trusted(&self) -> bool {
        self.options.feed.trusts(self.me.get())
    }

    /// Ends all connections and tasks. What the engine was asked for is done before this returns.
    pub async fn stop(&self) {
        for listener in self.listeners.take() {
            listener.stop();
        }
        let links: Vec<_> = self.links.borrow().values().cloned().collect();
        links.iter().for_each(|link| link.hang_up());
        self.proposals.end();
        self.ending.set(());
        self.deletions.look_again();
        self.timer.notify();
        // the poller's task ends last: connections need it to end
        let begun = Instant::now();
        while self.tasks.count() > 1 && begun.elapsed() < STOP_PATIENCE {
            sleep(ENDING_PAUSE).await;
        }
        let links: Vec<_> = self.links.borrow().values().cloned().collect();
        links.iter().for_each(|link| link.close());
        self.tasks.ended().await;
    }

    /// Waits until the shell is stopped and nothing but the poller runs.
    async fn ended(&self) {
        self.ending.clone().wait().await;
        while self.tasks.count() > 1 {
            sleep(ENDING_PAUSE).await;
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells the core something, and does what it wants.
    fn tell<T>(self: &Rc<Self>, word: impl FnOnce(&mut ShardChannel, u64, &dyn Logs) -> T) -> T {
        let answer = word(&mut self.core.borrow_mut(), self.now_ms(), &self.logs);
        self.drive();
        answer
    }

    /// Does what the core wants, in its order.
    fn drive(self: &Rc<Self>) {
        if self.is_driving.replace(true) {
            return;
        }
        loop {
            let intent = self.core.borrow_mut().next_intent();
            let Some(intent) = intent else { break };
            self.perform(intent);
        }
        self.is_driving.set(false);
        let next_ms = self.core.borrow().next_wake_ms();
        if next_ms.is_some_and(|next| self.armed_ms.get().is_none_or(|armed| next < armed)) {
            self.timer.notify(); // a timer costs more than most of what is told
        }
    }

    fn perform(self: &Rc<Self>, intent: Intent) {
        match intent {
            Intent::Dial { link, node, shard, purpose } => {
                self.tasks.spawn(peers::dial(self.clone(), link, node, shard, purpose));
            }
            Intent::HangUp { link } => {
                if let Some(link) = self.links.borrow_mut().remove(&link) {
                    link.hang_up();
                }
            }
            Intent::Send { link, frame } => {
                if let Some(link) = self.links.borrow().get(&link) {
                    link.send(&frame);
                }
            }
            Intent::Work { partition, work } => self.work(partition, work),
            Intent::LogStartsMoved { .. } => self.deletions.look_again(),
            Intent::Heed { member, sign } => self.heed(member, sign),
            Intent::ChangeIsr { partition, revision, proposal } => {
                self.proposals.put(IsrChange { partition, revision, proposal });
            }
        }
    }

    /// Wakes the core when it wants to be woken.
    async fn keep_time(self: Rc<Self>) {
        while !self.is_ending() {
            let wake_ms = self.core.borrow().next_wake_ms();
            self.armed_ms.set(wake_ms);
            let earlier = std::pin::pin!(self.timer.wait());
            match wake_ms.map(|wake| wake.saturating_sub(self.now_ms())) {
                None => earlier.await,
                Some(0) => {
                    self.tell(|core, now, logs| core.handle_tick(now, logs));
                    glommio::yield_if_needed().await;
                }
                Some(pause) => {
                    let due = std::pin::pin!(sleep(Duration::from_millis(pause)));
                    select(due, earlier).await;
                }
            }
        }
    }
}
