//! The synchronous half of a shard: everything between two awaits.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    budget::Budget,
    clients::{Clients, Waiting},
    connection::Connection,
    counters::Counters,
    hello::{Code, Refusal},
    links::Links,
    log::Log,
    mailbox::LentAnswer,
    node::Node,
    receive::Receiver,
    slab::{Key, Slab},
    web::Outcome,
};
use crate::{
    api::native::ReplyRef,
    command::Status,
    failure::Failure,
    protocol::{IDLE_TICK_US, Membership, Micros, Outputs, Protocol, RecordId, Vote},
    topology::{NodeIndex, ShardId},
    wire::{Frame, Kind},
};

mod disk;
mod requests;
#[cfg(test)]
mod tests;
mod web;

use disk::LogWatch;
pub(super) use requests::Unread;
pub(super) use web::Asked;

/// A connection says hello within this time.
const HELLO_TIMEOUT_US: u64 = 3_000_000;
/// Where there are as many as may be that have not, the oldest is closed after so long: peers and clients say hello with the
/// first byte that they send.
const STRANGER_PATIENCE_US: u64 = 100_000;
/// A node ends when its place has been taken for so many times as long as it takes to suspect a silent peer.
const TAKEN_SUSPICIONS: u64 = 10;
/// Bytes of values at which answers are routed before the turn's end, so that the bounds of their clients hold.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// A shard: its protocol, its connections and what is under way between them.
pub(super) struct Core<P> {
    pub(super) node: Arc<Node>,
    pub(super) shard: ShardId,
    protocol: P,
    out: Outputs,
    log: Box<dyn Log>,
    /// The last record that the log was given.
    appended: RecordId,
    /// What the protocol knows to be durable.
    durable: RecordId,
    watch: LogWatch,
    /// The checkpoint that the log is being given, and where in the objects it goes on.
    checkpoint: Option<u64>,
    links: Links,
    clients: Clients,
    /// What clients hold.
    budget: Rc<Budget>,
    /// Units of work that clients have left of this turn.
    work_left: usize,
    /// Connections for which it had none left, in the order in which they go on.
    hungry: VecDeque<Rc<Connection>>,
    /// When clients are next looked at for those that make no progress.
    next_sweep: Micros,
    /// Who waits for what; a request's [`ReplyTo`] is a key of it.
    waiting: Slab<Waiting>,
    /// Requests under way at each other shard of the node.
    lent: Vec<usize>,
    /// Shards whose mailboxes this turn has put something into.
    mailed: Vec<bool>,
    connections: Slab<Rc<Connection>>,
    /// Connections that have not said hello, in the order of their times.
    strangers: VecDeque<Stranger>,
    next_tick: Micros,
    last_tick: Micros,
    /// When a stopping shard gives up waiting.
    stop_by: Option<Micros>,
    /// What was said last of the node's place in the configuration.
    membership: Option<Membership>,
    /// Since when all that peers say is that another process has this node's place, and when one said so last.
    taken: Option<(Micros, Micros)>,
    /// Requests over HTTP are encoded here.
    web_buffer: BytesMut,
    web_ids: web::Ids,
    pub(super) counters: Counters,
}

/// A connection that has not said hello.
#[derive(Debug)]
struct Stranger {
    /// When it was opened.
    since: Micros,
    /// Whether the other side has opened it.
    called: bool,
    connection: Rc<Connection>,
}

impl Stranger {
    /// Whether it still is one.
    fn remains(&self) -> bool {
        !self.connection.established.get() && !self.connection.is_closed()
    }
}

/// When a turn wants the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// At this time, or when something comes in.
    At(Micros),
    /// Never: the shard has stopped.
    Stopped,
}

