//! What groups need to know of topics.

use millrace_engine::engine::Topics;
use uuid::Uuid;

/// All topics at one moment.
pub(crate) trait TopicLookup {
    /// Id and number of partitions of a topic.
    fn by_name(&self, name: &str) -> Option<(Uuid, i32)>;
    /// Name and number of partitions of a topic.
    fn by_id(&self, id: Uuid) -> Option<(&str, i32)>;
}

impl TopicLookup for Topics {
    fn by_name(&self, name: &str) -> Option<(Uuid, i32)> {
        self.by_name.get(name).map(|topic| (topic.id, topic.partitions))
    }

    fn by_id(&self, id: Uuid) -> Option<(&str, i32)> {
        self.by_id.get(&id).map(|topic| (topic.name.as_str(), topic.partitions))
    }
}

/// No topics at all: what a coordinator knows before it is told.
#[derive(Debug)]
pub(crate) struct NoTopics;

impl TopicLookup for NoTopics {
    fn by_name(&self, _: &str) -> Option<(Uuid, i32)> {
        None
    }

    fn by_id(&self, _: Uuid) -> Option<(&str, i32)> {
        None
    }
}
