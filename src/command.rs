//! Client commands as bytes, and their outcomes.
//!
//! A command has one encoding from the client's socket to the log: the owner copies it once into its open batch and
//! every other reader is a view of the bytes as they came.
//!
//! ```text
//! CommandHeader (32 bytes) | key | value | expected value
//! ```

use bytes::BufMut;
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The longest encoded command, in bytes: the longest key and two of the longest values (CompareAndSwap).
pub const COMMAND_BYTES_MAX: usize = size_of::<CommandHeader>() + KEY_BYTES_MAX + 2 * VALUE_BYTES_MAX;

/// The lowest id of a client's command: 0 is the no-ops'.
pub const ID_MIN: u64 = 1;
/// The highest id of a client's command: "all ids below one more than this" is still a number, as sessions keep it.
pub const ID_MAX: u64 = u64::MAX - 1;

/// The fixed head of an encoded command.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CommandHeader {
    /// Who issued it; 0 only in a no-op.
    pub client: U64,
    /// The client's number for it, [`ID_MIN`] to [`ID_MAX`], 0 in a no-op; ids of one client rise (`protocol.md` §7).
    pub id: U64,
    /// An [`Op`].
    pub op: u8,
    /// [`FLAG_RETRY`] and the expectation's kind in bits 1–2 ([`Expect`]).
    pub flags: u8,
    /// Bytes of key, 1 to [`KEY_BYTES_MAX`].
    pub key_bytes: U16,
    /// Bytes of value; 0 unless Put or CompareAndSwap.
    pub value_bytes: U32,
    /// Bytes of expectation; 0 unless CompareAndSwap.
    pub expect_bytes: U32,
    /// Must be 0.
    pub reserved: U32,
}

const _: () = assert!(size_of::<CommandHeader>() == 32);

/// Set when the client has sent this command before: it may have been executed already.
pub const FLAG_RETRY: u8 = 1;
const FLAG_EXPECT_SHIFT: u8 = 1;
const FLAG_EXPECT_MASK: u8 = 0b110;
const EXPECT_ABSENT: u8 = 0;
const EXPECT_VALUE: u8 = 1;
const EXPECT_VERSION: u8 = 2;

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Op {
    /// Nothing; fills a slot that a new owner found empty (`protocol.md` §4.3).
    Noop = 0,
    /// Reads the value.
    Get = 1,
    /// Sets the value.
    Put = 2,
    /// Removes the value; the object stays as a tombstone.
    Delete = 3,
    /// Sets the value if the object is as expected.
    CompareAndSwap = 4,
}

impl Op {
    /// Whether executing it may change the object.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::CompareAndSwap)
    }
}

/// What CompareAndSwap expects of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Expect<'a> {
    /// It has no value.
    Absent,
    /// It has this value.
    Value(&'a [u8]),
    /// It is at this version, with or without a value.
    Version(u64),
}

/// A command to be encoded, with everything borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewCommand<'a> {
    /// Who issues it; not 0 (except in a no-op).
    pub client: u64,
    /// The client's number for it.
    pub id: u64,
    /// Whether it was sent before.
    pub retry: bool,
    /// The object.
    pub key: &'a [u8],
    /// What to do with it.
    pub action: Action<'a>,
}

/// The part of a command that says what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action<'a> {
    /// Fill a slot.
    Noop,
    /// Read the value.
    Get,
    /// Set the value.
    Put(&'a [u8]),
    /// Remove the value.
    Delete,
    /// Set the value if the object is as expected.
    CompareAndSwap {
        /// What it must be.
        expect: Expect<'a>,
        /// What it becomes.
        value: &'a [u8],
    },
}

