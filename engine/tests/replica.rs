//! A topic that a cluster has, on a whole node: where its partitions are, and who leads them, over restarts.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod with_node;

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_engine::{
    api::{Acks, LogError, ProducePartition, TopicError, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record},
    engine::Engine,
    format::{
        catalog::StoredTopic,
        placement::{PlacedRun, Placement},
    },
    replica::{Leadership, ReplicaPosition},
};
use uuid::Uuid;
use with_node::{options, with_node};

const ID: Uuid = Uuid::from_u128(77);

fn partition(index: i32) -> TopicPartition {
    TopicPartition { topic: ID, partition: index }
}

fn topic(partitions: i32) -> StoredTopic {
    StoredTopic { name: "t".to_owned(), partitions, overrides: BTreeMap::new() }
}

fn placement(replicas: &[&[i32]]) -> Placement {
    Placement::of(replicas.iter().map(|nodes| PlacedRun { partitions: 1, leader_epoch: 1, replicas: nodes.to_vec() }))
}

async fn produce(engine: &Engine, index: i32) -> Result<i64, LogError> {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    builder.push(&Record {
        offset: 0,
        timestamp: 5,
        key: None,
        value: Some(Bytes::from_static(b"v")),
        headers: vec![],
    });
    let part = ProducePartition { partition: partition(index), batch: builder.finish().into() };
    let answer = engine.produce(AppendOrigin::Client, Acks::Leader, vec![part]).await;
    answer.into_iter().next().unwrap().map(|produced| produced.base_offset)
}

async fn lead(engine: &Engine, index: i32, epoch: i32) -> Result<ReplicaPosition, LogError> {
    let owner = engine.owner(partition(index));
    let lead = move |engine: Engine| async move {
        let leadership = Leadership::Replicated { replicas: 2, in_sync: 2 };
        engine.replica(partition(index))?.lead(epoch, leadership).await
    };
    engine.on_shard(owner, lead).await
}

#[test]
fn partitions_are_where_the_cluster_says_and_led_once_it_says_so_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    with_node(options(dir.path(), 2), |engine: Engine| async move {
        engine.put_topic(ID, topic(2), placement(&[&[1, 2], &[2, 3]])).await.unwrap();
        engine.put_topic(ID, topic(2), placement(&[&[1, 2], &[2, 3]])).await.unwrap();
        assert_eq!(produce(&engine, 0).await, Err(LogError::NotLeader), "nobody has said who leads");
        assert_eq!(produce(&engine, 1).await, Err(LogError::UnknownPartition), "it is on other nodes");
        assert_eq!(lead(&engine, 1, 1).await.err(), Some(LogError::UnknownPartition));
        assert_eq!(lead(&engine, 0, 3).await.unwrap().epoch_start, 0);
        assert_eq!((produce(&engine, 0).await, produce(&engine, 0).await), (Ok(0), Ok(1)));
        let fewer = engine.put_topic(ID, topic(1), placement(&[&[1, 2]])).await;
        assert!(matches!(fewer, Err(TopicError::InvalidPartitions(_))));
        let taken = engine.put_topic(Uuid::from_u128(78), topic(1), placement(&[&[1]])).await;
        assert!(matches!(taken, Err(TopicError::Exists(_))));
    });
    with_node(options(dir.path(), 2), |engine: Engine| async move {
        assert_eq!(produce(&engine, 0).await, Err(LogError::NotLeader), "another may lead by now");
        assert_eq!(lead(&engine, 0, 2).await.err(), Some(LogError::FencedLeaderEpoch), "the log knows of epoch 3");
        let position = lead(&engine, 0, 4).await.unwrap();
        assert_eq!((position.last_epoch, position.epoch_start, position.high_watermark), (4, 2, 0));
        engine.put_topic(ID, topic(3), placement(&[&[2, 3], &[1, 2], &[1, 3]])).await.unwrap();
        assert_eq!(produce(&engine, 0).await, Err(LogError::NotLeader), "it has left");
        assert_eq!(lead(&engine, 2, 5).await.unwrap().end, 0);
        assert_eq!(lead(&engine, 1, 5).await.unwrap().end, 0);
        assert_eq!(produce(&engine, 1).await, Ok(0));
    });
    // With another number of shards, which brings everything to segments.
    with_node(options(dir.path(), 1), |engine: Engine| async move {
        assert_eq!(produce(&engine, 0).await, Err(LogError::NotLeader), "what was here of it is still told apart");
        engine.put_topic(ID, topic(3), placement(&[&[1, 2], &[1, 2], &[1, 3]])).await.unwrap();
        let back = lead(&engine, 0, 6).await.unwrap();
        assert_eq!((back.log_start, back.end, back.last_epoch), (0, 0, 6), "it came back empty");
        assert_eq!(produce(&engine, 0).await, Ok(0));
        assert_eq!(lead(&engine, 1, 6).await.unwrap().end, 1);
        engine.remove_topic(ID).await.unwrap();
        engine.remove_topic(ID).await.unwrap();
        assert_eq!(produce(&engine, 0).await, Err(LogError::UnknownPartition));
    });
}
