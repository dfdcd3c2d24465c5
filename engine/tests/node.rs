//! A whole node on a real disk: what was acknowledged is there, wherever it lies and however often the node restarts.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod with_node;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use millrace_engine::{
    api::{
        Acks, Chunk, ConfigChange, Fetch, FetchPartition, LogError, NewTopic, OffsetSpec, ProducePartition, ReadBound,
        TopicError, TopicPartition,
    },
    batch::{AppendOrigin, BatchBuilder, Codec, Record, records},
    engine::Engine,
    node::NodeOptions,
};
use with_node::{options, with_node};

fn batch(values: &[String]) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    for (at, value) in values.iter().enumerate() {
        builder.push(&Record {
            offset: at as i64,
            timestamp: 1_700_000_000_000 + at as i64,
            key: None,
            value: Some(Bytes::from(value.clone())),
            headers: vec![],
        });
    }
    builder.finish().into()
}

async fn produce(engine: &Engine, partition: TopicPartition, values: &[String]) -> Result<i64, LogError> {
    let answer = engine
        .produce(AppendOrigin::Client, Acks::All, vec![ProducePartition { partition, batch: batch(values) }])
        .await;
    answer.into_iter().next().unwrap().map(|produced| produced.base_offset)
}

/// Everything from an offset on, by as many fetches as it takes.
async fn consume(engine: &Engine, partition: TopicPartition, mut offset: i64) -> Vec<(i64, String)> {
    let mut all = Vec::new();
    loop {
        let part =
            FetchPartition { partition, offset, max_bytes: 100_000, leader_epoch: -1, bound: ReadBound::HighWatermark };
        let fetch = Fetch { partitions: vec![part], max_bytes: 1 << 20, min_bytes: 1, max_wait: Duration::ZERO };
        let fetched = engine.fetch(fetch).await.remove(0).unwrap();
        let bytes: Vec<u8> = fetched
            .records
            .chunks
            .iter()
            .flat_map(|chunk| match chunk {
                Chunk::File(range) => {
                    use std::os::unix::fs::FileExt;
                    let mut read = vec![0; range.len];
                    range.file.read_exact_at(&mut read, range.position).unwrap();
                    read
                }
                other => other.as_slice().unwrap().to_vec(),
            })
            .collect();
        if bytes.is_empty() {
            assert_eq!(offset, fetched.high_watermark);
            return all;
        }
        for part in millrace_engine::batch::batches(&bytes) {
            let (info, batch) = part.unwrap();
            assert!(millrace_engine::batch::verify_crc(batch));
            for record in records(batch).unwrap() {
                if record.offset >= offset {
                    all.push((record.offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
                }
            }
            offset = offset.max(info.last_offset() + 1);
        }
    }
}

async fn topic(engine: &Engine, name: &str, partitions: i32, configs: &[(&str, &str)]) -> uuid::Uuid {
    let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    engine.create_topic(NewTopic { name: name.into(), partitions, configs }, false).await.unwrap().id
}

fn values(tag: &str, count: usize, size: usize) -> Vec<String> {
    (0..count).map(|at| format!("{tag}-{at}-{}", "x".repeat(size))).collect()
}

#[test]
fn records_survive_restarts_in_the_log_and_in_segments() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let id = with_node(options(dir.path(), 2), |engine| async move {
        let topic = topic(&engine, "t", 4, &[("segment.bytes", "2000000")]).await;
        for partition in 0..4 {
            let id = TopicPartition { topic, partition };
            for round in 0..30 {
                let base = produce(&engine, id, &values(&format!("{partition}.{round}"), 100, 1000)).await.unwrap();
                assert_eq!(base, round * 100);
            }
            assert_eq!(consume(&engine, id, 0).await.len(), 3000);
        }
        topic
    });
    for shards in [2, 1, 3] {
        with_node(options(dir.path(), shards), move |engine| async move {
            for partition in 0..4 {
                let id = TopicPartition { topic: id, partition };
                let found = consume(&engine, id, 0).await;
                let offsets: Vec<i64> = found.iter().map(|(offset, _)| *offset).collect();
                assert_eq!(offsets, (0..found.len() as i64).collect::<Vec<_>>());
                assert!(found[2999].1.starts_with(&format!("{partition}.29-99-")));
                assert!(found[1234].1.starts_with(&format!("{partition}.12-34-")));
                assert_eq!(consume(&engine, id, 2950).await.len(), found.len() - 2950);
                produce(&engine, id, &values("more", 1, 10)).await.unwrap();
            }
        });
    }
}

#[test]
fn a_fetch_waits_for_records_of_any_shard() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 2), |engine| async move {
        let topic = topic(&engine, "t", 2, &[]).await;
        for partition in 0..2 {
            let part = |partition| FetchPartition {
                partition: TopicPartition { topic, partition },
                offset: 0,
                max_bytes: 1 << 20,
                leader_epoch: -1,
                bound: ReadBound::HighWatermark,
            };
            let fetch = Fetch {
                partitions: vec![part(partition)],
                max_bytes: 1 << 20,
                min_bytes: 1,
                max_wait: Duration::from_secs(20),
            };
            let producer = engine.clone();
            let produced = Rc::new(RefCell::new(false));
            let done = produced.clone();
            glommio::spawn_local(async move {
                glommio::timer::sleep(Duration::from_millis(30)).await;
                produce(&producer, TopicPartition { topic, partition }, &values("v", 3, 5)).await.unwrap();
                done.replace(true);
            })
            .detach();
            let fetched = engine.fetch(fetch).await.remove(0).unwrap();
            assert_eq!(fetched.high_watermark, 3);
            assert!(!fetched.records.is_empty());
        }
    });
}

