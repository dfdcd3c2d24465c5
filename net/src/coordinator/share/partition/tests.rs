//! What Kafka's share partitions do, case by case.

use std::rc::Rc;

use super::*;

const LIMITS: Limits = Limits { in_flight_max: 100, delivery_count_max: 5, lock_ms: 1000, allows_renew: true };

fn empty() -> SharePartition {
    SharePartition::restore(0, &[]).unwrap()
}

fn request(records_max: i64, batch_size: i64, is_strict: bool) -> Acquire {
    Acquire { member: Rc::from("a"), records_max, batch_size, is_strict }
}

fn batches(ranges: &[(i64, i64)]) -> Vec<LogBatch> {
    ranges
        .iter()
        .map(|(first_offset, last_offset)| LogBatch { first_offset: *first_offset, last_offset: *last_offset })
        .collect()
}

/// Acquires what is there to read from the next offset on, as a member.
fn acquire_as(partition: &mut SharePartition, member: &str, now_ms: i64, log: &[(i64, i64)]) -> Vec<(i64, i64, i16)> {
    let request = Acquire { member: Rc::from(member), ..request(1000, 1000, false) };
    let from = partition.next_fetch_offset();
    let found = partition.acquire(now_ms, &request, &LIMITS, from, &batches(log));
    found.iter().map(|acquired| (acquired.first_offset, acquired.last_offset, acquired.delivery_count)).collect()
}

fn acquire(partition: &mut SharePartition, log: &[(i64, i64)]) -> Vec<(i64, i64, i16)> {
    acquire_as(partition, "a", 0, log)
}

fn ack(first: i64, last: i64, types: &[AcknowledgeType]) -> Acknowledgement {
    Acknowledgement { first_offset: first, last_offset: last, types: types.to_vec() }
}

/// Acknowledges and makes it durable.
fn settle(partition: &mut SharePartition, first: i64, last: i64, types: &[AcknowledgeType]) -> Write {
    let write = partition.acknowledge(1, "a", &[ack(first, last, types)], &LIMITS).unwrap().unwrap();
    partition.on_persisted(1, write.id.unwrap(), true, &LIMITS);
    write
}

use AcknowledgeType::{Accept, Gap, Reject, Release, Renew};

#[test]
fn accepted_records_move_the_start() {
    let mut partition = empty();
    assert_eq!(acquire(&mut partition, &[(0, 9)]), [(0, 9, 1)]);
    assert_eq!(partition.next_fetch_offset(), 10);
    let write = settle(&mut partition, 0, 4, &[Accept]);
    assert_eq!((write.start_offset, write.delivery_complete_count), (0, 5));
    assert_eq!(
        write.batches,
        [StateBatch { first_offset: 0, last_offset: 4, state: DeliveryState::Acknowledged, delivery_count: 1 }]
    );
    assert_eq!((partition.start_offset(), partition.in_flight()), (5, 5));
    settle(&mut partition, 5, 9, &[Reject]);
    assert_eq!((partition.start_offset(), partition.in_flight()), (10, 0));
}

#[test]
fn released_records_are_delivered_again_with_a_higher_count() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    settle(&mut partition, 0, 9, &[Accept, Release, Release, Accept, Gap, Accept, Accept, Accept, Accept, Release]);
    assert_eq!((partition.start_offset(), partition.next_fetch_offset()), (1, 1));
    assert_eq!(acquire(&mut partition, &[(0, 9), (10, 12)]), [(1, 2, 2), (9, 9, 2), (10, 12, 1)]);
}

#[test]
fn a_record_is_delivered_that_often_and_then_archived() {
    let mut partition = empty();
    for count in 1..=5 {
        assert_eq!(acquire(&mut partition, &[(0, 0)]), [(0, 0, count)]);
        let write = settle(&mut partition, 0, 0, &[Release]);
        let state = if count < 5 { DeliveryState::Available } else { DeliveryState::Archived };
        assert_eq!((write.batches[0].state, write.batches[0].delivery_count), (state, count));
    }
    assert_eq!((partition.start_offset(), partition.next_fetch_offset()), (1, 1));
}

