//! The `benchmark` block of Paxi's configuration.

use std::fmt;

use super::{
    FieldError, Note,
    json::{Fields, Json},
    suggest,
};

/// Whole numbers up to here are exact in JSON.
const INTEGER_MAX: u64 = 1 << 53;

/// What Paxi's client is told to do: the `benchmark` block, every key with the meaning that it was given. What Paxi's code
/// makes of some of them is another matter; where the two differ, the comment says so, and the meaning counts here.
///
/// Made by [`super::PaxiConfig::load`], which checks the ranges that are named here. `T` and `N` are never both 0.
#[derive(Clone, PartialEq, Debug)]
pub struct PaxiBenchmark {
    /// `T`: how long to ask, in seconds, up to 31,536,000 (a year); 0 asks `requests` times instead. Default 60.
    pub seconds: u64,
    /// `N`: how many requests to make, all workers together, if `seconds` is 0; otherwise without meaning. Default 0.
    pub requests: u64,
    /// `K`: keys in the key space, from 1. Default 1000.
    pub keys: u64,
    /// `W`: the share of writes among the requests, from 0 to 1. Default 0.5.
    pub write_ratio: f64,
    /// `Throttle`: the most requests a second, all workers together; 0 is no limit. Default 0.
    pub throttle: u64,
    /// `Concurrency`: workers that each have one request under way, a closed loop; from 1 to 1,000,000. Default 1.
    pub concurrency: u64,
    /// `Distribution`: how keys are drawn. Default uniform.
    pub distribution: PaxiDistribution,
    /// `LinearizabilityCheck`: whether to check at the end that what was answered is linearizable. Default true.
    pub linearizability_check: bool,
    /// `Conflicts`, for [`PaxiDistribution::Conflict`]: how many requests of a hundred go to the one key that all share,
    /// from 0 to 100. Default 100.
    pub conflicts: u8,
    /// `Min`: the first key of the key space, so that keys are from `min` to `min + keys - 1`. Paxi forgets it in the
    /// normal, zipfian and exponential distributions. Default 0.
    pub min: u64,
    /// `Mu`, for [`PaxiDistribution::Normal`]: the mean, as a key counted from 0. Default 0.
    pub mu: f64,
    /// `Sigma`, for [`PaxiDistribution::Normal`]: the standard deviation in keys, above 0. Default 60.
    pub sigma: f64,
    /// `Move`, for [`PaxiDistribution::Normal`]: whether the mean drifts by one key every `speed_ms`, around the key
    /// space. Default false.
    pub moves: bool,
    /// `Speed`, where `moves`: milliseconds for each key that the mean drifts by, from 1. Default 500.
    pub speed_ms: u64,
    /// `ZipfianS`, for [`PaxiDistribution::Zipfian`]: the exponent, above 1. The k-th key is drawn in proportion to
    /// 1 / (v + k)^s, k from 0. Default 2.
    pub zipfian_s: f64,
    /// `ZipfianV`, for [`PaxiDistribution::Zipfian`]: v in the same, from 1. Default 1.
    pub zipfian_v: f64,
    /// `Lambda`, for [`PaxiDistribution::Exponential`]: the rate per key, above 0; the mean key is 1 / lambda. Paxi's keys
    /// go beyond `keys`. Default 0.01.
    pub lambda: f64,
}

impl Default for PaxiBenchmark {
    /// Paxi's `DefaultBConfig`.
    fn default() -> Self {
        Self {
            seconds: 60,
            requests: 0,
            keys: 1000,
            write_ratio: 0.5,
            throttle: 0,
            concurrency: 1,
            distribution: PaxiDistribution::Uniform,
            linearizability_check: true,
            conflicts: 100,
            min: 0,
            mu: 0.0,
            sigma: 60.0,
            moves: false,
            speed_ms: 500,
            zipfian_s: 2.0,
            zipfian_v: 1.0,
            lambda: 0.01,
        }
    }
}

