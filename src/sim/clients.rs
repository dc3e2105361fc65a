//! Clients: what they ask, whom, how often, and what they have learned of each operation. They speak the native protocol over
//! simulated connections.

use std::{collections::BTreeMap, io::IoSlice};

use super::{
    net::{End, SimSocket},
    oracle::{
        Answer, Asked as Request, Rule, key_name,
        linear::{Act, Operation, Outcome},
        value_number,
    },
    plan::{Plan, Weather},
    random::{Purpose, Random},
    world::{BEGIN_US, Checked, Event, Life, World},
};
use crate::{
    api::native::{self, ClientHello, ReplyRef},
    command::{Action, Expect, NewCommand, Status},
    protocol::ReadMode,
    shard::Socket,
    store::SESSIONS_MIN,
    topology::{NodeIndex, ZoneIndex, shard_of, token_of},
    wire::{self, Kind},
};

/// By this time all links of a new cluster are up, and what was answered before has arrived.
const FORMED_US: u64 = BEGIN_US + 100_000;
/// How often a client asks for one operation.
const ATTEMPTS_MAX: usize = 4;

/// How an attempt at an operation has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    /// Not yet.
    Open,
    /// It did not happen.
    Refused,
    /// It may have happened.
    Doubtful,
    /// It happened.
    Executed,
}

/// A request that waits for an answer.
#[derive(Clone, Copy)]
struct Waiting {
    /// A number that no other request has.
    request: u64,
    id: u64,
    operation: usize,
    attempt: usize,
}

/// A connection of a client to a shard.
struct ClientLink {
    conn: usize,
    socket: SimSocket,
    buffer: Vec<u8>,
    /// Requests that wait for an answer on it.
    waiting: Vec<Waiting>,
}

struct Client {
    zone: ZoneIndex,
    next_id: u64,
    /// How many operations it has under way at most.
    depth: usize,
    current: Vec<usize>,
    /// By key the value and version that it saw last.
    last: Vec<(u64, u64)>,
    /// By node and shard.
    links: BTreeMap<(usize, usize), ClientLink>,
}

/// An operation of a client.
struct Asked {
    client: usize,
    id: u64,
    key: u64,
    act: Act,
    read: ReadMode,
    called: u64,
    returned: u64,
    outcome: Outcome,
    attempts: Vec<(usize, Attempt)>,
    /// It must be executed.
    must: bool,
}

/// All clients, and all they have asked.
pub(super) struct Clients {
    random: Random,
    list: Vec<Client>,
    operations: Vec<Asked>,
    requests: u64,
    /// No new operations.
    pub(super) closed: bool,
    /// How many operations are begun at most.
    pub(super) operations_max: usize,
}

/// The value with this number: one in nine is as long as it may be.
pub(super) fn value_bytes(number: u64, longest: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    let usual = 8 + number as usize * 7 % 50;
    bytes.resize(if number.is_multiple_of(9) { longest.max(usual) } else { usual }, 0xab);
    bytes
}

impl Clients {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut random = Random::new(plan.seed, Purpose::Clients);
        // The last one asks when everything is healed.
        let list = (0..=plan.clients).map(|_| Client {
            zone: ZoneIndex(random.below(plan.cluster.zones.len() as u64) as u8),
            next_id: 1,
            depth: *random.pick(&[1, 1, 1, 3]),
            current: Vec::new(),
            last: vec![(0, 0); plan.keys() as usize],
            links: BTreeMap::new(),
        });
        let list = list.collect();
        Self { random, list, operations: Vec::new(), requests: 0, closed: false, operations_max: plan.operations }
    }

    /// The index of the zone that a client is in; the first one of those that are hostile.
    pub(super) fn zone_of(&self, client: usize) -> usize {
        self.list.get(client).map_or(0, |client| client.zone.index())
    }

    /// A number that no other request has.
    pub(super) fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Requests that wait for an answer, in words.
    pub(super) fn waiting(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        for (number, client) in self.list.iter().enumerate() {
            for ((node, shard), link) in &client.links {
                waiting.extend(link.waiting.iter().map(|Waiting { id, operation, attempt, .. }| {
                    let Asked { key, act, .. } = self.operations[*operation];
                    format!("client {number}: {act:?} #{id} of key {key} at {node}/{shard}, attempt {attempt}")
                }));
            }
        }
        waiting
    }

    /// Whether no client wants anything more.
    pub(super) fn are_done(&self) -> bool {
        self.list
            .iter()
            .all(|client| client.current.is_empty() && client.links.values().all(|link| link.waiting.is_empty()))
    }

    /// How many operations were begun, and how many are known to be executed.
    pub(super) fn counts(&self) -> (usize, usize) {
        let executed = self.operations.iter().filter(|asked| asked.outcome != Outcome::Unknown).count();
        (self.operations.len(), executed)
    }

    /// What is known of the operations on one key. Refused ones are left out: they did not happen.
    pub(super) fn history(&self, key: u64) -> Vec<Operation> {
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
}

