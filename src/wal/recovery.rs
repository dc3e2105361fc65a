//! Reading a log back: the newest checkpoint, then every group behind it, in order.
//!
//! A group that is not whole, with nothing of the same log behind it, was being written when the process or the machine
//! went down: nobody has been told of it, and it is cut. One write is under way at a time, so anything whole *behind* a
//! group that is not is proof of damage, and so is a number that is missing, or a log that ends before the group that its
//! file `end` names ([`EndMark`]).
//!
//! Reading blocks the thread, a piece at a time: between two, the caller lets others have a turn.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{
    LogSpec,
    checkpoint::{CheckpointFile, CheckpointReader},
    device::{File, Files, Open},
    end::{END, EndMark, LogEnd},
    file::disk_failure,
    format::{self, BLOCK, GroupHead, LogName},
};
use crate::{
    failure::Failure,
    protocol::{Record, RecordId},
};

/// So much is read at once.
const READ_BYTES: usize = 1 << 20;
/// No segment is smaller.
const SEGMENT_BYTES_MIN: u64 = 65_536;

/// What comes out of a log, in this order.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A frame of the checkpoint.
    Restore(Bytes),
    /// The checkpoint has ended; it stands for everything up to this record.
    Restored(RecordId),
    /// Records, in the order of their numbers.
    Records(Vec<Record>),
}

/// A segment's file, and what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Its last record; 0 while it holds none.
    pub(super) last: RecordId,
}

/// What the writer goes on from.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The last record; 0 if there is none.
    pub(super) last: RecordId,
    /// The last group's number.
    pub(super) sequence: u64,
    /// The last group's checksum.
    pub(super) checksum: u32,
    /// Segments with records that no checkpoint stands for, the oldest first. None is written to again.
    pub(super) live: Vec<Segment>,
    /// Segments to be used again.
    pub(super) free: Vec<Segment>,
    /// A number above those of all segments' files.
    pub(super) next_file: u32,
    pub(super) checkpoint: Option<CheckpointFile>,
}

impl Recovered {
    /// The last group, which everything that is written now follows.
    pub(crate) fn end(&self) -> LogEnd {
        LogEnd { sequence: self.sequence, checksum: self.checksum, record: self.last }
    }
}

/// A log that is being read.
#[derive(Debug)]
pub(crate) struct Recovery {
    files: Arc<dyn Files>,
    name: LogName,
    directory: PathBuf,
    /// The node's boot: every use of a segment is of an earlier one.
    boot: u32,
    /// How far the log goes at least.
    mark: EndMark,
    /// Whether it ends there.
    ends_at_mark: bool,
    /// Files that an earlier process left unfinished, and checkpoints that a newer one stands for.
    superfluous: Vec<PathBuf>,
    restoring: Option<CheckpointReader>,
    /// Segments to be read, the last one first.
    waiting: Vec<Candidate>,
    /// Segments whose first group is not whole though there are whole ones behind it.
    broken: Vec<(Candidate, u64)>,
    reading: Option<(Segment, Reader)>,
    recovered: Recovered,
    /// Where the last segment that was read has no more groups.
    ended_at: u64,
    /// The first record that the checkpoint does not stand for.
    needed: RecordId,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_total: u64,
}

/// A segment whose first group is whole, or the first whole one of a broken one.
#[derive(Clone, Debug)]
struct Candidate {
    path: PathBuf,
    bytes: u64,
    head: GroupHead,
}

