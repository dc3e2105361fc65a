//! What replication costs on this machine when nothing but the bytes is done: the most that any three replicas could reach.
//!
//! One thread is the leader, another both followers; TCP on loopback. A batch of operations of 72 bytes is copied into one
//! buffer and sent to both followers; each copies every operation into a log and a table of 1,000 slots and acknowledges
//! the batch; the first acknowledgement commits it, and the leader copies its operations into its own log and table. There is
//! no client, no protocol, no checksum, no look-up by key.
//!
//! `cargo bench --bench ceiling -- MODE IN_FLIGHT BATCH SECONDS`; MODE is `poll` (look at the sockets without sleeping) or
//! `park` (sleep until something comes), IN_FLIGHT counts batches. Without arguments it prints a table.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use core_affinity::CoreId;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    time::{ClockId, clock_gettime},
};

/// Bytes of an operation: 64 of value, 8 of key.
const OPERATION: usize = 72;
const KEYS: usize = 1_000;
/// A log starts over when it has so many bytes.
const LOG: usize = 16 << 20;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Poll,
    Park,
}

fn main() {
    // Asked for before the first thread is pinned: afterwards only its own core would be there.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let number = |place: usize| arguments.get(place).and_then(|text: &String| text.parse::<f64>().ok());
    println!("mode  in flight  batch   operations/s  p50 of a batch  cores busy");
    match (arguments.first().map(String::as_str), number(1), number(2), number(3)) {
        (Some(mode @ ("poll" | "park")), Some(in_flight), Some(batch), Some(seconds)) => {
            let mode = if mode == "poll" { Mode::Poll } else { Mode::Park };
            measure(&cores, mode, (in_flight as usize).max(1), (batch as usize).max(1), seconds);
        }
        _ => {
            for mode in [Mode::Park, Mode::Poll] {
                for (in_flight, batch) in [(1, 1), (1, 16), (1, 128), (1, 1024), (8, 16), (8, 128)] {
                    measure(&cores, mode, in_flight, batch, 0.3);
                }
            }
        }
    }
}

fn measure(cores: &[CoreId], mode: Mode, in_flight: usize, batch: usize, seconds: f64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let last = cores.last().copied();
    let followers = std::thread::spawn(move || {
        last.map(core_affinity::set_for_current);
        let sockets = [0, 1].map(|_| TcpStream::connect(address).expect("the leader listens"));
        follow(Sockets::new(sockets, mode), batch);
    });
    let sockets = [0, 1].map(|_| listener.accept().expect("a follower connects").0);
    cores.first().copied().map(core_affinity::set_for_current);
    let mut leader = Leader::new(Sockets::new(sockets, mode), in_flight, batch);
    leader.run(Duration::from_secs_f64(seconds / 4.0));
    (leader.committed, leader.times) = (0, Vec::new());
    let (started, cpu) = (Instant::now(), cpu_seconds());
    leader.run(Duration::from_secs_f64(seconds));
    let elapsed = started.elapsed().as_secs_f64();
    let (rate, cores) = ((leader.committed * batch) as f64 / elapsed, (cpu_seconds() - cpu) / elapsed);
    leader.times.sort_unstable();
    let p50 = leader.times.get(leader.times.len() / 2).map_or(0.0, |ns| *ns as f64 / 1000.0);
    println!("{mode:?}  {in_flight:9}  {batch:5}  {rate:13.0}  {p50:11.1} us  {cores:10.2}");
    drop(leader);
    followers.join().expect("it ends with its sockets");
}

/// Of the whole process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Two connections, and how to wait for them.
struct Sockets {
    both: [TcpStream; 2],
    epoll: Option<std::os::fd::OwnedFd>,
    events: Vec<epoll::Event>,
}

impl Sockets {
    fn new(both: [TcpStream; 2], mode: Mode) -> Self {
        for socket in &both {
            socket.set_nodelay(true).expect("a TCP socket");
            socket.set_nonblocking(true).expect("a socket");
        }
        let epoll = (mode == Mode::Park).then(|| {
            let set = epoll::create(epoll::CreateFlags::CLOEXEC).expect("descriptors are left");
            for socket in &both {
                let data = epoll::EventData::new_u64(0);
                epoll::add(&set, socket, data, epoll::EventFlags::IN).expect("it takes sockets");
            }
            set
        });
        Self { both, epoll, events: Vec::with_capacity(2) }
    }

