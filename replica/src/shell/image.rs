//! What a new image means for a shard's channel: who lives, and what this node has to do with each partition.

use std::{rc::Rc, sync::Arc};

use millrace_engine::{
    api::{TopicId, TopicPartition},
    config::dynamic_value,
    engine::owner,
};

use super::{OwnImage, Shell};
use crate::{
    channel::{
        event::{Assignment, LiveNode, Nodes, Role},
        quota::{LimitedReplicas, ReplicationLimits},
    },
    cluster::{
        image::Image,
        model::{Member, TopicState},
    },
};

/// Partitions looked at in one turn of the shard.
const PARTITIONS_OF_TURN: usize = 1024;

/// Which topics the core is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Those that are not as they were.
    WhatChanged,
    /// All.
    All,
}

/// All nodes that live, as the core wants them.
fn nodes(image: &Image) -> Nodes {
    Nodes::new(image.nodes.values().map(|node| LiveNode {
        member: node.member(),
        continues: node.continues,
        draining: image.draining.get(&node.id) == Some(&node.epoch),
        shards: node.shards,
    }))
}

impl Shell {
    /// Takes an image that the engine was reconciled with.
    pub async fn take_image(self: &Rc<Self>, OwnImage { image, me }: OwnImage) {
        let nodes = nodes(&image);
        let before = self.image.replace(Some(image.clone()));
        self.forget_doubts();
        (self.hooks.on_image)(&image);
        let former = self.me.replace(me);
        if former.is_some() && former != me {
            self.tell(|core, now, logs| core.handle_lost(now, logs));
            self.deletions.look_again();
        }
        // Between two lives it follows whom it followed: images of now may rest on what it does in its next one.
        let Some(me) = me else { return };
        if former != Some(me) {
            self.told.borrow_mut().clear();
            self.seen.borrow_mut().clear();
            self.tell(|core, now, _| core.handle_registered(now, me));
        }
        // who leads a partition may be away in one image and there in the next, with the partition's key as it was
        let are_other_nodes =
            before.is_none_or(|before| before.nodes != image.nodes || before.draining != image.draining);
        let extent = if are_other_nodes { Extent::All } else { Extent::WhatChanged };
        self.take_limits();
        self.tell(|core, now, logs| core.handle_nodes(now, nodes.clone(), logs));
        self.assign(&image, me, &nodes, extent).await;
        // replicas may have gone, or another node leads
        self.deletions.look_again();
    }

    /// Limits on replication that are in force on this node: each shard has its part of them.
    fn take_limits(self: &Rc<Self>) {
        let settings = self.engine.broker_settings();
        let of = |name: &str| dynamic_value(&settings, name).map(|value| value.to_owned());
        let limits = ReplicationLimits::parse(of, self.engine.shards() as u64);
        if self.limits.replace(limits) != limits {
            self.tell(|core, now, _| core.handle_limits(now, limits));
        }
    }

    /// Which replicas of a topic they are for.
    fn limit(self: &Rc<Self>, topic: &TopicState) {
        let replicas = LimitedReplicas::parse(&topic.configs, self.engine.node_id());
        self.tell(|core, now, _| core.handle_limited(now, topic.id, replicas));
    }

    async fn assign(self: &Rc<Self>, image: &Image, me: Member, nodes: &Nodes, extent: Extent) {
        let gone = |id: &TopicId| image.topics.get(id).is_none();
        let gone: Vec<TopicId> = self.seen.borrow().keys().filter(|id| gone(id)).copied().collect();
        for id in gone {
            self.let_go(id);
        }
        let mut looked_at = 0;
        for topic in image.topics.values() {
            let known = self.seen.borrow().get(&topic.id).cloned();
            let is_known = known.as_ref().is_some_and(|known| Arc::ptr_eq(known, topic));
            if is_known && extent == Extent::WhatChanged {
                continue;
            }
            if !is_known && known.is_none_or(|known| known.configs != topic.configs) {
                self.limit(topic);
            }
            for index in 0..topic.partitions.len() {
                let partition = TopicPartition { topic: topic.id, partition: i32::try_from(index).unwrap_or(i32::MAX) };
                if self.engine.owner(partition) == self.engine.shard() {
                    self.assign_one(topic, partition, me, nodes, extent);
                }
                looked_at += 1;
                if looked_at % PARTITIONS_OF_TURN == 0 {
                    glommio::yield_if_needed().await;
                }
            }
            self.seen.borrow_mut().insert(topic.id, topic.clone());
        }
    }

    /// A topic is no more.
    fn let_go(self: &Rc<Self>, topic: TopicId) {
        self.seen.borrow_mut().remove(&topic);
        self.tell(|core, now, _| core.handle_limited(now, topic, LimitedReplicas::default()));
        let partitions: Vec<_> = self.told.borrow().keys().filter(|it| it.topic == topic).copied().collect();
        for partition in partitions {
            self.told.borrow_mut().remove(&partition);
            self.tell(|core, now, logs| core.handle_assigned(now, partition, None, logs));
        }
    }

    fn assign_one(
        self: &Rc<Self>,
        topic: &TopicState,
        partition: TopicPartition,
        me: Member,
        nodes: &Nodes,
        extent: Extent,
    ) {
        let state = &topic.partitions[usize::try_from(partition.partition).expect("an index is not negative")];
        let newest = (state.revision, topic.rules);
        let shard = |live: &LiveNode| {
            let shards = usize::try_from(live.shards).unwrap_or(usize::MAX).max(1);
            u32::try_from(owner(partition, shards)).expect("a node has few shards")
        };
        let assignment = Assignment::of(state, &topic.rules, me, nodes, shard);
        let led = assignment.as_ref().filter(|it| matches!(it.role, Role::Leader(_))).map(|it| it.epoch);
        let before = match assignment {
            Some(_) => self.told.borrow_mut().insert(partition, newest),
            None => self.told.borrow_mut().remove(&partition),
        };
        let is_news = before != assignment.is_some().then_some(newest);
        if is_news || extent == Extent::All {
            // before the core has something to say of those in sync: of fewer replicas fewer are enough
            if let Some(epoch) = led {
                self.count_replicas(partition, epoch);
            }
            self.tell(|core, now, logs| core.handle_assigned(now, partition, assignment, logs));
        }
    }
}
