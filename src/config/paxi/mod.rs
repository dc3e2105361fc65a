//! Paxi's configuration, `config.json`, read as it is: every key with the meaning that it was given there.
//!
//! Keys are understood in any case, as Go understands them. What has no meaning here, or another than somebody who knows
//! Paxi would think, is said in a [`Note`]; what contradicts itself is an error that names the key.
//!
//! | key | becomes |
//! |---|---|
//! | `address` | zones and nodes by their ids, and where each listens: on the address that is written and on no other |
//! | `http_address` | where each node serves HTTP |
//! | `policy`, `threshold` | the steal policy: hits of `consecutive`, seconds of `majority`, the weight of `ema` |
//! | `thrifty` | `batch.thrifty` of the tuning |
//! | `multiversion` | `[history]`, bounded |
//! | `buffer_size`, `chan_buffer_size` | nothing |
//! | `benchmark` | a [`PaxiBenchmark`], for the load generator |

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Write as _},
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
};

use self::{
    address::Written,
    json::{Fields, Json},
};
use super::{ConfigError, FieldError, read, suggest};
use crate::{
    topology::{Cluster, HistoryBounds, HttpSettings, Missing, NodeId, NodeSet, StealPolicy, thousandths},
    tuning::Tuning,
};

mod address;
mod benchmark;
mod json;
#[cfg(test)]
mod tests;

pub use benchmark::{PaxiBenchmark, PaxiDistribution};

/// The name of a cluster that a Paxi file describes: the file has none, and all of its readers must agree on one.
pub const NAME: &str = "paxi";

/// The keys of the file, as Paxi spells them.
const KEYS: &[&str] = &[
    "address",
    "http_address",
    "policy",
    "threshold",
    "thrifty",
    "buffer_size",
    "chan_buffer_size",
    "multiversion",
    "benchmark",
    "batching",
    "consistency",
    "codec",
];
/// Those that stand in Paxi's source for the future and do nothing.
const FUTURE: &[&str] = &["batching", "consistency", "codec"];
/// The policies, as Paxi spells them.
const POLICIES: [&str; 4] = ["consecutive", "majority", "ema", "null"];
/// The longest interval of `majority`, in seconds: a day.
const INTERVAL_S_MAX: u64 = 86_400;

/// Something that whoever wrote the file should know: how a key was understood where that is not plain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Which key.
    pub field: String,
    /// What to know.
    pub text: String,
}

impl Note {
    fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self { field: field.into(), text: text.into() }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

/// A Paxi configuration that has been read and checked.
#[derive(Clone, Debug)]
pub struct PaxiConfig {
    /// What its client is told to do.
    pub benchmark: PaxiBenchmark,
    /// Whether accepts go first to as many nodes as a quorum needs.
    pub thrifty: bool,
    settings: String,
    cluster: Option<Cluster>,
    notes: Vec<Note>,
}

/// What the file says beside its benchmark.
struct File {
    address: BTreeMap<NodeId, SocketAddr>,
    http: BTreeMap<NodeId, SocketAddr>,
    steal: StealPolicy,
    thrifty: bool,
    multiversion: bool,
}

/// Looks a name up.
type Resolve<'a> = &'a dyn Fn(&str) -> io::Result<Vec<IpAddr>>;

impl PaxiConfig {
    /// Whether a file is Paxi's JSON and not our TOML: by its name, or because it begins as only JSON does.
    pub fn recognises(text: &str, file: &Path) -> bool {
        file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
            || text.trim_start().starts_with('{')
    }

    /// Reads and checks a file. Names of hosts in it are looked up.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, has a key that Paxi does not know, a value that cannot be, or contradicts
    /// itself; with the line or the key.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        Self::parse(&read(file)?, file)
    }

