//! One run.

use std::time::Instant;

use wpaxos::sim::{
    run::{Options, run as run_once},
    shrink::shrink,
};

use crate::{args::Args, many::Total};

/// Runs that the search for a shorter schedule makes at most.
pub(crate) const SHRINK_RUNS_MAX: usize = 400;

/// Makes the run of this seed.
pub fn run(args: &Args, seed: u64) -> Total {
    let options = Options {
        seed,
        mutant: args.mutant,
        without: args.without.iter().copied().collect(),
        operations_max: args.operations.unwrap_or(usize::MAX),
        steps_max: args.steps.unwrap_or(u64::MAX),
        trace: args.trace,
    };
    let began = Instant::now();
    let result = run_once(&options);
    let took = began.elapsed();
    let mut total = Total::default();
    match result {
        Ok(summary) => {
            wpaxos::say!("{}", wpaxos::sim::plan::Plan::new(seed));
            wpaxos::say!("nothing wrong in {took:.1?}: {summary:?}");
            total.add(Ok(summary));
        }
        Err(failure) => {
            let failure = if args.shrink { shrink(failure, SHRINK_RUNS_MAX) } else { failure };
            wpaxos::say!("{failure}");
            total.add(Err(failure));
        }
    }
    total
}
