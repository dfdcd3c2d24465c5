//! etcd, spoken to through its HTTP/1.1 gateway: JSON, with keys and values in base64 and 64-bit numbers as text.
//!
//! Every call blocks, up to the timeout of the options; only the control plane's own threads make them. A call whose request
//! surely did not leave goes to the next endpoint at once; one that was only a question does so after any failure. Whether
//! anything else was done is unknown, and the caller is told so.

mod gateway;
mod members;
mod messages;
mod watch;

use std::{path::PathBuf, time::Duration};

pub use self::{gateway::ConnectError, members::EtcdMember, watch::EtcdWatch};
use self::{
    gateway::{Gateway, Repeat},
    messages::{
        CompactionRequest, DeleteRangeRequest, Empty, GrantRequest, GrantResponse, Header, KeepAliveResponse, Keyed,
        LeaseRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, Streamed, TxnRequest, TxnResponse, bytes,
    },
};
use super::store::{Compare, KeyValue, LeaseId, Operation, Outcome, Page, Store, StoreError, Transaction};

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `http://HOST:PORT` or `https://HOST:PORT` of each of its members.
    pub endpoints: Vec<String>,
    /// The cluster's name: all keys are under `/millrace/NAME/`.
    pub cluster: String,
    /// How long one call may take.
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
    gateway: Gateway,
    prefix: String,
}

impl Etcd {
    /// A way to an etcd. Connects when first asked; what is refused here is an option that makes no sense or a certificate
    /// that cannot be read.
    pub fn new(options: &EtcdOptions) -> Result<Self, ConnectError> {
        let prefix = format!("/millrace/{}/", options.cluster);
        Ok(Self { gateway: Gateway::new(options)?, prefix })
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

    fn status(&mut self) -> Result<messages::StatusResponse, StoreError> {
        self.gateway.call("/v3/maintenance/status", &Empty {}, Repeat::Always)
    }

    fn full(&self, key: &str) -> String {
        bytes(format!("{}{key}", self.prefix).as_bytes())
    }

    /// The end of the range of all keys that begin so. The prefix ends in a byte below 0xff, as all of ours do.
    fn end(&self, prefix: &str) -> String {
        let mut end = format!("{}{prefix}", self.prefix).into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        bytes(&end)
    }

    fn entry(&self, entry: messages::KeyValue) -> Result<KeyValue, StoreError> {
        entry.into_entry(&self.prefix)
    }

    fn compare(&self, compare: &Compare) -> messages::Compare {
        let key = self.full(compare.key());
        let (result, target) = match compare {
            Compare::Created(..) => (None, "CREATE"),
            Compare::NotCreated(..) => (Some("NOT_EQUAL"), "CREATE"),
            Compare::Exists(_) => (Some("GREATER"), "CREATE"),
            Compare::Modified(..) => (None, "MOD"),
            Compare::Value(..) => (None, "VALUE"),
        };
        let (create_revision, mod_revision, value) = match compare {
            Compare::Created(_, revision) | Compare::NotCreated(_, revision) => (Some(*revision), None, None),
            Compare::Exists(_) => (Some(0), None, None),
            Compare::Modified(_, revision) => (None, Some(*revision), None),
            Compare::Value(_, value) => (None, None, Some(bytes(value))),
        };
        let number = |revision: i64| revision.to_string();
        messages::Compare {
            key,
            result,
            target,
            create_revision: create_revision.map(number),
            mod_revision: mod_revision.map(number),
            value,
        }
    }

    fn operation(&self, operation: &Operation) -> RequestOp {
        match operation {
            Operation::Put { key, value, lease } => {
                let lease = (*lease != 0).then(|| lease.to_string());
                let put = PutRequest { key: self.full(key), value: bytes(value), lease };
                RequestOp::Put { request_put: put }
            }
            Operation::Delete(key) => {
                let delete = DeleteRangeRequest { key: self.full(key), range_end: None };
                RequestOp::Delete { request_delete_range: delete }
            }
            Operation::DeletePrefix(prefix) => {
                let delete = DeleteRangeRequest { key: self.full(prefix), range_end: Some(self.end(prefix)) };
                RequestOp::Delete { request_delete_range: delete }
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
        let answer: TxnResponse = self.gateway.call("/v3/kv/txn", &request, Repeat::Unsent)?;
        let revision = answer.header.known_revision()?;
        // what is false is left out of the answer
        Ok(if answer.succeeded { Outcome::Done(revision) } else { Outcome::Refused(revision) })
    }

    fn range(&mut self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError> {
        let request = RangeRequest {
            key: after.map_or_else(|| self.full(prefix), |after| self.full(&format!("{after}\0"))),
            range_end: self.end(prefix),
            limit: limit.to_string(),
            revision: revision.to_string(),
        };
        let answer: RangeResponse = self.gateway.call("/v3/kv/range", &request, Repeat::Always)?;
        let entries = answer.kvs.into_iter().map(|entry| self.entry(entry)).collect::<Result<_, _>>()?;
        Ok(Page { revision: answer.header.known_revision()?, entries, more: answer.more })
    }

    fn watch(&mut self, from: i64) -> Result<EtcdWatch, StoreError> {
        // a member without a majority would take the watch and bring nothing: the question turns to one that has it
        self.range("", None, 0, 1)?;
        let request = messages::WatchRequest {
            create_request: messages::WatchCreateRequest {
                key: self.full(""),
                range_end: self.end(""),
                start_revision: from.to_string(),
            },
        };
        EtcdWatch::start(&mut self.gateway, &request, self.prefix.clone())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let request = GrantRequest { ttl: ttl.as_secs().max(1).to_string() };
        // one that nobody hears of ends by itself
        let answer: GrantResponse = self.gateway.call("/v3/lease/grant", &request, Repeat::Always)?;
        match answer.id {
            0 => Err(StoreError::Nonsense("a lease without an id".to_owned())),
            id => Ok(id),
        }
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError> {
        let request = LeaseRequest { id: lease.to_string() };
        let answer: Streamed<KeepAliveResponse> = self.gateway.call("/v3/lease/keepalive", &request, Repeat::Always)?;
        let answer = answer.into_result()?;
        // of a lease that is over the time is 0, and left out
        if answer.ttl <= 0 {
            return Err(StoreError::LeaseOver);
        }
        answer.header.known_revision()
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRequest { id: lease.to_string() };
        self.gateway.call::<Keyed<Header>>("/v3/lease/revoke", &request, Repeat::Unsent).map(drop)
    }

    fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        let request = CompactionRequest { revision: revision.to_string() };
        self.gateway.call::<Keyed<Header>>("/v3/kv/compaction", &request, Repeat::Unsent).map(drop)
    }

    fn identity(&mut self) -> Result<u64, StoreError> {
        let status = self.status()?;
        match status.header.cluster_id {
            0 => Err(StoreError::Nonsense("a status without a cluster id".to_owned())),
            id => Ok(id),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
