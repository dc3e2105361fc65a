//! Checkpoints: what a log may begin with instead of all its records (`docs/decisions/0014-checkpoints-are-replayed-over.md`).
//!
//! ```text
//! Membership | Compare (ended streams) | for each stream: StreamPlace, its AcceptBatch frames | Kept objects …
//! ```
//! All but the objects is as it was behind one record. The objects follow while work goes on, each as it is by then: the
//! records behind that one are replayed over them. A replay over a later state changes nothing that matters: what is
//! executed is not executed again, promises are at least what they were, and what was accepted is in the tail, though the
//! replay may refuse it, which withdraws an entry at the worst.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use zerocopy::IntoBytes;

use super::{
    Ballot, Inbound, Mutant, Object, ObjectIndex, WPaxos,
    message::{
        BatchHead, CompareHead, EntryHead, KeptEntry, KeptHead, Reader, Refusal, StreamId, StreamPlace, ballot_from,
        promise_from, put_state,
    },
    object::{Source, TailEntry},
    phase1::put_tail_part,
};
use crate::{
    protocol::{Micros, RecordId},
    topology::NodeIndex,
    wire::{self, Frame, FrameError, Kind, SPLIT_BYTES},
};

/// What a restore knows between two frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Restore {
    /// Whose stream the next batches belong to, and the last number that it had taken.
    stream: Option<(NodeIndex, u64)>,
    /// An object of which another part has to follow, and which.
    partial: Option<(ObjectIndex, u32)>,
    /// Undecided entries that belong to no stream any more: to be finished when the replay has ended.
    open: Vec<(ObjectIndex, u64, Ballot)>,
}

/// Writing.
impl WPaxos {
    /// Everything that is no object, as it is now.
    pub(super) fn put_standing(&self, frames: &mut Vec<Bytes>) {
        frames.push(self.membership_frame());
        let reached = self.converge.ended();
        let head = CompareHead { answers: 0, settled: 1, reserved: [0; 2] };
        frames.push(self.own_frame(Kind::Compare, &[head.as_bytes(), reached.as_bytes()].concat()));
        self.put_own_stream(frames);
        for (owner, inbound) in self.inbound.iter().enumerate() {
            let Some(stream) = inbound.id else { continue };
            let (last_seq, watermark) = (inbound.last_seq, inbound.watermark);
            let without = self.config.has(Mutant::CheckpointWithoutRefusals);
            let refusals = if without { &[] } else { inbound.refusals.as_slice() };
            let place = place_of(owner, stream, last_seq, watermark, inbound.behind_from, refusals.len());
            let mut body = place.as_bytes().to_vec();
            for (seq, ballot) in refusals {
                let refusal = Refusal { seq: (*seq).into(), ballot: ballot.number.into() };
                body.extend_from_slice(refusal.as_bytes());
            }
            frames.push(self.own_frame(Kind::StreamPlace, &body));
            frames.extend(inbound.kept_frames().cloned());
        }
    }

    /// This node's own stream, as a replay of its records would have taken it.
    fn put_own_stream(&self, frames: &mut Vec<Bytes>) {
        let (announced, sealed) = (self.stream.announced(), self.stream.sealed_seq());
        if sealed == 0 {
            return;
        }
        let place = place_of(self.config.me.index(), self.stream.id, sealed, announced, 0, 0);
        frames.push(self.own_frame(Kind::StreamPlace, place.as_bytes()));
        frames.extend(self.stream.frames_behind(announced).cloned());
    }

    fn own_frame(&self, kind: Kind, body: &[u8]) -> Bytes {
        wire::frame(kind, self.config.shard, self.config.version, body)
    }

    /// Objects from a place on, about so many bytes of them. One whose tail does not go into one frame is put into several at
    /// once, as it is now: those behind the first are given next, whatever the object has become by then.
    pub(super) fn put_objects(&mut self, cursor: u64, bytes: usize) -> (Bytes, Option<u64>) {
        let start = usize::try_from(cursor).expect("a place in memory");
        let mut frames = std::mem::take(&mut self.unwritten);
        let mut place = start;
        if frames.is_empty() {
            let (mut buffer, bytes) = (BytesMut::new(), bytes.min(SPLIT_BYTES));
            wire::begin(&mut buffer);
            while place < self.objects.len() && (place == start || buffer.len() < bytes) && frames.is_empty() {
                let known = &self.objects[ObjectIndex(place as u32)];
                place += 1;
                if known.applied > 0 || known.promised != Ballot::ZERO {
                    self.put_object(&mut buffer, known, &mut frames);
                }
            }
            frames.push_back(self.close_kept(&mut buffer));
        }
        let frame = frames.pop_front().expect("one was made, or was left");
        self.unwritten = frames;
        let goes_on = place < self.objects.len() || !self.unwritten.is_empty();
        (frame, goes_on.then_some(place as u64))
    }

