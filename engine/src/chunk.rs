//! A piece of a fetch's answer: memory that is sent as it lies, or a range of a file to be sent by the kernel.

use std::{os::fd::RawFd, rc::Rc};

use bytes::Bytes;
use std::ops::Range;

/// Memory that can be kept alive by reference: a group of the shared log, a read buffer.
pub trait Memory {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Memory for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// One piece of records.
#[derive(Clone)]
pub enum Chunk {
    /// A slice of memory that this shard shares.
    Shared(Rc<dyn Memory>, Range<usize>),
    /// Bytes that crossed shards.
    Bytes(Bytes),
    /// A range of a file whose pages were resident a moment ago: send with sendfile.
    File(FileRange),
}

/// A range of an open, buffered (not O_DIRECT) file.
#[derive(Clone)]
pub struct FileRange {
    /// Keeps the descriptor open.
    pub file: Rc<std::fs::File>,
    /// First byte.
    pub position: u64,
    /// Number of bytes.
    pub len: usize,
}

impl FileRange {
    /// The descriptor, for sendfile.
    pub fn fd(&self) -> RawFd {
        use std::os::fd::AsRawFd;
        self.file.as_raw_fd()
    }
}

impl Chunk {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Chunk::Shared(_, range) => range.len(),
            Chunk::Bytes(bytes) => bytes.len(),
            Chunk::File(range) => range.len,
        }
    }

    /// Bytes in memory that it keeps alive, or its own where it is one of several that do.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Chunk::Shared(memory, _) if Rc::strong_count(memory) == 1 => memory.bytes().len(),
            Chunk::Shared(..) | Chunk::Bytes(_) => self.len(),
            Chunk::File(_) => 0,
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies a slice out of memory that is far larger, which it would keep alive: for who has to hold it for long.
    pub fn detach(&mut self) {
        const PINNED_MAX: usize = 4;
        self.detach_from(PINNED_MAX);
    }

    /// Copies a slice out of memory that is as many times larger, and more.
    pub(crate) fn detach_from(&mut self, times: usize) {
        if let Chunk::Shared(memory, range) = self
            && memory.bytes().len() / times > range.len()
        {
            *self = Chunk::Bytes(Bytes::copy_from_slice(&memory.bytes()[range.clone()]));
        }
    }

    /// The bytes if they lie in memory; `None` for a range of a file.
    pub fn as_slice(&self) -> Option<&[u8]> {
        match self {
            Chunk::Shared(memory, range) => Some(&memory.bytes()[range.clone()]),
            Chunk::Bytes(bytes) => Some(bytes),
            Chunk::File(_) => None,
        }
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Chunk::Shared(..) => "Shared",
            Chunk::Bytes(..) => "Bytes",
            Chunk::File(..) => "File",
        };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_slices_let_go_of_large_memory() {
        let memory: Rc<dyn Memory> = Rc::new((0..100u8).collect::<Vec<_>>());
        let mut small = Chunk::Shared(memory.clone(), 10..15);
        let mut large = Chunk::Shared(memory.clone(), 10..60);
        small.detach();
        large.detach();
        assert!(matches!(small, Chunk::Bytes(_)) && matches!(large, Chunk::Shared(..)));
        assert_eq!(small.as_slice(), Some(&[10, 11, 12, 13, 14][..]));
        assert_eq!(Rc::strong_count(&memory), 2);
    }
}
