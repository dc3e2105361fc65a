//! The report as data: what `--json` writes, `compare` reads and the printed report is made from.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    check::CheckReport,
    measure::{Cell, Counts, Kind, Parts, Times},
    target::ErrorKind,
};

/// One run, as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// `wpaxos-load`.
    pub tool: String,
    /// The version of the tool.
    pub version: String,
    /// When the measured time began, RFC 3339 in UTC.
    pub started_at: String,
    /// Whether the numbers may be quoted.
    pub valid: bool,
    /// Why not.
    pub invalid_because: Vec<String>,
    /// Whether the run was ended early by a signal.
    pub interrupted: bool,
    /// How long was measured, in seconds.
    pub measured_s: f64,
    /// Open loop: requests per second that were scheduled.
    pub offered_ops_per_s: Option<f64>,
    /// Open loop: requests that were sent more than 10 ms after their intended start, or never.
    pub late_sends: u64,
    /// All operations in all zones.
    #[serde(flatten)]
    pub all: Part,
    /// Reads in all zones.
    pub read: Part,
    /// Writes in all zones.
    pub write: Part,
    /// Each kind of operation that occurred, by name.
    #[serde(default)]
    pub operations: BTreeMap<String, Part>,
    /// Each zone that load came from.
    pub zones: Vec<ZonePart>,
    /// Latency by percentile.
    #[serde(default)]
    pub curves: Curves,
    /// What happened when.
    #[serde(default)]
    pub seconds: Vec<Second>,
    /// What it cost here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuUse>,
    /// What came of the linearizability check, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckReport>,
    /// Whether the run only filled the key space.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fills: bool,
    /// What a reader of the numbers should know.
    pub notes: Vec<String>,
    /// All settings, the machine, and what the cluster says of itself.
    pub config: BTreeMap<String, Value>,
}

/// A part of the requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Good answers that arrived in the measured time, per second.
    pub throughput_ops_per_s: f64,
    /// Failed requests by kind; kinds that did not occur are left out.
    pub errors: BTreeMap<String, u64>,
    /// Response times of the requests whose intended start lies in the measured time, in microseconds.
    pub response_us: Percentiles,
    /// Open loop: from the sending to the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_us: Option<Percentiles>,
    /// Open loop: from the intended start to the sending. Response time is the sum of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_us: Option<Percentiles>,
}

/// A point of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// This share of the requests, in percent,
    pub percentile: f64,
    /// took at most so many microseconds.
    pub us: f64,
    /// How many requests that are.
    pub count: u64,
}

/// Whole distributions, of all operations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// From the intended start to the answer.
    pub response: Vec<CurvePoint>,
    /// From the sending to the answer; empty in a closed loop, where it is the same.
    pub service: Vec<CurvePoint>,
    /// From the intended start to the sending; empty in a closed loop.
    pub lag: Vec<CurvePoint>,
}

/// What part of a run a second belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Before measuring begins.
    WarmUp,
    /// Measured.
    Steady,
    /// Behind it.
    CoolDown,
}

/// What happened in one second of the load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Counted from the first that is measured; those of the warm-up are negative.
    pub second: i64,
    /// What it belongs to.
    pub phase: Phase,
    /// Good answers.
    pub answered: u64,
    /// Failed requests.
    pub errors: u64,
    /// Open loop: requests that were sent well after their intended start, or never.
    pub late: u64,
    /// Half of the response times were at most this, in microseconds; 0 where none is recorded, as in the cool-down.
    pub p50_us: f64,
    /// 99 percent.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// Processor time of the load generator's process, which includes the nodes of a cluster of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// Cores kept busy in the measured time.
    pub cores: f64,
    /// Processor time for each good answer, in microseconds.
    pub us_per_op: f64,
    /// Whether a cluster ran in the same process.
    pub with_cluster: bool,
}

/// The requests from one zone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZonePart {
    /// The zone's number.
    pub zone: u8,
    /// All operations.
    #[serde(flatten)]
    pub all: Part,
    /// Reads.
    pub read: Part,
    /// Writes.
    pub write: Part,
}

