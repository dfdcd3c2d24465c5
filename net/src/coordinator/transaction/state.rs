//! The states of a transaction, with Kafka's numbers and names (`TransactionState`).

/// What a transactional id's transaction is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i8)]
pub(crate) enum State {
    /// The id has a producer and had no transaction yet.
    Empty = 0,
    /// Partitions were added.
    Ongoing = 1,
    /// It was decided that it counts; not all partitions have their markers yet.
    PrepareCommit = 2,
    /// It was decided that it does not count.
    PrepareAbort = 3,
    /// All partitions know that it counts.
    CompleteCommit = 4,
    /// All partitions know that it does not.
    CompleteAbort = 5,
}

/// All of them.
pub(crate) const STATES: [State; 6] = [
    State::Empty,
    State::Ongoing,
    State::PrepareCommit,
    State::PrepareAbort,
    State::CompleteCommit,
    State::CompleteAbort,
];

impl State {
    /// The state of a number in the log. Kafka's 6 (Dead) and 7 (PrepareEpochFence) are never there.
    pub(crate) fn of_number(number: i8) -> Option<Self> {
        STATES.into_iter().find(|state| *state as i8 == number)
    }

    /// The state of that name.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.name() == name)
    }

    /// As clients are told it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }

    /// Whether it is decided, but not everywhere known.
    pub(crate) fn is_prepared(self) -> bool {
        matches!(self, Self::PrepareCommit | Self::PrepareAbort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_their_states() {
        for state in STATES {
            assert_eq!(State::of_number(state as i8), Some(state));
            assert_eq!(State::of_name(state.name()), Some(state));
        }
        assert_eq!([-1, 6, 7].map(State::of_number), [None; 3]);
        assert_eq!(State::of_name("empty"), None);
    }
}
