//! A whole run: reach the cluster, start the workers, gather what they count, make the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::LineWriter,
    num::NonZeroU64,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use core_affinity::CoreId;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use serde_json::{Value, json};

use crate::{
    check::{self, Verdict},
    cluster::{Asking, ClusterDriver},
    foreign::ForeignDriver,
    gather::Gather,
    hdr::{HdrFile, HdrLog},
    history::{self, Ledger, Record, Recorder},
    json::{self, Part, RunReport},
    local::Local,
    measure::{Counts, Interval, Kind, Window},
    mix::Mix,
    plan::{Extent, Keep, Load, Plan, Source, Timing},
    progress::Progress,
    samples::{self, SAMPLES_MAX, Samples},
    schedule::Schedule,
    target::{ClusterInfo, Driver, ErrorKind, MonotonicClock, NullDriver, TargetError},
    throttle::Throttle,
    worker::{Kept, Lane, Pace, Post, Report, Stop, Worker},
    workload::{Distribution, LanePlace, Requests, Workload, salted},
};

/// An interrupted run waits at most this long for answers.
const INTERRUPTED_GRACE: Duration = Duration::from_secs(1);
/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Salts of random streams that are not a lane's.
const ARRIVALS_SALT: u64 = 1 << 32;

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The cluster cannot be reached, or does not fit the plan.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The plan does not fit the cluster.
    #[error("{0}")]
    Plan(String),
    /// A file cannot be written.
    #[error("cannot write {file}: {error}")]
    File {
        /// The file.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> RunError + '_ {
    |error| RunError::File { file: path.display().to_string(), error }
}

/// Makes the run that `plan` says, until it ends or `interrupted` becomes true.
///
/// # Errors
/// If there is nothing to report: the cluster cannot be reached, a file not be written, the plan does not fit.
pub fn execute(plan: &Plan, interrupted: &AtomicBool) -> Result<RunReport, RunError> {
    let asking = Asking { read: plan.workload.read_mode, request_timeout: plan.request_timeout };
    match &plan.source {
        Source::Null { zones } => drive(&NullDriver::new(*zones), plan, interrupted),
        Source::Foreign(foreign) => drive(&ForeignDriver::new(foreign, plan)?, plan, interrupted),
        Source::Seeds(seeds) => drive(&ClusterDriver::connect(seeds, asking, None)?, plan, interrupted),
        Source::Master(address) => drive(&ClusterDriver::from_master(address, asking)?, plan, interrupted),
        Source::ConfigFile(path) => drive(&ClusterDriver::from_file(path, asking)?, plan, interrupted),
        Source::Local(settings) => {
            let local = Local::start(settings)?;
            let driver = ClusterDriver::connect(local.seeds(), asking, Some(local.executors()));
            let mut report = driver.map_err(RunError::from).and_then(|driver| drive(&driver, plan, interrupted))?;
            if let Err(error) = local.stop() {
                report.invalid_because.push(format!("the local cluster: {error}"));
                report.valid = false;
            }
            Ok(report)
        }
    }
}

/// The layout of a run: which lanes there are, on which worker, from which zone.
#[derive(Debug)]
struct Layout {
    /// Numbers of the zones that load comes from.
    zones: Vec<u8>,
    /// The zone of each lane of a worker, as a position in `zones`; the same for all workers.
    lanes: Vec<usize>,
    workers: usize,
}

impl Layout {
    fn new(plan: &Plan, cluster: &ClusterInfo) -> Result<Self, RunError> {
        let zones = if plan.from_zones.is_empty() { cluster.zones.clone() } else { plan.from_zones.clone() };
        if let Some(missing) = zones.iter().find(|zone| !cluster.zones.contains(zone)) {
            let known = cluster.zones.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            return Err(RunError::Plan(format!("--from-zones {missing}: the cluster has zones {known}")));
        }
        let lanes = (0..plan.clients_per_zone).flat_map(|_| 0..zones.len()).collect();
        Ok(Self { zones, lanes, workers: plan.threads })
    }

    fn lane_count(&self) -> usize {
        self.lanes.len() * self.workers
    }

    /// The requests in flight of lane `number` of the whole run, if all of them have `in_flight` together.
    fn quota(&self, number: usize, in_flight: usize) -> usize {
        in_flight / self.lane_count() + usize::from(number < in_flight % self.lane_count())
    }

