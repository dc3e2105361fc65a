//! What becomes of a request: where it goes, when it goes again, and what is certain about it in the end.
//!
//! ```text
//!             dispatch                    an answer
//!   Waiting ────────────► Queued ► Sent ───────────► completed
//!      ▲                     │       │
//!      │   connection lost   │       │  refused: after a pause
//!      └─────────────────────┴───────┴─ lost or silent: at once, marked as a retry
//! ```
//! **Certainty.** `maybe_done` is set when an attempt is given up that was handed to a socket and not refused. Only while
//! it is not set may a request end as refused, and only then is it sent again unmarked: a command that was refused by
//! everyone is a new one to the replicas.

use super::{
    Ambiguity, Client, Completion, Outcome,
    requests::{Link, Place, Request},
};
use crate::{
    api::native::ReplyRef,
    command::{self, Op, Status},
    protocol::Micros,
    topology::{NodeIndex, NodeSet, shard_of},
};

const PAUSE_MIN_US: u64 = 1_000;
const PAUSE_MAX_US: u64 = 100_000;
/// For how long a replica that said that it is stopping gets no new requests.
const STOPPING_US: u64 = 500_000;

impl Client {
    /// How long a first attempt may go unanswered.
    pub(super) fn first_attempt_us(&self) -> u64 {
        self.attempt_us().min(self.request_us())
    }

    fn request_us(&self) -> u64 {
        super::micros_of(self.options.request_timeout)
    }

    /// Sends a waiting request, or lets it wait on if there is nowhere to send it to.
    pub(super) fn dispatch(&mut self, id: u64) {
        loop {
            let Some(request) = self.requests.get(id) else { return };
            let (token, again) = (request.token, request.attempts > 0);
            let mut avoid = request.tried;
            if again {
                avoid.insert(request.node);
            }
            let Some(node) = self.choose(token, avoid).or_else(|| self.choose_at_all(token)) else {
                return self.pause(id);
            };
            let index = self.connection_of(token, node);
            if self.open(index) {
                return self.assign(id, node, index);
            }
        }
    }

    /// The best usable node outside `avoid`.
    fn choose(&self, token: u64, avoid: NodeSet) -> Option<NodeIndex> {
        self.routing.route(token, avoid, |node| self.connections[self.connection_of(token, node)].is_usable(self.now))
    }

    /// The best usable node, else one that is silent or stopping but connected.
    fn choose_at_all(&self, token: u64) -> Option<NodeIndex> {
        let connected = |node| self.connections[self.connection_of(token, node)].is_ready();
        self.choose(token, NodeSet::EMPTY).or_else(|| self.routing.route(token, NodeSet::EMPTY, connected))
    }

    fn connection_of(&self, token: u64, node: NodeIndex) -> usize {
        let shards = self.welcome.shards;
        node.index() * usize::from(shards) + usize::from(shard_of(token, shards).0)
    }

    fn assign(&mut self, id: u64, node: NodeIndex, index: usize) {
        let connection = &mut self.connections[index];
        let link = Link { connection: index, epoch: connection.epoch };
        let ready = connection.is_ready();
        let Some(request) = self.requests.get(id) else { return };
        request.node = node;
        if !ready {
            request.place = Place::Queued(link);
            connection.queued.push(id);
        }
        let first = request.attempts == 0 && request.pauses == 0 && request.submitted == self.now;
        if ready {
            self.hand_over(id, link);
        }
        if !first {
            self.wake_after(id, self.attempt_us());
        }
    }

    /// Puts a request into a connection's buffer: from now on only that connection's end can tell that it never left.
    pub(super) fn hand_over(&mut self, id: u64, link: Link) {
        let Some(request) = self.requests.get(id) else { return };
        if request.maybe_done {
            command::mark_retry(&mut request.command);
        }
        let position = self.connections[link.connection].push(&request.command, self.options.read);
        request.place = Place::Sent(link, position);
        self.counters.resent += u64::from(request.attempts > 0);
        request.handed_over = self.now;
        request.attempts += 1;
        request.unrefused += 1;
        self.mark_dirty(link.connection);
    }

    /// Wakes a request after this long, but not after its end.
    fn wake_after(&mut self, id: u64, micros: u64) {
        let request_us = self.request_us();
        let Some(request) = self.requests.get(id) else { return };
        let deadline = request.submitted.plus(request_us);
        self.requests.wake_at(id, self.now.plus(micros).min(deadline));
    }