    /// The same for the text of a file; `file` is for messages.
    ///
    /// # Errors
    /// As [`PaxiConfig::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Self::parse_with(text, file, &look_up, true)
    }

    /// The same where who is in the cluster is not this file's business: `address` and `http_address` are ignored, with a
    /// note if there are any.
    ///
    /// # Errors
    /// As [`PaxiConfig::load`].
    pub fn parse_template(text: &str, file: &Path) -> Result<Self, ConfigError> {
        Self::parse_with(text, file, &look_up, false)
    }

    fn parse_with(text: &str, file: &Path, resolve: Resolve<'_>, members: bool) -> Result<Self, ConfigError> {
        let mut notes = Vec::new();
        let json = serde_json::from_str(text).map_err(|error| syntax(text, file, &error))?;
        let Json::Object(entries) = json else {
            let problem = format!("{} is not an object, as in {{\"address\": {{\"1.1\": …}}}}", describe(&json));
            return Err(FieldError::new("the file", problem).in_file(file));
        };
        let named = |wrong: FieldError| wrong.in_file(file);
        let fields = Fields::new("", entries, KEYS, &[], &mut notes).map_err(named)?;
        let parsed = File::read(&fields, resolve, members, &mut notes).map_err(named)?;
        let benchmark = fields.object("benchmark").map_err(named)?;
        let benchmark = PaxiBenchmark::read(benchmark, &mut notes).map_err(named)?;
        let settings = parsed.settings_toml();
        let cluster = match members {
            true => Some(Cluster::parse_toml(&(settings.clone() + &parsed.nodes_toml()), file)?),
            false => None,
        };
        Ok(Self { benchmark, thrifty: parsed.thrifty, settings, cluster, notes })
    }

    /// The cluster that it describes, and what to know about how it was understood.
    ///
    /// # Panics
    /// If it was read as a template.
    pub fn to_cluster(&self) -> (Cluster, Vec<Note>) {
        (self.cluster.clone().expect("a template has no members"), self.notes.clone())
    }

    /// What to know about how it was understood.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Our cluster file without its nodes: the quorums, the policy and what else is the same whoever is in the cluster.
    pub fn settings_toml(&self) -> &str {
        &self.settings
    }

    /// The tuning that it asks for: the default one, `thrifty` as it says.
    pub fn to_tuning(&self) -> Tuning {
        let mut tuning = Tuning::default();
        tuning.batch.thrifty = self.thrifty;
        tuning
    }

    /// It as our cluster file, with the benchmark block and `thrifty`, which are none of a cluster file's business, as
    /// comments.
    ///
    /// # Panics
    /// If it was read as a template.
    pub fn to_toml(&self) -> String {
        let (cluster, _) = self.to_cluster();
        let mut text = cluster.to_toml();
        let _ =
            writeln!(text, "\n# The benchmark block, which `wpaxos-load --benchmark` reads from the Paxi file itself:");
        self.benchmark.to_string().lines().for_each(|line| text += &format!("#   {line}\n"));
        if self.thrifty {
            text += "\n# thrifty, for the tuning file:\n#   [batch]\n#   thrifty = true\n";
        }
        text
    }
}

impl File {
    fn read(fields: &Fields, resolve: Resolve<'_>, members: bool, notes: &mut Vec<Note>) -> Result<Self, FieldError> {
        let mut file = Self {
            address: BTreeMap::new(),
            http: BTreeMap::new(),
            steal: steal(fields, notes)?,
            thrifty: fields.bool("thrifty", false)?,
            multiversion: fields.bool("multiversion", false)?,
        };
        if members {
            file.read_members(fields, resolve, notes)?;
        } else if fields.is_written("address") || fields.is_written("http_address") {
            notes.push(Note::new("address", "who is in the cluster comes from those that register, not from here"));
        }
        let without = [
            ("buffer_size", "has no meaning here: nothing is allocated per key in advance"),
            ("chan_buffer_size", "has no meaning here: queues are bounded in bytes, by [flow] of the tuning file"),
        ];
        for (name, why) in without {
            fields.integer(name, 1024, 0, 1 << 53)?;
            if fields.is_written(name) {
                notes.push(Note::new(name, why));
            }
        }
        for name in FUTURE.iter().filter(|name| fields.is_written(name)) {
            notes.push(Note::new(*name, "has no meaning in Paxi either"));
        }
        file.note_settings(fields, notes);
        Ok(file)
    }

