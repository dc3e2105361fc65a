//! Configuration versions, incarnations, and who may vote (`protocol.md` §8).
//!
//! A member is an incarnation: a node whose disk is lost comes back as another one, and must not vote as if it had not
//! forgotten. In a configuration each member's incarnation is *named*, or it is the *first* one that the others have met.
//!
//! ```text
//! newcomer (another incarnation)                          the others
//!   link up                                          ──►
//!                    ◄── Configuration{version, stranger}     it is none that they know
//!   Reconfigure{prepare, version + 1}                ──►      one small Paxos instance,
//!                    ◄── Reconfigure{promised}                decided by a majority of all members
//!   Reconfigure{propose, incarnations}               ──►
//!                    ◄── Reconfigure{accepted}
//!   adopts: learner; merges from a Q1 (`merge`)      ──►      adopt when they hear of it
//!   votes
//! ```
//! **Adopting** a version ends whatever belongs to lower ones: leads, candidacies, streams. To a node it is as if every node
//! had restarted with its state intact. Connections end with it, so that none ever carries two versions.
//!
//! The argument is in `docs/decisions/0013-versions-end-streams.md`.

use bytes::Bytes;
use zerocopy::{IntoBytes, little_endian::U64};

use super::{
    Inbound, Mutant, ObjectIndex, OwnStream, WPaxos,
    bounds::VERSION_MAX,
    merge::Merge,
    message::{ConfigurationHead, MembershipBody, ROUND_MAX, Reader, ReconfigureHead, StreamId},
    object::Source,
};
use crate::{
    protocol::{Membership, Micros, Outputs, Vote},
    topology::{NodeIndex, NodeSet},
    wire::{self, Frame, FrameError, Kind},
};

/// What a node may do in its configuration. The numbers are in logs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Standing {
    /// It is no member yet: it may be, or take the place of, one that the others have forgotten, or have not.
    Newcomer = 0,
    /// It is named, and has to learn what its earlier incarnations may have accepted.
    Learner = 1,
    /// It answers Prepares and accepts.
    Voter = 2,
}

/// The steps of deciding a version. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Step {
    /// Phase 1a.
    Prepare = 0,
    /// Phase 1b.
    Promised = 1,
    /// Phase 2a.
    Propose = 2,
    /// Phase 2b.
    Accepted = 3,
    /// The ballot was beaten.
    Refused = 4,
}

impl Step {
    pub(super) const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Prepare,
            1 => Self::Promised,
            2 => Self::Propose,
            3 => Self::Accepted,
            4 => Self::Refused,
            _ => return None,
        })
    }
}

/// Ballots of attempts have so many bits of their owner's incarnation below the count of rounds.
const INCARNATION_BITS: u32 = 24;

/// Incarnations by member; 0 is "the first one met".
type Incarnations = Vec<u64>;

/// An attempt of this node to have the next version name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attempt {
    ballot: u64,
    promised: NodeSet,
    /// What was accepted at the highest ballot, as far as reported.
    best: Option<(u64, Incarnations)>,
    /// What is proposed, once a majority has promised.
    value: Option<Incarnations>,
    accepted: NodeSet,
}

/// What a node knows of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Versions {
    version: u32,
    named: Incarnations,
    first: Incarnations,
    standing: Standing,
    /// This node has lost what it had promised, and is about to end.
    denied: bool,
    /// Peers that have more of this node's streams than it has sent.
    contradicted: NodeSet,
    /// Acceptor of the next version.
    promised: u64,
    accepted: Option<(u64, Incarnations)>,
    /// Peers that take this incarnation for the member, in this version.
    met: NodeSet,
    /// A peer that does not was met, in this version.
    refused: bool,
    attempt: Option<Attempt>,
    attempt_at: Micros,
    attempts: u32,
    /// The highest round of an attempt that was heard of.
    round: u64,
    pub(super) merge: Merge,
}

