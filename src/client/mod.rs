//! The client library: topology-aware, pipelined, single-threaded. Every tool goes through it.
//!
//! # The contract
//! A [`Client`] belongs to one thread and never blocks outside [`Client::connect`], [`Client::poll`] and the calls that
//! say so. Requests go in through [`Client::submit`], each with a `tag` of the caller's; answers come out of
//! [`Client::poll`], **exactly one [`Completion`] per submitted request**, in any order, matched by that tag.
//!
//! - **Where a request goes.** The key decides the shard, the client's zone the nodes; within the zone the key decides the
//!   node, so that leading spreads over it. Answers name the owner; [`Hints`] says whether to go there directly from then
//!   on. Other zones are used only while no node of the own zone can be.
//! - **When a node fails.** A request whose connection breaks, or that a silent node holds for
//!   [`Options::attempt_timeout`], is sent again through another node, with the same command id and marked as a retry: the
//!   replicas execute it once (`protocol.md` §7). A request that was refused (overloaded, stopping) is sent elsewhere after a
//!   growing pause. All of it happens within [`Options::request_timeout`], inside `poll`.
//! - **What is certain.** [`Outcome::Refused`] means that the command did not happen and will not. As soon as one attempt was
//!   left unanswered that is no longer known, whatever later attempts are told: then it is [`Outcome::Ambiguous`].
//! - **What it costs.** Requests that are submitted between two polls travel in one frame and one write per connection;
//!   answers are handed out as views of the receive buffer. In steady state no request allocates.
//!
//! ```
//! use std::time::Duration;
//! use wpaxos::{client::{Client, Options, Outcome}, command::Action, local::{LocalCluster, LocalOptions}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any cluster would do; this one lives in our own process.
//! let cluster = LocalCluster::start(LocalOptions { shards: 2, ..LocalOptions::default() })?;
//! let mut client = Client::connect(Options::to(cluster.seeds()))?;
//!
//! // Pipelined: many requests in flight, completions in any order.
//! for tag in 0..100u64 {
//!     client.submit(Action::Put(b"value"), format!("key-{tag}").as_bytes(), tag)?;
//! }
//! let mut done = 0;
//! while client.in_flight() > 0 {
//!     client.poll(Duration::from_millis(100), &mut |completion| match completion.outcome {
//!         Outcome::Done => done += 1,
//!         other => panic!("{} failed: {other:?}", completion.tag),
//!     })?;
//! }
//! assert_eq!(done, 100);
//!
//! // Blocking: one request, or one call for many keys, whichever shards and owners they have.
//! assert_eq!(client.get(b"no such key")?, None);
//! let answers = client.get_many(&["key-1", "key-99", "no such key"])?;
//! assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok(Some((value, _))) if value == b"value")).count(), 2);
//! # cluster.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! # For those who know Paxi's Go client
//! | there | here |
//! |---|---|
//! | `Get`, `Put` | [`Client::get`], [`Client::put`]; an error is never an empty value |
//! | `QuorumGet`, `-read` | [`Client::get`]: in [`ReadMode::Confirm`], the default, a quorum confirms the owner |
//! | `MultiGet` | [`Client::get_many`]; nothing hangs when a node fails |
//! | one goroutine for each request | [`Client::submit`] and [`Client::poll`] |
//! | `Consensus` | [`admin::Admin::consensus`], which says where replicas part and who did not answer |
//! | `Crash`, `Drop`, `Partition` | [`admin::Admin`], by way of [`Client::admin`] |
//! | - | [`Client::delete`], [`Client::compare_and_swap`], [`Client::stats`] |

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    io,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    api::native::ClientWelcome,
    command::{Action, CommandError, NewCommand, Op, Status},
    protocol::{Micros, ReadMode},
    topology::{NodeId, token_of},
};

pub use blocking::{ReadAnswer, RequestError, Swap};

use {connection::Connection, requests::Requests, routing::Routing};

pub mod admin;
mod blocking;
mod connection;
mod consensus;
mod driver;
mod failover;
mod handshake;
mod requests;
mod routing;

