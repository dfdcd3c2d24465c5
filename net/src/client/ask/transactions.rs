//! What brokers ask coordinators of transactions.

use bytes::Bytes;
use kafka_protocol::messages::{AddPartitionsToTxnRequest, DescribeTransactionsRequest, ListTransactionsRequest};

use super::{Ask, check_shape};
use crate::wire::api::shape::{INT16, INT32, INT32S, INT64, STRING, STRINGS, Shape, array};

impl Ask for AddPartitionsToTxnRequest {
    /// The first version of brokers.
    const VERSION_MIN: i16 = 4;
    const VERSION_MAX: i16 = 5;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(ADD_PARTITIONS, version, body)
    }
}

const ADDED: Shape = &[STRING, array(&[INT32, INT16])];
pub(super) const ADD_PARTITIONS: Shape =
    &[INT32, INT16.since(4), array(&[STRING, array(ADDED)]).since(4), array(ADDED).until(3)];

impl Ask for ListTransactionsRequest {
    const VERSION_MAX: i16 = 2;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(LIST_TRANSACTIONS, version, body)
    }
}

pub(super) const LIST_TRANSACTIONS: Shape = &[INT32, INT16, STRINGS, array(&[STRING, INT64, STRING])];

impl Ask for DescribeTransactionsRequest {
    const VERSION_MAX: i16 = 0;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(DESCRIBE_TRANSACTIONS, version, body)
    }
}

const DESCRIBED: Shape = &[INT16, STRING, STRING, INT32, INT64, INT64, INT16, array(&[STRING, INT32S])];
pub(super) const DESCRIBE_TRANSACTIONS: Shape = &[INT32, array(DESCRIBED)];
