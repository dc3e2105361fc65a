//! One worker: a thread that makes requests on its lanes, by count in flight (closed loop) or by schedule (open
//! loop), and counts what comes of them.
//!
//! It ends at a time, or when its lanes have made so many requests. Either way it waits for answers no longer than
//! the grace time, and a loop by number of requests that is answered nothing at all for long gives up.
//!
//! Which requests count: those whose intended start lies in the measured window, whenever they are answered, each
//! once. The intended start is the scheduled time in an open loop, however late the request was sent, and the time of
//! sending in a closed loop. An operation of several requests (a scan, a read-modify-write) counts as one, which
//! starts with the first of them and ends with the last answer.
//!
//! The load goes on in the cool-down behind the window, so that the last requests that count meet the same load as
//! the first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender};

use crate::{
    calls::{Call, Calls},
    history::Recorder,
    measure::{INTERVAL_NS, Interval, KINDS, Kind, Window},
    samples::Samples,
    schedule::Schedule,
    target::{Answer, Clock, ErrorKind, Request, Target, TargetError},
    throttle::Throttle,
    workload::{Drawn, Requests},
};

/// Requests submitted between two polls, so that answers are never left lying for long.
const BURST: usize = 256;
/// How long a closed loop leaves a lane alone that could not take a request or lost its connection.
const PAUSE_NS: u64 = 1_000_000;
/// A request sent later than this after its intended start was not sent on schedule.
const LATE_NS: u64 = 10_000_000;
/// The longest that a worker waits without looking at the clock: clients have timers of their own.
const WAIT_NS: u64 = 10_000_000;

/// A run by number of requests that has had no good answer for so long is given up.
const SILENCE_NS: u64 = 15_000_000_000;

/// When the load ends: known to all workers, and moved forward by an interruption.
#[derive(Debug)]
pub struct Stop {
    start_ns: u64,
    end_ns: AtomicU64,
    /// The end as it was planned.
    planned_end_ns: u64,
    /// How long the load goes on behind the end.
    cool_down_ns: u64,
    give_up_ns: AtomicU64,
    grace_ns: u64,
    /// When the last answer came that counts.
    last_ns: AtomicU64,
    /// When the last good answer came.
    last_good_ns: AtomicU64,
}

impl Stop {
    /// Ends `cool_down_ns` after the window, and waits `grace_ns` for answers.
    pub fn new(window: Window, cool_down_ns: u64, grace_ns: u64) -> Self {
        let planned_end_ns = window.end_ns;
        let give_up_ns = AtomicU64::new(planned_end_ns.saturating_add(cool_down_ns).saturating_add(grace_ns));
        let (start_ns, end_ns) = (window.start_ns, AtomicU64::new(planned_end_ns));
        let (last_ns, last_good_ns) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { start_ns, end_ns, planned_end_ns, cool_down_ns, give_up_ns, grace_ns, last_ns, last_good_ns }
    }

    /// When the last request is made: behind the cool-down, unless the run was interrupted.
    fn load_ends_ns(&self) -> u64 {
        let end_ns = self.end_ns.load(Ordering::Relaxed);
        if end_ns < self.planned_end_ns { end_ns } else { end_ns.saturating_add(self.cool_down_ns) }
    }

    /// Whether an operation that is meant to start then belongs to the measured time as it was planned.
    fn is_planned(&self, intended_ns: u64) -> bool {
        self.start_ns <= intended_ns && intended_ns < self.planned_end_ns
    }

    /// Ends now, and waits at most `grace_ns` for answers. Does nothing after the end.
    pub fn interrupt(&self, now_ns: u64, grace_ns: u64) {
        if now_ns < self.end_ns.load(Ordering::Relaxed) {
            self.end_ns.store(now_ns, Ordering::Relaxed);
            self.give_up_ns.fetch_min(now_ns.saturating_add(grace_ns), Ordering::Relaxed);
        }
    }

    /// What was measured until the last answer that counts, for a run that ends by number of requests.
    pub fn window_to_last(&self) -> Window {
        let last_ns = self.last_ns.load(Ordering::Relaxed);
        Window { end_ns: self.window().end_ns.min(last_ns.max(self.start_ns)), start_ns: self.start_ns }
    }

