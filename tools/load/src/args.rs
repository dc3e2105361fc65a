//! The command line: every flag with its unit and its default. What the flags mean together is [`crate::plan`]'s.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use wpaxos::tuning::Durability;

use crate::mix::{ValueSize, Ycsb};

/// Drives a wpaxos cluster and reports latency as HDR histograms.
///
/// With no subcommand it does `run`, and with no flag at all it starts a cluster of its own on loopback
/// (3 zones of 3 nodes) and keeps 128 requests in flight for 10 seconds.
///
/// Paxi's benchmark settings are understood under their own names too (T, N, K, W, Throttle, Concurrency, …), as flags
/// and from its JSON by --benchmark.
///
/// Exit codes: 0 a valid run was reported; 1 the run could not be made; 2 a flag is wrong;
/// 3 a run was reported that is not valid (interrupted, too many errors, behind its schedule, a linearizability check
/// that came to no end), and the report says why; 4 the history is not linearizable.
#[derive(Parser, Debug)]
#[command(name = "wpaxos-load", version, max_term_width = 110, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Drive a cluster (its own local one if none is named); print and save an HDR report
    Run(Box<RunArgs>),
    /// Show saved runs side by side: throughput, percentiles, the settings in which they differ, and whether the difference is
    /// real. Runs with the same settings count as repeats
    Compare(CompareArgs),
    /// Drive several tunings harder and harder until the knee, in turns, each on a cluster of its own; save all runs,
    /// medians and a page
    Sweep(Box<SweepArgs>),
    /// Judge a history that `run --history-csv` wrote: is it linearizable? Exit code 0 if so, 4 if not, 3 if the search
    /// came to no end, 1 if the file cannot be read
    Check(CheckArgs),
}

/// The flags of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Rows KEY,INPUT,OUTPUT,START,END, perhaps with a VERSION, as Paxi's checker reads them: whole numbers, times in
    /// nanoseconds. A write has an INPUT, a read an OUTPUT (0: no value); END 9223372036854775807: no answer came. At
    /// most 20,000,000 rows
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// No key had a value before the first row. Without it the value that somebody read and no row wrote is taken to
    /// have been there
    #[arg(long)]
    pub fresh: bool,
}

/// The flags of `compare`.
#[derive(Args, Debug, Default)]
pub struct CompareArgs {
    /// Files written by `run --json`, of which those with the same settings are repeats of one thing; or a sweep.json,
    /// of which the runs at the knees are taken. The first is what the others are compared with
    #[arg(required_unless_present = "labels", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Take these runs as repeats of one thing, whatever their settings, and call it NAME; they come before the other
    /// files
    #[arg(long = "label", value_name = "NAME=FILE,FILE", value_parser = parse_label)]
    pub labels: Vec<Label>,
    /// Write the comparison as a page to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Runs that are taken as repeats of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What it is called.
    pub name: String,
    /// The files; at least one.
    pub files: Vec<PathBuf>,
}

/// Reads `name=a.json,b.json`.
fn parse_label(text: &str) -> Result<Label, String> {
    let wrong = || format!("'{text}' is no label: expected a name and files, as in before=a1.json,a2.json");
    let (name, files) = text.split_once('=').ok_or_else(wrong)?;
    let files: Vec<PathBuf> = files.split(',').map(PathBuf::from).collect();
    if name.trim().is_empty() || files.iter().any(|file| file.as_os_str().is_empty()) {
        return Err(wrong());
    }
    Ok(Label { name: name.trim().to_owned(), files })
}

