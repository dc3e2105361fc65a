//! Whatever a node executes or accepts it can log, put into a checkpoint, read back and send; what it cannot is refused before
//! anything of its frame is taken.

use bytes::BytesMut;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::{super::*, *};
use crate::{
    command::{COMMAND_BYTES_MAX, ID_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX},
    protocol::wpaxos::{
        message::{
            ForwardHead, KeyBallotHead, ListHead, ListRequestBody, MergeRow, NUMBER_MAX, PrepareHead, ROUND_MAX,
            StateEntryHead, put_state,
        },
        stream::HeldFrame,
    },
    store::{OPEN_SLOTS_MAX, SESSIONS_MIN},
    wire::{ENTRIES_OPEN_MAX, FrameError, SPLIT_BYTES, WITHDRAWN_MAX},
};

fn frame_of(kind: Kind, parts: &[&[u8]]) -> Frame {
    wire::parse(wire::frame(kind, 0, 1, &parts.concat())).unwrap()
}

fn encoded(client: u64, id: u64, key: &[u8], action: Action<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    NewCommand { client, id, retry: false, key, action }.encode(&mut bytes).unwrap();
    bytes
}

/// Reads a state back as a row of a State frame.
fn read_back(state: &ObjectState, applied: u64) -> Result<ObjectState, FrameError> {
    let mut body = BytesMut::new();
    let bytes = put_state(&mut body, state) as u32;
    let frame = frame_of(Kind::State, &[&body]);
    let mut reader = Reader::new(&frame);
    let read = reader.state(bytes.into(), applied)?;
    assert!(reader.is_empty());
    Ok(read)
}

/// A State of one object, `applied` and promised as given.
fn state_frame(key: &[u8], applied: u64, promised: Ballot, state: &ObjectState) -> Frame {
    let mut rest = BytesMut::new();
    let state_bytes = (put_state(&mut rest, state) as u32).into();
    let head = StateEntryHead {
        applied: applied.into(),
        promised: promised.number.into(),
        promised_version: promised.version.into(),
        state_bytes,
        key_bytes: (key.len() as u16).into(),
        reserved: 0.into(),
    };
    frame_of(Kind::State, &[head.as_bytes(), key, &rest])
}

fn handover(ballot: Ballot) -> Frame {
    frame_of(Kind::Handover, &[super::super::read::key_ballot_head(ballot, b"k").as_bytes(), b"k"])
}

impl Bench {
    /// Restarts a node: on its whole log, and on a checkpoint that it makes now. Both must be readable.
    fn reborn(&mut self, node: usize) -> [WPaxos; 2] {
        self.flush(node);
        let mut frames = Vec::new();
        self.nodes[node].begin_checkpoint(&mut frames);
        let position = self.nodes[node].logged;
        let mut cursor = Some(0);
        while let Some(place) = cursor {
            let (frame, next) = self.nodes[node].checkpoint_objects(place, 64 << 10);
            frames.push(frame);
            cursor = next;
        }
        let config = Config { boot: self.configs[node].boot + 1, ..self.configs[node].clone() };
        let mut from_log = WPaxos::new(config.clone(), self.now);
        for record in &self.logs[node] {
            from_log.on_replay(self.now, record).unwrap();
        }
        let mut from_checkpoint = WPaxos::new(config, self.now);
        for frame in &frames {
            from_checkpoint.on_restore(self.now, frame).unwrap();
        }
        from_checkpoint.end_restore(self.now, position);
        for (known, restored) in self.nodes[node].objects().zip(from_checkpoint.objects()) {
            let seen = |object: &crate::protocol::wpaxos::invariants::ObjectView<'_>| {
                (object.key.to_vec(), object.promised, object.applied, object.state.clone(), object.tail_mark)
            };
            assert_eq!(seen(&known), seen(&restored));
        }
        let mut cores = [from_log, from_checkpoint];
        cores.iter_mut().for_each(|core| {
            core.end_replay(self.now);
            core.check_invariants();
        });
        cores
    }

    /// What a node says to a frame; it must not have taken anything of one that it refuses.
    fn refuses(&mut self, from: usize, to: usize, frame: &Frame) -> FrameError {
        let before: Vec<_> = self.nodes[to].objects().map(|object| (object.promised, object.applied)).collect();
        let logged = self.nodes[to].logged;
        let out = &mut self.outs[to];
        let error = self.nodes[to].on_frame(self.now, NodeIndex(from as u8), frame, out).unwrap_err();
        self.flush(to);
        let after: Vec<_> = self.nodes[to].objects().map(|object| (object.promised, object.applied)).collect();
        assert_eq!((after, self.nodes[to].logged), (before, logged), "{error}");
        self.reborn(to);
        error
    }
}

