//! Reads a file forwards in pieces, few of them in memory at a time: what a start reads may be larger than all memory that
//! the shard has.

use std::{io, rc::Rc};

use futures_util::future::try_join_all;

use super::{File, align_down};
use crate::chunk::Memory;

/// Bytes of one read,
const PIECE_BYTES: usize = 256 << 10;
/// and reads side by side: a device is slow to answer, and has more than one answer at a time.
const PIECES: usize = 4;

/// Bytes of a file that are in memory.
pub(crate) struct Window<'a, F> {
    file: &'a F,
    begin: u64,
    pieces: Vec<Rc<dyn Memory>>,
}

impl<'a, F: File> Window<'a, F> {
    /// Nothing yet.
    pub(crate) fn new(file: &'a F) -> Self {
        Self { file, begin: 0, pieces: Vec::new() }
    }

    /// The bytes from a position on, as many as are at hand: none behind the file's end.
    pub(crate) async fn at(&mut self, position: u64) -> io::Result<&[u8]> {
        if self.piece(position).is_none() {
            self.pieces.clear(); // before there are others
            self.begin = align_down(position);
            let begins = (0..PIECES as u64).map(|at| self.begin + at * PIECE_BYTES as u64);
            self.pieces = try_join_all(begins.map(|begin| self.file.read(begin, PIECE_BYTES))).await?;
        }
        let (piece, skip) = self.piece(position).unwrap_or_default();
        Ok(self.pieces.get(piece).and_then(|piece| piece.bytes().get(skip..)).unwrap_or_default())
    }

    /// Which piece holds a position, and where.
    fn piece(&self, position: u64) -> Option<(usize, usize)> {
        let ahead = usize::try_from(position.checked_sub(self.begin)?).ok()?;
        let (piece, skip) = (ahead / PIECE_BYTES, ahead % PIECE_BYTES);
        (piece < self.pieces.len()).then_some((piece, skip))
    }

    /// Copies a range of the file; fails if it ends before.
    pub(crate) async fn copy(&mut self, mut position: u64, len: usize, to: &mut Vec<u8>) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            let bytes = self.at(position).await?;
            let now = left.min(bytes.len());
            if now == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.extend_from_slice(&bytes[..now]);
            position += now as u64;
            left -= now;
        }
        Ok(())
    }
}
