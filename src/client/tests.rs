//! The client against a cluster that answers as each test says.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::command::Expect;
use fake::{Act, CLUSTER, Fake, Mode, Seen, done};

mod admin;
pub(crate) mod fake;
pub(crate) mod fake_http;

/// Long enough for a loaded machine to answer within, short enough for tests that wait for it to pass.
const SHORT: Duration = Duration::from_millis(100);

fn options(fake: &Fake) -> Options {
    Options { attempt_timeout: SHORT, request_timeout: SHORT * 10, ..Options::to(&fake.addresses) }
}

fn connect(fake: &Fake) -> Client {
    Client::connect(options(fake)).unwrap()
}

/// An outcome without its borrow, how often it was sent, and the version.
type Ended = (String, u32, u64);

/// Polls until nothing is in flight, then a little longer; panics if a tag ends twice.
fn finish(client: &mut Client) -> BTreeMap<u64, Ended> {
    let mut ended = BTreeMap::new();
    let started = Instant::now();
    let mut on = |completion: Completion<'_>| {
        let end = (format!("{:?}", completion.outcome), completion.attempts, completion.version);
        assert!(ended.insert(completion.tag, end).is_none(), "tag {} ended twice", completion.tag);
    };
    while client.in_flight() > 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "requests hang");
        client.poll(Duration::from_millis(20), &mut on).unwrap();
    }
    client.poll(Duration::from_millis(20), &mut on).unwrap();
    ended
}

fn outcome_of(client: &mut Client, action: Action<'_>) -> (String, u32) {
    client.submit(action, b"key", 1).unwrap();
    let (outcome, attempts, _) = finish(client).remove(&1).unwrap();
    (outcome, attempts)
}

fn three(handler: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Fake {
    Fake::start(&[("1.1", Mode::Good), ("1.2", Mode::Good), ("1.3", Mode::Good)], 1, None, handler)
}

#[test]
fn pipelined_answers_come_out_of_order_and_in_pieces() {
    let nodes = [("1.1", Mode::Good), ("1.2", Mode::Good)];
    let fake = Fake::start(&nodes, 2, Some(7), |seen| Act::Answer(Status::Ok, seen.key.clone()));
    let mut client = Client::connect(Options::to(&fake.addresses)).unwrap();
    assert_eq!((client.shards(), client.zone(), client.nodes().len()), (2, 1, 2));
    assert_eq!(client.cluster().facts["durability"], "none");
    for tag in 0..40u64 {
        client.submit(Action::Get, &tag.to_le_bytes(), tag).unwrap();
    }
    let ended = finish(&mut client);
    assert_eq!(ended.len(), 40);
    for (tag, (outcome, attempts, _)) in ended {
        assert_eq!((outcome, attempts), (format!("{:?}", Outcome::Value(&tag.to_le_bytes())), 1));
    }
    let seen = fake.seen();
    let nodes: std::collections::HashSet<_> = seen.iter().map(|seen| (seen.node, seen.shard)).collect();
    assert_eq!((seen.len(), nodes.len()), (40, 4), "every shard of every node of the zone got some");
    for seen in seen {
        assert_eq!(seen.shard, crate::topology::shard_of(token_of(&seen.key), 2).0);
        assert_eq!((seen.client, seen.retry), (client.client_id(), false));
    }
    let counters = client.counters();
    assert_eq!((counters.submitted, counters.completed, counters.resent), (40, 40, 0));
    assert_eq!((counters.frames_sent, counters.writes), (4, 4), "one frame and one write per connection");
}

#[test]
fn large_values_and_many_requests_pass() {
    let fake = three(|seen| match seen.op {
        Op::Get => Act::Answer(Status::Ok, vec![7; 1 << 20]),
        _ => done(),
    });
    let patient = Options { attempt_timeout: Duration::from_secs(5), ..Options::to(&fake.addresses) };
    let mut client = Client::connect(patient).unwrap();
    let value = vec![9; 100_000];
    for tag in 0..500u64 {
        let action = if tag % 100 == 0 { Action::Get } else { Action::Put(&value[..tag as usize * 200]) };
        client.submit(action, &tag.to_le_bytes(), tag).unwrap();
    }
    let ended = finish(&mut client);
    assert_eq!(ended.len(), 500);
    for (outcome, attempts, _) in ended.values() {
        assert!(*attempts == 1 && (outcome == "Done" || outcome.len() > 1 << 20));
    }
}

#[test]
fn a_broken_connection_resends_marked_and_under_the_same_id() {
    let fake = three(|seen| if seen.nth == 0 { Act::Close } else { done() });
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Done".to_owned(), 2));
    let seen = fake.seen();
    assert_eq!(seen.len(), 2);
    assert_ne!(seen[0].node, seen[1].node);
    assert_eq!((seen[0].id, &seen[0].value), (seen[1].id, &seen[1].value));
    assert_eq!((seen[0].retry, seen[1].retry), (false, true));
}

#[test]
fn a_silent_node_is_left_and_avoided() {
    let fake = three(|seen| if seen.node.node == 2 { Act::Ignore } else { done() });
    let slow = Options { attempt_timeout: Duration::from_millis(400), ..Options::to(&fake.addresses) };
    let mut client = Client::connect(slow).unwrap();
    let mut round = || {
        for tag in 0..30u64 {
            client.submit(Action::Put(b"v"), &tag.to_le_bytes(), tag).unwrap();
        }
        finish(&mut client)
    };
    assert!(round().values().all(|(outcome, _, _)| outcome == "Done"));
    let first = fake.seen();
    let (unanswered, answered): (Vec<_>, Vec<_>) = first.iter().partition(|seen| seen.node.node == 2);
    assert!(!unanswered.is_empty() && answered.len() == 30);
    for seen in answered {
        assert_eq!(seen.retry, unanswered.iter().any(|other| other.id == seen.id));
    }
    assert!(round().values().all(|(outcome, attempts, _)| (outcome.as_str(), *attempts) == ("Done", 1)));
    assert!(fake.seen()[first.len()..].iter().all(|seen| seen.node.node != 2));
}

#[test]
fn a_late_answer_ends_an_open_request_and_is_ignored_after() {
    // The first node answers after the second was asked; the second never does.
    let fake = three(|seen| if seen.nth == 0 { Act::Later(SHORT * 2, Status::Ok) } else { Act::Ignore });
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Get).0, format!("{:?}", Outcome::Value(b"late")));
    assert!(fake.seen().len() > 1);

    let fake = three(|seen| if seen.nth == 0 { Act::Later(SHORT * 2, Status::Ok) } else { done() });
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Done".to_owned(), 2));
    client.poll(SHORT * 3, &mut |completion| panic!("{completion:?} ended twice")).unwrap();
    assert_eq!(client.counters().late_answers, 1);
}

