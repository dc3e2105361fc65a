//! One connection to one shard of one node: its buffers, its frames, its coming and going.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, ToSocketAddrs},
};

use bytes::BytesMut;
use mio::net::TcpStream;

use crate::{
    api::native,
    protocol::{Micros, ReadMode},
    wire::{self, FrameError, FrameRef, Kind},
};

/// A frame is ended and the next begun once its body has this many bytes: what one turn of a shard is glad to take.
const FRAME_BODY_BYTES: usize = 64 << 10;
const _: () = assert!(FRAME_BODY_BYTES + crate::command::COMMAND_BYTES_MAX + 64 < native::BODY_BYTES_MAX);
/// With so much to write, nothing waits for company.
const HELD_BYTES_MAX: usize = 16 << 10;
const RECEIVE_BYTES_MIN: usize = 64 << 10;
/// A receive buffer grows to this for throughput, and beyond only for a frame that needs it.
const RECEIVE_BYTES_USUAL: usize = 1 << 20;
const RECONNECT_MIN_US: u64 = 20_000;
const RECONNECT_MAX_US: u64 = 1_000_000;
const FAILURES_TO_RESOLVE_AGAIN: u32 = 32;

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum Stage {
    /// There is none; the next is not tried before `at`.
    Down {
        /// When.
        at: Micros,
    },
    /// The operating system is connecting.
    Connecting(TcpStream),
    /// The hello is on its way; the welcome is waited for.
    Greeting(TcpStream),
    /// Requests flow.
    Ready(TcpStream),
}

/// A connection to one shard of one node, over all its lives.
#[derive(Debug)]
pub(super) struct Connection {
    /// `host:port`.
    pub(super) address: String,
    /// The shard.
    pub(super) shard: u16,
    /// Where it is.
    pub(super) stage: Stage,
    /// Which life this is; rises when one ends.
    pub(super) epoch: u64,
    /// Lives that ended in a row without an answer to a request.
    pub(super) failures: u32,
    /// When it must be ready, while it is connecting or greeting.
    pub(super) ready_by: Micros,
    /// When bytes came last.
    pub(super) heard: Micros,
    /// Since when it has been taken for dead; cleared by any byte.
    pub(super) silent_since: Option<Micros>,
    /// The replica is stopping: it gets no new requests before this.
    pub(super) avoid_until: Micros,
    /// Requests that wait for it to come up.
    pub(super) queued: Vec<u64>,
    /// Whether it is in the list of those that have something to write.
    pub(super) dirty: bool,
    /// Since when.
    pub(super) dirty_since: Micros,
    /// Whether no answer has come since requests were last written.
    pub(super) awaits: bool,
    /// What `address` resolved to.
    resolved: Option<SocketAddr>,
    out: BytesMut,
    /// Bytes of `out` that are written.
    written: usize,
    /// Bytes that were in `out` before what is now its beginning.
    before: u64,
    /// Where the frame that is being built begins in `out`.
    building: Option<usize>,
    /// Frames finished since the last write.
    frames: usize,
    received: Vec<u8>,
    /// What of `received` is not parsed yet.
    unparsed: std::ops::Range<usize>,
}

/// What writing did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Written {
    /// Frames that were finished for it.
    pub(super) frames: usize,
    /// Bytes that left.
    pub(super) bytes: usize,
    /// System calls.
    pub(super) calls: usize,
}

/// What reading gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Received {
    /// Bytes that came.
    pub(super) bytes: usize,
    /// Whether more may be waiting: parse, then read again.
    pub(super) more: bool,
    /// Whether the other side has closed.
    pub(super) closed: bool,
}

impl Connection {
    /// One that has never been opened.
    pub(super) fn new(address: String, shard: u16) -> Self {
        Self {
            address,
            shard,
            stage: Stage::Down { at: Micros(0) },
            epoch: 0,
            failures: 0,
            ready_by: Micros(0),
            heard: Micros(0),
            silent_since: None,
            avoid_until: Micros(0),
            queued: Vec::new(),
            dirty: false,
            dirty_since: Micros(0),
            awaits: false,
            resolved: None,
            out: BytesMut::new(),
            written: 0,
            before: 0,
            building: None,
            frames: 0,
            received: Vec::new(),
            unparsed: 0..0,
        }
    }

    /// The socket, if there is one.
    pub(super) fn stream(&mut self) -> Option<&mut TcpStream> {
        match &mut self.stage {
            Stage::Down { .. } => None,
            Stage::Connecting(stream) | Stage::Greeting(stream) | Stage::Ready(stream) => Some(stream),
        }
    }