    /// The requests that lane `number` makes in the measured time, if they are counted: shared out among the lanes that
    /// make any. The first of them make one more, so that lanes that go through all keys in turn make each once.
    fn budget(&self, number: usize, plan: &Plan) -> Option<u64> {
        let Extent::Requests(requests) = plan.timing.extent else { return None };
        let lanes = match plan.load {
            Load::Closed { in_flight, .. } if !plan.fills => in_flight.min(self.lane_count()),
            _ => self.lane_count(),
        };
        let (number, lanes) = (number as u64, lanes as u64);
        Some(if number < lanes { requests / lanes + u64::from(number < requests % lanes) } else { 0 })
    }

    /// The lanes of one worker, ready to draw requests. With `run`, values are numbered.
    fn lanes_of(
        &self,
        worker: usize,
        plan: &Plan,
        cluster: &ClusterInfo,
        run: Option<u32>,
    ) -> Result<Vec<Lane>, RunError> {
        let lane = |(position, zone): (usize, &usize)| {
            let number = worker * self.lanes.len() + position;
            let of_cluster = cluster.zones.iter().position(|known| *known == self.zones[*zone]).unwrap_or(0);
            let (zones, lanes) = (cluster.zones.len(), self.lane_count());
            let place = LanePlace { zone: of_cluster, zones, lane: number, lanes };
            let quota = match plan.load {
                Load::Closed { in_flight, .. } => self.quota(number, in_flight).max(usize::from(plan.fills)),
                Load::Open { .. } => 0,
            };
            let requests = Requests::new(&plan.workload, &place, run);
            let requests = requests.map_err(|error| RunError::Plan(error.to_string()))?;
            Ok(Lane { zone: *zone, requests, quota, budget: self.budget(number, plan) })
        };
        self.lanes.iter().enumerate().map(lane).collect()
    }

    fn pace_of(&self, worker: usize, plan: &Plan) -> Pace {
        let (rate, arrivals, max_in_flight) = match plan.load {
            Load::Open { rate, arrivals, max_in_flight } => (rate, arrivals, max_in_flight),
            Load::Closed { throttle, .. } => {
                return Pace::Closed(throttle.map(|rate| Throttle::new(rate, worker, self.workers)));
            }
        };
        let random = salted(plan.workload.seed, ARRIVALS_SALT + worker as u64);
        let schedule = Schedule::new(arrivals, rate, worker, self.workers, random);
        Pace::Open { schedule, max_in_flight: max_in_flight.div_ceil(self.workers) }
    }

    /// What a reader should know of how the load is spread.
    fn notes(&self, plan: &Plan) -> Vec<String> {
        match plan.load {
            Load::Closed { in_flight, .. } if in_flight < self.lane_count() && !plan.fills => vec![format!(
                "--concurrency {in_flight} is less than the {} clients (workers x zones x clients per zone): the \
                 others are idle",
                self.lane_count()
            )],
            _ => Vec::new(),
        }
    }
}

/// The cores of the workers, and what the report says about it.
fn pinning(workers: usize, executors_here: usize) -> (Vec<Option<CoreId>>, String) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if cores.len() < workers + executors_here {
        let why = format!(
            "unpinned: {} cores for {workers} workers and {executors_here} executors of the cluster here",
            cores.len()
        );
        return (vec![None; workers], why);
    }
    // From the end, because executors are usually given cores from the start.
    let chosen: Vec<CoreId> = cores.into_iter().rev().take(workers).collect();
    let names = chosen.iter().map(|core| core.id.to_string()).collect::<Vec<_>>().join(" ");
    (chosen.into_iter().map(Some).collect(), format!("workers pinned to cores {names}"))
}

