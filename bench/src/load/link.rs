//! One pipelined connection of a producer to one broker: a queue of entries, requests in flight, answers in order.
//!
//! Owned by the loop of [`super::run`]. Never blocks; knows no clock.

use std::{collections::VecDeque, net::SocketAddr, os::fd::RawFd, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use kafka_protocol::messages::ProduceRequest;
use millrace_client::{InFlight, ProtocolError, frame};

use super::pipe::Pipe;
use crate::{
    batch::{BatchTemplate, Idempotence},
    client::{CLIENT_ID, PRODUCE_VERSION},
    payload::Stamp,
};

/// Entries that wait for room in one link at most; more of them wait in the schedule, where they cost nothing.
pub(super) const QUEUE_MAX: usize = 4096;

/// One batch that should be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// When the schedule wanted it sent; `None` in a closed loop, where that is when it is sent.
    pub intended_ns: Option<u64>,
    /// Where to.
    pub partition: u32,
    /// Sequence of its first record within the producer's stream to that partition.
    pub first_sequence: u64,
}

/// A batch that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub intended_ns: u64,
    pub partition: u32,
    pub first_sequence: u64,
}

/// A request that was sent.
#[derive(Debug)]
struct Asked {
    sent_ns: u64,
    batches: Vec<Sent>,
}

/// What every link of a run sends alike.
#[derive(Debug)]
pub(super) struct Form {
    pub topic: String,
    pub template: BatchTemplate,
    pub acks: i16,
    pub request_timeout: Duration,
    pub batches_per_request: usize,
    pub in_flight: usize,
    pub run: u64,
}

/// One pipelined connection.
#[derive(Debug)]
pub(super) struct Link {
    pipe: Pipe,
    pub queue: VecDeque<Entry>,
    in_flight: InFlight<Asked>,
}

impl Link {
    pub(super) fn connect(address: SocketAddr) -> anyhow::Result<Link> {
        let pipe = Pipe::connect(address)?;
        Ok(Link { pipe, queue: VecDeque::new(), in_flight: InFlight::new() })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.pipe.fd()
    }

    /// Whether bytes wait for the socket to take them.
    pub(super) fn wants_write(&self) -> bool {
        self.pipe.wants_write()
    }

    /// Whether a further request may be sent now.
    pub(super) fn has_room(&self, form: &Form) -> bool {
        !self.wants_write() && self.in_flight.len() < form.in_flight
    }

    /// Whether nothing is queued, unwritten or unanswered.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty() && !self.wants_write()
    }

    /// Batches queued or unanswered.
    pub(super) fn unfinished(&self) -> usize {
        self.queue.len() + self.in_flight.iter().map(|request| request.batches.len()).sum::<usize>()
    }

    /// When the oldest unanswered request was sent.
    pub(super) fn oldest_sent_ns(&self) -> Option<u64> {
        self.in_flight.oldest().map(|request| request.sent_ns)
    }

    /// Builds one request from the front of the queue: up to `batches_per_request` batches of different partitions.
    /// With acks=0 answers what was sent, as nothing will be heard of it again.
    pub(super) fn send_request(
        &mut self,
        form: &Form,
        producer: u32,
        idempotence: Option<(i64, i16)>,
        now_ns: u64,
        wall_ms: i64,
    ) -> Result<Option<Vec<Sent>>, ProtocolError> {
        let mut batches: Vec<Sent> = Vec::with_capacity(form.batches_per_request.min(self.queue.len()));
        while let Some(entry) = self.queue.front().copied() {
            let again = batches.iter().any(|sent| sent.partition == entry.partition);
            if again || batches.len() == form.batches_per_request {
                break;
            }
            self.queue.pop_front();
            let intended_ns = entry.intended_ns.unwrap_or(now_ns);
            batches.push(Sent { intended_ns, partition: entry.partition, first_sequence: entry.first_sequence });
        }
        let correlation_id = self.in_flight.next_id();
        let out = self.pipe.next_out();
        frame::begin_request::<ProduceRequest>(out, &CLIENT_ID, correlation_id, PRODUCE_VERSION)?;
        encode_body(out, form, producer, idempotence, wall_ms, &batches);
        frame::end_request::<ProduceRequest>(out, PRODUCE_VERSION)?;
        if form.acks == 0 {
            return Ok(Some(batches));
        }
        self.in_flight.sent(correlation_id, Asked { sent_ns: now_ns, batches });
        Ok(None)
    }
    /// Writes what the socket takes.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        self.pipe.flush()
    }

    /// Reads what is there, hands over each answered batch with its error code, and answers the number of requests.
    pub(super) fn receive(&mut self, mut answered: impl FnMut(Sent, i16)) -> anyhow::Result<u64> {
        let mut requests = 0;
        let in_flight = &mut self.in_flight;
        let received = self.pipe.receive(|frame| {
            requests += 1;
            answer(in_flight, frame, &mut answered)
        });
        received.with_context(|| format!("{} requests in flight", self.in_flight.len()))?;
        Ok(requests)
    }
}

