//! The accept stream of another node, as its receiver keeps it (`protocol.md` §5): what it took, what it refused, and the
//! entries' bytes until the watermark has passed them.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use bytes::Bytes;

use super::{Ballot, ObjectIndex, message::StreamId, stream::HeldFrame};
use crate::command::Command;

/// An entry that was taken and that the watermark has not passed.
#[derive(Clone, Debug)]
pub(super) struct TakenEntry {
    pub(super) object: ObjectIndex,
    pub(super) slot: u64,
    pub(super) ballot: Ballot,
    /// It was withdrawn before it was sent: nothing was accepted, and nothing is executed.
    pub(super) is_empty: bool,
    frame: u64,
    offset: u32,
    bytes: u32,
}

#[derive(Clone, Debug)]
struct TakenFrame {
    bytes: Bytes,
    /// Its entries that the watermark has not passed.
    live: u32,
}

/// A stream as received.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbound {
    /// Which one; none before the first frame.
    pub(super) id: Option<StreamId>,
    /// The last number that was taken.
    pub(super) last_seq: u64,
    /// The commit watermark: everything at or below it is executed, or dropped as withdrawn.
    pub(super) watermark: u64,
    /// Entries (watermark, last_seq].
    entries: VecDeque<TakenEntry>,
    frames: VecDeque<TakenFrame>,
    first_frame: u64,
    /// Refused numbers above the watermark, rising, with the ballot promised then. They stand in every ack until the
    /// watermark has passed them.
    pub(super) refusals: Vec<(u64, Ballot)>,
    /// The first number whose effects may be missing because of a Skip; 0 if none.
    pub(super) behind_from: u64,
    /// Whether something was taken since the last ack.
    pub(super) ack_due: bool,
}

impl Inbound {
    /// A stream of which nothing has come yet.
    pub(super) fn of(id: StreamId) -> Self {
        Self { id: Some(id), ..Self::default() }
    }

    /// Announces a frame whose entries are about to be pushed.
    pub(super) fn push_frame(&mut self, bytes: &Bytes) {
        self.frames.push_back(TakenFrame { bytes: bytes.clone(), live: 0 });
    }

    /// Takes the next number, whose entry was withdrawn before it was sent.
    pub(super) fn push_empty(&mut self, object: ObjectIndex, slot: u64, ballot: Ballot, offset: usize, bytes: usize) {
        self.push(object, slot, ballot, offset, bytes);
        self.entries.back_mut().expect("just pushed").is_empty = true;
    }

    /// Takes the next entry, which lies in the frame pushed last.
    pub(super) fn push(&mut self, object: ObjectIndex, slot: u64, ballot: Ballot, offset: usize, bytes: usize) -> u64 {
        let frame = self.first_frame + self.frames.len() as u64 - 1;
        self.frames.back_mut().expect("the frame was pushed").live += 1;
        let (offset, bytes) = (offset as u32, bytes as u32);
        self.entries.push_back(TakenEntry { object, slot, ballot, is_empty: false, frame, offset, bytes });
        self.last_seq += 1;
        self.last_seq
    }

    /// Moves the watermark over one entry and returns it; its frame is `held` then. [`Self::settle_frames`] lets go of that.
    pub(super) fn pass_next(&mut self, held: &mut HeldFrame) -> (u64, TakenEntry) {
        let entry = self.entries.pop_front().expect("the watermark stays at or below the last number taken");
        self.watermark += 1;
        let place = (entry.frame - self.first_frame) as usize;
        let frame = &mut self.frames[place];
        frame.live -= 1;
        held.take(entry.frame, || &frame.bytes);
        (self.watermark, entry)
    }

    /// Lets go of frames in which nothing is needed any more.
    pub(super) fn settle_frames(&mut self) {
        while self.frames.len() > 1 && self.frames[0].live == 0 {
            self.frames.pop_front();
            self.first_frame += 1;
        }
        if self.entries.is_empty() {
            self.first_frame += self.frames.len() as u64;
            self.frames.clear();
        }
    }

