//! What must hold of a cluster (`protocol.md` §10), as oracles that are fed with small, plain events.
//!
//! An oracle knows no world and runs no node: each has a test that feeds it a history by hand. It never panics; a method
//! returns the [`Violation`] that it found, and whoever runs the world stops there.
//!
//! | file | rules | what it sees |
//! |---|---|---|
//! | `agreement` | 1, 2, 6: one command per slot, by a Q2, one owner per ballot | tails, executed slots, leads, restarts |
//! | `promises` | 3, 4: promises never fall, nothing is accepted below one | `promised`, new entries, what left the node |
//! | `durability` | nothing leaves, or counts, before its record is durable | records, frames as they leave, executed slots |
//! | `replicas` | 5: as much executed, the same state | a node's state whenever it has executed more |
//! | `once` | 7: at most once; each request answered once, and rightly | requests, answers, decided commands, states |
//! | [`linear`] | 8: linearizable per key | calls and returns of the clients |
//! | `liveness` | 9: everything ends, all become equal | open requests, a snapshot of each node |
//! | `memory` | bounded memory | samples of sizes |
//! | `observer` | feeds most of them from a `WPaxos` | a node after each of its inputs |
//!
//! Keys are numbers here: the simulator's keys are `key-<number>` ([`key_name`]). The first 8 bytes of a value are a number
//! too, little-endian, unique per write; 0 stands for no value ([`value_number`]).

mod agreement;
mod durability;
pub mod linear;
mod liveness;
mod memory;
mod observer;
mod once;
mod promises;
mod replicas;

use std::fmt;

use crate::command::KEY_BYTES_MAX;
pub use crate::linear::value_number;
pub use agreement::{Accepted, Agreement, Held};
pub use durability::{Durability, Ledger, SharedLedger};
pub use liveness::{Liveness, Snapshot};
pub use memory::{Memory, Sizes};
pub use observer::Observer;
pub use once::{Answer, Asked, CommandId, Once};
pub use promises::Promises;
pub use replicas::Replicas;

/// Which rule was broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// Invariant 1: one command per (object, slot) is ever decided.
    OneCommandPerSlot,
    /// Invariant 2: a decided slot is accepted by some phase-2 quorum, and stays so.
    DecidedByQuorum,
    /// Invariant 3: a promise never falls.
    PromiseFalls,
    /// Invariant 4: a node accepts nothing below its promise.
    AcceptedBelowPromise,
    /// Invariant 5: replicas that have executed as much of an object hold the same state of it.
    ReplicasDiffer,
    /// Invariant 6: two owners never both commit in one (object, ballot).
    TwoOwnersCommit,
    /// Invariant 7: a command takes effect at most once, and not at all if it was refused.
    ExecutedTwice,
    /// Invariant 8: every history is linearizable per key.
    NotLinearizable,
    /// Invariant 9: when faults stop, all live replicas become equal.
    NotConverged,
    /// Invariant 9: when faults stop, every waiting request is answered.
    Unanswered,
    /// Each request is answered once, to whom asked, with what can be an answer to it.
    WrongAnswer,
    /// A node does not forget what it has executed while it runs.
    AppliedFalls,
    /// An object holds nothing but what somebody asked to write to it.
    StrayValue,
    /// Nothing leaves a node, or counts as decided, before what it rests on is durable.
    LeftTooEarly,
    /// What a node has written or sent cannot be read by the reader that ships.
    Unreadable,
    /// Memory stays within the bounds that the tuning gives.
    Memory,
    /// An assertion of the core itself.
    Core,
}

impl Rule {
    /// The number of the invariant in `docs/protocol.md` §10, if it has one.
    pub const fn number(self) -> Option<u8> {
        Some(match self {
            Self::OneCommandPerSlot => 1,
            Self::DecidedByQuorum => 2,
            Self::PromiseFalls => 3,
            Self::AcceptedBelowPromise => 4,
            Self::ReplicasDiffer => 5,
            Self::TwoOwnersCommit => 6,
            Self::ExecutedTwice => 7,
            Self::NotLinearizable => 8,
            Self::NotConverged | Self::Unanswered => 9,
            Self::WrongAnswer
            | Self::AppliedFalls
            | Self::StrayValue
            | Self::LeftTooEarly
            | Self::Unreadable
            | Self::Memory
            | Self::Core => return None,
        })
    }

    /// The rule in a few words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneCommandPerSlot => "one command per slot",
            Self::DecidedByQuorum => "decided by a phase-2 quorum",
            Self::PromiseFalls => "promises never fall",
            Self::AcceptedBelowPromise => "nothing is accepted below the promise",
            Self::ReplicasDiffer => "replicas do not differ",
            Self::TwoOwnersCommit => "one owner per ballot",
            Self::ExecutedTwice => "executed at most once",
            Self::NotLinearizable => "linearizable per key",
            Self::NotConverged => "live replicas become equal",
            Self::Unanswered => "every request is answered",
            Self::WrongAnswer => "answers are right",
            Self::AppliedFalls => "nothing executed is forgotten",
            Self::StrayValue => "no value from nowhere",
            Self::LeftTooEarly => "nothing leaves before its record",
            Self::Unreadable => "what is written can be read",
            Self::Memory => "bounded memory",
            Self::Core => "the core's own assertions",
        }
    }

    /// A violation of this rule.
    pub fn broken(self, text: impl Into<String>) -> Violation {
        Violation { rule: self, text: text.into() }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => write!(f, "invariant {number}, {}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

/// What an oracle found wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{rule}: {text}")]
pub struct Violation {
    /// Which rule was broken.
    pub rule: Rule,
    /// By whom, where and how.
    pub text: String,
}

/// Keys with this bit in their number are only ever read: no node has an object for them.
pub const ONLY_READ: u64 = 1 << 30;

/// Keys with this number or a higher one have names of [`KEY_BYTES_MAX`] bytes.
pub const LONG_KEYS: u64 = 1 << 40;

/// The name of the key with this number.
pub fn key_name(key: u64) -> Vec<u8> {
    let digits = if key < LONG_KEYS { 0 } else { KEY_BYTES_MAX - 4 };
    format!("key-{key:0digits$}").into_bytes()
}

/// The number of a key; `None` if it is not named as the simulator's keys are.
pub fn key_number(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"key-")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_says_which_rule_it_breaks() {
        let violation = Rule::OneCommandPerSlot.broken("slot 3 of key 1");
        assert_eq!(violation.to_string(), "invariant 1, one command per slot: slot 3 of key 1");
        assert_eq!(Rule::Memory.broken("node 2").to_string(), "bounded memory: node 2");
    }

    #[test]
    fn keys_and_values_are_numbers() {
        assert_eq!(key_number(&key_name(17)), Some(17));
        let long = key_name(LONG_KEYS + 17);
        assert_eq!((long.len(), key_number(&long)), (KEY_BYTES_MAX, Some(LONG_KEYS + 17)));
        assert_eq!((key_number(b"key-"), key_number(b"kex-1"), key_number(b"k")), (None, None, None));
        assert_eq!((value_number(Some(&[7, 0, 0, 0, 0, 0, 0, 0, 9])), value_number(Some(b"short"))), (7, 0));
        assert_eq!(value_number(None), 0);
    }
}