impl NewCommand<'_> {
    /// Bytes of the encoding.
    pub fn encoded_bytes(&self) -> usize {
        let (value, expect) = match self.action {
            Action::Noop | Action::Get | Action::Delete => (0, 0),
            Action::Put(value) => (value.len(), 0),
            Action::CompareAndSwap { expect, value } => match expect {
                Expect::Absent => (value.len(), 0),
                Expect::Value(expect) => (value.len(), expect.len()),
                Expect::Version(_) => (value.len(), 8),
            },
        };
        size_of::<CommandHeader>() + self.key.len() + value + expect
    }

    /// Appends the encoding to `out`.
    ///
    /// # Errors
    /// If the key is empty or a part is longer than its limit; `out` is unchanged then.
    pub fn encode(&self, out: &mut impl BufMut) -> Result<(), CommandError> {
        let version_bytes;
        let (op, value, kind, expect): (Op, &[u8], u8, &[u8]) = match self.action {
            Action::Noop => (Op::Noop, &[], 0, &[]),
            Action::Get => (Op::Get, &[], 0, &[]),
            Action::Put(value) => (Op::Put, value, 0, &[]),
            Action::Delete => (Op::Delete, &[], 0, &[]),
            Action::CompareAndSwap { expect, value } => match expect {
                Expect::Absent => (Op::CompareAndSwap, value, EXPECT_ABSENT, &[]),
                Expect::Value(expect) => (Op::CompareAndSwap, value, EXPECT_VALUE, expect),
                Expect::Version(version) => {
                    version_bytes = version.to_le_bytes();
                    (Op::CompareAndSwap, value, EXPECT_VERSION, &version_bytes)
                }
            },
        };
        check_sizes(self.key.len(), value.len(), expect.len())?;
        let header = CommandHeader {
            client: self.client.into(),
            id: self.id.into(),
            op: op as u8,
            flags: (u8::from(self.retry) * FLAG_RETRY) | (kind << FLAG_EXPECT_SHIFT),
            key_bytes: (self.key.len() as u16).into(),
            value_bytes: (value.len() as u32).into(),
            expect_bytes: (expect.len() as u32).into(),
            reserved: 0.into(),
        };
        out.put_slice(header.as_bytes());
        out.put_slice(self.key);
        out.put_slice(value);
        out.put_slice(expect);
        Ok(())
    }
}

/// Checks the sizes of a command's parts, in bytes.
///
/// # Errors
/// Names the part that is too long (or the empty key) and its limit.
pub fn check_sizes(key: usize, value: usize, expect: usize) -> Result<(), CommandError> {
    if key == 0 {
        return Err(CommandError::EmptyKey);
    }
    if key > KEY_BYTES_MAX {
        return Err(CommandError::LongKey(key));
    }
    if value.max(expect) > VALUE_BYTES_MAX {
        return Err(CommandError::LongValue(value.max(expect)));
    }
    Ok(())
}

/// Why bytes are not a command, or a command cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Fewer bytes than a header.
    #[error("a command of {0} bytes is shorter than its {size}-byte header", size = size_of::<CommandHeader>())]
    Short(usize),
    /// The lengths in the header do not add up to the bytes given.
    #[error("a command of {given} bytes says that it has {said}")]
    Length {
        /// Bytes given.
        given: usize,
        /// Bytes that the header's lengths add up to.
        said: usize,
    },
    /// No such operation.
    #[error("unknown operation {0}; known are 0 to 4")]
    Op(u8),
    /// A reserved bit is set, or a part is there that the operation does not have.
    #[error("operation {op} with flags {flags:#04x} does not go with the parts it has")]
    Shape {
        /// The operation.
        op: u8,
        /// Its flags.
        flags: u8,
    },
    /// The key is empty.
    #[error("the key is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    EmptyKey,
    /// The key is too long.
    #[error("a key of {0} bytes is too long; a key has 1 to {KEY_BYTES_MAX} bytes")]
    LongKey(usize),
    /// A value is too long.
    #[error("a value of {0} bytes is too long; a value has at most {VALUE_BYTES_MAX} bytes")]
    LongValue(usize),
}

/// A view of an encoded, valid command.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    header: &'a CommandHeader,
    bytes: &'a [u8],
}