impl Recovery {
    /// Looks at what there is, and changes nothing.
    ///
    /// # Errors
    /// If files are missing, damaged, or cannot be read.
    pub(crate) fn begin(spec: &LogSpec, files: Arc<dyn Files>) -> Result<Self, Failure> {
        let Listed { segments, mut checkpoints, unfinished: mut superfluous } = list(&*files, &spec.directory)?;
        let checkpoint = checkpoints.pop();
        for older in checkpoints {
            // Only a checkpoint of this log is removed.
            CheckpointReader::open(&*files, &older, spec.name)?;
            superfluous.push(older.path);
        }
        if segments.is_empty() {
            let problem = "no segment of the log is there, though this node has run on this data directory before";
            return Err(damaged(&spec.directory, 0, problem));
        }
        let position = checkpoint.as_ref().map_or(RecordId(0), |checkpoint| checkpoint.position);
        let restoring = checkpoint.as_ref().map(|file| CheckpointReader::open(&*files, file, spec.name));
        let mut recovery = Self {
            name: spec.name,
            directory: spec.directory.clone(),
            boot: spec.boot,
            mark: spec.mark,
            ends_at_mark: spec.ends_at_mark,
            superfluous,
            restoring: restoring.transpose()?,
            files,
            waiting: Vec::new(),
            broken: Vec::new(),
            reading: None,
            ended_at: 0,
            needed: RecordId(position.0 + 1),
            bytes_read: 0,
            bytes_total: checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.bytes),
            recovered: Recovered {
                last: position,
                sequence: 0,
                checksum: 0,
                live: Vec::new(),
                free: Vec::new(),
                next_file: segments.iter().map(|(number, ..)| number + 1).max().unwrap_or(1),
                checkpoint,
            },
        };
        recovery.sort(segments)?;
        Ok(recovery)
    }

    /// Which segments have to be read.
    fn sort(&mut self, segments: Vec<(u32, PathBuf, u64)>) -> Result<(), Failure> {
        let mut whole = Vec::new();
        for (_, path, bytes) in segments {
            if bytes < SEGMENT_BYTES_MIN || !bytes.is_multiple_of(BLOCK as u64) {
                return Err(damaged(&path, 0, &format!("the file was cut: no segment has {bytes} bytes")));
            }
            let mut reader = Reader::open(&*self.files, &path)?;
            match reader.group(self.name)? {
                Some((head, _)) if bytes < head.segment_bytes => {
                    let problem =
                        format!("the file was cut: it has {bytes} bytes, and was made with {}", head.segment_bytes);
                    return Err(damaged(&path, bytes, &problem));
                }
                Some((head, _)) => whole.push(Candidate { path, bytes, head }),
                None => match reader.whole_group_behind(0, self.name, |_| true)? {
                    Some((offset, head)) => self.broken.push((Candidate { path, bytes, head }, offset)),
                    None => {
                        if let Some(problem) = reader.foreign(self.name)? {
                            return Err(damaged(&path, 0, &problem));
                        }
                        self.recovered.free.push(Segment { path, bytes, last: RecordId(0) });
                    }
                },
            }
        }
        whole
            .iter()
            .chain(self.broken.iter().map(|(broken, _)| broken))
            .try_for_each(|found| self.check_boot(found))?;
        whole.sort_by_key(|candidate| candidate.head.use_number);
        // The last one that begins at or before what is needed, and all behind it.
        let first = whole.iter().rposition(|candidate| candidate.head.first <= self.needed);
        let needed = whole.split_off(first.unwrap_or(0));
        let free = |Candidate { path, bytes, .. }| Segment { path, bytes, last: RecordId(0) };
        self.recovered.free.extend(whole.into_iter().map(free));
        if let Some(first) = needed.first() {
            self.recovered.sequence = first.head.sequence - 1;
            if first.head.first > self.needed {
                let holds = |broken: &GroupHead| broken.last() >= self.needed && broken.first < first.head.first;
                if let Some((broken, offset)) = self.broken.iter().find(|(broken, _)| holds(&broken.head)) {
                    return Err(broken_first(&broken.path, *offset));
                }
                let problem = format!("it begins with record {}", first.head.first.0);
                let problem = format!("{problem}, but nothing holds the records from {} on", self.needed.0);
                return Err(damaged(&first.path, 0, &problem));
            }
            self.recovered.last = RecordId(first.head.first.0 - 1);
        }
        self.bytes_total += needed.iter().map(|candidate| candidate.bytes).sum::<u64>();
        self.waiting = needed;
        self.waiting.reverse();
        Ok(())
    }

    /// No segment was written by this start, or by a later one.
    fn check_boot(&self, found: &Candidate) -> Result<(), Failure> {
        let (boot, before) = (found.head.use_number >> 32, self.boot.saturating_sub(1));
        if boot <= u64::from(before) {
            return Ok(());
        }
        let problem = format!(
            "start {boot} of this node wrote it, but by boot.json there were only {before}: that file is of an older copy, or \
             this one is of another"
        );
        Err(damaged(&found.path, 0, &problem))
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// If something is damaged, with file and offset, or cannot be read.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, Failure> {
        if let Some(reader) = &mut self.restoring {
            let frame = reader.next()?;
            self.bytes_read = reader.bytes_read();
            if let Some(frame) = frame {
                return Ok(Some(Piece::Restore(frame)));
            }
            self.recovered.checkpoint = Some(reader.file().clone());
            self.restoring = None;
            return Ok(Some(Piece::Restored(RecordId(self.needed.0 - 1))));
        }
        loop {
            if self.reading.is_none() {
                let Some(candidate) = self.waiting.pop() else {
                    self.check_end()?;
                    return Ok(None);
                };
                self.begin_segment(&candidate)?;
            }
            let (segment, reader) = self.reading.as_mut().expect("one is being read");
            match reader.group(self.name)? {
                Some((head, group)) if head.sequence == self.recovered.sequence + 1 => {
                    let end = self.mark.end;
                    let checksum = format::group_checksum(&group);
                    if head.sequence == end.sequence && (checksum, head.last()) != (end.checksum, end.record) {
                        let at = reader.offset - group.len() as u64;
                        let problem = format!("group {} is not the one that the file '{END}' names", head.sequence);
                        return Err(damaged(&segment.path, at, &problem));
                    }
                    let records = Self::take_group(&mut self.recovered, segment, reader, &head, &group, self.needed)?;
                    self.recovered.checksum = checksum;
                    self.bytes_read += group.len() as u64;
                    if !records.is_empty() {
                        return Ok(Some(Piece::Records(records)));
                    }
                }
                _ => self.end_segment()?,
            }
        }
    }

    fn begin_segment(&mut self, candidate: &Candidate) -> Result<(), Failure> {
        if candidate.head.sequence != self.recovered.sequence + 1 {
            return Err(self.missing_before(candidate));
        }
        let segment = Segment { path: candidate.path.clone(), bytes: candidate.bytes, last: RecordId(0) };
        let mut reader = Reader::open(&*self.files, &candidate.path)?;
        reader.use_number = Some(candidate.head.use_number);
        self.reading = Some((segment, reader));
        Ok(())
    }

    /// Takes a group: the records of it that the checkpoint does not stand for.
    fn take_group(
        recovered: &mut Recovered,
        segment: &mut Segment,
        reader: &Reader,
        head: &GroupHead,
        group: &Bytes,
        needed: RecordId,
    ) -> Result<Vec<Record>, Failure> {
        let at = reader.offset - group.len() as u64;
        if head.first.0 != recovered.last.0 + 1 {
            let problem = format!("record {} follows record {}", head.first.0, recovered.last.0);
            return Err(damaged(&segment.path, at, &problem));
        }
        let mut records = Vec::with_capacity(head.records as usize);
        if format::read_records(group, head, &mut records).is_none() {
            return Err(damaged(&segment.path, at, "its records do not fill the group"));
        }
        (recovered.sequence, recovered.last) = (head.sequence, head.last());
        segment.last = recovered.last;
        records.retain(|record| record.id >= needed);
        Ok(records)
    }

    /// Nothing whole follows in this segment; if something does, further on, the segment is damaged here.
    fn end_segment(&mut self) -> Result<(), Failure> {
        let (segment, mut reader) = self.reading.take().expect("one was being read");
        let at = reader.offset;
        let torn = reader.torn(self.name)?;
        let sequence = self.recovered.sequence;
        if let Some(head) = &torn
            && (head.sequence, head.first.0) != (sequence + 1, self.recovered.last.0 + 1)
        {
            return Err(damaged(&segment.path, at, "the group here has a head that does not follow the one before"));
        }
        let use_number = reader.use_number;
        let behind = |head: &GroupHead| Some(head.use_number) == use_number && head.sequence > sequence;
        let behind = reader.whole_group_behind(at, self.name, behind)?;
        if let Some((offset, _)) = behind {
            return Err(damaged(&segment.path, at, &format!("no whole group is here, but one follows at {offset}")));
        }
        if let Some(head) = torn {
            tracing::warn!(
                file = %segment.path.display(),
                offset = at,
                bytes = head.group_bytes(),
                "the log's last write had not ended when this node went down: it is cut off, and nobody was told of it"
            );
        }
        self.bytes_read += segment.bytes - at;
        self.ended_at = at;
        self.recovered.live.push(segment);
        Ok(())
    }

    /// Nothing of the log may be left behind its end.
    fn check_end(&mut self) -> Result<(), Failure> {
        let last = self.recovered.sequence;
        if let Some((candidate, offset)) = self.broken.iter().find(|(candidate, _)| candidate.head.sequence > last) {
            return Err(broken_first(&candidate.path, *offset));
        }
        for (Candidate { path, bytes, .. }, _) in self.broken.drain(..) {
            self.recovered.free.push(Segment { path, bytes, last: RecordId(0) });
        }
        let position = self.recovered.checkpoint.as_ref().map_or(RecordId(0), |checkpoint| checkpoint.holds_from);
        if self.recovered.last < position {
            let path = &self.recovered.checkpoint.as_ref().expect("it says so").path;
            let problem = format!(
                "it shows effects of records up to {}, but the log ends with record {}",
                position.0, self.recovered.last.0
            );
            return Err(damaged(path, 0, &problem));
        }
        self.check_mark()
    }

    /// The log goes as far as it was written when that was last noted.
    fn check_mark(&self) -> Result<(), Failure> {
        let (noted, last, record) = (self.mark.end, self.recovered.sequence, self.recovered.last.0);
        let (path, at) = match self.recovered.live.last() {
            Some(segment) => (segment.path.as_path(), self.ended_at),
            None => (self.directory.as_path(), 0),
        };
        if last < noted.sequence {
            let problem = format!(
                "the log ends here with group {last} and record {record}, but by the file '{END}' it had been written up to group \
                 {} and record {}: what follows was damaged, or its segment is missing",
                noted.sequence, noted.record.0
            );
            return Err(damaged(path, at, &problem));
        }
        if self.ends_at_mark && last > noted.sequence {
            let problem = format!(
                "the log goes on to group {last} and record {record}, but the node had stopped well behind group {} and record {}, \
                 by boot.json and the file '{END}': these are of an older copy, or this one is of another",
                noted.sequence, noted.record.0
            );
            return Err(damaged(path, at, &problem));
        }
        Ok(())
    }

    fn missing_before(&self, candidate: &Candidate) -> Failure {
        let (from, to) = (self.recovered.sequence + 1, candidate.head.sequence);
        let broken = self.broken.iter().find(|(broken, _)| (from..to).contains(&broken.head.sequence));
        match (broken, self.recovered.live.last()) {
            (Some((broken, offset)), _) => broken_first(&broken.path, *offset),
            (None, Some(before)) => {
                let follows = candidate.path.display();
                let problem =
                    format!("group {from} is missing: no whole group is here, and group {to} follows in {follows}");
                damaged(&before.path, self.ended_at, &problem)
            }
            (None, None) => damaged(&candidate.path, 0, &format!("group {from} is missing before group {to}")),
        }
    }

    /// The end was reached: what was read is made durable, for what is built on it must not outlive it, and what is
    /// superfluous is removed.
    ///
    /// # Errors
    /// If it cannot be.
    pub(crate) fn finish(self) -> Result<Recovered, Failure> {
        // An earlier process may have ended between a file's last name and the sync of its directory. What is built on that
        // file from here on, and what is removed because of it, must not outlive its name.
        let synced = self.files.sync_directory(&self.directory);
        synced.map_err(|error| disk_failure(&self.directory, "syncing the directory", &error))?;
        for path in &self.superfluous {
            self.files.remove(path).map_err(|error| disk_failure(path, "removing it", &error))?;
        }
        for segment in &self.recovered.live {
            let synced = self.files.open(&segment.path, Open::Read).and_then(|file| file.sync());
            synced.map_err(|error| disk_failure(&segment.path, "syncing it", &error))?;
        }
        Ok(self.recovered)
    }
}

