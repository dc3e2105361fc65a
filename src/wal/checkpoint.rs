//! Checkpoints: everything that a shard knows, in frames, so that the log up to a record may go.
//!
//! ```text
//! Header (64 bytes) | length (4 bytes) | frame | length | frame | … | END (4 bytes) | Footer (32 bytes)
//! ```
//! All integers are little-endian. The footer's checksum is CRC32C over everything before it. A checkpoint is written piece
//! by piece beside the log, under a name that ends in `.new`, and gets its own name when it is whole, durable, and the log
//! holds everything that it may show.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    Shared,
    device::{Files, Sheet, blocking},
    file::{disk_failure, new_name, rename_durably},
    format::{FORMAT, LogName},
    recovery::{Reader, damaged},
};
use crate::{
    failure::Failure,
    mutant::Mutant,
    protocol::RecordId,
    wire::{BODY_BYTES_MAX, HEADER_BYTES},
};

/// A checkpoint is written in pieces of about so many bytes, one at a time.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// So much of it may wait in the page cache for the disk, so that the sync at its end is a short one.
const UNSYNCED_BYTES_MAX: u64 = 8 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"WPCK");
/// In the place of a length: the footer follows.
const END: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    format: U16,
    shard: U16,
    log: U64,
    position: U64,
    reserved: [u8; 40],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Footer {
    frames: U64,
    holds_from: U64,
    bytes: U64,
    reserved: U32,
    checksum: U32,
}

const FOOTER_BYTES: usize = size_of::<Footer>();
const CHECKSUMMED_FOOTER_BYTES: usize = 28;
const _: () = {
    assert!(size_of::<Header>() == 64 && FOOTER_BYTES == 32);
    assert!(std::mem::offset_of!(Footer, checksum) == CHECKSUMMED_FOOTER_BYTES);
};

/// A checkpoint that is whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct CheckpointFile {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// It stands for all records up to this one.
    pub(super) position: RecordId,
    /// It may show effects of records up to this one, which the log held when it became whole.
    pub(super) holds_from: RecordId,
}

impl CheckpointFile {
    /// What the one of this position is called.
    pub(super) fn path(directory: &Path, position: RecordId) -> PathBuf {
        directory.join(format!("checkpoint-{:020}", position.0))
    }
}

/// The bytes of a checkpoint, as they come about.
#[derive(Debug)]
pub(super) struct Encoder {
    frames: u64,
    bytes: u64,
    checksum: u32,
}

impl Encoder {
    /// Begins one in `out`.
    pub(super) fn begin(name: LogName, position: RecordId, out: &mut Vec<u8>) -> Self {
        let header = Header {
            magic: MAGIC.into(),
            format: FORMAT.into(),
            shard: name.shard.into(),
            log: name.log.into(),
            position: position.0.into(),
            reserved: [0; 40],
        };
        let mut encoder = Self { frames: 0, bytes: 0, checksum: 0 };
        encoder.put(header.as_bytes(), out);
        encoder
    }

    pub(super) fn frame(&mut self, frame: &[u8], out: &mut Vec<u8>) {
        self.frames += 1;
        self.put(&(frame.len() as u32).to_le_bytes(), out);
        self.put(frame, out);
    }

    /// Ends it.
    pub(super) fn end(&mut self, holds_from: RecordId, out: &mut Vec<u8>) {
        self.put(&END.to_le_bytes(), out);
        let mut footer = Footer {
            frames: self.frames.into(),
            holds_from: holds_from.0.into(),
            bytes: (self.bytes + FOOTER_BYTES as u64).into(),
            reserved: 0.into(),
            checksum: 0.into(),
        };
        let checksum = crc32c::crc32c_append(self.checksum, &footer.as_bytes()[..CHECKSUMMED_FOOTER_BYTES]);
        footer.checksum = checksum.into();
        self.put(footer.as_bytes(), out);
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.bytes += bytes.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        out.extend_from_slice(bytes);
    }
}

/// Reads a checkpoint from front to back.
#[derive(Debug)]
pub(super) struct CheckpointReader {
    reader: Reader,
    file: CheckpointFile,
    frames: u64,
    checksum: u32,
}

