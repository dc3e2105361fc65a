//! What must hold after every event (`protocol.md` §10), and what a test needs to see of a node to check it.

use super::{Ballot, Role, WPaxos};
use crate::store::ObjectState;

/// One object as one node knows it.
#[derive(Clone, Copy, Debug)]
pub struct ObjectView<'a> {
    /// The object.
    pub key: &'a [u8],
    /// The highest ballot seen.
    pub promised: Ballot,
    /// Everything up to this slot is executed.
    pub applied: u64,
    /// The result.
    pub state: &'a ObjectState,
    /// Whether this node leads it (at ballot `promised`).
    pub leads: bool,
}

/// An accepted slot above `applied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedView<'a> {
    /// The slot.
    pub slot: u64,
    /// The ballot that it was accepted at.
    pub ballot: Ballot,
    /// Whether it is known to be decided.
    pub decided: bool,
    /// The encoded command.
    pub command: &'a [u8],
}

impl WPaxos {
    /// All objects that this node has heard of.
    pub fn objects(&self) -> impl Iterator<Item = ObjectView<'_>> {
        self.objects.iter().map(|object| ObjectView {
            key: &object.key,
            promised: object.promised,
            applied: object.applied,
            state: &object.state,
            leads: object.leading().is_some(),
        })
    }

    /// The accepted slots of an object above `applied`, rising.
    pub fn accepted(&self, key: &[u8]) -> Vec<AcceptedView<'_>> {
        let Some(object) = self.objects.find(key) else { return Vec::new() };
        let entries = self.objects[object].tail.iter();
        let view = |entry: &'_ super::object::TailEntry| (entry.slot, entry.ballot, entry.decided);
        let mut accepted = Vec::new();
        for entry in entries {
            let (slot, ballot, decided) = view(entry);
            let command = self.source_command(&entry.source).bytes();
            accepted.push(AcceptedView { slot, ballot, decided, command });
        }
        accepted
    }

    /// Checks what must hold of one node between two events.
    ///
    /// # Panics
    /// If it does not: that is a bug.
    pub fn check_invariants(&self) {
        for object in self.objects.iter() {
            let mut last = object.applied;
            for entry in object.tail.iter() {
                assert!(entry.slot > last, "a tail rises from above what is executed");
                assert!(entry.ballot <= object.promised, "what is accepted is not above the promise");
                last = entry.slot;
                // Panics if the bytes are gone.
                assert_eq!(
                    self.source_command(&entry.source).key(),
                    &*object.key,
                    "a tail holds its object's commands"
                );
            }
            match &object.role {
                Role::Idle => {}
                Role::Preparing(_) => {
                    assert_eq!(object.promised.owner(), Some(self.config.my_id()), "a candidate promised itself");
                }
                Role::Leading(leading) => {
                    assert_eq!(object.promised.owner(), Some(self.config.my_id()), "an owner is promised");
                    assert!(leading.next_slot > last, "the next slot is above all that are accepted");
                }
            }
        }
        for (node, inbound) in self.inbound.iter().enumerate() {
            assert!(inbound.watermark <= inbound.last_seq, "node {node}: the watermark is below what was taken");
            assert!(inbound.refusals.is_sorted(), "node {node}: refusals rise");
        }
        assert!(self.stream.committed <= self.stream.sealed_seq(), "only sealed entries are committed");
        assert!(self.stream.trimmed <= self.stream.committed, "only committed frames are trimmed");
    }
}
