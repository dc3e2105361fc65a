//! The executor of one core: event loop, links to peers, clients, batching and flush, timers, mailboxes.
//!
//! ```text
//!  reader tasks (one per connection)        one turn task
//!    read a large piece                       mail of other shards, ticks
//!    split frames off, hand them to the       protocol.flush, records durable, flush again
//!    protocol, wake the turn task      ──►    replies into each client's buffer, frames into each link's queue
//!                                             one send per connection that has something
//! ```
//! The task queue of an executor is first in, first out, and all connections that became readable in one turn of the
//! reactor wake their readers before the first of these runs. So the turn task, woken by the first reader, runs after
//! the last: one flush and one send per connection serve them all, and batches form by themselves under load.
//!
//! Everything between two awaits is in `core`, which knows no task; `sessions` holds the tasks, and `web` those of HTTP. A
//! shard shares nothing with the other shards of its node but `node` and `mailbox`.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    notify::Notify,
    protocol::{Micros, Protocol},
    topology::{Cluster, NodeId, NodeIndex, ShardId},
    tuning::Tuning,
    wire::{self, Kind},
};

mod admission;
mod backoff;
mod budget;
mod clients;
mod connection;
mod core;
mod counters;
#[cfg(feature = "sim")]
mod driven;
mod executor;
mod faults;
mod hello;
mod host;
mod links;
mod listen;
mod log;
mod mailbox;
mod node;
mod outbox;
mod poller;
mod receive;
mod recover;
mod rings;
mod session;
mod sessions;
mod slab;
mod web;

pub use hello::{Code, PeerHello, Refusal};

#[cfg(feature = "sim")]
pub(crate) use self::log::CheckpointPart;
pub(crate) use self::{
    admission::ConnectionBounds,
    listen::{LINGER_PATIENCE, Listener},
    log::Log,
};
#[cfg(feature = "sim")]
pub(crate) use self::{
    backoff::Backoff,
    connection::{Connection, Socket},
    core::Next,
    driven::Fill,
    session::{Ended, Reading, Session},
};
pub(crate) use executor::{Doors, Executor, spawn};
pub(crate) use host::Host;
pub(crate) use node::Node;

/// What a protocol is made from, in the thread that runs it.
#[derive(Clone, Debug)]
pub struct ShardContext {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The node's knobs.
    pub tuning: Arc<Tuning>,
    /// Which member this is.
    pub node: NodeIndex,
    /// Which of its shards.
    pub shard: ShardId,
    /// Drawn at random when the node's state began; not 0.
    pub incarnation: u64,
    /// How often the node has started on that state, from 1.
    pub boot: u64,
    /// The time at which the protocol begins, on the clock that its inputs carry.
    pub now: Micros,
    /// For the protocol's random stream: another one for each shard and start.
    pub seed: u64,
}

/// A shard as its tasks share it.
pub(crate) struct Shard<P> {
    core: RefCell<core::Core<P>>,
    /// Wakes the turn task.
    wake: Notify,
    /// When the next turn is due though nothing comes in.
    due_at: Cell<Micros>,
    /// Accepted connections whose tasks have not ended.
    serving: Cell<usize>,
    /// What the executor waits for connections with; none where somebody else drives the shard.
    poller: Option<Rc<poller::Poller>>,
    /// HTTP connections.
    web: web::Web,
    /// What clients hold.
    budget: Rc<budget::Budget>,
    node: Arc<Node>,
    shard: ShardId,
    hello: PeerHello,
    /// The ClientWelcome frame.
    welcome: Bytes,
}

impl<P: Protocol> Shard<P> {
    pub(crate) fn new(
        node: Arc<Node>,
        shard: ShardId,
        protocol: P,
        log: Box<dyn Log>,
        poller: Option<Rc<poller::Poller>>,
    ) -> Rc<Self> {
        let budget = budget::Budget::new(node.tuning.flow.client_memory_bytes_max);
        let welcome = serde_json::to_vec(&node.welcome(shard)).expect("plain fields become JSON");
        Rc::new(Self {
            core: RefCell::new(core::Core::new(Arc::clone(&node), shard, protocol, log, Rc::clone(&budget))),
            wake: Notify::default(),
            due_at: Cell::new(Micros(0)),
            serving: Cell::new(0),
            poller,
            web: web::Web::default(),
            budget,
            hello: node.hello(shard),
            welcome: wire::frame(Kind::ClientWelcome, shard.0, 0, &welcome),
            node,
            shard,
        })
    }

    /// Has the executor's loop ask this shard.
    fn be_asked(self: &Rc<Self>)
    where
        P: 'static,
    {
        if let Some(poller) = &self.poller {
            let shard: Rc<dyn poller::Polled> = self.clone();
            poller.add_shard(Rc::downgrade(&shard));
        }
    }

    /// This node's id.
    pub(crate) fn id(&self) -> NodeId {
        self.node.member().id
    }

    /// A member's id.
    fn cluster_id(&self, node: NodeIndex) -> NodeId {
        self.node.cluster.member(node).id
    }
}

impl<P: Protocol> poller::Polled for Shard<P> {
    fn look(&self) -> bool {
        if self.node.cluster.shards > 1 && self.node.mailboxes.is_woken(self.shard) {
            self.wake.notify();
        }
        if self.node.doors[usize::from(self.shard.0)].is_knocked() {
            self.web.arrived.notify();
        }
        if self.due_at.get() <= self.node.now() {
            self.wake.notify();
        }
        // Readers that a turn had no time for go on before the next.
        let fed = self.core.borrow_mut().feed();
        self.core.borrow().look_at_log() || fed || self.wake.is_set()
    }

    fn turns(&self) -> u64 {
        self.core.borrow().counters.turns
    }

    fn due_in(&self) -> Duration {
        Duration::from_micros(self.due_at.get().since(self.node.now()))
    }
}
