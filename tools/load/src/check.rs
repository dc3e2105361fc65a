//! Whether a recorded history is linearizable, key by key, and what shows that it is not.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use wpaxos::linear::{self, Act, Operation, Outcome, State};

use crate::history::Record;

/// Steps of the search for one key, beside two for each of its operations: a bound of about 500 MB.
const STEPS_MAX: usize = 2_000_000;
/// Keys that a report names.
const KEYS_NAMED: usize = 10;
/// Operations that an excerpt shows.
const SHOWN: usize = 12;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The verdict.
    pub verdict: Verdict,
    /// Operations that were judged.
    pub operations: u64,
    /// Keys that were judged.
    pub keys: u64,
    /// Writes that nobody was told the outcome of: they may have happened at any time after their call, or never.
    pub ambiguous: u64,
    /// Writes whose value another write of the same key wrote too: each makes the verdict weaker.
    pub repeated_values: u64,
    /// Seconds since the load began after which nothing was recorded any more, if the history was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_s: Option<f64>,
    /// How many keys are not linearizable.
    pub violated: u64,
    /// The first of them.
    pub violated_keys: Vec<u64>,
    /// How many keys' searches came to no end.
    pub undecided: u64,
    /// The first of them.
    pub undecided_keys: Vec<u64>,
    /// The first violation: the operation that nothing explains, and what surrounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
}

/// Whether a history is linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Linearizable,
    /// It is not.
    Violated,
    /// The search was given up for some keys; the others are linearizable.
    Undecided,
}

/// Judges a history. If it is `fresh`, no key had a value before.
pub fn judge(mut records: Vec<Record>, fresh: bool) -> CheckReport {
    judge_within(&mut records, fresh, STEPS_MAX)
}

fn judge_within(records: &mut [Record], fresh: bool, steps_max: usize) -> CheckReport {
    records.sort_unstable_by_key(|record| (record.key, record.called));
    let mut report = CheckReport {
        verdict: Verdict::Linearizable,
        operations: records.len() as u64,
        keys: 0,
        ambiguous: records.iter().filter(|record| record.outcome == Outcome::Unknown).count() as u64,
        repeated_values: 0,
        recorded_s: None,
        violated: 0,
        violated_keys: Vec::new(),
        undecided: 0,
        undecided_keys: Vec::new(),
        excerpt: None,
    };
    for of_key in records.chunk_by(|one, other| one.key == other.key) {
        let (key, operations) = (of_key[0].key, ranked(of_key));
        let start = if fresh { State::default() } else { State::before(&operations) };
        let steps = steps_max + 2 * operations.len();
        report.keys += 1;
        report.repeated_values += repeated(&operations);
        match linear::check_from(&operations, start, steps) {
            linear::Verdict::Linearizable => {}
            linear::Verdict::TooLong => {
                report.undecided += 1;
                report.undecided_keys.push(key);
                report.undecided_keys.truncate(KEYS_NAMED);
            }
            linear::Verdict::Not => {
                report.violated += 1;
                report.violated_keys.push(key);
                report.violated_keys.truncate(KEYS_NAMED);
                report.excerpt.get_or_insert_with(|| excerpt(of_key, &operations, start, steps));
            }
        }
    }
    if report.violated > 0 {
        report.verdict = Verdict::Violated;
    } else if report.undecided > 0 {
        report.verdict = Verdict::Undecided;
    }
    report
}

impl CheckReport {
    /// The verdict as people read it.
    pub fn text(&self) -> String {
        let numbers = |keys: &[u64]| keys.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let mut text = match self.verdict {
            Verdict::Linearizable => "Linearizable".to_owned(),
            Verdict::Violated => {
                format!("NOT LINEARIZABLE: {} of {} keys: {}", self.violated, self.keys, numbers(&self.violated_keys))
            }
            Verdict::Undecided => format!("Not decided for keys {}", numbers(&self.undecided_keys)),
        };
        text += &format!("\n{} operations on {} keys were checked", self.operations, self.keys);
        if self.ambiguous > 0 {
            text += &format!(", {} of them writes that nobody knows the outcome of", self.ambiguous);
        }
        if let Some(seconds) = self.recorded_s {
            text += &format!(": those of the first {seconds:.3} s, warm-up included (--history-max keeps more)");
        }
        if self.repeated_values > 0 {
            text += &format!("\n{} writes repeat a value: the verdict is weaker for that", self.repeated_values);
        }
        if self.verdict == Verdict::Violated && self.undecided > 0 {
            text += &format!("\nNot decided for keys {}", numbers(&self.undecided_keys));
        }
        if let Some(excerpt) = &self.excerpt {
            text = text + "\n" + excerpt;
        }
        text
    }
}

