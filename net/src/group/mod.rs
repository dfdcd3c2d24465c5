//! Consumer group coordination.
//!
//! The group with id `g` is coordinated by the shard that owns partition `hash(g) % n` of `__consumer_offsets`, where all
//! its state is kept in Kafka's own record formats. One [`coordinator::Coordinator`] per partition decides: plain code
//! without I/O or clock, so that every conversation can be tested by itself. The shell around it carries requests to the
//! owner's shard, writes the records and loads them after a start.

pub(crate) mod api;
mod assignment;
mod assignor;
mod caller;
mod classic;
mod consumer;
mod coordinator;
mod effects;
mod error;
mod offsets;
mod record;
#[cfg(test)]
mod script;
mod settings;
mod shell;
mod strings;
mod timers;
mod topics;

pub use settings::check_group_settings;
pub(crate) use settings::{SETTING_KEYS, SettingKey, Settings};
pub(crate) use shell::{Groups, OFFSETS_TOPIC, new_offsets_topic};
