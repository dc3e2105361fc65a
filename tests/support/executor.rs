// Cases of `tests/shard.rs`, which includes this once for each way in which an executor waits.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use wpaxos::{
    api::native::{self, ClientHello, ClientWelcome},
    command::{Action, NewCommand, Status},
    failure::Failure,
    local::{LocalCluster, LocalOptions},
    protocol::{ReadMode, echo::Echo},
    server::{Server, ServerHandle, ServerOptions},
    shard::{Code, PeerHello, Refusal, ShardContext},
    topology::{Cluster, NodeId, WanMatrix, shard_of, token_of},
    tuning::Tuning,
    wire::{self, HEADER_BYTES, Kind},
};

/// What these executors wait like.
fn tuning() -> Tuning {
    let mut tuning = Tuning::default();
    tuning.placement.wait = WAIT;
    tuning
}

const PATIENCE: Duration = Duration::from_secs(10);

fn echo(context: ShardContext) -> Echo {
    Echo::new(&context.cluster, &context.tuning, context.node, context.shard.0)
}

/// Addresses that were free a moment ago.
fn addresses(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// One zone of nodes with one shard each.
fn cluster(addresses: &[SocketAddr]) -> Cluster {
    Cluster::local("test", vec![addresses.iter().map(|address| vec![*address]).collect()])
}

fn start(cluster: &Cluster, node: NodeId) -> ServerHandle {
    start_with(cluster, node, tuning())
}

fn start_with(cluster: &Cluster, node: NodeId, tuning: Tuning) -> ServerHandle {
    Server::start_with(ServerOptions::new(Arc::new(cluster.clone()), node, Arc::new(tuning)), echo).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A connection that speaks frames.
struct Raw {
    socket: TcpStream,
    next_id: u64,
}

impl Raw {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, next_id: 1 }
    }

    /// As a client, welcomed.
    fn client(address: SocketAddr, zone: Option<u8>) -> Self {
        let mut raw = Self::connect(address);
        let hello = ClientHello { cluster: Some("test".to_owned()), client: 7, zone };
        raw.send(Kind::ClientHello, &serde_json::to_vec(&hello).unwrap());
        let (kind, body) = raw.receive().unwrap();
        assert_eq!(kind, Kind::ClientWelcome, "{}", String::from_utf8_lossy(&body));
        let welcome: ClientWelcome = serde_json::from_slice(&body).unwrap();
        assert_eq!(welcome.facts["durability"], "none");
        raw
    }

    fn send(&mut self, kind: Kind, body: &[u8]) {
        self.socket.write_all(&wire::frame(kind, 0, 0, body)).unwrap();
    }

    /// The next frame; `None` at the end of the stream.
    fn receive(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        match self.socket.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                panic!("nothing came in {PATIENCE:?}")
            }
            Err(_) => return None,
        }
        let mut whole = header.to_vec();
        whole.resize(wire::frame_bytes(&header).unwrap().unwrap(), 0);
        self.socket.read_exact(&mut whole[HEADER_BYTES..]).unwrap();
        let frame = wire::parse(whole.into()).unwrap();
        Some((frame.kind, frame.body().to_vec()))
    }

    /// The refusal that comes next, and the end behind it.
    fn refused(&mut self) -> Refusal {
        let (kind, body) = self.receive().expect("a reason comes before the end");
        assert_eq!(kind, Kind::Refused);
        assert!(self.receive().is_none(), "a refused connection is closed");
        Refusal::read(&body)
    }

    /// Sends these in one frame; their ids.
    fn request(&mut self, commands: &[(&[u8], Action<'_>)]) -> Vec<u64> {
        let mut body = Vec::new();
        let mut ids = Vec::new();
        for (key, action) in commands {
            let command = NewCommand { client: 7, id: self.next_id, retry: false, key, action: *action };
            native::put_request_prefix(&mut body, command.encoded_bytes(), ReadMode::Confirm);
            command.encode(&mut body).unwrap();
            ids.push(self.next_id);
            self.next_id += 1;
        }
        self.send(Kind::Request, &body);
        ids
    }

    /// Waits for the answers to `count` requests, by id.
    fn replies(&mut self, count: usize) -> BTreeMap<u64, (Status, Vec<u8>)> {
        let mut replies = BTreeMap::new();
        while replies.len() < count {
            let (kind, body) = self.receive().expect("the connection stays");
            assert_eq!(kind, Kind::Reply, "{}", String::from_utf8_lossy(&body));
            for reply in native::replies(&body) {
                let reply = reply.unwrap();
                assert!(replies.insert(reply.id, (reply.status, reply.value.to_vec())).is_none(), "answered twice");
            }
        }
        replies
    }

    fn stats(&mut self) -> BTreeMap<String, u64> {
        self.send(Kind::StatsRequest, &[]);
        let (kind, body) = self.receive().unwrap();
        assert_eq!(kind, Kind::Stats);
        serde_json::from_slice(&body).unwrap()
    }
}

fn peer_hello(cluster: &Cluster, node: &str) -> PeerHello {
    PeerHello {
        protocol: wire::WIRE_VERSION,
        cluster: cluster.name.clone(),
        configuration: format!("{:016x}", cluster.fingerprint()),
        node: node.to_owned(),
        incarnation: 99,
        boot: 1,
        shard: 0,
        shards: 1,
    }
}

/// Dials as the node that the hello names.
fn dial(address: SocketAddr, hello: &PeerHello) -> Raw {
    let mut raw = Raw::connect(address);
    raw.send(Kind::PeerHello, &serde_json::to_vec(hello).unwrap());
    raw
}

#[test]
fn a_peer_that_does_not_fit_is_told_why() {
    let cluster = cluster(&addresses(3));
    let server = start(&cluster, NodeId::new(1, 2));
    let address = server.addresses()[0];
    let refused = |change: &dyn Fn(&mut PeerHello), code: Code, word: &str| {
        let mut hello = peer_hello(&cluster, "1.3");
        change(&mut hello);
        let refusal = dial(address, &hello).refused();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.reason.contains(word), "'{refusal}' does not say {word}");
    };
    refused(&|hello| hello.protocol = 77, Code::Version, "77");
    refused(&|hello| hello.cluster = "other".into(), Code::Cluster, "'test'");
    refused(&|hello| hello.configuration = "abc".into(), Code::Configuration, "abc");
    refused(&|hello| hello.shards = 2, Code::Shards, "2 shards");
    refused(&|hello| hello.shard = 1, Code::Shard, "shard 1");
    refused(&|hello| hello.node = "1.2".into(), Code::Member, "this one");
    refused(&|hello| hello.node = "9.9".into(), Code::Member, "9.9");
    refused(&|hello| hello.node = "1.1".into(), Code::Member, "not the other way round");

    let mut raw = Raw::connect(address);
    raw.send(Kind::PeerHello, b"{\"protocol\": 1");
    assert_eq!(raw.refused().code, Code::Malformed);

    // A second connection of the peer takes the place of the first.
    let hello = peer_hello(&cluster, "1.3");
    let mut first = dial(address, &hello);
    assert_eq!(first.receive().unwrap().0, Kind::PeerWelcome);
    let mut second = dial(address, &hello);
    assert_eq!(second.receive().unwrap().0, Kind::PeerWelcome);
    assert!(first.receive().is_none(), "the earlier connection is closed");
    server.stop().unwrap();
}