/// How Paxi's client draws keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PaxiDistribution {
    /// `order`: one after another, and again from the start.
    Order,
    /// `uniform`: every key alike.
    #[default]
    Uniform,
    /// `conflict`: `Conflicts` of a hundred go to key 0, the others go around one after another.
    Conflict,
    /// `normal`: around `Mu`, with standard deviation `Sigma`, wrapped into the key space.
    Normal,
    /// `zipfan`, as Paxi spells it, or `zipfian`: the lowest keys most often.
    Zipfian,
    /// `exponential`: the lowest keys most often, with rate `Lambda`.
    Exponential,
}

impl PaxiDistribution {
    /// All of them, by the names that are understood; the first of each is the right one.
    const NAMES: [(&'static str, Self); 7] = [
        ("order", Self::Order),
        ("uniform", Self::Uniform),
        ("conflict", Self::Conflict),
        ("normal", Self::Normal),
        ("zipfian", Self::Zipfian),
        ("zipfan", Self::Zipfian),
        ("exponential", Self::Exponential),
    ];

    /// What it is called, rightly spelt.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, each)| *each == self).expect("each has a name").0
    }
}

impl std::str::FromStr for PaxiDistribution {
    type Err = String;

    /// Paxi's own misspelling, `zipfan`, is understood.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, each)| *each);
        found.ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            let near = suggest(&text.to_ascii_lowercase(), names);
            format!("'{text}' is not known: expected one of {}{near}", names.join(", "))
        })
    }
}

/// The keys of the block, as Paxi spells them.
const KEYS: &[&str] = &[
    "T",
    "N",
    "K",
    "W",
    "Throttle",
    "Concurrency",
    "Distribution",
    "LinearizabilityCheck",
    "Conflicts",
    "Min",
    "Mu",
    "Sigma",
    "Move",
    "Speed",
    "ZipfianS",
    "ZipfianV",
    "Lambda",
];
/// As Paxi's sample configuration spells them, which Paxi itself does not understand.
const MISSPELT: &[(&str, &str)] = &[("Zipfian_s", "ZipfianS"), ("Zipfian_v", "ZipfianV")];

impl PaxiBenchmark {
    /// Reads the block. What it leaves out has Paxi's default.
    pub(super) fn read(entries: Vec<(String, Json)>, notes: &mut Vec<Note>) -> Result<Self, FieldError> {
        let fields = Fields::new("benchmark.", entries, KEYS, MISSPELT, notes)?;
        let default = Self::default();
        let real = |name: &str, default: f64, min: f64| fields.number(name, default, min, 1e15);
        let benchmark = Self {
            seconds: fields.integer("T", default.seconds, 0, 31_536_000)?,
            requests: fields.integer("N", default.requests, 0, INTEGER_MAX)?,
            keys: fields.integer("K", default.keys, 1, INTEGER_MAX)?,
            write_ratio: fields.number("W", default.write_ratio, 0.0, 1.0)?,
            throttle: fields.integer("Throttle", default.throttle, 0, INTEGER_MAX)?,
            concurrency: fields.integer("Concurrency", default.concurrency, 1, 1_000_000)?,
            distribution: distribution(&fields, notes)?,
            linearizability_check: fields.bool("LinearizabilityCheck", default.linearizability_check)?,
            conflicts: fields.integer("Conflicts", default.conflicts.into(), 0, 100)? as u8,
            min: fields.integer("Min", default.min, 0, INTEGER_MAX)?,
            mu: real("Mu", default.mu, -1e15)?,
            sigma: real("Sigma", default.sigma, 0.0)?,
            moves: fields.bool("Move", default.moves)?,
            speed_ms: fields.integer("Speed", default.speed_ms, 0, INTEGER_MAX)?,
            zipfian_s: real("ZipfianS", default.zipfian_s, 0.0)?,
            zipfian_v: real("ZipfianV", default.zipfian_v, 0.0)?,
            lambda: real("Lambda", default.lambda, 0.0)?,
        };
        benchmark.check(&fields)?;
        benchmark.note(&fields, notes);
        Ok(benchmark)
    }

