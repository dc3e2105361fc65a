//! Linearizability of what clients saw (`protocol.md` §10, invariant 8): Wing and Gong's search for an order that respects
//! real time and explains every answer, with Lowe's memo of configurations that led nowhere.
//!
//! Objects are independent, so each key is checked by itself. The simulator and the load generator check their histories
//! here. The search keeps its own stack, so a history may be as long as memory allows. The memo keeps 128-bit hashes of
//! the sets of operations that were done, not the sets: two of them are as good as never the same.
//!
//! Values are numbers, unique per write, so that a read names its write; [`value_number`] takes them from real values.
//! Versions, where they are known, make the search short: only one write can have made each. Where none is known and
//! there is nothing but reads and writes, no search is needed (`zones`).
//!
//! ```
//! use wpaxos::{command::Status, linear::{Act, Operation, Outcome, Verdict, check}};
//!
//! let write = Operation { act: Act::Put(7), called: 1, returned: 2, outcome: Outcome::seen(Status::Ok, 0) };
//! let stale = Operation { act: Act::Get, called: 3, returned: 4, outcome: Outcome::seen(Status::NotFound, 0) };
//! assert_eq!(check(&[write, stale], 1000), Verdict::Not);
//! ```

use std::collections::HashSet;

use crate::command::Status;

/// What an operation does; values are numbers, 0 is "none".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Act {
    /// Reads the value.
    Get,
    /// Sets the value.
    Put(u64),
    /// Removes the value.
    Delete,
    /// Sets the value if there is none.
    CasAbsent(u64),
    /// Sets the value (second) if it is the first.
    CasValue(u64, u64),
    /// Sets the value (second) if the version is the first.
    CasVersion(u64, u64),
}

impl Act {
    /// The value that it may write; 0 if it writes none.
    pub const fn written(self) -> u64 {
        match self {
            Self::Get | Self::Delete => 0,
            Self::Put(value) | Self::CasAbsent(value) | Self::CasValue(_, value) | Self::CasVersion(_, value) => value,
        }
    }
}

/// What is known of how an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// With this status and version (or [`State::VERSION_UNKNOWN`]), and the value that a Get saw.
    Known(Status, u64, u64),
    /// It was executed before it returned; how it ended is not known.
    Happened,
    /// It may have been executed, or may be at any later time, or never.
    Unknown,
}

impl Outcome {
    /// With this status, and the value that a Get saw; the version is not known.
    pub const fn seen(status: Status, value: u64) -> Self {
        Self::Known(status, State::VERSION_UNKNOWN, value)
    }
}

/// An operation with the times of its call and its return, on a clock on which no two events coincide.
///
/// An operation that is known not to have happened is no part of a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// What it does.
    pub act: Act,
    /// When it was asked for.
    pub called: u64,
    /// When its outcome was known; of no account where it is [`Outcome::Unknown`].
    pub returned: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl Operation {
    /// Whether it leaves the object as it is wherever it stands.
    fn never_has_effect(&self) -> bool {
        let failed = matches!(self.outcome, Outcome::Known(Status::NotFound | Status::CasFailed, ..));
        self.act == Act::Get || failed
    }
}

/// The result of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Not,
    /// The search was given up: it is not known.
    TooLong,
}

/// The first operation, in the order of returns, that cannot be explained by any before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unexplained {
    /// When it returned.
    pub returned: u64,
    /// Its place among the operations that returned, from 0.
    pub place: usize,
    /// How many operations returned.
    pub returns: usize,
    /// It and all that were called before it returned, in the order of their calls; what had not returned is
    /// [`Outcome::Unknown`].
    pub beginning: Vec<Operation>,
}

/// What is wrong with a history that [`check_from`] found not linearizable: its shortest beginning that is not.
pub fn explain(operations: &[Operation], start: State, steps_max: usize) -> Unexplained {
    let mut returns: Vec<u64> =
        operations.iter().filter(|known| known.outcome != Outcome::Unknown).map(|known| known.returned).collect();
    returns.sort_unstable();
    // What has not returned by then may have happened or not: a longer beginning explains no more than a shorter one.
    let beginning = |end: u64| -> Vec<Operation> {
        let called = operations.iter().filter(|operation| operation.called <= end);
        let open = |operation: &Operation| match operation.returned > end {
            true => Operation { outcome: Outcome::Unknown, ..*operation },
            false => *operation,
        };
        called.map(open).collect()
    };
    let place = returns.partition_point(|end| check_from(&beginning(*end), start, steps_max) != Verdict::Not);
    let returned = returns.get(place).copied().unwrap_or(u64::MAX);
    let mut beginning = beginning(returned);
    beginning.sort_by_key(|operation| operation.called);
    Unexplained { returned, place, returns: returns.len(), beginning }
}

