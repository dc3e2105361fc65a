//! How many connections of clients a node has, over all of its shards, and how many it may have: each takes a descriptor, and
//! logs and links come first.

use std::{
    collections::VecDeque,
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
};

use crate::{topology::ShardId, tuning::Tuning};

/// The most of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ConnectionBounds {
    /// Connections of clients, native and over HTTP together: what descriptors are left for.
    pub(crate) clients_max: usize,
    /// Of these, native ones (`flow.client_connections_max`).
    pub(crate) native_max: usize,
    /// Of these, HTTP (`http.connections_max`).
    pub(crate) web_max: usize,
    /// Accepted connections of one shard that have not said hello.
    pub(crate) strangers_max: usize,
}

impl ConnectionBounds {
    /// The most that descriptors are reserved for in any case, in each shard.
    pub(crate) const STRANGERS_MIN: usize = 8;
    const STRANGERS_MAX: usize = 64;

    /// The bounds of a node of `shards` shards that may have so many descriptors open beyond what it has reserved.
    pub(crate) fn new(descriptors: usize, shards: u16, tuning: &Tuning, web_max: usize) -> Self {
        let more = (descriptors / 4 / usize::from(shards)).min(Self::STRANGERS_MAX - Self::STRANGERS_MIN);
        Self {
            clients_max: descriptors - more * usize::from(shards),
            native_max: tuning.flow.client_connections_max,
            web_max,
            strangers_max: Self::STRANGERS_MIN + more,
        }
    }

    /// Whether descriptors are too few for all clients that the settings allow.
    pub(crate) fn falls_short(&self) -> bool {
        self.clients_max < self.native_max.saturating_add(self.web_max)
    }
}

/// What a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Speaks {
    Native,
    Http,
}

/// Counts the clients of a node.
#[derive(Debug)]
pub(super) struct Admission {
    native: AtomicUsize,
    web: AtomicUsize,
    all: AtomicUsize,
    pub(super) bounds: ConnectionBounds,
}

/// The right of one client to be connected, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    admission: Arc<Admission>,
    speaks: Speaks,
}

impl Admission {
    pub(super) fn new(bounds: ConnectionBounds) -> Arc<Self> {
        Arc::new(Self { native: AtomicUsize::new(0), web: AtomicUsize::new(0), all: AtomicUsize::new(0), bounds })
    }

    /// A seat, if there is one.
    ///
    /// # Errors
    /// How many clients there are, and which bound they are at.
    pub(super) fn admit(self: &Arc<Self>, speaks: Speaks) -> Result<Seat, String> {
        let (count, max, setting) = match speaks {
            Speaks::Native => (&self.native, self.bounds.native_max, "flow.client_connections_max"),
            Speaks::Http => (&self.web, self.bounds.web_max, "http.connections_max"),
        };
        if !enter(count, max) {
            return Err(format!("this node has {max} client connections, and {setting} allows no more"));
        }
        if !enter(&self.all, self.bounds.clients_max) {
            count.fetch_sub(1, Ordering::Relaxed);
            let max = self.bounds.clients_max;
            return Err(format!(
                "this node has {max} client connections, and its limit of open files (`ulimit -n`) allows no more"
            ));
        }
        Ok(Seat { admission: Arc::clone(self), speaks })
    }

    /// HTTP connections that are open.
    pub(super) fn web(&self) -> usize {
        self.web.load(Ordering::Relaxed)
    }
}

fn enter(count: &AtomicUsize, max: usize) -> bool {
    let entered = count.fetch_add(1, Ordering::Relaxed) < max;
    if !entered {
        count.fetch_sub(1, Ordering::Relaxed);
    }
    entered
}

