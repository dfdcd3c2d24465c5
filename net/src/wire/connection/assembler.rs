//! Puts frames together from what a socket yields.
//!
//! Owned by one connection's reader. Frames that one read yields whole come out of the shard's shared read buffer as
//! exact copies. A frame of which a read yielded a part gets a buffer of its own, once the memory of all of it is granted:
//! it is filled directly and never copied again. Until then only the part that was read is kept, which is nothing while
//! others wait for memory: what comes then stays with the socket.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::wire::{
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
    /// The memory of a frame of so many bytes, to be passed to [`Assembler::admit`].
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
    ready_bytes: usize,
}

/// A frame that was begun.
struct Partial {
    length: usize,
    /// What was received of it; has room for all of it once it is admitted.
    buffer: BytesMut,
    is_admitted: bool,
    /// Of all of it once it is admitted, before that of what was received.
    reservation: Reservation,
}

impl Assembler {
    /// An assembler that refuses frames of more than `frame_bytes_max` bytes.
    pub(crate) fn new(frame_bytes_max: usize) -> Assembler {
        Assembler {
            frame_bytes_max,
            length: [0; LENGTH_BYTES],
            length_known: 0,
            partial: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
        }
    }

    /// The next whole frame.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        let frame = self.ready.pop_front()?;
        self.ready_bytes -= frame.bytes.len();
        Some(frame)
    }

    /// Whole frames that are ready, and their bytes.
    pub(crate) fn ready(&self) -> (usize, usize) {
        (self.ready.len(), self.ready_bytes)
    }

    /// What is needed next.
    pub(crate) fn want(&self) -> Want {
        match &self.partial {
            None => Want::Anything,
            Some(partial) if partial.is_admitted => Want::Fill,
            Some(partial) => Want::Memory(partial.length),
        }
    }

    /// Whether a frame was begun and not finished.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.partial.is_some() || self.length_known > 0
    }

    /// The memory of a frame that is being received.
    pub(crate) fn admitted(&self) -> Option<&Reservation> {
        self.partial.as_ref().filter(|partial| partial.is_admitted).map(|partial| &partial.reservation)
    }

    /// Takes whole frames out of what a read into the shared buffer yielded, as far as a frame of which only a part is
    /// there. `permit` holds at least as many bytes; what is not needed is left in it. Answers how many bytes were taken.
    pub(crate) fn accept_whole(&mut self, bytes: &[u8], permit: &mut Reservation) -> Result<usize, Malformed> {
        assert!(self.partial.is_none(), "a frame that was begun is filled directly");
        let mut rest = bytes;
        while !rest.is_empty() {
            let missing = LENGTH_BYTES - self.length_known;
            let Some((missing, after)) = rest.split_at_checked(missing) else {
                self.length[self.length_known..][..rest.len()].copy_from_slice(rest);
                self.length_known += rest.len();
                return Ok(bytes.len());
            };
            self.length[self.length_known..].copy_from_slice(missing);
            self.length_known = 0;
            let length = check_length(i32::from_be_bytes(self.length), self.frame_bytes_max)?;
            let Some((frame, after)) = after.split_at_checked(length) else {
                self.partial =
                    Some(Partial { length, buffer: BytesMut::new(), is_admitted: false, reservation: permit.split(0) });
                return Ok(bytes.len() - after.len());
            };
            self.ready_bytes += length;
            self.ready.push_back(Frame { bytes: Bytes::copy_from_slice(frame), reservation: permit.split(length) });
            rest = after;
        }
        Ok(bytes.len())
    }

    /// Takes the part of the frame at the end of a read, behind what [`Assembler::accept_whole`] took.
    pub(crate) fn accept_part(&mut self, part: &[u8], permit: &mut Reservation) {
        if let Some(partial) = &mut self.partial {
            if !partial.is_admitted {
                partial.buffer.reserve(part.len());
                partial.reservation = permit.split(part.len());
            }
            partial.buffer.extend_from_slice(part);
        }
    }

    /// Takes memory that was wanted.
    pub(crate) fn admit(&mut self, reservation: Reservation) {
        let partial = self.partial.as_mut().expect("memory is wanted inside a frame only");
        assert!(reservation.bytes() == partial.length, "the memory of all of the frame is granted");
        let mut buffer = BytesMut::with_capacity(partial.length);
        buffer.extend_from_slice(&partial.buffer);
        (partial.buffer, partial.reservation, partial.is_admitted) = (buffer, reservation, true);
    }

    /// The buffer to read into, and how many bytes at most.
    pub(crate) fn buffer(&mut self) -> (&mut BytesMut, usize) {
        let partial = self.partial.as_mut().expect("only a frame that was begun has a buffer");
        let limit = partial.length - partial.buffer.len();
        (&mut partial.buffer, limit)
    }

    /// Bytes were read into [`Assembler::buffer`].
    pub(crate) fn on_filled(&mut self) {
        if let Some(partial) = self.partial.take_if(|partial| partial.buffer.len() == partial.length) {
            self.ready_bytes += partial.length;
            self.ready.push_back(Frame { bytes: partial.buffer.freeze(), reservation: partial.reservation });
        }
    }
}

