//! Which requests are made: keys by distribution, operations by ratio, values.
//!
//! A key is drawn as a number in `0..keys` and numbered from the first key on. All choices of one lane follow from the
//! seed and the lane's number; with a history, the numbers in its values from the run too.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::StandardNormal;
use wpaxos::protocol::ReadMode;

use crate::{
    measure::Kind as Operations,
    mix::{Mix, SCAN_KEYS_MAX, Sizes, ValueSize, YCSB_THETA, Ycsb},
    target::{Operation, Request},
    zipf::Zipf,
};

/// The most keys: 15 digits.
pub const KEYS_MAX: u64 = 999_999_999_999_999;
/// Bytes of a key.
pub const KEY_BYTES: usize = 16;
/// Random bytes beyond one value, so that values differ by where they start.
const VALUE_POOL_SPARE: usize = 4096;

/// The requests of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Size of the key space.
    pub keys: u64,
    /// Number of the first key.
    pub first_key: u64,
    /// How keys are drawn from it.
    pub distribution: Distribution,
    /// Which workload of YCSB it is, if one.
    pub ycsb: Option<Ycsb>,
    /// Which operations it consists of.
    pub mix: Mix,
    /// How reads are answered.
    pub read_mode: ReadMode,
    /// Normal: how long the middle stays before it moves on by one key.
    pub step: Option<Duration>,
    /// How long written values are.
    pub values: ValueSize,
    /// Decides every choice.
    pub seed: u64,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Every key alike.
    Uniform,
    /// Key r − 1 in proportion to 1/r^theta, r from 1.
    Zipfian {
        /// The exponent.
        theta: f64,
    },
    /// Key n, from 0, in proportion to 1/(v + n)^s.
    Zipfan {
        /// The exponent.
        s: f64,
        /// The offset.
        v: f64,
    },
    /// Normal around the same key for all zones; the key space is a ring.
    NormalAt {
        /// Number of the key in the middle, counted as keys are numbered.
        mu: f64,
        /// Standard deviation in keys.
        sigma: f64,
    },
    /// Normal around the middle of the zone's own part of the key space, which is a ring, with this deviation.
    NormalSigma {
        /// Standard deviation in keys.
        sigma: f64,
    },
    /// The same, with the deviation that makes this share of a zone's requests fall into its own part.
    NormalLocality {
        /// The share.
        locality: f64,
    },
    /// Exponential from the first key, cut off behind the last key.
    Exponential {
        /// Mean in keys before the cut.
        mean: f64,
    },
    /// The first key for this share of requests; else a key that only the zone uses.
    Conflict {
        /// The share in percent.
        percent: f64,
    },
    /// One key after another, the lanes taking turns.
    Sequential,
    /// As popular as by Zipf, but the popular ones are spread over the key space, as in YCSB.
    Scrambled {
        /// The exponent.
        theta: f64,
    },
    /// By Zipf from what the lane has inserted last, and had acknowledged, backwards.
    Latest {
        /// The exponent.
        theta: f64,
    },
}

impl Distribution {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipfian { .. } | Self::Zipfan { .. } => "zipfian",
            Self::NormalAt { .. } | Self::NormalSigma { .. } | Self::NormalLocality { .. } => "normal",
            Self::Exponential { .. } => "exponential",
            Self::Conflict { .. } => "conflict",
            Self::Sequential => "sequential",
            Self::Scrambled { .. } => "scrambled zipfian",
            Self::Latest { .. } => "latest",
        }
    }

    /// The distribution that a workload of YCSB draws from.
    pub const fn of_ycsb(ycsb: Ycsb) -> Self {
        match ycsb {
            Ycsb::D => Self::Latest { theta: YCSB_THETA },
            _ => Self::Scrambled { theta: YCSB_THETA },
        }
    }

    /// Its parameters, by name.
    pub fn parameters(&self) -> Vec<(&'static str, f64)> {
        match *self {
            Self::Uniform | Self::Sequential => vec![],
            Self::Zipfian { theta } | Self::Scrambled { theta } | Self::Latest { theta } => vec![("zipf_theta", theta)],
            Self::Zipfan { s, v } => vec![("zipf_s", s), ("zipf_v", v)],
            Self::NormalAt { mu, sigma } => vec![("mu", mu), ("sigma", sigma)],
            Self::NormalSigma { sigma } => vec![("sigma", sigma)],
            Self::NormalLocality { locality } => vec![("locality", locality)],
            Self::Exponential { mean } => vec![("exponential_mean", mean)],
            Self::Conflict { percent } => vec![("conflicts", percent)],
        }
    }
}

/// Whose requests are drawn: a lane is one client of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanePlace {
    /// Position of its zone among the cluster's zones.
    pub zone: usize,
    /// How many zones the cluster has.
    pub zones: usize,
    /// Its number among all lanes of the run.
    pub lane: usize,
    /// How many there are.
    pub lanes: usize,
}

