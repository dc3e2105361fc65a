//! Logs that are written by hand, cut, flipped and read back; and logs that are written by the writer.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement, timer::Timer};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    checkpoint::{CheckpointFile, Encoder},
    format::{BLOCK, GroupHead, record_bytes, write_group},
    host::HostFiles,
    *,
};
use crate::topology::NodeIndex;

const NAME: LogName = LogName { log: 77, shard: 0 };
const SEGMENT_BYTES: usize = 65_536;

fn spec(directory: &Path) -> LogSpec {
    let tuning = LogTuning {
        segment_bytes: SEGMENT_BYTES,
        group_bytes_max: 16_384,
        sync_interval_us: 1000,
        checkpoint_log_bytes: 4 * SEGMENT_BYTES as u64,
        ..LogTuning::default()
    };
    let (mode, access) = (Durability::Sync, Access::Direct);
    let (mark, ends_at_mark, mutant) = (EndMark::default(), false, None);
    LogSpec { directory: directory.to_owned(), name: NAME, boot: 1, mode, access, tuning, mutant, mark, ends_at_mark }
}

/// A record whose frame follows from its number.
fn record(id: u64, bytes: usize) -> Record {
    let frame: Vec<u8> = (0..bytes).map(|place| (id as usize * 31 + place) as u8).collect();
    Record { id: RecordId(id), from: NodeIndex((id % 3) as u8), frame: frame.into() }
}

/// What was read: the frames of the checkpoint, what it stands for, and the records.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    frames: Vec<Bytes>,
    restored: Option<u64>,
    records: Vec<Record>,
}

fn read(directory: &Path) -> Result<(Read, Recovered), Failure> {
    read_as(&spec(directory))
}

fn read_as(spec: &LogSpec) -> Result<(Read, Recovered), Failure> {
    let mut recovery = Recovery::begin(spec, Arc::new(HostFiles))?;
    let mut read = Read::default();
    while let Some(piece) = recovery.next()? {
        match piece {
            Piece::Restore(frame) => read.frames.push(frame),
            Piece::Restored(record) => read.restored = Some(record.0),
            Piece::Records(records) => read.records.extend(records),
        }
    }
    Ok((read, recovery.finish()?))
}

/// Segments that are written by hand.
struct Hand {
    directory: TempDir,
    sequence: u64,
    last: u64,
    uses: u64,
    /// Each group: its segment, its offset, its bytes, its last record.
    groups: Vec<(PathBuf, usize, usize, u64)>,
}

