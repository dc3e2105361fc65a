//! A cluster of threads that speak the wire and nothing else: each request is answered as the test says.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use crate::{
    api::native::{self, ClientHello, ClientWelcome, ReplyRef, WelcomeNode},
    command::{Op, Status},
    topology::NodeId,
    wire::{self, Frame, Kind},
};

pub(crate) const CLUSTER: &str = "fake";

/// How a node meets connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// As it should.
    Good,
    /// It listens and never says a word.
    Mute,
    /// Nobody listens.
    Absent,
    /// It refuses every hello.
    Refusing,
    /// It says that it is of another cluster.
    Stranger,
}

/// A request as a node saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) node: NodeId,
    pub(crate) shard: u16,
    pub(crate) client: u64,
    pub(crate) id: u64,
    pub(crate) retry: bool,
    pub(crate) op: Op,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// How many requests were seen before.
    pub(crate) nth: usize,
}

/// What a node does about a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// Answers.
    Answer(Status, Vec<u8>),
    /// Answers as done and names an owner.
    Owned(NodeId),
    /// Answers after a while, from another thread.
    Later(Duration, Status),
    /// Says nothing.
    Ignore,
    /// Breaks the connection.
    Close,
    /// Sends these bytes.
    Raw(Vec<u8>),
}

pub(crate) fn done() -> Act {
    Act::Answer(Status::Ok, Vec::new())
}

type Handler = dyn Fn(&Seen) -> Act + Send + Sync;

/// The cluster; its threads end with their connections.
pub(crate) struct Fake {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Clone)]
struct Node {
    id: NodeId,
    shard: u16,
    mode: Mode,
    shards: u16,
    nodes: Vec<WelcomeNode>,
    handler: Arc<Handler>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Writes answers in this many bytes at a time, the answers of a frame in reverse.
    piece: Option<usize>,
}

impl Fake {
    /// Nodes `zone.node` with so many shards each. `addresses` are by node, then shard.
    pub(crate) fn start(
        nodes: &[(&str, Mode)],
        shards: u16,
        piece: Option<usize>,
        handler: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<TcpListener> = (0..nodes.len() * usize::from(shards)).map(|_| listen()).collect();
        let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let welcome: Vec<WelcomeNode> = nodes
            .iter()
            .zip(addresses.chunks(usize::from(shards)))
            .map(|((id, _), shards)| WelcomeNode {
                id: (*id).to_owned(),
                shards: shards.iter().map(ToString::to_string).collect(),
                http: None,
            })
            .collect();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        for (position, listener) in listeners.into_iter().enumerate() {
            let (id, mode) = nodes[position / usize::from(shards)];
            let node = Node {
                id: id.parse().unwrap(),
                shard: (position % usize::from(shards)) as u16,
                mode,
                shards,
                nodes: welcome.clone(),
                handler: handler.clone(),
                seen: seen.clone(),
                piece,
            };
            if mode != Mode::Absent {
                thread::spawn(move || node.accept(&listener));
            }
        }
        Self { addresses, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Node {
    fn accept(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            let node = self.clone();
            thread::spawn(move || node.converse(stream.unwrap()));
        }
    }

    fn converse(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut received = BytesMut::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer) {
                Ok(bytes) if bytes > 0 => received.extend_from_slice(&buffer[..bytes]),
                _ => return,
            }
            while let Some(length) = wire::frame_bytes(&received).unwrap().filter(|length| *length <= received.len()) {
                let frame = wire::parse(received.split_to(length).freeze()).unwrap();
                if !self.on_frame(&frame, &mut stream) {
                    return;
                }
            }
        }
    }

    /// False closes the connection.
    fn on_frame(&self, frame: &Frame, stream: &mut TcpStream) -> bool {
        match (frame.kind, self.mode) {
            (_, Mode::Mute) => true,
            (Kind::ClientHello, Mode::Refusing) => {
                let _ = stream.write_all(&wire::frame(Kind::Refused, 0, 0, b"we are closed"));
                false
            }
            (Kind::ClientHello, mode) => {
                let hello: ClientHello = serde_json::from_slice(frame.body()).unwrap();
                assert_ne!(hello.client, 0);
                stream.write_all(&self.welcome(mode)).is_ok()
            }
            (Kind::Request, _) => self.on_requests(frame, stream),
            (Kind::StatsRequest, _) => {
                let body = format!("{{\"node\":\"{}\",\"shard\":{}}}", self.id, self.shard);
                stream.write_all(&wire::frame(Kind::Stats, self.shard, 0, body.as_bytes())).is_ok()
            }
            (kind, _) => panic!("a client sent {kind:?}"),
        }
    }

    fn welcome(&self, mode: Mode) -> Bytes {
        let cluster = if mode == Mode::Stranger { "another" } else { CLUSTER };
        let welcome = ClientWelcome {
            cluster: cluster.to_owned(),
            node: self.id.to_string(),
            shard: self.shard,
            shards: self.shards,
            nodes: self.nodes.clone(),
            facts: [("durability".to_owned(), "none".to_owned())].into(),
        };
        wire::frame(Kind::ClientWelcome, self.shard, 0, &serde_json::to_vec(&welcome).unwrap())
    }

    fn on_requests(&self, frame: &Frame, stream: &mut TcpStream) -> bool {
        assert_eq!(frame.shard, self.shard);
        let mut answers = Vec::new();
        for request in native::requests(frame.body()) {
            let (_, command) = request.unwrap();
            let mut seen = self.seen.lock().unwrap();
            let request = Seen {
                node: self.id,
                shard: self.shard,
                client: command.client(),
                id: command.id(),
                retry: command.is_retry(),
                op: command.op(),
                key: command.key().to_vec(),
                value: command.value().to_vec(),
                nth: seen.len(),
            };
            seen.push(request.clone());
            drop(seen);
            match (self.handler)(&request) {
                Act::Answer(status, value) => answers.push((request.id, status, value, None)),
                Act::Owned(owner) => answers.push((request.id, Status::Ok, Vec::new(), Some(owner))),
                Act::Later(pause, status) => self.answer_later(stream, request.id, pause, status),
                Act::Ignore => {}
                Act::Close => return false,
                Act::Raw(bytes) => return stream.write_all(&bytes).is_ok(),
            }
        }
        self.answer(stream, answers)
    }

    fn answer(&self, stream: &mut TcpStream, mut answers: Vec<(u64, Status, Vec<u8>, Option<NodeId>)>) -> bool {
        if answers.is_empty() {
            return true;
        }
        if self.piece.is_some() {
            answers.reverse();
        }
        let mut body = Vec::new();
        for (id, status, value, owner) in answers {
            ReplyRef { id, status, version: id + 1, slot: 5, ballot: 6, owner, value: &value }.encode(&mut body);
        }
        let frame = wire::frame(Kind::Reply, self.shard, 0, &body);
        let pause = if self.piece.is_some_and(|piece| frame.len() < 200 * piece) { 1 } else { 0 };
        frame.chunks(self.piece.unwrap_or(usize::MAX)).all(|piece| {
            thread::sleep(Duration::from_millis(pause));
            stream.write_all(piece).is_ok()
        })
    }

    fn answer_later(&self, stream: &TcpStream, id: u64, pause: Duration, status: Status) {
        let (node, mut stream) = (self.clone(), stream.try_clone().unwrap());
        thread::spawn(move || {
            thread::sleep(pause);
            node.answer(&mut stream, vec![(id, status, b"late".to_vec(), None)]);
        });
    }
}