impl<P: Protocol> Core<P> {
    /// `log` has everything that `protocol` has replayed.
    pub(super) fn new(node: Arc<Node>, shard: ShardId, protocol: P, log: Box<dyn Log>, budget: Rc<Budget>) -> Self {
        let (cluster, flow) = (&node.cluster, &node.tuning.flow);
        let zone = node.member().zone;
        let half = |peer| cluster.wan.as_ref().map_or(0, |wan| wan.rtt_us(zone, peer) / 2);
        let delay_us = cluster.nodes.iter().map(|member| half(member.zone)).collect();
        Self {
            out: Outputs::new(cluster.nodes.len()),
            appended: log.durable(),
            durable: log.durable(),
            watch: LogWatch::default(),
            checkpoint: None,
            log,
            links: Links::new(node.index, delay_us, flow.link_queue_bytes_max),
            clients: Clients::new(shard, flow.client_requests_max, flow.client_queue_bytes_max, Rc::clone(&budget)),
            budget,
            work_left: requests::TURN_WORK,
            hungry: VecDeque::new(),
            next_sweep: Micros(0),
            waiting: Slab::new(),
            lent: vec![0; usize::from(cluster.shards)],
            mailed: vec![false; usize::from(cluster.shards)],
            connections: Slab::new(),
            strangers: VecDeque::new(),
            next_tick: Micros(0),
            last_tick: Micros(0),
            stop_by: None,
            membership: None,
            taken: None,
            web_buffer: BytesMut::new(),
            web_ids: web::Ids::new(&node, shard),
            counters: Counters::default(),
            protocol,
            node,
            shard,
        }
    }

    /// The protocol, to be looked at.
    #[cfg(feature = "sim")]
    pub(super) fn protocol(&self) -> &P {
        &self.protocol
    }

    /// Whether a write to the log has ended: its task has been woken then, and wakes the shard.
    pub(super) fn look_at_log(&self) -> bool {
        self.log.look()
    }

    /// From now on frames for peers are kept for [`Self::take_tap`].
    #[cfg(feature = "sim")]
    pub(super) fn open_tap(&mut self) {
        self.links.open_tap();
    }

    /// Takes every frame that was queued for a peer since the last call.
    #[cfg(feature = "sim")]
    pub(super) fn take_tap(&mut self) -> Vec<(NodeIndex, Bytes)> {
        self.links.take_tap()
    }

    /// How full the bounded places are.
    #[cfg(feature = "sim")]
    pub(super) fn fill(&mut self) -> super::Fill {
        super::Fill {
            link_queue_bytes: self.links.fullest_bytes(),
            client_queue_bytes: self.clients.queue_bytes(),
            log_pending_bytes: self.log.pending_bytes(),
        }
    }

    // ---- connections ---------------------------------------------------------------------------------------------

    /// A connection was opened, by the other side if `called`.
    pub(super) fn connected(&mut self, connection: Rc<Connection>, called: bool) -> Key {
        self.strangers.push_back(Stranger { since: self.node.now(), called, connection: Rc::clone(&connection) });
        self.connections.insert(connection)
    }

    /// Whether another connection may be accepted that has not said hello. One that has been silent for a while makes room.
    pub(super) fn has_room_for_stranger(&mut self) -> bool {
        let max = self.node.admission.bounds.strangers_max;
        if self.strangers.len() < max {
            return true;
        }
        self.strangers.retain(Stranger::remains);
        if self.strangers.iter().filter(|stranger| stranger.called).count() < max {
            return true;
        }
        let now = self.node.now();
        let oldest = self.strangers.iter().position(|stranger| stranger.called).expect("there is one, max is not 0");
        if now.since(self.strangers[oldest].since) < STRANGER_PATIENCE_US {
            return false;
        }
        let stranger = self.strangers.remove(oldest).expect("just found");
        self.counters.strangers_closed += 1;
        stranger.connection.close();
        true
    }

    /// Its reader has ended.
    pub(super) fn disconnected(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(key) {
            connection.close();
        }
    }

    /// Ends all of them.
    pub(super) fn close_all(&mut self) {
        self.connections.iter_mut().for_each(|(_, connection)| connection.close());
    }

    // ---- links ---------------------------------------------------------------------------------------------------

    /// Whether a peer is linked and alive as somebody else: the caller must not take its place.
    pub(super) fn is_taken(&self, peer: NodeIndex, incarnation: u64) -> bool {
        self.protocol.is_taken(self.node.now(), peer, incarnation)
    }