    fn wait(&mut self) {
        if let Some(epoll) = &self.epoll {
            self.events.clear();
            let patience = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let _ = epoll::wait(epoll, spare_capacity(&mut self.events), Some(&patience));
        }
    }

    /// What has come on one of them; `None` at its end.
    fn read(&mut self, which: usize, into: &mut [u8]) -> Option<usize> {
        match self.both[which].read(into) {
            Ok(0) => None,
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(_) => None,
        }
    }

    /// Sends all of it.
    fn write(&mut self, which: usize, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            match self.both[which].write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return None,
            }
        }
        Some(())
    }
}

/// A log and a table, into which every operation is copied.
struct Replica {
    log: Vec<u8>,
    end: usize,
    table: Vec<[u8; OPERATION]>,
}

impl Replica {
    fn new() -> Self {
        Self { log: vec![0; LOG], end: 0, table: vec![[0; OPERATION]; KEYS] }
    }

    fn take(&mut self, operation: &[u8]) {
        if self.end + OPERATION > LOG {
            self.end = 0;
        }
        self.log[self.end..self.end + OPERATION].copy_from_slice(operation);
        self.end += OPERATION;
        let key = u32::from_le_bytes(operation[..4].try_into().expect("four bytes")) as usize;
        self.table[key % KEYS].copy_from_slice(operation);
    }
}

/// A batch under way: when it was sent, and its operations.
type Batch = (Instant, Vec<u8>);

struct Leader {
    sockets: Sockets,
    in_flight: usize,
    batch: usize,
    replica: Replica,
    under_way: VecDeque<Batch>,
    spare: Vec<Vec<u8>>,
    /// Batches that each follower has acknowledged, and that are committed.
    acked: [u64; 2],
    passed: u64,
    committed: usize,
    times: Vec<u64>,
    key: u32,
}

impl Leader {
    fn new(sockets: Sockets, in_flight: usize, batch: usize) -> Self {
        Self {
            sockets,
            in_flight,
            batch,
            replica: Replica::new(),
            under_way: VecDeque::new(),
            spare: Vec::new(),
            acked: [0; 2],
            passed: 0,
            committed: 0,
            times: Vec::new(),
            key: 0,
        }
    }

    fn run(&mut self, time: Duration) {
        let started = Instant::now();
        while started.elapsed() < time {
            while self.under_way.len() < self.in_flight {
                self.send();
            }
            self.sockets.wait();
            let mut acks = [0; 4096];
            for follower in 0..2 {
                // An acknowledgement is a byte for each batch.
                let bytes = self.sockets.read(follower, &mut acks).expect("followers stay");
                self.acked[follower] += bytes as u64;
            }
            self.commit();
        }
    }

    fn send(&mut self) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        let mut operation = [7; OPERATION];
        for _ in 0..self.batch {
            self.key = self.key.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            operation[..4].copy_from_slice(&self.key.to_le_bytes());
            bytes.extend_from_slice(&operation);
        }
        let sent = Instant::now();
        for follower in 0..2 {
            self.sockets.write(follower, &bytes).expect("followers stay");
        }
        self.under_way.push_back((sent, bytes));
    }

    fn commit(&mut self) {
        let first = self.acked[0].max(self.acked[1]);
        while self.passed < first {
            let (sent, bytes) = self.under_way.pop_front().expect("only what was sent is acknowledged");
            bytes.chunks_exact(OPERATION).for_each(|operation| self.replica.take(operation));
            self.times.push(sent.elapsed().as_nanos() as u64);
            self.spare.push(bytes);
            self.passed += 1;
            self.committed += 1;
        }
    }
}

/// Both followers, until the leader has gone.
fn follow(mut sockets: Sockets, batch: usize) {
    let mut replicas = [Replica::new(), Replica::new()];
    let mut received = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let (mut filled, mut taken) = ([0; 2], [0; 2]);
    loop {
        sockets.wait();
        for follower in 0..2 {
            let buffer = &mut received[follower];
            let Some(bytes) = sockets.read(follower, &mut buffer[filled[follower]..]) else { return };
            let end = filled[follower] + bytes;
            let whole = end / OPERATION * OPERATION;
            buffer[..whole].chunks_exact(OPERATION).for_each(|operation| replicas[follower].take(operation));
            buffer.copy_within(whole..end, 0);
            filled[follower] = end - whole;
            taken[follower] += whole / OPERATION;
            let batches = taken[follower] / batch;
            taken[follower] %= batch;
            if sockets.write(follower, &vec![1; batches]).is_none() {
                return;
            }
        }
    }
}
