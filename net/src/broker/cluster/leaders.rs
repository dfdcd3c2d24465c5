//! The leaders that a response names, for clients that believe in others (KIP-951).

use std::collections::BTreeMap;

use kafka_protocol::{ResponseError, messages::BrokerId};
use millrace_engine::api::TopicPartition;

use super::{Broker, ClusterView, CurrentLeader};

/// See the module.
pub(crate) struct NamedLeaders<'a> {
    view: ClusterView<'a>,
    brokers: BTreeMap<BrokerId, Broker>,
}

impl<'a> NamedLeaders<'a> {
    /// None yet.
    pub(crate) fn new(view: ClusterView<'a>) -> NamedLeaders<'a> {
        NamedLeaders { view, brokers: BTreeMap::new() }
    }

    /// The leader of a partition, if the error sends the client to it.
    pub(crate) fn name(&mut self, partition: TopicPartition, error: ResponseError) -> Option<CurrentLeader> {
        if !matches!(error, ResponseError::NotLeaderOrFollower | ResponseError::FencedLeaderEpoch) {
            return None;
        }
        let leader = self.view.current_leader(partition)?;
        self.brokers.extend(leader.broker.clone().map(|broker| (broker.id, broker)));
        Some(leader)
    }

    /// Where those are.
    pub(crate) fn into_brokers(self) -> impl Iterator<Item = Broker> {
        self.brokers.into_values()
    }
}
