//! Nodes that speak just enough HTTP for an [`Admin`], and answer as the test says.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{client::admin::Admin, topology::NodeId};

/// What a node does about a request.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// Answers with this status and body.
    Answer(u16, String),
    /// Says nothing, and keeps the connection.
    Nothing,
    /// Sends these bytes and closes.
    Raw(&'static str),
}

/// An answer of 200.
pub(crate) fn ok(body: &str) -> Said {
    Said::Answer(200, body.to_owned())
}

type Handler = dyn Fn(NodeId, &str) -> Said + Send + Sync;

/// The nodes; a request is `METHOD /path?query`.
pub(crate) struct FakeHttp {
    pub(crate) nodes: Vec<(NodeId, SocketAddr)>,
    asked: Arc<Mutex<Vec<(NodeId, String)>>>,
}

impl FakeHttp {
    /// Nodes 1.1, 2.1 and so on.
    pub(crate) fn start(nodes: u8, handler: impl Fn(NodeId, &str) -> Said + Send + Sync + 'static) -> Self {
        let (handler, asked): (Arc<Handler>, _) = (Arc::new(handler), Arc::new(Mutex::new(Vec::new())));
        let nodes = (1..=nodes).map(|zone| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (node, address) = (NodeId::new(zone, 1), listener.local_addr().unwrap());
            let (handler, asked) = (handler.clone(), asked.clone());
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (handler, asked) = (handler.clone(), asked.clone());
                    thread::spawn(move || converse(stream.unwrap(), node, &*handler, &asked));
                }
            });
            (node, address)
        });
        Self { nodes: nodes.collect(), asked }
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin::new(self.nodes.clone())
    }

    /// What was asked of whom, sorted, since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        let mut asked: Vec<_> =
            self.asked.lock().unwrap().drain(..).map(|(node, what)| format!("{node} {what}")).collect();
        asked.sort();
        asked
    }
}

fn converse(mut stream: TcpStream, node: NodeId, handler: &Handler, asked: &Mutex<Vec<(NodeId, String)>>) {
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = received.drain(..end + 4).collect();
            let head = String::from_utf8(head).unwrap();
            let what = head.lines().next().unwrap().rsplit_once(' ').unwrap().0.to_owned();
            asked.lock().unwrap().push((node, what.clone()));
            match handler(node, &what) {
                Said::Answer(status, body) => {
                    let head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + &body).as_bytes()).unwrap();
                }
                Said::Nothing => {}
                Said::Raw(bytes) => {
                    let _ = stream.write_all(bytes.as_bytes());
                    return;
                }
            }
        }
        match stream.read(&mut buffer) {
            Ok(bytes) if bytes > 0 => received.extend_from_slice(&buffer[..bytes]),
            _ => return,
        }
    }
}
