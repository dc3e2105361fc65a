//! One worker: a thread that makes requests on its lanes, by count (closed loop) or by schedule (open loop), and counts
//! what comes of them.
//!
//! Which requests count: those whose intended start lies in the measured window, whenever they are answered, each once.
//! The intended start is the scheduled time in an open loop, however late the request was sent, and the time of sending
//! in a closed loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender};

use crate::{
    measure::{INTERVAL_NS, Interval, Kind, Window},
    schedule::Schedule,
    target::{Answer, Clock, ErrorKind, Operation, Target, TargetError},
    workload::Requests,
};

/// Requests submitted between two polls, so that answers are never left lying for long.
const BURST: usize = 256;
/// How long a closed loop leaves a lane alone that could not take a request or lost its connection.
const PAUSE_NS: u64 = 1_000_000;
/// A request sent later than this after its intended start was not sent on schedule.
const LATE_NS: u64 = 10_000_000;
/// The longest that a worker waits without looking at the clock: clients have timers of their own.
const WAIT_NS: u64 = 10_000_000;

/// When the load ends: known to all workers, and moved forward by an interruption.
#[derive(Debug)]
pub struct Stop {
    start_ns: u64,
    end_ns: AtomicU64,
    give_up_ns: AtomicU64,
}

impl Stop {
    /// Ends with the window, and waits `grace_ns` for answers.
    pub fn new(window: Window, grace_ns: u64) -> Self {
        let give_up_ns = AtomicU64::new(window.end_ns.saturating_add(grace_ns));
        Self { start_ns: window.start_ns, end_ns: AtomicU64::new(window.end_ns), give_up_ns }
    }

    /// Ends now, and waits at most `grace_ns` for answers. Does nothing after the end.
    pub fn interrupt(&self, now_ns: u64, grace_ns: u64) {
        if now_ns < self.end_ns.load(Ordering::Relaxed) {
            self.end_ns.store(now_ns, Ordering::Relaxed);
            self.give_up_ns.fetch_min(now_ns.saturating_add(grace_ns), Ordering::Relaxed);
        }
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
    /// The worker has ended, well or not.
    Ended(usize, Result<(), TargetError>),
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
}

/// How a worker is paced.
#[derive(Debug)]
pub enum Pace {
    /// Each lane keeps its quota in flight.
    Closed,
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
    book: Book<C>,
}

impl<T: Target, C: Clock> Worker<T, C> {
    /// Lane `n` of `target` is `lanes[n]`.
    pub fn new(target: T, lanes: Vec<Lane>, pace: Pace, clock: C, stop: Arc<Stop>, zones: usize, post: Post) -> Self {
        assert!(!lanes.is_empty() && lanes.iter().all(|lane| lane.zone < zones));
        let book = Book::new(&lanes, clock, stop, zones, post);
        Self { target, lanes, pace, next_lane: 0, book }
    }

    /// Drives the target until the end, waits for what is outstanding, and counts what stays away.
    ///
    /// # Errors
    /// If the target fails for good; what was counted until then has been reported.
    pub fn run(mut self) -> Result<(), TargetError> {
        let outcome = self.drive();
        let end_ns = self.book.stop.window().end_ns;
        if outcome.is_ok() {
            self.count_unsent(end_ns);
        }
        self.book.count_missing(if outcome.is_ok() { ErrorKind::Unanswered } else { ErrorKind::Disconnected });
        self.book.hand_over();
        outcome
    }

