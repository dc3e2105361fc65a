//! A limit on how often a closed loop asks: at most `rate` requests per second, evenly spaced.
//!
//! What was missed is not made up for, but for what a late wake-up of the thread missed: no more than one request, or a
//! millisecond's worth. So no interval has more requests than its length times the rate, plus that.

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Lateness that is made up for.
const LATE_NS: u64 = 1_000_000;

/// One worker's share of the limit.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    gap_ns: u64,
    next_ns: u64,
}

impl Throttle {
    /// The share of worker `worker` of `workers` in `rate` requests per second, none of them 0; their turns interleave.
    pub fn new(rate: u64, worker: usize, workers: usize) -> Self {
        assert!(rate > 0 && worker < workers, "checked before: rate {rate}, worker {worker} of {workers}");
        // Rounded up: never faster than asked.
        let gap_ns = (NANOS_PER_SECOND * workers as u64).div_ceil(rate);
        Self { gap_ns, next_ns: gap_ns / workers as u64 * worker as u64 }
    }

    /// When the next request may be made.
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// Makes a request now, if it is time.
    pub fn take(&mut self, now_ns: u64) -> bool {
        if now_ns < self.next_ns {
            return false;
        }
        let late_ns = now_ns - self.next_ns;
        let from_ns = if late_ns <= LATE_NS.max(self.gap_ns) { self.next_ns } else { now_ns };
        self.next_ns = from_ns + self.gap_ns;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times at which a caller that comes at `arrivals` is let through.
    fn taken(throttle: &mut Throttle, arrivals: impl Iterator<Item = u64>) -> Vec<u64> {
        arrivals.filter(|now| throttle.take(*now)).collect()
    }

    #[test]
    fn a_caller_that_is_always_there_gets_the_rate() {
        for (rate, workers) in [(1, 1), (1000, 1), (7, 3), (100_000, 4)] {
            let seconds = if rate > 1000 { 1 } else { 20 };
            let per_worker = (0..workers).map(|worker| {
                let mut throttle = Throttle::new(rate, worker, workers);
                taken(&mut throttle, (0..seconds * 100_000).map(|step| step * 10_000)).len() as u64
            });
            let all: u64 = per_worker.sum();
            assert!(all <= rate * seconds + workers as u64, "{all} of {rate} per second");
            assert!(all >= rate * seconds * 99 / 100, "{all} of {rate} per second");
        }
    }

    #[test]
    fn a_pause_earns_nothing() {
        let mut throttle = Throttle::new(100, 0, 1);
        assert!(throttle.take(0));
        // Five seconds later, 500 requests could have been made: one is.
        let after = taken(&mut throttle, (0..1000).map(|step| 5_000_000_000 + step * 1000));
        assert_eq!(after, [5_000_000_000], "the next may be made 10 ms later");
        assert_eq!(throttle.next_ns(), 5_010_000_000);
    }

    #[test]
    fn a_late_wake_up_costs_no_throughput() {
        // A caller that comes every 300 us gets 10,000 per second three at a time.
        let mut throttle = Throttle::new(10_000, 0, 1);
        let visits = (0..10_000u64).flat_map(|visit| std::iter::repeat_n(visit * 300_000, 10));
        let all = taken(&mut throttle, visits).len();
        assert!((29_900..=30_001).contains(&all), "{all} in three seconds");
    }
}
