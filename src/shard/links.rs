//! The links of a shard to the same shard of its peers.

use std::rc::Rc;

use bytes::Bytes;

use super::{connection::Connection, counters::Counters, outbox::FrameQueue};
use crate::{
    protocol::Micros,
    topology::{NodeIndex, NodeSet},
};

/// One connection to a peer, and what waits to be sent on it.
#[derive(Debug)]
struct Link {
    connection: Rc<Connection>,
    queue: FrameQueue,
    /// Tells this connection from earlier and later ones of the same peer.
    serial: u64,
}

/// All links of a shard, up or down.
#[derive(Debug)]
pub(super) struct Links {
    own: NodeIndex,
    peers: Vec<Option<Link>>,
    /// How long frames to each peer are held back, in microseconds: half the emulated round trip.
    delay_us: Vec<u64>,
    /// Links with something that could be sent.
    pending: NodeSet,
    queue_bytes_max: usize,
    last_serial: u64,
}

/// A link whose frames are held back holds at most this many bytes: its pipe is full then.
const HELD_BYTES_MAX: usize = 256 << 20;

impl Links {
    /// All of them down. `delay_us` is by node.
    pub(super) fn new(own: NodeIndex, delay_us: Vec<u64>, queue_bytes_max: usize) -> Self {
        let peers = delay_us.iter().map(|_| None).collect();
        Self { own, peers, delay_us, pending: NodeSet::EMPTY, queue_bytes_max, last_serial: 0 }
    }

    /// Puts a connection into its place; any earlier one has to be taken [`Self::down`] before.
    pub(super) fn up(&mut self, peer: NodeIndex, connection: Rc<Connection>) -> u64 {
        assert!(self.peers[peer.index()].is_none(), "the old link is taken down before the new one is up");
        assert!(peer != self.own, "no node has a link to itself");
        self.last_serial += 1;
        let link = Link { connection, queue: FrameQueue::default(), serial: self.last_serial };
        self.peers[peer.index()] = Some(link);
        self.last_serial
    }

    /// Takes a link away with everything unsent, whichever connection it is on; false if it was down.
    pub(super) fn down(&mut self, peer: NodeIndex) -> bool {
        self.pending.remove(peer);
        let link = self.peers[peer.index()].take();
        link.inspect(|link| link.connection.close()).is_some()
    }

    /// Whether the link to `peer` is up and on this connection.
    pub(super) fn is(&self, peer: NodeIndex, serial: u64) -> bool {
        self.peers[peer.index()].as_ref().is_some_and(|link| link.serial == serial)
    }

    /// Fills in how many bytes more each link takes: none while it is down, any number to ourselves.
    pub(super) fn room(&self, room: &mut [usize]) {
        for (room, link) in room.iter_mut().zip(&self.peers) {
            *room = match link {
                Some(link) if link.queue.held_bytes() < HELD_BYTES_MAX => {
                    self.queue_bytes_max.saturating_sub(link.queue.ready_bytes())
                }
                _ => 0,
            };
        }
        room[self.own.index()] = usize::MAX;
    }

    /// Queues a frame; without a link it is dropped.
    pub(super) fn push(&mut self, now: Micros, to: NodeIndex, frame: Bytes, counters: &mut Counters) {
        let Some(link) = &mut self.peers[to.index()] else {
            counters.link_frames_dropped += 1;
            return;
        };
        counters.link_frames_queued += 1;
        match self.delay_us[to.index()] {
            0 => {
                link.queue.push(frame);
                self.pending.insert(to);
            }
            delay_us => link.queue.hold(now.plus(delay_us), frame),
        }
    }

    /// Lets go of the frames whose time has come.
    pub(super) fn release(&mut self, now: Micros) {
        for (index, link) in self.peers.iter_mut().enumerate() {
            if let Some(link) = link
                && link.queue.release(now)
            {
                self.pending.insert(NodeIndex(index as u8));
            }
        }
    }

    /// When [`Self::release`] has something to do next.
    pub(super) fn next_release(&self) -> Option<Micros> {
        self.peers.iter().flatten().filter_map(|link| link.queue.next_release()).min()
    }

    /// Sends what is pending, one system call per link if the socket takes it. What it does not take stays pending.
    pub(super) fn send(&mut self, counters: &mut Counters) {
        for peer in self.pending.iter() {
            let Some(link) = &mut self.peers[peer.index()] else {
                self.pending.remove(peer);
                continue;
            };
            match link.queue.send(&link.connection.socket) {
                Ok(sent) => {
                    counters.link_sent(sent);
                    if !sent.blocked {
                        self.pending.remove(peer);
                    }
                }
                Err(_) => {
                    // The reader finds the end of the stream and takes the link down.
                    link.connection.close();
                    link.queue = FrameQueue::default();
                    self.pending.remove(peer);
                }
            }
        }
    }

    /// Whether something waits for a socket to take it.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether nothing is unsent.
    pub(super) fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.next_release().is_none()
    }
}
