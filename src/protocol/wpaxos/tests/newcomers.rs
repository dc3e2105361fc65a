//! Nodes that come back without their state, configuration versions, checkpoints, and owners that are gone for good
//! (`protocol.md` §6, §8).

use super::*;
use crate::{
    mutant::Mutant,
    protocol::{RecordId, Vote},
};

impl Bench {
    /// Ends a node's process, whose state is lost, and starts another incarnation. Its links are down.
    fn replace(&mut self, node: usize) {
        self.restart(node, 0);
        let config = &mut self.configs[node];
        (config.boot, config.leads_at_home, config.founded) = (1, true, None);
        config.incarnation += 1000;
        self.outs[node].clear();
        self.nodes[node] = WPaxos::new(config.clone(), self.now);
    }

    fn connect_to_all(&mut self, node: usize) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.connect(node, peer);
        }
    }

    /// Makes the links anew that nodes have dropped.
    fn obey_resets(&mut self) -> bool {
        let mut any = false;
        for node in 0..self.nodes.len() {
            if std::mem::take(&mut self.outs[node].reset) {
                any = true;
                for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
                    self.cut(node, peer);
                    self.connect(node, peer);
                }
            }
        }
        any
    }

    /// Goes on until a node votes.
    fn until_votes(&mut self, node: usize) {
        for _ in 0..2000 {
            for (from, to) in self.pairs() {
                self.deliver(from, to);
                self.obey_resets();
            }
            if self.nodes[node].has_vote() {
                return;
            }
            self.pass(5_000);
        }
        panic!("node {node} never votes: {:?}", self.nodes[node].membership());
    }

    fn settle_versions(&mut self) {
        for _ in 0..20 {
            self.settle();
            if !self.obey_resets() {
                return;
            }
        }
        panic!("versions never settle");
    }

    fn vote(&self, node: usize) -> Vote {
        self.nodes[node].membership().expect("it knows its configuration").vote
    }

    /// A checkpoint, with its objects in frames of this size, and the record that it stands behind.
    fn checkpoint(&mut self, node: usize, bytes: usize, mut between: impl FnMut(&mut Self)) -> (RecordId, Vec<Bytes>) {
        let mut frames = Vec::new();
        self.nodes[node].begin_checkpoint(&mut frames);
        let position = self.nodes[node].logged;
        let mut cursor = Some(0);
        while let Some(place) = cursor {
            between(self);
            let (frame, next) = self.nodes[node].checkpoint_objects(place, bytes);
            frames.push(frame);
            cursor = next;
        }
        (position, frames)
    }

    /// Restarts a node on a checkpoint and the records behind it.
    fn restart_on(&mut self, node: usize, position: RecordId, frames: &[Bytes]) {
        let records = self.logs[node].clone();
        self.restart_whole(node);
        let mut core = WPaxos::new(self.configs[node].clone(), self.now);
        for frame in frames {
            core.on_restore(self.now, frame).unwrap();
            core.check_invariants();
        }
        core.end_restore(self.now, position);
        for record in records.iter().filter(|record| record.id > position) {
            core.on_replay(self.now, record).unwrap();
            core.check_invariants();
        }
        core.end_replay(self.now);
        core.check_invariants();
        self.nodes[node] = core;
    }
}

fn value_in(bench: &Bench, node: usize, slot: u64) -> Option<(Ballot, Vec<u8>)> {
    let accepted = bench.nodes[node].accepted(b"k").into_iter().find(|entry| entry.slot == slot)?;
    Some((accepted.ballot, Command::view(accepted.command).value().to_vec()))
}

