//! What a partition's state becomes: the one function that decides it, for every node and every store.
//!
//! Rules are those of Kafka 4's controller, with eligible leader replicas (KIP-966) always on. Pure: who calls it turns the
//! answer into a transaction that names the revision of the state it was given and [`requirements`] of the surroundings, so
//! an answer that came of an old view is refused by the store.
//!
//! What always holds of an answer: the ISR is a part of the replicas, the leader is in the ISR, nobody leads only if the ISR
//! is empty, the ELR is disjoint from the ISR and empty when that is large enough, the leader epoch never falls and rises
//! with every other leader.

use std::{collections::BTreeMap, sync::Arc};

use millrace_engine::config::Durability;

use super::model::{Kept, KnownNode, Member, NodeId, NodeState, PartitionState, TopicRules, UncleanElection};

/// What a decision looks at besides the partition.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Nodes that live.
    pub nodes: &'a BTreeMap<NodeId, Arc<NodeState>>,
    /// Nodes that want to leave: the life that does.
    pub draining: &'a BTreeMap<NodeId, i64>,
    /// Nodes that were ever there.
    pub known: &'a BTreeMap<NodeId, KnownNode>,
    /// What the topic's settings ask for.
    pub rules: TopicRules,
    /// The node that leads whatever it has a replica of, and stays leader while it is away: only a person changes that.
    pub fixed_leader: Option<NodeId>,
}

/// What became of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It goes on, now as that member: the same, or a later life that lost nothing.
    GoesOn(Member),
    /// The node is away. It may come back with all that it had.
    Away,
    /// The node lives, but not as that member any more.
    Over,
}

impl Surroundings<'_> {
    /// What became of a membership, for which a life has to go on as [`PartitionState::trust`] says.
    pub fn life(&self, member: Member, trust: Durability) -> Life {
        let Some(node) = self.nodes.get(&member.node) else { return Life::Away };
        if node.epoch == member.epoch {
            return Life::GoesOn(member);
        }
        let is_enough = |kept| kept == Kept::Written || trust == Durability::Device;
        match node.continues {
            Some(before) if before.epoch == member.epoch && is_enough(before.kept) => Life::GoesOn(node.member()),
            _ => Life::Over,
        }
    }

    fn is_present(&self, member: Member) -> bool {
        self.nodes.get(&member.node).is_some_and(|node| node.epoch == member.epoch)
    }

    /// Whether a member's present life may join an ISR or lead: it lives and does not want to leave.
    pub fn is_eligible(&self, member: Member) -> bool {
        self.is_present(member) && !self.is_draining(member)
    }

    /// Whether a node may lead one of these replicas.
    fn may_lead(&self, node: NodeId, replicas: &[NodeId]) -> bool {
        self.fixed_leader.is_none_or(|fixed| fixed == node || !replicas.contains(&fixed))
    }

    /// Whether the only one that may lead is away: it stays leader then.
    fn waits_for_leader(&self, replicas: &[NodeId]) -> bool {
        self.fixed_leader.is_some_and(|fixed| replicas.contains(&fixed) && !self.nodes.contains_key(&fixed))
    }

    fn is_draining(&self, member: Member) -> bool {
        self.draining.get(&member.node) == Some(&member.epoch)
    }

    /// The life of a node that may lead, if there is one.
    fn eligible(&self, node: NodeId) -> Option<Member> {
        let member = self.nodes.get(&node)?.member();
        self.is_eligible(member).then_some(member)
    }

    /// Members that an ISR needs for the high watermark to move.
    fn isr_min(&self, replicas: usize) -> usize {
        self.rules.min_isr.min(replicas).max(1)
    }
}

/// What a leader wants its ISR to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrProposal {
    /// Who asks.
    pub leader: Member,
    /// The epoch in which it leads.
    pub leader_epoch: i32,
    /// The whole new ISR. A member that joins is named by the life that it attached with.
    pub isr: Vec<Member>,
    /// All that was ever acknowledged is flushed wherever it has to be, and nothing will be acknowledged before that.
    pub is_flushed: bool,
}

