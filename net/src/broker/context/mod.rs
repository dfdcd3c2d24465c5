//! What a handler may use: its request's session, and of the broker behind it what that session is allowed.
//!
//! Topics, groups and the cluster are asked for here together with what shall be done with them, and nowhere else in the
//! broker. Whoever is refused gets the error that Kafka gives; the entry of an API in the table names all that its handler
//! asks for.

mod authorizer;
mod operation;
mod topics;

#[cfg(test)]
pub(crate) use self::authorizer::trial;
use std::rc::Rc;

use kafka_protocol::ResponseError;
use millrace_engine::engine::{Engine, Topic};

pub(crate) use self::{
    operation::{Authorization, Check, Operation, ResourceType},
    topics::{AllTopics, Allowed, Found, TopicRef, TopicsSeen},
};
use crate::{
    broker::{
        cluster::{Administration, ClusterView},
        config::{ListenerConfig, NetConfig},
        shard::BrokerShard,
    },
    wire,
};

/// See the module.
pub(crate) type Context = wire::api::Context<BrokerShard>;

/// The cluster as a resource has this name.
const CLUSTER_NAME: &str = "kafka-cluster";

impl Context {
    /// This shard's engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.service.engine
    }

    /// What the broker was started with.
    pub(crate) fn config(&self) -> &NetConfig {
        &self.service.config
    }

    /// The listener that the client came through: what it is told of addresses is that listener's.
    pub(crate) fn listener(&self) -> &ListenerConfig {
        self.config().listener(self.peer.origin.listener)
    }

    /// The cluster of this moment, with the addresses of the listener that the client came through.
    pub(crate) fn view(&self) -> ClusterView<'_> {
        self.view_through(self.listener())
    }

    /// As [`Context::view`], with the addresses of another listener.
    pub(crate) fn view_through<'a>(&'a self, listener: &'a ListenerConfig) -> ClusterView<'a> {
        ClusterView::new((self.engine(), self.config()), &self.service.membership, listener)
    }

    /// The way to change the cluster.
    pub(crate) fn administration(&self) -> Administration<'_> {
        Administration::new(self.view(), &self.service.membership)
    }

    /// The topics of this moment.
    pub(crate) fn topics(&self) -> TopicsSeen<'_> {
        TopicsSeen::new(self)
    }

    /// One topic, if it is there and that may be done with it.
    pub(crate) fn topic<'t>(
        &self,
        topic: impl Into<TopicRef<'t>>,
        operation: Operation,
    ) -> Result<Allowed<Rc<Topic>>, ResponseError> {
        self.topics().get_shared(topic.into(), operation).map(|topic| Allowed(Rc::clone(&topic)))
    }

    /// Whether a topic of that name, which need not be there, may be subject to that.
    pub(crate) fn topic_name(&self, name: &str, operation: Operation) -> Result<(), ResponseError> {
        self.authorize(ResourceType::Topic, name, operation)
    }

    /// A group, which need not be there, if that may be done with it.
    pub(crate) fn group(&self, id: &str, operation: Operation) -> Result<Allowed<String>, ResponseError> {
        self.authorize(ResourceType::Group, id, operation)?;
        Ok(Allowed(id.to_owned()))
    }

    /// A transactional id, which need not be there, if that may be done with it.
    pub(crate) fn transactional_id(&self, id: &str, operation: Operation) -> Result<Allowed<String>, ResponseError> {
        self.authorize(ResourceType::TransactionalId, id, operation)?;
        Ok(Allowed(id.to_owned()))
    }

    /// The cluster with all its topics, if that may be done with it.
    pub(crate) fn cluster(&self, operation: Operation) -> Result<AllTopics, ResponseError> {
        self.authorize(ResourceType::Cluster, CLUSTER_NAME, operation)?;
        Ok(AllTopics::as_node(self.engine()))
    }

    /// The error code that answers whether that may be done with the cluster; 0: it may.
    pub(crate) fn cluster_code(&self, operation: Operation) -> i16 {
        self.cluster(operation).err().map_or(0, |error| error.code())
    }

    /// Whether topics may be made, as one of that name.
    pub(crate) fn create_topic(&self, name: &str) -> Result<(), ResponseError> {
        match self.may(ResourceType::Cluster, CLUSTER_NAME, Operation::Create) {
            true => Ok(()),
            false => self.authorize(ResourceType::Topic, name, Operation::Create),
        }
    }

    /// What may be done with a topic, as a set of bits (KIP-430).
    pub(crate) fn topic_operations(&self, name: &str) -> i32 {
        self.operations(ResourceType::Topic, name)
    }

    /// What may be done with a group.
    pub(crate) fn group_operations(&self, id: &str) -> i32 {
        self.operations(ResourceType::Group, id)
    }

    /// What may be done with the cluster; nothing, for who may not even describe it.
    pub(crate) fn cluster_operations(&self) -> i32 {
        let all = self.operations(ResourceType::Cluster, CLUSTER_NAME);
        if all & 1 << Operation::Describe as i32 == 0 { 0 } else { all }
    }

    fn operations(&self, of: ResourceType, name: &str) -> i32 {
        let session = self.session();
        let allowed = of.operations().iter().filter(|op| authorizer::allows(&session.principal, (of, **op), name));
        allowed.fold(0, |bits, operation| bits | 1 << *operation as i32)
    }

    /// As [`Context::may`]; the error is that of the type.
    fn authorize(&self, of: ResourceType, name: &str, operation: Operation) -> Result<(), ResponseError> {
        match self.may(of, name, operation) {
            true => Ok(()),
            false => Err(match of {
                ResourceType::Topic => ResponseError::TopicAuthorizationFailed,
                ResourceType::Group => ResponseError::GroupAuthorizationFailed,
                ResourceType::TransactionalId => ResponseError::TransactionalIdAuthorizationFailed,
                ResourceType::Cluster => ResponseError::ClusterAuthorizationFailed,
            }),
        }
    }

    /// Whether the session may do an operation on a resource. Every way to one comes through here.
    fn may(&self, of: ResourceType, name: &str, operation: Operation) -> bool {
        let check = (of, operation);
        // what is not named is asked for all the same: a table that says too little is no reason to end a running node
        if cfg!(debug_assertions) {
            let objection = self.api.authorization.objection(check);
            assert_eq!(objection, None, "{:?} asks for {check:?}", self.api.key);
        }
        #[cfg(test)]
        trial::on_asked(self.api.key, check);
        authorizer::allows(&self.session().principal, check, name)
    }
}