    fn drive(&mut self) -> Result<(), TargetError> {
        loop {
            let now_ns = self.book.clock.now_ns();
            self.book.turn_page(now_ns);
            let (end_ns, give_up_ns) = (self.book.stop.window().end_ns, self.book.stop.give_up_ns());
            if now_ns >= give_up_ns || (now_ns >= end_ns && self.is_drained(end_ns)) {
                return Ok(());
            }
            let due_ns = match self.pace {
                Pace::Closed => self.fill_lanes(end_ns),
                Pace::Open { .. } => self.keep_schedule(now_ns, end_ns),
            };
            let border_ns = if now_ns < end_ns { end_ns } else { give_up_ns };
            let until_ns = due_ns.min(border_ns).min(self.book.page_ends_ns).min(now_ns + WAIT_NS);
            let wait = Duration::from_nanos(until_ns.saturating_sub(now_ns));
            let book = &mut self.book;
            self.target.poll(wait, &mut |lane, tag, answer| book.on_answer(lane, tag, answer))?;
        }
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
                if account.outstanding >= lane.quota || now_ns >= end_ns {
                    break;
                }
                if now_ns < account.paused_until_ns || sent == BURST {
                    come_back_ns = come_back_ns.min(account.paused_until_ns.max(now_ns));
                    break;
                }
                submit(&mut self.target, &mut self.book, number, lane, now_ns);
            }
        }
        come_back_ns
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

    /// Open loop: counts what was scheduled before the end and never sent.
    fn count_unsent(&mut self, end_ns: u64) {
        let Pace::Open { schedule, .. } = &mut self.pace else { return };
        let window = Window { end_ns, ..self.book.stop.window() };
        while schedule.next_ns() < end_ns {
            let lane = &mut self.lanes[self.next_lane];
            self.next_lane = (self.next_lane + 1) % self.book.lanes.len();
            let kind = kind_of(&lane.requests.draw().operation);
            if window.contains(schedule.next_ns()) {
                self.book.page.late += 1;
                self.book.page.counts.cell_mut(lane.zone, kind).errors[ErrorKind::Unsent as usize] += 1;
            }
            schedule.advance();
        }
    }
}

fn kind_of(operation: &Operation<'_>) -> Kind {
    match operation {
        Operation::Read => Kind::Read,
        Operation::Write(_) => Kind::Write,
    }
}

fn submit<T: Target, C: Clock>(target: &mut T, book: &mut Book<C>, number: usize, lane: &mut Lane, intended_ns: u64) {
    let request = lane.requests.draw();
    let kind = kind_of(&request.operation);
    match target.submit(number, request, tag_of(intended_ns, kind)) {
        Ok(()) => book.on_taken(number, kind, intended_ns),
        Err(error) => book.on_refused(number, kind, intended_ns, error),
    }
}

/// A tag says all that is to be known of a request when its answer comes: no table is needed.
const fn tag_of(intended_ns: u64, kind: Kind) -> u64 {
    intended_ns << 1 | kind as u64
}

const fn untag(tag: u64) -> (u64, Kind) {
    (tag >> 1, if tag & 1 == 0 { Kind::Read } else { Kind::Write })
}

/// What is outstanding on a lane.
#[derive(Debug)]
struct Account {
    zone: usize,
    outstanding: usize,
    /// Those of them that count if they stay unanswered, by kind.
    counting: [usize; 2],
    paused_until_ns: u64,
}

/// The worker's book-keeping, apart from its target so that answers can be counted while the target is polled.
#[derive(Debug)]
struct Book<C> {
    clock: C,
    stop: Arc<Stop>,
    lanes: Vec<Account>,
    outstanding: usize,
    page: Box<Interval>,
    page_ends_ns: u64,
    zones: usize,
    post: Post,
}

