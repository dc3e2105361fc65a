//! Every reachable state of small worlds: the shipped core itself, under a stateright model of what is around it.
//!
//! | file | what it holds |
//! |---|---|
//! | `worlds` | the worlds, and how many states each has |
//! | `setup` | what a world is about |
//! | `world` | one state, and what can happen next: a driver of the `Protocol` contract |
//! | `oracle` | what must hold, and what has to be remembered for it |
//! | `linear` | linearizability of a few answers |
//! | `model` | the same as a stateright model |
//! | `trace` | a path in words |
//!
//! A state is the cores (`WPaxos` says which of them are the same), what is on the way on each link, what is not durable
//! yet, what was asked and answered, which faults are left, and of the past: what is decided and executed per slot, and who
//! has accepted what in slots that are not decided. Checked are the invariants 1 to 9 of `protocol.md` §10 and every
//! assertion of the core; 9 by letting time pass wherever nothing moves any more and nothing is left to be asked.
//!
//! # What is abstracted
//! - **Time** stands still but for ticks, a few per node; each is later than every timer that an answer could be late for,
//!   and where a node may stop it is not before it has. Heartbeats, time-outs of requests and silence without a lost
//!   connection do not occur (intervals that no tick reaches), and the waits of candidates know no chance: with the order
//!   of steps free, chance would only pick some of the orders.
//! - **Batching**: nothing lingers, and every input is a turn of its own.
//! - **Links** are up at first. Frames on one arrive in order, those of different links in any order: that is all the
//!   reordering there is. A loss takes what is on the way at any point, each side sees it and the next connection at any
//!   time, and what a peer sends meanwhile is gone. Nothing is lost without it: a link is a TCP connection.
//! - **Logs** are durable at once, or (`slow_log`) by a step of their own per turn. A crash is for good: coming back is the
//!   simulator's part, since a boot is a world of its own. Streams are not trimmed beyond what all have, links have room.
//! - **Clients** ask once, each with an id of its own, and as often as the world says.
//! - Two commands with one 64-bit hash would be one to the oracle, as two states would be to stateright.
//!
//! A violation is printed as the shortest path to it. `cargo test -p wpaxos-sim --test exhaustive -- --ignored` looks at the
//! large worlds, for minutes.

mod linear;
mod model;
mod oracle;
mod setup;
mod trace;
mod world;
mod worlds;

use setup::Setup;
use stateright::{Checker, HasDiscoveries, Model};
use wpaxos::mutant::Mutant;

/// Bugs that are planted, each with a world in which it shows.
/// `PromiseWithoutDecided` is not among them: it takes a decided slot above a gap, which three writes, three owners and a
/// lost node make, and 3 million steps into that world have not met it. `where_planted_bugs_show` looks for the others.
const PLANTED: &[(Mutant, &str)] = &[
    (Mutant::QuorumAsTotal, "g_halves_that_never_hear_each_other"),
    (Mutant::Phase2OneShort, "b_two_losses_where_both_zones_accept"),
    (Mutant::SentCountsAsAcked, "b_two_losses_where_both_zones_accept"),
    (Mutant::BallotsWithoutNode, "b_two_losses_where_both_zones_accept"),
    (Mutant::OwnTailForgotten, "b_two_losses_where_both_zones_accept"),
    (Mutant::WithdrawnCommitted, "b_two_losses_where_both_zones_accept"),
    (Mutant::RefusalsAfterAck, "b_two_losses_where_both_zones_accept"),
    (Mutant::RefusalsNotSent, "b_two_losses_where_both_zones_accept"),
    (Mutant::RefusalsOnce, "b_two_losses_where_both_zones_accept"),
    (Mutant::ResumeWithoutRefusals, "b_two_losses_where_both_zones_accept"),
    (Mutant::ResumeAcksOneMore, "b_two_losses_where_both_zones_accept"),
    (Mutant::ResumeOneLate, "b_two_losses_where_both_zones_accept"),
    (Mutant::AcceptBelowPromised, "b_two_losses_where_both_zones_accept"),
    (Mutant::AcceptDoesNotRaise, "b_two_losses_where_both_zones_accept"),
    (Mutant::CommitWaits, "b_two_losses_where_both_zones_accept"),
    (Mutant::ForwardLeft, "b_two_losses_where_both_zones_accept"),
    (Mutant::RetryExecutedTwice, "f_a_read_against_a_steal_and_a_loss"),
    (Mutant::SilentObjection, "f_reads_against_a_steal"),
    (Mutant::AckBeforeDurable, "a_steal_with_a_slow_log_where_both_zones_accept"),
    (Mutant::OwnAcceptBeforeDurable, "a_steal_with_a_slow_log_where_both_zones_accept"),
];

