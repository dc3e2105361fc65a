//! Streams that have ended, because their owner has restarted or is silent (`protocol.md` §5): what they left undecided is
//! finished by a phase 1, and nodes that got less far in them are brought up to date by those that got further. The argument
//! is in `docs/decisions/0009-recovery-replays-the-handlers.md`.

use std::collections::BTreeSet;

use zerocopy::IntoBytes;

use super::{
    Ballot, Mutant, ObjectIndex, Role, WPaxos,
    message::{CompareHead, ListHead, ListRequestBody, ListRow, Reached, Reader, StateEntryHead, StreamId},
    object::Source,
    read::key_ballot_head,
};
use crate::{
    protocol::{Micros, Outputs, RecordId},
    topology::{NodeIndex, NodeSet},
    wire::{self, Frame, FrameError, Kind},
};

/// How many orphans a check looks at.
const ORPHANS_PER_CHECK: usize = 1024;
/// How many streams of one owner are remembered when they have ended, the last ones. Who is behind in one of these is shown
/// all objects, and so learns what it missed in older ones too.
pub(super) const ENDED_MAX: usize = 8;
/// How many objects, and how many bytes of their states, are listed at a time.
pub(super) const LIST_OBJECTS: usize = 512;
const LIST_BYTES: usize = 1 << 20;
/// The end of a list.
const END: u32 = u32::MAX;

/// Lists of what a peer has executed, page by page, and states of what is behind that here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Survey {
    from: NodeIndex,
    /// How far the peer had got in streams that ended when the survey began: and this node, when it is over.
    reached: Vec<Reached>,
    /// The next page.
    cursor: u32,
    /// Whether it has to be asked for.
    due: bool,
    heard_at: Micros,
}

/// An accepted entry that nobody may be going to decide: when to look at it, its object, slot and ballot.
type Orphan = (Micros, ObjectIndex, u64, Ballot);

/// What is left to do for streams that have ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Converge {
    /// By owner.
    ended: Vec<Vec<Reached>>,
    /// Owners that have been silent for so long that their current streams count as ended.
    silent: NodeSet,
    /// Peers that did not get further in streams that ended, as far as this node knows.
    equal: NodeSet,
    asked_at: Vec<Micros>,
    /// One survey at a time, and not one after the other.
    survey: Option<Survey>,
    rest_until: Micros,
    orphans: BTreeSet<Orphan>,
}

impl Converge {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            ended: vec![Vec::new(); nodes],
            silent: NodeSet::EMPTY,
            equal: everybody(nodes),
            asked_at: vec![Micros(0); nodes],
            survey: None,
            rest_until: Micros(0),
            orphans: BTreeSet::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.survey.is_none()
    }

    /// A stream has ended, or this node has got further in one that has.
    pub(super) fn note(&mut self, reached: Reached) {
        let ended = &mut self.ended[usize::from(reached.owner)];
        match ended.binary_search_by_key(&age(reached.stream), |known| age(known.stream)) {
            Ok(place) => ended[place].up_to = ended[place].up_to.get().max(reached.up_to.get()).into(),
            Err(place) => ended.insert(place, reached),
        }
        if ended.len() > ENDED_MAX {
            ended.remove(0);
        }
        self.ask_again();
    }

    /// This node's own stream has ended while it runs; it has executed so much of it.
    pub(super) fn note_end(&mut self, owner: NodeIndex, stream: StreamId, up_to: u64) {
        self.note(Reached { owner: owner.0, reserved: [0; 3], stream, up_to: up_to.into() });
    }

    /// How far this node got in streams that have ended.
    pub(super) fn ended(&self) -> Vec<Reached> {
        self.ended.iter().flatten().copied().collect()
    }

    /// Whether a stream is older than all that are remembered of its owner.
    fn is_forgotten(&self, owner: NodeIndex, stream: StreamId) -> bool {
        let ended = &self.ended[owner.index()];
        ended.len() >= ENDED_MAX && age(stream) < age(ended[0].stream)
    }

    fn ask_again(&mut self) {
        self.equal = NodeSet::EMPTY;
        self.asked_at.fill(Micros(0));
    }

    fn up_to(&self, owner: NodeIndex, stream: StreamId) -> Option<u64> {
        let ended = &self.ended[owner.index()];
        ended.iter().find(|known| known.stream == stream).map(|known| known.up_to.get())
    }
}

