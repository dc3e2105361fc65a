//! Requests that wait for their answer, and the one place that answers them.

use bytes::Bytes;

use super::{Ballot, ObjectIndex, WPaxos, message::ForwardReplyHead};
use crate::{
    command::{Command, Status, mark_retry},
    mutant::Mutant,
    protocol::{Micros, Outputs, ReadMode, RecordId, Reply, ReplyTo, Request},
    store::Executed,
    topology::{NodeIndex, ZoneIndex},
    wire::{ENTRIES_OPEN_MAX, Kind},
};

/// A place in the table of waiting requests, and which of its tenants.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct RequestKey {
    index: u32,
    tenant: u32,
}

impl RequestKey {
    /// No request: an entry that answers nobody.
    pub(super) const NONE: Self = Self { index: u32::MAX, tenant: 0 };

    pub(super) fn to_wire(self) -> u64 {
        u64::from(self.tenant) << 32 | u64::from(self.index)
    }

    pub(super) fn from_wire(number: u64) -> Self {
        Self { index: number as u32, tenant: (number >> 32) as u32 }
    }
}

/// Whom a request's answer is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Origin {
    /// A client of this node.
    Client(ReplyTo),
    /// Another node that forwarded it over that link's connection under this number. On another connection the node has
    /// asked again, or has restarted and uses the number for another request.
    Node { node: NodeIndex, connection: u64, id: u64 },
}

/// Where a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stage {
    /// It waits for phase 1, or for the taken-over tail.
    Waiting,
    /// It is an entry of this node's stream.
    Proposed,
    /// It is a read that waits for its round.
    Reading,
    /// It is a read of an object that this node has not heard of, and the others are asked.
    Probing,
    /// It was sent to another node over that link's connection with this number.
    Forwarded(NodeIndex, u64),
    /// Its entry was withdrawn: the slot's decision will tell.
    Limbo(Micros),
}

/// A waiting request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    pub(super) origin: Origin,
    /// None if it is a read and this node has not heard of the object.
    pub(super) object: Option<ObjectIndex>,
    pub(super) zone: ZoneIndex,
    pub(super) read: ReadMode,
    pub(super) stage: Stage,
    /// Whether it was ever where it could be executed.
    pub(super) maybe_done: bool,
    /// Whether it only reads, so that "maybe done" is of no interest.
    pub(super) is_write: bool,
    deadline: Micros,
    /// Bytes of the command, kept or not.
    bytes: u32,
    /// The command; empty while the stream holds it.
    pub(super) command: Bytes,
}

impl Waiting {
    /// Whether its owner proposes it.
    pub(super) const fn takes_slot(&self) -> bool {
        !is_round_read(self.is_write, self.read)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Free { next: u32, tenant: u32 },
    Used { tenant: u32, waiting: Waiting },
}

/// The table of waiting requests: places are used again, last freed first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Requests {
    places: Vec<Place>,
    free: u32,
    waiting: usize,
    bytes: usize,
}

const NO_PLACE: u32 = u32::MAX;

impl Requests {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: NO_PLACE, waiting: 0, bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Bytes of their commands.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn insert(&mut self, waiting: Waiting) -> RequestKey {
        self.waiting += 1;
        self.bytes += waiting.bytes as usize;
        if self.free == NO_PLACE {
            self.places.push(Place::Used { tenant: 0, waiting });
            return RequestKey { index: (self.places.len() - 1) as u32, tenant: 0 };
        }
        let index = self.free;
        let place = &mut self.places[index as usize];
        let Place::Free { next, tenant } = *place else { unreachable!("the free list holds free places") };
        self.free = next;
        *place = Place::Used { tenant, waiting };
        RequestKey { index, tenant }
    }

    pub(super) fn get_mut(&mut self, key: RequestKey) -> Option<&mut Waiting> {
        match self.places.get_mut(key.index as usize) {
            Some(Place::Used { tenant, waiting }) if *tenant == key.tenant => Some(waiting),
            _ => None,
        }
    }

