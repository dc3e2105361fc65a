//! What an operator asks of single nodes, over their HTTP addresses: status, histories, owners, steals, injected faults.
//!
//! Everything here blocks, for at most [`Admin::with_timeout`] per call; calls that ask many nodes ask them at once.
//! Injected faults need `allowed = true` in `[faults]` of the cluster file, and histories `enabled = true` in `[history]`.
//!
//! ```
//! use std::time::Duration;
//! use wpaxos::{client::{Client, Options, admin::Verdict}, local::{LocalCluster, LocalHttp, LocalOptions}, topology::NodeId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (http, history) = (LocalHttp::AnyPorts, Some(Default::default()));
//! let cluster = LocalCluster::start(LocalOptions { http, history, faults: true, ..LocalOptions::default() })?;
//! let mut client = Client::connect(Options::to(cluster.seeds()))?;
//! client.put(b"k", b"one")?;
//! client.put(b"k", b"two")?;
//!
//! let admin = client.admin()?; // Or `Admin::new`, with the addresses.
//! match admin.consensus(b"k").verdict {
//!     Verdict::Part { version, values, .. } => panic!("they part at version {version}: {values:?}"),
//!     verdict => println!("{verdict:?}"), // Agree { up_to: 2, compared: 2 }, if all have executed both by now
//! }
//!
//! let (here, there) = (NodeId::new(1, 1), NodeId::new(3, 1));
//! admin.drop(here, there, Some(Duration::from_secs(5)))?;
//! admin.heal(here)?;
//! assert_eq!(admin.steal(there, b"k")?.owner, Some(there));
//! # cluster.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! A fault lasts as long as it is told to, at most a year, or until it is healed; several add up, and end one by one.

