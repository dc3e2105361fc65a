//! One request at a time: for one-off commands, tests and set-up.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Ambiguity, Client, ClientError, Outcome, SubmitError,
    handshake::{self, Conversation},
};
use crate::{
    command::{Action, Expect, Status},
    topology::NodeId,
    wire::{self, Kind},
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
    /// The answer is none that this operation can have.
    #[error("the replica's answer does not go with the request; what happened is unknown")]
    WrongAnswer,
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

/// What came of reading a key: its value and version, or `None` if it has no value.
pub type ReadAnswer = Result<Option<(Vec<u8>, u64)>, RequestError>;

/// How often a read is issued anew that an earlier attempt has used up.
const READS_MAX: u32 = 4;

/// An answer that outlives the callback.
struct Answer {
    ended: Ended,
    version: u64,
}

enum Ended {
    Value(Vec<u8>),
    Done,
    NotFound,
    CasFailed,
    Duplicate,
    Refused(Status),
    Ambiguous(Ambiguity),
}

impl Client {
    /// Reads a key: its value and version, or `None` if it has no value. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`]. A read has no effect, so it may always be repeated.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<(Vec<u8>, u64)>, RequestError> {
        for _ in 0..READS_MAX {
            let answer = self.call(Action::Get, key)?;
            match answer.ended {
                Ended::Value(value) => return Ok(Some((value, answer.version))),
                Ended::NotFound => return Ok(None),
                Ended::Duplicate => {}
                ended => return Err(ended.into_error()),
            }
        }
        Err(RequestError::Duplicate)
    }

    /// Reads many keys at once, of whatever shards and owners: all are in flight together, as far as
    /// [`super::Options::in_flight_max`] goes. One answer per key, in the order of the keys; each is what [`Self::get`] would
    /// have given, and one that fails does not keep the others from theirs. Blocks until all have ended. Each read is
    /// linearizable by itself; together they are no snapshot.
    ///
    /// # Errors
    /// If pipelined requests are in flight, or the operating system cannot wait for sockets.
    pub fn get_many<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Result<Vec<ReadAnswer>, RequestError> {
        if self.in_flight() > 0 {
            return Err(RequestError::InFlight(self.in_flight()));
        }
        let mut answers: Vec<Option<ReadAnswer>> = keys.iter().map(|_| None).collect();
        let mut reads = vec![0; keys.len()];
        let mut waiting: VecDeque<usize> = (0..keys.len()).collect();
        while !waiting.is_empty() || self.in_flight() > 0 {
            while let Some(&place) = waiting.front() {
                match self.submit(Action::Get, keys[place].as_ref(), place as u64) {
                    Err(SubmitError::Full { .. }) if self.in_flight() > 0 => break,
                    Err(error) => answers[place] = Some(Err(error.into())),
                    Ok(()) => reads[place] += 1,
                }
                waiting.pop_front();
            }
            if self.in_flight() == 0 {
                break; // None of them could be sent.
            }
            self.poll(Duration::from_millis(100), &mut |completion| {
                let place = completion.tag as usize;
                match completion.outcome.into() {
                    Ended::Value(value) => answers[place] = Some(Ok(Some((value, completion.version)))),
                    Ended::NotFound => answers[place] = Some(Ok(None)),
                    Ended::Duplicate if reads[place] < READS_MAX => waiting.push_back(place),
                    ended => answers[place] = Some(Err(ended.into_error())),
                }
            })?;
        }
        Ok(answers.into_iter().map(|answer| answer.expect("the loop ends when every key has its answer")).collect())
    }

    /// Sets a key; gives its new version. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::Duplicate`] means that it was set, and only the version is unknown.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64, RequestError> {
        let answer = self.call(Action::Put(value), key)?;
        match answer.ended {
            Ended::Done => Ok(answer.version),
            ended => Err(ended.into_error()),
        }
    }

    /// Removes a key's value; gives the object's new version, or `None` if it had no value. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<u64>, RequestError> {
        let answer = self.call(Action::Delete, key)?;
        match answer.ended {
            Ended::Done => Ok(Some(answer.version)),
            Ended::NotFound => Ok(None),
            ended => Err(ended.into_error()),
        }
    }

    /// Sets a key if it is as expected. Blocks.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn compare_and_swap(&mut self, key: &[u8], expect: Expect<'_>, value: &[u8]) -> Result<Swap, RequestError> {
        let answer = self.call(Action::CompareAndSwap { expect, value }, key)?;
        match answer.ended {
            Ended::Done => Ok(Swap::Swapped { version: answer.version }),
            Ended::CasFailed => Ok(Swap::Failed { version: answer.version }),
            ended => Err(ended.into_error()),
        }
    }

    /// The counters of one shard of one node, over a connection of its own: pipelined requests may be in flight. Blocks for
    /// at most [`super::Options::request_timeout`].
    ///
    /// # Errors
    /// If there is no such shard, it cannot be reached, or its answer makes no sense.
    pub fn stats(&self, node: NodeId, shard: u16) -> Result<serde_json::Value, RequestError> {
        let shards = usize::from(self.welcome.shards);
        let index = self.routing.index_of(node).filter(|_| shard < self.welcome.shards);
        let Some(index) = index.map(|index| index.index() * shards + usize::from(shard)) else {
            return Err(RequestError::NoSuchShard { node, shard });
        };
        let hello = handshake::hello(Some(self.welcome.cluster.clone()), self.client_id, self.options.zone);
        let deadline = Instant::now() + self.options.request_timeout;
        let address = &self.connections[index].address;
        let (mut conversation, _) = Conversation::open(address, &hello, shard, deadline)?;
        conversation.send(&wire::frame(Kind::StatsRequest, shard, 0, &[]))?;
        let body = conversation.receive(Kind::Stats)?;
        Ok(conversation.json(&body)?)
    }

    fn call(&mut self, action: Action<'_>, key: &[u8]) -> Result<Answer, RequestError> {
        if self.in_flight() > 0 {
            return Err(RequestError::InFlight(self.in_flight()));
        }
        self.submit(action, key, 0)?;
        let mut answer = None;
        while answer.is_none() {
            self.poll(Duration::from_millis(100), &mut |completion| {
                answer = Some(Answer { ended: completion.outcome.into(), version: completion.version });
            })?;
        }
        Ok(answer.expect("the loop ends with an answer"))
    }
}

impl From<Outcome<'_>> for Ended {
    fn from(outcome: Outcome<'_>) -> Self {
        match outcome {
            Outcome::Value(value) => Self::Value(value.to_vec()),
            Outcome::Done => Self::Done,
            Outcome::NotFound => Self::NotFound,
            Outcome::CasFailed => Self::CasFailed,
            Outcome::Duplicate => Self::Duplicate,
            Outcome::Refused(status) => Self::Refused(status),
            Outcome::Ambiguous(why) => Self::Ambiguous(why),
        }
    }
}

impl Ended {
    /// What to tell a caller that this is no result for.
    fn into_error(self) -> RequestError {
        match self {
            Self::Duplicate => RequestError::Duplicate,
            Self::Refused(status) => RequestError::Refused(status),
            Self::Ambiguous(why) => RequestError::Ambiguous(why),
            Self::Value(_) | Self::Done | Self::NotFound | Self::CasFailed => RequestError::WrongAnswer,
        }
    }
}
