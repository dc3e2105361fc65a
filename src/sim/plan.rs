//! What one run is about: a cluster, its tuning, its clients and how badly it is treated. All of it follows from the seed;
//! every run draws another mix, so that rare combinations come up and common faults do not hide rare ones.

use std::fmt;

use super::{
    oracle::Sizes,
    random::{Purpose, Random},
};
use crate::{
    command::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
    quorum::Quorums,
    topology::{Cluster, Home, InitialOwner, QuorumSpec, StealPolicy, WanMatrix},
    tuning::{Flow, Tuning},
};

/// How much goes wrong until everything is healed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// Nothing at all: every request must be executed, and in time.
    Calm,
    /// A fault now and then.
    Unsettled,
    /// Many at once.
    Storm,
}

/// Whether nodes come back after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crashes {
    /// No node crashes.
    None,
    /// Some die for good; those that live hold quorums of both phases.
    ForGood,
    /// They come back with what their log kept, as often as they crash.
    KeepLog,
    /// Some come back without their disk, as other incarnations, again and again; those that do not hold quorums of both
    /// phases, and a majority.
    LoseDisk,
}

/// What a run leans towards. Most lean nowhere: rare combinations need all kinds of things at once; others need much of one
/// thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Theme {
    /// Everything at once.
    Mixed,
    /// Few nodes with slow disks, which crash, come back and lose connections all the time.
    Crashes,
    /// Every zone wants one object, all the time.
    StealStorm,
    /// Nobody keeps a stream for long, and whoever was away needs state.
    CatchUp,
    /// Many objects, each of them used now and then.
    Crowd,
    /// More writers of an object than it remembers.
    Writers,
    /// Nodes lose their disks, one after the other and two at a time.
    Newcomers,
    /// An owner is cut off, loses its objects to somebody who is slow to tell it, and comes back while it is asked to read.
    OldOwners,
}

/// Kinds of faults that a run may have; each run has some of them.
pub const FAULT_KINDS: u64 = 14;

/// Kinds of extreme faults: nodes that run in bursts, one or all of them; disks that hang; disks that are lost.
pub const EXTREME_KINDS: u64 = 4;

/// How long replicas take to become equal after all requests have ended, at the most, where links are fast, in microseconds.
const SETTLES_US: u64 = 3_000_000;
/// How many windows of a link are left to be sent when faults end, at the most.
const SETTLES_WINDOWS: u64 = 50;

/// Bytes that may come together between two looks of a replica at what it holds.
const BETWEEN_LOOKS_BYTES: u64 = 256 << 10;
/// Bytes of the last frames and of heartbeats, where nothing else is under way.
const REST_BYTES: u64 = 4 << 10;

/// Clients that keep to no rule (`careless`).
#[derive(Clone, Copy, Default, Debug)]
pub struct HostilePlan {
    /// How many there are: none in most runs.
    pub clients: u64,
    /// How many tricks each plays at most.
    pub each: u64,
    /// Bit i: whether trick i is among them.
    pub tricks: u64,
    /// How long they wait between two tricks, in microseconds.
    pub think_us: u64,
    /// How many reads come at once.
    pub reads_max: u64,
    /// The longest value, in bytes.
    pub value_bytes_max: usize,
}

impl HostilePlan {
    fn new(random: &mut Random, plan: &Plan) -> Self {
        // Repeating an id is harmless only as far as an object remembers its writers.
        if !random.permille(250) || plan.theme == Theme::Writers {
            return Self::default();
        }
        let (calm, wide) = (plan.weather == Weather::Calm, plan.window_bytes >= 1 << 20);
        Self {
            clients: random.range(1, 2),
            each: random.range(5, 60),
            tricks: random.any() | random.any(),
            think_us: *random.pick(&[1000, 5000, 20_000]),
            reads_max: if calm { 100 } else { *random.pick(&[20, 200, 1000]) },
            value_bytes_max: if wide { *random.pick(&[5000, 200_000, VALUE_BYTES_MAX]) } else { 5000 },
        }
    }

    /// What they add to what may come together between two looks of a replica at what it holds, in bytes.
    fn between_looks(&self) -> u64 {
        let keys = 40 * KEY_BYTES_MAX as u64 + 200 * self.reads_max;
        self.clients.min(1) * (4 * self.value_bytes_max as u64 + 4 * keys)
    }
}

