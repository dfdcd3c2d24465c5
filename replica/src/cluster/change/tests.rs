//! Each rule by itself, and random histories with what must hold of all of them.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::cluster::model::Continued;

/// A cluster in which nodes come and go.
#[derive(Clone, Debug, Default)]
struct World {
    nodes: BTreeMap<NodeId, Arc<NodeState>>,
    draining: BTreeMap<NodeId, i64>,
    known: BTreeMap<NodeId, KnownNode>,
    rules: TopicRules,
    fixed_leader: Option<NodeId>,
}

impl World {
    /// Nodes 1 to `nodes`, each in its life 10.
    fn of(nodes: NodeId, min_isr: usize) -> Self {
        let mut world = Self { rules: TopicRules { min_isr, ..TopicRules::default() }, ..Self::default() };
        (1..=nodes).for_each(|node| world.start(node, 10, None));
        world
    }

    fn start(&mut self, node: NodeId, epoch: i64, continues: Option<Continued>) {
        let state = NodeState {
            id: node,
            epoch,
            incarnation: Uuid::nil(),
            directory: Uuid::nil(),
            machine: String::new(),
            rack: None,
            endpoints: Vec::new(),
            peer: String::new(),
            shards: 1,
            version: String::new(),
            continues,
            defaults: None,
        };
        self.nodes.insert(node, Arc::new(state));
        self.known.entry(node).or_insert(KnownNode { directory: Uuid::nil(), rack: None, since: 1 });
        self.draining.remove(&node);
    }

    fn stop(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.draining.remove(&node);
    }

    fn look(&self) -> Surroundings<'_> {
        Surroundings {
            nodes: &self.nodes,
            draining: &self.draining,
            known: &self.known,
            rules: self.rules,
            fixed_leader: self.fixed_leader,
        }
    }

    fn change(&self, state: &mut PartitionState, event: Event) -> Result<(), Refusal> {
        *state = change(state, &event, &self.look())?;
        Ok(())
    }

    fn propose(&self, state: &mut PartitionState, isr: &[Member]) -> Result<(), Refusal> {
        self.change(state, proposal(&state.clone(), isr))
    }
}

fn at(node: NodeId, epoch: i64) -> Member {
    Member { node, epoch }
}

fn fresh(nodes: &[NodeId]) -> PartitionState {
    PartitionState::new(&nodes.iter().map(|node| at(*node, 10)).collect::<Vec<_>>())
}

fn nodes(members: &[Member]) -> Vec<NodeId> {
    members.iter().map(|member| member.node).collect()
}

fn proposal(state: &PartitionState, isr: &[Member]) -> Event {
    let leader = state.leader.unwrap();
    Event::AlterIsr(IsrProposal { leader, leader_epoch: state.leader_epoch, isr: isr.to_vec(), is_flushed: false })
}

fn leads(state: &PartitionState) -> Option<NodeId> {
    state.leader.map(|leader| leader.node)
}

#[test]
fn a_leader_that_only_a_person_changes_stays_while_it_is_away() {
    let mut world = World { fixed_leader: Some(1), ..World::of(2, 1) };
    let members = [1, 2].map(|node| Member { node, epoch: 10 });
    let mut state = PartitionState::new(&[members[1], members[0]]);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((state.leader, state.leader_epoch), (Some(members[0]), 1), "whoever is preferred");
    let before = state.clone();
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!(state, before, "nobody else leads, and it stays in sync");
    world.change(&mut state, Event::ElectPreferred).unwrap_err();
    world.start(1, 12, Some(Continued { epoch: 10, kept: Kept::Written }));
    world.stop(2);
    world.change(&mut state, Event::Settle).unwrap();
    let again = Member { node: 1, epoch: 12 };
    assert_eq!((state.leader, state.isr), (Some(again), vec![again]), "it goes on without its follower");
}

#[test]
fn a_dead_leader_is_followed_by_the_first_replica_that_is_in_sync() {
    let mut world = World::of(3, 1);
    let mut state = fresh(&[1, 2, 3]);
    world.propose(&mut state, &[at(1, 10), at(3, 10)]).unwrap();
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.isr), state.leader_epoch), (Some(3), vec![3], 1));
    assert!(state.elr.is_empty() && !state.recovering);
}