/// Streams of one owner in the order in which they were.
pub(super) fn age(stream: StreamId) -> (u32, u32, u64) {
    (stream.version.get(), stream.boot.get(), stream.incarnation.get())
}

fn everybody(nodes: usize) -> NodeSet {
    (0..nodes).map(|node| NodeIndex(node as u8)).collect()
}

/// Orphans.
impl WPaxos {
    /// This stream has ended with its owner's boot: what it left in tails stays there, to be finished.
    pub(super) fn bury_stream(&mut self, now: Micros, owner: NodeIndex) {
        let inbound = &self.inbound[owner.index()];
        let Some(stream) = inbound.id else { return };
        let up_to = inbound.effective();
        self.converge.note_end(owner, stream, up_to);
        let delay = match owner == self.config.me {
            true => self.config.timers.prepare_retry_us,
            false => self.config.timers.orphan_delay_us * (1 + self.orphan_rank(now)),
        };
        self.orphan_entries(now.plus(delay), owner);
        let last = self.inbound[owner.index()].last_seq;
        self.drop_entries(owner, last);
    }

    /// Notes what a stream's end has left undecided in tails.
    fn orphan_entries(&mut self, due: Micros, owner: NodeIndex) {
        for (seq, entry) in self.inbound[owner.index()].entries() {
            let tail = &mut self.objects[entry.object].tail;
            let left = tail.get_mut(entry.slot).filter(|left| left.source == Source::Stream(owner, seq));
            if left.is_some_and(|left| !left.decided) {
                self.converge.orphans.insert((due, entry.object, entry.slot, entry.ballot));
            }
        }
    }

    /// Its owner has withdrawn an entry, which is for the next owner to decide. Should nobody become that, or die before it
    /// has, the slot may have been decided at an earlier ballot all the same.
    pub(super) fn orphan_withdrawn(&mut self, now: Micros, object: ObjectIndex, slot: u64, ballot: Ballot) {
        if self.config.has(Mutant::WithdrawnLeft) {
            return;
        }
        let entry = self.objects[object].tail.get_mut(slot);
        if entry.is_some_and(|entry| entry.ballot == ballot && !entry.decided) {
            let delay = self.config.timers.orphan_delay_us * (1 + self.orphan_rank(now));
            self.converge.orphans.insert((now.plus(delay), object, slot, ballot));
        }
    }

    /// Entries that a Skip passes over: what their owner made of them is not known here. State tells, if they were committed.
    pub(super) fn orphan_skipped(&mut self, now: Micros, owner: NodeIndex, to: u64) {
        let entries = self.inbound[owner.index()].entries().take_while(|(seq, _)| *seq <= to);
        let skipped: Vec<_> = entries.map(|(_, entry)| (entry.object, entry.slot, entry.ballot)).collect();
        for (object, slot, ballot) in skipped {
            self.orphan_withdrawn(now, object, slot, ballot);
        }
    }

    /// Whether the entry is still what this node holds in the slot, and nobody is at work here to decide it.
    fn is_open(&mut self, (_, object, slot, ballot): Orphan) -> bool {
        let known = &mut self.objects[object];
        let entry = known.tail.get_mut(slot).filter(|entry| entry.ballot == ballot && !entry.decided);
        entry.is_some() && !matches!(known.role, Role::Leading(_))
    }

