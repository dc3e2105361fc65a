//! The log as the synchronous half of a shard sees it: how much waits for the disk, and what that holds up; checkpoints.

use std::collections::BTreeMap;

use super::Core;
use crate::{
    protocol::{Micros, Protocol},
    shard::log::CheckpointPart,
    topology::NodeIndex,
};

/// Bytes of a checkpoint that a turn makes: what it may hold up everything else by.
const CHECKPOINT_BYTES_MAX: usize = 64 << 10;

/// How the disk keeps up.
#[derive(Default)]
pub(super) struct LogWatch {
    /// When a record last became durable, or none waited.
    moved_at: Micros,
    /// The disk has taken nothing for too long, and that was said.
    stalled: bool,
    /// How often that was so.
    stalls: u64,
    /// Readers of links wait for the log.
    paused: bool,
    /// How often one did.
    pauses: u64,
}

impl<P: Protocol> Core<P> {
    /// How many bytes more may wait for the disk.
    pub(super) fn log_room(&self) -> usize {
        self.node.tuning.log.pending_bytes_max.saturating_sub(self.log.pending_bytes())
    }

    /// Whether the link that has just been read is read no further until the log has caught up.
    pub(super) fn pauses_link(&mut self, peer: NodeIndex) -> bool {
        let full = self.log_room() == 0;
        if full {
            self.links.pause(peer);
            self.watch.pauses += 1;
            self.watch.paused = true;
        }
        full
    }

    /// The log has got further: readers that wait for it go on once half of what made them wait is gone.
    pub(super) fn log_moved(&mut self, now: Micros) {
        self.watch.moved_at = now;
        if self.watch.paused && self.log.pending_bytes() <= self.node.tuning.log.pending_bytes_max / 2 {
            self.watch.paused = false;
            self.links.resume();
        }
    }

    /// Says so, once, when the disk takes nothing for as long as it takes to suspect a peer, and when it goes on.
    pub(super) fn watch_log(&mut self, now: Micros) {
        let waits = self.durable < self.appended;
        let (node, shard, bytes) = (self.node.member().id, self.shard.0, self.log.pending_bytes());
        let us = now.since(self.watch.moved_at);
        if !waits {
            self.watch.moved_at = now;
        }
        if waits && us > self.node.tuning.timers.suspect_silent_us && !self.watch.stalled {
            self.watch.stalled = true;
            self.watch.stalls += 1;
            tracing::warn!(
                %node, shard, bytes,
                "the disk has taken nothing for {} ms: this node acknowledges nothing until it does, and says nothing to peers \
                 that could not rely on it; look into the kernel's log",
                us / 1000
            );
        } else if self.watch.stalled && (!waits || us <= self.node.tuning.timers.suspect_silent_us) {
            self.watch.stalled = false;
            tracing::info!(%node, shard, bytes, "the disk goes on");
        }
    }

    /// Gives the log a part of a checkpoint, if it takes one: everything handed out so far has been appended.
    pub(super) fn write_checkpoint(&mut self, now: Micros) {
        let room = self.log.checkpoint_room();
        if room == 0 {
            return;
        }
        let Some(cursor) = self.checkpoint else {
            let mut frames = Vec::new();
            self.protocol.begin_checkpoint(&mut frames);
            self.log.checkpoint(CheckpointPart::Begin(self.appended, frames));
            self.checkpoint = Some(0);
            return;
        };
        let (frame, next) = self.protocol.checkpoint_objects(cursor, room.min(CHECKPOINT_BYTES_MAX));
        if !frame.is_empty() {
            self.log.checkpoint(CheckpointPart::Objects(frame));
        }
        if next.is_none() {
            // The protocol may have something to say that makes the end of it.
            self.settle(now);
            self.log.checkpoint(CheckpointPart::End(self.appended));
        }
        self.checkpoint = next;
    }

    /// Adds what is counted of the log.
    pub(super) fn count_log(&self, stats: &mut BTreeMap<&'static str, u64>) {
        stats.insert("log_pending_bytes", self.log.pending_bytes() as u64);
        stats.insert("log_stalled", u64::from(self.watch.stalled));
        stats.insert("log_stalls", self.watch.stalls);
        stats.insert("log_link_pauses", self.watch.pauses);
    }
}
