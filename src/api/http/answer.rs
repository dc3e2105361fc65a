//! What a command's outcome is in HTTP.

use crate::{
    command::{Op, Status},
    protocol::wpaxos::Ballot,
    topology::Missing,
};

/// An outcome as HTTP tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The status code.
    pub code: u16,
    /// The header `Outcome`, for programs: `done`, `repeated`, `not-done` or `unknown`.
    pub outcome: &'static str,
    /// The body, where it is not the value.
    pub text: &'static str,
    /// When to try again, in seconds.
    pub retry_after: Option<u32>,
}

/// How a command ended, as HTTP tells it; `repeated` if that was before, and nothing happened now.
pub fn verdict(op: Op, status: Status, repeated: bool, missing: Missing) -> Verdict {
    let verdict = first_verdict(op, status, missing);
    let outcome = if repeated && verdict.outcome == "done" { "repeated" } else { verdict.outcome };
    Verdict { outcome, ..verdict }
}

fn first_verdict(op: Op, status: Status, missing: Missing) -> Verdict {
    let says = |code, outcome, text| Verdict { code, outcome, text, retry_after: None };
    match status {
        Status::Ok => says(200, "done", ""),
        Status::NotFound if missing == Missing::Empty => says(200, "done", ""),
        Status::NotFound if op == Op::Get => says(404, "done", "there is no such key\n"),
        Status::NotFound => says(404, "done", "there is no such key; nothing was deleted\n"),
        Status::CasFailed => says(412, "done", "the key is not as expected\n"),
        Status::Duplicate => says(200, "repeated", ""),
        Status::OutcomeUnknown => says(
            409,
            "unknown",
            "this command may have been executed before, so long ago that nobody knows; it was not executed now\n",
        ),
        Status::IdTaken => says(
            409,
            "repeated",
            "a command with this Id and Cid was executed before; whether it was this one is no longer known, and it was not \
             executed now. If you are sending it again, say Retry: 1; if not, give it a Cid above all others of this Id\n",
        ),
        Status::IdReused => says(
            422,
            "not-done",
            "another command with this Id and Cid was executed before; this one has not happened. Give it a Cid above all \
             others of this Id\n",
        ),
        Status::IdStale => says(
            409,
            "not-done",
            "this Cid is too far below others of this Id to be told from those that were executed; it has not happened\n",
        ),
        Status::Overloaded => Verdict {
            retry_after: Some(1),
            ..says(503, "not-done", "overloaded, or not in touch with a majority; it has not happened\n")
        },
        Status::ShuttingDown => {
            Verdict { retry_after: Some(1), ..says(503, "not-done", "this replica is stopping; it has not happened\n") }
        }
        Status::TimeoutNotDone => says(504, "not-done", "no quorum answered in time; it has not happened\n"),
        Status::TimeoutMaybeDone => {
            says(504, "unknown", "no quorum answered in time; it may have happened, or may still\n")
        }
        Status::BadRequest => says(400, "not-done", "not a valid command; it has not happened\n"),
    }
}

/// A ballot as Paxi writes it: round, zone and node with dots between them.
pub fn ballot_text(number: u64) -> String {
    let ballot = Ballot { version: 0, number };
    format!("{}.{}.{}", ballot.round(), number >> 8 & 0xff, number & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::NodeId;

    #[test]
    fn every_outcome_says_whether_it_has_happened() {
        for status in (0..=255).filter_map(Status::from_wire) {
            let verdict = verdict(Op::Put, status, false, Missing::NotFound);
            let expected = match status {
                _ if status.is_refused() => "not-done",
                Status::OutcomeUnknown | Status::TimeoutMaybeDone => "unknown",
                Status::Duplicate | Status::IdTaken => "repeated",
                _ => "done",
            };
            assert_eq!(verdict.outcome, expected, "{status:?}");
            assert_eq!(verdict.code >= 400, !verdict.text.is_empty(), "{status:?}");
            let repeated = super::verdict(Op::Put, status, true, Missing::NotFound);
            assert_eq!(repeated.code, verdict.code, "{status:?}");
            assert_eq!(repeated.outcome, if expected == "done" { "repeated" } else { expected }, "{status:?}");
        }
        assert_eq!(verdict(Op::Get, Status::NotFound, false, Missing::Empty).code, 200);
        assert_eq!(verdict(Op::Get, Status::Overloaded, false, Missing::Empty).retry_after, Some(1));
    }

    #[test]
    fn ballots_are_written_as_paxi_does() {
        assert_eq!(ballot_text(Ballot::new(1, 7, NodeId::new(2, 3)).number), "7.2.3");
        assert_eq!(ballot_text(0), "0.0.0");
    }
}
