//! A fixed set of seeds, without a violation; and the promises that the simulator itself makes.

use std::collections::BTreeSet;

use wpaxos::{
    mutant::Mutant,
    sim::{
        oracle::Rule,
        plan::{Crashes, Plan, Theme, Weather},
        run::{Options, run},
        shrink::shrink,
    },
};
use wpaxos_sim::many::Series;

/// How many seeds a usual test run takes.
const SEEDS: u64 = 1500;

fn series(first: u64, count: u64) -> Series {
    Series { template: Options::of(0), first, count, until: None, threads: 2, go_on: false }
}

#[test]
fn nothing_is_found_wrong() {
    let total = series(1, SEEDS).run();
    if let Some(failure) = total.failures.first() {
        panic!("{failure}");
    }
    println!("{:?}", total.sum);
    assert_eq!(total.runs, SEEDS);
    // The runs are worth something: most requests are executed though much goes wrong, and verdicts are reached.
    assert!(total.sum.executed as u64 > 50 * SEEDS, "{:?}", total.sum);
    assert!(total.sum.faults as u64 > 5 * SEEDS, "{:?}", total.sum);
    assert!(total.sum.undecided as u64 <= SEEDS / 10, "the search for an order is given up too often: {:?}", total.sum);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in 1..20 {
        let options = Options::of(seed);
        assert_eq!(run(&options).unwrap(), run(&options).unwrap(), "seed {seed}");
    }
}

#[test]
fn other_seeds_give_other_runs() {
    let hashes: BTreeSet<u64> = (1..20).map(|seed| run(&Options::of(seed)).unwrap().trace_hash).collect();
    assert_eq!(hashes.len(), 19);
}

#[test]
fn the_plans_cover_what_they_should() {
    let plans: Vec<Plan> = (1..1000).map(Plan::new).collect();
    let share = |what: &dyn Fn(&Plan) -> bool| plans.iter().filter(|plan| what(plan)).count();
    for theme in [Theme::Mixed, Theme::Crashes, Theme::StealStorm, Theme::CatchUp, Theme::Crowd] {
        assert!(share(&|plan| plan.theme == theme) > 20, "{theme:?}");
    }
    for weather in [Weather::Calm, Weather::Unsettled, Weather::Storm] {
        assert!(share(&|plan| plan.weather == weather) > 100, "{weather:?}");
    }
    for crashes in [Crashes::None, Crashes::ForGood, Crashes::KeepLog, Crashes::LoseDisk] {
        assert!(share(&|plan| plan.crashes == crashes) > 50, "{crashes:?}");
    }
    assert!(share(&|plan| plan.cluster.shards > 1) > 200 && share(&|plan| plan.cluster.zones.len() > 2) > 200);
    assert!(
        share(&|plan| plan.disk_us > 0) > 300
            && share(&|plan| plan.clock_ppm.iter().any(|rate| *rate != 1_000_000)) > 300
    );
}

/// A run that fails says what it takes to repeat it, and a shorter schedule still breaks the same rule.
#[test]
fn a_failure_is_repeated_by_its_command_and_made_shorter() {
    let planted = |seed| Options { mutant: Some(Mutant::RefusalsNotSent), ..Options::of(seed) };
    let failure = (1..100).find_map(|seed| run(&planted(seed)).err()).expect("it is found at once");
    let rule = failure.violation.rule;
    let again = run(&failure.options).expect_err("the same run fails again");
    assert_eq!((again.violation, again.summary), (failure.violation.clone(), failure.summary));
    let text = failure.to_string();
    for part in ["faults until then:", "pending:", "again: cargo run", "--mutant refusals-not-sent", "quorum"] {
        assert!(text.contains(part), "'{part}' is missing in {text}");
    }
    let faults = failure.faults.len();
    let shorter = shrink(failure, 200);
    assert_eq!(shorter.violation.rule, rule);
    assert!(shorter.faults.len() <= faults && shorter.options.operations_max != usize::MAX, "{shorter}");
    assert_eq!(run(&shorter.options).expect_err("it fails too").violation, shorter.violation);
}

/// A panic of the core is a finding like any other, and ends its own run only.
#[test]
fn an_assertion_of_the_core_is_a_finding() {
    let options = |seed| Options { mutant: Some(Mutant::AcceptDoesNotRaise), ..Options::of(seed) };
    let failure = (1..100).find_map(|seed| run(&options(seed)).err()).expect("it is found at once");
    assert_eq!(failure.violation.rule, Rule::Core);
    assert!(failure.violation.text.contains("src/protocol/wpaxos/"), "{}", failure.violation.text);
}
