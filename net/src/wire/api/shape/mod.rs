//! The shape of a request's body: what its fields are, so that a body can be checked before it is decoded.
//!
//! The message library allocates an array by its declared count before it has seen an element, and trusts the declared
//! size of tagged fields it knows. [`check`] walks a body first, without allocating, and lets through only what is
//! complete: every count is backed by bytes, and the number of elements is in proportion to the body's size. It does
//! not say whether a value makes sense (nulls): the decoder does. Text that is not UTF-8, which the library refuses, is
//! found on the way: [`mend`] replaces it.

mod mend;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod sample;

use bytes::Bytes;

pub(crate) use self::mend::{mend, mended_bytes_max};
use crate::wire::{
    frame::{Malformed, take_unsigned_varint},
    text::TEXT_BYTES_MAX,
};

/// A body, or an element of an array: its fields in order.
pub(crate) type Shape = &'static [Field];

/// One field and the versions that have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    kind: Kind,
    version_min: i16,
    version_max: i16,
    tag: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A number, boolean or UUID: that many bytes.
    Fixed(usize),
    /// Text, with an i16 or compact length.
    Text,
    /// Bytes, with an i32 or compact length.
    Blob,
    /// Elements of one primitive each.
    List(&'static Kind),
    /// Elements of several fields each.
    Array(Shape),
    /// Fields that may be absent altogether, as a leading byte says.
    Optional(Shape),
    /// Fields in place (only as a tagged field).
    Struct(Shape),
}

const fn field(kind: Kind) -> Field {
    Field { kind, version_min: 0, version_max: i16::MAX, tag: None }
}

pub(crate) const BOOL: Field = field(Kind::Fixed(1));
pub(crate) const INT8: Field = field(Kind::Fixed(1));
pub(crate) const INT16: Field = field(Kind::Fixed(2));
pub(crate) const INT32: Field = field(Kind::Fixed(4));
pub(crate) const INT64: Field = field(Kind::Fixed(8));
pub(crate) const UUID: Field = field(Kind::Fixed(16));
pub(crate) const STRING: Field = field(Kind::Text);
pub(crate) const BYTES: Field = field(Kind::Blob);
pub(crate) const INT8S: Field = field(Kind::List(&Kind::Fixed(1)));
pub(crate) const INT32S: Field = field(Kind::List(&Kind::Fixed(4)));
/// Numbers of 64 bits.
pub(crate) const INT64S: Field = field(Kind::List(&Kind::Fixed(8)));
pub(crate) const STRINGS: Field = field(Kind::List(&Kind::Text));

/// An array whose elements have the fields of `shape`.
pub(crate) const fn array(shape: Shape) -> Field {
    field(Kind::Array(shape))
}

/// Fields that may be null together.
pub(crate) const fn optional(shape: Shape) -> Field {
    field(Kind::Optional(shape))
}

/// Fields in place.
pub(crate) const fn fields(shape: Shape) -> Field {
    field(Kind::Struct(shape))
}

impl Field {
    /// Present from that version on.
    pub(crate) const fn since(self, version: i16) -> Field {
        Field { version_min: version, ..self }
    }

    /// Present up to that version.
    pub(crate) const fn until(self, version: i16) -> Field {
        Field { version_max: version, ..self }
    }

    /// A tagged field.
    pub(crate) const fn tag(self, tag: u32) -> Field {
        Field { tag: Some(tag), ..self }
    }

    fn is_in(&self, version: i16) -> bool {
        self.version_min <= version && version <= self.version_max
    }
}

/// Elements that any body may have, whatever its size.
const ELEMENTS_MIN: usize = 65_536;
/// Beyond that, bytes of the body per element at least.
const ELEMENT_BYTES_MIN: usize = 8;