impl Hand {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), sequence: 0, last: 0, uses: 0, groups: Vec::new() }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.directory.path().join(format!("segment-{number}"))
    }

    /// Writes groups of records of these sizes over the front of a segment, and leaves what is behind them.
    fn segment(&mut self, number: u32, groups: &[&[usize]]) {
        let path = self.path(number);
        let mut bytes = fs::read(&path).unwrap_or_else(|_| vec![0; SEGMENT_BYTES]);
        self.uses += 1;
        let mut offset = 0;
        for sizes in groups {
            let records: Vec<Record> = sizes.iter().zip(self.last + 1..).map(|(size, id)| record(id, *size)).collect();
            self.sequence += 1;
            let head = GroupHead {
                use_number: self.uses,
                sequence: self.sequence,
                first: records[0].id,
                records: records.len() as u32,
                payload_bytes: records.iter().map(record_bytes).sum::<usize>() as u32,
                segment_bytes: bytes.len() as u64,
            };
            let group = head.group_bytes();
            write_group(&mut bytes[offset..offset + group], NAME, &head, records.iter());
            self.last = head.last().0;
            self.groups.push((path.clone(), offset, group, self.last));
            offset += group;
        }
        fs::write(path, bytes).unwrap();
    }

    fn read(&self) -> Result<Vec<Record>, Failure> {
        read(self.directory.path()).map(|(read, _)| read.records)
    }

    fn checkpoint(&self, position: u64, holds_from: u64, frames: &[&[u8]]) -> PathBuf {
        let path = CheckpointFile::path(self.directory.path(), RecordId(position));
        let mut bytes = Vec::new();
        let mut encoder = Encoder::begin(NAME, RecordId(position), &mut bytes);
        frames.iter().for_each(|frame| encoder.frame(frame, &mut bytes));
        encoder.end(RecordId(holds_from), &mut bytes);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn assert_records(records: &[Record], from: u64, to: u64) {
    assert_eq!(records.len() as u64, to + 1 - from, "{from} to {to}");
    for (found, id) in records.iter().zip(from..) {
        assert_eq!(found, &record(id, found.frame.len()));
    }
}

fn small() -> Hand {
    let mut hand = Hand::new();
    hand.segment(1, &[&[10, 20], &[5000], &[3]]);
    hand.segment(2, &[&[7], &[1, 2, 9000]]);
    hand
}

#[test]
fn what_was_written_is_read_in_order() {
    let hand = small();
    assert_records(&hand.read().unwrap(), 1, 8);
    let (_, recovered) = read(hand.directory.path()).unwrap();
    assert_eq!((recovered.last, recovered.sequence, recovered.next_file), (RecordId(8), 5, 3));
    assert_eq!(recovered.live.iter().map(|segment| segment.last.0).collect::<Vec<_>>(), [4, 8]);
    assert!(recovered.free.is_empty());
}

#[test]
fn nothing_but_the_last_group_can_be_lost_to_a_flipped_byte_and_then_it_is_cut() {
    let hand = small();
    for (place, (path, offset, bytes, _)) in hand.groups.iter().enumerate() {
        let before = fs::read(path).unwrap();
        let is_last = place + 1 == hand.groups.len();
        // Every byte of what counts; of a large frame's middle, some.
        for byte in (0..*bytes).filter(|byte| *byte < 200 || byte % 97 == 0) {
            let mut flipped = before.clone();
            flipped[offset + byte] ^= 1 << (byte % 8);
            fs::write(path, &flipped).unwrap();
            match hand.read() {
                Ok(records) if records.len() == 8 => {
                    let padding = before[offset + byte..offset + bytes].iter().all(|byte| *byte == 0);
                    assert!(padding, "byte {byte} of group {place} counts");
                    assert_records(&records, 1, 8);
                }
                Ok(records) => {
                    assert!(is_last, "byte {byte} of group {place}");
                    assert_records(&records, 1, 5);
                }
                Err(Failure::Damaged(said)) => {
                    // Its head is there in one piece or not at all: its numbers follow those before it.
                    let numbers = is_last && (24..40).contains(&byte);
                    assert!(!is_last || numbers, "byte {byte} of the last group: {said}");
                    assert!(said.contains(&format!("offset {offset}")), "{said}");
                    assert!(said.contains(path.to_str().unwrap()), "{said}");
                }
                Err(other) => panic!("{other}"),
            }
        }
        fs::write(path, before).unwrap();
    }
}

#[test]
fn a_file_that_was_cut_is_damaged_wherever_it_was() {
    let hand = small();
    for number in 1..=2 {
        let path = hand.path(number);
        let before = fs::read(&path).unwrap();
        for bytes in (0..SEGMENT_BYTES).step_by(1021).chain((0..SEGMENT_BYTES).step_by(BLOCK)) {
            fs::write(&path, &before[..bytes]).unwrap();
            let Err(Failure::Damaged(said)) = hand.read() else { panic!("{bytes} bytes of segment {number}") };
            assert!(said.contains("was cut") && said.contains(path.to_str().unwrap()), "{said}");
        }
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn a_write_that_had_not_ended_is_cut_wherever_it_stopped() {
    let mut hand = Hand::new();
    hand.segment(1, &[&[10], &[9000], &[20], &[6000]]);
    hand.segment(2, &[&[10], &[30]]);
    // Used again, with remains of the first use behind what is new.
    hand.segment(1, &[&[10], &[9000]]);
    let new = fs::read(hand.path(1)).unwrap();
    let (_, offset, bytes, _) = hand.groups.last().unwrap().clone();
    let mut older = Hand::new();
    older.segment(1, &[&[10], &[9000], &[20], &[6000]]);
    for old in [fs::read(older.path(1)).unwrap(), vec![0; SEGMENT_BYTES]] {
        // Sectors reach the disk in any order: every set of the six.
        for written in 0..1u32 << (bytes / 2048) {
            let mut torn = new.clone();
            torn[offset + bytes..].copy_from_slice(&old[offset + bytes..]);
            let mut whole = true;
            for part in 0..bytes / 2048 {
                if written & 1 << part == 0 {
                    let place = offset + part * 2048..offset + (part + 1) * 2048;
                    whole &= new[place.clone()] == old[place.clone()];
                    torn[place.clone()].copy_from_slice(&old[place]);
                }
            }
            fs::write(hand.path(1), torn).unwrap();
            // The first use of segment 1 is gone, and a checkpoint stands for it.
            hand.checkpoint(4, 4, &[]);
            assert_records(&hand.read().unwrap(), 5, if whole { 8 } else { 7 });
        }
    }
}

#[test]
fn a_first_write_to_a_segment_that_had_not_ended_leaves_it_free() {
    let mut hand = small();
    hand.segment(3, &[&[9000]]);
    let path = hand.path(3);
    let mut torn = fs::read(&path).unwrap();
    torn[5000] ^= 1;
    fs::write(&path, torn).unwrap();
    let (read, recovered) = read(hand.directory.path()).unwrap();
    assert_records(&read.records, 1, 8);
    assert_eq!(recovered.free.len(), 1);
    // The next boot goes on in another one; the torn one never counts again.
    hand.sequence -= 1;
    hand.last -= 1;
    hand.segment(4, &[&[10], &[10]]);
    assert_records(&hand.read().unwrap(), 1, 10);
}

#[test]
fn a_segment_that_is_missing_is_noticed() {
    let mut hand = small();
    hand.segment(3, &[&[10]]);
    for (number, said) in [(1, "nothing holds the records from 1 on"), (2, "group 4 is missing")] {
        let before = fs::read(hand.path(number)).unwrap();
        fs::remove_file(hand.path(number)).unwrap();
        let Err(Failure::Damaged(found)) = hand.read() else { panic!("segment {number} is missing") };
        assert!(found.contains(said), "{found}");
        fs::write(hand.path(number), before).unwrap();
    }
    for number in 1..=3 {
        fs::remove_file(hand.path(number)).unwrap();
    }
    assert!(matches!(hand.read(), Err(Failure::Damaged(said)) if said.contains("no segment")));
    fs::write(hand.directory.path().join("notes.txt"), "mine").unwrap();
    assert!(matches!(hand.read(), Err(Failure::DataDirectory(said)) if said.contains("notes.txt")));
}

/// The log that `hand` wrote, with a mark at its `groups`th group.
fn marked(hand: &Hand, groups: usize, ends_at_mark: bool) -> LogSpec {
    let (path, offset, _, last) = &hand.groups[groups - 1];
    let checksum = format::group_checksum(&fs::read(path).unwrap()[*offset..]);
    let mut spec = spec(hand.directory.path());
    spec.mark.end = LogEnd { sequence: groups as u64, checksum, record: RecordId(*last) };
    spec.ends_at_mark = ends_at_mark;
    spec
}

#[test]
fn a_log_that_ends_before_its_mark_is_damaged_wherever_it_was_hit() {
    let damaged = |spec: &LogSpec, words: &[&str]| match read_as(spec) {
        Err(Failure::Damaged(said)) => {
            words.iter().for_each(|word| assert!(said.contains(word), "no {word:?} in {said}"))
        }
        other => panic!("{other:?}"),
    };
    let hand = small();
    for groups in 1..=5 {
        assert_records(&read_as(&marked(&hand, groups, false)).unwrap().0.records, 1, 8);
        let read = read_as(&marked(&hand, groups, true));
        assert_eq!(read.is_ok(), groups == 5, "{groups}: {read:?}");
    }
    damaged(&marked(&hand, 4, true), &["segment-2", "goes on to group 5", "stopped well behind group 4", "older"]);
    let last = marked(&hand, 5, false);
    assert_eq!(read_as(&last).unwrap().1.end(), last.mark.end);
    for name in ["segment-2", "group 4 and record 5", "group 5 and record 8"] {
        // A bit of the last group; all of it; everything from some place on; the segment.
        let (path, offset, bytes, _) = hand.groups.last().unwrap();
        let before = fs::read(path).unwrap();
        for (from, to) in [(offset + 100, offset + 101), (*offset, offset + bytes), (*offset, before.len())] {
            let mut hit = before.clone();
            hit[from..to].iter_mut().for_each(|byte| *byte = if to == from + 1 { *byte ^ 1 } else { 0 });
            fs::write(path, hit).unwrap();
            damaged(&last, &[name]);
        }
        fs::write(path, before).unwrap();
    }
    let mut other = last.clone();
    other.mark.end.checksum ^= 1;
    damaged(&other, &["segment-2", "group 5 is not the one"]);
    fs::remove_file(hand.path(2)).unwrap();
    damaged(&last, &["segment-1", "group 3 and record 4", "its segment is missing"]);
    // Nothing but the checkpoint is left.
    hand.checkpoint(8, 8, &[b"all"]);
    fs::remove_file(hand.path(1)).unwrap();
    fs::write(hand.path(3), vec![0; SEGMENT_BYTES]).unwrap();
    damaged(&last, &["group 0 and record 8"]);
}

#[test]
fn what_no_log_of_this_name_has_written_is_never_taken_for_a_free_segment() {
    let hand = small();
    let (foreign, mut theirs) = (hand.path(3), fs::read(hand.path(1)).unwrap());
    // One group: that of the first of their segments.
    theirs[BLOCK..].fill(0);
    let damaged = |contents: &[u8], word: &str| {
        fs::write(&foreign, contents).unwrap();
        let Err(Failure::Damaged(said)) = hand.read() else { panic!("{word}") };
        assert!(said.contains(word) && said.contains("segment-3"), "{said}");
        assert_eq!(fs::read(&foreign).unwrap(), contents);
    };
    damaged(&[7; SEGMENT_BYTES], "no log has written");
    damaged(&[7; 100], "was cut");
    theirs[6] = 9;
    damaged(&theirs, "of shard 9 of log");
    theirs[4] = 1;
    damaged(&theirs, "has format 1");
    fs::remove_file(&foreign).unwrap();
    let (checkpoint, junk) = (hand.checkpoint(8, 8, &[]), CheckpointFile::path(hand.directory.path(), RecordId(2)));
    fs::write(&junk, vec![7; 500]).unwrap();
    assert!(matches!(hand.read(), Err(Failure::Damaged(said)) if said.contains(junk.to_str().unwrap())));
    assert!(junk.exists());
    [junk, checkpoint].iter().for_each(|path| fs::remove_file(path).unwrap());
    let names = ["segment-01", "segment-+1", "segment-4294967295", "checkpoint-1", "notes.new", "segment-1.bak"];
    for name in names {
        let path = hand.directory.path().join(name);
        fs::write(&path, vec![0; SEGMENT_BYTES]).unwrap();
        assert!(matches!(hand.read(), Err(Failure::DataDirectory(said)) if said.contains(name)), "{name}");
        fs::remove_file(path).unwrap();
    }
    // A segment of a start that boot.json does not know of.
    let mut spec = spec(hand.directory.path());
    spec.boot = 0;
    assert!(read_as(&spec).is_ok());
    let mut hand = Hand::new();
    hand.uses = 3 << 32;
    hand.segment(1, &[&[10]]);
    spec.directory = hand.directory.path().to_owned();
    for boot in 1..=5 {
        spec.boot = boot;
        match read_as(&spec) {
            Ok(_) => assert!(boot > 3),
            Err(failure) => assert!(boot <= 3 && failure.to_string().contains("start 3"), "{boot}: {failure}"),
        }
    }
}

#[test]
fn nothing_is_removed_before_all_of_a_log_was_read() {
    let mut hand = small();
    hand.segment(3, &[&[10]]);
    let (old, new) = (hand.checkpoint(2, 4, &[b"old"]), hand.checkpoint(8, 9, &[b"new"]));
    let unfinished = hand.directory.path().join("segment-4.new");
    fs::write(&unfinished, "half").unwrap();
    let whole = fs::read(&new).unwrap();
    fs::write(&new, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(hand.read(), Err(Failure::Damaged(_))));
    assert!(old.exists() && unfinished.exists());
    fs::write(&new, whole).unwrap();
    assert_records(&hand.read().unwrap(), 9, 9);
    assert!(!old.exists() && !unfinished.exists());
}

#[test]
fn records_that_a_checkpoint_stands_for_are_not_read_again() {
    let mut hand = small();
    hand.segment(3, &[&[10]]);
    for position in 0..=9 {
        let path = hand.checkpoint(position, 9, &[b"a", b"", b"c"]);
        let (read, recovered) = read(hand.directory.path()).unwrap();
        assert_eq!(read.frames, [&b"a"[..], b"", b"c"]);
        assert_eq!(read.restored, Some(position));
        assert_records(&read.records, position + 1, 9);
        assert_eq!(recovered.last, RecordId(9));
        assert_eq!(recovered.live.len() + recovered.free.len(), 3);
        fs::remove_file(path).unwrap();
    }
    let path = hand.checkpoint(3, 10, &[]);
    let Err(Failure::Damaged(said)) = hand.read() else { panic!("it shows record 10") };
    assert!(said.contains("records up to 10") && said.contains(path.to_str().unwrap()), "{said}");
}

#[test]
fn a_checkpoint_that_is_not_whole_is_damaged_wherever_it_is() {
    let hand = small();
    let path = hand.checkpoint(8, 8, &[b"one frame", &[7; 300]]);
    let before = fs::read(&path).unwrap();
    for bytes in 0..before.len() {
        fs::write(&path, &before[..bytes]).unwrap();
        assert!(matches!(hand.read(), Err(Failure::Damaged(_))), "{bytes} bytes");
        let mut flipped = before.clone();
        flipped[bytes] ^= 1 << (bytes % 8);
        fs::write(&path, flipped).unwrap();
        assert!(matches!(hand.read(), Err(Failure::Damaged(_))), "byte {bytes}");
    }
    fs::write(&path, [&before[..], b"more"].concat()).unwrap();
    assert!(matches!(hand.read(), Err(Failure::Damaged(_))));
}

#[test]
fn a_crash_between_any_two_steps_of_a_checkpoint_leaves_what_can_be_used() {
    let mut hand = small();
    hand.segment(3, &[&[10]]);
    let place = hand.directory.path().to_owned();
    let same = |hand: &Hand, what: &str| {
        let (read, _) = read(&place).unwrap_or_else(|failure| panic!("{what}: {failure}"));
        assert_records(&read.records, read.restored.unwrap_or(0) + 1, hand.last);
        let new: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!new.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{what}: {new:?}");
    };
    let old = hand.checkpoint(2, 4, &[b"old"]);
    same(&hand, "before");
    let new = hand.checkpoint(8, 9, &[b"new"]);
    let whole = fs::read(&new).unwrap();
    fs::remove_file(&new).unwrap();
    for bytes in 0..=whole.len() {
        fs::write(new.with_extension("new"), &whole[..bytes]).unwrap();
        same(&hand, "being written");
        assert!(old.exists());
    }
    fs::write(&new, &whole).unwrap();
    same(&hand, "named");
    assert!(!old.exists(), "a reader removes the older one");
    fs::remove_file(hand.path(2)).unwrap();
    same(&hand, "one segment removed");
    fs::remove_file(hand.path(1)).unwrap();
    same(&hand, "all segments removed");
    hand.segment(4, &[&[10]]);
    same(&hand, "going on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Anything may happen to the bytes of a log: what is read is a run of what was written, or damage is reported.
    #[test]
    fn whatever_happens_to_the_bytes_no_other_record_is_read(
        sizes in prop::collection::vec(prop::collection::vec(0usize..3000, 1..4), 1..12),
        changes in prop::collection::vec((1u32..4, 0usize..SEGMENT_BYTES, any::<u8>()), 0..4),
    ) {
        let mut hand = Hand::new();
        let groups: Vec<&[usize]> = sizes.iter().map(Vec::as_slice).collect();
        for (number, groups) in (1..).zip(groups.chunks(4)) {
            hand.segment(number, groups);
        }
        for (number, place, value) in changes {
            if let Ok(mut bytes) = fs::read(hand.path(number)) {
                bytes[place] = value;
                fs::write(hand.path(number), bytes).unwrap();
            }
        }
        if let Ok(records) = hand.read() {
            assert_records(&records, 1, records.len() as u64);
        }
    }
}

// ---- the writer ----------------------------------------------------------------------------------------------------

/// Runs in an executor of its own, as the shards do.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let builder = LocalExecutorBuilder::new(Placement::Unbound).io_memory(65_536);
    builder.spawn(|| async move { test().await }).unwrap().join().unwrap();
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    file::make_zeros(&HostFiles, &directory.path().join("segment-1"), SEGMENT_BYTES as u64).unwrap();
    directory
}

async fn start(spec: &LogSpec) -> (Read, Wal, Rc<RefCell<Vec<Failure>>>) {
    let mut recovery = Recovery::begin(spec, Arc::new(HostFiles)).unwrap();
    let mut read = Read::default();
    while let Some(piece) = recovery.next().unwrap() {
        match piece {
            Piece::Restore(frame) => read.frames.push(frame),
            Piece::Restored(record) => read.restored = Some(record.0),
            Piece::Records(records) => read.records.extend(records),
        }
    }
    let failures = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&failures);
    let (device, recovered) = (Rc::new(Host::start().unwrap()), recovery.finish().unwrap());
    let wal = Wal::start(spec.clone(), device, recovered, move |failure| told.borrow_mut().push(failure));
    (read, wal.await.unwrap(), failures)
}

async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        Timer::new(std::time::Duration::from_millis(1)).await;
    }
    panic!("{what}: not within 20 s");
}

