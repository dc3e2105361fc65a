//! A cluster of real processes that are killed, paused, started again and robbed of their disks. Each has a loopback IP of its
//! own, so that no connection of anybody takes the port of a replica that is down.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wpaxos::{
    client::{Client, Options, admin::Admin},
    topology::NodeId,
};

use crate::{proxy::Proxies, support::PATIENCE};

/// Segments that roll, and checkpoints that are written, while a test lasts.
pub const SMALL_LOG: &str = "[log]\nsegment_bytes = 65536\ngroup_bytes_max = 65536\ncheckpoint_log_bytes = 131072\n";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub zones: u8,
    pub nodes: u8,
    /// The lines of `[quorum]`.
    pub quorum: &'static str,
    /// Whether nodes keep their state, in mode sync.
    pub durable: bool,
    /// The tuning file.
    pub tuning: &'static str,
    /// Whether proxies stand between the nodes.
    pub proxied: bool,
}

impl Plan {
    pub fn new(zones: u8, nodes: u8, quorum: &'static str) -> Self {
        Self { zones, nodes, quorum, durable: true, tuning: SMALL_LOG, proxied: false }
    }
}

/// The processes. A test that fails leaves their logs and directories where it says.
pub struct Fleet {
    pub ids: Vec<NodeId>,
    plan: Plan,
    native: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    nodes: Vec<Option<Child>>,
    pub proxies: Proxies,
    directory: Option<tempfile::TempDir>,
}

/// Clusters of this process.
static FLEETS: AtomicU16 = AtomicU16::new(0);

impl Fleet {
    /// Starts all nodes and waits until all of them vote.
    pub fn start(plan: Plan) -> Self {
        let mut fleet = Self::prepare(plan);
        fleet.start_nodes(fleet.all());
        fleet.wait_for_votes(fleet.all());
        fleet
    }