impl Versions {
    /// `founded`: incarnations that are known from the start, for tests of the core alone.
    pub(super) fn new(nodes: usize, version: u32, founded: Option<&Incarnations>) -> Self {
        let alone = nodes == 1;
        Self {
            version,
            named: vec![0; nodes],
            first: founded.cloned().unwrap_or_else(|| vec![0; nodes]),
            standing: if alone || founded.is_some() { Standing::Voter } else { Standing::Newcomer },
            denied: false,
            contradicted: NodeSet::EMPTY,
            promised: 0,
            accepted: None,
            met: NodeSet::EMPTY,
            refused: false,
            attempt: None,
            attempt_at: Micros(0),
            attempts: 0,
            round: 0,
            merge: Merge::default(),
        }
    }

    fn known(&self, peer: NodeIndex) -> u64 {
        let named = self.named[peer.index()];
        if named == 0 { self.first[peer.index()] } else { named }
    }

    /// Whether a member is this incarnation, as far as is known.
    pub(super) fn is(&self, peer: NodeIndex, incarnation: u64) -> bool {
        matches!(self.known(peer), known if known == 0 || known == incarnation)
    }

    /// How many others have to vouch that they never met another incarnation of a node before it votes without being named:
    /// so many that two such sets have more in common than can have lost their disks at once, if a majority has not.
    fn vouchers(&self) -> usize {
        let nodes = self.named.len();
        (nodes - 1 + nodes / 2).div_ceil(2).min(nodes - 1)
    }

    /// Whether so many nodes decide a version.
    fn is_majority(&self, set: NodeSet) -> bool {
        2 * set.len() > self.named.len()
    }

    pub(super) fn is_voter(&self) -> bool {
        self.standing == Standing::Voter && !self.denied
    }

    /// A peer has more of this node's streams than it has sent: whether so many have that they are believed.
    pub(super) fn contradict(&mut self, peer: NodeIndex) -> bool {
        self.contradicted.insert(peer);
        self.contradicted.len() >= 2
    }

    /// Whatever this node may be, it votes no more.
    pub(super) fn deny_vote(&mut self) {
        self.denied = true;
    }

    pub(super) fn is_learner(&self) -> bool {
        self.standing == Standing::Learner
    }
}

/// Who is who.
impl WPaxos {
    /// Whether this node answers Prepares, confirms reads, acks, and serves requests.
    pub(super) fn may_vote(&self) -> bool {
        self.versions.is_voter() || self.config.has(Mutant::NewcomerVotes)
    }

    /// A peer was met: whether it is the member that this node knows. The first incarnation of a member that no configuration
    /// names is remembered, before it is told so.
    pub(super) fn recognise(&mut self, peer: NodeIndex, incarnation: u64) -> bool {
        match self.versions.known(peer) {
            0 => {
                self.versions.first[peer.index()] = incarnation;
                self.log_membership();
                true
            }
            known => known == incarnation || self.config.has(Mutant::NewcomerVotes),
        }
    }

    /// A peer has sent something that it only sends to a member: it takes this incarnation for one. That counts in version 1
    /// only: later, whoever is asked may have taken the place of one who would have known better.
    pub(super) fn vouched(&mut self, now: Micros, peer: NodeIndex, out: &mut Outputs) {
        let one_will_do = self.config.has(Mutant::ForgetfulVouch);
        let versions = &mut self.versions;
        let me = self.config.me.index();
        let enough = versions.met.insert(peer)
            && versions.standing == Standing::Newcomer
            && versions.version == 1
            && versions.named[me] == 0
            && (one_will_do || versions.met.len() >= versions.vouchers());
        if enough {
            self.become_voter(now, out);
        }
    }

    /// From now on this node votes, and says so to everybody.
    pub(super) fn become_voter(&mut self, now: Micros, out: &mut Outputs) {
        self.versions.standing = Standing::Voter;
        self.versions.attempt = None;
        self.versions.merge = Merge::default();
        self.log_membership();
        for peer in (0..self.links.len()).map(|node| NodeIndex(node as u8)) {
            if self.links[peer.index()].is_up() {
                self.send_standing(peer, Kind::Resume, out);
            }
        }
        self.choose_eager(now);
    }

