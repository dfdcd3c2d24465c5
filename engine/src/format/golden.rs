//! Ties FORMAT.md to the code: every structure is laid out here by the offsets of its drawing, and the encoders must
//! write the same bytes. A failure means that the format has changed: then FORMAT.md, its version and the fixture of
//! `tests/fixture.rs` have to follow.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::{
    api::TopicPartition,
    batch::{BatchInfo, EndMarker, Outcome},
    format::{
        Refused,
        catalog::{self, StoredTopic},
        epochs::LeaderEpochs,
        group_reader::decode,
        journal::{self, Journal, Payloads},
        manifest::{self, Advance, ProducerBatch, Replace},
        placement::PlacedRun,
        segment::{self, IndexEntry, Segment, SegmentMeta},
        transactions::{AbortedEntry, OpenEntry},
        wal::{Content, Era, GroupEncoder, SegmentPointer, Stamp},
    },
    io::sim::Sim,
    wal::scan::{AllCounts, Depth, Scan},
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

fn entry_header(kind: u8, cuts: u32, offsets: (i64, i64), length: u32, last: u32) -> Vec<u8> {
    layout(
        48,
        &[
            (0, TOPIC.as_bytes()),
            (16, &0x0102_0304_i32.to_le_bytes()),
            (20, &[kind]),
            (21, &cuts.to_le_bytes()[..3]),
            (24, &offsets.0.to_le_bytes()),
            (32, &offsets.1.to_le_bytes()),
            (40, &length.to_le_bytes()),
            (44, &last.to_le_bytes()),
        ],
    )
}

const fn era(leader_epoch: i32, cuts: u32) -> Era {
    Era { leader_epoch, cuts }
}

#[test]
fn a_group_is_as_drawn() {
    let mut written = vec![0xAA; 4096];
    let mut encoder = GroupEncoder::new(&mut written);
    encoder.inline(PARTITION, (1000, 1003), era(0x0D0E, 0x0A0B0C), 5).1.copy_from_slice(b"batch");
    let pointer = SegmentPointer {
        segment: 900.into(),
        position: 0x1234_5678_9abc.into(),
        from_offset: 1003.into(),
        checksum: 0xdead_beef.into(),
        reserved: 0.into(),
    };
    encoder.pointer(PARTITION, (1003, 1010), era(0x0D0E, 0x0A0B0C), 300_000, pointer);
    encoder.cut(PARTITION, (1010, 1003), era(0x0D0F, 0x0A0B0D));
    encoder.epoch_start(PARTITION, 1003, era(0x0D10, 0x0A0B0D));
    let stamp = Stamp { run: 7, shard: 3, sequence: 0x1_0000_0002, durable_sequence: 0x1_0000_0001 };
    let length = encoder.finish(stamp, 1_700_000_000_123);

    assert_eq!(length, 64 + 48 + 5 + 48 + 32 + 48 + 48);
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
            (0, b"MRG2"),
            (8, &7_u64.to_le_bytes()),
            (16, &3_u32.to_le_bytes()),
            (20, &4_u32.to_le_bytes()),
            (24, &0x1_0000_0002_u64.to_le_bytes()),
            (32, &0x1_0000_0001_u64.to_le_bytes()),
            (40, &293_u32.to_le_bytes()),
            (48, &1_700_000_000_123_i64.to_le_bytes()),
            (64, &entry_header(0, 0x0A0B0C, (1000, 1003), 5, 0x0D0E)),
            (112, b"batch"),
            (117, &entry_header(1, 0x0A0B0C, (1003, 1010), 300_000, 0x0D0E)),
            (165, &pointer),
            (197, &entry_header(2, 0x0A0B0D, (1003, 1010), 0, 0x0D0F)),
            (245, &entry_header(3, 0x0A0B0D, (1003, 1003), 0, 0x0D10)),
        ],
    );
    assert_eq!(written, with_checksum(drawn, length));
    let entries = decode(&written).unwrap().entries;
    let (batches, cut, epoch_start) = (entries[0], entries[2], entries[3]);
    assert_eq!((batches.era, cut.era), (era(0x0D0E, 0x0A0B0C), era(0x0D0F, 0x0A0B0D)));
    assert_eq!((cut.content, cut.base_offset, cut.end_offset), (Content::Cut, 1003, 1010));
    assert_eq!((epoch_start.content, epoch_start.base_offset), (Content::EpochStart, 1003));
}

