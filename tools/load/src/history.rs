//! What clients asked and were told, operation by operation: recorded by the workers, written and read as Paxi's
//! `key,input,output,start,end`.
//!
//! Memory is bounded: all workers together record so many operations, and then the history is cut. What was called
//! before the cut is complete; an operation that had not returned by then counts as unanswered. Whether a beginning of a
//! history is linearizable is a question of its own, so nothing is wrongly accused or excused by the cut.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use wpaxos::{
    command::Status,
    linear::{Act, Outcome, State},
};

use crate::target::{Answer, Operation};

/// What a single request does, whatever operation it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
}

/// The most rows of a file that are read.
pub const ROWS_MAX: usize = 20_000_000;
/// The time of an answer that never came, as Paxi writes it.
const NEVER: u64 = i64::MAX as u64;

/// An operation of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The key's number.
    pub key: u64,
    /// Whether it reads the value or sets it to a number.
    pub act: Act,
    /// When it was sent, in nanoseconds since the load began.
    pub called: u64,
    /// When its answer came.
    pub returned: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// What all workers share: how much is recorded, and when that was enough.
#[derive(Debug)]
pub struct Ledger {
    max: u64,
    taken: AtomicU64,
    cut_ns: AtomicU64,
}

impl Ledger {
    /// For at most so many operations.
    pub fn new(max: u64) -> Self {
        Self { max, taken: AtomicU64::new(0), cut_ns: AtomicU64::new(u64::MAX) }
    }

    /// Whether one more operation, called now, is recorded. The first that is not ends the history.
    fn take(&self, called_ns: u64) -> bool {
        // A full ledger is not counted further: the count would be for nothing.
        if self.taken.load(Ordering::Relaxed) < self.max && self.taken.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.cut_ns.fetch_min(called_ns, Ordering::Relaxed);
        false
    }

    /// The time at which the history ends; `None` if all of it was recorded.
    pub fn cut_ns(&self) -> Option<u64> {
        Some(self.cut_ns.load(Ordering::Relaxed)).filter(|cut| *cut != u64::MAX)
    }
}

/// A request while it is recorded: compact, for there may be millions.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    /// What it writes or has read.
    value: u64,
    version: u64,
    called_ns: u64,
    returned_ns: u64,
    kind: Kind,
    ended: Ended,
}

// As `--history-max` says.
const _: () = assert!(size_of::<Entry>() <= 56);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Open,
    With(Status),
    /// It did not happen.
    Refused,
    /// It may have happened.
    Doubtful,
}

/// Records what one worker asks.
#[derive(Debug)]
pub struct Recorder {
    ledger: Arc<Ledger>,
    entries: Vec<Entry>,
}

impl Recorder {
    /// Records until the ledger is full.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, entries: Vec::new() }
    }

    /// A request is about to be made. Returns its place; `None` if it is not recorded any more.
    pub fn begin(&mut self, key: u64, operation: &Operation<'_>, called_ns: u64) -> Option<u32> {
        if !self.ledger.take(called_ns) {
            return None;
        }
        let (kind, value) = match operation {
            Operation::Read => (Kind::Read, 0),
            Operation::Write(value) => (Kind::Write, wpaxos::linear::value_number(Some(value))),
        };
        let (version, returned_ns, ended) = (0, NEVER, Ended::Open);
        self.entries.push(Entry { key, value, version, called_ns, returned_ns, kind, ended });
        // The ledger holds far fewer.
        u32::try_from(self.entries.len() - 1).ok()
    }

    /// A recorded request has ended, or was not even taken.
    pub fn end(&mut self, place: u32, returned_ns: u64, answer: Answer) {
        let Some(entry) = self.entries.get_mut(place as usize) else { return };
        entry.returned_ns = returned_ns;
        entry.ended = match answer {
            Answer::Done(seen) => {
                entry.version = seen.version;
                if entry.kind == Kind::Read {
                    entry.value = seen.value;
                }
                Ended::With(seen.status)
            }
            Answer::Failed(kind) if kind.is_certain() => Ended::Refused,
            Answer::Failed(_) => Ended::Doubtful,
        };
    }

    /// What was recorded of one worker, up to the cut, which must be final: all workers have ended.
    pub fn finish(self) -> Vec<Record> {
        let cut_ns = self.ledger.cut_ns().unwrap_or(u64::MAX);
        self.entries.into_iter().filter_map(|entry| entry.finish(cut_ns)).collect()
    }
}

impl Entry {
    /// The operation as a history has it; `None` if it says nothing.
    fn finish(self, cut_ns: u64) -> Option<Record> {
        let in_time = self.returned_ns < cut_ns;
        let version = if self.version == 0 { State::VERSION_UNKNOWN } else { self.version };
        let outcome = match (self.ended, self.kind) {
            (Ended::Refused, _) => return None,
            (Ended::With(Status::Duplicate), Kind::Write) if in_time => Outcome::Happened,
            (Ended::With(status @ Status::Ok), Kind::Write) if in_time => Outcome::Known(status, version, 0),
            // A key that was never written is at version 0.
            (Ended::With(status @ Status::NotFound), Kind::Read) if in_time => Outcome::Known(status, self.version, 0),
            (Ended::With(status @ Status::Ok), Kind::Read) if in_time => Outcome::Known(status, version, self.value),
            (_, Kind::Write) => Outcome::Unknown,
            (_, Kind::Read) => return None,
        };
        let (act, returned) = match self.kind {
            Kind::Read => (Act::Get, self.returned_ns),
            Kind::Write if outcome == Outcome::Unknown => (Act::Put(self.value), NEVER),
            Kind::Write => (Act::Put(self.value), self.returned_ns),
        };
        (self.called_ns < cut_ns).then_some(Record { key: self.key, act, called: self.called_ns, returned, outcome })
    }
}