/// The frame of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What everything follows from.
    pub seed: u64,
    /// What it leans towards.
    pub theme: Theme,
    /// The members and the rules that they agree on.
    pub cluster: Cluster,
    /// The cluster's quorums.
    pub quorums: Quorums,
    /// The same for every node.
    pub tuning: Tuning,
    /// How much goes wrong.
    pub weather: Weather,
    /// What a crash does.
    pub crashes: Crashes,
    /// Bit i: whether faults of kind i happen.
    pub faults: u64,
    /// How long faults go on, in microseconds.
    pub storm_us: u64,
    /// Whether faults begin only when the members have met, as they must where one of them may be lost.
    pub founded: bool,
    /// One-way delay by zone, in microseconds: `delays[from][to]`.
    pub delays_us: Vec<Vec<u64>>,
    /// Bytes that a connection carries before its sender has to wait.
    pub window_bytes: usize,
    /// How often what is sent is cut into pieces that arrive apart, in thousandths.
    pub pieces_permille: u64,
    /// How long a sync of the log takes, in microseconds; 0 is "at once".
    pub disk_us: u64,
    /// After how many records a shard writes a checkpoint, 0 for never, and how many bytes of it in a turn.
    pub checkpoints: (u64, usize),
    /// How often a turn waits for more inputs, in thousandths.
    pub long_turn_permille: u64,
    /// Per node how fast its clock runs, in millionths.
    pub clock_ppm: Vec<u64>,
    /// How many clients.
    pub clients: u64,
    /// Keys that most requests are for.
    pub hot_keys: u64,
    /// Keys that the others are for.
    pub cold_keys: u64,
    /// How many operations are begun in all.
    pub operations: usize,
    /// How long a client thinks between two operations, in microseconds.
    pub think_us: u64,
    /// How long it waits before it tries another node, in microseconds.
    pub patience_us: u64,
    /// How far its ids run ahead of its oldest open one.
    pub ids_ahead: u64,
    /// The longest value, in bytes; most are short.
    pub value_bytes_max: usize,
    /// How often it asks a node of another zone, in thousandths.
    pub far_permille: u64,
    /// How often it asks a shard that does not hold the key, in thousandths.
    pub wrong_shard_permille: u64,
    /// Clients that keep to no rule.
    pub hostile: HostilePlan,
    /// Bit i: whether extreme faults of kind i happen; none in most runs.
    pub extremes: u64,
}

