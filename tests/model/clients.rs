//! Clients: what they ask, whom, how often, and what they have learned of each operation.

use bytes::Bytes;
use wpaxos::{
    command::{Action, Expect, NewCommand, Status},
    protocol::{ReadMode, Reply, ReplyTo},
};

use crate::{
    linear::{Act, Operation, Outcome},
    oracle::key_name,
    random::Random,
    setup::{Setup, Weather},
    world::{Event, World},
};

/// By this time all links of a new cluster are up; it begins at a second.
const FORMED_US: u64 = 1_050_000;

/// How often a client asks for one operation.
const ATTEMPTS_MAX: usize = 4;

/// How far a client's ids run ahead of its oldest open one: a session judges the last 64.
const IDS_AHEAD_MAX: u64 = 50;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    Open,
    Refused,
    Doubtful,
    Executed,
}

struct Client {
    zone: u8,
    next_id: u64,
    /// How many operations it has under way at most.
    depth: usize,
    current: Vec<usize>,
    /// By key the value and version that it saw last.
    last: Vec<(u64, u64)>,
}

pub struct Asked {
    client: u64,
    id: u64,
    pub key: u64,
    pub act: Act,
    read: ReadMode,
    called: u64,
    returned: u64,
    outcome: Outcome,
    attempts: Vec<Attempt>,
    /// It must be executed.
    must: bool,
}

struct Token {
    operation: usize,
    attempt: usize,
    node: usize,
    answered: bool,
}

pub struct Clients {
    random: Random,
    list: Vec<Client>,
    pub operations: Vec<Asked>,
    tokens: Vec<Token>,
    /// No new operations.
    pub closed: bool,
}

/// The number that a value carries.
pub fn value_number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().expect("the model's values have 8 bytes and more"))
}

fn value_bytes(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(8 + number as usize * 7 % 50, 0xab);
    bytes
}

impl Clients {
    pub fn new(seed: u64, setup: &Setup) -> Self {
        let mut random = Random::new(seed, 3);
        // The last one asks when everything is healed.
        let list = (0..=setup.clients).map(|_| Client {
            zone: random.below(setup.cluster.zones.len() as u64) as u8,
            next_id: 1,
            depth: *random.pick(&[1, 1, 1, 3]),
            current: Vec::new(),
            last: vec![(0, 0); setup.keys() as usize],
        });
        let list = list.collect();
        Self { random, list, operations: Vec::new(), tokens: Vec::new(), closed: false }
    }

    /// Whether nobody waits for anything: at a node that lives.
    pub fn waiting(&self, is_live: impl Fn(usize) -> bool) -> usize {
        self.tokens.iter().filter(|token| !token.answered && is_live(token.node)).count()
    }

    /// Whether no client wants anything more.
    pub fn are_done(&self) -> bool {
        self.list.iter().all(|client| client.current.is_empty())
    }

    pub fn executed(&self) -> usize {
        self.operations.iter().filter(|asked| asked.outcome != Outcome::Unknown).count()
    }

    /// What is known of the operations on one key. Refused ones are left out: they did not happen.
    pub fn history(&self, key: u64) -> Vec<Operation> {
        let of_key = self.operations.iter().filter(|asked| asked.key == key);
        let counts =
            of_key.filter(|asked| asked.outcome != Outcome::Unknown || (asked.act != Act::Get && !asked.is_refused()));
        let operation = |asked: &Asked| Operation {
            act: asked.act,
            called: asked.called,
            returned: asked.returned,
            outcome: asked.outcome,
        };
        counts.map(operation).collect()
    }

    /// Values of operations that cannot have happened.
    pub fn refused_values(&self) -> impl Iterator<Item = u64> {
        let refused = self.operations.iter().enumerate().filter(|(_, asked)| asked.is_refused());
        refused.map(|(number, _)| number as u64 + 1)
    }
}

impl Asked {
    fn is_refused(&self) -> bool {
        self.attempts.iter().all(|attempt| *attempt == Attempt::Refused)
    }
}

impl World {
    pub fn begin_clients(&mut self) {
        for client in 0..self.setup.clients {
            let wait = self.clients.random.range(1, 8000);
            self.at(self.now + wait, Event::Client(client));
        }
    }

