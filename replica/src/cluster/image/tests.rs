//! An image that is watched is the image that is read.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cluster::{
    memory::Memory,
    model::PartitionState,
    store::{Operation, Transaction},
};

fn topic_id(number: u8) -> TopicId {
    Uuid::from_u128(u128::from(number) + 1)
}

fn partition_value(leader_epoch: i32) -> Vec<u8> {
    keys::encode_partition(&PartitionState { leader_epoch, replicas: vec![1], ..PartitionState::default() })
}

fn topic_value(number: u8, partitions: i32, forming: bool) -> Vec<u8> {
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    keys::encode_topic(&StoredTopic { name: format!("t{number}"), partitions, configs, forming })
}

#[derive(Clone, Debug)]
enum Step {
    Topic(u8, i32, bool),
    Partition(u8, i32, i32),
    DeleteTopic(u8),
    Setting(u8, bool),
    Controller(bool),
    Draining(i32, bool),
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        (0..3u8, 1..4, any::<bool>()).prop_map(|(topic, count, forming)| Step::Topic(topic, count, forming)),
        (0..3u8, 0..4, 0..9).prop_map(|(topic, partition, epoch)| Step::Partition(topic, partition, epoch)),
        (0..3u8).prop_map(Step::DeleteTopic),
        (0..3u8, any::<bool>()).prop_map(|(name, there)| Step::Setting(name, there)),
        any::<bool>().prop_map(Step::Controller),
        (1..3, any::<bool>()).prop_map(|(node, there)| Step::Draining(node, there)),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..4), 1..40)
}

fn transaction(steps: &[Step]) -> Transaction {
    let mut transaction = Transaction::new();
    let mut write = |key: String, value: Option<Vec<u8>>| {
        let is_free =
            transaction.operations.iter().all(|other| !other.key().starts_with(&key) && !key.starts_with(other.key()));
        if is_free {
            transaction.operations.push(match value {
                Some(value) => Operation::Put { key, value, lease: 0 },
                None => Operation::Delete(key),
            });
        }
    };
    // a topic goes with all its partitions, and with nothing else
    let deletes = |step: &&Step| matches!(step, Step::DeleteTopic(_));
    let alone = steps.iter().find(deletes).into_iter();
    let others = steps.iter().filter(|_| !steps.iter().any(|step| deletes(&step)));
    for step in alone.chain(others) {
        match step {
            Step::Topic(topic, count, forming) => {
                write(keys::topic(topic_id(*topic)), Some(topic_value(*topic, *count, *forming)));
            }
            Step::Partition(topic, partition, epoch) => {
                write(keys::partition(topic_id(*topic), *partition), Some(partition_value(*epoch)));
            }
            Step::DeleteTopic(topic) => {
                write(keys::topic(topic_id(*topic)), None);
                (0..4).for_each(|index| write(keys::partition(topic_id(*topic), index), None));
            }
            Step::Setting(name, there) => {
                let key = SettingKey { node: None, name: format!("brokers/{name}") };
                write(keys::setting(&key), there.then(|| keys::encode_setting("1")));
            }
            Step::Controller(there) => write(keys::CONTROLLER.to_owned(), there.then(|| keys::encode_integer(1))),
            Step::Draining(node, there) => write(keys::draining(*node), there.then(|| keys::encode_integer(5))),
        }
    }
    transaction
}

/// Topics keep the partitions that they had when they shrink, which nobody writes; the same topic told again does not.
fn shrinks(memory: &Memory, transaction: &Transaction) -> bool {
    transaction.operations.iter().any(|operation| {
        let Operation::Put { key, value, .. } = operation else { return false };
        let before = memory.range(key, None, 0, 1).unwrap().entries.pop();
        let read = |value: &[u8]| match keys::decode(&KeyValue {
            key: key.clone(),
            value: value.to_vec(),
            created: 1,
            modified: 1,
            version: 1,
            lease: 0,
        }) {
            Ok(Some(Entry::Topic(_, stored))) => Some(stored),
            _ => None,
        };
        match (before.and_then(|before| read(&before.value)), read(value)) {
            (Some(before), Some(after)) => after.partitions < before.partitions || (!before.forming && after.forming),
            _ => false,
        }
    })
}

proptest! {
    #[test]
    fn watching_and_reading_lead_to_the_same_image(steps in steps()) {
        let mut memory = Memory::new(1);
        let mut image = Image::new(Arc::default());
        let mut copies = Vec::new();
        for steps in &steps {
            let transaction = transaction(steps);
            if shrinks(&memory, &transaction) {
                continue;
            }
            memory.transact(&transaction).unwrap();
            copies.push((image.clone(), memory.range("", None, image.revision, 1_000).ok()));
            let before = image.clone();
            let changes = memory.changes(image.revision + 1).unwrap();
            image.apply(&changes).unwrap();
            // what comes twice, or late, changes nothing
            let again = image.clone();
            prop_assert_eq!(image.apply(&memory.changes(1).unwrap()).unwrap(), vec![]);
            prop_assert_eq!(&image, &again);
            let read = read(&memory);
            prop_assert_eq!(&image, &read);
            prop_assert_eq!(read.differences(&before).is_empty(), again.differences(&before).is_empty());
            prop_assert!(image.differences(&read).is_empty());
        }
        for (copy, page) in copies {
            if let Some(page) = page.filter(|_| copy.revision > 0) {
                let read = Image::read(Arc::default(), copy.revision, &page.entries).unwrap();
                prop_assert_eq!(read, copy);
            }
        }
    }
}

fn read(memory: &Memory) -> Image {
    let page = memory.range("", None, 0, 1_000).unwrap();
    let newest = memory.changes(1).unwrap().iter().map(Change::revision).max().unwrap_or(0);
    Image::read(Arc::default(), newest, &page.entries).unwrap()
}

#[test]
fn a_topic_is_seen_once_it_is_not_forming_any_more() {
    let mut memory = Memory::new(1);
    let mut image = Image::new(Arc::default());
    let mut write = |transaction: Transaction, image: &mut Image| {
        memory.transact(&transaction).unwrap();
        image.apply(&memory.changes(image.revision + 1).unwrap()).unwrap()
    };
    write(Transaction::new().put(keys::topic(topic_id(1)), topic_value(1, 2, true)), &mut image);
    write(Transaction::new().put(keys::partition(topic_id(1), 1), partition_value(4)), &mut image);
    write(Transaction::new().put(keys::partition(topic_id(1), 0), partition_value(3)), &mut image);
    assert!(image.topic("t1").is_none() && image.forming.len() == 1);
    let changed = write(Transaction::new().put(keys::topic(topic_id(1)), topic_value(1, 2, false)), &mut image);
    assert_eq!(changed.len(), 3);
    let topic = image.topic("t1").unwrap();
    assert_eq!(topic.partitions.iter().map(|one| one.value.leader_epoch).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(topic.rules.min_isr, 2);
    let tp = TopicPartition { topic: topic_id(1), partition: 1 };
    assert_eq!(image.partition(tp).unwrap().partition_epoch(), 0);
}