#[test]
fn often_delivered_records_are_split_up() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 15)]);
    for _ in 0..2 {
        settle(&mut partition, 0, 15, &[Release]);
        assert_eq!(acquire(&mut partition, &[(0, 15)]).len(), 1);
    }
    settle(&mut partition, 0, 15, &[Release]);
    // the count is 3 of 5: half of the batch at a time, and nothing with it
    assert_eq!(acquire(&mut partition, &[(0, 15), (16, 20)]), [(0, 7, 4)]);
    assert_eq!(acquire(&mut partition, &[(0, 15), (16, 20)]), [(8, 15, 4)]);
    settle(&mut partition, 0, 15, &[Release]);
    // before the last time each is alone
    assert_eq!(acquire(&mut partition, &[(0, 15)]), [(0, 0, 5)]);
    assert_eq!(acquire(&mut partition, &[(0, 15)]), [(1, 1, 5)]);
}

#[test]
fn locks_end_in_time() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    assert_eq!(partition.next_deadline_ms(), Some(1000));
    settle(&mut partition, 0, 3, &[Accept]);
    assert_eq!(partition.handle_timeouts(999, &LIMITS), None);
    let write = partition.handle_timeouts(1000, &LIMITS).unwrap();
    assert_eq!(
        write.batches,
        [StateBatch { first_offset: 4, last_offset: 9, state: DeliveryState::Available, delivery_count: 1 }]
    );
    assert_eq!(write.id, None);
    assert_eq!(partition.next_deadline_ms(), None);
    let late = partition.acknowledge(1001, "a", &[ack(4, 9, &[Accept])], &LIMITS);
    assert_eq!(late, Err(AcknowledgeError::NotAcquired));
    assert_eq!(acquire_as(&mut partition, "b", 1002, &[(4, 9)]), [(4, 9, 2)]);
}

#[test]
fn renewed_locks_last_longer() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    assert_eq!(partition.acknowledge(900, "a", &[ack(0, 4, &[Renew])], &LIMITS), Ok(None));
    let write = partition.handle_timeouts(1000, &LIMITS).unwrap();
    assert_eq!((write.batches[0].first_offset, write.batches[0].last_offset), (5, 9));
    assert!(partition.handle_timeouts(1899, &LIMITS).is_none());
    assert!(partition.handle_timeouts(1900, &LIMITS).is_some());
    let limits = Limits { allows_renew: false, ..LIMITS };
    acquire(&mut partition, &[(0, 9)]);
    let refused = partition.acknowledge(0, "a", &[ack(0, 4, &[Renew])], &limits);
    assert_eq!(refused, Err(AcknowledgeError::RenewDisabled));
}

#[test]
fn only_the_owner_acknowledges_and_all_or_nothing() {
    let mut partition = empty();
    acquire_as(&mut partition, "a", 0, &[(0, 4)]);
    acquire_as(&mut partition, "b", 0, &[(5, 9)]);
    let mut refuse =
        |first, last| partition.acknowledge(0, "a", &[ack(0, 1, &[Accept]), ack(first, last, &[Accept])], &LIMITS);
    assert_eq!(refuse(5, 6), Err(AcknowledgeError::NotOwner));
    assert_eq!(refuse(1, 2), Err(AcknowledgeError::UnderWay));
    assert_eq!(refuse(4, 10), Err(AcknowledgeError::PastAcquired));
    assert_eq!(settle(&mut partition, 0, 4, &[Accept]).batches.len(), 1, "nothing was taken over before");
    assert_eq!(empty().acknowledge(0, "a", &[ack(0, 1, &[Accept])], &LIMITS), Err(AcknowledgeError::NotInFlight));
}

#[test]
fn what_is_under_way_is_nobodys() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    let write = partition.acknowledge(0, "a", &[ack(0, 4, &[Release])], &LIMITS).unwrap().unwrap();
    assert_eq!(partition.next_fetch_offset(), 10);
    assert_eq!(partition.acknowledge(0, "a", &[ack(2, 2, &[Accept])], &LIMITS), Err(AcknowledgeError::UnderWay));
    assert!(!partition.is_quiet());
    partition.on_persisted(0, write.id.unwrap(), true, &LIMITS);
    assert_eq!(partition.next_fetch_offset(), 0);
}

