//! Between our strings and the wire's.
//!
//! A string of a request shares the request's buffer: whatever outlives the request is copied, so that a few bytes do
//! not keep a whole frame in memory.

use kafka_protocol::protocol::StrBytes;

/// A string for a reply.
pub(crate) fn wire(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A string or null for a reply.
pub(crate) fn optional_wire(text: Option<&str>) -> Option<StrBytes> {
    text.map(wire)
}
