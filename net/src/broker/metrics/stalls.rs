//! Requests that stand still: whoever asks for something that is answered without waiting for others gets an answer, or
//! the node is not well. What is counted is decided on in [`millrace_engine::stall`]; here is who counts.
//!
//! The log looks after itself; this sees what it cannot, such as an answer of another shard that never comes.

use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use millrace_engine::stall::{Change, Detector, Wait};

use crate::{
    broker::shard::BrokerShard,
    wire::{api, counters::Counters, service::Service},
};

/// As long as Kafka's clients wait for an answer (`request.timeout.ms`).
const PATIENCE: Duration = Duration::from_secs(30);

/// Requests that wait for nothing but the log and other shards: not for records, members, removed files or space.
const PROMPT: [ApiKey; 13] = [
    ApiKey::Produce,
    ApiKey::ListOffsets,
    ApiKey::Metadata,
    ApiKey::OffsetCommit,
    ApiKey::OffsetFetch,
    ApiKey::FindCoordinator,
    ApiKey::Heartbeat,
    ApiKey::LeaveGroup,
    ApiKey::InitProducerId,
    ApiKey::DescribeConfigs,
    ApiKey::ConsumerGroupHeartbeat,
    ApiKey::ShareGroupHeartbeat,
    ApiKey::ShareAcknowledge,
];

/// Looks for requests of one shard that stand still.
pub(crate) struct RequestStalls(Detector<usize>);

impl RequestStalls {
    pub(crate) fn new() -> RequestStalls {
        RequestStalls(Detector::new(PATIENCE))
    }

    /// Looks; to be called about every second. Answers what to say when something changed. `is_full`: the disk is, and
    /// requests may wait for space.
    pub(crate) fn look(&mut self, now: Duration, counters: &Counters, is_full: bool) -> Option<String> {
        let prompt = PROMPT.iter().map(|api| api::place::<BrokerShard>(*api)).filter(|_| !is_full);
        let waiting = prompt.filter(|api| counters.under_way(*api).0 > 0);
        let waits = waiting.map(|api| Wait { who: api, mark: [counters.under_way(api).1, 0, 0], bytes: 0 }).collect();
        Some(match self.0.look(now, waits)? {
            Change::Begun { who, waited } => {
                let (api, requests) = (BrokerShard::table()[who].key, counters.under_way(who).0);
                format!("stalled: {requests} {api:?} requests wait, and none was answered for {} s", waited.as_secs())
            }
            Change::Over { who, lasted } => {
                let api = BrokerShard::table()[who].key;
                format!("the stall is over: {api:?} requests are answered again or gone, after {} s", lasted.as_secs())
            }
        })
    }

    /// Stalls that began, and whether there is one.
    pub(crate) fn reading(&self) -> (u64, bool) {
        (self.0.stalls(), self.0.is_stalled())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn requests_that_nobody_answers_are_told_of_once() {
        let (counters, mut stalls) = (Counters::new(BrokerShard::table().len()), RequestStalls::new());
        let begin = || counters.begin(counters.on_request(api::place::<BrokerShard>(ApiKey::Produce), Instant::now()));
        let (first, mut others) = (begin(), Vec::new());
        let mut said = Vec::new();
        for at in 0..100 {
            others = vec![begin()]; // clients give up, and try again
            said.extend(stalls.look(s(at), &counters, false));
        }
        assert_eq!(said, ["stalled: 2 Produce requests wait, and none was answered for 30 s"]);
        assert_eq!(stalls.reading(), (1, true));
        others.into_iter().for_each(|other| other.answered());
        let over = stalls.look(s(100), &counters, false).unwrap();
        assert_eq!(over, "the stall is over: Produce requests are answered again or gone, after 100 s");
        drop(first);
        assert_eq!(stalls.reading(), (1, false));
    }

    #[test]
    fn requests_that_may_wait_and_queues_that_move_are_no_stall() {
        let (counters, mut stalls) = (Counters::new(BrokerShard::table().len()), RequestStalls::new());
        let begin = |api| counters.begin(counters.on_request(api::place::<BrokerShard>(api), Instant::now()));
        let _waits = [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup, ApiKey::ShareFetch].map(begin);
        let mut queue: std::collections::VecDeque<_> = (0..100).map(|_| begin(ApiKey::Produce)).collect();
        for at in 0..1000 {
            if at % 20 == 0
                && let Some(oldest) = queue.pop_front()
            {
                oldest.answered();
            }
            assert_eq!(stalls.look(s(at), &counters, false), None, "at {at}");
        }
        for at in 1000..2000 {
            assert_eq!(stalls.look(s(at), &counters, true), None, "the disk is full");
        }
    }
}
