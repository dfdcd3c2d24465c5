//! Where a member's session is, and what happens when it ends.
//!
//! When the node is advertised as one broker, a member's requests may come over any shard: its session is on a shard that
//! its names decide. When each shard is a broker of its own, a member has a session with each, on that shard.

use std::{collections::BTreeMap, hash::Hasher, rc::Rc};

use millrace_engine::{api::TopicPartition, engine::Engine};

use crate::{
    broker::{config::Advertise, context::Context},
    coordinator::share::{
        session::{ConnectionId, SessionKey},
        shell::{here, release_on},
    },
};

/// The shard that has a member's session.
pub(super) fn shard_of(context: &Context, group: &str, member: &str) -> usize {
    let engine = context.engine();
    match context.config().advertise {
        Advertise::Shard => engine.shard(),
        Advertise::Node => {
            let mut hasher = std::collections::hash_map::DefaultHasher::new();
            hasher.write(group.as_bytes());
            hasher.write_u8(0xff);
            hasher.write(member.as_bytes());
            let shards = engine.shards() as u64;
            usize::try_from(hasher.finish() % shards).unwrap_or(0)
        }
    }
}

/// A session's key.
pub(super) fn key(group: &str, member: &str) -> SessionKey {
    SessionKey { group: Rc::from(group), member: Rc::from(member) }
}

/// Gives back what a member has of partitions, wherever they are.
pub(super) async fn release(engine: &Engine, group: &str, member: &str, partitions: Vec<TopicPartition>) {
    let mut by_shard: BTreeMap<usize, Vec<TopicPartition>> = BTreeMap::new();
    for partition in partitions {
        by_shard.entry(engine.owner(partition)).or_default().push(partition);
    }
    let releasing = by_shard
        .into_iter()
        .map(|(shard, partitions)| release_on(engine, shard, (group.to_owned(), member.to_owned()), partitions));
    futures_util::future::join_all(releasing).await;
}

/// Ends a member's session and gives back what it has.
pub(super) async fn end(engine: &Engine, shard: usize, group: &str, member: &str) {
    let (id, who) = (group.to_owned(), member.to_owned());
    let ended = engine.on_shard(shard, move |engine| async move {
        here(&engine).await.sessions.borrow_mut().remove(&key(&id, &who))
    });
    if let Some(partitions) = ended.await {
        release(engine, group, member, partitions).await;
    }
}

/// A connection was closed: ends the sessions that it opened, by shard, group and member.
pub(crate) async fn end_sessions(engine: &Engine, connection: ConnectionId, sessions: Vec<(usize, String, String)>) {
    for (shard, group, member) in sessions {
        let (id, who) = (group.clone(), member.clone());
        let ended = engine.on_shard(shard, move |engine| async move {
            here(&engine).await.sessions.borrow_mut().on_disconnect(&key(&id, &who), connection)
        });
        if let Some(partitions) = ended.await {
            release(engine, &group, &member, partitions).await;
        }
    }
}
