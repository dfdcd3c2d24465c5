//! Kafka's protocol from the client's side.

pub mod frame;

pub use frame::ProtocolError;
