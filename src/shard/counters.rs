//! What a shard counts of its own work.

use super::outbox::Sent;

/// Counters of one shard since its start.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counters {
    /// Loop turns: each flushes the protocol at least once.
    pub(super) turns: u64,
    /// Flushes of the protocol.
    pub(super) flushes: u64,
    /// Receives on links.
    pub(super) link_receives: u64,
    /// Bytes received on links.
    pub(super) link_bytes_received: u64,
    /// Frames received on links.
    pub(super) link_frames_received: u64,
    /// Send system calls on links.
    pub(super) link_sends: u64,
    /// Bytes sent on links.
    pub(super) link_bytes_sent: u64,
    /// Frames queued on links.
    pub(super) link_frames_queued: u64,
    /// Frames for links that were down.
    pub(super) link_frames_dropped: u64,
    /// Sends that found a link's socket full.
    pub(super) link_blocked: u64,
    /// Times that a link came up.
    pub(super) links_up: u64,
    /// Receives on client connections.
    pub(super) client_receives: u64,
    /// Bytes received from clients.
    pub(super) client_bytes_received: u64,
    /// Send system calls on client connections.
    pub(super) client_sends: u64,
    /// Bytes sent to clients.
    pub(super) client_bytes_sent: u64,
    /// Sends that found a client's socket full.
    pub(super) client_blocked: u64,
    /// Times that a client was read no further because too much of it was under way.
    pub(super) client_pauses: u64,
    /// Client connections that were welcomed.
    pub(super) clients_welcomed: u64,
    /// Connections closed because they said no hello.
    pub(super) strangers_closed: u64,
    /// Connections closed for what they sent.
    pub(super) connections_refused: u64,
    /// Requests taken from clients of this shard.
    pub(super) requests: u64,
    /// Client connections closed because they held too much, or made no progress for too long.
    pub(super) clients_closed: u64,
    /// Requests refused because clients held as much memory as they may.
    pub(super) requests_over_memory: u64,
    /// Requests taken over HTTP.
    pub(super) web_requests: u64,
    /// HTTP connections taken.
    pub(super) web_connections: u64,
    /// HTTP connections closed because their time was over.
    pub(super) web_timeouts: u64,
    /// Requests that this driver answered itself: overloaded, stopping, not valid.
    pub(super) requests_refused: u64,
    /// Answers sent to clients.
    pub(super) replies: u64,
    /// Requests passed to other shards of the node.
    pub(super) requests_lent: u64,
    /// Requests taken from other shards of the node.
    pub(super) requests_borrowed: u64,
    /// Answers of the protocol to requests that it had answered before: a bug.
    pub(super) replies_unknown: u64,
}

impl Counters {
    /// Counts a send on a link.
    pub(super) fn link_sent(&mut self, sent: Sent) {
        self.link_sends += sent.calls;
        self.link_bytes_sent += sent.bytes;
        self.link_blocked += u64::from(sent.blocked);
    }

    /// Counts a send to a client.
    pub(super) fn client_sent(&mut self, sent: Sent) {
        self.client_sends += sent.calls;
        self.client_bytes_sent += sent.bytes;
        self.client_blocked += u64::from(sent.blocked);
    }

    /// By name.
    pub(super) fn named(&self) -> [(&'static str, u64); 31] {
        [
            ("io_turns", self.turns),
            ("io_flushes", self.flushes),
            ("io_link_receives", self.link_receives),
            ("io_link_bytes_received", self.link_bytes_received),
            ("io_link_frames_received", self.link_frames_received),
            ("io_link_sends", self.link_sends),
            ("io_link_bytes_sent", self.link_bytes_sent),
            ("io_link_frames_queued", self.link_frames_queued),
            ("io_link_frames_dropped", self.link_frames_dropped),
            ("io_link_blocked", self.link_blocked),
            ("io_links_up", self.links_up),
            ("io_client_receives", self.client_receives),
            ("io_client_bytes_received", self.client_bytes_received),
            ("io_client_sends", self.client_sends),
            ("io_client_bytes_sent", self.client_bytes_sent),
            ("io_client_blocked", self.client_blocked),
            ("io_client_pauses", self.client_pauses),
            ("io_clients_welcomed", self.clients_welcomed),
            ("io_strangers_closed", self.strangers_closed),
            ("io_connections_refused", self.connections_refused),
            ("io_requests", self.requests),
            ("io_clients_closed", self.clients_closed),
            ("io_requests_over_memory", self.requests_over_memory),
            ("io_web_requests", self.web_requests),
            ("io_web_connections", self.web_connections),
            ("io_web_timeouts", self.web_timeouts),
            ("io_requests_refused", self.requests_refused),
            ("io_replies", self.replies),
            ("io_requests_lent", self.requests_lent),
            ("io_requests_borrowed", self.requests_borrowed),
            ("io_replies_unknown", self.replies_unknown),
        ]
    }
}
