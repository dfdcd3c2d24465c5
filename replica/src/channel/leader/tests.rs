//! What other implementations got wrong, case by case, at the leader.

use super::*;
use crate::{
    channel::event::LiveNode,
    cluster::model::{Continued, Kept},
};

const ME: Member = Member { node: 1, epoch: 10 };
const SECOND: Member = Member { node: 2, epoch: 20 };
const THIRD: Member = Member { node: 3, epoch: 30 };

fn live(member: Member) -> LiveNode {
    LiveNode { member, continues: None, draining: false, shards: 1 }
}

fn nodes() -> Nodes {
    Nodes::new([ME, SECOND, THIRD].map(live))
}

fn position(end: i64) -> LogPosition {
    LogPosition {
        log_start: 0,
        high_watermark: 3,
        written: end,
        durable: end,
        end,
        last_epoch: 5,
        epoch_start: 4,
        durability: Durability::Device,
    }
}

/// Leads in epoch 5 from offset 4, with a high watermark of 3.
fn leadership(isr: &[Member], min_isr: usize) -> Leadership {
    let role = LeaderRole {
        replicas: vec![1, 2, 3],
        isr: isr.to_vec(),
        elr: Vec::new(),
        min_isr,
        durability: Durability::Device,
        written: false,
    };
    let mut leadership = Leadership::new(0, ME, 5, 100, role, Guards::default());
    leadership.begin(position(4));
    leadership
}

fn attach(end: i64, durable: i64, last_epoch: i32) -> Attach {
    let partition = millrace_engine::api::TopicPartition { topic: uuid::Uuid::from_u128(1), partition: 0 };
    Attach { partition, attachment: 1, epoch: 5, end, written: end, durable, last_epoch }
}

fn link(member: Member) -> LinkId {
    LinkId(u64::from(member.node.unsigned_abs()))
}

fn take_up(leadership: &mut Leadership, member: Member, end: i64, durable: i64) {
    leadership.take_up(0, member, link(member), &attach(end, durable, 5), Flow::Live { next: end });
}

/// Kafka forgets what followers said in the former epoch: a position of then may be of records that were cut since.
#[test]
fn high_watermark_stands_until_all_in_sync_were_heard_in_the_epoch() {
    let mut leadership = leadership(&[ME, SECOND, THIRD], 1);
    take_up(&mut leadership, SECOND, 9, 9);
    assert_eq!(leadership.advance(0, position(9), &nodes()), None);
    take_up(&mut leadership, THIRD, 8, 8);
    assert_eq!(leadership.advance(0, position(9), &nodes()), Some(8));
    assert_eq!(leadership.advance(0, position(9), &nodes()), None, "it only rises");
}

/// What a follower has and has not flushed is gone with its machine: it is not confirmed by attaching.
#[test]
fn follower_that_attaches_counts_with_what_is_durable() {
    let mut leadership = leadership(&[ME, SECOND], 1);
    take_up(&mut leadership, SECOND, 9, 6);
    assert_eq!(leadership.advance(0, position(9), &nodes()), Some(6));
}

/// KIP-966, the last replica standing: below min.insync.replicas the high watermark stands, or who left could not be elected.
#[test]
fn high_watermark_stands_below_min_insync_replicas() {
    let mut leadership = leadership(&[ME], 2);
    assert_eq!(leadership.advance(0, position(9), &nodes()), None);
    leadership.role.min_isr = 1;
    leadership.role.elr = vec![SECOND];
    assert_eq!(leadership.advance(0, position(9), &nodes()), None, "nor while others were promised that it does");
    leadership.role.elr.clear();
    assert_eq!(leadership.advance(0, position(9), &nodes()), Some(9));
}

/// Leads a topic that acknowledges before the flush, with one follower that wrote up to 9 and flushed up to 5.
fn written() -> (Leadership, LeaderRole) {
    let mut leadership = leadership(&[ME, SECOND], 1);
    let role = LeaderRole { durability: Durability::Written, written: true, ..leadership.role.clone() };
    leadership.update(100, role.clone());
    leadership.take_up(0, SECOND, link(SECOND), &Attach { written: 9, ..attach(9, 5, 5) }, Flow::Live { next: 9 });
    (leadership, role)
}

/// A machine that loses its power is trusted by what the key says: nothing is acknowledged that the key does not allow for.
#[test]
fn nothing_is_acknowledged_before_its_flush_unless_the_key_says_so() {
    let (mut leadership, role) = written();
    leadership.update(101, LeaderRole { written: false, ..role.clone() });
    let own = LogPosition { durable: 4, durability: Durability::Written, ..position(9) };
    assert_eq!((leadership.promise(), leadership.advance(0, own, &nodes())), (Durability::Device, Some(4)));
    leadership.update(102, role);
    assert_eq!((leadership.promise(), leadership.advance(0, own, &nodes())), (Durability::Written, Some(9)));
}

