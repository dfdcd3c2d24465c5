//! What a restart finds in a shared log's file: the chain of groups from its first byte. Pure.
//!
//! A chain begins with any valid group at position 0 and goes on while the next block boundary holds a valid group of
//! the same run and shard with the next sequence. Whatever follows is left over from the file's former life, or was
//! torn by the crash. A damaged group that was durable is told apart by what later groups say of it; if it was the first
//! of its file, also by whether somebody still needs what lies behind it.

use super::format::{self, Entry, Group, NotAGroup, Stamp};
use crate::io::BLOCK;

/// The groups of one file.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// Position and contents of each group, in order.
    pub groups: Vec<(u64, Group)>,
    /// Of a file that begins neither with a group nor wiped: the first ones behind that follow each other.
    pub behind: Vec<(u64, Group)>,
    /// A group that was durable and is not readable any more: its sequence, and its position.
    pub damaged: Option<(u64, u64)>,
}

impl Chain {
    /// Run, shard and sequence of the first group, which order the files of a log.
    pub fn first(&self) -> Option<Stamp> {
        self.groups.first().map(|(_, group)| group.stamp)
    }

    /// The group in front of those behind, by run and sequence, if it was durable and not everything behind it is done
    /// with: a file is written anew only when it is. `needs`: whether an entry is not in segments yet; `seen_durable`:
    /// what other files say of that run; `limit`: the last sequence that counts in it.
    pub fn lost(&self, limit: u64, seen_durable: u64, needs: impl Fn(&Entry) -> bool) -> Option<(u64, u64)> {
        let (_, first) = self.behind.first()?;
        // The first of all, 1, begins a file.
        let missing = first.stamp.sequence.checked_sub(1).filter(|missing| *missing > 0)?;
        let counts = self.behind.iter().map(|(_, group)| group).take_while(|group| group.stamp.sequence <= limit);
        let durable = counts.clone().map(|group| group.stamp.durable_sequence).fold(seen_durable, u64::max);
        let needed = counts.flat_map(|group| &group.entries).any(needs);
        (needed && missing <= durable).then_some((first.stamp.run, missing))
    }
}

/// Follows the chain in a whole file's bytes.
pub fn chain(file: &[u8]) -> Chain {
    let (groups, position) = chain_from(file, 0);
    let damaged = groups.last().and_then(|(_, last)| later_witness(file, position, last.stamp));
    let mut behind = Vec::new();
    let is_wiped = || file.iter().take(BLOCK).all(|byte| *byte == 0);
    if groups.is_empty() && !is_wiped() {
        let mut at = BLOCK;
        while at < file.len() && behind.is_empty() {
            (behind, at) = chain_from(file, at);
            at += BLOCK;
        }
    }
    Chain { groups, behind, damaged }
}

/// The chain that begins at a position, and where it ends.
fn chain_from(file: &[u8], mut position: usize) -> (Vec<(u64, Group)>, usize) {
    let mut groups: Vec<(u64, Group)> = Vec::new();
    while let Some(rest) = file.get(position..).filter(|rest| !rest.is_empty()) {
        match format::decode(rest) {
            Ok(group) if follows(groups.last().map(|(_, g)| g.stamp), group.stamp) => {
                let next = position + group.padded();
                groups.push((position as u64, group));
                position = next;
            }
            Ok(_) | Err(NotAGroup::Shape | NotAGroup::Short(_) | NotAGroup::Checksum | NotAGroup::Entries) => break,
        }
    }
    (groups, position)
}

fn follows(before: Option<Stamp>, next: Stamp) -> bool {
    before
        .is_none_or(|b| next.run == b.run && next.shard == b.shard && b.sequence.checked_add(1) == Some(next.sequence))
}

