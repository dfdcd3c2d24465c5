//! Reads requests off the socket and begins them.
//!
//! While there is memory, whatever one read yields is taken. While frames wait for memory, only whole ones are: the
//! socket is looked at first, and a part of a frame stays with it until the memory of the whole frame is granted.

use std::{pin::pin, rc::Rc, time::Duration};

use bytes::BytesMut;
use futures_util::future::{Either, select};

use super::{
    Connection, End,
    assembler::{Assembler, Want},
    dispatch::route,
};
use crate::wire::{
    memory::{Class, Reservation, SMALL_FRAME_BYTES_MAX},
    service::Service,
    shared::READ_BYTES_MAX,
};

/// Bytes of one read of a large frame at most, so that it does not hold the shard.
const FILL_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a frame that a peer must have sent before memory is asked for, if others wait. Any socket holds as many.
const SHOWN_BYTES: usize = 16 * 1024;

/// How long a request waits for the memory to replace text that is not UTF-8.
const MENDING_PATIENCE: Duration = Duration::from_secs(1);

const _: () = assert!(READ_BYTES_MAX == SMALL_FRAME_BYTES_MAX);

/// Reads until the peer, this side or an error ends it.
pub(super) async fn run<S: Service>(connection: &Rc<Connection<S>>) -> End {
    match read(connection).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn read<S: Service>(connection: &Rc<Connection<S>>) -> Result<std::convert::Infallible, End> {
    let mut assembler = Assembler::new(connection.wire().config.frame_bytes_max);
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
                let missing = assembler.buffer().1;
                admission(connection, bytes, missing).await.map(|memory| assembler.admit(memory))
            }
            Want::Fill => fill(connection, &mut assembler).await,
        };
        if let Err(end) = outcome {
            // What came before the damage, or before the peer's last word, is still served.
            begin_requests(connection, &mut assembler).await?;
            return Err(end);
        }
        connection.on_assembly(assembler.admitted());
    }
}

/// Begins the requests that are there, as many as may be in flight at a time.
async fn begin_requests<S: Service>(connection: &Connection<S>, assembler: &mut Assembler) -> Result<(), End> {
    while let Some(mut frame) = assembler.next_frame() {
        connection.room_for(frame.bytes.len()).await?;
        let mut routed = route(&frame)?;
        let mending_bytes = routed.mending_bytes(connection.wire().config.frame_bytes_max)?;
        if mending_bytes > 0 {
            frame.reservation.join(mending_memory(connection, frame.reservation.class(), mending_bytes).await?);
            routed.mend()?;
        }
        connection.dispatch(frame, routed)?;
        glommio::yield_if_needed().await;
    }
    Ok(())
}

/// One read into the shard's shared buffer. Memory is reserved only once there is something to read.
async fn read_new<S: Service>(connection: &Connection<S>, assembler: &mut Assembler) -> Result<(), End> {
    let wire = connection.wire();
    connection.stream.readable().await.map_err(|_| End::Closed)?;
    let mut permit = reserve(connection, Class::Whole, READ_BYTES_MAX).await?;
    let is_short = wire.memory.is_short();
    let mut buffer = wire.read_buffer.borrow_mut();
    buffer.clear();
    let read = match is_short {
        true => connection.stream.peek(&mut buffer, READ_BYTES_MAX),
        false => connection.stream.receive(&mut buffer, READ_BYTES_MAX),
    };
    let count = match read.map_err(End::Io)? {
        None => return Ok(()),
        Some(0) => return Err(End::PeerClosed),
        Some(count) => count,
    };
    let whole = assembler.accept_whole(&buffer, &mut permit);
    let whole = whole.map_err(|reason| End::Malformed { api: None, reason })?;
    // Nobody holds a frame's memory while requests before it wait for answers.
    if let Want::Memory(bytes) = assembler.want()
        && connection.has_room(assembler.ready())
        && let Some(memory) = wire.memory.try_admit(bytes)
    {
        assembler.admit(memory);
    }
    if is_short {
        take(connection, &mut buffer, whole)?;
        connection.on_received(whole);
    } else {
        assembler.accept_part(&buffer[whole..], &mut permit);
        connection.on_received(count);
    }
    Ok(())
}

