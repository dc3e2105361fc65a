//! Systems that are not reached through the client library: a few connections per client, requests one behind the other on
//! each, answers in the same order. What is said on them is a dialect.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind as IoErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
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

mod http;
mod resp;

/// How long a connection has to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection that was lost is left alone before it is made again.
const RECONNECT: Duration = Duration::from_millis(100);
/// How often it is looked for requests that have waited too long, and for lost connections.
const LOOK: Duration = Duration::from_millis(10);
/// Asked for in one read.
const READ_BYTES: usize = 64 << 10;
/// The most connections of a client that has one for each request in flight.
const CONNECTIONS_MAX: usize = 1024;

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
}

/// Reaches a foreign system.
#[derive(Debug)]
pub struct ForeignDriver {
    speaks: Speaks,
    addresses: Vec<(String, SocketAddr)>,
    connections: usize,
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
            Load::Open { max_in_flight, .. } => max_in_flight.div_ceil(clients).min(64),
        };
        let usual = match foreign.speaks {
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
        Ok(Self { speaks: foreign.speaks, addresses, connections, request_timeout: plan.request_timeout, cluster })
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
        let mut target = ForeignTarget {
            epoll,
            events: Vec::new(),
            connections: Vec::new(),
            per_lane: self.connections,
            dirty: Vec::new(),
            request_timeout: self.request_timeout,
            looked: Instant::now(),
        };
        for number in 0..lanes.len() * self.connections {
            let (host, address) = &self.addresses[number % self.addresses.len()];
            let socket = dial(*address).map_err(|error| {
                TargetError(format!("{host}: {error}: does a server listen there? --target names its address"))
            })?;
            target
                .add(Connection::new(number / self.connections, *address, host.clone(), self.dialect(host)), socket)?;
        }
        target.events.reserve(target.connections.len().min(1024));
        Ok(target)
    }
}

fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The connections of one worker's clients.
pub struct ForeignTarget {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    connections: Vec<Connection>,
    per_lane: usize,
    /// Connections with requests that have not been written.
    dirty: Vec<usize>,
    request_timeout: Duration,
    looked: Instant,
}

/// A connection, or one that was.
#[derive(Debug)]
struct Connection {
    lane: usize,
    address: SocketAddr,
    host: String,
    dialect: Box<dyn Dialect>,
    socket: Option<TcpStream>,
    lost_at: Instant,
    /// Tags of the requests that wait for an answer, with the time of asking, in that order.
    waiting: VecDeque<(u64, Instant)>,
    out: Vec<u8>,
    written: usize,
    received: Vec<u8>,
    is_dirty: bool,
}

impl Connection {
    fn new(lane: usize, address: SocketAddr, host: String, dialect: Box<dyn Dialect>) -> Self {
        Self {
            lane,
            address,
            host,
            dialect,
            socket: None,
            lost_at: Instant::now(),
            waiting: VecDeque::new(),
            out: Vec::new(),
            written: 0,
            received: Vec::new(),
            is_dirty: false,
        }
    }

