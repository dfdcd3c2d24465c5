//! Entry points for fuzzers: one per decoder of bytes that come from elsewhere, a client or a disk that may be damaged.
//!
//! Each takes any bytes and asserts what holds of any bytes: no panic, no read beyond them, and that what one function
//! accepts the others can work with. Decoders behind a checksum are also run on bytes whose checksum was made right, as
//! chance would never find one.

pub mod smoke;

use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    api::TopicPartition,
    batch::{
        self, AppendOrigin, BATCH_HEADER_BYTES, BatchBuilder, BatchError, BatchInfo, Codec, Recompress, Recompressed,
        Record, Rules, TimestampType,
    },
    format::{
        catalog, epochs, group_reader,
        journal::{self, Journal, Payloads},
        manifest, placement,
        segment::{self, IndexEntry, Segment, SegmentMeta},
        wal,
    },
    io::sim::Sim,
    wal::scan::{AllCounts, Chain, Depth, Scan},
};

/// A decoder to fuzz.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Feeds it bytes; panics if something is wrong with it.
    pub run: fn(&[u8]),
    /// Valid inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub fn targets() -> &'static [Target] {
    &[
        Target { name: "batch", run: fuzz_batch, seeds: batch_seeds },
        Target { name: "run of batches", run: fuzz_batches, seeds: run_seeds },
        Target { name: "log group", run: fuzz_wal, seeds: wal_seeds },
        Target { name: "footer", run: fuzz_footer, seeds: footer_seeds },
        Target { name: "journal", run: fuzz_journal, seeds: journal_seeds },
        Target { name: "manifest record", run: fuzz_manifest, seeds: manifest_seeds },
        Target { name: "catalog record", run: fuzz_catalog, seeds: catalog_seeds },
    ]
}

const RULES: Rules = Rules {
    origin: AppendOrigin::Client,
    max_bytes: 1 << 20,
    now_ms: 1_700_000_000_000,
    timestamp_type: TimestampType::CreateTime,
    before_max_ms: i64::MAX,
    after_max_ms: 3_600_000,
    key_required: false,
};

/// A batch from a client: as it is, then with its length, magic and checksum made right.
pub fn fuzz_batch(data: &[u8]) {
    look_at_batch(data);
    if data.len() >= BATCH_HEADER_BYTES {
        let mut sealed = data.to_vec();
        let length = i32::try_from(data.len() - 12).expect("fuzzers feed less than 2 GiB");
        sealed[8..12].copy_from_slice(&length.to_be_bytes());
        sealed[16] = 2;
        let crc = crc32c::crc32c(&sealed[21..]);
        sealed[17..21].copy_from_slice(&crc.to_be_bytes());
        look_at_batch(&sealed);
    }
}

fn look_at_batch(data: &[u8]) {
    let read = batch::records(data);
    let found = batch::find_timestamp(data, RULES.now_ms, i64::MIN);
    for rules in [RULES, Rules { timestamp_type: TimestampType::LogAppendTime, key_required: true, ..RULES }] {
        let Ok(info) = batch::check(data, &rules) else {
            continue;
        };
        let records = read.as_ref().expect("a batch that passed can be read");
        assert_eq!(records.len(), usize::try_from(info.record_count).expect("counts are positive"));
        assert_eq!(records.last().map(|record| record.offset), Some(info.last_offset()));
        assert!(found.is_ok());
        let mut kept = data.to_vec();
        batch::correct_header(&mut kept, &info);
        let append_time = (rules.timestamp_type == TimestampType::LogAppendTime).then_some(RULES.now_ms);
        batch::assign(&mut kept, 77, 1, append_time);
        assert!(batch::verify_crc(&kept));
        let kept = BatchInfo::parse(&kept).expect("a kept batch is one");
        assert_eq!((kept.base_offset, kept.size), (77, data.len()));
        assert_eq!((kept.timestamp_type(), kept.delete_horizon_ms()), (rules.timestamp_type, None));
        recompress(data, &info, records);
    }
    if let Ok(records) = read {
        rebuild(data, &records);
    }
}

