//! `__consumer_offsets` itself: where it is, and which of its partitions a group belongs to.

use std::{collections::BTreeMap, rc::Rc};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{NewTopic, TopicError, TopicPartition},
    engine::{Engine, Topic},
};

use crate::coordinator::group::{error::GroupError, settings::Settings};

/// Name of the topic that keeps the groups.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The topic, if it is there.
pub(crate) fn offsets_topic(engine: &Engine) -> Option<Rc<Topic>> {
    engine.topics().by_name.get(OFFSETS_TOPIC).cloned()
}

/// The topic; created when it is first needed.
pub(crate) async fn ensure_offsets_topic(engine: &Engine, settings: &Settings) -> Result<Rc<Topic>, GroupError> {
    if let Some(topic) = offsets_topic(engine) {
        return Ok(topic);
    }
    match engine.create_topic(new_offsets_topic(settings), false).await {
        Ok(topic) => Ok(topic),
        // another shard was faster
        Err(TopicError::Exists(_)) => offsets_topic(engine).ok_or(ResponseError::CoordinatorNotAvailable),
        Err(error) => {
            tracing::error!(%error, "{OFFSETS_TOPIC} cannot be created");
            Err(ResponseError::CoordinatorNotAvailable)
        }
    }
}

/// The topic as Kafka makes it.
pub(crate) fn new_offsets_topic(settings: &Settings) -> NewTopic {
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("compression.type", "producer".to_owned()),
        ("segment.bytes", settings.offsets_topic_segment_bytes.to_string()),
    ];
    NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        partitions: settings.offsets_topic_partitions,
        configs: configs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    }
}

/// The partition that a group belongs to.
pub(crate) fn partition_of(topic: &Topic, group: &str) -> TopicPartition {
    TopicPartition { topic: topic.id, partition: index_of(group, topic.partitions) }
}

/// Java's `String.hashCode` without its sign, modulo the number of partitions, as every Kafka client and tool expects.
pub(crate) fn index_of(group: &str, partitions: i32) -> i32 {
    java_hash(group).checked_abs().unwrap_or(0) % partitions.max(1)
}

fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_belong_where_java_says() {
        // hashCode of "group" is 98629247, of "" 0
        assert_eq!(index_of("group", 50), 47);
        assert_eq!(index_of("", 50), 0);
        // a string whose hash is the smallest number, which has no absolute value
        assert_eq!(java_hash("polygenelubricants"), i32::MIN);
        assert_eq!(index_of("polygenelubricants", 50), 0);
        // characters beyond 16 bits count as two
        assert_eq!(java_hash("\u{1f980}"), 0xd83e * 31 + 0xdd80);
    }
}