impl Plan {
    /// The plan of this seed.
    ///
    /// # Panics
    /// If it has drawn quorums that do not meet: that is a bug of the simulator.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, Purpose::Plan);
        let random = &mut random;
        let theme = theme(random);
        let cluster = cluster(random, theme);
        let quorums = Quorums::new(&cluster).expect("the simulator asks for sound quorums");
        let weather = match random.below(10) {
            0 | 1 => Weather::Calm,
            2..=5 => Weather::Unsettled,
            _ => Weather::Storm,
        };
        let calm = weather == Weather::Calm;
        let crashes = *random.pick(&[
            Crashes::None,
            Crashes::ForGood,
            Crashes::KeepLog,
            Crashes::KeepLog,
            Crashes::KeepLog,
            Crashes::LoseDisk,
        ]);
        let tuning = tuning(seed, random, calm);
        let timeout = tuning.timers.request_timeout_us;
        let steady = random.permille(500);
        let clock_ppm = cluster.nodes.iter().map(|_| if steady { 1_000_000 } else { clock_rate(random) }).collect();
        let mut plan = Self {
            seed,
            theme,
            quorums,
            weather,
            crashes: if calm { Crashes::None } else { crashes },
            faults: if calm { 0 } else { random.any() | random.any() & random.any() },
            storm_us: random.range(200_000, 900_000),
            founded: false,
            delays_us: delays(random, cluster.zones.len()),
            window_bytes: if calm { 1 << 22 } else { *random.pick(&[1 << 22, 1 << 22, 1 << 14, 1500]) },
            pieces_permille: *random.pick(&[0, 50, 500]),
            disk_us: *random.pick(&[0, 0, 100, 1000, 4000]),
            checkpoints: (*random.pick(&[0, 3, 20, 100]), *random.pick(&[1, 200, 65_536])),
            long_turn_permille: *random.pick(&[0, 100, 500]),
            clock_ppm,
            clients: random.range(2, 7),
            hot_keys: random.range(1, 4),
            cold_keys: random.below(5),
            operations: random.range(40, 220) as usize,
            think_us: *random.pick(&[0, 500, 3000, 10_000]),
            patience_us: if calm { 4 * timeout } else { random.range(timeout / 10, 2 * timeout) },
            ids_ahead: if calm { 50 } else { *random.pick(&[50, 50, 500]) },
            value_bytes_max: *random.pick(&[58, 58, 58, 2000]),
            far_permille: *random.pick(&[0, 400, 1000]),
            wrong_shard_permille: *random.pick(&[0, 200]),
            hostile: HostilePlan::default(),
            extremes: 0,
            cluster,
            tuning,
        };
        plan.lean(random);
        plan.founded = match plan.crashes {
            Crashes::None | Crashes::KeepLog => random.permille(500),
            Crashes::ForGood | Crashes::LoseDisk => true,
        };
        plan.add_extremes();
        plan
    }

    /// Draws what was thought of later, from a stream of its own.
    fn add_extremes(&mut self) {
        let random = &mut Random::new(self.seed, Purpose::Extremes);
        self.hostile = HostilePlan::new(random, self);
        if self.weather != Weather::Calm && random.permille(200) {
            self.extremes = random.range(1, (1 << EXTREME_KINDS) - 1);
        }
    }

    /// Bends what was drawn towards the theme.
    fn lean(&mut self, random: &mut Random) {
        match self.theme {
            Theme::Mixed => {}
            Theme::Crashes => {
                self.weather = Weather::Storm;
                self.crashes = if random.permille(150) { Crashes::LoseDisk } else { Crashes::KeepLog };
                // Connections break, nodes pause, disks stand still, nodes crash.
                self.faults = 0b11_0000_0101_0011;
                self.disk_us = *random.pick(&[100, 1000, 4000]);
                (self.hot_keys, self.think_us) = (random.range(1, 2), 500);
                if random.permille(60) {
                    (self.storm_us, self.think_us) = (5_000_000, 100_000);
                }
            }
            Theme::StealStorm => {
                self.cluster.steal = *random.pick(&[StealPolicy::Immediate, StealPolicy::Consecutive { hits: 1 }]);
                (self.hot_keys, self.cold_keys) = (1, 0);
                (self.clients, self.think_us, self.far_permille) = (8, 0, 1000);
            }
            Theme::CatchUp => {
                self.tuning.flow.stream_retain_bytes = *random.pick(&[0, 300]);
                self.cold_keys = random.range(5, 20);
                if self.weather != Weather::Calm {
                    // Connections break, zones part, nodes are cut off and crash.
                    self.faults |= 0b11_0101_1000_0011;
                }
            }
            Theme::Crowd => {
                (self.hot_keys, self.cold_keys) = (20, 200);
                if random.permille(500) {
                    // Values that fill frames: nothing narrow on their way, or time-outs say more than anything else.
                    (self.value_bytes_max, self.window_bytes) = (100_000, 1 << 22);
                    self.tuning.flow = Flow { stream_retain_bytes: 1 << 20, ..Flow::default() };
                }
                self.operations = random.range(400, 900) as usize;
                (self.clients, self.think_us) = (8, 0);
            }
            Theme::Newcomers => {
                self.weather = if random.permille(500) { Weather::Storm } else { Weather::Unsettled };
                self.crashes = Crashes::LoseDisk;
                // Connections break, nodes stand still, disks too, one side waits, nodes crash.
                self.faults = 0b11_0010_0101_0111;
                self.disk_us = *random.pick(&[100, 1000]);
                (self.hot_keys, self.think_us, self.clients) = (random.range(1, 2), 500, 4);
            }
            Theme::OldOwners => {
                self.weather = Weather::Storm;
                self.crashes = Crashes::None;
                // Connections break, zones part, nodes part and are cut off.
                self.faults = 0b0101_1000_0011;
                (self.hot_keys, self.cold_keys, self.think_us) = (1, 0, 500);
                (self.clients, self.operations, self.ids_ahead) = (6, 200, 500);
                self.window_bytes = 1 << 22;
                // Learners of a stream hear late, and in one piece, of what the others have decided.
                (self.tuning.batch.learner_delay_us, self.tuning.batch.learner_bytes) = (20_000, 131_072);
                (self.tuning.flow.requests_max, self.tuning.flow.client_requests_max) = (1000, 1000);
                self.patience_us = self.tuning.timers.request_timeout_us;
            }
            Theme::Writers => {
                if self.weather == Weather::Calm {
                    self.weather = Weather::Unsettled;
                }
                (self.clients, self.hot_keys, self.cold_keys) = (random.range(18, 24), 3, 0);
                (self.operations, self.think_us) = (random.range(100, 200) as usize, 10_000);
            }
        }
    }

    /// How many nodes.
    pub fn nodes(&self) -> usize {
        self.cluster.nodes.len()
    }

    /// How much a shard of a node may hold, by the tuning.
    pub fn sizes_max(&self) -> Sizes {
        let (flow, nodes) = (&self.tuning.flow, self.nodes() as u64);
        // Commands of the simulator have 40 bytes and more, and at most twice as much again goes with them into a frame;
        // the rest is what comes between two looks of the replica at what it holds.
        let between_looks = BETWEEN_LOOKS_BYTES + 64 * self.value_bytes_max as u64 + self.hostile.between_looks();
        let uncommitted = 4 * flow.stream_inflight_bytes_max as u64 + between_looks;
        let clients = (self.clients + 1 + 24 * self.hostile.clients) * u64::from(self.cluster.shards);
        Sizes {
            stream_bytes: flow.stream_retain_bytes as u64 + uncommitted,
            received_bytes: nodes * uncommitted,
            requests: flow.requests_max as u64,
            link_queue_bytes: flow.link_queue_bytes_max as u64 + between_looks,
            client_queue_bytes: clients * (flow.client_queue_bytes_max as u64 + between_looks),
            tail_entries: nodes * uncommitted / 40,
            // What its own stream had under way when the log was full, and one read of each link.
            log_pending_bytes: self.tuning.log.pending_bytes_max as u64 + nodes * between_looks + uncommitted,
            unacked_bytes: flow.stream_unacked_bytes_max as u64 + between_looks,
        }
    }

    /// How much a shard of a node may hold when nothing is under way.
    pub fn sizes_at_rest(&self) -> Sizes {
        let (flow, batch) = (&self.tuning.flow, &self.tuning.batch);
        // The last frame is kept, and may be one that proposes again what earlier owners had in flight.
        let in_flight = 4 * (self.nodes() * flow.stream_inflight_bytes_max) as u64;
        let last_frame = in_flight.min(batch.bytes_max as u64).max(REST_BYTES);
        Sizes {
            stream_bytes: flow.stream_retain_bytes as u64 + 2 * last_frame + 2 * self.longest_value(),
            requests: 0,
            link_queue_bytes: REST_BYTES,
            client_queue_bytes: 0,
            log_pending_bytes: 0,
            unacked_bytes: 0,
            // What a stream that has ended left behind.
            ..self.sizes_max()
        }
    }

    /// How long after healing everything must have ended, and all replicas be equal, in microseconds: requests that wait have
    /// their time, by the slowest clock, and their client's patience; what was not sent goes over the slowest link in so many
    /// windows.
    pub(super) fn settles_within_us(&self) -> u64 {
        let timeout = self.tuning.timers.request_timeout_us;
        let slowest_clock = self.clock_ppm.iter().min().copied().unwrap_or(1_000_000);
        let slowest_link = self.delays_us.iter().flatten().max().copied().unwrap_or(0);
        let requests = timeout * 1_000_000 / slowest_clock + self.patience_us.min(2 * timeout);
        SETTLES_US + 2 * requests + SETTLES_WINDOWS * 2 * slowest_link
    }

    /// The longest value that anybody writes, in bytes.
    fn longest_value(&self) -> u64 {
        self.value_bytes_max.max(self.hostile.value_bytes_max) as u64
    }

    /// How many keys careful clients use.
    pub fn keys(&self) -> u64 {
        self.hot_keys + self.cold_keys
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<_> = self.cluster.zones.iter().map(|zone| zone.nodes.len()).collect();
        let cluster = &self.cluster;
        writeln!(f, "seed {}, {:?}: zones of {sizes:?} nodes, {} shards", self.seed, self.theme, cluster.shards)?;
        writeln!(f, "  quorum {:?}, owner {:?}, steal {:?}", cluster.quorum, cluster.initial_owner, cluster.steal)?;
        let (weather, crashes, faults) = (self.weather, self.crashes, self.faults & ((1 << FAULT_KINDS) - 1));
        let (storm, extremes) = (self.storm_us / 1000, self.extremes);
        writeln!(
            f,
            "  {weather:?} for {storm} ms, crashes {crashes:?}, faults {faults:#016b}, extremes {extremes:#06b}"
        )?;
        let (window, pieces, wan) = (self.window_bytes, self.pieces_permille, cluster.wan.is_some());
        writeln!(f, "  delays {:?} µs, window {window}, in pieces {pieces}‰, matrix {wan}", self.delays_us)?;
        let (disk, turns, clocks) = (self.disk_us, self.long_turn_permille, &self.clock_ppm);
        writeln!(f, "  checkpoints after {} records, {} bytes a turn", self.checkpoints.0, self.checkpoints.1)?;
        writeln!(f, "  disk {disk} µs, long turns {turns}‰, clocks {clocks:?} ppm")?;
        let (clients, hot, cold, operations) = (self.clients, self.hot_keys, self.cold_keys, self.operations);
        writeln!(f, "  {clients} clients, {hot} hot and {cold} cold keys, {operations} operations")?;
        let (think, patience, far) = (self.think_us, self.patience_us, self.far_permille);
        let (ahead, value) = (self.ids_ahead, self.value_bytes_max);
        writeln!(f, "  think {think} µs, patience {patience} µs, far {far}‰, ids {ahead} ahead, values up to {value}")?;
        if self.hostile.clients > 0 {
            writeln!(f, "  {:?}", self.hostile)?;
        }
        write!(f, "  {:?}\n  {:?}", self.tuning.batch, self.tuning.flow)
    }
}

