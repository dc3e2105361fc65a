//! Bringing nodes up to date by object state: gaps, and streams that no longer reach back (`protocol.md` §5).

use bytes::BytesMut;
use zerocopy::IntoBytes;

use super::{
    ObjectIndex, WPaxos,
    message::{Reader, SkipBody, StateEntryHead, promise_from, put_state},
    object::Object,
};
use crate::{
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    store::{ObjectState, Recent},
    topology::NodeIndex,
    wire::{self, Frame, FrameError, Kind},
};

/// How many objects a tick looks at for each receiver that is behind.
const SCAN_PER_TICK: usize = 4096;
/// How many bytes of link queue a catch-up leaves to everything else.
const ROOM_LEFT: usize = 1 << 20;

impl WPaxos {
    /// Puts a state in place of what is executed here. Never an older one, and `promised` stays.
    pub(super) fn install(&mut self, object: ObjectIndex, applied: u64, state: ObjectState) {
        let known = &mut self.objects[object];
        let older = self.config.has(Mutant::OlderStateInstalled);
        assert!(applied > known.applied || older, "an older state is never installed");
        assert!(known.leading().is_none(), "an owner executes, it does not install");
        known.state = state;
        known.applied = applied;
        if self.config.has(Mutant::InstallForgetsSessions) {
            known.state.recent = Recent::default();
        }
        while known.tail.first().is_some_and(|first| first.slot <= applied) {
            known.tail.pop_first();
        }
        self.note_version(object);
        self.counters.installed += 1;
        self.executable.push(object);
    }

    /// Decided slots behind a missing one: if what is missing does not come by itself, its state is asked for.
    pub(super) fn note_gap(&mut self, now: Micros, object: ObjectIndex) {
        if self.config.has(Mutant::GapNeverAsked) {
            return;
        }
        let rare = self.objects[object].rare();
        if !rare.gap_noted {
            rare.gap_noted = true;
            self.gaps.push_back((now.plus(self.config.timers.gap_delay_us), object));
        }
    }

    pub(super) fn check_gaps(&mut self, now: Micros) {
        while let Some(&(due, object)) = self.gaps.front() {
            if due > now {
                break;
            }
            self.gaps.pop_front();
            self.objects[object].rare().gap_noted = false;
            if self.has_gap(object) {
                self.ask_state(now, object);
                self.note_gap(now, object);
            }
        }
    }

    fn has_gap(&self, object: ObjectIndex) -> bool {
        self.objects[object].tail.iter().any(|entry| entry.decided)
    }

    /// Asks the owner, or everybody if the owner does not answer.
    pub(super) fn ask_state(&mut self, now: Micros, object: ObjectIndex) {
        let owner = self.owner_of(object).filter(|owner| *owner != self.config.me && !self.is_suspected(now, *owner));
        let known = &self.objects[object];
        let head = StateEntryHead {
            applied: known.applied.into(),
            promised: known.promised.number.into(),
            promised_version: known.promised.version.into(),
            state_bytes: 0.into(),
            key_bytes: (known.key.len() as u16).into(),
            reserved: 0.into(),
        };
        self.counters.states_asked += 1;
        let asked = |node: usize| owner.is_none_or(|owner| owner.index() == node);
        for (node, link) in self.links.iter_mut().enumerate() {
            if asked(node) {
                link.put(Kind::StateRequest, RecordId::NONE, &head, &[&known.key]);
            }
        }
    }

