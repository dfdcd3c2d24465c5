//! A partition whose topic comes to want a flush or none any more, and what tests of its other files begin with.

use std::{collections::BTreeMap, task::Waker};

use super::*;
use crate::{
    batch::{BatchBuilder, Codec, Record},
    replica::Leadership,
};

/// A batch of records that count from an offset, each with that many bytes.
pub(super) fn batch(offset: i64, records: i64, bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None, offset);
    for offset in offset..offset + records {
        let value = Some(vec![0; bytes].into());
        builder.push(&Record { offset, timestamp: 1, key: None, value, headers: vec![] });
    }
    builder.finish()
}

pub(super) fn config(settings: &[(&str, &str)]) -> Rc<TopicConfig> {
    let overrides = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Rc::new(TopicConfig::parse(&BTreeMap::new(), &overrides).expect("legal settings"))
}

/// An empty partition of a topic with these settings.
pub(super) fn partition(settings: &[(&str, &str)]) -> Partition {
    Partition::new(TopicPartition { topic: uuid::Uuid::nil(), partition: 0 }, config(settings), Replication::alone())
}

/// Appends batches as a group of their own.
pub(super) fn push(partition: &mut Partition, batches: &[Vec<u8>]) {
    let extent = Extent::of(batches);
    partition.marks.assign(extent.end_offset);
    partition.push_extent(extent);
}

const WRITTEN: &[(&str, &str)] = &[("flush.messages", "1000")];

/// The high watermark was computed from the settings: consumers who had seen records were told that there are none.
#[test]
fn what_was_seen_stays_seen_when_a_topic_comes_to_want_a_flush() {
    let mut partition = partition(WRITTEN);
    push(&mut partition, &[batch(0, 2, 10)]);
    partition.on_written(2);
    partition.set_config(config(&[]));
    assert_eq!(partition.marks().high_watermark(), 2);
    push(&mut partition, &[batch(2, 1, 10)]);
    partition.on_written(3);
    assert_eq!(partition.marks().high_watermark(), 2);
    partition.on_durable(3);
    assert_eq!(partition.marks().high_watermark(), 3);
}

/// Nobody told who waited.
#[test]
fn who_waits_hears_of_what_is_seen_since_its_topic_wants_no_flush() {
    let mut partition = partition(&[]);
    push(&mut partition, &[batch(0, 2, 10)]);
    partition.on_written(2);
    let waiter = Rc::new(Waiter::default());
    partition.waiters.watch(&waiter, 1);
    partition.set_config(config(WRITTEN));
    assert_eq!(partition.marks().high_watermark(), 2);
    assert!(waiter.poll(Waker::noop()));
}

/// Only whole extents were counted: of one that the high watermark came to lie in, nobody was told.
#[test]
fn who_waits_hears_of_every_batch_wherever_the_high_watermark_was() {
    let mut partition = partition(&[]);
    push(&mut partition, &[batch(0, 1, 10), batch(1, 1, 10), batch(2, 1, 10)]);
    push(&mut partition, &[batch(3, 1, 10)]);
    let size = batch(0, 1, 10).len();
    let waiters = [1, 2, 3, 4].map(|batches| {
        let waiter = Rc::new(Waiter::default());
        partition.watch(&waiter, batches * size, ReadBound::HighWatermark);
        waiter
    });
    for end in 1..=4 {
        partition.keep(end);
        let told = waiters.iter().filter(|waiter| waiter.poll(Waker::noop())).count();
        assert_eq!(told as i64, end);
    }
}

/// What was in segments only by the time that replicas had it was shown, and who waited for it was not told.
#[test]
fn who_waits_hears_of_what_is_not_in_memory_any_more() {
    let mut partition = partition(&[]);
    partition.enter_epoch(1).expect("it is newer");
    partition.lead(Leadership::Replicated { replicas: 2, in_sync: 2 });
    push(&mut partition, &[batch(0, 2, 10)]);
    partition.on_durable(2);
    let plan = partition.plan_round(1, 0).expect("something is kept");
    partition.appended(&plan, 0);
    partition.tail.extents().next().expect("cached").backing.evict();
    partition.prune_tail();
    assert_eq!(partition.marks().high_watermark(), 0);
    let waiter = Rc::new(Waiter::default());
    partition.watch(&waiter, 1, ReadBound::HighWatermark);
    partition.tell_high_watermark(2);
    assert_eq!(partition.marks().high_watermark(), 2);
    assert!(waiter.poll(Waker::noop()));
}

/// A fetch that waited as its leader changed was answered when its time was over.
#[test]
fn who_waits_hears_that_it_is_not_led_here_any_more() {
    let mut partition = partition(&[]);
    for (epoch, bound) in [(1, ReadBound::HighWatermark), (2, ReadBound::LastStable)] {
        let waiter = Rc::new(Waiter::default());
        partition.watch(&waiter, 1, bound);
        partition.enter_epoch(epoch).expect("it is newer");
        assert!(waiter.poll(Waker::noop()), "{bound:?}");
    }
}