impl CheckpointReader {
    /// # Errors
    /// If it cannot be read, or is not the checkpoint that its name says.
    pub(super) fn open(files: &dyn Files, file: &CheckpointFile, name: LogName) -> Result<Self, Failure> {
        let reader = Reader::open(files, &file.path)?;
        let mut reader = Self { reader, file: file.clone(), frames: 0, checksum: 0 };
        let header = reader.take(size_of::<Header>())?;
        let (header, _) = Header::read_from_prefix(&header).expect("it has the size of one");
        let ours = header.magic.get() == MAGIC
            && header.format.get() == FORMAT
            && header.shard.get() == name.shard
            && header.log.get() == name.log
            && header.position.get() == file.position.0;
        if ours {
            Ok(reader)
        } else {
            Err(damaged(&file.path, 0, "its head is not that of this checkpoint of this log"))
        }
    }

    /// The next frame, or `None` at the end, once everything was found to be as it was written.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let at = self.reader.offset();
        let length = self.take(4)?;
        let length = u32::from_le_bytes(length[..].try_into().expect("four bytes"));
        if length == END {
            return self.end().map(|()| None);
        }
        if length as usize > HEADER_BYTES + BODY_BYTES_MAX {
            return Err(damaged(&self.file.path, at, &format!("no frame has {length} bytes")));
        }
        self.frames += 1;
        self.take(length as usize).map(Some)
    }

    fn end(&mut self) -> Result<(), Failure> {
        let at = self.reader.offset();
        let before = self.checksum;
        let footer = self.take(FOOTER_BYTES)?;
        let checksum = crc32c::crc32c_append(before, &footer[..CHECKSUMMED_FOOTER_BYTES]);
        let (footer, _) = Footer::read_from_prefix(&footer).expect("it has the size of one");
        let whole = footer.checksum.get() == checksum
            && footer.frames.get() == self.frames
            && footer.bytes.get() == self.reader.offset()
            && self.file.bytes == self.reader.offset();
        if !whole {
            return Err(damaged(&self.file.path, at, "its checksum, or its length, is not what was written"));
        }
        self.file.holds_from = RecordId(footer.holds_from.get().max(self.file.position.0));
        Ok(())
    }

    /// The file, with what its end says once that has been reached.
    pub(super) fn file(&self) -> &CheckpointFile {
        &self.file
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.reader.offset()
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, Failure> {
        if !self.reader.fill(bytes)? {
            return Err(damaged(&self.file.path, self.file.bytes, "the file was cut: a checkpoint goes on here"));
        }
        let taken = self.reader.take(bytes);
        self.checksum = crc32c::crc32c_append(self.checksum, &taken);
        Ok(taken)
    }
}

/// A checkpoint that is being written.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) position: RecordId,
    encoder: Encoder,
    /// Frames that are not staged yet: those of the beginning may be many.
    waiting: VecDeque<Bytes>,
    /// Bytes that have not been written.
    staged: Vec<u8>,
    /// Bytes that have.
    pub(super) written: u64,
    /// Everything is staged, and shows effects of records up to this one.
    pub(super) ended: Option<RecordId>,
    /// The footer is staged too, or written.
    footed: bool,
}

impl Open {
    pub(super) fn begin(name: LogName, position: RecordId, frames: Vec<Bytes>) -> Self {
        let mut staged = Vec::with_capacity(2 * PIECE_BYTES);
        let encoder = Encoder::begin(name, position, &mut staged);
        Self { position, encoder, waiting: frames.into(), staged, written: 0, ended: None, footed: false }
    }

    pub(super) fn objects(&mut self, frame: Bytes) {
        self.waiting.push_back(frame);
    }

    pub(super) fn end(&mut self, record: RecordId) {
        self.ended = Some(record);
    }

    /// How many bytes more make a piece.
    pub(super) fn room(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(Bytes::len).sum();
        if self.ended.is_some() { 0 } else { PIECE_BYTES.saturating_sub(self.staged.len() + waiting) }
    }

