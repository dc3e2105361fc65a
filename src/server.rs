//! One replica: all shards of one node, in this process.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{
    consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXFSZ},
    flag,
};

use crate::{
    failure::{Failure, StartError},
    protocol::{
        Protocol,
        wpaxos::{Config, WPaxos},
    },
    quorum::Quorums,
    shard::{ConnectionBounds, Doors, Executor, Host, LINGER_PATIENCE, Listener, Node, ShardContext, spawn},
    topology::{Cluster, Member, NodeId, NodeIndex, ShardId, StealPolicy},
    tuning::{Durability, Tuning, Wait},
    wal::{DataDir, Identity, durable_state},
};

/// What a replica needs to know.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The cluster that it is a member of.
    pub cluster: Arc<Cluster>,
    /// Which member.
    pub node: NodeId,
    /// Its knobs.
    pub tuning: Arc<Tuning>,
    /// What a record must have survived before anything that depends on it leaves the node.
    pub durability: Durability,
    /// The node's data directory, which is made if it is not there; there is none with [`Durability::None`], and one else.
    pub data: Option<PathBuf>,
    /// Where its shards run; threads of its own if `None`.
    pub threads: Option<Threads>,
    /// Set from outside to stop it, by a signal for example.
    pub stop: Arc<AtomicBool>,
    /// What reports must say of it, beyond what it knows itself.
    pub facts: BTreeMap<String, String>,
    /// How many nodes share the descriptors of this process.
    pub(crate) nodes: usize,
    /// How long connections may linger at its addresses when it starts.
    pub(crate) linger: Duration,
}

impl ServerOptions {
    /// A replica that is alone in its process, and keeps nothing.
    pub fn new(cluster: Arc<Cluster>, node: NodeId, tuning: Arc<Tuning>) -> Self {
        let (durability, stop, facts) = (Durability::None, Arc::default(), BTreeMap::new());
        let (nodes, linger) = (1, LINGER_PATIENCE);
        Self { cluster, node, tuning, durability, data: None, threads: None, stop, facts, nodes, linger }
    }

    /// A replica that is alone in its process, and keeps its state in a directory of its own.
    pub fn durable(cluster: Arc<Cluster>, node: NodeId, tuning: Arc<Tuning>, data: impl Into<PathBuf>) -> Self {
        let (durability, data) = (Durability::default(), Some(data.into()));
        Self { durability, data, ..Self::new(cluster, node, tuning) }
    }
}

/// Threads with an executor each, for the shards of several replicas of one process.
#[derive(Clone, Debug)]
pub struct Threads {
    hosts: Vec<Arc<Host>>,
    cores: Option<Vec<usize>>,
    wait: Wait,
    /// How many shards have a thread.
    placed: Arc<AtomicUsize>,
}

impl Threads {
    /// Starts `count` of them, pinned where the tuning names enough cores that exist.
    ///
    /// # Errors
    /// If the environment does not allow an executor.
    pub fn start(name: &str, count: usize, tuning: &Tuning) -> Result<Self, StartError> {
        let _starting = Starting::begin();
        let cores = cores_for(tuning, count);
        let host = |number: usize| {
            let core = cores.as_ref().map(|cores| cores[number]);
            Host::start(format!("{name}/{number}"), core, &tuning.placement).map(Arc::new)
        };
        let hosts = (0..count).map(host).collect::<Result<_, _>>()?;
        if tuning.placement.wait == Wait::Poll && cores.is_none() {
            tracing::warn!(
                "placement.wait is \"poll\", and no cores are named or there are too few: threads share cores"
            );
        }
        Ok(Self { hosts, cores, wait: tuning.placement.wait, placed: Arc::default() })
    }

    /// The thread for the next shard: they are filled in a row.
    fn next(&self) -> Arc<Host> {
        let place = self.placed.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.hosts[place % self.hosts.len()])
    }

    fn describe(&self) -> String {
        let pinning = self.cores.as_ref().map_or_else(|| "unpinned".to_owned(), |cores| format!("cores {cores:?}"));
        format!("{} threads, {pinning}, wait {}", self.hosts.len(), self.wait.name())
    }
}

