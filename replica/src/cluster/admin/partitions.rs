//! Partitions: other replicas, other leaders, another ISR; and nodes that do not come back.

use std::sync::Arc;

use millrace_engine::api::TopicPartition;

use super::{Plan, Setting, change_partition, error, unknown_topic};
use crate::cluster::{
    change::{Event, Refusal, change},
    image::Image,
    keys,
    model::{NodeId, Partition, TopicState, Versioned},
    plane::{AdminCode, AdminError, ElectionKind, FactorChange, IsrChange, IsrOutcome, Reassignment},
    store::{Compare, Operation, Transaction},
};

type Done = Result<(), AdminError>;

/// Gives a partition other replicas, or takes that back.
pub(crate) fn reassignment(asked: &Reassignment, setting: &Setting<'_>) -> Plan<Done> {
    let found = setting.image.topic(&asked.topic).ok_or_else(|| unknown_topic(&asked.topic));
    let found = found.and_then(|topic| {
        let tp = TopicPartition { topic: topic.id, partition: asked.partition };
        setting.image.partition(tp).map(|held| (topic, tp, held)).ok_or_else(|| {
            let text = format!("Unable to find partition {}-{}.", asked.topic, asked.partition);
            AdminError::new(AdminCode::UnknownTopicOrPartition, text)
        })
    });
    let (topic, tp, held) = match found {
        Ok(found) => found,
        Err(error) => return Plan::Answer(Err(error)),
    };
    if let (FactorChange::Refused, Some(replicas)) = (asked.factor, &asked.replicas) {
        let (now, then) = (held.value.target_replicas().len(), replicas.len());
        if now != then {
            let text = format!("The replication factor is changed from {now} to {then}");
            return Plan::Answer(error(AdminCode::InvalidReplicationFactor, text));
        }
    }
    let event = asked.replicas.clone().map_or(Event::CancelReassignment, Event::Reassign);
    write(topic, tp, held, &event, setting)
}

/// Lets another replica lead.
pub(crate) fn election(kind: ElectionKind, tp: TopicPartition, setting: &Setting<'_>) -> Plan<Done> {
    let Some((topic, held)) = setting.image.topics.get(&tp.topic).zip(setting.image.partition(tp)) else {
        let text = "No such topic or partition.";
        return Plan::Answer(error(AdminCode::UnknownTopicOrPartition, text));
    };
    let event = match kind {
        ElectionKind::Preferred => Event::ElectPreferred,
        ElectionKind::Unclean => Event::ElectUnclean,
    };
    write(topic, tp, held, &event, setting)
}

fn write(
    topic: &Arc<TopicState>,
    tp: TopicPartition,
    held: &Partition,
    event: &Event,
    setting: &Setting<'_>,
) -> Plan<Done> {
    match change(&held.value, event, &setting.image.surroundings(topic)) {
        Ok(next) if next == held.value => Plan::Answer(Ok(())),
        Ok(next) => Plan::write(vec![change_partition(setting.image, topic, tp, &next)], Ok(())),
        Err(Refusal::ElectionNotNeeded | Refusal::NoReassignment) if setting.may_be_done() => Plan::Answer(Ok(())),
        Err(refusal) => Plan::Answer(Err(refused(&refusal, &topic.name, tp.partition))),
    }
}

fn refused(refusal: &Refusal, topic: &str, partition: i32) -> AdminError {
    let code = match refusal {
        Refusal::NoReassignment => AdminCode::NoReassignmentInProgress,
        Refusal::InvalidAssignment(_) => AdminCode::InvalidReplicaAssignment,
        Refusal::NeedsUncleanElection => {
            let text = format!(
                "Unable to revert partition assignment for {topic}:{partition} because it would require an unclean leader \
                 election."
            );
            return AdminError::new(AdminCode::InvalidReplicaAssignment, text);
        }
        Refusal::ElectionNotNeeded => AdminCode::ElectionNotNeeded,
        Refusal::PreferredLeaderNotAvailable => AdminCode::PreferredLeaderNotAvailable,
        Refusal::EligibleLeadersNotAvailable => AdminCode::EligibleLeadersNotAvailable,
        // these are said to leaders only
        Refusal::FencedLeaderEpoch(_)
        | Refusal::UnknownLeaderEpoch(_)
        | Refusal::NotLeader
        | Refusal::InvalidIsr(_)
        | Refusal::IneligibleReplicas(_) => AdminCode::InvalidRequest,
    };
    AdminError::new(code, refusal.to_string())
}

/// A leader's proposal. It is written even if it changes nothing: what an earlier one of unknown outcome would do is
/// refused from then on.
pub(crate) fn isr_change(asked: &IsrChange, setting: &Setting<'_>) -> Plan<IsrOutcome> {
    let tp = asked.partition;
    let Some((topic, held)) = setting.image.topics.get(&tp.topic).zip(setting.image.partition(tp)) else {
        return Plan::Answer(IsrOutcome::Stale(None));
    };
    if held.revision < asked.revision {
        return Plan::Later;
    }
    if held.revision > asked.revision {
        return Plan::Answer(IsrOutcome::Stale(Some(held.clone())));
    }
    let proposal = Event::AlterIsr(asked.proposal.clone());
    let next = match change(&held.value, &proposal, &setting.image.surroundings(topic)) {
        Ok(next) => next,
        Err(refusal) => return Plan::Answer(IsrOutcome::Refused(refusal)),
    };
    let leader = asked.proposal.leader;
    let step = change_partition(setting.image, topic, tp, &next)
        .when(Compare::Created(keys::node(leader.node), leader.epoch))
        .when(Compare::Modified(keys::topic(topic.id), topic.revision));
    let version = held.version + 1;
    let answer = move |revision| IsrOutcome::Changed(Arc::new(Versioned { value: next, revision, version }));
    Plan::Write(vec![step], Box::new(answer))
}

/// Forgets a node that does not come back.
pub(crate) fn unregistration(node: NodeId, setting: &Setting<'_>) -> Plan<Done> {
    if !setting.image.known.contains_key(&node) {
        return Plan::Answer(match setting.may_be_done() {
            true => Ok(()),
            false => error(AdminCode::BrokerIdNotRegistered, format!("Broker ID {node} is not currently registered")),
        });
    }
    if setting.image.nodes.contains_key(&node) {
        return Plan::Answer(error(
            AdminCode::InvalidRequest,
            format!("Broker {node} is running: stop it before it is unregistered"),
        ));
    }
    let mut transaction = Transaction::new()
        .when(Compare::Created(keys::node(node), 0))
        .when(Compare::Exists(keys::known(node)))
        .delete(keys::known(node));
    transaction.operations.push(Operation::DeletePrefix(format!("settings/{node}/")));
    Plan::write(vec![transaction], Ok(()))
}

/// Whether nobody is led by a node any more.
pub(crate) fn leads_nothing(image: &Image, node: NodeId) -> bool {
    let leads = |held: &Partition| held.value.leader.is_some_and(|leader| leader.node == node);
    !image.topics.values().any(|topic| topic.partitions.iter().any(leads))
}
