//! Planted bugs that hardly any history meets by chance, or that need a restart: each changes what a directed test sees.

use super::{
    super::{
        link::CatchUp,
        message::{Reached, SkipBody},
    },
    *,
};
use crate::{
    mutant::Mutant,
    protocol::{RecordId, Send},
    topology::{Home, InitialOwner},
};

/// Three nodes with a bug in each of them.
fn three(mutant: Option<Mutant>) -> Bench {
    let mut bench = Bench::three();
    bench.nodes.iter_mut().for_each(|node| node.config.mutant = mutant);
    bench.configs.iter_mut().for_each(|config| config.mutant = mutant);
    bench
}

/// What the scenario shows without the bug, and with it.
fn both<T>(mutant: Mutant, scenario: impl Fn(Option<Mutant>) -> T) -> (T, T) {
    (scenario(None), scenario(Some(mutant)))
}

#[test]
fn names_are_found_again_and_each_says_what_is_wrong() {
    for mutant in Mutant::ALL {
        assert_eq!(Mutant::named(mutant.name()), Some(*mutant));
        assert!(mutant.what().ends_with('.'), "{mutant:?} has a sentence");
    }
    assert_eq!(Mutant::named("no-such-bug"), None);
}

#[test]
fn a_gap_that_is_not_filled_stops_its_object() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        for node in [1, 2] {
            bench.give(0, node, &batch(0, 1, &[(2, ballot(1, 1, 1), b"b")]));
        }
        bench.cut(0, 1);
        bench.cut(0, 2);
        bench.pass(200_000);
        bench.ask(2, 1, Action::Get);
        bench.settle();
        (bench.known(2).0, bench.replies.len())
    };
    assert_eq!(both(Mutant::GapNotFilled, scenario), ((2, 1), (0, 0)));
}

#[test]
fn a_promise_of_another_ballot_makes_an_owner_that_nobody_promised() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        bench.deliver(0, 1);
        let late = of_kind(&bench.take(1, 0), Kind::Promise).remove(0);
        let object = bench.nodes[0].objects.find(b"k").unwrap();
        bench.nodes[0].raise(bench.now, object, ballot(1, 1, 3));
        bench.nodes[0].start_phase1(bench.now, object, None);
        bench.flush(0);
        bench.give(1, 0, &late);
        (bench.leads(0), bench.promised(0), bench.promised(1))
    };
    let (right, wrong) = both(Mutant::PromiseOfAnotherBallot, scenario);
    assert_eq!(right, (false, ballot(2, 1, 1), ballot(1, 1, 1)));
    assert_eq!(wrong, (true, ballot(2, 1, 1), ballot(1, 1, 1)));
}

#[test]
fn a_round_confirms_what_came_before_it_only() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        bench.ask(0, 2, Action::Get);
        bench.deliver(0, 1);
        let confirmed = of_kind(&bench.take(1, 0), Kind::ConfirmReply).remove(0);
        // Node 2 takes the object and writes, while node 0 hears nothing of it.
        let object = bench.nodes[2].objects.find(b"k").unwrap();
        bench.nodes[2].start_phase1(bench.now, object, None);
        bench.flush(2);
        bench.ask(2, 3, Action::Put(b"b"));
        for _ in 0..3 {
            bench.deliver(2, 1);
            bench.deliver(1, 2);
            bench.pass(2000);
        }
        bench.ask(0, 4, Action::Get);
        bench.give(1, 0, &confirmed);
        bench.replies[1..].to_vec()
    };
    let (right, wrong) = both(Mutant::ReadJoinsAskedRound, scenario);
    assert_eq!(right, [(3, Status::Ok, 2), (2, Status::Ok, 1)]);
    assert_eq!(wrong, [(3, Status::Ok, 2), (2, Status::Ok, 1), (4, Status::Ok, 1)]);
}

#[test]
fn what_a_dead_owner_left_is_finished_though_nobody_asks() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        bench.ask(0, 2, Action::Put(b"b"));
        bench.deliver(0, 1);
        bench.cut(0, 1);
        bench.cut(0, 2);
        for _ in 0..100 {
            bench.pass(200_000);
            bench.settle();
        }
        (bench.known(1).0, bench.known(2).0)
    };
    assert_eq!(both(Mutant::OrphansLeft, scenario), ((2, 2), (1, 1)));
}

