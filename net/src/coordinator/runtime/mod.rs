//! What all coordinators are run by: state machines whose state is kept in partitions of internal topics.

mod clock;
mod effects;
mod machine;
mod pack;
pub(crate) mod promise;
mod slots;
#[cfg(test)]
mod slots_tests;
#[cfg(test)]
mod test_asker;
mod ticket;

pub(crate) use clock::Clock;
pub(crate) use effects::{Effects, Pending, Then, Write, WriteId};
#[cfg(test)]
pub(crate) use test_asker::Inbox;
pub(crate) use ticket::{Answer, Mark, Reply, Ticket};
