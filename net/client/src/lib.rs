//! Kafka's protocol from the client's side.

pub mod frame;
mod in_flight;
mod versions;

pub use frame::ProtocolError;
pub use in_flight::InFlight;
pub use versions::{Negotiation, Versions};