    /// What is known of the configuration, for people and tools.
    pub(super) fn membership_view(&self) -> Membership {
        let versions = &self.versions;
        let vote = match versions.standing {
            Standing::Newcomer if versions.refused => Vote::Refused,
            Standing::Newcomer => Vote::Newcomer,
            Standing::Learner => Vote::Learner { merged: versions.merge.done(), may_end: self.merge_may_end() },
            Standing::Voter => Vote::Voter,
        };
        let named = versions.named.len();
        let known = (0..named).map(|node| versions.known(NodeIndex(node as u8))).collect();
        Membership { version: versions.version, vote, incarnations: known }
    }

    /// As an acceptor of the next version: the ballot that is promised, and the one that a value is accepted at, 0 if none is.
    pub(super) fn version_votes(&self) -> (u64, u64) {
        let accepted = self.versions.accepted.as_ref().map_or(0, |(ballot, _)| *ballot);
        (self.versions.promised, accepted)
    }

    /// Everything that is to be known after a restart, in one record: it is small, and changes seldom.
    fn log_membership(&mut self) {
        let frame = self.membership_frame();
        self.log_own(frame);
    }

    pub(super) fn membership_frame(&self) -> Bytes {
        let versions = &self.versions;
        let nobody = vec![0; versions.named.len()];
        let (ballot, value) = versions.accepted.as_ref().map_or((0, &nobody), |(ballot, value)| (*ballot, value));
        let head = MembershipBody {
            version: versions.version.into(),
            standing: versions.standing as u8,
            has_accepted: versions.accepted.is_some().into(),
            reserved: 0.into(),
            promised: versions.promised.into(),
            accepted: ballot.into(),
        };
        let rows = [&versions.named, &versions.first, value];
        let mut body = head.as_bytes().to_vec();
        rows.into_iter().for_each(|row| put_incarnations(&mut body, row));
        wire::frame(Kind::Membership, self.config.shard, versions.version, &body)
    }

    /// Takes what [`Self::membership_frame`] wrote: from a log, where a higher version ends what belongs to lower ones, or
    /// from a checkpoint, behind which nothing does.
    pub(super) fn take_membership(&mut self, now: Micros, frame: &Frame, adopts: bool) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: MembershipBody = *reader.take()?;
        let nodes = self.config.nodes.len();
        let named = take_incarnations(&mut reader, nodes)?;
        let first = take_incarnations(&mut reader, nodes)?;
        let value = take_incarnations(&mut reader, nodes)?;
        let standing = match head.standing {
            0 => Standing::Newcomer,
            1 => Standing::Learner,
            2 => Standing::Voter,
            _ => return Err(reader.wrong("it names no standing")),
        };
        let version = head.version.get();
        if version < self.config.version || version == 0 {
            return Err(reader.wrong("it goes back to an earlier version"));
        }
        if adopts && version > self.config.version {
            self.end_version(now, version);
        }
        self.set_version(version);
        let id = StreamId { version: version.into(), ..self.stream.id };
        assert!(self.stream.last_seq() == 0, "a node that is being restored has proposed nothing");
        self.stream = OwnStream::new(id);
        let accepted = (head.has_accepted == 1).then(|| (head.accepted.get(), value));
        let promised = head.promised.get();
        self.versions = Versions { named, first, standing, promised, accepted, ..Versions::new(nodes, version, None) };
        Ok(())
    }
}

/// Adopting a version.
impl WPaxos {
    fn set_version(&mut self, version: u32) {
        self.config.version = version;
        self.links.iter_mut().for_each(|link| link.set_version(version));
    }

