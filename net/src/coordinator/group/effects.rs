//! What a coordinator wants done: replies to send, records to write, and what is to happen once they are durable.
//!
//! The shell takes [`Effects::take_replies`] and [`Effects::take_writes`] after every call into the coordinator, and
//! reports each write, in the order in which they were taken, with `Coordinator::on_persisted`.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use kafka_protocol::messages::{
    ConsumerGroupHeartbeatResponse, HeartbeatResponse, JoinGroupResponse, LeaveGroupResponse, OffsetCommitResponse,
    OffsetDeleteResponse, SyncGroupResponse, delete_groups_response::DeletableGroupResult,
    offset_fetch_response::OffsetFetchResponseGroup,
};

use super::{
    classic::ClassicThen,
    coordinator::ShareReply,
    error::GroupError,
    offsets::DeferredFetch,
    record::Record,
    settings::{GroupConfigs, Settings},
    timers::Timers,
};

/// A request that waits for its reply. Every ticket given to a coordinator is answered exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// Records that are written as one: all of them become durable or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WriteId(pub(crate) u64);

/// Records to append to the coordinator's partition.
#[derive(Debug)]
pub(crate) struct Write {
    /// To be given back to `on_persisted`.
    pub(crate) id: WriteId,
    /// In order.
    pub(crate) records: Vec<Record>,
}

/// A reply, in the newest version's form; the handler fits it to the version that the client speaks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    /// JoinGroup
    Join(Box<JoinGroupResponse>),
    /// SyncGroup
    Sync(Box<SyncGroupResponse>),
    /// Heartbeat
    Heartbeat(Box<HeartbeatResponse>),
    /// LeaveGroup
    Leave(Box<LeaveGroupResponse>),
    /// OffsetCommit
    OffsetCommit(Box<OffsetCommitResponse>),
    /// One group of OffsetFetch
    OffsetFetch(Box<OffsetFetchResponseGroup>),
    /// OffsetDelete
    OffsetDelete(Box<OffsetDeleteResponse>),
    /// DeleteGroups
    DeleteGroups(Vec<DeletableGroupResult>),
    /// ConsumerGroupHeartbeat
    ConsumerHeartbeat(Box<ConsumerGroupHeartbeatResponse>),
    /// What is asked of share groups
    Share(Box<ShareReply>),
}

impl Reply {
    /// The same reply when what it tells could not be made durable.
    fn failed(self, error: GroupError) -> Self {
        let code = error.code();
        match self {
            Reply::Join(reply) => {
                let failed = JoinGroupResponse::default().with_member_id(reply.member_id).with_error_code(code);
                Reply::Join(Box::new(failed))
            }
            Reply::Sync(_) => Reply::Sync(Box::new(SyncGroupResponse::default().with_error_code(code))),
            Reply::Heartbeat(reply) => Reply::Heartbeat(Box::new(reply.with_error_code(code))),
            Reply::Leave(_) => Reply::Leave(Box::new(LeaveGroupResponse::default().with_error_code(code))),
            Reply::OffsetCommit(mut reply) => {
                let partitions = reply.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
                partitions.for_each(|partition| partition.error_code = code);
                Reply::OffsetCommit(reply)
            }
            Reply::OffsetFetch(reply) => {
                let failed = OffsetFetchResponseGroup::default().with_group_id(reply.group_id).with_error_code(code);
                Reply::OffsetFetch(Box::new(failed))
            }
            Reply::OffsetDelete(_) => {
                Reply::OffsetDelete(Box::new(OffsetDeleteResponse::default().with_error_code(code)))
            }
            Reply::DeleteGroups(mut results) => {
                results.iter_mut().for_each(|result| result.error_code = code);
                Reply::DeleteGroups(results)
            }
            Reply::Share(_) => Reply::Share(Box::new(ShareReply::Failed(error.into()))),
            Reply::ConsumerHeartbeat(_) => {
                let failed = ConsumerGroupHeartbeatResponse::default().with_error_code(code);
                Reply::ConsumerHeartbeat(Box::new(failed))
            }
        }
    }
}

/// What happens once a write is durable, or failed.
#[derive(Debug)]
pub(crate) enum Then {
    /// Nothing: the state was changed before and stands, durable or not.
    Keep,
    /// The state was changed as if the records were durable: if they are not, all state is to be rebuilt from the log.
    Rebuild,
    /// The records change the state only now.
    Apply(Vec<Record>),
    /// A classic group goes on.
    Classic(Rc<str>, ClassicThen),
}

