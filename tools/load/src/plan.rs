//! What a run will do: the flags taken together, checked, with their defaults.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use wpaxos::{command::VALUE_BYTES_MAX, protocol::ReadMode, topology::Cluster, tuning::Tuning};

use crate::{
    args::{self, Arrivals, DistributionName, Durability, ReadModeName, RunArgs, TargetKind},
    local,
    workload::{Distribution, KEYS_MAX, Workload},
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
    /// Clients of a worker in each zone.
    pub clients_per_zone: usize,
    /// Where the JSON report goes.
    pub json: Option<PathBuf>,
    /// Where the interval log goes.
    pub hdr: Option<PathBuf>,
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
    /// The cluster that these addresses belong to.
    Seeds(Vec<String>),
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
    /// Flags as they were given, for the report.
    pub given: Vec<(String, Value)>,
}

/// How hard a cluster is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Closed loop.
    Closed {
        /// Requests in flight, over all workers and zones.
        in_flight: usize,
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
    pub duration: Duration,
    /// Waited for outstanding answers after the end.
    pub grace: Duration,
}

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
        let plan = Self {
            source: source(args)?,
            load: load(args)?,
            timing: timing(args)?,
            workload: workload(args)?,
            threads: at_least_one("--threads", args.threads.unwrap_or(1), 1024)?,
            from_zones: from_zones(args)?,
            clients_per_zone: at_least_one("--clients-per-zone", args.clients_per_zone.unwrap_or(1), 1024)?,
            json: args.json.clone(),
            hdr: args.hdr.clone(),
            quiet: args.quiet,
        };
        if plan.json.is_some() && plan.json == plan.hdr {
            return wrong("--json and --hdr name the same file; give each its own");
        }
        Ok(plan)
    }

    /// All settings by name, for the report.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let mut set = |name: &str, value: Value| all.insert(name.to_owned(), value);
        match self.load {
            Load::Closed { in_flight } => {
                set("loop", json!("closed"));
                set("concurrency", json!(in_flight));
            }
            Load::Open { rate, arrivals, max_in_flight } => {
                set("loop", json!("open"));
                set("rate", json!(rate));
                set("arrivals", json!(args::name_of(arrivals)));
                set("max_in_flight", json!(max_in_flight));
            }
        }
        set("warmup_s", json!(self.timing.warmup.as_secs_f64()));
        set("duration_s", json!(self.timing.duration.as_secs_f64()));
        set("grace_s", json!(self.timing.grace.as_secs_f64()));
        set("threads", json!(self.threads));
        set("clients_per_zone", json!(self.clients_per_zone));
        set("seed", json!(self.workload.seed));
        set("keys", json!(self.workload.keys));
        set("distribution", json!(self.workload.distribution.name()));
        if let Some((name, value)) = self.workload.distribution.parameter() {
            set(name, json!(value));
        }
        set("write_ratio", json!(self.workload.write_ratio));
        set("value_bytes", json!(self.workload.value_bytes));
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
            Self::Seeds(seeds) => vec![named("target", json!("seed addresses")), named("seed_addresses", json!(seeds))],
            Self::Null { .. } => vec![named("target", json!("null"))],
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
            ("local_durability", json!("none")),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
        fixed.chain(self.given.iter().cloned()).collect()
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
        ("--quorum", args.quorum.is_some()),
        ("--fn", args.node_failures.is_some()),
        ("--fz", args.zone_failures.is_some()),
        ("--steal", args.steal.is_some()),
        ("--initial-owner", args.initial_owner.is_some()),
        ("--wan", args.wan.is_some()),
        ("--regions", !args.regions.is_empty()),
        ("--tuning", args.tuning.is_some()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
}

fn source(args: &RunArgs) -> Result<Source, PlanError> {
    let null = args.target == Some(TargetKind::Null);
    let remote = match (&args.config, args.seed_address.as_slice()) {
        (Some(_), [_, ..]) => {
            return wrong("--config and --seed-address both name a cluster: give one of them");
        }
        (Some(_), []) => Some("--config"),
        (None, [_, ..]) => Some("--seed-address"),
        (None, []) => None,
    };
    let local = local_flags(args);
    if let Some(remote) = remote {
        if null {
            return wrong(format!("--target null drives no cluster: leave out {remote}"));
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
        let seeds = || Source::Seeds(args.seed_address.clone());
        return Ok(args.config.clone().map_or_else(seeds, Source::ConfigFile));
    }
    if null {
        if let Some(flag) = local.iter().find(|flag| **flag != "--zones") {
            return wrong(format!("--target null starts no cluster: leave out {flag}"));
        }
        return Ok(Source::Null { zones: zone_count(args)? });
    }
    local_plan(args).map(|plan| Source::Local(Box::new(plan)))
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
    if let Some(mode @ (Durability::Async | Durability::Sync)) = args.durability {
        let mode = args::name_of(mode);
        return wrong(format!("--durability {mode} is not available yet in a local cluster: give --durability none"));
    }
    let tuning = match &args.tuning {
        Some(file) => Tuning::load(file).map_err(|error| PlanError(format!("--tuning {error}")))?,
        None => Tuning::default(),
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
        ("tuning", json!(args.tuning)),
    ];
    let given = given.into_iter().filter(|(_, value)| !value.is_null());
    let given = given.map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(LocalPlan { zones, nodes, shards, cluster, tuning, given })
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
        return Ok(Load::Closed { in_flight });
    };
    if args.concurrency.is_some() {
        return wrong(
            "--rate (open loop) and --concurrency (closed loop) contradict each other: give one of them; \
             --max-in-flight bounds what an open loop has in flight",
        );
    }
    let rate = at_least_one("--rate", usize::try_from(rate).unwrap_or(usize::MAX), 1_000_000_000)? as u64;
    let max_in_flight = at_least_one("--max-in-flight", args.max_in_flight.unwrap_or(10_000), 1_000_000)?;
    Ok(Load::Open { rate, arrivals: args.arrivals.unwrap_or(Arrivals::Constant), max_in_flight })
}

