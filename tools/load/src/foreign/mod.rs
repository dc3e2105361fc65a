//! Systems that are not reached through the client library: a few connections per client, requests one behind the other on
//! each, answers in the same order. What is said on them is a dialect.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};

use crate::{
    args,
    plan::{Foreign, Load, Plan, Speaks},
    target::{Answer, ClusterInfo, Driver, ErrorKind, Request, Target, TargetError},
};
use connection::{Connection, Lost};

mod connection;
mod http;
mod resp;

/// How often it is looked for requests that have waited too long, and for lost connections.
const LOOK: Duration = Duration::from_millis(10);
/// The most connections of a client that has one for each request in flight.
const CONNECTIONS_MAX: usize = 1024;
/// The same in an open loop, where the most that may be in flight is far more than what usually is.
const OPEN_CONNECTIONS_MAX: usize = 64;
/// Of a refusal, so many characters are told.
const COMPLAINT_CHARS: usize = 120;
/// So many different refusals are told.
const COMPLAINTS_MAX: usize = 4;

/// What is said on a connection.
pub(crate) trait Dialect: Send + std::fmt::Debug {
    /// Appends a request.
    fn ask(&mut self, request: &Request<'_>, out: &mut Vec<u8>);

    /// Appends whatever belongs behind the requests that are sent together.
    fn end_batch(&mut self, _out: &mut Vec<u8>) {}

    /// Takes an answer off the front of what was received. `answered` is told of each request that has an answer now, in the
    /// order of asking. Returns how many bytes were taken: 0 if the answer is not complete.
    ///
    /// # Errors
    /// Says what was received instead of an answer.
    fn hear(&mut self, received: &[u8], answered: &mut dyn FnMut(Answer)) -> Result<usize, String>;

    /// The connection is a new one: nothing was asked on it.
    fn start_over(&mut self);

    /// What the server said when it refused something for the first time.
    fn complaint(&self) -> Option<&str>;
}

/// Keeps what a server said, if nothing is kept yet.
fn keep_complaint(kept: &mut Option<String>, said: impl FnOnce() -> String) {
    if kept.is_none() {
        *kept = Some(said().chars().take(COMPLAINT_CHARS).collect());
    }
}

/// Reaches a foreign system.
#[derive(Debug)]
pub struct ForeignDriver {
    speaks: Speaks,
    addresses: Vec<(String, SocketAddr)>,
    /// Of each client.
    connections: usize,
    /// Requests that each of them has in flight before one has more.
    share: usize,
    request_timeout: Duration,
    cluster: ClusterInfo,
}

impl ForeignDriver {
    /// Finds out where it is; connects to nobody yet.
    ///
    /// # Errors
    /// If an address is not known.
    pub fn new(foreign: &Foreign, plan: &Plan) -> Result<Self, TargetError> {
        let resolve = |address: &String| {
            let found = args::resolve(address).map_err(TargetError)?;
            Ok::<_, TargetError>((address.clone(), found[0]))
        };
        let addresses = foreign.addresses.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        let clients = plan.threads * plan.clients_per_zone;
        let in_flight = match plan.load {
            Load::Closed { in_flight, .. } => in_flight.div_ceil(clients),
            Load::Open { max_in_flight, .. } => max_in_flight.div_ceil(clients),
        };
        let usual = match foreign.speaks {
            Speaks::Http if matches!(plan.load, Load::Open { .. }) => in_flight.clamp(1, OPEN_CONNECTIONS_MAX),
            Speaks::Http => in_flight.clamp(1, CONNECTIONS_MAX),
            Speaks::Resp { .. } => 1,
        };
        let name = match foreign.speaks {
            Speaks::Http => "http",
            Speaks::Resp { .. } => "resp",
        };
        let cluster = ClusterInfo {
            name: name.to_owned(),
            zones: vec![1],
            nodes: foreign.addresses.clone(),
            executors_here: addresses.iter().filter(|(_, address)| address.ip().is_loopback()).count(),
            ..ClusterInfo::default()
        };
        let connections = foreign.connections.unwrap_or(usual);
        let (share, request_timeout) = (in_flight.div_ceil(connections).max(1), plan.request_timeout);
        Ok(Self { speaks: foreign.speaks, addresses, connections, share, request_timeout, cluster })
    }

    fn dialect(&self, host: &str) -> Box<dyn Dialect> {
        match self.speaks {
            Speaks::Http => Box::new(http::Http::new(host)),
            Speaks::Resp { wait } => Box::new(resp::Resp::new(wait)),
        }
    }
}

impl Driver for ForeignDriver {
    type Target = ForeignTarget;

    fn cluster(&self) -> &ClusterInfo {
        &self.cluster
    }

    fn connect(&self, lanes: &[u8]) -> Result<ForeignTarget, TargetError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| TargetError(format!("cannot wait for sockets: {error}")))?;
        let count = lanes.len() * self.connections;
        let mut target = ForeignTarget {
            epoll,
            events: Vec::with_capacity(count.min(1024)),
            connections: Vec::with_capacity(count),
            lanes: Vec::new(),
            dirty: Vec::new(),
            request_timeout: self.request_timeout,
            now: Instant::now(),
            looked: Instant::now(),
        };
        for number in 0..count {
            let (host, address) = &self.addresses[number % self.addresses.len()];
            let connection = Connection::new(number / self.connections, *address, host, self.dialect(host));
            target.connections.push(connection.map_err(|error| {
                TargetError(format!("{host}: {error}: does a server listen there? --target names its address"))
            })?);
            target.watch(number)?;
        }
        let own = |lane: usize| lane * self.connections..(lane + 1) * self.connections;
        target.lanes = (0..lanes.len()).map(|lane| Lane::new(own(lane), self.share)).collect();
        Ok(target)
    }
}