impl Drop for Seat {
    fn drop(&mut self) {
        let count = match self.speaks {
            Speaks::Native => &self.admission.native,
            Speaks::Http => &self.admission.web,
        };
        count.fetch_sub(1, Ordering::Relaxed);
        self.admission.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's connection on its way to the shard that serves it.
pub(super) type Arrival = (TcpStream, Seat);

/// HTTP connections for one shard. One shard of a node accepts them all, and each goes to the shard that has the fewest.
#[derive(Debug, Default)]
pub(super) struct Door {
    /// Whether the shard serves.
    open: AtomicBool,
    /// Whether there is something in `arrived`.
    any: AtomicBool,
    /// Connections that it serves, or that are on their way to it.
    connections: AtomicUsize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    arrived: VecDeque<Arrival>,
    /// Wakes the shard's executor.
    waker: Option<Waker>,
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard serves from now on, and is woken so.
    pub(super) fn open(&self, waker: Waker) {
        self.lock().waker = Some(waker);
        self.open.store(true, Ordering::Release);
    }

    /// The shard stops: connections on their way to it are closed.
    pub(super) fn close(&self) {
        self.open.store(false, Ordering::Release);
        let mut inside = self.lock();
        self.connections.fetch_sub(inside.arrived.len(), Ordering::Relaxed);
        *inside = Inside::default();
    }

    /// Whether a connection has arrived.
    pub(super) fn is_knocked(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The next connection for this shard. [`Self::served`] follows when it has ended.
    pub(super) fn next(&self) -> Option<Arrival> {
        let mut inside = self.lock();
        let arrival = inside.arrived.pop_front();
        self.any.store(!inside.arrived.is_empty(), Ordering::Release);
        arrival
    }

    /// A connection has ended.
    pub(super) fn served(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Hands a connection to the shard that has the fewest. It is closed if none serves any more.
pub(super) fn hand_over(doors: &[Door], arrival: Arrival) -> Option<ShardId> {
    let open = doors.iter().enumerate().filter(|(_, door)| door.open.load(Ordering::Acquire));
    let (shard, door) = open.min_by_key(|(_, door)| door.connections.load(Ordering::Relaxed))?;
    let mut inside = door.lock();
    let waker = inside.waker.clone()?;
    door.connections.fetch_add(1, Ordering::Relaxed);
    inside.arrived.push_back(arrival);
    door.any.store(true, Ordering::Release);
    drop(inside);
    waker.wake();
    Some(ShardId(shard as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(clients_max: usize, native_max: usize, web_max: usize) -> ConnectionBounds {
        ConnectionBounds { clients_max, native_max, web_max, strangers_max: 8 }
    }

    #[test]
    fn nobody_is_admitted_over_any_bound_and_seats_come_back() {
        let admission = Admission::new(bounds(5, 4, 3));
        let native: Vec<Seat> = (0..4).map(|_| admission.admit(Speaks::Native).unwrap()).collect();
        assert!(admission.admit(Speaks::Native).unwrap_err().contains("flow.client_connections_max"));
        let web = admission.admit(Speaks::Http).unwrap();
        assert!(admission.admit(Speaks::Http).unwrap_err().contains("ulimit"), "five descriptors are taken");
        drop(native);
        let more = [admission.admit(Speaks::Http).unwrap(), admission.admit(Speaks::Http).unwrap()];
        assert!(admission.admit(Speaks::Http).unwrap_err().contains("http.connections_max"));
        assert_eq!(admission.web(), 3);
        drop((web, more));
        assert_eq!((admission.web(), admission.all.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn descriptors_are_shared_out_and_never_given_twice() {
        let tuning = Tuning::default();
        for descriptors in [1, 7, 32, 100, 1000, 100_000] {
            for shards in [1, 2, 16, 64] {
                let bounds = ConnectionBounds::new(descriptors, shards, &tuning, 4096);
                let beyond = bounds.strangers_max - ConnectionBounds::STRANGERS_MIN;
                assert_eq!(bounds.clients_max + beyond * usize::from(shards), descriptors);
                assert!(bounds.clients_max > 0 && bounds.strangers_max <= ConnectionBounds::STRANGERS_MAX);
            }
        }
        assert!(ConnectionBounds::new(1000, 1, &tuning, 4096).falls_short());
        assert!(!ConnectionBounds::new(10_000, 1, &tuning, 4096).falls_short());
    }

    #[test]
    fn connections_go_to_the_shard_that_has_the_fewest() {
        let admission = Admission::new(bounds(100, 0, 100));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let arrival = || {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (stream, admission.admit(Speaks::Http).unwrap())
        };
        let doors: Vec<Door> = (0..3).map(|_| Door::default()).collect();
        assert_eq!(hand_over(&doors, arrival()), None, "nobody serves yet");
        doors[0].open(Waker::noop().clone());
        doors[2].open(Waker::noop().clone());
        let given: Vec<u16> = (0..4).map(|_| hand_over(&doors, arrival()).unwrap().0).collect();
        assert_eq!(given, [0, 2, 0, 2]);
        assert!(doors[2].is_knocked() && doors[2].next().is_some() && doors[2].next().is_some());
        assert!(!doors[2].is_knocked() && doors[2].next().is_none());
        doors[2].served();
        doors[2].served();
        assert_eq!(hand_over(&doors, arrival()), Some(ShardId(2)));
        assert_eq!(admission.web(), 3, "two were dropped when they were served");
        doors.iter().for_each(Door::close);
        assert_eq!((admission.web(), hand_over(&doors, arrival())), (0, None));
    }
}
