//! What goes wrong, until everything is healed.

use wpaxos::topology::{NodeIndex, NodeSet};

use crate::{
    random::Random,
    setup::{Setup, Weather},
    world::{Event, World},
};

/// Something that goes wrong, or is mended.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The next one of a row is due.
    Next,
    /// These two may connect again.
    Mend(usize, usize),
    /// Nothing is wrong any more.
    Heal,
}

/// Nodes that may die in this history: those that live hold quorums of both phases.
pub fn mortal(setup: &Setup, random: &mut Random) -> Vec<usize> {
    let mut dead = Vec::new();
    for _ in 0..random.below(3) {
        let node = random.below(setup.nodes() as u64) as usize;
        let live: NodeSet = (0..setup.nodes())
            .filter(|other| *other != node && !dead.contains(other))
            .map(|other| NodeIndex(other as u8))
            .collect();
        let enough = setup.quorums.is_phase1_quorum(live) && setup.quorums.is_phase2_quorum(live);
        if enough && !dead.contains(&node) {
            dead.push(node);
        }
    }
    dead
}

impl World {
    /// Begins the bad weather, which ends by itself.
    pub fn begin_weather(&mut self) {
        let end = self.now + self.setup.storm_us;
        self.at(end, Event::Fault(Fault::Heal));
        if self.setup.weather != Weather::Calm {
            self.at(self.now + 5000, Event::Fault(Fault::Next));
        }
    }

    pub fn on_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Next if !self.healed => {
                self.one_fault();
                let gap = if self.setup.weather == Weather::Storm { 12_000 } else { 80_000 };
                let wait = self.random.range(1, gap);
                self.at(self.now + wait, Event::Fault(Fault::Next));
            }
            Fault::Next => {}
            Fault::Mend(a, b) => self.open(a, b, 3000),
            Fault::Heal => self.heal(),
        }
    }

    fn node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    fn how_long(&mut self) -> u64 {
        let longest = *self.random.pick(&[3_000, 30_000, 200_000]);
        self.random.range(1000, longest)
    }

    fn one_fault(&mut self) {
        let (a, b, long) = (self.node(), self.node(), self.how_long());
        let until = self.now + long;
        match self.random.below(12) {
            0..=3 => self.cut_for(a, b, long),
            4 => {
                self.say(|| format!("silence {a} -> {b} for {long}"));
                self.direction(a, b).silent_until = until;
            }
            5 => {
                let slower = self.random.range(1000, 30_000);
                self.direction(a, b).slow = (until, slower);
                self.direction(b, a).slow = (until, slower);
            }
            6 => self.pause_with_word(a, until),
            7 => self.nodes[a].disk_stalled_until = until,
            8 => self.partition(long),
            9 => self.isolate(a, long),
            10 => self.silence_node(a, until),
            _ => {
                if self.random.permille(300)
                    && let Some(node) = self.oracle.mortal.pop()
                {
                    self.kill(node);
                }
            }
        }
    }

    fn pause_with_word(&mut self, node: usize, until: u64) {
        self.say(|| format!("node {node} is paused until {}", until - 1_000_000));
        self.pause(node, until);
    }

    fn cut_for(&mut self, a: usize, b: usize, long: u64) {
        if a != b && self.cut(a, b) {
            self.say(|| format!("cut {a} - {b} for {long}"));
            self.at(self.now + 1000 + long, Event::Fault(Fault::Mend(a, b)));
        }
    }

    /// Zones, or just nodes, on two sides.
    fn partition(&mut self, long: u64) {
        let by_zone = self.random.permille(500);
        let sides = self.random.next();
        let side = |world: &Self, node: usize| {
            let name = if by_zone { world.setup.cluster.member(NodeIndex(node as u8)).zone.index() } else { node };
            sides >> (name % 64) & 1
        };
        for a in 0..self.nodes.len() {
            for b in 0..a {
                if side(self, a) != side(self, b) {
                    self.cut_for(a, b, long);
                }
            }
        }
    }

    fn isolate(&mut self, node: usize, long: u64) {
        for peer in 0..self.nodes.len() {
            self.cut_for(node, peer, long);
        }
    }

    /// Nobody hears this node; it hears everybody.
    fn silence_node(&mut self, node: usize, until: u64) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.direction(node, peer).silent_until = until;
        }
    }

    fn heal(&mut self) {
        self.say(|| "healed".to_owned());
        self.healed = true;
        let now = self.now;
        for direction in &mut self.directions {
            direction.silent_until = now;
            direction.slow = (0, 0);
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].disk_stalled_until = 0;
            if self.nodes[node].paused_until > now {
                self.nodes[node].paused_until = now;
                self.at(now, Event::Resume(node));
            }
        }
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.wake(a, b);
                // Those that were just cut have not been mended yet.
                self.at(now + 2000, Event::Fault(Fault::Mend(a, b)));
            }
        }
    }
}
