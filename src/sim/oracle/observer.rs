//! Looks at a node after each of its inputs, and tells the oracles what is new.

use std::collections::{BTreeMap, HashMap};

use super::{
    Accepted, Agreement, Durability, Held, ONLY_READ, Once, Promises, Replicas, Rule, Snapshot, Violation, key_number,
    value_number,
};
use crate::{
    protocol::{
        Protocol,
        wpaxos::{
            Ballot, WPaxos,
            invariants::{AcceptedView, ObjectView},
        },
    },
    quorum::Quorums,
    topology::NodeIndex,
};

/// One object of one node as it was last seen.
#[derive(Debug)]
struct Seen {
    key: u64,
    promised: Ballot,
    applied: u64,
    tail_mark: u64,
    leads: bool,
    /// Its entries, rising: slot, ballot, and whether it is known to be decided.
    tail: Vec<(u64, Ballot, bool)>,
}

/// All oracles that are fed from what nodes hold.
///
/// It runs after every input of every node, so it looks only at what has changed: an object whose promise, watermark,
/// lead and tail are as they were has nothing new to tell. Objects keep their place in the list of their node.
#[derive(Debug)]
pub struct Observer {
    agreement: Agreement,
    promises: Promises,
    replicas: Replicas,
    /// What logs hold is told to this one directly; what is executed, the observer tells it.
    pub durability: Durability,
    /// What clients ask and are answered is told to this one directly; what takes effect, the observer tells it.
    pub once: Once,
    /// By node, then shard: the objects in the order in which the node lists them.
    seen: Vec<Vec<Vec<Seen>>>,
}

impl Observer {
    /// For a cluster of so many nodes with so many shards each.
    pub fn new(quorums: Quorums, nodes: usize, shards: u16) -> Self {
        let node = || (0..shards).map(|_| Vec::new()).collect();
        Self {
            durability: Durability::new(quorums.clone(), nodes, shards),
            agreement: Agreement::new(quorums, nodes),
            promises: Promises::new(nodes),
            replicas: Replicas::new(nodes),
            once: Once::new(),
            seen: (0..nodes).map(|_| node()).collect(),
        }
    }

    /// Looks at a shard of a node.
    ///
    /// # Errors
    /// The first violation found.
    pub fn observe(&mut self, node: NodeIndex, shard: u16, core: &WPaxos) -> Result<(), Violation> {
        for (place, object) in core.objects().enumerate() {
            let seen = &mut self.seen[node.index()][usize::from(shard)];
            if place == seen.len() {
                seen.push(Seen::first(&object)?);
            }
            if !seen[place].is_same(&object) {
                self.observe_object(node, shard, place, &object, core)?;
            }
        }
        Ok(())
    }

    fn observe_object(
        &mut self,
        node: NodeIndex,
        shard: u16,
        place: usize,
        object: &ObjectView<'_>,
        core: &WPaxos,
    ) -> Result<(), Violation> {
        let seen = &mut self.seen[node.index()][usize::from(shard)][place];
        let key = seen.key;
        if object.leads && (!seen.leads || seen.promised != object.promised) {
            self.agreement.leads(node, key, object.promised)?;
        }
        if object.tail_mark != seen.tail_mark {
            let tail = core.accepted(object.key);
            for entry in tail.iter().filter(|entry| !seen.has(entry)) {
                // What a learner takes over from others is no vote of its own, and may lie below what it has heard of.
                if entry.decided || core.has_vote() || entry.ballot.version == core.version() {
                    self.agreement.accepted(node, key, (*entry).into())?;
                }
                if !entry.decided && core.has_vote() {
                    self.promises.accepted(node, key, entry.slot, entry.ballot)?;
                }
            }
            seen.tail.clear();
            seen.tail.extend(tail.iter().map(place_of));
        }
        self.promises.promised(node, key, object.promised)?;
        if object.applied != seen.applied {
            self.replicas.executed(node, key, object.applied, object.state)?;
            self.agreement.executed(node, key, object.applied)?;
            self.durability.executed(shard, key, object.key, object.applied)?;
            let state = (object.state.version, value_number(object.state.value.as_deref()));
            let agreement = &self.agreement;
            self.once.state(node, key, object.applied, state, |slot| agreement.decided(key, slot))?;
        }
        seen.update(object);
        Ok(())
    }

    /// A promise of this ballot, or the ack of an entry with it, has left the node.
    ///
    /// # Errors
    /// If the key is none of the simulator's.
    pub fn told(&mut self, node: NodeIndex, key: &[u8], ballot: Ballot) -> Result<(), Violation> {
        self.promises.told(node, number_of(key)?, ballot);
        Ok(())
    }

