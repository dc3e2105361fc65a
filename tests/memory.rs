//! The binary that the tests build is the one that ships: it keeps nothing of what it has sent, and has as many slots of a key
//! open, whatever else was built beside it.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use wpaxos::{
    client::{Client, Options, Outcome},
    command::Action,
    store::OPEN_SLOTS_MAX,
};

/// Writes of [`memory_does_not_grow_with_what_was_written`], and how long they may take: on a slow machine fewer are made.
const WRITES: u64 = 1_000_000;
const WRITES_WITHIN: Duration = Duration::from_secs(25);
/// Enough to tell: what was kept of each was some 300 bytes.
const WRITES_MIN: u64 = 150_000;
const GROWTH_MAX: u64 = 30 << 20;

/// `wpaxos local`, killed when it is dropped.
struct Local {
    child: Child,
    seed: SocketAddr,
}

impl Local {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
        command.args(["--log", "warn", "local", "--durability", "none"]).args(args);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| line.contains("cmd --seed ")).expect("it says how to reach it");
        let seed = line.split_whitespace().nth(3).unwrap().parse().unwrap();
        // The rest is short, and fits into the pipe.
        Self { child, seed }
    }

    /// Bytes of memory that it has now.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    fn client(&self) -> Client {
        let mut options = Options::to([self.seed]);
        options.connect_timeout = support::PATIENCE;
        Client::connect(options).unwrap()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes to so many keys in turn, so many at a time, until there are enough or it is time; how many there were.
fn write(client: &mut Client, keys: u64, depth: usize, writes: u64, within: Duration) -> u64 {
    let (mut sent, mut done, started) = (0, 0, Instant::now());
    let is_over = |sent: u64| sent >= writes || started.elapsed() >= within;
    while !is_over(sent) || client.in_flight() > 0 {
        while client.in_flight() < depth && !is_over(sent) {
            client.submit(Action::Put(&[7; 64]), format!("key-{}", sent % keys).as_bytes(), sent).unwrap();
            sent += 1;
        }
        let polled = client.poll(Duration::from_millis(50), &mut |completion| {
            assert_eq!(completion.outcome, Outcome::Done);
            done += 1;
        });
        polled.unwrap();
    }
    done
}

#[test]
fn memory_does_not_grow_with_what_was_written() {
    let local = Local::start(&["--zones", "1", "--nodes", "3"]);
    let mut client = local.client();
    write(&mut client, 1000, 256, 30_000, WRITES_WITHIN);
    let before = local.resident();
    let (started, done) = (Instant::now(), write(&mut client, 1000, 256, WRITES, WRITES_WITHIN));
    let grown = local.resident().saturating_sub(before);
    println!("{done} writes in {:.1?}: {} KiB, then {} KiB more", started.elapsed(), before >> 10, grown >> 10);
    assert!(done >= WRITES_MIN, "only {done} writes were made, too few to tell");
    assert!(grown < GROWTH_MAX, "{done} writes have cost {grown} bytes");
}

#[test]
fn one_key_has_as_many_slots_open_over_a_long_distance_as_the_product_has() {
    let local = Local::start(&["--zones", "3", "--nodes", "1", "--rtt-ms", "100", "--quorum", "majority"]);
    let mut client = local.client();
    write(&mut client, 1, 1, 3, support::PATIENCE);
    let (started, writes) = (Instant::now(), 12 * OPEN_SLOTS_MAX);
    let done = write(&mut client, 1, 4 * OPEN_SLOTS_MAX as usize, writes, support::PATIENCE);
    let took = started.elapsed();
    let a_second = done as f64 / took.as_secs_f64();
    println!("{done} writes in {took:.1?}, {a_second:.0} a second");
    assert_eq!(done, writes);
    // 256 in a round trip are 2,560 a second; 24 would be 240.
    assert!(a_second > 800.0, "{a_second:.0} writes a second");
}
