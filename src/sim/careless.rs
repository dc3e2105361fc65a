//! Clients that keep to no rule: ids that go back, repeat or are the largest there is, long keys, large and empty values,
//! bursts of reads, frames that are none, connections that are never read. They come in a part of the runs, beside the
//! others, which must not notice; what they ask in a well-formed way is judged like any other request.

use std::{collections::BTreeMap, io::IoSlice};

use super::{
    clients::value_bytes,
    net::{End, SimSocket},
    oracle::{
        Answer, Asked as Request, LONG_KEYS, ONLY_READ, Rule, key_name,
        linear::{Act, Operation, Outcome},
        value_number,
    },
    plan::Plan,
    random::{Purpose, Random},
    world::{Checked, Event, World},
};
use crate::{
    api::native::{self, ClientHello, ReplyRef},
    command::{Action, Expect, NewCommand, Status},
    protocol::ReadMode,
    shard::Socket,
    topology::NodeIndex,
    wire::{self, Kind},
};

/// Keys of theirs: those that each uses alone, those with empty values, those that are only ever read, and long ones of both
/// kinds.
const OWN_KEYS: u64 = 1 << 20;
const BLANK_KEYS: u64 = 1 << 21;
const ABSENT_KEYS: u64 = ONLY_READ;
const LONG_OWN_KEYS: u64 = LONG_KEYS;
const LONG_ABSENT_KEYS: u64 = LONG_KEYS + ONLY_READ;

/// How many keys each uses alone, for values of the usual size.
const SMALL_KEYS: u64 = 12;
/// The client number of the first one; the others' are far below.
const FIRST_CLIENT: u64 = 1000;
/// The number of the first value; the others' are far below.
const FIRST_VALUE: u64 = 1 << 32;
/// How many large values are written in a run.
const LARGE_MAX: usize = 3;
/// The operation of a request that is none.
const NONSENSE: usize = usize::MAX;
/// How many tricks there are.
pub(super) const TRICKS: u64 = 9;

/// Something that they asked.
struct Asked {
    id: u64,
    key: u64,
    act: Act,
    read: ReadMode,
    bytes: usize,
    called: u64,
    returned: u64,
    outcome: Outcome,
    sent: usize,
    refused: usize,
    /// Another command had or got the same id: what an answer says may be about that one.
    shares_id: bool,
}

/// A connection of one of them.
struct Link {
    node: usize,
    socket: SimSocket,
    buffer: Vec<u8>,
    /// Number, id and operation of each request that waits for an answer.
    waiting: Vec<(u64, u64, usize)>,
    /// Nothing that comes on it is read.
    is_deaf: bool,
    /// Half a frame was sent on it: nothing more can be.
    is_stuck: bool,
}

struct Intruder {
    last_id: u64,
    /// By id the first operation under it.
    used: BTreeMap<u64, usize>,
    /// By their places in the network.
    links: BTreeMap<usize, Link>,
    tricks: u64,
}

/// All of them, and all they have asked.
pub(super) struct Hostile {
    random: Random,
    list: Vec<Intruder>,
    asked: Vec<Asked>,
    large: usize,
    closed: bool,
}

impl Hostile {
    pub(super) fn new(plan: &Plan) -> Self {
        let random = Random::new(plan.seed, Purpose::Hostile);
        let intruder =
            |_| Intruder { last_id: 0, used: BTreeMap::new(), links: BTreeMap::new(), tricks: plan.hostile.each };
        let list = (0..plan.hostile.clients).map(intruder).collect();
        Self { random, list, asked: Vec::new(), large: 0, closed: false }
    }

    /// What is known of the operations on each key, but for those whose values are no numbers.
    pub(super) fn histories(&self) -> impl Iterator<Item = (u64, Operation)> {
        let has_numbers = |asked: &&Asked| !is_blank(asked.key);
        let is_known = |asked: &&Asked| {
            let maybe = asked.act != Act::Get && asked.refused < asked.sent;
            (asked.outcome != Outcome::Unknown && !asked.shares_id) || maybe
        };
        self.asked.iter().filter(has_numbers).filter(is_known).map(|asked| {
            let known = if asked.shares_id { (u64::MAX, Outcome::Unknown) } else { (asked.returned, asked.outcome) };
            (asked.key, Operation { act: asked.act, called: asked.called, returned: known.0, outcome: known.1 })
        })
    }
}

