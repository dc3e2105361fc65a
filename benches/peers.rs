//! The protocol core beside two consensus libraries: the same commands through three nodes of each on one thread, in turns.
//!
//! `cargo bench --bench peers -- BATCH ROUNDS` prints nanoseconds per committed write, and the ratio to ours round by round.
//! All use the process's allocator. The others are helped: their messages are handed over as they are, without encoding and
//! checksums, and they execute nothing, for neither has a store. Ours encodes every frame, checks it, and executes into the
//! store of each node.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use omnipaxos::{
    ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig,
    messages::Message as OmniMessage,
    storage::{Entry, NoSnapshot},
};
use omnipaxos_storage::memory_storage::MemoryStorage;
use raft::{
    Config as RaftConfig, RawNode, StateRole,
    eraftpb::{ConfState, Message as RaftMessage},
    storage::MemStorage,
};
use support::{Loopback, puts};

/// So many commands go through a contender before it is another's turn.
const TURN: u64 = 64 << 10;
const KEYS: u64 = 1_000;

/// Three nodes that commit.
trait Contender {
    fn name(&self) -> &'static str;
    /// Commits these commands on all three nodes; gives how many are committed in all.
    fn commit(&mut self, commands: &[Bytes]) -> u64;
    /// Drops what is no longer needed, between two measurements.
    fn tidy(&mut self);
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    // As `cargo bench` calls it: a few rounds of the batch that goals are stated for.
    let (batch, rounds) = (numbers.first().map_or(256, |batch| (*batch).max(1)), numbers.get(1).map_or(5, |n| *n));
    let mut all: Vec<Box<dyn Contender>> = vec![
        Box::new(Ours::new()),
        Box::new(OmniPaxosCluster::<Shared>::new("omnipaxos 0.2, shared bytes")),
        Box::new(OmniPaxosCluster::<Owned>::new("omnipaxos 0.2, own bytes")),
        Box::new(RaftCluster::new()),
    ];
    let mut ids = 1;
    let mut measured: Vec<Vec<f64>> = vec![Vec::new(); all.len()];
    for round in 0..=rounds {
        for (contender, times) in all.iter_mut().zip(&mut measured) {
            let ns = turn(&mut **contender, batch, &mut ids);
            // The first turn fills caches, tables and free lists.
            if round > 0 {
                times.push(ns);
            }
        }
    }
    println!(
        "{batch} per batch, {KEYS} keys, 64-byte values, three nodes on one thread, {rounds} turns of {TURN} writes each"
    );
    for (contender, times) in all.iter().zip(&measured) {
        let ratios: Vec<f64> = times.iter().zip(&measured[0]).map(|(own, ours)| own / ours).collect();
        let (ns, ratio) = (summary(times), summary(&ratios));
        println!(
            "{:27} {:6.0} ns per write [{:.0} to {:.0}], {:.2} [{:.2} to {:.2}] of ours",
            contender.name(),
            ns[1],
            ns[0],
            ns[2],
            ratio[1],
            ratio[0],
            ratio[2]
        );
    }
}

/// Nanoseconds per write of one turn.
fn turn(contender: &mut dyn Contender, batch: u64, ids: &mut u64) -> f64 {
    let (mut elapsed, mut committed) = (Duration::ZERO, 0);
    for _ in 0..TURN.div_ceil(batch) {
        let commands = puts(*ids, batch, KEYS);
        *ids += batch;
        let started = Instant::now();
        let total = contender.commit(&commands);
        elapsed += started.elapsed();
        committed += batch;
        assert!(total >= committed, "{} has lost commands", contender.name());
    }
    contender.tidy();
    elapsed.as_nanos() as f64 / committed as f64
}

/// The least, the median and the most.
fn summary(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
}

struct Ours(Loopback);

impl Ours {
    fn new() -> Self {
        Self(Loopback::new(1, 3))
    }
}

impl Contender for Ours {
    fn name(&self) -> &'static str {
        "wpaxos, with its store"
    }

    fn commit(&mut self, commands: &[Bytes]) -> u64 {
        self.0.submit(0, commands);
        self.0.run();
        self.0.replies
    }

    fn tidy(&mut self) {
        self.0.tick(2_000);
    }
}

