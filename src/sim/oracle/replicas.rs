//! Replicas (`protocol.md` §10, invariant 5): those that have executed as much of an object hold the same value, version and
//! memory of its writers. And none forgets what it has executed while it runs.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
};

use xxhash_rust::xxh3::Xxh3;

use super::{Rule, Violation, value_number};
use crate::{store::ObjectState, topology::NodeIndex};

/// What is kept of a state: enough to tell it from others, and to say how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Summary {
    hash: u64,
    version: u64,
    value: u64,
}

/// The oracle of invariant 5.
#[derive(Debug)]
pub struct Replicas {
    /// By key and slot, with who had it first.
    states: HashMap<(u64, u64), (Summary, NodeIndex)>,
    /// By node, then key.
    applied: Vec<HashMap<u64, u64>>,
}

impl Replicas {
    /// For so many nodes that have executed nothing.
    pub fn new(nodes: usize) -> Self {
        Self { states: HashMap::new(), applied: vec![HashMap::new(); nodes] }
    }

    /// A node has executed an object up to slot `applied`, with this result.
    ///
    /// # Errors
    /// If another has executed as much with another result, or if this one had executed more.
    pub fn executed(&mut self, node: NodeIndex, key: u64, applied: u64, state: &ObjectState) -> Result<(), Violation> {
        let before = self.applied[node.index()].insert(key, applied).unwrap_or(0);
        if applied < before {
            let text = format!("node {} goes back in key {key}, from slot {before} to {applied}", node.0);
            return Err(Rule::AppliedFalls.broken(text));
        }
        let summary = Summary::of(state);
        let (known, first) = *self.states.entry((key, applied)).or_insert((summary, node));
        if known == summary {
            return Ok(());
        }
        let text = format!(
            "at slot {applied} of key {key}, node {} has {}, but node {} had {}{}",
            node.0,
            summary.describe(),
            first.0,
            known.describe(),
            if (known.version, known.value) == (summary.version, summary.value) {
                ": they differ in the value's bytes or in what they remember of its writers"
            } else {
                ""
            }
        );
        Err(Rule::ReplicasDiffer.broken(text))
    }

    /// A node came back, and may have executed less than before.
    pub fn restarted(&mut self, node: NodeIndex) {
        self.applied[node.index()].clear();
    }
}

impl Summary {
    fn of(state: &ObjectState) -> Self {
        let mut hasher = Xxh3::new();
        state.hash(&mut hasher);
        Self { hash: hasher.finish(), version: state.version, value: value_number(state.value.as_deref()) }
    }

    fn describe(&self) -> String {
        format!("value {} at version {}", self.value, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::Status,
        store::{Executed, OPEN_SLOTS_MAX, Recent, Value, Write},
    };

    fn state(value: u64, version: u64, id: u64) -> ObjectState {
        let mut recent = Recent::default();
        let write = Write { slot: version, client: 1, id, digest: 0 };
        recent.record(write, Executed { status: Status::Ok, version, repeated: false }, OPEN_SLOTS_MAX);
        ObjectState { value: Some(Value::from_slice(&value.to_le_bytes())), version, recent }
    }

    fn seen() -> Replicas {
        let mut replicas = Replicas::new(2);
        replicas.executed(NodeIndex(0), 1, 5, &state(9, 3, 1)).unwrap();
        replicas
    }

    #[test]
    fn equal_replicas_are_taken() {
        let mut replicas = seen();
        replicas.executed(NodeIndex(1), 1, 4, &state(8, 2, 1)).unwrap();
        replicas.executed(NodeIndex(1), 1, 5, &state(9, 3, 1)).unwrap();
        replicas.executed(NodeIndex(1), 2, 5, &state(1, 1, 1)).unwrap();
        replicas.restarted(NodeIndex(0));
        replicas.executed(NodeIndex(0), 1, 4, &state(8, 2, 1)).unwrap();
    }

    #[test]
    fn replicas_that_differ_are_refused() {
        let short = ObjectState { value: Some(Value::from_slice(&[1])), ..state(9, 3, 1) };
        for other in [state(8, 3, 1), state(9, 4, 1), state(9, 3, 2), short, ObjectState::default()] {
            let violation = seen().executed(NodeIndex(1), 1, 5, &other).unwrap_err();
            assert_eq!(violation.rule, Rule::ReplicasDiffer, "{other:?}");
        }
        let mut restarted = seen();
        restarted.restarted(NodeIndex(0));
        assert!(restarted.executed(NodeIndex(0), 1, 5, &state(8, 3, 1)).is_err(), "what was seen stays seen");
        assert_eq!(seen().executed(NodeIndex(0), 1, 4, &state(8, 2, 1)).unwrap_err().rule, Rule::AppliedFalls);
    }
}
