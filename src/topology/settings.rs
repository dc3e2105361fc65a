//! What a cluster file says about its replicas' HTTP interface, fault injection and history.

use std::fmt::Write as _;

use super::wan::Thousandths;

/// How replicas serve HTTP, where a member has an address for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HttpSettings {
    /// What a read of a key without a value is answered.
    pub missing: Missing,
    /// The longest body of a request, in bytes.
    pub body_bytes_max: usize,
    /// How long a connection may stay open without a request, in microseconds.
    pub idle_timeout_us: u64,
    /// How long a request may take from its first byte to its last, and how long its answer may take, in microseconds.
    pub request_timeout_us: u64,
    /// Open connections of one node, over all of its shards; further ones are closed.
    pub connections_max: usize,
}

/// What a read of a key without a value is answered over HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Missing {
    /// 404.
    #[default]
    NotFound,
    /// 200 and an empty body, as Paxi's clients expect. An empty value cannot be told from none then.
    Empty,
}

impl Missing {
    /// As the cluster file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "404",
            Self::Empty => "empty",
        }
    }
}

impl Default for HttpSettings {
    /// A body of 1 MiB, a minute of idleness, ten seconds for a request, 4096 connections.
    fn default() -> Self {
        Self {
            missing: Missing::default(),
            body_bytes_max: 1 << 20,
            idle_timeout_us: 60_000_000,
            request_timeout_us: 10_000_000,
            connections_max: 4096,
        }
    }
}

impl HttpSettings {
    pub(crate) fn write_toml(self, text: &mut String) {
        let Self { missing, body_bytes_max, idle_timeout_us, request_timeout_us, connections_max } = self;
        let (missing, idle, request) = (missing.name(), Thousandths(idle_timeout_us), Thousandths(request_timeout_us));
        let _ = writeln!(text, "\n[http]\nmissing = \"{missing}\"\nbody_bytes_max = {body_bytes_max}");
        let _ = writeln!(text, "idle_timeout_ms = {idle}\nrequest_timeout_ms = {request}");
        let _ = writeln!(text, "connections_max = {connections_max}");
    }
}

/// How many earlier values of its keys a shard keeps. They are its own: no other replica depends on them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HistoryBounds {
    /// Values of one key; the oldest goes first.
    pub versions_per_key: usize,
    /// Bytes of a shard's history, with what it needs to keep them; the oldest go first, whatever their key.
    pub bytes_max: usize,
}

impl Default for HistoryBounds {
    /// A thousand values of a key, and 64 MiB.
    fn default() -> Self {
        Self { versions_per_key: 1000, bytes_max: 64 << 20 }
    }
}

impl HistoryBounds {
    pub(crate) fn write_toml(history: Option<Self>, text: &mut String) {
        let Self { versions_per_key, bytes_max } = history.unwrap_or_default();
        let _ = writeln!(text, "\n[history]\nenabled = {}", history.is_some());
        if history.is_some() {
            let _ = writeln!(text, "versions_per_key = {versions_per_key}\nbytes_max = {bytes_max}");
        }
    }
}
