//! Where a log ends, written down beside it: a start that finds less of the log than this has lost something.
//!
//! The file `end` of a shard has two slots of [`SLOT_BYTES`], each with JSON for people, a checksum, and newlines up to its
//! size. They are written in turns, so that one is whole whatever happens, and the one that was written last counts. It is
//! brought up to date [twice a second](INTERVAL) while the log grows, and when the log is closed.
//!
//! It is a lower bound that stays true for as long as the log does; only after a clean stop the log ends exactly there.

use std::{
    cell::Cell,
    fs::{self, File},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use glommio::timer::Timer;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{
    LogName, LogSpec, Wal,
    copies::{Found, parse, render},
    dir::hex,
    file::{disk_failure, write_atomically},
    format::{BLOCK, FORMAT},
    recovery::damaged,
};
use crate::{failure::Failure, protocol::RecordId, tuning::Durability};

/// The file's name.
pub(super) const END: &str = "end";
const SLOT_BYTES: usize = BLOCK;
/// What was written last, while a log grows, is noted so often.
const INTERVAL: Duration = Duration::from_millis(500);

/// The last group of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LogEnd {
    /// Its number; 0 if the log has none.
    pub(super) sequence: u64,
    pub(super) checksum: u32,
    /// Its last record.
    pub(super) record: RecordId,
}

/// What a slot holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Slot {
    format: u16,
    #[serde(with = "hex")]
    log: u64,
    shard: u16,
    /// Rises with each write.
    write: u64,
    /// The start that wrote it.
    boot: u32,
    group: u64,
    #[serde(with = "hex")]
    group_checksum: u64,
    record: u64,
}

/// What the file of a log says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct EndMark {
    /// The log ends with this group, or goes on behind it.
    pub(super) end: LogEnd,
    /// The start of the node that wrote it; 0 before the first.
    pub(super) boot: u32,
    /// How often the file was written.
    write: u64,
}

impl EndMark {
    fn slot(&self, name: LogName) -> Vec<u8> {
        let LogEnd { sequence, checksum, record } = self.end;
        let slot = Slot {
            format: FORMAT,
            log: name.log,
            shard: name.shard,
            write: self.write,
            boot: self.boot,
            group: sequence,
            group_checksum: checksum.into(),
            record: record.0,
        };
        let mut text = render(&slot);
        assert!(text.len() <= SLOT_BYTES, "a slot holds what is written to it");
        text.resize(SLOT_BYTES, b'\n');
        text
    }

    fn of(slot: &Slot) -> Self {
        let end = LogEnd { sequence: slot.group, checksum: slot.group_checksum as u32, record: RecordId(slot.record) };
        Self { end, boot: slot.boot, write: slot.write }
    }

    /// The file of a log that holds nothing.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn create(directory: &Path, name: LogName) -> Result<(), Failure> {
        let slots = [1, 2].map(|write| Self { write, ..Self::default() }.slot(name));
        write_atomically(&directory.join(END), &slots.concat())
    }

    /// Reads the file of a log, with a warning if one of its slots does not count.
    ///
    /// # Errors
    /// If none does, or it is another log's.
    pub(super) fn read(directory: &Path, name: LogName) -> Result<Self, Failure> {
        let path = directory.join(END);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(&path, 0, "it is missing, so that nobody knows how far this log had been written"));
            }
            Err(error) => return Err(disk_failure(&path, "reading it", &error)),
        };
        let (mut last, mut problems) = (None::<Self>, Vec::new());
        for place in 0..2 {
            let at = place * SLOT_BYTES;
            match parse_slot(bytes.get(at..at + SLOT_BYTES)) {
                Found::Whole(slot) if (slot.log, slot.shard) == (name.log, name.shard) => {
                    let mark = Self::of(&slot);
                    last = last.filter(|last| last.write > mark.write).or(Some(mark));
                }
                Found::Whole(slot) => {
                    let (log, shard) = (slot.log, slot.shard);
                    let problem = format!(
                        "it is of shard {shard} of log {log:016x}; this is shard {} of log {:016x}",
                        name.shard, name.log
                    );
                    return Err(damaged(&path, at as u64, &problem));
                }
                broken => problems.push((at as u64, broken.problem().expect("it is not whole"))),
            }
        }
        let Some(last) = last else {
            return Err(damaged(&path, 0, &format!("neither of its two records counts: the first {}", problems[0].1)));
        };
        if let Some((at, problem)) = problems.first() {
            tracing::warn!(
                "{}: the record at offset {at} {problem}: its last write had not ended, or it was damaged. The file's other \
                 record is used, and this one written anew",
                path.display()
            );
        }
        Ok(last)
    }
}

