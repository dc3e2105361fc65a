//! Puts the workers' intervals together: by second for the progress line and the interval log, and over all time for
//! the report.

use std::{collections::BTreeMap, io::Write, time::Duration};

use crate::{
    hdr::HdrLog,
    measure::{Counts, Interval},
    progress::Progress,
    run::Gathered,
    target::TargetError,
    worker::Kept,
};

/// Takes intervals in any order of workers; each worker's own come in order.
pub(crate) struct Gather<'a, W: Write> {
    /// Seconds that some workers have not ended yet.
    open: BTreeMap<i64, Counts>,
    /// The first second that each worker may still report.
    reached: Vec<i64>,
    zones: usize,
    log: Option<HdrLog<'a, W>>,
    progress: Progress,
    gathered: Gathered,
}

impl<'a, W: Write> Gather<'a, W> {
    pub(crate) fn new(workers: usize, zones: usize, log: Option<HdrLog<'a, W>>, progress: Progress) -> Self {
        let gathered = Gathered { totals: Counts::new(zones), late: 0, failures: Vec::new(), kept: Vec::new() };
        Self { open: BTreeMap::new(), reached: vec![i64::MIN; workers], zones, log, progress, gathered }
    }

    /// Takes what a worker counted in a second.
    pub(crate) fn take(&mut self, worker: usize, interval: &Interval) {
        assert!(interval.second >= self.reached[worker], "worker {worker} reports second {} again", interval.second);
        self.open.entry(interval.second).or_insert_with(|| Counts::new(self.zones)).add(&interval.counts);
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
            let (second, counts) = entry.remove_entry();
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
        }
        interval
    }

    #[test]
    fn seconds_close_when_all_workers_have_ended_them_and_the_warm_up_is_left_out() {
        let mut gather = Gather::<Vec<u8>>::new(2, 1, None, Progress::new(true, Some(10)));
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
    }
}