#[test]
fn a_caller_who_was_away_finds_the_answers_that_waited() {
    let fake = three(|_| done());
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Done".to_owned(), 1));
    client.submit(Action::Put(b"v"), b"key", 1).unwrap();
    client.flush();
    std::thread::sleep(SHORT * 2);
    assert_eq!(finish(&mut client)[&1].1, 1);
    assert_eq!(fake.seen().len(), 2);
}

/// Whoever waits elsewhere for many clients learns from `flush` when to come back.
#[test]
fn a_flush_says_how_long_a_request_may_wait_for_company_and_sends_it_then() {
    let fake = three(|seen| if seen.nth == 0 { done() } else { Act::Ignore });
    let mut client = Client::connect(Options { linger: SHORT, ..options(&fake) }).unwrap();
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")).0, "Done");
    client.submit(Action::Put(b"v"), b"key", 1).unwrap();
    assert_eq!(client.flush(), None, "no answer is on its way: it is sent");
    client.submit(Action::Put(b"v"), b"key", 2).unwrap();
    let held = client.flush().expect("an answer is on its way");
    assert!(held <= SHORT, "{held:?}");
    assert_eq!(client.counters().frames_sent, 2);
    std::thread::sleep(held + Duration::from_millis(1));
    assert_eq!(client.flush(), None);
    assert_eq!(client.counters().frames_sent, 3, "it was sent though nothing came");
}

#[test]
fn an_early_refusal_does_not_end_a_later_attempt() {
    let fake = three(|seen| match seen.nth {
        0 => Act::Later(SHORT * 2, Status::Overloaded),
        1 => Act::Later(SHORT * 2, Status::Ok),
        _ => Act::Ignore,
    });
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")).0, "Done");
}

