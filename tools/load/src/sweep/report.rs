//! What a sweep found: every run by tuning and level, the knees, and what the tunings' differences say.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    compare::{RULE, table},
    json::{ReportFileError, RunReport},
    report::{grouped, micros, span},
    stats::{Difference, median, range},
};

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
    /// The bound on p99, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_bound_us: Option<f64>,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// The names of the tunings, in the order given.
    pub variants: Vec<String>,
    /// What was measured.
    pub points: Vec<Point>,
    /// The last level of each variant that is not behind its knee; none of one that was behind it from the first on.
    pub knees: BTreeMap<String, u64>,
}

/// One variant at one level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The tuning's name.
    pub variant: String,
    /// Requests in flight, or offered per second.
    pub level: u64,
    /// Its repeats, in the order in which they were made.
    pub runs: Vec<RunReport>,
    /// Repeats that could not be made at all: why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// Why it is behind the knee, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<String>,
}

impl Point {
    /// One that nothing has been measured of yet.
    pub fn new(variant: &str, level: u64) -> Self {
        Self { variant: variant.to_owned(), level, runs: Vec::new(), failures: Vec::new(), behind: None }
    }

    /// Off the valid runs; off all of them where none is valid, so that there is something to show.
    fn values(&self, of: fn(&RunReport) -> f64) -> Vec<f64> {
        let valid: Vec<f64> = self.runs.iter().filter(|run| run.valid).map(of).collect();
        if valid.is_empty() { self.runs.iter().map(of).collect() } else { valid }
    }

    fn summary(&self, of: fn(&RunReport) -> f64) -> (f64, (f64, f64)) {
        let values = self.values(of);
        (median(&values), range(&values))
    }

    /// Valid runs.
    pub fn valid_count(&self) -> usize {
        self.runs.iter().filter(|run| run.valid).count()
    }

    /// Runs that were tried.
    pub fn tried_count(&self) -> usize {
        self.runs.len() + self.failures.len()
    }

    /// Whether most of its runs are valid. A median of the few that are would be one of the lucky.
    pub fn is_sound(&self) -> bool {
        self.valid_count() * 2 > self.tried_count()
    }

    /// Answers per second: the median, and from where to where.
    pub fn throughput(&self) -> (f64, (f64, f64)) {
        self.summary(throughput_of)
    }

    /// Which part of what was offered was answered; 1 in a closed loop.
    pub fn answered_share(&self) -> f64 {
        self.summary(answered_share_of).0
    }

    /// p99 of response time.
    pub fn p99_us(&self) -> (f64, (f64, f64)) {
        self.summary(p99_of)
    }

    /// p50 of response time.
    pub fn p50_us(&self) -> (f64, (f64, f64)) {
        self.summary(p50_of)
    }

    /// Processor time for each answer; 0 where it was not measured.
    pub fn cpu_us(&self) -> f64 {
        self.summary(cpu_of).0
    }

    /// In a line.
    pub fn describe(&self) -> String {
        let (rate, p99) = (grouped(self.throughput().0.round() as u64), span(self.p99_us().0));
        format!("{} at {}: {rate} requests/s, p99 {p99}", self.variant, grouped(self.level))
    }
}

/// Of what was in fact offered: random arrivals are not exactly as many as asked for.
fn answered_share_of(run: &RunReport) -> f64 {
    run.offered_ops_per_s.filter(|offered| *offered > 0.0).map_or(1.0, |offered| throughput_of(run) / offered)
}

fn throughput_of(run: &RunReport) -> f64 {
    run.all.throughput_ops_per_s
}

fn p50_of(run: &RunReport) -> f64 {
    run.all.response_us.p50
}

fn p99_of(run: &RunReport) -> f64 {
    run.all.response_us.p99
}