/// The number that a value begins with (8 bytes, little-endian); 0 if there is no value, or one too short for a number.
pub fn value_number(value: Option<&[u8]>) -> u64 {
    let bytes = value.and_then(|value| value.first_chunk::<8>());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The object as its specification has it: value and version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    /// Its value; 0 is "none".
    pub value: u64,
    /// How often it was changed, or [`State::VERSION_UNKNOWN`].
    pub version: u64,
}

impl State {
    /// The version of an object that was used before the history began. The first version that is told settles it.
    pub const VERSION_UNKNOWN: u64 = u64::MAX;

    /// The state of an object before these operations, if it was used before and nobody else uses it: the value that
    /// somebody read and none of them wrote. If nobody read such a value, it is of no account, and none is taken.
    pub fn before(operations: &[Operation]) -> Self {
        let written: HashSet<u64> = operations.iter().map(|operation| operation.act.written()).collect();
        let read = operations.iter().filter_map(|operation| match operation.outcome {
            Outcome::Known(_, _, value) if !written.contains(&value) => Some(value),
            _ => None,
        });
        Self { value: read.max().unwrap_or(0), version: Self::VERSION_UNKNOWN }
    }

    /// What an act makes of it, with the status and the value read.
    pub(crate) fn step(self, act: Act) -> (Self, Status, u64) {
        let set = |value| (Self { value, version: self.version.saturating_add(1) }, Status::Ok, 0);
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

    /// The state after an operation, if it can be the next one.
    fn after(self, operation: &Operation) -> Option<Self> {
        let state = self.settled(operation);
        let (next, status, value) = state.step(operation.act);
        match operation.outcome {
            Outcome::Known(_, Self::VERSION_UNKNOWN, _) if operation.outcome != Outcome::seen(status, value) => None,
            Outcome::Known(_, Self::VERSION_UNKNOWN, _) => Some(next),
            Outcome::Known(..) if operation.outcome != Outcome::Known(status, next.version, value) => None,
            // Without an effect it need not have happened.
            Outcome::Unknown if next == self => None,
            _ => Some(next),
        }
    }

    /// The state with the version that an operation tells, if it was unknown.
    fn settled(self, operation: &Operation) -> Self {
        match operation.outcome {
            Outcome::Known(status, version, _)
                if self.version == Self::VERSION_UNKNOWN && version != Self::VERSION_UNKNOWN =>
            {
                let changes = status == Status::Ok && operation.act != Act::Get;
                Self { version: version.saturating_sub(u64::from(changes)), ..self }
            }
            _ => self,
        }
    }
}

/// Searches an order of the operations on one key that respects real time and explains every answer, in at most so many
/// steps. The object has neither value nor version before.
pub fn check(operations: &[Operation], steps_max: usize) -> Verdict {
    check_from(operations, State::default(), steps_max)
}

/// The same for an object that has this state before. Where values are unique and nothing but values is known, it takes no
/// steps.
pub fn check_from(operations: &[Operation], start: State, steps_max: usize) -> Verdict {
    zones::check(operations, start).unwrap_or_else(|| search(operations, start, steps_max))
}

fn search(operations: &[Operation], start: State, steps_max: usize) -> Verdict {
    let mut search = Search::new(operations, start);
    let mut steps = 0;
    loop {
        if search.needed.is_empty() {
            return Verdict::Linearizable;
        }
        steps += 1;
        if steps > steps_max {
            return Verdict::TooLong;
        }
        search.open_frame();
        while !search.advance() {
            if !search.go_back() {
                return Verdict::Not;
            }
        }
    }
}

/// One place in the order: what may stand there, and what does.
#[derive(Debug)]
struct Frame {
    /// The state before.
    state: State,
    /// What may come next and must come some time, the one that returned first last; then the doubtful ones.
    candidates: Vec<u32>,
    /// Whether `candidates` has had the doubtful ones yet.
    had_doubtful: bool,
    /// Doubtful ones may come next if they were called before this.
    until: u64,
}

#[derive(Debug)]
struct Search {
    operations: Vec<Operation>,
    /// Operations that must be placed, in the order of their calls; those placed are taken out.
    needed: List,
    /// Those that may be.
    doubtful: List,
    state: State,
    done: u128,
    /// Where the search has been.
    been: HashSet<(u128, State)>,
    frames: Vec<Frame>,
    /// What stands at the place of each frame but the last.
    placed: Vec<u32>,
}

impl Search {
    fn new(operations: &[Operation], state: State) -> Self {
        let mut operations = operations.to_vec();
        // A read that nobody saw the answer of says nothing.
        operations.retain(|operation| operation.outcome != Outcome::Unknown || operation.act != Act::Get);
        operations.sort_by_key(|operation| operation.called);
        let places = |doubtful: bool| {
            let of_kind = operations.iter().enumerate();
            let of_kind = of_kind.filter(move |(_, known)| (known.outcome == Outcome::Unknown) == doubtful);
            of_kind.map(|(place, _)| place as u32).collect::<Vec<u32>>()
        };
        let (needed, doubtful) =
            (List::new(&places(false), operations.len()), List::new(&places(true), operations.len()));
        let (been, frames, placed) = (HashSet::new(), Vec::new(), Vec::new());
        Self { operations, needed, doubtful, state, done: 0, been, frames, placed }
    }