/// The body of a produce request, without the detour of the message library: batches are written where they leave from.
fn encode_body(
    out: &mut Vec<u8>,
    form: &Form,
    producer: u32,
    idempotence: Option<(i64, i16)>,
    wall_ms: i64,
    batches: &[Sent],
) {
    out.extend_from_slice(&(-1i16).to_be_bytes()); // no transactional id
    out.extend_from_slice(&form.acks.to_be_bytes());
    out.extend_from_slice(&(form.request_timeout.as_millis() as i32).to_be_bytes());
    out.extend_from_slice(&1i32.to_be_bytes());
    put_string(out, &form.topic);
    out.extend_from_slice(&(batches.len() as i32).to_be_bytes());
    for sent in batches {
        out.extend_from_slice(&(sent.partition as i32).to_be_bytes());
        out.extend_from_slice(&(form.template.len() as i32).to_be_bytes());
        let id = idempotence.map(|(producer_id, producer_epoch)| Idempotence {
            producer_id,
            producer_epoch,
            base_sequence: (sent.first_sequence & 0x7fff_ffff) as i32,
        });
        let stamp = Stamp {
            run: form.run,
            producer,
            partition: sent.partition,
            sequence: sent.first_sequence,
            intended_ns: sent.intended_ns,
        };
        form.template.append_to(out, wall_ms, id, stamp);
    }
}

fn answer(in_flight: &mut InFlight<Asked>, frame: Bytes, answered: &mut impl FnMut(Sent, i16)) -> anyhow::Result<()> {
    let request = in_flight.answered(&frame)?;
    let response = frame::decode_answer::<ProduceRequest>(frame, PRODUCE_VERSION)?;
    let answers = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    let mut count = 0;
    for answer in answers {
        let sent = request.batches.iter().find(|sent| sent.partition as i32 == answer.index);
        answered(*sent.with_context(|| format!("an answer for partition {}", answer.index))?, answer.error_code);
        count += 1;
    }
    ensure!(count == request.batches.len(), "{count} answers for {} batches", request.batches.len());
    Ok(())
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as i16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{
        messages::RequestHeader,
        protocol::{Decodable, HeaderVersion},
    };

    use super::*;
    use crate::batch::BatchShape;

    #[test]
    fn the_body_is_what_the_message_library_reads() {
        let form = Form {
            topic: "topic".into(),
            template: BatchTemplate::new(BatchShape { records: 2, value_bytes: 50, key_bytes: 0 }),
            acks: -1,
            request_timeout: Duration::from_secs(3),
            batches_per_request: 2,
            in_flight: 1,
            run: 1,
        };
        let sent = |partition| Sent { intended_ns: 0, partition, first_sequence: 7 };
        let mut out = Vec::new();
        frame::begin_request::<ProduceRequest>(&mut out, &CLIENT_ID, 5, PRODUCE_VERSION).unwrap();
        encode_body(&mut out, &form, 0, None, 1000, &[sent(1), sent(4)]);
        frame::end_request::<ProduceRequest>(&mut out, PRODUCE_VERSION).unwrap();

        let mut bytes = Bytes::from(out).split_off(frame::LENGTH_BYTES);
        let header = RequestHeader::decode(&mut bytes, ProduceRequest::header_version(PRODUCE_VERSION)).unwrap();
        assert_eq!((header.correlation_id, header.client_id), (5, Some(CLIENT_ID)));
        let request = ProduceRequest::decode(&mut bytes, PRODUCE_VERSION).unwrap();
        assert!(bytes.is_empty());
        assert_eq!((request.transactional_id, request.acks, request.timeout_ms), (None, -1, 3000));
        let [topic] = &request.topic_data[..] else { panic!("one topic") };
        assert_eq!(topic.name.as_str(), "topic");
        let partitions: Vec<i32> = topic.partition_data.iter().map(|data| data.index).collect();
        assert_eq!(partitions, [1, 4]);
        assert!(
            topic
                .partition_data
                .iter()
                .all(|data| data.records.as_ref().is_some_and(|r| r.len() == form.template.len()))
        );
    }
}
