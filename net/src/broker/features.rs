//! Features that clusters of several nodes agree upon (KIP-584): which there are, and at which level. ApiVersions tells
//! clients; UpdateFeatures cannot change them.

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

const fn feature(name: &'static str, min: i16, max: i16, level: i16) -> Feature {
    Feature { name, min, max, level }
}

/// All features. `metadata.version` 30 is Kafka 4.3's. `transaction.version` must not be listed at 2 before the
/// producer side of KIP-890 is served: clients change their ways by it.
pub(crate) static FEATURES: &[Feature] = &[
    feature("group.version", 0, 1, 1),
    feature("kraft.version", 0, 1, 0),
    feature("metadata.version", 7, 30, 30),
    feature("share.version", 0, 1, 1),
];