    /// A peer's hello was taken: its connection becomes the link, in place of any earlier one.
    pub(super) fn link_up(&mut self, peer: NodeIndex, incarnation: u64, connection: Rc<Connection>) -> u64 {
        self.take_link_down(peer);
        connection.established.set(true);
        let serial = self.links.up(peer, connection);
        self.counters.links_up += 1;
        self.node.set_link(self.shard, peer, true);
        self.protocol.on_link_up(self.node.now(), peer, incarnation, &mut self.out);
        serial
    }

    /// The connection is gone; if it still was the link, the link is down.
    pub(super) fn link_down(&mut self, peer: NodeIndex, serial: u64) {
        if self.links.is(peer, serial) {
            self.take_link_down(peer);
            self.node.set_link(self.shard, peer, false);
        }
    }

    fn take_link_down(&mut self, peer: NodeIndex) {
        let now = self.node.now();
        // What was meant for this connection must not wait for the next one.
        self.settle(now);
        if self.links.down(peer) {
            self.protocol.on_link_down(now, peer, &mut self.out);
        }
    }

    /// Bytes came from a peer: its whole frames go to the protocol.
    ///
    /// True if it has to be read no further until the log has caught up.
    ///
    /// # Errors
    /// Why the link has to be closed.
    pub(super) fn on_link_bytes(
        &mut self,
        peer: NodeIndex,
        serial: u64,
        bytes: usize,
        receiver: &mut Receiver,
    ) -> Result<bool, Refusal> {
        let now = self.node.now();
        self.counters.link_receives += u64::from(bytes > 0);
        self.counters.link_bytes_received += bytes as u64;
        while let Some(frame) = receiver.next_frame().map_err(Refusal::malformed)? {
            if !self.links.is(peer, serial) {
                return Ok(false);
            }
            self.counters.link_frames_received += 1;
            if !self.links.fault(peer).deaf {
                self.on_link_frame(now, peer, &frame)?;
            }
        }
        Ok(self.pauses_link(peer))
    }

    fn on_link_frame(&mut self, now: Micros, peer: NodeIndex, frame: &Frame) -> Result<(), Refusal> {
        if frame.kind == Kind::Refused {
            self.refused_by(peer, &Refusal::read(frame.body()));
            return Ok(());
        }
        if frame.shard != self.shard.0 {
            let reason = format!("a {:?} for shard {} came to shard {}", frame.kind, frame.shard, self.shard.0);
            return Err(Refusal::malformed(reason));
        }
        if matches!(frame.kind as u8, 1..=15 | 64..) {
            return Err(Refusal::malformed(format!("a {:?} has no place on a link that is up", frame.kind)));
        }
        self.taken = None;
        let taken = self.protocol.on_frame(now, peer, frame, &mut self.out);
        if self.out.value_bytes.len() >= VALUE_BYTES_MAX {
            self.route_replies();
        }
        taken.map_err(Refusal::malformed)
    }

    /// A peer has refused this node. The place of a node whose machine has died counts as taken until that one is suspected;
    /// a place that is taken for much longer is another process's, and this one ends.
    pub(super) fn refused_by(&mut self, peer: NodeIndex, refusal: &Refusal) {
        let (own, peer) = (self.node.member().id, self.node.cluster.member(peer).id);
        tracing::warn!(node = %own, shard = self.shard.0, %peer, "refused by the peer: {refusal}");
        if refusal.code != Code::Taken {
            return;
        }
        let (now, patience) = (self.node.now(), TAKEN_SUSPICIONS * self.node.tuning.timers.suspect_silent_us);
        let since = self.taken.filter(|(_, last)| now.since(*last) < patience).map_or(now, |(since, _)| since);
        self.taken = Some((since, now));
        if now.since(since) >= patience {
            let text =
                format!("{refusal} (no peer has said anything else to this process for {} s)", patience / 1_000_000);
            self.node.fail(Failure::Refused(text));
        }
    }