/// Starts replicas.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Starts one WPaxos replica and waits until all of its shards listen.
    ///
    /// # Errors
    /// Names what stands in the way.
    pub fn start(options: ServerOptions) -> Result<ServerHandle, StartError> {
        Self::start_with(options, wpaxos)
    }

    /// The same with another protocol: `make` makes that of a shard, in the shard's thread.
    ///
    /// # Errors
    /// Names what stands in the way.
    pub fn start_with<P, F>(options: ServerOptions, make: F) -> Result<ServerHandle, StartError>
    where
        P: Protocol + 'static,
        F: Fn(ShardContext) -> P + Send + Clone + 'static,
    {
        let ServerOptions { cluster, node: id, tuning, durability, data, threads, stop, facts, nodes, linger } =
            options;
        let index = cluster.index_of(id).ok_or_else(|| unknown_node(&cluster, id))?;
        let quorums = Quorums::new(&cluster).map_err(|error| Failure::Config(error.to_string()))?;
        let spare = spare_descriptors(&cluster, nodes)?;
        let bounds = bound_connections(&cluster, &tuning, spare);
        let addresses = cluster.member(index).shards.clone();
        let listeners = claim_addresses(cluster.member(index), linger)?;
        let identity = Identity::of(&cluster, index, &quorums.describe());
        let incarnation = identity.incarnation();
        let data = open_data(data.as_deref(), durability, identity, &tuning)?;
        let threads = threads.map_or_else(|| Threads::start(&id.to_string(), addresses.len(), &tuning), Ok)?;
        let mut all_facts = facts_of(&cluster, index, &tuning, &threads);
        all_facts.insert("quorum".to_owned(), quorums.describe());
        all_facts.insert("durability".to_owned(), data.as_ref().map_or("none".to_owned(), DataDir::describe));
        all_facts.extend(facts);
        tracing::info!(
            node = %id,
            cluster = %cluster.name,
            shards = cluster.shards,
            listens = ?addresses,
            http = ?cluster.member(index).http,
            pinning = %all_facts["pinning"],
            quorum = %all_facts["quorum"],
            tuning = %tuning.name,
            boot = data.as_ref().map_or(1, DataDir::boot),
            "starting; durability {}",
            data.as_ref().map_or_else(|| "none: state is in memory and is lost on exit".to_owned(), DataDir::place)
        );
        let shards = 0..cluster.shards;
        let node = match &data {
            Some(data) => {
                let logs = shards.map(|shard| data.log_spec(shard, &tuning.log)).collect();
                Node::new(cluster, tuning, index, data.incarnation(), all_facts, stop).logged(data.boot(), logs)
            }
            None => Node::new(cluster, tuning, index, incarnation, all_facts, stop),
        };
        let node = Arc::new(node.bounded(bounds));
        let executors = Vec::with_capacity(addresses.len());
        let mut handle = ServerHandle { node: Arc::clone(&node), executors, data };
        for (shard, doors) in listeners.into_iter().enumerate() {
            let (node, shard) = (Arc::clone(&node), ShardId(shard as u16));
            handle.executors.push(spawn(node, shard, threads.next(), doors, make.clone()));
        }
        handle.wait_started()?;
        Ok(handle)
    }
}

/// A replica that runs. Dropping it stops it.
pub struct ServerHandle {
    node: Arc<Node>,
    executors: Vec<Executor>,
    data: Option<DataDir>,
}

impl ServerHandle {
    fn wait_started(&mut self) -> Result<(), Failure> {
        let mut first = Ok(());
        for executor in std::mem::take(&mut self.executors) {
            match executor.wait_started() {
                Ok(executor) => self.executors.push(executor),
                Err(failure) if first.is_ok() => first = Err(failure),
                Err(_) => {}
            }
        }
        first
    }

    /// Which node it is.
    pub fn id(&self) -> NodeId {
        self.node.member().id
    }

    /// Where its shards listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.node.member().shards
    }

    /// The links that are down now, as (shard, peer).
    pub fn links_down(&self) -> impl Iterator<Item = (ShardId, NodeIndex)> {
        self.node.links_down()
    }

    /// Whether it has been told to stop, or has told itself so.
    pub fn is_stopping(&self) -> bool {
        self.node.is_stopping()
    }

    /// Tells it to stop, and does not wait.
    pub fn ask_to_stop(&self) {
        self.node.ask_to_stop();
    }

    /// Stops it: what waits is answered, connections are closed, threads end.
    ///
    /// # Errors
    /// If it had ended for another reason before.
    pub fn stop(self) -> Result<(), Failure> {
        self.ask_to_stop();
        self.wait()
    }

    /// Waits until it has stopped because it was told to.
    ///
    /// # Errors
    /// If it ended for another reason.
    pub fn wait(mut self) -> Result<(), Failure> {
        self.join()
    }

    fn join(&mut self) -> Result<(), Failure> {
        self.executors.drain(..).for_each(Executor::join);
        let data = self.data.take();
        if let Some(failure) = self.node.take_failure() {
            return Err(failure);
        }
        match data {
            Some(data) if self.node.all_logs_closed() => data.stopped_well(),
            _ => Ok(()),
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        if !self.executors.is_empty() {
            self.ask_to_stop();
            if let Err(failure) = self.join() {
                tracing::error!(node = %self.id(), "{failure}");
            }
        }
    }
}

