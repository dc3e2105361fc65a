//! A whole cluster in one process, on loopback: for trying out and for tests.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crate::{
    failure::{Failure, StartError},
    protocol::Protocol,
    server::{Server, ServerHandle, ServerOptions, Threads, keeps_nothing, spare_descriptors},
    shard::ShardContext,
    topology::{Cluster, HistoryBounds, HttpSettings, InitialOwner, NodeSet, QuorumSpec, StealPolicy, WanMatrix},
    tuning::{Durability, Tuning},
};

/// How long the nodes have to find each other.
const LINKS_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts to find free ports, before somebody else has taken one of them each time.
const PORT_ATTEMPTS: usize = 5;

/// What a local cluster is like.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The cluster's name.
    pub name: String,
    /// Zones.
    pub zones: u8,
    /// Nodes in each zone.
    pub nodes: u8,
    /// Shards of each node; see `threads` for where they run.
    pub shards: u16,
    /// The knobs of all nodes.
    pub tuning: Tuning,
    /// What a record must have survived before anything that depends on it leaves a node.
    pub durability: Durability,
    /// Where the nodes have their data directories, `1.1` and so on; without it, a directory of the system's for temporary
    /// files that is removed at the end. Nowhere with [`Durability::None`].
    pub data: Option<PathBuf>,
    /// The quorum system; that of [`QuorumSpec::default_for`] if `None`.
    pub quorum: Option<QuorumSpec>,
    /// Who owns what nobody has taken.
    pub initial_owner: InitialOwner,
    /// When an owner hands an object over.
    pub steal: StealPolicy,
    /// Distances to emulate.
    pub wan: Option<WanMatrix>,
    /// Threads that all shards of all nodes share. If `None`, as many as the tuning names cores, or else as there are
    /// cores, but no more than shards.
    pub threads: Option<usize>,
    /// The first of consecutive ports; free ones are looked for if `None`.
    pub base_port: Option<u16>,
    /// Where nodes serve HTTP.
    pub http: LocalHttp,
    /// How they do.
    pub http_settings: HttpSettings,
    /// Whether faults may be injected over HTTP.
    pub faults: bool,
    /// What is kept of earlier values.
    pub history: Option<HistoryBounds>,
    /// Set from outside to stop all nodes.
    pub stop: Arc<AtomicBool>,
}

/// Where the nodes of a local cluster serve HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LocalHttp {
    /// Nowhere.
    #[default]
    Off,
    /// On ports that are free.
    AnyPorts,
    /// On consecutive ports from this one on, one for each node.
    Ports(u16),
}

impl Default for LocalOptions {
    /// Three zones of one node with one shard, which keep nothing.
    fn default() -> Self {
        Self {
            name: "local".to_owned(),
            zones: 3,
            nodes: 1,
            shards: 1,
            tuning: Tuning::default(),
            durability: Durability::None,
            data: None,
            quorum: None,
            initial_owner: InitialOwner::default(),
            steal: StealPolicy::default(),
            wan: None,
            threads: None,
            base_port: None,
            http: LocalHttp::default(),
            http_settings: HttpSettings::default(),
            faults: false,
            history: None,
            stop: Arc::default(),
        }
    }
}

impl LocalOptions {
    fn sockets(&self) -> usize {
        usize::from(self.zones) * usize::from(self.nodes) * usize::from(self.shards)
    }

    /// Threads that the shards share.
    pub fn thread_count(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let named = self.tuning.placement.cores.len();
        let wanted = self.threads.unwrap_or_else(|| if named > 0 { named } else { available() });
        wanted.clamp(1, self.sockets())
    }

    fn node_count(&self) -> usize {
        usize::from(self.zones) * usize::from(self.nodes)
    }

    fn check(&self) -> Result<(), Failure> {
        let nodes = self.node_count();
        let problem = if nodes == 0 || self.shards == 0 {
            "zones, nodes and shards are at least 1".to_owned()
        } else if nodes > NodeSet::CAPACITY {
            format!("{nodes} nodes are too many; a cluster has at most {}", NodeSet::CAPACITY)
        } else if let Some(base) = self.base_port
            && usize::from(base) + self.sockets() > 65_536
        {
            format!("{} ports from {base} go beyond 65535; use a lower base port", self.sockets())
        } else if let LocalHttp::Ports(base) = self.http
            && usize::from(base) + nodes > 65_536
        {
            format!("{nodes} HTTP ports from {base} go beyond 65535; use a lower base port")
        } else if let (LocalHttp::Ports(http), Some(base)) = (self.http, self.base_port.map(usize::from))
            && usize::from(http) < base + self.sockets()
            && base < usize::from(http) + nodes
        {
            format!("{nodes} HTTP ports from {http} and {} ports from {base} overlap", self.sockets())
        } else if let (Durability::None, Some(data)) = (self.durability, &self.data) {
            return Err(keeps_nothing(data));
        } else if let Some(wan) = self.wan.as_ref().filter(|wan| wan.zones() != usize::from(self.zones)) {
            format!("the distances are between {} zones; the cluster has {}", wan.zones(), self.zones)
        } else {
            return Ok(());
        };
        Err(Failure::Config(problem))
    }

