//! Committed and pending offsets against what the log says by itself: of all records of a partition that count, the last
//! one in the log wins, whatever happened in which order, and however often the coordinator was loaded anew.

use std::rc::Rc;

use kafka_protocol::{
    messages::{
        GroupId, OffsetDeleteRequest, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        offset_fetch_response::OffsetFetchResponseGroup,
    },
    protocol::StrBytes,
};
use millrace_engine::transactions::Outcome;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::coordinator::{
    group::{offsets::Stability, script::FakeTopics, settings::Settings},
    runtime::{Inbox, Machine, Replayed, ReplayedMarker},
};

const GROUPS: [&str; 2] = ["g", "h"];
const TOPICS: [&str; 2] = ["t", "u"];

/// A group and a topic, by their places in the lists above.
type Key = (usize, usize);

#[derive(Debug, Clone)]
enum Step {
    Commit(Key),
    TxnCommit(Key, i64),
    Delete(Key),
    End(i64, Outcome),
    /// The next write is refused by the log.
    FailNext,
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || (0..GROUPS.len(), 0..TOPICS.len());
    let outcome = prop_oneof![Just(Outcome::Commit), Just(Outcome::Abort)];
    prop_oneof![
        2 => key().prop_map(Step::Commit),
        4 => (key(), 0..3_i64).prop_map(|(key, producer_id)| Step::TxnCommit(key, producer_id)),
        1 => key().prop_map(Step::Delete),
        2 => (0..3_i64, outcome).prop_map(|(producer_id, outcome)| Step::End(producer_id, outcome)),
        1 => Just(Step::FailNext),
        1 => Just(Step::Reload),
    ]
}

/// What stands at an offset of the log.
enum Logged {
    Record { key: Key, producer_id: Option<i64>, value: Option<i64>, bytes: (Vec<u8>, Option<Vec<u8>>) },
    Marker(i64, Outcome),
}

struct Run {
    coordinator: Coordinator,
    log: Vec<Logged>,
    fails: bool,
    inbox: Inbox<OffsetFetchResponseGroup>,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn coordinator() -> Coordinator {
    let mut topics = FakeTopics::default();
    TOPICS.iter().for_each(|topic| topics.set(topic, 1));
    let mut coordinator = Coordinator::new(Rc::new(Settings::default()));
    coordinator.see_topics(Rc::new(topics));
    coordinator
}

fn request((group, topic): Key, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic =
        OffsetCommitRequestTopic::default().with_name(TopicName(text(TOPICS[topic]))).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(GROUPS[group])))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

fn caller() -> Caller {
    Caller { client_id: String::new(), client_host: String::new(), version: 5, fresh_id: String::new() }
}

impl Run {
    fn take(&mut self, step: &Step) {
        let offset = i64::try_from(self.log.len()).unwrap();
        match *step {
            Step::Commit(key) => {
                let ticket = Inbox::<()>::new().ticket(|_| None);
                self.coordinator.handle_offset_commit(0, &caller(), &request(key, offset), ticket);
            }
            Step::TxnCommit(key, producer_id) => {
                let guard = self.coordinator.guard(producer_id, String::new());
                let ticket = Inbox::<()>::new().ticket(|_| None);
                let producer = ((producer_id, 0), &guard);
                self.coordinator.handle_txn_offset_commit(0, &caller(), producer, &request(key, offset), ticket);
            }
            Step::Delete((group, topic)) => {
                let topic = OffsetDeleteRequestTopic::default()
                    .with_name(TopicName(text(TOPICS[topic])))
                    .with_partitions(vec![OffsetDeleteRequestPartition::default()]);
                let request =
                    OffsetDeleteRequest::default().with_group_id(GroupId(text(GROUPS[group]))).with_topics(vec![topic]);
                self.coordinator.handle_offset_delete(&request, Inbox::<()>::new().ticket(|_| None));
            }
            Step::End(producer_id, outcome) => {
                self.log.push(Logged::Marker(producer_id, outcome));
                let marker = ReplayedMarker { offset, producer_id, producer_epoch: 0, outcome };
                self.coordinator.begin_marker(producer_id);
                self.coordinator.replay_marker(&marker);
            }
            Step::FailNext => self.fails = true,
            Step::Reload => self.reload(),
        }
        self.persist();
        self.coordinator.check();
    }

