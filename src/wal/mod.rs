//! The write-ahead log of a shard, and the data directory that it is in.
//!
//! ```text
//! DIR/LOCK, identity.json, boot.json        whose directory it is; how often it was started (`dir`); in two `copies`
//! DIR/shard-0/segment-1, segment-2, …       groups of records (`format`), in files that are used again and again
//! DIR/shard-0/checkpoint-…                  everything up to a record (`checkpoint`)
//! DIR/shard-0/end                           how far the log has been written (`end`)
//! ```
//! **Writing.** The shard hands records in and goes on. One task writes ([`writer`]): what has come in is copied once into a
//! buffer, a *group*, and written at once, by a thread that waits for the disk ([`disk`]); what comes meanwhile is the next
//! group. Segments have their size and are full of zeros before they are used, so that a write changes no metadata and costs
//! one trip to the disk. When a checkpoint has made a segment superfluous, it is used again, with a higher use number in
//! its groups.
//!
//! **Durable** is, in mode `sync`, what was written with `O_DSYNC`, and in mode `async` what the operating system has taken.
//! After the first error nothing is, ever: the node ends.
//!
//! **Reading** ([`recovery`]) goes through the newest checkpoint and every group behind it, and refuses to go on if something
//! is missing.
//!
//! Files, writes, tasks and time are those of a [`device`]: the machine's in a replica ([`host`]), the simulator's in a
//! simulation.
//!
//! The reasons are in `docs/decisions/0012-the-log-is-groups-in-recycled-segments.md`.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    task::Waker,
};

use bytes::Bytes;

use crate::{
    failure::Failure,
    mutant::Mutant,
    notify::Notify,
    protocol::{Record, RecordId},
    tuning::{Durability, LogTuning},
};

mod checkpoint;
mod copies;
pub(crate) mod device;
mod dir;
mod disk;
mod end;
mod file;
mod format;
mod host;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use device::Device;
pub(crate) use dir::{DataDir, Identity, durable_state};
pub(crate) use end::{EndKeeper, EndMark, LogEnd};
pub(crate) use file::Access;
#[cfg(feature = "sim")]
pub(crate) use file::make_zeros;
pub(crate) use format::LogName;
pub(crate) use host::Host;
pub(crate) use recovery::{Piece, Recovered, Recovery};

use checkpoint::CheckpointFile;
use device::{File, Later};
use recovery::Segment;
use writer::Writer;

/// So many segments that hold nothing are kept to be used again.
const SPARE_SEGMENTS: usize = 4;

/// Where a shard's log is, and how it is written.
#[derive(Clone, Debug)]
pub(crate) struct LogSpec {
    pub(crate) directory: PathBuf,
    pub(crate) name: LogName,
    /// The node's boot: uses of segments have numbers above those of all earlier boots.
    pub(crate) boot: u32,
    pub(crate) mode: Durability,
    pub(crate) access: Access,
    pub(crate) tuning: LogTuning,
    /// A bug that is planted.
    pub(crate) mutant: Option<Mutant>,
    /// How far the log goes at least.
    pub(crate) mark: EndMark,
    /// Whether it ends there: the node stopped well.
    pub(crate) ends_at_mark: bool,
}

/// A log that is being written. Clones are the same log.
#[derive(Clone)]
pub(crate) struct Wal(Rc<Shared>);

/// What the shard and the tasks of its log share.
struct Shared {
    spec: LogSpec,
    device: Rc<dyn Device>,
    state: RefCell<State>,
    /// The checkpoint that is being written.
    checkpoint: RefCell<Option<checkpoint::Open>>,
    tasks: RefCell<Vec<Later<'static, ()>>>,
    /// Writes the checkpoint, or has written the last one.
    checkpoint_task: RefCell<Option<Later<'static, ()>>>,
    /// Wakes the writer: there are records, the checkpoint has got on, or the log is being closed.
    work: Notify,
    /// Wakes the task that writes the checkpoint.
    checkpoint_work: Notify,
    /// Wakes the task that syncs in mode `async`.
    sync_work: Notify,
    /// Wakes the shard.
    wake: RefCell<Option<Box<dyn Fn()>>>,
    /// Ends the node.
    fail: Box<dyn Fn(Failure)>,
    closing: Cell<bool>,
    failed: Cell<bool>,
}

#[derive(Debug)]
struct State {
    pending: VecDeque<Record>,
    /// Bytes of records that were handed in and are not durable: the pending ones, and those of the group under way.
    pending_bytes: usize,
    durable: RecordId,
    /// The group that `durable` is the last record of.
    end: LogEnd,
    /// Segments that are written no more and hold what no checkpoint stands for, the oldest first.
    live: VecDeque<Segment>,
    /// Bytes of groups in the segment that is being written.
    current_bytes: u64,
    free: Vec<Segment>,
    next_file: u32,
    checkpoint: Option<CheckpointFile>,
    /// In mode `async`: files that were written to since they were synced.
    unsynced: Vec<(File, PathBuf)>,
}

