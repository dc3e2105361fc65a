//! Phase 2: the accept stream (`protocol.md` §5), at its owner and at its receivers.

use bytes::Bytes;
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::{
    Ballot, ObjectIndex, RequestKey, Role, WPaxos,
    message::{BatchHead, EntryHead, Reader, Refusal, SkipBody, Standing, StreamId, ballot_from},
    object::{Foreseen, Source, TailEntry},
    requests::{Answer, Stage},
    stream::HeldFrame,
};
use crate::{
    command::{Command, Op, Status},
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    topology::{NodeId, NodeIndex},
    wire::{ENTRIES_OPEN_MAX, Frame, FrameError, Kind},
};

/// An ack with more refusals than these is a long one: of those, a link without room gets one in so many microseconds.
const REFUSALS_FEW: usize = 16;
const LONG_ACK_US: u64 = 20_000;

/// The owner's side.
impl WPaxos {
    /// Gives a command the object's next slot and appends it to the stream (§IV-B). The owner accepts it itself.
    pub(super) fn propose(&mut self, now: Micros, object: ObjectIndex, command: Command<'_>, request: RequestKey) {
        let Role::Leading(leading) = &mut self.objects[object].role else { unreachable!("only the owner proposes") };
        let slot = leading.next_slot;
        leading.next_slot += 1;
        self.propose_at(now, object, slot, command.bytes(), request);
    }

    /// Proposes for a certain slot: a new one, or one that phase 1 found.
    pub(super) fn propose_at(
        &mut self,
        now: Micros,
        object: ObjectIndex,
        slot: u64,
        command: &[u8],
        request: RequestKey,
    ) {
        let ballot = self.objects[object].promised;
        assert!(ballot.owner() == Some(self.config.my_id()), "an owner proposes at its own ballot");
        let seq = self.stream.append(now, object, slot, ballot, command, request);
        let entry = &mut self.objects[object];
        assert!(slot > entry.applied, "an executed slot is not proposed again");
        entry.own_seq = seq;
        match entry.tail.get_mut(slot) {
            Some(known) if known.decided => {}
            _ => entry.tail.put(TailEntry { slot, ballot, decided: false, source: Source::Own(seq) }),
        }
        self.counters.proposed += 1;
        if self.batch_is_full() {
            self.seal_batch();
        }
    }

    fn batch_is_full(&self) -> bool {
        let limits = &self.config.batch;
        self.stream.open_bytes() >= limits.bytes_max || self.stream.open_entries() >= limits.entries_max
    }

    /// Freezes the open batch: from here on the same bytes go to every peer and to the log. More frames follow if one cannot
    /// list everything that is withdrawn below the watermark.
    pub(super) fn seal_batch(&mut self) {
        let (shard, version) = (self.config.shard, self.config.version);
        while let Some(frame) = self.stream.seal(shard, version) {
            self.counters.batches += 1;
            let record = self.log_own(frame);
            self.own_records.push_back((record, super::OwnRecord::Stream(self.stream.sealed_seq())));
        }
    }

    /// Somebody has taken the object, or may be about to: ends this node's lead or candidacy and withdraws what is not
    /// committed. Whatever peers ack from now on, a withdrawn entry is never committed by this stream.
    pub(super) fn depose(&mut self, now: Micros, object: ObjectIndex) {
        match std::mem::replace(&mut self.objects[object].role, Role::Idle) {
            Role::Idle => {}
            Role::Preparing(preparing) => self.orphaned_requests.extend(preparing.waiting),
            Role::Leading(_) => {
                self.counters.deposed += 1;
                self.withdraw_all(now, object);
                if let Some(rare) = &mut self.objects[object].rare {
                    self.orphaned_requests.extend(rare.parked.drain(..));
                    rare.accesses = None;
                }
            }
        }
    }

    fn withdraw_all(&mut self, now: Micros, object: ObjectIndex) {
        let committed = self.stream.committed;
        let tail = self.objects[object].tail.iter();
        let own = tail.filter_map(|entry| match entry.source {
            Source::Own(seq) if seq > committed => Some(seq),
            _ => None,
        });
        let own: Vec<u64> = own.collect();
        for seq in own {
            self.withdraw(now, seq);
        }
    }