    fn looks_for_ports(&self) -> bool {
        self.base_port.is_none() || self.http == LocalHttp::AnyPorts
    }

    /// Of the shards, and of the HTTP interfaces.
    fn ports(&self) -> Result<(Vec<u16>, Vec<u16>), Failure> {
        let consecutive = |base: u16, count: usize| -> Vec<u16> { (0..count).map(|port| base + port as u16).collect() };
        let (sockets, nodes) = (self.sockets(), self.node_count());
        // All that are looked for are found at once, so that they differ.
        let for_shards = if self.base_port.is_none() { sockets } else { 0 };
        let for_http = if self.http == LocalHttp::AnyPorts { nodes } else { 0 };
        let mut free = free_ports(for_shards + for_http)?;
        let free_http = free.split_off(for_shards);
        let http = match self.http {
            LocalHttp::Off => Vec::new(),
            LocalHttp::AnyPorts => free_http,
            LocalHttp::Ports(base) => consecutive(base, nodes),
        };
        Ok((self.base_port.map_or(free, |base| consecutive(base, sockets)), http))
    }

    /// `http` is by node, or empty.
    fn cluster(&self, ports: &[u16], http: &[u16]) -> Cluster {
        let on_loopback = |port: &u16| SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let mut ports = ports.iter().map(on_loopback);
        let mut node = || -> Vec<SocketAddr> { ports.by_ref().take(usize::from(self.shards)).collect() };
        let mut zone = || -> Vec<_> { (0..self.nodes).map(|_| node()).collect() };
        let addresses = (0..self.zones).map(|_| zone()).collect();
        let mut cluster = Cluster::local(&self.name, addresses);
        if let Some(quorum) = self.quorum {
            cluster.quorum = quorum;
        }
        cluster.initial_owner = self.initial_owner;
        cluster.steal = self.steal;
        cluster.wan = self.wan.clone();
        cluster.http = self.http_settings;
        cluster.faults = self.faults;
        cluster.history = self.history;
        for (member, port) in cluster.nodes.iter_mut().zip(http) {
            member.http = Some(on_loopback(port));
        }
        cluster
    }
}

/// A cluster that runs in this process. Dropping it stops it.
pub struct LocalCluster {
    cluster: Arc<Cluster>,
    servers: Vec<ServerHandle>,
    durability: Durability,
    /// After the servers: they are gone when it goes.
    data: Option<Data>,
}

/// Where the nodes keep their state.
struct Data {
    path: PathBuf,
    temporary: bool,
}

impl LocalCluster {
    /// Starts all nodes as WPaxos replicas and waits until every shard has its links to all peers.
    ///
    /// # Errors
    /// Names what stands in the way, or the links that are missing after a while.
    pub fn start(options: LocalOptions) -> Result<Self, StartError> {
        Self::start_nodes(&options, Server::start)
    }

    /// The same with another protocol: `make` makes that of a shard, in the shard's thread.
    ///
    /// # Errors
    /// Names what stands in the way, or the links that are missing after a while.
    pub fn start_with<P, F>(options: LocalOptions, make: F) -> Result<Self, StartError>
    where
        P: Protocol + 'static,
        F: Fn(ShardContext) -> P + Send + Clone + 'static,
    {
        Self::start_nodes(&options, |server| Server::start_with(server, make.clone()))
    }

    fn start_nodes(
        options: &LocalOptions,
        start: impl Fn(ServerOptions) -> Result<ServerHandle, Failure>,
    ) -> Result<Self, Failure> {
        options.check()?;
        let mut attempt = 1;
        loop {
            match Self::start_once(options, &start) {
                Err(Failure::AddressInUse(_)) if options.looks_for_ports() && attempt < PORT_ATTEMPTS => attempt += 1,
                started => return started,
            }
        }
    }

