//! Why it is not known whose an open transaction is.

use kafka_protocol::error::ResponseError;

/// Some coordinators could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("a coordinator is not loaded: {0}")]
pub(super) struct Unknown(pub(super) ResponseError);
