//! The cluster file: who is in the cluster and how it decides. Complete, with what is optional:
//!
//! ```toml
//! name = "demo"               # required
//! shards = 1                  # default 1
//! [quorum]                    # optional
//! system = "floor"            # floor | grid | majority | flexible | zone-majority | all | count | fast
//! node_failures = 1           # floor; default 1 if every zone has three nodes, else 0
//! zone_failures = 0           # floor; default 0
//! # q1, q2                    # flexible: nodes of phase 1 and 2
//! # n                         # count: nodes of either phase
//! [owner]                     # optional
//! initial = "first-touch"     # first-touch | home
//! # home = "hash"             # home: hash (default), or a node such as "1.1" for everything
//! [steal]                     # optional
//! policy = "consecutive"      # none | immediate | consecutive | majority | ema | cost
//! hits = 3                    # consecutive
//! # interval_ms, alpha        # majority, ema (interval_ms only for the first)
//! # gain, window_ms, hold_ms  # cost
//! [wan]                       # optional: emulate wide-area delays between zones
//! matrix = "wan.csv"          # lines A,B,MS, looked up by region; or rtt_ms = [[0, 80], [80, 0]]
//! [http]                      # optional; where a node has an `http` address
//! missing = "404"             # or "empty": a read of a missing key is 200 and an empty body, as Paxi's clients expect
//! body_bytes_max = 1048576    # the longest body of a request
//! idle_timeout_ms = 60000     # connections that ask nothing
//! request_timeout_ms = 10000  # from the first byte of a request to its last, and for the answer
//! connections_max = 4096      # of one node
//! [faults]                    # optional
//! allowed = false             # /crash, /drop, /slow, /flaky, /partition over HTTP
//! [history]                   # optional: earlier values of keys, kept by each replica for itself
//! enabled = false
//! versions_per_key = 1000
//! bytes_max = 67108864        # per shard, all keys together; the oldest versions go first
//! [[zone]]                    # optional; if one zone is listed, all are
//! number = 1
//! name = "virginia"           # default zone-N
//! region = "us-east-1"        # in the matrix; default the name
//! [[node]]                    # at least one
//! id = "1.1"
//! address = "127.0.0.1:7101"  # shard s listens on port + s; or addresses = ["…", "…"], one per shard
//! http = "127.0.0.1:8101"     # optional: where it serves HTTP
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::Path,
};

use serde::Deserialize;

use super::{
    ConfigError, FieldError, parse,
    settings::{FaultsFile, HistoryFile, HttpFile},
    suggest,
};
use crate::{
    quorum::Quorums,
    topology::{
        Cluster, Home, InitialOwner, Member, NodeId, NodeIndex, NodeSet, QuorumSpec, RTT_US_MAX, StealPolicy,
        WanMatrix, Zone, ZoneIndex, thousandths,
    },
};

