//! Directed tests: what each message does, on clusters whose links the test holds in its hands. What only many histories
//! find is in `crate::sim`.

mod encoding;
#[cfg(feature = "sim")]
mod newcomers;
#[cfg(feature = "sim")]
mod planted;
mod probes;
mod recovery;
mod slow_disks;
mod withdrawn;

use std::collections::VecDeque;

use bytes::Bytes;
use zerocopy::{IntoBytes, little_endian::U64};

use super::{
    Ballot, Config, Kind, StreamId, WPaxos,
    message::{
        BatchHead, EntryHead, Objection, PromiseHead, Reader, Refusal, RejectHead, RoundHead, Standing, TailHead,
    },
};
use crate::{
    command::{Action, Command, NewCommand, Status},
    protocol::{Micros, Outputs, Protocol, ReadMode, Record, Reply, ReplyTo, Request},
    topology::{Cluster, NodeId, NodeIndex, QuorumSpec, StealPolicy},
    tuning::Tuning,
    wire::{self, Frame},
};

/// Nodes whose log is durable at once, and links that deliver when they are told to.
struct Bench {
    nodes: Vec<WPaxos>,
    outs: Vec<Outputs>,
    now: Micros,
    /// By sender, then receiver.
    links: Vec<Vec<VecDeque<Frame>>>,
    replies: Vec<(u64, Status, u64)>,
    configs: Vec<Config>,
    logs: Vec<Vec<Record>>,
}

impl Bench {
    /// Zones of these sizes.
    fn new(sizes: &[usize], change: impl Fn(&mut Cluster, &mut Tuning)) -> Self {
        let address = "127.0.0.1:1".parse().unwrap();
        let mut cluster = Cluster::local("bench", sizes.iter().map(|size| vec![vec![address]; *size]).collect());
        let mut tuning = Tuning::default();
        // Exact outputs need exact times: nothing is held for company, and learners wait as long as commits do.
        (tuning.batch.linger_us, tuning.batch.learner_delay_us) = (0, 1000);
        // Nor does anybody begin anything that nobody has asked for.
        tuning.timers.takeover_delay_us = u64::MAX;
        cluster.quorum = QuorumSpec::Majority;
        cluster.steal = StealPolicy::None;
        change(&mut cluster, &mut tuning);
        let count = cluster.nodes.len();
        let now = Micros(10_000_000);
        let founded = Some((0..count).map(|node| 100 + node as u64).collect::<Vec<_>>());
        let config = |node| {
            let config = Config::new(&cluster, &tuning, NodeIndex(node as u8), 0, 100 + node as u64).unwrap();
            Config { founded: founded.clone(), ..config }
        };
        let configs: Vec<Config> = (0..count).map(config).collect();
        let mut bench = Self {
            nodes: configs.iter().map(|config| WPaxos::new(config.clone(), now)).collect(),
            outs: (0..count).map(|_| Outputs::new(count)).collect(),
            now,
            links: vec![vec![VecDeque::new(); count]; count],
            replies: Vec::new(),
            logs: vec![Vec::new(); count],
            configs,
        };
        for a in 0..count {
            for b in 0..a {
                bench.connect(a, b);
            }
        }
        bench.settle();
        bench
    }

    /// Three nodes in one zone, majorities, nobody owns anything.
    fn three() -> Self {
        Self::new(&[3], |_, _| {})
    }

    fn flush(&mut self, node: usize) {
        let out = &mut self.outs[node];
        loop {
            self.nodes[node].flush(self.now, out);
            let Some(last) = out.records.last().map(|record| record.id) else { break };
            self.logs[node].append(&mut out.records);
            self.nodes[node].on_durable(self.now, last, out);
        }
        for send in out.sends.drain(..) {
            self.links[node][send.to.index()].push_back(wire::parse(send.frame).unwrap());
        }
        self.replies.extend(out.replies.drain(..).map(|Reply { to, status, version, .. }| (to.0, status, version)));
        out.value_bytes.clear();
        self.nodes[node].check_invariants();
    }

