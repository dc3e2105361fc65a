//! Restarts with memory: what the log gives back, and how replicas become equal after it (`protocol.md` §5, §8).

use super::*;
use crate::protocol::wpaxos::message::{StateEntryHead, put_state};
use crate::topology::{Home, InitialOwner};

impl Bench {
    /// Ends a node's process and starts the next boot with so many records of its log. Its links are down.
    pub(super) fn restart(&mut self, node: usize, records: usize) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.cut(node, peer);
        }
        self.logs[node].truncate(records);
        let config = &mut self.configs[node];
        (config.boot, config.leads_at_home) = (config.boot + 1, false);
        self.outs[node].clear();
        self.nodes[node] = recovered(config, self.now, &self.logs[node]);
    }

    pub(super) fn restart_whole(&mut self, node: usize) {
        self.restart(node, usize::MAX);
    }

    fn connect_all(&mut self, node: usize) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.connect(node, peer);
            self.deliver(peer, node);
        }
    }

    /// Time for suspicion, orphans and surveys.
    pub(super) fn wait_long(&mut self) {
        for _ in 0..120 {
            self.pass(100_000);
            self.settle();
        }
    }

    pub(super) fn become_equal(&mut self, nodes: &[usize]) {
        self.wait_long();
        for node in nodes {
            assert_eq!(self.known(*node), self.known(nodes[0]), "node {node}");
        }
    }
}

fn recovered(config: &Config, now: Micros, log: &[Record]) -> WPaxos {
    let mut node = WPaxos::new(config.clone(), now);
    for record in log {
        node.on_replay(now, record).unwrap();
        node.check_invariants();
    }
    node.end_replay(now);
    node.check_invariants();
    node
}

fn value_of(node: &WPaxos, slot: u64) -> Option<Vec<u8>> {
    let accepted = node.accepted(b"k").into_iter().find(|entry| entry.slot == slot)?;
    Some(Command::view(accepted.command).value().to_vec())
}

#[test]
fn a_promise_outlives_a_restart() {
    let mut bench = Bench::three();
    bench.ask(2, 1, Action::Put(b"a"));
    bench.deliver(2, 1);
    bench.restart_whole(1);
    assert_eq!((bench.promised(1), bench.counter(1, "promises")), (ballot(1, 1, 3), 0));
    bench.restart(1, 0);
    assert_eq!(bench.nodes[1].objects().count(), 0, "what was not durable has promised nobody anything");
}

#[test]
fn an_accepted_entry_is_reported_after_a_restart() {
    let mut bench = Bench::three();
    bench.give(0, 1, &batch(0, 1, &[(1, ballot(1, 1, 1), b"a")]));
    bench.restart_whole(1);
    bench.cut(0, 2);
    bench.pass(200_000);
    bench.connect(1, 2);
    bench.ask(2, 1, Action::Put(b"b"));
    bench.settle();
    assert_eq!(bench.known(2), (2, Some(b"b".to_vec()), 2));
    bench.connect(0, 1);
    assert_eq!(standing(&of_kind(&bench.take(1, 0), Kind::Resume)[0]).0, 1, "it counts as taken");
}

#[test]
fn what_was_refused_because_of_hearsay_stays_refused() {
    let mut bench = Bench::three();
    let heard = ballot(9, 1, 3);
    let object = bench.nodes[1].object_of(b"k");
    bench.nodes[1].hear(bench.now, object, heard);
    bench.give(0, 1, &batch(0, 1, &[(1, ballot(1, 1, 1), b"a")]));
    bench.take(1, 0);
    bench.restart_whole(1);
    assert_eq!(bench.nodes[1].accepted(b"k"), []);
    bench.connect(0, 1);
    let resume = of_kind(&bench.take(1, 0), Kind::Resume).remove(0);
    assert_eq!(standing(&resume), (1, 0, vec![(1, heard.number)]));
}