/// The flags of `sweep`: those of `run`, and how it goes on.
#[derive(Args, Debug, Clone)]
pub struct SweepArgs {
    /// Requests in flight at each level of a closed loop, as in 1,16,256 [default: 1,4,16,64,256,1024]
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', help_heading = "Sweep")]
    pub depths: Vec<u64>,
    /// Requests per second at each level of an open loop, as in 10000,20000
    #[arg(long, value_name = "RATES", value_delimiter = ',', help_heading = "Sweep")]
    pub rates: Vec<u64>,
    /// Runs of each tuning at each level, which take turns; four are the fewest that can tell a difference from chance
    /// [default: 5]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Sweep")]
    pub repeats: Option<u32>,
    /// A tuning whose median p99 is above this is behind its knee [default: 10ms]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Sweep")]
    pub p99_bound: Option<Duration>,
    /// Directory for every run with its interval log, sweep.json and sweep.html; made if it is not there [default: sweep]
    #[arg(long, value_name = "DIR", default_value = "sweep", hide_default_value = true, help_heading = "Sweep")]
    pub out: PathBuf,
    /// What all runs have in common.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The flags of `run`. Absent is not the same as default here, so that contradictions can be told.
#[derive(Args, Debug, Default, Clone)]
pub struct RunArgs {
    /// Zones of the local cluster, 1 to 128 [default: 3]
    #[arg(long, value_name = "COUNT", help_heading = "Own local cluster")]
    pub zones: Option<u8>,
    /// Nodes in each zone of the local cluster, 1 to 128 [default: 3]
    #[arg(long, value_name = "COUNT", help_heading = "Own local cluster")]
    pub nodes: Option<u8>,
    /// Shards (executors) of each node of the local cluster, from 1 [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Own local cluster")]
    pub shards: Option<u16>,
    /// What an answer of a local node waits for: `sync`, until it survives a crash of the machine; `async`, of the process;
    /// `none` keeps nothing [default: sync]
    #[arg(long, value_name = "MODE", help_heading = "Own local cluster")]
    pub durability: Option<Durability>,
    /// Where local nodes keep their state, in DIR/1.1 and so on [default: a directory for temporary files, removed at the end]
    #[arg(long, value_name = "DIR", help_heading = "Own local cluster")]
    pub data: Option<PathBuf>,
    /// Quorum system: floor, grid, majority, flexible:Q1:Q2 (nodes of phase 1 and 2), zone-majority, all, count:NODES,
    /// fast [default: floor]
    #[arg(long, value_name = "SYSTEM", help_heading = "Own local cluster")]
    pub quorum: Option<String>,
    /// Node failures that quorums of `floor` tolerate in a zone [default: 1 from 3 nodes in a zone, else 0]
    #[arg(long = "fn", value_name = "COUNT", help_heading = "Own local cluster")]
    pub node_failures: Option<u8>,
    /// Zone failures that quorums of `floor` tolerate [default: 0]
    #[arg(long = "fz", value_name = "COUNT", help_heading = "Own local cluster")]
    pub zone_failures: Option<u8>,
    /// When an object moves to another zone: none, immediate, consecutive:HITS, majority:INTERVAL_MS,
    /// ema:ALPHA:INTERVAL_MS, cost:GAIN:WINDOW_MS:HOLD_MS; what is left out at the end has its default
    /// [default: consecutive:3]
    #[arg(long, value_name = "POLICY", help_heading = "Own local cluster")]
    pub steal: Option<String>,
    /// Who owns an object that nobody has taken: first-touch (the first node asked), home (a node that follows from the
    /// key), or one node for everything, as in 1.1 [default: first-touch]
    #[arg(long, value_name = "OWNER", help_heading = "Own local cluster")]
    pub initial_owner: Option<String>,
    /// Table of round-trip times, lines REGION,REGION,MILLISECONDS, which the local cluster emulates between its zones
    /// [default: no delay]
    #[arg(long, value_name = "FILE", help_heading = "Own local cluster")]
    pub wan: Option<PathBuf>,
    /// The region of each zone in the --wan table, in order [default: the first ones in the table]
    #[arg(long, value_name = "REGIONS", value_delimiter = ',', help_heading = "Own local cluster")]
    pub regions: Vec<String>,
    /// Tuning file of the local cluster's nodes; `sweep` takes several [default: the built-in tuning]
    #[arg(long, value_name = "FILE", help_heading = "Own local cluster")]
    pub tuning: Vec<PathBuf>,

