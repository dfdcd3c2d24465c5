//! DeleteRecords: a leader lets go of the beginning of a log, and answers once every replica whose node lives has done so.

use std::collections::BTreeMap;

use millrace_engine::api::TopicPartition;

use super::{
    log::Acting,
    world::{Event, View, World},
};
use crate::cluster::model::NodeId;

/// One that is not answered.
#[derive(Clone, Copy, Debug)]
struct Deletion {
    leader: NodeId,
    process: u64,
    partition: TopicPartition,
    before: i64,
}

#[derive(Debug, Default)]
pub(super) struct Deletions {
    waiting: Vec<Deletion>,
    /// What replicas had let go of when a deletion was answered.
    answered: BTreeMap<(TopicPartition, NodeId), i64>,
}

impl World {
    /// Somebody wants the beginning of a log deleted.
    pub(super) fn delete_records(&mut self, id: NodeId, partition: TopicPartition) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(log) = node.logs.get(&partition).filter(|_| node.is_up) else { return };
        let log_start = log.high_watermark - 3;
        if matches!(log.acting, Acting::Leads(_)) && log_start > log.log_start {
            let process = node.process;
            self.deletions.waiting.push(Deletion { leader: id, process, partition, before: log_start });
            self.plan_trim(id, partition, log_start);
        }
    }

    /// A log is to lose its beginning, which takes a while.
    pub(super) fn plan_trim(&mut self, node: NodeId, partition: TopicPartition, log_start: i64) {
        let after = self.random.between(1, 40);
        let process = self.nodes[&node].process;
        self.at(after, Event::Trim { node, process, partition, log_start });
    }

    pub(super) fn trim(&mut self, id: NodeId, process: u64, partition: TopicPartition, log_start: i64) {
        if !self.is_running(id, process) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(log) = node.logs.get_mut(&partition) else { return };
        if (log.safe()..log.end()).contains(&(log_start - 1)) {
            // what is not on the disk is waited for
            return self.at(5, Event::Trim { node: id, process, partition, log_start });
        }
        log.trim(log_start);
        self.call(id, |now, core, logs| core.handle_progressed(now, &[partition], logs));
        self.look_at_deletions(id);
    }

    /// Answers what can be answered.
    pub(super) fn look_at_deletions(&mut self, id: NodeId) {
        let waiting = std::mem::take(&mut self.deletions.waiting);
        for deletion in waiting {
            if deletion.leader != id {
                self.deletions.waiting.push(deletion);
                continue;
            }
            let Deletion { process, partition, before, .. } = deletion;
            let node = &self.nodes[&id];
            let low = match self.is_running(id, process) {
                true => node.core.low_watermark(partition, &View(&node.logs)),
                false => None,
            };
            match low {
                // somebody else leads: the client asks there
                None => {}
                Some(low) if low >= before => self.answer_deletion(id, partition, before),
                Some(_) => self.deletions.waiting.push(deletion),
            }
        }
    }

    fn answer_deletion(&mut self, id: NodeId, partition: TopicPartition, before: i64) {
        let node = &self.nodes[&id];
        let replicas = node.control.image.partition(partition).map(|state| state.value.replicas.clone());
        let replicas = replicas.unwrap_or_default().into_iter();
        let counted: Vec<NodeId> = replicas.filter(|replica| node.known.contains(replica)).collect();
        self.tell(|| format!("  {id} answers that {counted:?} have nothing before {before} of {partition:?}"));
        for replica in counted {
            let answered = self.deletions.answered.entry((partition, replica)).or_default();
            *answered = before.max(*answered);
        }
        self.check_deletions();
    }

    /// A node is no replica any more.
    pub(super) fn forget_deletions(&mut self, id: NodeId, partition: TopicPartition) {
        self.deletions.answered.remove(&(partition, id));
    }

    /// What was said to be deleted is, and stays so.
    pub(super) fn check_deletions(&mut self) {
        let is_back = |(&(partition, id), &before): (&(TopicPartition, NodeId), &i64)| {
            let log_start = self.nodes[&id].logs.get(&partition)?.log_start;
            (log_start < before).then(|| {
                format!(
                    "deletion: {id} has {partition:?} from {log_start} on, and it was said that {before} is the first"
                )
            })
        };
        if let Some(what) = self.deletions.answered.iter().find_map(is_back) {
            self.violate(what);
        }
    }

    /// A deletion that waits, if its leader leads on.
    pub(super) fn find_deletion(&self) -> Option<String> {
        let waits = |deletion: &&Deletion| self.is_running(deletion.leader, deletion.process);
        self.deletions.waiting.iter().find(waits).map(|it| format!("it is not answered: {it:?}"))
    }
}
