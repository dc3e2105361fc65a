//! One connection from hello to end, as a machine that is handed what was read: the tasks of [`super::sessions`] drive it
//! over sockets, the simulator over its own network.

use std::{io, rc::Rc};

use super::{
    Shard,
    admission::Speaks,
    connection::Connection,
    core::Unread,
    hello::{self, Code, PeerHello, Refusal},
    receive::Receiver,
    slab::Key,
};
use crate::{
    api::native::ClientHello,
    diagnostics::Quoted,
    protocol::Protocol,
    topology::{NodeIndex, ZoneIndex},
    wire::{Frame, Kind},
};

/// The most that a connection may send before its first frame is whole.
const HELLO_BYTES_MAX: usize = 64 << 10;

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
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

impl Ended {
    /// As an error of the connection.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Gone(error) => error,
            Self::Refused(refusal) | Self::RefusedBy(refusal) => io::Error::other(refusal.to_string()),
        }
    }
}

/// Whether the reader goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reading {
    /// It reads on.
    On,
    /// It waits for [`Connection::resume`], and then goes on with [`Session::go_on`].
    Paused,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Somebody has called; nothing whole has come from him.
    Called,
    /// This node has called a peer, which has not answered.
    Calling(NodeIndex),
    /// The link to a peer, with its number.
    Link(NodeIndex, u64),
    /// A client.
    Client(Key),
}

/// A connection with its reader's half.
pub(crate) struct Session {
    connection: Rc<Connection>,
    receiver: Receiver,
    key: Key,
    stage: Stage,
    /// Bytes that came before the first whole frame.
    hello_bytes: usize,
    /// A client's frame of which a turn has taken a part.
    unread: Option<Unread>,
}

impl Session {
    /// A connection that somebody has opened.
    pub(crate) fn accept<P: Protocol>(shard: &Shard<P>, connection: Connection) -> Self {
        Self::new(shard, connection, Stage::Called)
    }

    /// A connection that this node has opened to `peer`: says hello.
    ///
    /// # Errors
    /// If it is gone already; the session is over then.
    pub(crate) fn call<P: Protocol>(shard: &Shard<P>, connection: Connection, peer: NodeIndex) -> Result<Self, Ended> {
        let session = Self::new(shard, connection, Stage::Calling(peer));
        match session.connection.send_now(&shard.hello.frame(Kind::PeerHello)) {
            Ok(()) => Ok(session),
            Err(error) => {
                let ended = Ended::Gone(error);
                session.end(shard, &ended);
                Err(ended)
            }
        }
    }

    fn new<P: Protocol>(shard: &Shard<P>, connection: Connection, stage: Stage) -> Self {
        let connection = Rc::new(connection);
        let called = matches!(stage, Stage::Called);
        let key = shard.core.borrow_mut().connected(Rc::clone(&connection), called);
        let receiver = Receiver::new(shard.node.tuning.sockets.read_bytes);
        Self { connection, receiver, key, stage, hello_bytes: 0, unread: None }
    }

    /// The sending half.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whether both sides have said hello.
    pub(crate) fn is_established(&self) -> bool {
        self.connection.established.get()
    }

