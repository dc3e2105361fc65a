//! The command line.

use std::path::PathBuf;

use clap::Parser;
use wpaxos::mutant::Mutant;

/// Runs simulated clusters, as they are shipped, through everything that can go wrong, and says what they did wrong.
///
/// Each seed is a run of its own: it draws a topology, quorums, a tuning, a workload and a mix of faults. A run that fails
/// prints what it was about, what was under way, and the command that makes it again. Exit codes: 0 nothing was found wrong;
/// 1 something was; 2 the command line is wrong; 3 the JSON file, or standard output,
/// cannot be written.
#[derive(Parser, Clone, Debug)]
#[command(name = "wpaxos-sim", version, about)]
#[command(group(clap::ArgGroup::new("stepped").args(["seed", "hostile"]).multiple(true)))]
pub struct Args {
    /// Make only the run of this seed.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "first", "minutes"])]
    pub seed: Option<u64>,
    /// How many seeds to run.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, conflicts_with = "minutes")]
    pub seeds: u64,
    /// The first of them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub first: u64,
    /// Run seed after seed for so many minutes, instead of a number of them.
    #[arg(long, value_name = "M", value_parser = minutes, allow_hyphen_values = true)]
    pub minutes: Option<f64>,
    /// Run logs as they are shipped, each on a simulated block device, without clusters around them.
    #[arg(long, conflicts_with_all = ["threads", "shrink", "trace", "without", "operations", "steps", "json"])]
    pub logs: bool,
    /// Threads; as many as there are cores if absent.
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Go on after a run that fails.
    #[arg(long)]
    pub go_on: bool,
    /// Plant a known bug, to see whether it is found. `--list-mutants` names them.
    #[arg(long, value_name = "NAME", value_parser = mutant)]
    pub mutant: Option<Mutant>,
    /// Name the known bugs that can be planted, and end.
    #[arg(long)]
    pub list_mutants: bool,
    /// Write everything that happens in the run to the standard error.
    #[arg(long, requires = "seed")]
    pub trace: bool,
    /// Look for a shorter schedule of faults and fewer operations with which the run still fails.
    #[arg(long)]
    pub shrink: bool,
    /// Leave these faults out, by their numbers in the schedule.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', requires = "seed")]
    pub without: Vec<usize>,
    /// Have clients begin at most so many operations.
    #[arg(long, value_name = "N", requires = "seed")]
    pub operations: Option<usize>,
    /// End the run after so many events.
    #[arg(long, value_name = "N", requires = "stepped")]
    pub steps: Option<u64>,
    /// Instead of whole clusters: a few cores, one of whose peers is hostile. It is accepted and sends what it likes, with
    /// right checksums; no other node may panic, or log or keep what it cannot read again.
    #[arg(long, conflicts_with_all = ["mutant", "trace", "shrink", "without", "operations", "json"])]
    pub hostile: bool,
    /// Also write what was found as JSON to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let wanted = || format!("'{text}' is not a number of minutes, above 0 and at most a year");
    text.parse().ok().filter(|minutes| *minutes > 0.0 && *minutes <= 525_600.0).ok_or_else(wanted)
}

fn threads(text: &str) -> Result<usize, String> {
    let wanted = || format!("'{text}' is not a number of threads, at least 1");
    text.parse().ok().filter(|threads| *threads >= 1).ok_or_else(wanted)
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let near = || {
        let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        format!("there is no mutant '{name}'; there are {}", names.join(", "))
    };
    Mutant::named(name).ok_or_else(near)
}
