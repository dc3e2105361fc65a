//! Requests that reached a node that does not own their object (`protocol.md` §6).

use super::{
    Ballot, ObjectIndex, RequestKey, WPaxos,
    message::{ForwardHead, ForwardReplyHead, Reader},
    requests::{Answer, Origin, Stage, is_round_read},
};
use crate::{
    command::{Status, VALUE_BYTES_MAX},
    mutant::Mutant,
    protocol::{Micros, Outputs, ReadMode, RecordId},
    topology::{NodeIndex, ZoneIndex},
    wire::{Frame, FrameError, Kind},
};

impl WPaxos {
    /// Passes a request to the owner. It stays in the table, with its command, until the answer comes.
    pub(super) fn forward(&mut self, key: RequestKey, to: NodeIndex) {
        let waiting = self.requests.get_mut(key).expect("a request that is forwarded waits");
        let link = &mut self.links[to.index()];
        waiting.stage = Stage::Forwarded(to, link.connection());
        if !link.is_up() {
            // Sent when the link comes up, or when the owner is taken for dead.
            return;
        }
        waiting.maybe_done = true;
        let head = ForwardHead {
            id: key.to_wire().into(),
            command_bytes: (waiting.command.len() as u32).into(),
            zone: waiting.zone.0,
            read: waiting.read as u8,
            reserved: 0.into(),
        };
        link.put(Kind::Forward, RecordId::NONE, &head, &[&waiting.command]);
        self.counters.forwarded += 1;
    }

    /// Requests of another node's clients. This node answers as owner, becomes it, or names the owner that it knows: it
    /// does not pass them on.
    pub(super) fn on_forwards(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let zones = self.config.zones;
        let rows = Reader::new(frame).rows(|reader| {
            let head: ForwardHead = *reader.take()?;
            reader.zero(head.reserved)?;
            let read = ReadMode::from_wire(head.read).ok_or_else(|| reader.wrong("it has an unknown read mode"))?;
            let command = reader.entry(head.command_bytes)?;
            if !command.is_request() {
                return Err(reader.wrong("it holds a command that no client may ask for"));
            }
            if head.zone as usize >= zones {
                return Err(reader.wrong("it comes from an unknown zone"));
            }
            Ok((head, read, command))
        })?;
        for (head, read, command) in rows {
            let object = self.objects.find(command.key());
            let connection = self.links[from.index()].connection();
            let origin = Origin::Node { node: from, connection, id: head.id.get() };
            let is_logged = !is_round_read(command.op().is_write(), read);
            if self.is_overloaded(is_logged) || !self.is_admitted() || self.stopping {
                self.counters.overloaded += 1;
                self.send_answer(origin, object, Answer::refusal(Status::Overloaded), out);
                continue;
            }
            let makes = self.makes_object(command, read);
            let object = object.or_else(|| makes.then(|| self.object_of(command.key())));
            if let Some(object) = object.filter(|object| self.is_elsewhere(now, *object)) {
                self.redirect(from, object, head.id.get());
            } else {
                self.admit(now, origin, ZoneIndex(head.zone), read, command, &frame.bytes);
            }
        }
        Ok(())
    }

    fn is_elsewhere(&self, now: Micros, object: ObjectIndex) -> bool {
        let owner = self.owner_of(object);
        self.objects[object].is_idle()
            && owner.is_some_and(|owner| owner != self.config.me && !self.is_suspected(now, owner))
    }

    fn redirect(&mut self, to: NodeIndex, object: ObjectIndex, id: u64) {
        let head = ForwardReplyHead {
            id: id.into(),
            version: 0.into(),
            slot: 0.into(),
            ballot: self.objects[object].promised.number.into(),
            value_bytes: 0.into(),
            status: Status::Ok as u8,
            redirect: 1,
            repeated: 0,
            reserved: 0,
        };
        self.links[to.index()].put(Kind::ForwardReply, RecordId::NONE, &head, &[]);
        self.counters.redirected += 1;
    }

    /// Answers to requests that this node forwarded.
    pub(super) fn on_forward_replies(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let rows = Reader::new(frame).rows(|reader| {
            let head: &ForwardReplyHead = reader.take()?;
            reader.zero(head.reserved)?;
            let value = reader.bytes(head.value_bytes.get() as usize)?;
            if value.len() > VALUE_BYTES_MAX {
                return Err(reader.wrong("its value is too long"));
            }
            let status = Status::from_wire(head.status).ok_or_else(|| reader.wrong("it has an unknown status"))?;
            reader.flag(head.redirect)?;
            reader.flag(head.repeated)?;
            Ok((head, value, status))
        })?;
        for (head, value, status) in rows {
            let mut key = RequestKey::from_wire(head.id.get());
            if self.config.has(Mutant::ForwardReplyByPlace) {
                key = self.requests.successor(key);
            }
            let Some(waiting) = self.requests.get_mut(key) else { continue };
            if !matches!(waiting.stage, Stage::Forwarded(node, _) if node == from) {
                continue;
            }
            if head.redirect == 1 {
                self.follow_redirect(now, key, head.ballot.get());
            } else {
                self.pass_answer(key, head, status, value, out);
            }
        }
        Ok(())
    }

    /// Somebody else owns the object at a ballot that this node may not have seen.
    fn follow_redirect(&mut self, now: Micros, key: RequestKey, ballot: u64) {
        let waiting = self.requests.get_mut(key).expect("just seen");
        let object = waiting.object.expect("what is forwarded is an object here");
        let ballot = Ballot { version: self.config.version, number: ballot };
        let is_member = ballot.owner().is_some_and(|owner| self.config.nodes.binary_search(&owner).is_ok());
        if is_member && ballot.round() < super::message::ROUND_MAX {
            self.hear(now, object, ballot);
        }
        self.ready_requests.push_back(key);
    }
}
