//! What a run will do: the flags taken together, checked, with their defaults.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use wpaxos::{
    protocol::ReadMode,
    server::keeps_nothing,
    topology::Cluster,
    tuning::{Durability, Tuning},
};

use crate::{
    args::{self, Arrivals, ReadModeName, RunArgs, TargetKind},
    local,
    mix::{Mix, RECORD_BYTES, ValueSize},
    paxi,
    workload::{Distribution, KEYS_MAX, NUMBERED_BYTES_MIN, Workload},
};

/// Everything that a run needs to know beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is driven.
    pub source: Source,
    /// How hard.
    pub load: Load,
    /// How long.
    pub timing: Timing,
    /// With which requests.
    pub workload: Workload,
    /// Worker threads.
    pub threads: usize,
    /// The zones that load comes from; all if empty.
    pub from_zones: Vec<u8>,
    /// Whether workers look for answers without sleeping.
    pub spins: bool,
    /// Whether every key is written before the warm-up.
    pub preloads: bool,
    /// Clients of a worker in each zone.
    pub clients_per_zone: usize,
    /// When a request has failed.
    pub request_timeout: Duration,
    /// Whether the run only fills the key space.
    pub fills: bool,
    /// How often the run is made.
    pub rounds: u32,
    /// What is kept of single requests.
    pub keep: Keep,
    /// Where the JSON report goes.
    pub json: Option<PathBuf>,
    /// Where the page goes.
    pub html: Option<PathBuf>,
    /// Where the interval log goes.
    pub hdr: Option<PathBuf>,
    /// What the reader of the report should know of the settings.
    pub notes: Vec<String>,
    /// Whether progress lines are left out.
    pub quiet: bool,
}

/// What is driven.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A cluster that this process starts.
    Local(Box<LocalPlan>),
    /// The cluster of a cluster file.
    ConfigFile(PathBuf),
    /// The cluster of the master at this address.
    Master(String),
    /// The cluster that these addresses belong to.
    Seeds(Vec<String>),
    /// Whatever listens at these addresses.
    Foreign(Foreign),
    /// Nobody: every request is answered at once.
    Null {
        /// How many zones it pretends to have.
        zones: u8,
    },
}

/// The cluster that this process starts.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalPlan {
    /// Zones.
    pub zones: u8,
    /// Nodes in each zone.
    pub nodes: u8,
    /// Shards of each node.
    pub shards: u16,
    /// What the members must agree on; its addresses mean nothing.
    pub cluster: Cluster,
    /// The knobs of all nodes.
    pub tuning: Tuning,
    /// What an answer waits for.
    pub durability: Durability,
    /// Where the nodes keep their state; a temporary directory without it.
    pub data: Option<PathBuf>,
    /// Flags as they were given, for the report.
    pub given: Vec<(String, Value)>,
}

/// A system that is not reached through the client library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it speaks.
    pub speaks: Speaks,
    /// Where.
    pub addresses: Vec<String>,
    /// Connections of each client; `None` leaves it to the protocol.
    pub connections: Option<usize>,
}

/// What a foreign system speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Paxi's REST interface.
    Http,
    /// The Redis protocol.
    Resp {
        /// Replicas that must have a write before it counts as done.
        wait: u32,
    },
}

/// What is kept of single requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Whether the history is checked.
    pub check: bool,
    /// Where the history goes.
    pub history: Option<PathBuf>,
    /// The most operations of the history.
    pub history_max: u64,
    /// Where the response times go.
    pub latency: Option<PathBuf>,
}

impl Keep {
    /// Whether a history is recorded.
    pub fn needs_history(&self) -> bool {
        self.check || self.history.is_some()
    }
}

/// How hard a cluster is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Closed loop.
    Closed {
        /// Requests in flight, over all workers and zones.
        in_flight: usize,
        /// The most requests per second.
        throttle: Option<u64>,
    },
    /// Open loop.
    Open {
        /// Requests per second.
        rate: u64,
        /// How they are spaced.
        arrivals: Arrivals,
        /// Requests in flight at which further ones wait.
        max_in_flight: usize,
    },
}

/// How long a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Driven before measuring begins.
    pub warmup: Duration,
    /// Measured.
    pub extent: Extent,
    /// Driven on after measuring has ended.
    pub cool_down: Duration,
    /// Waited for outstanding answers after the end.
    pub grace: Duration,
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// After a time.
    Time(Duration),
    /// After so many requests.
    Requests(u64),
}