/// Why a distribution cannot be had in this cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WorkloadError(String);

/// The keys of a zone: `start..end`, its share of the key space.
fn own_part(keys: u64, place: &LanePlace) -> (u64, u64) {
    let border = |zone: usize| (u128::from(keys) * zone as u128 / place.zones as u128) as u64;
    (border(place.zone), border(place.zone + 1))
}

/// Draws key numbers for one lane.
#[derive(Clone, Debug)]
pub struct Keys {
    keys: u64,
    first: u64,
    step_ns: Option<u64>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Range { start: u64, end: u64 },
    Zipf(Zipf),
    Normal { mean: f64, sigma: f64 },
    Exponential { mean: f64, mass: f64 },
    Conflict { share: f64, start: u64, end: u64 },
    Sequential { next: u64, step: u64 },
    Scrambled(Zipf),
    Latest(Zipf),
}

impl Keys {
    /// The keys of a workload for one lane.
    ///
    /// # Errors
    /// If the distribution needs more zones or keys than there are.
    pub fn new(workload: &Workload, place: &LanePlace) -> Result<Self, WorkloadError> {
        let (keys, first) = (workload.keys, workload.first_key);
        assert!((1..=KEYS_MAX).contains(&keys) && place.zone < place.zones, "checked before: {keys} keys, {place:?}");
        let kind = match workload.distribution {
            Distribution::Uniform => Kind::Range { start: 0, end: keys },
            Distribution::Zipfian { theta } => Kind::Zipf(Zipf::new(keys, theta, 1.0)),
            Distribution::Zipfan { s, v } => Kind::Zipf(Zipf::new(keys, s, v)),
            // The middle of the key's own stretch of the ring, so that its neighbours on both sides are alike.
            Distribution::NormalAt { mu, sigma } => Kind::Normal { mean: mu - first as f64 + 0.5, sigma },
            Distribution::NormalSigma { sigma } => {
                let (start, end) = own_part(keys, place);
                Kind::Normal { mean: middle(start, end), sigma }
            }
            Distribution::NormalLocality { locality } => normal_by_locality(locality, keys, place)?,
            Distribution::Exponential { mean } => Kind::Exponential { mean, mass: -f64::exp_m1(-(keys as f64) / mean) },
            Distribution::Conflict { percent } => conflict(percent / 100.0, keys, place),
            Distribution::Scrambled { theta } => Kind::Scrambled(Zipf::new(keys, theta, 1.0)),
            Distribution::Latest { theta } => Kind::Latest(Zipf::new(keys, theta, 1.0)),
            Distribution::Sequential => {
                Kind::Sequential { next: place.lane as u64 % keys, step: place.lanes as u64 % keys }
            }
        };
        let step_ns = workload.step.map(|step| step.as_nanos() as u64);
        Ok(Self { keys, first, step_ns, kind })
    }

    /// The next key number, for a request that starts so long after the load began.
    pub fn draw(&mut self, random: &mut SmallRng, now_ns: u64) -> u64 {
        let last = self.keys - 1;
        let number = match &mut self.kind {
            Kind::Range { start, end } => random.random_range(*start..*end),
            Kind::Zipf(zipf) => zipf.draw(random),
            Kind::Normal { mean, sigma } => {
                let steps = self.step_ns.map_or(0, |step_ns| now_ns / step_ns);
                let deviate: f64 = random.sample(StandardNormal);
                let on_ring = (*mean + steps as f64 + *sigma * deviate).rem_euclid(self.keys as f64);
                (on_ring as u64).min(last)
            }
            Kind::Exponential { mean, mass } => {
                let uniform: f64 = random.random();
                let value = -*mean * f64::ln_1p(-uniform * *mass);
                (value as u64).min(last)
            }
            Kind::Conflict { share, start, end } => {
                if random.random::<f64>() < *share {
                    0
                } else {
                    random.random_range(*start..*end)
                }
            }
            Kind::Scrambled(zipf) => scrambled(zipf.draw(random)) % self.keys,
            // How far back, from the last key on; what was inserted since, [`Requests`] knows.
            Kind::Latest(zipf) => last - zipf.draw(random),
            Kind::Sequential { next, step } => {
                let key = *next;
                *next = (*next + *step) % self.keys;
                key
            }
        };
        self.first + number
    }
}