    fn start_once(
        options: &LocalOptions,
        start: impl Fn(ServerOptions) -> Result<ServerHandle, Failure>,
    ) -> Result<Self, Failure> {
        let (ports, http) = options.ports()?;
        let cluster = Arc::new(options.cluster(&ports, &http));
        let tuning = Arc::new(options.tuning.clone());
        let count = options.thread_count();
        spare_descriptors(&cluster, cluster.nodes.len())?;
        let data = Data::of(options)?;
        let threads = Threads::start(&options.name, count, &tuning)?;
        let (durability, servers) = (options.durability, Vec::new());
        let mut local = Self { cluster: Arc::clone(&cluster), servers, durability, data };
        for member in &cluster.nodes {
            let mut server = ServerOptions::new(Arc::clone(&cluster), member.id, Arc::clone(&tuning));
            server.threads = Some(threads.clone());
            server.nodes = cluster.nodes.len();
            if options.looks_for_ports() {
                // There are others.
                server.linger = std::time::Duration::ZERO;
            }
            server.stop = Arc::clone(&options.stop);
            server.durability = options.durability;
            server.data = local.data.as_ref().map(|data| data.path.join(member.id.to_string()));
            local.servers.push(start(server)?);
        }
        local.wait_for_links()?;
        Ok(local)
    }

    fn wait_for_links(&self) -> Result<(), Failure> {
        let started = Instant::now();
        while self.servers.iter().any(|server| server.links_down().next().is_some()) {
            if self.servers.iter().any(ServerHandle::is_stopping) {
                break;
            }
            if started.elapsed() > LINKS_TIMEOUT {
                return Err(self.missing_links());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn missing_links(&self) -> Failure {
        let mut missing = Vec::new();
        for server in &self.servers {
            for (shard, peer) in server.links_down() {
                missing.push(format!("{} to {} (shard {})", server.id(), self.cluster.member(peer).id, shard.0));
            }
        }
        let shown = missing.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        Failure::Environment(format!("{} links are still down after {LINKS_TIMEOUT:?}: {shown}", missing.len()))
    }

    /// The cluster's configuration, with the addresses.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// An address of each node, for clients to begin with.
    pub fn seeds(&self) -> Vec<SocketAddr> {
        self.cluster.nodes.iter().map(|member| member.shards[0]).collect()
    }

    /// Where each node serves HTTP; empty if they do not.
    pub fn http(&self) -> Vec<SocketAddr> {
        self.cluster.nodes.iter().filter_map(|member| member.http).collect()
    }

    /// What its nodes keep, and where, for people.
    pub fn kept(&self) -> String {
        match &self.data {
            None => "state is in memory and is lost on exit".to_owned(),
            Some(Data { path, temporary }) => {
                let end = if *temporary { ", removed on exit" } else { "" };
                format!("durability {}, in {}{end}", self.durability, path.display())
            }
        }
    }

    /// Stops one node, as if it had been told to; the others go on.
    ///
    /// # Errors
    /// If it had ended for another reason.
    pub fn stop_node(&mut self, id: crate::topology::NodeId) -> Result<(), Failure> {
        let place = self.servers.iter().position(|server| server.id() == id);
        place.map_or(Ok(()), |place| self.servers.remove(place).stop())
    }

    /// Stops all nodes.
    ///
    /// # Errors
    /// If one had ended for another reason.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.servers.iter().for_each(ServerHandle::ask_to_stop);
        self.join()
    }

    /// Waits until all nodes have stopped because they were told to.
    ///
    /// # Errors
    /// If one ended for another reason.
    pub fn wait(self) -> Result<(), Failure> {
        while !self.servers.iter().any(ServerHandle::is_stopping) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop()
    }

    fn join(&mut self) -> Result<(), Failure> {
        let mut result = Ok(());
        for server in self.servers.drain(..) {
            let ended = server.wait();
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}

impl Data {
    fn of(options: &LocalOptions) -> Result<Option<Self>, Failure> {
        if options.durability == Durability::None {
            return Ok(None);
        }
        if let Some(path) = &options.data {
            return Ok(Some(Self { path: path.clone(), temporary: false }));
        }
        let mut number = 0;
        loop {
            let path = std::env::temp_dir().join(format!("wpaxos-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Some(Self { path, temporary: true })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => {
                    let path = path.display();
                    return Err(Failure::Environment(format!(
                        "{path}: cannot be made: {error}; name a directory (--data DIR)"
                    )));
                }
            }
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(directory = %self.path.display(), "not removed: {error}");
        }
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.servers.iter().for_each(ServerHandle::ask_to_stop);
    }
}

/// Ports that are free now. Somebody else may take one before it is used.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let problem = |error| Failure::Environment(format!("cannot find {count} free ports on loopback: {error}"));
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>().map_err(problem)?;
    listeners.iter().map(|listener| Ok(listener.local_addr().map_err(problem)?.port())).collect()
}
