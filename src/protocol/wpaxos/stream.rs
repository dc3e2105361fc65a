//! The accept stream that this node issues (`protocol.md` §5): numbered entries of many objects, encoded once into frames
//! that go to every peer and into the log, and kept while somebody may still need them.

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{Hash, Hasher},
};

use bytes::{Bytes, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Ballot, ObjectIndex, RequestKey,
    message::{BatchHead, EntryHead, StreamId},
};
use crate::{
    command::{Action, Command, NewCommand},
    protocol::Micros,
    wire::{self, HEADER_BYTES, Kind, WITHDRAWN_MAX},
};

/// An entry above the commit watermark.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnEntry {
    pub(super) object: ObjectIndex,
    pub(super) slot: u64,
    pub(super) ballot: Ballot,
    /// Who waits for it; taken when the entry is withdrawn.
    pub(super) request: RequestKey,
    /// Passed over by the watermark, never committed by this stream.
    pub(super) withdrawn: bool,
    frame: u64,
    offset: u32,
    bytes: u32,
}

/// A sealed frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnFrame {
    pub(super) bytes: Bytes,
    /// The last number in this frame or before it.
    pub(super) last_seq: u64,
    /// The watermark that it carries.
    pub(super) commit_to: u64,
    emptied: Emptied,
}

/// A frame with empty numbers for those of its entries that were withdrawn, and how many of them were by then. It follows from
/// the frame and what is withdrawn, and is made when the frame is sent: it makes no difference between two states.
#[derive(Clone, Debug, Default)]
struct Emptied(Option<(usize, Bytes)>);

impl PartialEq for Emptied {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Emptied {}

impl Hash for Emptied {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl OwnFrame {
    /// As it is sent.
    pub(super) fn to_send(&self) -> &Bytes {
        self.emptied.0.as_ref().map_or(&self.bytes, |(_, bytes)| bytes)
    }
}

/// The frame that a run of entries lies in, shared once for all of them: each share counts up and down with an atomic.
#[derive(Debug, Default)]
pub(super) struct HeldFrame(Option<(u64, Bytes)>);

impl HeldFrame {
    /// Holds the frame with this number.
    pub(super) fn take<'a>(&mut self, number: u64, bytes: impl FnOnce() -> &'a Bytes) {
        if self.0.as_ref().is_none_or(|(held, _)| *held != number) {
            self.0 = Some((number, bytes().clone()));
        }
    }

    /// The frame that was taken last.
    ///
    /// # Panics
    /// If there was none.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.0.as_ref().expect("a frame was taken").1
    }
}

/// The open batch: entries that no frame holds yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Open {
    buffer: BytesMut,
    entries: u32,
    opened_at: Micros,
}

/// This node's own stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnStream {
    pub(super) id: StreamId,
    open: Open,
    entries: VecDeque<OwnEntry>,
    next_seq: u64,
    /// The commit watermark: what is at or below it is committed, or withdrawn.
    pub(super) committed: u64,
    /// The watermark that the last sealed frame carries.
    announced: u64,
    /// When `announced` fell behind.
    unannounced_since: Option<Micros>,
    /// The numbers above `trimmed` that are withdrawn.
    withdrawn: BTreeSet<u64>,
    frames: VecDeque<OwnFrame>,
    first_frame: u64,
    /// The last number whose frame is no longer kept.
    pub(super) trimmed: u64,
    retained_bytes: usize,
    inflight_bytes: usize,
    /// Size of the last frame: the next buffer's.
    usual_bytes: usize,
}

/// A withdrawn entry goes as an empty number if that is shorter by so many bytes.
const EMPTY_SAVES_MIN: usize = 32;

const BATCH_START: usize = HEADER_BYTES + size_of::<BatchHead>();

impl OwnStream {
    pub(super) fn new(id: StreamId) -> Self {
        Self {
            id,
            open: Open::default(),
            entries: VecDeque::new(),
            next_seq: 1,
            committed: 0,
            announced: 0,
            unannounced_since: None,
            withdrawn: BTreeSet::new(),
            frames: VecDeque::new(),
            first_frame: 0,
            trimmed: 0,
            retained_bytes: 0,
            inflight_bytes: 0,
            usual_bytes: 4096,
        }
    }

    /// The last number that was given.
    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// The last number that a frame holds.
    pub(super) fn sealed_seq(&self) -> u64 {
        self.last_seq() - u64::from(self.open.entries)
    }

    /// Whether a sealed entry is not committed yet.
    pub(super) fn is_under_way(&self) -> bool {
        self.sealed_seq() > self.committed
    }

