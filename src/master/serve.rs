//! The master's sockets and threads: one per connection, few and bounded. Nothing here is on anybody's hot path.

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    HEARTBEAT, StateError, VERSION,
    lines::{Answer, LineError, Lines, REQUEST_BYTES_MAX, Request, is_open, send},
    ports::{Bases, Claim},
    registry::{Line, Registered, Registry, Settings, Ticket},
    state::StateFile,
};
use crate::{config::Template, failure::Failure, topology::NodeSet, tuning::Tuning};

/// Connections at one time; further ones are closed at once, and whoever made them tries again.
const CONNECTIONS_MAX: usize = 512;
/// The longest that a connection may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a replica may take to listen once it has the configuration; after that its port tells.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a port must keep a connection for its replica to count as alive. It is below the three seconds that a replica
/// gives to strangers, and above the time that the kernel takes to close what a killed process listened on: a ring holds
/// sockets for a while after its process.
const PROBE_TIMEOUT: Duration = Duration::from_millis(2500);
/// How often flags are looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// Locals and one line; the standard two mebibytes would be wasted.
const STACK_BYTES: usize = 256 << 10;

/// What a master needs to know.
#[derive(Clone, Debug)]
pub struct MasterOptions {
    /// Where it listens. Port 0 is any that is free.
    pub listen: SocketAddr,
    /// How many replicas it waits for, from 1 to [`NodeSet::CAPACITY`].
    pub n: usize,
    /// Quorums, policy, shards and whatever else is the same whoever registers.
    pub template: Template,
    /// The tuning that is handed out; the template's if `None`.
    pub tuning: Option<Tuning>,
    /// The first port that is handed out to replicas; the one after the master's own if `None`.
    pub base_port: Option<u16>,
    /// The first HTTP port that is handed out; replicas that name none have no HTTP if `None`.
    pub http_base_port: Option<u16>,
    /// Where the configuration is kept for the master's next start; nowhere if `None`.
    pub state: Option<PathBuf>,
    /// Forget what is kept there.
    pub fresh: bool,
    /// Set from outside to stop it.
    pub stop: Arc<AtomicBool>,
}

/// What the threads share.
struct Shared {
    registry: Mutex<Registry<Arc<Peer>>>,
    /// Signalled when what is waited for may have come.
    changed: Condvar,
    state: Option<StateFile>,
    stop: Arc<AtomicBool>,
    connections: AtomicUsize,
}

/// A connection.
struct Peer {
    stream: TcpStream,
    address: SocketAddr,
}

impl Line for Arc<Peer> {
    fn is_open(&self) -> bool {
        is_open(&self.stream)
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }
}

/// A master that listens.
pub struct Master {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Master {
    /// Listens, and takes up what is in the state file.
    ///
    /// # Errors
    /// Names what stands in the way.
    pub fn start(options: MasterOptions) -> Result<Self, Failure> {
        let MasterOptions { listen, n, template, tuning, base_port, http_base_port, state, fresh, stop } = options;
        if !(1..=NodeSet::CAPACITY).contains(&n) {
            return Err(Failure::Config(format!("{n} replicas: a cluster has from 1 to {}", NodeSet::CAPACITY)));
        }
        let listener = TcpListener::bind(listen).map_err(|error| Failure::of_address(listen, &error))?;
        listener.set_nonblocking(true).map_err(|error| Failure::of_address(listen, &error))?;
        let address = listener.local_addr().map_err(|error| Failure::of_address(listen, &error))?;
        let base_port = base_port.or(address.port().checked_add(1));
        let native =
            base_port.ok_or_else(|| Failure::Config("no port is left after 65535: give --base-port".to_owned()))?;
        let tuning = tuning.as_ref().unwrap_or(template.tuning());
        let tuning_text = toml::to_string(tuning).expect("a tuning is a table of plain values");
        let bases = Bases { native, http: http_base_port };
        let settings = Settings { n, template, tuning_text, bases, others: vec![address] };
        let state = state.as_deref().map(StateFile::new);
        let complete = match &state {
            None => None,
            Some(state) => {
                state.check()?;
                if fresh {
                    state.clear()?;
                }
                state.load(&settings)?
            }
        };
        if let Some(cluster) = &complete {
            tracing::info!(cluster = %cluster.name, nodes = n, "going on from the state file: the cluster is complete");
        }
        tracing::info!(listens = %address, "the master waits for {n} replicas");
        let registry = Mutex::new(Registry::new(settings, complete));
        let shared = Shared { registry, changed: Condvar::new(), state, stop, connections: AtomicUsize::new(0) };
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// If those that registered do not make a cluster; they have been told.
    pub fn run(self) -> Result<(), Failure> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if let Some(problem) = self.failure() {
                return Err(Failure::Config(problem));
            }
            match self.listener.accept() {
                Ok((stream, address)) => Shared::serve(&self.shared, stream, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_connection(),
                Err(error) => {
                    tracing::warn!("cannot take a connection: {error}");
                    thread::sleep(GLANCE);
                }
            }
        }
        Ok(())
    }