/// Looks behind the chain's end for a group of the same life that saw the missing one durable.
fn later_witness(file: &[u8], end: usize, last: Stamp) -> Option<(u64, u64)> {
    let missing = last.sequence.checked_add(1)?;
    let mut at = end + BLOCK;
    while let Some(rest) = file.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some((stamp, _)) = format::peek(rest)
            && (stamp.run, stamp.shard) == (last.run, last.shard)
            && stamp.durable_sequence >= missing
            && format::decode(rest).is_ok()
        {
            return Some((missing, end as u64));
        }
        at += BLOCK;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::TopicPartition,
        io::align_up,
        wal::format::{GROUP_HEADER_BYTES, GroupEncoder, entry_bytes},
    };
    use uuid::Uuid;

    fn group(run: u64, sequence: u64, durable_sequence: u64, fill: u8, len: usize) -> Vec<u8> {
        let size = usize::try_from(align_up((GROUP_HEADER_BYTES + entry_bytes(Some(len))) as u64)).unwrap();
        let mut bytes = vec![0xAA; size];
        let mut encoder = GroupEncoder::new(&mut bytes);
        let partition = TopicPartition { topic: Uuid::from_u128(7), partition: 3 };
        let (_, room) = encoder.inline(partition, (10, 12), len);
        room.fill(fill);
        encoder.finish(Stamp { run, shard: 1, sequence, durable_sequence }, 99);
        bytes
    }

    fn file(groups: &[Vec<u8>]) -> Vec<u8> {
        groups.concat()
    }

    #[test]
    fn a_chain_is_read_back() {
        let file = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 9000), group(4, 10, 9, 3, 1)]);
        let chain = chain(&file);
        assert_eq!(
            chain.groups.iter().map(|(p, g)| (*p, g.stamp.sequence)).collect::<Vec<_>>(),
            [(0, 8), (4096, 9), (4096 + 12288, 10)]
        );
        assert_eq!(chain.damaged, None);
    }

    #[test]
    fn leftovers_of_a_former_life_end_the_chain() {
        for other in [group(3, 9, 8, 2, 10), group(4, 10, 8, 2, 10), group(4, 8, 7, 2, 10), vec![0; 4096]] {
            let chain = chain(&file(&[group(4, 8, 7, 1, 100), other]));
            assert_eq!(chain.groups.len(), 1);
            assert_eq!(chain.damaged, None);
        }
    }

    #[test]
    fn every_flipped_bit_ends_the_chain_before_its_group() {
        let good = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 300)]);
        let length = GROUP_HEADER_BYTES + entry_bytes(Some(300));
        for byte in 4096..4096 + length {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            assert_eq!(chain(&bad).groups.len(), 1, "flip in byte {byte}");
        }
    }

    #[test]
    fn a_torn_tail_is_fine_but_a_damaged_durable_group_is_reported() {
        let mut torn = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 10), group(4, 10, 8, 3, 10)]);
        torn[4096 + 70] ^= 1;
        assert_eq!(chain(&torn).damaged, None, "group 10 never saw 9 durable");
        let mut damaged = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 10), group(4, 10, 9, 3, 10)]);
        damaged[4096 + 70] ^= 1;
        assert_eq!(chain(&damaged).damaged, Some((9, 4096)));
    }

    #[test]
    fn a_lost_first_group_is_told_from_a_former_life() {
        let mut bad = file(&[group(4, 8, 7, 1, 5000), group(4, 9, 7, 2, 10), group(4, 10, 8, 3, 10)]);
        bad[70] ^= 1;
        let chain = chain(&bad);
        assert!(chain.groups.is_empty() && chain.behind.len() == 2);
        assert_eq!(chain.lost(u64::MAX, 0, |entry| entry.end_offset > 11), Some((4, 8)));
        assert_eq!(chain.lost(u64::MAX, 0, |entry| entry.end_offset > 12), None, "nobody needs them");
        assert_eq!(chain.lost(9, 0, |_| true), None, "the one that saw it durable does not count");
        assert_eq!(chain.lost(9, 8, |_| true), Some((4, 8)), "another file saw it");
        assert_eq!(chain.lost(7, 8, |_| true), None, "nothing behind it counts");
        bad[..4096].fill(0);
        assert!(super::chain(&bad).behind.is_empty(), "a wiped file");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_no_chain_and_no_panic(bytes in proptest::collection::vec(0u8.., 0..9000)) {
            assert!(chain(&bytes).groups.is_empty());
        }
    }
}
