//! What a path and a query ask for.

use std::fmt;

use crate::{command::KEY_BYTES_MAX, topology::NodeId};

/// The methods that a key takes.
pub const KEY_METHODS: &str = "GET, HEAD, PUT, POST, DELETE";
/// Parameters of one query at most: no path takes more than a few.
const PARAMETERS_MAX: usize = 16;
/// The longest time of a fault, in seconds: a year. Longer is for ever.
const SECONDS_MAX: f64 = 31_536_000.0;
/// The longest delay of a link, in milliseconds.
const SLOW_MS_MAX: f64 = 60_000.0;
/// Owners in one answer, unless it asks for another number; and at the most, whatever it asks for.
const OWNERS: usize = 100;
const OWNERS_MAX: usize = 1000;

/// What a request asks for. Reserved paths are recognised before percent-decoding, so that a key with such a name is
/// reached by encoding any of its characters.
#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    /// `/<key>`: the key, decoded.
    Key(Vec<u8>),
    /// `/`: the command is in the body, as JSON.
    Body,
    /// `/history`: earlier values of a key.
    History {
        /// The key.
        key: Vec<u8>,
        /// Whether each value comes with its version.
        versions: bool,
    },
    /// `/crash`, `/drop`, `/slow`, `/flaky`, `/partition`.
    Fault(FaultOrder),
    /// `/heal`: no faults any more.
    Heal,
    /// `/_/status`.
    Status,
    /// `/_/owners?key=`.
    Owner(Vec<u8>),
    /// `/_/owners`.
    Owners {
        /// At most so many.
        limit: usize,
        /// Those behind this key, in the order in which this node met them; from the start if `None`.
        after: Option<Vec<u8>>,
    },
    /// `/_/steal`: the node is to take a key.
    Steal(Vec<u8>),
}

/// A fault to be injected.
#[derive(Clone, PartialEq, Debug)]
pub struct FaultOrder {
    /// Which.
    pub what: Injection,
    /// For how long, in microseconds; until it is healed if `None`.
    pub for_us: Option<u64>,
}

/// A fault at a node's links to its peers.
#[derive(Clone, PartialEq, Debug)]
pub enum Injection {
    /// Nothing goes to any peer, nothing is taken from any.
    Crash,
    /// Nothing goes to this peer.
    Drop(NodeId),
    /// What goes to this peer is held back so long, in microseconds.
    Slow(NodeId, u64),
    /// Each frame for this peer is lost with this probability.
    Flaky(NodeId, f64),
    /// This node and these are cut off from each other.
    Partition(Vec<NodeId>, Cut),
}

/// Which way a partition cuts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Both ways.
    Both,
    /// Nothing is taken from them.
    In,
    /// Nothing goes to them.
    Out,
}

impl Injection {
    /// The peers that it names; a crash names none.
    pub fn peers(&self) -> &[NodeId] {
        match self {
            Self::Crash => &[],
            Self::Drop(peer) | Self::Slow(peer, _) | Self::Flaky(peer, _) => std::slice::from_ref(peer),
            Self::Partition(peers, _) => peers,
        }
    }
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash => write!(f, "crash"),
            Self::Drop(peer) => write!(f, "drop {peer}"),
            Self::Slow(peer, us) => write!(f, "slow {peer} {} ms", *us as f64 / 1000.0),
            Self::Flaky(peer, p) => write!(f, "flaky {peer} {p}"),
            Self::Partition(peers, cut) => {
                let peers: Vec<String> = peers.iter().map(NodeId::to_string).collect();
                let way = match cut {
                    Cut::Both => "both",
                    Cut::In => "in",
                    Cut::Out => "out",
                };
                write!(f, "partition {} {way}", peers.join(","))
            }
        }
    }
}

/// Why a path or a query asks for nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TargetError {
    /// A `%` without two hexadecimal digits behind it.
    #[error("'{0}' is not percent-encoded: a % needs two hexadecimal digits behind it, as in %2F")]
    Encoding(String),
    /// The key is too long.
    #[error("a key of {0} bytes is too long; a key has 1 to {KEY_BYTES_MAX} bytes")]
    LongKey(usize),
    /// Nothing is there.
    #[error(
        "there is no {0}; there are /_/status, /_/owners and /_/steal, and a key of that name is reached as /%5F/…"
    )]
    Unknown(String),
    /// A parameter is wrong, missing, or does not belong there.
    #[error("{0}")]
    Query(String),
}