/// One command of a hostile sequence: who, how its id follows from the last one of that client, whether it says retry, what.
type Step = (u64, usize, bool, usize);

fn next_id(last: u64, way: usize) -> u64 {
    let id = match way {
        0 => 1,
        1 => ID_MAX,
        2 => last.saturating_sub(1),
        3 => last.saturating_add(1 << 32),
        4 => last.saturating_sub(1 << 32),
        5 => last.saturating_add(70),
        6 => last.saturating_sub(70),
        7 => last,
        8 => last.saturating_add(u64::from(u32::MAX)),
        9 => 1 << 63,
        _ => last.saturating_add(1),
    };
    id.clamp(1, ID_MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is executed can be encoded and is read back as it was.
    #[test]
    fn any_executed_state_is_read_back(
        steps in prop::collection::vec((1..60u64, 0..24usize, any::<bool>(), 0..8usize), 1..300),
    ) {
        let steps: Vec<Step> = steps;
        let large = vec![7; VALUE_BYTES_MAX];
        let (mut state, mut last) = (ObjectState::default(), std::collections::BTreeMap::new());
        for (slot, (client, way, retry, what)) in (1..).zip(&steps) {
            let id = next_id(last.get(client).copied().unwrap_or(1), *way);
            last.insert(*client, id);
            let action = match what {
                0 => Action::Delete,
                1 => Action::Get,
                2 if slot % 16 == 0 => Action::Put(&large),
                3 => Action::CompareAndSwap { expect: crate::command::Expect::Absent, value: b"" },
                _ => Action::Put(b"value"),
            };
            let client = if *client == 59 { u64::MAX } else { *client };
            let mut bytes = Vec::new();
            NewCommand { client, id, retry: *retry, key: b"k", action }.encode(&mut bytes).unwrap();
            let command = Command::parse(&bytes).unwrap();
            prop_assert!(command.is_request());
            state.execute(slot, command, OPEN_SLOTS_MAX);
            if slot % 10 == 0 || slot == steps.len() as u64 {
                prop_assert_eq!(read_back(&state, slot), Ok(state.clone()));
            }
        }
    }

    /// What a state's row may hold is what execution goes on from: neither panics nor makes what is not read back.
    #[test]
    fn execution_goes_on_from_whatever_is_read(
        sessions in prop::collection::vec(
            (1..40u64, prop::sample::select(vec![0, 1, 2, 64, 65, 66, 1 << 32, ID_MAX, u64::MAX]), any::<u64>(),
             prop::sample::select(vec![0, 1, 65, 66, u32::MAX]), 0..30u64),
            0..20,
        ),
        more in prop::collection::vec((1..60u64, 0..12usize), 1..60),
    ) {
        let mut recent = crate::store::Recent::default();
        for (client, highest, before, back, slot) in sessions {
            let mut backs = [0; crate::store::OLDER_MAX];
            backs[0] = back;
            let Some(older) = crate::store::Older::from_backs(highest, backs) else { continue };
            let before = if highest > 64 { before } else { 0 };
            let (status, version) = (Status::Ok, 0);
            let (floor, blind_below) = (0, 0);
            recent.sessions.push(crate::store::Session {
                client, highest, before, older, floor, blind_below, slot, status, version, digest: 0,
            });
        }
        let state = ObjectState { value: None, version: 3, recent };
        let Ok(mut state) = read_back(&state, 30) else { return Ok(()) };
        let mut last = std::collections::BTreeMap::new();
        for (slot, (client, way)) in (31..).zip(more) {
            let id = next_id(last.get(&client).copied().unwrap_or(5), way);
            last.insert(client, id);
            let bytes = encoded(client, id, b"k", Action::Put(b"v"));
            state.execute(slot, Command::parse(&bytes).unwrap(), OPEN_SLOTS_MAX);
            prop_assert_eq!(read_back(&state, slot), Ok(state.clone()));
        }
    }
}

/// Command ids 0 and 100 of any client made an object that no build could read.
#[test]
fn ids_that_no_command_has_are_refused_on_every_path() {
    let mut bench = Bench::three();
    let hostile = [(7, 0), (7, u64::MAX), (0, 5)];
    for (number, (client, id)) in hostile.into_iter().enumerate() {
        // As a request, which is answered: the connection lasts.
        bench.replies.clear();
        let frame = Bytes::from(encoded(client, id, b"k", Action::Put(b"x")));
        let (command, zone) = (Command::parse(&frame).unwrap(), bench.nodes[0].config.my_zone());
        let reply_to = ReplyTo(number as u64);
        let request = Request { reply_to, zone, read: ReadMode::Confirm, command, frame: &frame };
        bench.nodes[0].on_request(bench.now, request, &mut bench.outs[0]);
        bench.flush(0);
        assert_eq!(bench.replies, [(number as u64, Status::BadRequest, 0)]);
        // From a peer: forwarded, in a stream, in a promise's tail.
        let bytes = (frame.len() as u32).into();
        let forward = ForwardHead { id: 1.into(), command_bytes: bytes, zone: 0, read: 0, reserved: 0.into() };
        bench.refuses(1, 0, &frame_of(Kind::Forward, &[forward.as_bytes(), &frame]));
        let entry =
            EntryHead { slot: 1.into(), ballot: ballot(9, 1, 2).number.into(), command_bytes: bytes, empty: 0.into() };
        let mut batch = batch(1, 1, &[]).body().to_vec();
        batch[40..44].copy_from_slice(&1u32.to_le_bytes());
        batch[44..48].copy_from_slice(&((entry.as_bytes().len() + frame.len()) as u32).to_le_bytes());
        bench.refuses(1, 0, &frame_of(Kind::AcceptBatch, &[&batch, entry.as_bytes(), &frame]));
    }
    assert_eq!(bench.nodes[0].objects().count(), 0);
    bench.replies.clear();
    for (token, id) in [(1, 1), (2, 100), (3, ID_MAX), (4, 5)] {
        bench.ask(0, id, Action::Put(&[token]));
        bench.settle();
    }
    assert_eq!(bench.replies.iter().filter(|(_, status, _)| *status == Status::Ok).count(), 3);
    for node in 0..3 {
        bench.reborn(node);
    }
}

/// A Handover at the last round made the node log a Prepare of its own that it could not read.
#[test]
fn an_object_at_the_last_round_is_taken_no_more_and_poisons_nothing() {
    let mut bench = Bench::three();
    bench.refuses(2, 1, &handover(ballot(ROUND_MAX, 1, 3)));
    bench.give(2, 1, &handover(ballot(ROUND_MAX - 2, 1, 3)));
    assert_eq!(bench.promised(1), ballot(ROUND_MAX - 1, 1, 2), "there was one more");
    bench.settle();
    assert!(bench.leads(1));
    bench.ask(1, 1, Action::Put(b"a"));
    bench.settle();
    bench.give(2, 1, &handover(ballot(ROUND_MAX - 1, 1, 3)));
    bench.settle();
    assert!(!bench.leads(1) && bench.counter(1, "rounds_exhausted") > 0);
    bench.ask(1, 2, Action::Put(b"b"));
    for _ in 0..100 {
        bench.pass(100_000);
    }
    assert_eq!(bench.replies.len(), 2, "{:?}", bench.replies);
    for node in 0..3 {
        bench.reborn(node);
    }
}

/// One entry without a ballot was taken, put into the log and the checkpoint, and read by nobody.
#[test]
fn an_entry_needs_a_ballot_of_its_owner() {
    let mut bench = Bench::three();
    for wrong in [Ballot { version: 1, number: 0 }, ballot(1, 1, 1), ballot(ROUND_MAX, 1, 3)] {
        bench.refuses(2, 1, &batch(2, 1, &[(1, wrong, b"a")]));
        bench.refuses(2, 1, &batch(2, 1, &[(1, ballot(1, 1, 3), b"a"), (2, wrong, b"b")]));
    }
    bench.give(2, 1, &batch(2, 1, &[(1, ballot(1, 1, 3), b"a")]));
    assert_eq!(bench.nodes[1].accepted(b"k").len(), 1);
}

/// An entry at a far slot made the object's next owner fill a million slots before it.
#[test]
fn a_slot_that_cannot_be_is_not_led_up_to() {
    let mut bench = Bench::three();
    bench.give(2, 1, &batch(2, 1, &[(500_000, ballot(1, 1, 3), b"a")]));
    bench.cut(0, 2);
    bench.cut(1, 2);
    bench.pass(200_000);
    bench.ask(0, 1, Action::Put(b"b"));
    for _ in 0..200 {
        bench.pass(100_000);
        bench.deliver(0, 1);
        bench.deliver(1, 0);
    }
    assert_eq!(bench.counter(0, "noops"), 0);
    assert_eq!(bench.replies.len(), 1, "{:?}", bench.replies);
    bench.reborn(0);
    bench.reborn(1);
}

#[test]
fn states_that_no_execution_makes_are_refused() {
    let mut bench = Bench::three();
    let plain = ObjectState { value: Some(b"v"[..].into()), version: 1, ..ObjectState::default() };
    let long = ObjectState { value: Some(vec![0; VALUE_BYTES_MAX + 1].as_slice().into()), ..plain.clone() };
    let oversized = ObjectState { value: Some(vec![0; 64 << 10].as_slice().into()), ..plain.clone() };
    bench.refuses(1, 0, &state_frame(b"k", 1, ballot(1, 1, 2), &long));
    bench.refuses(1, 0, &state_frame(b"k", NUMBER_MAX, ballot(1, 1, 2), &oversized));
    let ahead = ObjectState { version: 3, ..plain.clone() };
    bench.refuses(1, 0, &state_frame(b"k", 2, ballot(1, 1, 2), &ahead));
    let session = |client, slot| crate::store::Session {
        client,
        highest: 1,
        digest: 0,
        before: 0,
        older: crate::store::Older::default(),
        floor: 0,
        blind_below: 0,
        slot,
        status: Status::Ok,
        version: 1,
    };
    let mut twice = plain.clone();
    twice.recent.sessions.extend([session(1, 1), session(2, 1)]);
    bench.refuses(1, 0, &state_frame(b"k", 9, ballot(1, 1, 2), &twice));
    let mut crowd = plain.clone();
    let most = (SESSIONS_MIN as u64) + OPEN_SLOTS_MAX;
    crowd.recent.sessions.extend((1..=most + 1).map(|number| session(number, number)));
    bench.refuses(1, 0, &state_frame(b"k", 999, ballot(1, 1, 2), &crowd));
    let mut bits = plain.clone();
    bits.recent.sessions.push(crate::store::Session { before: 1, ..session(1, 1) });
    bench.refuses(1, 0, &state_frame(b"k", 9, ballot(1, 1, 2), &bits));
    let later = Ballot { version: 2, ..ballot(1, 1, 2) };
    bench.refuses(1, 0, &state_frame(b"k", 9, later, &plain));
    bench.give(1, 0, &state_frame(b"k", 9, ballot(1, 1, 2), &plain));
    assert_eq!(bench.known(0).0, 9);
}

/// The last slot there is: nothing is proposed above it, and everything stays readable.
#[test]
fn an_object_at_the_last_slots_takes_no_more_commands() {
    let mut bench = Bench::three();
    let state = ObjectState { value: None, version: NUMBER_MAX - 3, ..ObjectState::default() };
    for node in 0..3 {
        bench.give((node + 1) % 3, node, &state_frame(b"k", NUMBER_MAX - 3, ballot(1, 1, 2), &state));
    }
    for token in 1..=5 {
        bench.ask(1, token, Action::Put(b"a"));
        bench.settle();
    }
    for _ in 0..100 {
        bench.pass(100_000);
    }
    let done = bench.replies.iter().filter(|(_, status, _)| *status == Status::Ok).count();
    assert_eq!((done, bench.replies.len()), (2, 5), "{:?}", bench.replies);
    for node in 0..3 {
        assert_eq!(bench.known(node).0, NUMBER_MAX - 1);
        bench.reborn(node);
    }
}

/// Withdrawn alone, an entry left those behind it to be committed before it.
#[test]
fn a_refusal_needs_a_ballot_that_is_higher() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Put(b"b"));
    bench.ask(0, 3, Action::Put(b"c"));
    let standing = |refusals: &[(u64, Ballot)], last_seq: u64, watermark: u64| {
        let head = Standing {
            stream: bench.nodes[0].stream.id,
            refusals: (refusals.len() as u32).into(),
            learner: 0,
            reserved: [0; 3],
            last_seq: last_seq.into(),
            watermark: watermark.into(),
            behind_from: 0.into(),
        };
        let mut body = head.as_bytes().to_vec();
        for (seq, ballot) in refusals {
            let refusal = Refusal { seq: (*seq).into(), ballot: ballot.number.into() };
            body.extend_from_slice(refusal.as_bytes());
        }
        frame_of(Kind::Ack, &[&body])
    };
    let hostile = [
        standing(&[(2, ballot(1, 1, 1))], 3, 1),
        standing(&[(3, ballot(2, 1, 2)), (2, ballot(2, 1, 2))], 3, 1),
        standing(&[(9, ballot(2, 1, 2))], 3, 1),
        standing(&[], 3, 4),
        standing(&[], 9, 1),
    ];
    for frame in &hostile {
        bench.refuses(1, 0, frame);
    }
    assert!(bench.leads(0));
    bench.settle();
    assert_eq!(bench.known(0).2, 3);
}