#[test]
fn what_was_refused_because_of_a_candidacy_of_the_same_turn_stays_refused() {
    let mut bench = Bench::three();
    let object = bench.nodes[1].object_of(b"k");
    bench.nodes[1].start_phase1(bench.now, object, None);
    bench.give(0, 1, &batch(0, 1, &[(1, ballot(1, 1, 1), b"a")]));
    assert_eq!(bench.logs[1].len(), 2, "the Prepare is logged before the batch that it beats");
    bench.restart_whole(1);
    bench.connect(0, 1);
    let resume = of_kind(&bench.take(1, 0), Kind::Resume).remove(0);
    assert_eq!(standing(&resume), (1, 0, vec![(1, ballot(1, 1, 2).number)]));
}

#[test]
fn own_entries_of_an_earlier_boot_are_held_reported_and_never_counted() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.restart_whole(0);
    let node = &bench.nodes[0];
    assert_eq!((node.own_durable, node.stream.last_seq(), node.stream.id.boot.get()), (0, 0, 2));
    assert_eq!((node.inbound[0].id, value_of(node, 2)), (None, Some(b"b".to_vec())));
    assert_eq!((bench.leads(0), bench.known(0).0), (false, 1), "its own watermark executes, nothing else");
    bench.nodes[0].on_durable(bench.now, crate::protocol::RecordId(u64::MAX), &mut bench.outs[0]);
    assert_eq!(bench.known(0).0, 1);
    // Nobody asks for the object: the restarted owner finishes what it left.
    bench.connect_all(0);
    bench.wait_long();
    assert!(bench.counter(0, "orphans") > 0 && bench.promised(0) > ballot(1, 1, 1));
    for node in 0..3 {
        assert_eq!(bench.known(node), (2, Some(b"b".to_vec()), 2), "node {node}");
    }
    assert_eq!(bench.replies, [(1, Status::Ok, 1)]);
}

#[test]
fn a_home_owner_takes_its_objects_again_after_a_restart() {
    let home = InitialOwner::Home(Home::Node(NodeId::new(1, 1)));
    let mut bench = Bench::new(&[3], |cluster, _| cluster.initial_owner = home);
    bench.ask(0, 1, Action::Put(b"a"));
    assert!(bench.leads(0), "without a phase 1");
    bench.deliver(0, 1);
    // It has told node 1 of an entry that its own log has lost.
    bench.restart(0, 0);
    bench.connect_all(0);
    bench.ask(0, 2, Action::Put(b"b"));
    assert!(!bench.leads(0));
    assert_eq!(bench.promised(0), ballot(2, 1, 1));
    bench.settle();
    bench.pass(400_000);
    bench.settle();
    assert_eq!(bench.known(0), (2, Some(b"b".to_vec()), 2), "behind what node 1 had accepted");
    bench.become_equal(&[0, 1, 2]);
}

/// A cluster that does a little of everything: writes at two owners, a takeover, cuts, a restart in between.
fn busy() -> Bench {
    let mut bench = Bench::new(&[3], |_, tuning| tuning.flow.stream_retain_bytes = 0);
    for token in 1..40 {
        match token {
            10 => bench.cut(0, 2),
            14 => bench.pass(200_000),
            20 => bench.connect(0, 2),
            30 => {
                bench.restart_whole(1);
                bench.connect_all(1);
            }
            _ => {}
        }
        bench.ask((token / 7 % 3) as usize, token, Action::Put(&[token as u8; 20]));
        for (from, to) in bench.pairs() {
            if !(token + from as u64 + to as u64).is_multiple_of(5) {
                bench.deliver(from, to);
            }
        }
        bench.pass(1500);
    }
    bench
}

#[test]
fn any_prefix_of_a_log_recovers() {
    let bench = busy();
    for node in 0..3 {
        let log = &bench.logs[node];
        assert!(log.len() > 20);
        let mut before = (Ballot::ZERO, 0);
        for end in 0..=log.len() {
            let once = recovered(&bench.configs[node], bench.now, &log[..end]);
            let twice = recovered(&bench.configs[node], bench.now.plus(1), &log[..end]);
            assert_eq!(once.accepted(b"k"), twice.accepted(b"k"));
            let known = once.objects().next().map_or((Ballot::ZERO, 0), |object| (object.promised, object.applied));
            assert!(known.0 >= before.0 && known.1 >= before.1, "a longer log knows more");
            before = known;
        }
        assert!(before.0 <= bench.promised(node) && before.1 <= bench.known(node).0);
    }
}

