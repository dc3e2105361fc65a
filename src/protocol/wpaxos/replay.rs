//! Recovery (`protocol.md` §8): the log's frames run through the handlers that took them the first time, with their outputs
//! thrown away; and what has to be in the log for that to be safe though no frame brought it.
//! The argument is in `docs/decisions/0009-recovery-replays-the-handlers.md`.

use bytes::Bytes;
use zerocopy::IntoBytes;

use super::{
    Ballot, Counters, Inbound, Leading, Mutant, ObjectIndex, OwnRecord, Role, WPaxos,
    phase1::{prepare_head, read_rejects, reject_head},
};
use crate::{
    protocol::{Micros, Outputs, Record, RecordId},
    wire::{self, Frame, FrameError, Kind},
};

impl WPaxos {
    /// A ballot that this node has heard of in a frame that is not logged. If something is refused because of it, the log
    /// must say so first: see [`Self::log_raises`].
    pub(super) fn hear(&mut self, now: Micros, object: ObjectIndex, ballot: Ballot) {
        if ballot > self.objects[object].promised {
            self.raise(now, object, ballot);
            self.heard.push((object, ballot));
        }
    }

    /// Logs why `promised` is where it is, before entries may be refused because of it. Otherwise a replay would accept what
    /// was refused, the refusal would stand no more, and the owner would count a vote that nobody's phase 1 has seen.
    pub(super) fn log_raises(&mut self) {
        self.log_prepares();
        let mut heard = std::mem::take(&mut self.heard);
        if self.config.has(Mutant::RaisesUnlogged) {
            heard.clear();
        }
        let mut body = std::mem::take(&mut self.scratch_bytes);
        for (number, (object, ballot)) in heard.iter().enumerate() {
            let key = &self.objects[*object].key;
            let head = reject_head(Ballot::ZERO, *ballot, key);
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(key);
            if body.len() >= wire::SPLIT_BYTES || number + 1 == heard.len() {
                self.log_own(wire::frame(Kind::Reject, self.config.shard, self.config.version, &body));
                body.clear();
            }
        }
        self.scratch_bytes = body;
    }

    /// Logs the candidacies that are not logged yet, in frames that are sent at the end of the turn.
    pub(super) fn log_prepares(&mut self) {
        let candidacies = std::mem::take(&mut self.new_candidacies);
        let mut body = Vec::new();
        let mut from = 0;
        for (number, (object, ballot)) in candidacies.iter().enumerate() {
            let known = &self.objects[*object];
            body.extend_from_slice(prepare_head(*ballot, known.applied, &known.key).as_bytes());
            body.extend_from_slice(&known.key);
            if body.len() < wire::SPLIT_BYTES && number + 1 < candidacies.len() {
                continue;
            }
            let frame = wire::frame(Kind::Prepare, self.config.shard, self.config.version, &body);
            body.clear();
            let record = self.log_own(frame.clone());
            self.own_records.push_back((record, OwnRecord::Promises(candidacies[from..=number].to_vec())));
            self.unsent_prepares.push((record, frame));
            from = number + 1;
        }
    }

    /// Takes one record. Nothing is sent: no link is up. Nothing is logged again.
    pub(super) fn replay(&mut self, now: Micros, record: &Record) -> Result<(), FrameError> {
        assert!(record.id > self.logged, "records are replayed in the order of their numbers");
        let frame = self.parse_record(record)?;
        self.logged = RecordId(record.id.0 - 1);
        self.replaying = true;
        let mut out = Outputs::default();
        let from = record.from;
        let result = match frame.kind {
            // Own entries are taken as a receiver takes them, into a stream that ends with the replay.
            Kind::AcceptBatch => self.on_accept_batch(now, from, &frame, &mut out),
            Kind::Prepare => self.on_prepares(now, from, &frame),
            Kind::Reject => self.replay_raises(now, &frame),
            Kind::Skip => self.on_skip(now, from, &frame),
            Kind::State => self.on_states(now, from, &frame),
            Kind::CatchUpDone => self.on_catch_up_done(from, &frame),
            Kind::Compare => self.replay_reached(&frame),
            Kind::Merge => self.take_rows(now, from, &frame),
            Kind::Membership => self.take_membership(now, &frame, true),
            _ => unreachable!("records of other kinds were refused"),
        };
        self.settle(now, &mut out);
        let was_logged = self.logged >= record.id;
        self.logged = record.id;
        self.replaying = false;
        self.records.clear();
        self.heard.clear();
        match result {
            // A peer's frame that turned out to be malformed after it was logged counted up to there, and does again.
            Err(error) if from == self.config.me || !was_logged => Err(error),
            _ => Ok(()),
        }
    }