    /// Bytes of commands above the watermark.
    pub(super) fn inflight_bytes(&self) -> usize {
        self.inflight_bytes
    }

    /// Size of the last frame in bytes.
    pub(super) fn usual_bytes(&self) -> usize {
        self.usual_bytes
    }

    pub(super) fn open_bytes(&self) -> usize {
        self.open.buffer.len()
    }

    pub(super) fn open_entries(&self) -> usize {
        self.open.entries as usize
    }

    pub(super) fn opened_at(&self) -> Option<Micros> {
        (self.open.entries > 0).then_some(self.open.opened_at)
    }

    pub(super) fn unannounced_since(&self) -> Option<Micros> {
        self.unannounced_since
    }

    /// Encodes a command as the next entry; returns its number. This is the one copy that the owner makes of it.
    pub(super) fn append(
        &mut self,
        now: Micros,
        object: ObjectIndex,
        slot: u64,
        ballot: Ballot,
        command: &[u8],
        request: RequestKey,
    ) -> u64 {
        if self.open.buffer.is_empty() {
            self.open.buffer.reserve(self.usual_bytes + BATCH_START);
            self.open.buffer.extend_from_slice(&[0; BATCH_START]);
        }
        if self.open.entries == 0 {
            self.open.opened_at = now;
        }
        let head = EntryHead {
            slot: slot.into(),
            ballot: ballot.number.into(),
            command_bytes: (command.len() as u32).into(),
            empty: 0.into(),
        };
        self.open.buffer.extend_from_slice(head.as_bytes());
        let offset = self.open.buffer.len() as u32;
        self.open.buffer.extend_from_slice(command);
        self.open.entries += 1;
        let frame = self.end_frame();
        let bytes = command.len() as u32;
        self.entries.push_back(OwnEntry { object, slot, ballot, request, withdrawn: false, frame, offset, bytes });
        self.inflight_bytes += command.len();
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// The number of the frame after the last sealed one.
    pub(super) fn end_frame(&self) -> u64 {
        self.first_frame + self.frames.len() as u64
    }

    /// Makes a frame of the open batch, with the watermark as far as one frame can list what is withdrawn below it; nothing if
    /// there is nothing to tell.
    pub(super) fn seal(&mut self, shard: u16, version: u32) -> Option<Bytes> {
        if self.open.entries == 0 && self.announced == self.committed {
            return None;
        }
        let mut buffer = std::mem::take(&mut self.open.buffer);
        if buffer.is_empty() {
            buffer.extend_from_slice(&[0; BATCH_START]);
        }
        let (announced, to) = (self.announced, self.told_at_once(self.announced, self.committed));
        self.finish_batch(&mut buffer, (self.sealed_seq() + 1, self.open.entries), (announced, to));
        wire::finish(&mut buffer, 0, Kind::AcceptBatch, shard, version);
        self.usual_bytes = buffer.len().max(512);
        self.open = Open::default();
        (self.announced, self.unannounced_since) = (to, self.unannounced_since.filter(|_| to < self.committed));
        let bytes = buffer.freeze();
        self.retained_bytes += bytes.len();
        let (last_seq, commit_to) = (self.last_seq(), to);
        self.frames.push_back(OwnFrame { bytes: bytes.clone(), last_seq, commit_to, emptied: Emptied::default() });
        Some(bytes)
    }

    /// A commit watermark for one receiver that comes back: from where it stands to what it has, or what is committed; at least
    /// one frame.
    pub(super) fn commit_frames(&self, from: u64, to: u64, shard: u16, version: u32) -> Vec<Bytes> {
        assert!(self.trimmed <= from && to <= self.committed, "the fate of {from}..{to} is known");
        let (mut frames, mut from) = (Vec::new(), from);
        loop {
            let told = self.told_at_once(from, to);
            frames.push(self.commit_frame(from, told, shard, version));
            if told == to {
                return frames;
            }
            from = told;
        }
    }

    /// How far one frame can move the watermark towards `to`: it lists at most [`WITHDRAWN_MAX`] exceptions.
    fn told_at_once(&self, from: u64, to: u64) -> u64 {
        self.withdrawn_in(from, to).nth(WITHDRAWN_MAX).map_or(to, |first_untold| first_untold - 1)
    }

    fn commit_frame(&self, from: u64, to: u64, shard: u16, version: u32) -> Bytes {
        let mut buffer = BytesMut::with_capacity(BATCH_START);
        buffer.extend_from_slice(&[0; BATCH_START]);
        self.finish_batch(&mut buffer, (to + 1, 0), (from, to));
        wire::finish(&mut buffer, 0, Kind::AcceptBatch, shard, version);
        buffer.freeze()
    }

    /// The withdrawn numbers in (from, to].
    fn withdrawn_in(&self, from: u64, to: u64) -> impl Iterator<Item = &u64> {
        assert!(from <= to, "a watermark does not go back");
        // Half open, for `(from + 1)..=to` is a panic where they are equal.
        self.withdrawn.range(from + 1..to + 1)
    }

    /// Ends a body whose entries (the first one's number, and how many) are encoded: the withdrawn numbers that the watermark
    /// passes between `from` and `to`, and the head.
    fn finish_batch(&self, buffer: &mut BytesMut, (first_seq, entries): (u64, u32), (from, to): (u64, u64)) {
        let entries_bytes = buffer.len() - BATCH_START;
        let mut withdrawn = 0;
        for seq in self.withdrawn_in(from, to) {
            buffer.extend_from_slice(&seq.to_le_bytes());
            withdrawn += 1;
        }
        let head = BatchHead {
            stream: self.id,
            first_seq: first_seq.into(),
            commit_from: from.into(),
            commit_to: to.into(),
            entries: entries.into(),
            entries_bytes: (entries_bytes as u32).into(),
            withdrawn: withdrawn.into(),
            reserved: 0.into(),
        };
        buffer[HEADER_BYTES..BATCH_START].copy_from_slice(head.as_bytes());
    }

    /// The sealed frame with this number, if it is kept and there is one.
    pub(super) fn frame(&self, number: u64) -> Option<&OwnFrame> {
        self.frames.get(usize::try_from(number.checked_sub(self.first_frame)?).ok()?)
    }

    /// The sealed frame with this number, as it is sent from now on: what was withdrawn is never committed by this stream, so
    /// that its number goes and its command does not (`protocol.md` §8). With `full`, it goes as it was sealed.
    pub(super) fn frame_to_send(&mut self, number: u64, full: bool) -> Option<&OwnFrame> {
        let place = usize::try_from(number.checked_sub(self.first_frame)?).ok()?;
        let last_seq = self.frames.get(place)?.last_seq;
        if !self.withdrawn.is_empty() && !full {
            let before = place.checked_sub(1).map_or(self.trimmed, |before| self.frames[before].last_seq);
            let withdrawn = self.withdrawn.range(before + 1..last_seq + 1).count();
            let frame = &self.frames[place];
            if withdrawn > frame.emptied.0.as_ref().map_or(0, |(withdrawn, _)| *withdrawn) {
                let bytes = emptied(&frame.bytes, &self.withdrawn);
                self.retained_bytes += bytes.len();
                if let Some((_, before)) = self.frames[place].emptied.0.replace((withdrawn, bytes)) {
                    self.retained_bytes -= before.len();
                }
            }
        }
        self.frames.get(place)
    }

    /// The sealed frames with entries above `seq`, which are all kept if it is announced.
    pub(super) fn frames_behind(&self, seq: u64) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().filter(move |frame| frame.last_seq > seq).map(|frame| &frame.bytes)
    }