/// The most requests of a run that is measured by number.
const REQUESTS_MAX: u64 = 1_000_000_000_000;
/// The most operations of a history.
const HISTORY_MAX: u64 = 50_000_000;

/// Why the flags make no plan. Names the flag and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(pub String);

fn wrong<T>(message: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError(message.into()))
}

impl Plan {
    /// Takes the flags together.
    ///
    /// # Errors
    /// Names the first flag that is out of range or contradicts another, and what would be right.
    pub fn from_args(args: &RunArgs) -> Result<Self, PlanError> {
        let Some(file) = &args.benchmark else { return Self::of_flags(args, Vec::new()) };
        let of_file = |error: String| PlanError(format!("--benchmark {}: {error}", file.display()));
        let (settings, notes) = paxi::load(file).map_err(of_file)?;
        let args = paxi::fill_in(args, &settings).map_err(of_file)?;
        let hint = |error: PlanError| PlanError(format!("{error} (settings of {} count as flags)", file.display()));
        Self::of_flags(&args, notes).map_err(hint)
    }

    fn of_flags(args: &RunArgs, notes: Vec<String>) -> Result<Self, PlanError> {
        if args.readme_seconds.is_some() {
            return wrong(
                "-t: in Paxi's README -t is seconds and -T is threads, but here, as in its configuration file, -T is seconds: \
                 say -T 60 --concurrency 10, or --duration 60s --concurrency 10",
            );
        }
        refuse_beside_load(args)?;
        let source = source(args)?;
        if args.load && !matches!(source, Source::ConfigFile(_) | Source::Master(_) | Source::Seeds(_)) {
            return wrong(
                "--load fills a cluster that stays: name a running one by --config, --master or --seed-address (a cluster of this \
                 tool's own ends with the run)",
            );
        }
        let workload = workload(args)?;
        let plan = Self {
            load: load(args)?,
            timing: timing(args)?,
            threads: at_least_one("--threads", args.threads.unwrap_or(1), 1024)?,
            from_zones: from_zones(args)?,
            clients_per_zone: at_least_one("--clients-per-zone", args.clients_per_zone.unwrap_or(1), 1024)?,
            request_timeout: request_timeout(args)?,
            spins: args.spin,
            preloads: preloads(args, &source),
            fills: args.load,
            rounds: at_least_one("--rounds", args.rounds.unwrap_or(1) as usize, 1000)? as u32,
            keep: keep(args, &source, &workload)?,
            json: args.json.clone(),
            html: args.html.clone(),
            hdr: args.hdr.clone(),
            quiet: args.quiet,
            source,
            workload,
            notes,
        };
        plan.outputs_differ()?;
        Ok(plan)
    }

    /// Whether no two outputs go to the same file.
    fn outputs_differ(&self) -> Result<(), PlanError> {
        let files = [
            ("--json", &self.json),
            ("--html", &self.html),
            ("--hdr", &self.hdr),
            ("--latency-file", &self.keep.latency),
            ("--history-csv", &self.keep.history),
        ];
        for (place, (flag, file)) in files.iter().enumerate() {
            if let Some((other, _)) = files[..place].iter().find(|(_, known)| file.is_some() && known == file) {
                return wrong(format!("{other} and {flag} name the same file; give each its own"));
            }
        }
        Ok(())
    }

    /// The plan of one round, from 1: where there are several, each has output files of its own.
    pub fn of_round(&self, round: u32) -> Self {
        let mut plan = self.clone();
        if self.rounds > 1 {
            let files = [&mut plan.json, &mut plan.html, &mut plan.hdr, &mut plan.keep.latency, &mut plan.keep.history];
            for file in files.into_iter().flatten() {
                let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let ending =
                    file.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
                file.set_file_name(format!("{stem}-{round}{ending}"));
            }
        }
        plan
    }