#[test]
fn all_silent_is_ambiguous_after_the_requests_time() {
    let fake = three(|_| Act::Ignore);
    let mut client = connect(&fake);
    let started = Instant::now();
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")).0, "Ambiguous(TimedOut)");
    assert!(started.elapsed() >= SHORT * 10, "{:?}", started.elapsed());
    let retries: Vec<bool> = fake.seen().iter().map(|seen| seen.retry).collect();
    assert_eq!(retries[..3], [false, true, true], "all but the first are marked");
    assert!(retries.len() <= 4, "{retries:?}");
    let nodes: std::collections::HashSet<_> = fake.seen()[..3].iter().map(|seen| seen.node).collect();
    assert_eq!(nodes.len(), 3, "each node is asked before one is asked twice");
}

#[test]
fn attempts_are_limited() {
    let fake = three(|_| Act::Close);
    let mut client = connect(&fake);
    let ended = outcome_of(&mut client, Action::Put(b"v"));
    assert_eq!(ended, ("Ambiguous(ConnectionLost)".to_owned(), 4));
    assert_eq!(fake.seen().len(), 4);
}

#[test]
fn refusals_are_retried_unmarked_elsewhere_and_surfaced_when_time_is_over() {
    for status in [Status::Overloaded, Status::ShuttingDown, Status::TimeoutNotDone] {
        let fake = three(move |seen| if seen.nth < 2 { Act::Answer(status, Vec::new()) } else { done() });
        let mut client = connect(&fake);
        assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Done".to_owned(), 3), "{status:?}");
        let seen = fake.seen();
        assert!(seen[0].node != seen[1].node && seen[1].node != seen[2].node, "{seen:?}");
        assert!(seen.iter().all(|seen| !seen.retry && seen.id == seen.id));

        let fake = three(move |_| Act::Answer(status, Vec::new()));
        let mut client = connect(&fake);
        let (outcome, attempts) = outcome_of(&mut client, Action::Put(b"v"));
        assert_eq!(outcome, format!("Refused({status:?})"));
        assert!((4..100).contains(&attempts), "{attempts} attempts");
    }
}

#[test]
fn a_refused_retry_after_an_unanswered_attempt_is_ambiguous() {
    for (status, expected) in [
        (Status::Overloaded, "Ambiguous(RetryRefused(Overloaded))"),
        (Status::BadRequest, "Ambiguous(RetryRefused(BadRequest))"),
        (Status::IdStale, "Ambiguous(RetryRefused(IdStale))"),
        (Status::IdTaken, "Ambiguous(IdTaken)"),
        (Status::IdReused, "Refused(IdReused)"),
        (Status::OutcomeUnknown, "Ambiguous(OutcomeUnknown)"),
        (Status::TimeoutNotDone, "Ambiguous(RetryRefused(TimeoutNotDone))"),
    ] {
        let fake = three(move |seen| if seen.nth == 0 { Act::Close } else { Act::Answer(status, Vec::new()) });
        let mut client = connect(&fake);
        assert_eq!(outcome_of(&mut client, Action::Put(b"v")).0, expected);
        assert!(fake.seen()[1..].iter().all(|seen| seen.retry));
    }
    let fake = three(|_| Act::Answer(Status::BadRequest, Vec::new()));
    assert_eq!(outcome_of(&mut connect(&fake), Action::Put(b"v")), ("Refused(BadRequest)".to_owned(), 1));
}

#[test]
fn a_replica_that_gave_up_is_asked_again_as_a_retry() {
    let maybe = |seen: &Seen| match seen.nth {
        0 => Act::Answer(Status::TimeoutMaybeDone, Vec::new()),
        _ => Act::Answer(Status::Duplicate, Vec::new()),
    };
    let fake = three(maybe);
    assert_eq!(outcome_of(&mut connect(&fake), Action::Put(b"v")), ("Duplicate".to_owned(), 2));
    assert!(fake.seen()[1].retry);
    let fake = three(|_| Act::Answer(Status::TimeoutMaybeDone, Vec::new()));
    assert_eq!(outcome_of(&mut connect(&fake), Action::Put(b"v")), ("Ambiguous(ReplicaTimedOut)".to_owned(), 4));
}