#[test]
fn an_isr_change_does_not_raise_the_leader_epoch() {
    let mut world = World::of(3, 1);
    let mut state = fresh(&[1, 2, 3]);
    world.propose(&mut state, &[at(1, 10), at(2, 10)]).unwrap();
    world.propose(&mut state, &[at(1, 10), at(2, 10), at(3, 10)]).unwrap();
    world.stop(3);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), state.leader_epoch, nodes(&state.isr)), (Some(1), 0, vec![1, 2]));
}

#[test]
fn last_replica_standing_is_not_the_only_one_that_may_lead() {
    // KIP-966: with the ISR alone, the one that died last would be the only candidate, even if its disk is gone
    let mut world = World::of(3, 2);
    let mut state = fresh(&[1, 2, 3]);
    for dies in [3, 2] {
        world.stop(dies);
        world.change(&mut state, Event::Settle).unwrap();
    }
    assert_eq!((nodes(&state.isr), nodes(&state.elr)), (vec![1], vec![2]));
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.isr), nodes(&state.elr)), (None, vec![], vec![1, 2]));
    assert_eq!(state.last_known_leader, Some(at(1, 10)));
    // 1 lost its data: 2 has all that was acknowledged
    world.start(1, 20, None);
    world.start(2, 21, Some(Continued { epoch: 10, kept: Kept::Written }));
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.isr), nodes(&state.elr)), (Some(2), vec![2], vec![]));
    assert!(!state.recovering && state.last_known_leader.is_none());
}

#[test]
fn a_node_in_a_new_life_is_no_candidate_by_its_old_membership() {
    // KIP-841, KIP-903: it came back before anybody noticed that it was gone
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1, 2]);
    world.start(2, 20, None);
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.elr)), (None, vec![1]));
}

#[test]
fn a_stale_follower_does_not_join_the_isr() {
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1, 2]);
    world.propose(&mut state, &[at(1, 10)]).unwrap();
    world.start(2, 20, None);
    let refused = world.propose(&mut state, &[at(1, 10), at(2, 10)]);
    assert_eq!(refused, Err(Refusal::IneligibleReplicas(vec![at(2, 10)])));
    world.draining.insert(2, 20);
    let refused = world.propose(&mut state, &[at(1, 10), at(2, 20)]);
    assert_eq!(refused, Err(Refusal::IneligibleReplicas(vec![at(2, 20)])));
    world.draining.clear();
    world.propose(&mut state, &[at(1, 10), at(2, 20)]).unwrap();
    assert_eq!(state.isr, [at(1, 10), at(2, 20)]);
}

#[test]
fn a_dead_member_that_stays_does_not_keep_another_from_being_shrunk() {
    let mut world = World::of(3, 1);
    let mut state = fresh(&[1, 2, 3]);
    world.stop(2);
    world.propose(&mut state, &[at(1, 10), at(2, 10)]).unwrap();
    assert_eq!(nodes(&state.isr), [1, 2]);
}

#[test]
fn a_restart_that_lost_nothing_goes_on_in_a_new_epoch() {
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1, 2]);
    world.start(1, 20, Some(Continued { epoch: 10, kept: Kept::Written }));
    world.start(2, 21, Some(Continued { epoch: 10, kept: Kept::Written }));
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!(state.isr, [at(1, 20), at(2, 21)]);
    assert_eq!((state.leader, state.leader_epoch), (Some(at(1, 20)), 1));
}

#[test]
fn a_machine_that_restarted_continues_only_what_was_flushed() {
    for (durability, elr) in [(Durability::Device, vec![]), (Durability::Written, vec![])] {
        let mut world = World::of(2, 1);
        world.rules.durability = durability;
        let mut state = fresh(&[1, 2]);
        world.stop(1);
        world.stop(2);
        world.change(&mut state, Event::Settle).unwrap();
        assert_eq!(nodes(&state.elr), [1, 2]);
        world.start(2, 20, Some(Continued { epoch: 10, kept: Kept::Flushed }));
        world.change(&mut state, Event::Settle).unwrap();
        match durability {
            Durability::Device => assert_eq!((leads(&state), nodes(&state.elr)), (Some(2), elr)),
            Durability::Written => assert_eq!((leads(&state), nodes(&state.elr)), (None, vec![1])),
        }
    }
}