fn parse_slot(bytes: Option<&[u8]>) -> Found<Slot> {
    let Some(bytes) = bytes else { return Found::Broken("the file was cut".to_owned()) };
    let end = bytes.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| (last + 2).min(bytes.len()));
    parse(&bytes[..end])
}

/// Keeps the file of a log that grows.
#[derive(Debug)]
pub(crate) struct EndKeeper {
    path: PathBuf,
    file: Arc<File>,
    name: LogName,
    boot: u32,
    /// How often the file was written.
    write: Cell<u64>,
    /// What was written to it last.
    noted: Cell<LogEnd>,
}

impl EndKeeper {
    /// Notes the start, and where the log ended that was read. Blocks the thread.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn start(spec: &LogSpec, end: LogEnd) -> Result<Self, Failure> {
        let path = spec.directory.join(END);
        let mut flags = OFlags::empty();
        flags.set(OFlags::DSYNC, spec.mode == Durability::Sync);
        let file = File::options().write(true).custom_flags(flags.bits() as i32).open(&path);
        let file = Arc::new(file.map_err(|error| disk_failure(&path, "opening it", &error))?);
        let keeper = Self {
            path,
            file,
            name: spec.name,
            boot: spec.boot,
            write: Cell::new(spec.mark.write),
            noted: Cell::new(end),
        };
        keeper.next(end)(&keeper.file).map_err(|error| disk_failure(&keeper.path, "writing it", &error))?;
        Ok(keeper)
    }

    /// A write of the slot that was not written last.
    fn next(&self, end: LogEnd) -> impl FnOnce(&File) -> std::io::Result<()> + Send + 'static {
        self.write.set(self.write.get() + 1);
        self.noted.set(end);
        let mark = EndMark { end, boot: self.boot, write: self.write.get() };
        let (slot, at) = (mark.slot(self.name), (mark.write - 1) % 2 * SLOT_BYTES as u64);
        move |file| file.write_all_at(&slot, at)
    }

    /// Follows a log; ends only with an error.
    pub(crate) async fn follow(&self, wal: &Wal) -> Failure {
        loop {
            Timer::new(INTERVAL).await;
            let end = wal.end();
            if self.noted.get() != end
                && let Err(failure) = self.note(end, false).await
            {
                return failure;
            }
        }
    }

    /// Notes where the log ends, on stable storage if that is asked for.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) async fn note(&self, end: LogEnd, synced: bool) -> Result<(), Failure> {
        let (file, write) = (Arc::clone(&self.file), self.next(end));
        let write = move || {
            write(&file)?;
            if synced { file.sync_data() } else { Ok(()) }
        };
        let written = glommio::executor().spawn_blocking(write).await;
        written.map_err(|error| disk_failure(&self.path, "writing it", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: LogName = LogName { log: 5, shard: 1 };

    fn mark(write: u64) -> EndMark {
        EndMark { end: LogEnd { sequence: write * 10, checksum: 77, record: RecordId(write * 20) }, boot: 3, write }
    }

    #[test]
    fn one_slot_is_enough_and_the_newer_one_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(END);
        EndMark::create(directory.path(), NAME).unwrap();
        assert_eq!(EndMark::read(directory.path(), NAME).unwrap(), EndMark { write: 2, ..EndMark::default() });
        for (first, second) in [(3, 2), (3, 4)] {
            let whole = [mark(first).slot(NAME), mark(second).slot(NAME)].concat();
            fs::write(&path, &whole).unwrap();
            assert_eq!(EndMark::read(directory.path(), NAME).unwrap(), mark(first.max(second)));
            for byte in (0..whole.len()).filter(|byte| byte % SLOT_BYTES < 400 || byte % 61 == 0) {
                let mut flipped = whole.clone();
                flipped[byte] ^= 1 << (byte % 8);
                fs::write(&path, flipped).unwrap();
                let other = if byte < SLOT_BYTES { second } else { first };
                assert_eq!(EndMark::read(directory.path(), NAME).unwrap(), mark(other), "byte {byte}");
            }
            fs::write(&path, &whole[..SLOT_BYTES + 10]).unwrap();
            assert_eq!(EndMark::read(directory.path(), NAME).unwrap(), mark(first));
        }
    }

    #[test]
    fn none_of_its_own_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let said = |name: LogName| match EndMark::read(directory.path(), name) {
            Err(Failure::Damaged(said)) => said,
            other => panic!("{other:?}"),
        };
        assert!(said(NAME).contains("missing"));
        fs::write(directory.path().join(END), b"").unwrap();
        assert!(said(NAME).contains("neither"));
        EndMark::create(directory.path(), NAME).unwrap();
        assert!(said(LogName { shard: 2, ..NAME }).contains("shard 1"));
        assert!(said(LogName { log: 6, ..NAME }).contains("log 0000000000000005"));
    }
}