/// Whether a frame of this kind leaves at the end of the turn before its records are durable.
fn leaves_early(bench: &mut Bench, node: usize, kind: Kind) -> bool {
    let out = &mut bench.outs[node];
    bench.nodes[node].flush(bench.now, out);
    let sent: Vec<Send> =
        out.sends.drain(..).filter(|send| wire::parse(send.frame.clone()).unwrap().kind == kind).collect();
    assert!(!sent.is_empty(), "a {kind:?} is sent");
    sent.iter().any(|send| send.after == RecordId(0))
}

#[test]
fn what_must_wait_for_the_log_waits() {
    let accepted = |mutant| {
        let mut bench = three(mutant);
        let frame = batch(0, 1, &[(1, ballot(1, 1, 1), b"a")]);
        bench.nodes[1].on_frame(bench.now, NodeIndex(0), &frame, &mut bench.outs[1]).unwrap();
        bench
    };
    let ack = |mutant| leaves_early(&mut accepted(mutant), 1, Kind::Ack);
    assert_eq!(both(Mutant::AckBeforeDurable, ack), (false, true));
    let resume = |mutant| {
        let mut bench = accepted(mutant);
        bench.nodes[1].on_link_up(bench.now, NodeIndex(0), 100, &mut bench.outs[1]);
        leaves_early(&mut bench, 1, Kind::Resume)
    };
    assert_eq!(both(Mutant::ResumeBeforeDurable, resume), (false, true));
    let prepare = |mutant| {
        let mut bench = three(mutant);
        bench.ask_as(0, 1, ReadMode::Confirm, Action::Put(b"a"));
        leaves_early(&mut bench, 0, Kind::Prepare)
    };
    assert_eq!(both(Mutant::PrepareBeforeDurable, prepare), (false, true));
    let promise = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        let frame = of_kind(&bench.take(0, 1), Kind::Prepare).remove(0);
        bench.nodes[1].on_frame(bench.now, NodeIndex(0), &frame, &mut bench.outs[1]).unwrap();
        leaves_early(&mut bench, 1, Kind::Promise)
    };
    assert_eq!(both(Mutant::PromiseBeforeDurable, promise), (false, true));
}

#[test]
fn a_prepare_that_is_repeated_in_its_own_turn_waits_for_its_record() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.cut(0, 1);
        bench.ask_as(0, 1, ReadMode::Confirm, Action::Put(b"a"));
        let (node, now, out) = (&mut bench.nodes[0], bench.now, &mut bench.outs[0]);
        node.on_link_up(now, NodeIndex(1), 101, out);
        // As a Resume that is behind has it, which sends what the link has gathered before the turn ends.
        node.links[1].catch_up = Some(CatchUp { from_seq: 1, cursor: 0 });
        node.on_tick(now, out);
        node.flush(now, out);
        let is_prepare = |frame: &Bytes| wire::parse(frame.clone()).unwrap().kind == Kind::Prepare;
        let own = out.records.iter().find(|record| is_prepare(&record.frame)).expect("it is logged").id;
        let sent: Vec<_> = out.sends.iter().filter(|send| send.to == NodeIndex(1) && is_prepare(&send.frame)).collect();
        assert!(!sent.is_empty(), "it is sent");
        sent.iter().all(|send| send.after >= own)
    };
    assert_eq!(both(Mutant::PrepareBeforeOwnRecord, scenario), (true, false));
}

#[test]
fn an_owner_that_has_taken_the_object_confirms_no_read_of_the_one_before() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        // Node 2 takes the object and writes, while node 0 is cut off from it and hears nothing of node 1.
        bench.cut(0, 2);
        let object = bench.nodes[2].objects.find(b"k").unwrap();
        bench.nodes[2].start_phase1(bench.now, object, None);
        bench.flush(2);
        bench.ask(2, 2, Action::Put(b"b"));
        for _ in 0..3 {
            bench.deliver(2, 1);
            bench.deliver(1, 2);
            bench.pass(2000);
        }
        bench.links[1][0].clear();
        bench.connect(0, 2);
        bench.ask(0, 3, Action::Get);
        let asked = [bench.take(0, 1), bench.take(0, 2)].concat();
        let confirm = of_kind(&asked, Kind::Confirm).remove(0);
        bench.take(2, 0);
        bench.give(0, 2, &confirm);
        let reply = of_kind(&bench.take(2, 0), Kind::ConfirmReply).remove(0);
        bench.give(2, 0, &reply);
        (bench.leads(0), bench.replies[1..].to_vec())
    };
    let (right, wrong) = both(Mutant::ConfirmByCandidate, scenario);
    assert_eq!(right, (false, vec![(2, Status::Ok, 2)]));
    assert_eq!(wrong, (true, vec![(2, Status::Ok, 2), (3, Status::Ok, 1)]));
}