/// The operations of one key on a clock on which no two events coincide. Where times are equal, calls come first: what
/// may have overlapped did.
fn ranked(of_key: &[Record]) -> Vec<Operation> {
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * of_key.len());
    for (place, record) in of_key.iter().enumerate() {
        events.push((record.called, false, place));
        events.push((record.returned, true, place));
    }
    events.sort_unstable();
    let operation = |record: &Record| Operation { act: record.act, called: 0, returned: 0, outcome: record.outcome };
    let mut operations: Vec<Operation> = of_key.iter().map(operation).collect();
    for (rank, (_, is_return, place)) in (1..).zip(events) {
        if is_return {
            operations[place].returned = rank;
        } else {
            operations[place].called = rank;
        }
    }
    operations
}

fn repeated(operations: &[Operation]) -> u64 {
    let mut seen: HashMap<u64, u64> = HashMap::new();
    for operation in operations.iter().filter(|operation| operation.act.written() != 0) {
        *seen.entry(operation.act.written()).or_default() += 1;
    }
    seen.into_values().map(|count| count - 1).sum()
}

/// The operation that nothing explains, the write that it names, and the last before it.
fn excerpt(of_key: &[Record], operations: &[Operation], start: State, steps_max: usize) -> String {
    let found = linear::explain(operations, start, steps_max);
    // Ranks tell which record an operation came from.
    let record_of = |operation: &Operation| {
        let place = operations.iter().position(|known| known.called == operation.called);
        place.map_or(&of_key[0], |place| &of_key[place])
    };
    let culprit = found.beginning.iter().find(|operation| operation.returned == found.returned);
    let read = culprit.map_or(0, |culprit| match culprit.outcome {
        Outcome::Known(_, _, value) => value,
        Outcome::Happened | Outcome::Unknown => 0,
    });
    let shown_from = found.beginning.len().saturating_sub(SHOWN);
    let is_shown = |(place, operation): &(usize, &Operation)| {
        let is_culprit = operation.returned == found.returned;
        *place >= shown_from || is_culprit || (read != 0 && operation.act.written() == read)
    };
    let shown: Vec<&Operation> =
        found.beginning.iter().enumerate().filter(is_shown).map(|(_, operation)| operation).collect();
    let mut text = format!(
        "Key {}: nothing explains answer {} of {} (marked >); it began {}. The last calls before it, in seconds since the load \
         began:",
        of_key[0].key,
        found.place + 1,
        found.returns,
        match start.value {
            0 => "without a value".to_owned(),
            value => format!("with value {value}"),
        }
    );
    for operation in shown {
        let mark = if operation.returned == found.returned { '>' } else { ' ' };
        text += &format!("\n{mark} {}", describe(operation, record_of(operation)));
    }
    text
}

fn describe(operation: &Operation, record: &Record) -> String {
    let seconds = |ns: u64| format!("{:.9}", ns as f64 / 1e9);
    let what = match operation.act {
        Act::Get => "read".to_owned(),
        write => format!("write {}", write.written()),
    };
    let version =
        |version| if version == State::VERSION_UNKNOWN { String::new() } else { format!(", version {version}") };
    match operation.outcome {
        Outcome::Unknown => format!("{} to …: {what}: no answer (yet)", seconds(record.called)),
        Outcome::Happened => format!("{} to {}: {what}: done", seconds(record.called), seconds(record.returned)),
        Outcome::Known(_, of, value) => {
            let seen = match (operation.act, value) {
                (Act::Get, 0) => "no value".to_owned(),
                (Act::Get, value) => format!("value {value}"),
                _ => "done".to_owned(),
            };
            format!("{} to {}: {what}: {seen}{}", seconds(record.called), seconds(record.returned), version(of))
        }
    }
}

#[cfg(test)]
mod tests {
    use wpaxos::command::Status;

    use super::*;

    fn put(key: u64, called: u64, returned: u64, value: u64) -> Record {
        Record { key, act: Act::Put(value), called, returned, outcome: Outcome::seen(Status::Ok, 0) }
    }

    fn get(key: u64, called: u64, returned: u64, value: u64) -> Record {
        let status = if value == 0 { Status::NotFound } else { Status::Ok };
        Record { key, act: Act::Get, called, returned, outcome: Outcome::seen(status, value) }
    }

    fn unanswered(key: u64, called: u64, value: u64) -> Record {
        Record { outcome: Outcome::Unknown, ..put(key, called, i64::MAX as u64, value) }
    }