    /// How long nothing was answered well at the end of what was measured, once all workers have ended.
    pub fn silent_ns(&self) -> u64 {
        let window = self.window();
        let last_good_ns = self.last_good_ns.load(Ordering::Relaxed).max(window.start_ns);
        window.end_ns.saturating_sub(last_good_ns)
    }

    /// What is measured, as it stands.
    pub fn window(&self) -> Window {
        Window { start_ns: self.start_ns, end_ns: self.end_ns.load(Ordering::Relaxed) }
    }

    fn give_up_ns(&self) -> u64 {
        self.give_up_ns.load(Ordering::Relaxed)
    }
}

/// What a worker tells the reporter.
#[derive(Debug)]
pub enum Report {
    /// A second is full, or the last one has ended.
    Interval(usize, Box<Interval>),
    /// The worker has ended, well or not; with what it has kept.
    Ended(usize, Result<(), TargetError>, Kept),
}

/// What a worker keeps of single requests, if it is asked to.
#[derive(Debug, Default)]
pub struct Kept {
    /// Their response times.
    pub samples: Option<Samples>,
    /// What was asked and told.
    pub recorder: Option<Recorder>,
    /// What servers said when they refused requests.
    pub complaints: Vec<String>,
}

/// The two channels between a worker and the reporter: full intervals go out, used ones come back.
#[derive(Debug)]
pub struct Post {
    /// The worker's number.
    pub worker: usize,
    /// To the reporter.
    pub reports: Sender<Report>,
    /// From the reporter.
    pub used: Receiver<Box<Interval>>,
}

/// A client of the worker.
#[derive(Debug)]
pub struct Lane {
    /// Position of its zone among those that load comes from.
    pub zone: usize,
    /// What it asks for.
    pub requests: Requests,
    /// Closed loop: how many requests it keeps in flight.
    pub quota: usize,
    /// Closed loop: how many requests of the measured time it still makes; `None` if time alone ends it.
    pub budget: Option<u64>,
}

/// How a worker is paced.
#[derive(Debug)]
pub enum Pace {
    /// Each lane keeps its quota in flight, as far as a limit on the rate lets it.
    Closed(Option<Throttle>),
    /// Requests start when the schedule says, the lanes taking turns.
    Open {
        /// When.
        schedule: Schedule,
        /// Requests in flight at which further ones wait.
        max_in_flight: usize,
    },
}

/// A worker, ready to go.
#[derive(Debug)]
pub struct Worker<T, C> {
    target: T,
    lanes: Vec<Lane>,
    pace: Pace,
    next_lane: usize,
    /// Whether it looks for answers without sleeping.
    spins: bool,
    /// When the last request was made that was to be made.
    budget_spent_ns: Option<u64>,
    book: Book<C>,
}

impl<T: Target, C: Clock> Worker<T, C> {
    /// Lane `n` of `target` is `lanes[n]`.
    pub fn new(target: T, lanes: Vec<Lane>, pace: Pace, clock: C, stop: Arc<Stop>, zones: usize, post: Post) -> Self {
        assert!(!lanes.is_empty() && lanes.iter().all(|lane| lane.zone < zones));
        let book = Book::new(&lanes, clock, stop, zones, post, matches!(pace, Pace::Open { .. }));
        Self { target, lanes, pace, next_lane: 0, spins: false, budget_spent_ns: None, book }
    }

    /// The same, never sleeping: on a core of its own that costs nothing, and no answer waits for somebody to wake up.
    pub fn spinning(mut self, spins: bool) -> Self {
        self.spins = spins;
        self
    }

    /// The same, keeping single requests.
    pub fn keeping(mut self, kept: Kept) -> Self {
        self.book.kept = kept;
        self
    }

