//! `wpaxos cmd`: one-off commands from a shell, and a prompt when none is given.
//!
//! What a command gives goes to standard output, why it gives nothing to standard error; a value that could not be read
//! is never printed as an empty one. With `--json` each command prints one line of JSON to standard output instead,
//! whatever became of it, with an `outcome` in it. `docs/cmd.md` shows each.
//!
//! | file | what it holds |
//! |---|---|
//! | `verbs` | what can be typed |
//! | `session` | how the cluster is reached |
//! | `keys` | commands that the native protocol carries |
//! | `convert` | configurations as our cluster file |
//! | `operate` | commands that go to single nodes over HTTP |
//! | `prompt`, `complete` | lines of a terminal or a pipe; completion |
//! | `report`, `exit` | what is printed; exit codes |

use std::{
    io::{self, BufRead, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use crate::{
    client::{ClientError, RequestError},
    config::ConfigError,
    master::{MasterError, PATIENCE},
    topology::Cluster,
};

pub use exit::EXIT_CODES;

use {
    exit::{UNREACHABLE, USAGE, code_of_client, code_of_request},
    report::{Output, Report},
    session::{Session, TargetArgs},
    verbs::Verb,
};

mod complete;
mod convert;
mod exit;
mod keys;
mod operate;
mod prompt;
mod report;
mod session;
mod verbs;

/// One-off commands about keys, nodes, histories, owners and injected faults. Without one, commands are read line by line:
/// at a prompt, or from standard input.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct CmdArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// With --master: the longest to wait for it and for its replicas, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait_s: u64,
    /// The zone to count as being in, from 1; that of the first node that answers without it.
    #[arg(long, value_name = "ZONE", value_parser = clap::value_parser!(u8).range(1..))]
    zone: Option<u8>,
    /// The cluster's name, checked before anything is sent; with --config or --master, theirs without it.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The longest that one command may take, or the answer of one node, or reaching the cluster, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 6000, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
    /// Read through the object's log, not by confirming who owns it.
    #[arg(long)]
    log_reads: bool,
    /// Print one line of JSON per command.
    #[arg(long)]
    json: bool,
    /// Do not remember the lines typed at the prompt in a file (wpaxos/cmd-history in the user's state directory).
    #[arg(long)]
    no_history_file: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Why no command could be tried.
#[derive(Debug, thiserror::Error)]
pub enum CmdError {
    /// No cluster was named.
    #[error(
        "name the cluster: --config FILE, --master HOST, or --seed HOST:PORT with the address of any of its shards"
    )]
    NoTarget,
    /// No node has an HTTP address, and the command needs one.
    #[error(
        "no node of this cluster has an HTTP address, which this command needs: \
         add one to each [[node]] of the cluster file, as in `http = \"127.0.0.1:8101\"`"
    )]
    NoHttp,
    /// The cluster file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The master gives no configuration.
    #[error(transparent)]
    Master(#[from] MasterError),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Standard input or output fails.
    #[error("standard input or output: {0}")]
    Terminal(#[from] io::Error),
}

impl CmdError {
    /// What the process ends with: see [`EXIT_CODES`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code().0)
    }

    /// With the `outcome` of `--json`.
    fn code(&self) -> (u8, &'static str) {
        let code = match self {
            Self::NoTarget | Self::NoHttp | Self::Config(_) | Self::Master(MasterError::Address { .. }) => USAGE,
            Self::Client(error) => code_of_client(error),
            Self::Master(_) | Self::Terminal(_) => UNREACHABLE,
        };
        (code, if code == USAGE { "usage" } else { "unreachable" })
    }
}

/// The name of a cluster file's cluster, and every shard of every node in it as a seed.
///
/// # Errors
/// If the file cannot be read or is wrong.
pub fn seeds_from_config(file: &Path) -> Result<(String, Vec<std::net::SocketAddr>), ConfigError> {
    let cluster = Cluster::load(file)?;
    let seeds = cluster_seeds(&cluster);
    Ok((cluster.name, seeds))
}

fn cluster_seeds(cluster: &Cluster) -> Vec<std::net::SocketAddr> {
    cluster.nodes.iter().flat_map(|node| node.shards.iter().copied()).collect()
}