    /// What only matters where it is used: a file whose unused keys could not be used is taken as Paxi takes it.
    fn check(&self, fields: &Fields) -> Result<(), FieldError> {
        let wrong = |name: &str, problem: String| Err(fields.wrong(name, problem));
        let name = self.distribution.name();
        if self.seconds == 0 && self.requests == 0 {
            return wrong(
                "N",
                "is 0 and so is T: nothing would be asked; give seconds as T, or requests as N".to_owned(),
            );
        }
        match self.distribution {
            PaxiDistribution::Normal if self.sigma <= 0.0 => {
                wrong("Sigma", format!("{} must be above 0 where keys are {name}", self.sigma))
            }
            PaxiDistribution::Normal if self.moves && self.speed_ms == 0 => {
                wrong("Speed", "0 must be from 1 where the mean moves: milliseconds for each key".to_owned())
            }
            PaxiDistribution::Zipfian if self.zipfian_s <= 1.0 => {
                wrong("ZipfianS", format!("{} must be above 1 where keys are {name}", self.zipfian_s))
            }
            PaxiDistribution::Zipfian if self.zipfian_v < 1.0 => {
                wrong("ZipfianV", format!("{} must be from 1 where keys are {name}", self.zipfian_v))
            }
            PaxiDistribution::Exponential if self.lambda <= 0.0 => {
                wrong("Lambda", format!("{} must be above 0 where keys are {name}", self.lambda))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, fields: &Fields, notes: &mut Vec<Note>) {
        if self.seconds > 0 && self.requests > 0 {
            let text =
                format!("{} requests are not counted, because T = {} seconds goes first", self.requests, self.seconds);
            notes.push(Note::new("benchmark.N", text));
        }
        if self.moves && self.distribution != PaxiDistribution::Normal {
            let text = format!("moves the mean of normal keys only; these are {}", self.distribution.name());
            notes.push(Note::new("benchmark.Move", text));
        }
        let conflict = self.distribution == PaxiDistribution::Conflict;
        if fields.is_written("Conflicts") && self.conflicts > 0 && !conflict {
            let text =
                format!("{} percent is for conflict keys only; these are {}", self.conflicts, self.distribution.name());
            notes.push(Note::new("benchmark.Conflicts", text));
        }
    }
}

fn distribution(fields: &Fields, notes: &mut Vec<Note>) -> Result<PaxiDistribution, FieldError> {
    let written = fields.text("Distribution", "uniform")?;
    if written == "zipfan" {
        notes.push(Note::new("benchmark.Distribution", "zipfan is Paxi's spelling of zipfian, and is taken as that"));
    }
    written.parse().map_err(|problem| fields.wrong("Distribution", problem))
}

impl fmt::Display for PaxiBenchmark {
    /// A line for each key, as Paxi spells it, with what it says here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "T = {}  (seconds; 0: N requests)", self.seconds)?;
        writeln!(f, "N = {}  (requests, if T is 0)", self.requests)?;
        writeln!(f, "K = {}  (keys)", self.keys)?;
        writeln!(f, "W = {}  (share of writes)", self.write_ratio)?;
        writeln!(f, "Throttle = {}  (requests a second; 0: no limit)", self.throttle)?;
        writeln!(f, "Concurrency = {}  (requests under way)", self.concurrency)?;
        writeln!(f, "Distribution = {}", self.distribution.name())?;
        writeln!(f, "LinearizabilityCheck = {}", self.linearizability_check)?;
        writeln!(f, "Conflicts = {}  (percent on one key; conflict)", self.conflicts)?;
        writeln!(f, "Min = {}  (the first key)", self.min)?;
        writeln!(f, "Mu = {}  (mean key; normal)", self.mu)?;
        writeln!(f, "Sigma = {}  (standard deviation in keys; normal)", self.sigma)?;
        writeln!(f, "Move = {}  (whether the mean drifts; normal)", self.moves)?;
        writeln!(f, "Speed = {}  (milliseconds for each key of drift)", self.speed_ms)?;
        writeln!(f, "ZipfianS = {}  (exponent; zipfian)", self.zipfian_s)?;
        writeln!(f, "ZipfianV = {}  (zipfian)", self.zipfian_v)?;
        writeln!(f, "Lambda = {}  (rate per key; exponential)", self.lambda)
    }
}
