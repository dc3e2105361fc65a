//! What must hold (`protocol.md` §10), and what has to be remembered of the past to know it: as little as possible, for what
//! is remembered tells states apart.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use wpaxos::{
    protocol::wpaxos::{Ballot, WPaxos},
    topology::{NodeIndex, NodeSet},
};

use crate::{
    linear,
    setup::{Act, Setup},
    world::{Answer, Asked, World},
};

/// An invariant that does not hold. Its number is that of `protocol.md` §10; 0 is an assertion of the core.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Wrong {
    pub invariant: u8,
    pub what: String,
}

/// A command of a slot, accepted at a ballot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Vote {
    slot: Place,
    ballot: Ballot,
    /// A hash of the command. So is every command here.
    command: u64,
}

/// A key and a slot of it.
type Place = (u8, u64);

/// One object as one node knows it.
#[derive(Clone, Debug, Default)]
struct Seen {
    promised: Ballot,
    applied: u64,
    version: u64,
    leads: bool,
    /// A hash of what is executed.
    state: u64,
    /// Slot, ballot, whether it is decided, command.
    accepted: Vec<(u64, Ballot, bool, u64)>,
}

/// What one node knows, by key.
#[derive(Clone, Debug, Default)]
pub struct View(BTreeMap<u8, Seen>);

/// What has happened, as far as it matters for what may happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Slots that are decided somewhere, with the command.
    decided: BTreeMap<Place, u64>,
    /// What is executed up to a slot.
    states: BTreeMap<Place, u64>,
    /// Who has accepted what in slots that are not decided.
    votes: BTreeMap<(Place, Ballot, u64), NodeBits>,
    pub wrong: Option<Wrong>,
}

/// A set of nodes.
type NodeBits = u128;

fn hash_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

impl View {
    pub fn of(core: &WPaxos) -> Self {
        let seen = core.objects().map(|object| {
            let accepted = core.accepted(object.key);
            let accepted =
                accepted.iter().map(|entry| (entry.slot, entry.ballot, entry.decided, hash_of(&entry.command)));
            let seen = Seen {
                promised: object.promised,
                applied: object.applied,
                version: object.state.version,
                leads: object.leads,
                state: hash_of(object.state),
                accepted: accepted.collect(),
            };
            (object.key[0] - b'a', seen)
        });
        Self(seen.collect())
    }

    /// Whether another node has executed the same.
    pub fn is_like(&self, other: &Self) -> bool {
        let executed =
            |view: &Self| -> Vec<_> { view.0.iter().map(|(key, seen)| (*key, seen.applied, seen.state)).collect() };
        executed(self) == executed(other)
    }
}

impl History {
    /// The first thing that is wrong is kept.
    fn complain(&mut self, invariant: u8, what: impl FnOnce() -> String) {
        self.wrong.get_or_insert_with(|| Wrong { invariant, what: what() });
    }

    /// What an input changed at a node; returns what the node accepted.
    pub fn observe(&mut self, setup: &Setup, node: usize, before: &View, after: &View) -> Vec<Vote> {
        let mut votes = Vec::new();
        let unknown = Seen::default();
        for (key, now) in &after.0 {
            let was = before.0.get(key).unwrap_or(&unknown);
            if now.promised < was.promised || now.applied < was.applied {
                self.complain(3, || format!("node {node} goes back from {was:?} to {now:?}"));
            }
            let writes = setup.asks.iter().filter(|ask| ask.act == Act::Put && ask.key == *key).count() as u64;
            if now.version > writes {
                self.complain(7, || format!("node {node} has executed {} of {writes} writes", now.version));
            }
            for &(slot, ballot, decided, command) in now.accepted.iter().filter(|entry| !was.accepted.contains(entry)) {
                if decided {
                    continue;
                }
                if ballot < was.promised {
                    self.complain(4, || {
                        format!("node {node} accepts slot {slot} at {ballot:?} below {:?}", was.promised)
                    });
                }
                votes.push(Vote { slot: (*key, slot), ballot, command });
            }
        }
        votes
    }