#[test]
fn a_node_that_restarts_twice_knows_both_boots() {
    let mut bench = Bench::three();
    for boot in 1..4u64 {
        bench.ask(0, 2 * boot, Action::Put(&[boot as u8]));
        bench.settle();
        bench.ask(0, 2 * boot + 1, Action::Put(&[100 + boot as u8]));
        bench.restart_whole(0);
        assert_eq!(bench.nodes[0].stream.id.boot.get(), boot as u32 + 1);
        assert_eq!(
            (bench.known(0).0, value_of(&bench.nodes[0], 2 * boot)),
            (2 * boot - 1, Some(vec![100 + boot as u8]))
        );
        bench.connect_all(0);
        bench.become_equal(&[0, 1, 2]);
        assert_eq!(bench.known(0), (2 * boot, Some(vec![100 + boot as u8]), 2 * boot));
    }
}

#[test]
fn an_answer_to_an_earlier_boot_answers_nobody() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(1, 2, Action::Put(b"b"));
    bench.deliver(1, 0);
    bench.restart_whole(1);
    bench.connect(0, 1);
    bench.connect(1, 2);
    bench.deliver(2, 1);
    // The new boot gives its first request the number that the earlier one gave.
    bench.ask(1, 3, Action::Put(b"c"));
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::Ok, 1), (3, Status::Ok, 3)]);
}

/// An owner learns that somebody has executed what it has only proposed, and that nobody owns the object but itself: the
/// slots behind, which it then withdraws, are nobody else's to decide.
#[test]
fn an_owner_that_a_state_deposes_finishes_what_it_withdrew() {
    let bench = deposed_by_a_state(Bench::three());
    assert_eq!(bench.known(2), (3, Some(b"c".to_vec()), 3), "though nobody has used the object");
}

pub(super) fn deposed_by_a_state(mut bench: Bench) -> Bench {
    bench.ask(1, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(1, 2, Action::Put(b"b"));
    bench.ask(1, 3, Action::Put(b"c"));
    // Node 0 is not in the nearest quorum: its frames are held for a while.
    bench.pass(1500);
    bench.deliver(1, 0);
    assert_eq!(bench.nodes[0].accepted(b"k").len(), 2);
    bench.cut(0, 1);
    bench.cut(1, 2);
    // Node 0 takes over what the silent owner left; nobody waits for it there, and its accepts are lost.
    for _ in 0..10_000 {
        if bench.leads(0) {
            break;
        }
        bench.pass(5000);
        for frame in bench.take(0, 2).into_iter().filter(|frame| frame.kind != Kind::AcceptBatch) {
            bench.give(0, 2, &frame);
        }
        bench.deliver(2, 0);
    }
    assert!(bench.leads(0), "it finishes what the silent owner left");
    bench.cut(0, 2);
    bench.connect(0, 2);
    let mut state = bench.nodes[0].objects.iter().next().unwrap().state.clone();
    let accepted = bench.nodes[0].accepted(b"k");
    state.execute(2, Command::view(accepted[0].command), crate::store::OPEN_SLOTS_MAX);
    let (mut body, mut encoded) = (Vec::new(), bytes::BytesMut::new());
    put_state(&mut encoded, &state);
    let head = StateEntryHead {
        applied: 2.into(),
        promised: bench.promised(0).number.into(),
        promised_version: 1.into(),
        state_bytes: (encoded.len() as u32).into(),
        key_bytes: 1.into(),
        reserved: 0.into(),
    };
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(b"k");
    body.extend_from_slice(&encoded);
    bench.give(2, 0, &wire::parse(wire::frame(Kind::State, 0, 1, &body)).unwrap());
    assert_eq!((bench.leads(0), bench.known(0).0), (false, 2));
    bench.wait_long();
    bench
}

/// Node 0 has committed a second write, of which only node 1 has heard; node 2 has not even got it.
fn told_one() -> Bench {
    told_one_of(Bench::three())
}

pub(super) fn told_one_of(mut bench: Bench) -> Bench {
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.settle_but(&[(0, 2), (2, 0)]);
    assert_eq!((bench.known(0).0, bench.known(1).0, bench.known(2).0), (2, 2, 1));
    bench
}

#[test]
fn what_a_dead_owner_told_only_some_all_learn() {
    let mut bench = told_one();
    bench.cut(0, 1);
    bench.cut(0, 2);
    bench.become_equal(&[1, 2]);
    assert_eq!((bench.known(2).0, bench.counter(2, "surveys")), (2, 1));
    assert!(bench.nodes[1..].iter().all(WPaxos::is_idle));
}

#[test]
fn what_a_restarted_owner_told_only_some_all_learn() {
    for lost in [0, 1, 2] {
        let mut bench = told_one();
        let records = bench.logs[0].len() - lost;
        bench.restart(0, records);
        bench.connect_all(0);
        bench.become_equal(&[0, 1, 2]);
        // Whoever had to install it in a phase 1 has filled the slot above.
        let (_, value, version) = bench.known(0);
        assert_eq!((value, version), (Some(b"b".to_vec()), 2), "{lost} records lost");
        assert!(bench.nodes.iter().all(WPaxos::is_idle));
    }
}

#[test]
fn what_a_dead_owner_left_undecided_a_live_node_finishes() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.deliver(0, 1);
    bench.cut(0, 1);
    bench.cut(0, 2);
    // Node 1 has forgotten why it holds the entry; the stream has ended for it only when its owner stays away.
    bench.restart_whole(1);
    bench.connect(1, 2);
    bench.become_equal(&[1, 2]);
    assert_eq!(bench.known(2), (2, Some(b"b".to_vec()), 2));
    assert!(bench.counter(1, "orphans") > 0);
}

