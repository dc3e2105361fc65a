//! Linearizability of a few answers, by trying every order.

use wpaxos::command::Status;

use crate::{
    setup::{Act, Ask},
    world::{Answer, Asked},
};

/// What one key holds: the request that wrote it, and how many have.
type Register = (Option<u8>, u64);

/// Whether the answers so far can be those of one register per key. Every key by itself.
pub fn is_linearizable(asks: &[Ask], asked: &[Asked]) -> bool {
    let keys = asks.iter().map(|ask| ask.key).max().unwrap_or(0);
    (0..=keys).all(|key| {
        let of_key = |number: &usize| asks[*number].key == key && may_have_happened(&asked[*number]);
        let operations: Vec<usize> = (0..asks.len()).filter(of_key).collect();
        search(asks, asked, &operations, 0, (None, 0))
    })
}

fn may_have_happened(asked: &Asked) -> bool {
    match asked {
        Asked::NotYet => false,
        Asked::Open { .. } => true,
        Asked::Answered { answer, .. } => !answer.status.is_refused(),
    }
}

/// What is certain of an operation.
fn known(asked: &Asked) -> Option<&Answer> {
    match asked {
        Asked::Answered { answer, .. } if answer.status.is_executed() => Some(answer),
        _ => None,
    }
}

fn search(asks: &[Ask], asked: &[Asked], operations: &[usize], done: u8, register: Register) -> bool {
    if operations.iter().all(|number| done >> number & 1 == 1 || known(&asked[*number]).is_none()) {
        return true;
    }
    operations.iter().filter(|number| done >> **number & 1 == 0).any(|number| {
        let (Asked::Open { before } | Asked::Answered { before, .. }) = asked[*number] else { return false };
        // What was answered when this one came is before it in every order.
        let first =
            |other: &usize| before >> other & 1 == 0 || done >> other & 1 == 1 || known(&asked[*other]).is_none();
        let next = execute(&asks[*number], *number as u8, register, known(&asked[*number]));
        operations.iter().all(first)
            && next.is_some_and(|next| search(asks, asked, operations, done | 1 << number, next))
    })
}

/// The register afterwards, if the operation would have been answered so.
fn execute(ask: &Ask, number: u8, (value, version): Register, answer: Option<&Answer>) -> Option<Register> {
    let (register, status, seen) = match ask.act {
        Act::Put => ((Some(number), version + 1), Status::Ok, None),
        Act::Get | Act::LogGet => {
            let status = if value.is_some() { Status::Ok } else { Status::NotFound };
            ((value, version), status, value)
        }
    };
    // A retry is told that it happened, not always how.
    let fits = answer.is_none_or(|answer| {
        let exact = answer.status == status && answer.version == register.1 && answer.value == seen;
        exact || (answer.status == Status::Duplicate && ask.act == Act::Put)
    });
    fits.then_some(register)
}

/// The check must reject what is wrong.
#[test]
fn a_stale_read_is_rejected() {
    let put = Ask { node: 0, key: 0, act: Act::Put, after: None };
    let asks = [put, Ask { act: Act::Get, ..put }];
    let written = Asked::Answered { before: 0, answer: Answer { status: Status::Ok, version: 1, value: None } };
    let absent = Answer { status: Status::NotFound, version: 0, value: None };
    let late = Asked::Answered { before: 1, answer: absent.clone() };
    let early = Asked::Answered { before: 0, answer: absent };
    assert!(!is_linearizable(&asks, &[written.clone(), late]));
    assert!(is_linearizable(&asks, &[written, early]));
}
