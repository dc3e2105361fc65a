//! The receiver's side of an accept stream: entries are accepted or refused in order, the watermark is followed, acks say how
//! far this node is.

use bytes::Bytes;
use zerocopy::IntoBytes;

use super::super::{
    Ballot, ObjectIndex, WPaxos,
    message::{BatchHead, EntryHead, Reader, Refusal, SkipBody, Standing, StreamId, ballot_from},
    object::{Foreseen, Source, TailEntry},
    stream::HeldFrame,
};
use crate::{
    command::Command,
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    topology::{NodeId, NodeIndex},
    wire::{ENTRIES_OPEN_MAX, Frame, FrameError, Kind},
};

/// An ack with more refusals than these is a long one: of those, a link without room gets one in so many microseconds.
const REFUSALS_FEW: usize = 16;
const LONG_ACK_US: u64 = 20_000;

/// The entries of a batch as they are checked, before anything of it is taken; gives their keys, up to the first entry that
/// is wrong.
struct Checked<'a> {
    reader: Reader<'a>,
    left: u32,
    owner: NodeId,
    /// Most entries have the ballot of the one before.
    usual: Option<u64>,
    wrong: Option<FrameError>,
}

impl<'a> Checked<'a> {
    fn check(&mut self) -> Result<&'a [u8], FrameError> {
        let reader = &mut self.reader;
        let head: &EntryHead = reader.take()?;
        if head.empty.get() > 1 {
            return Err(reader.wrong("an entry is neither empty nor not"));
        }
        let command = reader.entry(head.command_bytes)?;
        reader.slot(head.slot)?;
        if self.usual != Some(head.ballot.get()) {
            // Of any version: the frame's is checked with its stream.
            if ballot_from(reader, 1, head.ballot)?.owner() != Some(self.owner) {
                return Err(reader.wrong("an entry has somebody else's ballot"));
            }
            self.usual = Some(head.ballot.get());
        }
        Ok(command.key())
    }
}

impl<'a> Iterator for Checked<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        match self.check() {
            Ok(key) => Some(key),
            Err(error) => {
                (self.wrong, self.left) = (Some(error), 0);
                None
            }
        }
    }
}

/// The receiver's side.
impl WPaxos {
    /// Takes entries in order: accepts what is not below the promise, refuses the rest, and follows the watermark.
    pub(in crate::protocol::wpaxos) fn on_accept_batch(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &BatchHead = reader.take()?;
        reader.zero(head.reserved)?;
        let entries = reader.clone();
        reader.bytes(head.entries_bytes.get() as usize)?;
        let withdrawn: &[zerocopy::little_endian::U64] = reader.take_many(head.withdrawn.get() as usize)?;
        if !reader.is_empty() {
            return Err(reader.wrong("it has bytes behind its last part"));
        }
        self.check_batch(from, frame, &reader, head)?;
        let mut places = std::mem::take(&mut self.scratch_places);
        let checked = self.foresee_entries(from, entries.clone(), head, &mut places);
        if checked.is_ok() {
            self.adopt_stream(now, from, head.stream);
            self.follow_watermark(now, from, head.commit_from.get(), head.commit_to.get(), withdrawn, out);
            if head.entries.get() > 0 {
                self.log_raises();
            }
            self.log_received(from, frame);
            self.take_entries(now, from, frame, head, entries, &places);
        }
        self.scratch_places = places;
        checked
    }

    /// Checks a batch against its stream's place.
    fn check_batch(
        &self,
        from: NodeIndex,
        frame: &Frame,
        reader: &Reader<'_>,
        head: &BatchHead,
    ) -> Result<(), FrameError> {
        if head.stream.version.get() != frame.config_version {
            return Err(reader.wrong("its stream belongs to another configuration version"));
        }
        let inbound = &self.inbound[from.index()];
        let carried = self.config.has(Mutant::StreamCarriedOver) && inbound.id.is_some();
        let known = inbound.id == Some(head.stream) || carried;
        let (last_seq, watermark) = if known { (inbound.last_seq, inbound.watermark) } else { (0, 0) };
        let (first, commit_to) = (head.first_seq.get(), head.commit_to.get());
        if first > last_seq + 1 && !self.config.has(Mutant::ResumeOneLate) {
            return Err(reader.wrong("it leaves a gap in the stream"));
        }
        if commit_to > last_seq {
            return Err(reader.wrong("its watermark is above what was sent"));
        }
        let end = reader.number(first.saturating_add(u64::from(head.entries.get())).into())?;
        if first == 0 || head.commit_from.get() > commit_to {
            return Err(reader.wrong("its numbers go back"));
        }
        if end.saturating_sub(watermark.max(commit_to)) > ENTRIES_OPEN_MAX as u64 {
            return Err(reader.wrong("it leaves more entries open than a receiver keeps"));
        }
        Ok(())
    }

