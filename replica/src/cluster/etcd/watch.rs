//! A watch: a call that does not end, on a connection of its own, read by whoever waits for it.

use std::{mem, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::{
    caller::Caller,
    connection::Messages,
    messages::{WatchRequest, WatchResponse},
};
use crate::cluster::store::{Change, StoreError, Watch, Watched};

/// A watch. Dropped, its connection is closed.
#[derive(Debug)]
pub struct EtcdWatch {
    pub(super) messages: Messages,
    /// The first message, until it is taken.
    first: Option<Bytes>,
    gathered: Gathered,
}

impl EtcdWatch {
    pub(super) fn start(caller: &mut Caller, request: &WatchRequest, prefix: String) -> Result<Self, StoreError> {
        let (messages, first) = caller.stream("/etcdserverpb.Watch/Watch", request)?;
        Ok(Self { messages, first: Some(first), gathered: Gathered { prefix, changes: Vec::new() } })
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        loop {
            let message = match self.first.take() {
                Some(first) => Some(first),
                None => self.messages.next(wait).map_err(|error| match error.into_error() {
                    StoreError::Away(text) => StoreError::Away(format!("the watch broke off: {text}")),
                    other => other,
                })?,
            };
            let Some(message) = message else { return Ok(Watched::Quiet) };
            if let Some(changes) = self.gathered.add(message)? {
                return Ok(Watched::Changes(changes));
            }
        }
    }
}

/// What came of changes that belong together: of whole revisions, but in several messages where one would be too long.
#[derive(Debug)]
struct Gathered {
    prefix: String,
    changes: Vec<Change>,
}

impl Gathered {
    /// Adds a message. All that belongs together, with the last of it.
    fn add(&mut self, message: Bytes) -> Result<Option<Vec<Change>>, StoreError> {
        let answer = WatchResponse::decode(message).map_err(|error| StoreError::Nonsense(error.to_string()))?;
        if answer.canceled {
            return Err(match answer.compact_revision {
                0 => StoreError::Away(format!("the watch was cancelled: {}", answer.cancel_reason)),
                revision => StoreError::Compacted(revision),
            });
        }
        // the header's revision is the store's: changes before it may still be on their way
        for event in answer.events {
            self.changes.push(event.into_change(&self.prefix)?);
        }
        Ok((!answer.fragment).then(|| mem::take(&mut self.changes)))
    }
}
