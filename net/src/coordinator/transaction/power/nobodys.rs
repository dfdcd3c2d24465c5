//! What is open and nobody's when it is looked at, and somebody's when it is to be aborted: step by step, as chance hardly ever
//! finds it.

use std::rc::Rc;

use kafka_protocol::{error::ResponseError, messages::OffsetCommitResponse};
use millrace_engine::{simulated::Machine, transactions::Outcome};

use super::{Aim, Without, World, checks::check, client::OffsetOfClient, life::Life};
use crate::coordinator::{
    group::TransactionGuard,
    transaction::shell::{CommitSteps, LetIn, abort_marker, commit_by},
};

/// One whose epochs last.
const ID: usize = 2;

/// A commit of offsets whose record in the transaction's coordinator is lost.
struct Lost<'a>(OffsetOfClient<'a>);

impl CommitSteps for Lost<'_> {
    async fn guard(&self) -> Result<TransactionGuard, ResponseError> {
        self.0.guard().await
    }

    async fn let_in(&self) -> Result<LetIn, ResponseError> {
        Ok(LetIn::Beside(Box::pin(std::future::ready(Err(ResponseError::NotCoordinator)))))
    }

    async fn give_back(&self, guard: TransactionGuard) {
        self.0.give_back(guard).await;
    }

    async fn write(&self, guard: &TransactionGuard) -> Result<OffsetCommitResponse, ResponseError> {
        self.0.write(guard).await
    }
}

/// What a group's coordinator writes counts as confirmed at once. So the abort of what was nobody's was not refused when the
/// client had committed offsets again meanwhile, and an answered commit lacked them.
#[test]
fn offsets_that_were_let_in_meanwhile_are_not_aborted_as_nobodys() {
    let machine = Rc::new(Machine::new(1));
    let world = World::new(1, 1, Without::Nothing, Aim::Nowhere);
    let run = Rc::clone(&machine);
    let is_over = machine.run(async move {
        let life = Life::begin(&run, 1, world).await;
        let producer = life.producer(ID).await.expect("it is served");
        let lost = Lost(OffsetOfClient { life: &life, id: ID, producer, offset: 1000 });
        assert_eq!(commit_by(&lost).await.err(), Some(ResponseError::CoordinatorLoadInProgress));
        let open = life.shards.open_transactions();
        let mut claimed = Vec::new();
        life.transactions.each_machine(|machine| claimed.extend(machine.claimed(&open)));
        assert_eq!((open.len(), claimed.len()), (1, 0), "nobody knows it");

        life.commit_offset(ID, producer).await.expect("its client tries again");
        let aborted = life.write_marker(abort_marker(&open[0])).await;
        assert_eq!(aborted, Err(ResponseError::InvalidTxnState));
        assert!(life.end(ID, producer, Outcome::Commit).await.is_some());
        check(&life).await;
    });
    assert!(is_over.is_some(), "the power was on");
}