#[test]
fn failed_writes_give_the_records_back_to_the_member_or_free_them() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    let write = partition.acknowledge(0, "a", &[ack(0, 4, &[Accept])], &LIMITS).unwrap().unwrap();
    partition.on_persisted(0, write.id.unwrap(), false, &LIMITS);
    let write = partition.acknowledge(0, "a", &[ack(0, 9, &[Accept])], &LIMITS).unwrap().unwrap();
    assert_eq!(partition.handle_timeouts(2000, &LIMITS), None, "the write decides");
    partition.on_persisted(2000, write.id.unwrap(), false, &LIMITS);
    assert_eq!(acquire(&mut partition, &[(0, 9)]), [(0, 9, 2)]);
}

#[test]
fn release_gives_all_of_a_member_back() {
    let mut partition = empty();
    acquire_as(&mut partition, "a", 0, &[(0, 4)]);
    acquire_as(&mut partition, "b", 0, &[(5, 9)]);
    acquire_as(&mut partition, "a", 0, &[(10, 14)]);
    let write = partition.release("a", &LIMITS).unwrap();
    let ranges: Vec<_> = write.batches.iter().map(|batch| (batch.first_offset, batch.last_offset)).collect();
    assert_eq!(ranges, [(0, 4), (10, 14)]);
    partition.on_persisted(0, write.id.unwrap(), true, &LIMITS);
    assert_eq!(acquire_as(&mut partition, "b", 0, &[(0, 14)]), [(0, 4, 2), (10, 14, 2)]);
    assert_eq!(partition.release("a", &LIMITS), None);
}

#[test]
fn no_more_are_in_flight_than_may_be() {
    let mut partition = empty();
    let limits = Limits { in_flight_max: 10, ..LIMITS };
    let request = request(100, 100, false);
    let found = partition.acquire(0, &request, &limits, 0, &batches(&[(0, 5), (6, 11), (12, 17)]));
    assert_eq!(found.iter().map(Acquired::len).sum::<i64>(), 12, "whole batches");
    assert!(!partition.can_acquire(&limits));
    assert_eq!(partition.acquire(0, &request, &limits, 12, &batches(&[(12, 17)])), []);
    let write = partition.acknowledge(0, "a", &[ack(8, 8, &[Release])], &limits).unwrap().unwrap();
    partition.on_persisted(0, write.id.unwrap(), true, &limits);
    assert!(partition.can_acquire(&limits));
    let found = partition.acquire(0, &request, &limits, 8, &batches(&[(6, 11), (12, 17)]));
    assert_eq!((found.len(), found[0].first_offset, found[0].last_offset), (1, 8, 8));
}

#[test]
fn new_records_are_given_in_batches_of_about_the_size_asked_for() {
    let log = [(0, 3), (4, 7), (8, 11), (12, 15), (16, 19)];
    let ranges = |records_max, batch_size, is_strict| {
        let found = empty().acquire(0, &request(records_max, batch_size, is_strict), &LIMITS, 0, &batches(&log));
        found.iter().map(|acquired| (acquired.first_offset, acquired.last_offset)).collect::<Vec<_>>()
    };
    assert_eq!(ranges(100, 100, false), [(0, 19)]);
    assert_eq!(ranges(100, 6, false), [(0, 7), (8, 15), (16, 19)]);
    assert_eq!(ranges(9, 100, false), [(0, 11)], "up to the end of the batch");
    assert_eq!(ranges(9, 2, true), [(0, 8)]);
}

#[test]
fn strict_limits_hold_for_records_that_were_released_too() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    settle(&mut partition, 0, 9, &[Release]);
    let found = partition.acquire(0, &request(3, 1, true), &LIMITS, 0, &batches(&[(0, 9)]));
    assert_eq!(found, [Acquired { first_offset: 0, last_offset: 2, delivery_count: 2 }]);
    assert_eq!(partition.next_fetch_offset(), 3);
}