/// A peer that passes an entry which this node, the object's owner, has refused: it is no owner any more.
#[test]
fn a_decision_from_elsewhere_deposes_an_owner() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.nodes[0].objects[ObjectIndex(0)].promised = ballot(5, 1, 1);
    bench.ask(0, 2, Action::Put(b"b"));
    bench.give(2, 0, &batch(2, 1, &[(2, ballot(4, 1, 3), b"x"), (3, ballot(4, 1, 3), b"y")]));
    let mut commit = batch(2, 3, &[]).body().to_vec();
    commit[32..40].copy_from_slice(&2u64.to_le_bytes());
    bench.give(2, 0, &frame_of(Kind::AcceptBatch, &[&commit]));
    assert!(!bench.leads(0) && bench.known(0).0 == 3);
    bench.deliver(0, 1);
    bench.deliver(1, 0);
    assert!(bench.nodes[0].requests.len() <= 1, "its own entry is withdrawn, and never executed in that slot");
    bench.reborn(0);
}

#[test]
fn merged_tails_have_ballots_of_their_own_version_or_earlier_ones_and_commands_of_their_object() {
    let mut bench = Bench::three();
    let row = |version: u32, key: &[u8], slots: &[u64]| {
        let head = ListHead { asked: 0.into(), next: u32::MAX.into(), more: 0, reserved: [0; 3] };
        let merge =
            MergeRow { applied: 0.into(), tail: (slots.len() as u32).into(), key_bytes: 1.into(), reserved: 0.into() };
        let mut body = [head.as_bytes(), merge.as_bytes(), b"k"].concat();
        for slot in slots {
            let command = encoded(7, 1, key, Action::Put(b"v"));
            let entry = TailHead {
                slot: (*slot).into(),
                ballot: ballot(3, 1, 3).number.into(),
                ballot_version: version.into(),
                command_bytes: (command.len() as u32).into(),
                decided: 0,
                reserved: [0; 3],
            };
            body.extend_from_slice(entry.as_bytes());
            body.extend_from_slice(&command);
        }
        frame_of(Kind::Merge, &[&body])
    };
    let take = |bench: &mut Bench, frame: &Frame| {
        let taken = bench.nodes[0].take_rows(bench.now, NodeIndex(1), frame);
        bench.flush(0);
        taken
    };
    for wrong in [row(2, b"k", &[1]), row(0, b"k", &[1]), row(1, b"j", &[1]), row(1, b"k", &[2, 1]), row(1, b"k", &[0])]
    {
        assert!(take(&mut bench, &wrong).is_err());
        assert_eq!(bench.nodes[0].objects().count(), 0);
    }
    take(&mut bench, &row(1, b"k", &[1, 2])).unwrap();
    assert_eq!(bench.nodes[0].accepted(b"k").len(), 2);
    bench.reborn(0);
}

