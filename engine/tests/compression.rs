//! Topics that ask for a codec, on a whole node with a real disk: every batch is stored in it, in the order of calls,
//! and is so after a restart.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod with_node;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use millrace_engine::{
    api::{
        Acks, Chunk, ConfigChange, Fetch, FetchPartition, LogError, NewTopic, ProducePartition, ReadBound,
        TopicPartition,
    },
    batch::{AppendOrigin, BatchBuilder, BatchError, BatchInfo, Codec, Record, batches, records, verify_crc},
    engine::Engine,
};
use with_node::{options, with_node};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

type Settings = &'static [(&'static str, &'static str)];

/// Settings of the topics, and the codec of their batches.
const TOPICS: [(&str, Settings, Option<Codec>); 9] = [
    ("producer", &[], None),
    ("uncompressed", &[("compression.type", "uncompressed")], Some(Codec::None)),
    ("gzip", &[("compression.type", "gzip")], Some(Codec::Gzip)),
    ("snappy", &[("compression.type", "snappy")], Some(Codec::Snappy)),
    ("lz4", &[("compression.type", "lz4")], Some(Codec::Lz4)),
    ("zstd", &[("compression.type", "zstd")], Some(Codec::Zstd)),
    ("gzip-9", &[("compression.type", "gzip"), ("compression.gzip.level", "9")], Some(Codec::Gzip)),
    ("lz4-12", &[("compression.type", "lz4"), ("compression.lz4.level", "12")], Some(Codec::Lz4)),
    ("zstd-19", &[("compression.type", "zstd"), ("compression.zstd.level", "19")], Some(Codec::Zstd)),
];

async fn create(engine: &Engine, name: &str, configs: &[(&str, &str)]) -> uuid::Uuid {
    let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    engine.create_topic(NewTopic { name: name.into(), partitions: 2, configs }, false).await.unwrap().id
}

fn text(at: i64) -> String {
    format!("{at} {}", "some words ".repeat(50 + at.unsigned_abs() as usize % 200))
}

/// A batch of two records of an idempotent producer.
fn batch(codec: Codec, sequence: i64) -> Bytes {
    let mut builder = BatchBuilder::new(codec, 0).producer(5, 0, sequence.try_into().unwrap());
    for at in 0..2 {
        builder.push(&Record {
            offset: at,
            timestamp: 1_700_000_000_000 + at,
            key: Some(Bytes::from_static(b"key")),
            value: Some(text(sequence + at).into()),
            headers: vec![(Bytes::from_static(b"name"), None)],
        });
    }
    builder.finish().into()
}

fn bytes_of(chunk: &Chunk) -> Vec<u8> {
    match chunk {
        Chunk::File(range) => {
            use std::os::unix::fs::FileExt;
            let mut read = vec![0; range.len];
            range.file.read_exact_at(&mut read, range.position).unwrap();
            read
        }
        other => other.as_slice().unwrap().to_vec(),
    }
}

/// All batches of a partition, with their bytes.
async fn read(engine: &Engine, partition: TopicPartition) -> Vec<(BatchInfo, Vec<u8>)> {
    let (mut offset, mut all) = (0, Vec::new());
    loop {
        let part =
            FetchPartition { partition, offset, max_bytes: 1 << 20, leader_epoch: -1, bound: ReadBound::HighWatermark };
        let fetch = Fetch { partitions: vec![part], max_bytes: 1 << 20, min_bytes: 1, max_wait: Duration::ZERO };
        let fetched = engine.fetch(fetch).await.remove(0).unwrap();
        let bytes: Vec<u8> = fetched.records.chunks.iter().flat_map(bytes_of).collect();
        if bytes.is_empty() {
            assert_eq!(offset, fetched.high_watermark);
            return all;
        }
        for found in batches(&bytes) {
            let (info, batch) = found.unwrap();
            assert!(verify_crc(batch));
            offset = info.last_offset() + 1;
            all.push((info, batch.to_vec()));
        }
    }
}

/// What was sent to each partition: the codec of each batch, in order.
fn check(found: &[(BatchInfo, Vec<u8>)], codec: Option<Codec>) {
    let expected = |at: i64| codec.unwrap_or(CODECS[usize::try_from(at).unwrap() % CODECS.len()]);
    for (at, (info, batch)) in (0..).zip(found) {
        assert_eq!((info.base_offset, info.base_sequence), (2 * at, i32::try_from(2 * at).unwrap()));
        assert_eq!((info.producer_id, info.producer_epoch), (5, 0));
        assert_eq!(info.codec(), Ok(expected(at)));
        for (record, offset) in records(batch).unwrap().iter().zip(2 * at..) {
            assert_eq!((record.offset, record.timestamp), (offset, 1_700_000_000_000 + offset % 2));
            assert_eq!(record.value.as_deref(), Some(text(offset).as_bytes()));
            assert_eq!((record.key.as_deref(), record.headers.len()), (Some(&b"key"[..]), 1));
        }
    }
}