    /// Lets a request wait for a while, longer each time.
    fn pause(&mut self, id: u64) {
        let jitter = u64::from(self.jitter());
        let Some(request) = self.requests.get(id) else { return };
        request.place = Place::Waiting;
        let pause = (PAUSE_MIN_US << request.pauses.min(10)).min(PAUSE_MAX_US);
        request.pauses += 1;
        self.wake_after(id, pause / 2 + pause / 2 * jitter / 256);
    }

    /// A request's time has come: its pause, its attempt or all of its time is over.
    pub(super) fn on_request_due(&mut self, id: u64) {
        let (request_us, attempt_us) = (self.request_us(), self.attempt_us());
        let Some(request) = self.requests.get(id) else { return };
        if self.now >= request.submitted.plus(request_us) {
            return self.end_in_time(id);
        }
        let unanswered_us = self.now.since(request.handed_over);
        match request.place {
            Place::Waiting => self.dispatch(id),
            // The connection's own time-out moves it on.
            Place::Queued(_) => self.wake_after(id, attempt_us),
            // It had to wait for its connection, and the node not as long for it.
            Place::Sent(..) if unanswered_us < attempt_us => self.wake_after(id, attempt_us - unanswered_us),
            Place::Sent(link, _) => {
                let heard = self.connections[link.connection].heard;
                if heard <= request.handed_over || self.now.since(heard) >= attempt_us {
                    self.become_silent(link);
                }
                self.leave_unanswered_on(id, link);
            }
        }
    }

    /// As [`Self::leave_unanswered`], unless the request has left that connection already.
    fn leave_unanswered_on(&mut self, id: u64, link: Link) {
        if self.requests.get(id).is_some_and(|request| request.link() == Some(link)) {
            self.leave_unanswered(id);
        }
    }

    /// Sends a request that a node holds to another one, if there is one and it may be sent again. The first node may yet
    /// answer.
    pub(super) fn leave_unanswered(&mut self, id: u64) {
        let attempts_max = self.options.attempts_max;
        let Some(request) = self.requests.get(id) else { return };
        let (token, node) = (request.token, request.node);
        let mut avoid = request.tried;
        avoid.insert(node);
        if !matches!(request.place, Place::Sent(..)) || request.unrefused >= attempts_max {
            return self.wake_after(id, u64::MAX);
        }
        if self.choose(token, avoid).is_none() {
            return self.wake_after(id, self.attempt_us());
        }
        self.routing.forget(token, node);
        if let Some(request) = self.requests.get(id) {
            request.maybe_done = true;
            request.tried = avoid;
            request.place = Place::Waiting;
        }
        self.dispatch(id);
    }

    /// The connection of a request is gone; `written` says how much was written on it, by position.
    pub(super) fn link_lost(&mut self, id: u64, written: u64) {
        let attempts_max = self.options.attempts_max;
        let Some(request) = self.requests.get(id) else { return };
        let left = matches!(request.place, Place::Sent(_, position) if position < written);
        let handed_over = matches!(request.place, Place::Sent(..));
        request.place = Place::Waiting;
        let (token, node) = (request.token, request.node);
        if left {
            request.maybe_done = true;
            request.tried.insert(node);
        } else if handed_over {
            request.unrefused -= 1;
        }
        let used_up = left && request.unrefused >= attempts_max;
        self.routing.forget(token, node);
        if used_up {
            self.end(id, Outcome::Ambiguous(Ambiguity::ConnectionLost));
        } else {
            self.dispatch(id);
        }
    }

