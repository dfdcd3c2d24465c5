//! Features that clusters of several nodes agree upon (KIP-584): which there are, and at which level. ApiVersions tells
//! clients; UpdateFeatures cannot change them.

use crate::broker::cluster::Membership;

/// One feature.
#[derive(Debug)]
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

/// Those of a node.
pub(crate) fn of(membership: &Membership) -> impl Iterator<Item = &'static Feature> + Clone {
    let has_replicas = matches!(membership, Membership::Clustered(_));
    FEATURES.iter().filter(move |feature| has_replicas || feature.name != ELIGIBLE_LEADER_REPLICAS)
}

const fn feature(name: &'static str, min: i16, max: i16, level: i16) -> Feature {
    Feature { name, min, max, level }
}

/// All features. `metadata.version` 30 is Kafka 4.3's. `transaction.version` must not be listed at 2 before the
/// producer side of KIP-890 is served: clients change their ways by it.
static FEATURES: &[Feature] = &[
    feature(ELIGIBLE_LEADER_REPLICAS, 0, 1, 1),
    feature("group.version", 0, 1, 1),
    feature("kraft.version", 0, 1, 0),
    feature("metadata.version", 7, 30, 30),
    feature("share.version", 0, 1, 1),
];
