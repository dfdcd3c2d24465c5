//! One node's life in the cluster: a lease, the node's key under it, and what ends it.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{ClusterIdentity, Options, Work};
use crate::cluster::{
    image::{Image, decided_by},
    keys,
    model::{Continued, Kept, KnownNode, Member, NodeState},
    store::{Compare, LeaseId, Operation, Outcome, StoreError, Transaction},
};

/// How often a lease is kept alive.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long another process may hold this node's id before this one gives up, beyond a lease: its own would have ended long since.
const HELD_BY_OTHER_MAX: Duration = Duration::from_secs(12);

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step {
    Work(Work),
    Transact(Transaction),
    /// And until when that may be trusted to last.
    Registered(Member, Instant),
    Lost,
    Waiting(String),
    Fatal(String),
}

#[derive(Debug)]
enum State {
    /// No lease, and when to ask for one.
    Away(Instant),
    /// A lease was asked for, and when.
    Granting(Instant),
    /// Under a lease.
    Held(Held),
    /// Left for good.
    Left,
}

#[derive(Debug)]
struct Held {
    lease: LeaseId,
    /// Of this life alone.
    incarnation: Uuid,
    member: Option<Member>,
    /// Nobody can have taken the life away before by the clock of this node, or nobody can tell and it was awake all the while.
    trusted_until: Instant,
    keep_alive_at: Instant,
    keeping_alive: bool,
    /// A transaction is under way.
    writing: bool,
    write_at: Instant,
}

/// The life.
#[derive(Debug)]
pub(super) struct Registration {
    state: State,
    wants_to_leave: bool,
    held_by_other_since: Option<Instant>,
}

