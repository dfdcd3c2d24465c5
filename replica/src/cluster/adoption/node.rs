//! A node's part in an adoption: what it is to do with a store, and in which order it does that.
//!
//! Whatever it is cut by, between any two writes to the store or to its directory, it is run again. So the claim counts only
//! once its directory has the life that it names; the directory accepts the store only once the claim counts; and who finds
//! that all was decided by its claim accepts what it did not come to accept.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::api::TopicId;
use uuid::Uuid;

use super::{Adoption, Claim, Claimed, ClaimedPartition, ClaimedTopic, Decision, Heard};
use crate::cluster::{
    control::read_contents,
    keys::ValueError,
    model::{KnownNode, Member, NodeId},
    restored::Remembered,
    store::{Outcome, Store, StoreError, Transaction},
};

/// How often a decision is made anew as others adopt at the same time.
const REFUSALS_MAX: u32 = 60;

/// What a node's directory says of its lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which directory it is.
    pub directory: Uuid,
    /// The life that the next one continues; 0 if it was promised nothing.
    pub epoch: i64,
    /// How many adoptions the node knew of when its last life began.
    pub adopted: u64,
    /// With which claim it was, if it had no life since.
    pub claimed: Option<Claimed>,
    /// Which store it accepts, and how far it saw that.
    pub remembered: Option<Remembered>,
    /// The store that it claims in is that one.
    pub has_accepted: bool,
}

/// What a node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing shows that the store was restored.
    Started,
    /// All was decided, with its claim. It was cut short before it accepted the store.
    Decided,
    /// The others decided without it.
    Late,
    /// To say what it has.
    Claims,
}

/// What it is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Wait<'a> {
    /// The store answers.
    Answer(&'a StoreError),
    /// Leases of nodes end, which came with the backup.
    Leases(&'a Adoption),
    /// Others make their claims.
    Claims,
    /// What was written meanwhile comes to an end.
    Rest,
}

/// What a person is told.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// The node is about to claim.
    Claims(&'a Adoption),
    /// It follows what was decided without it. Topics that only it has, whose records go.
    Late(&'a [String]),
    /// These have not claimed yet.
    Awaits(&'a BTreeSet<NodeId>),
    /// This was decided.
    Decides(&'a Decision),
    /// It was decided by another node.
    Decided,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing was changed.
    Looked,
    /// The claim is made, others are awaited.
    Claimed,
    /// Nodes may be started.
    Decided,
    /// This one may.
    Followed,
}

/// Why a node does not adopt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The store.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// What is in it.
    #[error("{0}")]
    Value(#[from] ValueError),
    /// It is to be started.
    #[error("nothing shows that this etcd was restored from a backup: start the node with 'millrace serve'")]
    NotRestored,
    /// One of the id is there already.
    #[error(
        "node {0} has said what it has from another data directory: give this node its own --node-id; if that directory is gone \
         for good, delete that with 'etcdctl del /millrace/CLUSTER/adopting/{0}' and run it again"
    )]
    OtherDirectory(NodeId),
    /// A compare did not hold.
    #[error(
        "a node began to run, others adopted this etcd, or another process does it for this node: see that no node runs, and \
         run it again"
    )]
    Refused,
    /// The claim came too late.
    #[error("the other nodes have decided without what this one has: run it again")]
    DecidedWithout,
    /// A node that is late has what others do not have.
    #[error("records would be lost: with --may-lose-records they are")]
    LosesRecords,
    /// A topic never gets fewer of them; and epochs of such that were added since then do not tell which records are which.
    #[error(
        "the cluster does not have these partitions of this node, which were added since the backup: {0}. Keep its folder for \
         what is in them, and start the node with an empty --data"
    )]
    HasMorePartitions(String),
    /// Others do not get on.
    #[error("something changes this etcd meanwhile: see that no node runs, and run it again")]
    Changing,
}

/// The node's directory, a clock, and who looks on.
pub trait Shell {
    /// What it fails by.
    type Error: From<Problem>;

    /// What the directory says, and keeps from now on, durably. Nobody else works on it.
    ///
    /// # Errors
    /// If it cannot be written.
    fn keep(&mut self, kept: &Kept) -> Result<(), Self::Error>;

    /// Has the directory for itself from now on, and looks how far its logs are, if they count.
    ///
    /// # Errors
    /// If a node runs on it, or it cannot be read.
    fn open(&mut self, logs_count: bool) -> Result<(), Self::Error>;

    /// All topics that the node knows. With logs, if they count.
    fn topics(&self) -> BTreeMap<TopicId, ClaimedTopic>;

