//! Frames: the unit of everything that travels between nodes, between clients and nodes, and into the log.
//!
//! ```text
//! FrameHeader (24 bytes) | body (`body_bytes`)
//! ```
//! All integers are little-endian. The checksum is CRC32C over the header up to the checksum and the body.
//!
//! **Compatibility.** A frame of another [`WIRE_VERSION`] is refused: mixed versions cannot run together, and a log cannot be
//! read by another version. 2 is the first that logs are written in.

mod limits;

use bytes::{Bytes, BytesMut};
pub use limits::{BATCH_BYTES_MAX, ENTRIES_OPEN_MAX, SPLIT_BYTES, WITHDRAWN_MAX};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// The first bytes of every frame, `WPAX` on the wire.
pub const MAGIC: u32 = u32::from_le_bytes(*b"WPAX");
/// The version of the frame layout and of all bodies.
pub const WIRE_VERSION: u8 = 4;
/// The largest body that a receiver takes, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();

/// The fixed head of a frame.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`WIRE_VERSION`].
    pub wire_version: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// The shard that it is for.
    pub shard: U16,
    /// Bytes of body.
    pub body_bytes: U32,
    /// The configuration version of everything in the frame (`protocol.md` §8).
    pub config_version: U32,
    /// Must be 0.
    pub reserved: U32,
    /// CRC32C of the header before this field, then of the body.
    pub checksum: U32,
}

const _: () = {
    assert!(size_of::<FrameHeader>() == 24);
    assert!(std::mem::offset_of!(FrameHeader, checksum) == CHECKSUMMED_HEADER_BYTES);
};
const CHECKSUMMED_HEADER_BYTES: usize = 20;

/// What a frame's body is. The numbers are on the wire; a retired number is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First frame of a peer's connection ([`crate::shard`]).
    PeerHello = 1,
    /// The answer to a hello that is accepted.
    PeerWelcome = 2,
    /// The answer to a hello that is not: UTF-8 text that says why. The connection closes.
    Refused = 3,
    /// Entries of an accept stream, and its commit watermark.
    AcceptBatch = 16,
    /// A receiver's cumulative answer to a stream.
    Ack = 17,
    /// Where a receiver stands in a stream, sent when a link comes up.
    Resume = 18,
    /// The stream no longer reaches back to where the receiver stands; it goes on behind a number.
    Skip = 19,
    /// Phase 1a of many objects.
    Prepare = 20,
    /// Phase 1b of many objects.
    Promise = 21,
    /// Prepares that were beaten, each with the ballot that beat it.
    Reject = 22,
    /// Client requests passed to an owner.
    Forward = 23,
    /// Answers to forwarded requests.
    ForwardReply = 24,
    /// The owner asks a node to take objects over.
    Handover = 25,
    /// An owner asks whether it still is, before it answers reads.
    Confirm = 26,
    /// The answer to Confirm, with the objects that somebody else has taken.
    ConfirmReply = 27,
    /// Sign of life and round-trip measurement.
    Heartbeat = 28,
    /// Asks for the state of objects.
    StateRequest = 29,
    /// The state of objects.
    State = 30,
    /// All states for what a Skip left out have been sent.
    CatchUpDone = 31,
    /// How far the sender got in streams that have ended.
    Compare = 32,
    /// Asks for a list of objects and how much of each is executed.
    ListRequest = 33,
    /// A page of that list.
    List = 34,
    /// A configuration version: told to whoever has a lower one, or is taken for somebody else.
    Configuration = 35,
    /// A step of the Paxos instance that decides the next configuration version.
    Reconfigure = 36,
    /// A newcomer asks for a list of objects with their tails.
    MergeRequest = 37,
    /// A page of that list.
    Merge = 38,
    /// Asks for objects that the sender has never heard of, before it answers reads of them.
    Probe = 39,
    /// The answer to Probe, with the objects that the receiver knows.
    ProbeReply = 40,
    /// The receiver came back with less than it had acked.
    Older = 41,
    /// In logs: what a node knows of the configuration.
    Membership = 48,
    /// In checkpoints: a place in a stream.
    StreamPlace = 49,
    /// In checkpoints: objects.
    Kept = 50,
    /// First frame of a client's connection ([`crate::api::native`]).
    ClientHello = 64,
    /// The answer to a client's hello: the cluster as JSON.
    ClientWelcome = 65,
    /// Client requests.
    Request = 66,
    /// Answers to client requests.
    Reply = 67,
    /// Asks a shard for its counters.
    StatsRequest = 68,
    /// A shard's counters as JSON.
    Stats = 69,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::PeerHello,
            2 => Self::PeerWelcome,
            3 => Self::Refused,
            16 => Self::AcceptBatch,
            17 => Self::Ack,
            18 => Self::Resume,
            19 => Self::Skip,
            20 => Self::Prepare,
            21 => Self::Promise,
            22 => Self::Reject,
            23 => Self::Forward,
            24 => Self::ForwardReply,
            25 => Self::Handover,
            26 => Self::Confirm,
            27 => Self::ConfirmReply,
            28 => Self::Heartbeat,
            29 => Self::StateRequest,
            30 => Self::State,
            31 => Self::CatchUpDone,
            32 => Self::Compare,
            33 => Self::ListRequest,
            34 => Self::List,
            35 => Self::Configuration,
            36 => Self::Reconfigure,
            37 => Self::MergeRequest,
            38 => Self::Merge,
            39 => Self::Probe,
            40 => Self::ProbeReply,
            41 => Self::Older,
            48 => Self::Membership,
            49 => Self::StreamPlace,
            50 => Self::Kept,
            64 => Self::ClientHello,
            65 => Self::ClientWelcome,
            66 => Self::Request,
            67 => Self::Reply,
            68 => Self::StatsRequest,
            69 => Self::Stats,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame. The connection that they came on is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol, or the stream has lost its place.
    #[error("the frame starts with {0:#010x}, not with {MAGIC:#010x}")]
    Magic(u32),
    /// Another version of the wire format.
    #[error("the frame has wire version {0}; this build speaks {WIRE_VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A reserved field is not 0.
    #[error("a reserved field of the frame is not 0")]
    Reserved,
    /// Larger than a receiver takes.
    #[error("the frame's body has {bytes} bytes; at most {max} are taken of a {kind:?}", max = kind.body_bytes_max())]
    TooLarge {
        /// The frame's kind.
        kind: Kind,
        /// Bytes of body.
        bytes: u32,
    },
    /// Less or more than one frame.
    #[error("{0} bytes are not one whole frame")]
    Partial(usize),
    /// The bytes were changed on the way.
    #[error("the frame's checksum is {said:#010x}, its bytes give {found:#010x}")]
    Checksum {
        /// As in the header.
        said: u32,
        /// As computed.
        found: u32,
    },
    /// The body does not have the layout of its kind.
    #[error("a {kind:?} body of {bytes} bytes is malformed: {what}")]
    Body {
        /// The frame's kind.
        kind: Kind,
        /// Bytes of body.
        bytes: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A received frame: its header's fields and its body, a slice of the receive buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: Kind,
    /// The shard that it is for.
    pub shard: u16,
    /// The configuration version of its contents.
    pub config_version: u32,
    /// The whole frame as it came: what goes into the log.
    pub bytes: Bytes,
}

