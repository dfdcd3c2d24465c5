//! Who sent a request.

/// What a group needs to know of the client behind a request. Plain data that may cross shards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The client's name for itself, from the request's header; empty when it has none.
    pub(crate) client_id: String,
    /// Its address as Kafka shows it: `/` and the IP address.
    pub(crate) client_host: String,
    /// Version of the request.
    pub(crate) version: i16,
    /// A UUID that was never used before, for a member that needs an id.
    pub(crate) fresh_id: String,
}
