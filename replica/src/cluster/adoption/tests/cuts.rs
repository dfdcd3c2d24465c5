//! Adoptions that are cut short anywhere, and run again: whatever was written, and whatever of it was answered.

use super::*;
use crate::cluster::{
    memory::{MemoryWatch, OverMemory},
    model::NodeState,
    store::StoreError,
};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It is not done, and the process ends.
    Before,
    /// It is done, and the process ends.
    After,
    /// It is done, and nobody hears.
    Unheard,
}

/// Writes, of the store or the directory, that are left until one is cut.
#[derive(Debug)]
struct Power {
    left: usize,
    cut: Cut,
    was_cut: bool,
    is_off: bool,
}

impl Power {
    fn call(&mut self) -> Option<Cut> {
        if self.is_off {
            return Some(Cut::Before);
        }
        let is_cut = self.left == 0 && !self.was_cut;
        self.left = self.left.saturating_sub(1);
        self.was_cut |= is_cut;
        self.is_off = is_cut && self.cut != Cut::Unheard;
        is_cut.then_some(self.cut)
    }
}

/// The way to the store of a process that may be cut short.
struct Way {
    client: Client,
    power: Arc<Mutex<Power>>,
}

impl OverMemory for Way {
    type Seen = MemoryWatch;

    fn call<T>(&self, body: impl FnOnce(&mut Memory) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let lost = || Err(StoreError::Away("cut".to_owned()));
        let mut power = self.power.lock().unwrap();
        if power.is_off {
            return lost();
        }
        let before = self.client.call(|memory| Ok(memory.clone()))?;
        let done = self.client.call(body);
        // what only reads is as well cut with the next call
        if self.client.call(|memory| Ok(memory.revision()))? == before.revision() {
            return done;
        }
        match power.call() {
            None => done,
            Some(Cut::Before) => {
                self.client.call(|memory| {
                    *memory = before;
                    Ok(())
                })?;
                lost()
            }
            Some(Cut::After | Cut::Unheard) => lost(),
        }
    }

    fn seen_from(&self, from: i64) -> MemoryWatch {
        self.client.seen_from(from)
    }
}

#[derive(Clone, Debug)]
struct Node {
    id: NodeId,
    kept: Kept,
    log: (i32, i64),
    /// Of the topic that came after the backup.
    partitions: usize,
    follows: bool,
}

/// A process of it.
struct Process<'a> {
    node: &'a mut Node,
    power: Arc<Mutex<Power>>,
    has_logs: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Cut,
    By(Problem),
}

impl From<Problem> for Ended {
    fn from(problem: Problem) -> Self {
        Self::By(problem)
    }
}

impl Shell for Process<'_> {
    type Error = Ended;

    fn keep(&mut self, kept: &Kept) -> Result<(), Ended> {
        let cut = self.power.lock().unwrap().call();
        if cut != Some(Cut::Before) {
            self.node.kept = kept.clone();
        }
        match cut {
            None | Some(Cut::Unheard) => Ok(()),
            Some(_) => Err(Ended::Cut),
        }
    }

    fn open(&mut self, logs_count: bool) -> Result<(), Ended> {
        self.has_logs = logs_count;
        Ok(())
    }

    fn topics(&self) -> BTreeMap<TopicId, ClaimedTopic> {
        let late = (Uuid::from_u128(2), topic("late", &vec![known(0, None); self.node.partitions]));
        BTreeMap::from([(ORDERS, topic("orders", &[known(6, self.has_logs.then_some(self.node.log))])), late])
    }

    fn wait(&mut self, wait: Wait<'_>) -> Result<bool, Ended> {
        match wait {
            Wait::Answer(_) | Wait::Rest if !self.power.lock().unwrap().is_off => Ok(true),
            Wait::Claims => Ok(false),
            _ => Err(Ended::Cut),
        }
    }

    fn tell(&mut self, told: Told<'_>) -> Result<(), Ended> {
        self.node.follows |= matches!(told, Told::Late(_));
        Ok(())
    }
}