/// Writes a history: rows `KEY,INPUT,OUTPUT,START,END,VERSION` in the order of their starts, as Paxi's checker reads its
/// first five columns.
///
/// # Errors
/// If the file cannot be written.
pub fn write_csv(path: &Path, records: &[Record]) -> std::io::Result<()> {
    let mut order: Vec<&Record> = records.iter().collect();
    order.sort_by_key(|record| (record.called, record.key));
    let mut out = BufWriter::new(File::create(path)?);
    for Record { key, act, called, returned, outcome } in order {
        let (version, seen) = match outcome {
            Outcome::Known(_, version, seen) => (*version, *seen),
            Outcome::Happened | Outcome::Unknown => (State::VERSION_UNKNOWN, 0),
        };
        let (input, output) = match act {
            Act::Get => (String::new(), seen.to_string()),
            write => (write.written().to_string(), String::new()),
        };
        let version = if version == State::VERSION_UNKNOWN { String::new() } else { version.to_string() };
        writeln!(out, "{key},{input},{output},{called},{returned},{version}")?;
    }
    out.flush()
}

/// Why a history cannot be read. Names the file and the line.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file system said no.
    #[error("cannot read {file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// What it said.
        error: std::io::Error,
    },
    /// A row is wrong.
    #[error("{file}, line {line}: {problem}")]
    Row {
        /// The file.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
}

/// Reads a history that [`write_csv`] wrote, or one in the five columns that Paxi's checker reads.
///
/// # Errors
/// If there is none, or if a row is not as it should be.
pub fn read_csv(path: &Path) -> Result<Vec<Record>, HistoryError> {
    let file = path.display().to_string();
    let io = |error| HistoryError::Io { file: file.clone(), error };
    let mut records = Vec::new();
    for (line, text) in (1..).zip(BufReader::new(File::open(path).map_err(io)?).lines()) {
        let text = text.map_err(io)?;
        let row = |problem| HistoryError::Row { file: file.clone(), line, problem };
        if text.trim().is_empty() || text.starts_with("PerSecond ") || (line == 1 && text.starts_with("key,")) {
            continue;
        }
        if records.len() == ROWS_MAX {
            return Err(row(format!("more than {ROWS_MAX} rows: check a part of the keys at a time")));
        }
        records.extend(parse_row(&text).map_err(row)?);
    }
    Ok(records)
}

