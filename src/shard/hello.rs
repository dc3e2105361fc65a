//! How two nodes meet: who says what, and why one would be refused.
//!
//! ```text
//! dialler (the higher index)        listener (the lower index)
//!   PeerHello (JSON)          ──►
//!                             ◄──   PeerWelcome (JSON), or Refused (text) and the connection closes
//!   frames of the protocol    ◄──►
//! ```
//! Both sides check the other's words, so both sides may refuse. The text of a Refused frame is `code: reason`, where
//! the code is one of [`Code`] and the reason names what was said and what would be right.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    diagnostics::Quoted,
    topology::{Cluster, NodeId, NodeIndex, ShardId},
    wire::{self, Frame, Kind, WIRE_VERSION},
};

/// Why a peer or a client is refused; the first word of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// The bytes are not what they should be.
    Malformed,
    /// Another version of the protocol between nodes.
    Version,
    /// Another cluster's name.
    Cluster,
    /// Another configuration under the same name.
    Configuration,
    /// Another number of shards.
    Shards,
    /// Not the shard that listens here.
    Shard,
    /// No member of the cluster, or not the member that is expected here.
    Member,
    /// The member is linked and alive as another incarnation.
    Taken,
    /// A zone that the cluster does not have.
    Zone,
    /// The replica is stopping.
    Stopping,
    /// There are as many clients as there may be.
    Full,
    /// It takes too much memory or time.
    Limit,
}

impl Code {
    const ALL: [Self; 12] = [
        Self::Malformed,
        Self::Version,
        Self::Cluster,
        Self::Configuration,
        Self::Shards,
        Self::Shard,
        Self::Member,
        Self::Taken,
        Self::Zone,
        Self::Stopping,
        Self::Full,
        Self::Limit,
    ];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Configuration => "configuration",
            Self::Shards => "shards",
            Self::Shard => "shard",
            Self::Member => "member",
            Self::Taken => "taken",
            Self::Zone => "zone",
            Self::Stopping => "stopping",
            Self::Full => "full",
            Self::Limit => "limit",
        }
    }
}

/// A refusal, as it is sent and logged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Which kind.
    pub code: Code,
    /// What was wrong, and what would be right.
    pub reason: String,
}

impl Refusal {
    /// A refusal for this reason.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// Bytes that are malformed.
    pub(super) fn malformed(what: impl fmt::Display) -> Self {
        Self::new(Code::Malformed, what.to_string())
    }

    /// The frame that says so.
    pub(super) fn frame(&self, shard: ShardId) -> Bytes {
        wire::frame(Kind::Refused, shard.0, 0, self.to_string().as_bytes())
    }

    /// Reads the body of a Refused frame; a code that is not known counts as malformed.
    pub fn read(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let known = text
            .split_once(": ")
            .and_then(|(code, reason)| Some((Code::ALL.into_iter().find(|known| known.as_str() == code)?, reason)));
        match known {
            Some((code, reason)) => Self::new(code, Quoted::words(reason).to_string()),
            None => Self::malformed(Quoted::words(&text)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.reason)
    }
}

/// An error about bytes of a peer, which may quote them.
pub(super) fn quoted(error: &serde_json::Error) -> String {
    Quoted::name(&error.to_string()).to_string()
}

/// What each side of a link says of itself: the body of PeerHello and of PeerWelcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerHello {
    /// [`WIRE_VERSION`].
    pub protocol: u8,
    /// The cluster's name.
    pub cluster: String,
    /// [`Cluster::fingerprint`], in hexadecimal.
    pub configuration: String,
    /// `zone.node`.
    pub node: String,
    /// Random, drawn when the node's state began.
    pub incarnation: u64,
    /// How often the node has started on that state, from 1.
    pub boot: u64,
    /// Which shard speaks.
    pub shard: u16,
    /// How many shards it has.
    pub shards: u16,
}

impl PeerHello {
    /// As a frame of this kind.
    pub(super) fn frame(&self, kind: Kind) -> Bytes {
        let body = serde_json::to_vec(self).expect("plain fields become JSON");
        wire::frame(kind, self.shard, 0, &body)
    }

    /// Reads the body of a frame.
    pub(super) fn read(frame: &Frame) -> Result<Self, Refusal> {
        serde_json::from_slice(frame.body())
            .map_err(|error| Refusal::malformed(format!("the {:?} is not readable: {}", frame.kind, quoted(&error))))
    }
}

