//! Replicas that come back without their state, because their directory is gone or because they keep none: the others name them
//! anew, they learn what they may have forgotten, and vote; where nobody knows that, they say so. And two processes as one
//! node.
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
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fleet::{Fleet, Plan};
use recorded::{History, Random, rounds};
use support::PATIENCE;

const KEYS: usize = 6;
const WINDOW: usize = 3;
/// Longer than it takes to suspect a silent node.
const SILENCE: Duration = Duration::from_millis(1500);

/// One cluster at a time: they would take each other's time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Under load, nodes lose their state one after the other, each while everything depends on those that did before.
fn forget(test: &str, plan: Plan) {
    let _alone = alone();
    let mut random = Random::seeded(test);
    let durable = plan.durable;
    let mut fleet = Fleet::start(plan);
    let history = History::default();
    let clients = (0..3).map(|_| fleet.client(1)).collect();
    history.under_load(clients, KEYS, WINDOW, || {
        let mut version = 1;
        for round in 0..rounds(6) {
            let (victim, other) = (round % 3, (round + 1 + random.below(2)) % 3);
            history.wait_for(100);
            fleet.kill([victim]);
            random.sleep(SILENCE);
            if durable {
                fleet.lose_disk(victim);
            }
            fleet.start_node(victim);
            let now = fleet.wait_for_vote(victim, "votes");
            assert!(now > version, "no later configuration than version {version} names it");
            version = now;
            // It is one of two now: without its vote nothing goes on.
            fleet.kill([other]);
            history.wait_for(100);
            if durable {
                fleet.start_node(other);
                fleet.wait_for_votes(fleet.all());
            } else {
                fleet.start_node(other);
                version = fleet.wait_for_vote(other, "votes");
            }
            fleet.check_alive();
        }
    });
    history.check(&mut fleet.client(1));
    eprintln!("{test}: {}", history.describe());
}

#[test]
fn nodes_whose_directories_are_deleted_come_back_as_learners_and_vote() {
    forget("deleted", Plan::new(1, 3, "system = \"majority\""));
}

#[test]
fn nodes_that_keep_nothing_come_back_the_same_way() {
    forget("none", Plan { durable: false, ..Plan::new(1, 3, "system = \"majority\"") });
}

