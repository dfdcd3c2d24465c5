//! What all coordinators are run by: state machines whose state is kept in partitions of internal topics.

mod clock;
pub(crate) mod promise;

pub(crate) use clock::Clock;
