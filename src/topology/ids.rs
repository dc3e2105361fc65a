//! The names of things: a node as people write it, a node as the code counts it, a shard.

use std::{fmt, str::FromStr};

use xxhash_rust::xxh3::xxh3_64;

/// A node as operators write it: `zone.node`, both from 1 (`protocol.md` §1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// Zone number, from 1.
    pub zone: u8,
    /// Node number within its zone, from 1.
    pub node: u8,
}

impl NodeId {
    /// The node `zone.node`.
    pub const fn new(zone: u8, node: u8) -> Self {
        Self { zone, node }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.zone, self.node)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a node id: expected ZONE.NODE with both from 1 to 255, as in 2.3")]
pub struct NodeIdError(String);

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NodeIdError(text.to_owned());
        let (zone, node) = text.split_once('.').ok_or_else(wrong)?;
        let part = |part: &str| match part.parse::<u8>() {
            Ok(number) if number > 0 && !part.starts_with('+') => Ok(number),
            _ => Err(wrong()),
        };
        Ok(Self::new(part(zone)?, part(node)?))
    }
}

/// A node as the code counts it: its position in the cluster's sorted list of members, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeIndex(pub u8);

impl NodeIndex {
    /// For indexing per-node tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A zone as the code counts it: its position among the cluster's sorted zones, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ZoneIndex(pub u8);

impl ZoneIndex {
    /// For indexing per-zone tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of nodes, as bits by [`NodeIndex`]. A cluster has at most [`NodeSet::CAPACITY`] nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NodeSet(pub u128);

impl NodeSet {
    /// The most nodes that a cluster may have.
    pub const CAPACITY: usize = 128;
    /// No node.
    pub const EMPTY: Self = Self(0);

    /// Adds a node; true if it was not there yet.
    pub fn insert(&mut self, node: NodeIndex) -> bool {
        let before = self.0;
        self.0 |= 1 << node.0;
        self.0 != before
    }

    /// Takes a node out.
    pub fn remove(&mut self, node: NodeIndex) {
        self.0 &= !(1 << node.0);
    }

    /// Whether the node is in the set.
    pub const fn contains(self, node: NodeIndex) -> bool {
        self.0 >> node.0 & 1 == 1
    }

    /// How many nodes.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it has no node.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The nodes that are in both.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The nodes in ascending order.
    pub fn iter(self) -> impl Iterator<Item = NodeIndex> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let node = rest.trailing_zeros() as u8;
                rest &= rest - 1;
                NodeIndex(node)
            })
        })
    }
}

impl FromIterator<NodeIndex> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeIndex>>(nodes: I) -> Self {
        let mut set = Self::EMPTY;
        for node in nodes {
            set.insert(node);
        }
        set
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|node| node.0)).finish()
    }
}

/// A shard: one of S contiguous ranges of the hashed key space, the same S in the whole cluster, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u16);

/// The 64-bit hash of a key, which decides its shard.
pub fn token_of(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The shard that a token belongs to, of `shards` contiguous ranges.
///
/// # Panics
/// If `shards` is 0.
pub fn shard_of(token: u64, shards: u16) -> ShardId {
    assert!(shards > 0, "a cluster has at least one shard");
    ShardId(((u128::from(token) * u128::from(shards)) >> 64) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_read_as_written() {
        assert_eq!("2.3".parse(), Ok(NodeId::new(2, 3)));
        assert_eq!(NodeId::new(12, 1).to_string(), "12.1");
        for wrong in ["", "1", "1.", ".1", "0.1", "1.0", "1.256", "1.1.1", "+1.1", " 1.1", "a.b"] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn shards_are_contiguous_and_cover_all_tokens() {
        assert_eq!(shard_of(0, 5), ShardId(0));
        assert_eq!(shard_of(u64::MAX, 5), ShardId(4));
        let mut last = 0;
        for step in 0..1000u64 {
            let ShardId(shard) = shard_of(step * (u64::MAX / 1000), 5);
            assert!(shard == last || shard == last + 1);
            last = shard;
        }
        assert_eq!(last, 4);
    }

    #[test]
    fn a_node_set_is_a_set() {
        let mut set = NodeSet::EMPTY;
        assert!(set.insert(NodeIndex(127)) && set.insert(NodeIndex(0)) && !set.insert(NodeIndex(0)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [NodeIndex(0), NodeIndex(127)]);
        set.remove(NodeIndex(0));
        assert_eq!((set.len(), set.contains(NodeIndex(0)), set.contains(NodeIndex(127))), (1, false, true));
    }
}
