//! From records to state: after a start, and when records that change the state only once durable are so.

use std::rc::Rc;

use super::{Coordinator, Entry, Group};
use crate::coordinator::group::{
    classic::ClassicGroup, consumer::ConsumerGroup, offsets::Offsets, pending_offsets::Recorded, record::Record,
};

impl Coordinator {
    /// Takes over a record of the partition, from its start in order. One that a producer wrote belongs to its transaction.
    pub(crate) fn load(&mut self, record_offset: i64, producer_id: Option<i64>, record: Record) {
        if let Some(producer_id) = producer_id {
            return self.apply_pending(record_offset, producer_id, record);
        }
        match record {
            Record::GroupMetadata { group, value: Some(value) } => {
                let loaded = Group::Classic(Box::new(ClassicGroup::from_record(Rc::clone(&group), &value)));
                self.entry(&group).group = loaded;
            }
            Record::Share { group, record } => self.load_share(&group, &record),
            record => {
                if is_consumer(&record) {
                    let id = Rc::clone(record.group());
                    let entry = self.entry(&id);
                    if matches!(&entry.group, Group::Classic(_)) {
                        entry.group = Group::Consumer(Box::new(ConsumerGroup::new(id)));
                    }
                }
                self.apply(record_offset, record);
            }
        }
    }

    /// Changes the state as a record says that was just made durable. Tombstones of a group that has got members
    /// meanwhile are of the past: the records of these follow in the log.
    pub(super) fn apply_late(&mut self, record_offset: i64, record: Record) {
        let entry = self.entries.get(record.group());
        let is_offset = matches!(record, Record::OffsetCommit { .. });
        if is_offset || entry.is_some_and(Entry::is_empty) {
            self.apply(record_offset, record);
        }
    }

    /// Changes the state as a durable record says.
    fn apply(&mut self, record_offset: i64, record: Record) {
        match record {
            Record::OffsetCommit { group, topic, partition, value: Some(value) } => {
                self.entry(&group).offsets.set(&topic, partition, Recorded { record_offset, value });
            }
            Record::OffsetCommit { group, topic, partition, value: None } => {
                self.remove_offset(&group, &topic, partition);
            }
            Record::GroupMetadata { group, value: None } => self.remove_classic(&group),
            Record::ConsumerGroup { group, value: None } => self.remove_consumer(&group),
            Record::Share { group, record } => self.apply_share(&group, &record),
            // classic groups run ahead of their records: only a start takes them from there
            Record::GroupMetadata { value: Some(_), .. } => {}
            record => {
                let id = Rc::clone(record.group());
                let Some(Entry { group: Group::Consumer(group), .. }) = self.entries.get_mut(&id) else {
                    return;
                };
                group.apply(&record);
            }
        }
    }

    /// A group; offsets of an unknown one belong to a simple group.
    pub(super) fn entry(&mut self, id: &Rc<str>) -> &mut Entry {
        self.entries.entry(Rc::clone(id)).or_insert_with(|| Entry {
            group: Group::Classic(Box::new(ClassicGroup::new(Rc::clone(id), 0))),
            offsets: Offsets::default(),
        })
    }

    fn remove_classic(&mut self, id: &Rc<str>) {
        if matches!(self.entries.get(id), Some(Entry { group: Group::Classic(group), .. }) if group.is_without_members())
        {
            self.remove_group(id);
        }
    }

    fn remove_consumer(&mut self, id: &Rc<str>) {
        if matches!(self.entries.get(id), Some(Entry { group: Group::Consumer(group), .. }) if group.is_empty()) {
            self.remove_group(id);
        }
    }

    /// Forgets a group; offsets that stay belong to a simple one from now on.
    pub(super) fn remove_group(&mut self, id: &Rc<str>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.offsets.is_empty() {
            self.entries.remove(id);
        } else {
            entry.group = Group::Classic(Box::new(ClassicGroup::new(Rc::clone(id), 0)));
        }
    }
}

/// Whether a record tells of a consumer group that is there.
fn is_consumer(record: &Record) -> bool {
    matches!(
        record,
        Record::ConsumerGroup { value: Some(_), .. }
            | Record::ConsumerPartitionMetadata { value: Some(()), .. }
            | Record::ConsumerMember { value: Some(_), .. }
            | Record::ConsumerTargetMetadata { value: Some(_), .. }
            | Record::ConsumerTarget { value: Some(_), .. }
            | Record::ConsumerCurrent { value: Some(_), .. }
            | Record::ConsumerRegex { value: Some(_), .. }
    )
}
