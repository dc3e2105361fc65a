//! The native client protocol: hello, then batches of requests and of answers, pipelined.
//!
//! ```text
//! client                              shard
//!   ClientHello (JSON)        ──►              who I am, which zone I am in
//!                             ◄──  ClientWelcome (JSON): the whole cluster; or Refused (UTF-8 text)
//!   Request (batch)           ──►
//!                             ◄──  Reply (batch), in any order, matched by command id
//! ```
//! A Request body is a row of `RequestPrefix | command` ([`crate::command`]); a Reply body is a row of
//! `ReplyHeader | value`. Both are decoded in place.

use bytes::BufMut;
use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    command::{Command, CommandError, Status},
    protocol::ReadMode,
    topology::NodeId,
};

/// A client's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientHello {
    /// The cluster it means to reach; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its own number, the `client` of its commands; not 0.
    pub client: u64,
    /// The zone it is in (from 1); the node's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<u8>,
}

/// The answer to a hello: what a client needs to reach every shard of every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientWelcome {
    /// The cluster's name.
    pub cluster: String,
    /// Who answers.
    pub node: String,
    /// Which of its shards.
    pub shard: u16,
    /// How many shards every node has.
    pub shards: u16,
    /// All nodes.
    pub nodes: Vec<WelcomeNode>,
    /// What a report must say of the cluster, by name: quorums, durability, tuning, pinning, policy, version.
    pub facts: std::collections::BTreeMap<String, String>,
}

/// A node in [`ClientWelcome`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeNode {
    /// `zone.node`.
    pub id: String,
    /// `host:port` of each shard, in order.
    pub shards: Vec<String>,
}

/// Goes before each command of a Request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestPrefix {
    /// Bytes of the command that follows.
    pub command_bytes: U32,
    /// A [`ReadMode`].
    pub read: u8,
    /// Must be 0.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<RequestPrefix>() == 8);

/// Goes before the value of each answer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReplyHeader {
    /// The id of the command that it answers.
    pub id: U64,
    /// The object's version.
    pub version: U64,
    /// The slot that decided it, or 0.
    pub slot: U64,
    /// The owner's ballot without its version, or 0.
    pub ballot: U64,
    /// Bytes of value that follow.
    pub value_bytes: U32,
    /// A [`Status`].
    pub status: u8,
    /// The owner's zone, 0 if unknown.
    pub owner_zone: u8,
    /// The owner's node, 0 if unknown.
    pub owner_node: u8,
    /// Must be 0.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ReplyHeader>() == 40);

/// Why a Request or Reply body is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body ends within an element.
    #[error("the body ends within an element")]
    Short,
    /// A reserved field is not 0.
    #[error("a reserved field is not 0")]
    Reserved,
    /// No such read mode.
    #[error("unknown read mode {0}; known are 0 (confirm) and 1 (log)")]
    ReadMode(u8),
    /// No such status.
    #[error("unknown status {0}")]
    Status(u8),
    /// A command is malformed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Appends one request to a Request body: the prefix; the encoded command must follow.
pub fn put_request_prefix(out: &mut impl BufMut, command_bytes: usize, read: ReadMode) {
    let prefix = RequestPrefix { command_bytes: (command_bytes as u32).into(), read: read as u8, reserved: [0; 3] };
    out.put_slice(prefix.as_bytes());
}

/// The requests of a body, in place. Ends after the first error.
pub fn requests(body: &[u8]) -> impl Iterator<Item = Result<(ReadMode, Command<'_>), BodyError>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = take_request(&mut rest);
        if next.is_err() {
            rest = &[];
        }
        Some(next)
    })
}

fn take_request<'a>(rest: &mut &'a [u8]) -> Result<(ReadMode, Command<'a>), BodyError> {
    let (prefix, after) = RequestPrefix::ref_from_prefix(rest).map_err(|_| BodyError::Short)?;
    if prefix.reserved != [0; 3] {
        return Err(BodyError::Reserved);
    }
    let read = ReadMode::from_wire(prefix.read).ok_or(BodyError::ReadMode(prefix.read))?;
    let (command, after) = after.split_at_checked(prefix.command_bytes.get() as usize).ok_or(BodyError::Short)?;
    *rest = after;
    Ok((read, Command::parse(command)?))
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRef<'a> {
    /// The id of the command that it answers.
    pub id: u64,
    /// How the request ended.
    pub status: Status,
    /// The object's version.
    pub version: u64,
    /// The slot that decided it, or 0.
    pub slot: u64,
    /// The owner's ballot without its version, or 0.
    pub ballot: u64,
    /// Who owns the object, as far as the node that answers knows.
    pub owner: Option<NodeId>,
    /// The value read.
    pub value: &'a [u8],
}

impl ReplyRef<'_> {
    /// Appends it to a Reply body.
    pub fn encode(&self, out: &mut impl BufMut) {
        let owner = self.owner.unwrap_or(NodeId::new(0, 0));
        let header = ReplyHeader {
            id: self.id.into(),
            version: self.version.into(),
            slot: self.slot.into(),
            ballot: self.ballot.into(),
            value_bytes: (self.value.len() as u32).into(),
            status: self.status as u8,
            owner_zone: owner.zone,
            owner_node: owner.node,
            reserved: 0,
        };
        out.put_slice(header.as_bytes());
        out.put_slice(self.value);
    }
}

/// The answers of a body, in place. Ends after the first error.
pub fn replies(body: &[u8]) -> impl Iterator<Item = Result<ReplyRef<'_>, BodyError>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = take_reply(&mut rest);
        if next.is_err() {
            rest = &[];
        }
        Some(next)
    })
}

fn take_reply<'a>(rest: &mut &'a [u8]) -> Result<ReplyRef<'a>, BodyError> {
    let (header, after) = ReplyHeader::ref_from_prefix(rest).map_err(|_| BodyError::Short)?;
    if header.reserved != 0 {
        return Err(BodyError::Reserved);
    }
    let status = Status::from_wire(header.status).ok_or(BodyError::Status(header.status))?;
    let (value, after) = after.split_at_checked(header.value_bytes.get() as usize).ok_or(BodyError::Short)?;
    *rest = after;
    let owner = (header.owner_zone != 0).then(|| NodeId::new(header.owner_zone, header.owner_node));
    Ok(ReplyRef {
        id: header.id.get(),
        status,
        version: header.version.get(),
        slot: header.slot.get(),
        ballot: header.ballot.get(),
        owner,
        value,
    })
}