    /// How many sealed frames are kept, and their bytes.
    pub(super) fn kept_frames(&self) -> (usize, usize) {
        (self.frames.len(), self.retained_bytes)
    }

    /// The number of the first kept frame that has something for a receiver that took everything up to `seq`.
    pub(super) fn frame_after(&self, seq: u64) -> u64 {
        self.first_frame + self.frames.partition_point(|frame| frame.last_seq <= seq) as u64
    }

    /// An entry above the watermark.
    pub(super) fn entry_mut(&mut self, seq: u64) -> Option<&mut OwnEntry> {
        let place = seq.checked_sub(self.committed + 1)?;
        self.entries.get_mut(usize::try_from(place).ok()?)
    }

    /// The command of an entry above the watermark, in its frame or still in the open batch.
    pub(super) fn command(&self, seq: u64) -> Command<'_> {
        let entry = &self.entries[(seq - self.committed - 1) as usize];
        Command::view(self.command_bytes(entry))
    }

    fn command_bytes(&self, entry: &OwnEntry) -> &[u8] {
        let (start, end) = (entry.offset as usize, (entry.offset + entry.bytes) as usize);
        match self.frame(entry.frame) {
            Some(frame) => &frame.bytes[start..end],
            None => &self.open.buffer[start..end],
        }
    }

    /// Takes the entry behind the watermark, which moves over it; its frame is `held` then.
    pub(super) fn commit_next(&mut self, now: Micros, held: &mut HeldFrame) -> (u64, OwnEntry) {
        let entry = self.entries.pop_front().expect("the watermark stays below the last number");
        self.committed += 1;
        self.unannounced_since.get_or_insert(now);
        self.inflight_bytes -= entry.bytes as usize;
        let kept = "only sealed entries are committed, and kept until they are";
        held.take(entry.frame, || &self.frame(entry.frame).expect(kept).bytes);
        (self.committed, entry)
    }

    /// Marks an entry above the watermark as withdrawn.
    pub(super) fn withdraw(&mut self, seq: u64) {
        let entry = self.entry_mut(seq).expect("only entries above the watermark are withdrawn");
        assert!(!entry.withdrawn, "an entry is withdrawn once");
        entry.withdrawn = true;
        self.withdrawn.insert(seq);
    }

    /// Whether this frame was kept once and is not any more.
    pub(super) fn is_trimmed(&self, number: u64) -> bool {
        number < self.first_frame
    }

    /// The watermark that the last sealed frame carries.
    pub(super) fn announced(&self) -> u64 {
        self.announced
    }

    /// Forgets frames that everybody has acked (`needed_after`: the lowest ack) and that were put on every link
    /// (`unsent`: the first that was not), and more where they exceed what is to be retained. Never above `known`, the
    /// watermark that is *announced*: the list of the withdrawn is needed until a frame holds it.
    pub(super) fn trim(&mut self, known: u64, needed_after: u64, unsent: u64, retain_bytes: usize) {
        while let Some(frame) = self.frames.front() {
            let wanted = frame.last_seq > needed_after || self.first_frame >= unsent;
            let kept = wanted && self.retained_bytes <= retain_bytes;
            if kept || frame.last_seq > known || self.frames.len() == 1 {
                break;
            }
            self.retained_bytes -= frame.bytes.len() + frame.emptied.0.as_ref().map_or(0, |(_, bytes)| bytes.len());
            self.trimmed = frame.last_seq;
            self.frames.pop_front();
            self.first_frame += 1;
        }
        if self.withdrawn.first().is_some_and(|first| *first <= self.trimmed) {
            self.withdrawn = self.withdrawn.split_off(&(self.trimmed + 1));
        }
    }
}

