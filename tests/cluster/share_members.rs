//! Members of a share group that take records from all nodes, accept most, give some back, and know exactly what they were
//! promised.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        DescribeShareGroupOffsetsRequest, GroupId, ShareAcknowledgeRequest, ShareFetchRequest,
        ShareGroupHeartbeatRequest, TopicName,
        describe_share_group_offsets_request::DescribeShareGroupOffsetsRequestGroup,
        share_acknowledge_request::{self, AcknowledgePartition, AcknowledgeTopic},
        share_fetch_request::{FetchPartition, FetchTopic},
        share_fetch_response::ShareFetchableTopicResponse,
    },
    protocol::StrBytes,
};
use millrace_bench::{
    batch::{BatchShape, BatchTemplate, Idempotence},
    payload::Stamp,
};
use millrace_client::{ClientError, Cluster, ProducerId, Resource, ResourceKind};
use uuid::Uuid;

use crate::{load::DUPLICATE_SEQUENCE_NUMBER, node::PATIENCE, rig::Rig};

/// The group.
pub(crate) const GROUP: &str = "shared";
const ACCEPT: i8 = 1;
const RELEASE: i8 = 2;
/// How long a fetch waits for records.
const FETCH_WAIT: Duration = Duration::from_millis(300);
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(700);

/// A partition and an offset.
type Place = (i32, i64);

/// What happened to the records.
#[derive(Default)]
struct Ledger {
    /// Those that were accepted, as was answered.
    accepted: BTreeMap<Place, ()>,
    /// Those of which it is not known whether they were accepted: the answer was lost.
    unknown: BTreeMap<Place, ()>,
    /// How often those were delivered that were given back, as was answered.
    released: BTreeMap<Place, i16>,
    /// What must not be.
    complaints: Vec<String>,
    /// A node that stood still: what it gives out before it knows better is no reason to complain.
    forgiven: Option<i32>,
}

/// See the module.
pub(crate) struct Members {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
    /// Of every partition.
    records: i64,
    all: usize,
}

