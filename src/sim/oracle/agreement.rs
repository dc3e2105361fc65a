//! What is decided, and by whom (`protocol.md` §10, invariants 1, 2 and 6).
//!
//! The votes of a slot are counted per ballot and command, over the whole history: a node that has accepted something has
//! given a vote, whatever it accepts later. Only a restart takes votes back: those that were not durable. Since a log is
//! durable up to some point, a vote is gone exactly if its slot is neither executed nor holds an entry of as high a ballot.
//!
//! Whoever feeds it must look at a node after *each* input and each flush: an entry that comes and is executed between two
//! looks has no vote of that node. The core accepts and commits in different inputs.

use std::collections::{BTreeMap, HashMap};

use xxhash_rust::xxh3::xxh3_64;

use super::{Rule, Violation};
use crate::{
    protocol::wpaxos::Ballot,
    quorum::Quorums,
    topology::{NodeIndex, NodeSet},
};

/// How many executed slots of a key are remembered with their votes; of older ones only what was decided.
const SLOTS_KEPT: u64 = 256;

/// An entry in the tail of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted<'a> {
    /// The slot.
    pub slot: u64,
    /// The ballot that it was accepted at.
    pub ballot: Ballot,
    /// Whether it is known to be decided.
    pub decided: bool,
    /// The encoded command.
    pub command: &'a [u8],
}

/// What a node holds of one object after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Everything up to this slot is executed.
    pub applied: u64,
    /// Its tail: slot, ballot, and whether it is known to be decided.
    pub tail: Vec<(u64, Ballot, bool)>,
}

/// The votes for one command at one ballot.
#[derive(Debug)]
struct Vote {
    ballot: Ballot,
    command: Box<[u8]>,
    voters: NodeSet,
    /// Voters that have lost their disks since: their votes stay given.
    bygone: NodeSet,
}

#[derive(Debug, Default)]
struct SlotRecord {
    votes: Vec<Vote>,
    /// Somebody has executed it, or knows it to be decided.
    is_decided: bool,
    /// With this command, where it can be told.
    command: Option<Box<[u8]>>,
    /// The highest ballot at which a quorum has accepted it.
    chosen_at: Option<Ballot>,
    /// Who has it in its tail as decided.
    knowing: NodeSet,
    /// A node has lost its disk since: nobody can say who still has to hold it.
    excused: bool,
}

#[derive(Debug)]
struct KeyRecord {
    /// The highest slot that is executed anywhere.
    executed: u64,
    /// By node.
    applied: Vec<u64>,
    slots: BTreeMap<u64, SlotRecord>,
    /// Hashes of what was decided in the slots that are no longer in `slots`, from slot 1; 0 where it was never known.
    past: Vec<u64>,
    /// Who has led at which ballot, in which of its boots.
    leads: BTreeMap<Ballot, (NodeIndex, u32)>,
}

/// The oracle of invariants 1, 2 and 6.
#[derive(Debug)]
pub struct Agreement {
    quorums: Quorums,
    nodes: usize,
    keys: HashMap<u64, KeyRecord>,
    /// By node: how often it was restarted.
    boots: Vec<u32>,
}

impl Agreement {
    /// For a cluster of so many nodes in which nothing has happened.
    pub fn new(quorums: Quorums, nodes: usize) -> Self {
        Self { quorums, nodes, keys: HashMap::new(), boots: vec![0; nodes] }
    }

    fn key(&mut self, key: u64) -> &mut KeyRecord {
        let nodes = self.nodes;
        self.keys.entry(key).or_insert_with(|| KeyRecord::new(nodes))
    }

    /// A node leads an object at a ballot.
    ///
    /// # Errors
    /// If another has, or the same one before a restart: leading is not durable.
    pub fn leads(&mut self, node: NodeIndex, key: u64, ballot: Ballot) -> Result<(), Violation> {
        let me = (node, self.boots[node.index()]);
        let first = *self.key(key).leads.entry(ballot).or_insert(me);
        if first == me {
            return Ok(());
        }
        let (first, boot) = (first.0.0, first.1);
        let (node, now) = me;
        Err(Rule::TwoOwnersCommit.broken(format!(
            "node {} (boot {now}) leads key {key} at {ballot:?}, at which node {first} (boot {boot}) has led",
            node.0
        )))
    }