/// A command that all nodes of one process can share: no real cluster can, and it is the least that a node could do.
#[derive(Clone, Debug)]
struct Shared(#[allow(dead_code)] Bytes);

impl Entry for Shared {
    type Snapshot = NoSnapshot;
}

impl From<&Bytes> for Shared {
    fn from(command: &Bytes) -> Self {
        Self(command.clone())
    }
}

/// A command with memory of its own at each node.
#[derive(Clone, Debug)]
struct Owned(#[allow(dead_code)] Vec<u8>);

impl Entry for Owned {
    type Snapshot = NoSnapshot;
}

impl From<&Bytes> for Owned {
    fn from(command: &Bytes) -> Self {
        Self(command.to_vec())
    }
}

struct OmniPaxosCluster<Put: Entry> {
    name: &'static str,
    nodes: Vec<OmniPaxos<Put, MemoryStorage<Put>>>,
    buffer: Vec<OmniMessage<Put>>,
    leader: usize,
}

impl<Put: Entry> OmniPaxosCluster<Put> {
    fn new(name: &'static str) -> Self {
        let cluster_config = ClusterConfig { configuration_id: 1, nodes: vec![1, 2, 3], ..Default::default() };
        let node = |pid| {
            let server_config = ServerConfig { pid, ..Default::default() };
            let config = OmniPaxosConfig { cluster_config: cluster_config.clone(), server_config };
            config.build(MemoryStorage::default()).expect("a sound configuration")
        };
        let mut cluster = Self { name, nodes: [1, 2, 3].map(node).into(), buffer: Vec::new(), leader: 0 };
        let leader = |cluster: &Self| cluster.nodes[0].get_current_leader().filter(|(_, accepts)| *accepts);
        while leader(&cluster).is_none() {
            cluster.nodes.iter_mut().for_each(OmniPaxos::tick);
            cluster.run();
        }
        cluster.leader = leader(&cluster).expect("just seen").0 as usize - 1;
        cluster
    }

    fn run(&mut self) {
        loop {
            for node in &mut self.nodes {
                node.take_outgoing_messages(&mut self.buffer);
            }
            if self.buffer.is_empty() {
                return;
            }
            for message in self.buffer.drain(..) {
                self.nodes[message.get_receiver() as usize - 1].handle_incoming(message);
            }
        }
    }
}

impl<Put: Entry + for<'a> From<&'a Bytes>> Contender for OmniPaxosCluster<Put> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn commit(&mut self, commands: &[Bytes]) -> u64 {
        for command in commands {
            self.nodes[self.leader].append(Put::from(command)).expect("the leader takes it");
        }
        self.run();
        self.nodes.iter().map(|node| node.get_decided_idx() as u64).min().expect("three nodes")
    }

    fn tidy(&mut self) {
        let decided = self.nodes[self.leader].get_decided_idx();
        self.nodes[self.leader].trim(Some(decided)).expect("everybody has decided that");
        self.run();
    }
}

struct RaftCluster {
    nodes: Vec<RawNode<MemStorage>>,
    mail: Vec<RaftMessage>,
    leader: usize,
}

impl RaftCluster {
    fn new() -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = |id| {
            let config = RaftConfig {
                id,
                election_tick: 10,
                heartbeat_tick: 3,
                max_size_per_msg: 1 << 20,
                max_inflight_msgs: 1024,
                batch_append: true,
                ..Default::default()
            };
            let storage = MemStorage::new_with_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
            RawNode::new(&config, storage, &logger).expect("a sound configuration")
        };
        let mut cluster = Self { nodes: [1, 2, 3].map(node).into(), mail: Vec::new(), leader: 0 };
        cluster.nodes[0].campaign().expect("anybody may");
        cluster.run();
        assert_eq!(cluster.nodes[0].raft.state, StateRole::Leader, "nobody stands in its way");
        cluster
    }

    fn run(&mut self) {
        loop {
            for node in &mut self.nodes {
                turn_of(node, &mut self.mail);
            }
            if self.mail.is_empty() {
                return;
            }
            for message in self.mail.drain(..) {
                self.nodes[message.to as usize - 1].step(message).expect("peers keep to the protocol");
            }
        }
    }
}

/// Everything that a node's driver has to do, without a disk.
fn turn_of(node: &mut RawNode<MemStorage>, mail: &mut Vec<RaftMessage>) {
    while node.has_ready() {
        let mut ready = node.ready();
        mail.append(&mut ready.take_messages());
        let storage = node.mut_store();
        storage.wl().append(ready.entries()).expect("entries that follow");
        if let Some(state) = ready.hs() {
            storage.wl().set_hardstate(state.clone());
        }
        mail.append(&mut ready.take_persisted_messages());
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            node.mut_store().wl().mut_hard_state().set_commit(commit);
        }
        mail.append(&mut light.take_messages());
        node.advance_apply();
    }
}

impl Contender for RaftCluster {
    fn name(&self) -> &'static str {
        "raft 0.7"
    }

    fn commit(&mut self, commands: &[Bytes]) -> u64 {
        for command in commands {
            self.nodes[self.leader].propose(Vec::new(), command.to_vec()).expect("the leader takes it");
        }
        self.run();
        // Followers hear of the last commit with the next entries or a heartbeat.
        while self
            .nodes
            .iter()
            .any(|node| node.raft.raft_log.committed < self.nodes[self.leader].raft.raft_log.committed)
        {
            self.nodes[self.leader].ping();
            self.run();
        }
        self.nodes[self.leader].raft.raft_log.committed
    }

    fn tidy(&mut self) {
        for node in &mut self.nodes {
            let applied = node.raft.raft_log.applied;
            node.mut_store().wl().compact(applied).expect("it is applied");
        }
    }
}
