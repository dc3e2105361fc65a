//! Nothing that a replica says, to whom it says it, or that signals tell it, ends it or holds it up.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, PipeWriter, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde_json::Value;
use support::{PATIENCE, client, free_addresses, put_at_last};
use wpaxos::{
    client::admin::Admin,
    wire::{self, Kind},
};

/// A process that is killed when it is dropped.
struct Told(Child);

impl Told {
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success(), "{signal} cannot be sent");
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// The exit code, within `patience`.
    fn code(&mut self, patience: Duration) -> Option<i32> {
        let started = Instant::now();
        while self.is_running() {
            assert!(started.elapsed() < patience, "it has not ended after {patience:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.0.wait().unwrap().code()
    }

    fn stops_well(mut self) {
        self.signal("TERM");
        assert_eq!(self.code(PATIENCE), Some(0));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A zone of three nodes: its file, and where they are.
struct Zone {
    directory: tempfile::TempDir,
    native: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
}

impl Zone {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut native = free_addresses(6);
        let http = native.split_off(3);
        let mut text = "name = \"told\"\n".to_owned();
        for (node, (address, http)) in (1..).zip(native.iter().zip(&http)) {
            text += &format!("[[node]]\nid = \"1.{node}\"\naddress = \"{address}\"\nhttp = \"{http}\"\n");
        }
        fs::write(directory.path().join("c.toml"), text).unwrap();
        Self { directory, native, http }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, node: usize) -> Command {
        let mut command = wpaxos();
        command.args(["server", "--id", &format!("1.{}", node + 1), "--durability", "none", "--config"]);
        command.arg(self.path("c.toml"));
        command
    }

    /// All three, with this as their standard error.
    fn start(&self, stderr: impl Fn() -> Stdio) -> Vec<Told> {
        (0..3).map(|node| Told(self.command(node).stderr(stderr()).spawn().unwrap())).collect()
    }

    /// Writes and reads on every node.
    fn serves(&self) {
        for seed in &self.native {
            let started = Instant::now();
            while TcpStream::connect(seed).is_err() {
                assert!(started.elapsed() < PATIENCE, "{seed} does not listen");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let mut client = client(&self.native, 1);
        for round in 0..20 {
            let key = format!("key {round}");
            put_at_last(&mut client, key.as_bytes(), b"value");
            assert_eq!(client.get(key.as_bytes()).unwrap().unwrap().0, b"value");
        }
    }

    fn lines_lost(&self, node: usize) -> u64 {
        let id = format!("1.{}", node + 1).parse().unwrap();
        let status: Value = Admin::new(vec![(id, self.http[node])]).status(id).unwrap();
        status["shards"][0]["counters"]["io_log_lines_lost"].as_u64().unwrap()
    }
}

fn wpaxos() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing_and_is_counted() {
    let zone = Zone::new();
    let full = || File::options().write(true).open("/dev/full").unwrap().into();
    let nodes = zone.start(full);
    zone.serves();
    for node in 0..3 {
        assert!(zone.lines_lost(node) > 0, "node {node} has said something");
    }
    nodes.into_iter().for_each(Told::stops_well);
}

/// A pipe with no place for another byte.
fn full_pipe() -> (io::PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = fcntl_getfl(writer.as_fd()).unwrap();
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    for bytes in [1 << 16, 1 << 10, 1] {
        while writer.write(&vec![b'.'; bytes]).is_ok() {}
    }
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer)
}

#[test]
fn a_pipe_that_nobody_reads_holds_nothing_up() {
    let zone = Zone::new();
    let (reader, writer) = full_pipe();
    let mut nodes = zone.start(|| writer.try_clone().unwrap().into());
    zone.serves();
    // A first end is orderly though its last lines go nowhere; the next has a reader again.
    nodes.pop().unwrap().stops_well();
    drop(writer);
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        BufReader::new(reader).read_to_string(&mut text).unwrap();
        text
    });
    nodes.into_iter().for_each(Told::stops_well);
    let text = read.join().unwrap();
    assert!(text.contains("ready") && text.contains("link down"), "what had waited is written then: {text}");
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    let zone = Zone::new();
    let mut nodes: Vec<Told> = (1..3).map(|node| Told(zone.command(node).spawn().unwrap())).collect();
    let (reader, writer) = io::pipe().unwrap();
    let mut first = zone.command(0);
    nodes.push(Told(first.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap()));
    drop(first);
    // As `| head -2` does.
    let mut lines = BufReader::new(reader).lines();
    for _ in 0..2 {
        lines.next().unwrap().unwrap();
    }
    drop(lines);
    zone.serves();
    nodes.into_iter().for_each(Told::stops_well);
}

#[test]
fn a_local_cluster_whose_output_nobody_reads_goes_on() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = wpaxos();
    command.args(["local", "--zones", "1", "--nodes", "3", "--durability", "none"]);
    let mut local = Told(command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap());
    drop(command);
    let mut said = BufReader::new(local.0.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("lines were lost here")) || !local.is_running());
    assert!(local.is_running(), "it ended with {:?}", local.code(PATIENCE));
    std::thread::spawn(move || said.for_each(drop));
    local.stops_well();
}

