//! How a request to a broker fails, in words that help.

use std::{fmt, io};

use kafka_protocol::error::ResponseError;

use crate::error_code::error_code_name as code_name;

/// Why a request failed.
#[derive(Debug)]
pub enum ClientError {
    /// No connection.
    Connect {
        /// Whom to.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke, or no answer came in time: whether the request was carried out is unknown.
    Lost {
        /// Whom to.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// What came back is not Kafka's protocol.
    NotKafka {
        /// Who sent it.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An answer that can be read, but cannot be one to what was asked.
    Unexpected(String),
    /// The broker does not serve the request in any version that we know.
    Unsupported {
        /// Who does not.
        address: String,
        /// Name of the request.
        api: String,
    },
    /// The broker answered with an error code.
    Refused {
        /// What was asked for.
        what: String,
        /// Kafka's error code.
        code: i16,
        /// What the broker says, if that says more than the code.
        message: Option<String>,
    },
    /// An error that may pass in general, but for which there is no use in waiting here.
    Settled(Box<ClientError>),
    /// The connection broke after a batch was sent that must not be written twice.
    MaybeWritten {
        /// What was written to.
        what: String,
        /// How the connection broke.
        source: Box<ClientError>,
    },
    /// Tried again and again until the time was up.
    TimedOut {
        /// How the last attempt failed.
        last: Box<ClientError>,
    },
}

impl ClientError {
    /// An error code for something; `None` for code 0.
    pub fn of_code(what: impl Into<String>, code: i16, message: Option<&str>) -> Option<Self> {
        let message = message.map(one_line).filter(|text| !text.is_empty() && !is_said_best(code));
        (code != 0).then(|| Self::Refused { what: what.into(), code, message })
    }

    /// A partition that a topic does not have.
    pub fn no_such_partition(topic: &str, partition: i32, partitions: usize) -> Self {
        Self::Settled(Box::new(Self::Refused {
            what: partition_named(topic, partition),
            code: ResponseError::UnknownTopicOrPartition.code(),
            message: Some(format!("the topic has {partitions} partitions, numbered from 0")),
        }))
    }

    /// Fails with an error code, or does not.
    pub fn check(what: impl Into<String>, code: i16, message: Option<&str>) -> Result<(), Self> {
        Self::of_code(what, code, message).map_or(Ok(()), Err)
    }

    /// Whether the same request may succeed later, or at another broker.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } => true,
            Self::Refused { code, .. } => ResponseError::try_from_code(*code).is_some_and(|e| e.is_retriable()),
            _ => false,
        }
    }

    /// The broker's error code, if it sent one.
    pub fn code(&self) -> Option<i16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::TimedOut { last } | Self::Settled(last) => last.code(),
            _ => None,
        }
    }

    /// Not to be tried again if it has that code.
    pub fn settled_if(self, code: i16) -> Self {
        match self.code() == Some(code) {
            true => Self::Settled(Box::new(self)),
            false => self,
        }
    }
}

/// What an error calls a partition.
pub(crate) fn partition_named(topic: &str, partition: i32) -> String {
    format!("topic '{topic}' partition {partition}")
}

/// Codes of what is not there, or is there already: each broker and each request has other words for the same, and none
/// says more.
fn is_said_best(code: i16) -> bool {
    use ResponseError::{GroupIdNotFound, TopicAlreadyExists, UnknownTopicId, UnknownTopicOrPartition};
    let codes = [UnknownTopicOrPartition, UnknownTopicId, GroupIdNotFound, TopicAlreadyExists];
    codes.iter().any(|error| error.code() == code)
}

