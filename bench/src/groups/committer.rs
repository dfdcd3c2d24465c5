//! Connections that commit offsets in a closed loop, some in flight on each, driven by one thread.

use std::{net::SocketAddr, ops::Range, time::Duration};

use anyhow::ensure;
use hdrhistogram::Histogram;
use kafka_protocol::{
    messages::{
        GroupId, OffsetCommitRequest, OffsetCommitResponse,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    },
    protocol::StrBytes,
};
use millrace_client::{InFlight, frame, requests::topic_name};

use crate::{
    client::{self, CLIENT_ID, ClientError},
    clock::Clock,
    load::{Window, pipe::Pipe},
    sys,
};

/// OffsetCommit as this client sends it: the last version without compact encoding.
pub(super) const COMMIT_VERSION: i16 = 7;

/// Whose offsets a connection commits.
#[derive(Debug, Clone)]
pub(super) struct Duty {
    pub group: String,
    pub topic: String,
    pub partitions: Range<i32>,
}

impl Duty {
    /// A commit of the same offset for all its partitions, as a consumer without a group membership sends it.
    pub(super) fn commit(&self, offset: i64) -> OffsetCommitRequest {
        let partition = |index| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(index)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::default()))
        };
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic_name(&self.topic))
            .with_partitions(self.partitions.clone().map(partition).collect());
        OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.group.clone())))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic])
    }

    /// Fails unless every partition's commit was taken.
    pub(super) fn check(&self, response: &OffsetCommitResponse) -> Result<(), ClientError> {
        let mut answers = 0;
        for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
            client::check(|| format!("commit of {}", self.group), partition.error_code)?;
            answers += 1;
        }
        if answers == self.partitions.len() {
            return Ok(());
        }
        Err(ClientError::Unexpected(format!("{answers} answers for {} partitions", self.partitions.len())))
    }
}

/// One connection and what it committed.
#[derive(Debug)]
pub(super) struct Committer {
    pub duty: Duty,
    pipe: Pipe,
    /// When each was sent, in ns.
    in_flight: InFlight<u64>,
    /// The offset that was last sent, and the last one that was acknowledged.
    sent: i64,
    pub acknowledged: i64,
}

/// What one thread measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub commits: u64,
    pub latency_us: Histogram<u64>,
}

impl Committer {
    /// Connects; offsets go on from `acknowledged`.
    pub(super) fn connect(duty: Duty, address: SocketAddr, acknowledged: i64) -> anyhow::Result<Committer> {
        Ok(Committer {
            duty,
            pipe: Pipe::connect(address)?,
            in_flight: InFlight::new(),
            sent: acknowledged,
            acknowledged,
        })
    }

    fn send(&mut self, now_ns: u64) -> anyhow::Result<()> {
        self.sent += 1;
        let correlation_id = self.in_flight.next_id();
        let frame = frame::encode_request(&CLIENT_ID, correlation_id, COMMIT_VERSION, &self.duty.commit(self.sent))?;
        self.pipe.next_out().extend_from_slice(&frame);
        self.in_flight.sent(correlation_id, now_ns);
        self.pipe.flush()
    }

    fn receive(&mut self, mut answered: impl FnMut(u64)) -> anyhow::Result<()> {
        let Committer { duty, pipe, in_flight, acknowledged, .. } = self;
        pipe.receive(|frame| {
            let sent_ns = in_flight.answered(&frame)?;
            duty.check(&frame::decode_answer::<OffsetCommitRequest>(frame, COMMIT_VERSION)?)?;
            *acknowledged += 1;
            answered(sent_ns);
            Ok(())
        })
    }
}

/// Keeps `in_flight` commits under way on each connection until the window ends, and then waits for the answers.
pub(super) fn drive(
    committers: &mut [Committer],
    in_flight: usize,
    clock: Clock,
    window: Window,
    timeout: Duration,
) -> anyhow::Result<Measured> {
    sys::exact_timers();
    let latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3)?;
    let mut measured = Measured { commits: 0, latency_us };
    let is_measured = |at_ns: u64| (window.start_ns..window.end_ns).contains(&at_ns);
    let (mut interests, mut ready, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let now_ns = clock.now_ns();
        interests.clear();
        let mut idle = true;
        for committer in committers.iter_mut() {
            committer.pipe.flush()?;
            while now_ns < window.end_ns && committer.in_flight.len() < in_flight && !committer.pipe.wants_write() {
                committer.send(now_ns)?;
            }
            let oldest_ns = committer.in_flight.oldest().copied().unwrap_or(now_ns);
            ensure!(now_ns - oldest_ns < timeout.as_nanos() as u64, "a commit was not answered within {timeout:?}");
            idle &= committer.in_flight.is_empty();
            interests.push(sys::Interest { fd: committer.pipe.fd(), writable: committer.pipe.wants_write() });
        }
        if idle && now_ns >= window.end_ns {
            return Ok(measured);
        }
        sys::wait(&interests, Duration::from_millis(100), &mut ready, &mut buffer)?;
        for &index in &ready {
            let now_ns = clock.now_ns();
            committers[index].receive(|sent_ns| {
                measured.commits += u64::from(is_measured(now_ns));
                if is_measured(sent_ns) {
                    measured.latency_us.saturating_record((now_ns.saturating_sub(sent_ns) / 1000).max(1));
                }
            })?;
        }
    }
}