/// The topic was `written` when a machine lost its power, and is not when that comes back.
#[test]
fn key_is_taken_back_once_all_in_sync_flushed_all_that_they_confirmed() {
    let (mut leadership, role) = written();
    let device = LeaderRole { durability: Durability::Device, ..role.clone() };
    assert_eq!(leadership.next_change(0, position(9), &nodes()), None, "the topic still asks for no flush");
    leadership.update(100, device.clone());
    let lost = LiveNode {
        continues: Some(Continued { epoch: 20, kept: Kept::Flushed }),
        ..live(Member { epoch: 21, ..SECOND })
    };
    assert!(!leadership.is_in_isr(lost.member, &Nodes::new([lost])), "it may lack what was acknowledged");
    assert_eq!(leadership.next_change(0, position(9), &nodes()), None, "from 5 on nothing is known to be flushed");
    leadership.followers[0].note_flushed(9, 9);
    let unflushed = LogPosition { durable: 3, ..position(9) };
    assert_eq!(leadership.next_change(0, unflushed, &nodes()), None, "nor is it here");
    leadership.role.elr = vec![THIRD];
    assert_eq!(leadership.next_change(0, position(9), &nodes()), None, "nobody knows it of who is promised to lead");
    leadership.role.elr.clear();
    assert_eq!(leadership.next_change(0, position(9), &nodes()), Some(vec![ME, SECOND]));
    assert!(leadership.asks_to_flush());
    // it may be done, or be done yet: whatever the topic asks for, it acknowledges as if it were
    leadership.conclude(0, 100, IsrOutcome::Unknown);
    leadership.update(100, role);
    assert_eq!(leadership.promise(), Durability::Device);
    assert_eq!(leadership.next_change(RETRY_MS, position(9), &nodes()), Some(vec![ME, SECOND]));
    assert!(!leadership.asks_to_flush(), "the topic does not ask for it now");
    assert!(leadership.conclude(RETRY_MS, 100, IsrOutcome::Committed { revision: 101 }));
    assert_eq!((leadership.promise(), leadership.role.written), (Durability::Written, true));
}

/// Who joins later by what it confirmed has flushed that too.
#[test]
fn key_is_not_taken_back_while_who_may_join_has_not_flushed() {
    let (mut leadership, role) = written();
    leadership.followers[0].note_flushed(9, 9);
    leadership.take_up(0, THIRD, link(THIRD), &Attach { written: 8, ..attach(8, 4, 5) }, Flow::Live { next: 8 });
    leadership.update(100, LeaderRole { durability: Durability::Device, ..role });
    assert!(!leadership.is_flushed(position(9), &nodes()));
    leadership.followers[1].note_flushed(8, 8);
    assert!(leadership.is_flushed(position(9), &nodes()));
    leadership.followers[1].sent(9, Durability::Written);
    assert!(!leadership.is_flushed(position(9), &nodes()), "it will confirm what is on its way");
    leadership.followers[1].break_off(0);
    assert!(leadership.is_flushed(position(9), &nodes()), "it has to attach again before it joins");
}

/// flush.messages that changes while there are followers: each counts with what its own log and what it was asked for say.
#[test]
fn what_counts_follows_the_topic_when_it_begins_to_flush() {
    let mut leadership = leadership(&[ME, SECOND], 1);
    let role = LeaderRole { durability: Durability::Written, written: true, ..leadership.role.clone() };
    leadership.update(100, role.clone());
    leadership.take_up(0, SECOND, link(SECOND), &Attach { written: 9, ..attach(9, 4, 5) }, Flow::Live { next: 9 });
    let written = |end, durable| LogPosition { durable, durability: Durability::Written, ..position(end) };
    assert_eq!(leadership.advance(0, written(9, 4), &nodes()), Some(9), "written is enough");
    // the key of the partition is as it was: the rules of its topic are not
    leadership.update(100, LeaderRole { durability: Durability::Device, ..role });
    let partition = attach(0, 0, 0).partition;
    assert_eq!(leadership.confirmed_of(&Position { partition, attachment: 1, written: 12, durable: 10 }), 10);
    let device = |end, durable| LogPosition { durability: Durability::Device, ..written(end, durable) };
    leadership.follower(link(SECOND), 1).unwrap().confirm(0, 12, 12);
    assert_eq!(leadership.advance(0, device(12, 9), &nodes()), None, "nothing of that is flushed here");
    assert_eq!(leadership.advance(0, device(12, 11), &nodes()), Some(11));
}

