//! Objects of an owner that is silent for long are taken over in the background (`protocol.md` §6), so that not every one of
//! them costs the next request for it a phase 1. A request does not wait for that: it makes its node take the object at once.

use super::{Mutant, ObjectIndex, WPaxos};
use crate::{
    protocol::Micros,
    topology::{NodeIndex, NodeSet},
};

/// How many objects a check looks at, for all silent owners together.
const SCAN: u32 = 16_384;
/// How many candidacies there may be: so many objects go into one round of frames.
const BATCH: usize = 512;

/// Where the scan for silent owners' objects is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Takeover {
    /// Owners whose objects are being looked for.
    silent: NodeSet,
    cursor: u32,
    /// Objects left to look at until all have been, since an owner was added, or it was time to look again: live nodes need
    /// not agree who is.
    left: u32,
    again_at: Micros,
}

impl WPaxos {
    /// Takes some objects of silent owners into phase 1, those that are for this node.
    pub(super) fn check_takeover(&mut self, now: Micros) {
        // Peers that do not hear a node whose disk has stopped are not the ones who are silent.
        if !self.may_vote() || self.is_log_stalled(now) || self.config.has(Mutant::NeverSuspected) {
            return;
        }
        self.note_silent_owners(now);
        if self.takeover.silent == NodeSet::EMPTY || !self.reaches_quorums(now) {
            return;
        }
        if self.takeover.left == 0 && now >= self.takeover.again_at {
            self.takeover.left = self.objects.len() as u32;
            self.takeover.again_at = now.plus(self.config.timers.takeover_delay_us.saturating_mul(10));
        }
        let heirs: Vec<_> = (0..self.links.len()).map(|node| self.heirs_of(now, NodeIndex(node as u8))).collect();
        for _ in 0..SCAN.min(self.takeover.left) {
            if self.prepare_timers.len() >= BATCH {
                return;
            }
            let count = self.objects.len() as u32;
            if count == 0 {
                return;
            }
            let object = ObjectIndex(self.takeover.cursor % count);
            self.takeover.cursor = (object.0 + 1) % count;
            self.takeover.left -= 1;
            let Some(owner) = self.owner_of(object).filter(|owner| self.takeover.silent.contains(*owner)) else {
                continue;
            };
            let heirs = &heirs[owner.index()];
            let heir = heirs.get((self.objects.token(object) % heirs.len().max(1) as u64) as usize);
            if heir == Some(&self.config.me) && self.objects[object].is_idle() {
                self.counters.taken_from_silent += 1;
                self.start_phase1(now, object, None);
            }
        }
    }

    fn is_reliable(&self, now: Micros, node: NodeIndex) -> bool {
        node == self.config.me || self.links[node.index()].is_reliable(now, &self.config.timers)
    }

    /// Whether this node could do with an object what its owner did: one that nobody hears, or that hears nobody, takes every
    /// other for silent.
    fn reaches_quorums(&self, now: Micros) -> bool {
        let nodes = (0..self.links.len()).map(|node| NodeIndex(node as u8));
        let reached: NodeSet = nodes.filter(|node| self.is_reliable(now, *node)).collect();
        self.config.is_phase1_quorum(reached) && self.config.is_phase2_quorum(reached)
    }

    fn note_silent_owners(&mut self, now: Micros) {
        let patience = self.config.timers.takeover_delay_us;
        for node in (0..self.links.len()).map(|node| NodeIndex(node as u8)) {
            let is_silent =
                self.is_suspected(now, node) && now.since(self.links[node.index()].silent_since()) > patience;
            if !is_silent {
                self.takeover.silent.remove(node);
            } else if self.takeover.silent.insert(node) {
                self.takeover.left = self.objects.len() as u32;
            }
        }
    }

    /// The live nodes of an owner's zone, or of the next zone that has any.
    fn heirs_of(&self, now: Micros, owner: NodeIndex) -> Vec<NodeIndex> {
        let (zones, first) = (self.config.zones, self.config.zone_of[owner.index()].index());
        let live = |zone: usize| {
            let nodes = (0..self.links.len()).map(|node| NodeIndex(node as u8));
            let of_zone = nodes.filter(move |node| self.config.zone_of[node.index()].index() == zone);
            of_zone.filter(|node| self.is_reliable(now, *node)).collect::<Vec<_>>()
        };
        (0..zones).map(|step| live((first + step) % zones)).find(|heirs| !heirs.is_empty()).unwrap_or_default()
    }
}
