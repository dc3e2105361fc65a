//! The machine that a replica runs on: the file system, a thread that writes, and the runtime.

use std::{
    fs, io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use glommio::{
    io::{BufferedFile, OpenOptions},
    timer::Timer,
};
use rustix::fs::{Advice, FallocateFlags, OFlags};

use super::{
    device::{Device, File, Files, Job, Later, Open, OpenFile, Sheet},
    disk::{Buffer, Disk},
    file::Access,
};
use crate::failure::Failure;

/// Zeros are written in pieces of so many bytes.
const ZEROS_BYTES: usize = 256 << 10;

/// The file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostFiles;

impl Files for HostFiles {
    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        };
        fs::read_dir(directory)?.map(entry).collect()
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        let opened = match how {
            Open::Read => fs::File::open(path)?,
            Open::Write { access, synced } => {
                let mut flags = OFlags::empty();
                flags.set(OFlags::DSYNC, synced);
                flags.set(OFlags::DIRECT, access == Access::Direct);
                fs::OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(path)?
            }
        };
        Ok(Arc::new(opened))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        Ok(Arc::new(fs::File::create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }
}

impl OpenFile for fs::File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn fill(&self, bytes: u64) -> io::Result<()> {
        // Says that there is no room before it is half full. Not every file system can, and then writing it tells.
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = 0;
        while at < bytes {
            let piece = (bytes - at).min(ZEROS_BYTES as u64);
            self.write_all_at(&zeros[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn forget_pages(&self) {
        let _ = rustix::fs::fadvise(self, 0, None, Advice::DontNeed);
    }

    #[cfg(feature = "sim")]
    fn simulated(&self) -> Option<(u64, bool)> {
        None
    }
}

/// The machine, as one log uses it.
#[derive(Debug)]
pub(crate) struct Host(Disk);

impl Host {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(crate) fn start() -> Result<Self, Failure> {
        let disk = Disk::start().map_err(|error| {
            Failure::Environment(format!("the log of a shard needs a thread: {error}; allow more (`ulimit -u`)"))
        });
        disk.map(Self)
    }
}

impl Device for Host {
    fn files(&self) -> Arc<dyn Files> {
        Arc::new(HostFiles)
    }

    fn run(&self, job: Job) -> Later<'_, ()> {
        Box::pin(glommio::executor().spawn_blocking(move || job(&HostFiles)))
    }

    fn buffer(&self, bytes: usize) -> Buffer {
        self.0.buffer(bytes)
    }

    fn write(&self, file: &File, buffer: Buffer, offset: u64) -> Later<'_, io::Result<()>> {
        let file = Arc::clone(file);
        Box::pin(self.0.write(file, buffer, offset))
    }

    fn create_sheet(&self, path: &Path) -> Later<'_, io::Result<Box<dyn Sheet>>> {
        let path = path.to_owned();
        Box::pin(async move {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).buffered_open(&path).await?;
            Ok(Box::new(file) as Box<dyn Sheet>)
        })
    }

    fn spawn(&self, task: Later<'static, ()>) -> Later<'static, ()> {
        Box::pin(glommio::spawn_local(task))
    }

    fn sleep(&self, time: Duration) -> Later<'static, ()> {
        Box::pin(async move {
            Timer::new(time).await;
        })
    }

    fn set_bell(&self, bell: Waker) {
        self.0.set_bell(bell);
    }

    fn look(&self) -> bool {
        self.0.look()
    }
}

impl Sheet for BufferedFile {
    fn write(&self, piece: Vec<u8>, offset: u64) -> Later<'_, io::Result<usize>> {
        Box::pin(async move { Ok(self.write_at(piece, offset).await?) })
    }

    fn sync(&self) -> Later<'_, io::Result<()>> {
        Box::pin(async move { Ok(self.fdatasync().await?) })
    }

    fn close(self: Box<Self>) -> Later<'static, ()> {
        Box::pin(async move {
            let _ = (*self).close().await;
        })
    }
}
