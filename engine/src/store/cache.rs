//! The tail cache: groups in memory, oldest first, within a budget. Pure.
//!
//! A group with a live extent is never evicted: it is what materialisation writes from. So the budget also bounds what
//! may be live, and a full cache of live groups stops the log until some are materialised.
//!
//! What is not live stays within a target, which begins low: memory that is used again and again is warm, and the first
//! touch of fresh memory can cost more than all else that is done with a record. The target grows towards the budget by
//! a part of what readers missed: bytes that they read from segments and that a cache of the whole budget would have had.
//! It shrinks by a smaller part of what is written, so that who read everything once is forgotten, and who stays behind
//! by more than the target and less than the budget finds most in memory.
//!
//! Live groups hold up those behind them. Where that keeps much more than the target in memory, it is worth a few flushes
//! to bring to segments what the oldest of them holds, although it is little.

use std::{collections::VecDeque, rc::Rc};

use crate::partition::{PartitionCell, tail::Backing};

/// Partitions with extents in a group, each with the end of its last one there.
type Extents = Vec<(Rc<PartitionCell>, i64)>;

struct Cached {
    backing: Rc<Backing>,
    bytes: usize,
    /// To be pruned when it goes.
    extents: Extents,
}

/// A group that was evicted although the budget had room for it.
struct Ghost {
    bytes: usize,
    extents: Extents,
}

/// See the module.
pub(crate) struct Cache {
    budget: usize,
    /// Groups that are not live are evicted beyond that.
    target: usize,
    bytes: usize,
    groups: VecDeque<Cached>,
    ghosts: VecDeque<Ghost>,
    ghost_bytes: usize,
}

/// What an extent costs beside its bytes.
const EXTENT_OVERHEAD_BYTES: usize = 72;
/// Where the target begins. Consumers at the tail are within some hundred ms of the end.
const TARGET_BYTES_MIN: usize = 16 << 20;
/// Of bytes missed one part in so many makes the target grow,
const GROWTH_PART: usize = 8;
/// and of bytes written one part in so many makes it shrink.
const DECAY_PART: usize = 16;
/// Live groups hold up the others when the cache exceeds its target by so much,
const HELD_UP_BYTES: usize = 8 << 20;
/// and by so much for each partition to be materialised: each costs a flush and is written in whole blocks.
const HELD_UP_BYTES_OF_PARTITION: usize = 128 << 10;