impl Frame {
    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

/// Begins a frame in `out`: leaves room for the header. Give what it returns to [`finish`].
pub fn begin(out: &mut BytesMut) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

/// Ends the frame that [`begin`] began at `start`: everything after it is the body. Writes header and checksum.
///
/// # Panics
/// If the body is larger than [`Kind::body_bytes_max`]; callers split before.
pub fn finish(out: &mut BytesMut, start: usize, kind: Kind, shard: u16, config_version: u32) {
    let frame = &mut out[start..];
    let body_bytes = frame.len() - HEADER_BYTES;
    assert!(body_bytes <= kind.body_bytes_max(), "a {kind:?} body of {body_bytes} bytes was not split");
    let (header, body) = frame.split_at_mut(HEADER_BYTES);
    let mut fields = FrameHeader {
        magic: MAGIC.into(),
        wire_version: WIRE_VERSION,
        kind: kind as u8,
        shard: shard.into(),
        body_bytes: (body_bytes as u32).into(),
        config_version: config_version.into(),
        reserved: 0.into(),
        checksum: 0.into(),
    };
    fields.checksum = checksum(&fields, body).into();
    header.copy_from_slice(fields.as_bytes());
}

/// A whole frame with this body, for frames that are not built in place.
pub fn frame(kind: Kind, shard: u16, config_version: u32, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body.len());
    let start = begin(&mut out);
    out.extend_from_slice(body);
    finish(&mut out, start, kind, shard, config_version);
    out.freeze()
}

/// How many bytes the frame at the front of `received` has, header included, or `None` while that is unknown. Checks
/// everything that the header alone can tell, so that no buffer is ever sized by a stranger's number.
///
/// # Errors
/// If these bytes cannot become a frame.
pub fn frame_bytes(received: &[u8]) -> Result<Option<usize>, FrameError> {
    let Ok((header, _)) = FrameHeader::ref_from_prefix(received) else {
        return Ok(None);
    };
    if header.magic.get() != MAGIC {
        return Err(FrameError::Magic(header.magic.get()));
    }
    if header.wire_version != WIRE_VERSION {
        return Err(FrameError::Version(header.wire_version));
    }
    let Some(kind) = Kind::from_wire(header.kind) else { return Err(FrameError::Kind(header.kind)) };
    if header.reserved.get() != 0 {
        return Err(FrameError::Reserved);
    }
    if header.body_bytes.get() as usize > kind.body_bytes_max() {
        return Err(FrameError::TooLarge { kind, bytes: header.body_bytes.get() });
    }
    Ok(Some(HEADER_BYTES + header.body_bytes.get() as usize))
}

