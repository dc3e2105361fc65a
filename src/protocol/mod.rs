//! Replication protocols without I/O.
//!
//! # The contract
//! A [`Protocol`] performs nothing. Its driver (the shard executor, a simulator, a test) owns sockets, log, clock and
//! random seed; it hands *inputs* in and takes *outputs* out of an [`Outputs`] that it owns and reuses.
//!
//! **Inputs** are the `on_…` methods, in any order, any number per turn. Each takes `now`, which never goes back.
//!
//! **[`Protocol::flush`]** ends a turn: what the turn gathered becomes frames and records. The driver then
//! 1. appends `records` to its log, in order, and calls [`Protocol::on_durable`] with the last id once they are
//!    durable (at once where nothing is kept), then `flush` again if that was before the turn's end;
//! 2. hands each of `replies` to whoever `to` names;
//! 3. puts each of `sends` on the link to its peer, in order, but **only after record `after` is durable**, and a frame
//!    that waits holds back those behind it on the same link;
//! 4. drops all links if `reset` says so, and ends the node if it is `displaced` or `damaged`.
//!
//! A link is a connection to the same shard of a peer: frames arrive in order, whole and once, or the link goes down and
//! everything unsent is dropped. [`Protocol::on_link_up`] and [`Protocol::on_link_down`] say so.
//!
//! Everything that needs knowledge of the protocol is behind the trait; a driver has no branch on a frame's kind
//! except for the hello and the client's frames.

use std::ops::Range;

use bytes::Bytes;

use crate::{
    command::{Command, Status},
    store::Version,
    topology::{NodeId, NodeIndex, NodeSet, ZoneIndex},
    wire::{Frame, FrameError},
};

pub mod echo;
pub mod wpaxos;

/// Microseconds on the driver's monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Micros(pub u64);

impl Micros {
    /// This much later.
    #[must_use]
    pub const fn plus(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds since `earlier`, 0 if that is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names a record of the log, from 1 upwards; "durable up to N" covers all before N. 0 is "nothing".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RecordId(pub u64);

impl RecordId {
    /// No record: what rests on it may leave at once.
    pub const NONE: Self = Self(0);
}

/// A position in the log of one object, from 1; 0 is "nothing yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slot(pub u64);

/// Whom a reply is for: the driver's own token, handed back as it was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReplyTo(pub u64);

/// How a request is to be answered if it is a Get. Writes ignore it. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum ReadMode {
    /// The owner asks a phase-2 quorum whether it still is the owner, and answers from its own state
    /// (`protocol.md` §9). The default.
    #[default]
    Confirm = 0,
    /// The read is a command in the object's log, as in the paper.
    Log = 1,
}

impl ReadMode {
    /// The mode with this number.
    pub const fn from_wire(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Confirm),
            1 => Some(Self::Log),
            _ => None,
        }
    }
}

/// A client's request as the driver hands it in.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Whom to answer.
    pub reply_to: ReplyTo,
    /// The client's zone: what steal policies count.
    pub zone: ZoneIndex,
    /// How to read.
    pub read: ReadMode,
    /// The command, a view into `frame`.
    pub command: Command<'a>,
    /// The received bytes that `command` lies in, sliced if the command must be kept.
    pub frame: &'a Bytes,
}

/// A frame to send.
#[derive(Clone, Debug)]
pub struct Send {
    /// To the same shard of this node.
    pub to: NodeIndex,
    /// The encoded frame; peers that get the same frame share it.
    pub frame: Bytes,
    /// Not before this record is durable.
    pub after: RecordId,
}

/// A record for the log: a frame as it came, or one of this node's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Its number; records come in the order of their numbers, without gaps.
    pub id: RecordId,
    /// Whose frame it is.
    pub from: NodeIndex,
    /// The frame.
    pub frame: Bytes,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whom it is for.
    pub to: ReplyTo,
    /// How the request ended.
    pub status: Status,
    /// The object's version after the command (writes that took effect), or as read.
    pub version: u64,
    /// The slot that decided the command; 0 if none did.
    pub slot: u64,
    /// Whether the command was executed before, with this status, and nothing was done now.
    pub repeated: bool,
    /// The owner's ballot: round in the upper 48 bits, then zone and node ([`wpaxos::Ballot`]); 0 if unknown.
    pub ballot: u64,
    /// Who owns the object as far as this node knows.
    pub owner: Option<NodeId>,
    /// Where the value read lies in [`Outputs::value_bytes`].
    pub value: Range<usize>,
}

