//! The data directory of a node: whose it is, and how often the node was started on it.
//!
//! | file | holds |
//! |---|---|
//! | `LOCK` | the process that uses the directory; locked as long as it lives |
//! | `identity.json`, `identity.copy.json` | the node and the cluster that the state is of, and its incarnation |
//! | `boot.json`, `boot.copy.json` | number of starts, whether the last stop was clean, which boot of the machine |
//! | `shard-N/` | the log of a shard |
//!
//! Small files have checksums and two copies ([`copies`]). They are written under another name, synced and renamed. Before a
//! start writes anything, all parts must fit together: a directory whose parts contradict each other is damaged. Everything
//! here blocks, and happens before the node starts or after it has stopped.

use std::{
    fs::{self, File},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{
    Access, EndMark, LogName, LogSpec,
    copies::{self, Found, Names},
    end::END,
    file::{disk_failure, make_zeros, sync_directory},
    format::FORMAT,
    host::HostFiles,
};
use crate::{
    failure::Failure,
    topology::{Cluster, NodeIndex},
    tuning::{Durability, LogTuning},
};

const LOCK: &str = "LOCK";
const IDENTITY: Names = ["identity.json", "identity.copy.json"];
const BOOT: Names = ["boot.json", "boot.copy.json"];
/// Is there while a first start has not got through: what else is there is of no use then.
const BEGINNING: &str = "beginning.new";
/// Another one each time that the machine starts.
const KERNEL_BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// What can be done about damage.
const ADVICE: &str = "Nothing was changed. Bring the directory back from a copy of exactly this state, or give this node an \
                      empty one: it then comes back as one that has lost its disk (see docs/operations.md)";

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
pub(super) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::wal) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:016x}"))
    }

    pub(in crate::wal) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<u64, D::Error> {
        u64::from_str_radix(&String::deserialize(from)?, 16).map_err(D::Error::custom)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Boot {
    format: u16,
    /// That of the identity.
    #[serde(with = "hex")]
    incarnation: u64,
    /// Rises with each write of the file.
    write: u64,
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
    /// How far the log of each shard goes at least.
    marks: Vec<EndMark>,
    /// Whether they end there: the last start stopped well.
    end_at_marks: bool,
    /// Keeps others out until it is closed.
    _lock: File,
}

impl DataDir {
    /// Takes a directory for a node, makes it if it is not there, and counts the start, durably.
    ///
    /// # Errors
    /// If it is another's, in use, not complete, damaged, or cannot be written.
    pub(crate) fn open(path: &Path, expected: Identity, mode: Durability, tuning: &LogTuning) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|error| refused(path, &format!("it cannot be made: {error}")))?;
        // The runtime needs paths that do not depend on where the process is.
        let path = fs::canonicalize(path).map_err(|error| refused(path, &format!("it cannot be found: {error}")))?;
        standing(&path)?;
        let lock = lock(&path)?;
        if standing(&path)? == Standing::New {
            begin(&path, &expected, mode, tuning)?;
        }
        let Contents { identity, boot, marks, repairs } = Contents::read(&path, &expected)?;
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
        for (name, problem) in repairs {
            if IDENTITY.contains(&name) {
                copies::repair(&path, name, &problem, &identity)?;
            } else {
                copies::repair(&path, name, &problem, &boot)?;
            }
        }
        let _ = fs::remove_file(path.join(BEGINNING));
        let mut directory = Self { path, identity, boot, mode, access, marks, end_at_marks: false, _lock: lock };
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
        self.end_at_marks = self.boot.clean;
        self.boot.boot += 1;
        (self.boot.clean, self.boot.durability, self.boot.kernel_boot) = (false, self.mode, kernel_boot);
        self.write_boot()
    }

    /// The state goes, in a way that a crash does not stop half-way.
    fn wipe(&mut self, fresh: Identity, tuning: &LogTuning) -> Result<(), Failure> {
        self.boot.wipe = true;
        self.write_boot()?;
        make_shards(&self.path, &fresh, tuning)?;
        copies::write(&self.path, IDENTITY, &fresh)?;
        self.boot = Boot { incarnation: fresh.incarnation, boot: 0, clean: true, wipe: false, ..self.boot.clone() };
        self.identity = fresh;
        self.marks = read_marks(&self.path, &self.identity)?;
        self.write_boot()
    }

    fn write_boot(&mut self) -> Result<(), Failure> {
        self.boot.write += 1;
        copies::write(&self.path, BOOT, &self.boot)
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
            mark: self.marks[usize::from(shard)],
            ends_at_mark: self.end_at_marks,
        }
    }
}

