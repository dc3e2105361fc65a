//! What tests of whole clusters share: processes that end with the test, and clients that keep account of every write.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use wpaxos::{
    client::{Client, Options, Outcome, admin::Admin},
    command::{Action, Expect},
    topology::NodeId,
};

/// How long anything may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A replica in a process of its own, killed by its own number when it is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
        command.args(["--log", "error"]).args(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    /// SIGKILL, as a crash would be.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(told.success());
    }

    /// Whether it has not ended.
    #[allow(dead_code, reason = "not every test that shares this module waits for an end")]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The exit code and what it said, once it has ended by itself.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut said = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                return (status.code(), said);
            }
            assert!(started.elapsed() < PATIENCE, "the process has not ended after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster of processes: three zones of three.
pub struct Processes {
    pub seeds: Vec<SocketAddr>,
    /// Where each node says how it is.
    pub http: Vec<SocketAddr>,
    pub config: PathBuf,
    pub nodes: Vec<Process>,
}

impl Processes {
    pub fn start(directory: &Path) -> Self {
        let mut seeds = free_addresses(18);
        let http = seeds.split_off(9);
        let config = directory.join("cluster.toml");
        let mut text = "name = \"e2e\"\n".to_owned();
        for (place, (address, http)) in seeds.iter().zip(&http).enumerate() {
            let id = Self::id(place);
            write!(text, "[[node]]\nid = \"{id}\"\naddress = \"{address}\"\nhttp = \"{http}\"\n").unwrap();
        }
        std::fs::write(&config, text).unwrap();
        let mut processes = Self { seeds, http, config, nodes: Vec::new() };
        processes.nodes = (0..9).map(|place| processes.start_node(place)).collect();
        for seed in &processes.seeds {
            let started = Instant::now();
            while TcpStream::connect(seed).is_err() {
                assert!(started.elapsed() < PATIENCE, "{seed} does not listen after {PATIENCE:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        processes
    }

    /// Waits until a node votes, and gives the version of the configuration that it votes in.
    pub fn wait_for_vote(&self, place: usize) -> u64 {
        let id: NodeId = Self::id(place).parse().unwrap();
        let admin = Admin::new(vec![(id, self.http[place])]);
        let started = Instant::now();
        loop {
            let status = admin.status(id);
            let membership = status.as_ref().map(|status| &status["shards"][0]["membership"]);
            if let Ok(version) = membership.map(|known| known["version"].as_u64().filter(|_| known["vote"] == "votes"))
                && let Some(version) = version
            {
                return version;
            }
            assert!(started.elapsed() < PATIENCE, "{id} does not vote after {PATIENCE:?}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn id(place: usize) -> String {
        format!("{}.{}", place / 3 + 1, place % 3 + 1)
    }

    pub fn start_node(&self, place: usize) -> Process {
        let (id, config) = (Self::id(place), self.config.to_str().unwrap());
        Process::start(["server", "--id", &id, "--config", config, "--durability", "none"])
    }
}

pub fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// A client in a zone.
pub fn client(seeds: &[SocketAddr], zone: u8) -> Client {
    let mut options = Options::to(seeds);
    options.zone = Some(zone);
    options.connect_timeout = PATIENCE;
    Client::connect(options).unwrap()
}

/// Puts a value that says `value` as soon as the cluster takes it.
pub fn put_at_last(client: &mut Client, key: &[u8], value: &[u8]) -> u64 {
    let started = Instant::now();
    loop {
        match client.put(key, value) {
            Ok(version) => return version,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{}: {error}", key.escape_ascii()),
        }
    }
}

/// What clients know of one key's writes.
#[derive(Default)]
struct Writes {
    /// By the version that the acknowledgement named.
    acknowledged: BTreeMap<u64, Vec<u8>>,
    /// Executed, at an unknown version.
    duplicates: Vec<Vec<u8>>,
    /// Executed or not.
    ambiguous: Vec<Vec<u8>>,
}

/// An account of all writes of one client, or of several together.
#[derive(Default)]
pub struct Account {
    keys: HashMap<Vec<u8>, Writes>,
    pub executed: u64,
    pub refused: Vec<String>,
    pub ambiguous: Vec<String>,
}

impl Account {
    /// Adds another client's account: no version may have been given to two writes.
    pub fn add(&mut self, other: Self) {
        for (key, writes) in other.keys {
            let mine = self.keys.entry(key.clone()).or_default();
            for (version, value) in writes.acknowledged {
                let twice = mine.acknowledged.insert(version, value);
                assert!(twice.is_none(), "two writes of {} were given version {version}", key.escape_ascii());
            }
            mine.duplicates.extend(writes.duplicates);
            mine.ambiguous.extend(writes.ambiguous);
        }
        self.executed += other.executed;
        self.refused.extend(other.refused);
        self.ambiguous.extend(other.ambiguous);
    }

    /// Nothing is lost and nothing doubled: each version stands for one write, and the last one's value is there.
    pub fn check(&self, client: &mut Client) {
        for (key, writes) in &self.keys {
            let name = key.escape_ascii();
            let (value, version) = match client.get(key) {
                Ok(found) => found.unwrap_or_default(),
                Err(error) => panic!("{name} cannot be read: {error}"),
            };
            let sure = (writes.acknowledged.len() + writes.duplicates.len()) as u64;
            let unsure = writes.ambiguous.len() as u64;
            assert!((sure..=sure + unsure).contains(&version), "{name}: version {version} after {sure} + {unsure}");
            match writes.acknowledged.get(&version) {
                Some(last) => assert_eq!(&value, last, "{name}"),
                None if version == 0 => {}
                None => {
                    let known = writes.ambiguous.contains(&value) || writes.duplicates.contains(&value);
                    assert!(known, "{name} holds what nobody wrote last");
                }
            }
        }
    }
}

/// Keeps requests in flight until `stop`, and then waits for the last: puts, compare-and-swaps on the version last heard
/// of, and gets. Every value is written once.
pub fn drive(mut client: Client, keys: usize, window: usize, stop: &AtomicBool, done: &AtomicUsize) -> Account {
    let zone = client.zone();
    let mut account = Account::default();
    let mut versions: HashMap<Vec<u8>, u64> = HashMap::new();
    let mut sent: HashMap<u64, (Vec<u8>, Vec<u8>)> = HashMap::new();
    let mut tag = 0u64;
    while !stop.load(Ordering::Relaxed) || client.in_flight() > 0 {
        while client.in_flight() < window && !stop.load(Ordering::Relaxed) {
            tag += 1;
            let key = format!("key-{}", tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys as u64).into_bytes();
            let value = format!("{zone}/{}/{tag}", client.client_id()).into_bytes();
            let action = match tag % 4 {
                0 => Action::Get,
                1 => Action::CompareAndSwap {
                    expect: Expect::Version(versions.get(&key).copied().unwrap_or(0)),
                    value: &value,
                },
                _ => Action::Put(&value),
            };
            client.submit(action, &key, tag).unwrap();
            sent.insert(tag, (key, value));
        }
        client
            .poll(Duration::from_millis(20), &mut |completion| {
                let (key, value) = sent.remove(&completion.tag).expect("one completion for each request");
                let note = |why: &dyn std::fmt::Debug| format!("{} {:?}: {why:?}", key.escape_ascii(), completion.op);
                match completion.outcome {
                    Outcome::Refused(status) => account.refused.push(note(&status)),
                    Outcome::Ambiguous(why) => account.ambiguous.push(note(&why)),
                    _ => {
                        account.executed += 1;
                        done.fetch_add(1, Ordering::Relaxed);
                        let version = versions.entry(key.clone()).or_default();
                        *version = completion.version.max(*version);
                    }
                }
                if !completion.op.is_write() {
                    return;
                }
                let writes = account.keys.entry(key).or_default();
                match completion.outcome {
                    Outcome::Done => {
                        let twice = writes.acknowledged.insert(completion.version, value);
                        assert!(twice.is_none(), "version {} was given twice", completion.version);
                    }
                    // A swap that was executed may still have failed.
                    Outcome::Duplicate if completion.tag % 4 != 1 => writes.duplicates.push(value),
                    Outcome::Duplicate | Outcome::Ambiguous(_) => writes.ambiguous.push(value),
                    _ => {}
                }
            })
            .unwrap();
    }
    account
}

/// Waits until so many requests more have been executed.
pub fn wait_for(done: &AtomicUsize, more: usize) {
    let (started, before) = (Instant::now(), done.load(Ordering::Relaxed));
    while done.load(Ordering::Relaxed) < before + more {
        let now = done.load(Ordering::Relaxed) - before;
        assert!(started.elapsed() < PATIENCE, "{now} requests of {more} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
