//! A watch: a call that does not end, on a connection of its own, read by whoever waits for it.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::{
    caller::Caller,
    connection::Messages,
    messages::{WatchRequest, WatchResponse},
};
use crate::cluster::store::{StoreError, Watch, Watched};

/// A watch. Dropped, its connection is closed.
#[derive(Debug)]
pub struct EtcdWatch {
    messages: Messages,
    /// The first message, until it is taken.
    first: Option<Bytes>,
    prefix: String,
}

impl EtcdWatch {
    pub(super) fn start(caller: &mut Caller, request: &WatchRequest, prefix: String) -> Result<Self, StoreError> {
        let (messages, first) = caller.stream("/etcdserverpb.Watch/Watch", request)?;
        Ok(Self { messages, first: Some(first), prefix })
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        let message = match self.first.take() {
            Some(first) => Some(first),
            None => self.messages.next(wait).map_err(|error| match error.into_error() {
                StoreError::Away(text) => StoreError::Away(format!("the watch broke off: {text}")),
                other => other,
            })?,
        };
        message.map_or(Ok(Watched::Quiet), |message| read(message, &self.prefix))
    }
}

fn read(message: Bytes, prefix: &str) -> Result<Watched, StoreError> {
    let answer = WatchResponse::decode(message).map_err(|error| StoreError::Nonsense(error.to_string()))?;
    if answer.canceled {
        return Err(match answer.compact_revision {
            0 => StoreError::Away(format!("the watch was cancelled: {}", answer.cancel_reason)),
            revision => StoreError::Compacted(revision),
        });
    }
    // the header's revision is the store's: changes before it may still be on their way
    let changes = answer.events.into_iter().map(|event| event.into_change(prefix));
    Ok(Watched::Changes(changes.collect::<Result<_, _>>()?))
}