impl Asked {
    /// How many bytes the value has that an operation writes.
    fn value(&self, number: u64, plan: &Plan) -> Vec<u8> {
        match self.key {
            _ if number == 0 => Vec::new(),
            key if key < OWN_KEYS => value_bytes(number, plan.value_bytes_max),
            _ => {
                let mut bytes = number.to_le_bytes().to_vec();
                bytes.resize(self.bytes.max(8), 0xcd);
                bytes
            }
        }
    }

    fn put_request(&self, body: &mut Vec<u8>, client: u64, retry: bool, plan: &Plan) {
        let (key, value) = (key_name(self.key), self.value(self.act.written(), plan));
        let expected;
        let action = match self.act {
            Act::Get => Action::Get,
            Act::Delete => Action::Delete,
            Act::Put(_) => Action::Put(&value),
            Act::CasAbsent(_) => Action::CompareAndSwap { expect: Expect::Absent, value: &value },
            Act::CasVersion(version, _) => Action::CompareAndSwap { expect: Expect::Version(version), value: &value },
            Act::CasValue(old, _) => {
                expected = self.value(old, plan);
                Action::CompareAndSwap { expect: Expect::Value(&expected), value: &value }
            }
        };
        let command = NewCommand { client, id: self.id, retry, key: &key, action };
        native::put_request_prefix(body, command.encoded_bytes(), self.read);
        command.encode(body).expect("well-formed, for all that");
    }

    /// Takes an answer into what is known.
    fn learn(&mut self, order: u64, reply: &ReplyRef<'_>) {
        self.refused += usize::from(reply.status.is_refused());
        let number = value_number((!reply.value.is_empty()).then_some(reply.value));
        let outcome = match reply.status {
            Status::Duplicate => Outcome::Happened,
            status if status.is_executed() => Outcome::Known(status, reply.version, number),
            _ => return,
        };
        if self.outcome == Outcome::Unknown {
            (self.outcome, self.returned) = (outcome, order);
        }
    }
}

impl World {
    pub(super) fn begin_hostile(&mut self) {
        for who in 0..self.hostile.list.len() {
            let wait = self.hostile.random.range(1, 8000);
            self.at(self.now + wait, Event::Hostile(who));
        }
    }

    /// Which of them is this client of a connection, if it is one of them.
    pub(super) fn hostile_of(&self, client: usize) -> Option<usize> {
        client.checked_sub(self.plan.clients as usize + 1)
    }

    fn end_of(&self, who: usize) -> End {
        End::Client(self.plan.clients as usize + 1 + who)
    }

    /// Whether nothing on this connection is read for now.
    pub(super) fn is_deaf(&self, client: usize, conn: usize) -> bool {
        let who = self.hostile_of(client);
        who.and_then(|who| self.hostile.list[who].links.get(&conn)).is_some_and(|link| link.is_deaf)
    }

    /// They leave.
    pub(super) fn end_hostile(&mut self) {
        self.hostile.closed = true;
        for who in 0..self.hostile.list.len() {
            for conn in self.hostile.list[who].links.keys().copied().collect::<Vec<_>>() {
                self.hang_up_on(who, conn);
            }
        }
    }

    pub(super) fn on_hostile(&mut self, who: usize) -> Checked {
        if self.hostile.closed || self.hostile.list[who].tricks == 0 {
            return Ok(());
        }
        self.hostile.list[who].tricks -= 1;
        let (tricks, think_us) = (self.plan.hostile.tricks, self.plan.hostile.think_us);
        let random = &mut self.hostile.random;
        let trick = random.below(TRICKS);
        let wait = random.range(1, 2 * think_us);
        self.at(self.now + wait, Event::Hostile(who));
        if tricks >> trick & 1 == 0 {
            return Ok(());
        }
        match trick {
            0 => self.odd_id(who),
            1 => self.rising_ids(who),
            2 => self.repeat(who),
            3 => self.many_reads(who),
            4 => self.long_key(who),
            5 => self.odd_value(who),
            6 => self.nonsense(who),
            7 => self.broken(who),
            _ => self.crowd(who),
        }
    }

