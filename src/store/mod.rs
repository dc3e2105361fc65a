//! The key-value state machine: deterministic, per object, the same on every replica after the same commands.

mod history;
mod recent;

pub use history::{History, Version};
pub use recent::{Judgement, OLDER_MAX, OPEN_SLOTS_MAX, Older, Recent, SESSIONS_MAX, SESSIONS_MIN, Session, Write};

use smallvec::SmallVec;

use crate::command::{Command, Expect, Op, Status};

/// Bytes of a value that lie in the object itself: a longer one has memory of its own.
pub const VALUE_INLINE_BYTES: usize = 64;

/// A value. One of up to [`VALUE_INLINE_BYTES`] costs no allocation, and no second place in memory to go to.
pub type Value = SmallVec<[u8; VALUE_INLINE_BYTES]>;

/// What the commands up to some slot have made of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectState {
    /// The value; `None` if there is none, as before the first write and after a Delete.
    pub value: Option<Value>,
    /// How many writes took effect.
    pub version: u64,
    /// What the object's last writers have had executed (`protocol.md` §7).
    pub recent: Recent,
}

/// The outcome of one executed command. A Get's value is the object's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executed {
    /// How it ended.
    pub status: Status,
    /// The object's version when it did.
    pub version: u64,
    /// Whether that was before, and nothing happened now.
    pub repeated: bool,
}

impl Executed {
    const fn now(status: Status, version: u64) -> Self {
        Self { status, version, repeated: false }
    }
}

impl ObjectState {
    /// Executes the command decided in `slot`, of an object that has up to `open_slots` open at a time. A write that its
    /// client has had executed before changes nothing and is answered from `recent`; one that cannot be judged is not
    /// executed (`protocol.md` §7).
    pub fn execute(&mut self, slot: u64, command: Command<'_>, open_slots: u64) -> Executed {
        match command.op() {
            Op::Noop => Executed::now(Status::Ok, self.version),
            Op::Get => {
                let status = if self.value.is_some() { Status::Ok } else { Status::NotFound };
                Executed::now(status, self.version)
            }
            Op::Put | Op::Delete | Op::CompareAndSwap => self.execute_write(slot, command, open_slots),
        }
    }

    fn execute_write(&mut self, slot: u64, command: Command<'_>, open_slots: u64) -> Executed {
        let (place, digest) = (self.recent.place_of(command.client()), command.digest());
        let judged = self.recent.judge_at(place, command.id(), digest, command.is_retry());
        if let Some(executed) = judged.answer(self.version) {
            return executed;
        }
        let executed = Executed::now(self.apply(command), self.version);
        let write = Write { slot, client: command.client(), id: command.id(), digest };
        self.recent.record_at(place, write, executed, open_slots);
        executed
    }

    fn apply(&mut self, command: Command<'_>) -> Status {
        match command.op() {
            Op::Put => self.set(command.value()),
            Op::Delete if self.value.take().is_none() => return Status::NotFound,
            Op::CompareAndSwap if !self.is_as_expected(command.expect()) => return Status::CasFailed,
            Op::CompareAndSwap => self.set(command.value()),
            _ => {}
        }
        self.version += 1;
        Status::Ok
    }

    /// Overwrites in place: a value of the usual size costs no allocation.
    fn set(&mut self, value: &[u8]) {
        let held = self.value.get_or_insert_default();
        if held.len() == value.len() {
            held.copy_from_slice(value);
            return;
        }
        held.clear();
        if held.capacity() > 4 * value.len().max(VALUE_INLINE_BYTES) {
            *held = Value::new();
        }
        if held.capacity() < value.len() {
            held.reserve_exact(value.len());
        }
        held.extend_from_slice(value);
    }

    fn is_as_expected(&self, expect: Expect<'_>) -> bool {
        match expect {
            Expect::Absent => self.value.is_none(),
            Expect::Value(value) => self.value.as_deref() == Some(value),
            Expect::Version(version) => self.version == version,
        }
    }

