//! Whole connections, against servers that do as they are told.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use clap::Parser;
use wpaxos::command::Status;

use super::*;
use crate::{
    args::Cli,
    plan::Source,
    target::{Operation, Seen},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn driver(flags: &str) -> ForeignDriver {
    let words = ["wpaxos-load"].into_iter().chain(flags.split_whitespace());
    let plan = Plan::from_args(&Cli::try_parse_from(words).unwrap().run).unwrap();
    let Source::Foreign(foreign) = &plan.source else { panic!("{:?}", plan.source) };
    ForeignDriver::new(foreign, &plan).unwrap()
}

/// A server that answers every request of so many bytes with the same words, and says how many connections it took.
fn serve(request_bytes: usize, answer: &'static [u8], connections: usize) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let serving = (0..connections).map(|_| {
            let (mut socket, _) = listener.accept().unwrap();
            thread::spawn(move || {
                let mut request = vec![0; request_bytes];
                while socket.read_exact(&mut request).is_ok() {
                    let _ = socket.write_all(answer);
                }
            })
        });
        serving.collect::<Vec<_>>().into_iter().for_each(|serving| serving.join().unwrap());
    });
    (address, server)
}

/// Makes reads of key 1 and returns what came of them.
fn ask(target: &mut ForeignTarget, count: u64) -> Vec<(u64, Answer)> {
    for tag in 0..count {
        let request = Request { key: b"k000000000000001", number: 1, operation: Operation::Read };
        target.submit(0, request, tag).unwrap();
    }
    let (mut answers, started) = (Vec::new(), Instant::now());
    while answers.len() < count as usize {
        assert!(started.elapsed() < PATIENCE, "{answers:?}");
        target.poll(Duration::from_millis(5), &mut |_, tag, answer| answers.push((tag, answer))).unwrap();
    }
    answers
}

#[test]
fn requests_are_spread_over_the_connections_and_each_is_answered() {
    let (address, server) = serve(b"*2\r\n$3\r\nGET\r\n$16\r\nk000000000000001\r\n".len(), b"$1\r\nv\r\n", 3);
    let mut target = driver(&format!("--target resp://{address} --connections 3")).connect(&[1]).unwrap();
    let mut tags: Vec<u64> = ask(&mut target, 100).into_iter().map(|(tag, _)| tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..100).collect::<Vec<_>>());
    drop(target);
    server.join().unwrap();
}

#[test]
fn a_connection_that_is_lost_fails_its_requests_and_is_made_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut target = driver(&format!("--target http://{address} --concurrency 1")).connect(&[1]).unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(ask(&mut target, 1), [(0, Answer::Failed(ErrorKind::Disconnected))]);
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = [0; 10];
        socket.read_exact(&mut request).unwrap();
        socket.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        socket
    });
    let started = Instant::now();
    while !target.connections[0].is_up() {
        assert!(started.elapsed() < PATIENCE);
        target.poll(Duration::from_millis(5), &mut |_, _, _| panic!("nothing was asked")).unwrap();
    }
    assert!(matches!(ask(&mut target, 1)[0].1, Answer::Done(_)));
    drop(server.join().unwrap());
}

#[test]
fn a_request_without_an_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let flags = format!("--target resp://{address} --request-timeout 50ms");
    let mut target = driver(&flags).connect(&[1]).unwrap();
    let _silent = listener.accept().unwrap();
    assert_eq!(ask(&mut target, 1), [(0, Answer::Failed(ErrorKind::TimeoutMaybeDone))]);
}

