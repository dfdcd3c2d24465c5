//! The headers of a segment's batches, without their records: what a cut has to know of what it leaves.

use std::{io, path::Path};

use crate::{
    batch::{BATCH_HEADER_BYTES, BatchInfo},
    format::segment::Segment,
    io::{Io, Open, window::Window},
};

/// Goes through the headers of a segment's batches that begin before an offset: there may be millions.
pub(super) async fn each_header<I: Io>(
    io: &I,
    path: &Path,
    segment: &Segment,
    end_offset: i64,
    mut take: impl FnMut(&BatchInfo, &[u8]),
) -> io::Result<()> {
    let file = io.open(path, Open::Read).await?;
    let mut window = Window::new(&file);
    let mut header = Vec::with_capacity(BATCH_HEADER_BYTES);
    let mut position = 0;
    while position < segment.size {
        header.clear();
        window.copy(position, BATCH_HEADER_BYTES, &mut header).await?;
        let info = BatchInfo::parse_header(&header).map_err(io::Error::other)?;
        if info.base_offset >= end_offset {
            break;
        }
        if info.is_control() {
            header.clear();
            window.copy(position, info.size, &mut header).await?; // what it ends is in its record
        }
        position += info.size as u64;
        take(&info, &header);
    }
    crate::io::File::close(file).await
}
