//! Promises (`protocol.md` §10, invariants 3 and 4): while a node runs, the highest ballot that it has seen never falls; over
//! a restart, never below what it has told others. And nothing is accepted below it.

use std::collections::HashMap;

use super::{Rule, Violation};
use crate::{protocol::wpaxos::Ballot, topology::NodeIndex};

#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    /// As last seen; after a restart, `told`.
    now: Ballot,
    /// The highest that has left the node.
    told: Ballot,
}

/// The oracle of invariants 3 and 4.
#[derive(Debug)]
pub struct Promises {
    /// By node, then key.
    nodes: Vec<HashMap<u64, Promise>>,
}

impl Promises {
    /// For so many nodes that have promised nothing.
    pub fn new(nodes: usize) -> Self {
        Self { nodes: vec![HashMap::new(); nodes] }
    }

    fn of(&mut self, node: NodeIndex, key: u64) -> &mut Promise {
        self.nodes[node.index()].entry(key).or_default()
    }

    /// What a node has promised now.
    ///
    /// # Errors
    /// If it had promised more.
    pub fn promised(&mut self, node: NodeIndex, key: u64, ballot: Ballot) -> Result<(), Violation> {
        let promise = self.of(node, key);
        if ballot < promise.now {
            let (before, node) = (promise.now, node.0);
            let text = format!("node {node} lowers its promise for key {key} from {before:?} to {ballot:?}");
            return Err(Rule::PromiseFalls.broken(text));
        }
        promise.now = ballot;
        Ok(())
    }

    /// A node has an undecided entry that it did not have before. To be told **before** [`Self::promised`] is told what the
    /// same input made of the promise.
    ///
    /// # Errors
    /// If the node had promised more.
    pub fn accepted(&mut self, node: NodeIndex, key: u64, slot: u64, ballot: Ballot) -> Result<(), Violation> {
        let before = self.of(node, key).now;
        if ballot >= before {
            return Ok(());
        }
        let text = format!(
            "node {} accepts slot {slot} of key {key} at {ballot:?}, though it had promised {before:?}",
            node.0
        );
        Err(Rule::AcceptedBelowPromise.broken(text))
    }

    /// A promise of this ballot, or the ack of an entry with it, has left the node.
    pub fn told(&mut self, node: NodeIndex, key: u64, ballot: Ballot) {
        let promise = self.of(node, key);
        promise.told = promise.told.max(ballot);
    }

    /// A node came back with its disk; `recovered` is what it has promised now, by key.
    ///
    /// # Errors
    /// If it has told others more than it remembers, of an object that it has forgotten too: what leaves a node is durable
    /// before it does.
    pub fn restarted(&mut self, node: NodeIndex, recovered: &HashMap<u64, Ballot>) -> Result<(), Violation> {
        let mut lost = None;
        for (key, promise) in &mut self.nodes[node.index()] {
            let ballot = recovered.get(key).copied().unwrap_or_default();
            if ballot < promise.told {
                // The lowest key, so that the same history gives the same text.
                lost = lost.into_iter().chain([(*key, promise.told, ballot)]).min();
            }
            promise.now = ballot;
        }
        let Some((key, told, ballot)) = lost else { return Ok(()) };
        let text = format!(
            "node {} came back with {ballot:?} promised for key {key}, but it has told others {told:?}",
            node.0
        );
        Err(Rule::PromiseFalls.broken(text))
    }

    /// A node came back without its disk, as somebody new: it is bound by nothing.
    pub fn replaced(&mut self, node: NodeIndex) {
        self.nodes[node.index()].clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::NodeId;

    const NODE: NodeIndex = NodeIndex(1);

    fn ballot(round: u64) -> Ballot {
        Ballot::new(1, round, NodeId::new(1, 1))
    }

    fn promised(round: u64) -> Promises {
        let mut promises = Promises::new(2);
        promises.promised(NODE, 7, ballot(round)).unwrap();
        promises
    }

    fn restart(promises: &mut Promises, round: u64) -> Result<(), Violation> {
        promises.restarted(NODE, &[(7, ballot(round))].into_iter().collect())
    }

    #[test]
    fn promises_that_rise_are_taken() {
        let mut promises = promised(3);
        promises.promised(NODE, 7, ballot(3)).unwrap();
        promises.accepted(NODE, 7, 1, ballot(3)).unwrap();
        promises.accepted(NODE, 7, 2, ballot(5)).unwrap();
        promises.promised(NODE, 7, ballot(5)).unwrap();
        promises.promised(NODE, 8, ballot(1)).unwrap();
        promises.promised(NodeIndex(0), 7, ballot(1)).unwrap();
    }

    #[test]
    fn a_restart_may_lose_what_nobody_was_told() {
        let mut promises = promised(9);
        promises.told(NODE, 7, ballot(4));
        restart(&mut promises, 4).unwrap();
        promises.accepted(NODE, 7, 1, ballot(4)).unwrap();
        promises.promised(NODE, 7, ballot(6)).unwrap();
        assert_eq!(promised(9).restarted(NODE, &HashMap::new()), Ok(()), "nobody was told anything");
    }

    #[test]
    fn promises_that_fall_are_refused() {
        let rule = |result: Result<(), Violation>| result.unwrap_err().rule;
        assert_eq!(rule(promised(3).promised(NODE, 7, ballot(2))), Rule::PromiseFalls);
        assert_eq!(rule(promised(3).accepted(NODE, 7, 1, ballot(2))), Rule::AcceptedBelowPromise);

        let mut told = promised(9);
        told.told(NODE, 7, ballot(4));
        assert_eq!(rule(restart(&mut told, 3)), Rule::PromiseFalls);
        let mut forgotten = promised(9);
        forgotten.told(NODE, 7, ballot(4));
        assert_eq!(rule(forgotten.restarted(NODE, &HashMap::new())), Rule::PromiseFalls);

        let mut after = promised(9);
        restart(&mut after, 6).unwrap();
        assert_eq!(rule(after.promised(NODE, 7, ballot(5))), Rule::PromiseFalls, "what it came back with counts");
    }

    #[test]
    fn a_node_without_its_past_is_bound_by_nothing() {
        let mut promises = promised(9);
        promises.told(NODE, 7, ballot(9));
        promises.replaced(NODE);
        promises.promised(NODE, 7, ballot(1)).unwrap();
    }
}
