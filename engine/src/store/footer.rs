//! Footers of sealed segments: written whole, read as far as they go.

use std::{io, rc::Rc};

use crate::{
    format::segment::{self, Footer, Segment},
    io::{Buffer, File, IO_BYTES_MAX, Io},
};

/// Writes the footer behind a segment's batches.
pub(super) async fn write<I: Io>(io: &I, file: &I::File, segment: &Segment) -> io::Result<()> {
    let footer = segment::encode_footer(segment);
    let mut position = segment.footer_position();
    for part in footer.chunks(IO_BYTES_MAX) {
        let mut buffer = io.buffer(part.len());
        buffer.bytes_mut().copy_from_slice(part);
        file.write(Rc::new(buffer), position).await?;
        position += part.len() as u64;
    }
    Ok(())
}

/// Reads the footer behind a segment's batches; `None` if there is none, or it is damaged.
pub(super) async fn read<F: File>(file: &F, segment: &Segment) -> io::Result<Option<Footer>> {
    let (position, most) = (segment.footer_position(), segment::footer_bytes_max(segment.size));
    let memory = file.read(position, most).await?;
    let Some(bytes) = segment::footer_bytes(memory.bytes()) else { return Ok(None) };
    if bytes <= most {
        return Ok(segment::decode_footer(memory.bytes()));
    }
    let memory = file.read(position, bytes).await?;
    Ok(segment::decode_footer(memory.bytes()))
}
