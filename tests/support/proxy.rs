//! Networks that can be cut: between every two nodes stands a proxy, which holds back what goes one way, the other, or both.
//! What is held back is not lost, as with TCP over a network that is down for a while; and nobody is told.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Who calls whom: the node of the higher place the other.
type Pair = (usize, usize);

/// Between all nodes.
#[derive(Default)]
pub struct Proxies {
    links: HashMap<Pair, Arc<Wire>>,
}

/// Between two nodes.
struct Wire {
    address: SocketAddr,
    /// Whether what the caller says is held back, and whether what it is told is.
    held: [AtomicBool; 2],
    ended: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxies {
    /// Nodes reach each other directly.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every node reaches every other through a proxy.
    pub fn between(nodes: &[SocketAddr]) -> Self {
        let mut links = HashMap::new();
        for callee in 0..nodes.len() {
            for caller in callee + 1..nodes.len() {
                links.insert((caller, callee), Wire::start(nodes[callee]));
            }
        }
        Self { links }
    }

    /// Where a node reaches another one, if not at that one's own address.
    pub fn address(&self, from: usize, to: usize) -> Option<SocketAddr> {
        self.links.get(&(from, to)).map(|wire| wire.address)
    }

    /// Nothing gets from one node to another.
    pub fn hold(&self, from: usize, to: usize) {
        self.set(from, to, true);
    }

    /// Nothing gets from one side to the other, in either direction.
    pub fn part(&self, one: &[usize], other: &[usize]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.hold(a, b);
            self.hold(b, a);
        }
    }

    /// Everything gets through again, also what was held back.
    pub fn heal(&self) {
        self.links.values().flat_map(|wire| &wire.held).for_each(|held| held.store(false, Ordering::SeqCst));
    }

    /// Ends every connection, as routers do that have forgotten them.
    pub fn forget_connections(&self) {
        self.links.values().for_each(|wire| wire.close_all());
    }

    fn set(&self, from: usize, to: usize, held: bool) {
        let (pair, direction) = if from > to { ((from, to), 0) } else { ((to, from), 1) };
        self.links[&pair].held[direction].store(held, Ordering::SeqCst);
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for wire in self.links.values() {
            wire.ended.store(true, Ordering::SeqCst);
            // Wakes whoever waits for a call.
            let _ = TcpStream::connect(wire.address);
            wire.close_all();
        }
    }
}

impl Wire {
    fn start(callee: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Self {
            address,
            held: Default::default(),
            ended: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let shared = Arc::clone(&wire);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                // Somebody who is down does not take the call.
                if let Ok(other) = TcpStream::connect(callee) {
                    shared.connect(&stream, &other);
                }
            }
        });
        wire
    }

    fn connect(self: &Arc<Self>, caller: &TcpStream, callee: &TcpStream) {
        let copy = |stream: &TcpStream| stream.try_clone().unwrap();
        self.streams.lock().unwrap().extend([copy(caller), copy(callee)]);
        for (direction, from, to) in [(0, caller, callee), (1, callee, caller)] {
            let (wire, from, to) = (Arc::clone(self), copy(from), copy(to));
            let _ = to.set_nodelay(true);
            std::thread::spawn(move || wire.pump(direction, from, to));
        }
    }

    /// Carries one direction of a connection until it ends; the end is held back like everything else.
    fn pump(&self, direction: usize, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            while self.held[direction].load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn close_all(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
