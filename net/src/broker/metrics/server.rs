//! Serves the page over HTTP: one small request per connection, few connections at a time, none of them for long.
//!
//! Runs on shard 0 only. Requests hold no memory of clients' budget: what they may take is bounded here.

use std::{cell::Cell, io, io::IoSlice, rc::Rc, time::Duration};

use bytes::BytesMut;
use futures_util::future::{Either, select};
use glommio::timer::sleep;
use socket2::Socket;

use super::{
    http::{self, Outcome, REQUEST_BYTES_MAX},
    reading, table,
    text::Page,
};
use crate::{
    broker::{shard::BrokerShard, telemetry::Telemetry},
    wire::{
        listener::{Accepted, Listener},
        stream::Stream,
    },
};

/// Connections at a time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 4;
/// How long a connection may live.
const PATIENCE: Duration = Duration::from_secs(15);

/// Accepts and serves until the node stops.
pub(crate) async fn serve(shard: Rc<BrokerShard>, listener: Listener) {
    const PAUSE: Duration = Duration::from_millis(100);
    let open = Rc::new(Cell::new(0));
    loop {
        match listener.accept().await {
            Accepted::Connection(_, _) if open.get() >= CONNECTIONS_MAX => {}
            Accepted::Connection(socket, _) => {
                let place = Place::take(&open);
                let shard = shard.clone();
                glommio::spawn_local(async move {
                    let answered = in_time(answer(&shard, socket)).await;
                    if let Some(Err(error)) = answered {
                        tracing::debug!(%error, "a reader of metrics was lost");
                    }
                    drop(place);
                })
                .detach();
            }
            Accepted::Skipped(error) => tracing::debug!(%error, "a reader of metrics was not accepted"),
            Accepted::Exhausted(error) => {
                tracing::debug!(%error, "readers of metrics cannot be accepted");
                sleep(PAUSE).await;
            }
            Accepted::Ended => return,
        }
        glommio::yield_if_needed().await;
    }
}

/// One of the connections that may be open; given back when dropped.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(open: &Rc<Cell<usize>>) -> Place {
        open.set(open.get() + 1);
        Place(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    let (work, timeout) = (std::pin::pin!(work), std::pin::pin!(sleep(PATIENCE)));
    match select(work, timeout).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

async fn answer(shard: &Rc<BrokerShard>, socket: Socket) -> io::Result<()> {
    let stream = Stream::new(socket, &shard.wire.poller)?;
    let Some(outcome) = receive(&stream).await? else {
        return Ok(());
    };
    let answer = match outcome {
        Outcome::Page => http::page(page(shard).await),
        Outcome::Refused(reason) => http::refusal(reason),
    };
    send(&stream, answer.head.as_bytes()).await?;
    send(&stream, answer.body.as_bytes()).await?;
    stream.end_sending()?;
    drain(&stream).await
}

/// Reads the request. `None`: the peer left before it was whole.
async fn receive(stream: &Stream) -> io::Result<Option<Outcome>> {
    let mut received = BytesMut::with_capacity(REQUEST_BYTES_MAX);
    loop {
        if let Some(outcome) = http::parse(&received) {
            return Ok(Some(outcome));
        }
        if stream.readable().await.is_err() {
            return Ok(None);
        }
        let room = REQUEST_BYTES_MAX - received.len();
        if stream.receive(&mut received, room)? == Some(0) {
            return Ok(None);
        }
    }
}

async fn send(stream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.send(&[IoSlice::new(bytes)])? {
            Some(sent) => bytes = &bytes[sent..],
            None if stream.writable().await.is_err() => return Ok(()),
            None => {}
        }
        glommio::yield_if_needed().await;
    }
    Ok(())
}

/// Waits for the peer to close: to close first, with bytes unread, would take the answer back.
async fn drain(stream: &Stream) -> io::Result<()> {
    const BYTES_MAX: usize = 1 << 20;
    let mut unread = BytesMut::with_capacity(REQUEST_BYTES_MAX);
    let mut drained = 0;
    while drained < BYTES_MAX && stream.readable().await.is_ok() {
        unread.clear();
        match stream.receive(&mut unread, REQUEST_BYTES_MAX)? {
            Some(0) => break,
            Some(count) => drained += count,
            None => {}
        }
    }
    Ok(())
}

async fn page(shard: &Rc<BrokerShard>) -> String {
    let node = reading::read(shard).await;
    let mut page = Page::default();
    for metric in table::TABLE {
        metric.write(&node, &mut page);
        glommio::yield_if_needed().await;
    }
    if let Some(telemetry) = shard.engine.attached::<Telemetry>() {
        telemetry.write(&mut page).await;
    }
    page.finish()
}
