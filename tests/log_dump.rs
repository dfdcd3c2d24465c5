//! `millrace log dump` on files made with the engine's encoders.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use std::{fs, path::Path};

use bytes::Bytes;
use millrace_engine::{
    api::TopicPartition,
    batch::{BatchBuilder, BatchInfo, Codec, Record},
    format::{
        catalog::{self, StoredTopic},
        manifest::{self, Advance, Cut},
        placement::PlacedRun,
        segment::{Segment, encode_footer},
        wal::{ENTRY_HEADER_BYTES, Era, GROUP_HEADER_BYTES, GroupEncoder, SegmentPointer, Stamp, entry_bytes},
    },
};
use uuid::Uuid;

mod broker;
use broker::{run, stdout};

const TOPIC: &str = "50a29d5d-31be-4db2-bd1c-e2f0bc8ba4da";

fn batch(base_offset: i64, values: &[&'static str]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::Lz4, base_offset);
    for (at, value) in values.iter().enumerate() {
        builder.push(&Record {
            offset: base_offset + i64::try_from(at).unwrap(),
            timestamp: 951_827_696_789,
            key: Some(Bytes::from_static(b"key")),
            value: Some(Bytes::from(*value)),
            headers: vec![(Bytes::from_static(b"h"), None)],
        });
    }
    builder.finish()
}

const ERA: Era = Era { leader_epoch: 3, cuts: 2 };

fn group(sequence: u64, durable_sequence: u64, batches: &[u8], offsets: (i64, i64)) -> Vec<u8> {
    let wanted = GROUP_HEADER_BYTES + entry_bytes(Some(batches.len())) + entry_bytes(None) + 2 * ENTRY_HEADER_BYTES;
    let mut bytes = vec![0; wanted.next_multiple_of(4096)];
    let mut encoder = GroupEncoder::new(&mut bytes);
    let partition = TopicPartition { topic: TOPIC.parse().unwrap(), partition: 3 };
    let (_, room) = encoder.inline(partition, offsets, ERA, batches.len());
    room.copy_from_slice(batches);
    let other = TopicPartition { topic: Uuid::from_u128(7), partition: 0 };
    let pointer = SegmentPointer {
        segment: 0.into(),
        position: 4096.into(),
        from_offset: 5.into(),
        checksum: 77.into(),
        reserved: 0.into(),
    };
    encoder.pointer(other, (5, 9), ERA, 300_000, pointer);
    encoder.cut(other, (9, 7), Era { leader_epoch: 4, cuts: 3 });
    encoder.epoch_start(other, 7, Era { leader_epoch: 5, cuts: 3 });
    encoder.finish(Stamp { run: 2, shard: 1, sequence, durable_sequence }, 951_827_696_789);
    bytes
}

fn wal() -> Vec<u8> {
    let groups = [
        group(1, 0, &batch(0, &["one", "two"]), (0, 2)),
        group(2, 1, &batch(2, &["three"]), (2, 3)),
        group(3, 2, &batch(3, &["four"]), (3, 4)),
        vec![0; 8192],
    ];
    groups.concat()
}

fn segment(sealed: bool) -> (Vec<u8>, Segment) {
    let mut segment = Segment::begin(0, 1);
    let mut bytes = Vec::new();
    for batch in [batch(0, &["one", "two"]), batch(2, &["three"])] {
        segment.push(&BatchInfo::parse(&batch).unwrap());
        bytes.extend(batch);
    }
    if sealed {
        segment.sealed = true;
        bytes.resize(usize::try_from(segment.footer_position()).unwrap(), 0);
        bytes.extend(encode_footer(&segment));
    } else {
        bytes.resize(4096, 0);
    }
    (bytes, segment)
}

/// Writes the file and dumps it; returns exit code and output.
fn dump(dir: &Path, name: &str, bytes: &[u8], options: &[&str]) -> (Option<i32>, String) {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    let mut arguments = vec!["log", "dump", path.to_str().unwrap()];
    arguments.extend(options);
    let output = run(&arguments);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    (output.status.code(), stdout(&output))
}

#[test]
fn a_log_is_summed_up_and_shown_at_every_depth() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = dump(dir.path(), "00000001.wal", &wal(), &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("shard 1: groups 1 to 3 of run 2, 2 partitions, 12288 of 20480 bytes"), "{text}");
    assert!(text.ends_with("no damage found\n") && !text.contains("batch "), "{text}");

    let (_, text) = dump(dir.path(), "00000001.wal", &wal(), &["--batches"]);
    assert!(text.contains("group 2 at byte 4096: run 2, 4 entries, "), "{text}");
    let other = "00000000-0000-0000-0000-000000000007/0";
    assert!(text.contains(&format!("{other} cut from 9 to 7: cut 3, leader epoch 4")), "{text}");
    assert!(text.contains(&format!("{other} 7: leader epoch 5 began")), "{text}");
    assert!(text.contains(&format!("{TOPIC}/3 0..2: ")), "{text}");
    assert!(text.contains("5..9: 300000 bytes in segment 0 at byte 4096"), "{text}");
    assert!(text.contains("2 records, lz4, max time 2000-02-29T12:34:56.789Z"), "{text}");
    assert!(!text.contains("three"), "{text}");

    let (_, text) = dump(dir.path(), "00000001.wal", &wal(), &["--records"]);
    assert!(text.contains("2 2000-02-29T12:34:56.789Z key \"key\" header \"h\"=null value \"three\""), "{text}");
}