/// Checks a body. `flexible`: the version uses compact lengths and tagged fields. Says how many bytes are in text that
/// is not UTF-8: if there are any, only what [`mend`] makes of the body can be decoded.
pub(crate) fn check(shape: Shape, version: i16, flexible: bool, body: &[u8]) -> Result<usize, Malformed> {
    let mut walk = Walk::new(body, version, flexible);
    walk.shape(shape).map_err(|reason| Malformed::Body(reason.to_string()))?;
    Ok(walk.foreign_bytes)
}

/// Checks bytes that are small and in memory already, and mends them if need be.
pub(crate) fn checked(shape: Shape, version: i16, flexible: bool, bytes: Bytes) -> Result<Bytes, Malformed> {
    match check(shape, version, flexible, &bytes)? {
        0 => Ok(bytes),
        foreign_bytes => mend(shape, version, flexible, &bytes, foreign_bytes),
    }
}

const CUT_OFF: &str = "it is cut off";

struct Walk<'a> {
    body: &'a [u8],
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements_left: usize,
    /// Bytes of text that is not UTF-8, so far.
    foreign_bytes: usize,
    /// Where the body is written anew, if it is.
    mended: Option<mend::Mended>,
}

impl<'a> Walk<'a> {
    fn new(body: &'a [u8], version: i16, flexible: bool) -> Walk<'a> {
        let elements_left = ELEMENTS_MIN + body.len() / ELEMENT_BYTES_MIN;
        Walk { body, rest: body, version, flexible, elements_left, foreign_bytes: 0, mended: None }
    }

    fn position(&self) -> usize {
        self.body.len() - self.rest.len()
    }

    fn shape(&mut self, shape: Shape) -> Result<(), &'static str> {
        let version = self.version;
        for field in shape.iter().filter(|field| field.tag.is_none() && field.is_in(version)) {
            self.value(field.kind)?;
        }
        if self.flexible { self.tagged_fields(shape) } else { Ok(()) }
    }

    fn value(&mut self, kind: Kind) -> Result<(), &'static str> {
        match kind {
            Kind::Fixed(size) => self.skip(size),
            Kind::Text => self.text(),
            Kind::Blob => {
                let length = if self.flexible {
                    self.compact_length()?
                } else {
                    plain_length(i32::from_be_bytes(self.take()?))?
                };
                self.skip(length)
            }
            Kind::List(element) => {
                for _ in 0..self.count()? {
                    self.value(*element)?;
                }
                Ok(())
            }
            Kind::Array(shape) => {
                for _ in 0..self.count()? {
                    self.shape(shape)?;
                }
                Ok(())
            }
            Kind::Optional(shape) => match self.take::<1>()?[0].cast_signed() {
                -1 => Ok(()),
                _ => self.shape(shape),
            },
            Kind::Struct(shape) => self.shape(shape),
        }
    }

    fn tagged_fields(&mut self, shape: Shape) -> Result<(), &'static str> {
        for _ in 0..self.varint()? {
            self.count_elements(1)?;
            let tag = self.varint()?;
            let size_at = self.position();
            let size = self.varint()? as usize;
            let after = self.rest.get(size..).ok_or(CUT_OFF)?;
            let known = shape.iter().find(|field| field.tag == Some(tag) && field.is_in(self.version));
            if let Some(field) = known {
                self.tagged_value(size_at, |walk| walk.value(field.kind))?;
                if self.rest.len() != after.len() {
                    return Err("a tagged field is not of the size it declares");
                }
            }
            self.rest = after;
        }
        Ok(())
    }

    /// The count of an array; null counts as none. Every element takes at least one byte.
    fn count(&mut self) -> Result<usize, &'static str> {
        let count = if self.flexible {
            (self.varint()? as usize).saturating_sub(1)
        } else {
            match i32::from_be_bytes(self.take()?) {
                -1 => 0,
                count => usize::try_from(count).map_err(|_| "an array has a negative length")?,
            }
        };
        if count > self.rest.len() {
            return Err("an array declares more elements than there are bytes");
        }
        self.count_elements(count)?;
        Ok(count)
    }

    fn count_elements(&mut self, count: usize) -> Result<(), &'static str> {
        self.elements_left = self.elements_left.checked_sub(count).ok_or("it has too many elements for its size")?;
        Ok(())
    }

    fn text(&mut self) -> Result<(), &'static str> {
        let begin = self.position();
        let length =
            if self.flexible { self.compact_length()? } else { plain_length(i16::from_be_bytes(self.take()?).into())? };
        if length > TEXT_BYTES_MAX {
            return Err("a text is too long");
        }
        let text = self.rest.get(..length).ok_or(CUT_OFF)?;
        self.skip(length)?;
        if std::str::from_utf8(text).is_err() {
            self.foreign_bytes += length;
            self.replace_text(begin, text);
        }
        Ok(())
    }

    /// Null counts as none.
    fn compact_length(&mut self) -> Result<usize, &'static str> {
        Ok((self.varint()? as usize).saturating_sub(1))
    }

    fn varint(&mut self) -> Result<u32, &'static str> {
        take_unsigned_varint(&mut self.rest).ok_or("a variable-length number is damaged")
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CUT_OFF)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), &'static str> {
        self.rest = self.rest.get(count..).ok_or(CUT_OFF)?;
        Ok(())
    }
}

