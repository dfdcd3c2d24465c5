//! Transactional producers in a closed loop, each on a connection of its own, some driven by one thread: records to a few
//! partitions in one request, then the end of the transaction, then the next one. Partitions are added by producing to
//! them (KIP-890).

use std::{collections::BTreeMap, net::SocketAddr, ops::Range, time::Duration};

use anyhow::{bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use kafka_protocol::{
    ResponseError,
    messages::{
        EndTxnRequest, GroupId, ProduceRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
        produce_request::{PartitionProduceData, TopicProduceData},
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
    },
    protocol::StrBytes,
};
use millrace_client::{InFlight, frame, requests::topic_name};
use millrace_engine::batch::{BatchBuilder, Codec, Record};

use crate::{
    client::{self, CLIENT_ID},
    clock::{self, Clock},
    ledger::Acknowledged,
    load::{Window, pipe::Pipe},
    payload::{self, Stamp},
    sys,
};

/// The last version that names topics.
const PRODUCE_VERSION: i16 = 12;
/// The first version that adds the group's partition to the transaction.
const OFFSET_VERSION: i16 = 5;
/// The first version in which each transaction has an epoch of its own.
const END_VERSION: i16 = 5;

/// How often it is looked for transactions that take too long.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a producer writes.
#[derive(Debug, Clone)]
pub(super) struct Duty {
    pub topic: String,
    /// Its partitions; the next ones are taken for each transaction.
    pub partitions: Range<i32>,
    pub partitions_per_transaction: u32,
    pub records_per_partition: u32,
    pub record_size: usize,
    /// Transactions out of a thousand that are aborted.
    pub aborted_per_mille: u32,
    /// The group whose offset is committed with each transaction.
    pub group: Option<String>,
    pub run: u64,
}

/// What has been sent and not answered.
#[derive(Debug, Clone)]
enum Step {
    /// The records; kept for a broker that says it is not ready for them.
    Producing(Bytes),
    /// The offset of the group.
    Offset,
    /// The end, asked for at that time.
    Ending { since_ns: u64 },
}

/// See the module.
#[derive(Debug)]
pub(super) struct TransactionalProducer {
    index: u32,
    id: TransactionalId,
    duty: Duty,
    producer: (i64, i16),
    pipe: Pipe,
    in_flight: InFlight<()>,
    step: Option<Step>,
    began_ns: u64,
    is_committed: bool,
    /// The offset that was committed last, if one was, and the one that is under way.
    offset: Option<i64>,
    next_offset: i64,
    /// Records of the transaction under way: partition, first number and count.
    written: Vec<(u32, u64, u64)>,
    /// Numbers of the records of each partition, over all transactions.
    next_number: BTreeMap<i32, u64>,
    next_partition: i32,
    chance: u64,
    value: Vec<u8>,
}

/// What one thread measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub committed: u64,
    pub aborted: u64,
    /// How often a broker was not ready for the first records of a transaction.
    pub held_off: u64,
    /// From the first record to the answer to the end, of transactions that ended in the window.
    pub transaction_us: Histogram<u64>,
    pub end_us: Histogram<u64>,
    /// Everything that must be seen, and everything that must not.
    pub visible: Acknowledged,
    pub hidden: Acknowledged,
}

impl Measured {
    pub(super) fn new() -> anyhow::Result<Measured> {
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000, 3);
        Ok(Measured {
            committed: 0,
            aborted: 0,
            held_off: 0,
            transaction_us: histogram()?,
            end_us: histogram()?,
            visible: Acknowledged::default(),
            hidden: Acknowledged::default(),
        })
    }

    /// Takes over what another thread measured.
    pub(super) fn merge(&mut self, other: Measured) -> anyhow::Result<()> {
        self.committed += other.committed;
        self.aborted += other.aborted;
        self.held_off += other.held_off;
        self.transaction_us.add(&other.transaction_us)?;
        self.end_us.add(&other.end_us)?;
        self.visible.merge(other.visible);
        self.hidden.merge(other.hidden);
        Ok(())
    }
}

impl TransactionalProducer {
    /// One that has its id already.
    pub(super) fn connect(
        index: u32,
        id: TransactionalId,
        producer: (i64, i16),
        duty: Duty,
        address: SocketAddr,
    ) -> anyhow::Result<TransactionalProducer> {
        let mut value = vec![0; duty.record_size];
        payload::fill(u64::from(index), &mut value);
        Ok(TransactionalProducer {
            index,
            id,
            producer,
            pipe: Pipe::connect(address)?,
            in_flight: InFlight::new(),
            step: None,
            began_ns: 0,
            is_committed: true,
            offset: None,
            next_offset: 0,
            written: Vec::new(),
            next_number: BTreeMap::new(),
            next_partition: duty.partitions.start,
            chance: u64::from(index),
            value,
            duty,
        })
    }

