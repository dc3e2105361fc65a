//! What the simulator's tests of this search leave out: objects that were used before, and answers without versions.

use super::*;

const STEPS: usize = 100_000;

fn put(called: u64, returned: u64, value: u64) -> Operation {
    Operation { act: Act::Put(value), called, returned, outcome: Outcome::seen(Status::Ok, 0) }
}

fn get(called: u64, returned: u64, value: u64) -> Operation {
    let status = if value == 0 { Status::NotFound } else { Status::Ok };
    Operation { act: Act::Get, called, returned, outcome: Outcome::seen(status, value) }
}

fn at_version(operation: Operation, version: u64) -> Operation {
    let Outcome::Known(status, _, value) = operation.outcome else { panic!("{operation:?}") };
    Operation { outcome: Outcome::Known(status, version, value), ..operation }
}

fn lost(called: u64, value: u64) -> Operation {
    Operation { act: Act::Put(value), called, returned: u64::MAX, outcome: Outcome::Unknown }
}

fn used_before(operations: &[Operation]) -> Verdict {
    check_from(operations, State::before(operations), STEPS)
}

#[test]
fn without_versions_the_values_decide() {
    let taken: [&[Operation]; 5] = [
        &[put(1, 2, 7), get(3, 4, 7)],
        // Two writes at once, in either order; the reads after them agree.
        &[put(1, 10, 7), put(2, 9, 8), get(11, 12, 7), get(13, 14, 7)],
        &[put(1, 10, 7), put(2, 9, 8), get(11, 12, 8), get(13, 14, 8)],
        // A write without an answer happens late, or never.
        &[put(1, 2, 7), lost(3, 8), get(4, 5, 7), get(6, 7, 8)],
        &[put(1, 2, 7), lost(3, 8), get(4, 5, 7), get(6, 7, 7)],
    ];
    for history in taken {
        assert_eq!(check(history, STEPS), Verdict::Linearizable, "{history:?}");
    }
    let refused: [&[Operation]; 6] = [
        // A stale read of nothing, and one of an older value.
        &[put(1, 2, 7), get(3, 4, 0)],
        &[put(1, 2, 7), put(3, 4, 8), get(5, 6, 7)],
        // An acknowledged write that nobody sees while the one before it stays.
        &[put(1, 2, 7), get(3, 4, 7), put(5, 6, 8), get(7, 8, 7)],
        // Two writes at once, seen in both orders.
        &[put(1, 10, 7), put(2, 9, 8), get(11, 12, 8), get(13, 14, 7)],
        // A write that happened, by its reader, and then had not.
        &[put(1, 2, 7), lost(3, 8), get(4, 5, 8), get(6, 7, 7)],
        // A value from nowhere, or from the future.
        &[get(1, 2, 7), put(3, 4, 7)],
    ];
    for history in refused {
        assert_eq!(check(history, STEPS), Verdict::Not, "{history:?}");
    }
}

#[test]
fn an_object_that_was_used_before_has_one_state_before() {
    let taken: [&[Operation]; 4] = [
        &[get(1, 2, 99), put(3, 4, 7), get(5, 6, 7)],
        &[get(1, 2, 0), put(3, 4, 7)],
        &[at_version(get(1, 2, 99), 41), at_version(put(3, 4, 7), 42), at_version(get(5, 6, 7), 42)],
        // Its version is told late: a write without an answer may stand between.
        &[lost(1, 6), at_version(put(2, 3, 7), 42), at_version(get(4, 5, 6), 43)],
    ];
    for history in taken {
        assert_eq!(used_before(history), Verdict::Linearizable, "{history:?}");
    }
    let refused: [&[Operation]; 6] = [
        // Two values that nobody wrote, or one and none.
        &[get(1, 2, 99), get(3, 4, 98)],
        &[get(1, 2, 99), get(3, 4, 0)],
        // The old value comes back, or it is suddenly missing.
        &[put(1, 2, 7), get(3, 4, 99)],
        &[put(1, 2, 7), get(3, 4, 0)],
        // A write that only its version shows to be lost.
        &[at_version(put(1, 2, 7), 42), at_version(put(3, 4, 8), 42)],
        &[at_version(get(1, 2, 99), 41), at_version(put(3, 4, 7), 43)],
    ];
    for history in refused {
        assert_eq!(used_before(history), Verdict::Not, "{history:?}");
    }
}

#[test]
fn reads_that_fit_need_no_choice() {
    // Sixty writes at once, then reads in an order that only backtracking over the writes would explain.
    let mut history: Vec<Operation> = (1..=60).map(|value| put(value, 1000 + value, value)).collect();
    history.extend((1..=60).map(|place| get(100 + 10 * place, 105 + 10 * place, 61 - place)));
    assert_eq!(check(&history, STEPS), Verdict::Linearizable);
    history.push(get(2000, 2001, 60));
    history.push(get(2002, 2003, 59));
    assert_ne!(check(&history, 10_000), Verdict::Linearizable);
}

#[test]
fn what_cannot_be_explained_is_found_with_its_beginning() {
    let history = [put(1, 2, 7), get(3, 4, 7), put(5, 50, 8), get(6, 8, 0), get(9, 10, 7)];
    let found = explain(&history, State::default(), STEPS);
    assert_eq!((found.returned, found.place, found.returns), (8, 2, 5));
    assert_eq!(found.beginning.len(), 4, "what was called later has no part in it");
    assert_eq!(found.beginning[2].outcome, Outcome::Unknown, "it had not returned");
}

#[test]
fn values_carry_their_numbers() {
    assert_eq!((value_number(Some(&[7, 0, 0, 0, 0, 0, 0, 0, 9])), value_number(Some(b"short"))), (7, 0));
    assert_eq!(value_number(None), 0);
}