    /// A node came back with its disk: `cores` are its shards, all of them, as they are after the replay of its log and
    /// before any input.
    ///
    /// # Errors
    /// If something is gone that the cluster relies on.
    pub fn restarted(&mut self, node: NodeIndex, cores: &[&WPaxos]) -> Result<(), Violation> {
        let (mut promised, mut held) = (HashMap::new(), HashMap::new());
        for object in cores.iter().flat_map(|core| core.objects()) {
            promised.insert(number_of(object.key)?, object.promised);
        }
        for core in cores {
            for object in core.objects() {
                let tail = core.accepted(object.key).iter().map(place_of).collect();
                held.insert(number_of(object.key)?, Held { applied: object.applied, tail });
            }
        }
        self.agreement.restarted(node, &held)?;
        self.promises.restarted(node, &promised)?;
        self.begin_anew(node, cores)
    }

    /// A node came back without its disk, as somebody new. `cores` are its shards, all of them, before any input.
    ///
    /// # Errors
    /// If what it begins with is wrong.
    pub fn replaced(&mut self, node: NodeIndex, cores: &[&WPaxos]) -> Result<(), Violation> {
        self.agreement.replaced(node);
        self.promises.replaced(node);
        self.durability.replaced(node);
        self.begin_anew(node, cores)
    }

    /// What the node has now is where it starts; none of it is newly accepted.
    fn begin_anew(&mut self, node: NodeIndex, cores: &[&WPaxos]) -> Result<(), Violation> {
        self.replicas.restarted(node);
        assert_eq!(cores.len(), self.seen[node.index()].len(), "a node comes back with all its shards");
        for (shard, core) in cores.iter().enumerate() {
            self.seen[node.index()][shard].clear();
            for object in core.objects() {
                let mut seen = Seen::first(&object)?;
                for entry in core.accepted(object.key) {
                    // Votes of earlier versions were counted when they were given.
                    if entry.decided || entry.ballot.version == core.version() {
                        self.agreement.accepted(node, seen.key, entry.into())?;
                    }
                    seen.tail.push(place_of(&entry));
                }
                self.seen[node.index()][shard].push(seen);
            }
            self.observe(node, shard as u16, core)?;
        }
        Ok(())
    }

    /// A node is gone for good. What it has accepted stays accepted.
    pub fn died(&mut self, node: NodeIndex) {
        self.seen[node.index()].iter_mut().for_each(Vec::clear);
    }

    /// A live node for [`super::Liveness::check_equal`]; `cores` are its shards, all of them.
    ///
    /// # Errors
    /// If it holds a key that is none of the simulator's.
    pub fn snapshot(node: NodeIndex, cores: &[&WPaxos]) -> Result<Snapshot, Violation> {
        let is_idle = cores.iter().all(|core| core.is_idle());
        let counters = cores.iter().flat_map(|core| core.counters());
        let waiting = counters.filter(|(name, _)| *name == "waiting_requests").map(|(_, count)| count).sum();
        let mut snapshot = Snapshot { node, applied: BTreeMap::new(), decided: Vec::new(), is_idle, waiting };
        for core in cores {
            for object in core.objects() {
                let key = number_of(object.key)?;
                snapshot.applied.insert(key, object.applied);
                let tail = core.accepted(object.key);
                snapshot.decided.extend(tail.iter().filter(|entry| entry.decided).map(|entry| (key, entry.slot)));
            }
        }
        Ok(snapshot)
    }

    /// By key the highest slot that is executed anywhere.
    pub fn executed(&self) -> BTreeMap<u64, u64> {
        self.agreement.all_executed()
    }
}

impl Seen {
    /// As an object is before anything has happened to it, so that everything about it is new.
    fn first(object: &ObjectView<'_>) -> Result<Self, Violation> {
        let key = number_of(object.key)?;
        if key & ONLY_READ != 0 {
            return Err(Rule::Memory.broken(format!("a node keeps an object for key {key}, which is only ever read")));
        }
        Ok(Self { key, promised: Ballot::ZERO, applied: 0, tail_mark: 0, leads: false, tail: Vec::new() })
    }

    fn is_same(&self, object: &ObjectView<'_>) -> bool {
        let now = (object.promised, object.applied, object.tail_mark, object.leads);
        (self.promised, self.applied, self.tail_mark, self.leads) == now
    }

    fn has(&self, entry: &AcceptedView<'_>) -> bool {
        let place = self.tail.binary_search_by_key(&entry.slot, |(slot, _, _)| *slot);
        place.is_ok_and(|place| self.tail[place] == place_of(entry))
    }

    fn update(&mut self, object: &ObjectView<'_>) {
        (self.promised, self.applied) = (object.promised, object.applied);
        (self.tail_mark, self.leads) = (object.tail_mark, object.leads);
    }
}

impl<'a> From<AcceptedView<'a>> for Accepted<'a> {
    fn from(view: AcceptedView<'a>) -> Self {
        Self { slot: view.slot, ballot: view.ballot, decided: view.decided, command: view.command }
    }
}

fn place_of(entry: &AcceptedView<'_>) -> (u64, Ballot, bool) {
    (entry.slot, entry.ballot, entry.decided)
}