    /// A command under an id that no careful client uses.
    fn odd_id(&mut self, who: usize) -> Checked {
        let keys = self.plan.keys();
        let random = &mut self.hostile.random;
        let last = self.hostile.list[who].last_id;
        let odd = [0, 1, 100, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX];
        let id = match random.below(16) {
            place @ 0..8 => odd[place as usize],
            8 | 9 => last.wrapping_sub(random.range(1, 3)),
            10 => last.wrapping_sub(random.range(63, 66)),
            11 => last.wrapping_sub(random.range(1 << 31, 1 << 33)),
            12 => last,
            _ => last.wrapping_add(random.range(1, 3)),
        };
        let shared = random.permille(300);
        let key = if shared { random.below(keys) } else { own_key(who, random.below(SMALL_KEYS)) };
        let retry = random.permille(200);
        let act = self.odd_act();
        let operation = self.begin_hostile_operation(who, id, key, act, 16);
        self.ask_hostile(who, &[operation], retry)
    }

    /// Commands on one key whose ids rise from the first ones there are, in steps that lie on both sides of what an object
    /// remembers of its writers.
    fn rising_ids(&mut self, who: usize) -> Checked {
        let random = &mut self.hostile.random;
        let key = own_key(who, random.below(SMALL_KEYS));
        let mut id = random.below(3);
        for _ in 0..random.range(2, 6) {
            let act = self.odd_act();
            let operation = self.begin_hostile_operation(who, id, key, act, 16);
            self.ask_hostile(who, &[operation], false)?;
            let steps = [1, 2, 63, 64, 65, 66, 100, 1000, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 33];
            id += *self.hostile.random.pick(&steps);
        }
        Ok(())
    }

    fn odd_act(&mut self) -> Act {
        let value = FIRST_VALUE + self.hostile.asked.len() as u64;
        let random = &mut self.hostile.random;
        match random.below(8) {
            0 | 1 => Act::Get,
            2 => Act::Delete,
            3 => Act::CasAbsent(value),
            4 => Act::CasVersion(random.below(4), value),
            _ => Act::Put(value),
        }
    }

    /// Something that was asked before, once more or several times at once.
    fn repeat(&mut self, who: usize) -> Checked {
        let random = &mut self.hostile.random;
        let used = &self.hostile.list[who].used;
        if used.is_empty() {
            return Ok(());
        }
        let place = random.below(used.len() as u64) as usize;
        let operation = *used.values().nth(place).expect("within");
        let retry = random.permille(700);
        let times = random.range(1, 3) as usize;
        self.ask_hostile(who, &vec![operation; times], retry)
    }

    /// Reads of many keys that nobody has written, in one frame.
    fn many_reads(&mut self, who: usize) -> Checked {
        let count = self.hostile.random.range(1, self.plan.hostile.reads_max);
        let first = ABSENT_KEYS + self.hostile.random.below(1 << 20);
        let operations: Vec<_> = (0..count).map(|key| self.begin_read(who, first + key)).collect();
        self.ask_hostile(who, &operations, false)
    }

    /// A write under the longest key, or reads of many such keys that nobody has written.
    fn long_key(&mut self, who: usize) -> Checked {
        let random = &mut self.hostile.random;
        if random.permille(500) {
            let key = LONG_OWN_KEYS + 4 * who as u64 + random.below(2);
            let act = self.odd_act();
            let id = self.next_hostile_id(who);
            let operation = self.begin_hostile_operation(who, id, key, act, 16);
            return self.ask_hostile(who, &[operation], false);
        }
        let first = LONG_ABSENT_KEYS + random.below(1 << 20);
        let count = random.range(1, 40);
        let operations: Vec<_> = (0..count).map(|key| self.begin_read(who, first + key)).collect();
        self.ask_hostile(who, &operations, false)
    }

