//! Phase 1: taking an object (`protocol.md` §4), as a candidate and as an acceptor.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use zerocopy::{IntoBytes, little_endian::U32};

use super::{
    Ballot, Config, Link, ObjectIndex, RequestKey, Requests, Role, WPaxos,
    message::{
        NUMBER_MAX, PrepareHead, PromiseHead, ROUND_MAX, Reader, RejectHead, TailHead, ballot_from, earlier_ballot,
        put_state,
    },
    object::{Leading, TailEntry},
};
use crate::{
    command::{Action, NewCommand},
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    store::ObjectState,
    topology::{NodeIndex, NodeSet},
    wire::{ENTRIES_OPEN_MAX, Frame, FrameError, Kind, SPLIT_BYTES},
};

/// Slots that can be open at once: far more than the bound on what is uncommitted allows.
const SLOTS_OPEN_MAX: u64 = 1 << 20;

/// Of these, slots that nobody reports, each of which costs a no-op with the object's key: an owner has far fewer open at once.
const GAPS_MAX: u64 = 4096;

/// How many entries of this node's stream may be open once it leads one object more: the rest is for what it leads already.
const ENTRIES_LED_MAX: u64 = ENTRIES_OPEN_MAX as u64 / 4 * 3;
const _: () = assert!(SLOTS_OPEN_MAX < ENTRIES_LED_MAX);

/// How many requests a candidacy may hold before it looks which of them have ended.
const SWEEP_MIN: usize = 64;

/// A candidacy for one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Preparing {
    /// Who has promised this ballot, this node included once its own promise is durable.
    answered: NodeSet,
    /// Promises of which only some parts have come: whose, on which connection, and the part that comes next.
    partial: SmallVec<[(NodeIndex, u64, u32); 1]>,
    /// The most advanced state that was reported, if it is ahead of this node's.
    best: Option<(u64, ObjectState)>,
    /// Per slot what acceptors reported: a decision, or else the command with the highest ballot.
    reported: BTreeMap<u64, Reported>,
    /// Requests that wait for the outcome. Those that have ended meanwhile are swept out when there are this many.
    pub(super) waiting: Vec<RequestKey>,
    sweep_at: usize,
    /// By node the connection that the Prepare was last sent on: what was sent on a connection arrives if that lasts, so that
    /// only a later one needs it again. Asked twice, a node would report its tail twice, on a link that may be too slow for
    /// once.
    asked: Vec<u64>,
    /// When to look for such connections.
    retry_at: Micros,
    attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reported {
    pub(super) ballot: Ballot,
    pub(super) decided: bool,
    pub(super) command: Bytes,
}

/// A promise, or a part of one, as it was read.
struct PromiseRow {
    object: ObjectIndex,
    ballot: Ballot,
    applied: u64,
    state: Option<ObjectState>,
    reported: Vec<(u64, Reported)>,
    part: u32,
    more: bool,
}

impl Preparing {
    /// Whether this part of an acceptor's promise goes on where the last one ended, on the same connection. The first part
    /// begins the promise anew.
    fn follows(&mut self, from: NodeIndex, connection: u64, part: u32, more: bool) -> bool {
        let place = self.partial.iter().position(|(node, ..)| *node == from);
        let expected = place.map(|place| self.partial.swap_remove(place)).filter(|(_, on, _)| *on == connection);
        if part > 0 && expected.is_none_or(|(_, _, next)| next != part) {
            return false;
        }
        if more {
            self.partial.push((from, connection, part + 1));
        }
        true
    }

    /// Holds a request until the candidacy has ended; it may last much longer than requests do.
    pub(super) fn hold(&mut self, requests: &mut Requests, request: RequestKey) {
        if self.waiting.len() >= self.sweep_at {
            self.waiting.retain(|waiting| requests.get_mut(*waiting).is_some());
            self.sweep_at = 2 * self.waiting.len() + SWEEP_MIN;
        }
        self.waiting.push(request);
    }
}