    /// Lets some time go by. Whether there is more of it.
    ///
    /// # Errors
    /// If that is too long.
    fn wait(&mut self, wait: Wait<'_>) -> Result<bool, Self::Error>;

    /// Tells.
    ///
    /// # Errors
    /// If nobody hears it.
    fn tell(&mut self, told: Told<'_>) -> Result<(), Self::Error>;
}

impl Adoption {
    /// What a node is to do whose directory says that.
    pub fn standing(&self, node: NodeId, kept: &Kept) -> Standing {
        let shown = self.shown();
        // what is decided in it is of before it was restored
        if self.image.being_adopted || shown.is_restored() {
            return Standing::Claims;
        }
        let took_part = self.took_part(Member { node, epoch: kept.epoch });
        let is_of_now = shown.tells().is_some() || !self.is_silent();
        if !took_part && is_of_now && self.image.adopted.times > kept.adopted {
            return Standing::Late;
        }
        match shown.check(kept.remembered) {
            Ok(()) => Standing::Started,
            Err(_) if took_part && kept.claimed.is_some() && !kept.has_accepted => Standing::Decided,
            Err(_) => Standing::Claims,
        }
    }

    /// What goes with a claim of that directory.
    pub(super) fn claimed(&self, kept: &Kept) -> Claimed {
        let stored = self.image.adopted.times;
        let heard = || {
            let is_of_now = |seen: Remembered| self.may_have_begun(kept.epoch, seen);
            Heard {
                before: !kept.remembered.is_some_and(is_of_now),
                adoptions: kept.adopted,
                revision: kept.remembered.map_or(0, |seen| seen.revision),
            }
        };
        let times = kept.claimed.map_or(0, |claimed| claimed.times);
        Claimed {
            times: times.max(kept.adopted).max(stored) + 1,
            heard: kept.claimed.map_or_else(heard, |claimed| claimed.heard),
        }
    }

    /// Topics that only that node has, and partitions of others that only it has: those in the store are not there, or were made
    /// anew, as their epochs are not above all that it heard of.
    pub(super) fn only_there(&self, topics: &BTreeMap<TopicId, ClaimedTopic>) -> (Vec<String>, Vec<String>) {
        let (mut only, mut grown) = (Vec::new(), Vec::new());
        for (id, topic) in topics {
            match self.image.topics.get(id) {
                None => only.push(topic.name.clone()),
                Some(stored) => {
                    let is_adopted = |at: usize, claimed: &ClaimedPartition| {
                        stored.partitions.get(at).is_some_and(|held| held.value.leader_epoch > claimed.leader_epoch)
                    };
                    let own = topic.partitions.iter().enumerate().filter(|(at, claimed)| !is_adopted(*at, claimed));
                    grown.extend(own.map(|(at, _)| format!("{}-{at}", topic.name)));
                }
            }
        }
        (only, grown)
    }
}

/// A node that does not run, and the store that it is to accept.
#[derive(Debug)]
pub struct Adopter<'a, S, H> {
    /// The store.
    pub store: &'a mut S,
    /// What is around.
    pub shell: &'a mut H,
    /// Which node.
    pub node: NodeId,
    /// Where it stands.
    pub rack: Option<String>,
    /// What its directory says.
    pub kept: Kept,
    /// Nodes that are gone for good.
    pub without: &'a [NodeId],
    /// Nothing is changed.
    pub dry_run: bool,
    /// What only this node has may go, if it is late.
    pub may_lose_records: bool,
}

impl<S: Store, H: Shell> Adopter<'_, S, H> {
    /// All that the store holds, and which store it is.
    ///
    /// # Errors
    /// If it does not answer for long, or holds what cannot be read.
    pub fn look(&mut self) -> Result<(Adoption, Remembered), H::Error> {
        loop {
            match read_contents(self.store) {
                Ok(read) => {
                    let adoption = Adoption::read(&read).map_err(Problem::from)?;
                    return Ok((adoption, Remembered { store: read.0.identity, revision: read.0.revision }));
                }
                Err(error) if error.is_unknown() && self.shell.wait(Wait::Answer(&error))? => {}
                Err(error) => return Err(Problem::from(error).into()),
            }
        }
    }

    /// Does what is to be done, by what the store holds now.
    ///
    /// # Errors
    /// If that is nothing, or cannot be done now. It can be run again.
    pub fn run(mut self) -> Result<Ending, H::Error> {
        let (adoption, seen) = self.look()?;
        match adoption.standing(self.node, &self.kept) {
            Standing::Started => Err(Problem::NotRestored.into()),
            Standing::Late => self.come_late(&adoption, seen),
            Standing::Decided => {
                self.shell.tell(Told::Decided)?;
                if self.dry_run {
                    return Ok(Ending::Looked);
                }
                self.shell.open(false)?;
                self.accept(seen)?;
                Ok(Ending::Decided)
            }
            Standing::Claims => {
                self.shell.tell(Told::Claims(&adoption))?;
                let known = adoption.image.known.get(&self.node);
                if adoption.claim(self.node).is_some() && known.is_some_and(|it| it.directory != self.kept.directory) {
                    return Err(Problem::OtherDirectory(self.node).into());
                }
                if self.dry_run {
                    return Ok(Ending::Looked);
                }
                self.await_silence()?;
                // a directory that gave records up was promised nothing, and says nothing of what others may lack
                self.shell.open(self.kept.epoch > 0)?;
                // that took its time
                let adoption = self.await_silence()?;
                self.claim(&adoption)?;
                self.settle()
            }
        }
    }

