//! A worker against a target and a clock that do as they are told.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use crossbeam::channel::unbounded;
use wpaxos::{
    command::Status,
    linear::{Act, Outcome},
    protocol::ReadMode,
};

use super::*;
use crate::{
    args::Arrivals,
    history::{Ledger, Record},
    measure::{Counts, Parts},
    mix::{Mix, ValueSize, Ycsb},
    target::{Request, Seen},
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
            on(lane, tag, Answer::Done(Seen::only(Status::Ok)));
        }
        Ok(())
    }
}

struct Run {
    warm: Counts,
    counts: Counts,
    kept: Kept,
    measured: Window,
    ended_ns: u64,
    seconds: Vec<i64>,
    late: u64,
    most_pending: usize,
}

fn lanes(quotas: &[usize]) -> Vec<Lane> {
    lanes_of(quotas, Mix::of_write_ratio(0.5))
}

fn lanes_of(quotas: &[usize], mix: Mix) -> Vec<Lane> {
    let workload = Workload {
        keys: 10,
        first_key: 0,
        step: None,
        distribution: Distribution::Uniform,
        ycsb: None,
        mix,
        read_mode: ReadMode::Confirm,
        values: ValueSize::Fixed(8),
        seed: 1,
    };
    let lane = |(lane, quota): (usize, &usize)| {
        let place = LanePlace { zone: lane, zones: quotas.len(), lane, lanes: quotas.len() };
        Lane { zone: lane, requests: Requests::new(&workload, &place, None).unwrap(), quota: *quota, budget: None }
    };
    quotas.iter().enumerate().map(lane).collect()
}

/// Two seconds of warm-up, ten measured, five of grace.
fn run(quotas: &[usize], pace: Pace, answer_at: impl FnMut(u64) -> Option<u64>) -> Run {
    run_with(quotas, pace, answer_at, |_| ())
}

fn run_with(quotas: &[usize], pace: Pace, answer_at: impl FnMut(u64) -> Option<u64>, watch: impl FnMut(&Stop)) -> Run {
    let window = Window { start_ns: 2 * S, end_ns: 12 * S };
    run_lanes(lanes(quotas), window, pace, answer_at, watch, Kept::default())
}