    /// Drives the target until the end, waits for what is outstanding, and counts what stays away. What was kept is
    /// returned in any case.
    ///
    /// # Errors
    /// If the target fails for good; what was counted until then has been reported.
    pub fn run(mut self) -> (Result<(), TargetError>, Kept) {
        let outcome = self.drive();
        if outcome.is_ok() {
            self.count_unsent(self.book.stop.load_ends_ns());
        }
        self.count_unmade();
        self.book.count_missing(if outcome.is_ok() { ErrorKind::Unanswered } else { ErrorKind::Disconnected });
        self.book.hand_over();
        self.book.stop.last_ns.fetch_max(self.book.last_ns, Ordering::Relaxed);
        self.book.stop.last_good_ns.fetch_max(self.book.last_good_ns, Ordering::Relaxed);
        self.book.kept.complaints = self.target.complaints();
        (outcome, self.book.kept)
    }

    fn drive(&mut self) -> Result<(), TargetError> {
        loop {
            let now_ns = self.book.clock.now_ns();
            self.book.turn_page(now_ns);
            let (end_ns, give_up_ns) = self.ends(now_ns);
            if now_ns >= give_up_ns || (now_ns >= end_ns && self.is_drained(end_ns)) {
                return Ok(());
            }
            let due_ns = match self.pace {
                Pace::Closed(None) => self.fill_lanes(end_ns),
                Pace::Closed(Some(_)) => self.fill_slowly(end_ns),
                Pace::Open { .. } => self.keep_schedule(now_ns, end_ns),
            };
            let border_ns = if now_ns < end_ns { end_ns } else { give_up_ns };
            let until_ns = due_ns.min(border_ns).min(self.book.page_ends_ns).min(now_ns + WAIT_NS);
            let wait = Duration::from_nanos(if self.spins { 0 } else { until_ns.saturating_sub(now_ns) });
            let (book, lanes) = (&mut self.book, &mut self.lanes);
            self.target.poll(wait, &mut |lane, tag, answer| book.on_answer(lane, &mut lanes[lane], tag, answer))?;
            self.write_what_was_read();
        }
    }

    /// When the last request is made and how long its answer is waited for, as it stands.
    fn ends(&mut self, now_ns: u64) -> (u64, u64) {
        let stop = &self.book.stop;
        let (end_ns, give_up_ns) = (stop.load_ends_ns(), stop.give_up_ns());
        if self.lanes.iter().all(|lane| lane.budget.is_none()) {
            return (end_ns, give_up_ns);
        }
        let is_spent = now_ns >= stop.start_ns && self.lanes.iter().all(|lane| lane.budget == Some(0));
        // Whoever is answered nothing for so long will not be answered the rest either.
        let silent_ns = now_ns.saturating_sub(self.book.last_good_ns.max(stop.start_ns));
        if self.budget_spent_ns.is_none() && (is_spent || silent_ns > SILENCE_NS) {
            self.budget_spent_ns = Some(now_ns);
        }
        let Some(spent_ns) = self.budget_spent_ns else { return (end_ns, give_up_ns) };
        (end_ns.min(spent_ns), give_up_ns.min(spent_ns.saturating_add(stop.grace_ns)))
    }

    /// Whether nothing is outstanding, and nothing that was scheduled waits to be sent.
    fn is_drained(&self, end_ns: u64) -> bool {
        let waiting = matches!(&self.pace, Pace::Open { schedule, .. } if schedule.next_ns() < end_ns);
        self.book.outstanding == 0 && !waiting
    }

