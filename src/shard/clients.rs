//! The client connections of a shard, and who waits for which answer.

use std::rc::Rc;

use super::{
    admission::Seat,
    budget::{Budget, Held},
    connection::Connection,
    counters::Counters,
    hello::{Code, Refusal},
    outbox::ByteQueue,
    slab::{Key, Slab},
    web::Ticket,
};
use crate::{
    api::native::ReplyRef,
    command::Status,
    protocol::Micros,
    topology::{ShardId, ZoneIndex},
    wire::{self, HEADER_BYTES, Kind},
};

/// A Reply frame is ended once its body has this many bytes; one value more still fits.
const REPLY_BODY_BYTES: usize = 1 << 20;
const _: () = assert!(REPLY_BODY_BYTES + crate::command::VALUE_BYTES_MAX + 1024 < wire::BODY_BYTES_MAX);

/// What a connection may hold at any time.
const SMALL_BYTES: usize = 16 << 10;

/// Who waits for the answer to a request.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A client of this shard, for the command with this id.
    Client {
        /// Its connection.
        client: Key,
        /// The command's id.
        id: u64,
        /// The memory that the command lies in.
        _chunk: Rc<Held>,
    },
    /// A request over HTTP, and the memory that its command lies in.
    Web(Ticket, Held),
    /// Another shard of this node.
    Shard {
        /// Which.
        from: ShardId,
        /// Its token.
        token: u64,
    },
}

/// A client's connection.
#[derive(Debug)]
struct Client {
    connection: Rc<Connection>,
    _seat: Seat,
    /// The memory of `queue`.
    held: Held,
    zone: ZoneIndex,
    /// How long answers are held back, in microseconds: the emulated round trip.
    delay_us: u64,
    /// Requests that wait for an answer.
    unanswered: usize,
    queue: ByteQueue,
    /// Where the open Reply frame begins.
    open: Option<usize>,
    /// Where this turn's bytes begin, if there are any.
    turn_start: Option<usize>,
    blocked: bool,
    /// Since when its socket has taken nothing of what it was offered.
    unread_since: Option<Micros>,
    /// Whether its reader waits.
    paused: bool,
}

/// All client connections of a shard.
#[derive(Debug)]
pub(super) struct Clients {
    shard: ShardId,
    clients: Slab<Client>,
    /// Clients that this turn has bytes for.
    touched: Vec<Key>,
    /// Clients whose socket takes no more: tried again at each tick.
    blocked: Vec<Key>,
    /// Clients with answers held back.
    held: Vec<Key>,
    requests_max: usize,
    queue_bytes_max: usize,
    budget: Rc<Budget>,
}

impl Clients {
    /// Without connections; the bounds are of each one.
    pub(super) fn new(shard: ShardId, requests_max: usize, queue_bytes_max: usize, budget: Rc<Budget>) -> Self {
        let (touched, blocked, held) = (Vec::new(), Vec::new(), Vec::new());
        Self { shard, clients: Slab::new(), touched, blocked, held, requests_max, queue_bytes_max, budget }
    }

    /// A client whose hello was taken.
    pub(super) fn insert(&mut self, connection: Rc<Connection>, zone: ZoneIndex, seat: Seat, delay_us: u64) -> Key {
        self.clients.insert(Client {
            connection,
            _seat: seat,
            held: Held::new(Some(Rc::clone(&self.budget)), 0),
            zone,
            delay_us,
            unanswered: 0,
            queue: ByteQueue::default(),
            open: None,
            turn_start: None,
            blocked: false,
            unread_since: None,
            paused: false,
        })
    }