    /// Where the next read goes; never empty.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        self.receiver.spare()
    }

    /// So many bytes were read into the front of [`Self::spare`]: handles the frames that are whole now.
    ///
    /// # Errors
    /// Why the session has to end.
    pub(crate) fn received<P: Protocol>(&mut self, shard: &Shard<P>, bytes: usize) -> Result<Reading, Ended> {
        if bytes == 0 {
            return Err(Ended::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        self.receiver.received(bytes);
        let mut bytes = bytes;
        if matches!(self.stage, Stage::Called | Stage::Calling(_)) {
            let Some(frame) = self.receiver.next_frame().map_err(Refusal::malformed)? else {
                self.hello_bytes += bytes;
                if self.hello_bytes > HELLO_BYTES_MAX {
                    let reason = format!("the first frame has more than {HELLO_BYTES_MAX} bytes");
                    return Err(Refusal::malformed(reason).into());
                }
                return Ok(Reading::On);
            };
            self.stage = self.first_frame(shard, &frame)?;
            if matches!(self.stage, Stage::Client(_)) {
                self.receiver.charge(&shard.budget);
            }
            // More frames may have come with the hello.
            bytes = 0;
        }
        self.handle(shard, bytes)
    }

    /// Goes on after [`Reading::Paused`] with what was read before.
    ///
    /// # Errors
    /// Why the session has to end.
    pub(crate) fn go_on<P: Protocol>(&mut self, shard: &Shard<P>) -> Result<Reading, Ended> {
        if self.connection.is_closed() {
            return Err(Ended::Gone(io::ErrorKind::ConnectionAborted.into()));
        }
        self.handle(shard, 0)
    }

    fn handle<P: Protocol>(&mut self, shard: &Shard<P>, bytes: usize) -> Result<Reading, Ended> {
        let mut core = shard.core.borrow_mut();
        let reading = match self.stage {
            Stage::Link(peer, serial) => {
                let paused = core.on_link_bytes(peer, serial, bytes, &mut self.receiver);
                paused.map(|paused| if paused { Reading::Paused } else { Reading::On })
            }
            Stage::Client(client) => core.on_client_bytes(client, bytes, &mut self.receiver, &mut self.unread),
            Stage::Called | Stage::Calling(_) => unreachable!("the first frame has settled who this is"),
        };
        shard.wake.notify();
        Ok(reading?)
    }

    fn first_frame<P: Protocol>(&self, shard: &Shard<P>, frame: &Frame) -> Result<Stage, Ended> {
        match (self.stage, frame.kind) {
            (Stage::Calling(peer), _) => self.welcomed(shard, peer, frame),
            (_, Kind::PeerHello) => self.welcome_peer(shard, frame),
            (_, Kind::ClientHello) => self.welcome_client(shard, frame),
            (_, kind) => {
                Err(Refusal::malformed(format!("a connection begins with a hello, not with a {kind:?}")).into())
            }
        }
    }

    /// A peer has called.
    fn welcome_peer<P: Protocol>(&self, shard: &Shard<P>, frame: &Frame) -> Result<Stage, Ended> {
        let said = PeerHello::read(frame)?;
        let peer = hello::check(&shard.hello, &shard.node.cluster, &said)?;
        if peer < shard.node.index {
            let reason = format!("{} is dialled by {}, not the other way round", shard.cluster_id(peer), shard.id());
            return Err(Refusal::new(Code::Member, reason).into());
        }
        not_taken(shard, peer, &said)?;
        not_cut(shard, peer)?;
        self.connection.send_now(&shard.hello.frame(Kind::PeerWelcome))?;
        self.link_up(shard, peer, said.incarnation)
    }

    /// A peer has answered.
    fn welcomed<P: Protocol>(&self, shard: &Shard<P>, peer: NodeIndex, frame: &Frame) -> Result<Stage, Ended> {
        match frame.kind {
            Kind::PeerWelcome => {}
            Kind::Refused => {
                let refusal = Refusal::read(frame.body());
                shard.core.borrow_mut().refused_by(peer, &refusal);
                return Err(Ended::RefusedBy(refusal));
            }
            kind => return Err(Refusal::malformed(format!("the answer to a hello is not a {kind:?}")).into()),
        }
        let said = PeerHello::read(frame)?;
        let answers = hello::check(&shard.hello, &shard.node.cluster, &said)?;
        if answers != peer {
            let reason = format!("{} was dialled, {} answers", shard.cluster_id(peer), said.node);
            return Err(Refusal::new(Code::Member, reason).into());
        }
        not_taken(shard, peer, &said)?;
        self.link_up(shard, peer, said.incarnation)
    }

    fn link_up<P: Protocol>(&self, shard: &Shard<P>, peer: NodeIndex, incarnation: u64) -> Result<Stage, Ended> {
        not_cut(shard, peer)?;
        let sockets = &shard.node.tuning.sockets;
        self.connection.socket().set_buffers(sockets.send_buffer_bytes, sockets.receive_buffer_bytes)?;
        let serial = shard.core.borrow_mut().link_up(peer, incarnation, Rc::clone(&self.connection));
        tracing::info!(node = %shard.id(), peer = %shard.cluster_id(peer), shard = shard.shard.0, "link up");
        Ok(Stage::Link(peer, serial))
    }

    /// A client has called.
    fn welcome_client<P: Protocol>(&self, shard: &Shard<P>, frame: &Frame) -> Result<Stage, Ended> {
        let hello: ClientHello = serde_json::from_slice(frame.body()).map_err(|error| {
            Refusal::malformed(format!("the ClientHello is not readable: {}", hello::quoted(&error)))
        })?;
        let zone = shard.admit_client(&hello)?;
        let seat = shard.node.admission.admit(Speaks::Native);
        let seat = seat.map_err(|why| Refusal::new(Code::Full, why))?;
        let client = shard.core.borrow_mut().client_up(Rc::clone(&self.connection), zone, seat, &shard.welcome);
        Ok(Stage::Client(client))
    }

    /// Ends the session: takes the link down or the client out, says why if it was for what the other side sent, and lets
    /// the connection go.
    pub(crate) fn end<P: Protocol>(self, shard: &Shard<P>, ended: &Ended) {
        let mut core = shard.core.borrow_mut();
        match self.stage {
            Stage::Link(peer, serial) => {
                core.link_down(peer, serial);
                tracing::info!(node = %shard.id(), peer = %shard.cluster_id(peer), shard = shard.shard.0, "link down");
            }
            Stage::Client(client) => core.client_down(client),
            Stage::Called | Stage::Calling(_) => {}
        }
        if let Ended::Refused(refusal) = ended {
            core.counters.connections_refused += 1;
            let (node, peer) = (shard.id(), self.connection.peer);
            tracing::warn!(%node, shard = shard.shard.0, %peer, "refused: {refusal}");
            // A courtesy: where it does not fit into the socket, the log line has to do.
            let _ = self.connection.send_now(&refusal.frame(shard.shard));
        }
        core.disconnected(self.key);
        shard.wake.notify();
    }
}

/// A member that is linked and alive is not put out of its place by somebody else who says that he is it.
fn not_taken<P: Protocol>(shard: &Shard<P>, peer: NodeIndex, said: &PeerHello) -> Result<(), Refusal> {
    if !shard.core.borrow().is_taken(peer, said.incarnation) {
        return Ok(());
    }
    let reason = format!(
        "{} is linked to {} as another incarnation than {:016x}: two processes run as one node; stop one of them",
        said.node,
        shard.id(),
        said.incarnation
    );
    Err(Refusal::new(Code::Taken, reason))
}

/// No connection becomes a link while an injected fault cuts it.
fn not_cut<P: Protocol>(shard: &Shard<P>, peer: NodeIndex) -> Result<(), Ended> {
    match shard.core.borrow().is_cut(peer) {
        true => Err(Ended::Gone(io::Error::other("an injected fault cuts the link"))),
        false => Ok(()),
    }
}

impl<P: Protocol> Shard<P> {
    /// Checks a client's words: the zone that it is in.
    fn admit_client(&self, hello: &ClientHello) -> Result<ZoneIndex, Refusal> {
        let cluster = &self.node.cluster;
        if let Some(name) = hello.cluster.as_ref().filter(|name| **name != cluster.name) {
            let reason = format!("the client wants cluster '{}', this is '{}'", Quoted::name(name), cluster.name);
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
}
