//! What a node keeps per peer: whether it hears it, how far the peer is in this node's stream, and the frames to it that
//! are being filled.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use zerocopy::{Immutable, IntoBytes};

use crate::{
    protocol::{Micros, Outputs, RecordId, Send},
    topology::NodeIndex,
    tuning::Timers,
    wire::{self, Kind, SPLIT_BYTES},
};

/// A frame to one peer that is being filled, or waits for the end of the turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Filling {
    buffer: BytesMut,
    /// The last record that an element in the buffer rests on.
    rests_on: RecordId,
    /// Full frames of this kind, and the last record that each rests on.
    full: Vec<(Bytes, RecordId)>,
}

/// Kinds that are gathered per peer, element by element.
const GATHERED: [Kind; 8] = [
    Kind::Promise,
    Kind::Reject,
    Kind::Prepare,
    Kind::Forward,
    Kind::ForwardReply,
    Kind::Handover,
    Kind::StateRequest,
    Kind::State,
];

/// How far a receiver that missed frames has been brought up to date by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CatchUp {
    /// Objects that entries from this number on have touched are sent.
    pub(super) from_seq: u64,
    /// The next object to look at.
    pub(super) cursor: u32,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link {
    peer: NodeIndex,
    shard: u16,
    version: u32,
    up: bool,
    /// There is a connection, but not to the member that this node knows.
    stranger: bool,
    /// On this connection the peer was told which configuration version holds.
    pub(super) told: bool,
    /// On this connection the peer has said that it has no vote.
    pub(super) learner: bool,
    /// On this connection the peer has shown that it lost what it had acked.
    disowned: bool,
    connection: u64,
    down_since: Micros,
    /// It was suspected, and has not been well for long since.
    distrusted: bool,
    well_since: Option<Micros>,
    /// When a frame last came from it.
    pub(super) heard_at: Micros,
    /// When the last heartbeat to it was sent that it is known to have got.
    pub(super) echoed_at: Micros,
    /// Its clock in its last heartbeat, and when that came.
    pub(super) heartbeat: Option<(u64, Micros)>,
    pub(super) heartbeat_sent_at: Micros,
    /// Smoothed round-trip time in microseconds; 0 if unknown.
    pub(super) rtt_us: u32,
    /// Everything of this node's stream up to here is durable there, but for what it refused.
    pub(super) acked: u64,
    /// The next frame of this node's stream for it; none until it has said where it stands.
    pub(super) next_frame: Option<u64>,
    /// The last number that was put on this connection.
    pub(super) sent_seq: u64,
    /// The last watermark that was.
    pub(super) sent_commit: u64,
    /// Frames of this node's stream that were put on this connection and are not acked: each one's last number and size.
    unacked: VecDeque<(u64, u32)>,
    unacked_bytes: usize,
    /// Since when frames of the stream are held for it.
    pub(super) held_since: Option<Micros>,
    pub(super) catch_up: Option<CatchUp>,
    /// When an ack with many refusals was last sent.
    pub(super) long_ack_at: Micros,
    filling: [Filling; GATHERED.len()],
    dirty: bool,
}

impl Link {
    pub(super) fn new(peer: NodeIndex, shard: u16, version: u32, now: Micros) -> Self {
        Self {
            peer,
            shard,
            version,
            up: false,
            stranger: false,
            told: false,
            learner: false,
            disowned: false,
            connection: 0,
            down_since: now,
            distrusted: false,
            well_since: None,
            heard_at: now,
            echoed_at: now,
            heartbeat: None,
            heartbeat_sent_at: now,
            rtt_us: 0,
            acked: 0,
            next_frame: None,
            sent_seq: 0,
            sent_commit: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            held_since: None,
            catch_up: None,
            long_ack_at: Micros(0),
            filling: Default::default(),
            dirty: false,
        }
    }