#[test]
fn what_never_left_is_refused_and_not_ambiguous() {
    // The seed answers the hello; all nodes that requests go to are in a zone of which nobody is up.
    for mode in [Mode::Absent, Mode::Mute] {
        let fake = Fake::start(&[("1.1", Mode::Good), ("2.1", mode)], 1, None, |_| Act::Close);
        let mut options = Options { zone: Some(2), ..options(&fake) };
        options.attempts_max = 1;
        // With zone 1 up it stands in, and its broken connection makes the request ambiguous.
        let mut client = Client::connect(options.clone()).unwrap();
        assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Ambiguous(ConnectionLost)".to_owned(), 1));
        // With a time too short for the connection, it never left.
        options.request_timeout = Duration::from_millis(20);
        let mut client = Client::connect(options).unwrap();
        if mode == Mode::Mute {
            assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Refused(TimeoutNotDone)".to_owned(), 0));
            client.poll(SHORT * 2, &mut |completion| panic!("{completion:?}")).unwrap();
            assert_eq!(fake.seen().len(), 1, "what was given up is not sent later");
        }
    }
}

#[test]
fn absent_mute_refusing_and_strange_nodes_are_passed_over_unmarked() {
    for mode in [Mode::Absent, Mode::Mute, Mode::Refusing, Mode::Stranger] {
        let fake = Fake::start(&[("1.1", Mode::Good), ("1.2", mode), ("1.3", mode)], 1, None, |_| done());
        let mut options = options(&fake);
        options.seeds.truncate(1);
        let mut client = Client::connect(options).unwrap();
        for tag in 0..30u64 {
            client.submit(Action::Put(b"v"), &tag.to_le_bytes(), tag).unwrap();
        }
        let ended = finish(&mut client);
        assert!(ended.values().all(|(outcome, attempts, _)| (outcome.as_str(), *attempts) == ("Done", 1)), "{ended:?}");
        assert!(fake.seen().iter().all(|seen| seen.node == NodeId::new(1, 1) && !seen.retry));
    }
}

#[test]
fn malformed_answers_close_the_connection_and_fail_over() {
    let good = {
        let mut body = Vec::new();
        let reply = crate::api::native::ReplyRef {
            id: 1,
            status: Status::Ok,
            version: 0,
            slot: 0,
            ballot: 0,
            owner: None,
            value: b"",
        };
        reply.encode(&mut body);
        crate::wire::frame(crate::wire::Kind::Reply, 0, 0, &body).to_vec()
    };
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let malformed = [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(),
        flipped,
        crate::wire::frame(crate::wire::Kind::Reply, 0, 0, &[1; 39]).to_vec(),
        crate::wire::frame(crate::wire::Kind::Reply, 0, 0, &[0xff; 40]).to_vec(),
        crate::wire::frame(crate::wire::Kind::Request, 0, 0, b"").to_vec(),
        crate::wire::frame(crate::wire::Kind::ClientWelcome, 0, 0, b"{}").to_vec(),
    ];
    for bytes in malformed {
        let shown = format!("{bytes:?}");
        let fake = three(move |seen| if seen.nth == 0 { Act::Raw(bytes.clone()) } else { done() });
        let mut client = connect(&fake);
        assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Done".to_owned(), 2), "{shown}");
        assert_eq!(client.counters().failed, 1, "{shown}");
        assert!(fake.seen()[1].retry);
    }
    let fake = three(move |seen| if seen.nth == 0 { Act::Raw(good.clone()) } else { done() });
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Put(b"v")), ("Done".to_owned(), 2), "an answer to nothing ended it");
}

#[test]
fn hints_are_followed_until_the_owner_fails() {
    let nodes = [("1.1", Mode::Good), ("1.2", Mode::Good), ("2.1", Mode::Good)];
    for (follow, followed) in [(Hints::Any, true), (Hints::SameZone, false), (Hints::Never, false)] {
        let fake = Fake::start(&nodes, 1, None, |seen| match (seen.value.as_slice(), seen.node.zone) {
            (b"break", 2) => Act::Close,
            _ => Act::Owned(NodeId::new(2, 1)),
        });
        let mut client = Client::connect(Options { follow_hints: follow, zone: Some(1), ..options(&fake) }).unwrap();
        outcome_of(&mut client, Action::Put(b"v"));
        outcome_of(&mut client, Action::Put(b"v"));
        let zones: Vec<u8> = fake.seen().iter().map(|seen| seen.node.zone).collect();
        assert_eq!(zones, [1, if followed { 2 } else { 1 }], "{follow:?}");
        assert_eq!(outcome_of(&mut client, Action::Put(b"break")), ("Done".to_owned(), 1 + u32::from(followed)));
        assert_eq!(fake.seen().last().unwrap().node.zone, 1);
    }
}

