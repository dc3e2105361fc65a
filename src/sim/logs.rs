//! Logs as they are shipped, each on a simulated block device, without a cluster.
//!
//! A run is one log over many boots: records of all sizes, checkpoints that show what has happened while they were written,
//! and a device that is slow, hangs, fills, tears what it was writing, forgets what was not synced, flips bits, and is put
//! back to an older state. After each end the log is read by the shipped recovery, and must have:
//!
//! - every record that was reported durable, as it was, in order, and nothing that was not appended;
//! - a checkpoint that shows nothing of a record that is not there.
//!
//! Damage may be refused by name, and only where a bit was flipped; a flipped bit costs at most the last group.

use std::{cell::RefCell, cmp::Ordering, path::PathBuf, rc::Rc};

use bytes::Bytes;

use super::{
    block::{BlockDevice, End},
    machine::{Pace, SimMachine},
    random::{Purpose, Random},
};
use crate::{
    failure::Failure,
    mutant::Mutant,
    protocol::{Record, RecordId},
    topology::NodeIndex,
    tuning::{Durability, LogTuning},
    wal::{Access, Device, EndMark, LogName, LogSpec, Piece, Recovered, Recovery, Wal, make_zeros},
};

/// Bugs of a log that can be planted, which these runs have to find.
pub const MUTANTS: &[Mutant] = &[
    Mutant::DurableBeforeWritten,
    Mutant::CheckpointUnawaited,
    Mutant::CheckpointUnsynced,
    Mutant::CheckpointNameUnsynced,
    Mutant::SegmentsFreedEarly,
    Mutant::UsesCountedAnew,
];

const SEGMENT_BYTES: usize = 65_536;

/// Which run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// A bug that is planted.
    pub mutant: Option<Mutant>,
    /// The power fails after so many calls of the first boot.
    pub cut_after: Option<u64>,
}

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Starts of the log.
    pub boots: u64,
    /// Records appended.
    pub records: u64,
    /// Checkpoints that were read back.
    pub checkpoints: u64,
    /// Logs that were refused as damaged, after a bit was flipped.
    pub damaged: u64,
    /// Times that the device was full.
    pub full: u64,
    /// Times that it was put back to an older state.
    pub older: u64,
    /// Calls on files in the first boot.
    pub calls: u64,
}

impl Report {
    /// Adds what another run has seen.
    pub fn add(&mut self, other: &Self) {
        self.boots += other.boots;
        self.records += other.records;
        self.checkpoints += other.checkpoints;
        self.damaged += other.damaged;
        self.full += other.full;
        self.older += other.older;
        self.calls += other.calls;
    }
}

/// Runs a log.
///
/// # Errors
/// What must not happen.
pub fn run(options: &Options) -> Result<Report, String> {
    let mut run = Run::new(*options);
    let boots = if options.cut_after.is_some() { 2 } else { run.random.range(2, 8) };
    for _ in 0..boots {
        let boot = run.report.boots + 1;
        run.boot().map_err(|wrong| format!("log seed {}, boot {boot}: {wrong}", options.seed))?;
    }
    Ok(run.report)
}

/// What was appended and reported.
#[derive(Clone, Default)]
struct Model {
    records: Vec<Record>,
    /// By number of records: what they amount to.
    sums: Vec<u64>,
    /// The last record that was reported durable, and the one that was before that report.
    reported: u64,
    before: u64,
}

impl Model {
    fn last(&self) -> u64 {
        self.records.len() as u64
    }

    fn sum(&self, records: u64) -> u64 {
        records.checked_sub(1).map_or(0, |last| self.sums[last as usize])
    }

    fn append(&mut self, from: NodeIndex, frame: Bytes) -> Record {
        let sum = (self.sum(self.last()).rotate_left(9) ^ u64::from(crc32c::crc32c(&frame))).wrapping_mul(0x9e37_79b9);
        let record = Record { id: RecordId(self.last() + 1), from, frame };
        self.sums.push(sum);
        self.records.push(record.clone());
        record
    }

    fn report(&mut self, durable: u64) -> Result<(), String> {
        if durable < self.reported || durable > self.last() {
            let (before, last) = (self.reported, self.last());
            return Err(format!("record {durable} is reported durable, after {before}, of {last}"));
        }
        if durable > self.reported {
            (self.before, self.reported) = (self.reported, durable);
        }
        Ok(())
    }

