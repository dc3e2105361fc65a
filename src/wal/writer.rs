//! The task that writes the log: a group at a time, in segments that are ready before they are needed.

use std::{cell::RefCell, path::PathBuf, rc::Rc, time::Duration};

use futures_lite::future;

use super::{
    Shared,
    device::{File, Later, Open, blocking},
    end::LogEnd,
    file::{disk_failure, make_zeros},
    format::{GroupHead, group_bytes, group_checksum, payload_room, record_bytes, write_group},
    recovery::Segment,
};
use crate::{failure::Failure, mutant::Mutant, protocol::RecordId, tuning::Durability};

/// A segment that is being written.
struct Current {
    file: File,
    segment: Segment,
    use_number: u64,
    /// Where the next group goes.
    offset: u64,
}

/// A segment that is open and holds nothing that counts.
type Ready = (File, Segment);

/// A segment that a task makes ready.
struct Next {
    task: Later<'static, ()>,
    ready: Rc<RefCell<Option<Result<Ready, Failure>>>>,
}

impl Next {
    async fn made(self) -> Result<Ready, Failure> {
        self.task.await;
        let ready = self.ready.take();
        ready.expect("the task has ended")
    }
}

/// The records of the next group.
struct Plan {
    records: usize,
    payload_bytes: usize,
}

pub(super) struct Writer {
    current: Current,
    /// The next segment, while it is being made ready or is.
    next: Option<Next>,
    /// Uses of segments that this boot has begun.
    uses: u32,
    /// The last group's number.
    sequence: u64,
    /// How much of which checkpoint must be written before the next group, where the log is too long.
    gate: (RecordId, u64),
}

impl Writer {
    /// Takes a segment of its own: what stands behind the last group of an earlier boot is nobody's business then.
    ///
    /// # Errors
    /// If none can be made ready.
    pub(super) async fn start(shared: Rc<Shared>, sequence: u64) -> Result<Self, Failure> {
        let ready = ready_segment(shared.clone(), shared.spec.tuning.segment_bytes as u64).await?;
        let current = Current::begin(&shared, ready, 1);
        Ok(Self { current, next: None, uses: 1, sequence, gate: (RecordId(0), 0) })
    }

    pub(super) async fn run(mut self, shared: &Rc<Shared>) {
        if let Err(failure) = self.write_all(shared).await {
            shared.end(failure);
        }
        if let Some(next) = self.next.take() {
            let _ = next.made().await;
        }
    }

    async fn write_all(&mut self, shared: &Rc<Shared>) -> Result<(), Failure> {
        loop {
            if shared.failed.get() {
                return Ok(());
            }
            match self.plan(shared) {
                Some(plan) => self.write_group(shared, &plan).await?,
                None if shared.closing.get() => break,
                None => shared.work.notified().await,
            }
        }
        if shared.spec.mode == Durability::Async {
            sync(shared).await?;
        }
        Ok(())
    }

    /// What goes into the next group: everything that waits, as far as it fits into the segment, or into the next one.
    fn plan(&self, shared: &Shared) -> Option<Plan> {
        let state = shared.state.borrow();
        let first = state.pending.front()?;
        let tuning = &shared.spec.tuning;
        let mut room = payload_room((self.current.segment.bytes - self.current.offset) as usize);
        if record_bytes(first) > room {
            room = payload_room(tuning.segment_bytes);
        }
        let most = room.min(tuning.group_bytes_max);
        let mut plan = Plan { records: 0, payload_bytes: 0 };
        for record in &state.pending {
            let bytes = record_bytes(record);
            // A record that is larger than any group has one of its own.
            if plan.records > 0 && plan.payload_bytes + bytes > most {
                break;
            }
            plan.records += 1;
            plan.payload_bytes += bytes;
        }
        Some(plan)
    }

    async fn write_group(&mut self, shared: &Rc<Shared>, plan: &Plan) -> Result<(), Failure> {
        let bytes = group_bytes(plan.payload_bytes);
        self.wait_for_checkpoint(shared, bytes as u64).await;
        if self.current.offset + bytes as u64 > self.current.segment.bytes {
            self.switch(shared, bytes as u64).await?;
        }
        let current = &mut self.current;
        let mut buffer = shared.device.buffer(bytes);
        let head = {
            let mut state = shared.state.borrow_mut();
            // Another task's error may have ended the log while this one waited.
            let Some(first) = state.pending.front().map(|record| record.id) else { return Ok(()) };
            let head = GroupHead {
                use_number: current.use_number,
                sequence: self.sequence + 1,
                first,
                records: plan.records as u32,
                payload_bytes: plan.payload_bytes as u32,
                segment_bytes: current.segment.bytes,
            };
            let records = state.pending.iter().take(plan.records);
            write_group(buffer.bytes_mut(), shared.spec.name, &head, records);
            state.pending.drain(..plan.records);
            head
        };
        if Mutant::DurableBeforeWritten.is_in(shared.spec.mutant) {
            shared.state.borrow_mut().durable = head.last();
            shared.wake_shard();
        }
        let checksum = group_checksum(buffer.bytes());
        let written = shared.device.write(&current.file, buffer, current.offset).await;
        let doing = || format!("writing {bytes} bytes at {}", current.offset);
        written.map_err(|error| disk_failure(&current.segment.path, &doing(), &error))?;
        self.sequence += 1;
        current.offset += bytes as u64;
        current.segment.last = head.last();
        if shared.failed.get() {
            return Ok(());
        }
        {
            let mut state = shared.state.borrow_mut();
            state.current_bytes = current.offset;
            state.pending_bytes -= plan.payload_bytes;
            state.durable = head.last();
            state.end = LogEnd { sequence: head.sequence, checksum, record: head.last() };
            if shared.spec.mode == Durability::Async {
                state.note_unsynced(&current.file, &current.segment.path);
            }
        }
        if self.next.is_none() && current.offset > current.segment.bytes / 2 {
            self.make_next(shared);
        }
        shared.checkpoint_work.notify();
        shared.wake_shard();
        Ok(())
    }

