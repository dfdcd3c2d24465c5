//! A run: batches that lie back to back, in memory or as they were read from a segment. They were checked before they were
//! logged, so that the first bytes of their headers are all that is looked at.

use std::ops::Range;

use super::read::Wanted;

/// Size of a batch's header, as much of it as [`select`] looks at.
const BATCH_HEAD_BYTES: usize = 27;

/// Base offset, end offset and size of the batch at the start of `bytes`, which are known to be good.
pub(crate) fn batch_head(bytes: &[u8]) -> Option<(i64, i64, usize)> {
    let head = bytes.get(..BATCH_HEAD_BYTES)?;
    let base = i64::from_be_bytes(head[..8].try_into().ok()?);
    let length = i32::from_be_bytes(head[8..12].try_into().ok()?);
    let last_offset_delta = i32::from_be_bytes(head[23..27].try_into().ok()?);
    Some((base, base + i64::from(last_offset_delta) + 1, usize::try_from(length).ok()? + 12))
}

/// The whole batches of a run that a reader wants. A cut-off batch at the end of `bytes` is left out.
pub(crate) fn select(bytes: &[u8], wanted: &Wanted) -> Range<usize> {
    let mut at = 0;
    let mut range = 0..0;
    while let Some((_, end, size)) = batch_head(&bytes[at..]) {
        if size > bytes.len() - at || end > wanted.end {
            break;
        }
        let next = at + size;
        if end > wanted.offset {
            if range.is_empty() {
                if size > wanted.max_bytes && !wanted.min_one {
                    break;
                }
                range = at..next;
            } else if next - range.start > wanted.max_bytes {
                break;
            } else {
                range.end = next;
            }
        }
        at = next;
    }
    range
}

/// Where the last batch ends that ends at or before an offset; none if the first one goes beyond.
pub(crate) fn end_below(bytes: &[u8], offset: i64) -> Option<i64> {
    let (mut at, mut end) = (0, None);
    while let Some((_, end_offset, size)) = batch_head(&bytes[at..])
        && end_offset <= offset
    {
        (at, end) = (at + size, Some(end_offset));
    }
    end
}

/// Bytes of the batches that end at or before an offset.
pub(crate) fn bytes_below(bytes: &[u8], offset: i64) -> usize {
    let mut below = 0;
    while let Some((_, end_offset, size)) = batch_head(&bytes[below..])
        && end_offset <= offset
    {
        below += size;
    }
    below
}