#[test]
fn a_torn_end_of_a_log_is_no_damage_but_a_lost_durable_group_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut torn = wal();
    torn[2 * 4096 + 70] ^= 1;
    let (code, text) = dump(dir.path(), "00000001.wal", &torn, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("groups 1 to 2 of run 2"), "{text}");

    let mut lost = wal();
    lost[4096 + 70] ^= 1;
    let (code, text) = dump(dir.path(), "00000001.wal", &lost, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("DAMAGED: group 2 at byte 4096 was durable"), "{text}");
}

#[test]
fn wrong_offsets_inside_a_group_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = group(1, 0, &batch(1, &["one", "two"]), (0, 2));
    let (code, text) = dump(dir.path(), "00000001.wal", &wrong, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("offset 0 expected, 1 found"), "{text}");
}

#[test]
fn segments_are_checked_with_and_without_a_footer() {
    let dir = tempfile::tempdir().unwrap();
    for (sealed, word) in [(true, "sealed, 1 index entries"), (false, "only zeroes follow")] {
        let (bytes, _) = segment(sealed);
        let (code, text) = dump(dir.path(), "00000000000000000000.log", &bytes, &["--records"]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("2 batches, 3 records, offsets 0..3") && text.contains(word), "{text}");
        assert!(text.contains("value \"two\""), "{text}");
    }
}

#[test]
fn every_flipped_byte_of_a_sealed_segment_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (good, segment) = segment(true);
    let batches = usize::try_from(segment.size).unwrap();
    let footer = usize::try_from(segment.footer_position()).unwrap();
    // Inside the batches' checksums: all but base offset, length, epoch, magic and the checksum of the first.
    let positions = (17..batches).step_by(7).filter(|at| *at < 80 || *at > 160).chain((footer..footer + 96).step_by(9));
    for at in positions {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let (code, text) = dump(dir.path(), "00000000000000000000.log", &bad, &[]);
        assert_eq!(code, Some(1), "byte {at}: {text}");
        assert!(text.contains("DAMAGED"), "byte {at}: {text}");
    }
}

#[test]
fn a_cut_off_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, segment) = segment(false);
    let cut = usize::try_from(segment.size).unwrap() - 10;
    let (code, text) = dump(dir.path(), "00000000000000000000.log", &bytes[..cut], &[]);
    assert_eq!(code, Some(1), "{text}");
}