const NO_CUT: (usize, Cut) = (usize::MAX, Cut::Before);

fn is_decided(adoption: &Adoption) -> bool {
    !adoption.image().being_adopted && adoption.image().adopted.times > 0
}

struct World {
    client: Client,
    nodes: Vec<Node>,
    was_cut: bool,
}

impl World {
    /// Nodes 1, 2, 3 and what was restored of their store.
    fn new(logs: [(i32, i64); 3]) -> Self {
        let nodes = logs.into_iter().zip(1_i32..).map(|(log, id)| {
            let remembered = Some(Remembered { store: 6, revision: 500 + i64::from(id) });
            let directory = Uuid::from_u128(u128::from(id.unsigned_abs()));
            Node { id, kept: Kept { directory, remembered, ..kept(10, 0) }, log, partitions: 1, follows: false }
        });
        Self { client: store(), nodes: nodes.collect(), was_cut: false }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).unwrap()
    }

    fn run(&mut self, id: NodeId, without: &[NodeId], (left, cut): (usize, Cut)) -> Result<Ending, Ended> {
        let power = Arc::new(Mutex::new(Power { left, cut, was_cut: false, is_off: false }));
        let mut store = Way { client: self.client.clone(), power: power.clone() };
        let node = self.node(id);
        let kept = node.kept.clone();
        let mut shell = Process { node, power: power.clone(), has_logs: false };
        let (store, shell) = (&mut store, &mut shell);
        let adopter =
            Adopter { store, shell, node: id, rack: None, kept, without, dry_run: false, may_lose_records: true };
        let ended = adopter.run();
        self.was_cut = power.lock().unwrap().was_cut;
        self.check();
        ended
    }

    fn is_decided(&mut self) -> bool {
        is_decided(&adoption(&mut self.client))
    }

    /// Nobody accepts a store that is not adopted yet, unless what it has is said.
    fn check(&mut self) {
        let adoption = adoption(&mut self.client);
        for node in &self.nodes {
            let accepts = node.kept.remembered.is_some_and(|seen| seen.store == 7);
            assert!(!accepts || is_decided(&adoption) || adoption.claim(node.id).is_some(), "{node:?}");
        }
    }

    /// Has a node live.
    fn start(&mut self, id: NodeId) {
        let state = NodeState {
            id,
            epoch: 0,
            incarnation: Uuid::from_u128(9),
            directory: self.node(id).kept.directory,
            machine: String::new(),
            rack: None,
            endpoints: Vec::new(),
            peer: String::new(),
            shards: 1,
            version: String::new(),
            continues: None,
            defaults: None,
        };
        write(&mut self.client, &[Transaction::new().put(keys::node(id), keys::encode_node(&state))]);
    }

    /// Runs it until there is nothing to do any more.
    fn rerun(&mut self, id: NodeId) {
        for _ in 0..3 {
            match self.run(id, &[], NO_CUT) {
                Err(Ended::By(Problem::NotRestored)) => return,
                Ok(Ending::Claimed) if !self.is_decided() => return,
                _ => {}
            }
        }
        panic!("node {id} does not get on: {:?}", self.nodes);
    }

    /// All nodes may be started, and who has the newest log is in sync with the life that its directory has.
    fn check_end(&mut self, newest: NodeId) {
        let adoption = adoption(&mut self.client);
        for node in &self.nodes {
            assert_eq!(adoption.standing(node.id, &node.kept), Standing::Started, "{node:?}");
            assert!(!node.follows, "its records were given up: {node:?}");
            assert_eq!(adoption.image().adopted.by.get(&node.id), Some(&node.kept.epoch), "{node:?}");
            assert_eq!(adoption.image().known[&node.id].directory, node.kept.directory);
            assert_eq!(node.kept.claimed.unwrap().heard.revision, 500 + i64::from(node.id), "{node:?}");
        }
        let life = member(newest, self.node(newest).kept.epoch);
        assert_eq!(partition(adoption.image(), "orders").isr, [life]);
        assert!(adoption.image().topic("late").is_some());
    }
}

