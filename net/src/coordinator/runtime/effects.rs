//! What a machine wants done: replies to send, records to write, and what is to happen once they are durable.
//!
//! The runtime takes replies and writes after every call into the machine, and reports each write in the order in which
//! they were taken.

use std::collections::VecDeque;

use kafka_protocol::error::ResponseError;
use millrace_engine::transactions::Marker;

use super::ticket::{Answer, Reply, Ticket};

/// Records that are written as one: all of them become durable or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WriteId(u64);

/// Records to append to the machine's partition.
#[derive(Debug)]
pub(crate) struct Write<R> {
    /// To be given back when it is done.
    pub(crate) id: WriteId,
    /// In order.
    pub(crate) records: Vec<R>,
    /// Id and epoch of the producer in whose transaction they are; they are a batch of their own then.
    pub(crate) producer: Option<(i64, i16)>,
    /// Ends of transactions in partitions of the same shard that go into the log together with the records: all or
    /// nothing.
    pub(crate) markers: Vec<Marker>,
}

/// What a write consists of.
struct Content<R> {
    records: Vec<R>,
    producer: Option<(i64, i16)>,
    markers: Vec<Marker>,
}

impl<R> Content<R> {
    fn of(records: Vec<R>) -> Self {
        Self { records, producer: None, markers: Vec::new() }
    }
}

/// What is to happen once a write is done.
pub(crate) trait Then {
    /// Whether the state was changed as if the records were durable.
    fn runs_ahead(&self) -> bool;
}

/// A write that is under way.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    id: WriteId,
    then: T,
    /// Released when it is durable.
    replies: Vec<Reply>,
}

impl<T> Pending<T> {
    /// Takes a part of what is to happen out.
    pub(crate) fn map<U, V>(self, split: impl FnOnce(T) -> (U, V)) -> (U, Pending<V>) {
        let (taken, then) = split(self.then);
        (taken, Pending { id: self.id, then, replies: self.replies })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Effects<R, T> {
    replies: Vec<Reply>,
    writes: Vec<Write<R>>,
    pending: VecDeque<Pending<T>>,
    next_write: u64,
}

impl<R, T> Default for Effects<R, T> {
    fn default() -> Self {
        Self { replies: Vec::new(), writes: Vec::new(), pending: VecDeque::new(), next_write: 0 }
    }
}

impl<R, T: Then> Effects<R, T> {
    /// Replies at once.
    pub(crate) fn reply<A: Answer>(&mut self, ticket: Ticket<A>, answer: A) {
        self.replies.push(Reply::new(ticket, answer));
    }

    /// Replies as soon as one write is durable; at once, if it is done.
    pub(crate) fn reply_after<A: Answer>(&mut self, write: Option<WriteId>, ticket: Ticket<A>, answer: A) {
        let reply = Reply::new(ticket, answer);
        match self.pending.iter_mut().rev().find(|pending| Some(pending.id) == write) {
            Some(pending) => pending.replies.push(reply),
            None => self.replies.push(reply),
        }
    }

    /// Replies as soon as everything is durable that the state was changed for ahead of time.
    pub(crate) fn reply_when_settled<A: Answer>(&mut self, ticket: Ticket<A>, answer: A) {
        let reply = Reply::new(ticket, answer);
        match self.pending.iter_mut().rev().find(|pending| pending.then.runs_ahead()) {
            Some(pending) => pending.replies.push(reply),
            None => self.replies.push(reply),
        }
    }

    /// The records of a write that was not taken yet.
    pub(crate) fn untaken(&mut self, write: WriteId) -> Option<&mut Vec<R>> {
        let at = self.writes.binary_search_by_key(&write, |known| known.id).ok()?;
        Some(&mut self.writes[at].records)
    }

    /// Whether a write is not done yet.
    pub(crate) fn is_pending(&self, write: Option<WriteId>) -> bool {
        self.pending.front().zip(write).is_some_and(|(oldest, write)| oldest.id <= write)
    }

    /// What is to happen once the write is done that was begun last.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.pending.back_mut().map(|pending| &mut pending.then)
    }

    /// Writes records, with what is to happen then.
    pub(crate) fn write(&mut self, records: Vec<R>, then: T) -> WriteId {
        self.begin(Content::of(records), then, Vec::new())
    }

    /// Writes records together with markers of the same shard.
    pub(crate) fn write_with_markers(&mut self, records: Vec<R>, markers: Vec<Marker>, then: T) -> WriteId {
        self.begin(Content { markers, ..Content::of(records) }, then, Vec::new())
    }

    /// Writes records in the transaction of a producer, given as its id and epoch, and replies when they are durable.
    pub(crate) fn write_in_transaction<A: Answer>(
        &mut self,
        records: Vec<R>,
        producer: (i64, i16),
        then: T,
        ticket: Ticket<A>,
        answer: A,
    ) -> WriteId {
        let content = Content { producer: Some(producer), ..Content::of(records) };
        self.begin(content, then, vec![Reply::new(ticket, answer)])
    }

    /// Writes records and replies when they are durable.
    pub(crate) fn write_then_reply<A: Answer>(
        &mut self,
        records: Vec<R>,
        then: T,
        ticket: Ticket<A>,
        answer: A,
    ) -> WriteId {
        self.begin(Content::of(records), then, vec![Reply::new(ticket, answer)])
    }

    fn begin(&mut self, content: Content<R>, then: T, replies: Vec<Reply>) -> WriteId {
        let id = WriteId(self.next_write);
        self.next_write += 1;
        let Content { records, producer, markers } = content;
        self.writes.push(Write { id, records, producer, markers });
        self.pending.push_back(Pending { id, then, replies });
        id
    }

    /// The oldest write, which was just finished.
    ///
    /// # Panics
    /// When writes are reported in another order than they were taken in.
    pub(crate) fn finish(&mut self, id: WriteId) -> Pending<T> {
        let pending = self.pending.pop_front().expect("only writes that were taken are reported");
        assert_eq!(pending.id, id, "writes are reported in order");
        pending
    }

    /// Releases what waited for a write, or its failure; gives back what was left to happen.
    pub(crate) fn release<U>(&mut self, pending: Pending<U>, result: Result<(), ResponseError>) -> U {
        for reply in pending.replies {
            self.replies.push(match result {
                Ok(()) => reply,
                Err(error) => reply.failed(error),
            });
        }
        pending.then
    }

    /// Replies to send now.
    pub(crate) fn take_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// Records to write now.
    pub(crate) fn take_writes(&mut self) -> Vec<Write<R>> {
        std::mem::take(&mut self.writes)
    }

    /// Fails everything that waits for a write; returns what was to happen.
    pub(crate) fn fail_pending(&mut self, error: ResponseError) -> Vec<T> {
        self.writes.clear();
        let mut all = Vec::with_capacity(self.pending.len());
        for pending in std::mem::take(&mut self.pending) {
            all.push(self.release(pending, Err(error)));
        }
        all
    }

    /// Whether there is anything to write.
    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Whether there is anything to take.
    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        !self.replies.is_empty() || !self.writes.is_empty()
    }
}
