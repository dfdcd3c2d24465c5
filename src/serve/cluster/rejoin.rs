//! Whether a managed etcd begins anew or joins what is there: a node that lost its folder, or a new machine in the place of
//! a dead one, must not come back as the member that it was, as it has forgotten what that one agreed to. It is taken out of
//! the list of members then, and put in as a new one.

use std::{fs, path::Path, time::Duration};

use millrace_replica::cluster::{
    etcd::{Etcd, EtcdMember, EtcdOptions as Asking, EtcdTls},
    store::StoreError,
};

use super::etcd_options::{EtcdOptions, member_name, url};

/// How long one question to the others may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Looks at the list of members at most, before this node's etcd is left to end at once and be started again: two steps, and
/// answers that are lost.
const LOOKS_MAX: usize = 5;

/// etcd's option `initial-cluster-state`; a member that has data ignores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With all others.
    New,
    /// As one more of those that are there.
    Existing,
}

impl Begin {
    pub(super) fn as_option(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Existing => "existing",
        }
    }
}

/// What has to be done before it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Start(Begin),
    /// The member is taken out: its data are lost.
    Remove(u64),
    /// A member is added at this node's address.
    Add,
}

/// Looks whether this node's member has to be put in anew, and does so. Where nobody answers, a node that is new to the
/// cluster begins with all others; one that was in it waits for them, by an etcd that ends at once.
pub(super) fn begin(options: &EtcdOptions) -> Begin {
    let unanswered = if options.was_there { Begin::Existing } else { Begin::New };
    let others = options.managed.members.iter().filter(|member| member.node_id != options.own.node_id);
    let endpoints: Vec<String> = others.map(|member| url(&member.client())).collect();
    if has_data(&options.data) || endpoints.is_empty() {
        return Begin::New;
    }
    let asking =
        Asking { endpoints, cluster: options.token.clone(), timeout: PATIENCE, tls: EtcdTls::default(), user: None };
    let Ok(mut etcd) = Etcd::new(&asking) else { return unanswered };
    settle(&mut etcd, (&member_name(&options.own), &url(&options.own.peer())), unanswered)
}

/// The list of members of the etcd that the others are.
trait Members {
    fn members(&mut self) -> Result<Vec<EtcdMember>, StoreError>;
    fn remove_member(&mut self, id: u64) -> Result<(), StoreError>;
    fn add_member(&mut self, peer_url: &str) -> Result<(), StoreError>;
}

impl Members for Etcd {
    fn members(&mut self) -> Result<Vec<EtcdMember>, StoreError> {
        self.members()
    }

    fn remove_member(&mut self, id: u64) -> Result<(), StoreError> {
        self.remove_member(id)
    }

    fn add_member(&mut self, peer_url: &str) -> Result<(), StoreError> {
        self.add_member(peer_url)
    }
}

/// Brings the list of members to where this node's, of that name and address, can be started.
fn settle(etcd: &mut impl Members, (name, peer): (&str, &str), mut unanswered: Begin) -> Begin {
    // each step changes what the next one finds
    for _ in 0..LOOKS_MAX {
        let Ok(members) = etcd.members() else { return unanswered };
        let (done, refused) = match step(&members, name, peer) {
            Step::Start(begin) => return begin,
            Step::Remove(id) => {
                tracing::warn!(
                    target: "etcd",
                    "this node's member {id:x} has data, but not here: it is replaced by a new one"
                );
                // etcd itself refuses to begin anew as a member that the others know
                (etcd.remove_member(id), Begin::New)
            }
            Step::Add => (etcd.add_member(peer), Begin::Existing),
        };
        // one that was taken out and begins anew has data, and never comes to this again
        unanswered = Begin::Existing;
        match done {
            Ok(()) => {}
            Err(error) if error.is_unknown() => {
                tracing::warn!(target: "etcd", "whether this node's member was replaced is not known: {error}");
            }
            Err(error) => {
                tracing::error!(target: "etcd", "this node's member cannot be replaced yet: {error}");
                return refused;
            }
        }
    }
    Begin::Existing
}

/// Whether a member is there: one that could not begin leaves folders, but no log.
fn has_data(folder: &Path) -> bool {
    let entries = fs::read_dir(folder.join("member").join("wal")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().extension().is_some_and(|end| end == "wal"))
}

