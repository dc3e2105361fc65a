//! One state of a small world, and what can happen in it. This is a driver of the `Protocol` contract: every input is a
//! turn of its own, ended by `flush` until that writes no more records.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use wpaxos::{
    command::{Action, Command, NewCommand},
    protocol::{Micros, Outputs, Protocol, ReadMode, RecordId, ReplyTo, Request, wpaxos::WPaxos},
    topology::{NodeIndex, ZoneIndex},
    wire::{self, Frame, Kind},
};

use crate::{
    oracle::{History, View, Vote, Wrong},
    setup::{Act, Setup},
};

/// What can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The next frame of a link arrives.
    Deliver { from: usize, to: usize },
    /// A request comes.
    Ask(usize),
    /// What a node appended to its log in its oldest unfinished turn becomes durable.
    Durable(usize),
    /// Time passes at a node.
    Tick(usize),
    /// A node sees that its connection to a peer is gone; what was on the way to it is lost.
    Down { at: usize, peer: usize },
    /// A node sees the next connection to a peer.
    Up { at: usize, peer: usize },
    /// A node stops for good.
    Crash(usize),
}

/// What one turn appended to a log, and what was accepted in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Append {
    first: RecordId,
    last: RecordId,
    votes: Vec<Vote>,
}

/// A node with what its driver keeps for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub core: WPaxos,
    pub ticks: u8,
    /// Per peer whether its connection is up, as this node sees it.
    up: Vec<bool>,
    log: VecDeque<Append>,
    /// Per peer what waits for the log.
    held: Vec<VecDeque<(RecordId, Parcel)>>,
}

/// A frame on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel(pub Frame);

impl Hash for Parcel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The rest is read off the bytes.
        self.0.bytes.hash(state);
    }
}

/// Something shared by many states, hashed once.
#[derive(Debug)]
pub struct Shared<T>(Arc<(u64, T)>);

impl<T: Hash> Shared<T> {
    pub fn new(inner: T) -> Self {
        let mut hasher = DefaultHasher::new();
        inner.hash(&mut hasher);
        Self(Arc::new((hasher.finish(), inner)))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.0.hash(state);
    }
}

/// How a request stands. `before` are the requests that were answered when it came, as bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    NotYet,
    Open { before: u8 },
    Answered { before: u8, answer: Answer },
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    pub status: wpaxos::command::Status,
    pub version: u64,
    /// The request whose value was read.
    pub value: Option<u8>,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct World {
    pub nodes: Vec<Shared<Node>>,
    pub dead: Vec<bool>,
    /// By sender and receiver: what is on the way.
    pub links: Vec<VecDeque<Parcel>>,
    /// By the larger and the smaller of two nodes: whether their connection is lost, and one of them has not seen it.
    broken: Vec<bool>,
    pub asked: Vec<Asked>,
    losses: u8,
    pub history: Shared<History>,
    pub wrong: Option<Wrong>,
}

/// A turn of one node: what it changes, until it is put back.
struct Turn<'a> {
    setup: &'a Setup,
    place: usize,
    node: Node,
    history: History,
    view: View,
    votes: Vec<Vote>,
    out: Outputs,
}

impl World {
    /// All links are up, and nothing is on the way.
    pub fn new(setup: &Setup) -> Self {
        let count = setup.nodes();
        let node = |place| Node {
            core: setup.core(place),
            ticks: 0,
            up: vec![false; count],
            log: VecDeque::new(),
            held: vec![VecDeque::new(); count],
        };
        let mut world = Self {
            nodes: (0..count).map(|place| Shared::new(node(place))).collect(),
            dead: vec![false; count],
            links: vec![VecDeque::new(); count * count],
            broken: vec![false; count * count],
            asked: vec![Asked::NotYet; setup.asks.len()],
            losses: 0,
            history: Shared::new(History::default()),
            wrong: None,
        };
        world.calm_down(&Setup { deaf: Vec::new(), ..setup.clone() });
        world.losses = setup.losses;
        world
    }

