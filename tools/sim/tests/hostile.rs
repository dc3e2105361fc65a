//! A peer that is accepted and sends what it likes neither ends a node nor poisons its directory.

use wpaxos::sim::hostile::{Tally, run};

/// How many seeds a usual test run takes, and how many steps each: well below a minute on two cores.
const SEEDS: u64 = 60;
const STEPS: u64 = 3_000;

#[test]
fn a_hostile_peer_ends_and_poisons_nothing() {
    let half = |from: u64| {
        let mut sum = Tally::default();
        for seed in (from..SEEDS).step_by(2) {
            match run(seed, STEPS) {
                Ok(tally) => sum.add(&tally),
                Err(error) => panic!("seed {seed}: {error}\nagain: wpaxos-sim --hostile --seed {seed} --steps {STEPS}"),
            }
        }
        sum
    };
    let mut sum = half(0);
    std::thread::scope(|scope| sum.add(&scope.spawn(|| half(1)).join().expect("it says why")));
    println!("{sum:?}");
    // The runs are worth something: frames get past the door, and are refused there.
    assert!(sum.hostile > 5 * sum.refused / 4 && sum.refused > 10 * SEEDS, "{sum:?}");
    assert!(sum.restarts > 5 * SEEDS && sum.compared > 5 * SEEDS && sum.answered > 100 * SEEDS, "{sum:?}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in 1..6 {
        assert_eq!(run(seed, 500), run(seed, 500));
    }
}
