//! A randomized model of whole clusters: the shipped `WPaxos` in virtual time, everything from one seed.
//!
//! | file | what it holds |
//! |---|---|
//! | `setup` | what a history is about: cluster, tuning, weather |
//! | `world` | the driver: nodes, logs, links, events |
//! | `faults` | what goes wrong |
//! | `clients` | who asks what, and what they learn |
//! | `oracle` | what must hold after every input |
//! | `linear` | linearizability of what the clients saw |
//!
//! A history has a bad phase, then heals; then every request must end, all replicas must become equal, and every node
//! must serve every key. A failing one prints the command that runs it again:
//! `WPAXOS_MODEL_SEED=… cargo test --test model histories`, with `WPAXOS_MODEL_TRACE=1` for what happens in it.
//! `WPAXOS_MODEL_SEEDS=N` runs N of them, from `WPAXOS_MODEL_FIRST` on; `WPAXOS_MODEL_GO_ON=1` does not stop at the first
//! that fails.

mod clients;
mod faults;
mod linear;
mod oracle;
mod random;
mod setup;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use random::Random;
use setup::Setup;
use world::World;
use wpaxos::protocol::{Protocol, ReadMode};

/// How many histories a usual test run takes.
const SEEDS: u64 = 300;

/// What a history amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Summary {
    inputs: u64,
    operations: usize,
    executed: usize,
    undecided: usize,
    trace_hash: u64,
}

fn run(seed: u64) -> Summary {
    let setup = Setup::new(seed);
    let mut world = World::new(seed, setup);
    world.say(|| format!("{:?}", world.setup));
    world.oracle.mortal = faults::mortal(&world.setup, &mut Random::new(seed, 4));
    world.begin_weather();
    world.begin_clients();
    let storm = world.now + world.setup.storm_us;
    world.run(storm + 50_000, |_| false);
    finish_requests(&mut world);
    // What a dead owner had committed, and told only some, the others learn when somebody uses the object.
    if world.live().count() == world.nodes.len() {
        become_equal(&mut world, "after healing");
    }
    serve_everything(&mut world);
    become_equal(&mut world, "in the end");
    let undecided = check_histories(&world);
    Summary {
        inputs: world.handled,
        operations: world.clients.operations.len(),
        executed: world.clients.executed(),
        undecided,
        trace_hash: world.trace_hash,
    }
}

/// Nobody asks for anything new: every request ends.
fn finish_requests(world: &mut World) {
    world.clients.closed = true;
    let timeout = world.setup.tuning.timers.request_timeout_us;
    let limit = world.now + 5 * (timeout + world.setup.patience_us);
    let done = world
        .run(limit, |world| world.clients.are_done() && world.clients.waiting(|node| !world.nodes[node].dead) == 0);
    let waiting = world.clients.waiting(|node| !world.nodes[node].dead);
    assert!(done, "{waiting} requests are never answered");
}

/// All live replicas know the same, and nothing is under way.
fn become_equal(world: &mut World, when: &str) {
    let limit = world.now + 2_000_000;
    let done = world.run(limit, |world| difference(world).is_none());
    let difference = difference(world);
    assert!(done, "{when}: {}", difference.unwrap_or_default());
}

fn difference(world: &World) -> Option<String> {
    let live: Vec<_> = world.live().map(|node| (node, &world.nodes[node].core)).collect();
    let busy = live.iter().find(|(_, core)| !core.is_idle());
    match world.oracle.difference(&live) {
        None => busy.map(|(node, core)| format!("node {node} is not idle: {:?}", core.counters())),
        difference => difference,
    }
}

/// Every live node serves every key, in every way.
fn serve_everything(world: &mut World) {
    let live: Vec<usize> = world.live().collect();
    for key in 0..world.setup.keys() {
        for node in &live {
            world.must_succeed(*node, key, true, ReadMode::Confirm);
            world.must_succeed(*node, key, false, ReadMode::Confirm);
        }
        world.must_succeed(live[0], key, false, ReadMode::Log);
    }
}

/// Linearizability per key; how many keys' searches were given up.
fn check_histories(world: &World) -> usize {
    for value in world.clients.refused_values() {
        let seen = world.oracle.values.get(&value);
        assert_eq!(seen, None, "operation {} happened though it was refused", value - 1);
    }
    let mut undecided = 0;
    for key in 0..world.setup.keys() {
        let history = world.clients.history(key);
        match linear::check(&history, 200_000) {
            linear::Verdict::Linearizable => {}
            linear::Verdict::TooLong => undecided += 1,
            linear::Verdict::Not => panic!("key {key} is not linearizable: {history:#?}"),
        }
    }
    undecided
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn histories() {
    let (first, count) = match number("WPAXOS_MODEL_SEED") {
        Some(seed) => (seed, 1),
        None => (number("WPAXOS_MODEL_FIRST").unwrap_or(1), number("WPAXOS_MODEL_SEEDS").unwrap_or(SEEDS)),
    };
    let began = std::time::Instant::now();
    let mut sum = Summary::default();
    let go_on = std::env::var_os("WPAXOS_MODEL_GO_ON").is_some();
    let mut failed = 0;
    for seed in first..first + count {
        let summary = catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|panic| {
            eprintln!("history {seed} fails: WPAXOS_MODEL_SEED={seed} cargo test --test model histories");
            failed += 1;
            if !go_on {
                resume_unwind(panic)
            }
            Summary::default()
        });
        sum.inputs += summary.inputs;
        sum.operations += summary.operations;
        sum.executed += summary.executed;
        sum.undecided += summary.undecided;
    }
    println!("{count} histories in {:?}: {sum:?}", began.elapsed());
    assert_eq!(failed, 0, "histories failed");
    assert!(sum.undecided as u64 <= count / 20, "the search for an order is given up too often: {sum:?}");
}

#[test]
fn a_seed_gives_the_same_history_again() {
    for seed in 1..4 {
        assert_eq!(run(seed), run(seed));
    }
}