/// Checks what a peer says of itself against what this node, `own`, says of itself.
///
/// # Errors
/// The reason to refuse it.
pub(super) fn check(own: &PeerHello, cluster: &Cluster, said: &PeerHello) -> Result<NodeIndex, Refusal> {
    let refuse = |code, reason| Err(Refusal::new(code, reason));
    if said.protocol != WIRE_VERSION {
        let reason = format!("the node speaks version {}, this one speaks {WIRE_VERSION}", said.protocol);
        return refuse(Code::Version, reason);
    }
    if said.cluster != own.cluster {
        let (theirs, ours) = (Quoted::name(&said.cluster), &own.cluster);
        let reason = format!("the node is of cluster '{theirs}', this one is of '{ours}'");
        return refuse(Code::Cluster, reason);
    }
    if said.shards != own.shards {
        let reason = format!("the node has {} shards, this one has {}", said.shards, own.shards);
        return refuse(Code::Shards, reason);
    }
    if said.configuration != own.configuration {
        let reason = format!(
            "the node's configuration of '{}' has fingerprint {}, this one's has {}; all members need the same \
             nodes, zones, quorums, owner, policy and distances",
            own.cluster,
            Quoted::name(&said.configuration),
            own.configuration
        );
        return refuse(Code::Configuration, reason);
    }
    if said.shard != own.shard {
        let reason = format!("shard {} of the node calls shard {} of {}", said.shard, own.shard, own.node);
        return refuse(Code::Shard, reason);
    }
    if said.node == own.node {
        return refuse(Code::Member, format!("the node says that it is {}; that is this one", said.node));
    }
    if said.incarnation == 0 {
        return refuse(Code::Malformed, "an incarnation is not 0".to_owned());
    }
    match said.node.parse::<NodeId>().ok().and_then(|id| cluster.index_of(id)) {
        Some(index) => Ok(index),
        None => {
            let reason = format!("the cluster '{}' has no node '{}'", own.cluster, Quoted::name(&said.node));
            refuse(Code::Member, reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let address = |port| vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))];
        Cluster::local("test", vec![vec![address(1), address(2)], vec![address(3)]])
    }

    fn hello(node: &str) -> PeerHello {
        PeerHello {
            protocol: WIRE_VERSION,
            cluster: "test".to_owned(),
            configuration: "00ff".to_owned(),
            node: node.to_owned(),
            incarnation: 5,
            boot: 1,
            shard: 0,
            shards: 1,
        }
    }

    #[test]
    fn every_mismatch_has_its_reason() {
        let (own, cluster) = (hello("1.1"), cluster());
        assert_eq!(check(&own, &cluster, &hello("2.1")), Ok(NodeIndex(2)));
        let refused = |change: fn(&mut PeerHello), code, word: &str| {
            let mut said = hello("1.2");
            change(&mut said);
            let refusal = check(&own, &cluster, &said).unwrap_err();
            assert_eq!(refusal.code, code);
            assert!(refusal.reason.contains(word), "'{}' does not name {word}", refusal.reason);
            assert_eq!(Refusal::read(refusal.to_string().as_bytes()), refusal);
        };
        refused(|said| said.protocol = 9, Code::Version, "version 9");
        refused(|said| said.cluster = "other".to_owned(), Code::Cluster, "'other'");
        refused(|said| said.configuration = "ee".to_owned(), Code::Configuration, "ee");
        refused(|said| said.shards = 8, Code::Shards, "8 shards");
        refused(|said| said.shard = 3, Code::Shard, "shard 3");
        refused(|said| said.node = "1.1".to_owned(), Code::Member, "1.1");
        refused(|said| said.node = "7.1".to_owned(), Code::Member, "7.1");
        refused(|said| said.node = "x".to_owned(), Code::Member, "'x'");
        refused(|said| said.incarnation = 0, Code::Malformed, "incarnation");
    }

    #[test]
    fn a_refusal_without_a_known_code_is_still_read() {
        let refusal = Refusal::read(b"go away");
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Malformed, "go away"));
        assert_eq!(Refusal::read(&[0xff, b':', b' ']).code, Code::Malformed);
        let forged = Refusal::read(b"taken: x\n2026-01-01T00:00:00Z ERROR forged");
        assert_eq!(forged, Refusal::new(Code::Taken, "x\\n2026-01-01T00:00:00Z ERROR forged"));
    }

    #[test]
    fn what_a_peer_calls_itself_is_quoted_and_cut() {
        let (own, cluster) = (hello("1.1"), cluster());
        let changes: [fn(&mut PeerHello, String); 3] =
            [|said, name| said.cluster = name, |said, name| said.configuration = name, |said, name| said.node = name];
        for change in changes {
            let mut said = hello("1.2");
            change(&mut said, format!("\n\u{1b}[2J\"{}", "n".repeat(60_000)));
            let reason = check(&own, &cluster, &said).unwrap_err().reason;
            assert!(reason.len() < 1000 && !reason.contains(char::is_control), "{reason}");
            assert!(reason.contains("\\n\\u{1b}[2J\\\"nnn"), "{reason}");
        }
    }
}