    /// Closed loop: brings every lane up to its quota. Returns when to come back at the latest.
    fn fill_lanes(&mut self, end_ns: u64) -> u64 {
        let mut come_back_ns = u64::MAX;
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            for sent in 0.. {
                let now_ns = self.book.clock.now_ns();
                let account = &self.book.lanes[number];
                if !self.book.has_room(number, lane, now_ns) || now_ns >= end_ns {
                    break;
                }
                if now_ns < account.paused_until_ns || sent == BURST {
                    come_back_ns = come_back_ns.min(account.paused_until_ns.max(now_ns));
                    break;
                }
                self.book.spend(lane, now_ns);
                submit(&mut self.target, &mut self.book, number, lane, now_ns);
            }
        }
        come_back_ns
    }

    /// Closed loop with a limit: the lanes that are below their quota take turns. Returns when to come back at the latest.
    fn fill_slowly(&mut self, end_ns: u64) -> u64 {
        let Pace::Closed(Some(throttle)) = &mut self.pace else { return u64::MAX };
        for _ in 0..BURST {
            let now_ns = self.book.clock.now_ns();
            let turns = (0..self.lanes.len()).map(|turn| (self.next_lane + turn) % self.lanes.len());
            let may_ask = |number: &usize| {
                let is_paused = now_ns < self.book.lanes[*number].paused_until_ns;
                !is_paused && self.book.has_room(*number, &self.lanes[*number], now_ns)
            };
            // Nobody may: an answer, or the end of a pause, wakes this worker.
            let Some(number) = turns.into_iter().find(may_ask) else { return now_ns + PAUSE_NS };
            if now_ns >= end_ns || !throttle.take(now_ns) {
                return throttle.next_ns().max(now_ns);
            }
            self.next_lane = (number + 1) % self.lanes.len();
            let lane = &mut self.lanes[number];
            self.book.spend(lane, now_ns);
            submit(&mut self.target, &mut self.book, number, lane, now_ns);
        }
        self.book.clock.now_ns()
    }

    /// Open loop: sends what is due. Returns when to come back at the latest.
    fn keep_schedule(&mut self, now_ns: u64, end_ns: u64) -> u64 {
        let Pace::Open { schedule, max_in_flight } = &mut self.pace else { return u64::MAX };
        for _ in 0..BURST {
            let intended_ns = schedule.next_ns();
            if intended_ns >= end_ns || self.book.outstanding >= *max_in_flight {
                return u64::MAX;
            }
            if intended_ns > now_ns {
                return intended_ns;
            }
            let number = self.next_lane;
            self.next_lane = (number + 1) % self.lanes.len();
            if now_ns - intended_ns > LATE_NS && self.book.stop.window().contains(intended_ns) {
                self.book.page.late += 1;
            }
            submit(&mut self.target, &mut self.book, number, &mut self.lanes[number], intended_ns);
            schedule.advance();
        }
        now_ns
    }

    /// Read-modify-writes that have read go on with their writes.
    fn write_what_was_read(&mut self) {
        while let Some((number, place)) = self.book.to_write.pop() {
            let lane = &mut self.lanes[number];
            let request = lane.requests.write_of(self.book.calls.get_mut(place).number);
            self.book.record(place, &request);
            if let Err(error) = self.target.submit(number, request, place.into()) {
                self.book.on_answer(number, lane, place.into(), Answer::Failed(error));
            }
        }
    }

    /// Closed loop by number of requests: counts what was to be made and was not, because the run was given up. A run that
    /// was interrupted has no such number any more.
    fn count_unmade(&mut self) {
        if self.book.clock.now_ns() >= self.book.stop.window().end_ns {
            return;
        }
        for lane in &mut self.lanes {
            let unmade = lane.budget.take().unwrap_or(0);
            // What it would have been is not drawn: there may be billions.
            let cell = self.book.page.counts.cell_mut(lane.zone, Kind::Read);
            cell.errors[ErrorKind::Unsent as usize] += unmade;
        }
    }

    /// Open loop: counts what was scheduled before the end and never sent.
    fn count_unsent(&mut self, end_ns: u64) {
        let Pace::Open { schedule, .. } = &mut self.pace else { return };
        let window = Window { end_ns: end_ns.min(self.book.stop.window().end_ns), ..self.book.stop.window() };
        while schedule.next_ns() < end_ns {
            let lane = &mut self.lanes[self.next_lane];
            self.next_lane = (self.next_lane + 1) % self.book.lanes.len();
            let kind = lane.requests.draw(schedule.next_ns()).kind;
            if window.contains(schedule.next_ns()) {
                self.book.page.late += 1;
                self.book.page.counts.cell_mut(lane.zone, kind).errors[ErrorKind::Unsent as usize] += 1;
            }
            schedule.advance();
        }
    }
}