/// What a directory holds, once all parts of it have been found to fit together.
#[derive(Debug)]
struct Contents {
    identity: Identity,
    boot: Boot,
    marks: Vec<EndMark>,
    /// Copies that have to be made anew, and why.
    repairs: Vec<(&'static str, String)>,
}

impl Contents {
    /// Reads everything but the logs, and changes nothing.
    fn read(path: &Path, expected: &Identity) -> Result<Self, Failure> {
        let identities = copies::read::<Identity>(path, IDENTITY)?;
        let boots = copies::read::<Boot>(path, BOOT)?;
        let is_wiping = newest(&boots).is_some_and(|boot| boot.wipe);
        let identity = one_identity(path, &identities, is_wiping)?;
        if let Some(difference) = expected.difference(identity) {
            return Err(refused(path, &difference));
        }
        let boot = last_boot(path, &boots)?;
        let mut contents =
            Self { identity: identity.clone(), boot: boot.clone(), marks: Vec::new(), repairs: Vec::new() };
        if is_wiping {
            return Ok(contents);
        }
        contents.check(path)?;
        let names = IDENTITY.into_iter().zip(identities.iter().map(Found::problem));
        let boots = BOOT.into_iter().zip(boots.iter().map(|found| problem_of_boot(found, boot)));
        contents.repairs = names.chain(boots).filter_map(|(name, problem)| Some((name, problem?))).collect();
        Ok(contents)
    }

    /// The parts do not contradict each other.
    fn check(&mut self, path: &Path) -> Result<(), Failure> {
        let (own, boots) = (self.identity.incarnation, self.boot.incarnation);
        if own != boots {
            let [identity, boot] = [IDENTITY[0], BOOT[0]];
            let problem = format!("{identity} is of incarnation {own:016x}, and {boot} of incarnation {boots:016x}");
            return Err(damaged(path, &problem));
        }
        check_shards(path, &self.identity)?;
        self.marks = read_marks(path, &self.identity)?;
        for (shard, mark) in (0..).zip(&self.marks) {
            if mark.boot > self.boot.boot {
                let problem = format!(
                    "the log of {} was written by start {} of this node, but by {} there were only {}: that file is of an older \
                     copy, or the log is of another",
                    shard_directory(path, shard).display(),
                    mark.boot,
                    BOOT[0],
                    self.boot.boot
                );
                return Err(damaged(path, &problem));
            }
        }
        Ok(())
    }
}

fn one_identity<'a>(path: &Path, found: &'a [Found<Identity>; 2], is_wiping: bool) -> Result<&'a Identity, Failure> {
    let name = |of: &Identity| {
        let Identity { node, cluster, incarnation, .. } = of;
        format!("of node {node} of the cluster '{cluster}', incarnation {incarnation:016x}")
    };
    match (found[0].whole(), found[1].whole()) {
        (Some(one), Some(other)) if one != other && !is_wiping => {
            let [first, second] = IDENTITY;
            Err(damaged(path, &format!("{first} is {}, and {second} is {}", name(one), name(other))))
        }
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => Err(none_counts(path, IDENTITY, found)),
    }
}

