//! Why a replica did not start or did not go on, and the exit codes that say so.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | stopped when told to |
//! | 2 | the command line, the cluster file or the tuning file is wrong |
//! | 3 | an address is in use |
//! | 4 | the environment does not allow it: locked memory, io_uring, an address that is not ours |
//! | 5 | refused: by peers, because another process runs as this node; by the master, because its id is alive |
//! | 6 | a second SIGTERM or SIGINT came before the replica had stopped |
//! | 7 | the data directory is refused: another node's, another format, in use, or to be left unused |
//! | 8 | the disk: it is full, or reading or writing failed |
//! | 9 | the data directory is damaged: a file is not as it was written, is missing, or contradicts the others |
//! | 70 | a bug |

use std::{io, net::SocketAddr};

/// The exit code after a second signal.
pub const EXIT_SECOND_SIGNAL: i32 = 6;
/// The exit code of a bug.
pub const EXIT_BUG: i32 = 70;

/// Why a replica did not start, or ended though nobody told it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// What the operator asked for is not possible.
    #[error("{0}")]
    Config(String),
    /// Somebody listens there already.
    #[error("{0} is in use: another process listens there; stop it, or give this node another address")]
    AddressInUse(SocketAddr),
    /// The system does not allow it.
    #[error("{0}")]
    Environment(String),
    /// The peers, or the master, will not have it.
    #[error("{0}")]
    Refused(String),
    /// The data directory cannot be this node's.
    #[error("{0}")]
    DataDirectory(String),
    /// The disk does not take or give what it should.
    #[error("{0}")]
    Disk(String),
    /// What the disk holds is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// A bug.
    #[error("{0}; this is a bug")]
    Bug(String),
}

impl Failure {
    /// Why an address cannot be listened on.
    pub(crate) fn of_address(address: SocketAddr, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => {
                Self::Environment(format!("{address} is not an address of this machine"))
            }
            _ => Self::Environment(format!("cannot listen on {address}: {error}")),
        }
    }

    /// The process's exit code.
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Config(_) => 2,
            Self::AddressInUse(_) => 3,
            Self::Environment(_) => 4,
            Self::Refused(_) => 5,
            Self::DataDirectory(_) => 7,
            Self::Disk(_) => 8,
            Self::Damaged(_) => 9,
            Self::Bug(_) => EXIT_BUG,
        }
    }
}

/// Why a server or a local cluster did not start.
pub type StartError = Failure;
