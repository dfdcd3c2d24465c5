//! What makes several nodes one cluster: who is a member, who leads what, and the channel that carries the log.

pub mod channel;
pub mod cluster;
pub mod shell;
#[cfg(test)]
mod sim;
