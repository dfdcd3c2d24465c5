//! A transaction takes too long and is aborted, the power fails at each operation of that, and its client, which has noticed
//! nothing, commits it in the next life. Seldom by chance: so all of it is tried here.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

use millrace_engine::{simulated::Machine, transactions::Outcome};

use super::{Aim, DATA, Without, World, checks::check, life::Life};
use crate::coordinator::transaction::rule::Rule;

/// One whose epochs last.
const ID: usize = 2;
/// A look before the one at which it is aborted; and until all of that is done.
const ALMOST: Duration = Duration::from_millis(9_800);
const OVER: Duration = Duration::from_secs(2);
/// Operations after which the power fails at the latest.
const OPERATIONS_MAX: u64 = 60;

/// Whether the power failed before the abort was done.
fn is_cut_off(seed: u64, operations: u64, without: Without) -> bool {
    let machine = Rc::new(Machine::new(seed));
    let world = World::new(seed, 3, without, Aim::Nowhere);
    let (run, known) = (Rc::clone(&machine), Rc::clone(&world));
    let is_over = machine.run(async move {
        let life = Life::begin(&run, 1, Rc::clone(&known)).await;
        let producer = life.producer(ID).await.expect("it is served");
        for index in 0..DATA {
            life.write(ID, producer, index).await.expect("it is let in");
        }
        life.shards.sleep(ALMOST).await;
        run.lose_power_after(operations);
        life.shards.sleep(OVER).await;
    });
    if is_over.is_some() {
        return false;
    }
    machine.restart();
    let run = Rc::clone(&machine);
    let is_over = machine.run(async move {
        let life = Life::begin(&run, 2, Rc::clone(&world)).await;
        let producer = world.clients[ID].get().expect("it outlives the node");
        life.end(ID, producer, Outcome::Commit).await;
        life.come_to_rest().await;
        check(&life).await;
    });
    assert!(is_over.is_some(), "the power is on");
    true
}

/// Answers at how many operations it was cut off.
fn at_every_operation(seed: u64, without: Without) -> usize {
    (1..OPERATIONS_MAX).take_while(|operations| is_cut_off(seed, *operations, without)).count()
}

#[test]
fn an_abort_that_the_power_cuts_off_tears_nothing() {
    for seed in super::seeds(4) {
        println!("seed {seed}");
        assert!(at_every_operation(seed, Without::Nothing) > 2, "it is cut off before and after it is decided");
    }
}

/// Markers of an abort beside its decision: some were there and the decision was not, and the next life knew nothing of it.
#[test]
fn with_aborts_beside_their_decision_one_is_torn() {
    let without = Without::Rule(Rule::CommitsOnly);
    let is_found = |seed: &u64| catch_unwind(AssertUnwindSafe(|| at_every_operation(*seed, without))).is_err();
    let found = super::seeds(20).find(is_found);
    println!("found with seed {found:?}");
    assert!(found.is_some());
}
