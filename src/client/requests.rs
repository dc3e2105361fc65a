//! The requests in flight and their timers.
//!
//! A request lives at the place `id mod size` of a ring. Ids rise by one, so that replicas can judge retries by a window
//! of ids (`protocol.md` §7); an id whose place is still taken by a slow request is left out. Places keep their buffers: a
//! ring that has gone round once allocates no more.
//!
//! First attempts time out in the order of their ids, so a cursor over the ids is all the timer that they need. Every later
//! wait of a request is in a heap.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{
    command::{Op, Status},
    protocol::Micros,
    topology::{NodeIndex, NodeSet},
};

const RING_MIN: usize = 1 << 10;
/// A finished command's buffer that is larger than this is given back.
const KEPT_BUFFER_BYTES: usize = 4 << 10;

/// One life of one connection, which answers come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// The connection's position.
    pub(super) connection: usize,
    /// Which of its lives.
    pub(super) epoch: u64,
}

/// Where a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// It waits for its next attempt.
    Waiting,
    /// It waits for this connection to come up; no byte of it has been handed over.
    Queued(Link),
    /// It was handed to this connection, beginning at this position of all that was ever handed to that.
    Sent(Link, u64),
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Request {
    /// Its command's id; 0 while the place is free.
    pub(super) id: u64,
    /// The caller's tag.
    pub(super) tag: u64,
    /// Its key's token.
    pub(super) token: u64,
    /// When `submit` took it.
    pub(super) submitted: Micros,
    /// When it was handed to a connection last.
    pub(super) handed_over: Micros,
    /// What it does.
    pub(super) op: Op,
    /// Where it is.
    pub(super) place: Place,
    /// The node of the last attempt.
    pub(super) node: NodeIndex,
    /// The nodes that left an attempt unanswered.
    pub(super) tried: NodeSet,
    /// How often it was handed to a connection.
    pub(super) attempts: u32,
    /// How often it was handed to one and not refused.
    pub(super) unrefused: u32,
    /// How often it had to wait for want of a node or because of a refusal: what its pauses grow by.
    pub(super) pauses: u32,
    /// Whether an attempt that is given up may have been, or may yet be, executed. Never falls.
    pub(super) maybe_done: bool,
    /// The last refusal.
    pub(super) refusal: Option<Status>,
    /// Which of its timers counts; 0 is the cursor.
    timer: u32,
    /// The encoded command.
    pub(super) command: Vec<u8>,
}

impl Request {
    fn free() -> Self {
        Self {
            id: 0,
            tag: 0,
            token: 0,
            submitted: Micros(0),
            handed_over: Micros(0),
            op: Op::Noop,
            place: Place::Waiting,
            node: NodeIndex(0),
            tried: NodeSet::EMPTY,
            attempts: 0,
            unrefused: 0,
            pauses: 0,
            maybe_done: false,
            refusal: None,
            timer: 0,
            command: Vec::new(),
        }
    }

    /// The connection that it was handed to or waits for.
    pub(super) fn link(&self) -> Option<Link> {
        match self.place {
            Place::Waiting => None,
            Place::Queued(link) | Place::Sent(link, _) => Some(link),
        }
    }
}

/// All requests in flight.
#[derive(Debug)]
pub(super) struct Requests {
    ring: Vec<Request>,
    open: usize,
    bytes: usize,
    next_id: u64,
    /// No first attempt of an id below this one waits for its time-out.
    cursor: u64,
    later: BinaryHeap<Reverse<(Micros, u64, u32)>>,
}

impl Requests {
    /// None yet; the first id is `first_id` (not 0).
    pub(super) fn new(first_id: u64) -> Self {
        assert!(first_id > 0, "id 0 marks a free place");
        let ring = (0..RING_MIN).map(|_| Request::free()).collect();
        Self { ring, open: 0, bytes: 0, next_id: first_id, cursor: first_id, later: BinaryHeap::new() }
    }

    /// How many are in flight.
    pub(super) fn len(&self) -> usize {
        self.open
    }

