//! Clients whose every operation is recorded, and what their history must satisfy.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use wpaxos::{
    client::{Client, Completion, Outcome as Ended},
    command::{Action, Expect, Status},
    linear::{self, Act, Operation, Outcome, State, Verdict, value_number},
};

use crate::support::PATIENCE;

/// Steps of a search for an order of one key's operations.
const STEPS_MAX: usize = 50_000_000;

/// What a number decides: the same every time.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `WPAXOS_CRASH_SEED`, or a new one; printed, since it is half of what makes a run again (timing is the other).
    pub fn seeded(test: &str) -> Self {
        let given = std::env::var("WPAXOS_CRASH_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_micros() as u64 % 1_000_000
        });
        eprintln!("{test}: WPAXOS_CRASH_SEED={seed}");
        Self(seed)
    }

    /// The stream of a seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Some time up to `most`.
    pub fn sleep(&mut self, most: Duration) {
        std::thread::sleep(most.mul_f64(self.below(1000) as f64 / 1000.0));
    }
}

/// How many rounds a test has.
pub fn rounds(default: usize) -> usize {
    let given = std::env::var("WPAXOS_CRASH_ROUNDS").ok();
    given.map_or(default, |rounds| rounds.parse().expect("WPAXOS_CRASH_ROUNDS is a number"))
}

/// All operations of all clients, on one clock.
#[derive(Default)]
pub struct History {
    clock: AtomicU64,
    done: AtomicUsize,
    clients: AtomicU64,
    stop: AtomicBool,
    operations: Mutex<BTreeMap<usize, Vec<Operation>>>,
}

/// An operation that has not ended.
struct Open {
    key: usize,
    act: Act,
    called: u64,
}

