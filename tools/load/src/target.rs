//! What is driven, as the workers see it: a [`Driver`] reaches the cluster, and gives every worker a [`Target`] of its
//! own. Tests put fakes here; [`NullDriver`] answers at once, for measuring the generator itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wpaxos::command::Status;

/// A request, with everything borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The object.
    pub key: &'a [u8],
    /// The number of the object.
    pub number: u64,
    /// What to do with it.
    pub operation: Operation<'a>,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Reads the value, as the driver was told to.
    Read,
    /// Sets the value.
    Write(&'a [u8]),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The cluster executed it.
    Done(Seen),
    /// It did not, or nobody knows.
    Failed(ErrorKind),
}

/// What an answer tells, as far as a history needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How the request ended.
    pub status: Status,
    /// The object's version after it; 0 if it is not known.
    pub version: u64,
    /// The number of the value that was read; 0 if there is none, or nothing was read.
    pub value: u64,
}

impl Seen {
    /// Nothing but the status.
    pub const fn only(status: Status) -> Self {
        Self { status, version: 0, value: 0 }
    }
}

impl Answer {
    /// What a status counts as: an absent value is an answer like any other.
    pub fn of(status: Status) -> Self {
        match status {
            Status::Ok | Status::NotFound | Status::CasFailed | Status::Duplicate => Self::Done(Seen::only(status)),
            Status::OutcomeUnknown | Status::IdTaken => Self::Failed(ErrorKind::OutcomeUnknown),
            Status::Overloaded => Self::Failed(ErrorKind::Overloaded),
            Status::TimeoutNotDone => Self::Failed(ErrorKind::TimeoutNotDone),
            Status::TimeoutMaybeDone => Self::Failed(ErrorKind::TimeoutMaybeDone),
            Status::BadRequest | Status::IdReused | Status::IdStale => Self::Failed(ErrorKind::BadRequest),
            Status::ShuttingDown => Self::Failed(ErrorKind::ShuttingDown),
        }
    }
}

/// What goes wrong with requests, as the report counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum ErrorKind {
    /// The cluster cannot tell whether a retried request was executed.
    OutcomeUnknown,
    /// A retry was refused, and the attempt before it was never answered: it may have happened.
    RetryRefused,
    /// The cluster refused it: too much in flight.
    Overloaded,
    /// It gave up in time; the request did not happen.
    TimeoutNotDone,
    /// It gave up in time; the request may have happened.
    TimeoutMaybeDone,
    /// The cluster refused it as malformed.
    BadRequest,
    /// The replica was stopping.
    ShuttingDown,
    /// The connection was lost before an answer.
    Disconnected,
    /// The client library did not take it.
    NotTaken,
    /// No answer until the end of the grace time.
    Unanswered,
    /// The schedule was so far behind that it was not even sent.
    Unsent,
}

impl ErrorKind {
    /// All kinds, in order.
    pub const ALL: [Self; 11] = [
        Self::OutcomeUnknown,
        Self::RetryRefused,
        Self::Overloaded,
        Self::TimeoutNotDone,
        Self::TimeoutMaybeDone,
        Self::BadRequest,
        Self::ShuttingDown,
        Self::Disconnected,
        Self::NotTaken,
        Self::Unanswered,
        Self::Unsent,
    ];

    /// Whether the request certainly did not happen; else it may have.
    pub const fn is_certain(self) -> bool {
        match self {
            Self::Overloaded
            | Self::TimeoutNotDone
            | Self::BadRequest
            | Self::ShuttingDown
            | Self::NotTaken
            | Self::Unsent => true,
            Self::OutcomeUnknown
            | Self::RetryRefused
            | Self::TimeoutMaybeDone
            | Self::Disconnected
            | Self::Unanswered => false,
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutcomeUnknown => "outcome_unknown",
            Self::RetryRefused => "retry_refused",
            Self::Overloaded => "overloaded",
            Self::TimeoutNotDone => "timeout_not_done",
            Self::TimeoutMaybeDone => "timeout_maybe_done",
            Self::BadRequest => "bad_request",
            Self::ShuttingDown => "shutting_down",
            Self::Disconnected => "disconnected",
            Self::NotTaken => "not_taken",
            Self::Unanswered => "unanswered",
            Self::Unsent => "unsent",
        }
    }
}