/// What a protocol wants done. The driver owns it, drains it after each turn and reuses it.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Frames to send, in order per peer.
    pub sends: Vec<Send>,
    /// Records to append to the log, in order.
    pub records: Vec<Record>,
    /// Answers to requests.
    pub replies: Vec<Reply>,
    /// The values of `replies`, one behind the other.
    pub value_bytes: Vec<u8>,
    /// **Set by the driver before each flush**: bytes that the queue of each link has room for, by node. Streams stop
    /// at it, so that memory does not grow with a slow peer.
    pub room: Vec<usize>,
    /// All links are to be dropped, and made anew: connections end with a configuration version.
    pub reset: bool,
    /// This node is no member any more, and why: it must end.
    pub displaced: Option<String>,
    /// What this node keeps is less than what others have seen of it, and how that shows: it must end.
    pub damaged: Option<String>,
}

impl Outputs {
    /// Bytes of values at which further reads of one input are refused: thousands of reads may be answered at once.
    pub const VALUE_BYTES_MAX: usize = 32 << 20;

    /// For a cluster of this many nodes, with unlimited room.
    pub fn new(nodes: usize) -> Self {
        Self { room: vec![usize::MAX; nodes], ..Self::default() }
    }

    /// The value of a reply.
    pub fn value(&self, reply: &Reply) -> &[u8] {
        &self.value_bytes[reply.value.clone()]
    }

    /// Forgets everything that was taken out; keeps the allocations.
    pub fn clear(&mut self) {
        self.sends.clear();
        self.records.clear();
        self.replies.clear();
        self.value_bytes.clear();
    }
}

/// What a node may do in its configuration (`protocol.md` §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// It answers Prepares and accepts.
    Voter,
    /// It learns what its earlier incarnations may have accepted.
    Learner {
        /// Whom it has learned from.
        merged: NodeSet,
        /// Whether the other members hold a phase-1 quorum: without one it stays a learner.
        may_end: bool,
    },
    /// It waits until enough members vouch that they never met another incarnation of it.
    Newcomer,
    /// It waits for a configuration version that names it: members know another incarnation.
    Refused,
}

/// What a node knows of its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The version.
    pub version: u32,
    /// What this node may do in it.
    pub vote: Vote,
    /// The incarnation of each member that it knows; 0 if it has met none.
    pub incarnations: Vec<u64>,
}

/// What a node knows of who owns an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The object.
    pub key: Vec<u8>,
    /// Its owner; nobody before anybody has taken it.
    pub owner: Option<NodeId>,
    /// The highest ballot that the node has seen, as in [`Reply::ballot`].
    pub ballot: u64,
    /// Whether this node leads it.
    pub leads: bool,
    /// The slot up to which this node has executed.
    pub applied: u64,
    /// How often the object was taken since somebody had it first.
    pub steals: u64,
}

/// What became of the wish that a node take an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// The node leads it.
    Leads,
    /// It tries: [`Protocol::ownership`] will tell.
    UnderWay,
    /// It does not, and why.
    Refused(&'static str),
}

/// A replication protocol for one shard of one node. See the [module](self) for the contract.
pub trait Protocol {
    /// A link to `peer` is up, which says that it is this incarnation of the member. Nothing that was sent on an earlier one
    /// is still under way.
    fn on_link_up(&mut self, now: Micros, peer: NodeIndex, incarnation: u64, out: &mut Outputs);

    /// The link to `peer` is gone, with everything that was unsent.
    fn on_link_down(&mut self, now: Micros, peer: NodeIndex, out: &mut Outputs);