/// A received frame whose bytes stay where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// What the body is.
    pub kind: Kind,
    /// The shard that it is for.
    pub shard: u16,
    /// The configuration version of its contents.
    pub config_version: u32,
    /// The body.
    pub body: &'a [u8],
}

/// Checks one whole frame (of the length that [`frame_bytes`] gave) and views it.
///
/// # Errors
/// If the header or the checksum is wrong.
///
/// # Panics
/// If `bytes` are not exactly as many as [`frame_bytes`] says.
pub fn view(bytes: &[u8]) -> Result<FrameRef<'_>, FrameError> {
    let whole = frame_bytes(bytes)?;
    assert!(whole == Some(bytes.len()), "the caller splits at frame borders");
    let (header, body) = FrameHeader::ref_from_prefix(bytes).expect("whole");
    let (said, found) = (header.checksum.get(), checksum(header, body));
    if said != found {
        return Err(FrameError::Checksum { said, found });
    }
    let (kind, shard) = (Kind::from_wire(header.kind).expect("checked"), header.shard.get());
    Ok(FrameRef { kind, shard, config_version: header.config_version.get(), body })
}

/// Checks one whole frame (of the length that [`frame_bytes`] gave) and takes it apart without copying, for whoever
/// keeps its bytes.
///
/// # Errors
/// If the header or the checksum is wrong.
///
/// # Panics
/// If `bytes` are not exactly as many as [`frame_bytes`] says.
pub fn parse(bytes: Bytes) -> Result<Frame, FrameError> {
    let FrameRef { kind, shard, config_version, .. } = view(&bytes)?;
    Ok(Frame { kind, shard, config_version, bytes })
}

