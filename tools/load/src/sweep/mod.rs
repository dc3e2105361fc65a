//! A sweep: several tunings, each driven harder and harder until the knee, with repeats that take turns so that whatever
//! drifts on the machine drifts for all of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    args::{RunArgs, SweepArgs},
    compare::{RULE, table},
    json::{ReportFileError, RunReport, rfc3339},
    plan::{Plan, PlanError},
    report::{grouped, micros},
    run::execute,
    stats::{Difference, median, range},
};

/// In a closed loop, a point that brings less than this over the one before is behind the knee.
const GAIN: f64 = 1.05;
/// In an open loop, a point that answers less than this share of what was offered is behind the knee.
const ACHIEVED: f64 = 0.99;
/// Depths of a closed loop where none are given.
const DEPTHS: [u64; 6] = [1, 4, 16, 64, 256, 1024];
/// The bound on p99 where none is given.
const P99_BOUND: Duration = Duration::from_millis(10);

/// A sweep, as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// `wpaxos-load sweep`.
    pub tool: String,
    /// When it began, RFC 3339 in UTC.
    pub started_at: String,
    /// What levels are: `in flight`, or `requests/s offered`.
    pub levels: String,
    /// How the knee is found, for people.
    pub rule: String,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// The names of the tunings, in the order given.
    pub variants: Vec<String>,
    /// What was measured.
    pub points: Vec<Point>,
    /// The level at which each variant has its knee.
    pub knees: BTreeMap<String, u64>,
}

/// One variant at one level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The tuning's name.
    pub variant: String,
    /// Requests in flight, or offered per second.
    pub level: u64,
    /// Its repeats.
    pub runs: Vec<RunReport>,
}

impl Point {
    fn values(&self, of: fn(&RunReport) -> f64) -> Vec<f64> {
        self.runs.iter().filter(|run| run.valid).map(of).collect()
    }

    fn summary(&self, of: fn(&RunReport) -> f64) -> (f64, (f64, f64)) {
        let values = self.values(of);
        (median(&values), range(&values))
    }

    /// Whether a run of it is valid.
    pub fn is_measured(&self) -> bool {
        self.runs.iter().any(|run| run.valid)
    }

    /// Answers per second: the median, and from where to where.
    pub fn throughput(&self) -> (f64, (f64, f64)) {
        self.summary(throughput_of)
    }

    /// p99 of response time.
    pub fn p99_us(&self) -> (f64, (f64, f64)) {
        self.summary(p99_of)
    }

    /// p50 of response time.
    pub fn p50_us(&self) -> (f64, (f64, f64)) {
        self.summary(|run| run.all.response_us.p50)
    }

    fn cpu_us(&self) -> f64 {
        self.summary(|run| run.cpu.map_or(0.0, |cpu| cpu.us_per_op)).0
    }

    /// In a line.
    pub fn describe(&self) -> String {
        let (rate, p99) = (grouped(self.throughput().0 as u64), micros(self.p99_us().0));
        format!("{} at {}: {rate} requests/s, p99 {p99} µs", self.variant, grouped(self.level))
    }
}

fn throughput_of(run: &RunReport) -> f64 {
    run.all.throughput_ops_per_s
}

fn p99_of(run: &RunReport) -> f64 {
    run.all.response_us.p99
}

impl SweepReport {
    /// Reads one that was saved.
    ///
    /// # Errors
    /// If there is none, or if it is something else.
    pub fn load(path: &Path) -> Result<Self, ReportFileError> {
        let file = path.display().to_string();
        let read = fs::read_to_string(path);
        let text = read.map_err(|error| ReportFileError::Io { what: "read", file: file.clone(), error })?;
        serde_json::from_str(&text).map_err(|error| ReportFileError::Format { file, error })
    }

