//! The world of one run: processes, connections, clients, and one queue of events in virtual time. It drives shards as their
//! executor does, to the letter.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    rc::Rc,
    sync::Arc,
};

use super::{
    careless::Hostile,
    clients::Clients,
    disk::Disk,
    faults::Fault,
    net::{Conn, End, Side, Touched},
    oracle::{Liveness, Memory, Observer, Rule, Sizes, Violation},
    plan::Plan,
    process::{Clock, Process, ShardState, Start},
    random::{Purpose, Random},
    trace,
    witness::Watch,
};
use crate::{
    mutant::Mutant,
    protocol::wpaxos::invariants::promised_in,
    shard::Next,
    topology::{Cluster, NodeIndex},
    tuning::Tuning,
    wire,
};

/// When every run begins, in microseconds.
pub(super) const BEGIN_US: u64 = 1_000_000;

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A shard's turn, or its alarm.
    Turn { node: usize, boot: u32, shard: usize },
    /// Something arrives on a connection, from this side of it.
    Deliver { conn: usize, from: Side },
    /// A shard dials a peer.
    Dial { node: usize, boot: u32, shard: usize, peer: usize },
    /// A sync of a shard's log is done.
    Synced { node: usize, boot: u32, shard: usize },
    /// A node starts again.
    Restart { node: usize },
    /// A client begins an operation.
    Client(usize),
    /// A hostile client does something.
    Hostile(usize),
    /// A client's patience with an attempt is over.
    Patience { operation: usize, attempt: usize },
    /// A fault of the schedule.
    Fault(usize),
    /// Nothing is wrong any more.
    Heal,
}

/// Where a node is in its life.
pub(super) enum Life {
    /// Its process runs.
    Up(Box<Process>),
    /// It will start again.
    Down,
    /// It will not.
    Dead,
}

/// A node, whichever process it has.
pub(super) struct Machine {
    pub(super) life: Life,
    /// How many processes it has had.
    pub(super) boot: u32,
    /// How many of them on the state that it has.
    pub(super) state_boot: u32,
    pub(super) incarnation: u64,
    pub(super) disks: Vec<Rc<RefCell<Disk>>>,
    pub(super) paused_until: u64,
    /// Every turn takes up to this much longer, until then.
    pub(super) slow: (u64, u64),
    /// Turns come only at multiples of so many microseconds, until then.
    pub(super) bursts: (u64, u64),
    pub(super) disk_stalled_until: u64,
    /// How long it stays down when it is told to stop.
    pub(super) down_us: u64,
}

/// How it is between two nodes, in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Path {
    /// Nothing arrives before.
    pub(super) silent_until: u64,
    /// Everything takes this much longer, until then.
    pub(super) slow: (u64, u64),
    /// No new connection before.
    pub(super) blocked_until: u64,
}

/// Random streams of what happens while the run goes on.
pub(super) struct Randoms {
    pub(super) network: Random,
    pub(super) schedule: Random,
    pub(super) disk: Random,
}

/// The world.
pub(super) struct World {
    pub(super) plan: Plan,
    cluster: Arc<Cluster>,
    tuning: Arc<Tuning>,
    pub(super) mutant: Option<Mutant>,
    pub(super) random: Randoms,
    pub(super) now: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) paths: Vec<Path>,
    pub(super) conns: Vec<Conn>,
    pub(super) touched: Touched,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    order: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) healed: bool,
    /// How long after that everything had ended and all were equal, in microseconds.
    pub(super) settled_us: u64,
    pub(super) clients: Clients,
    pub(super) hostile: Hostile,
    pub(super) watch: Rc<RefCell<Watch>>,
    pub(super) liveness: Liveness,
    pub(super) memory: Memory,
    /// Events handled.
    pub(super) steps: u64,
    pub(super) steps_max: u64,
    pub(super) trace_hash: u64,
    tracing: bool,
}

/// What a run may end with, at any event.
pub(super) type Checked<T = ()> = Result<T, Violation>;

