//! The data directory of a node: whose it is, and how often the node was started on it.
//!
//! | file | holds |
//! |---|---|
//! | `LOCK` | the process that uses the directory; locked as long as it lives |
//! | `identity.json` | the node and the cluster that the state is of, and the incarnation drawn when it began |
//! | `boot.json` | how often the node was started on it, whether it stopped well, and on which boot of the machine |
//! | `shard-N/` | the log of a shard |
//!
//! Small files are written under another name, synced and renamed. Everything here blocks, and happens before the node
//! starts or after it has stopped.

use std::{
    fs::{self, File},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{
    Access, LogName, LogSpec,
    file::{disk_failure, make_zeros, sync_directory, write_atomically},
    format::FORMAT,
    host::HostFiles,
};
use crate::{
    failure::Failure,
    topology::{Cluster, NodeIndex},
    tuning::{Durability, LogTuning},
};

const LOCK: &str = "LOCK";
const IDENTITY: &str = "identity.json";
const BOOT: &str = "boot.json";
/// Is there while a first start has not got through: what else is there is of no use then.
const BEGINNING: &str = "beginning.new";
/// Another one each time that the machine starts.
const KERNEL_BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Whose state a directory holds. All of it must stay as it is for as long as the state does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) format: u16,
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) shards: u16,
    pub(crate) members: Vec<String>,
    pub(crate) quorum: String,
    pub(crate) initial_owner: String,
    /// Drawn when the state began.
    #[serde(with = "hex")]
    incarnation: u64,
    /// See [`LogName::log`].
    #[serde(with = "hex")]
    log: u64,
}

/// Numbers with 64 bits, which not every reader of JSON takes.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:016x}"))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<u64, D::Error> {
        u64::from_str_radix(&String::deserialize(from)?, 16).map_err(D::Error::custom)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Boot {
    /// Starts on this state.
    boot: u32,
    /// Whether the last one ended with everything synced.
    clean: bool,
    /// How it wrote.
    durability: Durability,
    /// The machine's boot that it was on.
    kernel_boot: String,
    /// The state is being given up, and has to go before anything else.
    wipe: bool,
}

impl Identity {
    /// Of a member of a cluster, with numbers drawn at random.
    pub(crate) fn of(cluster: &Cluster, node: NodeIndex, quorum: &str) -> Self {
        Self {
            format: FORMAT,
            cluster: cluster.name.clone(),
            node: cluster.member(node).id.to_string(),
            shards: cluster.shards,
            members: cluster.nodes.iter().map(|member| member.id.to_string()).collect(),
            quorum: quorum.to_owned(),
            initial_owner: format!("{:?}", cluster.initial_owner),
            incarnation: random_number(),
            log: random_number(),
        }
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What differs between what was `found` and what this node expects, and what to do about it.
    fn difference(&self, found: &Self) -> Option<String> {
        let text = |found: &str, own: &str, what: &str| format!("it holds {what} {found}; this is {what} {own}");
        let own_directory = "give each node a data directory of its own";
        let (difference, advice) = if found.cluster != self.cluster {
            (
                text(&format!("'{}'", found.cluster), &format!("'{}'", self.cluster), "state of the cluster"),
                own_directory,
            )
        } else if found.node != self.node {
            (text(&found.node, &self.node, "state of the node"), own_directory)
        } else if found.shards != self.shards {
            let difference = format!("it holds {} shards; the cluster now has {}", found.shards, self.shards);
            (difference, "the number of shards is fixed while a cluster lives: go back to that, or start a new cluster")
        } else if found.members != self.members {
            let (then, now) = (found.members.join(", "), self.members.join(", "));
            let difference = format!("its cluster has the members {then}; the configuration now says {now}");
            (difference, "members are fixed while a cluster lives: go back to those, or start a new cluster")
        } else if found.quorum != self.quorum {
            let difference =
                format!("its cluster has the quorums '{}'; the configuration now says '{}'", found.quorum, self.quorum);
            (difference, "quorums are fixed while a cluster lives: go back to those, or start a new cluster")
        } else if found.initial_owner != self.initial_owner {
            let (then, now) = (&found.initial_owner, &self.initial_owner);
            let difference = format!("its cluster has the initial owner {then}; the configuration now says {now}");
            (difference, "that is fixed while a cluster lives: go back to it, or start a new cluster")
        } else {
            return None;
        };
        Some(format!("{difference}: {advice}"))
    }
}

/// A data directory that this process has for itself.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Identity,
    boot: Boot,
    mode: Durability,
    access: Access,
    /// Keeps others out until it is closed.
    _lock: File,
}

