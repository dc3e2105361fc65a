//! WPaxos: multi-leader wide-area Paxos with flexible quorums and object stealing.
//!
//! "WPaxos: Wide Area Network Flexible Consensus" (arXiv 1703.08905v4), cited as §; what the paper leaves open is marked
//! *ours* in `docs/protocol.md`. One [`WPaxos`] is one shard of one node:
//!
//! | file | what it does |
//! |---|---|
//! | `message` | the sequence chart and the bytes |
//! | `bounds` | how large everything may be |
//! | `object` | what a node keeps per object |
//! | `phase1` | taking an object: candidate and acceptor |
//! | `phase2` | the accept stream: owner and receiver; `stream` and `inbound` are its two ends' memory |
//! | `requests` | requests that wait, forwarding, and answers |
//! | `read` | reads confirmed by a round |
//! | `probe` | reads of objects that this node has never heard of |
//! | `steal` | policies and Handover |
//! | `catchup` | gaps, state transfer |
//! | `converge` | streams that have ended: orphans, and who is behind |
//! | `membership` | who is alive, who is near |
//! | `takeover` | objects of silent owners |
//! | `replay` | recovery from the log |
//! | `checkpoint` | what a log may begin with |
//! | `versions` | configuration versions, incarnations, who may vote |
//! | `merge` | what a newcomer learns before it votes |
//! | `state` | which states are the same |
//! | `view` | what people ask about objects |
//! | `evidence` | what peers know of an earlier self that had more |
//! | `obligations` | what a frame that leaves rests on |

mod ballot;
mod bounds;
mod catchup;
mod checkpoint;
mod config;
mod converge;
mod evidence;
#[cfg(feature = "sim")]
pub mod forge;
mod forward;
mod inbound;
pub mod invariants;
mod link;
mod membership;
mod merge;
mod message;
mod object;
pub mod obligations;
mod phase1;
mod phase2;
mod probe;
mod read;
mod replay;
mod requests;
mod state;
mod steal;
mod stream;
mod takeover;
#[cfg(test)]
mod tests;
mod versions;
mod view;

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

pub use ballot::Ballot;
pub use config::Config;
use converge::Converge;
use inbound::Inbound;
use link::Link;
use message::StreamId;
use object::{Foreseen, Leading, Object, ObjectIndex, Objects, Role, Source, Tail};
use probe::Probes;
use read::Reads;
use requests::{RequestKey, Requests};
use steal::Distances;
use stream::OwnStream;
use versions::Versions;

use crate::{
    command::Command,
    mutant::Mutant,
    protocol::{Membership, Micros, Outputs, Ownership, Protocol, Record, RecordId, Request, Taking},
    store::{History, ObjectState, Version},
    topology::{NodeIndex, NodeSet},
    wire::{Frame, FrameError, Kind},
};

/// How often requests, orphans and distances are looked at, in microseconds.
const CHECK_US: u64 = 25_000;

/// How many ballots that were heard of may wait for a record that needs them logged before it.
const HEARD_MAX: usize = 4096;

/// What becomes true here when a record of this node's own is durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum OwnRecord {
    /// The owner counts itself for its stream up to this number.
    Stream(u64),
    /// These promises to itself count.
    Promises(Vec<(ObjectIndex, Ballot)>),
}

/// A random stream: splitmix64, seeded, cloned with the state it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