    /// A start has read the log up to this record: what is behind it never was.
    fn cut(&mut self, last: u64) {
        self.records.truncate(last as usize);
        self.sums.truncate(last as usize);
        self.before = match last.cmp(&self.reported) {
            // The write that was under way had got through: it is the last group now.
            Ordering::Greater => self.reported,
            Ordering::Equal => self.before,
            // The last group is lost, and where the one before it began was never reported.
            Ordering::Less => 0,
        };
        self.reported = last;
    }
}

/// What a shard does with a log that wants a checkpoint.
struct Checkpointing {
    objects_left: u64,
}

struct Run {
    options: Options,
    random: Random,
    spec: LogSpec,
    device: BlockDevice,
    model: Model,
    older: Option<(BlockDevice, Model)>,
    now: u64,
    usual_us: u64,
    /// A bit was flipped since the log was read.
    flipped: Option<(String, u64)>,
    is_full: bool,
    checkpointing: Option<Checkpointing>,
    report: Report,
}

/// A log that has been started.
struct Started {
    wal: Wal,
    failures: Rc<RefCell<Vec<Failure>>>,
}

impl Run {
    fn new(options: Options) -> Self {
        let mut random = Random::new(options.seed, Purpose::Log);
        let tuning = LogTuning {
            segment_bytes: SEGMENT_BYTES,
            group_bytes_max: *random.pick(&[4096, 16_384, SEGMENT_BYTES]),
            sync_interval_us: 1000,
            checkpoint_log_bytes: *random.pick(&[1, 2, 4]) * SEGMENT_BYTES as u64,
            ..LogTuning::default()
        };
        let spec = LogSpec {
            directory: PathBuf::from("/shard-0"),
            name: LogName { log: random.any(), shard: 0 },
            boot: 0,
            mode: if random.permille(150) { Durability::Async } else { Durability::Sync },
            access: Access::Direct,
            tuning,
            mutant: options.mutant,
            mark: EndMark::default(),
            ends_at_mark: false,
        };
        let usual_us = *random.pick(&[0, 100, 1000]);
        let mut run = Self {
            options,
            random,
            spec,
            device: BlockDevice::default(),
            model: Model::default(),
            older: None,
            now: 0,
            usual_us,
            flipped: None,
            is_full: false,
            checkpointing: None,
            report: Report::default(),
        };
        run.begin_anew();
        run
    }

    /// Another device, with an empty log on it.
    fn begin_anew(&mut self) {
        (self.device, self.model, self.older) = (BlockDevice::default(), Model::default(), None);
        self.spec.name.log = self.random.any();
        self.spec.boot = 0;
        let first = self.spec.directory.join("segment-1");
        make_zeros(&self.device, &first, SEGMENT_BYTES as u64).expect("there is room on an empty device");
    }

    fn is_cut(&self) -> bool {
        self.options.cut_after.is_some() && self.report.boots == 1
    }

    fn boot(&mut self) -> Result<(), String> {
        self.report.boots += 1;
        self.spec.boot += 1;
        if self.is_cut() {
            self.device.set_calls_left(self.options.cut_after);
        }
        let pace = Pace {
            random: Random::new(self.random.any(), Purpose::Disk),
            usual_us: self.usual_us,
            has_heavy_tails: self.random.permille(300),
        };
        let machine = SimMachine::new(self.device.clone(), pace, self.now);
        match self.start(&machine) {
            Ok(Some(started)) => {
                let worked = self.work(&machine, &started);
                let ended = worked.and_then(|()| self.close(&machine, &started));
                self.end(machine, started);
                ended?;
            }
            Ok(None) => self.begin_anew(),
            // A device that is full, or without power, lets nothing begin.
            Err(Failure::Disk(_)) if self.is_full || self.is_cut() => self.lose_power(machine),
            Err(failure) => {
                return Err(format!("the log does not start: {failure}; a bit flipped: {:?}", self.flipped));
            }
        }
        self.device.set_capacity(u64::MAX);
        self.is_full = false;
        if self.report.boots == 1 {
            self.report.calls = self.device.calls();
        }
        self.damage();
        Ok(())
    }

    /// Reads the log and opens it; `None` if it is damaged and may be.
    fn start(&mut self, machine: &SimMachine) -> Result<Option<Started>, Failure> {
        let recovered = match self.recover(machine) {
            Ok(recovered) => recovered,
            Err(Failure::Damaged(_)) if self.flipped.is_some() => {
                self.report.damaged += 1;
                self.flipped = None;
                return Ok(None);
            }
            Err(failure) => return Err(failure),
        };
        self.flipped = None;
        let failures = Rc::new(RefCell::new(Vec::new()));
        let told = Rc::clone(&failures);
        let device = Rc::new(machine.clone());
        let fail = move |failure| told.borrow_mut().push(failure);
        let wal = machine.wait_for(Wal::start(self.spec.clone(), device, recovered, fail))?;
        Ok(Some(Started { wal, failures }))
    }