fn each_way() -> impl Iterator<Item = (Durability, Access)> {
    [(Durability::Sync, Access::Direct), (Durability::Sync, Access::Buffered), (Durability::Async, Access::Buffered)]
        .into_iter()
}

#[test]
fn what_is_appended_becomes_durable_and_is_read_by_the_next_boot() {
    for (mode, access) in each_way() {
        run(move || async move {
            let directory = directory();
            let mut spec = LogSpec { mode, access, ..spec(directory.path()) };
            // The third is larger than a segment, and the fifth than a group.
            let sizes = [10, 5000, 200_000, 0, 30_000, 65_000];
            let mut last = 0;
            for boot in 1..=4 {
                spec.boot = boot;
                let (read, wal, failures) = start(&spec).await;
                assert_records(&read.records, 1, last);
                assert_eq!(wal.durable(), RecordId(last));
                for _ in 0..5 {
                    let mut records: Vec<Record> =
                        sizes.iter().zip(last + 1..).map(|(size, id)| record(id, *size)).collect();
                    last += sizes.len() as u64;
                    wal.append(&mut records);
                    assert!(records.is_empty());
                    let due = RecordId(last);
                    until("durable", || wal.durable() == due).await;
                }
                let mut records = vec![record(last + 1, 100)];
                last += 1;
                wal.append(&mut records);
                assert!(wal.close().await, "{:?}", failures.borrow());
            }
        });
    }
}

