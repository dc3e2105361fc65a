//! A cluster of cores of which one peer is hostile: it is accepted, its frames have right checksums, and it sends what it
//! likes: real frames that it has seen with something changed, frames with numbers at their limits and beyond, frames again
//! and in another order, among good traffic, restarts and checkpoints.
//!
//! It may break what the protocol promises of crash faults: that is not looked at. What must hold of every other node:
//! nothing panics; every frame and record that is made can be read; every log can be replayed and every checkpoint restored, to
//! a node that equals the running one; every request is answered; and once the peer has stopped, the cluster serves.

use std::{
    collections::{BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
};

use bytes::Bytes;

use super::random::{Purpose, Random};
use crate::{
    command::{Action, Command, Expect, ID_MAX, KEY_BYTES_MAX, NewCommand, Status, VALUE_BYTES_MAX},
    protocol::{
        Micros, Outputs, Protocol, ReadMode, Record, RecordId, ReplyTo, Request,
        wpaxos::{Config, WPaxos, forge::Forger, invariants::ObjectView},
    },
    topology::{Cluster, InitialOwner, NodeIndex, QuorumSpec, StealPolicy, ZoneIndex},
    tuning::Tuning,
    wire::{self, Frame},
};

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that honest nodes were given.
    pub frames: u64,
    /// Of those, changed or forged.
    pub hostile: u64,
    /// Of those, refused: the link was closed.
    pub refused: u64,
    /// Restarts of honest nodes.
    pub restarts: u64,
    /// Checkpoints that were restored and compared.
    pub compared: u64,
    /// Requests that were answered.
    pub answered: u64,
}

impl Tally {
    /// Adds what another run did.
    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.hostile += other.hostile;
        self.refused += other.refused;
        self.restarts += other.restarts;
        self.compared += other.compared;
        self.answered += other.answered;
    }
}

/// Makes the run of a seed, of so many steps.
///
/// # Errors
/// What went wrong, a panic of a node included.
pub fn run(seed: u64, steps: u64) -> Result<Tally, String> {
    let run = catch_unwind(AssertUnwindSafe(|| World::new(seed).run(steps)));
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message");
        Err(format!("a node panicked: {text}"))
    })
}

struct Node {
    config: Config,
    core: WPaxos,
    out: Outputs,
    /// Records behind the checkpoint.
    log: Vec<Record>,
    checkpoint: Option<(RecordId, Vec<Bytes>)>,
}

struct World {
    random: Random,
    forger: Forger,
    nodes: Vec<Node>,
    /// By sender, then receiver; `None` while the link is down.
    links: Vec<Vec<Option<VecDeque<Frame>>>>,
    /// Frames of the hostile peer that were real.
    captured: Vec<Frame>,
    hostile: usize,
    stopped: bool,
    now: Micros,
    keys: Vec<Vec<u8>>,
    waiting: BTreeSet<(usize, u64)>,
    next_token: u64,
    done: BTreeSet<u64>,
    tally: Tally,
}

