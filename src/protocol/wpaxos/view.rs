//! What people ask a node about its objects, beside what clients ask: earlier values, owners; and taking an object by hand.

use super::{ObjectIndex, Role, WPaxos};
use crate::{
    protocol::{Micros, Ownership, Taking},
    store::Version,
};

/// Bytes of values in one answer about an object's history: the newest ones.
const HISTORY_ANSWER_BYTES: usize = 4 << 20;

impl WPaxos {
    /// Notes in the history what an object is now, if there is one.
    pub(super) fn note_version(&mut self, object: ObjectIndex) {
        if let Some(history) = &mut self.history {
            let state = &self.objects[object].state;
            history.note(object.0, state.version, state.value.as_deref());
        }
    }

    pub(super) fn versions_of(&self, key: &[u8]) -> Option<Vec<Version>> {
        let history = self.history.as_ref()?;
        let object = self.objects.find(key);
        Some(object.map_or_else(Vec::new, |object| history.newest_of(object.0, HISTORY_ANSWER_BYTES)))
    }

    pub(super) fn ownership_of(&self, object: ObjectIndex) -> Ownership {
        let known = &self.objects[object];
        Ownership {
            key: known.key.to_vec(),
            owner: known.promised.owner(),
            ballot: known.promised.number,
            leads: known.leading().is_some(),
            applied: known.applied,
            steals: known.promised.round().saturating_sub(1),
        }
    }

    /// Objects are never forgotten and keep their places, so that the next page begins behind the last key of this one.
    pub(super) fn ownerships_after(&self, after: Option<&[u8]>, limit: usize) -> Vec<Ownership> {
        let start = match after.map(|key| self.objects.find(key)) {
            None => 0,
            Some(Some(object)) => object.0 as usize + 1,
            Some(None) => return Vec::new(),
        };
        let end = self.objects.len().min(start.saturating_add(limit));
        (start..end).map(|place| self.ownership_of(ObjectIndex(place as u32))).collect()
    }

    /// Begins phase 1 for an object that this node neither leads nor prepares.
    pub(super) fn take_object(&mut self, now: Micros, key: &[u8]) -> Taking {
        if self.stopping || !self.is_admitted() {
            return Taking::Refused("this node is stopping, or no majority has let it in yet");
        }
        let object = self.object_of(key);
        match self.objects[object].role {
            Role::Leading(_) => Taking::Leads,
            Role::Preparing(_) => Taking::UnderWay,
            Role::Idle => {
                self.start_phase1(now, object, None);
                if self.objects[object].is_idle() {
                    return Taking::Refused("the object's ballots have reached their highest round");
                }
                Taking::UnderWay
            }
        }
    }
}