/// It lost its power while the topic acknowledged before the flush, and came back when it did not any more.
#[test]
fn a_machine_that_restarted_continues_by_what_was_promised_then() {
    let mut world = World::of(2, 1);
    world.rules.durability = Durability::Written;
    let mut state = fresh(&[1, 2]);
    world.change(&mut state, Event::Settle).unwrap();
    world.stop(1);
    world.stop(2);
    world.change(&mut state, Event::Settle).unwrap();
    world.rules.durability = Durability::Device;
    world.start(2, 20, Some(Continued { epoch: 10, kept: Kept::Flushed }));
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.elr), state.written), (None, vec![1], true));
    world.start(1, 21, Some(Continued { epoch: 10, kept: Kept::Written }));
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), state.written), (Some(1), true), "a leader alone knows what is flushed");
    let taken_back = |state: &PartitionState| {
        let proposal =
            IsrProposal { leader: at(1, 21), leader_epoch: state.leader_epoch, isr: vec![at(1, 21)], is_flushed: true };
        Event::AlterIsr(proposal)
    };
    let mut undone = state.clone();
    let event = taken_back(&undone);
    world.change(&mut state, event).unwrap();
    assert!(!state.written);
    world.rules.durability = Durability::Written;
    let event = taken_back(&undone);
    world.change(&mut undone, event).unwrap();
    assert!(undone.written, "the topic asks for that again");
}

#[test]
fn the_last_known_leader_leads_again_if_nobody_else_can() {
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1]);
    world.start(1, 20, None);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((state.leader, state.isr.clone(), state.recovering), (Some(at(1, 20)), vec![at(1, 20)], true));
    world.propose(&mut state, &[at(1, 20)]).unwrap();
    assert!(!state.recovering);
}

#[test]
fn the_last_known_leader_does_not_lead_with_another_disk() {
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1]);
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    world.start(1, 20, None);
    world.known.insert(1, KnownNode { directory: Uuid::max(), rack: None, since: 20 });
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), state.last_known_leader), (None, Some(at(1, 10))));
    // a person may still say that an empty log is better than none
    world.change(&mut state, Event::ElectUnclean).unwrap();
    assert_eq!((leads(&state), state.recovering), (Some(1), true));
}

#[test]
fn an_unclean_leader_is_elected_only_when_asked_for_or_configured() {
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1, 2]);
    world.propose(&mut state, &[at(1, 10)]).unwrap();
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.elr)), (None, vec![1]));
    let mut asked = state.clone();
    world.change(&mut asked, Event::ElectUnclean).unwrap();
    assert_eq!(
        (leads(&asked), nodes(&asked.isr), nodes(&asked.elr), asked.recovering),
        (Some(2), vec![2], vec![], true)
    );
    assert_eq!(world.change(&mut asked, Event::ElectUnclean), Err(Refusal::ElectionNotNeeded));
    world.rules.unclean = UncleanElection::WhenNeeded;
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), state.leader_epoch, state.recovering), (Some(2), 2, true));
}

#[test]
fn high_watermark_does_not_hang_on_a_draining_replica() {
    // KAFKA-15021: it can be no member of any ISR from here on, so nobody waits for it to join
    let mut world = World::of(3, 2);
    let mut state = fresh(&[1, 2, 3]);
    world.draining.insert(1, 10);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.isr), state.leader_epoch), (Some(2), vec![2, 3], 1));
    let refused = world.propose(&mut state, &[at(2, 10), at(3, 10), at(1, 10)]);
    assert_eq!(refused, Err(Refusal::IneligibleReplicas(vec![at(1, 10)])));
}

#[test]
fn a_draining_leader_goes_on_with_its_isr_until_the_controller_moves_it() {
    let mut world = World::of(1, 1);
    let mut state = fresh(&[1]);
    world.draining.insert(1, 10);
    world.propose(&mut state, &[at(1, 10)]).unwrap();
    assert_eq!((leads(&state), state.leader_epoch), (Some(1), 0));
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), nodes(&state.elr)), (None, vec![1]));
    // it stays after all
    world.draining.clear();
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!((leads(&state), state.recovering), (Some(1), false));
}