    /// Ballots that this node had heard of, perhaps before anything else of their objects.
    fn replay_raises(&mut self, now: Micros, frame: &Frame) -> Result<(), FrameError> {
        for (key, heard) in read_rejects(frame)? {
            let object = self.object_of(key);
            self.raise(now, object, heard);
        }
        Ok(())
    }

    fn parse_record(&self, record: &Record) -> Result<Frame, FrameError> {
        let bytes = record.frame.len();
        if wire::frame_bytes(&record.frame)? != Some(bytes) {
            return Err(FrameError::Partial(bytes));
        }
        let frame = wire::parse(Bytes::clone(&record.frame))?;
        let own = record.from == self.config.me;
        let logged = match frame.kind {
            Kind::AcceptBatch | Kind::Prepare | Kind::State => true,
            Kind::Reject | Kind::Compare | Kind::Membership => own,
            Kind::Skip | Kind::CatchUpDone | Kind::Merge => !own,
            _ => false,
        };
        if record.from.index() >= self.config.nodes.len() {
            return Err(self.refuse(&frame, "its record names no member"));
        }
        if !logged {
            return Err(self.refuse(&frame, "no record holds this kind from this node"));
        }
        let version = frame.kind == Kind::Membership || frame.config_version == self.config.version;
        if frame.shard != self.config.shard || !version {
            return Err(self.refuse(&frame, "its record belongs to another shard or configuration version"));
        }
        Ok(frame)
    }

    /// The log has been replayed: what it left in this node's own earlier streams stays in tails, and everything that
    /// belongs to a running node starts anew.
    pub(super) fn finish_replay(&mut self, now: Micros) {
        let me = self.config.me;
        assert!(
            self.stream.last_seq() == 0 && self.requests.len() == 0,
            "nothing is asked before the replay has ended"
        );
        self.finish_restored(now);
        self.bury_stream(now, me);
        self.inbound[me.index()] = Inbound::default();
        for inbound in &mut self.inbound {
            inbound.ack_due = false;
        }
        assert!(self.own_records.is_empty() && self.unsent_prepares.is_empty(), "a replay proposes nothing");
        self.counters = Counters::default();
        (self.progress_at, self.checked_at) = (now, now);
        for link in &mut self.links {
            link.begin(now);
        }
    }

    /// What planted bugs leave out of a replay that has ended, or add to it.
    pub(super) fn forget_at_restart(&mut self) {
        if self.config.has(Mutant::RestartForgetsRefusals) {
            self.inbound.iter_mut().for_each(|inbound| inbound.refusals.clear());
        }
        let forgets = self.config.has(Mutant::RestartForgetsPromises);
        let keeps_lead = self.config.has(Mutant::RestartKeepsLead);
        let objects = if forgets || keeps_lead { self.objects.len() } else { 0 };
        for object in (0..objects as u32).map(ObjectIndex) {
            let me = self.config.my_id();
            let known = &mut self.objects[object];
            if forgets && known.is_idle() {
                known.promised = known.tail.iter().map(|entry| entry.ballot).max().unwrap_or(Ballot::ZERO);
            }
            if keeps_lead && known.is_idle() && known.promised.owner() == Some(me) {
                let last = known.tail.iter().last().map_or(known.applied, |entry| entry.slot);
                known.role = Role::Leading(Leading { next_slot: last + 1, settled: 0, round: 0 });
            }
        }
    }
}
