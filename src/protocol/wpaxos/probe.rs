//! Reads of objects that this node has never heard of (`protocol.md` §9): they make no object here and none elsewhere.
//!
//! The members of a Q1 say that they have not heard of the object either. Every Q1 meets every Q2, and what is committed was
//! accepted by a Q2 whose members do not forget it: so nothing was committed when the read came in, and "not found" is what it
//! finds. No promise is asked for, since nothing is proposed. If a member knows the object, the read goes the usual way.
//! The argument is in `docs/decisions/0029-reads-of-absent-keys.md`.

use std::collections::VecDeque;

use bytes::Bytes;
use zerocopy::IntoBytes;

use super::{
    Ballot, RequestKey, WPaxos,
    message::{Objection, ProbeRow, Reader, RoundHead, ballot_from},
    requests::{Answer, Stage},
};
use crate::{
    command::{Command, Status},
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId, Send},
    topology::{NodeIndex, NodeSet},
    wire::{self, Frame, FrameError, Kind, SPLIT_BYTES},
};

/// A probe that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Probe {
    number: u64,
    /// Its reads, in the order of its rows; [`RequestKey::NONE`] for those that have gone the usual way.
    reads: Vec<RequestKey>,
    answered: NodeSet,
    asked_at: Micros,
    frame: Bytes,
}

/// All probes of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Probes {
    /// Reads since the last probe was sent, and since when there are any.
    waiting: Vec<RequestKey>,
    gathered_since: Micros,
    under_way: VecDeque<Probe>,
    last: u64,
}

impl Probes {
    /// Ends all of them without an answer; the reads that waited for them.
    pub(super) fn abandon(&mut self) -> Vec<RequestKey> {
        let asked = self.under_way.drain(..).flat_map(|probe| probe.reads);
        asked.chain(self.waiting.drain(..)).filter(|key| *key != RequestKey::NONE).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// When the reads that wait are to be asked for: at once if no probe is under way, or else after a while.
    pub(super) fn ask_at(&self, linger_us: u64) -> Option<Micros> {
        let linger_us = if self.under_way.is_empty() { 0 } else { linger_us };
        (!self.waiting.is_empty()).then(|| self.gathered_since.plus(linger_us))
    }

    fn place_of(&self, number: u64) -> Option<usize> {
        self.under_way.iter().position(|probe| probe.number == number)
    }
}

impl WPaxos {
    /// A read of an object that this node has not heard of joins the next probe.
    pub(super) fn enrol_probe(&mut self, now: Micros, key: RequestKey) {
        if self.probes.waiting.is_empty() {
            self.probes.gathered_since = now;
        }
        self.probes.waiting.push(key);
        self.requests.get_mut(key).expect("it waits").stage = Stage::Probing;
    }

    /// Sends the probes that this turn gathered, each of a bounded size.
    pub(super) fn send_probes(&mut self, now: Micros, out: &mut Outputs) {
        if self.probes.ask_at(self.config.batch.linger_us).is_none_or(|at| at > now) {
            return;
        }
        let waiting = std::mem::take(&mut self.probes.waiting);
        let mut body = std::mem::take(&mut self.scratch_bytes);
        let mut reads = Vec::new();
        for (place, key) in waiting.iter().enumerate() {
            if let Some(waiting) = self.requests.get_mut(*key) {
                if reads.is_empty() {
                    body.extend_from_slice(RoundHead { round: (self.probes.last + 1).into() }.as_bytes());
                }
                let name = Command::view(&waiting.command).key();
                let row = ProbeRow { key_bytes: (name.len() as u16).into(), reserved: [0; 6] };
                body.extend_from_slice(row.as_bytes());
                body.extend_from_slice(name);
                reads.push(*key);
            }
            let is_last = place + 1 == waiting.len();
            if !reads.is_empty() && (is_last || body.len() >= SPLIT_BYTES) {
                self.send_probe(now, &body, std::mem::take(&mut reads), out);
                body.clear();
            }
        }
        self.scratch_bytes = body;
    }

    fn send_probe(&mut self, now: Micros, body: &[u8], reads: Vec<RequestKey>, out: &mut Outputs) {
        let frame = wire::frame(Kind::Probe, self.config.shard, self.config.version, body);
        for (node, link) in self.links.iter().enumerate() {
            if link.is_up() {
                out.sends.push(Send { to: NodeIndex(node as u8), frame: frame.clone(), after: RecordId::NONE });
            }
        }
        self.counters.probes += 1;
        self.probes.last += 1;
        let number = self.probes.last;
        let answered = if self.may_vote() { [self.config.me].into_iter().collect() } else { NodeSet::EMPTY };
        self.probes.under_way.push_back(Probe { number, reads, answered, asked_at: now, frame });
        self.finish_probe(number, out);
    }