    /// Finishes orphans by a phase 1 of this node: its own as soon as it is back, others' after a time that is longer the
    /// more live nodes come first. Each is looked at again until it is decided or somebody has proposed anew. If another
    /// node has taken the object since, its phase 1 decides the slot, if it has not forgotten of it by a restart: it is
    /// offered the object, which means nothing to an owner.
    pub(super) fn check_orphans(&mut self, now: Micros) {
        if self.config.has(Mutant::OrphansLeft) || !self.may_vote() {
            return;
        }
        self.note_silence(now);
        let mut asked = None;
        for _ in 0..ORPHANS_PER_CHECK {
            let Some(&orphan) = self.converge.orphans.first().filter(|(due, ..)| *due <= now) else { break };
            self.converge.orphans.pop_first();
            if !self.is_open(orphan) {
                continue;
            }
            let (_, object, slot, ballot) = orphan;
            let timers = &self.config.timers;
            let (delay, timeout) = (timers.orphan_delay_us * (1 + self.orphan_rank(now)), timers.request_timeout_us);
            let known = &self.objects[object];
            let owner = self.owner_of(object).filter(|owner| *owner != self.config.me && known.promised > ballot);
            match owner.filter(|owner| !self.is_suspected(now, *owner)) {
                // An object's orphans are next to each other, most of the time.
                Some(_) if asked == Some(object) => {}
                Some(owner) => {
                    asked = Some(object);
                    let head = key_ballot_head(known.promised, &known.key);
                    self.links[owner.index()].put(Kind::Handover, RecordId::NONE, &head, &[&known.key]);
                    // It may have executed the slot long ago.
                    self.ask_state(now, object);
                }
                None if known.is_idle() => {
                    self.counters.orphans += 1;
                    self.start_phase1(now, object, None);
                }
                None => {}
            }
            self.converge.orphans.insert((now.plus(timeout + delay), object, slot, ballot));
        }
    }

    /// How many live nodes come before this one.
    fn orphan_rank(&self, now: Micros) -> u64 {
        let before = (0..self.config.me.0).map(NodeIndex);
        before.filter(|node| !self.is_suspected(now, *node)).count() as u64
    }

    /// An owner that has been silent for long may never come back: its stream counts as ended.
    fn note_silence(&mut self, now: Micros) {
        let patience = self.config.timers.orphan_delay_us * (1 + self.orphan_rank(now));
        for owner in everybody(self.links.len()).iter() {
            let is_silent =
                self.is_suspected(now, owner) && now.since(self.links[owner.index()].silent_since()) > patience;
            if !is_silent {
                self.converge.silent.remove(owner);
            } else if self.converge.silent.insert(owner) {
                self.orphan_entries(now, owner);
                if self.inbound[owner.index()].id.is_some() {
                    self.converge.ask_again();
                }
            }
        }
    }
}

/// Comparing.
impl WPaxos {
    /// How far this node got in each stream that has ended.
    pub(super) fn reached(&self) -> Vec<Reached> {
        let mut reached = self.converge.ended();
        for owner in self.converge.silent.iter() {
            let inbound = &self.inbound[owner.index()];
            let Some(stream) = inbound.id else { continue };
            let up_to = inbound.effective();
            match reached.iter_mut().find(|known| known.owner == owner.0 && known.stream == stream) {
                Some(known) => known.up_to = known.up_to.get().max(up_to).into(),
                None => reached.push(Reached { owner: owner.0, reserved: [0; 3], stream, up_to: up_to.into() }),
            }
        }
        reached
    }

    /// Whether a peer got further than this node in a stream that has ended.
    pub(super) fn is_behind(&self, theirs: &[Reached]) -> bool {
        theirs.iter().any(|their| {
            let owner = NodeIndex(their.owner);
            let inbound = &self.inbound[owner.index()];
            let current = inbound.id == Some(their.stream);
            if current && !self.converge.silent.contains(owner) {
                // It has not ended for this node: what is missing will come.
                return false;
            }
            let current = current.then(|| inbound.effective());
            let full = self.converge.ended[owner.index()].len() >= ENDED_MAX;
            let forgotten =
                self.converge.is_forgotten(owner, their.stream) || (full && self.config.has(Mutant::EndedStreamsFull));
            match self.converge.up_to(owner, their.stream).max(current) {
                Some(mine) => mine < their.up_to.get(),
                None => !forgotten && their.up_to.get() > 0,
            }
        })
    }

