//! The `wpaxos` binary: see `wpaxos --help`.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;
use wpaxos::{
    cmd::{self, CmdArgs},
    complain,
    config::{ConfigError, Configuration},
    diagnostics,
    failure::Failure,
    local::{LocalCluster, LocalHttp, LocalOptions},
    master::{self, MasterArgs, MasterError, Place, Registration},
    server::{Server, ServerOptions, exit_on_panic, keeps_nothing, raise_open_files_limit, stop_on_signals},
    topology::{HistoryBounds, Home, InitialOwner, NodeId, QuorumSpec, StealPolicy, WanMatrix},
    tuning::{Durability, Tuning},
};

const EXIT_CODES: &str = "\
Exit codes:
  0   stopped when told to (SIGTERM, SIGINT, SIGHUP)
  2   the command line, the cluster file or the tuning file is wrong
  3   an address is in use
  4   the environment does not allow it: locked memory, io_uring, an address that is not ours
  5   refused: by the peers (another process runs as this node), or by the master (its id is alive, or unknown)
  6   a second SIGTERM or SIGINT came before it had stopped
  7   the data directory is refused: another node's, another format, in use, or to be left unused
  8   the disk: it is full, or reading or writing failed
  9   the data directory is damaged: a file is not as it was written, is missing, or contradicts the others
  70  a bug";

/// A thread-per-core WPaxos key-value store.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    /// What to log, to standard error.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log: LogLevel,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one replica.
    #[command(after_help = EXIT_CODES)]
    Server(ServerArgs),
    /// Hand one configuration to all replicas and clients that ask for it.
    #[command(after_help = EXIT_CODES)]
    Master(MasterArgs),
    /// Run a whole cluster in this process, on loopback, for trying out.
    #[command(after_help = EXIT_CODES)]
    Local(LocalArgs),
    /// Keys, counters, histories, owners, status, acted-out faults: one-off commands, or a prompt.
    #[command(after_help = cmd::EXIT_CODES)]
    Cmd(CmdArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Args)]
struct ServerArgs {
    /// Which node of the cluster this is: ZONE.NODE, as in 1.2.
    #[arg(long)]
    id: NodeId,
    /// The cluster file, or Paxi's JSON configuration.
    #[arg(long, value_name = "FILE", required_unless_present = "master", conflicts_with = "master")]
    config: Option<PathBuf>,
    /// The master that hands out the configuration, instead of a file; port 1735 if none is given. Waits for it.
    #[arg(long, value_name = "HOST[:PORT]")]
    master: Option<String>,
    /// With --master: where this replica listens and others reach it [default: the IP by which this machine reaches the
    /// master, and a port that the master chooses]
    #[arg(long, value_name = "IP[:PORT]", requires = "master", conflicts_with = "config")]
    address: Option<Place>,
    /// With --master: where it serves HTTP [default: the IP of --address, and a port that the master chooses]
    #[arg(long, value_name = "IP[:PORT]", requires = "master", conflicts_with = "config")]
    http_address: Option<Place>,
    /// The tuning file; that of the master without one, or built-in defaults.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// The protocol; all replicas of a cluster run the same.
    #[arg(long, alias = "algorithm", value_name = "NAME", default_value = "wpaxos")]
    protocol: ProtocolName,
    /// The directory that this node keeps its state in; made if it is not there.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    durability: DurabilityArg,
}

#[derive(Args)]
struct DurabilityArg {
    /// What an answer waits for: `sync`, until it survives a crash of the machine; `async`, of the process; `none` keeps
    /// nothing.
    #[arg(long = "durability", value_name = "MODE", default_value = "sync")]
    mode: Durability,
}

/// What the replicas of a cluster agree by.
#[derive(Clone, Copy, ValueEnum)]
enum ProtocolName {
    /// Multi-leader Paxos with flexible quorums and object stealing.
    Wpaxos,
}

