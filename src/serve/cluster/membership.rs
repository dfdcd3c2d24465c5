//! What the shards of a node do to be of a cluster: shard 0 has the control thread and follows images, every shard has a
//! channel and tells clients what the newest image says.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::{Either, select};
use millrace_engine::{engine::Engine, signal::Outcome as Awaited};
use millrace_net::{Cluster, Membership};
use millrace_replica::{
    cluster::{
        control::{self, ControlThread},
        core::{ClusterIdentity, Event, History, NodeIdentity, Options},
        etcd::{EtcdOptions, EtcdTls},
        image::Image,
        model::Member,
        plane::{ControlPlane, JoiningCatalog, JoiningTopic, Question, Visible},
        store::StoreError,
    },
    shell::{Hooks, ImageFeed, OwnImage, Shell, ShellOptions, follow_images},
};
use uuid::Uuid;

use super::{
    exit::{DRAIN_PATIENCE_MAX, Exit, FAREWELL_PATIENCE},
    life::{Life, Topics},
    replication_settings,
    start::Prepared,
};
use crate::{
    config::{ClusterConfig, EtcdConfig},
    serve::wire::Halt,
};

/// How long one call to etcd may take.
const ETCD_TIMEOUT: Duration = Duration::from_secs(3);
/// How long giving up the registration may take: its lease ends anyway.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a node waits for others when it ends.
struct Farewell {
    /// To take over what it leads; not at all if nobody can.
    hand_over: Option<Duration>,
    /// To hear that it goes.
    leave: Duration,
}
/// How long the topics of a node may take to become those of a cluster.
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the controller may take to fence a node whose lease is over.
const FENCING_PATIENCE: Duration = Duration::from_secs(2);
/// How long etcd may be silent before that is said.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// What all shards share. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::serve) struct Shards {
    prepared: Arc<Prepared>,
    exit: Exit,
    halt: Halt,
    feed: ImageFeed,
}

/// The life of the data directory: shared by the control thread, which begins lives, and shard 0, which brings topics along.
#[derive(Clone)]
struct SharedLife(Arc<Mutex<Life>>);

impl SharedLife {
    fn lock(&self) -> MutexGuard<'_, Life> {
        self.0.lock().expect("no panic while locked")
    }
}

/// What shard 0 tells the others once the node is a member.
struct Joined {
    plane: ControlPlane,
    cluster: Uuid,
}

/// A shard's part, for as long as it serves.
pub(in crate::serve) struct ShardMember {
    shell: Rc<Shell>,
    pub(in crate::serve) membership: Membership,
    /// On shard 0.
    lead: Option<Lead>,
}

/// What only shard 0 has.
struct Lead {
    control: ControlThread,
    follower: glommio::Task<()>,
    /// How long giving up the registration may take.
    leave_patience: Duration,
}

impl Shards {
    /// Those of a node that was prepared.
    pub(in crate::serve) fn new(prepared: Prepared, exit: Exit, halt: Halt) -> Self {
        Self { prepared: Arc::new(prepared), exit, halt, feed: ImageFeed::default() }
    }

    /// Makes a shard a part of the cluster. `None`: the node stops, as it was asked to or as it cannot be a member.
    pub(in crate::serve) async fn join(&self, engine: &Engine) -> Option<ShardMember> {
        let stopping = std::pin::pin!(engine.stopping());
        let joining = std::pin::pin!(self.become_member(engine));
        match select(joining, stopping).await {
            Either::Left((Ok(member), _)) => Some(member),
            Either::Left((Err(reason), _)) => {
                self.halt.halt(reason);
                None
            }
            Either::Right(_) => None,
        }
    }