#[test]
fn clients_that_do_not_fit_and_hostile_bytes_are_refused_and_the_shard_lives_on() {
    let cluster = cluster(&addresses(1));
    let server = start(&cluster, NodeId::new(1, 1));
    let address = server.addresses()[0];
    let hello = |change: fn(&mut ClientHello)| {
        let mut hello = ClientHello { cluster: None, client: 1, zone: None };
        change(&mut hello);
        let mut raw = Raw::connect(address);
        raw.send(Kind::ClientHello, &serde_json::to_vec(&hello).unwrap());
        raw.refused()
    };
    assert_eq!(hello(|hello| hello.cluster = Some("other".into())).code, Code::Cluster);
    assert_eq!(hello(|hello| hello.zone = Some(9)).code, Code::Zone);
    assert_eq!(hello(|hello| hello.client = 0).code, Code::Malformed);

    let hostile = |bytes: &[u8]| {
        let mut raw = Raw::client(address, None);
        raw.socket.write_all(bytes).unwrap();
        raw.refused()
    };
    assert!(hostile(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").reason.contains("starts with"));
    let mut damaged = wire::frame(Kind::Request, 0, 0, &[1; 100]).to_vec();
    damaged[60] ^= 1;
    assert!(hostile(&damaged).reason.contains("checksum"));
    assert!(hostile(&wire::frame(Kind::Request, 0, 0, &[0xff; 100])).code == Code::Malformed);
    assert!(hostile(&wire::frame(Kind::AcceptBatch, 0, 0, &[])).reason.contains("AcceptBatch"));
    let mut raw = Raw::connect(address);
    raw.send(Kind::Request, &[]);
    assert!(raw.refused().reason.contains("begins with a hello"));

    let mut silent = Raw::connect(address);
    assert!(silent.receive().is_none(), "who says no hello is closed after a while");

    let mut client = Raw::client(address, Some(1));
    client.request(&[(b"k", Action::Put(b"v")), (b"n", Action::Noop)]);
    let replies = client.replies(2);
    assert_eq!((replies[&1].0, replies[&2].0), (Status::Ok, Status::BadRequest));
    server.stop().unwrap();
}

#[test]
fn pipelined_requests_are_all_answered_and_wrong_shards_reached_through_the_mailbox() {
    let options = LocalOptions { name: "test".into(), zones: 1, nodes: 2, shards: 2, tuning: tuning(), ..LocalOptions::default() };
    let local = LocalCluster::start_with(options, echo).unwrap();
    let mut client = Raw::client(local.seeds()[1], None);
    let keys: Vec<Vec<u8>> = (0..2000).map(|n| format!("key-{n}").into_bytes()).collect();
    for keys in keys.chunks(50) {
        let puts: Vec<_> = keys.iter().map(|key| (&key[..], Action::Put(key))).collect();
        client.request(&puts);
    }
    let replies = client.replies(keys.len());
    // A shard lends a bounded number at a time; the rest is refused and never lost.
    let refused = replies.values().filter(|(status, _)| *status == Status::Overloaded).count();
    assert!(replies.values().all(|(status, _)| matches!(status, Status::Ok | Status::Overloaded)));
    for (key, id) in keys.iter().zip(1_u64..) {
        let read = client.request(&[(key, Action::Get)])[0];
        let (status, value) = client.replies(1).remove(&read).unwrap();
        match replies[&id].0 {
            Status::Ok => assert_eq!((status, &value), (Status::Ok, key)),
            _ => assert_eq!(status, Status::NotFound),
        }
    }
    let others = keys.iter().filter(|key| shard_of(token_of(key), 2).0 == 1).count() as u64;
    let stats = client.stats();
    assert!(stats["io_requests_lent"] >= 2 * others - refused as u64, "{stats:?}");
    assert_eq!((stats["io_waiting"], stats["io_replies_unknown"]), (0, 0));
    local.stop().unwrap();
}

/// Passes one connection at a time on to `to`, until told to cut it.
fn proxy(to: SocketAddr) -> (SocketAddr, std::sync::mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, cuts) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, Ok(far)) = (near.unwrap(), TcpStream::connect(to)) else { continue };
            for (mut from, mut to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())]
                .map(|(from, to)| (from.unwrap(), to.unwrap()))
            {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
            if cuts.recv().is_err() {
                return;
            }
            let _ = (near.shutdown(std::net::Shutdown::Both), far.shutdown(std::net::Shutdown::Both));
        }
    });
    (address, cut)
}