impl World {
    pub(super) fn new(plan: Plan, mutant: Option<Mutant>, tracing: bool) -> Self {
        let count = plan.nodes();
        let seed = plan.seed;
        let stream = |purpose| Random::new(seed, purpose);
        let mut random = Randoms {
            network: stream(Purpose::Network),
            schedule: stream(Purpose::Schedule),
            disk: stream(Purpose::Disk),
        };
        let shards = plan.cluster.shards;
        let machine = |_| Machine {
            life: Life::Down,
            boot: 0,
            state_boot: 0,
            incarnation: random.schedule.any() | 1,
            disks: (0..shards).map(|_| Rc::new(RefCell::new(disk_of(&plan)))).collect(),
            paused_until: 0,
            slow: (0, 0),
            bursts: (0, 1),
            disk_stalled_until: 0,
            down_us: 0,
        };
        Self {
            machines: (0..count).map(machine).collect(),
            cluster: Arc::new(plan.cluster.clone()),
            tuning: Arc::new(plan.tuning.clone()),
            clients: Clients::new(&plan),
            hostile: Hostile::new(&plan),
            watch: Rc::new(RefCell::new(Watch {
                observer: Observer::new(plan.quorums.clone(), count, shards),
                violation: None,
            })),
            liveness: Liveness::new(),
            memory: Memory::new(plan.sizes_max()),
            mutant,
            random,
            now: BEGIN_US,
            paths: vec![Path::default(); count * count],
            conns: Vec::new(),
            touched: Touched::default(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            order: 0,
            faults: Vec::new(),
            healed: false,
            settled_us: 0,
            steps: 0,
            steps_max: u64::MAX,
            trace_hash: 0,
            tracing,
            plan,
        }
    }

    /// Says what happens, if somebody wants to see it.
    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.tracing {
            crate::complain!("{:>9} {}", self.now - BEGIN_US, what());
        }
    }