    fn make_next(&mut self, shared: &Rc<Shared>) {
        let ready = ready_segment(Rc::clone(shared), shared.spec.tuning.segment_bytes as u64);
        let (made, place) = (Rc::clone(shared), Rc::new(RefCell::new(None)));
        let told = Rc::clone(&place);
        let task = shared.device.spawn(Box::pin(async move {
            let ready = ready.await;
            // A full disk ends the node now, while there is room in the present segment.
            if let Err(failure) = &ready {
                made.end(failure.clone());
            }
            *told.borrow_mut() = Some(ready);
        }));
        self.next = Some(Next { task, ready: place });
    }

    /// Goes on in the next segment, or in one of its own for a group that fits into none.
    async fn switch(&mut self, shared: &Rc<Shared>, bytes: u64) -> Result<(), Failure> {
        let ready = if bytes > shared.spec.tuning.segment_bytes as u64 {
            ready_segment(Rc::clone(shared), bytes).await?
        } else {
            if self.next.is_none() {
                self.make_next(shared);
            }
            self.next.take().expect("it is being made").made().await?
        };
        self.uses += 1;
        let next = Current::begin(shared, ready, self.uses);
        let Current { segment, offset, .. } = std::mem::replace(&mut self.current, next);
        {
            let mut state = shared.state.borrow_mut();
            if offset == 0 {
                state.free.push(segment);
            } else {
                state.live.push_back(segment);
            }
            state.current_bytes = 0;
        }
        Ok(())
    }

    /// Where the log is twice as long as it should be, a checkpoint is being written, and the log must not outrun it: each
    /// group waits until as much of the checkpoint has been written.
    async fn wait_for_checkpoint(&mut self, shared: &Shared, bytes: u64) {
        loop {
            {
                let (state, checkpoint) = (shared.state.borrow(), shared.checkpoint.borrow());
                let Some(open) = checkpoint.as_ref().filter(|open| open.ended.is_none()) else { return };
                let long = state.log_bytes() > 2 * state.checkpoint_due_bytes(&shared.spec.tuning);
                if !long || shared.has_ended() {
                    return;
                }
                let due = if self.gate.0 == open.position { self.gate.1 } else { 0 };
                if open.written >= due {
                    self.gate = (open.position, open.written + bytes);
                    return;
                }
            }
            shared.wake_shard();
            shared.work.notified().await;
        }
    }
}

impl Current {
    fn begin(shared: &Shared, (file, segment): Ready, uses: u32) -> Self {
        let boot = if Mutant::UsesCountedAnew.is_in(shared.spec.mutant) { 1 } else { shared.spec.boot };
        let use_number = u64::from(boot) << 32 | u64::from(uses);
        Self { file, segment, use_number, offset: 0 }
    }
}

/// A segment that holds nothing, open: one that was freed, or a new one.
async fn ready_segment(shared: Rc<Shared>, bytes: u64) -> Result<Ready, Failure> {
    let spec = &shared.spec;
    let freed = {
        let mut state = shared.state.borrow_mut();
        let place = state.free.iter().position(|segment| segment.bytes == bytes);
        place.map(|place| state.free.swap_remove(place))
    };
    let segment = match freed {
        Some(segment) => segment,
        None => {
            let number = {
                let mut state = shared.state.borrow_mut();
                state.next_file += 1;
                state.next_file - 1
            };
            let path = segment_path(spec, number);
            let made = path.clone();
            blocking(&*shared.device, move |files| make_zeros(files, &made, bytes)).await?;
            Segment { path, bytes, last: RecordId(0) }
        }
    };
    let how = Open::Write { access: spec.access, synced: spec.mode == Durability::Sync };
    let path = segment.path.clone();
    let opened = blocking(&*shared.device, move |files| {
        files.open(&path, how).map_err(|error| disk_failure(&path, "opening it", &error))
    });
    Ok((opened.await?, segment))
}

fn segment_path(spec: &super::LogSpec, number: u32) -> PathBuf {
    spec.directory.join(format!("segment-{number}"))
}

/// In mode `async`: syncs what was written, at least so often.
pub(super) async fn sync_now_and_then(shared: &Rc<Shared>) {
    let interval = Duration::from_micros(shared.spec.tuning.sync_interval_us);
    while !shared.has_ended() {
        future::or(shared.device.sleep(interval), shared.sync_work.notified()).await;
        if let Err(failure) = sync(shared).await {
            return shared.end(failure);
        }
    }
}

async fn sync(shared: &Shared) -> Result<(), Failure> {
    let unsynced = std::mem::take(&mut shared.state.borrow_mut().unsynced);
    if unsynced.is_empty() {
        return Ok(());
    }
    // What was written may be lost after an error, and a second attempt proves nothing.
    blocking(&*shared.device, move |_| {
        let mut files = unsynced.iter();
        files.try_for_each(|(file, path)| file.sync().map_err(|error| disk_failure(path, "syncing it", &error)))
    })
    .await
}