#[derive(Args)]
struct LocalArgs {
    /// Zones.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    zones: u8,
    /// Nodes in each zone.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    nodes: u8,
    /// Shards of each node. All shards share as many threads as there are cores.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
    /// The first of consecutive ports; free ones are looked for without it.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    base_port: Option<u16>,
    /// The first of consecutive ports for HTTP, one for each node; free ones are looked for without it.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    http_base_port: Option<u16>,
    /// Allow faults to be injected over HTTP: /crash, /drop, /slow, /flaky, /partition.
    #[arg(long)]
    faults: bool,
    /// Keep earlier values of keys, for /history: up to 1000 of a key, and 64 MiB in a shard.
    #[arg(long)]
    history: bool,
    /// Where the nodes keep their state, in DIR/1.1 and so on [default: a directory for temporary files, removed on exit]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    durability: DurabilityArg,
    /// The tuning file of all nodes; built-in defaults without one.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// The protocol.
    #[arg(long, alias = "algorithm", value_name = "NAME", default_value = "wpaxos")]
    protocol: ProtocolName,
    /// The quorum system.
    #[arg(long, value_name = "SYSTEM", default_value = "floor")]
    quorum: QuorumName,
    /// Who owns what nobody has taken.
    #[arg(long, value_name = "RULE", default_value = "first-touch")]
    owner: OwnerName,
    /// When an owner hands an object to another zone.
    #[arg(long, value_name = "POLICY", default_value = "consecutive")]
    steal: StealName,
    /// Emulated round trip between every two zones, in milliseconds; 0 emulates none.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    rtt_ms: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum QuorumName {
    /// Tolerates a node per zone where zones have three.
    Floor,
    /// One node of each zone, and all nodes of one zone.
    Grid,
    /// More than half of all nodes.
    Majority,
    /// A majority within one zone.
    ZoneMajority,
}

#[derive(Clone, Copy, ValueEnum)]
enum OwnerName {
    /// The first node that is asked.
    FirstTouch,
    /// A node that follows from the key.
    Home,
}

#[derive(Clone, Copy, ValueEnum)]
enum StealName {
    /// Never.
    None,
    /// On the first request from another zone.
    Immediate,
    /// After three in a row from one other zone.
    Consecutive,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = start_log(cli.log) {
        complain!("wpaxos: cannot write diagnostics: {error}");
        return ExitCode::from(Failure::Environment(String::new()).exit_code() as u8);
    }
    exit_on_panic();
    let ended = match cli.command {
        Command::Server(args) => server(args),
        Command::Master(args) => signals().and_then(|stop| master::run(args, stop)),
        Command::Local(args) => local(args),
        Command::Cmd(args) => return one_off(args),
    };
    match ended {
        Ok(()) => {
            diagnostics::settle();
            ExitCode::SUCCESS
        }
        Err(failure) => {
            diagnostics::last_words(&format!("wpaxos: {failure}"));
            ExitCode::from(failure.exit_code() as u8)
        }
    }
}

fn one_off(args: CmdArgs) -> ExitCode {
    cmd::run(args).unwrap_or_else(|error| {
        complain!("error: {error}");
        error.exit_code()
    })
}

fn start_log(level: LogLevel) -> io::Result<()> {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    diagnostics::begin(level, io::stderr().is_terminal())
}