    /// Whether requests flow.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Whether a new request may go this way: it is up and well, or has given no reason for doubt yet.
    pub(super) fn is_usable(&self, now: Micros) -> bool {
        match self.stage {
            Stage::Ready(_) => self.silent_since.is_none() && self.avoid_until <= now,
            _ => self.failures == 0,
        }
    }

    /// Begins to connect. A host name is resolved here, which may block, at first and after every
    /// [`FAILURES_TO_RESOLVE_AGAIN`] failures; a numeric address does not block.
    ///
    /// # Errors
    /// If the name does not resolve or the operating system refuses.
    pub(super) fn open(&mut self, now: Micros, patience_us: u64) -> io::Result<()> {
        let known =
            self.resolved.filter(|_| self.failures % FAILURES_TO_RESOLVE_AGAIN != FAILURES_TO_RESOLVE_AGAIN - 1);
        let address = known.map_or_else(|| resolve(&self.address), Ok)?;
        self.resolved = Some(address);
        self.stage = Stage::Connecting(TcpStream::connect(address)?);
        self.ready_by = now.plus(patience_us);
        Ok(())
    }

    /// Moves on once the socket is writable: asks whether connecting succeeded, and sends the hello. False while it is still
    /// connecting.
    ///
    /// # Errors
    /// Why it did not connect.
    pub(super) fn greet(&mut self, hello: &[u8]) -> io::Result<bool> {
        let Stage::Connecting(stream) = &self.stage else { return Ok(true) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
            other => other?,
        };
        stream.set_nodelay(true)?;
        if let Stage::Connecting(mut stream) = std::mem::replace(&mut self.stage, Stage::Down { at: Micros(0) }) {
            // A fresh socket's buffer takes a hello whole; one that does not is broken.
            let sent = stream.write(hello)?;
            if sent != hello.len() {
                return Err(ErrorKind::WriteZero.into());
            }
            self.stage = Stage::Greeting(stream);
        }
        Ok(true)
    }

    /// The welcome came: requests may flow.
    pub(super) fn become_ready(&mut self) {
        if let Stage::Greeting(stream) = std::mem::replace(&mut self.stage, Stage::Down { at: Micros(0) }) {
            self.stage = Stage::Ready(stream);
        }
    }

    /// Ends this life. Gives how much of what was ever handed over had been written, by position, so that requests behind
    /// it are known never to have left. The pause before the next life grows, `jitter` (0 to 255) of 256 parts of it by
    /// chance.
    pub(super) fn become_down(&mut self, now: Micros, jitter: u8) -> u64 {
        let written = self.before + self.written as u64;
        self.failures = self.failures.saturating_add(1);
        let pause = (RECONNECT_MIN_US << self.failures.min(10)).min(RECONNECT_MAX_US);
        self.stage = Stage::Down { at: now.plus(pause / 2 + pause / 2 * u64::from(jitter) / 256) };
        self.before += self.out.len() as u64;
        self.epoch += 1;
        self.silent_since = None;
        self.awaits = false;
        self.avoid_until = Micros(0);
        self.out = BytesMut::new();
        self.written = 0;
        self.building = None;
        self.received = Vec::new();
        self.unparsed = 0..0;
        written
    }

    /// Hands over one encoded command; gives its position.
    pub(super) fn push(&mut self, command: &[u8], read: ReadMode) -> u64 {
        if let Some(start) = self.building
            && self.out.len() - start > FRAME_BODY_BYTES
        {
            self.finish_frame();
        }
        if self.building.is_none() {
            self.building = Some(wire::begin(&mut self.out));
        }
        let position = self.before + self.out.len() as u64;
        native::put_request_prefix(&mut self.out, command.len(), read);
        self.out.extend_from_slice(command);
        position
    }

    /// Until when what was handed over may wait for more: while an answer is on its way, since several requests in one frame
    /// cost hardly more than one. Large frames do not wait.
    pub(super) fn holds_until(&self, linger_us: u64) -> Option<Micros> {
        let small = self.out.len() - self.written < HELD_BYTES_MAX;
        (self.is_ready() && self.awaits && small).then(|| self.dirty_since.plus(linger_us))
    }

    fn finish_frame(&mut self) {
        if let Some(start) = self.building.take() {
            wire::finish(&mut self.out, start, Kind::Request, self.shard, 0);
            self.frames += 1;
        }
    }

