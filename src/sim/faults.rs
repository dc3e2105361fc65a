//! What goes wrong, until everything is healed: a schedule, drawn before the run begins, so that a run can be repeated without
//! some of it.

use std::collections::BTreeSet;

use super::{
    disk::DiskFault,
    plan::{Crashes, EXTREME_KINDS, FAULT_KINDS, Plan, Theme, Weather},
    random::{Purpose, Random},
    world::{Checked, Event, Life, World},
};
use crate::topology::{NodeIndex, NodeSet};

/// Something that goes wrong at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Microseconds since the run began.
    pub at_us: u64,
    /// How long it lasts, where it lasts.
    pub long_us: u64,
    /// What it is.
    pub kind: FaultKind,
}

/// What goes wrong. Nodes are numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The connections between two nodes break, and no new one is possible for a while. Of a node to itself: those of its
    /// clients.
    Cut(usize, usize),
    /// They break, and may be made anew at once.
    Reset(usize, usize),
    /// What one node sends to the other waits.
    Silence(usize, usize),
    /// What two nodes send each other takes so much longer, in microseconds.
    Slow(usize, usize, u64),
    /// A node stands still, then takes in everything at once.
    Pause(usize),
    /// Every turn of a node takes up to so much longer, in microseconds.
    Lag(usize, u64),
    /// A node's disk stands still.
    StallDisk(usize),
    /// A node's turns come only once in so many microseconds, with all timers that are due by then.
    Bursts(usize, u64),
    /// Those of all nodes do.
    AllBursts(u64),
    /// Zones on two sides, by the bits, that have no connection.
    PartZones(u64),
    /// Nodes on two sides, by the bits, that have no connection.
    PartNodes(u64),
    /// What one side, by the bits, sends to the other waits.
    PartOneWay(u64),
    /// A node has no connection to any other.
    Isolate(usize),
    /// Nobody hears a node; it hears everybody.
    Mute(usize),
    /// A node hears nobody; everybody hears it.
    Deafen(usize),
    /// A node is told to stop, answers what it can, ends, and starts again after a while.
    Stop(usize),
    /// A node's process ends, and its disk does this.
    Crash(usize, DiskFault),
    /// A node's process ends for good.
    Die(usize),
}

/// Draws the schedule of a run.
pub(super) fn schedule(plan: &Plan) -> Vec<Fault> {
    let mut random = Random::new(plan.seed, Purpose::Faults);
    let mut mortal = mortal(plan, &mut random);
    let mut faults = Vec::new();
    let mut at_us = 5_000;
    if plan.weather == Weather::Calm {
        return faults;
    }
    let gap_us = if plan.weather == Weather::Storm { 12_000 } else { 80_000 };
    while at_us < plan.storm_us {
        let longest = *random.pick(&[3_000, 30_000, 200_000]);
        let long_us = random.range(1000, longest);
        if let Some(kind) = draw(plan, &mut random, &mut mortal) {
            faults.push(Fault { at_us, long_us, kind });
        }
        at_us += random.range(1, gap_us);
    }
    add_extremes(plan, &mortal, &mut faults);
    faults
}

/// Adds a few faults that last long or cost much.
fn add_extremes(plan: &Plan, mortal: &[usize], faults: &mut Vec<Fault>) {
    let random = &mut Random::new(plan.seed, Purpose::ExtremeFaults);
    let mut at_us = random.range(5_000, 100_000);
    while plan.extremes != 0 && at_us < plan.storm_us {
        let node = random.below(plan.nodes() as u64) as usize;
        let (number, period_us) = (random.below(EXTREME_KINDS), *random.pick(&[5_000, 20_000, 60_000]));
        let long_us = random.range(50_000, plan.storm_us);
        let kind = match number {
            0 => Some(FaultKind::Bursts(node, period_us)),
            1 => Some(FaultKind::AllBursts(period_us)),
            2 => Some(FaultKind::StallDisk(node)),
            _ if plan.crashes != Crashes::LoseDisk || mortal.is_empty() => None,
            _ => Some(FaultKind::Crash(*random.pick(mortal), DiskFault::Gone)),
        };
        if let Some(kind) = kind.filter(|_| plan.extremes >> number & 1 == 1) {
            let long_us = if matches!(kind, FaultKind::Crash(..)) { random.range(1000, 50_000) } else { long_us };
            faults.push(Fault { at_us, long_us, kind });
        }
        at_us += random.range(20_000, 300_000);
    }
}