impl Asked {
    fn is_refused(&self) -> bool {
        self.attempts.iter().all(|(_, attempt)| *attempt == Attempt::Refused)
    }

    /// Whether it may have happened, and nobody has said more when last asked.
    fn is_doubtful(&self) -> bool {
        self.attempts.last().is_some_and(|(_, attempt)| *attempt == Attempt::Doubtful)
    }

    /// Takes an answer into what is known; returns that.
    fn learn(&mut self, order: u64, reply: &ReplyRef<'_>) -> Outcome {
        let number = value_number((!reply.value.is_empty()).then_some(reply.value));
        let outcome = match reply.status {
            Status::Duplicate => Outcome::Happened,
            status if status.is_executed() => Outcome::Known(status, reply.version, number),
            _ => return self.outcome,
        };
        match (self.outcome, outcome) {
            (Outcome::Unknown, _) => (self.outcome, self.returned) = (outcome, order),
            (Outcome::Happened, Outcome::Known(..)) => self.outcome = outcome,
            _ => {}
        }
        self.outcome
    }
}

impl World {
    pub(super) fn begin_clients(&mut self) {
        for client in 0..self.plan.clients as usize {
            let wait = self.clients.random.range(1, 8000);
            self.at(self.now + wait, Event::Client(client));
        }
    }

    /// A client begins an operation, unless it has enough of them under way.
    pub(super) fn on_client(&mut self, client: usize) -> Checked {
        let state = &self.clients.list[client];
        let full = self.clients.operations.len() >= self.clients.operations_max;
        if self.clients.closed || full || state.current.len() >= state.depth {
            return Ok(());
        }
        let oldest = state.current.iter().map(|operation| self.clients.operations[*operation].id).min();
        if oldest.is_some_and(|oldest| oldest + self.plan.ids_ahead < state.next_id) {
            return Ok(());
        }
        let more = state.current.len() + 1 < state.depth;
        let (key, act, read) = self.choose(client);
        let operation = self.begin(client, key, act, read, false);
        let node = self.first_node(client);
        self.ask(operation, node)?;
        if more {
            self.think(client);
        }
        Ok(())
    }

    fn think(&mut self, client: usize) {
        let wait = 1 + self.clients.random.below(self.plan.think_us + 1);
        self.at(self.now + wait, Event::Client(client));
    }

