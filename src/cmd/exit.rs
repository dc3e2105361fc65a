//! Exit codes, and which error has which.

use crate::client::{ClientError, RequestError, admin::AdminError};

/// For `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; a Put that an earlier attempt executed counts as done
  1  the key has no value, or is not as cas expects; replicas part, or have nothing to compare
  2  the command line, the cluster file, the key or the value is wrong; a node has no HTTP address
  3  refused: it did not happen
  4  ambiguous: it may have happened, or what came of it is unknown
  5  no node can be reached, or it refuses us; one that was asked for does not answer
Of several commands on standard input, the first that failed counts.";

pub(super) const OK: u8 = 0;
pub(super) const NEGATIVE: u8 = 1;
pub(super) const USAGE: u8 = 2;
pub(super) const REFUSED: u8 = 3;
pub(super) const AMBIGUOUS: u8 = 4;
pub(super) const UNREACHABLE: u8 = 5;

/// Of a client that could not be made, or cannot go on.
pub(super) fn code_of_client(error: &ClientError) -> u8 {
    match error {
        ClientError::NoSeeds | ClientError::Options(_) | ClientError::Zone { .. } => USAGE,
        _ => UNREACHABLE,
    }
}

/// Of a request, with the `outcome` of `--json`.
pub(super) fn code_of_request(error: &RequestError) -> (u8, &'static str) {
    match error {
        RequestError::Submit(_) | RequestError::NoSuchShard { .. } => (USAGE, "usage"),
        RequestError::InFlight(_) | RequestError::Refused(_) => (REFUSED, "refused"),
        RequestError::Ambiguous(_) | RequestError::Duplicate | RequestError::WrongAnswer => (AMBIGUOUS, "ambiguous"),
        RequestError::Client(error) => (code_of_client(error), "unreachable"),
    }
}

/// Of what a node was asked over HTTP, if that was to say something.
pub(super) fn code_of_admin(error: &AdminError) -> (u8, &'static str) {
    match error {
        AdminError::NoSuchNode { .. } | AdminError::NoHttp { .. } | AdminError::Usage(_) => (USAGE, "usage"),
        AdminError::Refused { status: 400, .. } => (USAGE, "usage"),
        AdminError::Refused { .. } => (REFUSED, "refused"),
        AdminError::Unreachable { .. } | AdminError::NoAnswer { .. } | AdminError::Malformed { .. } => {
            (UNREACHABLE, "unreachable")
        }
    }
}

/// The same, if it was to do something.
pub(super) fn code_of_order(error: &AdminError) -> (u8, &'static str) {
    match error {
        // A gateway's time-out: the node gave up waiting for others.
        AdminError::NoAnswer { .. } | AdminError::Malformed { .. } | AdminError::Refused { status: 504, .. } => {
            (AMBIGUOUS, "ambiguous")
        }
        other => code_of_admin(other),
    }
}
