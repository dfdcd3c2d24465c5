//! etcd, spoken to as its own client does: gRPC, which is HTTP/2 and Protobuf. Of gRPC no more is here than etcd asks for, so
//! that it is known of every request whether it left.
//!
//! Every call blocks, up to the timeout of the options at each member; only the control plane's own threads make them. A call whose request
//! surely did not leave goes to the next endpoint at once; one that was only a question does so after any failure. Whether
//! anything else was done is unknown, and the caller is told so.

mod caller;
mod connection;
mod endpoint;
mod failure;
mod framing;
mod members;
mod messages;
mod watch;

use std::{path::PathBuf, time::Duration};

use self::{
    caller::{Caller, Repeat},
    messages::{
        CompactionRequest, DeleteRangeRequest, Empty, GrantRequest, GrantResponse, KeepAliveResponse, LeaseRequest,
        PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, known_revision,
    },
};
pub use self::{endpoint::ConnectError, members::EtcdMember, watch::EtcdWatch};
use super::restored::Progress;
use super::store::{Compare, LeaseId, Operation, Outcome, Page, Store, StoreError, Transaction};

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `http://HOST:PORT` or `https://HOST:PORT` of each of its members.
    pub endpoints: Vec<String>,
    /// The cluster's name: all keys are under `/millrace/NAME/`.
    pub cluster: String,
    /// How long one call may take at one member.
    pub timeout: Duration,
    /// Certificates, for `https`.
    pub tls: EtcdTls,
    /// User and password, if etcd asks for them.
    pub user: Option<(String, String)>,
}

/// Files with certificates, as PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signed the certificates of etcd's members.
    pub authority: Option<PathBuf>,
    /// Our certificate and its key, if etcd asks for them.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// One thread's way to etcd.
#[derive(Debug)]
pub struct Etcd {
    caller: Caller,
    prefix: String,
}

impl Etcd {
    /// A way to an etcd. Connects when first asked; what is refused here is an option that makes no sense or a certificate
    /// that cannot be read.
    pub fn new(options: &EtcdOptions) -> Result<Self, ConnectError> {
        let prefix = format!("/millrace/{}/", options.cluster);
        Ok(Self { caller: Caller::new(options)?, prefix })
    }

    /// etcd's version, from the member that answers first.
    pub fn server_version(&mut self) -> Result<String, StoreError> {
        Ok(self.status()?.version)
    }

    /// Bytes of its database, from the member that answers first.
    pub fn database_bytes(&mut self) -> Result<i64, StoreError> {
        Ok(self.status()?.db_size)
    }

    /// Whether its space is used up, so that it takes no writes, as the member that answers first says.
    pub fn is_full(&mut self) -> Result<bool, StoreError> {
        Ok(self.status()?.errors.iter().any(|alarm| alarm.contains("NOSPACE")))
    }