    /// Whoever has this key's place now.
    pub(super) fn successor(&self, key: RequestKey) -> RequestKey {
        match self.places.get(key.index as usize) {
            Some(Place::Used { tenant, .. }) => RequestKey { index: key.index, tenant: *tenant },
            _ => key,
        }
    }

    fn remove(&mut self, key: RequestKey) -> Option<Waiting> {
        self.get_mut(key)?;
        let free = Place::Free { next: self.free, tenant: key.tenant.wrapping_add(1) };
        let Place::Used { waiting, .. } = std::mem::replace(&mut self.places[key.index as usize], free) else {
            unreachable!("just seen in use")
        };
        self.free = key.index;
        self.waiting -= 1;
        self.bytes -= waiting.bytes as usize;
        Some(waiting)
    }

    fn keys(&self) -> impl Iterator<Item = (RequestKey, &Waiting)> {
        self.places.iter().enumerate().filter_map(|(index, place)| match place {
            Place::Used { tenant, waiting } => Some((RequestKey { index: index as u32, tenant: *tenant }, waiting)),
            Place::Free { .. } => None,
        })
    }
}

/// Whether a request is a read that the owner answers from its state after a round (`protocol.md` §9).
pub(super) const fn is_round_read(is_write: bool, read: ReadMode) -> bool {
    !is_write && matches!(read, ReadMode::Confirm)
}

/// An answer, before it is known whom it goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) version: u64,
    pub(super) slot: u64,
    /// Whether it was executed before, and nothing was done now.
    pub(super) repeated: bool,
    /// Whether the object's value belongs to the answer.
    pub(super) with_value: bool,
}

impl Answer {
    pub(super) const fn refusal(status: Status) -> Self {
        Self { status, version: 0, slot: 0, repeated: false, with_value: false }
    }

    pub(super) const fn executed(Executed { status, version, repeated }: Executed, slot: u64) -> Self {
        Self { status, version, slot, repeated, with_value: false }
    }
}

impl WPaxos {
    /// Whether a request makes an object where there is none. A read that takes no slot does not: whoever reads what is not
    /// there would fill every node's memory, and a promise cannot be forgotten again.
    pub(super) fn makes_object(&self, command: Command<'_>, read: ReadMode) -> bool {
        !is_round_read(command.op().is_write(), read) || self.config.has(Mutant::ReadMakesObject)
    }

    /// A request of a client of this node.
    pub(super) fn accept_request(&mut self, now: Micros, request: Request<'_>, out: &mut Outputs) {
        let origin = Origin::Client(request.reply_to);
        if !request.command.is_request() {
            // Whatever way it came: what is executed has to be read back from states and logs.
            return self.send_answer(origin, None, Answer::refusal(Status::BadRequest), out);
        }
        let is_logged = !is_round_read(request.command.op().is_write(), request.read);
        if self.is_overloaded(is_logged) || !self.is_admitted() || self.stopping {
            let status = if self.stopping { Status::ShuttingDown } else { Status::Overloaded };
            self.counters.overloaded += 1;
            let object = self.objects.find(request.command.key());
            self.send_answer(origin, object, Answer::refusal(status), out);
            return;
        }
        let (zone, read) = (request.zone, request.read);
        self.admit(now, origin, zone, read, request.command, request.frame);
    }

    /// Whether this node serves anybody: a replica that has lost its state must not answer from nothing.
    pub(super) fn is_admitted(&self) -> bool {
        self.may_vote()
    }

    /// Whether no more requests are taken; where only the log has no room, reads that leave nothing in it are.
    pub(super) fn is_overloaded(&self, is_logged: bool) -> bool {
        (is_logged && self.is_log_full && !self.config.has(Mutant::LogNeverFull))
            || self.requests.len() >= self.config.flow.requests_max
            || self.requests.bytes() >= self.config.flow.client_memory_bytes_max
            || self.stream.inflight_bytes() >= self.config.flow.stream_inflight_bytes_max
            || self.stream.last_seq() - self.stream.committed >= ENTRIES_OPEN_MAX as u64 / 2
    }