    fn connect(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            let (index, incarnation) = (NodeIndex(peer as u8), self.configs[peer].incarnation);
            self.nodes[node].on_link_up(self.now, index, incarnation, &mut self.outs[node]);
            self.flush(node);
        }
    }

    /// Cuts a link; what was on it is lost.
    fn cut(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            self.links[node][peer].clear();
            self.nodes[node].on_link_down(self.now, NodeIndex(peer as u8), &mut self.outs[node]);
            self.flush(node);
        }
    }

    fn give(&mut self, from: usize, to: usize, frame: &Frame) {
        self.nodes[to].on_frame(self.now, NodeIndex(from as u8), frame, &mut self.outs[to]).unwrap();
        self.flush(to);
    }

    /// Delivers what is on one link.
    fn deliver(&mut self, from: usize, to: usize) {
        for frame in std::mem::take(&mut self.links[from][to]) {
            self.give(from, to, &frame);
        }
    }

    /// Takes what is on one link.
    fn take(&mut self, from: usize, to: usize) -> Vec<Frame> {
        std::mem::take(&mut self.links[from][to]).into()
    }

    /// Delivers everything but on links between the two of each pair, until nothing moves and no timer is close.
    fn settle_but(&mut self, held: &[(usize, usize)]) {
        for _ in 0..40 {
            let mut moved = true;
            let mut rounds = 0;
            while moved {
                rounds += 1;
                let all = self.links.iter().flatten().flatten().map(|frame| frame.kind);
                assert!(rounds < 10_000, "it never ends: {:?}", all.collect::<Vec<_>>());
                moved = false;
                for (from, to) in self.pairs() {
                    if !held.contains(&(from, to)) && !self.links[from][to].is_empty() {
                        self.deliver(from, to);
                        moved = true;
                    }
                }
            }
            self.pass(1000);
        }
    }

    fn settle(&mut self) {
        self.settle_but(&[]);
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.nodes.len();
        (0..count * count).map(|pair| (pair / count, pair % count)).collect()
    }

    /// Time passes for everybody.
    fn pass(&mut self, micros: u64) {
        self.now = self.now.plus(micros);
        for node in 0..self.nodes.len() {
            self.nodes[node].on_tick(self.now, &mut self.outs[node]);
            self.flush(node);
        }
    }

    fn ask(&mut self, node: usize, token: u64, action: Action<'_>) {
        self.ask_as(node, token, ReadMode::Confirm, action);
        self.flush(node);
    }

    fn ask_as(&mut self, node: usize, token: u64, read: ReadMode, action: Action<'_>) {
        self.ask_of(node, 7, token, read, action);
    }

    fn ask_of(&mut self, node: usize, client: u64, token: u64, read: ReadMode, action: Action<'_>) {
        let mut bytes = Vec::new();
        NewCommand { client, id: token, retry: false, key: b"k", action }.encode(&mut bytes).unwrap();
        let frame = Bytes::from(bytes);
        let zone = self.nodes[node].config.my_zone();
        let command = Command::parse(&frame).unwrap();
        let request = Request { reply_to: ReplyTo(token), zone, read, command, frame: &frame };
        self.nodes[node].on_request(self.now, request, &mut self.outs[node]);
    }

    fn promised(&self, node: usize) -> Ballot {
        self.nodes[node].objects().next().map_or(Ballot::ZERO, |object| object.promised)
    }

    fn leads(&self, node: usize) -> bool {
        self.nodes[node].objects().next().is_some_and(|object| object.leads)
    }

    /// What is executed, the value, and the version.
    fn known(&self, node: usize) -> (u64, Option<Vec<u8>>, u64) {
        let object = self.nodes[node].objects().next().expect("it has heard of the object");
        (object.applied, object.state.value.as_ref().map(|value| value.to_vec()), object.state.version)
    }

    fn counter(&self, node: usize, name: &str) -> u64 {
        let counters = self.nodes[node].counters();
        counters.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }
}

fn of_kind(frames: &[Frame], kind: Kind) -> Vec<Frame> {
    frames.iter().filter(|frame| frame.kind == kind).cloned().collect()
}

fn ballot(round: u64, zone: u8, node: u8) -> Ballot {
    Ballot::new(1, round, NodeId::new(zone, node))
}

