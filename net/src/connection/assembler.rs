//! Puts frames together from what a socket yields.
//!
//! Owned by one connection's reader. Small frames come out of the shard's shared read buffer as exact copies; a frame
//! that is larger than what one read yielded gets a buffer of its own, which is filled directly and never copied again.
//! Always true: no buffer is larger than its reservation, and a buffer never exceeds sixteen times what the peer has
//! really sent of the frame (or 4 KiB), whatever length it declared.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::{
    frame::{LENGTH_BYTES, Malformed, check_length},
    memory::Reservation,
};

/// One whole request without its length, and the memory that it takes.
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) reservation: Reservation,
}

/// What the assembler needs next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// A read into the shared buffer, to be passed to [`Assembler::accept`].
    Anything,
    /// That many bytes of memory more, to be passed to [`Assembler::grow`].
    Memory(usize),
    /// A read into [`Assembler::buffer`], to be followed by [`Assembler::on_filled`].
    Fill,
}

/// Frames being put together. Call [`Assembler::next_frame`] until it is empty, then do what [`Assembler::want`] says.
pub(crate) struct Assembler {
    frame_bytes_max: usize,
    /// The first bytes of a length that was cut by the end of a read.
    length: [u8; LENGTH_BYTES],
    length_known: usize,
    partial: Option<Partial>,
    ready: VecDeque<Frame>,
}

struct Partial {
    buffer: BytesMut,
    length: usize,
    /// Exactly as many bytes as the buffer may hold.
    reservation: Reservation,
}

impl Assembler {
    /// An assembler that refuses frames of more than `frame_bytes_max` bytes.
    pub(crate) fn new(frame_bytes_max: usize) -> Assembler {
        Assembler { frame_bytes_max, length: [0; LENGTH_BYTES], length_known: 0, partial: None, ready: VecDeque::new() }
    }

    /// The next whole frame.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// What is needed next.
    pub(crate) fn want(&self) -> Want {
        match &self.partial {
            None => Want::Anything,
            Some(partial) if partial.buffer.len() < partial.reservation.bytes() => Want::Fill,
            Some(partial) => {
                let target = buffer_bytes(partial.length, partial.buffer.len());
                Want::Memory(target - partial.reservation.bytes())
            }
        }
    }

    /// Whether a frame was begun and not finished.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.partial.is_some() || self.length_known > 0
    }

    /// Takes what a read into the shared buffer yielded. `permit` holds at least as many bytes; what is not needed is
    /// left in it.
    pub(crate) fn accept(&mut self, mut bytes: &[u8], permit: &mut Reservation) -> Result<(), Malformed> {
        assert!(self.partial.is_none(), "a frame that was begun is filled directly");
        while !bytes.is_empty() {
            let taken = bytes.len().min(LENGTH_BYTES - self.length_known);
            self.length[self.length_known..][..taken].copy_from_slice(&bytes[..taken]);
            self.length_known += taken;
            bytes = &bytes[taken..];
            if self.length_known < LENGTH_BYTES {
                return Ok(());
            }
            self.length_known = 0;
            let length = check_length(i32::from_be_bytes(self.length), self.frame_bytes_max)?;
            let Some((frame, rest)) = bytes.split_at_checked(length) else {
                let capacity = buffer_bytes(length, bytes.len()).min(permit.bytes());
                let mut buffer = BytesMut::with_capacity(capacity);
                buffer.extend_from_slice(bytes);
                self.partial = Some(Partial { buffer, length, reservation: permit.split(capacity) });
                return Ok(());
            };
            self.ready.push_back(Frame { bytes: Bytes::copy_from_slice(frame), reservation: permit.split(length) });
            bytes = rest;
        }
        Ok(())
    }

    /// Takes memory that was wanted.
    pub(crate) fn grow(&mut self, reservation: Reservation) {
        let partial = self.partial.as_mut().expect("memory is wanted inside a frame only");
        partial.reservation.join(reservation);
        let mut buffer = BytesMut::with_capacity(partial.reservation.bytes());
        buffer.extend_from_slice(&partial.buffer);
        partial.buffer = buffer;
    }

    /// The buffer to read into, and how many bytes at most.
    pub(crate) fn buffer(&mut self) -> (&mut BytesMut, usize) {
        let partial = self.partial.as_mut().expect("only a frame that was begun has a buffer");
        let limit = partial.reservation.bytes() - partial.buffer.len();
        (&mut partial.buffer, limit)
    }

    /// Bytes were read into [`Assembler::buffer`].
    pub(crate) fn on_filled(&mut self) {
        if let Some(partial) = self.partial.take_if(|partial| partial.buffer.len() == partial.length) {
            let bytes = partial.buffer.freeze();
            self.ready.push_back(Frame { bytes, reservation: partial.reservation });
        }
    }
}

