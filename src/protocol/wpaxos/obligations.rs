//! What a frame rests on, read off the frame: nothing that promises, or counts on a promise, leaves a node before its log
//! says so durably (`protocol.md` §8). The frame is judged by a core that has replayed exactly what is durable, as a restart
//! at this moment would; how the sender came to send it does not matter.
//!
//! | frame | what must be durable |
//! |---|---|
//! | every kind | the configuration version that it belongs to |
//! | Prepare, Promise, AcceptBatch | the sender's own promise of each ballot in it, or of a higher one |
//! | Ack, Resume | the stream up to the number named, and the same refusals; in a Resume the incarnation of its receiver |
//! | Configuration | the version that it tells |
//! | Reconfigure | the promise, or the acceptance, that the step claims |
//!
//! A Reject, an objection, a redirection and the promise beside a state are hearsay: they name a ballot that exists
//! somewhere and bind nobody, so they rest on nothing. A Merge, a Confirm and a ConfirmReply rest on their version only.

use super::{
    Ballot, WPaxos,
    converge::age,
    message::{
        BatchHead, ConfigurationHead, EntryHead, PrepareHead, PromiseHead, Reader, ReconfigureHead, Refusal, Standing,
        ballot_from,
    },
    phase1::read_tail,
    versions::Step,
};
use crate::{
    command::Command,
    topology::{NodeIndex, token_of},
    wire::{Frame, FrameError, Kind},
};

/// Why a frame must not have left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// Something that it rests on is not durable.
    #[error("{0}")]
    Rests(String),
    /// The reader that ships does not take it.
    #[error("its own reader refuses it: {0}")]
    Malformed(#[from] FrameError),
}

impl Unmet {
    fn unless(holds: bool, what: impl FnOnce() -> String) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::Rests(what())) }
    }
}

impl WPaxos {
    /// Checks a frame that has left for `to`, where this core has replayed what is durable at its sender.
    ///
    /// # Errors
    /// What the frame rests on and is not durable.
    pub fn check_obligations(&self, to: NodeIndex, frame: &Frame) -> Result<(), Unmet> {
        let (theirs, mine) = (frame.config_version, self.config.version);
        Unmet::unless(theirs <= mine, || format!("it belongs to version {theirs}, durable is {mine}"))?;
        match frame.kind {
            Kind::Prepare => self.check_prepares(frame),
            Kind::Promise => self.check_promises(frame),
            Kind::AcceptBatch => self.check_entries(frame),
            Kind::Ack | Kind::Resume => self.check_standing(to, frame),
            Kind::Configuration => {
                let head: &ConfigurationHead = Reader::new(frame).take()?;
                let told = head.version.get();
                Unmet::unless(told <= mine, || format!("it tells of version {told}, durable is {mine}"))
            }
            Kind::Reconfigure => self.check_step(frame),
            _ => Ok(()),
        }
    }

    /// Whether this core has the slot of an object: executed, decided or accepted.
    pub fn holds(&self, key: &[u8], slot: u64) -> bool {
        let Some(object) = self.objects.find(key) else { return false };
        let known = &self.objects[object];
        slot <= known.applied || known.tail.iter().any(|entry| entry.slot == slot)
    }

    /// The promise for an object, of which nothing may have been heard yet.
    fn promised_for(&self, key: &[u8]) -> Ballot {
        match self.objects.find(key) {
            Some(object) => self.objects[object].promised,
            None => self.config.home_of(token_of(key)).map_or(Ballot::ZERO, |home| Ballot::new(1, 1, home)),
        }
    }

    fn check_ballot(&self, key: &[u8], ballot: Ballot) -> Result<(), Unmet> {
        let promised = self.promised_for(key);
        Unmet::unless(promised >= ballot, || {
            format!("it rests on a promise of {ballot:?} for {}, durable is {promised:?}", key.escape_ascii())
        })
    }

