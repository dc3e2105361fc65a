//! One request at a time: for one-off commands, tests and set-up.

use super::{Ambiguity, Client, ClientError, SubmitError};
use crate::{
    command::{Expect, Status},
    topology::NodeId,
};

/// How a CompareAndSwap ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The value was set.
    Swapped {
        /// The object's version after it.
        version: u64,
    },
    /// The object was not as expected, and stays as it was.
    Failed {
        /// The object's version.
        version: u64,
    },
}

/// Why a blocking call has no result.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request was not taken; nothing was sent.
    #[error("not sent: {0}")]
    Submit(#[from] SubmitError),
    /// Pipelined requests are in flight, whose completions this call would swallow; nothing was sent.
    #[error("not sent: {0} pipelined requests are in flight; poll until they have ended")]
    InFlight(usize),
    /// It did not happen and will not.
    #[error("refused ({0:?}): it did not happen")]
    Refused(Status),
    /// It may have happened, or may still.
    #[error("it may or may not have happened: {0}")]
    Ambiguous(Ambiguity),
    /// A write that was executed, once; what came of it is no longer known.
    #[error("it was executed once, but its result is no longer known")]
    Duplicate,
    /// There is no such node or shard.
    #[error("the cluster has no shard {shard} of node {node}")]
    NoSuchShard {
        /// The node asked for.
        node: NodeId,
        /// The shard asked for.
        shard: u16,
    },
    /// The client cannot go on, or the node cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Client {
    /// Reads a key: its value and version, or `None` if it has no value. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`]. A read has no effect, so it may always be repeated.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<(Vec<u8>, u64)>, RequestError> {
        let _ = key;
        Err(RequestError::Duplicate)
    }

    /// Sets a key; gives its new version. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::Duplicate`] means that it was set, and only the version is unknown.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64, RequestError> {
        let _ = (key, value);
        Err(RequestError::Duplicate)
    }

    /// Removes a key's value; gives the object's new version, or `None` if it had no value. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<u64>, RequestError> {
        let _ = key;
        Err(RequestError::Duplicate)
    }

    /// Sets a key if it is as expected. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn compare_and_swap(&mut self, key: &[u8], expect: Expect<'_>, value: &[u8]) -> Result<Swap, RequestError> {
        let _ = (key, expect, value);
        Err(RequestError::Duplicate)
    }

    /// The counters of one shard of one node, over a connection of its own: pipelined requests may be in flight. Blocks for
    /// at most [`super::Options::request_timeout`].
    ///
    /// # Errors
    /// If there is no such shard, it cannot be reached, or its answer makes no sense.
    pub fn stats(&self, node: NodeId, shard: u16) -> Result<serde_json::Value, RequestError> {
        Err(RequestError::NoSuchShard { node, shard })
    }
}