    /// Acts out what the protocol wants of the node as a whole: all links made anew, or its end.
    fn obey(&mut self, now: Micros) {
        if let Some(why) = self.out.displaced.take() {
            self.node.fail(Failure::Refused(why));
        }
        if let Some(why) = self.out.damaged.take() {
            let log = self.node.logs.get(usize::from(self.shard.0));
            let place = log.map_or_else(|| "nothing is kept".to_owned(), |log| log.directory.display().to_string());
            self.node.fail(Failure::Damaged(format!("{place}: {why}")));
        }
        while std::mem::take(&mut self.out.reset) {
            // Their readers find the end of the stream.
            for peer in (0..self.node.cluster.nodes.len()).map(|node| NodeIndex(node as u8)) {
                if self.links.down(peer) {
                    self.node.set_link(self.shard, peer, false);
                    self.protocol.on_link_down(now, peer, &mut self.out);
                }
            }
            self.settle(now);
        }
    }

    // ---- faults --------------------------------------------------------------------------------------------------

    /// Acts out the node's injected faults, if they have changed.
    pub(super) fn refresh_faults(&mut self, now: Micros) {
        if let Some(before) = self.links.faults().refresh(now, &self.node.faults, &self.node.cluster) {
            self.links.faults_changed(&before);
        }
    }

    /// Whether an injected fault cuts the link to a peer.
    pub(super) fn is_cut(&self, peer: NodeIndex) -> bool {
        self.links.fault(peer).is_cut()
    }

    // ---- turns ---------------------------------------------------------------------------------------------------

    /// One turn of the loop: whatever has come in since the last one is flushed, and what that gives is sent.
    pub(super) fn turn(&mut self) -> Next {
        let now = self.node.now();
        self.counters.turns += 1;
        self.work_left = requests::TURN_WORK;
        self.refresh_faults(now);
        if self.stop_by.is_none() && self.node.is_stopping() {
            self.stop_by = Some(now.plus(self.node.tuning.timers.stop_grace_us));
            self.protocol.on_stop(now, &mut self.out);
        }
        if self.node.cluster.shards > 1 {
            self.take_mail(now);
        }
        self.learn_durable(now);
        let ticks = now >= self.next_tick;
        if ticks {
            self.tick(now);
        }
        self.settle(now);
        self.obey(now);
        self.write_checkpoint(now);
        self.links.release(now);
        self.links.send(&mut self.counters);
        self.clients.send(now, ticks, &mut self.counters);
        self.wake_mailed();
        self.next(now)
    }

    /// Flushes the protocol until it has no more records and knows what is durable, and routes what it wants done.
    fn settle(&mut self, now: Micros) {
        loop {
            self.links.room(&mut self.out.room);
            self.out.room[self.node.index.index()] = self.log_room();
            self.counters.flushes += 1;
            self.protocol.flush(now, &mut self.out);
            self.appended = self.out.records.last().map_or(self.appended, |record| record.id);
            self.log.append(&mut self.out.records);
            let durable = self.log.durable();
            for send in self.out.sends.drain(..) {
                self.links.push(now, send, durable, &mut self.counters);
            }
            if !self.learn_durable(now) {
                break;
            }
        }
        self.route_replies();
    }

    /// Tells the protocol and the links how far the log is; false if that is nothing new.
    fn learn_durable(&mut self, now: Micros) -> bool {
        let durable = self.log.durable();
        if durable <= self.durable {
            return false;
        }
        self.durable = durable;
        self.log_moved(now);
        self.links.release_durable(now, durable, &mut self.counters);
        self.protocol.on_durable(now, durable, &mut self.out);
        true
    }

    fn route_replies(&mut self) {
        for reply in &self.out.replies {
            let Some(waiting) = self.waiting.remove(Key::from_token(reply.to.0)) else {
                self.counters.replies_unknown += 1;
                continue;
            };
            let crate::protocol::Reply { status, version, slot, repeated, ballot, owner, .. } = *reply;
            let value = self.out.value(reply);
            match waiting {
                Waiting::Client { client, id, .. } => {
                    let reply = ReplyRef { id, status, version, slot, ballot, owner, value };
                    self.clients.answer(client, reply, &mut self.counters);
                }
                Waiting::Web(ticket, held) => {
                    self.counters.replies += 1;
                    let refused = status == Status::Ok && !value.is_empty() && self.budget.is_spent();
                    // A read that is not answered has not happened.
                    let (status, value) = if refused { (Status::Overloaded, &[][..]) } else { (status, value) };
                    held.set(value.len());
                    let value = Bytes::copy_from_slice(value);
                    ticket.give(Outcome { status, version, slot, repeated, ballot, value, _held: Some(held) });
                }
                Waiting::Shard { from, token } => {
                    let full = status == Status::Ok && !self.node.mailboxes.takes(from, value.len());
                    let (status, value) = if full { (Status::Overloaded, &[][..]) } else { (status, value) };
                    let value = Bytes::copy_from_slice(value);
                    let answer = LentAnswer { token, status, version, slot, repeated, ballot, owner, value };
                    self.mailed[usize::from(from.0)] = true;
                    self.node.mailboxes.answer(self.shard, from, answer);
                }
            }
        }
        self.out.replies.clear();
        self.out.value_bytes.clear();
        self.out.value_bytes.shrink_to(4 * VALUE_BYTES_MAX);
    }

