//! What a small world is about: its cluster, what is asked of it, and what may go wrong.

use wpaxos::{
    mutant::Mutant,
    protocol::{
        Micros,
        wpaxos::{Config, WPaxos},
    },
    quorum::Quorums,
    topology::{Cluster, NodeIndex, QuorumSpec, StealPolicy},
    tuning::Tuning,
};

use crate::world::World;

/// How far a tick moves a node's clock: past every timer that the model lets fire.
pub const TICK_US: u64 = 100_000;
/// What no tick reaches.
const NEVER_US: u64 = 1 << 50;
/// Where clocks begin. Below `NEVER_US`, so that no heartbeat is overdue.
const BEGIN_US: u64 = 1_000_000;

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Act {
    /// Sets a value that tells which request it was.
    Put,
    /// Reads, by a round (`ReadMode::Confirm`).
    Get,
    /// Reads, as a command in the log.
    LogGet,
}

/// A client's request. It may come at any time, or at any time after another one was answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ask {
    pub node: usize,
    pub key: u8,
    pub act: Act,
    pub after: Option<usize>,
}

/// Something that a world must be able to come to, or it shows nothing.
pub type Sight = (&'static str, fn(&Setup, &World) -> bool);

/// A small world.
#[derive(Clone, Debug)]
pub struct Setup {
    pub cluster: Cluster,
    pub quorums: Quorums,
    pub tuning: Tuning,
    pub asks: Vec<Ask>,
    /// How often a connection may be lost.
    pub losses: u8,
    /// Nodes of which one may stop for good.
    pub mortal: Vec<usize>,
    /// How often each node's clock may move: where one may stop, only after it has.
    pub ticks: u8,
    /// Whether records become durable by steps of their own, not at once.
    pub slow_log: bool,
    /// Pairs of nodes that never hear each other once all have met: their frames take for ever.
    pub deaf: Vec<(usize, usize)>,
    /// What must be seen.
    pub sights: Vec<Sight>,
    pub mutant: Option<Mutant>,
}

impl Setup {
    /// Zones of these sizes in which nothing goes wrong, with objects that move to whoever asks.
    pub fn new(sizes: &[usize], quorum: QuorumSpec, asks: &[Ask]) -> Self {
        let address = "127.0.0.1:1".parse().expect("an address");
        let zones = sizes.iter().map(|size| vec![vec![address]; *size]).collect();
        let mut cluster = Cluster::local("small", zones);
        cluster.quorum = quorum;
        cluster.steal = StealPolicy::Immediate;
        Self {
            quorums: Quorums::new(&cluster).expect("sound quorums"),
            cluster,
            tuning: tuning(),
            asks: asks.to_vec(),
            losses: 0,
            mortal: Vec::new(),
            ticks: 0,
            slow_log: false,
            deaf: Vec::new(),
            sights: Vec::new(),
            mutant: None,
        }
    }

    /// The same, where this must be seen.
    pub fn with(mut self, sights: &[Sight]) -> Self {
        self.sights.extend_from_slice(sights);
        self
    }

    pub fn nodes(&self) -> usize {
        self.cluster.nodes.len()
    }

    /// A node that knows nothing yet.
    pub fn core(&self, node: usize) -> WPaxos {
        let config = Config::new(&self.cluster, &self.tuning, NodeIndex(node as u8), 0, 100 + node as u64);
        let mut config = config.expect("sound quorums");
        config.mutant = self.mutant;
        config.founded = Some((0..self.nodes()).map(|node| 100 + node as u64).collect());
        WPaxos::new(config, self.clock(0))
    }

    /// A node's clock after so many ticks.
    pub fn clock(&self, ticks: u8) -> Micros {
        Micros(BEGIN_US + u64::from(ticks) * TICK_US)
    }

    /// Whether these two never hear each other.
    pub fn are_deaf(&self, a: usize, b: usize) -> bool {
        self.deaf.contains(&(a, b)) || self.deaf.contains(&(b, a))
    }
}

/// Nothing waits for company, nothing is said only because time passes; a tick makes everything due that an answer could
/// be late for.
fn tuning() -> Tuning {
    let mut tuning = Tuning::default();
    let batch = &mut tuning.batch;
    (batch.linger_us, batch.learner_delay_us, batch.commit_delay_us) = (0, 0, 0);
    let timers = &mut tuning.timers;
    (timers.heartbeat_us, timers.suspect_silent_us) = (NEVER_US, NEVER_US);
    (timers.request_timeout_us, timers.q2_fallback_us) = (NEVER_US, NEVER_US);
    (timers.suspect_recover_us, timers.takeover_delay_us) = (0, NEVER_US);
    // No chance in the time of a retry.
    (timers.backoff_min_us, timers.backoff_max_us) = (0, 0);
    let due = TICK_US / 2;
    (timers.suspect_down_us, timers.prepare_retry_us, timers.confirm_retry_us) = (due, due, due);
    (timers.gap_delay_us, timers.handover_retry_us, timers.orphan_delay_us) = (due, due, due);
    tuning
}