/// A row; `None` if it says nothing, as a read without an answer.
fn parse_row(text: &str) -> Result<Option<Record>, String> {
    let columns: Vec<&str> = text.split(',').map(str::trim).collect();
    let ([key, input, output, start, end] | [key, input, output, start, end, _]) = columns[..] else {
        let hint =
            if columns.len() == 4 { " (Paxi's own history.csv leaves the key out: it cannot be judged)" } else { "" };
        return Err(format!("{} columns{hint}: expected KEY,INPUT,OUTPUT,START,END or a VERSION more", columns.len()));
    };
    let number = |name: &str, text: &str| {
        let problem = |_| format!("{name} '{text}': expected a whole number from 0, times in nanoseconds");
        text.parse::<u64>().map_err(problem)
    };
    let value = |name: &str, text: &str| match text {
        "" | "null" | "<nil>" => Ok(None),
        text => number(name, text).map(Some),
    };
    let (key, called, returned) = (number("KEY", key)?, number("START", start)?, number("END", end)?);
    if returned < called {
        return Err(format!("END {returned} lies before START {called}"));
    }
    let version = match columns.get(5) {
        None | Some(&"") => State::VERSION_UNKNOWN,
        Some(version) => number("VERSION", version)?,
    };
    let (act, outcome) = match (value("INPUT", input)?, value("OUTPUT", output)?) {
        (Some(0), _) => return Err("INPUT 0: 0 is no value, expected a number from 1".to_owned()),
        (Some(written), _) if returned == NEVER => (Act::Put(written), Outcome::Unknown),
        (Some(written), _) => (Act::Put(written), Outcome::Known(Status::Ok, version, 0)),
        (None, _) if returned == NEVER => return Ok(None),
        (None, None | Some(0)) => (Act::Get, Outcome::Known(Status::NotFound, version, 0)),
        (None, Some(read)) => (Act::Get, Outcome::Known(Status::Ok, version, read)),
    };
    Ok(Some(Record { key, act, called, returned, outcome }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{ErrorKind, Seen};

    fn done(status: Status, version: u64, value: u64) -> Answer {
        Answer::Done(Seen { status, version, value })
    }

    fn numbered(value: u64) -> Vec<u8> {
        value.to_le_bytes().to_vec()
    }

    #[test]
    fn answers_are_recorded_as_what_they_say() {
        let mut recorder = Recorder::new(Arc::new(Ledger::new(100)));
        let mut ask = |write: Option<u64>, answer: Option<Answer>| {
            let value = write.map(numbered);
            let operation = value.as_deref().map_or(Operation::Read, Operation::Write);
            let tag = recorder.begin(5, &operation, 10).unwrap();
            if let Some(answer) = answer {
                recorder.end(tag, 20, answer);
            }
        };
        ask(Some(3), Some(done(Status::Ok, 8, 0)));
        ask(None, Some(done(Status::Ok, 8, 3)));
        ask(None, Some(done(Status::NotFound, 0, 0)));
        ask(Some(4), Some(done(Status::Duplicate, 0, 0)));
        // These say nothing, or that nothing happened.
        ask(None, Some(Answer::Failed(ErrorKind::TimeoutMaybeDone)));
        ask(None, None);
        ask(Some(5), Some(Answer::Failed(ErrorKind::Overloaded)));
        // These may have happened.
        ask(Some(6), Some(Answer::Failed(ErrorKind::Disconnected)));
        ask(Some(7), None);
        let record = |act, returned, outcome| Record { key: 5, act, called: 10, returned, outcome };
        let expected = [
            record(Act::Put(3), 20, Outcome::Known(Status::Ok, 8, 0)),
            record(Act::Get, 20, Outcome::Known(Status::Ok, 8, 3)),
            record(Act::Get, 20, Outcome::Known(Status::NotFound, 0, 0)),
            record(Act::Put(4), 20, Outcome::Happened),
            record(Act::Put(6), NEVER, Outcome::Unknown),
            record(Act::Put(7), NEVER, Outcome::Unknown),
        ];
        assert_eq!(recorder.finish(), expected);
    }

    #[test]
    fn a_full_ledger_cuts_the_history_for_all_workers_where_the_first_is_left_out() {
        let ledger = Arc::new(Ledger::new(3));
        let mut recorders = [Recorder::new(Arc::clone(&ledger)), Recorder::new(Arc::clone(&ledger))];
        let value = numbered(1);
        let write = Operation::Write(&value);
        let tags =
            [(0, 10), (1, 20), (0, 30)].map(|(worker, at)| (worker, recorders[worker].begin(1, &write, at).unwrap()));
        assert_eq!(ledger.cut_ns(), None);
        assert_eq!(recorders[1].begin(1, &write, 40), None);
        assert_eq!(recorders[0].begin(1, &write, 38), None, "another worker's clock reading may be earlier");
        assert_eq!(ledger.cut_ns(), Some(38));
        for ((worker, tag), returned) in tags.into_iter().zip([37, 38, 50]) {
            recorders[worker].end(tag, returned, done(Status::Ok, 1, 0));
        }
        let outcomes =
            recorders.map(|recorder| recorder.finish().iter().map(|record| record.outcome).collect::<Vec<_>>());
        let known = Outcome::Known(Status::Ok, 1, 0);
        assert_eq!(outcomes, [vec![known, Outcome::Unknown], vec![Outcome::Unknown]]);
    }

    #[test]
    fn files_read_back_what_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let record = |key, act, called, returned, outcome| Record { key, act, called, returned, outcome };
        let records = [
            record(9, Act::Put(1 << 40), 1, 5, Outcome::Known(Status::Ok, 3, 0)),
            record(2, Act::Get, 2, 3, Outcome::Known(Status::NotFound, 0, 0)),
            record(9, Act::Get, 6, 7, Outcome::Known(Status::Ok, State::VERSION_UNKNOWN, 1 << 40)),
            record(9, Act::Put(8), 8, NEVER, Outcome::Unknown),
        ];
        write_csv(file.path(), &records).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.starts_with("9,1099511627776,,1,5,3\n2,,0,2,3,0\n") && text.ends_with(",9223372036854775807,\n"));
        assert_eq!(read_csv(file.path()).unwrap(), records);
    }

    #[test]
    fn paxis_rows_are_read_and_wrong_ones_named() {
        let read = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            read_csv(file.path()).map_err(|error| error.to_string())
        };
        let rows = read("1,5,null,1,2\nPerSecond 0.5 3\n1,null,5,3,4\n1,,,9,9223372036854775807\n\n1,,,5,6\n").unwrap();
        assert_eq!(rows.len(), 3, "a read without an answer says nothing");
        assert_eq!(rows[2].outcome, Outcome::seen(Status::NotFound, 0));
        for (text, said) in [
            ("5,null,0.1,0.2", "leaves the key out"),
            ("1,5,null,1,2\n1,x,,1,2", "line 2: INPUT 'x'"),
            ("1,5,,1.5,2", "START '1.5'"),
            ("1,5,,3,2", "before START"),
            ("1,0,,1,2", "INPUT 0"),
            ("1,5,,1,2,3,4", "7 columns"),
            ("-1,5,,1,2", "KEY '-1'"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
