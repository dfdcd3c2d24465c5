//! What must hold of every API in the table: its shape is its requests'.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestKind};

use super::TABLE;
use crate::{
    broker::table::Api,
    wire::api::shape::{Shape, check, mend, mended_bytes_max, sample},
};

const SAMPLES: u64 = 60;

/// The version that the message library knows of an API's layout.
fn known_version(api: &Api, version: i16) -> i16 {
    version.min(api.key.valid_versions().max)
}

/// Some newest versions have a layout that the message library does not know.
fn is_known_to_library(api: &Api, version: i16) -> bool {
    !matches!(
        (api.key, version),
        (ApiKey::OffsetCommit | ApiKey::OffsetFetch, 10)
            | (ApiKey::TxnOffsetCommit, 6)
            | (ApiKey::WriteShareGroupState, 1)
            | (ApiKey::ShareFetch | ApiKey::ShareAcknowledge | ApiKey::WriteTxnMarkers, 2)
    )
}

fn for_every_version(mut check: impl FnMut(&Api, Shape, i16, bool)) {
    for api in TABLE {
        for version in api.version_min..=api.version_max {
            check(api, api.shape, version, api.key.request_header_version(version) >= 2);
        }
    }
}

#[test]
fn shapes_are_those_of_the_message_library() {
    let mut random = sample::Random::new(7);
    for_every_version(|api, shape, version, flexible| {
        for _ in 0..SAMPLES * u64::from(is_known_to_library(api, version)) {
            let body = sample::sample(shape, version, flexible, sample::Text::Ascii, &mut random);
            assert_eq!(check(shape, version, flexible, &body).ok(), Some(0), "a sample is legal");
            let mut rest = Bytes::from(body.clone());
            let known = known_version(api, version);
            let decoded = RequestKind::decode(api.key, &mut rest, known);
            let decoded = decoded.unwrap_or_else(|error| panic!("{:?} {version}: {error:#}", api.key));
            assert!(rest.is_empty(), "{:?} {version}", api.key);
            let mut encoded = BytesMut::new();
            decoded.encode(&mut encoded, known).expect("what was decoded can be encoded");
            assert_eq!(encoded, body, "{:?} {version}", api.key);
        }
    });
}

#[test]
fn every_cut_of_a_body_is_refused() {
    let mut random = sample::Random::new(8);
    for_every_version(|api, shape, version, flexible| {
        let body = sample::sample(shape, version, flexible, sample::Text::Ascii, &mut random);
        for length in 0..body.len() {
            let cut = check(shape, version, flexible, &body[..length]);
            assert!(cut.is_err(), "{:?} {version} cut to {length}", api.key);
        }
    });
}

#[test]
fn what_is_mended_is_of_the_same_shape_and_all_utf8() {
    let mut random = sample::Random::new(9);
    for api in TABLE {
        for version in api.version_min..=api.version_max {
            let flexible = api.key.request_header_version(version) >= 2;
            for text in [sample::Text::Ascii, sample::Text::Foreign] {
                let body = sample::sample(api.shape, version, flexible, text, &mut random);
                let foreign = check(api.shape, version, flexible, &body).expect("a sample is legal");
                let mended = mend(api.shape, version, flexible, &body, foreign).expect("it was checked");
                assert_eq!(check(api.shape, version, flexible, &mended).ok(), Some(0), "{:?} {version}", api.key);
                assert_eq!(mended == body, foreign == 0, "{:?} {version}", api.key);
                assert!(mended.len() <= mended_bytes_max(&body, foreign), "{:?} {version}", api.key);
            }
        }
    }
}