    /// Brings links up and lets everything arrive, in some order, until nothing moves.
    pub fn calm_down(&mut self, setup: &Setup) {
        let mut steps = Vec::new();
        for _ in 0..2000 {
            steps.clear();
            self.link_steps(setup, &mut steps);
            self.frame_steps(setup, &mut steps);
            let Some(step) = steps.first() else { return };
            self.take(setup, *step);
            if self.wrong.is_some() {
                return;
            }
        }
        panic!("{steps:?} go on for ever");
    }

    /// Everything that can happen next.
    pub fn steps(&self, setup: &Setup, steps: &mut Vec<Step>) {
        if self.wrong.is_some() {
            return;
        }
        self.frame_steps(setup, steps);
        let asks = (0..setup.asks.len()).filter(|number| self.may_ask(setup, *number));
        steps.extend(asks.map(Step::Ask));
        self.link_steps(setup, steps);
        self.fault_steps(setup, steps);
    }

    fn frame_steps(&self, setup: &Setup, steps: &mut Vec<Step>) {
        for to in self.live() {
            for from in 0..self.nodes.len() {
                let moves = !self.links[self.link(from, to)].is_empty() && self.nodes[to].up[from];
                if moves && !setup.are_deaf(from, to) {
                    steps.push(Step::Deliver { from, to });
                }
            }
            if !self.nodes[to].log.is_empty() {
                steps.push(Step::Durable(to));
            }
        }
    }

    fn link_steps(&self, _setup: &Setup, steps: &mut Vec<Step>) {
        for at in self.live() {
            for peer in (0..self.nodes.len()).filter(|peer| *peer != at) {
                let broken = self.broken[self.pair(at, peer)];
                if self.nodes[at].up[peer] {
                    if broken {
                        steps.push(Step::Down { at, peer });
                    }
                } else if !broken && !self.dead[peer] {
                    steps.push(Step::Up { at, peer });
                }
            }
        }
    }

    fn fault_steps(&self, setup: &Setup, steps: &mut Vec<Step>) {
        for at in self.live() {
            let node = &self.nodes[at];
            let may_tick = node.ticks < setup.ticks && (setup.mortal.is_empty() || self.dead.contains(&true));
            if may_tick && (!node.core.is_idle() || self.misses_somebody(at)) {
                steps.push(Step::Tick(at));
            }
            if self.losses > 0 {
                let whole =
                    |peer: &usize| node.up[*peer] && self.nodes[*peer].up[at] && !self.broken[self.pair(at, *peer)];
                steps.extend((0..self.nodes.len()).filter(whole).map(|peer| Step::Down { at, peer }));
            }
        }
        if !self.dead.contains(&true) {
            steps.extend(setup.mortal.iter().map(|node| Step::Crash(*node)));
        }
    }

    fn misses_somebody(&self, at: usize) -> bool {
        (0..self.nodes.len()).any(|peer| peer != at && !self.nodes[at].up[peer])
    }

    fn may_ask(&self, setup: &Setup, number: usize) -> bool {
        let ask = &setup.asks[number];
        let ready = ask.after.is_none_or(|after| matches!(self.asked[after], Asked::Answered { .. }));
        self.asked[number] == Asked::NotYet && ready && !self.dead[ask.node]
    }