#[test]
fn compacted_offsets_are_passed_over() {
    let mut partition = empty();
    assert_eq!(acquire(&mut partition, &[(5, 9)]), [(5, 9, 1)]);
    assert_eq!(partition.start_offset(), 5);
    assert_eq!(acquire(&mut partition, &[(15, 19)]), [(15, 19, 1)]);
    settle(&mut partition, 5, 19, &[Release]);
    // 5 to 9 went in the meantime
    assert_eq!(acquire(&mut partition, &[(15, 19)]), [(15, 19, 2)]);
    assert_eq!(partition.start_offset(), 15);
}

#[test]
fn deleted_records_are_forgotten() {
    let mut partition = empty();
    acquire(&mut partition, &[(0, 9)]);
    let write = partition.acknowledge(0, "a", &[ack(0, 5, &[Release])], &LIMITS).unwrap().unwrap();
    partition.handle_log_start(4);
    partition.on_persisted(0, write.id.unwrap(), true, &LIMITS);
    assert_eq!((partition.start_offset(), partition.next_fetch_offset()), (4, 4));
    assert_eq!(partition.acknowledge(0, "a", &[ack(0, 3, &[Accept])], &LIMITS), Ok(None), "as if it were so");
    partition.handle_log_start(30);
    assert_eq!((partition.start_offset(), partition.next_fetch_offset()), (30, 30));
}

#[test]
fn what_was_in_flight_at_a_crash_is_delivered_again() {
    let batch = |first_offset, last_offset, state, delivery_count| StateBatch {
        first_offset,
        last_offset,
        state,
        delivery_count,
    };
    let kept = [
        batch(12, 13, DeliveryState::Acknowledged, 1),
        batch(16, 17, DeliveryState::Available, 3),
        batch(18, 20, DeliveryState::Archived, 5),
    ];
    let mut partition = SharePartition::restore(10, &kept).unwrap();
    assert_eq!(partition.next_fetch_offset(), 10);
    assert_eq!(acquire(&mut partition, &[(8, 30)]), [(10, 11, 1), (14, 15, 1)], "the one delivered often waits");
    assert_eq!(acquire(&mut partition, &[(8, 30)]), [(16, 16, 4)], "half of its batch");
    assert_eq!(SharePartition::restore(21, &kept).unwrap().start_offset(), 21);
    assert!(SharePartition::restore(0, &[kept[1], kept[0]]).is_err());
}

#[test]
fn what_is_hidden_is_archived_and_never_delivered() {
    let mut partition = empty();
    let log = batches(&[(0, 4), (5, 9), (10, 14)]);
    let acquired = partition.acquire(0, &request(1000, 1000, false), &LIMITS, 0, &log);
    let (left, write) = partition.archive(acquired, &batches(&[(0, 1), (5, 9)]));
    let left: Vec<_> = left.iter().map(|range| (range.first_offset, range.last_offset)).collect();
    assert_eq!(left, [(2, 4), (10, 14)]);
    let archived = |first_offset, last_offset| StateBatch {
        first_offset,
        last_offset,
        state: DeliveryState::Archived,
        delivery_count: 1,
    };
    assert_eq!(write.unwrap().batches, [archived(0, 1), archived(5, 9)]);
    assert_eq!(partition.start_offset(), 2);
    if let Some(write) = partition.release("a", &LIMITS) {
        partition.on_persisted(1, write.id.unwrap(), true, &LIMITS);
    }
    assert_eq!(acquire(&mut partition, &[(0, 4), (5, 9), (10, 14)]), [(2, 4, 2), (10, 14, 2)]);
}

#[test]
fn all_of_it_may_be_hidden() {
    let mut partition = empty();
    let log = batches(&[(0, 4)]);
    let acquired = partition.acquire(0, &request(1000, 1000, false), &LIMITS, 0, &log);
    let (left, write) = partition.archive(acquired, &log);
    assert!(left.is_empty() && write.is_some());
    assert_eq!((partition.start_offset(), partition.next_fetch_offset()), (5, 5));
    assert!(partition.is_quiet());
}