/// What happened, or is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nodes came, went or want to leave, or the topic's settings changed (the controller's).
    Settle,
    /// The leader saw followers catch up or fall behind.
    AlterIsr(IsrProposal),
    /// The partition shall have these replicas.
    Reassign(Vec<NodeId>),
    /// A reassignment shall be taken back.
    CancelReassignment,
    /// The first replica shall lead.
    ElectPreferred,
    /// Any replica that lives shall lead a partition that nobody leads, whatever is lost.
    ElectUnclean,
}

/// Why nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// FENCED_LEADER_EPOCH: another leader was elected since.
    #[error("the leader epoch is {0}")]
    FencedLeaderEpoch(i32),
    /// UNKNOWN_LEADER_EPOCH: the epoch is later than what is known here.
    #[error("the leader epoch is still {0}")]
    UnknownLeaderEpoch(i32),
    /// NOT_LEADER_OR_FOLLOWER: who asks does not lead, or its life is over.
    #[error("who asks does not lead the partition")]
    NotLeader,
    /// INVALID_REQUEST: no ISR that this partition could have.
    #[error("invalid ISR: {0}")]
    InvalidIsr(String),
    /// INELIGIBLE_REPLICA: these would join, but their life is over or they want to leave.
    #[error("not eligible for the ISR: {0:?}")]
    IneligibleReplicas(Vec<Member>),
    /// NO_REASSIGNMENT_IN_PROGRESS
    #[error("No partition reassignment is in progress.")]
    NoReassignment,
    /// INVALID_REPLICA_ASSIGNMENT
    #[error("{0}")]
    InvalidAssignment(String),
    /// INVALID_REPLICA_ASSIGNMENT: nobody of those before the reassignment could lead without losing records.
    #[error("it would require an unclean leader election")]
    NeedsUncleanElection,
    /// ELECTION_NOT_NEEDED
    #[error("Leader election not needed for topic partition.")]
    ElectionNotNeeded,
    /// PREFERRED_LEADER_NOT_AVAILABLE
    #[error("The preferred leader was not available.")]
    PreferredLeaderNotAvailable,
    /// ELIGIBLE_LEADERS_NOT_AVAILABLE
    #[error("Eligible topic partition leaders are not available.")]
    EligibleLeadersNotAvailable,
}

/// What a state becomes; the same state if there is nothing to do.
pub fn change(
    state: &PartitionState,
    event: &Event,
    surroundings: &Surroundings<'_>,
) -> Result<PartitionState, Refusal> {
    let trust = state.trust(&surroundings.rules);
    let mut decision = Decision { before: state, next: state.clone(), surroundings, trust, left: Vec::new() };
    match event {
        Event::Settle if surroundings.waits_for_leader(&state.replicas) => {}
        Event::Settle => {
            decision.settle();
            decision.finish(Election::Any);
        }
        Event::AlterIsr(proposal) => {
            decision.take(proposal)?;
            decision.finish(Election::Keep);
        }
        Event::Reassign(replicas) => {
            decision.reassign(replicas)?;
            decision.settle();
            decision.finish(Election::Any);
        }
        Event::CancelReassignment => decision.cancel()?,
        Event::ElectPreferred => decision.elect_preferred()?,
        Event::ElectUnclean => decision.elect_unclean()?,
    }
    Ok(decision.next)
}

/// What must still hold when an answer is written, besides that the partition's state is the one it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The member's life goes on, and it does not want to leave.
    Eligible(Member),
    /// The member's life is over.
    Ended(Member),
}

/// What must still hold for a change from `before` to `next`.
pub fn requirements(
    before: &PartitionState,
    next: &PartitionState,
    surroundings: &Surroundings<'_>,
) -> Vec<Requirement> {
    let mut required = Vec::new();
    let joined = next.isr.iter().filter(|member| !before.isr.contains(member));
    let elected = next.leader.iter().filter(|_| next.leader != before.leader);
    required.extend(joined.chain(elected).copied().map(Requirement::Eligible));
    let left = before.isr.iter().filter(|member| !next.isr.contains(member));
    let replaced = before.leader.iter().filter(|_| next.leader != before.leader);
    let ended = left.chain(replaced).copied().filter(|member| !surroundings.is_present(*member));
    required.extend(ended.map(Requirement::Ended));
    required.sort();
    required.dedup();
    required
}