impl State {
    fn note_unsynced(&mut self, file: &File, path: &Path) {
        if self.unsynced.last().is_none_or(|(last, _)| !Arc::ptr_eq(last, file)) {
            self.unsynced.push((Arc::clone(file), path.to_owned()));
        }
    }

    /// Frees segments that a checkpoint of this position stands for.
    fn free_up_to(&mut self, position: RecordId) {
        // The last group stays, for its number.
        let keep = usize::from(self.current_bytes == 0);
        while self.live.len() > keep && self.live[0].last <= position {
            let freed = self.live.pop_front().expect("there is one");
            self.free.push(Segment { last: RecordId(0), ..freed });
        }
    }

    /// What the log has grown by since the last checkpoint: all of each segment that no more will be written to.
    fn log_bytes(&self) -> u64 {
        self.live.iter().map(|segment| segment.bytes).sum::<u64>() + self.current_bytes
    }

    /// Whether a checkpoint is due. One that stands for every record there is would be the same again.
    fn is_checkpoint_due(&self, tuning: &LogTuning) -> bool {
        let last = self.checkpoint.as_ref().map_or(RecordId(0), |checkpoint| checkpoint.position);
        self.durable > last && self.log_bytes() > self.checkpoint_due_bytes(tuning)
    }

    /// When it has grown by more than this, a checkpoint is due.
    fn checkpoint_due_bytes(&self, tuning: &LogTuning) -> u64 {
        let last = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.bytes);
        tuning.checkpoint_log_bytes.max(last)
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("spec", &self.0.spec).field("state", &self.0.state).finish_non_exhaustive()
    }
}

impl Wal {
    /// Goes on behind what was recovered. `fail` is called at most once, with the first error.
    ///
    /// # Errors
    /// If no segment can be made ready.
    pub(crate) async fn start(
        spec: LogSpec,
        device: Rc<dyn Device>,
        recovered: Recovered,
        fail: impl Fn(Failure) + 'static,
    ) -> Result<Self, Failure> {
        let end = recovered.end();
        let Recovered { last, sequence, live, free, next_file, checkpoint, .. } = recovered;
        let state = State {
            pending: VecDeque::new(),
            pending_bytes: 0,
            durable: last,
            end,
            live: live.into(),
            current_bytes: 0,
            free,
            next_file,
            checkpoint,
            unsynced: Vec::new(),
        };
        let shared = Rc::new(Shared {
            device,
            state: RefCell::new(state),
            checkpoint: RefCell::new(None),
            tasks: RefCell::default(),
            checkpoint_task: RefCell::default(),
            work: Notify::default(),
            checkpoint_work: Notify::default(),
            sync_work: Notify::default(),
            wake: RefCell::new(None),
            fail: Box::new(fail),
            closing: Cell::new(false),
            failed: Cell::new(false),
            spec,
        });
        let writer = Writer::start(Rc::clone(&shared), sequence).await?;
        shared.trim_free().await?;
        shared.spawn(|shared| async move { writer.run(&shared).await });
        if shared.spec.mode == Durability::Async {
            shared.spawn(|shared| async move { writer::sync_now_and_then(&shared).await });
        }
        Ok(Self(shared))
    }

    /// Has the shard woken by this whenever the log has got further, or takes more of a checkpoint.
    pub(crate) fn set_wake(&self, wake: impl Fn() + 'static) {
        *self.0.wake.borrow_mut() = Some(Box::new(wake));
    }

    /// From now on this is woken, by another thread, when a write has ended; [`Self::look`] has to be called then.
    pub(crate) fn set_bell(&self, bell: Waker) {
        self.0.device.set_bell(bell);
    }

    /// Wakes the task that writes, if it has something to go on with; true if so.
    pub(crate) fn look(&self) -> bool {
        self.0.device.look()
    }

    /// Takes records, in the order of their numbers, and leaves none.
    pub(crate) fn append(&self, records: &mut Vec<Record>) {
        if records.is_empty() {
            return;
        }
        if self.0.failed.get() {
            records.clear();
            return;
        }
        {
            let mut state = self.0.state.borrow_mut();
            state.pending_bytes += records.iter().map(format::record_bytes).sum::<usize>();
            state.pending.extend(records.drain(..));
        }
        self.0.work.notify();
    }

    /// The last record that is durable, and with it all before.
    pub(crate) fn durable(&self) -> RecordId {
        self.0.state.borrow().durable
    }