fn cluster_of(random: &mut Random) -> (Cluster, Tuning) {
    let address = "127.0.0.1:1".parse().expect("an address");
    let sizes: &[usize] = [&[3][..], &[1, 1, 1], &[2, 2], &[5]][random.below(4) as usize];
    let mut cluster = Cluster::local("hostile", sizes.iter().map(|size| vec![vec![address]; *size]).collect());
    let mut tuning = Tuning::default();
    cluster.quorum = QuorumSpec::Majority;
    cluster.steal = *random.pick(&[StealPolicy::None, StealPolicy::Immediate, StealPolicy::Consecutive { hits: 2 }]);
    cluster.initial_owner = if random.permille(700) { InitialOwner::FirstTouch } else { cluster.initial_owner };
    (tuning.batch.linger_us, tuning.batch.learner_delay_us) = (*random.pick(&[0, 500]), 1000);
    tuning.batch.entries_max = *random.pick(&[1, 3, 1024]);
    tuning.flow.stream_retain_bytes = *random.pick(&[0, 2000, 1 << 20]);
    (cluster, tuning)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, Purpose::Faults);
        let (cluster, tuning) = cluster_of(&mut random);
        let count = cluster.nodes.len();
        let now = Micros(10_000_000);
        let founded = (0..count as u64).map(|node| 100 + node).collect::<Vec<_>>();
        let node = |node: usize| {
            let config = Config::new(&cluster, &tuning, NodeIndex(node as u8), 0, 100 + node as u64);
            let config = Config { founded: Some(founded.clone()), ..config.expect("majorities meet") };
            let core = WPaxos::new(config.clone(), now);
            Node { config, core, out: Outputs::new(count), log: Vec::new(), checkpoint: None }
        };
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let hostile = random.below(count as u64) as usize;
        let mut keys: Vec<Vec<u8>> = [&b"a"[..], b"b", b"key-3"].map(<[u8]>::to_vec).to_vec();
        keys.push(vec![b'x'; KEY_BYTES_MAX]);
        let names = nodes[0].config.nodes.clone();
        let mut world = Self {
            forger: Forger::new(random.any(), names, hostile, keys.clone(), 0),
            random,
            links: vec![vec![None; count]; count],
            nodes,
            captured: Vec::new(),
            hostile,
            stopped: false,
            now,
            keys,
            waiting: BTreeSet::new(),
            next_token: 1,
            done: BTreeSet::new(),
            tally: Tally::default(),
        };
        world.connect_all();
        world
    }

    fn run(mut self, steps: u64) -> Result<Tally, String> {
        for _ in 0..steps {
            self.step()?;
        }
        self.stopped = true;
        for node in 0..self.nodes.len() {
            self.restart(node)?;
        }
        self.calm(4_000)?;
        if let Some((node, token)) = self.waiting.first() {
            return Err(format!("request {token} of node {node} is never answered"));
        }
        self.serve()?;
        for node in 0..self.nodes.len() {
            self.compare(node)?;
        }
        Ok(self.tally)
    }

    fn step(&mut self) -> Result<(), String> {
        let node = self.random.below(self.nodes.len() as u64) as usize;
        self.now = self.now.plus(self.random.below(400));
        match self.random.below(1000) {
            0..450 => self.deliver_any()?,
            450..650 => self.attack()?,
            650..800 => self.ask(node)?,
            800..960 => self.tick(node)?,
            960..975 => self.checkpoint(node)?,
            975..985 => self.compare(node)?,
            985..990 => self.restart(node)?,
            990..994 => {
                let peer = self.random.below(self.nodes.len() as u64) as usize;
                self.part(node, peer)?;
            }
            _ => self.connect_all(),
        }
        Ok(())
    }

    /// Time passes without the hostile peer: everything is delivered, nothing is cut.
    fn calm(&mut self, ticks: usize) -> Result<(), String> {
        for _ in 0..ticks {
            self.now = self.now.plus(5_000);
            self.connect_all();
            for node in 0..self.nodes.len() {
                self.tick(node)?;
            }
            for from in 0..self.nodes.len() {
                for to in 0..self.nodes.len() {
                    self.deliver(from, to, usize::MAX)?;
                }
            }
        }
        Ok(())
    }

    /// Every node serves a key that the hostile peer has not touched.
    fn serve(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let key = format!("fresh-{node}").into_bytes();
            let token = self.request(node, &key, (1 << 40, 1), Action::Put(b"v"))?;
            self.calm(1_000)?;
            if !self.done.contains(&token) {
                return Err(format!("node {node} does not serve once the hostile peer, {}, has stopped", self.hostile));
            }
        }
        Ok(())
    }

    fn tick(&mut self, node: usize) -> Result<(), String> {
        let Node { core, out, .. } = &mut self.nodes[node];
        core.on_tick(self.now, out);
        self.flush(node)
    }

    fn flush(&mut self, node: usize) -> Result<(), String> {
        let Node { core, out, log, .. } = &mut self.nodes[node];
        loop {
            core.flush(self.now, out);
            let Some(last) = out.records.last().map(|record| record.id) else { break };
            log.append(&mut out.records);
            core.on_durable(self.now, last, out);
        }
        core.check_invariants();
        for reply in out.replies.drain(..) {
            if !self.waiting.remove(&(node, reply.to.0)) {
                return Err(format!("request {} of node {node} is answered twice", reply.to.0));
            }
            self.tally.answered += 1;
            if reply.status == Status::Ok {
                self.done.insert(reply.to.0);
            }
        }
        let (sends, reset) = (std::mem::take(&mut out.sends), std::mem::take(&mut out.reset));
        out.clear();
        for send in sends {
            if let Some(link) = &mut self.links[node][send.to.index()] {
                link.push_back(parse(send.frame)?);
            }
        }
        if reset {
            for peer in 0..self.nodes.len() {
                self.part(node, peer)?;
            }
        }
        Ok(())
    }

    fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                if self.links[a][b].is_none() {
                    (self.links[a][b], self.links[b][a]) = (Some(VecDeque::new()), Some(VecDeque::new()));
                    for (node, peer) in [(a, b), (b, a)] {
                        let incarnation = self.nodes[peer].config.incarnation;
                        let Node { core, out, .. } = &mut self.nodes[node];
                        core.on_link_up(self.now, NodeIndex(peer as u8), incarnation, out);
                    }
                }
            }
        }
    }

    /// Cuts a link; what was on it is lost.
    fn part(&mut self, a: usize, b: usize) -> Result<(), String> {
        if a == b || self.links[a][b].is_none() {
            return Ok(());
        }
        (self.links[a][b], self.links[b][a]) = (None, None);
        for (node, peer) in [(a, b), (b, a)] {
            let Node { core, out, .. } = &mut self.nodes[node];
            core.on_link_down(self.now, NodeIndex(peer as u8), out);
            self.flush(node)?;
        }
        Ok(())
    }

    fn deliver_any(&mut self) -> Result<(), String> {
        let count = self.nodes.len() as u64;
        let (from, to) = (self.random.below(count) as usize, self.random.below(count) as usize);
        let frames = 1 + self.random.below(8) as usize;
        self.deliver(from, to, frames)
    }

    fn deliver(&mut self, from: usize, to: usize, frames: usize) -> Result<(), String> {
        for _ in 0..frames {
            let Some(frame) = self.links[from][to].as_mut().and_then(VecDeque::pop_front) else { return Ok(()) };
            if from == self.hostile && !self.stopped {
                self.forger.learn(&frame);
                self.capture(frame.clone());
                match self.random.below(20) {
                    0 => continue, // Left out.
                    1 => self.give(from, to, &frame, true)?,
                    2..=4 => {
                        if let Some(changed) = self.forger.mutate(&frame) {
                            self.give(from, to, &changed, true)?;
                        }
                        continue;
                    }
                    _ => {}
                }
            } else if to == self.hostile {
                self.forger.learn(&frame);
            }
            self.give(from, to, &frame, false)?;
        }
        Ok(())
    }

    fn capture(&mut self, frame: Frame) {
        if self.captured.len() < 200 {
            self.captured.push(frame);
        } else {
            let place = self.random.below(200) as usize;
            self.captured[place] = frame;
        }
    }

    /// The hostile peer sends something that its core has not.
    fn attack(&mut self) -> Result<(), String> {
        let to = self.random.below(self.nodes.len() as u64) as usize;
        if to == self.hostile {
            return Ok(());
        }
        let frame = match self.random.below(10) {
            0..=5 => self.forger.forge(),
            6 => self.forger.small(self.nodes[0].config.zones),
            _ if self.captured.is_empty() => None,
            choice => {
                let frame = self.random.pick(&self.captured).clone();
                if choice == 9 { Some(frame) } else { self.forger.mutate(&frame) }
            }
        };
        match frame {
            Some(frame) => self.give(self.hostile, to, &frame, true),
            None => Ok(()),
        }
    }

    fn give(&mut self, from: usize, to: usize, frame: &Frame, hostile: bool) -> Result<(), String> {
        if self.links[from][to].is_none() {
            return Ok(());
        }
        self.tally.frames += 1;
        self.tally.hostile += u64::from(hostile);
        let Node { core, out, .. } = &mut self.nodes[to];
        let given = core.on_frame(self.now, NodeIndex(from as u8), frame, out);
        self.flush(to)?;
        if let Err(error) = given {
            if from != self.hostile && to != self.hostile && !self.stopped {
                // Honest nodes may be led to contradict each other, but not to say what cannot be read.
                self.tally.refused += 1;
            }
            if self.stopped && self.random.below(1000) == 0 {
                return Err(format!("{from} sends {to} what it refuses: {error}"));
            }
            self.tally.refused += u64::from(hostile);
            self.part(from, to)?;
        }
        Ok(())
    }

    fn ask(&mut self, node: usize) -> Result<(), String> {
        let key = self.random.pick(&self.keys).clone();
        let id = match self.random.below(20) {
            0 => *self.random.pick(&[0, 1, ID_MAX, u64::MAX, 1 << 63, 1 << 32]),
            _ => self.next_token,
        };
        let client = *self.random.pick(&[1, 2, 3, 4, 5, u64::MAX]);
        let large = vec![1; if self.random.below(300) == 0 { VALUE_BYTES_MAX } else { 70 }];
        let action = match self.random.below(10) {
            0..=2 => Action::Get,
            3 => Action::Delete,
            4 => Action::CompareAndSwap { expect: Expect::Absent, value: b"c" },
            5 => Action::Put(&large),
            _ => Action::Put(b"value"),
        };
        self.request(node, &key, (client, id), action).map(drop)
    }

    fn request(&mut self, node: usize, key: &[u8], who: (u64, u64), action: Action<'_>) -> Result<u64, String> {
        let token = self.next_token;
        self.next_token += 1;
        self.waiting.insert((node, token));
        let (client, id) = who;
        let retry = self.random.below(5) == 0;
        let mut bytes = Vec::new();
        let encoded = NewCommand { client, id, retry, key, action }.encode(&mut bytes);
        encoded.map_err(|error| error.to_string())?;
        let frame = Bytes::from(bytes);
        let command = Command::parse(&frame).map_err(|error| error.to_string())?;
        let read = if self.random.below(3) == 0 { ReadMode::Log } else { ReadMode::Confirm };
        let zone = ZoneIndex(self.random.below(self.nodes[node].config.zones as u64) as u8);
        let request = Request { reply_to: ReplyTo(token), zone, read, command, frame: &frame };
        let Node { core, out, .. } = &mut self.nodes[node];
        core.on_request(self.now, request, out);
        self.flush(node)?;
        Ok(token)
    }

    fn checkpoint(&mut self, node: usize) -> Result<(), String> {
        self.flush(node)?;
        let Node { log, checkpoint, .. } = &self.nodes[node];
        let before = checkpoint.as_ref().map(|(position, _)| *position);
        let position = log.last().map(|record| record.id).or(before);
        let Some(position) = position else { return Ok(()) };
        let frames = frames_of(&mut self.nodes[node].core);
        self.flush(node)?;
        let node = &mut self.nodes[node];
        node.log.retain(|record| record.id > position);
        node.checkpoint = Some((position, frames));
        Ok(())
    }

    /// A checkpoint as it would be made now, restored, is the node.
    fn compare(&mut self, node: usize) -> Result<(), String> {
        self.flush(node)?;
        let Node { core, config, .. } = &self.nodes[node];
        let mut restored = WPaxos::new(config.clone(), self.now);
        for frame in frames_of(&mut core.clone()) {
            restored.on_restore(self.now, &frame).map_err(|error| format!("node {node}: a checkpoint: {error}"))?;
        }
        restored.check_invariants();
        let seen = |object: ObjectView<'_>| {
            (object.key.to_vec(), object.promised, object.applied, object.state.clone(), object.tail_mark)
        };
        let untouched = |object: &ObjectView<'_>| object.applied > 0 || object.promised.round() > 0;
        let running: BTreeSet<_> = core.objects().filter(untouched).map(|object| object.key.to_vec()).collect();
        for key in running {
            let of = |core: &WPaxos| core.objects().find(|object| object.key == key).map(seen);
            if of(core) != of(&restored) {
                return Err(format!("node {node}: a restored checkpoint differs at {:?}", &key[..key.len().min(20)]));
            }
        }
        self.tally.compared += 1;
        Ok(())
    }

    fn restart(&mut self, node: usize) -> Result<(), String> {
        for peer in 0..self.nodes.len() {
            self.part(node, peer)?;
        }
        self.waiting.retain(|(of, _)| *of != node);
        let count = self.nodes.len();
        let Node { config, core, out, log, checkpoint } = &mut self.nodes[node];
        (config.boot, config.leads_at_home) = (config.boot + 1, false);
        *out = Outputs::new(count);
        *core = WPaxos::new(config.clone(), self.now);
        if let Some((position, frames)) = checkpoint {
            for frame in frames {
                core.on_restore(self.now, frame).map_err(|error| format!("node {node}: its checkpoint: {error}"))?;
            }
            core.end_restore(self.now, *position);
        }
        for record in log {
            let replayed = core.on_replay(self.now, record);
            replayed.map_err(|error| format!("node {node}: record {}: {error}", record.id.0))?;
        }
        core.end_replay(self.now);
        core.check_invariants();
        self.tally.restarts += u64::from(node != self.hostile);
        self.connect_all();
        self.flush(node)
    }
}

fn parse(bytes: Bytes) -> Result<Frame, String> {
    wire::parse(bytes).map_err(|error| format!("a node sends what cannot be read: {error}"))
}

fn frames_of(core: &mut WPaxos) -> Vec<Bytes> {
    let mut frames = Vec::new();
    core.begin_checkpoint(&mut frames);
    let mut cursor = Some(0);
    while let Some(place) = cursor {
        let (frame, next) = core.checkpoint_objects(place, 64 << 10);
        frames.push(frame);
        cursor = next;
    }
    frames
}
