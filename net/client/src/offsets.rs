//! Offsets of partitions by position or time.

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    error_code::UNKNOWN_SERVER_ERROR,
    isolation::IsolationLevel,
    requests,
};

/// Which offset is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetQuestion {
    /// The first one that can be read.
    Earliest,
    /// The one after the last that consumers may see.
    Latest,
    /// The one after the last that may be seen by who reads what is committed.
    LatestCommitted,
    /// That of the first record with this timestamp in ms or a later one.
    AtTime(i64),
}

impl OffsetQuestion {
    fn timestamp(self) -> i64 {
        match self {
            Self::Latest | Self::LatestCommitted => -1,
            Self::Earliest => -2,
            Self::AtTime(ms) => ms.max(0),
        }
    }

    fn isolation(self) -> IsolationLevel {
        match self {
            Self::LatestCommitted => IsolationLevel::ReadCommitted,
            Self::Earliest | Self::Latest | Self::AtTime(_) => IsolationLevel::ReadUncommitted,
        }
    }
}

impl Cluster {
    /// Asks the leader of a partition. `None`: no record is that young.
    pub fn offset(
        &mut self,
        topic: &str,
        partition: i32,
        question: OffsetQuestion,
    ) -> Result<Option<i64>, ClientError> {
        let what = partition_named(topic, partition);
        self.retry(|cluster| {
            let leader = cluster.leader(topic, partition)?;
            let response = cluster.broker(leader, |version| {
                let request = requests::list_offsets(topic, &[partition], question.timestamp());
                // older brokers have no transactions
                let isolation = if version >= 2 { question.isolation().on_the_wire() } else { 0 };
                request.with_isolation_level(isolation)
            })?;
            let found = response.topics.first().and_then(|t| t.partitions.first());
            let (code, offset) = found.map_or((UNKNOWN_SERVER_ERROR, -1), |p| (p.error_code, p.offset));
            ClientError::check(&what, code, None)?;
            Ok((offset >= 0).then_some(offset))
        })
    }
}