// ---- frames at their largest ---------------------------------------------------------------------------------------

/// Node 1 knows these slots of "k" decided, above a gap, with values of a mebibyte.
fn long_tail(bench: &mut Bench, node: usize, slots: std::ops::RangeInclusive<u64>) {
    let value = vec![7; VALUE_BYTES_MAX];
    let object = bench.nodes[node].object_of(b"k");
    for slot in slots {
        let bytes = encoded(9, slot, b"k", Action::Put(&value));
        let (now, out) = (bench.now, &mut bench.outs[node]);
        bench.nodes[node].raise(now, object, ballot(1, 1, 3));
        bench.nodes[node].learn(now, object, slot, ballot(1, 1, 3), Command::view(&bytes), out);
    }
}

fn long_promise() -> (Bench, Vec<Frame>) {
    let mut bench = Bench::three();
    long_tail(&mut bench, 1, 2..=67);
    bench.cut(0, 2);
    bench.pass(200_000);
    bench.ask(0, 1, Action::Put(b"v"));
    bench.links[0][2].clear();
    bench.nodes[0].objects[ObjectIndex(0)].promised = ballot(1, 1, 1);
    bench.deliver(0, 1);
    // Its own ballot was beaten by what the tail was accepted at: the next one is not.
    bench.deliver(1, 0);
    for _ in 0..20 {
        bench.pass(50_000);
        bench.deliver(0, 1);
        let promises = of_kind(&bench.links[1][0].iter().cloned().collect::<Vec<_>>(), Kind::Promise);
        if !promises.is_empty() {
            bench.take(1, 0);
            return (bench, promises);
        }
        bench.deliver(1, 0);
    }
    panic!("it never promises");
}