    /// How many revisions it has, if it keeps all of them from the first one on.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn uncompacted_revisions(&mut self) -> Result<Option<i64>, StoreError> {
        let revision = self.range("", None, 0, 1)?.revision;
        match self.range("", None, 1, 1) {
            Ok(_) => Ok(Some(revision)),
            Err(StoreError::Compacted(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn status(&mut self) -> Result<messages::StatusResponse, StoreError> {
        self.caller.call("/etcdserverpb.Maintenance/Status", &Empty {}, Repeat::Always)
    }

    fn full(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// The end of the range of all keys that begin so. The prefix ends in a byte below 0xff, as all of ours do.
    fn end(&self, prefix: &str) -> Vec<u8> {
        let mut end = self.full(prefix);
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    fn compare(&self, compare: &Compare) -> messages::Compare {
        use messages::{CompareResult as Is, CompareTarget as Of};
        let (result, target) = match compare {
            Compare::Created(..) => (Is::Equal, Of::Create),
            Compare::NotCreated(..) => (Is::NotEqual, Of::Create),
            Compare::Exists(_) => (Is::Greater, Of::Create),
            Compare::Modified(..) => (Is::Equal, Of::Mod),
            Compare::Value(..) => (Is::Equal, Of::Value),
        };
        let (create_revision, mod_revision, value) = match compare {
            Compare::Created(_, revision) | Compare::NotCreated(_, revision) => (Some(*revision), None, None),
            Compare::Exists(_) => (Some(0), None, None),
            Compare::Modified(_, revision) => (None, Some(*revision), None),
            Compare::Value(_, value) => (None, None, Some(value.clone())),
        };
        let (result, target, key) = (result.into(), target.into(), self.full(compare.key()));
        messages::Compare { result, target, key, create_revision, mod_revision, value }
    }

    fn operation(&self, operation: &Operation) -> RequestOp {
        let key = self.full(operation.key());
        match operation {
            Operation::Put { value, lease, .. } => {
                let put = PutRequest { key, value: value.clone(), lease: *lease };
                RequestOp { put: Some(put), delete_range: None }
            }
            Operation::Delete(_) => {
                let delete = DeleteRangeRequest { key, range_end: Vec::new() };
                RequestOp { put: None, delete_range: Some(delete) }
            }
            Operation::DeletePrefix(prefix) => {
                let delete = DeleteRangeRequest { key, range_end: self.end(prefix) };
                RequestOp { put: None, delete_range: Some(delete) }
            }
        }
    }
}

impl Store for Etcd {
    type Watch = EtcdWatch;

    fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let request = TxnRequest {
            compare: transaction.compares.iter().map(|compare| self.compare(compare)).collect(),
            success: transaction.operations.iter().map(|operation| self.operation(operation)).collect(),
        };
        let answer: TxnResponse = self.caller.call("/etcdserverpb.KV/Txn", &request, Repeat::Unsent)?;
        let revision = known_revision(answer.header)?;
        Ok(if answer.succeeded { Outcome::Done(revision) } else { Outcome::Refused(revision) })
    }

    fn range(&mut self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError> {
        let request = RangeRequest {
            key: after.map_or_else(|| self.full(prefix), |after| self.full(&format!("{after}\0"))),
            range_end: self.end(prefix),
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            revision,
        };
        let answer: RangeResponse = self.caller.call("/etcdserverpb.KV/Range", &request, Repeat::Always)?;
        let entries = answer.kvs.into_iter().map(|entry| entry.into_entry(&self.prefix)).collect::<Result<_, _>>()?;
        Ok(Page { revision: known_revision(answer.header)?, entries, more: answer.more })
    }

    fn watch(&mut self, from: i64) -> Result<EtcdWatch, StoreError> {
        // a member without a majority would take the watch and bring nothing: the question turns to one that has it
        self.range("", None, 0, 1)?;
        let request = messages::WatchRequest {
            create_request: Some(messages::WatchCreateRequest {
                key: self.full(""),
                range_end: self.end(""),
                start_revision: from,
                fragment: true,
            }),
        };
        EtcdWatch::start(&mut self.caller, &request, self.prefix.clone())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let request = GrantRequest { ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1) };
        // one that nobody hears of ends by itself
        let answer: GrantResponse = self.caller.call("/etcdserverpb.Lease/LeaseGrant", &request, Repeat::Always)?;
        match answer.id {
            0 => Err(StoreError::Nonsense("a lease without an id".to_owned())),
            id => Ok(id),
        }
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError> {
        let request = LeaseRequest { id: lease };
        // a stream, of which one message each way is used
        let answer: KeepAliveResponse =
            self.caller.call("/etcdserverpb.Lease/LeaseKeepAlive", &request, Repeat::Always)?;
        // of a lease that is over the time is 0
        if answer.ttl <= 0 {
            return Err(StoreError::LeaseOver);
        }
        known_revision(answer.header)
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRequest { id: lease };
        self.caller.call::<Empty>("/etcdserverpb.Lease/LeaseRevoke", &request, Repeat::Unsent).map(drop)
    }

    fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        let request = CompactionRequest { revision };
        self.caller.call::<Empty>("/etcdserverpb.KV/Compact", &request, Repeat::Unsent).map(drop)
    }

    fn identity(&mut self) -> Result<u64, StoreError> {
        let status = self.status()?;
        match status.header.map_or(0, |header| header.cluster_id) {
            0 => Err(StoreError::Nonsense("a status without a cluster id".to_owned())),
            id => Ok(id),
        }
    }

    fn progress(&mut self) -> Result<Option<Progress>, StoreError> {
        let status = self.status()?;
        let index = i64::try_from(status.raft_index).unwrap_or(0);
        // what speaks etcd's protocol over another store has no such log
        let revision = known_revision(status.header)?;
        Ok((index > 0).then_some(Progress { revision, index }))
    }
}

#[cfg(test)]
pub(crate) mod tests;
