//! What one shard of one node needs to know of its cluster.

use crate::{
    quorum::{QuorumError, Quorums},
    topology::{Cluster, Home, InitialOwner, NodeId, NodeIndex, StealPolicy, WanMatrix, ZoneIndex},
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
    /// The configuration version (`protocol.md` §8).
    pub version: u32,
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
        })
    }

    /// This node's name.
    pub fn my_id(&self) -> NodeId {
        self.nodes[self.me.index()]
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