    /// Withdraws one entry, unless that has happened. Its request waits for the slot's decision.
    fn withdraw(&mut self, now: Micros, seq: u64) {
        let entry = self.stream.entry_mut(seq).expect("an entry above the watermark");
        if entry.withdrawn {
            return;
        }
        let (object, slot) = (entry.object, entry.slot);
        let request = std::mem::replace(&mut entry.request, RequestKey::NONE);
        if !self.config.has(Mutant::WithdrawnCommitted) {
            self.stream.withdraw(seq);
        }
        self.counters.withdrawn += 1;
        let Some(waiting) = self.requests.get_mut(request) else { return };
        waiting.command = Bytes::copy_from_slice(self.stream.command(seq).bytes());
        waiting.stage = Stage::Limbo(now);
        self.objects[object].rare().limbo.push((slot, request));
    }

    /// A ballot that exists somewhere: `promised` never stays below it. This is also what ends leads.
    pub(super) fn raise(&mut self, now: Micros, object: ObjectIndex, ballot: Ballot) {
        if ballot > self.objects[object].promised {
            self.depose(now, object);
            self.objects[object].promised = ballot;
        }
    }

    /// A cumulative answer, or where a receiver stands after a reconnect. Refusals are taken before the number counts.
    pub(super) fn on_standing(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let standing: &Standing = reader.take()?;
        let refusals: &[Refusal] = reader.take_many(standing.refusals.get() as usize)?;
        reader.zero(standing.reserved)?;
        if !reader.is_empty() {
            return Err(reader.wrong("it has bytes behind its refusals"));
        }
        let learner = reader.flag(standing.learner)?;
        let resumes = frame.kind == Kind::Resume && !self.links[from.index()].has_place();
        if frame.kind == Kind::Resume {
            self.note_vote(now, from, !learner);
        }
        if standing.stream != self.stream.id && !self.config.has(Mutant::OldStreamCounted) {
            if resumes {
                self.announce_stream(from, standing.stream, out);
                self.resume(from, 0, 0, 0, out);
                return Ok(());
            }
            if frame.kind == Kind::Resume {
                // It votes now, and has not heard of the stream.
                return Ok(());
            }
            return Err(reader.wrong("it is about a stream that is not this node's"));
        }
        let last_seq = standing.last_seq.get();
        if last_seq > self.stream.sealed_seq() || (!resumes && last_seq > self.links[from.index()].sent_seq) {
            return Err(reader.wrong("it names numbers that were not sent"));
        }
        if standing.watermark.get() > last_seq || standing.behind_from.get() > standing.watermark.get() {
            return Err(reader.wrong("it stands where no receiver can"));
        }
        let refusals = self.read_refusals(&reader, frame, last_seq, refusals)?;
        if self.config.has(Mutant::RefusalsAfterAck) {
            self.links[from.index()].acked = last_seq.max(self.links[from.index()].acked);
            self.advance_commit(now, out);
        }
        for (seq, ballot) in refusals {
            self.take_refusal(now, seq, ballot);
        }
        self.links[from.index()].note_acked(last_seq);
        let one_more = u64::from(resumes && self.config.has(Mutant::ResumeAcksOneMore));
        let link = &mut self.links[from.index()];
        if !link.learner {
            link.acked = link.acked.max((last_seq + one_more).min(self.stream.sealed_seq()));
        }
        if resumes {
            self.resume(from, last_seq, standing.watermark.get(), standing.behind_from.get(), out);
        }
        self.advance_commit(now, out);
        Ok(())
    }

    /// Refusals rise up to what was taken, and each is for the sake of a ballot above the entry's: by any other the entry
    /// would be withdrawn and its object kept.
    fn read_refusals(
        &mut self,
        reader: &Reader<'_>,
        frame: &Frame,
        last_seq: u64,
        refusals: &[Refusal],
    ) -> Result<SmallVec<[(u64, Ballot); 4]>, FrameError> {
        let (mut read, mut before) = (SmallVec::new(), 0);
        for refusal in refusals {
            let (seq, ballot) = (refusal.seq.get(), ballot_from(reader, frame.config_version, refusal.ballot)?);
            if seq <= before || seq > last_seq {
                return Err(reader.wrong("its refusals are not of rising numbers that were taken"));
            }
            if self.stream.entry_mut(seq).is_some_and(|entry| entry.ballot >= ballot) {
                return Err(reader.wrong("it refuses an entry for the sake of a ballot that is not higher"));
            }
            before = seq;
            read.push((seq, ballot));
        }
        Ok(read)
    }