    /// Nodes whose process runs.
    pub(super) fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.machines.len()).filter(|node| matches!(self.machines[*node].life, Life::Up(_)))
    }

    /// A number larger than any it gave before: the clock of the clients' history.
    pub(super) fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// Has something happen at a time.
    pub(super) fn at(&mut self, time: u64, event: Event) {
        let order = self.next_order();
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.queue.push(Reverse((time.max(self.now), order, place)));
    }

    /// Runs everything up to `until`, or until `done` says so, which is asked now and then; whether it did.
    pub(super) fn run(&mut self, until: u64, mut done: impl FnMut(&Self) -> bool) -> Checked<bool> {
        let mut since_check = 0;
        while let Some(&Reverse((time, _, place))) = self.queue.peek() {
            if time > until || self.steps >= self.steps_max {
                break;
            }
            self.queue.pop();
            self.now = time;
            let event = self.events[place].take().expect("queued once");
            self.free.push(place);
            self.steps += 1;
            self.handle(event)?;
            if let Some(violation) = self.watch.borrow_mut().violation.take() {
                return Err(violation);
            }
            since_check += 1;
            if since_check >= 64 {
                since_check = 0;
                if done(self) {
                    return Ok(true);
                }
            }
        }
        if self.steps < self.steps_max {
            self.now = self.now.max(until);
        }
        Ok(done(self))
    }

    /// Runs until `done` says so, which is asked at short intervals of virtual time, or up to `until`; whether it did.
    pub(super) fn run_until(&mut self, until: u64, done: impl Fn(&Self) -> bool) -> Checked<bool> {
        const STEP_US: u64 = 5_000;
        while !done(self) && self.now < until && self.steps < self.steps_max {
            self.run(until.min(self.now + STEP_US), |_| false)?;
        }
        Ok(done(self))
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::Turn { node, boot, shard } => self.on_turn(node, boot, shard),
            Event::Deliver { conn, from } => self.deliver(conn, from),
            Event::Dial { node, boot, shard, peer } => self.dial(node, boot, shard, peer),
            Event::Synced { node, boot, shard } => self.on_synced(node, boot, shard),
            Event::Restart { node } => self.start(node),
            Event::Client(client) => self.on_client(client),
            Event::Hostile(who) => self.on_hostile(who),
            Event::Patience { operation, attempt } => self.on_patience(operation, attempt),
            Event::Fault(number) => self.on_fault(number),
            Event::Heal => self.heal(),
        }
    }

    // ---- processes -----------------------------------------------------------------------------------------------

    /// Starts a node's process, on what its disks hold if it has run before.
    pub(super) fn start(&mut self, node: usize) -> Checked {
        if !matches!(self.machines[node].life, Life::Down) {
            return Ok(());
        }
        let machine = &mut self.machines[node];
        machine.boot += 1;
        machine.state_boot += 1;
        let clock = Clock { offset: self.random.schedule.below(1 << 40), ppm: self.plan.clock_ppm[node] };
        let start = Start {
            plan: &self.plan,
            cluster: &self.cluster,
            tuning: &self.tuning,
            node,
            incarnation: machine.incarnation,
            boot: machine.boot,
            state_boot: machine.state_boot,
            clock,
            disks: &machine.disks,
            mutant: self.mutant,
            watch: &self.watch,
        };
        let process = match Process::start(&start, self.now) {
            Ok(process) => process,
            Err(error) => {
                // Whoever is in charge gives it another disk.
                self.say(|| format!("node {node} cannot start: {error}"));
                self.lose_disk(node);
                return self.start(node);
            }
        };
        let (boot, state_boot) = (machine.boot, machine.state_boot);
        self.say(|| format!("node {node} starts, boot {boot}"));
        if boot > 1 {
            let index = NodeIndex(node as u8);
            let cores: Vec<_> = process.shards.iter().map(|state| state.shard.protocol()).collect();
            let cores: Vec<_> = cores.iter().map(|witness| witness.core()).collect();
            let observer = &mut self.watch.borrow_mut().observer;
            match state_boot {
                1 => observer.replaced(index, &cores)?,
                _ => observer.restarted(index, &cores)?,
            }
        }
        self.machines[node].life = Life::Up(Box::new(process));
        for shard in 0..self.machines[node].disks.len() {
            self.turn_at(node, shard, self.now);
            for peer in 0..node {
                let later = self.now + self.random.schedule.below(1000);
                self.at(later, Event::Dial { node, boot, shard, peer });
            }
        }
        Ok(())
    }

    /// The process of this boot, unless it is gone.
    pub(super) fn process(&mut self, node: usize, boot: u32) -> Option<&mut Process> {
        match &mut self.machines[node].life {
            Life::Up(process) if process.boot == boot => Some(process),
            _ => None,
        }
    }

    /// Has a shard's turn happen at a time, unless an earlier one is due.
    pub(super) fn turn_at(&mut self, node: usize, shard: usize, time: u64) {
        let (bursts_until, period) = self.machines[node].bursts;
        let time = time.max(self.now);
        let time = if bursts_until > self.now { time.next_multiple_of(period) } else { time };
        let Life::Up(process) = &mut self.machines[node].life else { return };
        let boot = process.boot;
        let state = &mut process.shards[shard];
        if state.turn_at > time {
            state.turn_at = time;
            self.at(time, Event::Turn { node, boot, shard });
        }
    }

    /// Something has come in: the turn comes soon, or somewhat later.
    fn wake(&mut self, node: usize, shard: usize) {
        let long = self.random.schedule.permille(self.plan.long_turn_permille);
        let machine = &self.machines[node];
        let slow = if machine.slow.0 > self.now { machine.slow.1 } else { 0 };
        let wait = self.random.schedule.below(if long { 300 } else { 3 }) + self.random.schedule.below(slow + 1);
        self.turn_at(node, shard, self.now + wait);
    }

    fn on_turn(&mut self, node: usize, boot: u32, shard: usize) -> Checked {
        let (now, paused_until) = (self.now, self.machines[node].paused_until);
        let Some(process) = self.process(node, boot) else { return Ok(()) };
        let state = &mut process.shards[shard];
        if state.turn_at != now {
            return Ok(());
        }
        state.turn_at = u64::MAX;
        if paused_until > now {
            self.turn_at(node, shard, paused_until);
            return Ok(());
        }
        process.set_time(now);
        let state = &mut process.shards[shard];
        // What has come in is taken in by this turn.
        state.shard.is_woken();
        let next = state.shard.turn();
        let slept = state.shard.sleep();
        match next {
            Next::At(next) => {
                let time = if slept { process.clock.time_of(next) } else { now };
                self.turn_at(node, shard, time.max(now + u64::from(slept)));
            }
            Next::Stopped => state.stopped = true,
        }
        if let Some(process) = self.process(node, boot) {
            process.shards[shard].shard.feed();
        }
        self.resume_readers(node, boot, shard)?;
        self.begin_sync(node, boot, shard);
        self.look_at(node, shard)?;
        let is_over = |process: &mut Process| process.shards.iter().all(|state| state.stopped);
        if self.process(node, boot).is_some_and(is_over) {
            self.stopped(node);
        }
        Ok(())
    }

    /// After anything that a shard has done: looks at it, and carries what it wants carried.
    pub(super) fn look_at(&mut self, node: usize, shard: usize) -> Checked {
        let index = NodeIndex(node as u8);
        let Life::Up(process) = &mut self.machines[node].life else { return Ok(()) };
        let woken = process.woken.take();
        let state = &process.shards[shard];
        let is_woken = state.shard.is_woken();
        let tap = state.shard.take_tap();
        let failure = process.node.take_failure();
        let ledger = Rc::clone(&state.ledger);
        self.memory.sample(index, shard as u16, &sizes_of(state))?;
        for (to, bytes) in tap {
            self.trace_hash = self.trace_hash.rotate_left(5) ^ u64::from(crc32c::crc32c(&bytes)) ^ self.now;
            self.say(|| format!("{node}/{shard} -> {} {}", to.0, trace::describe(&bytes)));
            let frame = wire::parse(bytes).expect("shards send whole frames");
            ledger.borrow().left(index, to, &frame)?;
            for (key, ballot) in promised_in(&frame) {
                self.watch.borrow_mut().observer.told(index, &key, ballot)?;
            }
        }
        self.carry();
        if is_woken {
            self.wake(node, shard);
        }
        for other in woken {
            self.wake(node, other);
        }
        match failure {
            None => Ok(()),
            Some(failure) => Err(Rule::Core.broken(format!("node {node} fails: {failure}"))),
        }
    }

    fn begin_sync(&mut self, node: usize, boot: u32, shard: usize) {
        if self.machines[node].disks[shard].borrow_mut().begin_sync() {
            let takes = self.random.disk.delay(self.plan.disk_us, self.has_heavy_tails()).max(1);
            let time = (self.now + takes).max(self.machines[node].disk_stalled_until);
            self.at(time, Event::Synced { node, boot, shard });
        }
    }

    fn on_synced(&mut self, node: usize, boot: u32, shard: usize) -> Checked {
        if self.process(node, boot).is_none() {
            return Ok(());
        }
        self.machines[node].disks[shard].borrow_mut().end_sync();
        self.begin_sync(node, boot, shard);
        self.turn_at(node, shard, self.now);
        Ok(())
    }

    /// Ends a node's process between two events: nothing that it has not sent leaves it any more.
    pub(super) fn crash(&mut self, node: usize) {
        let Life::Up(process) = std::mem::replace(&mut self.machines[node].life, Life::Down) else { return };
        let boot = process.boot;
        drop(process);
        // Nothing that the end of the process has made its sockets say.
        self.touched.borrow_mut().clear();
        for conn in 0..self.conns.len() {
            for side in 0..2 {
                let is_here = match self.conns[conn].ends[side] {
                    End::Shard { node: other, boot: its, .. } => (other, its) == (node, boot),
                    End::Client(_) => false,
                };
                if is_here && !self.conns[conn].closed[side] {
                    self.cut(conn);
                    self.conns[conn].leave(side);
                }
            }
        }
    }

    /// A node will not run again.
    pub(super) fn bury(&mut self, node: usize) {
        self.machines[node].life = Life::Dead;
        self.watch.borrow_mut().observer.died(NodeIndex(node as u8));
    }

    /// Cuts the connections of a node's clients.
    pub(super) fn cut_clients(&mut self, node: usize) {
        for conn in 0..self.conns.len() {
            let [from, to] = self.conns[conn].ends;
            let at_node = matches!(to, End::Shard { node: other, .. } if other == node);
            if at_node && matches!(from, End::Client(_)) && !self.conns[conn].is_broken() {
                self.cut(conn);
            }
        }
    }

    /// Open connections between these two nodes.
    pub(super) fn conns_between(&self, a: usize, b: usize) -> Vec<usize> {
        let node_of = |end: End| match end {
            End::Shard { node, .. } => Some(node),
            End::Client(_) => None,
        };
        let between = |conn: &Conn| {
            let ends = conn.ends.map(node_of);
            (ends == [Some(a), Some(b)] || ends == [Some(b), Some(a)]) && !conn.is_broken() && !conn.is_over()
        };
        (0..self.conns.len()).filter(|conn| between(&self.conns[*conn])).collect()
    }

    /// How full every live shard is, and its core.
    pub(super) fn shards(&self) -> impl Iterator<Item = (usize, usize, &ShardState)> {
        let up = self.machines.iter().enumerate().filter_map(|(node, machine)| match &machine.life {
            Life::Up(process) => Some((node, process)),
            _ => None,
        });
        up.flat_map(|(node, process)| process.shards.iter().enumerate().map(move |(shard, state)| (node, shard, state)))
    }

    /// By key the highest slot that is executed anywhere.
    pub(super) fn executed(&self) -> BTreeMap<u64, u64> {
        self.watch.borrow().observer.executed()
    }
}

fn disk_of(plan: &Plan) -> Disk {
    let (every, piece) = plan.checkpoints;
    Disk::new(plan.disk_us == 0, every, piece)
}

/// How much a shard holds.
pub(super) fn sizes_of(state: &ShardState) -> Sizes {
    let held = state.shard.protocol().core().held();
    let fill = state.shard.fill();
    Sizes {
        stream_bytes: held.stream_bytes as u64,
        received_bytes: held.received_bytes as u64,
        requests: held.requests as u64,
        link_queue_bytes: fill.link_queue_bytes as u64,
        client_queue_bytes: fill.client_queue_bytes as u64,
        tail_entries: held.tail_entries as u64,
        log_pending_bytes: fill.log_pending_bytes as u64,
        unacked_bytes: held.unacked_bytes as u64,
    }
}
