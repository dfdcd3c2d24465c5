//! A body with text in it that is not UTF-8, written anew with text that is.
//!
//! The message library refuses such text, Kafka's broker does not: see [`crate::wire::text`]. Only the text that is replaced
//! and the lengths around it change; everything else is copied as it came.

use bytes::Bytes;

use super::{Shape, Walk};
use crate::wire::{frame::Malformed, text};

/// Bytes that a mended body has at most: `foreign_bytes` are in text of it that is not UTF-8.
pub(crate) fn mended_bytes_max(body: &[u8], foreign_bytes: usize) -> usize {
    // That the bytes which are replaced count too leaves room for the lengths around them, which may grow by one.
    body.len() + text::REPLACEMENT_BYTES * foreign_bytes
}

/// A body in whose text [`check`](super::check) found `foreign_bytes`, with all of its text as UTF-8.
pub(crate) fn mend(
    shape: Shape,
    version: i16,
    flexible: bool,
    body: &[u8],
    foreign_bytes: usize,
) -> Result<Bytes, Malformed> {
    let mut walk = Walk::new(body, version, flexible);
    let room = Vec::with_capacity(mended_bytes_max(body, foreign_bytes));
    walk.mended = Some(Mended { bytes: room, copied: 0 });
    walk.shape(shape).map_err(|reason| Malformed::Body(reason.to_string()))?;
    Ok(walk.mended.take().map(|mended| mended.finish(body)).unwrap_or_default().into())
}

/// What was written so far.
pub(super) struct Mended {
    bytes: Vec<u8>,
    /// The body is copied or replaced up to here; before the first replacement nothing is.
    copied: usize,
}

impl Mended {
    fn replace(&mut self, body: &[u8], begin: usize, end: usize, by: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.extend_from_slice(&body[self.copied..begin]);
        by(&mut self.bytes);
        self.copied = end;
    }

    fn finish(mut self, until: &[u8]) -> Vec<u8> {
        self.bytes.extend_from_slice(&until[self.copied..]);
        self.bytes
    }
}

impl Walk<'_> {
    /// Replaces a text whose length begins at `begin`, and which ends where the walk is.
    pub(super) fn replace_text(&mut self, begin: usize, text: &[u8]) {
        let (end, flexible) = (self.position(), self.flexible);
        let Some(mended) = &mut self.mended else {
            return;
        };
        let text = text::replace(text);
        mended.replace(self.body, begin, end, |out| {
            match u16::try_from(text.len()) {
                Ok(length) if !flexible => out.extend_from_slice(&length.to_be_bytes()),
                _ => put_varint(out, text.len() + 1),
            }
            out.extend_from_slice(text.as_bytes());
        });
    }

    /// Walks the value of a tagged field by `walk`; its size begins at `size_at`.
    pub(super) fn tagged_value(
        &mut self,
        size_at: usize,
        walk: impl FnOnce(&mut Self) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        let begin = self.position();
        let inside = Mended { bytes: Vec::new(), copied: begin };
        let outside = self.mended.as_mut().map(|mended| std::mem::replace(mended, inside));
        walk(self)?;
        let end = self.position();
        if let (Some(mended), Some(outside)) = (&mut self.mended, outside) {
            let inside = std::mem::replace(mended, outside);
            if inside.copied > begin {
                let value = inside.finish(&self.body[..end]);
                mended.replace(self.body, size_at, end, |out| {
                    put_varint(out, value.len());
                    out.extend_from_slice(&value);
                });
            }
        }
        Ok(())
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{INT32, STRING, STRINGS, array, check, fields},
        *,
    };

    #[test]
    fn only_text_and_its_lengths_change() {
        const SHAPE: Shape = &[STRING, INT32, STRINGS];
        let plain = b"\0\x02Z\xe4\0\0\0\x07\0\0\0\x02\0\x01a\0\x03\xff-\xff";
        assert_eq!(check(SHAPE, 0, false, plain).ok(), Some(5));
        let mended = mend(SHAPE, 0, false, plain, 5).expect("it was checked");
        assert_eq!(mended, "\0\x04Z\u{fffd}\0\0\0\x07\0\0\0\x02\0\x01a\0\x07\u{fffd}-\u{fffd}".as_bytes());
        let compact = b"\x03Z\xe4\0\0\0\x07\x03\x02a\x04\xff-\xff\0";
        let mended = mend(SHAPE, 0, true, compact, 5).expect("it was checked");
        assert_eq!(mended, "\x05Z\u{fffd}\0\0\0\x07\x03\x02a\x08\u{fffd}-\u{fffd}\0".as_bytes());
    }

    #[test]
    fn sizes_around_text_grow_with_it() {
        const INNER: Shape = &[STRING.tag(1), INT32.tag(2)];
        const SHAPE: Shape = &[array(&[fields(INNER).tag(0), STRING.tag(3)]), INT32];
        let text = [0xff; 60];
        let inner = [&[2, 2, 4, 0, 0, 0, 9, 1, 61, 61][..], &text].concat();
        let element = [&[2, 0, inner.len() as u8][..], &inner, &[3, 2, 1 + 1, b'x']].concat();
        let body = [&[2][..], &element, &[0, 0, 0, 5, 0]].concat();
        assert_eq!(check(SHAPE, 0, true, &body).ok(), Some(60));
        let text = "\u{fffd}".repeat(60);
        let inner = [&[2, 2, 4, 0, 0, 0, 9, 1, 182, 1, 181, 1][..], text.as_bytes()].concat();
        let element = [&[2, 0, 192, 1][..], &inner, &[3, 2, 1 + 1, b'x']].concat();
        let expected = [&[2][..], &element, &[0, 0, 0, 5, 0]].concat();
        assert_eq!(mend(SHAPE, 0, true, &body, 60).expect("it was checked"), expected);
    }
}
