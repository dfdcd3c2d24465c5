//! Idempotent producers with acks=all that know exactly what they were promised, whatever happens to the cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use millrace_bench::{
    batch::{BatchShape, BatchTemplate, Idempotence},
    ledger::Acknowledged,
    payload::Stamp,
};
use millrace_client::{ClientError, Cluster, requests};

use crate::{
    node::PATIENCE,
    rig::{Rig, client_of},
};

/// Kafka's code for a batch whose like was appended before: as good as an acknowledgement.
pub(crate) const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;

/// How long a node may take to have one record confirmed: less than a client waits for an answer.
const OFFER_PATIENCE: Duration = Duration::from_secs(2);

/// Producers that run until they are told to stop.
pub(crate) struct Load {
    run: u64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    producers: Vec<JoinHandle<Produced>>,
}

/// What producers were promised.
pub(crate) struct Produced {
    pub(crate) run: u64,
    pub(crate) acknowledged: Acknowledged,
    /// The longest time between two acknowledgements of one producer.
    pub(crate) longest_gap: Duration,
}

impl Load {
    /// Starts producers to all partitions of a topic, each with one batch in flight.
    pub(crate) fn start(rig: &Rig, topic: &str, partitions: i32, producers: u32) -> Load {
        static RUNS: AtomicU64 = AtomicU64::new(1);
        let run = RUNS.fetch_add(1, Relaxed);
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let producers = (0..producers).map(|producer| {
            let mut writer = Writer {
                cluster: rig.client(),
                brokers: rig.brokers(),
                topic: topic.to_owned(),
                run,
                producer,
                template: BatchTemplate::new(BatchShape { records: 3, value_bytes: 300, key_bytes: 0 }),
                sequences: vec![0; usize::try_from(partitions).unwrap()],
                acknowledged: Acknowledged::default(),
                longest_gap: Duration::ZERO,
            };
            let (stop, count) = (stop.clone(), acknowledged.clone());
            std::thread::spawn(move || {
                writer.write(&stop, &count);
                let Writer { acknowledged, longest_gap, .. } = writer;
                Produced { run, acknowledged, longest_gap }
            })
        });
        let producers = producers.collect();
        Load { run, stop, acknowledged, producers }
    }

    /// Waits until that many more batches were acknowledged.
    pub(crate) fn await_more(&self, rig: &Rig, batches: u64) {
        let target = self.acknowledged.load(Relaxed) + batches;
        rig.until("batches are acknowledged", || {
            let is_over = self.producers.iter().any(JoinHandle::is_finished);
            is_over || self.acknowledged.load(Relaxed) >= target
        });
    }

    /// Batches that were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    /// Has the producers finish what is in flight.
    pub(crate) fn finish(self) -> Produced {
        self.stop.store(true, Relaxed);
        let mut all = Produced { run: self.run, acknowledged: Acknowledged::default(), longest_gap: Duration::ZERO };
        for producer in self.producers {
            let one = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.acknowledged.merge(one.acknowledged);
            all.longest_gap = all.longest_gap.max(one.longest_gap);
        }
        all
    }
}

/// What a node says to one record for a partition of `orders`, if that comes in time. It is of no run, so that whoever reads
/// back passes it over.
pub(crate) fn offer(client: &mut Cluster, node: i32, partition: i32, acks: i16) -> Result<i16, ClientError> {
    let template = BatchTemplate::new(BatchShape { records: 1, value_bytes: 100, key_bytes: 0 });
    let stamp =
        Stamp { run: 0, producer: 0, partition: u32::try_from(partition).unwrap(), sequence: 0, intended_ns: 0 };
    let mut batch = Vec::new();
    template.append_to(&mut batch, 1, None, stamp);
    let batch = Bytes::from(batch);
    let request = |_| requests::produce("orders", partition, acks, OFFER_PATIENCE, batch.clone());
    let answer = client.broker(node, request)?;
    Ok(answer.responses[0].partition_responses[0].error_code)
}

struct Writer {
    cluster: Cluster,
    /// All nodes, whom it asks next first.
    brokers: Vec<(String, u16)>,
    topic: String,
    run: u64,
    producer: u32,
    template: BatchTemplate,
    /// Next of each partition.
    sequences: Vec<u64>,
    acknowledged: Acknowledged,
    longest_gap: Duration,
}

impl Writer {
    fn write(&mut self, stop: &AtomicBool, count: &AtomicU64) {
        let id = self.insist(|cluster| cluster.init_producer_id());
        let records = self.template.shape().records as u64;
        let mut last = Instant::now();
        let mut turn = self.producer as usize;
        while !stop.load(Relaxed) {
            let partition = turn % self.sequences.len();
            turn += 1;
            let sequence = self.sequences[partition];
            self.sequences[partition] += records;
            let batch = self.batch(partition as u32, sequence, (id.id, id.epoch));
            let topic = self.topic.clone();
            self.insist(|cluster| match cluster.produce(&topic, partition as i32, &batch, -1, true) {
                Err(error) if error.code() == Some(DUPLICATE_SEQUENCE_NUMBER) => Ok(None),
                outcome => outcome,
            });
            self.acknowledged.insert((self.producer, partition as u32), sequence, records);
            self.longest_gap = self.longest_gap.max(last.elapsed());
            last = Instant::now();
            count.fetch_add(1, Relaxed);
        }
    }

    /// Tries until it is done: a cluster that lost a node answers again.
    fn insist<T>(&mut self, mut attempt: impl FnMut(&mut Cluster) -> Result<T, ClientError>) -> T {
        let begun = Instant::now();
        loop {
            match attempt(&mut self.cluster) {
                Ok(done) => return done,
                Err(error) => {
                    let may_pass = error.is_retriable() || matches!(error, ClientError::TimedOut { .. });
                    assert!(may_pass, "producer {} of {}: {error}", self.producer, self.topic);
                    assert!(begun.elapsed() < PATIENCE, "producer {} of {}: {error}", self.producer, self.topic);
                    // who was asked may be cut off from the others, and know of no other leader
                    self.brokers.rotate_left(1);
                    self.cluster = client_of(self.brokers.clone());
                }
            }
        }
    }

    fn batch(&self, partition: u32, sequence: u64, (producer_id, producer_epoch): (i64, i16)) -> Bytes {
        let id = Idempotence { producer_id, producer_epoch, base_sequence: sequence as i32 };
        let stamp = Stamp { run: self.run, producer: self.producer, partition, sequence, intended_ns: 0 };
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let mut bytes = Vec::new();
        self.template.append_to(&mut bytes, now_ms, Some(id), stamp);
        bytes.into()
    }
}