/// A hello that the replica will not have, because of a name that is long and looks like lines of its log.
fn forged_hello(address: SocketAddr, number: usize) {
    let name = format!("{number}\n2026-01-01T00:00:00Z ERROR forged node=1.1\r\u{1b}[2J{}", "x".repeat(50_000));
    let hello = serde_json::json!({
        "protocol": wire::WIRE_VERSION, "cluster": name, "configuration": "", "node": "1.2", "incarnation": 7, "boot": 1,
        "shard": 0, "shards": 1,
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&wire::frame(Kind::PeerHello, 0, 0, hello.to_string().as_bytes())).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() < 2000, "the refusal quotes {} bytes", answer.len());
}

#[test]
fn names_from_the_network_forge_no_lines_and_a_flood_is_summed_up() {
    let zone = Zone::new();
    let log = zone.path("log");
    let started = Instant::now();
    let node = Told(zone.command(0).stderr(File::create(&log).unwrap()).spawn().unwrap());
    until("it listens", || TcpStream::connect(zone.native[0]).is_ok());
    for number in 0..300 {
        forged_hello(zone.native[0], number);
    }
    let within_a_period = started.elapsed() < Duration::from_secs(9);
    let read = |log: &Path| String::from_utf8(fs::read(log).unwrap()).unwrap();
    until("the flood is summed up", || !within_a_period || read(&log).contains("more lines like the last of"));
    let text = read(&log);
    assert!(text.contains("ERROR forged"), "it is quoted");
    for line in text.lines() {
        assert!(line.starts_with("20") && !line.starts_with("2026-01-01T00:00:00Z ERROR forged"), "{line:?}");
        assert!(line.len() < 4200 && !line.contains(char::is_control), "{line:?}");
    }
    assert!(text.len() < 300_000, "300 hellos have written {} bytes", text.len());
    node.stops_well();
}

#[test]
fn lines_that_were_lost_are_said_when_there_is_room_again() {
    let zone = Zone::new();
    let log = zone.path("log");
    let others: Vec<Told> = (1..3).map(|node| Told(zone.command(node).spawn().unwrap())).collect();
    // As a full file system would: a file may have 4 KiB.
    let server = zone.command(0);
    let mut shell = Command::new("bash");
    shell.args(["-c", "ulimit -f 4; exec \"$@\" 2>>\"$LOG\"", "bash"]).env("LOG", &log);
    shell.arg(server.get_program()).args(server.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
    let node = Told(shell.spawn().unwrap());
    zone.serves();
    for number in 0..50 {
        forged_hello(zone.native[0], number);
    }
    until("lines are lost", || zone.lines_lost(0) > 0);
    assert_eq!(fs::metadata(&log).unwrap().len(), 4096);
    zone.serves();
    File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    others.into_iter().for_each(Told::stops_well);
    until("it says how many", || fs::read_to_string(&log).unwrap().contains("lines were lost here"));
    node.stops_well();
}

/// Nobody means to end a process with these.
const HARMLESS: &[&str] = &[
    "USR1", "USR2", "ALRM", "VTALRM", "PROF", "POLL", "PIPE", "PWR", "XFSZ", "STKFLT", "WINCH", "URG", "CONT", "CHLD",
    "34", "35", "50", "64",
];

#[test]
fn signals_that_are_not_meant_to_end_a_replica_do_not() {
    let zone = Zone::new();
    let nodes = zone.start(Stdio::null);
    zone.serves();
    for _ in 0..5 {
        for signal in HARMLESS {
            nodes.iter().for_each(|node| node.signal(signal));
        }
        zone.serves();
    }
    for mut node in nodes {
        node.signal("HUP");
        assert_eq!(node.code(PATIENCE), Some(0), "a hangup is an orderly end");
    }
}

#[test]
fn masters_and_local_clusters_hear_the_same_signals() {
    let directory = tempfile::tempdir().unwrap();
    let local = ["local", "--zones", "1", "--nodes", "1", "--durability", "none"];
    let master = ["master", "--n", "3", "--no-state", "--listen", "127.0.0.1:0"];
    for args in [&local[..], &master[..]] {
        for (shell, hangup_ends) in [("exec \"$@\"", true), ("trap '' HUP; exec \"$@\"", false)] {
            let log = directory.path().join(format!("{}-{hangup_ends}", args[0]));
            let mut command = Command::new("bash");
            command.args(["-c", shell, "bash", env!("CARGO_BIN_EXE_wpaxos")]).args(args);
            let out = || Stdio::from(File::options().create(true).append(true).open(&log).unwrap());
            let mut process = Told(command.stdin(Stdio::null()).stdout(out()).stderr(out()).spawn().unwrap());
            let is_up = |text: &str| text.contains("Ctrl-C stops it") || text.contains("the master waits");
            until("it is up", || fs::read_to_string(&log).is_ok_and(|text| is_up(&text)));
            HARMLESS.iter().for_each(|signal| process.signal(signal));
            if !hangup_ends {
                process.signal("HUP");
                std::thread::sleep(Duration::from_millis(300));
                assert!(process.is_running(), "{args:?} was started with hangups ignored");
                process.signal("TERM");
            } else {
                process.signal("HUP");
            }
            assert_eq!(process.code(PATIENCE), Some(0), "{args:?}, {shell}");
        }
    }
}
