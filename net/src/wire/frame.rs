//! Frames and request headers, as they come off the wire.
//!
//! A frame is a length of four bytes and that many bytes. Nothing here allocates by a declared length.

use bytes::{Buf, Bytes};
use kafka_protocol::{messages::ApiKey, protocol::StrBytes};

use crate::wire::text;

/// Bytes of a frame's length.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Bytes of the fields that every request header has: API key, version, correlation id.
pub(crate) const HEADER_BYTES_MIN: usize = 8;

/// Why a frame or a request cannot be understood. The connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a frame declares {0} bytes")]
    Length(i32),
    #[error("a frame declares {length} bytes, but requests may have {max} (--max-frame-bytes){}", guess(*length))]
    TooLarge { length: usize, max: usize },
    #[error(
        "a request may become {length} bytes once its text is UTF-8, but requests may have {max} (--max-frame-bytes)"
    )]
    TextTooLarge { length: usize, max: usize },
    #[error("a request of {0} bytes is too short for its header")]
    ShortHeader(usize),
    #[error("the request header is damaged: {0}")]
    Header(&'static str),
    #[error("unknown API key {0}")]
    UnknownApi(i16),
    #[error("version {version} of {api:?} is not served")]
    UnsupportedVersion { api: ApiKey, version: i16 },
    #[error("the request is damaged: {0}")]
    Body(String),
}

/// What a length is the beginning of, if it is that of another protocol.
fn guess(length: usize) -> &'static str {
    match length.to_be_bytes() {
        [.., 0x16, 0x03, _, _] => ": the client speaks TLS",
        [.., b'G', b'E', b'T', b' '] | [.., b'P', b'O', b'S', b'T'] | [.., b'H', b'E', b'A', b'D'] => {
            ": the client speaks HTTP"
        }
        _ => "",
    }
}

/// Checks a frame's declared length; it is the number of bytes that follow.
pub(crate) fn check_length(declared: i32, max: usize) -> Result<usize, Malformed> {
    let length = usize::try_from(declared).map_err(|_| Malformed::Length(declared))?;
    if length > max {
        return Err(Malformed::TooLarge { length, max });
    }
    if length < HEADER_BYTES_MIN {
        return Err(Malformed::ShortHeader(length));
    }
    Ok(length)
}

/// The fixed start of every request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderStart {
    pub(crate) api_key: i16,
    pub(crate) api_version: i16,
    pub(crate) correlation_id: i32,
}

impl HeaderStart {
    /// Takes it off the front of a frame.
    pub(crate) fn take(frame: &mut Bytes) -> Result<HeaderStart, Malformed> {
        if frame.len() < HEADER_BYTES_MIN {
            return Err(Malformed::ShortHeader(frame.len()));
        }
        Ok(HeaderStart { api_key: frame.get_i16(), api_version: frame.get_i16(), correlation_id: frame.get_i32() })
    }
}

/// Takes the rest of a request header off the front of a frame: the client id, and in header version 2 the tagged
/// fields, none of which is known.
pub(crate) fn take_client_id(frame: &mut Bytes, header_version: i16) -> Result<Option<StrBytes>, Malformed> {
    let length = frame.try_get_i16().map_err(|_| Malformed::Header("no client id"))?;
    let client_id = match usize::try_from(length) {
        Err(_) if length == -1 => None,
        Err(_) => return Err(Malformed::Header("the client id has a negative length")),
        Ok(length) if length > frame.len() => {
            return Err(Malformed::Header("the client id is cut off"));
        }
        Ok(length) => Some(text::decode(frame.split_to(length))),
    };
    if header_version >= 2 {
        skip_tagged_fields(frame)?;
    }
    Ok(client_id)
}

fn skip_tagged_fields(frame: &mut Bytes) -> Result<(), Malformed> {
    const DAMAGED: Malformed = Malformed::Header("the tagged fields are damaged");
    let count = take_unsigned_varint(frame).ok_or(DAMAGED)?;
    for _ in 0..count {
        take_unsigned_varint(frame).ok_or(DAMAGED)?;
        let size = take_unsigned_varint(frame).ok_or(DAMAGED)? as usize;
        if size > frame.len() {
            return Err(DAMAGED);
        }
        frame.advance(size);
    }
    Ok(())
}

/// Takes an unsigned varint of at most five bytes; `None` if it is cut off or longer.
pub(crate) fn take_unsigned_varint(buffer: &mut impl Buf) -> Option<u32> {
    let mut value = 0_u32;
    for shift in (0..35).step_by(7) {
        let byte = buffer.try_get_u8().ok()?;
        if shift == 28 && byte > 0x0f {
            return None;
        }
        value |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{messages::RequestHeader, protocol::Encodable};

    use super::*;

    fn header(version: i16, client_id: Option<&'static str>) -> Bytes {
        let header = RequestHeader::default()
            .with_request_api_key(3)
            .with_request_api_version(12)
            .with_correlation_id(77)
            .with_client_id(client_id.map(StrBytes::from_static_str))
            .with_unknown_tagged_field(9, Bytes::from_static(b"x"));
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes, version).expect("a legal header");
        bytes.extend_from_slice(b"body");
        bytes.freeze()
    }

    #[test]
    fn headers_of_both_versions_are_taken_off() {
        for version in [1, 2] {
            for client_id in [None, Some(""), Some("client")] {
                let mut frame = header(version, client_id);
                let start = HeaderStart::take(&mut frame).expect("legal");
                assert_eq!(start, HeaderStart { api_key: 3, api_version: 12, correlation_id: 77 });
                let found = take_client_id(&mut frame, version).expect("legal");
                assert_eq!(found.as_deref(), client_id);
                assert_eq!(frame, "body");
            }
        }
    }

    #[test]
    fn a_client_id_that_is_not_utf8_is_read_with_replacements() {
        let mut frame = Bytes::from_static(b"\0\x02\x5a\xe4");
        assert_eq!(take_client_id(&mut frame, 1).expect("it is taken").as_deref(), Some("Z\u{fffd}"));
        assert!(frame.is_empty());
    }

    #[test]
    fn every_cut_of_a_header_is_refused() {
        let whole = header(2, Some("client"));
        for length in 0..whole.len() - b"body".len() {
            let mut frame = whole.slice(..length);
            let taken = HeaderStart::take(&mut frame).and_then(|_| take_client_id(&mut frame, 2));
            assert!(taken.is_err(), "cut to {length}");
        }
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(check_length(-1, 100), Err(Malformed::Length(-1)));
        assert_eq!(check_length(101, 100), Err(Malformed::TooLarge { length: 101, max: 100 }));
        assert_eq!(check_length(7, 100), Err(Malformed::ShortHeader(7)));
        assert_eq!(check_length(100, 100), Ok(100));
    }

    #[test]
    fn varints_longer_than_32_bits_are_refused() {
        assert_eq!(take_unsigned_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0x0f][..]), Some(u32::MAX));
        assert_eq!(take_unsigned_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0x1f][..]), None);
        assert_eq!(take_unsigned_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..]), None);
        assert_eq!(take_unsigned_varint(&mut &[0x80][..]), None);
    }
}