#[test]
fn a_cut_link_comes_back() {
    let addresses = addresses(2);
    let (through, cut) = proxy(addresses[0]);
    let lower = start(&cluster(&addresses), NodeId::new(1, 1));
    let higher = start(&cluster(&[through, addresses[1]]), NodeId::new(1, 2));
    let linked = |server: &ServerHandle| server.links_down().next().is_none();
    let links_up = |server: &ServerHandle| Raw::client(server.addresses()[0], None).stats()["io_links_up"];
    eventually("the first link", || linked(&lower) && linked(&higher));
    for cuts in 1..=2 {
        cut.send(()).unwrap();
        eventually("the link after a cut", || {
            linked(&lower) && linked(&higher) && links_up(&lower) > cuts && links_up(&higher) > cuts
        });
    }
    let mut client = Raw::client(higher.addresses()[0], None);
    client.request(&[(b"k", Action::Put(b"v"))]);
    assert_eq!(client.replies(1)[&1].0, Status::Ok);
    higher.stop().unwrap();
    lower.stop().unwrap();
}

#[test]
fn a_client_that_never_reads_is_read_no_further() {
    let cluster = cluster(&addresses(1));
    let mut tuning = tuning();
    tuning.flow.client_queue_bytes_max = 4 << 20;
    let server = start_with(&cluster, NodeId::new(1, 1), tuning);
    let address = server.addresses()[0];
    let mut client = Raw::client(address, None);
    let value = vec![7; 500_000];
    client.request(&[(b"large", Action::Put(&value))]);
    client.replies(1);

    let mut deaf = Raw::client(address, None);
    deaf.socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut body = Vec::new();
    for id in 1..=10 {
        let command = NewCommand { client: 8, id, retry: false, key: b"large", action: Action::Get };
        native::put_request_prefix(&mut body, command.encoded_bytes(), ReadMode::Confirm);
        command.encode(&mut body).unwrap();
    }
    let frame = wire::frame(Kind::Request, 0, 0, &body);
    let mut sent = 0;
    while deaf.socket.write_all(&frame).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "a client that never reads may send for ever");
    }
    let stats = client.stats();
    // Ten answers of one frame, and whatever one read brings, may come on top of the bound: as refusals, if not read.
    assert!(stats["io_client_queue_bytes"] < 12 << 20, "{stats:?}");
    assert!(stats["io_client_pauses"] > 0 && stats["io_requests_refused"] == 0, "{stats:?}");
    // Others are served meanwhile.
    client.request(&[(b"k", Action::Put(b"v"))]);
    assert_eq!(client.replies(1).len(), 1);
    drop(deaf);
    eventually("its memory is given back", || client.stats()["io_client_queue_bytes"] < 1 << 20);
    server.stop().unwrap();
}