#[test]
fn a_reassignment_goes_through_the_union_and_ends_when_all_that_it_adds_are_in_sync() {
    let world = World::of(4, 2);
    let mut state = fresh(&[1, 2]);
    world.change(&mut state, Event::Reassign(vec![3, 4])).unwrap();
    assert_eq!(
        (state.replicas.clone(), state.adding.clone(), state.removing.clone()),
        (vec![3, 4, 1, 2], vec![3, 4], vec![1, 2])
    );
    assert_eq!((leads(&state), state.leader_epoch), (Some(1), 0));
    world.propose(&mut state, &[at(1, 10), at(2, 10), at(3, 10)]).unwrap();
    assert!(state.is_reassigning());
    world.propose(&mut state, &[at(1, 10), at(2, 10), at(3, 10), at(4, 10)]).unwrap();
    assert_eq!((state.replicas.clone(), nodes(&state.isr)), (vec![3, 4], vec![3, 4]));
    assert_eq!((leads(&state), state.leader_epoch, state.is_reassigning()), (Some(3), 1, false));
}

#[test]
fn a_reassignment_that_drops_a_replica_raises_the_epoch_although_the_leader_stays() {
    let world = World::of(3, 1);
    let mut state = fresh(&[1, 2, 3]);
    world.change(&mut state, Event::Reassign(vec![1, 2])).unwrap();
    assert_eq!((leads(&state), state.leader_epoch, state.replicas), (Some(1), 1, vec![1, 2]));
}

#[test]
fn a_reassignment_does_not_end_below_the_least_isr() {
    let mut world = World::of(4, 2);
    let mut state = fresh(&[1, 2, 3]);
    world.stop(3);
    world.change(&mut state, Event::Settle).unwrap();
    world.change(&mut state, Event::Reassign(vec![1, 3])).unwrap();
    assert!(state.is_reassigning(), "only 1 would be in sync");
    world.start(3, 20, None);
    world.propose(&mut state, &[at(1, 10), at(2, 10), at(3, 20)]).unwrap();
    assert_eq!((state.replicas.clone(), nodes(&state.isr), state.leader_epoch), (vec![1, 3], vec![1, 3], 1));
}

#[test]
fn another_reassignment_takes_the_place_of_one_under_way() {
    let world = World::of(5, 1);
    let mut state = fresh(&[1, 2]);
    world.change(&mut state, Event::Reassign(vec![3, 4])).unwrap();
    world.change(&mut state, Event::Reassign(vec![4, 5])).unwrap();
    assert_eq!((state.adding.clone(), state.removing.clone()), (vec![4, 5], vec![3, 1, 2]));
    world.change(&mut state, Event::Reassign(vec![1, 2])).unwrap();
    assert_eq!((state.replicas, state.adding, state.removing), (vec![1, 2], vec![], vec![]));
}

#[test]
fn a_cancelled_reassignment_keeps_those_of_before() {
    let mut world = World::of(4, 1);
    let mut state = fresh(&[1, 2]);
    assert_eq!(world.change(&mut state, Event::CancelReassignment), Err(Refusal::NoReassignment));
    world.change(&mut state, Event::Reassign(vec![3, 4])).unwrap();
    world.propose(&mut state, &[at(1, 10), at(2, 10), at(3, 10)]).unwrap();
    let mut cancelled = state.clone();
    world.change(&mut cancelled, Event::CancelReassignment).unwrap();
    assert_eq!(
        (cancelled.replicas.clone(), nodes(&cancelled.isr), leads(&cancelled)),
        (vec![1, 2], vec![1, 2], Some(1))
    );
    // only the added one is left in sync: taking it back would lose records
    world.propose(&mut state, &[at(1, 10), at(3, 10)]).unwrap();
    world.start(1, 20, None);
    world.change(&mut state, Event::Settle).unwrap();
    assert_eq!(leads(&state), Some(3));
    assert_eq!(world.change(&mut state, Event::CancelReassignment), Err(Refusal::NeedsUncleanElection));
}