/// Runs the plan against a driver.
///
/// # Errors
/// As [`execute`].
pub fn drive<D: Driver>(driver: &D, plan: &Plan, interrupted: &AtomicBool) -> Result<RunReport, RunError> {
    if plan.preloads && !plan.fills {
        preload(driver, plan, interrupted)?;
    }
    let cluster = driver.cluster();
    let layout = Layout::new(plan, cluster)?;
    let mut hdr = plan.hdr.as_deref().map(|path| HdrFile::create(path).map_err(file_error(path))).transpose()?;
    for path in [&plan.json, &plan.html, &plan.keep.latency, &plan.keep.history].into_iter().flatten() {
        File::options().append(true).create(true).open(path).map_err(file_error(path))?;
    }
    let (cores, pinning) = pinning(layout.workers, cluster.executors_here);
    let window = window_of(plan);
    let stop = Arc::new(Stop::new(window, nanos(plan.timing.cool_down), nanos(plan.timing.grace)));
    let keeper = Keeper::new(plan, layout.workers);

    let result = thread::scope(|scope| {
        let (crew, mut starters) = (Crew::new(layout.workers), Vec::new());
        for (worker, core) in cores.into_iter().enumerate() {
            let lanes = layout.lanes_of(worker, plan, cluster, keeper.run)?;
            let (pace, kept) = (layout.pace_of(worker, plan), keeper.kept(worker));
            let (go, gone) = bounded(1);
            let post = Post { worker, reports: crew.reports.0.clone(), used: crew.used[worker].1.clone() };
            let (stop, ready, layout) = (Arc::clone(&stop), crew.ready.0.clone(), &layout);
            let spins = plan.spins;
            let body = move || work(driver, layout, (core, spins), (lanes, pace, kept), &stop, post, &ready, &gone);
            thread::Builder::new()
                .name(format!("load-{worker}"))
                .spawn_scoped(scope, body)
                .map_err(|error| RunError::Plan(format!("--threads {}: {error}", layout.workers)))?;
            starters.push(go);
        }
        let unpinned = crew.wait_until_ready(layout.workers)?;
        let (origin, started) = (Instant::now(), SystemTime::now() + plan.timing.warmup);
        let log = begin_log(hdr.as_mut(), started, plan)?;
        for go in &starters {
            let _ = go.send(origin);
        }
        let progress = Progress::new(plan.quiet, progress_end(plan));
        let cools_from = progress_end(plan).filter(|_| !plan.timing.cool_down.is_zero());
        let gather = Gather::new((layout.workers, layout.zones.len()), cools_from, log, progress);
        Ok::<_, RunError>((crew.gather(gather, &stop, origin, interrupted), started, unpinned))
    });
    let (mut gathered, started, unpinned) = result?;
    let pinning = if unpinned == 0 { pinning } else { format!("{pinning}, refused for {unpinned} of them") };
    let by_time = matches!(plan.timing.extent, Extent::Time(_));
    let window = if by_time { stop.window() } else { stop.window_to_last() };
    let kept = std::mem::take(&mut gathered.kept);
    let silent_s = by_time.then(|| stop.silent_ns() as f64 / 1e9);
    let facts = Facts { plan, layout: &layout, cluster, pinning, started, window, silent_s };
    let mut report = facts.report(&gathered, interrupted.load(Ordering::Relaxed));
    keeper.finish(kept, &mut report, plan)?;
    judge(&mut report);
    Ok(report)
}

/// Writes every key once, so that what is measured finds its records.
fn preload<D: Driver>(driver: &D, plan: &Plan, interrupted: &AtomicBool) -> Result<(), RunError> {
    let timing = Timing {
        warmup: Duration::ZERO,
        extent: Extent::Requests(plan.workload.keys),
        cool_down: Duration::ZERO,
        ..plan.timing
    };
    let (distribution, mix) = (Distribution::Sequential, Mix::of_write_ratio(1.0));
    let workload = Workload { distribution, mix, ycsb: None, step: None, ..plan.workload.clone() };
    let in_flight = match plan.load {
        Load::Closed { in_flight, .. } => in_flight.max(64),
        Load::Open { .. } => 64,
    };
    let (load, keep) = (Load::Closed { in_flight, throttle: None }, Keep::default());
    let fill = Plan {
        load,
        timing,
        workload,
        keep,
        fills: true,
        preloads: false,
        json: None,
        html: None,
        hdr: None,
        ..plan.clone()
    };
    let report = drive(driver, &fill, interrupted)?;
    match report.all.error_count() {
        0 => Ok(()),
        errors => Err(RunError::Plan(format!(
            "--preload: {errors} of {} keys were not written, or nobody knows",
            fill.workload.keys
        ))),
    }
}

/// Reads the processor time of this process at the beginning and at the end of what is measured.
#[derive(Default)]
struct CpuMeter {
    begun: Option<(u64, u64)>,
    ended: Option<(u64, u64)>,
}

impl CpuMeter {
    fn look(&mut self, now_ns: u64, window: Window) {
        if self.ended.is_some() || now_ns < window.start_ns {
            return;
        }
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let reading = (used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64, now_ns);
        match self.begun {
            None => self.begun = Some(reading),
            Some(_) if now_ns >= window.end_ns => self.ended = Some(reading),
            Some(_) => {}
        }
    }

    /// Processor time, and the time in which it was used, in nanoseconds.
    fn used(&self) -> Option<(u64, u64)> {
        let ((used_from, from_ns), (used_to, to_ns)) = (self.begun?, self.ended?);
        Some((used_to - used_from, to_ns - from_ns))
    }
}

