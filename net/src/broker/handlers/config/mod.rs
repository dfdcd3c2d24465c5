//! Settings of resources: shown, altered, listed.

pub(crate) mod alter_configs;
pub(crate) mod describe_configs;
pub(crate) mod incremental_alter_configs;
pub(crate) mod list_config_resources;
