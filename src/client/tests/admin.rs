//! The admin client against nodes that answer as each test says.

use std::{net::TcpListener, time::Duration};

use super::fake_http::{FakeHttp, Said, ok};
use crate::{
    client::admin::{Admin, AdminError, Held, Owner, Verdict, Version},
    topology::NodeId,
};

const A: NodeId = NodeId::new(1, 1);
const B: NodeId = NodeId::new(2, 1);
const C: NodeId = NodeId::new(3, 1);

#[test]
fn each_call_asks_for_what_it_says() {
    let owner = r#"{"key":"aw==","owner":"3.1","ballot":"7.3.1","leads":true,"applied":9,"steals":3}"#;
    let fake = FakeHttp::start(3, |_, _| ok(owner));
    let admin = fake.admin();
    let lasting = |ms: u64| Some(Duration::from_millis(ms));
    admin.crash(A, lasting(5000)).unwrap();
    admin.crash(A, None).unwrap();
    admin.drop(A, B, lasting(0)).unwrap();
    admin.slow(B, C, Duration::from_millis(40), lasting(2500)).unwrap();
    admin.flaky(C, A, 0.25, None).unwrap();
    admin.heal(B).unwrap();
    admin.status(B).unwrap();
    assert_eq!(admin.steal(C, b"a key&\xff").unwrap().owner, Some(C));
    let asked = [
        "1.1 GET /crash?t=0",
        "1.1 GET /crash?t=5",
        "1.1 GET /drop?id=2.1&t=0.001",
        "2.1 GET /_/status",
        "2.1 GET /heal",
        "2.1 GET /slow?id=3.1&ms=40&t=2.5",
        "3.1 GET /flaky?id=1.1&p=0.25&t=0",
        "3.1 POST /_/steal?key=a%20key%26%FF",
    ];
    assert_eq!(fake.asked(), asked);

    for (one_way, way) in [(false, "both"), (true, "in")] {
        let answers = admin.partition(&[C, A, C], one_way, lasting(9000)).unwrap();
        assert!(answers.iter().map(|(node, _)| *node).eq([A, C]) && answers.iter().all(|(_, answer)| answer.is_ok()));
        let path = format!("GET /partition?ids=2.1&t=9&way={way}");
        assert_eq!(fake.asked(), [format!("1.1 {path}"), format!("3.1 {path}")]);
    }
    assert_eq!(admin.heal_all().len(), 3);
    assert_eq!(admin.status_of_all().len(), 3);
    assert_eq!(fake.asked().len(), 6);
}

#[test]
fn what_makes_no_sense_is_not_asked() {
    let fake = FakeHttp::start(2, |_, _| ok("{}"));
    let admin = fake.admin();
    let unknown = NodeId::new(9, 9);
    for error in [
        admin.crash(unknown, None).unwrap_err(),
        admin.drop(A, unknown, None).unwrap_err(),
        admin.partition(&[A, unknown], false, None).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "the cluster has no node 9.9; it has 1.1, 2.1");
    }
    for error in [
        admin.drop(A, A, None).unwrap_err(),
        admin.flaky(A, B, 1.5, None).unwrap_err(),
        admin.flaky(A, B, f64::NAN, None).unwrap_err(),
        admin.partition(&[], false, None).unwrap_err(),
        admin.partition(&[A, B], false, None).unwrap_err(),
    ] {
        assert!(matches!(error, AdminError::Usage(_)), "{error}");
    }
    assert!(fake.asked().is_empty());
    let without = Admin::of_members(vec![(A, None)]);
    let error = without.status(A).unwrap_err();
    assert!(matches!(error, AdminError::NoHttp { node: A }) && error.to_string().contains("http ="), "{error}");
}

