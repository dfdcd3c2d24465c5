//! Consumer group coordination.
//!
//! The group with id `g` is coordinated by the shard that owns partition `hash(g) % n` of `__consumer_offsets`, where all
//! its state is kept in Kafka's own record formats. One [`coordinator::Coordinator`] per partition decides: plain code
//! without I/O or clock, so that every conversation can be tested by itself. The runtime around it carries requests to the
//! owner's shard, writes the records and loads them after a start.

mod answers;
pub(crate) mod assignment;
mod assignor;
pub(crate) mod caller;
mod classic;
mod consumer;
pub(crate) mod coordinator;
pub(crate) mod effects;
pub(crate) mod error;
mod live_configs;
mod offsets;
mod pending_offsets;
pub(crate) mod record;
#[cfg(test)]
pub(crate) mod script;
pub(crate) mod settings;
pub(crate) mod share;
mod shell;
pub(crate) mod strings;
pub(crate) mod timers;
pub(crate) mod topics;
mod transaction_guards;

pub(crate) use consumer::{TopicsView, compile as compile_regex, metadata_hash};
pub(crate) use live_configs::KEPT_GROUPS;
pub(crate) use offsets::Stability;
pub use settings::check_group_settings;
pub(crate) use settings::{SETTING_KEYS, Settings};
pub(crate) use shell::{GroupKind, Groups, OFFSETS_TOPIC, new_offsets_topic};
pub(crate) use transaction_guards::TransactionGuard;
