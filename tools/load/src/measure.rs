//! What is counted: histograms and counters of one worker and one second, and their sum over workers and time.
//!
//! A worker records into an [`Interval`] that it owns alone, hands it over when its second is full, and goes on with
//! another: no lock, no atomic, no allocation while requests are under way.

use hdrhistogram::Histogram;

use crate::target::ErrorKind;

/// The shortest time that histograms tell from 0, in nanoseconds.
const LOWEST_NS: u64 = 100;
/// The longest time that histograms hold, in nanoseconds: what takes longer counts as this.
pub const HIGHEST_NS: u64 = 120_000_000_000;
/// Significant digits that are kept.
const DIGITS: u8 = 3;
/// Nanoseconds of an interval.
pub const INTERVAL_NS: u64 = 1_000_000_000;

/// A histogram of response times in nanoseconds.
pub type Times = Histogram<u64>;

/// An empty histogram of response times.
///
/// # Panics
/// Never: the bounds are constants.
pub fn new_times() -> Times {
    Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS).expect("the bounds are valid")
}

/// What an operation of the load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// A Get.
    Read = 0,
    /// A Put to a key that is there, or may be.
    Write = 1,
    /// A Put to a key that nobody has written before.
    Insert = 2,
    /// Gets of consecutive keys, all under way at once: ends with the last answer.
    Scan = 3,
    /// A Get and then a Put of the same key: ends with the answer to the Put.
    ReadModifyWrite = 4,
}

/// How many kinds there are.
pub const KINDS: usize = 5;

impl Kind {
    /// All, in order.
    pub const ALL: [Self; KINDS] = [Self::Read, Self::Write, Self::Insert, Self::Scan, Self::ReadModifyWrite];

    /// Its name in reports and tags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Insert => "insert",
            Self::Scan => "scan",
            Self::ReadModifyWrite => "rmw",
        }
    }
}

/// What was counted of one kind of operation in one zone.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Response times of the requests that were answered well: from the intended start.
    pub times: Times,
    /// Open loop: where the response times come from.
    pub parts: Option<Box<Parts>>,
    /// Good answers that arrived while it was measured, whenever the request was meant to start: the throughput.
    pub answered: u64,
    /// Failed requests, by [`ErrorKind`].
    pub errors: [u64; ErrorKind::ALL.len()],
}

impl Cell {
    fn new() -> Self {
        Self { times: new_times(), parts: None, answered: 0, errors: [0; ErrorKind::ALL.len()] }
    }

    /// Counts a good answer to an open loop's request: when it was to be sent, was sent, and was answered.
    pub fn record_open(&mut self, intended_ns: u64, sent_ns: u64, answered_ns: u64) {
        self.times.saturating_record(answered_ns.saturating_sub(intended_ns));
        let parts = self.parts.get_or_insert_default();
        parts.service.saturating_record(answered_ns.saturating_sub(sent_ns));
        parts.lag.saturating_record(sent_ns.saturating_sub(intended_ns));
    }

    fn reset(&mut self) {
        self.times.reset();
        if let Some(parts) = &mut self.parts {
            parts.service.reset();
            parts.lag.reset();
        }
        self.answered = 0;
        self.errors = [0; ErrorKind::ALL.len()];
    }

    /// Adds what another has counted.
    ///
    /// # Panics
    /// Never: all histograms have the same bounds.
    pub fn add(&mut self, other: &Self) {
        self.times.add(&other.times).expect("the same bounds");
        if let Some(parts) = &other.parts {
            let sum = self.parts.get_or_insert_default();
            sum.service.add(&parts.service).expect("the same bounds");
            sum.lag.add(&parts.lag).expect("the same bounds");
        }
        self.answered += other.answered;
        for (sum, count) in self.errors.iter_mut().zip(other.errors) {
            *sum += count;
        }
    }

    /// Errors of all kinds.
    pub fn error_count(&self) -> u64 {
        self.errors.iter().sum()
    }
}

impl Default for Cell {
    fn default() -> Self {
        Self::new()
    }
}

/// What a response time consists of, where requests have a schedule.
#[derive(Clone, Debug)]
pub struct Parts {
    /// From the sending to the answer.
    pub service: Times,
    /// From the intended start to the sending.
    pub lag: Times,
}

impl Default for Parts {
    fn default() -> Self {
        Self { service: new_times(), lag: new_times() }
    }
}

/// One cell for each zone that load comes from and each kind of operation that occurs.
#[derive(Clone, Debug)]
pub struct Counts {
    zones: Vec<[Option<Box<Cell>>; KINDS]>,
}

impl Counts {
    /// Nothing counted yet.
    pub fn new(zones: usize) -> Self {
        Self { zones: (0..zones).map(|_| Default::default()).collect() }
    }

    /// What was counted for the zone at this position, for counting on.
    pub fn cell_mut(&mut self, zone: usize, kind: Kind) -> &mut Cell {
        self.zones[zone][kind as usize].get_or_insert_default()
    }