/// How to reach a cluster, and what to do when parts of it do not answer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses to start from, `host:port`: any shard of any node. At least one.
    pub seeds: Vec<String>,
    /// The cluster's name; any cluster if absent.
    pub cluster: Option<String>,
    /// The zone that this client is in, from 1; the zone of the first node that answers if absent.
    pub zone: Option<u8>,
    /// The `client` of all commands, not 0; random if absent, which is safe. Never give the same to two clients that run at
    /// once, and never without [`Self::first_id`].
    pub client_id: Option<u64>,
    /// The id of the first command, not 0; the others follow. With a [`Self::client_id`] that was in use before, it has to be
    /// above all ids that it ever gave: replicas take a command whose id they know for one that was executed. By the wall
    /// clock if absent, which needs no more than to differ from client to client.
    pub first_id: Option<u64>,
    /// From `submit` to a definite end. Default 6 s.
    pub request_timeout: Duration,
    /// How long one node may leave a request unanswered before another is asked, and how long a connection may take to
    /// come up. Default 1 s.
    pub attempt_timeout: Duration,
    /// How often one request may be sent without being refused. Default 4.
    pub attempts_max: u32,
    /// How long [`Client::connect`] goes on trying the seeds. Default 5 s.
    pub connect_timeout: Duration,
    /// Whether to send requests straight to the owner that answers name. Default [`Hints::Any`].
    pub follow_hints: Hints,
    /// How Gets are to be answered. Default [`ReadMode::Confirm`].
    pub read: ReadMode,
    /// How long requests may wait for company while an answer is on its way on their connection; 0 writes them at the next
    /// flush. Nothing waits on a quiet connection. Default 200 µs.
    pub linger: Duration,
    /// The most requests in flight; `submit` refuses more. Default 65,536.
    pub in_flight_max: usize,
    /// The most bytes of commands in flight; `submit` refuses more. Default 256 MiB.
    pub in_flight_bytes_max: usize,
}

const MILLISECOND: Duration = Duration::from_millis(1);
/// So that ids never overflow.
const FIRST_ID_MAX: u64 = u64::MAX / 2;

impl Options {
    /// The defaults, with these seeds: addresses or `host:port`.
    pub fn to<S: ToString>(seeds: impl IntoIterator<Item = S>) -> Self {
        Self { seeds: seeds.into_iter().map(|seed| seed.to_string()).collect(), ..Self::default() }
    }

    fn check(&self) -> Result<(), ClientError> {
        let wrong = |what| Err(ClientError::Options(what));
        match self {
            _ if self.seeds.is_empty() => Err(ClientError::NoSeeds),
            _ if self.client_id == Some(0) => wrong("client_id must not be 0"),
            _ if self.client_id.is_some() && self.first_id.is_none() => {
                wrong("client_id needs first_id, a number above all ids that this client has ever given its commands")
            }
            _ if self.first_id.is_some_and(|first| first == 0 || first > FIRST_ID_MAX) => {
                wrong("first_id must be from 1 to 9,223,372,036,854,775,807")
            }
            _ if self.request_timeout < MILLISECOND => wrong("request_timeout must be at least 1 ms"),
            _ if self.attempt_timeout < MILLISECOND => wrong("attempt_timeout must be at least 1 ms"),
            _ if self.attempts_max == 0 => wrong("attempts_max must be at least 1"),
            _ if self.in_flight_max == 0 => wrong("in_flight_max must be at least 1"),
            _ if self.in_flight_max > 1 << 24 => wrong("in_flight_max must be at most 16,777,216"),
            _ => Ok(()),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            cluster: None,
            zone: None,
            client_id: None,
            first_id: None,
            request_timeout: Duration::from_secs(6),
            attempt_timeout: Duration::from_secs(1),
            attempts_max: 4,
            connect_timeout: Duration::from_secs(5),
            follow_hints: Hints::Any,
            read: ReadMode::Confirm,
            linger: Duration::from_micros(200),
            in_flight_max: 1 << 16,
            in_flight_bytes_max: 256 << 20,
        }
    }
}

/// Whether requests go straight to the owner that earlier answers named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Hints {
    /// Always.
    #[default]
    Any,
    /// If the owner is in the client's own zone.
    SameZone,
    /// Never: the node that the key decides passes them on.
    Never,
}

