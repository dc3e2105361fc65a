use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use super::*;
use crate::config::Template;

/// How long anything may take on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(40);

/// A master in this process, which ends with the test.
struct Running {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Running {
    fn start(options: MasterOptions) -> Self {
        let stop = Arc::clone(&options.stop);
        let master = Master::start(options).unwrap();
        Self { address: master.address(), stop, thread: Some(thread::spawn(move || master.run())) }
    }

    fn at(&self) -> String {
        self.address.to_string()
    }

    /// What it ended with, by itself.
    fn ended(mut self) -> Result<(), Failure> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

fn options(n: usize, state: Option<&Path>) -> MasterOptions {
    MasterOptions {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        n,
        template: Template::default(),
        tuning: None,
        base_port: None,
        http_base_port: Some(8081),
        state: state.map(Path::to_owned),
        fresh: false,
        stop: Arc::default(),
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn local(port: u16) -> Option<Place> {
    Some(Place { ip: Ipv4Addr::LOCALHOST.into(), port: Some(port) })
}

/// A replica that registers in a thread of its own, and what it is told.
struct Replica {
    heard: mpsc::Receiver<String>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Registration, MasterError>>,
}

impl Replica {
    fn start(at: &str, id: &str, port: u16) -> Self {
        let (at, id, stop) = (at.to_owned(), id.parse().unwrap(), Arc::new(AtomicBool::new(false)));
        let (say, heard) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut on_wait = |text: &str| drop(say.send(text.to_owned()));
            register(&at, id, local(port), None, &stopped, &mut on_wait)
        });
        Self { heard, stop, thread }
    }

    /// Waits until it is told something with this in it.
    fn hear(&self, text: &str) {
        while !self.heard.recv_timeout(LONG).unwrap_or_else(|_| panic!("'{text}' was not heard")).contains(text) {}
    }

    fn registered(self) -> Result<Registration, MasterError> {
        self.thread.join().unwrap()
    }

    /// As if its process ended.
    fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(matches!(self.registered(), Err(MasterError::Stopped(_))));
    }
}

/// Registers at once, because the cluster is complete.
fn register_now(at: &str, id: &str, port: u16) -> Result<Registration, MasterError> {
    register(at, id.parse().unwrap(), local(port), None, &AtomicBool::new(false), &mut |_| {})
}

#[test]
fn whoever_comes_early_waits_and_is_told_for_whom() {
    let master = Running::start(options(2, None));
    let at = master.at();
    let (told, hears) = std::sync::mpsc::channel();
    let early = thread::spawn({
        let at = at.clone();
        move || {
            let mut heard = Vec::new();
            let fetched = fetch(&at, LONG, &mut |text| {
                heard.push(text.to_owned());
                let _ = told.send(());
            });
            (fetched, heard)
        }
    });
    hears.recv().expect("whoever comes early is told at once");
    let ports = [free_port(), free_port()];
    let first = Replica::start(&at, "2.1", ports[0]);
    first.hear("waiting for 1 of 2: have 2.1");
    let second = Replica::start(&at, "1.1", ports[1]);
    let (first, second) = (first.registered().unwrap(), second.registered().unwrap());
    let ((cluster, tuning), heard) = early.join().map(|(fetched, heard)| (fetched.unwrap(), heard)).unwrap();
    assert!(heard.iter().all(|text| text.starts_with("waiting for ")) && !heard.is_empty(), "{heard:?}");
    assert_eq!((&first.cluster, &second.cluster), (&cluster, &cluster));
    assert_eq!((cluster.zones.len(), tuning), (2, crate::tuning::Tuning::default()));
    assert_eq!(cluster.nodes[0].shards[0].port(), ports[1]);
    assert_eq!(cluster.nodes[1].http.map(|http| http.port()), Some(8082));
    assert_eq!(fetch(&at, LONG, &mut |_| {}).unwrap().0, cluster, "and whoever comes later does not wait");
}

#[test]
fn an_id_that_is_alive_is_refused_and_one_that_is_not_is_taken() {
    let master = Running::start(options(2, None));
    let at = master.at();
    let refused = |id: &str, port: u16, why: &str| match register_now(&at, id, port) {
        Err(MasterError::Refused { text, .. }) => assert!(text.contains(why), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    };
    // While it waits.
    let ports = [free_port(), free_port()];
    let waits = Replica::start(&at, "1.1", ports[0]);
    waits.hear("have 1.1");
    refused("1.1", ports[0], "1.1 is registered by 127.0.0.1:");
    waits.leave();
    let waits = Replica::start(&at, "1.1", ports[0]);
    waits.hear("have 1.1");
    // While it starts.
    let other = Replica::start(&at, "1.2", ports[1]).registered().unwrap();
    let starting = waits.registered().unwrap();
    refused("1.1", ports[0], "1.1 is being started by 127.0.0.1:");
    // Once it is up.
    let listener = TcpListener::bind(starting.cluster.nodes[0].shards[0]).unwrap();
    let cluster = starting.cluster.clone();
    starting.up();
    refused("1.1", ports[0], "1.1 is ");
    // And when it has gone, the same is handed out again.
    drop(listener);
    let again = loop {
        // The last refusal may still be under way.
        match register_now(&at, "1.1", ports[0]) {
            Err(MasterError::Refused { .. }) => thread::yield_now(),
            other => break other.unwrap(),
        }
    };
    assert_eq!(again.cluster, cluster);
    refused("3.1", free_port(), "has no node 3.1; it has 1.1, 1.2");
    refused("1.2", ports[0], "has 1.2 at 127.0.0.1:");
    drop(other);
}

#[test]
fn a_master_that_starts_again_goes_on_from_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.json");
    let port = free_port();
    let master = Running::start(options(1, Some(&state)));
    let before = Replica::start(&master.at(), "1.1", port).registered().unwrap();
    before.up();
    let cluster = fetch(&master.at(), LONG, &mut |_| {}).unwrap().0;
    drop(master);
    let master = Running::start(options(1, Some(&state)));
    assert_eq!(fetch(&master.at(), LONG, &mut |_| {}).unwrap().0, cluster);
    assert_eq!(register_now(&master.at(), "1.1", port).unwrap().cluster, cluster);
    drop(master);

    let other_tuning = crate::tuning::Tuning { name: "other".to_owned(), ..Default::default() };
    let template = Template::parse("name = \"other\"".to_owned(), Path::new("t.toml")).unwrap();
    for (options, message) in [
        (options(2, Some(&state)), "is of a cluster of 1 and not of 2"),
        (MasterOptions { template, ..options(1, Some(&state)) }, "is of a cluster with another template"),
        (MasterOptions { tuning: Some(other_tuning), ..options(1, Some(&state)) }, "with another tuning"),
    ] {
        let error = Master::start(options).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("state.json: ") && text.contains(message) && text.contains("--fresh"), "{text}");
        assert_eq!(error.exit_code(), 2);
    }
    let fresh = Running::start(MasterOptions { fresh: true, ..options(2, Some(&state)) });
    let soon = Duration::from_millis(300);
    assert!(matches!(fetch(&fresh.at(), soon, &mut |_| {}), Err(MasterError::Patience { .. })));
    drop(fresh);
    std::fs::write(&state, "{\"n\": 1").unwrap();
    let error = Master::start(options(1, Some(&state))).err().unwrap().to_string();
    assert!(error.contains("is not the state of a master"), "{error}");
}

