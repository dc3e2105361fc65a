//! Disks that are slow, and disks that have stopped: what is kept for a member whose disk is, and what a node with such a disk
//! goes on to do.

use super::*;

const WINDOW: usize = 1024;

/// Forty writes, of which node 2 acknowledges none; the most bytes that were unacked. Heartbeats come through.
fn put_without_acks(bench: &mut Bench) -> usize {
    let mut most = 0;
    for token in 2..42 {
        bench.ask(0, token, Action::Put(&[token as u8; 500]));
        bench.settle_but(&[(2, 0)]);
        most = most.max(bench.nodes[0].held().unacked_bytes);
        let frames: Vec<Frame> = bench.links[2][0].drain(..).collect();
        let (beats, acks): (Vec<_>, Vec<_>) = frames.into_iter().partition(|frame| frame.kind == Kind::Heartbeat);
        bench.links[2][0].extend(acks);
        beats.iter().for_each(|beat| bench.give(2, 0, beat));
    }
    most
}

/// A member that acknowledges nothing holds at most the window and a frame; the others commit at full speed, and it comes
/// back by state.
#[test]
fn a_member_that_acks_nothing_is_left_behind_and_the_others_go_on() {
    let mut bench = Bench::new(&[3], |_, tuning| {
        (tuning.flow.stream_retain_bytes, tuning.flow.stream_unacked_bytes_max) = (0, WINDOW);
    });
    bench.ask(0, 1, Action::Put(b"first"));
    bench.settle();
    bench.replies.clear();
    let most = put_without_acks(&mut bench);
    assert!(most < WINDOW + 700, "the window and a frame, not {most}");
    assert_eq!(bench.replies.len(), 40, "a quorum of fast members serves");
    assert!(bench.replies.iter().all(|(_, status, _)| *status == Status::Ok));
    assert_eq!(bench.known(1).2, 41);
    assert!(bench.known(2).2 < 6, "it was sent no more than the window");
    bench.settle();
    assert_eq!((bench.known(2), bench.counter(0, "skips")), (bench.known(0), 1));
    assert_eq!(bench.nodes[0].held().unacked_bytes, 0);
}

#[test]
fn a_node_whose_log_is_full_refuses_writes_and_goes_on_to_read() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.outs[0].room[0] = 0;
    bench.flush(0);
    bench.replies.clear();
    bench.ask(0, 2, Action::Put(b"b"));
    assert_eq!(bench.replies, [(2, Status::Overloaded, 0)]);
    bench.ask_as(0, 3, ReadMode::Log, Action::Get);
    bench.flush(0);
    assert_eq!(bench.replies[1..], [(3, Status::Overloaded, 0)], "a read through the log is a record too");
    bench.ask(0, 4, Action::Get);
    bench.settle();
    assert_eq!(bench.replies[2..], [(4, Status::Ok, 1)]);
    // Forwarded requests are refused alike.
    bench.ask(1, 5, Action::Put(b"c"));
    bench.settle();
    assert_eq!(bench.replies[3].1, Status::Overloaded);
    bench.outs[0].room[0] = usize::MAX;
    bench.flush(0);
    bench.ask(0, 6, Action::Put(b"d"));
    bench.settle();
    assert_eq!(bench.replies[4..], [(6, Status::Ok, 2)]);
}

/// Peers take a node whose disk has stopped for silent, and it does not take them for silent because they do not hear it.
#[test]
fn a_node_whose_disk_has_stopped_says_nothing_until_it_goes_on() {
    let mut bench = Bench::three();
    let beats = |bench: &mut Bench| {
        bench.pass(150_000);
        of_kind(&bench.take(0, 1), Kind::Heartbeat).len()
    };
    bench.settle();
    assert_eq!(beats(&mut bench), 1);
    // A record that does not become durable.
    bench.ask_as(0, 1, ReadMode::Confirm, Action::Put(b"a"));
    let out = &mut bench.outs[0];
    bench.nodes[0].flush(bench.now, out);
    let last = out.records.last().expect("a candidacy is logged").id;
    out.records.clear();
    out.sends.clear();
    let mut silent = 0;
    for _ in 0..20 {
        silent = if beats(&mut bench) == 0 { silent + 1 } else { 0 };
    }
    assert!(silent > 10, "silent after a second");
    bench.nodes[0].on_durable(bench.now, last, &mut bench.outs[0]);
    assert_eq!(beats(&mut bench), 1);
}

/// The two planted bugs are what the tests above would find.
#[cfg(feature = "sim")]
#[test]
fn without_the_bounds_what_waits_grows() {
    use crate::mutant::Mutant;
    let mut bench = Bench::new(&[3], |_, tuning| tuning.flow.stream_unacked_bytes_max = WINDOW);
    bench.nodes[0].config.mutant = Some(Mutant::UnackedUnbounded);
    bench.ask(0, 1, Action::Put(b"first"));
    bench.settle();
    let most = put_without_acks(&mut bench);
    assert!(most > 10 * WINDOW, "only {most}");

    let mut bench = Bench::three();
    bench.nodes[0].config.mutant = Some(Mutant::LogNeverFull);
    bench.outs[0].room[0] = 0;
    bench.flush(0);
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::Ok, 1)]);
}