#[test]
fn an_interrupted_survey_begins_again() {
    let mut bench = told_one();
    bench.cut(0, 1);
    bench.cut(0, 2);
    for _ in 0..60 {
        bench.pass(100_000);
        if of_kind(&bench.take(2, 1), Kind::ListRequest).is_empty() {
            bench.deliver(1, 2);
            bench.deliver(2, 1);
            continue;
        }
        bench.cut(1, 2);
        bench.connect(1, 2);
    }
    bench.become_equal(&[1, 2]);
}

#[test]
fn malformed_records_are_errors_and_never_panics() {
    let bench = busy();
    let config = &bench.configs[1];
    let log = &bench.logs[1];
    let fresh = || WPaxos::new(config.clone(), bench.now);
    let refused = |record: Record| fresh().on_replay(bench.now, &record).unwrap_err().to_string();
    let frame = |kind, shard, body: &[u8]| wire::frame(kind, shard, 1, body);
    let (me, other) = (NodeIndex(1), NodeIndex(0));
    let id = crate::protocol::RecordId(1);
    let record = |from, frame| Record { id, from, frame };
    assert!(refused(record(me, frame(Kind::Prepare, 0, &[1, 2, 3]))).contains("ends within an element"));
    assert!(refused(record(other, frame(Kind::Prepare, 1, &[]))).contains("another shard"));
    assert!(refused(record(other, frame(Kind::Reject, 0, &[]))).contains("no record holds this kind"));
    assert!(refused(record(NodeIndex(9), frame(Kind::Prepare, 0, &[]))).contains("names no member"));
    assert!(refused(record(other, Bytes::from_static(b"WPAX"))).contains("not one whole frame"));
    assert!(refused(record(other, Bytes::from_static(&[7; 40]))).contains("the frame starts with"));
    let gap = batch(0, 5, &[(1, ballot(1, 1, 1), b"a")]);
    assert!(refused(record(other, gap.bytes)).contains("gap"));
    let mut random = crate::protocol::wpaxos::Random(1);
    for (place, record) in log.iter().enumerate().step_by(3) {
        for _ in 0..30 {
            let mut node = fresh();
            log[..place].iter().for_each(|record| node.on_replay(bench.now, record).unwrap());
            let mut body = record.frame[wire::HEADER_BYTES..].to_vec();
            let at = (random.next() % body.len() as u64) as usize;
            body[at] ^= 1 << (random.next() % 8);
            let frame = frame(wire::parse(record.frame.clone()).unwrap().kind, 0, &body);
            let _ = node.on_replay(bench.now, &Record { frame, ..record.clone() });
            node.end_replay(bench.now);
        }
    }
}