fn theme(random: &mut Random) -> Theme {
    match random.below(100) {
        0..41 => Theme::Mixed,
        41..47 => Theme::OldOwners,
        47..67 => Theme::Crashes,
        67..78 => Theme::StealStorm,
        78..85 => Theme::CatchUp,
        85..88 => Theme::Crowd,
        88..90 => Theme::Writers,
        _ => Theme::Newcomers,
    }
}

fn clock_rate(random: &mut Random) -> u64 {
    let spread = *random.pick(&[100, 10_000, 300_000]);
    random.range(1_000_000 - spread, 1_000_000 + spread)
}

fn delays(random: &mut Random, zones: usize) -> Vec<Vec<u64>> {
    let near = random.range(20, 300);
    let far = *random.pick(&[100, 500, 1500, 4000]);
    let row = |from: usize, random: &mut Random| {
        let delay = |to: usize, random: &mut Random| if from == to { near } else { random.range(far / 2, far * 2) };
        (0..zones).map(|to| delay(to, random)).collect()
    };
    (0..zones).map(|from| row(from, random)).collect()
}

fn cluster(random: &mut Random, theme: Theme) -> Cluster {
    let shapes: [&[u8]; 13] = [
        &[3],
        &[1, 1, 1],
        &[2, 2],
        &[3, 3],
        &[3, 3],
        &[2, 3],
        &[1, 2],
        &[2, 1, 2],
        &[2, 2, 2],
        &[3, 3, 3],
        &[5],
        &[1],
        &[1, 1, 1, 1],
    ];
    let sizes = match theme {
        Theme::Crashes => *random.pick(&shapes[..7]),
        Theme::StealStorm => *random.pick(&shapes[1..10]),
        // Where one node beside an owner is a quorum.
        Theme::OldOwners => *random.pick(&[&[3][..], &[3], &[1, 1, 1], &[1, 2]]),
        // Where a node can be lost and the others still hold a quorum of each phase, and a majority.
        Theme::Newcomers => *random.pick(&[&[3][..], &[3], &[5], &[2, 3], &[3, 3], &[1, 1, 1]]),
        _ => *random.pick(&shapes),
    };
    let shards = *random.pick(&[1, 1, 2, 3]);
    let address = "127.0.0.1:1".parse().expect("an address");
    let zones = sizes.iter().map(|size| vec![vec![address; shards]; usize::from(*size)]).collect();
    let mut cluster = Cluster::local("simulated", zones);
    let nodes = cluster.nodes.len() as u8;
    cluster.quorum = quorum(random, theme, sizes);
    let some_node = cluster.nodes[random.below(u64::from(nodes)) as usize].id;
    let owners = [
        InitialOwner::FirstTouch,
        InitialOwner::FirstTouch,
        InitialOwner::Home(Home::Hash),
        InitialOwner::Home(Home::Node(some_node)),
    ];
    cluster.initial_owner = *random.pick(&owners);
    let policies = [
        StealPolicy::None,
        StealPolicy::Immediate,
        StealPolicy::Immediate,
        StealPolicy::Consecutive { hits: random.range(1, 4) as u32 },
        StealPolicy::Majority { interval_us: 20_000 },
        StealPolicy::Ema { alpha_permille: 500, interval_us: 10_000 },
        StealPolicy::Cost { gain_permille: 800, window_us: 20_000, hold_us: 20_000 },
    ];
    cluster.steal = *random.pick(&policies);
    cluster.wan = random.permille(200).then(|| WanMatrix::uniform(sizes.len(), 2000));
    cluster
}