    fn begin(&mut self, now_ns: u64) -> anyhow::Result<()> {
        self.began_ns = now_ns;
        self.is_committed = payload::splitmix64(&mut self.chance) % 1000 >= u64::from(self.duty.aborted_per_mille);
        self.written.clear();
        let mut data = Vec::with_capacity(self.duty.partitions_per_transaction as usize);
        for _ in 0..self.duty.partitions_per_transaction {
            let partition = self.next_partition;
            self.next_partition += 1;
            if self.next_partition == self.duty.partitions.end {
                self.next_partition = self.duty.partitions.start;
            }
            let batch = self.batch(partition, now_ns);
            data.push(PartitionProduceData::default().with_index(partition).with_records(Some(batch)));
        }
        let topic = TopicProduceData::default().with_name(topic_name(&self.duty.topic)).with_partition_data(data);
        let request = ProduceRequest::default()
            .with_transactional_id(Some(self.id.clone()))
            .with_acks(-1)
            .with_timeout_ms(30_000)
            .with_topic_data(vec![topic]);
        let correlation_id = self.in_flight.next_id();
        let frame = frame::encode_request(&CLIENT_ID, correlation_id, PRODUCE_VERSION, &request)?;
        self.in_flight.sent(correlation_id, ());
        self.send(Step::Producing(frame.into()))
    }

    fn batch(&mut self, partition: i32, now_ns: u64) -> Bytes {
        let (id, epoch) = self.producer;
        let next = self.next_number.entry(partition).or_default();
        let (first, count) = (*next, u64::from(self.duty.records_per_partition));
        *next += count;
        self.written.push((partition as u32, first, count));
        let filler_crc = payload::filler_crc(&self.value);
        let mut builder = BatchBuilder::new(Codec::None, 0).producer(id, epoch, 0).transactional();
        let timestamp = clock::wall_ms();
        for number in 0..count {
            let stamp = Stamp {
                run: self.duty.run,
                producer: self.index,
                partition: partition as u32,
                sequence: first + number,
                intended_ns: now_ns,
            };
            stamp.write(&mut self.value, filler_crc);
            builder.push(&Record {
                offset: number as i64,
                timestamp,
                key: None,
                value: Some(Bytes::copy_from_slice(&self.value)),
                headers: Vec::new(),
            });
        }
        builder.finish().into()
    }

    fn end(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.id.clone())
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_committed(self.is_committed);
        let correlation_id = self.in_flight.next_id();
        let frame = frame::encode_request(&CLIENT_ID, correlation_id, END_VERSION, &request)?;
        self.in_flight.sent(correlation_id, ());
        self.pipe.next_out().extend_from_slice(&frame);
        self.step = Some(Step::Ending { since_ns: now_ns });
        self.pipe.flush()
    }

    fn interest(&self) -> sys::Interest {
        sys::Interest { fd: self.pipe.fd(), writable: self.pipe.wants_write() }
    }

    /// The group, and the offset that it is to have.
    pub(super) fn group_offset(&self) -> Option<(&str, Option<i64>)> {
        Some((self.duty.group.as_deref()?, self.offset))
    }

    fn commit_offset(&mut self, group: String) -> anyhow::Result<()> {
        self.next_offset += 1;
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_committed_offset(self.next_offset)
            .with_committed_metadata(Some(StrBytes::default()));
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(topic_name(&self.duty.topic))
            .with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.id.clone())
            .with_group_id(GroupId(StrBytes::from_string(group)))
            .with_producer_id(ProducerId(self.producer.0))
            .with_producer_epoch(self.producer.1)
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        let correlation_id = self.in_flight.next_id();
        let frame = frame::encode_request(&CLIENT_ID, correlation_id, OFFSET_VERSION, &request)?;
        self.in_flight.sent(correlation_id, ());
        self.pipe.next_out().extend_from_slice(&frame);
        self.step = Some(Step::Offset);
        self.pipe.flush()
    }

    fn send(&mut self, step: Step) -> anyhow::Result<()> {
        if let Step::Producing(frame) = &step {
            self.pipe.next_out().extend_from_slice(frame);
        }
        self.step = Some(step);
        self.pipe.flush()
    }

    /// Takes what was answered and goes on, unless nothing more is to be begun.
    fn receive(&mut self, clock: Clock, window: Window, measured: &mut Measured) -> anyhow::Result<()> {
        let mut answers = Vec::new();
        self.pipe.receive(|frame| {
            answers.push(frame);
            Ok(())
        })?;
        for answer in answers {
            self.in_flight.answered(&answer)?;
            let now_ns = clock.now_ns();
            match self.step.take() {
                Some(Step::Producing(frame)) => self.produced(frame, answer, now_ns, measured)?,
                Some(Step::Offset) => {
                    let response = frame::decode_answer::<TxnOffsetCommitRequest>(answer, OFFSET_VERSION)?;
                    for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
                        client::check(|| format!("offset of {}", self.id.as_str()), partition.error_code)?;
                    }
                    self.end(now_ns)?;
                }
                Some(Step::Ending { since_ns }) => {
                    self.ended(answer, (since_ns, now_ns), window, measured)?;
                    if now_ns < window.end_ns {
                        self.begin(now_ns)?;
                    }
                }
                None => bail!("an answer that nothing was asked for"),
            }
        }
        Ok(())
    }

    fn produced(&mut self, frame: Bytes, answer: Bytes, now_ns: u64, measured: &mut Measured) -> anyhow::Result<()> {
        let response = frame::decode_answer::<ProduceRequest>(answer, PRODUCE_VERSION)?;
        let answers: Vec<_> = response.responses.iter().flat_map(|topic| &topic.partition_responses).collect();
        ensure!(answers.len() == self.written.len(), "{} partitions are answered", answers.len());
        // the last transaction is not over for the broker: whatever it has taken of these it will know again
        if answers.iter().any(|answer| answer.error_code == ResponseError::ConcurrentTransactions.code()) {
            measured.held_off += 1;
            let correlation_id = i32::from_be_bytes(frame[8..12].try_into()?);
            self.in_flight.sent(correlation_id, ());
            return self.send(Step::Producing(frame));
        }
        for answer in answers {
            client::check(|| format!("produce to partition {}", answer.index), answer.error_code)?;
        }
        match self.duty.group.clone() {
            Some(group) => self.commit_offset(group),
            None => self.end(now_ns),
        }
    }

    fn ended(
        &mut self,
        answer: Bytes,
        (since_ns, now_ns): (u64, u64),
        window: Window,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        let response = frame::decode_answer::<EndTxnRequest>(answer, END_VERSION)?;
        client::check(|| format!("end of a transaction of {}", self.id.as_str()), response.error_code)?;
        ensure!(response.producer_id.0 >= 0, "the broker gives transactions no epochs of their own");
        self.producer = (response.producer_id.0, response.producer_epoch);
        if self.is_committed && self.duty.group.is_some() {
            self.offset = Some(self.next_offset);
        }
        let records = if self.is_committed { &mut measured.visible } else { &mut measured.hidden };
        for (partition, first, count) in &self.written {
            records.insert((self.index, *partition), *first, *count);
        }
        if (window.start_ns..window.end_ns).contains(&now_ns) {
            let us = |since_ns: u64| (now_ns.saturating_sub(since_ns) / 1000).max(1);
            measured.transaction_us.saturating_record(us(self.began_ns));
            measured.end_us.saturating_record(us(since_ns));
            *(if self.is_committed { &mut measured.committed } else { &mut measured.aborted }) += 1;
        }
        Ok(())
    }
}

