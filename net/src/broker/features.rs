//! Features that clusters of several nodes agree upon (KIP-584): which there are, and at which level. ApiVersions tells
//! clients; of all of them UpdateFeatures changes only `transaction.version`, by which clients choose the protocol of their
//! transactions.

use crate::{
    broker::context::Context,
    feature_levels::{TRANSACTION_VERSION, TRANSACTION_VERSION_MAX},
};

/// One feature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Feature {
    pub(crate) name: &'static str,
    /// Lowest level that is supported.
    pub(crate) min: i16,
    /// Highest level that is supported.
    pub(crate) max: i16,
    /// Level in force; 0: none, it is not listed as finalized.
    pub(crate) level: i16,
}

/// Replicas that may be elected though they are not in sync (KIP-966): in force wherever there are replicas, and there
/// from the first day.
const ELIGIBLE_LEADER_REPLICAS: &str = "eligible.leader.replicas.version";

/// Share groups (KIP-932).
const SHARE_VERSION: &str = "share.version";

const fn feature(name: &'static str, min: i16, max: i16, level: i16) -> Feature {
    Feature { name, min, max, level }
}

/// All features, those that can be changed at the level that nobody has set. `metadata.version` 30 is Kafka 4.3's.
static FEATURES: &[Feature] = &[
    feature(ELIGIBLE_LEADER_REPLICAS, 0, 1, 1),
    feature("group.version", 0, 1, 1),
    feature("kraft.version", 0, 1, 0),
    feature("metadata.version", 7, 30, 30),
    feature(SHARE_VERSION, 0, 1, 1),
    feature(TRANSACTION_VERSION, 0, TRANSACTION_VERSION_MAX, 0),
];

/// All features of a node, at the levels in force.
pub(crate) fn in_force(context: &Context) -> Vec<Feature> {
    let is_clustered = context.service.membership.is_clustered();
    // a node that is alone has no replicas
    let is_there = |feature: &&Feature| feature.name != ELIGIBLE_LEADER_REPLICAS || is_clustered;
    let of_node = FEATURES.iter().filter(is_there);
    let transaction_version = context.config().levels().transaction_version(context.engine());
    let at_level = |feature: &Feature| match feature.name {
        TRANSACTION_VERSION => Feature { level: transaction_version, ..*feature },
        _ => *feature,
    };
    of_node.map(at_level).collect()
}