    /// A peer says, when its connection begins or when that changes, whether it has a vote.
    fn note_vote(&mut self, now: Micros, from: NodeIndex, votes: bool) {
        let link = &mut self.links[from.index()];
        let before = !std::mem::replace(&mut link.learner, !votes);
        if votes && !before {
            self.ask_anew(now, from);
        }
        if votes != before {
            self.choose_eager(now);
        }
    }

    /// A receiver that follows a stream of an earlier boot of this node learns that it has ended.
    fn announce_stream(&mut self, to: NodeIndex, followed: StreamId, out: &mut Outputs) {
        if followed.boot.get() > 0 && self.stream.trimmed == 0 {
            let frames = self.stream.commit_frames(0, 0, self.config.shard, self.config.version);
            out.sends.extend(frames.into_iter().map(|frame| crate::protocol::Send { to, frame, after: RecordId(0) }));
        }
    }

    /// The first refusal ends the owner's lead of that object.
    fn take_refusal(&mut self, now: Micros, seq: u64, ballot: Ballot) {
        let Some(entry) = self.stream.entry_mut(seq) else { return };
        if entry.withdrawn {
            return;
        }
        let object = entry.object;
        self.counters.refusals += 1;
        self.withdraw(now, seq);
        if !self.config.has(Mutant::RefusalKeepsLead) {
            self.hear(now, object, ballot);
        }
    }

    /// Moves the watermark to the highest number that a Q2 has acked, executes what it passes, and answers (§IV-B).
    pub(super) fn advance_commit(&mut self, now: Micros, out: &mut Outputs) {
        let mut acked = [0u64; crate::topology::NodeSet::CAPACITY];
        for (node, link) in self.links.iter().enumerate() {
            acked[node] = if self.config.has(Mutant::SentCountsAsAcked) { link.sent_seq } else { link.acked };
        }
        let at_once = self.config.has(Mutant::OwnAcceptBeforeDurable);
        acked[self.config.me.index()] = if at_once { self.stream.sealed_seq() } else { self.own_durable };
        let to = self.config.phase2_watermark(&mut acked[..self.links.len()]);
        if to <= self.stream.committed {
            return;
        }
        assert!(to <= self.stream.sealed_seq(), "nobody acks what was not sealed");
        self.progress_at = now;
        let mut held = HeldFrame::default();
        while self.stream.committed < to {
            let (seq, entry) = self.stream.commit_next(now, &mut held);
            let frame = held.bytes();
            if entry.withdrawn {
                self.keep_bytes(entry.object, entry.slot, &Source::Own(seq), || entry.slice_of(frame));
                self.orphan_withdrawn(now, entry.object, entry.slot, entry.ballot);
                continue;
            }
            self.counters.committed += 1;
            let command = entry.command_in(frame);
            let answer = self.execute_own(now, &entry, command, out);
            if entry.request != RequestKey::NONE {
                self.answer(entry.request, answer, out);
                self.make_due_offer(now, entry.object);
            }
        }
    }

    fn execute_own(
        &mut self,
        now: Micros,
        entry: &super::stream::OwnEntry,
        command: Command<'_>,
        out: &mut Outputs,
    ) -> Answer {
        let object = &mut self.objects[entry.object];
        if entry.slot <= object.applied {
            // Taken over in phase 1 and executed since, from the stream that had decided it: nobody waits for it here.
            assert!(entry.request == RequestKey::NONE, "a new command's slot is executed only by its own stream");
            return Answer::refusal(Status::Ok);
        }
        if entry.slot > object.applied + 1 {
            // Found decided in phase 1, behind a slot that was withdrawn since: it waits for that slot like any other.
            assert!(entry.request == RequestKey::NONE, "a new command is committed only behind all before it");
            self.learn(now, entry.object, entry.slot, entry.ballot, command, out);
            return Answer::refusal(Status::Ok);
        }
        let executed = object.execute(&self.config, entry.slot, command);
        if object.tail.first().is_some_and(|first| first.slot == entry.slot) {
            object.tail.pop_first();
        }
        self.note_version(entry.object);
        let object = &self.objects[entry.object];
        let with_value = command.op() == Op::Get;
        let answer = Answer { with_value, ..Answer::executed(executed, entry.slot) };
        if !object.tail.is_empty() || object.rare.is_some() {
            self.after_execution(now, entry.object, out);
        }
        answer
    }