    /// A frame from `peer`, its checksum right, its shard this one.
    ///
    /// # Errors
    /// If its body is malformed or breaks the protocol. State is as if the rest of the frame had not been sent; the
    /// driver closes the link, which makes both sides start over from what they know.
    fn on_frame(&mut self, now: Micros, peer: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError>;

    /// The keys of the requests that come next, in their order: a hint, which lets a protocol fetch what it knows of all of
    /// them at once. Nothing is promised by it.
    fn foresee(&mut self, _keys: &mut dyn Iterator<Item = &[u8]>) {}

    /// A request of a client of this node. It is answered exactly once.
    fn on_request(&mut self, now: Micros, request: Request<'_>, out: &mut Outputs);

    /// Everything up to `record` is durable.
    fn on_durable(&mut self, now: Micros, record: RecordId, out: &mut Outputs);

    /// Takes a record of an earlier boot's log, in the order in which it was written and before any other input: the state
    /// becomes what the records say, and nothing is sent or answered.
    ///
    /// # Errors
    /// If the record is malformed.
    fn on_replay(&mut self, now: Micros, record: &Record) -> Result<(), FrameError>;

    /// The whole log has been replayed.
    fn end_replay(&mut self, now: Micros);

    /// Begins a checkpoint, between two turns: appends to `frames` everything that is no object, as it is behind the last
    /// record that was handed out. A log whose records up to that one are gone can be replayed behind the checkpoint.
    fn begin_checkpoint(&mut self, _frames: &mut Vec<Bytes>) {}

    /// The next frame of a checkpoint: objects from place `cursor` on (0 at first), about `bytes` of them, and where to go on;
    /// `None` at the end. Objects may be further on than at the checkpoint's beginning: records are replayed over them. At the
    /// end the driver flushes: the checkpoint holds with the records that this gives.
    fn checkpoint_objects(&mut self, _cursor: u64, _bytes: usize) -> (Bytes, Option<u64>) {
        (Bytes::new(), None)
    }

    /// Takes a frame of a checkpoint, in the order in which they were written and before any record.
    ///
    /// # Errors
    /// If the frame is malformed.
    fn on_restore(&mut self, _now: Micros, _frame: &Bytes) -> Result<(), FrameError> {
        Ok(())
    }

    /// The whole checkpoint has been taken: the first record to be replayed, or written, is the one behind `record`.
    fn end_restore(&mut self, _now: Micros, _record: RecordId) {}

    /// Time passes: called about every millisecond while anything is under way, and at least every
    /// [`IDLE_TICK_US`] otherwise.
    fn on_tick(&mut self, now: Micros, out: &mut Outputs);

    /// Ends a turn: see the [module](self).
    fn flush(&mut self, now: Micros, out: &mut Outputs);

    /// When `flush` should be called next though no input came, if a batch is being held open.
    fn flush_at(&self) -> Option<Micros>;

    /// Whether nothing is under way, so that ticks may be [`IDLE_TICK_US`] apart.
    fn is_idle(&self) -> bool;

    /// The replica stops: answers every waiting request with what is certain about it.
    fn on_stop(&mut self, now: Micros, out: &mut Outputs);

    /// Counters since the start, by name, for people and tools.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// Whether a member is linked and alive as another incarnation than this one, which must not take its place.
    fn is_taken(&self, _now: Micros, _peer: NodeIndex, _incarnation: u64) -> bool {
        false
    }

    /// What the node may do in its configuration; `None` if the protocol knows no such thing.
    fn membership(&self) -> Option<Membership> {
        None
    }

    /// What this node keeps of an object's earlier values, the oldest first; `None` if it keeps none of any.
    fn history(&self, _key: &[u8]) -> Option<Vec<Version>> {
        None
    }

    /// Who owns an object, as far as this node knows; `None` if it has never met the object.
    fn ownership(&self, _key: &[u8]) -> Option<Ownership> {
        None
    }

    /// The same of up to `limit` objects, in an order that stays: those behind `after`, or the first ones.
    fn ownerships(&self, _after: Option<&[u8]>, _limit: usize) -> Vec<Ownership> {
        Vec::new()
    }

    /// This node is to own an object.
    fn take(&mut self, _now: Micros, _key: &[u8], _out: &mut Outputs) -> Taking {
        Taking::Refused("this protocol has no owners")
    }
}

/// The longest time between two ticks, in microseconds.
pub const IDLE_TICK_US: u64 = 20_000;