#[test]
fn connections_come_back() {
    let fake = three(|seen| if seen.value == b"break" { Act::Close } else { done() });
    let mut client = connect(&fake);
    assert_eq!(outcome_of(&mut client, Action::Put(b"break")).0, "Ambiguous(ConnectionLost)");
    let started = Instant::now();
    let up = |client: &Client| client.counters().connected - client.counters().failed;
    while up(&client) < 3 && started.elapsed() < Duration::from_secs(5) {
        client.poll(SHORT, &mut |_| {}).unwrap();
    }
    for tag in 0..30u64 {
        client.submit(Action::Put(b"v"), &tag.to_le_bytes(), tag).unwrap();
    }
    finish(&mut client);
    let seen = fake.seen();
    let nodes: std::collections::HashSet<_> = seen[seen.len() - 30..].iter().map(|seen| seen.node).collect();
    assert_eq!(nodes.len(), 3);
}

#[test]
fn a_seed_that_refuses_is_quoted() {
    let refusing = Fake::start(&[("1.1", Mode::Refusing)], 1, None, |_| done());
    let error = Client::connect(options(&refusing)).unwrap_err();
    assert!(matches!(&error, ClientError::Refused { reason, .. } if reason == "we are closed"), "{error}");

    let good = three(|_| done());
    let mut both = options(&refusing);
    both.seeds.extend(options(&good).seeds);
    assert_eq!(Client::connect(both).unwrap().cluster().cluster, CLUSTER, "another seed will do");

    let other = Options { cluster: Some("mine".to_owned()), ..options(&good) };
    let error = Client::connect(other).unwrap_err();
    assert!(matches!(&error, ClientError::Cluster { found, .. } if found == CLUSTER), "{error}");
    let nowhere = Options { zone: Some(9), ..options(&good) };
    let error = Client::connect(nowhere).unwrap_err().to_string();
    assert_eq!(error, "the cluster has no zone 9; it has 1");
}

