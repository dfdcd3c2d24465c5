//! How a connection leaves for another shard: between two requests, when everything was answered.

use std::{future::poll_fn, task::Poll, time::Duration};

use futures_util::future::{Either, select};
use glommio::timer::sleep;

use super::Connection;
use crate::wire::{peer::Moving, service::Service};

/// How long a connection that should move is not read, so that it gets between two requests.
const PATIENCE: Duration = Duration::from_secs(1);

impl<S: Service> Connection<S> {
    /// The shard on which the connection should go on.
    pub(super) fn elsewhere(&self) -> Option<usize> {
        self.context.service.elsewhere(&self.context.peer.session.borrow())
    }

    /// Waits until every request was answered. `false`: that takes long; more should be read first.
    pub(super) async fn is_soon_answered(&self) -> bool {
        let answered = std::pin::pin!(poll_fn(|cx| {
            if self.in_flight.get().requests == 0 || self.stream.is_reading_ended() {
                return Poll::Ready(());
            }
            *self.waiting_reader.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }));
        let is_answered = match select(answered, std::pin::pin!(sleep(PATIENCE))).await {
            Either::Left(_) => !self.stream.is_reading_ended(),
            Either::Right(_) => false,
        };
        if !is_answered {
            self.context.service.on_stays(&mut self.context.session_mut());
        }
        is_answered
    }

    /// Takes out what goes to the other shard. `None`: the connection ends here.
    pub(super) fn hand_over(&self) -> Option<Moving<S::Session>> {
        if self.stream.is_reading_ended() {
            return None;
        }
        let peer = &self.context.peer;
        let socket = match self.stream.leave() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(peer = %peer.origin.address, %error, "connection cannot move to another shard");
                return None;
            }
        };
        self.context.service.pack(&mut peer.session.borrow_mut());
        Some(Moving { socket, peer: peer.take() })
    }
}