    /// Checks a batch's entries, and looks their objects up at once.
    fn foresee_entries(
        &self,
        from: NodeIndex,
        reader: Reader<'_>,
        head: &BatchHead,
        places: &mut Vec<Foreseen>,
    ) -> Result<(), FrameError> {
        let end = reader.offset() + head.entries_bytes.get() as usize;
        let owner = self.config.nodes[from.index()];
        let mut checked = Checked { reader, left: head.entries.get(), owner, usual: None, wrong: None };
        self.objects.foresee(&mut checked, places);
        match checked.wrong {
            Some(wrong) => Err(wrong),
            None if checked.reader.offset() != end => Err(checked.reader.wrong("its entries do not fill their part")),
            None => Ok(()),
        }
    }

    /// A stream of another boot of the owner: the old one is dead, what it left in tails stays there.
    fn adopt_stream(&mut self, now: Micros, from: NodeIndex, stream: StreamId) {
        if self.inbound[from.index()].id == Some(stream) {
            return;
        }
        if self.config.has(Mutant::StreamCarriedOver) && self.inbound[from.index()].id.is_some() {
            self.inbound[from.index()].id = Some(stream);
            return;
        }
        self.bury_stream(now, from);
        self.inbound[from.index()] = super::super::Inbound::of(stream);
    }

    /// Takes the entries that are new, all of which were checked.
    fn take_entries(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        head: &BatchHead,
        mut reader: Reader<'_>,
        places: &[Foreseen],
    ) {
        let (first, entries) = (head.first_seq.get(), u64::from(head.entries.get()));
        let taken = self.inbound[from.index()].last_seq;
        self.inbound[from.index()].ack_due |= entries > 0;
        if first + entries <= taken + 1 {
            return;
        }
        self.inbound[from.index()].push_frame(&frame.bytes);
        for number in 0..entries {
            let checked = "it was checked";
            let entry: &EntryHead = reader.take().expect(checked);
            let offset = reader.offset();
            let command = Command::view(reader.bytes(entry.command_bytes.get() as usize).expect(checked));
            if first + number > taken {
                let ballot = Ballot { version: frame.config_version, number: entry.ballot.get() };
                let foreseen = places.get(number as usize).copied();
                if entry.empty.get() == 0 {
                    self.take_entry(now, from, entry.slot.get(), ballot, command, (offset, foreseen));
                } else {
                    let (object, bytes) = (self.object_of(command.key()), command.bytes().len());
                    self.inbound[from.index()].push_empty(object, entry.slot.get(), ballot, offset, bytes);
                }
            }
        }
    }

    /// Accepts or refuses one entry (§IV-B; invariant 4).
    fn take_entry(
        &mut self,
        now: Micros,
        from: NodeIndex,
        slot: u64,
        ballot: Ballot,
        command: Command<'_>,
        (offset, foreseen): (usize, Option<Foreseen>),
    ) {
        let object = foreseen.and_then(|foreseen| self.objects.recall(foreseen, command.key()));
        let object = object.unwrap_or_else(|| self.object_of(command.key()));
        let seq = self.inbound[from.index()].push(object, slot, ballot, offset, command.bytes().len());
        let promised = self.objects[object].promised;
        if ballot != promised {
            if self.config.is_below(ballot, promised) && !self.config.has(Mutant::AcceptBelowPromised) {
                self.inbound[from.index()].refusals.push((seq, promised));
                self.counters.refused += 1;
                return;
            }
            if !self.config.has(Mutant::AcceptDoesNotRaise) {
                self.raise(now, object, ballot);
            }
        }
        let known = &mut self.objects[object];
        if slot <= known.applied {
            return;
        }
        match known.tail.get_mut(slot) {
            Some(entry) if entry.decided => {}
            _ => known.tail.put(TailEntry { slot, ballot, decided: false, source: Source::Stream(from, seq) }),
        }
    }

