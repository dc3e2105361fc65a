//! Nothing leaves a node, and nothing counts as decided, before what it rests on is durable (`protocol.md` §8).
//!
//! Beside each shard runs a *ledger*: a core that replays the shard's records when its log says that they are durable, and
//! never anything else. It knows what a restart at this moment would know. A frame that leaves is judged by its own content
//! against the ledger of its sender; a slot that is executed for the first time, against the ledgers of all nodes.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use super::{Rule, Violation};
use crate::{
    protocol::{
        Micros, Protocol, Record, RecordId,
        wpaxos::{WPaxos, obligations::Unmet},
    },
    quorum::Quorums,
    topology::{NodeIndex, NodeSet},
    wire::Frame,
};

/// What is durable of one shard of one node.
#[derive(Debug)]
pub struct Ledger {
    core: WPaxos,
    now: Micros,
    /// Records that were written and are not durable.
    pending: VecDeque<Record>,
    /// A record that the node itself cannot read back.
    unreadable: Option<String>,
}

/// A ledger that the log of its shard keeps, and the oracles read.
pub type SharedLedger = Rc<RefCell<Ledger>>;

impl Ledger {
    /// Begins with a core that has replayed everything durable, and has taken no other input.
    pub fn new(core: WPaxos, now: Micros) -> Self {
        Self { core, now, pending: VecDeque::new(), unreadable: None }
    }

    /// Records are being written.
    pub fn write(&mut self, records: &[Record]) {
        self.pending.extend(records.iter().cloned());
    }

    /// Records up to this one are durable.
    pub fn advance(&mut self, durable: RecordId) {
        while self.pending.front().is_some_and(|record| record.id <= durable) {
            let record = self.pending.pop_front().expect("just seen");
            if let Err(error) = self.core.on_replay(self.now, &record) {
                self.unreadable.get_or_insert(format!("record {} cannot be read back: {error}", record.id.0));
            }
        }
    }

    /// As a restart at this moment would find it.
    pub fn core(&self) -> &WPaxos {
        &self.core
    }

    /// A frame has left for a peer.
    ///
    /// # Errors
    /// If it should not have yet, or nobody can read it.
    pub fn left(&self, node: NodeIndex, to: NodeIndex, frame: &Frame) -> Result<(), Violation> {
        if let Some(unreadable) = &self.unreadable {
            return Err(Rule::Unreadable.broken(format!("node {}: {unreadable}", node.0)));
        }
        let about = |what: &Unmet| format!("node {} sends node {} a {:?}: {what}", node.0, to.0, frame.kind);
        self.core.check_obligations(to, frame).map_err(|unmet| match unmet {
            Unmet::Rests(_) => Rule::LeftTooEarly.broken(about(&unmet)),
            Unmet::Malformed(_) => Rule::Unreadable.broken(about(&unmet)),
        })
    }
}

/// The oracle of what is decided.
#[derive(Debug)]
pub struct Durability {
    quorums: Quorums,
    /// By node, then shard.
    ledgers: Vec<Vec<Option<SharedLedger>>>,
    /// Nodes that have lost what they had: what they voted for is not asked of them.
    forgetful: NodeSet,
    /// By key the highest slot that was executed anywhere.
    executed: HashMap<u64, u64>,
}

impl Durability {
    /// For so many nodes, with so many shards each.
    pub fn new(quorums: Quorums, nodes: usize, shards: u16) -> Self {
        let ledgers = vec![vec![None; usize::from(shards)]; nodes];
        Self { quorums, ledgers, forgetful: NodeSet::EMPTY, executed: HashMap::new() }
    }

    /// A shard of a node begins, on what this ledger says.
    pub fn began(&mut self, node: NodeIndex, shard: u16, ledger: SharedLedger) {
        self.ledgers[node.index()][usize::from(shard)] = Some(ledger);
    }

    /// A node came back without what it had.
    pub fn replaced(&mut self, node: NodeIndex) {
        self.forgetful.insert(node);
    }

