//! The tool's own cluster, in this process on loopback: from flags to a [`Cluster`], and from there to running nodes.
//!
//! The flags are turned into a cluster file, so that they mean the same, have the same defaults and are checked
//! the same as there.

use std::{fmt::Write as _, fs, path::Path};

use wpaxos::{
    config::ConfigError,
    local::{LocalCluster, LocalOptions},
    topology::Cluster,
};

use crate::{args::RunArgs, plan::LocalPlan, target::TargetError};

/// The parameters of each quorum system, in the order in which they follow its name.
const QUORUM_PARAMETERS: &[(&str, &[&str])] = &[("flexible", &["q1", "q2"]), ("count", &["n"])];
/// The parameters of each steal policy.
const STEAL_PARAMETERS: &[(&str, &[&str])] = &[
    ("consecutive", &["hits"]),
    ("majority", &["interval_ms"]),
    ("ema", &["alpha", "interval_ms"]),
    ("cost", &["gain", "window_ms", "hold_ms"]),
];

/// A cluster that was started for one run.
pub struct Local {
    cluster: LocalCluster,
    seeds: Vec<String>,
    executors: usize,
}

impl Local {
    /// Starts it and waits until its nodes have found each other.
    ///
    /// # Errors
    /// If a node does not come up.
    pub fn start(plan: &LocalPlan) -> Result<Self, TargetError> {
        let options = LocalOptions {
            name: plan.cluster.name.clone(),
            zones: plan.zones,
            nodes: plan.nodes,
            shards: plan.shards,
            tuning: plan.tuning.clone(),
            durability: plan.durability,
            data: plan.data.clone(),
            quorum: Some(plan.cluster.quorum),
            initial_owner: plan.cluster.initial_owner,
            steal: plan.cluster.steal,
            wan: plan.cluster.wan.clone(),
            ..LocalOptions::default()
        };
        let failed = |error| TargetError(format!("cannot start a local cluster: {error}"));
        let executors = options.thread_count();
        let cluster = LocalCluster::start(options).map_err(failed)?;
        let seeds = cluster.seeds().iter().map(ToString::to_string).collect();
        Ok(Self { cluster, seeds, executors })
    }

    /// Addresses to reach it at.
    pub fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// How many threads its executors run in.
    pub fn executors(&self) -> usize {
        self.executors
    }

    /// Stops it and waits until it has stopped.
    ///
    /// # Errors
    /// If a node had failed.
    pub fn stop(self) -> Result<(), TargetError> {
        self.cluster.stop().map_err(|error| TargetError(error.to_string()))
    }
}

/// The cluster that the flags describe, checked. Its addresses mean nothing.
///
/// # Errors
/// Names the flag and what would be right.
pub fn cluster(args: &RunArgs, zones: u8, nodes: u8, shards: u16) -> Result<Cluster, String> {
    let mut text = format!("name = \"local\"\nshards = {shards}\n[quorum]\n");
    let quorum = args.quorum.as_deref().unwrap_or("floor");
    put_choice(&mut text, "--quorum", "system", quorum, QUORUM_PARAMETERS)?;
    for (key, value) in [("node_failures", args.node_failures), ("zone_failures", args.zone_failures)] {
        if let Some(value) = value {
            let _ = writeln!(text, "{key} = {value}");
        }
    }
    let _ = match args.initial_owner.as_deref().unwrap_or("first-touch") {
        node if node.starts_with(|first: char| first.is_ascii_digit()) => {
            writeln!(text, "[owner]\ninitial = \"home\"\nhome = {node:?}")
        }
        initial => writeln!(text, "[owner]\ninitial = {initial:?}"),
    };
    if let Some(steal) = args.steal.as_deref() {
        text += "[steal]\n";
        put_choice(&mut text, "--steal", "policy", steal, STEAL_PARAMETERS)?;
    }
    put_wan(&mut text, args, zones)?;
    for zone in 1..=zones {
        for node in 1..=nodes {
            let _ = writeln!(text, "[[node]]\nid = \"{zone}.{node}\"\naddress = \"127.{zone}.{node}.1:1024\"");
        }
    }
    Cluster::parse(&text, Path::new("flags")).map_err(|error| as_flag(&error))
}

/// `NAME:VALUE:VALUE` as the keys of a table.
fn put_choice(
    text: &mut String,
    flag: &str,
    key: &str,
    written: &str,
    parameters: &[(&str, &[&str])],
) -> Result<(), String> {
    let mut parts = written.split(':');
    let name = parts.next().unwrap_or_default();
    let _ = writeln!(text, "{key} = {name:?}");
    let own = parameters.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, own)| own);
    for (place, value) in parts.enumerate() {
        let Some(parameter) = own.get(place) else {
            let takes =
                if own.is_empty() { "takes no parameters".to_owned() } else { format!("takes {}", own.join(":")) };
            return Err(format!("{flag} {written}: {name} {takes}"));
        };
        if value.parse::<f64>().is_err() || !value.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(format!("{flag} {written}: {parameter} '{value}' is not a number"));
        }
        let _ = writeln!(text, "{parameter} = {value}");
    }
    Ok(())
}

