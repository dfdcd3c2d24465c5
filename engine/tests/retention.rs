//! Retention in a whole node on a real disk: by the records' own time, by bytes, over restarts.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod with_node;

use std::time::{Duration, SystemTime};

use millrace_engine::{
    api::{Acks, NewTopic, OffsetSpec, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record},
    engine::Engine,
    node::NodeOptions,
};
use with_node::{options, with_node};

const DAY_MS: i64 = 86_400_000;

fn now_ms() -> i64 {
    i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

async fn topic(engine: &Engine, name: &str, configs: &[(&str, &str)]) -> TopicPartition {
    let configs = configs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let topic = engine.create_topic(NewTopic { name: name.into(), partitions: 1, configs }, false).await.unwrap();
    TopicPartition { topic: topic.id, partition: 0 }
}

/// A hundred records of that time; answers the offset of the first.
async fn produce(engine: &Engine, partition: TopicPartition, timestamp: i64) -> i64 {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    for offset in 0..100 {
        builder.push(&Record { offset, timestamp, key: None, value: Some("value".into()), headers: vec![] });
    }
    let answers = engine
        .produce(AppendOrigin::Client, Acks::All, vec![ProducePartition { partition, batch: builder.finish().into() }])
        .await;
    answers[0].as_ref().unwrap().base_offset
}

async fn bounds(engine: &Engine, partition: TopicPartition) -> (i64, i64) {
    let earliest = engine.list_offset(partition, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await.unwrap();
    let latest = engine.list_offset(partition, OffsetSpec::Latest, ReadBound::HighWatermark, -1).await.unwrap();
    (earliest.offset, latest.offset)
}

/// Waits until retention has moved the log's start to an offset; answers start and end.
async fn bounds_once_at(engine: &Engine, partition: TopicPartition, start: i64) -> (i64, i64) {
    for _ in 0..600 {
        if bounds(engine, partition).await.0 == start {
            break;
        }
        glommio::timer::sleep(Duration::from_millis(100)).await;
    }
    bounds(engine, partition).await
}

/// Records of long ago and of now shared a segment when they came within its wall clock age, and outlived their time.
#[test]
fn backfilled_records_go_when_they_are_old_and_new_ones_stay() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let often = || NodeOptions { retention_check_ms: 1_000, ..options(dir.path(), 1) };
    let (both, second) = with_node(options(dir.path(), 1), |engine| async move {
        let retention = [("retention.ms", "86400000")];
        let (both, second) = (topic(&engine, "both", &retention).await, topic(&engine, "second", &retention).await);
        for partition in [both, second] {
            produce(&engine, partition, now_ms() - 30 * DAY_MS).await;
        }
        assert_eq!(produce(&engine, both, now_ms()).await, 100);
        (both, second)
    });
    // What the first life brought to a segment is known to be old in the second.
    with_node(often(), move |engine| async move {
        assert_eq!(produce(&engine, second, now_ms()).await, 100);
        assert_eq!(bounds_once_at(&engine, both, 100).await, (100, 200));
        assert_eq!(bounds_once_at(&engine, second, 100).await, (100, 200));
        glommio::timer::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(bounds(&engine, both).await, (100, 200), "also after another look");
    });
    with_node(options(dir.path(), 1), move |engine| async move {
        assert_eq!(bounds(&engine, both).await, (100, 200));
    });
}

#[test]
fn retention_bytes_of_zero_empties_a_topic() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let often = || NodeOptions { retention_check_ms: 1_000, ..options(dir.path(), 1) };
    let id = with_node(often(), |engine| async move {
        let id = topic(&engine, "t", &[("retention.bytes", "0"), ("retention.ms", "-1")]).await;
        produce(&engine, id, now_ms()).await;
        assert_eq!(bounds_once_at(&engine, id, 100).await, (100, 100));
        assert_eq!(produce(&engine, id, now_ms()).await, 100, "offsets go on");
        assert_eq!(bounds_once_at(&engine, id, 200).await, (200, 200));
        id
    });
    with_node(options(dir.path(), 1), move |engine| async move {
        assert_eq!(bounds(&engine, id).await, (200, 200));
        assert_eq!(produce(&engine, id, now_ms()).await, 200);
    });
}