fn run_lanes(
    lanes: Vec<Lane>,
    window: Window,
    pace: Pace,
    mut answer_at: impl FnMut(u64) -> Option<u64>,
    mut watch: impl FnMut(&Stop),
    kept: Kept,
) -> Run {
    let clock = FakeClock(Rc::new(Cell::new(0)));
    let stop = Arc::new(Stop::new(window, 0, 5 * S));
    let zones = lanes.len();
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
    let (outcome, kept) =
        Worker::new(target, lanes, pace, clock.clone(), Arc::clone(&stop), zones, post).keeping(kept).run();
    outcome.unwrap();
    let mut run = Run {
        warm: Counts::new(zones),
        counts: Counts::new(zones),
        kept,
        measured: stop.window_to_last(),
        ended_ns: clock.now_ns(),
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
    let closed = run(&[1], Pace::Closed(None), stalled).counts.sum(|_, _| true);
    assert!(closed.times.value_at_quantile(0.99) < 2 * MS && closed.times.max() > 900 * MS);
}

#[test]
fn a_closed_loop_keeps_its_quotas_in_flight() {
    let run = run(&[3, 2, 0], Pace::Closed(None), |now| Some(now + 10 * MS));
    assert_eq!(run.most_pending, 5);
    let by_zone = [0, 1, 2].map(|zone| run.counts.sum(|of, _| of == zone).times.len());
    assert_eq!(by_zone, [3_000, 2_000, 0]);
    assert_eq!(run.counts.sum(|_, _| true).answered, 5_000);
}

#[test]
fn requests_of_the_warm_up_never_count_even_if_answered_later() {
    // Sent at 0 s, at 4 s and at 11.5 s; the last are answered after the end.
    let run = run(&[7], Pace::Closed(None), |now| {
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
    let run = run(&[5], Pace::Closed(None), |_| None);
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
    let run = run(&[1], Pace::Closed(None), |now| Some(now + if now < 5 * S { 700 * MS } else { 3_100 * MS }));
    assert!(run.seconds.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", run.seconds);
}

/// Ends when its lanes have made their requests, after two seconds of warm-up.
fn run_counted(budgets: &[u64], throttle: Option<u64>, answer_at: impl FnMut(u64) -> Option<u64>) -> Run {
    let mut lanes = lanes(&vec![3; budgets.len()]);
    for (lane, budget) in lanes.iter_mut().zip(budgets) {
        lane.budget = Some(*budget);
    }
    let window = Window { start_ns: 2 * S, end_ns: u64::MAX >> 2 };
    let pace = Pace::Closed(throttle.map(|rate| Throttle::new(rate, 0, 1)));
    run_lanes(lanes, window, pace, answer_at, |_| (), Kept::default())
}

#[test]
fn a_loop_by_number_makes_exactly_its_requests() {
    let run = run_counted(&[100, 7, 0], None, |now| Some(now + 10 * MS));
    let by_zone = [0, 1, 2].map(|zone| run.counts.sum(|of, _| of == zone).times.len());
    assert_eq!((by_zone, run.counts.sum(|_, _| true).error_count()), ([100, 7, 0], 0));
    assert!(run.warm.sum(|_, _| true).answered > 100, "the warm-up counts for nothing");
    let measured_ms = (run.measured.end_ns - run.measured.start_ns) / MS;
    assert!((330..360).contains(&measured_ms), "three at a time, 10 ms each: {measured_ms} ms");
}

#[test]
fn a_loop_by_number_waits_for_its_last_answers_no_longer_than_the_grace_time() {
    // The first 50 are answered, the other ten never.
    let mut sent = 0;
    let run = run_counted(&[60], None, |now| {
        sent += u64::from(now >= 2 * S);
        Some(if sent <= 50 { now + MS } else { 10_000 * S })
    });
    let all = run.counts.sum(|_, _| true);
    assert_eq!((all.times.len(), all.errors[ErrorKind::Unanswered as usize]), (50, 3), "three were in flight");
    assert_eq!(all.errors[ErrorKind::Unsent as usize], 7, "and nobody asked for the rest");
    assert!(run.ended_ns < 30 * S, "it gave up after {} s", run.ended_ns / S);
}

#[test]
fn a_dead_cluster_ends_a_loop_by_number() {
    let run = run_counted(&[1_000_000_000], None, |now| Some(if now < 4 * S { now + MS } else { 10_000 * S }));
    let all = run.counts.sum(|_, _| true);
    assert_eq!(all.times.len() + all.error_count(), 1_000_000_000, "every one is named");
    assert_eq!(all.errors[ErrorKind::Unanswered as usize], 3);
    assert!(run.ended_ns < 30 * S, "it gave up after {} s", run.ended_ns / S);
    // One that fails at once is dead too.
    let run = run_counted(&[1_000_000_000], None, |now| (now < 4 * S).then_some(now + MS));
    let all = run.counts.sum(|_, _| true);
    assert_eq!(all.times.len() + all.error_count(), 1_000_000_000);
    assert!(run.ended_ns < 30 * S, "it gave up after {} s", run.ended_ns / S);
}

#[test]
fn a_throttled_loop_asks_no_faster_than_allowed_and_lanes_take_turns() {
    let pace = || Pace::Closed(Some(Throttle::new(100, 0, 1)));
    let even = run(&[5, 5], pace(), |now| Some(now + MS));
    let by_zone = [0, 1].map(|zone| even.counts.sum(|of, _| of == zone).times.len());
    assert_eq!(by_zone.iter().sum::<u64>(), 1000, "100 a second for ten seconds");
    assert_eq!(by_zone, [500, 500]);
    // What a stall of a second misses is not made up for: no burst follows.
    let mut times = Vec::new();
    let stalled = run(&[5], pace(), |now| {
        times.push(now);
        Some(if (5 * S..6 * S).contains(&now) { 6 * S } else { now + MS })
    });
    let all = stalled.counts.sum(|_, _| true);
    assert!(all.times.len() < 920, "{} although five in flight blocked it for a second", all.times.len());
    let most_in_100_ms =
        times.iter().map(|from| times.iter().filter(|at| (*from..from + 100 * MS).contains(at)).count());
    assert!(most_in_100_ms.max() <= Some(11), "a burst");
}

#[test]
fn what_is_kept_of_single_requests_is_what_was_measured() {
    let ledger = Arc::new(Ledger::new(5000));
    let samples = Some(crate::samples::Samples::new(100_000, 1));
    let kept = Kept { samples, recorder: Some(Recorder::new(Arc::clone(&ledger))), ..Kept::default() };
    let window = Window { start_ns: 2 * S, end_ns: 12 * S };
    // Those called between 7 s and 8 s are never answered.
    let answer = |now: u64| Some(if (7 * S..8 * S).contains(&now) { 10_000 * S } else { now + MS });
    let run = run_lanes(lanes(&[0]), window, open(500, 10_000), answer, |_| (), kept);
    assert_eq!(run.counts.sum(|_, _| true).times.len(), 4500);
    let file = tempfile::NamedTempFile::new().unwrap();
    let written = crate::samples::write(file.path(), vec![run.kept.samples.unwrap()]).unwrap();
    assert_eq!(written, (4500, 4500), "the warm-up is left out");
    let records: Vec<Record> = run.kept.recorder.unwrap().finish();
    let cut_ns = ledger.cut_ns().expect("6000 were asked");
    assert!((10 * S..10 * S + 2 * MS).contains(&cut_ns), "the warm-up is part of the history: {cut_ns}");
    let (reads, writes): (Vec<Record>, Vec<Record>) = records.iter().partition(|record| record.act == Act::Get);
    assert!(reads.iter().all(|read| read.outcome == Outcome::Known(Status::Ok, u64::MAX, 0)));
    assert!(reads.iter().all(|read| !(7 * S..8 * S).contains(&read.called)), "a read without an answer says nothing");
    let doubtful = writes.iter().filter(|write| write.outcome == Outcome::Unknown).count();
    assert!((200..300).contains(&doubtful), "{doubtful} of about 250 writes");
    assert!(records.iter().all(|record| record.returned > record.called && record.called < cut_ns));
}

#[test]
fn a_stall_of_the_cluster_is_service_time_and_one_of_the_generator_is_lag() {
    let stalled = |now: u64| Some(if (5 * S..6 * S).contains(&now) { 6 * S } else { now + MS });
    let p99 = |run: &Run, part: fn(&Parts) -> &crate::measure::Times| {
        let all = run.counts.sum(|_, _| true);
        part(all.parts.as_deref().expect("an open loop has parts")).value_at_quantile(0.99) / MS
    };
    let wide = run(&[0], open(1000, 10_000), stalled);
    assert!(p99(&wide, |parts| &parts.service).abs_diff(900) < 15 && p99(&wide, |parts| &parts.lag) < 1);
    // With ten in flight the others wait for their turn: response times are the same, and where they come from is told.
    let narrow = run(&[0], open(1000, 10), stalled);
    assert!(p99(&narrow, |parts| &parts.lag).abs_diff(900) < 15, "{}", p99(&narrow, |parts| &parts.lag));
    assert!(p99(&narrow, |parts| &parts.service) < 3);
    let closed = run(&[3], Pace::Closed(None), stalled).counts.sum(|_, _| true);
    assert!(closed.parts.is_none(), "a closed loop has no schedule to lag behind");
}

/// With a cool-down of two seconds behind the window.
fn run_cooling(pace: Pace, answer_at: impl FnMut(u64) -> Option<u64>) -> (Counts, u64, u64) {
    let (clock, window) = (FakeClock(Rc::new(Cell::new(0))), Window { start_ns: 2 * S, end_ns: 12 * S });
    let stop = Arc::new(Stop::new(window, 2 * S, 5 * S));
    let ((reports, received), (_give_back, used)) = (unbounded(), unbounded());
    let most_pending = Rc::new(Cell::new(0));
    let target = FakeTarget { clock: clock.clone(), answer_at, pending: BTreeMap::new(), sent: 0, most_pending };
    let post = Post { worker: 0, reports, used };
    Worker::new(target, lanes(&[5]), pace, clock.clone(), stop, 1, post).run().0.unwrap();
    let (mut counts, mut cooling) = (Counts::new(1), 0);
    for report in received {
        let Report::Interval(_, interval) = report else { panic!("{report:?}") };
        cooling += interval.cooling;
        if interval.second >= 0 {
            counts.add(&interval.counts);
        }
    }
    (counts, cooling, clock.now_ns())
}

#[test]
fn the_load_goes_on_in_the_cool_down_and_does_not_count() {
    for pace in [open(1000, 100), Pace::Closed(None)] {
        let is_open = matches!(pace, Pace::Open { .. });
        let (counts, cooling, ended_ns) = run_cooling(pace, |now| Some(now + if is_open { MS } else { 5 * MS }));
        let all = counts.sum(|_, _| true);
        assert_eq!((all.times.len(), all.error_count()), (10_000, 0));
        assert!(cooling.abs_diff(2_000) <= 10, "{cooling} answers in two seconds");
        assert!((14 * S..14 * S + 100 * MS).contains(&ended_ns));
    }
}

#[test]
fn a_read_modify_write_is_one_operation_of_two_requests_and_a_scan_one_of_many() {
    for (ycsb, kind) in [(Ycsb::F, Kind::ReadModifyWrite), (Ycsb::E, Kind::Scan), (Ycsb::D, Kind::Insert)] {
        let mut sent = 0;
        let window = Window { start_ns: 2 * S, end_ns: 12 * S };
        let answer = |now: u64| {
            sent += 1;
            Some(now + 10 * MS)
        };
        let run = run_lanes(lanes_of(&[4], ycsb.mix()), window, Pace::Closed(None), answer, |_| (), Kept::default());
        let (of_kind, all) = (run.counts.sum(|_, of| of == kind), run.counts.sum(|_, _| true));
        assert!(of_kind.times.len() > 100 && all.error_count() == 0, "{ycsb:?}: {}", of_kind.times.len());
        let took_ms = of_kind.times.value_at_quantile(0.5) / MS;
        let expected = match kind {
            Kind::ReadModifyWrite => 20..22,
            _ => 10..12,
        };
        assert!(expected.contains(&took_ms), "{ycsb:?}: {took_ms} ms");
        let operations = all.times.len() + run.warm.sum(|_, _| true).times.len();
        let per_operation = sent as f64 / operations as f64;
        let expected = match kind {
            Kind::ReadModifyWrite => 1.4..1.6,
            Kind::Scan => 40.0..55.0,
            _ => 0.99..1.02,
        };
        assert!(expected.contains(&per_operation), "{ycsb:?}: {per_operation} requests for each operation");
    }
}