#[test]
fn the_preferred_leader_is_elected_only_once_it_is_in_sync() {
    let mut world = World::of(2, 1);
    let mut state = fresh(&[1, 2]);
    assert_eq!(world.change(&mut state, Event::ElectPreferred), Err(Refusal::ElectionNotNeeded));
    world.stop(1);
    world.change(&mut state, Event::Settle).unwrap();
    world.start(1, 20, None);
    assert_eq!(world.change(&mut state, Event::ElectPreferred), Err(Refusal::PreferredLeaderNotAvailable));
    world.propose(&mut state, &[at(2, 10), at(1, 20)]).unwrap();
    assert_eq!((leads(&state), state.leader_epoch), (Some(2), 1));
    world.change(&mut state, Event::ElectPreferred).unwrap();
    assert_eq!((leads(&state), state.leader_epoch), (Some(1), 2));
}

#[test]
fn proposals_of_the_wrong_epoch_or_leader_or_shape_are_refused() {
    let world = World::of(3, 1);
    let mut state = fresh(&[1, 2]);
    state.leader_epoch = 5;
    let propose = |leader, leader_epoch, isr: &[Member]| {
        let proposal = IsrProposal { leader, leader_epoch, isr: isr.to_vec(), is_flushed: false };
        change(&state, &Event::AlterIsr(proposal), &world.look()).unwrap_err()
    };
    assert_eq!(propose(at(1, 10), 4, &[at(1, 10)]), Refusal::FencedLeaderEpoch(5));
    assert_eq!(propose(at(1, 10), 6, &[at(1, 10)]), Refusal::UnknownLeaderEpoch(5));
    assert_eq!(propose(at(2, 10), 5, &[at(2, 10)]), Refusal::NotLeader);
    assert_eq!(propose(at(1, 9), 5, &[at(1, 9)]), Refusal::NotLeader);
    for isr in [&[at(2, 10)][..], &[at(1, 10), at(3, 10)], &[at(1, 10), at(2, 10), at(2, 11)], &[]] {
        assert!(matches!(propose(at(1, 10), 5, isr), Refusal::InvalidIsr(_)), "{isr:?}");
    }
}

#[test]
fn a_lower_min_isr_empties_the_elr() {
    let mut world = World::of(3, 2);
    let mut state = fresh(&[1, 2]);
    world.propose(&mut state, &[at(1, 10)]).unwrap();
    assert_eq!(nodes(&state.elr), [2]);
    world.rules.min_isr = 1;
    world.change(&mut state, Event::Settle).unwrap();
    assert!(state.elr.is_empty());
}

#[test]
fn what_an_answer_rests_on_is_named() {
    let mut world = World::of(3, 1);
    let before = fresh(&[1, 2, 3]);
    world.stop(1);
    let next = change(&before, &Event::Settle, &world.look()).unwrap();
    let required = requirements(&before, &next, &world.look());
    assert_eq!(required, [Requirement::Eligible(at(2, 10)), Requirement::Ended(at(1, 10))]);
    world.start(1, 20, None);
    let joined = change(&next, &proposal(&next, &[at(2, 10), at(3, 10), at(1, 20)]), &world.look()).unwrap();
    assert_eq!(requirements(&next, &joined, &world.look()), [Requirement::Eligible(at(1, 20))]);
}

#[derive(Clone, Debug)]
enum Step {
    Stop(NodeId),
    /// Starts, or starts again, with what it kept.
    Start(NodeId, Option<Kept>),
    Drain(NodeId),
    Stay(NodeId),
    Settle,
    /// Those of the replicas whose bit is set are in sync.
    AlterIsr(u8),
    Reassign(Vec<NodeId>),
    Cancel,
    Preferred,
    Unclean,
    /// The high watermark moves, if it may, by what the leader believes.
    Acknowledge,
    /// Another min.insync.replicas, which the leader hears of later.
    MinIsr(usize),
    LeaderHears,
    /// Another flush.messages, which the leader hears of later too.
    Topic(Durability),
    /// A node flushes what it has.
    Flush(NodeId),
    /// The leader says that all is flushed, if it is.
    TakeBack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 1..=4;
    let step = prop_oneof![
        3 => node.clone().prop_map(Step::Stop),
        3 => (node.clone(), prop_oneof![Just(None), Just(Some(Kept::Written)), Just(Some(Kept::Flushed))])
            .prop_map(|(node, kept)| Step::Start(node, kept)),
        1 => node.clone().prop_map(Step::Drain),
        1 => node.clone().prop_map(Step::Stay),
        6 => Just(Step::Settle),
        6 => any::<u8>().prop_map(Step::AlterIsr),
        1 => Just(vec![1, 2, 3, 4]).prop_shuffle().prop_flat_map(|all| (Just(all), 1..=4usize))
            .prop_map(|(all, count)| Step::Reassign(all[..count].to_vec())),
        1 => Just(Step::Cancel),
        1 => Just(Step::Preferred),
        6 => Just(Step::Acknowledge),
        1 => (1..=3usize).prop_map(Step::MinIsr),
        2 => Just(Step::LeaderHears),
        1 => prop_oneof![Just(Durability::Device), Just(Durability::Written)].prop_map(Step::Topic),
        2 => (1..=4).prop_map(Step::Flush),
        2 => Just(Step::TakeBack),
        1 => Just(Step::Unclean),
    ];
    prop::collection::vec(step, 1..60)
}