#[test]
fn an_owner_counts_itself_when_its_log_has_the_entry() {
    let scenario = |mutant| {
        let mut bench = Bench::new(&[3], |cluster, _| cluster.quorum = QuorumSpec::Flexible { q1: 3, q2: 1 });
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        bench.nodes[0].config.mutant = mutant;
        bench.ask_as(0, 2, ReadMode::Confirm, Action::Put(b"b"));
        bench.nodes[0].flush(bench.now, &mut bench.outs[0]);
        bench.nodes[0].advance_commit(bench.now, &mut bench.outs[0]);
        bench.known(0).0
    };
    assert_eq!(both(Mutant::OwnAcceptBeforeDurable, scenario), (1, 2));
}

/// Node 0 after a restart, as one that has lost nothing of importance.
fn restarted(bench: &mut Bench, mutant: Option<Mutant>) {
    let config = Config { boot: 2, mutant, ..bench.nodes[0].config.clone() };
    bench.nodes[0] = WPaxos::new(config, bench.now);
    bench.nodes[0].on_link_up(bench.now, NodeIndex(1), 101, &mut bench.outs[0]);
    bench.nodes[0].on_link_up(bench.now, NodeIndex(2), 102, &mut bench.outs[0]);
}

/// What node 1 says of node 0's stream: of its first boot, two entries.
fn told_of_first_boot(bench: &mut Bench) -> Frame {
    let entries: [(u64, Ballot, &[u8]); 2] = [(1, ballot(1, 1, 1), b"a"), (2, ballot(1, 1, 1), b"b")];
    bench.give(0, 1, &batch(0, 1, &entries));
    bench.nodes[1].on_link_up(bench.now, NodeIndex(0), 100, &mut bench.outs[1]);
    bench.flush(1);
    bench.take(1, 0).into_iter().rfind(|frame| frame.kind == Kind::Resume).unwrap()
}

#[test]
fn a_stream_belongs_to_one_boot() {
    let reused = |mutant| {
        let mut bench = three(mutant);
        let resume = told_of_first_boot(&mut bench);
        restarted(&mut bench, mutant);
        bench.nodes[0].on_frame(bench.now, NodeIndex(1), &resume, &mut bench.outs[0]).is_ok()
    };
    assert_eq!(both(Mutant::StreamNumbersReused, reused), (true, false));
    let counted = |mutant| {
        let mut bench = three(mutant);
        let resume = told_of_first_boot(&mut bench);
        restarted(&mut bench, mutant);
        for (object, slot) in [(b"k", 1), (b"k", 2)] {
            let node = &mut bench.nodes[0];
            let object = node.object_of(object);
            node.raise(bench.now, object, ballot(2, 1, 1));
            let put = NewCommand { client: 1, id: slot, retry: false, key: b"k", action: Action::Delete };
            let mut bytes = Vec::new();
            put.encode(&mut bytes).unwrap();
            node.propose_at(bench.now, object, slot, &bytes, super::super::RequestKey::NONE);
        }
        bench.nodes[0].seal_batch();
        bench.nodes[0].on_frame(bench.now, NodeIndex(1), &resume, &mut bench.outs[0]).unwrap();
        bench.nodes[0].links[1].acked
    };
    assert_eq!(both(Mutant::OldStreamCounted, counted), (0, 2));
}

#[test]
fn a_new_boots_stream_begins_anew_at_its_receivers() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        told_of_first_boot(&mut bench);
        bench.give(0, 1, &batch_of_boot(2, 0, 1, &[(3, ballot(2, 1, 1), b"c")]));
        let acked = standing(of_kind(&bench.take(1, 0), Kind::Ack).last().unwrap()).0;
        (acked, bench.nodes[1].accepted(b"k").len())
    };
    assert_eq!(both(Mutant::StreamCarriedOver, scenario), ((1, 3), (2, 2)));
}

