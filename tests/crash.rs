//! Replicas that keep their state are killed again and again under load, one, some or all of them, also while they recover.
//! What clients saw must have an order, and what they were told is done must be there at the end.
//!
//! `WPAXOS_CRASH_ROUNDS` sets the number of rounds of each test, `WPAXOS_CRASH_SEED` what they draw.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/recorded.rs"]
mod recorded;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fleet::{Fleet, Plan};
use recorded::{History, Random, rounds};

const KEYS: usize = 6;
const WINDOW: usize = 3;
/// How long a round waits, at most, between two things that it does.
const PAUSE: Duration = Duration::from_millis(700);

/// One cluster at a time: they would take each other's time.
static ALONE: Mutex<()> = Mutex::new(());

/// What a round kills.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// A node.
    One,
    /// A node of each zone.
    OnePerZone,
    /// All nodes of a zone.
    Zone,
    /// All nodes.
    All,
    /// A node, and when it has been started again and recovers, another one.
    WhileRecovering,
}

/// A cluster under load, through rounds of what `kills` names, one after the other.
fn crash(test: &str, plan: Plan, kills: &[Kill], rounds: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::seeded(test);
    let zones = plan.zones;
    let mut fleet = Fleet::start(plan);
    let history = History::default();
    let clients = (0..3.max(zones)).map(|client| fleet.client(client % zones + 1)).collect();
    history.under_load(clients, KEYS, WINDOW, || {
        history.wait_for(100);
        for kill in kills.iter().cycle().take(rounds) {
            round(*kill, zones, &mut fleet, &history, &mut random);
        }
    });
    history.check(&mut fleet.client(1));
    eprintln!("{test}: {}", history.describe());
    let rolled = fleet.all().filter(|place| fleet.has_checkpoint(*place)).count();
    assert!(rolled > 0, "no node has written a checkpoint");
}

fn round(kill: Kill, zones: u8, fleet: &mut Fleet, history: &History, random: &mut Random) {
    let any = |random: &mut Random, of: Vec<usize>| of[random.below(of.len())];
    let victims: Vec<usize> = match kill {
        Kill::One | Kill::WhileRecovering => vec![any(random, fleet.all().collect())],
        Kill::OnePerZone => (1..=zones).map(|zone| any(random, fleet.zone(zone).collect())).collect(),
        Kill::Zone => fleet.zone(random.below(zones.into()) as u8 + 1).collect(),
        Kill::All => fleet.all().collect(),
    };
    random.sleep(PAUSE);
    fleet.kill(victims.iter().copied());
    match kill {
        // The others go on, by themselves.
        Kill::One | Kill::OnePerZone | Kill::Zone => drop(history.wait_for(30)),
        Kill::All | Kill::WhileRecovering => {}
    }
    random.sleep(PAUSE);
    fleet.start_nodes(victims.iter().copied());
    if matches!(kill, Kill::WhileRecovering) {
        random.sleep(PAUSE / 4);
        let another = any(random, fleet.all().filter(|place| !victims.contains(place)).collect());
        fleet.kill([another]);
        random.sleep(PAUSE);
        fleet.start_node(another);
    }
    fleet.wait_for_votes(fleet.all());
    history.wait_for(100);
    fleet.check_alive();
}

#[test]
fn three_nodes_and_a_majority() {
    let kills = [Kill::One, Kill::All, Kill::WhileRecovering];
    crash("majority", Plan::new(1, 3, "system = \"majority\""), &kills, rounds(24));
}

#[test]
fn three_zones_of_three_that_lose_a_node_of_each() {
    let kills = [Kill::OnePerZone, Kill::All, Kill::One, Kill::WhileRecovering];
    crash("floor", Plan::new(3, 3, "system = \"floor\""), &kills, rounds(10));
}

#[test]
fn three_zones_of_three_that_lose_a_zone() {
    let quorum = "system = \"floor\"\nnode_failures = 1\nzone_failures = 1";
    crash("zone", Plan::new(3, 3, quorum), &[Kill::Zone, Kill::OnePerZone, Kill::Zone], rounds(8));
}
