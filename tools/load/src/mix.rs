//! Which operations a load consists of, how large values are, and the named workloads of YCSB.

use std::{fmt, str::FromStr};

use rand::{Rng, rngs::SmallRng};
use rand_distr::Exp1;
use wpaxos::command::VALUE_BYTES_MAX;

use crate::{measure::Kind, zipf::Zipf};

/// The longest scan of YCSB's workload E, in keys: lengths are uniform from 1.
pub const SCAN_KEYS_MAX: u32 = 100;
/// Bytes of a record of YCSB: ten fields of a hundred.
pub const RECORD_BYTES: usize = 1000;
/// The exponent of YCSB's Zipf distributions.
pub const YCSB_THETA: f64 = 0.99;

/// Shares of the kinds of operations; together 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Gets.
    pub read: f64,
    /// Puts to keys that are there.
    pub write: f64,
    /// Puts to new keys.
    pub insert: f64,
    /// Gets of consecutive keys.
    pub scan: f64,
    /// Gets, each followed by a Put of the same key.
    pub rmw: f64,
}

impl Mix {
    const NOTHING: Self = Self { read: 0.0, write: 0.0, insert: 0.0, scan: 0.0, rmw: 0.0 };

    /// This share of writes; the others read.
    pub fn of_write_ratio(write: f64) -> Self {
        Self { read: 1.0 - write, write, ..Self::NOTHING }
    }

    /// The kind of the next operation.
    pub fn draw(&self, random: &mut SmallRng) -> Kind {
        let mut at: f64 = random.random();
        for (kind, share) in [
            (Kind::Write, self.write),
            (Kind::Insert, self.insert),
            (Kind::Scan, self.scan),
            (Kind::ReadModifyWrite, self.rmw),
        ] {
            if at < share {
                return kind;
            }
            at -= share;
        }
        if self.read > 0.0 { Kind::Read } else { self.commonest() }
    }

    /// Shares that add up to 1 may leave a hair's breadth over.
    fn commonest(&self) -> Kind {
        let shares = [
            (Kind::Write, self.write),
            (Kind::Insert, self.insert),
            (Kind::Scan, self.scan),
            (Kind::ReadModifyWrite, self.rmw),
        ];
        shares.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(Kind::Read, |(kind, _)| kind)
    }
}

/// A core workload of YCSB, by its letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ycsb {
    /// Update heavy: half reads, half updates.
    A,
    /// Read mostly: 95% reads, 5% updates.
    B,
    /// Read only.
    C,
    /// Read latest: 95% reads of what was inserted last, 5% inserts.
    D,
    /// Short ranges: 95% scans, 5% inserts.
    E,
    /// Half reads, half read-modify-writes.
    F,
}

impl Ycsb {
    /// What it consists of.
    pub const fn mix(self) -> Mix {
        match self {
            Self::A => Mix { read: 0.5, write: 0.5, ..Mix::NOTHING },
            Self::B => Mix { read: 0.95, write: 0.05, ..Mix::NOTHING },
            Self::C => Mix { read: 1.0, ..Mix::NOTHING },
            Self::D => Mix { read: 0.95, insert: 0.05, ..Mix::NOTHING },
            Self::E => Mix { scan: 0.95, insert: 0.05, ..Mix::NOTHING },
            Self::F => Mix { read: 0.5, rmw: 0.5, ..Mix::NOTHING },
        }
    }

    /// As on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "ycsb-a",
            Self::B => "ycsb-b",
            Self::C => "ycsb-c",
            Self::D => "ycsb-d",
            Self::E => "ycsb-e",
            Self::F => "ycsb-f",
        }
    }
}

impl FromStr for Ycsb {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = [Self::A, Self::B, Self::C, Self::D, Self::E, Self::F];
        let short = |of: Self| of.name().trim_start_matches("ycsb-").to_owned();
        let found =
            known.into_iter().find(|of| name.eq_ignore_ascii_case(of.name()) || name.eq_ignore_ascii_case(&short(*of)));
        found.ok_or_else(|| format!("'{name}' is no core workload of YCSB: expected ycsb-a to ycsb-f, or just a to f"))
    }
}

/// How long written values are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueSize {
    /// All alike.
    Fixed(usize),
    /// Every length from the first to the last alike.
    Uniform(usize, usize),
    /// Short ones are popular: length `min + r` in proportion to 1 / (1 + r)^0.99.
    Zipfian(usize, usize),
    /// Exponential with this mean, from [`Self::EXPONENTIAL_MIN`] up, cut off at sixteen times the mean.
    Exponential(usize),
}

impl ValueSize {
    /// The shortest value of the exponential distribution: a history's numbers fit.
    pub const EXPONENTIAL_MIN: usize = 8;

    /// The shortest and the longest.
    pub const fn bounds(self) -> (usize, usize) {
        match self {
            Self::Fixed(bytes) => (bytes, bytes),
            Self::Uniform(min, max) | Self::Zipfian(min, max) => (min, max),
            Self::Exponential(mean) => (Self::EXPONENTIAL_MIN, mean * 16),
        }
    }