    fn close_kept(&self, buffer: &mut BytesMut) -> Bytes {
        wire::finish(buffer, 0, Kind::Kept, self.config.shard, self.config.version);
        buffer.split().freeze()
    }

    /// The checkpoint shows what this node has committed and executed, whether it has told anybody or not. The log says so
    /// behind it: should this node restart before it tells, the others would not know that there is more.
    pub(super) fn claim_committed(&mut self) {
        if !self.config.has(Mutant::CheckpointUnclaimed) {
            self.seal_batch();
        }
    }

    /// Appends an object, in as many parts as its tail needs: each but the last one ends its frame.
    fn put_object(&self, buffer: &mut BytesMut, known: &Object, full: &mut VecDeque<Bytes>) {
        let length = if self.config.has(Mutant::CheckpointWithoutTails) { 0 } else { known.tail.len() };
        let forgets = self.config.has(Mutant::CheckpointForgetsPromises);
        let accepted = || known.tail.iter().map(|entry| entry.ballot).max().unwrap_or(Ballot::ZERO);
        let promised = if forgets { accepted() } else { known.promised };
        let mut tail = known.tail.iter().take(length).peekable();
        let (mut part, mut more) = (0u32, true);
        while more {
            let start = buffer.len();
            let mut head = KeptHead {
                promised: promised.number.into(),
                promised_version: promised.version.into(),
                applied: known.applied.into(),
                state_bytes: 0.into(),
                tail: 0.into(),
                key_bytes: (known.key.len() as u16).into(),
                more: 0,
                reserved: 0,
                part: part.into(),
            };
            buffer.extend_from_slice(head.as_bytes());
            buffer.extend_from_slice(&known.key);
            if part == 0 {
                head.state_bytes = (put_state(buffer, &known.state) as u32).into();
            }
            head.tail = put_tail_part(buffer, &mut tail, |buffer, entry| self.put_entry(buffer, entry));
            more = tail.peek().is_some();
            head.more = more.into();
            buffer[start..start + size_of::<KeptHead>()].copy_from_slice(head.as_bytes());
            if more {
                full.push_back(self.close_kept(buffer));
                wire::begin(buffer);
            }
            part += 1;
        }
    }

    fn put_entry(&self, buffer: &mut BytesMut, entry: &TailEntry) {
        let (owner, seq) = match entry.source {
            Source::Own(seq) => (self.config.me.0, seq),
            Source::Stream(node, seq) => (node.0, seq),
            Source::Held(_) => (0, 0),
        };
        let command = self.source_command(&entry.source).bytes();
        let head = KeptEntry {
            slot: entry.slot.into(),
            ballot: entry.ballot.number.into(),
            ballot_version: entry.ballot.version.into(),
            command_bytes: (command.len() as u32).into(),
            seq: seq.into(),
            owner,
            decided: entry.decided.into(),
            reserved: [0; 6],
        };
        buffer.extend_from_slice(head.as_bytes());
        buffer.extend_from_slice(command);
    }
}

/// Reading.
impl WPaxos {
    pub(super) fn restore(&mut self, now: Micros, bytes: &Bytes) -> Result<(), FrameError> {
        if wire::frame_bytes(bytes)? != Some(bytes.len()) {
            return Err(FrameError::Partial(bytes.len()));
        }
        let frame = wire::parse(bytes.clone())?;
        if frame.shard != self.config.shard {
            return Err(self.refuse(&frame, "it belongs to another shard"));
        }
        match frame.kind {
            Kind::Membership => self.take_membership(now, &frame, false),
            // Its ballots bring their versions: a later one may have come while objects were written.
            Kind::Kept => self.restore_objects(now, &frame),
            _ if frame.config_version != self.config.version => {
                Err(self.refuse(&frame, "it belongs to another configuration version"))
            }
            Kind::Compare => self.replay_reached(&frame),
            Kind::StreamPlace => self.restore_place(&frame),
            Kind::AcceptBatch => self.restore_batch(&frame),
            _ => Err(self.refuse(&frame, "no checkpoint holds this kind")),
        }
    }

    fn restore_place(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let place: StreamPlace = *reader.take()?;
        let refusals: &[Refusal] = reader.take_many(place.refusals.get() as usize)?;
        reader.zero(place.reserved)?;
        let owner = usize::from(place.owner);
        let (last_seq, watermark) = (reader.number(place.last_seq)?, place.watermark.get());
        let stands = watermark <= last_seq && place.behind_from.get() <= watermark;
        if owner >= self.links.len() || !stands || !reader.is_empty() {
            return Err(reader.wrong("it is no place in a stream"));
        }
        let mut inbound = Inbound::of(place.stream);
        (inbound.watermark, inbound.last_seq) = (place.watermark.get(), place.watermark.get());
        inbound.behind_from = place.behind_from.get();
        for refusal in refusals {
            let ballot = ballot_from(&reader, frame.config_version, refusal.ballot)?;
            inbound.refusals.push((refusal.seq.get(), ballot));
        }
        self.inbound[owner] = inbound;
        self.restore.stream = Some((NodeIndex(place.owner), place.last_seq.get()));
        Ok(())
    }