/// The candidate.
impl WPaxos {
    /// Begins phase 1 (§IV-A) with the next round's ballot, which is durable as this node's own promise before anybody
    /// sees it.
    pub(super) fn start_phase1(&mut self, now: Micros, object: ObjectIndex, request: Option<RequestKey>) {
        assert!(self.objects[object].is_idle(), "a node that leads or prepares does not start again");
        let round = self.objects[object].promised.round() + 1;
        if round >= ROUND_MAX {
            // No ballot above it can be told: nobody takes the object any more, and requests for it end in time-outs.
            self.counters.rounds_exhausted += 1;
            return;
        }
        let ballot = Ballot::new(self.config.version, round, self.config.my_id());
        let retry_at = now.plus(self.prepare_patience());
        let asked = |link: &Link| if link.is_up() { link.connection() } else { 0 };
        let asked = self.links.iter().map(asked).collect();
        let known = &mut self.objects[object];
        assert!(ballot > known.promised, "the next round is above every ballot seen");
        known.promised = ballot;
        known.role = Role::Preparing(Box::new(Preparing {
            answered: NodeSet::EMPTY,
            partial: SmallVec::new(),
            best: None,
            reported: BTreeMap::new(),
            waiting: request.into_iter().collect(),
            sweep_at: SWEEP_MIN,
            asked,
            retry_at,
            attempts: 0,
        }));
        self.prepare_timers.insert((retry_at, object));
        self.new_candidacies.push((object, ballot));
        self.counters.phase1_started += 1;
    }

    /// How long answers may take: the configured time, or twice the longest round trip if that is more; but a link that
    /// stood still for a while must not make requests wait for their whole time-out.
    fn prepare_patience(&self) -> u64 {
        let up = self.links.iter().filter(|link| link.is_up());
        let longest = up.map(|link| link.rtt_us).max().unwrap_or(0);
        let timers = &self.config.timers;
        (2 * u64::from(longest)).min(timers.request_timeout_us / 4).max(timers.prepare_retry_us)
    }

    /// Sends the Prepares of this turn, in one row of frames for all peers and the log.
    pub(super) fn send_prepares(&mut self, out: &mut Outputs) {
        self.log_prepares();
        for (after, frame) in self.unsent_prepares.drain(..) {
            let up = self.links.iter().enumerate().filter(|(_, link)| link.is_up());
            let after = if self.config.has(Mutant::PrepareBeforeDurable) { RecordId(0) } else { after };
            out.sends.extend(up.map(|(node, _)| crate::protocol::Send {
                to: NodeIndex(node as u8),
                frame: frame.clone(),
                after,
            }));
        }
    }

    /// This node's own promise is durable and counts.
    pub(super) fn on_own_promise(&mut self, now: Micros, object: ObjectIndex, ballot: Ballot) {
        let me = self.config.me;
        let known = &mut self.objects[object];
        if known.promised != ballot {
            return;
        }
        if let Role::Preparing(preparing) = &mut known.role {
            preparing.answered.insert(me);
            self.try_to_lead(now, object);
        }
    }

    /// Phase 1b at the candidate: promises for *this* ballot count, each with state and tail.
    pub(super) fn on_promises(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let rows = Reader::new(frame).rows(|reader| self.read_promise(reader, frame))?;
        for row in rows {
            self.on_promise(now, from, row);
        }
        Ok(())
    }

    fn read_promise(&self, reader: &mut Reader<'_>, frame: &Frame) -> Result<PromiseRow, FrameError> {
        let head: PromiseHead = *reader.take()?;
        reader.zero(head.reserved)?;
        let key = reader.key(head.key_bytes)?;
        let applied = reader.number(head.applied)?;
        let with_state = head.state_bytes.get() > 0;
        let state = if with_state { Some(reader.state(head.state_bytes, applied)?) } else { None };
        let reported = read_tail(reader, frame, key, head.tail.get())?;
        let ballot = ballot_from(reader, frame.config_version, head.ballot)?;
        if reported.iter().any(|(_, entry)| entry.ballot > ballot) {
            return Err(reader.wrong("it promises a ballot below one that it has accepted at"));
        }
        let object = self.objects.find(key);
        let object = object.ok_or_else(|| reader.wrong("it promises an object that was never asked for"))?;
        let (part, more) = (head.part.get(), reader.flag(head.more)?);
        if (part > 0 && with_state) || (more && reported.is_empty()) {
            return Err(reader.wrong("it is no part of a promise"));
        }
        Ok(PromiseRow { object, ballot, applied, state, reported, part, more })
    }

