//! The seam between a log and the machine: its files, its writes, its tasks and its time.
//!
//! A replica has [`Host`](super::host::Host): the file system, a thread that writes, and the runtime. The simulator has a block
//! device of its own, which tears, forgets, hangs and fills. Everything above the seam is the same code in both: groups,
//! segments, checkpoints, recovery, and the order of writing, syncing and renaming.
//!
//! Calls across it are made per group, per segment and per piece of a checkpoint, never per record.

use std::{
    fmt, io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Waker,
    time::Duration,
};

use super::file::Access;

pub(crate) use super::disk::Buffer;

/// A result that is waited for.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
/// Calls on files that block, made elsewhere than in the task that waits for them.
pub(crate) type Job = Box<dyn FnOnce(&dyn Files) + Send>;
/// A file that is open. Clones are the same file.
pub(crate) type File = Arc<dyn OpenFile>;

/// How a file is opened. It must exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Open {
    /// To be read, or synced.
    Read,
    /// To be written: past the page cache or through it; with `synced`, a write ends when it is on stable storage.
    Write { access: Access, synced: bool },
}

/// The files of a log. Every call blocks until the system has answered, and fails with what it said.
pub(crate) trait Files: fmt::Debug + Send + Sync {
    /// Names and sizes of the files in a directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>>;

    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<File>;

    /// Makes an empty file, in place of one of that name, and opens it for writing through the page cache.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Gives a file another name, in place of a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes durable which files a directory has, and under which names.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// A file that is open. Every call blocks.
pub(crate) trait OpenFile: fmt::Debug + Send + Sync {
    /// Its size.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills `into` with what stands at `offset`; a file that ends before is an error.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes at `offset`; how many bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Fills an empty file with zeros up to this size, or fails before it writes any if there is no room for all.
    fn fill(&self, bytes: u64) -> io::Result<()>;

    /// Makes its bytes and its size durable.
    fn sync(&self) -> io::Result<()>;

    /// Has the page cache forget what is durable of it, which would only be in the way of direct writes.
    fn forget_pages(&self);

    /// Its number on a simulated device, and whether writes to it are synced.
    #[cfg(feature = "sim")]
    fn simulated(&self) -> Option<(u64, bool)>;
}

/// A checkpoint's file that is being written, through the page cache and without blocking.
pub(crate) trait Sheet {
    /// Writes a piece at `offset`; how many bytes.
    fn write(&self, piece: Vec<u8>, offset: u64) -> Later<'_, io::Result<usize>>;

    /// Makes its bytes and its size durable.
    fn sync(&self) -> Later<'_, io::Result<()>>;

    /// Lets it go.
    fn close(self: Box<Self>) -> Later<'static, ()>;
}

/// What a log is on.
pub(crate) trait Device {
    /// The files, for calls that may block.
    fn files(&self) -> Arc<dyn Files>;

    /// Makes calls on files elsewhere, and waits for their end.
    fn run(&self, job: Job) -> Later<'_, ()>;

    /// A buffer of `bytes` bytes, a multiple of the block size, with anything in it.
    fn buffer(&self, bytes: usize) -> Buffer;

    /// Writes all of a buffer to a segment. One write at a time.
    fn write(&self, file: &File, buffer: Buffer, offset: u64) -> Later<'_, io::Result<()>>;

    /// Makes an empty file for a checkpoint.
    fn create_sheet(&self, path: &Path) -> Later<'_, io::Result<Box<dyn Sheet>>>;

    /// Runs a task beside the others. What is returned ends with it; it is cancelled when that is dropped.
    fn spawn(&self, task: Later<'static, ()>) -> Later<'static, ()>;

    /// Waits.
    fn sleep(&self, time: Duration) -> Later<'static, ()>;

    /// Has `bell` woken, by any thread, when a write has ended; [`Self::look`] has to be called then.
    fn set_bell(&self, bell: Waker);

    /// Wakes the task that waits for a write, if it has ended; true if so.
    fn look(&self) -> bool;
}

/// Makes calls on files elsewhere, and waits for what they give.
pub(super) async fn blocking<T: Send + 'static>(
    device: &dyn Device,
    calls: impl FnOnce(&dyn Files) -> T + Send + 'static,
) -> T {
    let result = Arc::new(Mutex::new(None));
    let place = Arc::clone(&result);
    let job = move |files: &dyn Files| *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(calls(files));
    device.run(Box::new(job)).await;
    let result = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    result.expect("the job has run")
}