    fn check_prepares(&self, frame: &Frame) -> Result<(), Unmet> {
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: &PrepareHead = reader.take()?;
            let key = reader.key(head.key_bytes)?;
            self.check_ballot(key, ballot_from(&reader, frame.config_version, head.ballot)?)?;
        }
        Ok(())
    }

    fn check_promises(&self, frame: &Frame) -> Result<(), Unmet> {
        let mut reader = Reader::new(frame);
        while !reader.is_empty() {
            let head: &PromiseHead = reader.take()?;
            let key = reader.key(head.key_bytes)?;
            let applied = reader.number(head.applied)?;
            if head.state_bytes.get() > 0 {
                reader.state(head.state_bytes, applied)?;
            }
            read_tail(&mut reader, frame, key, head.tail.get())?;
            self.check_ballot(key, ballot_from(&reader, frame.config_version, head.ballot)?)?;
        }
        Ok(())
    }

    fn check_entries(&self, frame: &Frame) -> Result<(), Unmet> {
        let mut reader = Reader::new(frame);
        let head: &BatchHead = reader.take()?;
        for _ in 0..head.entries.get() {
            let entry: &EntryHead = reader.take()?;
            let bytes = reader.bytes(entry.command_bytes.get() as usize)?;
            let command = Command::parse(bytes).map_err(|_| reader.wrong("an entry holds no valid command"))?;
            self.check_ballot(command.key(), ballot_from(&reader, frame.config_version, entry.ballot)?)?;
        }
        Ok(())
    }

    fn check_standing(&self, to: NodeIndex, frame: &Frame) -> Result<(), Unmet> {
        let mut reader = Reader::new(frame);
        let standing: &Standing = reader.take()?;
        let refusals: &[Refusal] = reader.take_many(standing.refusals.get() as usize)?;
        if frame.kind == Kind::Resume {
            let known = self.membership_view().incarnations[to.index()];
            Unmet::unless(known != 0, || "it vouches for an incarnation that the log does not name".to_owned())?;
        }
        let (last_seq, watermark) = (standing.last_seq.get(), standing.watermark.get());
        if last_seq == 0 && refusals.is_empty() {
            return Ok(());
        }
        let durable = &self.inbound[to.index()];
        let is_over = durable.id.is_some_and(|id| age(id) > age(standing.stream));
        if is_over || frame.config_version < self.config.version {
            // More has become durable since the frame was made: a later stream, of which it says nothing.
            return Ok(());
        }
        Unmet::unless(durable.id == Some(standing.stream), || "the stream that it is about is not durable".to_owned())?;
        let (taken, passed) = (durable.last_seq, durable.watermark);
        Unmet::unless(last_seq <= taken && watermark <= passed, || {
            format!("it acks {last_seq} at watermark {watermark}, durable are {taken} and {passed}")
        })?;
        let claims = watermark < passed || standing.behind_from.get() > 0 || durable.behind_from == 0;
        Unmet::unless(claims, || "it claims to have caught up, which is not durable".to_owned())?;
        // What is durable may be further on than the frame, which then names more refusals below, and fewer above.
        let open = |seq: u64| seq > passed && seq <= last_seq;
        let told: Vec<u64> = refusals.iter().map(|refusal| refusal.seq.get()).filter(|seq| open(*seq)).collect();
        let kept: Vec<u64> = durable.refusals.iter().map(|(seq, _)| *seq).filter(|seq| open(*seq)).collect();
        Unmet::unless(told == kept, || format!("it refuses {told:?}, a restart would refuse {kept:?}"))
    }

    fn check_step(&self, frame: &Frame) -> Result<(), Unmet> {
        let mut reader = Reader::new(frame);
        let head: &ReconfigureHead = reader.take()?;
        let step = Step::from_wire(head.step).ok_or_else(|| reader.wrong("it is no step"))?;
        if head.version.get() <= self.config.version {
            return Ok(());
        }
        let (promised, accepted) = self.version_votes();
        let ballot = head.ballot.get();
        let durable = match step {
            Step::Prepare | Step::Propose | Step::Promised => promised,
            Step::Accepted => accepted,
            Step::Refused => return Ok(()),
        };
        Unmet::unless(durable >= ballot, || format!("it claims {step:?} at {ballot:#x}, durable is {durable:#x}"))
    }
}
