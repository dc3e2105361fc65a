//! The machine that a simulated log runs on: a [`BlockDevice`], virtual time, and tasks.
//!
//! Calls take time, by a pace that is drawn, and end in the order in which they are due. A device that hangs ends none.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    io,
    path::Path,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::{
    block::{BlockDevice, End, Opened},
    random::Random,
    tasks::Tasks,
};
use crate::wal::device::{Buffer, Device, File, Files, Job, Later, OpenFile, Sheet};

/// How long calls take.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) random: Random,
    /// Microseconds; 0 for no time at all.
    pub(crate) usual_us: u64,
    pub(crate) has_heavy_tails: bool,
}

/// The machine, as one log of one process uses it. Clones are the same one.
#[derive(Clone)]
pub(crate) struct SimMachine(Rc<Inner>);

struct Inner {
    device: BlockDevice,
    tasks: Rc<Tasks>,
    now: Cell<u64>,
    hangs_until: Cell<u64>,
    /// Nothing takes time, as long as a process starts or ends.
    at_once: Cell<bool>,
    pace: RefCell<Pace>,
    /// Calls under way, by when they are due and their number.
    calls: RefCell<BTreeMap<(u64, u64), Call>>,
    next_call: Cell<u64>,
}

/// A call that is under way: what it does when it ends.
enum Call {
    /// It takes calls on files that may be cut off anywhere.
    Job(Job, Rc<Slot<()>>),
    /// Any other.
    Other(Box<dyn FnOnce()>),
}

/// A result, and who waits for it.
struct Slot<T> {
    result: RefCell<Option<T>>,
    waiter: RefCell<Option<Waker>>,
}

impl<T: 'static> Slot<T> {
    fn new() -> Rc<Self> {
        Rc::new(Self { result: RefCell::new(None), waiter: RefCell::new(None) })
    }

    fn give(&self, result: T) {
        *self.result.borrow_mut() = Some(result);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    fn wait(self: Rc<Self>) -> Later<'static, T> {
        Box::pin(poll_fn(move |context: &mut Context<'_>| match self.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                *self.waiter.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        }))
    }
}

impl SimMachine {
    /// A process's machine, at this time.
    pub(crate) fn new(device: BlockDevice, pace: Pace, now: u64) -> Self {
        Self(Rc::new(Inner {
            device,
            tasks: Rc::new(Tasks::default()),
            now: Cell::new(now),
            hangs_until: Cell::new(0),
            at_once: Cell::new(false),
            pace: RefCell::new(pace),
            calls: RefCell::new(BTreeMap::new()),
            next_call: Cell::new(0),
        }))
    }

    /// The device is so slow, or faster again.
    pub(crate) fn set_pace(&self, usual_us: u64, has_heavy_tails: bool) {
        let mut pace = self.0.pace.borrow_mut();
        (pace.usual_us, pace.has_heavy_tails) = (usual_us, has_heavy_tails);
    }

    /// No call ends before this time.
    pub(crate) fn hang_until(&self, time: u64) {
        self.0.hangs_until.set(time);
    }

    /// It is this time: ends the calls that are due, and runs what waits for them.
    pub(crate) fn advance(&self, now: u64) {
        let inner = &self.0;
        inner.now.set(now);
        inner.tasks.run();
        while inner.hangs_until.get() <= now {
            let due = inner.calls.borrow().keys().next().copied().filter(|(due, _)| *due <= now);
            let Some(due) = due else { break };
            let call = inner.calls.borrow_mut().remove(&due).expect("just seen");
            inner.end(call);
            inner.tasks.run();
        }
    }

    /// When [`Self::advance`] has something to do next.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let first = self.0.calls.borrow().keys().next().map(|(due, _)| *due);
        first.map(|due| due.max(self.0.hangs_until.get()))
    }

    /// Runs until `wanted` is there, in no time.
    ///
    /// # Panics
    /// If it waits for something else than the machine.
    pub(crate) fn wait_for<T>(&self, wanted: impl Future<Output = T>) -> T {
        let inner = &self.0;
        let mut wanted = std::pin::pin!(wanted);
        inner.at_once.set(true);
        loop {
            if let Poll::Ready(result) = wanted.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                inner.at_once.set(false);
                return result;
            }
            inner.tasks.run();
            let first = inner.calls.borrow_mut().pop_first();
            if let Some((_, call)) = first {
                inner.end(call);
                inner.tasks.run();
            } else if let Poll::Ready(result) = wanted.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                inner.at_once.set(false);
                return result;
            } else {
                inner.tasks.run();
                assert!(!inner.calls.borrow().is_empty(), "it waits for something that no device does");
            }
        }
    }

    /// The process ends in the middle of whatever it does.
    pub(crate) fn end(self, end: End, random: &mut Random) {
        let calls = std::mem::take(&mut *self.0.calls.borrow_mut());
        for call in calls.into_values() {
            if let Call::Job(job, _) = call {
                self.0.device.set_calls_left(Some(random.below(7)));
                job(&self.0.device);
            }
        }
        self.0.tasks.cancel_all();
        self.0.device.end(end, random);
    }
}

