//! One process of one node: its shards as they are shipped, on a clock, a disk and connections that are simulated.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex, atomic::AtomicBool},
    task::{Wake, Waker},
};

use super::{
    disk::{Disk, DiskLog, ReadError, Recovered},
    ledger::LedgerLog,
    net::SimSocket,
    oracle::{Ledger, SharedLedger},
    plan::Plan,
    witness::{Watch, Witness},
};
use crate::{
    mutant::Mutant,
    protocol::{
        Micros, Protocol,
        wpaxos::{Config, WPaxos},
    },
    shard::{Backoff, Connection, Ended, Node, Session, Shard},
    topology::{Cluster, NodeIndex, ShardId},
    tuning::Tuning,
};

/// Where a new process's clock begins, before its offset, in microseconds.
const CLOCK_BEGINS: u64 = 1_000_000;

/// Slots of an object that may be open at once: fewer than in the product, so that short histories reach the bound.
const OPEN_SLOTS: u64 = 24;

/// How a node's clock follows virtual time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) offset: u64,
    pub(super) ppm: u64,
}

impl Clock {
    /// What it shows at this time.
    pub(super) fn at(self, time: u64) -> Micros {
        Micros(CLOCK_BEGINS + self.offset + (u128::from(time) * u128::from(self.ppm) / 1_000_000) as u64)
    }

    /// The first time at which it shows this much.
    pub(super) fn time_of(self, shown: Micros) -> u64 {
        let since = shown.0.saturating_sub(CLOCK_BEGINS + self.offset);
        (u128::from(since) * 1_000_000).div_ceil(u128::from(self.ppm)) as u64
    }
}

/// A peer that this node dials.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) backoff: Backoff,
    /// The connection, while there is one.
    pub(super) conn: Option<usize>,
}

/// A shard of a process.
pub(super) struct ShardState {
    pub(super) shard: Rc<Shard<Witness>>,
    /// What is durable of it.
    pub(super) ledger: SharedLedger,
    /// Its connections, by their place in the network.
    pub(super) sessions: BTreeMap<usize, Session>,
    /// Connections that are read no further for now.
    pub(super) paused: Vec<usize>,
    pub(super) dials: Vec<Dial>,
    /// When its next turn is due.
    pub(super) turn_at: u64,
    /// It was told to stop, and has.
    pub(super) stopped: bool,
}

/// Shards that other shards of their node have put something into the mailbox of.
#[derive(Debug, Default)]
pub(super) struct Woken(Mutex<Vec<usize>>);

impl Woken {
    pub(super) fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().expect("nothing panics under this lock"))
    }
}

struct MailWaker(usize, Arc<Woken>);

impl Wake for MailWaker {
    fn wake(self: Arc<Self>) {
        self.1.0.lock().expect("nothing panics under this lock").push(self.0);
    }
}

/// What a process is started with.
pub(super) struct Start<'a> {
    pub(super) plan: &'a Plan,
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) tuning: &'a Arc<Tuning>,
    pub(super) node: usize,
    pub(super) incarnation: u64,
    pub(super) boot: u32,
    /// The boot on the state that the node has.
    pub(super) state_boot: u32,
    pub(super) clock: Clock,
    pub(super) disks: &'a [Rc<RefCell<Disk>>],
    pub(super) mutant: Option<Mutant>,
    pub(super) watch: &'a Rc<RefCell<Watch>>,
}

/// A running process.
pub(super) struct Process {
    pub(super) node: Arc<Node>,
    pub(super) boot: u32,
    pub(super) shards: Vec<ShardState>,
    pub(super) woken: Arc<Woken>,
    pub(super) clock: Clock,
}