#[test]
fn whoever_speaks_something_else_and_nobody_at_all_are_named() {
    let (address, _server) = serve(4, b"SSH-2.0-OpenSSH\r\n", 1);
    let mut target = driver(&format!("--target resp://{address}")).connect(&[1]).unwrap();
    target.submit(0, Request { key: b"k", number: 1, operation: Operation::Read }, 0).unwrap();
    let started = Instant::now();
    let error = loop {
        assert!(started.elapsed() < PATIENCE);
        if let Err(error) = target.poll(Duration::from_millis(5), &mut |_, _, _| ()) {
            break error.to_string();
        }
    };
    assert!(error.contains(&address.to_string()) && error.contains("Redis"), "{error}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = driver(&format!("--target http://{nobody}")).connect(&[1]).err().unwrap().to_string();
    assert!(error.contains(&nobody.to_string()) && error.contains("listen"), "{error}");
}

/// What a connection was asked before it was lost is nothing to the one that comes after it.
#[test]
fn a_connection_that_is_made_again_starts_over() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut target = driver(&format!("--target resp://{address} --resp-wait 1")).connect(&[1]).unwrap();
    let key = b"k000000000000001";
    target.submit(0, Request { key, number: 1, operation: Operation::Write(b"v") }, 7).unwrap();
    let (mut first, _) = listener.accept().unwrap();
    let set = b"*3\r\n$3\r\nSET\r\n$16\r\nk000000000000001\r\n$1\r\nv\r\n";
    let wait = b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n";
    target.poll(Duration::from_millis(5), &mut |_, _, _| panic!("nobody has answered")).unwrap();
    first.read_exact(&mut vec![0; set.len() + wait.len()]).unwrap();
    // The answer to the write is there when the connection is lost, that to its WAIT is not.
    first.write_all(b"+OK\r\n").unwrap();
    target.poll(Duration::from_millis(50), &mut |_, _, _| panic!("the replicas have not answered")).unwrap();
    drop(first);
    let mut answers = Vec::new();
    let server = thread::spawn(move || {
        let (mut second, _) = listener.accept().unwrap();
        second.read_exact(&mut [0; 36]).unwrap();
        second.write_all(b"$-1\r\n").unwrap();
        second
    });
    let started = Instant::now();
    while answers.is_empty() || !target.connections[0].is_up() {
        assert!(started.elapsed() < PATIENCE, "{answers:?}");
        target.poll(Duration::from_millis(5), &mut |_, tag, answer| answers.push((tag, answer))).unwrap();
    }
    assert_eq!(answers, [(7, Answer::Failed(ErrorKind::Disconnected))]);
    while !target.connections[0].is_up() {
        assert!(started.elapsed() < PATIENCE);
        target.poll(Duration::from_millis(5), &mut |_, _, _| ()).unwrap();
    }
    assert_eq!(ask(&mut target, 1), [(0, Answer::Done(Seen::only(Status::NotFound)))]);
    drop(server.join().unwrap());
}

/// A host that does not answer must not hold up the requests to others, nor the schedule.
#[test]
fn nobody_waits_for_a_connection_that_is_not_made() {
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
    let listening = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listening, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    listen(&listening, 0).unwrap();
    let listener = TcpListener::from(listening);
    let address = listener.local_addr().unwrap();
    let mut target = driver(&format!("--target resp://{address}")).connect(&[1]).unwrap();
    drop(listener.accept().unwrap());
    // Whoever comes when the queue is full gets no answer at all.
    let dial = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100));
    let _queued: Vec<_> = (0..4).map(|_| dial()).collect();
    assert!(dial().is_err(), "the queue is full");
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(400) {
        target.poll(Duration::from_millis(5), &mut |_, _, _| panic!("nothing was asked")).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "a poll took {:?}", started.elapsed());
    assert!(!target.connections[0].is_up() && target.connections[0].socket().is_some(), "it is being made");
    let request = Request { key: b"k", number: 1, operation: Operation::Read };
    assert_eq!(target.submit(0, request, 1), Err(ErrorKind::NotTaken));
}

#[test]
fn each_connection_keeps_its_share_of_the_requests_in_flight() {
    let request_bytes = "*2\r\n$3\r\nGET\r\n$16\r\nk000000000000001\r\n".len();
    let (address, server) = serve(request_bytes, b"$-1\r\n", 4);
    let flags = format!("--target resp://{address} --connections 4 --concurrency 32");
    let mut target = driver(&flags).connect(&[1]).unwrap();
    for round in 0..50 {
        ask(&mut target, 32 - round % 7);
        let free = |number: usize| target.lanes[0].free.iter().filter(|free| **free == number).count();
        assert_eq!([0, 1, 2, 3].map(free), [8; 4], "after round {round}");
    }
    ask(&mut target, 500);
    assert_eq!((target.lanes[0].free.len(), target.connections[0].beyond_share), (32, 0), "also after more than that");
    drop(target);
    server.join().unwrap();
}