    /// A peer that comes back may have got further in a stream that has ended meanwhile.
    pub(super) fn meet_again(&mut self, peer: NodeIndex) {
        if self.converge.ended.iter().any(|ended| !ended.is_empty()) || self.converge.silent != NodeSet::EMPTY {
            self.converge.equal.remove(peer);
            self.converge.asked_at[peer.index()] = Micros(0);
        }
    }

    /// A survey does not outlive its connection.
    pub(super) fn part_from(&mut self, peer: NodeIndex) {
        self.converge.survey.take_if(|survey| survey.from == peer);
        self.versions.merge.part_from(peer);
    }

    /// Asks peers that may have got further how far they are.
    pub(super) fn check_convergence(&mut self, now: Micros, out: &mut Outputs) {
        let patience = self.config.timers.request_timeout_us;
        self.converge.survey.take_if(|survey| now.since(survey.heard_at) > patience);
        if self.converge.survey.is_some() || now < self.converge.rest_until {
            return;
        }
        for node in 0..self.links.len() {
            let peer = NodeIndex(node as u8);
            let waits = now.since(self.converge.asked_at[node]) < self.config.timers.orphan_delay_us;
            if !self.converge.equal.contains(peer) && self.links[node].is_up() && !waits {
                self.converge.asked_at[node] = now;
                self.send_compare(peer, false, out);
            }
        }
    }

    fn send_compare(&mut self, to: NodeIndex, answers: bool, out: &mut Outputs) {
        // Decided slots behind a gap were passed and are not executed: what this node reached is not what it has.
        let head = CompareHead { answers: answers.into(), settled: self.gaps.is_empty().into(), reserved: [0; 2] };
        let mut body = head.as_bytes().to_vec();
        body.extend_from_slice(self.reached().as_bytes());
        self.links[to.index()].send(Kind::Compare, &body, RecordId(0), out);
    }

    fn read_compare(&self, frame: &Frame) -> Result<(CompareHead, Vec<Reached>), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &CompareHead = reader.take()?;
        reader.zero(head.reserved)?;
        let rows = reader.clone().rows(|reader| {
            let reached: &Reached = reader.take()?;
            reader.zero(reached.reserved)?;
            reader.number(reached.up_to)?;
            if usize::from(reached.owner) >= self.links.len() {
                return Err(reader.wrong("it names a stream of nobody"));
            }
            if reached.stream.version.get() > frame.config_version {
                return Err(reader.wrong("it names a stream of a later configuration version"));
            }
            Ok(*reached)
        })?;
        reader.at_most(rows.len(), (ENDED_MAX + 1) * self.links.len())?;
        // A stream of this node that it has not begun: the sender believes it of somebody else.
        let (me, newest) = (self.config.me, age(self.stream.id));
        let exists = |reached: &Reached| NodeIndex(reached.owner) != me || age(reached.stream) <= newest;
        Ok((*head, rows.into_iter().filter(exists).collect()))
    }

    /// A survey that has ended, in this node's own log: whom it learned from may be gone when it comes back, and others may
    /// need to learn from it.
    fn log_reached(&mut self, reached: &[Reached]) {
        if self.config.has(Mutant::CatchUpUnlogged) {
            return;
        }
        let head = CompareHead { answers: 0, settled: 1, reserved: [0; 2] };
        let body = [head.as_bytes(), reached.as_bytes()].concat();
        self.log_own(wire::frame(Kind::Compare, self.config.shard, self.config.version, &body));
    }

    /// Takes what [`Self::log_reached`] wrote.
    pub(super) fn replay_reached(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let (_, reached) = self.read_compare(frame)?;
        reached.into_iter().for_each(|reached| self.converge.note(reached));
        Ok(())
    }

    /// A peer says how far it got in streams that have ended, and wants to know the same unless it answers. If it got
    /// further, it is surveyed.
    pub(super) fn on_compare(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let (head, theirs) = self.read_compare(frame)?;
        if head.answers == 0 {
            self.send_compare(from, true, out);
        }
        if head.settled == 0 {
            return Ok(());
        }
        if !self.is_behind(&theirs) {
            if head.answers == 1 {
                self.converge.equal.insert(from);
            }
            return Ok(());
        }
        self.converge.equal.remove(from);
        if self.converge.survey.is_none() && now >= self.converge.rest_until {
            self.counters.surveys += 1;
            self.converge.survey = Some(Survey { from, reached: theirs, cursor: 0, due: true, heard_at: now });
        }
        Ok(())
    }
}

