//! Ties FORMAT.md to the code: every structure is laid out here by the offsets of its drawing, and the encoders must
//! write the same bytes. A failure means that the format has changed: then FORMAT.md, its version and the fixture of
//! `tests/fixture.rs` have to follow.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::{
    api::TopicPartition,
    batch::BatchInfo,
    format::{
        catalog::{self, StoredTopic},
        group_reader::decode,
        journal::{self, Journal, Payloads},
        manifest::{self, Advance, ProducerBatch, Replace},
        placement::PlacedRun,
        segment::{self, IndexEntry, Segment, SegmentMeta},
        wal::{GroupEncoder, SegmentPointer, Stamp},
    },
    io::sim::Sim,
};

const TOPIC: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const PARTITION: TopicPartition = TopicPartition { topic: TOPIC, partition: 0x0102_0304 };

/// Bytes of a length with these fields at their offsets and zeroes elsewhere.
fn layout(len: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, field) in fields {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

/// Puts the checksum of a range at bytes 4 to 8, where all our structures have it.
fn with_checksum(mut bytes: Vec<u8>, end: usize) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes[8..end]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn entry_header(kind: u8, offsets: (i64, i64), length: u32, payload: u32) -> Vec<u8> {
    layout(
        48,
        &[
            (0, TOPIC.as_bytes()),
            (16, &0x0102_0304_i32.to_le_bytes()),
            (20, &[kind]),
            (24, &offsets.0.to_le_bytes()),
            (32, &offsets.1.to_le_bytes()),
            (40, &length.to_le_bytes()),
            (44, &payload.to_le_bytes()),
        ],
    )
}

#[test]
fn a_group_is_as_drawn() {
    let mut written = vec![0xAA; 4096];
    let mut encoder = GroupEncoder::new(&mut written);
    encoder.inline(PARTITION, (1000, 1003), 5).1.copy_from_slice(b"batch");
    let pointer = SegmentPointer {
        segment: 900.into(),
        position: 0x1234_5678_9abc.into(),
        from_offset: 1003.into(),
        checksum: 0xdead_beef.into(),
        reserved: 0.into(),
    };
    encoder.pointer(PARTITION, (1003, 1010), 300_000, pointer);
    let stamp = Stamp { run: 7, shard: 3, sequence: 0x1_0000_0002, durable_sequence: 0x1_0000_0001 };
    let length = encoder.finish(stamp, 1_700_000_000_123);

    assert_eq!(length, 64 + 48 + 5 + 48 + 32);
    let pointer = layout(
        32,
        &[
            (0, &900_i64.to_le_bytes()),
            (8, &0x1234_5678_9abc_u64.to_le_bytes()),
            (16, &1003_i64.to_le_bytes()),
            (24, &0xdead_beef_u32.to_le_bytes()),
        ],
    );
    let drawn = layout(
        4096,
        &[
            (0, b"MRG1"),
            (8, &7_u64.to_le_bytes()),
            (16, &3_u32.to_le_bytes()),
            (20, &2_u32.to_le_bytes()),
            (24, &0x1_0000_0002_u64.to_le_bytes()),
            (32, &0x1_0000_0001_u64.to_le_bytes()),
            (40, &197_u32.to_le_bytes()),
            (48, &1_700_000_000_123_i64.to_le_bytes()),
            (64, &entry_header(0, (1000, 1003), 5, 5)),
            (112, b"batch"),
            (117, &entry_header(1, (1003, 1010), 300_000, 32)),
            (165, &pointer),
        ],
    );
    assert_eq!(written, with_checksum(drawn, length));
    assert_eq!(decode(&written).unwrap().entries.len(), 2);
}

#[test]
fn a_journal_is_as_drawn() {
    let sim = Sim::new(1);
    let path = std::path::PathBuf::from("/journal");
    let mut payloads = Payloads::default();
    payloads.push(b"one");
    payloads.push(b"three");
    let payloads = payloads.finish();
    sim.run_until(async {
        let mut journal = Journal::create(sim.io(), path.clone(), &payloads).await.unwrap();
        journal.append(b"next").await.unwrap();
    })
    .unwrap();
    let page = |sequence: u64, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap();
        let fields: [(usize, &[u8]); 4] =
            [(0, b"MRP1"), (8, &sequence.to_le_bytes()), (16, &length.to_le_bytes()), (24, payload)];
        with_checksum(layout(4096, &fields), 24 + payload.len())
    };
    let drawn = [page(1, b"\x03\0\0\0one\x05\0\0\0three"), page(2, b"next")].concat();
    assert_eq!(sim.file(&path).unwrap(), drawn);
    let pages = journal::pages(&drawn).unwrap();
    assert_eq!(journal::records(pages[0]).unwrap(), [&b"one"[..], b"three"]);
}