/// A number that has nothing to do with its neighbours' (FNV-1a of its bytes, as in YCSB).
fn scrambled(number: u64) -> u64 {
    number
        .to_le_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn middle(start: u64, end: u64) -> f64 {
    (start as f64 + end as f64) / 2.0
}

/// The paper draws each zone's keys from a normal distribution around the zone's own mean and calls locality the
/// complement of the overlap of two adjacent zones: L = 1 − 2Φ(−w/2σ), w being the distance of their means. As the
/// means stand w = keys/zones apart, that is also the share of a zone's requests within w/2 of its mean, that is, in
/// its own part: L = 2Φ(w/2σ) − 1, and so σ = w / (2 Φ⁻¹((1 + L)/2)). The key space is a ring here, so what goes around
/// it once or more and lands in the own part again counts too; σ is found by bisection of that sum.
fn normal_by_locality(locality: f64, keys: u64, place: &LanePlace) -> Result<Kind, WorkloadError> {
    let (start, end) = own_part(keys, place);
    if place.zones < 2 {
        return Err(WorkloadError(
            "--locality needs at least two zones, and this cluster has one: give --sigma instead".to_owned(),
        ));
    }
    let share = (end - start) as f64 / keys as f64;
    if end == start {
        return Err(WorkloadError(format!(
            "--distribution normal needs a key for each zone: --keys {keys} is less than {} zones",
            place.zones
        )));
    }
    if locality <= share {
        return Err(WorkloadError(format!(
            "--locality {locality} is not above 1/zones: with {} zones expected above {share:.4} (a uniform \
             distribution has that much) and below 1",
            place.zones
        )));
    }
    Ok(Kind::Normal { mean: middle(start, end), sigma: sigma_of(locality, share) * keys as f64 })
}

/// The deviation, in turns of the ring, at which a wrapped normal has `locality` of its mass within `share`/2 of its
/// mean.
fn sigma_of(locality: f64, share: f64) -> f64 {
    let (mut low, mut high) = (0.0, 4.0);
    for _ in 0..100 {
        let sigma = (low + high) / 2.0;
        if own_mass(sigma, share) > locality {
            low = sigma;
        } else {
            high = sigma;
        }
    }
    (low + high) / 2.0
}

/// The mass of a wrapped normal within `share`/2 of its mean, as its Fourier series where that converges fast and as
/// the sum of its turns where it does not.
fn own_mass(sigma: f64, share: f64) -> f64 {
    use std::f64::consts::{PI, SQRT_2};
    if sigma > 0.3 {
        let term = |k: f64| (-2.0 * (PI * k * sigma).powi(2)).exp() * (PI * k * share).sin() / (PI * k);
        return share + 2.0 * (1..=20).map(|k| term(f64::from(k))).sum::<f64>();
    }
    let up_to = |x: f64| erf(x / (sigma * SQRT_2)) / 2.0;
    (-6..=6).map(|turn| up_to(f64::from(turn) + share / 2.0) - up_to(f64::from(turn) - share / 2.0)).sum()
}

/// The error function, by its series near 0 and by its continued fraction elsewhere; exact to about 1e-13.
fn erf(x: f64) -> f64 {
    use std::f64::consts::PI;
    let magnitude = x.abs();
    let value = if magnitude < 2.5 {
        let (mut term, mut sum) = (magnitude, magnitude);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -magnitude * magnitude / n;
            sum += term / (2.0 * n + 1.0);
            if term.abs() < 1e-17 {
                break;
            }
        }
        2.0 / PI.sqrt() * sum
    } else if magnitude > 6.0 {
        1.0
    } else {
        let fraction = (1..=80).rev().fold(0.0, |rest, k| f64::from(k) / 2.0 / (magnitude + rest));
        1.0 - (-magnitude * magnitude).exp() / (PI.sqrt() * (magnitude + fraction))
    };
    value.copysign(x)
}

/// The first key is hot; the zones share out the others, so that requests for them never meet those of another zone.
fn conflict(share: f64, keys: u64, place: &LanePlace) -> Kind {
    if keys == 1 {
        return Kind::Range { start: 0, end: 1 };
    }
    let (start, end) = own_part(keys - 1, place);
    let (start, end) = if start == end { (0, keys - 1) } else { (start, end) };
    Kind::Conflict { share, start: start + 1, end: end + 1 }
}

/// Draws whole operations for one lane.
#[derive(Debug)]
pub struct Requests {
    random: SmallRng,
    keys: Keys,
    mix: Mix,
    sizes: Sizes,
    pool: Vec<u8>,
    key: [u8; KEY_BYTES],
    numbers: Option<Numbers>,
    inserts: Inserts,
}

/// The keys that a lane inserts: those behind the key space, the lanes taking turns, so that no two insert the same.
#[derive(Clone, Copy, Debug)]
struct Inserts {
    /// Number of the first key that this lane inserts.
    first: u64,
    /// From one of them to the next.
    step: u64,
    begun: u64,
    acknowledged: u64,
}

impl Inserts {
    fn number(&self, index: u64) -> u64 {
        (self.first + index * self.step).min(KEYS_MAX)
    }
}