/// How large the buffer of a frame of `length` bytes may be when `received` of them are there.
fn buffer_bytes(length: usize, received: usize) -> usize {
    const GROWTH: usize = 16;
    const BUFFER_BYTES_MIN: usize = 4096;
    length.min(BUFFER_BYTES_MIN.max(received.saturating_mul(GROWTH)))
}

/// Feeds `input` in reads of at most `step` bytes.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn feed(
    mut input: &[u8],
    step: usize,
    frame_bytes_max: usize,
    mut on_frame: impl FnMut(Frame),
) -> Result<(), Malformed> {
    use futures_util::FutureExt;

    use crate::memory::{Purpose, ReceiveMemory};
    let memory = ReceiveMemory::new(1 << 30);
    let reserve = |bytes| memory.reserve(Purpose::NewRequest, bytes).now_or_never().expect("the budget is large");
    let mut assembler = Assembler::new(frame_bytes_max);
    while !input.is_empty() {
        let mut count = step.min(input.len());
        match assembler.want() {
            Want::Anything => assembler.accept(&input[..count], &mut reserve(count))?,
            Want::Memory(bytes) => {
                assembler.grow(reserve(bytes));
                continue;
            }
            Want::Fill => {
                let (buffer, limit) = assembler.buffer();
                count = count.min(limit);
                buffer.extend_from_slice(&input[..count]);
                assembler.on_filled();
            }
        }
        input = &input[count..];
        std::iter::from_fn(|| assembler.next_frame()).for_each(&mut on_frame);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::memory::{Purpose, ReceiveMemory};

    const FRAME_BYTES_MAX: usize = 1 << 20;

    fn reserve(memory: &ReceiveMemory, bytes: usize) -> Reservation {
        memory.reserve(Purpose::NewRequest, bytes).now_or_never().expect("the budget is large")
    }

    fn feed(input: &[u8], step: usize) -> Result<Vec<Bytes>, Malformed> {
        let mut frames = Vec::new();
        super::feed(input, step, FRAME_BYTES_MAX, |frame| frames.push(frame.bytes)).map(|()| frames)
    }

    fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend_from_slice(&u32::try_from(frame.len()).expect("small").to_be_bytes());
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let frames: Vec<Vec<u8>> =
            [8, 9, 100, 4096, 70_000, 8, 300_000].iter().map(|&n| (0..n).map(|i| i as u8).collect()).collect();
        let input = encode(&frames);
        for step in [1, 3, 7, 64, 4096, 65_536] {
            assert_eq!(feed(&input, step).expect("legal"), frames, "step {step}");
        }
    }

    #[test]
    fn frames_beyond_the_limit_are_refused_before_they_are_buffered() {
        let input = u32::try_from(FRAME_BYTES_MAX + 1).expect("small").to_be_bytes();
        assert!(matches!(feed(&input, 4), Err(Malformed::TooLarge { .. })));
        assert!(matches!(feed(&[0xff; 4], 1), Err(Malformed::Length(-1))));
        assert!(matches!(feed(&[0, 0, 0, 7], 4), Err(Malformed::ShortHeader(7))));
    }

    #[test]
    fn a_silent_peer_holds_no_memory_for_what_it_declared() {
        let memory = ReceiveMemory::new(1 << 30);
        let mut assembler = Assembler::new(FRAME_BYTES_MAX);
        let mut permit = reserve(&memory, 65_536);
        assembler.accept(&[0, 0x0f, 0, 0, 1], &mut permit).expect("legal");
        assert!(assembler.is_inside_frame());
        assert_eq!(permit.bytes(), 65_536 - 4096);
        let (buffer, limit) = assembler.buffer();
        assert_eq!((buffer.capacity(), limit), (4096, 4095));
    }

    #[test]
    fn buffers_grow_with_what_was_received() {
        assert_eq!(buffer_bytes(1 << 20, 0), 4096);
        assert_eq!(buffer_bytes(1 << 20, 4096), 65_536);
        assert_eq!(buffer_bytes(1 << 20, 65_536), 1 << 20);
        assert_eq!(buffer_bytes(100, 1), 100);
    }
}