    /// Whether anything may have been counted of a kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.zones.iter().any(|cells| cells[kind as usize].is_some())
    }

    /// How many zones there are.
    pub fn zones(&self) -> usize {
        self.zones.len()
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, cell) in self.zones.iter_mut().flatten().zip(other.zones.iter().flatten()) {
            if let Some(cell) = cell {
                sum.get_or_insert_default().add(cell);
            }
        }
    }

    fn reset(&mut self) {
        self.zones.iter_mut().flatten().flatten().for_each(|cell| cell.reset());
    }

    /// The sum of the cells that are chosen.
    pub fn sum(&self, chosen: impl Fn(usize, Kind) -> bool) -> Cell {
        let mut sum = Cell::new();
        for (zone, cells) in self.zones.iter().enumerate() {
            for (_, cell) in Kind::ALL.into_iter().zip(cells).filter(|(kind, _)| chosen(zone, *kind)) {
                if let Some(cell) = cell {
                    sum.add(cell);
                }
            }
        }
        sum
    }
}

/// When what is measured begins and ends, in nanoseconds since the load began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// End of the warm-up.
    pub start_ns: u64,
    /// End of the load.
    pub end_ns: u64,
}

impl Window {
    /// Whether a time is measured.
    pub const fn contains(&self, ns: u64) -> bool {
        self.start_ns <= ns && ns < self.end_ns
    }

    /// Which second a time belongs to: 0 is the first that is measured, those of the warm-up are negative.
    pub const fn second_of(&self, ns: u64) -> i64 {
        (ns as i64 - self.start_ns as i64).div_euclid(INTERVAL_NS as i64)
    }
}

/// What one worker has counted in one second.
#[derive(Debug)]
pub struct Interval {
    /// Which second, as in [`Window::second_of`].
    pub second: i64,
    /// What was counted. In seconds of the warm-up everything (for the progress line, never for the report), later only
    /// what belongs to the measured time.
    pub counts: Counts,
    /// Open loop: requests of the measured time that were sent well after their intended start, or never.
    pub late: u64,
    /// Good answers that came after the measured time, to requests that are not measured.
    pub cooling: u64,
}

impl Interval {
    /// Nothing counted yet.
    pub fn new(zones: usize, second: i64) -> Self {
        Self { second, counts: Counts::new(zones), late: 0, cooling: 0 }
    }

    /// Makes a used one like new.
    pub fn reuse(&mut self, second: i64) {
        self.second = second;
        self.counts.reset();
        (self.late, self.cooling) = (0, 0);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn times_keep_three_digits_over_the_whole_range_and_lose_nothing_beyond() {
        for ns in [1_000, 12_345, 1_234_567, 60_000_000_000, HIGHEST_NS] {
            let mut times = new_times();
            times.saturating_record(ns);
            let error = times.value_at_quantile(0.5).abs_diff(ns) as f64;
            assert!(error <= (ns as f64 * 0.001).max(64.0), "{ns}: off by {error}");
        }
        let mut times = new_times();
        times.saturating_record(u64::MAX);
        times.saturating_record(0);
        assert_eq!(times.len(), 2);
        assert!(times.max() >= HIGHEST_NS);
    }

    #[test]
    fn seconds_are_counted_from_the_end_of_the_warm_up() {
        let window = Window { start_ns: 1_500_000_000, end_ns: 3_500_000_000 };
        let seconds = [0, 499_999_999, 500_000_000, 1_499_999_999, 1_500_000_000, 2_499_999_999, 2_500_000_000];
        assert_eq!(seconds.map(|ns| window.second_of(ns)), [-2, -2, -1, -1, 0, 0, 1]);
        assert!(!window.contains(1_499_999_999) && window.contains(1_500_000_000) && !window.contains(3_500_000_000));
    }

    #[test]
    fn sums_choose_their_cells() {
        let mut counts = Counts::new(2);
        for (zone, kind, ns) in [(0, Kind::Read, 1_000), (1, Kind::Read, 2_000), (1, Kind::Write, 3_000)] {
            counts.cell_mut(zone, kind).times.saturating_record(ns);
        }
        counts.cell_mut(1, Kind::Write).errors[ErrorKind::Overloaded as usize] = 4;
        let mut twice = Counts::new(2);
        twice.add(&counts);
        twice.add(&counts);
        assert_eq!(twice.sum(|_, _| true).times.len(), 6);
        assert_eq!(twice.sum(|_, kind| kind == Kind::Read).times.len(), 4);
        assert_eq!(twice.sum(|zone, _| zone == 1).error_count(), 8);
        let mut interval = Interval { second: 0, counts: twice, late: 0, cooling: 0 };
        interval.reuse(5);
        assert_eq!((interval.second, interval.counts.sum(|_, _| true).times.len()), (5, 0));
    }

    #[test]
    fn every_recorded_request_is_in_the_sum() {
        let mut counts = Counts::new(3);
        for n in 0..1_000_000u64 {
            let cell = counts.cell_mut((n % 3) as usize, Kind::Read);
            cell.times.saturating_record(50_000 + n % 4096 * 100);
            cell.answered += 1;
        }
        assert_eq!(counts.sum(|_, _| true).times.len(), 1_000_000);
    }
}