    /// A node has an entry in its tail. Events about the same entry may repeat.
    ///
    /// # Errors
    /// If the slot is decided otherwise, if the ballot has another command there, or if a decision has no quorum.
    pub fn accepted(&mut self, node: NodeIndex, key: u64, entry: Accepted<'_>) -> Result<(), Violation> {
        let at = || format!("slot {} of key {key}", entry.slot);
        let record = self.key(key);
        if entry.slot <= record.past.len() as u64 {
            return record.agrees_with_past(entry).map_err(|text| Rule::OneCommandPerSlot.broken(text + &at()));
        }
        let slot = record.slots.entry(entry.slot).or_default();
        if let Some(wrong) = slot.contradiction(entry) {
            let text = format!("{wrong} in {} at {:?}, at node {}", at(), entry.ballot, node.0);
            return Err(Rule::OneCommandPerSlot.broken(text));
        }
        slot.count(node, entry);
        if entry.decided && slot.command.is_none() {
            slot.command = Some(entry.command.into());
            if !slot.is_decided {
                return self.decide(node, key, entry.slot);
            }
        }
        Ok(())
    }

    /// A node has executed an object up to a slot.
    ///
    /// # Errors
    /// If a slot that nobody has executed before has no quorum, or two commands have one.
    pub fn executed(&mut self, node: NodeIndex, key: u64, applied: u64) -> Result<(), Violation> {
        let record = self.key(key);
        record.applied[node.index()] = record.applied[node.index()].max(applied);
        let from = record.executed + 1;
        record.executed = record.executed.max(applied);
        for slot in from..=applied {
            if !self.key(key).slots.entry(slot).or_default().is_decided {
                self.decide(node, key, slot)?;
            }
        }
        self.key(key).prune();
        Ok(())
    }

    /// A slot is seen to be decided for the first time, at this node.
    fn decide(&mut self, node: NodeIndex, key: u64, number: u64) -> Result<(), Violation> {
        let quorums = &self.quorums;
        let record = self.keys.get_mut(&key).expect("it was just seen");
        let slot = record.slots.get_mut(&number).expect("it was just seen");
        slot.is_decided = true;
        let known = slot.command.clone();
        let fits = |vote: &&Vote| known.as_ref().is_none_or(|known| *known == vote.command);
        let chosen: Vec<&Vote> = slot.votes.iter().filter(|vote| quorums.is_phase2_quorum(vote.all())).collect();
        if let Some(other) = chosen.iter().find(|vote| vote.command != chosen[0].command) {
            let text = format!(
                "slot {number} of key {key} has quorums for two commands: {} and {}",
                chosen[0].describe(),
                other.describe()
            );
            return Err(Rule::OneCommandPerSlot.broken(text));
        }
        if let Some(vote) = chosen.iter().filter(|vote| fits(vote)).max_by_key(|vote| vote.ballot) {
            let later = |other: &&Vote| other.ballot > vote.ballot && other.command != vote.command;
            if let Some(later) = slot.votes.iter().find(later) {
                let (vote, later) = (vote.describe(), later.describe());
                let text = format!("slot {number} of key {key} is decided as {vote}, and not taken over by {later}");
                return Err(Rule::OneCommandPerSlot.broken(text));
            }
            (slot.chosen_at, slot.command) = (Some(vote.ballot), Some(vote.command.clone()));
            return Ok(());
        }
        let votes: Vec<String> = slot.votes.iter().map(Vote::describe).collect();
        let text = format!(
            "slot {number} of key {key} is decided at node {} without a quorum: {}",
            node.0,
            if votes.is_empty() { "nobody has accepted anything".to_owned() } else { votes.join("; ") }
        );
        Err(Rule::DecidedByQuorum.broken(text))
    }

    /// A node came back with its disk: what was not durable is gone. `held` is all that it still has, by key.
    ///
    /// # Errors
    /// If a decided slot is held by no phase-2 quorum any more: an ack was sent too early.
    pub fn restarted(&mut self, node: NodeIndex, held: &HashMap<u64, Held>) -> Result<(), Violation> {
        self.boots[node.index()] += 1;
        let nothing = Held::default();
        let mut lost = None;
        for (key, record) in &mut self.keys {
            let held = held.get(key).unwrap_or(&nothing);
            record.forget(node, held);
            if let Some(slot) = record.lost_slot(&self.quorums) {
                // The lowest, so that the same history gives the same text.
                lost = lost.into_iter().chain([(*key, slot)]).min();
            }
        }
        let Some((key, slot)) = lost else { return Ok(()) };
        let text =
            format!("slot {slot} of key {key} was decided, but after node {} came back no quorum has it", node.0);
        Err(Rule::DecidedByQuorum.broken(text))
    }

