//! What must hold of all nodes together (`protocol.md` §10), looked at after every input.

use std::collections::HashMap;

use wpaxos::{
    protocol::wpaxos::{Ballot, WPaxos, invariants::AcceptedView},
    quorum::Quorums,
    store::ObjectState,
    topology::{NodeIndex, NodeSet},
};

use crate::{clients::value_number, setup::Setup};

/// What a node was last seen to know of an object.
#[derive(Clone, Copy, Default)]
struct Seen {
    promised: Ballot,
    applied: u64,
}

/// Who has accepted which command in a slot, at whatever ballot.
type Votes = Vec<(Vec<u8>, NodeSet)>;

pub struct Oracle {
    quorums: Quorums,
    /// Nodes that may still die.
    pub mortal: Vec<usize>,
    /// By node, then key.
    seen: Vec<Vec<Seen>>,
    /// By key: what is executed somewhere.
    executed: Vec<u64>,
    states: HashMap<(usize, u64), ObjectState>,
    votes: HashMap<(usize, u64), Votes>,
    decided: HashMap<(usize, u64), Vec<u8>>,
    /// By value: the key and the version that it was seen at.
    pub values: HashMap<u64, (usize, u64)>,
}

/// The key with this number.
pub fn key_name(key: u64) -> Vec<u8> {
    format!("key-{key}").into_bytes()
}

fn key_number(name: &[u8]) -> usize {
    std::str::from_utf8(&name[4..]).ok().and_then(|text| text.parse().ok()).expect("one of the model's keys")
}

impl Oracle {
    pub fn new(setup: &Setup) -> Self {
        let keys = setup.keys() as usize;
        Self {
            quorums: setup.quorums.clone(),
            mortal: Vec::new(),
            seen: vec![vec![Seen::default(); keys]; setup.nodes()],
            executed: vec![0; keys],
            states: HashMap::new(),
            votes: HashMap::new(),
            decided: HashMap::new(),
            values: HashMap::new(),
        }
    }

    /// Looks at one node.
    pub fn observe(&mut self, node: usize, core: &WPaxos) {
        let index = NodeIndex(node as u8);
        for object in core.objects() {
            let key = key_number(object.key);
            let seen = self.seen[node][key];
            assert!(object.promised >= seen.promised, "node {node} lowers its promise for key {key}");
            assert!(object.applied >= seen.applied, "node {node} goes back in key {key}");
            self.seen[node][key].promised = object.promised;
            for accepted in core.accepted(object.key) {
                self.observe_accepted(index, key, accepted);
            }
            if object.applied > seen.applied {
                self.seen[node][key].applied = object.applied;
                self.observe_state(node, key, object.applied, object.state);
                self.check_decided(key, object.applied);
            }
        }
    }

    fn observe_accepted(&mut self, node: NodeIndex, key: usize, accepted: AcceptedView<'_>) {
        if accepted.decided {
            let known = self.decided.entry((key, accepted.slot)).or_insert_with(|| accepted.command.to_vec());
            assert_eq!(known, accepted.command, "two decisions in slot {} of key {key}", accepted.slot);
        }
        if accepted.slot <= self.executed[key] {
            return;
        }
        let votes = self.votes.entry((key, accepted.slot)).or_default();
        match votes.iter_mut().find(|(command, _)| command == accepted.command) {
            Some((_, voters)) => {
                voters.insert(node);
            }
            None => votes.push((accepted.command.to_vec(), [node].into_iter().collect())),
        }
    }

    /// Replicas that have executed as much of an object know the same of it.
    fn observe_state(&mut self, node: usize, key: usize, applied: u64, state: &ObjectState) {
        if let Some(value) = &state.value {
            let at = (key, state.version);
            let known = *self.values.entry(value_number(value)).or_insert(at);
            assert_eq!(known, at, "a value of key {key} was written twice (slot {applied}, node {node})");
        }
        let known = self.states.entry((key, applied)).or_insert_with(|| state.clone());
        assert_eq!(known, state, "node {node} has another state of key {key} at slot {applied}");
    }

    /// What is executed for the first time was accepted by a phase-2 quorum.
    fn check_decided(&mut self, key: usize, applied: u64) {
        for slot in self.executed[key] + 1..=applied {
            let done: NodeSet = (0..self.seen.len())
                .filter(|node| self.seen[*node][key].applied >= slot)
                .map(|node| NodeIndex(node as u8))
                .collect();
            let votes = self.votes.remove(&(key, slot)).unwrap_or_default();
            let quorum = |voters: NodeSet| self.quorums.is_phase2_quorum(NodeSet(voters.0 | done.0));
            let decided = votes.iter().any(|(_, voters)| quorum(*voters)) || quorum(NodeSet::EMPTY);
            assert!(decided, "slot {slot} of key {key} is executed without a quorum: {votes:?} and {done:?}");
        }
        self.executed[key] = self.executed[key].max(applied);
    }

    /// Why the live replicas are not equal, if they are not.
    pub fn difference(&self, live: &[(usize, &WPaxos)]) -> Option<String> {
        for (key, executed) in self.executed.iter().enumerate() {
            for (node, core) in live {
                let applied = self.seen[*node][key].applied;
                if applied != *executed {
                    return Some(format!("node {node} has executed {applied} of {executed} slots of key {key}"));
                }
                let name = key_name(key as u64);
                if let Some(gap) = core.accepted(&name).iter().find(|entry| entry.decided) {
                    return Some(format!("node {node} keeps a decided slot of key {key}: {gap:?}"));
                }
            }
        }
        None
    }
}