    /// Everything but the processes.
    pub fn prepare(plan: Plan) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ids: Vec<NodeId> =
            (1..=plan.zones).flat_map(|zone| (1..=plan.nodes).map(move |node| NodeId::new(zone, node))).collect();
        let count = ids.len();
        let (fleet, process) = (FLEETS.fetch_add(1, Ordering::Relaxed), std::process::id());
        let ip =
            |place: usize| IpAddr::from([127, (process / 250 % 250 + 1) as u8, (process % 250) as u8, place as u8 + 1]);
        let at = |port: u16| (0..count).map(|place| SocketAddr::new(ip(place), port + fleet)).collect::<Vec<_>>();
        let (native, http) = (at(7000), at(8000));
        let proxies = if plan.proxied { Proxies::between(&native) } else { Proxies::none() };
        let nodes = (0..count).map(|_| None).collect();
        let fleet = Self { ids, plan, native, http, nodes, proxies, directory: Some(directory) };
        (0..count).for_each(|place| fleet.write_config(place));
        fs::write(fleet.path("tuning.toml"), fleet.plan.tuning).unwrap();
        fleet
    }

    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.ids.len()
    }

    /// The places of the nodes of a zone, from 1.
    pub fn zone(&self, zone: u8) -> impl Iterator<Item = usize> + use<> {
        let nodes = usize::from(self.plan.nodes);
        (0..nodes).map(move |node| usize::from(zone - 1) * nodes + node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().expect("it is there until the end").path().join(name)
    }

    /// The file of one node: others are where it can reach them.
    fn write_config(&self, place: usize) {
        let mut text = format!("name = \"fleet\"\n[quorum]\n{}\n", self.plan.quorum);
        for (other, id) in self.ids.iter().enumerate() {
            let native = self.proxies.address(place, other).unwrap_or(self.native[other]);
            let http = self.http[other];
            write!(text, "[[node]]\nid = \"{id}\"\naddress = \"{native}\"\nhttp = \"{http}\"\n").unwrap();
        }
        fs::write(self.path(&format!("{}.toml", self.ids[place])), text).unwrap();
    }

    pub fn start_nodes(&mut self, places: impl IntoIterator<Item = usize>) {
        places.into_iter().for_each(|place| self.start_node(place));
    }

    /// Starts a node that is down, once the kernel has cleared up behind the process before.
    pub fn start_node(&mut self, place: usize) {
        assert!(self.nodes[place].is_none(), "{} runs", self.ids[place]);
        for address in [self.native[place], self.http[place]] {
            let started = Instant::now();
            while TcpStream::connect(address).is_ok() {
                assert!(started.elapsed() < PATIENCE, "somebody listens at {address}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.nodes[place] = Some(self.spawn(place, &self.ids[place].to_string()));
    }

    /// A process that runs as a node, with file, data directory and log of this name.
    fn spawn(&self, place: usize, data: &str) -> Child {
        let id = self.ids[place].to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
        command.args(["server", "--id", &id, "--config"]).arg(self.path(&format!("{data}.toml")));
        command.arg("--tuning").arg(self.path("tuning.toml"));
        match self.plan.durable {
            true => command.arg("--data").arg(self.path(data)),
            false => command.args(["--durability", "none"]),
        };
        let log = File::options().create(true).append(true).open(self.path(&format!("{data}.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// SIGKILL, all at once.
    pub fn kill(&mut self, places: impl IntoIterator<Item = usize>) {
        let places: Vec<usize> = places.into_iter().collect();
        places.iter().for_each(|place| self.signal(*place, Signal::KILL));
        for place in places {
            let mut child = self.nodes[place].take().unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.code(), None, "{} had ended before it was killed: {}", self.ids[place], self.said(place));
        }
    }

    pub fn pause(&self, place: usize) {
        self.signal(place, Signal::STOP);
    }

    pub fn resume(&self, place: usize) {
        self.signal(place, Signal::CONT);
    }

    fn signal(&self, place: usize, signal: Signal) {
        let child = self.nodes[place].as_ref().unwrap_or_else(|| panic!("{} is down", self.ids[place]));
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Throws away what a node that is down has kept.
    pub fn lose_disk(&self, place: usize) {
        assert!(self.nodes[place].is_none(), "{} runs", self.ids[place]);
        fs::remove_dir_all(self.path(&self.ids[place].to_string())).unwrap();
    }

    /// Copies what a node that is down has kept to somewhere else.
    pub fn copy_disk(&self, place: usize) {
        assert!(self.nodes[place].is_none(), "{} runs", self.ids[place]);
        let id = self.ids[place].to_string();
        copy_directory(&self.path(&id), &self.path(&format!("{id}-copy")));
    }

    /// Puts the copy in place of what a node that is down has kept.
    pub fn put_copy_back(&self, place: usize) {
        self.lose_disk(place);
        let id = self.ids[place].to_string();
        fs::rename(self.path(&format!("{id}-copy")), self.path(&id)).unwrap();
    }

    /// Whether a node has a checkpoint: its log has rolled.
    pub fn has_checkpoint(&self, place: usize) -> bool {
        let shard = self.path(&self.ids[place].to_string()).join("shard-0");
        let names = fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.into_iter().any(|name| name.starts_with("checkpoint-") && !name.ends_with(".new"))
    }

    /// What a node has logged.
    pub fn said(&self, place: usize) -> String {
        fs::read_to_string(self.path(&format!("{}.log", self.ids[place]))).unwrap_or_default()
    }

    pub fn zone_of(&self, place: usize) -> u8 {
        self.ids[place].zone
    }

    /// The place of the node that owns a key, as the first node that answers sees it.
    pub fn owner_of(&self, key: &str) -> Option<usize> {
        let members: Vec<_> = self.ids.iter().zip(&self.http).map(|(id, http)| (*id, *http)).collect();
        let admin = Admin::new(members).with_timeout(Duration::from_secs(2));
        let owner = self.ids.iter().find_map(|id| admin.owner(*id, key.as_bytes()).ok())??.owner?;
        self.ids.iter().position(|id| *id == owner)
    }

    /// Waits until every node does what it is asked for, and says how long that took.
    pub fn wait_for_service(&mut self, key: &str) -> Duration {
        let started = Instant::now();
        for place in self.all() {
            while self.put_at(place, key, "served").0 >= 300 {
                self.check_alive();
                assert!(started.elapsed() < PATIENCE, "{} does not serve after {PATIENCE:?}", self.ids[place]);
            }
        }
        started.elapsed()
    }

    /// Fails if a process has ended that nobody killed.
    pub fn check_alive(&mut self) {
        for place in self.all() {
            let ended = self.nodes[place].as_mut().and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                let said = self.said(place);
                let last: Vec<&str> = said.lines().rev().take(12).collect();
                panic!(
                    "{} has ended by itself ({status}); its last lines, backwards:\n{}",
                    self.ids[place],
                    last.join("\n")
                );
            }
        }
    }

    /// The node's own words, if it answers.
    pub fn status(&self, place: usize) -> Option<Value> {
        let members = self.ids.iter().zip(&self.http).map(|(id, http)| (*id, *http)).collect();
        Admin::new(members).with_timeout(Duration::from_secs(2)).status(self.ids[place]).ok()
    }

    /// What a node may do in its configuration, and that one's version.
    pub fn membership(&self, place: usize) -> Option<Value> {
        Some(self.status(place)?["shards"][0]["membership"].clone()).filter(Value::is_object)
    }

    pub fn wait_for_votes(&mut self, places: impl IntoIterator<Item = usize>) {
        for place in places {
            self.wait_for_vote(place, "votes");
        }
    }

    /// Waits until a node is what `vote` says, and gives the configuration's version.
    pub fn wait_for_vote(&mut self, place: usize, vote: &str) -> u64 {
        let started = Instant::now();
        loop {
            let membership = self.membership(place);
            if let Some(known) = membership.as_ref().filter(|known| known["vote"] == vote) {
                return known["version"].as_u64().unwrap();
            }
            self.check_alive();
            let id = self.ids[place];
            assert!(started.elapsed() < PATIENCE, "{id} is not '{vote}' after {PATIENCE:?}, but {membership:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A client in a zone that knows all nodes.
    pub fn client(&self, zone: u8) -> Client {
        self.client_with(zone, |_| {})
    }

    pub fn client_with(&self, zone: u8, set: impl FnOnce(&mut Options)) -> Client {
        let mut options = Options::to(&self.native);
        options.zone = Some(zone);
        options.connect_timeout = PATIENCE;
        set(&mut options);
        Client::connect(options).unwrap()
    }

    /// A PUT over HTTP at exactly this node: the status of its answer, and how long it took.
    pub fn put_at(&self, place: usize, key: &str, value: &str) -> (u16, Duration) {
        self.ask_at(place, "PUT", key, value)
    }

    /// The same for a GET.
    pub fn get_at(&self, place: usize, key: &str) -> (u16, Duration) {
        self.ask_at(place, "GET", key, "")
    }

    fn ask_at(&self, place: usize, method: &str, key: &str, body: &str) -> (u16, Duration) {
        let started = Instant::now();
        let mut stream = TcpStream::connect(self.http[place]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("host: test\r\nconnection: close\r\ncontent-length: {}", body.len());
        write!(stream, "{method} /{key} HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer of HTTP: {answer:?}")), started.elapsed())
    }

    /// Starts a second process as a node, on a data directory and at addresses of its own.
    pub fn start_twin(&self, place: usize) -> Twin {
        let (id, ip) = (self.ids[place], self.native[place].ip());
        let http = SocketAddr::new(ip, 6001);
        let mut text = fs::read_to_string(self.path(&format!("{id}.toml"))).unwrap();
        for (own, other) in [(self.native[place], SocketAddr::new(ip, 6000)), (self.http[place], http)] {
            text = text.replace(&format!("\"{own}\""), &format!("\"{other}\""));
        }
        let name = format!("{id}-twin");
        fs::write(self.path(&format!("{name}.toml")), text).unwrap();
        Twin { child: self.spawn(place, &name), log: self.path(&format!("{name}.log")) }
    }

    /// The exit code and the last words of a node that ends by itself.
    pub fn ended(&mut self, place: usize) -> (Option<i32>, String) {
        wait_for_end(self.nodes[place].as_mut().unwrap());
        let code = self.nodes[place].take().unwrap().wait().unwrap().code();
        (code, self.said(place).lines().last().unwrap_or_default().to_owned())
    }

    /// `wpaxos cmd` at this cluster: the rows that it prints, cell by cell.
    pub fn cmd(&self, words: &[&str]) -> Vec<Vec<String>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
        command
            .args(["--log", "error", "cmd", "--config"])
            .arg(self.path(&format!("{}.toml", self.ids[0])))
            .args(words);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let rows = String::from_utf8(output.stdout).unwrap();
        let cells =
            |row: &str| row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect();
        rows.lines().map(cells).collect()
    }
}

/// A second process of a node.
pub struct Twin {
    child: Child,
    log: PathBuf,
}

impl Twin {
    /// Waits until it has said so.
    pub fn wait_until_said(&self, what: &str) {
        let started = Instant::now();
        loop {
            let said = self.said();
            if said.contains(what) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "it has not said '{what}' after {PATIENCE:?}: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its exit code and its last words, once it has ended by itself.
    pub fn ended(&mut self) -> (Option<i32>, String) {
        wait_for_end(&mut self.child);
        let code = self.child.wait().unwrap().code();
        (code, self.said().lines().last().unwrap_or_default().to_owned())
    }
}

fn wait_for_end(child: &mut Child) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < PATIENCE, "it has not ended after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            eprintln!("logs and data of the nodes are kept in {}", directory.keep().display());
        }
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