use std::{io::ErrorKind, net::SocketAddr, thread, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use ureq::Timeout;

pub use super::consensus::{Consensus, Held, Verdict, Version};
use crate::topology::NodeId;

/// The longest that one call waits for one node, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A longer answer is refused, so that no node can fill our memory.
const ANSWER_BYTES_MAX: u64 = 128 << 20;
/// How many nodes are asked at a time.
const ASKED_AT_ONCE: usize = 16;
/// What is quoted of an answer that says why not.
const REASON_BYTES_MAX: usize = 400;

/// Why a node did not do, or did not say, what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such node.
    #[error("the cluster has no node {node}; it has {known}")]
    NoSuchNode {
        /// The node asked for.
        node: NodeId,
        /// Those that there are.
        known: String,
    },
    /// Its HTTP address is not known, most likely because it has none.
    #[error("node {node} has no HTTP address: give it one, as in `http = \"127.0.0.1:8101\"`, in its [[node]] table")]
    NoHttp {
        /// The node asked for.
        node: NodeId,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It cannot be reached; it was not asked.
    #[error("{node} ({address}) cannot be reached over HTTP: {reason}")]
    Unreachable {
        /// Who.
        node: NodeId,
        /// Where it was to be asked.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// It was reached and did not answer, or not in time. What it was asked to do may have happened.
    #[error("{node} ({address}) gives no answer over HTTP: {reason}")]
    NoAnswer {
        /// Who.
        node: NodeId,
        /// Where it was asked.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// It will not.
    #[error("{node} refuses (HTTP status {status}): {reason}")]
    Refused {
        /// Who.
        node: NodeId,
        /// The HTTP status: 403 if the cluster file does not allow it.
        status: u16,
        /// Its own words.
        reason: String,
    },
    /// Its answer makes no sense.
    #[error("{node} gave a malformed answer: {reason}")]
    Malformed {
        /// Who.
        node: NodeId,
        /// What is wrong with it.
        reason: String,
    },
}

/// Who owns a key, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The key.
    pub key: Vec<u8>,
    /// Its owner; `None` if the node knows of none.
    pub owner: Option<NodeId>,
    /// The highest ballot that the node has seen for it, as `counter.zone.node`.
    pub ballot: String,
    /// Whether the node that says so leads the key itself.
    pub leads: bool,
    /// The slot up to which the node has executed the key's commands.
    pub applied: u64,
    /// How often the key was taken since somebody had it first, as far as the node knows.
    pub steals: u64,
}

/// What each node answered, in the order in which they were named.
pub type Answers<T> = Vec<(NodeId, Result<T, AdminError>)>;

/// Asks the nodes of one cluster over HTTP.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Sorted by id.
    nodes: Vec<(NodeId, Option<SocketAddr>)>,
    agent: ureq::Agent,
}

impl Admin {
    /// For nodes with these HTTP addresses.
    pub fn new(nodes: Vec<(NodeId, SocketAddr)>) -> Self {
        Self::of_members(nodes.into_iter().map(|(node, address)| (node, Some(address))).collect())
    }

    /// For all nodes of a cluster, some of which may have no HTTP address: asking those is an error that says so.
    pub fn of_members(mut nodes: Vec<(NodeId, Option<SocketAddr>)>) -> Self {
        nodes.sort_by_key(|(node, _)| *node);
        Self { nodes, agent: agent(TIMEOUT) }
    }

    /// Waits for one node for at most this long, from connecting to the last byte of its answer. The default is 5 s.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { agent: agent(timeout), ..self }
    }

    /// All nodes, sorted by id, with their HTTP addresses.
    pub fn nodes(&self) -> &[(NodeId, Option<SocketAddr>)] {
        &self.nodes
    }

    /// The versions of a key that a node keeps, rising; `None` if it keeps no history.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn history(&self, node: NodeId, key: &[u8]) -> Result<Option<Vec<Version>>, AdminError> {
        #[derive(Deserialize)]
        struct Line {
            version: u64,
            value: Option<String>,
        }
        let lines: Option<Vec<Line>> = self.get_json(node, &format!("/history?versions=1&key={}", encoded(key)))?;
        let Some(lines) = lines else { return Ok(None) };
        if !lines.is_sorted_by(|a, b| a.version < b.version) {
            return Err(AdminError::Malformed { node, reason: "the versions of a history do not rise".to_owned() });
        }
        let version = |line: Line| {
            let value = line.value.map(|text| decoded(node, &text)).transpose()?;
            Ok(Version { version: line.version, value })
        };
        lines.into_iter().map(version).collect::<Result<_, _>>().map(Some)
    }

    /// Whether all nodes agree on a key's history, or where they part. What a node fails to say is part of the answer.
    pub fn consensus(&self, key: &[u8]) -> Consensus {
        let histories = self.of_all(|node| self.history(node, key));
        let held = |answer| match answer {
            Ok(Some(versions)) => Held::Versions(versions),
            Ok(None) => Held::Off,
            Err(error) => Held::Failed(error),
        };
        Consensus::of(key.to_vec(), histories.into_iter().map(|(node, answer)| (node, held(answer))).collect())
    }

    /// What a node says of itself: its cluster, version, facts, active faults; of each shard its links and counters.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn status(&self, node: NodeId) -> Result<serde_json::Value, AdminError> {
        self.get_json(node, "/_/status")
    }

    /// [`Self::status`] of every node.
    pub fn status_of_all(&self) -> Answers<serde_json::Value> {
        self.of_all(|node| self.status(node))
    }

    /// Who owns a key as a node sees it; `None` if it has never heard of the key.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn owner(&self, node: NodeId, key: &[u8]) -> Result<Option<Owner>, AdminError> {
        let found = self.owners_at(node, &format!("/_/owners?key={}", encoded(key)))?;
        Ok(found.into_iter().find(|owner| owner.key == key))
    }

    /// [`Self::owner`] as every node sees it.
    pub fn owner_at_all(&self, key: &[u8]) -> Answers<Option<Owner>> {
        self.of_all(|node| self.owner(node, key))
    }

    /// Who owns the keys that a node knows, in the node's order: at most `limit` of them, those behind `after` if it is given.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn owners(&self, node: NodeId, limit: usize, after: Option<&[u8]>) -> Result<Vec<Owner>, AdminError> {
        let after = after.map(|key| format!("&after={}", encoded(key))).unwrap_or_default();
        self.owners_at(node, &format!("/_/owners?limit={limit}{after}"))
    }

    fn owners_at(&self, node: NodeId, path: &str) -> Result<Vec<Owner>, AdminError> {
        let lines: Vec<OwnerLine> = self.get_json(node, path)?;
        lines.into_iter().map(|line| line.read(node)).collect()
    }

    /// Makes a node take a key by phase 1; answers once it leads.
    ///
    /// # Errors
    /// See [`AdminError`]; [`AdminError::Refused`] says why it does not lead. With status 504 it may yet.
    pub fn steal(&self, node: NodeId, key: &[u8]) -> Result<Owner, AdminError> {
        let answer = self.ask(node, &format!("/_/steal?key={}", encoded(key)), true)?;
        let line: OwnerLine = serde_json::from_slice(&answer).map_err(|error| malformed(node, &error))?;
        line.read(node)
    }

    /// Cuts a node off from all its peers, as if it had crashed, for so long, or until it is healed.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn crash(&self, node: NodeId, lasting: Option<Duration>) -> Result<(), AdminError> {
        self.inject(node, &format!("/crash?t={}", seconds(lasting)))
    }

    /// Makes a node lose everything that it sends to a peer.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn drop(&self, from: NodeId, to: NodeId, lasting: Option<Duration>) -> Result<(), AdminError> {
        self.between(from, to)?;
        self.inject(from, &format!("/drop?id={to}&t={}", seconds(lasting)))
    }

    /// Makes a node hold back what it sends to a peer by `delay`, in whole milliseconds, at most a minute.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn slow(&self, from: NodeId, to: NodeId, delay: Duration, lasting: Option<Duration>) -> Result<(), AdminError> {
        self.between(from, to)?;
        self.inject(from, &format!("/slow?id={to}&ms={}&t={}", delay.as_millis(), seconds(lasting)))
    }

    /// Makes a node lose part of what it sends to a peer: each message with this probability, from 0 to 1.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn flaky(
        &self,
        from: NodeId,
        to: NodeId,
        probability: f64,
        lasting: Option<Duration>,
    ) -> Result<(), AdminError> {
        self.between(from, to)?;
        if !(0.0..=1.0).contains(&probability) {
            return Err(AdminError::Usage(format!("a probability is from 0 to 1, not {probability}")));
        }
        self.inject(from, &format!("/flaky?id={to}&p={probability}&t={}", seconds(lasting)))
    }

    /// Cuts these nodes off from the rest of the cluster. With `one_way`, as in Paxi, what they send still arrives, and only
    /// what the rest sends to them is lost. Gives what each of these nodes answered: where one failed, the partition is
    /// not whole, and [`Self::heal`] ends what there is of it.
    ///
    /// # Errors
    /// If the nodes are none, all, or unknown; nothing was asked then.
    pub fn partition(
        &self,
        members: &[NodeId],
        one_way: bool,
        lasting: Option<Duration>,
    ) -> Result<Answers<()>, AdminError> {
        members.iter().try_for_each(|node| self.known(*node).map(drop))?;
        let rest: Vec<String> =
            self.ids().filter(|node| !members.contains(node)).map(|node| node.to_string()).collect();
        if members.is_empty() || rest.is_empty() {
            let problem = "a partition needs nodes on both sides: name some, but not all of the cluster's";
            return Err(AdminError::Usage(problem.to_owned()));
        }
        let way = if one_way { "in" } else { "both" };
        let path = format!("/partition?ids={}&t={}&way={way}", rest.join(","), seconds(lasting));
        let mut sides = members.to_vec();
        sides.sort_unstable();
        sides.dedup();
        Ok(self.of(&sides, |node| self.inject(node, &path)))
    }

    /// Ends all faults that were injected into a node.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn heal(&self, node: NodeId) -> Result<(), AdminError> {
        self.inject(node, "/heal")
    }

    /// [`Self::heal`] for every node.
    pub fn heal_all(&self) -> Answers<()> {
        self.of_all(|node| self.heal(node))
    }

    fn inject(&self, node: NodeId, path: &str) -> Result<(), AdminError> {
        self.ask(node, path, false).map(|_| ())
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().map(|(node, _)| *node)
    }

    /// A node of this cluster.
    fn known(&self, node: NodeId) -> Result<Option<SocketAddr>, AdminError> {
        let found = self.nodes.iter().find(|(id, _)| *id == node);
        let known = || self.ids().map(|node| node.to_string()).collect::<Vec<_>>().join(", ");
        found.map(|(_, address)| *address).ok_or_else(|| AdminError::NoSuchNode { node, known: known() })
    }

    /// Two different nodes of this cluster.
    fn between(&self, from: NodeId, to: NodeId) -> Result<(), AdminError> {
        self.known(from).and(self.known(to))?;
        if from == to {
            return Err(AdminError::Usage(format!("{from} sends nothing to itself: name two nodes")));
        }
        Ok(())
    }

    fn of_all<T: Send>(&self, ask: impl Fn(NodeId) -> Result<T, AdminError> + Sync) -> Answers<T> {
        self.of(&self.ids().collect::<Vec<_>>(), ask)
    }

    /// Asks nodes side by side, so that one that is down costs its time-out once.
    fn of<T: Send>(&self, nodes: &[NodeId], ask: impl Fn(NodeId) -> Result<T, AdminError> + Sync) -> Answers<T> {
        let ask = &ask;
        let mut answers = Vec::with_capacity(nodes.len());
        for nodes in nodes.chunks(ASKED_AT_ONCE) {
            thread::scope(|scope| {
                let asked: Vec<_> = nodes.iter().map(|node| (*node, scope.spawn(move || ask(*node)))).collect();
                answers.extend(asked.into_iter().map(|(node, answer)| (node, answer.join().expect("no call panics"))));
            });
        }
        answers
    }

    fn get_json<T: DeserializeOwned>(&self, node: NodeId, path: &str) -> Result<T, AdminError> {
        let body = self.ask(node, path, false)?;
        serde_json::from_slice(&body).map_err(|error| malformed(node, &error))
    }

    fn ask(&self, node: NodeId, path: &str, post: bool) -> Result<Vec<u8>, AdminError> {
        let address = self.known(node)?.ok_or(AdminError::NoHttp { node })?;
        let url = format!("http://{address}{path}");
        let answer = if post { self.agent.post(&url).send_empty() } else { self.agent.get(&url).call() };
        let (head, mut body) = answer.map_err(|error| failure(node, address, error))?.into_parts();
        let body = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| failure(node, address, error))?;
        if head.status.is_success() {
            return Ok(body);
        }
        let said = String::from_utf8_lossy(&body[..body.len().min(REASON_BYTES_MAX)]).trim().to_owned();
        let reason = if said.is_empty() { "it does not say why".to_owned() } else { said };
        Err(AdminError::Refused { node, status: head.status.as_u16(), reason })
    }
}

