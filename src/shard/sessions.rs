//! The tasks of a shard's connections: accepting, dialling, hello, reading.

use std::{io, rc::Rc, time::Duration};

use futures_lite::AsyncReadExt;
use glommio::{
    net::{TcpListener, TcpStream},
    timer::Timer,
};

use super::{
    Shard,
    backoff::Backoff,
    connection::Connection,
    hello::{self, Code, PeerHello, Refusal},
    receive::Receiver,
    slab::Key,
};
use crate::{
    api::native::ClientHello,
    protocol::Protocol,
    topology::{NodeIndex, ZoneIndex},
    wire::{Frame, Kind},
};

/// The most that a connection may send before its first frame is whole.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// How long a dialled peer has to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Full reads of one connection before others have a turn.
const FULL_READS_MAX: usize = 8;

/// Why a session ended.
enum Ended {
    /// The other side closed it, or it broke.
    Gone(io::Error),
    /// This side closed it, because of what the other side sent.
    Refused(Refusal),
    /// The other side has refused this one.
    RefusedBy(Refusal),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type Session<T> = Result<T, Ended>;

/// A connection with its reader's half.
struct Stream {
    stream: TcpStream,
    receiver: Receiver,
    connection: Rc<Connection>,
    key: Key,
}

impl Stream {
    fn new<P: Protocol>(shard: &Shard<P>, stream: TcpStream) -> io::Result<Self> {
        let connection = Rc::new(Connection::of(&stream)?);
        let key = shard.core.borrow_mut().connected(Rc::clone(&connection));
        Ok(Self { stream, receiver: Receiver::new(shard.node.tuning.sockets.read_bytes), connection, key })
    }

    /// Reads once. How many bytes came, and whether there may be more at once.
    async fn read(&mut self) -> io::Result<(usize, bool)> {
        let spare = self.receiver.spare();
        let bytes = self.stream.read(spare).await?;
        let full = bytes == spare.len();
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.receiver.received(bytes);
        Ok((bytes, full))
    }