#[test]
fn nobody_there_is_an_error_in_time() {
    let absent = Fake::start(&[("1.1", Mode::Absent)], 1, None, |_| done());
    let mute = Fake::start(&[("1.1", Mode::Mute)], 1, None, |_| done());
    for fake in [absent, mute] {
        let started = Instant::now();
        let options = Options { connect_timeout: Duration::from_millis(200), ..options(&fake) };
        let error = Client::connect(options).unwrap_err();
        assert!(matches!(&error, ClientError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&fake.addresses[0].to_string()), "{error}");
        // Far above the 200 ms asked for, far below for ever.
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    assert!(matches!(Client::connect(Options::default()), Err(ClientError::NoSeeds)));
    let zero = Options { client_id: Some(0), ..Options::to(["127.0.0.1:1"]) };
    assert!(matches!(Client::connect(zero), Err(ClientError::Options(_))));
}

#[test]
fn submit_refuses_what_it_cannot_send() {
    let fake = three(|_| Act::Ignore);
    let mut client = Client::connect(Options { in_flight_max: 2, ..options(&fake) }).unwrap();
    assert_eq!(client.submit(Action::Noop, b"k", 0), Err(SubmitError::Noop));
    assert_eq!(client.submit(Action::Get, b"", 0), Err(SubmitError::Command(CommandError::EmptyKey)));
    client.submit(Action::Get, b"k", 0).unwrap();
    client.submit(Action::Get, b"k", 1).unwrap();
    assert!(matches!(client.submit(Action::Get, b"k", 2), Err(SubmitError::Full { requests: 2, bytes: 66 })));
    assert!(matches!(client.get(b"k"), Err(RequestError::InFlight(2))));
    assert_eq!(finish(&mut client).len(), 2);
}

#[test]
fn blocking_calls_tell_their_results_apart() {
    let fake = three(|seen| match (seen.op, seen.key.as_slice()) {
        (Op::Get, b"there") => Act::Answer(Status::Ok, b"value".to_vec()),
        (Op::CompareAndSwap, b"other") => Act::Answer(Status::CasFailed, Vec::new()),
        (Op::Get | Op::Delete, b"gone") => Act::Answer(Status::NotFound, Vec::new()),
        (_, b"bad") => Act::Answer(Status::BadRequest, Vec::new()),
        (_, b"unknown") => Act::Answer(Status::OutcomeUnknown, Vec::new()),
        (_, b"twice") => Act::Answer(Status::Duplicate, Vec::new()),
        (_, b"nonsense") => Act::Answer(Status::CasFailed, Vec::new()),
        _ => done(),
    });
    let mut client = connect(&fake);
    assert!(matches!(client.get(b"there"), Ok(Some((value, version))) if value == b"value" && version > 0));
    assert!(matches!(client.get(b"gone"), Ok(None)));
    assert!(client.put(b"there", b"v").unwrap() > 0);
    assert!(matches!(client.delete(b"there"), Ok(Some(_))));
    assert!(matches!(client.delete(b"gone"), Ok(None)));
    let swap = client.compare_and_swap(b"there", Expect::Version(3), b"v");
    assert!(matches!(swap, Ok(Swap::Swapped { .. })));
    assert!(matches!(client.compare_and_swap(b"other", Expect::Absent, b"v"), Ok(Swap::Failed { .. })));
    assert!(matches!(client.put(b"bad", b"v"), Err(RequestError::Refused(Status::BadRequest))));
    assert!(matches!(client.put(b"unknown", b"v"), Err(RequestError::Ambiguous(Ambiguity::OutcomeUnknown))));
    assert!(matches!(client.put(b"twice", b"v"), Err(RequestError::Duplicate)));
    assert!(matches!(client.get(b"twice"), Err(RequestError::Duplicate)));
    assert!(matches!(client.put(b"nonsense", b"v"), Err(RequestError::WrongAnswer)));
    let ids: Vec<u64> = fake.seen().iter().map(|seen| seen.id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");

    let stats = client.stats(NodeId::new(1, 2), 0).unwrap();
    assert_eq!(stats, serde_json::json!({"node": "1.2", "shard": 0}));
    for (node, shard) in [(NodeId::new(1, 2), 1), (NodeId::new(3, 1), 0)] {
        assert!(matches!(client.stats(node, shard), Err(RequestError::NoSuchShard { .. })));
    }
}

#[test]
fn many_keys_of_many_shards_are_read_at_once_and_answered_in_order() {
    let nodes = [("1.1", Mode::Good), ("1.2", Mode::Good)];
    let fake = Fake::start(&nodes, 4, None, |seen| match seen.key.as_slice() {
        b"gone" => Act::Answer(Status::NotFound, Vec::new()),
        b"bad" => Act::Answer(Status::BadRequest, Vec::new()),
        b"twice" => Act::Answer(Status::Duplicate, Vec::new()),
        key => Act::Answer(Status::Ok, key.to_vec()),
    });
    // Fewer in flight than keys: the rest follow as answers come.
    let mut client = Client::connect(Options { in_flight_max: 8, ..options(&fake) }).unwrap();
    let mut keys: Vec<Vec<u8>> = (0..100).map(|key| format!("key-{key}").into_bytes()).collect();
    keys.extend([&b"gone"[..], b"", b"bad", b"twice", b"key-7"].map(<[u8]>::to_vec));
    let answers = client.get_many(&keys).unwrap();
    assert_eq!(answers.len(), keys.len());
    for (key, answer) in keys.iter().zip(&answers) {
        match (key.as_slice(), answer) {
            (b"gone", Ok(None)) => {}
            (b"", Err(RequestError::Submit(SubmitError::Command(CommandError::EmptyKey)))) => {}
            (b"bad", Err(RequestError::Refused(Status::BadRequest))) => {}
            (b"twice", Err(RequestError::Duplicate)) => {}
            (key, Ok(Some((value, version)))) => assert!(value == key && *version > 0),
            (key, answer) => panic!("{}: {answer:?}", key.escape_ascii()),
        }
    }
    let shards: std::collections::HashSet<_> = fake.seen().iter().map(|seen| seen.shard).collect();
    assert_eq!((shards.len(), client.in_flight()), (4, 0));
    assert!(client.get_many::<&[u8]>(&[]).unwrap().is_empty());
    assert!(client.get_many(&[b""]).unwrap()[0].is_err());

    client.submit(Action::Get, b"key", 1).unwrap();
    assert!(matches!(client.get_many(&[b"key"]), Err(RequestError::InFlight(1))));
    finish(&mut client);
}
