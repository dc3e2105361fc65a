//! Quorum systems, asked by question (`protocol.md` §2).
//!
//! Every system comes down to one of two rules. *Counting*: any q1 nodes for phase 1, any q2 for phase 2. *Zones*: some
//! number of zones in which enough nodes answered, where "enough" may differ by zone and by phase. Zones that reach
//! their threshold are counted, never a total of answers: a total does not make two quorums meet.

use std::ops::Range;

use crate::topology::{Cluster, NodeId, NodeIndex, NodeSet, QuorumSpec, ZoneIndex};

/// The quorums of a cluster. Every phase-1 quorum has a node in common with every phase-2 quorum: [`Quorums::new`]
/// refuses what does not.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Quorums {
    spec: QuorumSpec,
    nodes: usize,
    rule: Rule,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Rule {
    /// So many nodes, whichever.
    Count { phase1: usize, phase2: usize },
    /// So many zones in which the zone's threshold is reached.
    Zones { zones: Vec<ZoneRule>, zone_of: Vec<ZoneIndex>, phase1: usize, phase2: usize },
}

/// How many nodes of one zone make it count.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct ZoneRule {
    nodes: NodeSet,
    /// The same nodes as positions in a table by node.
    range: Range<usize>,
    phase1: usize,
    phase2: usize,
}

/// Why a cluster cannot have the quorums that it asks for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuorumError {
    /// f_n is not below the size of a zone.
    #[error(
        "node_failures = {node_failures} must be below {nodes}, the number of nodes in zone {zone}: otherwise no node \
         of it would be needed"
    )]
    NodeFailures {
        /// As configured.
        node_failures: u8,
        /// The number of the smallest zone.
        zone: u8,
        /// Its nodes.
        nodes: usize,
    },
    /// f_z is not below the number of zones.
    #[error("zone_failures = {zone_failures} must be below {zones}, the number of zones")]
    ZoneFailures {
        /// As configured.
        zone_failures: u8,
        /// Zones of the cluster.
        zones: usize,
    },
    /// A number of nodes that the cluster does not have.
    #[error("{key} = {value} must be from 1 to {nodes}, the number of nodes")]
    Range {
        /// Which number.
        key: &'static str,
        /// As configured.
        value: u8,
        /// Nodes of the cluster.
        nodes: usize,
    },
    /// Two quorums need not meet.
    #[error(
        "phase 1 with {phase1} and phase 2 with {phase2} of {nodes} nodes need not meet: {phase1} + {phase2} = {} must \
         be more than {nodes}; for example {{{}}} and {{{}}} have no node in common",
        .phase1 + .phase2, list(&.example.0), list(&.example.1)
    )]
    Disjoint {
        /// Nodes of a phase-1 quorum.
        phase1: usize,
        /// Nodes of a phase-2 quorum.
        phase2: usize,
        /// Nodes of the cluster.
        nodes: usize,
        /// A phase-1 and a phase-2 quorum without a common node.
        example: (Vec<NodeId>, Vec<NodeId>),
    },
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

impl Quorums {
    /// The quorums that `cluster.quorum` describes.
    ///
    /// Where zones differ in size, `Floor` asks for f_n + 1 nodes of each zone in phase 1 and for l_z − f_n nodes of
    /// zone z in phase 2, so f_n must be below the size of the smallest zone.
    ///
    /// # Errors
    /// If a number is out of range, or if a phase-1 quorum need not meet a phase-2 quorum.
    ///
    /// # Panics
    /// If `cluster` breaks what it promises about its nodes and zones.
    pub fn new(cluster: &Cluster) -> Result<Self, QuorumError> {
        let nodes = cluster.nodes.len();
        assert!(nodes > 0 && nodes <= NodeSet::CAPACITY, "a cluster of {nodes} nodes");
        let rule = match cluster.quorum {
            QuorumSpec::Floor { node_failures, zone_failures } => floor(cluster, node_failures, zone_failures)?,
            QuorumSpec::Grid => floor(cluster, 0, 0)?,
            QuorumSpec::ZoneMajority => zoned(cluster, 0, |size| size.div_ceil(2), |size| size / 2 + 1),
            QuorumSpec::Majority => counted(cluster, nodes / 2 + 1, nodes / 2 + 1)?,
            QuorumSpec::All => counted(cluster, nodes, nodes)?,
            QuorumSpec::Fast => counted(cluster, (3 * nodes).div_ceil(4), (3 * nodes).div_ceil(4))?,
            QuorumSpec::Flexible { q1, q2 } => {
                counted(cluster, in_range("q1", q1, nodes)?, in_range("q2", q2, nodes)?)?
            }
            QuorumSpec::Count { n } => {
                let n = in_range("n", n, nodes)?;
                counted(cluster, n, n)?
            }
        };
        Ok(Self { spec: cluster.quorum, nodes, rule })
    }

