//! The engine's errors as the error codes that clients are told who asked for records, topics or settings.
//!
//! A coordinator whose log fails tells its members something else, as for them it is the coordinator that is gone:
//! `coordinator/group/error.rs`.

use kafka_protocol::{ResponseError, protocol::StrBytes};
use millrace_engine::{
    api::{LogError, TopicError},
    batch::BatchError,
    config,
};

/// An error as a response carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) error: ResponseError,
    pub(crate) message: Option<StrBytes>,
}

impl ApiError {
    /// An error with a message.
    pub(crate) fn new(error: ResponseError, message: impl Into<String>) -> ApiError {
        ApiError { error, message: Some(StrBytes::from_string(message.into())) }
    }

    /// The code on the wire.
    pub(crate) fn code(&self) -> i16 {
        self.error.code()
    }
}

impl From<ResponseError> for ApiError {
    fn from(error: ResponseError) -> ApiError {
        ApiError { error, message: None }
    }
}

impl From<TopicError> for ApiError {
    fn from(error: TopicError) -> ApiError {
        topic_error(&error)
    }
}

/// What is said of a topic or partition that is not here.
pub(crate) const UNKNOWN_PARTITION: &str = "This server does not host this topic-partition.";

/// The error of a look-up with what Kafka says of a topic that is not there; of one that is kept secret it says nothing.
pub(crate) fn not_found(error: ResponseError, message: impl Into<String>) -> ApiError {
    match error {
        ResponseError::UnknownTopicOrPartition | ResponseError::UnknownTopicId => ApiError::new(error, message),
        error => error.into(),
    }
}

/// Refuses a topic's name.
pub(crate) fn check_topic_name(name: &str) -> Result<(), ApiError> {
    config::check_topic_name(name).map_err(|reason| topic_error(&TopicError::InvalidName(reason)))
}

/// The code of an error of the log.
pub(crate) fn log_error(error: &LogError) -> ResponseError {
    match error {
        LogError::UnknownPartition => ResponseError::UnknownTopicOrPartition,
        LogError::OffsetOutOfRange { .. } => ResponseError::OffsetOutOfRange,
        LogError::UnknownLeaderEpoch => ResponseError::UnknownLeaderEpoch,
        LogError::FencedLeaderEpoch => ResponseError::FencedLeaderEpoch,
        LogError::NotLeader => ResponseError::NotLeaderOrFollower,
        LogError::NotEnoughReplicas => ResponseError::NotEnoughReplicas,
        LogError::NotEnoughReplicasAfterAppend => ResponseError::NotEnoughReplicasAfterAppend,
        LogError::NotInTime => ResponseError::RequestTimedOut,
        LogError::OffsetNotAvailable => ResponseError::OffsetNotAvailable,
        LogError::UnexpectedOffset { .. } => ResponseError::UnknownServerError,
        LogError::Batch(error) => batch_error(error),
        LogError::OutOfOrderSequence(_) => ResponseError::OutOfOrderSequenceNumber,
        LogError::InvalidProducerEpoch => ResponseError::InvalidProducerEpoch,
        LogError::UnknownProducerId => ResponseError::UnknownProducerId,
        LogError::InvalidTxnState(_) => ResponseError::InvalidTxnState,
        LogError::TransactionCoordinatorFenced { .. } => ResponseError::TransactionCoordinatorFenced,
        LogError::ConcurrentTransactions(_) => ResponseError::ConcurrentTransactions,
        LogError::TransactionAbortable(_) => ResponseError::TransactionAbortable,
        LogError::InvalidProducerIdMapping => ResponseError::InvalidProducerIdMapping,
        // retriable, and the client does not ask for metadata first
        LogError::TransactionCoordinatorNotAvailable => ResponseError::NotEnoughReplicas,
        LogError::StorageFull | LogError::Storage(_) => ResponseError::KafkaStorageError,
        LogError::ShuttingDown => ResponseError::NotLeaderOrFollower,
    }
}

/// Whether Kafka tells the log's first offset with an error of a produce request: it does once it has looked at records
/// or sequences, but not if it has gone no further than the header and the partition.
pub(crate) fn tells_log_start(error: &LogError) -> bool {
    match error {
        LogError::Batch(error) => match error {
            BatchError::Invalid(_)
            | BatchError::Records(_)
            | BatchError::ForeignAppendTime
            | BatchError::UnsupportedCodec(_) => true,
            BatchError::Corrupt(_)
            | BatchError::UnsupportedMagic(_)
            | BatchError::TooLarge { .. }
            | BatchError::TooLargeRecompressed { .. } => false,
        },
        LogError::OutOfOrderSequence(_)
        | LogError::InvalidProducerEpoch
        | LogError::UnknownProducerId
        | LogError::InvalidTxnState(_) => true,
        LogError::UnknownPartition
        | LogError::OffsetOutOfRange { .. }
        | LogError::UnknownLeaderEpoch
        | LogError::FencedLeaderEpoch
        | LogError::TransactionCoordinatorFenced { .. }
        | LogError::ConcurrentTransactions(_)
        | LogError::TransactionAbortable(_)
        | LogError::InvalidProducerIdMapping
        | LogError::TransactionCoordinatorNotAvailable
        | LogError::NotLeader
        | LogError::NotEnoughReplicas
        | LogError::NotEnoughReplicasAfterAppend
        | LogError::NotInTime
        | LogError::OffsetNotAvailable
        | LogError::UnexpectedOffset { .. }
        | LogError::StorageFull
        | LogError::Storage(_)
        | LogError::ShuttingDown => false,
    }
}

fn batch_error(error: &BatchError) -> ResponseError {
    match error {
        BatchError::Corrupt(_) => ResponseError::CorruptMessage,
        BatchError::Invalid(_) | BatchError::UnsupportedMagic(_) => ResponseError::InvalidRecord,
        BatchError::TooLarge { .. } | BatchError::TooLargeRecompressed { .. } => ResponseError::MessageTooLarge,
        BatchError::Records(refused) if refused.has_timestamp => ResponseError::InvalidTimestamp,
        BatchError::Records(_) => ResponseError::InvalidRecord,
        BatchError::ForeignAppendTime => ResponseError::InvalidTimestamp,
        BatchError::UnsupportedCodec(_) => ResponseError::UnsupportedCompressionType,
    }
}

/// The code and message of an error of the topics.
pub(crate) fn topic_error(error: &TopicError) -> ApiError {
    match error {
        TopicError::Exists(name) => {
            ApiError::new(ResponseError::TopicAlreadyExists, format!("Topic '{name}' already exists."))
        }
        TopicError::Unknown => ApiError::new(ResponseError::UnknownTopicOrPartition, UNKNOWN_PARTITION),
        TopicError::InvalidName(_) => ApiError::new(ResponseError::InvalidTopicException, error.to_string()),
        TopicError::InvalidPartitions(reason) => ApiError::new(ResponseError::InvalidPartitions, reason.clone()),
        TopicError::InvalidConfig(reason) => ApiError::new(ResponseError::InvalidConfig, reason.clone()),
        TopicError::Storage(_) => ApiError::new(ResponseError::KafkaStorageError, error.to_string()),
    }
}