#[test]
fn a_promise_of_any_length_goes_in_parts_and_counts_when_it_is_whole() {
    let (mut bench, promises) = long_promise();
    assert!(promises.len() > 16, "{} frames", promises.len());
    let (last, parts) = promises.split_last().unwrap();
    for part in parts {
        bench.give(1, 0, part);
        assert!(!bench.leads(0));
    }
    // Without the parts before it on its connection, the last one is worth nothing.
    bench.cut(0, 1);
    bench.connect(0, 1);
    bench.give(1, 0, last);
    assert!(!bench.leads(0));
    bench.give(1, 0, &promises[1]);
    bench.give(1, 0, last);
    assert!(!bench.leads(0));
    for part in &promises {
        bench.give(1, 0, part);
    }
    assert!(bench.leads(0));
    bench.settle_but(&[(0, 2), (2, 0)]);
    assert_eq!(bench.known(0).0, bench.known(1).0);
    assert!(bench.known(0).0 >= 67);
}

#[test]
fn a_tail_of_any_length_goes_into_a_checkpoint_and_a_merge() {
    let mut bench = Bench::three();
    long_tail(&mut bench, 1, 2..=67);
    let before: Vec<_> = bench.nodes[1].accepted(b"k").iter().map(|entry| entry.slot).collect();
    let [_, restored] = bench.reborn(1);
    let after: Vec<_> = restored.accepted(b"k").iter().map(|entry| entry.slot).collect();
    assert_eq!(after, before);
    // A part that is missing is noticed.
    let mut frames = Vec::new();
    let mut cursor = Some(0);
    while let Some(place) = cursor {
        let (frame, next) = bench.nodes[1].checkpoint_objects(place, 64 << 10);
        frames.push(frame);
        cursor = next;
    }
    let mut broken = WPaxos::new(bench.configs[1].clone(), bench.now);
    broken.on_restore(bench.now, &frames[0]).unwrap();
    assert!(broken.on_restore(bench.now, &frames[2]).is_err());
    let request = ListRequestBody { cursor: 0.into() };
    bench.give(0, 1, &frame_of(Kind::MergeRequest, &[request.as_bytes()]));
    let pages = of_kind(&bench.take(1, 0), Kind::Merge);
    assert!(pages.len() > 16);
    for (number, page) in (1..).zip(&pages) {
        let head: ListHead = *Reader::new(page).take().unwrap();
        assert_eq!((head.asked.get(), head.more == 0), (0, number == pages.len()));
        bench.nodes[0].take_rows(bench.now, NodeIndex(1), page).unwrap();
    }
    bench.flush(0);
    let merged: Vec<_> = bench.nodes[0].accepted(b"k").iter().map(|entry| entry.slot).collect();
    assert_eq!(merged, before);
}

