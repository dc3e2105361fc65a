//! What a replica lets the outside take of it: its address, its descriptors. Over real processes and sockets.

#[path = "support/crowd.rs"]
mod crowd;

use std::{
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use crowd::{PATIENCE, Replicas, client_hello, eventually, read_frame};
use wpaxos::{
    api::native,
    client::Client,
    command::{Action, NewCommand},
    protocol::ReadMode,
    wire::{self, Kind},
};

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

/// Little memory, and little time for those who hold it. `docs/operations.md` says what this bounds.
const SMALL_MEMORY: &str = "[flow]\nclient_memory_bytes_max = 33554432\nclient_connections_max = 1000\n\
    stream_inflight_bytes_max = 4194304\nstream_retain_bytes = 4194304\nlink_queue_bytes_max = 4194304\n\
    [timers]\nclient_frame_timeout_us = 3000000\nclient_unread_timeout_us = 3000000\nrequest_timeout_us = 2000000\n";
/// What the formula there allows a shard beyond keys, values and connections.
const BOUND: usize = 2 * (32 << 20) + (4 << 20) + (4 << 20) + (48 << 20);

/// Connections of clients that are welcomed.
fn welcomed(address: SocketAddr, count: u64) -> Vec<TcpStream> {
    let connect = |client| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        client_hello(&mut stream, client);
        assert!(matches!(read_frame(&mut stream), Some((Kind::ClientWelcome, _))));
        stream
    };
    (1..=count).map(connect).collect()
}

fn requests(client: u64, ids: std::ops::Range<u64>, key: &[u8], action: Action<'_>) -> Vec<u8> {
    let mut body = BytesMut::new();
    for id in ids {
        let command = NewCommand { client, id, retry: false, key, action };
        native::put_request_prefix(&mut body, command.encoded_bytes(), ReadMode::Confirm);
        command.encode(&mut body).unwrap();
    }
    wire::frame(Kind::Request, 0, 0, &body).to_vec()
}

