//! How long clients wait when the owner of what they use is killed, or falls silent.
//!
//! ```sh
//! cargo test --release --test takeover -- --ignored --nocapture
//! ```
//! prints the figures that `docs/operations.md` has, with the default tuning and nodes that keep their state in mode sync.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/fleet.rs"]
mod fleet;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet::{Fleet, Plan};
use wpaxos::client::Client;

const KEYS: usize = 64;
const CLIENTS: usize = 4;
/// How long a client may wait for an answer before the measurement is given up.
const LONGEST: Duration = Duration::from_secs(20);

/// Answers that were under way when an owner ended are not another owner's.
const UNDER_WAY: Duration = Duration::from_millis(5);

/// What happens to the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Its process is killed: its connections close.
    Killed,
    /// It is stopped, as if its machine had hung: its connections stay.
    Silent,
}

/// What clients saw of one owner's end.
struct Seen {
    /// For each client, the longest time between two successes.
    gaps: Vec<Duration>,
    /// The time until every one of the owner's keys was written again.
    all_keys: Duration,
    failed: u64,
}

/// The keys of each owner, by place.
fn owners(fleet: &Fleet) -> BTreeMap<usize, Vec<String>> {
    let mut owners: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for key in (0..KEYS).map(|key| format!("hot-{key}")) {
        let owner = fleet.owner_of(&key).expect("it was written");
        owners.entry(owner).or_default().push(key);
    }
    owners
}

/// One client: writes the keys in turn, one at a time.
fn write(
    mut client: Client,
    keys: &[String],
    first: usize,
    stop: &AtomicBool,
    failed: &AtomicU64,
) -> Vec<(usize, Instant)> {
    let mut successes = Vec::new();
    for place in (first..).map(|turn| turn % keys.len()) {
        if stop.load(Ordering::Relaxed) {
            return successes;
        }
        match client.put(keys[place].as_bytes(), b"value") {
            Ok(_) => successes.push((place, Instant::now())),
            Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
        }
    }
    unreachable!("it goes on until it is told to stop")
}

/// Ends the owner of the most keys, while clients write those.
fn end_an_owner(fleet: &mut Fleet, end: End, meanwhile: Duration) -> Seen {
    let (owner, keys) = owners(fleet).into_iter().max_by_key(|(_, keys)| keys.len()).unwrap();
    let (stop, failed, ended) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(None));
    let zone = fleet.zone_of(owner);
    let clients: Vec<Client> = (0..CLIENTS).map(|_| fleet.client(zone)).collect();
    let logs: Vec<Vec<(usize, Instant)>> = std::thread::scope(|scope| {
        let (keys, stop, failed) = (&keys, &stop, &failed);
        let load: Vec<_> = (0..)
            .zip(clients)
            .map(|(number, client)| {
                scope.spawn(move || write(client, keys, number * keys.len() / CLIENTS, stop, failed))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        *ended.lock().unwrap() = Some(Instant::now());
        match end {
            End::Killed => fleet.kill([owner]),
            End::Silent => fleet.pause(owner),
        }
        std::thread::sleep(meanwhile);
        stop.store(true, Ordering::Relaxed);
        load.into_iter().map(|load| load.join().unwrap()).collect()
    });
    match end {
        End::Killed => fleet.start_node(owner),
        End::Silent => fleet.resume(owner),
    }
    fleet.wait_for_votes(fleet.all());
    let ended = ended.lock().unwrap().unwrap();
    let gap = |log: &Vec<(usize, Instant)>| {
        let times = log.windows(2).filter(|pair| pair[1].1 > ended);
        times.map(|pair| pair[1].1 - pair[0].1).max().unwrap_or(LONGEST)
    };
    let first = |place: usize| {
        let after = logs.iter().flatten().filter(|(written, at)| *written == place && *at > ended + UNDER_WAY);
        after.map(|(_, at)| *at - ended).min().unwrap_or(LONGEST)
    };
    let all_keys = (0..keys.len()).map(first).max().unwrap();
    Seen { gaps: logs.iter().map(gap).collect(), all_keys, failed: failed.load(Ordering::Relaxed) }
}

fn measure(name: &str, plan: Plan, end: End, times: usize, meanwhile: Duration) -> Duration {
    let zones = plan.zones;
    let mut fleet = Fleet::start(plan);
    let mut client = fleet.client(zones);
    for key in 0..KEYS {
        support::put_at_last(&mut client, format!("hot-{key}").as_bytes(), b"first");
    }
    let (mut gaps, mut all_keys, mut failed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..times {
        let seen = end_an_owner(&mut fleet, end, meanwhile);
        gaps.extend(seen.gaps);
        all_keys.push(seen.all_keys);
        failed += seen.failed;
        // Whoever was suspected is trusted again.
        std::thread::sleep(Duration::from_millis(500));
    }
    gaps.sort_unstable();
    all_keys.sort_unstable();
    let middle = |sorted: &[Duration]| sorted[sorted.len() / 2];
    let worst = *gaps.last().unwrap();
    eprintln!(
        "{name}, {end:?}, {times} times: a client's gap {:.0?} in the median, {worst:.0?} at worst; all keys written again after \
         {:.0?}, {:.0?}; {failed} requests failed",
        middle(&gaps),
        middle(&all_keys),
        all_keys.last().unwrap()
    );
    worst
}

fn default_tuning(zones: u8, quorum: &'static str) -> Plan {
    Plan { tuning: "", ..Plan::new(zones, 3, quorum) }
}

#[test]
fn clients_wait_for_a_while_and_not_for_ever() {
    let plan = default_tuning(1, "system = \"majority\"");
    let worst = measure("1x3", plan, End::Killed, 2, Duration::from_secs(3));
    assert!(worst < LONGEST, "a client had no success in all the time");
}

#[test]
#[ignore = "it measures, for some minutes"]
fn the_gap_that_clients_see() {
    for end in [End::Killed, End::Silent] {
        measure("1x3 majority", default_tuning(1, "system = \"majority\""), end, 12, Duration::from_secs(4));
        measure("3x3 floor", default_tuning(3, "system = \"floor\""), end, 12, Duration::from_secs(4));
    }
}