    /// A node asks for objects that it has not heard of: says which of them this node has, and what it has promised for
    /// them. A node that has no vote may not know what it should, and keeps silent.
    pub(super) fn on_probe(&mut self, from: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &RoundHead = reader.take()?;
        if !self.may_vote() && !self.config.has(Mutant::LearnerProbed) {
            return Ok(());
        }
        let mut body = std::mem::take(&mut self.scratch_bytes);
        body.extend_from_slice(head.as_bytes());
        let answered = self.put_known(&mut reader, &mut body);
        if answered.is_ok() {
            self.links[from.index()].send(Kind::ProbeReply, &body, RecordId::NONE, out);
        }
        body.clear();
        self.scratch_bytes = body;
        answered
    }

    /// A row for each object of a probe that this node has heard of; its ballot is 0 if it is of an earlier version.
    fn put_known(&self, reader: &mut Reader<'_>, body: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut index = 0u32;
        while !reader.is_empty() {
            let row: &ProbeRow = reader.take()?;
            reader.zero(row.reserved)?;
            let key = reader.key(row.key_bytes)?;
            if let Some(object) = self.objects.find(key) {
                let promised = self.objects[object].promised;
                let number = if promised.version == self.config.version { promised.number } else { 0 };
                let known = Objection { ballot: number.into(), index: index.into(), reserved: 0.into() };
                body.extend_from_slice(known.as_bytes());
            }
            index += 1;
        }
        Ok(())
    }

    /// An answer to a probe: reads of what it knows go the usual way, of the others it is one that has not heard.
    pub(super) fn on_probe_reply(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &RoundHead = reader.take()?;
        let number = head.round.get();
        let Some(place) = self.probes.place_of(number) else { return Ok(()) };
        while !reader.is_empty() {
            let known: &Objection = reader.take()?;
            reader.zero(known.reserved)?;
            let ballot = match known.ballot.get() {
                0 => Ballot::ZERO,
                _ => ballot_from(&reader, frame.config_version, known.ballot)?,
            };
            let Some(read) = self.probes.under_way[place].reads.get_mut(known.index.get() as usize) else {
                return Err(reader.wrong("it knows what was not asked"));
            };
            let read = std::mem::replace(read, RequestKey::NONE);
            self.locate(now, read, ballot);
        }
        self.probes.under_way[place].answered.insert(from);
        self.finish_probe(number, out);
        Ok(())
    }

    /// Another node knows the object of a read: now this one does too.
    fn locate(&mut self, now: Micros, key: RequestKey, ballot: Ballot) {
        let Some(waiting) = self.requests.get_mut(key) else { return };
        let command = waiting.command.clone();
        let object = self.object_of(Command::view(&command).key());
        self.requests.get_mut(key).expect("just seen").object = Some(object);
        self.hear(now, object, ballot);
        self.ready_requests.push_back(key);
    }

    /// With a Q1: there is nothing to be read, unless this node has heard of it meanwhile.
    fn finish_probe(&mut self, number: u64, out: &mut Outputs) {
        let place = self.probes.place_of(number).expect("it is under way");
        let answered = self.probes.under_way[place].answered;
        let is_over = self.config.is_probed(answered) || self.config.has(Mutant::AbsentUnasked);
        if !is_over {
            return;
        }
        let probe = self.probes.under_way.remove(place).expect("just found");
        for key in probe.reads {
            let Some(waiting) = self.requests.get_mut(key) else { continue };
            let object = self.objects.find(Command::view(&waiting.command).key());
            if object.is_some() {
                waiting.object = object;
                self.ready_requests.push_back(key);
                continue;
            }
            self.counters.absent += 1;
            self.answer(key, Answer::refusal(Status::NotFound), out);
        }
    }

    /// Asks those again that have not answered, where there is room. A probe whose reads have all ended is of no use.
    pub(super) fn check_probes(&mut self, now: Micros, out: &mut Outputs) {
        for probe in &mut self.probes.under_way {
            if now.since(probe.asked_at) < self.config.timers.confirm_retry_us {
                continue;
            }
            probe.asked_at = now;
            for (node, link) in self.links.iter().enumerate() {
                let to = NodeIndex(node as u8);
                if link.is_up() && out.room[node] > 0 && !probe.answered.contains(to) {
                    out.sends.push(Send { to, frame: probe.frame.clone(), after: RecordId::NONE });
                }
            }
        }
        let requests = &mut self.requests;
        self.probes.under_way.retain(|probe| probe.reads.iter().any(|key| requests.get_mut(*key).is_some()));
    }
}
