//! Puts the workers' intervals together: by second for the progress line and the interval log, and over all time for
//! the report.

use std::{collections::BTreeMap, io::Write, time::Duration};

use crate::{
    hdr::HdrLog,
    json::{Phase, Second},
    measure::{Counts, Interval},
    progress::Progress,
    run::Gathered,
    target::TargetError,
    worker::Kept,
};

/// Takes intervals in any order of workers; each worker's own come in order.
pub(crate) struct Gather<'a, W: Write> {
    /// Seconds that some workers have not ended yet.
    open: BTreeMap<i64, Open>,
    /// The first second behind what is measured, where that is known.
    cools_from: Option<i64>,
    /// The first second that each worker may still report.
    reached: Vec<i64>,
    zones: usize,
    log: Option<HdrLog<'a, W>>,
    progress: Progress,
    gathered: Gathered,
}

/// A second that some workers have not ended yet.
struct Open {
    counts: Counts,
    late: u64,
    cooling: u64,
}

impl<'a, W: Write> Gather<'a, W> {
    pub(crate) fn new(
        (workers, zones): (usize, usize),
        cools_from: Option<i64>,
        log: Option<HdrLog<'a, W>>,
        progress: Progress,
    ) -> Self {
        let (failures, kept, seconds) = (Vec::new(), Vec::new(), Vec::new());
        let gathered = Gathered { totals: Counts::new(zones), late: 0, failures, kept, seconds, cpu: None };
        Self { open: BTreeMap::new(), cools_from, reached: vec![i64::MIN; workers], zones, log, progress, gathered }
    }

    /// Takes what a worker counted in a second.
    pub(crate) fn take(&mut self, worker: usize, interval: &Interval) {
        assert!(interval.second >= self.reached[worker], "worker {worker} reports second {} again", interval.second);
        let new = || Open { counts: Counts::new(self.zones), late: 0, cooling: 0 };
        let open = self.open.entry(interval.second).or_insert_with(new);
        open.counts.add(&interval.counts);
        open.late += interval.late;
        open.cooling += interval.cooling;
        self.gathered.late += interval.late;
        self.reached[worker] = interval.second + 1;
        self.close_seconds();
    }

    /// A worker reports nothing more.
    pub(crate) fn end(&mut self, worker: usize, outcome: Result<(), TargetError>, kept: Kept) {
        self.gathered.kept.push(kept);
        if let Err(error) = outcome {
            self.gathered.failures.push(format!("worker {worker} ended early: {error}"));
        }
        self.reached[worker] = i64::MAX;
        self.close_seconds();
    }

    /// What is told of a second; nothing if nothing happened in it.
    fn line(&self, second: i64, open: &Open) -> Option<Second> {
        let all = open.counts.sum(|_, _| true);
        let (answered, errors) = (all.answered + open.cooling, all.error_count());
        let phase = match self.cools_from {
            _ if second < 0 => Phase::WarmUp,
            Some(from) if second >= from => Phase::CoolDown,
            _ => Phase::Steady,
        };
        let at = |quantile| all.times.value_at_quantile(quantile) as f64 / 1000.0;
        // Answers behind the measured time to requests of it would be taken for the others' times.
        let shown = phase != Phase::CoolDown && !all.times.is_empty();
        let [p50_us, p99_us, max_us] = if shown { [at(0.5), at(0.99), at(1.0)] } else { [0.0; 3] };
        let some = answered + errors + open.late > 0;
        some.then_some(Second { second, phase, answered, errors, late: open.late, p50_us, p99_us, max_us })
    }

    /// Everything, once all workers have ended.
    pub(crate) fn finish(mut self) -> Gathered {
        self.reached.fill(i64::MAX);
        self.close_seconds();
        self.progress.end();
        self.gathered
    }

    /// Shows, logs and adds up the seconds that all workers have ended.
    fn close_seconds(&mut self) {
        let ended = self.reached.iter().copied().min().unwrap_or(i64::MAX);
        while let Some(entry) = self.open.first_entry() {
            if *entry.key() >= ended {
                return;
            }
            let (second, open) = entry.remove_entry();
            self.gathered.seconds.extend(self.line(second, &open));
            let counts = open.counts;
            self.progress.show(second, &counts);
            let Ok(start_s) = u64::try_from(second) else { continue };
            self.gathered.totals.add(&counts);
            let Some(log) = &mut self.log else { continue };
            if let Err(error) = log.write(Duration::from_secs(start_s), Duration::from_secs(1), &counts) {
                self.gathered.failures.push(format!("the interval log is incomplete: {error}"));
                self.log = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Kind;

    fn interval(second: i64, requests: u64) -> Interval {
        let mut interval = Interval::new(1, second);
        for _ in 0..requests {
            interval.counts.cell_mut(0, Kind::Read).times.saturating_record(1_000_000);
            interval.counts.cell_mut(0, Kind::Read).answered += 1;
        }
        interval
    }

    #[test]
    fn seconds_close_when_all_workers_have_ended_them_and_the_warm_up_is_left_out() {
        let mut gather = Gather::<Vec<u8>>::new((2, 1), Some(3), None, Progress::new(true, Some(10)));
        let total = |gather: &Gather<'_, Vec<u8>>| gather.gathered.totals.sum(|_, _| true).times.len();
        gather.take(0, &interval(-1, 100));
        gather.take(0, &interval(0, 1));
        assert_eq!((gather.open.len(), total(&gather)), (2, 0), "worker 1 has reported nothing yet");
        gather.take(1, &interval(-1, 100));
        gather.take(1, &interval(0, 10));
        assert_eq!((gather.open.len(), total(&gather)), (0, 11));
        gather.take(1, &interval(3, 1000));
        gather.end(0, Err(TargetError("gone".to_owned())), Kept::default());
        assert_eq!(total(&gather), 1011, "worker 0 has ended for good");
        let gathered = gather.finish();
        assert_eq!(gathered.failures, ["worker 0 ended early: gone"]);
        let phases: Vec<_> = gathered.seconds.iter().map(|second| (second.second, second.phase)).collect();
        assert_eq!(phases, [(-1, Phase::WarmUp), (0, Phase::Steady), (3, Phase::CoolDown)]);
        assert_eq!((gathered.seconds[1].answered, gathered.seconds[2].p50_us), (11, 0.0));
        assert!((gathered.seconds[1].p99_us - 1000.0).abs() < 1.0);
    }
}
