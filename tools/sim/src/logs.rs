//! Runs of logs on block devices, without clusters.

use std::time::Instant;

use wpaxos::sim::logs::{Options, Report, run};

use crate::args::Args;

/// Runs the logs of the seeds that the command line names, one after the other; whether nothing was found wrong.
pub fn many(args: &Args) -> bool {
    let (began, mut total, mut failed) = (Instant::now(), Report::default(), 0);
    let minutes = args.minutes.unwrap_or(f64::MAX);
    let (first, count) = match (args.seed, args.minutes) {
        (Some(seed), _) => (seed, 1),
        (None, Some(_)) => (args.first, u64::MAX - args.first),
        (None, None) => (args.first, args.seeds),
    };
    for seed in first..first + count {
        match run(&Options { seed, mutant: args.mutant, cut_after: None }) {
            Ok(report) => total.add(&report),
            Err(wrong) => {
                wpaxos::say!("{wrong}");
                wpaxos::say!("again: wpaxos-sim --logs --seed {seed}");
                failed += 1;
            }
        }
        if (failed > 0 && !args.go_on) || began.elapsed().as_secs_f64() > minutes * 60.0 {
            break;
        }
    }
    wpaxos::say!("logs: {failed} failed in {:.1} s; {total:?}", began.elapsed().as_secs_f64());
    failed == 0
}
