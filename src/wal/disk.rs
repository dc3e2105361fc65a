//! The thread that writes a log: it waits for the disk, so that the shard's thread does not.
//!
//! One write is under way at a time. The runtime could do it, through a ring; but a write that is to be on stable storage is
//! ended by a kernel thread that is bound to the executor's core, its completion has to be looked for by the reactor, and
//! on a ring that is polled nothing tells of it (`docs/decisions/0012-the-log-is-groups-in-recycled-segments.md`).

use std::{
    future::poll_fn,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Poll, Waker},
};

use super::{device::File, format::BLOCK};

/// A buffer of more than this is not kept for the next write.
const KEPT_BYTES: usize = 4 << 20;

/// Bytes that begin at a multiple of [`BLOCK`] in memory, as direct writes need them.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    bytes: usize,
}

impl Buffer {
    /// A buffer of `bytes` bytes.
    #[cfg(feature = "sim")]
    pub(crate) fn of(bytes: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(bytes);
        buffer
    }

    /// Makes it `bytes` long, with anything in it.
    fn resize(&mut self, bytes: usize) {
        self.bytes = bytes;
        if self.memory.len() < bytes + BLOCK {
            self.memory = vec![0; bytes + BLOCK];
        }
    }

    fn start(&self) -> usize {
        self.memory.as_ptr().align_offset(BLOCK)
    }

    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        let start = self.start();
        &self.memory[start..start + self.bytes]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.memory[start..start + self.bytes]
    }
}

struct Job {
    file: File,
    buffer: Buffer,
    offset: u64,
}

/// Where a log's thread is told what to write, and tells that it has.
#[derive(Debug)]
pub(super) struct Disk {
    jobs: mpsc::Sender<Job>,
    done: Arc<Done>,
}

#[derive(Debug, Default)]
struct Done {
    state: Mutex<State>,
    /// Whether there is an outcome that nobody has been woken for.
    is_news: AtomicBool,
    /// Wakes whoever calls [`Disk::look`].
    bell: OnceLock<Waker>,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<(io::Result<usize>, Buffer)>,
    waiter: Option<Waker>,
    spare: Option<Buffer>,
}

impl Done {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Starts the thread. It ends when this is dropped.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, incoming) = mpsc::channel::<Job>();
        let done = Arc::new(Done::default());
        let told = Arc::clone(&done);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            leave_core();
            for Job { file, buffer, offset } in incoming {
                let written = file.write_at(buffer.bytes(), offset);
                let waiter = {
                    let mut state = told.state();
                    state.outcome = Some((written, buffer));
                    // The executor wakes its own task, where it is told to look.
                    if told.bell.get().is_some() { None } else { state.waiter.take() }
                };
                told.is_news.store(true, Ordering::Release);
                waiter.as_ref().or(told.bell.get()).inspect(|waker| waker.wake_by_ref());
            }
        })?;
        Ok(Self { jobs, done })
    }

    /// From now on this is woken when a write has ended, and has to call [`Self::look`] then.
    pub(super) fn set_bell(&self, bell: Waker) {
        let _ = self.done.bell.set(bell);
        // A write may have ended before, and its waiter not been woken.
        self.done.is_news.store(true, Ordering::Release);
    }

    /// Wakes the task that waits for a write, if it has ended; true if so.
    pub(super) fn look(&self) -> bool {
        if !self.done.is_news.load(Ordering::Acquire) {
            return false;
        }
        self.done.is_news.store(false, Ordering::Relaxed);
        let mut state = self.done.state();
        let waiter = if state.outcome.is_some() { state.waiter.take() } else { None };
        drop(state);
        waiter.map(Waker::wake).is_some()
    }

    /// A buffer of `bytes` bytes, a multiple of [`BLOCK`], with anything in it.
    pub(super) fn buffer(&self, bytes: usize) -> Buffer {
        let mut buffer = self.done.state().spare.take().unwrap_or_default();
        buffer.resize(bytes);
        buffer
    }

    /// Writes all of a buffer. One call at a time.
    ///
    /// # Errors
    /// What the system said; a write of less is one.
    pub(super) async fn write(&self, file: File, buffer: Buffer, offset: u64) -> io::Result<()> {
        let job = Job { file, buffer, offset };
        self.jobs.send(job).map_err(|_| io::Error::other("the log's thread has ended"))?;
        let (written, buffer) = poll_fn(|context| {
            let mut state = self.done.state();
            match state.outcome.take() {
                Some(outcome) => Poll::Ready(outcome),
                None => {
                    state.waiter = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        let (written, bytes) = (written?, buffer.bytes);
        if buffer.memory.len() <= KEPT_BYTES {
            self.done.state().spare = Some(buffer);
        }
        if written != bytes {
            return Err(io::Error::new(io::ErrorKind::WriteZero, format!("only {written} bytes were written")));
        }
        Ok(())
    }
}

/// A thread begins on the cores of the one that started it, which may be an executor's own. This one may run wherever the
/// process may.
fn leave_core() {
    let process = rustix::process::getpid();
    if let Ok(cores) = rustix::thread::sched_getaffinity(Some(process)) {
        let _ = rustix::thread::sched_setaffinity(None, &cores);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn buffers_are_aligned_and_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let file: File = Arc::new(fs::File::create_new(directory.path().join("log")).unwrap());
        let disk = Disk::start().unwrap();
        for (round, bytes) in [(1, 2 * BLOCK), (2, BLOCK), (3, 8 * BLOCK)] {
            let mut buffer = disk.buffer(bytes);
            assert_eq!((buffer.bytes().len(), buffer.bytes().as_ptr().align_offset(BLOCK)), (bytes, 0));
            assert!(round != 2 || buffer.bytes()[0] == 1, "the buffer of the first write");
            buffer.bytes_mut().fill(round);
            block_on(disk.write(Arc::clone(&file), buffer, 0)).unwrap();
        }
        assert_eq!(std::fs::read(directory.path().join("log")).unwrap(), vec![3; 8 * BLOCK]);
    }

    #[test]
    fn what_the_system_says_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("log"), "").unwrap();
        let file: File = Arc::new(fs::File::open(directory.path().join("log")).unwrap());
        let disk = Disk::start().unwrap();
        let error = block_on(disk.write(Arc::clone(&file), disk.buffer(BLOCK), 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::BADF.raw_os_error()), "it is open for reading only");
    }

    /// With a bell nobody else is woken, and looking wakes the task.
    #[test]
    fn a_bell_is_rung_and_a_look_wakes_the_writer() {
        let directory = tempfile::tempdir().unwrap();
        let file: File = Arc::new(fs::File::create_new(directory.path().join("log")).unwrap());
        let disk = Disk::start().unwrap();
        let (ring, rung) = mpsc::channel();
        disk.set_bell(Waker::from(Arc::new(Bell(ring))));
        assert!(!disk.look(), "nothing is under way");
        let writes = async {
            for offset in 0..100 {
                disk.write(Arc::clone(&file), disk.buffer(BLOCK), offset * BLOCK as u64).await.unwrap();
            }
        };
        std::thread::scope(|scope| {
            let disk = &disk;
            let looks = scope.spawn(move || {
                let mut woken = 0;
                while woken < 100 {
                    rung.recv().unwrap();
                    // The write may have ended before anybody waited for it, or been taken without waiting.
                    woken += 1;
                    disk.look();
                }
            });
            block_on(writes);
            looks.join().unwrap();
        });
    }

    struct Bell(mpsc::Sender<()>);

    impl std::task::Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
}