impl DataDir {
    /// Takes a directory for a node, makes it if it is not there, and counts the start, durably.
    ///
    /// # Errors
    /// If it is another's, in use, not complete, or cannot be written.
    pub(crate) fn open(path: &Path, expected: Identity, mode: Durability, tuning: &LogTuning) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|error| refused(path, &format!("it cannot be made: {error}")))?;
        // The runtime needs paths that do not depend on where the process is.
        let path = fs::canonicalize(path).map_err(|error| refused(path, &format!("it cannot be found: {error}")))?;
        check_ours(&path)?;
        let lock = lock(&path)?;
        let access = match mode {
            Durability::Sync => Access::of_directory(&path)?,
            Durability::Async | Durability::None => Access::Buffered,
        };
        if mode == Durability::Sync && access == Access::Buffered {
            tracing::warn!(
                directory = %path.display(),
                "the file system takes no direct writes: the log goes through the page cache, each write synced"
            );
        }
        let identity = match read_identity(&path)? {
            Some(found) => {
                if let Some(difference) = expected.difference(&found) {
                    return Err(refused(&path, &difference));
                }
                let _ = fs::remove_file(path.join(BEGINNING));
                found
            }
            None => {
                begin(&path, &expected, mode, tuning)?;
                expected.clone()
            }
        };
        let boot = read_boot(&path)?;
        let mut directory = Self { path, identity, boot, mode, access, _lock: lock };
        directory.start(expected, tuning)?;
        Ok(directory)
    }

    /// Counts this start; gives up the state if it may lack what was promised.
    fn start(&mut self, fresh: Identity, tuning: &LogTuning) -> Result<(), Failure> {
        let kernel_boot = fs::read_to_string(KERNEL_BOOT).unwrap_or_default().trim().to_owned();
        let lost = self.boot.durability == Durability::Async
            && !self.boot.clean
            && self.boot.boot > 0
            && (kernel_boot.is_empty() || self.boot.kernel_boot != kernel_boot);
        if lost {
            tracing::error!(
                directory = %self.path.display(),
                "the machine went down while this node ran with durability async: what it had promised may be lost. Its state \
                 is given up, and it comes back as a node that has lost its disk"
            );
        }
        if lost || self.boot.wipe {
            self.wipe(fresh, tuning)?;
        }
        self.check_shards()?;
        self.boot.boot += 1;
        (self.boot.clean, self.boot.durability, self.boot.kernel_boot) = (false, self.mode, kernel_boot);
        self.write_boot()
    }

    /// The state goes, in a way that a crash does not stop half-way.
    fn wipe(&mut self, fresh: Identity, tuning: &LogTuning) -> Result<(), Failure> {
        self.boot.wipe = true;
        self.write_boot()?;
        make_shards(&self.path, &fresh, tuning)?;
        write_json(&self.path.join(IDENTITY), &fresh)?;
        self.identity = fresh;
        self.boot = Boot { boot: 0, clean: true, wipe: false, ..self.boot.clone() };
        self.write_boot()
    }

    fn check_shards(&self) -> Result<(), Failure> {
        for shard in 0..self.identity.shards {
            let directory = shard_directory(&self.path, shard);
            if !directory.is_dir() {
                return Err(refused(
                    &directory,
                    "the log of this shard is missing, though the node has run on this data directory before: bring it back, or \
                     start with an empty data directory, as a node that has lost its disk",
                ));
            }
        }
        Ok(())
    }

    fn write_boot(&self) -> Result<(), Failure> {
        write_json(&self.path.join(BOOT), &self.boot)
    }

    /// Everything is synced, and nothing more will be written.
    ///
    /// # Errors
    /// If that cannot be recorded.
    pub(crate) fn stopped_well(mut self) -> Result<(), Failure> {
        self.boot.clean = true;
        self.write_boot()
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// The number of this start, from 1.
    pub(crate) fn boot(&self) -> u32 {
        self.boot.boot
    }

    /// The mode and how writes go, for reports.
    pub(crate) fn describe(&self) -> String {
        format!("{} ({})", self.mode, self.access.name())
    }

    /// The same, and the directory.
    pub(crate) fn place(&self) -> String {
        format!("{}, in {}", self.describe(), self.path.display())
    }

    /// Where the log of a shard is, and how it is written.
    pub(crate) fn log_spec(&self, shard: u16, tuning: &LogTuning) -> LogSpec {
        LogSpec {
            directory: shard_directory(&self.path, shard),
            name: LogName { log: self.identity.log, shard },
            boot: self.boot.boot,
            mode: self.mode,
            access: self.access,
            tuning: *tuning,
            mutant: None,
        }
    }
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::DataDirectory(format!("data directory {}: {why}", path.display()))
}

