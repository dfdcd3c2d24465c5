//! Reading and writing the primitive types of Kafka's protocol, as the records of internal topics use them.
//!
//! Everything read is foreign: a length is checked against what is left before anything is allocated.

use std::rc::Rc;

use bytes::Bytes;
use uuid::Uuid;

/// A record's key or value is not of the format that its version says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// The bytes end inside a field.
    #[error("ends inside {0}")]
    Short(&'static str),
    /// A field holds what it must not.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// The version is newer than any known one.
    #[error("version {version} of {what} is not known")]
    Version {
        /// Which key or value.
        what: &'static str,
        /// Its version.
        version: i16,
    },
}

/// Reads from the front of a slice; never past its end.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// Whether strings, bytes and arrays are of the compact form and structs end in tagged fields (KIP-482).
    flexible: bool,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, with the old or the compact forms.
    pub(crate) fn new(bytes: &'a [u8], flexible: bool) -> Self {
        Self { rest: bytes, flexible }
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], RecordError> {
        if len > self.rest.len() {
            return Err(RecordError::Short(what));
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], RecordError> {
        let bytes = self.take(N, what)?;
        Ok(bytes.try_into().expect("take returns exactly the bytes asked for"))
    }

    /// A signed byte.
    pub(crate) fn i8(&mut self, what: &'static str) -> Result<i8, RecordError> {
        Ok(i8::from_be_bytes(self.array(what)?))
    }

    /// A big-endian 16 bit number.
    pub(crate) fn i16(&mut self, what: &'static str) -> Result<i16, RecordError> {
        Ok(i16::from_be_bytes(self.array(what)?))
    }

    /// A big-endian 32 bit number.
    pub(crate) fn i32(&mut self, what: &'static str) -> Result<i32, RecordError> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    /// A big-endian 64 bit number.
    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, RecordError> {
        Ok(i64::from_be_bytes(self.array(what)?))
    }

    /// A UUID.
    pub(crate) fn uuid(&mut self, what: &'static str) -> Result<Uuid, RecordError> {
        Ok(Uuid::from_bytes(self.array(what)?))
    }

    /// An unsigned varint of at most 32 bits.
    pub(crate) fn varint(&mut self, what: &'static str) -> Result<u32, RecordError> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array(what)?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(RecordError::Malformed(what))
    }

    /// A length as the form in use encodes it; `None` is null.
    fn length(&mut self, short: bool, what: &'static str) -> Result<Option<usize>, RecordError> {
        let length = if self.flexible {
            i64::from(self.varint(what)?) - 1
        } else if short {
            i64::from(self.i16(what)?)
        } else {
            i64::from(self.i32(what)?)
        };
        match length {
            -1 => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| RecordError::Malformed(what)),
        }
    }

    /// A string or null.
    pub(crate) fn nullable_string(&mut self, what: &'static str) -> Result<Option<Rc<str>>, RecordError> {
        let Some(length) = self.length(true, what)? else {
            return Ok(None);
        };
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes).map_err(|_| RecordError::Malformed(what))?;
        Ok(Some(Rc::from(text)))
    }

    /// A string.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<Rc<str>, RecordError> {
        self.nullable_string(what)?.ok_or(RecordError::Malformed(what))
    }

    /// Bytes, copied.
    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<Bytes, RecordError> {
        let length = self.length(false, what)?.ok_or(RecordError::Malformed(what))?;
        Ok(Bytes::copy_from_slice(self.take(length, what)?))
    }

    /// An array or null. Memory grows with what is really there, not with the declared length.
    pub(crate) fn nullable_vec<T>(
        &mut self,
        what: &'static str,
        mut element: impl FnMut(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Option<Vec<T>>, RecordError> {
        let Some(length) = self.length(false, what)? else {
            return Ok(None);
        };
        let mut elements = Vec::with_capacity(length.min(self.rest.len()));
        for _ in 0..length {
            elements.push(element(self)?);
        }
        Ok(Some(elements))
    }

    /// An array.
    pub(crate) fn vec<T>(
        &mut self,
        what: &'static str,
        element: impl FnMut(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Vec<T>, RecordError> {
        self.nullable_vec(what, element)?.ok_or(RecordError::Malformed(what))
    }

    /// The tagged fields at the end of a struct of the compact form; unknown tags are passed over.
    pub(crate) fn tags(
        &mut self,
        mut known: impl FnMut(u32, &mut Reader<'a>) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.varint("tagged fields")? {
            let tag = self.varint("a tag")?;
            let size = usize::try_from(self.varint("a tag's size")?).map_err(|_| RecordError::Malformed("a tag"))?;
            let field = self.take(size, "a tagged field")?;
            known(tag, &mut Reader::new(field, true))?;
        }
        Ok(())
    }

    /// Tagged fields of which none is known.
    pub(crate) fn no_tags(&mut self) -> Result<(), RecordError> {
        self.tags(|_, _| Ok(()))
    }
}

/// Room that keys and values have from the start: most need no more.
const FIRST_BYTES: usize = 128;

/// Appends primitives to a buffer. What is written here was checked before: strings that are longer than the format
/// can say are a mistake of ours.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// What was written.
    pub(crate) out: Vec<u8>,
    flexible: bool,
}

impl Writer {
    /// Begins a key or a value with its version.
    pub(crate) fn new(version: i16, flexible: bool) -> Self {
        let mut out = Vec::with_capacity(FIRST_BYTES);
        out.extend_from_slice(&version.to_be_bytes());
        Self { out, flexible }
    }

    /// Begins the inside of a tagged field.
    pub(crate) fn tagged() -> Self {
        Self { out: Vec::new(), flexible: true }
    }

    /// A signed byte.
    pub(crate) fn i8(&mut self, value: i8) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A big-endian 16 bit number.
    pub(crate) fn i16(&mut self, value: i16) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A big-endian 32 bit number.
    pub(crate) fn i32(&mut self, value: i32) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A big-endian 64 bit number.
    pub(crate) fn i64(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A UUID.
    pub(crate) fn uuid(&mut self, value: Uuid) {
        self.out.extend_from_slice(value.as_bytes());
    }

    /// An unsigned varint.
    pub(crate) fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn length(&mut self, length: Option<usize>, short: bool) {
        let length = length.map_or(-1, |length| i32::try_from(length).expect("a field is smaller than 2 GiB"));
        if self.flexible {
            self.varint((length + 1).unsigned_abs());
        } else if short {
            let length = i16::try_from(length).expect("strings of requests are shorter than 32 KiB");
            self.out.extend_from_slice(&length.to_be_bytes());
        } else {
            self.i32(length);
        }
    }

    /// A string or null.
    pub(crate) fn nullable_string(&mut self, value: Option<&str>) {
        self.length(value.map(str::len), true);
        self.out.extend_from_slice(value.unwrap_or_default().as_bytes());
    }

    /// A string.
    pub(crate) fn string(&mut self, value: &str) {
        self.nullable_string(Some(value));
    }

    /// Bytes.
    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.length(Some(value.len()), false);
        self.out.extend_from_slice(value);
    }

    /// The number of elements of an array, or of bytes, that follow.
    pub(crate) fn count(&mut self, count: usize) {
        self.length(Some(count), false);
    }

    /// An array.
    pub(crate) fn vec<T>(&mut self, elements: &[T], mut element: impl FnMut(&mut Self, &T)) {
        self.length(Some(elements.len()), false);
        for each in elements {
            element(self, each);
        }
    }

    /// An array that is null.
    pub(crate) fn no_array(&mut self) {
        self.length(None, false);
    }

    /// The tagged fields that end a struct, sorted by tag.
    pub(crate) fn tags(&mut self, fields: &[(u32, Vec<u8>)]) {
        self.tags_of(fields.len(), fields.iter().map(|(tag, field)| (*tag, &**field)));
    }

    /// The same, given how many there are.
    pub(crate) fn tags_of<'a>(&mut self, count: usize, fields: impl Iterator<Item = (u32, &'a [u8])>) {
        if !self.flexible {
            return;
        }
        self.varint(u32::try_from(count).expect("a struct has few tags"));
        for (tag, field) in fields {
            self.varint(tag);
            self.varint(u32::try_from(field.len()).expect("a field is smaller than 2 GiB"));
            self.out.extend_from_slice(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_round_trip(value in any::<u32>()) {
            let mut writer = Writer::tagged();
            writer.varint(value);
            prop_assert_eq!(Reader::new(&writer.out, true).varint("x"), Ok(value));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), flexible in any::<bool>()) {
            let mut reader = Reader::new(&bytes, flexible);
            let _strings = reader.vec("strings", |reader| reader.nullable_string("a string"));
            let _tags = reader.no_tags();
        }
    }

    #[test]
    fn declared_length_beyond_the_end_is_an_error() {
        let mut reader = Reader::new(&[0x7f, 0xff, 0xff, 0xff], false);
        assert_eq!(reader.bytes("a field"), Err(RecordError::Short("a field")));
    }
}