    /// Executes what the watermark passes. It is taken only if it starts at or below one's own, so that a lost list of
    /// exceptions cannot be skipped.
    fn follow_watermark(
        &mut self,
        now: Micros,
        from: NodeIndex,
        commit_from: u64,
        commit_to: u64,
        withdrawn: &[zerocopy::little_endian::U64],
        out: &mut Outputs,
    ) {
        if commit_from > self.inbound[from.index()].watermark && !self.config.has(Mutant::ExceptionsSkipped) {
            return;
        }
        let mut withdrawn = withdrawn.iter().map(|seq| seq.get()).peekable();
        let mut held = HeldFrame::default();
        while self.inbound[from.index()].watermark < commit_to {
            let (seq, entry) = self.inbound[from.index()].pass_next(&mut held);
            let frame = held.bytes();
            while withdrawn.next_if(|dropped| *dropped < seq).is_some() {}
            if withdrawn.next_if_eq(&seq).is_some() || entry.is_empty {
                let source = Source::Stream(from, seq);
                self.keep_bytes(entry.object, entry.slot, &source, || entry.slice_of(frame));
                self.orphan_withdrawn(now, entry.object, entry.slot, entry.ballot);
            } else {
                // The stream's command, not the tail's: this node may have refused the entry and hold another there.
                let (object, slot, ballot) = (entry.object, entry.slot, entry.ballot);
                let wrong = self.wrongly_executed(object, slot, &Source::Stream(from, seq));
                let command = wrong.as_ref().map_or_else(|| entry.command_in(frame), |bytes| Command::view(bytes));
                self.learn(now, object, slot, ballot, command, out);
            }
        }
        let inbound = &mut self.inbound[from.index()];
        if !self.config.has(Mutant::InboundNeverDropped) {
            inbound.settle_frames();
        }
        inbound.settle_refusals();
    }

    /// What a planted bug executes for an entry of a stream: the tail's command, where that is another entry's.
    fn wrongly_executed(&mut self, object: ObjectIndex, slot: u64, entry: &Source) -> Option<Bytes> {
        if !self.config.has(Mutant::TailExecuted) {
            return None;
        }
        let source = self.objects[object].tail.get_mut(slot)?.source.clone();
        (source != *entry).then(|| Bytes::copy_from_slice(self.source_command(&source).bytes()))
    }

    /// A slot is decided: executes it if it is the next one, keeps it otherwise.
    pub(in crate::protocol::wpaxos) fn learn(
        &mut self,
        now: Micros,
        object: ObjectIndex,
        slot: u64,
        ballot: Ballot,
        command: Command<'_>,
        out: &mut Outputs,
    ) {
        let known = &mut self.objects[object];
        if slot <= known.applied {
            return;
        }
        if known.leading().is_some_and(|leading| leading.settled < slot) {
            // Decided by another though no phase 1 has found it: this node has been deposed without noticing.
            self.depose(now, object);
        }
        let known = &mut self.objects[object];
        if slot > known.applied + 1 && !self.config.has(Mutant::OutOfOrder) {
            let source = Source::Held(Box::new(Bytes::copy_from_slice(command.bytes())));
            known.tail.put(TailEntry { slot, ballot, decided: true, source });
            self.note_gap(now, object);
            return;
        }
        known.execute(&self.config, slot, command);
        self.note_version(object);
        self.counters.learned += 1;
        let known = &mut self.objects[object];
        if known.tail.first().is_some_and(|first| first.slot == slot) {
            known.tail.pop_first();
        }
        if !known.tail.is_empty() || known.rare.is_some() {
            self.after_execution(now, object, out);
        }
    }

    /// Executes decided slots that have become the next ones; then tells whoever waited for this object.
    pub(in crate::protocol::wpaxos) fn after_execution(&mut self, now: Micros, object: ObjectIndex, out: &mut Outputs) {
        loop {
            let known = &mut self.objects[object];
            let Some(first) = known.tail.first() else { break };
            if first.slot <= known.applied {
                known.tail.pop_first();
                continue;
            }
            if first.slot > known.applied + 1 || !first.decided {
                break;
            }
            let Source::Held(bytes) = &first.source else { unreachable!("decided commands are held") };
            let (slot, bytes) = (first.slot, bytes.clone());
            known.execute(&self.config, slot, Command::view(&bytes));
            known.tail.pop_first();
            self.note_version(object);
        }
        if self.objects[object].rare.is_some() {
            self.settle_limbo(now, object, out);
            self.release_parked(object);
        }
    }

