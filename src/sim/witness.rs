//! The shipped protocol with somebody beside it who looks at it after every input.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;

use super::oracle::{Observer, Violation};
use crate::{
    protocol::{Membership, Micros, Outputs, Protocol, Record, RecordId, Request, wpaxos::WPaxos},
    topology::NodeIndex,
    wire::{Frame, FrameError},
};

/// Who looks, and the first thing that he found wrong.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) observer: Observer,
    pub(super) violation: Option<Violation>,
}

/// A protocol core, watched.
#[derive(Debug)]
pub(super) struct Witness {
    core: WPaxos,
    node: NodeIndex,
    shard: u16,
    watch: Rc<RefCell<Watch>>,
}

impl Witness {
    /// This core, as it is now.
    pub(super) fn new(core: WPaxos, node: NodeIndex, shard: u16, watch: Rc<RefCell<Watch>>) -> Self {
        Self { core, node, shard, watch }
    }

    /// The core.
    pub(super) fn core(&self) -> &WPaxos {
        &self.core
    }

    fn look(&self) {
        self.core.check_invariants();
        let mut watch = self.watch.borrow_mut();
        if watch.violation.is_none() {
            watch.violation = watch.observer.observe(self.node, self.shard, &self.core).err();
        }
    }
}

impl Protocol for Witness {
    fn on_link_up(&mut self, now: Micros, peer: NodeIndex, incarnation: u64, out: &mut Outputs) {
        self.core.on_link_up(now, peer, incarnation, out);
        self.look();
    }

    fn on_link_down(&mut self, now: Micros, peer: NodeIndex, out: &mut Outputs) {
        self.core.on_link_down(now, peer, out);
        self.look();
    }

    fn on_frame(&mut self, now: Micros, peer: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError> {
        let result = self.core.on_frame(now, peer, frame, out);
        self.look();
        result
    }

    fn on_request(&mut self, now: Micros, request: Request<'_>, out: &mut Outputs) {
        self.core.on_request(now, request, out);
        self.look();
    }

    fn on_durable(&mut self, now: Micros, record: RecordId, out: &mut Outputs) {
        self.core.on_durable(now, record, out);
        self.look();
    }

    fn on_replay(&mut self, now: Micros, record: &Record) -> Result<(), FrameError> {
        self.core.on_replay(now, record)
    }

    fn end_replay(&mut self, now: Micros) {
        self.core.end_replay(now);
    }

    fn begin_checkpoint(&mut self, frames: &mut Vec<Bytes>) {
        self.core.begin_checkpoint(frames);
    }

    fn checkpoint_objects(&mut self, cursor: u64, bytes: usize) -> (Bytes, Option<u64>) {
        self.core.checkpoint_objects(cursor, bytes)
    }

    fn is_taken(&self, now: Micros, peer: NodeIndex, incarnation: u64) -> bool {
        self.core.is_taken(now, peer, incarnation)
    }

    fn on_restore(&mut self, now: Micros, frame: &Bytes) -> Result<(), FrameError> {
        self.core.on_restore(now, frame)
    }

    fn end_restore(&mut self, now: Micros, record: RecordId) {
        self.core.end_restore(now, record);
    }

    fn membership(&self) -> Option<Membership> {
        self.core.membership()
    }

    fn on_tick(&mut self, now: Micros, out: &mut Outputs) {
        self.core.on_tick(now, out);
        self.look();
    }

    fn flush(&mut self, now: Micros, out: &mut Outputs) {
        self.core.flush(now, out);
        self.look();
    }

    fn flush_at(&self) -> Option<Micros> {
        self.core.flush_at()
    }

    fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    fn on_stop(&mut self, now: Micros, out: &mut Outputs) {
        self.core.on_stop(now, out);
        self.look();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.core.counters()
    }
}