/// An [`Owner`] as it is written.
#[derive(Deserialize)]
struct OwnerLine {
    key: String,
    owner: Option<String>,
    ballot: String,
    leads: bool,
    applied: u64,
    steals: u64,
}

impl OwnerLine {
    /// As `node` wrote it.
    fn read(self, node: NodeId) -> Result<Owner, AdminError> {
        let Self { key, owner, ballot, leads, applied, steals } = self;
        let owner = owner.map(|id| id.parse().map_err(|error| malformed(node, &error))).transpose()?;
        Ok(Owner { key: decoded(node, &key)?, owner, ballot, leads, applied, steals })
    }
}

fn failure(node: NodeId, address: SocketAddr, error: ureq::Error) -> AdminError {
    let (reached, reason) = match error {
        ureq::Error::Io(error) => (error.kind() != ErrorKind::ConnectionRefused, error.to_string()),
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => (false, "no connection in time".to_owned()),
        ureq::Error::Timeout(_) => (true, "no answer in time".to_owned()),
        ureq::Error::ConnectionFailed => (false, "no connection".to_owned()),
        other => (true, other.to_string()),
    };
    match reached {
        true => AdminError::NoAnswer { node, address, reason },
        false => AdminError::Unreachable { node, address, reason },
    }
}

/// Straight to the node, whatever proxies the environment names; every status is an answer.
fn agent(timeout: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().proxy(None).max_redirects(0).max_redirects_will_error(false);
    config
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .timeout_connect(Some(timeout / 2))
        .build()
        .new_agent()
}

/// Seconds as the endpoints take them; 0 is for ever, so no time at all is a very short one.
fn seconds(lasting: Option<Duration>) -> f64 {
    lasting.map_or(0.0, |time| time.max(Duration::from_millis(1)).as_secs_f64())
}

fn encoded(key: &[u8]) -> percent_encoding::PercentEncode<'_> {
    percent_encode(key, NON_ALPHANUMERIC)
}

fn decoded(node: NodeId, text: &str) -> Result<Vec<u8>, AdminError> {
    BASE64.decode(text).map_err(|error| malformed(node, &error))
}

fn malformed(node: NodeId, reason: &dyn std::fmt::Display) -> AdminError {
    AdminError::Malformed { node, reason: reason.to_string() }
}
