//! What brokers ask of the state of share partitions, as it goes over the wire (KIP-932). Five APIs have one form: a group,
//! its topics, and of each partition there what is asked, or answered. The message library does not know their newest
//! fields (KIP-1226).

use bytes::{Buf, Bytes};
use kafka_protocol::{
    ResponseError,
    messages::ApiKey,
    protocol::{
        Decodable, Encodable, HeaderVersion, Message, Request, VersionRange,
        buf::{ByteBuf, ByteBufMut},
    },
};
use uuid::Uuid;

use crate::{
    client::{Ask, check_shape},
    coordinator::fields::{Reader, RecordError, Writer},
    wire::api::{ErrorCodes, shape},
};

/// Something that is asked of a share partition.
pub(crate) trait Part: Send + Sized + 'static {
    /// The API that asks it.
    const KEY: ApiKey;
    /// The newest version of that.
    const VERSION_MAX: i16;
    /// What is answered.
    type Answer: Answer;

    /// Writes it, but for its partition.
    fn write(&self, version: i16, writer: &mut Writer);
    /// Reads it, but for its partition.
    fn read(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError>;
}

/// What is answered for a share partition.
pub(crate) trait Answer: Default + Send + 'static {
    /// The newest shape of a response with it.
    const SHAPE: shape::Shape;

    /// Writes it, but for its partition and whether it is one.
    fn write(&self, version: i16, writer: &mut Writer);
    /// Reads it, but for its partition and whether it is one.
    fn read(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError>;
}

/// Something of each partition of some topics.
type ByPartition<T> = Vec<(Uuid, Vec<(i32, T)>)>;

/// Asks something of share partitions of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateRequest<P> {
    pub(crate) group: String,
    pub(crate) topics: ByPartition<P>,
}

/// Why there is no answer for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) error: ResponseError,
    pub(crate) message: Option<String>,
}

impl From<ResponseError> for Refused {
    fn from(error: ResponseError) -> Self {
        Self { error, message: None }
    }
}

/// Answers for share partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateResponse<A> {
    pub(crate) topics: ByPartition<Result<A, Refused>>,
}

impl<P: Part> StateRequest<P> {
    fn bytes(&self, version: i16) -> Vec<u8> {
        let mut writer = Writer::tagged();
        writer.string(&self.group);
        writer.vec(&self.topics, |writer, (topic, partitions)| {
            writer.uuid(*topic);
            writer.vec(partitions, |writer, (partition, part)| {
                writer.i32(*partition);
                part.write(version, writer);
                writer.tags(&[]);
            });
            writer.tags(&[]);
        });
        writer.tags(&[]);
        writer.out
    }

    fn read(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let group = reader.string("GroupId")?.to_string();
        let topics = reader.vec("Topics", |reader| {
            let topic = reader.uuid("TopicId")?;
            let partitions = reader.vec("Partitions", |reader| {
                let partition = reader.i32("Partition")?;
                let part = P::read(version, reader)?;
                reader.no_tags()?;
                Ok((partition, part))
            })?;
            reader.no_tags()?;
            Ok((topic, partitions))
        })?;
        reader.no_tags()?;
        Ok(Self { group, topics })
    }
}

impl<A: Answer> StateResponse<A> {
    fn bytes(&self, version: i16) -> Vec<u8> {
        let mut writer = Writer::tagged();
        writer.vec(&self.topics, |writer, (topic, partitions)| {
            writer.uuid(*topic);
            writer.vec(partitions, |writer, (partition, answer)| {
                writer.i32(*partition);
                let refused = answer.as_ref().err();
                writer.i16(refused.map_or(0, |refused| refused.error.code()));
                writer.nullable_string(refused.and_then(|refused| refused.message.as_deref()));
                answer.as_ref().unwrap_or(&A::default()).write(version, writer);
                writer.tags(&[]);
            });
            writer.tags(&[]);
        });
        writer.tags(&[]);
        writer.out
    }

    fn read(version: i16, reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let topics = reader.vec("Results", |reader| {
            let topic = reader.uuid("TopicId")?;
            let partitions = reader.vec("Partitions", |reader| {
                let partition = reader.i32("Partition")?;
                let error = ResponseError::try_from_code(reader.i16("ErrorCode")?);
                let message = reader.nullable_string("ErrorMessage")?.map(|text| text.to_string());
                let answer = A::read(version, reader)?;
                reader.no_tags()?;
                Ok((partition, error.map_or(Ok(answer), |error| Err(Refused { error, message }))))
            })?;
            reader.no_tags()?;
            Ok((topic, partitions))
        })?;
        reader.no_tags()?;
        Ok(Self { topics })
    }
}

impl<P: Part> Message for StateRequest<P> {
    const VERSIONS: VersionRange = VersionRange { min: 0, max: P::VERSION_MAX };
    const DEPRECATED_VERSIONS: Option<VersionRange> = None;
}

impl<P> HeaderVersion for StateRequest<P> {
    fn header_version(_: i16) -> i16 {
        2
    }
}

impl<P: Part> Encodable for StateRequest<P> {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> anyhow::Result<()> {
        buf.put_slice(&self.bytes(version));
        Ok(())
    }

    fn compute_size(&self, version: i16) -> anyhow::Result<usize> {
        Ok(self.bytes(version).len())
    }
}

impl<P: Part> Decodable for StateRequest<P> {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> anyhow::Result<Self> {
        Ok(Self::read(version, &mut Reader::new(&rest(buf), true))?)
    }
}

impl<P: Part> Request for StateRequest<P> {
    const KEY: i16 = P::KEY as i16;
    type Response = StateResponse<P::Answer>;
}

impl<P: Part> Ask for StateRequest<P> {
    const VERSION_MAX: i16 = P::VERSION_MAX;

    fn check_answer(version: i16, body: &Bytes) -> Result<(), String> {
        check_shape::<Self>(P::Answer::SHAPE, version, body)
    }
}

impl<A: Answer> Message for StateResponse<A> {
    const VERSIONS: VersionRange = VersionRange { min: 0, max: 1 };
    const DEPRECATED_VERSIONS: Option<VersionRange> = None;
}

impl<A> HeaderVersion for StateResponse<A> {
    fn header_version(_: i16) -> i16 {
        1
    }
}

impl<A: Answer> Encodable for StateResponse<A> {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> anyhow::Result<()> {
        buf.put_slice(&self.bytes(version));
        Ok(())
    }

    fn compute_size(&self, version: i16) -> anyhow::Result<usize> {
        Ok(self.bytes(version).len())
    }
}

impl<A: Answer> Decodable for StateResponse<A> {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> anyhow::Result<Self> {
        Ok(Self::read(version, &mut Reader::new(&rest(buf), true))?)
    }
}

impl<A> ErrorCodes for StateResponse<A> {
    fn each_code(&self, each: &mut dyn FnMut(i16)) {
        let partitions = self.topics.iter().flat_map(|(_, partitions)| partitions);
        partitions.for_each(|(_, answer)| each(answer.as_ref().err().map_or(0, |refused| refused.error.code())));
    }
}

/// What a body has left.
fn rest(buf: &mut impl Buf) -> Bytes {
    buf.copy_to_bytes(buf.remaining())
}
