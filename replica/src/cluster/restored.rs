//! How a store that was restored from a backup is known: it must not be gone on with, as what was decided since then is
//! forgotten. See [`super::adoption`] for the way out.
//!
//! What a node has seen of a store tells it, if the store is another one or behind that now. That does not help a node that
//! saw nothing, or nothing since the backup was made. But etcd's revision and its Raft log tell everybody: each entry of the log
//! makes one revision at most, so revisions never get further ahead of the log; a restore keeps the revision, and begins a new
//! log. How far they were ahead is written down when a cluster is founded or adopted, and comes back with every backup.

/// What was seen of the store in former lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Which store.
    pub store: u64,
    /// How far it was.
    pub revision: i64,
}

/// How far a store is, as one of its members knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its revision.
    pub revision: i64,
    /// Entries of its Raft log that were committed by then, or later.
    pub index: i64,
}

/// How far revisions are ahead of the Raft log; below zero if they are behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The revision that this is of.
    at: i64,
    /// At most so much less than the truth as others wrote while it was asked for.
    low: i64,
    /// So much more.
    high: i64,
}

/// What was written down of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// No less than it was then; none if the store does not tell.
    pub ahead: Option<i64>,
    /// The revision that wrote it down; 0 for none.
    pub since: i64,
}

/// What a store shows of itself.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Which store, and how far it is.
    pub seen: Remembered,
    /// Nothing if it does not tell.
    pub ahead: Option<Ahead>,
    /// With its keys.
    pub mark: Mark,
}

impl Ahead {
    /// By what a member told, and a revision that the store had after that.
    pub fn new(told: Progress, revision_after: i64) -> Self {
        Self { at: told.revision, low: told.revision - told.index, high: revision_after - told.index }
    }

    /// What was written since the store was restored has a later revision.
    pub fn restored_at(&self) -> i64 {
        self.low
    }

    /// What may be written down of it.
    pub fn mark(&self) -> i64 {
        self.high
    }
}

impl Shown {
    /// Whether it was restored since the mark was written.
    pub fn is_restored(&self) -> bool {
        self.tells() == Some(true)
    }

    /// Whether it was restored since the mark was written; nothing if that cannot be told.
    pub fn tells(&self) -> Option<bool> {
        // a member that lags behind the mark tells of before
        let ahead = self.ahead.filter(|ahead| ahead.at >= self.mark.since);
        ahead.zip(self.mark.ahead).map(|(ahead, marked)| ahead.low > marked)
    }

    /// Whether the store may be gone on with by a node that has seen that before; the error says why not.
    ///
    /// # Errors
    /// If it is another one, or has forgotten something.
    pub fn check(&self, before: Option<Remembered>) -> Result<(), String> {
        if let Some(before) = before {
            self.compare(before)?;
        }
        match self.is_restored() {
            true => Err(format!(
                "etcd was restored from a backup, as its revision {} is further ahead of its Raft log than it ever was: run \
                 `millrace cluster adopt` on every node that was in the cluster, before any is started",
                self.seen.revision
            )),
            false => Ok(()),
        }
    }

    fn compare(&self, before: Remembered) -> Result<(), String> {
        let now = self.seen;
        if before.store != now.store {
            return Err(format!(
                "this etcd is another one than before (its cluster id is {:x}, it was {:x}): point --etcd at the former, or, if \
                 that was lost and restored from a backup, run `millrace cluster adopt` on every node",
                now.store, before.store
            ));
        }
        if now.revision < before.revision {
            return Err(format!(
                "etcd went back in time: it is at revision {}, this node has seen {}. If it was restored from a backup, run \
                 `millrace cluster adopt` on every node",
                now.revision, before.revision
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_restored(ahead: Ahead, marked: Option<i64>, since: i64) -> bool {
        let mark = Mark { ahead: marked, since };
        Shown { seen: Remembered { store: 1, revision: ahead.at }, ahead: Some(ahead), mark }.is_restored()
    }

    /// An etcd: its revision and its log.
    fn grow(etcd: &mut Progress, entries: &[bool]) {
        for writes in entries {
            etcd.revision += i64::from(*writes);
            etcd.index += 1;
        }
    }

    proptest! {
        /// Whatever is written between one question and the next, and whichever members answer.
        #[test]
        fn an_etcd_that_lives_is_never_taken_for_a_restored_one(
            lives in proptest::collection::vec(any::<bool>(), 0..200),
            cuts in (0_usize..200, 0_usize..200, 0_usize..200, 0_usize..200, 0_usize..200),
            lag in 0_usize..20,
        ) {
            let mut cuts = [cuts.0, cuts.1, cuts.2, cuts.3, cuts.4];
            cuts.sort_unstable();
            let at = |entries: usize| {
                let mut etcd = Progress { revision: 1, index: 3 };
                grow(&mut etcd, &lives[..entries.min(lives.len())]);
                etcd
            };
            // a member that lags tells a revision and an index of different moments, the index of the later one
            let told = |from: usize, to: usize| Progress { revision: at(from).revision, index: at(to).index };
            let mark = Ahead::new(told(cuts[0].saturating_sub(lag), cuts[0]), at(cuts[1]).revision).mark();
            let since = at(cuts[2]).revision;
            let ahead = Ahead::new(told(cuts[3], cuts[4]), at(cuts[4]).revision);
            prop_assert!(!is_restored(ahead, Some(mark), since));
        }

        /// Whether or not its revisions were raised, from a backup of the very moment, and after whatever others wrote since.
        #[test]
        fn a_restored_etcd_is_known(before in 10_i64..2_000_000_000, leases in 0_i64..1_000_000, since in 0_i64..5) {
            let mark = Ahead::new(Progress { revision: 2, index: 5 }, 2).mark();
            let etcd = Progress { revision: before + since, index: 3 + since };
            let ahead = Ahead::new(etcd, etcd.revision);
            prop_assert!(is_restored(ahead, Some(mark), 3));
            // adopted, and restored again from the same backup
            let mark = Ahead::new(Progress { revision: etcd.revision + 1, index: etcd.index + 2 + leases }, etcd.revision + 1);
            prop_assert!(is_restored(ahead, Some(mark.mark()), 3));
            prop_assert!(!is_restored(mark, Some(mark.mark()), 3));
        }
    }

    #[test]
    fn a_member_that_lags_behind_the_mark_tells_nothing() {
        let ahead = Ahead::new(Progress { revision: 10, index: 12 }, 10);
        assert!(is_restored(ahead, Some(-5), 10));
        assert!(!is_restored(ahead, Some(-5), 11));
        assert!(!is_restored(ahead, None, 1), "nobody wrote it down");
    }
}