    #[test]
    fn good_histories_pass() {
        let records = vec![
            put(1, 10, 20, 7),
            get(1, 30, 40, 7),
            get(2, 30, 40, 0),
            // Equal times may have overlapped.
            get(1, 15, 20, 0),
            put(3, 10, 20, 8),
            get(3, 20, 30, 0),
            unanswered(1, 50, 9),
            get(1, 60, 70, 7),
            get(1, 80, 90, 9),
        ];
        let report = judge(records, true);
        assert_eq!(
            (report.verdict, report.operations, report.keys, report.ambiguous),
            (Verdict::Linearizable, 9, 3, 1)
        );
        assert_eq!(report.repeated_values, 0);
        assert!(report.text().starts_with("Linearizable\n9 operations on 3 keys"), "{}", report.text());
    }

    #[test]
    fn stale_missing_reads_and_lost_writes_are_found() {
        let bad: [&[Record]; 6] = [
            // The value was there, and is missing.
            &[put(4, 10, 20, 7), get(4, 30, 40, 0)],
            &[put(4, 10, 20, 7), get(4, 30, 40, 7), get(4, 50, 60, 0)],
            // An acknowledged write is lost: the one before it comes back.
            &[put(4, 10, 20, 7), put(4, 30, 40, 8), get(4, 50, 60, 7)],
            // An answer that no write gave, after one did.
            &[put(4, 10, 20, 7), get(4, 30, 40, 99)],
            // A write without an answer was seen, and is undone.
            &[put(4, 10, 20, 7), unanswered(4, 30, 8), get(4, 40, 50, 8), get(4, 60, 70, 7)],
            // Versions alone show it: the second write has overwritten none.
            &[
                Record { outcome: Outcome::Known(Status::Ok, 5, 0), ..put(4, 10, 20, 7) },
                Record { outcome: Outcome::Known(Status::Ok, 5, 0), ..put(4, 30, 40, 8) },
            ],
        ];
        for history in bad {
            for fresh in [true, false] {
                let mut records = history.to_vec();
                records.extend([put(3, 1, 2, 1), get(5, 1, 2, 0)]);
                let report = judge(records, fresh);
                assert_eq!((report.verdict, &report.violated_keys[..]), (Verdict::Violated, &[4][..]), "{history:?}");
                let text = report.text();
                assert!(text.contains("NOT LINEARIZABLE: 1 of 3 keys: 4") && text.contains("\n> "), "{text}");
            }
        }
    }

    #[test]
    fn a_key_that_was_used_before_may_begin_with_any_value_but_only_one() {
        let used = [get(1, 10, 20, 55), put(1, 30, 40, 7), get(1, 50, 60, 7)];
        assert_eq!(judge(used.to_vec(), false).verdict, Verdict::Linearizable);
        assert_eq!(judge(used.to_vec(), true).verdict, Verdict::Violated);
        let two = [&used[..], &[get(1, 70, 80, 55)]].concat();
        let report = judge(two, false);
        assert_eq!(report.verdict, Verdict::Violated);
        assert!(report.text().contains("it began with value 55"), "{}", report.text());
    }

    #[test]
    fn an_excerpt_is_short_and_names_the_write_that_was_read() {
        let mut records: Vec<Record> = (0..100).map(|n| put(6, 100 * n, 100 * n + 50, n + 1)).collect();
        records.push(get(6, 20_000, 30_000, 3));
        let report = judge(records, true);
        let text = report.excerpt.unwrap();
        assert!(text.lines().count() <= SHOWN + 2, "{text}");
        assert!(
            text.contains("write 3: done") && text.contains("> 0.000020000 to 0.000030000: read: value 3"),
            "{text}"
        );
    }

    #[test]
    fn a_search_without_end_is_no_pass_and_no_violation() {
        // A hundred writes at once whose readers contradict each other only at the end. One version is known, at the end.
        let mut records: Vec<Record> = (1..=100).map(|n| put(1, n, 1000 + n, n)).collect();
        records.push(Record { outcome: Outcome::Known(Status::Ok, 100, 1), ..get(1, 3000, 3001, 1) });
        records.extend((1..=50).map(|n| get(1, 2000 + 10 * n, 2005 + 10 * n, 1 + n % 2)));
        let report = judge_within(&mut records, true, 1000);
        assert_eq!((report.verdict, &report.undecided_keys[..]), (Verdict::Undecided, &[1][..]));
        assert!(report.text().starts_with("Not decided for keys 1"));
    }

    #[test]
    fn repeated_values_are_counted() {
        assert_eq!(judge(vec![put(1, 1, 2, 7), put(1, 3, 4, 7), put(2, 3, 4, 7)], true).repeated_values, 1);
    }
}