    /// Bytes of records that are not durable yet.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.0.state.borrow().pending_bytes
    }

    /// The last group that is durable.
    pub(crate) fn end(&self) -> LogEnd {
        self.0.state.borrow().end
    }

    /// How many bytes of a checkpoint it takes now: 0 if it wants none, or is still writing what it was given.
    pub(crate) fn checkpoint_room(&self) -> usize {
        if self.0.has_ended() {
            return 0;
        }
        match &*self.0.checkpoint.borrow() {
            Some(open) => open.room(),
            None => {
                let due = self.0.state.borrow().is_checkpoint_due(&self.0.spec.tuning);
                if due { checkpoint::PIECE_BYTES } else { 0 }
            }
        }
    }

    /// A checkpoint begins: it stands for records up to `position`, in these frames and the objects to come.
    ///
    /// # Panics
    /// If one is being written.
    pub(crate) fn begin_checkpoint(&self, position: RecordId, frames: Vec<Bytes>) {
        let open = checkpoint::Open::begin(self.0.spec.name, position, frames);
        let before = self.0.checkpoint.borrow_mut().replace(open);
        assert!(before.is_none(), "one checkpoint at a time");
        tracing::debug!(directory = %self.0.spec.directory.display(), position = position.0, "a checkpoint begins");
        let shared = Rc::clone(&self.0);
        let task = self.0.device.spawn(Box::pin(async move {
            if let Err(failure) = checkpoint::write(&shared).await {
                shared.end(failure);
            }
        }));
        *self.0.checkpoint_task.borrow_mut() = Some(task);
    }

    /// A frame of objects for it.
    pub(crate) fn checkpoint_objects(&self, frame: Bytes) {
        self.with_checkpoint(|open| open.objects(frame));
    }

    /// That was all. It holds once records up to this one are durable.
    pub(crate) fn end_checkpoint(&self, record: RecordId) {
        self.with_checkpoint(|open| open.end(record));
    }

    fn with_checkpoint(&self, change: impl FnOnce(&mut checkpoint::Open)) {
        if let Some(open) = &mut *self.0.checkpoint.borrow_mut() {
            change(open);
        }
        self.0.checkpoint_work.notify();
    }

    /// Waits until everything that was appended is on stable storage, and ends. False if the log had failed.
    pub(crate) async fn close(self) -> bool {
        self.0.closing.set(true);
        self.0.work.notify();
        self.0.checkpoint_work.notify();
        self.0.sync_work.notify();
        let tasks = self.0.tasks.take().into_iter().chain(self.0.checkpoint_task.take());
        for task in tasks {
            task.await;
        }
        !self.0.failed.get()
    }
}

impl Shared {
    /// Runs a task until the log has ended.
    fn spawn<F: Future<Output = ()> + 'static>(self: &Rc<Self>, task: impl FnOnce(Rc<Self>) -> F) {
        let task = self.device.spawn(Box::pin(task(Rc::clone(self))));
        self.tasks.borrow_mut().push(task);
    }

    fn wake_shard(&self) {
        if let Some(wake) = &*self.wake.borrow() {
            wake();
        }
    }

    fn has_ended(&self) -> bool {
        self.closing.get() || self.failed.get()
    }

    /// Nothing is durable from here on.
    fn end(&self, failure: Failure) {
        if !self.failed.replace(true) {
            let mut state = self.state.borrow_mut();
            state.pending.clear();
            state.pending_bytes = 0;
            drop(state);
            (self.fail)(failure);
        }
        self.work.notify();
        self.checkpoint_work.notify();
        self.sync_work.notify();
        self.wake_shard();
    }

    /// A checkpoint is whole: what it stands for goes.
    async fn checkpointed(self: &Rc<Self>, new: CheckpointFile) -> Result<(), Failure> {
        let mut superfluous = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            tracing::debug!(
                directory = %self.spec.directory.display(),
                position = new.position.0,
                bytes = new.bytes,
                log_bytes = state.log_bytes(),
                "a checkpoint is whole"
            );
            state.free_up_to(new.position);
            let path = new.path.clone();
            let old = state.checkpoint.replace(new);
            // One of the same position has taken its place, and its name.
            superfluous.extend(old.map(|old| old.path).filter(|old| *old != path));
        }
        self.remove(superfluous).await?;
        self.trim_free().await?;
        *self.checkpoint.borrow_mut() = None;
        self.wake_shard();
        Ok(())
    }

    /// Keeps a few segments of the right size, and removes the others that hold nothing.
    async fn trim_free(&self) -> Result<(), Failure> {
        let right = self.spec.tuning.segment_bytes as u64;
        let mut superfluous = Vec::new();
        {
            let mut kept = 0;
            self.state.borrow_mut().free.retain(|segment| {
                let keep = segment.bytes == right && kept < SPARE_SEGMENTS;
                kept += usize::from(keep);
                if !keep {
                    superfluous.push(segment.path.clone());
                }
                keep
            });
        }
        self.remove(superfluous).await
    }

    async fn remove(&self, paths: Vec<PathBuf>) -> Result<(), Failure> {
        if paths.is_empty() {
            return Ok(());
        }
        device::blocking(&*self.device, move |files| {
            paths.iter().try_for_each(|path| {
                files.remove(path).map_err(|error| file::disk_failure(path, "removing it", &error))
            })
        })
        .await
    }
}