#[test]
fn the_end_of_a_log_that_grows_is_noted_and_a_later_start_asks_for_it() {
    for mode in [Durability::Sync, Durability::Async] {
        run(move || async move {
            let directory = directory();
            EndMark::create(directory.path(), NAME).unwrap();
            let mut spec = LogSpec { mode, access: Access::Buffered, ..spec(directory.path()) };
            let mut ends = Vec::new();
            for boot in 1..=3 {
                (spec.boot, spec.mark) = (boot, EndMark::read(directory.path(), NAME).unwrap());
                assert_eq!(spec.mark.boot, boot - 1);
                let (_, wal, _) = start(&spec).await;
                let keeper = Rc::new(EndKeeper::start(&spec, wal.end()).unwrap());
                assert_eq!(EndMark::read(directory.path(), NAME).unwrap().end, wal.end());
                let follows = glommio::spawn_local({
                    let (wal, keeper) = (wal.clone(), Rc::clone(&keeper));
                    async move { drop(keeper.follow(&wal).await) }
                });
                let last = wal.durable().0;
                wal.append(&mut (1..=4).map(|more| record(last + more, 5000)).collect());
                let noted = || EndMark::read(directory.path(), NAME).unwrap().end;
                until("noted", || noted().record == RecordId(last + 4)).await;
                assert_eq!(noted(), wal.end());
                follows.cancel().await;
                wal.append(&mut vec![record(last + 5, 10)]);
                let log = wal.clone();
                assert!(wal.close().await);
                keeper.note(log.end(), true).await.unwrap();
                assert_eq!(noted().record, RecordId(last + 5));
                ends.push(noted());
            }
            // The newest segment goes, as if it had never been.
            spec.mark = EndMark::read(directory.path(), NAME).unwrap();
            spec.boot = 4;
            let whole = read_as(&LogSpec { ends_at_mark: true, ..spec.clone() }).unwrap().1;
            assert_eq!(whole.end(), ends[2]);
            fs::remove_file(&whole.live.last().unwrap().path).unwrap();
            assert!(matches!(read_as(&spec), Err(Failure::Damaged(said)) if said.contains("its segment is missing")));
            spec.mark.end = ends[1];
            assert!(read_as(&spec).is_ok(), "the mark before asks for less");
        });
    }
}