    fn read_members(&mut self, fields: &Fields, resolve: Resolve<'_>, notes: &mut Vec<Note>) -> Result<(), FieldError> {
        let mut names = Names { resolve, found: BTreeMap::new() };
        self.address = addresses(fields, "address", &mut names, notes)?;
        self.http = addresses(fields, "http_address", &mut names, notes)?;
        if self.address.is_empty() || self.address.len() > NodeSet::CAPACITY {
            let problem = format!("{} nodes; a cluster has from 1 to {}", self.address.len(), NodeSet::CAPACITY);
            return Err(fields.wrong("address", problem));
        }
        if self.http.is_empty() {
            notes.push(Note::new("http_address", "is empty: no node serves HTTP"));
        } else {
            let (native, http) = (self.address.keys().collect(), self.http.keys().collect());
            check_same(fields, &native, &http)?;
        }
        self.check_distinct(fields)?;
        self.check_reach(fields)?;
        for (name, found) in &names.found {
            let text =
                format!("'{name}' is {found}, looked up when the file was read; every reader must find the same");
            notes.push(Note::new("address", text));
        }
        let text = "each node listens on the address that is written; Paxi's listen on every interface";
        notes.push(Note::new("address", text));
        Ok(())
    }

    /// Every address of every node is its own.
    fn check_distinct(&self, fields: &Fields) -> Result<(), FieldError> {
        let mut taken = HashMap::new();
        let native = self.address.iter().map(|entry| ("address", entry));
        let http = self.http.iter().map(|entry| ("http_address", entry));
        for (map, (id, address)) in native.chain(http) {
            if let Some((other_map, other)) = taken.insert(address, (map, id)) {
                let problem = format!(
                    "{id} is at {address}, and so is {other} in `{other_map}`: two cannot listen on one address"
                );
                return Err(fields.wrong(map, problem));
            }
        }
        Ok(())
    }

    /// A loopback address reaches nobody who is elsewhere.
    fn check_reach(&self, fields: &Fields) -> Result<(), FieldError> {
        let loopback = self.address.iter().find(|(_, address)| address.ip().is_loopback());
        let elsewhere = self.address.iter().find(|(_, address)| !address.ip().is_loopback());
        if let (Some((id, near)), Some((other, far))) = (loopback, elsewhere) {
            let problem = format!(
                "{id} is at {near}, which only its own machine can dial, and {other} is at {far}: give {id} the address \
                 of a network that both are in (a host's own name is often listed as loopback in /etc/hosts)"
            );
            return Err(fields.wrong("address", problem));
        }
        Ok(())
    }

    fn note_settings(&self, fields: &Fields, notes: &mut Vec<Note>) {
        if self.thrifty {
            let text = "becomes `[batch] thrifty = true` of the tuning: accepts go first to the nearest phase-2 quorum, \
                        and to others if it is slow (Paxi has it for plain paxos only)";
            notes.push(Note::new("thrifty", text));
        }
        if self.multiversion {
            let text = "becomes [history]: the values of a key are kept, up to a number per key and of bytes in all \
                        (Paxi keeps every one for ever)";
            notes.push(Note::new("multiversion", text));
        } else if fields.is_written("multiversion") {
            notes.push(Note::new("multiversion", "is off: /history answers null, as Paxi's does"));
        }
        let text = "the file says nothing of quorums (-fz does, in Paxi): a majority of one zone accepts, as in the paper. \
                    Paxi's wpaxos waits for every node of the zone, which `[quorum] system = \"grid\"` does here; \
                    `system = \"floor\"` with zone_failures is -fz";
        notes.push(Note::new("quorum", text));
        let text = "a key without a value is read as 200 with an empty body, which Paxi's clients expect; `[http] missing = \
                    \"404\"` changes it";
        notes.push(Note::new("http", text));
        let text = "/crash, /drop and their kind are off, which Paxi's never are; `[faults] allowed = true` in a cluster \
                    file allows them";
        notes.push(Note::new("faults", text));
    }