/// How often threads are being started now.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Where io_uring is not to be had, the runtime panics: as long as threads are being started, that is for
/// [`Threads::start`] to report.
struct Starting;

impl Starting {
    fn begin() -> Self {
        STARTING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        STARTING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends the process when any of its threads panics: a replica goes down as a whole, never one core alone.
pub fn exit_on_panic() {
    std::panic::set_hook(Box::new(move |info| {
        if STARTING.load(Ordering::SeqCst) > 0 {
            return;
        }
        let code = crate::failure::EXIT_BUG;
        crate::diagnostics::report_panic(info, &format!("wpaxos: a bug ends this replica (exit code {code})"));
        std::process::exit(code);
    }));
}

/// Signals that would end a process, and that no operator means to end one with. SIGXFSZ is among them: a log that has grown
/// to the largest size that is allowed is an error of the disk then, and said.
const IGNORED_SIGNALS: [i32; 9] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXFSZ, SIGSTKFLT, SIGPWR];
/// Real-time signals, as far as the C library leaves them to programs.
const REALTIME_SIGNALS: std::ops::RangeInclusive<i32> = 34..=64;
const SIGSTKFLT: i32 = 16;
const SIGPWR: i32 = 30;

/// Sets the returned flag on SIGTERM, SIGINT or SIGHUP; a second SIGTERM or SIGINT ends the process at once. A SIGHUP that was
/// ignored when the process began, as `nohup` has it, stays ignored. Signals that nobody means to end a process with do nothing
/// from now on: SIGUSR1, SIGUSR2, timers, real-time signals. SIGPIPE does nothing anyway.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGTERM, SIGINT] {
        let code = crate::failure::EXIT_SECOND_SIGNAL;
        // In this order: the first signal finds the flag unset, the second finds it set.
        flag::register_conditional_shutdown(signal, code, Arc::clone(&told))?;
        flag::register(signal, Arc::clone(&told))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    if !is_ignored(SIGHUP) {
        flag::register(SIGHUP, Arc::clone(&stop))?;
    }
    let unheard = Arc::new(AtomicBool::new(false));
    for signal in IGNORED_SIGNALS.into_iter().chain(REALTIME_SIGNALS) {
        flag::register(signal, Arc::clone(&unheard))?;
    }
    Ok(stop)
}

/// Whether this process began with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Lets this process have as many open files as it may: a connection is one, and the usual limit is for programs that have few.
pub fn raise_open_files_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // What cannot be raised stays as it is, and bounds the clients.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The data directory, if there is to be one.
fn open_data(
    path: Option<&Path>,
    durability: Durability,
    identity: Identity,
    tuning: &Tuning,
) -> Result<Option<DataDir>, Failure> {
    match (path, durability) {
        (None, Durability::None) => Ok(None),
        (Some(path), Durability::Sync | Durability::Async) => {
            DataDir::open(path, identity, durability, &tuning.log).map(Some)
        }
        (None, _) => Err(Failure::Config(format!(
            "durability {durability} needs a data directory: name one (--data DIR), or keep nothing (--durability none)"
        ))),
        (Some(path), Durability::None) => Err(keeps_nothing(path)),
    }
}

/// Why nodes that keep nothing do not start where a data directory was named for them.
///
/// One that holds state is refused as such ([`Failure::DataDirectory`]): its node would come back without it, as one that has
/// lost its disk, and be named anew by the others.
pub fn keeps_nothing(path: &Path) -> Failure {
    let below = std::fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let held = std::iter::once(path.to_owned()).chain(below);
    let held = held.filter(|path| path.is_dir()).find_map(|path| Some((durable_state(&path)?, path)));
    match held {
        Some((state, path)) => Failure::DataDirectory(format!(
            "data directory {}: it holds {state}, and durability none would leave it unused: the node would come back as one \
             that has lost its disk. Start it with durability sync or async; to give the state up, move the directory away and \
             name none",
            path.display()
        )),
        None => Failure::Config(format!(
            "durability none keeps nothing, so it cannot use the data directory {}: leave out --data, or choose sync or async",
            path.display()
        )),
    }
}

