//! One connection to a foreign system: what was asked on it, what is to be written, what came.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind as IoErrorKind, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};

use super::Dialect;
use crate::target::{Answer, ErrorKind};

/// How long a connection has to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection that was lost is left alone before it is made again.
const RECONNECT: Duration = Duration::from_millis(100);
/// There is room for at least so much before each read.
const READ_BYTES: usize = 64 << 10;

/// What a connection is doing.
#[derive(Debug)]
enum Link {
    /// Requests can be made.
    Up(TcpStream),
    /// It is being made since then.
    Dialling(TcpStream, Instant),
    /// It was lost, or could not be made, at that time.
    Down(Instant),
}

/// A connection, or one that was.
#[derive(Debug)]
pub(super) struct Connection {
    /// The client that it belongs to.
    pub(super) lane: usize,
    /// How many requests beyond its share are on it.
    pub(super) beyond_share: usize,
    /// Whether there are requests that have not been written.
    pub(super) is_dirty: bool,
    address: SocketAddr,
    host: String,
    dialect: Box<dyn Dialect>,
    link: Link,
    /// Tags of the requests that wait for an answer, with the time of asking, in that order.
    waiting: VecDeque<(u64, Instant)>,
    out: Vec<u8>,
    written: usize,
    received: Vec<u8>,
}

/// Why a connection is over.
pub(super) enum Lost {
    /// The other side has closed it, or the network has.
    Closed,
    /// The other side does not speak what it should.
    Nonsense(String),
}

impl Connection {
    /// Makes a connection, and waits for it.
    pub(super) fn new(lane: usize, address: SocketAddr, host: &str, dialect: Box<dyn Dialect>) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            lane,
            beyond_share: 0,
            is_dirty: false,
            address,
            host: host.to_owned(),
            dialect,
            link: Link::Up(socket),
            waiting: VecDeque::new(),
            out: Vec::new(),
            written: 0,
            received: Vec::new(),
        })
    }

    /// Whether requests can be made.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// The socket, if there is one.
    pub(super) fn socket(&self) -> Option<&TcpStream> {
        match &self.link {
            Link::Up(socket) | Link::Dialling(socket, _) => Some(socket),
            Link::Down(_) => None,
        }
    }

    /// What the server said when it refused something for the first time.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.dialect.complaint()
    }

    /// How many requests wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Makes a request, which is written later.
    pub(super) fn ask(&mut self, request: &crate::target::Request<'_>, tag: u64, now: Instant) {
        self.dialect.ask(request, &mut self.out);
        self.waiting.push_back((tag, now));
    }

    /// Writes what was asked.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        self.is_dirty = false;
        if self.is_up() {
            self.dialect.end_batch(&mut self.out);
        }
        self.write()
    }

    /// Writes what there is, as far as the socket takes it.
    fn write(&mut self) -> Result<(), Lost> {
        let Link::Up(socket) = &mut self.link else { return Ok(()) };
        while self.written < self.out.len() {
            match socket.write(&self.out[self.written..]) {
                Ok(0) => return Err(Lost::Closed),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == IoErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(_) => return Err(Lost::Closed),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// The socket is ready for something: writes what there is, reads what there is, and passes answers on. If the other side
    /// `has_ended` it, to the end, of which nothing else will tell.
    pub(super) fn on_ready(
        &mut self,
        has_ended: bool,
        answered: &mut dyn FnMut(usize, u64, Answer),
    ) -> Result<(), Lost> {
        self.link = match std::mem::replace(&mut self.link, Link::Down(Instant::now())) {
            Link::Dialling(socket, since) => match sockopt::socket_error(&socket) {
                Ok(Ok(())) if socket.peer_addr().is_ok() => Link::Up(socket),
                Ok(Ok(())) => Link::Dialling(socket, since),
                _ => return Err(Lost::Closed),
            },
            link => link,
        };
        // Answers that came before the end count, though nothing more can be written.
        let written = self.write();
        self.read(has_ended, answered)?;
        written
    }

    fn read(&mut self, has_ended: bool, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), Lost> {
        loop {
            let Link::Up(socket) = &self.link else { return Ok(()) };
            self.received.reserve(READ_BYTES);
            let room = self.received.capacity() - self.received.len();
            match rustix::io::read(socket, spare_capacity(&mut self.received)) {
                Ok(0) => return Err(Lost::Closed),
                Ok(bytes) => {
                    self.hear(answered)?;
                    if bytes < room && !has_ended {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
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

    /// Every request on it has failed; it is made again later, and starts over then.
    pub(super) fn lose(&mut self, answered: &mut dyn FnMut(usize, u64, Answer), error: ErrorKind) {
        self.link = Link::Down(Instant::now());
        self.out.clear();
        self.written = 0;
        self.received.clear();
        self.dialect.start_over();
        for (tag, _) in self.waiting.drain(..) {
            answered(self.lane, tag, Answer::Failed(error));
        }
    }

    /// Whether the oldest request has waited longer than that.
    pub(super) fn is_overdue(&self, now: Instant, timeout: Duration) -> bool {
        self.waiting.front().is_some_and(|(_, asked)| now.saturating_duration_since(*asked) > timeout)
    }

    /// Sees to it that a connection that was lost is made again, without waiting for that. Whether there is a new socket.
    pub(super) fn look_after(&mut self, now: Instant) -> bool {
        match &self.link {
            Link::Dialling(_, since) if now.saturating_duration_since(*since) > CONNECT_TIMEOUT => {
                self.link = Link::Down(now);
            }
            Link::Down(since) if now.saturating_duration_since(*since) > RECONNECT => {
                self.link = dial(self.address).map_or(Link::Down(now), |socket| Link::Dialling(socket, now));
                return matches!(self.link, Link::Dialling(..));
            }
            Link::Up(_) | Link::Dialling(..) | Link::Down(_) => {}
        }
        false
    }
}

/// Begins to make a connection: the socket can be written to once it is made.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from(socket);
    socket.set_nodelay(true)?;
    Ok(socket)
}
