//! Recompression on a simulated machine: the order of calls stays the order of offsets, what came before is known, and
//! nobody waits who need not.

use std::{collections::BTreeMap, path::Path, rc::Rc};

use bytes::Bytes;
use futures_util::{FutureExt, future::join};
use uuid::Uuid;

use super::{Owed, Store, StoreOptions, Taken};
use crate::{
    api::{Acks, FetchPartition, LogError, ProducePartition, Produced, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, BatchError, BatchInfo, Codec, Record, batches, records, verify_crc},
    config::TopicConfig,
    io::{
        Io,
        sim::{Sim, SimIo, random::Random},
    },
    replica_api::Leadership,
};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

/// The `compression.type` of each partition, and the codec that its batches must have.
const TYPES: [(&str, Option<Codec>); 4] =
    [("lz4", Some(Codec::Lz4)), ("uncompressed", Some(Codec::None)), ("zstd", Some(Codec::Zstd)), ("producer", None)];

fn partition(at: usize) -> TopicPartition {
    TopicPartition { topic: Uuid::from_u128(3), partition: i32::try_from(at).unwrap() }
}

fn options(run: u64) -> StoreOptions {
    let wal_bytes = 16 << 20;
    StoreOptions { cache_bytes: 24 << 20, wal_bytes, owed: Owed::new(1, wal_bytes), ..StoreOptions::of_test(run) }
}

/// Runs a life of a machine.
fn live(sim: &Sim, run: u64, settings: &[(&str, &str)], body: impl AsyncFnOnce(Rc<Store<SimIo>>)) {
    if run == 1 {
        sim.run_until(sim.io().create_dir(Path::new("/d"))).unwrap().unwrap();
    }
    let io = if run == 1 { sim.io() } else { sim.restart() };
    let config = |compression: &str| {
        let all = [("compression.type", compression)].into_iter().chain(settings.iter().copied());
        let overrides = all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).unwrap())
    };
    let known = (0..).zip(TYPES).map(|(at, (name, _))| (partition(at), config(name))).collect();
    sim.run_until(async {
        let store = Store::open(io, options(run), &known).await.unwrap_or_else(|error| panic!("{error}"));
        body(store).await;
    })
    .unwrap();
}

/// A batch of one record, of an idempotent producer.
fn batch(codec: Codec, (producer, sequence): (i64, i32), value: &str) -> Bytes {
    let mut builder = BatchBuilder::new(codec, 0).producer(producer, 0, sequence);
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    builder.push(&Record { offset: 0, timestamp: 1_000, key: None, value, headers: vec![] });
    builder.finish().into()
}

fn append(store: &Store<SimIo>, at: usize, batch: Bytes) -> Taken {
    store.append(ProducePartition { partition: partition(at), batch }, AppendOrigin::Client, Acks::All)
}

async fn settled(taken: Taken) -> Result<Produced, LogError> {
    let (produced, wait) = taken.appended().await?;
    match wait {
        Some(wait) => wait.wait().await.map(|()| produced),
        None => Ok(produced),
    }
}