impl<'a> Command<'a> {
    /// Checks that `bytes` are exactly one command and views them.
    ///
    /// # Errors
    /// Says what is wrong with the bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CommandError> {
        let (header, rest) = CommandHeader::ref_from_prefix(bytes).map_err(|_| CommandError::Short(bytes.len()))?;
        let (key, value) = (header.key_bytes.get() as usize, header.value_bytes.get() as usize);
        let expect = header.expect_bytes.get() as usize;
        if key + value + expect != rest.len() {
            let said = size_of::<CommandHeader>() + key + value + expect;
            return Err(CommandError::Length { given: bytes.len(), said });
        }
        check_sizes(key, value, expect)?;
        let kind = (header.flags & FLAG_EXPECT_MASK) >> FLAG_EXPECT_SHIFT;
        let right = match header.op {
            0 | 1 | 3 => value == 0 && expect == 0 && kind == 0,
            2 => expect == 0 && kind == 0,
            4 => match kind {
                EXPECT_ABSENT => expect == 0,
                EXPECT_VALUE => true,
                EXPECT_VERSION => expect == 8,
                _ => false,
            },
            op => return Err(CommandError::Op(op)),
        };
        let known = header.flags & !(FLAG_RETRY | FLAG_EXPECT_MASK) == 0;
        if !right || !known || header.reserved.get() != 0 {
            return Err(CommandError::Shape { op: header.op, flags: header.flags });
        }
        Ok(Self { header, bytes })
    }

    /// Views bytes that [`Self::parse`] has accepted before (a command inside a frame that was checked on arrival).
    ///
    /// # Panics
    /// If the bytes are shorter than a header.
    pub fn view(bytes: &'a [u8]) -> Self {
        let (header, _) = CommandHeader::ref_from_prefix(bytes).expect("checked on arrival");
        Self { header, bytes }
    }

    /// The whole encoding.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Who issued it.
    pub fn client(&self) -> u64 {
        self.header.client.get()
    }

    /// The client's number for it.
    pub fn id(&self) -> u64 {
        self.header.id.get()
    }

    /// Whether the client, or a node on the way, has sent it before.
    pub fn is_retry(&self) -> bool {
        self.header.flags & FLAG_RETRY != 0
    }

    /// Whether a client may ask for it: it does something, names its client, and its id is from [`ID_MIN`] to [`ID_MAX`].
    pub fn is_request(&self) -> bool {
        self.op() != Op::Noop && self.client() != 0 && (ID_MIN..=ID_MAX).contains(&self.id())
    }

    /// Whether a slot may hold it: a client may ask for it, or it is a no-op, which no client has asked for.
    pub fn is_entry(&self) -> bool {
        self.is_request() || (self.op() == Op::Noop && self.client() == 0 && self.id() == 0)
    }

    /// The operation.
    pub fn op(&self) -> Op {
        match self.header.op {
            0 => Op::Noop,
            1 => Op::Get,
            2 => Op::Put,
            3 => Op::Delete,
            4 => Op::CompareAndSwap,
            op => unreachable!("operation {op} passed the check"),
        }
    }

    /// The object.
    pub fn key(&self) -> &'a [u8] {
        let start = size_of::<CommandHeader>();
        &self.bytes[start..start + self.header.key_bytes.get() as usize]
    }

    /// The value to set; empty for operations that set none.
    pub fn value(&self) -> &'a [u8] {
        let start = size_of::<CommandHeader>() + self.header.key_bytes.get() as usize;
        &self.bytes[start..start + self.header.value_bytes.get() as usize]
    }

    /// What CompareAndSwap expects.
    pub fn expect(&self) -> Expect<'a> {
        let bytes = &self.bytes[self.bytes.len() - self.header.expect_bytes.get() as usize..];
        match (self.header.flags & FLAG_EXPECT_MASK) >> FLAG_EXPECT_SHIFT {
            EXPECT_ABSENT => Expect::Absent,
            EXPECT_VALUE => Expect::Value(bytes),
            _ => Expect::Version(u64::from_le_bytes(bytes.try_into().expect("checked on arrival"))),
        }
    }

    /// What tells it from another command on the same key that its client gave the same id by mistake: operation, value and
    /// expectation as a number. Two that differ have the same number once in 2^32.
    pub fn digest(&self) -> u32 {
        let start = size_of::<CommandHeader>() + self.header.key_bytes.get() as usize;
        let shape = u64::from(self.header.op) | u64::from(self.header.flags & FLAG_EXPECT_MASK) << 8;
        let seed = shape | u64::from(self.header.value_bytes.get()) << 16;
        xxh3_64_with_seed(&self.bytes[start..], seed) as u32
    }

    /// What it does, as it was given to [`NewCommand`].
    pub fn action(&self) -> Action<'a> {
        match self.op() {
            Op::Noop => Action::Noop,
            Op::Get => Action::Get,
            Op::Put => Action::Put(self.value()),
            Op::Delete => Action::Delete,
            Op::CompareAndSwap => Action::CompareAndSwap { expect: self.expect(), value: self.value() },
        }
    }
}