    /// Writes what there is, as far as the socket takes it.
    fn write(&mut self) -> io::Result<()> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        while self.written < self.out.len() {
            match socket.write(&self.out[self.written..]) {
                Ok(0) => return Err(IoErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == IoErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads what there is and passes answers on.
    fn read(&mut self, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), Lost> {
        loop {
            let Some(socket) = &mut self.socket else { return Ok(()) };
            let filled = self.received.len();
            self.received.resize(filled + READ_BYTES, 0);
            let read = socket.read(&mut self.received[filled..]);
            self.received.truncate(filled + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(Lost::Closed),
                Ok(bytes) => {
                    self.hear(answered)?;
                    if bytes < READ_BYTES {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == IoErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(_) => return Err(Lost::Closed),
            }
        }
    }

    fn hear(&mut self, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), Lost> {
        let (mut taken, lane) = (0, self.lane);
        while taken < self.received.len() {
            let (waiting, mut unasked) = (&mut self.waiting, false);
            let heard = self.dialect.hear(&self.received[taken..], &mut |answer| match waiting.pop_front() {
                Some((tag, _)) => answered(lane, tag, answer),
                None => unasked = true,
            });
            match heard {
                Ok(0) => break,
                Ok(bytes) => taken += bytes,
                Err(problem) => return Err(Lost::Nonsense(format!("{}: {problem}", self.host))),
            }
            if unasked {
                return Err(Lost::Nonsense(format!("{}: it answers more often than it is asked", self.host)));
            }
        }
        self.received.drain(..taken);
        Ok(())
    }

    /// Every request on it has failed; it is made again later.
    fn lose(&mut self, answered: &mut dyn FnMut(usize, u64, Answer), error: ErrorKind) {
        self.socket = None;
        self.lost_at = Instant::now();
        (self.out, self.written, self.received) = (Vec::new(), 0, Vec::new());
        for (tag, _) in self.waiting.drain(..) {
            answered(self.lane, tag, Answer::Failed(error));
        }
    }
}

/// Why a connection is over.
enum Lost {
    Closed,
    /// The other side does not speak what it should.
    Nonsense(String),
}

impl ForeignTarget {
    fn add(&mut self, mut connection: Connection, socket: TcpStream) -> Result<(), TargetError> {
        self.watch(self.connections.len(), &socket)?;
        connection.socket = Some(socket);
        self.connections.push(connection);
        Ok(())
    }

    fn watch(&self, number: usize, socket: &TcpStream) -> Result<(), TargetError> {
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number as u64), events)
            .map_err(|error| TargetError(format!("cannot wait for sockets: {error}")))
    }

    /// Gives up what has waited too long, and makes lost connections again. An answer that comes later would be taken for
    /// that to another request, so the connection goes too.
    fn look_after(&mut self, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        self.looked = Instant::now();
        for number in 0..self.connections.len() {
            let connection = &mut self.connections[number];
            if connection.waiting.front().is_some_and(|(_, asked)| asked.elapsed() > self.request_timeout) {
                connection.lose(answered, ErrorKind::TimeoutMaybeDone);
            }
            if connection.socket.is_some() || connection.lost_at.elapsed() < RECONNECT {
                continue;
            }
            connection.lost_at = Instant::now();
            if let Ok(socket) = dial(connection.address) {
                self.watch(number, &socket)?;
                self.connections[number].socket = Some(socket);
            }
        }
        Ok(())
    }

    fn write_dirty(&mut self, answered: &mut dyn FnMut(usize, u64, Answer)) {
        for number in self.dirty.drain(..) {
            let connection = &mut self.connections[number];
            connection.is_dirty = false;
            connection.dialect.end_batch(&mut connection.out);
            if connection.write().is_err() {
                connection.lose(answered, ErrorKind::Disconnected);
            }
        }
    }
}

impl Target for ForeignTarget {
    fn submit(&mut self, lane: usize, request: Request<'_>, tag: u64) -> Result<(), ErrorKind> {
        let own = lane * self.per_lane..(lane + 1) * self.per_lane;
        let up = own.filter(|number| self.connections[*number].socket.is_some());
        let number = up.min_by_key(|number| self.connections[*number].waiting.len()).ok_or(ErrorKind::NotTaken)?;
        let connection = &mut self.connections[number];
        connection.dialect.ask(&request, &mut connection.out);
        connection.waiting.push_back((tag, Instant::now()));
        if !std::mem::replace(&mut connection.is_dirty, true) {
            self.dirty.push(number);
        }
        Ok(())
    }

    fn poll(&mut self, wait: Duration, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        self.write_dirty(answered);
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
        for event in 0..self.events.len() {
            let number = self.events[event].data.u64() as usize;
            let connection = &mut self.connections[number];
            let lost = match connection.write() {
                Ok(()) => connection.read(answered).err(),
                Err(_) => Some(Lost::Closed),
            };
            match lost {
                None => {}
                Some(Lost::Closed) => connection.lose(answered, ErrorKind::Disconnected),
                Some(Lost::Nonsense(problem)) => return Err(TargetError(problem)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
