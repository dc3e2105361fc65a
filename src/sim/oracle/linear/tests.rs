//! Histories by hand, and random ones against a checker that knows no shortcut.

use proptest::prelude::*;

use super::*;

const STEPS: usize = 100_000;

fn known(called: u64, returned: u64, act: Act, status: Status, version: u64, value: u64) -> Operation {
    Operation { act, called, returned, outcome: Outcome::Known(status, version, value) }
}

fn doubtful(called: u64, act: Act) -> Operation {
    Operation { act, called, returned: u64::MAX, outcome: Outcome::Unknown }
}

#[test]
fn histories_that_can_be_explained_are_taken() {
    let histories: [&[Operation]; 6] = [
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
        // Only a doubtful delete, between two others, explains the second.
        &[
            known(1, 2, Act::CasAbsent(5), Status::Ok, 1, 0),
            doubtful(3, Act::Delete),
            known(4, 5, Act::CasAbsent(6), Status::Ok, 3, 0),
        ],
    ];
    for history in histories {
        assert_eq!(check(history, 1000), Verdict::Linearizable, "{history:?}");
    }
}

#[test]
fn histories_that_cannot_are_refused() {
    let histories: [&[Operation]; 7] = [
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
        &[known(1, 5, Act::CasVersion(0, 7), Status::Ok, 1, 0), known(2, 6, Act::CasVersion(0, 8), Status::Ok, 1, 0)],
        // What happened for certain has not, where nothing else can have removed the value.
        &[
            Operation { act: Act::Put(5), called: 1, returned: 2, outcome: Outcome::Happened },
            known(3, 4, Act::Get, Status::NotFound, 0, 0),
        ],
    ];
    for history in histories {
        assert_eq!(check(history, 1000), Verdict::Not, "{history:?}");
    }
}

#[test]
fn keys_are_checked_each_by_itself() {
    let mut history = History::default();
    let stale = [known(1, 2, Act::Put(7), Status::Ok, 1, 0), known(5, 6, Act::Get, Status::NotFound, 0, 0)];
    history.add(1, stale[0]);
    history.add(2, stale[1]);
    assert_eq!(history.check(STEPS), Ok(vec![]));
    history.add(1, stale[1]);
    history.add(1, known(7, 8, Act::Get, Status::Ok, 1, 7));
    let violation = history.check(STEPS).unwrap_err();
    assert_eq!(violation.rule, Rule::NotLinearizable);
    assert!(violation.text.starts_with("key 1: nothing explains what returned at 6, operation 2 of 3"), "{violation}");
    assert_eq!(history.of(1).len(), 3);
}

#[test]
fn a_long_history_needs_no_deep_stack() {
    // Every read overlaps the writes around it; every hundredth write's outcome is not known.
    let mut history = Vec::new();
    let mut state = State::default();
    for number in 1..=20_000u64 {
        let act = if number % 3 == 0 { Act::Get } else { Act::Put(number) };
        let (next, status, value) = state.step(act);
        state = next;
        history.push(match number % 100 {
            1 => doubtful(10 * number, act),
            _ => known(10 * number, 10 * number + 25, act, status, state.version, value),
        });
    }
    assert_eq!(check(&history, STEPS), Verdict::Linearizable);
    let last = history.last_mut().unwrap();
    last.outcome = Outcome::Known(Status::Ok, 1, 0);
    assert_ne!(check(&history, 50_000), Verdict::Linearizable);
}

#[test]
fn a_search_that_takes_too_long_is_given_up() {
    let put = |number: u64| known(number, 100 + number, Act::Put(number), Status::Ok, number, 0);
    let together: Vec<Operation> = (1..12).map(put).collect();
    assert_eq!((check(&together, 10), check(&together, 11)), (Verdict::TooLong, Verdict::Linearizable));
    let history = History { keys: [(3, together)].into() };
    assert_eq!((history.check(10), history.check(11)), (Ok(vec![3]), Ok(vec![])));
}

/// Tries every order of every choice.
fn brute_force(operations: &[Operation], done: u32, state: State) -> bool {
    let open = |place: usize| done >> place & 1 == 0;
    let is_needed = |operation: &Operation| operation.outcome != Outcome::Unknown;
    if !operations.iter().enumerate().any(|(place, operation)| open(place) && is_needed(operation)) {
        return true;
    }
    (0..operations.len()).filter(|place| open(*place)).any(|place| {
        let operation = &operations[place];
        let comes_later = |other: &Operation| is_needed(other) && other.returned < operation.called;
        if operations.iter().enumerate().any(|(other, earlier)| open(other) && comes_later(earlier)) {
            return false;
        }
        let (next, status, value) = state.step(operation.act);
        let fits = match operation.outcome {
            Outcome::Known(..) => operation.outcome == Outcome::Known(status, next.version, value),
            Outcome::Happened | Outcome::Unknown => true,
        };
        fits && brute_force(operations, done | 1 << place, next)
    })
}

