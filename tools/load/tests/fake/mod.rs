//! A cluster of one node that speaks the wire and nothing else.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use bytes::BytesMut;
use wpaxos::{
    api::native::{self, ClientWelcome, ReplyRef, WelcomeNode},
    command::{Op, Status},
    wire::{self, Frame, Kind},
};

/// What it does about requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It does not even answer the hello.
    Mute,
    /// It welcomes everybody and answers no request.
    Silent,
    /// It says that every write is done, and that no key has a value.
    Forgetful,
}

/// Starts it. Its threads end with the process.
pub fn start(mode: Mode) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || converse(stream.unwrap(), mode, address));
        }
    });
    address
}

fn converse(mut stream: TcpStream, mode: Mode, address: SocketAddr) {
    let (mut received, mut buffer) = (BytesMut::new(), vec![0; 1 << 16]);
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        received.extend_from_slice(&buffer[..bytes]);
        while let Some(length) = wire::frame_bytes(&received).unwrap().filter(|length| *length <= received.len()) {
            let frame = wire::parse(received.split_to(length).freeze()).unwrap();
            let answer = match (frame.kind, mode) {
                (Kind::ClientHello, Mode::Silent | Mode::Forgetful) => Some(welcome(address)),
                (Kind::Request, Mode::Forgetful) => Some(replies(&frame)),
                _ => None,
            };
            if answer.is_some_and(|answer| stream.write_all(&answer).is_err()) {
                return;
            }
        }
    }
}

fn welcome(address: SocketAddr) -> Vec<u8> {
    let node = WelcomeNode { id: "1.1".to_owned(), shards: vec![address.to_string()], http: None };
    let welcome = ClientWelcome {
        cluster: "fake".to_owned(),
        node: node.id.clone(),
        shard: 0,
        shards: 1,
        nodes: vec![node],
        facts: [("durability".to_owned(), "none".to_owned())].into(),
    };
    wire::frame(Kind::ClientWelcome, 0, 0, &serde_json::to_vec(&welcome).unwrap()).to_vec()
}

fn replies(frame: &Frame) -> Vec<u8> {
    let mut body = Vec::new();
    for request in native::requests(frame.body()) {
        let (_, command) = request.unwrap();
        let (status, version) = if command.op() == Op::Get { (Status::NotFound, 0) } else { (Status::Ok, 0) };
        let (id, value) = (command.id(), &[]);
        ReplyRef { id, status, version, slot: 0, ballot: 0, owner: None, value }.encode(&mut body);
    }
    wire::frame(Kind::Reply, 0, 0, &body).to_vec()
}
