//! Tasks of a simulated process: the futures that a replica's runtime runs, polled one after the other in the order in which
//! they were woken.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use crate::wal::device::Later;

/// Tasks that have been woken, in order.
type Woken = Arc<Mutex<VecDeque<u64>>>;

/// Tasks. All of them are cancelled when this is dropped.
#[derive(Default)]
pub(super) struct Tasks {
    /// By number; none while it is polled.
    tasks: RefCell<BTreeMap<u64, Option<Later<'static, ()>>>>,
    next: Cell<u64>,
    woken: Woken,
}

struct TaskWaker(u64, Woken);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut woken = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        if !woken.contains(&self.0) {
            woken.push_back(self.0);
        }
    }
}

/// Whether a task has ended, and who waits for that.
#[derive(Default)]
struct Ended {
    is: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

/// Cancels a task when whoever waits for it lets go.
struct Handle {
    tasks: std::rc::Weak<Tasks>,
    number: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let task = self.tasks.upgrade().and_then(|tasks| tasks.tasks.borrow_mut().remove(&self.number));
        drop(task);
    }
}

impl Tasks {
    /// Begins a task. What is returned ends with it, and cancels it when dropped.
    pub(super) fn spawn(self: &Rc<Self>, task: Later<'static, ()>) -> Later<'static, ()> {
        let number = self.next.replace(self.next.get() + 1);
        let ended = Rc::new(Ended::default());
        let end = Rc::clone(&ended);
        let task = async move {
            task.await;
            end.is.set(true);
            if let Some(waiter) = end.waiter.take() {
                waiter.wake();
            }
        };
        self.tasks.borrow_mut().insert(number, Some(Box::pin(task)));
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(number);
        let handle = Handle { tasks: Rc::downgrade(self), number };
        Box::pin(poll_fn(move |context| {
            let _ = &handle;
            if ended.is.get() {
                return Poll::Ready(());
            }
            *ended.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        }))
    }

    /// Ends every task where it is.
    pub(super) fn cancel_all(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
    }

    /// Polls whatever is woken until nothing is.
    pub(super) fn run(&self) {
        loop {
            let next = self.woken.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(number) = next else { return };
            let Some(Some(mut task)) = self.tasks.borrow_mut().get_mut(&number).map(Option::take) else { continue };
            let waker = Waker::from(Arc::new(TaskWaker(number, Arc::clone(&self.woken))));
            let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
            let mut tasks = self.tasks.borrow_mut();
            match polled {
                Poll::Ready(()) => drop(tasks.remove(&number)),
                // It may have been cancelled meanwhile.
                Poll::Pending => {
                    if let Some(place) = tasks.get_mut(&number) {
                        *place = Some(task);
                    }
                }
            }
        }
    }
}
