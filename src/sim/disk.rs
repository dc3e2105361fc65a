//! A disk that keeps one shard's log, and loses what was not synced when its node crashes.
//!
//! The log is bytes: `from | length | frame` for each record, so that a crash can tear the last one. One sync is under way at
//! a time, and covers everything that was written when it began.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;

use super::random::Random;
use crate::{
    protocol::{Record, RecordId},
    shard::Log,
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

/// The log of one shard of one node; outlives the node's boots.
#[derive(Debug, Default)]
pub struct Disk {
    bytes: Vec<u8>,
    /// Where each record ends; the first one's number is 1.
    ends: Vec<usize>,
    /// Records that are durable.
    synced: usize,
    /// Records that the sync under way covers, if one is.
    syncing: Option<usize>,
    unreadable: Option<usize>,
    /// Every record is durable at once.
    at_once: bool,
}

impl Disk {
    /// An empty one. With `at_once`, writing is syncing.
    pub fn new(at_once: bool) -> Self {
        Self { at_once, ..Self::default() }
    }

    fn write(&mut self, record: &Record) {
        assert_eq!(record.id.0, self.ends.len() as u64 + 1, "records come in the order of their numbers, without gaps");
        self.bytes.push(record.from.0);
        self.bytes.extend_from_slice(&(record.frame.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&record.frame);
        self.ends.push(self.bytes.len());
        if self.at_once {
            self.synced = self.ends.len();
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
        }
    }

    /// The node crashes.
    pub fn crash(&mut self, fault: DiskFault, random: &mut Random) {
        self.syncing = None;
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

    /// The records of a log that is read after a crash. A torn end is cut off.
    ///
    /// # Errors
    /// If a place in it cannot be read.
    pub fn recover(&mut self) -> Result<Vec<Record>, ReadError> {
        if let Some(offset) = self.unreadable {
            return Err(ReadError { offset });
        }
        let mut records = Vec::new();
        let (mut at, mut ends) = (0, Vec::new());
        while let Some(head) = self.bytes.get(at..at + HEAD_BYTES) {
            let length = u32::from_le_bytes(head[1..].try_into().expect("four bytes")) as usize;
            let Some(frame) = self.bytes.get(at + HEAD_BYTES..at + HEAD_BYTES + length) else { break };
            let frame = Bytes::copy_from_slice(frame);
            let id = RecordId(records.len() as u64 + 1);
            records.push(Record { id, from: NodeIndex(head[0]), frame });
            at += HEAD_BYTES + length;
            ends.push(at);
        }
        assert!(ends.len() >= self.synced, "what was synced is there");
        self.bytes.truncate(at);
        (self.synced, self.ends) = (ends.len(), ends);
        Ok(records)
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
        RecordId(self.0.borrow().synced as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::random::Purpose, *};

    fn disk(records: u64, synced: u64) -> Disk {
        let mut disk = Disk::new(false);
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
                let records = disk.recover().unwrap();
                assert!((5..=9).contains(&records.len()), "{} records after {fault:?}", records.len());
                assert!(fault != DiskFault::LosesUnsynced || records.len() == 5);
                for (record, id) in records.iter().zip(1..) {
                    assert_eq!((record.id.0, record.from, record.frame.len()), (id, NodeIndex(3), 10 + id as usize));
                }
                // The log goes on behind what it kept.
                let id = RecordId(records.len() as u64 + 1);
                disk.write(&Record { id, from: NodeIndex(0), frame: Bytes::from_static(b"next") });
                assert_eq!(disk.recover().unwrap().last().unwrap().frame, "next");
            }
        }
    }

    #[test]
    fn a_place_that_cannot_be_read_is_an_error() {
        let mut disk = disk(4, 4);
        disk.crash(DiskFault::Unreadable, &mut Random::new(1, Purpose::Disk));
        assert!(disk.recover().unwrap_err().offset < disk.bytes());
    }
}