    /// Waits until leases that came with the backup are over. A node that goes on for longer runs.
    fn await_silence(&mut self) -> Result<Adoption, H::Error> {
        loop {
            let (adoption, _) = self.look()?;
            if adoption.is_silent() {
                return Ok(adoption);
            }
            self.shell.wait(Wait::Leases(&adoption))?;
        }
    }

    /// Says what the node has.
    fn claim(&mut self, adoption: &Adoption) -> Result<(), H::Error> {
        // before the life that it continues, which would be none of this directory's otherwise
        let known = KnownNode { directory: self.kept.directory, rack: self.rack.clone(), since: 0 };
        let made_up = self.transact(&adoption.begin_claim(self.node, &known))?;
        let epoch = if self.kept.epoch == 0 { 0 } else { made_up };
        let member = Member { node: self.node, epoch };
        let claimed = adoption.claimed(&self.kept);
        let transactions = Claim { member, claimed, topics: self.shell.topics() }.transactions(adoption);
        let (head, parts) = transactions.split_last().expect("what makes it count");
        for part in parts {
            self.transact(part)?;
        }
        self.keep(Kept { epoch, claimed: Some(claimed), has_accepted: false, ..self.kept.clone() })?;
        self.transact(head)?;
        let (now, seen) = self.look()?;
        if now.claim(self.node).is_none() && !now.took_part(member) {
            return Err(Problem::DecidedWithout.into());
        }
        self.accept(seen)
    }

    fn accept(&mut self, seen: Remembered) -> Result<(), H::Error> {
        self.keep(Kept { remembered: Some(seen), has_accepted: true, ..self.kept.clone() })
    }

    /// The others decided without this node. It follows them, as a new directory that was promised nothing.
    fn come_late(&mut self, adoption: &Adoption, seen: Remembered) -> Result<Ending, H::Error> {
        let (lost, grown) = adoption.only_there(&self.shell.topics());
        self.shell.tell(Told::Late(&lost))?;
        if !grown.is_empty() {
            return Err(Problem::HasMorePartitions(grown.join(", ")).into());
        }
        if self.dry_run {
            return Ok(Ending::Looked);
        }
        if !lost.is_empty() && !self.may_lose_records {
            return Err(Problem::LosesRecords.into());
        }
        self.shell.open(false)?;
        self.keep(Kept {
            directory: Uuid::new_v4(),
            epoch: 0,
            adopted: adoption.image.adopted.times,
            claimed: None,
            remembered: Some(seen),
            has_accepted: true,
        })?;
        Ok(Ending::Followed)
    }

    fn keep(&mut self, kept: Kept) -> Result<(), H::Error> {
        self.shell.keep(&kept)?;
        self.kept = kept;
        Ok(())
    }

    /// Writes part of a claim. Answers its revision.
    fn transact(&mut self, transaction: &Transaction) -> Result<i64, H::Error> {
        match self.store.transact(transaction).map_err(Problem::from)? {
            Outcome::Done(revision) => Ok(revision),
            Outcome::Refused(_) => Err(Problem::Refused.into()),
        }
    }

    /// Decides once all have made their claims.
    fn settle(&mut self) -> Result<Ending, H::Error> {
        let (mut told, mut refusals) = (BTreeSet::new(), 0);
        loop {
            let (adoption, _) = self.look()?;
            if !adoption.image.being_adopted {
                self.shell.tell(Told::Decided)?;
                return Ok(Ending::Decided);
            }
            let awaited = adoption.awaited(self.without);
            if awaited.is_empty() {
                if adoption.is_silent() && self.decide(&adoption.decide(self.without))? {
                    return Ok(Ending::Decided);
                }
                refusals += 1;
                if refusals == REFUSALS_MAX {
                    return Err(Problem::Changing.into());
                }
                self.shell.wait(Wait::Rest)?;
                continue;
            }
            if awaited != told {
                self.shell.tell(Told::Awaits(&awaited))?;
                told = awaited;
            }
            if !self.shell.wait(Wait::Claims)? {
                return Ok(Ending::Claimed);
            }
        }
    }

    /// Whether it was done. If not, another node may have been faster, or a claim was made once more; or it was, and nobody heard.
    fn decide(&mut self, decision: &Decision) -> Result<bool, H::Error> {
        for transaction in &decision.transactions {
            match self.store.transact(transaction) {
                Ok(Outcome::Done(_)) => {}
                Ok(Outcome::Refused(_)) => return Ok(false),
                Err(error) if error.is_unknown() => return Ok(false),
                Err(error) => return Err(Problem::from(error).into()),
            }
        }
        self.shell.tell(Told::Decides(decision))?;
        Ok(true)
    }
}