#[test]
fn a_replay_keeps_promises_and_refusals_and_no_lead() {
    let forgotten = |mutant| {
        let mut bench = three(mutant);
        bench.give(2, 1, &batch(2, 1, &[(1, ballot(5, 1, 3), b"a")]));
        bench.give(0, 1, &batch(0, 1, &[(1, ballot(4, 1, 1), b"b")]));
        let object = bench.nodes[1].objects.find(b"k").unwrap();
        bench.nodes[1].raise(bench.now, object, ballot(7, 1, 2));
        bench.cut(0, 1);
        bench.cut(1, 2);
        bench.nodes[1].end_replay(bench.now);
        (bench.promised(1), bench.nodes[1].inbound[0].refusals.len(), bench.leads(1))
    };
    let right = (ballot(7, 1, 2), 1, false);
    assert_eq!(both(Mutant::RestartForgetsPromises, forgotten), (right, (ballot(5, 1, 3), 1, false)));
    assert_eq!(both(Mutant::RestartForgetsRefusals, forgotten), (right, (ballot(7, 1, 2), 0, false)));
    assert_eq!(both(Mutant::RestartKeepsLead, forgotten), (right, (ballot(7, 1, 2), 1, true)));
}

#[test]
fn a_home_owner_that_was_restarted_asks_before_it_leads() {
    let scenario = |mutant| {
        let at_home = |cluster: &mut Cluster, _: &mut Tuning| {
            cluster.initial_owner = InitialOwner::Home(Home::Node(cluster.nodes[0].id));
        };
        let mut bench = Bench::new(&[3], at_home);
        bench.nodes[0].config.leads_at_home = false;
        restarted(&mut bench, mutant);
        for peer in [1, 2] {
            bench.nodes[peer].on_link_up(bench.now, NodeIndex(0), 100, &mut bench.outs[peer]);
            bench.flush(peer);
            bench.deliver(peer, 0);
        }
        bench.ask(0, 1, Action::Put(b"a"));
        (bench.leads(0), bench.promised(0))
    };
    let (right, wrong) = both(Mutant::HomeAfterRestart, scenario);
    assert_eq!((right, wrong), ((false, ballot(2, 1, 1)), (true, ballot(1, 1, 1))));
}

#[test]
fn what_was_sent_before_goes_out_again_as_a_retry() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        // Node 1 forwards; the answer is lost, and then the client's session at the object.
        bench.ask(1, 2, Action::Put(b"b"));
        bench.deliver(1, 0);
        bench.deliver(0, 2);
        bench.deliver(2, 0);
        bench.cut(0, 1);
        for client in 100..100 + crate::store::SESSIONS_MAX as u64 {
            bench.ask_of(0, client, client, ReadMode::Confirm, Action::Put(b"c"));
            bench.flush(0);
            bench.deliver(0, 2);
            bench.deliver(2, 0);
        }
        let before = bench.known(0).2;
        bench.connect(0, 1);
        bench.settle();
        (bench.known(0).2 - before, bench.replies.last().unwrap().1)
    };
    let (right, wrong) = both(Mutant::RerouteUnmarked, scenario);
    assert_eq!((right, wrong), ((0, Status::OutcomeUnknown), (1, Status::Ok)));
}

#[test]
fn a_withdrawn_entry_that_nobody_takes_over_is_finished() {
    let scenario = |mutant| {
        let bench = recovery::deposed_by_a_state(three(mutant));
        (bench.known(0).0, bench.known(2).0)
    };
    let (right, wrong) = both(Mutant::WithdrawnLeft, scenario);
    assert_eq!(right, (3, 3));
    assert!(wrong.0 < 3 && wrong.1 < 3, "{wrong:?}");
}

#[test]
fn what_was_refused_because_of_hearsay_is_refused_by_the_replay() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        let object = bench.nodes[1].object_of(b"k");
        bench.nodes[1].hear(bench.now, object, ballot(9, 1, 3));
        bench.give(0, 1, &batch(0, 1, &[(1, ballot(1, 1, 1), b"a")]));
        bench.restart_whole(1);
        bench.nodes[1].accepted(b"k").len()
    };
    assert_eq!(both(Mutant::RaisesUnlogged, scenario), (0, 1));
}

#[test]
fn a_state_installed_in_phase_1_is_told_by_a_slot_above_it() {
    let scenario = |mutant| {
        let mut bench = recovery::told_one_of(three(mutant));
        bench.cut(0, 1);
        bench.cut(0, 2);
        let object = bench.nodes[2].objects.find(b"k").unwrap();
        bench.nodes[2].start_phase1(bench.now, object, None);
        bench.flush(2);
        bench.settle();
        (bench.counter(2, "noops"), bench.known(2).0)
    };
    assert_eq!(both(Mutant::InstalledUntold, scenario), ((1, 3), (0, 2)));
}