    /// Passes over everything up to `to` without executing it: its fate is not known here, state will come instead. Tails
    /// keep what was accepted.
    pub(in crate::protocol::wpaxos) fn drop_entries(&mut self, from: NodeIndex, to: u64) {
        let mut held = HeldFrame::default();
        while self.inbound[from.index()].watermark < to.min(self.inbound[from.index()].last_seq) {
            let (seq, entry) = self.inbound[from.index()].pass_next(&mut held);
            let (source, frame) = (Source::Stream(from, seq), held.bytes());
            self.keep_bytes(entry.object, entry.slot, &source, || entry.slice_of(frame));
        }
        self.inbound[from.index()].settle_frames();
    }

    /// The stream no longer reaches back to this node's place in it (§5).
    pub(in crate::protocol::wpaxos) fn on_skip(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let skip: SkipBody = *reader.take()?;
        let to = reader.number(skip.to_seq)?;
        if skip.stream.version.get() != frame.config_version || !reader.is_empty() {
            return Err(reader.wrong("its stream belongs to another configuration version"));
        }
        self.adopt_stream(now, from, skip.stream);
        let watermark = self.inbound[from.index()].watermark;
        if to <= watermark {
            return Ok(());
        }
        self.orphan_skipped(now, from, to);
        self.drop_entries(from, to);
        let inbound = &mut self.inbound[from.index()];
        inbound.skip_to(to);
        let missing = watermark + 1;
        if !self.config.has(Mutant::SkipForgotten) {
            inbound.behind_from = if inbound.behind_from == 0 { missing } else { inbound.behind_from.min(missing) };
        }
        inbound.ack_due = true;
        self.log_received(from, frame);
        Ok(())
    }

    /// One cumulative answer per stream and turn, with all standing refusals. It counts on what was logged. One with many
    /// refusals waits for a while on a link that has no room: the next one says all that it would have said.
    pub(in crate::protocol::wpaxos) fn send_acks(&mut self, now: Micros, out: &mut Outputs) {
        for node in 0..self.inbound.len() {
            if !self.inbound[node].ack_due || self.long_ack_waits(now, node, out) {
                continue;
            }
            self.inbound[node].ack_due = false;
            if self.links[node].is_up() && self.may_vote() {
                self.send_standing(NodeIndex(node as u8), Kind::Ack, out);
            }
        }
    }

    fn long_ack_waits(&mut self, now: Micros, node: usize, out: &Outputs) -> bool {
        let link = &mut self.links[node];
        if !link.is_up() || self.inbound[node].refusals.len() <= REFUSALS_FEW {
            return false;
        }
        let waits = out.room[node] == 0 && now.since(link.long_ack_at) < LONG_ACK_US;
        if !waits {
            link.long_ack_at = now;
        }
        waits
    }

    /// An Ack, or the Resume that opens a connection.
    pub(in crate::protocol::wpaxos) fn send_standing(&mut self, to: NodeIndex, kind: Kind, out: &mut Outputs) {
        let inbound = &self.inbound[to.index()];
        let without = self.config.has(Mutant::RefusalsNotSent)
            || (self.config.has(Mutant::ResumeWithoutRefusals) && kind == Kind::Resume);
        let refusals = if without { &[] } else { inbound.refusals.as_slice() };
        let nobody = StreamId { incarnation: 0.into(), boot: 0.into(), version: 0.into() };
        let head = Standing {
            stream: inbound.id.unwrap_or(nobody),
            refusals: (refusals.len() as u32).into(),
            learner: (!self.may_vote()).into(),
            reserved: [0; 3],
            last_seq: inbound.last_seq.into(),
            watermark: inbound.watermark.into(),
            behind_from: inbound.behind_from.into(),
        };
        let mut body = std::mem::take(&mut self.scratch_bytes);
        body.extend_from_slice(head.as_bytes());
        for (seq, ballot) in refusals {
            let refusal = Refusal { seq: (*seq).into(), ballot: ballot.number.into() };
            body.extend_from_slice(refusal.as_bytes());
        }
        let early = if kind == Kind::Ack { Mutant::AckBeforeDurable } else { Mutant::ResumeBeforeDurable };
        let after = if self.config.has(early) { RecordId(0) } else { self.logged };
        self.links[to.index()].send(kind, &body, after, out);
        body.clear();
        self.scratch_bytes = body;
        if self.config.has(Mutant::RefusalsOnce) {
            self.inbound[to.index()].refusals.clear();
        }
    }
}