    /// Opens the next place: only operations that were called before every open one returned can stand there, and of
    /// those only what fits the state.
    ///
    /// If one of them fits and never has an effect, as a read, it alone is tried: whatever order explains the rest still
    /// does so with it moved here. Else the write that the next read saw is tried first.
    fn open_frame(&mut self) {
        let (mut candidates, mut until, mut idle) = (Vec::new(), u64::MAX, None);
        let mut wanted = (u64::MAX, 0);
        let is_new = self.been.insert((self.done, self.state));
        let mut place = self.needed.first();
        while let Some(at) = place.filter(|_| is_new) {
            let operation = &self.operations[at as usize];
            if operation.called >= until {
                break;
            }
            until = until.min(operation.returned);
            match (self.state.after(operation), operation.outcome) {
                (Some(next), _) if next == self.state && operation.never_has_effect() => idle = Some(at),
                (Some(_), _) => candidates.push(at),
                (None, Outcome::Known(Status::Ok, _, value)) if value != 0 => {
                    wanted = wanted.min((operation.returned, value));
                }
                (None, _) => {}
            }
            place = self.needed.next(at);
        }
        if let Some(idle) = idle {
            candidates = vec![idle];
        }
        // Taken from the end: what returned first comes first, as it usually did.
        candidates.sort_by_key(|at| {
            let Operation { act, returned, .. } = self.operations[*at as usize];
            (wanted.1 != 0 && act.written() == wanted.1, std::cmp::Reverse(returned))
        });
        let had_doubtful = !is_new || idle.is_some();
        self.frames.push(Frame { state: self.state, candidates, had_doubtful, until });
    }

    /// Puts the next candidate that fits at the last place; false if there is none.
    fn advance(&mut self) -> bool {
        let Some(frame) = self.frames.last_mut() else { return false };
        loop {
            let Some(at) = frame.candidates.pop() else {
                if frame.had_doubtful {
                    return false;
                }
                frame.had_doubtful = true;
                let (until, operations) = (frame.until, &self.operations);
                let early = self.doubtful.iter().take_while(|at| operations[*at as usize].called < until);
                frame.candidates.extend(early);
                frame.candidates.reverse();
                continue;
            };
            let Some(next) = frame.state.after(&self.operations[at as usize]) else { continue };
            self.state = next;
            self.done ^= mark(at);
            self.placed.push(at);
            let list = if self.is_doubtful(at) { &mut self.doubtful } else { &mut self.needed };
            list.take_out(at);
            return true;
        }
    }

    /// Gives the last place up; false if it was the first.
    fn go_back(&mut self) -> bool {
        self.frames.pop();
        let Some(at) = self.placed.pop() else { return false };
        self.done ^= mark(at);
        self.state = self.frames.last().expect("what is placed stands at a place").state;
        let list = if self.is_doubtful(at) { &mut self.doubtful } else { &mut self.needed };
        list.put_back(at);
        true
    }

    fn is_doubtful(&self, at: u32) -> bool {
        self.operations[at as usize].outcome == Outcome::Unknown
    }
}

/// A random number for each operation: their exclusive or names a set of them.
fn mark(at: u32) -> u128 {
    xxhash_rust::xxh3::xxh3_128_with_seed(&at.to_le_bytes(), 0x6c69_6e65_6172)
}

/// A list from which members are taken out, and into which they are put back in the reverse order, at no cost.
#[derive(Debug)]
struct List {
    next: Vec<u32>,
    before: Vec<u32>,
}

/// Ends a [`List`] on both sides: the place behind all operations.
impl List {
    fn new(members: &[u32], places: usize) -> Self {
        let end = places as u32;
        let (mut next, mut before) = (vec![end; places + 1], vec![end; places + 1]);
        let mut last = end;
        for member in members {
            next[last as usize] = *member;
            before[*member as usize] = last;
            last = *member;
        }
        next[last as usize] = end;
        before[end as usize] = last;
        Self { next, before }
    }

    fn end(&self) -> u32 {
        self.next.len() as u32 - 1
    }

    fn first(&self) -> Option<u32> {
        self.next(self.end())
    }

    fn next(&self, member: u32) -> Option<u32> {
        Some(self.next[member as usize]).filter(|next| *next != self.end())
    }

    fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(self.first(), |member| self.next(*member))
    }

    fn take_out(&mut self, member: u32) {
        let (before, next) = (self.before[member as usize], self.next[member as usize]);
        self.next[before as usize] = next;
        self.before[next as usize] = before;
    }

    fn put_back(&mut self, member: u32) {
        let (before, next) = (self.before[member as usize], self.next[member as usize]);
        self.next[before as usize] = member;
        self.before[next as usize] = member;
    }
}

mod zones;

#[cfg(test)]
mod tests;
