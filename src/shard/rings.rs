//! The descriptors of the runtime's rings, which it keeps to itself: to sleep until a ring *or* a connection has something,
//! the loop of an executor has to watch both.
//!
//! They are found among the descriptors of the process: those that an executor's start has added. Where the system does not let
//! them be found, nothing is lost but that the loop has to look at them every so often.

use std::{collections::BTreeSet, fs, os::fd::OwnedFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// How many rings an executor has: one for most things, one for what must not wait, one that is polled for completions.
const RINGS: usize = 3;
/// What the kernel calls a ring.
const NAME: &str = "anon_inode:[io_uring]";

/// The numbers of all rings of this process.
pub(super) fn descriptors() -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    let is_ring = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == NAME);
    let rings = entries.flatten().filter(is_ring);
    rings.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Descriptors of our own for the rings that were not there before.
pub(super) fn made_since(before: &BTreeSet<i32>) -> Vec<OwnedFd> {
    let duplicate = |number: &i32| {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        pidfd_getfd(own, *number, PidfdGetfdFlags::empty())
    };
    let made: Result<Vec<OwnedFd>, _> = descriptors().difference(before).map(duplicate).collect();
    match made {
        Ok(rings) if rings.len() == RINGS => rings,
        // Those of an executor that ended meanwhile may have left their numbers to these.
        Ok(rings) => {
            let (found, expected) = (rings.len(), RINGS);
            tracing::warn!(
                found,
                expected,
                "not all rings of an executor were found: it looks at them every so often instead"
            );
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(%error, "the rings of an executor cannot be watched: it looks at them every so often instead");
            Vec::new()
        }
    }
}