#[test]
fn reads_of_more_keys_than_a_frame_holds_are_confirmed_in_several_rounds() {
    let mut bench = Bench::new(&[3], |_, tuning| tuning.flow.requests_max = 20_000);
    let key = |number: u64| {
        let mut key = vec![b'x'; KEY_BYTES_MAX];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    };
    const READS: u64 = 1_640;
    for number in 1..=READS {
        let key = key(number);
        let object = bench.nodes[0].object_of(&key);
        bench.nodes[0].objects[object].promised = ballot(1, 1, 1);
        bench.nodes[0].objects[object].role = Role::Leading(Leading { next_slot: 1, settled: 0, round: 0 });
        let frame = Bytes::from(encoded(7, number, &key, Action::Get));
        let (command, zone) = (Command::parse(&frame).unwrap(), bench.nodes[0].config.my_zone());
        let request = Request { reply_to: ReplyTo(number), zone, read: ReadMode::Confirm, command, frame: &frame };
        bench.nodes[0].on_request(bench.now, request, &mut bench.outs[0]);
    }
    bench.flush(0);
    let rounds = of_kind(&bench.links[0][1].iter().cloned().collect::<Vec<_>>(), Kind::Confirm);
    assert!(rounds.len() > 20 && rounds.iter().all(|round| round.body().len() <= Kind::Confirm.body_bytes_max()));
    bench.settle();
    assert_eq!(bench.replies.len() as u64, READS);
    assert!(bench.nodes[0].reads.is_empty());
}

