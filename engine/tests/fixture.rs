//! Data directories that earlier builds wrote, one of each format, kept in `fixtures/`: today's code must open them and read
//! all of them. They were copied from under a running node, so their newest records are in the shared log only, one run of them as a pointer.
//!
//! The file is a gzip of all files, one after the other: path, size and kept size as a line each, then the bytes up to the
//! last that is not zero. When the format version changes, a new one is written by the ignored test, and the old one stays
//! for as long as its version is read.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

#[path = "fixtures/unpack.rs"]
mod unpack;
mod with_node;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use millrace_engine::{
    api::{
        Acks, ConfigChange, Fetch, FetchPartition, NewTopic, OffsetSpec, ProducePartition, ReadBound, TopicPartition,
    },
    batch::{AppendOrigin, BatchBuilder, Codec, Record, batches, records},
    engine::Engine,
    format::{catalog, journal},
    node::NodeOptions,
};
use with_node::with_node;

fn options(dir: &Path) -> NodeOptions {
    NodeOptions { producer_id_expiration_ms: i64::MAX, ..with_node::options(dir, 1) }
}

fn fixture(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/data-v{format}.gz"))
}

/// A batch of one record, from an idempotent producer whose sequence is the offset.
fn batch(offset: i64, size: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0).producer(7, 0, i32::try_from(offset).unwrap());
    let value = Some(value(offset, size).into());
    builder.push(&Record { offset: 0, timestamp: TIME_MS + offset, key: None, value, headers: vec![] });
    builder.finish().into()
}

fn value(offset: i64, size: usize) -> String {
    format!("{offset}-{}", "x".repeat(size))
}

const TIME_MS: i64 = 1_700_000_000_000;
/// Sizes of the records of partition 0, by offset: those of the first life are in segments, three of which are sealed.
const FIRST: [usize; 8] = [700; 8];
const SECOND: [usize; 3] = [10, 300_000, 20];

async fn produce(engine: &Engine, partition: TopicPartition, first: i64, sizes: &[usize]) {
    for (offset, size) in (first..).zip(sizes) {
        let part = ProducePartition { partition, batch: batch(offset, *size) };
        let produced = engine.produce(AppendOrigin::Client, Acks::All, vec![part]).await.remove(0).unwrap();
        assert_eq!(produced.base_offset, offset);
    }
}

async fn consume(engine: &Engine, partition: TopicPartition, mut offset: i64, end: i64) -> Vec<String> {
    let mut found = Vec::new();
    while offset < end {
        let part =
            FetchPartition { partition, offset, max_bytes: 1 << 20, leader_epoch: -1, bound: ReadBound::HighWatermark };
        let fetch = Fetch { partitions: vec![part], max_bytes: 1 << 20, min_bytes: 1, max_wait: Duration::ZERO };
        let fetched = engine.fetch(fetch).await.remove(0).unwrap();
        assert_eq!(fetched.high_watermark, end);
        let mut bytes = Vec::new();
        for chunk in &fetched.records.chunks {
            match chunk {
                millrace_engine::api::Chunk::File(range) => {
                    use std::os::unix::fs::FileExt;
                    let mut read = vec![0; range.len];
                    range.file.read_exact_at(&mut read, range.position).unwrap();
                    bytes.extend(read);
                }
                other => bytes.extend(other.as_slice().unwrap()),
            }
        }
        for part in batches(&bytes) {
            let (info, batch) = part.unwrap();
            let read = records(batch).unwrap().into_iter().filter(|record| record.offset >= offset);
            found.extend(read.map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
            offset = info.last_offset() + 1;
        }
    }
    found
}

/// Every file of the directory but the lock and what is being made.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "lock" && path.extension().is_none_or(|kind| kind != "making") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn pack(dir: &Path) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for path in files(dir) {
        let bytes = fs::read(&path).unwrap();
        let kept = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let name = path.strip_prefix(dir).unwrap().to_str().unwrap();
        write!(out, "{name}\n{}\n{kept}\n", bytes.len()).unwrap();
        out.write_all(&bytes[..kept]).unwrap();
    }
    out.finish().unwrap()
}

