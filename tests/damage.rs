//! Random damage to copies of data directories: of a single node, and of one of three nodes, stopped well, killed when they
//! were quiet, and killed at work. Each must be harmless, be repaired, or end the start with exit code 7 or 9 and a text that
//! says where; acknowledged writes never go silently.
//!
//! Of a node that was killed at work, the writes of its last moments may be cut like a write that had not ended:
//! `docs/operations.md` says which. Everything older must be there.
//!
//! `WPAXOS_DAMAGES` sets how many damages there are in all, `WPAXOS_DAMAGE_SEED` what they are.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/recorded.rs"]
mod recorded;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use recorded::Random;
use support::{PATIENCE, free_addresses, put_at_last};
use tempfile::TempDir;
use wpaxos::{
    client::{Client, Options, admin::Admin},
    topology::NodeId,
};

const SHARDS: usize = 2;
const KEYS: usize = 24;
const TUNING: &str = "[log]\nsegment_bytes = 65536\ngroup_bytes_max = 32768\ncheckpoint_log_bytes = 131072\n";
/// What was written so long before a kill must be known to have been written, also on a busy machine.
const NOTED: Duration = Duration::from_secs(4);

/// How the nodes of an image ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    Stopped,
    KilledQuiet,
    KilledAtWork,
}

/// Data directories, and what was acknowledged on them.
struct Image {
    directory: TempDir,
    nodes: usize,
    end: End,
    /// By key: when each value was acknowledged. The values are numbered from 1.
    acknowledged: Vec<Vec<Instant>>,
    /// The last number of each key that was sent.
    sent: usize,
    ended: Instant,
}

