//! Why a group refuses a request, in Kafka's error codes.

use kafka_protocol::error::ResponseError;

/// A Kafka error code.
pub(crate) type GroupError = ResponseError;

/// A refusal with a message, for replies that have room for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The code.
    pub(crate) error: GroupError,
    /// The reason; empty where the code says it all.
    pub(crate) message: String,
}

impl Refusal {
    /// With a message.
    pub(crate) fn new(error: GroupError, message: impl Into<String>) -> Self {
        Self { error, message: message.into() }
    }

    /// The message, if there is one.
    pub(crate) fn text(&self) -> Option<&str> {
        (!self.message.is_empty()).then_some(&*self.message)
    }
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Self {
        Self { error, message: String::new() }
    }
}
