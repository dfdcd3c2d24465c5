//! The replication channel between nodes. Nothing is here yet: a partition has one replica.
