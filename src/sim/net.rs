//! Connections that carry bytes in virtual time: in order, in pieces, with delays, until they are cut.
//!
//! A connection that is cut carries what is under way up to some byte, maybe in the middle of a frame; each side sees the end
//! at a time of its own, so that one may have a new connection while the other still reads the old one.

use std::{cell::RefCell, collections::VecDeque, io, io::IoSlice, rc::Rc};

use crate::shard::Socket;

/// Who is at an end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// A shard of a boot of a node.
    Shard { node: usize, boot: u32, shard: usize },
    /// A client.
    Client(usize),
}

/// A side of a connection: 0 has called, 1 was called.
pub(super) type Side = usize;

/// What a side has written and the network has not taken yet.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// Bytes that the network has taken and the other side has not read.
    under_way: usize,
    window: usize,
    /// The side has closed the connection.
    shut: bool,
    /// The other side is gone, and says so to whoever still writes.
    reset: bool,
    noted: bool,
}

/// Sides that have written or closed since somebody looked.
pub(super) type Touched = Rc<RefCell<Vec<(usize, Side)>>>;

/// One side's socket.
#[derive(Debug)]
pub(super) struct SimSocket {
    outgoing: Rc<RefCell<Outgoing>>,
    place: (usize, Side),
    touched: Touched,
}

impl SimSocket {
    fn touch(&self, outgoing: &mut Outgoing) {
        if !std::mem::replace(&mut outgoing.noted, true) {
            self.touched.borrow_mut().push(self.place);
        }
    }
}

impl Socket for SimSocket {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outgoing = self.outgoing.borrow_mut();
        if outgoing.shut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if outgoing.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut room = outgoing.window.saturating_sub(outgoing.under_way + outgoing.bytes.len());
        let mut taken = 0;
        for part in parts {
            let take = part.len().min(room);
            outgoing.bytes.extend_from_slice(&part[..take]);
            (taken, room) = (taken + take, room - take);
        }
        self.touch(&mut outgoing);
        Ok(taken)
    }

    fn set_buffers(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.shut = true;
        self.touch(&mut outgoing);
    }
}

/// What arrives.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The end of the stream.
    End,
}

/// One direction of a connection.
#[derive(Debug)]
struct Wire {
    outgoing: Rc<RefCell<Outgoing>>,
    flying: VecDeque<(u64, Piece)>,
    last_arrival: u64,
    /// Nothing more is carried.
    broken: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) ends: [End; 2],
    /// `wires[side]` carries what `side` writes.
    wires: [Wire; 2],
    /// Sides that read no more.
    pub(super) closed: [bool; 2],
}

impl Conn {
    /// Between a caller and whom it calls; also the two sockets. A client's own side has no bound.
    pub(super) fn new(
        ends: [End; 2],
        place: usize,
        window: usize,
        now: u64,
        touched: &Touched,
    ) -> (Self, [SimSocket; 2]) {
        let both = ends.map(|end| {
            let window = if matches!(end, End::Client(_)) { usize::MAX } else { window };
            Rc::new(RefCell::new(Outgoing { window, ..Outgoing::default() }))
        });
        let socket = |side: Side| SimSocket {
            outgoing: Rc::clone(&both[side]),
            place: (place, side),
            touched: Rc::clone(touched),
        };
        let sockets = [socket(0), socket(1)];
        let wires = both.map(|outgoing| Wire { outgoing, flying: VecDeque::new(), last_arrival: now, broken: false });
        (Self { ends, wires, closed: [false; 2] }, sockets)
    }

    /// Takes what a side has written, and whether it has closed.
    pub(super) fn take_outgoing(&mut self, side: Side) -> (Vec<u8>, bool) {
        let mut outgoing = self.wires[side].outgoing.borrow_mut();
        outgoing.noted = false;
        let bytes = std::mem::take(&mut outgoing.bytes);
        outgoing.under_way += bytes.len();
        (bytes, outgoing.shut)
    }

    /// Sends a piece on its way, to arrive `takes` from now, or behind what is before it. When it arrives; `None` if the
    /// connection carries nothing any more.
    pub(super) fn launch(&mut self, from: Side, now: u64, takes: u64, piece: Piece) -> Option<u64> {
        let wire = &mut self.wires[from];
        if wire.broken {
            return None;
        }
        let arrival = (now + takes).max(wire.last_arrival);
        wire.last_arrival = arrival;
        wire.broken = matches!(piece, Piece::End);
        wire.flying.push_back((arrival, piece));
        Some(arrival)
    }

    /// When the next piece from `side` arrives.
    pub(super) fn next_arrival(&self, from: Side) -> Option<u64> {
        self.wires[from].flying.front().map(|(arrival, _)| *arrival)
    }

    /// The next piece from `side` that has arrived.
    pub(super) fn arrived(&mut self, from: Side, now: u64) -> Option<Piece> {
        let wire = &mut self.wires[from];
        if wire.flying.front().is_none_or(|(arrival, _)| *arrival > now) {
            return None;
        }
        let (_, piece) = wire.flying.pop_front()?;
        if let Piece::Bytes(bytes) = &piece {
            wire.outgoing.borrow_mut().under_way -= bytes.len();
        }
        Some(piece)
    }

    /// Puts bytes back that were not read.
    pub(super) fn put_back(&mut self, from: Side, now: u64, bytes: Vec<u8>) {
        let wire = &mut self.wires[from];
        wire.outgoing.borrow_mut().under_way += bytes.len();
        wire.flying.push_front((now, Piece::Bytes(bytes)));
    }

    /// Cuts one direction: of what is under way, only the first `keep` bytes arrive, and then the end, not before `end_at`.
    pub(super) fn cut(&mut self, from: Side, keep: usize, end_at: u64) -> u64 {
        let wire = &mut self.wires[from];
        let mut left = keep;
        let mut kept = VecDeque::new();
        for (arrival, piece) in wire.flying.drain(..) {
            let Piece::Bytes(mut bytes) = piece else { break };
            bytes.truncate(left);
            left -= bytes.len();
            if !bytes.is_empty() {
                kept.push_back((arrival, Piece::Bytes(bytes)));
            }
        }
        let end_at = kept.back().map_or(end_at, |(arrival, _)| end_at.max(*arrival));
        kept.push_back((end_at, Piece::End));
        wire.flying = kept;
        wire.broken = true;
        end_at
    }

    /// Lets everything under way arrive by `by`.
    pub(super) fn hurry(&mut self, by: u64) {
        for wire in &mut self.wires {
            wire.last_arrival = wire.last_arrival.min(by);
            wire.flying.iter_mut().for_each(|(arrival, _)| *arrival = by.min(*arrival));
        }
    }

    /// Bytes under way from `side`.
    pub(super) fn under_way(&self, from: Side) -> usize {
        let bytes = |piece: &Piece| if let Piece::Bytes(bytes) = piece { bytes.len() } else { 0 };
        self.wires[from].flying.iter().map(|(_, piece)| bytes(piece)).sum()
    }

    /// A side is gone: it reads nothing more.
    pub(super) fn leave(&mut self, side: Side) {
        self.closed[side] = true;
        self.wires[1 - side].flying.clear();
        self.wires[1 - side].broken = true;
        self.wires[1 - side].outgoing.borrow_mut().reset = true;
    }

    /// Whether both sides are gone.
    pub(super) fn is_over(&self) -> bool {
        self.closed == [true; 2]
    }

    /// Whether it was cut, or an end is on its way.
    pub(super) fn is_broken(&self) -> bool {
        self.wires.iter().any(|wire| wire.broken)
    }
}