    /// Its connection is gone.
    pub(super) fn remove(&mut self, client: Key) {
        self.clients.remove(client);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Counts a request of a client: its zone, or `None` if it has as many unanswered as it may.
    pub(super) fn take_request(&mut self, client: Key) -> Option<ZoneIndex> {
        let client = self.clients.get_mut(client)?;
        if client.unanswered >= self.requests_max {
            return None;
        }
        client.unanswered += 1;
        Some(client.zone)
    }

    /// Encodes the answer to a request that was counted.
    pub(super) fn answer(&mut self, client: Key, reply: ReplyRef<'_>, counters: &mut Counters) {
        if let Some(client) = self.clients.get_mut(client) {
            assert!(client.unanswered > 0, "every answer is to a request that was counted");
            client.unanswered -= 1;
        }
        self.refuse(client, reply, counters);
    }

    /// Encodes the answer to a request that was not counted. If the client is gone, nobody misses it.
    pub(super) fn refuse(&mut self, key: Key, mut reply: ReplyRef<'_>, counters: &mut Counters) {
        let Some(client) = self.clients.get_mut(key) else { return };
        counters.replies += 1;
        let full = client.queue.len() > self.queue_bytes_max || self.budget.is_spent();
        if full && reply.status == Status::Ok && !reply.value.is_empty() {
            // Clients do not read what they asked for. A read that is not answered has not happened.
            (reply.status, reply.value) = (Status::Overloaded, &[]);
        }
        client.touch(key, &mut self.touched);
        let start = *client.open.get_or_insert_with(|| wire::begin(client.queue.buffer()));
        reply.encode(client.queue.buffer());
        if client.queue.len() - start - HEADER_BYTES >= REPLY_BODY_BYTES {
            client.end_frame(self.shard);
        }
        client.held.set(client.queue.allocated());
    }

    /// Queues a whole frame.
    pub(super) fn push_frame(&mut self, key: Key, frame: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.touch(key, &mut self.touched);
        client.end_frame(self.shard);
        client.queue.buffer().extend_from_slice(frame);
        client.held.set(client.queue.allocated());
    }

    /// Ends the turn: the open frames are ended and everything is sent as far as the sockets take it. With `retry`,
    /// also on those that took no more the last time.
    pub(super) fn send(&mut self, now: Micros, retry: bool, counters: &mut Counters) {
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            let Some(client) = self.clients.get_mut(key) else { continue };
            client.end_frame(self.shard);
            let start = client.turn_start.take().expect("it was touched");
            if client.delay_us > 0 {
                if client.queue.next_release().is_none() {
                    self.held.push(key);
                }
                client.queue.hold_since(start, now.plus(client.delay_us));
            } else if !client.blocked {
                self.send_to(now, key, counters);
            }
        }
        self.touched = touched;
        if !self.held.is_empty() {
            self.release(now, counters);
        }
        if retry && !self.blocked.is_empty() {
            for key in std::mem::take(&mut self.blocked) {
                self.send_to(now, key, counters);
            }
        }
    }