    /// Takes a request into the table and does with it what the object's role says. The owner's own path keeps nothing
    /// but the entry in the stream.
    pub(super) fn admit(
        &mut self,
        now: Micros,
        origin: Origin,
        zone: ZoneIndex,
        read: ReadMode,
        command: Command<'_>,
        frame: &Bytes,
    ) {
        let makes = self.makes_object(command, read);
        let object = self.object_ahead(command.key(), makes);
        let is_write = command.op().is_write();
        let key = self.requests.insert(Waiting {
            origin,
            object,
            zone,
            read,
            stage: Stage::Waiting,
            maybe_done: false,
            is_write,
            deadline: now.plus(self.config.timers.request_timeout_us),
            bytes: command.bytes().len() as u32,
            command: Bytes::new(),
        });
        let leads = object.is_some_and(|object| self.objects[object].leading().is_some());
        if !leads || is_round_read(is_write, read) {
            self.requests.get_mut(key).expect("just put in").command = frame.slice_ref(command.bytes());
        }
        if leads {
            self.serve(now, key, command);
        } else {
            self.route(now, key);
        }
    }

    /// Does with a waiting request, whose command is kept, what the object's role says (`protocol.md` §6).
    pub(super) fn route(&mut self, now: Micros, key: RequestKey) {
        let Some(waiting) = self.requests.get_mut(key) else { return };
        assert!(!waiting.command.is_empty(), "a request that is routed has its command");
        waiting.stage = Stage::Waiting;
        let command = waiting.command.clone();
        let Some(object) = self.object_of_request(key) else { return self.enrol_probe(now, key) };
        if self.objects[object].leading().is_some() {
            self.serve(now, key, Command::view(&command));
            return;
        }
        if let super::Role::Preparing(preparing) = &mut self.objects[object].role {
            preparing.hold(&mut self.requests, key);
            return;
        }
        match self.owner_of(object) {
            Some(owner) if owner != self.config.me && !self.is_suspected(now, owner) => self.forward(key, owner),
            _ => self.start_phase1(now, object, Some(key)),
        }
    }

    /// The object of a waiting request, of which this node may have heard since it came.
    fn object_of_request(&mut self, key: RequestKey) -> Option<ObjectIndex> {
        let waiting = self.requests.get_mut(key).expect("it waits");
        if waiting.object.is_none() {
            waiting.object = self.objects.find(Command::view(&waiting.command).key());
        }
        waiting.object
    }

    /// Routes a request again that may have been executed already: from here on it is a retry.
    pub(super) fn reroute_as_retry(&mut self, now: Micros, key: RequestKey) {
        let Some(waiting) = self.requests.get_mut(key) else { return };
        let unmarked = waiting.is_write && !Command::view(&waiting.command).is_retry();
        if unmarked && !self.config.has(Mutant::RerouteUnmarked) {
            let mut command = waiting.command.to_vec();
            mark_retry(&mut command);
            waiting.command = command.into();
        }
        self.route(now, key);
    }

    /// The owner's part: propose, or enrol a read.
    fn serve(&mut self, now: Micros, key: RequestKey, command: Command<'_>) {
        let waiting = self.requests.get_mut(key).expect("a request that is served waits");
        let (object, zone) = (waiting.object.expect("an owner has the object"), waiting.zone);
        if !waiting.takes_slot() {
            self.enrol_read(now, key, object);
        } else if self.objects[object].free_slots(&self.config) == 0 {
            if waiting.command.is_empty() {
                waiting.command = Bytes::copy_from_slice(command.bytes());
            }
            self.objects[object].rare().parked.push_back(key);
        } else {
            waiting.stage = Stage::Proposed;
            waiting.maybe_done = true;
            waiting.command = Bytes::new();
            self.propose(now, object, command, key);
        }
        self.note_access(now, object, zone);
    }