    /// Counts what is durable.
    pub fn count(&mut self, node: usize, votes: Vec<Vote>) {
        for Vote { slot, ballot, command } in votes {
            if !self.decided.contains_key(&slot) {
                *self.votes.entry((slot, ballot, command)).or_default() |= 1 << node;
            }
        }
    }

    /// What an input let a node know decided.
    pub fn check_decisions(&mut self, setup: &Setup, node: usize, before: &View, after: &View) {
        let unknown = Seen::default();
        for (key, now) in &after.0 {
            let was = before.0.get(key).unwrap_or(&unknown);
            for (slot, _, _, command) in now.accepted.iter().filter(|(_, _, decided, _)| *decided) {
                self.decide(setup, node, (*key, *slot), *command);
            }
            for slot in was.applied + 1..=now.applied {
                self.check_executed(setup, node, (*key, slot), was);
            }
            if now.applied > was.applied {
                let state = *self.states.entry((*key, now.applied)).or_insert(now.state);
                if state != now.state {
                    self.complain(5, || format!("node {node} has another state at slot {} of {key}", now.applied));
                }
            }
        }
    }

    /// An owner executes what it has accepted itself; another node may execute what it has refused, or install a state.
    fn check_executed(&mut self, setup: &Setup, node: usize, place: Place, was: &Seen) {
        if was.leads {
            let own = was.accepted.iter().find(|(slot, ..)| *slot == place.1);
            if was.promised.owner() != Some(setup.cluster.nodes[node].id) {
                self.complain(6, || format!("node {node} commits {place:?} at {:?}", was.promised));
            }
            if let Some((_, _, _, command)) = own {
                self.decide(setup, node, place, *command);
            }
        }
        if !self.decided.contains_key(&place) {
            self.complain(2, || format!("node {node} is the first to execute {place:?}, and did not decide it"));
        }
    }

    /// A slot's command is decided. What was accepted in the slot is of no interest from here on.
    fn decide(&mut self, setup: &Setup, node: usize, place: Place, command: u64) {
        if let Some(known) = self.decided.get(&place) {
            if *known != command {
                self.complain(1, || format!("node {node} knows another command decided in {place:?}"));
            }
            return;
        }
        let of_slot = self.votes.iter().filter(|((slot, ..), _)| *slot == place);
        let quorum = |voters: &NodeBits| setup.quorums.is_phase2_quorum(NodeSet(*voters));
        let decided = of_slot.clone().any(|((_, _, accepted), voters)| *accepted == command && quorum(voters));
        if !decided {
            let votes: Vec<_> = of_slot.map(|((_, ballot, _), voters)| (*ballot, *voters)).collect();
            self.complain(2, || format!("node {node} knows {place:?} decided, but accepted is {votes:?}"));
        }
        self.decided.insert(place, command);
        self.votes.retain(|(slot, ..), _| *slot != place);
    }

    /// A client is answered.
    pub fn answer(&mut self, setup: &Setup, asked: &mut [Asked], number: usize, node: usize, answer: Answer) {
        let Asked::Open { before } = asked[number] else {
            return self.complain(7, || format!("request {number} is answered twice"));
        };
        if setup.asks[number].node != node {
            self.complain(7, || format!("request {number} is answered at node {node}"));
        }
        asked[number] = Asked::Answered { before, answer };
        if !linear::is_linearizable(&setup.asks, asked) {
            self.complain(8, || format!("the answers have no order: {asked:?}"));
        }
    }

    /// What must hold of all nodes at one time.
    pub fn compare(setup: &Setup, world: &World) -> Option<Wrong> {
        let mut leads = Vec::new();
        for node in world.live() {
            for object in world.nodes[node].core.objects().filter(|object| object.leads) {
                let lead = (object.key, object.promised);
                let owner = setup.cluster.index_of(object.promised.owner()?);
                if leads.contains(&lead) || owner != Some(NodeIndex(node as u8)) {
                    return Some(Wrong { invariant: 6, what: format!("node {node} leads {lead:?} too") });
                }
                leads.push(lead);
            }
        }
        None
    }
}
