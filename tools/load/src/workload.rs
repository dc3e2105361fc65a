//! Which requests are made: keys by distribution, operations by ratio, values.
//!
//! A key number is always in `0..keys`. All choices of one lane follow from the seed and the lane's number.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution as _, StandardNormal, Zipf};
use wpaxos::protocol::ReadMode;

use crate::target::{Operation, Request};

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
    /// How keys are drawn from it.
    pub distribution: Distribution,
    /// Share of writes.
    pub write_ratio: f64,
    /// How reads are answered.
    pub read_mode: ReadMode,
    /// Bytes of a written value.
    pub value_bytes: usize,
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
    /// Exponential from key 0, cut off behind the last key.
    Exponential {
        /// Mean in keys before the cut.
        mean: f64,
    },
    /// Key 0 for this share of requests; else a key that only the zone uses.
    Conflict {
        /// The share in percent.
        percent: f64,
    },
    /// One key after another, the lanes taking turns.
    Sequential,
}

impl Distribution {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipfian { .. } => "zipfian",
            Self::NormalSigma { .. } | Self::NormalLocality { .. } => "normal",
            Self::Exponential { .. } => "exponential",
            Self::Conflict { .. } => "conflict",
            Self::Sequential => "sequential",
        }
    }

    /// Its parameter, by name.
    pub fn parameter(&self) -> Option<(&'static str, f64)> {
        match *self {
            Self::Uniform | Self::Sequential => None,
            Self::Zipfian { theta } => Some(("zipf_theta", theta)),
            Self::NormalSigma { sigma } => Some(("sigma", sigma)),
            Self::NormalLocality { locality } => Some(("locality", locality)),
            Self::Exponential { mean } => Some(("exponential_mean", mean)),
            Self::Conflict { percent } => Some(("conflicts", percent)),
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
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Range { start: u64, end: u64 },
    Zipfian(Zipf<f64>),
    Normal { mean: f64, sigma: f64 },
    Exponential { mean: f64, mass: f64 },
    Conflict { share: f64, start: u64, end: u64 },
    Sequential { next: u64, step: u64 },
}

impl Keys {
    /// Keys of `distribution` for one lane.
    ///
    /// # Errors
    /// If the distribution needs more zones or keys than there are.
    pub fn new(distribution: &Distribution, keys: u64, place: &LanePlace) -> Result<Self, WorkloadError> {
        assert!((1..=KEYS_MAX).contains(&keys) && place.zone < place.zones, "checked before: {keys} keys, {place:?}");
        let kind = match *distribution {
            Distribution::Uniform => Kind::Range { start: 0, end: keys },
            Distribution::Zipfian { theta } => {
                let zipf = Zipf::new(keys as f64, theta);
                Kind::Zipfian(zipf.map_err(|error| WorkloadError(format!("--zipf-theta {theta}: {error}")))?)
            }
            Distribution::NormalSigma { sigma } => {
                let (start, end) = own_part(keys, place);
                Kind::Normal { mean: middle(start, end), sigma }
            }
            Distribution::NormalLocality { locality } => normal_by_locality(locality, keys, place)?,
            Distribution::Exponential { mean } => Kind::Exponential { mean, mass: -f64::exp_m1(-(keys as f64) / mean) },
            Distribution::Conflict { percent } => conflict(percent / 100.0, keys, place),
            Distribution::Sequential => {
                Kind::Sequential { next: place.lane as u64 % keys, step: place.lanes as u64 % keys }
            }
        };
        Ok(Self { keys, kind })
    }

    /// The next key number, in `0..keys`.
    pub fn draw(&mut self, random: &mut SmallRng) -> u64 {
        let last = self.keys - 1;
        match &mut self.kind {
            Kind::Range { start, end } => random.random_range(*start..*end),
            Kind::Zipfian(zipf) => loop {
                // Rounding at the far end of the inverse may give a rank too many: drawn again, not moved elsewhere.
                let rank = zipf.sample(random) as u64;
                if (1..=last + 1).contains(&rank) {
                    break rank - 1;
                }
            },
            Kind::Normal { mean, sigma } => {
                let deviate: f64 = random.sample(StandardNormal);
                let on_ring = (*mean + *sigma * deviate).rem_euclid(self.keys as f64);
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
            Kind::Sequential { next, step } => {
                let key = *next;
                *next = (*next + *step) % self.keys;
                key
            }
        }
    }
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

/// Key 0 is hot; the zones share out the others, so that requests for them never meet those of another zone.
fn conflict(share: f64, keys: u64, place: &LanePlace) -> Kind {
    if keys == 1 {
        return Kind::Range { start: 0, end: 1 };
    }
    let (start, end) = own_part(keys - 1, place);
    let (start, end) = if start == end { (0, keys - 1) } else { (start, end) };
    Kind::Conflict { share, start: start + 1, end: end + 1 }
}

/// Draws whole requests for one lane.
#[derive(Debug)]
pub struct Requests {
    random: SmallRng,
    keys: Keys,
    write_ratio: f64,
    value_bytes: usize,
    pool: Vec<u8>,
    key: [u8; KEY_BYTES],
}

impl Requests {
    /// The requests of one lane.
    ///
    /// # Errors
    /// If the distribution cannot be had in this cluster.
    pub fn new(workload: &Workload, place: &LanePlace) -> Result<Self, WorkloadError> {
        let mut random = salted(workload.seed, place.lane as u64);
        let mut pool = vec![0; workload.value_bytes + if workload.value_bytes == 0 { 0 } else { VALUE_POOL_SPARE }];
        random.fill(pool.as_mut_slice());
        Ok(Self {
            random,
            keys: Keys::new(&workload.distribution, workload.keys, place)?,
            write_ratio: workload.write_ratio,
            value_bytes: workload.value_bytes,
            pool,
            key: *b"k000000000000000",
        })
    }

    /// The next request.
    pub fn draw(&mut self) -> Request<'_> {
        write_key(&mut self.key, self.keys.draw(&mut self.random));
        let operation = if self.random.random::<f64>() < self.write_ratio {
            let spare = self.pool.len() - self.value_bytes;
            let start = if spare == 0 { 0 } else { self.random.random_range(0..spare) };
            Operation::Write(&self.pool[start..start + self.value_bytes])
        } else {
            Operation::Read
        };
        Request { key: &self.key, operation }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRAWS: usize = 200_000;

    fn place(zone: usize, zones: usize) -> LanePlace {
        LanePlace { zone, zones, lane: zone, lanes: zones }
    }

    fn counts(distribution: Distribution, keys: u64, place: LanePlace) -> Vec<usize> {
        let mut source = Keys::new(&distribution, keys, &place).unwrap();
        let mut random = salted(3, 0);
        let mut counts = vec![0; keys as usize];
        for _ in 0..DRAWS {
            counts[source.draw(&mut random) as usize] += 1;
        }
        counts
    }

    /// Chi-squared of the counts against expected shares, and a bound that honest samples hardly ever exceed.
    fn assert_fits(counts: &[usize], share: impl Fn(usize) -> f64) {
        let mut chi = 0.0;
        let mut bins = 0.0;
        for (key, count) in counts.iter().enumerate() {
            let expected = share(key) * DRAWS as f64;
            if expected < 5.0 {
                assert!(*count < 40, "key {key} was drawn {count} times, expected {expected}");
                continue;
            }
            chi += (*count as f64 - expected).powi(2) / expected;
            bins += 1.0;
        }
        let bound = bins + 4.0 * f64::sqrt(2.0 * bins) + 10.0;
        assert!(chi < bound, "chi-squared {chi} over {bins} bins, expected below {bound}");
    }

    #[test]
    fn uniform_is_flat() {
        assert_fits(&counts(Distribution::Uniform, 100, place(0, 3)), |_| 0.01);
    }

    #[test]
    fn zipfian_follows_the_ranks() {
        for theta in [0.0, 0.5, 0.99, 1.0, 1.5] {
            let total: f64 = (1..=50).map(|rank| f64::from(rank).powf(-theta)).sum();
            let counts = counts(Distribution::Zipfian { theta }, 50, place(0, 1));
            assert_fits(&counts, |key| ((key + 1) as f64).powf(-theta) / total);
        }
    }

    #[test]
    fn exponential_is_cut_off_behind_the_last_key() {
        for mean in [5.0, 40.0, 1e6] {
            let upto = |key: f64| -f64::exp_m1(-key / mean);
            let counts = counts(Distribution::Exponential { mean }, 50, place(0, 1));
            assert_fits(&counts, |key| (upto(key as f64 + 1.0) - upto(key as f64)) / upto(50.0));
        }
    }

    #[test]
    fn conflict_hits_the_hot_key_that_often_and_zones_share_nothing_else() {
        for zone in 0..3 {
            let counts = counts(Distribution::Conflict { percent: 30.0 }, 31, place(zone, 3));
            let own = 1 + 10 * zone..11 + 10 * zone;
            assert_fits(&counts, |key| if key == 0 { 0.3 } else { 0.07 * f64::from(own.contains(&key)) });
        }
        assert_eq!(counts(Distribution::Conflict { percent: 0.0 }, 5, place(1, 2))[0], 0);
        assert_eq!(counts(Distribution::Conflict { percent: 100.0 }, 5, place(1, 2))[0], DRAWS);
    }

    #[test]
    fn sequential_lanes_together_go_through_all_keys() {
        for (keys, lanes) in [(10, 3), (12, 4), (3, 7), (1, 2)] {
            let mut seen = vec![0; keys];
            for lane in 0..lanes {
                let place = LanePlace { zone: 0, zones: 1, lane, lanes };
                let mut source = Keys::new(&Distribution::Sequential, keys as u64, &place).unwrap();
                for _ in 0..keys {
                    seen[source.draw(&mut salted(1, 1)) as usize] += 1;
                }
            }
            assert_eq!(seen, vec![lanes; keys], "{keys} keys, {lanes} lanes");
        }
    }

    #[test]
    fn locality_is_the_share_in_the_zones_own_part() {
        for (zones, keys) in [(2, 1000), (3, 1000), (5, 1000), (3, 100_001)] {
            for locality in [0.6, 0.9, 0.95, 0.99] {
                for zone in 0..zones {
                    let place = place(zone, zones);
                    let (start, end) = own_part(keys, &place);
                    let mut source = Keys::new(&Distribution::NormalLocality { locality }, keys, &place).unwrap();
                    let mut random = salted(9, zone as u64);
                    let own = (0..DRAWS).filter(|_| (start..end).contains(&source.draw(&mut random))).count();
                    let share = own as f64 / DRAWS as f64;
                    let deviation = (locality * (1.0 - locality) / DRAWS as f64).sqrt();
                    assert!((share - locality).abs() < 5.0 * deviation, "{zones} zones: {share} for {locality}");
                }
            }
        }
    }

    #[test]
    fn sigma_is_that_of_the_paper_where_the_ring_does_not_matter() {
        // Quantile 0.975 of the standard normal is 1.959964: L = 0.95 has a half width of that many deviations.
        let sigma = sigma_of(0.95, 1.0 / 3.0);
        assert!((sigma - 1.0 / 3.0 / (2.0 * 1.959_963_985)).abs() < 1e-9, "{sigma}");
        assert!((erf(1.0) - 0.842_700_792_949_715).abs() < 1e-12 && (erf(3.0) - 0.999_977_909_503_001).abs() < 1e-12);
        assert!((own_mass(0.3, 0.4) - own_mass(0.300_000_001, 0.4)).abs() < 1e-7, "the two sums agree");
    }

    #[test]
    fn localities_that_cannot_be_are_refused() {
        let new = |locality, keys, zones| {
            let keys = Keys::new(&Distribution::NormalLocality { locality }, keys, &place(0, zones));
            keys.map(|_| ()).unwrap_err().to_string()
        };
        assert!(new(0.9, 100, 1).contains("--sigma"));
        assert!(new(0.3, 99, 3).contains("above 0.3333"));
        assert!(new(0.9, 2, 3).contains("--keys 2"));
    }

    #[test]
    fn writes_are_as_frequent_as_asked_and_values_as_long() {
        let workload = Workload {
            keys: 10,
            distribution: Distribution::Uniform,
            write_ratio: 0.25,
            read_mode: ReadMode::Log,
            value_bytes: 100,
            seed: 1,
        };
        let mut requests = Requests::new(&workload, &place(0, 1)).unwrap();
        let mut writes = 0;
        for _ in 0..DRAWS {
            let request = requests.draw();
            assert!(request.key.len() == KEY_BYTES && request.key.starts_with(b"k00000000000000"));
            match request.operation {
                Operation::Write(value) => {
                    assert_eq!(value.len(), 100);
                    writes += 1;
                }
                Operation::Read => {}
            }
        }
        assert!((writes as f64 / DRAWS as f64 - 0.25).abs() < 0.01);
        for (ratio, all) in [(0.0, false), (1.0, true)] {
            let mut requests =
                Requests::new(&Workload { write_ratio: ratio, ..workload.clone() }, &place(0, 1)).unwrap();
            assert!((0..1000).all(|_| matches!(requests.draw().operation, Operation::Write(_)) == all));
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_lanes_differ() {
        let draw = |seed, lane| {
            let mut keys = Keys::new(&Distribution::Uniform, KEYS_MAX, &place(0, 1)).unwrap();
            let mut random = salted(seed, lane);
            (0..10).map(|_| keys.draw(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
        assert_ne!(draw(1, 0), draw(2, 0));
    }

    #[test]
    fn keys_are_fixed_width() {
        let mut key = *b"k000000000000000";
        write_key(&mut key, 42);
        assert_eq!(&key, b"k000000000000042");
        write_key(&mut key, KEYS_MAX);
        assert_eq!(&key, b"k999999999999999");
    }

    proptest! {
        #[test]
        fn every_distribution_stays_in_range(
            keys in prop_oneof![1..20u64, 1..=KEYS_MAX, Just(KEYS_MAX)], zones in 1..9usize, which in 0..7, seed: u64,
        ) {
            let distribution = match which {
                0 => Distribution::Uniform,
                1 => Distribution::Zipfian { theta: 0.99 },
                2 => Distribution::NormalSigma { sigma: keys as f64 * 3.0 },
                3 => Distribution::NormalLocality { locality: 0.7 },
                4 => Distribution::Exponential { mean: keys as f64 / 2.0 },
                5 => Distribution::Conflict { percent: 50.0 },
                _ => Distribution::Sequential,
            };
            let place = LanePlace { zone: zones - 1, zones, lane: zones - 1, lanes: zones };
            if let Ok(mut source) = Keys::new(&distribution, keys, &place) {
                let mut random = salted(seed, 0);
                for _ in 0..200 {
                    prop_assert!(source.draw(&mut random) < keys);
                }
            }
        }
    }
}
