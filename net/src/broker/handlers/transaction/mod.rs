//! Transactions: what producers ask of the coordinator of their transactional id, and what administrators may know and do.

pub(crate) mod add_offsets_to_txn;
pub(crate) mod add_partitions_to_txn;
pub(crate) mod describe_transactions;
pub(crate) mod end_txn;
pub(crate) mod init_producer_id;
pub(crate) mod list_transactions;
pub(crate) mod write_txn_markers;

use kafka_protocol::ResponseError;

/// What clients of older versions are told: those do not know that a producer can be fenced by its coordinator
/// (PRODUCER_FENCED, KIP-588).
fn known_error(error: ResponseError, knows_fenced: bool) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if !knows_fenced => ResponseError::InvalidProducerEpoch,
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_clients_hear_of_their_epoch() {
        assert_eq!(known_error(ResponseError::ProducerFenced, false), ResponseError::InvalidProducerEpoch);
        assert_eq!(known_error(ResponseError::ProducerFenced, true), ResponseError::ProducerFenced);
        let others = [ResponseError::InvalidTxnState, ResponseError::InvalidProducerIdMapping];
        assert!(others.into_iter().all(|error| known_error(error, false) == error));
    }
}