    fn choose(&mut self, client: usize) -> (u64, Act, ReadMode) {
        let plan = &self.plan;
        let clients = &mut self.clients;
        let random = &mut clients.random;
        let hot = plan.cold_keys == 0 || random.permille(850);
        let key = if hot { random.below(plan.hot_keys) } else { plan.hot_keys + random.below(plan.cold_keys) };
        let value = clients.operations.len() as u64 + 1;
        let (last, version) = clients.list[client].last[key as usize];
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

    fn begin(&mut self, client: usize, key: u64, act: Act, read: ReadMode, must: bool) -> usize {
        let called = self.next_order();
        let operation = self.clients.operations.len();
        let state = &mut self.clients.list[client];
        let id = state.next_id;
        state.next_id += 1;
        state.current.push(operation);
        let (returned, outcome, attempts) = (u64::MAX, Outcome::Unknown, Vec::new());
        self.clients.operations.push(Asked { client, id, key, act, read, called, returned, outcome, attempts, must });
        operation
    }

    fn first_node(&mut self, client: usize) -> usize {
        let zone = self.clients.list[client].zone;
        let nodes = self.machines.len() as u64;
        let random = &mut self.clients.random;
        if random.permille(self.plan.far_permille) {
            random.below(nodes) as usize
        } else {
            random.pick(&self.plan.cluster.zones[zone.index()].nodes).index()
        }
    }

    /// Sends an operation to a node; as a retry if it was sent before.
    fn ask(&mut self, operation: usize, node: usize) -> Checked {
        let asked = &mut self.clients.operations[operation];
        let attempt = asked.attempts.len();
        asked.attempts.push((node, Attempt::Open));
        let body = encode(asked, attempt > 0, self.plan.value_bytes_max);
        let (client, key, act, id, must) = (asked.client, asked.key, asked.act, asked.id, asked.must);
        self.say(|| format!("client {client}: {act:?} #{id} of key {key} at node {node}, attempt {attempt}"));
        let random = &mut self.clients.random;
        let patience = random.range(self.plan.patience_us / 2, self.plan.patience_us);
        // When all is well, the replica is left the time to say itself what went wrong.
        let patience = if must { 2 * self.plan.tuning.timers.request_timeout_us } else { patience };
        let shards = self.plan.cluster.shards;
        let home = shard_of(token_of(&key_name(key)), shards);
        let astray = random.permille(self.plan.wrong_shard_permille);
        let shard = if astray { random.below(u64::from(shards)) as usize } else { usize::from(home.0) };
        self.at(self.now + patience, Event::Patience { operation, attempt });
        if !self.reach(client, node, shard) {
            // Nobody listens there: it was not even asked.
            self.end_attempt(operation, attempt, Attempt::Refused);
            return Ok(());
        }
        let request = self.clients.next_request();
        let link = self.clients.list[client].links.get_mut(&(node, shard)).expect("just reached");
        link.waiting.push(Waiting { request, id, operation, attempt });
        let asked = Request { connection: link.conn as u64, command: (client as u64 + 1, id), key, act };
        self.watch.borrow_mut().observer.once.asked(request, asked)?;
        self.liveness.asked(request, NodeIndex(node as u8), key, self.now, u64::MAX);
        let frame = wire::frame(Kind::Request, shard as u16, 0, &body);
        // If the other side is gone already, the end of the stream is on its way here.
        let _ = link.socket.send(&[IoSlice::new(&frame)]);
        self.carry();
        Ok(())
    }

    /// Has a connection of a client to a shard, an old or a new one; false if nobody listens there.
    fn reach(&mut self, client: usize, node: usize, shard: usize) -> bool {
        if self.clients.list[client].links.contains_key(&(node, shard)) {
            return true;
        }
        let Some((conn, ours)) = self.open_client(End::Client(client), node, shard) else { return false };
        let zone = self.clients.list[client].zone;
        let number = self.plan.cluster.zones[zone.index()].number;
        let hello = ClientHello { cluster: None, client: client as u64 + 1, zone: Some(number) };
        let hello = serde_json::to_vec(&hello).expect("plain fields become JSON");
        let hello = wire::frame(Kind::ClientHello, shard as u16, 0, &hello);
        ours.send(&[IoSlice::new(&hello)]).expect("a new connection is open");
        let link = ClientLink { conn, socket: ours, buffer: Vec::new(), waiting: Vec::new() };
        self.clients.list[client].links.insert((node, shard), link);
        true
    }

    /// A connection of a client to a shard, on which nothing was sent yet; `None` if nobody listens there.
    pub(super) fn open_client(&mut self, client: End, node: usize, shard: usize) -> Option<(usize, SimSocket)> {
        let now = self.now;
        let paused = self.machines[node].paused_until > now;
        let Life::Up(process) = &self.machines[node].life else { return None };
        let boot = process.boot;
        if paused {
            return None;
        }
        let (conn, [ours, theirs]) = self.connect([client, End::Shard { node, boot, shard }]);
        let process = self.process(node, boot).expect("just seen");
        process.set_time(now);
        process.accept(shard, conn, theirs);
        Some((conn, ours))
    }

    /// Bytes have come to a client.
    pub(super) fn client_reads(&mut self, client: usize, conn: usize, bytes: &[u8]) -> Checked {
        let links = &mut self.clients.list[client].links;
        let Some(place) = links.iter().find(|(_, link)| link.conn == conn).map(|(place, _)| *place) else {
            return Ok(());
        };
        let buffer = &mut links.get_mut(&place).expect("just found").buffer;
        buffer.extend_from_slice(bytes);
        let mut buffer = std::mem::take(buffer);
        let mut at = 0;
        while let Some(length) = wire::frame_bytes(&buffer[at..]).expect("shards send frames")
            && at + length <= buffer.len()
        {
            let frame = wire::view(&buffer[at..at + length]).expect("shards send intact frames");
            at += length;
            match frame.kind {
                Kind::Reply => {
                    for reply in native::replies(frame.body) {
                        let reply = reply.expect("shards send well-formed answers");
                        self.on_reply(client, place, &reply)?;
                    }
                }
                Kind::ClientWelcome | Kind::Refused => {}
                kind => return Err(Rule::WrongAnswer.broken(format!("a client is sent a {kind:?}"))),
            }
        }
        buffer.drain(..at);
        if let Some(link) = self.clients.list[client].links.get_mut(&place) {
            link.buffer = buffer;
        }
        Ok(())
    }

    /// A client's connection is gone: what it asked on it may have happened.
    pub(super) fn client_cut_off(&mut self, client: usize, conn: usize) {
        let links = &mut self.clients.list[client].links;
        let Some(place) = links.iter().find(|(_, link)| link.conn == conn).map(|(place, _)| *place) else { return };
        let link = links.remove(&place).expect("just found");
        self.say(|| format!("client {client} loses its connection to {place:?}"));
        self.conns[conn].leave(0);
        self.watch.borrow_mut().observer.once.closed(conn as u64);
        for Waiting { request, operation, attempt, .. } in link.waiting {
            self.liveness.ended(request);
            self.end_attempt(operation, attempt, Attempt::Doubtful);
        }
    }

    /// An attempt has ended without an outcome: another one comes soon.
    fn end_attempt(&mut self, operation: usize, attempt: usize, how: Attempt) {
        let asked = &mut self.clients.operations[operation];
        asked.attempts[attempt].1 = how;
        let client = asked.client;
        if self.clients.list[client].current.contains(&operation) {
            let wait = self.clients.random.range(1, 5000);
            self.at(self.now + wait, Event::Patience { operation, attempt });
        }
    }

    /// An answer is overdue, or was no help: tries another node, or leaves it.
    pub(super) fn on_patience(&mut self, operation: usize, attempt: usize) -> Checked {
        let asked = &self.clients.operations[operation];
        let client = asked.client;
        let waits = self.clients.list[client].current.contains(&operation);
        if !waits || attempt + 1 != asked.attempts.len() {
            return Ok(());
        }
        if asked.must {
            let node = asked.attempts[0].0;
            self.ask(operation, node)?;
        } else if attempt + 1 < ATTEMPTS_MAX && self.clients.random.permille(800) {
            let node = self.clients.random.below(self.machines.len() as u64) as usize;
            self.ask(operation, node)?;
        } else {
            self.leave(operation);
        }
        Ok(())
    }

    fn leave(&mut self, operation: usize) {
        let client = self.clients.operations[operation].client;
        let state = &mut self.clients.list[client];
        state.current.retain(|current| *current != operation);
        if client < self.plan.clients as usize {
            self.think(client);
        }
    }

    fn on_reply(&mut self, client: usize, place: (usize, usize), reply: &ReplyRef<'_>) -> Checked {
        let order = self.next_order();
        let link = self.clients.list[client].links.get_mut(&place).expect("it has just read from it");
        let Some(found) = link.waiting.iter().position(|waiting| waiting.id == reply.id) else {
            let text = format!("client {client} is answered #{} by {place:?}, which it did not ask there", reply.id);
            return Err(Rule::WrongAnswer.broken(text));
        };
        let Waiting { request, operation, attempt, .. } = link.waiting.remove(found);
        let value = value_number((!reply.value.is_empty()).then_some(reply.value));
        let answer = Answer { status: reply.status, version: reply.version, value };
        self.watch.borrow_mut().observer.once.answered(link.conn as u64, request, answer)?;
        self.liveness.ended(request);
        let asked = &mut self.clients.operations[operation];
        let status = reply.status;
        let calm = self.plan.weather == Weather::Calm && !asked.must;
        // Nobody is served before a majority of the nodes has met.
        let waits = matches!(status, Status::Overloaded | Status::TimeoutMaybeDone);
        let forming = waits && self.now < FORMED_US;
        if !status.is_executed() && calm && !forming {
            let text = format!("{:?} of key {} at {place:?} ended in {status:?}, for no reason", asked.act, asked.key);
            return Err(Rule::Unanswered.broken(text));
        }
        asked.attempts[attempt].1 = match status {
            _ if status.is_executed() => Attempt::Executed,
            _ if status.is_refused() => Attempt::Refused,
            _ => Attempt::Doubtful,
        };
        let outcome = asked.learn(order, reply);
        let key = asked.key;
        self.say(|| format!("client {client}: operation {operation} on key {key}: {status:?} {outcome:?}"));
        if let Outcome::Known(_, version, seen) = outcome {
            let is_read = self.clients.operations[operation].act == Act::Get;
            let value = if is_read { seen } else { operation as u64 + 1 };
            self.clients.list[client].last[key as usize] = (value, version);
        }
        if outcome != Outcome::Unknown && self.clients.list[client].current.contains(&operation) {
            self.leave(operation);
        } else if outcome == Outcome::Unknown {
            self.end_attempt(operation, attempt, self.clients.operations[operation].attempts[attempt].1);
        }
        Ok(())
    }

    /// Asks a node when everything is healed, and waits until it is executed. A write that a change of owners overtakes,
    /// of an object that has hostile writers or more than it remembers, may end as one that nobody can judge any more: then
    /// another is asked for.
    pub(super) fn must_succeed(&mut self, node: usize, key: u64, write: bool, read: ReadMode) -> Checked {
        let client = self.plan.clients as usize;
        let is_hard_to_judge = client >= SESSIONS_MIN || self.plan.hostile.clients > 0;
        let mut operation = self.begin_must(client, node, key, write, read)?;
        // The first to use an object may have to learn of several owners, one after the other.
        let until = self.now + 5 * (self.plan.tuning.timers.request_timeout_us + 100_000);
        while self.clients.operations[operation].outcome == Outcome::Unknown {
            let asked = &self.clients.operations[operation];
            if self.now >= until || self.steps >= self.steps_max {
                let text = format!("{:?} of key {key} at node {node} is not executed when all is well", asked.act);
                return Err(Rule::Unanswered.broken(text));
            }
            if is_hard_to_judge && write && asked.is_doubtful() {
                self.leave(operation);
                operation = self.begin_must(client, node, key, write, read)?;
            }
            self.run(self.now + 500, |_| false)?;
        }
        Ok(())
    }

    fn begin_must(&mut self, client: usize, node: usize, key: u64, write: bool, read: ReadMode) -> Checked<usize> {
        let act = if write { Act::Put(self.clients.operations.len() as u64 + 1) } else { Act::Get };
        let operation = self.begin(client, key, act, read, true);
        self.ask(operation, node)?;
        Ok(operation)
    }
}

/// A Request body of one request.
fn encode(asked: &Asked, retry: bool, longest: usize) -> Vec<u8> {
    let key = key_name(asked.key);
    let (value, expected);
    let action = match asked.act {
        Act::Get => Action::Get,
        Act::Delete => Action::Delete,
        Act::Put(number) => {
            value = value_bytes(number, longest);
            Action::Put(&value)
        }
        Act::CasAbsent(number) => {
            value = value_bytes(number, longest);
            Action::CompareAndSwap { expect: Expect::Absent, value: &value }
        }
        Act::CasValue(old, number) => {
            (expected, value) = (value_bytes(old, longest), value_bytes(number, longest));
            Action::CompareAndSwap { expect: Expect::Value(&expected), value: &value }
        }
        Act::CasVersion(version, number) => {
            value = value_bytes(number, longest);
            Action::CompareAndSwap { expect: Expect::Version(version), value: &value }
        }
    };
    let command = NewCommand { client: asked.client as u64 + 1, id: asked.id, retry, key: &key, action };
    let mut body = Vec::new();
    native::put_request_prefix(&mut body, command.encoded_bytes(), asked.read);
    command.encode(&mut body).expect("the simulator's commands are short");
    body
}
