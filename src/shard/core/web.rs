//! What a shard does for HTTP between two awaits: requests in, questions answered.

use std::rc::Rc;

use bytes::BytesMut;
use xxhash_rust::xxh3::xxh3_64;

use super::Core;
use crate::{
    command::{Action, Command, CommandError, NewCommand, Status},
    protocol::{Membership, Micros, Protocol, ReadMode, ReplyTo, Request, Taking, Vote},
    shard::{
        budget::Held,
        clients::Waiting,
        mailbox::LentRequest,
        node::Node,
        web::{Answer, LearnerStatus, MembershipStatus, Outcome, Question, ShardStatus, Ticket},
    },
    topology::{NodeIndex, ShardId, shard_of, token_of},
};

/// Commands of HTTP requests are encoded into pieces of this many bytes, one behind the other. A piece lives as long as any
/// of its commands.
const PIECE_BYTES: usize = 16 << 10;
/// How many clients a shard is for requests that name none.
const CLIENTS: usize = 256;

/// Identities for requests that name none.
///
/// An object remembers the ids of a client in a window (`store::Recent`), so one key's ids must lie close together: each
/// key belongs to one of a row of clients, each of which counts for itself.
#[derive(Debug)]
pub(super) struct Ids {
    first_client: u64,
    last: Vec<u64>,
}

impl Ids {
    pub(super) fn new(node: &Node, shard: ShardId) -> Self {
        let text = format!("http {:016x} {} {} {}", node.incarnation, node.boot, node.index.0, shard.0);
        // Far from overflow, and not 0.
        Self { first_client: (xxh3_64(text.as_bytes()) >> 1).max(1), last: vec![0; CLIENTS] }
    }

    fn next(&mut self, token: u64) -> (u64, u64) {
        let place = (token % CLIENTS as u64) as usize;
        self.last[place] += 1;
        (self.first_client + place as u64, self.last[place])
    }
}

/// A command that came over HTTP.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Asked<'a> {
    /// The client and the command's id, if the request names them.
    pub(in crate::shard) identity: Option<(u64, u64)>,
    /// Whether the client says that it has sent the command before.
    pub(in crate::shard) retry: bool,
    pub(in crate::shard) key: &'a [u8],
    pub(in crate::shard) action: Action<'a>,
}

impl<P: Protocol> Core<P> {
    /// A request came over HTTP: it is answered through `ticket`, perhaps at once.
    ///
    /// # Errors
    /// If the key or the value is too long or empty; the ticket is unused then.
    pub(in crate::shard) fn web_request(&mut self, asked: &Asked<'_>, ticket: Ticket) -> Result<(), CommandError> {
        let now = self.node.now();
        let token = token_of(asked.key);
        let (client, id) = asked.identity.unwrap_or_else(|| self.web_ids.next(token));
        let command = NewCommand { client, id, retry: asked.retry, key: asked.key, action: asked.action };
        self.make_room(command.encoded_bytes());
        command.encode(&mut self.web_buffer)?;
        let frame = self.web_buffer.split().freeze();
        self.counters.web_requests += 1;
        if self.stop_by.is_some() {
            self.refuse_web(&ticket, Status::ShuttingDown);
            return Ok(());
        }
        let zone = self.node.member().zone;
        let to = shard_of(token, self.node.cluster.shards);
        if self.budget.is_spent() {
            self.counters.requests_over_memory += 1;
            self.refuse_web(&ticket, Status::Overloaded);
            return Ok(());
        }
        // A small command keeps the piece that it lies in.
        let held = Held::new(Some(Rc::clone(&self.budget)), frame.len().max(PIECE_BYTES));
        if to == self.shard {
            let reply_to = ReplyTo(self.waiting.insert(Waiting::Web(ticket, held)).to_token());
            let (read, command) = (ReadMode::default(), Command::view(&frame));
            let request = Request { reply_to, zone, read, command, frame: &frame };
            self.protocol.on_request(now, request, &mut self.out);
            if self.out.value_bytes.len() >= super::VALUE_BYTES_MAX {
                self.route_replies();
            }
            return Ok(());
        }
        if self.lent[usize::from(to.0)] >= self.node.mailboxes.depth() {
            self.refuse_web(&ticket, Status::Overloaded);
            return Ok(());
        }
        let token = self.waiting.insert(Waiting::Web(ticket, held)).to_token();
        self.lent[usize::from(to.0)] += 1;
        self.mailed[usize::from(to.0)] = true;
        self.counters.requests_lent += 1;
        let lent = LentRequest { token, zone, read: ReadMode::default(), command: frame };
        self.node.mailboxes.lend(self.shard, to, lent);
        Ok(())
    }

    fn make_room(&mut self, bytes: usize) {
        if self.web_buffer.capacity() < bytes {
            self.web_buffer = BytesMut::with_capacity(bytes.max(PIECE_BYTES));
        }
    }

    fn refuse_web(&mut self, ticket: &Ticket, status: Status) {
        self.counters.requests_refused += 1;
        ticket.give(Outcome { status, ..Outcome::default() });
    }

    /// Answers a question about this shard.
    pub(in crate::shard) fn answer_question(&mut self, now: Micros, question: &Question) -> Answer {
        match question {
            Question::Status => Answer::Status(self.status()),
            Question::History(key) => Answer::History(self.protocol.history(key)),
            Question::Owner(key) => Answer::Owners(self.protocol.ownership(key).into_iter().collect()),
            Question::Owners { after, limit } => Answer::Owners(self.protocol.ownerships(after.as_deref(), *limit)),
            Question::Take(key) => Answer::Taking(match self.stop_by {
                Some(_) => Taking::Refused("this replica is stopping"),
                None => self.protocol.take(now, key, &mut self.out),
            }),
            Question::Faults => {
                self.refresh_faults(now);
                Answer::Done
            }
        }
    }

    fn status(&mut self) -> ShardStatus {
        let up = |peer: NodeIndex| self.node.is_link_up(self.shard, peer);
        let peers = (0..self.node.cluster.nodes.len()).map(|peer| NodeIndex(peer as u8));
        let peers = peers.filter(|peer| *peer != self.node.index);
        let links = peers.map(|peer| (self.node.cluster.member(peer).id.to_string(), up(peer))).collect();
        let membership = self.protocol.membership().map(|membership| self.membership_status(&membership));
        ShardStatus { shard: self.shard.0, links, waiting: self.waiting.len(), membership, counters: self.stats() }
    }

    fn membership_status(&self, membership: &Membership) -> MembershipStatus {
        let cluster = &self.node.cluster;
        let (vote, learner) = match membership.vote {
            Vote::Voter => ("votes", None),
            Vote::Newcomer => ("new", None),
            Vote::Refused => ("refused", None),
            Vote::Learner { merged, may_end } => {
                let learned_from = merged.iter().map(|member| cluster.member(member).id.to_string()).collect();
                ("learner", Some(LearnerStatus { learned_from, others: cluster.nodes.len() - 1, may_end }))
            }
        };
        MembershipStatus { version: membership.version, vote, learner }
    }
}
