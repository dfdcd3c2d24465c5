//! The scan beside a model: the same rules over a whole file in memory, which is how they are easiest to read.

use proptest::prelude::*;
use uuid::Uuid;

use super::scan::{Chain, Depth, Judge, Scan, Span};
use crate::{
    api::TopicPartition,
    format::{
        group_reader::decode,
        wal::{Entry, Era, GROUP_HEADER_BYTES, Group, GroupEncoder, SegmentPointer, Stamp, entry_bytes, peek},
    },
    io::{BLOCK, align_up},
};

/// Runs end at this sequence, and entries are needed from this offset on.
#[derive(Clone, Copy)]
struct Counts {
    limit: u64,
    from: i64,
}

const ALL: Counts = Counts { limit: u64::MAX, from: 0 };

impl Judge for Counts {
    fn limit(&self, _stamp: Stamp) -> u64 {
        self.limit
    }

    fn needs(&self, entry: &Entry) -> bool {
        entry.end_offset > self.from
    }
}

/// Scans in pieces of that many bytes, in turn; a piece begins on a border of `align` bytes.
fn scan(file: &[u8], depth: Depth, counts: Counts, pieces: &[usize], align: usize) -> Chain {
    let mut scan = Scan::new(file.len() as u64, depth, counts);
    let mut pieces = pieces.iter().cycle();
    while let Some(wanted) = scan.wants() {
        let begin = usize::try_from(wanted).unwrap() / align * align;
        // A piece has at least what is wanted, unless the file ends.
        let end = (begin + align + pieces.next().unwrap()).min(file.len());
        scan.feed(begin as u64, file.get(begin..end).unwrap_or_default());
    }
    scan.finish()
}

fn whole(file: &[u8]) -> Chain {
    scan(file, Depth::Chain, ALL, &[file.len()], 1)
}

/// The rules, over a whole file.
fn model(file: &[u8], counts: Counts) -> Chain {
    let (groups, end) = chain_from(file, 0);
    let damaged = groups.last().and_then(|(_, last)| later_witness(file, end, last.stamp));
    let mut behind = Vec::new();
    if groups.is_empty() && !file.iter().take(BLOCK).all(|byte| *byte == 0) {
        let mut at = BLOCK;
        while at < file.len() && behind.is_empty() {
            let (found, next) = chain_from(file, at);
            behind.extend(span(found, next, counts));
            at = next + BLOCK;
        }
    }
    Chain { begun: span(groups, end, counts), behind, damaged, unknown: None }
}

fn span(groups: Vec<(u64, Group)>, end: usize, counts: Counts) -> Option<Span> {
    let (begin, first) = groups.first().map(|(begin, group)| (*begin, group.stamp))?;
    let last = groups.last().map(|(_, group)| group.stamp.sequence)?;
    let counted = groups.iter().filter(|(_, group)| group.stamp.sequence <= counts.limit);
    let seen_durable = counted.map(|(_, group)| group.stamp.durable_sequence).max().unwrap_or(0);
    let kept = groups.into_iter().filter_map(|(position, mut group)| {
        group.entries.retain(|entry| counts.needs(entry));
        (!group.entries.is_empty()).then_some((position, group))
    });
    Some(Span { begin, end: end as u64, first, last, seen_durable, kept: kept.collect() })
}

fn chain_from(file: &[u8], mut position: usize) -> (Vec<(u64, Group)>, usize) {
    let mut groups: Vec<(u64, Group)> = Vec::new();
    while let Some(group) = file.get(position..).and_then(decode) {
        let follows = groups.last().is_none_or(|(_, before)| {
            let (before, next) = (before.stamp, group.stamp);
            (before.run, before.shard, before.sequence + 1) == (next.run, next.shard, next.sequence)
        });
        if !follows {
            break;
        }
        let next = position + group.padded();
        groups.push((position as u64, group));
        position = next;
    }
    (groups, position)
}

fn later_witness(file: &[u8], end: usize, last: Stamp) -> Option<(u64, u64)> {
    let missing = last.sequence + 1;
    let mut blocks = (end + BLOCK..file.len()).step_by(BLOCK);
    let bears_witness = |at: usize| {
        peek(&file[at..]).is_some_and(|(stamp, _)| {
            (stamp.run, stamp.shard) == (last.run, last.shard) && stamp.durable_sequence >= missing
        }) && decode(&file[at..]).is_some()
    };
    blocks.any(bears_witness).then_some((missing, end as u64))
}

fn partition(index: i32) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(7), partition: index }
}