    /// How many frames are kept in which nothing is needed any more: at most one, whose entries were malformed.
    pub(super) fn passed_frames(&self) -> usize {
        self.frames.iter().filter(|frame| frame.live == 0).count()
    }

    /// Drops the refusals that the watermark has passed.
    pub(super) fn settle_refusals(&mut self) {
        if self.refusals.first().is_some_and(|(seq, _)| *seq <= self.watermark) {
            let watermark = self.watermark;
            self.refusals.retain(|(seq, _)| *seq > watermark);
        }
    }

    /// Up to where the stream's effects are here for certain.
    pub(super) fn effective(&self) -> u64 {
        match self.behind_from {
            0 => self.watermark,
            missing => self.watermark.min(missing - 1),
        }
    }

    /// Jumps to `seq` after a Skip; everything at or below it must have been passed.
    pub(super) fn skip_to(&mut self, seq: u64) {
        assert!(self.watermark <= seq, "a skip goes forward");
        if self.last_seq < seq {
            assert!(self.entries.is_empty(), "skipped entries were passed first");
            self.last_seq = seq;
        }
        self.watermark = seq;
        self.settle_refusals();
    }

    /// The frames that are held.
    pub(super) fn kept_frames(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().map(|frame| &frame.bytes)
    }

    /// Whether this entry is the one with this number, and the watermark has not passed it.
    pub(super) fn has(&self, seq: u64, object: ObjectIndex, slot: u64, ballot: Ballot) -> bool {
        let place = seq.checked_sub(self.watermark + 1).and_then(|place| self.entries.get(place as usize));
        place.is_some_and(|entry| (entry.object, entry.slot, entry.ballot) == (object, slot, ballot))
    }

    /// Bytes of the frames that are held.
    pub(super) fn kept_bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.bytes.len()).sum()
    }

    /// Entries that the watermark has not passed, with their numbers.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, &TakenEntry)> {
        self.entries.iter().enumerate().map(|(place, entry)| (self.watermark + 1 + place as u64, entry))
    }

    /// All that is known beside the entries.
    fn standing(&self) -> impl Hash + PartialEq {
        let Self { id, last_seq, watermark, entries: _, frames: _, first_frame: _, refusals, behind_from, ack_due } =
            self;
        (*id, *last_seq, *watermark, refusals, *behind_from, *ack_due)
    }

    /// The entries as they are compared.
    fn numbered(&self) -> impl Iterator<Item = impl Hash + PartialEq> {
        self.entries().map(|(seq, entry)| {
            (seq, entry.object, entry.slot, entry.ballot, entry.is_empty, self.command(seq).bytes())
        })
    }

    /// The command of an entry that the watermark has not passed.
    pub(super) fn command(&self, seq: u64) -> Command<'_> {
        let entry = &self.entries[(seq - self.watermark - 1) as usize];
        entry.command_in(&self.frames[(entry.frame - self.first_frame) as usize].bytes)
    }
}

// Entries are compared with their commands, wherever these lie: how they came in frames, and what else these held, only
// says what memory is in use.
impl PartialEq for Inbound {
    fn eq(&self, other: &Self) -> bool {
        self.standing() == other.standing() && self.numbered().eq(other.numbered())
    }
}

impl Eq for Inbound {}

impl Hash for Inbound {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.standing().hash(state);
        self.numbered().for_each(|entry| entry.hash(state));
    }
}

impl TakenEntry {
    /// The entry's command in its frame's bytes.
    pub(super) fn command_in<'a>(&self, frame: &'a Bytes) -> Command<'a> {
        Command::view(&frame[self.offset as usize..(self.offset + self.bytes) as usize])
    }

    /// The entry's command as a slice of its frame.
    pub(super) fn slice_of(&self, frame: &Bytes) -> Bytes {
        frame.slice(self.offset as usize..(self.offset + self.bytes) as usize)
    }
}