#[test]
fn a_node_that_has_lost_its_state_learns_before_it_votes() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.replace(2);
    bench.connect_to_all(2);
    assert_eq!(bench.vote(2), Vote::Newcomer);
    bench.deliver(0, 2);
    assert_eq!(bench.vote(2), Vote::Refused, "who has met another incarnation says so");
    bench.until_votes(2);
    bench.settle_versions();
    assert_eq!(bench.known(2), (1, Some(b"a".to_vec()), 1));
    for node in 0..3 {
        let membership = bench.nodes[node].membership().unwrap();
        assert_eq!((membership.version, membership.vote), (2, Vote::Voter), "node {node}");
        assert_eq!(membership.incarnations[2], if node == 2 { 1102 } else { membership.incarnations[2] });
        assert!(!bench.leads(node), "leads end with their version");
    }
    // It counts: with it, one of the others may go.
    bench.cut(0, 1);
    bench.cut(0, 2);
    bench.pass(200_000);
    bench.ask(1, 2, Action::Put(b"b"));
    bench.settle_but(&[(0, 1), (0, 2), (1, 0), (2, 0)]);
    assert_eq!(bench.replies, [(1, Status::Ok, 1), (2, Status::Ok, 2)]);
}

/// Node 2 has lost its state and stays a learner, because no page of a merge reaches it.
fn with_a_learner() -> Bench {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.replace(2);
    bench.connect_to_all(2);
    for _ in 0..200 {
        bench.links[1][2].retain(|frame| frame.kind != Kind::Merge);
        bench.links[0][2].retain(|frame| frame.kind != Kind::Merge);
        for (from, to) in bench.pairs() {
            bench.deliver(from, to);
            bench.obey_resets();
            bench.links[0][2].retain(|frame| frame.kind != Kind::Merge);
            bench.links[1][2].retain(|frame| frame.kind != Kind::Merge);
        }
        bench.pass(5_000);
    }
    assert!(matches!(bench.vote(2), Vote::Learner { may_end: true, .. }), "{:?}", bench.vote(2));
    bench.take(2, 0);
    bench.take(2, 1);
    bench
}

#[test]
fn a_learner_says_nothing_that_counts() {
    let mut bench = with_a_learner();
    bench.ask(0, 2, Action::Put(b"b"));
    for frame in bench.take(0, 2) {
        bench.give(0, 2, &frame);
    }
    let said = bench.take(2, 0);
    for kind in [Kind::Promise, Kind::Ack, Kind::ConfirmReply, Kind::Merge] {
        assert_eq!(of_kind(&said, kind), [], "a learner sends no {kind:?}");
    }
    bench.ask(2, 3, Action::Put(b"c"));
    assert_eq!(bench.replies.pop(), Some((3, Status::Overloaded, 0)), "nor does it serve anybody");
}

/// A learner may have forgotten an object, so that not having heard of it says nothing (`protocol.md` §9).
#[test]
fn a_learner_answers_no_probe() {
    let answers = |mutant| {
        let mut bench = with_a_learner();
        bench.nodes[2].config.mutant = mutant;
        super::probes::ask_key(&mut bench, 0, 2, ReadMode::Confirm, b"absent");
        bench.flush(0);
        let asked = bench.take(0, 2);
        assert_eq!(of_kind(&asked, Kind::Probe).len(), 1);
        asked.iter().for_each(|frame| bench.give(0, 2, frame));
        of_kind(&bench.take(2, 0), Kind::ProbeReply).len()
    };
    assert_eq!((answers(None), answers(Some(Mutant::LearnerProbed))), (0, 1));
}

#[test]
fn a_merge_keeps_the_highest_ballot() {
    let kept = |mutant| {
        let mut bench = Bench::three();
        bench.give(2, 0, &batch_of_boot(7, 2, 1, &[(1, ballot(1, 1, 3), b"low")]));
        bench.give(0, 1, &batch_of_boot(7, 0, 1, &[(1, ballot(2, 1, 1), b"high")]));
        bench.take(1, 0);
        bench.replace(2);
        bench.nodes[2].config.mutant = mutant;
        bench.connect_to_all(2);
        bench.until_votes(2);
        value_in(&bench, 2, 1).map(|(_, value)| value)
    };
    assert_eq!(kept(None), Some(b"high".to_vec()));
    assert_eq!(kept(Some(Mutant::MergeKeepsLowest)), Some(b"low".to_vec()));
    assert_eq!(kept(Some(Mutant::MergeFromOne)), Some(b"low".to_vec()), "node 0 alone knows of no other");
    assert_eq!(kept(Some(Mutant::MergeWithoutTails)), None);
    assert_eq!(kept(Some(Mutant::NewcomerSkipsMerge)), None);
}