/// A group of entries of these sizes; one of 0 bytes is a pointer. Its offsets tell its sequence.
fn group_of(run: u64, sequence: u64, durable_sequence: u64, fill: u8, entries: &[usize]) -> Vec<u8> {
    let inline = |len: &usize| (*len > 0).then_some(*len);
    let size = GROUP_HEADER_BYTES + entries.iter().map(|len| entry_bytes(inline(len))).sum::<usize>();
    let mut bytes = vec![0xAA; usize::try_from(align_up(size as u64)).unwrap()];
    let mut encoder = GroupEncoder::new(&mut bytes);
    let base = i64::try_from(sequence).unwrap() * 10;
    for (index, len) in (0..).zip(entries) {
        match len {
            0 => {
                let pointer = SegmentPointer {
                    segment: 1.into(),
                    position: 2.into(),
                    from_offset: 3.into(),
                    checksum: 4.into(),
                    reserved: 0.into(),
                };
                encoder.pointer(partition(index), (base, base + 2), Era::default(), 300_000, pointer);
            }
            len => encoder.inline(partition(index), (base, base + 2), Era::default(), *len).1.fill(fill),
        }
    }
    encoder.finish(Stamp { run, shard: 1, sequence, durable_sequence }, 99);
    bytes
}

fn group(run: u64, sequence: u64, durable_sequence: u64, fill: u8, len: usize) -> Vec<u8> {
    group_of(run, sequence, durable_sequence, fill, &[len])
}

fn file(groups: &[Vec<u8>]) -> Vec<u8> {
    groups.concat()
}

fn sequences(span: &Span) -> Vec<(u64, u64)> {
    span.kept.iter().map(|(position, group)| (*position, group.stamp.sequence)).collect()
}

#[test]
fn a_chain_is_read_back() {
    let file = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 9000), group(4, 10, 9, 3, 1)]);
    let chain = whole(&file);
    let begun = chain.begun.unwrap();
    assert_eq!(sequences(&begun), [(0, 8), (4096, 9), (4096 + 12288, 10)]);
    assert_eq!((begun.first.sequence, begun.last, begun.seen_durable), (8, 10, 9));
    assert_eq!((begun.begin, begun.end, chain.damaged), (0, file.len() as u64, None));
}

#[test]
fn leftovers_of_a_former_life_end_the_chain() {
    for other in [group(3, 9, 8, 2, 10), group(4, 10, 8, 2, 10), group(4, 8, 7, 2, 10), vec![0; 4096]] {
        for depth in [Depth::Chain, Depth::Everything] {
            let file = file(&[group(4, 8, 7, 1, 100), other.clone()]);
            let chain = scan(&file, depth, ALL, &[4096], 4096);
            assert_eq!(chain.begun.unwrap().last, 8);
            assert_eq!(chain.damaged, None);
        }
    }
}

#[test]
fn every_flipped_bit_ends_the_chain_before_its_group() {
    let good = file(&[group(4, 8, 7, 1, 100), group_of(4, 9, 7, 2, &[300, 0, 5])]);
    let length = GROUP_HEADER_BYTES + entry_bytes(Some(300)) + entry_bytes(None) + entry_bytes(Some(5));
    assert_eq!(whole(&good).begun.unwrap().last, 9);
    for byte in 4096..4096 + length {
        let mut bad = good.clone();
        bad[byte] ^= 1 << (byte % 8);
        assert_eq!(whole(&bad).begun.unwrap().last, 8, "flip in byte {byte}");
    }
}

#[test]
fn a_torn_tail_is_fine_but_a_damaged_durable_group_is_reported() {
    let mut torn = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 10), group(4, 10, 8, 3, 10)]);
    torn[4096 + 70] ^= 1;
    assert_eq!(whole(&torn).damaged, None, "group 10 never saw 9 durable");
    let mut damaged = file(&[group(4, 8, 7, 1, 100), group(4, 9, 7, 2, 10), group(4, 10, 9, 3, 10)]);
    damaged[4096 + 70] ^= 1;
    assert_eq!(whole(&damaged).damaged, Some((9, 4096)));
}

#[test]
fn a_lost_first_group_is_told_from_a_former_life() {
    let mut bad = file(&[group(4, 8, 7, 1, 5000), group(4, 9, 7, 2, 10), group(4, 10, 8, 3, 10)]);
    bad[70] ^= 1;
    let chain = whole(&bad);
    assert!(chain.begun.is_none() && chain.behind.len() == 1);
    let lost = |limit, seen_durable, from| {
        let counts = Counts { limit, from: 0 };
        let chain = scan(&bad, Depth::Chain, counts, &[4096], 1);
        chain.behind[0].lost(limit, seen_durable, |entry: &Entry| entry.end_offset > from)
    };
    assert_eq!(lost(u64::MAX, 0, 101), Some((4, 8)));
    assert_eq!(lost(u64::MAX, 0, 102), None, "nobody needs them");
    assert_eq!(lost(9, 0, 0), None, "the one that saw it durable does not count");
    assert_eq!(lost(9, 8, 0), Some((4, 8)), "another file saw it");
    assert_eq!(lost(7, 8, 0), None, "nothing behind it counts");
    bad[..4096].fill(0);
    assert!(whole(&bad).behind.is_empty(), "a wiped file");
}