#[test]
fn replicas_that_wait_register_anew_when_the_master_starts_again() {
    let first = Running::start(options(2, None));
    let address = first.address;
    let ports = [free_port(), free_port()];
    let waits = Replica::start(&first.at(), "1.1", ports[0]);
    waits.hear("have 1.1");
    drop(first);
    waits.hear("trying again");
    let second = Running::start(MasterOptions { listen: address, ..options(2, None) });
    let other = Replica::start(&second.at(), "1.2", ports[1]);
    assert_eq!(waits.registered().unwrap().cluster, other.registered().unwrap().cluster);
}

#[test]
fn replicas_that_make_no_cluster_are_told_and_so_is_whoever_started_the_master() {
    let text = "name = \"t\"\n[quorum]\nnode_failures = 1".to_owned();
    let template = Template::parse(text, Path::new("t.toml")).unwrap();
    let master = Running::start(MasterOptions { template, ..options(1, None) });
    let refused = Replica::start(&master.at(), "1.1", free_port()).registered().err().unwrap();
    assert!(matches!(&refused, MasterError::Refused { text, .. } if text.contains("node_failures")), "{refused}");
    let ended = master.ended().unwrap_err();
    assert!(ended.exit_code() == 2 && ended.to_string().contains("t.toml: quorum.node_failures"), "{ended}");
}