/// What is in a shard's directory.
#[derive(Debug, Default)]
struct Listed {
    /// Number, path and size, by number.
    segments: Vec<(u32, PathBuf, u64)>,
    /// The newest last.
    checkpoints: Vec<CheckpointFile>,
    /// Files that had not got their names yet.
    unfinished: Vec<PathBuf>,
}

fn list(files: &dyn Files, directory: &Path) -> Result<Listed, Failure> {
    let failed = |error: io::Error| disk_failure(directory, "listing it", &error);
    let mut listed = Listed::default();
    for (name, bytes) in files.list(directory).map_err(failed)? {
        let path = directory.join(&name);
        let (whole, unfinished) = name.strip_suffix(".new").map_or((name.as_str(), false), |name| (name, true));
        match LogFileName::of(whole) {
            Some(_) if unfinished => listed.unfinished.push(path),
            Some(LogFileName::End) => {}
            Some(LogFileName::Segment(number)) => listed.segments.push((number, path, bytes)),
            Some(LogFileName::Checkpoint(position)) => {
                listed.checkpoints.push(CheckpointFile { path, bytes, position, holds_from: RecordId(0) });
            }
            None => {
                let problem = format!("{}: no file of a log is called so: put it elsewhere", path.display());
                return Err(Failure::DataDirectory(problem));
            }
        }
    }
    listed.segments.sort();
    listed.checkpoints.sort_by_key(|checkpoint| checkpoint.position);
    Ok(listed)
}