    /// Whether promises of these nodes complete phase 1. Nodes outside the cluster do not count.
    pub fn is_phase1_quorum(&self, set: NodeSet) -> bool {
        match &self.rule {
            Rule::Count { phase1, .. } => set.intersection(self.all()).len() >= *phase1,
            Rule::Zones { zones, phase1, .. } => {
                zones.iter().filter(|zone| set.intersection(zone.nodes).len() >= zone.phase1).count() >= *phase1
            }
        }
    }

    /// Whether acceptances by these nodes decide. Nodes outside the cluster do not count.
    pub fn is_phase2_quorum(&self, set: NodeSet) -> bool {
        match &self.rule {
            Rule::Count { phase2, .. } => set.intersection(self.all()).len() >= *phase2,
            Rule::Zones { zones, phase2, .. } => {
                zones.iter().filter(|zone| set.intersection(zone.nodes).len() >= zone.phase2).count() >= *phase2
            }
        }
    }

    /// How many nodes the smallest phase-2 quorum has. Not every set of so many nodes is one.
    pub fn smallest_phase2(&self) -> usize {
        match &self.rule {
            Rule::Count { phase2, .. } => *phase2,
            Rule::Zones { zones, phase2, .. } => {
                let mut thresholds: Vec<usize> = zones.iter().map(|zone| zone.phase2).collect();
                thresholds.sort_unstable();
                thresholds[..*phase2].iter().sum()
            }
        }
    }

    /// The highest number n such that the nodes with `acked` ≥ n are a phase-2 quorum; `acked` by [`NodeIndex`].
    /// Allocates nothing.
    ///
    /// # Panics
    /// If `acked` does not have one number per node.
    pub fn phase2_watermark(&self, acked: &[u64]) -> u64 {
        assert_eq!(acked.len(), self.nodes, "one number per node");
        match &self.rule {
            Rule::Count { phase2, .. } => kth_largest(acked, *phase2),
            Rule::Zones { zones, phase2, .. } => {
                let level = |zone: &ZoneRule| kth_largest(&acked[zone.range.clone()], zone.phase2);
                if *phase2 == 1 {
                    return zones.iter().map(level).max().unwrap_or(0);
                }
                let mut levels = [0; NodeSet::CAPACITY];
                for (slot, zone) in levels.iter_mut().zip(zones) {
                    *slot = level(zone);
                }
                kth_largest(&levels[..zones.len()], *phase2)
            }
        }
    }

    /// Who should get accepts at once, of the live nodes in `order`, nearest first. For systems by zone: all listed
    /// nodes of the first zones, by first appearance, that have enough of their nodes listed, so that one slow node of
    /// a zone delays nothing; for systems that count: the first so many nodes. `None` if those listed hold no phase-2
    /// quorum.
    ///
    /// # Panics
    /// If `order` names a node outside the cluster.
    pub fn nearest_phase2(&self, order: &[NodeIndex]) -> Option<NodeSet> {
        assert!(order.iter().all(|node| node.index() < self.nodes), "{order:?} in a cluster of {}", self.nodes);
        let mut chosen = NodeSet::EMPTY;
        match &self.rule {
            Rule::Count { phase2, .. } => {
                for node in order {
                    if chosen.len() < *phase2 {
                        chosen.insert(*node);
                    }
                }
                (chosen.len() >= *phase2).then_some(chosen)
            }
            Rule::Zones { zones, zone_of, phase2, .. } => {
                let listed: NodeSet = order.iter().copied().collect();
                let mut enough = 0;
                for zone in order.iter().map(|node| &zones[zone_of[node.index()].index()]) {
                    let live = listed.intersection(zone.nodes);
                    let seen = !chosen.intersection(zone.nodes).is_empty();
                    if !seen && enough < *phase2 && live.len() >= zone.phase2 {
                        chosen = NodeSet(chosen.0 | live.0);
                        enough += 1;
                    }
                }
                (enough == *phase2).then_some(chosen)
            }
        }
    }