    /// Somebody lacks slots: sends the state if this node has executed more.
    pub(super) fn on_state_requests(&mut self, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: &StateEntryHead = reader.take()?;
            reader.zero((head.state_bytes, head.reserved).1)?;
            let key = reader.key(head.key_bytes)?;
            if let Some(object) = self.objects.find(key)
                && self.objects[object].applied > head.applied.get()
            {
                self.send_state(from, object);
            }
        }
        Ok(())
    }

    fn send_state(&mut self, to: NodeIndex, object: ObjectIndex) {
        let known = &self.objects[object];
        self.counters.states_sent += 1;
        self.links[to.index()].put_with(Kind::State, RecordId::NONE, |buffer| put_state_entry(buffer, known));
    }

    /// What this node installed in a phase 1: the claim that it has got so far in a stream may come to stand on it.
    pub(super) fn log_installed(&mut self, object: ObjectIndex) {
        let mut body = BytesMut::new();
        put_state_entry(&mut body, &self.objects[object]);
        self.log_own(wire::frame(Kind::State, self.config.shard, self.config.version, &body));
    }

    /// States of objects: installed where they are ahead. A node that leads an object of which somebody has executed more
    /// has been deposed without noticing.
    pub(super) fn on_states(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let rows = Reader::new(frame).rows(|reader| {
            let head: &StateEntryHead = reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            let applied = reader.number(head.applied)?;
            let state = reader.state(head.state_bytes, applied)?;
            let promised = promise_from(reader, head.promised_version, head.promised)?;
            if promised.version > frame.config_version {
                return Err(reader.wrong("its promise belongs to a later configuration version"));
            }
            Ok((key, applied, promised, state))
        })?;
        self.log_received(from, frame);
        for (key, applied, promised, state) in rows {
            let object = self.object_of(key);
            self.raise(now, object, promised);
            if self.config.has(Mutant::InstallLowersPromise) && self.objects[object].is_idle() {
                self.objects[object].promised = promised;
            }
            if applied > self.objects[object].applied || self.config.has(Mutant::OlderStateInstalled) {
                self.depose(now, object);
                self.install(object, applied, state);
            }
        }
        Ok(())
    }

    /// Sends states to receivers that the stream no longer reaches back for, some objects a tick, as far as their links have
    /// room.
    pub(super) fn pump_catch_up(&mut self, out: &mut Outputs) {
        for node in 0..self.links.len() {
            let Some(mut catch_up) = self.links[node].catch_up else { continue };
            let to = NodeIndex(node as u8);
            let mut room = out.room[node].saturating_sub(ROOM_LEFT.min(self.config.flow.link_queue_bytes_max / 2));
            for _ in 0..SCAN_PER_TICK {
                if catch_up.cursor as usize >= self.objects.len() || room == 0 {
                    break;
                }
                let object = ObjectIndex(catch_up.cursor);
                catch_up.cursor += 1;
                let known = &self.objects[object];
                if known.own_seq >= catch_up.from_seq && known.applied > 0 {
                    let bytes = known.key.len() + known.state.value.as_ref().map_or(0, |value| value.len()) + 256;
                    room = room.saturating_sub(bytes);
                    self.send_state(to, object);
                }
            }
            let done = catch_up.cursor as usize >= self.objects.len();
            self.links[node].catch_up = (!done).then_some(catch_up);
            if done {
                self.links[node].flush(out);
                let body = SkipBody { stream: self.stream.id, to_seq: catch_up.from_seq.into() };
                self.links[node].send(Kind::CatchUpDone, body.as_bytes(), RecordId(0), out);
            }
        }
    }

    /// Everything that a Skip left out has come as state.
    pub(super) fn on_catch_up_done(&mut self, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let body: &SkipBody = reader.take()?;
        let inbound = &mut self.inbound[from.index()];
        if inbound.id == Some(body.stream) && inbound.behind_from >= body.to_seq.get() {
            inbound.behind_from = 0;
            // Should the owner die, nobody could tell this node again after a restart, nor it others.
            if !self.config.has(Mutant::CatchUpUnlogged) {
                self.log_received(from, frame);
            }
        }
        Ok(())
    }
}

fn put_state_entry(buffer: &mut BytesMut, known: &Object) {
    let start = buffer.len();
    let mut head = StateEntryHead {
        applied: known.applied.into(),
        promised: known.promised.number.into(),
        promised_version: known.promised.version.into(),
        state_bytes: 0.into(),
        key_bytes: (known.key.len() as u16).into(),
        reserved: 0.into(),
    };
    buffer.extend_from_slice(head.as_bytes());
    buffer.extend_from_slice(&known.key);
    head.state_bytes = (put_state(buffer, &known.state) as u32).into();
    buffer[start..start + size_of::<StateEntryHead>()].copy_from_slice(head.as_bytes());
}
