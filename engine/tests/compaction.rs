//! Compaction on a whole node with real files.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod with_node;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use millrace_engine::{
    api::{
        Acks, Chunk, ConfigChange, Fetch, FetchPartition, NewTopic, OffsetSpec, ProducePartition, ReadBound, TopicId,
        TopicPartition,
    },
    batch::{AppendOrigin, BatchBuilder, BatchInfo, Codec, Record, batches, records, verify_crc},
    engine::Engine,
    node::NodeOptions,
};
use with_node::with_node;

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const START_MS: i64 = 1_700_000_000_000;
const KEYS: i64 = 100;

/// A node whose retention, and with it compaction, runs every second.
fn options(dir: &Path, shards: usize) -> NodeOptions {
    NodeOptions {
        memory_bytes: shards * (32 << 20),
        producer_id_expiration_ms: 86_300_000,
        retention_check_ms: 1_000,
        ..with_node::options(dir, shards)
    }
}

/// The same node in a life in which nothing is compacted, if looks for what to compact are far apart as well.
fn still(dir: &Path, shards: usize) -> NodeOptions {
    NodeOptions { retention_check_ms: with_node::options(dir, shards).retention_check_ms, ..options(dir, shards) }
}

/// Sets the pause between two looks that retention does not cause, for this life and those after it.
async fn set_backoff(engine: &Engine, backoff_ms: &str) {
    let change = ConfigChange::Set("log.cleaner.backoff.ms".into(), backoff_ms.into());
    engine.alter_broker_settings(vec![change], false).await.unwrap();
}

async fn create(engine: &Engine, name: &str, partitions: i32, configs: &[(&str, &str)]) -> TopicId {
    let configs = configs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    engine.create_topic(NewTopic { name: name.into(), partitions, configs }, false).await.unwrap().id
}

/// What the record at an offset holds. Every 7th of a key's records is a tombstone.
fn record(offset: i64) -> Record {
    let key = offset * 31 % KEYS;
    // No codec makes it small.
    let noise = (0..200u64).scan(offset.cast_unsigned() + 1, |state, _| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(state.to_be_bytes()[0])
    });
    let value = (offset / KEYS % 7 != 6).then(|| noise.collect::<Vec<u8>>().into());
    let timestamp = START_MS + offset;
    Record { offset, timestamp, key: Some(format!("key-{key}").into()), value, headers: vec![] }
}

/// Produces records up to `end`, 50 to a batch.
async fn produce(engine: &Engine, partition: TopicPartition, codec: Codec, from: i64, end: i64) {
    let mut sent = Vec::new();
    for base in (from..end).step_by(50) {
        let mut builder = BatchBuilder::new(codec, 0);
        for offset in base..end.min(base + 50) {
            builder.push(&Record { offset: offset - base, ..record(offset) });
        }
        sent.push(engine.produce(
            AppendOrigin::Client,
            Acks::All,
            vec![ProducePartition { partition, batch: builder.finish().into() }],
        ));
    }
    for answer in sent {
        answer.await.remove(0).unwrap();
    }
}

/// Everything from an offset on, with the codecs of the batches.
async fn consume(engine: &Engine, partition: TopicPartition, mut offset: i64) -> Vec<(Codec, Record)> {
    let mut all = Vec::new();
    loop {
        let part =
            FetchPartition { partition, offset, max_bytes: 30_000, leader_epoch: -1, bound: ReadBound::HighWatermark };
        let fetch = Fetch { partitions: vec![part], max_bytes: 1 << 20, min_bytes: 1, max_wait: Duration::ZERO };
        let fetched = engine.fetch(fetch).await.remove(0).unwrap();
        if fetched.records.is_empty() {
            assert_eq!(offset, fetched.high_watermark, "a reader gets to the end");
            return all;
        }
        let mut bytes = Vec::new();
        for chunk in &fetched.records.chunks {
            match chunk {
                Chunk::File(range) => {
                    use std::os::unix::fs::FileExt;
                    let mut read = vec![0; range.len];
                    range.file.read_exact_at(&mut read, range.position).unwrap();
                    bytes.extend(read);
                }
                other => bytes.extend_from_slice(other.as_slice().unwrap()),
            }
        }
        for batch in batches(&bytes) {
            let (info, batch) = batch.unwrap();
            assert!(verify_crc(batch));
            let wanted = records(batch).unwrap().into_iter().filter(|record| record.offset >= offset);
            all.extend(wanted.map(|record| (codec(&info), record)));
            offset = offset.max(info.last_offset() + 1);
        }
    }
}

fn codec(info: &BatchInfo) -> Codec {
    info.codec().unwrap()
}