    async fn become_member(&self, engine: &Engine) -> Result<ShardMember, String> {
        let first = if engine.shard() == 0 { Some(self.register(engine).await?) } else { None };
        let joined = engine.attachment::<Joined>().await;
        let cluster: Rc<RefCell<Option<Rc<Cluster>>>> = Rc::default();
        let is_told = Rc::<Awaited<()>>::default();
        let hooks = hooks(&joined.plane, &cluster, &is_told);
        let options = ShellOptions {
            cluster: joined.cluster,
            listen: self.prepared.listen.clone(),
            lag_ms_max: replication_settings::lag_ms_max(&self.prepared.cluster.settings),
            doubt_max: replication_settings::lease(&self.prepared.cluster.settings) + FENCING_PATIENCE,
            feed: self.feed.clone(),
        };
        let shell = Shell::start(engine, options, joined.plane.clone(), hooks).map_err(|error| error.to_string())?;
        let lead = first.map(|(control, image)| {
            self.feed.put_unless_newer(image);
            let follower = glommio::spawn_local(follow_images(engine.clone(), self.feed.clone()));
            Lead { control, follower, leave_patience: self.farewell().leave }
        });
        is_told.wait().await;
        let cluster = cluster.borrow().clone().expect("it was told of an image");
        Ok(ShardMember { shell, membership: Membership::Clustered(cluster), lead })
    }

    /// How long the node waits for others at its end. A mirror's follower may be the one that is left.
    fn farewell(&self) -> Farewell {
        match &self.prepared.mirroring {
            None => Farewell { hand_over: Some(DRAIN_PATIENCE_MAX), leave: LEAVE_TIMEOUT },
            // one that nobody takes over from hands nothing over
            Some(mirroring) if mirroring.leads() => Farewell { hand_over: None, leave: LEAVE_TIMEOUT },
            Some(_) => Farewell { hand_over: Some(FAREWELL_PATIENCE), leave: FAREWELL_PATIENCE },
        }
    }

    /// Registers the node, and sees that it and the cluster belong together.
    async fn register(&self, engine: &Engine) -> Result<(ControlThread, OwnImage), String> {
        let life = SharedLife(Arc::new(Mutex::new(self.prepared.life.clone())));
        let control = self.start_control(engine, &life)?;
        let mut image = self.feed.next().await;
        let cluster = image.image.cluster_id.ok_or("the cluster has no id")?;
        let revision = self.bring_topics_along(engine, &control.plane(), &life).await?;
        // what an older image lacks would be taken for deleted, and go with its records
        while image.image.revision < revision {
            image = self.feed.next().await;
        }
        if let Some(patience) = self.farewell().hand_over {
            self.exit.open(control.plane(), patience);
        }
        let plane = control.plane();
        let tell = move |engine: Engine| {
            engine.attach(Rc::new(Joined { plane, cluster }));
            std::future::ready(())
        };
        engine.on_all(tell).await;
        Ok((control, image))
    }

    fn start_control(&self, engine: &Engine, shared: &SharedLife) -> Result<ControlThread, String> {
        let life = &self.prepared.life;
        let defaults = engine.started_topic_defaults().clone();
        let cluster = &self.prepared.cluster;
        let options = control_options(self.prepared.node.clone(), (life, cluster), engine.cluster_id(), defaults);
        let mut listener = Listener {
            life: shared.clone(),
            data_dir: self.prepared.data_dir.clone(),
            feed: self.feed.clone(),
            me: None,
            image: None,
            topics: life.topics(!engine.topics().by_id.is_empty()),
            halt: self.halt.clone(),
            other_defaults: Vec::new(),
        };
        let hear = move |event| listener.hear(event);
        if let Some(mirroring) = &self.prepared.mirroring {
            mirroring.watch_other(self.halt.clone()).map_err(|error| error.to_string())?;
            return control::start_with(control::Ways::of(&mirroring.store), options, hear)
                .map_err(|error| error.to_string());
        }
        let etcd = etcd_options(&cluster.name, &cluster.etcd)?;
        control::start(&etcd, options, hear).map_err(|error| error.to_string())
    }