impl Registration {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Away(now), wants_to_leave: false, held_by_other_since: None }
    }

    pub(super) fn member(&self) -> Option<Member> {
        match &self.state {
            State::Held(held) => held.member,
            State::Away(_) | State::Granting(_) | State::Left => None,
        }
    }

    /// The present life and its lease.
    pub(super) fn held(&self) -> Option<(Member, LeaseId)> {
        match &self.state {
            State::Held(held) => Some((held.member?, held.lease)),
            State::Away(_) | State::Granting(_) | State::Left => None,
        }
    }

    /// This node wants to leave: it says so as soon as, and whenever, it lives.
    pub(super) fn drain(&mut self) {
        self.wants_to_leave = true;
    }

    /// Leaves; the lease that is to end with it.
    pub(super) fn leave(&mut self) -> Option<LeaseId> {
        match std::mem::replace(&mut self.state, State::Left) {
            State::Held(held) => Some(held.lease),
            State::Away(_) | State::Granting(_) | State::Left => Some(0),
        }
    }

    pub(super) fn on_granted(&mut self, lease: Result<LeaseId, StoreError>, options: &Options, now: Instant) {
        let State::Granting(asked) = self.state else { return };
        self.state = match lease {
            Err(_) => State::Away(now + RETRY_AFTER),
            Ok(lease) => State::Held(Held {
                lease,
                incarnation: Uuid::nil(),
                member: None,
                trusted_until: asked + options.lease,
                keep_alive_at: now + KEEP_ALIVE_EVERY,
                keeping_alive: false,
                writing: false,
                write_at: now,
            }),
        };
    }

    /// Until when the life may be trusted to last, if the answer says so. An etcd that does not answer elects nobody either: who
    /// is awake goes on. Who slept for longer than its lease does not know what happened meanwhile, and has to be told.
    pub(super) fn on_kept_alive(
        &mut self,
        lease: LeaseId,
        sent: Instant,
        result: &Result<i64, StoreError>,
        options: &Options,
        now: Instant,
    ) -> Option<Instant> {
        let State::Held(held) = &mut self.state else { return None };
        if held.lease != lease {
            return None;
        }
        held.keeping_alive = false;
        match result {
            Ok(_) => {
                held.keep_alive_at = sent + KEEP_ALIVE_EVERY;
                held.trusted_until = held.trusted_until.max(sent + options.lease);
                held.member.map(|_| held.trusted_until)
            }
            Err(StoreError::LeaseOver) => {
                // the image will show it too; a new life need not wait for that
                held.lease = 0;
                None
            }
            Err(_) => {
                held.keep_alive_at = now + RETRY_AFTER;
                let was_awake = now < held.trusted_until;
                was_awake.then(|| {
                    held.trusted_until = now + options.lease;
                    held.member.map(|_| held.trusted_until)
                })?
            }
        }
    }

    pub(super) fn on_transacted(&mut self, result: &Result<Outcome, StoreError>, now: Instant) {
        let State::Held(held) = &mut self.state else { return };
        held.writing = false;
        // the image shows what was done; until then nothing is tried again
        held.write_at = now + RETRY_AFTER;
        if matches!(result, Err(StoreError::LeaseOver)) {
            held.lease = 0;
        }
    }

    /// What is to be done; without an image that follows the store, only leases are looked after.
    pub(super) fn advance(&mut self, image: Option<&Image>, options: &mut Options, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        match &mut self.state {
            State::Left | State::Granting(_) => return steps,
            State::Away(at) if *at <= now && image.is_some() => {
                self.state = State::Granting(now);
                return vec![Step::Work(Work::Grant(options.lease))];
            }
            State::Away(_) => return steps,
            State::Held(held) if held.lease == 0 => {
                let member = held.member;
                self.state = State::Away(now);
                steps.extend(member.map(|member| lose(member, options)));
                steps.extend(self.advance(image, options, now));
                return steps;
            }
            State::Held(held) => {
                if !held.keeping_alive && held.keep_alive_at <= now {
                    held.keeping_alive = true;
                    steps.push(Step::Work(Work::KeepAlive(held.lease)));
                }
            }
        }
        if let Some(image) = image {
            self.follow(image, options, now, &mut steps);
        }
        steps
    }

    fn follow(&mut self, image: &Image, options: &mut Options, now: Instant, steps: &mut Vec<Step>) {
        let State::Held(held) = &mut self.state else { return };
        let node = image.nodes.get(&options.node.id);
        if let Some(member) = held.member {
            if node.is_none_or(|node| node.epoch != member.epoch) {
                steps.push(lose(member, options));
                // whatever else was under the lease goes at once, so that the next life begins with nothing
                steps.push(Step::Work(Work::Revoke(held.lease)));
                self.state = State::Away(now);
                steps.extend(self.advance(Some(image), options, now));
            } else if self.wants_to_leave
                && image.draining.get(&member.node) != Some(&member.epoch)
                && held.can_write(now)
            {
                held.writing = true;
                steps.push(Step::Transact(draining(member, held.lease)));
            }
            return;
        }
        if let Some(node) = node.filter(|node| node.incarnation == held.incarnation) {
            held.member = Some(node.member());
            self.held_by_other_since = None;
            return steps.push(Step::Registered(node.member(), held.trusted_until));
        }
        if !held.can_write(now) {
            return;
        }
        let step = match check_cluster(image, options.cluster) {
            Err(text) => Err(Step::Fatal(text)),
            Ok(_) if is_left_out(image, options) => Err(Step::Fatal(
                "the other nodes adopted the etcd, which was restored from a backup, without this one: run `millrace cluster \
                 adopt` on this node alone, while they run"
                    .to_owned(),
            )),
            Ok(_) if image.being_adopted => Err(Step::Waiting(being_adopted(image))),
            Ok(Some(transaction)) => Ok(transaction),
            Ok(None) => match node {
                None => Ok(registration(image, held, options)),
                Some(node) if is_former_life(node, options) => {
                    // the lock on the directory proves that the former process is dead
                    let former = Compare::Created(keys::node(node.id), node.epoch);
                    Ok(Transaction::new().when(former).delete(keys::node(node.id)).delete(keys::draining(node.id)))
                }
                Some(node) => {
                    let held_for = now.duration_since(*self.held_by_other_since.get_or_insert(now));
                    Err(held_by_other(node, held_for, options.lease))
                }
            },
        };
        match step {
            Ok(transaction) => {
                held.writing = true;
                steps.push(Step::Transact(transaction));
            }
            Err(step) => {
                held.write_at = now + RETRY_AFTER;
                steps.push(step);
            }
        }
    }
}

impl Held {
    fn can_write(&self, now: Instant) -> bool {
        !self.writing && self.write_at <= now
    }
}

/// The life is over; the next one of this process continues it, as its log lost nothing.
fn lose(member: Member, options: &mut Options) -> Step {
    options.node.continues = Some(Continued { epoch: member.epoch, kept: Kept::Written });
    Step::Lost
}