    /// Bytes of their commands.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a place with a fresh id, its buffer empty. Its time-out is the cursor's.
    pub(super) fn open(&mut self) -> &mut Request {
        if self.open * 2 >= self.ring.len() {
            self.grow();
        }
        let mask = self.ring.len() as u64 - 1;
        while self.ring[(self.next_id & mask) as usize].id != 0 {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.open += 1;
        let request = &mut self.ring[(id & mask) as usize];
        let mut command = std::mem::take(&mut request.command);
        command.clear();
        *request = Request { id, command, ..Request::free() };
        request
    }

    /// Accounts for the command of a request that was just opened, once it is encoded.
    pub(super) fn opened(&mut self, command_bytes: usize) {
        self.bytes += command_bytes;
    }

    /// The request in flight with this id.
    pub(super) fn get(&mut self, id: u64) -> Option<&mut Request> {
        let place = (id & (self.ring.len() as u64 - 1)) as usize;
        Some(&mut self.ring[place]).filter(|request| id != 0 && request.id == id)
    }

    /// Ends a request; its fields stay readable in what is returned until the next [`Self::open`].
    pub(super) fn close(&mut self, id: u64) -> Option<&Request> {
        let request = self.get(id)?;
        request.id = 0;
        let bytes = request.command.len();
        if request.command.capacity() > KEPT_BUFFER_BYTES {
            request.command = Vec::new();
        }
        self.open -= 1;
        self.bytes -= bytes;
        let place = (id & (self.ring.len() as u64 - 1)) as usize;
        Some(&self.ring[place])
    }

    /// Takes back the id of a request that was opened last and could not be encoded.
    pub(super) fn cancel(&mut self, id: u64) {
        if let Some(request) = self.get(id) {
            request.id = 0;
            self.open -= 1;
        }
    }

    /// The ids of all requests on this connection, in ascending order. Looks at every place: for failures only.
    pub(super) fn on_link(&self, link: Link) -> Vec<u64> {
        let mine = self.ring.iter().filter(|request| request.id != 0 && request.link() == Some(link));
        let mut ids: Vec<u64> = mine.map(|request| request.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Wakes the request at this time, and at no other that was set before.
    pub(super) fn wake_at(&mut self, id: u64, at: Micros) {
        let Some(request) = self.get(id) else { return };
        request.timer += 1;
        let timer = request.timer;
        self.later.push(Reverse((at, id, timer)));
    }

    /// Takes out a request whose time has come, if there is one; `first_us` is how long a first attempt waits.
    pub(super) fn pop_due(&mut self, now: Micros, first_us: u64) -> Option<u64> {
        while let Some(&Reverse((at, id, timer))) = self.later.peek() {
            let live = self.get(id).is_some_and(|request| request.timer == timer);
            if live && at > now {
                break;
            }
            self.later.pop();
            if live {
                return Some(id);
            }
        }
        let id = self.first_on_cursor()?;
        let due = self.get(id)?.submitted.plus(first_us) <= now;
        due.then(|| {
            self.cursor = id + 1;
            id
        })
    }

    /// When the next request's time comes, or earlier.
    pub(super) fn next_due(&mut self, first_us: u64) -> Option<Micros> {
        let later = self.later.peek().map(|Reverse((at, _, _))| *at);
        let first = self.first_on_cursor().and_then(|id| self.get(id)).map(|request| request.submitted.plus(first_us));
        later.into_iter().chain(first).min()
    }

    fn first_on_cursor(&mut self) -> Option<u64> {
        while self.cursor < self.next_id {
            let id = self.cursor;
            if self.get(id).is_some_and(|request| request.timer == 0) {
                return Some(id);
            }
            self.cursor += 1;
        }
        None
    }

    fn grow(&mut self) {
        let size = self.ring.len() * 2;
        let mut ring: Vec<Request> = (0..size).map(|_| Request::free()).collect();
        for request in self.ring.drain(..).filter(|request| request.id != 0) {
            let place = (request.id & (size as u64 - 1)) as usize;
            ring[place] = request;
        }
        self.ring = ring;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(requests: &mut Requests, now: u64) -> u64 {
        let request = requests.open();
        request.submitted = Micros(now);
        request.command.push(1);
        let id = request.id;
        requests.opened(1);
        id
    }

    #[test]
    fn ids_rise_and_leave_out_taken_places_only() {
        let mut requests = Requests::new(10);
        let slow = open(&mut requests, 0);
        let mut last = slow;
        let mut left_out = 0;
        for _ in 0..10 * RING_MIN {
            let id = open(&mut requests, 0);
            left_out += id - last - 1;
            last = id;
            assert!(requests.close(id).is_some() && requests.close(id).is_none());
        }
        assert_eq!((left_out, requests.len(), requests.bytes()), (10, 1, 1));
        assert!(requests.get(slow).is_some() && requests.get(0).is_none());
    }

    #[test]
    fn growing_keeps_what_is_in_flight() {
        let mut requests = Requests::new(1_000_003);
        let ids: Vec<u64> = (0..5000).map(|now| open(&mut requests, now)).collect();
        assert!(ids.is_sorted());
        for (now, id) in ids.iter().enumerate() {
            assert_eq!(requests.get(*id).unwrap().submitted, Micros(now as u64));
            requests.close(*id).unwrap();
        }
        assert_eq!((requests.len(), requests.bytes()), (0, 0));
    }

    #[test]
    fn each_request_is_due_once_per_timer() {
        let mut requests = Requests::new(1);
        let ids: Vec<u64> = (0..4).map(|now| open(&mut requests, now)).collect();
        requests.close(ids[1]);
        requests.wake_at(ids[2], Micros(500));
        requests.wake_at(ids[2], Micros(50));
        assert_eq!(requests.next_due(100), Some(Micros(50)));
        assert_eq!(requests.pop_due(Micros(49), 100), None);
        assert_eq!(requests.pop_due(Micros(100), 100), Some(ids[2]));
        assert_eq!(requests.pop_due(Micros(100), 100), Some(ids[0]));
        assert_eq!(requests.pop_due(Micros(102), 100), None);
        assert_eq!(requests.pop_due(Micros(103), 100), Some(ids[3]));
        assert_eq!(requests.pop_due(Micros(1000), 100), None, "the replaced timer fired");
        assert_eq!(requests.next_due(100), None);
    }

    #[test]
    fn a_large_buffer_is_not_kept() {
        let mut requests = Requests::new(1);
        let id = open(&mut requests, 0);
        requests.get(id).unwrap().command.resize(1 << 20, 0);
        requests.opened((1 << 20) - 1);
        assert_eq!(requests.close(id).unwrap().command.capacity(), 0);
        assert_eq!(requests.bytes(), 0);
    }
}
