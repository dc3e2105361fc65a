//! The command line of `wpaxos master`.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use clap::Args;

use super::{HTTP_BASE_PORT, Master, MasterOptions, STATE_FILE};
use crate::{
    config::{ConfigError, Template},
    failure::Failure,
    tuning::Tuning,
};

/// Hands one configuration to all replicas and clients that ask for it.
#[derive(Args, Clone, Debug)]
pub struct MasterArgs {
    /// How many replicas to wait for, 1 to 128. Their ids say which zones there are.
    #[arg(long, value_name = "COUNT")]
    n: usize,
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:1735")]
    listen: SocketAddr,
    /// A cluster file without nodes, or Paxi's JSON configuration: quorums, policy, shards, distances, HTTP, faults. Its
    /// defaults without one; a cluster named wpaxos.
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// The tuning file that is handed out; built-in defaults without one.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// The first port that is handed out to replicas that name none, in the order of their ids [default: the port after
    /// the master's own]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    base_port: Option<u16>,
    /// The first HTTP port that is handed out, in the order of ids.
    #[arg(long, value_name = "PORT", default_value_t = HTTP_BASE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    http_base_port: u16,
    /// Hand out no HTTP ports: only replicas that name one serve HTTP.
    #[arg(long, conflicts_with = "http_base_port")]
    no_http: bool,
    /// Where the configuration is kept once it is complete: a master that starts again hands out the same.
    #[arg(long, value_name = "FILE", default_value = STATE_FILE)]
    state: PathBuf,
    /// Keep nothing: a master that starts again waits for all replicas again.
    #[arg(long, conflicts_with = "state")]
    no_state: bool,
    /// Forget what the state file holds, and begin a new cluster.
    #[arg(long, conflicts_with = "no_state")]
    fresh: bool,
}

/// Runs a master until `stop` is set.
///
/// # Errors
/// Names what stands in the way, or why those that registered make no cluster.
pub fn run(args: MasterArgs, stop: Arc<AtomicBool>) -> Result<(), Failure> {
    let wrong = |error: ConfigError| Failure::Config(error.to_string());
    let template = args.template.map(Template::load).transpose().map_err(wrong)?.unwrap_or_default();
    for note in template.notes() {
        tracing::info!("{note}");
    }
    let options = MasterOptions {
        listen: args.listen,
        n: args.n,
        template,
        tuning: args.tuning.map(Tuning::load).transpose().map_err(wrong)?,
        base_port: args.base_port,
        http_base_port: (!args.no_http).then_some(args.http_base_port),
        state: (!args.no_state).then_some(args.state),
        fresh: args.fresh,
        stop,
    };
    Master::start(options)?.run()
}