/// Sets [`FLAG_RETRY`] in an encoded command: whoever sends a command again marks it.
///
/// # Panics
/// If the bytes are shorter than a header.
pub fn mark_retry(bytes: &mut [u8]) {
    let (header, _) = CommandHeader::mut_from_prefix(bytes).expect("an encoded command");
    header.flags |= FLAG_RETRY;
}

/// How a request ended. The numbers are on the wire; a retired number is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done; a Get has its value.
    Ok = 0,
    /// The object has no value: nothing to read or delete.
    NotFound = 1,
    /// CompareAndSwap found the object other than expected; the version says how far it is.
    CasFailed = 2,
    /// The command was executed before, but its result is no longer known.
    Duplicate = 3,
    /// A retry that can no longer be judged: it may or may not have been executed before, and is not executed now.
    OutcomeUnknown = 4,
    /// Not a retry, and a command of its client with its id was executed before: this one, or another. It is not executed now.
    IdTaken = 5,
    /// Refused: too much is in flight. It did not happen.
    Overloaded = 16,
    /// Gave up in time; it did not happen and will not.
    TimeoutNotDone = 17,
    /// Gave up in time; it may have happened, or may still.
    TimeoutMaybeDone = 18,
    /// Refused: not a valid request. It did not happen.
    BadRequest = 19,
    /// Refused: the replica is stopping. It did not happen.
    ShuttingDown = 20,
    /// Refused: another command of its client with its id was executed before. It did not happen.
    IdReused = 21,
    /// Refused: not a retry, and its id is so far below others of its client that it cannot be told from those that were
    /// executed. It did not happen.
    IdStale = 22,
}