    /// Writes what was handed over, as far as the socket takes it.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) fn write(&mut self) -> io::Result<Written> {
        self.finish_frame();
        let mut done = Written { frames: std::mem::take(&mut self.frames), ..Written::default() };
        let Stage::Ready(stream) = &mut self.stage else { return Ok(done) };
        self.awaits |= self.written < self.out.len();
        while self.written < self.out.len() {
            done.calls += 1;
            match stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.written += sent;
                    done.bytes += sent;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.drop_written();
        Ok(done)
    }

    /// Forgets what is written once that is most of the buffer, so that moving the rest is cheap.
    fn drop_written(&mut self) {
        if self.written * 2 < self.out.len() || self.written == 0 {
            return;
        }
        let rest = self.out.len() - self.written;
        self.out.copy_within(self.written.., 0);
        self.out.truncate(rest);
        self.before += self.written as u64;
        self.written = 0;
    }

    /// Reads once.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) fn read(&mut self) -> io::Result<Received> {
        self.make_room();
        let Some(stream) = (match &mut self.stage {
            Stage::Greeting(stream) | Stage::Ready(stream) => Some(stream),
            Stage::Down { .. } | Stage::Connecting(_) => None,
        }) else {
            return Ok(Received { bytes: 0, more: false, closed: false });
        };
        let room = &mut self.received[self.unparsed.end..];
        loop {
            match stream.read(room) {
                Ok(bytes) => {
                    self.unparsed.end += bytes;
                    // What did not fill the buffer was all there was (epoll(7), edge-triggered).
                    return Ok(Received { bytes, more: bytes == room.len(), closed: bytes == 0 });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Received { bytes: 0, more: false, closed: false });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes sure that there is something to read into. Grows only by bytes that came: a buffer that is full of one
    /// unfinished frame doubles.
    fn make_room(&mut self) {
        if self.unparsed.is_empty() {
            self.unparsed = 0..0;
            if self.received.len() > RECEIVE_BYTES_USUAL {
                self.received = Vec::new();
            }
        }
        if self.received.is_empty() {
            self.received = vec![0; RECEIVE_BYTES_MIN];
        }
        let room = self.received.len() - self.unparsed.end;
        if self.unparsed.start > 0 && room < self.received.len() / 2 {
            self.received.copy_within(self.unparsed.clone(), 0);
            self.unparsed = 0..self.unparsed.len();
        }
        if self.unparsed.end == self.received.len() {
            self.received.resize(self.received.len() * 2, 0);
        }
    }

    /// Grows the buffer for the next read if this one was `filled`: the other side sends faster than we take.
    pub(super) fn widen(&mut self, filled: bool) {
        if filled && self.unparsed.is_empty() && self.received.len() < RECEIVE_BYTES_USUAL {
            self.received = vec![0; self.received.len() * 2];
            self.unparsed = 0..0;
        }
    }

    /// Takes the bytes out to look at the frames in them; give them back with [`Self::give_back`].
    pub(super) fn take_received(&mut self) -> (Vec<u8>, std::ops::Range<usize>) {
        (std::mem::take(&mut self.received), self.unparsed.clone())
    }

    /// Gives the bytes back, with what of them is not parsed; drops them if the connection has gone down meanwhile.
    pub(super) fn give_back(&mut self, received: Vec<u8>, unparsed: std::ops::Range<usize>) {
        if !matches!(self.stage, Stage::Down { .. }) {
            self.received = received;
            self.unparsed = unparsed;
        }
    }
}

/// Takes the next whole frame off the front of `unparsed`, or `None` if it is not whole yet.
///
/// # Errors
/// If the bytes are not a frame.
pub(super) fn next_frame<'a>(
    received: &'a [u8],
    unparsed: &mut std::ops::Range<usize>,
) -> Result<Option<FrameRef<'a>>, FrameError> {
    let bytes = &received[unparsed.clone()];
    let Some(frame) = wire::frame_bytes(bytes)?.and_then(|length| bytes.get(..length)) else {
        return Ok(None);
    };
    unparsed.start += frame.len();
    wire::view(frame).map(Some)
}

/// The first address of `host:port`.
///
/// # Errors
/// If it is no such thing or the name does not resolve.
pub(super) fn resolve(address: &str) -> io::Result<SocketAddr> {
    if let Ok(literal) = address.parse() {
        return Ok(literal);
    }
    let mut found = address.to_socket_addrs()?;
    found.next().ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("'{address}' has no address")))
}
