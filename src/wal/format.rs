//! What a segment holds: groups of records, one behind the other, each at a multiple of [`BLOCK`] bytes.
//!
//! ```text
//! GroupHeader (64 bytes) | RecordHeader (8 bytes) | frame | RecordHeader | frame | … | zeros up to a multiple of BLOCK
//! ```
//! All integers are little-endian. The checksum is CRC32C over the header up to the checksum and the records. Behind the
//! last group of a segment is whatever was there before: zeros, or groups of an earlier use of the file.

use bytes::Bytes;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::{
    protocol::{Record, RecordId},
    topology::NodeIndex,
};

/// Groups begin at multiples of this and are so many bytes long: what every device writes in one piece, or in several.
pub(super) const BLOCK: usize = 4096;
/// The number of this layout. What a data directory holds has the number that is in its identity.
pub(super) const FORMAT: u16 = 2;
/// Bytes of a group's header.
pub(super) const HEADER_BYTES: usize = size_of::<GroupHeader>();
/// Bytes before each frame.
pub(super) const RECORD_BYTES: usize = size_of::<RecordHeader>();

/// The first bytes of a group, `WPGR` on the disk.
const MAGIC: u32 = u32::from_le_bytes(*b"WPGR");
const CHECKSUMMED_HEADER_BYTES: usize = 60;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GroupHeader {
    magic: U32,
    format: U16,
    shard: U16,
    log: U64,
    use_number: U64,
    sequence: U64,
    first_record: U64,
    records: U32,
    payload_bytes: U32,
    segment_blocks: U32,
    reserved: U64,
    checksum: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RecordHeader {
    from: u8,
    reserved: [u8; 3],
    frame_bytes: U32,
}

const _: () = {
    assert!(HEADER_BYTES == 64 && RECORD_BYTES == 8);
    assert!(std::mem::offset_of!(GroupHeader, checksum) == CHECKSUMMED_HEADER_BYTES);
};

/// Whose log it is: nothing of another one is ever taken for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogName {
    /// Drawn at random with the node's incarnation, and told to nobody: no client can write a value that looks like a group.
    pub(crate) log: u64,
    pub(crate) shard: u16,
}

/// What a group says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupHead {
    /// Which use of its file it belongs to. Later uses have higher numbers, in all files of a log.
    pub(super) use_number: u64,
    /// Its number: each group has the one behind that of the group before it.
    pub(super) sequence: u64,
    pub(super) first: RecordId,
    pub(super) records: u32,
    /// Bytes of records, their headers included.
    pub(super) payload_bytes: u32,
    /// Bytes of the whole file, a multiple of [`BLOCK`].
    pub(super) segment_bytes: u64,
}

impl GroupHead {
    /// Bytes of the whole group.
    pub(super) fn group_bytes(&self) -> usize {
        group_bytes(self.payload_bytes as usize)
    }

    /// Its last record.
    pub(super) fn last(&self) -> RecordId {
        RecordId(self.first.0 + u64::from(self.records) - 1)
    }
}

/// Bytes of a group with so many bytes of records.
pub(super) const fn group_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(BLOCK)
}

/// Bytes of records that fit into a group of so many bytes.
pub(super) const fn payload_room(group_bytes: usize) -> usize {
    group_bytes.saturating_sub(HEADER_BYTES)
}

/// Bytes of one record.
pub(super) fn record_bytes(record: &Record) -> usize {
    RECORD_BYTES + record.frame.len()
}

