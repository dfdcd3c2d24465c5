//! What a reader sees of transactions: the records of all of them, or only of those that are committed.

/// What a reader sees of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolationLevel {
    /// Everything, also of transactions that are open or were aborted.
    ReadUncommitted,
    /// Up to the first transaction that is open, and nothing of those that were aborted.
    ReadCommitted,
}

impl IsolationLevel {
    /// As requests carry it.
    pub fn on_the_wire(self) -> i8 {
        match self {
            Self::ReadUncommitted => 0,
            Self::ReadCommitted => 1,
        }
    }
}