    fn send_to(&mut self, now: Micros, key: Key, counters: &mut Counters) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.queue.send(client.connection.socket()) {
            Ok(sent) => {
                counters.client_sent(sent);
                client.blocked = sent.blocked;
                let stuck = client.unread_since.filter(|_| sent.bytes == 0).unwrap_or(now);
                client.unread_since = sent.blocked.then_some(stuck);
                if sent.blocked {
                    self.blocked.push(key);
                }
            }
            Err(_) => {
                // The reader finds the end of the stream and takes the client out.
                client.connection.close();
                client.queue = ByteQueue::default();
                client.blocked = false;
                client.unread_since = None;
            }
        }
        client.held.set(client.queue.allocated());
        self.resume(key);
    }

    /// Lets the client's reader go on once half of what made it wait is gone.
    fn resume(&mut self, key: Key) {
        let (requests_max, queue_bytes_max) = (self.requests_max / 2, self.queue_bytes_max / 2);
        let Some(client) = self.clients.get_mut(key).filter(|client| client.paused) else { return };
        if client.unanswered <= requests_max && client.queue.len() <= queue_bytes_max {
            client.paused = false;
            client.connection.resume.notify();
        }
    }

    /// Whether the client's reader has to wait until it is resumed.
    pub(super) fn must_pause(&mut self, key: Key) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        client.paused = client.unanswered >= self.requests_max || client.queue.len() > self.queue_bytes_max;
        client.paused
    }

    /// Its connection, if it is still there.
    pub(super) fn connection(&self, key: Key) -> Option<&Rc<Connection>> {
        self.clients.get(key).map(|client| &client.connection)
    }

    /// Closes the connections on which a frame has been coming, or an answer has not been taken, for too long: how many.
    pub(super) fn sweep(&mut self, now: Micros, frame_us: u64, unread_us: u64) -> u64 {
        let mut closed = 0;
        for (_, client) in self.clients.iter_mut() {
            let since = |since: Option<Micros>, limit: u64| since.is_some_and(|since| now.since(since) >= limit);
            let reason = if since(client.connection.unfinished_since.get(), frame_us) {
                format!("a frame was not whole after {frame_us} µs (timers.client_frame_timeout_us)")
            } else if since(client.unread_since, unread_us) {
                format!("no byte of an answer was taken for {unread_us} µs (timers.client_unread_timeout_us)")
            } else {
                continue;
            };
            closed += u64::from(client.close(self.shard, reason));
        }
        closed
    }

    /// Over the budget, closes the connections that hold the most, unfinished frames and untaken answers, until what they held
    /// is enough: how many.
    pub(super) fn relieve(&mut self) -> u64 {
        let mut excess = self.budget.excess();
        if excess == 0 {
            return 0;
        }
        // What is closed already gives its memory back when its reader ends.
        let leaving = self.clients.iter_mut().filter(|(_, client)| client.connection.is_closed());
        excess = excess.saturating_sub(leaving.map(|(_, client)| client.memory()).sum());
        let mut closed = 0;
        while excess > 0 {
            let open = self.clients.iter_mut().filter(|(_, client)| !client.connection.is_closed());
            let Some((_, largest)) = open.max_by_key(|(_, client)| client.memory()) else { break };
            let memory = largest.memory();
            if memory <= SMALL_BYTES {
                break;
            }
            excess = excess.saturating_sub(memory);
            let reason =
                format!("clients hold more than flow.client_memory_bytes_max, and this one the most: {memory} bytes");
            closed += u64::from(largest.close(self.shard, reason));
        }
        closed
    }

    /// Whether something waits for a socket to take it.
    pub(super) fn is_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// Sends the answers whose time has come.
    fn release(&mut self, now: Micros, counters: &mut Counters) {
        for key in std::mem::take(&mut self.held) {
            let Some(client) = self.clients.get_mut(key) else { continue };
            let (released, blocked) = (client.queue.release(now), client.blocked);
            if client.queue.next_release().is_some() {
                self.held.push(key);
            }
            if released && !blocked {
                self.send_to(now, key, counters);
            }
        }
    }

    /// When answers that are held back may go next.
    pub(super) fn next_release(&self) -> Option<Micros> {
        self.held.iter().filter_map(|key| self.clients.get(*key)?.queue.next_release()).min()
    }

    /// Bytes unsent to all of them.
    pub(super) fn queue_bytes(&mut self) -> usize {
        self.clients.iter_mut().map(|(_, client)| client.queue.len()).sum()
    }
}

impl Client {
    /// Bytes of memory that its frames and answers hold.
    fn memory(&self) -> usize {
        self.connection.receiving_bytes.get() + self.held.bytes()
    }

    /// Closes its connection, and says why where the socket has room for that; false if it is closed already.
    fn close(&self, shard: ShardId, reason: String) -> bool {
        if self.connection.is_closed() {
            return false;
        }
        let refusal = Refusal::new(Code::Limit, reason);
        tracing::info!(shard = shard.0, peer = %self.connection.peer, "closed: {refusal}");
        if self.unread_since.is_none() && self.queue.is_empty() {
            // A courtesy: where it does not fit into the socket, the log line has to do.
            let _ = self.connection.send_now(&refusal.frame(shard));
        }
        self.connection.close();
        true
    }

    /// Remembers where this turn's bytes begin.
    fn touch(&mut self, key: Key, touched: &mut Vec<Key>) {
        if self.turn_start.is_none() {
            self.turn_start = Some(self.queue.len());
            touched.push(key);
        }
    }

    fn end_frame(&mut self, shard: ShardId) {
        if let Some(start) = self.open.take() {
            wire::finish(self.queue.buffer(), start, Kind::Reply, shard.0, 0);
        }
    }
}