    /// A node came back without its disk (or from a mode that keeps nothing). Votes that it gave stay given; whether what
    /// is decided so far is still held by a quorum is no longer looked at.
    pub fn replaced(&mut self, node: NodeIndex) {
        self.boots[node.index()] += 1;
        for record in self.keys.values_mut() {
            record.applied[node.index()] = 0;
            for slot in record.slots.values_mut() {
                slot.excused = true;
                slot.votes.iter_mut().for_each(|vote| vote.outlive(node));
            }
        }
    }

    /// The command that was decided in a slot, if that can be told and is not long ago.
    pub fn decided(&self, key: u64, slot: u64) -> Option<&[u8]> {
        let slot = self.keys.get(&key)?.slots.get(&slot)?;
        if slot.is_decided { slot.command.as_deref() } else { None }
    }

    /// The highest slot of a key that is executed anywhere.
    pub fn highest_executed(&self, key: u64) -> u64 {
        self.keys.get(&key).map_or(0, |record| record.executed)
    }

    /// All keys that anybody has heard of, with the highest slot executed anywhere, rising.
    pub fn all_executed(&self) -> BTreeMap<u64, u64> {
        self.keys.iter().map(|(key, record)| (*key, record.executed)).collect()
    }
}

impl Vote {
    fn all(&self) -> NodeSet {
        NodeSet(self.voters.0 | self.bygone.0)
    }

    /// The voter has lost its disk: what it comes back with says nothing of this vote.
    fn outlive(&mut self, node: NodeIndex) {
        if self.voters.contains(node) {
            self.voters.remove(node);
            self.bygone.insert(node);
        }
    }

    fn describe(&self) -> String {
        format!("{:016x} at {:?} by {:?}", xxh3_64(&self.command), self.ballot, self.all())
    }
}

impl SlotRecord {
    /// What an entry cannot be, seen from what is known of its slot.
    fn contradiction(&self, entry: Accepted<'_>) -> Option<&'static str> {
        let differs = self.command.as_ref().is_some_and(|command| **command != *entry.command);
        let of_ballot = self.votes.iter().find(|vote| vote.ballot == entry.ballot);
        if entry.decided && differs {
            return Some("two decisions");
        }
        if of_ballot.is_some_and(|vote| *vote.command != *entry.command) {
            return Some("two commands at one ballot");
        }
        if differs && self.chosen_at.is_some_and(|ballot| entry.ballot > ballot) {
            return Some("a command other than the decided one, at a higher ballot,");
        }
        None
    }

    fn count(&mut self, node: NodeIndex, entry: Accepted<'_>) {
        if entry.decided {
            self.knowing.insert(node);
            return;
        }
        match self.votes.iter_mut().find(|vote| vote.ballot == entry.ballot) {
            Some(vote) => {
                vote.voters.insert(node);
            }
            None => {
                let voters = [node].into_iter().collect();
                self.votes.push(Vote {
                    ballot: entry.ballot,
                    command: entry.command.into(),
                    voters,
                    bygone: NodeSet::EMPTY,
                });
            }
        }
    }

    /// Who has it, other than by having executed it.
    fn holders(&self) -> NodeSet {
        let fits = |vote: &&Vote| self.command.as_ref().is_none_or(|command| *command == vote.command);
        let voters = self.votes.iter().filter(fits).fold(0, |all, vote| all | vote.voters.0);
        NodeSet(voters | self.knowing.0)
    }
}

impl KeyRecord {
    fn new(nodes: usize) -> Self {
        let (slots, leads) = (BTreeMap::new(), BTreeMap::new());
        Self { executed: 0, applied: vec![0; nodes], slots, past: Vec::new(), leads }
    }

    fn agrees_with_past(&self, entry: Accepted<'_>) -> Result<(), String> {
        let decided = self.past[entry.slot as usize - 1];
        let same = decided == 0 || decided == xxh3_64(entry.command);
        if same || !entry.decided { Ok(()) } else { Err("two decisions, long after the first, in ".to_owned()) }
    }

    /// Keeps the hashes of slots that were executed long ago.
    fn prune(&mut self) {
        while self.past.len() as u64 + SLOTS_KEPT < self.executed {
            let slot = self.slots.remove(&(self.past.len() as u64 + 1));
            let command = slot.and_then(|slot| slot.command);
            self.past.push(command.map_or(0, |command| xxh3_64(&command)));
        }
    }