    /// What is to be written now, and where.
    fn take_piece(&mut self) -> Option<(Vec<u8>, u64)> {
        while self.staged.len() < PIECE_BYTES
            && let Some(frame) = self.waiting.pop_front()
        {
            self.encoder.frame(&frame, &mut self.staged);
        }
        if let (Some(record), true, false) = (self.ended, self.waiting.is_empty(), self.footed) {
            self.footed = true;
            self.encoder.end(record, &mut self.staged);
        }
        let due = self.staged.len() >= PIECE_BYTES || (self.ended.is_some() && !self.staged.is_empty());
        due.then(|| (std::mem::replace(&mut self.staged, Vec::with_capacity(PIECE_BYTES)), self.written))
    }
}

/// Writes the checkpoint that has begun, until it has its name, or until the log is closed.
///
/// It goes through the page cache, for its pieces have any length, and the disk's queue is the log's.
///
/// # Errors
/// If it cannot be written.
pub(super) async fn write(shared: &Rc<Shared>) -> Result<(), Failure> {
    let position = shared.checkpoint.borrow().as_ref().expect("one has begun").position;
    let path = CheckpointFile::path(&shared.spec.directory, position);
    let new = new_name(&path);
    let failed = |doing: &str, error| disk_failure(&new, doing, &error);
    let sheet = shared.device.create_sheet(&new).await.map_err(|error| failed("making it", error))?;
    let Some(holds_from) = write_pieces(shared, &*sheet, &new).await? else { return Ok(()) };
    let has = |mutant: Mutant| mutant.is_in(shared.spec.mutant);
    if has(Mutant::SegmentsFreedEarly) {
        shared.state.borrow_mut().free_up_to(position);
    }
    while shared.state.borrow().durable < holds_from && !has(Mutant::CheckpointUnawaited) {
        if shared.has_ended() {
            return Ok(());
        }
        shared.checkpoint_work.notified().await;
    }
    if !has(Mutant::CheckpointUnsynced) {
        sheet.sync().await.map_err(|error| failed("syncing it", error))?;
    }
    let bytes = shared.checkpoint.borrow().as_ref().expect("it is being written").written;
    sheet.close().await;
    let (from, to, synced) = (new.clone(), path.clone(), !has(Mutant::CheckpointNameUnsynced));
    let named = move |files: &dyn Files| match synced {
        true => rename_durably(files, &from, &to),
        false => files.rename(&from, &to).map_err(|error| disk_failure(&from, "renaming it", &error)),
    };
    blocking(&*shared.device, named).await?;
    shared.checkpointed(CheckpointFile { path, bytes, position, holds_from }).await
}

/// Writes piece after piece. The last record whose effects it shows; `None` if the log was closed before.
async fn write_pieces(shared: &Rc<Shared>, sheet: &dyn Sheet, path: &Path) -> Result<Option<RecordId>, Failure> {
    let mut synced = 0;
    loop {
        if shared.has_ended() {
            return Ok(None);
        }
        let piece = shared.checkpoint.borrow_mut().as_mut().expect("it is being written").take_piece();
        let Some((piece, at)) = piece else {
            let ended = shared.checkpoint.borrow().as_ref().expect("it is being written").ended;
            if ended.is_some() {
                return Ok(ended);
            }
            shared.wake_shard();
            shared.checkpoint_work.notified().await;
            continue;
        };
        let bytes = piece.len();
        let doing = || format!("writing {bytes} bytes at {at}");
        match sheet.write(piece, at).await {
            Ok(written) if written == bytes => {}
            Ok(written) => {
                let error = std::io::Error::other(format!("only {written} bytes were written"));
                return Err(disk_failure(path, &doing(), &error));
            }
            Err(error) => return Err(disk_failure(path, &doing(), &error)),
        }
        if at - synced >= UNSYNCED_BYTES_MAX {
            sheet.sync().await.map_err(|error| disk_failure(path, "syncing it", &error))?;
            synced = at;
        }
        shared.checkpoint.borrow_mut().as_mut().expect("it is being written").written += bytes as u64;
        // A writer that waits for the checkpoint to get on, and the shard that has more of it.
        shared.work.notify();
        shared.wake_shard();
    }
}