#[test]
fn whoever_forgets_never_asks_for_a_version_at_a_ballot_of_its_own_again() {
    let mut bench = Bench::three();
    let asked = |bench: &Bench| {
        let frames = bench.links[2][0].iter().filter(|frame| frame.kind == Kind::Reconfigure);
        frames.map(|frame| u64::from_le_bytes(frame.body()[8..16].try_into().unwrap())).collect::<Vec<_>>()
    };
    let mut ballots = Vec::new();
    for _ in 0..3 {
        bench.replace(2);
        bench.connect(2, 0);
        bench.deliver(0, 2);
        bench.take(2, 0);
        bench.pass(100_000);
        ballots.extend(asked(&bench));
        bench.restart_whole(2);
        bench.connect(2, 0);
        bench.deliver(0, 2);
        bench.take(2, 0);
        bench.pass(100_000);
        ballots.extend(asked(&bench));
    }
    let different: std::collections::BTreeSet<u64> = ballots.iter().copied().collect();
    assert_eq!((ballots.len(), different.len()), (6, 6), "{ballots:x?}");
}

#[test]
fn a_stream_begun_on_a_checkpoint_belongs_to_its_version() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.replace(2);
    bench.connect_to_all(2);
    bench.until_votes(2);
    bench.settle_versions();
    let (position, frames) = bench.checkpoint(0, 1, |_| {});
    bench.restart_on(0, position, &frames);
    assert_eq!((bench.nodes[0].version(), bench.nodes[0].stream.id.version.get()), (2, 2));
}

#[test]
fn reads_that_waited_do_not_wait_for_slots() {
    let mut bench = Bench::three();
    let reads = 3 * crate::store::OPEN_SLOTS_MAX;
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.deliver(0, 1);
    bench.cut(0, 1);
    bench.cut(0, 2);
    bench.pass(200_000);
    // Node 1 takes over one slot; reads wait until it is executed.
    bench.ask(1, 3, Action::Put(b"c"));
    bench.deliver(1, 2);
    bench.deliver(2, 1);
    for read in 0..reads {
        bench.ask_of(1, 9, 100 + read, ReadMode::Confirm, Action::Get);
    }
    bench.flush(1);
    bench.settle_but(&[(1, 0), (0, 1), (0, 2), (2, 0)]);
    let answered = bench.replies.iter().filter(|(token, status, _)| *token >= 100 && *status == Status::Ok).count();
    assert_eq!(answered as u64, reads);
}

#[test]
fn a_version_outlives_restarts_also_of_those_that_voted_for_it() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.replace(2);
    bench.connect_to_all(2);
    bench.until_votes(2);
    bench.settle_versions();
    for node in 0..3 {
        bench.restart_whole(node);
        let membership = bench.nodes[node].membership().unwrap();
        assert_eq!((membership.version, membership.vote), (2, Vote::Voter), "node {node}");
        bench.connect_to_all(node);
        bench.settle_versions();
        assert_eq!(bench.known(node).1, Some(b"a".to_vec()));
    }
    bench.ask(2, 5, Action::Put(b"b"));
    bench.settle();
    assert_eq!(bench.replies.pop(), Some((5, Status::Ok, 2)));
}

#[test]
fn a_member_that_is_there_is_not_put_out_and_one_that_was_replaced_ends() {
    let mut bench = Bench::three();
    let two = NodeIndex(2);
    assert!(bench.nodes[0].is_taken(bench.now, two, 4711), "the member is linked and alive");
    assert!(!bench.nodes[0].is_taken(bench.now, two, 102), "it may always come again");
    let old = bench.nodes[2].clone();
    bench.replace(2);
    assert!(!bench.nodes[0].is_taken(bench.now, two, 4711), "its link is down");
    bench.connect_to_all(2);
    bench.until_votes(2);
    bench.settle_versions();
    // The earlier incarnation was not dead after all.
    for peer in 0..2 {
        bench.cut(2, peer);
    }
    bench.nodes[2] = old;
    bench.configs[2].incarnation = 102;
    bench.connect(2, 0);
    bench.deliver(0, 2);
    let why = bench.outs[2].displaced.take().expect("it is told");
    assert!(why.contains("version 2") && why.contains("another process"), "{why}");
    assert!(!bench.nodes[2].has_vote());
}

