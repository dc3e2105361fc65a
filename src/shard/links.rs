//! The links of a shard to the same shard of its peers.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

use super::{connection::Connection, counters::Counters, outbox::FrameQueue};
use crate::{
    protocol::{Micros, RecordId, Send},
    topology::{NodeIndex, NodeSet},
};

/// One connection to a peer, and what waits to be sent on it.
#[derive(Debug)]
struct Link {
    connection: Rc<Connection>,
    queue: FrameQueue,
    /// Frames that wait for the log, with the records that they wait for, and frames behind them.
    undurable: VecDeque<(RecordId, Bytes)>,
    undurable_bytes: usize,
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
    /// Every frame that was queued since the simulator looked.
    #[cfg(feature = "sim")]
    tap: Vec<(NodeIndex, Bytes)>,
}

/// A link whose frames are held back holds at most this many bytes: its pipe is full then.
const HELD_BYTES_MAX: usize = 256 << 20;

impl Links {
    /// All of them down. `delay_us` is by node.
    pub(super) fn new(own: NodeIndex, delay_us: Vec<u64>, queue_bytes_max: usize) -> Self {
        let peers = delay_us.iter().map(|_| None).collect();
        Self {
            own,
            peers,
            delay_us,
            pending: NodeSet::EMPTY,
            queue_bytes_max,
            last_serial: 0,
            #[cfg(feature = "sim")]
            tap: Vec::new(),
        }
    }

    /// Puts a connection into its place; any earlier one has to be taken [`Self::down`] before.
    pub(super) fn up(&mut self, peer: NodeIndex, connection: Rc<Connection>) -> u64 {
        assert!(self.peers[peer.index()].is_none(), "the old link is taken down before the new one is up");
        assert!(peer != self.own, "no node has a link to itself");
        self.last_serial += 1;
        self.peers[peer.index()] = Some(Link {
            connection,
            queue: FrameQueue::default(),
            undurable: VecDeque::new(),
            undurable_bytes: 0,
            serial: self.last_serial,
        });
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
                    self.queue_bytes_max.saturating_sub(link.queue.ready_bytes() + link.undurable_bytes)
                }
                _ => 0,
            };
        }
        room[self.own.index()] = usize::MAX;
    }

    /// Queues a frame; without a link it is dropped. A frame that depends on a record that is not durable waits for it, and
    /// holds up those behind it.
    pub(super) fn push(&mut self, now: Micros, send: Send, durable: RecordId, counters: &mut Counters) {
        let Some(link) = &mut self.peers[send.to.index()] else {
            counters.link_frames_dropped += 1;
            return;
        };
        if send.after > durable || !link.undurable.is_empty() {
            link.undurable_bytes += send.frame.len();
            link.undurable.push_back((send.after, send.frame));
        } else {
            self.queue(now, send.to, send.frame, counters);
        }
    }

    /// Queues the frames that have waited for what is durable now.
    pub(super) fn release_durable(&mut self, now: Micros, durable: RecordId, counters: &mut Counters) {
        for index in 0..self.peers.len() {
            while let Some(link) = &mut self.peers[index]
                && link.undurable.front().is_some_and(|(after, _)| *after <= durable)
            {
                let (_, frame) = link.undurable.pop_front().expect("just seen");
                link.undurable_bytes -= frame.len();
                self.queue(now, NodeIndex(index as u8), frame, counters);
            }
        }
    }

    fn queue(&mut self, now: Micros, to: NodeIndex, frame: Bytes, counters: &mut Counters) {
        let Some(link) = &mut self.peers[to.index()] else { return };
        counters.link_frames_queued += 1;
        #[cfg(feature = "sim")]
        self.tap.push((to, frame.clone()));
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
            match link.queue.send(link.connection.socket()) {
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

    /// Takes every frame that was queued since the last call.
    #[cfg(feature = "sim")]
    pub(super) fn take_tap(&mut self) -> Vec<(NodeIndex, Bytes)> {
        std::mem::take(&mut self.tap)
    }

    /// Bytes in the fullest queue, held back ones included.
    #[cfg(feature = "sim")]
    pub(super) fn fullest_bytes(&self) -> usize {
        let bytes = |link: &Link| link.queue.ready_bytes() + link.queue.held_bytes() + link.undurable_bytes;
        self.peers.iter().flatten().map(bytes).max().unwrap_or(0)
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