#[test]
fn catalog_records_are_as_drawn() {
    let string = |text: &str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
    let overrides = BTreeMap::from([("retention.ms".to_owned(), "5".to_owned())]);
    let topic = StoredTopic { name: "orders".into(), partitions: 12, overrides };
    let drawn: [(catalog::Record, Vec<u8>); 10] = [
        (
            catalog::Record::Node { format: 2, cluster_id: TOPIC, node_id: 9 },
            [&[0, 2, 0, 0, 0][..], TOPIC.as_bytes(), &[9, 0, 0, 0]].concat(),
        ),
        (catalog::Record::Run(258), vec![1, 2, 1, 0, 0, 0, 0, 0, 0]),
        (catalog::Record::Layout { generation: 3, shards: 2 }, vec![2, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]),
        (
            catalog::Record::Topic(TOPIC, topic),
            [
                &[3][..],
                TOPIC.as_bytes(),
                &string("orders"),
                &[12, 0, 0, 0, 1, 0, 0, 0],
                &string("retention.ms"),
                &string("5"),
            ]
            .concat(),
        ),
        (catalog::Record::Deleted(TOPIC), [&[4][..], TOPIC.as_bytes()].concat()),
        (catalog::Record::ProducerIds(1000), vec![5, 0xe8, 3, 0, 0, 0, 0, 0, 0]),
        (catalog::Record::Setting("a".into(), Some("b".into())), [&[6][..], &string("a"), &string("b")].concat()),
        (catalog::Record::Setting("a".into(), None), [&[7][..], &string("a")].concat()),
        (catalog::Record::Feature("a".into()), [&[8][..], &string("a")].concat()),
        (
            catalog::Record::Placement {
                topic: TOPIC,
                first: 258,
                runs: vec![PlacedRun { partitions: 3, leader_epoch: 4, replicas: vec![5, 6] }],
            },
            [
                &[9][..],
                TOPIC.as_bytes(),
                &[2, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0],
            ]
            .concat(),
        ),
    ];
    for (record, bytes) in drawn {
        assert_eq!(catalog::encode(&record), bytes, "{record:?}");
        assert_eq!(catalog::decode(&bytes), Ok(Some(record)));
    }
}

fn meta() -> SegmentMeta {
    SegmentMeta {
        base_offset: 100.into(),
        end_offset: 250.into(),
        size: 5000.into(),
        first_timestamp: 44.into(),
        max_timestamp: 77.into(),
        max_timestamp_offset: 200.into(),
        created_ms: 66.into(),
        sealed: 1,
        reserved: [0; 3],
        generation: 0x0B0C.into(),
    }
}

fn drawn_meta() -> Vec<u8> {
    layout(
        64,
        &[
            (0, &100_i64.to_le_bytes()),
            (8, &250_i64.to_le_bytes()),
            (16, &5000_u64.to_le_bytes()),
            (24, &44_i64.to_le_bytes()),
            (32, &77_i64.to_le_bytes()),
            (40, &200_i64.to_le_bytes()),
            (48, &66_i64.to_le_bytes()),
            (56, &[1]),
            (60, &0x0B0C_u32.to_le_bytes()),
        ],
    )
}

fn drawn_index(offset: i64, position: u64, max_timestamp_before: i64) -> Vec<u8> {
    let fields: [(usize, &[u8]); 3] =
        [(0, &offset.to_le_bytes()), (8, &position.to_le_bytes()), (16, &max_timestamp_before.to_le_bytes())];
    layout(24, &fields)
}

