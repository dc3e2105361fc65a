//! A disk that keeps one shard's log, and loses what was not synced when its node crashes.
//!
//! The log is bytes: `from | length | frame` for each record, so that a crash can tear the last one. One sync is under way at
//! a time, and covers everything that was written when it began. A checkpoint that is whole, and durable with all records
//! that it may show, takes the place of those that it stands for.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;

use super::random::Random;
use crate::{
    protocol::{Record, RecordId},
    shard::{CheckpointPart, Log},
    topology::NodeIndex,
};

/// What a crash does to the log of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// Everything that was not synced is gone.
    LosesUnsynced,
    /// Some of it was on the disk already.
    KeepsSome,
    /// The last record that was is torn.
    TearsEnd,
    /// A place in what was synced cannot be read any more.
    Unreadable,
    /// It is another disk, with nothing on it.
    Gone,
}

/// Why a log cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log cannot be read at byte {offset}")]
pub struct ReadError {
    /// Where.
    pub offset: usize,
}

const HEAD_BYTES: usize = 5;

/// A checkpoint, whole or in parts.
#[derive(Debug)]
struct Checkpoint {
    /// The last record that it stands for.
    position: u64,
    frames: Vec<Bytes>,
    /// The last record that it may show something of, once all of it is there.
    shows: Option<u64>,
}

/// What is read after a crash.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The record that the checkpoint stands behind, and its frames.
    pub checkpoint: Option<(RecordId, Vec<Bytes>)>,
    /// The records behind it.
    pub records: Vec<Record>,
}

/// The log of one shard of one node; outlives the node's boots.
#[derive(Debug, Default)]
pub struct Disk {
    bytes: Vec<u8>,
    /// Records that a checkpoint has taken the place of.
    cut: u64,
    /// Where each record ends; the first one's number is behind `cut`.
    ends: Vec<usize>,
    checkpoint: Option<Checkpoint>,
    /// One that is being written.
    next_checkpoint: Option<Checkpoint>,
    /// After so many records a new one is wanted; 0 for none.
    checkpoint_every: u64,
    /// Bytes of it that are taken in one turn.
    piece_bytes: usize,
    /// Records that are durable.
    synced: usize,
    /// Records that the sync under way covers, if one is.
    syncing: Option<usize>,
    unreadable: Option<usize>,
    /// Every record is durable at once.
    at_once: bool,
}

impl Disk {
    /// An empty one. With `at_once`, writing is syncing. A checkpoint is wanted after so many records, none if that is 0, in
    /// pieces of so many bytes.
    pub fn new(at_once: bool, checkpoint_every: u64, piece_bytes: usize) -> Self {
        Self { at_once, checkpoint_every, piece_bytes, ..Self::default() }
    }