    /// A decided version, higher than this node's.
    fn adopt(&mut self, now: Micros, version: u32, named: Incarnations, out: &mut Outputs) {
        // What is committed and not announced would be known to nobody after a restart.
        self.seal_batch();
        self.log_raises();
        self.end_version(now, version);
        self.set_version(version);
        let (me, own) = (self.config.me.index(), self.config.incarnation);
        let before = self.versions.standing;
        let standing = match named[me] {
            name if name == own && before == Standing::Voter => Standing::Voter,
            name if name == own && self.config.has(Mutant::NewcomerSkipsMerge) => Standing::Voter,
            name if name == own => Standing::Learner,
            0 => before,
            _ if before == Standing::Newcomer => Standing::Newcomer,
            name => {
                out.displaced = Some(format!(
                    "configuration version {version} names incarnation {name:016x} in the place of this one, {own:016x}: \
                     another process has taken this node's id with another data directory"
                ));
                Standing::Newcomer
            }
        };
        let first = std::mem::take(&mut self.versions.first);
        self.versions = Versions { named, first, standing, ..Versions::new(self.links.len(), version, None) };
        self.log_membership();
        out.reset = true;
    }

    /// Ends what belongs to lower versions, as a restart of every node would: leads and candidacies, whose promises do not
    /// count in the next one; streams, of which what is not committed is withdrawn and left to the objects' next owners; and
    /// connections.
    fn end_version(&mut self, now: Micros, version: u32) {
        for object in (0..self.objects.len() as u32).map(ObjectIndex) {
            if !self.objects[object].is_idle() {
                self.depose(now, object);
            }
        }
        self.close_stream(now, version);
        let peers = (0..self.links.len()).map(|node| NodeIndex(node as u8));
        for peer in peers {
            self.bury_stream(now, peer);
            self.inbound[peer.index()] = Inbound::default();
            if self.links[peer.index()].is_up() {
                self.links[peer.index()].go_down(now);
            }
            self.part_from(peer);
        }
        let reads = self.reads.abandon();
        self.ready_requests.extend(reads);
        let probed = self.probes.abandon();
        self.ready_requests.extend(probed);
        self.own_records.clear();
        self.new_candidacies.clear();
        self.unsent_prepares.clear();
        self.prepare_timers.clear();
        self.heard.clear();
        self.own_durable = 0;
        self.choose_eager(now);
    }

    /// This node's own stream ends: its entries are withdrawn, with its leads, and tails keep their bytes.
    fn close_stream(&mut self, now: Micros, version: u32) {
        let old = self.stream.id;
        if self.stream.last_seq() > 0 {
            let up_to = self.stream.committed;
            self.converge.note_end(self.config.me, old, up_to);
        }
        for seq in self.stream.committed + 1..=self.stream.last_seq() {
            let entry = self.stream.entry_mut(seq).expect("it is above the watermark").clone();
            let bytes = self.stream.command(seq).bytes().to_vec();
            self.keep_bytes(entry.object, entry.slot, &Source::Own(seq), || bytes.into());
            self.orphan_withdrawn(now, entry.object, entry.slot, entry.ballot);
        }
        let id = StreamId { incarnation: old.incarnation, boot: old.boot, version: version.into() };
        self.stream = OwnStream::new(id);
        for object in (0..self.objects.len() as u32).map(ObjectIndex) {
            self.objects[object].own_seq = 0;
        }
    }

    /// Tells a peer which version holds, once on each connection.
    pub(super) fn tell_configuration(&mut self, to: NodeIndex, out: &mut Outputs) {
        let link = &mut self.links[to.index()];
        if std::mem::replace(&mut link.told, true) {
            return;
        }
        let head = ConfigurationHead {
            version: self.config.version.into(),
            stranger: link.is_stranger().into(),
            reserved: [0; 3],
        };
        let mut body = head.as_bytes().to_vec();
        put_incarnations(&mut body, &self.versions.named);
        link.send(Kind::Configuration, &body, self.logged, out);
    }

    /// A peer tells which version holds.
    pub(super) fn on_configuration(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &ConfigurationHead = reader.take()?;
        reader.zero(head.reserved)?;
        let named = take_incarnations(&mut reader, self.config.nodes.len())?;
        let version = head.version.get();
        if version == 0 || version >= VERSION_MAX || !reader.is_empty() {
            return Err(reader.wrong("it is no configuration, or its version is out of range"));
        }
        match version.cmp(&self.config.version) {
            std::cmp::Ordering::Greater => self.adopt(now, version, named, out),
            std::cmp::Ordering::Less => self.tell_configuration(from, out),
            std::cmp::Ordering::Equal if head.stranger == 1 => self.versions.refused = true,
            std::cmp::Ordering::Equal => {}
        }
        Ok(())
    }
}