/// Distances and the region of each zone.
fn put_wan(text: &mut String, args: &RunArgs, zones: u8) -> Result<(), String> {
    let Some(file) = &args.wan else {
        return if args.regions.is_empty() {
            Ok(())
        } else {
            Err("--regions names regions of a table: give --wan FILE too, or leave it out".to_owned())
        };
    };
    let mut regions = args.regions.clone();
    if regions.is_empty() {
        let table =
            fs::read_to_string(file).map_err(|error| format!("--wan {}: cannot be read: {error}", file.display()))?;
        for region in table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(',').next()) {
            if !region.trim().is_empty() && !regions.iter().any(|known| known == region.trim()) {
                regions.push(region.trim().to_owned());
            }
        }
        regions.truncate(usize::from(zones));
    }
    if regions.len() != usize::from(zones) {
        return Err(format!("--regions: {} regions for {zones} zones: expected one for each", regions.len()));
    }
    let _ = writeln!(text, "[wan]\nmatrix = {:?}", file.display().to_string());
    for (zone, region) in regions.iter().enumerate() {
        let _ = writeln!(text, "[[zone]]\nnumber = {}\nregion = {region:?}", zone + 1);
    }
    Ok(())
}

/// What is wrong with a field of the file, as what is wrong with the flag that it came from.
fn as_flag(error: &ConfigError) -> String {
    let ConfigError::Field { wrong, .. } = error else { return error.to_string() };
    let flags = [
        ("quorum.node_failures", "--fn"),
        ("quorum.zone_failures", "--fz"),
        ("quorum", "--quorum"),
        ("owner", "--initial-owner"),
        ("steal", "--steal"),
        ("wan", "--wan"),
        ("zone", "--regions"),
    ];
    match flags.into_iter().find(|(field, _)| wrong.field.starts_with(field)) {
        Some((_, flag)) => format!("{flag}: {}", wrong.problem),
        None => wrong.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use wpaxos::topology::{Home, InitialOwner, NodeId, QuorumSpec, StealPolicy, ZoneIndex};

    use super::*;

    #[test]
    fn flags_mean_what_they_mean_in_a_cluster_file() {
        let args = RunArgs::default();
        let plain = cluster(&args, 3, 3, 2).unwrap();
        assert_eq!((plain.zones.len(), plain.nodes.len(), plain.shards), (3, 9, 2));
        assert_eq!(plain.quorum, QuorumSpec::Floor { node_failures: 1, zone_failures: 0 });
        assert_eq!((plain.initial_owner, plain.steal), (InitialOwner::FirstTouch, StealPolicy::default()));
        let args = RunArgs {
            quorum: Some("flexible:4:6".to_owned()),
            steal: Some("ema:0.5".to_owned()),
            initial_owner: Some("2.1".to_owned()),
            ..args
        };
        let set = cluster(&args, 3, 3, 1).unwrap();
        assert_eq!(set.quorum, QuorumSpec::Flexible { q1: 4, q2: 6 });
        assert_eq!(set.steal, StealPolicy::Ema { alpha_permille: 500, interval_us: StealPolicy::INTERVAL_US });
        assert_eq!(set.initial_owner, InitialOwner::Home(Home::Node(NodeId::new(2, 1))));
    }

    #[test]
    fn a_table_of_distances_gives_each_zone_a_region() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("wan.csv");
        fs::write(&file, "# measured\na,b,10\nb,c,20\nc,a,30\n").unwrap();
        let args = RunArgs { wan: Some(file), ..RunArgs::default() };
        let rtt_us = |args: &RunArgs| cluster(args, 2, 1, 1).unwrap().wan.unwrap().rtt_us(ZoneIndex(0), ZoneIndex(1));
        assert_eq!(rtt_us(&args), 10_000);
        assert_eq!(rtt_us(&RunArgs { regions: vec!["c".to_owned(), "a".to_owned()], ..args.clone() }), 30_000);
        for (regions, right) in [(vec!["c"], "one for each"), (vec!["c", "d"], "it has a, b, c")] {
            let regions = regions.into_iter().map(str::to_owned).collect();
            let error = cluster(&RunArgs { regions, ..args.clone() }, 2, 1, 1).unwrap_err();
            assert!(error.starts_with("--") && error.contains(right), "{error}");
        }
    }
}