/// What is measured, as far as it is known beforehand.
fn window_of(plan: &Plan) -> Window {
    let start_ns = nanos(plan.timing.warmup);
    match plan.timing.extent {
        Extent::Time(duration) => Window { start_ns, end_ns: start_ns + nanos(duration) },
        Extent::Requests(_) => Window { start_ns, end_ns: u64::MAX >> 2 },
    }
}

/// The last second that progress is shown of; none where requests are counted.
fn progress_end(plan: &Plan) -> Option<i64> {
    match plan.timing.extent {
        Extent::Time(duration) => Some(duration.as_secs_f64().ceil() as i64),
        Extent::Requests(_) => None,
    }
}

/// Keeps what is asked for of single requests, and makes files and a verdict of it.
struct Keeper {
    ledger: Option<Arc<Ledger>>,
    /// A number that hardly another run has, for the values of a history.
    run: Option<u32>,
    /// The most samples of each worker.
    samples: Option<usize>,
    seed: u64,
}

impl Keeper {
    fn new(plan: &Plan, workers: usize) -> Self {
        let keep = &plan.keep;
        let ledger = keep.needs_history().then(|| Arc::new(Ledger::new(keep.history_max)));
        let run = ledger.is_some().then(|| rand::random::<u32>() >> 1);
        let samples = keep.latency.is_some().then_some(SAMPLES_MAX / workers);
        Self { ledger, run, samples, seed: plan.workload.seed }
    }

    fn kept(&self, worker: usize) -> Kept {
        Kept {
            samples: self.samples.map(|max| Samples::new(max, self.seed.wrapping_add(worker as u64))),
            recorder: self.ledger.as_ref().map(|ledger| Recorder::new(Arc::clone(ledger))),
            complaints: Vec::new(),
        }
    }

    /// Once all workers have ended.
    fn finish(&self, kept: Vec<Kept>, report: &mut RunReport, plan: &Plan) -> Result<(), RunError> {
        let (mut samples, mut records, mut complaints) = (Vec::new(), Vec::<Record>::new(), BTreeSet::new());
        for kept in kept {
            complaints.extend(kept.complaints);
            samples.extend(kept.samples);
            records.extend(kept.recorder.into_iter().flat_map(Recorder::finish));
        }
        report.notes.extend(complaints.into_iter().map(|said| format!("the server refused requests: {said}")));
        if let Some(path) = &plan.keep.latency {
            let (written, of) = samples::write(path, samples).map_err(file_error(path))?;
            if written < of {
                let note = format!("{} holds a random sample of {written} of {of} response times", path.display());
                report.notes.push(note);
            }
        }
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let recorded_s = ledger.cut_ns().map(|cut_ns| cut_ns as f64 / 1e9);
        if let Some(path) = &plan.keep.history {
            history::write_csv(path, &records).map_err(file_error(path))?;
            if let Some(seconds) = recorded_s {
                report.notes.push(format!(
                    "{} ends {seconds:.3} s after the load began, at {} operations (--history-max keeps more)",
                    path.display(),
                    plan.keep.history_max
                ));
            }
        }
        if plan.keep.check {
            // What a directory of the user holds, nobody knows here; nor does the history what was written before it began.
            let fresh = matches!(&plan.source, Source::Local(local) if local.data.is_none()) && !plan.preloads;
            report.check = Some(check::CheckReport { recorded_s, ..check::judge(records, fresh) });
        }
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn begin_log<'a>(
    file: Option<&'a mut HdrFile<LineWriter<File>>>,
    started: SystemTime,
    plan: &Plan,
) -> Result<Option<HdrLog<'a, LineWriter<File>>>, RunError> {
    let (Some(file), Some(path)) = (file, &plan.hdr) else { return Ok(None) };
    let comments = [
        format!("wpaxos-load {}: response times in nanoseconds", env!("CARGO_PKG_VERSION")),
        "Lines without a tag hold all operations; Tag=read and Tag=write are parts of them".to_owned(),
    ];
    file.begin(started, &comments).map(Some).map_err(file_error(path))
}