/// What an error code means for whoever typed the command, where its name does not say it.
fn meaning(code: i16) -> Option<&'static str> {
    Some(match ResponseError::try_from_code(code)? {
        ResponseError::UnknownTopicOrPartition | ResponseError::UnknownTopicId => "no such topic or partition",
        ResponseError::LeaderNotAvailable => "no broker leads the partition at the moment",
        ResponseError::InvalidTopicException => {
            "a topic's name has 1 to 249 of ASCII letters, digits, '.', '_' and '-'"
        }
        ResponseError::InvalidGroupId => "a group's id must not be empty",
        ResponseError::CoordinatorNotAvailable | ResponseError::NotCoordinator => {
            "no broker coordinates the group at the moment"
        }
        ResponseError::OffsetOutOfRange => "no such offset",
        ResponseError::TopicAlreadyExists => "a topic of that name exists",
        ResponseError::GroupIdNotFound => "no such group",
        ResponseError::NonEmptyGroup => "the group has members: stop its consumers first",
        ResponseError::UnknownMemberId => "the group has members: stop its consumers first",
        ResponseError::MessageTooLarge => "larger than the topic's max.message.bytes",
        ResponseError::KafkaStorageError => "the broker's disk is full or failed; its log says more",
        ResponseError::InvalidReplicationFactor => "not as many brokers as replicas",
        ResponseError::NotEnoughReplicas => "fewer replicas in sync than min.insync.replicas",
        ResponseError::ClusterAuthorizationFailed
        | ResponseError::TopicAuthorizationFailed
        | ResponseError::GroupAuthorizationFailed => "this client is not allowed to",
        _ => return None,
    })
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { address, source } => write!(f, "cannot connect to {address}: {}", plain(source)),
            Self::Lost { address, source } => write!(f, "lost the connection to {address}: {}", plain(source)),
            Self::NotKafka { address, reason } => write!(f, "{address} does not answer as a Kafka broker: {reason}"),
            Self::Unexpected(what) => write!(f, "the broker's answer makes no sense: {what}"),
            Self::Unsupported { address, api } => write!(f, "{address} does not serve {api} in a version known here"),
            Self::Refused { what, code, message } => {
                write!(f, "{what}: ")?;
                match message.as_deref().or_else(|| meaning(*code)) {
                    Some(text) => write!(f, "{} ({})", text.trim_end_matches('.'), code_name(*code)),
                    None => write!(f, "{}", code_name(*code)),
                }
            }
            Self::Settled(error) => error.fmt(f),
            Self::MaybeWritten { what, source } => {
                write!(f, "{what}: {source}; not sent again, since it may have been written")
            }
            Self::TimedOut { last } => write!(f, "{last}; tried again until the time was up"),
        }
    }
}

/// Its text says all: sources are part of it.
impl std::error::Error for ClientError {}

/// An operating system's error in words that help here.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there (is the broker running?)".to_owned(),
        io::ErrorKind::UnexpectedEof => "closed by the broker".to_owned(),
        // Without its number.
        _ => error.to_string().split(" (os error").next().unwrap_or_default().to_owned(),
    }
}

/// A broker's text on one line: lines of it joined, without what indents them.
fn one_line(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_message_comes_before_ours() {
        let error = |code, message| ClientError::of_code("topic 'a'", code, message).unwrap().to_string();
        let too_large = "topic 'a': larger than the topic's max.message.bytes (MESSAGE_TOO_LARGE)";
        assert_eq!(error(10, None), too_large);
        assert_eq!(error(10, Some("")), too_large);
        assert_eq!(error(10, Some("Too\nmuch.")), "topic 'a': Too much (MESSAGE_TOO_LARGE)");
        let missing = "topic 'a': no such topic or partition (UNKNOWN_TOPIC_OR_PARTITION)";
        assert_eq!(error(3, None), missing);
        assert_eq!(error(3, Some("This server does not host this topic-partition.")), missing);
        assert!(ClientError::of_code("x", 0, None).is_none());
    }

    #[test]
    fn what_may_pass_is_retriable() {
        let refused = |code| ClientError::of_code("x", code, None).unwrap().is_retriable();
        assert!(refused(6) && refused(5) && refused(16));
        assert!(!refused(36) && !refused(10));
    }
}