impl Members {
    /// Fills a topic, and starts members that read it from its start.
    pub(crate) fn start(rig: &Rig, topic: &str, partitions: i32, records: i64, members: usize) -> Members {
        (0..partitions).for_each(|partition| fill(rig, topic, partition, records));
        let group = Resource { kind: ResourceKind::Group, name: GROUP.to_owned() };
        let earliest = ("share.auto.offset.reset".to_owned(), "earliest".to_owned());
        // a record that is given back for each disturbance must not count as one that nobody can process
        let often = ("share.delivery.count.limit".to_owned(), "10".to_owned());
        let settings = [earliest, often];
        rig.insist("the group has its settings", |client| client.alter_config(&group, &settings, &[]));
        let (ledger, stop): (Arc<Mutex<Ledger>>, Arc<AtomicBool>) = Default::default();
        let running = (0..members).map(|at| {
            let mut member = Member {
                cluster: rig.client(),
                id: Uuid::from_u128(1 + at as u128).to_string(),
                topic: topic.to_owned(),
                epoch: 0,
                assigned: Vec::new(),
                beat: None,
                sessions: BTreeMap::new(),
                ledger: ledger.clone(),
            };
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    member.turn();
                }
            })
        });
        let running = running.collect();
        let all = usize::try_from(i64::from(partitions) * records).unwrap();
        Members { ledger, stop, running, records, all }
    }

    /// Those that were accepted, or may have been.
    fn accepted(&self) -> usize {
        let ledger = self.ledger.lock().unwrap();
        ledger.accepted.len() + ledger.unknown.keys().filter(|place| !ledger.accepted.contains_key(place)).count()
    }

    /// Waits until that many were accepted.
    pub(crate) fn await_accepted(&self, rig: &Rig, count: usize) {
        let begun = Instant::now();
        while self.accepted() < count {
            let accepted = self.accepted();
            assert!(begun.elapsed() < PATIENCE, "only {accepted} of {count} are accepted\n{}", rig.logs());
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until as many more were accepted, or all.
    pub(crate) fn await_more_accepted(&self, rig: &Rig, more: usize) {
        self.await_accepted(rig, (self.accepted() + more).min(self.all));
    }

    /// A node stands still from now on.
    pub(crate) fn forgive(&self, node: i32) {
        self.ledger.lock().unwrap().forgiven = Some(node);
    }

    /// Waits until all is accepted; fails if anything happened that must not.
    pub(crate) fn finish(self, rig: &Rig) {
        self.await_accepted(rig, self.all);
        let mut cluster = rig.client();
        // where it begins is told with how much is done behind that, so that it need not be the end
        rig.until("the group has begun everywhere", || {
            start_offsets(&mut cluster)
                .is_ok_and(|starts| !starts.is_empty() && starts.iter().all(|start| (0..=self.records).contains(start)))
        });
        // what would come again has the time to
        sleep(Duration::from_secs(2));
        self.stop.store(true, Relaxed);
        for member in self.running {
            member.join().unwrap();
        }
        let ledger = self.ledger.lock().unwrap();
        assert!(ledger.released.len() > 10, "too few were given back: {}", ledger.released.len());
        assert!(ledger.complaints.is_empty(), "{:?}\n{}", ledger.complaints, rig.logs());
    }
}

/// Where the group begins, of each partition.
fn start_offsets(cluster: &mut Cluster) -> Result<Vec<i64>, ClientError> {
    let coordinator = cluster.coordinator(GROUP)?;
    let wanted = DescribeShareGroupOffsetsRequestGroup::default().with_group_id(GroupId(text(GROUP))).with_topics(None);
    let request = DescribeShareGroupOffsetsRequest::default().with_groups(vec![wanted]);
    let told = cluster.broker(coordinator, |_| request)?;
    let group = &told.groups[0];
    ClientError::check("offsets", group.error_code, group.error_message.as_deref())?;
    let partitions = group.topics.iter().flat_map(|topic| &topic.partitions);
    Ok(partitions.map(|partition| partition.start_offset).collect())
}

/// Writes that many records to an empty partition, each once.
fn fill(rig: &Rig, topic: &str, partition: i32, records: i64) {
    let template = BatchTemplate::new(BatchShape { records: 10, value_bytes: 50, key_bytes: 0 });
    let ProducerId { id, epoch } = rig.insist("a producer id is given", |client| client.init_producer_id());
    let mut written = 0;
    rig.insist("records are written", |client| {
        while i64::from(written) < records {
            let id = Idempotence { producer_id: id, producer_epoch: epoch, base_sequence: written };
            match client.produce(topic, partition, &batch(&template, id), -1, true) {
                Err(error) if error.code() != Some(DUPLICATE_SEQUENCE_NUMBER) => return Err(error),
                _ => written += 10,
            }
        }
        Ok(())
    });
}

fn batch(template: &BatchTemplate, id: Idempotence) -> Bytes {
    let mut batch = Vec::new();
    let stamp = Stamp { run: 0, producer: 0, partition: 0, sequence: 0, intended_ns: 0 };
    template.append_to(&mut batch, 1, Some(id), stamp);
    batch.into()
}

/// One member, with a session at each node that leads something.
struct Member {
    cluster: Cluster,
    id: String,
    topic: String,
    epoch: i32,
    assigned: Vec<i32>,
    beat: Option<Instant>,
    /// Epochs of its sessions, and what they hold, by node.
    sessions: BTreeMap<i32, (i32, Vec<i32>)>,
    ledger: Arc<Mutex<Ledger>>,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl Member {
    /// Does what is to be done now; what goes wrong is tried again.
    fn turn(&mut self) {
        if self.beat.is_none_or(|beat| beat.elapsed() >= HEARTBEAT_INTERVAL) && self.heartbeat().is_err() {
            self.cluster.forget_leaders();
            sleep(Duration::from_millis(50));
            return;
        }
        let Ok(by_leader) = self.leaders() else {
            self.cluster.forget_leaders();
            sleep(Duration::from_millis(50));
            return;
        };
        self.sessions.retain(|node, _| by_leader.contains_key(node));
        for (node, partitions) in by_leader {
            if self.take_from(node, partitions).is_err() {
                self.sessions.remove(&node);
                self.cluster.forget_leaders();
            }
        }
    }

    fn heartbeat(&mut self) -> Result<(), ClientError> {
        let coordinator = self.cluster.coordinator(GROUP)?;
        let names = (self.epoch == 0).then(|| vec![TopicName(text(&self.topic))]);
        let request = ShareGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(GROUP)))
            .with_member_id(text(&self.id))
            .with_member_epoch(self.epoch)
            .with_subscribed_topic_names(names);
        let told = self.cluster.broker(coordinator, |_| request)?;
        if told.error_code != 0 {
            // UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH: joins again
            if matches!(told.error_code, 25 | 110) {
                self.epoch = 0;
            }
            return ClientError::check("heartbeat", told.error_code, told.error_message.as_deref());
        }
        self.epoch = told.member_epoch;
        if let Some(assignment) = told.assignment {
            self.assigned = assignment.topic_partitions.into_iter().flat_map(|topic| topic.partitions).collect();
        }
        self.beat = Some(Instant::now());
        Ok(())
    }

    fn leaders(&mut self) -> Result<BTreeMap<i32, Vec<i32>>, ClientError> {
        let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for partition in self.assigned.clone() {
            by_leader.entry(self.cluster.leader(&self.topic, partition)?).or_default().push(partition);
        }
        if by_leader.is_empty() {
            sleep(Duration::from_millis(50));
        }
        Ok(by_leader)
    }

    /// Fetches from a node and acknowledges what came.
    fn take_from(&mut self, node: i32, partitions: Vec<i32>) -> Result<(), ClientError> {
        let topic = self.cluster.topic(&self.topic, false)?.id;
        let (epoch, _) = self.sessions.get(&node).filter(|(_, held)| *held == partitions).cloned().unwrap_or_default();
        let wanted = partitions.iter().map(|index| FetchPartition::default().with_partition_index(*index)).collect();
        let wanted = vec![FetchTopic::default().with_topic_id(topic).with_partitions(wanted)];
        let request = ShareFetchRequest::default()
            .with_group_id(Some(GroupId(text(GROUP))))
            .with_member_id(Some(text(&self.id)))
            .with_share_session_epoch(epoch)
            .with_max_wait_ms(i32::try_from(FETCH_WAIT.as_millis()).unwrap())
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_max_records(20)
            .with_batch_size(20)
            .with_topics(if epoch == 0 { wanted } else { Vec::new() });
        let told = self.cluster.broker_waiting(node, FETCH_WAIT, |_| request)?;
        ClientError::check("fetch", told.error_code, told.error_message.as_deref())?;
        self.sessions.insert(node, (epoch + 1, partitions));
        let is_sent_away = told.responses.iter().flat_map(|topic| &topic.partitions).any(|it| it.error_code != 0);
        self.acknowledge(node, topic, told.responses)?;
        ClientError::check("fetch of a partition", if is_sent_away { 6 } else { 0 }, None)
    }

    fn acknowledge(
        &mut self,
        node: i32,
        topic: Uuid,
        told: Vec<ShareFetchableTopicResponse>,
    ) -> Result<(), ClientError> {
        let mut partitions = Vec::new();
        let mut sent: BTreeMap<i32, Vec<(i64, i8, i16)>> = BTreeMap::new();
        for partition in told.iter().flat_map(|topic| &topic.partitions) {
            let index = partition.partition_index;
            let mut batches = Vec::new();
            for range in &partition.acquired_records {
                let kinds: Vec<i8> = (range.first_offset..=range.last_offset)
                    .map(|offset| {
                        self.note_delivery(node, (index, offset), range.delivery_count);
                        let kind = if offset % 7 == 0 && range.delivery_count < 2 { RELEASE } else { ACCEPT };
                        sent.entry(index).or_default().push((offset, kind, range.delivery_count));
                        kind
                    })
                    .collect();
                let batch = share_acknowledge_request::AcknowledgementBatch::default()
                    .with_first_offset(range.first_offset)
                    .with_last_offset(range.last_offset);
                batches.push(batch.with_acknowledge_types(kinds));
            }
            if !batches.is_empty() {
                let acknowledged = AcknowledgePartition::default().with_partition_index(index);
                partitions.push(acknowledged.with_acknowledgement_batches(batches));
            }
        }
        if partitions.is_empty() {
            return Ok(());
        }
        let (epoch, held) = self.sessions.get(&node).cloned().unwrap_or_default();
        let request = ShareAcknowledgeRequest::default()
            .with_group_id(Some(GroupId(text(GROUP))))
            .with_member_id(Some(text(&self.id)))
            .with_share_session_epoch(epoch)
            .with_topics(vec![AcknowledgeTopic::default().with_topic_id(topic).with_partitions(partitions)]);
        let told = self.cluster.broker(node, |_| request);
        if told.is_err() {
            let accepted =
                sent.iter().flat_map(|(index, all)| all.iter().map(|(offset, kind, _)| ((*index, *offset), kind)));
            let accepted = accepted.filter(|(_, kind)| **kind == ACCEPT).map(|(place, _)| (place, ()));
            self.ledger.lock().unwrap().unknown.extend(accepted);
        }
        let told = told?;
        ClientError::check("acknowledgement", told.error_code, told.error_message.as_deref())?;
        self.sessions.insert(node, (epoch + 1, held));
        let mut ledger = self.ledger.lock().unwrap();
        for partition in told.responses.iter().flat_map(|topic| &topic.partitions) {
            let index = partition.partition_index;
            for (offset, kind, count) in sent.remove(&index).unwrap_or_default() {
                match (partition.error_code, kind) {
                    (0, ACCEPT) => drop(ledger.accepted.insert((index, offset), ())),
                    (0, _) => drop(ledger.released.insert((index, offset), count)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn note_delivery(&self, node: i32, place: Place, count: i16) {
        let mut ledger = self.ledger.lock().unwrap();
        if ledger.forgiven == Some(node) {
            return;
        }
        if ledger.accepted.contains_key(&place) {
            ledger.complaints.push(format!("{place:?} was accepted and came again from node {node}"));
        }
        if let Some(before) = ledger.released.get(&place).filter(|before| count <= **before) {
            let complaint = format!("{place:?} was given back at delivery {before}, and came as delivery {count}");
            ledger.complaints.push(complaint);
        }
    }
}