/// The body of a worker's thread.
#[allow(clippy::too_many_arguments, reason = "everything that a thread takes with it, once")]
fn work<D: Driver>(
    driver: &D,
    layout: &Layout,
    (core, spins): (Option<CoreId>, bool),
    (lanes, pace, kept): (Vec<Lane>, Pace, Kept),
    stop: &Arc<Stop>,
    post: Post,
    ready: &Sender<Result<bool, TargetError>>,
    go: &Receiver<Instant>,
) {
    let pinned = core.is_none_or(core_affinity::set_for_current);
    // The kernel may wake a sleeper 50 us late unless it is asked not to; schedules are finer than that.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let zones: Vec<u8> = lanes.iter().map(|lane| layout.zones[lane.zone]).collect();
    let target = match driver.connect(&zones) {
        Ok(target) => target,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let _ = ready.send(Ok(pinned));
    let Ok(origin) = go.recv() else { return };
    let (worker, reports) = (post.worker, post.reports.clone());
    let clock = MonotonicClock(origin);
    let body = Worker::new(target, lanes, pace, clock, Arc::clone(stop), layout.zones.len(), post);
    let body = body.keeping(kept).spinning(spins);
    let (outcome, kept) = body.run();
    let _ = reports.send(Report::Ended(worker, outcome, kept));
}

type Channel<T> = (Sender<T>, Receiver<T>);

/// The channels between the reporter and all workers.
struct Crew {
    ready: Channel<Result<bool, TargetError>>,
    reports: Channel<Report>,
    used: Vec<Channel<Box<Interval>>>,
}

/// What came of the workers.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) totals: Counts,
    pub(crate) late: u64,
    pub(crate) failures: Vec<String>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) seconds: Vec<json::Second>,
    /// Processor time of this process in the measured time, and how long that was, in nanoseconds.
    pub(crate) cpu: Option<(u64, u64)>,
}

impl Crew {
    fn new(workers: usize) -> Self {
        Self { ready: unbounded(), reports: unbounded(), used: (0..workers).map(|_| bounded(2)).collect() }
    }

    /// Waits until all workers are connected. Returns how many could not be pinned though they should have been.
    fn wait_until_ready(&self, workers: usize) -> Result<usize, RunError> {
        let mut unpinned = 0;
        for _ in 0..workers {
            let pinned = self.ready.1.recv().map_err(|_| RunError::Plan("a worker has died".to_owned()))??;
            unpinned += usize::from(!pinned);
        }
        Ok(unpinned)
    }

