//! Decodes a produce request; records are slices of the frame.
//!
//! Versions 3 to 13. Nothing is allocated by a declared count alone.

use bytes::{Buf, Bytes};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::wire::frame::take_unsigned_varint;

/// A produce request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProduceRequest {
    pub(crate) transactional_id: Option<StrBytes>,
    pub(crate) acks: i16,
    /// How long the producer is willing to wait for replicas, in ms.
    pub(crate) timeout_ms: i32,
    pub(crate) topics: Vec<TopicData>,
}

/// One topic of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicData {
    /// Empty from version 13 on.
    pub(crate) name: StrBytes,
    /// Nil before version 13.
    pub(crate) id: Uuid,
    pub(crate) partitions: Vec<PartitionData>,
}

/// One partition of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionData {
    pub(crate) index: i32,
    pub(crate) records: Option<Bytes>,
}

impl ProduceRequest {
    /// Decodes a body.
    pub(crate) fn decode(body: Bytes, version: i16) -> Result<ProduceRequest, &'static str> {
        let mut decoder = Decoder { rest: body, flexible: version >= 9, has_topic_id: version >= 13 };
        decoder.request()
    }
}

const CUT_OFF: &str = "it is cut off";

struct Decoder {
    rest: Bytes,
    flexible: bool,
    has_topic_id: bool,
}

impl Decoder {
    fn request(&mut self) -> Result<ProduceRequest, &'static str> {
        let transactional_id = self.text()?;
        let acks = self.rest.try_get_i16().map_err(|_| CUT_OFF)?;
        let timeout_ms = self.rest.try_get_i32().map_err(|_| CUT_OFF)?;
        let topics = self.array(Self::topic)?;
        self.skip_tagged_fields()?;
        Ok(ProduceRequest { transactional_id, acks, timeout_ms, topics })
    }

    fn topic(&mut self) -> Result<TopicData, &'static str> {
        let (name, id) = if self.has_topic_id {
            (StrBytes::new(), Uuid::from_u128(self.rest.try_get_u128().map_err(|_| CUT_OFF)?))
        } else {
            (self.text()?.ok_or("a topic's name is null")?, Uuid::nil())
        };
        let partitions = self.array(Self::partition)?;
        self.skip_tagged_fields()?;
        Ok(TopicData { name, id, partitions })
    }

    fn partition(&mut self) -> Result<PartitionData, &'static str> {
        let index = self.rest.try_get_i32().map_err(|_| CUT_OFF)?;
        let records = match self.length_of_bytes()? {
            Some(length) => Some(self.take(length)?),
            None => None,
        };
        self.skip_tagged_fields()?;
        Ok(PartitionData { index, records })
    }

    fn array<T>(&mut self, element: impl Fn(&mut Self) -> Result<T, &'static str>) -> Result<Vec<T>, &'static str> {
        /// Bytes that an element takes at least; ties the allocation to bytes that are there.
        const ELEMENT_BYTES_MIN: usize = 6;
        let count = self.length_of_bytes()?.ok_or("an array is null")?;
        let mut elements = Vec::with_capacity(count.min(self.rest.len() / ELEMENT_BYTES_MIN));
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    /// The length of bytes or an array; `None` for null.
    fn length_of_bytes(&mut self) -> Result<Option<usize>, &'static str> {
        if self.flexible {
            return Ok((self.varint()? as usize).checked_sub(1));
        }
        let length = self.rest.try_get_i32().map_err(|_| CUT_OFF)?;
        non_negative_or_null(length)
    }

    fn text(&mut self) -> Result<Option<StrBytes>, &'static str> {
        let length = if self.flexible {
            (self.varint()? as usize).checked_sub(1)
        } else {
            let length = self.rest.try_get_i16().map_err(|_| CUT_OFF)?;
            non_negative_or_null(length.into())?
        };
        match length {
            Some(length) => {
                let text = StrBytes::from_utf8(self.take(length)?);
                Ok(Some(text.map_err(|_| "a text is not UTF-8")?))
            }
            None => Ok(None),
        }
    }

    fn skip_tagged_fields(&mut self) -> Result<(), &'static str> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.varint()? {
            self.varint()?;
            let size = self.varint()? as usize;
            self.take(size)?;
        }
        Ok(())
    }

    fn varint(&mut self) -> Result<u32, &'static str> {
        take_unsigned_varint(&mut self.rest).ok_or("a variable-length number is damaged")
    }

    fn take(&mut self, length: usize) -> Result<Bytes, &'static str> {
        if length > self.rest.len() {
            return Err(CUT_OFF);
        }
        Ok(self.rest.split_to(length))
    }
}

fn non_negative_or_null(length: i32) -> Result<Option<usize>, &'static str> {
    match usize::try_from(length) {
        Ok(length) => Ok(Some(length)),
        Err(_) if length == -1 => Ok(None),
        Err(_) => Err("a length is negative"),
    }
}