/// What a shard does with a log that wants a checkpoint.
struct Shard {
    wal: Wal,
    cursor: Option<u64>,
    appended: u64,
    objects: u64,
    checkpoints: u64,
}

impl Shard {
    fn turn(&mut self) {
        if self.wal.checkpoint_room() == 0 {
            return;
        }
        match self.cursor {
            None => {
                let frame = Bytes::from(self.appended.to_le_bytes().to_vec());
                self.wal.begin_checkpoint(RecordId(self.appended), vec![frame]);
                self.cursor = Some(0);
                self.checkpoints += 1;
            }
            Some(cursor) if cursor < self.objects => {
                self.wal.checkpoint_objects(Bytes::from(vec![cursor as u8; 50_000]));
                self.cursor = Some(cursor + 1);
            }
            Some(_) => {
                self.wal.end_checkpoint(RecordId(self.appended));
                self.cursor = None;
            }
        }
    }
}

fn disk_bytes(directory: &Path) -> u64 {
    // One may go meanwhile.
    fs::read_dir(directory).unwrap().filter_map(|entry| entry.unwrap().metadata().ok()).map(|data| data.len()).sum()
}

#[test]
fn checkpoints_bound_the_log_and_what_they_free_is_used_again() {
    run(|| async {
        let directory = directory();
        let mut spec = spec(directory.path());
        let objects = 10;
        let (mut last, mut checkpoints) = (0, 0);
        for boot in 1..=3 {
            spec.boot = boot;
            let (read, wal, failures) = start(&spec).await;
            if let Some(restored) = read.restored {
                assert_eq!(read.frames.len() as u64, 1 + objects);
                assert_eq!(read.frames[0][..], restored.to_le_bytes());
            }
            let restored = read.restored.unwrap_or(0);
            assert_eq!(read.restored.is_some(), boot > 1);
            assert_records(&read.records, restored + 1, last);
            let mut shard = Shard { wal: wal.clone(), cursor: None, appended: last, objects, checkpoints: 0 };
            let mut recent = VecDeque::new();
            for _ in 0..600 {
                last += 1;
                wal.append(&mut vec![record(last, 6000)]);
                shard.appended = last;
                let due = RecordId(last);
                while wal.durable() < due {
                    shard.turn();
                    Timer::new(std::time::Duration::from_micros(20)).await;
                }
                recent.push_back(disk_bytes(directory.path()));
            }
            checkpoints += shard.checkpoints;
            // Docs/operations.md: two checkpoints more than there is, twice the log that asks for one, and some segments.
            let (checkpoint, due) =
                (objects * 50_004 + 200, spec.tuning.checkpoint_log_bytes.max(objects * 50_004 + 200));
            let bound = 3 * checkpoint + 2 * due + (SPARE_SEGMENTS as u64 + 3) * SEGMENT_BYTES as u64;
            let most = recent.into_iter().max().unwrap();
            assert!(most <= bound, "{most} bytes, more than {bound}");
            drop(shard);
            assert!(wal.close().await, "{:?}", failures.borrow());
        }
        assert!(checkpoints >= 9, "{checkpoints}");
    });
}