    /// Takes reports until all workers have ended.
    fn gather(
        &self,
        mut gather: Gather<'_, LineWriter<File>>,
        stop: &Stop,
        origin: Instant,
        interrupted: &AtomicBool,
    ) -> Gathered {
        let (mut running, mut meter) = (self.used.len(), CpuMeter::default());
        while running > 0 {
            meter.look(nanos(origin.elapsed()), stop.window());
            if interrupted.load(Ordering::Relaxed) {
                stop.interrupt(nanos(origin.elapsed()), nanos(INTERRUPTED_GRACE));
            }
            match self.reports.1.recv_timeout(LOOK) {
                Ok(Report::Interval(worker, interval)) => {
                    gather.take(worker, &interval);
                    let _ = self.used[worker].0.try_send(interval);
                }
                Ok(Report::Ended(worker, outcome, kept)) => {
                    gather.end(worker, outcome, kept);
                    running -= 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Gathered { cpu: meter.used(), ..gather.finish() }
    }
}

/// What the report says beside the numbers.
struct Facts<'a> {
    plan: &'a Plan,
    layout: &'a Layout,
    cluster: &'a ClusterInfo,
    pinning: String,
    started: SystemTime,
    window: Window,
    /// How long nothing was answered at the end, where a time ended the run.
    silent_s: Option<f64>,
}

impl Facts<'_> {
    fn report(&self, gathered: &Gathered, interrupted: bool) -> RunReport {
        let totals = &gathered.totals;
        let measured_s = self.window.end_ns.saturating_sub(self.window.start_ns) as f64 / 1e9;
        let part = |kind: Option<Kind>| Part::of(&totals.sum(|_, of| kind.is_none_or(|kind| kind == of)), measured_s);
        let all = part(None);
        let offered = matches!(self.plan.load, Load::Open { .. }) && measured_s > 0.0;
        let counted = all.response_us.count + all.error_count();
        let notes = self.plan.notes.iter().cloned().chain(self.layout.notes(self.plan));
        RunReport {
            tool: "wpaxos-load".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: json::rfc3339(self.started),
            valid: true,
            invalid_because: gathered.failures.iter().cloned().chain(self.silence(&all, measured_s)).collect(),
            interrupted,
            measured_s,
            offered_ops_per_s: offered.then(|| counted as f64 / measured_s),
            late_sends: gathered.late,
            read: part(Some(Kind::Read)),
            write: part(Some(Kind::Write)),
            operations: json::operations(totals, measured_s),
            zones: json::zone_parts(totals, &self.layout.zones, measured_s),
            curves: json::Curves::of(&totals.sum(|_, _| true)),
            seconds: gathered.seconds.clone(),
            cpu: self.cpu(gathered, &all),
            notes: notes.collect(),
            config: self.config(),
            check: None,
            fills: self.plan.fills,
            all,
        }
    }

    /// What each answer cost in this process.
    fn cpu(&self, gathered: &Gathered, all: &Part) -> Option<json::CpuUse> {
        let (used_ns, over_ns) = gathered.cpu.filter(|(_, over_ns)| *over_ns > 0)?;
        let cores = used_ns as f64 / over_ns as f64;
        let rate = all.throughput_ops_per_s;
        let us_per_op = if rate > 0.0 { cores * 1e6 / rate } else { 0.0 };
        Some(json::CpuUse { cores, us_per_op, with_cluster: matches!(self.plan.source, Source::Local(_)) })
    }

    /// Whether the cluster stopped answering before the end: few requests fail then, for few were in flight.
    fn silence(&self, all: &Part, measured_s: f64) -> Option<String> {
        let unmade = all.errors.get(ErrorKind::Unsent.name()).copied().unwrap_or(0);
        let Some(silent_s) = self.silent_s else {
            let text = || format!("given up, for nothing was answered for long: {unmade} requests were not even made");
            return (unmade > 0).then(text);
        };
        let usual_gap_s = measured_s / (all.response_us.count as f64).max(1.0);
        let is_unusual = silent_s > 1.0 && silent_s > 10.0 * usual_gap_s;
        is_unusual.then(|| format!("nothing was answered in the last {silent_s:.1} s of the measured time"))
    }

    fn config(&self) -> BTreeMap<String, Value> {
        let mut config = self.plan.settings();
        let cores = thread::available_parallelism().map_or(0, usize::from);
        config.insert("cores".to_owned(), json!(cores));
        config.insert("machine".to_owned(), machine());
        config.insert("pinning".to_owned(), json!(self.pinning));
        config.insert("load_from_zones".to_owned(), json!(self.layout.zones));
        config.insert("clients".to_owned(), json!(self.layout.lane_count()));
        let cluster = json!({
            "name": self.cluster.name,
            "zones": self.cluster.zones,
            "nodes": self.cluster.nodes,
            "shards": self.cluster.shards,
        });
        config.insert("cluster".to_owned(), cluster);
        config.insert("facts".to_owned(), json!(self.cluster.facts));
        config
    }
}

/// What the load generator runs on.
fn machine() -> Value {
    let line = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let found = text.lines().find(|line| name.is_empty() || line.starts_with(name));
        found.map(|line| line.rsplit(": ").next().unwrap_or(line).trim().to_owned()).unwrap_or_default()
    };
    json!({"kernel": line("/proc/sys/kernel/osrelease", ""), "cpu": line("/proc/cpuinfo", "model name")})
}

/// Decides whether the numbers may be quoted, and says why not.
fn judge(report: &mut RunReport) {
    let mut why = std::mem::take(&mut report.invalid_because);
    if report.interrupted {
        why.push("interrupted".to_owned());
    }
    let (answered, errors) = (report.all.response_us.count, report.all.error_count());
    if answered == 0 {
        why.push("no request that was due in the measured time was answered".to_owned());
    }
    if report.fills && errors > 0 {
        why.push(format!("{errors} keys were not written, or nobody knows"));
    } else if errors * 100 > answered + errors {
        why.push("more than 1% of the requests failed".to_owned());
    }
    match report.check.as_ref().map(|check| check.verdict) {
        Some(Verdict::Violated) => why.push("the history is not linearizable".to_owned()),
        Some(Verdict::Undecided) => why.push("the linearizability check came to no end".to_owned()),
        Some(Verdict::Linearizable) | None => {}
    }
    if let Some(offered) = report.offered_ops_per_s {
        if report.all.throughput_ops_per_s < 0.99 * offered {
            why.push("behind its schedule: answered less than 99% of the offered rate".to_owned());
        }
        if report.late_sends * 100 > answered + errors {
            why.push("behind its schedule: more than 1% of the requests were sent over 10 ms late".to_owned());
        }
    }
    report.valid = why.is_empty();
    report.invalid_because = why;
}