/// Begins an operation: makes its first requests.
fn submit<T: Target, C: Clock>(target: &mut T, book: &mut Book<C>, number: usize, lane: &mut Lane, intended_ns: u64) {
    let sent_ns = if book.is_open { book.clock.now_ns() } else { intended_ns };
    let Drawn { kind, requests, request } = lane.requests.draw(intended_ns);
    let key = request.number;
    let first = book.calls.begin(kind, key, intended_ns, sent_ns);
    book.record(first, &request);
    match target.submit(number, request, first.into()) {
        Ok(()) => book.on_begun(number, kind, intended_ns),
        Err(error) => return book.on_refused(number, first, error),
    }
    for step in 1..u64::from(requests) {
        let request = lane.requests.read_of(lane.requests.behind(key, step));
        let next = book.calls.add(first, request.number);
        book.record(next, &request);
        if let Err(error) = target.submit(number, request, next.into()) {
            book.on_answer(number, lane, next.into(), Answer::Failed(error));
        }
    }
}

/// What is outstanding on a lane.
#[derive(Debug)]
struct Account {
    zone: usize,
    outstanding: usize,
    /// Those of them that count if they stay unanswered, by kind.
    counting: [usize; KINDS],
    paused_until_ns: u64,
}

/// The worker's book-keeping, apart from its target so that answers can be counted while the target is polled.
#[derive(Debug)]
struct Book<C> {
    clock: C,
    /// Whether requests have a schedule.
    is_open: bool,
    calls: Calls,
    /// Read-modify-writes that have read, with their lanes.
    to_write: Vec<(usize, u32)>,
    stop: Arc<Stop>,
    lanes: Vec<Account>,
    outstanding: usize,
    page: Box<Interval>,
    page_ends_ns: u64,
    zones: usize,
    post: Post,
    kept: Kept,
    /// When the last good answer came.
    last_good_ns: u64,
    /// When the last answer came that counts.
    last_ns: u64,
}

impl<C: Clock> Book<C> {
    fn new(lanes: &[Lane], clock: C, stop: Arc<Stop>, zones: usize, post: Post, is_open: bool) -> Self {
        let account =
            |lane: &Lane| Account { zone: lane.zone, outstanding: 0, counting: [0; KINDS], paused_until_ns: 0 };
        let second = stop.window().second_of(0);
        let mut book = Self {
            clock,
            is_open,
            calls: Calls::default(),
            to_write: Vec::new(),
            lanes: lanes.iter().map(account).collect(),
            outstanding: 0,
            page: Box::new(Interval::new(zones, second)),
            page_ends_ns: 0,
            zones,
            stop,
            post,
            kept: Kept::default(),
            last_good_ns: 0,
            last_ns: 0,
        };
        book.page_ends_ns = book.end_of(second);
        book
    }

    /// Closed loop: whether a lane has fewer requests in flight than it should, and more to make.
    fn has_room(&self, number: usize, lane: &Lane, now_ns: u64) -> bool {
        let is_spent = lane.budget == Some(0) && now_ns >= self.stop.start_ns;
        self.lanes[number].outstanding < lane.quota && !is_spent
    }

    /// Closed loop: a request of the measured time is made.
    fn spend(&self, lane: &mut Lane, now_ns: u64) {
        if let Some(budget) = lane.budget.as_mut().filter(|_| now_ns >= self.stop.start_ns) {
            *budget -= 1;
        }
    }

    /// A request is about to be made.
    fn record(&mut self, place: u32, request: &Request<'_>) {
        if let Some(recorder) = &mut self.kept.recorder {
            let recorded = recorder.begin(request.number, &request.operation, self.clock.now_ns());
            self.calls.get_mut(place).recorded = recorded;
        }
    }

    /// A request has ended, or was not taken.
    fn record_end(&mut self, place: u32, now_ns: u64, answer: Answer) {
        if let (Some(recorder), Some(recorded)) = (&mut self.kept.recorder, self.calls.get_mut(place).recorded) {
            recorder.end(recorded, now_ns, answer);
        }
    }

    fn end_of(&self, second: i64) -> u64 {
        (self.stop.start_ns as i64 + (second + 1) * INTERVAL_NS as i64) as u64
    }

    /// Hands the page over when its second is full.
    fn turn_page(&mut self, now_ns: u64) {
        if now_ns < self.page_ends_ns {
            return;
        }
        self.hand_over();
        let second = self.stop.window().second_of(now_ns);
        self.page.reuse(second);
        self.page_ends_ns = self.end_of(second);
    }

