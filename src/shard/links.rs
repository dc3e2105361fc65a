//! The links of a shard to the same shard of its peers.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

use super::{
    connection::Connection,
    counters::Counters,
    faults::{Known, LinkFault},
    outbox::FrameQueue,
};
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
    /// Its reader waits until the log has caught up.
    paused: bool,
    /// Nothing is sent on it any more: an injected fault has cut it. It ends with the fault.
    mute: bool,
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
    /// Injected faults.
    faults: Known,
    /// Decides which frames flaky links lose.
    random: u64,
    /// Whether any link holds frames back.
    holding: bool,
    /// Links with something that could be sent.
    pending: NodeSet,
    queue_bytes_max: usize,
    last_serial: u64,
    /// Every frame that was queued since the simulator looked; a replica keeps none.
    #[cfg(feature = "sim")]
    tap: Option<Vec<(NodeIndex, Bytes)>>,
}

/// A link is closed when more bytes than these wait for the log, and one more frame comes.
const UNDURABLE_BYTES_MAX: usize = 64 << 20;
/// A link whose frames are held back holds at most this many bytes: its pipe is full then.
const HELD_BYTES_MAX: usize = 256 << 20;

impl Links {
    /// All of them down. `delay_us` is by node.
    pub(super) fn new(own: NodeIndex, delay_us: Vec<u64>, queue_bytes_max: usize) -> Self {
        let peers = delay_us.iter().map(|_| None).collect();
        Self {
            own,
            peers,
            faults: Known::new(delay_us.len()),
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(own.0),
            holding: false,
            delay_us,
            pending: NodeSet::EMPTY,
            queue_bytes_max,
            last_serial: 0,
            #[cfg(feature = "sim")]
            tap: None,
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
            paused: false,
            mute: false,
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
        let Some(link) = self.peers[send.to.index()].as_mut().filter(|link| !link.mute) else {
            counters.link_frames_dropped += 1;
            return;
        };
        if send.after > durable || !link.undurable.is_empty() {
            if link.undurable_bytes > UNDURABLE_BYTES_MAX {
                // Answers to what a slow disk has not taken: the peer starts over when it has.
                link.connection.close();
                return self.silence(send.to);
            }
            link.undurable_bytes += send.frame.len();
            link.undurable.push_back((send.after, send.frame));
        } else {
            self.queue(now, send.to, send.frame, counters);
        }
    }

    /// The reader of a link waits for the log.
    pub(super) fn pause(&mut self, peer: NodeIndex) {
        if let Some(link) = &mut self.peers[peer.index()] {
            link.paused = true;
        }
    }

    /// Lets the readers go on that have waited for the log.
    pub(super) fn resume(&mut self) {
        for link in self.peers.iter_mut().flatten().filter(|link| link.paused) {
            link.paused = false;
            link.connection.resume.notify();
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
        if let Some(tap) = &mut self.tap {
            tap.push((to, frame.clone()));
        }
        let fault = self.faults.link(to);
        if fault.flaky > 0.0 && next_unit(&mut self.random) < fault.flaky {
            // Its reader finds the end of the stream and takes the link down.
            link.connection.close();
            self.silence(to);
            return;
        }
        match self.delay_us[to.index()] + fault.slow_us {
            0 if link.queue.last_release().is_none() => {
                link.queue.push(frame);
                self.pending.insert(to);
            }
            delay_us => {
                // None overtakes one that was held when the link was slower.
                let release = link.queue.last_release().map_or(Micros(0), |last| last).max(now.plus(delay_us));
                link.queue.hold(release, frame);
                self.holding = true;
            }
        }
    }

    /// Drops what is unsent on a link, a frame that is half sent included, and everything that is queued from now on.
    fn silence(&mut self, peer: NodeIndex) {
        let Some(link) = &mut self.peers[peer.index()] else { return };
        link.mute = true;
        link.queue = FrameQueue::default();
        link.undurable.clear();
        link.undurable_bytes = 0;
        self.pending.remove(peer);
    }

    /// Injected faults, to be refreshed.
    pub(super) fn faults(&mut self) -> &mut Known {
        &mut self.faults
    }

    /// What injected faults make of the link to `peer`.
    pub(super) fn fault(&self, peer: NodeIndex) -> LinkFault {
        self.faults.link(peer)
    }

    /// Acts out faults that have changed, of which `before` is what they were: links that are cut fall silent, and links that
    /// were cut and are not any more are closed, so that both sides start over.
    pub(super) fn faults_changed(&mut self, before: &[LinkFault]) {
        for (place, before) in before.iter().enumerate() {
            let (peer, fault) = (NodeIndex(place as u8), self.faults.link(NodeIndex(place as u8)));
            if fault.mute {
                self.silence(peer);
            }
            let less = (before.deaf && !fault.deaf) || (before.mute && !fault.mute);
            if less && let Some(link) = &self.peers[place] {
                link.connection.close();
            }
        }
    }

    /// Lets go of the frames whose time has come.
    pub(super) fn release(&mut self, now: Micros) {
        if !self.holding {
            return;
        }
        self.holding = false;
        for (index, link) in self.peers.iter_mut().enumerate() {
            let Some(link) = link else { continue };
            if link.queue.release(now) {
                self.pending.insert(NodeIndex(index as u8));
            }
            self.holding |= link.queue.next_release().is_some();
        }
    }

    /// When [`Self::release`] has something to do next.
    pub(super) fn next_release(&self) -> Option<Micros> {
        if !self.holding {
            return None;
        }
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

    /// From now on frames that are queued are kept for [`Self::take_tap`].
    #[cfg(feature = "sim")]
    pub(super) fn open_tap(&mut self) {
        self.tap.get_or_insert_default();
    }

    /// Takes every frame that was queued since the last call.
    #[cfg(feature = "sim")]
    pub(super) fn take_tap(&mut self) -> Vec<(NodeIndex, Bytes)> {
        self.tap.as_mut().map(std::mem::take).unwrap_or_default()
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

/// The next number of a random stream, from 0 to 1 (xorshift64: which frame is lost is all that it decides).
fn next_unit(random: &mut u64) -> f64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io, io::IoSlice};

    use super::*;
    use crate::{
        api::http::{FaultOrder, Injection},
        shard::{connection::Socket, faults::Faults},
        topology::Cluster,
    };

    const PEER: NodeIndex = NodeIndex(1);

    /// Takes so many bytes and no more, and knows whether it was shut down.
    #[derive(Clone, Debug, Default)]
    struct Sink {
        takes: Rc<Cell<usize>>,
        taken: Rc<std::cell::RefCell<Vec<u8>>>,
        closed: Rc<Cell<bool>>,
    }

    impl Socket for Sink {
        fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            let taken = all.len().min(self.takes.get());
            self.takes.set(self.takes.get() - taken);
            self.taken.borrow_mut().extend_from_slice(&all[..taken]);
            Ok(taken)
        }

        fn set_buffers(&self, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn shutdown(&self) {
            self.closed.set(true);
        }
    }

    struct Bench {
        links: Links,
        sink: Sink,
        faults: Faults,
        cluster: Cluster,
        counters: Counters,
    }

    impl Bench {
        fn new() -> Self {
            let address = |port| vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))];
            let cluster = Cluster::local("test", vec![vec![address(1), address(2)]]);
            let (mut links, sink) = (Links::new(NodeIndex(0), vec![0; 2], 1 << 20), Sink::default());
            sink.takes.set(usize::MAX);
            links.up(PEER, Rc::new(Connection::new(Box::new(sink.clone()), ([127, 0, 0, 1], 2).into())));
            Self { links, sink, faults: Faults::default(), cluster, counters: Counters::default() }
        }

        fn inject(&mut self, now: u64, what: Injection, for_us: Option<u64>) {
            let order = FaultOrder { what, for_us };
            self.faults.inject(Micros(now), NodeIndex(0), &self.cluster, order).unwrap();
            self.refresh(now);
        }

        fn refresh(&mut self, now: u64) {
            if let Some(before) = self.links.faults().refresh(Micros(now), &self.faults, &self.cluster) {
                self.links.faults_changed(&before);
            }
        }

        /// Queues a frame and sends what may go; what has gone until now.
        fn push(&mut self, now: u64, frame: &'static [u8]) -> String {
            let send = Send { to: PEER, frame: Bytes::from_static(frame), after: RecordId(0) };
            self.links.push(Micros(now), send, RecordId(0), &mut self.counters);
            self.run(now)
        }

        fn run(&mut self, now: u64) -> String {
            self.links.release(Micros(now));
            self.links.send(&mut self.counters);
            String::from_utf8_lossy(&self.sink.taken.borrow()).into_owned()
        }

        fn peer(&self) -> crate::topology::NodeId {
            self.cluster.member(PEER).id
        }
    }