    /// An answer. What an earlier attempt is told counts only if it settles the matter.
    pub(super) fn on_reply(&mut self, link: Link, reply: &ReplyRef<'_>, on: &mut dyn FnMut(Completion<'_>)) {
        let Some(request) = self.requests.get(reply.id) else {
            self.counters.late_answers += 1;
            return;
        };
        let current = matches!(request.place, Place::Sent(of, _) if of == link);
        match reply.status {
            Status::Ok | Status::NotFound | Status::CasFailed | Status::Duplicate => self.complete(link, reply, on),
            _ if !current => {}
            Status::OutcomeUnknown => {
                self.answered(link, reply, Outcome::Ambiguous(Ambiguity::OutcomeUnknown), on);
            }
            Status::IdTaken => self.answered(link, reply, Outcome::Ambiguous(Ambiguity::IdTaken), on),
            // Decided by the cluster, for all attempts.
            Status::IdReused => self.answered(link, reply, Outcome::Refused(reply.status), on),
            Status::BadRequest | Status::IdStale => {
                let outcome = refusal_of(request, reply.status);
                self.answered(link, reply, outcome, on);
            }
            Status::TimeoutMaybeDone => self.on_replica_gave_up(link, reply, on),
            Status::Overloaded | Status::ShuttingDown | Status::TimeoutNotDone => {
                self.on_refusal(reply.id, link, reply.status);
            }
        }
    }

    fn complete(&mut self, link: Link, reply: &ReplyRef<'_>, on: &mut dyn FnMut(Completion<'_>)) {
        let Some(request) = self.requests.get(reply.id) else { return };
        let outcome = match (reply.status, request.op) {
            (Status::Ok, Op::Get) => Outcome::Value(reply.value),
            (Status::Ok, _) => Outcome::Done,
            (Status::NotFound, _) => Outcome::NotFound,
            (Status::CasFailed, _) => Outcome::CasFailed,
            _ => Outcome::Duplicate,
        };
        if let Some(owner) = reply.owner {
            let token = request.token;
            self.routing.learn(token, owner);
        }
        self.answered(link, reply, outcome, on);
    }

    fn answered(&mut self, link: Link, reply: &ReplyRef<'_>, outcome: Outcome<'_>, on: &mut dyn FnMut(Completion<'_>)) {
        let Some(request) = self.requests.close(reply.id) else { return };
        self.counters.completed += 1;
        let node = link.connection / usize::from(self.welcome.shards);
        on(Completion {
            tag: request.tag,
            op: request.op,
            outcome,
            version: reply.version,
            slot: reply.slot,
            ballot: reply.ballot,
            owner: reply.owner,
            answered_by: self.routing.nodes().get(node).copied(),
            attempts: request.attempts,
        });
    }

    /// A replica will not execute the current attempt.
    fn on_refusal(&mut self, id: u64, link: Link, status: Status) {
        let Some(request) = self.requests.get(id) else { return };
        request.refusal = Some(status);
        request.unrefused -= 1;
        if status == Status::ShuttingDown {
            self.connections[link.connection].avoid_until = self.now.plus(STOPPING_US);
        }
        self.pause(id);
    }

    /// A replica does not know what became of the current attempt: a retry through another may tell.
    fn on_replica_gave_up(&mut self, link: Link, reply: &ReplyRef<'_>, on: &mut dyn FnMut(Completion<'_>)) {
        let attempts_max = self.options.attempts_max;
        let Some(request) = self.requests.get(reply.id) else { return };
        request.maybe_done = true;
        let node = request.node;
        request.tried.insert(node);
        if request.unrefused >= attempts_max {
            return self.answered(link, reply, Outcome::Ambiguous(Ambiguity::ReplicaTimedOut), on);
        }
        self.pause(reply.id);
    }

    /// A request's whole time is over.
    fn end_in_time(&mut self, id: u64) {
        let Some(request) = self.requests.get(id) else { return };
        let outcome = match (request.place, request.refusal) {
            (Place::Sent(..), _) => Outcome::Ambiguous(Ambiguity::TimedOut),
            (_, Some(refusal)) => refusal_of(request, refusal),
            (_, None) if request.maybe_done => Outcome::Ambiguous(Ambiguity::TimedOut),
            (_, None) => Outcome::Refused(Status::TimeoutNotDone),
        };
        self.end(id, outcome);
    }

    /// Ends a request without an answer, at the next [`Self::deliver_ended`]. Until then nothing sends it again, and only
    /// an answer can still come first.
    fn end(&mut self, id: u64, outcome: Outcome<'static>) {
        if let Some(request) = self.requests.get(id) {
            request.place = Place::Waiting;
        }
        self.requests.wake_at(id, Micros(u64::MAX));
        self.ended.push((id, outcome));
    }

    /// Hands out the requests that ended without an answer.
    pub(super) fn deliver_ended(&mut self, on: &mut dyn FnMut(Completion<'_>)) {
        for (id, outcome) in self.ended.drain(..) {
            let Some(request) = self.requests.close(id) else { continue };
            self.counters.completed += 1;
            on(Completion {
                tag: request.tag,
                op: request.op,
                outcome,
                version: 0,
                slot: 0,
                ballot: 0,
                owner: None,
                answered_by: None,
                attempts: request.attempts,
            });
        }
    }
}

/// What a final refusal of one attempt says of the whole request.
fn refusal_of(request: &Request, status: Status) -> Outcome<'static> {
    if request.maybe_done { Outcome::Ambiguous(Ambiguity::RetryRefused(status)) } else { Outcome::Refused(status) }
}