/// Deciding a version.
impl WPaxos {
    /// A node that somebody does not take for the member, or that comes late, has the next version name it, again and again
    /// until one does.
    pub(super) fn check_versions(&mut self, now: Micros, out: &mut Outputs) {
        let versions = &self.versions;
        let named = versions.named[self.config.me.index()] == self.config.incarnation;
        let late = versions.standing == Standing::Newcomer && versions.version > 1;
        let next = (versions.round.max(versions.promised >> 16) >> INCARNATION_BITS) + 1;
        let too_often = next >= ROUND_MAX >> INCARNATION_BITS || versions.version + 1 >= VERSION_MAX;
        if !(versions.refused || late) || named || now < versions.attempt_at || too_often {
            return;
        }
        let timers = &self.config.timers;
        let (least, most, spread) = (timers.prepare_retry_us, timers.request_timeout_us, timers.backoff_max_us.max(1));
        // How far away strangers are is not known: each attempt has more time than the last one.
        let patience = (least << self.versions.attempts.min(20)).min(most.max(least));
        self.versions.attempts += 1;
        self.versions.attempt_at = now.plus(patience + self.random.next() % spread);
        // Never the same ballot again, not after a restart either, nor as another incarnation that remembers nothing.
        let round = next << INCARNATION_BITS | (self.config.incarnation & ((1 << INCARNATION_BITS) - 1));
        let id = self.config.my_id();
        let ballot = round << 16 | u64::from(id.zone) << 8 | u64::from(id.node);
        let (promised, accepted) = (NodeSet::EMPTY, NodeSet::EMPTY);
        (self.versions.round, self.versions.promised) = (round, ballot);
        self.log_membership();
        self.versions.attempt = Some(Attempt { ballot, promised, best: None, value: None, accepted });
        self.ask_for_version(Step::Prepare, ballot, None, out);
        if self.versions.standing != Standing::Newcomer {
            let (accepted, step) = self.vote_on_version(Step::Prepare, ballot, None);
            self.count_vote(now, self.config.me, step, ballot, accepted, out);
        }
    }

    /// Sends a step to everybody who can be reached, as whomever they take this node.
    fn ask_for_version(&mut self, step: Step, ballot: u64, value: Option<&Incarnations>, out: &mut Outputs) {
        for peer in (0..self.links.len()).map(|node| NodeIndex(node as u8)) {
            if self.links[peer.index()].is_connected() {
                self.send_step(peer, step, ballot, value.map(|value| (0, value)), out);
            }
        }
    }

    fn send_step(
        &self,
        to: NodeIndex,
        step: Step,
        ballot: u64,
        value: Option<(u64, &Incarnations)>,
        out: &mut Outputs,
    ) {
        let head = ReconfigureHead {
            step: step as u8,
            has_value: value.is_some().into(),
            reserved: 0.into(),
            version: (self.config.version + 1).into(),
            ballot: ballot.into(),
            accepted: value.map_or(0, |(accepted, _)| accepted).into(),
        };
        let mut body = head.as_bytes().to_vec();
        if let Some((_, value)) = value {
            put_incarnations(&mut body, value);
        }
        self.links[to.index()].send(Kind::Reconfigure, &body, self.logged, out);
    }