#[test]
fn an_owner_that_installed_a_state_fills_the_slot_above_it() {
    let mut bench = told_one();
    bench.cut(0, 1);
    bench.cut(0, 2);
    let object = bench.nodes[2].objects.find(b"k").unwrap();
    bench.nodes[2].start_phase1(bench.now, object, None);
    bench.flush(2);
    bench.settle();
    // Should node 1 forget what it executed, the gap below slot 3 tells it, and everybody else, to ask.
    assert_eq!((bench.counter(2, "installed"), bench.counter(2, "noops")), (1, 1));
    assert_eq!((bench.known(1), bench.known(2)), ((3, Some(b"b".to_vec()), 2), (3, Some(b"b".to_vec()), 2)));
}

/// Three nodes, of which node 0 has written so often, all of it acked.
fn written(times: u64) -> Bench {
    let mut bench = Bench::three();
    for token in 1..=times {
        bench.ask(0, token, Action::Put(b"a"));
        bench.settle();
    }
    bench
}

#[test]
fn a_node_that_came_back_with_less_than_it_had_acked_is_told_and_ends() {
    let mut bench = written(3);
    let acked = bench.nodes[0].links[1].acked;
    // An older copy: the last record of what was acked is not in it.
    let whole = bench.logs[1].len();
    bench.restart(1, whole / 2);
    bench.connect(0, 1);
    bench.deliver(1, 0);
    assert_eq!((bench.counter(0, "older_copies"), acked), (1, 3));
    // A vote of it counts nowhere, and it gives none.
    bench.nodes[0].depose(bench.now, super::super::ObjectIndex(0));
    bench.nodes[0].start_phase1(bench.now, super::super::ObjectIndex(0), None);
    bench.deliver(0, 1);
    let why = bench.outs[1].damaged.take().expect("it is told");
    assert!(why.contains("acked 3 entries of node 1.1's stream") && why.contains("an older copy"), "{why}");
    assert!(!bench.nodes[1].has_vote());
}

/// Node 0 on a directory of its first boot, of which so many records are left, as both others come to find out.
fn comes_back_as_first_boot(mut bench: Bench, records: usize) -> String {
    bench.restart(0, records);
    bench.configs[0].boot = 1;
    bench.nodes[0] = recovered(&bench.configs[0], bench.now, &bench.logs[0]);
    for peer in [1, 2] {
        assert_eq!(bench.outs[0].damaged, None, "one peer alone is not believed");
        bench.connect(0, peer);
        let resume = of_kind(&bench.take(peer, 0), Kind::Resume).remove(0);
        let (now, out) = (bench.now, &mut bench.outs[0]);
        let refused = bench.nodes[0].on_frame(now, NodeIndex(peer as u8), &resume, out).unwrap_err();
        assert!(refused.to_string().contains("more of this node's streams than this node has sent"), "{refused}");
    }
    assert!(!bench.nodes[0].has_vote());
    bench.outs[0].damaged.take().expect("it finds out")
}

#[test]
fn a_node_whose_later_boot_was_met_ends() {
    let mut bench = written(1);
    bench.restart_whole(0);
    bench.connect_all(0);
    bench.settle();
    bench.wait_long();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.settle();
    let why = comes_back_as_first_boot(bench, 1);
    assert!(why.contains("of boot 2 of this node, which is in boot 1") && why.contains("an older copy"), "{why}");
    // The boot that it copies is the same one: its stream's numbers would be used again.
    let why = comes_back_as_first_boot(written(2), 1);
    assert!(why.contains("entries up to 2 of boot 1 of this node, which is in boot 1 and has sent 0"), "{why}");
}

#[test]
fn a_node_that_comes_back_with_all_that_it_had_is_believed() {
    let mut bench = written(3);
    for node in [1, 0, 2] {
        bench.restart_whole(node);
        bench.connect_all(node);
        bench.settle();
        assert!((0..3).all(|node| bench.outs[node].damaged.is_none() && bench.counter(node, "older_copies") == 0));
    }
}