fn quorum(random: &mut Random, theme: Theme, sizes: &[u8]) -> QuorumSpec {
    let nodes: u8 = sizes.iter().sum();
    let smallest = u64::from(*sizes.iter().min().expect("a zone"));
    let floor = QuorumSpec::Floor {
        node_failures: random.below(smallest) as u8,
        zone_failures: random.below(sizes.len() as u64) as u8,
    };
    let q2 = random.range(1, u64::from(nodes)) as u8;
    let flexible = QuorumSpec::Flexible { q1: nodes + 1 - q2, q2 };
    let count = QuorumSpec::Count { n: random.range(u64::from(nodes / 2 + 1), u64::from(nodes)) as u8 };
    let others = [
        QuorumSpec::Majority,
        QuorumSpec::Grid,
        QuorumSpec::ZoneMajority,
        QuorumSpec::Fast,
        QuorumSpec::All,
        flexible,
        count,
    ];
    let drawn = if random.permille(600) { floor } else { *random.pick(&others) };
    match theme {
        Theme::Newcomers if sizes.len() > 1 && smallest > 1 => {
            QuorumSpec::Floor { node_failures: (smallest / 2) as u8, zone_failures: 0 }
        }
        Theme::Newcomers | Theme::OldOwners => QuorumSpec::Majority,
        _ => drawn,
    }
}

