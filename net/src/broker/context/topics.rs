//! Topics as a request sees them: each look-up says what shall be done with the topic.
//!
//! As in Kafka, who may not do that learns of a name neither that it exists nor that it does not. Of an id that is not
//! there everybody is told so, as it says nothing.

use std::{ops::Deref, rc::Rc};

use kafka_protocol::{ResponseError, messages::TopicName};
use millrace_engine::engine::{Engine, Topic, Topics};
use uuid::Uuid;

use super::{Context, Operation, ResourceType};

/// Something that its holder may do what was asked for with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed<T>(pub(super) T);

impl<T> Deref for Allowed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'a, T> Allowed<&'a T> {
    /// What may be used, for as long as it is there.
    pub(crate) fn inner(self) -> &'a T {
        self.0
    }
}

/// What a look-up comes to.
pub(crate) type Found<'a> = Result<Allowed<&'a Topic>, ResponseError>;

/// How a client names a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TopicRef<'a> {
    Name(&'a str),
    Id(Uuid),
}

impl<'a> From<&'a str> for TopicRef<'a> {
    fn from(name: &'a str) -> Self {
        TopicRef::Name(name)
    }
}

impl<'a> From<&'a TopicName> for TopicRef<'a> {
    fn from(name: &'a TopicName) -> Self {
        TopicRef::Name(name.as_str())
    }
}

impl From<Uuid> for TopicRef<'_> {
    fn from(id: Uuid) -> Self {
        TopicRef::Id(id)
    }
}

fn look_up<'a>(topics: &'a Topics, topic: TopicRef<'_>) -> Result<&'a Rc<Topic>, ResponseError> {
    match topic {
        TopicRef::Name(name) => topics.by_name.get(name).ok_or(ResponseError::UnknownTopicOrPartition),
        TopicRef::Id(id) => topics.by_id.get(&id).ok_or(ResponseError::UnknownTopicId),
    }
}

/// The topics of one moment, for one request.
pub(crate) struct TopicsSeen<'a> {
    context: &'a Context,
    topics: Rc<Topics>,
}

impl<'a> TopicsSeen<'a> {
    pub(super) fn new(context: &'a Context) -> TopicsSeen<'a> {
        TopicsSeen { context, topics: context.engine().topics() }
    }

    /// The topic, if it is there and that may be done with it.
    pub(crate) fn get<'t>(
        &self,
        topic: impl Into<TopicRef<'t>>,
        operation: Operation,
    ) -> Result<Allowed<&Topic>, ResponseError> {
        self.get_shared(topic.into(), operation).map(|topic| Allowed(&**topic.0))
    }

    /// As [`TopicsSeen::get`], of a topic that is kept for longer than the moment.
    pub(super) fn get_shared(
        &self,
        topic: TopicRef<'_>,
        operation: Operation,
    ) -> Result<Allowed<&Rc<Topic>>, ResponseError> {
        if let TopicRef::Name(name) = topic {
            self.context.authorize(ResourceType::Topic, name, operation)?;
        }
        let found = look_up(&self.topics, topic)?;
        if let TopicRef::Id(_) = topic {
            self.context.authorize(ResourceType::Topic, &found.name, operation)?;
        }
        Ok(Allowed(found))
    }

    /// All topics that this may be done with, by name, from a name on.
    pub(crate) fn visible(&self, from: &str, operation: Operation) -> impl Iterator<Item = Allowed<&Topic>> {
        let range = (std::ops::Bound::Included(from), std::ops::Bound::Unbounded);
        let topics = self.topics.by_name.range::<str, _>(range).map(|(_, topic)| &**topic);
        let may = move |topic: &&Topic| self.context.may(ResourceType::Topic, &topic.name, operation);
        topics.filter(may).map(Allowed)
    }
}

/// The topics of one moment, for whoever may see all: the node itself, or who may act on the whole cluster.
pub(crate) struct AllTopics(Rc<Topics>);

impl AllTopics {
    /// For the node itself: on nobody's behalf.
    pub(crate) fn as_node(engine: &Engine) -> AllTopics {
        AllTopics(engine.topics())
    }

    /// The topic, if it is there.
    pub(crate) fn get<'t>(&self, topic: impl Into<TopicRef<'t>>) -> Result<Allowed<Rc<Topic>>, ResponseError> {
        look_up(&self.0, topic.into()).map(|topic| Allowed(Rc::clone(topic)))
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Allowed<&Topic>> {
        self.0.by_name.values().map(|topic| Allowed(&**topic))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.by_id.len()
    }
}