/// Who may be elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Election {
    /// The present leader, if a reassignment that completes leaves it in the ISR.
    Keep,
    /// Whoever is eligible; the present leader if it is.
    Any,
    /// The preferred leader before the present one.
    Preferred,
    /// If nobody is eligible, anybody that lives.
    Unclean,
}

struct Decision<'a> {
    before: &'a PartitionState,
    next: PartitionState,
    surroundings: &'a Surroundings<'a>,
    trust: Durability,
    /// Left the ISR with all that it promised to have.
    left: Vec<Member>,
}

impl Decision<'_> {
    /// Takes out whose life ended or who wants to leave, and names those by their new life that go on.
    fn settle(&mut self) {
        let surroundings = self.surroundings;
        let isr = std::mem::take(&mut self.next.isr);
        for member in isr {
            match self.life(member) {
                Life::GoesOn(now) if surroundings.is_draining(now) => self.left.push(now),
                Life::GoesOn(now) => self.next.isr.push(now),
                Life::Away => self.left.push(member),
                Life::Over => {}
            }
        }
        let elr = std::mem::take(&mut self.next.elr);
        self.next.elr = elr
            .into_iter()
            .filter_map(|member| match self.life(member) {
                Life::GoesOn(now) => Some(now),
                Life::Away => Some(member),
                Life::Over => None,
            })
            .collect();
    }

    fn take(&mut self, proposal: &IsrProposal) -> Result<(), Refusal> {
        let state = self.before;
        match proposal.leader_epoch {
            epoch if epoch < state.leader_epoch => return Err(Refusal::FencedLeaderEpoch(state.leader_epoch)),
            epoch if epoch > state.leader_epoch => return Err(Refusal::UnknownLeaderEpoch(state.leader_epoch)),
            _ => {}
        }
        let leads = state.leader == Some(proposal.leader);
        if !leads || !self.surroundings.is_present(proposal.leader) {
            return Err(Refusal::NotLeader);
        }
        check_isr(state, proposal)?;
        let joins = proposal.isr.iter().filter(|member| !state.isr.contains(member));
        let ineligible: Vec<_> = joins.copied().filter(|member| !self.surroundings.is_eligible(*member)).collect();
        if !ineligible.is_empty() {
            return Err(Refusal::IneligibleReplicas(ineligible));
        }
        let stays = |member: &&Member| proposal.isr.iter().any(|other| other.node == member.node);
        let left = state.isr.iter().filter(|member| !stays(member));
        let left: Vec<_> = left.copied().filter(|member| self.life(*member) != Life::Over).collect();
        self.left.extend(left);
        self.next.isr.clone_from(&proposal.isr);
        self.next.recovering = false;
        self.next.written &= !proposal.is_flushed;
        Ok(())
    }

    fn life(&self, member: Member) -> Life {
        self.surroundings.life(member, self.trust)
    }

    /// As [`Surroundings::life`], but only a member that may lead.
    fn eligible_life(&self, member: Member) -> Option<Member> {
        match self.life(member) {
            Life::GoesOn(now) if !self.surroundings.is_draining(now) => Some(now),
            _ => None,
        }
    }

    fn reassign(&mut self, target: &[NodeId]) -> Result<(), Refusal> {
        check_assignment(target, self.surroundings.known)?;
        let state = self.before;
        let is_settled = |node: &NodeId| state.replicas.contains(node) && !state.adding.contains(node);
        let removing: Vec<_> = state.replicas.iter().copied().filter(|node| !target.contains(node)).collect();
        self.next.adding = target.iter().copied().filter(|node| !is_settled(node)).collect();
        self.next.replicas = target.iter().chain(&removing).copied().collect();
        self.next.removing = removing;
        self.note_count();
        Ok(())
    }

    /// Remembers whether somebody wants fewer replicas, until somebody wants more.
    fn note_count(&mut self) {
        let (before, after) = (self.before.target_replicas().len(), self.next.target_replicas().len());
        if before != after {
            self.next.kept_few = after < before;
        }
    }

    fn cancel(&mut self) -> Result<(), Refusal> {
        if !self.before.is_reassigning() {
            return Err(Refusal::NoReassignment);
        }
        let adding = std::mem::take(&mut self.next.adding);
        self.next.removing.clear();
        self.next.replicas.retain(|node| !adding.contains(node));
        if self.next.replicas.is_empty() {
            return Err(Refusal::InvalidAssignment(
                "Invalid replica assignment: addingReplicas contains all replicas.".to_owned(),
            ));
        }
        self.note_count();
        self.next.isr.retain(|member| !adding.contains(&member.node));
        self.settle();
        self.finish(Election::Any);
        if self.before.leader.is_some() && self.next.leader.is_none() {
            return Err(Refusal::NeedsUncleanElection);
        }
        Ok(())
    }

    fn elect_preferred(&mut self) -> Result<(), Refusal> {
        let preferred = self.before.replicas.first().copied();
        if self.before.leader.map(|leader| leader.node) == preferred {
            return Err(Refusal::ElectionNotNeeded);
        }
        self.settle();
        self.finish(Election::Preferred);
        match self.next.leader.map(|leader| leader.node) == preferred {
            true => Ok(()),
            false => Err(Refusal::PreferredLeaderNotAvailable),
        }
    }

    fn elect_unclean(&mut self) -> Result<(), Refusal> {
        if self.before.leader.is_some() {
            return Err(Refusal::ElectionNotNeeded);
        }
        self.settle();
        self.finish(Election::Unclean);
        self.next.leader.map(drop).ok_or(Refusal::EligibleLeadersNotAvailable)
    }

    /// What follows from the ISR and the replicas as they are now.
    fn finish(&mut self, election: Election) {
        self.complete_reassignment();
        self.update_elr();
        self.elect(election);
        // an election from the ELR may have made the ISR large enough
        self.update_elr();
        self.update_last_known_leader();
        let next = &mut self.next;
        next.written |= self.surroundings.rules.durability == Durability::Written;
        let drops_replica = self.before.replicas.iter().any(|node| !next.replicas.contains(node));
        if next.leader != self.before.leader || drops_replica {
            next.leader_epoch = self.before.leader_epoch + 1;
        }
    }

    fn complete_reassignment(&mut self) {
        let next = &self.next;
        if !next.is_reassigning() {
            return;
        }
        let isr: Vec<_> = next.isr.iter().copied().filter(|member| !next.removing.contains(&member.node)).collect();
        let replicas = next.target_replicas();
        let is_there = |node: &NodeId| isr.iter().any(|member| member.node == *node);
        // a leader's proposal may hold members that died since: one of the others must be able to lead
        let eligible = isr.iter().filter(|member| self.eligible_life(**member).is_some()).count();
        if next.adding.iter().all(is_there) && eligible >= self.surroundings.isr_min(replicas.len()) {
            self.left.retain(|member| replicas.contains(&member.node));
            let next = &mut self.next;
            (next.isr, next.replicas) = (isr, replicas);
            next.adding.clear();
            next.removing.clear();
        }
    }

    fn update_elr(&mut self) {
        let next = &mut self.next;
        let isr_min = self.surroundings.isr_min(next.replicas.len());
        if next.isr.len() >= isr_min {
            next.elr.clear();
            return;
        }
        for member in &self.left {
            if !next.elr.iter().any(|other| other.node == member.node) {
                next.elr.push(*member);
            }
        }
        let (isr, replicas) = (&next.isr, &next.replicas);
        next.elr.retain(|member| replicas.contains(&member.node) && !isr.iter().any(|other| other.node == member.node));
        next.elr.sort();
    }

    fn elect(&mut self, election: Election) {
        let stays = self.next.leader.is_some_and(|leader| self.next.isr.contains(&leader));
        if election == Election::Keep && stays {
            return;
        }
        let preferred = self.next.replicas.first().filter(|_| election == Election::Preferred);
        if let Some(member) = preferred.and_then(|node| self.candidate(*node)) {
            return self.lead(member);
        }
        if let Some(leader) = self.next.leader
            && self.candidate(leader.node) == Some(leader)
        {
            return;
        }
        let candidate = self.next.replicas.iter().find_map(|node| self.candidate(*node));
        if let Some(member) = candidate {
            return self.lead(member);
        }
        let unclean = self.surroundings.rules.unclean == UncleanElection::WhenNeeded || election == Election::Unclean;
        let may_lead = |node: &&NodeId| self.surroundings.may_lead(**node, &self.next.replicas);
        let anybody = || self.next.replicas.iter().filter(may_lead).find_map(|node| self.surroundings.eligible(*node));
        match self.returned_leader().or_else(|| anybody().filter(|_| unclean)) {
            Some(member) => {
                self.left.clear();
                self.next.elr.clear();
                self.next.isr = vec![member];
                self.next.leader = Some(member);
                self.next.recovering = true;
            }
            None => self.next.leader = None,
        }
    }

    /// The present life of a node that may lead without losing anything.
    fn candidate(&self, node: NodeId) -> Option<Member> {
        let pool = if self.next.isr.is_empty() { &self.next.elr } else { &self.next.isr };
        let member = pool.iter().copied().find(|member| member.node == node)?;
        let may_lead = self.surroundings.may_lead(node, &self.next.replicas);
        self.eligible_life(member).filter(|_| may_lead)
    }

    /// Makes one leader that [`Decision::candidate`] named.
    fn lead(&mut self, member: Member) {
        match self.next.isr.iter_mut().find(|other| other.node == member.node) {
            Some(entry) => *entry = member,
            None => self.next.isr = vec![member],
        }
        self.next.leader = Some(member);
    }

    /// Who led last, when nobody else can and it came back with the log that it had.
    fn returned_leader(&self) -> Option<Member> {
        if !self.next.isr.is_empty() || !self.next.elr.is_empty() {
            return None;
        }
        let last = self.before.last_known_leader.or(self.before.leader)?;
        let known = self.surroundings.known.get(&last.node)?;
        let has_its_log = known.since <= last.epoch && self.next.replicas.contains(&last.node);
        self.surroundings.eligible(last.node).filter(|_| has_its_log)
    }

    fn update_last_known_leader(&mut self) {
        let replicas = &self.next.replicas;
        let last = self.before.leader.or(self.before.last_known_leader);
        self.next.last_known_leader = match self.next.leader {
            Some(_) => None,
            None => last.filter(|member| replicas.contains(&member.node)),
        };
    }
}

