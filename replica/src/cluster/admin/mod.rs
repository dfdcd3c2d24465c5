//! What administrators ask for, made into transactions: topics, settings, reassignments, elections, nodes, producer ids.
//!
//! Pure: an image and a question give what is to be written, or Kafka's error. What is planned from an old image is refused by
//! the compares, and planned anew from the next one; so every plan recognises that an earlier one of its own was done.

pub(crate) mod configs;
pub(crate) mod join;
pub(crate) mod partitions;
pub(crate) mod placement;
pub(crate) mod topics;

use millrace_engine::api::TopicPartition;
use uuid::Uuid;

use super::{
    change::requirements,
    image::Image,
    keys,
    model::{Member, PartitionState, TopicState},
    plane::{AdminCode, AdminError},
    store::{Compare, TRANSACTION_BYTES_MAX, TRANSACTION_OPERATIONS_MAX, Transaction},
};

/// In place of a revision: that of the plan's first transaction.
pub(crate) const FIRST_STEP: i64 = i64::MIN;

/// Partitions that one transaction changes at most: what etcd does fastest, with room for compares of nodes.
pub(crate) const PARTITIONS_PER_TRANSACTION: usize = 100;

/// What is to be done.
pub(crate) enum Plan<T> {
    /// Nothing: that is the answer.
    Answer(T),
    /// Nothing yet: the image is behind who asks.
    Later,
    /// These transactions, one after the other, each only if the one before was done; then the answer, given the revision
    /// of the last.
    Write(Vec<Transaction>, Box<dyn FnOnce(i64) -> T + Send>),
}

impl<T: Send + 'static> Plan<T> {
    /// Transactions, and an answer that does not depend on their revisions.
    pub(crate) fn write(steps: Vec<Transaction>, answer: T) -> Self {
        Self::Write(steps, Box::new(move |_| answer))
    }

    /// The same with another answer made of its own.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U + Send + 'static) -> Plan<U> {
        match self {
            Self::Answer(answer) => Plan::Answer(make(answer)),
            Self::Later => Plan::Later,
            Self::Write(steps, answer) => Plan::Write(steps, Box::new(move |revision| make(answer(revision)))),
        }
    }
}

/// What a plan is made from besides the image.
pub(crate) struct Setting<'a> {
    /// What the cluster looks like.
    pub(crate) image: &'a Image,
    /// This node's present life.
    pub(crate) me: Member,
    /// Plans of the same item before this one, whose compares failed or of which nothing was heard.
    pub(crate) attempts: u32,
    /// Ids that were never used.
    pub(crate) ids: &'a mut dyn FnMut() -> Uuid,
}

impl Setting<'_> {
    /// Whether what is asked for may have been done by a plan before this one.
    pub(crate) fn may_be_done(&self) -> bool {
        self.attempts > 0
    }
}

/// Refuses with one of Kafka's errors.
pub(crate) fn error<T>(code: AdminCode, text: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::new(code, text))
}

/// UNKNOWN_TOPIC_OR_PARTITION, as Kafka says it of a name.
pub(crate) fn unknown_topic(name: &str) -> AdminError {
    AdminError::new(AdminCode::UnknownTopicOrPartition, format!("Unable to find a topic named {name}."))
}

/// The transaction that changes one partition: what the state was made from must still hold.
pub(crate) fn change_partition(
    image: &Image,
    topic: &TopicState,
    partition: TopicPartition,
    next: &PartitionState,
) -> Transaction {
    let key = keys::partition(topic.id, partition.partition);
    let mut transaction = Transaction::new();
    if let Some(before) = image.partition(partition) {
        transaction.require(Compare::Modified(key.clone(), before.revision));
        for required in requirements(&before.value, next, &image.surroundings(topic)) {
            keys::compares(required).into_iter().for_each(|compare| transaction.require(compare));
        }
    }
    transaction.put(key, keys::encode_partition(next))
}

/// Puts a transaction behind another, as one. False, and nothing is done, if both together would be too large, or write the
/// same key.
pub(crate) fn absorb(first: &mut Transaction, second: &Transaction) -> bool {
    let new: Vec<_> = second.compares.iter().filter(|compare| !first.compares.contains(compare)).cloned().collect();
    let writes = |first: &Transaction, key: &str| first.operations.iter().any(|operation| operation.key() == key);
    let fits = second.operations.iter().all(|operation| !writes(first, operation.key()))
        && first.compares.len() + new.len() <= TRANSACTION_OPERATIONS_MAX
        && first.operations.len() + second.operations.len() <= PARTITIONS_PER_TRANSACTION
        && first.bytes() + second.bytes() <= TRANSACTION_BYTES_MAX;
    if fits {
        first.compares.extend(new);
        first.operations.extend(second.operations.iter().cloned());
    }
    fits
}

#[cfg(test)]
mod tests;