fn shard_directory(path: &Path, shard: u16) -> PathBuf {
    path.join(format!("shard-{shard}"))
}

/// A directory that has something in it and no identity is somebody else's.
fn check_ours(path: &Path) -> Result<(), Failure> {
    let unreadable = |error: io::Error| {
        refused(path, &format!("it cannot be listed: {error}: let this user read and write it, or name another one"))
    };
    let mut foreign = None;
    for entry in fs::read_dir(path).map_err(unreadable)? {
        match entry.map_err(unreadable)?.file_name().to_string_lossy().as_ref() {
            IDENTITY | BEGINNING => return Ok(()),
            LOCK | "lost+found" => {}
            name if name.ends_with(".new") => {}
            name => foreign = Some(name.to_owned()),
        }
    }
    let Some(name) = foreign else { return Ok(()) };
    let why = format!(
        "it is not empty ('{name}' is there) and has no {IDENTITY}, so it is no data directory of wpaxos: name an empty one, or \
         bring that file back"
    );
    Err(refused(path, &why))
}

fn lock(path: &Path) -> Result<File, Failure> {
    let file = path.join(LOCK);
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&file);
    let mut lock = opened.map_err(|error| {
        refused(path, &format!("{LOCK} cannot be opened: {error}: let this user read and write the directory"))
    })?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = lock.read_to_string(&mut owner);
            let why = format!(
                "it is in use by process {}: stop that, or give this node a data directory of its own",
                owner.trim()
            );
            return Err(refused(path, &why));
        }
        Err(error) => return Err(disk_failure(&file, "locking it", &error.into())),
    }
    let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.map_err(|error| disk_failure(&file, "writing it", &error))?;
    Ok(lock)
}

/// The first start: an identity, once everything else is there.
fn begin(path: &Path, identity: &Identity, mode: Durability, tuning: &LogTuning) -> Result<(), Failure> {
    let beginning = path.join(BEGINNING);
    File::create(&beginning).map_err(|error| disk_failure(&beginning, "making it", &error))?;
    sync_directory(path)?;
    make_shards(path, identity, tuning)?;
    let boot = Boot { boot: 0, clean: true, durability: mode, kernel_boot: String::new(), wipe: false };
    write_json(&path.join(BOOT), &boot)?;
    write_json(&path.join(IDENTITY), identity)?;
    fs::remove_file(&beginning).map_err(|error| disk_failure(&beginning, "removing it", &error))?;
    sync_directory(path)
}

/// Empty logs for all shards, in place of whatever is there: a segment each, so that one that is missing is noticed.
fn make_shards(path: &Path, identity: &Identity, tuning: &LogTuning) -> Result<(), Failure> {
    for shard in 0..identity.shards {
        let directory = shard_directory(path, shard);
        let failed = |error: io::Error| disk_failure(&directory, "making it anew", &error);
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(failed)?;
        }
        fs::create_dir(&directory).map_err(failed)?;
        make_zeros(&HostFiles, &directory.join("segment-1"), tuning.segment_bytes as u64)?;
    }
    sync_directory(path)
}

fn read_identity(path: &Path) -> Result<Option<Identity>, Failure> {
    let Some(found) = read_json(path, IDENTITY)? else { return Ok(None) };
    let format = found.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if format > u64::from(FORMAT) {
        let why = format!(
            "it has format {format}; this build of wpaxos reads format {FORMAT} and older: run the newer build that wrote it"
        );
        return Err(refused(path, &why));
    }
    let parsed = serde_json::from_value(found);
    parsed.map(Some).map_err(|error| refused(path, &not_readable(IDENTITY, &error)))
}

fn read_boot(path: &Path) -> Result<Boot, Failure> {
    let found = read_json(path, BOOT)?;
    let found = found.ok_or_else(|| refused(path, &format!("{BOOT} is missing: bring it back from a copy")))?;
    serde_json::from_value(found).map_err(|error| refused(path, &not_readable(BOOT, &error)))
}