    /// The first frame.
    async fn first_frame(&mut self) -> Session<Frame> {
        let mut received = 0;
        loop {
            if let Some(frame) = self.receiver.next_frame().map_err(Refusal::malformed)? {
                return Ok(frame);
            }
            if received > HELLO_BYTES_MAX {
                return Err(Refusal::malformed(format!("the first frame has more than {HELLO_BYTES_MAX} bytes")).into());
            }
            received += self.read().await?.0;
        }
    }
}

/// Takes connections until it is cancelled.
pub(super) async fn accept<P: Protocol + 'static>(shard: Rc<Shard<P>>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let shard = Rc::clone(&shard);
                glommio::spawn_local(async move {
                    shard.serving.set(shard.serving.get() + 1);
                    serve(&shard, stream).await;
                    shard.serving.set(shard.serving.get() - 1);
                })
                .detach();
            }
            Err(error) => {
                tracing::warn!(node = %shard.id(), shard = shard.shard.0, "cannot take a connection: {error}");
                Timer::new(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One accepted connection, from hello to end.
async fn serve<P: Protocol>(shard: &Shard<P>, stream: TcpStream) {
    let mut stream = match Stream::new(shard, stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!("a connection was gone before it began: {error}"),
    };
    let ended = match stream.first_frame().await {
        Ok(frame) => match frame.kind {
            Kind::PeerHello => serve_peer(shard, &mut stream, &frame).await,
            Kind::ClientHello => serve_client(shard, &mut stream, &frame).await,
            kind => Err(Refusal::malformed(format!("a connection begins with a hello, not with a {kind:?}")).into()),
        },
        Err(ended) => Err(ended),
    };
    let Err(ended) = ended;
    shard.end(&stream, &ended);
}

/// Gives the reactor a turn. To yield would not do: a task that wakes itself keeps the reactor waiting.
async fn let_others_read() {
    Timer::new(Duration::from_micros(1)).await;
}

/// Nothing: a session that goes on until it ends.
type Never = std::convert::Infallible;

async fn serve_peer<P: Protocol>(shard: &Shard<P>, stream: &mut Stream, frame: &Frame) -> Session<Never> {
    let said = PeerHello::read(frame)?;
    let peer = hello::check(&shard.hello, &shard.node.cluster, &said)?;
    if peer < shard.node.index {
        let reason = format!("{} is dialled by {}, not the other way round", shard.cluster_id(peer), shard.id());
        return Err(Refusal::new(Code::Member, reason).into());
    }
    shard.node.incarnations.check(peer, &said)?;
    stream.connection.send_now(&shard.hello.frame(Kind::PeerWelcome))?;
    run_link(shard, stream, peer).await
}

/// Keeps a link to `peer` for as long as it runs.
pub(super) async fn dial<P: Protocol>(shard: Rc<Shard<P>>, peer: NodeIndex) {
    let timers = &shard.node.tuning.timers;
    let seed = shard.node.incarnation ^ u64::from(shard.shard.0) << 32 ^ u64::from(peer.0);
    let mut backoff = Backoff::new(timers.reconnect_min_us, timers.reconnect_max_us, seed);
    let mut last_error = None;
    loop {
        let (was_up, error) = dial_once(&shard, peer).await;
        if was_up {
            backoff.reset();
        }
        let error = error.to_string();
        if last_error.as_ref() != Some(&error) {
            let (node, peer, shard) = (shard.id(), shard.cluster_id(peer), shard.shard.0);
            tracing::info!(%node, %peer, shard, "no link: {error}; dialling again");
            last_error = Some(error);
        }
        Timer::new(Duration::from_micros(backoff.next_us())).await;
    }
}

/// One attempt: whether the link was up, and why it is not any more.
async fn dial_once<P: Protocol>(shard: &Shard<P>, peer: NodeIndex) -> (bool, io::Error) {
    let address = shard.node.cluster.member(peer).shards[usize::from(shard.shard.0)];
    let stream = match TcpStream::connect_timeout(address, CONNECT_TIMEOUT).await {
        Ok(stream) => stream,
        Err(error) => return (false, into_io(error)),
    };
    let mut stream = match Stream::new(shard, stream) {
        Ok(stream) => stream,
        Err(error) => return (false, error),
    };
    let Err(ended) = greet(shard, &mut stream, peer).await;
    let was_up = stream.connection.established.get();
    shard.end(&stream, &ended);
    let error = match ended {
        Ended::Gone(error) => error,
        Ended::Refused(refusal) | Ended::RefusedBy(refusal) => io::Error::other(refusal.to_string()),
    };
    (was_up, error)
}

async fn greet<P: Protocol>(shard: &Shard<P>, stream: &mut Stream, peer: NodeIndex) -> Session<Never> {
    stream.connection.send_now(&shard.hello.frame(Kind::PeerHello))?;
    let frame = stream.first_frame().await?;
    match frame.kind {
        Kind::PeerWelcome => {}
        Kind::Refused => {
            let refusal = Refusal::read(frame.body());
            shard.core.borrow().refused_by(peer, &refusal);
            return Err(Ended::RefusedBy(refusal));
        }
        kind => return Err(Refusal::malformed(format!("the answer to a hello is not a {kind:?}")).into()),
    }
    let said = PeerHello::read(&frame)?;
    let answers = hello::check(&shard.hello, &shard.node.cluster, &said)?;
    if answers != peer {
        let reason = format!("{} was dialled, {} answers", shard.cluster_id(peer), said.node);
        return Err(Refusal::new(Code::Member, reason).into());
    }
    shard.node.incarnations.check(peer, &said)?;
    run_link(shard, stream, peer).await
}

/// Carries frames from a link to the protocol until it ends.
async fn run_link<P: Protocol>(shard: &Shard<P>, stream: &mut Stream, peer: NodeIndex) -> Session<Never> {
    let sockets = &shard.node.tuning.sockets;
    stream.connection.set_buffers(sockets.send_buffer_bytes, sockets.receive_buffer_bytes)?;
    let (node, other) = (shard.id(), shard.cluster_id(peer));
    let serial = shard.core.borrow_mut().link_up(peer, Rc::clone(&stream.connection));
    tracing::info!(%node, peer = %other, shard = shard.shard.0, "link up");
    let Err(ended) = read_link(shard, stream, peer, serial).await;
    shard.core.borrow_mut().link_down(peer, serial);
    shard.wake.notify();
    tracing::info!(%node, peer = %other, shard = shard.shard.0, "link down");
    Err(ended)
}

async fn read_link<P: Protocol>(shard: &Shard<P>, stream: &mut Stream, peer: NodeIndex, serial: u64) -> Session<Never> {
    // Frames may have come with the hello.
    let (mut bytes, mut full_reads, mut full) = (0, 0, false);
    loop {
        let handled = shard.core.borrow_mut().on_link_bytes(peer, serial, bytes, &mut stream.receiver);
        shard.wake.notify();
        handled?;
        full_reads = if full { full_reads + 1 } else { 0 };
        if full_reads >= FULL_READS_MAX {
            full_reads = 0;
            let_others_read().await;
        }
        (bytes, full) = stream.read().await?;
    }
}

async fn serve_client<P: Protocol>(shard: &Shard<P>, stream: &mut Stream, frame: &Frame) -> Session<Never> {
    let hello: ClientHello = serde_json::from_slice(frame.body())
        .map_err(|error| Refusal::malformed(format!("the ClientHello is not readable: {error}")))?;
    let zone = shard.admit_client(&hello)?;
    let client = shard.core.borrow_mut().client_up(Rc::clone(&stream.connection), zone, &shard.welcome);
    shard.wake.notify();
    let Err(ended) = read_client(shard, stream, client).await;
    shard.core.borrow_mut().client_down(client);
    Err(ended)
}

async fn read_client<P: Protocol>(shard: &Shard<P>, stream: &mut Stream, client: Key) -> Session<Never> {
    let (mut bytes, mut full_reads, mut full) = (0, 0, false);
    loop {
        let handled = shard.core.borrow_mut().on_client_bytes(client, bytes, &mut stream.receiver);
        shard.wake.notify();
        if handled? {
            stream.connection.resume.notified().await;
        }
        full_reads = if full { full_reads + 1 } else { 0 };
        if full_reads >= FULL_READS_MAX {
            full_reads = 0;
            let_others_read().await;
        }
        (bytes, full) = stream.read().await?;
    }
}

impl<P: Protocol> Shard<P> {
    /// Checks a client's words: the zone that it is in.
    fn admit_client(&self, hello: &ClientHello) -> Result<ZoneIndex, Refusal> {
        let cluster = &self.node.cluster;
        if let Some(name) = hello.cluster.as_ref().filter(|name| **name != cluster.name) {
            let reason = format!("the client wants cluster '{name}', this is '{}'", cluster.name);
            return Err(Refusal::new(Code::Cluster, reason));
        }
        if hello.client == 0 {
            return Err(Refusal::malformed("a client's number is not 0"));
        }
        let Some(number) = hello.zone else { return Ok(self.node.member().zone) };
        match cluster.zones.iter().position(|zone| zone.number == number) {
            Some(zone) => Ok(ZoneIndex(zone as u8)),
            None => {
                let known: Vec<_> = cluster.zones.iter().map(|zone| zone.number.to_string()).collect();
                let reason = format!("there is no zone {number}; the cluster has {}", known.join(", "));
                Err(Refusal::new(Code::Zone, reason))
            }
        }
    }

    /// Ends a session: says why, if it was for what the other side sent, and lets the connection go.
    fn end(&self, stream: &Stream, ended: &Ended) {
        let mut core = self.core.borrow_mut();
        if let Ended::Refused(refusal) = ended {
            core.counters.connections_refused += 1;
            let (node, peer) = (self.id(), stream.connection.peer);
            tracing::warn!(%node, shard = self.shard.0, %peer, "refused: {refusal}");
            // A courtesy: where it does not fit into the socket, the log line has to do.
            let _ = stream.connection.send_now(&refusal.frame(self.shard));
        }
        core.disconnected(stream.key);
        self.wake.notify();
    }
}

fn into_io(error: glommio::GlommioError<()>) -> io::Error {
    match error {
        glommio::GlommioError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