fn newest(found: &[Found<Boot>; 2]) -> Option<&Boot> {
    found.iter().filter_map(Found::whole).max_by_key(|boot| boot.write)
}

fn last_boot<'a>(path: &Path, found: &'a [Found<Boot>; 2]) -> Result<&'a Boot, Failure> {
    let last = newest(found).ok_or_else(|| none_counts(path, BOOT, found))?;
    let [first, second] = BOOT;
    for other in found.iter().filter_map(Found::whole) {
        if other.incarnation != last.incarnation && !other.wipe {
            let (one, other) = (last.incarnation, other.incarnation);
            let problem = format!(
                "{first} and {second} are of different incarnations, {one:016x} and {other:016x}: one is not its own"
            );
            return Err(damaged(path, &problem));
        }
        if other.write == last.write && other != last {
            return Err(damaged(path, &format!("{first} and {second} differ, though one is a copy of the other")));
        }
    }
    Ok(last)
}

/// Why a copy is to be made anew. One that is a write behind the other is not: the start or the stop was interrupted.
fn problem_of_boot(found: &Found<Boot>, last: &Boot) -> Option<String> {
    let older = found.whole().filter(|boot| boot.write + 1 < last.write);
    older.map(|older| format!("is older (write {} of {})", older.write, last.write)).or_else(|| found.problem())
}

/// Why no copy of a file can be used.
fn none_counts<T>(path: &Path, names: Names, found: &[Found<T>; 2]) -> Failure {
    let formats =
        found.iter().filter_map(|found| if let Found::OtherFormat(format) = found { Some(*format) } else { None });
    if let Some(format) = formats.max() {
        let build = if format > u64::from(FORMAT) { "newer" } else { "older" };
        let why = format!(
            "it has format {format}; this build of wpaxos reads format {FORMAT}: run the {build} build that wrote it, or start \
             with an empty data directory, as a node that has lost its disk"
        );
        return refused(path, &why);
    }
    let [one, other] = found.each_ref().map(|found| found.problem().expect("it does not count"));
    damaged(path, &format!("{} {one}, and {} {other}", names[0], names[1]))
}

