//! Reads requests off the socket and begins them.

use std::rc::Rc;

use futures_util::future::{Either, select};

use super::{
    Connection, End, READ_BYTES_MAX,
    assembler::{Assembler, Want},
    dispatch::route,
};
use crate::memory::{Purpose, Reservation};

/// Reads until the peer, this side or an error ends it.
pub(super) async fn run(connection: &Rc<Connection>) -> End {
    match read(connection).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn read(connection: &Rc<Connection>) -> Result<std::convert::Infallible, End> {
    let mut assembler = Assembler::new(connection.context.shard.config.max_frame_bytes);
    loop {
        begin_requests(connection, &mut assembler).await?;
        if !assembler.is_inside_frame()
            && let Some(shard) = connection.elsewhere()
            && connection.is_soon_answered().await
        {
            return Err(End::Moves(shard));
        }
        let outcome = match assembler.want() {
            Want::Anything => read_new(connection, &mut assembler).await,
            Want::Memory(bytes) => {
                reserve(connection, Purpose::Continuation, bytes).await.map(|memory| assembler.grow(memory))
            }
            Want::Fill => fill(connection, &mut assembler).await,
        };
        if let Err(end) = outcome {
            // What came before the damage, or before the peer's last word, is still served.
            begin_requests(connection, &mut assembler).await?;
            return Err(end);
        }
        let is_inside_frame = assembler.is_inside_frame();
        connection.update_times(|times, now| {
            times.inside_frame = is_inside_frame.then(|| times.inside_frame.unwrap_or(now));
        });
    }
}

/// Begins the requests that are there, as many as may be in flight at a time.
async fn begin_requests(connection: &Connection, assembler: &mut Assembler) -> Result<(), End> {
    while let Some(mut frame) = assembler.next_frame() {
        connection.room_for(frame.bytes.len()).await?;
        let mut routed = route(&frame)?;
        let mending_bytes = routed.mending_bytes(connection.context.shard.config.max_frame_bytes)?;
        if mending_bytes > 0 {
            frame.reservation.join(reserve(connection, Purpose::Continuation, mending_bytes).await?);
            routed.mend()?;
        }
        connection.dispatch(frame, routed)?;
        glommio::yield_if_needed().await;
    }
    Ok(())
}

/// One read into the shard's shared buffer. Memory is reserved only once there is something to read.
async fn read_new(connection: &Connection, assembler: &mut Assembler) -> Result<(), End> {
    let shard = &connection.context.shard;
    connection.stream.readable().await.map_err(|_| End::Closed)?;
    let mut permit = reserve(connection, Purpose::NewRequest, READ_BYTES_MAX).await?;
    let mut buffer = shard.read_buffer.borrow_mut();
    buffer.clear();
    match connection.stream.receive(&mut buffer, READ_BYTES_MAX).map_err(End::Io)? {
        None => Ok(()),
        Some(0) => Err(End::PeerClosed),
        Some(count) => {
            connection.on_received(count);
            assembler.accept(&buffer, &mut permit).map_err(|reason| End::Malformed { api: None, reason })
        }
    }
}

/// One read into the buffer of the frame that was begun.
async fn fill(connection: &Connection, assembler: &mut Assembler) -> Result<(), End> {
    connection.stream.readable().await.map_err(|_| End::Closed)?;
    let (buffer, limit) = assembler.buffer();
    match connection.stream.receive(buffer, limit).map_err(End::Io)? {
        None => Ok(()),
        Some(0) => Err(End::PeerClosed),
        Some(count) => {
            connection.on_received(count);
            assembler.on_filled();
            glommio::yield_if_needed().await;
            Ok(())
        }
    }
}

async fn reserve(connection: &Connection, purpose: Purpose, bytes: usize) -> Result<Reservation, End> {
    let memory = std::pin::pin!(connection.context.shard.memory.reserve(purpose, bytes));
    let ended = std::pin::pin!(connection.stream.reading_ended());
    match select(memory, ended).await {
        Either::Left((reservation, _)) => Ok(reservation),
        Either::Right(_) => Err(End::Closed),
    }
}
