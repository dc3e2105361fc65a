//! The world of one history: nodes with their logs, links with their delays, and one queue of events in virtual time.
//! It is the driver of the `Protocol` contract, and keeps to it to the letter.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use bytes::Bytes;
use wpaxos::{
    command::Command,
    protocol::{
        IDLE_TICK_US, Micros, Outputs, Protocol, ReadMode, RecordId, ReplyTo, Request,
        wpaxos::{Config, WPaxos},
    },
    topology::{NodeIndex, ZoneIndex},
    wire,
};

use crate::{clients::Clients, faults::Fault, oracle::Oracle, random::Random, setup::Setup};

/// How often a node's time passes while anything is under way.
const TICK_US: u64 = 1000;

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub enum Event {
    Tick(usize, u64),
    Flush(usize),
    Deliver { from: usize, to: usize, connection: u64 },
    Durable(usize, RecordId),
    LinkDown { at: usize, peer: usize, connection: u64 },
    LinkUp { at: usize, peer: usize, connection: u64 },
    Resume(usize),
    Client(u64),
    Patience { operation: usize, attempt: usize },
    Fault(Fault),
}

/// What a node is handed.
#[derive(Clone, Debug)]
enum Input {
    Frame { from: usize, bytes: Bytes },
    Durable(RecordId),
    LinkDown(usize),
    LinkUp(usize, u64),
    Request { token: u64, zone: u8, read: ReadMode, bytes: Bytes },
}

pub struct Node {
    pub core: WPaxos,
    pub dead: bool,
    pub paused_until: u64,
    out: Outputs,
    /// What came while it was paused.
    inbox: VecDeque<Input>,
    clock_offset: u64,
    durable: RecordId,
    durable_at: u64,
    pub disk_stalled_until: u64,
    next_tick: u64,
    tick: u64,
    flush_at: u64,
    /// Per peer the connection that the core knows to be up.
    links: Vec<Option<u64>>,
    /// Per peer the connection that has been announced to the core, or waits in the inbox.
    announced: Vec<Option<u64>>,
    /// Per peer what waits for the log.
    held: Vec<VecDeque<(RecordId, Bytes)>>,
}

/// One direction of a link.
#[derive(Clone, Debug, Default)]
pub struct Direction {
    flying: VecDeque<(u64, Bytes)>,
    last_arrival: u64,
    /// Nothing arrives before.
    pub silent_until: u64,
    /// Every frame takes this much longer, until then.
    pub slow: (u64, u64),
}

/// A pair of nodes: the number of its connection, and whether that is up.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    connection: u64,
    open: bool,
    /// No cut before: both sides have seen this connection come up; no new one before: they have seen the last one go.
    settled_at: u64,
}

pub struct World {
    pub setup: Setup,
    pub random: Random,
    pub now: u64,
    pub nodes: Vec<Node>,
    pub directions: Vec<Direction>,
    pairs: Vec<Pair>,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    order: u64,
    pub healed: bool,
    pub handled: u64,
    pub trace_hash: u64,
    pub clients: Clients,
    pub oracle: Oracle,
    trace: bool,
}

impl World {
    pub fn new(seed: u64, setup: Setup) -> Self {
        let count = setup.nodes();
        let mut random = Random::new(seed, 2);
        let nodes = (0..count).map(|node| Node::new(node, &setup, &mut random)).collect();
        let mut world = Self {
            clients: Clients::new(seed, &setup),
            oracle: Oracle::new(&setup),
            random,
            now: 1_000_000,
            nodes,
            directions: vec![Direction::default(); count * count],
            pairs: vec![Pair::default(); count * count],
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            order: 0,
            healed: false,
            handled: 0,
            trace_hash: 0,
            trace: std::env::var_os("WPAXOS_MODEL_TRACE").is_some(),
            setup,
        };
        for a in 0..count {
            world.schedule_tick(a, world.now);
            for b in 0..a {
                world.open(a, b, 2000);
            }
        }
        world
    }