/// Feeds `input` in reads of at most `step` bytes.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn feed(
    mut input: &[u8],
    step: usize,
    frame_bytes_max: usize,
    mut on_frame: impl FnMut(Frame),
) -> Result<(), Malformed> {
    use crate::wire::memory::{Class, ReceiveMemory};
    let memory = ReceiveMemory::new(1 << 30, frame_bytes_max);
    let mut assembler = Assembler::new(frame_bytes_max);
    while !input.is_empty() || assembler.want() != Want::Anything {
        let count = step.min(input.len());
        let taken = match assembler.want() {
            Want::Anything => {
                let mut permit = memory.try_reserve(Class::Whole, count).expect("the budget is large");
                let whole = assembler.accept_whole(&input[..count], &mut permit)?;
                // as if the memory were short, every second time
                if step.is_multiple_of(2) {
                    assembler.accept_part(&input[whole..count], &mut permit);
                    count
                } else {
                    whole
                }
            }
            Want::Memory(bytes) => {
                assembler.admit(memory.try_admit(bytes).expect("the budget is large"));
                0
            }
            Want::Fill if input.is_empty() => return Ok(()),
            Want::Fill => {
                let (buffer, limit) = assembler.buffer();
                let count = count.min(limit);
                buffer.extend_from_slice(&input[..count]);
                assembler.on_filled();
                count
            }
        };
        input = &input[taken..];
        std::iter::from_fn(|| assembler.next_frame()).for_each(&mut on_frame);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::memory::{Class, ReceiveMemory};

    const FRAME_BYTES_MAX: usize = 1 << 20;

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
    fn a_frame_that_is_not_admitted_holds_what_was_received_of_it() {
        let memory = ReceiveMemory::new(1 << 30, FRAME_BYTES_MAX);
        let mut assembler = Assembler::new(FRAME_BYTES_MAX);
        let mut permit = memory.try_reserve(Class::Whole, 65_536).expect("the budget is free");
        let read = [0, 0x0f, 0, 0, 1, 2];
        assert_eq!(assembler.accept_whole(&read, &mut permit), Ok(4));
        assert_eq!((permit.bytes(), assembler.want()), (65_536, Want::Memory(0x0f_0000)));
        assembler.accept_part(&read[4..], &mut permit);
        assert!(assembler.is_inside_frame() && assembler.admitted().is_none());
        drop(permit);
        assert_eq!(memory.usage().0, 2);
        assembler.admit(memory.try_admit(0x0f_0000).expect("the budget is free"));
        assert_eq!(memory.usage().0, 0x0f_0000);
        let (buffer, limit) = assembler.buffer();
        assert_eq!((&buffer[..], limit), (&[1, 2][..], 0x0f_0000 - 2));
        assert!(buffer.capacity() >= 0x0f_0000, "it never grows again");
    }
}
