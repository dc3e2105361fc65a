//! The command line: every flag with its unit and its default. What the flags mean together is [`crate::plan`]'s.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Drives a wpaxos cluster and reports latency as HDR histograms.
///
/// With no subcommand it does `run`, and with no flag at all it starts a cluster of its own on loopback
/// (3 zones of 3 nodes) and keeps 128 requests in flight for 10 seconds.
///
/// Exit codes: 0 a valid run was reported; 1 the run could not be made; 2 a flag is wrong;
/// 3 a run was reported that is not valid (interrupted, too many errors, behind its schedule), and the report says why.
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
    /// Show saved runs side by side: throughput, percentiles, and the settings in which they differ
    Compare(CompareArgs),
}

/// The flags of `compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Files written by `run --json`, at least two; the first is what the others are compared with
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    pub files: Vec<PathBuf>,
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
    /// What a local node's answer waits for: nothing, a write, or a write that is synced. Only `none` is available so
    /// far [default: none]
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Own local cluster")]
    pub durability: Option<Durability>,
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
    /// Tuning file of the local cluster's nodes [default: the built-in tuning]
    #[arg(long, value_name = "FILE", help_heading = "Own local cluster")]
    pub tuning: Option<PathBuf>,

    /// Cluster file of a running cluster
    #[arg(long, value_name = "FILE", help_heading = "Somebody else's cluster")]
    pub config: Option<PathBuf>,
    /// Address of any shard of any node of a running cluster; may be given several times
    #[arg(long, value_name = "HOST:PORT", help_heading = "Somebody else's cluster")]
    pub seed_address: Vec<String>,
    /// What to drive: `native` is the cluster; `null` answers at once without any cluster, which measures this tool
    /// [default: native]
    #[arg(long, value_enum, value_name = "TARGET", help_heading = "Somebody else's cluster")]
    pub target: Option<TargetKind>,

    /// Closed loop: requests in flight, over all workers and zones together [default: 128]
    #[arg(long, value_name = "COUNT", help_heading = "Load")]
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
    /// How long to measure, as in 500ms, 10s, 2m, 1h [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub duration: Option<Duration>,
    /// How long to drive before measuring begins [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub warmup: Option<Duration>,
    /// How long to wait for outstanding answers after the end; what is missing then is the error `unanswered`
    /// [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub grace: Option<Duration>,
    /// Worker threads; each has connections of its own to every zone [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Load")]
    pub threads: Option<usize>,
    /// Zones that the load comes from, in equal shares, as in 1,3 [default: all]
    #[arg(long, value_name = "ZONES", value_delimiter = ',', help_heading = "Load")]
    pub from_zones: Vec<u8>,
    /// Clients (with connections of their own) of each worker in each zone [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Load")]
    pub clients_per_zone: Option<usize>,

    /// Keys in the key space [default: 1000]
    #[arg(long, value_name = "COUNT", help_heading = "Workload")]
    pub keys: Option<u64>,
    /// How keys are drawn [default: uniform]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Workload")]
    pub distribution: Option<DistributionName>,
    /// zipfian: the exponent; the key of rank r is drawn in proportion to 1/r^THETA [default: 0.99]
    #[arg(long, value_name = "THETA", allow_negative_numbers = true, help_heading = "Workload")]
    pub zipf_theta: Option<f64>,
    /// conflict: percent of requests that go to the one hot key; the others go to keys that only their zone uses
    /// [default: 50]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true, help_heading = "Workload")]
    pub conflicts: Option<f64>,
    /// normal: share of a zone's requests that fall into the zone's own part of the key space, above 1/zones and below
    /// 1 [default: 0.95]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Workload")]
    pub locality: Option<f64>,
    /// normal: standard deviation in keys, instead of --locality
    #[arg(long, value_name = "KEYS", allow_negative_numbers = true, help_heading = "Workload")]
    pub sigma: Option<f64>,
    /// exponential: mean in keys before the distribution is cut off at --keys [default: a tenth of --keys]
    #[arg(long, value_name = "KEYS", allow_negative_numbers = true, help_heading = "Workload")]
    pub exponential_mean: Option<f64>,
    /// Share of requests that write, 0 to 1; the others read [default: 0.5]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Workload")]
    pub write_ratio: Option<f64>,
    /// How reads are answered: `confirm` by the owner once a quorum has confirmed it, `log` as a command in the log
    /// [default: confirm]
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Workload")]
    pub read_mode: Option<ReadModeName>,
    /// Size of written values in bytes, pseudo-random [default: 64]
    #[arg(long, value_name = "BYTES", help_heading = "Workload")]
    pub value_bytes: Option<usize>,
    /// Seed of keys, operations, values and Poisson arrivals [default: 1]
    #[arg(long, value_name = "NUMBER", help_heading = "Workload")]
    pub seed: Option<u64>,

    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Write an HdrHistogram interval log (one interval per second, values in nanoseconds) to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub hdr: Option<PathBuf>,
    /// No progress lines on stderr
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

/// `--durability`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Answers wait for no log.
    None,
    /// Answers wait until the log is written.
    Async,
    /// Answers wait until the log is synced.
    Sync,
}

/// `--target`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// The cluster, in its own protocol.
    Native,
    /// Nobody: every request is answered at once.
    Null,
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
    /// A few keys are popular, by rank.
    Zipfian,
    /// Every zone around its own mean, on a ring.
    Normal,
    /// Low keys are popular, cut off at the last key.
    Exponential,
    /// One hot key, and keys that only one zone uses.
    Conflict,
    /// One key after another.
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
            ("--distribution", "zipfan", "zipfian"),
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