impl Cache {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            target: budget.min(TARGET_BYTES_MIN),
            bytes: 0,
            groups: VecDeque::new(),
            ghosts: VecDeque::new(),
            ghost_bytes: 0,
        }
    }

    /// Bytes that a group will take.
    fn cost(buffer_bytes: usize, extents: usize) -> usize {
        buffer_bytes + extents * EXTENT_OVERHEAD_BYTES
    }

    /// Makes room for a group; `false` when live groups are in the way.
    pub(crate) fn make_room(&mut self, buffer_bytes: usize, extents: usize) -> bool {
        let wanted = Self::cost(buffer_bytes, extents);
        self.evict_to(self.target.saturating_sub(wanted));
        self.bytes + wanted <= self.budget || self.groups.is_empty()
    }

    /// Whether a group may find room now: no live one is in the way.
    pub(crate) fn may_have_room(&self, buffer_bytes: usize, extents: usize) -> bool {
        let is_live = self.groups.front().is_some_and(|oldest| oldest.backing.is_live());
        !is_live || self.bytes + Self::cost(buffer_bytes, extents) <= self.budget
    }

    /// Whether live groups hold up so much memory that materialising what the oldest one holds is worth its cost. What a
    /// round has just set free, and the next group will evict, is not held up.
    pub(crate) fn is_held_up(&self) -> bool {
        let excess = self.bytes.saturating_sub(self.target);
        let Some(oldest) = self.groups.front().filter(|oldest| oldest.backing.is_live()) else { return false };
        excess > HELD_UP_BYTES && oldest.extents.len() <= excess / HELD_UP_BYTES_OF_PARTITION
    }

    /// Adds a group.
    pub(crate) fn insert(&mut self, backing: Rc<Backing>, buffer_bytes: usize, extents: Extents) {
        let bytes = Self::cost(buffer_bytes, extents.len());
        let least = self.budget.min(TARGET_BYTES_MIN);
        self.target = self.target.saturating_sub(bytes / DECAY_PART).max(least);
        self.bytes += bytes;
        self.groups.push_back(Cached { backing, bytes, extents });
        self.forget_ghosts();
    }

    /// Somebody read bytes from a segment that a cache of the whole budget would have had.
    pub(crate) fn missed(&mut self, bytes: usize) {
        self.target = self.budget.min(self.target.saturating_add(bytes / GROWTH_PART));
    }

    fn evict_to(&mut self, bytes: usize) {
        while self.bytes > bytes && self.groups.front().is_some_and(|oldest| !oldest.backing.is_live()) {
            let oldest = self.groups.pop_front().expect("there is a front");
            self.bytes -= oldest.bytes;
            oldest.backing.evict();
            for (partition, _) in &oldest.extents {
                partition.borrow_mut().prune_tail();
            }
            self.ghost_bytes += oldest.bytes;
            self.ghosts.push_back(Ghost { bytes: oldest.bytes, extents: oldest.extents });
        }
        self.forget_ghosts();
    }

    /// Forgets what the budget has no room for.
    fn forget_ghosts(&mut self) {
        while self.bytes + self.ghost_bytes > self.budget {
            let Some(ghost) = self.ghosts.pop_front() else {
                return;
            };
            self.ghost_bytes -= ghost.bytes;
            for (partition, end_offset) in ghost.extents {
                let mut partition = partition.borrow_mut();
                partition.grow_old(end_offset);
            }
        }
    }

    /// Partitions with extents in the oldest group whose extents are live: it holds up what is behind it.
    pub(crate) fn oldest_live(&self) -> impl Iterator<Item = &Rc<PartitionCell>> {
        let oldest = self.groups.iter().find(|cached| cached.backing.is_live());
        let extents = oldest.into_iter().flat_map(|cached| &cached.extents);
        let is_live = |(cell, end): &&(Rc<PartitionCell>, i64)| cell.borrow().marks().materialised() < *end;
        extents.filter(is_live).map(|(cell, _)| cell)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The budget.
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap};

    use super::*;
    use crate::{
        api::TopicPartition,
        config::TopicConfig,
        partition::{Partition, replication::Replication},
        wal::WalFileId,
    };

    const MIB: usize = 1 << 20;
    const BUDGET: usize = 100 * MIB;

    struct Log {
        cache: Cache,
        partition: Rc<PartitionCell>,
        groups: Vec<Rc<Backing>>,
    }

    impl Log {
        fn new() -> Self {
            let id = TopicPartition { topic: uuid::Uuid::nil(), partition: 0 };
            let config = TopicConfig::parse(&BTreeMap::new(), &BTreeMap::new()).expect("defaults are legal");
            let partition = Rc::new(RefCell::new(Partition::new(id, Rc::new(config), Replication::alone())));
            Self { cache: Cache::new(BUDGET), partition, groups: Vec::new() }
        }

        /// Adds a group of almost a MiB; its record is the group's number.
        fn add(&mut self, live: usize) -> bool {
            let bytes = MIB - EXTENT_OVERHEAD_BYTES;
            let room = self.cache.make_room(bytes, 1);
            if room {
                let memory: Rc<dyn crate::chunk::Memory> = Rc::new(Vec::new());
                let backing = Backing::new(memory, WalFileId(1), live);
                self.groups.push(backing.clone());
                self.cache.insert(backing, bytes, vec![(self.partition.clone(), self.groups.len() as i64)]);
            }
            room
        }

        /// Whether the budget would hold what is from there on, and nothing below.
        fn would_hold_from(&self, offset: i64) -> bool {
            let partition = self.partition.borrow();
            partition.could_be_cached(offset) && !partition.could_be_cached(offset - 1)
        }
    }

    #[test]
    fn without_readers_little_is_kept() {
        let mut log = Log::new();
        assert!((0..300).all(|_| log.add(0)));
        assert_eq!(log.cache.bytes(), TARGET_BYTES_MIN);
        let cached = log.groups.iter().filter(|group| group.is_cached()).count();
        assert_eq!(cached, TARGET_BYTES_MIN / MIB);
        assert!(log.would_hold_from(200), "what the budget would hold is known");
        assert_eq!(log.cache.ghost_bytes + log.cache.bytes(), BUDGET);
    }

    #[test]
    fn what_readers_miss_is_kept_until_nobody_misses_it() {
        let mut log = Log::new();
        assert!((0..50).all(|_| log.add(0)));
        log.cache.missed(24 * MIB * GROWTH_PART);
        let grown = TARGET_BYTES_MIN + 24 * MIB;
        assert!((0..80).all(|_| log.add(0)));
        let kept = log.cache.bytes();
        assert!((grown - 6 * MIB..=grown - 4 * MIB).contains(&kept), "a sixteenth of what was written less: {kept}");
        assert!((0..400).all(|_| log.add(0)));
        assert_eq!(log.cache.bytes(), TARGET_BYTES_MIN);
    }

    #[test]
    fn the_budget_is_never_exceeded() {
        let mut log = Log::new();
        for _ in 0..300 {
            log.cache.missed(4 * MIB);
            assert!(log.add(0));
            assert!(log.cache.bytes() <= BUDGET);
        }
        assert!(log.cache.bytes() > BUDGET - 2 * MIB && log.cache.ghost_bytes < 2 * MIB);
    }

    #[test]
    fn a_quiet_partition_does_not_keep_the_cache_large() {
        let mut log = Log::new();
        assert!(log.add(1));
        let full = (TARGET_BYTES_MIN + HELD_UP_BYTES) / MIB;
        assert!((1..full).all(|_| log.add(0) && !log.cache.is_held_up()));
        assert!(log.add(0) && log.cache.is_held_up());
        log.groups[0].end_live();
        log.groups[full].add_live();
        assert!(!log.cache.is_held_up(), "what is between them goes with the next group");
        assert!(log.add(0));
        assert_eq!(log.cache.bytes(), TARGET_BYTES_MIN);
    }

    #[test]
    fn many_small_tails_are_not_worth_their_flushes() {
        let mut log = Log::new();
        let backing = |live| {
            let memory: Rc<dyn crate::chunk::Memory> = Rc::new(Vec::new());
            Backing::new(memory, WalFileId(1), live)
        };
        let partitions = 200;
        log.cache.insert(
            backing(partitions),
            MIB - partitions * EXTENT_OVERHEAD_BYTES,
            vec![(log.partition.clone(), 1); partitions],
        );
        let held_up = (TARGET_BYTES_MIN + partitions * HELD_UP_BYTES_OF_PARTITION) / MIB;
        assert!((2..held_up).all(|_| log.add(0) && !log.cache.is_held_up()));
        assert!(log.add(0) && log.cache.is_held_up());
    }

    #[test]
    fn live_groups_stay_up_to_the_budget() {
        let mut log = Log::new();
        assert!((0..100).all(|_| log.add(1)));
        assert!(!log.add(0), "live groups are in the way");
        log.groups[0].end_live();
        assert!(log.add(0));
        assert!(log.would_hold_from(1));
    }
}
