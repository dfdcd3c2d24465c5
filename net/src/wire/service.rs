//! What stands behind the wire of one shard, as the wire knows it.
//!
//! The wire reads frames, keeps order and sends answers. What the requests mean, who may make them and where a connection
//! is best served, it asks a service for. All calls but those at the ends of a connection's life are plain functions, and
//! the service is a type parameter: nothing is boxed for being asked.

use std::net::IpAddr;

use super::{
    api::{Api, Reply},
    frame::Malformed,
    limits::Refusal,
    peer::{Moving, Origin},
    shared::Wire,
};

/// See the module.
pub(crate) trait Service: Sized + 'static {
    /// What the service knows of one connection. Travels whole with it: what is left behind is the default.
    type Session: Send + Default + 'static;

    /// How an API is kept from those who may not use it.
    type Authorization: Sync + 'static;

    /// Every API that is served, by rising key.
    fn table() -> &'static [&'static Api<Self>];

    /// What the connections of this shard share.
    fn wire(&self) -> &Wire;

    /// The shard that this is.
    fn shard(&self) -> usize;

    /// The one gate: whether a session may call an API at all. A refusal ends its connection.
    fn gate(&self, session: &Self::Session, api: &Api<Self>) -> Result<(), Malformed>;

    /// A request has come.
    fn on_request(&self);

    /// The answer to ApiVersions in a version that is not served.
    fn unsupported_api_versions(correlation_id: i32) -> Reply;

    /// Whether others wait for memory that answers hold.
    fn is_answer_memory_contended(&self) -> bool;

    /// The shard on which a connection should go on, if not on this one.
    fn elsewhere(&self, session: &Self::Session) -> Option<usize>;

    /// The connection could not leave yet.
    fn on_stays(&self, session: &mut Self::Session);

    /// The connection leaves this shard: its session takes along what the shard has of it.
    fn pack(&self, session: &mut Self::Session);

    /// The connection has come from another shard.
    fn unpack(&self, session: &mut Self::Session);

    /// Sends a connection to another shard, which goes on with it by [`super::serve::take_over`].
    async fn send(&self, shard: usize, moving: Moving<Self::Session>);

    /// Counts a connection in among those of the whole node, unless it is one too many.
    async fn admit(&self, ip: IpAddr) -> Result<(), Refusal>;

    /// Counts it out.
    async fn on_uncounted(&self, ip: IpAddr);

    /// The connection has ended: what it began ends with it.
    async fn on_closed(&self, origin: Origin, session: Self::Session);
}
