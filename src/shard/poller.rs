//! The loop of an executor: asks the kernel which connections have something, has them read, and lets the shards have
//! their turns (`docs/decisions/0015-one-loop-waits-for-everything.md`).
//!
//! One task per executor watches all connections of its shards, their mailboxes and logs, and the rings of the runtime,
//! through one epoll set. It wakes the readers of what is ready, and lets these and then the shards' turns run before
//! it asks again: one flush and one send per connection serve them all, and batches form by themselves under load.
//! The cost of a look follows the connections that are ready, not those that there are. The runtime's own reactor
//! (timers, files, listeners, HTTP) gets a turn whenever its rings have something, before a sleep, and every so often
//! otherwise.
//!
//! With nothing to do the thread sleeps until something comes. An executor that polls looks on for a while without
//! sleeping, because on a core of its own to go to sleep and be woken is the dearest thing that a shard does; not on
//! a core that others use too.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::{self, Read, Seek},
    net::TcpStream,
    num::NonZeroU64,
    os::fd::{AsFd, OwnedFd},
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use futures_lite::future::yield_now;
use glommio::timer::Timer;
use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    listen::Listening,
    slab::{Key, Slab},
};
use crate::notify::Notify;

/// Ready connections that one look takes in; the others are found by the next.
const EVENTS_MAX: usize = 256;
/// How long the runtime's reactor waits for a turn at most, unless it is wanted.
const REACTOR: Duration = Duration::from_micros(200);
/// The longest sleep: other timers than the shards', and what other threads tell tasks of the runtime, are looked at
/// this often.
const SLEEP: Duration = Duration::from_millis(10);
/// The first sleep after something has happened: a task that the reactor woke last may have asked it for more.
const FIRST_SLEEP: Duration = Duration::from_micros(500);
/// The longest sleep where the rings cannot be watched.
const BLIND_SLEEP: Duration = Duration::from_millis(1);
/// How often the loop asks whether its core is its own.
const CORE_CHECK: Duration = Duration::from_millis(100);
/// Nanoseconds of a second that the thread may wait for its core before that counts as shared with others.
const WAITED_NS_MAX: u64 = 20_000_000;
/// The tokens of the bell and of the rings; connections have those of their places.
const BELL: u64 = u64::MAX;
const RING: u64 = u64::MAX - 1;

/// What the loop asks a shard of its executor.
pub(super) trait Polled {
    /// Looks into its mailbox, at its log and at the time: wakes its turn if there is something, or it is due. True if it
    /// has been woken and has not run yet.
    fn look(&self) -> bool;
    /// How often it has had a turn.
    fn turns(&self) -> u64;
    /// How long until it is due for one though nothing comes in.
    fn due_in(&self) -> Duration;
}

/// What the readers of one executor's connections wait with.
pub(crate) struct Poller {
    set: OwnedFd,
    sources: RefCell<Slab<Rc<Ready>>>,
    shards: RefCell<Vec<Weak<dyn Polled>>>,
    bell: Arc<Bell>,
    /// The runtime's rings. They are in the set as long as they are here.
    rings: Vec<OwnedFd>,
    /// Whether the reactor has something to do.
    wanted: Cell<bool>,
    /// How long nothing must have come before the thread sleeps.
    idle: Duration,
}

/// Whether a connection may have something.
#[derive(Debug, Default)]
struct Ready {
    notify: Notify,
    /// The other side has closed it, or it broke: it is read to its end, whatever the last read found.
    ended: Cell<bool>,
}

/// Wakes the loop from its sleep; other threads ring it.
#[derive(Debug)]
struct Bell {
    counter: OwnedFd,
    sleeping: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever rings has put something into a mailbox before. If the loop is not seen sleeping, it looks once more.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            // It can only be full, and then it rings already.
            let _ = rustix::io::write(&self.counter, &1u64.to_ne_bytes());
        }
    }
}