fn draw(plan: &Plan, random: &mut Random, mortal: &mut Vec<usize>) -> Option<FaultKind> {
    let nodes = plan.nodes() as u64;
    let (a, b) = (random.below(nodes) as usize, random.below(nodes) as usize);
    let (number, bits) = (random.below(FAULT_KINDS), random.any());
    let much = random.range(1000, 30_000);
    let seldom = random.permille(300);
    let disk = *random.pick(&[DiskFault::LosesUnsynced, DiskFault::KeepsSome, DiskFault::TearsEnd]);
    if plan.faults >> number & 1 == 0 {
        return None;
    }
    Some(match number {
        0 => FaultKind::Cut(a, b),
        1 => FaultKind::Reset(a, b),
        2 => FaultKind::Silence(a, b),
        3 => FaultKind::Slow(a, b, much),
        4 => FaultKind::Pause(a),
        5 => FaultKind::Lag(a, much),
        6 => FaultKind::StallDisk(a),
        7 => FaultKind::PartZones(bits),
        8 => FaultKind::PartNodes(bits),
        9 => FaultKind::PartOneWay(bits),
        10 => FaultKind::Isolate(a),
        11 if bits & 1 == 0 => FaultKind::Mute(a),
        11 => FaultKind::Deafen(a),
        _ => match plan.crashes {
            Crashes::None => return None,
            Crashes::LoseDisk if mortal.contains(&a) && bits & 3 != 0 => {
                let gone = if bits & 4 == 0 { DiskFault::Unreadable } else { DiskFault::Gone };
                FaultKind::Crash(a, gone)
            }
            Crashes::KeepLog | Crashes::LoseDisk if number == 13 && bits & 8 == 0 => FaultKind::Stop(a),
            Crashes::KeepLog | Crashes::LoseDisk => FaultKind::Crash(a, disk),
            Crashes::ForGood if seldom => FaultKind::Die(mortal.pop()?),
            Crashes::ForGood => return None,
        },
    })
}

/// Nodes that may be lost in this run: those that stay hold quorums of both phases.
fn mortal(plan: &Plan, random: &mut Random) -> Vec<usize> {
    let mut lost = Vec::new();
    let tries = if plan.theme == Theme::Newcomers { 10 } else { random.below(3) };
    for _ in 0..tries {
        let node = random.below(plan.nodes() as u64) as usize;
        let live: NodeSet = (0..plan.nodes())
            .filter(|other| *other != node && !lost.contains(other))
            .map(|other| NodeIndex(other as u8))
            .collect();
        let enough = plan.quorums.is_phase1_quorum(live) && plan.quorums.is_phase2_quorum(live);
        // Those that live name a node anew only as a majority.
        if enough && 2 * live.len() > plan.nodes() && !lost.contains(&node) {
            lost.push(node);
        }
    }
    lost
}

impl World {
    /// Begins the bad weather, which ends by itself.
    pub(super) fn begin_weather(&mut self, faults: &[Fault], without: &BTreeSet<usize>) {
        for (number, fault) in faults.iter().enumerate().filter(|(number, _)| !without.contains(number)) {
            self.at(self.now + fault.at_us, Event::Fault(number));
        }
        self.faults = faults.to_vec();
        self.at(self.now + self.plan.storm_us, Event::Heal);
    }

    pub(super) fn on_fault(&mut self, number: usize) -> Checked {
        let Fault { long_us, kind, .. } = self.faults[number];
        self.say(|| format!("fault {number}: {kind:?} for {long_us} µs"));
        let until = self.now + long_us;
        match kind {
            FaultKind::Cut(a, b) => self.cut_nodes(a, b, until),
            FaultKind::Reset(a, b) => self.cut_nodes(a, b, 0),
            FaultKind::Silence(a, b) => self.silence(a, b, until),
            FaultKind::Slow(a, b, much) => {
                self.path(a, b).slow = (until, much);
                self.path(b, a).slow = (until, much);
            }
            FaultKind::Pause(node) => {
                let paused = &mut self.machines[node].paused_until;
                *paused = until.max(*paused);
            }
            FaultKind::Lag(node, much) => self.machines[node].slow = (until, much),
            FaultKind::StallDisk(node) => self.machines[node].disk_stalled_until = until,
            FaultKind::Bursts(node, period) => self.machines[node].bursts = (until, period),
            FaultKind::AllBursts(period) => {
                self.machines.iter_mut().for_each(|machine| machine.bursts = (until, period));
            }
            FaultKind::PartZones(sides) => self.each_across(sides, true, |world, a, b| world.cut_nodes(a, b, until)),
            FaultKind::PartNodes(sides) => self.each_across(sides, false, |world, a, b| world.cut_nodes(a, b, until)),
            FaultKind::PartOneWay(sides) => self.each_across(sides, false, |world, a, b| world.silence(a, b, until)),
            FaultKind::Isolate(node) => self.each_peer(node, |world, peer| world.cut_nodes(node, peer, until)),
            FaultKind::Mute(node) => self.each_peer(node, |world, peer| world.silence(node, peer, until)),
            FaultKind::Deafen(node) => self.each_peer(node, |world, peer| world.silence(peer, node, until)),
            FaultKind::Stop(node) => self.stop_node(node, long_us),
            FaultKind::Crash(node, disk) => self.crash_node(node, disk, long_us),
            FaultKind::Die(node) => {
                self.crash(node);
                self.bury(node);
            }
        }
        Ok(())
    }