/// How a request ended. Views are valid during the callback only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion<'a> {
    /// As given to [`Client::submit`].
    pub tag: u64,
    /// What the request was; `op.is_write()` tells reads from writes.
    pub op: Op,
    /// How it ended.
    pub outcome: Outcome<'a>,
    /// The object's version after it, or as read; 0 if unknown.
    pub version: u64,
    /// The slot that decided it; 0 if none or unknown.
    pub slot: u64,
    /// The owner's ballot without its version; 0 if unknown.
    pub ballot: u64,
    /// Who owns the object, as far as the node that answered knows.
    pub owner: Option<NodeId>,
    /// The node that answered; `None` if none did.
    pub answered_by: Option<NodeId>,
    /// How often it was sent: 1 without trouble, 0 if it never was.
    pub attempts: u32,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// A Get's value.
    Value(&'a [u8]),
    /// A write that took effect.
    Done,
    /// The object has no value: nothing to read or delete.
    NotFound,
    /// The object was not as CompareAndSwap expected.
    CasFailed,
    /// It was executed, once, by an earlier attempt; what came of it is no longer known.
    Duplicate,
    /// It did not happen and will not. [`Status::TimeoutNotDone`] also if it could not be sent in time.
    Refused(Status),
    /// It may have happened, or may still.
    Ambiguous(Ambiguity),
}

impl Outcome<'_> {
    /// Whether the cluster decided the request's effect, or lack of it.
    pub const fn is_executed(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Ambiguous(_))
    }
}

/// Why nobody knows whether a command happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ambiguity {
    /// No answer came in time.
    #[error("no answer came in time")]
    TimedOut,
    /// The connection broke, once more than a request may be sent again.
    #[error("the connection broke before an answer came")]
    ConnectionLost,
    /// A replica gave up on it ([`Status::TimeoutMaybeDone`]).
    #[error("the replica gave up waiting for the decision")]
    ReplicaTimedOut,
    /// A replica could not judge the retry ([`Status::OutcomeUnknown`]).
    #[error("the replica no longer knows whether an earlier attempt was executed")]
    OutcomeUnknown,
    /// A command of this client with the same id was executed before ([`Status::IdTaken`]): [`Options::first_id`] was too low.
    #[error("a command with the same client and id was executed before, this one or another")]
    IdTaken,
    /// A retry was refused, but an attempt before it went unanswered.
    #[error("a retry was refused ({0:?}), an attempt before it went unanswered")]
    RetryRefused(Status),
}

/// Why there is no client, or why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No seed was given.
    #[error("no seed given: name at least one shard's address as host:port")]
    NoSeeds,
    /// An option is out of range.
    #[error("{0}")]
    Options(&'static str),
    /// No seed could be reached in time.
    #[error("no seed answered within {waited:?}: {reasons}")]
    Unreachable {
        /// For how long it was tried.
        waited: Duration,
        /// Each seed and what went wrong with it last.
        reasons: String,
    },
    /// A node refused the hello.
    #[error("{address} refused the connection: {reason}")]
    Refused {
        /// Whose answer it is.
        address: String,
        /// The node's own words.
        reason: String,
    },
    /// A node belongs to another cluster.
    #[error("{address} belongs to cluster '{found}', not to '{expected}'")]
    Cluster {
        /// Whose answer it is.
        address: String,
        /// The name in [`Options::cluster`].
        expected: String,
        /// The name that it gave.
        found: String,
    },
    /// A node's answer makes no sense.
    #[error("{address} gave a malformed answer: {reason}")]
    Malformed {
        /// Whose answer it is.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cluster has no such zone.
    #[error("the cluster has no zone {zone}; it has {known}")]
    Zone {
        /// The zone in [`Options::zone`].
        zone: u8,
        /// The zones that there are.
        known: String,
    },
    /// The operating system failed us.
    #[error("cannot wait for sockets: {0}")]
    Io(#[from] io::Error),
}

/// Why a request was not taken. Nothing was sent, and no [`Completion`] will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A part of it is empty or too long.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A no-op is not for clients.
    #[error("a no-op cannot be submitted")]
    Noop,
    /// As much is in flight as the options allow: poll first.
    #[error("{requests} requests of {bytes} bytes are in flight, the most that the options allow")]
    Full {
        /// Requests in flight.
        requests: usize,
        /// Bytes of their commands.
        bytes: usize,
    },
}

/// What a client has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests taken by `submit`.
    pub submitted: u64,
    /// Completions handed out.
    pub completed: u64,
    /// Requests sent again, whatever for.
    pub resent: u64,
    /// Answers to requests that had ended already.
    pub late_answers: u64,
    /// Connections that came up.
    pub connected: u64,
    /// Connections that broke, were refused or did not come up.
    pub failed: u64,
    /// Frames written.
    pub frames_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Bytes written.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// System calls that wrote.
    pub writes: u64,
    /// System calls that read.
    pub reads: u64,
}