fn read_json(path: &Path, name: &str) -> Result<Option<serde_json::Value>, Failure> {
    match fs::read(path.join(name)) {
        Ok(text) => {
            let parsed = serde_json::from_slice(&text);
            parsed.map(Some).map_err(|error| refused(path, &not_readable(name, &error)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(refused(path, &format!("{name} cannot be read: {error}: let this user read and write the directory")))
        }
    }
}

fn not_readable(name: &str, error: &serde_json::Error) -> String {
    format!(
        "{name} is not as it was written ({error}): bring it back from a copy, or start with an empty data directory"
    )
}

fn write_json(path: &Path, contents: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(contents).expect("plain fields become JSON");
    text.push(b'\n');
    write_atomically(path, &text)
}

/// The standard library's hash keys come from the system's random source. Not 0.
fn random_number() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const TUNING: LogTuning = LogTuning {
        segment_bytes: 65_536,
        group_bytes_max: 4096,
        sync_interval_us: 1000,
        checkpoint_log_bytes: 65_536,
        pending_bytes_max: 65_536,
    };

    fn identity() -> Identity {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let cluster = Cluster::local("c", vec![vec![vec![address, address]; 2]]);
        Identity::of(&cluster, NodeIndex(0), "any two")
    }

    fn open(path: &Path, mode: Durability) -> Result<DataDir, Failure> {
        DataDir::open(path, identity(), mode, &TUNING)
    }

    #[test]
    fn each_start_is_counted_and_the_incarnation_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let first = open(&path, Durability::Sync).unwrap();
        let incarnation = first.incarnation();
        assert_eq!(first.boot(), 1);
        let Failure::DataDirectory(said) = open(&path, Durability::Sync).unwrap_err() else {
            panic!("another failure")
        };
        assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
        drop(first);
        for boot in 2..5 {
            let next = open(&path, Durability::Async).unwrap();
            assert_eq!((next.boot(), next.incarnation()), (boot, incarnation));
            assert_eq!(next.log_spec(1, &TUNING).directory, fs::canonicalize(path.join("shard-1")).unwrap());
            if boot == 3 {
                next.stopped_well().unwrap();
            }
        }
    }

    #[test]
    fn a_first_start_that_did_not_get_through_begins_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let steps: [&dyn Fn(); 5] = [
            &|| drop(File::create(path.join(BEGINNING)).unwrap()),
            &|| fs::create_dir(path.join("shard-0")).unwrap(),
            &|| fs::write(path.join("shard-0/segment-1.new"), "half").unwrap(),
            &|| fs::write(path.join(BOOT), "{").unwrap(),
            &|| fs::write(path.join("identity.new"), "{").unwrap(),
        ];
        for count in 0..=steps.len() {
            steps[..count].iter().for_each(|step| step());
            assert_eq!(open(path, Durability::Sync).unwrap().boot(), 1, "after {count} steps");
            assert!(!path.join(BEGINNING).exists() && path.join("shard-1/segment-1").exists());
            assert!(!path.join("shard-0/segment-1.new").exists());
            for name in [IDENTITY, BOOT] {
                fs::remove_file(path.join(name)).unwrap();
            }
            for shard in 0..2 {
                fs::remove_dir_all(shard_directory(path, shard)).unwrap();
            }
        }
    }

    #[test]
    fn a_state_that_is_being_given_up_goes_whatever_happens_on_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let before = open(path, Durability::Async).unwrap().incarnation();
        fs::write(path.join("shard-0/segment-1"), vec![7; 65_536]).unwrap();
        let mut boot = read_boot(path).unwrap();
        boot.wipe = true;
        write_json(&path.join(BOOT), &boot).unwrap();
        fs::remove_dir_all(path.join("shard-1")).unwrap();
        let after = open(path, Durability::Sync).unwrap();
        assert_ne!(after.incarnation(), before);
        assert_eq!(after.boot(), 1);
        assert_eq!(fs::read(path.join("shard-0/segment-1")).unwrap(), vec![0; 65_536]);
        assert!(path.join("shard-1/segment-1").exists());
    }

    #[test]
    fn only_an_unclean_end_in_mode_async_on_another_boot_of_the_machine_loses_anything() {
        for (mode, clean, elsewhere) in [
            (Durability::Sync, false, true),
            (Durability::Async, true, true),
            (Durability::Async, false, false),
            (Durability::Async, false, true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let first = open(directory.path(), mode).unwrap();
            let (before, mut boot) = (first.incarnation(), first.boot.clone());
            drop(first);
            boot.clean = clean;
            if elsewhere {
                boot.kernel_boot = "another".to_owned();
            }
            write_json(&directory.path().join(BOOT), &boot).unwrap();
            let lost = mode == Durability::Async && !clean && elsewhere;
            let again = open(directory.path(), Durability::Sync).unwrap();
            assert_eq!(again.incarnation() != before, lost, "{mode} {clean} {elsewhere}");
            assert_eq!(again.boot(), if lost { 1 } else { 2 });
        }
    }
}