    /// All settings by name, for the report.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let mut set = |name: &str, value: Value| all.insert(name.to_owned(), value);
        match self.load {
            Load::Closed { in_flight, throttle } => {
                set("loop", json!("closed"));
                set("concurrency", json!(in_flight));
                if let Some(throttle) = throttle {
                    set("throttle", json!(throttle));
                }
            }
            Load::Open { rate, arrivals, max_in_flight } => {
                set("loop", json!("open"));
                set("rate", json!(rate));
                set("arrivals", json!(args::name_of(arrivals)));
                set("max_in_flight", json!(max_in_flight));
            }
        }
        set("warmup_s", json!(self.timing.warmup.as_secs_f64()));
        match self.timing.extent {
            Extent::Time(duration) => set("duration_s", json!(duration.as_secs_f64())),
            Extent::Requests(requests) => set("requests", json!(requests)),
        };
        set("cool_down_s", json!(self.timing.cool_down.as_secs_f64()));
        set("grace_s", json!(self.timing.grace.as_secs_f64()));
        set("request_timeout_s", json!(self.request_timeout.as_secs_f64()));
        set("threads", json!(self.threads));
        set("workers_wait", json!(if self.spins { "spin" } else { "sleep" }));
        set("clients_per_zone", json!(self.clients_per_zone));
        set("seed", json!(self.workload.seed));
        set("keys", json!(self.workload.keys));
        set("distribution", json!(self.workload.distribution.name()));
        for (name, value) in self.workload.distribution.parameters() {
            set(name, json!(value));
        }
        if let Some(step) = self.workload.step {
            set("move_every_ms", json!(step.as_millis() as u64));
        }
        if self.workload.first_key > 0 {
            set("first_key", json!(self.workload.first_key));
        }
        if self.keep.needs_history() {
            set("history_max", json!(self.keep.history_max));
        }
        set("workload", json!(self.workload.ycsb.map_or("custom", |ycsb| ycsb.name())));
        set("preloaded", json!(self.preloads));
        let mix = self.workload.mix;
        set("write_ratio", json!(mix.write + mix.insert + mix.rmw));
        for (name, share) in [("insert_ratio", mix.insert), ("scan_ratio", mix.scan), ("rmw_ratio", mix.rmw)] {
            if share > 0.0 {
                set(name, json!(share));
            }
        }
        set(
            "value_bytes",
            match self.workload.values {
                ValueSize::Fixed(bytes) => json!(bytes),
                other => json!(other.to_string()),
            },
        );
        let read_mode = match self.workload.read_mode {
            ReadMode::Confirm => "confirm",
            ReadMode::Log => "log",
        };
        set("read_mode", json!(read_mode));
        all.extend(self.source.settings());
        all
    }
}

impl Source {
    /// What is driven, by name, for the report.
    fn settings(&self) -> Vec<(String, Value)> {
        let named = |name: &str, value: Value| (name.to_owned(), value);
        match self {
            Self::Local(local) => local.settings(),
            Self::ConfigFile(file) => {
                vec![named("target", json!("cluster file")), named("cluster_file", json!(file))]
            }
            Self::Master(address) => vec![named("target", json!("master")), named("master", json!(address))],
            Self::Seeds(seeds) => vec![named("target", json!("seed addresses")), named("seed_addresses", json!(seeds))],
            Self::Null { .. } => vec![named("target", json!("null"))],
            Self::Foreign(Foreign { speaks, addresses, connections }) => {
                let (name, wait) = match speaks {
                    Speaks::Http => ("http", None),
                    Speaks::Resp { wait } => ("resp", Some(*wait).filter(|wait| *wait > 0)),
                };
                let mut all = vec![named("target", json!(name)), named("addresses", json!(addresses))];
                all.extend(connections.map(|count| named("connections_per_client", json!(count))));
                all.extend(wait.map(|replicas| named("resp_wait", json!(replicas))));
                all
            }
        }
    }
}