/// One request can ask for that many, as one that deletes groups does.
#[test]
fn a_shard_may_be_asked_a_hundred_thousand_things_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let answers = with_node(options(dir.path(), 2), async |engine: Engine| {
        let ask = |at: u32| engine.on_shard(1, move |_| async move { at });
        futures_util::future::join_all((0..100_000).map(ask)).await
    });
    assert!(answers.into_iter().eq(0..100_000));
}

/// A batch that was larger than its partition's share of the answer counted as that share only, and the fetch waited.
#[test]
fn a_first_batch_beyond_its_limit_is_not_waited_for() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 2), |engine| async move {
        let topic = topic(&engine, "t", 2, &[]).await;
        for partition in 0..2 {
            let id = TopicPartition { topic, partition };
            produce(&engine, id, &values("first", 1, 30_000)).await.unwrap();
            let part = FetchPartition {
                partition: id,
                offset: 0,
                max_bytes: 1_000,
                leader_epoch: -1,
                bound: ReadBound::HighWatermark,
            };
            let fetch = |min_bytes, max_wait_s| Fetch {
                partitions: vec![part],
                max_bytes: 1 << 20,
                min_bytes,
                max_wait: Duration::from_secs(max_wait_s),
            };
            // nothing more comes while this one may wait
            let fetched = engine.fetch(fetch(20_000, 60));
            let fetched = glommio::timer::timeout(Duration::from_secs(30), async { Ok(fetched.await) }).await;
            let fetched = fetched.expect("it was there").remove(0).unwrap();
            assert_eq!(fetched.high_watermark, 1);
            assert!(fetched.records.len() > 30_000);
            let begun = Instant::now();
            let fetched = engine.fetch(fetch(40_000, 1)).await.remove(0).unwrap();
            assert!(
                fetched.records.len() > 30_000 && begun.elapsed() >= Duration::from_secs(1),
                "that much is not there"
            );
        }
    });
}

/// An answer ended where the log's segments end, with less than was waited for.
#[test]
fn a_fetch_is_answered_from_segments_and_tail_together() {
    fetched_from_segments_and_tail(false);
}

/// With the segments' files in the kernel's cache an answer ended where the last one may still be written to.
#[test]
fn a_fetch_is_answered_from_cached_segments_and_tail_together() {
    fetched_from_segments_and_tail(true);
}

/// Reads all segments below a directory by way of the kernel's cache; answers how many there are.
fn read_all_logs(dir: &Path) -> usize {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| match path.is_dir() {
        true => read_all_logs(&path),
        false if path.extension().is_some_and(|extension| extension == "log") => {
            std::fs::read(path).unwrap();
            1
        }
        false => 0,
    };
    paths.map(read).sum()
}