fn install(packed: &[u8], dir: &Path) {
    for (name, size, bytes) in unpack::unpack(packed) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    }
}

/// The format that a directory is of.
fn format_of(dir: &Path) -> u32 {
    let bytes = fs::read(dir.join("catalog")).unwrap();
    let pages = journal::pages(&bytes).unwrap();
    match catalog::decode(journal::records(pages[0]).unwrap()[0]) {
        Ok(Some(catalog::Record::Node { format, .. })) => format,
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "no test: writes the fixture anew, run by hand when the format changes"]
fn write_the_fixture() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path()), |engine| async move {
        let configs = BTreeMap::from([("internal.segment.bytes".to_owned(), "2000".to_owned())]);
        let new = NewTopic { name: "orders".into(), partitions: 2, configs };
        let topic = engine.create_topic(new, false).await.unwrap().id;
        produce(&engine, TopicPartition { topic, partition: 0 }, 0, &FIRST).await;
        let gone = NewTopic { name: "gone".into(), partitions: 1, configs: BTreeMap::new() };
        let gone = engine.create_topic(gone, false).await.unwrap().id;
        engine.delete_topic(gone).await.unwrap();
        let change = ConfigChange::Set("log.retention.hours".into(), "72".into());
        engine.alter_broker_settings(vec![change], false).await.unwrap();
        assert_eq!(engine.next_producer_id().await.unwrap(), 0);
    });
    let path = dir.path().to_owned();
    let packed = with_node(options(dir.path()), |engine| async move {
        let topic = engine.topics().by_name["orders"].id;
        let id = TopicPartition { topic, partition: 0 };
        assert_eq!(engine.delete_records(id, 3).await.unwrap(), 3);
        produce(&engine, id, 8, &SECOND).await;
        produce(&engine, TopicPartition { topic, partition: 1 }, 0, &[5]).await;
        pack(&path)
    });
    fs::write(fixture(catalog::FORMAT_VERSION), packed).unwrap();
}

#[test]
fn a_directory_of_format_1_is_read_and_upgraded() {
    read_and_upgrade(1);
}

#[test]
fn a_directory_of_format_2_is_read() {
    read_and_upgrade(2);
}

fn read_and_upgrade(format: u32) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    install(&fs::read(fixture(format)).unwrap(), dir.path());
    assert_eq!(format_of(dir.path()), format);
    // The second time from what the first has made of it.
    for round in 0..2 {
        with_node(options(dir.path()), move |engine| async move {
            let topics = engine.topics();
            assert_eq!(topics.by_name.keys().collect::<Vec<_>>(), ["orders"]);
            let topic = topics.by_name["orders"].clone();
            assert_eq!((topic.partitions, topic.overrides["internal.segment.bytes"].as_str()), (2, "2000"));
            assert_eq!(engine.broker_settings()["log.retention.hours"], "72");
            assert!(engine.next_producer_id().await.unwrap() >= 1);
            let id = TopicPartition { topic: topic.id, partition: 0 };
            let earliest = engine.list_offset(id, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await.unwrap();
            assert_eq!(earliest.offset, 3);
            let sizes = FIRST.iter().chain(&SECOND);
            let all: Vec<_> = (0..).zip(sizes).map(|(offset, size)| value(offset, *size)).collect();
            let found = consume(&engine, id, 3, 11 + round).await;
            assert!(found[..8] == all[3..], "every record is what it was");
            let by_time =
                engine.list_offset(id, OffsetSpec::Timestamp(TIME_MS + 9), ReadBound::HighWatermark, -1).await.unwrap();
            assert_eq!(by_time.offset, 9);
            let other = TopicPartition { topic: topic.id, partition: 1 };
            assert_eq!(consume(&engine, other, 0, 1).await, [value(0, 5)]);
            // The producer goes on where it was, and what it sent before is known.
            let again = ProducePartition { partition: id, batch: batch(10, SECOND[2]) };
            assert_eq!(
                engine.produce(AppendOrigin::Client, Acks::All, vec![again]).await.remove(0).unwrap().base_offset,
                10
            );
            produce(&engine, id, 11 + round, &[30]).await;
        });
        assert_eq!(format_of(dir.path()), catalog::FORMAT_VERSION);
    }
}
