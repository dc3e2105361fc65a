//! Whether the replicas agree on a key's history, and where they part.

use std::collections::BTreeMap;

use super::admin::AdminError;
use crate::topology::NodeId;

/// One version of a key, as one node keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number, from 1: each write of the key that took effect makes the next one.
    pub version: u64,
    /// The value that it set; `None` if it removed the value.
    pub value: Option<Vec<u8>>,
}

/// What one node had to say of a key.
#[derive(Clone, Debug)]
pub enum Held {
    /// The versions that it holds, rising. Some may be missing: the oldest go first when there are too many, and a node
    /// that was sent a state instead of the commands before it never had those.
    Versions(Vec<Version>),
    /// It keeps no history.
    Off,
    /// It did not answer, or not with a history.
    Failed(AdminError),
}

/// Whether the replicas agree on one key.
#[derive(Clone, Debug)]
pub struct Consensus {
    /// The key.
    pub key: Vec<u8>,
    /// What the histories that came say together.
    pub verdict: Verdict,
    /// What each node said, sorted by node. None is left out.
    pub nodes: Vec<(NodeId, Held)>,
}

/// What several histories say together. Only versions that at least two nodes hold can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every version that two nodes hold has one value.
    Agree {
        /// The highest version that two nodes hold. A node may hold later ones: the others have not executed them yet.
        up_to: u64,
        /// How many versions were compared.
        compared: usize,
    },
    /// Two nodes hold different values for one version.
    Part {
        /// The first such version.
        version: u64,
        /// The value of each node that holds this version; `None` is a removed one.
        values: Vec<(NodeId, Option<Vec<u8>>)>,
        /// The highest version below it that two nodes hold; they agree on that.
        agreed_to: Option<u64>,
    },
    /// No version is held by two nodes: there is nothing to compare.
    NoOverlap,
    /// No node that answered holds a version: the key was never written, or histories have been on for less long.
    Nothing,
    /// Fewer than two nodes gave a history.
    TooFew,
}

impl Consensus {
    /// Compares what the nodes said of a key.
    pub fn of(key: Vec<u8>, nodes: Vec<(NodeId, Held)>) -> Self {
        Self { verdict: verdict(&nodes), key, nodes }
    }

    /// The nodes that gave no history: off, or not reached.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, held)| !matches!(held, Held::Versions(_))).map(|(node, _)| *node)
    }

    /// The nodes that agree and do not yet hold what two others do, each with the last version that it holds.
    pub fn behind(&self) -> impl Iterator<Item = (NodeId, Option<u64>)> {
        let up_to = if let Verdict::Agree { up_to, .. } = self.verdict { up_to } else { 0 };
        self.nodes.iter().filter_map(move |(node, held)| match held {
            Held::Versions(versions) => {
                let last = versions.last().map(|version| version.version);
                (last.unwrap_or(0) < up_to).then_some((*node, last))
            }
            Held::Off | Held::Failed(_) => None,
        })
    }

    /// Whether every node gave a history, and none parts from another.
    pub fn is_complete(&self) -> bool {
        self.missing().next().is_none() && matches!(self.verdict, Verdict::Agree { .. })
    }
}

type Values<'a> = Vec<(NodeId, Option<&'a [u8]>)>;

fn verdict(nodes: &[(NodeId, Held)]) -> Verdict {
    let (mut holders, mut answered) = (BTreeMap::<u64, Values<'_>>::new(), 0);
    for (node, held) in nodes {
        let Held::Versions(versions) = held else { continue };
        answered += 1;
        for version in versions {
            holders.entry(version.version).or_default().push((*node, version.value.as_deref()));
        }
    }
    if answered < 2 {
        return Verdict::TooFew;
    }
    if holders.is_empty() {
        return Verdict::Nothing;
    }
    let (mut agreed_to, mut compared) = (None, 0);
    for (version, values) in holders.into_iter().filter(|(_, values)| values.len() > 1) {
        if values.iter().any(|(_, value)| *value != values[0].1) {
            let values = values.into_iter().map(|(node, value)| (node, value.map(<[u8]>::to_vec))).collect();
            return Verdict::Part { version, values, agreed_to };
        }
        agreed_to = Some(version);
        compared += 1;
    }
    agreed_to.map_or(Verdict::NoOverlap, |up_to| Verdict::Agree { up_to, compared })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::new(1, 1);
    const B: NodeId = NodeId::new(2, 1);
    const C: NodeId = NodeId::new(3, 1);

    fn held(versions: &[(u64, &str)]) -> Held {
        let value = |value: &str| (value != "-").then(|| value.as_bytes().to_vec());
        Held::Versions(
            versions.iter().map(|(version, text)| Version { version: *version, value: value(text) }).collect(),
        )
    }

    fn of(a: Held, b: Held, c: Held) -> Consensus {
        Consensus::of(b"k".to_vec(), vec![(A, a), (B, b), (C, c)])
    }

    #[test]
    fn only_versions_that_two_nodes_hold_are_compared() {
        let all = of(held(&[(1, "a"), (2, "b")]), held(&[(1, "a"), (2, "b"), (3, "c")]), held(&[]));
        assert_eq!(all.verdict, Verdict::Agree { up_to: 2, compared: 2 });
        assert!(all.is_complete());
        assert_eq!(all.behind().collect::<Vec<_>>(), [(C, None)]);
        // The old end is cut off on one, another was sent a state at version 5: they share version 6 only.
        let gaps = of(held(&[(4, "d"), (6, "f")]), held(&[(1, "a"), (2, "b")]), held(&[(5, "e"), (6, "f"), (7, "g")]));
        assert_eq!(gaps.verdict, Verdict::Agree { up_to: 6, compared: 1 });
        assert_eq!(gaps.behind().collect::<Vec<_>>(), [(B, Some(2))]);
        let apart = of(held(&[(1, "a")]), held(&[(2, "b")]), held(&[(3, "c")]));
        assert_eq!(apart.verdict, Verdict::NoOverlap);
        assert!(!apart.is_complete());
        assert_eq!(of(held(&[]), held(&[]), held(&[])).verdict, Verdict::Nothing);
    }

    #[test]
    fn the_first_version_that_differs_is_named_with_each_value() {
        let part = of(held(&[(1, "a"), (2, "b"), (3, "x")]), held(&[(1, "a"), (2, "z"), (3, "y")]), held(&[(2, "b")]));
        let value = |text: &str| Some(text.as_bytes().to_vec());
        let values = vec![(A, value("b")), (B, value("z")), (C, value("b"))];
        assert_eq!(part.verdict, Verdict::Part { version: 2, values, agreed_to: Some(1) });
        // A removed value is not an empty one.
        let removed = of(held(&[(1, "-")]), held(&[(1, "")]), Held::Off);
        let values = vec![(A, None), (B, value(""))];
        assert_eq!(removed.verdict, Verdict::Part { version: 1, values, agreed_to: None });
    }

    #[test]
    fn nodes_that_do_not_answer_are_named() {
        let failed = || Held::Failed(AdminError::NoHttp { node: C });
        let two = of(held(&[(1, "a")]), held(&[(1, "a")]), failed());
        assert_eq!((&two.verdict, two.is_complete()), (&Verdict::Agree { up_to: 1, compared: 1 }, false));
        assert_eq!(two.missing().collect::<Vec<_>>(), [C]);
        let one = of(held(&[(1, "a")]), Held::Off, failed());
        assert_eq!((&one.verdict, one.missing().count()), (&Verdict::TooFew, 2));
    }
}