    /// One line for reports, as in "floor f_n=1 f_z=0: Q1 2 nodes in each of 3 zones, Q2 2 of 3 nodes in 1 zone".
    /// Where zones differ, their numbers stand side by side: "Q2 2/3 of 3/5 nodes".
    pub fn describe(&self) -> String {
        let parameters = match self.spec {
            QuorumSpec::Floor { node_failures, zone_failures } => format!(" f_n={node_failures} f_z={zone_failures}"),
            _ => String::new(),
        };
        let name = self.spec.name();
        match &self.rule {
            Rule::Count { phase1, phase2 } => {
                format!("{name}{parameters}: Q1 {phase1} of {0} nodes, Q2 {phase2} of {0} nodes", self.nodes)
            }
            Rule::Zones { zones, phase1, phase2, .. } => format!(
                "{name}{parameters}: Q1 {} in {}, Q2 {} of {} in {}",
                nodes_text(zones.iter().map(|zone| zone.phase1)),
                zones_text(*phase1, zones.len()),
                by_zone(zones.iter().map(|zone| zone.phase2)),
                nodes_text(zones.iter().map(|zone| zone.nodes.len())),
                zones_text(*phase2, zones.len()),
            ),
        }
    }

    fn all(&self) -> NodeSet {
        NodeSet(u128::MAX >> (NodeSet::CAPACITY - self.nodes))
    }
}

/// WPaxos with f_n and f_z.
fn floor(cluster: &Cluster, node_failures: u8, zone_failures: u8) -> Result<Rule, QuorumError> {
    let smallest = cluster.zones.iter().min_by_key(|zone| zone.nodes.len()).expect("a cluster has a zone");
    let (nodes, zones) = (smallest.nodes.len(), cluster.zones.len());
    if usize::from(node_failures) >= nodes {
        return Err(QuorumError::NodeFailures { node_failures, zone: smallest.number, nodes });
    }
    if usize::from(zone_failures) >= zones {
        return Err(QuorumError::ZoneFailures { zone_failures, zones });
    }
    let fails = usize::from(node_failures);
    Ok(zoned(cluster, usize::from(zone_failures), |_| fails + 1, |size| size - fails))
}

/// The thresholds of each zone by its size; phase 1 in all but `zone_failures` zones, phase 2 in one more than those.
fn zoned(
    cluster: &Cluster,
    zone_failures: usize,
    phase1: impl Fn(usize) -> usize,
    phase2: impl Fn(usize) -> usize,
) -> Rule {
    let zones: Vec<ZoneRule> = cluster
        .zones
        .iter()
        .map(|zone| {
            let size = zone.nodes.len();
            let first = zone.nodes.first().expect("a zone has a node").index();
            let contiguous = zone.nodes.iter().enumerate().all(|(place, node)| node.index() == first + place);
            assert!(contiguous, "the nodes of zone {} are not contiguous: {:?}", zone.number, zone.nodes);
            let rule = ZoneRule {
                nodes: zone.nodes.iter().copied().collect(),
                range: first..first + size,
                phase1: phase1(size),
                phase2: phase2(size),
            };
            // In a zone where both thresholds are reached, two sets of these sizes meet.
            assert!(rule.phase1 >= 1 && rule.phase1 <= size && rule.phase2 >= 1 && rule.phase2 <= size);
            assert!(rule.phase1 + rule.phase2 > size, "thresholds of zone {} do not meet: {rule:?}", zone.number);
            rule
        })
        .collect();
    // And two such choices of zones have such a zone in common.
    let (phase1, phase2) = (zones.len() - zone_failures, zone_failures + 1);
    assert!(phase1 + phase2 > zones.len() && phase1 >= 1 && phase2 <= zones.len());
    Rule::Zones { zones, zone_of: cluster.nodes.iter().map(|member| member.zone).collect(), phase1, phase2 }
}

/// Any so many nodes.
fn counted(cluster: &Cluster, phase1: usize, phase2: usize) -> Result<Rule, QuorumError> {
    let nodes = cluster.nodes.len();
    if phase1 + phase2 > nodes {
        return Ok(Rule::Count { phase1, phase2 });
    }
    let ids = |range: Range<usize>| cluster.nodes[range].iter().map(|member| member.id).collect();
    let example = (ids(0..phase1), ids(phase1..phase1 + phase2));
    Err(QuorumError::Disjoint { phase1, phase2, nodes, example })
}