/// A journal of one page.
fn journal(records: &[Vec<u8>]) -> Vec<u8> {
    let framed = |record: &Vec<u8>| [&u32::try_from(record.len()).unwrap().to_le_bytes()[..], record].concat();
    let payload = records.iter().flat_map(framed).collect::<Vec<u8>>();
    let header = [&1_u64.to_le_bytes()[..], &u32::try_from(payload.len()).unwrap().to_le_bytes(), &[0; 4]].concat();
    let checked = [header, payload].concat();
    let mut page = [&b"MRP1"[..], &crc32c::crc32c(&checked).to_le_bytes(), &checked].concat();
    page.resize(page.len().next_multiple_of(4096), 0);
    page
}

#[test]
fn a_catalog_shows_its_format_and_where_partitions_are() {
    let dir = tempfile::tempdir().unwrap();
    let topic = TOPIC.parse().unwrap();
    let stored = StoredTopic { name: "orders".to_owned(), partitions: 3, overrides: [].into() };
    let run = PlacedRun { partitions: 2, leader_epoch: 7, replicas: vec![4, 5] };
    let records = [
        catalog::Record::Node { format: 2, cluster_id: Uuid::from_u128(1), node_id: 4 },
        catalog::Record::Feature("replication".to_owned()),
        catalog::Record::Topic(topic, stored),
        catalog::Record::Placement { topic, first: 1, runs: vec![run] },
    ];
    let records: Vec<_> = records.iter().map(catalog::encode).collect();
    let (code, text) = dump(dir.path(), "catalog", &journal(&records), &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("format 2, features replication"), "{text}");
    assert!(
        text.contains("1 partitions on nodes 4 in leader epoch 0, 2 partitions on nodes 4 5 in leader epoch 7"),
        "{text}"
    );
    let unknown = [records, vec![vec![99]]].concat();
    let (code, text) = dump(dir.path(), "catalog", &journal(&unknown), &[]);
    assert!(code == Some(1) && text.contains("DAMAGED: a record of an unknown kind, 99"), "{text}");
}

#[test]
fn a_manifest_shows_epochs_and_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let partition = TopicPartition { topic: TOPIC.parse().unwrap(), partition: 3 };
    let (_, open) = segment(false);
    let advance = Advance { high_watermark: 3, cuts: 4, segments: vec![open.meta()], ..Advance::default() };
    let cut = Cut { end_offset: 2, cuts: 5, segments: vec![open.meta()], ..Cut::default() };
    let records = [manifest::Record::Advance(advance), manifest::Record::Cut(cut)];
    let records: Vec<_> = records.iter().map(|record| manifest::encode(partition, record)).collect();
    let (code, text) = dump(dir.path(), "manifest-1-0", &journal(&records), &["--batches"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("advance, high watermark 3, 4 cuts, segment 0..3 of "), "{text}");
    assert!(text.contains("cut to 2, 5 cuts, segment 0..3 of "), "{text}");
    assert!(text.contains("high watermark 2, 5 cuts"), "{text}");
}

#[test]
fn nonsense_is_told_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = (0..10_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    for name in ["00000000000000000000.log", "manifest-1-0", "catalog"] {
        for bytes in [&noise[..], &noise[..7]] {
            let (code, text) = dump(dir.path(), name, bytes, &["--records"]);
            assert_eq!(code, Some(1), "{name}: {text}");
        }
    }
    let (code, text) = dump(dir.path(), "00000001.wal", &noise, &["--records"]);
    assert_eq!(code, Some(0), "what is no group yet is room to write: {text}");
    let output = run(&["log", "dump", "/does/not/exist"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "error: cannot read /does/not/exist: No such file or directory\n");
    let (code, _) = dump(dir.path(), "notes.txt", b"x", &[]);
    assert_eq!(code, Some(2));
}