impl Poller {
    /// Without connections, in an executor with these rings. It sleeps when nothing has come for `idle`.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub(super) fn new(idle: Duration, rings: Vec<OwnedFd>) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&set, &counter, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        for ring in &rings {
            let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&set, ring, epoll::EventData::new_u64(RING), events)?;
        }
        let bell = Arc::new(Bell { counter, sleeping: AtomicBool::new(false) });
        let (sources, shards) = (RefCell::default(), RefCell::default());
        Ok(Self { set, sources, shards, bell, rings, wanted: Cell::new(false), idle })
    }

    /// Asks this shard, too, from now on and for as long as it is there.
    pub(super) fn add_shard(&self, shard: Weak<dyn Polled>) {
        self.shards.borrow_mut().push(shard);
    }

    /// Something was asked of the runtime that must not wait: its reactor has a turn before the next sleep.
    pub(super) fn want_reactor(&self) {
        self.wanted.set(true);
    }

    /// What other threads wake a shard of this executor with, once its mailbox has something.
    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    /// The receiving half of a connection.
    ///
    /// # Errors
    /// If the kernel does not take it into the set.
    pub(super) fn reader(self: &Rc<Self>, socket: Rc<TcpStream>) -> io::Result<Reader> {
        let (key, ready) = self.watch(&*socket)?;
        Ok(Reader { socket, ready, key, poller: Rc::clone(self), may_have_more: true })
    }

    /// A listener, for its connections to be taken.
    ///
    /// # Errors
    /// If the kernel does not take it into the set.
    pub(super) fn acceptor(self: &Rc<Self>, listener: Listening) -> io::Result<Acceptor> {
        let (key, ready) = self.watch(listener.socket())?;
        Ok(Acceptor { listener, ready, key, poller: Rc::clone(self) })
    }

    /// Has the kernel say when a socket may have something.
    fn watch(&self, socket: impl AsFd) -> io::Result<(Key, Rc<Ready>)> {
        let ready = Rc::new(Ready::default());
        let key = self.sources.borrow_mut().insert(Rc::clone(&ready));
        let events = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if let Err(error) = epoll::add(&self.set, socket, epoll::EventData::new_u64(key.to_token()), events) {
            self.sources.borrow_mut().remove(key);
            return Err(error.into());
        }
        Ok((key, ready))
    }

    /// Runs until it is cancelled.
    pub(super) async fn run(self: Rc<Self>) {
        // The kernel may end a short sleep 50 us late unless it is asked not to.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut core = OwnCore::new(!self.idle.is_zero());
        let (mut active_at, mut reactor_at) = (Instant::now(), Instant::now());
        let (mut turns, mut quiet) = (0, 0);
        loop {
            let now = Instant::now();
            let woken = self.ask_shards();
            let found = self.look(&mut events, &Timespec::default()) || woken;
            if found {
                active_at = now;
                // Readers run now. They wake the turns, which run behind this task: hence twice.
                yield_now().await;
            }
            yield_now().await;
            let stirred = found || std::mem::replace(&mut turns, self.turns()) != self.turns();
            if stirred {
                quiet = 0;
            }
            let spins = now.duration_since(active_at) < self.idle && core.is_own(now);
            let until_turn = REACTOR.saturating_sub(now.duration_since(reactor_at));
            if self.wanted.take() || until_turn.is_zero() {
                // What tasks have asked of the runtime since its last turn reaches the kernel now. Only if that stirs nothing
                // up is everything asleep.
                reactor_at = now;
                reactor_turn().await;
                quiet += 1;
            } else if !(stirred || spins) {
                let most = match quiet {
                    0 => until_turn,
                    1 => FIRST_SLEEP,
                    _ if self.rings.is_empty() => BLIND_SLEEP,
                    _ => SLEEP,
                };
                if self.sleep(&mut events, most) {
                    (active_at, quiet) = (Instant::now(), 0);
                } else {
                    self.wanted.set(true);
                }
                yield_now().await;
            }
        }
    }

    /// Turns that the shards have had.
    fn turns(&self) -> u64 {
        let shards = self.shards.borrow();
        shards.iter().filter_map(Weak::upgrade).fold(0, |sum, shard| sum.wrapping_add(shard.turns()))
    }

    /// Whether a shard has been woken and has not run since.
    fn ask_shards(&self) -> bool {
        let (mut woken, mut gone) = (false, false);
        for shard in &*self.shards.borrow() {
            match shard.upgrade() {
                Some(shard) => woken |= shard.look(),
                None => gone = true,
            }
        }
        if gone {
            self.shards.borrow_mut().retain(|shard| shard.strong_count() > 0);
        }
        woken
    }

    /// Wakes the readers of the connections that have something; true if there are any, or the bell was rung.
    fn look(&self, events: &mut Vec<epoll::Event>, patience: &Timespec) -> bool {
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(events), Some(patience)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the epoll set of an executor cannot be asked: {error}"),
        }
        let mut any = false;
        let sources = self.sources.borrow();
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == RING {
                self.wanted.set(true);
                continue;
            }
            any = true;
            if token == BELL {
                let _ = rustix::io::read(&self.bell.counter, &mut [0; 8]);
            } else if let Some(ready) = sources.get(Key::from_token(token)) {
                let over = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
                let flags = event.flags;
                ready.ended.set(ready.ended.get() || flags.intersects(over));
                ready.notify.notify();
            }
        }
        any
    }

    /// Sleeps until there is something, or a shard is due, but no longer than `most`; true if there is something.
    fn sleep(&self, events: &mut Vec<epoll::Event>, most: Duration) -> bool {
        self.bell.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut any = self.ask_shards();
        if !any {
            let shards = self.shards.borrow();
            let due = shards.iter().filter_map(Weak::upgrade).map(|shard| shard.due_in()).min();
            drop(shards);
            let patience = due.map_or(most, |due| due.min(most));
            // Below a second.
            any = self.look(events, &Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) });
        }
        self.bell.sleeping.store(false, Ordering::Relaxed);
        any
    }
}