/// Surveys.
impl WPaxos {
    /// Asks for the next page: one a tick, when all states that the last one made this node ask for have come.
    pub(super) fn pump_survey(&mut self, out: &mut Outputs) {
        let Some(survey) = self.converge.survey.as_mut().filter(|survey| survey.due) else { return };
        survey.due = false;
        let (from, cursor) = (survey.from, survey.cursor);
        self.links[from.index()].flush(out);
        let body = ListRequestBody { cursor: cursor.into() };
        self.links[from.index()].send(Kind::ListRequest, body.as_bytes(), RecordId(0), out);
    }

    /// Lists some objects with what is executed of them here, behind the states that were asked for before.
    pub(super) fn on_list_request(
        &mut self,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let body: &ListRequestBody = reader.take()?;
        let start = body.cursor.get() as usize;
        let (mut next, mut states) = (start, 0);
        let mut rows = Vec::new();
        while next < self.objects.len() && next < start + LIST_OBJECTS && states < LIST_BYTES {
            let known = &self.objects[ObjectIndex(next as u32)];
            next += 1;
            if known.applied > 0 {
                states += known.key.len() + known.state.value.as_ref().map_or(0, |value| value.len()) + 256;
                let key_bytes = (known.key.len() as u16).into();
                let row = ListRow { applied: known.applied.into(), key_bytes, reserved: [0; 6] };
                rows.extend_from_slice(row.as_bytes());
                rows.extend_from_slice(&known.key);
            }
        }
        let next = if next >= self.objects.len() { END } else { next as u32 };
        let head = ListHead { asked: body.cursor, next: next.into(), more: 0, reserved: [0; 3] };
        self.links[from.index()].flush(out);
        self.links[from.index()].send(Kind::List, &[head.as_bytes(), &rows].concat(), RecordId(0), out);
        Ok(())
    }

    /// A page of a survey: asks for the state of what is behind here. After the last page an empty one follows, and with it
    /// every state has come.
    pub(super) fn on_list(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &ListHead = reader.take()?;
        let asked = head.asked.get();
        reader.zero(head.reserved)?;
        if reader.flag(head.more)? {
            return Err(reader.wrong("a list has one frame for each page"));
        }
        let rows = reader.clone().rows(|reader| {
            let row: &ListRow = reader.take()?;
            reader.zero(row.reserved)?;
            Ok((reader.key(row.key_bytes)?, reader.number(row.applied)?))
        })?;
        reader.at_most(rows.len(), LIST_OBJECTS)?;
        let Some(survey) = &mut self.converge.survey else { return Ok(()) };
        if survey.from != from || survey.due || survey.cursor != asked {
            return Ok(());
        }
        (survey.cursor, survey.due, survey.heard_at) = (head.next.get(), true, now);
        for (key, applied) in rows {
            let mine = self.objects.find(key).map_or(0, |object| self.objects[object].applied);
            if mine < applied {
                let head = StateEntryHead {
                    applied: mine.into(),
                    promised: 0.into(),
                    promised_version: 0.into(),
                    state_bytes: 0.into(),
                    key_bytes: (key.len() as u16).into(),
                    reserved: 0.into(),
                };
                self.counters.states_asked += 1;
                self.links[from.index()].put(Kind::StateRequest, RecordId::NONE, &head, &[key]);
            }
        }
        if asked == END {
            let survey = self.converge.survey.take().expect("just seen");
            self.log_reached(&survey.reached);
            survey.reached.into_iter().for_each(|reached| self.converge.note(reached));
            self.converge.ask_again();
            self.converge.rest_until = now.plus(self.config.timers.orphan_delay_us);
        }
        Ok(())
    }
}
