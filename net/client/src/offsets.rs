//! Offsets of partitions by position or time.

use crate::{
    cluster::Cluster,
    error::{ClientError, partition_named},
    error_code::UNKNOWN_SERVER_ERROR,
    requests,
};

/// Which offset is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetQuestion {
    /// The first one that can be read.
    Earliest,
    /// The one after the last that consumers may see.
    Latest,
    /// That of the first record with this timestamp in ms or a later one.
    AtTime(i64),
}

impl OffsetQuestion {
    fn timestamp(self) -> i64 {
        match self {
            Self::Latest => -1,
            Self::Earliest => -2,
            Self::AtTime(ms) => ms.max(0),
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
            let response =
                cluster.broker(leader, |_| requests::list_offsets(topic, &[partition], question.timestamp()))?;
            let found = response.topics.first().and_then(|t| t.partitions.first());
            let (code, offset) = found.map_or((UNKNOWN_SERVER_ERROR, -1), |p| (p.error_code, p.offset));
            ClientError::check(&what, code, None)?;
            Ok((offset >= 0).then_some(offset))
        })
    }
}