fn number_of(key: &[u8]) -> Result<u64, Violation> {
    key_number(key).ok_or_else(|| Rule::Core.broken(format!("a node holds a key that nobody uses: {key:?}")))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        command::{Action, Command, NewCommand},
        protocol::{Micros, Outputs, Protocol, ReadMode, ReplyTo, Request, wpaxos::Config},
        sim::oracle::{Asked, Liveness, key_name, linear::Act},
        topology::{Cluster, ZoneIndex},
        tuning::Tuning,
    };

    const NODE: NodeIndex = NodeIndex(0);

    /// A node that is a cluster by itself, and whoever looks at it.
    struct World {
        core: WPaxos,
        out: Outputs,
        observer: Observer,
        now: Micros,
    }

    impl World {
        fn new() -> Self {
            let cluster = Cluster::local("test", vec![vec![vec![([127, 0, 0, 1], 0).into()]]]);
            let quorums = Quorums::new(&cluster).unwrap();
            let config = Config::new(&cluster, &Tuning::default(), NODE, 0, 1).unwrap();
            let (core, out) = (WPaxos::new(config, Micros(0)), Outputs::new(1));
            Self { core, out, observer: Observer::new(quorums, 1, 1), now: Micros(0) }
        }

        fn put(&mut self, key: &[u8], id: u64) {
            let value = id.to_le_bytes();
            let mut bytes = Vec::new();
            let command = NewCommand { client: 1, id, retry: false, key, action: Action::Put(&value) };
            command.encode(&mut bytes).unwrap();
            let asked = Asked { connection: 1, command: (1, id), key: 7, act: Act::Put(id) };
            self.observer.once.asked(id, asked).unwrap();
            let frame = Bytes::from(bytes);
            let (zone, read, command) = (ZoneIndex(0), ReadMode::Confirm, Command::parse(&frame).unwrap());
            let request = Request { reply_to: ReplyTo(id), zone, read, command, frame: &frame };
            self.core.on_request(self.now, request, &mut self.out);
        }

        /// Ends the turn; true if there is more to do.
        fn turn(&mut self) -> bool {
            self.now = self.now.plus(5000);
            self.core.flush(self.now, &mut self.out);
            self.out.records.last().is_some()
        }

        fn make_durable(&mut self) {
            let last = self.out.records.last().expect("something was logged").id;
            self.out.clear();
            self.core.on_durable(self.now, last, &mut self.out);
        }

        fn observe(&mut self) -> Result<(), Violation> {
            self.observer.observe(NODE, 0, &self.core)
        }

        /// Everything up to the execution, looked at after each step.
        fn run(&mut self) -> Result<(), Violation> {
            self.observe()?;
            while self.turn() {
                self.observe()?;
                self.make_durable();
                self.observe()?;
            }
            self.observe()
        }
    }

    fn served() -> World {
        let mut world = World::new();
        for id in 1..=3 {
            world.put(&key_name(7), id);
            world.run().unwrap();
        }
        assert_eq!(world.observer.executed(), [(7, 3)].into());
        world.out.clear();
        world
    }

    #[test]
    fn a_node_that_keeps_to_the_rules_is_taken() {
        let mut world = served();
        let promised = world.core.objects().next().unwrap().promised;
        world.observer.told(NODE, &key_name(7), promised).unwrap();
        let snapshot = Observer::snapshot(NODE, &[&world.core]).unwrap();
        // Whether it is idle depends on timers that nobody drives here.
        let snapshot = Snapshot { is_idle: true, ..snapshot };
        assert_eq!(Liveness::check_equal(&world.observer.executed(), &[snapshot]), Ok(()));
        // It would come back with all that it has, but would not lead.
        let again = world.observer.restarted(NODE, &[&world.core]).unwrap_err();
        assert_eq!(again.rule, Rule::TwoOwnersCommit);
    }

    #[test]
    fn what_is_executed_unseen_has_no_quorum() {
        let mut world = World::new();
        world.put(&key_name(7), 1);
        while world.turn() {
            world.make_durable();
        }
        assert_eq!(world.observe().unwrap_err().rule, Rule::DecidedByQuorum);
    }

    #[test]
    fn a_node_that_forgets_is_refused() {
        let empty = World::new().core;
        assert_eq!(served().observer.restarted(NODE, &[&empty]).unwrap_err().rule, Rule::DecidedByQuorum);

        let mut world = World::new();
        world.put(&key_name(7), 1);
        world.observe().unwrap();
        let promised = world.core.objects().next().unwrap().promised;
        world.observer.told(NODE, &key_name(7), promised).unwrap();
        assert_eq!(world.observer.restarted(NODE, &[&empty]).unwrap_err().rule, Rule::PromiseFalls);
        served().observer.replaced(NODE, &[&empty]).unwrap();
    }

    #[test]
    fn a_key_that_nobody_uses_is_refused() {
        let mut world = World::new();
        world.put(b"another", 1);
        assert_eq!(world.observe().unwrap_err().rule, Rule::Core);
    }
}
