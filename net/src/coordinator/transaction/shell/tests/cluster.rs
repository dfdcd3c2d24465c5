//! The same where there are other nodes, of which none can be reached: what this one does by itself, and what it leaves
//! alone.

use std::{cell::Cell, rc::Rc};

use millrace_engine::transactions::OpenTransaction;

use super::*;
use crate::{
    client::{ClusterMap, Led, NodeAddress, OtherBrokers},
    coordinator::transaction::shell::{Reconciler, TRANSACTION_TOPIC, verify_or_add},
};

/// Who leads the topic of transactions; everything else is led here.
#[derive(Clone)]
struct Map {
    engine: Engine,
    coordinator: Rc<Cell<Option<Led>>>,
}

impl ClusterMap for Map {
    fn here(&self) -> i32 {
        self.engine.node_id()
    }

    fn led(&self, partition: TopicPartition) -> Option<Led> {
        let topics = self.engine.topics();
        let is_of_transactions = topics.by_id.get(&partition.topic).is_some_and(|it| it.name == TRANSACTION_TOPIC);
        match is_of_transactions {
            true => self.coordinator.get(),
            false => Some(Led { node: self.here(), epoch: 0 }),
        }
    }

    fn address(&self, _: i32) -> Option<NodeAddress> {
        None
    }
}

const ELSEWHERE: Led = Led { node: 9, epoch: 4 };

/// Starts coordinators of a node that coordinates everything itself until the test says otherwise.
fn start_in_cluster(engine: &Engine) -> Rc<Cell<Option<Led>>> {
    let coordinator = Rc::new(Cell::new(Some(Led { node: engine.node_id(), epoch: 0 })));
    let map = Map { engine: engine.clone(), coordinator: Rc::clone(&coordinator) };
    engine.attach(Rc::new(OtherBrokers::new(Box::new(map)).unwrap()));
    start(engine);
    coordinator
}

/// Something that is open in a partition, and has been for long.
async fn leave_open(engine: &Engine, partition: TopicPartition) -> Vec<OpenTransaction> {
    engine.use_transactions().await.unwrap();
    let nobody = Producer { id: 77, epoch: 3 };
    engine.admit(vec![partition], nobody.id, nobody.epoch).await;
    assert_eq!(produce(engine, partition, (nobody, 0), Adds::Verify).await, Ok(0));
    let mut open = engine.open_transactions().await;
    open.iter_mut().for_each(|open| open.started_ms = 0);
    open
}

#[test]
fn markers_follow_the_decision_and_the_end_is_answered_behind_them() {
    on_node(async |engine: Engine, _| {
        let (one, other) = (new_topic(&engine, "one").await, new_topic(&engine, "other").await);
        let _here = start_in_cluster(&engine);
        Coordinators::started(&engine).await;
        let mut producer = begin(&engine).await;
        for round in 0..2 {
            for partition in [one, other] {
                assert_eq!(produce(&engine, partition, (producer, 0), Adds::Add).await, Ok(2 * round));
            }
            producer = end(&engine, "id", commit(producer, 2)).await.unwrap();
            assert_eq!(
                (last_stable(&engine, one).await, last_stable(&engine, other).await),
                (2 * round + 2, 2 * round + 2)
            );
        }
        assert_eq!(describe(&engine, "id").await.unwrap().state, State::CompleteCommit);
    });
}

/// No abort on a guess: whoever cannot be heard may know the transaction.
#[test]
fn what_a_coordinator_that_is_not_heard_may_know_is_left_alone() {
    on_node(async |engine: Engine, _| {
        let partition = new_topic(&engine, "topic").await;
        let coordinator = start_in_cluster(&engine);
        Coordinators::started(&engine).await;
        begin(&engine).await; // there is a topic of transactions
        let open = leave_open(&engine, partition).await;
        let reconciler = Reconciler::attach(&engine);
        for led in [Some(ELSEWHERE), None] {
            coordinator.set(led);
            for _ in 0..2 {
                assert!(reconciler.look_through(open.clone()).await.is_err(), "{led:?}");
            }
        }
        // the image says that this node coordinates, in an epoch of which its own log does not know yet
        coordinator.set(Some(Led { node: engine.node_id(), epoch: 5 }));
        assert!(reconciler.look_through(open.clone()).await.is_err());
        assert_eq!(engine.open_transactions().await.len(), 1);

        coordinator.set(Some(Led { node: engine.node_id(), epoch: 0 }));
        reconciler.look_through(open.clone()).await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 1, "it may have begun between two looks");
        reconciler.look_through(open).await.unwrap();
        assert_eq!(engine.open_transactions().await.len(), 0);
    });
}

#[test]
fn a_transaction_that_a_coordinator_claims_is_left_to_it() {
    on_node(async |engine: Engine, _| {
        let partition = new_topic(&engine, "topic").await;
        let _here = start_in_cluster(&engine);
        Coordinators::started(&engine).await;
        let producer = begin(&engine).await;
        assert_eq!(produce(&engine, partition, (producer, 0), Adds::Add).await, Ok(0));
        let open = engine.open_transactions().await;
        let reconciler = Reconciler::attach(&engine);
        for _ in 0..2 {
            reconciler.look_through(open.clone()).await.unwrap();
        }
        assert_eq!(engine.open_transactions().await.len(), 1);
        assert_eq!(end(&engine, "id", commit(producer, 2)).await.map(|next| next.epoch), Ok(producer.epoch + 1));
    });
}

#[test]
fn who_is_refused_by_its_coordinator_is_not_asked_about_again() {
    on_node(async |engine: Engine, _| {
        new_topic(&engine, "topic").await;
        let _here = start_in_cluster(&engine);
        Coordinators::started(&engine).await;
        let producer = begin(&engine).await;
        let names = || vec![("topic".to_owned(), 0)];
        let fenced = Producer { epoch: producer.epoch - 1, ..producer };
        let refused = verify_or_add(&engine, "id", fenced, names(), Adds::Add).await;
        assert_eq!(refused, Err(ResponseError::ProducerFenced));
        let refused = verify_or_add(&engine, "id", producer, names(), Adds::Verify).await;
        assert_eq!(refused, Err(ResponseError::TransactionAbortable));
        assert_eq!(verify_or_add(&engine, "id", producer, names(), Adds::Add).await, Ok(()));
    });
}