/// One partition's history, and who has all that was acknowledged.
struct History {
    world: World,
    state: PartitionState,
    complete: Vec<NodeId>,
    /// Those that flushed all of it.
    flushed: Vec<NodeId>,
    /// What the topic asks for as the leader knows it.
    leader_durability: Durability,
    /// min.insync.replicas as the leader knows it.
    leader_min_isr: usize,
    lives: i64,
    /// What each node remembers of itself.
    last_lives: BTreeMap<NodeId, i64>,
}

impl History {
    fn new(durability: Durability) -> Self {
        let mut world = World::of(4, 2);
        world.rules.durability = durability;
        Self {
            world,
            state: fresh(&[1, 2, 3]),
            complete: vec![1, 2, 3],
            flushed: vec![1, 2, 3],
            leader_durability: durability,
            leader_min_isr: 2,
            lives: 100,
            last_lives: BTreeMap::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Stop(node) => self.world.stop(*node),
            Step::Start(node, kept) => self.start(*node, *kept),
            Step::Drain(node) => {
                if let Some(life) = self.world.nodes.get(node) {
                    self.world.draining.insert(*node, life.epoch);
                }
            }
            Step::Stay(node) => drop(self.world.draining.remove(node)),
            Step::Settle => self.change(Event::Settle),
            Step::AlterIsr(bits) => self.alter_isr(*bits),
            Step::Reassign(replicas) => self.change(Event::Reassign(replicas.clone())),
            Step::Cancel => self.change(Event::CancelReassignment),
            Step::Preferred => self.change(Event::ElectPreferred),
            Step::Unclean => self.change(Event::ElectUnclean),
            Step::Acknowledge => self.acknowledge(),
            Step::MinIsr(min_isr) => self.world.rules.min_isr = *min_isr,
            Step::LeaderHears => {
                self.leader_min_isr = self.world.rules.min_isr;
                self.leader_durability = self.world.rules.durability;
            }
            Step::Topic(durability) => self.world.rules.durability = *durability,
            Step::Flush(node) if self.complete.contains(node) => self.flushed.push(*node),
            Step::Flush(_) => {}
            Step::TakeBack => self.take_back(),
        }
    }

    fn start(&mut self, node: NodeId, kept: Option<Kept>) {
        self.lives += 1;
        let last = self.last_lives.insert(node, self.lives).unwrap_or(10);
        let lost = match kept {
            None => true,
            Some(Kept::Flushed) => !self.flushed.contains(&node),
            Some(Kept::Written) => false,
        };
        if lost {
            self.complete.retain(|other| *other != node);
            self.flushed.retain(|other| *other != node);
        }
        self.world.start(node, self.lives, kept.map(|kept| Continued { epoch: last, kept }));
    }

    fn alter_isr(&mut self, bits: u8) {
        let Some(leader) = self.state.leader else { return };
        let chosen = self.state.replicas.iter().enumerate().filter(|(at, _)| bits & 1 << at != 0);
        let lives = chosen.filter_map(|(_, node)| self.world.nodes.get(node)).map(|node| node.member());
        let mut isr: Vec<_> = lives.filter(|member| member.node != leader.node).collect();
        isr.push(leader);
        // those that join have caught up
        if self.world.look().is_present(leader) && self.complete.contains(&leader.node) {
            self.complete.extend(nodes(&isr));
            if self.promise() == Durability::Device {
                self.flushed.extend(nodes(&isr));
            }
        }
        self.change(proposal(&self.state.clone(), &isr));
    }