fn in_range(key: &'static str, value: u8, nodes: usize) -> Result<usize, QuorumError> {
    match usize::from(value) {
        count if (1..=nodes).contains(&count) => Ok(count),
        _ => Err(QuorumError::Range { key, value, nodes }),
    }
}

/// The k-th largest of `values`, k from 1.
fn kth_largest(values: &[u64], k: usize) -> u64 {
    /// Up to here, comparing each with each is faster than sorting a copy.
    const SMALL: usize = 8;
    assert!(k >= 1 && k <= values.len(), "{k} of {} values", values.len());
    if values.len() <= SMALL {
        let at_least = |value: u64| values.iter().filter(|other| **other >= value).count();
        return values.iter().copied().filter(|value| at_least(*value) >= k).max().unwrap_or(0);
    }
    let mut copy = [0; NodeSet::CAPACITY];
    let copy = &mut copy[..values.len()];
    copy.copy_from_slice(values);
    *copy.select_nth_unstable(values.len() - k).1
}

/// One number if it is the same in every zone, all of them otherwise.
fn by_zone(numbers: impl Iterator<Item = usize>) -> String {
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    match numbers.iter().all(|number| *number == numbers[0]) {
        true => numbers[0].clone(),
        false => numbers.join("/"),
    }
}

fn nodes_text(numbers: impl Iterator<Item = usize>) -> String {
    match by_zone(numbers) {
        one if one == "1" => "1 node".to_owned(),
        more => format!("{more} nodes"),
    }
}

