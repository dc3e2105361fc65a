//! Where the records of a shard go.

use std::fmt;

use crate::protocol::{Record, RecordId};

/// The log of one shard, as the shard sees it: it takes the records of a turn, and says at a later turn how far it is.
pub(crate) trait Log: fmt::Debug {
    /// Takes records, in the order of their numbers, and leaves none.
    fn append(&mut self, records: &mut Vec<Record>);

    /// The last record that is durable, and with it all before. A log that gets further between two turns has the shard
    /// woken.
    fn durable(&self) -> RecordId;
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
}