/// A group of one entry, and what comes behind it.
fn drawn_group(magic: &[u8; 4], header: &[(usize, &[u8])], entry: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    let length = 64 + entry.len() + payload.len();
    let numbers: [(usize, &[u8]); 6] = [
        (0, magic),
        (8, &7_u64.to_le_bytes()),
        (20, &1_u32.to_le_bytes()),
        (24, &1_u64.to_le_bytes()),
        (40, &u32::try_from(length).unwrap().to_le_bytes()),
        (64, &[entry, payload.to_vec()].concat()),
    ];
    with_checksum(layout(4096, &[&numbers, header].concat()), length)
}

#[test]
fn groups_of_version_1_are_read() {
    let inline = drawn_group(b"MRG1", &[], entry_header(0, 0, (1000, 1003), 5, 5), b"batch");
    let found = decode(&inline).unwrap().entries;
    assert_eq!((found[0].content, found[0].era), (Content::Group(112), Era::default()));
    let pointer = layout(32, &[(0, &900_i64.to_le_bytes())]);
    let fat = drawn_group(b"MRG1", &[], entry_header(1, 0, (1003, 1010), 300_000, 32), &pointer);
    let found = decode(&fat).unwrap().entries;
    assert!(matches!(found[0].content, Content::Segment(pointer) if pointer.segment.get() == 900));
    assert_eq!((found[0].length, found[0].era), (300_000, Era::default()));
    for (kind, length, payload) in [(0, 5, 4), (1, 300_000, 5), (2, 5, 5), (3, 0, 5), (200, 5, 5)] {
        let never = drawn_group(b"MRG1", &[], entry_header(kind, 0, (1, 3), length, payload), b"batch");
        assert_eq!(decode(&never), None, "kind {kind}");
    }
}