/// Up to which number, and what is refused.
fn standing(frame: &Frame) -> (u64, u64, Vec<(u64, u64)>) {
    let mut reader = Reader::new(frame);
    let head: &Standing = reader.take().unwrap();
    let refusals: &[Refusal] = reader.take_many(head.refusals.get() as usize).unwrap();
    let refusals = refusals.iter().map(|refusal| (refusal.seq.get(), refusal.ballot.get()));
    (head.last_seq.get(), head.watermark.get(), refusals.collect())
}

/// The watermark's move and its exceptions.
fn commits(frame: &Frame) -> (u64, u64, Vec<u64>) {
    let mut reader = Reader::new(frame);
    let head: &BatchHead = reader.take().unwrap();
    reader.bytes(head.entries_bytes.get() as usize).unwrap();
    let withdrawn: &[U64] = reader.take_many(head.withdrawn.get() as usize).unwrap();
    (head.commit_from.get(), head.commit_to.get(), withdrawn.iter().map(|seq| seq.get()).collect())
}

/// A batch of one stream, made by hand: (slot, ballot, value) each.
fn batch(owner: u64, first_seq: u64, entries: &[(u64, Ballot, &[u8])]) -> Frame {
    batch_of_boot(1, owner, first_seq, entries)
}

fn batch_of_boot(boot: u32, owner: u64, first_seq: u64, entries: &[(u64, Ballot, &[u8])]) -> Frame {
    let mut rows = Vec::new();
    for (slot, ballot, value) in entries {
        let mut command = Vec::new();
        let put = Action::Put(value);
        NewCommand { client: 9, id: *slot, retry: false, key: b"k", action: put }.encode(&mut command).unwrap();
        let bytes = (command.len() as u32).into();
        let head =
            EntryHead { slot: (*slot).into(), ballot: ballot.number.into(), command_bytes: bytes, empty: 0.into() };
        rows.extend_from_slice(head.as_bytes());
        rows.extend_from_slice(&command);
    }
    let head = BatchHead {
        stream: StreamId { incarnation: (100 + owner).into(), boot: boot.into(), version: 1.into() },
        first_seq: first_seq.into(),
        commit_from: 0.into(),
        commit_to: 0.into(),
        entries: (entries.len() as u32).into(),
        entries_bytes: (rows.len() as u32).into(),
        withdrawn: 0.into(),
        reserved: 0.into(),
    };
    let body = [head.as_bytes(), &rows].concat();
    wire::parse(wire::frame(Kind::AcceptBatch, 0, 1, &body)).unwrap()
}

#[test]
fn a_write_is_decided_by_a_majority_and_learned_by_all() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    let prepares = bench.take(0, 1);
    assert_eq!(of_kind(&prepares, Kind::Prepare).len(), 1);
    bench.give(0, 1, &prepares[0]);
    assert_eq!((bench.promised(1), bench.leads(0)), (ballot(1, 1, 1), false));
    bench.deliver(1, 0);
    assert!(bench.leads(0), "two promises of three, its own included");
    bench.deliver(0, 1);
    assert_eq!(bench.replies, []);
    bench.deliver(1, 0);
    assert_eq!(bench.replies, [(1, Status::Ok, 1)]);
    bench.settle();
    for node in 0..3 {
        assert_eq!(bench.known(node), (1, Some(b"a".to_vec()), 1), "node {node}");
    }
}