#[test]
fn what_is_not_understood_costs_its_connection_and_no_more() {
    let master = Running::start(options(1, None));
    let version = format!("{{\"ask\":\"fetch\",\"version\":{}}}\n", VERSION + 1);
    let register = |id: &str, address: &str| {
        format!("{{\"ask\":\"register\",\"version\":{VERSION},\"id\":\"{id}\",\"address\":\"{address}\"}}\n")
    };
    for (said, answer) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "this is the master of a wpaxos cluster"),
        ("x".repeat(5000), "a line is longer than 4096 bytes"),
        ("{\"ask\":\"up\"}\n".to_owned(), "`up` is for a replica that has registered"),
        (version, "this master speaks 1"),
        (register("1", "127.0.0.1"), "'1' is not a node id"),
        (register("1.1", "localhost"), "'localhost' is not an address: expected IP or IP:PORT"),
        (register("1.1", "0.0.0.0:1"), "is nothing that others can dial"),
        (register("1.1", "127.0.0.1:0"), "is nothing that others can dial"),
    ] {
        let mut stream = TcpStream::connect(master.address).unwrap();
        stream.write_all(said.as_bytes()).unwrap();
        let mut heard = Vec::new();
        // What was not read of a long line resets the connection after the answer.
        let _ = stream.read_to_end(&mut heard);
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.starts_with("{\"answer\":\"refused\"") && heard.contains(answer), "{said:?}: {heard}");
    }
    let cut_short = TcpStream::connect(master.address).unwrap();
    drop(cut_short);
    let silent = TcpStream::connect(master.address).unwrap();
    Replica::start(&master.at(), "1.1", free_port()).registered().unwrap();
    drop(silent);
}

#[test]
fn a_client_gives_up_in_time_and_says_what_it_last_heard() {
    let soon = Duration::from_millis(300);
    let master = Running::start(options(3, None));
    let error = fetch(&master.at(), soon, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("within 0.3 s: waiting for 3 of 3: have none"), "{error}");
    let nobody = format!("127.0.0.1:{}", free_port());
    let error = fetch(&nobody, soon, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains(&nobody), "{error}");
    let error = fetch("a b", soon, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("'a b': has no host; expected HOST or HOST:PORT"), "{error}");
}

#[test]
fn what_is_no_master_is_called_so() {
    for (says, message) in [
        ("HTTP/1.1 400 Bad Request\r\n", "is no master that we understand: 'HTTP/1.1 400"),
        ("{\"answer\":\"configuration\",\"cluster\":\"\",\"tuning\":\"\"}\n", "handed out: cluster: line 1"),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let other = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(says.as_bytes()).unwrap();
            stream
        });
        let error = fetch(&at, LONG, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(message), "{error:?} does not say {message:?}");
        other.join().unwrap();
    }
}

#[test]
fn places_are_addresses_with_or_without_a_port() {
    for (text, ip, port) in [
        ("10.0.0.1", "10.0.0.1", None),
        ("10.0.0.1:7101", "10.0.0.1", Some(7101)),
        ("::1", "::1", None),
        ("[::1]", "::1", None),
        ("[::1]:7101", "::1", Some(7101)),
    ] {
        assert_eq!(text.parse::<Place>().unwrap(), Place { ip: ip.parse().unwrap(), port });
    }
    for wrong in ["", "host", "host:1", "10.0.0.1:", "10.0.0.1:0", "0.0.0.0", "[::]:7101"] {
        assert!(wrong.parse::<Place>().is_err(), "{wrong}");
    }
}