    /// A value of no bytes, or of as many as one may have.
    fn odd_value(&mut self, who: usize) -> Checked {
        let id = self.next_hostile_id(who);
        let value = FIRST_VALUE + self.hostile.asked.len() as u64;
        let random = &mut self.hostile.random;
        let (key, act, bytes) = if random.permille(500) || self.hostile.large == LARGE_MAX {
            let act = *random.pick(&[Act::Put(0), Act::Put(0), Act::CasAbsent(0), Act::CasValue(0, 0), Act::Get]);
            (BLANK_KEYS + who as u64, act, 0)
        } else {
            self.hostile.large += 1;
            (own_key(who, SMALL_KEYS), Act::Put(value), self.plan.hostile.value_bytes_max)
        };
        let operation = self.begin_hostile_operation(who, id, key, act, bytes);
        self.ask_hostile(who, &[operation], false)
    }

    /// Requests that are whole and mean nothing: they are refused, each by itself.
    fn nonsense(&mut self, who: usize) -> Checked {
        let Some(conn) = self.some_link(who)? else { return Ok(()) };
        let id = self.next_hostile_id(who);
        let key = key_name(own_key(who, 0));
        let noop = self.hostile.random.permille(500);
        let (client, action) = if noop { (FIRST_CLIENT, Action::Noop) } else { (0, Action::Put(b"from nobody")) };
        let mut body = Vec::new();
        let command = NewCommand { client, id, retry: false, key: &key, action };
        native::put_request_prefix(&mut body, command.encoded_bytes(), ReadMode::Confirm);
        command.encode(&mut body).expect("its sizes are right");
        self.hostile.list[who].last_id = id;
        let link = self.hostile.list[who].links.get_mut(&conn).expect("just chosen");
        if link.waiting.iter().any(|(_, other, _)| *other == id) {
            return Ok(());
        }
        link.waiting.push((0, id, NONSENSE));
        self.send_hostile(who, conn, &wire::frame(Kind::Request, 0, 0, &body));
        Ok(())
    }

    /// Something that is no request at all: the connection ends, or waits for the rest for ever.
    fn broken(&mut self, who: usize) -> Checked {
        let Some(conn) = self.some_link(who)? else { return Ok(()) };
        let random = &mut self.hostile.random;
        let kinds: Vec<Kind> = (0..=255).filter_map(Kind::from_wire).filter(|kind| *kind != Kind::Request).collect();
        let body: Vec<u8> = (0..random.below(100)).map(|_| random.any() as u8).collect();
        let frame = match random.below(5) {
            0 => body,
            1 => {
                let kind = *random.pick(&kinds);
                let bytes = body.len().min(kind.body_bytes_max());
                wire::frame(kind, 7, 9, &body[..bytes]).to_vec()
            }
            2 => wire::frame(Kind::Request, 7, 0, &body).to_vec(),
            3 => {
                let mut frame = wire::frame(Kind::Request, 0, 0, &body).to_vec();
                let place = random.below(frame.len() as u64) as usize;
                frame[place] ^= 1 << random.below(8);
                frame
            }
            _ => {
                // The first half of a frame that says that it is large.
                let frame = wire::frame(Kind::Request, 0, 0, &[0; 5000]);
                frame[..random.range(1, 4000) as usize].to_vec()
            }
        };
        self.hostile.list[who].links.get_mut(&conn).expect("just chosen").is_stuck = true;
        self.send_hostile(who, conn, &frame);
        Ok(())
    }

    /// Many connections, with a hello, a wrong one or none, some of which are not read.
    fn crowd(&mut self, who: usize) -> Checked {
        for _ in 0..self.hostile.random.range(1, 12) {
            let Some(conn) = self.call_hostile(who, true)? else { return Ok(()) };
            let deaf = self.hostile.random.permille(200);
            self.hostile.list[who].links.get_mut(&conn).expect("just made").is_deaf = deaf;
        }
        let links = &self.hostile.list[who].links;
        if links.len() > 20 {
            let gone: Vec<usize> = links.keys().copied().take(15).collect();
            gone.into_iter().for_each(|conn| self.hang_up_on(who, conn));
        }
        Ok(())
    }

    fn next_hostile_id(&mut self, who: usize) -> u64 {
        self.hostile.list[who].last_id.wrapping_add(1)
    }

    fn begin_read(&mut self, who: usize, key: u64) -> usize {
        let id = self.next_hostile_id(who);
        self.begin_hostile_operation(who, id, key, Act::Get, 0)
    }

