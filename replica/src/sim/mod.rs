//! A simulator of the whole protocol: several nodes with the real cores of the channel, the real decisions of the control plane on
//! its store in memory, and models of engine, disk and network that fail in all the ways that are known.
//!
//! Not in it: unclean elections, which lose records by what they are; and the controller's own loop (`cluster::core`), in whose
//! place stands a smaller one with the same decisions.
//!
//! `MILLRACE_SIM_SEEDS=10000` runs more seeds, also to find that a guard is missing; `MILLRACE_SIM_SEED=7` runs one of them and
//! tells what happens.

mod control;
mod deleting;
mod faults;
mod ghost;
mod limiting;
mod log;
mod network;
mod random;
mod shell;
mod transactions;
mod waiting;
mod world;

use waiting::Answers;
use world::{Plan, Rule, World};

use crate::channel::guard::Guard;

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;

fn run(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.is_telling = std::env::var_os("MILLRACE_SIM_SEED").is_some();
    world.run();
    world
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

#[test]
fn same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let world = run(Plan::new(seed));
        (world.trace, world.last_record, world.waits.answers)
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn nothing_acknowledged_is_lost() {
    let seeds = match number("MILLRACE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MILLRACE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let is_one = seeds.end - seeds.start == 1;
    let (mut answers, mut violations) = (Answers::default(), Vec::new());
    for seed in seeds {
        let world = run(Plan::new(seed));
        answers = answers.and(world.waits.answers);
        if let Some(violation) = world.violation {
            violations.push(format!("MILLRACE_SIM_SEED={seed}: {} at {} ms", violation.0, world.now_ms));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert!(is_one || answers.has_all(), "some end of a wait was never seen: {answers:?}");
}

/// Seeds within which the simulator has to find a guard that is missing.
const SEEDS_WITHOUT: u64 = 400;

/// Seeds that are tried first, because they found something when this was written.
const SEEDS_FIRST: [u64; 11] = [0, 1, 2, 3, 5, 11, 14, 47, 49, 90, 487];

fn find(plan: impl Fn(u64) -> Plan) -> Option<(u64, String)> {
    let tried = number("MILLRACE_SIM_SEEDS").unwrap_or(SEEDS_WITHOUT);
    let seeds = SEEDS_FIRST.into_iter().chain(0..tried);
    seeds.into_iter().find_map(|seed| Some((seed, run(plan(seed)).violation?.0)))
}

/// The guards are what keeps records: the simulator notices when any of them is missing, so it would notice a bug there.
#[test]
fn every_missing_guard_find() {
    let mut missed = Vec::new();
    for guard in Guard::ALL {
        match find(|seed| Plan { without: Some(guard), ..Plan::new(seed) }) {
            Some((seed, violation)) => println!("{guard:?}: seed {seed}: {violation}"),
            None => missed.push(format!("{guard:?}")),
        }
    }
    for rule in Rule::ALL {
        match find(|seed| Plan { breaks: Some(rule), ..Plan::new(seed) }) {
            Some((seed, violation)) => println!("{rule:?}: seed {seed}: {violation}"),
            None => missed.push(format!("{rule:?}")),
        }
    }
    assert!(missed.is_empty(), "nothing went wrong without {}", missed.join(", "));
}
