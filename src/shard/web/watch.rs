//! The time limits of a connection. One task per shard looks at all of them now and then: that costs less than timers for
//! each request, and no client can make it cost more.

use std::{
    cell::{Cell, RefCell},
    net::Shutdown,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use glommio::net::TcpStream;
use rustix::net::SendFlags;
use socket2_04::SockRef;

use crate::{
    protocol::Micros,
    shard::budget::{Budget, Held},
};

/// An answer of so many bytes is sent whatever clients hold.
const SMALL_BYTES: usize = 4096;

/// What a connection is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Nothing is asked.
    Idle,
    /// A head is being received.
    Head,
    /// A body is being received.
    Body,
    /// The answer is being worked out.
    Answer,
    /// The answer is being sent.
    Send,
}

/// What is said to somebody whose head does not end.
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: text/plain\r\n\
    content-length: 34\r\n\r\nthe request was not whole in time\n";

/// A connection's stage and how long it may last.
#[derive(Debug)]
pub(super) struct Watch {
    stream: Rc<RefCell<TcpStream>>,
    stage: Cell<Stage>,
    deadline: Cell<Micros>,
    /// When the last answer has to be sent.
    send_by: Cell<Micros>,
    idle_us: u64,
    request_us: u64,
    /// The stage took too long, and the service is to say so.
    expired: Cell<bool>,
    /// No request is read any more.
    stopped: Cell<bool>,
    /// The answer that is being sent, among what clients hold.
    answer: Held,
    budget: Rc<Budget>,
    /// Wakes the connection's task.
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    pub(super) fn new(
        stream: Rc<RefCell<TcpStream>>,
        budget: Rc<Budget>,
        now: Micros,
        idle_us: u64,
        request_us: u64,
    ) -> Self {
        Self {
            answer: Held::new(Some(Rc::clone(&budget)), 0),
            budget,
            stream,
            stage: Cell::new(Stage::Idle),
            send_by: Cell::new(now),
            deadline: Cell::new(now.plus(idle_us)),
            idle_us,
            request_us,
            expired: Cell::new(false),
            stopped: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Bytes came.
    pub(super) fn received(&self, now: impl FnOnce() -> Micros) {
        if self.stage.get() == Stage::Idle {
            self.enter(Stage::Head, now());
        }
    }

    /// A stage begins. The time of a request runs from its first byte, so that of a body has begun with its head.
    pub(super) fn enter(&self, stage: Stage, now: Micros) {
        let goes_on = (self.stage.get(), stage) == (Stage::Head, Stage::Body);
        if !goes_on {
            let limit_us = if stage == Stage::Idle { self.idle_us } else { self.request_us };
            self.deadline.set(now.plus(limit_us));
        }
        self.stage.set(stage);
        self.expired.set(false);
    }

    /// Counts an answer that is about to be sent; false if clients hold as much as they may already.
    pub(super) fn hold_answer(&self, bytes: usize) -> bool {
        self.answer.set(0);
        if bytes > SMALL_BYTES && self.budget.is_spent() {
            return false;
        }
        self.answer.set(bytes);
        true
    }

    /// The socket took everything that it was offered, or not.
    pub(super) fn sent(&self, everything: bool, now: impl FnOnce() -> Micros) {
        match (self.stage.get(), everything) {
            (Stage::Send, true) => {
                self.send_by.set(self.deadline.get());
                self.answer.set(0);
                self.enter(Stage::Idle, now());
            }
            // There was more of the answer: it has the time that it had, however fast it went until now.
            (Stage::Idle, false) => {
                self.stage.set(Stage::Send);
                self.deadline.set(self.send_by.get());
            }
            _ => {}
        }
    }

    /// Ready when the stage has taken too long.
    pub(super) fn poll_expired(&self, context: &Context<'_>) -> Poll<()> {
        if self.expired.get() {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// Looks at the clock: true if the connection's time was over.
    pub(super) fn check(&self, now: Micros) -> bool {
        if self.deadline.get() > now || self.expired.get() {
            return false;
        }
        match self.stage.get() {
            Stage::Body | Stage::Answer => {
                self.expired.set(true);
                // What is said then must be taken in time, too.
                self.deadline.set(now.plus(self.request_us));
                self.wake();
            }
            Stage::Head => {
                let flags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
                // A courtesy: where it does not fit, the end of the stream has to do.
                let _ = SockRef::from(&*self.stream.borrow()).send_with_flags(HEAD_TIMEOUT, flags.bits() as i32);
                self.close();
            }
            Stage::Idle | Stage::Send => self.close(),
        }
        true
    }

    /// Ends the connection both ways: its task finds the end of the stream.
    pub(super) fn close(&self) {
        // It may be gone already; there is nothing else to do then.
        let _ = SockRef::from(&*self.stream.borrow()).shutdown(Shutdown::Both);
        self.stop();
    }

    /// The connection ends with what is under way.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.wake();
    }

    /// Ready when the connection is to end with what is under way.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Has the connection's task woken by the next change.
    pub(super) fn register(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}