#[test]
fn an_error_ends_the_log_and_nothing_is_durable_after_it() {
    run(|| async {
        let directory = directory();
        let (_, wal, failures) = start(&spec(directory.path())).await;
        wal.append(&mut vec![record(1, 100)]);
        until("durable", || wal.durable() == RecordId(1)).await;
        // No further segment can be made.
        fs::remove_dir_all(directory.path()).unwrap();
        for id in 2..20 {
            wal.append(&mut vec![record(id, 16_000)]);
            Timer::new(std::time::Duration::from_millis(2)).await;
        }
        until("the failure", || !failures.borrow().is_empty()).await;
        let durable = wal.durable();
        assert!(durable < RecordId(19));
        wal.append(&mut vec![record(20, 100)]);
        Timer::new(std::time::Duration::from_millis(20)).await;
        assert_eq!(wal.durable(), durable);
        assert!(!wal.close().await);
        let failures = failures.borrow();
        assert_eq!(failures.len(), 1);
        assert!(matches!(&failures[0], Failure::Disk(said) if said.contains("segment-")), "{failures:?}");
    });
}

#[test]
#[ignore = "prints figures, in a directory below $WAL_DIRECTORY or the system's: --release -- --ignored --nocapture"]
fn group_commits_per_second() {
    let place = std::env::var_os("WAL_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    for (mode, access) in each_way() {
        for (in_flight, bytes) in [(1, 100), (4, 100), (16, 100), (64, 100), (256, 100), (1, 65_536), (16, 65_536)] {
            let place = place.clone();
            run(move || async move {
                let directory = tempfile::tempdir_in(place).unwrap();
                let tuning = LogTuning { checkpoint_log_bytes: u64::MAX, ..LogTuning::default() };
                file::make_zeros(&HostFiles, &directory.path().join("segment-1"), tuning.segment_bytes as u64).unwrap();
                let spec = LogSpec { mode, access, tuning, ..spec(directory.path()) };
                let (_, wal, _) = start(&spec).await;
                let wake = Rc::new(Notify::default());
                let woken = Rc::clone(&wake);
                wal.set_wake(move || woken.notify());
                let sample = record(1, bytes).frame;
                let (began, mut last, mut wakes) = (std::time::Instant::now(), 0, 0u64);
                let mut records = Vec::new();
                while began.elapsed().as_secs_f32() < 1.0 {
                    while last < wal.durable().0 + in_flight {
                        last += 1;
                        records.push(Record { id: RecordId(last), from: NodeIndex(0), frame: sample.clone() });
                    }
                    wal.append(&mut records);
                    wake.notified().await;
                    wakes += 1;
                }
                let (seconds, durable) = (began.elapsed().as_secs_f64(), wal.durable().0);
                let rate = |count: u64| (count as f64 / seconds) as u64;
                println!(
                    "{mode} {}: {in_flight:>3} records of {bytes} bytes in flight: {} records/s, {} groups/s, {} us each",
                    access.name(),
                    rate(durable),
                    rate(wakes),
                    (seconds * 1e6 / wakes as f64) as u64
                );
                assert!(wal.close().await);
            });
        }
    }
}
