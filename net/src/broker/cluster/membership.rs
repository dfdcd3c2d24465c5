//! What a shard of a node in a cluster has of it: the newest image, and the way to the control plane.
//!
//! Always holds: the image is one that the shard's engine was brought into agreement with, so that whoever sees a topic
//! here finds it there. Images come in order, from whoever runs the node.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::future::{Either, select};
use millrace_engine::signal::Outcome;
use millrace_replica::cluster::{
    image::Image,
    model::{NodeId, NodeState},
    plane::{ControlError, ControlPlane},
};

use super::control::CONTROL_TIMEOUT;
use crate::{
    broker::config::{Advertise, NetConfig},
    coordinator::runtime::promise::Bell,
    feature_levels::{TRANSACTION_VERSION_MAX, finalized_transaction_version},
};

/// Whether a node belongs to a cluster.
#[derive(Clone, Debug, Default)]
pub enum Membership {
    /// It is all there is.
    #[default]
    Alone,
    /// It is one of several.
    Clustered(Rc<Cluster>),
}

impl Membership {
    /// Whether there are other nodes, or may be.
    pub(crate) fn is_clustered(&self) -> bool {
        matches!(self, Self::Clustered(_))
    }

    /// What does not go together with other nodes, and why.
    pub(crate) fn objection(&self, config: &NetConfig) -> Option<String> {
        let Membership::Clustered(cluster) = self else { return None };
        if config.advertise == Advertise::Shard {
            let reason = "in a cluster shards cannot be brokers of their own: other nodes have those ids";
            return Some(reason.to_owned());
        }
        let image = cluster.image();
        let level = image.nodes.keys().next().and_then(|id| finalized_transaction_version(&image.settings_of(*id)));
        if let Some(level) = level.filter(|level| *level > TRANSACTION_VERSION_MAX) {
            return Some(format!(
                "the cluster's transaction.version is {level}, and this version knows up to {TRANSACTION_VERSION_MAX}"
            ));
        }
        let listener = &config.inter_broker_listener().name;
        let lacks = |node: &&Arc<NodeState>| node.endpoints.iter().all(|endpoint| endpoint.listener != *listener);
        let lacking: Vec<_> = image.nodes.values().filter(lacks).map(|node| node.id.to_string()).collect();
        (!lacking.is_empty()).then(|| {
            format!(
                "brokers ask each other through listener {listener}, which node {} does not have: give all nodes a \
                 listener of one name and say it as inter.broker.listener.name",
                lacking.join(", ")
            )
        })
    }
}

/// See the module. One per shard.
pub struct Cluster {
    pub(super) control: ControlPlane,
    image: RefCell<Rc<Image>>,
    /// Nodes whose processes are likely to be gone, though they are not fenced yet.
    doubted: RefCell<Rc<BTreeSet<NodeId>>>,
    /// Set when there is a newer image, or others are doubted.
    news: RefCell<Rc<Outcome<()>>>,
    /// Rung when partitions began or ceased to be led here.
    leadership: Bell,
    producer_ids: ProducerIdBlock,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("revision", &self.image.borrow().revision).finish()
    }
}

impl Cluster {
    /// A shard's part of a cluster. Its engine agrees with the image.
    pub fn new(control: ControlPlane, image: Image) -> Rc<Cluster> {
        Rc::new(Cluster {
            control,
            image: RefCell::new(Rc::new(image)),
            doubted: RefCell::default(),
            news: RefCell::default(),
            leadership: Bell::default(),
            producer_ids: ProducerIdBlock::default(),
        })
    }

    /// Takes a newer image over, with which the shard's engine agrees already.
    pub fn take_image(&self, image: Image) {
        self.image.replace(Rc::new(image));
        self.news.take().set(());
    }

    /// Other nodes than before are doubted: these.
    pub fn take_doubts(&self, nodes: BTreeSet<NodeId>) {
        self.doubted.replace(Rc::new(nodes));
        self.news.take().set(());
    }