#[test]
fn a_promise_has_the_state_that_the_candidate_lacks_and_the_tail() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle_but(&[(0, 2)]);
    bench.ask(0, 2, Action::Put(b"b"));
    bench.deliver(0, 1);
    bench.links[1][0].clear();
    bench.cut(0, 2);
    bench.pass(200_000);
    // Node 2 has executed nothing; it takes node 0 for dead.
    bench.ask(2, 3, Action::Put(b"c"));
    let prepare = of_kind(&bench.take(2, 1), Kind::Prepare).remove(0);
    bench.take(1, 2);
    bench.give(2, 1, &prepare);
    let promise = of_kind(&bench.take(1, 2), Kind::Promise).remove(0);
    let mut reader = Reader::new(&promise);
    let head: &PromiseHead = reader.take().unwrap();
    assert_eq!((head.ballot.get(), head.applied.get(), head.tail.get()), (ballot(1, 1, 3).number, 1, 1));
    assert_eq!(reader.key(head.key_bytes), Ok(b"k".as_slice()));
    assert_eq!(reader.state(head.state_bytes, 1).unwrap().value.as_deref(), Some(&b"a"[..]));
    let tail: &TailHead = reader.take().unwrap();
    assert_eq!((tail.slot.get(), tail.ballot.get(), tail.decided), (2, ballot(1, 1, 1).number, 0));
    bench.give(1, 2, &promise);
    bench.settle_but(&[(0, 2), (2, 0)]);
    assert_eq!(bench.known(2), (3, Some(b"c".to_vec()), 3), "state, taken-over slot and its own command");
    assert_eq!(bench.replies, [(1, Status::Ok, 1), (3, Status::Ok, 3)]);
}

#[test]
fn a_lower_ballot_is_rejected_with_the_one_that_beat_it() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.ask(2, 2, Action::Put(b"b"));
    bench.deliver(2, 1);
    bench.take(1, 2);
    bench.deliver(0, 1);
    let answers = bench.take(1, 0);
    let reject = of_kind(&answers, Kind::Reject).remove(0);
    let mut reader = Reader::new(&reject);
    let head: &RejectHead = reader.take().unwrap();
    assert_eq!((head.ballot.get(), head.higher.get()), (ballot(1, 1, 1).number, ballot(1, 1, 3).number));
    bench.give(1, 0, &reject);
    assert_eq!(bench.promised(0), ballot(1, 1, 3));
    assert_eq!(of_kind(&bench.take(0, 2), Kind::Forward).len(), 1, "the request goes to the winner");
}

#[test]
fn a_prepare_is_repeated_on_new_connections_only() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    let prepares = |bench: &mut Bench, to| of_kind(&bench.take(0, to), Kind::Prepare).len();
    assert_eq!((prepares(&mut bench, 1), prepares(&mut bench, 2)), (1, 1));
    for _ in 0..20 {
        bench.pass(100_000);
    }
    assert_eq!((prepares(&mut bench, 1), prepares(&mut bench, 2)), (0, 0), "the links last: it is under way");
    bench.cut(0, 2);
    bench.connect(0, 2);
    bench.pass(1000);
    assert_eq!((prepares(&mut bench, 1), prepares(&mut bench, 2)), (0, 1));
    bench.pass(1_000_000);
    assert_eq!(prepares(&mut bench, 2), 0);
    bench.cut(0, 1);
    bench.connect(0, 1);
    bench.settle();
    assert!(bench.leads(0), "however long it took");
}

#[test]
fn an_overtaken_offer_tells_of_the_newer_ballot() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    let offer = |ballot: Ballot| {
        let body = [super::read::key_ballot_head(ballot, b"k").as_bytes(), b"k"].concat();
        wire::parse(wire::frame(Kind::Handover, 0, 1, &body)).unwrap()
    };
    bench.give(2, 1, &offer(ballot(1, 1, 1)));
    assert_eq!(bench.promised(1), ballot(2, 1, 2), "an offer is followed");
    bench.settle();
    assert!(bench.leads(1));
    bench.give(2, 1, &offer(ballot(2, 1, 2)));
    assert!(bench.leads(1), "an owner has nothing to take over");
    bench.give(2, 1, &offer(ballot(1, 1, 1)));
    let reject = of_kind(&bench.take(1, 2), Kind::Reject).remove(0);
    assert_eq!(Reader::new(&reject).take::<RejectHead>().unwrap().higher.get(), ballot(2, 1, 2).number);
    // An owner that has restarted leads no more: asked at whatever ballot, it takes its object again.
    bench.nodes[1].depose(bench.now, super::ObjectIndex(0));
    bench.give(2, 1, &offer(ballot(1, 1, 1)));
    bench.settle();
    assert!(bench.leads(1) && bench.promised(1) > ballot(2, 1, 2));
}