impl LocalPlan {
    /// As given; what was not given is in the facts that the cluster tells about itself.
    fn settings(&self) -> Vec<(String, Value)> {
        let fixed = [
            ("target", json!("local cluster")),
            ("local_zones", json!(self.zones)),
            ("local_nodes_per_zone", json!(self.nodes)),
            ("local_shards", json!(self.shards)),
            ("local_durability", json!(self.durability.name())),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
        // Every knob, so that a comparison can name those that differ.
        let knobs = serde_json::to_value(&self.tuning).map(|knobs| ("knobs".to_owned(), knobs));
        fixed.chain(self.given.iter().cloned()).chain(knobs).collect()
    }
}

fn at_least_one(flag: &str, value: usize, most: usize) -> Result<usize, PlanError> {
    if (1..=most).contains(&value) { Ok(value) } else { wrong(format!("{flag} {value}: expected 1 to {most}")) }
}

/// The flags that describe a cluster to be started, as far as they are given.
fn local_flags(args: &RunArgs) -> Vec<&'static str> {
    let given = [
        ("--zones", args.zones.is_some()),
        ("--nodes", args.nodes.is_some()),
        ("--shards", args.shards.is_some()),
        ("--durability", args.durability.is_some()),
        ("--data", args.data.is_some()),
        ("--quorum", args.quorum.is_some()),
        ("--fn", args.node_failures.is_some()),
        ("--fz", args.zone_failures.is_some()),
        ("--steal", args.steal.is_some()),
        ("--initial-owner", args.initial_owner.is_some()),
        ("--wan", args.wan.is_some()),
        ("--regions", !args.regions.is_empty()),
        ("--tuning", !args.tuning.is_empty()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
}

fn source(args: &RunArgs) -> Result<Source, PlanError> {
    let null = args.target == Some(TargetKind::Null);
    let foreign = foreign(args)?;
    let given = [
        ("--config", args.config.is_some()),
        ("--master", args.master.is_some()),
        ("--seed-address", !args.seed_address.is_empty()),
    ];
    let mut given = given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag);
    let remote = given.next();
    if let (Some(one), Some(other)) = (remote, given.next()) {
        return wrong(format!("{one} and {other} both name a cluster: give one of them"));
    }
    let local = local_flags(args);
    if let Some(remote) = remote {
        if null {
            return wrong(format!("--target null drives no cluster: leave out {remote}"));
        }
        if foreign.is_some() {
            return wrong(format!("--target says where the system is: leave out {remote}"));
        }
        if let Some(flag) = local.first() {
            return wrong(format!(
                "{flag} describes a cluster of this tool's own, but {remote} names a running one: give one of them \
                 (a running cluster is configured where it is started)"
            ));
        }
        for address in &args.seed_address {
            args::resolve(address).map_err(|error| PlanError(format!("--seed-address {error}")))?;
        }
        return Ok(match (&args.config, &args.master) {
            (Some(file), _) => Source::ConfigFile(file.clone()),
            (None, Some(address)) => Source::Master(address.clone()),
            (None, None) => Source::Seeds(args.seed_address.clone()),
        });
    }
    if let Some(foreign) = foreign {
        if let Some(flag) = local.first() {
            return wrong(format!(
                "{flag} describes a cluster of this tool's own, and --target names another system: leave one out"
            ));
        }
        return Ok(Source::Foreign(foreign));
    }
    if null {
        if let Some(flag) = local.iter().find(|flag| **flag != "--zones") {
            return wrong(format!("--target null starts no cluster: leave out {flag}"));
        }
        return Ok(Source::Null { zones: zone_count(args)? });
    }
    local_plan(args).map(|plan| Source::Local(Box::new(plan)))
}

/// A target that is not reached through the client library.
fn foreign(args: &RunArgs) -> Result<Option<Foreign>, PlanError> {
    let (speaks, addresses) = match &args.target {
        Some(TargetKind::Http(addresses)) => (Speaks::Http, addresses.clone()),
        Some(TargetKind::Resp(addresses)) => (Speaks::Resp { wait: args.resp_wait.unwrap_or(0) }, addresses.clone()),
        Some(TargetKind::Native | TargetKind::Null) | None => {
            return match (args.connections, args.resp_wait) {
                (Some(_), _) => wrong(
                    "--connections belongs to --target http://… and resp://…; clients of a wpaxos cluster have one connection to \
                     each shard that they use: --clients-per-zone makes more clients",
                ),
                (_, Some(_)) => wrong("--resp-wait belongs to --target resp://…: leave it out"),
                (None, None) => Ok(None),
            };
        }
    };
    if speaks == Speaks::Http && args.resp_wait.is_some() {
        return wrong("--resp-wait belongs to --target resp://…: leave it out");
    }
    if args.read_mode.is_some() {
        return wrong("--read-mode is how wpaxos reads: leave it out with --target http://… and resp://…");
    }
    let connections = args.connections.map(|count| at_least_one("--connections", count, 65_536)).transpose()?;
    Ok(Some(Foreign { speaks, addresses, connections }))
}

/// Whether every key is written first: where it is asked for, and where the records of a workload cannot be there yet.
fn preloads(args: &RunArgs, source: &Source) -> bool {
    args.preload || (args.workload.is_some() && matches!(source, Source::Local(_)))
}

fn zone_count(args: &RunArgs) -> Result<u8, PlanError> {
    at_least_one("--zones", usize::from(args.zones.unwrap_or(3)), 128).map(|zones| zones as u8)
}

fn local_plan(args: &RunArgs) -> Result<LocalPlan, PlanError> {
    let (zones, nodes) = (zone_count(args)?, at_least_one("--nodes", usize::from(args.nodes.unwrap_or(3)), 128)?);
    let shards = at_least_one("--shards", usize::from(args.shards.unwrap_or(1)), 1024)? as u16;
    if usize::from(zones) * nodes > 128 {
        return wrong(format!("--zones {zones} times --nodes {nodes} is {}: at most 128", usize::from(zones) * nodes));
    }
    let durability = args.durability.unwrap_or_default();
    if let (Durability::None, Some(data)) = (durability, &args.data) {
        return wrong(format!("--durability none: {}", keeps_nothing(data)));
    }
    let tuning = match &args.tuning[..] {
        [] => Tuning::default(),
        [file] => Tuning::load(file).map_err(|error| PlanError(format!("--tuning {error}")))?,
        _ => return wrong("--tuning: one run has one tuning; `wpaxos-load sweep` takes several"),
    };
    let nodes = nodes as u8;
    let cluster = local::cluster(args, zones, nodes, shards).map_err(PlanError)?;
    let given = [
        ("quorum", json!(args.quorum)),
        ("fn", json!(args.node_failures)),
        ("fz", json!(args.zone_failures)),
        ("steal", json!(args.steal)),
        ("initial_owner", json!(args.initial_owner)),
        ("wan", json!(args.wan)),
        ("regions", if args.regions.is_empty() { Value::Null } else { json!(args.regions) }),
        ("tuning", json!(args.tuning.first())),
    ];
    let given = given.into_iter().filter(|(_, value)| !value.is_null());
    let given = given.map(|(name, value)| (name.to_owned(), value)).collect();
    let data = args.data.clone();
    Ok(LocalPlan { zones, nodes, shards, cluster, tuning, durability, data, given })
}

/// `--load` decides what is asked and how often.
fn refuse_beside_load(args: &RunArgs) -> Result<(), PlanError> {
    let others = [
        ("--requests", args.requests.is_some()),
        ("--duration", args.duration.is_some()),
        ("-T", args.seconds.is_some()),
        ("--rate", args.rate.is_some()),
        ("--distribution", args.distribution.is_some()),
        ("--write-ratio", args.write_ratio.is_some()),
        ("--warmup", args.warmup.is_some()),
        ("--rounds", args.rounds.is_some_and(|rounds| rounds > 1)),
        ("--workload", args.workload.is_some()),
        ("--preload", args.preload),
        ("--cool-down", args.cool_down.is_some()),
    ];
    match others.into_iter().find(|(_, given)| args.load && *given) {
        Some((flag, _)) => wrong(format!("--load writes every key once and ends: leave out {flag}")),
        None => Ok(()),
    }
}

fn request_timeout(args: &RunArgs) -> Result<Duration, PlanError> {
    match args.request_timeout.unwrap_or(Duration::from_secs(6)) {
        timeout if timeout >= Duration::from_millis(1) => Ok(timeout),
        _ => wrong("--request-timeout: expected at least 1ms, as in 6s"),
    }
}

fn keep(args: &RunArgs, source: &Source, workload: &Workload) -> Result<Keep, PlanError> {
    let keep = Keep {
        check: args.linearizability_check.unwrap_or(false),
        history: args.history_csv.clone(),
        history_max: args.history_max.unwrap_or(1_000_000),
        latency: args.latency_file.clone(),
    };
    let flag = if keep.check { "--linearizability-check" } else { "--history-csv" };
    if !keep.needs_history() {
        return match args.history_max {
            Some(_) => wrong("--history-max bounds a history: give --linearizability-check or --history-csv too"),
            None => Ok(keep),
        };
    }
    if matches!(source, Source::Null { .. }) {
        return wrong(format!("{flag}: --target null stores nothing, so there is no history: leave one of them out"));
    }
    if workload.values.bounds().0 < NUMBERED_BYTES_MIN {
        return wrong(format!(
            "{flag} needs a number in every value: --value-bytes {}, expected at least {NUMBERED_BYTES_MIN}",
            workload.values
        ));
    }
    if !(1..=HISTORY_MAX).contains(&keep.history_max) {
        return wrong(format!("--history-max {}: expected 1 to {HISTORY_MAX}", keep.history_max));
    }
    Ok(keep)
}

fn load(args: &RunArgs) -> Result<Load, PlanError> {
    let Some(rate) = args.rate else {
        for (flag, given) in
            [("--arrivals", args.arrivals.is_some()), ("--max-in-flight", args.max_in_flight.is_some())]
        {
            if given {
                return wrong(format!("{flag} belongs to the open loop: give --rate too, or leave it out"));
            }
        }
        let in_flight = at_least_one("--concurrency", args.concurrency.unwrap_or(128), 1_000_000)?;
        let throttle = args.throttle.filter(|throttle| *throttle > 0);
        if throttle.is_some_and(|throttle| throttle > 1_000_000_000) {
            return wrong("--throttle: expected at most 1000000000 requests per second, or 0 for no limit");
        }
        return Ok(Load::Closed { in_flight, throttle });
    };
    for (flag, given) in [
        ("--concurrency", args.concurrency.is_some()),
        ("--throttle", args.throttle.is_some_and(|throttle| throttle > 0)),
        ("--requests", args.requests.is_some()),
    ] {
        if given {
            return wrong(format!(
                "--rate (open loop) and {flag} (closed loop) contradict each other: give one of them; --max-in-flight \
                 bounds what an open loop has in flight, --duration ends it"
            ));
        }
    }
    let rate = at_least_one("--rate", usize::try_from(rate).unwrap_or(usize::MAX), 1_000_000_000)? as u64;
    let max_in_flight = at_least_one("--max-in-flight", args.max_in_flight.unwrap_or(10_000), 1_000_000)?;
    Ok(Load::Open { rate, arrivals: args.arrivals.unwrap_or(Arrivals::Constant), max_in_flight })
}

fn timing(args: &RunArgs) -> Result<Timing, PlanError> {
    let extent = if args.load { Extent::Requests(args.keys.unwrap_or(1000)) } else { extent(args)? };
    let warmup = if matches!(extent, Extent::Time(_)) { Duration::from_secs(2) } else { Duration::ZERO };
    let (warmup, grace) = (args.warmup.unwrap_or(warmup), args.grace.unwrap_or(Duration::from_secs(5)));
    let cool_down = args.cool_down.unwrap_or(Duration::ZERO);
    if !matches!(extent, Extent::Time(_)) && !cool_down.is_zero() {
        return wrong(
            "--cool-down goes on behind a measured time, but --requests (N) ends the load: leave one of them out",
        );
    }
    Ok(Timing { warmup, extent, cool_down, grace })
}

/// A time or a number of requests, from whichever of three flags says so.
fn extent(args: &RunArgs) -> Result<Extent, PlanError> {
    if let (Some(_), Some(seconds)) = (args.duration, args.seconds) {
        return wrong(format!("-T {seconds} and --duration both say how long to measure: give one of them"));
    }
    let by_time = match (args.duration, args.seconds) {
        (Some(_), _) => Some("--duration"),
        (None, Some(seconds)) if seconds != 0.0 => Some("-T"),
        _ => None,
    };
    match (by_time, args.seconds, args.requests) {
        (None, Some(_), Some(0)) => {
            wrong("-T 0 and --requests (N) 0 measure nothing: give one of them a number above 0")
        }
        (None, Some(_), None) => {
            wrong("-T 0 measures by number of requests: say how many by --requests (N), or give -T seconds")
        }
        (None, None, Some(0)) => wrong("--requests (N) 0: expected 1 or more, or leave it out and give --duration"),
        (Some(flag), _, Some(requests)) if requests > 0 => {
            wrong(format!("{flag} and --requests (N) {requests} both say when to end: give one of them"))
        }
        (None, _, Some(requests)) if requests > REQUESTS_MAX => {
            wrong(format!("--requests {requests}: expected at most {REQUESTS_MAX}"))
        }
        (None, _, Some(requests)) => Ok(Extent::Requests(requests)),
        _ => duration(args).map(Extent::Time),
    }
}

fn duration(args: &RunArgs) -> Result<Duration, PlanError> {
    let duration = match (args.duration, args.seconds) {
        (Some(duration), _) => duration,
        (None, Some(seconds)) if (0.0..=604_800.0).contains(&seconds) => Duration::from_secs_f64(seconds),
        (None, Some(seconds)) => return wrong(format!("-T {seconds}: expected seconds, from 0 to 604800")),
        (None, None) => Duration::from_secs(10),
    };
    if duration < Duration::from_millis(1) {
        return wrong("--duration is too short to measure anything: expected at least 1ms, as in 10s");
    }
    Ok(duration)
}

fn from_zones(args: &RunArgs) -> Result<Vec<u8>, PlanError> {
    let mut zones = args.from_zones.clone();
    zones.sort_unstable();
    if zones.first() == Some(&0) {
        return wrong("--from-zones 0: zones are counted from 1");
    }
    if let Some(twice) = zones.windows(2).find(|pair| pair[0] == pair[1]) {
        return wrong(format!("--from-zones names zone {} twice: all zones have equal shares", twice[0]));
    }
    Ok(zones)
}

fn workload(args: &RunArgs) -> Result<Workload, PlanError> {
    let keys = args.keys.unwrap_or(1000);
    if !(1..=KEYS_MAX).contains(&keys) {
        return wrong(format!("--keys {keys}: expected 1 to {KEYS_MAX}"));
    }
    let first_key = args.first_key.unwrap_or(0);
    if first_key.checked_add(keys - 1).is_none_or(|last| last > KEYS_MAX) {
        return wrong(format!("--first-key {first_key} with --keys {keys}: the last key must be at most {KEYS_MAX}"));
    }
    refuse_beside_ycsb(args)?;
    let write_ratio = if args.load { 1.0 } else { args.write_ratio.unwrap_or(0.5) };
    if !(0.0..=1.0).contains(&write_ratio) {
        return wrong(format!("--write-ratio {write_ratio}: expected a share from 0 to 1"));
    }
    let usual = if args.workload.is_some() { RECORD_BYTES } else { 64 };
    let values = args.value_bytes.unwrap_or(ValueSize::Fixed(usual));
    let read_mode = match args.read_mode.unwrap_or(ReadModeName::Confirm) {
        ReadModeName::Confirm => ReadMode::Confirm,
        ReadModeName::Log => ReadMode::Log,
    };
    let (seed, step) = (args.seed.unwrap_or(1), keys::step(args)?);
    let (ycsb, load) = (args.workload, args.load);
    let distribution = match ycsb {
        _ if load => Distribution::Sequential,
        Some(ycsb) => Distribution::of_ycsb(ycsb),
        None => keys::distribution(args, keys)?,
    };
    let mix = ycsb.map_or_else(|| Mix::of_write_ratio(write_ratio), |ycsb| ycsb.mix());
    Ok(Workload { keys, first_key, distribution, step, ycsb, mix, read_mode, values, seed })
}

/// A named workload says which operations are made on which keys.
fn refuse_beside_ycsb(args: &RunArgs) -> Result<(), PlanError> {
    let Some(ycsb) = args.workload else { return Ok(()) };
    let parameters = [
        ("--write-ratio", args.write_ratio.is_some()),
        ("--distribution", args.distribution.is_some()),
        ("--zipf-theta", args.zipf_theta.is_some()),
        ("--zipf-s", args.zipf_s.is_some()),
        ("--zipf-v", args.zipf_v.is_some()),
        ("--conflicts", args.conflicts.is_some()),
        ("--locality", args.locality.is_some()),
        ("--mu", args.mu.is_some()),
        ("--sigma", args.sigma.is_some()),
        ("--move", args.moving == Some(true)),
        ("--lambda", args.lambda.is_some()),
        ("--exponential-mean", args.exponential_mean.is_some()),
    ];
    match parameters.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => wrong(format!(
            "{flag}: --workload {} says itself which operations are made on which keys: leave one of them out",
            ycsb.name()
        )),
        None => Ok(()),
    }
}

mod keys;
#[cfg(test)]
mod tests;
