//! Files of a log: making them, and what to say when that fails.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::device::Files;
use crate::failure::Failure;

/// Numbers are part of Linux's interface.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// How writes reach a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Through the page cache.
    Buffered,
}

impl Access {
    /// As reports name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }

    /// Whether the file system of a directory takes direct writes, found out with a file of its own. A file system in
    /// memory does so in name only.
    ///
    /// # Errors
    /// If no file can be made there.
    pub(super) fn of_directory(directory: &Path) -> Result<Self, Failure> {
        let probe = directory.join("probe.new");
        let failed = |error: io::Error| disk_failure(&probe, "making a file", &error);
        let file = File::create(&probe).map_err(failed)?;
        let in_memory = rustix::fs::fstatfs(&file).is_ok_and(|system| system.f_type == TMPFS_MAGIC);
        let direct = fs::OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&probe);
        fs::remove_file(&probe).map_err(failed)?;
        Ok(if direct.is_ok() && !in_memory { Self::Direct } else { Self::Buffered })
    }
}

/// Makes a file of zeros, durably and under its name only when it is whole. Blocks the thread.
///
/// # Errors
/// What the system said.
pub(crate) fn make_zeros(files: &dyn Files, path: &Path, bytes: u64) -> Result<(), Failure> {
    let new = new_name(path);
    let doing = format!("making a segment of {bytes} bytes");
    let failed = |error: io::Error| disk_failure(&new, &doing, &error);
    let file = files.create(&new).map_err(failed)?;
    file.fill(bytes).map_err(failed)?;
    file.sync().map_err(failed)?;
    file.forget_pages();
    rename_durably(files, &new, path)
}

/// Gives a file that is whole and durable its name, durably. Blocks the thread.
///
/// # Errors
/// What the system said.
pub(super) fn rename_durably(files: &dyn Files, from: &Path, to: &Path) -> Result<(), Failure> {
    files.rename(from, to).map_err(|error| disk_failure(from, "renaming it", &error))?;
    let directory = to.parent().expect("a file is in a directory");
    files.sync_directory(directory).map_err(|error| disk_failure(directory, "syncing the directory", &error))
}

/// Writes a small file so that a crash leaves either all of it or what was there before. Blocks the thread.
///
/// # Errors
/// What the system said.
pub(super) fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let new = new_name(path);
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    written.map_err(|error| disk_failure(path, "writing it", &error))?;
    sync_directory(path.parent().expect("a file is in a directory"))
}

/// Makes durable which files a directory has. Blocks the thread.
///
/// # Errors
/// What the system said.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Failure> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| disk_failure(directory, "syncing the directory", &error))
}

/// What a file is called until it is whole. Files of such names are removed at the start.
pub(super) fn new_name(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Why a file cannot be used, and what to do about it.
pub(super) fn disk_failure(path: &Path, doing: &str, error: &io::Error) -> Failure {
    let advice = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
            "make room there and start again: nothing that was acknowledged is lost"
        }
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            "let this user read and write the data directory and everything in it"
        }
        Some(rustix::io::Errno::ROFS) => {
            "mount the file system for writing: if the kernel changed that, look into its log"
        }
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            "allow more open files (`ulimit -n`, `LimitNOFILE=`)"
        }
        _ => {
            "look into the kernel's log; if the device is broken, give this node an empty data directory on another one: it \
             then comes back as one that has lost its disk"
        }
    };
    Failure::Disk(format!("{}: {doing}: {error}; {advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{super::host::HostFiles, *};

    #[test]
    fn a_file_of_zeros_is_whole_and_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment-1");
        make_zeros(&HostFiles, &path, 300_000).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; 300_000]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        write_atomically(&path, b"other").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_fails_is_named_with_what_to_do() {
        let missing = Path::new("no/such/directory/segment-1");
        let Failure::Disk(said) = make_zeros(&HostFiles, missing, 1).unwrap_err() else { panic!("another failure") };
        assert!(said.starts_with("no/such/directory/segment-1.new: making a segment of 1 bytes: No such"), "{said}");
        let full = io::Error::from(rustix::io::Errno::NOSPC);
        assert!(disk_failure(missing, "writing", &full).to_string().contains("make room"));
    }
}