fn server(args: ServerArgs) -> Result<(), Failure> {
    let durability = args.durability.mode;
    match (&args.data, durability) {
        (None, Durability::Sync | Durability::Async) => {
            return Err(Failure::Config(format!(
                "--durability {durability} needs a place: name one with --data DIR, or give --durability none, which keeps \
                 state in memory and loses it on exit"
            )));
        }
        (Some(data), Durability::None) => return Err(keeps_nothing(data)),
        _ => {}
    }
    let ProtocolName::Wpaxos = args.protocol;
    let stop = signals()?;
    let (cluster, tuning, registration) = match (&args.master, &args.config) {
        (Some(master), _) => match register(&args, master, &stop) {
            Ok(registration) => (registration.cluster.clone(), registration.tuning.clone(), Some(registration)),
            Err(MasterError::Stopped(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        },
        (None, Some(file)) => {
            let Configuration { cluster, tuning, notes } =
                Configuration::load(file, args.tuning.as_deref()).map_err(config_failure)?;
            notes.iter().for_each(|note| tracing::info!("{note}"));
            (cluster, tuning, None)
        }
        (None, None) => unreachable!("one of the two is required"),
    };
    let tuning = args.tuning.map_or(Ok(tuning), |file| Tuning::load(file).map_err(config_failure))?;
    raise_open_files_limit();
    let mut options = ServerOptions::new(Arc::new(cluster), args.id, Arc::new(tuning));
    options.stop = stop;
    (options.durability, options.data) = (durability, args.data);
    let server = Server::start(options)?;
    if let Some(registration) = registration {
        registration.up();
    }
    tracing::info!(node = %server.id(), "ready");
    server.wait()
}

fn register(args: &ServerArgs, master: &str, stop: &AtomicBool) -> Result<Registration, MasterError> {
    let mut on_wait = |text: &str| tracing::info!("{text}");
    master::register(master, args.id, args.address, args.http_address, stop, &mut on_wait)
}

fn local(args: LocalArgs) -> Result<(), Failure> {
    let ProtocolName::Wpaxos = args.protocol;
    let options = LocalOptions {
        zones: args.zones,
        nodes: args.nodes,
        shards: args.shards,
        tuning: tuning(args.tuning)?,
        durability: args.durability.mode,
        data: args.data,
        quorum: match args.quorum {
            QuorumName::Floor => None,
            QuorumName::Grid => Some(QuorumSpec::Grid),
            QuorumName::Majority => Some(QuorumSpec::Majority),
            QuorumName::ZoneMajority => Some(QuorumSpec::ZoneMajority),
        },
        initial_owner: match args.owner {
            OwnerName::FirstTouch => InitialOwner::FirstTouch,
            OwnerName::Home => InitialOwner::Home(Home::Hash),
        },
        steal: match args.steal {
            StealName::None => StealPolicy::None,
            StealName::Immediate => StealPolicy::Immediate,
            StealName::Consecutive => StealPolicy::default(),
        },
        wan: (args.rtt_ms > 0).then(|| WanMatrix::uniform(usize::from(args.zones), args.rtt_ms * 1000)),
        base_port: args.base_port,
        http: args.http_base_port.map_or(LocalHttp::AnyPorts, LocalHttp::Ports),
        faults: args.faults,
        history: args.history.then(HistoryBounds::default),
        stop: signals()?,
        ..LocalOptions::default()
    };
    raise_open_files_limit();
    let local = LocalCluster::start(options)?;
    print_local(&local);
    local.wait()
}

fn print_local(local: &LocalCluster) {
    let cluster = local.cluster();
    let mut text = format!("cluster '{}' is up; {}\n", cluster.name, local.kept());
    for member in &cluster.nodes {
        let addresses: Vec<_> = member.shards.iter().map(ToString::to_string).collect();
        let http = member.http.map(|http| format!("  http://{http}")).unwrap_or_default();
        text += &format!("  {}  {}{http}\n", member.id, addresses.join("  "));
    }
    let seed = local.seeds()[0];
    text += "try, in another terminal:\n";
    text += &format!("  wpaxos cmd --seed {seed} put greeting hello\n");
    text += &format!("  wpaxos cmd --seed {seed} get greeting\n");
    if let Some(http) = local.http().first() {
        text += &format!("  curl http://{http}/greeting\n");
    }
    text += &format!("  wpaxos-load run --seed-address {seed}\n");
    text += "Ctrl-C stops it\n";
    diagnostics::announce(&text);
}

fn signals() -> Result<Arc<AtomicBool>, Failure> {
    stop_on_signals().map_err(|error| Failure::Environment(format!("cannot handle signals: {error}")))
}

fn tuning(file: Option<PathBuf>) -> Result<Tuning, Failure> {
    file.map_or_else(|| Ok(Tuning::default()), |file| Tuning::load(file).map_err(config_failure))
}

fn config_failure(error: ConfigError) -> Failure {
    Failure::Config(error.to_string())
}