    /// Partitions have begun or ceased to be led on this shard: the engine says of each whether it is. Cheap, however
    /// often it is said.
    pub fn notice_leadership(&self) {
        self.leadership.ring();
    }

    /// Waits until that was said, since the last time. One task may wait.
    pub(crate) async fn leadership_noticed(&self) {
        self.leadership.rung().await;
    }

    /// The newest image.
    pub(crate) fn image(&self) -> Rc<Image> {
        Rc::clone(&self.image.borrow())
    }

    /// Nodes whose processes are likely to be gone, though they are not fenced yet.
    pub(super) fn doubted(&self) -> Rc<BTreeSet<NodeId>> {
        Rc::clone(&self.doubted.borrow())
    }

    /// Waits until there is a newer image, or others are doubted, than when this was called.
    pub(super) fn news(&self) -> impl Future<Output = ()> + use<> {
        Rc::clone(&self.news.borrow()).wait()
    }

    /// Waits until an image shows something, but not for longer than that.
    pub(super) async fn until(&self, most: Duration, mut shows: impl FnMut(&Image) -> bool) {
        let shown = async {
            while !shows(&self.image()) {
                self.news().await;
            }
        };
        select(std::pin::pin!(shown), std::pin::pin!(glommio::timer::sleep(most))).await;
    }

    /// A producer id that was never given out before.
    pub(super) async fn next_producer_id(&self) -> Result<i64, ControlError> {
        loop {
            if let Some(id) = self.producer_ids.take() {
                return Ok(id);
            }
            if self.producer_ids.is_asking.replace(true) {
                let asked = std::pin::pin!(self.producer_ids.answered());
                let timeout = std::pin::pin!(glommio::timer::sleep(CONTROL_TIMEOUT));
                match select(asked, timeout).await {
                    Either::Left(_) => continue,
                    Either::Right(_) => return Err(ControlError::Busy),
                }
            }
            // also when the client leaves meanwhile, and this is not gone on with
            let _asking = Asking(&self.producer_ids);
            let block = self.control.producer_ids(CONTROL_TIMEOUT).await?;
            self.producer_ids.refill(block.first, block.count);
        }
    }
}

/// Producer ids of this shard that were not given out yet.
#[derive(Default)]
struct ProducerIdBlock {
    next: Cell<i64>,
    end: Cell<i64>,
    is_asking: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Somebody asks for a block; dropped, others may.
struct Asking<'a>(&'a ProducerIdBlock);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.is_asking.set(false);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

impl ProducerIdBlock {
    fn take(&self) -> Option<i64> {
        let id = self.next.get();
        (id < self.end.get()).then(|| {
            self.next.set(id + 1);
            id
        })
    }

    fn refill(&self, first: i64, count: i32) {
        self.next.set(first);
        self.end.set(first + i64::from(count));
    }

    /// Waits until nobody asks for a block.
    async fn answered(&self) {
        poll_fn(|context| {
            if !self.is_asking.get() {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;
    use millrace_replica::cluster::plane::{ProducerIds, Question};

    use super::*;

    #[test]
    fn a_client_that_leaves_while_it_waits_for_an_id_holds_up_nobody() {
        glommio::LocalExecutor::default().run(async {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let questions = asked.clone();
            let control = ControlPlane::new(move |asked| {
                questions.lock().unwrap().push(asked.question);
                Ok(())
            });
            let cluster = Cluster::new(control, Image::new(Arc::default()));
            assert!(cluster.next_producer_id().now_or_never().is_none(), "nobody answered yet");
            let mut next = Box::pin(cluster.next_producer_id());
            assert!((&mut next).now_or_never().is_none());
            let question = asked.lock().unwrap().pop();
            let Some(Question::ProducerIds(reply)) = question else { panic!("{question:?}") };
            assert_eq!(asked.lock().unwrap().len(), 1, "the second one asks for itself");
            reply.give(Ok(ProducerIds { first: 7, count: 2 }));
            assert_eq!(next.await, Ok(7));
            assert_eq!(cluster.next_producer_id().await, Ok(8));
        });
    }
}
