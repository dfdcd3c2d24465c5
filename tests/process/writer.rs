//! Writers that know exactly what they were promised.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use kafka_protocol::messages::ProduceRequest;
use millrace_bench::{
    batch::{BatchShape, BatchTemplate, Idempotence},
    client::{self, ClientError, Connection, PRODUCE_VERSION},
    ledger::Acknowledged,
    payload::Stamp,
};

use crate::broker::PATIENCE;

/// Kafka's code for a batch whose like was appended before: as good as an acknowledgement.
const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;

/// Codes of a broker that is starting: LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER.
const NOT_YET: [i16; 2] = [5, 6];

/// Sends batches of one producer to the partitions of one topic, with a few requests in flight.
pub(crate) struct Writer {
    address: SocketAddr,
    topic: String,
    run: u64,
    producer: u32,
    template: BatchTemplate,
    in_flight: usize,
    /// Producer id and epoch of an idempotent writer, which sends again what was not answered.
    idempotence: Option<(i64, i16)>,
    /// Next sequence of each partition.
    sequences: Vec<u64>,
    /// Sent and not answered, in order: partition and first sequence.
    pending: VecDeque<(i32, u64)>,
    next_partition: usize,
    connection: Option<Connection>,
    pub(crate) acknowledged: Acknowledged,
    /// Answers that were errors of the broker.
    pub(crate) refusals: Vec<i16>,
}

impl Writer {
    /// A writer to all partitions of a topic through one broker.
    pub(crate) fn new(address: SocketAddr, topic: &str, partitions: usize, run: u64, producer: u32) -> Writer {
        Writer {
            address,
            topic: topic.to_owned(),
            run,
            producer,
            template: BatchTemplate::new(BatchShape { records: 3, value_bytes: 300, key_bytes: 0 }),
            in_flight: 4,
            idempotence: None,
            sequences: vec![0; partitions],
            pending: VecDeque::new(),
            next_partition: producer as usize,
            connection: None,
            acknowledged: Acknowledged::default(),
            refusals: Vec::new(),
        }
    }

    /// Makes it idempotent.
    pub(crate) fn idempotent(mut self) -> Writer {
        let mut connection = client::connect(self.address, PATIENCE).unwrap();
        self.idempotence = Some(client::await_producer_id(&mut connection, PATIENCE).unwrap());
        self
    }

    /// Sets the shape of its batches.
    pub(crate) fn shape(mut self, shape: BatchShape) -> Writer {
        self.template = BatchTemplate::new(shape);
        self
    }

    /// Writes until `stop`, through every loss of the connection; then waits for what is in flight. A plain writer never
    /// sends a batch twice; an idempotent one sends it until it is answered.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Writer {
        while !stop.load(Relaxed) {
            if self.step().is_err() {
                self.reconnect();
            }
        }
        while !self.pending.is_empty() {
            if self.receive().is_err() {
                self.reconnect();
                if self.idempotence.is_none() {
                    break;
                }
            }
        }
        self
    }

    /// Sends `count` batches one after the other over a healthy connection; each must be acknowledged.
    pub(crate) fn write(&mut self, count: usize) {
        for _ in 0..count {
            self.send_next().unwrap();
            while self.pending.len() >= self.in_flight {
                self.receive().unwrap();
            }
        }
        while !self.pending.is_empty() {
            self.receive().unwrap();
        }
        assert!(self.refusals.is_empty(), "refused: {:?}", self.refusals);
    }

    /// Sends batches until one is refused, or `max` were taken; answers the error code.
    pub(crate) fn write_until_refused(&mut self, max: usize) -> Option<i16> {
        for _ in 0..max {
            self.send_next().unwrap();
            self.receive().unwrap();
            if let Some(code) = self.refusals.pop() {
                return Some(code);
            }
        }
        None
    }

    /// Forgets the connection, e.g. as the broker was stopped; the next write opens one.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }

    fn step(&mut self) -> Result<(), ClientError> {
        while self.pending.len() < self.in_flight {
            self.send_next()?;
        }
        self.receive()
    }

    fn send_next(&mut self) -> Result<(), ClientError> {
        let partition = self.next_partition % self.sequences.len();
        self.next_partition += 1;
        let sequence = self.sequences[partition];
        self.sequences[partition] += self.template.shape().records as u64;
        self.pending.push_back((partition as i32, sequence));
        self.send(partition as i32, sequence)
    }

    fn send(&mut self, partition: i32, sequence: u64) -> Result<(), ClientError> {
        let request = client::produce_request(&self.topic, partition, self.batch(partition, sequence), PATIENCE);
        if self.connection.is_none() {
            self.connection = Some(client::connect(self.address, PATIENCE)?);
        }
        self.connection.as_mut().unwrap().send(PRODUCE_VERSION, &request)
    }

    fn batch(&self, partition: i32, sequence: u64) -> Bytes {
        let id = self.idempotence.map(|(producer_id, producer_epoch)| Idempotence {
            producer_id,
            producer_epoch,
            base_sequence: sequence as i32,
        });
        let (run, producer) = (self.run, self.producer);
        let stamp = Stamp { run, producer, partition: partition as u32, sequence, intended_ns: 0 };
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let mut bytes = Vec::new();
        self.template.append_to(&mut bytes, now_ms, id, stamp);
        bytes.into()
    }

    fn receive(&mut self) -> Result<(), ClientError> {
        let Some(connection) = self.connection.as_mut() else {
            let source = std::io::ErrorKind::NotConnected.into();
            return Err(ClientError::Lost { address: self.address.to_string(), source });
        };
        let response = connection.receive::<ProduceRequest>(PRODUCE_VERSION)?;
        let (partition, sequence) = self.pending.pop_front().unwrap();
        match client::produced(&response) {
            Ok(_) => self.acknowledge(partition, sequence),
            Err(error) => match error.code() {
                Some(DUPLICATE_SEQUENCE_NUMBER) => self.acknowledge(partition, sequence),
                Some(code) if self.idempotence.is_some() && NOT_YET.contains(&code) => {
                    self.pending.push_front((partition, sequence));
                    return Err(error);
                }
                Some(code) => self.refusals.push(code),
                None => return Err(error),
            },
        }
        Ok(())
    }

    fn acknowledge(&mut self, partition: i32, sequence: u64) {
        let records = self.template.shape().records as u64;
        self.acknowledged.insert((self.producer, partition as u32), sequence, records);
    }

    /// Connects again, for as long as it takes. A plain writer gives up what was not answered; an idempotent one sends
    /// it again in the same order.
    fn reconnect(&mut self) {
        self.connection = None;
        if self.idempotence.is_none() {
            self.pending.clear();
        }
        let start = std::time::Instant::now();
        loop {
            let again = self.pending.clone();
            let sent = again.into_iter().try_for_each(|(partition, sequence)| self.send(partition, sequence));
            let connected = self.connection.is_some() || client::connect(self.address, PATIENCE).is_ok();
            if sent.is_ok() && connected {
                return;
            }
            self.connection = None;
            assert!(start.elapsed() < PATIENCE, "no connection within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