/// `is_cached`: all segments are in the kernel's cache as they are fetched from.
fn fetched_from_segments_and_tail(is_cached: bool) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let large = |shards| NodeOptions { memory_bytes: shards * (512 << 20), ..options(dir.path(), shards) };
    let id = with_node(large(2), |engine| async move {
        let topic = topic(&engine, "t", 1, &[("segment.bytes", "1048576")]).await;
        for round in 0..10 {
            produce(&engine, TopicPartition { topic, partition: 0 }, &values(&round.to_string(), 100, 4_000))
                .await
                .unwrap();
        }
        TopicPartition { topic, partition: 0 }
    });
    let path = dir.path().to_owned();
    with_node(large(2), move |engine| async move {
        produce(&engine, id, &values("tail", 100, 400)).await.unwrap();
        if is_cached {
            assert!(read_all_logs(&path) > 3);
        }
        let part = FetchPartition {
            partition: id,
            offset: 200,
            max_bytes: 10 << 20,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        let fetch = |min_bytes| Fetch {
            partitions: vec![part],
            max_bytes: 10 << 20,
            min_bytes,
            max_wait: Duration::from_secs(50),
        };
        let there = 8 * 400_000 + 40_000;
        for bound in [ReadBound::LastStable, ReadBound::HighWatermark] {
            let fetch = Fetch { partitions: vec![FetchPartition { bound, ..part }], ..fetch(there) };
            let fetched = engine.fetch(fetch).await.remove(0).unwrap();
            assert_eq!(fetched.high_watermark, 1_100, "what is there is not waited for");
            assert!(fetched.records.len() >= there, "{} of {there} bytes", fetched.records.len());
            let is_sent_by_the_kernel = fetched.records.chunks.iter().any(|chunk| matches!(chunk, Chunk::File(_)));
            assert!(is_sent_by_the_kernel || !is_cached, "{bound:?}");
        }
        let more = async {
            glommio::timer::sleep(Duration::from_millis(200)).await;
            produce(&engine, id, &values("more", 100, 400)).await.unwrap();
        };
        let (fetched, ()) = futures_util::future::join(engine.fetch(fetch(there + 40_000)), more).await;
        assert_eq!(fetched[0].as_ref().unwrap().high_watermark, 1_200, "a little more is");
    });
}

#[test]
fn offsets_are_found_and_records_deleted() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 2), |engine| async move {
        let topic = topic(&engine, "t", 1, &[("segment.bytes", "2000000")]).await;
        let id = TopicPartition { topic, partition: 0 };
        for round in 0..30 {
            produce(&engine, id, &values(&format!("{round}"), 100, 1000)).await.unwrap();
        }
        let found = engine
            .list_offset(id, OffsetSpec::Timestamp(1_700_000_000_042), ReadBound::HighWatermark, -1)
            .await
            .unwrap();
        assert_eq!((found.offset, found.timestamp_ms), (42, 1_700_000_000_042));
        let latest = engine.list_offset(id, OffsetSpec::Latest, ReadBound::HighWatermark, -1).await.unwrap();
        assert_eq!(latest.offset, 3000);
        assert_eq!(engine.delete_records(id, 1234).await, Ok(1234));
        let earliest = engine.list_offset(id, OffsetSpec::Earliest, ReadBound::HighWatermark, -1).await.unwrap();
        assert_eq!(earliest.offset, 1234);
        assert_eq!(consume(&engine, id, 1234).await.len(), 3000 - 1234);
        let newest = engine.list_offset(id, OffsetSpec::MaxTimestamp, ReadBound::HighWatermark, -1).await.unwrap();
        assert_eq!((newest.offset, newest.timestamp_ms), (99, 1_700_000_000_099), "as Kafka, wherever the log starts");
        assert_eq!(engine.delete_records(id, -1).await, Ok(3000));
        assert_eq!(produce(&engine, id, &values("after", 1, 1)).await, Ok(3000));
        engine.delete_topic(topic).await.unwrap();
        assert_eq!(produce(&engine, id, &values("gone", 1, 1)).await, Err(LogError::UnknownPartition));
    });
}