/// Runs producers until the window ends, and then to the ends of their transactions.
pub(super) fn drive(
    producers: &mut [TransactionalProducer],
    clock: Clock,
    window: Window,
    timeout: Duration,
) -> anyhow::Result<Measured> {
    sys::exact_timers();
    let mut measured = Measured::new()?;
    let (mut watch, mut ready) = (sys::Watch::new()?, Vec::new());
    for (index, producer) in producers.iter_mut().enumerate() {
        producer.begin(clock.now_ns())?;
        watch.set(index, producer.interest())?;
    }
    let mut next_look_ns = 0;
    loop {
        let now_ns = clock.now_ns();
        if now_ns >= next_look_ns || now_ns >= window.end_ns {
            next_look_ns = now_ns + LOOK_EVERY.as_nanos() as u64;
            if producers.iter().all(|producer| producer.step.is_none()) {
                return Ok(measured);
            }
            let is_late = |producer: &&TransactionalProducer| {
                producer.step.is_some() && now_ns.saturating_sub(producer.began_ns) > timeout.as_nanos() as u64
            };
            if let Some(late) = producers.iter().find(is_late) {
                bail!("a transaction of {} has not ended within {timeout:?}", late.id.as_str());
            }
        }
        watch.wait(LOOK_EVERY, &mut ready)?;
        for &index in &ready {
            let producer = &mut producers[index];
            producer.pipe.flush()?;
            producer.receive(clock, window, &mut measured)?;
            watch.set(index, producer.interest())?;
        }
    }
}

/// The name of a producer of a run.
pub(super) fn transactional_id(run: u64, index: u32) -> TransactionalId {
    TransactionalId(StrBytes::from_string(format!("bench-{run:016x}-{index}")))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::batch;

    #[test]
    fn records_are_of_now() {
        // They were of 1970: retention took the first ones out of a run that was longer than its interval.
        let broker = TcpListener::bind("127.0.0.1:0").unwrap();
        let duty = Duty {
            topic: "t".to_owned(),
            partitions: 0..1,
            partitions_per_transaction: 1,
            records_per_partition: 3,
            record_size: 100,
            aborted_per_mille: 0,
            group: None,
            run: 1,
        };
        let id = transactional_id(1, 0);
        let mut producer = TransactionalProducer::connect(0, id, (7, 0), duty, broker.local_addr().unwrap()).unwrap();
        let (before, bytes, mut times) = (clock::wall_ms(), producer.batch(0, 0), Vec::new());
        batch::for_each_record(&bytes, |record| times.push(record.timestamp_ms)).unwrap();
        assert_eq!(times.len(), 3);
        assert!(times.iter().all(|time| *time >= before), "{times:?}");
    }
}