#[test]
fn more_requests_than_one_client_may_have_are_refused_not_kept() {
    // Two nodes of which one is missing: no write is ever acknowledged.
    let cluster = cluster(&addresses(2));
    let mut tuning = tuning();
    tuning.flow.client_requests_max = 100;
    let server = start_with(&cluster, NodeId::new(1, 1), tuning);
    let mut client = Raw::client(server.addresses()[0], None);
    client.request(&vec![(&b"k"[..], Action::Put(b"v")); 150]);
    let replies = client.replies(50);
    assert!(replies.values().all(|(status, _)| *status == Status::Overloaded));
    // A clean stop answers the hundred that wait.
    server.ask_to_stop();
    let replies = client.replies(100);
    assert!(replies.values().all(|(status, _)| *status == Status::TimeoutMaybeDone));
    assert!(client.receive().is_none(), "then the connection is closed");
    server.wait().unwrap();
}

#[test]
fn an_address_in_use_is_named() {
    let addresses = addresses(2);
    let _taken = TcpListener::bind(addresses[1]).unwrap();
    let cluster = cluster(&addresses);
    let options = ServerOptions::new(Arc::new(cluster.clone()), NodeId::new(1, 2), Arc::default());
    let failure = Server::start_with(options, echo).err().unwrap();
    assert_eq!(failure, Failure::AddressInUse(addresses[1]));
    assert_eq!(failure.exit_code(), 3);

    // Neither does a second replica share the address of a living one.
    let server = start(&cluster, NodeId::new(1, 1));
    let options = ServerOptions::new(Arc::new(cluster), NodeId::new(1, 1), Arc::default());
    assert_eq!(Server::start_with(options, echo).err().unwrap(), Failure::AddressInUse(addresses[0]));
    server.stop().unwrap();
}

#[test]
fn distance_is_emulated_on_links_and_to_clients() {
    let wan = Some(WanMatrix::uniform(2, 40_000));
    let options = LocalOptions { name: "test".into(), zones: 2, wan, tuning: tuning(), ..LocalOptions::default() };
    let local = LocalCluster::start_with(options, echo).unwrap();
    let timed = |zone, action: Action<'static>| {
        let mut client = Raw::client(local.seeds()[0], Some(zone));
        let started = Instant::now();
        client.request(&[(b"k", action)]);
        assert_eq!(client.replies(1)[&1].0, Status::Ok);
        started.elapsed().as_millis()
    };
    // A write waits for the other zone's acknowledgement: one round trip. So does any answer to the other zone. How much
    // longer it takes is the machine's affair; the shortest of a few attempts is not.
    let shortest = |zone, action: Action<'static>| (0..5).map(|_| timed(zone, action)).min().unwrap();
    let near_write = shortest(1, Action::Put(b"v"));
    assert!((40..80).contains(&near_write), "{near_write} ms");
    let near_read = shortest(1, Action::Get);
    assert!(near_read < 40, "{near_read} ms");
    let far_read = shortest(2, Action::Get);
    assert!((40..80).contains(&far_read), "{far_read} ms");
    let far_write = shortest(2, Action::Put(b"v"));
    assert!((80..120).contains(&far_write), "{far_write} ms");
    local.stop().unwrap();
}

#[test]
fn a_cluster_of_wpaxos_replicas_serves_from_every_zone() {
    let options = LocalOptions { name: "test".into(), zones: 3, shards: 1, tuning: tuning(), ..LocalOptions::default() };
    let local = LocalCluster::start(options).unwrap();
    let keys: Vec<Vec<u8>> = (0..300).map(|n| format!("key-{n}").into_bytes()).collect();
    let mut first = Raw::client(local.seeds()[0], None);
    let puts: Vec<_> = keys.iter().map(|key| (&key[..], Action::Put(key))).collect();
    first.request(&puts);
    assert!(first.replies(keys.len()).values().all(|(status, _)| *status == Status::Ok));
    for seed in &local.seeds()[1..] {
        let mut other = Raw::client(*seed, None);
        let gets: Vec<_> = keys.iter().map(|key| (&key[..], Action::Get)).collect();
        let ids = other.request(&gets);
        let replies = other.replies(keys.len());
        for (key, id) in keys.iter().zip(ids) {
            assert_eq!(replies[&id], (Status::Ok, key.clone()));
        }
    }
    local.stop().unwrap();
}