    fn wait_for_connection(&self) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: GLANCE.as_nanos() as i64 };
        // An interruption by a signal is a reason to look at the flag.
        let _ = poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&timeout));
    }

    /// Why no cluster can be made, once everybody has been told.
    fn failure(&self) -> Option<String> {
        let problem = self.shared.lock().failure()?.to_owned();
        let until = Instant::now() + REQUEST_TIMEOUT;
        while self.shared.connections.load(Ordering::Relaxed) > 0 && Instant::now() < until {
            thread::sleep(GLANCE / 10);
        }
        Some(problem)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registry<Arc<Peer>>> {
        // A thread that panicked held nothing half done: every change is one call.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a connection in a thread of its own.
    fn serve(shared: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%address, "refused: {CONNECTIONS_MAX} connections are open");
            return;
        }
        let served = Arc::clone(shared);
        let serve = move || {
            let peer = Arc::new(Peer { stream, address });
            if let Err(error) = served.converse(&peer) {
                tracing::info!(%address, "a connection ends: {error}");
            }
            served.connections.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = thread::Builder::new().name("master".to_owned()).stack_size(STACK_BYTES).spawn(serve) {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%address, "refused: no thread can be started: {error}");
        }
    }

    fn converse(&self, peer: &Arc<Peer>) -> Result<(), LineError> {
        let stream = &peer.stream;
        prepare(stream)?;
        let mut lines = Lines::new(stream, REQUEST_BYTES_MAX);
        let request = match lines.next::<Request>(Instant::now() + REQUEST_TIMEOUT) {
            Ok(Some(request)) => request,
            Ok(None) => return refuse(stream, format!("nothing was asked within {REQUEST_TIMEOUT:?}")),
            Err(error @ (LineError::Closed | LineError::Io(_))) => return Err(error),
            Err(error) => {
                tracing::info!(address = %peer.address, "not understood: {error}");
                return refuse(stream, format!("{error}; this is the master of a wpaxos cluster"));
            }
        };
        match request {
            Request::Fetch { version } | Request::Register { version, .. } if version != VERSION => {
                refuse(stream, format!("version {version} is spoken, and this master speaks {VERSION}"))
            }
            Request::Fetch { .. } => {
                let Some(answer) = self.wait(stream)? else { return Ok(()) };
                Ok(send(stream, &answer)?)
            }
            Request::Register { id, address, http, .. } => match claim(&id, &address, http.as_deref()) {
                Ok(claim) => self.on_register(peer, &mut lines, claim),
                Err(problem) => refuse(stream, problem),
            },
            Request::Up => refuse(stream, "`up` is for a replica that has registered".to_owned()),
        }
    }

    fn on_register(&self, peer: &Arc<Peer>, lines: &mut Lines<'_>, claim: Claim) -> Result<(), LineError> {
        let save = |settings: &Settings, cluster: &str| match &self.state {
            Some(state) => state.save(settings, cluster).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        let (registered, news) = {
            let mut registry = self.lock();
            (registry.register(claim, Arc::clone(peer), save), registry.waiting())
        };
        self.changed.notify_all();
        let (ticket, probe) = match registered {
            Ok(Registered::Waits(ticket)) => (ticket, None),
            Ok(Registered::Known(ticket, probe)) => (ticket, Some(probe)),
            Err(problem) => {
                tracing::warn!(id = %claim.id, address = %peer.address, "refused: {problem}");
                return refuse(&peer.stream, problem);
            }
        };
        tracing::info!(id = %claim.id, address = %peer.address, "registered; {news}");
        let _ends = Ends { shared: self, ticket };
        if let Some(address) = probe.filter(|address| answers(*address)) {
            let problem = format!("{} is alive: {address} answers; stop it first", claim.id);
            tracing::warn!(id = %claim.id, address = %peer.address, "refused: {problem}");
            return refuse(&peer.stream, problem);
        }
        let Some(answer) = self.wait(&peer.stream)? else { return Ok(()) };
        send(&peer.stream, &answer)?;
        if let Answer::Configuration { .. } = answer
            && let Some(Request::Up) = lines.next(Instant::now() + START_TIMEOUT)?
        {
            tracing::info!(id = %claim.id, "up");
        }
        Ok(())
    }

    /// Waits until there is something to answer, and says for whom meanwhile. `None` if we stop before.
    fn wait(&self, stream: &TcpStream) -> Result<Option<Answer>, LineError> {
        let (mut told, mut told_at) = (None, Instant::now());
        loop {
            let (changes, text) = {
                let registry = self.lock();
                if let Some(answer) = registry.answer() {
                    return Ok(Some(answer));
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                (registry.changes, registry.waiting())
            };
            if !is_open(stream) {
                return Err(LineError::Closed);
            }
            if told != Some(changes) || told_at.elapsed() >= HEARTBEAT {
                send(stream, &Answer::Waiting { text })?;
                (told, told_at) = (Some(changes), Instant::now());
            }
            let registry = self.lock();
            if registry.changes == changes && registry.answer().is_none() {
                // The end is of no interest: everything is looked at again.
                let _ = self.changed.wait_timeout(registry, GLANCE);
            }
        }
    }
}

/// Ends a registration with its connection.
struct Ends<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.shared.lock().end(self.ticket);
        self.shared.changed.notify_all();
    }
}