/// The files of a log, by their names.
enum LogFileName {
    End,
    Segment(u32),
    Checkpoint(RecordId),
}

impl LogFileName {
    fn of(name: &str) -> Option<Self> {
        if name == END {
            return Some(Self::End);
        }
        // Only as it would be written: no other name has the same meaning.
        let number = name.strip_prefix("segment-").and_then(|number| number.parse::<u32>().ok());
        if let Some(number) = number.filter(|number| *number < u32::MAX && format!("segment-{number}") == name) {
            return Some(Self::Segment(number));
        }
        let position = name.strip_prefix("checkpoint-").and_then(|number| number.parse::<u64>().ok()).map(RecordId);
        position
            .filter(|position| CheckpointFile::path(Path::new(""), *position) == Path::new(name))
            .map(Self::Checkpoint)
    }
}

fn broken_first(path: &Path, follows: u64) -> Failure {
    damaged(path, 0, &format!("no whole group is here, but one follows at {follows}"))
}

/// Damage, where it is, and what to do.
pub(super) fn damaged(path: &Path, offset: u64, problem: &str) -> Failure {
    Failure::Damaged(format!(
        "{} is damaged at offset {offset}: {problem}. Nothing was changed. Bring the file back from a copy, or give this node \
         an empty data directory: it then comes back as one that has lost its disk (see docs/operations.md)",
        path.display()
    ))
}