/// More steps than a search for a planted bug may take, and than one for the shortest path to it.
const HUNTED_MAX: usize = 3_000_000;
const SHORTEST_MAX: usize = 300_000;

/// Visits every state of a world: nothing is wrong in any, what must be seen is seen, and they are as many as they were.
fn check(name: &str, states: usize, setup: Setup) {
    let began = std::time::Instant::now();
    let checker = setup.clone().checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let (unique, steps, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    println!("{name}: {unique} states, {steps} steps, up to {depth} long, in {:?}", began.elapsed());
    let found = checker.discoveries();
    if found.keys().any(|property| model::is_invariant(property)) {
        let shortest = violation(setup, usize::MAX).expect("it was just found");
        panic!("{name}: {shortest}");
    }
    for (sight, _) in &checker.model().sights {
        assert!(found.contains_key(sight), "{name}: it never happens that {sight}");
    }
    assert_eq!(unique, states, "{name}: another number of states is another behaviour");
}

/// A path to something wrong, in words: the shortest, if that does not take too long.
fn violation(setup: Setup, states_max: usize) -> Option<String> {
    let setup = Setup { sights: Vec::new(), ..setup };
    let builder = |states| setup.clone().checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(states);
    let deep = told(&builder(states_max).spawn_dfs().join())?;
    told(&builder(SHORTEST_MAX.min(states_max)).spawn_bfs().join()).or(Some(deep))
}

fn told(checker: &impl Checker<Setup>) -> Option<String> {
    let (property, path) =
        checker.discoveries().into_iter().min_by_key(|(_, path)| path.clone().into_actions().len())?;
    let text = trace::tell(checker.model(), path);
    Some(format!(
        "{property}: {} steps, after {} states\n{text}",
        text.lines().count() - 1,
        checker.unique_state_count()
    ))
}

#[test]
fn planted_bugs_are_found() {
    for (mutant, name) in PLANTED {
        let setup = worlds::named(name);
        let found = violation(Setup { mutant: Some(*mutant), ..setup }, HUNTED_MAX);
        let found = found.unwrap_or_else(|| panic!("{} is not found in {name}", mutant.name()));
        println!("{} in {name}: {}", mutant.name(), found.lines().next().unwrap_or_default());
    }
}

/// Says in which worlds which planted bugs show: for whoever plants another. `WPAXOS_MUTANT` and `WPAXOS_WORLD` name the only
/// ones to look at.
#[test]
#[ignore = "a search for hours, that asserts nothing"]
fn where_planted_bugs_show() {
    let is_left_out = |variable: &str, name: &str| std::env::var(variable).is_ok_and(|only| only != name);
    for mutant in Mutant::ALL.iter().filter(|mutant| !is_left_out("WPAXOS_MUTANT", mutant.name())) {
        let worlds = worlds::ALL.iter().chain(worlds::UNCOUNTED);
        for (name, setup) in worlds.filter(|(name, _)| !is_left_out("WPAXOS_WORLD", name)) {
            let found = violation(Setup { mutant: Some(*mutant), ..setup() }, HUNTED_MAX);
            let first = found.as_deref().and_then(|found| found.lines().next());
            println!("{} in {name}: {}", mutant.name(), first.unwrap_or("not found"));
        }
    }
}