    pub(super) fn on_reconfigure(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: ReconfigureHead = *reader.take()?;
        reader.zero(head.reserved)?;
        let step = Step::from_wire(head.step).ok_or_else(|| reader.wrong("it is no step"))?;
        let value = match head.has_value {
            0 => None,
            _ => Some(take_incarnations(&mut reader, self.config.nodes.len())?),
        };
        if head.ballot.get() >> 16 == 0 || head.ballot.get() >= ROUND_MAX << 16 || !reader.is_empty() {
            return Err(reader.wrong("its ballot is out of range"));
        }
        if head.version.get() >= VERSION_MAX {
            return Err(reader.wrong("its version is out of range"));
        }
        if head.version.get() != self.config.version + 1 {
            if head.version.get() <= self.config.version {
                self.tell_configuration(from, out);
            }
            return Ok(());
        }
        let ballot = head.ballot.get();
        self.versions.round = self.versions.round.max(ballot >> 16);
        match step {
            Step::Propose if value.is_none() => return Err(reader.wrong("it proposes nothing")),
            Step::Prepare | Step::Propose if self.versions.standing == Standing::Newcomer => {}
            Step::Prepare | Step::Propose => {
                let (accepted, answer) = self.vote_on_version(step, ballot, value);
                let ballot = if answer == Step::Refused { self.versions.promised } else { ballot };
                let accepted = accepted.as_ref().map(|(ballot, value)| (*ballot, value));
                self.send_step(from, answer, ballot, accepted, out);
            }
            Step::Promised | Step::Accepted => {
                let accepted = value.map(|value| (head.accepted.get(), value));
                self.count_vote(now, from, step, ballot, accepted, out);
            }
            Step::Refused => {}
        }
        Ok(())
    }

    /// The acceptor: its answer, which leaves when what it rests on is durable.
    fn vote_on_version(
        &mut self,
        step: Step,
        ballot: u64,
        value: Option<Incarnations>,
    ) -> (Option<(u64, Incarnations)>, Step) {
        let other =
            |(at, known): &(u64, Incarnations)| *at == ballot && value.as_ref().is_some_and(|value| value != known);
        if ballot < self.versions.promised || self.versions.accepted.as_ref().is_some_and(other) {
            return (None, Step::Refused);
        }
        self.versions.promised = ballot;
        let answer = match (step, value) {
            (Step::Propose, Some(value)) => {
                self.versions.accepted = Some((ballot, value));
                (None, Step::Accepted)
            }
            _ => (self.versions.accepted.clone(), Step::Promised),
        };
        self.log_membership();
        answer
    }

    /// The proposer.
    fn count_vote(
        &mut self,
        now: Micros,
        from: NodeIndex,
        step: Step,
        ballot: u64,
        reported: Option<(u64, Incarnations)>,
        out: &mut Outputs,
    ) {
        let mut own_name = self.versions.named.clone();
        own_name[self.config.me.index()] = self.config.incarnation;
        let one_will_do = self.config.has(Mutant::VersionByOne);
        let Some(attempt) = self.versions.attempt.as_mut().filter(|attempt| attempt.ballot == ballot) else { return };
        if step == Step::Promised && attempt.value.is_none() {
            attempt.promised.insert(from);
            if let Some((at, value)) = reported
                && attempt.best.as_ref().is_none_or(|(best, _)| *best < at)
            {
                attempt.best = Some((at, value));
            }
            let promised = attempt.promised;
            if one_will_do || self.versions.is_majority(promised) {
                let attempt = self.versions.attempt.as_mut().expect("just seen");
                let value = attempt.best.take().map_or(own_name, |(_, value)| value);
                attempt.value = Some(value.clone());
                self.ask_for_version(Step::Propose, ballot, Some(&value), out);
                if self.versions.standing != Standing::Newcomer {
                    let (_, step) = self.vote_on_version(Step::Propose, ballot, Some(value));
                    self.count_vote(now, self.config.me, step, ballot, None, out);
                }
            }
        } else if step == Step::Accepted
            && let Some(value) = attempt.value.clone()
        {
            attempt.accepted.insert(from);
            let accepted = attempt.accepted;
            if one_will_do || self.versions.is_majority(accepted) {
                self.adopt(now, self.config.version + 1, value, out);
            }
        }
    }
}

fn put_incarnations(body: &mut Vec<u8>, row: &Incarnations) {
    row.iter().for_each(|incarnation| body.extend_from_slice(&incarnation.to_le_bytes()));
}

fn take_incarnations(reader: &mut Reader<'_>, nodes: usize) -> Result<Incarnations, FrameError> {
    let row: &[U64] = reader.take_many(nodes)?;
    Ok(row.iter().map(|incarnation| incarnation.get()).collect())
}
