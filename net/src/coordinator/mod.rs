//! State machines that are kept in partitions of internal topics: groups, and the state of share groups.

pub(crate) mod group;
pub(crate) mod runtime;
pub(crate) mod share;