impl Process {
    /// Starts a node on what its disks hold.
    ///
    /// # Errors
    /// If a log cannot be read.
    pub(super) fn start(start: &Start<'_>, time: u64) -> Result<Self, ReadError> {
        let index = NodeIndex(start.node as u8);
        let (cluster, tuning) = (Arc::clone(start.cluster), Arc::clone(start.tuning));
        let stop = Arc::new(AtomicBool::new(false));
        let node = Node::new(cluster, tuning, index, start.incarnation, BTreeMap::new(), stop);
        let now = start.clock.at(time);
        let node = Arc::new(node.simulated(now, start.state_boot));
        let woken = Arc::new(Woken::default());
        let mut shards = Vec::new();
        for (number, disk) in start.disks.iter().enumerate() {
            let id = ShardId(number as u16);
            let (core, ledger) = recovered(start, id, now, &mut disk.borrow_mut())?;
            let ledger = Rc::new(RefCell::new(ledger));
            start.watch.borrow_mut().observer.durability.began(index, id.0, Rc::clone(&ledger));
            let core = Witness::new(core, index, id.0, Rc::clone(start.watch));
            let log = LedgerLog { log: Box::new(DiskLog(Rc::clone(disk))), ledger: Rc::clone(&ledger) };
            let shard = Shard::new(Arc::clone(&node), id, core, Box::new(log), None);
            shard.open_tap();
            shard.set_mail_waker(Waker::from(Arc::new(MailWaker(number, Arc::clone(&woken)))));
            let dial = |peer| Dial { backoff: shard.backoff(NodeIndex(peer as u8)), conn: None };
            let dials = (0..start.node).map(dial).collect();
            let (sessions, paused) = (BTreeMap::new(), Vec::new());
            shards.push(ShardState { shard, ledger, sessions, paused, dials, turn_at: u64::MAX, stopped: false });
        }
        Ok(Self { node, boot: start.boot, shards, woken, clock: start.clock })
    }

    /// Tells the shards what time it is.
    pub(super) fn set_time(&self, time: u64) {
        self.node.set_now(self.clock.at(time));
    }

    /// Puts a connection that somebody has opened into its place.
    pub(super) fn accept(&mut self, shard: usize, conn: usize, socket: SimSocket) {
        let state = &mut self.shards[shard];
        let session = Session::accept(&state.shard, connection(socket));
        state.sessions.insert(conn, session);
    }

    /// Puts a connection that this node has opened to a peer into its place.
    pub(super) fn call(&mut self, shard: usize, conn: usize, socket: SimSocket, peer: usize) -> Result<(), Ended> {
        let state = &mut self.shards[shard];
        let session = Session::call(&state.shard, connection(socket), NodeIndex(peer as u8))?;
        state.sessions.insert(conn, session);
        state.dials[peer].conn = Some(conn);
        Ok(())
    }
}

fn connection(socket: SimSocket) -> Connection {
    Connection::new(Box::new(socket), "127.0.0.1:1".parse().expect("an address"))
}

/// A shard's core as its log has left it, and the ledger that goes on from there.
fn recovered(start: &Start<'_>, shard: ShardId, now: Micros, disk: &mut Disk) -> Result<(WPaxos, Ledger), ReadError> {
    let index = NodeIndex(start.node as u8);
    let config = Config::new(start.cluster, start.tuning, index, shard.0, start.incarnation);
    let mut config = config.expect("the quorums were checked");
    config.boot = start.state_boot;
    config.leads_at_home = start.state_boot == 1;
    config.seed ^= start.plan.seed;
    config.mutant = start.mutant;
    config.open_slots = OPEN_SLOTS;
    let mut core = WPaxos::new(config, now);
    if start.state_boot > 1 {
        let Recovered { checkpoint, records } = disk.recover()?;
        if let Some((position, frames)) = checkpoint {
            for frame in frames {
                core.on_restore(now, &frame).expect("what was kept is well-formed");
            }
            core.end_restore(now, position);
        }
        for record in records {
            core.on_replay(now, &record).expect("what was logged is well-formed");
        }
    }
    let ledger = Ledger::new(core.clone(), now);
    if start.state_boot > 1 {
        core.end_replay(now);
    }
    Ok((core, ledger))
}