impl History {
    /// Clients that keep so many operations each in flight, on so many keys, until `meanwhile` has ended; then everything
    /// that they asked ends.
    pub fn under_load<T>(&self, clients: Vec<Client>, keys: usize, window: usize, meanwhile: impl FnOnce() -> T) -> T {
        /// Ends the load also when an assertion fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stop = Stop(&self.stop);
            for client in clients {
                scope.spawn(move || self.drive(client, keys, window));
            }
            meanwhile()
        })
    }

    fn drive(&self, mut client: Client, keys: usize, window: usize) {
        let number = self.clients.fetch_add(1, Ordering::Relaxed) + 1;
        let mut random = Random(number);
        let mut known: HashMap<usize, (u64, u64)> = HashMap::new();
        let mut open: HashMap<u64, Open> = HashMap::new();
        let mut tag = 0;
        while !self.stop.load(Ordering::Relaxed) || client.in_flight() > 0 {
            while client.in_flight() < window && !self.stop.load(Ordering::Relaxed) {
                tag += 1;
                let (key, value) = (random.below(keys), number << 40 | tag);
                let (seen, version) = known.get(&key).copied().unwrap_or_default();
                let act = match random.below(8) {
                    0..=2 => Act::Get,
                    3..=4 => Act::Put(value),
                    5 if seen == 0 => Act::CasAbsent(value),
                    5 => Act::CasValue(seen, value),
                    6 => Act::CasVersion(version, value),
                    _ if random.below(4) == 0 => Act::Delete,
                    _ => Act::Put(value),
                };
                open.insert(tag, Open { key, act, called: self.clock.fetch_add(1, Ordering::SeqCst) });
                submit(&mut client, key, act, tag);
            }
            let polled = client.poll(Duration::from_millis(20), &mut |completion| {
                let asked = open.remove(&completion.tag).expect("one completion for each request");
                let (key, act) = (asked.key, asked.act);
                if let Some(Operation { outcome: Outcome::Known(status, version, value), .. }) =
                    self.end(asked, &completion)
                    && version >= known.get(&key).map_or(0, |known| known.1)
                {
                    let value = if act == Act::Get || status != Status::Ok { value } else { act.written() };
                    known.insert(key, (value, version));
                }
            });
            polled.unwrap();
        }
    }

    /// Records how an operation ended, if that says anything.
    fn end(&self, asked: Open, completion: &Completion<'_>) -> Option<Operation> {
        let Open { key, act, called } = asked;
        let known = |status, value| Outcome::Known(status, completion.version, value);
        let outcome = match completion.outcome {
            Ended::Value(value) => known(Status::Ok, value_number(Some(value))),
            Ended::Done => known(Status::Ok, 0),
            Ended::NotFound => known(Status::NotFound, 0),
            Ended::CasFailed => known(Status::CasFailed, 0),
            Ended::Duplicate => Outcome::Happened,
            Ended::Ambiguous(_) => Outcome::Unknown,
            Ended::Refused(_) => return None,
        };
        if act == Act::Get && matches!(outcome, Outcome::Happened | Outcome::Unknown) {
            return None;
        }
        let returned = self.clock.fetch_add(1, Ordering::SeqCst);
        let operation = Operation { act, called, returned, outcome };
        if outcome != Outcome::Unknown {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        self.operations.lock().unwrap().entry(key).or_default().push(operation);
        Some(operation)
    }

    /// Waits until so many operations more have ended well, and says how long that took.
    pub fn wait_for(&self, more: usize) -> Duration {
        let (started, before) = (Instant::now(), self.done.load(Ordering::Relaxed));
        while self.done.load(Ordering::Relaxed) < before + more {
            let now = self.done.load(Ordering::Relaxed) - before;
            assert!(started.elapsed() < PATIENCE, "{now} operations of {more} in {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        started.elapsed()
    }

    /// How many operations have ended well.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Reads every key once more, and checks that an order of all operations explains every answer, and that nothing that was
    /// acknowledged is lost or doubled.
    pub fn check(&self, client: &mut Client) {
        let keys: Vec<usize> = self.operations.lock().unwrap().keys().copied().collect();
        for key in keys {
            let called = self.clock.fetch_add(1, Ordering::SeqCst);
            let started = Instant::now();
            let found = loop {
                match client.get(name(key).as_bytes()) {
                    Ok(found) => break found,
                    Err(error) => assert!(started.elapsed() < PATIENCE, "{}: {error}", name(key)),
                }
            };
            let returned = self.clock.fetch_add(1, Ordering::SeqCst);
            let outcome = match &found {
                Some((value, version)) => Outcome::Known(Status::Ok, *version, value_number(Some(value))),
                // The version of what is not there is not told.
                None => Outcome::seen(Status::NotFound, 0),
            };
            let mut operations = self.operations.lock().unwrap();
            let operations = operations.get_mut(&key).unwrap();
            check_account(key, operations, found.map(|(value, version)| (value_number(Some(&value)), version)));
            operations.push(Operation { act: Act::Get, called, returned, outcome });
            check_order(key, operations);
        }
    }

    /// What there is to say of it.
    pub fn describe(&self) -> String {
        let operations = self.operations.lock().unwrap();
        let all = || operations.values().flatten();
        let unknown = all().filter(|operation| operation.outcome == Outcome::Unknown).count();
        let happened = all().filter(|operation| operation.outcome == Outcome::Happened).count();
        format!("{} operations, {unknown} with unknown end, {happened} found executed by a retry", all().count())
    }
}

/// What a key is called.
pub fn name(key: usize) -> String {
    format!("hot-{key}")
}

fn submit(client: &mut Client, key: usize, act: Act, tag: u64) {
    let (key, bytes, expected) = (name(key), value_of(act.written()), value_of(expected_of(act)));
    let action = match act {
        Act::Get => Action::Get,
        Act::Put(_) => Action::Put(&bytes),
        Act::Delete => Action::Delete,
        Act::CasAbsent(_) => Action::CompareAndSwap { expect: Expect::Absent, value: &bytes },
        Act::CasValue(..) => Action::CompareAndSwap { expect: Expect::Value(&expected), value: &bytes },
        Act::CasVersion(version, _) => Action::CompareAndSwap { expect: Expect::Version(version), value: &bytes },
    };
    client.submit(action, key.as_bytes(), tag).unwrap();
}

fn expected_of(act: Act) -> u64 {
    if let Act::CasValue(expected, _) = act { expected } else { 0 }
}

/// A number, and something to fill segments with.
fn value_of(number: u64) -> Vec<u8> {
    [&number.to_le_bytes()[..], &[number as u8; 120]].concat()
}

/// By the versions that acknowledgements name: each stands for one write, all of them and perhaps some of unknown end have
/// happened, and the last one's value is there.
fn check_account(key: usize, operations: &[Operation], found: Option<(u64, u64)>) {
    let mut acknowledged: BTreeMap<u64, Act> = BTreeMap::new();
    let (mut unsure, mut at_least) = (0, 0);
    for operation in operations.iter().filter(|operation| operation.act != Act::Get) {
        match operation.outcome {
            Outcome::Known(Status::Ok, version, _) => {
                let twice = acknowledged.insert(version, operation.act);
                assert!(twice.is_none(), "{}: two writes were given version {version}", name(key));
                at_least += 1;
            }
            Outcome::Known(..) => {}
            Outcome::Happened | Outcome::Unknown => unsure += 1,
        }
    }
    let Some((value, version)) = found else { return };
    let (key, most) = (name(key), at_least + unsure);
    assert!((at_least..=most).contains(&version), "{key}: version {version} after {at_least} to {most} writes");
    if let Some(last) = acknowledged.get(&version) {
        assert_eq!(value, last.written(), "{key} at version {version}");
    }
}

fn check_order(key: usize, operations: &[Operation]) {
    match linear::check(operations, STEPS_MAX) {
        Verdict::Linearizable => {}
        Verdict::TooLong => panic!("{}: {} operations: the search was given up", name(key), operations.len()),
        Verdict::Not => {
            let found = linear::explain(operations, State::default(), STEPS_MAX);
            let shown = &found.beginning[found.beginning.len().saturating_sub(16)..];
            let lines: Vec<String> = shown.iter().map(|operation| format!("  {operation:?}")).collect();
            panic!("{}: nothing explains what returned at {}:\n{}", name(key), found.returned, lines.join("\n"));
        }
    }
}