    #[test]
    fn a_cut_lets_nothing_through_until_the_link_is_a_new_one() {
        let mut bench = Bench::new();
        bench.sink.takes.set(4);
        assert_eq!(bench.push(0, b"first."), "firs");
        bench.inject(0, Injection::Drop(bench.peer()), Some(100));
        bench.sink.takes.set(usize::MAX);
        assert_eq!(bench.push(50, b"second."), "firs", "not even the rest of a frame");
        assert!(!bench.sink.closed.get(), "the peer sees silence");
        bench.refresh(100);
        assert!(bench.sink.closed.get(), "both sides start over");
        assert_eq!(bench.push(101, b"third."), "firs", "on this connection nothing may follow");
        assert!(bench.links.down(PEER));
        bench.links.up(PEER, Rc::new(Connection::new(Box::new(bench.sink.clone()), ([127, 0, 0, 1], 2).into())));
        assert_eq!(bench.push(102, b"fourth."), "firsfourth.");
    }

    #[test]
    fn a_slow_link_keeps_its_order_also_when_it_is_fast_again() {
        let mut bench = Bench::new();
        bench.inject(0, Injection::Slow(bench.peer(), 1000), Some(50));
        assert_eq!(bench.push(0, b"first."), "");
        bench.refresh(50);
        assert_eq!(bench.push(60, b"second."), "", "it must not overtake");
        assert_eq!(bench.links.next_release(), Some(Micros(1000)));
        assert_eq!(bench.run(999), "");
        assert_eq!(bench.run(1000), "first.second.");
        assert_eq!((bench.push(1001, b"third."), bench.links.next_release()), ("first.second.third.".to_owned(), None));
    }

    #[test]
    fn a_flaky_link_loses_the_connection_with_the_frame() {
        let mut bench = Bench::new();
        bench.inject(0, Injection::Flaky(bench.peer(), 0.0), None);
        assert_eq!(bench.push(0, b"first."), "first.");
        bench.inject(0, Injection::Flaky(bench.peer(), 1.0), None);
        assert_eq!(bench.push(1, b"second."), "first.");
        assert!(bench.sink.closed.get());
    }
}
