//! Mailboxes between the shards of a node: one bounded queue per direction, drained by the shard's own loop.
//!
//! A shard lends at most [`Mailboxes::depth`] requests to each other shard, and an answer needs a place only for a
//! request that was lent; so a queue of answers can never be full.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    task::Waker,
};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;

use crate::{
    command::Status,
    protocol::ReadMode,
    topology::{NodeId, ShardId, ZoneIndex},
};

/// A request for a key of another shard.
#[derive(Debug)]
pub(super) struct LentRequest {
    /// The lender's token, handed back with the answer.
    pub(super) token: u64,
    /// The client's zone.
    pub(super) zone: ZoneIndex,
    /// How to read.
    pub(super) read: ReadMode,
    /// The encoded command, checked by the lender.
    pub(super) command: Bytes,
}

/// The answer to a [`LentRequest`].
#[derive(Debug)]
pub(super) struct LentAnswer {
    /// The lender's token.
    pub(super) token: u64,
    /// How the request ended.
    pub(super) status: Status,
    /// The object's version.
    pub(super) version: u64,
    /// The slot that decided it, or 0.
    pub(super) slot: u64,
    /// Whether it was executed before, and nothing was done now.
    pub(super) repeated: bool,
    /// The owner's ballot, or 0.
    pub(super) ballot: u64,
    /// The object's owner.
    pub(super) owner: Option<NodeId>,
    /// The value read.
    pub(super) value: Bytes,
}

/// All mailboxes of a node.
#[derive(Debug)]
pub(super) struct Mailboxes {
    boxes: Vec<Mailbox>,
    depth: usize,
}

/// What one shard receives.
#[derive(Debug)]
struct Mailbox {
    /// By sender.
    requests: Vec<ArrayQueue<LentRequest>>,
    answers: Vec<ArrayQueue<LentAnswer>>,
    /// Whether the shard has gone through its queues and has to be woken for more.
    /// Bytes of values in `answers`.
    answer_bytes: AtomicUsize,
    sleeping: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Requests under way between two shards, at the least and at the most: the queues are allocated in full.
const DEPTH_MIN: usize = 64;
const DEPTH_MAX: usize = 1024;
/// Bytes of values that lie in one shard's mailbox: further reads are refused.
const ANSWER_BYTES_MAX: usize = 16 << 20;

impl Mailboxes {
    pub(super) fn new(shards: u16) -> Self {
        let shards = usize::from(shards);
        let depth = (4096 / shards).clamp(DEPTH_MIN, DEPTH_MAX);
        let mailbox = |to: usize| Mailbox {
            requests: (0..shards).map(|from| ArrayQueue::new(if from == to { 1 } else { depth })).collect(),
            answers: (0..shards).map(|from| ArrayQueue::new(if from == to { 1 } else { depth })).collect(),
            answer_bytes: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            waker: Mutex::new(None),
        };
        Self { boxes: (0..shards).map(mailbox).collect(), depth }
    }

    /// How many requests one shard may have lent to one other.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Puts a request into `to`'s mailbox. The caller counts, and wakes `to` at the end of its turn.
    pub(super) fn lend(&self, from: ShardId, to: ShardId, request: LentRequest) {
        let lent = self.boxes[usize::from(to.0)].requests[usize::from(from.0)].push(request);
        assert!(lent.is_ok(), "a shard lends no more than the depth of the queue");
    }

    /// Whether `to` takes another value of so many bytes in an answer, beside those that it has not taken yet.
    pub(super) fn takes(&self, to: ShardId, bytes: usize) -> bool {
        bytes == 0 || self.boxes[usize::from(to.0)].answer_bytes.load(Ordering::Relaxed) < ANSWER_BYTES_MAX
    }

    /// Puts an answer into the lender's mailbox.
    pub(super) fn answer(&self, from: ShardId, to: ShardId, answer: LentAnswer) {
        if !answer.value.is_empty() {
            self.boxes[usize::from(to.0)].answer_bytes.fetch_add(answer.value.len(), Ordering::Relaxed);
        }
        let given = self.boxes[usize::from(to.0)].answers[usize::from(from.0)].push(answer);
        assert!(given.is_ok(), "there is a place for the answer to each request that was lent");
    }

    /// Wakes `to` if it has gone through its queues since it was last woken.
    pub(super) fn wake(&self, to: ShardId) {
        let mailbox = &self.boxes[usize::from(to.0)];
        fence(Ordering::SeqCst);
        if mailbox.sleeping.load(Ordering::Relaxed)
            && mailbox.sleeping.swap(false, Ordering::AcqRel)
            && let Some(waker) = mailbox.waker.lock().expect("nothing panics under this lock").as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// The next request that `from` has lent to `to`.
    pub(super) fn next_request(&self, from: ShardId, to: ShardId) -> Option<LentRequest> {
        self.boxes[usize::from(to.0)].requests[usize::from(from.0)].pop()
    }

    /// The next answer of `from` to what `to` has lent it.
    pub(super) fn next_answer(&self, from: ShardId, to: ShardId) -> Option<LentAnswer> {
        let mailbox = &self.boxes[usize::from(to.0)];
        let answer = mailbox.answers[usize::from(from.0)].pop()?;
        if !answer.value.is_empty() {
            mailbox.answer_bytes.fetch_sub(answer.value.len(), Ordering::Relaxed);
        }
        Some(answer)
    }

    /// `to` is about to wait, and is to be woken through `waker`. False if something has come in meanwhile: then it must
    /// go through its queues again.
    pub(super) fn sleep(&self, to: ShardId) -> bool {
        let mailbox = &self.boxes[usize::from(to.0)];
        mailbox.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let empty =
            mailbox.requests.iter().all(ArrayQueue::is_empty) && mailbox.answers.iter().all(ArrayQueue::is_empty);
        if !empty {
            mailbox.sleeping.store(false, Ordering::Relaxed);
        }
        empty
    }

    /// Whether `to` was woken since it last went to sleep.
    pub(super) fn is_woken(&self, to: ShardId) -> bool {
        !self.boxes[usize::from(to.0)].sleeping.load(Ordering::Acquire)
    }

    /// How `to` is woken; `None` when it stops, so that nobody wakes a task that is gone.
    pub(super) fn set_waker(&self, to: ShardId, waker: Option<Waker>) {
        *self.boxes[usize::from(to.0)].waker.lock().expect("nothing panics under this lock") = waker;
    }
}
