//! Where the records of a shard go.

use std::fmt;

use bytes::Bytes;

use crate::{
    protocol::{Record, RecordId},
    wal::Wal,
};

/// The log of one shard, as the shard sees it: it takes the records of a turn, and says at a later turn how far it is.
pub(crate) trait Log: fmt::Debug {
    /// Takes records, in the order of their numbers, and leaves none.
    fn append(&mut self, records: &mut Vec<Record>);

    /// The last record that is durable, and with it all before. A log that gets further between two turns has the shard
    /// woken.
    fn durable(&self) -> RecordId;

    /// Bytes of records that were taken and are not durable yet.
    fn pending_bytes(&self) -> usize;

    /// Whether a write has ended since the last call: whoever goes on with it has been woken.
    fn look(&self) -> bool {
        false
    }

    /// How many bytes of a checkpoint it takes now: 0 if it wants none, or is still writing what it was given. A log that
    /// comes to want some between two turns has the shard woken.
    fn checkpoint_room(&self) -> usize {
        0
    }

    /// Takes a part of a checkpoint: `Begin`, any number of `Objects`, `End`.
    fn checkpoint(&mut self, _part: CheckpointPart) {}
}

/// What a checkpoint consists of.
#[derive(Debug)]
pub(crate) enum CheckpointPart {
    /// It stands for all records up to this one, in so many frames beside the objects.
    Begin(RecordId, Vec<Bytes>),
    /// A frame of objects.
    Objects(Bytes),
    /// That was all. It holds once records up to this one, whose effects it may show, are durable.
    End(RecordId),
}

/// Keeps nothing: a record is as durable as it will ever be as soon as it is there.
#[derive(Debug, Default)]
pub(super) struct Unlogged(RecordId);

impl Log for Unlogged {
    fn append(&mut self, records: &mut Vec<Record>) {
        if let Some(last) = records.last() {
            self.0 = last.id;
        }
        records.clear();
    }

    fn durable(&self) -> RecordId {
        self.0
    }

    fn pending_bytes(&self) -> usize {
        0
    }
}

impl Log for Wal {
    fn append(&mut self, records: &mut Vec<Record>) {
        Self::append(self, records);
    }

    fn durable(&self) -> RecordId {
        Self::durable(self)
    }

    fn pending_bytes(&self) -> usize {
        Self::pending_bytes(self)
    }

    fn look(&self) -> bool {
        Self::look(self)
    }

    fn checkpoint_room(&self) -> usize {
        Self::checkpoint_room(self)
    }

    fn checkpoint(&mut self, part: CheckpointPart) {
        match part {
            CheckpointPart::Begin(position, frames) => self.begin_checkpoint(position, frames),
            CheckpointPart::Objects(frame) => self.checkpoint_objects(frame),
            CheckpointPart::End(record) => self.end_checkpoint(record),
        }
    }
}
