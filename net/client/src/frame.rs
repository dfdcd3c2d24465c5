//! Requests to frames, frames to answers. Pure: knows no socket.
//!
//! A frame is a length of four bytes and that many bytes; a request begins with a header that names its API, version and
//! correlation id, an answer with the correlation id of its request. Nothing here allocates by a declared length.

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes, buf::ByteBufMut},
};

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;

/// Bytes of the correlation id, with which every answer begins.
const CORRELATION_ID_BYTES: usize = 4;

/// What comes back is not what was asked for, or what should be sent cannot be. The connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A length that no answer has.
    #[error("an answer of {0} bytes makes no sense (another protocol, or TLS?)")]
    Length(i32),
    /// An answer that is longer than whoever asks wants to keep.
    #[error("an answer of {length} bytes is longer than {bytes_max} (another protocol, or TLS?)")]
    TooLong {
        /// Bytes that it declares.
        length: usize,
        /// Bytes that it may have.
        bytes_max: usize,
    },
    /// An answer without a request.
    #[error("an answer to request {0}, but none is open")]
    Unasked(i32),
    /// Answers come in the order of their requests.
    #[error("an answer to request {got} instead of {wanted}")]
    OutOfOrder {
        /// Correlation id of the answer.
        got: i32,
        /// That of the oldest request without one.
        wanted: i32,
    },
    /// A request that cannot be sent in that version.
    #[error("cannot encode {api} version {version}: {reason}")]
    Encode {
        /// Name of the API.
        api: String,
        /// Its version.
        version: i16,
        /// What stands in the way.
        reason: String,
    },
    /// An answer that cannot be read.
    #[error("an answer to {api} version {version}: {reason}")]
    Decode {
        /// Name of the API.
        api: String,
        /// Its version.
        version: i16,
        /// What is wrong with it.
        reason: String,
    },
}

/// Name of an API.
pub fn api_name(api_key: i16) -> String {
    ApiKey::try_from(api_key).map_or_else(|()| format!("API {api_key}"), |key| format!("{key:?}"))
}

/// Starts a request's frame in an empty buffer: a length to be filled in by [`end_request`], and the header.
pub fn begin_request<R: Request>(
    frame: &mut impl ByteBufMut,
    client_id: &StrBytes,
    correlation_id: i32,
    version: i16,
) -> Result<(), ProtocolError> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(client_id.clone()));
    frame.put_i32(0);
    header.encode(frame, R::header_version(version)).map_err(|error| cannot_encode::<R>(version, error))
}

/// Completes a frame that [`begin_request`] started, once the body is there.
pub fn end_request<R: Request>(frame: &mut [u8], version: i16) -> Result<(), ProtocolError> {
    let length = i32::try_from(frame.len() - LENGTH_BYTES).map_err(|error| cannot_encode::<R>(version, error))?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// A whole request as it goes over the wire.
pub fn encode_request<R: Request>(
    client_id: &StrBytes,
    correlation_id: i32,
    version: i16,
    request: &R,
) -> Result<BytesMut, ProtocolError> {
    let mut frame = BytesMut::new();
    begin_request::<R>(&mut frame, client_id, correlation_id, version)?;
    request.encode(&mut frame, version).map_err(|error| cannot_encode::<R>(version, error))?;
    end_request::<R>(&mut frame, version)?;
    Ok(frame)
}

fn cannot_encode<R: Request>(version: i16, reason: impl std::fmt::Display) -> ProtocolError {
    ProtocolError::Encode { api: api_name(R::KEY), version, reason: reason.to_string() }
}

/// Checks the length that an answer declares; it is the number of bytes that follow.
pub fn check_length(declared: i32, bytes_max: usize) -> Result<usize, ProtocolError> {
    match usize::try_from(declared) {
        Ok(length) if length > bytes_max => Err(ProtocolError::TooLong { length, bytes_max }),
        Ok(length) if length >= CORRELATION_ID_BYTES => Ok(length),
        _ => Err(ProtocolError::Length(declared)),
    }
}

/// Where the first frame in these bytes ends; `None` if not all of it is there.
fn frame_end(bytes: &[u8], bytes_max: usize) -> Result<Option<usize>, ProtocolError> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = check_length(i32::from_be_bytes(*length), bytes_max)?;
    Ok((rest.len() >= length).then_some(LENGTH_BYTES + length))
}

/// Takes the first frame off what was received, without its length; `None` if not all of it is there.
pub fn take_frame(received: &mut BytesMut, bytes_max: usize) -> Result<Option<Bytes>, ProtocolError> {
    let Some(end) = frame_end(received, bytes_max)? else { return Ok(None) };
    let mut frame = received.split_to(end);
    frame.advance(LENGTH_BYTES);
    Ok(Some(frame.freeze()))
}

/// Whose answer a frame is. It must have passed [`check_length`].
pub(crate) fn correlation_id(answer: &[u8]) -> i32 {
    i32::from_be_bytes(*answer.first_chunk().expect("a checked frame has a correlation id"))
}