/// A distribution of response times, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of the requests took at most this.
    pub p50: f64,
    /// 90 percent.
    pub p90: f64,
    /// 95 percent.
    pub p95: f64,
    /// 99 percent.
    pub p99: f64,
    /// 99.9 percent.
    pub p99_9: f64,
    /// 99.99 percent.
    pub p99_99: f64,
    /// The slowest.
    pub max: f64,
    /// The arithmetic mean.
    pub mean: f64,
    /// How many requests.
    pub count: u64,
}

impl Percentiles {
    /// Of a histogram in nanoseconds; all 0 if it is empty.
    pub fn of(times: &Times) -> Self {
        if times.is_empty() {
            return Self::default();
        }
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: times.max() as f64 / 1000.0,
            mean: times.mean() / 1000.0,
            count: times.len(),
        }
    }
}

impl Curves {
    /// The distributions of a cell.
    pub fn of(cell: &Cell) -> Self {
        let part =
            |times: fn(&Parts) -> &Times| cell.parts.as_deref().map_or_else(Vec::new, |parts| curve(times(parts)));
        let (service, lag) = (part(|parts| &parts.service), part(|parts| &parts.lag));
        Self { response: curve(&cell.times), service, lag }
    }
}

/// Points of a distribution, ever closer towards its end.
fn curve(times: &Times) -> Vec<CurvePoint> {
    if times.is_empty() {
        return Vec::new();
    }
    let mut count = 0;
    let point = |value: hdrhistogram::iterators::IterationValue<u64>| {
        count += value.count_since_last_iteration();
        CurvePoint {
            percentile: value.quantile_iterated_to() * 100.0,
            us: value.value_iterated_to() as f64 / 1000.0,
            count,
        }
    };
    times.iter_quantiles(8).map(point).collect()
}

impl Part {
    /// What was counted in `measured_s` seconds.
    pub fn of(cell: &Cell, measured_s: f64) -> Self {
        let throughput_ops_per_s = if measured_s > 0.0 { cell.answered as f64 / measured_s } else { 0.0 };
        let named = |kind: ErrorKind| (kind.name().to_owned(), cell.errors[kind as usize]);
        let errors = ErrorKind::ALL.into_iter().map(named).filter(|(_, count)| *count > 0).collect();
        let part = |times: fn(&Parts) -> &Times| cell.parts.as_deref().map(|parts| Percentiles::of(times(parts)));
        Self {
            throughput_ops_per_s,
            errors,
            response_us: Percentiles::of(&cell.times),
            service_us: part(|parts| &parts.service),
            lag_us: part(|parts| &parts.lag),
        }
    }

    /// Failed requests of all kinds.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// The zones of `counts`, whose numbers are `zones`.
pub fn zone_parts(counts: &Counts, zones: &[u8], measured_s: f64) -> Vec<ZonePart> {
    let part = |at: usize, kind: Option<Kind>| {
        Part::of(&counts.sum(|zone, of| zone == at && kind.is_none_or(|kind| kind == of)), measured_s)
    };
    let zone = |(at, zone): (usize, &u8)| ZonePart {
        zone: *zone,
        all: part(at, None),
        read: part(at, Some(Kind::Read)),
        write: part(at, Some(Kind::Write)),
    };
    zones.iter().enumerate().map(zone).collect()
}

/// Each kind of operation that occurred, by name.
pub fn operations(counts: &Counts, measured_s: f64) -> BTreeMap<String, Part> {
    let part = |kind: Kind| (kind.name().to_owned(), Part::of(&counts.sum(|_, of| of == kind), measured_s));
    Kind::ALL.into_iter().filter(|kind| counts.has(*kind)).map(part).collect()
}

/// Why a report cannot be read or written. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum ReportFileError {
    /// The file system said no.
    #[error("cannot {what} {file}: {error}")]
    Io {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        file: String,
        /// What it said.
        error: std::io::Error,
    },
    /// It is not a report.
    #[error("{file} is not a report of wpaxos-load run --json: {error}")]
    Format {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

impl RunReport {
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

    /// Reads one that was saved.
    ///
    /// # Errors
    /// If there is none, or if it is something else.
    pub fn load(path: &Path) -> Result<Self, ReportFileError> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| ReportFileError::Io {
            what: "read",
            file: file.clone(),
            error,
        })?;
        serde_json::from_str(&text).map_err(|error| ReportFileError::Format { file, error })
    }
}

