//! Whether the history of one key is linearizable: Wing and Gong's search with Lowe's memo of visited configurations.

use std::collections::HashSet;

use wpaxos::command::Status;

/// What an operation does; values are numbers, 0 is "none".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Get,
    Put(u64),
    Delete,
    CasAbsent(u64),
    CasValue(u64, u64),
    CasVersion(u64, u64),
}

/// What is known of how it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// With this status and version, and the value that a Get saw.
    Known(Status, u64, u64),
    /// It was executed; how it ended is not known.
    Happened,
    /// It may have been executed, or may be at any later time, or never.
    Unknown,
}

/// An operation with the times of its call and its return, on a clock on which no two events coincide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    pub act: Act,
    pub called: u64,
    /// `u64::MAX` where the outcome is unknown.
    pub returned: u64,
    pub outcome: Outcome,
}

/// The result of the search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Linearizable,
    Not,
    /// The search was given up.
    TooLong,
}

/// The object as its specification has it: value and version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct State {
    value: u64,
    version: u64,
}

impl State {
    fn step(self, act: Act) -> (Self, Status, u64) {
        let set = |value| (Self { value, version: self.version + 1 }, Status::Ok, 0);
        let failed = |status| (self, status, 0);
        match act {
            Act::Get if self.value == 0 => (self, Status::NotFound, 0),
            Act::Get => (self, Status::Ok, self.value),
            Act::Put(value) => set(value),
            Act::Delete if self.value == 0 => failed(Status::NotFound),
            Act::Delete => set(0),
            Act::CasAbsent(value) if self.value == 0 => set(value),
            Act::CasValue(expected, value) if self.value == expected => set(value),
            Act::CasVersion(expected, value) if self.version == expected => set(value),
            Act::CasAbsent(_) | Act::CasValue(..) | Act::CasVersion(..) => failed(Status::CasFailed),
        }
    }
}

/// Which operations are linearized.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, place: usize) -> bool {
        self.0[place / 64] >> (place % 64) & 1 == 1
    }

    fn flip(&mut self, place: usize) {
        self.0[place / 64] ^= 1 << (place % 64);
    }
}

/// Searches an order of the operations that respects real time and explains every answer.
pub fn check(operations: &[Operation], steps_max: usize) -> Verdict {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.called);
    let mut search = Search {
        needed: operations.iter().filter(|operation| operation.outcome != Outcome::Unknown).count(),
        done: Bits(vec![0; operations.len().div_ceil(64)]),
        operations: &operations,
        seen: HashSet::new(),
        steps: 0,
        steps_max,
    };
    // Recursion as deep as the history: give it the room.
    match search.from(State::default(), 0) {
        true => Verdict::Linearizable,
        false if search.steps >= steps_max => Verdict::TooLong,
        false => Verdict::Not,
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    done: Bits,
    needed: usize,
    seen: HashSet<(Bits, State)>,
    steps: usize,
    steps_max: usize,
}

impl Search<'_> {
    /// `first` is the first operation, in the order of calls, that is not linearized.
    fn from(&mut self, state: State, first: usize) -> bool {
        if self.needed == 0 {
            return true;
        }
        self.steps += 1;
        if self.steps >= self.steps_max || !self.seen.insert((self.done.clone(), state)) {
            return false;
        }
        let mut earliest_return = u64::MAX;
        let mut place = first;
        // Only operations that were called before every open one returned can be next.
        let mut candidates = Vec::new();
        while place < self.operations.len() && self.operations[place].called < earliest_return {
            if !self.done.has(place) {
                candidates.push(place);
                earliest_return = earliest_return.min(self.operations[place].returned);
            }
            place += 1;
        }
        // Those that returned first: the usual order. Doubtful ones last.
        candidates.sort_by_key(|place| self.operations[*place].returned);
        candidates.into_iter().any(|place| self.try_next(state, first, place))
    }

    fn try_next(&mut self, state: State, first: usize, place: usize) -> bool {
        let operation = self.operations[place];
        let (next, status, value) = state.step(operation.act);
        match operation.outcome {
            Outcome::Known(..) if operation.outcome != Outcome::Known(status, next.version, value) => return false,
            // Without an effect it need not have happened.
            Outcome::Unknown if next == state => return false,
            _ => {}
        }
        let counted = usize::from(operation.outcome != Outcome::Unknown);
        self.done.flip(place);
        self.needed -= counted;
        let mut next_first = first;
        while next_first < self.operations.len() && self.done.has(next_first) {
            next_first += 1;
        }
        let found = self.from(next, next_first);
        if !found {
            self.done.flip(place);
            self.needed += counted;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(called: u64, returned: u64, act: Act, status: Status, version: u64, value: u64) -> Operation {
        Operation { act, called, returned, outcome: Outcome::Known(status, version, value) }
    }

    fn doubtful(called: u64, act: Act) -> Operation {
        Operation { act, called, returned: u64::MAX, outcome: Outcome::Unknown }
    }

    #[test]
    fn histories_that_can_be_explained_are_taken() {
        let histories: [&[Operation]; 5] = [
            &[],
            &[known(1, 2, Act::Put(7), Status::Ok, 1, 0), known(3, 4, Act::Get, Status::Ok, 1, 7)],
            // Concurrent with the write: may see it or not.
            &[known(1, 4, Act::Put(7), Status::Ok, 1, 0), known(2, 3, Act::Get, Status::NotFound, 0, 0)],
            // A doubtful write takes effect much later.
            &[
                doubtful(1, Act::Put(7)),
                known(2, 3, Act::Get, Status::NotFound, 0, 0),
                known(4, 5, Act::Get, Status::Ok, 1, 7),
            ],
            &[
                Operation { act: Act::CasAbsent(5), called: 1, returned: 2, outcome: Outcome::Happened },
                known(3, 4, Act::CasVersion(1, 6), Status::Ok, 2, 0),
            ],
        ];
        for history in histories {
            assert_eq!(check(history, 1000), Verdict::Linearizable, "{history:?}");
        }
    }

    #[test]
    fn histories_that_cannot_are_refused() {
        let histories: [&[Operation]; 6] = [
            // A stale read.
            &[known(1, 2, Act::Put(7), Status::Ok, 1, 0), known(3, 4, Act::Get, Status::NotFound, 0, 0)],
            // A value from nowhere.
            &[known(1, 2, Act::Get, Status::Ok, 1, 7)],
            // A lost write.
            &[known(1, 2, Act::Put(7), Status::Ok, 1, 0), known(3, 4, Act::Put(8), Status::Ok, 1, 0)],
            // A write that happened twice.
            &[known(1, 2, Act::Put(7), Status::Ok, 1, 0), known(3, 4, Act::Get, Status::Ok, 2, 7)],
            // Two reads of a doubtful write, in the wrong order.
            &[
                doubtful(1, Act::Put(7)),
                known(2, 3, Act::Get, Status::Ok, 1, 7),
                known(4, 5, Act::Get, Status::NotFound, 0, 0),
            ],
            // Two swaps of the same version.
            &[
                known(1, 5, Act::CasVersion(0, 7), Status::Ok, 1, 0),
                known(2, 6, Act::CasVersion(0, 8), Status::Ok, 1, 0),
            ],
        ];
        for history in histories {
            assert_eq!(check(history, 1000), Verdict::Not, "{history:?}");
        }
    }
}