/// What follows the header of an answer to an `R`.
pub fn answer_body<R: Request>(mut answer: Bytes, version: i16) -> Result<Bytes, ProtocolError> {
    ResponseHeader::decode(&mut answer, R::Response::header_version(version))
        .map_err(|error| cannot_decode::<R>(version, error.to_string()))?;
    Ok(answer)
}

/// Reads the answer to an `R`, from the correlation id on. All of it must be the answer.
///
/// The message library allocates by the counts that the answer declares. Who cannot trust the other end walks
/// [`answer_body`] first.
pub fn decode_answer<R: Request>(answer: Bytes, version: i16) -> Result<R::Response, ProtocolError> {
    let mut body = answer_body::<R>(answer, version)?;
    let response =
        R::Response::decode(&mut body, version).map_err(|error| cannot_decode::<R>(version, error.to_string()))?;
    match body.remaining() {
        0 => Ok(response),
        left => Err(cannot_decode::<R>(version, format!("{left} bytes too many"))),
    }
}

fn cannot_decode<R: Request>(version: i16, reason: String) -> ProtocolError {
    ProtocolError::Decode { api: api_name(R::KEY), version, reason }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse, MetadataRequest, RequestHeader};

    use super::*;

    const CLIENT_ID: StrBytes = StrBytes::from_static_str("client");

    /// Version 4 of Heartbeat has tagged fields in both headers, version 0 in none.
    fn answer(version: i16) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        let header = ResponseHeader::default().with_correlation_id(7);
        header.encode(&mut bytes, HeartbeatResponse::header_version(version)).unwrap();
        HeartbeatResponse::default().with_error_code(27).encode(&mut bytes, version).unwrap();
        bytes.to_vec()
    }

    fn framed(answer: &[u8]) -> Vec<u8> {
        [&u32::try_from(answer.len()).unwrap().to_be_bytes()[..], answer].concat()
    }

    #[test]
    fn a_request_begins_with_its_length_and_header() {
        for version in [0, 9] {
            let mut frame = encode_request(&CLIENT_ID, 77, version, &MetadataRequest::default()).unwrap().freeze();
            assert_eq!(usize::try_from(frame.get_i32()).unwrap(), frame.len());
            let header = RequestHeader::decode(&mut frame, MetadataRequest::header_version(version)).unwrap();
            assert_eq!((header.request_api_key, header.request_api_version), (3, version));
            assert_eq!((header.correlation_id, header.client_id), (77, Some(CLIENT_ID)));
            assert_eq!(MetadataRequest::decode(&mut frame, version).unwrap(), MetadataRequest::default());
            assert!(frame.is_empty());
        }
    }

    #[test]
    fn what_a_version_cannot_say_is_not_sent() {
        let request = HeartbeatRequest::default().with_group_instance_id(Some(CLIENT_ID));
        let error = encode_request(&CLIENT_ID, 1, 0, &request).unwrap_err();
        assert!(error.to_string().starts_with("cannot encode Heartbeat version 0: "), "{error}");
    }

    #[test]
    fn frames_are_taken_off_however_they_come() {
        let all = [framed(&answer(0)), framed(&answer(4))].concat();
        for cut in 0..all.len() {
            let mut received = BytesMut::from(&all[..cut]);
            let mut frames = Vec::new();
            for rest in [&[][..], &all[cut..]] {
                received.extend_from_slice(rest);
                while let Some(frame) = take_frame(&mut received, 100).unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [answer(0), answer(4)], "cut at {cut}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn lengths_are_checked_before_the_rest_is_there() {
        assert_eq!(frame_end(&[0xff; 4], 100), Err(ProtocolError::Length(-1)));
        assert_eq!(frame_end(&[0, 0, 0, 3], 100), Err(ProtocolError::Length(3)));
        assert_eq!(frame_end(&[0, 0, 0, 101], 100), Err(ProtocolError::TooLong { length: 101, bytes_max: 100 }));
        assert_eq!(frame_end(&[0, 0, 0, 100], 100), Ok(None));
        assert_eq!(frame_end(&[0, 0, 0], 100), Ok(None));
        assert!(frame_end(b"HTTP/1.1 400 Bad Request\r\n", 100).is_err());
    }

    #[test]
    fn answers_are_read_to_their_end() {
        for version in [0, 4] {
            let bytes = answer(version);
            let read = |bytes: &[u8]| decode_answer::<HeartbeatRequest>(Bytes::copy_from_slice(bytes), version);
            assert_eq!(read(&bytes).unwrap().error_code, 27);
            for cut in 0..bytes.len() {
                assert!(read(&bytes[..cut]).is_err(), "version {version} cut to {cut}");
            }
            let error = read(&[&bytes[..], &[0]].concat()).unwrap_err();
            assert!(error.to_string().ends_with("1 bytes too many"), "{error}");
        }
    }
}
