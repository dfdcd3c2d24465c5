//! Codecs of the two messages that carry records, so that records are neither copied nor re-encoded.

pub(crate) mod fetch_response;
pub(crate) mod produce_request;

#[cfg(test)]
mod tests;
