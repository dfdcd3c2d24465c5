//! The table of APIs as the wire reads it: which there are, in which versions, and what a body must look like.

use kafka_protocol::messages::ApiKey;

use super::{Context, Handling, Request, shape::Shape};
use crate::wire::{frame::Malformed, service::Service};

/// One API that is served.
pub(crate) struct Api<S: Service> {
    /// Its key.
    pub(crate) key: ApiKey,
    /// Lowest version served.
    pub(crate) version_min: i16,
    /// Highest version served.
    pub(crate) version_max: i16,
    /// Lowest version that clients are told; differs from `version_min` for Produce only.
    pub(crate) advertised_min: i16,
    /// What the body is checked against before it is decoded.
    pub(crate) shape: Shape,
    /// What the service wants to know of who may call it.
    pub(crate) authorization: S::Authorization,
    /// What becomes of a request whose connection is gone.
    pub(crate) on_disconnect: OnDisconnect,
    /// Decodes and begins to handle a request.
    pub(crate) handle: fn(&Context<S>, Request) -> Result<Handling, Malformed>,
}

/// What becomes of a request whose connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDisconnect {
    /// Its future is dropped: it only reads, or what it changes does not depend on the future.
    Drop,
    /// Its future runs to its end.
    Finish,
}

/// The place of an API in the table.
pub(crate) fn place<S: Service>(key: ApiKey) -> usize {
    find::<S>(key as i16).expect("only what is served has a place").0
}

/// The API of a key, and its place in the table.
pub(crate) fn find<S: Service>(key: i16) -> Option<(usize, &'static Api<S>)> {
    let table = S::table();
    table.binary_search_by_key(&key, |api| api.key as i16).ok().map(|place| (place, table[place]))
}