    fn persist(&mut self) {
        for write in self.coordinator.take_writes() {
            let fails = std::mem::take(&mut self.fails);
            let base = i64::try_from(self.log.len()).unwrap();
            if !fails {
                let producer_id = write.producer.map(|(producer_id, _)| producer_id);
                self.log.extend(write.records.iter().map(|record| logged(record, producer_id)));
            }
            let result = if fails { Err(ResponseError::CoordinatorNotAvailable) } else { Ok(base) };
            let _: crate::coordinator::runtime::Verdict = self.coordinator.on_persisted(0, write.id, result);
        }
    }

    fn reload(&mut self) {
        self.coordinator = coordinator();
        for (offset, logged) in (0..).zip(&self.log) {
            match logged {
                Logged::Record { producer_id, bytes: (key, value), .. } => {
                    let producer = producer_id.map(|producer_id| (producer_id, 0));
                    let record = Replayed { offset, producer, key, value: value.as_deref() };
                    self.coordinator.replay(&record).unwrap();
                }
                Logged::Marker(producer_id, outcome) => self.coordinator.replay_marker(&ReplayedMarker {
                    offset,
                    producer_id: *producer_id,
                    producer_epoch: 0,
                    outcome: *outcome,
                }),
            }
        }
        self.coordinator.on_loaded(0);
    }

    /// What the coordinator says of a partition: its offset, or that it is not stable.
    fn told(&mut self, (group, topic): Key, stability: Stability) -> Option<i64> {
        let topic = OffsetFetchRequestTopics::default()
            .with_name(TopicName(text(TOPICS[topic])))
            .with_partition_indexes(vec![0]);
        let request = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text(GROUPS[group])))
            .with_member_epoch(-1)
            .with_topics(Some(vec![topic]));
        let ticket = self.inbox.ticket(Result::ok);
        self.coordinator.handle_offset_fetch(request, stability, ticket);
        self.coordinator.take_replies().into_iter().for_each(crate::coordinator::runtime::Reply::send);
        let answer = self.inbox.take().pop().unwrap();
        let partition = &answer.topics[0].partitions[0];
        (partition.error_code == 0).then_some(partition.committed_offset)
    }

    /// What the log says of a partition: the value of its last record that counts, and whether one may still come to count.
    fn expected(&self, key: Key) -> (i64, bool) {
        let is_deletion = |logged: &Logged| matches!(logged, Logged::Record { key: of, value: None, .. } if *of == key);
        let from = self.log.iter().rposition(is_deletion).map_or(0, |deletion| deletion + 1);
        let (mut committed, mut is_unstable) = (-1, false);
        for (offset, logged) in self.log.iter().enumerate().skip(from) {
            let Logged::Record { key: of, producer_id, value: Some(value), .. } = logged else { continue };
            if *of != key {
                continue;
            }
            let ended = |logged: &Logged| match (logged, producer_id) {
                (Logged::Marker(of, outcome), Some(producer_id)) if of == producer_id => Some(*outcome),
                _ => None,
            };
            match (producer_id, self.log[offset..].iter().find_map(ended)) {
                (None, _) | (_, Some(Outcome::Commit)) => committed = *value,
                (_, Some(Outcome::Abort)) => {}
                (Some(_), None) => is_unstable = true,
            }
        }
        (committed, is_unstable)
    }
}

fn logged(record: &Record, producer_id: Option<i64>) -> Logged {
    let Record::OffsetCommit { group, topic, value, .. } = record else { panic!("only offsets are written") };
    let place = |all: &[&str], name: &str| all.iter().position(|known| *known == name).unwrap();
    let key = (place(&GROUPS, group), place(&TOPICS, topic));
    let value = value.as_ref().map(|value| value.offset);
    Logged::Record { key, producer_id, value, bytes: (record.key(), record.value()) }
}

proptest! {
    #[test]
    fn offsets_are_what_the_log_says(steps in vec(step(), 1..60)) {
        let mut run = Run { coordinator: coordinator(), log: Vec::new(), fails: false, inbox: Inbox::new() };
        for step in steps {
            run.take(&step);
            for group in 0..GROUPS.len() {
                for topic in 0..TOPICS.len() {
                    let (committed, is_unstable) = run.expected((group, topic));
                    prop_assert_eq!(run.told((group, topic), Stability::Any), Some(committed));
                    let stable = (!is_unstable).then_some(committed);
                    prop_assert_eq!(run.told((group, topic), Stability::Required), stable);
                }
            }
        }
    }
}