    /// Answers a waiting request and forgets it; nothing happens if it has been answered.
    pub(super) fn answer(&mut self, key: RequestKey, answer: Answer, out: &mut Outputs) {
        if let Some(waiting) = self.requests.remove(key) {
            self.send_answer(waiting.origin, waiting.object, answer, out);
        }
    }

    pub(super) fn send_answer(
        &mut self,
        origin: Origin,
        object: Option<ObjectIndex>,
        answer: Answer,
        out: &mut Outputs,
    ) {
        let known = object.map(|object| &self.objects[object]);
        let value = known.filter(|_| answer.with_value).and_then(|object| object.state.value.as_deref());
        let mut answer = answer;
        let mut value = value.unwrap_or_default();
        if !value.is_empty() && out.value_bytes.len() >= Outputs::VALUE_BYTES_MAX {
            // A read that is not answered has not happened.
            (answer, value) = (Answer { status: Status::Overloaded, ..answer }, &[]);
        }
        let promised = known.map_or(Ballot::ZERO, |object| object.promised);
        match origin {
            Origin::Client(to) => {
                let start = out.value_bytes.len();
                out.value_bytes.extend_from_slice(value);
                out.replies.push(Reply {
                    to,
                    status: answer.status,
                    version: answer.version,
                    slot: answer.slot,
                    repeated: answer.repeated,
                    ballot: promised.number,
                    owner: promised.owner(),
                    value: start..out.value_bytes.len(),
                });
            }
            Origin::Node { node, connection, .. } if self.links[node.index()].connection() != connection => {}
            Origin::Node { node, id, .. } => {
                let head = ForwardReplyHead {
                    id: id.into(),
                    version: answer.version.into(),
                    slot: answer.slot.into(),
                    ballot: promised.number.into(),
                    value_bytes: (value.len() as u32).into(),
                    status: answer.status as u8,
                    redirect: 0,
                    repeated: answer.repeated.into(),
                    reserved: 0,
                };
                self.links[node.index()].put(Kind::ForwardReply, RecordId::NONE, &head, &[value]);
            }
        }
    }

    /// An answer from another node for a request that was forwarded.
    pub(super) fn pass_answer(
        &mut self,
        key: RequestKey,
        reply: &ForwardReplyHead,
        status: Status,
        value: &[u8],
        out: &mut Outputs,
    ) {
        let Some(waiting) = self.requests.remove(key) else { return };
        // A refusal speaks for the last attempt only; an earlier one went elsewhere and may have been executed. That another
        // command has its id is known of all attempts.
        let again = waiting.is_write && Command::view(&waiting.command).is_retry();
        let is_doubtful = again && status.is_refused() && status != Status::IdReused;
        let status = if is_doubtful { Status::TimeoutMaybeDone } else { status };
        let ballot = Ballot { version: self.config.version, number: reply.ballot.get() };
        match waiting.origin {
            Origin::Client(to) => {
                let start = out.value_bytes.len();
                out.value_bytes.extend_from_slice(value);
                out.replies.push(Reply {
                    to,
                    status,
                    version: reply.version.get(),
                    slot: reply.slot.get(),
                    repeated: reply.repeated == 1,
                    ballot: ballot.number,
                    owner: ballot.owner(),
                    value: start..out.value_bytes.len(),
                });
            }
            Origin::Node { node, connection, .. } if self.links[node.index()].connection() != connection => {}
            Origin::Node { node, id, .. } => {
                let head = ForwardReplyHead { id: id.into(), status: status as u8, ..*reply };
                self.links[node.index()].put(Kind::ForwardReply, RecordId::NONE, &head, &[value]);
            }
        }
    }

    /// The slot of a withdrawn entry is decided, or skipped over by an installed state: tells its request what became
    /// of it (`protocol.md` §7).
    pub(super) fn settle_limbo(&mut self, now: Micros, object: ObjectIndex, out: &mut Outputs) {
        let applied = self.objects[object].applied;
        let Some(rare) = &mut self.objects[object].rare else { return };
        if rare.limbo.is_empty() {
            return;
        }
        let settled: Vec<_> = rare.limbo.extract_if(.., |(slot, _)| *slot <= applied).collect();
        for (slot, key) in settled {
            self.settle_request(now, object, slot, key, out);
        }
    }