    /// Draws lengths.
    pub fn sampler(self) -> Sizes {
        let zipf = match self {
            Self::Zipfian(min, max) => Some(Zipf::new((max - min) as u64 + 1, YCSB_THETA, 1.0)),
            _ => None,
        };
        Sizes { size: self, zipf }
    }
}

impl fmt::Display for ValueSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(bytes) => write!(f, "{bytes}"),
            Self::Uniform(min, max) => write!(f, "uniform:{min}-{max}"),
            Self::Zipfian(min, max) => write!(f, "zipfian:{min}-{max}"),
            Self::Exponential(mean) => write!(f, "exponential:{mean}"),
        }
    }
}

impl FromStr for ValueSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no size of values: expected BYTES, uniform:MIN-MAX, zipfian:MIN-MAX or exponential:MEAN, each at \
                 most {VALUE_BYTES_MAX} bytes long"
            )
        };
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        let range = |text: &str| {
            let (min, max) = text.split_once('-').ok_or_else(wrong)?;
            let (min, max) = (number(min)?, number(max)?);
            if min <= max { Ok((min, max)) } else { Err(wrong()) }
        };
        let size = match text.split_once(':') {
            None => Self::Fixed(number(text)?),
            Some(("uniform", of)) => range(of).map(|(min, max)| Self::Uniform(min, max))?,
            Some(("zipfian", of)) => range(of).map(|(min, max)| Self::Zipfian(min, max))?,
            Some(("exponential", of)) => match number(of)? {
                mean @ Self::EXPONENTIAL_MIN.. => Self::Exponential(mean),
                _ => return Err(wrong()),
            },
            Some(_) => return Err(wrong()),
        };
        if size.bounds().1 > VALUE_BYTES_MAX { Err(wrong()) } else { Ok(size) }
    }
}

/// Draws lengths of values.
#[derive(Clone, Debug)]
pub struct Sizes {
    size: ValueSize,
    zipf: Option<Zipf>,
}

impl Sizes {
    /// The next length.
    pub fn draw(&self, random: &mut SmallRng) -> usize {
        match (self.size, &self.zipf) {
            (ValueSize::Fixed(bytes), _) => bytes,
            (ValueSize::Zipfian(min, _), Some(zipf)) => min + zipf.draw(random) as usize,
            (ValueSize::Uniform(min, max) | ValueSize::Zipfian(min, max), _) => random.random_range(min..=max),
            (ValueSize::Exponential(mean), _) => {
                let (min, max) = self.size.bounds();
                let above: f64 = random.sample(Exp1);
                (min + (above * (mean - min) as f64) as usize).min(max)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::salted;

    const DRAWS: usize = 100_000;

    #[test]
    fn every_kind_has_its_share() {
        for ycsb in [Ycsb::A, Ycsb::B, Ycsb::C, Ycsb::D, Ycsb::E, Ycsb::F] {
            let (mix, mut random) = (ycsb.mix(), salted(1, 1));
            let mut counts = [0usize; crate::measure::KINDS];
            for _ in 0..DRAWS {
                counts[mix.draw(&mut random) as usize] += 1;
            }
            let shares = [mix.read, mix.write, mix.insert, mix.scan, mix.rmw];
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (count, share) in counts.into_iter().zip(shares) {
                let deviation = (share * (1.0 - share) * DRAWS as f64).sqrt();
                assert!((count as f64 - share * DRAWS as f64).abs() <= 5.0 * deviation, "{ycsb:?}: {counts:?}");
            }
            assert_eq!(ycsb.name().parse(), Ok(ycsb));
            assert_eq!(ycsb.name()[5..].to_uppercase().parse(), Ok(ycsb));
        }
        assert!("ycsb-g".parse::<Ycsb>().unwrap_err().contains("ycsb-a to ycsb-f"));
    }

    #[test]
    fn sizes_keep_to_their_bounds_and_have_their_means() {
        for (text, mean) in
            [("64", 64.0), ("uniform:10-30", 20.0), ("exponential:200", 200.0), ("zipfian:10-1009", f64::NAN)]
        {
            let size: ValueSize = text.parse().unwrap();
            assert_eq!(size.to_string(), text);
            let (sizes, mut random, (min, max)) = (size.sampler(), salted(2, 2), size.bounds());
            let drawn: Vec<usize> = (0..DRAWS).map(|_| sizes.draw(&mut random)).collect();
            assert!(drawn.iter().all(|bytes| (min..=max).contains(bytes)), "{text}");
            let sum: usize = drawn.iter().sum();
            if mean.is_nan() {
                let shortest = drawn.iter().filter(|bytes| **bytes == min).count();
                assert!(shortest * 20 > DRAWS, "the shortest is the commonest: {shortest}");
            } else {
                assert!((sum as f64 / DRAWS as f64 / mean - 1.0).abs() < 0.02, "{text}: {}", sum / DRAWS);
            }
        }
        for wrong in
            ["", "x", "-1", "uniform:5", "uniform:9-3", "normal:3-9", "exponential:7", "1048577", "uniform:0-1048577"]
        {
            let error = wrong.parse::<ValueSize>().unwrap_err();
            assert!(error.contains("uniform:MIN-MAX") && error.contains(wrong), "{error}");
        }
    }
}