    fn on_promise(&mut self, now: Micros, from: NodeIndex, row: PromiseRow) {
        let PromiseRow { object, ballot, applied, state, reported, part, more } = row;
        let connection = self.links[from.index()].connection();
        let known = &mut self.objects[object];
        if known.promised != ballot && !self.config.has(Mutant::PromiseOfAnotherBallot) {
            return;
        }
        let Role::Preparing(preparing) = &mut known.role else { return };
        if part == 0 && applied > known.applied && state.is_none() {
            // Its watermark without its state: it cannot be counted, what it executed would be lost.
            return;
        }
        if !preparing.follows(from, connection, part, more) {
            return;
        }
        let first_only = self.config.has(Mutant::FirstStateTaken);
        if let Some(state) = state
            && preparing.best.as_ref().is_none_or(|(best, _)| *best < applied && !first_only)
        {
            preparing.best = Some((applied, state));
        }
        // Parts tell nothing but what was accepted or decided: the more a candidate knows, whoever counts, the better.
        for (slot, entry) in reported {
            preparing.merge(&self.config, slot, entry);
        }
        if !more {
            preparing.answered.insert(from);
            self.try_to_lead(now, object);
        }
    }

    /// Leads with a Q1 of promises. This node's own need not be among them: a promise that came back proves that the Prepare
    /// was sent, hence that one's own was durable.
    fn try_to_lead(&mut self, now: Micros, object: ObjectIndex) {
        let Role::Preparing(preparing) = &self.objects[object].role else { return };
        if self.config.is_phase1_quorum(preparing.answered) {
            self.lead(now, object);
        }
    }

    /// Installs the most advanced state, proposes again every slot above it up to the highest one reported (a decision, else
    /// the command with the highest ballot, else a no-op), and then serves what waited.
    pub(super) fn lead(&mut self, now: Micros, object: ObjectIndex) {
        let role = std::mem::replace(&mut self.objects[object].role, Role::Idle);
        let Role::Preparing(mut preparing) = role else { unreachable!("only a candidate leads") };
        let mut installed = false;
        if let Some((applied, state)) = preparing.best.take()
            && applied > self.objects[object].applied
        {
            self.install(object, applied, state);
            self.log_installed(object);
            installed = true;
        }
        if !self.config.has(Mutant::OwnTailForgotten) {
            self.merge_own_tail(object, &mut preparing);
        }
        let applied = self.objects[object].applied;
        let highest = preparing.reported.keys().next_back().copied().unwrap_or(0).max(applied);
        let open = self.stream.last_seq() - self.stream.committed + (highest - applied);
        // Half open, for `(applied + 1)..=highest` is a panic where nothing is reported.
        let gaps = highest - applied - preparing.reported.range(applied + 1..highest + 1).count() as u64;
        if highest - applied > SLOTS_OPEN_MAX || gaps > GAPS_MAX || open > ENTRIES_LED_MAX {
            // Somebody reports a slot that cannot be, or nothing is committed any more: better no owner than endless no-ops.
            self.orphaned_requests.extend(preparing.waiting);
            return;
        }
        let leading = Leading { next_slot: highest + 1, settled: highest, round: 0 };
        self.objects[object].role = Role::Leading(leading);
        self.counters.phase1_won += 1;
        for slot in applied + 1..=highest {
            let reported = preparing.reported.remove(&slot);
            let wrongly = reported.is_some() && self.config.has(Mutant::AnswersWaiting);
            let answered = if wrongly { preparing.waiting.pop() } else { None };
            self.take_over_slot(now, object, slot, reported, answered.unwrap_or(RequestKey::NONE));
        }
        if installed && highest == applied && highest + 1 < NUMBER_MAX && !self.config.has(Mutant::InstalledUntold) {
            // Whose stream decided what was installed may have ended: others that lack it learn so from a slot above it.
            let Role::Leading(leading) = &mut self.objects[object].role else { unreachable!("it leads") };
            leading.next_slot += 1;
            self.take_over_slot(now, object, highest + 1, None, RequestKey::NONE);
        }
        self.executable.push(object);
        self.ready_requests.extend(preparing.waiting);
    }

