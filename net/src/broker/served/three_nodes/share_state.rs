//! What a node answers other brokers about the state of share partitions.

use kafka_protocol::ResponseError;
use millrace_engine::{
    api::TopicPartition,
    replica::{Leadership, Replica},
};
use uuid::Uuid;

use super::fixture::{Node, place, with_three_nodes};
use crate::coordinator::share::state::{
    Delete, DeliveryState, Initialize, Part, RawBatch, Read, ReadState, ReadSummary, StateBatch, StateRequest, Summary,
    WriteState,
};

const STATES: Uuid = Uuid::from_u128(50);

/// Has the node have the one partition of the state.
async fn states(node: &Node) -> Replica {
    place(&node.engine, STATES, "__share_group_state", &[&[2, 3]]).await;
    node.engine.replica(TopicPartition { topic: STATES, partition: 0 }).expect("it is here")
}

async fn ask<P: Part>(node: &Node, partition: i32, part: P) -> Result<P::Answer, ResponseError> {
    let request = StateRequest { group: "g".to_owned(), topics: vec![(node.topic, vec![(partition, part)])] };
    let mut told = node.call(P::VERSION_MAX, request).await;
    let (topic, mut partitions) = told.topics.pop().expect("one topic");
    let (index, answer) = partitions.pop().expect("one partition");
    assert_eq!((topic, index, told.topics.len(), partitions.len()), (node.topic, partition, 0, 0));
    answer.map_err(|refused| refused.error)
}

fn write(epochs: (i32, i32), start_offset: i64) -> WriteState {
    let state = DeliveryState::Acknowledged;
    let batch = StateBatch { first_offset: 9, last_offset: 9, state, delivery_count: 1 };
    let batches = vec![RawBatch::from(&batch)];
    let (state_epoch, leader_epoch) = epochs;
    WriteState { state_epoch, leader_epoch, start_offset, delivery_complete_count: 1, batches }
}

#[test]
fn state_is_set_read_written_and_deleted() {
    with_three_nodes(&[], async |node: Node| {
        states(&node).await.lead(7, Leadership::Alone).await.expect("it leads");
        let none = Summary { state_epoch: 0, leader_epoch: 0, start_offset: -1, delivery_complete_count: -1 };
        let summary = ReadSummary { leader_epoch: 0 };
        assert_eq!(ask(&node, 1, summary).await, Ok(none), "there is none");
        assert_eq!(ask(&node, 1, Read { leader_epoch: 3 }).await, Err(ResponseError::InvalidRequest));
        assert_eq!(ask(&node, 1, write((2, 3), 8)).await, Err(ResponseError::InvalidRequest));
        assert_eq!(ask(&node, 1, Delete).await, Ok(()), "nothing is left to do");

        let anew = Initialize { state_epoch: 2, start_offset: 8 };
        assert_eq!(ask(&node, 1, anew).await, Ok(()));
        let state = ReadState { state_epoch: 2, start_offset: 8, batches: Vec::new() };
        assert_eq!(ask(&node, 1, Read { leader_epoch: 3 }).await, Ok(state.clone()));
        assert_eq!(ask(&node, 1, write((2, 3), 8)).await, Ok(()));
        let written = write((2, 3), 8).batches;
        assert_eq!(ask(&node, 1, Read { leader_epoch: 3 }).await, Ok(ReadState { batches: written, ..state }));
        let told = Summary { state_epoch: 2, leader_epoch: 3, start_offset: 8, delivery_complete_count: 1 };
        assert_eq!(ask(&node, 1, summary).await, Ok(told));
        assert_eq!(ask(&node, 1, Delete).await, Ok(()));
        assert_eq!(ask(&node, 1, summary).await, Ok(none));
    });
}

#[test]
fn former_leaders_and_writers_of_a_former_state_are_fenced() {
    with_three_nodes(&[], async |node: Node| {
        states(&node).await.lead(7, Leadership::Alone).await.expect("it leads");
        ask(&node, 1, Initialize { state_epoch: 2, start_offset: 8 }).await.expect("it is set");
        ask(&node, 1, Read { leader_epoch: 3 }).await.expect("it is read");
        assert_eq!(ask(&node, 1, Read { leader_epoch: 2 }).await, Err(ResponseError::FencedLeaderEpoch));
        assert_eq!(ask(&node, 1, write((2, 2), 8)).await, Err(ResponseError::FencedLeaderEpoch));
        assert_eq!(ask(&node, 1, write((1, 3), 8)).await, Err(ResponseError::FencedStateEpoch));
        let older = Initialize { state_epoch: 1, start_offset: 8 };
        assert_eq!(ask(&node, 1, older).await, Err(ResponseError::FencedStateEpoch));
    });
}

#[test]
fn what_makes_no_sense_is_refused() {
    with_three_nodes(&[], async |node: Node| {
        states(&node).await.lead(7, Leadership::Alone).await.expect("it leads");
        let anew = |state_epoch, start_offset| Initialize { state_epoch, start_offset };
        ask(&node, 1, anew(2, 8)).await.expect("it is set");
        let refused = Err(ResponseError::InvalidRequest);
        assert_eq!(ask(&node, 1, anew(-1, 8)).await, refused);
        assert_eq!(ask(&node, 1, anew(3, -2)).await, refused);
        assert_eq!(ask(&node, 1, write((2, -1), 8)).await, refused);
        assert_eq!(ask(&node, 1, Read { leader_epoch: -1 }).await.err(), refused.err());
        for partition in [-1, 4] {
            let unknown = ask(&node, partition, anew(2, 8)).await;
            assert_eq!(unknown, Err(ResponseError::UnknownTopicOrPartition), "{partition}");
        }
        for (group, topics) in
            [("", vec![(node.topic, vec![(1, anew(2, 8))])]), ("g", vec![(node.topic, Vec::new())]), ("g", Vec::new())]
        {
            let told = node.call(0, StateRequest { group: group.to_owned(), topics }).await;
            assert_eq!(told.topics, [], "{group:?}");
        }
    });
}

#[test]
fn a_node_that_does_not_lead_the_state_is_not_its_coordinator() {
    with_three_nodes(&[], async |node: Node| {
        let anew = Initialize { state_epoch: 2, start_offset: 8 };
        assert_eq!(ask(&node, 1, anew).await, Err(ResponseError::NotCoordinator), "nobody has made the topic");
        states(&node).await.follow(7).await.expect("it follows");
        assert_eq!(ask(&node, 1, anew).await, Err(ResponseError::NotCoordinator));
    });
}