/// A shrink that is asked for is not done yet: whoever would leave may still be elected.
#[test]
fn pending_shrink_keeps_the_old_isr() {
    let mut leadership = leadership(&[ME, SECOND], 1);
    take_up(&mut leadership, SECOND, 4, 4);
    assert_eq!(leadership.advance(0, position(9), &nodes()), Some(4));
    leadership.follower(link(SECOND), 1).unwrap().break_off(0);
    assert_eq!(leadership.next_change(BROKEN_MS_MAX, position(9), &nodes()), Some(vec![ME]));
    assert_eq!(leadership.advance(BROKEN_MS_MAX, position(9), &nodes()), None);
    assert!(leadership.conclude(BROKEN_MS_MAX, 100, IsrOutcome::Committed { revision: 101 }));
    assert_eq!(leadership.advance(BROKEN_MS_MAX, position(9), &nodes()), Some(9));
}

/// Nobody knows whether it happened: the stricter view holds, and the next write makes sure that it cannot happen any more.
#[test]
fn unknown_outcome_keeps_the_stricter_view() {
    let mut leadership = leadership(&[ME], 1);
    take_up(&mut leadership, SECOND, 9, 9);
    assert_eq!(leadership.next_change(0, position(9), &nodes()), Some(vec![ME, SECOND]));
    assert!(!leadership.conclude(0, 100, IsrOutcome::Unknown));
    assert_eq!(leadership.maximal_isr(), [ME, SECOND]);
    assert_eq!(leadership.next_change(RETRY_MS, position(9), &nodes()), Some(vec![ME]));
    assert!(!leadership.conclude(RETRY_MS, 100, IsrOutcome::Refused), "the former may still arrive");
    assert_eq!(leadership.maximal_isr(), [ME, SECOND]);
    let again = 2 * RETRY_MS;
    assert_eq!(leadership.next_change(again, position(9), &nodes()), Some(vec![ME]));
    assert!(leadership.conclude(again, 100, IsrOutcome::Committed { revision: 101 }));
    assert_eq!(leadership.maximal_isr(), [ME]);
}

/// Only a refusal says that nothing changed.
#[test]
fn refusal_falls_back_to_the_committed_isr() {
    let mut leadership = leadership(&[ME], 1);
    take_up(&mut leadership, SECOND, 9, 9);
    assert!(leadership.next_change(0, position(9), &nodes()).is_some());
    assert_eq!(leadership.next_change(0, position(9), &nodes()), None, "one change at a time");
    assert!(!leadership.conclude(0, 99, IsrOutcome::Refused), "of another revision");
    assert_eq!(leadership.maximal_isr(), [ME, SECOND]);
    leadership.conclude(0, 100, IsrOutcome::Refused);
    assert_eq!(leadership.maximal_isr(), [ME]);
}

/// A follower with all up to the high watermark may lack what the former leader acknowledged: the high watermark lags.
#[test]
fn follower_joins_only_from_the_start_of_the_epoch_on() {
    let mut leadership = leadership(&[ME], 2);
    take_up(&mut leadership, SECOND, 3, 3);
    assert_eq!(leadership.next_change(0, position(9), &nodes()), None);
    leadership.confirm(0, link(SECOND), 1, 4, 9);
    assert_eq!(leadership.next_change(0, position(9), &nodes()), Some(vec![ME, SECOND]));
}

/// KIP-841 and KIP-903: a restart that was taken out and put in again between two looks is another life.
#[test]
fn former_life_neither_confirms_nor_joins() {
    let mut leadership = leadership(&[ME, Member { epoch: 19, ..SECOND }], 1);
    take_up(&mut leadership, SECOND, 9, 9);
    assert_eq!(leadership.advance(0, position(9), &nodes()), None, "the life in the ISR is over");
    assert_eq!(leadership.expanded(0, 4, &nodes()), None, "it leaves first");
    let mut lost = LiveNode { continues: Some(Continued { epoch: 19, kept: Kept::Flushed }), ..live(SECOND) };
    assert_eq!(leadership.advance(0, position(9), &Nodes::new([live(ME), lost.clone()])), Some(9));
    leadership.role.durability = Durability::Written;
    lost.member.epoch = 21;
    assert!(!leadership.is_in_isr(lost.member, &Nodes::new([lost])), "it kept only what was flushed");
}

/// KAFKA-15021: a replica that leaves holds nothing up.
#[test]
fn draining_follower_outside_the_isr_is_not_waited_for() {
    let mut leadership = leadership(&[ME], 1);
    take_up(&mut leadership, SECOND, 5, 5);
    let leaving = Nodes::new([live(ME), LiveNode { draining: true, ..live(SECOND) }]);
    assert_eq!(leadership.advance(0, position(9), &leaving), Some(9));
    assert_eq!(leadership.next_change(0, position(9), &leaving), None);
}

