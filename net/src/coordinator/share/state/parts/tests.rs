//! What is written and read is what the message library says, as far as that goes.

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        DeleteShareGroupStateRequest, InitializeShareGroupStateRequest, InitializeShareGroupStateResponse,
        ReadShareGroupStateRequest, ReadShareGroupStateResponse, ReadShareGroupStateSummaryRequest,
        ReadShareGroupStateSummaryResponse, WriteShareGroupStateRequest,
    },
    protocol::{Decodable, Encodable, Request},
};
use uuid::Uuid;

use super::*;
use crate::{
    client::Ask,
    coordinator::share::state::{Refused, StateRequest, StateResponse},
    wire::api::shape::{
        check,
        sample::{Random, Text, sample},
    },
};

fn bytes(message: &impl Encodable, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes, version).unwrap();
    assert_eq!(message.compute_size(version).unwrap(), bytes.len());
    bytes.freeze()
}

/// What the library reads of something, and writes again.
fn by_library<M: Encodable + Decodable>(mut written: Bytes) -> Bytes {
    let read = M::decode(&mut written, 0).unwrap();
    assert!(written.is_empty());
    bytes(&read, 0)
}

/// A request, in all its versions, comes back as it was, and in version 0 through the library.
fn travels<P: Part + Clone + PartialEq + std::fmt::Debug, L: Encodable + Decodable>(part: &P, shape: Shape) {
    let topics = vec![(Uuid::from_u128(7), vec![(0, part.clone()), (3, part.clone())]), (Uuid::from_u128(8), vec![])];
    let request = StateRequest { group: "group".to_owned(), topics };
    assert_eq!(by_library::<L>(bytes(&request, 0)), bytes(&request, 0));
    for version in 0..=P::VERSION_MAX {
        let written = bytes(&request, version);
        assert_eq!(check(shape, version, true, &written).ok(), Some(0));
        let read = StateRequest::<P>::decode(&mut written.clone(), version).unwrap();
        assert_eq!(bytes(&read, version), written);
        if version == P::VERSION_MAX {
            assert_eq!(read, request);
        }
        for cut in 0..written.len() {
            assert!(StateRequest::<P>::decode(&mut written.slice(..cut), version).is_err());
        }
    }
}

fn batch() -> RawBatch {
    RawBatch { first_offset: 4, last_offset: 6, state: 2, delivery_count: 3 }
}

#[test]
fn requests_are_those_of_the_message_library() {
    travels::<_, InitializeShareGroupStateRequest>(&Initialize { state_epoch: 4, start_offset: -1 }, Initialize::SHAPE);
    travels::<_, ReadShareGroupStateRequest>(&Read { leader_epoch: 5 }, Read::SHAPE);
    let write = WriteState {
        state_epoch: 4,
        leader_epoch: 5,
        start_offset: 3,
        delivery_complete_count: 2,
        batches: vec![batch(), batch()],
    };
    travels::<_, WriteShareGroupStateRequest>(&write, WriteState::SHAPE);
    travels::<_, DeleteShareGroupStateRequest>(&Delete, Delete::SHAPE);
    travels::<_, ReadShareGroupStateSummaryRequest>(&ReadSummary { leader_epoch: 5 }, ReadSummary::SHAPE);
}

/// Answers, and refusals, come back as they were, and in version 0 through the library; what is of their shape is one.
fn answers<P: Part<Answer: Clone + PartialEq + std::fmt::Debug>, L: Encodable + Decodable>(answer: &P::Answer) {
    let refused = Refused { error: ResponseError::FencedStateEpoch, message: Some("why".to_owned()) };
    let topics = vec![(Uuid::from_u128(7), vec![(0, Ok(answer.clone())), (1, Err(refused))])];
    let response = StateResponse { topics };
    assert_eq!(by_library::<L>(bytes(&response, 0)), bytes(&response, 0));
    let mut random = Random::new(7);
    for version in 0..=P::VERSION_MAX {
        let written = bytes(&response, version);
        assert_eq!(StateRequest::<P>::check_answer(version, &written), Ok(()));
        let read = <StateRequest<P> as Request>::Response::decode(&mut written.clone(), version).unwrap();
        if version == P::VERSION_MAX {
            assert_eq!(read, response);
        }
        for _ in 0..60 {
            let any = Bytes::from(sample(P::Answer::SHAPE, version, true, Text::Ascii, &mut random));
            assert_eq!(StateRequest::<P>::check_answer(version, &any), Ok(()));
            assert!(<StateRequest<P> as Request>::Response::decode(&mut any.clone(), version).is_ok());
        }
    }
}

#[test]
fn answers_are_those_of_the_message_library() {
    answers::<Initialize, InitializeShareGroupStateResponse>(&());
    let state = ReadState { state_epoch: 4, start_offset: 3, batches: vec![batch()] };
    answers::<Read, ReadShareGroupStateResponse>(&state);
    let summary = Summary { state_epoch: 4, leader_epoch: 5, start_offset: 3, delivery_complete_count: 2 };
    answers::<ReadSummary, ReadShareGroupStateSummaryResponse>(&summary);
}

#[test]
fn states_and_offsets_that_cannot_be_are_refused() {
    let good = StateBatch { first_offset: 4, last_offset: 6, state: DeliveryState::Acknowledged, delivery_count: 3 };
    assert_eq!(RawBatch::checked(vec![batch()]), Ok(vec![good]));
    for bad in [
        RawBatch { state: 1, ..batch() },
        RawBatch { state: -1, ..batch() },
        RawBatch { last_offset: 3, ..batch() },
        RawBatch { first_offset: -1, ..batch() },
    ] {
        assert_eq!(RawBatch::checked(vec![batch(), bad]), Err(StoreError::Senseless));
    }
}