    fn forget(&mut self, node: NodeIndex, held: &Held) {
        self.applied[node.index()] = held.applied;
        for (number, slot) in &mut self.slots {
            if *number <= held.applied {
                continue;
            }
            let kept = held.tail.iter().find(|(slot, _, _)| slot == number);
            for vote in &mut slot.votes {
                if kept.is_none_or(|(_, ballot, decided)| *ballot < vote.ballot && !decided) {
                    vote.voters.remove(node);
                }
            }
            if kept.is_none_or(|(_, _, decided)| !decided) {
                slot.knowing.remove(node);
            }
        }
    }

    /// A decided slot that no quorum holds.
    fn lost_slot(&self, quorums: &Quorums) -> Option<u64> {
        let decided = self.slots.iter().filter(|(_, slot)| slot.is_decided && !slot.excused);
        let is_lost = |number: u64, slot: &SlotRecord| {
            let nodes = (0..self.applied.len()).filter(|node| self.applied[*node] >= number);
            let executed: NodeSet = nodes.map(|node| NodeIndex(node as u8)).collect();
            !quorums.is_phase2_quorum(NodeSet(executed.0 | slot.holders().0))
        };
        decided
            .map(|(number, slot)| (*number, slot))
            .find(|(number, slot)| is_lost(*number, slot))
            .map(|(slot, _)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Cluster, NodeId, QuorumSpec};

    const KEY: u64 = 4;

    /// One zone of three, any two of which are a quorum.
    fn oracle() -> Agreement {
        let cluster = Cluster::local("test", vec![vec![vec![([127, 0, 0, 1], 0).into()]; 3]]);
        let cluster = Cluster { quorum: QuorumSpec::Majority, ..cluster };
        Agreement::new(Quorums::new(&cluster).unwrap(), 3)
    }

    fn ballot(round: u64) -> Ballot {
        Ballot::new(1, round, NodeId::new(1, 1))
    }

    #[derive(Clone, Copy)]
    enum Event {
        Accept(u8, u64, u64, &'static [u8]),
        Learn(u8, u64, u64, &'static [u8]),
        Execute(u8, u64),
        Lead(u8, u64),
        /// Comes back having executed so much, with these slots and rounds in its tail.
        Restart(u8, u64, &'static [(u64, u64)]),
        Replace(u8),
    }
    use Event::{Accept, Execute, Lead, Learn, Replace, Restart};

    fn take(oracle: &mut Agreement, event: Event) -> Result<(), Violation> {
        let entry = |slot, round, decided, command| Accepted { slot, ballot: ballot(round), decided, command };
        match event {
            Accept(node, slot, round, command) => {
                oracle.accepted(NodeIndex(node), KEY, entry(slot, round, false, command))
            }
            Learn(node, slot, round, command) => {
                oracle.accepted(NodeIndex(node), KEY, entry(slot, round, true, command))
            }
            Execute(node, applied) => oracle.executed(NodeIndex(node), KEY, applied),
            Lead(node, round) => oracle.leads(NodeIndex(node), KEY, ballot(round)),
            Restart(node, applied, tail) => {
                let tail = tail.iter().map(|(slot, round)| (*slot, ballot(*round), false)).collect();
                oracle.restarted(NodeIndex(node), &[(KEY, Held { applied, tail })].into_iter().collect())
            }
            Replace(node) => {
                oracle.replaced(NodeIndex(node));
                Ok(())
            }
        }
    }

    /// All but the last must be taken; what becomes of the last.
    fn last_of(events: &[Event]) -> Result<(), Rule> {
        let mut oracle = oracle();
        let (last, first) = events.split_last().unwrap();
        for (place, event) in first.iter().enumerate() {
            assert_eq!(take(&mut oracle, *event), Ok(()), "event {place}");
        }
        take(&mut oracle, *last).map_err(|violation| violation.rule)
    }

    #[test]
    fn histories_that_are_right_are_taken() {
        let histories: [&[Event]; 7] = [
            // The owner and another accept; the third learns it later.
            &[Lead(0, 1), Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Execute(0, 1), Execute(1, 1), Execute(2, 1)],
            // One that was never chosen is replaced at a higher ballot.
            &[Accept(0, 1, 1, b"a"), Accept(1, 1, 2, b"b"), Accept(2, 1, 2, b"b"), Execute(1, 1)],
            // Decided out of order, and proposed again by the next owner.
            &[
                Accept(0, 2, 1, b"b"),
                Accept(1, 2, 1, b"b"),
                Learn(0, 2, 1, b"b"),
                Accept(2, 2, 2, b"b"),
                Accept(2, 1, 2, b"n"),
                Accept(0, 1, 2, b"n"),
                Execute(2, 2),
            ],
            // A vote at the lower ballot was durable, or the higher one would not be: it stays given.
            &[
                Accept(0, 1, 1, b"a"),
                Accept(1, 1, 1, b"a"),
                Accept(1, 1, 2, b"a"),
                Restart(1, 0, &[(1, 2)]),
                Execute(0, 1),
            ],
            // A restart of one that had not voted, and of one that keeps its vote.
            &[
                Accept(0, 1, 1, b"a"),
                Accept(1, 1, 1, b"a"),
                Execute(0, 1),
                Restart(2, 0, &[]),
                Restart(0, 0, &[(1, 1)]),
                Restart(1, 1, &[]),
            ],
            // The same owner goes on; after a restart at a new ballot.
            &[Lead(0, 1), Lead(0, 1), Restart(0, 0, &[]), Lead(0, 2)],
            // A lost disk is not the cluster's fault.
            &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Execute(0, 1), Replace(1), Restart(2, 0, &[])],
        ];
        for (number, history) in histories.iter().enumerate() {
            assert_eq!(last_of(history), Ok(()), "history {number}");
        }
    }

    #[test]
    fn histories_that_are_wrong_are_refused() {
        let histories: [(Rule, &[Event]); 13] = [
            (Rule::DecidedByQuorum, &[Execute(0, 1)]),
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Execute(0, 1)]),
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Learn(0, 1, 1, b"a")]),
            // Who executes has not accepted for that.
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Execute(1, 1)]),
            // A quorum, but not at one ballot.
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Accept(1, 1, 2, b"a"), Execute(0, 1)]),
            // Nor for one command.
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Accept(1, 1, 2, b"b"), Execute(0, 1)]),
            // A vote that was not durable counted.
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Execute(0, 1), Restart(1, 0, &[])]),
            (Rule::DecidedByQuorum, &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Restart(1, 0, &[]), Execute(0, 1)]),
            (
                Rule::OneCommandPerSlot,
                &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Learn(0, 1, 1, b"a"), Learn(2, 1, 2, b"b")],
            ),
            (Rule::OneCommandPerSlot, &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"b")]),
            // It did not hear of what was chosen, though nobody knew that it was.
            (
                Rule::OneCommandPerSlot,
                &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Accept(2, 1, 2, b"b"), Execute(0, 1)],
            ),
            // The next owner has not heard of what was decided.
            (
                Rule::OneCommandPerSlot,
                &[Accept(0, 1, 1, b"a"), Accept(1, 1, 1, b"a"), Execute(0, 1), Accept(2, 1, 2, b"b")],
            ),
            (
                Rule::OneCommandPerSlot,
                &[
                    Accept(0, 1, 1, b"a"),
                    Accept(1, 1, 1, b"a"),
                    Accept(1, 1, 2, b"b"),
                    Accept(2, 1, 2, b"b"),
                    Execute(2, 1),
                ],
            ),
        ];
        for (number, (rule, history)) in histories.iter().enumerate() {
            assert_eq!(last_of(history), Err(*rule), "history {number}");
        }
        assert_eq!(last_of(&[Lead(0, 1), Lead(1, 1)]), Err(Rule::TwoOwnersCommit));
        let again = [Lead(0, 1), Restart(0, 0, &[]), Lead(0, 1)];
        assert_eq!(last_of(&again), Err(Rule::TwoOwnersCommit), "leading is not durable");
    }

    #[test]
    fn a_decision_is_remembered_after_its_votes_are_not() {
        let mut oracle = oracle();
        for slot in 1..=SLOTS_KEPT + 10 {
            for node in 0..2 {
                take(&mut oracle, Accept(node, slot, 1, b"a")).unwrap();
            }
            take(&mut oracle, Execute(0, slot)).unwrap();
        }
        assert!(oracle.keys[&KEY].slots.len() as u64 <= SLOTS_KEPT);
        assert_eq!((oracle.decided(KEY, 1), oracle.decided(KEY, 200)), (None, Some(b"a".as_slice())));
        assert_eq!(take(&mut oracle, Learn(2, 1, 1, b"a")), Ok(()));
        assert_eq!(take(&mut oracle, Learn(2, 1, 1, b"b")).unwrap_err().rule, Rule::OneCommandPerSlot);
        assert_eq!((oracle.highest_executed(KEY), oracle.highest_executed(9)), (SLOTS_KEPT + 10, 0));
    }
}