impl Status {
    /// The status with this number.
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Ok,
            1 => Self::NotFound,
            2 => Self::CasFailed,
            3 => Self::Duplicate,
            4 => Self::OutcomeUnknown,
            5 => Self::IdTaken,
            16 => Self::Overloaded,
            17 => Self::TimeoutNotDone,
            18 => Self::TimeoutMaybeDone,
            19 => Self::BadRequest,
            20 => Self::ShuttingDown,
            21 => Self::IdReused,
            22 => Self::IdStale,
            _ => return None,
        })
    }

    /// Whether the command's effect (or lack of it) was decided by the cluster.
    pub const fn is_executed(self) -> bool {
        matches!(self, Self::Ok | Self::NotFound | Self::CasFailed | Self::Duplicate)
    }

    /// Whether it is certain that the command has not been and will not be executed.
    pub const fn is_refused(self) -> bool {
        matches!(
            self,
            Self::Overloaded
                | Self::TimeoutNotDone
                | Self::BadRequest
                | Self::ShuttingDown
                | Self::IdReused
                | Self::IdStale
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(action: Action<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let command = NewCommand { client: 7, id: 9, retry: false, key: b"key", action };
        command.encode(&mut out).unwrap();
        assert_eq!(out.len(), command.encoded_bytes());
        out
    }

    #[test]
    fn every_action_reads_back_as_it_was_written() {
        let actions = [
            Action::Noop,
            Action::Get,
            Action::Put(b""),
            Action::Put(b"value"),
            Action::Delete,
            Action::CompareAndSwap { expect: Expect::Absent, value: b"v" },
            Action::CompareAndSwap { expect: Expect::Value(b""), value: b"v" },
            Action::CompareAndSwap { expect: Expect::Value(b"old"), value: b"" },
            Action::CompareAndSwap { expect: Expect::Version(3), value: b"v" },
        ];
        for action in actions {
            let mut bytes = encoded(action);
            let command = Command::parse(&bytes).unwrap();
            assert_eq!((command.client(), command.id(), command.key()), (7, 9, b"key".as_slice()));
            assert_eq!((command.action(), command.is_retry()), (action, false));
            let digest = command.digest();
            mark_retry(&mut bytes);
            let retry = Command::parse(&bytes).unwrap();
            assert!(retry.is_retry());
            assert_eq!(retry.digest(), digest, "a retry is the same command");
        }
    }

    #[test]
    fn commands_that_differ_have_different_digests() {
        let cas = |expect, value| Action::CompareAndSwap { expect, value };
        let actions = [
            Action::Get,
            Action::Put(b""),
            Action::Put(b"a"),
            Action::Put(b"b"),
            Action::Put(b"a\0"),
            Action::Delete,
            cas(Expect::Absent, b"a"),
            cas(Expect::Value(b""), b"a"),
            cas(Expect::Value(b"a"), b""),
            cas(Expect::Value(b"12345678"), b"a"),
            cas(Expect::Version(u64::from_le_bytes(*b"12345678")), b"a"),
            cas(Expect::Value(b"a12345678"), b""),
        ];
        let digests: Vec<u32> =
            actions.iter().map(|action| Command::parse(&encoded(*action)).unwrap().digest()).collect();
        for (place, digest) in digests.iter().enumerate() {
            assert!(!digests[..place].contains(digest), "{:?} is taken for another", actions[place]);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_with_a_reason() {
        let good = encoded(Action::Put(b"value"));
        for length in 0..good.len() {
            assert!(Command::parse(&good[..length]).is_err());
        }
        let with = |offset: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[offset] = byte;
            Command::parse(&bytes).map(|command| command.op())
        };
        assert_eq!(with(16, 9), Err(CommandError::Op(9)));
        assert_eq!(with(16, 1), Err(CommandError::Shape { op: 1, flags: 0 }));
        assert_eq!(with(17, 0x80), Err(CommandError::Shape { op: 2, flags: 0x80 }));
        assert_eq!(with(28, 1), Err(CommandError::Shape { op: 2, flags: 0 }));
        assert!(matches!(with(23, 0xff), Err(CommandError::Length { .. })));
    }

    #[test]
    fn requests_name_their_client_and_are_numbered_from_one() {
        let judge = |client, id, action| {
            let mut bytes = Vec::new();
            NewCommand { client, id, retry: false, key: b"k", action }.encode(&mut bytes).unwrap();
            let command = Command::parse(&bytes).unwrap();
            (command.is_request(), command.is_entry())
        };
        for action in [Action::Get, Action::Put(b"v"), Action::Delete] {
            for (client, id, right) in
                [(1, ID_MIN, true), (u64::MAX, ID_MAX, true), (1, 0, false), (1, u64::MAX, false), (0, 1, false)]
            {
                assert_eq!(judge(client, id, action), (right, right), "client {client}, id {id}");
            }
        }
        assert_eq!(judge(0, 0, Action::Noop), (false, true));
        assert_eq!((judge(1, 0, Action::Noop), judge(0, 1, Action::Noop)), ((false, false), (false, false)));
    }

    #[test]
    fn oversized_parts_cannot_be_encoded() {
        let long = vec![0; VALUE_BYTES_MAX + 1];
        let command = |key, action| NewCommand { client: 1, id: 1, retry: false, key, action };
        let mut out = Vec::new();
        assert_eq!(command(b"", Action::Get).encode(&mut out), Err(CommandError::EmptyKey));
        assert_eq!(command(&long[..5000], Action::Get).encode(&mut out), Err(CommandError::LongKey(5000)));
        let put = command(b"k", Action::Put(&long)).encode(&mut out);
        assert_eq!(put, Err(CommandError::LongValue(long.len())));
        assert!(out.is_empty());
    }
}