fn check_shards(path: &Path, identity: &Identity) -> Result<(), Failure> {
    let own = |name: &str| (0..identity.shards).any(|shard| format!("shard-{shard}") == name);
    for entry in fs::read_dir(path).map_err(|error| disk_failure(path, "listing it", &error))? {
        let entry = entry.map_err(|error| disk_failure(path, "listing it", &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("shard-") && !own(&name) {
            let why = format!("'{name}' is there, though the node has {} shards: put it elsewhere", identity.shards);
            return Err(refused(path, &why));
        }
    }
    let missing = (0..identity.shards).find(|shard| !shard_directory(path, *shard).is_dir());
    missing.map_or(Ok(()), |shard| {
        let problem = format!("shard-{shard}, the log of this shard, is missing, though the node has run on it before");
        Err(damaged(path, &problem))
    })
}

fn read_marks(path: &Path, identity: &Identity) -> Result<Vec<EndMark>, Failure> {
    let name = |shard| LogName { log: identity.log, shard };
    (0..identity.shards).map(|shard| EndMark::read(&shard_directory(path, shard), name(shard))).collect()
}

/// The state that a directory holds, for people; `None` if it holds none.
pub(crate) fn durable_state(path: &Path) -> Option<String> {
    let found = copies::read::<Identity>(path, IDENTITY).ok()?;
    match found.iter().find_map(Found::whole) {
        Some(identity) => Some(format!("the state of node {} of the cluster '{}'", identity.node, identity.cluster)),
        None => found.iter().any(|found| *found != Found::Missing).then(|| "the state of a node".to_owned()),
    }
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::DataDirectory(format!("data directory {}: {why}", path.display()))
}

fn damaged(path: &Path, problem: &str) -> Failure {
    Failure::Damaged(format!("data directory {} is damaged: {problem}. {ADVICE}", path.display()))
}

fn shard_directory(path: &Path, shard: u16) -> PathBuf {
    path.join(format!("shard-{shard}"))
}

/// What a directory is to a node, by the names in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Nothing of a node's state is there, or a first start did not get through.
    New,
    /// A node has run on it.
    Used,
}

/// Whether a node has run on a directory. One that has something else in it is somebody else's.
fn standing(path: &Path) -> Result<Standing, Failure> {
    let unreadable = |error: io::Error| {
        refused(path, &format!("it cannot be listed: {error}: let this user read and write it, or name another one"))
    };
    let (mut parts, mut foreign, mut beginning) = (None, None, false);
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            name if IDENTITY.contains(&name) => return Ok(Standing::Used),
            BEGINNING => beginning = true,
            LOCK | "lost+found" => {}
            part if BOOT.contains(&part) || part.starts_with("shard-") => parts = Some(name),
            unfinished if unfinished.ends_with(".new") => {}
            _ => foreign = Some(name),
        }
    }
    let [first, second] = IDENTITY;
    match (beginning, parts, foreign) {
        (true, ..) | (false, None, None) => Ok(Standing::New),
        (false, Some(part), _) => Err(damaged(
            path,
            &format!("neither {first} nor {second} is there, though '{part}' is, and a node has run on it"),
        )),
        (false, None, Some(name)) => {
            let why = format!(
                "it is not empty ('{name}' is there) and has no {first}, so it is no data directory of wpaxos: name an empty \
                 one, or bring that file back"
            );
            Err(refused(path, &why))
        }
    }
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
    check_unused(path)?;
    let beginning = path.join(BEGINNING);
    File::create(&beginning).map_err(|error| disk_failure(&beginning, "making it", &error))?;
    sync_directory(path)?;
    make_shards(path, identity, tuning)?;
    let boot = Boot {
        format: FORMAT,
        incarnation: identity.incarnation,
        write: 0,
        boot: 0,
        clean: true,
        durability: mode,
        kernel_boot: String::new(),
        wipe: false,
    };
    copies::write(path, BOOT, &boot)?;
    copies::write(path, IDENTITY, identity)?;
    fs::remove_file(&beginning).map_err(|error| disk_failure(&beginning, "removing it", &error))?;
    sync_directory(path)
}

/// A first start that did not get through has left nothing but empty logs.
fn check_unused(path: &Path) -> Result<(), Failure> {
    let used = |name: &str| {
        let problem = format!("neither {} nor {} is there, though {name} has been used", IDENTITY[0], IDENTITY[1]);
        damaged(path, &problem)
    };
    for (name, found) in BOOT.into_iter().zip(copies::read::<Boot>(path, BOOT)?) {
        if found != Found::Missing && found.whole().is_none_or(|boot| boot.boot > 0) {
            return Err(used(name));
        }
    }
    let listed = |error: io::Error| disk_failure(path, "listing it", &error);
    for shard in fs::read_dir(path).map_err(listed)? {
        let shard = shard.map_err(listed)?;
        if !shard.file_name().to_string_lossy().starts_with("shard-") || !shard.path().is_dir() {
            continue;
        }
        for file in fs::read_dir(shard.path()).map_err(listed)? {
            let file = file.map_err(listed)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_empty = || File::open(&file).and_then(|file| only_zeros(&file)).map_err(listed);
            if name != END && !name.ends_with(".new") && !(name.starts_with("segment-") && is_empty()?) {
                return Err(used(&file.display().to_string()));
            }
        }
    }
    Ok(())
}

fn only_zeros(mut file: &File) -> io::Result<bool> {
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(true);
        }
        if piece[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
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
        EndMark::create(&directory, LogName { log: identity.log, shard })?;
    }
    sync_directory(path)
}

/// The standard library's hash keys come from the system's random source. Not 0.
fn random_number() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests;
