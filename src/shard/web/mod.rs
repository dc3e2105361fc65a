//! HTTP at a shard: hyper over this executor's sockets.
//!
//! One shard of a node accepts on the node's one HTTP address, and hands each connection to the shard that has the fewest.
//! A command is handed to the protocol as soon as its request is whole, like one from a native client, or passed to the
//! shard that its key belongs to; the turn that follows sends one batch for all of them, and wakes the connections whose
//! answers came.
//!
//! Whatever a client does costs its connection and no more: heads and bodies have a longest length, bodies in memory a
//! bound, connections a most, and each stage of a request a time limit (`watch`).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    budget::Held,
    slab::{Key, Slab},
};
use crate::{
    command::Status,
    protocol::{Ownership, Taking},
    store::Version,
};

mod admin;
mod io;
mod server;
mod service;
mod watch;

pub(super) use server::{accept, answer_questions, serve_arrivals, sweep};

/// The HTTP connections of a shard.
#[derive(Debug, Default)]
pub(super) struct Web {
    watches: RefCell<Slab<Rc<watch::Watch>>>,
    /// Wakes whoever serves connections that have arrived.
    pub(super) arrived: crate::notify::Notify,
    /// Wakes the sweeper when the first connection comes.
    first: crate::notify::Notify,
    /// Received bytes pass through it.
    scratch: RefCell<Vec<u8>>,
    /// The shard stops: connections end with the answer that is under way.
    stopping: Cell<bool>,
}

impl Web {
    fn insert(&self, watch: Rc<watch::Watch>) -> Key {
        let key = self.watches.borrow_mut().insert(watch);
        self.first.notify();
        key
    }

    fn remove(&self, key: Key) {
        self.watches.borrow_mut().remove(key);
    }

    /// Lets every connection finish what it is answering.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
        self.watches.borrow_mut().iter_mut().for_each(|(_, watch)| watch.stop());
    }

    /// Ends every connection.
    pub(super) fn close_all(&self) {
        self.watches.borrow_mut().iter_mut().for_each(|(_, watch)| watch.close());
    }
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) status: Status,
    /// The object's version.
    pub(super) version: u64,
    /// The slot that decided it, or 0.
    pub(super) slot: u64,
    /// Whether it was executed before, and nothing was done now.
    pub(super) repeated: bool,
    /// The owner's ballot, or 0.
    pub(super) ballot: u64,
    /// The value read.
    pub(super) value: Bytes,
    /// The memory of the value.
    pub(super) _held: Option<Held>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            status: Status::Overloaded,
            version: 0,
            slot: 0,
            repeated: false,
            ballot: 0,
            value: Bytes::new(),
            _held: None,
        }
    }
}

/// Where a connection waits for the answer to its request: it has one at a time.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Counts requests, so that an answer that comes after its request was given up is not taken for another's.
    serial: Cell<u64>,
    outcome: RefCell<Option<Outcome>>,
    waker: RefCell<Option<Waker>>,
}

/// Names one request of a connection.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    slot: Rc<Slot>,
    serial: u64,
}

impl Ticket {
    /// For the next request of a connection.
    fn next(slot: &Rc<Slot>) -> Self {
        slot.serial.set(slot.serial.get() + 1);
        slot.outcome.take();
        Self { slot: Rc::clone(slot), serial: slot.serial.get() }
    }

    /// Gives the request its answer, if anybody still waits for it.
    pub(super) fn give(&self, outcome: Outcome) {
        if self.slot.serial.get() == self.serial {
            *self.slot.outcome.borrow_mut() = Some(outcome);
            if let Some(waker) = self.slot.waker.take() {
                waker.wake();
            }
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Outcome> {
        if let Some(outcome) = self.slot.outcome.take() {
            return Poll::Ready(outcome);
        }
        *self.slot.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

/// What an HTTP connection may ask of any shard of its node.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Status,
    History(Vec<u8>),
    Owner(Vec<u8>),
    Owners {
        after: Option<Vec<u8>>,
        limit: usize,
    },
    /// To take a key.
    Take(Vec<u8>),
    /// To act out the faults that have changed.
    Faults,
}

/// What it is told.
#[derive(Debug)]
pub(super) enum Answer {
    Status(ShardStatus),
    History(Option<Vec<Version>>),
    Owners(Vec<Ownership>),
    Taking(Taking),
    Done,
}

/// A shard as `/_/status` shows it.
#[derive(Debug, serde::Serialize)]
pub(super) struct ShardStatus {
    pub(super) shard: u16,
    /// Whether the link to each peer is up.
    pub(super) links: BTreeMap<String, bool>,
    /// Requests that wait for an answer.
    pub(super) waiting: usize,
    /// `null` where the protocol knows no such thing.
    pub(super) membership: Option<MembershipStatus>,
    pub(super) counters: BTreeMap<&'static str, u64>,
}

/// What a shard may do in its configuration. The names are part of what `docs/http.md` promises.
#[derive(Debug, serde::Serialize)]
pub(super) struct MembershipStatus {
    /// The configuration's version.
    pub(super) version: u32,
    /// `votes`, `learner`, `new` or `refused`.
    pub(super) vote: &'static str,
    /// How far a learner is; `null` for others.
    pub(super) learner: Option<LearnerStatus>,
}

/// How far a learner is.
#[derive(Debug, serde::Serialize)]
pub(super) struct LearnerStatus {
    /// The members that it has learned from.
    pub(super) learned_from: Vec<String>,
    /// How many others there are; a phase-1 quorum of them is enough.
    pub(super) others: usize,
    /// Whether they hold such a quorum: without one it stays a learner.
    pub(super) may_end: bool,
}

/// A question, and where the answer goes.
type Asked = (Question, async_channel::Sender<Answer>);

/// Questions for one shard at a time: whoever finds it full waits.
const QUESTIONS_MAX: usize = 64;

/// The questions that wait for one shard.
#[derive(Debug)]
pub(super) struct Questions {
    ask: async_channel::Sender<Asked>,
    asked: async_channel::Receiver<Asked>,
}

impl Default for Questions {
    fn default() -> Self {
        let (ask, asked) = async_channel::bounded(QUESTIONS_MAX);
        Self { ask, asked }
    }
}

impl Questions {
    /// Asks; `None` if the shard has stopped.
    async fn ask(&self, question: Question) -> Option<Answer> {
        let (give, given) = async_channel::bounded(1);
        self.ask.send((question, give)).await.ok()?;
        given.recv().await.ok()
    }

    /// The shard stops: those who wait are told so.
    pub(super) fn close(&self) {
        self.asked.close();
        while self.asked.try_recv().is_ok() {}
    }
}