    /// A client begins an operation, unless it has enough of them under way.
    pub fn on_client(&mut self, client: u64) {
        let state = &self.clients.list[client as usize];
        let full = self.clients.operations.len() >= self.setup.operations;
        if self.clients.closed || full || state.current.len() >= state.depth {
            return;
        }
        let oldest = state.current.iter().map(|operation| self.clients.operations[*operation].id).min();
        if oldest.is_some_and(|oldest| oldest + IDS_AHEAD_MAX < state.next_id) {
            return;
        }
        let more = state.current.len() + 1 < state.depth;
        let (key, act, read) = self.choose(client);
        let operation = self.begin(client, key, act, read, false);
        let node = self.first_node(client);
        self.ask(operation, node);
        if more {
            self.think(client);
        }
    }

    fn think(&mut self, client: u64) {
        let wait = 1 + self.clients.random.below(self.setup.think_us + 1);
        self.at(self.now + wait, Event::Client(client));
    }

    fn choose(&mut self, client: u64) -> (u64, Act, ReadMode) {
        let setup = &self.setup;
        let clients = &mut self.clients;
        let random = &mut clients.random;
        let hot = setup.cold_keys == 0 || random.permille(850);
        let key = if hot { random.below(setup.hot_keys) } else { setup.hot_keys + random.below(setup.cold_keys) };
        let value = clients.operations.len() as u64 + 1;
        let (last, version) = clients.list[client as usize].last[key as usize];
        let act = match random.below(20) {
            0..=5 => Act::Get,
            6..=12 => Act::Put(value),
            13 | 14 => Act::Delete,
            15 => Act::CasAbsent(value),
            16 | 17 if last != 0 => Act::CasValue(last, value),
            _ => Act::CasVersion(version, value),
        };
        let read = *random.pick(&[ReadMode::Confirm, ReadMode::Confirm, ReadMode::Log]);
        (key, act, read)
    }

    fn begin(&mut self, client: u64, key: u64, act: Act, read: ReadMode, must: bool) -> usize {
        let called = self.next_order();
        let operation = self.clients.operations.len();
        let state = &mut self.clients.list[client as usize];
        let id = state.next_id;
        state.next_id += 1;
        state.current.push(operation);
        let (returned, outcome, attempts) = (u64::MAX, Outcome::Unknown, Vec::new());
        self.clients.operations.push(Asked { client, id, key, act, read, called, returned, outcome, attempts, must });
        operation
    }

    fn first_node(&mut self, client: u64) -> usize {
        let zone = self.clients.list[client as usize].zone;
        let nodes = self.nodes.len() as u64;
        let random = &mut self.clients.random;
        if random.permille(600) {
            let members = &self.setup.cluster.zones[usize::from(zone)].nodes;
            random.pick(members).index()
        } else {
            random.below(nodes) as usize
        }
    }

    /// Sends an operation to a node; again if it was sent before.
    fn ask(&mut self, operation: usize, node: usize) {
        let asked = &mut self.clients.operations[operation];
        let attempt = asked.attempts.len();
        asked.attempts.push(Attempt::Open);
        let bytes = encode(asked, attempt > 0);
        let (client, read, key, act, id) = (asked.client, asked.read, asked.key, asked.act, asked.id);
        let token = self.clients.tokens.len() as u64;
        self.clients.tokens.push(Token { operation, attempt, node, answered: false });
        let zone = self.clients.list[client as usize].zone;
        self.say(|| format!("client {client}: {act:?} #{id} of key {key} at node {node}, attempt {attempt}"));
        let patience = self.clients.random.range(self.setup.patience_us / 2, self.setup.patience_us);
        self.at(self.now + patience, Event::Patience { operation, attempt });
        self.request(node, token, zone, read, bytes);
    }

    /// An answer is overdue, or was no help: tries another node, or leaves it.
    pub fn on_patience(&mut self, operation: usize, attempt: usize) {
        let asked = &self.clients.operations[operation];
        let client = asked.client;
        let waits = self.clients.list[client as usize].current.contains(&operation);
        if !waits || attempt + 1 != asked.attempts.len() {
            return;
        }
        let must = asked.must.then(|| self.clients.tokens.iter().rfind(|token| token.operation == operation));
        if let Some(first) = must.flatten() {
            self.ask(operation, first.node);
        } else if attempt + 1 < ATTEMPTS_MAX && self.clients.random.permille(800) {
            let node = self.clients.random.below(self.nodes.len() as u64) as usize;
            self.ask(operation, node);
        } else {
            self.leave(operation);
        }
    }

    fn leave(&mut self, operation: usize) {
        let client = self.clients.operations[operation].client;
        let state = &mut self.clients.list[client as usize];
        state.current.retain(|current| *current != operation);
        if client < self.setup.clients {
            self.think(client);
        }
    }