fn zones_text(needed: usize, zones: usize) -> String {
    match needed {
        1 => "1 zone".to_owned(),
        all if all == zones => format!("each of {zones} zones"),
        some => format!("each of {some} of {zones} zones"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A cluster with zones of these sizes.
    fn cluster(sizes: &[usize], quorum: QuorumSpec) -> Cluster {
        let addresses = sizes.iter().map(|nodes| vec![vec![([127, 0, 0, 1], 0).into()]; *nodes]).collect();
        Cluster { quorum, ..Cluster::local("test", addresses) }
    }

    fn quorums(sizes: &[usize], quorum: QuorumSpec) -> Quorums {
        Quorums::new(&cluster(sizes, quorum)).unwrap()
    }

    /// The nodes with these ids, separated by blanks.
    fn set(cluster: &Cluster, ids: &str) -> NodeSet {
        ids.split_whitespace().map(|id| cluster.index_of(id.parse().unwrap()).unwrap()).collect()
    }

    /// All small worlds: up to 4 zones of up to 4 nodes, up to 10 nodes together.
    fn small_worlds() -> Vec<Vec<usize>> {
        let mut worlds: Vec<Vec<usize>> = vec![vec![]];
        for _ in 0..4 {
            for world in worlds.clone() {
                worlds.extend((1..=4).map(|nodes| [&world[..], &[nodes]].concat()));
            }
            worlds.sort();
            worlds.dedup();
        }
        worlds.retain(|world| (1..=10).contains(&world.iter().sum::<usize>()));
        assert_eq!(worlds.len(), 4 + 16 + 60 + 150);
        worlds
    }

    /// Every spec whose numbers are at most a little out of range for this world.
    fn specs(sizes: &[usize]) -> Vec<QuorumSpec> {
        let nodes = sizes.iter().sum::<usize>() as u8;
        let mut specs =
            vec![QuorumSpec::Grid, QuorumSpec::Majority, QuorumSpec::ZoneMajority, QuorumSpec::All, QuorumSpec::Fast];
        for node_failures in 0..=4 {
            specs.extend((0..=4).map(|zone_failures| QuorumSpec::Floor { node_failures, zone_failures }));
        }
        specs.extend((0..=nodes + 1).map(|n| QuorumSpec::Count { n }));
        // Counting does not look at zones: one shape of each size will do.
        if sizes.is_sorted() && sizes[0] + 1 >= sizes[sizes.len() - 1] {
            specs.extend((0..=nodes + 1).flat_map(|q1| (0..=nodes + 1).map(move |q2| QuorumSpec::Flexible { q1, q2 })));
        }
        specs
    }

    /// Whether a spec ought to be taken, by the definitions.
    fn is_sound(sizes: &[usize], spec: QuorumSpec) -> bool {
        let nodes = sizes.iter().sum::<usize>();
        match spec {
            QuorumSpec::Floor { node_failures, zone_failures } => {
                sizes.iter().all(|size| usize::from(node_failures) < *size) && usize::from(zone_failures) < sizes.len()
            }
            QuorumSpec::Flexible { q1, q2 } => {
                let (q1, q2) = (usize::from(q1), usize::from(q2));
                (1..=nodes).contains(&q1) && (1..=nodes).contains(&q2) && q1 + q2 > nodes
            }
            QuorumSpec::Count { n } => usize::from(n) <= nodes && 2 * usize::from(n) > nodes,
            _ => true,
        }
    }

    /// Quorums only grow, so two that miss each other exist exactly if some set is a phase-1 quorum and what it leaves
    /// out is a phase-2 quorum.
    #[test]
    fn in_all_small_worlds_every_accepted_pair_of_quorums_meets() {
        let mut accepted = 0;
        for sizes in small_worlds() {
            for spec in specs(&sizes) {
                let cluster = cluster(&sizes, spec);
                let made = Quorums::new(&cluster);
                assert_eq!(made.is_ok(), is_sound(&sizes, spec), "{sizes:?} {spec:?}: {made:?}");
                let Ok(quorums) = made else { continue };
                accepted += 1;
                let all = quorums.all().0;
                assert!(quorums.is_phase1_quorum(NodeSet(all)) && quorums.is_phase2_quorum(NodeSet(all)));
                assert!(!quorums.is_phase1_quorum(NodeSet::EMPTY) && !quorums.is_phase2_quorum(NodeSet::EMPTY));
                for bits in 0..=all {
                    let (one, other) = (NodeSet(bits), NodeSet(all & !bits));
                    assert!(
                        !(quorums.is_phase1_quorum(one) && quorums.is_phase2_quorum(other)),
                        "{sizes:?} {spec:?}: {one:?} and {other:?} do not meet"
                    );
                    assert!(is_monotone(&quorums, one), "{sizes:?} {spec:?} at {one:?}");
                }
            }
        }
        assert!(accepted > 2000, "only {accepted} systems were looked at");
    }

    /// Whether no quorum stops being one when a node is added.
    fn is_monotone(quorums: &Quorums, set: NodeSet) -> bool {
        let grown = |node| NodeSet(set.0 | (1_u128 << node));
        (0..quorums.nodes).all(|node| {
            (!quorums.is_phase1_quorum(set) || quorums.is_phase1_quorum(grown(node)))
                && (!quorums.is_phase2_quorum(set) || quorums.is_phase2_quorum(grown(node)))
        })
    }

    /// `protocol.md` §2: as totals, six and four of twelve nodes, both of these would be quorums, and they do not meet.
    #[test]
    fn the_papers_counter_example_is_not_two_quorums() {
        let cluster = cluster(&[3, 3, 3, 3], QuorumSpec::Floor { node_failures: 1, zone_failures: 1 });
        let quorums = Quorums::new(&cluster).unwrap();
        let first = set(&cluster, "1.1 1.2 2.1 3.1 4.1 4.2");
        let second = set(&cluster, "1.3 2.2 3.2 4.3");
        assert!(first.intersection(second).is_empty());
        assert!(!quorums.is_phase1_quorum(first));
        assert!(!quorums.is_phase2_quorum(second));
    }

    #[test]
    fn quorums_by_table() {
        let floor = |node_failures, zone_failures| QuorumSpec::Floor { node_failures, zone_failures };
        #[rustfmt::skip]
        let table: &[(&[usize], QuorumSpec, &str, bool, bool)] = &[
            (&[3, 3, 3], floor(1, 0), "1.1 1.2", false, true),
            (&[3, 3, 3], floor(1, 0), "1.1 2.2 3.3", false, false),
            (&[3, 3, 3], floor(1, 0), "1.1 1.2 2.2 2.3 3.1 3.3", true, true),
            (&[3, 3, 3], floor(1, 0), "1.1 1.2 1.3 2.1 2.2 2.3 3.1", false, true),
            (&[3, 3, 3], floor(1, 1), "1.1 1.2 3.2 3.3", true, true),
            (&[3, 3, 3], floor(1, 1), "1.1 1.2 2.1 3.1", false, false),
            (&[3, 3, 3], floor(2, 0), "2.2", false, true),
            (&[3, 5], floor(1, 0), "2.1 2.2 2.3", false, false),
            (&[3, 5], floor(1, 0), "2.1 2.2 2.3 2.4", false, true),
            (&[3, 5], floor(1, 0), "1.2 1.3 2.1 2.2", true, true),
            (&[3, 3], QuorumSpec::Grid, "1.1 2.3", true, false),
            (&[3, 3], QuorumSpec::Grid, "2.1 2.2", false, false),
            (&[3, 3], QuorumSpec::Grid, "2.1 2.2 2.3", false, true),
            (&[3, 3], QuorumSpec::Majority, "1.1 1.2 1.3", false, false),
            (&[3, 3], QuorumSpec::Majority, "1.1 1.2 1.3 2.1", true, true),
            (&[5], QuorumSpec::Flexible { q1: 4, q2: 2 }, "1.1 1.5", false, true),
            (&[5], QuorumSpec::Flexible { q1: 4, q2: 2 }, "1.1 1.2 1.3 1.5", true, true),
            (&[4, 3], QuorumSpec::ZoneMajority, "1.1 1.2", false, false),
            (&[4, 3], QuorumSpec::ZoneMajority, "1.1 1.2 1.3", false, true),
            (&[4, 3], QuorumSpec::ZoneMajority, "2.1 2.2", false, true),
            (&[4, 3], QuorumSpec::ZoneMajority, "1.1 1.2 2.2 2.3", true, true),
            (&[1, 1, 1], QuorumSpec::All, "1.1 2.1", false, false),
            (&[1, 1, 1], QuorumSpec::All, "1.1 2.1 3.1", true, true),
            (&[1, 1, 1], QuorumSpec::Count { n: 2 }, "1.1 3.1", true, true),
            (&[1, 1, 1], QuorumSpec::Count { n: 2 }, "3.1", false, false),
            (&[5], QuorumSpec::Fast, "1.1 1.2 1.3", false, false),
            (&[5], QuorumSpec::Fast, "1.1 1.2 1.3 1.4", true, true),
            (&[1], floor(0, 0), "1.1", true, true),
        ];
        for (sizes, spec, ids, phase1, phase2) in table {
            let cluster = cluster(sizes, *spec);
            let quorums = Quorums::new(&cluster).unwrap();
            let nodes = set(&cluster, ids);
            let is = (quorums.is_phase1_quorum(nodes), quorums.is_phase2_quorum(nodes));
            assert_eq!(is, (*phase1, *phase2), "{sizes:?} {spec:?} {ids}");
        }
    }

    #[test]
    fn nodes_outside_the_cluster_do_not_count() {
        for spec in [QuorumSpec::Majority, QuorumSpec::Grid] {
            let quorums = quorums(&[3], spec);
            assert!(!quorums.is_phase1_quorum(NodeSet(!0b111)) && !quorums.is_phase2_quorum(NodeSet(!0b111)));
        }
    }

    #[test]
    fn errors_give_the_numbers() {
        let floor = |node_failures, zone_failures| QuorumSpec::Floor { node_failures, zone_failures };
        let table: &[(&[usize], QuorumSpec, &str)] = &[
            (&[3, 2, 3], floor(2, 0), "node_failures = 2 must be below 2, the number of nodes in zone 2"),
            (&[3, 3], floor(1, 2), "zone_failures = 2 must be below 2, the number of zones"),
            (&[3], QuorumSpec::Flexible { q1: 4, q2: 1 }, "q1 = 4 must be from 1 to 3, the number of nodes"),
            (&[3], QuorumSpec::Flexible { q1: 3, q2: 0 }, "q2 = 0 must be from 1 to 3, the number of nodes"),
            (&[3], QuorumSpec::Count { n: 9 }, "n = 9 must be from 1 to 3, the number of nodes"),
            (
                &[1, 2],
                QuorumSpec::Flexible { q1: 2, q2: 1 },
                "phase 1 with 2 and phase 2 with 1 of 3 nodes need not meet: 2 + 1 = 3 must be more than 3; for example \
                 {1.1, 2.1} and {2.2} have no node in common",
            ),
            (&[2, 2], QuorumSpec::Count { n: 2 }, "{1.1, 1.2} and {2.1, 2.2} have no node in common"),
        ];
        for (sizes, spec, message) in table {
            let error = Quorums::new(&cluster(sizes, *spec)).unwrap_err().to_string();
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
    }

    #[test]
    fn watermarks_by_table() {
        let floor = |node_failures, zone_failures| QuorumSpec::Floor { node_failures, zone_failures };
        let table: &[(&[usize], QuorumSpec, &[u64], u64)] = &[
            (&[3, 3, 3], floor(1, 0), &[9, 5, 0, 1, 1, 1, 0, 0, 0], 5),
            (&[3, 3, 3], floor(1, 0), &[9, 0, 0, 7, 8, 0, 9, 0, 0], 7),
            (&[3, 3, 3], floor(1, 1), &[9, 5, 0, 4, 6, 0, 9, 3, 3], 4),
            (&[3, 3, 3], floor(0, 0), &[9, 5, 2, 4, 6, 1, 9, 3, 3], 3),
            (&[3, 3, 3], QuorumSpec::Majority, &[9, 8, 7, 6, 5, 4, 3, 2, 1], 5),
            (&[2, 1], QuorumSpec::All, &[4, 3, 5], 3),
            (&[1], QuorumSpec::All, &[u64::MAX], u64::MAX),
        ];
        for (sizes, spec, acked, watermark) in table {
            assert_eq!(quorums(sizes, *spec).phase2_watermark(acked), *watermark, "{sizes:?} {spec:?} {acked:?}");
        }
    }

    /// The definition, by trying every number that somebody acked.
    fn watermark_by_definition(quorums: &Quorums, acked: &[u64]) -> u64 {
        let with = |level: u64| -> NodeSet {
            let reached = acked.iter().enumerate().filter(|(_, acked)| **acked >= level);
            reached.map(|(node, _)| NodeIndex(node as u8)).collect()
        };
        let reached = acked.iter().copied().filter(|level| quorums.is_phase2_quorum(with(*level)));
        reached.max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn the_watermark_is_as_defined(
            sizes in prop::collection::vec(1..=4usize, 1..=4),
            acked in prop::collection::vec(0..6u64, 16),
            pick in any::<prop::sample::Index>(),
        ) {
            let acked = &acked[..sizes.iter().sum()];
            let specs: Vec<_> = specs(&sizes).into_iter().filter(|spec| is_sound(&sizes, *spec)).collect();
            let quorums = quorums(&sizes, specs[pick.index(specs.len())]);
            prop_assert_eq!(quorums.phase2_watermark(acked), watermark_by_definition(&quorums, acked));
        }

        #[test]
        fn so_it_is_in_large_clusters(
            sizes in prop::collection::vec(1..=12usize, 1..=10),
            acked in prop::collection::vec(0..1000u64, 120),
            zone_failures in 0..10u8,
        ) {
            let acked = &acked[..sizes.iter().sum()];
            let node_failures = *sizes.iter().min().unwrap() as u8 / 2;
            let node_failures = node_failures.min(*sizes.iter().min().unwrap() as u8 - 1);
            let floor = QuorumSpec::Floor { node_failures, zone_failures: zone_failures.min(sizes.len() as u8 - 1) };
            for spec in [floor, QuorumSpec::ZoneMajority, QuorumSpec::Majority, QuorumSpec::Fast] {
                let quorums = quorums(&sizes, spec);
                prop_assert_eq!(quorums.phase2_watermark(acked), watermark_by_definition(&quorums, acked));
            }
        }

        #[test]
        fn the_nearest_quorum_is_one_and_exists_when_it_can(
            sizes in prop::collection::vec(1..=4usize, 1..=4),
            shuffled in Just((0..16u8).collect::<Vec<_>>()).prop_shuffle(),
            live in 0..=16usize,
            pick in any::<prop::sample::Index>(),
        ) {
            let nodes = sizes.iter().sum::<usize>();
            let order: Vec<_> = shuffled.into_iter().filter(|node| usize::from(*node) < nodes).map(NodeIndex).collect();
            let order = &order[..live.min(nodes)];
            let specs: Vec<_> = specs(&sizes).into_iter().filter(|spec| is_sound(&sizes, *spec)).collect();
            let quorums = quorums(&sizes, specs[pick.index(specs.len())]);
            let listed: NodeSet = order.iter().copied().collect();
            match quorums.nearest_phase2(order) {
                Some(chosen) => {
                    prop_assert!(quorums.is_phase2_quorum(chosen));
                    prop_assert_eq!(chosen.intersection(listed), chosen);
                }
                None => prop_assert!(!quorums.is_phase2_quorum(listed)),
            }
        }
    }

    #[test]
    fn nearest_quorums_by_table() {
        let floor = |node_failures, zone_failures| QuorumSpec::Floor { node_failures, zone_failures };
        #[rustfmt::skip]
        let table: &[(&[usize], QuorumSpec, &str, Option<&str>)] = &[
            (&[3, 3, 3], floor(1, 0), "2.1 2.2 2.3 1.1 1.2 1.3", Some("2.1 2.2 2.3")),
            (&[3, 3, 3], floor(1, 0), "2.1 1.1 2.2 2.3 1.2 1.3", Some("2.1 2.2 2.3")),
            (&[3, 3, 3], floor(1, 0), "2.1 2.3 1.1 1.2 1.3", Some("2.1 2.3")),
            (&[3, 3, 3], floor(1, 0), "2.1 1.1 3.1 1.2 3.2", Some("1.1 1.2")),
            (&[3, 3, 3], floor(1, 0), "1.1 2.1 3.1", None),
            (&[3, 3, 3], floor(1, 1), "3.1 2.1 1.1 3.2 1.2 3.3 1.3", Some("3.1 3.2 3.3 1.1 1.2 1.3")),
            (&[3, 3, 3], floor(1, 1), "3.1 3.2 3.3", None),
            (&[2, 3], QuorumSpec::Grid, "2.1 2.2 1.1 1.2", Some("1.1 1.2")),
            (&[2, 3], QuorumSpec::Majority, "2.3 1.1 1.1 2.2 2.1", Some("2.3 1.1 2.2")),
            (&[2, 3], QuorumSpec::Majority, "2.3 1.1", None),
            (&[5], QuorumSpec::Flexible { q1: 5, q2: 1 }, "1.4 1.5", Some("1.4")),
            (&[1], floor(0, 0), "", None),
        ];
        for (sizes, spec, order, nearest) in table {
            let cluster = cluster(sizes, *spec);
            let quorums = Quorums::new(&cluster).unwrap();
            let order: Vec<_> =
                order.split_whitespace().map(|id| cluster.index_of(id.parse().unwrap()).unwrap()).collect();
            let expected = nearest.map(|ids| set(&cluster, ids));
            assert_eq!(quorums.nearest_phase2(&order), expected, "{sizes:?} {spec:?} {order:?}");
        }
    }

    #[test]
    fn descriptions_by_table() {
        let floor = |node_failures, zone_failures| QuorumSpec::Floor { node_failures, zone_failures };
        #[rustfmt::skip]
        let table: &[(&[usize], QuorumSpec, &str)] = &[
            (&[3, 3, 3], floor(1, 0), "floor f_n=1 f_z=0: Q1 2 nodes in each of 3 zones, Q2 2 of 3 nodes in 1 zone"),
            (&[3, 3, 3], floor(1, 1), "floor f_n=1 f_z=1: Q1 2 nodes in each of 2 of 3 zones, Q2 2 of 3 nodes in each of 2 of 3 zones"),
            (&[3, 5], floor(1, 0), "floor f_n=1 f_z=0: Q1 2 nodes in each of 2 zones, Q2 2/4 of 3/5 nodes in 1 zone"),
            (&[1, 1, 1], QuorumSpec::Grid, "grid: Q1 1 node in each of 3 zones, Q2 1 of 1 node in 1 zone"),
            (&[3, 4], QuorumSpec::ZoneMajority, "zone-majority: Q1 2 nodes in each of 2 zones, Q2 2/3 of 3/4 nodes in 1 zone"),
            (&[3, 3], QuorumSpec::Majority, "majority: Q1 4 of 6 nodes, Q2 4 of 6 nodes"),
            (&[5], QuorumSpec::Flexible { q1: 4, q2: 2 }, "flexible: Q1 4 of 5 nodes, Q2 2 of 5 nodes"),
        ];
        for (sizes, spec, text) in table {
            assert_eq!(quorums(sizes, *spec).describe(), *text);
        }
    }
}