#[test]
fn what_is_behind_damage_is_found_by_who_looks_for_everything() {
    let groups: Vec<_> = (8..14).map(|sequence| group(4, sequence, sequence - 1, 1, 5000)).collect();
    let old = [group(4, 3, 2, 1, 10), group(3, 20, 19, 1, 10)];
    let mut bad = file(&[file(&groups), file(&old)].map(|part| part.clone()));
    for lost in [1, 4] {
        bad[lost * groups[0].len() + 70] ^= 1;
    }
    let chain = scan(&bad, Depth::Everything, ALL, &[100], 1);
    let found: Vec<_> = chain.begun.iter().chain(&chain.behind).map(|span| (span.first.sequence, span.last)).collect();
    assert_eq!(found, [(8, 8), (10, 11), (13, 13)]);
}

/// A log whose last groups are cut off at any byte, or damaged at any, is what the model says it is.
#[test]
fn every_cut_and_every_damaged_byte_are_judged_as_by_the_model() {
    let groups = [group(4, 8, 7, 1, 100), group_of(4, 9, 8, 2, &[5000, 0, 40]), group(4, 10, 9, 3, 30)];
    let good = file(&[file(&groups), group(4, 2, 1, 9, 100)]);
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert_eq!(scan(&bad, Depth::Chain, ALL, &[1, 4000, 70], 1), model(&bad, ALL), "damaged at {at}");
        assert_eq!(scan(&good[..at], Depth::Chain, ALL, &[999], 1), model(&good[..at], ALL), "cut at {at}");
        bad.truncate(at);
        bad.resize(good.len(), 0);
        assert_eq!(scan(&bad, Depth::Chain, ALL, &[8192], 4096), model(&bad, ALL), "torn at {at}");
    }
}

#[derive(Clone, Debug)]
enum Harm {
    Flip(prop::sample::Index),
    Cut(prop::sample::Index),
    ZeroBlock(prop::sample::Index),
    WipeFirst,
    Longer(usize),
}

fn harm(file: &mut Vec<u8>, harm: &Harm) {
    match harm {
        _ if file.is_empty() => {}
        Harm::Flip(at) => {
            let at = at.index(file.len());
            file[at] ^= 1;
        }
        Harm::Cut(at) => file.truncate(at.index(file.len())),
        Harm::ZeroBlock(at) => {
            let begin = at.index(file.len()) / BLOCK * BLOCK;
            let end = (begin + BLOCK).min(file.len());
            file[begin..end].fill(0);
        }
        Harm::WipeFirst => {
            let end = BLOCK.min(file.len());
            file[..end].fill(0);
        }
        Harm::Longer(bytes) => file.resize(file.len() + bytes, 0),
    }
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let one = prop_oneof![
        any::<prop::sample::Index>().prop_map(Harm::Flip),
        any::<prop::sample::Index>().prop_map(Harm::Cut),
        any::<prop::sample::Index>().prop_map(Harm::ZeroBlock),
        Just(Harm::WipeFirst),
        (1usize..9000).prop_map(Harm::Longer),
    ];
    prop::collection::vec(one, 0..4)
}

/// Lives of a file: each wrote some groups over what was there.
fn written() -> impl Strategy<Value = Vec<u8>> {
    let entries = prop::collection::vec(prop_oneof![Just(0), 1usize..200, 4000usize..9000], 0..4);
    let groups = prop::collection::vec((entries, 0u64..4), 0..7);
    prop::collection::vec((1u64..4, 1u64..6, groups), 1..4).prop_map(|lives| {
        let mut file = Vec::new();
        for (run, first, groups) in lives {
            let mut bytes = Vec::new();
            for ((entries, lag), sequence) in groups.iter().zip(first..) {
                bytes.extend(group_of(run, sequence, sequence.saturating_sub(*lag), 7, entries));
            }
            let stays = file.split_off(bytes.len().min(file.len()));
            file = bytes;
            file.extend(stays);
        }
        file
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 2000 }))]

    #[test]
    fn in_pieces_of_any_size_the_scan_finds_what_the_model_finds(
        mut file in written(),
        harms in harms(),
        pieces in prop::collection::vec(prop_oneof![1usize..100, 1000usize..20_000], 1..5),
        align in prop_oneof![Just(1usize), Just(512), Just(4096)],
        limit in 0u64..12,
        from in 0i64..120,
    ) {
        harms.iter().for_each(|one| harm(&mut file, one));
        let counts = Counts { limit, from };
        prop_assert_eq!(scan(&file, Depth::Chain, counts, &pieces, align), model(&file, counts));
        let everything = scan(&file, Depth::Everything, counts, &pieces, align);
        prop_assert_eq!(everything.begun, model(&file, counts).begun);
    }

    #[test]
    fn arbitrary_bytes_are_no_chain_and_no_panic(bytes in prop::collection::vec(0u8.., 0..9000)) {
        prop_assert_eq!(whole(&bytes).begun, None);
    }
}