    /// Another one for the same node, with nothing on it.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.at_once, self.checkpoint_every, self.piece_bytes)
    }

    fn last(&self) -> u64 {
        self.cut + self.ends.len() as u64
    }

    fn checkpoint_room(&self) -> usize {
        let due = match &self.next_checkpoint {
            Some(checkpoint) => checkpoint.shows.is_none(),
            None => self.checkpoint_every > 0 && self.last() - self.cut >= self.checkpoint_every,
        };
        if due { self.piece_bytes } else { 0 }
    }

    fn take_part(&mut self, part: CheckpointPart) {
        match (part, &mut self.next_checkpoint) {
            (CheckpointPart::Begin(position, frames), next) => {
                assert!(
                    next.is_none() && position.0 == self.cut + self.ends.len() as u64,
                    "it begins between two turns"
                );
                *next = Some(Checkpoint { position: position.0, frames, shows: None });
            }
            (CheckpointPart::Objects(frame), Some(next)) => next.frames.push(frame),
            (CheckpointPart::End(record), Some(next)) => next.shows = Some(record.0),
            _ => unreachable!("a checkpoint begins before it goes on"),
        }
        self.settle_checkpoint();
    }

    /// A checkpoint that is whole takes its place.
    fn settle_checkpoint(&mut self) {
        let durable = self.cut + self.synced as u64;
        let is_whole = |next: &mut Checkpoint| next.shows.is_some_and(|record| record <= durable);
        let Some(whole) = self.next_checkpoint.take_if(is_whole) else { return };
        let records = (whole.position - self.cut) as usize;
        let bytes = records.checked_sub(1).map_or(0, |last| self.ends[last]);
        self.bytes.drain(..bytes);
        self.ends.drain(..records);
        self.ends.iter_mut().for_each(|end| *end -= bytes);
        self.synced -= records;
        self.syncing = self.syncing.map(|syncing| syncing.saturating_sub(records));
        self.cut = whole.position;
        self.checkpoint = Some(whole);
    }

    fn write(&mut self, record: &Record) {
        assert_eq!(record.id.0, self.last() + 1, "records come in the order of their numbers, without gaps");
        self.bytes.push(record.from.0);
        self.bytes.extend_from_slice(&(record.frame.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&record.frame);
        self.ends.push(self.bytes.len());
        if self.at_once {
            self.synced = self.ends.len();
            self.settle_checkpoint();
        }
    }

    /// Begins a sync if there is something to sync and none is under way.
    pub fn begin_sync(&mut self) -> bool {
        let wanted = self.syncing.is_none() && self.synced < self.ends.len();
        if wanted {
            self.syncing = Some(self.ends.len());
        }
        wanted
    }

    /// The sync under way is done.
    pub fn end_sync(&mut self) {
        if let Some(records) = self.syncing.take() {
            self.synced = self.synced.max(records);
            self.settle_checkpoint();
        }
    }

    /// The node crashes.
    pub fn crash(&mut self, fault: DiskFault, random: &mut Random) {
        self.syncing = None;
        self.next_checkpoint = None;
        let lost = self.ends.len() - self.synced;
        let kept = match fault {
            DiskFault::LosesUnsynced => self.synced,
            _ => self.synced + random.below(lost as u64 + 1) as usize,
        };
        let end = kept.checked_sub(1).map_or(0, |last| self.ends[last]);
        let torn = match (fault, self.ends.get(kept)) {
            (DiskFault::TearsEnd, Some(next)) => end + random.below((next - end) as u64) as usize,
            _ => end,
        };
        self.bytes.truncate(torn);
        self.ends.truncate(kept);
        self.synced = kept;
        if fault == DiskFault::Unreadable && end > 0 {
            self.unreadable = Some(random.below(end as u64) as usize);
        }
    }

    /// What is read after a crash. A torn end is cut off.
    ///
    /// # Errors
    /// If a place in it cannot be read.
    pub fn recover(&mut self) -> Result<Recovered, ReadError> {
        if let Some(offset) = self.unreadable {
            return Err(ReadError { offset });
        }
        let mut records = Vec::new();
        let (mut at, mut ends) = (0, Vec::new());
        while let Some(head) = self.bytes.get(at..at + HEAD_BYTES) {
            let length = u32::from_le_bytes(head[1..].try_into().expect("four bytes")) as usize;
            let Some(frame) = self.bytes.get(at + HEAD_BYTES..at + HEAD_BYTES + length) else { break };
            let frame = Bytes::copy_from_slice(frame);
            let id = RecordId(self.cut + records.len() as u64 + 1);
            records.push(Record { id, from: NodeIndex(head[0]), frame });
            at += HEAD_BYTES + length;
            ends.push(at);
        }
        assert!(ends.len() >= self.synced, "what was synced is there");
        self.bytes.truncate(at);
        (self.synced, self.ends) = (ends.len(), ends);
        let of = |checkpoint: &Checkpoint| (RecordId(checkpoint.position), checkpoint.frames.clone());
        Ok(Recovered { checkpoint: self.checkpoint.as_ref().map(of), records })
    }

    /// Bytes written that are not synced.
    pub(super) fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.synced.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    /// Bytes written.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The shard's end of a [`Disk`].
#[derive(Debug)]
pub(super) struct DiskLog(pub(super) Rc<RefCell<Disk>>);

impl Log for DiskLog {
    fn append(&mut self, records: &mut Vec<Record>) {
        let mut disk = self.0.borrow_mut();
        records.drain(..).for_each(|record| disk.write(&record));
    }

    fn durable(&self) -> RecordId {
        let disk = self.0.borrow();
        RecordId(disk.cut + disk.synced as u64)
    }

    fn pending_bytes(&self) -> usize {
        self.0.borrow().pending_bytes()
    }

    fn checkpoint_room(&self) -> usize {
        self.0.borrow().checkpoint_room()
    }

    fn checkpoint(&mut self, part: CheckpointPart) {
        self.0.borrow_mut().take_part(part);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::random::Purpose, *};

    fn disk(records: u64, synced: u64) -> Disk {
        let mut disk = Disk::new(false, 0, 0);
        for id in 1..=records {
            let frame = Bytes::from(vec![id as u8; 10 + id as usize]);
            disk.write(&Record { id: RecordId(id), from: NodeIndex(3), frame });
            if id == synced {
                assert!(disk.begin_sync() && !disk.begin_sync(), "one sync at a time");
            }
        }
        disk.end_sync();
        disk
    }

    #[test]
    fn what_was_synced_is_there_after_every_crash_and_nothing_but_a_prefix() {
        for seed in 0..200 {
            let mut random = Random::new(seed, Purpose::Disk);
            for fault in [DiskFault::LosesUnsynced, DiskFault::KeepsSome, DiskFault::TearsEnd] {
                let mut disk = disk(9, 5);
                disk.crash(fault, &mut random);
                let records = disk.recover().unwrap().records;
                assert!((5..=9).contains(&records.len()), "{} records after {fault:?}", records.len());
                assert!(fault != DiskFault::LosesUnsynced || records.len() == 5);
                for (record, id) in records.iter().zip(1..) {
                    assert_eq!((record.id.0, record.from, record.frame.len()), (id, NodeIndex(3), 10 + id as usize));
                }
                // The log goes on behind what it kept.
                let id = RecordId(records.len() as u64 + 1);
                disk.write(&Record { id, from: NodeIndex(0), frame: Bytes::from_static(b"next") });
                assert_eq!(disk.recover().unwrap().records.last().unwrap().frame, "next");
            }
        }
    }

    #[test]
    fn a_checkpoint_takes_the_place_of_records_when_all_that_it_may_show_is_durable() {
        let mut disk = disk(4, 4);
        (disk.checkpoint_every, disk.piece_bytes) = (3, 10);
        assert_eq!(disk.checkpoint_room(), 10);
        disk.take_part(CheckpointPart::Begin(RecordId(4), vec![Bytes::from_static(b"standing")]));
        disk.write(&Record { id: RecordId(5), from: NodeIndex(0), frame: Bytes::from_static(b"five") });
        disk.take_part(CheckpointPart::Objects(Bytes::from_static(b"objects")));
        disk.take_part(CheckpointPart::End(RecordId(5)));
        assert_eq!((disk.checkpoint_room(), disk.cut), (0, 0), "it may show what record 5 did, which may be lost");
        assert!(disk.begin_sync());
        disk.end_sync();
        disk.crash(DiskFault::LosesUnsynced, &mut Random::new(1, Purpose::Disk));
        let Recovered { checkpoint, records } = disk.recover().unwrap();
        assert_eq!(checkpoint.unwrap(), (RecordId(4), vec!["standing".into(), "objects".into()]));
        assert_eq!(records.iter().map(|record| record.id.0).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_place_that_cannot_be_read_is_an_error() {
        let mut disk = disk(4, 4);
        disk.crash(DiskFault::Unreadable, &mut Random::new(1, Purpose::Disk));
        assert!(disk.recover().unwrap_err().offset < disk.bytes());
    }
}