    /// Says what happens, if somebody wants to see it.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>9} {}", self.now - 1_000_000, what());
        }
    }

    pub fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| !self.nodes[*node].dead)
    }

    /// A number larger than any it gave before: the clock of the clients' history.
    pub fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    pub fn at(&mut self, time: u64, event: Event) {
        let order = self.next_order();
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.queue.push(Reverse((time.max(self.now), order, place)));
    }

    /// Runs everything up to `until`, or until `done` says so.
    pub fn run(&mut self, until: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let mut since_check = 0;
        while let Some(&Reverse((time, _, place))) = self.queue.peek() {
            if time > until {
                break;
            }
            self.queue.pop();
            self.now = time;
            let event = self.events[place].take().expect("queued once");
            self.free.push(place);
            self.handle(event);
            since_check += 1;
            if since_check >= 64 {
                since_check = 0;
                if done(self) {
                    return true;
                }
            }
        }
        self.now = until;
        done(self)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(node, tick) => self.on_tick(node, tick),
            Event::Flush(node) => {
                if self.nodes[node].flush_at == self.now {
                    self.nodes[node].flush_at = 0;
                    if self.is_running(node) {
                        self.flush(node);
                    }
                }
            }
            Event::Deliver { from, to, connection } => self.deliver(from, to, connection),
            Event::Durable(node, record) => self.input(node, Input::Durable(record)),
            Event::LinkDown { at, peer, connection } => {
                if self.nodes[at].announced[peer] == Some(connection) {
                    self.nodes[at].announced[peer] = None;
                    self.input(at, Input::LinkDown(peer));
                }
            }
            Event::LinkUp { at, peer, connection } => {
                let pair = self.pairs[self.pair(at, peer)];
                if pair.open && pair.connection == connection {
                    self.nodes[at].announced[peer] = Some(connection);
                    self.input(at, Input::LinkUp(peer, connection));
                    self.at(self.now, Event::Deliver { from: peer, to: at, connection });
                }
            }
            Event::Resume(node) => self.resume_node(node),
            Event::Client(client) => self.on_client(client),
            Event::Patience { operation, attempt } => self.on_patience(operation, attempt),
            Event::Fault(fault) => self.on_fault(fault),
        }
    }

    fn is_running(&self, node: usize) -> bool {
        !self.nodes[node].dead && self.nodes[node].paused_until <= self.now
    }

    /// A request of a client of this node.
    pub fn request(&mut self, node: usize, token: u64, zone: u8, read: ReadMode, bytes: Bytes) {
        self.input(node, Input::Request { token, zone, read, bytes });
    }

    fn input(&mut self, node: usize, input: Input) {
        if self.nodes[node].dead {
            return;
        }
        if !self.is_running(node) || !self.nodes[node].inbox.is_empty() {
            self.nodes[node].inbox.push_back(input);
            return;
        }
        self.apply(node, input);
        let longer = self.setup.long_turn_permille;
        if self.random.permille(longer) {
            let later = self.now + self.random.range(1, 300);
            self.flush_later(node, later);
        } else {
            self.flush(node);
        }
    }

    fn apply(&mut self, place: usize, input: Input) {
        self.handled += 1;
        let is_link = matches!(input, Input::LinkDown(_) | Input::LinkUp(..));
        if is_link {
            // What the turn so far wanted to send belongs to the old connection.
            self.flush(place);
        }
        if let Input::Frame { from, bytes } = &input {
            self.say(|| format!("{place} <- {from} {}", crate::trace::describe(bytes)));
        }
        let now = self.clock(place);
        let node = &mut self.nodes[place];
        match input {
            Input::Frame { from, bytes } => {
                let frame = wire::parse(bytes).expect("frames arrive as they were sent");
                let result = node.core.on_frame(now, NodeIndex(from as u8), &frame, &mut node.out);
                assert_eq!(result, Ok(()), "node {place} refuses a {:?} frame of node {from}", frame.kind);
            }
            Input::Durable(record) => {
                assert!(record > node.durable, "records become durable in order");
                node.durable = record;
                node.core.on_durable(now, record, &mut node.out);
            }
            Input::LinkDown(peer) => {
                node.links[peer] = None;
                node.held[peer].clear();
                node.core.on_link_down(now, NodeIndex(peer as u8), &mut node.out);
            }
            Input::LinkUp(peer, connection) => {
                node.links[peer] = Some(connection);
                node.core.on_link_up(now, NodeIndex(peer as u8), &mut node.out);
            }
            Input::Request { token, zone, read, bytes } => {
                let command = Command::parse(&bytes).expect("clients send commands");
                let zone = ZoneIndex(zone);
                let request = Request { reply_to: ReplyTo(token), zone, read, command, frame: &bytes };
                node.core.on_request(now, request, &mut node.out);
            }
        }
        let durable = node.durable;
        self.after_input(place);
        self.release(place, durable);
    }

    fn after_input(&mut self, place: usize) {
        self.nodes[place].core.check_invariants();
        self.oracle.observe(place, &self.nodes[place].core);
        self.take_replies(place);
    }

    fn take_replies(&mut self, place: usize) {
        if self.nodes[place].out.replies.is_empty() {
            return;
        }
        let mut out = std::mem::take(&mut self.nodes[place].out);
        for reply in out.replies.drain(..) {
            let value = out.value_bytes[reply.value.clone()].to_vec();
            self.on_reply(place, &reply, &value);
        }
        out.value_bytes.clear();
        self.nodes[place].out = out;
    }

    fn on_tick(&mut self, place: usize, tick: u64) {
        if self.nodes[place].dead || self.nodes[place].tick != tick {
            return;
        }
        if self.is_running(place) {
            self.handled += 1;
            let now = self.clock(place);
            let node = &mut self.nodes[place];
            node.core.on_tick(now, &mut node.out);
            self.after_input(place);
            self.flush(place);
        }
        let idle = self.nodes[place].core.is_idle();
        let wait = if idle { IDLE_TICK_US } else { TICK_US };
        let wait = self.random.range(wait / 2, wait);
        self.schedule_tick(place, self.now + wait);
    }

    fn schedule_tick(&mut self, place: usize, time: u64) {
        let node = &mut self.nodes[place];
        node.tick += 1;
        node.next_tick = time;
        let tick = node.tick;
        self.at(time, Event::Tick(place, tick));
    }

    fn flush_later(&mut self, place: usize, time: u64) {
        let node = &mut self.nodes[place];
        if node.flush_at == 0 || node.flush_at > time {
            node.flush_at = time;
            self.at(time, Event::Flush(place));
        }
    }

    /// Ends a turn as the contract says.
    fn flush(&mut self, place: usize) {
        loop {
            let now = self.clock(place);
            self.set_room(place);
            let node = &mut self.nodes[place];
            node.core.flush(now, &mut node.out);
            self.after_input(place);
            if !self.take_records(place) {
                break;
            }
        }
        self.take_sends(place);
        let node = &self.nodes[place];
        if let Some(at) = node.core.flush_at() {
            let at = (at.0 - node.clock_offset).max(self.now + 1);
            self.flush_later(place, at);
        }
        if !self.nodes[place].core.is_idle() && self.nodes[place].next_tick > self.now + TICK_US {
            self.schedule_tick(place, self.now + TICK_US);
        }
    }

    fn set_room(&mut self, place: usize) {
        for peer in 0..self.nodes.len() {
            let little = !self.healed && self.random.permille(self.setup.no_room_permille);
            let room = if little { self.random.below(700) as usize } else { usize::MAX };
            self.nodes[place].out.room[peer] = room;
        }
    }

    /// Appends to the log. True if that made something durable at once, so that the turn goes on.
    fn take_records(&mut self, place: usize) -> bool {
        let Some(last) = self.nodes[place].out.records.last().map(|record| record.id) else { return false };
        let first = self.nodes[place].out.records[0].id.0;
        let ids = self.nodes[place].out.records.iter().map(|record| record.id.0);
        assert!(ids.eq(first..=last.0), "records come without gaps");
        self.nodes[place].out.records.clear();
        if self.setup.disk_us == 0 {
            let now = self.clock(place);
            let node = &mut self.nodes[place];
            node.durable = last;
            node.core.on_durable(now, last, &mut node.out);
            self.after_input(place);
            return true;
        }
        let takes = self.random.skewed(1, self.setup.disk_us);
        let node = &mut self.nodes[place];
        let at = (self.now + takes).max(node.durable_at + 1).max(node.disk_stalled_until);
        node.durable_at = at;
        self.at(at, Event::Durable(place, last));
        false
    }

    fn take_sends(&mut self, place: usize) {
        let mut sends = std::mem::take(&mut self.nodes[place].out.sends);
        for send in sends.drain(..) {
            let to = send.to.index();
            assert!(to != place, "nobody sends to itself");
            self.trace_hash = self.trace_hash.rotate_left(5) ^ u64::from(crc32c::crc32c(&send.frame));
            self.say(|| format!("{place} -> {to} {}", crate::trace::describe(&send.frame)));
            if self.nodes[place].links[to].is_some() {
                self.nodes[place].held[to].push_back((send.after, send.frame));
            }
        }
        self.nodes[place].out.sends = sends;
        let durable = self.nodes[place].durable;
        self.release(place, durable);
    }

    /// Puts on the links what waits for no record any more; a frame that waits holds back those behind it.
    fn release(&mut self, place: usize, durable: RecordId) {
        for to in 0..self.nodes.len() {
            while self.nodes[place].held[to].front().is_some_and(|(after, _)| *after <= durable) {
                let (_, frame) = self.nodes[place].held[to].pop_front().expect("just seen");
                self.launch(place, to, frame);
            }
        }
    }

    fn launch(&mut self, from: usize, to: usize, frame: Bytes) {
        let pair = self.pairs[self.pair(from, to)];
        let Some(connection) = self.nodes[from].links[to] else { return };
        if !pair.open || pair.connection != connection {
            return;
        }
        let near = self.setup.is_near(NodeIndex(from as u8), NodeIndex(to as u8));
        let usual = if near { self.setup.near_us } else { self.setup.far_us };
        let takes = usual / 2 + self.random.skewed(1, usual * 2);
        let now = self.now;
        let direction = self.direction(from, to);
        let slow = if direction.slow.0 > now { direction.slow.1 } else { 0 };
        let arrival = (now + takes + slow).max(direction.last_arrival + 1);
        direction.last_arrival = arrival;
        direction.flying.push_back((arrival, frame));
        self.at(arrival, Event::Deliver { from, to, connection });
    }

    fn deliver(&mut self, from: usize, to: usize, connection: u64) {
        let pair = self.pairs[self.pair(from, to)];
        if !pair.open || pair.connection != connection || self.nodes[to].announced[from] != Some(connection) {
            return;
        }
        let now = self.now;
        let direction = self.direction(from, to);
        if direction.silent_until > now {
            let until = direction.silent_until;
            if direction.flying.front().is_some_and(|(arrival, _)| *arrival <= now) {
                self.at(until, Event::Deliver { from, to, connection });
            }
            return;
        }
        while let Some((arrival, _)) = self.direction(from, to).flying.front()
            && *arrival <= now
        {
            let (_, bytes) = self.direction(from, to).flying.pop_front().expect("just seen");
            self.input(to, Input::Frame { from, bytes });
        }
    }

    pub fn direction(&mut self, from: usize, to: usize) -> &mut Direction {
        let place = from * self.nodes.len() + to;
        &mut self.directions[place]
    }

    /// Lets frames arrive that a silence has held up.
    pub fn wake(&mut self, a: usize, b: usize) {
        let connection = self.pairs[self.pair(a, b)].connection;
        self.at(self.now, Event::Deliver { from: a, to: b, connection });
        self.at(self.now, Event::Deliver { from: b, to: a, connection });
    }

    fn pair(&self, a: usize, b: usize) -> usize {
        a.max(b) * self.nodes.len() + a.min(b)
    }

    /// Makes a new connection, which each side sees within `within_us`.
    pub fn open(&mut self, a: usize, b: usize, within_us: u64) {
        if self.nodes[a].dead || self.nodes[b].dead {
            return;
        }
        let place = self.pair(a, b);
        if self.pairs[place].open {
            return;
        }
        if self.pairs[place].settled_at > self.now {
            self.at(self.pairs[place].settled_at, Event::Fault(Fault::Mend(a, b)));
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let now = self.now;
            let direction = self.direction(from, to);
            (direction.last_arrival, direction.slow) = (now, (0, 0));
            assert!(direction.flying.is_empty(), "a connection starts empty");
        }
        let pair = &mut self.pairs[place];
        pair.connection += 1;
        pair.open = true;
        pair.settled_at = self.now + within_us;
        let connection = pair.connection;
        for (at, peer) in [(a, b), (b, a)] {
            let time = self.now + self.random.below(within_us);
            self.at(time, Event::LinkUp { at, peer, connection });
        }
    }

    /// Cuts a connection: everything under way is lost; each side sees it a little later. False if there is none.
    pub fn cut(&mut self, a: usize, b: usize) -> bool {
        let place = self.pair(a, b);
        let pair = &mut self.pairs[place];
        if !pair.open || pair.settled_at >= self.now {
            return false;
        }
        pair.open = false;
        pair.settled_at = self.now + 1000;
        let connection = pair.connection;
        self.direction(a, b).flying.clear();
        self.direction(b, a).flying.clear();
        for (at, peer) in [(a, b), (b, a)] {
            let time = self.now + self.random.below(900);
            self.at(time, Event::LinkDown { at, peer, connection });
        }
        true
    }

    pub fn kill(&mut self, node: usize) {
        self.say(|| format!("node {node} dies"));
        self.nodes[node].dead = true;
        self.nodes[node].inbox.clear();
        for peer in 0..self.nodes.len() {
            if peer != node {
                let place = self.pair(node, peer);
                self.pairs[place].settled_at = 0;
                self.cut(node, peer);
            }
        }
    }

    pub fn pause(&mut self, node: usize, until: u64) {
        let paused = &mut self.nodes[node].paused_until;
        *paused = until.max(*paused);
        self.at(until, Event::Resume(node));
    }

    fn resume_node(&mut self, node: usize) {
        if !self.is_running(node) {
            return;
        }
        // One long turn, as after a stopped process.
        while let Some(input) = self.nodes[node].inbox.pop_front() {
            self.apply(node, input);
        }
        self.flush(node);
    }

    fn clock(&self, node: usize) -> Micros {
        Micros(self.now + self.nodes[node].clock_offset)
    }
}

impl Node {
    fn new(node: usize, setup: &Setup, random: &mut Random) -> Self {
        let incarnation = random.next() | 1;
        let config = Config::new(&setup.cluster, &setup.tuning, NodeIndex(node as u8), 0, incarnation);
        let clock_offset = random.below(1 << 40);
        let config = config.expect("the quorums were checked");
        Self {
            core: WPaxos::new(config, Micros(1_000_000 + clock_offset)),
            dead: false,
            paused_until: 0,
            out: Outputs::new(setup.nodes()),
            inbox: VecDeque::new(),
            clock_offset,
            durable: RecordId(0),
            durable_at: 0,
            disk_stalled_until: 0,
            next_tick: 0,
            tick: 0,
            flush_at: 0,
            links: vec![None; setup.nodes()],
            announced: vec![None; setup.nodes()],
            held: vec![VecDeque::new(); setup.nodes()],
        }
    }
}