    pub fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| !self.dead[*node])
    }

    fn link(&self, from: usize, to: usize) -> usize {
        from * self.nodes.len() + to
    }

    fn pair(&self, a: usize, b: usize) -> usize {
        a.max(b) * self.nodes.len() + a.min(b)
    }

    /// What this step makes of the state.
    pub fn take(&mut self, setup: &Setup, step: Step) {
        match step {
            Step::Deliver { from, to } => {
                let link = self.link(from, to);
                let Parcel(frame) = self.links[link].pop_front().expect("something is on the way");
                self.turn(setup, to, |turn, now| {
                    let peer = NodeIndex(from as u8);
                    let result = turn.node.core.on_frame(now, peer, &frame, &mut turn.out);
                    assert_eq!(result, Ok(()), "node {to} refuses a {:?} frame of node {from}", frame.kind);
                });
            }
            Step::Ask(number) => self.ask(setup, number),
            Step::Durable(at) => self.turn(setup, at, |turn, now| {
                let Append { last, votes, .. } = turn.node.log.pop_front().expect("something was appended");
                turn.history.count(at, votes);
                turn.node.core.on_durable(now, last, &mut turn.out);
            }),
            Step::Tick(at) => {
                let mut node = (*self.nodes[at]).clone();
                node.ticks += 1;
                self.nodes[at] = Shared::new(node);
                self.turn(setup, at, |turn, now| turn.node.core.on_tick(now, &mut turn.out));
            }
            Step::Down { at, peer } => self.see_down(setup, at, peer),
            Step::Up { at, peer } => self.turn(setup, at, |turn, now| {
                turn.node.up[peer] = true;
                turn.node.core.on_link_up(now, NodeIndex(peer as u8), 100 + peer as u64, &mut turn.out);
            }),
            Step::Crash(at) => self.crash(at),
        }
    }

    fn ask(&mut self, setup: &Setup, number: usize) {
        let answered = self.asked.iter().enumerate().filter(|(_, asked)| matches!(asked, Asked::Answered { .. }));
        let before = answered.fold(0, |bits, (place, _)| bits | 1 << place);
        self.asked[number] = Asked::Open { before };
        let ask = setup.asks[number];
        let (read, action) = match ask.act {
            Act::Put => (ReadMode::Confirm, Action::Put(&[number as u8])),
            Act::Get => (ReadMode::Confirm, Action::Get),
            Act::LogGet => (ReadMode::Log, Action::Get),
        };
        let key = [b'a' + ask.key];
        let command = NewCommand { client: 1 + number as u64, id: 1, retry: false, key: &key, action };
        let mut bytes = Vec::new();
        command.encode(&mut bytes).expect("a short command");
        let frame = wire::parse(wire::frame(Kind::Request, 0, 0, &bytes)).expect("just made");
        let zone = ZoneIndex(setup.cluster.nodes[ask.node].zone.0);
        self.turn(setup, ask.node, |turn, now| {
            let command = Command::parse(frame.body()).expect("just encoded");
            let reply_to = ReplyTo(number as u64);
            let request = Request { reply_to, zone, read, command, frame: &frame.bytes };
            turn.node.core.on_request(now, request, &mut turn.out);
        });
    }

    fn see_down(&mut self, setup: &Setup, at: usize, peer: usize) {
        let (pair, link) = (self.pair(at, peer), self.link(peer, at));
        if !self.broken[pair] {
            self.losses -= 1;
        }
        // Both have seen it now, or only this one.
        self.broken[pair] = self.nodes[peer].up[at] || self.dead[peer];
        self.links[link].clear();
        self.turn(setup, at, |turn, now| {
            turn.node.up[peer] = false;
            turn.node.held[peer].clear();
            turn.node.core.on_link_down(now, NodeIndex(peer as u8), &mut turn.out);
        });
    }

    /// What it has sent may still arrive; what is sent to it does not matter.
    fn crash(&mut self, at: usize) {
        self.dead[at] = true;
        for peer in (0..self.nodes.len()).filter(|peer| *peer != at) {
            let (pair, link) = (self.pair(at, peer), self.link(peer, at));
            self.broken[pair] = true;
            self.links[link].clear();
        }
    }

    /// One input at a node, and the end of its turn.
    fn turn(&mut self, setup: &Setup, place: usize, input: impl FnOnce(&mut Turn<'_>, Micros)) {
        let node = (*self.nodes[place]).clone();
        let now = setup.clock(node.ticks);
        let mut turn = Turn {
            setup,
            place,
            view: View::of(&node.core),
            node,
            history: (*self.history).clone(),
            votes: Vec::new(),
            out: Outputs::new(self.nodes.len()),
        };
        input(&mut turn, now);
        turn.observe();
        loop {
            turn.node.core.flush(now, &mut turn.out);
            turn.observe();
            if !turn.append(now) {
                break;
            }
        }
        assert!(turn.node.core.flush_at().is_none_or(|at| at > now), "nothing is left for the next turn");
        turn.release();
        self.put_back(turn);
    }

    fn put_back(&mut self, turn: Turn<'_>) {
        let Turn { setup, place, node, mut history, mut out, .. } = turn;
        for send in out.sends.drain(..) {
            let to = send.to.index();
            // Into nowhere, if the peer has seen this connection go.
            let lost = self.dead[to] || (self.broken[self.pair(place, to)] && !self.nodes[to].up[place]);
            if !lost {
                let link = self.link(place, to);
                self.links[link].push_back(Parcel(wire::parse(send.frame).expect("a whole frame")));
            }
        }
        for reply in out.replies.drain(..) {
            let ReplyTo(number) = reply.to;
            let value = out.value_bytes[reply.value.clone()].first().copied();
            let answer = Answer { status: reply.status, version: reply.version, value };
            history.answer(setup, &mut self.asked, number as usize, place, answer);
        }
        self.wrong = history.wrong.take();
        self.nodes[place] = Shared::new(node);
        self.history = Shared::new(history);
        if self.wrong.is_none() {
            self.wrong = History::compare(setup, self);
        }
    }
}

