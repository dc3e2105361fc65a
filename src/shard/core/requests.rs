//! What a shard does for native clients and for the other shards of its node between two awaits: requests in, by portions.
//!
//! Work is counted in units: one for a request and one for each kilobyte of it. A connection has a portion of a turn's units
//! and the turn an end of them; what is left over waits in [`Core::hungry`], first in, first out, and the executor's loop
//! has it go on when everybody else has had a turn.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::Core;
use crate::{
    api::native::{self, ReplyRef},
    command::{Command, Status},
    protocol::{Micros, Protocol, ReadMode, ReplyTo, Request},
    shard::{
        admission::Seat,
        budget::Held,
        clients::Waiting,
        connection::Connection,
        hello::{Code, Refusal},
        mailbox::{LentAnswer, LentRequest},
        receive::Receiver,
        session::Reading,
        slab::Key,
        web::Outcome,
    },
    topology::{ShardId, ZoneIndex, shard_of, token_of},
    wire::{self, Frame, HEADER_BYTES, Kind},
};

/// Units of work that all clients together have of a turn.
pub(super) const TURN_WORK: usize = 16_384;
/// Units of work that one connection has of a turn.
const CONNECTION_WORK: usize = 1024;
/// Units of work that the mail of all other shards has of a turn.
const MAIL_WORK: usize = 8192;
/// Bytes of a request, or of an answer, that are a unit of work.
const UNIT_BYTES: usize = 1024;
/// Units of work of an answer with all counters.
const STATS_WORK: usize = 64;
/// Requests of one frame whose objects are looked up together: as many as the caches of a core hold.
const FORESEEN_MAX: usize = 64;
/// Requests for the shard's counters that are answered in one read: each answer is some kilobytes, and asks everything.
const STATS_MAX: usize = 16;

/// A client's frame of which a part was taken.
#[derive(Debug)]
pub(in crate::shard) struct Unread {
    frame: Frame,
    /// Where in its body the rest begins.
    at: usize,
}

/// A client's requests on their way into the shard.
struct Source<'a> {
    client: Key,
    /// The frame that they are views of, and the memory that it is a part of.
    frame: &'a Bytes,
    chunk: &'a Rc<Held>,
}

impl<P: Protocol> Core<P> {
    /// A client's hello was taken.
    pub(in crate::shard) fn client_up(
        &mut self,
        connection: Rc<Connection>,
        zone: ZoneIndex,
        seat: Seat,
        welcome: &[u8],
    ) -> Key {
        let own = self.node.member().zone;
        let rtt_us = |wan: &crate::topology::WanMatrix| if zone == own { 0 } else { wan.rtt_us(own, zone) };
        let delay_us = self.node.cluster.wan.as_ref().map_or(0, rtt_us);
        connection.established.set(true);
        self.counters.clients_welcomed += 1;
        let client = self.clients.insert(connection, zone, seat, delay_us);
        self.clients.push_frame(client, welcome);
        client
    }

    /// The client's connection is gone. What it asked for goes on; nobody is told the answers.
    pub(in crate::shard) fn client_down(&mut self, client: Key) {
        self.clients.remove(client);
    }