    fn merge_own_tail(&mut self, object: ObjectIndex, preparing: &mut Preparing) {
        for entry in self.objects[object].tail.iter() {
            let command = Bytes::copy_from_slice(self.source_command(&entry.source).bytes());
            preparing.merge(
                &self.config,
                entry.slot,
                Reported { ballot: entry.ballot, decided: entry.decided, command },
            );
        }
    }

    fn take_over_slot(
        &mut self,
        now: Micros,
        object: ObjectIndex,
        slot: u64,
        reported: Option<Reported>,
        request: RequestKey,
    ) {
        let Some(reported) = reported else {
            if self.config.has(Mutant::GapNotFilled) {
                return;
            }
            let key = self.objects[object].key.clone();
            let noop = NewCommand { client: 0, id: 0, retry: false, key: &key, action: Action::Noop };
            let mut bytes = Vec::with_capacity(noop.encoded_bytes());
            noop.encode(&mut bytes).expect("the object's key is a key");
            self.counters.noops += 1;
            self.propose_at(now, object, slot, &bytes, RequestKey::NONE);
            return;
        };
        if reported.decided {
            let source = super::object::Source::Held(Box::new(reported.command.clone()));
            let ballot = reported.ballot;
            self.objects[object].tail.put(super::object::TailEntry { slot, ballot, decided: true, source });
        }
        self.counters.taken_over += 1;
        self.propose_at(now, object, slot, &reported.command, request);
    }

    /// A Prepare was beaten: the winner's ballot is known now, and requests go to it.
    pub(super) fn on_rejects(&mut self, now: Micros, frame: &Frame) -> Result<(), FrameError> {
        for (key, higher) in read_rejects(frame)? {
            if let Some(object) = self.objects.find(key) {
                self.counters.rejected += 1;
                self.hear(now, object, higher);
            }
        }
        Ok(())
    }

    /// Sends Prepares again to those that have not answered and were asked on a connection that is gone, if at all: at once
    /// when a link comes up, and after a random, growing time; a link without room is left for later. A candidacy ends by
    /// being won or beaten only: others may rely on it to decide what it found.
    pub(super) fn check_candidacies(&mut self, now: Micros, out: &Outputs) {
        if self.prepare_timers.first().is_none_or(|(at, _)| *at > now) {
            return;
        }
        if !self.config.has(Mutant::PrepareBeforeOwnRecord) {
            // A candidacy of this very turn may be asked for again: its record comes first.
            self.log_prepares();
        }
        while let Some(&(at, object)) = self.prepare_timers.first().filter(|(at, _)| *at <= now) {
            self.prepare_timers.pop_first();
            self.retry_prepare(now, at, object, out);
        }
    }

    /// A peer has a vote now, on a connection on which it had none: it is asked as if it had just come.
    pub(super) fn ask_anew(&mut self, now: Micros, peer: NodeIndex) {
        for (_, object) in &self.prepare_timers {
            if let Role::Preparing(preparing) = &mut self.objects[*object].role {
                preparing.asked[peer.index()] = 0;
            }
        }
        self.hasten_candidacies(now);
    }

    /// A link has come up: whoever is behind it may not have been asked yet.
    pub(super) fn hasten_candidacies(&mut self, now: Micros) {
        for (_, object) in std::mem::take(&mut self.prepare_timers) {
            if let Role::Preparing(preparing) = &mut self.objects[object].role {
                (preparing.retry_at, preparing.attempts) = (now, 0);
                self.prepare_timers.insert((now, object));
            }
        }
    }