#[test]
fn accepting_raises_the_promise() {
    let mut bench = Bench::three();
    bench.give(0, 1, &batch(0, 1, &[(1, ballot(5, 1, 1), b"a")]));
    assert_eq!(bench.promised(1), ballot(5, 1, 1));
    bench.give(2, 1, &batch(2, 1, &[(1, ballot(4, 1, 3), b"b")]));
    let (last, _, refusals) = standing(&bench.take(1, 2)[0]);
    assert_eq!((last, refusals), (1, vec![(1, ballot(5, 1, 1).number)]));
    assert_eq!(bench.nodes[1].accepted(b"k")[0].ballot, ballot(5, 1, 1));
}

#[test]
fn refusals_stand_in_every_ack_and_every_resume() {
    let mut bench = Bench::three();
    bench.give(0, 1, &batch(0, 1, &[(1, ballot(5, 1, 1), b"a")]));
    bench.give(2, 1, &batch(2, 1, &[(1, ballot(4, 1, 3), b"b")]));
    bench.give(2, 1, &batch(2, 2, &[(2, ballot(6, 1, 3), b"c"), (3, ballot(6, 1, 3), b"d")]));
    let refused = vec![(1, ballot(5, 1, 1).number)];
    assert_eq!(standing(bench.take(1, 2).last().unwrap()), (3, 0, refused.clone()));
    bench.nodes[1].on_link_down(bench.now, NodeIndex(2), &mut bench.outs[1]);
    bench.nodes[1].on_link_up(bench.now, NodeIndex(2), 102, &mut bench.outs[1]);
    bench.flush(1);
    let frames = bench.take(1, 2);
    assert_eq!((frames[0].kind, standing(&frames[0])), (Kind::Resume, (3, 0, refused)));
}

/// Node 0 leads; node 2 prepares at node 1 only; node 0's next entry reaches node 1 afterwards.
fn refused_at_one() -> Bench {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    let object = bench.nodes[2].objects.find(b"k").unwrap();
    bench.nodes[2].start_phase1(bench.now, object, None);
    bench.flush(2);
    bench.deliver(2, 1);
    bench.take(1, 2);
    bench.ask(0, 2, Action::Put(b"b"));
    bench.deliver(0, 1);
    bench
}

#[test]
fn a_refusal_withdraws_the_entry_and_ends_the_lead() {
    let mut bench = refused_at_one();
    assert!(bench.leads(0));
    bench.deliver(1, 0);
    assert!(!bench.leads(0));
    assert_eq!((bench.promised(0), bench.counter(0, "withdrawn")), (ballot(2, 1, 3), 1));
    // The number is passed, not committed.
    bench.take(2, 0);
    bench.pass(2000);
    let announced = of_kind(&bench.take(0, 1), Kind::AcceptBatch);
    assert_eq!(commits(announced.last().unwrap()), (1, 2, vec![2]));
    assert_eq!(bench.known(0).0, 1);
    // Whatever becomes of the slot, its request is answered once.
    bench.links[0][1].extend(announced);
    // What was taken off the links of node 2 was lost with their connections.
    for peer in [0, 1] {
        bench.cut(peer, 2);
        bench.connect(peer, 2);
    }
    bench.settle();
    bench.pass(400_000);
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::Ok, 1), (2, Status::Ok, 2)]);
    assert_eq!(bench.known(1), bench.known(0));
}

#[test]
fn who_refused_what_is_committed_executes_the_streams_command() {
    let mut bench = Bench::new(&[3], |cluster, _| cluster.quorum = QuorumSpec::Flexible { q1: 3, q2: 1 });
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    // Node 1 has promised node 2, and holds something else in the slot; node 0 commits alone.
    bench.give(2, 1, &batch(2, 1, &[(2, ballot(9, 1, 3), b"other")]));
    bench.ask(0, 2, Action::Put(b"b"));
    for _ in 0..40 {
        bench.pass(1000);
        bench.deliver(0, 1);
    }
    assert_eq!(bench.counter(1, "refused"), 1);
    assert_eq!(bench.known(1), (2, Some(b"b".to_vec()), 2));
}