    fn begin_hostile_operation(&mut self, who: usize, id: u64, key: u64, act: Act, bytes: usize) -> usize {
        let operation = self.hostile.asked.len();
        let read = *self.hostile.random.pick(&[ReadMode::Confirm, ReadMode::Confirm, ReadMode::Log]);
        // A read through the log is a command, which makes an object.
        let read = if is_absent(key) { ReadMode::Confirm } else { read };
        let state = &mut self.hostile.list[who];
        state.last_id = id;
        let first = *state.used.entry(id).or_insert(operation);
        let shares_id = first != operation;
        if shares_id {
            self.hostile.asked[first].shares_id = true;
        }
        let called = self.next_order();
        let (returned, outcome) = (u64::MAX, Outcome::Unknown);
        let new = Asked { id, key, act, read, bytes, called, returned, outcome, sent: 0, refused: 0, shares_id };
        self.hostile.asked.push(new);
        operation
    }

    /// Sends operations in one frame on one of its connections.
    fn ask_hostile(&mut self, who: usize, operations: &[usize], retry: bool) -> Checked {
        let Some(conn) = self.some_link(who)? else { return Ok(()) };
        let client = FIRST_CLIENT + who as u64;
        let mut body = Vec::new();
        for operation in operations {
            let request = self.clients.next_request();
            let asked = &mut self.hostile.asked[*operation];
            asked.sent += 1;
            asked.put_request(&mut body, client, retry, &self.plan);
            let (id, key, act) = (asked.id, asked.key, asked.act);
            let link = self.hostile.list[who].links.get_mut(&conn).expect("just chosen");
            link.waiting.push((request, id, *operation));
            let node = NodeIndex(link.node as u8);
            let asked = Request { connection: conn as u64, command: (client, id), key, act };
            self.watch.borrow_mut().observer.once.asked(request, asked)?;
            self.liveness.asked(request, node, key, self.now, u64::MAX);
            self.say(|| format!("hostile {who}: {act:?} #{id} of key {key}, retry {retry}, on connection {conn}"));
        }
        self.send_hostile(who, conn, &wire::frame(Kind::Request, 0, 0, &body));
        Ok(())
    }

    fn send_hostile(&mut self, who: usize, conn: usize, frame: &[u8]) {
        // If the other side is gone already, the end of the stream is on its way here.
        let _ = self.hostile.list[who].links[&conn].socket.send(&[IoSlice::new(frame)]);
        self.carry();
    }

    /// One of its connections that takes requests, an old or a new one; none if nobody listens where it calls.
    fn some_link(&mut self, who: usize) -> Checked<Option<usize>> {
        let links = &self.hostile.list[who].links;
        let usable: Vec<usize> = links.iter().filter(|(_, link)| !link.is_stuck).map(|(conn, _)| *conn).collect();
        let random = &mut self.hostile.random;
        if !usable.is_empty() && random.permille(700) {
            return Ok(Some(*random.pick(&usable)));
        }
        self.call_hostile(who, false)
    }

    /// A new connection to some shard, with a hello that is as it should be, or may not be.
    fn call_hostile(&mut self, who: usize, oddly: bool) -> Checked<Option<usize>> {
        let random = &mut self.hostile.random;
        let node = random.below(self.plan.nodes() as u64) as usize;
        let shard = random.below(u64::from(self.plan.cluster.shards)) as usize;
        let hello = if oddly { random.below(6) } else { 0 };
        let end = self.end_of(who);
        let Some((conn, socket)) = self.open_client(end, node, shard) else { return Ok(None) };
        let is_stuck = (1..5).contains(&hello);
        let (client, zone) = (if hello == 1 { 0 } else { FIRST_CLIENT + who as u64 }, (hello == 2).then_some(77));
        let said = ClientHello { cluster: None, client, zone };
        let said = serde_json::to_vec(&said).expect("plain fields become JSON");
        let frame = match hello {
            3 => wire::frame(Kind::PeerHello, shard as u16, 0, b"{}"),
            4 => bytes::Bytes::new(),
            _ => wire::frame(Kind::ClientHello, shard as u16, 0, &said),
        };
        let (buffer, waiting) = (Vec::new(), Vec::new());
        let link = Link { node, socket, buffer, waiting, is_deaf: false, is_stuck };
        self.hostile.list[who].links.insert(conn, link);
        self.send_hostile(who, conn, &frame);
        Ok(Some(conn))
    }