/// What comes after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is run again at once.
    Again,
    /// The others adopt first, and are started if all is decided.
    Others,
    /// The others do without it.
    Without,
}

/// Whether there was something to cut.
fn cut_once(mut world: World, (nodes, victim): ([NodeId; 3], NodeId), at: (usize, Cut), then: Then) -> bool {
    let mut was_cut = false;
    for id in nodes {
        let ended = world.run(id, &[], if id == victim { at } else { NO_CUT });
        if id == victim {
            was_cut = world.was_cut;
            if then == Then::Again {
                world.rerun(id);
            }
        } else {
            assert!(ended.is_ok(), "{ended:?}");
        }
    }
    let others = || nodes.into_iter().filter(move |id| *id != victim);
    for id in others() {
        if then == Then::Without && !world.is_decided() {
            assert!(world.run(id, &[victim], NO_CUT).is_ok());
        }
    }
    if world.is_decided() {
        others().for_each(|id| world.start(id));
    }
    world.rerun(victim);
    assert!(world.is_decided(), "{:?}", world.nodes);
    if then != Then::Without {
        world.check_end(2);
    }
    was_cut
}

#[test]
fn whatever_cuts_a_node_short_nothing_is_lost_and_nobody_is_stuck() {
    for (nodes, victim) in [([1, 2, 3], 1), ([1, 2, 3], 2), ([1, 2, 3], 3), ([1, 3, 2], 2)] {
        for cut in [Cut::Before, Cut::After, Cut::Unheard] {
            for then in [Then::Again, Then::Others, Then::Without] {
                let cut_once = |left: &usize| {
                    let world = World::new([(4, 900), (6, 50), (6, 49)]);
                    cut_once(world, (nodes, victim), (*left, cut), then)
                };
                let cuts = (0..1000).take_while(cut_once).count();
                assert!((6..1000).contains(&cuts), "{cuts} {nodes:?} {victim} {cut:?} {then:?}");
            }
        }
    }
}

/// Of another store, which is lost too.
#[test]
fn what_was_accepted_before_does_not_stand_for_what_is_now() {
    for left in 0..6 {
        let mut world = World::new([(4, 900), (6, 50), (6, 49)]);
        for node in &mut world.nodes {
            let claimed = Claimed { times: 1, heard: heard(500 + i64::from(node.id)) };
            (node.kept.claimed, node.kept.has_accepted) = (Some(claimed), true);
        }
        assert!(cut_once(world, ([3, 1, 2], 3), (left, Cut::After), Then::Others));
    }
}

/// It was told to run again, though all was decided.
#[test]
fn who_decides_and_hears_no_answer_looks_what_came_of_it() {
    // a claim is six writes
    let unheard = |left| {
        let mut world = World::new([(4, 900), (6, 50), (6, 49)]);
        for id in 1..=2 {
            assert!(world.run(id, &[], NO_CUT).is_ok());
        }
        let ended = world.run(3, &[], (left, Cut::Unheard));
        world.was_cut.then_some(ended)
    };
    let ends: Vec<_> = (6..).map_while(unheard).collect();
    assert!(ends.len() > 2 && ends.iter().all(|ended| *ended == Ok(Ending::Decided)), "{ends:?}");
}

/// It says what it knows of topics, and nothing of logs: they may be longer than what others have, and lack what was acknowledged.
#[test]
fn a_directory_that_gave_records_up_is_not_in_sync_whatever_it_has() {
    let mut world = World::new([(4, 900), (6, 50), (9, 999)]);
    world.node(3).kept.epoch = 0;
    for id in [3, 1, 2] {
        assert!(world.run(id, &[], NO_CUT).is_ok());
    }
    world.check_end(2);
    assert_eq!(world.node(3).kept.epoch, 0, "it continues no life");
}