#[test]
fn new_members_vote_when_enough_have_met_them() {
    let mut bench = Bench::new(&[5], |_, _| {});
    for node in 0..5 {
        bench.replace(node);
    }
    bench.connect(0, 1);
    bench.connect(0, 2);
    bench.settle();
    assert_eq!(bench.vote(0), Vote::Newcomer);
    bench.connect(0, 3);
    bench.settle();
    assert_eq!(bench.vote(0), Vote::Voter, "three others of five");
    assert_eq!(bench.vote(3), Vote::Newcomer);
    // A node that was asked before it had a vote is asked again.
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    assert_eq!(bench.replies, []);
    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        bench.connect(a, b);
    }
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::Ok, 1)]);
}

/// Objects with something of everything: executed, accepted, decided behind a gap, refused.
fn busy() -> Bench {
    let mut bench = Bench::three();
    for token in 1..4 {
        bench.ask(0, token, Action::Put(&[token as u8]));
    }
    bench.settle();
    let entries: [(u64, Ballot, &[u8]); 2] = [(8, ballot(5, 1, 3), b"accepted"), (9, ballot(4, 1, 3), b"refused")];
    // Of a boot of which node 2 knows nothing any more.
    bench.give(2, 1, &batch_of_boot(7, 2, 1, &entries));
    bench
}

#[test]
fn a_checkpoint_holds_what_the_records_before_it_held() {
    let whole = |mut bench: Bench| {
        bench.restart_whole(1);
        bench
    };
    let (whole, mut cut) = (whole(busy()), busy());
    let (position, frames) = cut.checkpoint(1, 1, |_| {});
    cut.logs[1].retain(|record| record.id > position);
    cut.restart_on(1, position, &frames);
    assert_eq!((cut.known(1), cut.promised(1)), (whole.known(1), whole.promised(1)));
    assert_eq!(value_in(&cut, 1, 8), Some((ballot(5, 1, 3), b"accepted".to_vec())));
    let mut standings = Vec::new();
    for mut bench in [whole, cut] {
        bench.connect(1, 2);
        standings.push(standing(&of_kind(&bench.take(1, 2), Kind::Resume)[0]));
        bench.connect(1, 0);
        bench.become_equal(&[0, 1, 2]);
    }
    assert_eq!(standings[0], standings[1]);
    assert_eq!(standings[0].2.len(), 1, "what was refused stays refused");
}

#[test]
fn a_checkpoint_is_written_while_work_goes_on() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    let mut token = 10;
    let (position, frames) = bench.checkpoint(1, 1, |bench| {
        bench.ask(0, token, Action::Put(&[token as u8]));
        bench.deliver(0, 1);
        bench.deliver(1, 0);
        bench.deliver(0, 1);
        token += 1;
    });
    let before = (bench.known(1), bench.promised(1), bench.nodes[1].accepted(b"k").len());
    assert!(bench.nodes[1].logged > position, "records were written meanwhile");
    bench.restart_on(1, position, &frames);
    assert_eq!((bench.known(1), bench.promised(1), bench.nodes[1].accepted(b"k").len()), before);
    bench.connect(1, 0);
    bench.connect(1, 2);
    bench.become_equal(&[0, 1, 2]);
}

#[test]
fn an_owners_own_entries_are_in_its_checkpoint() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    let (position, frames) = bench.checkpoint(0, 1, |_| {});
    bench.restart_on(0, position, &frames);
    assert_eq!(value_in(&bench, 0, 2), Some((ballot(1, 1, 1), b"b".to_vec())));
    bench.connect_to_all(0);
    bench.become_equal(&[0, 1, 2]);
    assert_eq!(bench.known(0), (2, Some(b"b".to_vec()), 2));
}