/// Why a target cannot be reached, or no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(pub String);

/// What is known of a cluster before the load begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Its name.
    pub name: String,
    /// Its zones' numbers, ascending.
    pub zones: Vec<u8>,
    /// Its nodes, as `zone.node`.
    pub nodes: Vec<String>,
    /// Shards of each node.
    pub shards: u16,
    /// Executors that run on this machine, as far as is known.
    pub executors_here: usize,
    /// What it says of itself: quorums, durability, tuning, pinning, policy, version.
    pub facts: BTreeMap<String, String>,
}

/// Reaches a cluster.
pub trait Driver: Sync {
    /// What a worker drives. Made and used on the worker's own thread.
    type Target: Target;

    /// What is known of the cluster.
    fn cluster(&self) -> &ClusterInfo;

    /// Connects a worker: lane `n` of the target is a client in zone `lanes[n]`.
    ///
    /// # Errors
    /// If a zone cannot be reached.
    fn connect(&self, lanes: &[u8]) -> Result<Self::Target, TargetError>;
}

/// What one worker drives: some lanes, each a pipelined client in one zone.
pub trait Target {
    /// Takes a request on a lane. It may be sent only with the next [`Target::poll`]. Its answer carries `tag`.
    ///
    /// # Errors
    /// If it is not taken; no answer will follow then.
    fn submit(&mut self, lane: usize, request: Request<'_>, tag: u64) -> Result<(), ErrorKind>;

    /// Sends and receives what it can without waiting; if there was no answer, waits for one for at most `wait`. Each
    /// request that was taken is answered once, with its lane, its tag and how it ended.
    ///
    /// # Errors
    /// If no answer can come any more, on any lane.
    fn poll(&mut self, wait: Duration, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError>;

    /// What servers said when they refused requests, in their own words; a few at most.
    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The time that a worker goes by.
pub trait Clock {
    /// Nanoseconds since the load began.
    fn now_ns(&self) -> u64;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(pub Instant);

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Reaches nobody.
#[derive(Debug)]
pub struct NullDriver {
    cluster: ClusterInfo,
}

impl NullDriver {
    /// Pretends to have zones with these numbers: 1 to `zones`.
    pub fn new(zones: u8) -> Self {
        let zones: Vec<u8> = (1..=zones).collect();
        let cluster = ClusterInfo { name: "null".to_owned(), zones, ..ClusterInfo::default() };
        Self { cluster }
    }
}

impl Driver for NullDriver {
    type Target = NullTarget;

    fn cluster(&self) -> &ClusterInfo {
        &self.cluster
    }

    fn connect(&self, _lanes: &[u8]) -> Result<NullTarget, TargetError> {
        Ok(NullTarget::default())
    }
}

/// Answers every request at the next poll.
#[derive(Debug, Default)]
pub struct NullTarget {
    taken: Vec<(usize, u64)>,
}

impl Target for NullTarget {
    fn submit(&mut self, lane: usize, _request: Request<'_>, tag: u64) -> Result<(), ErrorKind> {
        self.taken.push((lane, tag));
        Ok(())
    }

    fn poll(&mut self, wait: Duration, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        if self.taken.is_empty() {
            std::thread::sleep(wait);
        }
        for (lane, tag) in self.taken.drain(..) {
            answered(lane, tag, Answer::Done(Seen::only(Status::Ok)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_kinds_are_counted_by_position() {
        for (position, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, position, "{}", kind.name());
            assert_eq!(ErrorKind::named(kind.name()), Some(kind));
        }
    }

    #[test]
    fn an_absent_value_is_an_answer_and_a_refusal_is_not() {
        assert_eq!(Answer::of(Status::NotFound), Answer::Done(Seen::only(Status::NotFound)));
        assert_eq!(Answer::of(Status::Overloaded), Answer::Failed(ErrorKind::Overloaded));
    }
}
