//! Owners that are paused for longer than it takes to suspect them, and networks that are cut: one node off, a zone off, one
//! way only. Those who have quorums go on, the others say that they cannot, and all is well afterwards without anybody's help.
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
/// Longer than it takes to suspect a node and to take its objects over, with the tuning below.
const LONG: Duration = Duration::from_millis(2500);
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1500);
const TUNING: &str = "[timers]\nrequest_timeout_us = 1500000\n";

/// One cluster at a time: they would take each other's time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn owners_that_are_paused_do_no_harm_when_they_wake() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::seeded("paused");
    let mut fleet = Fleet::start(Plan { tuning: TUNING, ..Plan::new(1, 3, "system = \"majority\"") });
    let history = History::default();
    let mut clients: Vec<_> = (0..3).map(|_| fleet.client(1)).collect();
    // These stay with the sleeper, and hear what it says first thing.
    clients.extend((0..2).map(|_| {
        fleet.client_with(1, |options| {
            (options.attempt_timeout, options.request_timeout) = (2 * LONG, 3 * LONG);
        })
    }));
    history.under_load(clients, KEYS, WINDOW, || {
        for _ in 0..rounds(4) {
            history.wait_for(100);
            let owner = fleet.owner_of(&recorded::name(random.below(KEYS))).expect("somebody owns it");
            fleet.pause(owner);
            history.wait_for(100);
            std::thread::sleep(LONG);
            fleet.resume(owner);
            random.sleep(LONG / 2);
            fleet.check_alive();
        }
        fleet.wait_for_votes(fleet.all());
    });
    history.check(&mut fleet.client(1));
    eprintln!("paused: {}", history.describe());
}

/// What is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// A node from all others.
    Node,
    /// A zone from the others.
    Zone,
    /// A node hears nobody.
    Deaf,
    /// Nobody hears a node.
    Mute,
    /// One node does not hear one other.
    OneWay,
}

fn cut(cut: Cut, fleet: &Fleet, random: &mut Random) -> Vec<usize> {
    let one = random.below(fleet.ids.len());
    let minority: Vec<usize> = match cut {
        Cut::Zone => fleet.zone(fleet.zone_of(one)).collect(),
        _ => vec![one],
    };
    let rest: Vec<usize> = fleet.all().filter(|place| !minority.contains(place)).collect();
    eprintln!("cut {cut:?}: {:?}", minority.iter().map(|place| fleet.ids[*place]).collect::<Vec<_>>());
    match cut {
        Cut::Node | Cut::Zone => fleet.proxies.part(&minority, &rest),
        Cut::Deaf => rest.iter().for_each(|other| fleet.proxies.hold(*other, one)),
        Cut::Mute => rest.iter().for_each(|other| fleet.proxies.hold(one, *other)),
        Cut::OneWay => {
            fleet.proxies.hold(one, rest[random.below(rest.len())]);
            return Vec::new();
        }
    }
    minority
}

/// Three zones of two nodes, of which any one may be cut off.
fn three_zones_of_two() -> Fleet {
    let quorum = "system = \"floor\"\nnode_failures = 0\nzone_failures = 1";
    Fleet::start(Plan { tuning: TUNING, proxied: true, ..Plan::new(3, 2, quorum) })
}

#[test]
fn whoever_has_quorums_goes_on_when_the_network_is_cut() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::seeded("cut");
    let mut fleet = three_zones_of_two();
    let history = History::default();
    let clients = (1..=3).map(|zone| fleet.client(zone)).collect();
    let kinds = [Cut::Node, Cut::Zone, Cut::Mute, Cut::Deaf, Cut::OneWay];
    history.under_load(clients, KEYS, WINDOW, || {
        for (round, kind) in kinds.iter().cycle().take(rounds(kinds.len())).enumerate() {
            history.wait_for(100);
            let minority = cut(*kind, &fleet, &mut random);
            // What a deaf node owns waits for it: others hear it.
            let went_on = if matches!(kind, Cut::Deaf) { LONG / 2 } else { history.wait_for(200) };
            refuses(&fleet, &minority, &format!("apart-{round}"));
            std::thread::sleep(LONG.saturating_sub(went_on));
            if random.below(2) == 0 {
                fleet.proxies.forget_connections();
            }
            fleet.proxies.heal();
            let healed = fleet.wait_for_service(&format!("healed-{round}"));
            eprintln!("cut {kind:?}: 200 operations in {went_on:?}; all nodes served {healed:?} after it was healed");
            fleet.check_alive();
        }
        fleet.wait_for_votes(fleet.all());
    });
    history.check(&mut fleet.client(1));
    eprintln!("cut: {}", history.describe());
}

/// Nodes without quorums say so, and in time: of a write to a key that nobody has, and of a read of one that others write.
fn refuses(fleet: &Fleet, minority: &[usize], new: &str) {
    for place in minority.iter().copied() {
        for (status, after) in [fleet.put_at(place, new, "apart"), fleet.get_at(place, &recorded::name(0))] {
            let id = fleet.ids[place];
            assert!(matches!(status, 503 | 504), "{id}, cut off, answers {status}");
            assert!(after < 2 * REQUEST_TIMEOUT, "{id} answers after {after:?}");
        }
    }
}

#[test]
fn a_node_that_hears_nobody_is_taken_over() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let fleet = three_zones_of_two();
    let history = History::default();
    let clients = (1..=3).map(|zone| fleet.client(zone)).collect();
    history.under_load(clients, KEYS, WINDOW, || {
        history.wait_for(100);
        let deaf = fleet.owner_of(&recorded::name(0)).expect("somebody owns it");
        fleet.all().filter(|other| *other != deaf).for_each(|other| fleet.proxies.hold(other, deaf));
        history.wait_for(500);
        fleet.proxies.heal();
    });
    history.check(&mut fleet.client(1));
}