impl Target {
    /// Reads a path and a query as they came.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        match path {
            "/" | "" => Query::read(path, query, &[]).map(|_| Self::Body),
            "/history" => {
                let mut query = Query::read(path, query, &["key", "versions"])?;
                Ok(Self::History { key: query.key()?, versions: query.flag("versions")? })
            }
            "/crash" => Query::read(path, query, &["t"])?.fault(|_| Ok(Injection::Crash)),
            "/drop" => Query::read(path, query, &["id", "t"])?.fault(|query| Ok(Injection::Drop(query.peer()?))),
            "/slow" => Query::read(path, query, &["id", "ms", "t"])?.fault(|query| {
                let (peer, ms) = (query.peer()?, query.number("ms", "20", 0.0, SLOW_MS_MAX)?);
                Ok(Injection::Slow(peer, (ms * 1000.0) as u64))
            }),
            "/flaky" => Query::read(path, query, &["id", "p", "t"])?
                .fault(|query| Ok(Injection::Flaky(query.peer()?, query.number("p", "0.1", 0.0, 1.0)?))),
            "/partition" => Query::read(path, query, &["ids", "t", "way"])?
                .fault(|query| Ok(Injection::Partition(query.peers()?, query.way()?))),
            "/heal" => Query::read(path, query, &[]).map(|_| Self::Heal),
            "/_/status" => Query::read(path, query, &[]).map(|_| Self::Status),
            "/_/owners" => Query::read(path, query, &["key", "limit", "after"])?.owners(),
            "/_/steal" => Ok(Self::Steal(Query::read(path, query, &["key"])?.key()?)),
            _ if path.starts_with("/_/") => Err(TargetError::Unknown(path.to_owned())),
            _ => {
                Query::read("a key", query, &[])?;
                let key = path.strip_prefix('/').unwrap_or(path);
                checked_key(percent_decode(key, false)?).map(Self::Key)
            }
        }
    }

    /// The methods that it takes, as an Allow header has them.
    pub const fn methods(&self) -> &'static str {
        match self {
            Self::Key(_) => KEY_METHODS,
            Self::Body => "POST, PUT, GET",
            Self::Fault(_) | Self::Heal => "GET, POST",
            Self::Steal(_) => "POST",
            Self::History { .. } | Self::Status | Self::Owner(_) | Self::Owners { .. } => "GET, HEAD",
        }
    }
}

fn checked_key(key: Vec<u8>) -> Result<Vec<u8>, TargetError> {
    match key.len() {
        0 => Err(TargetError::Query("the key is empty; a key has at least one byte".to_owned())),
        bytes if bytes > KEY_BYTES_MAX => Err(TargetError::LongKey(bytes)),
        _ => Ok(key),
    }
}

/// The bytes that a percent-encoded text stands for; in a query a `+` is a space.
fn percent_decode(text: &str, plus_is_space: bool) -> Result<Vec<u8>, TargetError> {
    let wrong = || TargetError::Encoding(text.chars().take(80).collect());
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(wrong);
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (digit(bytes.next())? << 4 | digit(bytes.next())?) as u8,
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    Ok(decoded)
}

/// The parameters of a query, decoded.
struct Query<'a> {
    path: &'a str,
    parameters: Vec<(String, Vec<u8>)>,
}

impl<'a> Query<'a> {
    /// Each of the `known` parameters at most once, and no other.
    fn read(path: &'a str, query: Option<&str>, known: &[&str]) -> Result<Self, TargetError> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        let wrong = |problem: String| Err(TargetError::Query(problem));
        for piece in query.unwrap_or_default().split('&').filter(|piece| !piece.is_empty()) {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            let name = String::from_utf8_lossy(&percent_decode(name, true)?).into_owned();
            if !known.contains(&name.as_str()) || parameters.len() >= PARAMETERS_MAX {
                let takes = if known.is_empty() { "no parameters".to_owned() } else { known.join(", ") };
                let name: String = name.chars().take(40).collect();
                return wrong(format!("{path} has no parameter '{name}'; it takes {takes}"));
            }
            if parameters.iter().any(|(known, _)| *known == name) {
                return wrong(format!("the parameter {name} is there twice"));
            }
            parameters.push((name, percent_decode(value, true)?));
        }
        Ok(Self { path, parameters })
    }

    fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        let place = self.parameters.iter().position(|(known, _)| known == name)?;
        Some(self.parameters.swap_remove(place).1)
    }

    fn require(&mut self, name: &str, example: &str) -> Result<Vec<u8>, TargetError> {
        let missing = || TargetError::Query(format!("{} needs {name}, as in {name}={example}", self.path));
        match self.parameters.iter().position(|(known, _)| known == name) {
            Some(place) => Ok(self.parameters.swap_remove(place).1),
            None => Err(missing()),
        }
    }

    fn key(&mut self) -> Result<Vec<u8>, TargetError> {
        checked_key(self.require("key", "42")?)
    }

    fn text(&mut self, name: &str, example: &str) -> Result<String, TargetError> {
        let bytes = self.require(name, example)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn number(&mut self, name: &str, example: &str, min: f64, max: f64) -> Result<f64, TargetError> {
        let text = self.text(name, example)?;
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        let problem = || TargetError::Query(format!("{name}={text} must be a number from {min} to {max}"));
        number.ok_or_else(problem)
    }

    fn flag(&mut self, name: &str) -> Result<bool, TargetError> {
        match self.take(name).as_deref() {
            None | Some(b"0") => Ok(false),
            Some(b"1") => Ok(true),
            Some(_) => Err(TargetError::Query(format!("{name} is 0 or 1"))),
        }
    }

    fn peer(&mut self) -> Result<NodeId, TargetError> {
        self.text("id", "1.2")?.parse().map_err(|error| TargetError::Query(format!("id: {error}")))
    }

    fn peers(&mut self) -> Result<Vec<NodeId>, TargetError> {
        let text = self.text("ids", "2.1,2.2")?;
        let peers: Result<Vec<NodeId>, _> = text.split(',').map(str::parse).collect();
        peers.map_err(|error| TargetError::Query(format!("ids: {error}")))
    }

    fn way(&mut self) -> Result<Cut, TargetError> {
        match self.take("way").as_deref() {
            None | Some(b"both") => Ok(Cut::Both),
            Some(b"in") => Ok(Cut::In),
            Some(b"out") => Ok(Cut::Out),
            Some(_) => Err(TargetError::Query("way is both, in or out".to_owned())),
        }
    }

    fn fault(mut self, what: impl FnOnce(&mut Self) -> Result<Injection, TargetError>) -> Result<Target, TargetError> {
        let what = what(&mut self)?;
        let seconds = self.number("t", "10", -SECONDS_MAX, SECONDS_MAX)?;
        let for_us = (seconds > 0.0).then_some((seconds * 1e6) as u64);
        Ok(Target::Fault(FaultOrder { what, for_us }))
    }

    fn owners(mut self) -> Result<Target, TargetError> {
        if let Some(key) = self.take("key") {
            return match self.parameters.first() {
                Some((other, _)) => Err(TargetError::Query(format!("{other} does not go with key: give one of them"))),
                None => checked_key(key).map(Target::Owner),
            };
        }
        let after = self.take("after").map(checked_key).transpose()?;
        let limit = match self.parameters.is_empty() {
            true => OWNERS,
            false => self.number("limit", "100", 1.0, f64::from(u32::MAX))? as usize,
        };
        let limit = limit.min(OWNERS_MAX);
        Ok(Target::Owners { limit, after })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(target: &str) -> Result<Target, TargetError> {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        Target::parse(path, query)
    }

    fn fault(what: Injection, for_us: Option<u64>) -> Target {
        Target::Fault(FaultOrder { what, for_us })
    }

    #[test]
    fn targets_by_table() {
        let key = |key: &[u8]| Target::Key(key.to_vec());
        let node = NodeId::new;
        for (text, target) in [
            ("/42", key(b"42")),
            ("/-7", key(b"-7")),
            ("/a/b", key(b"a/b")),
            ("/a%2Fb%00%ff", key(b"a/b\0\xff")),
            ("/a+b", key(b"a+b")),
            ("//", key(b"/")),
            ("/%68istory", key(b"history")),
            ("/%5F/status", key(b"_/status")),
            ("/_", key(b"_")),
            ("/historyx", key(b"historyx")),
            ("/", Target::Body),
            ("/?", Target::Body),
            ("/history?key=42", Target::History { key: b"42".to_vec(), versions: false }),
            ("/history?versions=1&key=a+b%2B", Target::History { key: b"a b+".to_vec(), versions: true }),
            ("/crash?t=10", fault(Injection::Crash, Some(10_000_000))),
            ("/crash?t=0", fault(Injection::Crash, None)),
            ("/crash?t=-1", fault(Injection::Crash, None)),
            ("/drop?id=1.2&t=0.5", fault(Injection::Drop(node(1, 2)), Some(500_000))),
            ("/slow?id=1.2&ms=20&t=1", fault(Injection::Slow(node(1, 2), 20_000), Some(1_000_000))),
            ("/flaky?t=1&p=0.25&id=1.2", fault(Injection::Flaky(node(1, 2), 0.25), Some(1_000_000))),
            (
                "/partition?ids=2.1,2.2&t=1&way=out",
                fault(Injection::Partition(vec![node(2, 1), node(2, 2)], Cut::Out), Some(1_000_000)),
            ),
            ("/partition?ids=2.1&t=0", fault(Injection::Partition(vec![node(2, 1)], Cut::Both), None)),
            ("/heal", Target::Heal),
            ("/_/status", Target::Status),
            ("/_/owners", Target::Owners { limit: OWNERS, after: None }),
            ("/_/owners?limit=1000000", Target::Owners { limit: OWNERS_MAX, after: None }),
            ("/_/owners?limit=7&after=k", Target::Owners { limit: 7, after: Some(b"k".to_vec()) }),
            ("/_/owners?key=k", Target::Owner(b"k".to_vec())),
            ("/_/steal?key=k", Target::Steal(b"k".to_vec())),
        ] {
            assert_eq!(parse(text), Ok(target), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, message) in [
            ("/a%2", "'a%2' is not percent-encoded"),
            ("/a%zz", "'a%zz' is not percent-encoded"),
            ("/a%+1", "'a%+1' is not percent-encoded"),
            ("/a?b=1", "a key has no parameter 'b'; it takes no parameters"),
            ("/_/stats", "there is no /_/stats"),
            ("/history", "/history needs key, as in key=42"),
            ("/history?key=", "the key is empty"),
            ("/history?key=1&key=2", "key is there twice"),
            ("/history?kex=1", "/history has no parameter 'kex'; it takes key, versions"),
            ("/history?key=%", "is not percent-encoded"),
            ("/crash", "/crash needs t, as in t=10"),
            ("/crash?t=soon", "t=soon must be a number from"),
            ("/crash?t=NaN", "t=NaN must be a number from"),
            ("/drop?t=1", "/drop needs id, as in id=1.2"),
            ("/drop?id=1&t=1", "id: '1' is not a node id"),
            ("/slow?id=1.2&ms=-1&t=1", "ms=-1 must be a number from 0 to 60000"),
            ("/flaky?id=1.2&p=2&t=1", "p=2 must be a number from 0 to 1"),
            ("/partition?ids=1.1,&t=1", "ids: '' is not a node id"),
            ("/partition?ids=1.1&t=1&way=up", "way is both, in or out"),
            ("/_/owners?limit=0", "limit=0 must be a number from 1 to"),
            ("/_/owners?key=a&after=b", "after does not go with key"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error:?} does not say {message:?}");
        }
        assert_eq!(parse(&format!("/{}", "a".repeat(4097))), Err(TargetError::LongKey(4097)));
        assert!(parse(&format!("/{}", "%61".repeat(4096))).is_ok());
    }

    proptest! {
        #[test]
        fn any_key_is_reached_by_encoding_all_of_it(key in prop::collection::vec(any::<u8>(), 1..200)) {
            let encoded: String = key.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(Target::parse(&format!("/{encoded}"), None), Ok(Target::Key(key.clone())));
            let query = format!("key={encoded}");
            let history = Target::History { key, versions: false };
            prop_assert_eq!(Target::parse("/history", Some(&query)), Ok(history));
        }

        #[test]
        fn any_text_is_read_without_a_panic(path in "/[ -~é%]{0,60}", query in "[ -~é%&=]{0,60}") {
            let _ = Target::parse(&path, Some(&query));
            for path in ["/", "/history", "/crash", "/drop", "/slow", "/flaky", "/partition", "/_/owners", "/_/steal"] {
                let _ = Target::parse(path, Some(&query));
            }
        }
    }
}