fn timing(args: &RunArgs) -> Result<Timing, PlanError> {
    let timing = Timing {
        warmup: args.warmup.unwrap_or(Duration::from_secs(2)),
        duration: args.duration.unwrap_or(Duration::from_secs(10)),
        grace: args.grace.unwrap_or(Duration::from_secs(5)),
    };
    if timing.duration < Duration::from_millis(1) {
        return wrong("--duration is too short to measure anything: expected at least 1ms, as in 10s");
    }
    Ok(timing)
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
    let write_ratio = args.write_ratio.unwrap_or(0.5);
    if !(0.0..=1.0).contains(&write_ratio) {
        return wrong(format!("--write-ratio {write_ratio}: expected a share from 0 to 1"));
    }
    let value_bytes = args.value_bytes.unwrap_or(64);
    if value_bytes > VALUE_BYTES_MAX {
        return wrong(format!("--value-bytes {value_bytes}: expected at most {VALUE_BYTES_MAX}"));
    }
    let read_mode = match args.read_mode.unwrap_or(ReadModeName::Confirm) {
        ReadModeName::Confirm => ReadMode::Confirm,
        ReadModeName::Log => ReadMode::Log,
    };
    let seed = args.seed.unwrap_or(1);
    Ok(Workload { keys, distribution: distribution(args, keys)?, write_ratio, read_mode, value_bytes, seed })
}