#[test]
fn a_watermark_that_passes_many_withdrawn_entries_is_told_in_several_frames() {
    let mut bench = Bench::three();
    let stream = &mut bench.nodes[0].stream;
    let command = encoded(7, 1, b"k", Action::Get);
    let count = 2 * WITHDRAWN_MAX as u64 + 5;
    for slot in 1..=count {
        stream.append(bench.now, ObjectIndex(0), slot, ballot(1, 1, 1), &command, RequestKey::NONE);
        if slot % 10_000 == 0 || slot == count {
            stream.seal(0, 1).unwrap();
        }
    }
    for seq in 1..=count {
        stream.withdraw(seq);
    }
    let mut held = HeldFrame::default();
    for _ in 1..=count {
        stream.commit_next(bench.now, &mut held);
    }
    let moves = |frames: Vec<Bytes>| -> Vec<(u64, u64)> {
        let frames = frames.into_iter().map(|frame| commits(&wire::parse(frame).unwrap()));
        frames
            .map(|(from, to, withdrawn)| {
                assert_eq!(withdrawn, (from + 1..=to).collect::<Vec<_>>());
                (from, to)
            })
            .collect()
    };
    let most = WITHDRAWN_MAX as u64;
    let expected = [(0, most), (most, 2 * most), (2 * most, count)];
    assert_eq!(moves(stream.commit_frames(0, count, 0, 1)), expected);
    let sealed: Vec<Bytes> = std::iter::from_fn(|| stream.seal(0, 1)).collect();
    assert_eq!(moves(sealed), expected);
    assert_eq!(bench.nodes[0].stream.announced(), count);
}

/// Every entry that a receiver keeps stands refused: the longest ack there is. One entry more is not taken.
#[test]
fn as_many_refusals_stand_as_an_ack_can_list() {
    let mut bench = Bench::three();
    bench.give(2, 1, &batch(2, 1, &[(1, ballot(1, 1, 3), b"a")]));
    let most = ENTRIES_OPEN_MAX as u64;
    bench.nodes[1].inbound[2].refusals = (1..=most).map(|seq| (seq, ballot(7, 1, 1))).collect();
    bench.nodes[1].send_standing(NodeIndex(2), Kind::Ack, &mut bench.outs[1]);
    bench.flush(1);
    let ack = bench.take(1, 2).pop().unwrap();
    assert_eq!(ack.body().len(), size_of::<Standing>() + 16 * ENTRIES_OPEN_MAX);
    bench.nodes[1].inbound[2].last_seq = most;
    let over = batch(2, most + 1, &[(9, ballot(8, 1, 3), b"b")]);
    let (node, out) = (&mut bench.nodes[1], &mut bench.outs[1]);
    let refused = node.on_frame(bench.now, NodeIndex(2), &over, out).unwrap_err();
    assert!(refused.to_string().contains("more entries open"), "{refused}");
}