/// How many descriptors are left for clients when each of so many nodes of a cluster, in this process, has what its links and
/// logs need.
///
/// # Errors
/// If none are.
pub(crate) fn spare_descriptors(cluster: &Cluster, nodes: usize) -> Result<usize, Failure> {
    /// What every process has open, and a connection that is being dialled.
    const BASE: usize = 64;
    /// Rings, twice; event counters and sets.
    const OF_AN_EXECUTOR: usize = 16;
    /// A listener and the claim to its address; the segment that is written, the one before and the next, a checkpoint, the
    /// directory, the mark of the end; and connections that have not said hello.
    const OF_A_SHARD: usize = 8 + ConnectionBounds::STRANGERS_MIN;
    let shards = nodes * usize::from(cluster.shards);
    let executors = shards.min(std::thread::available_parallelism().map_or(1, usize::from).max(cluster.shards.into()));
    let links = shards * (cluster.nodes.len() - 1);
    let needed = BASE + OF_AN_EXECUTOR * executors + shards * OF_A_SHARD + 2 * nodes + links;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit <= (needed + nodes) as u64 => Err(Failure::Environment(format!(
            "{limit} open files are allowed; links and logs alone need {needed}, and each client one more: raise \
             `ulimit -n` (`LimitNOFILE=`)"
        ))),
        limit => Ok(limit.map_or(usize::MAX / 2, |limit| (limit as usize - needed) / nodes)),
    }
}

/// Says so if descriptors, and not the settings, bound the clients.
fn bound_connections(cluster: &Cluster, tuning: &Tuning, spare: usize) -> ConnectionBounds {
    let bounds = ConnectionBounds::new(spare, cluster.shards, tuning, cluster.http.connections_max);
    if bounds.falls_short() {
        tracing::warn!(
            clients = bounds.clients_max,
            "few open files are allowed: so many clients are served at a time, native and HTTP, and further ones refused; \
             raise `ulimit -Hn` (`LimitNOFILE=`)"
        );
    }
    bounds
}

/// Claims all addresses of a member, in the order that every process has: of two that want some of the same, one gets all.
fn claim_addresses(member: &Member, linger: Duration) -> Result<Vec<Doors>, Failure> {
    let mut addresses: Vec<SocketAddr> = member.shards.iter().chain(&member.http).copied().collect();
    addresses.sort_unstable();
    let claim = |address: SocketAddr| Ok((address, Listener::claim(address, linger)?));
    let mut claimed = addresses.into_iter().map(claim).collect::<Result<BTreeMap<_, _>, Failure>>()?;
    let mut take = |address: &SocketAddr| claimed.remove(address).expect("every address of a member is another one");
    let mut http = member.http.as_ref().map(&mut take);
    Ok(member.shards.iter().map(|address| Doors { native: take(address), http: http.take() }).collect())
}

fn unknown_node(cluster: &Cluster, id: NodeId) -> Failure {
    let known: Vec<_> = cluster.nodes.iter().map(|member| member.id.to_string()).collect();
    Failure::Config(format!("the cluster '{}' has no node {id}; it has {}", cluster.name, known.join(", ")))
}

/// The cores of so many threads, if the tuning names enough of them and they exist.
fn cores_for(tuning: &Tuning, threads: usize) -> Option<Vec<usize>> {
    let named = &tuning.placement.cores;
    if named.is_empty() {
        return None;
    }
    let Some(cores) = named.get(..threads) else {
        tracing::warn!(named = named.len(), needed = threads, "not pinned: placement.cores names too few cores");
        return None;
    };
    let exist: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    if let Some(missing) = cores.iter().find(|core| !exist.contains(core)) {
        tracing::warn!(core = missing, ?exist, "not pinned: placement.cores names a core that is not there");
        return None;
    }
    Some(cores.to_vec())
}

fn facts_of(cluster: &Cluster, index: NodeIndex, tuning: &Tuning, threads: &Threads) -> BTreeMap<String, String> {
    let steal = match cluster.steal {
        StealPolicy::None => "none".to_owned(),
        policy => format!("{policy:?}"),
    };
    BTreeMap::from(
        [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("node", cluster.member(index).id.to_string()),
            ("zones", cluster.zones.len().to_string()),
            ("nodes", cluster.nodes.len().to_string()),
            ("shards", cluster.shards.to_string()),
            ("initial_owner", format!("{:?}", cluster.initial_owner)),
            ("steal", steal),
            ("wan", if cluster.wan.is_some() { "emulated" } else { "none" }.to_owned()),
            ("tuning", tuning.name.clone()),
            ("pinning", threads.describe()),
        ]
        .map(|(name, fact)| (name.to_owned(), fact)),
    )
}

/// The protocol of a shard as replicas run it.
fn wpaxos(context: ShardContext) -> WPaxos {
    let ShardContext { cluster, tuning, node, shard, incarnation, boot, now, .. } = context;
    let config = Config::new(&cluster, &tuning, node, shard.0, incarnation);
    let mut config = config.expect("the quorums were checked before the shards were started");
    config.boot = boot as u32;
    config.leads_at_home = boot == 1;
    WPaxos::new(config, now)
}
