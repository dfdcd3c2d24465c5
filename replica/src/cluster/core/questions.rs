//! Which planner answers which question.

use std::time::Instant;

use super::jobs::{AnyJob, Job, item};
use crate::cluster::{
    admin::{Plan, Setting, configs, join, partitions, topics},
    model::NodeId,
    plane::{AdminError, ControlError, IsrOutcome, JoiningCatalog, Question, Reply, Visible},
};

/// The job that answers a question, on the node `me`.
pub(super) fn job(question: Question, me: NodeId, deadline: Instant) -> Box<dyn AnyJob> {
    match question {
        Question::AlterIsr(changes, reply) => {
            let items = changes.into_iter().map(|change| item(move |s| partitions::isr_change(&change, s)));
            let job = Job::merged(items.collect(), deadline, move |outcomes, _| reply.give(outcomes));
            Box::new(job.expiring(|| IsrOutcome::Unknown))
        }
        Question::CreateTopics(topics, defaults, mode, reply) => {
            let items = topics.into_iter().map(|topic| {
                let mut creation = topics::Creation::new(topic, defaults, mode);
                item(move |s| creation.plan(s))
            });
            Box::new(Job::visible(items.collect(), deadline, reply))
        }
        Question::DeleteTopics(topics, reply) => {
            let items = topics.into_iter().map(|id| item(move |s| topics::deletion(id, s)));
            Box::new(Job::visible(items.collect(), deadline, reply))
        }
        Question::CreatePartitions(topics, mode, reply) => {
            let items = topics.into_iter().map(|more| item(move |s| topics::growth(&more, mode, s)));
            Box::new(Job::visible(items.collect(), deadline, reply))
        }
        Question::AlterTopic(topic, edit, mode, reply) => {
            let item = item(move |s| configs::topic(&topic, &edit, mode, s));
            Box::new(Job::visible_one(item, deadline, reply))
        }
        Question::AlterSettings(mut decide, mode, reply) => {
            let item = item(move |s| configs::settings(me, &mut decide, mode, s));
            Box::new(Job::visible_one(item, deadline, reply))
        }
        Question::AlterSettingsOf(node, mut decide, mode, reply) => {
            let item = item(move |s| configs::settings(node, &mut decide, mode, s));
            Box::new(Job::visible_one(item, deadline, reply))
        }
        Question::Reassign(asked, reply) => {
            let items = asked.into_iter().map(|one| item(move |s| partitions::reassignment(&one, s)));
            Box::new(Job::visible_merged(items.collect(), deadline, reply))
        }
        Question::ElectLeaders(kind, asked, reply) => {
            let items = asked.into_iter().map(|tp| item(move |s| partitions::election(kind, tp, s)));
            Box::new(Job::visible_merged(items.collect(), deadline, reply))
        }
        Question::Unregister(node, reply) => {
            let item = item(move |s| partitions::unregistration(node, s));
            Box::new(Job::visible_one(item, deadline, reply))
        }
        Question::ProducerIds(reply) => {
            let item = item(|s| configs::producer_ids(s));
            Box::new(Job::one(item, deadline, move |ids, _| reply.give(ids)))
        }
        Question::Join(catalog, reply) => joining(catalog, deadline, reply),
        // the core answers these itself
        Question::Drain(_) | Question::Leave(_) | Question::Unreachable(_) => {
            Box::new(Job::<()>::new(Vec::new(), deadline, |_, _| {}))
        }
    }
}

fn joining(
    catalog: JoiningCatalog,
    deadline: Instant,
    reply: Reply<Visible<Result<(), AdminError>>>,
) -> Box<dyn AnyJob> {
    let JoiningCatalog { topics, settings, next_producer_id } = catalog;
    let mut items = vec![item(move |s| seen(join::producer_ids(next_producer_id, s), s))];
    let settings = join::of_cluster(settings).into_iter();
    items.extend(settings.map(|(name, value)| item(move |s| seen(join::setting(&name, &value, s), s))));
    items.extend(topics.into_iter().map(|topic| item(move |s| seen(join::topic(&topic, s), s))));
    Box::new(Job::new(items, deadline, move |outcomes: Result<Vec<Result<i64, _>>, ControlError>, written| {
        reply.give(outcomes.map(|outcomes| {
            let seen = outcomes.into_iter().collect::<Result<Vec<i64>, _>>();
            let revision = seen.iter().flatten().copied().fold(written, i64::max);
            Visible { revision, outcome: seen.map(drop) }
        }));
    }))
}

/// With the revision of what it was planned from: what was found there already, older images may lack.
fn seen(plan: Plan<Result<(), AdminError>>, setting: &Setting<'_>) -> Plan<Result<i64, AdminError>> {
    let revision = setting.image.revision;
    plan.map(move |done| done.map(|()| revision))
}