#[test]
fn an_empty_slot_is_filled_with_a_noop() {
    let mut bench = Bench::three();
    for node in [1, 2] {
        bench.give(0, node, &batch(0, 1, &[(2, ballot(1, 1, 1), b"b")]));
    }
    bench.cut(0, 1);
    bench.cut(0, 2);
    bench.pass(200_000);
    bench.ask(2, 1, Action::Put(b"c"));
    bench.settle();
    assert_eq!((bench.counter(2, "noops"), bench.counter(2, "taken_over")), (1, 1));
    assert_eq!(bench.known(1), (3, Some(b"c".to_vec()), 2));
}

#[test]
fn who_is_behind_what_is_kept_is_brought_up_to_date_by_state() {
    let mut bench = Bench::new(&[3], |_, tuning| tuning.flow.stream_retain_bytes = 0);
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.cut(0, 2);
    for token in 2..9 {
        bench.ask(0, token, Action::Put(&[token as u8; 10]));
        bench.settle();
    }
    assert_eq!(bench.known(2).0, 1);
    bench.connect(0, 2);
    bench.settle();
    assert!(bench.counter(0, "skips") > 0 && bench.counter(2, "installed") > 0);
    assert_eq!(bench.known(2), bench.known(0));
    assert_eq!(bench.nodes[2].inbound[0].behind_from, 0, "nothing is missing any more");
}

#[test]
fn a_link_that_is_too_slow_for_what_is_kept_goes_on_with_state() {
    let mut bench = Bench::new(&[3], |_, tuning| tuning.flow.stream_retain_bytes = 0);
    bench.outs[0].room[2] = 0;
    for token in 1..9 {
        bench.ask(0, token, Action::Put(&[token as u8; 10]));
        bench.settle();
    }
    assert_eq!(bench.nodes[2].inbound[0].last_seq, 0);
    bench.outs[0].room[2] = usize::MAX;
    bench.settle();
    assert_eq!((bench.known(2), bench.counter(0, "skips")), (bench.known(0), 1));
    assert_eq!(bench.nodes[2].inbound[0].behind_from, 0, "nothing is missing any more");
}

#[test]
fn what_is_withdrawn_is_announced_before_it_is_forgotten() {
    // Acked by all and committed past, but not announced: a frame that is trimmed now takes the exceptions with it.
    let slow_commits = |_: &mut Cluster, tuning: &mut Tuning| tuning.batch.commit_delay_us = 60_000;
    let mut bench = Bench::new(&[3], slow_commits);
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.pass(100_000);
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    let object = bench.nodes[0].objects.find(b"k").unwrap();
    bench.nodes[0].raise(bench.now, object, ballot(2, 1, 3));
    bench.deliver(0, 1);
    bench.deliver(0, 2);
    bench.deliver(1, 0);
    bench.deliver(2, 0);
    assert_eq!(bench.nodes[0].stream.committed, 2);
    bench.pass(30_000);
    bench.take(0, 1);
    bench.pass(40_000);
    let announced = of_kind(&bench.take(0, 1), Kind::AcceptBatch);
    assert_eq!(announced.iter().map(commits).collect::<Vec<_>>(), [(1, 2, vec![2])]);
}

#[test]
fn an_objection_to_a_read_deposes_the_owner() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.give(2, 1, &batch(2, 1, &[(2, ballot(9, 1, 3), b"b")]));
    bench.take(1, 2);
    bench.ask(0, 2, Action::Get);
    bench.take(0, 2);
    bench.deliver(0, 1);
    let reply = of_kind(&bench.take(1, 0), Kind::ConfirmReply).remove(0);
    let mut reader = Reader::new(&reply);
    let _: &RoundHead = reader.take().unwrap();
    let objection: &Objection = reader.take().unwrap();
    assert_eq!((objection.index.get(), objection.ballot.get()), (0, ballot(9, 1, 3).number));
    bench.give(1, 0, &reply);
    assert_eq!((bench.leads(0), bench.promised(0)), (false, ballot(9, 1, 3)));
    assert_eq!(bench.replies, [(1, Status::Ok, 1)], "the read waits for the new owner");
    assert_eq!(of_kind(&bench.take(0, 2), Kind::Forward).len(), 1);
}