    /// Gives the reporter what was counted and takes an empty page. A reporter that is gone is no reason to stop.
    fn hand_over(&mut self) {
        let next = self.post.used.try_recv().unwrap_or_else(|_| Box::new(Interval::new(self.zones, 0)));
        let full = std::mem::replace(&mut self.page, next);
        let _ = self.post.reports.send(Report::Interval(self.post.worker, full));
        self.page.reuse(i64::MAX);
    }

    fn on_begun(&mut self, lane: usize, kind: Kind, intended_ns: u64) {
        let account = &mut self.lanes[lane];
        account.outstanding += 1;
        self.outstanding += 1;
        account.counting[kind as usize] += usize::from(self.stop.is_planned(intended_ns));
    }

    /// The first request of an operation was not taken.
    fn on_refused(&mut self, lane: usize, place: u32, error: ErrorKind) {
        let now_ns = self.clock.now_ns();
        self.record_end(place, now_ns, Answer::Failed(error));
        self.lanes[lane].paused_until_ns = now_ns + PAUSE_NS;
        if let Some(whole) = self.calls.end(place, Some(error)) {
            self.count(lane, &whole, now_ns);
        }
    }

    fn on_answer(&mut self, number: usize, lane: &mut Lane, tag: u64, answer: Answer) {
        let (now_ns, place) = (self.clock.now_ns(), tag as u32);
        self.record_end(place, now_ns, answer);
        let call = self.calls.get_mut(place);
        if call.kind == Kind::ReadModifyWrite && !call.writes && matches!(answer, Answer::Done(_)) {
            call.writes = true;
            self.to_write.push((number, place));
            return;
        }
        let failed = match answer {
            Answer::Failed(error) => Some(error),
            Answer::Done(_) => None,
        };
        let Some(whole) = self.calls.end(place, failed) else { return };
        let account = &mut self.lanes[number];
        assert!(account.outstanding > 0, "a target answered lane {number} more often than it was asked");
        account.outstanding -= 1;
        self.outstanding -= 1;
        account.counting[whole.kind as usize] -= usize::from(self.stop.is_planned(whole.intended_ns));
        if whole.failed == Some(ErrorKind::Disconnected) {
            account.paused_until_ns = now_ns + PAUSE_NS;
        }
        if whole.kind == Kind::Insert && whole.failed.is_none() {
            lane.requests.inserted();
        }
        self.count(number, &whole, now_ns);
    }

    fn count(&mut self, lane: usize, whole: &Call, now_ns: u64) {
        self.turn_page(now_ns);
        let (window, intended_ns) = (self.stop.window(), whole.intended_ns);
        let warming_up = now_ns < window.start_ns;
        let counts = warming_up || window.contains(intended_ns);
        if window.contains(intended_ns) {
            self.last_ns = self.last_ns.max(now_ns);
        }
        let cell = self.page.counts.cell_mut(self.lanes[lane].zone, whole.kind);
        if let Some(error) = whole.failed {
            cell.errors[error as usize] += u64::from(counts);
            return;
        }
        self.last_good_ns = self.last_good_ns.max(now_ns);
        if let Some(samples) = self.kept.samples.as_mut().filter(|_| counts && !warming_up) {
            samples.add(now_ns.saturating_sub(intended_ns));
        }
        match (counts, self.is_open) {
            (true, true) => cell.record_open(intended_ns, whole.sent_ns, now_ns),
            (true, false) => cell.times.saturating_record(now_ns.saturating_sub(intended_ns)),
            (false, _) => {}
        }
        if warming_up || window.contains(now_ns) {
            cell.answered += 1;
        } else {
            self.page.cooling += 1;
        }
    }

    /// Counts everything that is still outstanding as an error.
    fn count_missing(&mut self, error: ErrorKind) {
        let now_ns = self.clock.now_ns();
        self.turn_page(now_ns);
        for lane in 0..self.lanes.len() {
            for kind in Kind::ALL {
                let missing = std::mem::take(&mut self.lanes[lane].counting[kind as usize]);
                if missing == 0 {
                    continue;
                }
                let cell = self.page.counts.cell_mut(self.lanes[lane].zone, kind);
                cell.errors[error as usize] += missing as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests;