/// Null counts as none.
fn plain_length(length: i32) -> Result<usize, &'static str> {
    match length {
        -1 => Ok(0),
        length => usize::try_from(length).map_err(|_| "a text or bytes field has a negative length"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_the_body_are_refused() {
        const SHAPE: Shape = &[array(&[INT32])];
        let body = |count: u32| [&count.to_be_bytes()[..], &[0; 40]].concat();
        assert!(check(SHAPE, 0, false, &body(10)).is_ok());
        for count in [11, 41, 0x7fff_ffff, 0x8000_0000] {
            assert!(check(SHAPE, 0, false, &body(count)).is_err(), "{count}");
        }
        assert!(check(SHAPE, 0, true, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]).is_err());
    }

    #[test]
    fn elements_are_in_proportion_to_the_body() {
        // An empty text and no tagged fields: two bytes of body, a hundred bytes of memory.
        const SHAPE: Shape = &[array(&[STRING])];
        let body = |count: usize| {
            let mut body = vec![((count + 1) & 0x7f) as u8 | 0x80, ((count + 1) >> 7 & 0x7f) as u8 | 0x80];
            body.push(((count + 1) >> 14) as u8);
            body.extend(std::iter::repeat_n([1, 0], count).flatten());
            body.push(0);
            body
        };
        assert!(check(SHAPE, 0, true, &body(50_000)).is_ok());
        assert!(check(SHAPE, 0, true, &body(1_000_000)).is_err());
    }

    #[test]
    fn text_longer_than_the_protocol_has_is_refused() {
        let body = |length: usize| {
            let declared = length + 1;
            let prefix = [(declared & 0x7f) as u8 | 0x80, (declared >> 7 & 0x7f) as u8 | 0x80, (declared >> 14) as u8];
            [&prefix[..], &vec![b'x'; length], &[0]].concat()
        };
        assert!(check(&[STRING], 0, true, &body(TEXT_BYTES_MAX)).is_ok());
        assert!(check(&[STRING], 0, true, &body(TEXT_BYTES_MAX + 1)).is_err());
        assert!(check(&[BYTES], 0, true, &body(TEXT_BYTES_MAX + 1)).is_ok());
    }

    #[test]
    fn known_tagged_fields_must_be_of_their_size() {
        const SHAPE: Shape = &[INT64.tag(0)];
        let body = |size: u8| [&[1, 0, size][..], &[0; 9]].concat();
        assert!(check(SHAPE, 0, true, &body(8)).is_ok());
        assert!(check(SHAPE, 0, true, &body(9)).is_err());
        assert!(check(SHAPE, 0, true, &body(7)).is_err());
    }
}