/// An operation, with its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn<'a> {
    /// What it is.
    pub kind: Operations,
    /// How many requests it begins with: as many as a scan has keys, else one.
    pub requests: u32,
    /// The first of them.
    pub request: Request<'a>,
}

/// Numbers that no other write of the run has, and hardly one of another run.
#[derive(Debug)]
struct Numbers {
    next: u64,
    step: u64,
    value: Vec<u8>,
}

/// A value with a number in it is at least so long.
pub const NUMBERED_BYTES_MIN: usize = 8;

impl Requests {
    /// The requests of one lane. With `run`, a number below 2^31 that is hardly another run's, every value begins with a
    /// number of its own.
    ///
    /// # Errors
    /// If the distribution cannot be had in this cluster.
    pub fn new(workload: &Workload, place: &LanePlace, run: Option<u32>) -> Result<Self, WorkloadError> {
        let mut random = salted(workload.seed, place.lane as u64);
        let (shortest, longest) = workload.values.bounds();
        let mut pool = vec![0; longest + if longest == 0 { 0 } else { VALUE_POOL_SPARE }];
        random.fill(pool.as_mut_slice());
        let numbers = run.map(|run| {
            assert!(shortest >= NUMBERED_BYTES_MIN && run < 1 << 31, "checked before: {workload:?}");
            let next = u64::from(run) << 32 | (place.lane as u64 + 1);
            Numbers { next, step: place.lanes as u64, value: vec![0; longest] }
        });
        let first = workload.first_key + workload.keys + place.lane as u64;
        Ok(Self {
            random,
            keys: Keys::new(workload, place)?,
            mix: workload.mix,
            sizes: workload.values.sampler(),
            pool,
            key: *b"k000000000000000",
            numbers,
            inserts: Inserts { first, step: place.lanes as u64, begun: 0, acknowledged: 0 },
        })
    }

    /// The next operation, which starts so long after the load began.
    pub fn draw(&mut self, now_ns: u64) -> Drawn<'_> {
        let kind = self.mix.draw(&mut self.random);
        let (requests, number) = match kind {
            Operations::Insert => {
                self.inserts.begun += 1;
                (1, self.inserts.number(self.inserts.begun - 1))
            }
            Operations::Scan => (self.random.random_range(1..=SCAN_KEYS_MAX), self.draw_key(now_ns)),
            Operations::Read | Operations::Write | Operations::ReadModifyWrite => (1, self.draw_key(now_ns)),
        };
        let request = match kind {
            Operations::Write | Operations::Insert => self.write_of(number),
            Operations::Read | Operations::Scan | Operations::ReadModifyWrite => self.read_of(number),
        };
        Drawn { kind, requests, request }
    }

    fn draw_key(&mut self, now_ns: u64) -> u64 {
        let number = self.keys.draw(&mut self.random, now_ns);
        if !matches!(self.keys.kind, Kind::Latest(_)) {
            return number;
        }
        let back = self.keys.first + self.keys.keys - 1 - number;
        match self.inserts.acknowledged.checked_sub(back + 1) {
            Some(index) => self.inserts.number(index),
            None => number + self.inserts.acknowledged,
        }
    }

    /// An insert was acknowledged.
    pub fn inserted(&mut self) {
        self.inserts.acknowledged += 1;
    }

    /// The key that lies so far behind another in a scan; behind the last comes the first.
    pub fn behind(&self, number: u64, steps: u64) -> u64 {
        self.keys.first + (number - self.keys.first + steps) % self.keys.keys
    }

    /// A read of this key.
    pub fn read_of(&mut self, number: u64) -> Request<'_> {
        write_key(&mut self.key, number);
        Request { key: &self.key, number, operation: Operation::Read }
    }

    /// A write of this key.
    pub fn write_of(&mut self, number: u64) -> Request<'_> {
        write_key(&mut self.key, number);
        let bytes = self.sizes.draw(&mut self.random);
        let spare = self.pool.len() - bytes;
        let start = if spare == 0 { 0 } else { self.random.random_range(0..spare) };
        let random = &self.pool[start..start + bytes];
        let value = match &mut self.numbers {
            Some(numbers) => numbers.put_into(random),
            None => random,
        };
        Request { key: &self.key, number, operation: Operation::Write(value) }
    }
}

impl Numbers {
    /// The value with the next number at its beginning.
    fn put_into(&mut self, value: &[u8]) -> &[u8] {
        let numbered = &mut self.value[..value.len()];
        numbered.copy_from_slice(value);
        numbered[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += self.step;
        numbered
    }
}

/// A random stream of its own for each use of one seed.
pub fn salted(seed: u64, salt: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed ^ salt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Writes `k` and the 15 digits of `number`.
fn write_key(key: &mut [u8; KEY_BYTES], mut number: u64) {
    for digit in key[1..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests;
