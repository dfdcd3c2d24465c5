//! Two nodes without an etcd: one keeps what all agree on, and leads; the other keeps a copy. Nobody but a person changes
//! which is which, as two machines alone cannot tell a dead one from a cut cable.
//!
//! A node looks at its start what it was last and what the other says, and does not change its mind while it runs: a leader that
//! hears of a later one ends, and follows that one when it is started again.

use std::{
    io,
    net::{TcpListener, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use millrace_replica::cluster::{
    control::read_contents,
    kept::{
        KeptStore, KeptWatch,
        file::{Contents, StoreFile},
        line::{self, FarStore, FarWatch, Standing},
    },
    keys::{self, Entry, MIRROR, StoredMirror},
    store::{KeyValue, LeaseId, Outcome as Written, Page, Store, StoreError, Transaction, Watch, Watched},
};
use uuid::Uuid;

use crate::{
    config::{Mirror, WithoutFollower},
    failure::{Failure, Outcome},
    serve::wire::Halt,
};

/// How long the other node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before the other node is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Where a node keeps the store or its copy, in its data directory.
pub(super) fn store_path(data_dir: &Path) -> PathBuf {
    data_dir.join("mirror").join("store")
}

/// A way to the store: this node's own, or the other's. A clone is a way of its own.
#[derive(Clone, Debug)]
pub(super) enum MirrorStore {
    Own(KeptStore),
    Far(Copied),
}

/// The other node's store, and what this node has of it.
#[derive(Clone, Debug)]
pub(super) struct Copied {
    store: FarStore,
    /// Whether this node keeps a copy of that store, and it is no older than the line to it. Before, it may be no member: it
    /// would be counted on, and could not be promoted. All ways share it.
    has_copy: Arc<AtomicBool>,
}

/// What a node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It leads, for the first time in that term.
    Found,
    /// It leads on.
    Lead,
    /// It follows the other one.
    Follow,
}

/// A node that is one of two.
#[derive(Debug)]
pub(super) struct Mirroring {
    pub(super) store: MirrorStore,
    own: Standing,
    other: FarStore,
}

/// Finds out what this node is, and answers the other from here on.
/// Nodes of a cluster are members for as long as `lease` says after a word of theirs.
pub(super) fn begin(data_dir: &Path, (cluster, lease): (&str, Duration), mirror: &Mirror) -> Outcome<Mirroring> {
    let path = store_path(data_dir);
    let kept = StoreFile::read(&path).map_err(Failure::failed)?;
    let address = mirror.other.client().to_string();
    let other = FarStore::new(address, cluster.to_owned(), PATIENCE);
    let (me, them) = (mirror.own.node_id, mirror.other.node_id);
    let said = kept.as_ref().map(|kept| mirror_of(kept).ok_or("the store does not say who leads")).transpose();
    let said = said.map_err(Failure::failed)?;
    let heard = match other.standing() {
        Ok(standing) => Some(standing),
        Err(error @ StoreError::Refused(_)) => return Err(Failure::failed(error)),
        Err(error) => {
            tracing::warn!("node {them} does not answer ({error})");
            None
        }
    };
    let role = decide(said.as_ref(), heard, me, mirror.first).map_err(Failure::failed)?;
    let standing = match (role, &said, heard) {
        (Role::Found, ..) => Standing { term: 1, leader: me, node: me },
        (Role::Lead, Some(said), _) => Standing { term: said.term, leader: me, node: me },
        (_, _, Some(heard)) => Standing { term: heard.term, leader: them, node: me },
        (_, said, None) => Standing { term: said.as_ref().map_or(0, |said| said.term), leader: them, node: me },
    };
    let listener = listen(mirror).map_err(|error| {
        Failure::failed(format!("--etcd-members: cannot listen on {}: {error}", mirror.own.client()))
    })?;
    let store = match role {
        Role::Found | Role::Lead => {
            let contents = kept.unwrap_or_else(|| founding(me));
            MirrorStore::Own(KeptStore::open(&path, contents, lease).map_err(Failure::failed)?)
        }
        Role::Follow => MirrorStore::Far(Copied { store: other.clone(), has_copy: Arc::default() }),
    };
    let (own, far) = match store.clone() {
        MirrorStore::Own(own) => (Some(own), None),
        MirrorStore::Far(far) => (None, Some(far)),
    };
    let known = Arc::new(Mutex::new(standing));
    let told = known.clone();
    line::answer(listener, cluster.to_owned(), move || *told.lock().expect("no panic while locked"), own)
        .map_err(Failure::failed)?;
    match far {
        Some(from) => {
            tracing::info!("node {them} leads, this one keeps a copy: 'millrace promote' makes it the leader");
            let copy = move || keep_copy(&path, &from, &known);
            thread::Builder::new().name("mirror-copy".to_owned()).spawn(copy).map_err(Failure::failed)?;
        }
        None => {
            tracing::info!("this node leads; {}", promise(mirror.without_follower, them));
            if heard.is_none() {
                tracing::warn!(
                    "this node leads as before. If node {them} was promoted meanwhile, both take records, and those of one \
                     of them will be cut off: stop this one then"
                );
            }
        }
    }
    Ok(Mirroring { store, own: standing, other })
}

impl Mirroring {
    /// Whether this node leads.
    pub(super) fn leads(&self) -> bool {
        self.own.leader == self.own.node
    }

    /// Has a leader end that hears of a later one.
    pub(super) fn watch_other(&self, halt: Halt) -> io::Result<()> {
        if !self.leads() {
            return Ok(());
        }
        let (own, other) = (self.own, self.other.clone());
        let look = move || {
            loop {
                thread::sleep(PAUSE);
                if let Ok(standing) = other.standing()
                    && standing.term > own.term
                {
                    let text = format!(
                        "node {} leads since it was promoted: start this node again to follow it",
                        standing.node
                    );
                    return halt.halt(text);
                }
            }
        };
        thread::Builder::new().name("mirror-watch".to_owned()).spawn(look).map(drop)
    }
}

/// What the leader promises.
fn promise(without_follower: WithoutFollower, them: i32) -> String {
    match without_follower {
        WithoutFollower::Stop => format!(
            "mirror.without.follower=stop: what is acknowledged with acks=all is on both nodes; while node {them} is away, \
             that is refused. The loss of either node loses nothing of it"
        ),
        WithoutFollower::Continue => format!(
            "mirror.without.follower=continue: while node {them} is away or behind, this one acknowledges what it alone has. If \
             it is lost then, so is that; nobody but this node knows how much"
        ),
    }
}

/// What a node is to be, by what it was (`said`) and what the other one says.
fn decide(said: Option<&StoredMirror>, heard: Option<Standing>, me: i32, first: i32) -> Result<Role, String> {
    let lost = || {
        Err("this node led, and its directory has nothing of that: 'millrace promote' on the other one makes that the \
             leader, or put the directory back"
            .to_owned())
    };
    match (said, heard) {
        (None, None) if first == me => Ok(Role::Found),
        (None, None) => Ok(Role::Follow),
        (None, Some(heard)) if heard.term == 0 && first == me => Ok(Role::Found),
        (None, Some(heard)) if heard.leader == me && heard.term > 0 => lost(),
        (None, Some(_)) => Ok(Role::Follow),
        (Some(said), Some(heard)) if heard.term > said.term && heard.leader == me => lost(),
        (Some(said), Some(heard)) if heard.term > said.term => Ok(Role::Follow),
        (Some(said), _) if said.leader == me => Ok(Role::Lead),
        (Some(_), _) => Ok(Role::Follow),
    }
}

/// Who leads, by a store.
pub(super) fn mirror_of(contents: &Contents) -> Option<StoredMirror> {
    let entry = contents.entries.iter().find(|entry| entry.key == MIRROR)?;
    match keys::decode(entry) {
        Ok(Some(Entry::Mirror(mirror))) => Some(mirror),
        _ => None,
    }
}

/// A new store.
fn founding(me: i32) -> Contents {
    let mirror = StoredMirror { leader: me, term: 1, fenced: String::new() };
    let entry = KeyValue {
        key: MIRROR.to_owned(),
        value: keys::encode_mirror(&mirror),
        created: 2,
        modified: 2,
        version: 1,
        lease: 0,
    };
    let (identity, _) = Uuid::new_v4().as_u64_pair();
    Contents { identity: identity.max(1), revision: 2, entries: vec![entry] }
}

fn listen(mirror: &Mirror) -> io::Result<TcpListener> {
    let own = mirror.own.client();
    let addresses: Vec<_> = (own.host.as_str(), own.port).to_socket_addrs()?.collect();
    TcpListener::bind(addresses.as_slice())
}

/// Keeps a copy of the leader's store, for ever.
fn keep_copy(path: &Path, from: &Copied, known: &Mutex<Standing>) {
    loop {
        if let Err(reason) = copy(path, from, known) {
            tracing::debug!("the copy of the leader's store waits: {reason}");
        }
        from.has_copy.store(false, Ordering::Release);
        thread::sleep(PAUSE);
    }
}

fn copy(path: &Path, from: &Copied, known: &Mutex<Standing>) -> Result<(), String> {
    let mut far = from.store.clone();
    let (contents, _) = read_contents(&mut far).map_err(|error| error.to_string())?;
    let mirror = mirror_of(&contents).ok_or("the leader's store does not say who leads")?;
    let before = StoreFile::read(path).map_err(|error| error.to_string())?;
    let had = before.as_ref().and_then(mirror_of).map_or(0, |mirror| mirror.term);
    if had > mirror.term {
        return Err(format!("it is of term {}, and this node has seen term {had}", mirror.term));
    }
    if before.is_some_and(|before| before.identity != contents.identity) {
        return Err("it is another store than the one that this node has a copy of".to_owned());
    }
    let mut file = StoreFile::create(path, &contents).map_err(|error| error.to_string())?;
    {
        let mut known = known.lock().expect("no panic while locked");
        (known.term, known.leader) = (mirror.term, mirror.leader);
    }
    let mut watch = far.watch(contents.revision + 1).map_err(|error| error.to_string())?;
    from.has_copy.store(true, Ordering::Release);
    let mut contents = contents;
    loop {
        match watch.next(PAUSE).map_err(|error| error.to_string())? {
            Watched::Quiet => file.touch().map_err(|error| error.to_string())?,
            Watched::Changes(changes) => {
                let Some(revision) = changes.iter().map(|change| change.revision()).max() else { continue };
                contents.apply(revision, &changes);
                file.append(revision, &changes, || contents.clone()).map_err(|error| error.to_string())?;
            }
        }
    }
}

/// A watch of either.
pub(super) enum EitherWatch {
    Own(KeptWatch),
    Far(FarWatch),
}

impl Watch for EitherWatch {
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        match self {
            Self::Own(watch) => watch.next(wait),
            Self::Far(watch) => watch.next(wait),
        }
    }
}