    /// A node that was alone brings its topics into a cluster that has none, also if an earlier process of it did not come to
    /// the end of that. Into another cluster it was refused: they would be taken for leftovers there. Answers the revision
    /// from which on images show them all.
    async fn bring_topics_along(
        &self,
        engine: &Engine,
        plane: &ControlPlane,
        life: &SharedLife,
    ) -> Result<i64, String> {
        let topics = engine.topics();
        if life.lock().topics(false) == Topics::OfCluster {
            return Ok(0);
        }
        let topics = topics.by_id.values().map(|topic| JoiningTopic {
            id: topic.id,
            name: topic.name.clone(),
            partitions: topic.partitions,
            configs: topic.overrides.clone(),
            leader_epoch: topic.partition_ids().map(|it| engine.placed_epoch(it)).max().unwrap_or(0) + 1,
        });
        let catalog = JoiningCatalog {
            topics: topics.collect(),
            settings: engine.broker_settings().as_ref().clone(),
            next_producer_id: next_producer_id(engine).await?,
        };
        let count = catalog.topics.len();
        let joined = plane.ask(JOIN_TIMEOUT, |reply| Question::Join(catalog, reply)).await;
        let refused = |reason: String| format!("the topics of this node cannot become those of the cluster: {reason}");
        let Visible { outcome, revision } = joined.map_err(|error| refused(error.to_string()))?;
        outcome.map_err(|error| refused(error.to_string()))?;
        life.lock().end_joining(&self.prepared.data_dir).map_err(|error| error.to_string())?;
        tracing::info!("the {count} topics of this node are those of the cluster now");
        Ok(revision)
    }
}

/// The first producer id that this node never gave out.
async fn next_producer_id(engine: &Engine) -> Result<i64, String> {
    let last = engine.next_producer_id().await.map_err(|error| error.to_string())?;
    Ok(last + 1)
}

/// What the control thread of a node is made with. `own_id` is that of the cluster which the node founds, if there is none.
pub(super) fn control_options(
    node: NodeIdentity,
    (life, cluster): (&Life, &ClusterConfig),
    own_id: Uuid,
    topic_defaults: BTreeMap<String, String>,
) -> Options {
    Options {
        node,
        cluster: life.cluster_id().map_or(ClusterIdentity::Any(own_id), ClusterIdentity::Fixed),
        remembered: life.remembered(),
        adoptions_known: life.cluster_id().map(|_| life.adopted()),
        topic_defaults,
        lease: replication_settings::lease(&cluster.settings),
        away_after: AWAY_AFTER,
        history: match cluster.etcd.managed.is_some() || cluster.etcd.mirror.is_some() {
            true => History::Ours,
            false => History::Others,
        },
        rebalance: replication_settings::rebalance(&cluster.settings),
        wanted_replicas: millrace_net::internal_factors(&cluster.settings),
        ids: Box::new(Uuid::new_v4),
    }
}

fn hooks(plane: &ControlPlane, cluster: &Rc<RefCell<Option<Rc<Cluster>>>>, is_told: &Rc<Awaited<()>>) -> Hooks {
    let (plane, of_image, is_told) = (plane.clone(), cluster.clone(), is_told.clone());
    let (of_leadership, of_doubts) = (cluster.clone(), cluster.clone());
    Hooks {
        on_image: Rc::new(move |image| {
            let known = of_image.borrow().clone();
            match known {
                Some(cluster) => cluster.take_image(image.clone()),
                None => {
                    of_image.replace(Some(Cluster::new(plane.clone(), image.clone())));
                    is_told.set(());
                }
            }
        }),
        on_leadership: Rc::new(move || {
            if let Some(cluster) = of_leadership.borrow().as_ref() {
                cluster.notice_leadership();
            }
        }),
        on_doubts: Rc::new(move |nodes| {
            // nobody is doubted before an image says who there is
            if let Some(cluster) = of_doubts.borrow().as_ref() {
                cluster.take_doubts(nodes);
            }
        }),
    }
}

