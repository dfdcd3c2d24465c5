//! Transactions (KIP-98, KIP-890): what a producer writes to several partitions, and the offsets of what it read, count all
//! or not at all.
//!
//! The coordinator of a transactional id keeps in `__transaction_state` which producer has it, which partitions its
//! transaction includes and how that ends; partitions hear of the end by markers. What a partition makes of them is the
//! engine's, what a group makes of them the group coordinator's.
//!
//! No transaction is left open for ever: what no coordinator knows is aborted before clients are served, and looked for
//! again every minute, and when a record is lost that would have told a coordinator ([`shell`]).

mod admin;
mod budget;
mod claim;
mod coordinator;
mod describe;
mod ending;
mod machine;
mod metadata;
#[cfg(test)]
mod model;
#[cfg(test)]
mod power;
mod record;
mod request;
mod requests;
mod rule;
mod sent;
mod settings;
pub(crate) mod shell;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use admin::{Description, Filter, Listed};
pub(crate) use budget::{Budget, ID_BYTES_MAX};
pub(crate) use coordinator::Coordinator;
pub use describe::describe_transaction;
pub(crate) use metadata::{NO_PRODUCER, PartitionName, Producer};
pub(crate) use request::{
    AddPartitions, EndTransaction, Errand, InitProducerId, Marked, Marking, Place, Progress, Questioner, Questions,
    Surroundings,
};
pub use settings::check_transaction_settings;
pub(crate) use settings::{Settings, TRANSACTION_SETTING_KEYS};
pub(crate) use shell::{TransactionKind, Transactions};
pub(crate) use state::State;