fn check_isr(state: &PartitionState, proposal: &IsrProposal) -> Result<(), Refusal> {
    let isr = &proposal.isr;
    let mut nodes: Vec<_> = isr.iter().map(|member| member.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.len() != isr.len() {
        return Err(Refusal::InvalidIsr("a replica stands in it twice".to_owned()));
    }
    if let Some(stranger) = isr.iter().find(|member| !state.replicas.contains(&member.node)) {
        return Err(Refusal::InvalidIsr(format!("{} is no replica", stranger.node)));
    }
    if !isr.contains(&proposal.leader) {
        return Err(Refusal::InvalidIsr("the leader is not in it".to_owned()));
    }
    Ok(())
}

/// Checks replicas that were asked for by hand.
pub fn check_assignment(replicas: &[NodeId], known: &BTreeMap<NodeId, KnownNode>) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::InvalidAssignment(text));
    if replicas.is_empty() {
        return refuse("The manual partition assignment includes an empty replica list.".to_owned());
    }
    let mut sorted = replicas.to_vec();
    sorted.sort_unstable();
    for (at, node) in sorted.iter().enumerate() {
        if at > 0 && sorted[at - 1] == *node {
            return refuse(format!("The manual partition assignment includes the broker {node} more than once."));
        }
        if !known.contains_key(node) {
            return refuse(format!(
                "The manual partition assignment includes broker {node}, but no such broker is registered."
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