/// Takes bytes from the socket that were looked at before.
fn take<S: Service>(connection: &Connection<S>, buffer: &mut BytesMut, bytes: usize) -> Result<(), End> {
    buffer.clear();
    match connection.stream.receive(buffer, bytes).map_err(End::Io)? {
        Some(taken) if taken == bytes => Ok(()),
        _ => Err(End::Io(std::io::Error::other("a socket yields less than it showed"))),
    }
}

/// Waits for the memory of a frame of which `missing` bytes are not read. A small one that is all there is taken like one
/// that a read finds whole: it does not wait behind others that may never be.
async fn admission<S: Service>(connection: &Connection<S>, bytes: usize, missing: usize) -> Result<Reservation, End> {
    let memory = &connection.wire().memory;
    let whole = (bytes <= SMALL_FRAME_BYTES_MAX).then_some(missing);
    // Who has read a part already was first to find no memory: it asks at once, so that others see that it is short.
    if missing == bytes && Some(shown(connection, missing.min(SHOWN_BYTES)).await?) == whole {
        return reserve(connection, Class::Whole, bytes).await;
    }
    let mut granted = pin!(reserve(connection, memory.class_of(bytes), bytes));
    loop {
        let Some(whole) = whole.filter(|_| !connection.stream.is_hung_up()) else {
            return granted.await;
        };
        match select(&mut granted, pin!(connection.stream.more())).await {
            Either::Left((reservation, _)) => {
                connection.stream.set_readable();
                return reservation;
            }
            Either::Right((more, _)) => more.map_err(|_| End::Closed)?,
        }
        if unread(connection)? >= whole {
            return reserve(connection, Class::Whole, bytes).await;
        }
    }
}

/// Waits until the peer has sent so many bytes of a frame: who only says that it will send asks for no memory. Answers
/// how many there are, as many as one read yields.
async fn shown<S: Service>(connection: &Connection<S>, bytes: usize) -> Result<usize, End> {
    loop {
        let there = unread(connection)?;
        if there >= bytes {
            return Ok(there);
        }
        if connection.stream.is_hung_up() {
            return Err(End::PeerClosed);
        }
        connection.stream.more().await.map_err(|_| End::Closed)?;
    }
}

/// How many bytes the socket has, as many as one read yields.
fn unread<S: Service>(connection: &Connection<S>) -> Result<usize, End> {
    let mut buffer = connection.wire().read_buffer.borrow_mut();
    buffer.clear();
    connection.stream.peek(&mut buffer, READ_BYTES_MAX).map(Option::unwrap_or_default).map_err(End::Io)
}

/// One read into the buffer of the frame that was begun.
async fn fill<S: Service>(connection: &Connection<S>, assembler: &mut Assembler) -> Result<(), End> {
    connection.stream.readable().await.map_err(|_| End::Closed)?;
    let (buffer, limit) = assembler.buffer();
    match connection.stream.receive(buffer, limit.min(FILL_BYTES_MAX)).map_err(End::Io)? {
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

/// Memory to write a request's body anew. Who waits for it holds the request's own, which nobody else may wait with: so
/// it waits for a moment only, and rather gives all of it back with the connection than stand in the way of others.
async fn mending_memory<S: Service>(
    connection: &Connection<S>,
    class: Class,
    bytes: usize,
) -> Result<Reservation, End> {
    let patience = pin!(glommio::timer::sleep(MENDING_PATIENCE));
    match select(pin!(reserve(connection, class, bytes)), patience).await {
        Either::Left((reserved, _)) => reserved,
        Either::Right(_) => {
            let reason = "there was no memory to replace text that is not UTF-8";
            tracing::info!(peer = %connection.peer.origin.address, reason, "connection closed");
            Err(End::Closed)
        }
    }
}

async fn reserve<S: Service>(connection: &Connection<S>, class: Class, bytes: usize) -> Result<Reservation, End> {
    let memory = pin!(connection.wire().memory.reserve(class, bytes));
    let ended = pin!(connection.stream.reading_ended());
    match select(memory, ended).await {
        Either::Left((reservation, _)) => Ok(reservation),
        Either::Right(_) => Err(End::Closed),
    }
}