#[test]
fn a_read_waits_until_what_was_taken_over_is_executed() {
    let mut bench = Bench::three();
    for node in [1, 2] {
        bench.give(0, node, &batch(0, 1, &[(1, ballot(1, 1, 1), b"a")]));
    }
    bench.cut(0, 1);
    bench.cut(0, 2);
    bench.pass(200_000);
    bench.ask(2, 1, Action::Get);
    bench.deliver(2, 1);
    bench.deliver(1, 2);
    assert!(bench.leads(2));
    assert_eq!(of_kind(&bench.take(2, 1), Kind::Confirm).len(), 0, "no round before the slot is executed");
    bench.pass(200_000);
    bench.cut(1, 2);
    bench.connect(1, 2);
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::Ok, 1)]);
}

#[test]
fn too_many_requests_are_refused() {
    let mut bench = Bench::new(&[3], |_, tuning| tuning.flow.requests_max = 2);
    for token in 1..4 {
        bench.ask(0, token, Action::Put(b"a"));
    }
    assert_eq!(bench.replies, [(3, Status::Overloaded, 0)]);
    bench.settle();
    assert_eq!(bench.replies[1..], [(1, Status::Ok, 1), (2, Status::Ok, 2)]);
}

#[test]
fn a_time_out_says_whether_it_may_have_happened() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        bench.cut(a, b);
    }
    bench.ask(0, 2, Action::Put(b"b"));
    bench.ask(0, 3, Action::Get);
    bench.ask(1, 4, Action::Put(b"c"));
    for _ in 0..60 {
        bench.pass(100_000);
    }
    let mut ends = bench.replies[1..].to_vec();
    ends.sort_by_key(|(token, ..)| *token);
    let (maybe, not) = (Status::TimeoutMaybeDone, Status::TimeoutNotDone);
    assert_eq!(ends, [(2, maybe, 0), (3, not, 0), (4, not, 0)]);
}

#[test]
fn a_refusal_of_a_second_owner_does_not_speak_for_the_first() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    // Node 1 forwards to node 0, whose answer is lost with the link.
    bench.ask(1, 2, Action::Put(b"b"));
    bench.deliver(1, 0);
    bench.deliver(0, 1);
    bench.deliver(1, 0);
    bench.cut(0, 1);
    bench.connect(0, 1);
    bench.nodes[0].stopping = true;
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::Ok, 1), (2, Status::TimeoutMaybeDone, 0)]);
}

#[test]
fn a_stop_answers_everything() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.ask(0, 3, Action::Get);
    bench.nodes[0].on_stop(bench.now, &mut bench.outs[0]);
    bench.ask(0, 4, Action::Get);
    bench.settle();
    let mut ends = bench.replies[1..].to_vec();
    ends.sort_by_key(|(token, ..)| *token);
    let stopping = Status::ShuttingDown;
    assert_eq!(ends, [(2, Status::TimeoutMaybeDone, 0), (3, stopping, 0), (4, stopping, 0)]);
}

#[test]
fn a_steal_moves_the_owner_and_answers_what_is_in_flight_once() {
    let mut bench = Bench::new(&[1, 1, 1], |cluster, _| cluster.steal = StealPolicy::Immediate);
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(2, 2, Action::Put(b"b"));
    bench.deliver(2, 0);
    assert_eq!(of_kind(&bench.take(0, 2), Kind::Handover).len(), 0, "not before the request is served");
    bench.deliver(0, 1);
    bench.deliver(1, 0);
    let frames = bench.take(0, 2);
    assert_eq!(of_kind(&frames, Kind::Handover).len(), 1);
    for token in 3..7 {
        bench.ask(0, token, Action::Put(b"c"));
    }
    bench.links[0][2].extend(frames);
    bench.settle();
    bench.pass(400_000);
    bench.settle();
    assert!(!bench.leads(0) && bench.promised(1).owner() == Some(NodeId::new(3, 1)));
    let mut tokens: Vec<u64> = bench.replies.iter().map(|(token, ..)| *token).collect();
    tokens.sort_unstable();
    assert!(tokens.iter().filter(|token| **token != 2).eq([1, 3, 4, 5, 6].iter()), "{:?}", bench.replies);
    assert!(bench.replies.iter().all(|(_, status, _)| matches!(status, Status::Ok | Status::Duplicate)));
}