/// The row of a node in what `wpaxos cmd status` prints, once it has this vote there.
fn wait_for_row(fleet: &Fleet, place: usize, vote: &str) -> Vec<String> {
    let started = Instant::now();
    loop {
        let rows = fleet.cmd(&["status"]);
        assert_eq!(rows[0][3..6], ["config", "vote", "durability"]);
        let row = rows[place + 1].clone();
        if row.get(4).is_some_and(|cell| cell == vote) {
            return row;
        }
        assert!(started.elapsed() < PATIENCE, "not '{vote}' after {PATIENCE:?}: {row:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_learner_waits_for_a_quorum_that_knows_and_the_status_says_so() {
    let _alone = alone();
    let mut fleet = Fleet::start(Plan::new(2, 3, "system = \"floor\""));
    fleet.client(1).put(b"key", b"value").unwrap();
    assert_eq!(wait_for_row(&fleet, 0, "votes")[3..6], ["1", "votes", "sync"]);
    // A phase-1 quorum of the others needs both of those that are left in its zone.
    fleet.kill([0]);
    fleet.lose_disk(0);
    fleet.pause(1);
    fleet.start_node(0);
    assert_eq!(wait_for_row(&fleet, 0, "learner 4/5")[3], "2");
    std::thread::sleep(SILENCE);
    fleet.resume(1);
    assert_eq!(wait_for_row(&fleet, 0, "votes")[3], "2");
    assert!(fleet.said(0).contains("learner: it has lost its state"), "{}", fleet.said(0));
}

#[test]
fn where_nobody_knows_what_was_forgotten_a_learner_stays_one() {
    let _alone = alone();
    let tuning = "[timers]\nrequest_timeout_us = 1500000\n";
    let mut fleet = Fleet::start(Plan { tuning, ..Plan::new(3, 1, "system = \"grid\"") });
    // Each zone is a phase-2 quorum, and all zones are the only one of phase 1.
    let mut clients: Vec<_> = (1..=3).map(|zone| fleet.client(zone)).collect();
    for (client, key) in clients.iter_mut().zip(["one", "two", "three"]) {
        support::put_at_last(client, key.as_bytes(), b"before");
    }
    fleet.kill([1]);
    fleet.lose_disk(1);
    fleet.start_node(1);
    assert_eq!(wait_for_row(&fleet, 1, "learner, no quorum")[3], "2");
    let said = fleet.said(1);
    assert!(said.contains("learner for good") && said.contains("no quorum left"), "{said}");
    std::thread::sleep(SILENCE);
    assert_eq!(fleet.membership(1).unwrap()["vote"], "learner");
    // Nobody can take anything over any more, its own keys least of all: that is told, and in time.
    for (place, key) in [(0, "new"), (0, "two"), (1, "two"), (2, "new")] {
        let (status, after) = fleet.put_at(place, key, "after");
        assert!(matches!(status, 503 | 504), "{} answers {status} for {key}", fleet.ids[place]);
        assert!(after < Duration::from_secs(3), "{} answers after {after:?}", fleet.ids[place]);
    }
    fleet.check_alive();
}

#[test]
fn a_new_cluster_waits_for_enough_of_its_members() {
    let _alone = alone();
    let mut fleet = Fleet::prepare(Plan::new(1, 3, "system = \"majority\""));
    fleet.start_nodes([0, 1]);
    for node in [0, 1] {
        assert_eq!(wait_for_row(&fleet, node, "new")[3], "1");
    }
    std::thread::sleep(SILENCE);
    assert_eq!(fleet.membership(1).expect("node 1 answers")["vote"], "new");
    assert_eq!(fleet.put_at(0, "key", "early").0, 503);
    fleet.start_node(2);
    fleet.wait_for_votes(fleet.all());
    assert_eq!(fleet.membership(0).unwrap()["version"], 1);
    // Afterwards nobody waits for everybody.
    fleet.kill(fleet.all());
    fleet.start_nodes([0, 1]);
    support::put_at_last(&mut fleet.client(1), b"key", b"later");
}

#[test]
fn nodes_that_too_few_are_left_to_name_stay_refused_until_another_is_back() {
    let _alone = alone();
    let mut fleet = Fleet::start(Plan::new(1, 3, "system = \"majority\""));
    fleet.client(1).put(b"key", b"value").unwrap();
    fleet.kill(fleet.all());
    fleet.lose_disk(0);
    fleet.start_nodes([0, 1]);
    assert_eq!(wait_for_row(&fleet, 0, "refused")[3], "1");
    std::thread::sleep(SILENCE);
    assert_eq!(fleet.membership(0).unwrap()["vote"], "refused");
    fleet.start_node(2);
    fleet.wait_for_votes(fleet.all());
    assert_eq!(fleet.client(1).get(b"key").unwrap(), Some((b"value".to_vec(), 1)));
}

#[test]
fn of_two_processes_as_one_node_one_is_kept_out_and_the_other_ends_when_its_place_is_taken() {
    let _alone = alone();
    let tuning = "[timers]\nsuspect_silent_us = 400000\n";
    let mut fleet = Fleet::start(Plan { tuning, ..Plan::new(1, 3, "system = \"majority\"") });
    let mut client = fleet.client(1);
    client.put(b"key", b"value").unwrap();
    // While the node is alive, another process does not get its place, and ends.
    let mut twin = fleet.start_twin(2);
    twin.wait_until_said("taken: 1.3 is linked");
    support::put_at_last(&mut client, b"key", b"another");
    let (code, said) = twin.ended();
    assert!(code == Some(5) && said.contains("two processes run as one node; stop one of them"), "{code:?}: {said}");
    assert!(!twin.said().contains("votes node"), "{}", twin.said());
    assert_eq!(fleet.membership(2).unwrap()["vote"], "votes");
    // While it sleeps, another one does; when it wakes, it has lost it.
    let twin = fleet.start_twin(2);
    fleet.pause(2);
    twin.wait_until_said("votes node=1.3");
    fleet.resume(2);
    let (code, said) = fleet.ended(2);
    assert!(code == Some(5) && said.contains("two processes run as one node; stop one of them"), "{code:?}: {said}");
    support::put_at_last(&mut client, b"key", b"yet another");
    assert_eq!(client.get(b"key").unwrap().unwrap().0, b"yet another");
}

#[test]
#[ignore = "where one peer alone knows a later stream of the node, their link flaps and nobody ends it"]
fn an_older_copy_of_a_directory_ends_its_node_and_loses_nothing() {
    let _alone = alone();
    let mut fleet = Fleet::start(Plan::new(1, 3, "system = \"majority\""));
    let mut client = fleet.client(1);
    support::put_at_last(&mut client, b"key", b"before");
    let owner = fleet.owner_of("key").expect("somebody owns it");
    let (victim, other) = ((owner + 1) % 3, (owner + 2) % 3);
    fleet.kill([victim]);
    fleet.copy_disk(victim);
    fleet.start_node(victim);
    fleet.wait_for_votes(fleet.all());
    // It is one of the two that decide.
    fleet.kill([other]);
    support::put_at_last(&mut client, b"key", b"after");
    fleet.start_node(other);
    fleet.wait_for_votes(fleet.all());
    fleet.kill([victim]);
    fleet.put_copy_back(victim);
    fleet.start_node(victim);
    let (code, said) = fleet.ended(victim);
    assert!(code == Some(9) && said.contains("this data directory is an older copy"), "{code:?}: {said}");
    assert_eq!(client.get(b"key").unwrap().unwrap().0, b"after");
    // With an empty directory it is named anew.
    fleet.lose_disk(victim);
    fleet.start_node(victim);
    fleet.wait_for_votes(fleet.all());
}