    fn save(&self, path: &Path) -> Result<(), ReportFileError> {
        let file = path.display().to_string();
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| ReportFileError::Format { file: file.clone(), error })?;
        fs::write(path, text + "\n").map_err(|error| ReportFileError::Io { what: "write", file, error })
    }

    /// What came of it, in a line.
    pub fn headline(&self) -> String {
        let best = self.knees.iter().filter_map(|(variant, level)| self.point(variant, *level));
        match best.max_by(|a, b| a.throughput().0.total_cmp(&b.throughput().0)) {
            Some(point) => format!("{} tunings; most at a knee: {}", self.variants.len(), point.describe()),
            None => format!("{} tunings, no knee", self.variants.len()),
        }
    }

    fn point(&self, variant: &str, level: u64) -> Option<&Point> {
        self.points.iter().find(|point| point.variant == variant && point.level == level)
    }

    /// The first run of a variant.
    pub fn first_run(&self, variant: &str) -> Option<&RunReport> {
        self.points.iter().find(|point| point.variant == variant).and_then(|point| point.runs.first())
    }

    /// As a terminal shows it.
    pub fn text(&self) -> String {
        let (medians, differences) = (table(&self.rows()), table(&self.difference_rows()));
        format!("{medians}\n\n{}\n\n{differences}\n\n{RULE}", self.rule)
    }

    /// The medians, as a table.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let head = [
            "tuning",
            &self.levels,
            "requests/s",
            "least to most",
            "p50 µs",
            "p99 µs",
            "least to most",
            "CPU µs/op",
            "valid runs",
            "",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for point in &self.points {
            let ((rate, rates), (p99, p99s)) = (point.throughput(), point.p99_us());
            let valid = point.runs.iter().filter(|run| run.valid).count();
            rows.push(vec![
                point.variant.clone(),
                grouped(point.level),
                grouped(rate as u64),
                format!("{} to {}", grouped(rates.0 as u64), grouped(rates.1 as u64)),
                micros(point.p50_us().0),
                micros(p99),
                format!("{} to {}", micros(p99s.0), micros(p99s.1)),
                format!("{:.2}", point.cpu_us()),
                format!("{valid} of {}", point.runs.len()),
                if self.knees.get(&point.variant) == Some(&point.level) { "knee".to_owned() } else { String::new() },
            ]);
        }
        rows
    }

    /// How the others differ from the first tuning at each level, as a table.
    pub fn difference_rows(&self) -> Vec<Vec<String>> {
        let head = [&self.levels, "tuning", "requests/s", "p99"];
        let mut rows = vec![head.map(|name| name.to_owned()).to_vec()];
        let Some((first, others)) = self.variants.split_first() else { return rows };
        for base in self.points.iter().filter(|point| point.variant == *first) {
            for other in others.iter().filter_map(|variant| self.point(variant, base.level)) {
                let told = |of| Difference::between(&base.values(of), &other.values(of)).text();
                let against = format!("{} against {first}", other.variant);
                rows.push(vec![grouped(base.level), against, told(throughput_of), told(p99_of)]);
            }
        }
        rows
    }
}

