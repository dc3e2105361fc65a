//! What one shard of one node needs to know of its cluster.

use super::Ballot;
use crate::{
    mutant::Mutant,
    quorum::{QuorumError, Quorums},
    store::OPEN_SLOTS_MAX,
    topology::{
        Cluster, HistoryBounds, Home, InitialOwner, NodeId, NodeIndex, NodeSet, StealPolicy, WanMatrix, ZoneIndex,
    },
    tuning::{Batch, Flow, Timers, Tuning},
};

/// The configuration of a [`super::WPaxos`].
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub me: NodeIndex,
    /// All nodes by index.
    pub nodes: Vec<NodeId>,
    /// Each node's zone.
    pub zone_of: Vec<ZoneIndex>,
    /// How many zones.
    pub zones: usize,
    /// The shard.
    pub shard: u16,
    /// The configuration version (`protocol.md` §8) that the core begins with, and then the one that it is in.
    pub version: u32,
    /// The incarnations of all members, if they are known from the start: in tests of the core alone, which begin with a
    /// cluster whose members have met.
    pub founded: Option<Vec<u64>>,
    /// This node's incarnation: another one after its state was lost.
    pub incarnation: u64,
    /// Its boot counter.
    pub boot: u32,
    /// Seeds everything random.
    pub seed: u64,
    /// Which sets of nodes decide.
    pub quorums: Quorums,
    /// Who owns an object before anybody has taken it.
    pub initial_owner: InitialOwner,
    /// Whether home ballots hold for this node: not after a restart, its log may have lost accepts that it sent at one
    /// (`protocol.md` §4).
    pub leads_at_home: bool,
    /// When an owner hands an object to another zone.
    pub steal: StealPolicy,
    /// Distances between zones that are known from the start.
    pub wan: Option<WanMatrix>,
    /// Batching.
    pub batch: Batch,
    /// Bounds.
    pub flow: Flow,
    /// Times.
    pub timers: Timers,
    /// What is kept of earlier values, if anything.
    pub history: Option<HistoryBounds>,
    /// How many slots of an object may be open at once, at most [`OPEN_SLOTS_MAX`]. The same on every replica, and so no
    /// setting: only the simulator has another number than the default.
    pub open_slots: u64,
    /// A bug planted by a test of the simulator.
    pub mutant: Option<Mutant>,
}

impl Config {
    /// For a shard of `me` in `cluster`; first boot, configuration version 1.
    ///
    /// # Errors
    /// If the cluster's quorums do not meet.
    ///
    /// # Panics
    /// If `me` is not a member.
    pub fn new(
        cluster: &Cluster,
        tuning: &Tuning,
        me: NodeIndex,
        shard: u16,
        incarnation: u64,
    ) -> Result<Self, QuorumError> {
        assert!(me.index() < cluster.nodes.len(), "node {me:?} is a member");
        Ok(Self {
            me,
            nodes: cluster.nodes.iter().map(|member| member.id).collect(),
            zone_of: cluster.nodes.iter().map(|member| member.zone).collect(),
            zones: cluster.zones.len(),
            shard,
            version: 1,
            founded: None,
            incarnation,
            boot: 1,
            seed: incarnation ^ (u64::from(shard) << 48) ^ u64::from(me.0),
            quorums: Quorums::new(cluster)?,
            initial_owner: cluster.initial_owner,
            leads_at_home: true,
            steal: cluster.steal,
            wan: cluster.wan.clone(),
            batch: tuning.batch,
            flow: tuning.flow,
            timers: tuning.timers,
            history: cluster.history,
            open_slots: OPEN_SLOTS_MAX,
            mutant: None,
        })
    }

    /// This node's name.
    pub fn my_id(&self) -> NodeId {
        self.nodes[self.me.index()]
    }

    /// Whether this bug is planted: never, but in tests of the simulator.
    #[inline(always)]
    pub(super) fn has(&self, mutant: Mutant) -> bool {
        mutant.is_in(self.mutant)
    }

    /// Whether promises of these nodes complete phase 1.
    pub(super) fn is_phase1_quorum(&self, set: NodeSet) -> bool {
        let is_quorum = |set| self.quorums.is_phase1_quorum(set);
        is_quorum(set) || (self.has(Mutant::Phase1OneShort) && self.with_one_more(set).any(is_quorum))
    }

    /// Whether these nodes would know of an object if anything were committed for it.
    pub(super) fn is_probed(&self, set: NodeSet) -> bool {
        let is_quorum = |set| self.quorums.is_phase1_quorum(set);
        is_quorum(set) || (self.has(Mutant::ProbeOneShort) && self.with_one_more(set).any(is_quorum))
    }

    /// Whether these nodes together can decide.
    pub(super) fn is_phase2_quorum(&self, set: NodeSet) -> bool {
        if self.has(Mutant::QuorumAsTotal) {
            return set.len() >= self.quorums.smallest_phase2();
        }
        let is_quorum = |set| self.quorums.is_phase2_quorum(set);
        is_quorum(set) || (self.has(Mutant::ReadOneShort) && self.with_one_more(set).any(is_quorum))
    }

    /// The highest number that a phase-2 quorum has acked.
    pub(super) fn phase2_watermark(&self, acked: &mut [u64]) -> u64 {
        if self.has(Mutant::QuorumAsTotal) {
            acked.sort_unstable();
            return acked[acked.len() - self.quorums.smallest_phase2()];
        }
        if self.has(Mutant::Phase2OneShort) {
            let most = *acked.iter().max().expect("a node");
            *acked.iter_mut().min().expect("a node") = most;
        }
        self.quorums.phase2_watermark(acked)
    }

    /// A set with each of the nodes in turn.
    fn with_one_more(&self, set: NodeSet) -> impl Iterator<Item = NodeSet> {
        let nodes = (0..self.nodes.len()).map(|node| NodeIndex(node as u8));
        nodes.map(move |node| set.iter().chain([node]).collect())
    }

    /// Whether an acceptor that has promised one ballot turns down the other.
    pub(super) fn is_below(&self, ballot: Ballot, promised: Ballot) -> bool {
        if self.has(Mutant::BallotsWithoutNode) {
            return ballot.round() < promised.round();
        }
        ballot < promised
    }

    /// This node's zone.
    pub fn my_zone(&self) -> ZoneIndex {
        self.zone_of[self.me.index()]
    }

    /// Who owns an object with this token from the start.
    pub(super) fn home_of(&self, token: u64) -> Option<NodeId> {
        match self.initial_owner {
            InitialOwner::FirstTouch => None,
            InitialOwner::Home(Home::Node(node)) => Some(node),
            // Not by the top bits: a shard's tokens share them.
            InitialOwner::Home(Home::Hash) => Some(self.nodes[(token % self.nodes.len() as u64) as usize]),
        }
    }
}
