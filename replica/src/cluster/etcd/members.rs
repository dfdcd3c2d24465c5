//! Who etcd itself consists of: asked and changed only by who runs one of its members.

use super::{
    Etcd,
    caller::Repeat,
    messages::{Empty, MemberAddRequest, MemberListRequest, MemberListResponse, MemberRemoveRequest},
};
use crate::cluster::store::{Store, StoreError};

/// A member of etcd, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdMember {
    /// Its id, another one each time that it is added.
    pub id: u64,
    /// Empty if it was added and never ran.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Whether it ever ran: it said then where clients reach it.
    pub has_run: bool,
}

impl Etcd {
    /// All members, as a majority has them. Unless it is asked for that, etcd says what the member that answers has heard
    /// (`MemberListRequest.linearizable` in its rpc.proto, since 3.5). Older ones do nothing about that field; so a read that
    /// a majority agreed to comes before: the member that answered it has heard all that was done by then.
    pub fn members(&mut self) -> Result<Vec<EtcdMember>, StoreError> {
        self.range("", None, 0, 1)?;
        let request = MemberListRequest { linearizable: true };
        let answer: MemberListResponse =
            self.caller.call("/etcdserverpb.Cluster/MemberList", &request, Repeat::Always)?;
        let members = answer.members.into_iter().map(|member| EtcdMember {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            has_run: !member.client_urls.is_empty(),
        });
        Ok(members.collect())
    }

    /// Takes a member out. A majority of all, with that one, has to agree.
    pub fn remove_member(&mut self, id: u64) -> Result<(), StoreError> {
        let request = MemberRemoveRequest { id };
        self.caller.call::<Empty>("/etcdserverpb.Cluster/MemberRemove", &request, Repeat::Unsent).map(drop)
    }

    /// Adds one, which then has to be started.
    pub fn add_member(&mut self, peer_url: &str) -> Result<(), StoreError> {
        let request = MemberAddRequest { peer_urls: vec![peer_url.to_owned()] };
        self.caller.call::<Empty>("/etcdserverpb.Cluster/MemberAdd", &request, Repeat::Unsent).map(drop)
    }
}