    /// Cluster file of a running cluster, ours or Paxi's JSON
    #[arg(long, value_name = "FILE", help_heading = "Somebody else's cluster")]
    pub config: Option<PathBuf>,
    /// Master of a running cluster, which tells where its nodes are; port 1735 if none is given. It is waited for up to a
    /// minute
    #[arg(long, value_name = "HOST[:PORT]", help_heading = "Somebody else's cluster")]
    pub master: Option<String>,
    /// Address of any shard of any node of a running cluster; may be given several times
    #[arg(long, value_name = "HOST:PORT", help_heading = "Somebody else's cluster")]
    pub seed_address: Vec<String>,
    /// What to drive: `native` is a wpaxos cluster in its own protocol; http://HOST:PORT a REST interface as Paxi and wpaxos
    /// have it; resp://HOST:PORT the Redis protocol; several addresses are separated by commas, and clients are spread over
    /// them. `null` answers at once without any cluster, which measures this tool [default: native]
    #[arg(long, value_name = "TARGET", help_heading = "Somebody else's cluster")]
    pub target: Option<TargetKind>,
    /// http, resp: connections of each client. Requests in flight beyond that are pipelined [default: 1 for resp; for http as
    /// many as the client has requests in flight, up to 1024]
    #[arg(long, value_name = "COUNT", help_heading = "Somebody else's cluster")]
    pub connections: Option<usize>,
    /// resp: send `WAIT REPLICAS 1000` behind each batch of writes, and count them as done only if so many replicas have
    /// them [default: 0, none]
    #[arg(long, value_name = "REPLICAS", help_heading = "Somebody else's cluster")]
    pub resp_wait: Option<u32>,

    /// Closed loop: requests in flight, over all workers and zones together [default: 128]
    #[arg(long, visible_alias = "Concurrency", value_name = "COUNT", help_heading = "Load")]
    pub concurrency: Option<usize>,
    /// Open loop: requests per second, on a schedule fixed in advance; latency counts from the scheduled time
    #[arg(long, value_name = "PER_SECOND", help_heading = "Load")]
    pub rate: Option<u64>,
    /// Open loop: how the scheduled times are spaced [default: constant]
    #[arg(long, value_enum, value_name = "SPACING", help_heading = "Load")]
    pub arrivals: Option<Arrivals>,
    /// Open loop: requests in flight over all workers at which further ones wait (their latency still counts from the
    /// scheduled time) [default: 10000]
    #[arg(long, value_name = "COUNT", help_heading = "Load")]
    pub max_in_flight: Option<usize>,
    /// Closed loop: at most so many requests per second, all workers together, 0 for no limit. What was missed is not made
    /// up for, but within a millisecond [default: 0]
    #[arg(long, visible_alias = "Throttle", value_name = "PER_SECOND", help_heading = "Load")]
    pub throttle: Option<u64>,
    /// Closed loop: make so many requests instead of measuring for a time; without a warm-up unless --warmup asks for one
    #[arg(long, visible_alias = "N", value_name = "COUNT", help_heading = "Load")]
    pub requests: Option<u64>,
    /// Paxi's T: how long to measure in seconds, or 0 to make --requests (N) requests; else the same as --duration
    #[arg(short = 'T', long = "T", value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Load")]
    pub seconds: Option<f64>,
    /// Only fill the key space: write every key once, and end. For a cluster that was started elsewhere
    #[arg(long, help_heading = "Load")]
    pub load: bool,
    /// Make the run so many times, one after the other; the exit code is that of the worst, and output files are numbered
    /// [default: 1]
    #[arg(short = 'r', long, value_name = "COUNT", help_heading = "Load")]
    pub rounds: Option<u32>,
    /// Paxi's JSON: the settings of its `benchmark` block, as far as flags do not say otherwise
    #[arg(long, value_name = "FILE", help_heading = "Load")]
    pub benchmark: Option<PathBuf>,
    /// Refused: Paxi's README has seconds here and threads in -T
    #[arg(short = 't', hide = true, value_name = "SECONDS", allow_hyphen_values = true)]
    pub readme_seconds: Option<String>,
    /// How long to measure, as in 500ms, 10s, 2m, 1h [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub duration: Option<Duration>,
    /// How long to drive before measuring begins [default: 2s, or 0s with --requests and --load]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub warmup: Option<Duration>,
    /// How long the load goes on behind what is measured, so that the last requests meet the same load as the first
    /// [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub cool_down: Option<Duration>,
    /// How long a client waits for the answer to a request, with all its attempts; then it has failed
    /// (`timeout_maybe_done`) [default: 6s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub request_timeout: Option<Duration>,
    /// How long to wait for outstanding answers after the end; what is missing then is the error `unanswered`
    /// [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub grace: Option<Duration>,
    /// Worker threads; each has connections of its own to every zone [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Load")]
    pub threads: Option<usize>,
    /// Workers look for answers without sleeping: for workers with cores of their own, as beside executors that poll
    #[arg(long, help_heading = "Load")]
    pub spin: bool,
    /// Zones that the load comes from, in equal shares, as in 1,3 [default: all]
    #[arg(long, value_name = "ZONES", value_delimiter = ',', help_heading = "Load")]
    pub from_zones: Vec<u8>,
    /// Clients (with connections of their own) of each worker in each zone [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Load")]
    pub clients_per_zone: Option<usize>,

