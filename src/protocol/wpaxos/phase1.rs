//! Phase 1: taking an object (`protocol.md` §4), as a candidate and as an acceptor.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use zerocopy::IntoBytes;

use super::{
    Ballot, Config, Link, ObjectIndex, RequestKey, Requests, Role, WPaxos,
    message::{PrepareHead, PromiseHead, Reader, RejectHead, TailHead, ballot_from, put_state},
    object::{Leading, TailEntry},
};
use crate::{
    command::{Action, Command, NewCommand},
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    store::ObjectState,
    topology::{NodeIndex, NodeSet},
    wire::{Frame, FrameError, Kind},
};

/// Slots that can be open at once: far more than the bound on what is uncommitted allows.
const SLOTS_OPEN_MAX: u64 = 1 << 20;

/// How many requests a candidacy may hold before it looks which of them have ended.
const SWEEP_MIN: usize = 64;

/// A candidacy for one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Preparing {
    /// Who has promised this ballot, this node included once its own promise is durable.
    answered: NodeSet,
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

impl Preparing {
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
        let ballot = Ballot::new(self.config.version, round, self.config.my_id());
        let retry_at = now.plus(self.prepare_patience());
        let asked = |link: &Link| if link.is_up() { link.connection() } else { 0 };
        let asked = self.links.iter().map(asked).collect();
        let known = &mut self.objects[object];
        assert!(ballot > known.promised, "the next round is above every ballot seen");
        known.promised = ballot;
        known.role = Role::Preparing(Box::new(Preparing {
            answered: NodeSet::EMPTY,
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
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: &PromiseHead = reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            let state = if head.state_bytes.get() > 0 { Some(reader.state()?) } else { None };
            let mut reported = Vec::new();
            for _ in 0..head.tail.get() {
                reported.push(read_tail_entry(&mut reader, frame)?);
            }
            let ballot = ballot_from(&reader, frame.config_version, head.ballot)?;
            let Some(object) = self.objects.find(key) else {
                return Err(reader.wrong("it promises an object that was never asked for"));
            };
            let applied = reader.number(head.applied)?;
            self.on_promise(now, from, object, ballot, (applied, state), reported);
        }
        Ok(())
    }

    fn on_promise(
        &mut self,
        now: Micros,
        from: NodeIndex,
        object: ObjectIndex,
        ballot: Ballot,
        (applied, state): (u64, Option<ObjectState>),
        reported: Vec<(u64, Reported)>,
    ) {
        let known = &mut self.objects[object];
        if known.promised != ballot && !self.config.has(Mutant::PromiseOfAnotherBallot) {
            return;
        }
        let Role::Preparing(preparing) = &mut known.role else { return };
        if applied > known.applied && state.is_none() {
            // Its watermark without its state: it cannot be counted, what it executed would be lost.
            return;
        }
        let first_only = self.config.has(Mutant::FirstStateTaken);
        if let Some(state) = state
            && preparing.best.as_ref().is_none_or(|(best, _)| *best < applied && !first_only)
        {
            preparing.best = Some((applied, state));
        }
        for (slot, entry) in reported {
            preparing.merge(&self.config, slot, entry);
        }
        preparing.answered.insert(from);
        self.try_to_lead(now, object);
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
        if highest - applied > SLOTS_OPEN_MAX {
            // Somebody reports a slot that cannot be: better no owner than endless no-ops.
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
        if installed && highest == applied && !self.config.has(Mutant::InstalledUntold) {
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
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: &RejectHead = reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            let higher = ballot_from(&reader, frame.config_version, head.higher)?;
            if let Some(object) = self.objects.find(key) {
                self.counters.rejected += 1;
                self.hear(now, object, higher);
            }
        }
        Ok(())
    }

    /// Sends Prepares again to those that have not answered and were asked on a connection that is gone, if at all: at once
    /// when a link comes up, and after a random, growing time. A candidacy ends by being won or beaten only: others may rely
    /// on it to decide what it found.
    pub(super) fn check_candidacies(&mut self, now: Micros) {
        if self.prepare_timers.first().is_none_or(|(at, _)| *at > now) {
            return;
        }
        if !self.config.has(Mutant::PrepareBeforeOwnRecord) {
            // A candidacy of this very turn may be asked for again: its record comes first.
            self.log_prepares();
        }
        while let Some(&(at, object)) = self.prepare_timers.first().filter(|(at, _)| *at <= now) {
            self.prepare_timers.pop_first();
            self.retry_prepare(now, at, object);
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

    fn retry_prepare(&mut self, now: Micros, at: Micros, object: ObjectIndex) {
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
            if is_new && !preparing.answered.contains(NodeIndex(node as u8)) {
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
        self.log_received(from, frame);
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: &PrepareHead = reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            let ballot = ballot_from(&reader, frame.config_version, head.ballot)?;
            if ballot.owner() != Some(self.config.nodes[from.index()]) {
                return Err(reader.wrong("it asks for somebody else's ballot"));
            }
            let object = self.object_of(key);
            self.on_prepare(now, from, object, ballot, head.applied.get());
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

    /// The whole promise: watermark, state if the candidate's is older, and every slot above it, decided ones too.
    fn send_promise(&mut self, to: NodeIndex, object: ObjectIndex, ballot: Ballot, candidate_applied: u64) {
        let early = self.config.has(Mutant::PromiseBeforeDurable);
        let own_promise = if early { RecordId::NONE } else { self.logged };
        let known = &self.objects[object];
        let (stream, inbound) = (&self.stream, &self.inbound);
        let without_decided = self.config.has(Mutant::PromiseWithoutDecided);
        let without_state = self.config.has(Mutant::PromiseWithoutState);
        let applied = if without_state { known.applied.min(candidate_applied) } else { known.applied };
        let tail = || known.tail.iter().filter(|entry| !(without_decided && entry.decided));
        let reported = if without_decided { tail().count() } else { known.tail.len() };
        self.links[to.index()].put_with(Kind::Promise, own_promise, |buffer| {
            let start = buffer.len();
            let mut head = PromiseHead {
                ballot: ballot.number.into(),
                applied: applied.into(),
                state_bytes: 0.into(),
                tail: (reported as u32).into(),
                key_bytes: (known.key.len() as u16).into(),
                reserved: [0; 6],
            };
            buffer.extend_from_slice(head.as_bytes());
            buffer.extend_from_slice(&known.key);
            if applied > candidate_applied {
                head.state_bytes = (put_state(buffer, &known.state) as u32).into();
                buffer[start..start + size_of::<PromiseHead>()].copy_from_slice(head.as_bytes());
            }
            tail().for_each(|entry| {
                put_tail(buffer, entry, super::command_of(stream, inbound, &entry.source).bytes());
            });
        });
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

pub(super) fn read_tail_entry(reader: &mut Reader<'_>, frame: &Frame) -> Result<(u64, Reported), FrameError> {
    let head: &TailHead = reader.take()?;
    reader.zero(head.reserved)?;
    let bytes = reader.bytes(head.command_bytes.get() as usize)?;
    Command::parse(bytes).map_err(|_| reader.wrong("a tail entry holds no valid command"))?;
    if head.decided > 1 || head.slot.get() == 0 {
        return Err(reader.wrong("a tail entry is out of range"));
    }
    let ballot = ballot_from(reader, head.ballot_version.get(), head.ballot)?;
    let command = frame.bytes.slice_ref(bytes);
    Ok((reader.number(head.slot)?, Reported { ballot, decided: head.decided == 1, command }))
}