/// Sends a part of each message on its connection, a piece of each in turn and as far as it is taken, for so long. True
/// for each that was closed.
fn press(streams: &mut [TcpStream], messages: &[Vec<u8>], time: Duration) -> usize {
    streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let (started, mut sent, mut closed) = (Instant::now(), vec![0; streams.len()], vec![false; streams.len()]);
    while started.elapsed() < time {
        let mut any = false;
        for (place, stream) in streams.iter_mut().enumerate() {
            let rest = &messages[place][sent[place]..];
            match stream.write(&rest[..rest.len().min(256 << 10)]) {
                _ if rest.is_empty() || closed[place] => {}
                Ok(bytes) => (sent[place], any) = (sent[place] + bytes, true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => closed[place] = true,
            }
        }
        if !any {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    closed.iter().filter(|closed| **closed).count()
}

/// The most that a node grew by while `press` went on.
fn growth<T: Send>(replicas: &Replicas, press: impl FnOnce() -> T + Send) -> (usize, T) {
    let before = replicas.resident(0);
    std::thread::scope(|scope| {
        let pressing = scope.spawn(press);
        let mut most = before;
        while !pressing.is_finished() {
            most = most.max(replicas.resident(0));
            std::thread::sleep(Duration::from_millis(5));
        }
        (most - before, pressing.join().unwrap())
    })
}

/// A client that behaves is answered, once those that do not have had their time.
fn still_serves(replicas: &Replicas) {
    let mut client = replicas.client(&[0]);
    eventually("a client that behaves is answered", || {
        client.put(b"good", b"x").is_ok() && replicas.get(0, "/good") == (200, b"x".to_vec())
    });
}

fn one_replica() -> Replicas {
    let mut replicas = Replicas::new(1, SMALL_MEMORY);
    replicas.start(0, &[]);
    replicas.wait_for_votes();
    still_serves(&replicas);
    replicas
}

#[test]
fn frames_that_are_never_whole_hold_what_they_may_and_no_more() {
    let replicas = one_replica();
    let mut crowd = welcomed(replicas.native[0], 60);
    let whole = wire::frame(Kind::Request, 0, 0, &vec![0; native::BODY_BYTES_MAX]);
    let messages = vec![whole[..whole.len() - 1].to_vec(); crowd.len()];
    let (grown, closed) = growth(&replicas, || press(&mut crowd, &messages, Duration::from_secs(2)));
    assert!(grown <= BOUND, "{grown} bytes by 60 frames of 4 MiB");
    assert!(closed > 20, "{closed} were closed");
    still_serves(&replicas);
    eventually("a frame that is not whole has its time", || {
        replicas.status(0).unwrap()["shards"][0]["counters"]["io_client_memory_bytes"].as_u64() < Some(4 << 20)
    });
    println!("unfinished frames: {} KiB", grown >> 10);
}

#[test]
fn answers_that_are_never_read_hold_what_they_may_and_no_more() {
    let replicas = one_replica();
    replicas.client(&[0]).put(b"large", &vec![7; 1 << 20]).unwrap();
    let mut crowd = welcomed(replicas.native[0], 60);
    let messages: Vec<_> = (1..=60).map(|client| requests(client, 1..50, b"large", Action::Get)).collect();
    let (grown, _) = growth(&replicas, || press(&mut crowd, &messages, Duration::from_secs(2)));
    assert!(grown <= BOUND, "{grown} bytes by 60 × 49 answers of 1 MiB");
    still_serves(&replicas);
    println!("untaken answers: {} KiB", grown >> 10);
}

#[test]
fn http_holds_what_it_may_and_no_more() {
    let replicas = one_replica();
    replicas.client(&[0]).put(b"large", &vec![7; 1 << 20]).unwrap();
    let connect = |_| TcpStream::connect(replicas.http[0]).unwrap();
    let mut crowd: Vec<TcpStream> = (0..120).map(connect).collect();
    let head = "PUT /half HTTP/1.1\r\nHost: h\r\nContent-Length: 1048576\r\n\r\n";
    let half = [head.as_bytes(), &vec![b'x'; 1_000_000]].concat();
    let deaf = "GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(20).into_bytes();
    let messages: Vec<_> = (0..120).map(|place| if place % 2 == 0 { half.clone() } else { deaf.clone() }).collect();
    let (grown, _) = growth(&replicas, || press(&mut crowd, &messages, Duration::from_secs(2)));
    assert!(grown <= BOUND, "{grown} bytes by 60 bodies and 60 answers of 1 MiB");
    drop(crowd);
    still_serves(&replicas);
    println!("HTTP: {} KiB", grown >> 10);
}

#[test]
fn writes_without_a_quorum_hold_what_they_may_and_no_more() {
    let mut replicas = Replicas::new(3, SMALL_MEMORY);
    (0..3).for_each(|place| replicas.start(place, &[]));
    replicas.wait_for_votes();
    still_serves(&replicas);
    let mut crowd = welcomed(replicas.native[0], 60);
    replicas.kill(1);
    replicas.kill(2);
    let value = vec![7; 1 << 20];
    let put = |client: u64, id| {
        let key = format!("key {client} {id}");
        requests(client, id..id + 1, key.as_bytes(), Action::Put(&value))
    };
    let messages: Vec<Vec<u8>> = (1..=60).map(|client| (1..=8).flat_map(|id| put(client, id)).collect()).collect();
    let (grown, _) = growth(&replicas, || press(&mut crowd, &messages, Duration::from_secs(4)));
    assert!(grown <= BOUND, "{grown} bytes by 480 puts of 1 MiB");
    println!("puts without a quorum: {} KiB", grown >> 10);
    assert!(replicas.is_running(0), "{}", replicas.said(0));
    let status = replicas.status(0).unwrap();
    assert!(status["shards"][0]["counters"]["io_requests_refused"].as_u64() > Some(0), "{status}");
}

#[test]
fn many_large_frames_of_tiny_commands_hold_nobody_up() {
    // Twelve frames of 4 MiB are to be taken, and not refused: with the memory that is usual.
    let mut replicas = Replicas::new(1, "");
    replicas.start(0, &[]);
    replicas.wait_for_votes();
    still_serves(&replicas);
    let mut crowd = welcomed(replicas.native[0], 12);
    let messages: Vec<_> = (1..=12).map(|client| requests(client, 1..95_001, b"k", Action::Get)).collect();
    assert!(messages[0].len() > 3 << 20, "{} bytes", messages[0].len());
    // All but the last byte, and then all of them at once.
    for (stream, message) in crowd.iter_mut().zip(&messages) {
        stream.write_all(&message[..message.len() - 1]).unwrap();
    }
    let mut client = replicas.client(&[0]);
    client.put(b"other", b"x").unwrap();
    for (stream, message) in crowd.iter_mut().zip(&messages) {
        stream.write_all(&message[message.len() - 1..]).unwrap();
    }
    // Answers are taken, so that the crowd is served.
    let takers: Vec<_> = crowd
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                let mut answers = 0;
                while answers < 95_000
                    && let Some((Kind::Reply, body)) = read_frame(&mut stream)
                {
                    answers += native::replies(&body).count();
                }
                answers
            })
        })
        .collect();
    let mut waits = Vec::new();
    while !takers.iter().all(std::thread::JoinHandle::is_finished) && waits.len() < 10_000 {
        let started = Instant::now();
        client.put(b"other", b"x").unwrap();
        waits.push(started.elapsed());
    }
    waits.sort();
    println!(
        "12 × 60,000 commands: another client waits {:?} in the median of {}",
        waits[waits.len() / 2],
        waits.len()
    );
    // A busy machine may stop anybody for long, but not most of the time.
    assert!(waits.len() >= 20 && waits[waits.len() / 2] < Duration::from_millis(200), "{waits:?}");
    let answered: Vec<usize> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
    assert_eq!(answered, [95_000; 12]);
}