/// A client of one cluster, for one thread. See the [module](self) for the contract.
pub struct Client {
    options: Options,
    welcome: ClientWelcome,
    client_id: u64,
    routing: Routing,
    requests: Requests,
    /// By node, then shard.
    connections: Vec<Connection>,
    /// Those that have something to write.
    dirty: Vec<usize>,
    /// Requests whose end was decided here and not by an answer; they stay open until they are handed out.
    ended: Vec<(u64, Outcome<'static>)>,
    poll: mio::Poll,
    events: mio::Events,
    started: Instant,
    now: Micros,
    /// Until when requests that wait for company may wait.
    held_until: Micros,
    /// No connection needs attention before this.
    connections_due: Micros,
    /// State of a small generator, for jitter only.
    random: u64,
    counters: Counters,
}

impl Client {
    /// Asks the seeds in turn for the cluster, until one answers. Blocks for at most [`Options::connect_timeout`].
    ///
    /// # Errors
    /// If an option is out of range, no seed answers in time, all seeds refuse, or what they say does not fit.
    pub fn connect(options: Options) -> Result<Self, ClientError> {
        options.check()?;
        let client_id = options.client_id.unwrap_or_else(random_nonzero);
        let (address, welcome) = handshake::ask_seeds(&options, client_id)?;
        let routing = Routing::new(&welcome, &address, options.zone, options.follow_hints)?;
        let connections = connections_of(&welcome, &routing);
        // A random client has no earlier ids, whatever the clock says. That ids are high lets replicas judge retries: what they
        // have forgotten of other clients is below, as long as those began earlier.
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let first_id = options.first_id.unwrap_or(since_1970.as_micros() as u64 + 1);
        Ok(Self {
            requests: Requests::new(first_id),
            options,
            welcome,
            client_id,
            routing,
            connections,
            dirty: Vec::new(),
            ended: Vec::new(),
            poll: mio::Poll::new()?,
            events: mio::Events::with_capacity(256),
            started: Instant::now(),
            now: Micros(0),
            held_until: Micros(u64::MAX),
            connections_due: Micros(u64::MAX),
            random: random_nonzero(),
            counters: Counters::default(),
        })
    }

    /// Takes a request: encodes it for the shard of `key` and keeps a copy for sending it again. Nothing is written
    /// before the next [`Self::flush`] or [`Self::poll`].
    ///
    /// # Errors
    /// If it cannot be encoded, or too much is in flight. It was not taken then.
    pub fn submit(&mut self, action: Action<'_>, key: &[u8], tag: u64) -> Result<(), SubmitError> {
        if action == Action::Noop {
            return Err(SubmitError::Noop);
        }
        let (requests, bytes) = (self.requests.len(), self.requests.bytes());
        if requests >= self.options.in_flight_max || bytes >= self.options.in_flight_bytes_max {
            return Err(SubmitError::Full { requests, bytes });
        }
        if self.dirty.is_empty() {
            self.update_clock(); // Once for all that go out together.
        }
        let request = self.requests.open();
        let id = request.id;
        let command = NewCommand { client: self.client_id, id, retry: false, key, action };
        if let Err(error) = command.encode(&mut request.command) {
            self.requests.cancel(id);
            return Err(error.into());
        }
        request.tag = tag;
        request.token = token_of(key);
        request.submitted = self.now;
        request.op = op_of(&action);
        let command_bytes = request.command.len();
        self.requests.opened(command_bytes);
        self.counters.submitted += 1;
        self.dispatch(id);
        Ok(())
    }