    pub fn on_reply(&mut self, node: usize, reply: &Reply, value: &[u8]) {
        let ReplyTo(number) = reply.to;
        let token = &mut self.clients.tokens[number as usize];
        assert!(!token.answered && token.node == node, "request {number} is answered once, where it was asked");
        token.answered = true;
        let (operation, attempt) = (token.operation, token.attempt);
        let order = self.next_order();
        let asked = &mut self.clients.operations[operation];
        let status = reply.status;
        let calm = self.setup.weather == Weather::Calm && !asked.must;
        // Nobody is served before a majority of the nodes has met.
        let waits = matches!(status, Status::Overloaded | Status::TimeoutMaybeDone);
        let forming = waits && self.now < FORMED_US;
        let fine = status.is_executed() || !calm || forming;
        assert!(fine, "{:?} of key {} at node {node} ended in {status:?}, for no reason", asked.act, asked.key);
        asked.attempts[attempt] = match status {
            _ if status.is_executed() => Attempt::Executed,
            _ if status.is_refused() => Attempt::Refused,
            _ => Attempt::Doubtful,
        };
        let outcome = asked.learn(order, reply, value);
        let (client, key) = (asked.client, asked.key as usize);
        self.say(|| format!("client {client}: operation {operation} on key {key}: {status:?} {outcome:?}"));
        if let Outcome::Known(_, version, seen) = outcome {
            let written = operation as u64 + 1;
            let asked = &self.clients.operations[operation];
            let value = if asked.act == Act::Get { seen } else { written };
            self.clients.list[client as usize].last[key] = (value, version);
        }
        let waits = self.clients.list[client as usize].current.contains(&operation);
        if outcome != Outcome::Unknown && waits {
            self.leave(operation);
        } else if waits {
            let wait = self.clients.random.range(1, 5000);
            self.at(self.now + wait, Event::Patience { operation, attempt });
        }
    }

    /// Asks a node when everything is healed; true once it is executed.
    pub fn must_succeed(&mut self, node: usize, key: u64, write: bool, read: ReadMode) {
        let client = self.setup.clients;
        let act = if write { Act::Put(self.clients.operations.len() as u64 + 1) } else { Act::Get };
        let operation = self.begin(client, key, act, read, true);
        self.ask(operation, node);
        // The first to use an object may have to learn of several owners, one after the other.
        let until = self.now + 5 * (self.setup.tuning.timers.request_timeout_us + 100_000);
        while self.clients.operations[operation].outcome == Outcome::Unknown {
            assert!(self.now < until, "{act:?} of key {key} at node {node} is not answered when all is well");
            self.run(self.now + 500, |_| false);
        }
    }
}

impl Asked {
    /// Takes an answer into what is known; returns that.
    fn learn(&mut self, order: u64, reply: &Reply, value: &[u8]) -> Outcome {
        let number = if value.is_empty() { 0 } else { value_number(value) };
        let outcome = match reply.status {
            Status::Duplicate => Outcome::Happened,
            status if status.is_executed() => Outcome::Known(status, reply.version, number),
            _ => return self.outcome,
        };
        assert!(self.act == Act::Get || number == 0, "only a Get has a value");
        match (self.outcome, outcome) {
            (Outcome::Known(..), Outcome::Known(..)) if self.act != Act::Get => {
                assert_eq!(self.outcome, outcome, "a retried command has one outcome");
            }
            (Outcome::Unknown, _) => (self.outcome, self.returned) = (outcome, order),
            (Outcome::Happened, Outcome::Known(..)) => self.outcome = outcome,
            _ => {}
        }
        self.outcome
    }
}

fn encode(asked: &Asked, retry: bool) -> Bytes {
    let key = key_name(asked.key);
    let (value, expected);
    let action = match asked.act {
        Act::Get => Action::Get,
        Act::Delete => Action::Delete,
        Act::Put(number) => {
            value = value_bytes(number);
            Action::Put(&value)
        }
        Act::CasAbsent(number) => {
            value = value_bytes(number);
            Action::CompareAndSwap { expect: Expect::Absent, value: &value }
        }
        Act::CasValue(old, number) => {
            (expected, value) = (value_bytes(old), value_bytes(number));
            Action::CompareAndSwap { expect: Expect::Value(&expected), value: &value }
        }
        Act::CasVersion(version, number) => {
            value = value_bytes(number);
            Action::CompareAndSwap { expect: Expect::Version(version), value: &value }
        }
    };
    let mut bytes = Vec::new();
    let command = NewCommand { client: asked.client + 1, id: asked.id, retry, key: &key, action };
    command.encode(&mut bytes).expect("the model's commands are short");
    bytes.into()
}