#[test]
fn what_a_checkpoint_shows_to_be_committed_is_claimed_behind_it() {
    let claimed = |mutant| {
        let mut bench = Bench::three();
        bench.configs[0].mutant = mutant;
        bench.nodes[0].config.mutant = mutant;
        bench.ask(0, 1, Action::Put(b"a"));
        bench.settle();
        bench.ask(0, 2, Action::Put(b"b"));
        bench.deliver(0, 1);
        bench.deliver(1, 0);
        // Committed and answered, and nobody has been told yet.
        let (position, frames) = bench.checkpoint(0, 1, |_| {});
        bench.flush(0);
        bench.restart_on(0, position, &frames);
        let reached = bench.nodes[0].reached();
        (bench.known(0).0, reached.iter().map(|reached| reached.up_to.get()).max())
    };
    assert_eq!(claimed(None), (2, Some(2)));
    assert_eq!(claimed(Some(Mutant::CheckpointUnclaimed)), (2, Some(1)), "the others would never ask");
}

#[test]
fn a_peer_that_does_not_hear_is_suspected_though_it_is_heard() {
    let mut bench = Bench::three();
    bench.settle();
    for _ in 0..15 {
        bench.pass(100_000);
        bench.take(1, 0);
        bench.settle_but(&[(1, 0)]);
    }
    assert!(bench.nodes[1].is_suspected(bench.now, NodeIndex(0)), "its heartbeats echo none of node 1's");
    assert!(!bench.nodes[2].is_suspected(bench.now, NodeIndex(0)));
    for _ in 0..3 {
        bench.pass(100_000);
        bench.settle();
    }
    assert!(!bench.nodes[1].is_suspected(bench.now, NodeIndex(0)));
}

#[test]
fn a_malformed_checkpoint_is_refused() {
    let mut bench = busy();
    let (_, frames) = bench.checkpoint(1, 1 << 20, |_| {});
    let config = bench.configs[1].clone();
    for (number, frame) in frames.iter().enumerate() {
        for at in wire::HEADER_BYTES..frame.len() {
            // Cut short, with a right checksum: what is missing must be missed.
            let parsed = wire::parse(frame.clone()).unwrap();
            let body = &parsed.body()[..at - wire::HEADER_BYTES];
            let cut = wire::frame(parsed.kind, parsed.shard, parsed.config_version, body);
            let mut core = WPaxos::new(config.clone(), bench.now);
            frames[..number].iter().for_each(|frame| core.on_restore(bench.now, frame).unwrap());
            // It may be whole by chance, between two elements; it never panics.
            let _ = core.on_restore(bench.now, &cut);
        }
    }
}

#[test]
fn objects_of_an_owner_that_is_gone_are_taken_over_though_nobody_asks() {
    let mut bench = Bench::new(&[3], |_, tuning| tuning.timers.takeover_delay_us = 1_000_000);
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    for peer in 1..3 {
        bench.cut(0, peer);
    }
    bench.wait_long();
    assert!(bench.leads(1) != bench.leads(2), "one of the zone's live nodes owns it now");
    assert_eq!(bench.counter(1, "taken_from_silent") + bench.counter(2, "taken_from_silent"), 1);
}

#[test]
fn a_peer_that_was_suspected_is_relied_on_when_it_has_been_well_for_a_while() {
    let mut bench = Bench::three();
    let reliable = |bench: &Bench| bench.nodes[1].links[0].is_reliable(bench.now, &bench.nodes[1].config.timers);
    bench.cut(0, 1);
    bench.pass(50_000);
    bench.connect(0, 1);
    bench.settle();
    assert!(reliable(&bench), "a short cut is none");
    bench.cut(0, 1);
    bench.pass(150_000);
    bench.connect(0, 1);
    bench.settle();
    assert!(!reliable(&bench), "it may go again at once");
    assert!(!bench.nodes[1].is_suspected(bench.now, NodeIndex(0)), "but is spoken to");
    for _ in 0..20 {
        bench.pass(25_000);
        bench.settle();
    }
    assert!(reliable(&bench));
}
