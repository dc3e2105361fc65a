//! What the shards of one node share: who it is, its clock, its mailboxes, and the order to stop.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::{
    admission::{Admission, ConnectionBounds, Door},
    faults::Faults,
    hello::PeerHello,
    mailbox::Mailboxes,
    web::Questions,
};
use crate::{
    api::native::{ClientWelcome, WelcomeNode},
    failure::Failure,
    protocol::Micros,
    topology::{Cluster, Member, NodeIndex, ShardId},
    tuning::Tuning,
    wal::LogSpec,
    wire::WIRE_VERSION,
};

/// Where a node takes the time from.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The machine's monotonic clock, from this moment on.
    Monotonic(Instant),
    /// Whoever drives the node says what time it is, in microseconds.
    #[cfg(feature = "sim")]
    Driven(std::sync::atomic::AtomicU64),
}

impl Clock {
    fn now(&self) -> Micros {
        match self {
            Self::Monotonic(started) => Micros(started.elapsed().as_micros() as u64),
            #[cfg(feature = "sim")]
            Self::Driven(now) => Micros(now.load(Ordering::Relaxed)),
        }
    }
}

/// A node of this process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) tuning: Arc<Tuning>,
    pub(crate) index: NodeIndex,
    /// Drawn when the state began.
    pub(crate) incarnation: u64,
    /// How often it has started on that state, from 1.
    pub(crate) boot: u32,
    /// The log of each shard; none where nothing is kept.
    pub(crate) logs: Vec<LogSpec>,
    /// Shards whose logs were closed with everything synced.
    logs_closed: AtomicUsize,
    /// What a report must say, by name.
    pub(crate) facts: BTreeMap<String, String>,
    /// Set to stop this node; each shard sees it within a tick.
    stop: AtomicBool,
    /// Set from outside, for this node among others.
    stop_all: Arc<AtomicBool>,
    pub(super) mailboxes: Mailboxes,
    pub(super) faults: Faults,
    /// The clients that are connected.
    pub(super) admission: Arc<Admission>,
    /// HTTP connections on their way to each shard.
    pub(super) doors: Vec<Door>,
    /// Questions for each shard.
    pub(super) questions: Vec<Questions>,
    clock: Clock,
    failure: Mutex<Option<Failure>>,
    /// Whether each link is up, by shard, then by node.
    links: Vec<AtomicBool>,
}

impl Node {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        tuning: Arc<Tuning>,
        index: NodeIndex,
        incarnation: u64,
        facts: BTreeMap<String, String>,
        stop_all: Arc<AtomicBool>,
    ) -> Self {
        let links = cluster.nodes.len() * usize::from(cluster.shards);
        Self {
            mailboxes: Mailboxes::new(cluster.shards),
            faults: Faults::default(),
            admission: Admission::new(ConnectionBounds::new(
                usize::MAX / 2,
                cluster.shards,
                &tuning,
                cluster.http.connections_max,
            )),
            doors: (0..cluster.shards).map(|_| Door::default()).collect(),
            questions: (0..cluster.shards).map(|_| Questions::default()).collect(),
            clock: Clock::Monotonic(Instant::now()),
            failure: Mutex::new(None),
            links: (0..links).map(|_| AtomicBool::new(false)).collect(),
            cluster,
            tuning,
            index,
            incarnation,
            boot: 1,
            logs: Vec::new(),
            logs_closed: AtomicUsize::new(0),
            facts,
            stop: AtomicBool::new(false),
            stop_all,
        }
    }

    /// The same node, on the `boot`th start of a state that it has logs of.
    pub(crate) fn logged(self, boot: u32, logs: Vec<LogSpec>) -> Self {
        Self { boot, logs, ..self }
    }

    /// The same node with bounds on its connections.
    pub(crate) fn bounded(self, bounds: ConnectionBounds) -> Self {
        Self { admission: Admission::new(bounds), ..self }
    }

    /// A shard's log was closed with everything synced.
    pub(crate) fn log_closed(&self) {
        self.logs_closed.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether all were.
    pub(crate) fn all_logs_closed(&self) -> bool {
        self.logs_closed.load(Ordering::Acquire) == self.logs.len()
    }

    /// This node among the members.
    pub(crate) fn member(&self) -> &Member {
        self.cluster.member(self.index)
    }

    /// Microseconds since the start, monotonic.
    pub(super) fn now(&self) -> Micros {
        self.clock.now()
    }

    /// The same node on another clock, on its `boot`th start.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(self, now: Micros, boot: u32) -> Self {
        Self { clock: Clock::Driven(std::sync::atomic::AtomicU64::new(now.0)), boot, ..self }
    }

    /// Sets a driven clock.
    #[cfg(feature = "sim")]
    pub(crate) fn set_now(&self, now: Micros) {
        match &self.clock {
            Clock::Driven(time) => time.store(now.0, Ordering::Relaxed),
            Clock::Monotonic(_) => unreachable!("a real clock is not set"),
        }
    }

    /// Ends the whole node because it cannot go on.
    pub(crate) fn fail(&self, failure: Failure) {
        tracing::error!(node = %self.member().id, "{failure}");
        let mut first = self.failure.lock().expect("nothing panics under this lock");
        first.get_or_insert(failure);
        drop(first);
        self.ask_to_stop();
    }

    /// Why it ended, if not because it was told to.
    pub(crate) fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().expect("nothing panics under this lock").take()
    }

    /// Whether it has been told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.stop_all.load(Ordering::Acquire)
    }

    /// Tells it to stop.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Records whether a link is up.
    pub(super) fn set_link(&self, shard: ShardId, peer: NodeIndex, up: bool) {
        self.links[usize::from(shard.0) * self.cluster.nodes.len() + peer.index()].store(up, Ordering::Release);
    }

    /// Whether a link is up.
    pub(super) fn is_link_up(&self, shard: ShardId, peer: NodeIndex) -> bool {
        self.links[usize::from(shard.0) * self.cluster.nodes.len() + peer.index()].load(Ordering::Acquire)
    }

    /// The links that are down.
    pub(crate) fn links_down(&self) -> impl Iterator<Item = (ShardId, NodeIndex)> {
        let nodes = self.cluster.nodes.len();
        self.links.iter().enumerate().filter_map(move |(place, up)| {
            let (shard, peer) = (ShardId((place / nodes) as u16), NodeIndex((place % nodes) as u8));
            (peer != self.index && !up.load(Ordering::Acquire)).then_some((shard, peer))
        })
    }

    /// What it says of itself to peers.
    pub(super) fn hello(&self, shard: ShardId) -> PeerHello {
        PeerHello {
            protocol: WIRE_VERSION,
            cluster: self.cluster.name.clone(),
            configuration: format!("{:016x}", self.cluster.fingerprint()),
            node: self.member().id.to_string(),
            incarnation: self.incarnation,
            boot: u64::from(self.boot),
            shard: shard.0,
            shards: self.cluster.shards,
        }
    }

    /// What it says of the cluster to clients.
    pub(super) fn welcome(&self, shard: ShardId) -> ClientWelcome {
        let node = |member: &Member| WelcomeNode {
            id: member.id.to_string(),
            shards: member.shards.iter().map(ToString::to_string).collect(),
            http: member.http.map(|address| address.to_string()),
        };
        ClientWelcome {
            cluster: self.cluster.name.clone(),
            node: self.member().id.to_string(),
            shard: shard.0,
            shards: self.cluster.shards,
            nodes: self.cluster.nodes.iter().map(node).collect(),
            facts: self.facts.clone(),
        }
    }
}