/// How much a slow disk may have waiting: from a stream of its own, so that other draws stay what they are.
fn bound_waiting(seed: u64, tuning: &mut Tuning) {
    let mut random = Random::new(seed, Purpose::Waiting);
    tuning.flow.stream_unacked_bytes_max = *random.pick(&[700, 4000, 1 << 20, 16 << 20]);
    tuning.log.pending_bytes_max = *random.pick(&[1500, 8000, 1 << 20, 64 << 20]);
}

fn tuning(seed: u64, random: &mut Random, calm: bool) -> Tuning {
    let mut tuning = Tuning::default();
    if !calm {
        bound_waiting(seed, &mut tuning);
    }
    let batch = &mut tuning.batch;
    batch.linger_us = *random.pick(&[0, 0, 200, 2000]);
    batch.entries_max = *random.pick(&[1, 2, 5, 1024]);
    batch.bytes_max = *random.pick(&[300, 262_144]);
    batch.thrifty = random.permille(300);
    batch.learner_delay_us = *random.pick(&[0, 500, 5000]);
    batch.learner_bytes = *random.pick(&[1, 1000, 131_072]);
    batch.commit_delay_us = *random.pick(&[0, 500, 3000]);
    let flow = &mut tuning.flow;
    flow.stream_retain_bytes = *random.pick(&[0, 300, 2000, 1 << 20]);
    if !calm {
        flow.requests_max = *random.pick(&[3, 8, 1000]);
        flow.stream_inflight_bytes_max = *random.pick(&[400, 2000, 1 << 20, 1 << 20]);
        flow.link_queue_bytes_max = *random.pick(&[600, 4000, 1 << 20, 1 << 20]);
        flow.client_requests_max = *random.pick(&[1, 2, 1000]);
        flow.client_queue_bytes_max = *random.pick(&[100, 1 << 20]);
    }
    let timers = &mut tuning.timers;
    timers.request_timeout_us = if calm { 1_500_000 } else { *random.pick(&[100_000, 300_000]) };
    timers.heartbeat_us = 10_000;
    timers.suspect_silent_us = *random.pick(&[40_000, 80_000]);
    timers.suspect_down_us = *random.pick(&[5_000, 20_000]);
    timers.suspect_recover_us = *random.pick(&[0, 25_000]);
    timers.takeover_delay_us = *random.pick(&[30_000, 100_000]);
    timers.prepare_retry_us = 10_000;
    timers.backoff_min_us = 500;
    timers.backoff_max_us = 20_000;
    timers.confirm_retry_us = 10_000;
    timers.gap_delay_us = 5_000;
    timers.orphan_delay_us = 50_000;
    timers.handover_retry_us = 20_000;
    timers.q2_fallback_us = *random.pick(&[5_000, 20_000]);
    timers.reconnect_min_us = 500;
    timers.reconnect_max_us = *random.pick(&[2_000, 20_000]);
    tuning
}