/// A sealed frame with empty numbers in place of its withdrawn entries, where that is shorter.
fn emptied(frame: &Bytes, withdrawn: &BTreeSet<u64>) -> Bytes {
    const SEALED: &str = "a sealed frame is well-formed";
    let view = wire::view(frame).expect(SEALED);
    let (head, mut rest) = BatchHead::ref_from_prefix(view.body).expect(SEALED);
    let mut buffer = BytesMut::with_capacity(frame.len());
    buffer.extend_from_slice(&[0; BATCH_START]);
    for seq in (head.first_seq.get()..).take(head.entries.get() as usize) {
        let (entry, after) = EntryHead::ref_from_prefix(rest).expect(SEALED);
        let (command, after) = after.split_at(entry.command_bytes.get() as usize);
        rest = after;
        let key = Command::view(command).key();
        let noop = NewCommand { client: 0, id: 0, retry: false, key, action: Action::Noop };
        if withdrawn.contains(&seq) && noop.encoded_bytes() + EMPTY_SAVES_MIN <= command.len() {
            let command_bytes = (noop.encoded_bytes() as u32).into();
            buffer.extend_from_slice(EntryHead { command_bytes, empty: 1.into(), ..*entry }.as_bytes());
            noop.encode(&mut buffer).expect("its key is a key");
        } else {
            buffer.extend_from_slice(entry.as_bytes());
            buffer.extend_from_slice(command);
        }
    }
    let entries_bytes = ((buffer.len() - BATCH_START) as u32).into();
    buffer.extend_from_slice(rest);
    buffer[HEADER_BYTES..BATCH_START].copy_from_slice(BatchHead { entries_bytes, ..*head }.as_bytes());
    wire::finish(&mut buffer, 0, Kind::AcceptBatch, view.shard, view.config_version);
    buffer.freeze()
}

impl OwnEntry {
    /// The entry's command in its frame's bytes.
    pub(super) fn command_in<'a>(&self, frame: &'a Bytes) -> Command<'a> {
        Command::view(&frame[self.offset as usize..(self.offset + self.bytes) as usize])
    }

    /// The entry's command as a slice of its frame.
    pub(super) fn slice_of(&self, frame: &Bytes) -> Bytes {
        frame.slice(self.offset as usize..(self.offset + self.bytes) as usize)
    }
}
