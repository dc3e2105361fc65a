//! What a replica lets the outside take of it: its address, its descriptors. Over real processes and sockets.

#[path = "support/crowd.rs"]
mod crowd;

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use crowd::{PATIENCE, Replicas, client_hello, eventually, read_frame};
use wpaxos::{client::Client, wire::Kind};

#[test]
fn of_two_processes_on_one_address_one_serves() {
    let mut replicas = Replicas::new(1, "");
    for round in 0..4 {
        // With half of the rounds on addresses whose connections linger.
        let mut twins = [replicas.spawn(0, &[]), replicas.spawn(0, &[])];
        let started = Instant::now();
        let (loser, code) = loop {
            let ended: Vec<usize> = (0..2).filter(|twin| twins[*twin].code().is_some()).collect();
            if let [loser] = ended[..] {
                break (loser, twins[loser].code().unwrap());
            }
            assert!(ended.is_empty(), "both have ended: {} {}", twins[0].said(), twins[1].said());
            assert!(started.elapsed() < PATIENCE, "round {round}: both run");
            std::thread::sleep(Duration::from_millis(10));
        };
        let said = twins[loser].said();
        assert_eq!(code, 3, "round {round}: {said}");
        let addresses = [replicas.native[0].to_string(), replicas.http[0].to_string()];
        assert!(addresses.iter().any(|address| said.contains(address)), "{said}");
        let mut client = replicas.client(&[0]);
        client.put(b"key", format!("round {round}").as_bytes()).unwrap();
        assert_eq!(replicas.get(0, "/key").0, 200);
        let winner = &mut twins[1 - loser];
        assert_eq!(winner.code(), None);
        // Its connections are closed by this side first, and linger at its address.
        winner.kill();
        drop(client);
    }
    let started = Instant::now();
    replicas.start(0, &[]);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

/// A log that is checkpointed every few hundred writes.
const SMALL_LOG: &str = "[log]\nsegment_bytes = 65536\ngroup_bytes_max = 65536\ncheckpoint_log_bytes = 65536\n";

#[test]
fn clients_leave_descriptors_to_logs_and_peers() {
    const LIMIT: usize = 160;
    let mut replicas = Replicas::new(3, SMALL_LOG);
    replicas.durable = true;
    replicas.limit = Some(LIMIT);
    (0..3).for_each(|place| replicas.start(place, &[]));
    replicas.wait_for_votes();
    let mut other = replicas.client(&[1]);
    other.put(b"before", b"x").unwrap();

    // Clients that are welcomed, clients over HTTP, and connections that say nothing: more than the node may have.
    let (mut welcomed, mut refused, mut crowd) = (0, 0, Vec::new());
    for number in 1..=150 {
        let mut stream = TcpStream::connect(replicas.native[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        client_hello(&mut stream, number);
        match read_frame(&mut stream) {
            Some((Kind::ClientWelcome, _)) => welcomed += 1,
            Some((Kind::Refused, text)) => {
                let text = String::from_utf8(text).unwrap();
                assert!(text.starts_with("full: ") && text.contains("ulimit -n"), "{text}");
                refused += 1;
            }
            // The courtesy may be lost with the connection.
            _ => refused += 1,
        }
        crowd.push(stream);
        crowd.push(TcpStream::connect(replicas.http[0]).unwrap());
        crowd.push(TcpStream::connect(replicas.native[0]).unwrap());
    }
    assert!(welcomed >= 20 && refused >= 20, "{welcomed} welcomed, {refused} refused");
    assert!(replicas.descriptors(0) <= LIMIT, "{}", replicas.descriptors(0));

    // Its log goes on, with checkpoints.
    for _ in 0..2 {
        let before = replicas.checkpoint(0);
        eventually("checkpoints go on", || {
            for key in 0..200 {
                other.put(format!("key {key}").as_bytes(), &[b'v'; 300]).unwrap();
            }
            replicas.checkpoint(0) > before
        });
    }
    // A peer that went comes back to it.
    replicas.kill(2);
    replicas.start(2, &[]);
    eventually("the peer is linked again", || {
        replicas.status(2).is_some_and(|status| status["shards"][0]["links"]["1.1"] == true)
    });
    assert!(replicas.is_running(0), "{}", replicas.said(0));
    drop(crowd);
    eventually("others are served once those are gone", || {
        let mut options = wpaxos::client::Options::to([replicas.native[0]]);
        options.connect_timeout = Duration::from_secs(2);
        Client::connect(options).is_ok_and(|mut client| client.put(b"after", b"x").is_ok())
            && replicas.get(0, "/after").0 == 200
    });
}

#[test]
fn too_few_descriptors_are_refused_at_the_start() {
    let mut replicas = Replicas::new(3, "");
    replicas.limit = Some(90);
    let mut replica = replicas.spawn(0, &[]);
    eventually("it ends", || replica.code().is_some());
    assert_eq!(replica.code(), Some(4), "{}", replica.said());
    assert!(replica.said().contains("90 open files are allowed"), "{}", replica.said());
}