    /// A core workload of YCSB by name, ycsb-a to ycsb-f or just a to f: operations, distribution and size of values as it
    /// defines them. Its records are written first where the cluster is the tool's own, or with --preload
    #[arg(long, value_name = "NAME", help_heading = "Workload")]
    pub workload: Option<Ycsb>,
    /// Write every key once before the warm-up
    #[arg(long, help_heading = "Workload")]
    pub preload: bool,
    /// Keys in the key space [default: 1000]
    #[arg(short = 'k', long, visible_alias = "K", value_name = "COUNT", help_heading = "Workload")]
    pub keys: Option<u64>,
    /// Number of the first key: keys are numbered from here to here + --keys - 1 [default: 0]
    #[arg(long, visible_alias = "Min", value_name = "NUMBER", help_heading = "Workload")]
    pub first_key: Option<u64>,
    /// How keys are drawn; Paxi's `order` is `sequential` [default: uniform]
    #[arg(long, visible_alias = "Distribution", value_enum, value_name = "NAME", help_heading = "Workload")]
    pub distribution: Option<DistributionName>,
    /// zipfian: the exponent; the key of rank r is drawn in proportion to 1/r^THETA [default: 0.99]
    #[arg(long, value_name = "THETA", allow_negative_numbers = true, help_heading = "Workload")]
    pub zipf_theta: Option<f64>,
    /// zipfian, zipfan: the exponent, above 1; key n is drawn in proportion to 1/(V + n)^S, n from 0 [default: 2]
    #[arg(
        long,
        visible_alias = "ZipfianS",
        value_name = "S",
        allow_negative_numbers = true,
        help_heading = "Workload"
    )]
    pub zipf_s: Option<f64>,
    /// zipfian, zipfan: the offset V of --zipf-s, from 1 [default: 1]
    #[arg(
        long,
        visible_alias = "ZipfianV",
        value_name = "V",
        allow_negative_numbers = true,
        help_heading = "Workload"
    )]
    pub zipf_v: Option<f64>,
    /// conflict: percent of requests that go to the one hot key, the first; the others go to keys that only their zone
    /// uses [default: 50]
    #[arg(
        short = 'c',
        long,
        visible_alias = "Conflicts",
        value_name = "PERCENT",
        allow_negative_numbers = true,
        help_heading = "Workload"
    )]
    pub conflicts: Option<f64>,
    /// normal: share of a zone's requests that fall into the zone's own part of the key space, above 1/zones and below
    /// 1 [default: 0.95]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Workload")]
    pub locality: Option<f64>,
    /// normal: number of the key in the middle, the same for all zones; the key space is a ring [default: the middle of
    /// each zone's own part]
    #[arg(long, visible_alias = "Mu", value_name = "KEY", allow_negative_numbers = true, help_heading = "Workload")]
    pub mu: Option<f64>,
    /// normal: standard deviation in keys, instead of --locality [default: 60 with --mu]
    #[arg(
        long,
        visible_alias = "Sigma",
        value_name = "KEYS",
        allow_negative_numbers = true,
        help_heading = "Workload"
    )]
    pub sigma: Option<f64>,
    /// normal: whether the middle moves by one key every --speed milliseconds, around the ring [default: false]
    #[arg(
        long = "move",
        visible_alias = "Move",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Workload"
    )]
    pub moving: Option<bool>,
    /// normal: milliseconds between two steps of --move, from 1 [default: 500]
    #[arg(long, visible_alias = "Speed", value_name = "MS", help_heading = "Workload")]
    pub speed: Option<u64>,
    /// exponential: rate per key, instead of --exponential-mean, which is 1 / LAMBDA
    #[arg(
        long,
        visible_alias = "Lambda",
        value_name = "LAMBDA",
        allow_negative_numbers = true,
        help_heading = "Workload"
    )]
    pub lambda: Option<f64>,
    /// exponential: mean in keys before the distribution is cut off at --keys [default: a tenth of --keys]
    #[arg(long, value_name = "KEYS", allow_negative_numbers = true, help_heading = "Workload")]
    pub exponential_mean: Option<f64>,
    /// Share of requests that write, 0 to 1; the others read [default: 0.5]
    #[arg(long, visible_alias = "W", value_name = "SHARE", allow_negative_numbers = true, help_heading = "Workload")]
    pub write_ratio: Option<f64>,
    /// How reads are answered: `confirm` by the owner once a quorum has confirmed it, `log` as a command in the log
    /// [default: confirm]
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Workload")]
    pub read_mode: Option<ReadModeName>,
    /// Size of written values in bytes, or how sizes are distributed: 64, uniform:MIN-MAX, zipfian:MIN-MAX (short ones are
    /// popular), exponential:MEAN. Values are pseudo-random; with a history each begins with a number of its own
    /// [default: 64, and 1000 with --workload]
    #[arg(long, value_name = "BYTES", help_heading = "Workload")]
    pub value_bytes: Option<ValueSize>,
    /// Seed of keys, operations, values and Poisson arrivals [default: 1]
    #[arg(long, value_name = "NUMBER", help_heading = "Workload")]
    pub seed: Option<u64>,

    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Write the report as a page that stands alone to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,
    /// Write an HdrHistogram interval log (one interval per second, values in nanoseconds) to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub hdr: Option<PathBuf>,
    /// Write every response time of the measured requests to this file, sorted, in milliseconds, one per line, as Paxi's
    /// `latency`. Of more than 10,000,000 a random sample is kept, and the report says so
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub latency_file: Option<PathBuf>,
    /// Write the history to this file: rows KEY,INPUT,OUTPUT,START,END,VERSION, as `check` and Paxi's checker read it
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub history_csv: Option<PathBuf>,
    /// Record the history from the first request on, and check at the end whether it is linearizable. Nobody else may
    /// write the keys meanwhile [default: false]
    #[arg(
        long,
        visible_alias = "LinearizabilityCheck",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Output"
    )]
    pub linearizability_check: Option<bool>,
    /// Operations of the history that are kept, at 56 bytes each while it is recorded and up to 450 when it is checked;
    /// later ones are left out, and the report says so; 1 to 50,000,000 [default: 1000000]
    #[arg(long, value_name = "COUNT", help_heading = "Output")]
    pub history_max: Option<u64>,
    /// No progress lines on stderr
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

