//! Reads that are no commands: the owner answers from its own state once a Q2 has confirmed, since the read came in, that it
//! promised nobody a higher ballot (`protocol.md` §9). One round serves all reads that wait at the end of a turn.

use std::collections::VecDeque;

use bytes::Bytes;
use zerocopy::IntoBytes;

use super::{
    Ballot, ObjectIndex, RequestKey, Role, WPaxos,
    message::{KeyBallotHead, Objection, Reader, RoundHead, ballot_from},
    requests::{Answer, Stage},
};
use crate::{
    command::Status,
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    topology::{NodeIndex, NodeSet},
    wire::{self, Frame, FrameError, Kind, SPLIT_BYTES},
};

/// A round that has been asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    number: u64,
    objects: Vec<(ObjectIndex, Ballot)>,
    reads: Vec<(RequestKey, ObjectIndex, Ballot)>,
    confirmed: NodeSet,
    asked_at: Micros,
    frame: Bytes,
}

/// A round that has as many objects as one frame holds, and waits to be asked with the others of its turn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Gathered {
    number: u64,
    objects: Vec<(ObjectIndex, Ballot)>,
    reads: Vec<(RequestKey, ObjectIndex, Ballot)>,
}

/// All rounds of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Reads {
    /// Reads of the round that is being gathered.
    waiting: Vec<(RequestKey, ObjectIndex, Ballot)>,
    /// Their objects, each once.
    objects: Vec<(ObjectIndex, Ballot)>,
    /// Bytes of the frame that will name these.
    bytes: usize,
    full: Vec<Gathered>,
    rounds: VecDeque<Round>,
    /// The number of the round that is being gathered, and since when.
    next_round: u64,
    gathered_since: Micros,
}

impl Reads {
    pub(super) fn new() -> Self {
        Self { next_round: 1, ..Self::default() }
    }

    /// Ends all rounds without an answer; the reads that waited for them.
    pub(super) fn abandon(&mut self) -> Vec<RequestKey> {
        let rounds = self.rounds.drain(..).flat_map(|round| round.reads);
        let full = self.full.drain(..).flat_map(|gathered| gathered.reads);
        let reads = rounds.chain(full).chain(self.waiting.drain(..)).map(|(key, _, _)| key).collect();
        self.objects.clear();
        self.bytes = 0;
        reads
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rounds.is_empty() && self.is_nothing_gathered()
    }

    fn is_nothing_gathered(&self) -> bool {
        self.waiting.is_empty() && self.full.is_empty()
    }

    /// Ends the round that is being gathered; the next read begins another.
    fn close(&mut self) {
        let (objects, reads) = (std::mem::take(&mut self.objects), std::mem::take(&mut self.waiting));
        self.full.push(Gathered { number: self.next_round, objects, reads });
        self.next_round += 1;
        self.bytes = 0;
    }

    /// When the round that is being gathered is to be asked: at once if none is under way, or else after a while.
    pub(super) fn ask_at(&self, linger_us: u64) -> Option<Micros> {
        let linger_us = if self.rounds.is_empty() { 0 } else { linger_us };
        (!self.is_nothing_gathered()).then(|| self.gathered_since.plus(linger_us))
    }
}

impl WPaxos {
    /// A read at the owner: joins the round that is being gathered, or waits until what was taken over is executed.
    pub(super) fn enrol_read(&mut self, now: Micros, key: RequestKey, object: ObjectIndex) {
        let round = self.reads.next_round;
        let known = &mut self.objects[object];
        let Role::Leading(leading) = &mut known.role else { unreachable!("only the owner serves reads") };
        if known.applied < leading.settled && !self.config.has(Mutant::ReadBeforeSettled) {
            self.requests.get_mut(key).expect("it waits").stage = Stage::Waiting;
            known.rare().parked.push_back(key);
            return;
        }
        if self.config.has(Mutant::ReadJoinsAskedRound)
            && let Some(asked) = self.reads.rounds.back_mut()
        {
            asked.reads.push((key, object, known.promised));
            self.requests.get_mut(key).expect("it waits").stage = Stage::Reading;
            return;
        }
        if leading.round < round {
            leading.round = round;
            self.reads.objects.push((object, known.promised));
            self.reads.bytes += size_of::<KeyBallotHead>() + known.key.len();
        }
        if self.reads.is_nothing_gathered() {
            self.reads.gathered_since = now;
        }
        self.reads.waiting.push((key, object, known.promised));
        if self.reads.bytes >= SPLIT_BYTES {
            self.reads.close();
        }
        self.requests.get_mut(key).expect("it waits").stage = Stage::Reading;
    }

