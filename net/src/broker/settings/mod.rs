//! Settings as clients see them, by the resource that has them, and how they are shown and kept.

pub(crate) mod broker_config;
pub(crate) mod config_resource;
pub(crate) mod entries;
pub(crate) mod group_config;
