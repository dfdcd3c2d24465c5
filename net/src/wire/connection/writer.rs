//! Sends replies in request order, gathering what is ready into few system calls.

use std::{io, rc::Rc, time::Instant};

use futures_util::FutureExt;

use super::{
    Connection,
    out_queue::{Next, OutQueue},
    unsent::Unsent,
};
use crate::wire::{api::Reply, counters::Asked, poller::Closed, service::Service};

/// Bytes gathered before they are sent, beyond the reply that exceeds it.
const GATHERED_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a file in one call, so that a fetch does not hold the shard.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Sends until there is nothing more to send or nobody to send it to.
pub(super) async fn run<S: Service>(connection: Rc<Connection<S>>) {
    let said_all = write(&connection).await.unwrap_or_else(|error| {
        tracing::debug!(peer = %connection.peer.origin.address, %error, "connection lost");
        false
    });
    // The reader must not go on without a writer.
    if !(said_all && connection.moves.get()) {
        connection.close();
    }
}

/// Whether everything was sent that was to be sent.
async fn write<S: Service>(connection: &Connection<S>) -> io::Result<bool> {
    let mut out = OutQueue::default();
    let mut unsent = Unsent::default();
    loop {
        let Some(reply) = connection.next_reply().await else {
            return Ok(!connection.stream.is_closed());
        };
        let mut goes_on = push(connection, (&mut out, &mut unsent), reply);
        while goes_on && out.bytes() < GATHERED_BYTES_MAX {
            match connection.next_reply().now_or_never() {
                Some(Some(reply)) => goes_on = push(connection, (&mut out, &mut unsent), reply),
                // the next wait says so again
                Some(None) => break,
                None => break,
            }
        }
        if flush(connection, &mut out, &mut unsent).await?.is_err() {
            return Ok(false);
        }
        connection.on_all_sent();
        if !goes_on {
            return Ok(false);
        }
    }
}

/// Queues a reply; whether the connection goes on after it.
fn push<S: Service>(
    connection: &Connection<S>,
    (out, unsent): (&mut OutQueue, &mut Unsent),
    (reply, asked): (Reply, Asked),
) -> bool {
    let counters = &connection.wire().counters;
    match reply {
        Reply::Response(response) => {
            counters.on_errors(asked, response.errors());
            let before = out.bytes();
            out.push(response);
            unsent.on_queued(out.bytes() - before, asked);
            true
        }
        Reply::Silence => {
            counters.on_answered(asked, Instant::now());
            true
        }
        Reply::Close(reason) => {
            tracing::warn!(peer = %connection.peer.origin.address, %reason, "connection closed");
            false
        }
        Reply::Stopping => {
            tracing::debug!(peer = %connection.peer.origin.address, "connection closed: the node is stopping");
            false
        }
    }
}

/// Sends everything that is queued. `Err(Closed)`: the connection was closed meanwhile.
async fn flush<S: Service>(
    connection: &Connection<S>,
    out: &mut OutQueue,
    unsent: &mut Unsent,
) -> io::Result<Result<(), Closed>> {
    let stream = &connection.stream;
    connection.update_times(|times, now| times.unsent = Some(now));
    loop {
        let sent = match out.next() {
            Next::Nothing => {
                connection.update_times(|times, _| times.unsent = None);
                return Ok(Ok(()));
            }
            Next::Slices(slices) => stream.send(&slices)?,
            Next::File(range, done) => stream.send_file(range, done, FILE_BYTES_MAX)?,
        };
        match sent {
            Some(count) => {
                out.on_sent(count);
                on_sent(connection, unsent, count);
                connection.update_times(|times, now| {
                    times.active = now;
                    times.sending = None;
                });
                glommio::yield_if_needed().await;
            }
            None => {
                out.detach();
                connection.update_times(|times, now| times.sending = Some(times.sending.unwrap_or(now)));
                if stream.writable().await.is_err() {
                    return Ok(Err(Closed));
                }
            }
        }
    }
}

/// Counts bytes that the socket took, and the requests that are answered by them.
fn on_sent<S: Service>(connection: &Connection<S>, unsent: &mut Unsent, bytes: usize) {
    let counters = &connection.wire().counters;
    counters.sent_bytes.add(bytes);
    unsent.on_sent(bytes);
    let now = Instant::now();
    while let Some(asked) = unsent.next_left() {
        counters.on_answered(asked, now);
    }
}
