//! Invariant 8 as an oracle: the histories of the simulator's clients, key by key, through [`crate::linear`].

use std::collections::BTreeMap;

#[cfg(test)]
use crate::{command::Status, linear::State};

pub use crate::linear::{Act, Operation, Outcome, Verdict, check};

use super::{Rule, Violation};
use crate::linear;

/// Operations on many keys.
#[derive(Clone, Debug, Default)]
pub struct History {
    keys: BTreeMap<u64, Vec<Operation>>,
}

impl History {
    /// Adds an operation on a key, in any order.
    pub fn add(&mut self, key: u64, operation: Operation) {
        self.keys.entry(key).or_default().push(operation);
    }

    /// The operations on one key.
    pub fn of(&self, key: u64) -> &[Operation] {
        self.keys.get(&key).map_or(&[], |operations| operations)
    }

    /// Checks every key, with at most so many steps for each. Returns the keys whose search was given up.
    ///
    /// # Errors
    /// The first key that is not linearizable, with the shortest beginning of its history that is not.
    pub fn check(&self, steps_max: usize) -> Result<Vec<u64>, Violation> {
        let mut given_up = Vec::new();
        for (key, operations) in &self.keys {
            match check(operations, steps_max) {
                Verdict::Linearizable => {}
                Verdict::TooLong => given_up.push(*key),
                Verdict::Not => return Err(violation(*key, operations, steps_max)),
            }
        }
        Ok(given_up)
    }
}

/// How many operations a violation shows.
const SHOWN: usize = 12;

/// What is wrong with a history that is not linearizable: the first operation that nothing explains, and what surrounds it.
fn violation(key: u64, operations: &[Operation], steps_max: usize) -> Violation {
    let found = linear::explain(operations, linear::State::default(), steps_max);
    let shown = &found.beginning;
    let lines: Vec<String> = shown[shown.len().saturating_sub(SHOWN)..].iter().map(describe).collect();
    let text = format!(
        "key {key}: nothing explains what returned at {}, operation {} of {}; the last before it:\n{}",
        found.returned,
        found.place + 1,
        found.returns,
        lines.join("\n")
    );
    Rule::NotLinearizable.broken(text)
}

fn describe(operation: &Operation) -> String {
    let Operation { act, called, returned, outcome } = operation;
    match outcome {
        Outcome::Known(status, version, 0) => {
            format!("  [{called}, {returned}] {act:?}: {status:?}, version {version}")
        }
        Outcome::Known(status, version, value) => {
            format!("  [{called}, {returned}] {act:?}: {status:?}, version {version}, value {value}")
        }
        Outcome::Happened => format!("  [{called}, {returned}] {act:?}: it happened"),
        Outcome::Unknown => format!("  [{called}, …] {act:?}: not known, or not returned yet"),
    }
}

#[cfg(test)]
mod tests;
