//! What a sweep will do: which tunings, at which levels, how often, in which order, and when to stop.

use std::{path::Path, path::PathBuf, time::Duration};

use super::report::Point;
use crate::{
    args::{RunArgs, SweepArgs},
    plan::{Extent, Plan, PlanError},
    report::span,
};

/// In a closed loop, a point that brings less than this over the one before is behind the knee.
const GAIN: f64 = 1.05;
/// In an open loop, a point that answers less than this share of what was offered is behind the knee.
const ACHIEVED: f64 = 0.99;
/// Depths of a closed loop where none are given.
const DEPTHS: [u64; 6] = [1, 4, 16, 64, 256, 1024];
/// The bound on p99 where none is given.
const P99_BOUND: Duration = Duration::from_millis(10);
/// Runs of each tuning at each level where nothing else is said.
const REPEATS: u32 = 5;

/// The order of the runs at one level: A B, then B A, then A B, and so on.
pub(super) fn order(variants: usize, repeats: u32) -> Vec<usize> {
    let turn = |repeat: u32| -> Vec<usize> {
        if repeat.is_multiple_of(2) { (0..variants).collect() } else { (0..variants).rev().collect() }
    };
    (0..repeats).flat_map(turn).collect()
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knee {
    pub(super) p99_bound: Duration,
    pub(super) is_open: bool,
}

impl Knee {
    pub(super) fn p99_bound_us(&self) -> f64 {
        self.p99_bound.as_secs_f64() * 1e6
    }

    /// For people.
    pub(super) fn rule(&self) -> String {
        let other = if self.is_open {
            "when less than 99% of what was offered was answered"
        } else {
            "when throughput rose by less than 5% from one level to the next"
        };
        format!(
            "A tuning is behind its knee when the median p99 is above {}, or {other}, or when no more than half of the runs \
             were valid; the knee is the level before. Runs that failed or were not valid are in no median.",
            span(self.p99_bound_us())
        )
    }

    /// Why a point is behind the knee, if it is, given the one before it.
    pub(super) fn behind(&self, before: Option<&Point>, point: &Point) -> Option<String> {
        if !point.is_sound() {
            return Some(format!("only {} of {} runs were valid", point.valid_count(), point.tried_count()));
        }
        let (rate, p99_us) = (point.throughput().0, point.p99_us().0);
        if p99_us > self.p99_bound_us() {
            return Some(format!("p99 was {}, above {}", span(p99_us), span(self.p99_bound_us())));
        }
        match before {
            _ if self.is_open => {
                let share = point.answered_share();
                (share < ACHIEVED)
                    .then(|| format!("{:.1}% of what was offered was answered, less than 99%", share * 100.0))
            }
            Some(before) => {
                let gain = rate / before.throughput().0;
                (gain < GAIN).then(|| format!("throughput changed by {:+.1}%", (gain - 1.0) * 100.0))
            }
            None => None,
        }
    }
}

/// What a sweep will do.
pub(super) struct Scheme {
    pub(super) args: SweepArgs,
    /// Tuning files by name.
    pub(super) variants: Vec<(String, PathBuf)>,
    pub(super) levels: Vec<u64>,
    pub(super) knee: Knee,
    pub(super) repeats: u32,
    /// How long a run takes at least.
    pub(super) run_time: Duration,
}

impl Scheme {
    pub(super) fn new(args: &SweepArgs) -> Result<Self, PlanError> {
        refuse_what_sweep_decides(&args.run)?;
        let is_open = !args.rates.is_empty();
        if is_open && !args.depths.is_empty() {
            return wrong("--rates (open loop) and --depths (closed loop) contradict each other: give one of them");
        }
        let mut levels = if is_open { args.rates.clone() } else { args.depths.clone() };
        if levels.is_empty() {
            levels = DEPTHS.to_vec();
        }
        levels.sort_unstable();
        levels.dedup();
        let variants: Vec<_> = args.run.tuning.iter().map(|file| (name_of(file), file.clone())).collect();
        let is_taken = |place: usize| variants[..place].iter().any(|(name, _)| *name == variants[place].0);
        if let Some(twice) = (0..variants.len()).find(|place| is_taken(*place)) {
            return wrong(&format!(
                "two tuning files are called {}: give them different file names",
                variants[twice].0
            ));
        }
        let knee = Knee { p99_bound: args.p99_bound.unwrap_or(P99_BOUND), is_open };
        let (repeats, run_time) = (args.repeats.unwrap_or(REPEATS), Duration::ZERO);
        let mut scheme = Self { args: args.clone(), variants, levels, knee, repeats, run_time };
        // All that can be wrong is told before the first run.
        for (_, file) in &scheme.variants {
            for level in &scheme.levels {
                let timing = Plan::from_args(&scheme.flags(file, *level, 0))?.timing;
                let measured = match timing.extent {
                    Extent::Time(duration) => duration,
                    Extent::Requests(_) => Duration::ZERO,
                };
                scheme.run_time = timing.warmup + measured + timing.cool_down;
            }
        }
        Ok(scheme)
    }

    /// The flags of one run.
    /// What a run is made with: in each repeat other draws, which are the same for all tunings.
    pub(super) fn flags(&self, tuning: &Path, level: u64, repeat: u32) -> RunArgs {
        let mut flags = RunArgs { tuning: vec![tuning.to_owned()], quiet: true, ..self.args.run.clone() };
        if self.knee.is_open {
            flags.rate = Some(level);
        } else {
            flags.concurrency = usize::try_from(level).ok();
        }
        flags.seed = Some(flags.seed.unwrap_or(1).wrapping_add(u64::from(repeat)));
        flags
    }

    /// Runs that are made if no tuning meets its knee.
    pub(super) fn runs_max(&self) -> usize {
        self.levels.len() * self.variants.len() * self.repeats as usize
    }
}

fn wrong<T>(text: &str) -> Result<T, PlanError> {
    Err(PlanError(text.to_owned()))
}

fn refuse_what_sweep_decides(run: &RunArgs) -> Result<(), PlanError> {
    if run.tuning.is_empty() {
        return wrong(
            "sweep compares tunings: name at least one, as in --tuning tuning/latency.toml --tuning tuning/default.toml",
        );
    }
    if run.concurrency.is_some() || run.rate.is_some() || run.rounds.is_some() {
        return wrong(
            "sweep chooses the load itself: give --depths or --rates, and --repeats, instead of --concurrency, --rate and --rounds",
        );
    }
    if run.config.is_some() || run.master.is_some() || !run.seed_address.is_empty() || run.target.is_some() {
        return wrong(
            "sweep starts a cluster of its own for each run: leave out --config, --master, --seed-address and --target",
        );
    }
    if run.load {
        return wrong("sweep measures, and --load only fills the key space: --preload does so before each run");
    }
    let outputs = [&run.json, &run.html, &run.hdr, &run.latency_file, &run.history_csv];
    if outputs.into_iter().any(Option::is_some) {
        return wrong(
            "sweep saves every run, its interval log and one page in --out: leave out --json, --html, --hdr, --latency-file and \
             --history-csv",
        );
    }
    if run.data.is_some() {
        return wrong(
            "sweep starts every run with an empty disk: leave out --data; TMPDIR says where temporary files go",
        );
    }
    Ok(())
}

fn name_of(file: &Path) -> String {
    file.file_stem().map_or_else(|| file.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}