impl<C: Clock> Book<C> {
    fn new(lanes: &[Lane], clock: C, stop: Arc<Stop>, zones: usize, post: Post) -> Self {
        let account = |lane: &Lane| Account { zone: lane.zone, outstanding: 0, counting: [0; 2], paused_until_ns: 0 };
        let second = stop.window().second_of(0);
        let mut book = Self {
            clock,
            lanes: lanes.iter().map(account).collect(),
            outstanding: 0,
            page: Box::new(Interval::new(zones, second)),
            page_ends_ns: 0,
            zones,
            stop,
            post,
        };
        book.page_ends_ns = book.end_of(second);
        book
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

    fn on_taken(&mut self, lane: usize, kind: Kind, intended_ns: u64) {
        let account = &mut self.lanes[lane];
        account.outstanding += 1;
        self.outstanding += 1;
        if intended_ns >= self.stop.start_ns {
            account.counting[kind as usize] += 1;
        }
    }

    fn on_refused(&mut self, lane: usize, kind: Kind, intended_ns: u64, error: ErrorKind) {
        let now_ns = self.clock.now_ns();
        self.lanes[lane].paused_until_ns = now_ns + PAUSE_NS;
        self.count(lane, kind, intended_ns, now_ns, Answer::Failed(error));
    }

    fn on_answer(&mut self, lane: usize, tag: u64, answer: Answer) {
        let now_ns = self.clock.now_ns();
        let (intended_ns, kind) = untag(tag);
        let account = &mut self.lanes[lane];
        assert!(account.outstanding > 0, "a target answered lane {lane} more often than it was asked");
        account.outstanding -= 1;
        self.outstanding -= 1;
        if intended_ns >= self.stop.start_ns {
            account.counting[kind as usize] -= 1;
        }
        if answer == Answer::Failed(ErrorKind::Disconnected) {
            account.paused_until_ns = now_ns + PAUSE_NS;
        }
        self.count(lane, kind, intended_ns, now_ns, answer);
    }

    fn count(&mut self, lane: usize, kind: Kind, intended_ns: u64, now_ns: u64, answer: Answer) {
        self.turn_page(now_ns);
        let window = self.stop.window();
        let warming_up = now_ns < window.start_ns;
        let counts = warming_up || window.contains(intended_ns);
        let cell = self.page.counts.cell_mut(self.lanes[lane].zone, kind);
        match answer {
            Answer::Done => {
                if counts {
                    cell.times.saturating_record(now_ns.saturating_sub(intended_ns));
                }
                cell.answered += u64::from(warming_up || window.contains(now_ns));
            }
            Answer::Failed(error) => cell.errors[error as usize] += u64::from(counts),
        }
    }

    /// Counts everything that is still outstanding as an error.
    fn count_missing(&mut self, error: ErrorKind) {
        let now_ns = self.clock.now_ns();
        self.turn_page(now_ns);
        for lane in 0..self.lanes.len() {
            for kind in Kind::ALL {
                let missing = std::mem::take(&mut self.lanes[lane].counting[kind as usize]);
                let cell = self.page.counts.cell_mut(self.lanes[lane].zone, kind);
                cell.errors[error as usize] += missing as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap, rc::Rc};

    use crossbeam::channel::unbounded;
    use wpaxos::protocol::ReadMode;

    use super::*;
    use crate::{
        args::Arrivals,
        measure::Counts,
        target::Request,
        workload::{Distribution, LanePlace, Workload, salted},
    };

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000_000_000;

    #[derive(Clone)]
    struct FakeClock(Rc<Cell<u64>>);

    impl Clock for FakeClock {
        fn now_ns(&self) -> u64 {
            self.0.get()
        }
    }

    /// Answers each request at the time that `answer_at` gives for the time of sending, in time that only it moves.
    struct FakeTarget<F> {
        clock: FakeClock,
        answer_at: F,
        pending: BTreeMap<(u64, u64), (usize, u64)>,
        sent: u64,
        most_pending: Rc<Cell<usize>>,
    }

    impl<F: FnMut(u64) -> Option<u64>> Target for FakeTarget<F> {
        fn submit(&mut self, lane: usize, request: Request<'_>, tag: u64) -> Result<(), ErrorKind> {
            assert_eq!(request.key.len(), 16);
            self.sent += 1;
            let at = (self.answer_at)(self.clock.now_ns()).ok_or(ErrorKind::NotTaken)?;
            self.pending.insert((at, self.sent), (lane, tag));
            self.most_pending.set(self.most_pending.get().max(self.pending.len()));
            Ok(())
        }

        fn poll(&mut self, wait: Duration, on: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
            let (now, wait_ns) = (self.clock.now_ns(), wait.as_nanos() as u64);
            let next = self.pending.keys().next().map_or(u64::MAX, |(at, _)| *at);
            self.clock.0.set(next.clamp(now + 100, now + wait_ns.max(1000)));
            while let Some(entry) = self.pending.first_entry() {
                if entry.key().0 > self.clock.now_ns() {
                    break;
                }
                let (lane, tag) = entry.remove();
                on(lane, tag, Answer::Done);
            }
            Ok(())
        }
    }

    struct Run {
        warm: Counts,
        counts: Counts,
        seconds: Vec<i64>,
        late: u64,
        most_pending: usize,
    }

    fn lanes(quotas: &[usize]) -> Vec<Lane> {
        let workload = Workload {
            keys: 10,
            distribution: Distribution::Uniform,
            write_ratio: 0.5,
            read_mode: ReadMode::Confirm,
            value_bytes: 8,
            seed: 1,
        };
        let lane = |(lane, quota): (usize, &usize)| {
            let place = LanePlace { zone: lane, zones: quotas.len(), lane, lanes: quotas.len() };
            Lane { zone: lane, requests: Requests::new(&workload, &place).unwrap(), quota: *quota }
        };
        quotas.iter().enumerate().map(lane).collect()
    }

    /// Two seconds of warm-up, ten measured, five of grace.
    fn run(quotas: &[usize], pace: Pace, answer_at: impl FnMut(u64) -> Option<u64>) -> Run {
        run_with(quotas, pace, answer_at, |_| ())
    }

    fn run_with(
        quotas: &[usize],
        pace: Pace,
        mut answer_at: impl FnMut(u64) -> Option<u64>,
        mut watch: impl FnMut(&Stop),
    ) -> Run {
        let clock = FakeClock(Rc::new(Cell::new(0)));
        let stop = Arc::new(Stop::new(Window { start_ns: 2 * S, end_ns: 12 * S }, 5 * S));
        let (reports, received) = unbounded();
        let (_give_back, used) = unbounded();
        let most_pending = Rc::new(Cell::new(0));
        let watched = Arc::clone(&stop);
        let target = FakeTarget {
            clock: clock.clone(),
            answer_at: move |now| {
                watch(&watched);
                answer_at(now)
            },
            pending: BTreeMap::new(),
            sent: 0,
            most_pending: Rc::clone(&most_pending),
        };
        let post = Post { worker: 0, reports, used };
        Worker::new(target, lanes(quotas), pace, clock, stop, quotas.len(), post).run().unwrap();
        let mut run = Run {
            warm: Counts::new(quotas.len()),
            counts: Counts::new(quotas.len()),
            seconds: Vec::new(),
            late: 0,
            most_pending: most_pending.get(),
        };
        for report in received {
            let Report::Interval(0, interval) = report else { panic!("{report:?}") };
            run.seconds.push(interval.second);
            run.late += interval.late;
            if interval.second < 0 { &mut run.warm } else { &mut run.counts }.add(&interval.counts);
        }
        run
    }

    fn open(rate: u64, max_in_flight: usize) -> Pace {
        let schedule = Schedule::new(Arrivals::Constant, rate, 0, 1, salted(1, 1));
        Pace::Open { schedule, max_in_flight }
    }

    #[test]
    fn an_open_loop_counts_exactly_what_was_scheduled_in_the_window() {
        let run = run(&[0, 0], open(1000, 100), |now| Some(now + MS));
        let all = run.counts.sum(|_, _| true);
        assert_eq!((all.times.len(), all.error_count(), run.late), (10_000, 0, 0));
        assert_eq!(run.counts.sum(|zone, _| zone == 0).times.len(), 5_000);
        assert!(all.answered.abs_diff(10_000) <= 2, "{}", all.answered);
        assert_eq!(run.warm.sum(|_, _| true).answered, 1_999);
        assert_eq!(run.seconds, (-2..=10).collect::<Vec<_>>());
        assert!(all.times.max() < 2 * MS);
    }

    #[test]
    fn a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() {
        let stalled = |now: u64| Some(if (5 * S..6 * S).contains(&now) { 6 * S } else { now + MS });
        for max_in_flight in [10_000, 10] {
            let run = run(&[0], open(1000, max_in_flight), stalled);
            let all = run.counts.sum(|_, _| true);
            assert_eq!(all.times.len(), 10_000);
            let p99 = all.times.value_at_quantile(0.99);
            assert!(p99.abs_diff(900 * MS) < 15 * MS, "p99 {p99} ns with {max_in_flight} in flight");
            assert!(run.most_pending <= max_in_flight);
            assert_eq!(run.late > 900, max_in_flight == 10, "{} were sent late", run.late);
        }
        let closed = run(&[1], Pace::Closed, stalled).counts.sum(|_, _| true);
        assert!(closed.times.value_at_quantile(0.99) < 2 * MS && closed.times.max() > 900 * MS);
    }

    #[test]
    fn a_closed_loop_keeps_its_quotas_in_flight() {
        let run = run(&[3, 2, 0], Pace::Closed, |now| Some(now + 10 * MS));
        assert_eq!(run.most_pending, 5);
        let by_zone = [0, 1, 2].map(|zone| run.counts.sum(|of, _| of == zone).times.len());
        assert_eq!(by_zone, [3_000, 2_000, 0]);
        assert_eq!(run.counts.sum(|_, _| true).answered, 5_000);
    }

    #[test]
    fn requests_of_the_warm_up_never_count_even_if_answered_later() {
        // Sent at 0 s, at 4 s and at 11.5 s; the last are answered after the end.
        let run = run(&[7], Pace::Closed, |now| {
            Some(match now / S {
                0..2 => 4 * S,
                2..11 => 11 * S + 500 * MS,
                _ => now + S,
            })
        });
        let all = run.counts.sum(|_, _| true);
        assert_eq!((all.times.len(), all.answered, all.error_count()), (14, 14, 0));
        assert_eq!((all.times.min() / (999 * MS), all.times.max() / (100 * MS)), (1, 75));
    }

    #[test]
    fn late_answers_count_once_and_missing_ones_are_errors() {
        // Sent between 2 s and 12 s, one every 100 ms: those until 8 s are answered 4 s later, the others never.
        let run = run(&[0], open(10, 100), |now| Some(if now < 8 * S { now + 4 * S } else { 1000 * S }));
        let all = run.counts.sum(|_, _| true);
        assert_eq!(all.times.len(), 60);
        assert_eq!(all.errors[ErrorKind::Unanswered as usize], 40);
        assert_eq!(all.error_count(), 40);
        let late = run_answered_in_grace();
        assert_eq!((late.times.len(), late.error_count()), (100, 0));
        assert!(late.answered < 100, "answers after the end are no throughput: {}", late.answered);
    }

    fn run_answered_in_grace() -> crate::measure::Cell {
        run(&[0], open(10, 100), |now| Some(now + 3 * S)).counts.sum(|_, _| true)
    }

    #[test]
    fn what_could_not_even_be_sent_is_counted() {
        let run = run(&[0], open(100, 10), |_| Some(1000 * S));
        let all = run.counts.sum(|_, _| true);
        assert_eq!(all.errors[ErrorKind::Unsent as usize], 1000, "the ten in flight are of the warm-up");
        assert_eq!((all.times.len(), all.error_count(), run.late), (0, 1000, 1000));
    }

    #[test]
    fn requests_that_are_not_taken_are_errors_and_pause_a_closed_loop() {
        let run = run(&[5], Pace::Closed, |_| None);
        let all = run.counts.sum(|_, _| true);
        assert!(all.errors[ErrorKind::NotTaken as usize].abs_diff(10_000) < 20, "one each millisecond: {all:?}");
        let open = super::tests::run(&[0], open(1000, 5), |_| None).counts.sum(|_, _| true);
        assert_eq!(open.errors[ErrorKind::NotTaken as usize], 10_000);
    }

    #[test]
    fn an_interruption_ends_the_window_where_it_came() {
        let mut sent = 0;
        let run = run_with(
            &[0],
            open(1000, 100),
            |now| Some(now + MS),
            |stop| {
                sent += 1;
                if sent == 5_000 {
                    stop.interrupt(5 * S, S);
                }
            },
        );
        assert_eq!(run.counts.sum(|_, _| true).times.len(), 3_000, "from 2 s to 5 s");
    }

    #[test]
    fn a_worker_that_sleeps_through_seconds_goes_on_in_the_right_one() {
        let run = run(&[1], Pace::Closed, |now| Some(now + if now < 5 * S { 700 * MS } else { 3_100 * MS }));
        assert!(run.seconds.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", run.seconds);
    }
}
