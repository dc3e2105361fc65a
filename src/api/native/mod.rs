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
    command::{COMMAND_BYTES_MAX, Command, CommandError, Status},
    protocol::ReadMode,
    topology::NodeId,
    wire,
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
    /// `host:port` of its HTTP interface, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
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
pub fn requests(body: &[u8]) -> Requests<'_> {
    Requests { rest: body }
}

/// The longest body of a frame that a client may send: a larger one is refused by its head. The largest command fits, and
/// many small ones.
pub const BODY_BYTES_MAX: usize = 4 << 20;
const _: () = assert!(BODY_BYTES_MAX > COMMAND_BYTES_MAX + (1 << 20) && BODY_BYTES_MAX < wire::BODY_BYTES_MAX);

/// The requests of a body that are not read yet.
#[derive(Clone, Debug)]
pub struct Requests<'a> {
    rest: &'a [u8],
}

impl Requests<'_> {
    /// Bytes of the body that are not read yet: another one may go on there.
    pub fn bytes_left(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Requests<'a> {
    type Item = Result<(ReadMode, Command<'a>), BodyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let next = take_request(&mut self.rest);
        if next.is_err() {
            self.rest = &[];
        }
        Some(next)
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::command::{Action, Expect, NewCommand};

    fn put_request(out: &mut Vec<u8>, id: u64, read: ReadMode, action: Action<'_>) {
        let command = NewCommand { client: 3, id, retry: id % 2 == 1, key: b"key", action };
        put_request_prefix(out, command.encoded_bytes(), read);
        command.encode(out).unwrap();
    }

    fn reply<'a>(id: u64, status: Status, value: &'a [u8]) -> ReplyRef<'a> {
        let owner = (id % 2 == 1).then_some(NodeId::new(2, 3));
        ReplyRef { id, status, version: id + 1, slot: id + 2, ballot: id + 3, owner, value }
    }

    const ACTIONS: [Action<'static>; 7] = [
        Action::Get,
        Action::Put(b""),
        Action::Put(b"value"),
        Action::Delete,
        Action::CompareAndSwap { expect: Expect::Absent, value: b"new" },
        Action::CompareAndSwap { expect: Expect::Value(b"old"), value: b"new" },
        Action::CompareAndSwap { expect: Expect::Version(7), value: b"" },
    ];

    const STATUSES: [Status; 13] = [
        Status::Ok,
        Status::NotFound,
        Status::CasFailed,
        Status::Duplicate,
        Status::OutcomeUnknown,
        Status::IdTaken,
        Status::Overloaded,
        Status::TimeoutNotDone,
        Status::TimeoutMaybeDone,
        Status::BadRequest,
        Status::ShuttingDown,
        Status::IdReused,
        Status::IdStale,
    ];

    fn request_body() -> Vec<u8> {
        let mut body = Vec::new();
        for (id, action) in (0..).zip(ACTIONS) {
            put_request(&mut body, id, if id < 3 { ReadMode::Confirm } else { ReadMode::Log }, action);
        }
        body
    }

    fn reply_body() -> Vec<u8> {
        let mut body = Vec::new();
        for (id, status) in (0..).zip(STATUSES) {
            reply(id, status, &b"0123456789abc"[..id as usize]).encode(&mut body);
        }
        body
    }

    #[test]
    fn requests_read_back_as_they_were_written() {
        let body = request_body();
        let read: Vec<_> = requests(&body).collect::<Result<_, _>>().unwrap();
        assert_eq!(read.len(), ACTIONS.len());
        for (id, ((mode, command), action)) in (0..).zip(read.iter().zip(ACTIONS)) {
            assert_eq!(*mode, if id < 3 { ReadMode::Confirm } else { ReadMode::Log });
            assert_eq!((command.client(), command.id(), command.is_retry()), (3, id, id % 2 == 1));
            assert_eq!((command.key(), command.action()), (b"key".as_slice(), action));
        }
        assert_eq!(requests(&[]).count(), 0);
    }

    #[test]
    fn replies_read_back_as_they_were_written() {
        let body = reply_body();
        let read: Vec<_> = replies(&body).collect::<Result<_, _>>().unwrap();
        let written = (0..).zip(STATUSES).map(|(id, status)| reply(id, status, &b"0123456789abc"[..id as usize]));
        assert_eq!(read, written.collect::<Vec<_>>());
        assert_eq!((0..=255).filter_map(Status::from_wire).count(), STATUSES.len(), "STATUSES lacks some");
    }

    #[test]
    fn hellos_and_welcomes_read_back_as_they_were_written() {
        let hello = ClientHello { cluster: Some("c".to_owned()), client: u64::MAX, zone: None };
        let text = serde_json::to_string(&hello).unwrap();
        assert_eq!(text, r#"{"cluster":"c","client":18446744073709551615}"#);
        assert_eq!(serde_json::from_str::<ClientHello>(&text).unwrap(), hello);
        for wrong in ["", "{}", r#"{"client":-1}"#, r#"{"client":1,"zone":256}"#, r#"{"client":1,"zonne":1}"#] {
            assert!(serde_json::from_str::<ClientHello>(wrong).is_err(), "{wrong} was taken");
        }
        let welcome = ClientWelcome {
            cluster: "c".to_owned(),
            node: "1.1".to_owned(),
            shard: 1,
            shards: 2,
            nodes: vec![WelcomeNode {
                id: "1.1".to_owned(),
                shards: vec!["h:1".to_owned(), "h:2".to_owned()],
                http: Some("h:3".to_owned()),
            }],
            facts: [("durability".to_owned(), "sync".to_owned())].into(),
        };
        let text = serde_json::to_vec(&welcome).unwrap();
        assert_eq!(serde_json::from_slice::<ClientWelcome>(&text).unwrap(), welcome);
    }

    #[test]
    fn each_wrong_field_has_its_reason() {
        let with = |offset: usize, byte: u8, mut body: Vec<u8>| {
            body[offset] = byte;
            body
        };
        let mut get = Vec::new();
        put_request(&mut get, 0, ReadMode::Confirm, Action::Get);
        let refused = |body: &[u8]| requests(body).next().unwrap().unwrap_err();
        assert_eq!(refused(&with(4, 2, get.clone())), BodyError::ReadMode(2));
        assert_eq!(refused(&with(5, 1, get.clone())), BodyError::Reserved);
        assert_eq!(refused(&with(3, 0xff, get.clone())), BodyError::Short);
        assert!(matches!(refused(&with(0, 0, get.clone())), BodyError::Command(_)), "a command of no bytes");
        assert!(matches!(refused(&with(8 + 16, 99, get)), BodyError::Command(CommandError::Op(99))));

        let mut ok = Vec::new();
        reply(0, Status::Ok, b"value").encode(&mut ok);
        let refused = |body: &[u8]| replies(body).next().unwrap().unwrap_err();
        assert_eq!(refused(&with(36, 15, ok.clone())), BodyError::Status(15));
        assert_eq!(refused(&with(39, 1, ok.clone())), BodyError::Reserved);
        assert_eq!(refused(&with(32, 6, ok.clone())), BodyError::Short);
        assert_eq!(refused(&with(35, 0xff, ok)), BodyError::Short);
    }

    #[test]
    fn a_body_that_is_cut_ends_with_an_error() {
        let (requested, replied) = (request_body(), reply_body());
        let ends: Vec<usize> =
            (0..requested.len()).filter(|end| requests(&requested[..*end]).all(|r| r.is_ok())).collect();
        assert_eq!(ends.len(), ACTIONS.len(), "only a cut between two requests goes unnoticed");
        let ends: Vec<usize> = (0..replied.len()).filter(|end| replies(&replied[..*end]).all(|r| r.is_ok())).collect();
        assert_eq!(ends.len(), STATUSES.len());
    }

    /// Walks a body of any bytes: every element lies within it, and nothing follows an error.
    fn walk(body: &[u8]) {
        let mut failed = false;
        for request in requests(body) {
            assert!(!failed, "a request after an error");
            failed = request.is_err();
            if let Ok((_, command)) = request {
                assert!(command.bytes().len() <= body.len() && command.key().len() <= body.len());
                let _ = command.action();
            }
        }
        failed = false;
        for reply in replies(body) {
            assert!(!failed, "a reply after an error");
            failed = reply.is_err();
            assert!(reply.is_err() || reply.is_ok_and(|reply| reply.value.len() <= body.len()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            walk(&body);
        }

        #[test]
        fn changed_bodies_are_walked_without_a_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for mut body in [request_body(), reply_body()] {
                for (position, byte) in &changes {
                    let position = position.index(body.len());
                    body[position] = *byte;
                }
                walk(&body);
                walk(&body[..cut.index(body.len())]);
            }
        }
    }
}