/// A replica that runs on a copy.
struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn code(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(|status| status.code().expect("nobody killed it"))
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    fn stop(&mut self) {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(told.success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.said());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster of one zone on directories below one, at addresses of its own.
struct Cluster {
    directory: PathBuf,
    native: Vec<Vec<SocketAddr>>,
    http: Vec<SocketAddr>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    fn new(directory: &Path, nodes: usize) -> Self {
        let mut addresses = free_addresses(nodes * (SHARDS + 1));
        let http = addresses.split_off(nodes * SHARDS);
        let native: Vec<Vec<SocketAddr>> = addresses.chunks(SHARDS).map(<[_]>::to_vec).collect();
        let mut text = format!("name = \"kept\"\nshards = {SHARDS}\n");
        for (place, (native, http)) in native.iter().zip(&http).enumerate() {
            let native: Vec<String> = native.iter().map(SocketAddr::to_string).collect();
            write!(text, "[[node]]\nid = \"1.{}\"\naddresses = {native:?}\nhttp = \"{http}\"\n", place + 1).unwrap();
        }
        fs::write(directory.join("cluster.toml"), text).unwrap();
        fs::write(directory.join("tuning.toml"), TUNING).unwrap();
        let mut cluster =
            Self { directory: directory.to_owned(), native, http, nodes: (0..nodes).map(|_| None).collect() };
        (0..nodes).for_each(|place| cluster.start(place));
        cluster
    }

    fn data(&self, place: usize) -> PathBuf {
        self.directory.join(format!("1.{}", place + 1))
    }

    fn start(&mut self, place: usize) {
        let id = format!("1.{}", place + 1);
        let log = self.directory.join(format!("{id}.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
        command.args(["--log", "warn", "server", "--id", &id, "--data"]).arg(self.data(place));
        command.arg("--config").arg(self.directory.join("cluster.toml"));
        command.arg("--tuning").arg(self.directory.join("tuning.toml"));
        let said = File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        self.nodes[place] = Some(Node { child, log });
    }

    fn node(&mut self, place: usize) -> &mut Node {
        self.nodes[place].as_mut().expect("it was started")
    }

    /// Waits until a node listens everywhere or has ended: its exit code then.
    fn settle(&mut self, place: usize) -> Option<i32> {
        let (started, mut waiting) = (Instant::now(), self.native[place].clone());
        loop {
            if let Some(code) = self.node(place).code() {
                return Some(code);
            }
            waiting.retain(|address| TcpStream::connect(address).is_err());
            if waiting.is_empty() {
                return None;
            }
            assert!(started.elapsed() < PATIENCE, "it neither listens nor ends: {}", self.node(place).said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_votes(&self) {
        let ids: Vec<NodeId> = (0..self.nodes.len()).map(|place| NodeId::new(1, place as u8 + 1)).collect();
        let admin = Admin::new(ids.iter().copied().zip(self.http.iter().copied()).collect());
        let started = Instant::now();
        let votes = |id: NodeId| {
            let shards = admin.status(id).ok().map(|status| status["shards"].as_array().cloned().unwrap_or_default());
            shards.is_some_and(|shards| shards.iter().all(|shard| shard["membership"]["vote"] == "votes"))
        };
        while !ids.iter().all(|id| votes(*id)) {
            assert!(started.elapsed() < PATIENCE, "not all nodes vote after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn client(&self) -> Client {
        let live = self.nodes.iter().zip(&self.native).filter(|(node, _)| node.is_some());
        let seeds: Vec<SocketAddr> = live.flat_map(|(_, native)| native.iter().copied()).collect();
        let mut options = Options::to(&seeds);
        options.zone = Some(1);
        options.connect_timeout = PATIENCE;
        Client::connect(options).unwrap()
    }
}

fn key(number: usize) -> String {
    format!("key-{number}")
}

/// The `number`th value of a key: of some length, and with its number in front.
fn value(key: usize, number: usize) -> Vec<u8> {
    let bytes = 100 + (key * 7 + number * 13) % 60 * 50;
    let mut value = format!("{key}/{number}/").into_bytes();
    value.resize(bytes, b'.');
    value
}

impl Image {
    /// Runs a cluster twice: writes, stops, keeps a copy as an older state, writes more, and ends as it is told.
    fn make(nodes: usize, end: End) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut image =
            Self { directory, nodes, end, acknowledged: vec![Vec::new(); KEYS], sent: 0, ended: Instant::now() };
        let run = image.directory.path().join("run");
        fs::create_dir(&run).unwrap();
        let mut cluster = Cluster::new(&run, nodes);
        cluster.wait_for_votes();
        image.write(&cluster, 6);
        for older in [true, false] {
            if older || end == End::Stopped {
                (0..nodes).for_each(|place| cluster.node(place).stop());
            } else {
                (0..nodes).for_each(|place| cluster.node(place).kill());
            }
            image.ended = Instant::now();
            let kept = image.directory.path().join(if older { "older" } else { "last" });
            fs::create_dir(&kept).unwrap();
            (0..nodes).for_each(|place| copy(&cluster.data(place), &kept.join(format!("1.{}", place + 1))));
            if older {
                cluster = Cluster::new(&run, nodes);
                cluster.wait_for_votes();
                image.write(&cluster, 6);
                let until = Instant::now() + NOTED;
                while end == End::KilledAtWork && Instant::now() < until {
                    image.write(&cluster, 1);
                }
                if end == End::KilledQuiet {
                    std::thread::sleep(NOTED);
                }
                if end == End::KilledAtWork {
                    image.write(&cluster, 1);
                }
            }
        }
        image
    }

    /// Puts so many further values for each key.
    fn write(&mut self, cluster: &Cluster, values: usize) {
        let mut client = cluster.client();
        for _ in 0..values {
            self.sent += 1;
            for number in 0..KEYS {
                put_at_last(&mut client, key(number).as_bytes(), &value(number, self.sent));
                self.acknowledged[number].push(Instant::now());
            }
        }
    }

    /// A copy of the directories as they were at the end.
    fn copy_to(&self, directory: &Path) {
        copy(&self.directory.path().join("last"), directory);
    }

    /// Reads every key: true if all that was acknowledged is there, false if only the last moments of a node that was killed
    /// at work are missing. `None` if the node at `hit` ended because of damage that its peers told it of.
    ///
    /// # Panics
    /// If anything else is missing: a silent loss.
    fn check(&self, cluster: &mut Cluster, hit: usize, what: &str) -> Option<bool> {
        let mut client = cluster.client();
        let mut all = true;
        for (number, acknowledged) in self.acknowledged.iter().enumerate() {
            let started = Instant::now();
            let found = loop {
                match client.get(key(number).as_bytes()) {
                    Ok(found) => break found.map(|(value, _)| value).unwrap_or_default(),
                    Err(_) if cluster.nodes[hit].as_mut().is_some_and(|node| node.code() == Some(9)) => return None,
                    Err(error) => {
                        assert!(started.elapsed() < PATIENCE, "{what}: {} is not served: {error}", key(number))
                    }
                }
            };
            let text = String::from_utf8_lossy(&found[..found.len().min(20)]).into_owned();
            let read = text.split('/').nth(1).map_or(0, |number| number.parse().expect("its number"));
            assert!(read == 0 || found == value(number, read), "{what}: {} holds what nobody wrote", key(number));
            let early = |at: &&Instant| self.end != End::KilledAtWork || **at + NOTED < self.ended;
            let noted = acknowledged.iter().filter(early).count();
            assert!(
                read >= noted,
                "SILENT LOSS by {what}: {} is at value {read}, {noted} was acknowledged",
                key(number)
            );
            all &= read >= acknowledged.len();
        }
        Some(all)
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// All files below a directory, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    FlippedBit,
    Zeroed,
    Cut,
    Emptied,
    Deleted,
    OfAnotherNode,
    OfAnOlderCopy,
    Exchanged,
    Renamed,
    Duplicated,
    Junk,
}

const KINDS: [Kind; 11] = [
    Kind::FlippedBit,
    Kind::Zeroed,
    Kind::Cut,
    Kind::Emptied,
    Kind::Deleted,
    Kind::OfAnotherNode,
    Kind::OfAnOlderCopy,
    Kind::Exchanged,
    Kind::Renamed,
    Kind::Duplicated,
    Kind::Junk,
];

/// What was done, and where.
struct Damage {
    kind: Kind,
    text: String,
    /// Directories one of which a refusal has to name.
    places: Vec<PathBuf>,
}

/// Flips a bit of a file's bytes, makes some of them zero, or cuts them.
fn change(kind: Kind, bytes: &mut Vec<u8>, name: &str, random: &mut Random) -> String {
    // Half of them in what holds something.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1).max(1);
    let bound = if random.below(2) == 0 { used } else { bytes.len().max(1) };
    let at = random.below(bound);
    match kind {
        Kind::FlippedBit => {
            let bit = random.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            format!("bit {bit} of byte {at} of {name}")
        }
        Kind::Zeroed => {
            let end = (at + 1 + random.below(20_000)).min(bytes.len());
            bytes[at.min(end)..end].fill(0);
            format!("bytes {at} to {end} of {name}")
        }
        _ => {
            bytes.truncate(at);
            format!("{name} at {at}")
        }
    }
}

/// Damages a file of `data`, which is one of the directories of an image.
fn damage(kind: Kind, data: &Path, older: &Path, foreign: &Path, random: &mut Random) -> Damage {
    let all = files(data);
    let any = |random: &mut Random| all[random.below(all.len())].clone();
    let target = any(random);
    let name = |path: &Path| path.strip_prefix(data).unwrap().display().to_string();
    let own = target.parent().unwrap().to_path_buf();
    let mut places = vec![own.clone()];
    let mut bytes = fs::read(&target).unwrap();
    let text = match kind {
        Kind::FlippedBit | Kind::Zeroed | Kind::Cut => change(kind, &mut bytes, &name(&target), random),
        Kind::Emptied => {
            bytes.clear();
            name(&target)
        }
        Kind::Deleted => {
            fs::remove_file(&target).unwrap();
            return Damage { kind, text: name(&target), places };
        }
        Kind::OfAnotherNode | Kind::OfAnOlderCopy => {
            let from = if kind == Kind::OfAnotherNode { foreign } else { older };
            let same = from.join(target.strip_prefix(data).unwrap());
            let others = files(same.parent().unwrap());
            let source = if same.exists() { same } else { others[random.below(others.len())].clone() };
            bytes = fs::read(&source).unwrap();
            name(&target)
        }
        Kind::Exchanged => {
            let other = any(random);
            fs::write(&target, fs::read(&other).unwrap()).unwrap();
            fs::write(&other, bytes).unwrap();
            places.push(other.parent().unwrap().to_path_buf());
            return Damage { kind, text: format!("{} and {}", name(&target), name(&other)), places };
        }
        Kind::Renamed | Kind::Duplicated => {
            let file = target.file_name().unwrap().to_str().unwrap();
            let to = match random.below(5) {
                0 => own.join(format!("{file}.bak")),
                1 => own.join("segment-77"),
                2 => own.join("checkpoint-00000000000000000007"),
                3 => own.join(format!("{file}.new")),
                _ => any(random).with_file_name(format!("{file}1")),
            };
            fs::write(&to, &bytes).unwrap();
            if kind == Kind::Renamed {
                fs::remove_file(&target).unwrap();
            }
            places.push(to.parent().unwrap().to_path_buf());
            return Damage { kind, text: format!("{} to {}", name(&target), name(&to)), places };
        }
        Kind::Junk => {
            let names = [
                "segment-77",
                "checkpoint-00000000000000000007",
                "notes.txt",
                "beginning.new",
                "end.new",
                "segment-9.new",
            ];
            let path = own.join(names[random.below(names.len())]);
            let junk: Vec<u8> = (0..[10, 4096, 65_536][random.below(3)]).map(|_| random.next() as u8).collect();
            fs::write(&path, junk).unwrap();
            return Damage { kind, text: name(&path), places };
        }
    };
    fs::write(&target, bytes).unwrap();
    Damage { kind, text, places }
}

/// What came of a damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Came {
    Harmless,
    Repaired,
    Refused,
    /// Only what was written in the last moments before a kill at work is missing.
    LastMoments,
}

/// The files of the directory that a damage hit, but those that each start writes. Where it hit two, one may be well.
fn contents(damage: &Damage) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_one = damage.places.iter().all(|place| *place == damage.places[0]);
    let mut contents = BTreeMap::new();
    for path in fs::read_dir(&damage.places[0]).unwrap().map(|entry| entry.unwrap().path()).filter(|_| is_one) {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_file() && name != "LOCK" && !name.starts_with("boot.") {
            contents.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    contents
}

/// Starts a cluster on directories one of which is damaged, and says what came of it.
fn outcome(image: &Image, directory: &Path, hit: usize, damage: &Damage, what: &str, random: &mut Random) -> Came {
    let before = contents(damage);
    let mut cluster = Cluster::new(directory, image.nodes);
    for place in (0..image.nodes).filter(|place| *place != hit) {
        assert_eq!(cluster.settle(place), None, "{what}: {}", cluster.node(place).said());
    }
    if let Some(code) = cluster.settle(hit) {
        let said = cluster.node(hit).said();
        assert!(matches!(code, 7 | 9), "{what}: exit code {code}: {said}");
        let named = damage.places.iter().any(|place| said.contains(place.to_str().unwrap()));
        assert!(named, "{what}: the place is not named in: {said}");
        assert_eq!(before, contents(damage), "{what}: something was changed");
        without(image, &mut cluster, hit, what, random);
        return Came::Refused;
    }
    let mut all = image.check(&mut cluster, hit, what);
    if image.nodes > 1 {
        // Without another one, what the damaged node promised and accepted is needed.
        let next = other(image, hit, random);
        cluster.nodes[next] = None;
        let again = image.check(&mut cluster, hit, what);
        all = all.and_then(|all| Some(all & again?));
    }
    let said = cluster.node(hit).said();
    let repaired =
        ["It was made anew", "this one written anew", "it is cut off"].iter().any(|text| said.contains(text));
    match (all, repaired) {
        (None, _) => Came::Refused,
        (Some(false), _) => Came::LastMoments,
        (Some(true), true) => Came::Repaired,
        (Some(true), false) => Came::Harmless,
    }
}

fn other(image: &Image, hit: usize, random: &mut Random) -> usize {
    (hit + 1 + random.below(image.nodes - 1)) % image.nodes
}

/// A node has refused its directory: the others serve, and it comes back as one that has lost its disk and is counted on.
fn without(image: &Image, cluster: &mut Cluster, hit: usize, what: &str, random: &mut Random) {
    cluster.nodes[hit] = None;
    if image.nodes == 1 {
        return;
    }
    image.check(cluster, hit, what);
    fs::remove_dir_all(cluster.data(hit)).unwrap();
    cluster.start(hit);
    cluster.wait_for_votes();
    let next = other(image, hit, random);
    cluster.nodes[next] = None;
    image.check(cluster, hit, what);
}

fn damages(test: &str, nodes: usize) {
    let count: usize = std::env::var("WPAXOS_DAMAGES").map_or(22, |count| count.parse().expect("a number")) / 2;
    let given = std::env::var("WPAXOS_DAMAGE_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    let seed: u64 = given.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("{test}: WPAXOS_DAMAGE_SEED={seed}");
    let mut random = Random::from_seed(seed);
    let images = [End::Stopped, End::KilledQuiet, End::KilledAtWork].map(|end| Image::make(nodes, end));
    let foreign = Image::make(nodes, End::Stopped);
    let mut table: BTreeMap<(Kind, Came), usize> = BTreeMap::new();
    for number in 0..count {
        let (kind, image) = (KINDS[number % KINDS.len()], &images[random.below(images.len())]);
        let directory = tempfile::tempdir().unwrap();
        image.copy_to(directory.path());
        let hit = random.below(nodes);
        let node = format!("1.{}", hit + 1);
        let older = image.directory.path().join("older").join(&node);
        // The same node of another cluster of this name, or another node of this one.
        let foreign = if nodes > 1 && random.below(2) == 0 {
            image.directory.path().join("last").join(format!("1.{}", other(image, hit, &mut random) + 1))
        } else {
            foreign.directory.path().join("last").join(&node)
        };
        let damage = damage(kind, &directory.path().join(&node), &older, &foreign, &mut random);
        let what = format!("damage {number} of seed {seed}: {kind:?}: {} of {node}, {:?}", damage.text, image.end);
        let came = outcome(image, directory.path(), hit, &damage, &what, &mut random);
        eprintln!("{what}: {came:?}");
        *table.entry((damage.kind, came)).or_default() += 1;
    }
    let outcomes = [Came::Harmless, Came::Repaired, Came::Refused, Came::LastMoments];
    eprintln!("\n{:>14} {outcomes:?}", "");
    for kind in KINDS {
        let counts = outcomes.map(|came| table.get(&(kind, came)).copied().unwrap_or(0));
        eprintln!("{:>14} {counts:?}", format!("{kind:?}"));
    }
}

#[test]
fn damage_to_the_directory_of_a_single_node_is_never_silent() {
    damages("one node", 1);
}

#[test]
fn damage_to_the_directory_of_one_of_three_nodes_is_never_silent() {
    damages("three nodes", 3);
}