#[test]
fn large_runs_go_to_segments_and_survive() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let id = with_node(options(dir.path(), 2), |engine| async move {
        let topic = topic(&engine, "t", 2, &[("segment.bytes", "3000000")]).await;
        let mut waits = Vec::new();
        for round in 0..40 {
            let id = TopicPartition { topic, partition: round % 2 };
            let size = if round % 5 == 4 { 10 } else { 4000 };
            let part = ProducePartition { partition: id, batch: batch(&values(&format!("{round}"), 100, size)) };
            waits.push(engine.produce(AppendOrigin::Client, Acks::All, vec![part]));
        }
        for wait in waits {
            wait.await.remove(0).unwrap();
        }
        for partition in 0..2 {
            assert_eq!(consume(&engine, TopicPartition { topic, partition }, 0).await.len(), 2000);
        }
        topic
    });
    with_node(options(dir.path(), 1), move |engine| async move {
        for partition in 0..2 {
            let found = consume(&engine, TopicPartition { topic: id, partition }, 0).await;
            assert_eq!(found.len(), 2000);
            assert!(found[1999].1.starts_with(&format!("{}-99-", 38 + partition)));
        }
    });
}

/// Some producers name a wrong largest timestamp; lookups by time and retention trust the header.
#[test]
fn a_wrong_largest_timestamp_is_corrected_before_it_is_kept() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 1), |engine| async move {
        let partition = TopicPartition { topic: topic(&engine, "t", 1, &[]).await, partition: 0 };
        let mut lying = batch(&values("v", 3, 10)).to_vec();
        lying[35..43].copy_from_slice(&5i64.to_be_bytes());
        let crc = crc32c::crc32c(&lying[21..]);
        lying[17..21].copy_from_slice(&crc.to_be_bytes());
        let answers = engine
            .produce(AppendOrigin::Client, Acks::All, vec![ProducePartition { partition, batch: lying.into() }])
            .await;
        assert_eq!(answers[0].as_ref().unwrap().base_offset, 0);
        assert_eq!(consume(&engine, partition, 0).await.len(), 3);
        let found = engine
            .list_offset(partition, OffsetSpec::Timestamp(1_700_000_000_002), ReadBound::HighWatermark, -1)
            .await
            .unwrap();
        assert_eq!((found.offset, found.timestamp_ms), (2, 1_700_000_000_002));
    });
}

#[test]
fn what_a_former_layout_left_is_forgotten() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().to_owned();
    let kept = path.join("kept");
    let id = with_node(options(&path, 2), |engine| async move {
        let topic = topic(&engine, "t", 2, &[]).await;
        for partition in 0..2 {
            produce(&engine, TopicPartition { topic, partition }, &values("v", 3, 10)).await.unwrap();
        }
        topic
    });
    std::fs::rename(path.join("wal-1"), &kept).unwrap();
    let manifest = std::fs::read(path.join("manifest-1-1")).unwrap();
    std::fs::create_dir(path.join("wal-1")).unwrap();
    with_node(options(&path, 1), |_| async {});
    // As if the node had stopped before it removed them.
    std::fs::rename(&kept, path.join("wal-1")).unwrap();
    std::fs::write(path.join("manifest-1-1"), manifest).unwrap();
    with_node(options(&path, 1), |_| async {});
    assert!(!path.join("wal-1").exists() && !path.join("manifest-1-1").exists());
    with_node(options(&path, 2), move |engine| async move {
        for partition in 0..2 {
            let found = consume(&engine, TopicPartition { topic: id, partition }, 0).await;
            assert_eq!(found.len(), 3);
        }
    });
}

/// A fetch over several cold partitions held the read memory of the first ones while it waited for more.
#[test]
fn a_fetch_larger_than_the_read_memory_ends() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let id = with_node(options(dir.path(), 2), |engine| async move {
        let topic = topic(&engine, "t", 16, &[]).await;
        for partition in 0..16 {
            for _ in 0..12 {
                produce(&engine, TopicPartition { topic, partition }, &values("v", 100, 1000)).await.unwrap();
            }
        }
        topic
    });
    let small = NodeOptions { memory_bytes: 16 << 20, ..options(dir.path(), 2) };
    with_node(small, move |engine| async move {
        let part = |partition| FetchPartition {
            partition: TopicPartition { topic: id, partition },
            offset: 0,
            max_bytes: 1 << 20,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        let fetch = || Fetch {
            partitions: (0..16).map(part).collect(),
            max_bytes: 50 << 20,
            min_bytes: 1,
            max_wait: Duration::ZERO,
        };
        // Records are let go as soon as they are there, as a connection does that sends them.
        let found = || async { engine.fetch(fetch()).await.iter().any(|it| !it.as_ref().unwrap().records.is_empty()) };
        for _ in 0..5 {
            let both = futures_util::future::join(found(), found());
            let patience = glommio::timer::timeout(Duration::from_secs(30), async { Ok(both.await) });
            assert_eq!(patience.await.expect("neither waits for the other for ever"), (true, true));
        }
    });
}