impl Inner {
    fn end(&self, call: Call) {
        match call {
            Call::Job(job, slot) => {
                job(&self.device);
                slot.give(());
            }
            Call::Other(call) => call(),
        }
    }

    fn due_at(&self) -> u64 {
        let mut pace = self.pace.borrow_mut();
        let (usual, heavy) = (pace.usual_us, pace.has_heavy_tails);
        let takes = if usual == 0 || self.at_once.get() { 0 } else { pace.random.delay(usual, heavy).max(1) };
        self.now.get() + takes
    }

    fn begin(&self, due: u64, call: Call) {
        let number = self.next_call.replace(self.next_call.get() + 1);
        self.calls.borrow_mut().insert((due, number), call);
    }

    /// Has something happen when a call of the usual length ends.
    fn call<T: 'static>(&self, call: impl FnOnce() -> T + 'static) -> Later<'static, T> {
        let slot = Slot::new();
        let given = Rc::clone(&slot);
        self.begin(self.due_at(), Call::Other(Box::new(move || given.give(call()))));
        slot.wait()
    }
}

fn at_once<T: 'static>(result: T) -> Later<'static, T> {
    Box::pin(std::future::ready(result))
}

impl Device for SimMachine {
    fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.0.device.clone())
    }

    fn run(&self, job: Job) -> Later<'_, ()> {
        let slot = Slot::new();
        self.0.begin(self.0.due_at(), Call::Job(job, Rc::clone(&slot)));
        slot.wait()
    }

    fn buffer(&self, bytes: usize) -> Buffer {
        Buffer::of(bytes)
    }

    fn write(&self, file: &File, buffer: Buffer, offset: u64) -> Later<'_, io::Result<()>> {
        let (file, synced) = file.simulated().expect("it is a file of this device");
        let bytes = Bytes::copy_from_slice(buffer.bytes());
        let device = self.0.device.clone();
        match device.begin_write(file, offset, bytes) {
            Ok(number) => self.0.call(move || device.end_write(file, number, synced)),
            Err(error) => at_once(Err(error)),
        }
    }

    fn create_sheet(&self, path: &Path) -> Later<'_, io::Result<Box<dyn Sheet>>> {
        let (machine, path) = (self.clone(), path.to_owned());
        self.0.call(move || {
            let opened = machine.0.device.create_file(&path)?;
            Ok(Box::new(SimSheet { machine, opened }) as Box<dyn Sheet>)
        })
    }

    fn spawn(&self, task: Later<'static, ()>) -> Later<'static, ()> {
        self.0.tasks.spawn(task)
    }

    fn sleep(&self, time: Duration) -> Later<'static, ()> {
        let slot = Slot::new();
        let given = Rc::clone(&slot);
        let due = self.0.now.get() + time.as_micros() as u64;
        self.0.begin(due, Call::Other(Box::new(move || given.give(()))));
        slot.wait()
    }

    fn set_bell(&self, _: Waker) {}

    fn look(&self) -> bool {
        false
    }
}

struct SimSheet {
    machine: SimMachine,
    opened: Opened,
}

impl Sheet for SimSheet {
    fn write(&self, piece: Vec<u8>, offset: u64) -> Later<'_, io::Result<usize>> {
        match self.opened.write_at(&piece, offset) {
            Ok(bytes) => self.machine.0.call(move || Ok(bytes)),
            Err(error) => at_once(Err(error)),
        }
    }

    fn sync(&self) -> Later<'_, io::Result<()>> {
        let opened = self.opened.clone();
        self.machine.0.call(move || opened.sync())
    }

    fn close(self: Box<Self>) -> Later<'static, ()> {
        at_once(())
    }
}