/// Writes a group over all of `out`, which has the [`GroupHead::group_bytes`] of it.
pub(super) fn write_group<'a>(
    out: &mut [u8],
    name: LogName,
    head: &GroupHead,
    records: impl Iterator<Item = &'a Record>,
) {
    assert_eq!(out.len(), head.group_bytes(), "a group fills its buffer");
    let mut at = HEADER_BYTES;
    for record in records {
        let bytes = record.frame.len();
        let header = RecordHeader { from: record.from.0, reserved: [0; 3], frame_bytes: (bytes as u32).into() };
        out[at..at + RECORD_BYTES].copy_from_slice(header.as_bytes());
        at += RECORD_BYTES;
        out[at..at + bytes].copy_from_slice(&record.frame);
        at += bytes;
    }
    assert_eq!(at, HEADER_BYTES + head.payload_bytes as usize, "the group says how long it is");
    out[at..].fill(0);
    let mut header = GroupHeader {
        magic: MAGIC.into(),
        format: FORMAT.into(),
        shard: name.shard.into(),
        log: name.log.into(),
        use_number: head.use_number.into(),
        sequence: head.sequence.into(),
        first_record: head.first.0.into(),
        records: head.records.into(),
        payload_bytes: head.payload_bytes.into(),
        segment_blocks: ((head.segment_bytes / BLOCK as u64) as u32).into(),
        reserved: 0.into(),
        checksum: 0.into(),
    };
    header.checksum = checksum(&header, &out[HEADER_BYTES..at]).into();
    out[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

/// What stands at the front of `block`, if that can be a group of this log. Its checksum is not looked at.
pub(super) fn read_head(block: &[u8], name: LogName) -> Option<GroupHead> {
    let (header, _) = GroupHeader::ref_from_prefix(block).ok()?;
    let ours = header.magic.get() == MAGIC
        && header.format.get() == FORMAT
        && header.shard.get() == name.shard
        && header.log.get() == name.log
        && header.reserved.get() == 0
        && header.records.get() > 0;
    ours.then(|| GroupHead {
        use_number: header.use_number.get(),
        sequence: header.sequence.get(),
        first: RecordId(header.first_record.get()),
        records: header.records.get(),
        payload_bytes: header.payload_bytes.get(),
        segment_bytes: u64::from(header.segment_blocks.get()) * BLOCK as u64,
    })
}

/// Whether `group`, of as many bytes as its head says, is as it was written.
pub(super) fn is_whole(group: &[u8], head: &GroupHead) -> bool {
    let (header, rest) = GroupHeader::ref_from_prefix(group).expect("a head was read from it");
    let payload = &rest[..head.payload_bytes as usize];
    header.checksum.get() == checksum(header, payload)
}

/// The checksum that a group carries.
pub(super) fn group_checksum(group: &[u8]) -> u32 {
    let (header, _) = GroupHeader::ref_from_prefix(group).expect("a group begins with its head");
    header.checksum.get()
}

/// What a block says at its front, if no log of this name has written it: a segment begins with zeros, or with a group.
pub(super) fn not_of(block: &[u8], name: LogName) -> Option<String> {
    let (header, _) = GroupHeader::ref_from_prefix(block).ok()?;
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return None;
    }
    if header.magic.get() != MAGIC {
        return Some("it begins with what no log has written".to_owned());
    }
    if header.format.get() != FORMAT {
        return Some(format!("its first group has format {}; this build reads {FORMAT}", header.format.get()));
    }
    let found = LogName { log: header.log.get(), shard: header.shard.get() };
    (found != name).then(|| {
        format!(
            "its first group is of shard {} of log {:016x}; this is shard {} of log {:016x}",
            found.shard, found.log, name.shard, name.log
        )
    })
}

/// The records of a whole group, as views of it; `None` if they do not fill it, which no writer does.
pub(super) fn read_records(group: &Bytes, head: &GroupHead, records: &mut Vec<Record>) -> Option<()> {
    let end = HEADER_BYTES + head.payload_bytes as usize;
    let mut at = HEADER_BYTES;
    for number in 0..u64::from(head.records) {
        let (header, _) = RecordHeader::ref_from_prefix(&group[at..end]).ok()?;
        let start = at + RECORD_BYTES;
        at = start + header.frame_bytes.get() as usize;
        if at > end || header.reserved != [0; 3] {
            return None;
        }
        let id = RecordId(head.first.0 + number);
        records.push(Record { id, from: NodeIndex(header.from), frame: group.slice(start..at) });
    }
    (at == end).then_some(())
}

fn checksum(header: &GroupHeader, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header.as_bytes()[..CHECKSUMMED_HEADER_BYTES]), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: LogName = LogName { log: 7, shard: 3 };

    fn group(frames: &[&[u8]]) -> (GroupHead, Vec<u8>) {
        let record = |(number, frame): (usize, &&[u8])| Record {
            id: RecordId(10 + number as u64),
            from: NodeIndex(number as u8),
            frame: Bytes::copy_from_slice(frame),
        };
        let records: Vec<Record> = frames.iter().enumerate().map(record).collect();
        let payload_bytes = records.iter().map(record_bytes).sum::<usize>() as u32;
        let head = GroupHead {
            use_number: 1,
            sequence: 2,
            first: RecordId(10),
            records: frames.len() as u32,
            payload_bytes,
            segment_bytes: 65_536,
        };
        let mut out = vec![0xff; head.group_bytes()];
        write_group(&mut out, NAME, &head, records.iter());
        (head, out)
    }

    #[test]
    fn a_group_is_read_as_it_was_written() {
        for frames in [&[&b"one"[..], b"", b"three"][..], &[&[7; 5000]], &[&[1; BLOCK - HEADER_BYTES - RECORD_BYTES]]] {
            let (head, bytes) = group(frames);
            assert!(bytes.len().is_multiple_of(BLOCK));
            assert_eq!(read_head(&bytes, NAME), Some(head));
            assert!(is_whole(&bytes, &head));
            let mut records = Vec::new();
            read_records(&Bytes::from(bytes), &head, &mut records).unwrap();
            let read: Vec<&[u8]> = records.iter().map(|record| &record.frame[..]).collect();
            assert_eq!(read, frames);
            assert_eq!(records[0].id, RecordId(10));
            assert_eq!(records.last().map(|record| record.id), Some(head.last()));
        }
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed_and_no_other_log_is_ours() {
        let (head, bytes) = group(&[b"a frame", b"another"]);
        for bit in 0..(HEADER_BYTES + head.payload_bytes as usize) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let fits = |head: &GroupHead| head.group_bytes() <= flipped.len();
            let taken = read_head(&flipped, NAME).filter(fits).is_some_and(|head| is_whole(&flipped, &head));
            assert!(!taken, "bit {bit} was flipped");
        }
        assert_eq!(not_of(&bytes, NAME), None);
        assert_eq!(not_of(&[0; BLOCK], NAME), None);
        assert!(not_of(&bytes, LogName { log: 8, ..NAME }).unwrap().contains("log 0000000000000007"));
        assert!(not_of(&[7; BLOCK], NAME).unwrap().contains("no log has written"));
        assert_eq!(read_head(&bytes, LogName { log: 8, ..NAME }), None);
        assert_eq!(read_head(&bytes, LogName { shard: 4, ..NAME }), None);
        assert_eq!(read_head(&bytes[..10], NAME), None);
        assert_eq!(read_head(&[0; BLOCK], NAME), None);
    }
}