/// What a topic that asks for a codec does to a batch that passed: it can be done, and the records say the same.
fn recompress(data: &[u8], info: &BatchInfo, records: &[Record]) {
    const STEP_BYTES: usize = 1000;
    let batch = Bytes::copy_from_slice(data);
    let codec = if info.codec() == Ok(Codec::None) { Codec::Lz4 } else { Codec::None };
    let mut rest = Recompress::new(&batch, info, codec.into(), usize::MAX).expect("a batch that passed has a decoder");
    let (made, info) = loop {
        match rest.step(STEP_BYTES).expect("a batch that passed decompresses") {
            Recompressed::More(more) => rest = more,
            Recompressed::Done(made, info) => break (made, info),
        }
    };
    assert!(batch::verify_crc(&made));
    assert_eq!(BatchInfo::parse(&made), Ok(info));
    assert_eq!(batch::records(&made).as_deref(), Ok(records));
}

/// What compaction does: a batch of the same records says the same.
fn rebuild(data: &[u8], records: &[Record]) {
    let info = BatchInfo::parse(data).expect("it was read");
    let mut builder = BatchBuilder::like(&info).expect("its codec is known");
    records.iter().for_each(|record| builder.push(record));
    assert_eq!(batch::records(&builder.finish()).expect("we built it"), records);
}

/// Batches back to back, as a segment or a group holds them.
pub fn fuzz_batches(data: &[u8]) {
    let mut at = 0;
    for item in batch::batches(data) {
        match item {
            Ok((info, bytes)) => {
                assert_eq!(bytes, &data[at..at + info.size]);
                at += info.size;
            }
            Err(BatchError::Corrupt(_) | BatchError::Invalid(_) | BatchError::UnsupportedMagic(_)) => {}
            Err(other) => panic!("a header alone cannot be: {other}"),
        }
    }
}

/// A file of the shared log.
pub fn fuzz_wal(data: &[u8]) {
    look_at_wal(data);
    let mut sealed = data.to_vec();
    if let Some((_, length)) = wal::peek(&sealed)
        && length <= sealed.len()
    {
        seal(&mut sealed, length);
        look_at_wal(&sealed);
    }
}

fn look_at_wal(data: &[u8]) {
    let _any_answer_will_do = wal::peek(data);
    if let Some(group) = group_reader::decode(data) {
        assert!(group.length <= data.len());
        for entry in &group.entries {
            assert!(entry.base_offset >= 0 && entry.end_offset >= 0 && entry.era.leader_epoch >= 0);
            if let wal::Content::Group(at) = entry.content {
                assert!(entry.base_offset < entry.end_offset);
                assert!(at as usize + entry.length as usize <= group.length);
            }
        }
    }
    for depth in [Depth::Chain, Depth::Everything] {
        let chain = scan_in_pieces(data, depth);
        for (position, group) in chain.begun.iter().chain(&chain.behind).flat_map(|span| &span.kept) {
            let at = usize::try_from(*position).expect("within the file");
            assert_eq!(group_reader::decode(&data[at..]).as_ref(), Some(group));
        }
    }
}

fn scan_in_pieces(data: &[u8], depth: Depth) -> Chain {
    const PIECE_BYTES: usize = 4099;
    let mut scan = Scan::new(data.len() as u64, depth, AllCounts);
    while let Some(position) = scan.wants() {
        let begin = usize::try_from(position).expect("within the file");
        scan.feed(position, &data[begin..data.len().min(begin + PIECE_BYTES)]);
    }
    scan.finish()
}

/// The footer of a segment.
pub fn fuzz_footer(data: &[u8]) {
    let _any_answer_will_do = (segment::decode_footer(data), segment::footer_bytes(data));
    let mut sealed = data.to_vec();
    for entries in 0..3u64 {
        let index_bytes = usize::try_from(entries).expect("small") * size_of::<IndexEntry>();
        let end = FOOTER_HEADER_BYTES + index_bytes;
        if end <= sealed.len() {
            sealed[..4].copy_from_slice(&segment::FOOTER_MAGIC.to_le_bytes());
            sealed[8..16].copy_from_slice(&entries.to_le_bytes()); // and no aborted transactions
            seal(&mut sealed, end);
            let _any_answer_will_do = segment::decode_footer(&sealed);
            sealed[FLAGS_AT] &= 1;
            sealed[FLAGS_AT + 1..FLAGS_AT + 4].fill(0);
            seal(&mut sealed, end);
            let footer = segment::decode_footer(&sealed).expect("it was made right");
            assert_eq!(footer.index.len() as u64, entries);
            look_up(&Segment::from_meta(&footer.meta), &footer.index);
        }
    }
}