    /// A frame of the stream that was named last: its entries that the watermark had not passed. What this node made of them
    /// is in the refusals and in tails.
    fn restore_batch(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &BatchHead = reader.take()?;
        let entries = u64::from(head.entries.get());
        let Some((owner, last_seq)) = self.restore.stream else {
            return Err(reader.wrong("it belongs to no stream"));
        };
        let first = reader.number(head.first_seq)?;
        let end = (first + entries).min(last_seq + 1);
        if end <= self.inbound[owner.index()].last_seq + 1 {
            // It has only told how far the watermark is, or is not of interest any more.
            return Ok(());
        }
        self.inbound[owner.index()].push_frame(&frame.bytes);
        for seq in first..end {
            let entry: &EntryHead = reader.take()?;
            let offset = reader.offset();
            let command = reader.entry(entry.command_bytes)?;
            let ballot = ballot_from(&reader, frame.config_version, entry.ballot)?;
            let slot = reader.slot(entry.slot)?;
            if seq == self.inbound[owner.index()].last_seq + 1 {
                let object = self.object_of(command.key());
                let (inbound, bytes) = (&mut self.inbound[owner.index()], command.bytes().len());
                if entry.empty.get() == 0 {
                    inbound.push(object, slot, ballot, offset, bytes);
                } else {
                    inbound.push_empty(object, slot, ballot, offset, bytes);
                }
            }
        }
        self.inbound[owner.index()].settle_frames();
        Ok(())
    }

    fn restore_objects(&mut self, now: Micros, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: KeptHead = *reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            let applied = reader.number(head.applied)?;
            let promised = promise_from(&reader, head.promised_version, head.promised)?;
            let (part, more) = (head.part.get(), reader.flag(head.more)?);
            let state = if part == 0 { Some(reader.state(head.state_bytes, applied)?) } else { None };
            let object = self.object_of(key);
            if self.restore.partial.take() != (part > 0).then_some((object, part)) {
                return Err(reader.wrong("the parts of an object's tail do not follow each other"));
            }
            self.restore.partial = more.then_some((object, part + 1));
            let known = &mut self.objects[object];
            if let Some(state) = state {
                (known.promised, known.applied, known.state) = (promised.max(known.promised), applied, state);
            }
            for _ in 0..head.tail.get() {
                self.restore_entry(now, object, key, &mut reader)?;
            }
            if part == 0 {
                self.note_version(object);
            }
        }
        Ok(())
    }

    fn restore_entry(
        &mut self,
        now: Micros,
        object: ObjectIndex,
        key: &[u8],
        reader: &mut Reader<'_>,
    ) -> Result<(), FrameError> {
        let head: KeptEntry = *reader.take()?;
        reader.zero(head.reserved)?;
        let bytes = reader.entry_of(key, head.command_bytes)?.bytes();
        let ballot = ballot_from(reader, head.ballot_version.get(), head.ballot)?;
        let (slot, decided) = (reader.slot(head.slot)?, reader.flag(head.decided)?);
        let owner = NodeIndex(head.owner);
        let streams = self.inbound.get(owner.index());
        let in_stream = streams.is_some_and(|inbound| inbound.has(head.seq.get(), object, slot, ballot));
        let source = match in_stream && !decided {
            true => Source::Stream(owner, head.seq.get()),
            false => Source::Held(Box::new(Bytes::copy_from_slice(bytes))),
        };
        if decided {
            self.note_gap(now, object);
        } else if !in_stream {
            self.restore.open.push((object, slot, ballot));
        }
        self.objects[object].tail.put(TailEntry { slot, ballot, decided, source });
        Ok(())
    }

    pub(super) fn finish_restore(&mut self, record: RecordId) {
        self.restore.stream = None;
        self.logged = record;
    }

    /// Entries that came without their streams, and that the replay has not made part of one again, are orphans.
    pub(super) fn finish_restored(&mut self, now: Micros) {
        for (object, slot, ballot) in std::mem::take(&mut self.restore.open) {
            let entry = self.objects[object].tail.get_mut(slot);
            if entry.is_some_and(|entry| matches!(entry.source, Source::Held(_))) {
                self.orphan_withdrawn(now, object, slot, ballot);
            }
        }
    }
}

fn place_of(owner: usize, stream: StreamId, last: u64, watermark: u64, behind: u64, refusals: usize) -> StreamPlace {
    StreamPlace {
        stream,
        last_seq: last.into(),
        watermark: watermark.into(),
        behind_from: behind.into(),
        refusals: (refusals as u32).into(),
        owner: owner as u8,
        reserved: [0; 3],
    }
}