    fn tick(&mut self, now: Micros) {
        self.last_tick = now;
        self.next_tick = now.plus(IDLE_TICK_US);
        self.protocol.on_tick(now, &mut self.out);
        self.note_membership();
        self.watch_log(now);
        self.sweep_clients(now);
        let over = |stranger: &Stranger| !stranger.remains() || now.since(stranger.since) >= HELLO_TIMEOUT_US;
        while self.strangers.front().is_some_and(over) {
            let stranger = self.strangers.pop_front().expect("there is a first one");
            if stranger.remains() {
                self.counters.strangers_closed += 1;
                let peer = stranger.connection.peer;
                tracing::info!(%peer, "closed: it has said no hello in {HELLO_TIMEOUT_US} µs");
                stranger.connection.close();
            }
        }
    }

    /// Says so when it has changed what this node may do in its configuration.
    fn note_membership(&mut self) {
        let membership = self.protocol.membership();
        if membership == self.membership {
            return;
        }
        if let Some(Membership { version, vote, .. }) = &membership {
            let before = self.membership.as_ref().map(|before| (before.version, before.vote));
            if before != Some((*version, *vote)) {
                let (node, shard) = (self.node.member().id, self.shard.0);
                tracing::info!(%node, shard, version, "{}", text_of(*vote));
            }
        }
        self.membership = membership;
    }

    fn wake_mailed(&mut self) {
        for (shard, mailed) in self.mailed.iter_mut().enumerate() {
            if std::mem::take(mailed) {
                self.node.mailboxes.wake(ShardId(shard as u16));
            }
        }
    }

    /// When the next turn is due though nothing comes in.
    fn next(&mut self, now: Micros) -> Next {
        if let Some(stop_by) = self.stop_by {
            let durable = self.log.durable() >= self.appended;
            let drained =
                durable && self.waiting.len() == 0 && self.links.is_drained() && self.clients.queue_bytes() == 0;
            if drained || now >= stop_by {
                return Next::Stopped;
            }
        }
        let busy =
            !self.protocol.is_idle() || self.links.is_pending() || self.clients.is_blocked() || self.stop_by.is_some();
        let busy = busy || !self.hungry.is_empty();
        if busy {
            self.next_tick = self.next_tick.min(self.last_tick.plus(self.node.tuning.timers.tick_us));
        }
        let mut next = self.next_tick;
        if let Some(flush_at) = self.protocol.flush_at() {
            next = next.min(flush_at);
        }
        let times = [self.links.next_release(), self.clients.next_release(), self.links.faults().next_end()];
        next = times.into_iter().flatten().fold(next, Micros::min);
        Next::At(next.max(now.plus(1)))
    }
}

/// What a node may do in its configuration, for people.
pub(super) fn text_of(vote: Vote) -> String {
    match vote {
        Vote::Voter => "votes".to_owned(),
        Vote::Learner { merged, may_end: true } => {
            format!("learner: it has lost its state, and votes once it has learned from a quorum ({} so far)", merged.len())
        }
        Vote::Learner { may_end: false, .. } => {
            "learner for good: it has lost its state, and the other members hold no phase-1 quorum that knows what it may \
             have accepted; see 'no quorum left' in docs/operations.md"
                .to_owned()
        }
        Vote::Newcomer => "new: waits until enough members have met it".to_owned(),
        Vote::Refused => {
            "refused as a member, whose state it has lost: waits until a majority of the members names it anew".to_owned()
        }
    }
}