#[test]
fn what_a_whole_group_says_is_understood_or_refused() {
    let whole = |header: &[(usize, &[u8])], entry, payload| {
        let group = drawn_group(b"MRG2", header, entry, payload);
        let mut scan = Scan::new(4096, Depth::Chain, AllCounts);
        scan.feed(0, &group);
        let chain = scan.finish();
        (chain.unknown, chain.begun.map_or(0, |span| span.kept.len()))
    };
    let entry = |kind| entry_header(kind, 0, (3, 4), 5, 0);
    assert_eq!(whole(&[], entry(0), b"batch"), (None, 1));
    assert_eq!(whole(&[], entry(4), b"batch"), (Some((1, 0)), 0), "a kind that must be known");
    assert_eq!(whole(&[], entry(128), b"batch"), (None, 0), "a hint");
    for reserved in [44, 56, 63] {
        assert_eq!(whole(&[(reserved, &[1])], entry(0), b"batch"), (Some((1, 0)), 0), "byte {reserved}");
    }
    let with = |at: usize, byte: u8| {
        let mut entry = entry(0);
        entry[at] = byte;
        entry
    };
    for (at, byte) in [(19, 0x80), (31, 0x80), (32, 0), (47, 0x80)] {
        assert_eq!(whole(&[], with(at, byte), b"batch"), (Some((1, 0)), 0), "byte {at} of the entry");
    }
    let pointer = layout(32, &[(28, &[1])]);
    assert_eq!(whole(&[], entry(1), &pointer), (Some((1, 0)), 0), "byte 28 of a pointer");
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
        flags: 0,
        reserved: [0; 2],
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

/// The header of a manifest's record, with its numbers of segments, index entries and producers.
fn record_header(id: &Uuid, partition: i32, kind: u8, (first, second): (i64, i64), counts: [u32; 3]) -> Vec<u8> {
    let fields: [(usize, &[u8]); 8] = [
        (0, id.as_bytes()),
        (16, &partition.to_le_bytes()),
        (20, &[kind]),
        (24, &first.to_le_bytes()),
        (32, &second.to_le_bytes()),
        (40, &counts[0].to_le_bytes()),
        (44, &counts[1].to_le_bytes()),
        (48, &counts[2].to_le_bytes()),
    ];
    layout(52, &fields)
}

fn producer() -> (ProducerBatch, Vec<u8>) {
    let producer = ProducerBatch {
        producer_id: 4000.into(),
        producer_epoch: 2.into(),
        flags: 0.into(),
        base_sequence: 17.into(),
        last_offset_delta: 9.into(),
        coordinator_epoch: 0.into(),
        base_offset: 240.into(),
        timestamp_ms: 77.into(),
    };
    let fields: [(usize, &[u8]); 6] = [
        (0, &4000_i64.to_le_bytes()),
        (8, &2_i16.to_le_bytes()),
        (12, &17_i32.to_le_bytes()),
        (16, &9_i32.to_le_bytes()),
        (24, &240_i64.to_le_bytes()),
        (32, &77_i64.to_le_bytes()),
    ];
    (producer, layout(40, &fields))
}

fn leader_epochs() -> (LeaderEpochs, Vec<u8>) {
    let mut epochs = LeaderEpochs::default();
    epochs.note(0x0D0E, 7);
    epochs.note(0x0D0F, 900);
    let fields: [(usize, &[u8]); 4] = [
        (0, &0x0D0E_i32.to_le_bytes()),
        (8, &7_i64.to_le_bytes()),
        (16, &0x0D0F_i32.to_le_bytes()),
        (24, &900_i64.to_le_bytes()),
    ];
    (epochs, layout(32, &fields))
}

fn aborted() -> (AbortedEntry, Vec<u8>) {
    let entry = AbortedEntry {
        producer_id: 4001.into(),
        first_offset: 110.into(),
        last_offset: 249.into(),
        last_stable_offset: 201.into(),
    };
    let fields: [(usize, &[u8]); 4] = [
        (0, &4001_i64.to_le_bytes()),
        (8, &110_i64.to_le_bytes()),
        (16, &249_i64.to_le_bytes()),
        (24, &201_i64.to_le_bytes()),
    ];
    (entry, layout(32, &fields))
}

fn transactions_record() -> (TopicPartition, manifest::Record, Vec<u8>) {
    let (entry, drawn_aborted) = aborted();
    let open = OpenEntry {
        producer_id: 4002.into(),
        producer_epoch: 5.into(),
        flags: 1.into(),
        coordinator_epoch: 6.into(),
        first_offset: 201.into(),
        started_ms: 88.into(),
    };
    let fields: [(usize, &[u8]); 6] = [
        (0, &4002_i64.to_le_bytes()),
        (8, &5_i16.to_le_bytes()),
        (10, &1_u16.to_le_bytes()),
        (12, &6_i32.to_le_bytes()),
        (16, &201_i64.to_le_bytes()),
        (24, &88_i64.to_le_bytes()),
    ];
    let header = record_header(&TOPIC, 0x0102_0304, 7, (0, 0), [0, 2, 1]);
    let bytes = [header, drawn_aborted.clone(), drawn_aborted, layout(32, &fields)].concat();
    let record = manifest::Transactions { aborted: vec![entry, entry], open: vec![open] };
    (PARTITION, manifest::Record::Transactions(record), bytes)
}

#[test]
fn what_a_producers_batch_says_of_transactions_is_as_drawn() {
    let info = BatchInfo { producer_id: 4000, attributes: 0x10, ..BatchInfo::parse(&a_batch(0)).unwrap() };
    let flags = |batch: ProducerBatch| (batch.flags.get(), batch.coordinator_epoch.get());
    assert_eq!(flags(manifest::producer_batch(&info, 0, 0)), (1, 0));
    let end = |outcome| EndMarker { outcome, coordinator_epoch: 9 };
    assert_eq!(flags(manifest::producer_marker(&info, end(Outcome::Abort), 0, 0)), (3, 9));
    let commit = manifest::producer_marker(&info, end(Outcome::Commit), 0, 0);
    assert_eq!(flags(commit), (7, 9));
    let advance = |batch: ProducerBatch| {
        let advance = Advance { producers: vec![batch], ..Advance::default() };
        manifest::decode(&manifest::encode(PARTITION, &manifest::Record::Advance(advance)))
    };
    assert!(advance(commit).is_ok());
    for (flags, coordinator_epoch) in [(0, 9), (1, 9), (2, 9), (4, 0), (5, 0), (8, 0), (15, 9)] {
        let odd = ProducerBatch { flags: flags.into(), coordinator_epoch: coordinator_epoch.into(), ..commit };
        assert_eq!(advance(odd).err(), Some(Refused::Reserved), "{flags}");
    }
}

#[test]
fn manifest_records_are_as_drawn() {
    let (producer, drawn_producer) = producer();
    let (epochs, drawn_epochs) = leader_epochs();
    let index = vec![IndexEntry { offset: 180.into(), position: 4096.into(), max_timestamp_before: 70.into() }];
    let (segments, producers) = (vec![meta()], vec![producer]);
    let advance = Advance { high_watermark: 300, cuts: 0x0102, segments, index, producers };
    let Advance { segments, index, producers, .. } = advance.clone();
    let cut = manifest::Cut { end_offset: 301, cuts: 0x0103, segments, index, producers };
    let items = [drawn_meta(), drawn_index(180, 4096, 70), drawn_producer].concat();
    let own = |kind, numbers, counts| record_header(&TOPIC, 0x0102_0304, kind, numbers, counts);
    let drawn = [
        (PARTITION, manifest::Record::Reset { log_start_offset: 5, clean_offset: 3 }, own(0, (5, 3), [0; 3])),
        (PARTITION, manifest::Record::Advance(advance), [own(1, (300, 0x0102), [1; 3]), items.clone()].concat()),
        (PARTITION, manifest::Record::Trim { log_start_offset: 150, first_segment: 100 }, own(2, (150, 100), [0; 3])),
        (
            PARTITION,
            manifest::Record::Replace(Replace { removed: vec![9.into()], added: vec![meta()], clean_offset: 8 }),
            [own(4, (0, 8), [1, 1, 0]), drawn_meta(), 9_i64.to_le_bytes().to_vec()].concat(),
        ),
        (PARTITION, manifest::Record::Epochs(epochs), [own(5, (0, 0), [0, 2, 0]), drawn_epochs].concat()),
        (PARTITION, manifest::Record::Cut(cut), [own(6, (301, 0x0103), [1; 3]), items].concat()),
        (
            manifest::NO_PARTITION,
            manifest::Record::RunEnd { run: 6, sequence: 1234 },
            record_header(&Uuid::nil(), 0, 3, (6, 1234), [0; 3]),
        ),
    ];
    let drawn = drawn.into_iter().chain([transactions_record()]);
    for (id, record, bytes) in drawn {
        assert_eq!(manifest::encode(id, &record), bytes, "{record:?}");
        let (found, decoded) = manifest::decode(&bytes).unwrap().unwrap();
        assert_eq!((found, manifest::encode(id, &decoded)), (id, bytes.clone()));
        // Whatever is set without a meaning is refused.
        assert!(manifest::decode(&[&bytes[..], &[0]].concat()).is_err());
        for at in [21, 22, 23] {
            let mut set = bytes.clone();
            set[at] = 1;
            assert_eq!(manifest::decode(&set).err(), Some(Refused::Reserved), "{record:?}: byte {at}");
        }
    }
}

#[test]
fn items_of_a_manifest_have_no_unknown_bytes() {
    let producers = vec![manifest::producer_batch(&BatchInfo::parse(&a_batch(0)).unwrap(), 0, 0)];
    let mut epochs = LeaderEpochs::default();
    epochs.note(1, 0);
    let advance = Advance { segments: vec![meta()], producers, ..Advance::default() };
    let of_record = |record: &manifest::Record, at: &[usize]| {
        let bytes = manifest::encode(PARTITION, record);
        assert!(manifest::decode(&bytes).is_ok());
        for at in at {
            let mut set = bytes.clone();
            set[*at] ^= 0x40;
            assert_eq!(manifest::decode(&set).err(), Some(Refused::Reserved), "{record:?}: byte {at}");
        }
    };
    let (meta_at, producer_at) = (52, 52 + 64);
    of_record(
        &manifest::Record::Advance(advance),
        &[meta_at + 56, meta_at + 57, meta_at + 59, producer_at + 10, producer_at + 20, producer_at + 23],
    );
    of_record(&manifest::Record::Epochs(epochs), &[24, 32, 40, 48, 52 + 4, 52 + 7]);
    of_record(&manifest::Record::Trim { log_start_offset: 1, first_segment: 2 }, &[40, 44, 48]);
    let hint = layout(60, &[(20, &[128])]);
    assert!(matches!(manifest::decode(&hint), Ok(None)));
    assert_eq!(manifest::decode(&layout(60, &[(20, &[8])])).err(), Some(Refused::UnknownKind(8)));
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
    assert_eq!(segment::decode_footer(&drawn).unwrap().meta, meta());
    assert_eq!(segment::footer_bytes(&drawn), Some(4096));
    for at in [12, 15, 16 + 57] {
        let mut set = drawn.clone();
        set[at] = 1;
        assert!(segment::decode_footer(&with_checksum(set, 128)).is_none(), "byte {at}");
    }
    assert_eq!(segment.footer_position(), 8192, "behind 5,000 bytes of batches");
    assert_eq!(segment.name().file_name(), "00000000000000000100-2828.log");
}

/// A batch of one record.
fn a_batch(size: usize) -> Vec<u8> {
    let mut batch = crate::batch::BatchBuilder::new(crate::batch::Codec::None, 0);
    let value = Some(vec![0; size].into());
    batch.push(&crate::batch::Record { offset: 0, timestamp: 5, key: None, value, headers: vec![] });
    batch.finish()
}

#[test]
fn a_footer_with_aborted_transactions_is_as_drawn() {
    let (entry, drawn_entry) = aborted();
    let mut segment = Segment { index: None, ..Segment::from_meta(&meta()) };
    (0..200).for_each(|_| segment.push_aborted(entry));
    let mut drawn_meta = drawn_meta();
    drawn_meta[57] = 1;
    let mut drawn = layout(8192, &[(0, b"MRF1"), (12, &200_u32.to_le_bytes()), (16, &drawn_meta)]);
    (0..200).for_each(|at| drawn[80 + at * 32..112 + at * 32].copy_from_slice(&drawn_entry));
    let drawn = with_checksum(drawn, 80 + 200 * 32);
    assert_eq!(segment::encode_footer(&segment), drawn);
    let footer = segment::decode_footer(&drawn).unwrap();
    assert_eq!((footer.index.len(), footer.aborted), (0, vec![entry; 200]));
    assert!(Segment::from_meta(&footer.meta).has_aborted);
    assert_eq!(segment::footer_bytes(&drawn[..4096]), Some(8192), "by its first block");
    assert_eq!(segment::decode_footer(&drawn[..4096]), None);
}

#[test]
fn index_entries_are_no_closer_than_64_kib() {
    let mut segment = Segment::begin(0, 0);
    let mut info = BatchInfo::parse(&a_batch(30_000)).unwrap();
    for offset in 0..7 {
        info.base_offset = offset;
        segment.push(&info);
    }
    let offsets: Vec<i64> = segment.index.unwrap().iter().map(|entry| entry.offset.get()).collect();
    assert_eq!(offsets, [0, 3, 6]);
}
