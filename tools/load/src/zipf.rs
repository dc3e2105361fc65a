//! Zipf's distribution over exactly `keys` numbers, with an offset: number n, from 0, in proportion to 1/(v + n)^s.
//!
//! Hörmann and Derflinger's rejection-inversion, as in Go's `rand.Zipf` but for any exponent: the density is integrated
//! over reals, inverted, and what falls into the cell of a number beyond the number's own share is drawn again.

use rand::{Rng, rngs::SmallRng};

/// Draws numbers.
#[derive(Clone, Debug)]
pub struct Zipf {
    s: f64,
    v: f64,
    last: f64,
    /// The integral at both ends of what is drawn from.
    low: f64,
    high: f64,
    /// What lies so near below its number is taken without a look at the integral.
    near: f64,
}

impl Zipf {
    /// Over `0..keys`, with exponent `s` from 0 and offset `v` from 1.
    pub fn new(keys: u64, s: f64, v: f64) -> Self {
        assert!(keys > 0 && s >= 0.0 && v >= 1.0, "checked before: {keys} keys, s {s}, v {v}");
        let mut zipf = Self { s, v, last: (keys - 1) as f64, low: 0.0, high: 0.0, near: 0.0 };
        zipf.low = zipf.integral(0.5) - zipf.density(0.0);
        zipf.high = zipf.integral(zipf.last + 0.5);
        zipf.near = 1.0 - zipf.inverse(zipf.integral(1.5) - zipf.density(1.0));
        zipf
    }

    /// The next number.
    pub fn draw(&self, random: &mut SmallRng) -> u64 {
        loop {
            let at = self.high + random.random::<f64>() * (self.low - self.high);
            let x = self.inverse(at);
            let number = (x + 0.5).floor();
            // Rounding at the far ends of the inverse may give a number too many: drawn again, not moved elsewhere.
            if !(0.0..=self.last).contains(&number) {
                continue;
            }
            if number - x <= self.near || at >= self.integral(number + 0.5) - self.density(number) {
                return number as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (self.v + x).powf(-self.s)
    }

    /// An antiderivative of the density: one that keeps its digits far out for large exponents, and near 1 for others.
    fn integral(&self, x: f64) -> f64 {
        let (rest, log) = (1.0 - self.s, (self.v + x).ln());
        if rest.abs() > 0.5 {
            (rest * log).exp() / rest
        } else if rest == 0.0 {
            log
        } else {
            (rest * log).exp_m1() / rest
        }
    }

    fn inverse(&self, y: f64) -> f64 {
        let rest = 1.0 - self.s;
        let log = if rest.abs() > 0.5 {
            (y * rest).ln() / rest
        } else if rest == 0.0 {
            y
        } else {
            (y * rest).ln_1p() / rest
        };
        log.exp() - self.v
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::salted;

    /// Shares of the first and the last numbers against their exact values, over key spaces up to the largest.
    #[test]
    fn ends_of_large_key_spaces_have_their_shares() {
        for (s, v) in [(1.0, 1.0), (0.5, 1.0), (1.2, 1.0), (1.000_000_1, 3.0), (2.0, 500.0)] {
            let (keys, draws) = (1_000_000u64, 300_000);
            let (zipf, mut random) = (Zipf::new(keys, s, v), salted(11, 3));
            let share = |n: u64| (v + n as f64).powf(-s);
            let total: f64 = (0..keys).map(share).sum();
            let mut counts = [0.0f64; 3];
            for _ in 0..draws {
                match zipf.draw(&mut random) {
                    0..10 => counts[0] += 1.0,
                    n if n >= keys / 2 => counts[1] += 1.0,
                    _ => counts[2] += 1.0,
                }
            }
            let exact = [(0..10).map(share).sum::<f64>() / total, (keys / 2..keys).map(share).sum::<f64>() / total];
            for (count, exact) in counts.into_iter().zip(exact) {
                let (expected, deviation) = (exact * f64::from(draws), (exact * f64::from(draws)).sqrt());
                assert!((count - expected).abs() < 5.0 * deviation + 1.0, "s {s} v {v}: {count} for {expected}");
            }
        }
    }

    #[test]
    fn the_inverse_inverts() {
        for s in [0.0, 0.5, 0.999_999, 1.0, 1.3, 2.0, 9.0] {
            let zipf = Zipf::new(1000, s, 1.5);
            for x in [-0.4, 0.0, 1.0, 77.5, 999.0] {
                let back = zipf.inverse(zipf.integral(x));
                assert!((back - x).abs() < 1e-6 * (1.0 + x.abs()), "s {s}: {x} came back as {back}");
            }
        }
    }
}