fn distribution(args: &RunArgs, keys: u64) -> Result<Distribution, PlanError> {
    let name = args.distribution.unwrap_or(DistributionName::Uniform);
    let parameters = [
        ("--zipf-theta", args.zipf_theta, DistributionName::Zipfian),
        ("--conflicts", args.conflicts, DistributionName::Conflict),
        ("--locality", args.locality, DistributionName::Normal),
        ("--sigma", args.sigma, DistributionName::Normal),
        ("--exponential-mean", args.exponential_mean, DistributionName::Exponential),
    ];
    for (flag, given, owner) in parameters {
        if given.is_some() && owner != name {
            return wrong(format!(
                "{flag} belongs to --distribution {}, not to {}: leave one of them out",
                args::name_of(owner),
                args::name_of(name)
            ));
        }
    }
    let positive = |flag: &str, value: f64| {
        if value.is_finite() && value > 0.0 { Ok(value) } else { wrong(format!("{flag} {value}: expected above 0")) }
    };
    Ok(match name {
        DistributionName::Uniform => Distribution::Uniform,
        DistributionName::Sequential => Distribution::Sequential,
        DistributionName::Zipfian => match args.zipf_theta.unwrap_or(0.99) {
            theta if (0.0..=10.0).contains(&theta) => Distribution::Zipfian { theta },
            theta => return wrong(format!("--zipf-theta {theta}: expected 0 to 10")),
        },
        DistributionName::Conflict => match args.conflicts.unwrap_or(50.0) {
            percent if (0.0..=100.0).contains(&percent) => Distribution::Conflict { percent },
            percent => return wrong(format!("--conflicts {percent}: expected a percentage from 0 to 100")),
        },
        DistributionName::Exponential => Distribution::Exponential {
            mean: positive("--exponential-mean", args.exponential_mean.unwrap_or(keys as f64 / 10.0))?,
        },
        DistributionName::Normal => match (args.locality, args.sigma) {
            (Some(_), Some(_)) => {
                return wrong("--locality and --sigma both say how wide the normal distribution is: give one of them");
            }
            (None, Some(sigma)) => Distribution::NormalSigma { sigma: positive("--sigma", sigma)? },
            (locality, None) => match locality.unwrap_or(0.95) {
                locality if locality > 0.0 && locality < 1.0 => Distribution::NormalLocality { locality },
                locality => return wrong(format!("--locality {locality}: expected a share above 0 and below 1")),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn plan(flags: &str) -> Result<Plan, String> {
        let args = Cli::try_parse_from(["wpaxos-load"].into_iter().chain(flags.split_whitespace()));
        Plan::from_args(&args.map_err(|error| error.to_string())?.run).map_err(|error| error.to_string())
    }

    #[test]
    fn no_flags_are_a_good_run() {
        let plan = plan("").unwrap();
        assert_eq!(plan.load, Load::Closed { in_flight: 128 });
        assert!(matches!(plan.source, Source::Local(local) if (local.zones, local.nodes, local.shards) == (3, 3, 1)));
        assert_eq!(plan.timing.duration, Duration::from_secs(10));
        assert_eq!((plan.workload.keys, plan.workload.value_bytes), (1000, 64));
    }

    #[test]
    fn contradictions_are_refused_and_name_the_flags() {
        for (flags, named, right) in [
            ("--rate 10 --concurrency 5", "--concurrency", "give one of them"),
            ("--max-in-flight 5", "--max-in-flight", "--rate"),
            ("--arrivals poisson", "--arrivals", "--rate"),
            ("--locality 0.9", "--locality", "--distribution normal"),
            ("--sigma 9 --locality 0.9 --distribution normal", "--sigma", "give one of them"),
            ("--zipf-theta 1.2 --distribution uniform", "--zipf-theta", "--distribution zipfian"),
            ("--conflicts 5 --distribution normal", "--conflicts", "--distribution conflict"),
            ("--exponential-mean 5", "--exponential-mean", "--distribution exponential"),
            ("--config a.toml --zones 3", "--zones", "--config"),
            ("--seed-address 127.0.0.1:1 --tuning t.toml", "--tuning", "--seed-address"),
            ("--seed-address 127.0.0.1:1 --config a.toml", "--config", "give one of them"),
            ("--target null --config a.toml", "--config", "leave out"),
            ("--target null --nodes 3", "--nodes", "leave out"),
            ("--fn 1 --quorum majority", "--fn", "floor"),
            ("--regions a,b,c", "--regions", "--wan"),
            ("--json a --hdr a", "--json", "--hdr"),
        ] {
            let error = plan(flags).unwrap_err();
            assert!(error.contains(named) && error.contains(right), "{flags}: {error}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_and_say_what_is_right() {
        for (flags, named, right) in [
            ("--keys 0", "--keys 0", "expected 1 to"),
            ("--write-ratio 1.5", "--write-ratio", "0 to 1"),
            ("--write-ratio NaN", "--write-ratio", "0 to 1"),
            ("--conflicts 101 --distribution conflict", "--conflicts", "0 to 100"),
            ("--locality 1 --distribution normal", "--locality", "below 1"),
            ("--zipf-theta -1 --distribution zipfian", "--zipf-theta", "0 to 10"),
            ("--exponential-mean 0 --distribution exponential", "--exponential-mean", "above 0"),
            ("--value-bytes 9999999", "--value-bytes", "at most"),
            ("--threads 0", "--threads", "expected 1"),
            ("--concurrency 0", "--concurrency", "expected 1"),
            ("--rate 0", "--rate", "expected 1"),
            ("--duration 0s", "--duration", "at least"),
            ("--from-zones 1,1", "--from-zones", "twice"),
            ("--from-zones 0", "--from-zones", "from 1"),
            ("--zones 0", "--zones", "expected 1 to 128"),
            ("--zones 20 --nodes 20", "--zones", "at most 128"),
            ("--fn 3", "--fn", "0 to 2"),
            ("--fz 3", "--fz", "0 to 2"),
            ("--durability sync", "--durability sync", "--durability none"),
            ("--durability async", "--durability async", "--durability none"),
            ("--quorum grod", "--quorum", "grid"),
            ("--quorum flexible:2:2", "--quorum", "must be more than 9"),
            ("--quorum floor:1", "--quorum", "takes no"),
            ("--steal often", "--steal", "consecutive"),
            ("--steal consecutive:x", "--steal", "number"),
            ("--initial-owner 9.9", "--initial-owner", "members are"),
            ("--wan no-such-file.csv", "--wan", "no-such-file.csv"),
            ("--tuning no-such-file.toml", "--tuning", "no-such-file.toml"),
            ("--seed-address nowhere", "--seed-address", "HOST:PORT"),
        ] {
            let error = plan(flags).unwrap_err();
            assert!(error.contains(named) && error.contains(right), "{flags}: {error}");
        }
    }

    #[test]
    fn the_settings_hold_what_was_asked_for() {
        let settings = plan("--rate 900 --distribution zipfian --zones 5 --fz 1 --seed 7").unwrap().settings();
        assert_eq!(settings["rate"], json!(900));
        assert_eq!(settings["zipf_theta"], json!(0.99));
        assert_eq!((&settings["local_zones"], &settings["fz"]), (&json!(5), &json!(1)));
        assert_eq!(settings["seed"], json!(7));
        assert!(!settings.contains_key("concurrency") && !settings.contains_key("steal"));
    }
}
