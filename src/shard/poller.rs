//! The loop of an executor that polls: it looks at its sockets and mailboxes without ever sleeping, because on a core of
//! its own to go to sleep and be woken is the dearest thing that a shard does (`docs/decisions/0015-shards-may-poll.md`).
//!
//! One task per executor asks the kernel, through an epoll set, which of all connections have something, wakes their
//! readers, and lets these and then the shards' turns run before it asks again. The cost of a look follows the connections
//! that are ready, not those that there are. The runtime's own reactor (timers, files, listeners, HTTP) gets a turn every
//! few microseconds.
//!
//! With nothing to do for a while, or on a core that is not its own, the loop naps: it sleeps in the kernel until a
//! connection or a mailbox has something, or a millisecond has passed.

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

use super::slab::{Key, Slab};
use crate::notify::Notify;

/// Ready connections that one look takes in; the others are found by the next.
const EVENTS_MAX: usize = 256;
/// How long the runtime's reactor waits for a turn at most: timers, accepted connections and HTTP wait no longer than this.
const REACTOR: Duration = Duration::from_micros(50);
/// The same while a write to the log is under way: its end is an answer that somebody waits for.
const REACTOR_LOGGING: Duration = Duration::from_micros(10);
/// The longest nap: timers and the runtime's own sockets are looked at this often.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// The longest nap while a write to the log is under way: the kernel's thread that does it may need this very core.
const LOG_NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 30_000 };
/// How often the loop asks whether its core is its own.
const CORE_CHECK: Duration = Duration::from_millis(100);
/// Nanoseconds of a second that the thread may wait for its core before that counts as shared with others.
const WAITED_NS_MAX: u64 = 20_000_000;
/// The token of the bell; connections have those of their places.
const BELL: u64 = u64::MAX;

/// What the loop asks a shard of its executor.
pub(super) trait Polled {
    /// Looks into its mailbox: wakes its turn if there is something.
    fn look(&self) -> Look;
}

/// What a shard says to that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// It waits for whatever comes.
    Idle,
    /// It waits for its log.
    Logging,
    /// It has just been given something.
    Woken,
}

/// What the readers of one executor's connections wait with.
pub(crate) struct Poller {
    set: OwnedFd,
    sources: RefCell<Slab<Rc<Ready>>>,
    shards: RefCell<Vec<Weak<dyn Polled>>>,
    bell: Arc<Bell>,
    /// How long nothing must have come before the loop naps.
    idle: Duration,
}

/// Whether a connection may have something.
#[derive(Debug, Default)]
struct Ready {
    notify: Notify,
    /// The other side has closed it, or it broke: it is read to its end, whatever the last read found.
    ended: Cell<bool>,
}

/// Wakes the loop from a nap; other threads ring it.
#[derive(Debug)]
struct Bell {
    counter: OwnedFd,
    napping: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever rings has put something into a mailbox before. If the loop is not seen napping, it looks once more.
        fence(Ordering::SeqCst);
        if self.napping.load(Ordering::Relaxed) {
            // It can only be full, and then it rings already.
            let _ = rustix::io::write(&self.counter, &1u64.to_ne_bytes());
        }
    }
}

impl Poller {
    /// Without connections. It naps when nothing has come for `idle`.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub(super) fn new(idle: Duration) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&set, &counter, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        let bell = Arc::new(Bell { counter, napping: AtomicBool::new(false) });
        Ok(Self { set, sources: RefCell::default(), shards: RefCell::default(), bell, idle })
    }

    /// Asks this shard, too, from now on and for as long as it is there.
    pub(super) fn add_shard(&self, shard: Weak<dyn Polled>) {
        self.shards.borrow_mut().push(shard);
    }

    /// What other threads wake a shard of this executor with, once its mailbox has something.
    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    /// The receiving half of a connection.
    ///
    /// # Errors
    /// If the kernel does not take it into the set.
    pub(super) fn reader(self: &Rc<Self>, socket: TcpStream) -> io::Result<Reader> {
        let ready = Rc::new(Ready::default());
        let key = self.sources.borrow_mut().insert(Rc::clone(&ready));
        let events = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if let Err(error) = epoll::add(&self.set, &socket, epoll::EventData::new_u64(key.to_token()), events) {
            self.sources.borrow_mut().remove(key);
            return Err(error.into());
        }
        Ok(Reader { socket, ready, key, poller: Rc::clone(self), may_have_more: true })
    }

    /// Polls until it is cancelled.
    pub(super) async fn run(self: Rc<Self>) {
        // The kernel may end a short nap 50 us late unless it is asked not to.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut core = OwnCore::new();
        let (mut active_at, mut reactor_at) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            let (mut found, logging) = self.ask_shards();
            found |= self.look(&mut events, &Timespec::default());
            if found {
                active_at = now;
                // Readers run now. They wake the turns, which run behind this task: hence twice.
                yield_now().await;
            }
            yield_now().await;
            let patience = if logging { REACTOR_LOGGING } else { REACTOR };
            if now.duration_since(reactor_at) >= patience {
                reactor_at = now;
                reactor_turn().await;
            }
            let is_own = core.is_own(now);
            if found || (is_own && !logging && now.duration_since(active_at) < self.idle) {
                continue;
            }
            if logging {
                self.look(&mut events, &LOG_NAP);
            } else {
                self.nap(&mut events);
                yield_now().await;
                yield_now().await;
                // Whatever ended the nap, the reactor has waited long enough.
                reactor_turn().await;
            }
        }
    }

    /// Whether a shard has been given something, and whether one waits for its log.
    fn ask_shards(&self) -> (bool, bool) {
        let (mut woken, mut logging, mut gone) = (false, false, false);
        for shard in &*self.shards.borrow() {
            match shard.upgrade().map(|shard| shard.look()) {
                Some(Look::Idle) => {}
                Some(Look::Logging) => logging = true,
                Some(Look::Woken) => woken = true,
                None => gone = true,
            }
        }
        if gone {
            self.shards.borrow_mut().retain(|shard| shard.strong_count() > 0);
        }
        (woken, logging)
    }

    /// Wakes the readers of the connections that have something; true if there are any.
    fn look(&self, events: &mut Vec<epoll::Event>, patience: &Timespec) -> bool {
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(events), Some(patience)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("the epoll set of an executor cannot be asked: {error}"),
        }
        let mut any = false;
        let sources = self.sources.borrow();
        for event in events.drain(..) {
            let token = event.data.u64();
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

    fn nap(&self, events: &mut Vec<epoll::Event>) {
        self.bell.napping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let (woken, _) = self.ask_shards();
        if !woken {
            self.look(events, &NAP);
        }
        self.bell.napping.store(false, Ordering::Relaxed);
    }
}

/// Lets the runtime's reactor have its turn. To yield would not do: it has one only when every task waits. Nor would a
/// shorter timer: one that is over when it is looked at first is not waited for at all.
async fn reactor_turn() {
    Timer::new(Duration::from_nanos(800)).await;
}

/// The receiving half of a connection, woken by a [`Poller`].
pub(super) struct Reader {
    socket: TcpStream,
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
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
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
        let _ = epoll::delete(&self.poller.set, self.socket.as_fd());
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
    fn new() -> Self {
        let statistics = File::open("/proc/thread-self/schedstat").ok();
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
