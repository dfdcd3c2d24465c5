//! A batch in another codec. Its records stay byte for byte what they were before they were compressed, and so does
//! what the header says of them: producer, epoch, sequence, offsets, timestamps. Kafka builds such a batch anew record
//! by record (`LogValidator.validateMessagesAndAssignOffsetsCompressed`) and comes to the same.
//!
//! Works in steps, so that it can be given up between two, and may go on on another thread. In memory are the batch, the
//! new one as far as it is made, and what the two codecs need: never all of the records.

use std::io::Read;

use bytes::{Buf, Bytes, buf::Reader};
use zerocopy::FromBytes;

use super::{
    BATCH_HEADER_BYTES, BatchError, BatchInfo, Codec, Compression, DECOMPRESSED_BYTES_MAX,
    codec::{Decoder, Encoder},
    header::{CONTROL, Header, LENGTH_END, TRANSACTIONAL, checksum},
    invalid,
};

/// A batch that is being recompressed.
pub struct Recompress {
    info: BatchInfo,
    to: Compression,
    source: Source,
    /// Begins with the old header.
    encoder: Encoder,
    bytes_max: usize,
    /// Bytes of records so far.
    total: u64,
}

/// How far a [`Recompress`] is.
#[derive(Debug)]
pub enum Recompressed {
    /// There is more to do.
    More(Recompress),
    /// The new batch, and its header.
    Done(Bytes, BatchInfo),
}

enum Source {
    Plain(Bytes),
    Compressed { decoder: Decoder<Reader<Bytes>>, buffer: Vec<u8> },
}

/// Records that are moved from one codec to the other in one go.
const PIECE_BYTES: usize = 32 << 10;

impl std::fmt::Debug for Recompress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recompress({} bytes of records so far, to {:?})", self.total, self.to)
    }
}

impl Recompress {
    /// Starts on exactly one batch, of which a check answered `checked`. It fails if the new batch is larger than
    /// `bytes_max`.
    pub fn new(batch: &Bytes, checked: &BatchInfo, to: Compression, bytes_max: usize) -> Result<Self, BatchError> {
        let body = batch.slice(BATCH_HEADER_BYTES..);
        let source = match Decoder::new(checked.codec()?, body.clone().reader())? {
            None => Source::Plain(body),
            Some(decoder) => Source::Compressed { decoder, buffer: vec![0; PIECE_BYTES] },
        };
        let encoder = Encoder::new(to, batch[..BATCH_HEADER_BYTES].to_vec());
        let bytes_max = bytes_max.min(i32::MAX as usize); // a batch says its length in 32 bits
        Ok(Self { info: *checked, to, source, encoder, bytes_max, total: 0 })
    }

    /// Goes on with so many bytes of records, or a few more.
    pub fn step(mut self, bytes: usize) -> Result<Recompressed, BatchError> {
        let until = self.total + bytes as u64;
        while self.total < until {
            if !self.move_piece()? {
                return self.finish();
            }
            check_size(self.encoder.compressed(), self.bytes_max, self.to.codec)?;
        }
        Ok(Recompressed::More(self))
    }

    /// False at the end.
    fn move_piece(&mut self) -> Result<bool, BatchError> {
        let moved = match &mut self.source {
            Source::Plain(rest) => {
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                self.encoder.write(&piece);
                piece.len()
            }
            Source::Compressed { decoder, buffer } => {
                let read = decoder.read(buffer).map_err(|e| invalid(format!("records do not decompress: {e}")))?;
                self.encoder.write(&buffer[..read]);
                read
            }
        };
        self.total += moved as u64;
        if self.total > DECOMPRESSED_BYTES_MAX {
            return Err(invalid(format!("records decompress to more than {DECOMPRESSED_BYTES_MAX} bytes")));
        }
        Ok(moved > 0)
    }

    fn finish(self) -> Result<Recompressed, BatchError> {
        let Self { info, to, encoder, bytes_max, .. } = self;
        let mut batch = encoder.finish();
        check_size(batch.len(), bytes_max, to.codec)?;
        let length = i32::try_from(batch.len() - LENGTH_END).expect("a limit is smaller than 2 GiB");
        let info = BatchInfo {
            size: batch.len(),
            attributes: info.attributes & (TRANSACTIONAL | CONTROL) | i16::from(to.codec as u8),
            ..info
        };
        let header = Header::mut_from_prefix(&mut batch).expect("begins with a header").0;
        header.length = length.into();
        header.attributes = info.attributes.into();
        header.max_timestamp = info.max_timestamp.into();
        let crc = checksum(&batch);
        Header::mut_from_prefix(&mut batch).expect("begins with a header").0.crc = crc.into();
        Ok(Recompressed::Done(batch.into(), info))
    }
}

fn check_size(bytes: usize, max: usize, codec: Codec) -> Result<(), BatchError> {
    if bytes > max { Err(BatchError::TooLargeRecompressed { codec: codec.name(), max }) } else { Ok(()) }
}
