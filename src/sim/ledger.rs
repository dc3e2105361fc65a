//! A shard's log with a ledger beside it, which learns what is written and what of it is durable when the shard does.

use super::oracle::SharedLedger;
use crate::{
    protocol::{Record, RecordId},
    shard::{CheckpointPart, Log},
};

/// Any log, and its ledger.
#[derive(Debug)]
pub(super) struct LedgerLog {
    pub(super) log: Box<dyn Log>,
    pub(super) ledger: SharedLedger,
}

impl Log for LedgerLog {
    fn append(&mut self, records: &mut Vec<Record>) {
        self.ledger.borrow_mut().write(records);
        self.log.append(records);
    }

    fn durable(&self) -> RecordId {
        let durable = self.log.durable();
        self.ledger.borrow_mut().advance(durable);
        durable
    }

    fn pending_bytes(&self) -> usize {
        self.log.pending_bytes()
    }

    fn look(&self) -> bool {
        self.log.look()
    }

    fn checkpoint_room(&self) -> usize {
        self.log.checkpoint_room()
    }

    fn checkpoint(&mut self, part: CheckpointPart) {
        self.log.checkpoint(part);
    }
}