fn cpu_of(run: &RunReport) -> f64 {
    run.cpu.map_or(0.0, |cpu| cpu.us_per_op)
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

    /// Writes it to a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ReportFileError> {
        let file = path.display().to_string();
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| ReportFileError::Format { file: file.clone(), error })?;
        fs::write(path, text + "\n").map_err(|error| ReportFileError::Io { what: "write", file, error })
    }

    /// What came of it, in a line.
    pub fn headline(&self) -> String {
        let best = self.variants.iter().filter_map(|variant| self.best(variant));
        match best.max_by(|a, b| a.throughput().0.total_cmp(&b.throughput().0)) {
            Some(point) => {
                let (rate, p99) = (grouped(point.throughput().0.round() as u64), span(point.p99_us().0));
                let level = self.level_text(point.level);
                format!("{}: {rate} requests/s at {level}, p99 {p99}", point.variant)
            }
            None if self.points.is_empty() => "Nothing was measured".to_owned(),
            None => "No level before the knee".to_owned(),
        }
    }

    /// A level, with what it is.
    pub fn level_text(&self, level: u64) -> String {
        format!("{} {}", grouped(level), self.levels)
    }

    /// What was measured of a variant at a level.
    pub fn point(&self, variant: &str, level: u64) -> Option<&Point> {
        self.points.iter().find(|point| point.variant == variant && point.level == level)
    }

    /// What was measured of a variant, from the lowest level to the highest.
    pub fn points_of<'a>(&'a self, variant: &'a str) -> impl Iterator<Item = &'a Point> {
        self.points.iter().filter(move |point| point.variant == variant)
    }

    /// The last point of a variant that is not behind its knee.
    pub fn best(&self, variant: &str) -> Option<&Point> {
        self.knees.get(variant).and_then(|level| self.point(variant, *level))
    }

    /// Whether a variant's knee was found: there is a point before it and one behind it.
    pub fn has_knee(&self, variant: &str) -> bool {
        self.knees.get(variant).is_some_and(|knee| self.points_of(variant).any(|point| point.level > *knee))
    }

    /// Where a variant has its knee, and why there; or why it has none.
    pub fn outcome(&self, variant: &str) -> String {
        let behind = self.points_of(variant).find_map(|point| point.behind.as_ref().map(|why| (point.level, why)));
        let knee = self.knees.get(variant).map(|level| self.level_text(*level));
        match (knee, behind) {
            (Some(knee), Some((level, why))) => format!("knee at {knee}: at {} {why}", grouped(level)),
            (None, Some((_, why))) => format!("behind the knee at the lowest level: {why}"),
            (Some(_), None) if self.has_knee(variant) => "knee found".to_owned(),
            (Some(last), None) if self.interrupted => format!("no knee up to {last}, where the sweep was ended"),
            (Some(last), None) => format!("no knee up to {last}, the highest level"),
            (None, None) => "not measured".to_owned(),
        }
    }

    /// The first run of a variant.
    pub fn first_run(&self, variant: &str) -> Option<&RunReport> {
        self.points.iter().filter(|point| point.variant == variant).find_map(|point| point.runs.first())
    }

    /// As a terminal shows it.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n\n", table(&self.rows()));
        for variant in &self.variants {
            out += &format!("{variant}: {}\n", self.outcome(variant));
        }
        out += &format!("{}\n", self.rule);
        let differences = self.difference_rows();
        if differences.len() > 1 {
            out += &format!("\n{}\n\n{RULE}\n", table(&differences));
        }
        for (whose, why) in self.losses() {
            out += &format!("\n{whose}: {why}");
        }
        out
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
        for variant in &self.variants {
            rows.extend(self.points_of(variant).map(|point| self.row(point)));
        }
        rows
    }

    fn row(&self, point: &Point) -> Vec<String> {
        let ((rate, rates), (p99, p99s)) = (point.throughput(), point.p99_us());
        let is_knee = self.knees.get(&point.variant) == Some(&point.level) && self.has_knee(&point.variant);
        let said = match &point.behind {
            _ if is_knee => "knee",
            Some(_) => "behind the knee",
            None => "",
        };
        vec![
            point.variant.clone(),
            grouped(point.level),
            grouped(rate.round() as u64),
            format!("{} to {}", grouped(rates.0.round() as u64), grouped(rates.1.round() as u64)),
            micros(point.p50_us().0),
            micros(p99),
            format!("{} to {}", micros(p99s.0), micros(p99s.1)),
            if point.cpu_us() > 0.0 { format!("{:.2}", point.cpu_us()) } else { "–".to_owned() },
            format!("{} of {}", point.valid_count(), point.tried_count()),
            said.to_owned(),
        ]
    }

    /// How the others differ from the first tuning at each level, as a table. Levels at which either has too few valid runs are
    /// left out.
    pub fn difference_rows(&self) -> Vec<Vec<String>> {
        let head = [&self.levels, "tuning", "requests/s", "p50", "p99", "CPU per op"];
        let mut rows = vec![head.map(|name| name.to_owned()).to_vec()];
        let Some((first, others)) = self.variants.split_first() else { return rows };
        for base in self.points_of(first).filter(|point| point.is_sound()) {
            for other in others.iter().filter_map(|variant| self.point(variant, base.level)) {
                if !other.is_sound() {
                    continue;
                }
                let told = |of| Difference::between(&base.values(of), &other.values(of)).text();
                let cpu = if base.cpu_us() > 0.0 { told(cpu_of) } else { "–".to_owned() };
                let against = format!("{} against {first}", other.variant);
                rows.push(vec![grouped(base.level), against, told(throughput_of), told(p50_of), told(p99_of), cpu]);
            }
        }
        rows
    }

    /// Runs that are not in the medians: which, and why not.
    pub fn losses(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for point in &self.points {
            let whose = format!("{} at {}", point.variant, self.level_text(point.level));
            for (number, run) in point.runs.iter().enumerate().filter(|(_, run)| !run.valid) {
                let why = run.invalid_because.join("; ");
                all.push((format!("{whose}, run {}", number + 1), format!("not valid: {why}")));
            }
            all.extend(point.failures.iter().map(|why| (whose.clone(), format!("no run: {why}"))));
        }
        all
    }
}
