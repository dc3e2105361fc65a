//! Many runs, on all cores.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use wpaxos::sim::{
    run::{Failure, Options, Summary, run as run_once},
    shrink::shrink,
};

use crate::{args::Args, one::SHRINK_RUNS_MAX};

/// What runs amount to.
#[derive(Debug, Default)]
pub struct Total {
    /// Runs made.
    pub runs: u64,
    /// The sum of what they did.
    pub sum: Summary,
    /// Those that failed, in the order of their seeds.
    pub failures: Vec<Box<Failure>>,
}

/// Which runs are to be made.
#[derive(Clone, Debug)]
pub struct Series {
    /// How each is made, but for its seed.
    pub template: Options,
    /// The first seed.
    pub first: u64,
    /// How many seeds.
    pub count: u64,
    /// When to stop, if that is earlier.
    pub until: Option<Instant>,
    /// On so many threads.
    pub threads: usize,
    /// Whether to go on after a run that fails.
    pub go_on: bool,
}

impl Series {
    /// Makes the runs. Where one failed and the series does not go on, no seed below its is left out.
    pub fn run(&self) -> Total {
        let next = AtomicU64::new(self.first);
        let stop = AtomicBool::new(false);
        let total = Mutex::new(Total::default());
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| self.work(&next, &stop, &total));
            }
        });
        let mut total = total.into_inner().expect("nothing panics under this lock");
        total.failures.sort_by_key(|failure| failure.options.seed);
        total
    }

    fn work(&self, next: &AtomicU64, stop: &AtomicBool, total: &Mutex<Total>) {
        while !stop.load(Ordering::Relaxed) && self.until.is_none_or(|until| Instant::now() < until) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - self.first >= self.count {
                break;
            }
            let result = run_once(&Options { seed, ..self.template.clone() });
            if let Err(failure) = &result {
                // At once: a night may be interrupted.
                wpaxos::complain!("seed {seed}: {}", failure.violation);
                stop.fetch_or(!self.go_on, Ordering::Relaxed);
            }
            total.lock().expect("nothing panics under this lock").add(result);
        }
    }
}

impl Total {
    /// Adds a run.
    pub fn add(&mut self, result: Result<Summary, Box<Failure>>) {
        self.runs += 1;
        let summary = match &result {
            Ok(summary) => *summary,
            Err(failure) => failure.summary,
        };
        self.sum.steps += summary.steps;
        self.sum.time_us += summary.time_us;
        self.sum.operations += summary.operations;
        self.sum.executed += summary.executed;
        self.sum.faults += summary.faults;
        self.sum.undecided += summary.undecided;
        self.sum.settled_us = self.sum.settled_us.max(summary.settled_us);
        self.sum.trace_hash ^= summary.trace_hash;
        self.failures.extend(result.err());
    }

    /// As JSON, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let failures = self.failures.iter().map(|failure| {
            serde_json::json!({
                "seed": failure.options.seed,
                "rule": failure.violation.rule.name(),
                "text": failure.violation.text,
                "command": failure.options.command(),
            })
        });
        serde_json::json!({
            "runs": self.runs,
            "events": self.sum.steps,
            "virtual_seconds": self.sum.time_us as f64 / 1e6,
            "operations": self.sum.operations,
            "known_executed": self.sum.executed,
            "faults": self.sum.faults,
            "searches_given_up": self.sum.undecided,
            "settled_seconds_max": self.sum.settled_us as f64 / 1e6,
            "failures": failures.collect::<Vec<_>>(),
        })
    }
}

/// Makes the runs that the command line asks for.
pub fn run(args: &Args) -> Total {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    let until = args.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0));
    let series = Series {
        template: Options { mutant: args.mutant, ..Options::of(0) },
        first: args.first,
        count: if until.is_some() { u64::MAX - args.first } else { args.seeds },
        until,
        threads,
        go_on: args.go_on,
    };
    let mut total = series.run();
    say(&total, began.elapsed().as_secs_f64(), threads);
    if let Some(first) = total.failures.first_mut() {
        if args.shrink {
            *first = shrink(first.clone(), SHRINK_RUNS_MAX);
        }
        wpaxos::say!("\nthe first that failed:\n{first}");
    }
    total
}

fn say(total: &Total, took: f64, threads: usize) {
    let Summary { steps, time_us, operations, executed, faults, undecided, settled_us, .. } = total.sum;
    let (simulated, minutes) = (time_us as f64 / 1e6, took / 60.0);
    wpaxos::say!("{} seeds, {} failed", total.runs, total.failures.len());
    wpaxos::say!(
        "{took:.1} s on {threads} threads: {:.0} seeds and {:.1} million events a minute; a second of a thread is {:.0} s \
         of virtual time",
        total.runs as f64 / minutes,
        steps as f64 / minutes / 1e6,
        simulated / took / threads as f64,
    );
    wpaxos::say!(
        "{steps} events, {simulated:.0} s of virtual time, {operations} operations, {executed} known to be executed, \
         {faults} faults, {undecided} searches for an order given up, settled {:.2} s after healing at the latest",
        settled_us as f64 / 1e6
    );
    for failure in &total.failures {
        wpaxos::say!("  seed {}: {}", failure.options.seed, failure.violation);
    }
}
