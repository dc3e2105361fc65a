//! A cluster in one thread: nodes that hand each other frames, without sockets, disk or time.

use bytes::{Bytes, BytesMut};
use wpaxos::{
    command::{Action, Command, NewCommand},
    protocol::{
        Micros, Outputs, Protocol, ReadMode, ReplyTo, Request,
        wpaxos::{Config, WPaxos},
    },
    topology::{Cluster, NodeIndex, ZoneIndex},
    tuning::Tuning,
    wire,
};

/// Nodes, their outputs, and the frames under way.
pub struct Loopback {
    nodes: Vec<WPaxos>,
    outputs: Vec<Outputs>,
    now: Micros,
    /// Answers so far.
    pub replies: u64,
}

impl Loopback {
    /// `zones` × `nodes`, linked, nothing written yet.
    pub fn new(zones: usize, nodes: usize) -> Self {
        let address = "127.0.0.1:1".parse().expect("an address");
        let cluster = Cluster::local("bench", vec![vec![vec![address]; nodes]; zones]);
        let count = cluster.nodes.len();
        let config = |node| {
            let config = Config::new(&cluster, &Tuning::default(), NodeIndex(node as u8), 0, 1).expect("quorums meet");
            Config { founded: Some(vec![1; count]), ..config }
        };
        let mut cluster = Self {
            nodes: (0..count).map(|node| WPaxos::new(config(node), Micros(1))).collect(),
            outputs: (0..count).map(|_| Outputs::new(count)).collect(),
            now: Micros(1),
            replies: 0,
        };
        for node in 0..count {
            for peer in (0..count).filter(|peer| *peer != node) {
                let peer = NodeIndex(peer as u8);
                cluster.nodes[node].on_link_up(cluster.now, peer, 1, &mut cluster.outputs[node]);
            }
        }
        cluster.run();
        cluster
    }

    /// Hands one Request body's commands to a node, as a shard does; [`Self::run`] does the rest.
    pub fn submit(&mut self, node: usize, commands: &[Bytes]) {
        for ahead in commands.chunks(64) {
            if ahead.len() > 1 {
                self.nodes[node].foresee(&mut ahead.iter().map(|bytes| Command::view(bytes).key()));
            }
            for bytes in ahead {
                let command = Command::view(bytes);
                let (reply_to, zone, read) = (ReplyTo(0), ZoneIndex(0), ReadMode::Log);
                let request = Request { reply_to, zone, read, command, frame: bytes };
                self.nodes[node].on_request(self.now, request, &mut self.outputs[node]);
            }
        }
    }

    /// Flushes one node as its driver would at the end of a turn; returns what it sends.
    pub fn turn(&mut self, node: usize) -> Vec<wpaxos::protocol::Send> {
        let (protocol, outputs) = (&mut self.nodes[node], &mut self.outputs[node]);
        loop {
            protocol.flush(self.now, outputs);
            let Some(last) = outputs.records.last().map(|record| record.id) else { break };
            outputs.records.clear();
            protocol.on_durable(self.now, last, outputs);
        }
        self.replies += outputs.replies.len() as u64;
        let sends = std::mem::take(&mut outputs.sends);
        outputs.clear();
        sends
    }

    /// Hands a frame to its receiver.
    pub fn deliver(&mut self, from: usize, send: wpaxos::protocol::Send) {
        let to = send.to.index();
        let frame = wire::parse(send.frame).expect("peers send frames");
        let result = self.nodes[to].on_frame(self.now, NodeIndex(from as u8), &frame, &mut self.outputs[to]);
        result.expect("peers keep to the protocol");
    }

    /// Turns of all nodes until nothing is under way.
    pub fn run(&mut self) {
        loop {
            self.now = self.now.plus(1);
            let mut quiet = true;
            for node in 0..self.nodes.len() {
                for send in self.turn(node) {
                    quiet = false;
                    self.deliver(node, send);
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Lets time pass on all nodes.
    pub fn tick(&mut self, micros: u64) {
        self.now = self.now.plus(micros);
        for node in 0..self.nodes.len() {
            self.nodes[node].on_tick(self.now, &mut self.outputs[node]);
        }
        self.run();
    }
}

/// `count` Puts of 16-byte keys and 64-byte values from `first` on, over `keys` keys, in one buffer as a client sends them.
pub fn puts(first: u64, count: u64, keys: u64) -> Vec<Bytes> {
    let mut buffer = BytesMut::new();
    let mut ends = Vec::new();
    for id in first..first + count {
        let number = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let key = format!("k{:015}", number % keys);
        let put = NewCommand { client: 1, id, retry: false, key: key.as_bytes(), action: Action::Put(&[7; 64]) };
        put.encode(&mut buffer).expect("a small command");
        ends.push(buffer.len());
    }
    let all = buffer.freeze();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends.iter()).map(|(start, end)| all.slice(start..*end)).collect()
}