#[test]
fn the_last_streams_of_an_owner_are_remembered() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        let reached = |boot: u32| Reached {
            owner: 0,
            reserved: [0; 3],
            stream: StreamId { incarnation: 100.into(), boot: boot.into(), version: 1.into() },
            up_to: 1.into(),
        };
        (2..12).for_each(|boot| bench.nodes[1].converge.note(reached(boot)));
        [1, 11, 12].map(|boot| bench.nodes[1].is_behind(&[reached(boot)]))
    };
    assert_eq!(both(Mutant::EndedStreamsFull, scenario), ([false, false, true], [false; 3]));
}

#[test]
fn what_a_survey_brought_is_claimed_after_a_restart() {
    let scenario = |mutant| {
        let mut bench = recovery::told_one_of(three(mutant));
        bench.cut(0, 1);
        bench.cut(0, 2);
        bench.become_equal(&[1, 2]);
        bench.restart_whole(2);
        let reached = bench.nodes[2].reached();
        let of_node_0 = reached.iter().filter(|reached| reached.owner == 0).map(|reached| reached.up_to.get());
        (bench.known(2).0, of_node_0.max().unwrap_or(0))
    };
    assert_eq!(both(Mutant::CatchUpUnlogged, scenario), ((2, 2), (2, 0)));
}

#[test]
fn a_later_session_does_not_vouch_for_a_dropped_one() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask_of(0, 7, 5, ReadMode::Confirm, Action::Put(b"a"));
        bench.flush(0);
        bench.settle();
        for client in 100..100 + crate::store::SESSIONS_MAX as u64 {
            bench.ask_of(0, client, client, ReadMode::Confirm, Action::Put(b"b"));
        }
        bench.ask_of(0, 7, 3, ReadMode::Confirm, Action::Put(b"c"));
        bench.flush(0);
        bench.settle();
        let before = bench.known(0).2;
        let mut bytes = Vec::new();
        let put = NewCommand { client: 7, id: 5, retry: true, key: b"k", action: Action::Put(b"a") };
        put.encode(&mut bytes).unwrap();
        let frame = Bytes::from(bytes);
        let (reply_to, zone, read) = (ReplyTo(999), bench.nodes[0].config.my_zone(), ReadMode::Confirm);
        let request = Request { reply_to, zone, read, command: Command::parse(&frame).unwrap(), frame: &frame };
        bench.nodes[0].on_request(bench.now, request, &mut bench.outs[0]);
        bench.flush(0);
        bench.settle();
        (bench.known(0).2 - before, bench.replies.last().unwrap().1)
    };
    let (right, wrong) = both(Mutant::SessionVouches, scenario);
    assert_eq!((right, wrong), ((0, Status::OutcomeUnknown), (1, Status::Ok)));
}

#[test]
fn a_slot_that_is_missing_is_asked_for() {
    let scenario = |mutant| {
        let mut bench = three(mutant);
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        // Node 2 hears of the third write only: a Skip has taken it past the second, and the states behind that are late.
        bench.ask(0, 2, Action::Put(b"b"));
        bench.settle_but(&[(0, 2), (2, 0)]);
        bench.take(0, 2);
        let stream = bench.nodes[0].stream.id;
        let skip = SkipBody { stream, to_seq: 2.into() };
        bench.give(0, 2, &wire::parse(wire::frame(Kind::Skip, 0, 1, skip.as_bytes())).unwrap());
        let third = NewCommand { client: 9, id: 1, retry: false, key: b"k", action: Action::Put(b"c") };
        let mut bytes = Vec::new();
        third.encode(&mut bytes).unwrap();
        let object = bench.nodes[2].objects.find(b"k").unwrap();
        let now = bench.now;
        let Bench { nodes, outs, .. } = &mut bench;
        nodes[2].learn(now, object, 3, ballot(1, 1, 1), Command::parse(&bytes).unwrap(), &mut outs[2]);
        bench.flush(2);
        bench.take(2, 0);
        bench.pass(60_000);
        of_kind(&bench.take(2, 0), Kind::StateRequest).len()
    };
    assert_eq!(both(Mutant::GapNeverAsked, scenario), (1, 0));
}
