//! A sweep: several tunings, each driven harder and harder until the knee, with repeats that take turns so that whatever
//! drifts on the machine drifts for all of them.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use crate::{
    args::SweepArgs,
    html,
    json::{ReportFileError, RunReport, rfc3339},
    plan::{Plan, PlanError},
    report::{grouped, span},
    run::execute,
};

mod report;
mod scheme;

pub use report::{Point, SweepReport};
use scheme::{Scheme, order};

/// Why a sweep could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A flag is wrong.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] ReportFileError),
    /// The directory cannot be made.
    #[error("cannot make the directory --out {directory}: {error}")]
    Out {
        /// The directory.
        directory: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Makes a sweep. Every run, the sweep and its page are saved; what is done is told on stderr. A run that fails is kept as a
/// failure, and the sweep goes on. Once `interrupted` is true it ends with what was measured.
///
/// # Errors
/// Names the flag that is wrong, or the file that cannot be written.
pub fn sweep(args: &SweepArgs, interrupted: &AtomicBool) -> Result<SweepReport, SweepError> {
    let scheme = Scheme::new(args)?;
    let out = &args.out;
    fs::create_dir_all(out).map_err(|error| SweepError::Out { directory: out.display().to_string(), error })?;
    let mut report = SweepReport {
        tool: "wpaxos-load sweep".to_owned(),
        started_at: rfc3339(SystemTime::now()),
        levels: if scheme.knee.is_open { "requests/s offered" } else { "in flight" }.to_owned(),
        rule: scheme.knee.rule(),
        p99_bound_us: Some(scheme.knee.p99_bound_us()),
        interrupted: false,
        variants: scheme.variants.iter().map(|(name, _)| name.clone()).collect(),
        points: Vec::new(),
        knees: BTreeMap::new(),
    };
    let mut clock = Clock::new(&scheme);
    let mut climbing: Vec<usize> = (0..scheme.variants.len()).collect();
    for (place, level) in scheme.levels.iter().enumerate() {
        if climbing.is_empty() || interrupted.load(Ordering::Relaxed) {
            break;
        }
        clock.levels_left = scheme.levels.len() - place - 1;
        let points = measure(&scheme, *level, &climbing, &mut clock, interrupted)?;
        report.interrupted = interrupted.load(Ordering::Relaxed);
        for point in points.into_iter().filter(|point| point.tried_count() > 0) {
            if take(&mut report, point, &scheme) {
                climbing.retain(|place| Some(&scheme.variants[*place].0) != report.points.last().map(|at| &at.variant));
            }
        }
        report.save(&out.join("sweep.json"))?;
        html::save(&html::of_sweep(&report), &out.join("sweep.html"))?;
    }
    Ok(report)
}

/// Takes a point into the report. Returns whether it is behind the knee.
fn take(report: &mut SweepReport, mut point: Point, scheme: &Scheme) -> bool {
    // Of a level that was broken off nothing follows for the knee.
    let is_whole = point.tried_count() == scheme.repeats as usize;
    let before = report.points_of(&point.variant).last();
    point.behind = if is_whole { scheme.knee.behind(before, &point) } else { None };
    if is_whole && point.behind.is_none() {
        report.knees.insert(point.variant.clone(), point.level);
    }
    let said = point.behind.as_ref().map_or_else(String::new, |why| format!(" – behind the knee: {why}"));
    wpaxos::complain!("wpaxos-load: median of {}{said}", point.describe());
    let is_behind = point.behind.is_some();
    report.points.push(point);
    is_behind
}

/// All repeats at one level, in turns.
fn measure(
    scheme: &Scheme,
    level: u64,
    climbing: &[usize],
    clock: &mut Clock,
    interrupted: &AtomicBool,
) -> Result<Vec<Point>, SweepError> {
    let mut points: Vec<Point> = climbing.iter().map(|place| Point::new(&scheme.variants[*place].0, level)).collect();
    let order = order(climbing.len(), scheme.repeats);
    for (done, place) in order.iter().enumerate() {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let (name, file) = &scheme.variants[climbing[*place]];
        let number = points[*place].tried_count() + 1;
        let left = clock.left(order.len() - done, climbing.len() * scheme.repeats as usize);
        wpaxos::complain!("wpaxos-load: {name} at {}, run {number} of {}; {left}", grouped(level), scheme.repeats);
        let own = |ending: &str| scheme.args.out.join(format!("{name}-{level}-{number}.{ending}"));
        let mut flags = scheme.flags(file, level, number as u32 - 1);
        flags.hdr = Some(own("hlog"));
        match execute(&Plan::from_args(&flags)?, interrupted) {
            // A run that was cut short says less than it seems to; it is not even saved.
            Ok(run) if run.interrupted => drop(fs::remove_file(own("hlog"))),
            Ok(run) => {
                run.save(&own("json"))?;
                wpaxos::complain!("wpaxos-load:   {}", outcome(&run));
                points[*place].runs.push(run);
            }
            Err(error) => {
                wpaxos::complain!("wpaxos-load:   failed: {error}");
                points[*place].failures.push(error.to_string());
            }
        }
        clock.runs_done += 1;
    }
    Ok(points)
}

fn outcome(run: &RunReport) -> String {
    let (rate, p99) = (grouped(run.all.throughput_ops_per_s.round() as u64), span(run.all.response_us.p99));
    let doubt = if run.valid { String::new() } else { format!(" – not valid: {}", run.invalid_because.join("; ")) };
    format!("{rate} requests/s, p99 {p99}{doubt}")
}

/// Tells how long it will still take.
struct Clock {
    started: Instant,
    /// What a run takes as long as none has been made.
    run_time: Duration,
    runs_done: u32,
    levels_left: usize,
    runs_max: usize,
}

impl Clock {
    fn new(scheme: &Scheme) -> Self {
        let (run_time, runs_max) = (scheme.run_time, scheme.runs_max());
        Self { started: Instant::now(), run_time, runs_done: 0, levels_left: 0, runs_max }
    }

    /// The time left at this level and, if nobody meets a knee, in all.
    fn left(&self, runs_left: usize, runs_of_level: usize) -> String {
        let each = self.started.elapsed().checked_div(self.runs_done).unwrap_or(self.run_time);
        let of = |runs: usize| minutes(each.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX)));
        let in_all = (runs_left + self.levels_left * runs_of_level).min(self.runs_max);
        format!("{} left at this level, at most {} in all", of(runs_left), of(in_all))
    }
}

/// As in 1:05:09 or 0:42.
fn minutes(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
pub(crate) mod tests;