    fn settings_toml(&self) -> String {
        let mut text = format!("name = \"{NAME}\"\n\n[quorum]\nsystem = \"zone-majority\"\n");
        self.steal.write_toml(&mut text);
        let http = HttpSettings { missing: Missing::Empty, ..HttpSettings::default() };
        http.write_toml(&mut text);
        HistoryBounds::write_toml(self.multiversion.then(HistoryBounds::default), &mut text);
        text
    }

    fn nodes_toml(&self) -> String {
        let node = |(id, address): (&NodeId, &SocketAddr)| {
            let http = self.http.get(id).map_or_else(String::new, |http| format!("http = \"{http}\"\n"));
            format!("\n[[node]]\nid = \"{id}\"\naddress = \"{address}\"\n{http}")
        };
        self.address.iter().map(node).collect()
    }
}

/// The policy, with its threshold in the unit that belongs to it.
fn steal(fields: &Fields, notes: &mut Vec<Note>) -> Result<StealPolicy, FieldError> {
    let policy = fields.text("policy", "consecutive")?;
    let threshold = |what: &str, min: f64, max: f64| {
        let number = fields.number("threshold", 3.0, f64::MIN, f64::MAX)?;
        let said = if fields.is_written("threshold") { "" } else { ", the default," };
        let wrong = || fields.wrong("threshold", format!("{number}{said} must be from {min} to {max}: {what}"));
        if (min..=max).contains(&number) { Ok(number) } else { Err(wrong()) }
    };
    if fields.is_written("policy") && fields.value("policy").is_none() {
        notes.push(Note::new(
            "policy",
            "null leaves the default, consecutive, as in Paxi; \"null\", in quotes, is never",
        ));
    }
    match policy.as_str() {
        "" | "null" => {
            if fields.is_written("threshold") {
                notes.push(Note::new("threshold", "has no meaning: without a policy nothing moves"));
            }
            Ok(StealPolicy::None)
        }
        "consecutive" => {
            let hits = threshold("requests in a row, for policy consecutive", 1.0, u32::MAX.into())?;
            if hits.fract() != 0.0 {
                let problem = format!("{hits} must be a whole number: requests in a row, for policy consecutive");
                return Err(fields.wrong("threshold", problem));
            }
            let text =
                format!("{hits} is requests in a row, for policy consecutive; they count by zone, in Paxi by node");
            notes.push(Note::new("threshold", text));
            Ok(StealPolicy::Consecutive { hits: hits as u32 })
        }
        "majority" => {
            let seconds = threshold("seconds, for policy majority", 0.001, INTERVAL_S_MAX as f64)?;
            let text = format!(
                "{seconds} is the length of an interval in seconds, for policy majority, as Paxi's code has it; the \
                 comment in its source says milliseconds, and if that was meant, write {}. A key moves to a zone with \
                 more than half of an interval's requests",
                seconds / 1000.0
            );
            notes.push(Note::new("threshold", text));
            let interval_us = thousandths(seconds * 1000.0, 1000, INTERVAL_S_MAX * 1_000_000);
            Ok(StealPolicy::Majority { interval_us: interval_us.expect("the bounds have been checked") })
        }
        "ema" => {
            let alpha = threshold("the weight of what is new, for policy ema", 0.001, 1.0)?;
            let text = format!(
                "{alpha} is the weight of the newest interval, for policy ema. Intervals are of a second and a key moves \
                 to the zone with more than half of the average; Paxi averages the numbers of zones, so that requests \
                 from 1 and 3 move it to 2"
            );
            notes.push(Note::new("threshold", text));
            let alpha_permille = thousandths(alpha, 1, 1000).expect("the bounds have been checked") as u32;
            Ok(StealPolicy::Ema { alpha_permille, interval_us: StealPolicy::INTERVAL_US })
        }
        other => {
            let near = suggest(&other.to_ascii_lowercase(), POLICIES);
            let problem = format!("'{other}' is not known: expected one of {}{near}", POLICIES.join(", "));
            Err(fields.wrong("policy", problem))
        }
    }
}