    /// Time starts here for a node that has been down.
    pub(super) fn begin(&mut self, now: Micros) {
        assert!(!self.up, "a replay knows no links");
        (self.heard_at, self.down_since, self.heartbeat_sent_at) = (now, now, now);
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Numbers the connections to this peer.
    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    /// Whether there is a connection, to whomever.
    pub(super) fn is_connected(&self) -> bool {
        self.up || self.stranger
    }

    /// Whether the connection is to somebody whom this node does not take for the member.
    pub(super) fn is_stranger(&self) -> bool {
        self.stranger
    }

    /// Whether the peer has said, on this connection and in this configuration version, where it stands in this node's stream.
    pub(super) fn has_place(&self) -> bool {
        self.next_frame.is_some()
    }

    /// There is a connection, to somebody whom this node does not know: to the protocol the link stays down.
    pub(super) fn meet_stranger(&mut self) {
        assert!(!self.up, "the old link is taken down before");
        (self.stranger, self.told) = (true, false);
    }

    /// The peer has lost what it had acked: nothing that it says on this connection counts, and nobody waits for it.
    pub(super) fn disown(&mut self) {
        (self.disowned, self.learner) = (true, true);
    }

    pub(super) fn is_disowned(&self) -> bool {
        self.disowned
    }

    /// What frames belong to from now on. Numbers of streams begin anew.
    pub(super) fn set_version(&mut self, version: u32) {
        if self.version != version {
            (self.version, self.acked) = (version, 0);
        }
    }

    pub(super) fn come_up(&mut self, now: Micros) {
        self.up = true;
        (self.stranger, self.told, self.learner, self.disowned) = (false, false, false, false);
        self.connection += 1;
        (self.heard_at, self.echoed_at) = (now, now);
        self.heartbeat = None;
        // Overdue at once: the first measurement should not wait.
        self.heartbeat_sent_at = Micros(0);
        self.forget_position();
    }

    pub(super) fn go_down(&mut self, now: Micros) {
        if self.up {
            self.down_since = now;
        }
        (self.up, self.stranger, self.learner, self.disowned) = (false, false, false, false);
        self.forget_position();
    }

    fn forget_position(&mut self) {
        self.next_frame = None;
        self.unacked.clear();
        self.unacked_bytes = 0;
        self.held_since = None;
        self.catch_up = None;
        self.filling = Default::default();
        self.dirty = false;
    }

    /// A frame of this node's stream was put on this connection. A peer without a vote acks none.
    pub(super) fn note_sent(&mut self, last_seq: u64, bytes: usize) {
        if !self.learner && last_seq > self.acked {
            self.unacked.push_back((last_seq, bytes as u32));
            self.unacked_bytes += bytes;
        }
    }

    /// The peer has acked everything up to this number on this connection.
    pub(super) fn note_acked(&mut self, last_seq: u64) {
        while let Some((_, bytes)) = self.unacked.front().filter(|(last, _)| *last <= last_seq) {
            self.unacked_bytes -= *bytes as usize;
            self.unacked.pop_front();
        }
    }

    /// Bytes of this node's stream that the peer has got, or will get, and has not acked.
    pub(super) fn unacked_bytes(&self) -> usize {
        self.unacked_bytes
    }

    /// Whether the peer is taken for dead (`protocol.md` §6): its link has been down, or silent, for too long; or it does not
    /// hear this node, as far as its heartbeats tell.
    pub(super) fn is_suspected(&self, now: Micros, timers: &Timers) -> bool {
        match self.up {
            true => now.since(self.heard_at.min(self.echoed_at)) > timers.suspect_silent_us,
            false => now.since(self.down_since) > timers.suspect_down_us,
        }
    }

    /// Whether the peer can be relied on: it has a vote, and has been well for a while if it was suspected. One that comes and
    /// goes is spoken to, but not waited for.
    pub(super) fn is_reliable(&self, now: Micros, timers: &Timers) -> bool {
        self.up && !self.learner && !self.distrusted && !self.is_suspected(now, timers)
    }

    /// Notes that the peer is suspected, or has been well for long enough since it was.
    pub(super) fn watch(&mut self, now: Micros, timers: &Timers) {
        if self.is_suspected(now, timers) {
            (self.distrusted, self.well_since) = (self.connection > 0, None);
        } else if self.distrusted {
            let since = *self.well_since.get_or_insert(now);
            self.distrusted = now.since(since) < timers.suspect_recover_us;
        }
    }

    /// Since when the peer has not been heard.
    pub(super) fn silent_since(&self) -> Micros {
        if self.up { self.heard_at.min(self.echoed_at) } else { self.down_since.min(self.heard_at) }
    }

    /// Appends an element to the frame of its kind; it leaves at the end of the turn, but not before the record that it
    /// `rests_on` is durable. Nothing is kept for a link that is down: whoever needs an answer asks again.
    pub(super) fn put(&mut self, kind: Kind, rests_on: RecordId, head: &(impl IntoBytes + Immutable), parts: &[&[u8]]) {
        self.put_with(kind, rests_on, |buffer| {
            buffer.extend_from_slice(head.as_bytes());
            for part in parts {
                buffer.extend_from_slice(part);
            }
        });
    }

    /// Appends an element that `write` encodes.
    pub(super) fn put_with(&mut self, kind: Kind, rests_on: RecordId, write: impl FnOnce(&mut BytesMut)) {
        if !self.up {
            return;
        }
        let place = GATHERED.iter().position(|gathered| *gathered == kind).expect("a gathered kind");
        let filling = &mut self.filling[place];
        if filling.buffer.is_empty() {
            wire::begin(&mut filling.buffer);
        }
        write(&mut filling.buffer);
        filling.rests_on = filling.rests_on.max(rests_on);
        self.dirty = true;
        if filling.buffer.len() >= SPLIT_BYTES {
            filling.close(kind, self.shard, self.version);
        }
    }

    /// Sends what was gathered: each frame after the last record that something in it rests on.
    pub(super) fn flush(&mut self, out: &mut Outputs) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        for (kind, filling) in GATHERED.into_iter().zip(&mut self.filling) {
            if !filling.buffer.is_empty() {
                filling.close(kind, self.shard, self.version);
            }
            out.sends.extend(filling.full.drain(..).map(|(frame, after)| Send { to: self.peer, frame, after }));
        }
    }

    /// Sends a frame of its own.
    pub(super) fn send(&self, kind: Kind, body: &[u8], after: RecordId, out: &mut Outputs) {
        let frame = wire::frame(kind, self.shard, self.version, body);
        out.sends.push(Send { to: self.peer, frame, after });
    }
}

impl Filling {
    fn close(&mut self, kind: Kind, shard: u16, version: u32) {
        let mut buffer = std::mem::take(&mut self.buffer);
        wire::finish(&mut buffer, 0, kind, shard, version);
        self.full.push((buffer.freeze(), std::mem::take(&mut self.rests_on)));
    }
}