    /// An entry leaves its stream, but a tail still has it: the tail keeps the bytes itself from now on.
    pub(super) fn keep_bytes(
        &mut self,
        object: ObjectIndex,
        slot: u64,
        source: &Source,
        bytes: impl FnOnce() -> Bytes,
    ) {
        if let Some(kept) = self.objects[object].tail.get_mut(slot)
            && kept.source == *source
        {
            // A copy, not a slice: a slice would pin its whole frame for as long as nobody uses the object.
            kept.source = Source::Held(Box::new(Bytes::copy_from_slice(&bytes())));
        }
    }

    /// A receiver has said where it stands: the stream goes on from there, or from where it is still kept (§5).
    fn resume(&mut self, to: NodeIndex, last_seq: u64, watermark: u64, behind_from: u64, out: &mut Outputs) {
        let (shard, version) = (self.config.shard, self.config.version);
        let trimmed = self.stream.trimmed;
        let link = &mut self.links[to.index()];
        let mut from_seq = behind_from;
        let (mut position, mut passed) = (last_seq, watermark);
        if watermark < trimmed {
            let skip = SkipBody { stream: self.stream.id, to_seq: trimmed.into() };
            link.send(Kind::Skip, skip.as_bytes(), RecordId(0), out);
            self.counters.skips += 1;
            from_seq = if behind_from == 0 { watermark + 1 } else { behind_from.min(watermark + 1) };
            (position, passed) = (last_seq.max(trimmed), trimmed);
        }
        if self.config.has(Mutant::SkipWithoutState) {
            from_seq = 0;
        }
        if self.config.has(Mutant::ResumeOneLate) {
            position = (position + 1).min(self.stream.sealed_seq());
        }
        link.catch_up = (from_seq > 0).then_some(super::link::CatchUp { from_seq, cursor: 0 });
        let commit_to = self.stream.committed.min(position);
        if commit_to > passed && !self.config.has(Mutant::ExceptionsSkipped) {
            let frames = self.stream.commit_frames(passed, commit_to, shard, version).into_iter();
            out.sends.extend(frames.map(|frame| crate::protocol::Send { to, frame, after: RecordId(0) }));
        }
        (link.sent_seq, link.sent_commit) = (position, passed.max(commit_to));
        link.next_frame = Some(self.stream.frame_after(position));
        link.held_since = None;
    }

    /// Puts frames of the stream on the links: at once to those that the fastest Q2 consists of, held for a while and sent
    /// in larger pieces to the others, and never more than a link has room for.
    pub(super) fn send_stream(&mut self, now: Micros, out: &mut Outputs) {
        self.skip_slow_links(out);
        let (end, usual_bytes) = (self.stream.end_frame(), self.stream.usual_bytes());
        let unacked_max = self.unacked_bytes_max();
        let wastes = self.config.has(Mutant::WithdrawnSent);
        for (node, link) in self.links.iter_mut().enumerate() {
            let Some(mut next) = link.next_frame else { continue };
            if next >= end {
                continue;
            }
            let node = NodeIndex(node as u8);
            if !self.eager.contains(node) && !self.all_eager {
                let since = *link.held_since.get_or_insert(now);
                let frames = end - next;
                let waited = now.since(since) >= self.config.batch.learner_delay_us;
                if !waited && (frames as usize) * usual_bytes < self.config.batch.learner_bytes {
                    continue;
                }
            }
            while let Some(frame) = self.stream.frame_to_send(next, wastes) {
                let room = &mut out.room[node.index()];
                if *room == 0 || link.unacked_bytes() >= unacked_max {
                    break;
                }
                let bytes = frame.to_send();
                *room = room.saturating_sub(bytes.len());
                out.sends.push(crate::protocol::Send { to: node, frame: bytes.clone(), after: RecordId(0) });
                (link.sent_seq, link.sent_commit) = (frame.last_seq, frame.commit_to);
                link.note_sent(frame.last_seq, bytes.len());
                next += 1;
            }
            (link.next_frame, link.held_since) = (Some(next), None);
        }
    }