/// Every frame that a small cluster exchanges while it does a little of everything, with the receiver before it came.
fn all_kinds_of_frames() -> Vec<(usize, WPaxos, Frame)> {
    let mut bench = Bench::new(&[1, 1, 1], |cluster, tuning| {
        cluster.steal = StealPolicy::Consecutive { hits: 2 };
        tuning.flow.stream_retain_bytes = 0;
    });
    let mut frames = Vec::new();
    for step in 0..60u64 {
        match step {
            10 => bench.cut(0, 2),
            20 => bench.connect(0, 2),
            _ => {}
        }
        let node = if step < 20 { 0 } else { (step / 8 % 3) as usize };
        let read = if step % 2 == 0 { ReadMode::Confirm } else { ReadMode::Log };
        let action = if step % 3 == 0 { Action::Get } else { Action::Put(b"value") };
        bench.ask_as(node, 1000 + step, read, action);
        bench.flush(node);
        bench.pass(1500);
        for (from, to) in bench.pairs() {
            for frame in bench.take(from, to) {
                frames.push((from, bench.nodes[to].clone(), frame.clone()));
                bench.give(from, to, &frame);
            }
        }
    }
    frames
}

#[test]
fn malformed_frames_are_errors_and_never_panics() {
    let frames = all_kinds_of_frames();
    let mut random = super::Random(1);
    let mut refused = std::collections::BTreeMap::<u8, usize>::new();
    for (from, receiver, frame) in &frames {
        for _ in 0..20 {
            let mut body = frame.body().to_vec();
            if body.is_empty() {
                continue;
            }
            match random.next() % 4 {
                0 => body.truncate((random.next() % body.len() as u64) as usize),
                1 => body.extend_from_slice(&random.next().to_le_bytes()[..1 + (random.next() % 8) as usize]),
                2 => {
                    let place = (random.next() % body.len() as u64) as usize;
                    body[place] ^= 1 << (random.next() % 8);
                }
                _ => {
                    let place = (random.next() % body.len() as u64) as usize;
                    let end = (place + 8).min(body.len());
                    body[place..end].fill([0, 0xff][(random.next() % 2) as usize]);
                }
            }
            let mutant = wire::parse(wire::frame(frame.kind, 0, 1, &body)).unwrap();
            let (mut node, mut out) = (receiver.clone(), Outputs::new(3));
            let now = Micros(20_000_000);
            if node.on_frame(now, NodeIndex(*from as u8), &mutant, &mut out).is_err() {
                *refused.entry(frame.kind as u8).or_default() += 1;
            }
            node.flush(now, &mut out);
            node.on_tick(now.plus(100_000), &mut out);
            node.flush(now.plus(100_000), &mut out);
        }
    }
    let kinds = [
        Kind::AcceptBatch,
        Kind::Ack,
        Kind::Resume,
        Kind::Skip,
        Kind::Prepare,
        Kind::Promise,
        Kind::Forward,
        Kind::ForwardReply,
        Kind::Handover,
        Kind::Confirm,
        Kind::ConfirmReply,
        Kind::Heartbeat,
        Kind::State,
        Kind::CatchUpDone,
    ];
    for kind in kinds {
        assert!(refused.contains_key(&(kind as u8)), "no {kind:?} was refused");
    }
}

#[test]
fn a_promise_counts_for_its_own_ballot_only() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.deliver(0, 1);
    let late = of_kind(&bench.take(1, 0), Kind::Promise).remove(0);
    let object = bench.nodes[0].objects.find(b"k").unwrap();
    bench.nodes[0].raise(bench.now, object, ballot(1, 1, 3));
    bench.nodes[0].start_phase1(bench.now, object, None);
    bench.flush(0);
    assert_eq!(bench.promised(0), ballot(2, 1, 1));
    bench.give(1, 0, &late);
    assert!(!bench.leads(0), "node 1 has promised the round before");
    bench.deliver(0, 1);
    bench.deliver(1, 0);
    assert!(bench.leads(0));
}