    fn settle_request(&mut self, now: Micros, object: ObjectIndex, slot: u64, key: RequestKey, out: &mut Outputs) {
        let Some(waiting) = self.requests.get_mut(key) else { return };
        if !matches!(waiting.stage, Stage::Limbo(_)) {
            return;
        }
        let bytes = waiting.command.clone();
        let command = Command::view(&bytes);
        if !waiting.is_write {
            self.route(now, key);
            return;
        }
        let state = &self.objects[object].state;
        match state.judge_retry(command).answer(state.version) {
            None => self.reroute_as_retry(now, key),
            // Of a first copy that is done, it is this entry that was executed.
            Some(executed) => {
                let repeated = executed.repeated && command.is_retry();
                self.answer(key, Answer::executed(Executed { repeated, ..executed }, slot), out);
            }
        }
    }

    /// Ends requests whose time is over, and sends those again whose way was cut (`protocol.md` §6: no request waits for
    /// ever).
    pub(super) fn check_requests(&mut self, now: Micros, out: &mut Outputs) {
        let mut due = std::mem::take(&mut self.scratch_keys);
        due.extend(self.requests.keys().filter(|(_, waiting)| self.needs_attention(now, waiting)).map(|(key, _)| key));
        for key in due.drain(..) {
            let Some(waiting) = self.requests.get_mut(key) else { continue };
            if waiting.deadline <= now {
                let maybe = waiting.maybe_done && waiting.is_write;
                let status = if maybe { Status::TimeoutMaybeDone } else { Status::TimeoutNotDone };
                self.counters.timeouts += 1;
                self.answer(key, Answer::refusal(status), out);
            } else if self.config.has(Mutant::LimboGuessed) && matches!(waiting.stage, Stage::Limbo(_)) {
                self.answer(key, Answer::refusal(Status::TimeoutNotDone), out);
            } else if waiting.maybe_done {
                self.reroute_as_retry(now, key);
            } else {
                self.route(now, key);
            }
        }
        self.scratch_keys = due;
    }

    /// A slot in limbo may never be decided by itself: its entry may have reached nobody that the next owner asked. After
    /// a while the request goes there as a retry: should the entry be chosen yet, then in its own, lower slot.
    fn needs_attention(&self, now: Micros, waiting: &Waiting) -> bool {
        if self.config.has(Mutant::ForwardLeft) && matches!(waiting.stage, Stage::Forwarded(..)) {
            return false;
        }
        if waiting.deadline <= now {
            return true;
        }
        match waiting.stage {
            Stage::Forwarded(node, connection) => {
                let link = &self.links[node.index()];
                self.is_suspected(now, node) || (link.is_up() && link.connection() != connection)
            }
            Stage::Limbo(since) => now.since(since) > self.limbo_patience(),
            _ => false,
        }
    }

    /// How long the next owner's decision of a slot takes to come, if it comes: longer waits only let later commands of the
    /// same client overtake.
    fn limbo_patience(&self) -> u64 {
        let longest = self.links.iter().map(|link| u64::from(link.rtt_us)).max().unwrap_or(0);
        self.config.batch.learner_delay_us + 2 * longest
    }

    /// Answers everything that waits with what is certain about it: the replica stops.
    pub(super) fn refuse_all(&mut self, out: &mut Outputs) {
        self.stopping = true;
        let keys: Vec<RequestKey> = self.requests.keys().map(|(key, _)| key).collect();
        for key in keys {
            let waiting = self.requests.get_mut(key).expect("just listed");
            let maybe = waiting.maybe_done && waiting.is_write;
            let status = if maybe { Status::TimeoutMaybeDone } else { Status::ShuttingDown };
            self.answer(key, Answer::refusal(status), out);
        }
    }
}
