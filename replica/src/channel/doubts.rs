//! Nodes whose processes are likely to be gone, though they are not fenced yet: what they lead has no leader soon. No proof, and
//! nothing but what clients are told rests on it.
//!
//! Of a whole node: each of its shards sees signs on connections of its own, and all shards hear of them. Who is doubted is asked
//! on all connections that stand, and an answer on any of them ends the doubt; so neither one connection that is silent nor
//! signs that crossed each other leave one standing. Of a node to which there is no other connection, one sign is all
//! there is: it counts until a connection is taken, or until the node would have been fenced.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::model::{Member, NodeId};

/// What a shard saw of the process of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A connection to it that worked was closed from there, as by a process that ends, or has fallen silent.
    Gone,
    /// It has welcomed a connection, or answered on one when it was doubted.
    There,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Doubts {
    /// Whose process, and since when, in ms.
    gone: BTreeMap<NodeId, (Member, u64)>,
}

impl Doubts {
    /// Takes a sign of a life. Whether that changed who is doubted.
    pub fn note(&mut self, now_ms: u64, member: Member, sign: Sign) -> bool {
        let before = self.gone.get(&member.node).map(|(before, _)| *before);
        match sign {
            // what other shards see of the same end does not begin it anew
            Sign::Gone if before.is_some_and(|before| before.epoch >= member.epoch) => false,
            Sign::Gone => {
                self.gone.insert(member.node, (member, now_ms));
                true
            }
            Sign::There => {
                let is_over = before.is_some_and(|before| before.epoch <= member.epoch);
                if is_over {
                    self.gone.remove(&member.node);
                }
                is_over
            }
        }
    }

    /// Forgets what is as old as that, in ms, and lives that are over. Whether that changed who is doubted.
    pub fn forget(&mut self, now_ms: u64, age_ms_max: u64, lives: impl Fn(Member) -> bool) -> bool {
        let before = self.gone.len();
        self.gone.retain(|_, (member, since)| lives(*member) && now_ms.saturating_sub(*since) < age_ms_max);
        self.gone.len() < before
    }

    /// The nodes that are doubted.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.gone.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVING: Member = Member { node: 1, epoch: 7 };

    #[test]
    fn many_shards_see_one_end_and_one_of_them_that_it_was_none() {
        let mut doubts = Doubts::default();
        assert!(doubts.note(0, LIVING, Sign::Gone));
        assert!(!doubts.note(9, LIVING, Sign::Gone), "another shard saw it too");
        assert_eq!(doubts.nodes(), [1].into());
        assert!(!doubts.note(10, Member { epoch: 6, ..LIVING }, Sign::There), "a life before that one");
        assert!(doubts.note(10, LIVING, Sign::There));
        assert_eq!(doubts.nodes(), [].into());
        assert!(!doubts.note(11, LIVING, Sign::There));
    }

    #[test]
    fn a_doubt_ends_with_the_life_or_with_time() {
        let mut doubts = Doubts::default();
        doubts.note(0, LIVING, Sign::Gone);
        doubts.note(4_999, LIVING, Sign::Gone);
        assert!(!doubts.forget(4_999, 5_000, |_| true));
        assert!(doubts.forget(5_000, 5_000, |_| true), "it counts from the first sign");
        doubts.note(0, LIVING, Sign::Gone);
        assert!(doubts.forget(1, 5_000, |member| member.epoch != LIVING.epoch));
        assert!(doubts.note(2, Member { epoch: 8, ..LIVING }, Sign::Gone));
    }
}