/// How a cluster's etcd is asked.
///
/// # Errors
/// If the file with the password cannot be read.
pub(crate) fn etcd_options(cluster: &str, config: &EtcdConfig) -> Result<EtcdOptions, String> {
    let user = config.login.as_ref().map(|(user, path)| {
        let password = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok::<_, String>((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
    });
    Ok(EtcdOptions {
        endpoints: config.urls.clone(),
        cluster: cluster.to_owned(),
        timeout: ETCD_TIMEOUT,
        tls: EtcdTls { authority: config.ca.clone(), certificate: config.identity.clone() },
        user: user.transpose()?,
    })
}

/// Hears the control thread, on that thread.
struct Listener {
    life: SharedLife,
    data_dir: PathBuf,
    feed: ImageFeed,
    me: Option<Member>,
    /// The newest.
    image: Option<Image>,
    /// Of a node that was alone until now.
    topics: Topics,
    halt: Halt,
    /// Nodes with other defaults, as it was said last.
    other_defaults: Vec<(i32, &'static str)>,
}

impl Listener {
    fn has_other_topics(&self) -> String {
        format!(
            "{} holds topics of a node that was alone, and cluster '{}' has topics of its own: start this node with an empty \
             --data, and copy its topics with a client",
            self.data_dir.display(),
            self.life.lock().cluster
        )
    }

    /// Every node decides by its own: whoever leads what it acknowledges, whoever is controller who may lead.
    fn compare_defaults(&mut self, image: &Image) {
        let others = image.other_defaults();
        if others == self.other_defaults {
            return;
        }
        for (node, name) in &others {
            tracing::warn!(
                "node {node} was started with another default of {name} than this one: start all with the same, or set it for \
                 all brokers"
            );
        }
        self.other_defaults = others;
    }

    /// With the first image of a life: it takes a former version to write one.
    fn tell_of_idle_settings(&self, image: &Image) {
        if self.image.is_some() {
            return;
        }
        for (node, name) in image.idle_settings() {
            tracing::warn!("{name} of broker {node} is not in force: set it for all brokers");
        }
    }

    fn put(&mut self, image: Image) {
        self.compare_defaults(&image);
        self.tell_of_idle_settings(&image);
        self.image = Some(image.clone());
        self.feed.put(OwnImage { image, me: self.me });
    }

    fn hear(&mut self, event: Event) {
        if let Err(reason) = self.act(event) {
            self.halt.halt(reason);
        }
    }

    /// What must not be gone on from is an error. Images are acted on once the node is a member.
    fn act(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Registered(member, image) => {
                tracing::info!(epoch = member.epoch, "this node is a member of the cluster");
                let topics = std::mem::replace(&mut self.topics, Topics::OfCluster);
                if topics == Topics::ToJoin && !image.topics.is_empty() {
                    return Err(self.has_other_topics());
                }
                let id = image.cluster_id.ok_or("the cluster has no id")?;
                let mut life = self.life.lock();
                if topics == Topics::ToJoin {
                    life.begin_joining();
                }
                life.begin(&self.data_dir, member.epoch, (id, image.adopted.times))
                    .map_err(|error| error.to_string())?;
                drop(life);
                self.me = Some(member);
                self.put(image);
            }
            Event::Image(image, _) if self.life.lock().cluster_id().is_some() => self.put(image),
            Event::Image(..) => {}
            Event::Lease(until) => {
                if let Some(me) = self.me {
                    self.feed.trust_until(me, until);
                }
            }
            Event::Lost => {
                self.me = None;
                self.feed.end_life();
                // shards hear it now, not with the next thing that changes in the cluster
                self.image.take().into_iter().for_each(|image| self.put(image));
                tracing::warn!("the membership in the cluster is over: another one follows");
            }
            Event::Away(_, reason) => {
                self.feed.note_etcd(Some(StoreError::Away(reason.clone()).to_string()));
                tracing::warn!(
                    "etcd is away ({reason}): produce and fetch go on; nobody is elected and no topic is created meanwhile"
                );
            }
            Event::Full(reason) => {
                let trouble = StoreError::Full(reason).to_string();
                self.feed.note_etcd(Some(trouble.clone()));
                tracing::error!(
                    "{trouble}. Produce and fetch go on; nobody is elected and no topic is created meanwhile"
                );
            }
            Event::Back => {
                self.feed.note_etcd(None);
                tracing::info!("etcd is back");
            }
            Event::Remember(seen) => {
                self.life.lock().remember(&self.data_dir, seen).map_err(|error| error.to_string())?
            }
            Event::Waiting(reason) => tracing::info!("not a member of the cluster yet: {reason}"),
            Event::Fatal(reason) => return Err(reason),
        }
        Ok(())
    }
}

impl ShardMember {
    /// Ends the shard's part, once it serves no more.
    pub(in crate::serve) async fn leave(self) {
        if let Some(lead) = &self.lead {
            let left = lead.control.plane().ask(lead.leave_patience, Question::Leave).await;
            if let Err(error) = left {
                tracing::warn!("the registration is not given up, its lease ends by itself: {error}");
            }
        }
        self.shell.stop().await;
        if let Some(Lead { control, follower, .. }) = self.lead {
            follower.cancel().await;
            glommio::executor().spawn_blocking(move || control.stop()).await;
        }
    }
}