    /// What is known of a client's command, taken for a retry.
    pub fn judge_retry(&self, command: Command<'_>) -> Judgement {
        self.recent.judge(command.client(), command.id(), command.digest(), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Action, NewCommand};

    fn run(state: &mut ObjectState, slot: u64, id: u64, action: Action<'_>) -> (Status, u64) {
        run_as(state, slot, (1, id, false), action)
    }

    fn run_as(state: &mut ObjectState, slot: u64, who: (u64, u64, bool), action: Action<'_>) -> (Status, u64) {
        let mut bytes = Vec::new();
        let (client, id, retry) = who;
        NewCommand { client, id, retry, key: b"k", action }.encode(&mut bytes).unwrap();
        let executed = state.execute(slot, Command::parse(&bytes).unwrap(), OPEN_SLOTS_MAX);
        (executed.status, executed.version)
    }

    #[test]
    fn operations_do_what_they_say() {
        let mut state = ObjectState::default();
        let s = &mut state;
        let cas = |expect, value| Action::CompareAndSwap { expect, value };
        assert_eq!(run(s, 1, 1, Action::Get), (Status::NotFound, 0));
        assert_eq!(run(s, 2, 2, Action::Delete), (Status::NotFound, 0));
        assert_eq!(run(s, 3, 3, cas(Expect::Value(b"a"), b"b")), (Status::CasFailed, 0));
        assert_eq!(run(s, 4, 4, cas(Expect::Absent, b"a")), (Status::Ok, 1));
        assert_eq!(run(s, 5, 5, cas(Expect::Absent, b"x")), (Status::CasFailed, 1));
        assert_eq!(run(s, 6, 6, cas(Expect::Value(b"a"), b"b")), (Status::Ok, 2));
        assert_eq!(run(s, 7, 7, cas(Expect::Version(1), b"x")), (Status::CasFailed, 2));
        assert_eq!(run(s, 8, 8, cas(Expect::Version(2), b"c")), (Status::Ok, 3));
        assert_eq!(s.value.as_deref(), Some(b"c".as_slice()));
        assert_eq!(run(s, 9, 9, Action::Put(b"")), (Status::Ok, 4));
        assert_eq!(run(s, 10, 10, Action::Get), (Status::Ok, 4), "an empty value is a value");
        assert_eq!(run(s, 11, 11, Action::Delete), (Status::Ok, 5));
        assert_eq!(run(s, 12, 12, Action::Noop), (Status::Ok, 5));
        assert_eq!(s.value, None);
    }

    #[test]
    fn another_command_with_an_id_that_was_executed_is_never_taken_for_done() {
        let mut state = ObjectState::default();
        let s = &mut state;
        assert_eq!(run(s, 1, 9, Action::Put(b"first")), (Status::Ok, 1));
        for retry in [false, true] {
            for other in [Action::Put(b"second"), Action::Delete] {
                assert_eq!(run_as(s, 2, (1, 9, retry), other), (Status::IdReused, 1), "{other:?}, a retry: {retry}");
            }
            let again = run_as(s, 3, (1, 9, retry), Action::Put(b"first"));
            assert_eq!(again, (Status::Ok, 1), "the same, a retry: {retry}");
        }
        assert_eq!(run(s, 4, 10, Action::Put(b"third")), (Status::Ok, 2));
        assert_eq!(run(s, 5, 9, Action::Put(b"second")), (Status::IdTaken, 2), "which one it was is forgotten");
        assert_eq!(run_as(s, 6, (1, 9, true), Action::Put(b"first")), (Status::Duplicate, 2), "its client knows");
        assert_eq!(s.value.as_deref(), Some(b"third".as_slice()));
    }

    #[test]
    fn what_was_executed_before_is_said_to_be_repeated() {
        let (mut state, mut bytes) = (ObjectState::default(), Vec::new());
        NewCommand { client: 1, id: 1, retry: false, key: b"k", action: Action::Put(b"v") }.encode(&mut bytes).unwrap();
        let repeated: Vec<bool> =
            (1..=2).map(|slot| state.execute(slot, Command::view(&bytes), OPEN_SLOTS_MAX).repeated).collect();
        assert_eq!(repeated, [false, true]);
    }

    #[test]
    fn a_retried_write_executes_once_and_is_answered_as_before() {
        let mut state = ObjectState::default();
        let s = &mut state;
        assert_eq!(run(s, 1, 1, Action::Put(b"a")), (Status::Ok, 1));
        assert_eq!(run_as(s, 2, (1, 1, true), Action::Put(b"a")), (Status::Ok, 1));
        assert_eq!(run(s, 3, 3, Action::Put(b"c")), (Status::Ok, 2));
        assert_eq!(run_as(s, 4, (1, 1, true), Action::Put(b"a")), (Status::Duplicate, 2));
        assert_eq!(run_as(s, 5, (1, 2, true), Action::Put(b"b")), (Status::Ok, 3), "2 was never executed");
        assert_eq!(run_as(s, 6, (1, 2, true), Action::Put(b"b")), (Status::Duplicate, 3));
        assert_eq!(s.value.as_deref(), Some(b"b".as_slice()));
    }

    #[test]
    fn what_cannot_be_judged_is_not_executed() {
        let mut state = ObjectState::default();
        let s = &mut state;
        run(s, 1, 100, Action::Put(b"a"));
        assert_eq!(run(s, 2, 36, Action::Put(b"b")), (Status::Ok, 2), "64 before the highest");
        assert_eq!(run_as(s, 3, (2, 1, true), Action::Put(b"c")), (Status::Ok, 3), "nobody was dropped yet");
        for client in 3..3 + SESSIONS_MIN as u64 {
            run_as(s, client + OPEN_SLOTS_MAX, (client, 1, false), Action::Put(b"d"));
        }
        let before = s.clone();
        assert_eq!(run_as(s, 900, (1, 100, true), Action::Put(b"e")).0, Status::OutcomeUnknown);
        assert_eq!(*s, before);
        assert_eq!(run_as(s, 901, (99, 1, false), Action::Put(b"f")).0, Status::Ok, "a newcomer's first command");
    }
}