/// Names that were looked up.
struct Names<'a> {
    resolve: Resolve<'a>,
    found: BTreeMap<String, IpAddr>,
}

impl Names<'_> {
    /// An IPv4 address if there is one: `localhost` is often both, and IPv4 is what others expect of it.
    fn look_up(&mut self, name: &str) -> Result<IpAddr, String> {
        if let Some(found) = self.found.get(name) {
            return Ok(*found);
        }
        let all = (self.resolve)(name).map_err(|error| format!("the name '{name}' cannot be looked up: {error}"))?;
        let found = all.iter().find(|ip| ip.is_ipv4()).or(all.first());
        let found = *found.ok_or_else(|| format!("the name '{name}' has no address"))?;
        self.found.insert(name.to_owned(), found);
        Ok(found)
    }
}

fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// A map from ids to addresses.
fn addresses(
    fields: &Fields,
    map: &'static str,
    names: &mut Names<'_>,
    notes: &mut Vec<Note>,
) -> Result<BTreeMap<NodeId, SocketAddr>, FieldError> {
    let schemes = if map == "address" { address::NATIVE } else { address::HTTP };
    let (mut found, mut noted) = (BTreeMap::new(), BTreeSet::new());
    for (id, value) in fields.object(map)? {
        let wrong = |problem: String| fields.wrong(map, problem);
        let id: NodeId = id.parse().map_err(|error| wrong(format!("{error}")))?;
        let Json::Text(text) = value else {
            return Err(wrong(format!("{id}: {} is not an address in quotes", describe(&value))));
        };
        let written = Written::parse(&text, schemes).map_err(|problem| wrong(format!("{id}: {problem}")))?;
        let ip = match written.host.parse() {
            Ok(ip) => ip,
            Err(_) => names.look_up(written.host).map_err(|problem| wrong(format!("{id}: {problem}")))?,
        };
        let address = written.at(ip).map_err(|problem| wrong(format!("{id}: {problem}")))?;
        if found.insert(id, address).is_some() {
            return Err(wrong(format!("{id} is there twice; an id belongs to one node")));
        }
        if let Some(text) = written.note
            && noted.insert(text)
        {
            notes.push(Note::new(map, text));
        }
    }
    Ok(found)
}

/// That both maps have the same ids.
fn check_same(fields: &Fields, native: &BTreeSet<&NodeId>, http: &BTreeSet<&NodeId>) -> Result<(), FieldError> {
    for (map, own, other_map, others) in
        [("address", native, "http_address", http), ("http_address", http, "address", native)]
    {
        if let Some(id) = own.difference(others).next() {
            let problem = format!("{id} is here and not in `{other_map}`: add it there, or take it out here");
            return Err(fields.wrong(map, problem));
        }
    }
    Ok(())
}

fn describe(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::Text(_) => "a text",
        Json::List => "a list",
        Json::Object(_) => "an object",
    }
}

fn syntax(text: &str, file: &Path, error: &serde_json::Error) -> ConfigError {
    let line = error.line().max(1);
    // Its message ends with the place, which is said before.
    let message = error.to_string();
    let problem = message.rsplit_once(" at line ").map_or(message.as_str(), |(problem, _)| problem);
    ConfigError::Syntax {
        file: file.to_owned(),
        line,
        text: text.lines().nth(line - 1).unwrap_or_default().trim().chars().take(80).collect(),
        problem: format!("{problem} (column {}); the file is read as Paxi's JSON", error.column()),
    }
}