    /// Requests that waited for the taken-over tail, once it is executed, and as many as there are slots for.
    pub(super) fn release_parked(&mut self, object: ObjectIndex) {
        let known = &mut self.objects[object];
        let settled = known.leading().is_some_and(|leading| leading.settled <= known.applied);
        let mut free = known.free_slots(&self.config);
        let Some(rare) = known.rare.as_mut().filter(|_| settled) else { return };
        while let Some(key) = rare.parked.front() {
            let takes_slot = self.requests.get_mut(*key).is_some_and(|waiting| waiting.takes_slot());
            if takes_slot && free == 0 {
                break;
            }
            free -= u64::from(takes_slot);
            self.ready_requests.extend(rare.parked.pop_front());
        }
    }

    /// Asks the rounds that this turn gathered: one, unless its objects need more than a frame.
    pub(super) fn ask_round(&mut self, now: Micros, out: &mut Outputs) {
        if self.reads.ask_at(self.config.batch.linger_us).is_none_or(|at| at > now) {
            return;
        }
        if !self.reads.waiting.is_empty() {
            self.reads.close();
        }
        for gathered in std::mem::take(&mut self.reads.full) {
            self.ask(now, gathered, out);
        }
    }

    fn ask(&mut self, now: Micros, gathered: Gathered, out: &mut Outputs) {
        let Gathered { number, objects, reads } = gathered;
        let mut body = std::mem::take(&mut self.scratch_bytes);
        body.extend_from_slice(RoundHead { round: number.into() }.as_bytes());
        for (object, ballot) in &objects {
            let key = &self.objects[*object].key;
            body.extend_from_slice(key_ballot_head(*ballot, key).as_bytes());
            body.extend_from_slice(key);
        }
        let frame = wire::frame(Kind::Confirm, self.config.shard, self.config.version, &body);
        body.clear();
        self.scratch_bytes = body;
        self.counters.read_rounds += 1;
        self.reads.rounds.push_back(Round {
            number,
            objects,
            reads,
            confirmed: [self.config.me].into_iter().collect(),
            asked_at: now,
            frame: frame.clone(),
        });
        for node in self.eager.iter().filter(|node| *node != self.config.me) {
            if self.links[node.index()].is_up() {
                out.sends.push(crate::protocol::Send { to: node, frame: frame.clone(), after: RecordId(0) });
            }
        }
        self.finish_round(now, number, out);
    }

    /// An owner asks whether it still is: says for which objects this node has promised higher.
    pub(super) fn on_confirm(&mut self, from: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &RoundHead = reader.take()?;
        if !self.may_vote() {
            return Ok(());
        }
        let mut body = std::mem::take(&mut self.scratch_bytes);
        body.extend_from_slice(head.as_bytes());
        let mut index = 0u32;
        while !reader.is_empty() {
            let asked: &KeyBallotHead = reader.take()?;
            reader.zero(asked.reserved)?;
            let key = reader.key(asked.key_bytes)?;
            let ballot = ballot_from(&reader, frame.config_version, asked.ballot)?;
            let promised = self.promised_of(key);
            if promised > ballot && self.config.has(Mutant::SilentObjection) {
                return Ok(());
            }
            if promised > ballot && !self.config.has(Mutant::ObjectionNotSent) {
                let objection = Objection { ballot: promised.number.into(), index: index.into(), reserved: 0.into() };
                body.extend_from_slice(objection.as_bytes());
            }
            index += 1;
        }
        self.links[from.index()].send(Kind::ConfirmReply, &body, RecordId(0), out);
        body.clear();
        self.scratch_bytes = body;
        Ok(())
    }

