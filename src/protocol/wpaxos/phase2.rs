//! Phase 2: the accept stream (`protocol.md` §5), at its owner and at its receivers.

use bytes::Bytes;
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::{
    Ballot, ObjectIndex, RequestKey, Role, WPaxos,
    message::{Reader, Refusal, SkipBody, Standing, StreamId, ballot_from},
    object::{Source, TailEntry},
    requests::{Answer, Stage},
    stream::HeldFrame,
};
use crate::{
    command::{Command, Op, Status},
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    topology::NodeIndex,
    wire::{Frame, FrameError, Kind},
};

mod receiver;

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
        if resumes && self.is_evidence(from, standing, &reader, out)? {
            return Ok(());
        }
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
