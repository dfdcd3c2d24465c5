//! Kafka's protocol from the client's side.

mod error_code;
pub mod frame;
mod in_flight;
mod versions;

pub use error_code::error_code_name;
pub use frame::ProtocolError;
pub use in_flight::InFlight;
pub use versions::{Negotiation, Versions};
