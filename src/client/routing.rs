//! Which node a request goes to.

use super::{ClientError, Hints};
use crate::{
    api::native::ClientWelcome,
    topology::{NodeId, NodeIndex, NodeSet},
};

/// Owners remembered at most. A colliding key overwrites; a forgotten owner costs one forward.
const HINTS: usize = 1 << 16;
const HINT_BITS: u32 = HINTS.trailing_zeros();
/// In a hint's lowest byte; the rest is the token above [`HINT_BITS`]. 0 is an empty place.
const HINT_NODE_BITS: u32 = 8;

const _: () = assert!(64 - HINT_BITS + HINT_NODE_BITS <= 64);
const _: () = assert!(NodeSet::CAPACITY < 1 << HINT_NODE_BITS);

/// The nodes of one zone, by position in the sorted list of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Zone {
    number: u8,
    nodes: std::ops::Range<usize>,
}

/// The cluster as a client sees it from its zone.
#[derive(Debug)]
pub(super) struct Routing {
    nodes: Vec<NodeId>,
    /// The own zone, then the others in the order in which they stand in for it.
    zones: Vec<Zone>,
    hints: Box<[u64]>,
    follow: Hints,
}

impl Routing {
    /// For a client in `zone`, or in the zone of the node that sent `welcome`.
    ///
    /// # Errors
    /// If the welcome makes no sense or has no such zone. `address` is whom to blame.
    pub(super) fn new(
        welcome: &ClientWelcome,
        address: &str,
        zone: Option<u8>,
        follow: Hints,
    ) -> Result<Self, ClientError> {
        let malformed = |reason: String| ClientError::Malformed { address: address.to_owned(), reason };
        let mut nodes: Vec<NodeId> = Vec::with_capacity(welcome.nodes.len());
        for node in &welcome.nodes {
            nodes.push(node.id.parse().map_err(|error| malformed(format!("{error}")))?);
            if node.shards.len() != usize::from(welcome.shards) {
                let (has, shards) = (node.shards.len(), welcome.shards);
                return Err(malformed(format!("node {} has {has} addresses for {shards} shards", node.id)));
            }
        }
        nodes.sort_unstable();
        nodes.dedup();
        if nodes.len() != welcome.nodes.len() || nodes.is_empty() || nodes.len() > NodeSet::CAPACITY {
            return Err(malformed(format!("its {} nodes are none, too many, or not distinct", welcome.nodes.len())));
        }
        if welcome.shards == 0 {
            return Err(malformed("it has no shards".to_owned()));
        }
        let here: NodeId = welcome.node.parse().map_err(|error| malformed(format!("{error}")))?;
        let zones = zones_from(&nodes, zone.unwrap_or(here.zone))?;
        Ok(Self { nodes, zones, hints: vec![0; HINTS].into_boxed_slice(), follow })
    }

    /// The nodes, sorted.
    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The client's zone.
    pub(super) fn zone(&self) -> u8 {
        self.zones[0].number
    }

    /// The position of a node.
    pub(super) fn index_of(&self, node: NodeId) -> Option<NodeIndex> {
        self.nodes.binary_search(&node).ok().map(|index| NodeIndex(index as u8))
    }

    /// The node for a key with this token, of those that are usable and not to be avoided: the owner if a hint names it,
    /// else the one of the first zone that has any on which most of the token's weight lies.
    pub(super) fn route(&self, token: u64, avoid: NodeSet, usable: impl Fn(NodeIndex) -> bool) -> Option<NodeIndex> {
        let may = |node: NodeIndex| !avoid.contains(node) && usable(node);
        if let Some(hinted) = self.hint(token).filter(|hinted| may(*hinted)) {
            return Some(hinted);
        }
        self.zones.iter().find_map(|zone| {
            heaviest(token, zone).filter(|node| may(*node)).or_else(|| {
                let others = zone.nodes.clone().map(|node| NodeIndex(node as u8)).filter(|node| may(*node));
                others.max_by_key(|node| weight(token, *node))
            })
        })
    }

    /// Remembers the owner that an answer named.
    pub(super) fn learn(&mut self, token: u64, owner: NodeId) {
        if self.follow == Hints::Never {
            return;
        }
        let Some(node) = self.index_of(owner) else { return };
        let near = owner.zone == self.zones[0].number;
        let place = &mut self.hints[place_of(token)];
        let needed = near || self.follow == Hints::Any;
        if needed && heaviest(token, &self.zones[0]) != Some(node) {
            *place = tag_of(token) | (u64::from(node.0) + 1);
        } else if *place & !NODE_MASK == tag_of(token) {
            *place = 0; // The node that the key decides is the owner, or as good as any.
        }
    }

    /// Forgets that `node` owns the key with this token, as it does not answer.
    pub(super) fn forget(&mut self, token: u64, node: NodeIndex) {
        if self.hint(token) == Some(node) {
            self.hints[place_of(token)] = 0;
        }
    }

    fn hint(&self, token: u64) -> Option<NodeIndex> {
        let hint = self.hints[place_of(token)];
        (hint != 0 && hint & !NODE_MASK == tag_of(token)).then(|| NodeIndex((hint & NODE_MASK) as u8 - 1))
    }
}

const NODE_MASK: u64 = (1 << HINT_NODE_BITS) - 1;