/// Rows of the largest kind there is, each frame filled up to where it is closed.
#[test]
fn gathered_frames_stay_below_their_limits() {
    let rows = [
        (Kind::Prepare, size_of::<PrepareHead>() + KEY_BYTES_MAX),
        (Kind::Reject, size_of::<RejectHead>() + KEY_BYTES_MAX),
        (Kind::Handover, size_of::<KeyBallotHead>() + KEY_BYTES_MAX),
        (Kind::StateRequest, size_of::<StateEntryHead>() + KEY_BYTES_MAX),
        (Kind::Forward, size_of::<ForwardHead>() + COMMAND_BYTES_MAX),
        (Kind::ForwardReply, 40 + VALUE_BYTES_MAX),
    ];
    for (kind, row) in rows {
        let mut bench = Bench::three();
        // Just not enough to close it, and then a largest row.
        bench.nodes[0].links[1].put(kind, RecordId::NONE, &[0u8; 1], &[&vec![0; SPLIT_BYTES - 26]]);
        bench.nodes[0].links[1].put(kind, RecordId::NONE, &[0u8; 1], &[&vec![0; row - 1]]);
        bench.flush(0);
        let frame = of_kind(&bench.take(0, 1), kind).pop().unwrap();
        assert_eq!(frame.body().len(), SPLIT_BYTES - 25 + row, "{kind:?}");
        assert!(frame.body().len() <= kind.body_bytes_max());
    }
}

#[test]
fn the_largest_state_goes_into_a_frame_that_is_nearly_full() {
    let mut bench = Bench::three();
    let key = vec![b'x'; KEY_BYTES_MAX];
    let object = bench.nodes[1].object_of(&key);
    let value = vec![7; VALUE_BYTES_MAX];
    let known = &mut bench.nodes[1].objects[object];
    for slot in 1..=2 * OPEN_SLOTS_MAX {
        let bytes = encoded(slot, 1, &key, Action::Put(&value));
        known.state.execute(slot, Command::view(&bytes), OPEN_SLOTS_MAX);
        known.applied = slot;
    }
    assert!(known.state.recent.sessions.len() as u64 > OPEN_SLOTS_MAX);
    let mut ask = StateEntryHead {
        applied: 0.into(),
        promised: 0.into(),
        promised_version: 0.into(),
        state_bytes: 0.into(),
        key_bytes: (KEY_BYTES_MAX as u16).into(),
        reserved: 0.into(),
    };
    ask.applied = 1.into();
    let row = [ask.as_bytes(), &key].concat();
    bench.give(0, 1, &frame_of(Kind::StateRequest, &[&row, &row, &row]));
    let states = of_kind(&bench.take(1, 0), Kind::State);
    assert_eq!(states.len(), 3);
    bench.give(1, 0, &states[0]);
    assert_eq!(bench.nodes[0].objects().next().unwrap().applied, 2 * OPEN_SLOTS_MAX);
    bench.reborn(0);
    bench.reborn(1);
}

/// What is repeated does not pile up on a link that takes nothing.
#[test]
fn rounds_and_prepares_are_repeated_where_there_is_room() {
    let mut bench = Bench::three();
    bench.ask(0, 1, Action::Put(b"a"));
    bench.settle();
    bench.ask(0, 2, Action::Get);
    for node in [1, 2] {
        assert!(of_kind(&bench.take(0, node), Kind::Confirm).len() <= 1);
        bench.outs[0].room[node] = 0;
    }
    let counted =
        |bench: &mut Bench, kind| -> usize { [1, 2].map(|to| of_kind(&bench.take(0, to), kind).len()).iter().sum() };
    for _ in 0..20 {
        bench.pass(100_000);
        assert_eq!(counted(&mut bench, Kind::Confirm), 0);
    }
    bench.outs[0].room[1] = usize::MAX;
    bench.ask(0, 3, Action::Get);
    counted(&mut bench, Kind::Confirm);
    bench.pass(100_000);
    bench.pass(100_000);
    assert!(counted(&mut bench, Kind::Confirm) > 0);
    let object = bench.nodes[0].object_of(b"other");
    bench.nodes[0].start_phase1(bench.now, object, None);
    bench.flush(0);
    counted(&mut bench, Kind::Prepare);
    for node in [1, 2] {
        bench.cut(0, node);
        bench.connect(0, node);
        bench.outs[0].room[node] = 0;
    }
    counted(&mut bench, Kind::Prepare);
    for _ in 0..20 {
        bench.pass(100_000);
        assert_eq!(counted(&mut bench, Kind::Prepare), 0);
    }
    bench.outs[0].room = vec![usize::MAX; 3];
    for _ in 0..50 {
        bench.pass(100_000);
    }
    assert_eq!(counted(&mut bench, Kind::Prepare), 2, "one for each, once");
}
