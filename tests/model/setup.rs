//! What one history is about: a cluster, its tuning, and how badly it is treated. All of it follows from the seed.

use wpaxos::{
    quorum::Quorums,
    topology::{Cluster, Home, InitialOwner, NodeIndex, QuorumSpec, StealPolicy, WanMatrix},
    tuning::Tuning,
};

use crate::random::Random;

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

/// One history's frame.
#[derive(Clone, Debug)]
pub struct Setup {
    pub cluster: Cluster,
    pub quorums: Quorums,
    pub tuning: Tuning,
    pub weather: Weather,
    /// How long faults last, in microseconds.
    pub storm_us: u64,
    /// How long a frame travels within a zone and between zones, in microseconds.
    pub near_us: u64,
    pub far_us: u64,
    /// How long a record takes to become durable; 0 is "at once, within the turn".
    pub disk_us: u64,
    /// How often the end of a turn waits for more inputs, in thousandths.
    pub long_turn_permille: u64,
    /// How often a link has little room, in thousandths.
    pub no_room_permille: u64,
    pub clients: u64,
    pub hot_keys: u64,
    pub cold_keys: u64,
    /// How many operations are begun in all.
    pub operations: usize,
    /// How long a client thinks between two operations.
    pub think_us: u64,
    /// How long it waits before it tries another node.
    pub patience_us: u64,
}

impl Setup {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let random = &mut random;
        let cluster = cluster(random);
        let quorums = Quorums::new(&cluster).expect("the model asks for sound quorums");
        let weather = match random.below(10) {
            0 | 1 => Weather::Calm,
            2..=5 => Weather::Unsettled,
            _ => Weather::Storm,
        };
        let tuning = tuning(random, weather);
        let timeout = tuning.timers.request_timeout_us;
        Self {
            quorums,
            weather,
            storm_us: random.range(200_000, 900_000),
            near_us: random.range(20, 300),
            far_us: *random.pick(&[100, 500, 1500, 4000]),
            disk_us: *random.pick(&[0, 0, 100, 1000, 4000]),
            long_turn_permille: *random.pick(&[0, 100, 500]),
            no_room_permille: if weather == Weather::Calm { 0 } else { *random.pick(&[0, 0, 300, 900]) },
            clients: random.range(2, 7),
            hot_keys: random.range(1, 4),
            cold_keys: random.below(5),
            operations: random.range(40, 220) as usize,
            think_us: *random.pick(&[0, 500, 3000, 10_000]),
            patience_us: if weather == Weather::Calm { 4 * timeout } else { random.range(timeout / 10, 2 * timeout) },
            cluster,
            tuning,
        }
    }

    pub fn nodes(&self) -> usize {
        self.cluster.nodes.len()
    }

    pub fn keys(&self) -> u64 {
        self.hot_keys + self.cold_keys
    }

    /// Whether these two are in one zone.
    pub fn is_near(&self, a: NodeIndex, b: NodeIndex) -> bool {
        self.cluster.member(a).zone == self.cluster.member(b).zone
    }
}

fn cluster(random: &mut Random) -> Cluster {
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
    let sizes = *random.pick(&shapes);
    let address = "127.0.0.1:1".parse().expect("an address");
    let zones = sizes.iter().map(|size| vec![vec![address]; usize::from(*size)]).collect();
    let mut cluster = Cluster::local("model", zones);
    let nodes = cluster.nodes.len() as u8;
    let smallest = u64::from(*sizes.iter().min().expect("a zone"));
    let floor = QuorumSpec::Floor {
        node_failures: random.below(smallest) as u8,
        zone_failures: random.below(sizes.len() as u64) as u8,
    };
    let q2 = random.range(1, u64::from(nodes)) as u8;
    let flexible = QuorumSpec::Flexible { q1: nodes + 1 - q2, q2 };
    let others = [QuorumSpec::Majority, QuorumSpec::Grid, QuorumSpec::ZoneMajority, QuorumSpec::Fast, flexible];
    cluster.quorum = if random.permille(600) { floor } else { *random.pick(&others) };
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
    cluster.wan = random.permille(300).then(|| WanMatrix::uniform(sizes.len(), 2000));
    cluster
}

fn tuning(random: &mut Random, weather: Weather) -> Tuning {
    let mut tuning = Tuning::default();
    let batch = &mut tuning.batch;
    batch.linger_us = *random.pick(&[0, 0, 200, 2000]);
    batch.entries_max = *random.pick(&[1, 2, 5, 1024]);
    batch.bytes_max = *random.pick(&[300, 262_144]);
    batch.learner_delay_us = *random.pick(&[0, 500, 5000]);
    batch.learner_bytes = *random.pick(&[1, 1000, 131_072]);
    batch.commit_delay_us = *random.pick(&[0, 500, 3000]);
    let flow = &mut tuning.flow;
    flow.stream_retain_bytes = *random.pick(&[0, 300, 2000, 1 << 20]);
    if weather != Weather::Calm {
        flow.requests_max = *random.pick(&[3, 8, 1000]);
        flow.stream_inflight_bytes_max = *random.pick(&[400, 2000, 1 << 20, 1 << 20]);
    }
    let timers = &mut tuning.timers;
    timers.request_timeout_us = if weather == Weather::Calm { 1_500_000 } else { *random.pick(&[100_000, 300_000]) };
    timers.heartbeat_us = 10_000;
    timers.suspect_silent_us = *random.pick(&[40_000, 80_000]);
    timers.suspect_down_us = *random.pick(&[5_000, 20_000]);
    timers.prepare_retry_us = 10_000;
    timers.backoff_min_us = 500;
    timers.backoff_max_us = 20_000;
    timers.confirm_retry_us = 10_000;
    timers.gap_delay_us = 5_000;
    timers.orphan_delay_us = 50_000;
    timers.handover_retry_us = 20_000;
    timers.q2_fallback_us = *random.pick(&[5_000, 20_000]);
    tuning
}