/// A time as RFC 3339, in UTC with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date that lies `days` after 1970-01-01. Years are counted from March, so that leap days end them.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A report for tests: two zones, a hundred reads of 1 ms, a hundred writes of 2 ms, and an error.
#[cfg(test)]
pub(crate) fn sample() -> RunReport {
    let mut counts = Counts::new(2);
    for n in 0..100 {
        for (kind, ns) in [(Kind::Read, 1_000_000), (Kind::Write, 2_000_000)] {
            let cell = counts.cell_mut(n % 2, kind);
            cell.times.saturating_record(ns);
            cell.answered += 1;
        }
    }
    counts.cell_mut(1, Kind::Write).errors[ErrorKind::Overloaded as usize] = 1;
    RunReport {
        tool: "wpaxos-load".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: rfc3339(UNIX_EPOCH),
        valid: true,
        invalid_because: Vec::new(),
        interrupted: false,
        measured_s: 10.0,
        offered_ops_per_s: None,
        late_sends: 0,
        all: Part::of(&counts.sum(|_, _| true), 10.0),
        read: Part::of(&counts.sum(|_, kind| kind == Kind::Read), 10.0),
        write: Part::of(&counts.sum(|_, kind| kind == Kind::Write), 10.0),
        zones: zone_parts(&counts, &[1, 4], 10.0),
        operations: operations(&counts, 10.0),
        curves: Curves::of(&counts.sum(|_, _| true)),
        seconds: vec![Second {
            second: 0,
            phase: Phase::Steady,
            answered: 200,
            errors: 1,
            late: 0,
            p50_us: 1000.0,
            p99_us: 2000.0,
            max_us: 2000.0,
        }],
        cpu: None,
        check: None,
        fills: false,
        notes: Vec::new(),
        config: BTreeMap::from([("keys".to_owned(), Value::from(1000)), ("seed".to_owned(), Value::from(1))]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_json_has_the_fields_that_readers_rely_on() {
        let value = serde_json::to_value(sample()).unwrap();
        assert_eq!(value["throughput_ops_per_s"], 20.0);
        assert_eq!(value["errors"]["overloaded"], 1);
        assert_eq!((&value["valid"], &value["interrupted"]), (&Value::Bool(true), &Value::Bool(false)));
        for field in ["p50", "p90", "p95", "p99", "p99_9", "p99_99", "max", "mean"] {
            let [all, read, write] = [&value, &value["read"], &value["write"]]
                .map(|part| part["response_us"][field].as_f64().unwrap_or_else(|| panic!("{field} is missing")));
            assert!((read - 1000.0).abs() < 1.0 && (write - 2000.0).abs() < 2.0 && all >= read, "{field}");
        }
        assert_eq!(value["response_us"]["count"], 200);
        assert_eq!((&value["zones"][0]["zone"], &value["zones"][1]["zone"]), (&Value::from(1), &Value::from(4)));
        assert_eq!(value["zones"][1]["write"]["response_us"]["count"], 50);
        assert_eq!(value["zones"][1]["errors"]["overloaded"], 1);
        assert_eq!(value["config"]["keys"], 1000);
        assert_eq!(value["started_at"], "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_report_reads_back_and_other_files_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.json");
        sample().save(&path).unwrap();
        assert_eq!(RunReport::load(&path).unwrap(), sample());
        fs::write(&path, "{}").unwrap();
        for path in [path, directory.path().join("none.json")] {
            let error = RunReport::load(&path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (951_782_399, "2000-02-28T23:59:59.500Z"),
            (951_782_400, "2000-02-29T00:00:00.500Z"),
            (1_709_251_199, "2024-02-29T23:59:59.500Z"),
            (1_767_225_600, "2026-01-01T00:00:00.500Z"),
            (4_107_542_400, "2100-03-01T00:00:00.500Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, 500_000_000)), text);
        }
    }

    #[test]
    fn an_empty_histogram_is_all_zeros() {
        let part = Part::of(&Cell::default(), 0.0);
        assert_eq!((part.response_us, part.throughput_ops_per_s), (Percentiles::default(), 0.0));
    }
}
