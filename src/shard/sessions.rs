//! The tasks of a shard's connections: accepting, dialling, reading. What is read goes to its [`Session`].

use std::{io, net::TcpStream, rc::Rc, time::Duration};

use glommio::timer::Timer;

use super::{
    Shard,
    backoff::Backoff,
    connection::{Connection, duplicate},
    poller::{Acceptor, Reader},
    session::{Ended, Reading, Session},
};
use crate::{
    protocol::{Micros, Protocol},
    topology::NodeIndex,
};

/// How long a dialled peer has to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Full reads of one connection before others have a turn.
const FULL_READS_MAX: usize = 8;

/// Connections that are taken in a row before their readers have a turn.
const ACCEPTED_MAX: usize = 16;
/// How long no connection is taken when the system or the shard has no room for one.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Takes connections until it is cancelled.
pub(super) async fn accept<P: Protocol + 'static>(shard: Rc<Shard<P>>, acceptor: Acceptor) {
    let mut trouble = Trouble::default();
    let mut accepted = 0;
    loop {
        while !shard.core.borrow_mut().has_room_for_stranger() {
            Timer::new(FULL_PAUSE).await;
        }
        match acceptor.accept().await {
            Ok(stream) => {
                let shard = Rc::clone(&shard);
                glommio::spawn_local(async move {
                    shard.serving.set(shard.serving.get() + 1);
                    serve(&shard, stream).await;
                    shard.serving.set(shard.serving.get() - 1);
                })
                .detach();
                accepted += 1;
                if accepted >= ACCEPTED_MAX {
                    accepted = 0;
                    let_others_read().await;
                }
            }
            Err(error) => trouble.wait(&shard, "connection", &error).await,
        }
    }
}

/// Trouble with taking connections: said once in a while, and never a reason to end or to spin.
#[derive(Default)]
pub(super) struct Trouble {
    said_at: Option<Micros>,
}

impl Trouble {
    /// How often it is said, in microseconds.
    const SAY_US: u64 = 10_000_000;

    /// Waits until the next attempt.
    pub(super) async fn wait<P: Protocol>(&mut self, shard: &Shard<P>, what: &str, error: &io::Error) {
        let now = shard.node.now();
        if self.said_at.is_none_or(|said_at| now.since(said_at) >= Self::SAY_US) {
            self.said_at = Some(now);
            tracing::warn!(node = %shard.id(), shard = shard.shard.0, "cannot take a {what}: {error}; trying again");
        }
        Timer::new(Duration::from_millis(50)).await;
    }
}

/// Both halves of a connection.
fn split<P: Protocol>(shard: &Shard<P>, stream: TcpStream) -> io::Result<(Reader, Connection)> {
    let poller = shard.poller.as_ref().expect("tasks run in an executor");
    let socket = Rc::new(stream);
    Ok((poller.reader(Rc::clone(&socket))?, Connection::of(socket)?))
}

/// One accepted connection, from hello to end.
async fn serve<P: Protocol>(shard: &Shard<P>, stream: TcpStream) {
    let (mut incoming, connection) = match split(shard, stream) {
        Ok(halves) => halves,
        Err(error) => return tracing::debug!("a connection was gone before it began: {error}"),
    };
    let mut session = Session::accept(shard, connection);
    let Err(ended) = read(shard, &mut incoming, &mut session).await;
    session.end(shard, &ended);
}

/// Keeps a link to `peer` for as long as it runs.
pub(super) async fn dial<P: Protocol>(shard: Rc<Shard<P>>, peer: NodeIndex) {
    let mut backoff = shard.backoff(peer);
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
    if shard.core.borrow().is_cut(peer) {
        return (false, io::Error::other("an injected fault cuts the link"));
    }
    let stream = match glommio::net::TcpStream::connect_timeout(address, CONNECT_TIMEOUT).await {
        Ok(stream) => stream,
        Err(glommio::GlommioError::IoError(error)) => return (false, error),
        Err(other) => return (false, io::Error::other(other.to_string())),
    };
    let own = duplicate(&stream);
    // The runtime's is not needed any more.
    drop(stream);
    let (mut incoming, connection) = match own.and_then(|own| split(shard, own)) {
        Ok(halves) => halves,
        Err(error) => return (false, error),
    };
    let mut session = match Session::call(shard, connection, peer) {
        Ok(session) => session,
        Err(ended) => return (false, ended.into_io()),
    };
    let Err(ended) = read(shard, &mut incoming, &mut session).await;
    let was_up = session.is_established();
    session.end(shard, &ended);
    (was_up, ended.into_io())
}

/// Gives the reactor a turn. To yield would not do: a task that wakes itself keeps the reactor waiting.
async fn let_others_read() {
    Timer::new(Duration::from_micros(1)).await;
}

/// Nothing: a session is read until it ends.
type Never = std::convert::Infallible;

/// Hands everything that comes to the session until it ends.
async fn read<P: Protocol>(shard: &Shard<P>, incoming: &mut Reader, session: &mut Session) -> Result<Never, Ended> {
    let mut full_reads = 0;
    loop {
        let spare = session.spare();
        let bytes = incoming.read(spare).await?;
        let full = bytes == spare.len();
        let mut reading = session.received(shard, bytes)?;
        while reading == Reading::Paused {
            session.connection().resume.notified().await;
            reading = session.go_on(shard)?;
        }
        full_reads = if full { full_reads + 1 } else { 0 };
        if full_reads >= FULL_READS_MAX {
            full_reads = 0;
            let_others_read().await;
        }
    }
}

impl<P: Protocol> Shard<P> {
    /// The waits of whoever dials `peer`.
    pub(crate) fn backoff(&self, peer: NodeIndex) -> Backoff {
        let timers = &self.node.tuning.timers;
        let seed = self.node.incarnation ^ u64::from(self.shard.0) << 32 ^ u64::from(peer.0);
        Backoff::new(timers.reconnect_min_us, timers.reconnect_max_us, seed)
    }
}