    /// Sends what was submitted, receives, and hands each request that ended to `on`; also reconnects and fails over.
    /// Waits up to `timeout` for at least one to end, not at all with a timeout of 0. Returns how many ended.
    ///
    /// # Errors
    /// If the operating system cannot wait for sockets. What goes wrong with a node is never an error here.
    pub fn poll(&mut self, timeout: Duration, on: &mut dyn FnMut(Completion<'_>)) -> Result<usize, ClientError> {
        self.update_clock();
        let until = self.now.plus(micros_of(timeout));
        let before = self.counters.completed;
        loop {
            self.write_dirty();
            self.deliver_ended(on);
            let ended = self.counters.completed != before;
            self.wait_and_receive(if ended { self.now } else { until }, on)?;
            self.run_timers(); // After receiving: a caller who was away must not take waiting answers for silence.
            self.deliver_ended(on);
            if self.counters.completed != before || self.now >= until {
                self.write_dirty();
                return Ok((self.counters.completed - before) as usize);
            }
        }
    }

    /// Writes what was submitted, as far as the sockets take it, without waiting. Returns after how long something that now
    /// waits for company ([`Options::linger`]) has to be flushed, if anything does and no answer comes before.
    pub fn flush(&mut self) -> Option<Duration> {
        self.update_clock();
        self.write_dirty();
        (self.held_until != Micros(u64::MAX)).then(|| Duration::from_micros(self.held_until.since(self.now)))
    }

    /// How many submitted requests have not ended yet.
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// What the first node to answer said of the cluster: its nodes, shards and facts.
    pub fn cluster(&self) -> &ClientWelcome {
        &self.welcome
    }

    /// The nodes, sorted by id.
    pub fn nodes(&self) -> &[NodeId] {
        self.routing.nodes()
    }

    /// What asks single nodes over HTTP, at the addresses that the cluster named. Nothing is sent yet; nodes without HTTP
    /// are known, and say so when they are asked.
    ///
    /// # Errors
    /// [`ClientError::Malformed`] if an address is none.
    pub fn admin(&self) -> Result<admin::Admin, ClientError> {
        let mut members = Vec::with_capacity(self.welcome.nodes.len());
        for node in &self.welcome.nodes {
            let http = node.http.as_deref().map(connection::resolve).transpose();
            let (Ok(id), Ok(http)) = (node.id.parse(), http) else {
                let reason = format!("the HTTP address {:?} of node {}", node.http, node.id);
                return Err(ClientError::Malformed { address: self.welcome.node.clone(), reason });
            };
            members.push((id, http));
        }
        Ok(admin::Admin::of_members(members))
    }

    /// How many shards every node has.
    pub fn shards(&self) -> u16 {
        self.welcome.shards
    }

    /// The zone that this client takes itself to be in.
    pub fn zone(&self) -> u8 {
        self.routing.zone()
    }

    /// The `client` of its commands.
    pub fn client_id(&self) -> u64 {
        self.client_id
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn update_clock(&mut self) {
        self.now = Micros(micros_of(self.started.elapsed()));
    }

    fn jitter(&mut self) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u8
    }
}

/// Readable when [`Client::poll`] has something to receive: for a thread that waits for several clients at once. It must
/// still poll each of them now and then, because a client has timers.
impl std::os::fd::AsFd for Client {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut client = f.debug_struct("Client");
        client.field("cluster", &self.welcome.cluster).field("id", &self.client_id).field("zone", &self.zone());
        client.field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

fn connections_of(welcome: &ClientWelcome, routing: &Routing) -> Vec<Connection> {
    let mut nodes: Vec<_> = welcome.nodes.iter().collect();
    nodes.sort_by_key(|node| node.id.parse::<NodeId>().ok().and_then(|id| routing.index_of(id)));
    let shards = nodes.iter().flat_map(|node| (0..).zip(&node.shards));
    shards.map(|(shard, address)| Connection::new(address.clone(), shard)).collect()
}

fn micros_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn random_nonzero() -> u64 {
    RandomState::new().hash_one(Instant::now()).max(1)
}

fn op_of(action: &Action<'_>) -> Op {
    match action {
        Action::Noop => Op::Noop,
        Action::Get => Op::Get,
        Action::Put(_) => Op::Put,
        Action::Delete => Op::Delete,
        Action::CompareAndSwap { .. } => Op::CompareAndSwap,
    }
}

#[cfg(test)]
pub(crate) mod tests;
