//! Asks coordinators of transactions on other nodes whether a producer's transaction includes partitions, or to include
//! them (AddPartitionsToTxn as brokers speak it, KIP-890).

use std::collections::BTreeMap;

use kafka_protocol::{
    error::ResponseError,
    messages::{
        AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ProducerId, TopicName, TransactionalId,
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
    },
    protocol::StrBytes,
};
use millrace_engine::transactions::Adds;

use crate::{
    client::{OtherBrokers, Purpose},
    coordinator::transaction::Producer,
};

/// Asks a node's coordinator: `Ok` if all partitions are in the transaction now.
pub(super) async fn verify_or_add(
    others: &OtherBrokers,
    node: i32,
    (id, producer): (&str, Producer),
    partitions: &[(String, i32)],
    adds: Adds,
) -> Result<(), ResponseError> {
    let asked = others.ask(node, Purpose::Admission, |_| request((id, producer), partitions, adds)).await;
    match asked {
        Ok(response) => answer(&response),
        Err(error) => {
            tracing::debug!(%error, "the coordinator of a transaction is not reached");
            Err(ResponseError::CoordinatorNotAvailable)
        }
    }
}

fn request((id, producer): (&str, Producer), partitions: &[(String, i32)], adds: Adds) -> AddPartitionsToTxnRequest {
    let mut by_topic = BTreeMap::<&str, Vec<i32>>::new();
    for (topic, partition) in partitions {
        by_topic.entry(topic).or_default().push(*partition);
    }
    let topics = by_topic.into_iter().map(|(topic, partitions)| {
        let name = TopicName(StrBytes::from_string(topic.to_owned()));
        AddPartitionsToTxnTopic::default().with_name(name).with_partitions(partitions)
    });
    let transaction = AddPartitionsToTxnTransaction::default()
        .with_transactional_id(TransactionalId(StrBytes::from_string(id.to_owned())))
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
        .with_verify_only(adds == Adds::Verify)
        .with_topics(topics.collect());
    AddPartitionsToTxnRequest::default().with_transactions(vec![transaction])
}

/// The first error of all; one that says only that another partition has one is of no use.
fn answer(response: &AddPartitionsToTxnResponse) -> Result<(), ResponseError> {
    let results = response.results_by_transaction.iter().flat_map(|result| &result.topic_results);
    let partitions = results.flat_map(|topic| &topic.results_by_partition);
    let codes: Vec<i16> = partitions.map(|partition| partition.partition_error_code).collect();
    let whole = (response.error_code != 0).then_some(response.error_code);
    let of_partitions = || {
        let errors = codes.iter().copied().filter(|code| *code != 0);
        errors.clone().find(|code| *code != ResponseError::OperationNotAttempted.code()).or(errors.into_iter().next())
    };
    match whole.or_else(of_partitions) {
        Some(code) => Err(ResponseError::try_from_code(code).unwrap_or(ResponseError::UnknownServerError)),
        None if codes.is_empty() => Err(ResponseError::UnknownServerError),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
    };

    use super::*;

    fn told(codes: &[i16]) -> AddPartitionsToTxnResponse {
        let partition = |code: &i16| AddPartitionsToTxnPartitionResult::default().with_partition_error_code(*code);
        let topic =
            AddPartitionsToTxnTopicResult::default().with_results_by_partition(codes.iter().map(partition).collect());
        let result = AddPartitionsToTxnResult::default().with_topic_results(vec![topic]);
        AddPartitionsToTxnResponse::default().with_results_by_transaction(vec![result])
    }

    #[test]
    fn the_error_that_says_why_is_taken() {
        assert_eq!(answer(&told(&[0, 0])), Ok(()));
        assert_eq!(answer(&told(&[0, 120])), Err(ResponseError::TransactionAbortable));
        assert_eq!(answer(&told(&[55, 3])), Err(ResponseError::UnknownTopicOrPartition));
        assert_eq!(answer(&told(&[])), Err(ResponseError::UnknownServerError), "nothing was said");
        assert_eq!(answer(&told(&[0]).with_error_code(31)), Err(ResponseError::ClusterAuthorizationFailed));
    }

    #[test]
    fn partitions_are_asked_for_by_topic() {
        let partitions = [("b".to_owned(), 1), ("a".to_owned(), 0), ("b".to_owned(), 2)];
        let asked = request(("id", Producer { id: 7, epoch: 3 }), &partitions, Adds::Verify);
        let asked = &asked.transactions[0];
        assert_eq!((asked.producer_id.0, asked.producer_epoch, asked.verify_only), (7, 3, true));
        let topics: Vec<_> = asked.topics.iter().map(|topic| (topic.name.as_str(), &topic.partitions[..])).collect();
        assert_eq!(topics, [("a", &[0][..]), ("b", &[1, 2])]);
    }
}