/// Of a member without data.
fn step(members: &[EtcdMember], name: &str, peer: &str) -> Step {
    let is_own = |member: &&EtcdMember| member.name == name || member.peer_urls.iter().any(|url| url == peer);
    match members.iter().find(is_own) {
        None => Step::Add,
        Some(own) if own.has_run => Step::Remove(own.id),
        // all of a first start are named from the beginning
        Some(own) if !own.name.is_empty() => Step::Start(Begin::New),
        Some(_) => Step::Start(Begin::Existing),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn member(name: &str, has_run: bool) -> EtcdMember {
        EtcdMember { id: 7, name: name.to_owned(), peer_urls: vec!["http://b:2380".to_owned()], has_run }
    }

    #[test]
    fn only_a_member_that_ran_and_lost_its_data_is_replaced() {
        let step_of = step;
        let step = |member: Option<EtcdMember>| {
            let other = EtcdMember { peer_urls: vec!["http://a:2380".to_owned()], ..member_named("node-1") };
            let members: Vec<_> = member.into_iter().chain([other]).collect();
            step_of(&members, "node-2", "http://b:2380")
        };
        fn member_named(name: &str) -> EtcdMember {
            member(name, true)
        }
        assert_eq!(step(Some(member("node-2", false))), Step::Start(Begin::New), "the first start of all");
        assert_eq!(step(Some(member("node-2", true))), Step::Remove(7));
        assert_eq!(step(None), Step::Add);
        assert_eq!(step(Some(member("", false))), Step::Start(Begin::Existing), "added, and never started");
    }

    /// Members whose answers are lost, or that refuse.
    struct Others {
        list: Vec<EtcdMember>,
        answers: VecDeque<Result<(), StoreError>>,
        is_away_after: usize,
    }

    impl Others {
        /// With this node's member, which ran.
        fn new(answers: impl IntoIterator<Item = Result<(), StoreError>>) -> Self {
            let other = EtcdMember { id: 1, peer_urls: vec!["http://a:2380".to_owned()], ..member("node-1", true) };
            let list = vec![other, member("node-2", true)];
            Self { list, answers: answers.into_iter().collect(), is_away_after: usize::MAX }
        }

        /// Does it unless it is refused, and answers what is due.
        fn answer(&mut self, change: impl FnOnce(&mut Vec<EtcdMember>)) -> Result<(), StoreError> {
            let answer = self.answers.pop_front().unwrap_or(Ok(()));
            if !matches!(answer, Err(StoreError::Refused(_))) {
                change(&mut self.list);
            }
            answer
        }

        fn settle(&mut self) -> Begin {
            settle(self, ("node-2", "http://b:2380"), Begin::New)
        }
    }

    impl Members for Others {
        fn members(&mut self) -> Result<Vec<EtcdMember>, StoreError> {
            self.is_away_after = self.is_away_after.wrapping_sub(1);
            (self.is_away_after != 0).then(|| self.list.clone()).ok_or_else(lost)
        }

        fn remove_member(&mut self, id: u64) -> Result<(), StoreError> {
            self.answer(|list| list.retain(|member| member.id != id))
        }

        fn add_member(&mut self, _: &str) -> Result<(), StoreError> {
            self.answer(|list| list.push(member("", false)))
        }
    }

    fn lost() -> StoreError {
        StoreError::Away("timed out".to_owned())
    }

    /// A lost answer to "remove" was taken for a refusal: the removed member began anew, was refused by all others for good,
    /// and had data then, so that nothing was mended at the next start.
    #[test]
    fn a_lost_answer_is_looked_after() {
        assert_eq!(Others::new([]).settle(), Begin::Existing);
        assert_eq!(Others::new([Err(lost())]).settle(), Begin::Existing, "removed, without a word");
        assert_eq!(Others::new([Ok(()), Err(lost())]).settle(), Begin::Existing, "added, without a word");
        let mut others = Others::new([Err(lost())]);
        others.is_away_after = 2;
        assert_eq!(others.settle(), Begin::Existing, "nobody says what became of it");
        let refusal = || Err(StoreError::Refused("unhealthy cluster".to_owned()));
        assert_eq!(Others::new([refusal()]).settle(), Begin::New, "the member is what it was");
    }
}
