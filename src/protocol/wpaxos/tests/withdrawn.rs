//! Entries that are withdrawn before they were sent go as empty numbers (`protocol.md` §5).

use super::*;

/// Node 0 has proposed a long value that node 2 has not been sent, and has given the object up to node 1; what node 2 is sent
/// when it comes back.
fn sent_late(bench: &mut Bench) -> Vec<Frame> {
    bench.ask(0, 1, Action::Put(b"first"));
    bench.settle();
    bench.cut(0, 2);
    bench.ask(0, 2, Action::Put(&[7; 1000]));
    bench.take(0, 1);
    let object = bench.nodes[1].objects.find(b"k").expect("it has executed the first");
    bench.nodes[1].start_phase1(bench.now, object, None);
    bench.flush(1);
    bench.deliver(1, 0);
    assert!(!bench.leads(0), "it has promised node 1");
    bench.cut(0, 1);
    bench.connect(0, 2);
    bench.deliver(2, 0);
    bench.flush(0);
    of_kind(&bench.take(0, 2), Kind::AcceptBatch)
}

#[test]
fn a_withdrawn_entry_that_was_not_sent_goes_as_an_empty_number() {
    let mut bench = Bench::three();
    let frames = sent_late(&mut bench);
    let bytes: usize = frames.iter().map(|frame| frame.body().len()).sum();
    assert!(!frames.is_empty() && bytes < 500, "{bytes} bytes were sent, and nobody will commit the value");
    for frame in &frames {
        bench.give(0, 2, frame);
    }
    assert_eq!(bench.nodes[2].accepted(b"k"), [], "it has accepted nothing");
    let acks = of_kind(&bench.take(2, 0), Kind::Ack);
    assert_eq!(acks.last().map(standing), Some((2, 1, vec![])), "it has taken the number");
    bench.connect(0, 1);
    for _ in 0..20 {
        bench.settle();
    }
    for node in 0..3 {
        let (applied, value, _) = bench.known(node);
        assert_eq!((node, value.map(|value| value.len())), (node, Some(1000)), "{applied} slots");
        assert_eq!(bench.nodes[node].accepted(b"k"), []);
    }
    assert_eq!(bench.replies, [(1, Status::Ok, 1), (2, Status::Ok, 2)], "the command went to the next owner");
}

/// A receiver never executes an empty number, whatever the watermark says of it.
#[test]
fn an_empty_number_is_not_executed() {
    let mut bench = Bench::three();
    let frames = sent_late(&mut bench);
    for frame in &frames {
        bench.give(0, 2, frame);
    }
    let (stream, applied) = (bench.nodes[0].stream.id, bench.known(2).0);
    let head = BatchHead {
        stream,
        first_seq: 3.into(),
        commit_from: 1.into(),
        commit_to: 2.into(),
        entries: 0.into(),
        entries_bytes: 0.into(),
        withdrawn: 0.into(),
        reserved: 0.into(),
    };
    bench.give(0, 2, &wire::parse(wire::frame(Kind::AcceptBatch, 0, 1, head.as_bytes())).unwrap());
    assert_eq!((bench.known(2).0, bench.nodes[2].inbound[0].watermark), (applied, 2));
}

#[cfg(feature = "sim")]
#[test]
fn in_full_it_costs_its_bytes() {
    let mut bench = Bench::three();
    bench.nodes[0].config.mutant = Some(crate::mutant::Mutant::WithdrawnSent);
    let bytes: usize = sent_late(&mut bench).iter().map(|frame| frame.body().len()).sum();
    assert!(bytes > 1000, "{bytes}");
}