    /// Bytes came from a client, or it goes on: its whole frames are handled, as far as its portion of the turn goes.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub(in crate::shard) fn on_client_bytes(
        &mut self,
        client: Key,
        bytes: usize,
        receiver: &mut Receiver,
        unread: &mut Option<Unread>,
    ) -> Result<Reading, Refusal> {
        let now = self.node.now();
        self.counters.client_receives += u64::from(bytes > 0);
        self.counters.client_bytes_received += bytes as u64;
        let portion = CONNECTION_WORK.min(self.work_left);
        let mut left = portion;
        let handled = self.handle_frames(now, client, receiver, unread, &mut left);
        self.work_left -= portion - left;
        let whole = handled?;
        let Some(connection) = self.clients.connection(client) else { return Ok(Reading::On) };
        let connection = Rc::clone(connection);
        connection.receiving_bytes.set(receiver.held_bytes());
        // A frame has its time from its first byte on, however many come one by one.
        if left < portion || !receiver.is_partial() {
            connection.unfinished_since.set(None);
        }
        let reading = self.reading(client, &connection, whole);
        match reading {
            Reading::On if receiver.is_partial() && connection.unfinished_since.get().is_none() => {
                connection.unfinished_since.set(Some(now));
            }
            Reading::On => {}
            Reading::Paused => connection.unfinished_since.set(None),
        }
        if self.budget.excess() > 0 {
            self.counters.clients_closed += self.clients.relieve();
        }
        Ok(reading)
    }

    /// Whether a client is read on. `whole` if every whole frame of its was handled.
    fn reading(&mut self, client: Key, connection: &Rc<Connection>, whole: bool) -> Reading {
        if self.clients.must_pause(client) {
            self.counters.client_pauses += 1;
            return Reading::Paused;
        }
        if whole && !self.budget.is_spent() {
            return Reading::On;
        }
        self.hungry.push_back(Rc::clone(connection));
        Reading::Paused
    }

    /// Takes whole frames as far as `left` goes; false if there are more.
    fn handle_frames(
        &mut self,
        now: Micros,
        client: Key,
        receiver: &mut Receiver,
        unread: &mut Option<Unread>,
        left: &mut usize,
    ) -> Result<bool, Refusal> {
        let mut told = 0;
        loop {
            if unread.is_none() {
                check_size(receiver)?;
                *unread = receiver.next_frame().map_err(Refusal::malformed)?.map(|frame| Unread { frame, at: 0 });
            }
            let Some(open) = unread else { return Ok(true) };
            if *left == 0 {
                return Ok(false);
            }
            match open.frame.kind {
                Kind::Request => {
                    self.on_requests(now, client, open, receiver.chunk(), left)?;
                    if open.at < open.frame.body().len() {
                        return Ok(false);
                    }
                }
                Kind::StatsRequest if told < STATS_MAX => {
                    told += 1;
                    *left = left.saturating_sub(STATS_WORK);
                    self.on_stats_request(client);
                }
                Kind::StatsRequest => {
                    let why =
                        format!("more than {STATS_MAX} requests for counters came at once: ask again once answered");
                    return Err(Refusal::malformed(why));
                }
                kind => return Err(Refusal::malformed(format!("a client sends no {kind:?}"))),
            }
            // A frame costs something even if nothing is in it.
            *left = left.saturating_sub(1);
            *unread = None;
        }
    }

    fn on_requests(
        &mut self,
        now: Micros,
        client: Key,
        open: &mut Unread,
        chunk: &Rc<Held>,
        left: &mut usize,
    ) -> Result<(), Refusal> {
        let shards = self.node.cluster.shards;
        let source = Source { client, frame: &open.frame.bytes, chunk };
        let body = open.frame.body();
        let mut requests = native::requests(&body[open.at..]);
        let mut ahead = SmallVec::<[_; 4]>::new();
        while *left > 0 {
            // What is malformed ends the connection when its turn comes.
            while ahead.len() < FORESEEN_MAX.min(*left)
                && let Some(request) = requests.next()
            {
                ahead.push((request, body.len() - requests.bytes_left()));
            }
            if ahead.len() > 1 {
                let mut keys =
                    ahead.iter().filter_map(|(request, _)| request.as_ref().ok().map(|(_, command)| command.key()));
                self.protocol.foresee(&mut keys);
            }
            if ahead.is_empty() {
                break;
            }
            for (request, end) in ahead.drain(..) {
                let (read, command) = request.map_err(Refusal::malformed)?;
                open.at = end;
                *left = left.saturating_sub(1 + command.bytes().len() / UNIT_BYTES);
                self.take_request(now, &source, read, command, shards);
                if *left == 0 {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take_request(&mut self, now: Micros, source: &Source<'_>, read: ReadMode, command: Command<'_>, shards: u16) {
        let client = source.client;
        self.counters.requests += 1;
        if !command.is_request() {
            return self.refuse_request(client, command.id(), Status::BadRequest);
        }
        if self.stop_by.is_some() {
            return self.refuse_request(client, command.id(), Status::ShuttingDown);
        }
        if self.budget.is_spent() {
            self.counters.requests_over_memory += 1;
            return self.refuse_request(client, command.id(), Status::Overloaded);
        }
        let to = if shards == 1 { self.shard } else { shard_of(token_of(command.key()), shards) };
        if to == self.shard {
            self.propose(now, source, read, command);
        } else {
            self.lend(source, to, read, command);
        }
    }

    fn wait_for(&mut self, source: &Source<'_>, id: u64) -> u64 {
        let waiting = Waiting::Client { client: source.client, id, _chunk: Rc::clone(source.chunk) };
        self.waiting.insert(waiting).to_token()
    }

    /// Hands a client's request to the protocol.
    fn propose(&mut self, now: Micros, source: &Source<'_>, read: ReadMode, command: Command<'_>) {
        let Some(zone) = self.clients.take_request(source.client) else {
            return self.refuse_request(source.client, command.id(), Status::Overloaded);
        };
        let reply_to = ReplyTo(self.wait_for(source, command.id()));
        self.protocol.on_request(now, Request { reply_to, zone, read, command, frame: source.frame }, &mut self.out);
        if self.out.value_bytes.len() >= super::VALUE_BYTES_MAX {
            self.route_replies();
        }
    }

    /// Passes a client's request to the shard that its key belongs to.
    fn lend(&mut self, source: &Source<'_>, to: ShardId, read: ReadMode, command: Command<'_>) {
        if self.lent[usize::from(to.0)] >= self.node.mailboxes.depth() {
            return self.refuse_request(source.client, command.id(), Status::Overloaded);
        }
        let Some(zone) = self.clients.take_request(source.client) else {
            return self.refuse_request(source.client, command.id(), Status::Overloaded);
        };
        let token = self.wait_for(source, command.id());
        let command = source.frame.slice_ref(command.bytes());
        self.lent[usize::from(to.0)] += 1;
        self.mailed[usize::from(to.0)] = true;
        self.counters.requests_lent += 1;
        self.node.mailboxes.lend(self.shard, to, LentRequest { token, zone, read, command });
    }

    fn refuse_request(&mut self, client: Key, id: u64, status: Status) {
        self.counters.requests_refused += 1;
        let reply = ReplyRef { id, status, version: 0, slot: 0, ballot: 0, owner: None, value: &[] };
        self.clients.refuse(client, reply, &mut self.counters);
    }

    /// Has readers go on for whom the last turn had no time, or the clients' budget no memory; true if there are any.
    pub(in crate::shard) fn feed(&mut self) -> bool {
        if self.hungry.is_empty() || self.budget.is_spent() {
            return false;
        }
        for _ in 0..TURN_WORK / CONNECTION_WORK {
            let Some(connection) = self.hungry.pop_front() else { break };
            connection.resume.notify();
        }
        true
    }

    /// Closes connections that have made no progress for too long, or hold too much.
    pub(super) fn sweep_clients(&mut self, now: Micros) {
        if now < self.next_sweep {
            return;
        }
        let timers = &self.node.tuning.timers;
        let (frame_us, unread_us) = (timers.client_frame_timeout_us, timers.client_unread_timeout_us);
        self.next_sweep = now.plus((frame_us.min(unread_us) / 8).clamp(1000, 100_000));
        self.counters.clients_closed += self.clients.sweep(now, frame_us, unread_us) + self.clients.relieve();
    }

    /// Everything that is counted, by name.
    pub(super) fn stats(&mut self) -> BTreeMap<&'static str, u64> {
        let mut stats: BTreeMap<&str, u64> = self.protocol.counters().into_iter().collect();
        stats.extend(self.counters.named());
        stats.insert("io_clients", self.clients.len() as u64);
        stats.insert("io_client_queue_bytes", self.clients.queue_bytes() as u64);
        stats.insert("io_client_memory_bytes", self.budget.used() as u64);
        stats.insert("io_waiting", self.waiting.len() as u64);
        self.count_log(&mut stats);
        // Of the process: there is one place that it says things to.
        stats.insert("io_log_lines_lost", crate::diagnostics::lines_lost());
        stats
    }

    fn on_stats_request(&mut self, client: Key) {
        let body = serde_json::to_vec(&self.stats()).expect("names and numbers become JSON");
        self.clients.push_frame(client, &wire::frame(Kind::Stats, self.shard.0, 0, &body));
    }

    /// Goes through the mailbox, answers first: each other shard has its part of the turn, and what is left is taken by the
    /// next one.
    pub(super) fn take_mail(&mut self, now: Micros) {
        let node = Arc::clone(&self.node);
        let own = self.shard;
        let part = MAIL_WORK / usize::from(node.cluster.shards);
        for from in (0..node.cluster.shards).map(ShardId).filter(|from| *from != own) {
            let mut left = part;
            while left > 0
                && let Some(answer) = node.mailboxes.next_answer(from, own)
            {
                left = left.saturating_sub(1 + answer.value.len() / UNIT_BYTES);
                self.lent[usize::from(from.0)] -= 1;
                self.on_lent_answer(answer);
            }
            let mut left = part;
            while left > 0
                && let Some(request) = node.mailboxes.next_request(from, own)
            {
                left = left.saturating_sub(1 + request.command.len() / UNIT_BYTES);
                self.on_lent_request(now, from, &request);
            }
        }
    }

    fn on_lent_answer(&mut self, answer: LentAnswer) {
        let LentAnswer { token, status, version, slot, repeated, ballot, owner, value } = answer;
        match self.waiting.remove(Key::from_token(token)) {
            Some(Waiting::Client { client, id, .. }) => {
                let reply = ReplyRef { id, status, version, slot, ballot, owner, value: &value };
                self.clients.answer(client, reply, &mut self.counters);
            }
            Some(Waiting::Web(ticket, held)) => {
                self.counters.replies += 1;
                held.set(value.len());
                ticket.give(Outcome { status, version, slot, repeated, ballot, value, _held: Some(held) });
            }
            Some(Waiting::Shard { .. }) | None => self.counters.replies_unknown += 1,
        }
    }

    fn on_lent_request(&mut self, now: Micros, from: ShardId, request: &LentRequest) {
        self.counters.requests_borrowed += 1;
        let LentRequest { token, zone, read, command: ref frame } = *request;
        if self.stop_by.is_some() {
            let (status, repeated, value) = (Status::ShuttingDown, false, Bytes::new());
            let answer = LentAnswer { token, status, version: 0, slot: 0, repeated, ballot: 0, owner: None, value };
            self.mailed[usize::from(from.0)] = true;
            return self.node.mailboxes.answer(self.shard, from, answer);
        }
        let reply_to = ReplyTo(self.waiting.insert(Waiting::Shard { from, token }).to_token());
        let command = Command::view(frame);
        self.protocol.on_request(now, Request { reply_to, zone, read, command, frame }, &mut self.out);
        if self.out.value_bytes.len() >= super::VALUE_BYTES_MAX {
            self.route_replies();
        }
    }
}

/// A client's frame is refused by its head, before the rest has come.
fn check_size(receiver: &Receiver) -> Result<(), Refusal> {
    match receiver.next_bytes().map_err(Refusal::malformed)? {
        Some(bytes) if bytes - HEADER_BYTES > native::BODY_BYTES_MAX => {
            let reason = format!(
                "a client's frame has a body of at most {} bytes, and this one of {}: split it",
                native::BODY_BYTES_MAX,
                bytes - HEADER_BYTES
            );
            Err(Refusal::new(Code::Limit, reason))
        }
        _ => Ok(()),
    }
}