/// Executes the command, or the lines of a terminal or of standard input; prints what comes of it, and gives the exit code: of
/// the first line that failed, if there are several. At a terminal that is always 0.
///
/// # Errors
/// If no command could be tried. With `--json` that is printed too.
pub fn run(args: CmdArgs) -> Result<ExitCode, CmdError> {
    let (json, prompts) = (args.json, args.verb.is_none());
    let terminal = io::stdout().is_terminal();
    let mut out = io::stdout();
    let mut to = Output { out: &mut out, json, terminal };
    let code = if prompts && terminal && io::stdin().is_terminal() {
        let file = prompt::history_file().filter(|_| !args.no_history_file);
        Session::new(&args).and_then(|mut session| prompt::edit(&mut session, file.as_deref(), &mut to))
    } else {
        run_to(&args, &mut io::stdin().lock(), &mut to)
    };
    code.map(ExitCode::from).inspect_err(|error| {
        if json {
            // There is no better place left to complain if this fails.
            let _ = writeln!(io::stdout(), "{}", json!({"outcome": error.code().1, "error": error.to_string()}));
        }
    })
}

fn run_to(args: &CmdArgs, input: &mut dyn BufRead, to: &mut Output<'_>) -> Result<u8, CmdError> {
    let mut session = Session::new(args)?;
    match &args.verb {
        Some(verb) => Ok(try_execute(&mut session, verb)?.print(to)?),
        None => prompt::lines(&mut session, input, to),
    }
}

fn execute(session: &mut Session, verb: &Verb) -> Report {
    try_execute(session, verb).unwrap_or_else(|error| {
        let (code, outcome) = error.code();
        Report::failed(code, outcome, &error.to_string())
    })
}

/// One line for each verb. Verbs that need no cluster leave the session alone, and work without one.
fn try_execute(session: &mut Session, verb: &Verb) -> Result<Report, CmdError> {
    let of_request = |ended: Result<Report, RequestError>| {
        ended.unwrap_or_else(|error| {
            let (code, outcome) = code_of_request(&error);
            Report::failed(code, outcome, &error.to_string())
        })
    };
    let alone = |node, answer| operate::faults(vec![(node, answer)]);
    Ok(match verb {
        Verb::Get { key } => of_request(keys::get(session.client()?, key.as_bytes())),
        Verb::Put { key, value } => of_request(keys::put(session.client()?, key.as_bytes(), value.as_bytes())),
        Verb::Delete { key } => of_request(keys::delete(session.client()?, key.as_bytes())),
        Verb::Cas { key, expect, value } => {
            of_request(keys::cas(session.client()?, key.as_bytes(), expect, value.as_bytes()))
        }
        Verb::Mget { keys } => of_request(keys::get_many(session.client()?, keys)),
        Verb::Stats { node, shard } => keys::stats(session.client()?, *node, *shard),
        Verb::History { key, node } => operate::history(&session.admin()?, *node, key.as_bytes()),
        Verb::Consensus { keys } => operate::consensus(&session.admin()?, keys),
        Verb::Status { nodes } => operate::status(&session.admin()?, nodes),
        Verb::Owners { keys, node, limit, after } => {
            let after = after.as_ref().map(|key| key.as_bytes());
            operate::owners(&session.admin()?, keys, *node, *limit as usize, after)
        }
        Verb::Steal { key, node } => operate::steal(&session.admin()?, *node, key.as_bytes()),
        Verb::Crash { node, lasting } => alone(*node, session.admin()?.crash(*node, lasting.duration())),
        Verb::Drop { link, lasting } => alone(link.from, session.admin()?.drop(link.from, link.to, lasting.duration())),
        Verb::Slow { link, ms, lasting } => {
            let delay = std::time::Duration::from_millis(*ms);
            alone(link.from, session.admin()?.slow(link.from, link.to, delay, lasting.duration()))
        }
        Verb::Flaky { link, probability, lasting } => {
            alone(link.from, session.admin()?.flaky(link.from, link.to, *probability, lasting.duration()))
        }
        Verb::Partition { lasting, nodes, one_way } => {
            match session.admin()?.partition(nodes, *one_way, lasting.duration()) {
                Ok(answers) => operate::faults(answers),
                Err(error) => operate::failed(&error),
            }
        }
        Verb::Heal { nodes } => operate::heal(&session.admin()?, nodes),
        Verb::Convert { file } => convert::convert(file)?,
    })
}

#[cfg(test)]
mod tests;
