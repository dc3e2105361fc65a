//! A simulated block device with a file system on it: the files of one shard's log, as a process sees them and as they are on
//! the medium.
//!
//! What is written is seen at once, and on the medium when it is synced; a file's name when its directory is. A power cut
//! keeps of the rest any sectors, any sizes, and any changes of names that do not rest on a change that is lost. The end of
//! a process loses only what its last write had not reached. A device may also fill, fail, have bits flipped, and be put
//! back to an older state.
//!
//! Files are sparse: what holds zeros takes no memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::random::Random;
use crate::wal::device::{File, Files, Open, OpenFile};

const BLOCK: u64 = 4096;
/// A device writes a sector in one piece or not at all.
const SECTOR: usize = 512;

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The process ends, the system goes on: what was written stays, and of a write under way any sectors.
    Process,
    /// The power fails: everything that was not synced is gone.
    LosesUnsynced,
    /// The power fails: of what was not synced, any part is there.
    KeepsSome,
}

/// A device. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockDevice(Arc<Mutex<Medium>>);

#[derive(Clone, Debug)]
struct Medium {
    files: BTreeMap<u64, Stored>,
    next_file: u64,
    /// Files by their names, as processes see them.
    names: BTreeMap<String, u64>,
    /// As they are on the medium.
    durable_names: BTreeMap<String, u64>,
    /// What makes the one of the other, in order.
    changes: Vec<Change>,
    /// Bytes that all files may have together.
    capacity_bytes: u64,
    /// After so many calls, every call fails and does nothing.
    calls_left: Option<u64>,
    calls: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Make(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Debug, Default)]
struct Stored {
    bytes: u64,
    durable_bytes: u64,
    /// Blocks that hold anything but zeros, on the medium.
    blocks: BTreeMap<u64, Bytes>,
    /// Writes that are not, in order.
    unsynced: Vec<Write>,
}

#[derive(Clone, Debug)]
struct Write {
    number: u64,
    offset: u64,
    bytes: Bytes,
    /// Whoever waits for it has been told.
    ended: bool,
}

impl Default for Medium {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            next_file: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            capacity_bytes: u64::MAX,
            calls_left: None,
            calls: 0,
        }
    }
}

impl BlockDevice {
    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another device that holds the same now, with everything that processes see.
    pub(crate) fn copy(&self) -> Self {
        let mut medium = self.medium().clone();
        medium.capacity_bytes = u64::MAX;
        medium.settle(None);
        Self(Arc::new(Mutex::new(medium)))
    }

    /// All files may have so many bytes together.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.medium().capacity_bytes = bytes;
    }

    /// Bytes of all files.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.medium().used_bytes()
    }

    /// From now on so many calls are obeyed, and none after them; `None` for all.
    pub(crate) fn set_calls_left(&self, calls: Option<u64>) {
        self.medium().calls_left = calls;
    }

    /// Calls so far that were obeyed.
    pub(crate) fn calls(&self) -> u64 {
        self.medium().calls
    }

    /// The process that uses it ends.
    pub(crate) fn end(&self, end: End, random: &mut Random) {
        let mut medium = self.medium();
        medium.calls_left = None;
        match end {
            End::Process => {
                for stored in medium.files.values_mut() {
                    stored.end_writes(random);
                }
            }
            End::LosesUnsynced => medium.forget(),
            End::KeepsSome => medium.settle(Some(random)),
        }
        let named: BTreeSet<u64> = medium.names.values().chain(medium.durable_names.values()).copied().collect();
        medium.files.retain(|file, _| named.contains(file));
    }

    /// Flips a bit of some file, on the medium; mostly one of a block that holds something. The file and the place.
    pub(crate) fn flip(&self, random: &mut Random) -> Option<(String, u64)> {
        let mut medium = self.medium();
        let names: Vec<(String, u64)> = medium.names.iter().map(|(name, file)| (name.clone(), *file)).collect();
        if names.is_empty() {
            return None;
        }
        let (name, file) = random.pick(&names).clone();
        let stored = medium.files.get_mut(&file).expect("it has a name");
        stored.sync();
        let blocks: Vec<u64> = stored.blocks.keys().copied().collect();
        let block = if blocks.is_empty() || random.permille(100) {
            random.below(stored.bytes.div_ceil(BLOCK).max(1))
        } else {
            *random.pick(&blocks)
        };
        let offset = block * BLOCK + random.below(BLOCK);
        if offset >= stored.bytes {
            return None;
        }
        let mut byte = [0];
        stored.read(&mut byte, offset);
        stored.put(offset, &Bytes::from(vec![byte[0] ^ (1 << random.below(8))]));
        Some((name, offset))
    }

    /// Begins a write of a segment; its number.
    pub(super) fn begin_write(&self, file: u64, offset: u64, bytes: Bytes) -> io::Result<u64> {
        let mut medium = self.medium();
        medium.obey()?;
        medium.write(file, offset, bytes, false)
    }

    /// Such a write ends; with `synced` it is on the medium.
    pub(super) fn end_write(&self, file: u64, number: u64, synced: bool) -> io::Result<()> {
        let mut medium = self.medium();
        medium.obey()?;
        let stored = medium.files.get_mut(&file).expect("it is open");
        let place = stored.unsynced.iter().position(|write| write.number == number);
        let Some(place) = place else { return Ok(()) };
        if synced {
            // What was written there before reaches the medium first.
            for Write { offset, bytes, .. } in stored.unsynced.drain(..=place).collect::<Vec<_>>() {
                stored.put(offset, &bytes);
            }
        } else {
            stored.unsynced[place].ended = true;
        }
        Ok(())
    }

    pub(super) fn open_file(&self, path: &Path) -> io::Result<Opened> {
        let mut medium = self.medium();
        medium.obey()?;
        let file = *medium.names.get(&name_of(path)).ok_or_else(not_found)?;
        Ok(Opened { device: self.clone(), file, synced: false })
    }

    pub(super) fn create_file(&self, path: &Path) -> io::Result<Opened> {
        let mut medium = self.medium();
        medium.obey()?;
        let file = medium.next_file;
        medium.next_file += 1;
        medium.files.insert(file, Stored::default());
        medium.change(Change::Make(name_of(path), file));
        Ok(Opened { device: self.clone(), file, synced: false })
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a file has a name").to_string_lossy().into_owned()
}