/// `--target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// The cluster, in its own protocol.
    Native,
    /// Nobody: every request is answered at once.
    Null,
    /// A REST interface at these addresses.
    Http(Vec<String>),
    /// The Redis protocol at these addresses.
    Resp(Vec<String>),
}

impl FromStr for TargetKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let addresses = |rest: &str| {
            rest.split(',')
                .map(|address| {
                    let address = address.trim_end_matches('/');
                    resolve(address).map(|_| address.to_owned())
                })
                .collect::<Result<Vec<_>, _>>()
        };
        match text.split_once("://") {
            None if text == "native" => Ok(Self::Native),
            None if text == "null" => Ok(Self::Null),
            Some(("http", rest)) => addresses(rest).map(Self::Http),
            Some(("resp" | "redis", rest)) => addresses(rest).map(Self::Resp),
            _ => Err(format!(
                "'{text}' is no target: expected native, null, http://HOST:PORT or resp://HOST:PORT, perhaps with more addresses \
                 behind commas"
            )),
        }
    }
}

/// `--arrivals`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// Equal gaps.
    Constant,
    /// Exponentially distributed gaps, as of many independent users.
    Poisson,
}

/// `--distribution`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistributionName {
    /// Every key alike.
    Uniform,
    /// A few keys are popular, by rank: --zipf-theta, or --zipf-s and --zipf-v.
    Zipfian,
    /// The same under Paxi's name: --zipf-s and --zipf-v.
    Zipfan,
    /// Every zone around its own mean, on a ring.
    Normal,
    /// Low keys are popular, cut off at the last key.
    Exponential,
    /// One hot key, and keys that only one zone uses.
    Conflict,
    /// One key after another.
    #[value(alias = "order")]
    Sequential,
}

