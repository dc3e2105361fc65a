//! Reading bodies, element by element, and writing the parts that several messages share.

use bytes::BytesMut;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{Ballot, NUMBER_MAX, ROUND_MAX, SessionBody, StateHead};
use crate::{
    command::{Command, KEY_BYTES_MAX, Status, VALUE_BYTES_MAX},
    store::{ObjectState, Older, Recent, Session, Value},
    topology::NodeId,
    wire::{Frame, FrameError, HEADER_BYTES},
};

/// Reads the elements of a body one after the other; every read is checked.
#[derive(Clone)]
pub struct Reader<'a> {
    frame: &'a Frame,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the start of the frame's body.
    pub fn new(frame: &'a Frame) -> Self {
        Self { frame, rest: frame.body() }
    }

    /// Whether everything is read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Where in the frame the next element starts.
    pub fn offset(&self) -> usize {
        HEADER_BYTES + self.frame.body().len() - self.rest.len()
    }

    /// An error about this frame.
    pub fn wrong(&self, what: &'static str) -> FrameError {
        FrameError::Body { kind: self.frame.kind, bytes: self.frame.body().len(), what }
    }

    /// A fixed part.
    pub fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(&mut self) -> Result<&'a T, FrameError> {
        let (head, rest) = T::ref_from_prefix(self.rest).map_err(|_| self.wrong("it ends within an element"))?;
        self.rest = rest;
        Ok(head)
    }

    /// So many fixed parts.
    pub fn take_many<T>(&mut self, count: usize) -> Result<&'a [T], FrameError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (row, rest) =
            <[T]>::ref_from_prefix_with_elems(self.rest, count).map_err(|_| self.wrong("it ends within a row"))?;
        self.rest = rest;
        Ok(row)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.wrong("it ends within bytes"))?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A key of so many bytes.
    pub fn key(&mut self, bytes: U16) -> Result<&'a [u8], FrameError> {
        let bytes = bytes.get() as usize;
        if bytes == 0 || bytes > KEY_BYTES_MAX {
            return Err(self.wrong("a key is empty or too long"));
        }
        self.bytes(bytes)
    }

    /// A row of elements, all of it, before anything of it is taken.
    pub fn rows<T>(mut self, mut take: impl FnMut(&mut Self) -> Result<T, FrameError>) -> Result<Vec<T>, FrameError> {
        let mut rows = Vec::new();
        while !self.is_empty() {
            rows.push(take(&mut self)?);
        }
        Ok(rows)
    }

    /// A command of so many bytes that a slot may hold: its encoding.
    pub fn entry(&mut self, bytes: U32) -> Result<Command<'a>, FrameError> {
        let bytes = self.bytes(bytes.get() as usize)?;
        let command = Command::parse(bytes).map_err(|_| self.wrong("it holds no valid command"))?;
        if !command.is_entry() {
            return Err(self.wrong("a command has no client, or an id that no command has"));
        }
        Ok(command)
    }

    /// The same of an object.
    pub fn entry_of(&mut self, key: &[u8], bytes: U32) -> Result<Command<'a>, FrameError> {
        let command = self.entry(bytes)?;
        if command.key() != key {
            return Err(self.wrong("a tail holds a command of another object"));
        }
        Ok(command)
    }

    /// A flag: 0 or 1.
    pub fn flag(&self, flag: u8) -> Result<bool, FrameError> {
        match flag {
            0 | 1 => Ok(flag == 1),
            _ => Err(self.wrong("a flag is neither 0 nor 1")),
        }
    }

    /// A slot of an entry.
    pub fn slot(&self, slot: U64) -> Result<u64, FrameError> {
        match self.number(slot)? {
            0 => Err(self.wrong("an entry has no slot")),
            slot => Ok(slot),
        }
    }

    /// Checks a count against its bound.
    pub fn at_most(&self, count: usize, bound: usize) -> Result<(), FrameError> {
        if count > bound { Err(self.wrong("it has more rows than its kind may have")) } else { Ok(()) }
    }

    /// A slot or stream number: far below where counting on would overflow.
    pub fn number(&self, number: U64) -> Result<u64, FrameError> {
        match number.get() {
            number if number < NUMBER_MAX => Ok(number),
            _ => Err(self.wrong("a number is out of range")),
        }
    }

    /// Checks a reserved field.
    pub fn zero(&self, reserved: impl IntoBytes + Immutable) -> Result<(), FrameError> {
        if reserved.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(self.wrong("a reserved field is not 0"))
    }

    /// The state of so many bytes that executing the slots up to `applied` has made.
    pub fn state(&mut self, bytes: U32, applied: u64) -> Result<ObjectState, FrameError> {
        let before = self.rest.len();
        let head: &StateHead = self.take()?;
        let value = self.bytes(head.value_bytes.get() as usize)?;
        let sessions: &[SessionBody] = self.take_many(head.sessions.get() as usize)?;
        self.zero(head.reserved)?;
        let has_value = self.flag(head.has_value)?;
        if before - self.rest.len() != bytes.get() as usize {
            return Err(self.wrong("a state has not the length that its row says"));
        }
        if value.len() > VALUE_BYTES_MAX || (!has_value && !value.is_empty()) {
            return Err(self.wrong("a state's value is too long, or none"));
        }
        let sessions = sessions.iter().map(|body| self.session(body)).collect::<Result<_, _>>()?;
        let recent = Recent { sessions, blind_below: head.blind_below.get() };
        let version = head.version.get();
        if version > applied || !recent.is_possible(applied, version) {
            return Err(self.wrong("a state has numbers that executing so many slots does not give"));
        }
        Ok(ObjectState { value: has_value.then(|| Value::from_slice(value)), version, recent })
    }

    fn session(&self, body: &SessionBody) -> Result<Session, FrameError> {
        self.zero(body.reserved)?;
        let status = Status::from_wire(body.status).filter(|status| status.is_executed());
        let older = Older::from_backs(body.highest.get(), body.older.map(U32::get));
        Ok(Session {
            client: body.client.get(),
            highest: body.highest.get(),
            before: body.before.get(),
            older: older.ok_or_else(|| self.wrong("a session remembers ids that cannot be"))?,
            floor: body.floor.get(),
            blind_below: body.blind_below.get(),
            slot: body.slot.get(),
            digest: body.digest.get(),
            status: status.ok_or_else(|| self.wrong("a session has no outcome"))?,
            version: body.version.get(),
        })
    }
}

