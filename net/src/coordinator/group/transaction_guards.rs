//! Who asks whether a transaction is open, in order to write in it, and has not come back yet: if the transaction ends
//! meanwhile, what was found out is of the past (KAFKA-14884).
//!
//! Always holds: a guard is good for one write, and for none once a marker of its producer was begun, or where it was not
//! given: a coordinator that was loaded meanwhile knows nothing of it.

use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct TransactionGuards {
    /// The guards that were given, by producer. No set is empty.
    given: BTreeMap<i64, BTreeSet<String>>,
}

/// A guard: the producer's id, and a text that no other guard has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransactionGuard {
    producer_id: i64,
    unique: String,
}

impl TransactionGuards {
    /// Gives one to who is about to ask.
    pub(crate) fn give(&mut self, producer_id: i64, unique: String) -> TransactionGuard {
        self.given.entry(producer_id).or_default().insert(unique.clone());
        TransactionGuard { producer_id, unique }
    }

    /// Takes one back. Answers whether no transaction of its producer has ended since it was given.
    pub(crate) fn take(&mut self, guard: &TransactionGuard) -> bool {
        let Some(given) = self.given.get_mut(&guard.producer_id) else { return false };
        let is_good = given.remove(&guard.unique);
        if given.is_empty() {
            self.given.remove(&guard.producer_id);
        }
        is_good
    }

    /// A transaction of a producer ends.
    pub(crate) fn end(&mut self, producer_id: i64) {
        self.given.remove(&producer_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_good_once_and_until_the_end_of_the_transaction() {
        let mut guards = TransactionGuards::default();
        let (a, b) = (guards.give(1, "a".to_owned()), guards.give(1, "b".to_owned()));
        let other = guards.give(2, "c".to_owned());
        assert_eq!([guards.take(&a), guards.take(&a)], [true, false]);
        guards.end(1);
        let later = guards.give(1, "d".to_owned());
        assert_eq!([guards.take(&b), guards.take(&later), guards.take(&other)], [false, true, true]);
        assert!(guards.given.is_empty());
        assert!(!TransactionGuards::default().take(&other), "it was given by another");
    }
}