    /// A node has executed an object up to a slot.
    ///
    /// # Errors
    /// If nobody had executed that before, and a slot of it is not durable at any phase-2 quorum.
    pub fn executed(&mut self, shard: u16, key: u64, name: &[u8], applied: u64) -> Result<(), Violation> {
        let before = self.executed.insert(key, applied).unwrap_or(0);
        if before > applied {
            self.executed.insert(key, before);
        }
        for slot in before + 1..=applied {
            let holds = |node: &NodeIndex| {
                let ledger = self.ledgers[node.index()][usize::from(shard)].as_ref();
                self.forgetful.contains(*node) || ledger.is_none_or(|ledger| ledger.borrow().core.holds(name, slot))
            };
            let nodes = (0..self.ledgers.len()).map(|node| NodeIndex(node as u8));
            let holders: NodeSet = nodes.filter(holds).collect();
            if !self.quorums.is_phase2_quorum(holders) {
                let holders: Vec<u8> = holders.iter().map(|node| node.0).collect();
                let text = format!("slot {slot} of key {key} is executed, and durable at nodes {holders:?} only");
                return Err(Rule::LeftTooEarly.broken(text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        command::{Action, Command, NewCommand},
        protocol::{Outputs, ReadMode, ReplyTo, Request, wpaxos::Config},
        sim::oracle::key_name,
        topology::{Cluster, ZoneIndex},
        tuning::Tuning,
        wire::{self, Kind},
    };

    const ME: NodeIndex = NodeIndex(0);
    const PEER: NodeIndex = NodeIndex(1);

    fn cluster() -> Cluster {
        let address = "127.0.0.1:1".parse().unwrap();
        Cluster::local("test", vec![vec![vec![address]; 3]])
    }

    /// A node of three that has a request and asks for its object, and a ledger of it that has been told nothing.
    fn candidate() -> (WPaxos, Ledger, Outputs) {
        let cluster = cluster();
        let config = Config::new(&cluster, &Tuning::default(), ME, 0, 1).unwrap();
        let config = Config { founded: Some(vec![1, 2, 3]), ..config };
        let mut core = WPaxos::new(config, Micros(0));
        let mut ledger = Ledger::new(core.clone(), Micros(0));
        let mut out = Outputs::new(3);
        core.on_link_up(Micros(0), PEER, 2, &mut out);
        core.flush(Micros(0), &mut out);
        ledger.write(&out.records);
        out.clear();
        let mut bytes = Vec::new();
        let key = key_name(7);
        let command = NewCommand { client: 1, id: 1, retry: false, key: &key, action: Action::Put(b"v") };
        command.encode(&mut bytes).unwrap();
        let frame = Bytes::from(bytes);
        let (zone, read, command) = (ZoneIndex(0), ReadMode::Confirm, Command::parse(&frame).unwrap());
        let request = Request { reply_to: ReplyTo(1), zone, read, command, frame: &frame };
        core.on_request(Micros(1), request, &mut out);
        core.flush(Micros(1), &mut out);
        (core, ledger, out)
    }

    fn prepare(out: &Outputs) -> Frame {
        let frames = out.sends.iter().map(|send| wire::parse(send.frame.clone()).unwrap());
        frames.into_iter().find(|frame| frame.kind == Kind::Prepare).expect("it asks")
    }

    #[test]
    fn a_prepare_may_leave_when_its_record_is_durable_and_not_before() {
        let (_, mut ledger, out) = candidate();
        ledger.write(&out.records);
        let early = ledger.left(ME, PEER, &prepare(&out)).unwrap_err();
        assert_eq!(early.rule, Rule::LeftTooEarly);
        assert!(early.text.contains("a Prepare: it rests on a promise"), "{}", early.text);
        ledger.advance(out.records.last().unwrap().id);
        ledger.left(ME, PEER, &prepare(&out)).unwrap();
    }

    #[test]
    fn what_cannot_be_read_back_is_found() {
        let (_, mut ledger, mut out) = candidate();
        let broken = out.records.last_mut().unwrap();
        broken.frame = wire::frame(Kind::Prepare, 0, 1, b"no head");
        ledger.write(&out.records);
        ledger.advance(out.records.last().unwrap().id);
        let refused = ledger.left(ME, PEER, &prepare(&out)).unwrap_err();
        assert_eq!(refused.rule, Rule::Unreadable);
    }

    #[test]
    fn a_slot_that_no_quorum_keeps_is_not_decided() {
        let (core, _, _) = candidate();
        let mut durability = Durability::new(Quorums::new(&cluster()).unwrap(), 3, 1);
        let ledger = || Rc::new(RefCell::new(Ledger::new(core.clone(), Micros(0))));
        durability.began(ME, 0, ledger());
        durability.executed(0, 7, &key_name(7), 1).expect("two of three nodes are not looked into");
        durability.began(PEER, 0, ledger());
        durability.executed(0, 7, &key_name(7), 1).expect("it was executed before");
        let early = durability.executed(0, 7, &key_name(7), 2).unwrap_err();
        assert_eq!(early.rule, Rule::LeftTooEarly);
        durability.replaced(PEER);
        durability.executed(0, 7, &key_name(7), 3).expect("what it had, it has lost");
    }
}