    /// The highest ballot that this node has promised for an object, to itself as to others: an owner that has taken the object
    /// knows best that the one who asks has lost it.
    fn promised_of(&self, key: &[u8]) -> Ballot {
        let Some(object) = self.objects.find(key) else { return Ballot::ZERO };
        if self.config.has(Mutant::ConfirmByCandidate) && !self.objects[object].is_idle() {
            return Ballot::ZERO;
        }
        self.objects[object].promised
    }

    /// An answer to a round: an objection deposes this node, the rest confirms it.
    pub(super) fn on_confirm_reply(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &RoundHead = reader.take()?;
        let number = head.round.get();
        let Some(place) = self.reads.rounds.iter().position(|round| round.number == number) else { return Ok(()) };
        let objects = &self.reads.rounds[place].objects;
        let objections = reader.rows(|reader| {
            let objection: &Objection = reader.take()?;
            reader.zero(objection.reserved)?;
            let ballot = ballot_from(reader, frame.config_version, objection.ballot)?;
            let object = objects.get(objection.index.get() as usize);
            let (object, _) = object.ok_or_else(|| reader.wrong("it objects to what was not asked"))?;
            Ok((*object, ballot))
        })?;
        for (object, ballot) in objections {
            if !self.config.has(Mutant::ObjectionsIgnored) {
                self.hear(now, object, ballot);
            }
        }
        self.reads.rounds[place].confirmed.insert(from);
        self.finish_round(now, number, out);
        Ok(())
    }

    /// With a Q2: answers the reads of objects that this node has led at the same ballot all along; the others go where
    /// the objects went.
    fn finish_round(&mut self, now: Micros, number: u64, out: &mut Outputs) {
        let place = self.reads.rounds.iter().position(|round| round.number == number).expect("it is open");
        let confirmed = self.config.is_phase2_quorum(self.reads.rounds[place].confirmed);
        if !confirmed && !self.config.has(Mutant::ReadWithoutRound) {
            return;
        }
        let round = self.reads.rounds.remove(place).expect("just found");
        for (key, object, ballot) in round.reads {
            let known = &self.objects[object];
            let moved = known.leading().is_none() || known.promised != ballot;
            if moved && !self.config.has(Mutant::ReadAfterDeposition) {
                self.ready_requests.push_back(key);
                continue;
            }
            self.counters.reads += 1;
            let status = if known.state.value.is_some() { Status::Ok } else { Status::NotFound };
            let version = known.state.version;
            self.answer(key, Answer { status, version, slot: 0, repeated: false, with_value: true }, out);
            self.make_due_offer(now, object);
        }
    }

    /// Asks rounds again, of everybody whose link has room, that are overdue.
    pub(super) fn check_rounds(&mut self, now: Micros, out: &mut Outputs) {
        for round in &mut self.reads.rounds {
            if now.since(round.asked_at) < self.config.timers.confirm_retry_us {
                continue;
            }
            round.asked_at = now;
            self.counters.rounds_repeated += 1;
            for (node, link) in self.links.iter().enumerate() {
                let node = NodeIndex(node as u8);
                let room = &mut out.room[node.index()];
                if link.is_up() && *room > 0 && !round.confirmed.contains(node) {
                    *room = room.saturating_sub(round.frame.len());
                    out.sends.push(crate::protocol::Send { to: node, frame: round.frame.clone(), after: RecordId(0) });
                }
            }
        }
        // A round whose reads have all ended in time-outs is of no use to anybody.
        let requests = &mut self.requests;
        self.reads.rounds.retain(|round| round.reads.iter().any(|(key, _, _)| requests.get_mut(*key).is_some()));
    }
}

pub(super) fn key_ballot_head(ballot: Ballot, key: &[u8]) -> KeyBallotHead {
    KeyBallotHead { ballot: ballot.number.into(), key_bytes: (key.len() as u16).into(), reserved: [0; 6] }
}