    /// At so many bytes that were sent and are not acked a member has to wait: its disk, or its link, is slow.
    fn unacked_bytes_max(&self) -> usize {
        let unbounded = self.config.has(Mutant::UnackedUnbounded);
        if unbounded { usize::MAX } else { self.config.flow.stream_unacked_bytes_max }
    }

    /// A link that is so slow that its next frame is no longer kept goes on as after a reconnect, from what was put on it.
    fn skip_slow_links(&mut self, out: &mut Outputs) {
        for node in 0..self.links.len() {
            let link = &self.links[node];
            let waits = out.room[node] == 0 || link.unacked_bytes() >= self.unacked_bytes_max();
            if !waits && link.next_frame.is_some_and(|next| self.stream.is_trimmed(next)) {
                let behind_from = link.catch_up.map_or(0, |catch_up| catch_up.from_seq);
                self.resume(NodeIndex(node as u8), link.sent_seq, link.sent_commit, behind_from, out);
            }
        }
    }

    /// Lets go of frames that everybody has, or that cannot be kept any longer.
    pub(super) fn trim_stream(&mut self) {
        if self.config.has(Mutant::StreamNeverTrimmed) {
            return;
        }
        let announced = self.stream.announced();
        let known = if self.config.has(Mutant::TrimUnannounced) { self.stream.committed } else { announced };
        let me = self.config.me.index();
        let peers = self.links.iter().enumerate().filter(|(node, _)| *node != me);
        let needed_after = peers.map(|(_, link)| link.acked).min().unwrap_or(u64::MAX);
        let unsent = self.links.iter().filter_map(|link| link.next_frame).min().unwrap_or(u64::MAX);
        self.stream.trim(known, needed_after, unsent, self.config.flow.stream_retain_bytes);
    }
}

/// The entries of a batch as they are checked, before anything of it is taken; gives their keys, up to the first entry that
/// is wrong.
struct Checked<'a> {
    reader: Reader<'a>,
    left: u32,
    owner: NodeId,
    /// Most entries have the ballot of the one before.
    usual: u64,
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
        if head.ballot.get() != self.usual {
            // Of any version: the frame's is checked with its stream.
            if ballot_from(reader, 1, head.ballot)?.owner() != Some(self.owner) {
                return Err(reader.wrong("an entry has somebody else's ballot"));
            }
            self.usual = head.ballot.get();
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
    pub(super) fn on_accept_batch(
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
        let mut checked = Checked { reader, left: head.entries.get(), owner, usual: 0, wrong: None };
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
        self.inbound[from.index()] = super::Inbound::of(stream);
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
    pub(super) fn learn(
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
    pub(super) fn after_execution(&mut self, now: Micros, object: ObjectIndex, out: &mut Outputs) {
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
    pub(super) fn drop_entries(&mut self, from: NodeIndex, to: u64) {
        let mut held = HeldFrame::default();
        while self.inbound[from.index()].watermark < to.min(self.inbound[from.index()].last_seq) {
            let (seq, entry) = self.inbound[from.index()].pass_next(&mut held);
            let (source, frame) = (Source::Stream(from, seq), held.bytes());
            self.keep_bytes(entry.object, entry.slot, &source, || entry.slice_of(frame));
        }
        self.inbound[from.index()].settle_frames();
    }

    /// The stream no longer reaches back to this node's place in it (§5).
    pub(super) fn on_skip(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
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
    pub(super) fn send_acks(&mut self, now: Micros, out: &mut Outputs) {
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
    pub(super) fn send_standing(&mut self, to: NodeIndex, kind: Kind, out: &mut Outputs) {
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