/// Appends an object's state; returns its length in bytes.
pub fn put_state(out: &mut BytesMut, state: &ObjectState) -> usize {
    let start = out.len();
    let value = state.value.as_deref().unwrap_or_default();
    let sessions = &state.recent.sessions;
    let head = StateHead {
        version: state.version.into(),
        value_bytes: (value.len() as u32).into(),
        has_value: state.value.is_some().into(),
        blind_below: state.recent.blind_below.into(),
        reserved: 0,
        sessions: (sessions.len() as u16).into(),
    };
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(value);
    for session in sessions {
        let body = SessionBody {
            client: session.client.into(),
            highest: session.highest.into(),
            before: session.before.into(),
            older: session.older.backs(session.highest).map(U32::new),
            floor: session.floor.into(),
            blind_below: session.blind_below.into(),
            slot: session.slot.into(),
            version: session.version.into(),
            digest: session.digest.into(),
            status: session.status as u8,
            reserved: [0; 3],
        };
        out.extend_from_slice(body.as_bytes());
    }
    out.len() - start
}

/// A promise in a state: any ballot, or none yet.
///
/// # Errors
/// If it is out of range.
pub fn promise_from(reader: &Reader<'_>, version: U32, number: U64) -> Result<Ballot, FrameError> {
    if number.get() == 0 && version.get() == 0 {
        return Ok(Ballot::ZERO);
    }
    ballot_from(reader, version.get(), number)
}

/// A ballot as it travels in a frame of `version`.
///
/// # Errors
/// If its owner cannot be a node, its version is 0, or its round is 0 or out of range.
pub fn ballot_from(reader: &Reader<'_>, version: u32, number: U64) -> Result<Ballot, FrameError> {
    let ballot = Ballot { version, number: number.get() };
    match ballot.owner() {
        Some(NodeId { zone: 1.., node: 1.. }) if ballot.round() < ROUND_MAX && version > 0 => Ok(ballot),
        _ => Err(reader.wrong("a ballot has no owner, no version or no such round")),
    }
}

/// A ballot that is older than the frame, or as old: that of an accepted entry, or a promise.
///
/// # Errors
/// As [`ballot_from`], or if its version is higher than the frame's.
pub fn earlier_ballot(reader: &Reader<'_>, frame: &Frame, version: U32, number: U64) -> Result<Ballot, FrameError> {
    if version.get() > frame.config_version {
        return Err(reader.wrong("a ballot belongs to a later configuration version than its frame"));
    }
    ballot_from(reader, version.get(), number)
}
