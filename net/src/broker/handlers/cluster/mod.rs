//! What clients are told of the cluster: what is served, which brokers there are, and who leads what.

pub(crate) mod api_versions;
pub(crate) mod describe_cluster;
pub(crate) mod describe_topic_partitions;
pub(crate) mod metadata;