#[test]
fn every_codec_is_stored_as_the_topic_asks_and_stays_so() {
    const BATCHES: i64 = 40;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ids = with_node(options(dir.path(), 2), |engine| async move {
        let mut ids = Vec::new();
        for (name, configs, _) in TOPICS {
            ids.push(create(&engine, name, configs).await);
        }
        // All at once: what each answer says is fixed by the order of calls.
        let mut answers = Vec::new();
        for at in 0..BATCHES {
            let codec = CODECS[usize::try_from(at).unwrap() % CODECS.len()];
            for topic in &ids {
                let parts = (0..2).map(|partition| {
                    let partition = TopicPartition { topic: *topic, partition };
                    ProducePartition { partition, batch: batch(codec, 2 * at) }
                });
                let answer = engine.produce(AppendOrigin::Client, Acks::All, parts.collect());
                answers.push(async move { (2 * at, answer.await) });
            }
        }
        for (offset, answer) in join_all(answers).await {
            assert!(answer.into_iter().all(|part| part.unwrap().base_offset == offset));
        }
        ids
    });
    for shards in [2, 1] {
        let ids = ids.clone();
        with_node(options(dir.path(), shards), move |engine| async move {
            let mut sizes = BTreeMap::new();
            for (topic, (name, _, codec)) in ids.into_iter().zip(TOPICS) {
                for partition in 0..2 {
                    let found = read(&engine, TopicPartition { topic, partition }).await;
                    assert_eq!(found.len() as i64, BATCHES, "{name}");
                    check(&found, codec);
                    sizes.insert(name, found.iter().map(|(info, _)| info.size).sum::<usize>());
                }
                // Known by the fields of the producer, although its bytes are others now.
                let again = batch(Codec::Snappy, 2 * (BATCHES - 1));
                let partition = TopicPartition { topic, partition: 0 };
                let again = engine
                    .produce(AppendOrigin::Client, Acks::All, vec![ProducePartition { partition, batch: again }])
                    .await
                    .remove(0);
                assert_eq!(again.unwrap().base_offset, 2 * (BATCHES - 1));
            }
            assert!(sizes["uncompressed"] > 4 * sizes["gzip"]);
            assert!(sizes["lz4-12"] < sizes["lz4"] && sizes["zstd-19"] < sizes["zstd"]);
        });
    }
}

#[test]
fn a_change_of_codec_holds_for_what_comes_then() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 1), |engine| async move {
        let topic = create(&engine, "t", &[]).await;
        let partition = TopicPartition { topic, partition: 0 };
        let produce = async |sequence| {
            let part = ProducePartition { partition, batch: batch(Codec::Snappy, sequence) };
            engine.produce(AppendOrigin::Client, Acks::All, vec![part]).await.remove(0).unwrap();
        };
        let set = |name: &str, value: &str| vec![ConfigChange::Set(name.into(), value.into())];
        produce(0).await;
        engine.alter_broker_settings(set("compression.type", "gzip"), false).await.unwrap();
        produce(2).await;
        engine.alter_topic(topic, set("compression.type", "uncompressed"), false).await.unwrap();
        produce(4).await;
        engine.alter_topic(topic, set("compression.type", "producer"), false).await.unwrap();
        produce(6).await;
        let codecs: Vec<_> = read(&engine, partition).await.iter().map(|(info, _)| info.codec().unwrap()).collect();
        assert_eq!(codecs, [Codec::Snappy, Codec::Gzip, Codec::None, Codec::Snappy]);
    });
}

/// A few KiB that become a quarter of a GiB are not made into a batch, and hold nobody else up for good.
#[test]
fn what_would_grow_too_large_is_refused_and_others_go_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 1), |engine| async move {
        let limits = [("compression.type", "uncompressed"), ("max.message.bytes", "52428800")];
        let bombed = create(&engine, "bombed", &limits).await;
        let other = create(&engine, "other", &[("compression.type", "zstd")]).await;
        let value = Some(vec![0; 32 << 20].into());
        let mut bomb = BatchBuilder::new(Codec::Zstd, 0);
        bomb.push(&Record { offset: 0, timestamp: 1, key: None, value, headers: vec![] });
        let bomb: Bytes = bomb.finish().into();
        assert!(bomb.len() < 10_000);
        let part = |topic, batch| ProducePartition { partition: TopicPartition { topic, partition: 0 }, batch };
        let bombs: Vec<_> =
            (0..8).map(|_| engine.produce(AppendOrigin::Client, Acks::All, vec![part(bombed, bomb.clone())])).collect();
        let others: Vec<_> = (0..8)
            .map(|at| engine.produce(AppendOrigin::Client, Acks::All, vec![part(other, batch(Codec::Gzip, 2 * at))]))
            .collect();
        for answer in join_all(bombs).await {
            let max = 16 << 20;
            let too_large = BatchError::TooLargeRecompressed { codec: "none", max };
            assert_eq!(answer, [Err(LogError::Batch(too_large))]);
        }
        assert!(join_all(others).await.into_iter().flatten().all(|answer| answer.is_ok()));
    });
}
