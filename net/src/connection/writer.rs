//! Sends replies in request order, gathering what is ready into few system calls.

use std::{io, rc::Rc};

use futures_util::FutureExt;

use super::{
    Connection,
    out_queue::{Next, OutQueue},
};
use crate::{api::Reply, poller::Closed};

/// Bytes gathered before they are sent, beyond the reply that exceeds it.
const GATHERED_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a file in one call, so that a fetch does not hold the shard.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Sends until there is nothing more to send or nobody to send it to.
pub(super) async fn run(connection: Rc<Connection>) {
    if let Err(error) = write(&connection).await {
        tracing::debug!(peer = %connection.context.peer.address, %error, "connection lost");
    }
    // The reader must not go on without a writer.
    connection.close();
}

async fn write(connection: &Connection) -> io::Result<()> {
    let mut out = OutQueue::default();
    loop {
        let Some(reply) = connection.next_reply().await else {
            return Ok(());
        };
        let mut goes_on = push(connection, &mut out, reply);
        while goes_on && out.bytes() < GATHERED_BYTES_MAX {
            match connection.next_reply().now_or_never() {
                Some(Some(reply)) => goes_on = push(connection, &mut out, reply),
                Some(None) => goes_on = false,
                None => break,
            }
        }
        if flush(connection, &mut out).await?.is_err() {
            return Ok(());
        }
        if !goes_on {
            return Ok(());
        }
    }
}

/// Queues a reply; whether the connection goes on after it.
fn push(connection: &Connection, out: &mut OutQueue, reply: Reply) -> bool {
    match reply {
        Reply::Response(response) => {
            out.push(response);
            true
        }
        Reply::Silence => true,
        Reply::Close(reason) => {
            tracing::warn!(peer = %connection.context.peer.address, %reason, "connection closed");
            false
        }
    }
}

/// Sends everything that is queued. `Err(Closed)`: the connection was closed meanwhile.
async fn flush(connection: &Connection, out: &mut OutQueue) -> io::Result<Result<(), Closed>> {
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
                connection.update_times(|times, now| {
                    times.active = now;
                    times.sending = None;
                });
                glommio::yield_if_needed().await;
            }
            None => {
                connection.update_times(|times, now| times.sending = Some(times.sending.unwrap_or(now)));
                if stream.writable().await.is_err() {
                    return Ok(Err(Closed));
                }
            }
        }
    }
}
