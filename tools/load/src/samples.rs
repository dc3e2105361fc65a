//! Every response time, for Paxi's `latency` file; of too many a random sample.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use rand::{Rng, rngs::SmallRng, seq::SliceRandom};

use crate::workload::salted;

/// The most samples that a run keeps, at 8 bytes each.
pub const SAMPLES_MAX: usize = 10_000_000;

/// The response times of one worker, in nanoseconds.
#[derive(Debug)]
pub struct Samples {
    times_ns: Vec<u64>,
    max: usize,
    seen: u64,
    random: SmallRng,
}

impl Samples {
    /// Keeps at most so many, every one with the same probability.
    pub fn new(max: usize, seed: u64) -> Self {
        Self { times_ns: Vec::new(), max, seen: 0, random: salted(seed, u64::MAX - 1) }
    }

    /// Takes one more.
    pub fn add(&mut self, ns: u64) {
        self.seen += 1;
        if self.times_ns.len() < self.max {
            self.times_ns.push(ns);
            return;
        }
        let place = self.random.random_range(0..self.seen);
        if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.times_ns.get_mut(place)) {
            *kept = ns;
        }
    }
}

/// The same share of what each worker has seen: the largest that all of them have kept.
fn together(workers: Vec<Samples>) -> Vec<u64> {
    let share = |samples: &Samples| samples.times_ns.len() as f64 / samples.seen.max(1) as f64;
    let least = workers.iter().filter(|samples| samples.seen > 0).map(share).fold(1.0, f64::min);
    let mut all = Vec::new();
    for Samples { mut times_ns, seen, mut random, .. } in workers {
        let count = ((seen as f64 * least).round() as usize).min(times_ns.len());
        let (chosen, _) = times_ns.partial_shuffle(&mut random, count);
        all.extend_from_slice(chosen);
    }
    all
}

/// Writes the samples of all workers, sorted, in milliseconds, one per line. Returns how many there are, and of how many.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, workers: Vec<Samples>) -> std::io::Result<(u64, u64)> {
    let seen = workers.iter().map(|samples| samples.seen).sum();
    let mut all = together(workers);
    all.sort_unstable();
    let mut out = BufWriter::new(File::create(path)?);
    for ns in &all {
        writeln!(out, "{}.{:06}", ns / 1_000_000, ns % 1_000_000)?;
    }
    out.flush()?;
    Ok((all.len() as u64, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_written_sorted_in_milliseconds() {
        let mut workers = [Samples::new(10, 1), Samples::new(10, 1)];
        for (worker, ns) in [(0, 2_500_000), (1, 70), (0, 1_000_000), (1, 12_000_000_001)] {
            workers[worker].add(ns);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(write(file.path(), workers.into()).unwrap(), (4, 4));
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "0.000070\n1.000000\n2.500000\n12000.000001\n");
    }

    #[test]
    fn busy_and_idle_workers_are_represented_by_what_they_did() {
        let (mut busy, mut idle) = (Samples::new(1000, 5), Samples::new(1000, 6));
        (0..9_000).for_each(|_| busy.add(1));
        (0..1_000).for_each(|_| idle.add(2));
        let all = together(vec![busy, idle, Samples::new(1000, 7)]);
        let of_idle = all.iter().filter(|ns| **ns == 2).count();
        assert_eq!((all.len(), of_idle), (1111, 111));
    }

    #[test]
    fn of_too_many_a_fair_sample_is_kept() {
        let mut samples = Samples::new(1000, 5);
        (0..100_000).for_each(|ns| samples.add(ns));
        assert_eq!((samples.times_ns.len(), samples.seen), (1000, 100_000));
        let early = samples.times_ns.iter().filter(|ns| **ns < 50_000).count();
        assert!((400..600).contains(&early), "{early} of 1000 are of the first half");
    }
}