#[test]
fn histories_and_owners_are_read_as_they_are_written() {
    let owners = r#"[{"key":"aw==","owner":"2.1","ballot":"7.2.1","leads":true,"applied":9,"steals":3},
                     {"key":"aGk=","owner":null,"ballot":"0.0.0","leads":false,"applied":0,"steals":0}]"#;
    let fake = FakeHttp::start(1, move |_, what| match what {
        "GET /history?versions=1&key=k" => ok(r#"[{"version":1,"value":"aGk="},{"version":4,"value":null}]"#),
        "GET /history?versions=1&key=off" => ok("null"),
        "GET /history?versions=1&key=falls" => ok(r#"[{"version":2,"value":""},{"version":2,"value":""}]"#),
        "GET /history?versions=1&key=coded" => ok(r#"[{"version":2,"value":"~"}]"#),
        "GET /_/owners?key=gone" => ok("[]"),
        "GET /_/owners?key=k" | "GET /_/owners?limit=10" | "GET /_/owners?limit=10&after=k" => ok(owners),
        _ => Said::Answer(404, "what?\n".to_owned()),
    });
    let admin = fake.admin();
    let first = Version { version: 1, value: Some(b"hi".to_vec()) };
    let removed = Version { version: 4, value: None };
    assert_eq!(admin.history(A, b"k").unwrap(), Some(vec![first, removed]));
    assert_eq!(admin.history(A, b"off").unwrap(), None);
    for malformed in [&b"falls"[..], b"coded"] {
        assert!(matches!(admin.history(A, malformed), Err(AdminError::Malformed { node: A, .. })));
    }
    let k =
        Owner { key: b"k".to_vec(), owner: Some(B), ballot: "7.2.1".to_owned(), leads: true, applied: 9, steals: 3 };
    assert_eq!(admin.owner(A, b"k").unwrap(), Some(k));
    assert_eq!(admin.owner(A, b"gone").unwrap(), None);
    assert_eq!(admin.owner_at_all(b"gone").len(), 1);
    assert_eq!(admin.owners(A, 10, None).unwrap().len(), 2);
    assert_eq!(admin.owners(A, 10, Some(b"k")).unwrap()[1].owner, None);
    assert_eq!(admin.steal(A, b"k").unwrap_err().to_string(), "1.1 refuses (HTTP status 404): what?");
}

#[test]
fn a_node_that_fails_costs_one_call_and_says_why() {
    let fake = FakeHttp::start(3, |node, _| match node.zone {
        1 => Said::Answer(403, String::new()),
        2 => Said::Raw("SSH-2.0-nonsense\r\n"),
        _ => ok("not JSON"),
    });
    let admin = fake.admin();
    let refused = AdminError::Refused { node: A, status: 403, reason: "it does not say why".to_owned() };
    assert_eq!(admin.crash(A, None), Err(refused));
    assert!(matches!(admin.crash(B, None), Err(AdminError::NoAnswer { node: B, .. })));
    assert!(matches!(admin.status(C), Err(AdminError::Malformed { node: C, .. })));

    let silent = FakeHttp::start(1, |_, _| Said::Nothing);
    let error = silent.admin().with_timeout(Duration::from_millis(50)).status(A).unwrap_err();
    assert!(error.to_string().ends_with("gives no answer over HTTP: no answer in time"), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Admin::new(vec![(A, gone)]).status(A).unwrap_err();
    assert!(matches!(error, AdminError::Unreachable { address, .. } if address == gone), "{error}");
}

#[test]
fn consensus_is_of_all_nodes_and_names_the_silent() {
    let fake = FakeHttp::start(3, |node, what| match (node.zone, what.rsplit('=').next().unwrap()) {
        (3, "same") => Said::Raw(""),
        (_, "same") => ok(r#"[{"version":1,"value":"aGk="}]"#),
        (1, _) => ok(r#"[{"version":1,"value":"aGk="},{"version":2,"value":"aGk="}]"#),
        (2, _) => ok(r#"[{"version":2,"value":null}]"#),
        _ => ok("null"),
    });
    let same = fake.admin().consensus(b"same");
    assert_eq!((&same.verdict, same.is_complete()), (&Verdict::Agree { up_to: 1, compared: 1 }, false));
    assert!(same.missing().eq([C]) && matches!(&same.nodes[2].1, Held::Failed(_)));
    let part = fake.admin().consensus(b"part");
    let values = vec![(A, Some(b"hi".to_vec())), (B, None)];
    assert_eq!(part.verdict, Verdict::Part { version: 2, values, agreed_to: None });
    assert!(matches!(&part.nodes[2], (C, Held::Off)));
}
