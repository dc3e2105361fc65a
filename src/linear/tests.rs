//! What the simulator's tests of this search leave out: objects that were used before, and answers without versions.

use proptest::prelude::*;

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

/// Reads and writes with unique values, executed one after the other at their points; then perhaps spoilt.
fn register(plan: &[(u8, u64, u64, u8)], swap: Option<(usize, usize)>) -> Vec<Operation> {
    let (mut value, mut history) = (0, Vec::new());
    for (place, (kind, before, after, loss)) in (1..).zip(plan) {
        let (act, seen) = if *kind == 0 { (Act::Put(place), 0) } else { (Act::Get, value) };
        if *kind == 0 {
            value = place;
        }
        let status = if *kind > 0 && seen == 0 { Status::NotFound } else { Status::Ok };
        let outcome = if *loss == 0 { Outcome::Unknown } else { Outcome::seen(status, seen) };
        let point = 1_000_000 * (place + 10);
        let (called, returned) = (point - 1000 * before - 2 * place, point + 1000 * after + 2 * place + 1);
        history.push(Operation { act, called, returned, outcome });
    }
    if let Some((one, other)) = swap {
        let (one, other) = (one % history.len(), other % history.len());
        if history[one].act == Act::Get && history[other].act == Act::Get {
            (history[one].outcome, history[other].outcome) = (history[other].outcome, history[one].outcome);
        }
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// Without a search the verdict is the same as with one.
    #[test]
    fn zones_and_search_agree(
        plan in prop::collection::vec((0..2u8, 0..4000u64, 0..4000u64, 0..6u8), 1..12),
        swap in prop::option::of((any::<usize>(), any::<usize>())),
        used: bool,
    ) {
        let history = register(&plan, swap);
        let start = if used { State::before(&history) } else { State::default() };
        let expected = search(&history, start, STEPS);
        prop_assert_ne!(expected, Verdict::TooLong);
        prop_assert_eq!(zones::check(&history, start), Some(expected), "{:?}", history);
        if swap.is_none() {
            prop_assert_eq!(expected, Verdict::Linearizable);
        }
    }
}

#[test]
fn a_hot_key_without_versions_is_decided() {
    // Sixteen writes at once, a thousand times; of each sixteen the last in the order of execution is read later.
    let mut history = Vec::new();
    for round in 0..1000 {
        let (from, until) = (1000 * round + 1, 1000 * round + 500);
        history.extend((1..=16).map(|n| put(from + n, until - n, 16 * round + n)));
        history.push(get(1000 * round + 600, 1000 * round + 700, 16 * round + round % 16 + 1));
    }
    assert_eq!(check(&history, 0), Verdict::Linearizable);
    let last = history.last_mut().unwrap();
    last.outcome = Outcome::seen(Status::Ok, 5);
    assert_eq!(check(&history, 0), Verdict::Not);
}
