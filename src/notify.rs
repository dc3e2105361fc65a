//! Waking one task of this executor.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// A flag that one task waits for. Setting it twice before the task runs wakes it once.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Notify {
    /// Sets the flag and wakes the task.
    pub(crate) fn notify(&self) {
        if !self.set.replace(true)
            && let Some(waiter) = self.waiter.borrow().as_ref()
        {
            waiter.wake_by_ref();
        }
    }

    /// Whether the flag is set: the task has been woken and has not run since.
    pub(crate) fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Takes the flag.
    pub(crate) fn take(&self) -> bool {
        self.set.replace(false)
    }

    /// Takes the flag, or has the task woken when it is set.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.take() {
            return Poll::Ready(());
        }
        let mut waiter = self.waiter.borrow_mut();
        if !waiter.as_ref().is_some_and(|waiter| waiter.will_wake(context.waker())) {
            *waiter = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Waits for the flag and takes it.
    pub(crate) async fn notified(&self) {
        poll_fn(|context| self.poll(context)).await;
    }
}
