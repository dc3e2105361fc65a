//! When requests are meant to start in an open loop: times fixed in advance, whatever the cluster does.

use rand::{Rng, rngs::SmallRng};
use rand_distr::Exp1;

use crate::args::Arrivals;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The intended times of one worker, in nanoseconds since the load began, never falling.
#[derive(Debug)]
pub struct Schedule {
    spacing: Spacing,
    next_ns: u64,
}

#[derive(Debug)]
enum Spacing {
    /// Request `index` of the whole run; this worker has every `step`-th.
    Constant { rate: u64, index: u64, step: u64 },
    /// The exact sum of the gaps so far, so that rounding does not add up.
    Poisson { mean_gap_ns: f64, sum_ns: f64, random: SmallRng },
}

impl Schedule {
    /// The share of worker `worker` of `workers` in `rate` requests per second, `rate` and `workers` not 0. Constant
    /// times of all workers interleave evenly; Poisson processes of all workers add up to one.
    pub fn new(arrivals: Arrivals, rate: u64, worker: usize, workers: usize, random: SmallRng) -> Self {
        assert!(rate > 0 && worker < workers, "checked before: rate {rate}, worker {worker} of {workers}");
        let spacing = match arrivals {
            Arrivals::Constant => Spacing::Constant { rate, index: worker as u64, step: workers as u64 },
            Arrivals::Poisson => {
                let mean_gap_ns = NANOS_PER_SECOND as f64 * workers as f64 / rate as f64;
                Spacing::Poisson { mean_gap_ns, sum_ns: 0.0, random }
            }
        };
        let mut schedule = Self { spacing, next_ns: 0 };
        schedule.next_ns = schedule.compute();
        schedule
    }

    /// The next intended time.
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// Goes on to the one after.
    pub fn advance(&mut self) {
        if let Spacing::Constant { index, step, .. } = &mut self.spacing {
            *index += *step;
        }
        self.next_ns = self.compute();
    }

    fn compute(&mut self) -> u64 {
        match &mut self.spacing {
            Spacing::Constant { rate, index, .. } => {
                (u128::from(*index) * u128::from(NANOS_PER_SECOND) / u128::from(*rate)) as u64
            }
            Spacing::Poisson { mean_gap_ns, sum_ns, random } => {
                *sum_ns += *mean_gap_ns * random.sample::<f64, _>(Exp1);
                *sum_ns as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::salted;

    fn times(arrivals: Arrivals, rate: u64, worker: usize, workers: usize, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, rate, worker, workers, salted(5, worker as u64));
        let mut take = || {
            let next = schedule.next_ns();
            schedule.advance();
            next
        };
        (0..count).map(|_| take()).collect()
    }

    #[test]
    fn constant_times_are_evenly_spaced_and_do_not_drift() {
        assert_eq!(times(Arrivals::Constant, 4, 0, 1, 5), [0, 250_000_000, 500_000_000, 750_000_000, 1_000_000_000]);
        let thirds = times(Arrivals::Constant, 3, 0, 1, 3_000_001);
        assert_eq!(thirds[3_000_000], 1_000_000 * NANOS_PER_SECOND);
        assert_eq!((thirds[1], thirds[2]), (333_333_333, 666_666_666));
    }

    #[test]
    fn the_workers_constant_times_interleave_to_the_whole_schedule() {
        let mut all: Vec<u64> = (0..3).flat_map(|worker| times(Arrivals::Constant, 700, worker, 3, 100)).collect();
        all.sort_unstable();
        assert_eq!(all, times(Arrivals::Constant, 700, 0, 1, 300));
    }

    #[test]
    fn poisson_times_have_the_rate_and_the_spread_of_a_poisson_process() {
        let count = 200_000;
        let times = times(Arrivals::Poisson, 1000, 1, 2, count);
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1]));
        let mean = *times.last().unwrap() as f64 / count as f64;
        assert!((mean / 2e6 - 1.0).abs() < 0.02, "mean gap {mean} ns, expected 2 ms (500 per second)");
        let gaps = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64);
        let variance = gaps.map(|gap| (gap - mean).powi(2)).sum::<f64>() / count as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "the deviation of exponential gaps is their mean");
        let late = times.windows(2).filter(|pair| pair[1] - pair[0] > 2_000_000).count() as f64 / count as f64;
        assert!((late - (-1.0f64).exp()).abs() < 0.01);
    }
}