/// Every batch of a partition with the value of its record.
async fn read(store: &Rc<Store<SimIo>>, at: usize) -> Vec<(BatchInfo, String)> {
    let (mut offset, end) = store.bounds(partition(at)).unwrap();
    let mut all = Vec::new();
    while offset < end {
        let part = FetchPartition {
            partition: partition(at),
            offset,
            max_bytes: 1 << 20,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        for chunk in store.read(&part, 1 << 20, true).await.unwrap().records.chunks {
            for batch in batches(chunk.as_slice().unwrap()) {
                let (info, batch) = batch.unwrap();
                assert!(verify_crc(batch));
                assert_eq!(info.base_offset, offset);
                let value = records(batch).unwrap().remove(0).value.unwrap();
                all.push((info, String::from_utf8(value.to_vec()).unwrap()));
                offset = info.last_offset() + 1;
            }
        }
    }
    all
}

/// What was sent, in the order of calls, by partition.
type Sent = [Vec<(Codec, i64, i32, String)>; TYPES.len()];

async fn check(store: &Rc<Store<SimIo>>, sent: &Sent) {
    for (at, (_, codec)) in TYPES.into_iter().enumerate() {
        let found = read(store, at).await;
        assert_eq!(found.len(), sent[at].len());
        for ((info, value), (as_sent, producer, sequence, wanted)) in found.iter().zip(&sent[at]) {
            assert_eq!(value, wanted, "the order of calls is the order of offsets");
            assert_eq!(info.codec(), Ok(codec.unwrap_or(*as_sent)));
            assert_eq!((info.producer_id, info.producer_epoch, info.base_sequence), (*producer, 0, *sequence));
            assert_eq!((info.base_timestamp, info.max_timestamp, info.record_count), (1_000, 1_000, 1));
        }
    }
}

/// Those that have their place at once, that wait for a codec or for others, and that came before.
#[test]
fn what_an_answer_waits_for_knows_what_acks_were_asked_for() {
    let sim = Sim::new(1);
    live(&sim, 1, &[], async |store| {
        for at in 0..TYPES.len() {
            let leadership = Leadership::Replicated { replicas: 2, in_sync: 2 };
            store.lead(partition(at), 1, leadership).await.unwrap();
            let asked = [(0, Acks::None), (1, Acks::Leader), (2, Acks::All), (2, Acks::Leader)];
            let taken = asked.map(|(sequence, acks)| {
                let batch = batch(Codec::None, (10, sequence), "value");
                store.append(ProducePartition { partition: partition(at), batch }, AppendOrigin::Client, acks)
            });
            for ((sequence, acks), taken) in asked.into_iter().zip(taken) {
                let (produced, wait) = taken.appended().await.unwrap();
                let waits_for_others = wait.unwrap().confirmation.is_some();
                assert_eq!((produced.base_offset, waits_for_others), (i64::from(sequence), acks == Acks::All));
            }
        }
    });
}

/// Three producers with a hundred batches each for four partitions, none of which waits for an answer, and some of which
/// send a batch again that is still under way.
#[test]
fn offsets_follow_the_order_of_calls_and_what_comes_again_is_known() {
    for seed in 0..8 {
        let sim = Sim::new(seed);
        let mut random = Random::new(seed);
        let mut sent = Sent::default();
        live(&sim, 1, &[], async |store| {
            let mut expected = Vec::new();
            let mut sequences = BTreeMap::new();
            for round in 0..300 {
                let (at, producer) = (random.below(TYPES.len()), 10 + random.below(3) as i64);
                let codec = CODECS[random.below(CODECS.len())];
                let value = format!("{round} {}", "v".repeat(random.below(3_000)));
                let sequence: &mut i32 = sequences.entry((at, producer)).or_default();
                let offset = sent[at].len() as i64;
                for _ in 0..1 + u8::from(random.one_in(5)) {
                    let taken = append(&store, at, batch(codec, (producer, *sequence), &value));
                    let held = matches!(taken, Taken::Later(_));
                    assert!(!(held && TYPES[at].1.is_none()), "nothing of this partition is ever recompressed");
                    expected.push((offset, taken));
                }
                sent[at].push((codec, producer, *sequence, value));
                *sequence += 1;
                if random.one_in(10) {
                    store.io.sleep(std::time::Duration::from_millis(3)).await;
                }
            }
            assert!(expected.iter().filter(|(_, taken)| matches!(taken, Taken::Later(_))).count() > 100);
            for (offset, taken) in expected {
                assert_eq!(settled(taken).await.unwrap().base_offset, offset);
            }
            check(&store, &sent).await;
        });
        sim.crash();
        live(&sim, 2, &[], async |store| {
            check(&store, &sent).await;
            // A producer that did not hear of its first batches is told where they are, however they are compressed.
            for (at, sent) in sent.iter().enumerate() {
                let (codec, producer, sequence, value) = sent.last().unwrap();
                let taken = append(&store, at, batch(*codec, (*producer, *sequence), value));
                assert_eq!(settled(taken).await.unwrap().base_offset, sent.len() as i64 - 1);
            }
        });
    }
}

#[test]
fn a_gap_in_the_sequence_is_found_when_a_batch_has_its_turn() {
    live(&Sim::new(1), 1, &[], async |store| {
        let first = append(&store, 0, batch(Codec::Gzip, (7, 0), "a"));
        let gap = append(&store, 0, batch(Codec::Gzip, (7, 2), "c"));
        let behind = append(&store, 0, batch(Codec::Lz4, (7, 1), "b"));
        assert!(matches!(behind, Taken::Later(_)), "in the right codec, but others come before it");
        assert_eq!(settled(first).await.unwrap().base_offset, 0);
        assert!(matches!(settled(gap).await, Err(LogError::OutOfOrderSequence(_))));
        assert_eq!(settled(behind).await.unwrap().base_offset, 1);
        assert!(
            matches!(append(&store, 0, batch(Codec::Lz4, (7, 2), "c")), Taken::Now(Ok(_))),
            "nobody waits any more"
        );
    });
}

#[test]
fn a_batch_that_is_too_large_then_is_refused_and_those_behind_it_are_not() {
    let limit = [("max.message.bytes", "5000")];
    live(&Sim::new(1), 1, &limit, async |store| {
        let grows = append(&store, 1, batch(Codec::Zstd, (7, 0), &"v".repeat(100_000)));
        let next = append(&store, 1, batch(Codec::Zstd, (8, 0), "v"));
        let too_large = LogError::Batch(BatchError::TooLargeRecompressed { codec: "none", max: 5_000 });
        assert_eq!(settled(grows).await, Err(too_large));
        assert_eq!(settled(next).await.unwrap().base_offset, 0);
        let sent = append(&store, 2, batch(Codec::None, (7, 0), &"v".repeat(100_000)));
        let too_large = BatchError::TooLarge { size: 100_072, max: 5_000 };
        assert_eq!(
            settled(sent).await,
            Err(LogError::Batch(too_large)),
            "as it was sent it must not be too large either"
        );
    });
}

#[test]
fn append_time_is_that_of_the_place_in_the_log() {
    let by_broker = [("message.timestamp.type", "LogAppendTime")];
    live(&Sim::new(1), 1, &by_broker, async |store| {
        let before = store.io.now_ms();
        let produced = settled(append(&store, 0, batch(Codec::Gzip, (7, 0), "v"))).await.unwrap();
        assert!(produced.append_time_ms >= before);
        let (info, _) = read(&store, 0).await.remove(0);
        assert_eq!((info.codec(), info.max_timestamp), (Ok(Codec::Lz4), produced.append_time_ms));
        assert_eq!(info.timestamp_type(), crate::batch::TimestampType::LogAppendTime);
    });
}

#[test]
fn what_waits_is_answered_when_its_partition_or_the_node_goes() {
    live(&Sim::new(1), 1, &[], async |store| {
        let of_deleted = [0, 1].map(|sequence| append(&store, 0, batch(Codec::Gzip, (7, sequence), "v")));
        let of_other = append(&store, 1, batch(Codec::Gzip, (7, 0), "v"));
        store.remove_partition(partition(0));
        for taken in of_deleted {
            assert_eq!(settled(taken).await, Err(LogError::UnknownPartition));
        }
        assert_eq!(settled(of_other).await.unwrap().base_offset, 0);

        let waiting = (0..50).map(|sequence| append(&store, 2, batch(Codec::Gzip, (9, sequence), "v")));
        let waiting: Vec<_> = waiting.collect();
        let answers = async { futures_util::future::join_all(waiting.into_iter().map(settled)).await };
        let (answers, ()) = join(answers, store.close()).await;
        let places = answers.iter().take_while(|answer| answer.is_ok()).count();
        assert!(places < 50 && answers[places..].iter().all(|answer| *answer == Err(LogError::ShuttingDown)));
        let late = settled(append(&store, 2, batch(Codec::Gzip, (9, 0), "v"))).now_or_never();
        assert!(matches!(late, Some(Err(_))), "nobody is left to do it");
    });
}