/// Lets the runtime's reactor have its turn. To yield would not do: it has one only when every task waits. Nor would a
/// shorter timer: one that is over when it is looked at first is not waited for at all.
async fn reactor_turn() {
    Timer::new(Duration::from_nanos(800)).await;
}

/// The receiving half of a connection, woken by a [`Poller`].
pub(super) struct Reader {
    socket: Rc<TcpStream>,
    ready: Rc<Ready>,
    key: Key,
    poller: Rc<Poller>,
    /// Whether the last read left something, as far as is known.
    may_have_more: bool,
}

impl Reader {
    /// Reads what is there, or waits until something is; 0 at the end of the stream.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.may_have_more && !self.ready.ended.get() {
                self.ready.notify.notified().await;
            }
            match recv(&*self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, bytes)) => {
                    // Whatever comes after a read that was not full is told anew.
                    self.may_have_more = bytes == buffer.len();
                    return Ok(bytes);
                }
                Err(Errno::AGAIN) => {
                    self.may_have_more = false;
                    self.ready.ended.set(false);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The socket may live on in its sending half.
        let _ = epoll::delete(&self.poller.set, &*self.socket);
        self.poller.sources.borrow_mut().remove(self.key);
    }
}

/// A listener, woken by a [`Poller`].
pub(super) struct Acceptor {
    listener: Listening,
    ready: Rc<Ready>,
    key: Key,
    poller: Rc<Poller>,
}

impl Acceptor {
    /// The next connection; waits until there is one.
    ///
    /// # Errors
    /// If there are no descriptors left, or the connection was gone already.
    pub(super) async fn accept(&self) -> io::Result<TcpStream> {
        loop {
            match self.listener.accept()? {
                Some(stream) => return Ok(stream),
                None => self.ready.notify.notified().await,
            }
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let _ = epoll::delete(&self.poller.set, self.listener.socket());
        self.poller.sources.borrow_mut().remove(self.key);
    }
}

/// Whether others use this thread's core, by how long it has waited for one.
struct OwnCore {
    /// The scheduler's statistics of this thread, where the kernel keeps them.
    statistics: Option<File>,
    checked_at: Instant,
    waited_ns: u64,
    own: bool,
}

impl OwnCore {
    /// Nobody asks unless the loop `spins`.
    fn new(spins: bool) -> Self {
        let statistics = if spins { File::open("/proc/thread-self/schedstat").ok() } else { None };
        let mut core = Self { statistics, checked_at: Instant::now(), waited_ns: 0, own: true };
        core.waited_ns = core.waited().unwrap_or(0);
        core
    }

    fn is_own(&mut self, now: Instant) -> bool {
        let since = now.duration_since(self.checked_at);
        if since >= CORE_CHECK {
            self.checked_at = now;
            if let Some(waited_ns) = self.waited() {
                let waited = waited_ns - self.waited_ns;
                self.own = u128::from(waited) * 1_000_000_000 <= u128::from(WAITED_NS_MAX) * since.as_nanos();
                self.waited_ns = waited_ns;
            }
        }
        self.own
    }

    /// The second of the three numbers: nanoseconds that it was ready to run and did not.
    fn waited(&mut self) -> Option<u64> {
        let file = self.statistics.as_mut()?;
        let mut text = [0; 96];
        file.rewind().ok()?;
        let bytes = file.read(&mut text).ok()?;
        std::str::from_utf8(&text[..bytes]).ok()?.split_whitespace().nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sleep of 200 us that took a whole millisecond would be as long as a round trip: see `Cargo.toml`.
    #[test]
    fn sleeps_end_within_the_millisecond() {
        let poller = Poller::new(Duration::ZERO, Vec::new()).unwrap();
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut events = Vec::with_capacity(1);
        let mut nap = || {
            let started = Instant::now();
            assert!(!poller.sleep(&mut events, Duration::from_micros(200)), "nothing comes");
            started.elapsed()
        };
        // The least of many: a busy machine may delay some.
        let least = (0..50).map(|_| nap()).min().unwrap();
        assert!(least >= Duration::from_micros(200) && least < Duration::from_micros(950), "{least:?}");
    }

    #[test]
    fn a_sleep_says_whether_something_came_for_the_shards() {
        let poller = Rc::new(Poller::new(Duration::ZERO, Vec::new()).unwrap());
        let (waker, second) = (poller.waker(), Duration::from_millis(900));
        let rings = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        let started = Instant::now();
        assert!(poller.sleep(&mut Vec::with_capacity(1), second) && started.elapsed() < second);
        rings.join().unwrap();
    }
}