    fn recover(&mut self, machine: &SimMachine) -> Result<Recovered, Failure> {
        let mut recovery = Recovery::begin(&self.spec, machine.files())?;
        let (mut frames, mut position, mut records) = (Vec::new(), 0, Vec::new());
        while let Some(piece) = recovery.next()? {
            match piece {
                Piece::Restore(frame) => frames.push(frame),
                Piece::Restored(record) => position = record.0,
                Piece::Records(read) => records.extend(read),
            }
        }
        let recovered = recovery.finish()?;
        self.report.checkpoints += u64::from(!frames.is_empty());
        let last = self.check(position, &frames, &records).map_err(Failure::Bug)?;
        self.model.cut(last);
        Ok(recovered)
    }

    /// Compares what was read with what was appended; the last record.
    fn check(&self, position: u64, frames: &[Bytes], records: &[Record]) -> Result<u64, String> {
        let model = &self.model;
        let last = position + records.len() as u64;
        let least = if self.flipped.is_some() { model.before } else { model.reported };
        if last < least || last > model.last() {
            let appended = model.last();
            return Err(format!("the log ends with record {last}; {least} was reported durable, {appended} appended"));
        }
        for (record, id) in records.iter().zip(position..) {
            if *record != model.records[id as usize] {
                return Err(format!("record {} is not what was appended as {}", record.id.0, id + 1));
            }
        }
        for (place, frame) in frames.iter().enumerate() {
            let number = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("eight bytes"));
            let (shown, sum) = (number(0), number(8));
            if (place == 0 && shown != position) || shown < position || shown > last || model.sum(shown) != sum {
                return Err(format!("the checkpoint of {position} shows record {shown}, the log ends with {last}"));
            }
        }
        Ok(last)
    }

    /// Appends, writes checkpoints, and has things happen to the device.
    fn work(&mut self, machine: &SimMachine, started: &Started) -> Result<(), String> {
        self.checkpointing = None;
        for _ in 0..self.random.range(3, 120) {
            if self.random.permille(600) {
                self.append(&started.wal);
            }
            self.turn(&started.wal);
            match self.random.below(1000) {
                0..20 if !self.is_cut() => self.fill(),
                20..35 => self.hang(machine, started)?,
                35..50 if !self.is_cut() => self.older = Some((self.device.copy(), self.model.clone())),
                50..70 => machine.set_pace(20 * self.usual_us, true),
                70..90 => machine.set_pace(self.usual_us, false),
                _ => {}
            }
            self.advance(machine, started, 3 * self.usual_us + 2)?;
            if !started.failures.borrow().is_empty() {
                return self.failed(machine, started);
            }
        }
        Ok(())
    }

    fn advance(&mut self, machine: &SimMachine, started: &Started, most_us: u64) -> Result<(), String> {
        let later = self.now + self.random.below(most_us);
        let due = machine.next_due().filter(|due| *due < self.now + 100_000 && self.random.permille(200));
        self.now = due.unwrap_or(later);
        machine.advance(self.now);
        self.model.report(started.wal.durable().0)
    }

    fn append(&mut self, wal: &Wal) {
        let count = self.random.range(1, 5);
        let mut records = Vec::new();
        for _ in 0..count {
            let bytes = match self.random.below(100) {
                0 => self.random.below(3 * SEGMENT_BYTES as u64),
                1..15 => self.random.below(9000),
                _ => self.random.below(600),
            };
            let salt = self.random.any();
            let frame: Vec<u8> = (0..bytes).map(|at| (salt.rotate_left(at as u32) ^ at) as u8).collect();
            records.push(self.model.append(NodeIndex((salt % 5) as u8), frame.into()));
        }
        self.report.records += count;
        wal.append(&mut records);
    }

    /// Gives the log a part of a checkpoint, if it takes one.
    fn turn(&mut self, wal: &Wal) {
        if wal.checkpoint_room() == 0 {
            return;
        }
        let last = self.model.last();
        let shows = [last.to_le_bytes(), self.model.sum(last).to_le_bytes()].concat();
        match &mut self.checkpointing {
            None => {
                wal.begin_checkpoint(RecordId(last), vec![shows.into()]);
                self.checkpointing = Some(Checkpointing { objects_left: self.random.below(6) });
            }
            Some(checkpointing) if checkpointing.objects_left > 0 => {
                checkpointing.objects_left -= 1;
                let padding = vec![7; self.random.below(90_000) as usize];
                wal.checkpoint_objects([shows, padding].concat().into());
            }
            Some(_) => {
                wal.end_checkpoint(RecordId(last));
                self.checkpointing = None;
            }
        }
    }

    /// There will soon be no more room.
    fn fill(&mut self) {
        self.device.set_capacity(self.device.used_bytes() + self.random.below(2 * SEGMENT_BYTES as u64));
        self.is_full = true;
    }

    /// The device hangs for a while: nothing becomes durable; then everything does.
    fn hang(&mut self, machine: &SimMachine, started: &Started) -> Result<(), String> {
        machine.hang_until(self.now + 1_000_000);
        let before = started.wal.durable();
        for _ in 0..self.random.range(1, 20) {
            self.append(&started.wal);
            self.turn(&started.wal);
            self.advance(machine, started, 40_000)?;
        }
        if started.wal.durable() != before {
            return Err("something became durable while the device hung".to_owned());
        }
        self.now += 1_000_000;
        for _ in 0..10_000 {
            self.turn(&started.wal);
            self.advance(machine, started, 3 * self.usual_us + 2)?;
            if started.wal.durable().0 == self.model.last() || !started.failures.borrow().is_empty() {
                return Ok(());
            }
        }
        Err("the log does not go on though its device does".to_owned())
    }

    /// The log has failed: it may, and nothing is durable from here on.
    fn failed(&mut self, machine: &SimMachine, started: &Started) -> Result<(), String> {
        let failures = started.failures.borrow().clone();
        match &failures[..] {
            [Failure::Disk(_)] if self.is_full || self.is_cut() => {}
            other => return Err(format!("the log has failed: {other:?}")),
        }
        self.report.full += u64::from(self.is_full);
        let durable = started.wal.durable();
        self.append(&started.wal);
        self.now += 1_000_000;
        machine.advance(self.now);
        if started.wal.durable() != durable {
            return Err("something became durable after the log had failed".to_owned());
        }
        Ok(())
    }

    /// Sometimes the log is closed before its process ends.
    fn close(&mut self, machine: &SimMachine, started: &Started) -> Result<(), String> {
        if self.is_cut() || self.random.permille(800) {
            return Ok(());
        }
        machine.hang_until(0);
        let well = machine.wait_for(started.wal.clone().close());
        if well != started.failures.borrow().is_empty() || (!well && !self.is_full) {
            return Err(format!("closing the log gives {well}: {:?}", started.failures.borrow()));
        }
        if well {
            self.model.report(self.model.last())?;
        }
        Ok(())
    }

    fn end(&mut self, machine: SimMachine, started: Started) {
        drop(started);
        if self.spec.mode == Durability::Async {
            // What a power cut leaves of such a log is given up, and never read.
            machine.end(End::Process, &mut self.random);
        } else {
            self.lose_power(machine);
        }
    }

    fn lose_power(&mut self, machine: SimMachine) {
        let end = *self.random.pick(&[End::Process, End::LosesUnsynced, End::KeepsSome, End::KeepsSome]);
        let end = if self.spec.mode == Durability::Async { End::Process } else { end };
        machine.end(end, &mut self.random);
    }

    /// Between two boots something may happen to the device.
    fn damage(&mut self) {
        if self.is_cut() {
            return;
        }
        match self.random.below(100) {
            0..10 => self.flipped = self.device.flip(&mut self.random),
            10..20 => {
                if let Some((device, model)) = self.older.take() {
                    (self.device, self.model) = (device, model);
                    self.report.older += 1;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: u64 = 600;

    #[test]
    fn whatever_a_device_does_what_was_durable_is_read_and_nothing_else() {
        let mut total = Report::default();
        for seed in 1..=SEEDS {
            let report = run(&Options { seed, ..Options::default() }).unwrap_or_else(|wrong| panic!("{wrong}"));
            total.add(&report);
        }
        let rare = [total.checkpoints, total.damaged, total.full, total.older];
        assert!(rare.iter().all(|count| *count > SEEDS / 60), "something hardly happens: {total:?}");
    }

    #[test]
    fn the_power_may_fail_after_any_call() {
        for seed in 1..=12 {
            let calls = run(&Options { seed, ..Options::default() }).unwrap().calls;
            for cut_after in 0..=calls {
                let options = Options { seed, cut_after: Some(cut_after), mutant: None };
                run(&options).unwrap_or_else(|wrong| panic!("cut after {cut_after} of {calls}: {wrong}"));
            }
        }
    }
}
