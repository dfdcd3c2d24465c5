//! Bodies made from a shape: legal ones, to compare the shape with the message library and for fuzzers to start from.

use super::{Field, Kind, Shape};

/// xorshift64* (Vigna, An experimental exploration of Marsaglia's xorshift generators, scrambled, 2016).
pub(crate) struct Random(u64);

impl Random {
    /// Any seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % end.max(1)
    }
}

/// What text is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    /// Letters.
    Ascii,
    /// Bytes that are not UTF-8, whenever there are any.
    Foreign,
}

/// A body of that shape, without nulls; every field is there, and sometimes a tagged field that nobody knows.
pub(crate) fn sample(shape: Shape, version: i16, flexible: bool, text: Text, random: &mut Random) -> Vec<u8> {
    let mut sampler = Sampler { body: Vec::new(), version, flexible, text, random };
    sampler.shape(shape);
    sampler.body
}

struct Sampler<'a> {
    body: Vec<u8>,
    version: i16,
    flexible: bool,
    text: Text,
    random: &'a mut Random,
}

impl Sampler<'_> {
    fn shape(&mut self, shape: Shape) {
        let present: Vec<&Field> = shape.iter().filter(|field| field.is_in(self.version)).collect();
        for field in present.iter().filter(|field| field.tag.is_none()) {
            self.value(field.kind);
        }
        if self.flexible {
            self.tagged_fields(&present);
        }
    }

    fn value(&mut self, kind: Kind) {
        match kind {
            // A boolean, or a small number.
            Kind::Fixed(1) => self.body.push(self.random.below(2) as u8),
            Kind::Fixed(size) => self.bytes(size),
            Kind::Text => {
                let length = self.random.below(12) as usize;
                self.length(length, 2);
                match self.text {
                    Text::Ascii => self.body.extend((0..length).map(|at| b'a' + at as u8)),
                    Text::Foreign => self.body.extend((0..length).map(|at| 0xff - at as u8)),
                }
            }
            Kind::Blob => {
                let length = self.random.below(40) as usize;
                self.length(length, 4);
                self.bytes(length);
            }
            Kind::List(element) => {
                let count = self.random.below(4) as usize;
                self.length(count, 4);
                (0..count).for_each(|_| self.value(*element));
            }
            Kind::Array(shape) => {
                let count = self.random.below(4) as usize;
                self.length(count, 4);
                (0..count).for_each(|_| self.shape(shape));
            }
            Kind::Optional(shape) => match self.random.below(2) {
                0 => self.body.push(0xff),
                _ => {
                    self.body.push(1);
                    self.shape(shape);
                }
            },
            Kind::Struct(shape) => self.shape(shape),
        }
    }

    fn tagged_fields(&mut self, present: &[&Field]) {
        const UNKNOWN_TAG: usize = 77;
        let known: Vec<_> = present.iter().filter(|_| self.random.below(2) == 0).collect();
        let known: Vec<_> = known.into_iter().filter_map(|field| Some((field.tag?, field.kind))).collect();
        let has_unknown = self.random.below(8) == 0;
        self.varint(known.len() + usize::from(has_unknown));
        for (tag, kind) in known {
            let outside = std::mem::take(&mut self.body);
            self.value(kind);
            let inside = std::mem::replace(&mut self.body, outside);
            self.varint(tag as usize);
            self.varint(inside.len());
            self.body.extend(inside);
        }
        if has_unknown {
            self.varint(UNKNOWN_TAG);
            self.varint(3);
            self.bytes(3);
        }
    }

    fn bytes(&mut self, count: usize) {
        self.body.extend((0..count).map(|_| 1 + self.random.below(255) as u8));
    }

    fn length(&mut self, length: usize, width: usize) {
        if self.flexible {
            self.varint(length + 1);
        } else {
            self.body.extend_from_slice(&(length as u64).to_be_bytes()[8 - width..]);
        }
    }

    fn varint(&mut self, value: usize) {
        let mut value = value;
        while value >= 0x80 {
            self.body.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.body.push(value as u8);
    }
}