/// Adopted once by all, of whom only node 1 was started. It is lost with that store, and the others adopt the same backup.
#[test]
fn nodes_that_were_not_started_since_an_adoption_know_of_it_in_the_next() {
    let mut world = World::new([(4, 9); 3]);
    for id in 1..=3 {
        assert!(world.run(id, &[], NO_CUT).is_ok());
    }
    let first = partition(adoption(&mut world.client).image(), "orders").leader_epoch;
    world.client = store();
    for node in &mut world.nodes {
        node.kept.remembered = Some(Remembered { store: 5, revision: 40 });
    }
    // it knows of the first, as it was started
    (world.nodes[0].kept.adopted, world.nodes[0].kept.claimed) = (1, None);
    for id in 2..=3 {
        assert!(world.run(id, &[1], NO_CUT).is_ok());
    }
    let read = adoption(&mut world.client);
    assert_eq!(read.image().adopted.times, 2);
    assert!(partition(read.image(), "orders").leader_epoch >= first + EPOCHS_SKIPPED, "it is not led in again");
    assert_eq!(read.standing(1, &world.nodes[0].kept), Standing::Late);
    for node in &world.nodes[1..] {
        assert_eq!(node.kept.claimed.unwrap().heard.revision, 500 + i64::from(node.id), "it lived in no store since");
    }
}

/// The wrong --node-id made one node's logs those of another one, whose own were never heard of.
#[test]
fn a_claim_of_another_directory_is_not_replaced() {
    let mut world = World::new([(4, 9), (6, 50), (4, 9)]);
    assert_eq!(world.run(2, &[], NO_CUT), Ok(Ending::Claimed));
    let own = std::mem::replace(&mut world.node(2).kept.directory, Uuid::from_u128(77));
    assert_eq!(world.run(2, &[], NO_CUT), Err(Ended::By(Problem::OtherDirectory(2))));
    world.node(2).kept.directory = own;
    assert_eq!(world.run(2, &[], NO_CUT), Ok(Ending::Claimed), "and its own is");
}

#[test]
fn nothing_is_claimed_while_a_node_runs() {
    let mut world = World::new([(4, 9); 3]);
    world.start(2);
    let revision = adoption(&mut world.client).image().revision;
    assert_eq!(world.run(1, &[], NO_CUT), Err(Ended::Cut));
    assert_eq!(adoption(&mut world.client).image().revision, revision);
}

/// A topic never gets fewer partitions: the node was started in vain for ever. And such that were made anew have other records in
/// the same epochs.
#[test]
fn a_late_node_with_partitions_of_its_own_does_not_follow() {
    let mut world = World::new([(4, 9); 3]);
    for id in 1..=2 {
        assert!(world.run(id, &[3], NO_CUT).is_ok());
    }
    let before = world.node(3).kept.clone();
    world.node(3).partitions = 3;
    let refused = |world: &mut World, of: &str| {
        let refused = Err(Ended::By(Problem::HasMorePartitions(of.to_owned())));
        assert_eq!((world.run(3, &[], NO_CUT), &world.node(3).kept), (refused, &before));
    };
    refused(&mut world, "late-1, late-2");
    let late = Uuid::from_u128(2);
    let stored = StoredTopic { name: "late".to_owned(), partitions: 2, configs: BTreeMap::new(), forming: false };
    let anew = PartitionState::new(&[member(1, 10)]);
    let grown = Transaction::new().put(keys::topic(late), keys::encode_topic(&stored));
    write(&mut world.client, &[grown.put(keys::partition(late, 1), keys::encode_partition(&anew))]);
    refused(&mut world, "late-1, late-2");
    world.node(3).partitions = 1;
    assert_eq!(world.run(3, &[], NO_CUT), Ok(Ending::Followed));
    assert_ne!(world.node(3).kept.directory, before.directory);
}