    fn retry_prepare(&mut self, now: Micros, at: Micros, object: ObjectIndex, out: &Outputs) {
        let patience = self.prepare_patience();
        let timers = &self.config.timers;
        let early = self.config.has(Mutant::PrepareBeforeOwnRecord);
        let own_promise = if early { RecordId::NONE } else { self.logged };
        let jitter = self.random.next();
        let known = &mut self.objects[object];
        let Role::Preparing(preparing) = &mut known.role else { return };
        if preparing.retry_at != at || self.config.has(Mutant::PrepareOnce) {
            return;
        }
        let spread = (timers.backoff_min_us << preparing.attempts.min(20)).min(timers.backoff_max_us).max(1);
        let wait = (patience << preparing.attempts.min(20)).min(timers.request_timeout_us.max(patience));
        preparing.attempts += 1;
        preparing.retry_at = now.plus(wait + jitter % spread);
        self.prepare_timers.insert((preparing.retry_at, object));
        let head = prepare_head(known.promised, known.applied, &known.key);
        for (node, link) in self.links.iter_mut().enumerate() {
            let is_new = link.is_up() && link.connection() != preparing.asked[node];
            let has_room = out.room[node] > 0;
            if is_new && has_room && !preparing.answered.contains(NodeIndex(node as u8)) {
                preparing.asked[node] = link.connection();
                link.put(Kind::Prepare, own_promise, &head, &[&known.key]);
                self.counters.prepares_repeated += 1;
            }
        }
    }
}

/// The acceptor.
impl WPaxos {
    /// Phase 1a at an acceptor: promises what is not below its promise, and says everything that it knows of the object;
    /// rejects the rest with the ballot that beat it.
    pub(super) fn on_prepares(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        if !self.may_vote() && !self.replaying {
            // Once it votes, it is asked again.
            return Ok(());
        }
        let candidate = self.config.nodes[from.index()];
        let rows = Reader::new(frame).rows(|reader| {
            let head: &PrepareHead = reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            let ballot = ballot_from(reader, frame.config_version, head.ballot)?;
            if ballot.owner() != Some(candidate) {
                return Err(reader.wrong("it asks for somebody else's ballot"));
            }
            Ok((key, ballot, reader.number(head.applied)?))
        })?;
        self.log_received(from, frame);
        for (key, ballot, applied) in rows {
            let object = self.object_of(key);
            self.on_prepare(now, from, object, ballot, applied);
        }
        Ok(())
    }

    fn on_prepare(&mut self, now: Micros, from: NodeIndex, object: ObjectIndex, ballot: Ballot, applied: u64) {
        let promised = self.objects[object].promised;
        if self.config.is_below(ballot, promised) {
            let key = &self.objects[object].key;
            let head = reject_head(ballot, promised, key);
            self.links[from.index()].put(Kind::Reject, RecordId::NONE, &head, &[key]);
            return;
        }
        let keeps_lead = self.config.has(Mutant::PromiseKeepsLead) && self.objects[object].leading().is_some();
        if !keeps_lead {
            self.raise(now, object, ballot);
        }
        self.counters.promises += 1;
        self.send_promise(from, object, ballot, applied);
    }

    /// The whole promise: watermark, state if the candidate's is older, and every slot above it, decided ones too; in several
    /// parts if the tail is long.
    fn send_promise(&mut self, to: NodeIndex, object: ObjectIndex, ballot: Ballot, candidate_applied: u64) {
        let early = self.config.has(Mutant::PromiseBeforeDurable);
        let own_promise = if early { RecordId::NONE } else { self.logged };
        let known = &self.objects[object];
        let (stream, inbound) = (&self.stream, &self.inbound);
        let without_decided = self.config.has(Mutant::PromiseWithoutDecided);
        let without_state = self.config.has(Mutant::PromiseWithoutState);
        let applied = if without_state { known.applied.min(candidate_applied) } else { known.applied };
        let mut tail = known.tail.iter().filter(|entry| !(without_decided && entry.decided)).peekable();
        let link = &mut self.links[to.index()];
        let (mut part, mut more) = (0u32, link.is_up());
        while more {
            link.put_with(Kind::Promise, own_promise, |buffer| {
                let start = buffer.len();
                let mut head = PromiseHead {
                    ballot: ballot.number.into(),
                    applied: applied.into(),
                    state_bytes: 0.into(),
                    tail: 0.into(),
                    key_bytes: (known.key.len() as u16).into(),
                    more: 0,
                    reserved: 0,
                    part: part.into(),
                };
                buffer.extend_from_slice(head.as_bytes());
                buffer.extend_from_slice(&known.key);
                if part == 0 && applied > candidate_applied {
                    head.state_bytes = (put_state(buffer, &known.state) as u32).into();
                }
                head.tail = put_tail_part(buffer, &mut tail, |buffer, entry| {
                    put_tail(buffer, entry, super::command_of(stream, inbound, &entry.source).bytes());
                });
                more = tail.peek().is_some();
                head.more = more.into();
                buffer[start..start + size_of::<PromiseHead>()].copy_from_slice(head.as_bytes());
            });
            part += 1;
        }
    }
}