    fn cut_nodes(&mut self, a: usize, b: usize, until: u64) {
        if a == b {
            return self.cut_clients(a);
        }
        let blocked = self.path(a, b).blocked_until.max(until);
        self.path(a, b).blocked_until = blocked;
        for conn in self.conns_between(a, b) {
            self.cut(conn);
        }
    }

    fn silence(&mut self, from: usize, to: usize, until: u64) {
        let path = self.path(from, to);
        path.silent_until = path.silent_until.max(until);
    }

    /// Each pair, the first of one side of a partition and the second of the other.
    fn each_across(&mut self, sides: u64, by_zone: bool, mut act: impl FnMut(&mut Self, usize, usize)) {
        let side = |world: &Self, node: usize| {
            let zone = world.plan.cluster.member(NodeIndex(node as u8)).zone.index();
            sides >> (if by_zone { zone } else { node } % 64) & 1
        };
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                if side(self, a) < side(self, b) {
                    act(self, a, b);
                }
            }
        }
    }

    fn each_peer(&mut self, node: usize, mut act: impl FnMut(&mut Self, usize)) {
        for peer in (0..self.machines.len()).filter(|peer| *peer != node) {
            act(self, peer);
        }
    }

    fn stop_node(&mut self, node: usize, down_us: u64) {
        self.machines[node].down_us = down_us;
        let Life::Up(process) = &self.machines[node].life else { return };
        process.node.ask_to_stop();
        for shard in 0..process.shards.len() {
            self.turn_at(node, shard, self.now);
        }
    }

    /// A node that was told to stop has: what its log did not sync is lost, as in any end.
    pub(super) fn stopped(&mut self, node: usize) {
        let down_us = self.machines[node].down_us;
        self.crash_node(node, DiskFault::KeepsSome, down_us);
    }

    fn crash_node(&mut self, node: usize, fault: DiskFault, down_us: u64) {
        if self.live().all(|live| live != node) {
            return;
        }
        self.crash(node);
        for disk in &self.machines[node].disks {
            disk.borrow_mut().crash(fault, &mut self.random.disk);
        }
        if fault == DiskFault::Gone {
            self.lose_disk(node);
        }
        self.at(self.now + down_us, Event::Restart { node });
    }

    /// The node begins again with nothing, as somebody else.
    pub(super) fn lose_disk(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        for disk in &machine.disks {
            let another = disk.borrow().another();
            *disk.borrow_mut() = another;
        }
        (machine.state_boot, machine.incarnation) = (0, self.random.schedule.any() | 1);
    }

    /// Nothing is wrong any more, but what is lost stays lost.
    pub(super) fn heal(&mut self) -> Checked {
        self.say(|| "healed".to_owned());
        self.healed = true;
        let now = self.now;
        for path in &mut self.paths {
            *path = super::world::Path { silent_until: path.silent_until.min(now), ..Default::default() };
        }
        // What is slow or waits arrives soon.
        let soon = now + 1000;
        for conn in 0..self.conns.len() {
            self.conns[conn].hurry(soon);
            for from in 0..2 {
                if self.conns[conn].next_arrival(from).is_some() {
                    self.at(soon, Event::Deliver { conn, from });
                }
            }
        }
        for node in 0..self.machines.len() {
            let machine = &mut self.machines[node];
            (machine.disk_stalled_until, machine.paused_until) = (0, 0);
            (machine.slow, machine.bursts) = ((0, 0), (0, 1));
            let boot = machine.boot;
            for shard in 0..machine.disks.len() {
                if self.plan.extremes != 0 {
                    // A sync that hangs ends.
                    self.at(soon, Event::Synced { node, boot, shard });
                }
                self.turn_at(node, shard, now);
            }
            self.start(node)?;
        }
        Ok(())
    }
}
