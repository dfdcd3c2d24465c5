//! Share state on a real engine: what only shows while a log is read.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::ResponseError;
use millrace_engine::{
    api::{NewTopic, TopicPartition},
    engine::Engine,
};

use super::{Initialize, Read, StateKind, States, Work};
use crate::{
    coordinator::share::{settings::Settings, state::ShareKey},
    test_node::on_node,
};

/// Partition 0 of a new topic.
async fn new_partition(engine: &Engine, name: &str) -> TopicPartition {
    let new = NewTopic { name: name.to_owned(), partitions: 1, configs: BTreeMap::new() };
    let topic = engine.create_topic(new, false).await.unwrap();
    TopicPartition { topic: topic.id, partition: 0 }
}

async fn start_offset(states: &Rc<States>, partition: TopicPartition, key: &ShareKey) -> Result<i64, ResponseError> {
    let read = Read { leader_epoch: 0 };
    let state = states.ask(partition, |coordinator, now_ms, ticket| read.run(coordinator, now_ms, key, ticket)).await?;
    state.map(|state| state.start_offset)
}

/// Both partitions have the same index, as those of a topic that is deleted and made again while it is read; what the old
/// one kept is nothing to the new one.
#[test]
fn state_of_a_topics_former_life_is_not_served_by_the_next_one() {
    on_node(async |engine: Engine, _| {
        let settings = Rc::new(Settings::default());
        let (old, new) = (new_partition(&engine, "old").await, new_partition(&engine, "new").await);
        let kept = new_partition(&engine, "kept").await.topic;
        let key = ShareKey::new("group", kept, 0);
        let before = States::attach(&engine, StateKind::new(Rc::clone(&settings)));
        let initialized = before.ask(old, |coordinator, now_ms, ticket| {
            Initialize { state_epoch: 3, start_offset: 40 }.run(coordinator, now_ms, &key, ticket);
        });
        initialized.await.unwrap().unwrap();

        let states = States::attach(&engine, StateKind::new(settings));
        let (of_old, of_new) =
            futures_util::future::join(start_offset(&states, old, &key), start_offset(&states, new, &key)).await;
        assert_eq!((of_old, of_new), (Ok(40), Err(ResponseError::InvalidRequest)));
    });
}