    /// Bytes have come to one of them.
    pub(super) fn hostile_reads(&mut self, who: usize, conn: usize, bytes: &[u8]) -> Checked {
        let Some(link) = self.hostile.list[who].links.get_mut(&conn) else { return Ok(()) };
        link.buffer.extend_from_slice(bytes);
        let mut buffer = std::mem::take(&mut link.buffer);
        let mut at = 0;
        while let Some(length) = wire::frame_bytes(&buffer[at..]).expect("shards send frames")
            && at + length <= buffer.len()
        {
            let frame = wire::view(&buffer[at..at + length]).expect("shards send intact frames");
            at += length;
            match frame.kind {
                Kind::Reply => {
                    for reply in native::replies(frame.body) {
                        self.on_hostile_reply(who, conn, &reply.expect("shards send well-formed answers"))?;
                    }
                }
                Kind::ClientWelcome | Kind::Refused | Kind::Stats => {}
                kind => return Err(Rule::WrongAnswer.broken(format!("a client is sent a {kind:?}"))),
            }
        }
        buffer.drain(..at);
        if let Some(link) = self.hostile.list[who].links.get_mut(&conn) {
            link.buffer = buffer;
        }
        Ok(())
    }

    fn on_hostile_reply(&mut self, who: usize, conn: usize, reply: &ReplyRef<'_>) -> Checked {
        let order = self.next_order();
        let wrong = |what: &str| {
            let (id, status) = (reply.id, reply.status);
            Err(Rule::WrongAnswer.broken(format!("hostile client {who} is answered #{id}, {status:?}: {what}")))
        };
        let link = self.hostile.list[who].links.get_mut(&conn).expect("it has just read from it");
        let Some(found) = link.waiting.iter().position(|(_, id, _)| *id == reply.id) else {
            return wrong("it did not ask that there");
        };
        let (request, _, operation) = link.waiting.remove(found);
        if operation == NONSENSE {
            return if reply.status == Status::BadRequest { Ok(()) } else { wrong("it is no valid request") };
        }
        self.say(|| {
            format!("hostile {who}: #{} on connection {conn}: {:?}, version {}", reply.id, reply.status, reply.version)
        });
        let asked = &mut self.hostile.asked[operation];
        let is_blank = is_blank(asked.key);
        let once = &mut self.watch.borrow_mut().observer.once;
        if asked.shares_id || (is_blank && asked.act == Act::Get) {
            once.ended(conn as u64, request)?;
        } else {
            let value = value_number((!reply.value.is_empty()).then_some(reply.value));
            let answer = Answer { status: reply.status, version: reply.version, value };
            once.answered(conn as u64, request, answer)?;
        }
        self.liveness.ended(request);
        if is_blank && !asked.shares_id && !reply.value.is_empty() {
            return wrong("only empty values were written there");
        }
        let was_there = reply.status.is_executed() && (reply.status, reply.version) != (Status::NotFound, 0);
        if is_absent(asked.key) && !asked.shares_id && was_there {
            return wrong("nobody has written that");
        }
        if !asked.shares_id {
            asked.learn(order, reply);
        }
        Ok(())
    }

    /// A connection is gone: what was asked on it may have happened.
    pub(super) fn hostile_cut_off(&mut self, who: usize, conn: usize) {
        let Some(link) = self.hostile.list[who].links.remove(&conn) else { return };
        self.conns[conn].leave(0);
        self.watch.borrow_mut().observer.once.closed(conn as u64);
        link.waiting.iter().for_each(|(request, _, _)| self.liveness.ended(*request));
    }

    fn hang_up_on(&mut self, who: usize, conn: usize) {
        self.hostile.list[who].links[&conn].socket.shutdown();
        self.carry();
        self.hostile_cut_off(who, conn);
    }
}

/// A key that only this one uses; the one behind [`SMALL_KEYS`] is for large values.
fn own_key(who: usize, number: u64) -> u64 {
    OWN_KEYS + (SMALL_KEYS + 1) * who as u64 + number
}

fn is_absent(key: u64) -> bool {
    key & ONLY_READ != 0
}

fn is_blank(key: u64) -> bool {
    (BLANK_KEYS..ABSENT_KEYS).contains(&key)
}
