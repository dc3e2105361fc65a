//! Ballots: who may lead an object, in an order that every node agrees on.

use std::fmt;

use crate::topology::NodeId;

/// (version, round, zone, node), compared in that order; the owner is read off it (`protocol.md` §1).
///
/// `version` is the configuration's; a frame carries it once. The rest is 8 bytes: 48 bits of round, 8 of zone, 8 of
/// node. Round 0 is "nobody has taken the object yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ballot {
    /// The configuration version.
    pub version: u32,
    /// Round, zone and node as they travel.
    pub number: u64,
}

impl Ballot {
    /// Below every ballot that a node can take.
    pub const ZERO: Self = Self { version: 0, number: 0 };

    /// The ballot of `owner` in `round`.
    ///
    /// # Panics
    /// If `round` needs more than 48 bits: at a steal per microsecond that is nine years of one object.
    pub fn new(version: u32, round: u64, owner: NodeId) -> Self {
        assert!(round < 1 << 48, "round {round} does not fit into a ballot");
        Self { version, number: round << 16 | u64::from(owner.zone) << 8 | u64::from(owner.node) }
    }

    /// The round; 0 if nobody has taken the object yet.
    pub const fn round(self) -> u64 {
        self.number >> 16
    }

    /// Whose ballot it is; `None` at round 0.
    pub const fn owner(self) -> Option<NodeId> {
        if self.round() == 0 {
            return None;
        }
        Some(NodeId::new((self.number >> 8) as u8, self.number as u8))
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}:{}", self.version, self.round())?;
        match self.owner() {
            Some(owner) => write!(f, "@{owner}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_compare_by_version_round_zone_node() {
        let ballot = |version, round, zone, node| Ballot::new(version, round, NodeId::new(zone, node));
        let rising = [
            Ballot::ZERO,
            ballot(1, 1, 1, 1),
            ballot(1, 1, 1, 2),
            ballot(1, 1, 2, 1),
            ballot(1, 2, 1, 1),
            ballot(2, 1, 1, 1),
        ];
        assert!(rising.is_sorted_by(|a, b| a < b));
        assert_eq!(ballot(3, 1 << 40, 200, 7).owner(), Some(NodeId::new(200, 7)));
        assert_eq!((Ballot::ZERO.owner(), ballot(1, 9, 1, 1).round()), (None, 9));
    }
}