/// Nonsense in a footer may give a wrong place, but no panic.
fn look_up(segment: &Segment, index: &[IndexEntry]) {
    for wanted in [i64::MIN, -1, 0, segment.base_offset, segment.end_offset, i64::MAX] {
        let _any_answer_will_do = segment::position_before(index, wanted);
        let _any_answer_will_do = segment::position_before_timestamp(index, wanted);
        let _any_answer_will_do = segment::last_up_to(index, wanted.cast_unsigned());
    }
}

/// Whether the segment is sealed, and bytes without a meaning behind that.
const FLAGS_AT: usize = 16 + 56;

/// Magic, checksum and number of entries, then the segment.
const FOOTER_HEADER_BYTES: usize = 16 + size_of::<SegmentMeta>();

/// Makes the checksum of one of our own formats right: it stands in bytes 4 to 8 and covers what follows up to `end`.
fn seal(bytes: &mut [u8], end: usize) {
    let checksum = crc32c::crc32c(&bytes[8..end]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// A journal: its pages, and their records whatever their checksums say.
pub fn fuzz_journal(data: &[u8]) {
    if let Ok(pages) = journal::pages(data) {
        assert!(pages.iter().map(|page| page.len()).sum::<usize>() <= data.len());
    }
    if let Some(records) = journal::records(data) {
        assert_eq!(records.iter().map(|record| record.len() + 4).sum::<usize>(), data.len());
    }
}

/// A record of a manifest.
pub fn fuzz_manifest(data: &[u8]) {
    let Ok(Some((partition, record))) = manifest::decode(data) else {
        return;
    };
    let again = manifest::encode(partition, &record);
    assert_eq!(again, data, "what is taken has nothing left over");
    manifest::Manifest::default().apply(partition, record);
}

/// A record of the catalog.
pub fn fuzz_catalog(data: &[u8]) {
    let Ok(Some(record)) = catalog::decode(data) else {
        return;
    };
    assert_eq!(catalog::decode(&catalog::encode(&record)), Ok(Some(record.clone())));
    catalog::Catalog::default().apply(record);
}

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

fn a_batch(codec: Codec, base_offset: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec, base_offset).producer(5, 0, 9);
    for offset in base_offset..base_offset + 3 {
        builder.push(&Record {
            offset,
            timestamp: RULES.now_ms - offset,
            key: (offset % 2 == 0).then(|| Bytes::from_static(b"key")),
            value: Some(vec![b'v'; 40].into()),
            headers: vec![(Bytes::from_static(b"name"), None)],
        });
    }
    builder.finish()
}

fn batch_seeds() -> Vec<Vec<u8>> {
    CODECS.iter().map(|codec| a_batch(*codec, 0)).collect()
}

fn run_seeds() -> Vec<Vec<u8>> {
    vec![CODECS.iter().zip(0..).flat_map(|(codec, n)| a_batch(*codec, n * 3)).collect()]
}

const PARTITION: TopicPartition = TopicPartition { topic: Uuid::from_u128(7), partition: 3 };

fn wal_seeds() -> Vec<Vec<u8>> {
    let group = |sequence| {
        let (batch, era) = (a_batch(Codec::None, 30), wal::Era { leader_epoch: 4, cuts: 2 });
        let bytes = wal::GROUP_HEADER_BYTES
            + wal::entry_bytes(Some(batch.len()))
            + wal::entry_bytes(None)
            + 2 * wal::ENTRY_HEADER_BYTES;
        let mut group = vec![0; bytes.next_multiple_of(crate::io::BLOCK)];
        let mut encoder = wal::GroupEncoder::new(&mut group);
        encoder.inline(PARTITION, (30, 33), era, batch.len()).1.copy_from_slice(&batch);
        let pointer = wal::SegmentPointer {
            segment: 10.into(),
            position: 4096.into(),
            from_offset: 10.into(),
            checksum: 0.into(),
            reserved: 0.into(),
        };
        encoder.pointer(PARTITION, (33, 40), era, 5_000, pointer);
        encoder.cut(PARTITION, (40, 36), wal::Era { cuts: 3, ..era });
        encoder.epoch_start(PARTITION, 36, wal::Era { leader_epoch: 5, cuts: 3 });
        encoder.finish(wal::Stamp { run: 2, shard: 0, sequence, durable_sequence: sequence - 1 }, RULES.now_ms);
        group
    };
    vec![group(8), [group(8), group(9)].concat()]
}

fn a_segment() -> (Segment, Vec<IndexEntry>) {
    let mut segment = Segment::begin(0, RULES.now_ms);
    let mut info = BatchInfo::parse(&a_batch(Codec::None, 0)).expect("we built it");
    info.size = 50_000;
    let mut index = Vec::new();
    for n in 0..6 {
        info.base_offset = n * 3;
        index.extend(segment.push(&info));
    }
    (segment, index)
}

fn footer_seeds() -> Vec<Vec<u8>> {
    vec![segment::encode_footer(&a_segment().0)]
}

fn journal_seeds() -> Vec<Vec<u8>> {
    let mut payloads = Payloads::default();
    manifest_seeds().iter().for_each(|record| payloads.push(record));
    let payloads = payloads.finish();
    let sim = Sim::new(0);
    let path = Path::new("/journal");
    let made = sim.run_until(async {
        let mut journal = Journal::create(sim.io(), path.to_owned(), &payloads).await?;
        journal.append(&payloads[0]).await
    });
    made.expect("nothing crashes").expect("nothing fails");
    vec![payloads[0].clone(), sim.file(path).expect("it was made")]
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let (segment, index) = a_segment();
    let producer = manifest::ProducerBatch {
        producer_id: 5.into(),
        producer_epoch: 0.into(),
        flags: 0.into(),
        base_sequence: 9.into(),
        last_offset_delta: 2.into(),
        coordinator_epoch: 0.into(),
        base_offset: 0.into(),
        timestamp_ms: RULES.now_ms.into(),
    };
    let segments = vec![segment.meta()];
    let producers = vec![producer; 2];
    let advance = manifest::Advance { high_watermark: 12, cuts: 3, segments, index, producers };
    let mut starts = epochs::LeaderEpochs::default();
    for (epoch, start) in [(0, 2), (3, 9)] {
        starts.note(epoch, start);
    }
    let manifest::Advance { segments, index, producers, .. } = advance.clone();
    let records = [
        manifest::Record::Reset { log_start_offset: 4, clean_offset: 2 },
        manifest::Record::Replace(manifest::Replace {
            removed: vec![3.into(), 9.into()],
            added: advance.segments.clone(),
            clean_offset: 11,
        }),
        manifest::Record::Advance(advance),
        manifest::Record::Cut(manifest::Cut { end_offset: 9, cuts: 4, segments, index, producers }),
        manifest::Record::Epochs(starts),
        manifest::Record::Trim { log_start_offset: 12, first_segment: 10 },
    ];
    records.iter().map(|record| manifest::encode(PARTITION, record)).collect()
}

fn catalog_seeds() -> Vec<Vec<u8>> {
    let overrides = [("retention.ms".to_owned(), "5".to_owned())].into();
    let run = placement::PlacedRun { partitions: 2, leader_epoch: 1, replicas: vec![4, 5] };
    let topic = catalog::StoredTopic { name: "topic".to_owned(), partitions: 3, overrides };
    let records = [
        catalog::Record::Node { format: catalog::FORMAT_VERSION, cluster_id: Uuid::from_u128(1), node_id: 4 },
        catalog::Record::Layout { generation: 1, shards: 2 },
        catalog::Record::Topic(PARTITION.topic, topic),
        catalog::Record::Setting("name".to_owned(), Some("value".to_owned())),
        catalog::Record::Feature("name".to_owned()),
        catalog::Record::Placement { topic: PARTITION.topic, first: 1, runs: vec![run.clone(), run] },
    ];
    records.iter().map(catalog::encode).collect()
}