/// Waits until a partition takes less than `bytes` on disk.
async fn wait_for_size(engine: &Engine, topic: TopicId, bytes: u64) {
    let began = Instant::now();
    loop {
        let sizes = engine.partition_sizes(Some(vec![topic])).await;
        if sizes.iter().all(|(_, size)| *size < bytes) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "not compacted: {sizes:?}");
        glommio::timer::sleep(Duration::from_millis(50)).await;
    }
}

/// The log holds the newest value of every key, in order and at its offset.
fn check(found: &[(Codec, Record)], codec: Codec, end: i64) {
    assert!(found.is_sorted_by_key(|(_, record)| record.offset));
    assert!(found.iter().all(|(_, found)| *found == record(found.offset)), "a record is what it was");
    assert!(found.iter().all(|(found, _)| *found == codec), "batches keep their codec");
    let newest: BTreeMap<Bytes, i64> = (0..end).map(|offset| (record(offset).key.unwrap(), offset)).collect();
    let last: BTreeMap<Bytes, i64> = found.iter().map(|(_, r)| (r.key.clone().unwrap(), r.offset)).collect();
    for (key, offset) in newest {
        assert!(record(offset).value.is_none() || last.get(&key) == Some(&offset), "{key:?}");
    }
}

const SETTINGS: [(&str, &str); 3] =
    [("cleanup.policy", "compact"), ("internal.segment.bytes", "100000"), ("flush.messages", "1000")];

#[test]
fn batches_of_every_codec_are_compacted_and_read_after_restarts() {
    const END: i64 = 8_000;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let topic = with_node(options(dir.path(), 2), |engine| async move {
        set_backoff(&engine, "86400000").await;
        let topic = create(&engine, "t", 5, &SETTINGS).await;
        for (partition, codec) in (0..).zip(CODECS) {
            produce(&engine, TopicPartition { topic, partition }, codec, 0, END).await;
        }
        wait_for_size(&engine, topic, 300_000).await;
        for (partition, codec) in (0..).zip(CODECS) {
            let id = TopicPartition { topic, partition };
            check(&consume(&engine, id, 0).await, codec, END);
        }
        topic
    });
    let mut end = END;
    for shards in [2, 1, 3] {
        with_node(still(dir.path(), shards), move |engine| async move {
            for (partition, codec) in (0..).zip(CODECS) {
                let id = TopicPartition { topic, partition };
                let found = consume(&engine, id, 0).await;
                check(&found, codec, end);
                // as many as the bytes that were waited for can hold, of the thousands that were written
                assert!(found.len() < 1_800, "{} records are left", found.len());
                let from = found[found.len() / 2].1.offset + 1;
                assert_eq!(consume(&engine, id, from).await, found[found.len() / 2 + 1..]);
                let asked = OffsetSpec::Timestamp(found[7].1.timestamp - 1);
                let by_time = engine.list_offset(id, asked, ReadBound::HighWatermark, -1).await.unwrap();
                let first = found.iter().find(|(_, r)| r.timestamp >= found[7].1.timestamp - 1).unwrap();
                assert_eq!(by_time.offset, first.1.offset);
            }
        });
        with_node(options(dir.path(), shards), move |engine| async move {
            for (partition, codec) in (0..).zip(CODECS) {
                produce(&engine, TopicPartition { topic, partition }, codec, end, end + 2_000).await;
            }
            wait_for_size(&engine, topic, 300_000).await;
        });
        end += 2_000;
    }
}

#[test]
fn a_topic_becomes_compacted_and_is_deleted_while_that_goes_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data_dir = dir.path().to_owned();
    with_node(options(dir.path(), 1), |engine| async move {
        let topic = create(&engine, "kept", 1, &SETTINGS[1..]).await;
        let id = TopicPartition { topic, partition: 0 };
        produce(&engine, id, Codec::Lz4, 0, 8_000).await;
        let change = ConfigChange::Set("cleanup.policy".into(), "compact".into());
        engine.alter_topic(topic, vec![change], false).await.unwrap();
        wait_for_size(&engine, topic, 300_000).await;
        check(&consume(&engine, id, 0).await, Codec::Lz4, 8_000);
        set_backoff(&engine, "1").await;
        for round in 0..6 {
            let topic = create(&engine, "deleted", 1, &SETTINGS).await;
            let id = TopicPartition { topic, partition: 0 };
            produce(&engine, id, Codec::Gzip, 0, 8_000).await;
            glommio::timer::sleep(Duration::from_millis(900 + round * 50)).await;
            engine.delete_topic(topic).await.unwrap();
            let folder = data_dir.join("topics").join(topic.to_string());
            let began = Instant::now();
            while folder.exists() {
                assert!(began.elapsed() < Duration::from_secs(30), "{} is still there", folder.display());
                glommio::timer::sleep(Duration::from_millis(10)).await;
            }
        }
        check(&consume(&engine, id, 0).await, Codec::Lz4, 8_000);
    });
}