    fn acknowledge(&mut self) {
        let state = &self.state;
        let min_isr = self.leader_min_isr.min(state.replicas.len());
        // a leader that was elected unclean has lost what it lost: nothing is promised of it
        if state.leader.is_some() && state.elr.is_empty() && state.isr.len() >= min_isr {
            self.complete = nodes(&state.isr);
            self.flushed = if self.promise() == Durability::Device { self.complete.clone() } else { Vec::new() };
        }
    }

    /// What the leader waits for before it acknowledges.
    fn promise(&self) -> Durability {
        if self.state.written { self.leader_durability } else { Durability::Device }
    }

    fn take_back(&mut self) {
        let state = &self.state;
        let is_flushed = state.isr.iter().all(|member| self.flushed.contains(&member.node)) && state.elr.is_empty();
        if let Some(leader) = state.leader
            && is_flushed
            && self.leader_durability == Durability::Device
        {
            let (leader_epoch, isr) = (state.leader_epoch, state.isr.clone());
            self.change(Event::AlterIsr(IsrProposal { leader, leader_epoch, isr, is_flushed }));
        }
    }

    fn change(&mut self, event: Event) {
        let before = self.state.clone();
        let Ok(next) = change(&before, &event, &self.world.look()) else { return };
        self.check(&before, &next, &event);
        self.state = next;
    }

    fn check(&mut self, before: &PartitionState, next: &PartitionState, event: &Event) {
        let isr = nodes(&next.isr);
        let all = format!("{event:?}\nfrom {before:?}\nto   {next:?}\ncomplete {:?}", self.complete);
        assert!(isr.iter().all(|node| next.replicas.contains(node)), "ISR within replicas: {all}");
        assert!(next.leader.is_none_or(|leader| next.isr.contains(&leader)), "leader in ISR: {all}");
        assert!(next.leader.is_some() || isr.is_empty(), "without a leader nobody is in sync: {all}");
        assert!(next.elr.iter().all(|member| !isr.contains(&member.node)), "ELR apart from ISR: {all}");
        assert!(next.elr.iter().all(|member| next.replicas.contains(&member.node)), "ELR within replicas: {all}");
        let min_isr = self.world.rules.min_isr.min(next.replicas.len());
        assert!(isr.len() < min_isr || next.elr.is_empty(), "ELR only while the ISR is small: {all}");
        let leader_changed = next.leader != before.leader;
        let dropped = before.replicas.iter().any(|node| !next.replicas.contains(node));
        let epochs = next.leader_epoch - before.leader_epoch;
        assert_eq!(epochs, i32::from(leader_changed || dropped), "leader epoch: {all}");
        assert!(next.last_known_leader.is_none() || next.leader.is_none(), "{all}");
        assert!(next.adding.iter().chain(&next.removing).all(|node| next.replicas.contains(node)), "{all}");
        for required in requirements(before, next, &self.world.look()) {
            let holds = match required {
                Requirement::Eligible(member) => self.world.look().is_eligible(member),
                Requirement::Ended(member) => {
                    self.world.nodes.get(&member.node).is_none_or(|one| one.epoch != member.epoch)
                }
            };
            assert!(holds, "{required:?}: {all}");
        }
        let settled = change(next, &Event::Settle, &self.world.look()).unwrap();
        // an election may let a reassignment complete, which is another step
        let again = change(&settled, &Event::Settle, &self.world.look()).unwrap();
        assert_eq!(again, settled, "what was settled stays so: {all}");
        if leader_changed && let Some(leader) = next.leader {
            let mut members = before.isr.iter().chain(&before.elr);
            let clean = members
                .any(|member| self.world.look().life(*member, before.trust(&self.world.rules)) == Life::GoesOn(leader));
            if next.recovering && !clean {
                self.complete = vec![leader.node]; // what was lost is lost
            }
            self.flushed.push(leader.node); // before it leads
            assert!(self.complete.contains(&leader.node), "who leads has all that was acknowledged: {all}");
        }
    }
}

proptest! {
    #[test]
    fn who_leads_has_all_that_was_acknowledged(steps in steps(), written in any::<bool>()) {
        let durability = if written { Durability::Written } else { Durability::Device };
        let mut history = History::new(durability);
        for step in &steps {
            history.take(step);
        }
    }
}