#[test]
fn manifest_records_are_as_drawn() {
    let header = |id: &Uuid, partition: i32, kind: u8, first: i64, second: i64, counts: [u32; 3]| {
        layout(
            52,
            &[
                (0, id.as_bytes()),
                (16, &partition.to_le_bytes()),
                (20, &[kind]),
                (24, &first.to_le_bytes()),
                (32, &second.to_le_bytes()),
                (40, &counts[0].to_le_bytes()),
                (44, &counts[1].to_le_bytes()),
                (48, &counts[2].to_le_bytes()),
            ],
        )
    };
    let producer = ProducerBatch {
        producer_id: 4000.into(),
        producer_epoch: 2.into(),
        reserved: 0.into(),
        base_sequence: 17.into(),
        last_offset_delta: 9.into(),
        reserved_2: 0.into(),
        base_offset: 240.into(),
        timestamp_ms: 77.into(),
    };
    let drawn_producer = layout(
        40,
        &[
            (0, &4000_i64.to_le_bytes()),
            (8, &2_i16.to_le_bytes()),
            (12, &17_i32.to_le_bytes()),
            (16, &9_i32.to_le_bytes()),
            (24, &240_i64.to_le_bytes()),
            (32, &77_i64.to_le_bytes()),
        ],
    );
    let index = IndexEntry { offset: 180.into(), position: 4096.into(), max_timestamp_before: 70.into() };
    let advance = Advance { segments: vec![meta()], index: vec![index], producers: vec![producer] };
    let own = |kind, first, second, counts| header(&TOPIC, 0x0102_0304, kind, first, second, counts);
    let drawn = [
        (PARTITION, manifest::Record::Reset { log_start_offset: 5, clean_offset: 3 }, own(0, 5, 3, [0; 3])),
        (
            PARTITION,
            manifest::Record::Advance(advance),
            [own(1, 0, 0, [1; 3]), drawn_meta(), drawn_index(180, 4096, 70), drawn_producer].concat(),
        ),
        (PARTITION, manifest::Record::Trim { log_start_offset: 150, first_segment: 100 }, own(2, 150, 100, [0; 3])),
        (
            PARTITION,
            manifest::Record::Replace(Replace { removed: vec![9.into()], added: vec![meta()], clean_offset: 8 }),
            [own(4, 0, 8, [1, 1, 0]), drawn_meta(), 9_i64.to_le_bytes().to_vec()].concat(),
        ),
        (
            manifest::NO_PARTITION,
            manifest::Record::RunEnd { run: 6, sequence: 1234 },
            header(&Uuid::nil(), 0, 3, 6, 1234, [0; 3]),
        ),
    ];
    for (id, record, bytes) in drawn {
        assert_eq!(manifest::encode(id, &record), bytes, "{record:?}");
        let (found, decoded) = manifest::decode(&bytes).unwrap();
        assert_eq!((found, manifest::encode(id, &decoded)), (id, bytes));
    }
}

#[test]
fn a_footer_is_as_drawn() {
    let mut segment = Segment::from_meta(&meta());
    segment.index = Some(std::rc::Rc::new(vec![
        IndexEntry { offset: 100.into(), position: 0.into(), max_timestamp_before: (-1).into() },
        IndexEntry { offset: 180.into(), position: 4096.into(), max_timestamp_before: 70.into() },
    ]));
    let drawn = layout(
        4096,
        &[
            (0, b"MRF1"),
            (8, &2_u64.to_le_bytes()),
            (16, &drawn_meta()),
            (80, &drawn_index(100, 0, -1)),
            (104, &drawn_index(180, 4096, 70)),
        ],
    );
    let drawn = with_checksum(drawn, 128);
    assert_eq!(segment::encode_footer(&segment), drawn);
    assert_eq!(segment::decode_footer(&drawn).unwrap().0, meta());
    assert_eq!(segment.footer_position(), 8192, "behind 5,000 bytes of batches");
    assert_eq!(segment.name().file_name(), "00000000000000000100-2828.log");
}

#[test]
fn index_entries_are_no_closer_than_64_kib() {
    let mut segment = Segment::begin(0, 0);
    let mut batch = crate::batch::BatchBuilder::new(crate::batch::Codec::None, 0);
    let value = Some(vec![0; 30_000].into());
    batch.push(&crate::batch::Record { offset: 0, timestamp: 5, key: None, value, headers: vec![] });
    let mut info = BatchInfo::parse(&batch.finish()).unwrap();
    for offset in 0..7 {
        info.base_offset = offset;
        segment.push(&info);
    }
    let offsets: Vec<i64> = segment.index.unwrap().iter().map(|entry| entry.offset.get()).collect();
    assert_eq!(offsets, [0, 3, 6]);
}