/// With a small ISR under load the high watermark would run ahead of a follower for ever.
#[test]
fn high_watermark_waits_for_who_may_join() {
    let mut leadership = leadership(&[ME], 1);
    take_up(&mut leadership, SECOND, 5, 5);
    assert_eq!(leadership.advance(0, position(9), &nodes()), Some(5));
    assert_eq!(leadership.advance(LAG_MS_MAX + 1, position(9), &nodes()), Some(9), "but not for ever");
}

#[test]
fn follower_with_all_is_in_sync_whatever_the_time() {
    let mut leadership = leadership(&[ME, SECOND], 1);
    take_up(&mut leadership, SECOND, 4, 4);
    leadership.advance(0, position(4), &nodes());
    let late = LAG_MS_MAX * 100;
    assert_eq!(leadership.next_change(late, position(4), &nodes()), None);
    leadership.followers[0].note_growth(late, 4);
    assert_eq!(leadership.next_change(late + LAG_MS_MAX, position(9), &nodes()), None);
    assert_eq!(leadership.next_change(late + LAG_MS_MAX + 1, position(9), &nodes()), Some(vec![ME]));
}

#[test]
fn lag_time_is_what_the_setting_says() {
    let mut leadership = leadership(&[ME, SECOND], 1).with_lag(5_000);
    take_up(&mut leadership, SECOND, 4, 4);
    leadership.followers[0].note_growth(1_000, 4);
    assert_eq!(leadership.next_change(6_000, position(9), &nodes()), None);
    assert_eq!(leadership.next_change(6_001, position(9), &nodes()), Some(vec![ME]));
}

#[test]
fn low_watermark_waits_for_replicas_whose_nodes_live() {
    let trimmed = LogPosition { log_start: 6, ..position(9) };
    let mut leadership = leadership(&[ME, SECOND], 1);
    let two = Nodes::new([live(ME), live(SECOND)]);
    assert_eq!(leadership.low_watermark(trimmed, &two), -1, "nobody heard of it");
    take_up(&mut leadership, SECOND, 9, 9);
    assert_eq!(leadership.low_watermark(trimmed, &two), -1, "it does not speak of that");
    leadership.followers[0].log_start = Some(4);
    assert_eq!(leadership.low_watermark(trimmed, &two), 4);
    leadership.followers[0].log_start = Some(7);
    assert_eq!(leadership.low_watermark(trimmed, &two), 6);
    assert_eq!(leadership.low_watermark(trimmed, &nodes()), -1, "the third has not attached");
    leadership.followers[0].break_off(0);
    assert_eq!(leadership.low_watermark(trimmed, &two), -1, "its connection is lost");
    assert_eq!(leadership.low_watermark(trimmed, &Nodes::new([live(ME)])), 6, "it is gone");
}

/// A trimmed log cannot show that what was before its start is the same: nothing of the follower's is kept.
#[test]
fn follower_with_only_older_epochs_than_the_trimmed_log_begins_anew() {
    let leadership = leadership(&[ME], 1);
    let trimmed = LogPosition { log_start: 6, ..position(9) };
    assert_eq!(leadership.verdict(&attach(8, 8, 2), trimmed, Some((2, 6))), Verdict::Gone { log_start: 6 });
    assert_eq!(leadership.verdict(&attach(8, 8, 5), trimmed, Some((5, 9))), Verdict::Match);
}

/// KAFKA-15608 and KAFKA-20961: whatever epoch is asked for, there is an answer, so nobody asks for ever.
#[test]
fn every_question_has_an_answer() {
    let leadership = leadership(&[ME], 1);
    let at = |end, last_epoch, looked_up| leadership.verdict(&attach(end, end, last_epoch), position(9), looked_up);
    assert_eq!(at(0, -1, None), Verdict::Match);
    assert_eq!(at(99, -1, None), Verdict::Gone { log_start: 0 });
    assert_eq!(at(9, 5, Some((5, 9))), Verdict::Match);
    assert_eq!(at(10, 5, Some((5, 9))), Verdict::Diverge { epoch: 5, end: 9 });
    assert_eq!(at(3, 4, Some((2, 3))), Verdict::Diverge { epoch: 2, end: 3 });
    assert_eq!(at(3, 4, None), Verdict::Gone { log_start: 0 });
    let other = |epoch| leadership.verdict(&Attach { epoch, ..attach(9, 9, 5) }, position(9), Some((5, 9)));
    assert_eq!((other(4), other(6)), (Verdict::Fenced { epoch: 5 }, Verdict::Unknown));
}