fn is_former_life(node: &NodeState, options: &Options) -> bool {
    node.directory == options.node.directory && node.machine == options.node.machine
}

/// Whether the cluster was adopted without what this node has, since it was a member last. What only it has would be deleted.
fn is_left_out(image: &Image, options: &Options) -> bool {
    // of what was promised nothing the claim names no life either
    let last = options.node.continues.map_or(0, |life| life.epoch);
    let took_part = image.adopted.by.get(&options.node.id) == Some(&last);
    !took_part && options.adoptions_known.is_some_and(|known| known < image.adopted.times)
}

fn held_by_other(node: &NodeState, held_for: Duration, lease: Duration) -> Step {
    let whose = format!("node id {} is held by a process with another data directory, {}", node.id, node.peer);
    match held_for >= lease + HELD_BY_OTHER_MAX {
        true => Step::Fatal(format!("{whose}: give one of the two another --node-id, or stop the other")),
        false => Step::Waiting(format!("{whose}: waiting for its lease to end")),
    }
}

/// Whoever registered would be elected by what a backup says, or have topics deleted that it has forgotten.
fn being_adopted(image: &Image) -> String {
    let said: Vec<_> = image.adopting.iter().map(ToString::to_string).collect();
    let who = if said.is_empty() { "no node has".to_owned() } else { format!("only nodes {} have", said.join(",")) };
    format!(
        "etcd was restored from a backup, and {who} said what they have: run `millrace cluster adopt` on the others, with \
         --without ID if the data of one is lost"
    )
}

/// Founds the cluster, if there is none. The error says why this node cannot be its member.
fn check_cluster(image: &Image, wanted: ClusterIdentity) -> Result<Option<Transaction>, String> {
    let (ClusterIdentity::Fixed(id) | ClusterIdentity::Any(id)) = wanted;
    match image.cluster_id {
        None => {
            let absent = Compare::Created(keys::CLUSTER.to_owned(), 0);
            Ok(Some(Transaction::new().when(absent).put(keys::CLUSTER.to_owned(), keys::encode_uuid(id))))
        }
        Some(there) if there != id && matches!(wanted, ClusterIdentity::Fixed(_)) => Err(format!(
            "this data directory belongs to the cluster {id}, and etcd holds {there}: check --cluster and --etcd, or start with \
             an empty directory"
        )),
        Some(_) => Ok(None),
    }
}

/// Writes the node down under its lease. Whatever a former life left is taken away with it.
fn registration(image: &Image, held: &mut Held, options: &mut Options) -> Transaction {
    if held.incarnation.is_nil() {
        held.incarnation = (options.ids)();
    }
    let node = &options.node;
    let state = NodeState {
        id: node.id,
        epoch: 0,
        incarnation: held.incarnation,
        directory: node.directory,
        machine: node.machine.clone(),
        rack: node.rack.clone(),
        endpoints: node.endpoints.clone(),
        peer: node.peer.clone(),
        shards: node.shards,
        version: node.version.clone(),
        continues: node.continues,
        defaults: Some(decided_by(&options.topic_defaults)),
    };
    let known = KnownNode { directory: node.directory, rack: node.rack.clone(), since: 0 };
    let before = image.known.get(&node.id);
    let is_known = before.is_some_and(|before| (&before.directory, &before.rack) == (&known.directory, &known.rack));
    let mut transaction = Transaction::new()
        .when(Compare::Created(keys::node(node.id), 0))
        .when(Compare::Created(keys::ADOPTING.to_owned(), 0))
        .when(Compare::Modified(keys::known(node.id), before.map_or(0, |before| before.since)))
        .delete(keys::draining(node.id));
    transaction.operations.push(Operation::DeletePrefix(keys::reports(node.id)));
    let put = Operation::Put { key: keys::node(node.id), value: keys::encode_node(&state), lease: held.lease };
    transaction.operations.push(put);
    match is_known {
        true => transaction,
        false => transaction.put(keys::known(node.id), keys::encode_known(&known)),
    }
}

fn draining(member: Member, lease: LeaseId) -> Transaction {
    let mut transaction = Transaction::new().when(Compare::Created(keys::node(member.node), member.epoch));
    let (key, value) = (keys::draining(member.node), keys::encode_integer(member.epoch));
    transaction.operations.push(Operation::Put { key, value, lease });
    transaction
}
