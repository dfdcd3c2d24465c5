//! What all coordinators are run by: state machines whose state is kept in partitions of internal topics.
//!
//! A [`Machine`] decides, in plain code. [`Slots`](slots::Slots) decide which machine is loaded, serves or is forgotten.
//! The [`Runtime`] of a shard reads, writes and keeps time for all machines of a [`Kind`].

mod clock;
mod effects;
mod flush;
mod load;
mod machine;
mod marker;
mod pack;
pub(crate) mod promise;
mod route;
mod shell;
#[cfg(test)]
mod shell_tests;
mod slots;
#[cfg(test)]
mod slots_tests;
#[cfg(test)]
mod test_asker;
mod ticket;

pub(crate) use clock::Clock;
pub(crate) use effects::{Effects, Pending, Then, Write, WriteId};
pub(crate) use load::contiguous;
pub(crate) use machine::{LogRecord, Machine, Replayed, Verdict};
pub(crate) use marker::ReplayedMarker;
pub(crate) use promise::Gate;
pub(crate) use route::{AttachedControl, ClusterControl, next_producer_id};
pub(crate) use shell::{Kind, Runtime};
pub(crate) use ticket::{Answer, Mark, Reply, Ticket};
#[cfg(test)]
pub(crate) use {
    flush::{Key, Run, append_atomically, runs},
    promise::Promise,
    slots::{Actions, AppendFailure, Entrance, Load, Slots},
    test_asker::Inbox,
};