#[test]
fn topics_follow_the_broker_s_settings_at_once_and_after_a_restart() {
    async fn limits(engine: &Engine) -> Vec<(usize, i64)> {
        let seen = engine.on_all(|engine: Engine| async move {
            let topics = engine.topics();
            let [follower, own] = ["follower", "own"].map(|name| topics.by_name[name].config.clone());
            (follower.max_message_bytes, own.retention_ms)
        });
        seen.await
    }
    let set = |name: &str, value: &str| ConfigChange::Set(name.to_owned(), value.to_owned());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 2), move |engine| async move {
        let follower = topic(&engine, "follower", 2, &[]).await;
        topic(&engine, "own", 2, &[("retention.ms", "5000"), ("min.compaction.lag.ms", "10")]).await;
        let changes = vec![set("brokers/message.max.bytes", "2000"), set("log.retention.ms", "7000")];
        engine.alter_broker_settings(changes.clone(), true).await.unwrap();
        assert_eq!(limits(&engine).await, [(1_048_588, 5_000); 2], "it was only checked");
        engine.alter_broker_settings(changes, false).await.unwrap();
        assert_eq!(limits(&engine).await, [(2_000, 5_000); 2]);
        for partition in 0..2 {
            let id = TopicPartition { topic: follower, partition };
            produce(&engine, id, &values("small", 1, 100)).await.unwrap();
            let refused = produce(&engine, id, &values("large", 1, 3_000)).await;
            assert!(matches!(refused, Err(LogError::Batch(_))), "{refused:?}");
        }
        for (change, reason) in [
            (set("log.cleaner.max.compaction.lag.ms", "9"), "topic own: min.compaction.lag.ms 10 is larger"),
            (set("log.segment.bytes", "x"), "segment.bytes"),
        ] {
            match engine.alter_broker_settings(vec![change], false).await {
                Err(TopicError::InvalidConfig(told)) => assert!(told.contains(reason), "{told}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(limits(&engine).await, [(2_000, 5_000); 2]);
    });
    // Another number of shards, and other settings at the start: those that were changed count more.
    let mut again = options(dir.path(), 3);
    again.topic_defaults = BTreeMap::from([("max.message.bytes".to_owned(), "5".to_owned())]);
    with_node(again, move |engine| async move {
        assert_eq!(limits(&engine).await, [(2_000, 5_000); 3]);
        let created = topic(&engine, "new", 1, &[]).await;
        assert_eq!(engine.topics().by_id[&created].config.retention_ms, 7_000);
        let back = ["brokers/message.max.bytes", "log.retention.ms"].map(|name| ConfigChange::Delete(name.to_owned()));
        engine.alter_broker_settings(back.to_vec(), false).await.unwrap();
        assert_eq!(limits(&engine).await, [(5, 5_000); 3]);
        assert_eq!(engine.topics().by_id[&created].config.retention_ms, 604_800_000);
    });
}

#[test]
fn dynamic_settings_that_no_longer_go_together_do_not_keep_a_node_from_starting() {
    let set = |name: &str, value: &str| ConfigChange::Set(name.to_owned(), value.to_owned());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    with_node(options(dir.path(), 1), move |engine| async move {
        topic(&engine, "topic", 1, &[]).await;
        engine.alter_broker_settings(vec![set("log.cleaner.min.compaction.lag.ms", "10")], false).await.unwrap();
    });
    let mut again = options(dir.path(), 1);
    again.topic_defaults = BTreeMap::from([("max.compaction.lag.ms".to_owned(), "9".to_owned())]);
    with_node(again, |engine| async move {
        assert_eq!(engine.topics().by_name["topic"].config.max_compaction_lag_ms, 9);
    });
}