/// The order of the runs at one level: A B, then B A, then A B, and so on.
fn order(variants: usize, repeats: u32) -> Vec<usize> {
    let turn = |repeat: u32| -> Vec<usize> {
        if repeat.is_multiple_of(2) { (0..variants).collect() } else { (0..variants).rev().collect() }
    };
    (0..repeats).flat_map(turn).collect()
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
struct Knee {
    p99_bound: Duration,
    is_open: bool,
}

impl Knee {
    fn rule(&self) -> String {
        let bound_ms = self.p99_bound.as_secs_f64() * 1e3;
        let other = if self.is_open {
            "when less than 99% of what was offered was answered".to_owned()
        } else {
            "when throughput rose by less than 5% from one level to the next".to_owned()
        };
        format!(
            "A tuning is behind its knee when the median p99 is above {bound_ms} ms, or {other}, or when no more than half of its runs were valid."
        )
    }

    /// Whether a point is behind the knee, given the one before it.
    fn is_behind(&self, before: Option<&Point>, point: &Point) -> bool {
        let valid = point.runs.iter().filter(|run| run.valid).count();
        if valid * 2 <= point.runs.len() || point.p99_us().0 > self.p99_bound.as_secs_f64() * 1e6 {
            return true;
        }
        let rate = point.throughput().0;
        match before {
            _ if self.is_open => rate < ACHIEVED * point.level as f64,
            Some(before) => rate < GAIN * before.throughput().0,
            None => false,
        }
    }
}

/// What a sweep will do.
struct Scheme {
    args: SweepArgs,
    variants: Vec<(String, PathBuf)>,
    levels: Vec<u64>,
    knee: Knee,
    repeats: u32,
}

impl Scheme {
    fn new(args: &SweepArgs) -> Result<Self, PlanError> {
        let wrong = |text: &str| Err(PlanError(text.to_owned()));
        let run = &args.run;
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
        let variants: Vec<(String, PathBuf)> = run.tuning.iter().map(|file| (name_of(file), file.clone())).collect();
        if let Some((twice, _)) = variants
            .iter()
            .enumerate()
            .find_map(|(place, own)| variants[..place].iter().any(|(name, _)| *name == own.0).then_some(own))
        {
            return Err(PlanError(format!("two tuning files are called {twice}: give them different file names")));
        }
        let knee = Knee { p99_bound: args.p99_bound.unwrap_or(P99_BOUND), is_open };
        let scheme = Self { args: args.clone(), variants, levels, knee, repeats: args.repeats.unwrap_or(5) };
        // All that can be wrong is told before the first run.
        for (_, file) in &scheme.variants {
            Plan::from_args(&scheme.flags(file, scheme.levels[0]))?;
        }
        Ok(scheme)
    }

    fn flags(&self, tuning: &Path, level: u64) -> RunArgs {
        let mut flags = RunArgs { tuning: vec![tuning.to_owned()], quiet: true, ..self.args.run.clone() };
        if self.knee.is_open {
            flags.rate = Some(level);
        } else {
            flags.concurrency = usize::try_from(level).ok();
        }
        flags
    }
}

fn name_of(file: &Path) -> String {
    file.file_stem().map_or_else(|| file.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}

/// Makes a sweep. Every run, the sweep and its page are saved; what is done is told on stderr.
///
/// # Errors
/// Names the flag that is wrong, the file that cannot be written, or what stands in the way of a run.
pub fn sweep(args: &SweepArgs, interrupted: &AtomicBool) -> Result<SweepReport, SweepError> {
    let scheme = Scheme::new(args)?;
    let out = &args.out;
    fs::create_dir_all(out).map_err(|error| SweepError::Other(format!("--out {}: {error}", out.display())))?;
    let mut report = SweepReport {
        tool: "wpaxos-load sweep".to_owned(),
        started_at: rfc3339(SystemTime::now()),
        levels: if scheme.knee.is_open { "requests/s offered" } else { "in flight" }.to_owned(),
        rule: scheme.knee.rule(),
        interrupted: false,
        variants: scheme.variants.iter().map(|(name, _)| name.clone()).collect(),
        points: Vec::new(),
        knees: BTreeMap::new(),
    };
    let mut climbing: Vec<usize> = (0..scheme.variants.len()).collect();
    for level in &scheme.levels {
        if climbing.is_empty() || report.interrupted {
            break;
        }
        let points = measure(&scheme, *level, &climbing, interrupted)?;
        report.interrupted = interrupted.load(Ordering::Relaxed);
        for point in points {
            let behind = scheme.knee.is_behind(previous(&report, &point.variant), &point);
            if behind {
                climbing.retain(|place| scheme.variants[*place].0 != point.variant);
            } else {
                report.knees.insert(point.variant.clone(), *level);
            }
            eprintln!("wpaxos-load: {}{}", point.describe(), if behind { " (behind the knee)" } else { "" });
            report.points.push(point);
        }
        report.save(&out.join("sweep.json"))?;
        crate::html::save(&crate::html::of_sweep(&report), &out.join("sweep.html"))?;
    }
    Ok(report)
}

fn previous<'a>(report: &'a SweepReport, variant: &str) -> Option<&'a Point> {
    report.points.iter().rev().find(|point| point.variant == variant)
}

/// All repeats at one level, in turns.
fn measure(
    scheme: &Scheme,
    level: u64,
    climbing: &[usize],
    interrupted: &AtomicBool,
) -> Result<Vec<Point>, SweepError> {
    let new = |place: &usize| Point { variant: scheme.variants[*place].0.clone(), level, runs: Vec::new() };
    let mut points: Vec<Point> = climbing.iter().map(new).collect();
    let (order, started) = (order(climbing.len(), scheme.repeats), Instant::now());
    for (done, place) in order.iter().enumerate() {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let left = started.elapsed().checked_div(done as u32).map(|each| each * (order.len() - done) as u32);
        let left = left.map_or_else(String::new, |left| format!(", {} s left at this level", left.as_secs()));
        let (name, file) = &scheme.variants[climbing[*place]];
        eprintln!("wpaxos-load: {name} at {level}: run {} of {}{left}", points[*place].runs.len() + 1, scheme.repeats);
        let plan = Plan::from_args(&scheme.flags(file, level))?;
        let run =
            execute(&plan, interrupted).map_err(|error| SweepError::Other(format!("{name} at {level}: {error}")))?;
        let number = points[*place].runs.len() + 1;
        run.save(&scheme.args.out.join(format!("{name}-{level}-{number}.json")))?;
        if !run.interrupted {
            points[*place].runs.push(run);
        }
    }
    Ok(points)
}

/// Why a sweep could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A flag is wrong.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] ReportFileError),
    /// A run could not be made.
    #[error("{0}")]
    Other(String),
}

#[cfg(test)]
mod tests;
