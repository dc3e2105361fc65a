//! Who is in the cluster: zones, nodes and shards, and which shard a key belongs to.

mod cluster;
mod ids;
mod settings;
mod wan;

pub use cluster::{Cluster, Home, InitialOwner, Member, QuorumSpec, StealPolicy, Zone};
pub use ids::{NodeId, NodeIndex, NodeSet, ShardId, ZoneIndex, shard_of, token_of};
pub use settings::{HistoryBounds, HttpSettings, Missing};
pub(crate) use wan::thousandths;
pub use wan::{RTT_US_MAX, WanError, WanMatrix};