/// Reads a file from front to back.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    path: PathBuf,
    bytes: u64,
    /// Where `buffer` begins.
    offset: u64,
    buffer: BytesMut,
    /// The only use of the file whose groups count.
    use_number: Option<u64>,
}

impl Reader {
    pub(super) fn open(files: &dyn Files, path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| disk_failure(path, "opening it", &error);
        let file = files.open(path, Open::Read).map_err(failed)?;
        let bytes = file.bytes().map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), bytes, offset: 0, buffer: BytesMut::new(), use_number: None })
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Has at least `wanted` bytes in the buffer, or all that are left; true if there are so many.
    pub(super) fn fill(&mut self, wanted: usize) -> Result<bool, Failure> {
        if self.buffer.len() < wanted {
            let have = self.buffer.len();
            let at = self.offset + have as u64;
            let left = self.bytes.saturating_sub(at);
            let more = ((wanted - have).max(READ_BYTES) as u64).min(left) as usize;
            self.buffer.resize(have + more, 0);
            let read = self.file.read_at(&mut self.buffer[have..], at);
            let doing = || format!("reading {more} bytes at {at}");
            read.map_err(|error| disk_failure(&self.path, &doing(), &error))?;
        }
        Ok(self.buffer.len() >= wanted)
    }

    /// Takes so many bytes, which are in the buffer.
    pub(super) fn take(&mut self, bytes: usize) -> Bytes {
        self.offset += bytes as u64;
        self.buffer.split_to(bytes).freeze()
    }

    /// The group at this place, if a whole one of this log is there.
    fn group(&mut self, name: LogName) -> Result<Option<(GroupHead, Bytes)>, Failure> {
        if !self.fill(BLOCK)? {
            return Ok(None);
        }
        let Some(head) = format::read_head(&self.buffer, name) else { return Ok(None) };
        if self.use_number.is_some_and(|wanted| wanted != head.use_number) || !self.fill(head.group_bytes())? {
            return Ok(None);
        }
        if !format::is_whole(&self.buffer, &head) {
            return Ok(None);
        }
        Ok(Some((head, self.take(head.group_bytes()))))
    }

    /// The head of a group whose write had not ended, if one had begun here.
    fn torn(&mut self, name: LogName) -> Result<Option<GroupHead>, Failure> {
        if !self.fill(BLOCK)? {
            return Ok(None);
        }
        let head = format::read_head(&self.buffer, name);
        Ok(head.filter(|head| Some(head.use_number) == self.use_number))
    }

    /// What the file begins with, if no log of this name has written it.
    fn foreign(&mut self, name: LogName) -> Result<Option<String>, Failure> {
        self.buffer.clear();
        self.offset = 0;
        Ok(if self.fill(BLOCK)? { format::not_of(&self.buffer, name) } else { None })
    }

    /// The first whole group at or behind `offset` that `counts`.
    fn whole_group_behind(
        &mut self,
        offset: u64,
        name: LogName,
        counts: impl Fn(&GroupHead) -> bool,
    ) -> Result<Option<(u64, GroupHead)>, Failure> {
        self.buffer.clear();
        self.offset = offset;
        while self.fill(BLOCK)? {
            if let Some(head) = format::read_head(&self.buffer, name).filter(&counts)
                && self.fill(head.group_bytes())?
                && format::is_whole(&self.buffer, &head)
            {
                return Ok(Some((self.offset, head)));
            }
            let _ = self.take(BLOCK);
        }
        Ok(None)
    }
}