/// The longest name of a cluster or a zone, in bytes.
const NAME_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    name: String,
    shards: Option<i64>,
    #[serde(default)]
    quorum: QuorumFile,
    #[serde(default)]
    owner: OwnerFile,
    #[serde(default)]
    steal: StealFile,
    wan: Option<WanFile>,
    #[serde(default)]
    http: HttpFile,
    #[serde(default)]
    faults: FaultsFile,
    #[serde(default)]
    history: HistoryFile,
    #[serde(default)]
    zone: Vec<ZoneFile>,
    #[serde(default)]
    node: Vec<NodeFile>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct QuorumFile {
    system: Option<String>,
    node_failures: Option<i64>,
    zone_failures: Option<i64>,
    q1: Option<i64>,
    q2: Option<i64>,
    n: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct OwnerFile {
    initial: Option<String>,
    home: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct StealFile {
    policy: Option<String>,
    hits: Option<i64>,
    interval_ms: Option<f64>,
    alpha: Option<f64>,
    gain: Option<f64>,
    window_ms: Option<f64>,
    hold_ms: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WanFile {
    matrix: Option<String>,
    rtt_ms: Option<Vec<Vec<f64>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ZoneFile {
    number: i64,
    name: Option<String>,
    region: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    id: String,
    address: Option<String>,
    addresses: Option<Vec<String>>,
    http: Option<String>,
}

impl Cluster {
    /// Reads the text of a cluster file. `file` is for messages, and what it names is looked for beside it.
    pub(super) fn parse_toml(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let contents: ClusterFile = parse(text, file)?;
        contents.check(file.parent().unwrap_or(Path::new(""))).map_err(|wrong| wrong.in_file(file))
    }

    /// Checks what can be checked of a cluster file whose nodes are still to come, and gives its number of shards.
    pub(super) fn check_template(text: &str, file: &Path) -> Result<u16, ConfigError> {
        let contents: ClusterFile = parse(text, file)?;
        contents.check_template().map_err(|wrong| wrong.in_file(file))
    }
}

impl ClusterFile {
    fn check_template(&self) -> Result<u16, FieldError> {
        if !self.node.is_empty() {
            let problem = "a template has none: nodes are those that register; take them out";
            return Err(FieldError::new("node", problem));
        }
        check_name("name", &self.name)?;
        self.steal.check()?;
        self.http.check()?;
        self.history.check()?;
        Ok(integer("shards", self.shards.unwrap_or(1), 1, u16::MAX.into())? as u16)
    }

    fn check(self, directory: &Path) -> Result<Cluster, FieldError> {
        check_name("name", &self.name)?;
        let shards = integer("shards", self.shards.unwrap_or(1), 1, u16::MAX.into())?;
        let mut nodes = members(self.node, shards as u16)?;
        check_overlaps(&nodes)?;
        let (zones, regions) = with_zones(&mut nodes, self.zone)?;
        let mut cluster = Cluster {
            name: self.name,
            shards: shards as u16,
            quorum: self.quorum.check(&zones)?,
            initial_owner: self.owner.check(&nodes)?,
            steal: self.steal.check()?,
            wan: None,
            http: self.http.check()?,
            faults: self.faults.allowed,
            history: self.history.check()?,
            nodes,
            zones,
        };
        cluster.wan = self.wan.map(|wan| wan.check(&cluster.zones, &regions, directory)).transpose()?;
        Quorums::new(&cluster).map_err(|error| FieldError::new("quorum", error.to_string()))?;
        Ok(cluster)
    }
}

/// The nodes with their addresses, sorted, each once; their zones are still to be found.
fn members(listed: Vec<NodeFile>, shards: u16) -> Result<Vec<Member>, FieldError> {
    if listed.is_empty() || listed.len() > NodeSet::CAPACITY {
        let problem = format!("{} [[node]] tables; a cluster has from 1 to {} nodes", listed.len(), NodeSet::CAPACITY);
        return Err(FieldError::new("node", problem));
    }
    let mut nodes = Vec::with_capacity(listed.len());
    for (place, node) in listed.into_iter().enumerate() {
        let id: NodeId =
            node.id.parse().map_err(|error| FieldError::new(format!("node {}: id", place + 1), format!("{error}")))?;
        let http = node.http.as_deref().map(address).transpose();
        let http = http.map_err(|problem| FieldError::new(format!("node {id}: http"), problem))?;
        nodes.push(Member { id, zone: ZoneIndex(0), shards: node.listens(id, shards)?, http });
    }
    nodes.sort_by_key(|member| member.id);
    match nodes.windows(2).find(|pair| pair[0].id == pair[1].id) {
        Some(pair) => {
            Err(FieldError::new(format!("node {}", pair[0].id), "is listed twice; an id belongs to one node"))
        }
        None => Ok(nodes),
    }
}

impl NodeFile {
    fn listens(&self, id: NodeId, shards: u16) -> Result<Vec<SocketAddr>, FieldError> {
        let wrong = |key: &str, problem: String| FieldError::new(format!("node {id}: {key}"), problem);
        match (&self.address, &self.addresses) {
            (Some(first), None) => {
                let first = address(first).map_err(|problem| wrong("address", problem))?;
                let last = u32::from(first.port()) + u32::from(shards) - 1;
                if last > u16::MAX.into() {
                    let problem =
                        format!("{shards} shards from port {} on would end at {last}, above 65535", first.port());
                    return Err(wrong("address", problem));
                }
                Ok((0..shards).map(|shard| SocketAddr::new(first.ip(), first.port() + shard)).collect())
            }
            (None, Some(all)) if all.len() == usize::from(shards) => {
                all.iter().map(|text| address(text).map_err(|problem| wrong("addresses", problem))).collect()
            }
            (None, Some(all)) => {
                let problem = format!("{} addresses for shards = {shards}: expected one for each shard", all.len());
                Err(wrong("addresses", problem))
            }
            (None, None) => Err(wrong("address", "is missing: expected IP:PORT, as in 10.0.0.1:7101".to_owned())),
            (Some(_), Some(_)) => Err(wrong("addresses", "contradicts `address`: give one of the two".to_owned())),
        }
    }
}

/// An address that others can dial.
fn address(text: &str) -> Result<SocketAddr, String> {
    let example = "expected IP:PORT, as in 10.0.0.1:7101 or [fd00::1]:7101";
    let address: SocketAddr =
        text.parse().map_err(|_| format!("'{text}' is not an address: {example}; names are not looked up"))?;
    match (address.port(), address.ip().is_unspecified()) {
        (0, _) => Err(format!("'{text}' has port 0, which nobody can dial: {example}")),
        (_, true) => Err(format!("'{text}' stands for every address, which nobody can dial: {example}")),
        _ => Ok(address),
    }
}

fn check_overlaps(nodes: &[Member]) -> Result<(), FieldError> {
    let mut taken = HashMap::new();
    for member in nodes {
        for (shard, address) in member.shards.iter().enumerate() {
            if let Some((other, of)) = taken.insert(*address, (member.id, shard)) {
                let problem = format!(
                    "shard {shard} listens on {address}, and so does shard {of} of node {other}: every shard of every \
                     node needs its own port"
                );
                return Err(FieldError::new(format!("node {}: address", member.id), problem));
            }
        }
    }
    let mut taken: HashMap<_, _> =
        taken.into_iter().map(|(address, (id, shard))| (address, format!("node {id} shard {shard}"))).collect();
    for member in nodes {
        let Some(http) = member.http else { continue };
        if let Some(other) = taken.insert(http, format!("node {} http", member.id)) {
            let problem = format!("{http} is taken by {other}: every listener needs its own port");
            return Err(FieldError::new(format!("node {}: http", member.id), problem));
        }
    }
    Ok(())
}

/// Gives every node its zone: the zones, and the region of each.
fn with_zones(nodes: &mut [Member], listed: Vec<ZoneFile>) -> Result<(Vec<Zone>, Vec<String>), FieldError> {
    let none_is_listed = listed.is_empty();
    let mut named = BTreeMap::new();
    for zone in listed {
        let number = integer("zone: number", zone.number, 1, u8::MAX.into())? as u8;
        if named.insert(number, zone).is_some() {
            return Err(FieldError::new(format!("zone {number}"), "is listed twice; a number belongs to one zone"));
        }
    }
    let (mut zones, mut regions) = (Vec::<Zone>::new(), Vec::new());
    for (index, member) in nodes.iter_mut().enumerate() {
        let number = member.id.zone;
        if zones.last().is_none_or(|zone| zone.number != number) {
            let entry = named.remove(&number);
            if entry.is_none() && !none_is_listed {
                let problem = format!("zone {number} is not listed: add [[zone]] number = {number}, or list no zone");
                return Err(FieldError::new(format!("node {}: id", member.id), problem));
            }
            let (name, region) = entry.map_or((None, None), |zone| (zone.name, zone.region));
            let name = name.unwrap_or_else(|| Zone::default_name(number));
            check_name(&format!("zone {number}: name"), &name)?;
            if let Some(other) = zones.iter().find(|zone| zone.name == name) {
                let problem = format!(
                    "'{name}' is also the name of zone {}; two zones of one region have names of their own and the \
                     same `region`",
                    other.number
                );
                return Err(FieldError::new(format!("zone {number}: name"), problem));
            }
            regions.push(region.unwrap_or_else(|| name.clone()));
            zones.push(Zone { number, name, nodes: Vec::new() });
        }
        member.zone = ZoneIndex(zones.len() as u8 - 1);
        zones[member.zone.index()].nodes.push(NodeIndex(index as u8));
    }
    match named.keys().next() {
        Some(empty) => {
            let problem = format!("has no nodes: add a [[node]] with id = \"{empty}.1\", or take the zone out");
            Err(FieldError::new(format!("zone {empty}"), problem))
        }
        None => Ok((zones, regions)),
    }
}

/// The keys that belong to each quorum system.
const SYSTEMS: &[(&str, &[&str])] = &[
    ("floor", &["node_failures", "zone_failures"]),
    ("grid", &[]),
    ("majority", &[]),
    ("flexible", &["q1", "q2"]),
    ("zone-majority", &[]),
    ("all", &[]),
    ("count", &["n"]),
    ("fast", &[]),
];

/// The keys that belong to each steal policy.
const POLICIES: &[(&str, &[&str])] = &[
    ("none", &[]),
    ("immediate", &[]),
    ("consecutive", &["hits"]),
    ("majority", &["interval_ms"]),
    ("ema", &["interval_ms", "alpha"]),
    ("cost", &["gain", "window_ms", "hold_ms"]),
];

/// The keys that belong to each kind of initial owner.
const OWNERS: &[(&str, &[&str])] = &[("first-touch", &[]), ("home", &["home"])];

impl QuorumFile {
    fn check(&self, zones: &[Zone]) -> Result<QuorumSpec, FieldError> {
        let given = [
            ("node_failures", self.node_failures.is_some()),
            ("zone_failures", self.zone_failures.is_some()),
            ("q1", self.q1.is_some()),
            ("q2", self.q2.is_some()),
            ("n", self.n.is_some()),
        ];
        let system = self.system.as_deref().unwrap_or("floor");
        check_choice("quorum", "system", system, SYSTEMS, &given)?;
        let nodes = zones.iter().map(|zone| zone.nodes.len()).sum::<usize>() as i64;
        let count = |key: &str, value: Option<i64>| {
            let field = format!("quorum.{key}");
            let missing = || format!("is missing: system = \"{system}\" needs it, from 1 to {nodes} nodes");
            let value = value.ok_or_else(|| FieldError::new(field.as_str(), missing()))?;
            Ok(integer(&field, value, 1, nodes)? as u8)
        };
        Ok(match system {
            "floor" => self.floor(zones)?,
            "grid" => QuorumSpec::Grid,
            "majority" => QuorumSpec::Majority,
            "flexible" => QuorumSpec::Flexible { q1: count("q1", self.q1)?, q2: count("q2", self.q2)? },
            "zone-majority" => QuorumSpec::ZoneMajority,
            "all" => QuorumSpec::All,
            "count" => QuorumSpec::Count { n: count("n", self.n)? },
            "fast" => QuorumSpec::Fast,
            other => unreachable!("{other} is one of SYSTEMS"),
        })
    }

    fn floor(&self, zones: &[Zone]) -> Result<QuorumSpec, FieldError> {
        let smallest = zones.iter().map(|zone| zone.nodes.len()).min().unwrap_or(1) as i64;
        let below = |key: &str, value: i64, bound: i64, of: &str| match u8::try_from(value) {
            Ok(number) if value < bound => Ok(number),
            _ => {
                let problem = format!("{value} must be from 0 to {}, below the number of {of}, {bound}", bound - 1);
                Err(FieldError::new(format!("quorum.{key}"), problem))
            }
        };
        let node_failures = self.node_failures.unwrap_or((smallest >= 3).into());
        let zone_failures = self.zone_failures.unwrap_or(0);
        Ok(QuorumSpec::Floor {
            node_failures: below("node_failures", node_failures, smallest, "nodes in the smallest zone")?,
            zone_failures: below("zone_failures", zone_failures, zones.len() as i64, "zones")?,
        })
    }
}

impl OwnerFile {
    fn check(&self, nodes: &[Member]) -> Result<InitialOwner, FieldError> {
        let initial = self.initial.as_deref().unwrap_or("first-touch");
        check_choice("owner", "initial", initial, OWNERS, &[("home", self.home.is_some())])?;
        let home = match (initial, self.home.as_deref()) {
            ("first-touch", _) => return Ok(InitialOwner::FirstTouch),
            (_, None | Some("hash")) => return Ok(InitialOwner::Home(Home::Hash)),
            (_, Some(home)) => home,
        };
        let node = home.parse::<NodeId>().map_err(|_| {
            FieldError::new("owner.home", format!("'{home}' is neither hash nor the id of a node, as in 1.1"))
        })?;
        if nodes.iter().all(|member| member.id != node) {
            let members: Vec<String> = nodes.iter().map(|member| member.id.to_string()).collect();
            let problem = format!("node {node} is not a member; members are {}", members.join(", "));
            return Err(FieldError::new("owner.home", problem));
        }
        Ok(InitialOwner::Home(Home::Node(node)))
    }
}

impl StealFile {
    fn check(&self) -> Result<StealPolicy, FieldError> {
        /// A day: nobody means longer.
        const US_MAX: u64 = 86_400_000_000;
        let given = [
            ("hits", self.hits.is_some()),
            ("interval_ms", self.interval_ms.is_some()),
            ("alpha", self.alpha.is_some()),
            ("gain", self.gain.is_some()),
            ("window_ms", self.window_ms.is_some()),
            ("hold_ms", self.hold_ms.is_some()),
        ];
        let policy = self.policy.as_deref().unwrap_or("consecutive");
        check_choice("steal", "policy", policy, POLICIES, &given)?;
        let interval = || decimal("steal.interval_ms", self.interval_ms, StealPolicy::INTERVAL_US, 1000, US_MAX);
        Ok(match policy {
            "none" => StealPolicy::None,
            "immediate" => StealPolicy::Immediate,
            "consecutive" => {
                let hits = self.hits.unwrap_or(StealPolicy::HITS.into());
                StealPolicy::Consecutive { hits: integer("steal.hits", hits, 1, u32::MAX.into())? as u32 }
            }
            "majority" => StealPolicy::Majority { interval_us: interval()? },
            "ema" => {
                let alpha = decimal("steal.alpha", self.alpha, StealPolicy::ALPHA_PERMILLE.into(), 1, 1000)?;
                StealPolicy::Ema { alpha_permille: alpha as u32, interval_us: interval()? }
            }
            "cost" => {
                let gain = decimal("steal.gain", self.gain, StealPolicy::GAIN_PERMILLE.into(), 1, 999)?;
                StealPolicy::Cost {
                    gain_permille: gain as u32,
                    window_us: decimal("steal.window_ms", self.window_ms, StealPolicy::WINDOW_US, 1000, US_MAX)?,
                    hold_us: decimal("steal.hold_ms", self.hold_ms, StealPolicy::HOLD_US, 0, US_MAX)?,
                }
            }
            other => unreachable!("{other} is one of POLICIES"),
        })
    }
}

impl WanFile {
    fn check(&self, zones: &[Zone], regions: &[String], directory: &Path) -> Result<WanMatrix, FieldError> {
        match (&self.matrix, &self.rtt_ms) {
            (Some(matrix), None) => {
                let file = directory.join(matrix);
                let wrong = |problem: String| FieldError::new("wan.matrix", format!("{}: {problem}", file.display()));
                let text = std::fs::read_to_string(&file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
                let regions: Vec<&str> = regions.iter().map(String::as_str).collect();
                WanMatrix::from_csv(&text, &regions).map_err(|error| wrong(error.to_string()))
            }
            (None, Some(rows)) => {
                let wrong = |problem: String| FieldError::new("wan.rtt_ms", problem);
                if rows.len() != zones.len() {
                    let problem = format!("{} rows for {} zones: expected one per zone", rows.len(), zones.len());
                    return Err(wrong(problem));
                }
                let cell = |ms: &f64| decimal("wan.rtt_ms", Some(*ms), 0, 0, RTT_US_MAX);
                let rows: Vec<Vec<u64>> =
                    rows.iter().map(|row| row.iter().map(cell).collect()).collect::<Result<_, _>>()?;
                WanMatrix::from_rows(&rows).map_err(|error| wrong(error.to_string()))
            }
            _ => {
                Err(FieldError::new("wan", "give either `matrix`, a file, or `rtt_ms`, a row of milliseconds per zone"))
            }
        }
    }
}

/// That `value` is one of the choices for `section.key`, and that no key is `given` that belongs to another.
pub(super) fn check_choice(
    section: &str,
    key: &str,
    value: &str,
    choices: &[(&str, &[&str])],
    given: &[(&str, bool)],
) -> Result<(), FieldError> {
    let names = || choices.iter().map(|(name, _)| *name);
    let Some((_, own)) = choices.iter().find(|(name, _)| *name == value) else {
        let known = names().collect::<Vec<_>>().join(", ");
        let problem = format!("'{value}' is not known: expected one of {known}{}", suggest(value, names()));
        return Err(FieldError::new(format!("{section}.{key}"), problem));
    };
    let Some((stray, _)) = given.iter().find(|(name, given)| *given && !own.contains(name)) else { return Ok(()) };
    let owners: Vec<&str> = choices.iter().filter(|(_, own)| own.contains(stray)).map(|(name, _)| *name).collect();
    let problem = format!(
        "contradicts {key} = \"{value}\", which takes {}; it is for {key} {}",
        if own.is_empty() { "nothing else".to_owned() } else { own.join(" and ") },
        owners.join(" and "),
    );
    Err(FieldError::new(format!("{section}.{stray}"), problem))
}

fn check_name(field: &str, name: &str) -> Result<(), FieldError> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(FieldError::new(field, format!("{name:?} must have from 1 to {NAME_BYTES_MAX} bytes, all of them printable")))
}

pub(super) fn integer(field: &str, value: i64, min: i64, max: i64) -> Result<i64, FieldError> {
    match (min..=max).contains(&value) {
        true => Ok(value),
        false => Err(FieldError::new(field, format!("{value} must be from {min} to {max}"))),
    }
}

/// A decimal number in thousandths, as are `default` and the bounds.
pub(super) fn decimal(field: &str, value: Option<f64>, default: u64, min: u64, max: u64) -> Result<u64, FieldError> {
    let Some(value) = value else { return Ok(default) };
    let bound = |bound: u64| bound as f64 / 1000.0;
    let problem = || format!("{value} must be from {} to {}", bound(min), bound(max));
    thousandths(value, min, max).ok_or_else(|| FieldError::new(field, problem()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODES: &str = "[[node]]\nid = \"2.1\"\naddress = \"10.0.0.2:7000\"\n[[node]]\nid = \"1.1\"\naddress = \
                         \"10.0.0.1:7000\"\n";

    fn taken(text: &str) -> Cluster {
        Cluster::parse(text, Path::new("c.toml")).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A cluster of two zones of one node each, with these settings before the nodes.
    fn with(settings: &str) -> Result<Cluster, ConfigError> {
        Cluster::parse(&format!("name = \"demo\"\n{settings}\n{NODES}"), Path::new("c.toml"))
    }

    #[test]
    fn a_short_file_gets_the_defaults() {
        let cluster = with("").unwrap();
        assert_eq!((cluster.name.as_str(), cluster.shards), ("demo", 1));
        let ids: Vec<String> = cluster.nodes.iter().map(|member| member.id.to_string()).collect();
        assert_eq!(ids, ["1.1", "2.1"], "sorted");
        assert_eq!(cluster.nodes[1].zone, ZoneIndex(1));
        assert_eq!(cluster.nodes[1].shards, ["10.0.0.2:7000".parse().unwrap()]);
        assert_eq!((cluster.zones[1].number, cluster.zones[1].name.as_str()), (2, "zone-2"));
        assert_eq!(cluster.quorum, QuorumSpec::Floor { node_failures: 0, zone_failures: 0 });
        assert_eq!(cluster.initial_owner, InitialOwner::FirstTouch);
        assert_eq!(cluster.steal, StealPolicy::Consecutive { hits: 3 });
        assert_eq!(cluster.wan, None);
    }

    #[test]
    fn the_example_at_the_top_is_a_cluster_file() {
        let lines = include_str!("cluster.rs").lines().map_while(|line| line.strip_prefix("//!"));
        let text: Vec<&str> =
            lines.skip_while(|line| *line != " ```toml").skip(1).take_while(|line| *line != " ```").collect();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("wan.csv"), "us-east-1,us-east-1,0").unwrap();
        let single = text.join("\n").replace("node_failures = 1", "node_failures = 0");
        let cluster = Cluster::parse(&single, &directory.path().join("c.toml")).unwrap();
        assert_eq!((cluster.zones[0].name.as_str(), cluster.nodes.len()), ("virginia", 1));
    }

    #[test]
    fn a_zone_of_three_tolerates_a_node_by_default() {
        let node = |id: u8| format!("[[node]]\nid = \"1.{id}\"\naddress = \"10.0.0.{id}:7000\"\n");
        let cluster = taken(&format!("name = \"demo\"\n{}{}{}", node(1), node(2), node(3)));
        assert_eq!(cluster.quorum, QuorumSpec::Floor { node_failures: 1, zone_failures: 0 });
    }

    #[test]
    fn settings_by_table() {
        use {QuorumSpec as Q, StealPolicy as S};
        let quorum = |text: &str| with(&format!("[quorum]\nsystem = {text}")).unwrap().quorum;
        assert_eq!(quorum("\"floor\"\nzone_failures = 1"), Q::Floor { node_failures: 0, zone_failures: 1 });
        assert_eq!(quorum("\"grid\""), Q::Grid);
        assert_eq!(quorum("\"majority\""), Q::Majority);
        assert_eq!(quorum("\"flexible\"\nq1 = 2\nq2 = 1"), Q::Flexible { q1: 2, q2: 1 });
        assert_eq!(quorum("\"zone-majority\""), Q::ZoneMajority);
        assert_eq!(quorum("\"all\""), Q::All);
        assert_eq!(quorum("\"count\"\nn = 2"), Q::Count { n: 2 });
        assert_eq!(quorum("\"fast\""), Q::Fast);

        let owner = |text: &str| with(&format!("[owner]\ninitial = {text}")).unwrap().initial_owner;
        assert_eq!(owner("\"first-touch\""), InitialOwner::FirstTouch);
        assert_eq!(owner("\"home\""), InitialOwner::Home(Home::Hash));
        assert_eq!(owner("\"home\"\nhome = \"hash\""), InitialOwner::Home(Home::Hash));
        assert_eq!(owner("\"home\"\nhome = \"2.1\""), InitialOwner::Home(Home::Node(NodeId::new(2, 1))));

        let steal = |text: &str| with(&format!("[steal]\npolicy = {text}")).unwrap().steal;
        assert_eq!(steal("\"none\""), S::None);
        assert_eq!(steal("\"immediate\""), S::Immediate);
        assert_eq!(steal("\"consecutive\"\nhits = 9"), S::Consecutive { hits: 9 });
        assert_eq!(steal("\"majority\"\ninterval_ms = 2.5"), S::Majority { interval_us: 2500 });
        assert_eq!(steal("\"ema\"\nalpha = 1"), S::Ema { alpha_permille: 1000, interval_us: S::INTERVAL_US });
        assert_eq!(
            steal("\"cost\"\nwindow_ms = 20\nhold_ms = 0"),
            S::Cost { gain_permille: 800, window_us: 20_000, hold_us: 0 }
        );
    }

    #[test]
    fn shards_listen_on_ports_one_after_another_or_where_they_are_told() {
        let node = "[[node]]\nid = \"1.1\"\n";
        let counted = taken(&format!("name = \"a\"\nshards = 2\n{node}address = \"[::1]:65534\""));
        assert_eq!(counted.nodes[0].shards, ["[::1]:65534".parse().unwrap(), "[::1]:65535".parse().unwrap()]);
        let told = taken(&format!("name = \"a\"\nshards = 2\n{node}addresses = [\"10.0.0.1:9\", \"10.0.0.2:9\"]"));
        assert_eq!(told.nodes[0].shards, ["10.0.0.1:9".parse().unwrap(), "10.0.0.2:9".parse().unwrap()]);
    }

    #[test]
    fn distances_come_from_a_table_beside_the_file_or_from_the_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tables")).unwrap();
        std::fs::write(directory.path().join("tables/wan.csv"), "east,west,70\neast,east,1\n").unwrap();
        let zones = "[[zone]]\nnumber = 2\nname = \"west\"\n[[zone]]\nnumber = 1\nname = \"here\"\nregion = \"east\"\n";
        let file = directory.path().join("cluster.toml");
        std::fs::write(&file, format!("name = \"a\"\n[wan]\nmatrix = \"tables/wan.csv\"\n{zones}{NODES}")).unwrap();
        let cluster = Cluster::load(&file).unwrap();
        assert_eq!(cluster.zones[0].name, "here");
        let wan = cluster.wan.clone().unwrap();
        assert_eq!((wan.rtt_us(ZoneIndex(0), ZoneIndex(1)), wan.rtt_us(ZoneIndex(0), ZoneIndex(0))), (70_000, 1000));
        assert_eq!(taken(&cluster.to_toml()), cluster, "written out, the table is not needed any more");

        let inline = with("[wan]\nrtt_ms = [[0, 0.5], [0.5, 0]]").unwrap().wan.unwrap();
        assert_eq!(inline.rtt_us(ZoneIndex(1), ZoneIndex(0)), 500);
    }

    #[test]
    fn wrong_settings_name_the_field_and_what_would_be_right() {
        #[rustfmt::skip]
        let table = [
            ("shards = 0", "c.toml: shards: 0 must be from 1 to 65535"),
            ("shards = \"two\"", "c.toml: line 2 (`shards = \"two\"`): invalid type: string \"two\", expected i64"),
            ("shard = 2", "line 2 (`shard = 2`): unknown field `shard`, expected one of `name`, `shards`"),
            ("shard = 2", "did you mean `shards`?"),
            ("shards = ", "c.toml: line 2 (`shards =`): "),
            ("[quorum]\nsystem = \"flor\"", "quorum.system: 'flor' is not known: expected one of floor, grid, majority, flexible, zone-majority, all, count, fast; did you mean `floor`?"),
            ("[quorum]\nnode_failure = 0", "did you mean `node_failures`?"),
            ("[quorum]\nnode_failures = 1", "quorum.node_failures: 1 must be from 0 to 0, below the number of nodes in the smallest zone, 1"),
            ("[quorum]\nnode_failures = -1", "quorum.node_failures: -1 must be"),
            ("[quorum]\nzone_failures = 2", "quorum.zone_failures: 2 must be from 0 to 1, below the number of zones, 2"),
            ("[quorum]\nsystem = \"grid\"\nnode_failures = 0", "quorum.node_failures: contradicts system = \"grid\", which takes nothing else; it is for system floor"),
            ("[quorum]\nq1 = 1", "quorum.q1: contradicts system = \"floor\", which takes node_failures and zone_failures; it is for system flexible"),
            ("[quorum]\nsystem = \"flexible\"\nq1 = 1", "quorum.q2: is missing: system = \"flexible\" needs it, from 1 to 2 nodes"),
            ("[quorum]\nsystem = \"flexible\"\nq1 = 1\nq2 = 3", "quorum.q2: 3 must be from 1 to 2"),
            ("[quorum]\nsystem = \"flexible\"\nq1 = 1\nq2 = 1", "quorum: phase 1 with 1 and phase 2 with 1 of 2 nodes need not meet: 1 + 1 = 2 must be more than 2; for example {1.1} and {2.1} have no node in common"),
            ("[quorum]\nsystem = \"count\"\nn = 300", "quorum.n: 300 must be from 1 to 2"),
            ("[owner]\ninitial = \"first\"", "owner.initial: 'first' is not known: expected one of first-touch, home; did you mean `first-touch`?"),
            ("[owner]\nhome = \"1.1\"", "owner.home: contradicts initial = \"first-touch\", which takes nothing else; it is for initial home"),
            ("[owner]\ninitial = \"home\"\nhome = \"1\"", "owner.home: '1' is neither hash nor the id of a node, as in 1.1"),
            ("[owner]\ninitial = \"home\"\nhome = \"3.1\"", "owner.home: node 3.1 is not a member; members are 1.1, 2.1"),
            ("[steal]\npolicy = \"none\"\nhits = 3", "steal.hits: contradicts policy = \"none\", which takes nothing else; it is for policy consecutive"),
            ("[steal]\npolicy = \"consecutive\"\nhits = 0", "steal.hits: 0 must be from 1 to"),
            ("[steal]\npolicy = \"cost\"\ninterval_ms = 5", "steal.interval_ms: contradicts policy = \"cost\", which takes gain and window_ms and hold_ms; it is for policy majority and ema"),
            ("[steal]\npolicy = \"cost\"\ngain = 1.0", "steal.gain: 1 must be from 0.001 to 0.999"),
            ("[steal]\npolicy = \"ema\"\nalpha = 0", "steal.alpha: 0 must be from 0.001 to 1"),
            ("[steal]\npolicy = \"majority\"\ninterval_ms = 0", "steal.interval_ms: 0 must be from 1 to 86400000"),
            ("[wan]", "wan: give either `matrix`, a file, or `rtt_ms`"),
            ("[wan]\nmatrix = \"none.csv\"", "wan.matrix: none.csv: cannot be read: "),
            ("[wan]\nrtt_ms = [[0]]", "wan.rtt_ms: 1 rows for 2 zones: expected one per zone"),
            ("[wan]\nrtt_ms = [[0, 1], [2, 0]]", "wan.rtt_ms: row 1 column 2 is 1 ms but row 2 column 1 is 2 ms"),
            ("[wan]\nrtt_ms = [[0, -1], [-1, 0]]", "wan.rtt_ms: -1 must be from 0 to 60000"),
            ("[[zone]]\nnumber = 1", "node 2.1: id: zone 2 is not listed: add [[zone]] number = 2, or list no zone"),
            ("[[zone]]\nnumber = 1\n[[zone]]\nnumber = 1", "zone 1: is listed twice"),
            ("[[zone]]\nnumber = 0", "zone: number: 0 must be from 1 to 255"),
            ("[[zone]]\nnumber = 1\n[[zone]]\nnumber = 2\n[[zone]]\nnumber = 9", "zone 9: has no nodes: add a [[node]] with id = \"9.1\", or take the zone out"),
            ("[[zone]]\nnumber = 1\nname = \"a\"\n[[zone]]\nnumber = 2\nname = \"a\"", "zone 2: name: 'a' is also the name of zone 1"),
            ("[[zone]]\nnumber = 1\nname = \"\"\n[[zone]]\nnumber = 2", "zone 1: name: \"\" must have from 1 to 64 bytes"),
            ("[[node]]\nid = \"1.0\"", "node 1: id: '1.0' is not a node id: expected ZONE.NODE"),
            ("[[node]]\nid = \"3.1\"", "node 3.1: address: is missing: expected IP:PORT"),
            ("[[node]]\nid = \"3.1\"\naddress = \"host:1\"", "node 3.1: address: 'host:1' is not an address: expected IP:PORT, as in 10.0.0.1:7101 or [fd00::1]:7101; names are not looked up"),
            ("[[node]]\nid = \"3.1\"\naddress = \"1.1.1.1:0\"", "'1.1.1.1:0' has port 0"),
            ("[[node]]\nid = \"3.1\"\naddress = \"0.0.0.0:7\"", "'0.0.0.0:7' stands for every address"),
            ("[[node]]\nid = \"3.1\"\naddresses = []", "node 3.1: addresses: 0 addresses for shards = 1: expected one for each shard"),
            ("[[node]]\nid = \"3.1\"\naddress = \"1.1.1.1:7\"\naddresses = []", "node 3.1: addresses: contradicts `address`"),
            ("[[node]]\nid = \"2.1\"\naddress = \"1.1.1.1:7\"", "node 2.1: is listed twice"),
            ("shards = 2\n[[node]]\nid = \"3.1\"\naddress = \"1.1.1.1:65535\"", "node 3.1: address: 2 shards from port 65535 on would end at 65536"),
            ("shards = 2\n[[node]]\nid = \"1.2\"\naddress = \"10.0.0.1:7001\"", "node 1.2: address: shard 0 listens on 10.0.0.1:7001, and so does shard 1 of node 1.1"),
        ];
        for (settings, message) in table {
            let error = with(settings).expect_err(settings).to_string();
            assert!(error.starts_with("c.toml: "), "{error:?} does not name the file");
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
    }

    #[test]
    fn the_example_is_a_cluster_of_three_by_three_at_the_defaults() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/cluster.toml");
        let cluster = Cluster::load(&file).unwrap();
        assert_eq!((cluster.nodes.len(), cluster.zones.len(), cluster.shards), (9, 3, 1));
        assert_eq!(cluster.quorum, QuorumSpec::Floor { node_failures: 1, zone_failures: 0 });
        assert_eq!((cluster.initial_owner, cluster.steal), (InitialOwner::FirstTouch, StealPolicy::default()));
        assert!(cluster.nodes.iter().all(|node| node.shards.iter().all(|address| address.ip().is_loopback())));
        // The part about distances, which is commented out, is right too.
        let text = std::fs::read_to_string(&file).unwrap().replace("# [wan]", "[wan]").replace("# rtt_ms", "rtt_ms");
        let distant = Cluster::parse(&text, &file).unwrap();
        assert!(distant.wan.is_some_and(|wan| wan.zones() == 3));
    }

    #[test]
    fn a_file_needs_a_name_and_nodes_and_not_too_many() {
        let error = |text: &str| Cluster::parse(text, Path::new("c.toml")).unwrap_err().to_string();
        assert!(error(NODES).contains("missing field `name`"), "{}", error(NODES));
        assert_eq!(error("name = \"a\""), "c.toml: node: 0 [[node]] tables; a cluster has from 1 to 128 nodes");
        let node = |id: usize| format!("[[node]]\nid = \"1.{id}\"\naddress = \"10.0.0.1:{id}\"\n");
        let many = |count: usize| format!("name = \"a\"\n{}", (1..=count).map(node).collect::<String>());
        assert_eq!(taken(&many(128)).nodes.len(), 128);
        assert!(error(&many(129)).contains("129 [[node]] tables"), "{}", error(&many(129)));
        assert!(error(&format!("name = \"{}\"\n{NODES}", "x".repeat(65))).contains("from 1 to 64 bytes"));
    }

    #[test]
    fn the_zone_of_a_region_that_the_table_lacks_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("wan.csv"), "east,west,70\n").unwrap();
        let text = format!("name = \"a\"\n[wan]\nmatrix = \"wan.csv\"\n{NODES}");
        let error = Cluster::parse(&text, &directory.path().join("c.toml")).unwrap_err().to_string();
        assert!(error.contains("wan.csv: there is no region 'zone-1' in it; it has east, west"), "{error}");
    }

    fn any_quorum() -> impl Strategy<Value = QuorumSpec> {
        use QuorumSpec as Q;
        prop_oneof![
            (0..2u8, 0..2u8).prop_map(|(f_n, f_z)| Q::Floor { node_failures: f_n, zone_failures: f_z }),
            (3..=4u8, 2..=4u8).prop_map(|(q1, q2)| Q::Flexible { q1, q2 }),
            (3..=4u8).prop_map(|n| Q::Count { n }),
            prop::sample::select(vec![Q::Grid, Q::Majority, Q::ZoneMajority, Q::All, Q::Fast]),
        ]
    }

    fn any_steal() -> impl Strategy<Value = StealPolicy> {
        use StealPolicy as S;
        let us = || 1000..=86_400_000_000u64;
        prop_oneof![
            prop::sample::select(vec![S::None, S::Immediate]),
            (1..=u32::MAX).prop_map(|hits| S::Consecutive { hits }),
            us().prop_map(|interval_us| S::Majority { interval_us }),
            (1..=1000u32, us()).prop_map(|(alpha_permille, interval_us)| S::Ema { alpha_permille, interval_us }),
            (1..=999u32, us(), us()).prop_map(|(gain_permille, window_us, hold_us)| S::Cost {
                gain_permille,
                window_us,
                hold_us
            }),
        ]
    }

    fn any_owner() -> impl Strategy<Value = InitialOwner> {
        let homes = [Home::Hash, Home::Node(NodeId::new(2, 2))];
        prop_oneof![Just(InitialOwner::FirstTouch), prop::sample::select(homes.to_vec()).prop_map(InitialOwner::Home)]
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(
            quorum in any_quorum(),
            steal in any_steal(),
            initial_owner in any_owner(),
            rtt_us in prop::option::of(0..=RTT_US_MAX),
            name in "[ -~é]{1,30}",
            shards in 1..4u16,
        ) {
            let listens = |host: u8| (0..shards).map(|shard| ([10, 0, 0, host], 7000 + shard).into()).collect();
            let local = Cluster::local("", vec![vec![listens(1), listens(2)], vec![listens(3), listens(4)]]);
            let wan = rtt_us.map(|rtt_us| WanMatrix::uniform(2, rtt_us));
            let mut cluster = Cluster { name: name.clone(), quorum, initial_owner, steal, wan, ..local };
            cluster.zones[1].name = name;
            let read = taken(&cluster.to_toml());
            prop_assert_eq!(read.fingerprint(), cluster.fingerprint());
            prop_assert_eq!(read, cluster);
        }
    }
}