/// The connections of one worker's clients.
pub struct ForeignTarget {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    connections: Vec<Connection>,
    lanes: Vec<Lane>,
    /// Connections with requests that have not been written.
    dirty: Vec<usize>,
    request_timeout: Duration,
    /// When the last poll ended: requests are taken to be made then.
    now: Instant,
    looked: Instant,
}

/// Which of its connections a client makes its next request on.
///
/// Each connection has an equal share of the requests in flight, as a number of free places. So the next request goes where
/// an answer came from, which keeps batches together, and finding the connection takes the same time however many there are.
#[derive(Debug)]
struct Lane {
    own: std::ops::Range<usize>,
    /// A connection for each of its free places.
    free: VecDeque<usize>,
    /// The connection whose turn it is when there is no place free.
    turn: usize,
}

impl Lane {
    fn new(own: std::ops::Range<usize>, share: usize) -> Self {
        let free = (0..share).flat_map(|_| own.clone()).collect();
        Self { turn: own.start, own, free }
    }

    /// The connection for the next request, if any is up.
    fn choose(&mut self, connections: &mut [Connection]) -> Option<usize> {
        // Places on connections that are down go to the end; each is looked at once.
        for _ in 0..self.free.len().min(2 * self.own.len()) {
            let number = self.free.pop_front()?;
            if connections[number].is_up() {
                return Some(number);
            }
            self.free.push_back(number);
        }
        for _ in self.own.clone() {
            let number = self.turn;
            self.turn = if number + 1 == self.own.end { self.own.start } else { number + 1 };
            if connections[number].is_up() {
                connections[number].beyond_share += 1;
                return Some(number);
            }
        }
        None
    }

    /// So many requests on a connection have ended.
    fn give_back(&mut self, number: usize, connection: &mut Connection, ended: usize) {
        let beyond = connection.beyond_share.min(ended);
        connection.beyond_share -= beyond;
        self.free.extend(std::iter::repeat_n(number, ended - beyond));
    }
}

impl ForeignTarget {
    fn watch(&self, number: usize) -> Result<(), TargetError> {
        let Some(socket) = self.connections[number].socket() else { return Ok(()) };
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number as u64), events)
            .map_err(|error| TargetError(format!("cannot wait for sockets: {error}")))
    }

    /// Does something with a connection, which may end requests or the connection.
    fn attend(
        &mut self,
        number: usize,
        answered: &mut dyn FnMut(usize, u64, Answer),
        what: impl FnOnce(&mut Connection, &mut dyn FnMut(usize, u64, Answer)) -> Result<(), Lost>,
    ) -> Result<(), TargetError> {
        let connection = &mut self.connections[number];
        let before = connection.waiting();
        let nonsense = match what(connection, answered) {
            Ok(()) => None,
            Err(Lost::Closed) => {
                connection.lose(answered, ErrorKind::Disconnected);
                None
            }
            Err(Lost::Nonsense(problem)) => Some(TargetError(problem)),
        };
        let ended = before - connection.waiting();
        self.lanes[connection.lane].give_back(number, connection, ended);
        nonsense.map_or(Ok(()), Err)
    }

    /// Gives up what has waited too long, and makes lost connections again. An answer that comes later would be taken for
    /// that to another request, so the connection goes too.
    fn look_after(&mut self, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        (self.now, self.looked) = (Instant::now(), Instant::now());
        let (now, timeout) = (self.now, self.request_timeout);
        for number in 0..self.connections.len() {
            if self.connections[number].is_overdue(now, timeout) {
                self.attend(number, answered, |connection, answered| {
                    connection.lose(answered, ErrorKind::TimeoutMaybeDone);
                    Ok(())
                })?;
            }
            if self.connections[number].look_after(now) {
                self.watch(number)?;
            }
        }
        Ok(())
    }
}

impl Target for ForeignTarget {
    fn submit(&mut self, lane: usize, request: Request<'_>, tag: u64) -> Result<(), ErrorKind> {
        let number = self.lanes[lane].choose(&mut self.connections).ok_or(ErrorKind::NotTaken)?;
        let connection = &mut self.connections[number];
        connection.ask(&request, tag, self.now);
        if !std::mem::replace(&mut connection.is_dirty, true) {
            self.dirty.push(number);
        }
        Ok(())
    }

    fn poll(&mut self, wait: Duration, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        while let Some(number) = self.dirty.pop() {
            self.attend(number, answered, |connection, _| connection.flush())?;
        }
        if self.looked.elapsed() >= LOOK {
            self.look_after(answered)?;
        }
        let wait = wait.min(LOOK);
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(TargetError(format!("cannot wait for sockets: {error}"))),
        }
        self.now = Instant::now();
        for event in 0..self.events.len() {
            let number = self.events[event].data.u64() as usize;
            let over = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            let flags = self.events[event].flags;
            let has_ended = flags.intersects(over);
            self.attend(number, answered, |connection, answered| connection.on_ready(has_ended, answered))?;
        }
        Ok(())
    }

    fn complaints(&self) -> Vec<String> {
        let mut said: Vec<String> = Vec::new();
        for complaint in self.connections.iter().filter_map(Connection::complaint) {
            if said.len() < COMPLAINTS_MAX && !said.iter().any(|known| known == complaint) {
                said.push(complaint.to_owned());
            }
        }
        said
    }
}

#[cfg(test)]
mod tests;