fn checksum(header: &FrameHeader, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header.as_bytes()[..CHECKSUMMED_HEADER_BYTES]), body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 38] = [
        Kind::PeerHello,
        Kind::PeerWelcome,
        Kind::Refused,
        Kind::AcceptBatch,
        Kind::Ack,
        Kind::Resume,
        Kind::Skip,
        Kind::Prepare,
        Kind::Promise,
        Kind::Reject,
        Kind::Forward,
        Kind::ForwardReply,
        Kind::Handover,
        Kind::Confirm,
        Kind::ConfirmReply,
        Kind::Heartbeat,
        Kind::StateRequest,
        Kind::State,
        Kind::CatchUpDone,
        Kind::Compare,
        Kind::ListRequest,
        Kind::List,
        Kind::Configuration,
        Kind::Reconfigure,
        Kind::MergeRequest,
        Kind::Merge,
        Kind::Probe,
        Kind::ProbeReply,
        Kind::Older,
        Kind::Membership,
        Kind::StreamPlace,
        Kind::Kept,
        Kind::ClientHello,
        Kind::ClientWelcome,
        Kind::Request,
        Kind::Reply,
        Kind::StatsRequest,
        Kind::Stats,
    ];

    fn with(frame: &Bytes, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut changed = frame.to_vec();
        changed[offset..offset + bytes.len()].copy_from_slice(bytes);
        changed
    }

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        for (number, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(Kind::from_wire(kind as u8), Some(kind));
            let body = vec![number as u8; (number * 100).min(kind.body_bytes_max())];
            let bytes = frame(kind, 3, 7, &body);
            assert_eq!(frame_bytes(&bytes), Ok(Some(bytes.len())));
            let parsed = parse(bytes.clone()).unwrap();
            assert_eq!((parsed.kind, parsed.shard, parsed.config_version), (kind, 3, 7));
            assert_eq!((parsed.body(), &parsed.bytes), (body.as_slice(), &bytes));
            assert_eq!(view(&bytes), Ok(FrameRef { kind, shard: 3, config_version: 7, body: &body }));
        }
        assert_eq!((0..=255).filter_map(Kind::from_wire).count(), KINDS.len(), "KINDS lacks some");
    }

    #[test]
    fn frames_built_in_place_lie_one_behind_the_other() {
        let mut out = BytesMut::from("before".as_bytes());
        let first = begin(&mut out);
        out.extend_from_slice(b"one");
        finish(&mut out, first, Kind::Request, 1, 0);
        let second = begin(&mut out);
        finish(&mut out, second, Kind::Reply, 2, 0);
        let length = frame_bytes(&out[6..]).unwrap().unwrap();
        assert_eq!(&out[6..6 + length], &frame(Kind::Request, 1, 0, b"one")[..]);
        assert_eq!(&out[6 + length..], &frame(Kind::Reply, 2, 0, b"")[..]);
    }

    #[test]
    fn the_layout_stays() {
        let bytes = frame(Kind::Ack, 0x0102, 0x0304_0506, b"\xff");
        assert_eq!(bytes[..20], *b"WPAX\x04\x11\x02\x01\x01\0\0\0\x06\x05\x04\x03\0\0\0\0");
        assert_eq!(bytes[20..24], crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), b"\xff").to_le_bytes());
    }

    #[test]
    fn each_wrong_field_has_its_reason() {
        let good = frame(Kind::Request, 0, 0, b"body");
        assert_eq!(frame_bytes(&with(&good, 0, b"HTTP")), Err(FrameError::Magic(u32::from_le_bytes(*b"HTTP"))));
        assert_eq!(frame_bytes(&with(&good, 4, &[1])), Err(FrameError::Version(1)));
        assert_eq!(frame_bytes(&with(&good, 5, &[0])), Err(FrameError::Kind(0)));
        assert_eq!(frame_bytes(&with(&good, 16, &[1])), Err(FrameError::Reserved));
        let huge = BODY_BYTES_MAX as u32 + 1;
        let too_large = |bytes| Err(FrameError::TooLarge { kind: Kind::Request, bytes });
        assert_eq!(frame_bytes(&with(&good, 8, &huge.to_le_bytes())), too_large(huge));
        assert_eq!(frame_bytes(&with(&good, 8, &[0xff; 4])), too_large(u32::MAX));
        let (skip, over) = (frame(Kind::Skip, 0, 0, b"body"), Kind::Skip.body_bytes_max() as u32 + 1);
        assert_eq!(
            frame_bytes(&with(&skip, 8, &over.to_le_bytes())),
            Err(FrameError::TooLarge { kind: Kind::Skip, bytes: over }),
            "each kind has its own limit"
        );
        for offset in [6, 12, 20, HEADER_BYTES] {
            let changed = with(&good, offset, &[good[offset] ^ 1]);
            assert!(matches!(view(&changed), Err(FrameError::Checksum { .. })), "byte {offset}");
        }
    }

    #[test]
    fn an_unfinished_frame_is_waited_for() {
        let good = frame(Kind::Request, 0, 0, b"body");
        for length in 0..HEADER_BYTES {
            assert_eq!(frame_bytes(&good[..length]), Ok(None));
        }
        for length in HEADER_BYTES..good.len() {
            assert_eq!(frame_bytes(&good[..length]), Ok(Some(good.len())));
        }
    }

    #[test]
    #[should_panic(expected = "was not split")]
    fn a_body_over_the_limit_is_never_sent() {
        let mut out = BytesMut::zeroed(HEADER_BYTES + BODY_BYTES_MAX + 1);
        finish(&mut out, 0, Kind::Request, 0, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!matches!(frame_bytes(&bytes), Ok(Some(length)) if length > HEADER_BYTES + BODY_BYTES_MAX));
        }

        #[test]
        fn headers_of_any_fields_promise_no_more_than_the_limit(
            fields in any::<(u8, u8, u16, u32, u32, u32, u32)>(),
        ) {
            let (wire_version, kind, shard, body_bytes, config_version, reserved, checksum) = fields;
            let header = FrameHeader {
                magic: MAGIC.into(),
                wire_version: wire_version % 3,
                kind: kind % 70,
                shard: shard.into(),
                body_bytes: body_bytes.into(),
                config_version: config_version.into(),
                reserved: (reserved % 2).into(),
                checksum: checksum.into(),
            };
            if let Ok(length) = frame_bytes(header.as_bytes()) {
                prop_assert_eq!(length, Some(HEADER_BYTES + body_bytes as usize));
                let kind = Kind::from_wire(header.kind).unwrap();
                prop_assert!(body_bytes as usize <= kind.body_bytes_max());
            }
        }

        #[test]
        fn a_changed_bit_never_passes(
            body in prop::collection::vec(any::<u8>(), 0..300),
            position in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let good = frame(Kind::AcceptBatch, 1, 2, &body);
            let mut changed = good.to_vec();
            changed[position.index(good.len())] ^= 1 << bit;
            match frame_bytes(&changed) {
                Ok(Some(length)) if length == changed.len() => prop_assert!(parse(changed.into()).is_err()),
                Ok(length) => prop_assert_ne!(length, Some(good.len())),
                Err(_) => {}
            }
        }
    }
}
