//! What brokers ask leaders of partitions.

use bytes::Bytes;
use kafka_protocol::messages::ListOffsetsRequest;

use super::{Ask, check_shape};
use crate::wire::api::shape::{INT16, INT32, INT64, STRING, Shape, array};

impl Ask for ListOffsetsRequest {
    const VERSION_MAX: i16 = 10;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(OFFSETS, version, body)
    }
}

pub(super) const OFFSETS: Shape =
    &[INT32.since(2), array(&[STRING, array(&[INT32, INT16, INT64, INT64, INT32.since(4)])])];
