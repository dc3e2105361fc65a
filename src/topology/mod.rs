//! Who is in the cluster: zones, nodes and shards, and which shard a key belongs to.

mod ids;

pub use ids::{NodeId, NodeIndex, NodeSet, ShardId, ZoneIndex, shard_of, token_of};