impl Turn<'_> {
    /// Looks at what the last input made of the node.
    fn observe(&mut self) {
        self.node.core.check_invariants();
        let after = View::of(&self.node.core);
        let votes = self.history.observe(self.setup, self.place, &self.view, &after);
        if self.setup.slow_log {
            self.votes.extend(votes);
        } else {
            self.history.count(self.place, votes);
        }
        self.history.check_decisions(self.setup, self.place, &self.view, &after);
        self.view = after;
    }

    /// Writes the records down. True if that made them durable, so that the turn goes on.
    fn append(&mut self, now: Micros) -> bool {
        let (Some(first), Some(last)) = (self.out.records.first(), self.out.records.last()) else { return false };
        let (first, last) = (first.id, last.id);
        self.out.records.clear();
        if self.setup.slow_log {
            self.node.log.push_back(Append { first, last, votes: std::mem::take(&mut self.votes) });
            return false;
        }
        self.node.core.on_durable(now, last, &mut self.out);
        self.observe();
        true
    }

    /// Keeps back what waits for the log, and what is behind it on the same link.
    fn release(&mut self) {
        if !self.setup.slow_log {
            return;
        }
        let missing = self.node.log.front().map_or(RecordId(u64::MAX), |append| append.first);
        for send in self.out.sends.drain(..) {
            let to = send.to.index();
            if self.node.up[to] {
                let frame = wire::parse(send.frame).expect("a whole frame");
                self.node.held[to].push_back((send.after, Parcel(frame)));
            }
        }
        for (to, held) in self.node.held.iter_mut().enumerate() {
            while held.front().is_some_and(|(after, _)| *after < missing) {
                let (after, Parcel(frame)) = held.pop_front().expect("just seen");
                self.out.sends.push(wpaxos::protocol::Send { to: NodeIndex(to as u8), frame: frame.bytes, after });
            }
        }
    }
}

impl World {
    /// Whether nothing moves, and everything has been asked that can be.
    pub fn is_quiet(&self, setup: &Setup) -> bool {
        let mut steps = Vec::new();
        self.frame_steps(setup, &mut steps);
        self.link_steps(setup, &mut steps);
        steps.is_empty() && !(0..setup.asks.len()).any(|number| self.may_ask(setup, number))
    }

    /// Time passes until everything is done. True if it gets there.
    pub fn rest(&mut self, setup: &Setup) -> bool {
        for _ in 0..20 {
            if self.is_done(setup) {
                return true;
            }
            for at in 0..self.nodes.len() {
                if !self.dead[at] {
                    self.take(setup, Step::Tick(at));
                }
            }
            self.calm_down(setup);
        }
        self.is_done(setup)
    }

    fn is_done(&self, setup: &Setup) -> bool {
        let waits =
            |number: usize| matches!(self.asked[number], Asked::Open { .. }) && !self.dead[setup.asks[number].node];
        if (0..setup.asks.len()).any(waits) {
            return false;
        }
        // What a dead owner had committed, and told only some, the others learn when somebody uses the object.
        let equal = |node: usize| View::of(&self.nodes[node].core).is_like(&View::of(&self.nodes[0].core));
        self.dead.contains(&true) || (0..self.nodes.len()).all(equal)
    }

    /// What arrives next.
    pub fn next_frame(&self, from: usize, to: usize) -> &Frame {
        &self.links[self.link(from, to)].front().expect("something is on the way").0
    }
}
