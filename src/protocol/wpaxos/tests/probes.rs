//! Reads of objects that their node has never heard of (`protocol.md` §9).

use super::*;

fn ask_key(bench: &mut Bench, node: usize, token: u64, read: ReadMode, key: &[u8]) {
    let mut bytes = Vec::new();
    NewCommand { client: 7, id: token + 1, retry: false, key, action: Action::Get }.encode(&mut bytes).unwrap();
    let frame = Bytes::from(bytes);
    let zone = bench.nodes[node].config.my_zone();
    let command = Command::parse(&frame).unwrap();
    let request = Request { reply_to: ReplyTo(token), zone, read, command, frame: &frame };
    bench.nodes[node].on_request(bench.now, request, &mut bench.outs[node]);
}

/// Delivers until nothing moves; no time passes.
fn deliver_all(bench: &mut Bench) {
    while bench.links.iter().flatten().any(|link| !link.is_empty()) {
        for (from, to) in bench.pairs() {
            bench.deliver(from, to);
        }
    }
}

#[test]
fn a_hundred_thousand_reads_of_what_is_not_there_leave_nothing() {
    let mut bench = Bench::three();
    let records: Vec<usize> = bench.logs.iter().map(Vec::len).collect();
    for burst in 0..100u64 {
        let node = burst as usize % 3;
        for number in 0..1000 {
            let token = burst * 1000 + number;
            ask_key(&mut bench, node, token, ReadMode::Confirm, format!("absent-{token}").as_bytes());
        }
        bench.flush(node);
        deliver_all(&mut bench);
        bench.pass(30_000);
    }
    bench.settle();
    assert_eq!(bench.replies.len(), 100_000);
    assert!(bench.replies.iter().all(|(_, status, version)| (*status, *version) == (Status::NotFound, 0)));
    for (node, records) in records.into_iter().enumerate() {
        assert_eq!(bench.nodes[node].objects().count(), 0, "node {node} keeps objects");
        assert_eq!(bench.logs[node].len(), records, "node {node} has logged something");
        assert_eq!((bench.counter(node, "waiting_requests"), bench.nodes[node].is_idle()), (0, true));
    }
    assert_eq!((0..3).map(|node| bench.counter(node, "absent")).sum::<u64>(), 100_000);
    assert_eq!(bench.counter(0, "probes"), 34, "one frame serves all reads of a turn");
}

#[test]
fn a_probe_is_cut_into_frames_of_a_bounded_size() {
    let mut bench = Bench::three();
    let long = |number: u64| format!("{number:04096}");
    for token in 0..200 {
        ask_key(&mut bench, 0, token, ReadMode::Confirm, long(token).as_bytes());
    }
    bench.flush(0);
    let frames = of_kind(&bench.take(0, 1), Kind::Probe);
    assert_eq!(frames.len(), 4, "200 keys of 4 KiB, 256 KiB in each");
    for frame in &frames {
        assert!(frame.body().len() <= Kind::Probe.body_bytes_max());
        bench.give(0, 1, frame);
    }
    deliver_all(&mut bench);
    assert_eq!(bench.replies.len(), 200);
}

/// Node 2 has heard nothing of a key that nodes 0 and 1 have committed; how its read of it ends.
fn read_of_what_others_committed(mutant: Option<crate::mutant::Mutant>) -> (Status, u64) {
    let mut bench = Bench::three();
    bench.cut(0, 2);
    bench.cut(1, 2);
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    assert_eq!((bench.replies.pop(), bench.nodes[2].objects().count()), (Some((1, Status::Ok, 1)), 0));
    bench.nodes[2].config.mutant = mutant;
    bench.connect(1, 2);
    for (from, to) in [(1, 2), (2, 1)] {
        bench.take(from, to);
    }
    bench.ask(2, 2, Action::Get);
    for _ in 0..60 {
        bench.settle();
    }
    let (_, status, version) = bench.replies.pop().expect("the read is answered");
    (status, version)
}

#[test]
fn a_read_finds_what_others_have_committed() {
    assert_eq!(read_of_what_others_committed(None), (Status::Ok, 1));
}

#[cfg(feature = "sim")]
#[test]
fn less_than_a_quorum_finds_nothing() {
    for mutant in [crate::mutant::Mutant::AbsentUnasked, crate::mutant::Mutant::ProbeOneShort] {
        assert_eq!(read_of_what_others_committed(Some(mutant)), (Status::NotFound, 0), "{mutant:?}");
    }
}

#[test]
fn a_probe_waits_for_a_quorum_and_is_sent_again() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Get);
    assert_eq!(of_kind(&bench.take(0, 1), Kind::Probe).len(), 1);
    assert_eq!(of_kind(&bench.take(0, 2), Kind::Probe).len(), 1);
    assert_eq!(bench.replies, [], "both are lost");
    (0..10).for_each(|_| bench.settle());
    assert_eq!((bench.replies.pop(), bench.nodes[0].objects().count()), (Some((1, Status::NotFound, 0)), 0));
    bench.cut(0, 1);
    bench.cut(0, 2);
    bench.ask(0, 2, Action::Get);
    bench.settle();
    assert_eq!(bench.replies, [], "it is not for one node of three to say");
    bench.connect(0, 2);
    (0..10).for_each(|_| bench.settle());
    assert_eq!(bench.replies, [(2, Status::NotFound, 0)]);
}

/// A read through the log is a command: it makes an object, as a write does.
#[test]
fn a_read_through_the_log_makes_an_object() {
    let mut bench = Bench::three();
    ask_key(&mut bench, 0, 1, ReadMode::Log, b"k");
    bench.flush(0);
    bench.settle();
    assert_eq!(bench.replies, [(1, Status::NotFound, 0)]);
    assert_eq!(bench.nodes[1].objects().count(), 1);
}