/// The same question to either.
macro_rules! ask {
    ($way:expr, $store:ident => $question:expr) => {
        match $way {
            MirrorStore::Own($store) => $question,
            MirrorStore::Far(Copied { store: $store, .. }) => $question,
        }
    };
}

impl Store for MirrorStore {
    type Watch = EitherWatch;

    fn transact(&mut self, transaction: &Transaction) -> Result<Written, StoreError> {
        match self {
            Self::Far(Copied { has_copy, .. }) if !has_copy.load(Ordering::Acquire) => {
                Err(StoreError::Away("this node has no copy of the leader's store yet".to_owned()))
            }
            way => ask!(way, store => store.transact(transaction)),
        }
    }

    fn range(&mut self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError> {
        ask!(self, store => store.range(prefix, after, revision, limit))
    }

    fn watch(&mut self, from: i64) -> Result<EitherWatch, StoreError> {
        match self {
            Self::Own(store) => store.watch(from).map(EitherWatch::Own),
            Self::Far(Copied { store, .. }) => store.watch(from).map(EitherWatch::Far),
        }
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        ask!(self, store => store.grant(ttl))
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError> {
        ask!(self, store => store.keep_alive(lease))
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        ask!(self, store => store.revoke(lease))
    }

    fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        ask!(self, store => store.compact(revision))
    }

    fn identity(&mut self) -> Result<u64, StoreError> {
        ask!(self, store => store.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_what_it_was_unless_the_other_was_promoted() {
        let said = |leader, term| StoredMirror { leader, term, fenced: String::new() };
        let heard = |leader, term| Standing { term, leader, node: 2 };
        let decide = |said: Option<StoredMirror>, heard| decide(said.as_ref(), heard, 1, 1);
        assert_eq!(decide(None, None), Ok(Role::Found));
        assert_eq!(decide(None, Some(heard(1, 0))), Ok(Role::Found), "the other waits for its first leader");
        assert_eq!(decide(None, Some(heard(2, 2))), Ok(Role::Follow));
        assert!(decide(None, Some(heard(1, 1))).is_err(), "it led, and lost its directory");
        assert_eq!(decide(Some(said(1, 1)), None), Ok(Role::Lead));
        assert_eq!(decide(Some(said(1, 1)), Some(heard(1, 1))), Ok(Role::Lead));
        assert_eq!(decide(Some(said(1, 1)), Some(heard(2, 2))), Ok(Role::Follow));
        assert_eq!(decide(Some(said(2, 2)), None), Ok(Role::Follow));
        assert_eq!(decide(Some(said(1, 3)), Some(heard(2, 2))), Ok(Role::Lead));
    }

    #[test]
    fn a_new_store_says_who_leads() {
        let contents = founding(4);
        assert_eq!(mirror_of(&contents).map(|it| (it.leader, it.term)), Some((4, 1)));
    }
}