/// A write that is under way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: WriteId,
    pub(crate) then: Then,
    /// Released when it is durable.
    pub(crate) replies: Vec<(Ticket, Reply)>,
    /// Answered when it is done, whatever became of it.
    pub(crate) fetches: Vec<(Ticket, DeferredFetch)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    replies: Vec<(Ticket, Reply)>,
    writes: Vec<Write>,
    pending: VecDeque<Pending>,
    next_write: u64,
    /// Groups whose regular expressions are to be looked up among all topics, with the expressions.
    regexes: BTreeMap<Rc<str>, Vec<Rc<str>>>,
}

impl Effects {
    /// Replies at once.
    pub(crate) fn reply(&mut self, ticket: Ticket, reply: Reply) {
        self.replies.push((ticket, reply));
    }

    /// Replies as soon as everything is durable that the state was changed for ahead of time.
    pub(crate) fn reply_when_settled(&mut self, ticket: Ticket, reply: Reply) {
        let ahead = |pending: &&mut Pending| matches!(pending.then, Then::Rebuild);
        match self.pending.iter_mut().rev().find(ahead) {
            Some(pending) => pending.replies.push((ticket, reply)),
            None => self.reply(ticket, reply),
        }
    }

    /// Hands a fetch back as long as no write is under way; else keeps it until the last one is done.
    pub(crate) fn defer_fetch(&mut self, ticket: Ticket, fetch: DeferredFetch) -> Option<DeferredFetch> {
        match self.pending.back_mut() {
            Some(pending) => {
                pending.fetches.push((ticket, fetch));
                None
            }
            None => Some(fetch),
        }
    }

    /// Writes records, with what is to happen then.
    pub(crate) fn write(&mut self, records: Vec<Record>, then: Then) {
        self.write_then_reply(records, then, None);
    }

    /// Writes records and replies when they are durable.
    pub(crate) fn write_then_reply(&mut self, records: Vec<Record>, then: Then, reply: Option<(Ticket, Reply)>) {
        let id = WriteId(self.next_write);
        self.next_write += 1;
        self.writes.push(Write { id, records });
        self.pending.push_back(Pending { id, then, replies: reply.into_iter().collect(), fetches: Vec::new() });
    }

    /// The oldest write, which was just finished.
    ///
    /// # Panics
    /// When writes are reported in another order than they were taken in.
    pub(crate) fn finish(&mut self, id: WriteId) -> Pending {
        let pending = self.pending.pop_front().expect("only writes that were taken are reported");
        assert_eq!(pending.id, id, "writes are reported in order");
        pending
    }

    /// Releases what waited for a write, or its failure.
    pub(crate) fn release(&mut self, replies: Vec<(Ticket, Reply)>, result: Result<(), GroupError>) {
        for (ticket, reply) in replies {
            let reply = match result {
                Ok(()) => reply,
                Err(error) => reply.failed(error),
            };
            self.reply(ticket, reply);
        }
    }

    /// Asks for a group's regular expressions to be looked up.
    pub(crate) fn resolve(&mut self, group: &Rc<str>, regexes: Vec<Rc<str>>) {
        self.regexes.insert(Rc::clone(group), regexes);
    }

    /// Replies to send now.
    pub(crate) fn take_replies(&mut self) -> Vec<(Ticket, Reply)> {
        std::mem::take(&mut self.replies)
    }

    /// Records to write now.
    pub(crate) fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    /// Groups whose regular expressions to look up now.
    pub(crate) fn take_regexes(&mut self) -> BTreeMap<Rc<str>, Vec<Rc<str>>> {
        std::mem::take(&mut self.regexes)
    }

    /// Fails everything that waits for a write; returns the fetches that wait.
    pub(crate) fn fail_pending(&mut self, error: GroupError) -> Vec<(Ticket, DeferredFetch)> {
        let mut fetches = Vec::new();
        for pending in std::mem::take(&mut self.pending) {
            self.release(pending.replies, Err(error));
            fetches.extend(pending.fetches);
        }
        self.writes.clear();
        fetches
    }

    /// Whether anything is to be taken.
    pub(crate) fn has_work(&self) -> bool {
        !self.replies.is_empty() || !self.writes.is_empty() || !self.regexes.is_empty()
    }
}

/// What a group may use while it handles an event.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    /// Now, ms since the epoch.
    pub(crate) now_ms: i64,
    pub(crate) settings: &'a Settings,
    pub(crate) configs: &'a dyn GroupConfigs,
    pub(crate) timers: &'a mut Timers,
    pub(crate) effects: &'a mut Effects,
}