/// `--read-mode`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadModeName {
    /// The owner confirms that it still is one.
    Confirm,
    /// A command in the log.
    Log,
}

/// The name of a value as it is written on the command line.
pub fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Resolves `host:port`.
///
/// # Errors
/// Says what an address looks like, or that this one is not known.
pub fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    use std::net::ToSocketAddrs;
    let found: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|error| format!("'{address}' is not an address ({error}): expected HOST:PORT, as in 127.0.0.1:7000"))?
        .collect();
    if found.is_empty() { Err(format!("'{address}' names no address")) } else { Ok(found) }
}

/// Reads a time such as `500ms`, `1.5s`, `2m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time: expected a number and us, ms, s, m or h, as in 500ms or 10s");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let most = 7.0 * 24.0 * 3600.0;
    if number * seconds > most {
        return Err(format!("'{text}' is too long: at most 168h"));
    }
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_what_happens_without_a_subcommand() {
        let bare = Cli::try_parse_from(["wpaxos-load", "--rate", "500"]).unwrap();
        assert!(bare.command.is_none());
        assert_eq!(bare.run.rate, Some(500));
        let named = Cli::try_parse_from(["wpaxos-load", "run", "--rate", "500"]).unwrap();
        assert!(matches!(named.command, Some(Command::Run(run)) if run.rate == Some(500)));
    }

    #[test]
    fn paxis_names_are_aliases_of_ours() {
        let both = [
            "--N 5|--requests 5",
            "--K 7|--keys 7",
            "-k 7|--keys 7",
            "--W 0.3|--write-ratio 0.3",
            "--Throttle 9|--throttle 9",
            "--Concurrency 4|--concurrency 4",
            "--Distribution order|--distribution sequential",
            "--Conflicts 40|--conflicts 40",
            "-c 40|--conflicts 40",
            "--Min 3|--first-key 3",
            "--Mu 8|--mu 8",
            "--Sigma 2|--sigma 2",
            "--Move|--move=true",
            "--Move=false|--move=false",
            "--Speed 100|--speed 100",
            "--ZipfianS 1.5|--zipf-s 1.5",
            "--ZipfianV 2|--zipf-v 2",
            "--Lambda 0.1|--lambda 0.1",
            "--LinearizabilityCheck|--linearizability-check=true",
            "-r 2|--rounds 2",
            "-T 6|--T 6",
        ];
        let parse = |flags: &str| {
            let words = ["wpaxos-load"].into_iter().chain(flags.split_whitespace());
            format!("{:?}", Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{flags}: {error}")).run)
        };
        for pair in both {
            let (paxis, ours) = pair.split_once('|').unwrap();
            assert_eq!(parse(paxis), parse(ours), "{pair}");
            assert_ne!(parse(paxis), parse(""), "{pair}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, micros) in
            [("10s", 10_000_000), ("500ms", 500_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("7us", 7), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "10 s", "10d", "1.2.3s", "999999h", "ten"] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(text) && (error.contains("10s") || error.contains("168h")), "{text}: {error}");
        }
    }

    #[test]
    fn every_flag_has_help_and_bad_values_name_their_flag() {
        let run = Cli::command();
        for arg in run.get_arguments() {
            assert!(arg.get_help().is_some(), "--{} has no help", arg.get_id());
        }
        for (flag, value, hint) in [
            ("--duration", "10", "10s"),
            ("--keys", "many", "--keys"),
            ("--distribution", "zipfain", "zipfian"),
            ("--durability", "fsync", "sync"),
            ("--read-mode", "dirty", "confirm"),
        ] {
            let error = Cli::try_parse_from(["wpaxos-load", "run", flag, value]).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(hint), "{error}");
        }
    }

    #[test]
    fn addresses_resolve_or_say_what_is_right() {
        assert_eq!(resolve("127.0.0.1:7000").unwrap(), ["127.0.0.1:7000".parse().unwrap()]);
        assert!(resolve("127.0.0.1").unwrap_err().contains("HOST:PORT"));
    }
}