fn not_found() -> io::Error {
    rustix::io::Errno::NOENT.into()
}

impl Medium {
    /// Whether a call is obeyed.
    fn obey(&mut self) -> io::Result<()> {
        match &mut self.calls_left {
            Some(0) => return Err(rustix::io::Errno::IO.into()),
            Some(left) => *left -= 1,
            None => {}
        }
        self.calls += 1;
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| self.files[file].bytes).sum()
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    /// Lets a file have so many bytes.
    fn grow(&mut self, file: u64, bytes: u64) -> io::Result<()> {
        let before = self.files[&file].bytes;
        if bytes > before && self.used_bytes() + (bytes - before) > self.capacity_bytes {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        let stored = self.files.get_mut(&file).expect("it is open");
        stored.bytes = stored.bytes.max(bytes);
        Ok(())
    }

    fn write(&mut self, file: u64, offset: u64, bytes: Bytes, ended: bool) -> io::Result<u64> {
        self.grow(file, offset + bytes.len() as u64)?;
        let number = self.calls;
        let stored = self.files.get_mut(&file).expect("it is open");
        stored.unsynced.push(Write { number, offset, bytes, ended });
        Ok(number)
    }

    /// The power fails: everything is as on the medium.
    fn forget(&mut self) {
        self.names.clone_from(&self.durable_names);
        self.changes.clear();
        for stored in self.files.values_mut() {
            stored.unsynced.clear();
            stored.bytes = stored.durable_bytes;
        }
    }

    /// The power fails, and some of what was not synced is on the medium; all of it without a random stream.
    fn settle(&mut self, mut random: Option<&mut Random>) {
        // Of changes, mostly few are lost, and whatever rests on one that is.
        let kept_permille = random.as_mut().map_or(1000, |random| *random.pick(&[0, 300, 700, 1000]));
        let mut lost = BTreeSet::new();
        for change in std::mem::take(&mut self.changes) {
            let keeps = random.as_mut().is_none_or(|random| random.permille(kept_permille));
            if keeps && change.names().iter().all(|name| !lost.contains(*name)) {
                apply(&mut self.durable_names, &change);
            } else {
                lost.extend(change.names().into_iter().map(str::to_owned));
            }
        }
        for stored in self.files.values_mut() {
            let keeps = random.as_mut().is_none_or(|random| random.permille(500));
            match &mut random {
                Some(random) => stored.tear(random),
                None => stored.sync(),
            }
            if keeps {
                stored.durable_bytes = stored.bytes;
            }
        }
        self.forget();
    }
}

impl Change {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Make(name, _) | Self::Remove(name) => vec![name],
            Self::Rename(from, to) => vec![from, to],
        }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Make(name, file) => {
            names.insert(name.clone(), *file);
        }
        Change::Rename(from, to) => {
            let file = names.remove(from).expect("a change rests on those before it");
            names.insert(to.clone(), file);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Stored {
    /// Puts bytes on the medium.
    fn put(&mut self, offset: u64, bytes: &Bytes) {
        let mut at = 0;
        while at < bytes.len() {
            let (block, within) = ((offset + at as u64) / BLOCK, (offset + at as u64) % BLOCK);
            let piece = (bytes.len() - at).min((BLOCK - within) as usize);
            let part = bytes.slice(at..at + piece);
            if piece as u64 == BLOCK {
                self.blocks.insert(block, part);
            } else {
                let mut whole = self.blocks.get(&block).map_or_else(|| vec![0; BLOCK as usize], |old| old.to_vec());
                whole[within as usize..within as usize + piece].copy_from_slice(&part);
                self.blocks.insert(block, whole.into());
            }
            at += piece;
        }
    }

    /// Reads what processes see.
    fn read(&self, into: &mut [u8], offset: u64) {
        into.fill(0);
        let end = offset + into.len() as u64;
        let blocks = self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK));
        let blocks = blocks.map(|(block, bytes)| (block * BLOCK, bytes));
        for (at, bytes) in blocks.chain(self.unsynced.iter().map(|write| (write.offset, &write.bytes))) {
            let (from, to) = (at.max(offset), (at + bytes.len() as u64).min(end));
            if from < to {
                let part = &bytes[(from - at) as usize..(to - at) as usize];
                into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
    }

    fn sync(&mut self) {
        for Write { offset, bytes, .. } in std::mem::take(&mut self.unsynced) {
            self.put(offset, &bytes);
        }
        self.durable_bytes = self.bytes;
    }

    /// Any sectors of what was not synced reach the medium.
    fn tear(&mut self, random: &mut Random) {
        for write in std::mem::take(&mut self.unsynced) {
            for (offset, bytes) in sectors(&write, random) {
                self.put(offset, &bytes);
            }
        }
    }

    /// The process ends: of writes under way any sectors are there.
    fn end_writes(&mut self, random: &mut Random) {
        for write in std::mem::take(&mut self.unsynced) {
            if write.ended {
                self.unsynced.push(write);
                continue;
            }
            let number = write.number;
            let parts = sectors(&write, random).into_iter();
            self.unsynced.extend(parts.map(|(offset, bytes)| Write { number, offset, bytes, ended: true }));
        }
    }
}

/// Some sectors of a write: all, none, those up to a place, or any.
fn sectors(write: &Write, random: &mut Random) -> Vec<(u64, Bytes)> {
    let count = write.bytes.len().div_ceil(SECTOR);
    let up_to = random.below(count as u64 + 1) as usize;
    let how = random.below(4);
    let kept = (0..count).filter(|sector| match how {
        0 => false,
        1 => true,
        2 => *sector < up_to,
        _ => random.permille(500),
    });
    let part = |sector: usize| {
        let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(write.bytes.len()));
        (write.offset + from as u64, write.bytes.slice(from..to))
    };
    kept.map(part).collect()
}

impl Files for BlockDevice {
    fn list(&self, _: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut medium = self.medium();
        medium.obey()?;
        Ok(medium.names.iter().map(|(name, file)| (name.clone(), medium.files[file].bytes)).collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        let opened = self.open_file(path)?;
        Ok(Arc::new(Opened { synced: matches!(how, Open::Write { synced: true, .. }), ..opened }))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        Ok(Arc::new(self.create_file(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut medium = self.medium();
        medium.obey()?;
        medium.names.get(&name_of(from)).ok_or_else(not_found)?;
        medium.change(Change::Rename(name_of(from), name_of(to)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut medium = self.medium();
        medium.obey()?;
        medium.names.get(&name_of(path)).ok_or_else(not_found)?;
        medium.change(Change::Remove(name_of(path)));
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        let mut medium = self.medium();
        medium.obey()?;
        medium.changes.clear();
        medium.durable_names = medium.names.clone();
        Ok(())
    }
}

/// A file that is open.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    device: BlockDevice,
    pub(super) file: u64,
    pub(super) synced: bool,
}

impl OpenFile for Opened {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.device.medium().files[&self.file].bytes)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut medium = self.device.medium();
        medium.obey()?;
        let stored = &medium.files[&self.file];
        if offset + into.len() as u64 > stored.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stored.read(into, offset);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut medium = self.device.medium();
        medium.obey()?;
        medium.write(self.file, offset, Bytes::copy_from_slice(bytes), true)?;
        Ok(bytes.len())
    }

    fn fill(&self, bytes: u64) -> io::Result<()> {
        let mut medium = self.device.medium();
        medium.obey()?;
        medium.grow(self.file, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut medium = self.device.medium();
        medium.obey()?;
        medium.files.get_mut(&self.file).expect("it is open").sync();
        Ok(())
    }

    fn forget_pages(&self) {}

    fn simulated(&self) -> Option<(u64, bool)> {
        Some((self.file, self.synced))
    }
}