/// What is done, as numbers that are made valid on the way: kind, whether an expectation is right, how the answer is lost,
/// how long before and after its point the operation lasts.
type Plan = Vec<(u8, bool, u8, u64, u64)>;

fn plans(operations: usize, spread: u64) -> impl Strategy<Value = Plan> {
    prop::collection::vec((0..6u8, any::<bool>(), 0..8u8, 0..spread, 0..spread), 1..operations)
}

/// Executes a plan in order. Operation i has its effect at 1,000,000 (i + 10).
fn execute(plan: &Plan) -> Vec<Operation> {
    let mut state = State::default();
    let mut history = Vec::new();
    for (place, (kind, right, loss, before, after)) in plan.iter().enumerate() {
        let value = place as u64 + 1;
        let wrong = u64::from(!right);
        let act = match kind {
            0 => Act::Get,
            1 => Act::Put(value),
            2 => Act::Delete,
            3 => Act::CasAbsent(value),
            4 => Act::CasValue(state.value + wrong, value),
            _ => Act::CasVersion(state.version + wrong, value),
        };
        let (next, status, seen) = state.step(act);
        state = next;
        let outcome = match loss {
            0 => Outcome::Unknown,
            1 => Outcome::Happened,
            _ => Outcome::Known(status, next.version, seen),
        };
        // No two times are the same: they differ in what is left after division by 1000.
        let point = 1_000_000 * (place as u64 + 10);
        let (called, returned) = (point - 1000 * before - 2 * value, point + 1000 * after + 2 * value + 1);
        history.push(Operation { act, called, returned, outcome });
    }
    history
}

/// Spoils one answer, or the order of two.
fn mutate(history: &mut Vec<Operation>, how: u8, place: usize, other: usize) {
    let (place, other) = (place % history.len(), other % history.len());
    match (how, history[place].outcome) {
        (0, Outcome::Known(status, version, value)) => {
            history[place].outcome = Outcome::Known(status, version.saturating_sub(1), value);
        }
        (1, Outcome::Known(status, version, value)) => {
            history[place].outcome = Outcome::Known(status, version + 1, value)
        }
        (2, Outcome::Known(status, version, _)) => {
            history[place].outcome = Outcome::Known(status, version, history[other].act.written());
        }
        (3, Outcome::Known(_, version, _)) => history[place].outcome = Outcome::Known(Status::NotFound, version, 0),
        (4, _) => {
            history.remove(place);
        }
        (5, _) => (history[place].outcome, history[other].outcome) = (history[other].outcome, history[place].outcome),
        _ => (history[place].act, history[other].act) = (history[other].act, history[place].act),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However long the operations last around the points at which they have their effects.
    #[test]
    fn what_was_executed_is_taken(plan in plans(60, 6000)) {
        let mut history = execute(&plan);
        prop_assert_eq!(check(&history, STEPS), Verdict::Linearizable);
        history.reverse();
        prop_assert_eq!(check(&history, STEPS), Verdict::Linearizable, "in whatever order they are given");
    }

    #[test]
    fn a_spoilt_history_is_refused_exactly_if_nothing_explains_it(
        plan in plans(7, 3000),
        how in prop::collection::vec((0..7u8, any::<usize>(), any::<usize>()), 1..3),
    ) {
        let mut history = execute(&plan);
        for (how, place, other) in how {
            if !history.is_empty() {
                mutate(&mut history, how, place, other);
            }
        }
        let expected = if brute_force(&history, 0, State::default()) { Verdict::Linearizable } else { Verdict::Not };
        prop_assert_eq!(check(&history, STEPS), expected, "{:?}", history);
    }

    /// One after the other, a wrong answer has no excuse: most of what is spoilt is refused, and it is the same as by hand.
    #[test]
    fn a_spoilt_sequence_is_refused_exactly_if_nothing_explains_it(
        plan in plans(8, 1),
        how in 0..7u8,
        place in any::<usize>(),
        other in any::<usize>(),
    ) {
        let mut history = execute(&plan);
        mutate(&mut history, how, place, other);
        let expected = if brute_force(&history, 0, State::default()) { Verdict::Linearizable } else { Verdict::Not };
        prop_assert_eq!(check(&history, STEPS), expected, "{:?}", history);
    }
}