fn place_of(token: u64) -> usize {
    token as usize & (HINTS - 1)
}

fn tag_of(token: u64) -> u64 {
    (token >> HINT_BITS) << HINT_NODE_BITS
}

/// The node of a zone that a token would choose if all were usable.
fn heaviest(token: u64, zone: &Zone) -> Option<NodeIndex> {
    zone.nodes.clone().map(|node| NodeIndex(node as u8)).max_by_key(|node| weight(token, *node))
}

/// Rendezvous hashing: when a node fails, its keys spread over the others and no other key moves.
fn weight(token: u64, node: NodeIndex) -> u64 {
    let mixed =
        (token ^ (u64::from(node.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

fn zones_from(nodes: &[NodeId], own: u8) -> Result<Vec<Zone>, ClientError> {
    let mut zones: Vec<Zone> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match zones.last_mut() {
            Some(last) if last.number == node.zone => last.nodes.end = index + 1,
            _ => zones.push(Zone { number: node.zone, nodes: index..index + 1 }),
        }
    }
    let Some(first) = zones.iter().position(|zone| zone.number == own) else {
        let known: Vec<String> = zones.iter().map(|zone| zone.number.to_string()).collect();
        return Err(ClientError::Zone { zone: own, known: known.join(", ") });
    };
    zones.rotate_left(first);
    Ok(zones)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::native::WelcomeNode;

    fn routing(zone: Option<u8>, follow: Hints) -> Routing {
        let node = |id: &str| WelcomeNode { id: id.to_owned(), shards: vec!["127.0.0.1:1".to_owned()], http: None };
        let welcome = ClientWelcome {
            cluster: "test".to_owned(),
            node: "2.1".to_owned(),
            shard: 0,
            shards: 1,
            nodes: ["3.2", "1.1", "2.3", "2.1", "1.3", "3.1", "2.2", "3.3", "1.2"].map(node).to_vec(),
            facts: Default::default(),
        };
        Routing::new(&welcome, "test", zone, follow).unwrap()
    }

    fn tokens() -> impl Iterator<Item = u64> {
        (0..3000u64).map(|key| crate::topology::token_of(&key.to_le_bytes()))
    }

    fn route(routing: &Routing, token: u64, down: &[usize]) -> Option<NodeId> {
        let usable = |node: NodeIndex| !down.contains(&node.index());
        routing.route(token, NodeSet::EMPTY, usable).map(|node| routing.nodes()[node.index()])
    }

    #[test]
    fn keys_spread_over_the_own_zone() {
        let routing = routing(None, Hints::Any);
        assert_eq!(routing.zone(), 2);
        let mut counts = [0; 3];
        for token in tokens() {
            let node = route(&routing, token, &[]).unwrap();
            assert_eq!(node.zone, 2);
            counts[usize::from(node.node) - 1] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn other_zones_stand_in_only_for_a_whole_zone() {
        let routing = routing(Some(3), Hints::Any);
        for token in tokens() {
            let node = route(&routing, token, &[]).unwrap();
            let without = route(&routing, token, &[6]).unwrap();
            assert!(without.zone == 3 && without.node != 1);
            assert!(node.node == 1 || without == node, "a key of a live node moved");
            assert_eq!(route(&routing, token, &[6, 7, 8]).unwrap().zone, 1);
            assert_eq!(route(&routing, token, &[0, 1, 2, 6, 7, 8]).unwrap().zone, 2);
        }
        assert_eq!(route(&routing, 7, &[0, 1, 2, 3, 4, 5, 6, 7, 8]), None);
    }

    #[test]
    fn hints_are_followed_as_the_policy_says() {
        let (far, near) = (NodeId::new(1, 2), NodeId::new(2, 3));
        for (follow, owner, followed) in [
            (Hints::Any, far, true),
            (Hints::Any, near, true),
            (Hints::SameZone, far, false),
            (Hints::SameZone, near, true),
            (Hints::Never, near, false),
        ] {
            let mut routing = routing(None, follow);
            let token = tokens().find(|token| route(&routing, *token, &[]) != Some(near)).unwrap();
            let usual = route(&routing, token, &[]).unwrap();
            routing.learn(token, owner);
            assert_eq!(route(&routing, token, &[]), Some(if followed { owner } else { usual }), "{follow:?} {owner}");
            let down = routing.index_of(owner).unwrap();
            assert_eq!(route(&routing, token, &[down.index()]), Some(usual));
            routing.forget(token, down);
            assert_eq!(route(&routing, token, &[]), Some(usual));
        }
    }

    #[test]
    fn a_newer_owner_replaces_a_hint_and_a_stranger_is_ignored() {
        let mut routing = routing(None, Hints::Any);
        let usual = route(&routing, 5, &[]).unwrap();
        routing.learn(5, NodeId::new(3, 3));
        routing.learn(5, NodeId::new(9, 9));
        assert_eq!(route(&routing, 5, &[]), Some(NodeId::new(3, 3)));
        routing.learn(5 + (1 << 16), NodeId::new(1, 1));
        assert_eq!(route(&routing, 5, &[]), Some(usual), "another key took the place");
        routing.learn(5, NodeId::new(3, 3));
        routing.learn(5, usual);
        assert_eq!(route(&routing, 5, &[]), Some(usual));
    }
}