impl Preparing {
    /// A decision beats everything; else the highest ballot does.
    fn merge(&mut self, config: &Config, slot: u64, entry: Reported) {
        let is_higher = |known: &Reported| match () {
            () if config.has(Mutant::LowestBallotTaken) => entry.ballot < known.ballot,
            () if config.has(Mutant::FirstCommandTaken) => false,
            () => entry.ballot > known.ballot,
        };
        let is_better = |known: &Reported| !known.decided && (entry.decided || is_higher(known));
        if self.reported.get(&slot).is_none_or(is_better) {
            self.reported.insert(slot, entry);
        }
    }
}

pub(super) fn prepare_head(ballot: Ballot, applied: u64, key: &[u8]) -> PrepareHead {
    PrepareHead {
        ballot: ballot.number.into(),
        applied: applied.into(),
        key_bytes: (key.len() as u16).into(),
        reserved: [0; 6],
    }
}

/// A ballot was beaten by a higher one.
pub(super) fn reject_head(ballot: Ballot, higher: Ballot, key: &[u8]) -> RejectHead {
    RejectHead {
        ballot: ballot.number.into(),
        higher: higher.number.into(),
        key_bytes: (key.len() as u16).into(),
        reserved: [0; 6],
    }
}

/// Appends so many entries of a tail as go into one row, and says how many.
pub(super) fn put_tail_part<'a>(
    buffer: &mut BytesMut,
    tail: &mut impl Iterator<Item = &'a TailEntry>,
    mut put: impl FnMut(&mut BytesMut, &TailEntry),
) -> U32 {
    let (start, mut entries) = (buffer.len(), 0u32);
    while buffer.len() - start < SPLIT_BYTES
        && let Some(entry) = tail.next()
    {
        put(buffer, entry);
        entries += 1;
    }
    entries.into()
}

/// Appends a tail entry.
pub(super) fn put_tail(buffer: &mut BytesMut, entry: &TailEntry, command: &[u8]) {
    let head = TailHead {
        slot: entry.slot.into(),
        ballot: entry.ballot.number.into(),
        ballot_version: entry.ballot.version.into(),
        command_bytes: (command.len() as u32).into(),
        decided: entry.decided.into(),
        reserved: [0; 3],
    };
    buffer.extend_from_slice(head.as_bytes());
    buffer.extend_from_slice(command);
}

/// A tail of so many entries: slots rise, and every command is the object's.
pub(super) fn read_tail(
    reader: &mut Reader<'_>,
    frame: &Frame,
    key: &[u8],
    entries: u32,
) -> Result<Vec<(u64, Reported)>, FrameError> {
    let mut tail: Vec<(u64, Reported)> = Vec::new();
    for _ in 0..entries {
        let head: &TailHead = reader.take()?;
        reader.zero(head.reserved)?;
        let command = frame.bytes.slice_ref(reader.entry_of(key, head.command_bytes)?.bytes());
        let ballot = earlier_ballot(reader, frame, head.ballot_version, head.ballot)?;
        let (slot, decided) = (reader.slot(head.slot)?, reader.flag(head.decided)?);
        if tail.last().is_some_and(|(last, _)| *last >= slot) {
            return Err(reader.wrong("the slots of a tail do not rise"));
        }
        tail.push((slot, Reported { ballot, decided, command }));
    }
    Ok(tail)
}

/// Objects, each with a ballot that beat another.
pub(super) fn read_rejects(frame: &Frame) -> Result<Vec<(&[u8], Ballot)>, FrameError> {
    Reader::new(frame).rows(|reader| {
        let head: &RejectHead = reader.take()?;
        reader.zero(head.reserved)?;
        let key = reader.key(head.key_bytes)?;
        Ok((key, ballot_from(reader, frame.config_version, head.higher)?))
    })
}
