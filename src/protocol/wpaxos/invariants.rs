//! What must hold after every event (`protocol.md` §10), and what a test needs to see of a node to check it.

use super::{
    Ballot, Role, WPaxos,
    message::{PromiseHead, Reader, TailHead},
};
use crate::{
    store::ObjectState,
    wire::{Frame, Kind},
};

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
    /// A number that changes with the slots that are accepted above `applied`, their ballots and what is known to be decided
    /// of them: who has seen [`WPaxos::accepted`] at this number need not look again. 0 if there are none.
    pub tail_mark: u64,
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

/// The objects and ballots that a frame promises; none if it is no Promise.
///
/// # Panics
/// If it is malformed: it is one that a core has made.
pub fn promised_in(frame: &Frame) -> Vec<(Vec<u8>, Ballot)> {
    let mut promised = Vec::new();
    if frame.kind != Kind::Promise {
        return promised;
    }
    let mut reader = Reader::new(frame);
    while !reader.is_empty() {
        let head: &PromiseHead = reader.take().expect("a head");
        let key = reader.key(head.key_bytes).expect("a key").to_vec();
        reader.bytes(head.state_bytes.get() as usize).expect("a state");
        for _ in 0..head.tail.get() {
            let entry: &TailHead = reader.take().expect("an entry");
            reader.bytes(entry.command_bytes.get() as usize).expect("its command");
        }
        promised.push((key, Ballot { version: frame.config_version, number: head.ballot.get() }));
    }
    promised
}

/// What a shard holds in memory, of the things that could grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of its own stream: the open batch, what is not committed, what is retained for others.
    pub stream_bytes: usize,
    /// Bytes of received frames.
    pub received_bytes: usize,
    /// Requests that wait.
    pub requests: usize,
    /// Entries in the tails of its objects.
    pub tail_entries: usize,
    /// Bytes of its own stream that the slowest of the members was sent and has not acked.
    pub unacked_bytes: usize,
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
            tail_mark: tail_mark(&object.tail),
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

    /// Whether it answers Prepares and accepts.
    pub fn has_vote(&self) -> bool {
        self.may_vote()
    }

    /// Its configuration version.
    pub fn version(&self) -> u32 {
        self.config.version
    }

    /// How many frames of its own stream this node keeps for others, and their bytes.
    pub fn kept_frames(&self) -> (usize, usize) {
        self.stream.kept_frames()
    }

    /// What this shard holds in memory that other nodes, or its clients, could make grow.
    pub fn held(&self) -> Held {
        Held {
            stream_bytes: self.stream.kept_frames().1 + self.stream.open_bytes(),
            received_bytes: self.inbound.iter().map(super::Inbound::kept_bytes).sum(),
            requests: self.requests.len(),
            tail_entries: self.objects.iter().map(|object| object.tail.len()).sum(),
            unacked_bytes: self.links.iter().map(super::Link::unacked_bytes).max().unwrap_or(0),
        }
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
            assert!(inbound.passed_frames() <= 1, "node {node}: what the watermark has passed is let go");
        }
        assert!(self.stream.committed <= self.stream.sealed_seq(), "only sealed entries are committed");
        assert!(self.stream.trimmed <= self.stream.committed, "only committed frames are trimmed");
    }
}

fn tail_mark(tail: &super::object::Tail) -> u64 {
    let mix = |mark: u64, part: u64| (mark ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    tail.iter().fold(0, |mark, entry| {
        let flags = u64::from(entry.ballot.version) << 1 | u64::from(entry.decided);
        mix(mix(mix(mark, entry.slot), entry.ballot.number), flags)
    })
}
