//! `wpaxos-sim --hostile`: runs with a peer that sends what it likes.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use wpaxos::sim::hostile::{Tally, run};

use crate::args::Args;

/// How many steps a run has unless `--steps` says so.
pub const STEPS: u64 = 20_000;

/// Makes the runs that the command line asks for; false if something was found wrong.
pub fn run_all(args: &Args) -> bool {
    let steps = args.steps.unwrap_or(STEPS);
    let (first, count) = match (args.seed, args.minutes) {
        (Some(seed), _) => (seed, 1),
        (None, Some(_)) => (args.first, u64::MAX - args.first),
        (None, None) => (args.first, args.seeds),
    };
    let until = args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(60.0 * minutes));
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let work = || {
        let (mut sum, mut runs, mut found) = (Tally::default(), 0u64, false);
        while until.is_none_or(|until| Instant::now() < until) && !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - first >= count {
                break;
            }
            runs += 1;
            match run(seed, steps) {
                Ok(tally) => sum.add(&tally),
                Err(error) => {
                    failed.store(!args.go_on, Ordering::Relaxed);
                    wpaxos::say!("seed {seed}: {error}\n    again: wpaxos-sim --hostile --seed {seed} --steps {steps}");
                    found = true;
                }
            }
        }
        (sum, runs, found)
    };
    let results: Vec<(Tally, u64, bool)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("runs catch panics")).collect()
    });
    let mut sum = Tally::default();
    results.iter().for_each(|(tally, ..)| sum.add(tally));
    let runs: u64 = results.iter().map(|(_, runs, _)| runs).sum();
    wpaxos::say!(
        "{runs} runs of {steps} steps: {} frames, {} of them hostile, {} refused; {} requests answered; {} restarts, {} \
         checkpoints compared",
        sum.frames,
        sum.hostile,
        sum.refused,
        sum.answered,
        sum.restarts,
        sum.compared
    );
    !results.iter().any(|(.., found)| *found)
}
