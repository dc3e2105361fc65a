//! The master: hands one configuration to all replicas and clients that ask for it, so that a replica needs to be told
//! nothing but the master's address and its own id.
//!
//! It waits until as many replicas as it was told have registered, each by its id (`ZONE.NODE`) and the address at which it
//! can be reached; then it makes the cluster file, writes it into its state file, and hands it and the tuning to everybody
//! who waits and to everybody who comes later. From then on the configuration does not change, and nothing depends on the
//! master: replicas and clients that have it never come back. A master that starts again goes on from its state file, and
//! replicas that were waiting register anew by themselves.
//!
//! ```text
//! replica                      master                      client
//!   │ {"ask":"register",…} ──►   │   ◄── {"ask":"fetch",…}   │
//!   │ ◄── {"answer":"waiting",…} │ {"answer":"waiting",…} ─► │    at every change, and every few seconds
//!   │      …                     │       …                   │
//!   │ ◄── {"answer":"configuration","cluster":…,"tuning":…} ►│
//!   │ {"ask":"up"} ──►           │   once its shards listen
//! ```
//! A line is one JSON object, over TCP; there is one request per connection. `{"answer":"refused","text":…}` ends it.
//!
//! **Who is alive?** A second replica with an id that is alive is refused. Alive is who has a connection on which it waits
//! for the configuration or has been handed it and is not up yet, or whose native port answers. So a replica that died is
//! replaced at once, whatever the master remembers of it, and a master that has forgotten everything still knows.
//! See `docs/decisions/0011-the-master-remembers-one-thing.md`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use crate::{config::ConfigError, failure::Failure};

mod args;
mod join;
mod lines;
mod ports;
mod registry;
mod serve;
mod state;
#[cfg(test)]
mod tests;

pub use args::{MasterArgs, run};
pub use join::{Registration, fetch, register};
pub use serve::{Master, MasterOptions};

/// The master's port, as in Paxi.
pub const PORT: u16 = 1735;
/// The first HTTP port that is handed out: the one after Paxi's 8080.
pub const HTTP_BASE_PORT: u16 = 8081;
/// Where the state is kept if nothing else is said: in the current directory.
pub const STATE_FILE: &str = "wpaxos-master.json";
/// How long a client waits for the cluster to be complete if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The version of what is spoken. Another is refused.
const VERSION: u32 = 1;
/// How often who waits is told so, even if nothing changes: then both sides know that the other is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// An address as a replica is told it: its port may be the master's to choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Where others reach it, and where it listens.
    pub ip: IpAddr,
    /// The port of its first shard, or of HTTP; the master's choice if `None`.
    pub port: Option<u16>,
}

impl FromStr for Place {
    type Err = String;

    /// `IP` or `IP:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (ip, port) = match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            (Ok(address), _) => (address.ip(), Some(address.port())),
            (_, Ok(ip)) => (ip, None),
            _ => {
                let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or("");
                let wrong =
                    || format!("'{text}' is not an address: expected IP or IP:PORT, as in 10.0.0.1 or 10.0.0.1:7101");
                (bare.parse().map_err(|_| wrong())?, None)
            }
        };
        if ip.is_unspecified() || port == Some(0) {
            return Err(format!(
                "'{text}' is nothing that others can dial: expected the address at which they reach it"
            ));
        }
        Ok(Self { ip, port })
    }
}

/// Why the master gave no configuration.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// What was given as its address is none.
    #[error("the master's address '{address}': {problem}; expected HOST or HOST:PORT, as in 127.0.0.1:1735")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It will not have us.
    #[error("the master at {address} refuses: {text}")]
    Refused {
        /// Where it is.
        address: String,
        /// Its reason.
        text: String,
    },
    /// It took too long.
    #[error("the master at {address} gave no configuration within {} s: {last}", .patience.as_secs_f64())]
    Patience {
        /// Where it is.
        address: String,
        /// How long it was waited for.
        patience: Duration,
        /// What was last heard of it.
        last: String,
    },
    /// What it says is not understood.
    #[error("what answers at {address} is no master that we understand: {problem}")]
    Answer {
        /// Where it is.
        address: String,
        /// What was said.
        problem: String,
    },
    /// What it handed out is not taken.
    #[error("what the master at {address} handed out: {source}")]
    Config {
        /// Where it is.
        address: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// We were told to stop.
    #[error("stopped while waiting for the master at {0}")]
    Stopped(String),
}

impl From<MasterError> for Failure {
    fn from(error: MasterError) -> Self {
        let text = error.to_string();
        match error {
            MasterError::Address { .. } | MasterError::Config { .. } => Self::Config(text),
            MasterError::Refused { .. } => Self::Refused(text),
            MasterError::Patience { .. } | MasterError::Answer { .. } | MasterError::Stopped(_) => {
                Self::Environment(text)
            }
        }
    }
}

/// Why the state file does not serve.
#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error("{file}: cannot be {what}: {source}")]
    File { file: String, what: &'static str, source: io::Error },
    #[error("{file}: {problem}; to start a new cluster, give --fresh, or another --state")]
    Contents { file: String, problem: String },
}