/// A peer whose machine has gone is noticed within seconds: who waits is told something every [`HEARTBEAT`].
fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Accepted sockets do not inherit the listener's mode on Linux; this says what is relied on.
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let timeout_ms = 2 * HEARTBEAT.as_millis() as u32;
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, timeout_ms)?)
}

fn refuse(stream: &TcpStream, text: String) -> Result<(), LineError> {
    Ok(send(stream, &Answer::Refused { text })?)
}

fn claim(id: &str, address: &str, http: Option<&str>) -> Result<Claim, String> {
    let id = id.parse().map_err(|error| format!("{error}"))?;
    Ok(Claim { id, native: address.parse()?, http: http.map(str::parse).transpose()? })
}

/// Whether somebody listens there who is not just about to go.
fn answers(address: SocketAddr) -> bool {
    let until = Instant::now() + PROBE_TIMEOUT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        let Ok(mut stream) = TcpStream::connect_timeout(&address, left) else { return false };
        // On one machine a connection to a port that nobody listens on may meet itself.
        if stream.local_addr().ok() == Some(address) || stream.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        match stream.read(&mut [0]) {
            Ok(bytes) if bytes > 0 => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return true,
            Err(_) => {}
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        match error {
            StateError::File { .. } => Self::Environment(error.to_string()),
            StateError::Contents { .. } => Self::Config(error.to_string()),
        }
    }
}
