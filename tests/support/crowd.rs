//! Replicas in processes of their own under limits, and crowds of connections to them.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use wpaxos::{
    api::native::ClientHello,
    client::{Client, Options},
    wire::{self, HEADER_BYTES, Kind},
};

/// How long anything may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A replica in a process of its own, killed by its own number when it is dropped.
pub struct Replica {
    child: Child,
    said: PathBuf,
}

impl Replica {
    /// SIGKILL, as a crash would be.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The exit code, once it has ended.
    pub fn code(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.said.display(), self.said());
        }
    }
}

/// One zone of replicas of one shard each.
pub struct Replicas {
    directory: TempDir,
    pub native: Vec<SocketAddr>,
    pub http: Vec<SocketAddr>,
    /// Whether they keep their state.
    pub durable: bool,
    /// Open files that each may have.
    pub limit: Option<usize>,
    running: Vec<Option<Replica>>,
    spawned: std::cell::Cell<usize>,
}

impl Replicas {
    pub fn new(count: usize, tuning: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listeners: Vec<_> = (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut native: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let http = native.split_off(count);
        let mut text = "name = \"bounds\"\n".to_owned();
        for (place, (address, http)) in native.iter().zip(&http).enumerate() {
            let id = place + 1;
            write!(text, "[[node]]\nid = \"1.{id}\"\naddress = \"{address}\"\nhttp = \"{http}\"\n").unwrap();
        }
        fs::write(directory.path().join("cluster.toml"), text).unwrap();
        fs::write(directory.path().join("tuning.toml"), tuning).unwrap();
        let running = (0..count).map(|_| None).collect();
        Self { directory, native, http, durable: false, limit: None, running, spawned: 0.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A process for a node, which may be one of several.
    pub fn spawn(&self, place: usize, more: &[&str]) -> Replica {
        let limit = self.limit.map_or(String::new(), |limit| format!("ulimit -n {limit}; "));
        let number = self.spawned.replace(self.spawned.get() + 1);
        let said = self.path(&format!("said-{number}-by-1.{}", place + 1));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_wpaxos")]);
        command.args(["--log", "info", "server", "--id", &format!("1.{}", place + 1)]);
        command.arg("--config").arg(self.path("cluster.toml")).arg("--tuning").arg(self.path("tuning.toml"));
        if self.durable {
            command.arg("--data").arg(self.path(&format!("data-{place}")));
        } else {
            command.args(["--durability", "none"]);
        }
        command.args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        Replica { child: command.spawn().unwrap(), said }
    }

    /// Starts a node, and waits until it listens.
    pub fn start(&mut self, place: usize, more: &[&str]) {
        self.running[place] = Some(self.spawn(place, more));
        let started = Instant::now();
        while TcpStream::connect(self.http[place]).is_err() || TcpStream::connect(self.native[place]).is_err() {
            assert!(self.is_running(place) && started.elapsed() < PATIENCE, "it does not listen: {}", self.said(place));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(&mut self, place: usize) {
        self.running[place].take().expect("it runs").kill();
    }

    pub fn is_running(&mut self, place: usize) -> bool {
        self.running[place].as_mut().is_some_and(|replica| replica.code().is_none())
    }

    pub fn said(&self, place: usize) -> String {
        self.running[place].as_ref().map(Replica::said).unwrap_or_default()
    }

    fn process(&self, place: usize) -> PathBuf {
        Path::new("/proc").join(self.running[place].as_ref().expect("it runs").child.id().to_string())
    }

    /// Bytes of memory that a node has resident.
    pub fn resident(&self, place: usize) -> usize {
        let status = fs::read_to_string(self.process(place).join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Descriptors that a node has open.
    pub fn descriptors(&self, place: usize) -> usize {
        fs::read_dir(self.process(place).join("fd")).unwrap().count()
    }

    /// The record that a node's newest checkpoint stands for.
    pub fn checkpoint(&self, place: usize) -> u64 {
        let names = fs::read_dir(self.path(&format!("data-{place}")).join("shard-0")).unwrap();
        let number = |name: String| name.strip_prefix("checkpoint-")?.parse().ok();
        names.filter_map(|entry| number(entry.unwrap().file_name().into_string().unwrap())).max().unwrap_or(0)
    }

    pub fn client(&self, places: &[usize]) -> Client {
        let seeds: Vec<_> = places.iter().map(|place| self.native[*place]).collect();
        let mut options = Options::to(&seeds);
        options.connect_timeout = PATIENCE;
        Client::connect(options).unwrap()
    }

    pub fn wait_for_votes(&self) {
        for place in 0..self.native.len() {
            eventually("it votes", || {
                self.status(place).is_some_and(|status| status["shards"][0]["membership"]["vote"] == "votes")
            });
        }
    }

    pub fn status(&self, place: usize) -> Option<Value> {
        match self.get(place, "/_/status") {
            (200, text) => serde_json::from_slice(&text).ok(),
            _ => None,
        }
    }

    /// Code and body of a GET over a connection of its own; code 0 if there is no answer.
    pub fn get(&self, place: usize, target: &str) -> (u16, Vec<u8>) {
        let ask = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect(self.http[place])?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            Ok(received)
        };
        let Ok(received) = ask() else { return (0, Vec::new()) };
        let code = received.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok()).unwrap_or(0);
        let body = received.windows(4).position(|window| window == b"\r\n\r\n").map_or(received.len(), |end| end + 4);
        (code, received[body..].to_vec())
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says a client's hello.
pub fn client_hello(stream: &mut TcpStream, client: u64) {
    let hello = ClientHello { cluster: None, client, zone: None };
    let body = serde_json::to_vec(&hello).unwrap();
    // The other side may have closed it already.
    let _ = stream.write_all(&wire::frame(Kind::ClientHello, 0, 0, &body));
}

/// The next frame; `None` if the connection was closed first.
pub fn read_frame(stream: &mut TcpStream) -> Option<(Kind, Vec<u8>)> {
    let mut received = vec![0; HEADER_BYTES];
    stream.read_exact(&mut received).ok()?;
    let bytes = wire::frame_bytes(&received).unwrap().unwrap();
    received.resize(bytes, 0);
    stream.read_exact(&mut received[HEADER_BYTES..]).ok()?;
    let frame = wire::view(&received).unwrap();
    Some((frame.kind, frame.body.to_vec()))
}