macro_rules! counters {
    ($($name:ident: $doc:literal,)*) => {
        /// What this shard has done since its start.
        #[derive(Clone, Debug, Default)]
        struct Counters {
            $(#[doc = $doc] $name: u64,)*
        }

        impl Counters {
            fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    proposed: "Entries given a number in this node's stream.",
    committed: "Of those, committed.",
    withdrawn: "Of those, withdrawn.",
    batches: "Frames of this node's stream.",
    learned: "Entries of other streams executed.",
    refused: "Entries of other streams refused.",
    refusals: "Refusals of this node's entries.",
    reads: "Reads answered after a round.",
    read_rounds: "Rounds asked.",
    probes: "Frames that asked others for objects not heard of.",
    absent: "Reads of objects that nobody had heard of.",
    rounds_repeated: "Rounds asked again.",
    forwarded: "Requests passed to another node.",
    redirected: "Forwarded requests sent back with the owner's name.",
    overloaded: "Requests refused because too much was in flight.",
    timeouts: "Requests that ended in a time-out.",
    phase1_started: "Phase 1 begun for an object.",
    rounds_exhausted: "Phases 1 not begun because the object's round is at its largest number.",
    phase1_won: "Phase 1 ended in leading.",
    rejected: "Prepares of this node that were beaten.",
    prepares_repeated: "Prepares sent again.",
    promises: "Promises given.",
    deposed: "Leads lost.",
    noops: "Empty slots filled.",
    taken_over: "Slots of earlier owners proposed again.",
    handovers_sent: "Objects offered to another zone.",
    steals: "Offers of another zone's owner followed.",
    installed: "States installed.",
    states_asked: "States asked for.",
    states_sent: "States sent.",
    skips: "Receivers that this node's stream no longer reached back for.",
    taken_from_silent: "Objects of silent owners taken into phase 1 though nobody had asked for them.",
    orphans: "Objects of ended streams taken into phase 1.",
    older_copies: "Connections of members that had lost what they had acked.",
    surveys: "Surveys of peers that had got further in ended streams.",
}

/// One shard of one node.
#[derive(Clone, Debug)]
pub struct WPaxos {
    config: Config,
    objects: Objects,
    /// This node's own stream, and per node its stream as received here.
    stream: OwnStream,
    inbound: Vec<Inbound>,
    links: Vec<Link>,
    requests: Requests,
    reads: Reads,
    probes: Probes,
    distances: Distances,
    random: Random,
    counters: Counters,
    /// Earlier values, if any are kept.
    history: Option<Box<History>>,
    stopping: bool,
    /// Whether a record of an earlier boot is being taken.
    replaying: bool,
    /// Configuration versions, and what this node may do in its own.
    versions: Versions,
    restore: checkpoint::Restore,
    /// Frames of a checkpoint behind the one that was given last: parts of one object.
    unwritten: VecDeque<Bytes>,
    takeover: takeover::Takeover,

    /// Nodes that get the stream at once; the others' frames are held for a while. See `membership`.
    eager: NodeSet,
    /// Everybody is eager: the nearest Q2 does not answer.
    all_eager: bool,
    /// When the watermark last moved, or had nothing to move over.
    progress_at: Micros,
    checked_at: Micros,

    /// The log: the last record handed out, what waits for durability, and records of this turn.
    logged: RecordId,
    own_records: VecDeque<(RecordId, OwnRecord)>,
    records: Vec<Record>,
    own_durable: u64,
    /// The log takes no more for now.
    is_log_full: bool,
    /// Since when no record has become durable though some wait.
    log_waits_since: Option<Micros>,
    /// Ballots heard of in frames that are not logged, since the log last said so.
    heard: Vec<(ObjectIndex, Ballot)>,

    /// Candidacies that are not logged yet, Prepares that leave at the end of the turn, and when to send Prepares again.
    new_candidacies: Vec<(ObjectIndex, Ballot)>,
    unsent_prepares: Vec<(RecordId, Bytes)>,
    prepare_timers: BTreeSet<(Micros, ObjectIndex)>,
    gaps: VecDeque<(Micros, ObjectIndex)>,
    converge: Converge,

    /// What an input leaves to be done at its end.
    orphaned_requests: VecDeque<RequestKey>,
    ready_requests: VecDeque<RequestKey>,
    executable: Vec<ObjectIndex>,

    scratch_keys: Vec<RequestKey>,
    scratch_bytes: Vec<u8>,
    scratch_places: Vec<Foreseen>,
    /// The keys of the requests that come next, as the driver has said.
    foreseen: VecDeque<Foreseen>,
}

impl WPaxos {
    /// A shard that knows nothing yet.
    pub fn new(config: Config, now: Micros) -> Self {
        let nodes = config.nodes.len();
        let link = |node| Link::new(NodeIndex(node as u8), config.shard, config.version, now);
        let boot = if config.has(Mutant::StreamNumbersReused) { 1 } else { config.boot };
        let id = StreamId { incarnation: config.incarnation.into(), boot: boot.into(), version: config.version.into() };
        let mut wpaxos = Self {
            objects: Objects::new(config.seed),
            stream: OwnStream::new(id),
            inbound: vec![Inbound::default(); nodes],
            links: (0..nodes).map(link).collect(),
            requests: Requests::new(),
            reads: Reads::new(),
            probes: Probes::default(),
            distances: Distances::new(config.zones),
            random: Random(config.seed),
            counters: Counters::default(),
            history: config.history.map(|kept| Box::new(History::new(kept.versions_per_key, kept.bytes_max))),
            stopping: false,
            replaying: false,
            versions: Versions::new(nodes, config.version, config.founded.as_ref()),
            restore: checkpoint::Restore::default(),
            unwritten: VecDeque::new(),
            takeover: takeover::Takeover::default(),
            eager: NodeSet::EMPTY,
            all_eager: true,
            progress_at: now,
            checked_at: now,
            logged: RecordId(0),
            own_records: VecDeque::new(),
            records: Vec::new(),
            own_durable: 0,
            is_log_full: false,
            log_waits_since: None,
            heard: Vec::new(),
            new_candidacies: Vec::new(),
            unsent_prepares: Vec::new(),
            prepare_timers: BTreeSet::new(),
            gaps: VecDeque::new(),
            converge: Converge::new(nodes),
            orphaned_requests: VecDeque::new(),
            ready_requests: VecDeque::new(),
            executable: Vec::new(),
            scratch_keys: Vec::new(),
            scratch_bytes: Vec::new(),
            scratch_places: Vec::new(),
            foreseen: VecDeque::new(),
            config,
        };
        wpaxos.learn_matrix();
        wpaxos
    }

    /// The object of a request that may have been foreseen; `make`: made on first sight.
    fn object_ahead(&mut self, key: &[u8], make: bool) -> Option<ObjectIndex> {
        let foreseen = self.foreseen.pop_front().and_then(|foreseen| self.objects.recall(foreseen, key));
        foreseen.or_else(|| if make { Some(self.object_of(key)) } else { self.objects.find(key) })
    }

    /// The object with this key; made on first sight, at its home ballot if it has one.
    fn object_of(&mut self, key: &[u8]) -> ObjectIndex {
        let config = &self.config;
        self.objects.find_or_insert(key, |token| {
            let home = config.home_of(token);
            let home = home.filter(|home| !config.has(Mutant::HomeNotPromised) || *home == config.my_id());
            let promised = home.map_or(Ballot::ZERO, |home| Ballot::new(1, 1, home));
            let may_lead = config.leads_at_home || config.has(Mutant::HomeAfterRestart);
            let leads = home == Some(config.my_id()) && may_lead && config.version == 1;
            let leading = Leading { next_slot: 1, settled: 0, round: 0 };
            Object {
                key: key.into(),
                promised,
                applied: 0,
                state: ObjectState::default(),
                tail: Tail::default(),
                role: if leads { Role::Leading(leading) } else { Role::Idle },
                own_seq: 0,
                rare: None,
            }
        })
    }

    /// Who owns an object, as far as this node knows; nobody at round 0, or when a configuration version has ended its lead.
    fn owner_of(&self, object: ObjectIndex) -> Option<NodeIndex> {
        let promised = self.objects[object].promised;
        let owner = promised.owner().filter(|_| promised.version == self.config.version)?;
        self.config.nodes.binary_search(&owner).ok().map(|place| NodeIndex(place as u8))
    }

    fn log_own(&mut self, frame: Bytes) -> RecordId {
        self.log(self.config.me, frame)
    }

    fn log_received(&mut self, from: NodeIndex, frame: &Frame) {
        self.log(from, frame.bytes.clone());
    }

    fn log(&mut self, from: NodeIndex, frame: Bytes) -> RecordId {
        self.logged.0 += 1;
        self.records.push(Record { id: self.logged, from, frame });
        self.logged
    }

    /// Whether the disk has taken nothing for so long that peers had better not rely on this node.
    fn is_log_stalled(&self, now: Micros) -> bool {
        self.log_waits_since.is_some_and(|since| now.since(since) > self.config.timers.suspect_silent_us)
    }

    fn source_command<'a>(&'a self, source: &'a Source) -> Command<'a> {
        command_of(&self.stream, &self.inbound, source)
    }

    /// Ends every input: what it made executable is executed, whom it made ready is served.
    fn settle(&mut self, now: Micros, out: &mut Outputs) {
        loop {
            if let Some(object) = self.executable.pop() {
                self.after_execution(now, object, out);
            } else if let Some(request) = self.next_request() {
                self.route(now, request);
            } else {
                return;
            }
        }
    }

    /// In the order in which they came, so that what one client asked for one after the other stays so.
    fn next_request(&mut self) -> Option<RequestKey> {
        self.ready_requests.pop_front().or_else(|| self.orphaned_requests.pop_front())
    }

    /// One line per message; what each may do is in its handler.
    fn dispatch(&mut self, now: Micros, from: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError> {
        match frame.kind {
            Kind::AcceptBatch => self.on_accept_batch(now, from, frame, out),
            Kind::Ack | Kind::Resume => self.on_standing(now, from, frame, out),
            Kind::Skip => self.on_skip(now, from, frame),
            Kind::Prepare => self.on_prepares(now, from, frame),
            Kind::Promise => self.on_promises(now, from, frame),
            Kind::Reject => self.on_rejects(now, frame),
            Kind::Forward => self.on_forwards(now, from, frame, out),
            Kind::ForwardReply => self.on_forward_replies(now, from, frame, out),
            Kind::Handover => self.on_handovers(now, from, frame),
            Kind::Confirm => self.on_confirm(from, frame, out),
            Kind::ConfirmReply => self.on_confirm_reply(now, from, frame, out),
            Kind::Probe => self.on_probe(from, frame, out),
            Kind::ProbeReply => self.on_probe_reply(now, from, frame, out),
            Kind::Heartbeat => self.on_heartbeat(now, from, frame),
            Kind::StateRequest => self.on_state_requests(from, frame),
            Kind::State => self.on_states(now, from, frame),
            Kind::CatchUpDone => self.on_catch_up_done(from, frame),
            Kind::Compare => self.on_compare(now, from, frame, out),
            Kind::ListRequest => self.on_list_request(from, frame, out),
            Kind::List => self.on_list(now, from, frame),
            Kind::MergeRequest => self.on_merge_request(from, frame, out),
            Kind::Merge => self.on_merge(now, from, frame, out),
            Kind::Older => self.on_older(from, frame, out),
            _ => Err(self.refuse(frame, "peers do not send this kind")),
        }
    }

    /// When the open batch is to be frozen: at once if none is under way, when that one is committed, or else after a while,
    /// so that batches grow with the load and nothing waits without it; and when the watermark has waited long enough for
    /// a batch to ride in.
    fn seal_at(&self) -> Option<Micros> {
        let linger_us = if self.stream.is_under_way() { self.config.batch.linger_us } else { 0 };
        let open = self.stream.opened_at().map(|at| at.plus(linger_us));
        let unannounced = self.stream.unannounced_since().filter(|_| !self.config.has(Mutant::CommitWaits));
        let commit = unannounced.map(|at| at.plus(self.config.batch.commit_delay_us));
        open.into_iter().chain(commit).min()
    }

    fn refuse(&self, frame: &Frame, what: &'static str) -> FrameError {
        FrameError::Body { kind: frame.kind, bytes: frame.body().len(), what }
    }
}

/// The command that a tail entry refers to.
fn command_of<'a>(stream: &'a OwnStream, inbound: &'a [Inbound], source: &'a Source) -> Command<'a> {
    match source {
        Source::Own(seq) => stream.command(*seq),
        Source::Stream(node, seq) => inbound[node.index()].command(*seq),
        Source::Held(bytes) => Command::view(bytes),
    }
}

impl Protocol for WPaxos {
    fn on_link_up(&mut self, now: Micros, peer: NodeIndex, incarnation: u64, out: &mut Outputs) {
        assert!(peer != self.config.me, "a node has no link to itself");
        if !self.recognise(peer, incarnation) {
            // All that it is told is that it has to be named first.
            self.links[peer.index()].meet_stranger();
            return self.tell_configuration(peer, out);
        }
        self.links[peer.index()].come_up(now);
        self.meet_again(peer);
        self.hasten_candidacies(now);
        self.inbound[peer.index()].ack_due = false;
        self.send_standing(peer, Kind::Resume, out);
        self.choose_eager(now);
        self.settle(now, out);
    }

    fn on_link_down(&mut self, now: Micros, peer: NodeIndex, out: &mut Outputs) {
        self.links[peer.index()].go_down(now);
        self.part_from(peer);
        self.choose_eager(now);
        self.settle(now, out);
    }

    fn on_frame(&mut self, now: Micros, peer: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError> {
        let link = &mut self.links[peer.index()];
        link.heard_at = now;
        let result = match frame.kind {
            Kind::Configuration => self.on_configuration(now, peer, frame, out),
            Kind::Reconfigure => self.on_reconfigure(now, peer, frame, out),
            // A stranger to this node may know it, and vouch for it.
            Kind::Resume if link.is_stranger() && frame.config_version == self.config.version => {
                self.vouched(now, peer, out);
                Ok(())
            }
            // It has lost what it promised: nothing that it says counts.
            _ if link.is_disowned() => Ok(()),
            // A stranger, or what is left of a connection that has ended with its version.
            _ if !link.is_up() => Ok(()),
            // Whoever is behind adopts, and then makes a new connection.
            _ if frame.config_version != self.config.version && !self.config.has(Mutant::LowerVersionsTaken) => {
                if frame.config_version < self.config.version {
                    self.tell_configuration(peer, out);
                }
                Ok(())
            }
            _ => {
                self.vouched(now, peer, out);
                self.dispatch(now, peer, frame, out)
            }
        };
        self.settle(now, out);
        result
    }

    fn foresee(&mut self, keys: &mut dyn Iterator<Item = &[u8]>) {
        let mut places = std::mem::take(&mut self.scratch_places);
        self.objects.foresee(keys, &mut places);
        self.foreseen.clear();
        self.foreseen.extend(&places);
        self.scratch_places = places;
    }

    fn on_request(&mut self, now: Micros, request: Request<'_>, out: &mut Outputs) {
        self.accept_request(now, request, out);
    }

    fn on_durable(&mut self, now: Micros, record: RecordId, out: &mut Outputs) {
        self.log_waits_since = (record < self.logged).then_some(now);
        while self.own_records.front().is_some_and(|(own, _)| *own <= record) {
            match self.own_records.pop_front().expect("just seen").1 {
                OwnRecord::Stream(seq) => self.own_durable = self.own_durable.max(seq),
                OwnRecord::Promises(promises) => {
                    for (object, ballot) in promises {
                        self.on_own_promise(now, object, ballot);
                    }
                }
            }
        }
        self.advance_commit(now, out);
        self.settle(now, out);
    }

    fn on_replay(&mut self, now: Micros, record: &Record) -> Result<(), FrameError> {
        self.replay(now, record)
    }

    fn begin_checkpoint(&mut self, frames: &mut Vec<Bytes>) {
        assert!(self.records.is_empty(), "a checkpoint stands between two turns");
        self.unwritten.clear();
        self.put_standing(frames);
    }

    fn checkpoint_objects(&mut self, cursor: u64, bytes: usize) -> (Bytes, Option<u64>) {
        let (frame, next) = self.put_objects(cursor, bytes);
        if next.is_none() {
            self.claim_committed();
        }
        (frame, next)
    }

    fn on_restore(&mut self, now: Micros, frame: &Bytes) -> Result<(), FrameError> {
        self.restore(now, frame)
    }

    fn end_restore(&mut self, _now: Micros, record: RecordId) {
        self.finish_restore(record);
    }

    fn end_replay(&mut self, now: Micros) {
        self.finish_replay(now);
        self.forget_at_restart();
    }

    fn on_tick(&mut self, now: Micros, out: &mut Outputs) {
        self.send_heartbeats(now, out);
        self.check_candidacies(now, out);
        self.check_gaps(now);
        self.check_rounds(now, out);
        self.check_probes(now, out);
        self.pump_catch_up(out);
        self.pump_survey(out);
        self.pump_merge(now, out);
        self.check_progress(now);
        if now.since(self.checked_at) >= CHECK_US {
            self.checked_at = now;
            self.check_requests(now, out);
            self.watch_peers(now);
            self.check_orphans(now);
            self.check_takeover(now);
            self.check_convergence(now, out);
            self.check_versions(now, out);
            self.choose_eager(now);
            self.trim_stream();
        }
        self.settle(now, out);
    }

    fn flush(&mut self, now: Micros, out: &mut Outputs) {
        self.is_log_full = out.room[self.config.me.index()] == 0;
        self.settle(now, out);
        self.send_prepares(out);
        if self.seal_at().is_some_and(|at| at <= now) {
            self.seal_batch();
        }
        self.ask_round(now, out);
        self.send_probes(now, out);
        self.settle(now, out);
        if self.heard.len() > HEARD_MAX {
            self.log_raises();
        }
        if !self.records.is_empty() {
            self.log_waits_since.get_or_insert(now);
            out.records.append(&mut self.records);
        }
        self.send_acks(now, out);
        self.send_stream(now, out);
        self.links.iter_mut().for_each(|link| link.flush(out));
    }

    fn flush_at(&self) -> Option<Micros> {
        let linger_us = self.config.batch.linger_us;
        let (round, probe) = (self.reads.ask_at(linger_us), self.probes.ask_at(linger_us));
        self.seal_at().into_iter().chain(round).chain(probe).min()
    }

    fn is_idle(&self) -> bool {
        self.requests.len() == 0
            && self.reads.is_empty()
            && self.probes.is_empty()
            && self.stream.last_seq() == self.stream.committed
            && self.flush_at().is_none()
            && self.prepare_timers.is_empty()
            && self.converge.is_idle()
            && !self.versions.is_learner()
            && self.links.iter().all(|link| link.held_since.is_none() && link.catch_up.is_none())
    }

    fn on_stop(&mut self, _now: Micros, out: &mut Outputs) {
        self.refuse_all(out);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.counters.list();
        list.push(("objects", self.objects.len() as u64));
        list.push(("waiting_requests", self.requests.len() as u64));
        if let Some(history) = &self.history {
            list.push(("history_bytes", history.bytes() as u64));
        }
        list
    }

    fn is_taken(&self, now: Micros, peer: NodeIndex, incarnation: u64) -> bool {
        self.links[peer.index()].is_up() && !self.is_suspected(now, peer) && !self.versions.is(peer, incarnation)
    }

    fn membership(&self) -> Option<Membership> {
        Some(self.membership_view())
    }

    fn history(&self, key: &[u8]) -> Option<Vec<Version>> {
        self.versions_of(key)
    }

    fn ownership(&self, key: &[u8]) -> Option<Ownership> {
        self.objects.find(key).map(|object| self.ownership_of(object))
    }

    fn ownerships(&self, after: Option<&[u8]>, limit: usize) -> Vec<Ownership> {
        self.ownerships_after(after, limit)
    }

    fn take(&mut self, now: Micros, key: &[u8], out: &mut Outputs) -> Taking {
        let taking = self.take_object(now, key);
        self.settle(now, out);
        taking
    }
}
